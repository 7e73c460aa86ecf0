"""The sandbox holds what attacks it, judges what passes, and pass@k is what its definition says.

Attacks on the machine run with all layers and without namespaces, as where those are forbidden.
"""

import ast
import functools
import gzip
import importlib.util
import itertools
import json
import math
import os
import re
import shutil
import signal
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from fractions import Fraction
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gpt_text_generation import code_generator as module
from gpt_text_generation.code_generator import (
    LAYERS,
    MODULE,
    CodeGenerator,
    Limits,
    Problem,
    evaluate,
    extract_code,
    format_code,
    generate,
    load_problems,
    make_problem,
    missing_protection,
    pass_at_k,
    pass_at_k_of,
    plant_bug,
    read_problems,
    run_command,
    run_tests,
    syntax_error,
)
from gpt_text_generation.text_generator import Generation, Settings
from shared.config import run_commands
from shared.errors import InputError

ROOT = Path(__file__).parents[2]
HUMAN_EVAL = ROOT / os.environ.get("ROADMAP_DATA", "../shared/data") / "code" / "HumanEval.jsonl.gz"


def load_attacks() -> ModuleType:
    """Import what the benchmark runs too: importlib's mode lets no test import its neighbours by name."""
    path = Path(__file__).with_name("sandbox_attacks.py")
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec and spec.loader
    loaded = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(loaded)
    return loaded


attacks = load_attacks()
SQUARE, WAYS, sections, children = attacks.SQUARE, attacks.WAYS, attacks.sections, attacks.children
here = pytest.mark.skipif(not WAYS, reason="there is no sandbox on this machine")

# --- Attacks on the machine -------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def host(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    with attacks.hosting(tmp_path_factory.mktemp("host")) as its:
        yield its


@here
@pytest.mark.parametrize("name", attacks.HARMS)
def test_an_attack_on_the_machine_does_not_come_through(name: str, host: Any) -> None:
    code, before = host.aimed(name), host.state()
    with ThreadPoolExecutor(2) as pool:
        verdicts = list(pool.map(lambda way: run_tests(code, attacks.ONCE, Limits(seconds=30), layers=way), WAYS))
    for verdict in verdicts:
        assert not verdict.passed, verdict
        assert verdict.status in ("failed", "limit", "crashed"), verdict  # it was tried, and failed
    assert host.state() == before


def test_the_same_attacks_come_through_where_there_are_no_layers(host: Any) -> None:
    """They are real: it is the layers that stop them. The harmless ones only."""
    run = functools.partial(run_tests, tests=attacks.ONCE, layers=(), allow_unprotected=True)
    with ThreadPoolExecutor(2) as pool:
        passed = [verdict.passed for verdict in pool.map(run, map(host.aimed, attacks.HARMLESS))]
    # Not every machine has IPv6, and not every user owns Python's library
    assert sum(passed) >= len(passed) - 4, dict(zip(attacks.HARMLESS, passed, strict=True))


# --- Forged results ---------------------------------------------------------------------------------------------------


@here
@pytest.mark.parametrize("name", attacks.FORGERIES)
def test_a_forged_result_does_not_pass(name: str) -> None:
    code, tests = attacks.FORGERIES[name]
    before = children()
    verdict = run_tests(code, tests, Limits(seconds=1.5))
    assert verdict.status in ("failed", "error", "crashed", "syntax", "timeout"), verdict
    assert verdict.message and verdict.seconds < 5
    assert children() == before


@here
@pytest.mark.parametrize("name", attacks.ENDLESS)
def test_what_never_ends_is_ended(name: str) -> None:
    code, status = attacks.ENDLESS[name]
    before = children()
    verdict = run_tests(code, SQUARE, Limits(seconds=0.6 if status.strip() == "timeout" else 30))
    assert verdict.status == status.strip() and len(verdict.output) <= 64 << 10
    assert verdict.seconds < 5 and children() == before


@here
def test_nothing_is_left_when_the_one_who_asked_is_gone(tmp_path: Path) -> None:
    (tmp_path / "asks.py").write_text(
        "from gpt_text_generation.code_generator import *\nprotections()\nprint('now', flush=True)\n"
        "run_tests('import time\\ntime.sleep(60)', 'assert f(3)', Limits(seconds=60))\n"
    )
    asking = subprocess.Popen([sys.executable, str(tmp_path / "asks.py")], stdout=subprocess.PIPE, cwd=tmp_path,
                              env={**os.environ, "PYTHONPATH": str(ROOT), "TMPDIR": str(tmp_path)})  # fmt: skip
    assert asking.stdout and asking.stdout.readline() == b"now\n"
    inside: list[int] = []
    deadline = time.monotonic() + 20
    while len(inside) < 2 and time.monotonic() < deadline:
        inside = [pid for pid in running() if parent_of(pid) == asking.pid]
    asking.kill()
    asking.wait()
    assert len(inside) == 2
    while any(pid in running() for pid in inside) and time.monotonic() < deadline:
        time.sleep(0.02)
    assert not any(pid in running() for pid in inside)


def running() -> list[int]:
    return [int(path.name) for path in Path("/proc").glob("[0-9]*") if parent_of(int(path.name)) is not None]


def parent_of(pid: int) -> int | None:
    """Return the parent of a process that is no zombie."""
    try:
        state, parent = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[:2]
    except OSError:
        return None
    return None if state == "Z" else int(parent)


@here
def test_an_interrupt_leaves_no_process_and_no_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    before = children()
    # A shell starts what it runs in the background with the signal ignored
    earlier = signal.signal(signal.SIGINT, signal.default_int_handler)
    timer = threading.Timer(0.4, os.kill, [os.getpid(), signal.SIGINT])
    timer.start()
    try:
        with pytest.raises(KeyboardInterrupt):
            run_tests("while True:\n    pass", SQUARE, Limits(seconds=20))
    finally:
        signal.signal(signal.SIGINT, earlier)
    assert children() == before and not list(tmp_path.iterdir())


@here
def test_programs_that_run_at_once_do_not_meet() -> None:
    code = (
        "import os, time\ndef f(x):\n    open('mine', 'x').write(str(x))\n    time.sleep(0.1)\n"
        "    return int(open('mine').read())"
    )
    with ThreadPoolExecutor(4) as pool:
        verdicts = list(pool.map(lambda i: run_tests(code, f"assert f({i}) == {i}"), range(8)))
    assert all(verdict.passed for verdict in verdicts), verdicts


# --- Right programs ---------------------------------------------------------------------------------------------------

RIGHT = sections(r"""
=== all kinds of data
def f(x):
    return x
---
for value in (None, True, 0, -1, 1 << 70, -(1 << 9000), 0.1, -0.0, float("inf"), 1e-320, "",
              "ü早\ud800\0", b"\xff", 1j,
              (), (1,), [], [[1, "a"], (2.5,)], {}, {1: "a", (1, 2): [3]}, {1, 2}, frozenset("ab"), range(3, 9, 2),
              bytearray(b"x"), [None, [None]], {"list": ["list", 1]}, ["object", 0], [True, 1, 1.0]):
    found = f(value)
    assert found == value and type(found) is type(value) and repr(found) == repr(value), value
assert f(float("nan")) != f(float("nan"))
from fractions import Fraction
from decimal import Decimal
from datetime import date, datetime, timedelta, timezone
for value in (Fraction(1, 3), Decimal("0.10"), date(2024, 2, 29), datetime(2024, 1, 2, 3, 4, 5, 6),
              timedelta(1, 2, 3), datetime(2024, 1, 2, tzinfo=timezone.utc)):
    assert f(value) == value and type(f(value)) is type(value)
=== keywords and defaults
def f(a, *more, b=2, **rest):
    return [a, more, b, rest]
---
assert f(1) == [1, (), 2, {}]
assert f(1, 5, b=3, c=4) == [1, (5,), 3, {'c': 4}]
=== subclasses of data
from collections import Counter, OrderedDict, namedtuple
P = namedtuple('P', 'x y')
def f(x):
    return [Counter(x), OrderedDict(a=1), P(1, 2), True]
---
assert f('aab') == [{'a': 2, 'b': 1}, {'a': 1}, (1, 2), True]
=== arguments that are changed
def f(x, d, s, b):
    x.sort()
    x[0] = [0]
    d['k'] = 1
    s.discard(1)
    b.append(1)
---
x, d, s, b = [3, 1, 2], {}, {1, 2}, bytearray()
assert f(x, d, s, b) is None
assert (x, d, s, b) == ([[0], 2, 3], {'k': 1}, {2}, bytearray([1]))
=== exceptions
class Empty(LookupError):
    pass
def f(x):
    if x == 0:
        raise Empty('nothing')
    if x == 1:
        raise ValueError('one', 1)
    return {}[x]
---
try:
    f(0)
    raise RuntimeError
except Empty as error:
    assert isinstance(error, LookupError) and str(error) == "nothing"
for x, kind, arguments in ((1, ValueError, ("one", 1)), (2, KeyError, (2,)), (0, LookupError, ("nothing",))):
    try:
        f(x)
    except kind as error:
        assert error.args == arguments
    else:
        assert False
=== names that the sandbox has too
def f(self, operation, function=None, **keywords):
    return self, operation, function(2), keywords
---
assert f(self=1, operation='add', function=lambda x: x + 1, name=4) == (1, 'add', 3, {'name': 4})
=== generators
def f(x):
    for i in range(x):
        yield i
def g(rows):
    return sum(rows)
---
assert list(f(3)) == [0, 1, 2] and next(f(1)) == 0 and sum(f(4)) == 6 and 2 in f(3)
assert g(i for i in range(4)) == 6 and g(f(4)) == 6
=== functions
def f(n):
    return lambda x: x + n
def apply(g, xs):
    return [g(x) for x in xs]
---
assert f(2)(3) == 5
assert apply(lambda x: x * 2, [1, 2]) == [2, 4]
assert apply(f(1), [1]) == [2]
assert apply(str.upper, ['a']) == ['A']
seen = []
apply(seen.append, [1, 2])
assert seen == [1, 2]
=== an exception of the tests' function
def f(g):
    try:
        g()
    except ValueError as error:
        return str(error)
---
def g():
    raise ValueError('no')
assert f(g) == 'no'
=== a class
class Stack:
    size = 0
    def __init__(self, items=()):
        self.items = list(items)
    def push(self, x):
        self.items.append(x)
        return self
    def pop(self):
        return self.items.pop()
    def __len__(self):
        return len(self.items)
    def __eq__(self, other):
        return self.items == other.items
    def __add__(self, other):
        return Stack(self.items + other.items)
    def __getitem__(self, i):
        return self.items[i]
    @classmethod
    def of(cls, *items):
        return cls(items)
    def __repr__(self):
        return f'Stack({self.items})'
---
stack = Stack()
assert stack.push(1).push(2).pop() == 2 and len(stack) == 1 and stack and stack.items == [1]
assert Stack.of(1, 2) == Stack([1]) + Stack([2]) and Stack([1]) != Stack([2]) and Stack.size == 0
assert repr(Stack([1])) == "Stack([1])" and Stack([5])[0] == 5
assert list(Stack([1, 2])) == [1, 2] and isinstance(stack, Stack)
stack.items = [7]
assert stack.pop() == 7 and not stack
try:
    stack.pop()
    assert False
except IndexError:
    pass
=== linked objects
class Node:
    def __init__(self, value, next=None):
        self.value, self.next = value, next
def reverse(node):
    last = None
    while node:
        node.next, last, node = last, node, node.next
    return last
def build(values):
    node = None
    for value in values[::-1]:
        node = Node(value, node)
    return node
---
head = Node(1, Node(2))
last = reverse(head)
assert last.value == 2 and last.next.value == 1 and last.next.next is None and build([4, 5]).next.value == 5
=== functions named test
def f(x):
    return x + 1
---
calls = []
def test_one():
    assert f(1) == 2
    calls.append(1)
def test_two():
    assert calls == [1]
=== unittest
def f(x):
    return x + 1
---
import unittest
class FTest(unittest.TestCase):
    def test_f(self):
        self.assertEqual(f(1), 2)
if __name__ == '__main__':
    unittest.main()
=== imports of the code
def f(x):
    return x + 1
LIMIT = 3
---
from solution import f, LIMIT
import my.answer as a
assert f(1) == 2 and LIMIT == 3 and a.f(2) == 3
=== libraries that nobody imported
def f(x):
    return x / 3
---
assert math.isclose(f(1.0), 1 / 3)
=== a name of the library
def bisect(x):
    return x // 2
---
assert bisect(4) == 2
=== most of the standard library
import abc, argparse, array, ast, asyncio, bisect, calendar, cmath, collections.abc, concurrent.futures, \
       contextlib, copy, csv, dataclasses, datetime, decimal, difflib, enum, fractions, functools, hashlib, heapq, \
       hmac, html, io, itertools, json, logging, math, operator, os.path, pathlib, pickle, pprint, queue, random, re, \
       secrets, shutil, sqlite3, statistics, string, struct, subprocess, tempfile, textwrap, threading, time, timeit, \
       traceback, types, typing, unicodedata, urllib.parse, uuid, weakref, xml.etree.ElementTree, zlib, zoneinfo
def f(x):
    return hashlib.sha256(x).hexdigest()[:4], str(zoneinfo.ZoneInfo('UTC')), random.Random(1).random()
---
import hashlib
assert f(b'x')[:2] == (hashlib.sha256(b'x').hexdigest()[:4], 'UTC')
=== coroutines
import asyncio
async def g(x):
    await asyncio.sleep(0.01)
    return x + 1
def f(x):
    return asyncio.run(g(x))
---
assert f(1) == 2
=== some threads
from concurrent.futures import ThreadPoolExecutor
def f(xs, g=abs):
    with ThreadPoolExecutor(4) as pool:
        return list(pool.map(g, xs))
---
assert f([-1, 2]) == [1, 2]
assert f(list(range(100)), lambda x: x + 1) == list(range(1, 101))
=== its own folder
import os, tempfile, pathlib
def f(text):
    pathlib.Path('a.txt').write_text(text)
    with tempfile.NamedTemporaryFile('w+') as file:
        file.write(text)
        file.seek(0)
        return file.read() + pathlib.Path('a.txt').read_text(), os.listdir()
---
assert f('x') == ('xx', ['a.txt']) or sorted(f('x')[1])[0] == 'a.txt'
=== a data class
from __future__ import annotations
from dataclasses import dataclass
@dataclass(order=True)
class Money:
    amount: int = 0
---
assert Money(3) == Money(3) < Money(4) and Money(3).amount == 3
=== a signal to itself
import signal
hits = []
signal.signal(signal.SIGUSR1, lambda *a: hits.append(1))
def f(x):
    signal.raise_signal(signal.SIGUSR1)
    return len(hits)
---
assert f(0) == 1
=== the end of input
def f(x):
    try:
        return input()
    except EOFError:
        return 'end'
---
assert f(0) == 'end'
=== recursion of some depth
def f(n):
    return 0 if n == 0 else 1 + f(n - 1)
---
assert f(800) == 800
=== many calls
def f(x):
    return x * x + 1
---
for i in range(3000):
    assert f(i) == i * i + 1
=== a large argument
def f(x):
    return len(x)
---
assert f('x' * 3_000_000) == 3_000_000
""")


@here
def test_right_programs_pass() -> None:
    """Coroutines, threads and folders of temporary files among them, where the layers leave them."""
    jobs = [(name, way) for way in WAYS for name in RIGHT if "namespaces" in way or name != "some threads"]
    with ThreadPoolExecutor(2) as pool:
        verdicts = list(pool.map(lambda job: run_tests(*RIGHT[job[0]], Limits(seconds=30), layers=job[1]), jobs))
    assert {job: verdict for job, verdict in zip(jobs, verdicts, strict=True) if not verdict.passed} == {}


# Tests and what is said of them
WRONG = sections(r"""
=== failed
assert f(2) == 5
---
AssertionError
in the tests, line 1: assert f(2) == 5
f(2) → 6
=== failed in a long statement
x = 2

assert (
    f(x)
    == 5), 'five'
---
AssertionError: five
in the tests, line 3: assert (
    f(x)
    == 5), 'five'
f(2) → 6
=== error of the call
assert f('a', b=1) == 5
---
TypeError: f() got an unexpected keyword argument 'b'
in the tests, line 1: assert f('a', b=1) == 5
f('a', b=1) → 'TypeError'
=== error of the code
assert f(None) == 5
---
TypeError: unsupported operand type(s) for *: 'NoneType' and 'int'
in the tests, line 1: assert f(None) == 5
in the code, line 4: return x * 3
f(None) → 'TypeError'
=== error of a name
assert g(1) == 5
---
NameError: name 'g' is not defined
in the tests, line 1: assert g(1) == 5
=== error of an argument
assert f({1: object()}) == 1
---
TypeError: the tests can't hand over a object: only data, functions and iterators
in the tests, line 1: assert f({1: object()}) == 1
=== failed in the second function
def test_a():
    assert f(1) == 3
def test_b():
    assert f(1) == 4
---
AssertionError
in the tests, line 4: assert f(1) == 4
f(1) → 3
=== error of tests that nobody calls
async def test_f():
    assert f(1) == 4
---
RuntimeError: the tests used nothing of the code
=== error that is an early end
import sys
assert f(1) == 3
sys.exit(0)
---
SystemExit: 0
in the tests, line 3: sys.exit(0)
f(1) → 3
""")


@here
@pytest.mark.parametrize("name", WRONG)
def test_a_verdict_tells_what_is_wrong(name: str) -> None:
    tests, message = WRONG[name]
    verdict = run_tests("\n\ndef f(x):\n    return x * 3\n", tests)
    assert (verdict.status, verdict.message) == (name.split()[0], message.strip())


KINDS = st.sampled_from([
    "list", "tuple", "set", "dict", "int", "bytes", "complex", "range", "new", "exception", "yours", "object", "value",
    "error", "ask", "call", "next", "fractions", "Fraction", "ValueError", "StopIteration", "type", "os", "system",
])  # fmt: skip
MESSAGES = st.recursive(
    st.none() | st.booleans() | st.integers(-2, 3) | st.floats() | KINDS,
    lambda inner: st.lists(inner, max_size=4) | st.tuples(KINDS, inner) | st.dictionaries(KINDS, inner, max_size=2),
    max_leaves=12,
)
DATA = (type(None), bool, int, float, complex, str, bytes, list, tuple, set, frozenset, dict, range, Fraction)


REPLIES = (
    st.tuples(st.just("value"), MESSAGES, st.just([]))
    | st.tuples(st.just("error"), st.lists(KINDS, max_size=3), st.lists(MESSAGES, max_size=2), st.just([1]))
    | st.tuples(st.just("ask"), KINDS, st.lists(MESSAGES, max_size=3), st.just({}))
)


@given(st.lists(REPLIES | MESSAGES, max_size=3))
def test_whatever_the_code_sends_becomes_data_a_stand_in_or_an_error(messages: list[Any]) -> None:
    reader, writer = os.pipe()
    operations = {"call": lambda function, *arguments: function(*arguments), "iter": iter, "next": next}
    peer = module.Peer(reader, os.open(os.devnull, os.O_WRONLY), operations, 1 << 16)
    os.write(writer, "".join(json.dumps(message) + "\n" for message in messages).encode())
    os.close(writer)
    with peer.reader, peer.writer:
        try:
            value = peer.ask("call", module.Remote(peer, 0, "function", "f", False), [3], len)
        except module.Broken:
            assert peer.broken
        except BaseException as error:
            assert error.code_name  # type: ignore[attr-defined]
        else:
            assert isinstance(value, (*DATA, module.Remote)) or issubclass(value, BaseException), value


@here
def test_what_is_printed_is_kept_and_can_not_move_a_terminal() -> None:
    verdict = run_tests("def f(x):\n    print('\\x1b[2J早\\x07', x)\n    return x", "print('tests')\nassert f(3) == 3")
    assert verdict.passed and sorted(verdict.output.split("\n")) == ["", "\\x1b[2J早\\x07 3", "tests"]
    failed = run_tests("def f(x):\n    raise ValueError('\\x1b[2J')", "assert f(3) == 3")
    assert failed.message.startswith("ValueError: \\x1b[2J\n")


@here
def test_the_same_program_gets_the_same_verdict() -> None:
    code = "def f(x):\n    return list({'a', 'b', 'c', 'd', x})\nprint(f('e'))"
    tests = "import random\nassert f('e')\nprint(random.random())"
    outputs = {run_tests(code, tests).output for _ in range(3)}
    assert len(outputs) == 1


@here
def test_limits_are_those_that_were_asked_for() -> None:
    memory = "def f(x):\n    return len(bytes(x << 20))"
    assert run_tests(memory, "assert f(300) == 300 << 20").passed
    assert run_tests(memory, "assert f(300) == 300 << 20", Limits(memory_mib=200)).status == "error"
    printing = "def f(x):\n    print('x' * x)\n    return x"
    assert run_tests(printing, "assert f(60_000) == 60_000").passed
    assert run_tests(printing, "assert f(60_000) == 60_000", Limits(output_kib=16)).status == "limit"
    writing = "def f(x):\n    open('a', 'wb').write(bytes(x << 20))\n    return x"
    assert run_tests(writing, "assert f(12) == 12").passed
    assert run_tests(writing, "assert f(12) == 12", Limits(disk_mib=4)).status == "error"
    for wrong in (
        {"seconds": 0},
        {"seconds": math.nan},
        {"memory_mib": 1},
        {"threads": 0},
        {"files": 1},
        {"disk_mib": 0},
    ):
        with pytest.raises(InputError, match=f"{next(iter(wrong))} must be in"):
            Limits(**wrong)  # type: ignore[arg-type]


def test_without_a_sandbox_nothing_runs_unless_it_is_told_to() -> None:
    for layers in (
        (),
        ("limits", "namespaces", "landlock", "user"),
        ("system calls", "landlock"),
        ("limits", "system calls"),
    ):
        with pytest.raises(InputError, match="Here is no sandbox") as raised:
            run_tests("def f(x):\n    return x", "assert f(1) == 1", layers=layers)
        assert "allow_unprotected" in raised.value.hint
    assert run_tests("def f(x):\n    return x", "assert f(1) == 1", layers=(), allow_unprotected=True).passed
    assert not run_tests("def f(x):\n    return 2", "assert f(1) == 1", layers=(), allow_unprotected=True).passed
    assert missing_protection(("limits", "landlock", "system calls")) == ""
    assert missing_protection(("namespaces",)) == "limits, system calls"


def test_a_layer_that_fails_after_all_is_an_error_and_runs_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_probe", lambda layers: (LAYERS, {}))
    with pytest.raises(OSError, match="could not be set up: namespaces"):
        run_tests("print('ran')", "assert f(1) == 1", layers=("limits", "landlock", "user", "system calls"))


def test_tests_that_check_nothing_or_are_no_python_are_told() -> None:
    for tests, message in (("", "check nothing"), ("f(3)", "check nothing"), ("assert f(3", "are not Python: line 1"),
                           ("Call it with 3.", "are not Python"), ("assert f(1)\0", "are not Python")):  # fmt: skip
        with pytest.raises(InputError, match=message):
            run_tests("def f(x):\n    return x", tests)
    with pytest.raises(InputError, match="The setup is not Python"):
        run_tests("def f(x):\n    return x", "assert f(1)", setup="def")


# --- pass@k -----------------------------------------------------------------------------------------------------------


@given(n=st.integers(1, 9), c=st.integers(0, 9), k=st.integers(1, 9))
def test_pass_at_k_is_the_share_of_draws_with_a_right_one(n: int, c: int, k: int) -> None:
    c, k = min(c, n), min(k, n)
    draws = list(itertools.combinations([True] * c + [False] * (n - c), k))
    assert pass_at_k(n, c, k) == pytest.approx(sum(map(any, draws)) / len(draws), abs=1e-12)


@given(n=st.integers(1, 300), share=st.floats(0, 1), k=st.integers(1, 300))
def test_pass_at_k_equals_the_papers_product(n: int, share: float, k: int) -> None:
    """The paper's own program is 1 − Π (1 − k / i) over i from n − c + 1 to n."""
    c, k = round(share * n), min(k, n)
    expected = 1.0 if n - c < k else 1.0 - math.prod(1 - k / i for i in range(n - c + 1, n + 1))
    assert pass_at_k(n, c, k) == pytest.approx(expected, abs=1e-9)


def test_pass_at_k_of_worked_examples_and_of_too_few_samples() -> None:
    assert pass_at_k(5, 2, 1) == pytest.approx(0.4) and pass_at_k(5, 2, 2) == pytest.approx(0.7)
    assert pass_at_k(200, 1, 100) == pytest.approx(0.5) and pass_at_k(10**4, 1, 1) == 1e-4
    for n, c, k, message in (
        (9, 1, 10, "pass@10 needs 10 samples"),
        (5, 6, 1, "c must be in"),
        (5, 1, 0, "k must be in"),
    ):
        with pytest.raises(InputError, match=message):
            pass_at_k(n, c, k)
    with pytest.raises(InputError, match="no problem"):
        pass_at_k_of([], 1)


def test_the_interval_of_pass_at_k_holds_what_it_says() -> None:
    """Of 80 sets of 60 problems, some nineteen in twenty have the true figure in their interval."""
    import numpy as np

    rng = np.random.default_rng(0)
    inside = 0
    for seed in range(80):
        chances = rng.beta(0.5, 0.8, 60)
        its = pass_at_k_of([(8, int(rng.binomial(8, chance))) for chance in chances], 1, seed=seed)
        assert its.low <= its.value <= its.high
        inside += its.low <= 0.5 / 1.3 <= its.high
    assert 70 <= inside <= 79
    one = pass_at_k_of([(4, 4)] * 9, 2)
    assert (one.low, one.value, one.high) == (1, 1, 1)


# --- From text to code ------------------------------------------------------------------------------------------------

ADD = "def add(a, b):\n    return a + b\n"
HEAD = 'import math\n\n\ndef half(x):\n    return x / 2\n\n\ndef add(a, b):\n    """Return the sum."""\n'
CACHED = f"from functools import cache\n\n@cache\n{ADD}"
LONG_SUM = f"def add(a, b):\n    return {' + '.join(['a'] * 1000)}\n"
LONG_NUMBER = f"def add(a, b):\n    return 0x{'f' * 5000}\n"
DEEP = f"import sys\nsys.setrecursionlimit(5000)\n{ADD}"
TEXTS = {
    "a program": (ADD, ADD),
    "a fence": (f"Sure! Here it is:\n\n```python\n{ADD}```\nIt adds two numbers.", ADD),
    "a fence without a name": (f"```\n{ADD}```", ADD),
    "a fence of tildes": (f"~~~py\n{ADD}~~~", ADD),
    "a fence that is not closed": (f"```python\n{ADD}", ADD),
    "an indented fence": (f"1. Like this:\n\n   ```python\n{textwrap.indent(ADD, '   ')}   ```\n", ADD),
    "the second fence": (f"First install it:\n```sh\npip install add\n```\nthen\n```python\n{ADD}```", ADD),
    "a fence with an example": (f"```python\n{ADD}\nprint(add(1, 2))  # 3\nassert add(1, 2) == 3\n```", ADD),
    "a main block": (f"{ADD}\nif __name__ == '__main__':\n    print(add(1, 2))\n", ADD),
    "prose around": (f"The function is simple.\n\n{ADD}\nThis returns a plus b, as you asked.", ADD),
    "words with colons": (f"Answer: below\n{ADD}\nNote: it works.\n", ADD),
    "Windows lines": (ADD.replace("\n", "\r\n"), ADD),
    "a helper": (f"ONE = 1\n\ndef one():\n    return ONE\n\n{ADD}", f"ONE = 1\n\ndef one():\n    return ONE\n\n{ADD}"),
    "imports and decorators": (CACHED, CACHED),
    "an end that breaks off": (f"{ADD}\ndef other(x):\n    return (x +", ADD),
    "a call that is needed": (DEEP, DEEP),
    "comments": (f"# adds\n{ADD}", ADD),
    "a sum of a thousand": (LONG_SUM, LONG_SUM),
    "a number that is too long for decimals": (LONG_NUMBER, LONG_NUMBER),
}  # fmt: skip


@pytest.mark.parametrize("name", TEXTS)
def test_a_program_is_found_in_a_text(name: str) -> None:
    text, program = TEXTS[name]
    assert extract_code(text) == program
    assert extract_code(text, entry_point="add") == program
    assert syntax_error(program) == ""


def test_a_function_is_completed_with_its_prompt() -> None:
    whole = HEAD + "    return half(a) * 2 + b\n"
    body = "    return half(a) * 2 + b\n"
    for text in (body, f"{body}\n\nThat is it.\n", f"{body}\nprint(add(1, 2))", f"```python\n{body}```"):
        assert ast.unparse(ast.parse(extract_code(text, HEAD))) == ast.unparse(ast.parse(whole)), text
    own = extract_code(f"Here:\n```python\n{ADD}```", HEAD, "add")  # with what its prompt imports and helps with
    assert own == f"import math\ndef half(x):\n    return x / 2\n{ADD}"
    names: dict[str, Any] = {}
    exec(own, names)
    assert names["add"](1, 2) == 3
    other = extract_code("    return a\n\n\ndef other(x):\n    return x\n", HEAD)
    assert "def add" in other and "def half" in other


@pytest.mark.parametrize("text", [
    "", "I can't do that.", "```\n```", "def add(a, b)", 'def add(a, b):\n    """Only this."""\n', "x = 3", "\0",
    "(" * 500, "def " * 10_000, "```" * 5000, "x = [\n" * 5000,
])  # fmt: skip
def test_a_text_without_a_program_is_told_and_takes_no_time(text: str) -> None:
    started = time.process_time()
    with pytest.raises(InputError, match="holds no Python function"):
        extract_code(text, entry_point="add")
    with pytest.raises(InputError, match="holds no Python function add"):
        extract_code(text, HEAD)
    assert time.process_time() - started < 3


@given(st.text(max_size=300))
def test_any_text_gives_a_program_or_an_input_error(text: str) -> None:
    try:
        code = extract_code(text)
    except InputError:
        return
    assert syntax_error(code) == ""


def test_one_thread_parses_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    held = []
    monkeypatch.setattr(module.inspect, "getsource", lambda part: str(held.append(module.PARSING.locked())))
    module._program_inside.__wrapped__()
    assert held and all(held)


def test_a_program_is_laid_out(monkeypatch: pytest.MonkeyPatch) -> None:
    rough = "def add( a,b ) :\n  return(a+b) # sum\n"
    assert format_code(rough).startswith("def add(a, b):\n    return a + b")
    monkeypatch.setattr(shutil, "which", lambda *arguments, **options: None)
    assert format_code(rough) == "def add(a, b):\n    return a + b\n"
    assert format_code("def") == "def"


# --- Problems ---------------------------------------------------------------------------------------------------------

MBPP = {"task_id": 11, "text": "Write a function to remove the first and last letter.", "test_setup_code": "",
        "code": "def inner(s):\n    return s\ndef cut(s):\n    return inner(s[1:-1])",
        "test_list": ["assert cut('hello') == 'ell'", "assert cut('ab') == ''"], "challenge_test_list": []}  # fmt: skip


@pytest.mark.slow
@here
@pytest.mark.skipif(not HUMAN_EVAL.exists(), reason="HumanEval is not there")
@pytest.mark.parametrize("planted", [False, True])
def test_all_of_humaneval_passes_as_it_is_and_fails_with_a_bug(planted: bool) -> None:
    problems = read_problems(HUMAN_EVAL)
    judge = CodeGenerator(None, Limits(seconds=30)).judge  # type: ignore[arg-type]
    codes = [plant_bug(its.solution, its.entry_point) if planted else its.solution for its in problems]
    with ThreadPoolExecutor(2) as pool:
        verdicts = list(pool.map(judge, codes, problems))
    assert len(verdicts) == 164
    assert {p.id: v for p, v in zip(problems, verdicts, strict=True) if v.passed == planted} == {}
    if planted:
        assert {verdict.status for verdict in verdicts} == {"failed"}


@here
@pytest.mark.skipif(not HUMAN_EVAL.exists(), reason="HumanEval is not there")
def test_helpers_of_a_prompt_are_the_prompts_whatever_the_code_makes_of_them() -> None:
    problem = next(problem for problem in read_problems(HUMAN_EVAL) if problem.entry_point == "find_zero")
    judge = CodeGenerator(None).judge  # type: ignore[arg-type]
    assert judge(problem.solution, problem).passed
    cheat = "def poly(xs, x):\n    return 0\ndef find_zero(xs):\n    return 0.0\n"
    assert judge(cheat, problem).status == "failed"
    assert run_tests(cheat, problem.tests, entry_point="find_zero").passed  # who gives no setup asks the code


@given(st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(-1e6, 1e6) | st.text() | st.binary()
    | st.complex_numbers(max_magnitude=9),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3) | st.tuples(inner),
    max_leaves=5,
))  # fmt: skip
def test_a_planted_bug_changes_every_result(value: Any) -> None:
    names: dict[str, Any] = {}
    exec(plant_bug("def f(x, n=2):\n    return x if n == 0 else f(x, n - 1)", "f"), names)
    assert names["f"](value) != value and names["f"](value, n=0) != value


def test_problems_are_read_from_both_formats_zipped_or_not(tmp_path: Path) -> None:
    row = {"task_id": "HumanEval/0", "prompt": HEAD, "entry_point": "add", "canonical_solution": "    return a + b\n",
           "test": "def check(candidate):\n    assert candidate(1, 2) == 3\n"}  # fmt: skip
    (tmp_path / "one.jsonl").write_text(json.dumps(row) + "\n\n")
    (tmp_path / "one.jsonl.gz").write_bytes(gzip.compress(json.dumps(row).encode()))
    (tmp_path / "one.json").write_text(json.dumps([row]))
    expected = [Problem("HumanEval/0", HEAD, row["test"], "add", HEAD, HEAD + "    return a + b\n")]
    assert all(read_problems(tmp_path / f"one.{end}") == expected for end in ("jsonl", "jsonl.gz", "json"))
    (tmp_path / "mbpp.jsonl").write_text(json.dumps(MBPP))
    (problem,) = read_problems(tmp_path / "mbpp.jsonl")
    assert problem.id == "MBPP/11" and MBPP["text"] in problem.prompt and "assert cut('ab') == ''" in problem.tests
    for content in (b"", b"{}", b"[1]", b"{", b"\xff", b"\x1f\x8bx", b'{"task_id": 1}', json.dumps(row).encode() * 2,
                    (json.dumps(row) + "\n").encode() * 2):  # fmt: skip
        (tmp_path / "wrong").write_bytes(content)
        with pytest.raises(InputError, match="format|task_id of its own"):
            read_problems(tmp_path / "wrong")
    with pytest.raises(OSError):
        read_problems(tmp_path / "nowhere")
    with pytest.raises(InputError, match="There is no 'builtin:other'"):
        load_problems("builtin:other")


@here
def test_mbpp_is_judged(tmp_path: Path) -> None:
    node = MBPP | {
        "task_id": 12, "test_setup_code": "root = Node(1)\nroot.left = Node(2)",
        "test_list": ["assert depth(root) == 2"],
        "code": "class Node:\n    def __init__(self, data):\n        self.data, self.left = data, None\n"
                "def depth(node):\n    return 1 + depth(node.left) if node else 0",
    }  # fmt: skip
    path = tmp_path / "mbpp.json"
    path.write_text(json.dumps([MBPP, node]))
    judge = CodeGenerator(None).judge  # type: ignore[arg-type]
    for problem in read_problems(path):
        assert judge(problem.solution, problem).passed
        assert judge(module._own(problem, planted=True), problem).status == "failed"


def test_a_head_without_anything_is_a_prompt_as_well(tmp_path: Path) -> None:
    head = "import math\n\n\ndef half(x):\n    return x / 2\n\n\ndef area(r):\n"
    row = {"task_id": "bare", "prompt": head, "entry_point": "area", "canonical_solution": "    return math.pi * r * r",
           "test": "def check(candidate):\n    assert candidate(0) == half(0)\n"}  # fmt: skip
    (tmp_path / "bare.jsonl").write_text(json.dumps(row))
    (problem,) = read_problems(tmp_path / "bare.jsonl")
    assert "math.pi" in extract_code("    return math.pi * r * r\n", problem.prompt)
    own = extract_code("```python\ndef area(r):\n    return math.pi * half(r)\n```", problem.prompt)
    assert own.startswith("import math\ndef half") and own.count("def area") == 1
    made = make_problem(head)
    assert (made.prompt, made.entry_point, syntax_error(made.setup)) == (head, "area", "")


@here
def test_a_bare_head_is_judged(tmp_path: Path) -> None:
    problem = Problem("bare", "def f(x):\n", "def check(candidate):\n    assert candidate(1) == 2\n", "f")
    row = {"task_id": "bare", "prompt": problem.prompt, "entry_point": "f", "test": problem.tests}
    (tmp_path / "bare.json").write_text(json.dumps([row]))
    (problem,) = read_problems(tmp_path / "bare.json")
    for code, passed in (("def f(x):\n    return 2\n", True), ("def f(x):\n    return 3\n", False)):
        assert CodeGenerator(None).judge(code, problem).passed == passed  # type: ignore[arg-type]


ROW = {"task_id": "odd/7", "prompt": "def f(x):\n", "entry_point": "f", "canonical_solution": "    return x\n",
       "test": "def check(candidate):\n    assert candidate(1) == 1\n"}  # fmt: skip


@pytest.mark.parametrize(("row", "message"), [
    (MBPP | {"test_list": []}, "tests check nothing"),
    (MBPP | {"test_list": ["assert cut("]}, "tests are not Python"), (MBPP | {"code": None}, "solution must be text"),
    (MBPP | {"text": 3}, "TypeError"), (ROW | {"task_id": ["odd/7"]}, "task_id must be text or a number"),
    (ROW | {"prompt": "def f(x:\n"}, "setup is not Python"), (ROW | {"prompt": " "}, "prompt is empty"),
    (ROW | {"prompt": 3}, "TypeError"), (ROW | {"test": None}, "tests must be text"),
    ({name: value for name, value in ROW.items() if name != "test"}, "KeyError: 'test'"),
])  # fmt: skip
def test_an_odd_problem_is_told_with_its_name_before_anything_runs(
    row: dict[str, Any], message: str, inside: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("data.jsonl").write_text(json.dumps(MBPP | {"task_id": 1}) + "\n" + json.dumps(row) + "\n")
    with pytest.raises(InputError, match=message) as raised:
        read_problems(Path("data.jsonl"))
    assert f"problem 2 ({row['task_id']})" in str(raised.value)
    assert cli("evaluate", "--data", "data.jsonl") == 2
    assert not Path("outputs").exists()


def test_a_damaged_archive_is_told(tmp_path: Path) -> None:
    packed = gzip.compress("".join(json.dumps(MBPP | {"task_id": i}) + "\n" for i in range(50)).encode())
    for place in (12, len(packed) // 2, len(packed) - 6):  # in its head, its data and its check sum
        (tmp_path / "mbpp.jsonl.gz").write_bytes(packed[:place] + b"\xff\xff" + packed[place + 2 :])
        with pytest.raises(InputError, match="mbpp.jsonl.gz is not in HumanEval's or MBPP's format"):
            read_problems(tmp_path / "mbpp.jsonl.gz")


@here
def test_bugs_are_planted_wherever_there_is_a_function(inside: Path, capsys: pytest.CaptureFixture[str]) -> None:
    flags = ("evaluate", "--data", "data.json", "--solutions", "planted", "--run")
    Path("data.json").write_text(json.dumps([MBPP | {"code": "cut = lambda s: s[1:-1]"}]))
    assert cli(*flags, "lambda") == 0
    assert results("lambda")["failed"] == 1
    for code, message in (("cut = 3", "it has no function"), ("def cut(s:", "'\\(' was never closed|invalid syntax")):
        Path("data.json").write_text(json.dumps([MBPP | {"task_id": 1}, MBPP | {"code": code}]))
        capsys.readouterr()
        assert cli(*flags, "nothing") == 2
        assert re.search(f"No bug can be planted in the solution of MBPP/11: ({message})", capsys.readouterr().err)
        assert not Path("outputs/gpt_text_generation/nothing").exists()


# --- Generation -------------------------------------------------------------------------------------------------------


class Scripted:
    """Stands for a language model: says what it is told to, and keeps what it was asked."""

    name = "scripted"

    def __init__(self, *answers: str, chats: bool = False, context: int = 10**6) -> None:
        self.answers, self.chats, self.context = list(answers), chats, context
        self.prompts: list[str] = []
        self.settings: list[Settings] = []

    def chat(self, instruction: str, system: str = "") -> str:
        return f"<user>{instruction}<model>" if self.chats else instruction

    def has_room(self, prompt: str) -> bool:
        return len(prompt) <= self.context

    def generate(self, prompts: Sequence[str], settings: Settings) -> list[Generation]:
        if max(map(len, prompts)) > self.context:
            raise InputError("The prompt fills the context.")
        self.prompts += prompts
        self.settings.append(settings)
        texts = [self.answers.pop(0) if len(self.answers) > 1 else self.answers[0] for _ in prompts]
        for stop in settings.stop:
            texts = [text.split(stop)[0] for text in texts]
        return [
            Generation(prompt, text, [1], [-0.1 * len(text)], "end")
            for prompt, text in zip(prompts, texts, strict=True)
        ]


SUM = make_problem(
    "Return the sum.", "assert add(1, 2) == 3\nassert add(2, 2) == 4\nassert add(-1, 1) == 0", "def add(a, b)"
)


@here
def test_the_best_of_several_programs_is_found() -> None:
    model = Scripted(
        "    return a - b\n",
        "    return 3\n",
        "    return a +\n",
        "    return a + b\n\ndef more(): pass",
        "    return 3\n",
    )
    found = CodeGenerator(model).solve(SUM, samples=5, repairs=3)  # type: ignore[arg-type]
    assert [its.verdict.status for its in found] == ["passed", "failed", "failed", "syntax"]
    assert found[0].code == 'def add(a, b):\n    """Return the sum."""\n    return a + b\n'
    assert found[1].code.endswith("return 3\n")  # its tests came further than those of a − b
    assert [settings.strategy for settings in model.settings] == ["greedy", "nucleus"] and len(model.prompts) == 5
    assert set(model.prompts) == {SUM.prompt} and "\ndef " in model.settings[0].stop


@here
@pytest.mark.parametrize("text", [
    "import math\n\n\ndef cut(s):\n    return s[1:-1]\n", "def inner(s):\n    return s[1:-1]\n\n\ndef cut(s):\n"
    "    return inner(s)\n", "import functools\n\n\n@functools.cache\ndef cut(s):\n    return s[1:-1]\n",
    "import math\n\n# without its ends\ndef cut(s):\n    return s[1:-1]\n",
    'def cut(s):\n    return s[1:-1]\n\n\n"""Another task."""\ndef cut(s):\n    return 3\n',
])  # fmt: skip
def test_behind_a_docstring_alone_a_program_has_all_its_parts(text: str, tmp_path: Path) -> None:
    (tmp_path / "mbpp.json").write_text(json.dumps([MBPP]))
    for problem in (*read_problems(tmp_path / "mbpp.json"), make_problem(MBPP["text"], "\n".join(MBPP["test_list"]))):
        (best,) = CodeGenerator(Scripted(text)).solve(problem, samples=1, repairs=0)  # type: ignore[arg-type]
        assert best.verdict.passed, best


@here
def test_a_model_is_shown_what_is_wrong_and_mends_it() -> None:
    model = Scripted("```python\ndef add(a, b):\n    return a - b\n```", f"Sorry!\n```python\n{ADD}```", chats=True)
    found = CodeGenerator(model).solve(SUM, samples=1, repairs=2)  # type: ignore[arg-type]
    assert [(its.verdict.status, its.round) for its in found] == [("passed", 1), ("failed", 0)]
    assert found[0].code == ADD and len(model.prompts) == 2 and not model.settings[0].stop
    assert all(
        word in model.prompts[1] for word in ("return a - b", "assert add(1, 2) == 3", "add(1, 2) → -1", "<model>")
    )
    base = Scripted("    return a - b\n", "    return a + b\n")
    assert CodeGenerator(base).solve(SUM, samples=1, repairs=1)[0].verdict.passed  # type: ignore[arg-type]
    assert base.prompts[1].endswith(SUM.prompt) and "# add(1, 2) → -1\n" in base.prompts[1]
    assert syntax_error(base.prompts[1]) == ""


@here
def test_repairs_end_and_a_prompt_without_room_for_the_error_is_asked_again() -> None:
    stubborn = Scripted("    return 0\n")
    found = CodeGenerator(stubborn).solve(SUM, samples=2, repairs=2)  # type: ignore[arg-type]
    assert len(found) == 1 and not found[0].verdict.passed and len(stubborn.prompts) == 6
    assert [settings.seed for settings in stubborn.settings] == [0, 0, 2, 2, 4, 4]
    small = Scripted("    return 0\n", "    return a + b\n", context=80)
    assert CodeGenerator(small).solve(SUM, samples=1, repairs=1)[0].verdict.passed  # type: ignore[arg-type]
    assert small.prompts == [SUM.prompt] * 2
    with pytest.raises(InputError, match="fills the context"):
        CodeGenerator(Scripted("", context=3)).solve(SUM)  # type: ignore[arg-type]
    for wrong in ({"samples": 0}, {"repairs": -1}):
        with pytest.raises(InputError, match="must be in"):
            CodeGenerator(stubborn).solve(SUM, **wrong)  # type: ignore[arg-type]


def test_without_tests_the_likeliest_program_is_taken_and_nothing_runs() -> None:
    model = Scripted("    return a + b + 0\n", "    return b + a\n", "    return (\n")
    found = CodeGenerator(model).solve(make_problem("Sum.", "", "def add(a, b)"), samples=3)  # type: ignore[arg-type]
    assert [its.verdict.status for its in found] == ["passed", "passed", "syntax"]
    assert "return b + a" in found[0].code


def test_a_description_becomes_a_prompt() -> None:
    assert make_problem(" Add. ", "", "def add(a, b):").prompt == 'def add(a, b):\n    """Add."""\n'
    assert make_problem('Say """hi\\""".', "", "def f()").prompt == "def f():\n    \"\"\"Say '''hi\\\\'''.\"\"\"\n"
    assert make_problem("Add.").prompt == '"""Add."""\n\n\n' and make_problem("Add.").entry_point == ""
    two = make_problem(HEAD, "assert add(1, 2)")
    assert (two.prompt, two.entry_point, two.setup) == (HEAD, "add", HEAD)
    for description, signature in (("", ""), (" \n", "def f()"), ("Add.", "add(a, b)"), ("Add.", "def f(a"),
                                   ("Add.", "def f(): pass\ndef g()"), ("Add.", "import os")):  # fmt: skip
        with pytest.raises(InputError, match="description is empty|signature must be"):
            make_problem(description, "", signature)


# --- Commands ---------------------------------------------------------------------------------------------------------


def cli(*arguments: str) -> int:
    with pytest.raises(SystemExit) as end:
        run_commands({"generate": generate, "evaluate": evaluate, "run": run_command}, module=MODULE, argv=arguments)
    return int(end.value.code or 0)


@pytest.fixture
def inside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def results(run: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(Path("outputs/gpt_text_generation", run, "results.json").read_text())["metrics"]
    return found


@here
def test_files_are_run_by_a_command(inside: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Path("solution.py").write_text(ADD + "print('早')\n", encoding="utf-8")
    Path("test_solution.py").write_text("from solution import add\n\ndef test_add():\n    assert add(1, 2) == 3\n")
    files = ("--code", "solution.py", "--tests", "test_solution.py")
    assert cli("run", *files) == 0
    assert capsys.readouterr().out.startswith("早\npassed in ")
    Path("solution.py").write_text(ADD.replace("+", "-"))
    assert cli("run", *files) == 1
    out, err = capsys.readouterr()
    assert "failed in" in out and "add(1, 2) → -1" in out and err.endswith("the tests did not pass: failed\n")
    Path("solution.py").write_text("no code")
    assert cli("run", *files) == 1
    assert "syntax" in capsys.readouterr().out
    Path("test_solution.py").write_text("add(1, 2)\n")
    assert cli("run", *files) == 2 and "check nothing" in capsys.readouterr().err
    Path("test_solution.py").write_bytes(b"\xff")
    assert cli("run", *files) == 2 and "not UTF-8" in capsys.readouterr().err
    assert cli("run", "--code", "nowhere.py", "--tests", "test_solution.py") == 1
    assert cli("run") == 2 and cli("run", *files, "--seconds", "0") == 2


@here
def test_problems_own_solutions_are_evaluated_by_a_command(inside: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Path("mbpp.jsonl").write_text("\n".join(json.dumps(MBPP | {"task_id": i}) for i in range(3)))
    for solutions, value in (("reference", 1.0), ("planted", 0.0)):
        assert cli("evaluate", "--data", "mbpp.jsonl", "--solutions", solutions, "--run", solutions) == 0
        metrics = results(solutions)
        assert metrics["pass_at_1"] == value and metrics["problems"] == 3 and metrics["passed"] == 3 * value
        assert f"pass@1    {value:.4f}" in capsys.readouterr().out
    rows = Path("outputs/gpt_text_generation/planted/samples.jsonl").read_text().splitlines()
    assert [json.loads(row)["task_id"] for row in rows] == ["MBPP/0", "MBPP/1", "MBPP/2"]


@here
def test_a_model_is_evaluated_by_a_command_and_goes_on_where_it_stopped(
    inside: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("data.jsonl").write_text("\n".join(json.dumps({
        "task_id": f"T/{i}", "prompt": SUM.prompt, "entry_point": "add", "canonical_solution": "",
        "test": "def check(candidate):\n    assert candidate(1, 2) == 3\n"}) for i in range(4)))  # fmt: skip
    texts = ["    return a + b\n", "    return 0\n", "    return 1\n", "    return 3\n"] * 4
    model = Scripted(*texts)
    monkeypatch.setattr(module.EvaluateConfig, "generator", lambda self: model)
    flags = (
        "evaluate",
        "--data",
        "data.jsonl",
        "--samples",
        "4",
        "--strategy",
        "nucleus",
        "--k",
        "1,2",
        "--batch_size",
        "4",
    )
    assert cli(*flags, "--run", "whole") == 0
    whole = results("whole")
    assert whole["pass_at_1"] == 0.5 and whole["pass_at_2"] == pytest.approx(1 - 1 / 6) and whole["failed"] == 8
    assert [settings.seed for settings in model.settings] == [0, 4, 8, 12]  # each sample's own, however many at once
    assert {"pass_at_2_low", "pass_at_2_high"} <= set(whole)
    model = Scripted(*texts)
    write = module.CodeGenerator.write

    def interrupted(self: Any, *arguments: Any) -> Any:
        if len(model.settings) == 2:
            raise KeyboardInterrupt
        return write(self, *arguments)

    monkeypatch.setattr(module.CodeGenerator, "write", interrupted)
    assert cli(*flags, "--run", "parts") == 130
    assert "--run parts --resume true goes on" in capsys.readouterr().err
    monkeypatch.setattr(module.CodeGenerator, "write", write)
    assert cli(*flags, "--run", "parts", "--resume", "true", "--temperature", "0.5") == 2
    assert cli(*flags, "--run", "parts", "--resume", "true") == 0
    assert {name: value for name, value in results("parts").items()} == whole
    assert len(model.prompts) == 16


@here
def test_a_problem_that_leaves_no_room_counts_as_not_solved(inside: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Path("data.jsonl").write_text("\n".join(json.dumps({
        "task_id": f"T/{i}", "prompt": f"# {'x' * 99 * i}\n{SUM.prompt}", "entry_point": "add",
        "canonical_solution": "", "test": "def check(candidate):\n    assert candidate(1, 2) == 3\n"})
        for i in range(3)))  # fmt: skip
    model = Scripted("    return a + b\n", context=200)
    monkeypatch.setattr(module.EvaluateConfig, "generator", lambda self: model)
    assert cli("evaluate", "--data", "data.jsonl", "--run", "long") == 0
    assert results("long")["passed"] == 2 and results("long")["syntax"] == 1 and len(model.prompts) == 2


@here
def test_a_function_is_generated_by_a_command(
    inside: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(
        module.GenerateConfig, "generator", lambda self: Scripted("    return a\n", "    return max(a,b)\n")
    )
    assert cli("generate", "--run", "example", "--output", "larger.py") == 0
    assert capsys.readouterr().out == Path("larger.py").read_text()
    assert "return max(a, b)" in Path("larger.py").read_text()
    assert results("example")["passed"] == 1 and results("example")["candidates"] == 2
    Path("tests.py").write_text("assert larger(1, 2) == 2\nassert larger(1, 0) == 5\n")
    words = ("--description", "The larger.", "--signature", "def larger(a, b)", "--tests", "tests.py")
    assert cli("generate", *words, "--run", "fails", "--repairs", "0") == 1
    out, err = capsys.readouterr()
    assert "return max(a, b)" in out and "did not pass (failed)" in err and "larger(1, 0) → 1" in err
    monkeypatch.setattr(module.GenerateConfig, "generator", lambda self: Scripted("I will not."))
    assert cli("generate", "--run", "nothing", "--repairs", "0") == 1
    assert "wrote no Python function" in capsys.readouterr().err


@pytest.mark.parametrize(("arguments", "message"), [
    (("evaluate", "--k", "5"), "pass@5 needs 5 samples"),
    (("evaluate", "--samples", "3"), "All samples would be the same"),
    (("evaluate", "--samples", "3", "--solutions", "reference", "--strategy", "nucleus"), "All samples would be"),
    (("evaluate", "--k", "[]"), "k must name one"),
    (("evaluate", "--k", "0"), "k must be in"),
    (("evaluate", "--temperature", "0"), "temperature must be above 0"),
    (("evaluate", "--resume", "true"), "resume needs the name"),
    (("evaluate", "--data", "builtin:nothing"), "There is no 'builtin:nothing'"),
    (("evaluate", "--memory_mib", "1"), "memory_mib must be in"),
    (("generate", "--strategy", "greedy"), "writes the same program every time"),
    (("generate", "--description", " "), "description is empty"),
    (("generate", "--description", "Add.", "--signature", "add"), "signature must be"),
    (("generate", "--description", "Add.", "--tests", "add(1, 2"), "tests are not Python"),
    (("generate", "--description", "Add.", "--tests", "add(1, 2)"), "tests check nothing"),
    (("generate", "--samples", "0"), "samples must be in"),
    (("generate", "--signature", "def f(x)", "--tests", "assert f(1) == 1"), "need a description"),
])  # fmt: skip
def test_what_can_not_be_is_told_in_a_line(
    arguments: tuple[str, ...], message: str, inside: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli(*arguments) == 2
    err = capsys.readouterr().err
    assert message in err and "Traceback" not in err
    assert not list(inside.iterdir())
