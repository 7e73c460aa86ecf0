"""What a run leaves behind, and the table of all runs beside the ranges that the READMEs promise.

    python -m shared.results

Every run has a folder ``outputs/<project>/<run>/`` with ``config.yaml``, ``metrics.jsonl``, ``results.json``, plots and
checkpoints. A README promises a figure in a table with the columns ``command``, ``figure`` and ``range``.
"""

from __future__ import annotations

import json
import math
import os
import re
import shlex
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, fields
from datetime import timedelta
from pathlib import Path
from typing import Any

import yaml

from shared.config import command_line, run_commands, to_yaml
from shared.errors import InputError
from shared.runtime import git_commit, hardware, pick_device

OUTPUTS = Path("outputs")


def write_atomic(path: Path, content: str | bytes) -> None:
    """Write a file beside its place and rename it there: a kill at any moment leaves the old file or the new, whole.

    Raises:
        OSError: The disk is full or the folder can't be written; the old file is untouched.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    # A file name that is not UTF-8 comes in as lone surrogates, and stands in what is written as \\udc…
    data = content.encode("utf-8", "backslashreplace") if isinstance(content, str) else content
    descriptor, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(name, 0o644)  # mkstemp makes private files
        os.replace(name, path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise


class Run:
    """The folder of one run, and its results.

    Args:
        project: The project's package name.
        module: The module as ``python -m`` takes it.
        command: The command of that module.
        config: Its resolved configuration; saved as ``config.yaml``.
        name: The folder's name; by default the time and the command.
        resume: Go on in an existing folder instead of refusing it.

    Raises:
        InputError: A run of this name left something already and ``resume`` is off.
    """

    def __init__(
        self, project: str, module: str, command: str, config: Any, *, name: str = "", resume: bool = False
    ) -> None:
        if Path(name).name != name or name == ".." or not (name or "a").isprintable():
            raise InputError(f"run must be a plain folder name. Got {name!r}.")
        self.folder = OUTPUTS / project / (name or _unused_name(OUTPUTS / project, command))
        # A run that failed before it did anything leaves its configuration alone.
        if not resume and self.folder.exists() and any(path.name != "config.yaml" for path in self.folder.iterdir()):
            raise InputError(
                f"The run {self.folder} exists already.",
                hint="another --run; or, to go on with a run that was stopped, the same command with --resume true",
            )
        self.folder.mkdir(parents=True, exist_ok=True)
        write_atomic(self.folder / "config.yaml", to_yaml(config))
        self._head = {"project": project, "command": command_line(module, command, config)}
        self._started = time.monotonic()

    def finish(
        self, *, model: str, data: str, seed: int, metrics: dict[str, Any], seconds: float | None = None
    ) -> None:
        """Write ``results.json``.

        Args:
            model: What was resolved as the model.
            data: What was resolved as the data.
            seed: The seed.
            metrics: Figure → value.
            seconds: Wall-clock; since this object was made by default.
        """
        results = {
            **self._head,
            "model": model,
            "data": data,
            "seed": seed,
            "seconds": round(time.monotonic() - self._started if seconds is None else seconds, 1),
            "hardware": hardware(),
            "git_commit": git_commit(),
            "metrics": metrics,
        }
        write_atomic(self.folder / "results.json", json.dumps(results, indent=2, ensure_ascii=False) + "\n")


def open_run(project: str, module: str, command: str, config: Any, *, also: Sequence[str]) -> tuple[Path, Run | None]:
    """Open or go on with the run of a command that ``accelerate launch -m`` may start in several processes.

    Args:
        project: The project's package name.
        module: The module as ``python -m`` takes it.
        command: The command of that module.
        config: Its resolved configuration, with run, resume and device.
        also: See :func:`check_resumable`.

    Returns:
        The run's folder; and the run in the first process, which alone measures and writes, None in the others.

    Raises:
        InputError: See :class:`Run` and :func:`check_resumable`.
    """
    from accelerate import PartialState
    from accelerate.utils import broadcast_object_list

    # The others wait while the first measures, longer than the ten minutes that are usual
    state = PartialState(cpu=pick_device(config.device).type == "cpu", timeout=timedelta(days=1))
    if config.resume:
        check_resumable(OUTPUTS / project / config.run, config, also=also)
    run = (
        Run(project, module, command, config, name=config.run, resume=config.resume) if state.is_main_process else None
    )
    [folder] = broadcast_object_list([run.folder if run else None])
    return folder, run


def resume_flags(folder: Path) -> str:
    """Return the flags that go on with a run."""
    return f"--config {shlex.quote(str(folder / 'config.yaml'))} --run {shlex.quote(folder.name)} --resume true"


def check_resumable(folder: Path, config: Any, also: Sequence[str] = ()) -> None:
    """Make sure that going on with a run would be the same run.

    Args:
        folder: Of the run.
        config: The configuration it would go on with.
        also: Fields that must be as they were though they are not of the recipe, such as the seed.

    Raises:
        InputError: There is no such run, its configuration can't be read, it was begun with another recipe, or it is
            finished.
    """
    place = folder / "config.yaml"
    if not place.exists():
        raise InputError(f"There is no run {folder} to go on with.", hint="the same without --resume")
    try:
        before = dict(yaml.safe_load(place.read_text(encoding="utf-8")))
    except (yaml.YAMLError, TypeError, ValueError, RecursionError):
        raise InputError(f"{place} is damaged, so nobody can tell what to go on with.", hint="another --run") from None
    recipe = [field.name for field in fields(config) if field.metadata.get("recipe", True)]
    changed = [name for name in (*recipe, *also) if before.get(name) != getattr(config, name)]
    if changed:
        raise InputError(
            f"{folder} was begun with another {', '.join(changed)}, so going on would not be the same run.",
            hint=f"{resume_flags(folder)}; or another --run",
        )
    if (folder / "results.json").exists():
        raise InputError(f"{folder} is finished: it has results.json.", hint="another --run")


def _unused_name(folder: Path, command: str) -> str:
    name = f"{time.strftime('%Y%m%d-%H%M%S')}-{command}"
    return next(n for n in (name, *(f"{name}-{i}" for i in range(2, 1000))) if not (folder / n).exists())


@dataclass(frozen=True)
class Promise:
    """A figure that a README promises for a command, as a closed interval."""

    command: str
    figure: str
    low: float
    high: float

    def __str__(self) -> str:
        if math.isinf(self.low):
            return f"≤ {self.high:g}"
        return f"≥ {self.low:g}" if math.isinf(self.high) else f"{self.low:g} – {self.high:g}"


def read_promises(readme: str) -> list[Promise]:
    """Find the promises in a README: rows of tables with the columns ``command``, ``figure`` and ``range``.

    A range is written ``1.9 – 2.1``, ``≤ 1.65`` or ``≥ 0.9``.
    """
    promises = []
    header: list[str] = []
    for line in readme.splitlines():
        cells = [cell.strip().strip("`") for cell in line.strip().strip("|").split("|")]
        if not line.startswith("|"):
            header = []
        elif not header:
            header = cells
        elif {"command", "figure", "range"} <= set(header) and len(cells) == len(header):
            row = dict(zip(header, cells, strict=True))
            numbers = [
                float(n) for n in re.findall(r"(?<!\d)-?\d+(?:\.\d+)?(?:e-?\d+)?", row["range"].replace(",", ""))
            ]
            if numbers:
                low = float("-inf") if "≤" in row["range"] else numbers[0]
                high = float("inf") if "≥" in row["range"] else numbers[-1]
                promises.append(Promise(row["command"], row["figure"], low, high))
    return promises


def read_results(outputs: Path) -> list[dict[str, Any]]:
    """Read the results of every run and its ``folder``, oldest first. Broken ones are reported and left out."""
    runs = []
    for path in sorted(outputs.glob("*/*/results.json"), key=lambda p: p.stat().st_mtime):
        try:
            run = json.loads(path.read_text(encoding="utf-8"))
            runs.append(
                {
                    "project": Path(run["project"]).name,
                    "command": str(run["command"]),
                    "seconds": float(run["seconds"]),
                    "metrics": {name: float(v) if isinstance(v, float) else v for name, v in run["metrics"].items()},
                    "folder": path.parent,
                }
            )
        except (ValueError, TypeError, KeyError, AttributeError, OSError, RecursionError):
            sys.stderr.write(f"left out, not the results of a run: {path}\n")
    return runs


def _promises_of(project: str) -> list[Promise]:
    readme = Path(__file__).parents[1] / project / "README.md"
    return read_promises(readme.read_text(encoding="utf-8")) if readme.exists() else []


def _short(value: float) -> str:
    return f"{value:,}" if isinstance(value, int) else f"{value:,.0f}" if abs(value) >= 1e4 else f"{value:.4g}"


@dataclass
class TableConfig:
    """Show every run's figures beside the range that its project's README promises for that command."""

    outputs: str = "outputs"
    """The folder that holds the runs."""
    check: bool = False
    """Exit with 1 when a promised figure lies outside its range, or there is none."""


def table(config: TableConfig) -> None:
    """Print the table of all runs, and the plots they left."""
    from rich import box
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    runs = read_results(Path(config.outputs))
    if not runs:
        raise InputError(
            f"There are no results under {config.outputs!r} yet.", hint="run a project first, or `make demo`"
        )
    grid = Table(title="Results", title_justify="left", box=box.SIMPLE)
    for heading in ("figure", "value", "promised", "inside"):
        grid.add_column(heading, justify="right" if heading == "value" else "left", overflow="fold")
    others, verdicts = [], []
    for run in runs:
        figures = {name: value for name, value in run["metrics"].items() if isinstance(value, (int, float))}
        promises = [p for p in _promises_of(run["project"]) if p.command == run["command"] and p.figure in figures]
        command = run["command"].removeprefix("python -m ")
        if not promises:
            shown = ", ".join(f"{name} {_short(value)}" for name, value in list(figures.items())[:4])
            others.append(f"  {command}\n    {run['folder']}: {shown}")
            continue
        grid.add_row(f"[bold]{escape(command)}[/bold]")
        grid.add_row(f"[dim]{escape(str(run['folder']))}, {run['seconds'] / 60:.1f} minutes[/dim]")
        for promise in promises:
            value = figures[promise.figure]
            verdicts.append(promise.low <= value <= promise.high)
            verdict = "[green]yes[/green]" if verdicts[-1] else "[red]no[/red]"
            grid.add_row(f"  {escape(promise.figure)}", _short(value), str(promise), verdict)
    if verdicts:
        Console().print(grid)
    if others:
        sys.stdout.write("\n".join(["Other runs, whose figures no README promises:", *others, ""]))
    plots = [str(plot) for run in runs for plot in sorted(run["folder"].glob("*.png"))]
    if plots:
        sys.stdout.write("\n  ".join(["Plots to look at:", *plots]) + "\n")
    if config.check and not (verdicts and all(verdicts)):
        raise OSError("a promised figure is missing or outside its range")


if __name__ == "__main__":
    run_commands({"table": table}, module="shared.results")
