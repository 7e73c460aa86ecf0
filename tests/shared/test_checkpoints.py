"""A checkpoint comes back bit for bit, and anything else is refused by name."""

import errno
import json
import os
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from shared.checkpoints import read_checkpoint, save_checkpoint, select
from shared.errors import InputError

TENSORS = {
    "float": torch.tensor([[1.1, float("inf")], [-0.0, 3e-40]]),
    "transposed": torch.arange(6).reshape(2, 3).T,
    "half": torch.tensor([1.5], dtype=torch.bfloat16),
    "scalar": torch.tensor(7),
}
STATE = {"step": 3, "loss": 0.1, "best": float("inf"), "vocabulary": "a词𝔸\n", "nested": {"x": [1, None]}}


def test_tensors_and_state_come_back_bit_for_bit(tmp_path: Path) -> None:
    save_checkpoint(tmp_path / "new" / "x.safetensors", TENSORS, STATE)
    tensors, state = read_checkpoint(tmp_path / "new" / "x.safetensors")
    assert state == STATE
    assert tensors.keys() == TENSORS.keys()
    for name, tensor in TENSORS.items():
        assert tensors[name].dtype == tensor.dtype
        assert tensors[name].equal(tensor)


def test_a_checkpoint_cut_anywhere_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    save_checkpoint(path, TENSORS, STATE)
    whole = path.read_bytes()
    for length in (0, 1, 7, 8, 9, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:length])
        with pytest.raises(InputError, match="x.safetensors is damaged"):
            read_checkpoint(path)


@pytest.mark.parametrize("metadata", [None, {}, {"other": "x"}, {"state": "{"}])
def test_a_file_of_something_else_is_refused(metadata: dict[str, str] | None, tmp_path: Path) -> None:
    save_file({"x": torch.zeros(1)}, tmp_path / "x.safetensors", metadata)
    with pytest.raises(InputError, match="not a checkpoint of this repository"):
        read_checkpoint(tmp_path / "x.safetensors")


@pytest.mark.parametrize("content", [b"not a checkpoint", b"PK\x03\x04" + bytes(100), b"\xff" * 200])
def test_other_bytes_are_refused(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "x.safetensors").write_bytes(content)
    with pytest.raises(InputError, match="is damaged"):
        read_checkpoint(tmp_path / "x.safetensors")


@pytest.mark.parametrize("name", ["missing.safetensors", "."])
def test_a_missing_file_is_named(name: str, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="No such checkpoint"):
        read_checkpoint(tmp_path / name)


def test_a_full_disk_leaves_the_old_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    path = tmp_path / "x.safetensors"
    save_checkpoint(path, TENSORS, STATE)
    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        save_checkpoint(path, {"float": torch.zeros(1)}, {"step": 4})
    assert read_checkpoint(path)[1] == STATE
    assert os.listdir(tmp_path) == ["x.safetensors"]


def test_the_state_is_in_the_header_for_other_tools(tmp_path: Path) -> None:
    from safetensors import safe_open

    save_checkpoint(tmp_path / "x.safetensors", TENSORS, STATE)
    with safe_open(tmp_path / "x.safetensors", "pt") as file:
        assert json.loads(file.metadata()["state"]) == STATE


def test_select_takes_a_prefix_off() -> None:
    tensors = {"model.a": torch.zeros(1), "model.model.b": torch.ones(1), "other.a": torch.ones(2)}
    assert select(tensors, "model.").keys() == {"a", "model.b"}
