"""The figures of a run over time: always in ``metrics.jsonl``, mirrored to Weights & Biases on request."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from typing import Any, Literal

from shared.errors import HubError, InputError, MissingPackageError
from shared.results import write_atomic

Backend = Literal["none", "wandb"]


class Tracker:
    """Appends one JSON object a line to ``metrics.jsonl``: ``{"step": …, "time": seconds since 1970, figures …}``.

    Args:
        folder: The run's folder.
        backend: ``none``, or ``wandb`` to mirror everything there. W&B runs offline where ``WANDB_MODE=offline``
            says so, and never asks: without a key it is an error at the start, not a question in the middle.
        config: What W&B shows beside the run.
        resume_step: Rows after this step are dropped first, so that a resumed run leaves each step once.

    Raises:
        MissingPackageError: wandb is asked for and not installed.
        InputError: wandb is asked for online and has no key.
        HubError: wandb can't be reached, or refuses the key.
    """

    def __init__(
        self, folder: Path, backend: Backend = "none", *, config: dict[str, Any] | None = None, resume_step: int = -1
    ) -> None:
        path = folder / "metrics.jsonl"
        kept = [row for row in read_metrics(path) if row["step"] <= resume_step]
        write_atomic(path, "".join(json.dumps(row) + "\n" for row in kept))
        self._file = path.open("a", encoding="utf-8")
        self._wandb = _start_wandb(folder, config) if backend == "wandb" else None

    def log(self, step: int, **figures: float) -> None:
        """Write the figures of one step, at once."""
        self._file.write(json.dumps({"step": step, "time": round(time.time(), 3), **figures}) + "\n")
        self._file.flush()
        if self._wandb:
            self._wandb.log(figures, step=step)

    def close(self) -> None:
        """Finish the file and the mirror."""
        self._file.close()
        if self._wandb:
            self._wandb.finish()


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """Read ``metrics.jsonl``; lines cut short by a kill are left out, a missing file is empty."""
    rows = []
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines() if path.exists() else []:
        try:
            row = json.loads(line)
        except (ValueError, RecursionError):
            continue
        if isinstance(row, dict) and isinstance(row.get("step"), int):
            rows.append(row)
    return rows


def _start_wandb(folder: Path, config: dict[str, Any] | None) -> Any:
    try:
        import wandb
    except ImportError:
        raise MissingPackageError("wandb", "track") from None
    mode = os.environ.get("WANDB_MODE", "online")
    try:
        if mode == "online" and not wandb.login(prompt=False):
            raise InputError("tracking wandb found no key.", hint="run `wandb login`, or set WANDB_MODE=offline")
        return wandb.init(project="llm-roadmap", name=folder.name, dir=str(folder), config=config)
    except InputError:
        raise
    except (wandb.Error, ValueError) as error:  # its settings are checked by pydantic
        raise HubError(f"Weights & Biases: {' '.join(str(error).split())}", hint="set WANDB_MODE=offline") from None
