"""Every command in the head of a module parses: its flags are there, and their values are allowed together."""

import ast
import re
import runpy
import shlex
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
COMMAND = re.compile(r"^(?: *|.*\| )python -m ([\w.]+ [^\n|]*)", re.MULTILINE)


def commands_in(head: str) -> list[str]:
    """Return the commands with arguments of a docstring, from the module's name on, without comments and pipes."""
    found = (shlex.split(command, comments=True) for command in COMMAND.findall(head.replace("\\\n", " ")))
    return [shlex.join(words) for words in found if len(words) > 1]


HEADS = {
    command: path.relative_to(ROOT).as_posix()
    for package in sorted(ROOT.glob("*/__init__.py"))
    for path in sorted(package.parent.rglob("*.py"))
    for command in commands_in(ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or "")
}


def status_of(command: str, monkeypatch: pytest.MonkeyPatch) -> object:
    """Return with which status a command ends, 0 where all that is left to do is to run it."""
    module, *arguments = shlex.split(command)
    monkeypatch.setattr("shared.config.setup_logging", lambda _: sys.exit(0))  # which comes after parsing
    monkeypatch.setattr(sys, "argv", [module, *arguments])
    with pytest.raises(SystemExit) as end:
        runpy.run_module(module, run_name="__main__", alter_sys=True)
    return end.value.code


@pytest.mark.filterwarnings("ignore:.*found in sys.modules:RuntimeWarning")
@pytest.mark.parametrize("command", HEADS)
def test_a_command_in_the_head_of_a_module_parses(
    command: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert status_of(command, monkeypatch) == 0, f"{HEADS[command]}: {capsys.readouterr().err}"


@pytest.mark.filterwarnings("ignore:.*found in sys.modules:RuntimeWarning")
def test_a_wrong_command_would_be_found(monkeypatch: pytest.MonkeyPatch) -> None:
    head = "Not python -m a:\n    python -m a.b c --d 1 \\\n        2\n    python -m a.c  # b\necho | python -m a c\n"
    assert commands_in(head) == ["a.b c --d 1 2", "a c"]
    assert status_of("shared.results --nothing 1", monkeypatch) == 2
    assert len(HEADS) > 80
