"""Prompts as data, tried out like an experiment: templates × models × cases × repeats, scored and compared in pairs.

    python -m gpt_text_generation.prompt_engineering list
    python -m gpt_text_generation.prompt_engineering show --template sentiment-few-shot-en
    python -m gpt_text_generation.prompt_engineering run
    python -m gpt_text_generation.prompt_engineering run --models Qwen/Qwen2.5-0.5B-Instruct --cases builtin:arithmetic

The techniques: few-shot (Brown et al., 2020, arXiv:2005.14165), chain of thought (Wei et al., 2022, 2201.11903) and its
two steps, reasons first and then "the answer is" (Kojima et al., 2022, 2205.11916), role and structured output. Wording
alone moves accuracy by tens of points (Sclar et al., 2023, 2310.11324), so a difference between two templates is
reported with an interval and a test: bootstrap (Efron, 1979), sign flips (Fisher, 1935), Holm's correction (1979).

Every answer is kept under a hash of all that decides it, so a run that was killed goes on where it was.
"""

from __future__ import annotations

import csv
import hashlib
import html
import importlib
import io
import itertools
import json
import logging
import re
import sqlite3
import sys
import unicodedata
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import MISSING, asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any, Literal, get_args, get_origin, get_type_hints

import numpy as np
import yaml
from numpy.typing import ArrayLike

from gpt_text_generation.evaluation.diversity_metrics import bootstrap_interval, portions
from gpt_text_generation.text_generator import (
    BUILTIN,
    NOT_RECIPE,
    PROJECT,
    Settings,
    Strategy,
    TextGenerator,
    set_threads_for,
)
from shared.config import check_range, run_commands
from shared.errors import InputError
from shared.logs import progress_bar
from shared.results import OUTPUTS, Run, write_atomic
from shared.sources import resolve

MODULE = "gpt_text_generation.prompt_engineering"
PROMPTS = BUILTIN / "prompts"
PLACEHOLDER = re.compile(r"\{\{\s*([^\W\d]\w*)\s*\}\}")
Technique = Literal["zero-shot", "few-shot", "role", "chain-of-thought", "structured"]
Parser = Literal["text", "first_line", "label", "number", "json", "code", "regex"]
Kind = Literal["exact", "regex", "schema", "code", "likelihood", "function"]
KINDS: tuple[Kind, ...] = get_args(Kind)
SEEDS_OF_A_REPEAT = 1_000_000  # more than cases in any file, so that no two draws share a seed
logger = logging.getLogger(MODULE)


# --- Templates --------------------------------------------------------------------------------------------------------


def fill(text: str, values: Mapping[str, str]) -> str:
    """Put values in the place of ``{{name}}``, in one pass: what looks like a placeholder inside a value stays text."""
    return PLACEHOLDER.sub(lambda match: values[match[1]], text)


@dataclass(frozen=True)
class Prompt:
    """A template whose gaps are filled: system message, instruction, and the first words of the answer."""

    system: str
    instruction: str
    begin: str

    def text(self, generator: TextGenerator) -> str:
        """Return what a model sees: through its chat template if it has one, else one text."""
        return generator.chat(self.instruction, self.system) + self.begin


@dataclass(frozen=True)
class Template:
    """A prompt with gaps; also the keys of its YAML file.

    Raises:
        InputError: A placeholder is not declared or not well-formed, a variable is not used, or a field contradicts
            another.
    """

    name: str
    """Unique."""
    description: str
    """What it tries, in a line."""
    technique: Technique
    """Of the five."""
    variables: dict[str, str]
    """Name → an example of its value."""
    prompt: str
    """The instruction, with {{name}} for a variable."""
    system: str = ""
    """The system message."""
    begin: str = ""
    """First words of the answer, written for the model; they are part of the answer."""
    conclusion: str = ""
    """What follows the model's reasons before labels are weighed; without it they are weighed after the prompt."""
    separator: str = " "
    """Stands between prompt and label where the prompt does not end in white space."""
    language: str = "en"
    """Of the prompt."""
    stop: list[str] = field(default_factory=list)
    """The answer ends before the first of these."""
    max_new_tokens: int = 64
    """Longest answer, >= 1."""
    parser: Parser = "text"
    """What of the text is the answer: all, the first line, the first of ``labels``, the last number, the largest JSON,
    the first fenced code block or all, or group 1 of the last match of ``pattern``."""
    labels: list[str] = field(default_factory=list)
    """Of the parser ``label``."""
    pattern: str = ""
    """Of the parser ``regex``."""
    key: str = ""
    """Of the parser ``json``: the answer is what stands under this key."""

    def __post_init__(self) -> None:
        """Check that variables and fields fit together."""
        texts = (self.system, self.prompt, self.begin)
        if any("{{" in PLACEHOLDER.sub("", text) for text in texts):
            raise InputError(f"Template {self.name}: '{{{{' begins no {{{{name}}}}.",
                             hint="braces may come in as the value of a variable")  # fmt: skip
        used = {name for text in texts for name in PLACEHOLDER.findall(text)}
        if unknown := used - self.variables.keys():
            raise InputError(f"Template {self.name} uses {_names(unknown)}, which it does not declare.",
                             hint="name it under variables, with an example")  # fmt: skip
        if unused := self.variables.keys() - used:
            raise InputError(f"Template {self.name} declares {_names(unused)}, which it does not use.")
        if not (self.name.strip() and (self.prompt.strip() or self.begin.strip())):
            raise InputError("A template needs a name, and a prompt that is not empty.")
        check_range(f"Template {self.name}: max_new_tokens", self.max_new_tokens, 1)
        if not all(self.stop):
            raise InputError(f"Template {self.name}: a stop string is empty.")
        for parser, name in (("label", "labels"), ("regex", "pattern")):
            if (self.parser == parser) != bool(getattr(self, name)):
                raise InputError(f"Template {self.name}: parser {parser} and {name} come together.")
        if self.pattern and _compiled(self.pattern, f"Template {self.name}").groups != 1:
            raise InputError(f"Template {self.name}: pattern must have one group. Got {self.pattern!r}.")

    def fill(self, values: Mapping[str, str]) -> Prompt:
        """Put the variables' values in their places.

        Raises:
            InputError: A variable has no value, or a value has no variable.
        """
        for what, names in (("needs", self.variables.keys() - values.keys()),
                            ("has no variable", values.keys() - self.variables.keys())):  # fmt: skip
            if names:
                raise InputError(f"Template {self.name} {what} {_names(names)}.",
                                 hint=f"its variables: {_names(self.variables)}")  # fmt: skip
        return Prompt(*(fill(text, values) for text in (self.system, self.prompt, self.begin)))

    def parse(self, text: str) -> Any:
        """Return the answer that stands in a text, None where there is none."""
        return PARSERS[self.parser](self, text)


def _names(names: Iterable[str]) -> str:
    return ", ".join(sorted(names)) or "none"


def _compiled(pattern: str, where: str) -> re.Pattern[str]:
    try:
        return re.compile(pattern)
    except re.error as error:
        raise InputError(f"{where}: {pattern!r} is no regular expression: {error}.") from None


def read_template(path: Path) -> Template:
    """Read a template from its YAML file.

    Raises:
        InputError: It is not as it must be.
    """
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8-sig"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise InputError(f"{path} is not YAML: {' '.join(str(error).split())}") from None
    known = {field.name: field for field in fields(Template)}
    needed = {name for name, field in known.items() if field.default is MISSING and field.default_factory is MISSING}
    if not isinstance(values, dict) or not needed <= values.keys() <= known.keys():
        there = _names(map(str, values if isinstance(values, (dict, list)) else ()))
        raise InputError(f"{path} has not the keys of a template. Got {there}.",
                         hint=f"needed are {_names(needed)}; it may have {_names(known.keys() - needed)}")  # fmt: skip
    hints = get_type_hints(Template)
    if wrong := [name for name, value in values.items() if not _is(value, hints[name])]:
        raise InputError(f"{path}: {wrong[0]} must be {_written(hints[wrong[0]])}. Got {values[wrong[0]]!r:.100}.")
    try:
        return Template(**values)
    except InputError as error:
        raise InputError(f"{path}: {error.args[0]}", hint=error.hint) from None


def _is(value: Any, hint: Any) -> bool:
    """Whether a value of YAML is of a field's type."""
    origin, inner = get_origin(hint), get_args(hint)
    if origin is Literal:
        return value in inner
    if origin is list:
        return isinstance(value, list) and all(_is(item, inner[0]) for item in value)
    if origin is dict:
        return isinstance(value, dict) and all(isinstance(text, str) for pair in value.items() for text in pair)
    return type(value) is hint


def _written(hint: Any) -> str:
    if get_origin(hint) is Literal:
        return f"one of {', '.join(get_args(hint))}"
    return {str: "text", int: "a whole number", list[str]: "a list of texts", dict[str, str]: "names with texts"}[hint]


def load_templates(names: Sequence[str] = ()) -> list[Template]:
    """Load templates.

    Args:
        names: ``builtin:NAME``, YAML files, or folders of them; all builtins by default.

    Raises:
        InputError: There is no such template, a file is not as it must be, or two have one name.
    """
    builtins = {path.stem: path for path in sorted(PROMPTS.glob("*.yaml"))}
    paths: list[Path] = [] if names else list(builtins.values())
    for name in names:
        source = resolve(name, builtins)
        if source.origin == "hub":
            raise InputError(f"There is no template {name!r}.", hint=f"builtin:{name}, or a YAML file")
        path = builtins[source.name] if source.origin == "builtin" else Path(source.name)
        paths += sorted((*path.glob("*.yaml"), *path.glob("*.yml"))) if path.is_dir() else [path]
    templates: dict[str, Template] = {}
    for path in paths:
        template = read_template(path)
        if template.name in templates:
            raise InputError(f"Two templates have the name {template.name!r}; the second is {path}.")
        templates[template.name] = template
    if not templates:
        raise InputError(f"There is no template in {', '.join(names)}.")
    return list(templates.values())


# --- Answers in texts -------------------------------------------------------------------------------------------------


def last_number(text: str) -> str | None:
    """Return the last number of a text without needless zeros: ``= 1,250.0`` is ``1250``."""
    text = unicodedata.normalize("NFKC", text).replace("\u2212", "-")
    found = re.findall(r"(?<![A-Za-z0-9.])-?[0-9]+(?:,[0-9]{3})*(?:\.[0-9]+)?", text)
    if not found:
        return None
    number: str = found[-1].replace(",", "")
    return number.rstrip("0").rstrip(".") if "." in number else number


def largest_json(text: str) -> Any:
    """Return the JSON object or array that takes up most of a text, None where there is none."""
    decoder = json.JSONDecoder(parse_constant=lambda name: int(name))  # NaN is no JSON: a ValueError
    best, most, place = None, 0, 0
    while match := re.compile(r"[{\[]").search(text, place):
        try:
            value, place = decoder.raw_decode(text, match.start())
        except ValueError:
            place = match.end()
            continue
        except RecursionError:  # thousands of brackets
            return best
        if place - match.start() > most:
            best, most = value, place - match.start()
    return best


def first_label(text: str, labels: Sequence[str]) -> str | None:
    """Return the label that a text names first, as a word of its own; of two at one place the longer."""
    text = text.casefold()
    places = []
    for label in labels:
        word = re.escape(label.casefold())
        word = rf"(?<![^\W_]){word}(?![^\W_])" if label.isascii() else word  # Chinese has no blanks between words
        if match := re.search(word, text):
            places.append((match.start(), -len(label), label))
    return min(places)[2] if places else None


def _json_answer(template: Template, text: str) -> Any:
    value = largest_json(text)
    if not template.key:
        return value
    return value.get(template.key) if isinstance(value, dict) else None


def _code_answer(template: Template, text: str) -> str:
    block = re.search(r"```[\w+-]*[ \t]*\n(.*?)(?:\n[ \t]*```|\Z)", text, re.DOTALL)
    return block[1] if block else text


def _regex_answer(template: Template, text: str) -> str | None:
    found = re.findall(template.pattern, text)
    return found[-1].strip() if found else None


PARSERS: dict[Parser, Callable[[Template, str], Any]] = {
    "text": lambda template, text: text.strip() or None,
    "first_line": lambda template, text: next((line.strip() for line in text.splitlines() if line.strip()), None),
    "label": lambda template, text: first_label(text, template.labels),
    "number": lambda template, text: last_number(text),
    "json": _json_answer,
    "code": _code_answer,
    "regex": _regex_answer,
}


# --- Cases and scores -------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Case:
    """What templates are tried on.

    Attributes:
        id: Unique.
        variables: Name → value.
        scores: Kind of score → what it is measured by, see :data:`SCORERS`; the case's score is the mean of them.
    """

    id: str
    variables: dict[str, str]
    scores: dict[Kind, Any]

    def __post_init__(self) -> None:
        """Check what the scores are measured by."""
        if not self.scores or not set(self.scores) <= set(KINDS):
            raise InputError(f"Case {self.id}: scores must be some of {', '.join(KINDS)}. Got {_names(self.scores)}.")
        for kind, argument in self.scores.items():
            if kind in CHECKS:
                CHECKS[kind](argument, f"Case {self.id}, {kind}")


def load_cases(name: str) -> list[Case]:
    """Load cases: rows whose keys are the variables, ``id`` (else their line) and ``scores``.

    In JSONL ``scores`` is an object, kind → argument. In CSV it is columns: ``scores.exact``, ``scores.regex`` and so
    on, ``scores.schema`` and ``scores.likelihood`` holding JSON.

    Args:
        name: ``builtin:NAME``, or a file of JSONL or CSV.

    Raises:
        InputError: There are no such cases, or a row is not as it must be.
    """
    builtins = {path.stem.removeprefix("cases-"): path for path in sorted(PROMPTS.glob("cases-*.jsonl"))}
    source = resolve(name, builtins)
    if source.origin == "hub":
        raise InputError(f"There are no cases {name!r}.", hint="a file of JSONL or CSV, or builtin:NAME")
    path = builtins[source.name] if source.origin == "builtin" else Path(source.name)
    cases: dict[str, Case] = {}
    for number, row in _rows(path):
        id, scores = str(row.pop("id", number)), row.pop("scores", None)
        try:
            if not isinstance(scores, dict):
                raise InputError("There are no scores.", hint='{"scores": {"exact": "yes"}, "question": "…"}')
            if wrong := [key for key, value in row.items() if not isinstance(value, str) and type(value) is not int]:
                raise InputError(f"{_names(wrong)} must be text.")
            case = Case(id, {key: str(value) for key, value in row.items()}, scores)
        except InputError as error:
            raise InputError(f"{path}, line {number}: {error.args[0]}", hint=error.hint) from None
        if id in cases:
            raise InputError(f"{path}, line {number}: there is a case {id!r} already.")
        cases[id] = case
    if not cases:
        raise InputError(f"{path} holds no case.")
    return list(cases.values())


def _rows(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise InputError(f"{path} is not UTF-8 text: {error}.") from None
    return _csv_rows(path, text) if path.suffix == ".csv" else _jsonl_rows(path, text)


def _jsonl_rows(path: Path, text: str) -> Iterator[tuple[int, dict[str, Any]]]:
    for number, line in enumerate(text.split("\n"), 1):
        if line.strip():
            try:
                row: Any = json.loads(line)
            except (ValueError, RecursionError):
                row = None
            if not isinstance(row, dict):
                raise InputError(f"{path}, line {number}: not a JSON object.")
            yield number, row


def _csv_rows(path: Path, text: str) -> Iterator[tuple[int, dict[str, Any]]]:
    reader = csv.DictReader(io.StringIO(text, newline=""), restkey="", restval=None, strict=True)
    try:
        for cells in reader:
            if "" in cells or None in cells.values():
                raise InputError(f"{path}, line {reader.line_num}: there must be {len(reader.fieldnames or [])} cells, "
                                 "each under a heading.")  # fmt: skip
            scores = {}
            for key in [key for key in cells if key.startswith("scores.")]:
                kind, argument = key.removeprefix("scores."), cells.pop(key)
                if argument:
                    scores[kind] = json.loads(argument) if kind in ("schema", "likelihood") else argument
            yield reader.line_num, {**cells, "scores": scores}
    except (csv.Error, json.JSONDecodeError, RecursionError) as error:
        raise InputError(f"{path}, line {reader.line_num}: {error}.") from None


def plain(text: str) -> str:
    """Return a text as ``exact`` compares it: compatibility forms, blanks and case made one, marks at its end cut."""
    return " ".join(unicodedata.normalize("NFKC", text).casefold().split()).rstrip(" .!。")


def exact(value: Any, expected: Any, case: Case) -> float:
    """Score 1 for an answer equal to the expected one; texts as :func:`plain` has them, JSON by its own equality."""
    from jsonschema import Draft202012Validator

    if isinstance(value, str) and isinstance(expected, (str, int, float)) and not isinstance(expected, bool):
        return float(plain(value) == plain(str(expected)))
    return float(Draft202012Validator({"const": expected}).is_valid(value))  # in which true is not 1, and 1 is 1.0


def schema_score(value: Any, schema: Any, case: Case) -> float:
    """Score 1 for an answer that is JSON of this schema."""
    from jsonschema.validators import validator_for
    from referencing import Registry
    from referencing.exceptions import Unresolvable

    if isinstance(value, str):
        try:
            value = json.loads(value)
        except (ValueError, RecursionError):
            return 0.0
    try:  # an empty registry: no $ref is fetched from the network
        return float(validator_for(schema)(schema, registry=Registry()).is_valid(value))
    except Unresolvable as error:
        raise InputError(f"Case {case.id}: the schema refers to what is not in it: {error.ref!r}.") from None


def code_score(value: Any, tests: str, case: Case) -> float:
    """Score 1 for code that passes its tests, in the sandbox."""
    from gpt_text_generation.code_generator import run_tests

    return float(run_tests(str(value), tests).passed)


def function_score(value: Any, name: str, case: Case) -> float:
    """Score what ``package.module:function`` returns for the answer and the case, in [0, 1]."""
    try:
        found = float(_function(name, f"Case {case.id}")(value, case))
    except InputError:
        raise
    except Exception as error:  # whatever a user's function raises
        raise InputError(f"{name} failed on case {case.id}: {type(error).__name__}: {error}") from error
    check_range(f"What {name} returns for case {case.id}", found, 0, 1)
    return found


def likelihood_score(weights: Mapping[str, float], argument: Any, case: Case) -> float:
    """Score 1 where the right label is the likeliest; labels that tie share the point."""
    best = [label for label, weight in weights.items() if weight == max(weights.values())]
    return (argument["label"] in best) / len(best)


SCORERS: dict[Kind, Callable[[Any, Any, Case], float]] = {
    "exact": exact,
    "regex": lambda value, pattern, case: float(re.search(pattern, str(value)) is not None),
    "schema": schema_score,
    "code": code_score,
    "likelihood": likelihood_score,
    "function": function_score,
}


def _function(name: str, where: str) -> Callable[[Any, Case], float]:
    module, _, attribute = name.partition(":") if isinstance(name, str) else ("", "", "")
    try:
        function = getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError, ValueError) as error:
        raise InputError(f"{where}: {name!r} is no function that can be imported: {error}",
                         hint="package.module:function") from None  # fmt: skip
    if not callable(function):
        raise InputError(f"{where}: {name!r} can't be called.")
    found: Callable[[Any, Case], float] = function
    return found


def _check_schema(schema: Any, where: str) -> None:
    from jsonschema.exceptions import SchemaError
    from jsonschema.validators import validator_for

    if not isinstance(schema, (dict, bool)):
        raise InputError(f"{where}: a JSON schema must be an object. Got {schema!r:.100}.")
    try:
        validator_for(schema).check_schema(schema)
    except SchemaError as error:
        raise InputError(f"{where}: no JSON schema: {error.message}.") from None


def _check_labels(argument: Any, where: str) -> None:
    labels = argument.get("labels") if isinstance(argument, dict) else None
    if (not isinstance(labels, list) or not all(isinstance(label, str) and label.strip() for label in labels)
            or len(set(labels)) < max(2, len(labels)) or argument.get("label") not in labels):  # fmt: skip
        raise InputError(f"{where}: needs two labels or more, and which of them is right.",
                         hint='{"labels": ["good", "bad"], "label": "good"}')  # fmt: skip


def _check_text(argument: Any, where: str) -> None:
    if not isinstance(argument, str) or not argument.strip():
        raise InputError(f"{where}: must be text. Got {argument!r:.100}.")


def _check_pattern(argument: Any, where: str) -> None:
    _check_text(argument, where)
    _compiled(argument, where)


CHECKS: dict[Kind, Callable[[Any, str], Any]] = {
    "regex": _check_pattern, "schema": _check_schema, "code": _check_text, "likelihood": _check_labels,
    "function": _function,
}  # fmt: skip


# --- Asking a model, once ---------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Question:
    """Something to ask a model: a text after the prompt, or how likely labels are there.

    Attributes:
        prompt: As the model sees it.
        settings: Of the text; its seed is this question's own.
        labels: To weigh instead.
    """

    prompt: str
    settings: Settings | None = None
    labels: tuple[str, ...] = ()

    def about(self, model: str) -> str:
        """Write down all that decides the answer."""
        return json.dumps({"model": model, **asdict(self)}, sort_keys=True)

    def follows(self, other: Question) -> bool:
        """Whether one call may ask both: row i of a call draws with the call's seed + i."""
        if not (self.settings and other.settings):
            return self.settings is other.settings
        return self.settings == replace(other.settings, seed=other.settings.seed + int(self.settings.draws))


class AnswerCache:
    """Answers in a file of SQLite, each under the SHA-256 of what decides it; a batch is written whole or not at all.

    Args:
        path: The file; ``:memory:`` keeps nothing.

    Raises:
        InputError: It is another kind of file.
    """

    def __init__(self, path: str | Path = ":memory:") -> None:
        if str(path) != ":memory:":
            Path(path).parent.mkdir(parents=True, exist_ok=True)
        try:
            self.database = sqlite3.connect(path, timeout=60)
            with self.database:
                self.database.execute(
                    "CREATE TABLE IF NOT EXISTS answers (key TEXT PRIMARY KEY, question TEXT, answer TEXT)"
                )
        except sqlite3.Error as error:
            raise InputError(f"{path} can't be used as a cache: {error}.", hint="another --cache") from None

    def read(self, question: str) -> Any:
        """Return the answer to what :meth:`Question.about` wrote down, None where it was never asked."""
        found = self.database.execute("SELECT answer FROM answers WHERE key = ?", (_key(question),)).fetchone()
        return json.loads(found[0]) if found else None

    def write(self, answers: Mapping[str, Any]) -> None:
        """Keep answers to questions."""
        rows = [(_key(question), question, json.dumps(answer)) for question, answer in answers.items()]
        with self.database:
            self.database.executemany("INSERT OR REPLACE INTO answers VALUES (?, ?, ?)", rows)

    def close(self) -> None:
        """Close the file."""
        self.database.close()


def _key(question: str) -> str:
    return hashlib.sha256(question.encode()).hexdigest()


def identity(generator: TextGenerator) -> str:
    """Return what tells models apart: name, data type, device, and the state of a folder that may be trained anew."""
    name, language_model = generator.name, generator.language_model
    folder = BUILTIN / name.removeprefix("builtin:") if name.startswith("builtin:") else Path(name)
    files = sorted(path for path in folder.glob("*") if path.is_file()) if folder.is_dir() else []
    stats = [(path.name, path.stat().st_size, path.stat().st_mtime_ns) for path in files]
    files_hash = hashlib.sha256(repr(stats).encode()).hexdigest()[:16]
    return f"{name} {files_hash} {language_model.model.dtype} {language_model.device.type}"


def ask(
    generator: TextGenerator, questions: Iterable[Question], cache: AnswerCache, *, what: str = ""
) -> dict[Question, Any]:
    """Answer questions, from the cache or by the model.

    Args:
        generator: The model.
        questions: Equal ones are asked once.
        cache: Keeps answers; errors are not kept.
        what: Name of the progress bar; without one there is none.

    Returns:
        Question → text, or log-likelihoods of its labels in nats, or the :class:`InputError` that the model gave.
    """
    model = identity(generator)
    found: dict[Question, Any] = {}
    missing: list[Question] = []
    for question in dict.fromkeys(questions):
        known = cache.read(question.about(model))
        if known is None:
            missing.append(question)
        else:
            found[question] = known
    with progress_bar(disable=not what) as bar:
        task = bar.add_task(what, total=len(found) + len(missing), completed=len(found),
                            figures=f"{len(found)} known" if found else "")  # fmt: skip
        for batch in _batches(missing, generator.batch_size):
            answers = dict(zip(batch, _answers(generator, batch), strict=True))
            cache.write({question.about(model): answer for question, answer in answers.items()
                         if not isinstance(answer, InputError)})  # fmt: skip
            found |= answers
            bar.advance(task, len(batch))
    return found


def _batches(questions: Sequence[Question], size: int) -> Iterator[list[Question]]:
    batch: list[Question] = []
    for question in questions:
        if batch and (len(batch) == size or not question.follows(batch[-1])):
            yield batch
            batch = []
        batch.append(question)
    if batch:
        yield batch


def _answers(generator: TextGenerator, batch: Sequence[Question]) -> list[Any]:
    try:
        if settings := batch[0].settings:
            return [made.text for made in generator.generate([question.prompt for question in batch], settings)]
        pairs = [(question.prompt, label) for question in batch for label in question.labels]
        values = iter(generator.log_likelihoods([prompt for prompt, _ in pairs], [label for _, label in pairs]))
        return [list(itertools.islice(values, len(question.labels))) for question in batch]
    except InputError as error:  # such as a prompt that is too long; the others are not to suffer
        return [error] if len(batch) == 1 else [one for question in batch for one in _answers(generator, [question])]


# --- The matrix -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Answer:
    """What a model made of a template, a case and a repeat.

    Attributes:
        model: The model's name.
        template: The template's.
        case: The case's id.
        repeat: From 0.
        prompt: As the model saw it.
        text: What it wrote; empty where only labels were weighed.
        value: What the parser found in it, None where it found nothing; the likeliest label where only those counted.
        weights: Label → log-likelihood in nats, of all its tokens or a byte.
        scores: Kind → score in [0, 1].
        error: Why the model could not be asked; all scores are 0 then.
    """

    model: str
    template: str
    case: str
    repeat: int
    prompt: str
    text: str
    value: Any
    weights: dict[str, float]
    scores: dict[str, float]
    error: str = ""

    @property
    def score(self) -> float:
        """The mean of the scores."""
        return sum(self.scores.values()) / len(self.scores)


def run_matrix(
    templates: Sequence[Template], models: Iterable[TextGenerator], cases: Sequence[Case], *,
    settings: Settings | None = None, repeats: int = 1, cache: AnswerCache | None = None, kinds: Sequence[Kind] = (),
    per_byte: bool = False, progress: bool = False,
) -> list[Answer]:  # fmt: skip
    """Try every template with every model on every case, several times.

    Case number i draws with the settings' seed + i in every template, so that templates meet the same luck.

    Args:
        templates: What to try.
        models: With what; may be loaded one by one, as an iterator does.
        cases: On what.
        settings: How to decode; length and further stop strings are the templates'.
        repeats: How often, >= 1. Strategies that don't draw are asked once: they would say the same again.
        cache: Answers that are known.
        kinds: Scores that count; all that the cases have by default.
        per_byte: Whether labels are weighed by their log-likelihood per byte, which does not favor short ones.
        progress: Whether to show a bar.

    Returns:
        One for each, in the order of models, templates, cases and repeats.

    Raises:
        InputError: Variables of a template and of a case don't fit, a case has none of the kinds, or a model could
            answer nothing at all.
    """
    settings, cache = settings or Settings("greedy"), cache or AnswerCache()
    check_range("repeats", repeats, 1)
    if repeats > 1 and not settings.draws:
        logger.info("%s says the same every time: one repeat instead of %d", settings.strategy, repeats)
        repeats = 1
    wanted = {case.id: {kind: its for kind, its in case.scores.items() if kind in (kinds or KINDS)} for case in cases}
    if without := [id for id, its in wanted.items() if not its]:
        raise InputError(f"Case {without[0]} has no score of the kinds {', '.join(kinds)}.")
    filled = {(template.name, case.id): template.fill(case.variables) for template in templates for case in cases}
    answers: list[Answer] = []
    for generator in models:
        prompts = {cell: prompt.text(generator) for cell, prompt in filled.items()}
        texts: dict[tuple[str, str, int], Question] = {}
        for template, repeat, (number, case) in itertools.product(templates, range(repeats), enumerate(cases)):
            if template.conclusion or set(wanted[case.id]) != {"likelihood"}:
                seed = settings.seed + repeat * SEEDS_OF_A_REPEAT + number if settings.draws else 0
                its = replace(settings, max_new_tokens=template.max_new_tokens, seed=seed,
                              stop=tuple(dict.fromkeys((*settings.stop, *template.stop))))  # fmt: skip
                texts[template.name, case.id, repeat] = Question(prompts[template.name, case.id], its)
        found = ask(generator, texts.values(), cache, what=generator.name if progress else "")
        labels: dict[tuple[str, str, int], Question] = {}
        for template, case, repeat in itertools.product(templates, cases, range(repeats)):
            if "likelihood" in wanted[case.id]:
                cell = (template.name, case.id, repeat)
                reasons = found[texts[cell]] if template.conclusion else ""
                if isinstance(reasons, InputError):
                    continue
                prompt = prompts[cell[:2]] + (reasons.rstrip() + template.conclusion if template.conclusion else "")
                space = "" if prompt[-1:].isspace() else template.separator
                its_labels = wanted[case.id]["likelihood"]["labels"]
                labels[cell] = Question(prompt, labels=tuple(space + label for label in its_labels))
        found |= ask(generator, labels.values(), cache, what=f"{generator.name}, labels" if progress and labels else "")
        if found and all(isinstance(answer, InputError) for answer in found.values()):
            raise next(iter(found.values()))
        for template, case, repeat in itertools.product(templates, cases, range(repeats)):
            cell = (template.name, case.id, repeat)
            text, likelihoods = (found.get(its[cell]) if cell in its else None for its in (texts, labels))
            judged = _judged(template, filled[cell[:2]].begin, case, wanted[case.id], text, likelihoods, per_byte)
            answers.append(Answer(generator.name, template.name, case.id, repeat, prompts[cell[:2]], *judged))
    return answers


def _judged(
    template: Template, begin: str, case: Case, wanted: Mapping[Kind, Any], text: Any, likelihoods: Any, per_byte: bool
) -> tuple[str, Any, dict[str, float], dict[str, float], str]:
    """Return text, value, weights, scores and error of an :class:`Answer`."""
    errors = [str(answer.args[0]) for answer in (text, likelihoods) if isinstance(answer, InputError)]
    weights: dict[str, float] = {}
    if isinstance(likelihoods, list):
        for label, value in zip(wanted["likelihood"]["labels"], likelihoods, strict=True):
            weights[label] = value / len(label.encode()) if per_byte else value
    whole = begin + text if isinstance(text, str) else ""
    value = template.parse(whole) if isinstance(text, str) else None
    scores: dict[str, float] = {}
    for kind, argument in wanted.items():
        measured = (weights or None) if kind == "likelihood" else value
        scores[kind] = 0.0 if errors or measured is None else SCORERS[kind](measured, argument, case)
    if set(wanted) == {"likelihood"} and weights:
        value = max(weights, key=weights.__getitem__)
    return whole, value, weights, scores, "; ".join(errors)


# --- How sure a difference is -----------------------------------------------------------------------------------------


def mean_interval(values: Sequence[float]) -> tuple[float, float]:
    """Return the 95 % bootstrap interval of a mean over cases; of a single case that is a point."""
    return bootstrap_interval(values, repeats=10_000) or (values[0], values[0])


def sign_flip_test(differences: ArrayLike, *, draws: int = 10_000, seed: int = 0) -> float:
    """Test whether paired differences have mean 0: were the two alike, each sign would be a coin's.

    Args:
        differences: (N,), one a case.
        draws: Of signs. Where 2^N is no more, all of them are tried and p is exact; else p = (b + 1) / (draws + 1), b
            being the draws whose mean is as far from 0.
        seed: Of the drawing.

    Returns:
        The two-sided p, in (0, 1].
    """
    d, rng = np.asarray(differences, dtype=float), np.random.default_rng(seed)
    least = abs(d.sum()) - 1e-12 * np.abs(d).sum()  # equal, whatever the order of summing
    if 2 ** len(d) <= draws:
        bits = (np.arange(2 ** len(d))[:, None] >> np.arange(len(d))) & 1  # (2^N, N)
        return float(np.mean(np.abs((2 * bits - 1) @ d) >= least))
    signs = (2 * rng.integers(2, size=(some, len(d))) - 1 for some in portions(draws, len(d)))
    extreme = sum(int((np.abs(its @ d) >= least).sum()) for its in signs)
    return (extreme + 1) / (draws + 1)


def holm(p_values: Sequence[float]) -> list[float]:
    """Correct p values for their number: the i-th smallest of m is multiplied by m − i + 1, and they stay in order."""
    corrected, largest = [0.0] * len(p_values), 0.0
    for position, index in enumerate(sorted(range(len(p_values)), key=p_values.__getitem__)):
        largest = max(largest, min(1.0, (len(p_values) - position) * p_values[index]))
        corrected[index] = largest
    return corrected


@dataclass(frozen=True)
class Standing:
    """A template's mean score with a model.

    Attributes:
        model: The model.
        template: The template.
        score: Mean over cases of the mean over repeats, in [0, 1].
        low: Of its 95 % interval.
        high: Likewise.
        kinds: Kind → its mean over the cases that have it.
        errors: Answers that could not be had.
    """

    model: str
    template: str
    score: float
    low: float
    high: float
    kinds: dict[str, float]
    errors: int


@dataclass(frozen=True)
class Comparison:
    """Two templates on the same cases.

    Attributes:
        model: With which model.
        better: The template with the higher mean, the first in the order of names where they tie.
        other: The other one.
        difference: Of the means, >= 0.
        low: Of its 95 % interval.
        high: Likewise.
        p: Of the sign-flip test.
        p_holm: Corrected for all comparisons of the matrix.
    """

    model: str
    better: str
    other: str
    difference: float
    low: float
    high: float
    p: float
    p_holm: float


def per_case(answers: Sequence[Answer]) -> dict[tuple[str, str], dict[str, float]]:
    """Average repeats: (model, template) → case → score. Repeats of a case are no further evidence."""
    scores: dict[tuple[str, str], dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    for answer in answers:
        scores[answer.model, answer.template][answer.case].append(answer.score)
    return {cell: {case: float(np.mean(its)) for case, its in cases.items()} for cell, cases in scores.items()}


def standings(answers: Sequence[Answer]) -> list[Standing]:
    """Rank templates, best first."""
    found = []
    for (model, template), scores in per_case(answers).items():
        own = [answer for answer in answers if (answer.model, answer.template) == (model, template)]
        kinds: dict[str, list[float]] = defaultdict(list)
        for answer in own:
            for kind, score in answer.scores.items():
                kinds[kind].append(score)
        values = list(scores.values())
        found.append(Standing(model, template, float(np.mean(values)), *mean_interval(values),
                              {kind: float(np.mean(its)) for kind, its in kinds.items()},
                              sum(bool(answer.error) for answer in own)))  # fmt: skip
    return sorted(found, key=lambda its: (-its.score, its.model, its.template))


def comparisons(answers: Sequence[Answer]) -> list[Comparison]:
    """Compare every two templates of each model on the cases they share, the surest difference first."""
    cells = per_case(answers)
    found = []
    for (model, one), (its_model, other) in itertools.combinations(sorted(cells), 2):
        if model == its_model:
            differences = np.array([cells[model, one][case] - cells[model, other][case] for case in cells[model, one]])
            if differences.mean() < 0:
                one, other, differences = other, one, -differences
            found.append(Comparison(model, one, other, float(differences.mean()), *mean_interval(differences),
                                    sign_flip_test(differences), 1.0))  # fmt: skip
    corrected = holm([its.p for its in found])
    found = [replace(its, p_holm=p) for its, p in zip(found, corrected, strict=True)]
    return sorted(found, key=lambda its: (its.p_holm, its.p, -its.difference))


# --- Reports ----------------------------------------------------------------------------------------------------------

STYLE = """
:root { color-scheme: light dark; --line: #8884; --soft: #8881; --accent: #2563eb; }
body { font: 15px/1.5 system-ui, sans-serif; max-width: 76rem; margin: 2rem auto; padding: 0 1rem; }
h1 { margin-bottom: 0; } h2 { margin-top: 2.5rem; } .note { opacity: .75; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; } th, td { padding: .35rem .7rem; text-align: left; vertical-align: top; }
th { border-bottom: 2px solid var(--line); } td { border-bottom: 1px solid var(--line); }
td.number { text-align: right; font-variant-numeric: tabular-nums; white-space: nowrap; }
tr.best td { background: #16a34a22; font-weight: 600; }
.bar { position: relative; width: 14rem; height: 1rem; margin-top: .25rem; background: var(--soft); }
.bar i { position: absolute; inset: 0 auto 0 0; background: var(--accent); opacity: .55; }
.bar b { position: absolute; top: 45%; height: 2px; background: currentColor; }
.matrix th { font-weight: 500; max-width: 9rem; overflow-wrap: anywhere; } .matrix td { white-space: nowrap; }
.matrix td.cell { text-align: center; }
details { border: 1px solid var(--line); border-radius: .4rem; margin: .4rem 0; padding: .3rem .8rem; }
details details { background: var(--soft); } summary { cursor: pointer; }
pre { white-space: pre-wrap; overflow-wrap: anywhere; border-left: 3px solid var(--line); margin: .3rem 0;
      padding: .1rem .8rem; }
.error { color: #dc2626; }
"""


def _cell(score: float) -> str:
    """Return a cell of the matrix, from red through yellow to green."""
    return f'<td class="cell" style="background: hsl({120 * score:.0f} 70% 50% / .35)">{score:.2f}</td>'


def _shown(value: Any) -> str:
    return value if isinstance(value, str) else "" if value is None else json.dumps(value, ensure_ascii=False)


def html_report(
    answers: Sequence[Answer], templates: Sequence[Template], cases: Sequence[Case], title: str = "Prompts compared"
) -> str:
    """Write a matrix as one HTML page that loads nothing: best template on top, comparisons, cases, every answer."""
    ranked, compared, cells = standings(answers), comparisons(answers), per_case(answers)
    kinds = [kind for kind in KINDS if any(kind in its.kinds for its in ranked)]
    by_name = {template.name: template for template in templates}
    e = html.escape
    out = [
        "<!DOCTYPE html>", '<html lang="en"><head><meta charset="utf-8">',
        '<meta http-equiv="Content-Security-Policy" content="default-src \'none\'; style-src \'unsafe-inline\'">',
        '<meta name="viewport" content="width=device-width, initial-scale=1">',
        f"<title>{e(title)}</title><style>{STYLE}</style></head><body>", f"<h1>{e(title)}</h1>",
        f'<p class="note">{len(by_name)} templates, {len({a.model for a in answers})} models, {len(cases)} cases, '
        f"{1 + max(a.repeat for a in answers)} repeats. A score is the mean over cases; repeats are averaged inside a "
        "case. Lines in the bars are 95 % bootstrap intervals.</p>",
        '<h2>Templates</h2><div class="scroll"><table><tr><th>Template</th><th>Technique</th><th>Model</th>'
        "<th>Score</th><th></th><th>95 %</th>", *(f"<th>{kind}</th>" for kind in kinds), "<th>Errors</th></tr>",
    ]  # fmt: skip
    for i, its in enumerate(ranked):
        template = by_name[its.template]
        width = 100 * (its.high - its.low)
        out.append(
            f'<tr{" class=best" if i == 0 else ""}><td title="{e(template.description)}">{e(its.template)}</td>'
            f"<td>{template.technique}, {e(template.language)}</td><td>{e(its.model)}</td>"
            f'<td class="number">{its.score:.3f}</td><td><div class="bar"><i style="width: {100 * its.score:.1f}%"></i>'
            f'<b style="left: {100 * its.low:.1f}%; width: {width:.1f}%"></b></div></td>'
            f'<td class="number">{its.low:.3f} – {its.high:.3f}</td>'
            + "".join(f'<td class="number">{its.kinds[kind]:.3f}</td>' if kind in its.kinds else "<td></td>"
                      for kind in kinds)
            + f'<td class="number">{its.errors or ""}</td></tr>'
        )  # fmt: skip
    out.append("</table></div>")
    if compared:
        out.append(
            "<h2>Differences</h2><p class=note>On the same cases: mean difference, bootstrap interval, and p of "
            'a sign-flip test, corrected by Holm for all rows. Below 0.05 is bold.</p><div class="scroll"><table><tr>'
            "<th>Better</th><th>than</th><th>Model</th><th>by</th><th>95 %</th><th>p</th><th>p (Holm)</th></tr>"
        )
        for pair in compared:
            p = f"<b>{pair.p_holm:.4f}</b>" if pair.p_holm < 0.05 else f"{pair.p_holm:.4f}"
            out.append(
                f"<tr><td>{e(pair.better)}</td><td>{e(pair.other)}</td><td>{e(pair.model)}</td>"
                f'<td class="number">{pair.difference:.3f}</td><td class="number">{pair.low:.3f} – {pair.high:.3f}</td>'
                f'<td class="number">{pair.p:.4f}</td><td class="number">{p}</td></tr>'
            )
        out.append("</table></div>")
    columns = [(its.model, its.template) for its in ranked]
    several = len({model for model, _ in columns}) > 1
    out.append('<h2>Cases</h2><div class="scroll"><table class="matrix"><tr><th>Case</th>')
    out += [f"<th>{e(name)}{f'<br>{e(model)}' if several else ''}</th>" for model, name in columns]
    out.append("</tr>")
    for case in cases:
        row = "".join(_cell(cells[column][case.id]) for column in columns)
        out.append(f"<tr><td>{e(case.id)}</td>{row}</tr>")
    out.append("</table></div><h2>Answers</h2>")
    by_case: dict[str, list[Answer]] = defaultdict(list)
    for answer in sorted(answers, key=lambda its: columns.index((its.model, its.template))):
        by_case[answer.case].append(answer)
    for case in cases:
        variables = " · ".join(case.variables.values())
        wanted = json.dumps(case.scores, ensure_ascii=False)
        out.append(f"<details><summary><b>{e(case.id)}</b> {e(variables[:150])}</summary><p>Scored by: "
                   f"<code>{e(wanted)}</code></p>")  # fmt: skip
        for a in by_case[case.id]:
            weights = ", ".join(f"{label} {weight:.3f}" for label, weight in a.weights.items())
            out.append(
                f"<details><summary>{a.score:.2f} · {e(a.template)}{f' · {e(a.model)}' if several else ''}"
                f" · repeat {a.repeat + 1} · {e(_shown(a.value)[:150]) or '<i>no answer found</i>'}</summary>"
                f"<p>Prompt</p><pre>{e(a.prompt)}</pre>"
                + (f"<p>Text</p><pre>{e(a.text)}</pre>" if a.text else "")
                + (f"<p>Log-likelihoods: {e(weights)}</p>" if weights else "")
                + (f'<p class="error">{e(a.error)}</p>' if a.error else "")
                + f"<p>Answer: <code>{e(_shown(a.value))}</code>; scores: {e(json.dumps(a.scores))}</p></details>"
            )
        out.append("</details>")
    return "\n".join([*out, "</body></html>", ""])


def as_cell(value: object) -> str:
    """Return what to write into a CSV file for a value.

    A spreadsheet would run a text that begins as a formula does: it gets ``'`` in front (OWASP, CSV injection).
    """
    text = str(value)
    number = re.fullmatch(r"[-+]?[\d.]+(e[-+]?\d+)?", text)
    return f"'{text}" if text.startswith(("=", "+", "-", "@", "\t", "\r")) and not number else text


def csv_report(answers: Sequence[Answer]) -> str:
    """Write a matrix as CSV, an answer a row, a column for each kind of score."""
    kinds = [kind for kind in KINDS if any(kind in answer.scores for answer in answers)]
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(["model", "template", "case", "repeat", "score", *kinds, "answer", "text", "error", "prompt"])
    for a in answers:
        scores = [a.scores.get(kind, "") for kind in kinds]
        row = [a.model, a.template, a.case, a.repeat, a.score, *scores, _shown(a.value), a.text, a.error, a.prompt]
        writer.writerow(map(as_cell, row))
    return out.getvalue()


# --- Commands ---------------------------------------------------------------------------------------------------------


@dataclass
class ListConfig:
    """List templates and built-in cases."""

    templates: list[str] = field(default_factory=list)
    """YAML files, folders of them or builtin:NAME; all builtins by default."""


def list_command(config: ListConfig) -> None:
    """Print names, techniques, variables and what each is for."""
    templates = load_templates(config.templates)
    wide = max(len(template.name) for template in templates)
    for template in templates:
        sys.stdout.write(f"{template.name:{wide}}  {template.technique:16}  {_names(template.variables):10}  "
                         f"{template.description}\n")  # fmt: skip
    if not config.templates:
        sets = sorted(path.stem.removeprefix("cases-") for path in PROMPTS.glob("cases-*.jsonl"))
        sys.stdout.write(f"cases: {', '.join(f'builtin:{name}' for name in sets)}\n")


@dataclass
class ShowConfig:
    """Show a template with its variables filled in."""

    template: str = "sentiment-few-shot-en"
    """Name of a builtin, or a YAML file."""
    variables: str = ""
    """A JSON object, name → value; what is missing is filled from the template's own examples."""
    model: str = ""
    """Show it as this model sees it, through its chat template."""


def show(config: ShowConfig) -> None:
    """Print a prompt; see :class:`ShowConfig`."""
    names = {path.stem for path in PROMPTS.glob("*.yaml")}
    template = load_templates([f"builtin:{config.template}" if config.template in names else config.template])[0]
    try:
        given = json.loads(config.variables or "{}")
    except (ValueError, RecursionError):
        given = None
    if not isinstance(given, dict) or not all(isinstance(value, str) for value in given.values()):
        raise InputError(f"variables must be a JSON object of texts. Got {config.variables!r:.200}.",
                         hint=f"--variables '{json.dumps(template.variables, ensure_ascii=False)}'")  # fmt: skip
    prompt = template.fill({**template.variables, **given})
    if config.model:
        sys.stdout.write(prompt.text(TextGenerator(config.model)) + "\n")
        return
    for name, text in (("system", prompt.system), ("prompt", prompt.instruction), ("answer begins", prompt.begin)):
        if text:
            sys.stdout.write(f"--- {name} ---\n{text}\n")


@dataclass
class RunConfig:
    """Try templates on cases with models, and leave report.html and answers.csv."""

    templates: list[str] = field(default_factory=list)
    """builtin:NAME, YAML files or folders of them; by default the builtins that have the cases' variables."""
    models: list[str] = field(default_factory=lambda: ["builtin:stories"])
    """builtin:stories or builtin:python, folders, or hub ids."""
    cases: str = "builtin:stories"
    """builtin:NAME, or a file of JSONL or CSV."""
    limit: int = 0
    """Take the first so many cases; 0 takes all."""
    repeats: int = 1
    """How often each is asked, >= 1; greedy and beam search are asked once."""
    scores: list[Kind] = field(default_factory=list)
    """exact, regex, schema, code, likelihood or function; all that the cases have by default."""
    per_byte: bool = False
    """Weigh labels by their log-likelihood per byte, which does not favor short ones."""
    strategy: Strategy = "greedy"
    """How to decode."""
    temperature: float = 1.0
    """Of strategies that draw, > 0."""
    top_p: float = 0.9
    """Of nucleus, in (0, 1]."""
    cache: str = field(default=str(OUTPUTS / PROJECT / "answers.sqlite"), metadata=NOT_RECIPE)
    """File of the answers that are known; a run that was stopped goes on with it."""
    batch_size: int = field(default=16, metadata=NOT_RECIPE)
    """Prompts that are computed together, >= 1."""
    device: str = field(default="auto", metadata=NOT_RECIPE)
    """auto, cpu, cuda or mps."""
    dtype: Literal["auto", "float32", "bfloat16"] = field(default="auto", metadata=NOT_RECIPE)
    """Data type of the weights."""
    seed: int = field(default=0, metadata=NOT_RECIPE)
    """Of strategies that draw."""
    run: str = field(default="", metadata=NOT_RECIPE)
    """Name of this run's own folder; by default the time."""

    def __post_init__(self) -> None:
        """Check the ranges."""
        check_range("repeats", self.repeats, 1, 1000)
        check_range("limit", self.limit, 0)
        check_range("batch_size", self.batch_size, 1)
        if not self.models or len(set(self.models)) < len(self.models):
            raise InputError(f"models must be different ones, one at least. Got {', '.join(self.models) or 'none'}.")
        self.settings()

    def settings(self) -> Settings:
        """Return how to decode."""
        return Settings(self.strategy, temperature=self.temperature, top_p=self.top_p, seed=self.seed)


def run_command(config: RunConfig) -> None:
    """Run the matrix and report it; see :class:`RunConfig`."""
    cases = load_cases(config.cases)[: config.limit or None]
    templates = load_templates(config.templates)
    if not config.templates:
        variables = cases[0].variables.keys()
        templates = [template for template in templates if template.variables.keys() == variables]
        if not templates:
            raise InputError(f"No builtin template has the variables {_names(variables)}.", hint="--templates FILE")
    for template, case in itertools.product(templates, cases):  # before a model is loaded
        template.fill(case.variables)
    run = Run(PROJECT, MODULE, "run", config, name=config.run)
    set_threads_for(config.models[0])
    with closing(AnswerCache(config.cache)) as cache:
        models = (TextGenerator(name, device=config.device, dtype=config.dtype, batch_size=config.batch_size)
                  for name in config.models)  # fmt: skip
        try:
            answers = run_matrix(
                templates, models, cases, settings=config.settings(), repeats=config.repeats, cache=cache,
                kinds=config.scores, per_byte=config.per_byte, progress=True,
            )  # fmt: skip
        except KeyboardInterrupt:
            raise KeyboardInterrupt(f"answers so far are in {config.cache}, and the same command goes on") from None
    ranked, compared = standings(answers), comparisons(answers)
    title = f"{config.cases} with {', '.join(dict.fromkeys(answer.model for answer in answers))}"
    write_atomic(run.folder / "report.html", html_report(answers, templates, cases, title))
    write_atomic(run.folder / "answers.csv", csv_report(answers))
    metrics: dict[str, Any] = {
        "best_template": ranked[0].template, "best_score": ranked[0].score, "best_low": ranked[0].low,
        "best_high": ranked[0].high, "worst_score": ranked[-1].score, "cases": len(cases), "answers": len(answers),
        "sure_differences": sum(its.p_holm < 0.05 for its in compared), "errors": sum(its.errors for its in ranked),
    }  # fmt: skip
    many = len(config.models) > 1
    for its in ranked:
        metrics[f"score_{its.template}{f'_{its.model}' if many else ''}"] = its.score
    run.finish(model=", ".join(dict.fromkeys(answer.model for answer in answers)), data=config.cases,
               seed=config.seed, metrics=metrics)  # fmt: skip
    wide = max(len(its.template) for its in ranked)
    for its in ranked:
        parts = [f"{its.template:{wide}}", f"{its.score:.3f}", f"[{its.low:.3f}, {its.high:.3f}]"]
        parts += [f"{kind} {score:.3f}" for kind, score in its.kinds.items()]
        parts += [its.model] * many + [f"{its.errors} errors"] * bool(its.errors)
        sys.stdout.write("  ".join(parts) + "\n")
    for pair in compared[:5]:
        sys.stdout.write(f"{pair.better} − {pair.other}: {pair.difference:.3f} [{pair.low:.3f}, {pair.high:.3f}], "
                         f"p (Holm) {pair.p_holm:.4f}\n")  # fmt: skip
    logger.info("%s", run.folder / "report.html")


if __name__ == "__main__":
    run_commands({"list": list_command, "show": show, "run": run_command}, module=MODULE, extra="generation")
