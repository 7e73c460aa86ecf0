"""Solutions pass their tests and wrong ones fail, held-out compositions are new, and descriptions mean one thing."""

import ast
import builtins
import hashlib
import itertools
import keyword
import os
import random
import re
import subprocess
import sys
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gpt_text_generation.builtin import python_tasks
from gpt_text_generation.builtin.python_tasks import (
    BOOL,
    CONSTANTS,
    MODULE,
    OPERATIONS,
    PAIR,
    SIZE,
    Kind,
    Operation,
    Step,
    Task,
    compose,
    document,
    humaneval_rows,
    is_worth_asking,
    mutants,
    random_arguments,
    random_step,
    random_steps,
    run_steps,
    split_of,
    tasks,
)
from shared.config import run_commands
from shared.errors import InputError

EACH = pytest.mark.parametrize("operation", OPERATIONS.values(), ids=lambda operation: operation.name)


@pytest.fixture(scope="module")
def made() -> dict[str, list[Task]]:
    """Return tasks of each split."""
    return {split: list(tasks(split, 250, seed=1)) for split in ("train", "validation", "test")}  # type: ignore[arg-type]


def passes(code: str, task: Task) -> bool:
    """Whether a function passes the tests of a task."""
    scope: dict[str, Any] = {}
    exec(code + task.tests, scope)
    try:
        scope["check"](scope[task.entry_point])
    except Exception:
        return False
    return True


def fits(value: Any, kind: Kind) -> bool:
    """Whether a value is of a type, down to its items."""
    item = {"list[int]": int, "list[str]": str}.get(kind.annotation)
    if item:
        return type(value) is list and all(type(one) is item for one in value)
    if kind.annotation == "dict[str, int]":
        return type(value) is dict and all(type(k) is str and type(v) is int for k, v in value.items())
    return type(value).__name__ == kind.annotation


# --- Solutions and tests ----------------------------------------------------------------------------------------------


def test_every_solution_passes_its_tests(made: dict[str, list[Task]]) -> None:
    for task in [*made["train"][:120], *made["validation"][:60], *made["test"]]:
        assert passes(document(task), task), document(task)
        assert not passes(task.prompt + "    pass\n", task)
        assert not passes(task.prompt + "    raise ValueError\n", task)
        assert 4 <= task.tests.count("assert") <= 25


def test_a_wrong_step_fails_the_tests(made: dict[str, list[Task]]) -> None:
    """Mutants are new ones, with other constants than those by which the tests were chosen."""
    killed = seen = 0
    for number, task in enumerate(made["test"][:40]):
        rng = random.Random(number)
        inputs = [random_arguments(task.steps[0].operation.takes, task.steps, rng) for _ in range(40)]
        right = [repr(run_steps(task.steps, one)) for one in inputs]
        for mutant in mutants(task.steps, rng):
            differs = sum(repr(run_steps(mutant, one)) != output for one, output in zip(inputs, right, strict=True))
            if differs >= 4:
                wrong = compose(mutant, rng)
                code = re.sub(r"def \w+\(", f"def {task.entry_point}(", document(wrong), count=1)
                seen += 1
                killed += not passes(code, task)
    assert seen > 400
    assert killed / seen > 0.995


def test_tests_have_the_edge_cases() -> None:
    steps = [Step(OPERATIONS["keep_even"]), Step(OPERATIONS["total"])]
    assert "candidate([]) == 0" in compose(steps).tests
    assert "candidate('') == ''" in compose([Step(OPERATIONS["reverse_text"])]).tests
    assert "candidate({}) == 0" in compose([Step(OPERATIONS["total_value"])]).tests


def test_the_issue_s_example_is_one_statement_a_step() -> None:
    steps = [Step(OPERATIONS[name]) for name in ("keep_even", "square_each", "total")]
    task = compose(steps, random.Random(3))
    lines = task.solution.splitlines()
    variable = lines[0].split()[0]
    assert lines == [
        f"    {variable} = [x for x in {variable} if x % 2 == 0]", f"    {variable} = [x ** 2 for x in {variable}]",
        f"    return sum({variable})",
    ]  # fmt: skip
    said = {compose(steps, random.Random(seed)).description for seed in range(200)}
    assert len(said) > 60
    assert "Return the sum of the squares of the even ones among the numbers." in said


def test_rows_are_those_of_humaneval(made: dict[str, list[Task]]) -> None:
    rows = list(humaneval_rows("test", 20, seed=1))
    assert [row["prompt"] for row in rows] == [task.prompt for task in made["test"][:20]]
    for row in rows:
        assert row.keys() == {"task_id", "prompt", "entry_point", "canonical_solution", "test"}
        program = f"{row['prompt']}{row['canonical_solution']}\n{row['test']}\ncheck({row['entry_point']})"
        exec(program, {})
    assert len({row["task_id"] for row in rows}) == 20


# --- Splits -----------------------------------------------------------------------------------------------------------


def test_compositions_of_the_splits_are_disjoint(made: dict[str, list[Task]]) -> None:
    found = {split: {task.composition for task in its} for split, its in made.items()}
    for split, compositions in found.items():
        assert all(split_of(one) == split for one in compositions)
    assert not found["test"] & found["train"] and not found["test"] & found["validation"]
    assert {len(one) for one in found["test"]} == {2, 3}
    assert len(found["test"]) > 180  # of 300: few compositions are tested more than twice


def test_an_order_of_operations_is_a_composition_of_its_own() -> None:
    names = [name for name, operation in OPERATIONS.items() if operation.takes is operation.gives]
    splits = [(split_of((a, b)), split_of((b, a))) for a, b in itertools.combinations(names, 2)]
    assert any(one != other for one, other in splits)
    assert all(split_of((name,)) == "train" for name in OPERATIONS)


def test_a_tenth_of_compositions_is_tested() -> None:
    rng = random.Random(0)
    compositions = {tuple(step.operation.name for step in random_steps(rng.choice((2, 3)), rng)) for _ in range(4000)}
    shares = [split_of(one) for one in compositions]
    assert shares.count("test") / len(shares) == pytest.approx(0.1, abs=0.02)
    assert shares.count("validation") / len(shares) == pytest.approx(0.1, abs=0.02)


def test_every_operation_is_learned_alone_and_in_company() -> None:
    rng = random.Random(0)
    together = {name for _ in range(6000) for name in _names(random_steps(rng.choice((2, 3)), rng))}
    assert together == set(OPERATIONS) - {"is_prime"}  # takes what nothing gives, gives what nothing takes
    singles = {random_steps(1, rng)[0].operation.name for _ in range(4000)}
    assert singles == set(OPERATIONS)


def _names(steps: list[Step]) -> list[str]:
    return [step.operation.name for step in steps]


@EACH
def test_every_operation_is_worth_asking_alone(operation: Operation) -> None:
    rng = random.Random(operation.name)
    assert sum(is_worth_asking([random_step(operation, rng)]) for _ in range(12)) >= 3


def test_the_same_seed_makes_the_same_tasks_in_every_process(made: dict[str, list[Task]]) -> None:
    code = (
        "import hashlib; from gpt_text_generation.builtin.python_tasks import document, tasks\n"
        "text = ''.join(document(task) + task.tests for task in tasks('test', 12, 1))\n"
        "print(hashlib.sha256(text.encode()).hexdigest())"
    )
    here = "".join(document(task) + task.tests for task in made["test"][:12])
    for hash_seed in ("1", "2"):
        environment = os.environ | {"PYTHONHASHSEED": hash_seed}
        done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
        assert done.stdout.strip() == hashlib.sha256(here.encode()).hexdigest()
    assert [task.prompt for task in tasks("test", 12, 2)] != [task.prompt for task in made["test"][:12]]


# --- Operations -------------------------------------------------------------------------------------------------------


@EACH
def test_an_operation_gives_its_type_for_every_input(operation: Operation) -> None:
    rng = random.Random(operation.name)
    for _ in range(60):
        steps = [random_step(operation, rng)]
        arguments = random_arguments(operation.takes, steps, rng)
        assert fits(run_steps(steps, arguments), operation.gives), (steps, arguments)


@given(seed=st.integers(0, 10**6), length=st.integers(2, 3))
@settings(max_examples=150, deadline=None, derandomize=True)
def test_operations_take_what_others_give(seed: int, length: int) -> None:
    rng = random.Random(seed)
    steps = random_steps(length, rng)
    for _ in range(5):
        arguments = random_arguments(steps[0].operation.takes, steps, rng)
        assert fits(run_steps(steps, arguments), steps[-1].operation.gives)


@EACH
def test_phrases_name_every_constant_and_begin_with_their_own_words(operation: Operation) -> None:
    phrases = {"it": operation.do.split(" | "), "x": operation.of.split(" | ")}
    for name, ways in phrases.items():
        assert len(set(ways)) == len(ways)
        for way in ways:
            placeholders = re.findall(r"\$(\w+)", way)
            assert sorted(set(placeholders) - {name}) == sorted(operation.constants)
            assert placeholders.count(name) <= 1
            assert not way.startswith("$x")
            assert way == way.strip() and not way.endswith(".")
            if name == "x":
                assert "x" in placeholders or operation.takes in (PAIR, SIZE)
                assert operation.gives is not BOOL or way.startswith("whether ")


def test_no_phrase_asks_for_two_operations_of_one_type() -> None:
    seen: dict[tuple[str, str], str] = {}
    for operation in OPERATIONS.values():
        for way in (operation.do + " | " + operation.of).split(" | "):
            key = operation.takes.annotation + str(operation.takes is PAIR), way
            assert seen.setdefault(key, operation.name) == operation.name, way


def test_a_description_means_one_thing() -> None:
    """Of three thousand tasks no two are described alike and solved otherwise."""
    meanings: dict[tuple[str, str], list[str]] = {}
    for task in tasks("train", 3000, seed=3):
        steps = task.steps
        key = task.description, steps[0].operation.takes.annotation
        code = ["; ".join(step.lines("v")) for step in steps]
        assert meanings.setdefault(key, code) == code


def test_constants_are_copied_from_the_description_to_the_code(made: dict[str, list[Task]]) -> None:
    there = 0
    for task in [*made["train"], *made["test"]]:
        for step in task.steps:
            for said, code in step.constants:
                assert said in task.description
                assert code in task.solution
                there += 1
    assert there > 150


# --- Form -------------------------------------------------------------------------------------------------------------


def test_a_task_is_a_function_with_types_and_docstring(made: dict[str, list[Task]]) -> None:
    for task in [*made["train"], *made["test"]]:
        (function,) = ast.parse(document(task)).body
        assert isinstance(function, ast.FunctionDef)
        assert ast.get_docstring(function) == task.description
        assert function.name == task.entry_point
        assert function.returns is not None
        assert ast.unparse(function.returns) == task.steps[-1].operation.gives.annotation
        annotations = {ast.unparse(a.annotation) for a in function.args.args if a.annotation}
        assert annotations == {task.steps[0].operation.takes.annotation}
        assert not hasattr(builtins, task.entry_point) and not keyword.iskeyword(task.entry_point)
        assert task.entry_point not in {a.arg for a in function.args.args}
        assert task.prompt.endswith('"""\n') and task.solution.endswith("\n")
        assert document(task) == task.prompt + task.solution
        assert task.description[0].isupper() and task.description.endswith(".") and "$" not in task.description
        assert len(document(task)) < 620


def test_documents_fit_a_small_context(made: dict[str, list[Task]]) -> None:
    tokenizers = pytest.importorskip("tokenizers")
    bpe = tokenizers.Tokenizer(tokenizers.models.BPE())
    bpe.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    alphabet = tokenizers.pre_tokenizers.ByteLevel.alphabet()
    trainer = tokenizers.trainers.BpeTrainer(vocab_size=1024, show_progress=False, initial_alphabet=alphabet)
    texts = [document(task) for task in made["train"]]
    bpe.train_from_iterator(texts, trainer)
    assert max(len(bpe.encode(document(task)).ids) for task in made["test"]) <= 200


def test_constants_are_told_apart() -> None:
    for name, values in CONSTANTS.items():
        said, code = zip(*values, strict=True)
        assert len(set(said)) == len(said) and len(set(code)) == len(code), name


# --- Bad input --------------------------------------------------------------------------------------------------------


def test_steps_whose_types_do_not_agree_are_refused() -> None:
    with pytest.raises(InputError, match="total must take what reverse_text gives. It gives str"):
        compose([Step(OPERATIONS["reverse_text"]), Step(OPERATIONS["total"])])
    with pytest.raises(InputError, match="a step at least"):
        compose([])


def test_unknown_splits_and_negative_counts_are_refused() -> None:
    with pytest.raises(InputError, match="split must be one of train, validation, test. Got 'dev'"):
        tasks("dev", 1)  # type: ignore[arg-type]
    with pytest.raises(InputError, match=r"count must be in \[0, inf\). Got -1"):
        tasks("train", -1)
    assert list(tasks("train", 0)) == []


def test_show_prints_tasks(capsys: pytest.CaptureFixture[str]) -> None:
    commands = {"show": python_tasks.show}
    with pytest.raises(SystemExit) as done:
        run_commands(commands, module=MODULE, argv=["show", "--split", "test", "--count", "2"])
    assert done.value.code == 0
    printed = capsys.readouterr().out
    assert printed.count("def check(candidate):") == 2
    with pytest.raises(SystemExit) as failed:
        run_commands(commands, module=MODULE, argv=["show", "--count", "0"])
    assert failed.value.code == 2
