r"""From a description to Python that passes its tests: written by a model, run in a sandbox, repaired, measured.

    python -m gpt_text_generation.code_generator generate --description "Return the larger of two numbers."
    python -m gpt_text_generation.code_generator evaluate --data HumanEval.jsonl.gz --model gpt2 \
        --strategy nucleus --samples 10 --k 1,10
    python -m gpt_text_generation.code_generator run --code solution.py --tests test_solution.py

Of n samples of a problem c are right: 1 − C(n−c, k) / C(n, k) is the unbiased estimate of pass@k, the chance that one
of k is right (Chen et al., 2021, arXiv:2107.03374, who made HumanEval; MBPP: Austin et al., 2021, arXiv:2108.07732).

**Who judges.** Tests never run beside the code they test. Two fresh interpreters are started: one holds the code and
answers calls, the other holds the tests, for which the code's functions are stand-ins that send arguments and get back
data: numbers, text, lists, dicts and the like. So data is compared, where the code can't reach it, and exit codes,
printed words, patched builtins, signal handlers or an ``__eq__`` that always agrees decide nothing. What is no data
stays where it is: functions and iterators can be called and iterated from the other side, objects have attributes and
operators among themselves, but never an operator with data beside them, nor, unless they come of a class that the tests
call by a capitalized name, a method that data has as well. What the code changes in its arguments is changed for the
tests too. Neither side has site packages such as numpy.

**What holds the code.** Layers, all that the kernel has: namespaces (a file system with nothing but libraries and an
empty folder; no network), Landlock (the same where namespaces are forbidden), a user of its own in place of root,
no capabilities, a list of the system calls that are allowed (no sockets, no programs or processes, no signals to
others, no owners or modes), and limits of time, memory, threads, files and output. :func:`protections` tells which are
active. Without limits, the list, and one of the two that shield files, nothing runs unless it is told to.

**What it does not cover.** Errors of the kernel, and what processors leak through time. Cores are kept busy until time
is up. Without namespaces, the names and sizes of files can be guessed, their contents not; files that are removed while
they are in use don't count; no folders can be made, and for an ordinary user no threads. macOS has limits alone,
Windows nothing. Weak tests pass wrong code; a class that the tests call may answer them whatever it likes, and code may
cheat tests that reuse arguments it has changed.
"""

from __future__ import annotations

import _thread
import ast
import builtins
import contextlib
import ctypes
import errno
import functools
import gzip
import inspect
import itertools
import json
import logging
import marshal
import math
import operator
import os
import re
import selectors
import shutil
import signal
import struct
import subprocess
import sys
import tempfile
import textwrap
import threading
import time
import warnings
import zlib
from collections.abc import Callable, Collection, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

from gpt_text_generation.text_generator import NOT_RECIPE, ModelConfig, Settings, Strategy
from shared.config import check_range, run_commands
from shared.errors import InputError
from shared.logs import progress_bar
from shared.results import OUTPUTS, Run, check_resumable, write_atomic

if TYPE_CHECKING:
    from gpt_text_generation.text_generator import TextGenerator

PROJECT = "gpt_text_generation"
MODULE = "gpt_text_generation.code_generator"
LAYERS = ("limits", "namespaces", "landlock", "user", "system calls")
STOPS = ("\nif ", "\nprint(", "\nassert ", '\n"""', "\n```")
STOPS_OF_A_BODY = ("\ndef ", "\nclass ", "\n@", "\n#")  # behind a docstring alone, these begin the program itself
LONGEST, LONGEST_TEXT = 200_000, 50_000  # characters of a program, and of what a model wrote
logger = logging.getLogger(MODULE)


# --- From text to code ------------------------------------------------------------------------------------------------

FENCE = re.compile(r"^[ \t]*(```+|~~~+)[^\n`]*\n(.*?)(?:^[ \t]*\1|\Z)", re.DOTALL | re.MULTILINE)
START = re.compile(r"(?:(?:async )?def|class|import|from) |@|[A-Za-z_]\w* *(?::[^=\n]+)?=[^=]")
FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)
# What silences warnings does so for all threads; and of two that parse at once, one may get a SystemError from older
# Pythons, which count the depth of both together (gh-106905)
PARSING = threading.Lock()


def syntax_error(code: str) -> str:
    """Return what is wrong with a program's syntax; nothing where it is right."""
    try:
        _parse(code)
    except SyntaxError as error:
        line = (error.text or "").strip()
        return (f"line {error.lineno}: " if error.lineno else "") + error.msg + (f": {line[:200]}" if line else "")
    except (ValueError, MemoryError, RecursionError) as error:
        return f"not Python: {str(error) or type(error).__name__}"
    return ""


def _parse(code: str) -> ast.Module:
    if len(code) > LONGEST:
        raise ValueError(f"longer than {LONGEST:,} characters")
    with PARSING, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of strange escapes and of `is` with numbers
        return ast.parse(code)


def extract_code(text: str, prompt: str = "", entry_point: str = "") -> str:
    """Find the program in what a model wrote: in fences, between sentences, or as the rest of the prompt's function.

    Sentences, examples of use and prints at the top level are left out, and so is what breaks off at the end.

    Args:
        text: What the model wrote.
        prompt: A head with docstring, imports and helpers, which the text may go on with.
        entry_point: The function that must be there; by default the prompt's last one, or any.

    Raises:
        InputError: There is none.
    """
    given = [node for node in _statements(prompt) if not _only_shows(node)]
    entry_point = entry_point or next((node.name for node in given[::-1] if isinstance(node, FUNCTIONS)), "")
    text = text[:LONGEST_TEXT]
    blocks = [match[2] for match in FENCE.finditer(text)]
    written = [*blocks, "\n".join(blocks)] if blocks else [text]
    helpers = [_unparse(node) for node in given if not _is_stub(node)]
    for source in written:
        if re.search(rf"^\s*(async )?(def|class) +{re.escape(entry_point)}", source, re.MULTILINE):
            if code := _program(source, entry_point):
                known = _unparse(_parse(code))
                return "\n".join([*(one for one in helpers if one not in known), code])
    for source in written if prompt else ():
        if code := _program(prompt + source, entry_point):
            return code
    raise InputError(f"The text holds no Python function{f' {entry_point}' if entry_point else ''}.")


def _with_body(prompt: str) -> str:
    """Return a prompt as a program: a head that nothing follows, not even a docstring, gets an empty one."""
    return f'{prompt.rstrip()}\n    ""\n' if syntax_error(prompt) else prompt


def _statements(prompt: str) -> list[ast.stmt]:
    """Return a prompt's statements at the top level; none where it is not Python."""
    program = _with_body(prompt)
    return [] if syntax_error(program) else _parse(program).body


def _wants_body(prompt: str) -> bool:
    """Tell whether a prompt ends in a function, which is to be gone on with."""
    return any(isinstance(node, FUNCTIONS) for node in _statements(prompt)[-1:])


def _program(source: str, entry_point: str) -> str:
    """Return the first run of lines that is a program with that function, without what only shows how it works."""
    lines = textwrap.dedent(source).splitlines()
    for start in [number for number, line in enumerate(lines) if START.match(line)][:20]:
        end, nodes = len(lines), []
        for _ in range(12):  # a sentence after the code, and what breaks off, take one each
            try:
                nodes = _parse("\n".join(lines[start:end])).body
                break
            except SyntaxError as error:
                end = min(end - 1, start + (error.lineno or 1) - 1)
            except (ValueError, MemoryError, RecursionError):
                break
        names = [node.name for node in nodes if isinstance(node, FUNCTIONS) and not _is_stub(node)]
        if entry_point in names or (names and not entry_point):
            shown = {line for node in nodes if _only_shows(node) for line in range(node.lineno, _end(node) + 1)}
            kept = [line for number, line in enumerate(lines[start:end], 1) if number not in shown]
            return "\n".join(kept).strip() + "\n"
    return ""


def _only_shows(node: ast.stmt) -> bool:
    """Tell whether a statement at the top level is a sentence, an example or a test, not a part of the program."""
    if isinstance(node, ast.Expr):
        called = node.value.func if isinstance(node.value, ast.Call) else None
        return called is None or (isinstance(called, ast.Name) and called.id in ("print", "input", "help", "exit"))
    if isinstance(node, ast.If):
        return any(isinstance(inner, ast.Name) and inner.id == "__name__" for inner in ast.walk(node.test))
    return isinstance(node, ast.Assert) or (isinstance(node, ast.AnnAssign) and node.value is None)


def _unparse(node: ast.AST) -> str:
    """Write a program anew; nothing where it is nested too deeply, or has a number too long, for that."""
    try:
        return ast.unparse(node)
    except (ValueError, RecursionError, MemoryError):
        return ""


def _end(node: ast.stmt) -> int:
    return node.end_lineno or node.lineno


def _is_stub(node: ast.AST) -> bool:
    """Tell whether a function has a docstring and nothing else."""
    return isinstance(node, FUNCTIONS[:2]) and len(node.body) == 1 and ast.get_docstring(node) is not None


def format_code(code: str) -> str:
    """Lay out a program: by ruff where it is installed, else by ``ast.unparse``, which drops comments."""
    ruff = shutil.which("ruff") or shutil.which("ruff", path=str(Path(sys.executable).parent))
    if ruff:
        command = [ruff, "format", "--isolated", "--quiet", "-"]
        made = subprocess.run(command, input=code, capture_output=True, encoding="utf-8", timeout=30)
        if made.returncode == 0:
            return made.stdout
    laid_out = "" if syntax_error(code) else _unparse(_parse(code))
    return f"{laid_out}\n" if laid_out else code


# --- pass@k -----------------------------------------------------------------------------------------------------------


def pass_at_k(n: int, c: int, k: int) -> float:
    """Return the unbiased estimate of pass@k, 1 − C(n−c, k) / C(n, k); exact, as whole numbers are.

    Args:
        n: Samples.
        c: Right ones among them, in [0, n].
        k: In [1, n].

    Raises:
        InputError: Fewer than k samples tell nothing of k.
    """
    check_range("k", k, 1)
    if n < k:
        raise InputError(f"pass@{k} needs {k} samples of each problem at least. Got {n}.", hint="more samples")
    check_range("c", c, 0, n)
    return (math.comb(n, k) - math.comb(n - c, k)) / math.comb(n, k)


@dataclass(frozen=True)
class PassAtK:
    """pass@k over problems, with the 95 % interval of a bootstrap over problems.

    The interval tells of other problems of this kind. Where all have the same estimate it is a single point, which says
    that there are too few problems, not that the figure is sure.
    """

    k: int
    value: float
    low: float
    high: float


def pass_at_k_of(counts: Sequence[tuple[int, int]], k: int, *, seed: int = 0) -> PassAtK:
    """Estimate pass@k of (n, c) of each problem; see :func:`pass_at_k`."""
    from gpt_text_generation.evaluation.diversity_metrics import bootstrap_interval

    if not counts:
        raise InputError("There is no problem to estimate pass@k of.")
    values = [pass_at_k(n, c, k) for n, c in counts]
    mean = sum(values) / len(values)
    low, high = bootstrap_interval(values, repeats=1000, seed=seed) or (mean, mean)
    return PassAtK(k, mean, low, high)


# --- Inside: sent as source to fresh interpreters, which import nothing of this repository ----------------------------


# System calls that computing, threads of its own and files of its own need: name, number on x86-64, number on ARM.
CALLS = """read 0 63,write 1 64,close 3 57,mmap 9 222,munmap 11 215,mprotect 10 226,brk 12 214,futex 202 98,
openat 257 56,newfstatat 262 79,fstat 5 80,lseek 8 62,getdents64 217 61,rt_sigaction 13 134,rt_sigprocmask 14 135,
rt_sigreturn 15 139,madvise 28 233,mremap 25 216,clock_gettime 228 113,getrandom 318 278,pread64 17 67,pwrite64 18 68,
readv 19 65,writev 20 66,open 2 -,stat 4 -,lstat 6 -,access 21 -,faccessat 269 48,faccessat2 439 439,statx 332 291,
readlink 89 -,readlinkat 267 78,getcwd 79 17,chdir 80 49,fchdir 81 50,umask 95 166,creat 85 -,rename 82 -,
renameat 264 38,renameat2 316 276,mkdir 83 -,mkdirat 258 34,rmdir 84 -,unlink 87 -,unlinkat 263 35,link 86 -,
linkat 265 37,symlink 88 -,symlinkat 266 36,statfs 137 43,fstatfs 138 44,fsync 74 82,fdatasync 75 83,
ftruncate 77 46,copy_file_range 326 285,sendfile 40 71,dup 32 23,dup2 33 -,dup3 292 24,pipe 22 -,pipe2 293 59,
close_range 436 436,fcntl 72 25,ioctl 16 29,select 23 -,pselect6 270 72,poll 7 -,ppoll 271 73,epoll_create 213 -,
epoll_create1 291 20,epoll_ctl 233 21,epoll_wait 232 -,epoll_pwait 281 22,epoll_pwait2 441 441,eventfd2 290 19,
socketpair 53 199,sendto 44 206,recvfrom 45 207,shutdown 48 210,sched_yield 24 124,nanosleep 35 101,
clock_nanosleep 230 115,clock_getres 229 114,gettimeofday 96 169,time 201 -,times 100 153,pause 34 -,alarm 37 -,
getitimer 36 102,setitimer 38 103,rt_sigpending 127 136,rt_sigtimedwait 128 137,rt_sigsuspend 130 133,
sigaltstack 131 132,kill 62 129,tgkill 234 131,wait4 61 260,restart_syscall 219 128,getpid 39 172,gettid 186 178,
getppid 110 173,getuid 102 174,geteuid 107 175,getgid 104 176,getegid 108 177,getgroups 115 158,getresuid 118 148,
getresgid 120 150,getpgrp 111 -,getpgid 121 155,getsid 124 156,uname 63 160,sysinfo 99 179,getcpu 309 168,
getrusage 98 165,getrlimit 97 163,prlimit64 302 261,prctl 157 167,sched_getaffinity 204 123,arch_prctl 158 -,
set_tid_address 218 96,set_robust_list 273 99,rseq 334 293,membarrier 324 283,exit 60 93,
exit_group 231 94"""
CALLS_FOR_FILES = ",chmod 90 -,fchmod 91 52,fchmodat 268 53,utimensat 280 88,utime 132 -,utimes 235 -"
CALLS_FOR_THREADS = ",clone 56 220"
CONDITIONS: dict[
    str, list[tuple[int, list[Any]]]
] = {  # index of an argument, what it may be; of a negative one, the bits it must have
    "kill": [(0, ["own"])],
    "tgkill": [(0, ["own"])],
    "prlimit64": [(0, [0, "own"])],
    "getpgid": [(0, [0, "own"])],  # of others, it would tell that they are there
    "getsid": [(0, [0, "own"])],
    "sched_getaffinity": [(0, [0, "own"])],
    "prctl": [(0, [15])],  # a thread's name; not its parent's death, nor what was given up
    "clone": [(0, [-0x10000])],  # threads; no processes
    "socketpair": [(0, [1]), (1, [1, 1 | 1 << 19, 1 | 1 << 11, 1 | 1 << 19 | 1 << 11])],  # streams to itself
    "ioctl": [(1, [0x5401, 0x5413, 0x541B, 0x5421, 0x5450, 0x5451])],  # is it a terminal, how wide; bytes; flags
    "fcntl": [(1, [0, 1, 2, 3, 4, 5, 6, 7, 1030])],  # flags, copies and locks; no signals to an owner
}


class Broken(BaseException):
    """The other side is gone, or does not keep to the protocol; no ``except Exception`` of a test may hide it."""


def _forward(operation: str) -> Callable[..., Any]:
    """Make a method that is carried out on the other side. What it answers is data, which it has to know."""

    def method(self: Remote, /, *arguments: Any, **keywords: Any) -> Any:
        return self._peer.ask(operation, self, *arguments, **keywords)

    return method


def _between(operation: str) -> Callable[..., Any]:
    """Make an operator of two objects of the other side. With data on one side, it would be told the right answer."""

    def method(self: Remote, other: Any) -> Any:
        return self._peer.ask(operation, self, other) if isinstance(other, Remote) else NotImplemented

    return method


# Classes of the standard library that are data as well: what their __reduce__ gives makes an equal one
VALUES = {"fractions": ["Fraction"], "decimal": ["Decimal"],
          "datetime": ["date", "datetime", "time", "timedelta", "timezone"]}  # fmt: skip


class Remote:
    """Stands for an object that stays in the other process.

    Methods that text, lists, numbers … have too can be called on what comes of a class that the tests name, and on
    nothing else: a result that should be text must not be asked whether it begins with the right letters.
    """

    def __init__(self, peer: Peer, number: int, kind: str, label: str, of_class: bool) -> None:
        vars(self).update(_peer=peer, _number=number, _kind=kind, _label=label, _of_class=of_class)

    def __getattr__(self, name: str) -> Any:
        data = any(hasattr(kind, name) for kind in (str, bytes, list, dict, set, int, float, complex))
        if name.startswith("_") or (data and not self._of_class):
            raise AttributeError(f"{self._label or 'the code'} gave a {self._kind}, not data with {name!r}")
        value = self._peer.ask("getattr", self, name)
        if isinstance(value, Remote):
            vars(value)["_label"] = name
        return value

    def __setattr__(self, name: str, value: Any) -> None:
        self._peer.ask("setattr", self, name, value)

    def __instancecheck__(self, value: Any) -> bool:
        return isinstance(value, Remote) and bool(self._peer.ask("isinstance", value, self))

    __call__, __iter__, __next__ = map(_forward, ("call", "iter", "next"))
    __len__, __bool__, __int__, __float__, __hash__ = map(_forward, ("len", "bool", "int", "float", "hash"))
    __str__, __repr__, __neg__, __abs__ = map(_forward, ("str", "repr", "neg", "abs"))
    __getitem__, __setitem__, __delitem__ = map(_forward, ("getitem", "setitem", "delitem"))
    __eq__, __lt__, __le__, __gt__, __ge__ = map(_between, ("eq", "lt", "le", "gt", "ge"))
    __add__, __sub__, __mul__, __truediv__ = map(_between, ("add", "sub", "mul", "truediv"))
    __and__, __or__, __xor__ = map(_between, ("and", "or", "xor"))


class Peer:
    """One end of two pipes, over which two processes ask each other. What crosses them is lines of JSON.

    ``["ask", operation, arguments, keywords]`` is answered by ``["value", value, changed arguments]`` or by
    ``["error", names of its classes, arguments, lines of the code]``. Before it answers, a side may ask in turn.
    """

    def __init__(self, reader: int, writer: int, operations: dict[str, Callable[..., Any]], largest: int) -> None:
        self.reader, self.writer = os.fdopen(reader, "rb"), os.fdopen(writer, "wb", buffering=0)
        self.operations, self.largest = operations, largest
        self.objects: list[Any] = []  # that the other side has numbers of
        self.numbers: dict[int, int] = {}
        self.remotes: dict[tuple[int, bool], Remote] = {}
        self.exceptions: dict[str, type] = {}
        self.broken, self.label, self.of_class = "", "", False
        self.turn = _thread.RLock()  # of threads that ask at once, each gets its own answer
        self.asked = 0
        self.last: tuple[Any, ...] = ()  # call: function, arguments, keywords, result

    def encode(self, value: Any) -> Any:
        """Write a value as JSON can hold it: what is no number, text or truth is a list that begins with its kind."""
        kind = type(value)
        if value is None or kind in (bool, float, str) or (kind is int and value.bit_length() < 64):
            return value
        if kind is Remote:
            return ["yours", value._number]
        for base in (list, tuple, set, frozenset):
            if issubclass(kind, base):  # or a class of the code's own, which may say that it equals everything
                return [base.__name__, *map(self.encode, base.__iter__(value))]
        if issubclass(kind, dict):
            return ["dict", *(self.encode(one) for item in dict.items(value) for one in item)]
        if issubclass(kind, int):
            return ["int", hex(int.__pos__(value))]  # decimals of long ones are slow, and forbidden
        if issubclass(kind, (str, float)):
            return str.__str__(value) if issubclass(kind, str) else float.__pos__(value)
        if kind in (bytes, bytearray):
            return [kind.__name__, bytes(value).decode("latin-1")]
        if kind is complex:
            return ["complex", value.real, value.imag]
        if kind is range:
            return ["range", *map(self.encode, (value.start, value.stop, value.step))]
        if kind.__name__ in VALUES.get(kind.__module__, ()):
            return ["new", kind.__module__, kind.__name__, *map(self.encode, value.__reduce__()[1])]
        if isinstance(value, type) and issubclass(value, BaseException):
            return ["exception", *(one.__name__ for one in value.__mro__)]
        if "getattr" not in self.operations and not callable(value) and not hasattr(value, "__next__"):
            raise TypeError(f"the tests can't hand over a {kind.__name__}: only data, functions and iterators")
        number = self.numbers.setdefault(id(value), len(self.objects))
        if number == len(self.objects):
            self.objects.append(value)  # which keeps it, so that its id is nobody else's
        return ["object", number, kind.__name__]

    def decode(self, value: Any) -> Any:
        """Read what :meth:`encode` wrote. It makes data of it, and runs nothing."""
        if isinstance(value, dict):
            raise ValueError("an object of JSON")
        if not isinstance(value, list):
            return value
        kind, *rest = value
        if kind in ("list", "tuple", "set", "frozenset", "complex", "range"):
            values = map(self.decode, rest)
            return getattr(builtins, kind)(*values if kind in ("complex", "range") else (values,))
        if kind == "dict":
            values = iter(map(self.decode, rest))
            return dict(zip(values, values, strict=True))
        if kind == "int":
            return int(rest[0], 16)
        if kind in ("bytes", "bytearray"):
            return getattr(builtins, kind)(rest[0], "latin-1")
        if kind == "new" and rest[1] in VALUES[rest[0]]:
            return getattr(__import__(rest[0]), rest[1])(*map(self.decode, rest[2:]))
        if kind == "exception":
            return self.exception(rest)
        number = rest[0]
        if type(number) is int and number >= 0 and kind == "yours":
            return self.objects[number]
        if type(number) is int and number >= 0 and kind == "object":
            remote = Remote(self, number, str(rest[1]), self.label, self.of_class)
            return self.remotes.setdefault((number, self.of_class), remote)
        raise ValueError(f"unknown kind {kind!r}")

    def exception(self, names: list[str]) -> type:
        """Return a builtin exception's class, or make one in place of the code's own."""
        found = self.exceptions.get(names[0]) or getattr(builtins, names[0], None)
        if isinstance(found, type) and issubclass(found, BaseException):
            return found
        self.exceptions[names[0]] = type(str(names[0]), (self.exception(names[1:]),), {})
        return self.exceptions[names[0]]

    def send(self, *message: Any) -> None:
        """Write one line."""
        line = memoryview(json.dumps(message).encode() + b"\n")
        if len(line) > self.largest:
            raise OverflowError(f"more than {self.largest:,} bytes to hand over")
        try:
            while line:
                line = line[self.writer.write(line) :]
        except OSError:
            raise Broken("ended") from None

    def receive(self) -> list[Any]:
        """Read one line."""
        line = self.reader.readline(self.largest)
        if not line.endswith(b"\n"):
            raise Broken("gave back too much" if line else "ended")
        message: list[Any] = json.loads(line)
        return message

    def ask(self, operation: str, /, *arguments: Any, **keywords: Any) -> Any:
        """Have something done on the other side.

        Raises:
            Broken: The other side is gone, or answered what is no answer.
            BaseException: The exception that was raised there, if it is a builtin one, or else its first builtin base.
        """
        target = arguments[0] if arguments else None
        about = (target._label, target._of_class) if isinstance(target, Remote) else ("", False)
        self.asked += 1
        with self.turn:
            try:
                self.send("ask", operation, [self.encode(one) for one in arguments],
                          {name: self.encode(one) for name, one in keywords.items()})  # fmt: skip
                try:
                    kind, *rest = self.serve()
                    self.label, self.of_class = about
                    if kind == "value":
                        value = self.decode(rest[0])
                        for index, changed in rest[1] if operation == "call" else ():
                            self.replace(arguments[index], self.decode(changed))
                    else:
                        error = self.exception(rest[0])
                        values = [self.decode(one) for one in rest[1]]
                        lines, name = [int(line) for line in rest[2]], str(rest[0][0])
                        if issubclass(error, StopIteration) and operation != "next":
                            error = RuntimeError  # map and for would take it for an end, and leave the rest unchecked
                except Exception as strange:  # data that is not as it must be
                    raise Broken(f"answered what is no data: {type(strange).__name__}: {strange}") from None
            except Broken as broken:
                self.broken = self.broken or str(broken)
                raise
        if operation == "call":
            self.last = (about[0], arguments[1:], keywords, value if kind == "value" else name)
        if kind == "value":
            return value
        try:
            raised = error(*values)
        except Exception:  # some classes want other arguments
            raised = RuntimeError(name, *values)
        raised.code_lines, raised.code_name = lines, name
        raise raised

    def replace(self, old: Any, new: Any) -> None:
        """Change a list, dict, set or bytearray as the other side has changed its copy."""
        if type(old) is not type(new):
            raise TypeError("an argument that is another")
        old.clear()
        (old.extend if isinstance(old, (list, bytearray)) else old.update)(new)

    def serve(self) -> list[Any]:
        """Answer what is asked, until there is an answer to what was asked here."""
        while True:
            kind, *rest = self.receive()
            if kind != "ask":
                return [kind, *rest]
            try:
                reply = self.answer(*rest)
            except BaseException as error:
                reply = self.describe(error)
            try:
                self.send(*reply)
            except (ValueError, TypeError, RecursionError, OverflowError, MemoryError) as error:
                self.send(*self.describe(error))

    def answer(self, operation: str, arguments: list[Any], keywords: dict[str, Any]) -> list[Any]:
        """Do what was asked."""
        self.label, self.of_class = "", False  # what the code hands over comes of no class that the tests named
        values = [self.decode(one) for one in arguments]
        result = self.operations[operation](*values, **{name: self.decode(one) for name, one in keywords.items()})
        mutable = [i for i, one in enumerate(values) if type(one) in (list, dict, set, bytearray)]
        after = [(i, self.encode(values[i])) for i in mutable]
        return ["value", self.encode(result), [(i, one) for i, one in after if one != arguments[i]]]

    def describe(self, error: BaseException) -> list[Any]:
        """Tell of an exception, and of the last lines of the code that it came through."""
        lines, trace = [], error.__traceback__
        while trace:
            if trace.tb_frame.f_code.co_filename == "<code>":
                lines.append(trace.tb_lineno)
            trace = trace.tb_next
        try:
            arguments = [one if type(one) in (str, int, float) else str(one) for one in error.args[:5]]
            json.dumps(arguments)
        except Exception:  # some can't be shown
            arguments = []
        return [
            "error",
            [one.__name__ for one in type(error).__mro__],
            [one[:2000] if type(one) is str else one for one in arguments],
            lines[-3:],
        ]


def _judge(job: dict[str, Any], peer: Peer) -> dict[str, Any]:
    """Run the tests, in which the code's functions are stand-ins; return what came of it."""
    tests = sys.modules["tests"] = type(sys)("tests")
    names = vars(tests)
    entry = job["entry_point"]
    status, error = "passed", None
    try:
        if peer.receive() != ["ready"]:
            raise Broken
    except Broken:  # before it got the code
        return {"status": "unready"}
    try:
        found = peer.ask("load", job["code"], wanted := (*job["names"], entry))
        exports = {name: found[name] for name in wanted if name in found}  # and no other, such as one of a builtin
        for name, value in exports.items():
            if isinstance(value, Remote):
                exports[name] = Remote(peer, value._number, value._kind, name, name.lstrip("_")[:1].isupper())
        for module in job["modules"]:
            sys.modules[module] = type(sys)(module)
            vars(sys.modules[module]).update(exports)
        names.update({name: __import__(name) for name in job["libraries"]}, **exports)
        if "random" in job["tests"]:
            __import__("random").seed(0)
        exec(compile(job["setup"], "<setup>", "exec"), names)
        if entry:
            if entry not in exports:
                raise NameError(f"the code defines no {entry!r}")
            names[entry] = exports[entry]
        exec(compile(job["tests"], "<tests>", "exec"), names)
        for name in job["functions"]:
            names[name](*[exports[entry]] if name == "check" else [])
        if job["classes"]:
            unittest = __import__("unittest")
            suite = unittest.defaultTestLoader.loadTestsFromModule(tests)
            result = unittest.TextTestRunner(stream=sys.stdout).run(suite)
            if not result.wasSuccessful() or not result.testsRun:
                raise AssertionError([text for _, text in result.failures + result.errors][:1] or "no test ran")
        if peer.asked == 1 and all(isinstance(value, Remote) for value in exports.values()):
            raise RuntimeError("the tests used nothing of the code")  # a coroutine, a function that nobody calls
    except BaseException as caught:  # SystemExit too: an end before the end of the tests is no pass
        error, status = caught, "failed" if isinstance(caught, AssertionError) else "error"
    if peer.broken:
        return {"status": "crashed", "text": f"the code's process {peer.broken}", "line": 0, "lines": [], "call": ""}
    line, trace = 0, getattr(error, "__traceback__", None)
    while trace:
        line = trace.tb_lineno if trace.tb_frame.f_code.co_filename == "<tests>" else line
        trace = trace.tb_next
    text = call = ""
    if error is not None:
        with contextlib.suppress(BaseException):  # to show an object of the code, it is asked
            text = f"{getattr(error, 'code_name', type(error).__name__)}: {error}".removesuffix(": ")
            name, arguments, keywords, value = peer.last
            given = [*map(repr, arguments), *(f"{key}={one!r}" for key, one in keywords.items())]
            call = f"{name}({', '.join(one[:200] for one in given)}) → {repr(value)[:300]}" if name else ""
    lines = getattr(error, "code_lines", [])
    return {"status": status, "text": text[:2000], "line": line, "lines": lines, "call": call[:1000]}


def _load(code: str, names: tuple[str, ...]) -> dict[str, Any]:
    """Run the code's top level, and return what the tests make use of."""
    module = sys.modules["solution"] = type(sys)("solution")
    exec(compile(code, "<code>", "exec"), vars(module))
    return {name: vars(module)[name] for name in names if name in vars(module)}


def _system_calls(calls: str, conditions: dict[str, Any], own: int) -> bytes:
    """Write the program that the kernel runs before each system call: what is not named is refused.

    Args:
        calls: Names with numbers on x86-64 and ARM (``-``: there is none).
        conditions: Name → (index of an argument, values it may have), all of which must hold.
        own: This process's id.
    """
    column, architecture = {"x86_64": (1, 0xC000003E), "aarch64": (2, 0xC00000B7)}[os.uname().machine]
    load, equal, at_least, bits, give = 0x20, 0x15, 0x35, 0x45, 0x06
    allow, refuse, unknown, kill = 0x7FFF0000, 0x00050000 | errno.EPERM, 0x00050000 | errno.ENOSYS, 0x80000000
    # Newer calls than these, the other ABI of x86 and clone3 (435), whose arguments can't be seen, are "not there"
    program = [(load, 0, 0, 4), (equal, 1, 0, architecture), (give, 0, 0, kill), (load, 0, 0, 0),
               (at_least, 1, 0, 451), (equal, 0, 1, 435), (give, 0, 0, unknown)]  # fmt: skip
    for name, *numbers in (one.split() for one in calls.split(",")):
        if numbers[column - 1] == "-":
            continue
        body = []
        for index, values in conditions.get(name, ()):
            body.append((load, 0, 0, 16 + 8 * index))
            for left, value in zip(range(len(values), 0, -1), values, strict=True):
                value = own if value == "own" else value
                body.append((equal if value >= 0 else bits, left, 0, abs(value)))
            body.append((give, 0, 0, refuse))
        body.append((give, 0, 0, allow))
        program += [(equal, 0, len(body), int(numbers[column - 1])), *body]
    program.append((give, 0, 0, refuse))
    return b"".join(struct.pack("HBBI", *one) for one in program)


class Confinement:
    """Takes from this process, for good, all that a function's code has no need of."""

    def __init__(self, job: dict[str, Any]) -> None:
        self.active: list[str] = []
        self.job, self.libc = job, ctypes.CDLL(None, use_errno=True)
        self.folder, self.readable = job["folder"], [source for source, _ in job["readable"]]
        self.counted = self.isolated = False  # threads have a limit of their own; the file system is another

    def call(self, name: str, *arguments: Any) -> int:
        """Call a function of the C library."""
        numbers = (ctypes.c_long(one) if isinstance(one, int) else one for one in arguments)
        result: int = getattr(self.libc, name)(*numbers)
        if result < 0:
            code = ctypes.get_errno()
            raise OSError(code, f"{name}: {os.strerror(code)}")
        return result

    def enter(self) -> list[str]:
        """Put all layers on that there are; return their names."""
        steps = {"limits": self.limit, "namespaces": self.separate, "landlock": self.lock, "user": self.drop,
                 "system calls": self.filter}  # fmt: skip
        with contextlib.suppress(OSError), open("/proc/self/oom_score_adj", "w") as file:
            file.write("1000")  # when memory runs out, this goes first
        for name, step in steps.items():
            if name in self.job["layers"]:
                try:
                    step()
                    self.active.append(name)
                except (OSError, AttributeError, KeyError, ValueError) as reason:  # not of this kernel, libc, machine
                    self.job.setdefault("reasons", {})[name] = str(reason)
        return self.active

    def limit(self) -> None:
        """Limit what the process may use up."""
        import resource

        for name, value in self.job["limits"].items():
            kind = getattr(resource, f"RLIMIT_{name}", None)
            if kind is not None:
                hard = resource.getrlimit(kind)[1]
                value = value if hard == resource.RLIM_INFINITY else min(value, hard)
                resource.setrlimit(kind, (value, value))

    def separate(self) -> None:
        """Move to another file system, with nothing but libraries and an empty folder in memory, and no network."""
        mount, user = 0x00020000 | 0x40000000 | 0x08000000 | 0x04000000, 0x10000000  # mounts, network, IPC, host name
        uid, gid = os.getuid(), os.getgid()
        try:
            self.call("unshare", mount)
        except OSError:
            self.call("unshare", mount | user)
            for name, text in (("setgroups", "deny"), ("uid_map", f"{uid} {uid} 1"), ("gid_map", f"{gid} {gid} 1")):
                with open(f"/proc/self/{name}", "w") as file:
                    file.write(text)
            self.counted = uid != 0
            self.job["user"] = 0  # there is no other in this namespace
        self.call("mount", None, b"/", None, 16384 | 1 << 18, None)  # recursively private
        root = os.fsencode(self.folder)
        self.call("mount", b"tmpfs", root, b"tmpfs", 14, b"size=1m,mode=755")
        try:
            self.furnish(root, self.job["user"] or uid, self.job["user"] or gid)
        except OSError:
            self.call("umount2", root, 2)  # or else libraries would be part of the folder that may be written
            raise
        self.isolated, self.folder, self.readable = True, "/work", [target for _, target in self.job["readable"]]
        sys.path_importer_cache.clear()
        library, new = self.job["readable"][0]
        for paths in [sys.path, *(getattr(module, "__path__", []) for module in sys.modules.values())]:
            paths[:] = [path.replace(library, new, 1) for path in paths]

    def furnish(self, root: bytes, uid: int, gid: int) -> None:
        """Mount what may be read and the folder that may be written, and make their root the only one."""
        read_only, remount, bind, recursive = 1, 32, 4096, 16384
        strict = 2 | 4 | 8  # no setuid, devices, programs
        for source, target in self.job["readable"]:
            place = root + os.fsencode(target)
            os.makedirs(place if os.path.isdir(source) else os.path.dirname(place), exist_ok=True)
            if not os.path.isdir(source):
                open(place, "x").close()
            self.call("mount", os.fsencode(source), place, None, bind | recursive, None)
            flags = os.statvfs(place).f_flag & 15  # what is forbidden already stays so
            self.call("mount", None, place, None, bind | remount | read_only | 2 | flags, None)
        os.mkdir(root + b"/work")
        quota = f"size={self.job['disk']},nr_inodes={self.job['files']},mode=700,uid={uid},gid={gid}"
        self.call("mount", b"tmpfs", root + b"/work", b"tmpfs", strict, quota.encode())
        self.call("mount", None, root, None, bind | remount | read_only | strict, None)
        os.chdir(root)
        self.call("syscall", {"x86_64": 155, "aarch64": 41}[os.uname().machine], b".", b".")  # pivot_root
        self.call("umount2", b".", 2)  # the old root, which lies over the new one

    def lock(self) -> None:
        """Allow files of the libraries to be read, and those of the own folder to be written (Landlock)."""
        version = self.call("syscall", 444, None, 0, 1)
        if version < 3:
            raise OSError(errno.ENOSYS, "Landlock before its version 3 lets files be cut short")
        write, read, list_, remove, make, cut = (1 << bit for bit in (1, 2, 3, 5, 8, 14))  # files
        folders_and_links = 1 << 4 | 1 << 7 | 1 << 12
        kinds = struct.pack("QQQ", (1 << (16 if version >= 5 else 15)) - 1, 3, 3)  # files, TCP, signals and sockets
        rules = self.call("syscall", 444, kinds, 24 if version >= 6 else 16 if version >= 4 else 8, 0)
        own = write | read | list_ | remove | make | cut
        own |= folders_and_links if self.isolated else 0  # their number is limited there
        for path, rights in [*((path, read | list_) for path in self.readable), (self.folder, own)]:
            descriptor = os.open(path, os.O_PATH | os.O_CLOEXEC)
            if not os.path.isdir(path):
                rights = read | write if path.startswith("/dev/") else read
            self.call("syscall", 445, rules, 1, struct.pack("=Qi", rights, descriptor), 0)
            os.close(descriptor)
        self.call("prctl", 38, 1, 0, 0, 0)
        self.call("syscall", 446, rules, 0)
        os.close(rules)

    def drop(self) -> None:
        """Become a user that nobody else is."""
        user = self.job["user"]
        if os.getuid() == 0 and user:
            if not self.isolated:  # else the library is not behind root's own folders
                os.seteuid(user)
                try:
                    os.listdir(os.path.dirname(os.__file__))
                finally:
                    os.seteuid(0)
                os.chown(self.folder, user, user)
            os.setgroups([])
            os.setresgid(user, user, user)
            os.setresuid(user, user, user)
            self.counted = True
        if os.getuid() == 0:
            raise PermissionError("there is no other user")

    def filter(self) -> None:
        """Give up capabilities, and all system calls but those on the list."""
        machine = os.uname().machine
        self.call("prctl", 38, 1, 0, 0, 0)  # no new privileges
        self.call(
            "syscall", {"x86_64": 126, "aarch64": 91}[machine], struct.pack("Ii", 0x20080522, 0), bytes(24)
        )  # capset
        self.call("prctl", 4, 0, 0, 0, 0)  # not to be traced, no core file
        self.call("prctl", 1, 9, 0, 0, 0)  # killed when the parent dies
        if os.getppid() != self.job["parent"]:
            sys.exit("the parent is gone")
        calls = self.job["calls"] + (self.job["calls_for_files"] if self.isolated else "")
        calls += self.job["calls_for_threads"] if self.counted else ""
        program = ctypes.create_string_buffer(_system_calls(calls, self.job["conditions"], os.getpid()))
        size = (len(program) - 1) // 8
        self.call("prctl", 22, 2, struct.pack("@HP", size, ctypes.addressof(program)), 0, 0)


def _inside() -> None:
    """Confine this process, then answer calls or run tests."""
    job = json.loads(sys.stdin.buffer.read())
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    confinement = Confinement(job)
    active = confinement.enter()
    if job["role"] == "probe":
        os.write(job["verdict"], json.dumps([active, job.get("reasons", {})]).encode())
        return
    if missing := set(job["required"]) - set(active):
        sys.stderr.write(f"{', '.join(missing)}: {job.get('reasons', 'left out')}")
        sys.exit(78)
    os.environ.update(HOME=confinement.folder, TMPDIR=confinement.folder)
    with contextlib.suppress(OSError):
        os.chdir(confinement.folder)
    sys.stdout.reconfigure(line_buffering=True, errors="backslashreplace")  # type: ignore[union-attr]
    operations: dict[str, Any] = {"iter": iter, "next": next}
    operations["call"] = lambda function, /, *arguments, **keywords: function(*arguments, **keywords)
    if job["role"] == "code":
        operations["load"] = _load
        for name in "len bool str int float repr hash getattr setattr isinstance".split():
            operations[name] = getattr(builtins, name)
        for name in "getitem setitem delitem neg abs eq lt le gt ge add sub mul truediv and or xor".split():
            operations[name] = getattr(operator, f"__{name}__")
        peer = Peer(job["reader"], job["writer"], operations, job["largest"])
        with contextlib.suppress(Broken):  # the tests are over
            peer.send("ready")
            peer.serve()
    else:
        verdict = _judge(job, Peer(job["reader"], job["writer"], operations, job["largest"]))
        os.write(job["verdict"], json.dumps(verdict).encode())
    sys.stdout.flush()
    os._exit(0)  # whatever threads there are


PARTS = (Broken, _forward, _between, Remote, Peer, _judge, _load, _system_calls, Confinement, _inside)
MODULES = ("_thread", "builtins", "contextlib", "ctypes", "errno", "json", "operator", "os", "struct")


# --- Outside: starting both interpreters, watching them, and what came of it ------------------------------------------


@dataclass(frozen=True)
class Limits:
    """What code may use up."""

    seconds: float = 10.0
    """Of wall-clock time, start of the interpreters included, in (0, 3600]; of processor time one more."""
    memory_mib: int = 512
    """Of address space, in [64, 65536]."""
    disk_mib: int = 16
    """Of files in its folder, in [1, 4096]."""
    output_kib: int = 64
    """Of what it prints, in [1, 65536]."""
    threads: int = 16
    """At once, in [1, 1000]; only one where the kernel can't count them apart from the user's."""
    files: int = 256
    """In its folder, in [8, 10000]; 32 may be open."""

    def __post_init__(self) -> None:
        """Check the ranges."""
        check_range("seconds", self.seconds, 0, 3600, open_low=True)
        for name, low, high in (("memory_mib", 64, 65536), ("disk_mib", 1, 4096), ("output_kib", 1, 65536),
                                ("threads", 1, 1000), ("files", 8, 10000)):  # fmt: skip
            check_range(name, getattr(self, name), low, high)

    def resources(self) -> dict[str, int]:
        """Return the limits that ``setrlimit`` takes."""
        return {"CPU": math.ceil(self.seconds) + 1, "AS": self.memory_mib << 20, "FSIZE": self.disk_mib << 20,
                "NOFILE": 32, "NPROC": self.threads, "STACK": 8 << 20, "CORE": 0, "MEMLOCK": 0,
                "MSGQUEUE": 0, "SIGPENDING": 64, "NICE": 0, "RTPRIO": 0}  # fmt: skip


Status = Literal["passed", "failed", "error", "crashed", "limit", "timeout", "syntax"]
STATUSES: tuple[Status, ...] = get_args(Status)  # from good to bad


@dataclass(frozen=True)
class Verdict:
    """What came of running tests.

    Attributes:
        status: ``passed``; ``failed``, an assertion did not hold; ``error``, an exception of code or tests;
            ``crashed``, the process ended or gave no answer; ``limit``, it printed or wrote too much; ``timeout``;
            ``syntax``, it is not Python.
        message: What went wrong, where, and what the last call returned; empty where all is well.
        output: What was printed, with control characters written out.
        seconds: Wall-clock.
        line: Of the tests, where they ended; 0 is none.
    """

    status: Status
    message: str = ""
    output: str = ""
    seconds: float = 0.0
    line: int = 0

    @property
    def passed(self) -> bool:
        """Whether all tests passed."""
        return self.status == "passed"


@functools.cache
def _program_inside() -> bytes:
    """Return what the fresh interpreters run: compiled, for they are as new as this one and start for every verdict."""
    head = ["from __future__ import annotations", "import sys", "sys.path.remove('')", f"import {', '.join(MODULES)}"]
    with PARSING:  # getsource parses
        parts = [inspect.getsource(part) for part in PARTS]
    return marshal.dumps(compile("\n".join([*head, f"VALUES = {VALUES}", *parts, "_inside()"]), "<sandbox>", "exec"))


def _readable() -> list[tuple[str, str]]:
    """Return what code may read, and where it finds it: Python's library, those of the system, time zones."""
    library = os.path.dirname(os.path.realpath(os.__file__))
    if os.path.basename(os.path.dirname(library)).startswith("lib"):
        library = os.path.dirname(library)  # with the libraries that its modules are linked to
    others = ("/lib", "/lib64", "/usr/lib", "/usr/lib64", "/usr/local/lib", "/nix/store", "/etc/ld.so.cache",
              "/etc/localtime", "/usr/share/zoneinfo", "/dev/null", "/dev/urandom")  # fmt: skip
    return [(library, "/python"), *((path, path) for path in others if os.path.exists(path))]


def _other_user() -> int:
    """Return the id of a user that nobody is; 0 where this process isn't root or has no other."""
    if os.getuid() != 0:
        return 0
    with contextlib.suppress(OSError):
        first, _, count = map(int, Path("/proc/self/uid_map").read_text().splitlines()[-1].split())
        top = min(first + count, 2_000_000_000)
        return top - 1 - int.from_bytes(os.urandom(4), "little") % max(1, min(top // 2, 2**27)) if top > 1 else 0
    return 0


def _start(job: dict[str, Any], limits: Limits, folder: str, output: int, descriptors: Sequence[int]) -> Any:
    """Start a fresh interpreter that confines itself and then does its job."""
    job = job | {
        "limits": limits.resources(), "folder": folder, "user": _other_user(), "disk": limits.disk_mib << 20,
        "files": limits.files, "largest": 1 << 24, "readable": _readable(), "parent": os.getpid(),
        "calls": CALLS.replace("\n", ""), "calls_for_files": CALLS_FOR_FILES, "calls_for_threads": CALLS_FOR_THREADS,
        "conditions": CONDITIONS,
    }  # fmt: skip
    program = _program_inside()
    start = f"import marshal, sys\nexec(marshal.loads(sys.stdin.buffer.read({len(program)})))"
    with tempfile.TemporaryFile() as file:  # not a pipe, which may be full before anybody reads
        file.write(program + json.dumps(job).encode())
        file.seek(0)
        return subprocess.Popen(
            [os.path.realpath(sys.executable), "-s", "-S", "-B", "-X", "utf8", "-c", start],
            stdin=file, stdout=output, stderr=output, pass_fds=descriptors, cwd=folder, start_new_session=True,
            env={"PYTHONHASHSEED": "0", "LANG": "C.UTF-8", "MALLOC_ARENA_MAX": "2"},
        )  # fmt: skip


@functools.cache
def _probe(layers: tuple[str, ...]) -> tuple[tuple[str, ...], dict[str, str]]:
    """Return the layers that a process can put on here, and why it can't the others."""
    if os.name != "posix":
        return (), {name: "not on this system" for name in layers}
    folder = tempfile.mkdtemp()
    reader, writer = os.pipe()
    try:
        process = _start(
            {"role": "probe", "layers": layers, "verdict": writer}, Limits(), folder, subprocess.DEVNULL, [writer]
        )
        os.close(writer)
        try:
            process.wait(30)
        finally:
            process.kill()
            process.wait()
        with os.fdopen(reader, "rb") as file:
            active, reasons = json.loads(file.read() or b"[[], {}]")
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    return tuple(active), reasons


def protections(layers: Collection[str] = LAYERS) -> tuple[str, ...]:
    """Return the layers of the sandbox that are active on this machine.

    Args:
        layers: Those to try: limits, namespaces, landlock, user and system calls.
    """
    return _probe(tuple(name for name in LAYERS if name in layers))[0]


def missing_protection(active: Collection[str]) -> str:
    """Return what the sandbox lacks to be one; nothing where it is."""
    lacking = [name for name in ("limits", "system calls") if name not in active]
    if "namespaces" not in active and "landlock" not in active:
        lacking.append("namespaces or landlock")
    return ", ".join(lacking)


def _plan(tests: str, setup: str, entry_point: str) -> dict[str, Any]:
    """Find out what tests want of the code and which parts of them are to be called."""
    for name, text in (("tests are", tests), ("setup is", setup)):
        if problem := syntax_error(text):
            raise InputError(f"The {name} not Python: {problem}.")
    tree, both = _parse(tests), _parse(f"{setup}\n{tests}")
    nodes = list(ast.walk(both))
    if not any(isinstance(node, (ast.Assert, ast.Raise)) or (isinstance(node, ast.Attribute) and
               re.match("assert|fail", node.attr)) for node in ast.walk(tree)):  # fmt: skip
        raise InputError("The tests check nothing.", hint='an assertion, such as "assert add(1, 2) == 3"')
    loaded = {node.id for node in nodes if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Load)}
    bound = {node.id for node in nodes if isinstance(node, ast.Name) and not isinstance(node.ctx, ast.Load)}
    bound |= {node.name for node in nodes if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef))}
    bound |= {node.arg for node in nodes if isinstance(node, ast.arg)} - {entry_point}
    modules = set()
    for node in nodes:
        if isinstance(node, ast.Import):
            bound |= {(alias.asname or alias.name).partition(".")[0] for alias in node.names}
            modules |= {alias.name for alias in node.names}  # of a.b, a as well
            modules |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and not node.level:
            bound |= {alias.asname or alias.name for alias in node.names}
            modules |= {node.module or "", (node.module or "").partition(".")[0]}
    solutions = {name for name in modules if name.partition(".")[0] not in sys.stdlib_module_names}
    # `from solution import add`, where no such module is: the code under test is meant
    wanted = {alias.name for node in nodes if isinstance(node, ast.ImportFrom) and node.module in solutions
              for alias in node.names}  # fmt: skip
    attributes = [node for node in nodes if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name)]
    wanted |= {node.attr for node in attributes if node.value.id in solutions}  # type: ignore[attr-defined]
    unbound = loaded - bound - set(dir(builtins))
    libraries = {node.value.id for node in attributes} & unbound & sys.stdlib_module_names  # type: ignore[attr-defined]
    functions = [node.name for node in tree.body if isinstance(node, ast.FunctionDef) and (
                 node.name == "check" or (node.name.startswith("test") and not node.args.args))]  # fmt: skip
    classes = [node.name for node in tree.body if isinstance(node, ast.ClassDef) and "TestCase" in ast.dump(node)]
    return {"tests": tests, "setup": setup, "entry_point": entry_point, "functions": functions, "classes": classes,
            "names": sorted((unbound - libraries | wanted) - {"__name__"}), "libraries": sorted(libraries),
            "modules": sorted(solutions)}  # fmt: skip


def run_tests(
    code: str, tests: str, limits: Limits | None = None, *, entry_point: str = "", setup: str = "",
    allow_unprotected: bool = False, layers: Collection[str] = LAYERS,
) -> Verdict:  # fmt: skip
    """Run tests on a program in the sandbox; see the module for what holds it and what the tests see of it.

    Args:
        code: The program, which nobody need trust.
        tests: Assertions, functions named ``test…``, a function ``check(candidate)`` as HumanEval has, or unittest's
            classes. Names that they don't define are the code's, builtins excepted; so is what they import from a
            module that there isn't.
        limits: What the program may use up.
        entry_point: The function that ``check`` is called with; by default the last one of the code.
        setup: Trusted code that runs before the tests, such as helpers of the problem. It wins over the code's names.
        allow_unprotected: Run even where the sandbox is none.
        layers: Those to try, for a look at what each does.

    Raises:
        InputError: The tests are no Python or check nothing, or the sandbox would be none.
    """
    limits = limits or Limits()
    plan = _plan(tests, setup, entry_point)
    problem = syntax_error(code)
    if problem:
        return Verdict("syntax", problem)
    if "check" in plan["functions"] and not entry_point:
        names = [node.name for node in _parse(code).body if isinstance(node, ast.FunctionDef)]
        if not names:
            return Verdict("error", "the code defines no function to check")
        plan["entry_point"] = names[-1]
    tried = tuple(name for name in LAYERS if name in layers)
    active, reasons = _probe(tried)
    missing = missing_protection(active)
    if missing and not allow_unprotected:
        why = "; ".join(f"{name}: {reason}" for name, reason in reasons.items())
        raise InputError(
            f"Here is no sandbox to run the code in: it lacks {missing}{f' ({why})' if why else ''}.",
            hint="Linux with namespaces or Landlock; or --allow_unprotected true, for code that you trust",
        )
    return _watch(code, plan | {"layers": tried, "required": active, "code": code}, limits, "namespaces" not in active)


def _watch(code: str, job: dict[str, Any], limits: Limits, scan: bool) -> Verdict:
    """Start both interpreters, and look on until there is a verdict or something is used up."""
    started = time.monotonic()
    printed, said, status, reason = bytearray(), bytearray(), "", ""
    with contextlib.ExitStack() as stack:
        pipes = [[stack.enter_context(open(end, mode, 0)) for end, mode in zip(os.pipe(), ("rb", "wb"), strict=True)]
                 for _ in range(4)]  # fmt: skip
        (output, output_end), (verdict, verdict_end), (question, question_end), (answer, answer_end) = pipes
        processes = []
        try:
            for role, ends in (
                ("code", {"reader": question, "writer": answer_end}),
                ("tests", {"reader": answer, "writer": question_end, "verdict": verdict_end}),
            ):
                folder = tempfile.mkdtemp()
                stack.callback(shutil.rmtree, folder, ignore_errors=True)
                its = {key: value for key, value in job.items() if role == "tests" or key in ("layers", "required")}
                its |= {"role": role} | {name: end.fileno() for name, end in ends.items()}
                descriptors = [end.fileno() for end in ends.values()]
                processes.append((_start(its, limits, folder, output_end.fileno(), descriptors), folder))
            for end in (output_end, verdict_end, question, question_end, answer, answer_end):
                end.close()
            with selectors.DefaultSelector() as selector:
                selector.register(output, selectors.EVENT_READ, printed)
                selector.register(verdict, selectors.EVENT_READ, said)
                while not status:
                    left = started + limits.seconds - time.monotonic()
                    for key, _ in selector.select(max(0.0, min(left, 0.02 if scan else left))):
                        data = os.read(key.fd, 1 << 16)
                        key.data.extend(data)
                        if not data:
                            selector.unregister(key.fileobj)
                            status = "done" if key.fileobj is verdict else status
                    if len(printed) > limits.output_kib << 10:
                        status, reason = "limit", f"more than {limits.output_kib} KiB were printed"
                    elif scan and _too_much(processes[0][1], limits):
                        status, reason = (
                            "limit",
                            f"more than {limits.disk_mib} MiB or {limits.files} files were written",
                        )
                    elif left <= 0 and not status:
                        status, reason = "timeout", f"not done after {limits.seconds:g} seconds"
        finally:
            for process, _ in processes:
                with contextlib.suppress(ProcessLookupError, PermissionError):
                    os.killpg(process.pid, signal.SIGKILL)  # one process each, unless it runs without protection
                process.kill()
                process.wait()
        os.set_blocking(output.fileno(), False)
        printed += output.read(1 << 16) or b""
    size = limits.output_kib << 10
    text = _visible(printed[:size].decode("utf-8", "replace"))[:size]
    seconds = time.monotonic() - started
    if status != "done":
        return Verdict(status, reason, text, seconds)  # type: ignore[arg-type]
    codes = [process.returncode for process, _ in processes]
    how = [f"by signal {-one}" if one < 0 else f"with status {one}, before it had answered" for one in codes]
    if not said and codes[1] != 78:
        return Verdict("crashed", f"the tests' process ended {how[1]}", text, seconds)
    found: dict[str, Any] = json.loads(said or b'{"status": "unready"}')
    if found["status"] == "unready":
        raise OSError(f"The sandbox could not be set up: {text}")
    if found["text"] == "the code's process ended":
        found["text"] += f" {how[0]}"
    return Verdict(found["status"], _message(found, code, job["tests"]), text, seconds, found["line"])


def _too_much(folder: str, limits: Limits) -> bool:
    """Tell whether a folder, which can have no others in it, holds more than it may."""
    sizes = []
    with contextlib.suppress(OSError), os.scandir(folder) as entries:
        for entry in entries:
            with contextlib.suppress(OSError):
                sizes.append(entry.stat(follow_symlinks=False).st_size)
            if len(sizes) > limits.files:
                return True
    return sum(sizes) > limits.disk_mib << 20


def _visible(text: str) -> str:
    """Write control characters out: they could make a terminal do things."""
    return "".join(c if c.isprintable() or c in "\n\t" else c.encode("unicode_escape").decode() for c in text)


def _message(found: dict[str, Any], code: str, tests: str) -> str:
    """Say what went wrong as a reader, or the model that repairs it, can use it."""
    if found["status"] == "passed":
        return ""
    lines = [found["text"]]
    statements = [node for node in ast.walk(_parse(tests)) if isinstance(node, ast.stmt)
                  and node.lineno <= found["line"] <= (node.end_lineno or 0)]  # fmt: skip
    if statements:
        inner = min(statements, key=lambda node: (node.end_lineno or 0) - node.lineno)
        lines.append(f"in the tests, line {inner.lineno}: {(ast.get_source_segment(tests, inner) or '')[:500]}")
    source = code.splitlines()
    lines += [f"in the code, line {number}: {source[number - 1].strip()}" for number in found["lines"]
              if 0 < number <= len(source)]  # fmt: skip
    return _visible("\n".join(line for line in [*lines, found["call"]] if line))


# --- Problems ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Problem:
    """A task with tests.

    Attributes:
        id: Its name.
        prompt: What a model goes on with: a head with docstring, behind imports and helpers; or a docstring.
        tests: See :func:`run_tests`.
        entry_point: The function that is asked for; empty where the tests name it.
        setup: Trusted code for the tests.
        solution: A right program.
    """

    id: str
    prompt: str
    tests: str
    entry_point: str = ""
    setup: str = ""
    solution: str = ""


def read_problems(path: Path) -> list[Problem]:
    """Read problems in HumanEval's or MBPP's format: JSON lines or one JSON list, gzipped or not.

    Raises:
        InputError: It is neither, or a problem lacks something, or has tests that can't be run; which one is named.
        OSError: The file can't be read.
    """
    data = path.read_bytes()
    try:
        text = (gzip.decompress(data) if data[:2] == b"\x1f\x8b" else data).decode("utf-8-sig")
        lines = [text] if text.lstrip().startswith("[") else [line for line in text.split("\n") if line.strip()]
        rows = [json.loads(line) for line in lines]
    except (ValueError, EOFError, RecursionError, zlib.error, gzip.BadGzipFile) as error:
        raise InputError(f"{path} is not in HumanEval's or MBPP's format: {type(error).__name__}: {error}.") from None
    problems = []
    for number, row in enumerate(rows[0] if rows and isinstance(rows[0], list) else rows, 1):
        name = row.get("task_id") if isinstance(row, dict) else None
        which = f"{path}, problem {number}" + (f" ({str(name)[:80]})" if name is not None else "")
        try:
            problems.append(_problem(row))
        except InputError as error:
            raise InputError(f"{which}: {error.args[0]}", hint=error.hint) from None
        except (KeyError, TypeError, AttributeError, RecursionError) as error:
            reason = f"{type(error).__name__}: {error}"
            raise InputError(f"{which} is not in HumanEval's or MBPP's format: {reason}.") from None
    if not problems or len({problem.id for problem in problems}) < len(problems):
        raise InputError(f"{path} must hold problems, each with a task_id of its own.")
    return problems


def _problem(row: dict[str, Any]) -> Problem:
    """Make a problem of a row, after a look at all that running it takes."""
    task_id = row["task_id"]
    if "entry_point" in row:
        # Some tests call helpers that the prompt defines: theirs are these, whatever the code makes of them
        prompt = row["prompt"]
        problem = Problem(str(task_id), prompt, row["test"], row["entry_point"], _with_body(prompt),
                          prompt + row.get("canonical_solution", ""))  # fmt: skip
    else:
        tests = "\n".join([*(row.get("test_imports") or []), row.get("test_setup_code") or "", *row["test_list"]])
        prompt = "\n".join(['"""', row.get("text") or row["prompt"], *row["test_list"][:1], '"""', ""])
        problem = Problem(f"MBPP/{task_id}", prompt, tests, solution=row["code"])
    if not isinstance(task_id, (str, int)):
        raise TypeError("task_id must be text or a number")
    if wrong := [name for name, value in vars(problem).items() if not isinstance(value, str)]:
        raise TypeError(f"{', '.join(wrong)} must be text")
    if not problem.prompt.strip():
        raise InputError("The prompt is empty.")
    _plan(problem.tests, problem.setup, problem.entry_point)
    return problem


PLANTED = """

def _wrong(value):
    if isinstance(value, bool):
        return not value
    for more in (1, 1.0, 1j, "?", b"?", [None], (None,)):
        if isinstance(value, type(more)):
            return value + more
    if isinstance(value, dict):
        return {**value, "?": None}
    return value | {"?"} if isinstance(value, (set, frozenset)) else 0


def NAME(*arguments, **keywords):
    return _wrong(_right_NAME(*arguments, **keywords))
"""


def plant_bug(code: str, entry_point: str) -> str:
    """Change what a function returns, on every call: a number is one higher, a list one longer, true is false.

    Only the outermost call is changed: a function that calls itself could undo it. It holds for any value that is data
    and no infinity, so a sandbox that lets the result pass is wrong, not the tests weak.
    """

    class Rename(ast.NodeTransformer):
        def visit_Name(self, node: ast.Name) -> ast.AST:  # noqa: N802
            return ast.Name(f"_right_{node.id}", node.ctx) if node.id == entry_point else node

    tree = Rename().visit(_parse(code))
    for node in tree.body:
        if getattr(node, "name", "") == entry_point:
            node.name = f"_right_{entry_point}"
    return ast.unparse(ast.fix_missing_locations(tree)) + PLANTED.replace("NAME", entry_point)


# --- Generation -------------------------------------------------------------------------------------------------------

INSTRUCTION = """Complete this Python program. Answer with the whole function in one fenced block, and nothing else.

```python
{prompt}
```"""
REPAIR = """This attempt is wrong:

```python
{code}
```

{message}

Answer with the mended function in one fenced block."""


@dataclass(frozen=True)
class Candidate:
    """A program that a model wrote.

    Attributes:
        code: The program; empty where the text holds none.
        verdict: What its tests say.
        log_probability: Mean of its tokens', under the model.
        round: 0, or the number of repairs before it.
    """

    code: str
    verdict: Verdict
    log_probability: float
    round: int = 0

    def rank(self) -> tuple[int, int, float]:
        """Return what sorts the best first: the status, how far the tests came, what the model finds likely."""
        return STATUSES.index(self.verdict.status), -self.verdict.line, -self.log_probability


class CodeGenerator:
    """Writes functions with a language model, tries them and lets the model mend them.

    Args:
        generator: Any causal language model; with a chat template it is told what to do, else it goes on with a prompt.
        limits: Of the sandbox.
        allow_unprotected: See :func:`run_tests`.
    """

    def __init__(
        self, generator: TextGenerator, limits: Limits | None = None, *, allow_unprotected: bool = False
    ) -> None:
        self.generator, self.limits, self.allow_unprotected = generator, limits or Limits(), allow_unprotected

    def write(self, problems: Sequence[Problem], settings: Settings, error: str = "") -> list[tuple[str, float]]:
        """Return a program for each problem, empty where there is none in the text, and its mean log-probability.

        Args:
            problems: Any number; the same one several times gives several samples.
            settings: How to decode; stop strings are added for models without a chat template.
            error: What is wrong with an earlier attempt.
        """
        prompts = [self._prompt(problem, error) for problem in problems]
        if prompts[0].endswith(problems[0].prompt):
            stops = (*STOPS, *STOPS_OF_A_BODY) if all(_wants_body(its.prompt) for its in problems) else STOPS
            settings = replace(settings, stop=tuple(dict.fromkeys((*settings.stop, *stops))))
        made = []
        for problem, its in zip(problems, self.generator.generate(prompts, settings), strict=True):
            try:
                code = extract_code(its.text, problem.prompt, problem.entry_point)
            except InputError:
                code = ""
            made.append((code, sum(its.log_probabilities) / max(1, len(its.log_probabilities))))
        return made

    def has_room(self, problem: Problem) -> bool:
        """Whether a problem leaves room in the model's context; one that doesn't counts as not solved."""
        return self.generator.has_room(self._prompt(problem))

    def _prompt(self, problem: Problem, error: str = "") -> str:
        asked = INSTRUCTION.format(prompt=problem.prompt.rstrip()) + (f"\n\n{error}" if error else "")
        prompt = self.generator.chat(asked)
        if prompt == asked:  # there is no chat template: what was wrong becomes a comment
            prompt = "".join(f"# {line}\n" for line in error.splitlines() if line) + problem.prompt
        return prompt

    def judge(self, code: str, problem: Problem) -> Verdict:
        """Return what a problem's tests say of a program; without tests, whether it is Python."""
        if not code:
            return Verdict("syntax", "the text holds no Python function")
        if not problem.tests.strip():
            wrong = syntax_error(code)
            return Verdict("syntax", wrong) if wrong else Verdict("passed")
        return run_tests(code, problem.tests, self.limits, entry_point=problem.entry_point, setup=problem.setup,
                         allow_unprotected=self.allow_unprotected)  # fmt: skip

    def solve(
        self, problem: Problem, settings: Settings | None = None, *, samples: int = 8, repairs: int = 2
    ) -> list[Candidate]:
        """Write programs, the likeliest first; as long as none passes, show the model its best one and what is wrong.

        Args:
            problem: What to write.
            settings: How to draw.
            samples: Programs of a round, >= 1.
            repairs: Further rounds, >= 0.

        Returns:
            All of them, the best first.

        Raises:
            InputError: The prompt doesn't fit the model, or the tests can't be run.
        """
        check_range("samples", samples, 1)
        check_range("repairs", repairs, 0)
        settings = settings or Settings(temperature=0.8, top_p=0.95, max_new_tokens=200)
        found: dict[str, Candidate] = {}
        for number in range(repairs + 1):
            best = min(found.values(), key=Candidate.rank) if found else None
            if best and best.verdict.passed:
                break
            error = REPAIR.format(code=best.code.rstrip(), message=best.verdict.message) if best else ""
            drawn = replace(settings, seed=settings.seed + number * samples)
            try:
                made = self._round(problem, drawn, samples, error)
            except InputError:
                if not error:
                    raise
                made = self._round(problem, drawn, samples)  # no room for what is wrong: other draws may be right
            for code, likely in made:
                if code not in found:
                    found[code] = Candidate(code, self.judge(code, problem), likely, number)
        return sorted(found.values(), key=Candidate.rank)

    def _round(self, problem: Problem, settings: Settings, samples: int, error: str = "") -> list[tuple[str, float]]:
        likeliest = self.write([problem], replace(settings, strategy="greedy"), error)
        return likeliest + (self.write([problem] * (samples - 1), settings, error) if samples > 1 else [])


def make_problem(description: str, tests: str = "", signature: str = "") -> Problem:
    """Make a problem of a description in words, or of a head with docstring.

    Raises:
        InputError: There is no description, or the signature is none.
    """
    if not description.strip():
        raise InputError("The description is empty.", hint='--description "Return the larger of two numbers."')
    words = description.strip().replace("\\", "\\\\").replace('"""', "'''")
    if signature:
        prompt = f'{signature.strip().removesuffix(":")}:\n    """{words}"""\n'
    else:
        is_head = re.search(r"^(async )?def ", description, re.MULTILINE)
        prompt = description.rstrip() + "\n" if is_head else f'"""{words}"""\n\n\n'
    heads = [node for node in _statements(prompt) if isinstance(node, FUNCTIONS[:2])]
    if signature and len(heads) != 1:
        raise InputError(f"signature must be a function's head. Got {signature!r}.", hint='"def add(a: int, b: int)"')
    setup = _with_body(prompt) if len(heads) > 1 else ""
    return Problem("description", prompt, tests, heads[-1].name if heads else "", setup)


# --- Commands ---------------------------------------------------------------------------------------------------------

EXAMPLE = ("Return the larger of two numbers.", "def larger(a: int, b: int) -> int",
           "assert larger(1, 2) == 2\nassert larger(5, -3) == 5\nassert larger(4, 4) == 4\n")  # fmt: skip


@dataclass
class SandboxConfig:
    """What the commands share."""

    seconds: float = field(default=10.0, metadata=NOT_RECIPE)
    """Wall-clock time of a program and its tests, in (0, 3600]."""
    memory_mib: int = field(default=512, metadata=NOT_RECIPE)
    """Memory of a program, in [64, 65536]."""
    allow_unprotected: bool = field(default=False, metadata=NOT_RECIPE)
    """Run programs even where there is no sandbox. They can do all that you can."""

    def __post_init__(self) -> None:
        """Check the ranges."""
        self.limits()

    def limits(self) -> Limits:
        """Return what a program may use up."""
        return Limits(seconds=self.seconds, memory_mib=self.memory_mib)


@dataclass
class GenerateConfig(SandboxConfig, ModelConfig):
    """Write a function after a description, try several and mend them until the tests pass."""

    model: str = "builtin:python"
    """builtin:python, a folder or a hub id such as Qwen/Qwen2.5-Coder-0.5B-Instruct."""
    description: str = ""
    """What the function does, in words or as a head with docstring; or a file of it. By default, a tested example."""
    signature: str = ""
    """The function's head, such as "def add(a: int, b: int) -> int"."""
    tests: str = ""
    """Assertions, or a file of them; without any, the likeliest program is taken."""
    samples: int = 8
    """Programs of a round, >= 1: the likeliest one, the others drawn."""
    repairs: int = 2
    """Rounds in which the model is shown what is wrong, >= 0."""
    strategy: Strategy = "nucleus"
    """How to draw: nucleus, sampling, top_k, min_p or typical."""
    temperature: float = 0.8
    """Divides the scores before a draw, > 0."""
    top_p: float = 0.95
    """Of nucleus, in (0, 1]."""
    output: str = field(default="", metadata=NOT_RECIPE)
    """A file for the program."""
    run: str = field(default="", metadata=NOT_RECIPE)
    """Name of this run's own folder; by default the time."""

    def __post_init__(self) -> None:
        """Check the ranges."""
        ModelConfig.__post_init__(self)
        SandboxConfig.__post_init__(self)
        check_range("samples", self.samples, 1, 1000)
        check_range("repairs", self.repairs, 0, 100)
        if self.samples > 1 and not self.settings(self.strategy).draws:
            raise InputError(f"{self.strategy} writes the same program every time.", hint="--samples 1, or nucleus")
        if not self.description and (self.signature or self.tests):
            raise InputError("signature and tests need a description.", hint='--description "Return the larger one."')


def _text(value: str) -> str:
    """Return the text of a file, or the text itself."""
    try:
        there = "\n" not in value and Path(value).is_file()
    except (OSError, ValueError):  # too long for a name
        there = False
    try:
        return Path(value).read_text(encoding="utf-8-sig") if there else value
    except UnicodeDecodeError as error:
        raise InputError(f"{value} is not UTF-8 text: {error}.") from None


def generate(config: GenerateConfig) -> None:
    """Generate; see :class:`GenerateConfig`."""
    given = (config.description, config.signature, config.tests) if config.description else EXAMPLE
    problem = make_problem(_text(given[0]), _text(given[2]), given[1])
    if problem.tests.strip():
        _plan(problem.tests, problem.setup, problem.entry_point)  # before a model is loaded
    writer = CodeGenerator(config.generator(), config.limits(), allow_unprotected=config.allow_unprotected)
    run = Run(PROJECT, MODULE, "generate", config, name=config.run)
    candidates = writer.solve(problem, config.settings(config.strategy), samples=config.samples, repairs=config.repairs)
    best = candidates[0]
    code = format_code(best.code)
    write_atomic(run.folder / "solution.py", code)
    rows = [{"code": its.code, "status": its.verdict.status, "message": its.verdict.message, "round": its.round}
            for its in candidates]  # fmt: skip
    write_atomic(run.folder / "candidates.jsonl", "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
    metrics = {
        "candidates": len(candidates), "passed": sum(its.verdict.passed for its in candidates),
        "rounds": 1 + max(its.round for its in candidates), "seconds_of_tests": best.verdict.seconds,
    }  # fmt: skip
    run.finish(model=writer.generator.name, data="description", seed=config.seed, metrics=metrics)
    logger.info("%d candidates, %d of them passed; saved in %s", sum(bool(its.code) for its in candidates),
                metrics["passed"], run.folder)  # fmt: skip
    if not best.code:
        raise OSError(f"the model wrote no Python function; its texts led to nothing in {run.folder}")
    if config.output:
        write_atomic(Path(config.output), code)
    sys.stdout.write(code)
    if not best.verdict.passed:
        raise OSError(f"the best program did not pass ({best.verdict.status}): {best.verdict.message}")


@dataclass
class EvaluateConfig(SandboxConfig, ModelConfig):
    """Measure pass@k on problems with tests."""

    data: str = "builtin:python"
    """builtin:python, 300 held-out tasks; or a file in HumanEval's or MBPP's format, .jsonl, .json or .gz."""
    model: str = "builtin:python"
    """builtin:python, a folder or a hub id."""
    limit: int = 0
    """Take the first so many problems; 0 takes all."""
    samples: int = 1
    """Programs for each problem, >= 1."""
    k: list[int] = field(default_factory=lambda: [1])
    """pass@k is estimated for these, each at most samples."""
    strategy: Strategy = "greedy"
    """How to decode; the papers draw with nucleus, top_p 0.95, temperature 0.2 for k 1 and 0.8 for large k."""
    solutions: Literal["model", "reference", "planted"] = "model"
    """The model's; or, to see that tests and sandbox are right, the problems' own, as they are or with planted bugs."""
    workers: int = field(default=0, metadata=NOT_RECIPE)
    """Programs that run at once; 0 is the number of cores."""
    run: str = field(default="", metadata=NOT_RECIPE)
    """Name of this run's own folder; by default the time."""
    resume: bool = field(default=False, metadata=NOT_RECIPE)
    """Go on where the run of this name stopped."""

    def __post_init__(self) -> None:
        """Check the ranges."""
        ModelConfig.__post_init__(self)
        SandboxConfig.__post_init__(self)
        check_range("limit", self.limit, 0)
        check_range("samples", self.samples, 1, 10_000)
        check_range("workers", self.workers, 0, 256)
        if not self.k:
            raise InputError("k must name one number at least.", hint="--k 1")
        for k in self.k:
            pass_at_k(self.samples, 0, k)
        drawn = self.solutions == "model" and self.settings(self.strategy).draws
        if self.samples > 1 and not drawn:
            raise InputError("All samples would be the same.", hint="--strategy nucleus, or --samples 1")
        if self.resume and not self.run:
            raise InputError("resume needs the name of the run.", hint="--run NAME --resume true")


def load_problems(name: str) -> list[Problem]:
    """Return the problems of ``builtin:python`` or of a file."""
    if not name.startswith("builtin:"):
        return read_problems(Path(name))
    if name != "builtin:python":
        raise InputError(f"There is no {name!r}.", hint="builtin:python, or a file in HumanEval's or MBPP's format")
    from gpt_text_generation.builtin import python_tasks

    return [Problem(f"builtin/{i}", task.prompt, task.tests, task.entry_point, "", task.prompt + task.solution)
            for i, task in enumerate(python_tasks.tasks("test", 300, 0))]  # fmt: skip


def evaluate(config: EvaluateConfig) -> None:
    """Measure pass@k; see :class:`EvaluateConfig`."""
    problems = load_problems(config.data)[: config.limit or None]
    own = {} if config.solutions == "model" else {its.id: _own(its, config.solutions == "planted") for its in problems}
    generator = config.generator() if config.solutions == "model" else None
    writer = CodeGenerator(generator, config.limits(), allow_unprotected=config.allow_unprotected)  # type: ignore[arg-type]
    if config.resume:
        check_resumable(OUTPUTS / PROJECT / config.run, config, also=("seed",))
    run = Run(PROJECT, MODULE, "evaluate", config, name=config.run, resume=config.resume)
    path = run.folder / "samples.jsonl"
    lines = path.read_text(encoding="utf-8").split("\n")[:-1] if config.resume and path.exists() else []
    rows: list[dict[str, Any]] = [json.loads(line) for line in lines]
    done = len(rows) // config.samples  # problems; a file is written when all samples of some are judged
    size = max(1, config.batch_size // config.samples)
    try:
        with progress_bar() as bar, ThreadPoolExecutor(config.workers or os.cpu_count()) as pool:
            task = bar.add_task("evaluate", total=len(problems), completed=done, figures="")
            for first in range(done, len(problems), size):
                asked = [problem for problem in problems[first : first + size] for _ in range(config.samples)]
                if generator:
                    settings = config.settings(config.strategy)
                    settings = replace(settings, seed=settings.seed + first * config.samples)
                    rooms = [writer.has_room(problem) for problem in asked]
                    fitting = list(itertools.compress(asked, rooms))
                    written = iter(writer.write(fitting, settings) if fitting else ())
                    codes = [next(written)[0] if room else "" for room in rooms]
                else:
                    codes = [own[problem.id] for problem in asked]
                for problem, code, its in zip(asked, codes, pool.map(writer.judge, codes, asked), strict=True):
                    rows.append({"task_id": problem.id, "code": code, "status": its.status, "message": its.message,
                                 "seconds": round(its.seconds, 3)})  # fmt: skip
                write_atomic(path, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
                passed = sum(row["status"] == "passed" for row in rows)
                bar.update(task, advance=len(asked) // config.samples, figures=f"passed {passed}/{len(rows)}")
    except KeyboardInterrupt:
        raise KeyboardInterrupt(f"judged programs are kept; --run {run.folder.name} --resume true goes on") from None
    metrics: dict[str, Any] = {"problems": len(problems), "samples": config.samples}
    lines = [f"{'':8}  value  95 % interval over {len(problems)} problems"]
    groups = [rows[i : i + config.samples] for i in range(0, len(rows), config.samples)]
    counts = [(len(group), sum(row["status"] == "passed" for row in group)) for group in groups]
    for k in config.k:
        found = pass_at_k_of(counts, k, seed=config.seed)
        metrics |= {f"pass_at_{k}": found.value, f"pass_at_{k}_low": found.low, f"pass_at_{k}_high": found.high}
        lines.append(f"pass@{k:<3}  {found.value:.4f}  {found.low:.4f} – {found.high:.4f}")
    metrics |= {status: sum(row["status"] == status for row in rows) for status in STATUSES}
    run.finish(
        model=generator.name if generator else config.solutions, data=config.data, seed=config.seed, metrics=metrics
    )
    lines.append(", ".join(f"{status} {metrics[status]}" for status in STATUSES if metrics[status]))
    sys.stdout.write("\n".join(lines) + "\n")
    logger.info("saved in %s", run.folder)


def _own(problem: Problem, planted: bool) -> str:
    """Return a problem's own solution, or that with a bug.

    Raises:
        InputError: No bug can be planted, since the solution is no Python or has no function.
    """
    if not planted:
        return problem.solution
    try:
        body = _parse(problem.solution).body
        names = [node.name for node in body if isinstance(node, ast.FunctionDef)]
        names += [target.id for node in body if isinstance(node, ast.Assign) and isinstance(node.value, ast.Lambda)
                  for target in node.targets if isinstance(target, ast.Name)]  # fmt: skip
        tested = [name for name in names if re.search(rf"\b{name}\b", problem.tests)] or names
        if not problem.entry_point and not tested:
            raise ValueError("it has no function")
        return plant_bug(problem.solution, problem.entry_point or tested[-1])
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        raise InputError(f"No bug can be planted in the solution of {problem.id}: {error}.") from None


@dataclass
class RunConfig(SandboxConfig):
    """Run a file of tests on a file of code, in the sandbox."""

    code: str = ""
    """The file of the program."""
    tests: str = ""
    """The file of its tests: assertions, functions named test…, check(candidate), or unittest's classes."""
    entry_point: str = ""
    """The function that check(candidate) is called with; by default the last one."""

    def __post_init__(self) -> None:
        """Check that both files are named."""
        super().__post_init__()
        if not self.code or not self.tests:
            raise InputError("code and tests must name files.", hint="--code solution.py --tests test_solution.py")


def run_command(config: RunConfig) -> None:
    """Run tests; see :class:`RunConfig`."""
    code, tests = (_text(str(Path(name).resolve(strict=True))) for name in (config.code, config.tests))
    verdict = run_tests(code, tests, config.limits(), entry_point=config.entry_point,
                        allow_unprotected=config.allow_unprotected)  # fmt: skip
    logger.info("sandbox: %s", ", ".join(protections()) or "none")
    sys.stdout.write(verdict.output)
    sys.stdout.write(f"{verdict.status} in {verdict.seconds:.2f} s\n{verdict.message}".rstrip() + "\n")
    if not verdict.passed:
        raise OSError(f"the tests did not pass: {verdict.status}")


if __name__ == "__main__":
    run_commands({"generate": generate, "evaluate": evaluate, "run": run_command}, module=MODULE, extra="generation")
