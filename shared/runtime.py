"""Seeds, devices, data types and what a figure was measured on."""

from __future__ import annotations

import functools
import os
import platform
import signal
import subprocess
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any

from shared.errors import InputError

if TYPE_CHECKING:
    import torch


def pick_device(name: str = "auto") -> torch.device:
    """Return the device to compute on.

    Args:
        name: ``auto`` (cuda, then mps, then cpu) or a device that PyTorch knows.

    Raises:
        InputError: The device is unknown or not on this machine.
    """
    import torch

    usable = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    if name == "auto":
        return torch.device(next(kind for kind, there in usable.items() if there))
    try:
        device = torch.device(name)
    except RuntimeError:
        raise InputError(f"device must be auto, cpu, cuda or mps. Got {name!r}.") from None
    if not usable.get(device.type, False):
        raise InputError(f"device {name!r} is not usable on this machine.", hint="--device auto")
    return device


def pick_dtype(name: str, device: torch.device) -> torch.dtype:
    """Return the data type to compute in: ``auto`` is bfloat16 on GPUs that have it, float32 elsewhere."""
    import torch

    if name == "auto":
        bf16 = device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)
        return torch.bfloat16 if bf16 else torch.float32
    return {"float32": torch.float32, "bfloat16": torch.bfloat16}[name]


def set_threads(threads: int) -> None:
    """Let PyTorch use this many CPU threads; 0 keeps its own choice (all cores)."""
    import torch

    if threads:
        torch.set_num_threads(threads)


@functools.cache
def hardware() -> str:
    """Describe the machine in one line: processor or GPU, cores, threads, versions."""
    import torch

    processor = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        models = [line.partition(":")[2].strip() for line in cpuinfo.read_text().splitlines() if "model name" in line]
        processor = models[0] if models else processor
    gpu = f"{torch.cuda.get_device_name()}, " if torch.cuda.is_available() else ""
    versions = f"Python {platform.python_version()}, PyTorch {torch.__version__}"
    return f"{gpu}{os.cpu_count()} × {processor}, {versions}"


@functools.cache
def git_commit() -> str:
    """Return the commit of the code that is running, ``+`` behind it when files differ, ``unknown`` outside git."""
    folder = Path(__file__).parent
    try:
        commit = subprocess.run(
            ["git", "rev-parse", "--short=12", "HEAD"], cwd=folder, capture_output=True, text=True, check=True
        ).stdout.strip()
        dirty = subprocess.run(["git", "diff", "--quiet", "HEAD"], cwd=folder, capture_output=True).returncode != 0
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return commit + ("+" if dirty else "")


class StopRequest:
    """Catches Ctrl-C and SIGTERM inside a ``with`` block, so that a loop can end its step, save and stop.

    A second Ctrl-C interrupts at once. Outside the main thread signals can't be caught, and it does nothing.
    """

    def __init__(self) -> None:
        self.requested = False

    def __enter__(self) -> StopRequest:
        self._previous: dict[int, Any] = {}
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                self._previous[number] = signal.signal(number, self._request)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def _request(self, *_: object) -> None:
        self.requested = True
        signal.signal(signal.SIGINT, signal.default_int_handler)
