"""Blind studies of generated texts with people, and how far their answers can be trusted.

    python -m gpt_text_generation.evaluation.human_evaluation create                       # the builtin model's texts
    python -m gpt_text_generation.evaluation.human_evaluation create --texts texts.jsonl   # system, prompt, text a line
    python -m gpt_text_generation.evaluation.human_evaluation rate --rater anna
    python -m gpt_text_generation.evaluation.human_evaluation export --rater anna --output anna.csv
    python -m gpt_text_generation.evaluation.human_evaluation import --ratings anna.csv
    python -m gpt_text_generation.evaluation.human_evaluation report

Raters see a text, or two, and never whose. Who joins as number k sees the systems in the k-th order of a Latin square,
and each pair the other way round than number k − 1, so that an even number of raters sees each pair equally often both
ways. Between them are items with a known answer. What is stored is one SQLite file, which several processes may use at
once. An answer given again replaces the one before, which stays in the history.

    kappa  = (agreement − agreement by chance) / (1 − agreement by chance)       Cohen, 1960, 1968; Fleiss, 1971
    alpha  = 1 − disagreement / disagreement by chance                           Krippendorff, 2011
    P(i is preferred to j) = γᵢ / (γᵢ + γⱼ)                                      Bradley and Terry, 1952; Hunter, 2004

All are 1 where raters agree and 0 where they don't more than by chance. Where all ratings are the same, these fractions
are 0 / 0; here they are 1, with a note that it says little. Where nothing can be compared they are None.
"""

from __future__ import annotations

import csv
import io
import itertools
import json
import logging
import math
import os
import random
import sqlite3
import sys
import time
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from datetime import datetime, timezone
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from gpt_text_generation.evaluation.diversity_metrics import bootstrap_interval
from gpt_text_generation.prompt_engineering import as_cell
from shared.config import check_range, run_commands
from shared.errors import InputError
from shared.results import OUTPUTS, Run, write_atomic

if TYPE_CHECKING:
    from matplotlib.axes import Axes

PROJECT = "gpt_text_generation"
MODULE = "gpt_text_generation.evaluation.human_evaluation"
NOT_RECIPE = {"recipe": False}
Floats = NDArray[np.float64]
Kind = Literal["likert", "pairwise"]
Rated = int | float | str | None  # None is missing
logger = logging.getLogger(MODULE)


# --- Agreement --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Agreement:
    """How far raters agree.

    Attributes:
        value: At most 1; 0 is what chance gives, and less is possible. None where nothing can be compared.
        low: Of its 95 % interval, by a bootstrap of the items; None without one.
        high: Likewise.
        note: What is special about it.
    """

    value: float | None
    low: float | None = None
    high: float | None = None
    note: str = ""


NOTHING = "no item was rated twice, so there is nothing to compare"
UNANIMOUS = "all ratings are the same: 1 by definition, though chance alone would give that too"
ONE_ITEM = "a single item, so there is no interval"


def _agreement(
    per_item: Floats, coefficient: Callable[[Floats], float | None], unanimous: bool, repeats: int, seed: int
) -> Agreement:
    """Compute a coefficient of sums over items, and its interval from items drawn with replacement.

    Args:
        per_item: (N, …), what each item adds.
        coefficient: Of the sum, (…).
        unanimous: Whether only one category was used.
        repeats: Draws; 0 leaves the interval out.
        seed: Of the drawing.
    """
    value = coefficient(per_item.sum(0))
    if value is None:
        return Agreement(None, note=NOTHING)
    note = UNANIMOUS if unanimous else ""
    if not repeats:
        return Agreement(value, note=note)
    count = len(per_item)
    if count < 2:
        return Agreement(value, note=note or ONE_ITEM)
    times = np.random.default_rng(seed).multinomial(count, np.full(count, 1 / count), size=repeats)
    sums = (times @ per_item.reshape(count, -1)).reshape(repeats, *per_item.shape[1:])
    drawn = [one for one in map(coefficient, sums) if one is not None]
    low, high = np.quantile(drawn, [0.025, 0.975])
    return Agreement(value, float(low), float(high), note)


def cohen_kappa(
    first: Sequence[Rated], second: Sequence[Rated], *,
    weights: Literal["none", "linear", "quadratic"] | ArrayLike = "none",
    categories: Sequence[Rated] | None = None, repeats: int = 1000, seed: int = 0,
) -> Agreement:  # fmt: skip
    """Return the agreement of two raters: κ = 1 − Σ w·p / Σ w·p by chance.

    p are shares of the table of both ratings (i by one, j by the other), by chance the products of its margins, and w
    how bad a disagreement is: 1 for all of them (Cohen, 1960), or more for some (Cohen, 1968).

    Args:
        first: One rating an item; None is missing, and leaves the item out.
        second: Of the other rater.
        weights: ``none``; ``linear``, |i − j|, or ``quadratic``, (i − j)², of places among the categories; or a matrix
            (K, K) of w.
        categories: All, in order; by default those that occur, sorted.
        repeats: Of the bootstrap; 0 leaves the interval out.
        seed: Of it.

    Raises:
        InputError: The raters have different numbers of items, a category is unknown, or the matrix does not fit.
    """
    if len(first) != len(second):
        raise InputError(f"Both raters must have the same items. Got {len(first)} and {len(second)} ratings.")
    known = _categories([first, second], categories)
    places = {category: place for place, category in enumerate(known)}
    pairs = [(places[a], places[b]) for a, b in zip(first, second, strict=True) if not _missing(a) and not _missing(b)]
    apart = np.arange(len(known))[:, None] - np.arange(len(known))
    if isinstance(weights, str):
        choices = {"none": (apart != 0).astype(float), "linear": np.abs(apart), "quadratic": apart**2}
        if weights not in choices:
            raise InputError(f"weights must be none, linear, quadratic or a matrix. Got {weights!r}.")
        w = np.asarray(choices[weights], dtype=np.float64)
    else:
        w = np.asarray(weights, dtype=np.float64)
        if w.shape != apart.shape:
            raise InputError(f"weights must be ({len(known)}, {len(known)}), of {known}. Got {w.shape}.")
    table = np.zeros((len(pairs), len(known), len(known)))
    for item, (i, j) in zip(table, pairs, strict=True):
        item[i, j] = 1

    def kappa(counts: Floats) -> float | None:
        total = counts.sum()
        if not total:
            return None
        by_chance = (w * np.outer(counts.sum(1), counts.sum(0))).sum() / total
        return 1 - float((w * counts).sum() / by_chance) if by_chance else 1.0

    return _agreement(table, kappa, len(set(itertools.chain(*pairs))) == 1, repeats, seed)


def fleiss_kappa(counts: ArrayLike, *, repeats: int = 1000, seed: int = 0) -> Agreement:
    """Return the agreement of n ratings an item, whoever gave them: κ = (P̄ − Pₑ) / (1 − Pₑ) (Fleiss, 1971).

    P̄ is the mean over items of Σⱼ nᵢⱼ(nᵢⱼ − 1) / n(n − 1), the share of pairs of ratings that agree, and Pₑ = Σⱼ pⱼ² of
    the share pⱼ of category j among all ratings.

    Args:
        counts: (N, K), the ratings of item i in category j, with one sum n in all rows.
        repeats: Of the bootstrap; 0 leaves the interval out.
        seed: Of it.

    Raises:
        InputError: Rows have different sums, or entries are no counts.
    """
    table = np.asarray(counts, dtype=np.float64)
    if not table.size:
        return Agreement(None, note=NOTHING)
    if table.ndim != 2 or (table < 0).any() or (table != np.round(table)).any():
        raise InputError("counts must be a table, items by categories, of numbers of ratings.")
    sums = set(table.sum(1).tolist())
    if len(sums) > 1:
        raise InputError(f"Fleiss' kappa needs one number of ratings an item. Got {min(sums):g} to {max(sums):g}.",
                         hint="krippendorff_alpha takes any")  # fmt: skip
    n = sums.pop()
    if n < 2:
        return Agreement(None, note=NOTHING)
    agreeing = (table * (table - 1)).sum(1) / (n * (n - 1))

    def kappa(sums: Floats) -> float:
        items, agreement, shares = sums[0], sums[1] / sums[0], sums[2:] / (sums[0] * n)
        by_chance = float((shares**2).sum())
        return float((agreement - by_chance) / (1 - by_chance)) if (sums[2:] < items * n).all() else 1.0

    per_item = np.column_stack([np.ones(len(table)), agreeing, table])
    return _agreement(per_item, kappa, bool((table.sum(0) > 0).sum() == 1), repeats, seed)


def krippendorff_alpha(
    ratings: Sequence[Sequence[Rated]], level: Literal["nominal", "ordinal", "interval"] = "nominal", *,
    repeats: int = 1000, seed: int = 0,
) -> Agreement:  # fmt: skip
    """Return the agreement of any number of raters, any of whose ratings may be missing (Krippendorff, 2011).

        α = 1 − (n − 1) · Σ o_ck δ²_ck / Σ n_c n_k δ²_ck

    o_ck counts the pairs of ratings c and k of one item, by different raters; each pair of an item with m ratings has
    the weight 1 / (m − 1), so that each rating counts once. n_c are its row sums, and n is their sum. δ is the distance
    of two values: 0 or 1 if nominal, c − k on an interval scale, and if ordinal the distance of their mean ranks among
    all ratings, which is Krippendorff's n_c/2 + … + n_k/2.

    Args:
        ratings: A row a rater, a column an item; None or NaN is missing.
        level: What the values mean.
        repeats: Of the bootstrap; 0 leaves the interval out.
        seed: Of it.

    Raises:
        InputError: Rows have different lengths, or values on an interval scale are no numbers.
    """
    if len({len(row) for row in ratings}) > 1:
        raise InputError("Each rater must have a place for each item; None is missing.")
    if level not in ("nominal", "ordinal", "interval"):
        raise InputError(f"level must be nominal, ordinal or interval. Got {level!r}.")
    known = _categories(ratings)
    if level == "interval" and any(isinstance(value, str) for value in known):
        raise InputError("On an interval scale ratings must be numbers.")
    places = {category: place for place, category in enumerate(known)}
    counts = np.zeros((len(ratings[0]) if ratings else 0, len(known)))
    for row in ratings:
        for item, value in enumerate(row):
            if not _missing(value):
                counts[item, places[value]] += 1
    counts = counts[counts.sum(1) >= 2]  # one rating has no pair
    pairs = counts[:, :, None] * counts[:, None, :]  # (N, K, K)
    pairs[:, range(len(known)), range(len(known))] -= counts  # none with itself
    pairs /= np.maximum(counts.sum(1) - 1, 1)[:, None, None]
    values = np.array([float(value) for value in known]) if level == "interval" else np.arange(len(known))

    def alpha(coincidences: Floats) -> float | None:
        n_c = coincidences.sum(1)
        if not n_c.sum():
            return None
        where = np.cumsum(n_c) - n_c / 2 if level == "ordinal" else values
        apart = where[:, None] - where
        distance = (apart != 0).astype(float) if level == "nominal" else apart**2
        by_chance = (np.outer(n_c, n_c) * distance).sum() / (n_c.sum() - 1)
        return 1 - float((coincidences * distance).sum() / by_chance) if by_chance else 1.0

    return _agreement(pairs, alpha, bool((counts.sum(0) > 0).sum() == 1), repeats, seed)


def _missing(value: Rated) -> bool:
    return value is None or value != value  # NaN is not itself


def _categories(rows: Sequence[Sequence[Rated]], categories: Sequence[Rated] | None = None) -> list[Any]:
    seen = {value for row in rows for value in row if not _missing(value)}
    if categories is None:
        if len({isinstance(value, str) for value in seen}) > 1:
            raise InputError("Ratings must be all numbers or all names.")
        return sorted(seen)
    if not seen <= set(categories):
        raise InputError(f"Ratings must be among {list(categories)}. Got {sorted(map(str, seen - set(categories)))}.")
    return list(categories)


# --- Ranking ----------------------------------------------------------------------------------------------------------


def bradley_terry(
    wins: ArrayLike, *, prior: float = 0.0, names: Sequence[str] | None = None, tolerance: float = 1e-10
) -> Floats:
    """Return log strengths of systems, with mean 0: i is preferred to j with probability 1 / (1 + exp(sⱼ − sᵢ)).

    Hunter's MM algorithm (2004) raises the likelihood until it stays: γᵢ ← Wᵢ / Σⱼ nᵢⱼ / (γᵢ + γⱼ), of i's wins Wᵢ and
    the comparisons nᵢⱼ of i and j, s = ln γ. A tie is half a win for both.

    The likelihood has a maximum only where there is no division of the systems into two groups of which one never won
    against the other (Ford, 1957): one that was never beaten would be infinitely strong, and groups that were never
    compared can't be. A prior settles it: so many wins more for each of each pair, against each other.

    Args:
        wins: (…, S, S), how often i was preferred to j; ties half for each. Several tables are computed together.
        prior: Wins that each has over each other beforehand, >= 0; 0.5 is a tie a pair.
        names: Of the systems, for the error.
        tolerance: Change of a strength at which it ends.

    Raises:
        InputError: Without a prior, there is no maximum; or ``wins`` has another shape or negative numbers.
    """
    table = np.array(wins, dtype=np.float64)
    check_range("prior", prior, 0)
    if table.ndim < 2 or table.shape[-1] != table.shape[-2] or not (table >= 0).all():
        raise InputError(f"wins must be a square table of numbers >= 0. Got {table.shape}.")
    size = table.shape[-1]
    table = (table + prior) * (1 - np.eye(size))
    if not prior:
        for one in table.reshape(-1, size, size):
            _check_connected(one, names or [str(i) for i in range(size)])
    if size < 2:
        return np.zeros(table.shape[:-1])
    compared, won = table + table.swapaxes(-1, -2), table.sum(-1)
    logs = np.zeros(won.shape)
    for _ in range(100_000):
        strengths = np.exp(logs)
        new = np.log(won / (compared / (strengths[..., :, None] + strengths[..., None, :])).sum(-1))
        new -= new.mean(-1, keepdims=True)
        change = np.abs(new - logs).max()
        logs = new
        if change < tolerance:
            break
    return logs


def _check_connected(wins: Floats, names: Sequence[str]) -> None:
    """Raise an error unless a chain of wins leads from each system to each other."""
    reached = (wins > 0) | np.eye(len(wins), dtype=bool)
    for middle in range(len(wins)):
        reached |= reached[:, [middle]] & reached[middle]
    for row in reached:
        if not row.all():
            weaker = ", ".join(name for name, inside in zip(names, row, strict=True) if inside)
            others = ", ".join(name for name, inside in zip(names, row, strict=True) if not inside)
            raise InputError(
                f"Strengths have no finite values: none of {weaker} was ever preferred to any of {others}.",
                hint="more comparisons, or a prior such as 0.5",
            )


# --- The study --------------------------------------------------------------------------------------------------------

WORDS = {
    "en": {
        "likert": "How good is this text in {criterion}?", "pairwise": "Which text is better in {criterion}?",
        "worst": "worst", "best": "best", "first": "the first", "second": "the second", "tie": "no difference",
        "check": "This is no text to judge but a check that you read: please answer {value}.",
        "this": "This is a check that you read: please choose this text.",
        "other": "This is a check that you read: please choose the other text.",
    },
    "zh": {
        "likert": "这篇文本的“{criterion}”如何？", "pairwise": "哪篇文本的“{criterion}”更好？",
        "worst": "最差", "best": "最好", "first": "第一篇", "second": "第二篇", "tie": "没有差别",
        "check": "这不是要评分的文本，而是注意力检查：请选择 {value}。",
        "this": "这是注意力检查：请选择本篇。", "other": "这是注意力检查：请选择另一篇。",
    },
}  # fmt: skip


@dataclass(frozen=True)
class Design:
    """What raters are asked.

    Attributes:
        kinds: ``likert``, a grade for each text; ``pairwise``, the better one of each two texts for a prompt.
        criteria: What is asked of each, such as ``quality`` or ``fluency``.
        low: Worst grade, >= 0.
        high: Best grade.
        ties: Whether two texts may be equally good.
        check_every: Items from one with a known answer to the next, >= 1; 0 has none.
        language: Of questions: ``en`` or ``zh``.
        seed: Of every order.

    Raises:
        InputError: A value is outside its range.
    """

    kinds: tuple[Kind, ...] = ("likert", "pairwise")
    criteria: tuple[str, ...] = ("quality",)
    low: int = 1
    high: int = 5
    ties: bool = True
    check_every: int = 10
    language: str = "en"
    seed: int = 0

    def __post_init__(self) -> None:
        """Check the ranges."""
        if not self.kinds or not set(self.kinds) <= {"likert", "pairwise"} or len(set(self.kinds)) < len(self.kinds):
            raise InputError(f"kinds must be likert, pairwise or both. Got {', '.join(self.kinds) or 'none'}.")
        if not all(map(str.strip, self.criteria)) or len(set(self.criteria)) < max(1, len(self.criteria)):
            raise InputError(f"criteria must be one name or several different ones. Got {list(self.criteria)}.")
        check_range("low", self.low, 0)
        check_range("high", self.high, self.low + 1, 100)
        check_range("check_every", self.check_every, 0)
        if self.language not in WORDS:
            raise InputError(f"language must be one of {', '.join(WORDS)}. Got {self.language!r}.")

    @classmethod
    def from_json(cls, text: str) -> Design:
        """Read what ``asdict`` and JSON made of one."""
        values: Any = {key: tuple(v) if isinstance(v, list) else v for key, v in json.loads(text).items()}
        return cls(**values)


@dataclass(frozen=True)
class Item:
    """What a rater sees; nothing in it tells whose the texts are.

    Attributes:
        id: Of the item.
        kind: ``likert`` has one text, ``pairwise`` two.
        question: What is asked.
        prompt: What the texts go on from; empty for an attention check.
        texts: In the order for this rater.
        choices: Value → what it means. For pairs 1 is the first text, 2 the second, 0 neither.
        answer: The rater's, where there is one.
    """

    id: str
    kind: Kind
    question: str
    prompt: str
    texts: tuple[str, ...]
    choices: dict[int, str]
    answer: int | None = None

    def legend(self) -> str:
        """Return the choices in a line."""
        return ", ".join(f"{value} {meaning}".strip() for value, meaning in self.choices.items())


class Progress(NamedTuple):
    """How far a rater is."""

    done: int
    total: int


@dataclass(frozen=True)
class Rating:
    """An answer, with what raters don't see.

    Attributes:
        rater: Who gave it.
        item: Whereto.
        kind: Of the item.
        criterion: Of the item.
        prompt: Of the item.
        system: Whose text; of pairs the first one's.
        other: Of pairs, whose the second text is.
        value: The grade; of pairs 1 for ``system``, 2 for ``other``, 0 for neither, whatever the order on the screen.
        turned: Whether ``other`` stood first.
        expected: The right value of an attention check.
        answered: When, UTC.
        seconds: How long it took; None where nobody looked at a clock.
    """

    rater: str
    item: str
    kind: Kind
    criterion: str
    prompt: str
    system: str
    other: str
    value: int
    turned: bool
    expected: int | None
    answered: str
    seconds: float | None


APPLICATION, VERSION = 0x4C4C5253, 1
SCHEMA = """
CREATE TABLE study (title TEXT NOT NULL, design TEXT NOT NULL);
CREATE TABLE texts (
    id INTEGER PRIMARY KEY, system TEXT,  -- NULL in attention checks
    prompt TEXT NOT NULL, text TEXT NOT NULL, UNIQUE (system, prompt)
);
CREATE TABLE items (
    id TEXT PRIMARY KEY, kind TEXT NOT NULL CHECK (kind IN ('likert', 'pairwise')), criterion TEXT NOT NULL,
    place INTEGER NOT NULL,      -- of the prompt
    condition INTEGER NOT NULL,  -- of the system, or of the pair of systems
    first INTEGER NOT NULL REFERENCES texts (id), second INTEGER REFERENCES texts (id),
    turned INTEGER NOT NULL,     -- for raters of even number
    expected INTEGER
) WITHOUT ROWID;
CREATE TABLE raters (name TEXT PRIMARY KEY, number INTEGER NOT NULL UNIQUE) WITHOUT ROWID;
CREATE TABLE answers (
    id INTEGER PRIMARY KEY AUTOINCREMENT, rater TEXT NOT NULL REFERENCES raters (name),
    item TEXT NOT NULL REFERENCES items (id), value INTEGER NOT NULL, turned INTEGER NOT NULL,
    answered TEXT NOT NULL, seconds REAL
);
CREATE INDEX answers_of_raters ON answers (rater, item, id);
"""
LATEST = "id IN (SELECT max(id) FROM answers GROUP BY rater, item)"


@dataclass(frozen=True)
class _Entry:
    kind: Kind
    criterion: str
    place: int
    condition: int
    turned: bool
    expected: int | None
    prompt: str
    systems: tuple[str, ...]
    texts: tuple[str, ...]


@contextmanager
def _database(path: Path, *, write: bool = False) -> Iterator[sqlite3.Connection]:
    """Open a database for one transaction. One that writes waits for others that do; one that reads for nobody."""
    address, flags = path.resolve(), "mode=rw"
    if not os.access(address.parent, os.W_OK, effective_ids=os.access in os.supports_effective_ids):
        if write:
            raise PermissionError(f"{path} can only be read: nothing can be written to its folder.")
        if not address.with_name(f"{address.name}-wal").exists():
            flags = "immutable=1"  # SQLite would make that file, and another, to read what nobody can write to
    connection = sqlite3.connect(f"{address.as_uri()}?{flags}", uri=True, timeout=30, isolation_level=None)
    try:
        connection.execute("PRAGMA foreign_keys = ON")
        connection.execute("PRAGMA synchronous = NORMAL")  # closing writes the log through anyway
        connection.execute("BEGIN IMMEDIATE" if write else "BEGIN")
        yield connection
        connection.execute("COMMIT")
    except sqlite3.OperationalError as error:
        raise OSError(f"{path}: {error}") from None
    finally:
        connection.close()  # what was not committed is undone


class Study:
    """A blind study in a file. Any number of processes and threads may use one at once.

    Args:
        path: Of the file; :meth:`create` makes it.

    Attributes:
        title: Of the study.
        design: What raters are asked.

    Raises:
        FileNotFoundError: There is no such file.
        InputError: It is no study, or one of a later version.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        if not self.path.is_file():
            raise FileNotFoundError(f"There is no study {str(path)!r}; the command `create` makes one.")
        try:
            with _database(self.path) as db:
                application, version = (db.execute(f"PRAGMA {name}").fetchone()[0]
                                        for name in ("application_id", "user_version"))  # fmt: skip
                if application != APPLICATION:
                    raise sqlite3.DatabaseError("it was made by another program")
                if version > VERSION:
                    raise InputError(f"{path} has version {version} and this program knows up to {VERSION}.",
                                     hint="a newer llm-roadmap")  # fmt: skip
                self.title, design = db.execute("SELECT title, design FROM study").fetchone()
                rows = db.execute(
                    "SELECT items.id, kind, criterion, place, condition, turned, expected, a.prompt, a.system,"
                    " b.system, a.text, b.text FROM items JOIN texts a ON a.id = first"
                    " LEFT JOIN texts b ON b.id = second ORDER BY items.id"
                ).fetchall()
        except sqlite3.DatabaseError as error:
            raise InputError(f"{path} is no study: {error}.") from None
        self.design = Design.from_json(design)
        self._entries: dict[str, _Entry] = {}
        for id, kind, criterion, place, condition, turned, expected, prompt, *both in rows:
            pair = kind == "pairwise"
            self._entries[id] = _Entry(
                kind, criterion, place, condition, bool(turned), expected, prompt,
                tuple(system or "" for system in both[: 1 + pair]), tuple(both[2 : 3 + pair]),
            )  # fmt: skip

    @classmethod
    def open(cls, path: str | Path) -> Study:
        """Open a study; see the class."""
        return cls(path)

    @classmethod
    def create(
        cls, path: str | Path, texts: Mapping[str, Mapping[str, str]], design: Design | None = None, title: str = ""
    ) -> Study:
        """Make a study.

        Two texts for one prompt that are the same are no pair: there is nothing to prefer.

        Args:
            path: Of the new file.
            texts: System → prompt → text; all of them with the same prompts.
            design: What raters are asked.
            title: Of the study.

        Raises:
            InputError: There is a file already, a text is missing, or there is nothing to ask.
        """
        path, design = Path(path), design or Design()
        if path.exists():
            raise InputError(f"{path} exists already.", hint="another --study, or remove it")
        prompts = list(dict.fromkeys(prompt for its in texts.values() for prompt in its))
        missing = [f"{name}: {prompt[:40]!r}" for name, its in texts.items() for prompt in prompts if prompt not in its]
        if missing:
            raise InputError(f"Each system needs a text for each prompt. Missing: {'; '.join(missing[:5])}"
                             + (f" and {len(missing) - 5} more." if len(missing) > 5 else "."))  # fmt: skip
        if not prompts or (len(texts) < 2 and "pairwise" in design.kinds):
            raise InputError(f"A study needs a text, and pairs need two systems. Got {len(texts)} systems and "
                             f"{len(prompts)} prompts.", hint="more texts, or kinds likert")  # fmt: skip
        path.parent.mkdir(parents=True, exist_ok=True)
        beside = path.with_name(f".{path.name}.{random.getrandbits(32):08x}")
        try:
            beside.touch(exist_ok=False)
            with _database(beside, write=True) as db:
                _fill(db, texts, prompts, design, title)
            with sqlite3.connect(beside) as connection:
                connection.execute("PRAGMA journal_mode = WAL")  # readers and a writer don't wait for each other
            connection.close()
            beside.rename(path)
        finally:
            beside.unlink(missing_ok=True)
        return cls(path)

    # For raters

    def next_item(self, rater: str) -> Item | None:
        """Return the first item that a rater has not answered; None when all are done."""
        number, done = self._number(rater), self._done(rater)
        following = next((id for id in self._order(number) if id not in done), None)
        return self._item(following, number) if following else None

    def item(self, rater: str, id: str) -> Item:
        """Return an item as a rater sees it, with their answer, so that they can change it."""
        self._entry(id)
        number = self._number(rater)
        with _database(self.path) as db:
            found = db.execute("SELECT value FROM answers WHERE rater = ? AND item = ? ORDER BY id DESC LIMIT 1",
                               [_name(rater), id]).fetchone()  # fmt: skip
        return self._item(id, number, found[0] if found else None)

    def answer(self, rater: str, id: str, value: int, seconds: float | None = None) -> None:
        """Store an answer; the last one counts.

        Args:
            rater: Whose.
            id: Of the item.
            value: One of its choices.
            seconds: How long it took.

        Raises:
            InputError: There is no such item, or no such choice.
        """
        self._store([(rater, id, value, seconds)])

    def progress(self, rater: str) -> Progress:
        """Return how many items a rater has answered, of how many."""
        return Progress(len(self._done(rater)), self.size)

    # For those who run the study

    @property
    def systems(self) -> list[str]:
        """Whose texts they are. Not for raters' eyes."""
        return sorted({system for entry in self._entries.values() for system in entry.systems if system})

    @property
    def size(self) -> int:
        """How many items each rater is to answer, attention checks among them."""
        return len(self._entries)

    def raters(self) -> list[str]:
        """Return the raters in the order of their joining."""
        with _database(self.path) as db:
            return [name for (name,) in db.execute("SELECT name FROM raters ORDER BY number")]

    def ratings(self, *, history: bool = False) -> list[Rating]:
        """Return the last answer of each rater to each item; with ``history`` all, in the order of their coming."""
        where = "" if history else f"WHERE {LATEST}"
        with _database(self.path) as db:
            columns = "rater, item, value, turned, answered, seconds"
            rows = db.execute(f"SELECT {columns} FROM answers {where} ORDER BY id").fetchall()
        ratings = []
        for rater, id, value, turned, *when in rows:
            entry = self._entries[id]
            system, other = (*entry.systems, "")[:2]
            ratings.append(Rating(rater, id, entry.kind, entry.criterion, entry.prompt, system, other, value,
                                  bool(turned), entry.expected, *when))  # fmt: skip
        return ratings

    def import_ratings(self, path: str | Path, *, skip_missing: bool = False) -> int:
        """Store the answers of a CSV file with the columns rater, item and value: all of them, or none.

        Values are as on the rater's own sheet (see :meth:`sheet`), for pairs 1, 2 or 0.

        Args:
            path: Of the file.
            skip_missing: Pass over rows without a value instead of refusing them.

        Returns:
            How many were stored.

        Raises:
            InputError: Columns or values are missing, out of scale, no numbers or twice there, or an item is unknown.
        """
        rows = _read_csv(Path(path), ("rater", "item", "value"))
        known, seen, problems = {as_cell(name): name for name in self.raters()}, set(), []
        answers: list[tuple[str, str, int, float | None]] = []
        for line, row in rows:
            rater, id, value = (row[key].strip() for key in ("rater", "item", "value"))
            rater = known.get(rater, rater)
            entry = self._entries.get(id)
            try:
                choices = self._choices(entry) if entry else {}
                if not value and skip_missing:
                    continue
                if not value:
                    raise InputError("the value is missing")
                if not entry:
                    raise InputError(f"the study has no item {id!r}")
                if _name(rater) not in known.values() and entry.kind == "pairwise":
                    raise InputError(f"{rater} has seen no pair of this study, so first and second mean nothing")
                if (_name(rater), id) in seen:
                    raise InputError(f"{rater} has answered {id} before in this file")
                number = float(value)
                if number not in choices:
                    raise InputError(f"the value must be one of {', '.join(map(str, sorted(choices)))}, and is {value}")
                seen.add((_name(rater), id))
                answers.append((rater, id, int(number), None))
            except InputError as error:
                problems.append(f"line {line}: {error.args[0]}")
            except ValueError:
                problems.append(f"line {line}: the value must be a number, and is {value!r}")
        if problems:
            shown = "; ".join(problems[:8]) + (f"; and {len(problems) - 8} more" if len(problems) > 8 else "")
            hint = "--skip_missing true passes over rows without a value" if "is missing" in shown else ""
            raise InputError(f"Nothing was taken from {path}: {shown}.", hint=hint)
        self._store(answers)
        return len(answers)

    def sheet(self, rater: str) -> str:
        """Return what a rater has not answered as CSV, to be filled in and imported; as blind as the screen."""
        number, done = self._number(rater), self._done(rater)
        items = [self._item(id, number) for id in self._order(number) if id not in done]
        columns = ("rater", "item", "question", "choices", "prompt", "text", "second_text", "value")
        return _csv(columns, (
            (_name(rater), item.id, item.question, item.legend(), item.prompt, *(*item.texts, "")[:2], "")
            for item in items
        ))  # fmt: skip

    def table(self) -> str:
        """Return all answers that count as CSV, with their systems."""
        columns = ("rater", "item", "kind", "criterion", "prompt", "system", "other", "value", "preferred", "turned",
                   "expected", "answered", "seconds")  # fmt: skip
        return _csv(columns, (
            (r.rater, r.item, r.kind, r.criterion, r.prompt, r.system, r.other, r.value,
             ("tie", r.system, r.other)[r.value] if r.kind == "pairwise" and r.expected is None else "", int(r.turned),
             "" if r.expected is None else r.expected, r.answered, "" if r.seconds is None else round(r.seconds, 1))
            for r in self.ratings()
        ))  # fmt: skip

    # How it works

    def _number(self, rater: str) -> int:
        """Return which rater it is, from 0; a new one joins."""
        name, asked = _name(rater), "SELECT number FROM raters WHERE name = ?"
        with _database(self.path) as db:
            found = db.execute(asked, [name]).fetchone()
        if not found:
            with _database(self.path, write=True) as db:
                db.execute("INSERT OR IGNORE INTO raters SELECT ?, count(*) FROM raters", [name])
                found = db.execute(asked, [name]).fetchone()
        number: int = found[0]
        return number

    def _done(self, rater: str) -> set[str]:
        """Return the items that a rater has answered."""
        with _database(self.path) as db:
            return {id for (id,) in db.execute("SELECT DISTINCT item FROM answers WHERE rater = ?", [_name(rater)])}

    def _entry(self, id: str) -> _Entry:
        if id not in self._entries:
            raise InputError(f"The study has no item {id!r}.")
        return self._entries[id]

    def _turned(self, entry: _Entry, number: int) -> bool:
        return entry.kind == "pairwise" and entry.turned ^ bool(number % 2)

    def _choices(self, entry: _Entry) -> dict[int, str]:
        words, design = WORDS[self.design.language], self.design
        if entry.kind == "pairwise":
            return {1: words["first"], 2: words["second"]} | ({0: words["tie"]} if design.ties else {})
        ends = {design.low: words["worst"], design.high: words["best"]}
        return {value: ends.get(value, "") for value in range(design.low, design.high + 1)}

    def _item(self, id: str, number: int, value: int | None = None) -> Item:
        entry = self._entries[id]
        turned = self._turned(entry, number)
        question = WORDS[self.design.language][entry.kind].format(criterion=entry.criterion)
        return Item(id, entry.kind, question, entry.prompt, entry.texts[::-1] if turned else entry.texts,
                    self._choices(entry), 3 - value if turned and value else value)  # fmt: skip

    def _order(self, number: int) -> list[str]:
        """Return all items as a rater meets them.

        In round r prompt p is met with system p + r + number, modulo their number: each system is met equally often in
        each round, and by raters in a row in rounds in a row. Within a round prompts are shuffled.
        """
        rng = random.Random(f"{self.design.seed} {number}")
        order: list[str] = []
        for kind in self.design.kinds:
            cells: dict[tuple[int, int], list[str]] = defaultdict(list)  # (prompt, condition) → one item a criterion
            checks = []
            for id, entry in self._entries.items():
                if entry.kind == kind and entry.expected is None:
                    cells[entry.place, entry.condition].append(id)
                elif entry.kind == kind:
                    checks.append(id)
            places, conditions = ({key[i] for key in cells} for i in (0, 1))
            block: list[str] = []
            for turn in range(max(conditions, default=-1) + 1):
                met = [(place, (place + turn + number) % (max(conditions) + 1)) for place in sorted(places)]
                rng.shuffle(met)
                block += [id for cell in met for id in sorted(cells.get(cell, ()), key=self._criterion)]
            rng.shuffle(checks)
            for i, check in reversed(list(enumerate(checks))):  # one somewhere in each stretch
                stretch = range(i * len(block) // len(checks), (i + 1) * len(block) // len(checks))
                block.insert(rng.choice(stretch or [len(block)]), check)
            order += block
        return order

    def _criterion(self, id: str) -> int:
        return self.design.criteria.index(self._entries[id].criterion)

    def _store(self, answers: Sequence[tuple[str, str, int, float | None]]) -> None:
        for _, id, value, _ in answers:
            choices = self._choices(self._entry(id))
            if isinstance(value, bool) or value not in choices:
                raise InputError(f"An answer must be one of {', '.join(map(str, sorted(choices)))}. Got {value!r}.")
        numbers = {rater: self._number(rater) for rater in dict.fromkeys(rater for rater, *_ in answers)}
        now = datetime.now(timezone.utc).isoformat(timespec="seconds")
        with _database(self.path, write=True) as db:
            for rater, id, value, seconds in answers:
                turned = self._turned(self._entries[id], numbers[rater])
                db.execute(
                    "INSERT INTO answers (rater, item, value, turned, answered, seconds) VALUES (?, ?, ?, ?, ?, ?)",
                    [_name(rater), id, 3 - value if turned and value else value, turned, now, seconds],
                )


def _fill(
    db: sqlite3.Connection, texts: Mapping[str, Mapping[str, str]], prompts: Sequence[str], design: Design, title: str
) -> None:
    """Write texts and items into an empty database."""
    rng = random.Random(design.seed)
    systems, prompts = sorted(texts), list(prompts)
    rng.shuffle(systems)
    rng.shuffle(prompts)
    used: set[str] = set()

    def new_id() -> str:
        id = next(id for id in iter(lambda: f"{rng.getrandbits(48):012x}", "") if id not in used)
        used.add(id)
        return id

    def add(kind: str, criterion: str, place: int, condition: int, *rest: int | None) -> None:
        db.execute("INSERT INTO items VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)",
                   [new_id(), kind, criterion, place, condition, *rest])  # fmt: skip

    def add_text(system: str | None, prompt: str, text: str) -> int:
        return int(db.execute("INSERT INTO texts (system, prompt, text) VALUES (?, ?, ?)",
                              [system, _whole(prompt), _whole(text)]).lastrowid or 0)  # fmt: skip

    for statement in SCHEMA.split(";\n"):
        db.execute(statement)
    db.execute(f"PRAGMA application_id = {APPLICATION}")
    db.execute(f"PRAGMA user_version = {VERSION}")
    db.execute("INSERT INTO study VALUES (?, ?)", [title, json.dumps(asdict(design), ensure_ascii=False)])
    ids = {(name, prompt): add_text(name, prompt, texts[name][prompt]) for prompt in prompts for name in systems}
    same = 0
    counts: Counter[str] = Counter()
    for kind in design.kinds:
        groups = [(s,) for s in systems] if kind == "likert" else list(itertools.combinations(systems, 2))
        for condition, group in enumerate(groups):
            halves = rng.sample([i % 2 for i in range(len(prompts))], len(prompts))  # half of the pairs are turned
            for place, prompt in enumerate(prompts):
                if len({texts[system][prompt] for system in group}) < len(group):
                    same += 1
                    continue
                first, second = (*(ids[system, prompt] for system in group), None)[:2]
                turned = halves[place] if kind == "pairwise" else 0
                for criterion in design.criteria:
                    add(kind, criterion, place, condition, first, second, turned, None)
                    counts[kind] += 1
    if same:
        logger.warning("%d pairs are of the same text twice, and are left out", same)
    if not counts:
        raise InputError("All texts are the same, so there is nothing to ask.")
    words = WORDS[design.language]
    for kind in design.kinds:
        for place in range(math.ceil(counts[kind] / design.check_every) if design.check_every else 0):
            criterion, pair = design.criteria[0], kind == "pairwise"
            expected = 1 if pair else rng.randint(design.low, design.high)
            first = add_text(None, "", words["this" if pair else "check"].format(value=expected))
            second = add_text(None, "", words["other"]) if pair else None
            add(kind, criterion, place, -1, first, second, rng.randrange(2) if pair else 0, expected)


def _whole(text: str) -> str:
    """Return a text without halves of letters, which a model's bytes may leave and SQLite refuses."""
    return text.encode("utf-8", "replace").decode()


def _name(rater: str) -> str:
    name = " ".join(unicodedata.normalize("NFC", rater).split())
    if not name or len(name) > 80 or not name.isprintable():
        raise InputError(f"A rater's name must be 1 to 80 printable characters. Got {rater!r}.")
    return name


def _csv(columns: Sequence[str], rows: Iterator[Sequence[Any]]) -> str:
    """Write CSV, with the mark at its head that lets spreadsheets know UTF-8."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(columns)
    writer.writerows(map(as_cell, row) for row in rows)
    return f"\ufeff{out.getvalue()}"


def _read_csv(path: Path, columns: Sequence[str]) -> list[tuple[int, dict[str, str]]]:
    """Return each row with the number of its last line."""
    try:
        reader = csv.DictReader(io.StringIO(path.read_text(encoding="utf-8-sig"), newline=""))
        lacking = [column for column in columns if column not in (reader.fieldnames or ())]
        if lacking:
            raise InputError(f"{path} lacks the column {', '.join(lacking)}. It must have {', '.join(columns)}.")
        return [(reader.line_num, {key: row[key] or "" for key in columns}) for row in reader]
    except UnicodeDecodeError as error:
        raise InputError(f"{path} is not UTF-8 text: {error}.") from None
    except csv.Error as error:
        raise InputError(f"{path} is no CSV file: {error}.") from None


# --- The report -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Score:
    """What a system got in one criterion.

    Attributes:
        system: Which.
        kind: ``likert`` or ``pairwise``.
        criterion: Which.
        ratings: How many there are.
        value: Mean grade, over prompts, of the mean over raters; or share of pairs won, a tie as half.
        low: Of its 95 % interval, by a bootstrap of the prompts; None with one prompt.
        high: Likewise.
        strength: Of pairs, the system's in :func:`bradley_terry`, with a prior.
        strength_low: Of its interval.
        strength_high: Likewise.
    """

    system: str
    kind: Kind
    criterion: str
    ratings: int
    value: float
    low: float | None = None
    high: float | None = None
    strength: float | None = None
    strength_low: float | None = None
    strength_high: float | None = None


@dataclass(frozen=True)
class Rater:
    """How a rater did: items answered, checks answered, checks answered wrong, and whether that is too many."""

    name: str
    answered: int
    checks: int
    wrong: int
    failed: bool


@dataclass(frozen=True)
class Report:
    """What a study found; printed, it is a table.

    Attributes:
        title: Of the study.
        scores: Of each system, kind and criterion.
        agreement: (kind, criterion, coefficient) → how far raters agree.
        raters: All of them.
        left_out: Whether those who failed were.
        first_chosen: Of pairs with a winner, the share in which it was the one shown first; None without any.
        prior: Of the strengths.
    """

    title: str
    scores: list[Score]
    agreement: dict[tuple[str, str, str], Agreement]
    raters: list[Rater]
    left_out: bool
    first_chosen: float | None
    prior: float

    def __str__(self) -> str:
        wide = max(len(name) for name in [*(s.system for s in self.scores), *(r.name for r in self.raters), "system"])
        lines = [self.title] * bool(self.title)
        for kind, criterion in dict.fromkeys((s.kind, s.criterion) for s in self.scores):
            what = "mean" if kind == "likert" else "wins"
            strength = "" if kind == "likert" else "   strength   95 % interval"
            lines += ["", criterion, f"{'system':{wide}}  ratings  {what:>6}  95 % interval{strength}"]
            for s in self.scores:
                if (s.kind, s.criterion) == (kind, criterion):
                    line = f"{s.system:{wide}}  {s.ratings:7}  {s.value:6.3f}  {_interval(s.low, s.high):15}"
                    if s.strength is not None:
                        line += f"   {s.strength:+6.2f}   {_interval(s.strength_low, s.strength_high, '+.2f')}"
                    lines.append(line.rstrip())
        lines += ["", f"{'agreement':34}   value  95 % interval"]
        for (asked, criterion, name), one in self.agreement.items():
            value = "–" if one.value is None else f"{one.value:.3f}"
            line = f"{f'{criterion}, {asked}: {name}':34}  {value:>6}  {_interval(one.low, one.high):15}  {one.note}"
            lines.append(line.rstrip())
        lines += ["", f"{'rater':{wide}}  answered  checks  wrong"]
        for r in self.raters:
            mark = "  failed" + ", left out" * self.left_out if r.failed else ""
            lines.append(f"{r.name:{wide}}  {r.answered:8}  {r.checks:6}  {r.wrong:5}{mark}")
        if self.first_chosen is not None:
            lines += ["", f"Where one of two texts was better, it was the one shown first in {self.first_chosen:.0%}.",
                      f"Strengths are logs, with a prior of {self.prior:g} wins of each over each other."]  # fmt: skip
        return "\n".join(lines).strip("\n")

    def metrics(self) -> dict[str, float]:
        """Return every number under a name of its own, for ``results.json``."""
        named: dict[str, float | None] = {
            "raters": len(self.raters), "raters_failed": sum(r.failed for r in self.raters),
            "first_chosen": self.first_chosen,
        }  # fmt: skip
        for s in self.scores:
            name = f"{s.system} {s.criterion} {'mean' if s.kind == 'likert' else 'wins'}"
            named |= {name: s.value, f"{name} low": s.low, f"{name} high": s.high}
            name = f"{s.system} {s.criterion} strength"
            named |= {name: s.strength, f"{name} low": s.strength_low, f"{name} high": s.strength_high}
        for (kind, criterion, coefficient), one in self.agreement.items():
            name = f"{criterion} {kind} {coefficient}"
            named |= {name: one.value, f"{name} low": one.low, f"{name} high": one.high}
        return {name: value for name, value in named.items() if value is not None}


def _interval(low: float | None, high: float | None, form: str = ".3f") -> str:
    return "" if low is None else f"[{low:{form}}, {high:{form}}]"


def report(
    study: Study, *, leave_out_failing: bool = False, allowed_wrong: int = 0, prior: float = 0.5, repeats: int = 1000,
    seed: int = 0,
) -> Report:  # fmt: skip
    """Evaluate a study, however far raters are.

    Args:
        study: The study.
        leave_out_failing: Whether raters who failed the checks count.
        allowed_wrong: Wrong answers to checks with which a rater has not failed, >= 0.
        prior: Of :func:`bradley_terry`, > 0: resampled pairs leave a system unbeaten sooner or later.
        repeats: Of each bootstrap.
        seed: Of it.

    Raises:
        InputError: There are no ratings.
    """
    check_range("prior", prior, 0, open_low=True)
    ratings = study.ratings()
    raters = []
    for name in study.raters():
        own = [r for r in ratings if r.rater == name]
        checks = [r for r in own if r.expected is not None]
        wrong = sum(r.value != r.expected for r in checks)
        raters.append(Rater(name, len(own), len(checks), wrong, wrong > allowed_wrong))
    out = {r.name for r in raters if r.failed} if leave_out_failing else set()
    ratings = [r for r in ratings if r.rater not in out and r.expected is None]
    if not ratings:
        raise InputError(f"{study.path} has no ratings" + (" but of raters who failed the checks." if out else " yet."),
                         hint="`rate`, `import`, or the rating page")  # fmt: skip
    scores: list[Score] = []
    agreement: dict[tuple[str, str, str], Agreement] = {}
    for kind, criterion in itertools.product(study.design.kinds, study.design.criteria):
        own = [r for r in ratings if (r.kind, r.criterion) == (kind, criterion)]
        if own:
            if kind == "likert":
                scores += _graded(own, criterion, repeats, seed)
            else:
                scores += _ranked(own, criterion, prior, repeats, seed)
            for name, one in _agreements(own, kind, study.design, repeats, seed).items():
                agreement[kind, criterion, name] = one
    decided = [r for r in ratings if r.kind == "pairwise" and r.value]
    first = sum((r.value == 2) == r.turned for r in decided) / len(decided) if decided else None
    return Report(study.title, scores, agreement, raters, leave_out_failing, first, prior)


def _graded(ratings: Sequence[Rating], criterion: str, repeats: int, seed: int) -> list[Score]:
    grades: dict[str, dict[str, list[int]]] = defaultdict(lambda: defaultdict(list))
    for rating in ratings:
        grades[rating.system][rating.prompt].append(rating.value)
    scores = []
    for system, by_prompt in grades.items():
        means = [sum(values) / len(values) for values in by_prompt.values()]
        low, high = bootstrap_interval(means, repeats=repeats, seed=seed) or (None, None)
        count = sum(map(len, by_prompt.values()))
        scores.append(Score(system, "likert", criterion, count, sum(means) / len(means), low, high))
    return sorted(scores, key=lambda score: (-score.value, score.system))


def _ranked(ratings: Sequence[Rating], criterion: str, prior: float, repeats: int, seed: int) -> list[Score]:
    prompts = {prompt: i for i, prompt in enumerate(dict.fromkeys(r.prompt for r in ratings))}
    places = {system: i for i, system in enumerate(sorted({name for r in ratings for name in (r.system, r.other)}))}
    wins = np.zeros((len(prompts), len(places), len(places)))
    for r in ratings:
        one, other = places[r.system], places[r.other]
        wins[prompts[r.prompt], one, other] += (0.5, 1, 0)[r.value]
        wins[prompts[r.prompt], other, one] += (0.5, 0, 1)[r.value]
    whole = wins.sum(0)
    counts, strengths = (whole + whole.T).sum(1), bradley_terry(whole, prior=prior)
    shares, ends = whole.sum(1) / counts, np.full((4, len(places)), None)
    if len(prompts) > 1:
        times = np.random.default_rng(seed).multinomial(len(prompts), np.full(len(prompts), 1 / len(prompts)), repeats)
        drawn = np.tensordot(times, wins, 1)  # (repeats, S, S)
        compared = (drawn + drawn.swapaxes(1, 2)).sum(2)
        resampled = np.where(compared > 0, drawn.sum(2) / np.maximum(compared, 0.5), np.nan)
        ends[:2] = np.nanquantile(resampled, [0.025, 0.975], axis=0)
        ends[2:] = np.quantile(bradley_terry(drawn, prior=prior), [0.025, 0.975], axis=0)
    scores = []
    for system, i in places.items():
        low, high, strength_low, strength_high = ends[:, i].tolist()
        scores.append(Score(system, "pairwise", criterion, int(counts[i]), float(shares[i]), low, high,
                            float(strengths[i]), strength_low, strength_high))  # fmt: skip
    return sorted(scores, key=lambda score: (-(score.strength or 0), score.system))


def _agreements(ratings: Sequence[Rating], kind: Kind, design: Design, repeats: int, seed: int) -> dict[str, Agreement]:
    raters, items = (list(dict.fromkeys(getattr(r, key) for r in ratings)) for key in ("rater", "item"))
    values = {(r.rater, r.item): r.value for r in ratings}
    rows: list[list[Rated]] = [[values.get((rater, item)) for item in items] for rater in raters]
    again: dict[str, Any] = {"repeats": repeats, "seed": seed}
    levels: tuple[Any, ...] = ("ordinal", "interval", "nominal") if kind == "likert" else ("nominal",)
    found = {f"alpha, {level}": krippendorff_alpha(rows, level, **again) for level in levels}
    categories = list(range(design.low, design.high + 1)) if kind == "likert" else [0, 1, 2]
    if len(raters) == 2:
        found["Cohen's kappa"] = cohen_kappa(*rows, categories=categories, **again)
        if kind == "likert":
            found["kappa, quadratic"] = cohen_kappa(*rows, weights="quadratic", categories=categories, **again)
    complete = [column for column in zip(*rows, strict=True) if None not in column]
    if len(raters) > 2 and complete:
        counts = [[column.count(category) for category in categories] for column in complete]
        found["Fleiss' kappa"] = fleiss_kappa(counts, **again)
    return found


def plot_report(report: Report, path: Path) -> None:
    """Draw each system's grades and strengths with their intervals."""
    from shared.plots import drawing

    panels = list(dict.fromkeys((s.kind, s.criterion) for s in report.scores))
    most = max(Counter((s.kind, s.criterion) for s in report.scores).values())
    with drawing(path, 1.2 + 4.2 * len(panels), 1.7 + 0.42 * most) as figure:
        for axes, panel in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels, strict=True):
            _draw_panel(axes, [s for s in report.scores if (s.kind, s.criterion) == panel], *panel)
        raters = sum(not (r.failed and report.left_out) for r in report.raters)
        title = f"{report.title}: " if report.title else ""
        figure.suptitle(f"{title}{raters} rater{'s' * (raters != 1)}, 95 % intervals", parse_math=False, fontsize=11)


def _draw_panel(axes: Axes, scores: Sequence[Score], kind: str, criterion: str) -> None:
    for place, score in enumerate(reversed(scores)):
        value, low, high = score.value, score.low, score.high
        if kind == "pairwise":
            value, low, high = score.strength or 0.0, score.strength_low, score.strength_high
        errors = None if low is None or high is None else [[max(0.0, value - low)], [max(0.0, high - value)]]
        axes.errorbar([value], [place], xerr=errors, fmt="o", color="#1f5fa8", capsize=3)
        label = f"{value:.2f}" if kind == "likert" else f"{value:+.2f}, wins {score.value:.0%}"
        axes.annotate(label, (value, place), xytext=(0, 6), textcoords="offset points", ha="center", fontsize=8)
    axes.set_yticks(range(len(scores)), [score.system for score in reversed(scores)], parse_math=False)
    axes.set_ylim(-0.6, len(scores) - 0.3)
    axes.set_xlabel(f"{criterion}: mean grade" if kind == "likert" else f"{criterion}: log strength in pairs",
                    parse_math=False)  # fmt: skip
    axes.grid(axis="x", alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)


# --- Commands ---------------------------------------------------------------------------------------------------------

STUDY = str(OUTPUTS / PROJECT / "study.sqlite")


@dataclass
class CreateConfig:
    """Make a study of generated texts."""

    study: str = STUDY
    """The file to make."""
    texts: str = ""
    """A .jsonl or .csv with system, prompt and text, or compare's texts.jsonl; by default the model writes them."""
    model: str = "builtin:stories"
    """builtin:stories, a folder or a hub id such as gpt2."""
    strategies: list[str] = field(default_factory=lambda: ["greedy", "nucleus", "sampling"])
    """The systems that are compared, where the model writes."""
    prompts: int = 10
    """Beginnings of stories to go on from, where the model writes."""
    max_new_tokens: int = 120
    """Longest text, in tokens, where the model writes."""
    title: str = ""
    """Of the study."""
    kinds: list[str] = field(default_factory=lambda: ["likert", "pairwise"])
    """likert (a grade a text), pairwise (the better one of two), or both."""
    criteria: list[str] = field(default_factory=lambda: ["quality"])
    """What is asked of each."""
    low: int = 1
    """Worst grade, >= 0."""
    high: int = 5
    """Best grade."""
    ties: bool = True
    """Whether two texts may be equally good."""
    check_every: int = 10
    """Items from one attention check to the next; 0 has none."""
    language: Literal["en", "zh"] = "en"
    """Of the questions."""
    seed: int = field(default=0, metadata=NOT_RECIPE)
    """Of every order, and of the model's texts."""

    def __post_init__(self) -> None:
        """Check the ranges."""
        check_range("prompts", self.prompts, 1)
        check_range("seed", self.seed, 0, 2**31)
        self.design()

    def design(self) -> Design:
        """Return what raters are asked."""
        kinds: Any = tuple(self.kinds)
        return Design(kinds, tuple(self.criteria), self.low, self.high, self.ties, self.check_every, self.language,
                      self.seed)  # fmt: skip


def read_texts(path: Path) -> dict[str, dict[str, str]]:
    """Read texts by system and prompt from a ``.jsonl`` or ``.csv`` with system, prompt and text.

    In what ``text_generator compare`` writes, strategies are the systems, and of each prompt the first sample counts.

    Raises:
        InputError: A row lacks one of them, or a system has two texts for a prompt.
    """
    keys = ("system", "prompt", "text")
    if path.suffix == ".csv":
        rows: list[tuple[int, Any]] = list(_read_csv(path, keys))
    else:
        try:
            lines = path.read_text(encoding="utf-8-sig").split("\n")
            rows = [(number, json.loads(line)) for number, line in enumerate(lines, 1) if line.strip()]
        except (ValueError, RecursionError) as error:
            raise InputError(f"{path} must hold a JSON object a line, in UTF-8: {error}.") from None
    texts: dict[str, dict[str, str]] = {}
    further = 0
    for number, row in rows:
        row = {"system": row.get("strategy"), **row} if isinstance(row, dict) else {}
        system, prompt, text = map(row.get, keys)
        if not (isinstance(system, str) and system.strip() and isinstance(prompt, str) and isinstance(text, str)):
            raise InputError(f"Line {number} of {path} must have a system, a prompt and a text.")
        if row.get("sample"):
            further += 1
            continue
        if prompt in texts.setdefault(system, {}):
            raise InputError(f"Line {number} of {path} is the second text of {system} for {prompt[:40]!r}.")
        texts[system][prompt] = text
    if further:
        logger.info("%d further samples of the same prompts are left out", further)
    return texts


def write_texts(config: CreateConfig) -> dict[str, dict[str, str]]:
    """Let a model go on from beginnings of held-out stories, with each strategy."""
    from gpt_text_generation.builtin.train_models import CORPORA
    from gpt_text_generation.text_generator import Settings, TextGenerator, set_threads_for

    stories = CORPORA["stories"].texts("test", config.prompts, config.seed)
    prompts = list(dict.fromkeys(story.strip().partition(".")[0] + "." for story in stories))
    set_threads_for(config.model)
    generator = TextGenerator(config.model)
    texts = {}
    for strategy in config.strategies:
        settings = Settings(strategy=strategy, max_new_tokens=config.max_new_tokens, seed=config.seed)  # type: ignore[arg-type]
        generations = generator.generate(prompts, settings, what=strategy)
        texts[strategy] = {one.prompt: one.text for one in generations}
    return texts


def create(config: CreateConfig) -> None:
    """Make a study; see :class:`CreateConfig`."""
    if Path(config.study).exists():
        raise InputError(f"{config.study} exists already.", hint="another --study, or remove it")
    texts = read_texts(Path(config.texts)) if config.texts else write_texts(config)
    study = Study.create(config.study, texts, config.design(), config.title)
    logger.info("%s: %d systems, %d prompts, %d items a rater", config.study, len(texts),
                len(next(iter(texts.values()))), study.size)  # fmt: skip
    logger.info("next: python -m %s rate --rater NAME%s", MODULE,
                "" if config.study == STUDY else f" --study {config.study}")  # fmt: skip


@dataclass
class RateConfig:
    """Answer a study's items in the terminal; what was answered before stays."""

    rater: str = ""
    """Your name."""
    study: str = STUDY
    """The study's file."""


def printable(text: str) -> str:
    """Return a text without the characters that would steer a terminal."""
    return "".join("�" if unicodedata.category(c) in ("Cc", "Cs") and c not in "\n\t" else c for c in text)


def rate(config: RateConfig) -> None:
    """Ask one item after the other."""
    study = Study.open(config.study)
    if not config.rater:
        raise InputError("A rater needs a name.", hint="--rater anna")
    answered: list[str] = []
    item = study.next_item(config.rater)
    while item:
        progress = study.progress(config.rater)
        texts = [f"--- {i} ---\n{text or '(empty)'}" for i, text in enumerate(item.texts, 1)]
        shown = "\n\n".join([f"[{progress.done + 1}/{progress.total}]  {item.prompt}", *texts, item.question])
        sys.stdout.write(f"\n{printable(shown)}\n{item.legend()}; b back, q quit: ")
        sys.stdout.flush()
        began = time.monotonic()
        while True:
            line = sys.stdin.readline()
            word = line.strip().lower()
            if not line or word == "q" or (word == "b" and answered) or word in map(str, item.choices):
                break
            sys.stdout.write("please one of these: ")
            sys.stdout.flush()
        if not line or word == "q":
            break
        if word == "b":
            item = study.item(config.rater, answered.pop())
            continue
        study.answer(config.rater, item.id, int(word), time.monotonic() - began)
        answered.append(item.id)
        item = study.next_item(config.rater)
    done, total = study.progress(config.rater)
    sys.stdout.write(f"\n{done} of {total} answered" + (". Thank you.\n" if done == total else "; go on any time.\n"))


@dataclass
class ImportConfig:
    """Take ratings from a CSV file with the columns rater, item and value: all of them, or none."""

    ratings: str = ""
    """The file; export with --rater makes an empty one."""
    study: str = STUDY
    """The study's file."""
    skip_missing: bool = False
    """Pass over rows without a value instead of refusing the file."""


def import_command(config: ImportConfig) -> None:
    """Take ratings; see :class:`ImportConfig`."""
    study = Study.open(config.study)
    if not config.ratings:
        raise InputError("There must be a file of ratings.", hint="--ratings anna.csv")
    count = study.import_ratings(config.ratings, skip_missing=config.skip_missing)
    logger.info("%d ratings from %s", count, config.ratings)


@dataclass
class ExportConfig:
    """Write a study's ratings as CSV, or the empty sheet of a rater."""

    output: str = "ratings.csv"
    """The file to write."""
    rater: str = ""
    """Write what this rater has yet to answer, blind; by default all ratings with their systems are written."""
    study: str = STUDY
    """The study's file."""


def export(config: ExportConfig) -> None:
    """Write CSV; see :class:`ExportConfig`."""
    study = Study.open(config.study)
    write_atomic(Path(config.output), study.sheet(config.rater) if config.rater else study.table())
    logger.info("written: %s", config.output)


@dataclass
class ReportConfig:
    """Evaluate a study, however far its raters are."""

    study: str = STUDY
    """The study's file."""
    leave_out_failing: bool = False
    """Leave out raters who failed the attention checks."""
    allowed_wrong: int = 0
    """Wrong answers to checks with which a rater has not failed, >= 0."""
    prior: float = 0.5
    """Wins that each system has over each other beforehand, > 0."""
    repeats: int = 1000
    """Samples of each interval, >= 1."""
    seed: int = field(default=0, metadata=NOT_RECIPE)
    """Of the samples."""
    run: str = field(default="", metadata=NOT_RECIPE)
    """Name of the run's folder; by default the time."""

    def __post_init__(self) -> None:
        """Check the ranges."""
        check_range("allowed_wrong", self.allowed_wrong, 0)
        check_range("prior", self.prior, 0, open_low=True)
        check_range("repeats", self.repeats, 1)
        check_range("seed", self.seed, 0, 2**31)


def report_command(config: ReportConfig) -> None:
    """Evaluate a study; see :class:`ReportConfig`."""
    study = Study.open(config.study)
    found = report(study, leave_out_failing=config.leave_out_failing, allowed_wrong=config.allowed_wrong,
                   prior=config.prior, repeats=config.repeats, seed=config.seed)  # fmt: skip
    run = Run(PROJECT, MODULE, "report", config, name=config.run)
    write_atomic(run.folder / "ratings.csv", study.table())
    plot_report(found, run.folder / "report.png")
    run.finish(model=", ".join(study.systems), data=config.study, seed=config.seed, metrics=found.metrics())
    sys.stdout.write(f"{found}\n")
    logger.info("saved in %s", run.folder)


COMMANDS: dict[str, Any] = {
    "create": create, "rate": rate, "import": import_command, "export": export, "report": report_command,
}  # fmt: skip

if __name__ == "__main__":
    run_commands(COMMANDS, module=MODULE, extra="generation")
