"""Files are whole at any moment, runs leave what they promise, and the table tells inside from outside."""

import errno
import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import pytest
import yaml

from shared import results
from shared.config import run_commands
from shared.errors import InputError
from shared.results import (
    Promise,
    Run,
    TableConfig,
    check_resumable,
    read_promises,
    read_results,
    table,
    write_atomic,
)

ROOT = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def _in_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "200")


@dataclass
class Config:
    preset: str = "small"
    steps: int = 10
    text: str = "词"


# --- Files ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("content", ["", "文本 𝔸\n", b"\x00\xff\n\r\n"])
def test_content_arrives_as_it_is_in_folders_made_for_it(content: str | bytes) -> None:
    path = Path("a/b/file")
    write_atomic(path, content)
    assert path.read_bytes() == (content.encode() if isinstance(content, str) else content)
    assert [p.name for p in path.parent.iterdir()] == ["file"]
    assert path.stat().st_mode & 0o777 == 0o644


@pytest.mark.parametrize("function", ["fsync", "replace"])
def test_a_full_disk_leaves_the_old_file_and_nothing_else(function: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    write_atomic(Path("file"), "old")
    monkeypatch.setattr(os, function, full)
    with pytest.raises(OSError, match="No space left"):
        write_atomic(Path("file"), "new")
    assert Path("file").read_text() == "old"
    assert os.listdir() == ["file"]


def test_ctrl_c_leaves_the_old_file_and_nothing_else(monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    write_atomic(Path("file"), "old")
    monkeypatch.setattr(os, "fsync", interrupt)
    with pytest.raises(KeyboardInterrupt):
        write_atomic(Path("file"), "new")
    assert Path("file").read_text() == "old"
    assert os.listdir() == ["file"]


REWRITE = """
import itertools, sys
from pathlib import Path
from shared.results import write_atomic
for i in itertools.count():
    write_atomic(Path("file"), f"{i % 10}" * 300_000)
    sys.stdout.write("written\\n")
    sys.stdout.flush()
"""


@pytest.mark.parametrize("moment", [0.0, 0.011, 0.023, 0.037])
def test_kill_9_leaves_one_whole_file(moment: float) -> None:
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    with subprocess.Popen([sys.executable, "-c", REWRITE], env=environment, stdout=subprocess.PIPE) as process:
        process.stdout.readline()
        time.sleep(moment)
        process.send_signal(signal.SIGKILL)
    content = Path("file").read_text()
    assert content == content[0] * 300_000


# --- Runs -------------------------------------------------------------------------------------------------------------


def start(name: str = "", *, resume: bool = False, **changes: object) -> Run:
    return Run("project", "project.module", "train", Config(**changes), name=name, resume=resume)


def test_a_run_leaves_its_configuration_and_results() -> None:
    run = start("first", steps=3)
    assert run.folder == Path("outputs/project/first")
    run.finish(model="m", data="数据", seed=7, metrics={"loss": 1.5}, seconds=61.26)
    assert yaml.safe_load((run.folder / "config.yaml").read_text()) == {"preset": "small", "steps": 3, "text": "词"}
    saved = json.loads((run.folder / "results.json").read_text())
    assert saved.pop("hardware")
    assert saved.pop("git_commit")
    assert saved == {
        "project": "project",
        "command": "python -m project.module train --steps 3",
        "model": "m",
        "data": "数据",
        "seed": 7,
        "seconds": 61.3,
        "metrics": {"loss": 1.5},
    }


def test_runs_without_a_name_never_share_a_folder() -> None:
    folders = [start().folder for _ in range(4)]
    assert len(set(folders)) == 4
    assert all(folder.name.endswith("-train") or folder.name[-2] == "-" for folder in folders)


def test_a_name_is_used_once_unless_the_run_is_resumed() -> None:
    start("mine", steps=2)  # leaves nothing but its configuration
    Path(start("mine", steps=3).folder / "metrics.jsonl").touch()
    with pytest.raises(InputError, match="exists already") as error:
        start("mine", steps=4)
    assert "--resume true" in error.value.hint
    assert "steps: 3" in Path("outputs/project/mine/config.yaml").read_text()
    start("mine", resume=True, steps=4)
    assert "steps: 4" in Path("outputs/project/mine/config.yaml").read_text()


@pytest.mark.parametrize("content", ["", "[", "word", "steps: [", "3"])
def test_a_run_whose_configuration_is_damaged_does_not_go_on(content: str) -> None:
    folder = start("mine").folder
    (folder / "config.yaml").write_text(content)
    with pytest.raises(InputError, match="damaged"):
        check_resumable(folder, Config())


@pytest.mark.parametrize("name", ["../x", "a/b", "/tmp/x", "..", ".", "a/"])
def test_a_run_stays_inside_its_project(name: str) -> None:
    with pytest.raises(InputError, match="plain folder name"):
        start(name)
    assert not os.listdir()


# --- Promises and their table -----------------------------------------------------------------------------------------

README = """
| command | figure | range | minutes |
|---|---|---:|---|
| `python -m p.m train` | loss | 1.9 – 2.1 | 2 |
| `python -m p.m train --steps 5` | `loss` | ≤ 1.65 | 2 |
| `python -m p.m train` | accuracy | ≥ 0.9 | 2 |
| `python -m p.m train` | speed | – | 2 |
| `python -m p.m train` | error | ≤ 1e-10 | 2 |
| `python -m p.m train` | shift | -0.5 – 1,000 | 2 |

| what | range |
|---|---|
| other | 1 – 2 |
"""


def test_promises_are_read_from_the_tables_that_make_them() -> None:
    infinity = float("inf")
    assert read_promises(README) == [
        Promise("python -m p.m train", "loss", 1.9, 2.1),
        Promise("python -m p.m train --steps 5", "loss", -infinity, 1.65),
        Promise("python -m p.m train", "accuracy", 0.9, infinity),
        Promise("python -m p.m train", "error", -infinity, 1e-10),
        Promise("python -m p.m train", "shift", -0.5, 1000),
    ]


@pytest.mark.parametrize("text", ["1.9-2.1", "1.9 - 2.1", "1.9–2.1", "1.9 to 2.1", "**1.9 – 2.1**"])
def test_a_range_may_be_written_with_any_dash(text: str) -> None:
    readme = f"| command | figure | range |\n|---|---|---|\n| c | f | {text} |\n"
    assert read_promises(readme) == [Promise("c", "f", 1.9, 2.1)]


@pytest.mark.parametrize("text", ["1.9 – 2.1", "≤ 1.65", "≥ 0.9", "-0.5 – 1000"])
def test_a_range_is_shown_as_it_was_written(text: str) -> None:
    [promise] = read_promises(f"| command | figure | range |\n|---|---|---|\n| c | f | {text} |\n")
    assert str(promise) == text


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Let the table find the README of a project `p` beside a copy of `shared`."""
    monkeypatch.setattr(results, "__file__", str(tmp_path / "shared" / "results.py"))
    write_atomic(tmp_path / "p" / "README.md", README)
    return tmp_path


def leave_results(name: str, command: str = "python -m p.m train", **metrics: object) -> Path:
    path = Path("outputs/p") / name / "results.json"
    write_atomic(path, json.dumps({"project": "p", "command": command, "seconds": 90, "metrics": metrics}))
    return path


@pytest.mark.usefixtures("project")
@pytest.mark.parametrize(("loss", "verdict", "status"), [(2.0, "yes", 0), (2.1, "yes", 0), (2.11, "no", 1)])
def test_the_table_tells_inside_from_outside(
    loss: float, verdict: str, status: int, capsys: pytest.CaptureFixture[str]
) -> None:
    leave_results("run", loss=loss, unpromised=5)
    with pytest.raises(SystemExit) as exit_:
        run_commands({"table": table}, module="shared.results", argv=["--check", "true"])
    output = capsys.readouterr()
    [row] = [line for line in output.out.splitlines() if " loss " in line]
    assert verdict in row
    assert "1.9 – 2.1" in row
    assert "unpromised" not in output.out
    assert exit_.value.code == status
    assert output.err == ("" if status == 0 else "error: a promised figure is missing or outside its range\n")


@pytest.mark.usefixtures("project")
def test_a_figure_that_is_not_a_number_is_outside() -> None:
    leave_results("run", loss=float("nan"))
    with pytest.raises(OSError, match="outside its range"):
        table(TableConfig(check=True))


def test_runs_without_a_promise_are_shown_and_fail_the_check(capsys: pytest.CaptureFixture[str]) -> None:
    plot = leave_results("[red]", "p.m --prompt '[/b]'", figure=1.23456, text="not a number").parent / "loss.png"
    write_atomic(plot, b"")
    table(TableConfig())
    output = capsys.readouterr().out
    assert "1.235" in output
    assert "p.m --prompt '[/b]'" in output
    assert "not a number" not in output
    assert f"\n  {plot}\n" in output
    with pytest.raises(OSError, match="missing"):
        table(TableConfig(check=True))


GOOD = {"project": "p", "command": "c", "seconds": 1, "metrics": {"loss": 1}}
BROKEN = [b"", b'{"project"', b"[]", b"3", b"{}", b"\xff\xfe", b'{"project": "p"}', b"[" * 100_000]
ODD = [("metrics", []), ("metrics", None), ("seconds", "x"), ("seconds", None), ("project", 5)]
BROKEN += [json.dumps({**GOOD, key: value}).encode() for key, value in ODD]


@pytest.mark.parametrize("broken", BROKEN)
def test_broken_results_are_named_and_left_out(broken: bytes, capsys: pytest.CaptureFixture[str]) -> None:
    write_atomic(Path("outputs/p/broken/results.json"), broken)
    leave_results("good", loss=2)
    assert [run["folder"].name for run in read_results(Path("outputs"))] == ["good"]
    assert "left out" in (error := capsys.readouterr().err)
    assert "broken/results.json" in error


@pytest.mark.usefixtures("project")
def test_odd_but_whole_results_are_shown(capsys: pytest.CaptureFixture[str]) -> None:
    leave_results("huge", loss=10**400)
    leave_results("markup", command="other", **{"[/red]": 1})
    Path("outputs/p/folder/results.json").mkdir(parents=True)
    table(TableConfig())
    output = capsys.readouterr()
    assert "[/red] 1" in output.out
    assert "folder/results.json" in output.err


def test_nothing_there_is_one_line_and_what_to_do() -> None:
    run = subprocess.run(
        [sys.executable, "-m", "shared.results"],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )
    assert run.returncode == 2
    assert run.stderr.splitlines() == [
        "error: There are no results under 'outputs' yet.",
        "hint: run a project first, or `make demo`",
    ]
    assert not run.stdout
