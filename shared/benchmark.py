"""The frame of every ``benchmarks/<short>.py``: one row a promise, printed as a table, saved as JSON."""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import NoReturn

from shared.results import OUTPUTS, write_atomic
from shared.runtime import git_commit, hardware


@dataclass
class Row:
    """One promise and what came of it.

    Attributes:
        what: What is promised.
        peer: What it is held against.
        peer_value: The peer's figure, measured in the same run where the peer can run here.
        measured: Ours.
        target: What ours must reach.
        ok: Whether it does; None where it could not be measured.
    """

    what: str
    peer: str
    peer_value: str
    measured: str
    target: str
    ok: bool | None


class Skip(Exception):
    """A row can't be measured here; the message says why."""


def data_folder() -> Path:
    """Return the folder of test data: ``$ROADMAP_DATA``, or ``../shared/data`` beside the repository.

    Raises:
        Skip: It is not there.
    """
    folder = Path(os.environ.get("ROADMAP_DATA") or Path(__file__).parents[2] / "shared" / "data")
    if not folder.is_dir():
        raise Skip("no test data: set ROADMAP_DATA to its folder")
    return folder.resolve()


def interleaved_medians(*functions: Callable[[], object], repeats: int) -> list[float]:
    """Time functions in turn, so that a machine that slows down slows all of them, and return their median seconds."""
    times: list[list[float]] = [[] for _ in functions]
    for _ in range(repeats):
        for function, its_times in zip(functions, times, strict=True):
            started = time.perf_counter()
            function()
            its_times.append(time.perf_counter() - started)
    return [statistics.median(its_times) for its_times in times]


def run_benchmarks(short: str, rows: Mapping[str, Callable[[bool], Row]]) -> NoReturn:
    """Measure the rows that the command line asks for, print and save them, and exit with 1 if one falls short.

    Args:
        short: The project's short name; the file is ``outputs/benchmarks/<short>.json``.
        rows: Name → function of ``quick`` that returns the row.
    """
    from rich.console import Console
    from rich.table import Table

    parser = argparse.ArgumentParser(prog=f"make bench-{short}")
    parser.add_argument("--only", choices=list(rows), action="append", help="measure this row; may be given again")
    parser.add_argument(
        "--quick", action="store_true", help="a small version that checks the machinery, not the promise"
    )
    arguments = parser.parse_args()
    measured = []
    for name in arguments.only or rows:
        sys.stderr.write(f"{name} …\n")
        try:
            row = rows[name](arguments.quick)
        except Skip as reason:
            row = Row(name, "", "", f"skipped: {reason}", "", None)
        measured.append(row)
    table = Table(title=f"{short}{' (quick: figures mean nothing)' if arguments.quick else ''}", title_justify="left")
    for heading in ("what", "peer", "peer's", "measured", "target", "ok"):
        table.add_column(heading, overflow="fold")
    for row in measured:
        verdict = {True: "[green]yes[/green]", False: "[red]no[/red]", None: "–"}[row.ok]
        table.add_row(row.what, row.peer, row.peer_value, row.measured, row.target, verdict)
    Console().print(table)
    content = {"rows": [asdict(row) for row in measured], "hardware": hardware(), "git_commit": git_commit()}
    path = OUTPUTS / "benchmarks" / f"{short}{'-quick' if arguments.quick else ''}.json"
    write_atomic(path, json.dumps(content, indent=2, ensure_ascii=False) + "\n")
    sys.stderr.write(f"saved {path}\n")
    sys.exit(int(any(row.ok is False for row in measured)))
