"""Logging and progress, both on stderr, so that stdout carries data alone."""

from __future__ import annotations

import functools
import logging
import os

from rich.console import Console
from rich.logging import RichHandler
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn


@functools.cache
def console() -> Console:
    """Return the console on stderr that log lines and progress bars share, so neither tears the other."""
    return Console(stderr=True)


def setup_logging(package: str) -> None:
    """Show the log lines of one project, and warnings of everything else, on stderr.

    Called by the command line only, never on import. In a run of several processes the first one speaks for all.

    Args:
        package: The project's top package.
    """
    if console().is_terminal:
        rich_handler = RichHandler(console=console(), show_path=False, show_level=False, log_time_format="%H:%M:%S")
        logging.basicConfig(level=logging.WARNING, format="%(message)s", handlers=[rich_handler], force=True)
    else:  # in a file a line stays a line, however long
        logging.basicConfig(level=logging.WARNING, format="%(asctime)s %(message)s", datefmt="%H:%M:%S", force=True)
    hush_libraries()
    first_process = os.environ.get("RANK", "0") == "0"
    for name in ("shared", package, "__main__"):
        logging.getLogger(name).setLevel(logging.INFO if first_process else logging.ERROR)


def hush_libraries() -> None:
    """Let only errors of some libraries through, for commands and web pages alike."""
    # They tell of every retry, of kernels for other processors, of what torchao does to PyTorch, and at every look at a
    # file of milvus-lite that it has no clock of its own
    clocks = "pymilvus.client.iterator.query_iterator"
    for name in ("huggingface_hub", "torchao", "torch.utils._pytree", clocks):
        logging.getLogger(name).setLevel(logging.ERROR)


def progress_bar(*, disable: bool = False) -> Progress:
    """Return a progress bar with count, elapsed and remaining time, and room for the figures that matter.

    Use it as a context manager; every task needs ``figures=""``, later ``bar.update(task, figures="loss 1.5")``.
    """
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[figures]}"),
        TimeElapsedColumn(),
        TextColumn("ETA"),
        TimeRemainingColumn(),
        console=console(),
        disable=disable,
    )
