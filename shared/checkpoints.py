"""Tensors and their JSON state in one safetensors file, so a checkpoint is either all there or not at all."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from shared.errors import InputError
from shared.results import write_atomic

if TYPE_CHECKING:
    from torch import Tensor


def save_checkpoint(path: Path, tensors: dict[str, Tensor], state: dict[str, Any]) -> None:
    """Write a checkpoint atomically; the state goes into the file's header as JSON.

    Raises:
        OSError: The disk is full or the folder can't be written; the old file is untouched.
    """
    from safetensors.torch import save

    contiguous = {name: tensor.contiguous() for name, tensor in tensors.items()}
    write_atomic(path, save(contiguous, metadata={"state": json.dumps(state)}))


def read_checkpoint(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Read what :func:`save_checkpoint` wrote, onto the CPU.

    Raises:
        InputError: The file is truncated or something else.
        FileNotFoundError: There is none.
    """
    from safetensors import SafetensorError, safe_open

    if not path.is_file():
        raise FileNotFoundError(f"No such checkpoint: {path}")
    try:
        with safe_open(path, "pt") as file:
            state = json.loads(file.metadata()["state"])
            if not isinstance(state, dict):
                raise TypeError("its state is no object")
            return {name: file.get_tensor(name) for name in file.keys()}, state
    except (SafetensorError, KeyError, TypeError, ValueError, RecursionError) as error:
        raise InputError(f"{path} is damaged, or not a checkpoint of this repository ({error}).") from None


def select(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """Return the tensors whose names begin with a prefix, without it."""
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}
