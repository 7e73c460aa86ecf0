"""metrics.jsonl survives kills and resumes, and Weights & Biases mirrors it without ever asking anything."""

import json
import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

from shared.errors import HubError, MissingPackageError
from shared.tracking import Tracker, read_metrics

ROOT = Path(__file__).parents[2]


def steps(folder: Path) -> list[int]:
    return [row["step"] for row in read_metrics(folder / "metrics.jsonl")]


def test_every_step_is_on_disk_at_once(tmp_path: Path) -> None:
    tracker = Tracker(tmp_path)
    tracker.log(5, loss=1.25, speed=100)
    [row] = read_metrics(tmp_path / "metrics.jsonl")
    assert row.pop("time") > 1.7e9
    assert row == {"step": 5, "loss": 1.25, "speed": 100}
    tracker.close()


@pytest.mark.parametrize(("resume_step", "kept"), [(-1, []), (0, [0]), (15, [0, 10]), (20, [0, 10, 20])])
def test_a_resumed_run_has_each_step_once(resume_step: int, kept: list[int], tmp_path: Path) -> None:
    first = Tracker(tmp_path)
    for step in (0, 10, 20):
        first.log(step, loss=float(step))
    first.close()
    second = Tracker(tmp_path, resume_step=resume_step)
    assert steps(tmp_path) == kept
    second.log(30, loss=0.0)
    second.close()
    assert steps(tmp_path) == [*kept, 30]


@pytest.mark.parametrize("cut", [1, 5, 30])
def test_a_line_cut_short_by_a_kill_is_left_out(cut: int, tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    lines = [json.dumps({"step": step, "time": 1.5, "loss": 0.25}) for step in (1, 2)]
    path.write_text(lines[0] + "\n" + lines[1][:-cut])
    assert steps(tmp_path) == [1]
    tracker = Tracker(tmp_path, resume_step=5)
    tracker.log(3, loss=0.5)
    tracker.close()
    assert steps(tmp_path) == [1, 3]


@pytest.mark.parametrize("line", ["", "garbage", "5", "{}", "[]", '{"step": "3"}', "\0\0\0", "[" * 100_000])
def test_a_broken_line_takes_no_other_with_it(line: str, tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").write_text(f'{{"step": 1}}\n{line}\n{{"step": 2}}\n')
    assert steps(tmp_path) == [1, 2]
    (tmp_path / "metrics.jsonl").write_bytes(b'\xff\xfe\n{"step": 1}\n')
    Tracker(tmp_path, resume_step=1).close()
    assert steps(tmp_path) == [1]


def test_no_metrics_are_no_rows(tmp_path: Path) -> None:
    assert read_metrics(tmp_path / "metrics.jsonl") == []


def test_missing_wandb_names_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(MissingPackageError) as error:
        Tracker(tmp_path, "wandb")
    assert error.value.hint == 'pip install "llm-roadmap[track]"'


TRACK = """
from pathlib import Path
from dataclasses import dataclass
from shared.config import run_commands
from shared.tracking import Tracker

@dataclass
class Config:
    x: int = 1

def command(config: Config) -> None:
    tracker = Tracker(Path("run"), "wandb", config={"x": 1})
    tracker.log(1, loss=0.5)
    tracker.close()

Path("run").mkdir()
run_commands({"command": command}, module="p.m", argv=[])
"""


def track(folder: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """Track a run in a process without keys and without a terminal, whose proxy refuses the network."""
    clean = {"PATH": os.environ["PATH"], "HOME": str(folder), "PYTHONPATH": str(ROOT), "TMPDIR": str(folder)}
    proxies = {name: "http://127.0.0.1:9" for name in ("HTTP_PROXY", "HTTPS_PROXY")}
    return subprocess.run(
        [sys.executable, "-c", TRACK],
        cwd=folder,
        env={**clean, **proxies, **environment},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=120,
    )


needs_wandb = pytest.mark.skipif(find_spec("wandb") is None, reason="wandb is not installed")


@needs_wandb
@pytest.mark.slow
def test_wandb_works_offline(tmp_path: Path) -> None:
    run = track(tmp_path, WANDB_MODE="offline")
    assert run.returncode == 0, run.stderr
    assert steps(tmp_path / "run") == [1]
    assert list((tmp_path / "run").glob("wandb/offline-run-*/*.wandb"))


@needs_wandb
def test_wandb_online_without_a_key_is_an_error_not_a_question(tmp_path: Path) -> None:
    run = track(tmp_path)
    assert run.returncode == 2, run.stderr
    assert run.stderr.splitlines()[-2:] == [
        "error: tracking wandb found no key.",
        "hint: run `wandb login`, or set WANDB_MODE=offline",
    ]
    assert "Traceback" not in run.stderr


@needs_wandb
def test_wandb_with_a_setting_that_can_not_be_is_one_error(tmp_path: Path) -> None:
    run = track(tmp_path, WANDB_MODE="garbage")
    assert run.returncode == 1, run.stderr
    assert run.stderr.splitlines()[-2].startswith("error: Weights & Biases: ")


@needs_wandb
def test_wandb_that_refuses_is_one_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import wandb

    def refuse(**_: object) -> None:
        raise wandb.Error("no such\nproject")

    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setattr(wandb, "init", refuse)
    with pytest.raises(HubError, match="Weights & Biases: no such project") as error:
        Tracker(tmp_path, "wandb")
    assert error.value.hint == "set WANDB_MODE=offline"
