"""Commands and their configuration, through jsonargparse.

A command is a function of one dataclass. Its value is found in this order, later ones winning:
dataclass default < the package's YAML < the preset < ``--config FILE`` < flags.

    python -m transformer_from_scratch.train_simple_lm train --preset best --print_config
"""

from __future__ import annotations

import dataclasses
import io
import json
import math
import os
import re
import shlex
import sys
import typing
from argparse import ArgumentError
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn

import jsonargparse
import yaml

from shared.errors import InputError, MissingPackageError
from shared.logs import setup_logging

Command = Callable[[Any], Any]


def run_commands(
    commands: Mapping[str, Command],
    *,
    module: str,
    argv: Sequence[str] | None = None,
    package_yaml: Path | None = None,
    extra: str = "",
) -> NoReturn:
    """Run one of a module's commands from the command line, then exit.

    The exit status is 0 when all went well, 2 for wrong input, 1 for a failure of files or network, 130 after Ctrl-C.

    Args:
        commands: Name → function of one dataclass instance. The first is run when no command is named.
        module: The module as ``python -m`` takes it, for the help texts.
        argv: The arguments; those of the process by default.
        package_yaml: The package's own configuration, below ``--config`` and flags.
        extra: The extra of ``llm-roadmap`` that brings the module's libraries, to name where one is missing.
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # a terminal without Chinese letters is no reason to fail
    arguments = list(sys.argv[1:] if argv is None else argv)
    command = arguments.pop(0) if arguments and not arguments[0].startswith("-") else next(iter(commands))
    try:
        if command not in commands:
            raise InputError(f"Unknown command {command!r}.", hint=f"one of {', '.join(commands)}")
        others = [name for name in commands if name != command]
        epilog = f"other commands: {', '.join(others)} (each with its own --help)" if others else ""
        config_class = config_class_of(commands[command])
        config = parse(config_class, arguments, f"python -m {module} {command}", epilog, package_yaml)
        setup_logging(module.partition(".")[0])
        commands[command](config)
    except KeyboardInterrupt as interrupt:
        text = str(interrupt)
        sys.stderr.write(f"stopped: {text}\n" if text else "stopped\n")
        sys.exit(130)
    except BrokenPipeError:  # the reader, such as `head`, has had enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except OSError as error:  # before InputError: a HubError is both, and is a failure of the network
        text = error.args[0] if isinstance(error, InputError) else _one_line(error)
        _fail(text, getattr(error, "hint", ""), 1)
    except ModuleNotFoundError as error:
        if not extra or not error.name:
            raise
        missing = MissingPackageError(error.name.partition(".")[0], extra)
        _fail(missing.args[0], missing.hint, 2)
    except InputError as error:
        _fail(error.args[0], error.hint, 2)
    except (MemoryError, RuntimeError) as error:  # PyTorch has no class of its own for memory of the processor
        if isinstance(error, RuntimeError) and not re.search("allocate|size calculation overflow", str(error)):
            raise
        _fail(f"out of memory: {_one_line(error)[:200]}", "smaller sizes: of the batch, the context or the model", 1)
    sys.exit(0)


def parse(
    config_class: type, arguments: Sequence[str], prog: str, epilog: str = "", package_yaml: Path | None = None
) -> Any:
    """Build a configuration from defaults, preset, YAML and flags.

    A class attribute ``PRESETS`` (name → changed defaults) turns the field ``preset`` into a switch between recipes.

    Returns:
        An instance of ``config_class``.

    Raises:
        InputError: A key, type or range is wrong.
    """
    jsonargparse.set_parsing_settings(docstring_parse_attribute_docstrings=True)
    parser = jsonargparse.ArgumentParser(
        prog=prog,
        description=(config_class.__doc__ or "").strip(),
        epilog=epilog,
        exit_on_error=False,
        allow_abbrev=False,
        default_config_files=[str(package_yaml)] if package_yaml else [],
    )
    arguments = _single_items(config_class, arguments)
    parser.add_argument("--config", action="config", help="a YAML file with any of the keys below")
    parser.add_class_arguments(config_class, as_group=False)
    names = [field.name for field in dataclasses.fields(config_class) if field.init]
    try:
        presets = getattr(config_class, "PRESETS", {})
        if presets:
            silent = [a for a in arguments if a not in ("-h", "--help") and not a.startswith("--print_config")]
            name = parser.parse_args(silent).preset
            if name not in presets:
                raise InputError(f"preset must be one of {', '.join(presets)}. Got {name!r}.")
            preset = presets[name]
            defaults = parser.get_defaults()  # with the package's YAML, which would win over a preset if it stayed
            parser.default_config_files = []
            parser.set_defaults({name: defaults[name] for name in names} | preset)
        namespace = parser.parse_args(list(arguments))
    except UnicodeDecodeError as error:
        raise InputError(f"The file of --config is not UTF-8 text: {error}.") from None
    except (ArgumentError, RecursionError, OverflowError) as error:
        raise InputError(_one_line(error)[:500], hint=f"{prog} --help") from None
    values = {name: namespace[name] for name in names}
    try:
        return config_class(**values)
    except InputError:
        raise
    except ValueError as error:
        raise InputError(str(error), hint=f"{prog} --help") from None


def _single_items(config_class: type, arguments: Sequence[str]) -> list[str]:
    """Write a list flag's values as YAML wants them: ``--seeds 3``, ``--seeds 0,1``, ``--input "a, b.txt"``.

    A flag that comes again adds to the list. Commas don't divide a field whose metadata says ``{"whole": True}``.
    """
    hints = typing.get_type_hints(config_class)
    lists = {f"--{name}": hint for name, hint in hints.items() if typing.get_origin(hint) is list}
    whole = {f"--{field.name}" for field in dataclasses.fields(config_class) if field.metadata.get("whole")}
    mended: list[str] = []
    seen: set[str] = set()
    rest = iter(arguments)
    for argument in rest:
        name, equals, value = argument.partition("=")
        if name not in lists:
            mended.append(argument)
            continue
        if not equals:
            following = next(rest, None)
            if following is None or following.startswith("--"):  # a value is missing, which is the parser's to say
                mended += filter(None, (name, following))
                continue
            value = following
        mended.append(f"{name}{'+' if name in seen else ''}={_as_list(value, lists[name], name in whole)}")
        seen.add(name)
    return mended


def _as_list(value: str, hint: Any, whole: bool) -> str:
    if hint == list[str] and os.path.exists(value):
        return json.dumps([value])  # a file's name may hold commas and brackets
    if value.startswith("["):
        return value
    if hint != list[str]:
        return f"[{value}]"
    return json.dumps([value] if whole else list(filter(None, map(str.strip, value.split(",")))))


def config_class_of(command: Command) -> type:
    """Return the dataclass that a command takes, from its annotation."""
    hints = typing.get_type_hints(command)
    config_class: type = next(hint for name, hint in hints.items() if name != "return")
    return config_class


def to_yaml(config: Any) -> str:
    """Write a configuration as YAML that ``--config`` reads back."""
    text: str = yaml.safe_dump(dataclasses.asdict(config), sort_keys=False, allow_unicode=True)
    return text


def command_line(module: str, command: str, config: Any) -> str:
    """Return the shortest command that repeats a run: only what differs from the defaults of its preset.

    Fields whose metadata says ``{"recipe": False}`` (seed, device, names of runs …) don't change what is promised
    and are left out.
    """
    preset = getattr(type(config), "PRESETS", {}).get(getattr(config, "preset", None), {})
    words = [f"python -m {module} {command}"]
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        made = field.default_factory() if field.default_factory is not dataclasses.MISSING else field.default
        default = made if field.name == "preset" else preset.get(field.name, made)
        if field.metadata.get("recipe", True) and value != default:
            text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
            words.append(f"--{field.name} {shlex.quote(text)}")
    return " ".join(words)


def check_range(name: str, value: float, low: float, high: float = float("inf"), *, open_low: bool = False) -> None:
    """Raise an :class:`InputError` unless ``low <= value <= high`` (``low < value`` with ``open_low``)."""
    if not (low < value if open_low else low <= value) or value > high or not math.isfinite(value):
        interval = f"{'(' if open_low else '['}{low:g}, {high:g}{')' if high == float('inf') else ']'}"
        raise InputError(f"{name} must be in {interval}. Got {value}.")


def _one_line(error: Exception) -> str:
    text = re.sub(r"^\[Errno -?\d+\] ", "", str(error))  # the number helps nobody
    return " ".join(text.split()) or type(error).__name__


def _fail(message: str, hint: str, status: int) -> NoReturn:
    sys.stderr.write(f"error: {message}\n" + (f"hint: {hint}\n" if hint else ""))
    sys.exit(status)
