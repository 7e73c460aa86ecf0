"""The frame of the benchmarks: what is saved, what is skipped, and which exit status tells that a promise broke."""

import json
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from shared import benchmark
from shared.benchmark import Row, Skip, data_folder, interleaved_medians, run_benchmarks


@pytest.fixture(autouse=True)
def _in_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def row(ok: bool | None) -> Callable[[bool], Row]:
    return lambda quick: Row("what", "peer", "1 s", "quick" if quick else "whole", "≤ 1", ok)


def skipped(quick: bool) -> Row:
    raise Skip("no data")


def measure(monkeypatch: pytest.MonkeyPatch, rows: dict[str, Callable[[bool], Row]], *arguments: str) -> int:
    monkeypatch.setattr(sys, "argv", ["benchmark", *arguments])
    with pytest.raises(SystemExit) as exit_:
        run_benchmarks("short", rows)
    return exit_.value.code


@pytest.mark.parametrize(("ok", "status"), [(True, 0), (None, 0), (False, 1)])
def test_a_row_that_falls_short_fails_the_benchmark(
    ok: bool | None, status: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert measure(monkeypatch, {"good": row(True), "other": row(ok), "absent": skipped}) == status
    saved = json.loads(Path("outputs/benchmarks/short.json").read_text(encoding="utf-8"))
    assert saved.keys() == {"rows", "hardware", "git_commit"}
    assert [entry["ok"] for entry in saved["rows"]] == [True, ok, None]
    assert saved["rows"][0] == {
        "what": "what",
        "peer": "peer",
        "peer_value": "1 s",
        "measured": "whole",
        "target": "≤ 1",
        "ok": True,
    }
    assert saved["rows"][2]["measured"] == "skipped: no data"


def test_one_row_alone_and_a_quick_version_in_a_file_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = {"good": row(True), "bad": row(False)}
    assert measure(monkeypatch, rows, "--only", "good", "--quick") == 0
    saved = json.loads(Path("outputs/benchmarks/short-quick.json").read_text(encoding="utf-8"))
    assert [entry["measured"] for entry in saved["rows"]] == ["quick"]
    assert measure(monkeypatch, rows, "--only", "none") == 2


def test_functions_are_timed_in_turn(monkeypatch: pytest.MonkeyPatch) -> None:
    now, order = 0.0, []
    seconds = {"slow": iter([3, 5, 100]), "fast": iter([1, 1, 2])}

    def take(name: str) -> None:
        nonlocal now
        now += next(seconds[name])
        order.append(name)

    monkeypatch.setattr(benchmark.time, "perf_counter", lambda: now)
    assert interleaved_medians(lambda: take("slow"), lambda: take("fast"), repeats=3) == [5, 1]
    assert order == ["slow", "fast"] * 3


def test_the_data_is_where_the_variable_says_or_the_row_is_skipped(monkeypatch: pytest.MonkeyPatch) -> None:
    Path("data").mkdir()
    monkeypatch.setenv("ROADMAP_DATA", "data")
    assert data_folder() == Path.cwd() / "data"
    monkeypatch.setenv("ROADMAP_DATA", "nowhere")
    with pytest.raises(Skip, match="ROADMAP_DATA"):
        data_folder()
