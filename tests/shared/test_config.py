"""Every value comes from where it should, and wrong input is one `error:` line, with a `hint:` where there is one."""

import shlex
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Literal

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from shared.config import check_range, command_line, config_class_of, parse, run_commands, to_yaml
from shared.errors import HubError, InputError, MissingPackageError


@dataclass
class Config:
    """A recipe."""

    PRESETS: ClassVar[dict[str, dict[str, Any]]] = {"small": {}, "large": {"steps": 1000, "rate": 0.5}}

    preset: Literal["small", "large"] = "small"
    """Which one."""
    steps: int = 10
    """Steps of the optimizer."""
    rate: float = 0.1
    text: str = ""
    flag: bool = False
    seed: int = field(default=0, metadata={"recipe": False})

    def __post_init__(self) -> None:
        check_range("steps", self.steps, 1)


def get(*arguments: str, package_yaml: Path | None = None) -> Config:
    return parse(Config, arguments, "python -m p.m c", package_yaml=package_yaml)


@pytest.fixture(autouse=True)
def _in_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


# --- Where values come from -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("package", "preset", "file", "flag", "steps"),
    [
        (None, None, None, None, 10),
        (20, None, None, None, 20),
        (20, "large", None, None, 1000),
        (None, "large", 30, None, 30),
        (20, "large", 30, None, 30),
        (20, "large", 30, 40, 40),
        (20, None, 30, None, 30),
        (None, "large", None, 40, 40),
    ],
)
def test_the_default_yields_to_package_preset_file_and_flag_in_this_order(
    package: int | None, preset: str | None, file: int | None, flag: int | None, steps: int
) -> None:
    Path("package.yaml").write_text(f"steps: {package}\nseed: 5\n")
    Path("file.yaml").write_text(f"steps: {file}\n")
    arguments = ["--config", "file.yaml"] if file else []
    arguments += ["--preset", preset] if preset else []
    arguments += ["--steps", str(flag)] if flag else []
    config = get(*arguments, package_yaml=Path("package.yaml") if package else None)
    assert config.steps == steps
    assert config.rate == (0.5 if preset else 0.1)
    assert config.seed == (5 if package else 0)


@pytest.mark.parametrize("where", ["package", "file"])
def test_a_file_can_choose_the_preset(where: str) -> None:
    Path("file.yaml").write_text("preset: large\n")
    file = Path("file.yaml")
    config = get(package_yaml=file) if where == "package" else get("--config", "file.yaml")
    assert (config.preset, config.steps) == ("large", 1000)


def test_print_config_shows_what_would_run_and_reads_back(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as exit_:
        get("--preset", "large", "--rate", "0.25", "--print_config")
    assert exit_.value.code == 0
    Path("file.yaml").write_text(capsys.readouterr().out)
    assert get("--config", "file.yaml") == Config(preset="large", steps=1000, rate=0.25)


@given(
    # PyYAML itself reads U+0085 back as a newline.
    text=st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0\x85")),
    rate=st.floats(allow_nan=False, allow_infinity=False),
    flag=st.booleans(),
)
@example(text="null", rate=1e-5, flag=True)
@example(text=" 1e3 # no\n\u2028", rate=-0.0, flag=False)
@settings(max_examples=25, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_flags_and_yaml_carry_any_value(text: str, rate: float, flag: bool) -> None:
    config = get(f"--text={text}", f"--rate={rate!r}", f"--flag={str(flag).lower()}")
    assert config == Config(text=text, rate=rate, flag=flag)
    Path("file.yaml").write_text(to_yaml(config), encoding="utf-8", newline="")
    assert get("--config", "file.yaml") == config


@pytest.mark.parametrize(
    ("config", "command"),
    [
        (Config(), "python -m p.m c"),
        (Config(preset="large", steps=1000, rate=0.5), "python -m p.m c --preset large"),
        (Config(preset="large"), "python -m p.m c --preset large --steps 10 --rate 0.1"),
        (Config(flag=True, seed=7), "python -m p.m c --flag true"),
        (Config(text="two words; rm *"), "python -m p.m c --text 'two words; rm *'"),
    ],
)
def test_the_command_of_a_run_is_the_shortest_that_repeats_it(config: Config, command: str) -> None:
    assert command_line("p.m", "c", config) == command


def test_the_command_of_a_run_repeats_it() -> None:
    config = Config(text="it's \n 词 $HOME", preset="large", steps=3)
    words = shlex.split(command_line("p.m", "c", config))
    assert get(*words[4:]) == config


@dataclass
class Lists:
    """Several at once."""

    seeds: list[int] = field(default_factory=lambda: [0])
    models: list[str] = field(default_factory=list)
    questions: list[str] = field(default_factory=lambda: ["why?"], metadata={"whole": True})
    text: str = ""


def test_a_flag_that_comes_again_adds_to_the_list() -> None:
    config = parse(Lists, ["--models", "a,b", "--seeds=1", "--models=c", "--seeds", "2,3"], "python -m p.m c")
    assert (config.models, config.seeds) == (["a", "b", "c"], [1, 2, 3])


def test_commas_do_not_divide_a_question() -> None:
    config = parse(Lists, ["--questions", "red, or blue?", "--questions", '["a?", "b, c?"]'], "python -m p.m c")
    assert config.questions == ["red, or blue?", "a?", "b, c?"]


def test_a_list_flag_without_a_value_is_told() -> None:
    for arguments in (["--models"], ["--models", "--seeds", "1"]):
        with pytest.raises(InputError, match="models"):
            parse(Lists, arguments, "python -m p.m c")


def test_a_file_may_have_commas_and_brackets_in_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("sp ace, comma.txt", "[br].txt"):
        Path(name).touch()
        for arguments in (["--models", name], [f"--models={name}"]):
            assert parse(Lists, arguments, "python -m p.m c").models == [name]


@pytest.mark.parametrize(("arguments", "seeds", "models"), [
    (["--seeds", "3"], [3], []),
    (["--seeds=3"], [3], []),
    (["--seeds", "[3, 4]", "--models=builtin:x"], [3, 4], ["builtin:x"]),
    (["--models", "a/b,builtin:x", "--seeds", "0,1"], [0, 1], ["a/b", "builtin:x"]),
    (["--models", "a: b #c, [x].txt"], [0], ["a: b #c", "[x].txt"]),
])  # fmt: skip
def test_a_list_needs_no_brackets(arguments: list[str], seeds: list[int], models: list[str]) -> None:
    config = parse(Lists, arguments, "python -m p.m c")
    assert (config.seeds, config.models) == (seeds, models)


def test_a_command_names_its_dataclass() -> None:
    def command(config: Config) -> None: ...

    assert config_class_of(command) is Config


# --- What goes wrong --------------------------------------------------------------------------------------------------


def run(arguments: Sequence[str], body: Any = lambda config: None) -> int:
    def first(config: Config) -> None:
        body(config)

    def second(config: Config) -> None:
        raise AssertionError("not the command that was asked for")

    with pytest.raises(SystemExit) as exit_:
        run_commands({"first": first, "second": second}, module="p.m", argv=arguments)
    return exit_.value.code


def raising(error: BaseException) -> Any:
    def body(_: Config) -> None:
        raise error

    return body


@pytest.mark.parametrize("arguments", [[], ["first"], ["--steps", "3"], ["first", "--steps", "3"]])
def test_the_first_command_is_the_default(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    seen: list[Config] = []
    assert run(arguments, seen.append) == 0
    assert seen == [Config(steps=3 if "--steps" in arguments else 10)]
    assert capsys.readouterr() == ("", "")


FILES = {
    "list.yaml": b"[1, 2]",
    "broken.yaml": b"steps: [1",
    "unknown.yaml": b"stepz: 1",
    "type.yaml": b"steps: many",
    "range.yaml": b"steps: 0",
    "latin.yaml": "text: é".encode("latin-1"),
    "nested.yaml": b"steps: {a: 1}",
}


@pytest.mark.parametrize(
    ("arguments", "culprit"),
    [
        (["third"], "third"),
        (["--stepz", "1"], "--stepz"),
        (["--step", "1"], "--step"),  # abbreviations would change their meaning with the next field
        (["--steps", "many"], "steps"),
        (["--steps", "1.5"], "steps"),
        (["--steps"], "steps"),
        (["--steps", "-1"], "steps must be in [1, inf). Got -1."),
        (["--steps", "0"], "steps must be in [1, inf). Got 0."),
        (["--rate", "nan"], "rate"),
        (["--rate", "inf"], "rate"),
        (["--rate", ""], "rate"),
        (["--flag", "maybe"], "flag"),
        (["--preset", "huge"], "huge"),
        (["first", "second"], "second"),
        (["--config", "nowhere.yaml"], "nowhere.yaml"),
        (["--config", "."], "not a file"),
        (["--config", "list.yaml"], "[1, 2]"),
        (["--config", "broken.yaml"], "line 1"),
        (["--config", "unknown.yaml"], "stepz"),
        (["--config", "type.yaml"], "many"),
        (["--config", "range.yaml"], "steps must be in [1, inf). Got 0."),
        (["--config", "latin.yaml"], "not UTF-8"),
        (["--config", "nested.yaml"], "steps"),
    ],
)
def test_wrong_input_is_one_line_that_names_it(
    arguments: list[str], culprit: str, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, content in FILES.items():
        Path(name).write_bytes(content)
    assert run(arguments, raising(AssertionError("it ran"))) == 2
    output, error = capsys.readouterr()
    message, *hint = error.splitlines()
    assert message.startswith("error: ")
    assert culprit in message
    assert len(hint) <= 1
    assert all(line.startswith("hint: ") for line in hint)
    assert not output


@pytest.mark.parametrize(
    ("error", "status", "lines"),
    [
        (InputError("x is wrong", hint="do y"), 2, ["error: x is wrong", "hint: do y"]),
        (InputError("x is wrong"), 2, ["error: x is wrong"]),
        (HubError("no hub", hint="go on"), 1, ["error: no hub", "hint: go on"]),
        (
            MissingPackageError("wandb", "track"),
            2,
            ["error: This needs the package 'wandb'.", 'hint: pip install "llm-roadmap[track]"'],
        ),
        (FileNotFoundError(2, "No such file", "x.txt"), 1, ["error: No such file: 'x.txt'"]),
        (OSError("line\nbreak"), 1, ["error: line break"]),
        (OSError(), 1, ["error: OSError"]),
        (
            RuntimeError("DefaultCPUAllocator: can't allocate memory:\nyou tried to allocate 8 bytes"),
            1,
            [
                "error: out of memory: DefaultCPUAllocator: can't allocate memory: you tried to allocate 8 bytes",
                "hint: smaller sizes: of the batch, the context or the model",
            ],
        ),
        (
            MemoryError(),
            1,
            ["error: out of memory: MemoryError", "hint: smaller sizes: of the batch, the context or the model"],
        ),
        (KeyboardInterrupt("saved; go on with\nthis"), 130, ["stopped: saved; go on with", "this"]),
        (KeyboardInterrupt(), 130, ["stopped"]),
    ],
)
def test_failures_have_their_exit_status(
    error: BaseException, status: int, lines: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert run([], raising(error)) == status
    assert capsys.readouterr().err.splitlines() == lines


@pytest.mark.parametrize("bug", [ZeroDivisionError, RuntimeError])
def test_a_bug_keeps_its_traceback(bug: type[Exception]) -> None:
    with pytest.raises(bug):
        run([], raising(bug()))


def test_help_shows_fields_their_docs_and_the_other_commands(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["--help"]) == 0
    output = capsys.readouterr().out
    for text in ("python -m p.m first", "A recipe.", "--steps", "Steps of the optimizer.", "other commands: second"):
        assert text in output


def test_errors_print_as_message_and_hint() -> None:
    assert str(InputError("message", hint="hint")) == "message\nhint: hint"
    assert str(InputError("message")) == "message"
    assert isinstance(HubError("x"), OSError)
    assert isinstance(MissingPackageError("a", "b"), ImportError)


@pytest.mark.parametrize(
    ("value", "low", "high", "open_low", "interval"),
    [
        (0, 1, float("inf"), False, "[1, inf)"),
        (0, 0, 1, True, "(0, 1]"),
        (1.1, 0, 1, False, "[0, 1]"),
        (float("nan"), 0, 1, False, "[0, 1]"),
        (float("inf"), 1, float("inf"), False, "[1, inf)"),
    ],
)
def test_ranges_are_named(value: float, low: float, high: float, open_low: bool, interval: str) -> None:
    with pytest.raises(InputError) as error:
        check_range("x", value, low, high, open_low=open_low)
    assert str(error.value) == f"x must be in {interval}. Got {value}."
    check_range("x", 1, low, high, open_low=open_low)


def test_the_tracebacks_of_wrong_input_stay_away_from_a_real_terminal_too() -> None:
    program = "from tests_program import main; main()"
    Path("tests_program.py").write_text(
        "from dataclasses import dataclass\n"
        "from shared.config import run_commands\n"
        "@dataclass\n"
        "class Config:\n"
        "    steps: int = 1\n"
        "def command(config: Config) -> None: ...\n"
        "def main() -> None:\n"
        "    run_commands({'command': command}, module='tests_program')\n"
    )
    root = str(Path(__file__).parents[2])
    run = subprocess.run(
        [sys.executable, "-c", program, "--steps", "x"], env={"PYTHONPATH": f"{root}:."}, capture_output=True, text=True
    )
    assert run.returncode == 2
    assert [line.partition(":")[0] for line in run.stderr.splitlines()] == ["error", "hint"]
