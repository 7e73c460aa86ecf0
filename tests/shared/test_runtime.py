"""Devices, data types, Ctrl-C, and what a figure was measured on."""

import os
import platform
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from shared import runtime
from shared.errors import InputError
from shared.runtime import StopRequest, git_commit, hardware, pick_device, pick_dtype, set_threads

ROOT = Path(__file__).parents[2]


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, bool]]:
    """Pretend that devices are there or not."""
    there = {"cuda": False, "mps": False, "bf16": False}
    monkeypatch.setattr(torch.cuda, "is_available", lambda: there["cuda"])
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: there["bf16"])
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: there["mps"])
    yield there


@pytest.mark.parametrize(
    ("there", "device"),
    [([], "cpu"), (["mps"], "mps"), (["cuda"], "cuda"), (["cuda", "mps"], "cuda")],
)
def test_auto_takes_the_best_device_there_is(there: list[str], device: str, machine: dict[str, bool]) -> None:
    machine.update(dict.fromkeys(there, True))
    assert pick_device().type == device
    assert pick_device("cpu").type == "cpu"


@pytest.mark.parametrize("name", ["cuda", "cuda:1", "mps", "meta"])
@pytest.mark.usefixtures("machine")
def test_a_device_that_is_not_there_is_named(name: str) -> None:
    with pytest.raises(InputError, match=f"device '{name}' is not usable") as error:
        pick_device(name)
    assert error.value.hint == "--device auto"


@pytest.mark.parametrize("name", ["gpu", "", "cuda:x", "CPU"])
def test_a_device_that_nobody_knows_is_named(name: str) -> None:
    with pytest.raises(InputError, match="device must be auto, cpu, cuda or mps"):
        pick_device(name)


@pytest.mark.parametrize(
    ("name", "device", "bf16", "dtype"),
    [
        ("auto", "cpu", True, torch.float32),
        ("auto", "mps", True, torch.float32),
        ("auto", "cuda", False, torch.float32),
        ("auto", "cuda", True, torch.bfloat16),
        ("bfloat16", "cpu", False, torch.bfloat16),
        ("float32", "cuda", True, torch.float32),
    ],
)
def test_the_data_type_follows_the_device(
    name: str, device: str, bf16: bool, dtype: torch.dtype, machine: dict[str, bool]
) -> None:
    machine["bf16"] = bf16
    assert pick_dtype(name, torch.device(device)) == dtype


def test_zero_threads_leaves_the_choice_to_pytorch() -> None:
    before = torch.get_num_threads()
    try:
        set_threads(1)
        assert torch.get_num_threads() == 1
        set_threads(0)
        assert torch.get_num_threads() == 1
    finally:
        torch.set_num_threads(before)


def test_hardware_is_one_line_with_versions() -> None:
    assert "\n" not in hardware()
    assert str(os.cpu_count()) in hardware()
    assert torch.__version__ in hardware()
    assert platform.python_version() in hardware()


@pytest.fixture
def repository(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder that pretends to hold the code."""
    monkeypatch.setattr(runtime, "__file__", str(tmp_path / "runtime.py"))
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    git_commit.cache_clear()
    yield tmp_path
    git_commit.cache_clear()


def test_outside_git_the_commit_is_unknown(repository: Path) -> None:
    assert git_commit() == "unknown"


def test_without_git_the_commit_is_unknown(repository: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(repository))
    assert git_commit() == "unknown"


@pytest.mark.parametrize("dirty", [False, True])
def test_a_changed_tree_is_marked(repository: Path, dirty: bool) -> None:
    def git(*arguments: str) -> str:
        identity = ["-c", "user.name=a", "-c", "user.email=a@b.c", "-c", "commit.gpgsign=false"]
        run = subprocess.run(["git", *identity, *arguments], cwd=repository, check=True, capture_output=True, text=True)
        return run.stdout.strip()

    git("init")
    (repository / "file").write_text("one")
    git("add", "file")
    git("commit", "-m", "first")
    if dirty:
        (repository / "file").write_text("two")
    assert git_commit() == git("rev-parse", "--short=12", "HEAD") + ("+" if dirty else "")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_asks_to_stop_and_handlers_come_back(number: signal.Signals) -> None:
    before = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
    with StopRequest() as stop:
        assert not stop.requested
        signal.raise_signal(number)
        assert stop.requested
    assert (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)) == before


def test_the_second_ctrl_c_interrupts_at_once() -> None:
    with pytest.raises(KeyboardInterrupt), StopRequest():
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGINT)


def test_outside_the_main_thread_nothing_is_caught() -> None:
    requests: list[bool] = []

    def work() -> None:
        with StopRequest() as stop:
            requests.append(stop.requested)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert requests == [False]


def test_log_lines_go_to_stderr_and_only_the_first_process_speaks() -> None:
    program = (
        "import logging\n"
        "from shared.logs import progress_bar, setup_logging\n"
        "setup_logging('shared')\n"
        "logging.getLogger('shared.x').info('[b]hello[/b]')\n"
        "logging.getLogger('other').info('chatter')\n"
        "with progress_bar() as bar:\n"
        "    bar.update(bar.add_task('train', total=2, figures=''), completed=2, figures='loss 1.5')\n"
    )

    def run(rank: str) -> subprocess.CompletedProcess[str]:
        environment = {**os.environ, "PYTHONPATH": str(ROOT), "RANK": rank}
        return subprocess.run(
            [sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=True
        )

    first, second = run("0"), run("1")
    assert first.stdout == second.stdout == ""
    assert "[b]hello[/b]" in first.stderr
    assert "loss 1.5" in first.stderr
    assert "chatter" not in first.stderr
    assert "hello" not in second.stderr
