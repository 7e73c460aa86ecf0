"""Templates are checked, values are data, nothing is asked twice, scores and tests are right, reports are safe."""

import csv
import html.parser
import io
import json
import os
import re
import subprocess
import sys
import types
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from gpt_text_generation import prompt_engineering
from gpt_text_generation.prompt_engineering import (
    MODULE,
    PROMPTS,
    SCORERS,
    SEEDS_OF_A_REPEAT,
    Answer,
    AnswerCache,
    Case,
    Question,
    Template,
    comparisons,
    csv_report,
    fill,
    first_label,
    holm,
    html_report,
    largest_json,
    last_number,
    list_command,
    load_cases,
    load_templates,
    mean_interval,
    per_case,
    run_command,
    run_matrix,
    show,
    sign_flip_test,
    standings,
)
from gpt_text_generation.text_generator import Generation, Settings
from shared.config import run_commands
from shared.errors import InputError

ROOT = Path(__file__).parents[2]
RUNS = Path("outputs/gpt_text_generation")
STORIES = Path(os.environ.get("ROADMAP_DATA", ROOT / "../shared/data")) / "models" / "stories260K" / "hf"
DRAWING = Settings("nucleus", seed=7)


class Fake:
    """A generator whose text says what it was asked, and that keeps count."""

    has_chat_template = False
    batch_size = 4

    def __init__(
        self, name: str = "fake", reply: Callable[[str, int], str] | None = None, longest: int = 10**6
    ) -> None:
        self.name, self.longest = name, longest
        self.reply = reply or (lambda prompt, seed: f"{prompt}|{seed}")
        self.asked: list[tuple[str, int]] = []
        self.calls: list[int] = []
        self.weighed: list[tuple[str, str]] = []
        self.language_model = SimpleNamespace(
            model=SimpleNamespace(dtype="float32"), device=SimpleNamespace(type="cpu"), context=10**6
        )

    def chat(self, instruction: str, system: str = "") -> str:
        return f"{system}\n\n{instruction}" if system else instruction

    def generate(self, prompts: Sequence[str], settings: Settings) -> list[Generation]:
        if any(len(prompt) > self.longest for prompt in prompts):
            raise InputError("The prompt has too many tokens.")
        self.calls.append(len(prompts))
        made = []
        for row, prompt in enumerate(prompts):
            self.asked.append((prompt, settings.seed + row))
            made.append(Generation(prompt, self.reply(prompt, settings.seed + row), [], [], "end"))
        return made

    def log_likelihoods(self, prompts: Sequence[str], continuations: Sequence[str]) -> list[float]:
        pairs = list(zip(prompts, continuations, strict=True))
        self.weighed += pairs
        return [-float(len(rest.encode())) - prompt.count(rest.strip()) for prompt, rest in pairs]


def template(name: str = "plain", prompt: str = "Q: {{question}}\nA:", **more: Any) -> Template:
    variables = {found: "example" for found in re.findall(r"\{\{(\w+)\}\}", prompt)}
    return Template(name, "A test.", "zero-shot", more.pop("variables", variables), prompt, **more)


def case(id: str = "one", question: str = "2 + 2?", **scores: Any) -> Case:
    return Case(id, {"question": question}, scores or {"exact": "4"})


def answer(template: str, case: str, score: float, repeat: int = 0, model: str = "fake", **more: Any) -> Answer:
    values: dict[str, Any] = {"prompt": "p", "text": "t", "value": "v", "weights": {}, "scores": {"exact": score}}
    return Answer(model, template, case, repeat, **{**values, **more})


# --- Templates --------------------------------------------------------------------------------------------------------


def test_every_builtin_template_can_be_filled_and_every_case_set_has_templates() -> None:
    templates = load_templates()
    assert {its.technique for its in templates} == {"zero-shot", "few-shot", "role", "chain-of-thought", "structured"}
    for its in templates:
        assert (PROMPTS / f"{its.name}.yaml").exists(), "the file has the template's name"
        prompt = its.fill(its.variables)
        assert "{{" not in prompt.instruction + prompt.system + prompt.begin
        assert all(value in prompt.system + prompt.instruction + prompt.begin for value in its.variables.values())
        assert not prompt.instruction.endswith(" "), "a blank at the end is a token that no text has there"
        assert its.language == ("zh" if its.name.endswith("-zh") else "en")
    for path in PROMPTS.glob("cases-*.jsonl"):
        cases = load_cases(f"builtin:{path.stem.removeprefix('cases-')}")
        fitting = [its for its in templates if its.variables.keys() == cases[0].variables.keys()]
        assert len(fitting) >= 2 and len({its.language for its in fitting}) == 1
        for its in fitting:
            for one in cases:
                its.fill(one.variables)


@given(one=st.text(max_size=30), other=st.text(max_size=30))
@settings(max_examples=50)
def test_a_value_is_data_whatever_is_in_it(one: str, other: str) -> None:
    assert fill("<{{a}}|{{ b }}|{{a}}> {a} $a %s", {"a": one, "b": other}) == f"<{one}|{other}|{one}> {{a}} $a %s"


def test_what_looks_like_syntax_in_a_value_stays_as_it_is() -> None:
    value = 'a {{question}} {x} {{ "$ref" }} }} \\1 \\g<0>'
    assert template().fill({"question": value}).instruction == f"Q: {value}\nA:"
    assert template(prompt='{"a": {"b": "{{质疑}}"}}').fill({"质疑": "}}"}).instruction == '{"a": {"b": "}}"}}'


def test_variables_that_do_not_fit_are_told() -> None:
    with pytest.raises(InputError, match="plain needs question.*\nhint: its variables: question"):
        template().fill({})
    with pytest.raises(InputError, match="plain has no variable answer, extra"):
        template().fill({"question": "?", "extra": "!", "answer": "4"})
    with pytest.raises(InputError, match="uses question, which it does not declare"):
        template(variables={})
    with pytest.raises(InputError, match="declares more, which it does not use"):
        template(variables={"question": "?", "more": "!"})
    for broken in ("{{1}}", "{{question", "{{ two words }}", "{{}}", "{{question} }"):
        with pytest.raises(InputError, match="begins no"):
            template(prompt=f"{{{{question}}}} {broken}")


def test_fields_that_contradict_each_other_are_told() -> None:
    for more, message in [
        ({"parser": "label"}, "parser label and labels come together"),
        ({"labels": ["a", "b"]}, "parser label and labels come together"),
        ({"parser": "regex"}, "parser regex and pattern come together"),
        ({"parser": "regex", "pattern": "("}, "is no regular expression"),
        ({"parser": "regex", "pattern": "no group"}, "must have one group"),
        ({"max_new_tokens": 0}, "max_new_tokens must be in"),
        ({"stop": [""]}, "a stop string is empty"),
        ({"prompt": " "}, "a prompt that is not empty"),
    ]:
        with pytest.raises(InputError, match=message):
            template(**more)


GOOD = "name: mine\ndescription: d\ntechnique: role\nvariables: {q: '1'}\nprompt: '{{q}}?'\n"


def test_templates_come_from_files_and_folders(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text(GOOD + 'stop: ["\\n", "。"]\n', encoding="utf-8")
    (tmp_path / "b.yml").write_text(GOOD.replace("mine", "other"), encoding="utf-8")
    assert [its.name for its in load_templates([str(tmp_path)])] == ["mine", "other"]
    assert load_templates([str(tmp_path / "a.yaml"), "builtin:sentiment-role-en"])[0].stop == ["\n", "。"]
    with pytest.raises(InputError, match="Two templates have the name 'mine'"):
        load_templates([str(tmp_path), str(tmp_path / "a.yaml")])
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="no template in"):
        load_templates([str(tmp_path / "empty")])
    with pytest.raises(InputError, match="There is no 'builtin:nothing'"):
        load_templates(["builtin:nothing"])
    with pytest.raises(InputError, match="no template 'sentiment-role-en'.*\nhint: builtin:sentiment-role-en"):
        load_templates(["sentiment-role-en"])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (GOOD + "color: red\n", " has not the keys .* Got color, "), ("name: [\n", " is not YAML"), ("", "Got none"),
        (GOOD.replace("role", "roll"), ": technique must be one of zero-shot, .* Got 'roll'"), ("- 1\n", "Got 1"),
        (GOOD.replace("'1'", "1"), ": variables must be names with texts"), ("name: x\n", "has not the keys"),
        (GOOD + "stop: x\n", ": stop must be a list"), (GOOD + "max_new_tokens: yes\n", ": max_new_tokens must be"),
        (GOOD.replace("{{q}}", "{{p}}"), ": .*uses p, which it does not declare"), ("3", "has not the keys"),
        (GOOD + "parser: yaml\n", ": parser must be one of"), ("!!python/object:os.system x", " is not YAML"),
    ],
)  # fmt: skip
def test_a_file_that_is_no_template_is_told_with_its_name(text: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / "wrong.yaml"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(InputError, match=rf"wrong\.yaml{message}" if message[0] in " :" else message):
        load_templates([str(path)])
    path.write_bytes(b"\xff\xfe")
    with pytest.raises(InputError, match=r"wrong\.yaml is not YAML: 'utf-8'"):
        load_templates([str(path)])


# --- Answers ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("The answer is 42.", "42"), ("3 + 4 = 7", "7"), ("7-3=4, so -12", "-12"), ("It costs $1,250.00", "1250"),
        ("一共12个", "12"), ("答案是９。", "9"), ("0.50", "0.5"), ("−3", "-3"), ("100", "100"), ("A4 paper", None),
        ("", None), ("1, 2, 3", "3"),
    ],
)  # fmt: skip
def test_the_last_number_is_found(text: str, number: str | None) -> None:
    assert last_number(text) == number


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ('Sure: {"a": [1, 2]} as [1] says', {"a": [1, 2]}), ("see [1] and {}", [1]),
        ('```json\n{"a": 1}\n```', {"a": 1}),
        ('{"a": {"b": "}"}} }', {"a": {"b": "}"}}), ('{"a": NaN}', None), ("{broken", None), ("", None),
        ("[" * 5000, None), ("{'a': 1}", None),
    ],
)  # fmt: skip
def test_the_largest_json_is_found(text: str, value: Any) -> None:
    assert largest_json(text) == value


@given(st.recursive(st.booleans() | st.integers() | st.text(max_size=9), lambda its: st.lists(its), max_leaves=4))
@settings(max_examples=40)
def test_any_json_object_is_found_in_prose(value: Any) -> None:
    assert largest_json(f"Here it is: {json.dumps({'answer': value})}, as you like.") == {"answer": value}


def test_the_first_label_is_found_as_a_word() -> None:
    labels = ["positive", "negative", "very positive"]
    assert first_label("It is POSITIVE, not negative.", labels) == "positive"
    assert first_label("very positive", labels) == "very positive"
    assert first_label("nonpositive", labels) is None
    assert first_label("这是负面的", ["正面", "负面"]) == "负面"


def test_parsers_take_their_part_of_the_text() -> None:
    assert template().parse("  a\nb ") == "a\nb" and template().parse(" ") is None
    assert template(parser="first_line").parse("\n a \nb") == "a"
    assert template(parser="json", key="x").parse('{"x": 3}') == 3
    assert template(parser="json", key="x").parse("[1]") is None
    code = template(parser="code")
    assert code.parse("Here:\n```python\nx = 1\n\ny = 2\n```\nDone.") == "x = 1\n\ny = 2"
    assert code.parse("```\nx = 1") == "x = 1" and code.parse("def f():\n    pass") == "def f():\n    pass"
    regex = template(parser="regex", pattern="Answer: (.+)")
    assert regex.parse("Answer: 3\nNo. Answer: 4 \n") == "4" and regex.parse("4") is None


# --- Cases and scores -------------------------------------------------------------------------------------------------


def test_cases_are_the_same_from_jsonl_and_csv(tmp_path: Path) -> None:
    labels = {"labels": ["yes", "no"], "label": "no"}
    jsonl, table = tmp_path / "cases.jsonl", tmp_path / "cases.csv"
    rows = [
        {"id": "a", "q": "1, {x}\n?", "scores": {"exact": "2", "likelihood": labels}},
        {"id": "b", "q": "早", "scores": {"regex": "^a"}},
    ]
    jsonl.write_text("\n".join(json.dumps(row, ensure_ascii=False) for row in rows) + "\n\n", encoding="utf-8")
    with table.open("w", encoding="utf-8-sig", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["id", "q", "scores.exact", "scores.regex", "scores.likelihood"])
        writer.writerow(["a", "1, {x}\n?", "2", "", json.dumps(labels)])
        writer.writerow(["b", "早", "", "^a", ""])
    assert load_cases(str(jsonl)) == load_cases(str(table))
    assert load_cases(str(table))[0] == Case("a", {"q": "1, {x}\n?"}, {"exact": "2", "likelihood": labels})


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("[1]", "line 1: not a JSON object"), ("{", "not a JSON object"), ('{"q": "a"}', "There are no scores"),
        ('{"q": ["a"], "scores": {"exact": 1}}', "q must be text"),
        ('{"q": "a", "scores": {}}', "scores must be some of"),
        ('{"q": "a", "scores": {"exakt": 1}}', "Got exakt"),
        ('{"q": "a", "scores": {"regex": "("}}', "regular expression"),
        ('{"q": "a", "scores": {"regex": 3}}', "must be text"),
        ('{"q": "a", "scores": {"schema": {"type": "objekt"}}}', "no JSON schema"),
        ('{"q": "a", "scores": {"schema": "x"}}', "must be an object"),
        ('{"q": "a", "scores": {"likelihood": {"labels": ["a", "b"], "label": "c"}}}', "which of them is right"),
        ('{"q": "a", "scores": {"likelihood": {"labels": ["a"], "label": "a"}}}', "two labels or more"),
        ('{"q": "a", "scores": {"function": "json:nothing"}}', "no function that can be imported"),
        ('{"q": "a", "scores": {"function": "no.such:one"}}', "no function that can be imported"),
        ('{"q": "a", "scores": {"function": "json:__doc__"}}', "can't be called"),
        ('{"id": 1, "q": "a", "scores": {"exact": 1}}\n{"id": "1", "q": "b", "scores": {"exact": 1}}', "a case '1'"),
        ("\n", "holds no case"),
    ],
)  # fmt: skip
def test_a_case_that_can_not_be_scored_is_told_with_its_line(line: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / "cases.jsonl"
    path.write_text(line, encoding="utf-8")
    with pytest.raises(InputError, match=message):
        load_cases(str(path))


def test_tables_that_can_not_be_read_are_told(tmp_path: Path) -> None:
    path = tmp_path / "cases.csv"
    for content, message in [("q,scores.exact\na\n", "line 2: there must be 2 cells"),
                             ("q,scores.exact\na,b,c\n", "2 cells"),
                             ("q,scores.schema\na,{\n", "line 2"), ('q,scores.exact\n"a', "unexpected end"),
                             ("q\na\n", "scores must be"),
                             ("", "holds no case")]:  # fmt: skip
        path.write_text(content, encoding="utf-8")
        with pytest.raises(InputError, match=message):
            load_cases(str(path))
    path.write_bytes(b"\xff")
    with pytest.raises(InputError, match="not UTF-8"):
        load_cases(str(path))
    with pytest.raises(FileNotFoundError):
        load_cases(str(tmp_path / "nothing.csv"))
    with pytest.raises(InputError, match="There is no 'builtin:nothing'"):
        load_cases("builtin:nothing")


def double_length(value: Any, its: Case) -> float:
    return {"good": 1, "half": 0.5, "more": 7, "none": "x"}[value] if value in ("good", "half", "more") else 1 / 0


SCHEMA = {"type": "object", "properties": {"n": {"type": "integer"}}, "required": ["n"]}


@pytest.mark.parametrize(
    ("kind", "argument", "value", "score"),
    [
        ("exact", "4", "4", 1), ("exact", 4, " 4. ", 1), ("exact", "Yes", "yes!", 1), ("exact", "正面", "正面。", 1),
        ("exact", "4", "14", 0), ("exact", "４", "4", 1), ("exact", {"a": 1}, {"a": 1.0}, 1),
        ("exact", {"a": 1}, {"a": True}, 0),
        ("exact", True, True, 1), ("exact", 1, True, 0), ("exact", [1], [1, 2], 0), ("exact", 5, 5, 1),
        ("regex", "^[a-c]+$", "abc", 1), ("regex", "^[a-c]+$", "abd", 0),
        ("schema", SCHEMA, {"n": 1}, 1), ("schema", SCHEMA, '{"n": 1}', 1), ("schema", SCHEMA, {"n": "1"}, 0),
        ("schema", SCHEMA, "no JSON", 0), ("schema", SCHEMA, {}, 0),
        ("likelihood", {"labels": ["a", "b"], "label": "a"}, {"a": -1.0, "b": -2.0}, 1),
        ("likelihood", {"labels": ["a", "b"], "label": "a"}, {"a": -3.0, "b": -2.0}, 0),
        ("likelihood", {"labels": ["a", "b"], "label": "a"}, {"a": -2.0, "b": -2.0}, 0.5),
    ],
)  # fmt: skip
def test_answers_are_scored(kind: Any, argument: Any, value: Any, score: float) -> None:
    assert SCORERS[kind](value, argument, case(**{kind: argument})) == score


def test_a_schema_is_never_fetched(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []
    monkeypatch.setattr("urllib.request.urlopen", lambda *arguments, **_: asked.append(arguments))
    with pytest.raises(InputError, match="refers to what is not in it"):
        SCORERS["schema"]({}, {"$ref": "http://127.0.0.1:9/schema.json"}, case())
    assert not asked


def test_a_function_of_the_user_scores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "scores_of_mine", types.ModuleType("scores_of_mine"))
    sys.modules["scores_of_mine"].rate = double_length  # type: ignore[attr-defined]
    its, name = case(function="scores_of_mine:rate"), "scores_of_mine:rate"
    assert SCORERS["function"]("good", name, its) == 1 and SCORERS["function"]("half", name, its) == 0.5
    with pytest.raises(InputError, match=r"returns for case one must be in \[0, 1\]"):
        SCORERS["function"]("more", name, its)
    with pytest.raises(InputError, match="failed on case one: ZeroDivisionError"):
        SCORERS["function"]("other", name, its)


def test_code_is_scored_by_its_tests(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []

    def run_tests(code: str, tests: str) -> SimpleNamespace:
        seen.append((code, tests))
        return SimpleNamespace(passed="a + b" in code)

    module = types.ModuleType("code_generator")
    module.run_tests = run_tests  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "gpt_text_generation.code_generator", module)
    its = template("code", "{{question}}", parser="code", begin="")
    fake = Fake(reply=lambda prompt, seed: f"```python\n{prompt}    return a {'+' if seed == 0 else '-'} b\n```")
    head = "def add(a, b):\n"
    (made,) = run_matrix([its], [fake], [case(question=head, code="assert add(1, 2) == 3")])
    assert made.score == 1 and seen == [(f"{head}    return a + b", "assert add(1, 2) == 3")]


# --- The matrix and its cache -----------------------------------------------------------------------------------------


def cases(count: int = 6) -> list[Case]:
    return [case(f"c{i}", f"{i} + {i}?", exact=str(2 * i)) for i in range(count)]


def test_an_answer_depends_on_nothing_but_its_own_question() -> None:
    templates = [template("one"), template("two", "{{question}}")]
    whole = run_matrix(templates, [Fake()], cases(), settings=DRAWING, repeats=3)
    assert [(its.template, its.case, its.repeat) for its in whole] == [
        (name, f"c{i}", repeat) for name in ("one", "two") for i in range(6) for repeat in range(3)
    ]
    for its in whole:
        number = int(its.case[1:])
        assert its.text == f"{its.prompt}|{7 + SEEDS_OF_A_REPEAT * its.repeat + number}"
    assert run_matrix(templates[1:], [Fake()], cases(), settings=DRAWING, repeats=3) == whole[18:]
    fake = Fake()
    run_matrix(templates, [fake], cases(), settings=DRAWING, repeats=3)
    assert sorted(set(fake.calls)) == [2, 4] and len(fake.asked) == 36, "batches of neighbors"


class Killed(Fake):
    """Is interrupted in its n-th call."""

    def __init__(self, calls: int) -> None:
        super().__init__()
        self.left = calls

    def generate(self, prompts: Sequence[str], settings: Settings) -> list[Generation]:
        if not self.left:
            raise KeyboardInterrupt
        self.left -= 1
        return super().generate(prompts, settings)


@pytest.mark.parametrize("calls", [0, 1, 3, 5])
def test_a_run_that_was_stopped_asks_nothing_twice(calls: int, tmp_path: Path) -> None:
    path = tmp_path / "new" / "answers.sqlite"
    templates = [template("one"), template("two", "{{question}}")]
    expected = run_matrix(templates, [Fake()], cases(), settings=DRAWING, repeats=2)
    first, second, third = Killed(calls), Fake(), Fake()
    with pytest.raises(KeyboardInterrupt):
        run_matrix(templates, [first], cases(), settings=DRAWING, repeats=2, cache=AnswerCache(path))
    assert run_matrix(templates, [second], cases(), settings=DRAWING, repeats=2, cache=AnswerCache(path)) == expected
    assert not set(first.asked) & set(second.asked)
    assert len(first.asked) + len(second.asked) == 24
    assert run_matrix(templates, [third], cases(), settings=DRAWING, repeats=2, cache=AnswerCache(path)) == expected
    assert not third.asked


def test_a_process_that_is_killed_leaves_a_whole_cache(tmp_path: Path) -> None:
    script = f"""
import os, runpy
its = runpy.run_path({str(Path(__file__))!r})
class Dies(its["Fake"]):
    def generate(self, prompts, settings):
        if len(self.calls) == 2:
            os._exit(9)
        return super().generate(prompts, settings)
its["run_matrix"]([its["template"]()], [Dies()], its["cases"](12), cache=its["AnswerCache"]("answers.sqlite"))
"""
    run = subprocess.run([sys.executable, "-c", script], cwd=tmp_path, env={**os.environ, "PYTHONPATH": str(ROOT)})
    assert run.returncode == 9
    fake = Fake()
    made = run_matrix([template()], [fake], cases(12), cache=AnswerCache(tmp_path / "answers.sqlite"))
    assert len(fake.asked) == 4 and made == run_matrix([template()], [Fake()], cases(12))


def test_all_that_decides_an_answer_is_in_its_key_and_nothing_else(tmp_path: Path) -> None:
    cache = AnswerCache(tmp_path / "answers.sqlite")
    first = {"templates": [template()], "cases": cases(1), "settings": DRAWING, "cache": cache}
    run_matrix(models=[Fake()], **first)

    def asked(model: Fake | None = None, **changed: Any) -> int:
        fake = model or Fake()
        run_matrix(models=[fake], **{**first, **changed})
        return len(fake.asked)

    assert asked() == 0
    assert asked(templates=[template("renamed", parser="number")]) == 0, "what is read out of it is no part of it"
    assert asked(cases=[case("renamed", "0 + 0?", regex="x")]) == 0
    assert asked(Fake("other")) == 1
    assert asked(templates=[template(prompt="{{question}}")]) == 1
    assert asked(templates=[template(stop=["x"])]) == 1
    assert asked(templates=[template(max_new_tokens=9)]) == 1
    assert asked(cases=[case("c0", "1 + 0?")]) == 1
    assert asked(settings=replace(DRAWING, temperature=0.5)) == 1
    assert asked(settings=replace(DRAWING, seed=8)) == 1
    assert asked(repeats=2) == 1
    sixteen_bits = Fake()
    sixteen_bits.language_model.model.dtype = "bfloat16"
    assert asked(sixteen_bits) == 1


def test_a_model_that_was_trained_anew_is_asked_anew(tmp_path: Path) -> None:
    weights = tmp_path / "model" / "model.safetensors"
    weights.parent.mkdir()
    weights.write_bytes(b"old")
    cache, asked = AnswerCache(), []
    for content in (b"old", b"new weights", b"new weights"):
        if weights.read_bytes() != content:
            weights.write_bytes(content)
        fake = Fake(str(weights.parent))
        run_matrix([template()], [fake], cases(1), cache=cache)
        asked.append(len(fake.asked))
    assert asked == [1, 1, 0]


def test_what_is_no_cache_is_told(tmp_path: Path) -> None:
    (tmp_path / "text").write_text("This is no database, and it is long enough to tell." * 30)
    with pytest.raises(InputError, match="can't be used as a cache"):
        AnswerCache(tmp_path / "text")


def test_equal_questions_and_repeats_without_chance_are_asked_once() -> None:
    fake = Fake()
    made = run_matrix([template()], [fake], [case("a"), case("b")], settings=Settings("greedy"), repeats=5)
    assert len(fake.asked) == 1 and len(made) == 2 and made[0].text == made[1].text


def test_labels_are_weighed_after_the_prompt() -> None:
    right = {"labels": ["longer", "yes"], "label": "longer"}
    fake = Fake()
    templates = [template("plain"), template("begun", begin='\n{"x": "', separator=""),
    template("line", "{{question}}\n"),
                 template("thought", conclusion="\nSo:")]  # fmt: skip
    made = run_matrix(templates, [fake], [case(likelihood=right)], settings=DRAWING)
    assert [its.value for its in made] == ["yes"] * 4 and [its.score for its in made] == [0] * 4
    assert fake.weighed == [
        (prompt, space + label)
        for prompt, space in [("Q: 2 + 2?\nA:", " "), ('Q: 2 + 2?\nA:\n{"x": "', ""), ("2 + 2?\n", ""),
                              ("Q: 2 + 2?\nA:Q: 2 + 2?\nA:|7\nSo:", " ")]
        for label in ("longer", "yes")
    ]  # fmt: skip
    assert len(fake.asked) == 1, "text is needed for the chain of thought alone"
    (per_byte,) = run_matrix(templates[:1], [Fake()], [case(likelihood=right)], per_byte=True)
    assert per_byte.weights == {"longer": -7 / 6, "yes": -4 / 3} and per_byte.score == 1
    both = case(exact="4", likelihood=right)
    assert run_matrix(templates[:1], [Fake(reply=lambda *_: "4")], [both])[0].scores == {"exact": 1, "likelihood": 0}
    (only,) = run_matrix(templates[:1], [Fake(reply=lambda *_: "4")], [both], kinds=["exact"])
    assert only.scores == {"exact": 1} and not only.weights


def test_a_prompt_that_is_too_long_costs_nobody_else() -> None:
    cache = AnswerCache()
    mixed = [case("a"), case("long", "x" * 90), case("b", "3 + 1?")]
    made = run_matrix([template()], [Fake(reply=lambda *_: "4", longest=50)], mixed, cache=cache)
    assert [its.score for its in made] == [1, 0, 1] and made[1].error == "The prompt has too many tokens."
    assert standings(made)[0].errors == 1
    again = Fake(reply=lambda *_: "4")
    assert [its.score for its in run_matrix([template()], [again], mixed, cache=cache)] == [1, 1, 1]
    assert len(again.asked) == 1, "an error is not kept"
    with pytest.raises(InputError, match="too many tokens"):
        run_matrix([template()], [Fake(longest=3)], mixed)


def test_what_does_not_fit_together_is_told_before_a_model_is_asked() -> None:
    fake = Fake()
    with pytest.raises(InputError, match="two needs other"):
        run_matrix([template(), template("two", "{{other}}")], [fake], cases())
    with pytest.raises(InputError, match="Case c0 has no score of the kinds regex"):
        run_matrix([template()], [fake], cases(), kinds=["regex"])
    with pytest.raises(InputError, match="repeats must be in"):
        run_matrix([template()], [fake], cases(), repeats=0)
    assert not fake.asked


def test_models_of_conversations_see_the_system_message_and_begin() -> None:
    class Talks(Fake):
        def chat(self, instruction: str, system: str = "") -> str:
            return f"<s>{system}</s><u>{instruction}</u>\n"

    its = template(system="Be brief.", begin="{")
    assert run_matrix([its], [Talks()], [case()])[0].text == "{<s>Be brief.</s><u>Q: 2 + 2?\nA:</u>\n{|0"
    assert its.fill({"question": "?"}).text(Fake()) == "Be brief.\n\nQ: ?\nA:{"  # type: ignore[arg-type]


# --- Statistics -------------------------------------------------------------------------------------------------------


def test_a_sign_flip_test_is_scipys() -> None:
    rng = np.random.default_rng(1)
    for size in (2, 4, 9, 13):
        d = rng.integers(-3, 5, size) / 4
        reference = stats.permutation_test((d,), np.sum, permutation_type="samples", n_resamples=np.inf)
        assert sign_flip_test(d) == pytest.approx(reference.pvalue)
    d = rng.normal(0.3, 1, 40)
    assert sign_flip_test(d, draws=20_000) == pytest.approx(
        stats.permutation_test((d,), np.mean, permutation_type="samples", n_resamples=20_000, rng=2).pvalue, abs=0.02
    )
    assert sign_flip_test(np.zeros(30)) == 1 and sign_flip_test([0.5]) == 1
    assert sign_flip_test(np.ones(40)) == pytest.approx(1 / 10_001)


def test_a_bootstrap_interval_is_scipys() -> None:
    values = np.random.default_rng(0).random(30)
    reference = stats.bootstrap((values,), np.mean, method="percentile", n_resamples=10_000, rng=1).confidence_interval
    assert mean_interval(values) == pytest.approx(tuple(reference), abs=0.01)
    assert mean_interval([0.25]) == (0.25, 0.25)


def test_without_a_difference_few_tests_find_one() -> None:
    rng = np.random.default_rng(3)
    p_values = [sign_flip_test(rng.choice([-1, 0, 1], 12)) for _ in range(400)]
    assert np.mean(np.array(p_values) <= 0.05) <= 0.07


def test_holms_correction_is_that_of_a_worked_example() -> None:
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([]) == []


@given(st.lists(st.floats(0, 1), min_size=1, max_size=12))
@settings(max_examples=50)
def test_holm_corrects_upward_and_keeps_the_order(p_values: list[float]) -> None:
    corrected = holm(p_values)
    assert all(p <= q <= min(1, len(p_values) * p) + 1e-12 for p, q in zip(p_values, corrected, strict=True))
    order = np.argsort(p_values, kind="stable")
    assert np.all(np.diff(np.array(corrected)[order]) >= 0)


def test_repeats_are_no_further_evidence() -> None:
    once = [
        answer(name, f"c{i}", float((i % 3 > 0) if name == "a" else (i % 3 > 1))) for name in "ab" for i in range(6)
    ]
    often = [replace(its, repeat=repeat) for its in once for repeat in range(50)]
    assert comparisons(once) == comparisons(often)
    assert [replace(its, kinds={}) for its in standings(once)] == [replace(its, kinds={}) for its in standings(often)]
    mixed = [answer("a", "c", score, repeat) for repeat, score in enumerate((1, 0, 0, 0))]
    assert per_case(mixed) == {("fake", "a"): {"c": 0.25}}


def test_templates_are_compared_in_pairs_within_a_model() -> None:
    scores = {"good": [1] * 8, "bad": [0] * 8, "mixed": [1, 0] * 4}
    answers = [answer(name, f"c{i}", score, model=model)
               for model in ("m", "n") for name, its in scores.items() for i, score in enumerate(its)]  # fmt: skip
    compared = comparisons(answers)
    assert len(compared) == 6 and {its.model for its in compared} == {"m", "n"}
    best = compared[0]
    assert (best.better, best.other, best.difference) == ("good", "bad", 1.0)
    assert best.p == pytest.approx(2 / 2**8) and best.p_holm == pytest.approx(6 * 2 / 2**8)
    assert all(its.difference >= 0 and its.p_holm >= its.p for its in compared)
    ranked = standings(answers)
    assert [(its.template, its.score) for its in ranked[::2]] == [("good", 1.0), ("mixed", 0.5), ("bad", 0.0)]
    assert all(its.low <= its.score <= its.high for its in ranked)


# --- Reports ----------------------------------------------------------------------------------------------------------

HOSTILE = "</pre><script>alert(1)</script><img src=http://evil.example/x onerror=alert(2)>\"'&\x00早"


class Reader(html.parser.HTMLParser):
    """Checks that tags are closed in order, and collects them with their attributes and the text."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str | None]] = []
        self.text = ""
        self.feed(page)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += attrs
        if tag not in ("meta", "br"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert tag == self.open.pop()

    def handle_data(self, data: str) -> None:
        self.text += data


def test_a_report_shows_hostile_text_as_text() -> None:
    templates = [template(HOSTILE), template("b")]
    its_cases = [Case(HOSTILE, {"question": HOSTILE}, {"exact": HOSTILE})]
    fake = Fake(HOSTILE, reply=lambda *_: HOSTILE)
    page = html_report(run_matrix(templates, [fake], its_cases), templates, its_cases, title=HOSTILE)
    read = Reader(page)
    assert not read.open and not set(read.tags) & {"script", "img", "link", "iframe"}
    assert not {name for name, _ in read.attributes} & {"src", "href", "onerror"}
    assert read.text.count("alert(1)") >= 8 and "http://evil" in read.text
    assert ("content", "default-src 'none'; style-src 'unsafe-inline'") in read.attributes


def test_the_best_template_is_on_top_and_every_answer_in_the_report() -> None:
    templates = [template("worst"), template("best"), template("middle")]
    scores = {"worst": [0, 0, 0], "best": [1, 1, 1], "middle": [1, 0, 1]}
    its_cases = cases(3)
    answers = [answer(name, f"c{i}", score, prompt=f"prompt {name} {i}", value=None if score == 0 else "v")
               for name, its in scores.items() for i, score in enumerate(its)]  # fmt: skip
    answers[0] = replace(answers[0], error="no room", weights={"yes": -1.5})
    page = html_report(answers, templates, its_cases)
    text = Reader(page).text
    assert text.index("best") < text.index("middle") < text.index("worst")
    assert page.count("<tr class=best>") == 1 and re.search(r"<tr class=best><td[^>]*>best<", page)
    assert all(f"prompt {name} {i}" in text for name in scores for i in range(3))
    assert "no room" in text and "yes -1.500" in text and "no answer found" in text
    assert page.count("<details>") == 3 + 9


def test_a_csv_report_can_be_read_back() -> None:
    answers = [
        answer("a", 'c,"1"\n', 0.5, text="=1+1\n早", value={"x": "早"}),
        answer("b", "c", 1, scores={"regex": 1.0}),
    ]
    rows = list(csv.DictReader(io.StringIO(csv_report(answers))))
    assert (
        rows[0]["case"] == 'c,"1"\n' and rows[0]["text"] == "'=1+1\n早" and json.loads(rows[0]["answer"]) == {"x": "早"}
    )
    assert (rows[0]["exact"], rows[0]["regex"], rows[1]["regex"]) == ("0.5", "", "1.0")


# --- Commands ---------------------------------------------------------------------------------------------------------


def run(*arguments: str) -> int:
    with pytest.raises(SystemExit) as end:
        commands = {"list": list_command, "show": show, "run": run_command}
        run_commands(commands, module=MODULE, argv=arguments, extra="generation")
    return int(end.value.code or 0)


@pytest.fixture
def fake_models(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Fake]:
    monkeypatch.chdir(tmp_path)
    made: dict[str, Fake] = {}

    def load(name: str, **_: Any) -> Fake:
        made[name] = Fake(name, reply=lambda prompt, seed: " positive" if "laughed" in prompt else " no idea")
        return made[name]

    monkeypatch.setattr(prompt_engineering, "TextGenerator", load)
    return made


def test_templates_are_listed_and_shown(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("list") == 0
    out = capsys.readouterr().out
    assert "sentiment-chain-of-thought-zh" in out and "builtin:sentiment" in out
    assert run("show", "--template", "sentiment-role-en", "--variables", '{"review": "A {{b}} 早"}') == 0
    out = capsys.readouterr().out
    assert out.startswith("--- system ---\nYou sort") and out.endswith("Review: A {{b}} 早\nSentiment:\n")
    for variables, message in [
        ('{"reviews": "x"}', "has no variable reviews"),
        ("x", "JSON object"),
        ('{"review": 1}', "of texts"),
    ]:
        assert run("show", "--template", "sentiment-role-en", "--variables", variables) == 2
        assert message in capsys.readouterr().err
    assert run("show", "--template", "nothing") == 2
    assert run("list", "--templates", "builtin:nothing") == 2


def test_a_run_leaves_a_report_and_figures_and_goes_on_from_its_cache(
    fake_models: dict[str, Fake], capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ("run", "--cases", "builtin:sentiment", "--models", "one,two", "--limit", "6", "--scores", "exact")
    assert run(*arguments, "--run", "first") == 0
    out = capsys.readouterr().out
    assert out.startswith("sentiment-few-shot-en") and "p (Holm)" in out
    asked = len(fake_models["one"].asked)
    assert asked == 30
    results = json.loads((RUNS / "first" / "results.json").read_text())
    metrics = results["metrics"]
    assert results["model"] == "one, two" and metrics["answers"] == 60 and metrics["cases"] == 6
    assert metrics["best_template"] == "sentiment-few-shot-en" and metrics["score_sentiment-few-shot-en_one"] == 0.5
    page = (RUNS / "first" / "report.html").read_text(encoding="utf-8")
    assert not Reader(page).open
    assert len((RUNS / "first" / "answers.csv").read_text(encoding="utf-8").split("\none,")) == 1 + 30
    assert run(*arguments, "--run", "second") == 0
    assert not fake_models["one"].asked and not fake_models["two"].asked
    again = json.loads((RUNS / "second" / "results.json").read_text())["metrics"]
    assert again == metrics


def test_a_run_that_is_interrupted_says_how_to_go_on(
    fake_models: dict[str, Fake], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(prompt_engineering, "TextGenerator", lambda name, **_: Killed(1))
    arguments = ("run", "--cases", "builtin:sentiment", "--scores", "exact", "--run", "same")
    assert run(*arguments) == 130
    assert "the same command goes on" in capsys.readouterr().err
    fake = Fake()
    monkeypatch.setattr(prompt_engineering, "TextGenerator", lambda name, **_: fake)
    assert run(*arguments) == 0
    assert len(fake.asked) == 5 * 24 - 4


def test_bad_input_is_one_line(
    fake_models: dict[str, Fake], capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    Path("mine.jsonl").write_text(
        '{"question": "1?", "scores": {"exact": "1"}}\n{"query": "2?", "scores": {"exact": "2"}}\n'
    )
    for arguments, status, message in [
        (("--cases", "mine.jsonl", "--templates", "builtin:arithmetic-zero-shot-en"), 2, "needs question"),
        (("--cases", "builtin:sentiment", "--templates", "builtin:arithmetic-zero-shot-en"), 2, "needs question"),
        (("--cases", "nothing.csv"), 1, "No such file"), (("--cases", "a/b"), 2, "no cases 'a/b'"),
        (("--repeats", "0"), 2, "repeats must be in"), (("--scores", "best"), 2, "scores"),
        (("--models", "a,a"), 2, "different"),
        (("--strategy", "nucleus", "--temperature", "0"), 2, "temperature"), (("--limit", "-1"), 2, "limit"),
        (("--templates", "nothing.yaml"), 2, "nothing.yaml"),
    ]:  # fmt: skip
        assert run("run", *arguments) == status, arguments
        err = capsys.readouterr().err
        assert message in err and "Traceback" not in err
    Path("other.jsonl").write_text('{"weather": "1?", "scores": {"exact": "1"}}')
    assert run("run", "--cases", "other.jsonl") == 2
    assert "No builtin template has the variables weather" in capsys.readouterr().err


@pytest.mark.skipif(not STORIES.exists(), reason="the data folder has no pretrained model")
def test_a_pretrained_model_runs_the_matrix_and_is_not_asked_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    arguments = ("run", "--models", str(STORIES), "--cases", "builtin:sentiment", "--limit", "4",
    "--strategy", "nucleus",
                 "--repeats", "2", "--device", "cpu",
                 "--templates", "builtin:sentiment-zero-shot-en,builtin:sentiment-structured-en")  # fmt: skip
    assert run(*arguments, "--run", "first") == 0
    from gpt_text_generation.text_generator import TextGenerator

    def refuse(*_: Any, **__: Any) -> None:
        raise AssertionError("asked again")

    monkeypatch.setattr(TextGenerator, "generate", refuse)
    monkeypatch.setattr(TextGenerator, "log_likelihoods", refuse)
    assert run(*arguments, "--run", "second") == 0
    first, second = (json.loads((RUNS / name / "results.json").read_text())["metrics"] for name in ("first", "second"))
    assert first == second and first["errors"] == 0


def test_a_question_is_asked_with_its_neighbors_only_where_seeds_follow() -> None:
    one, next_, later = (Question("p", replace(DRAWING, seed=seed)) for seed in (1, 2, 4))
    assert next_.follows(one) and not later.follows(next_) and not one.follows(one)
    greedy = Question("p", Settings("greedy"))
    assert greedy.follows(greedy) and Question("p", labels=("a",)).follows(Question("q", labels=("b", "c")))
    assert not greedy.follows(Question("p", labels=("a",)))
