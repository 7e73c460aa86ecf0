"""Every YAML file inside a package parses against the dataclass of the command that reads it."""

import importlib
from pathlib import Path

import pytest

from shared.config import parse
from shared.errors import InputError

ROOT = Path(__file__).parents[2]

# YAML file → module and dataclass that read it.
CONFIGS: dict[str, tuple[str, str]] = {
    "bert_sentiment_analysis/config.yaml": ("bert_sentiment_analysis.models.trainer", "TrainConfig"),
    **{path.relative_to(ROOT).as_posix(): ("gpt_text_generation.prompt_engineering", "Template")
       for path in sorted(ROOT.glob("gpt_text_generation/builtin/prompts/*.yaml"))},
}  # fmt: skip


def test_every_yaml_has_its_dataclass() -> None:
    packages = [path.parent for path in ROOT.glob("*/__init__.py")]
    there = {path.relative_to(ROOT).as_posix() for package in packages for path in package.rglob("*.y*ml")}
    assert there == set(CONFIGS)


@pytest.mark.parametrize(("path", "dataclass"), CONFIGS.items())
def test_yaml_parses(path: str, dataclass: tuple[str, str]) -> None:
    module, name = dataclass
    parse(getattr(importlib.import_module(module), name), [], module, package_yaml=ROOT / path)


def test_a_wrong_key_would_be_found(tmp_path: Path) -> None:
    from shared.results import TableConfig

    (tmp_path / "config.yaml").write_text("output: elsewhere\n")
    with pytest.raises(InputError, match="output"):
        parse(TableConfig, [], "test", package_yaml=tmp_path / "config.yaml")
