"""One string names a model or a data set: ``builtin:<name>``, else a path, else a hub id ``org/name[@revision]``."""

from __future__ import annotations

import logging
import os
import re
import textwrap
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from shared.errors import HubError, InputError

logger = logging.getLogger(__name__)

FILE_KINDS = (".txt", ".json", ".jsonl", ".csv", ".tsv", ".gz", ".safetensors")
HUB_ID = re.compile(r"(?P<name>\w[\w.-]*(/\w[\w.-]*)?)(@(?P<revision>[\w./-]+))?")


@dataclass(frozen=True)
class Source:
    """A resolved model or data set.

    Attributes:
        origin: Where it comes from.
        name: The builtin's name, the path, or the hub id without its revision.
        revision: Branch, tag or commit of a hub id; None is its default branch.
    """

    origin: Literal["builtin", "path", "hub"]
    name: str
    revision: str | None = None

    def __str__(self) -> str:
        if self.origin == "builtin":
            return f"builtin:{self.name}"
        return f"{self.name}@{self.revision}" if self.revision else self.name


def resolve(name: str, builtins: Collection[str] = ()) -> Source:
    """Find out what a string names, and log it.

    Args:
        name: ``builtin:<name>``, a path or a hub id, tried in that order.
        builtins: The names that ``builtin:`` has here.

    Returns:
        The source. Nothing is loaded or downloaded yet.

    Raises:
        InputError: There is no such builtin, or the string is none of the three.
        FileNotFoundError: It is a path, and nothing is there.
    """
    if name.startswith("builtin:"):
        builtin = name.removeprefix("builtin:")
        if builtin not in builtins:
            choices = ", ".join(f"builtin:{b}" for b in sorted(builtins)) or "none here"
            raise InputError(f"There is no {name!r}.", hint=f"builtins: {choices}")
        source = Source("builtin", builtin)
    elif name and Path(path := os.path.expanduser(name)).exists():
        source = Source("path", str(Path(path)))
    elif (match := HUB_ID.fullmatch(name)) and Path(name).suffix not in FILE_KINDS:
        source = Source("hub", match["name"], match["revision"])
    else:
        raise FileNotFoundError(f"No such file or folder: {name!r}.")
    logger.info("%s → %s", name, {"builtin": "embedded", "path": "local path", "hub": "hub"}[source.origin])
    return source


@contextmanager
def hub_errors(source: Source, builtin: str) -> Iterator[None]:
    """Turn whatever a hub library raises into one error with three ways out.

    Args:
        source: What is being fetched.
        builtin: An embedded alternative to suggest.

    Raises:
        HubError: Anything went wrong inside.
    """
    try:
        yield
    except Exception as error:  # some of these libraries' own errors have no other base
        reason = textwrap.shorten(str(error), 200, placeholder=" …")
        hint = f"use {builtin}; or a local path; or set HF_ENDPOINT to a mirror that you can reach"
        if "scripts are no longer supported" in reason:
            hint = f"{source.name}@refs/convert/parquet is the hub's own copy of a data set kept as a script"
        message = f"{source} is no file here, and could not be had from the hub: {type(error).__name__}: {reason}"
        raise HubError(message, hint) from error


@contextmanager
def loading_errors(source: Source, builtin: str) -> Iterator[None]:
    """Turn whatever transformers and safetensors raise while a model is loaded into one error.

    Args:
        source: The model.
        builtin: The embedded one to suggest.

    Raises:
        InputError: It holds no such model.
        HubError: The hub can't be reached.
        MemoryError: It does not fit.
    """
    if source.origin == "hub":
        with hub_errors(source, builtin):
            yield
        return
    try:
        yield
    except Exception as error:
        reason = f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
        if _ran_out_of_memory(error):
            raise MemoryError(reason) from None
        if source.origin == "builtin":
            raise InputError(f"{source} can't be loaded: {reason}") from None
        raise InputError(f"{source} holds no model for this: {reason}",
                         hint=f"a folder made by save_pretrained, or {builtin}") from None  # fmt: skip


def _ran_out_of_memory(error: BaseException | None) -> bool:
    """Tell whether memory ran out, which libraries say by classes of their own, or as the cause of another error."""
    while error is not None:
        if isinstance(error, MemoryError) or re.search("allocat|out of memory|map segment", str(error), re.IGNORECASE):
            return True
        error = error.__cause__ or error.__context__
    return False


def load_text(source: Source, builtin: str) -> dict[str, str]:
    """Read plain text from a file or a data set of the hub.

    Args:
        source: Of origin ``path`` (one UTF-8 file) or ``hub`` (a data set with a column of strings).
        builtin: An embedded alternative to suggest when the hub can't be reached.

    Returns:
        Split → text; a file is one split, ``train``. Rows of a data set are joined by newlines.

    Raises:
        InputError: The file is not UTF-8, or the data set has no single column of strings.
        OSError: The file can't be read, or the hub can't be reached.
    """
    if source.origin == "path":
        try:
            return {"train": Path(source.name).read_text(encoding="utf-8-sig")}  # a BOM is no letter
        except UnicodeDecodeError as error:
            raise InputError(f"{source.name} is not UTF-8 text: {error}.", hint="convert it, e.g. with iconv") from None
    from datasets import load_dataset

    with hub_errors(source, builtin):
        splits = load_dataset(source.name, revision=source.revision)
    return {split: "\n".join(row or "" for row in rows[_text_column(rows.features)]) for split, rows in splits.items()}


def _text_column(features: dict[str, Any]) -> str:
    strings = [
        name for name, feature in features.items() if getattr(feature, "dtype", "") in ("string", "large_string")
    ]
    if "text" in strings:
        return "text"
    if len(strings) != 1:
        raise InputError(f"The data set needs a column 'text' or one column of strings. It has {', '.join(features)}.")
    return strings[0]
