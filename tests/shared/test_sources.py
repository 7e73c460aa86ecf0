"""One string names a builtin, a path or a hub id, in that order, and a hub out of reach is one clear error."""

import logging
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from shared.errors import HubError, InputError
from shared.sources import Source, hub_errors, load_text, resolve

ROOT = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def _in_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def test_a_builtin_goes_first_and_a_path_before_the_hub(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "shared.sources")
    Path("org").mkdir()
    Path("org/name").write_text("")
    Path("builtin:text").write_text("")
    assert resolve("builtin:text", {"text"}) == Source("builtin", "text")
    assert resolve("org/name") == Source("path", "org/name")
    assert resolve("org/other") == Source("hub", "org/other")
    assert caplog.messages == ["builtin:text → embedded", "org/name → local path", "org/other → hub"]


@pytest.mark.parametrize(
    ("name", "hub_id", "revision"),
    [
        ("gpt2", "gpt2", None),
        ("org/name.v1_x-2", "org/name.v1_x-2", None),
        ("org/name@main", "org/name", "main"),
        ("org/name@refs/pr/3", "org/name", "refs/pr/3"),
    ],
)
def test_hub_ids_carry_a_revision(name: str, hub_id: str, revision: str | None) -> None:
    source = resolve(name)
    assert source == Source("hub", hub_id, revision)
    assert str(source) == name


def test_home_is_expanded(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    Path("text.txt").write_text("")
    assert resolve("~/text.txt") == Source("path", str(tmp_path / "text.txt"))


@pytest.mark.parametrize(
    "name",
    [
        "",
        "missing.txt",
        "a/b/c",
        "folder/missing.json",
        "~nobody_here/x",
        "/nowhere",
        "./file",
        "../file",
        "a b",
        "https://x.y/z",
        "@",
    ],
)
def test_what_is_neither_is_a_missing_file(name: str) -> None:
    with pytest.raises(FileNotFoundError, match="No such file or folder"):
        resolve(name)


@pytest.mark.parametrize(
    ("builtins", "hint"), [({"a", "b"}, "builtins: builtin:a, builtin:b"), ((), "builtins: none here")]
)
def test_an_unknown_builtin_lists_those_there_are(builtins: set[str], hint: str) -> None:
    with pytest.raises(InputError, match="There is no 'builtin:c'") as error:
        resolve("builtin:c", builtins)
    assert error.value.hint == hint


class LibraryError(Exception):
    """What a hub library makes up for itself."""


@pytest.mark.parametrize("kind", [OSError, ValueError, RuntimeError, LibraryError])
def test_whatever_a_hub_library_raises_becomes_one_error_with_three_ways_out(kind: type[Exception]) -> None:
    with pytest.raises(HubError) as error, hub_errors(Source("hub", "org/name", "v1"), "builtin:x"):
        raise kind("first line\n  second line")
    reason = f"{kind.__name__}: first line second line"
    assert error.value.args[0] == f"org/name@v1 is no file here, and could not be had from the hub: {reason}"
    for way_out in ("builtin:x", "local path", "HF_ENDPOINT"):
        assert way_out in error.value.hint


@pytest.mark.parametrize("text", ["", "plain\n", "中文，𝔸\n"])
def test_a_file_is_one_split(text: str) -> None:
    Path("text.txt").write_text(text, encoding="utf-8")
    assert load_text(Source("path", "text.txt"), BUILTIN) == {"train": text}


def test_a_byte_order_mark_is_no_letter() -> None:
    Path("text.txt").write_text("marked", encoding="utf-8-sig")
    assert load_text(Source("path", "text.txt"), BUILTIN) == {"train": "marked"}


def test_a_file_in_another_encoding_is_named() -> None:
    Path("text.txt").write_bytes("é".encode("latin-1"))
    with pytest.raises(InputError, match="text.txt is not UTF-8 text") as error:
        load_text(Source("path", "text.txt"), BUILTIN)
    assert "iconv" in error.value.hint


def test_a_folder_is_no_text() -> None:
    with pytest.raises(OSError, match="directory"):
        load_text(Source("path", "."), BUILTIN)


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> dict[str, dict[str, Any]]:
    """Data sets that stand in for those of the hub: split → columns."""
    import datasets

    splits: dict[str, dict[str, Any]] = {}

    def load_dataset(name: str, revision: str | None) -> datasets.DatasetDict:
        assert (name, revision) == ("org/name", "v1")
        return datasets.DatasetDict({split: datasets.Dataset.from_dict(rows) for split, rows in splits.items()})

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    return splits


BUILTIN = "builtin:python-docs"
SOURCE = Source("hub", "org/name", "v1")


def test_rows_of_every_split_are_joined(hub: dict[str, dict[str, Any]]) -> None:
    hub["train"] = {"text": ["one", "", "two"], "title": ["x", "y", "z"]}
    hub["test"] = {"text": ["three", None], "title": ["x", "y"]}
    assert load_text(SOURCE, BUILTIN) == {"train": "one\n\ntwo", "test": "three\n"}


def test_the_only_column_of_strings_is_the_text(hub: dict[str, dict[str, Any]]) -> None:
    hub["train"] = {"label": [1, 2], "content": ["one", "two"]}
    assert load_text(SOURCE, BUILTIN) == {"train": "one\ntwo"}


@pytest.mark.parametrize("columns", [{"a": ["x"], "b": ["y"]}, {"number": [1]}, {"text": [1]}])
def test_a_data_set_without_one_text_is_refused(hub: dict[str, dict[str, Any]], columns: dict[str, Any]) -> None:
    hub["train"] = columns
    with pytest.raises(InputError, match=f"column 'text' or one column of strings. It has {', '.join(columns)}"):
        load_text(SOURCE, BUILTIN)


@pytest.mark.slow
@pytest.mark.parametrize("environment", [{"HF_HUB_OFFLINE": "1"}, {"HF_ENDPOINT": "not-a-url"}])
def test_a_hub_out_of_reach_is_one_error_on_the_command_line(environment: dict[str, str], tmp_path: Path) -> None:
    inherited = {key: value for key, value in os.environ.items() if not key.startswith("HF_")}
    run = subprocess.run(
        [
            sys.executable,
            "-m",
            "transformer_from_scratch.train_simple_lm",
            "train",
            "--data",
            "karpathy/tiny_shakespeare",
        ],
        env={**inherited, "PYTHONPATH": str(ROOT), "HF_HOME": str(tmp_path / "hub"), **environment},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert run.returncode == 1
    assert "Traceback" not in run.stderr
    error, hint = run.stderr.splitlines()[-2:]
    assert error.startswith("error: karpathy/tiny_shakespeare is no file here, and could not be had from the hub: ")
    assert hint == "hint: use builtin:python-docs; or a local path; or set HF_ENDPOINT to a mirror that you can reach"
