"""Coefficients are those of published examples, of plain counting and of libraries; studies are blind and balanced."""

import csv
import io
import itertools
import json
import os
import random
import re
import sqlite3
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gpt_text_generation.evaluation import human_evaluation as module
from gpt_text_generation.evaluation.human_evaluation import (
    COMMANDS,
    MODULE,
    Design,
    Item,
    Study,
    bradley_terry,
    cohen_kappa,
    fleiss_kappa,
    krippendorff_alpha,
    plot_report,
    printable,
    read_texts,
    report,
)
from shared.config import run_commands
from shared.errors import InputError

_ = None
# Krippendorff (2011), "Computing Krippendorff's Alpha-Reliability", examples A, B and C
MEG_OWEN = [[0, 1, 0, 0, 0, 0, 0, 0, 1, 0], [1, 1, 1, 0, 0, 1, 0, 0, 0, 0]]
BEN_GERRY = ["a a b b d c c c e d d a".split(), "b a b b b c c c e d d d".split()]
FOUR_OBSERVERS = [
    [1, 2, 3, 3, 2, 1, 4, 1, 2, _, _, _],
    [1, 2, 3, 3, 2, 2, 4, 1, 2, 5, _, 3],
    [_, 3, 3, 3, 2, 3, 4, 2, 2, 5, 1, _],
    [1, 2, 3, 3, 2, 4, 4, 1, 2, 5, 1, _],
]
# Another example that is widely printed, with its two values
THREE_OBSERVERS = [
    [_, _, _, _, _, 3, 4, 1, 2, 1, 1, 3, 3, _, 3],
    [1, _, 2, 1, 3, 3, 4, 3, _, _, _, _, _, _, _],
    [_, _, 2, 1, 3, 4, 4, _, 2, 1, 1, 3, 3, _, 4],
]
# Fleiss (1971), table 1: six psychiatrists sort 30 patients into five diagnoses
DIAGNOSES = """00060 03003 01401 00006 03030 20400 00402 20310 20040 00006 10050 11040 03300 10050 02031
00501 30012 51000 02040 10203 00006 01050 02013 20040 10041 05010 40002 02040 10500 00006"""
# Cohen (1960), 200 cases that two clinicians diagnosed, and Cohen's weights for them (1968)
CLINICIANS = [[88, 14, 18], [10, 40, 10], [2, 6, 12]]
SERIOUSNESS = [[0, 1, 3], [1, 0, 6], [3, 6, 0]]
# Wins of baseball's American League East in 1987 and their fit (Agresti, Categorical Data Analysis)
TEAMS = ["Milwaukee", "Detroit", "Toronto", "New York", "Boston", "Cleveland", "Baltimore"]
BASEBALL = [
    [0, 7, 9, 7, 7, 9, 11],
    [6, 0, 7, 5, 11, 9, 9],
    [4, 6, 0, 7, 7, 8, 12],
    [6, 8, 6, 0, 6, 7, 10],
    [6, 2, 6, 7, 0, 7, 12],
    [4, 4, 5, 6, 6, 0, 6],
    [2, 4, 1, 3, 1, 7, 0],
]
RATINGS = st.integers(1, 4).flatmap(
    lambda raters: st.lists(
        st.lists(st.sampled_from([1, 2, 3, 5, None]), min_size=raters, max_size=raters), min_size=1, max_size=8
    )
).map(lambda columns: [list(row) for row in zip(*columns, strict=True)])  # fmt: skip


@pytest.fixture(autouse=True)
def _in_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def fleiss_table() -> list[list[int]]:
    """Return the table, whose digits are the counts of the five categories."""
    return [[int(digit) for digit in row] for row in DIAGNOSES.split()]


def from_table(table: Sequence[Sequence[int]]) -> tuple[list[int], list[int]]:
    """Return the ratings of two raters that a table counts."""
    pairs = [(i, j) for i, row in enumerate(table) for j, count in enumerate(row) for _ in range(count)]
    return [i for i, _ in pairs], [j for _, j in pairs]


# --- Krippendorff's alpha ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("ratings", "level", "value", "digits"),
    [
        (MEG_OWEN, "nominal", 0.095, 3),
        (BEN_GERRY, "nominal", 0.692, 3),
        (FOUR_OBSERVERS, "nominal", 0.743, 3),
        (FOUR_OBSERVERS, "ordinal", 0.815, 3),
        (FOUR_OBSERVERS, "interval", 0.849, 3),
        (THREE_OBSERVERS, "nominal", 0.691358, 6),
        (THREE_OBSERVERS, "interval", 0.810845, 6),
    ],
)
def test_alpha_is_that_of_the_published_examples(ratings: Any, level: Any, value: float, digits: int) -> None:
    found = krippendorff_alpha(ratings, level, repeats=50)
    assert round(found.value, digits) == value
    assert found.low <= found.value <= found.high


def plain_alpha(ratings: Sequence[Sequence[Any]], level: str) -> float | None:
    """Return 1 − observed / expected disagreement, pair by pair, with the ordinal distance as Krippendorff sums it."""
    items = [[value for value in column if value is not None] for column in zip(*ratings, strict=True)]
    items = [values for values in items if len(values) > 1]
    every = list(itertools.chain(*items))
    if not every:
        return None
    counts = Counter(every)

    def distance(a: int, b: int) -> float:
        if level == "nominal":
            return float(a != b)
        if level == "interval":
            return float(a - b) ** 2
        low, high = min(a, b), max(a, b)
        return (sum(counts[g] for g in counts if low <= g <= high) - (counts[a] + counts[b]) / 2) ** 2

    observed = sum(
        distance(a, b) / (len(values) - 1) for values in items for a, b in itertools.permutations(values, 2)
    ) / len(every)
    expected = sum(distance(a, b) for a, b in itertools.permutations(every, 2)) / (len(every) * (len(every) - 1))
    return 1 - observed / expected if expected else 1.0


@pytest.mark.parametrize("level", ["nominal", "ordinal", "interval"])
@given(ratings=RATINGS)
@settings(max_examples=40)
def test_alpha_is_one_less_the_quotient_of_disagreements(level: Any, ratings: list[list[Any]]) -> None:
    expected = plain_alpha(ratings, level)
    assert krippendorff_alpha(ratings, level, repeats=0).value == (
        None if expected is None else pytest.approx(expected, abs=1e-9)
    )


@given(ratings=RATINGS)
@settings(max_examples=20)
def test_alpha_is_the_same_whoever_is_first_and_whatever_categories_are_called(ratings: list[list[Any]]) -> None:
    value = krippendorff_alpha(ratings, "ordinal", repeats=0).value
    assert krippendorff_alpha(ratings[::-1], "ordinal", repeats=0).value == pytest.approx(value)
    scaled = [[None if v is None else 10.0 * v + 1 for v in row] for row in ratings]
    assert krippendorff_alpha(scaled, "ordinal", repeats=0).value == pytest.approx(value)
    interval = krippendorff_alpha(ratings, "interval", repeats=0).value
    assert krippendorff_alpha(scaled, "interval", repeats=0).value == pytest.approx(interval)
    nan = [[float("nan") if v is None else v for v in row] for row in ratings]
    assert krippendorff_alpha(nan, "interval", repeats=0).value == pytest.approx(interval)


# --- Kappa ------------------------------------------------------------------------------------------------------------


def test_cohens_kappa_is_that_of_cohens_own_examples() -> None:
    first, second = from_table(CLINICIANS)
    assert round(cohen_kappa(first, second).value, 3) == 0.492
    assert round(cohen_kappa(first, second, weights=SERIOUSNESS).value, 3) == 0.348


def test_weighted_kappa_is_that_of_a_printed_example_of_sas() -> None:
    first, second = from_table([[0, 4, 1], [0, 8, 0], [0, 1, 5]])
    assert round(cohen_kappa(first, second).value, 4) == 0.4842
    assert round(cohen_kappa(first, second, weights="linear").value, 4) == 0.4701


@given(pairs=st.lists(st.tuples(st.integers(1, 4), st.integers(1, 4)), min_size=2, max_size=20))
@settings(max_examples=25)
@pytest.mark.parametrize("weights", ["none", "linear", "quadratic"])
def test_cohens_kappa_is_that_of_scikit_learn(weights: Any, pairs: list[tuple[int, int]]) -> None:
    from sklearn.metrics import cohen_kappa_score

    first, second = map(list, zip(*pairs, strict=True))
    for categories in (None, [1, 2, 3, 4]):
        found = cohen_kappa(first, second, weights=weights, categories=categories, repeats=0)
        if len(set(first + second)) == 1:
            assert found.value == 1 and "by definition" in found.note  # scikit-learn has 0 / 0 there
        else:
            theirs = cohen_kappa_score(first, second, weights=None if weights == "none" else weights, labels=categories)
            assert found.value == pytest.approx(theirs, abs=1e-12)


def test_fleiss_kappa_is_that_of_fleiss_own_example_and_of_another_that_is_widely_printed() -> None:
    table = fleiss_table()
    assert [sum(column) for column in zip(*table, strict=True)] == [26, 26, 30, 55, 43]  # as the paper has it
    assert fleiss_kappa(table).value == pytest.approx(0.4302445, abs=5e-8)  # .430 there, these digits in R's irr
    wikipedia = [[0, 0, 0, 0, 14], [0, 2, 6, 4, 2], [0, 0, 3, 5, 6], [0, 3, 9, 2, 0], [2, 2, 8, 1, 1], [7, 7, 0, 0, 0],
                 [3, 2, 6, 3, 0], [2, 5, 3, 2, 2], [6, 5, 2, 1, 0], [0, 2, 2, 3, 7]]  # fmt: skip
    assert round(fleiss_kappa(wikipedia).value, 3) == 0.210


@given(st.lists(st.lists(st.integers(0, 2), min_size=3, max_size=3), min_size=2, max_size=10))
@settings(max_examples=40)
def test_fleiss_kappa_is_that_of_statsmodels(items: list[list[int]]) -> None:
    inter_rater = pytest.importorskip("statsmodels.stats.inter_rater")
    counts = [[item.count(category) for category in range(3)] for item in items]
    if len(set(itertools.chain(*items))) > 1:  # theirs is NaN where ours is 1
        assert fleiss_kappa(counts, repeats=0).value == pytest.approx(inter_rater.fleiss_kappa(np.array(counts)))


@given(st.lists(st.lists(st.integers(0, 2), min_size=3, max_size=3), min_size=2, max_size=10))
@settings(max_examples=40)
def test_nominal_alpha_is_fleiss_kappa_with_a_correction_for_small_samples(items: list[list[int]]) -> None:
    kappa = fleiss_kappa([[item.count(category) for category in range(3)] for item in items], repeats=0)
    alpha = krippendorff_alpha([list(row) for row in zip(*items, strict=True)], repeats=0)
    n = 3 * len(items)
    assert 1 - alpha.value == pytest.approx((1 - kappa.value) * (n - 1) / n)


# --- Degenerate agreement, and intervals ------------------------------------------------------------------------------

COEFFICIENTS: dict[str, Callable[[Sequence[Sequence[Any]]], Any]] = {
    "cohen": lambda rows: cohen_kappa(*rows),
    "fleiss": lambda rows: fleiss_kappa([[column.count(c) for c in (1, 2, 3)] for column in zip(*rows, strict=True)]),
    "alpha": lambda rows: krippendorff_alpha(rows),
    "ordinal": lambda rows: krippendorff_alpha(rows, "ordinal"),
    "interval": lambda rows: krippendorff_alpha(rows, "interval"),
}


@pytest.mark.parametrize("name", COEFFICIENTS)
def test_degenerate_ratings_have_defined_values_that_explain_themselves(name: str) -> None:
    coefficient = COEFFICIENTS[name]
    unanimous = coefficient([[2, 2, 2], [2, 2, 2]])
    assert (unanimous.value, unanimous.low, unanimous.high) == (1, 1, 1) and "by definition" in unanimous.note
    agreed = coefficient([[1, 2, 3], [1, 2, 3]])
    assert agreed.value == pytest.approx(1) and not agreed.note
    single = coefficient([[1], [2]])
    assert single.value is not None and single.value <= 0 and (single.low, single.high) == (None, None)
    assert "single item" in single.note
    assert coefficient([[3], [3]]).value == 1
    nothing = coefficient([[], []])
    assert nothing.value is None and "nothing to compare" in nothing.note
    if name != "cohen":
        one_rater = coefficient([[1, 2, 3]])
        assert one_rater.value is None and "nothing to compare" in one_rater.note


def test_one_dissent_among_equal_ratings_is_no_agreement_beyond_chance() -> None:
    rows = [[1] * 10, [1] * 9 + [2]]
    assert krippendorff_alpha(rows, repeats=0).value == pytest.approx(0)
    assert cohen_kappa(*rows, repeats=0).value == pytest.approx(0)


def test_raters_who_never_share_an_item_and_missing_ratings() -> None:
    assert krippendorff_alpha([[1, None], [None, 2]]).value is None
    assert cohen_kappa([1, None, 2], [1, 2, None], repeats=0).value == 1
    assert krippendorff_alpha([[1, 2, 3], [1, 2, None]], repeats=0).value == pytest.approx(1)
    assert krippendorff_alpha([], repeats=0).value is None


def test_intervals_are_over_items_and_narrow_with_their_number() -> None:
    rng = random.Random(0)
    true = [rng.randint(1, 5) for _ in range(400)]
    rows = [[min(5, max(1, value + rng.choice([-1, 0, 0, 1]))) for value in true] for _ in range(3)]
    wide, narrow = (krippendorff_alpha([row[:n] for row in rows], "interval", repeats=300) for n in (25, 400))
    assert wide.low < wide.value < wide.high and narrow.low < narrow.value < narrow.high
    assert 2.5 < (wide.high - wide.low) / (narrow.high - narrow.low) < 6  # about √16
    assert krippendorff_alpha(rows, "interval", repeats=300) == narrow


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: cohen_kappa([1, 2], [1]), "same items"),
        (lambda: cohen_kappa([1, 2], [1, 2], weights="cubic"), "none, linear, quadratic"),
        (lambda: cohen_kappa([1, 2], [1, 2], weights=[[0]]), r"weights must be \(2, 2\)"),
        (lambda: cohen_kappa([1, 7], [1, 2], categories=[1, 2]), r"among \[1, 2\]. Got \['7'\]"),
        (lambda: cohen_kappa([1, "a"], [1, 2]), "all numbers or all names"),
        (lambda: fleiss_kappa([[1, 2], [2, 2]]), "3 to 4"),
        (lambda: fleiss_kappa([[1, -1]]), "numbers of ratings"),
        (lambda: krippendorff_alpha([[1, 2], [1]]), "place for each item"),
        (lambda: krippendorff_alpha([["a"], ["b"]], "interval"), "must be numbers"),
        (lambda: krippendorff_alpha([[1], [2]], "ratio"), "level must be"),
    ],
)
def test_wrong_ratings_are_refused(call: Callable[[], Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        call()


# --- Bradley and Terry ------------------------------------------------------------------------------------------------


def test_strengths_are_those_of_agrestis_example() -> None:
    strengths = bradley_terry(BASEBALL)
    above_baltimore = dict(zip(TEAMS, strengths - strengths[-1], strict=True))
    published = {"Milwaukee": 1.58, "Detroit": 1.44, "Toronto": 1.29, "New York": 1.25, "Boston": 1.11,
                 "Cleveland": 0.68, "Baltimore": 0.0}  # fmt: skip
    assert {team: round(value, 2) for team, value in above_baltimore.items()} == published
    assert strengths.mean() == pytest.approx(0)


@given(wins=st.lists(st.lists(st.integers(0, 9), min_size=4, max_size=4), min_size=4, max_size=4),
       prior=st.sampled_from([0.5, 1.0]))  # fmt: skip
@settings(max_examples=15)
def test_strengths_have_the_highest_likelihood(wins: list[list[int]], prior: float) -> None:
    from scipy.optimize import minimize

    table = (np.array(wins) + prior) * (1 - np.eye(4))

    def loss(s: np.ndarray) -> float:
        return float((table * np.logaddexp(0, s - s[:, None])).sum())

    found = bradley_terry(wins, prior=prior)
    best = minimize(lambda rest: loss(np.append(rest, 0)), np.zeros(3), tol=1e-10)
    assert loss(found) <= best.fun + 1e-9
    assert bradley_terry([wins, BASEBALL_4], prior=prior)[0] == pytest.approx(found, abs=1e-7)


BASEBALL_4 = [row[:4] for row in BASEBALL[:4]]


def test_two_systems_have_the_log_odds_and_ties_are_half_wins() -> None:
    strengths = bradley_terry([[0, 6], [2, 0]])
    assert strengths[0] - strengths[1] == pytest.approx(np.log(3))
    assert bradley_terry([[0, 3 + 1], [1 + 1, 0]]) == pytest.approx(np.array([1, -1]) * np.log(2) / 2)
    assert bradley_terry([[0]]).tolist() == [0]


def test_unbeaten_and_unconnected_systems_are_an_error_without_a_prior_and_finite_with_one() -> None:
    unbeaten = [[0, 3, 3], [0, 0, 2], [0, 1, 0]]
    with pytest.raises(InputError, match="none of b, c was ever preferred to any of a"):
        bradley_terry(unbeaten, names=["a", "b", "c"])
    apart = [[0, 2, 0, 0], [1, 0, 0, 0], [0, 0, 0, 1], [0, 0, 2, 0]]
    with pytest.raises(InputError, match="none of 0, 1 was ever preferred to any of 2, 3") as caught:
        bradley_terry(apart)
    assert "prior" in caught.value.hint
    for wins in (unbeaten, apart):
        assert np.isfinite(bradley_terry(wins, prior=0.5)).all()
    assert bradley_terry(unbeaten, prior=0.5).argmax() == 0
    assert bradley_terry(unbeaten, prior=0.01)[0] > bradley_terry(unbeaten, prior=0.5)[0] + 1
    assert bradley_terry(np.zeros((3, 3)), prior=0.5).tolist() == [0, 0, 0]
    for wrong in ([[0, 1]], [[0, -1], [1, 0]], [1, 2]):
        with pytest.raises(InputError, match="square table"):
            bradley_terry(wrong)


# --- The study --------------------------------------------------------------------------------------------------------

SYSTEMS = ["greedy", "nucleus", "beam", "human"]


def some_texts(systems: Sequence[str] = SYSTEMS, prompts: int = 8) -> dict[str, dict[str, str]]:
    """Return texts that only this module can tell apart: a number that stands for the system."""
    return {s: {f"Prompt {p}": f"Text {i * 1000 + p}." for p in range(prompts)} for i, s in enumerate(systems)}


def system_of(text: str, systems: Sequence[str] = SYSTEMS) -> str:
    return systems[int(text.removeprefix("Text ").removesuffix(".")) // 1000]


def new_study(path: str = "study.sqlite", texts: Any = None, **design: Any) -> Study:
    return Study.create(path, texts or some_texts(), Design(**design))


def is_check(item: Item) -> bool:
    return not item.prompt


def right_answer(item: Item) -> int:
    """Answer an attention check as a reader does."""
    if item.kind == "likert":
        return int(re.search(r"(\d+)", item.texts[0])[1])
    return 1 + ["choose this" in text for text in item.texts].index(True)


def rate_all(study: Study, rater: str, answer: Callable[[Item], int]) -> list[Item]:
    seen = []
    while item := study.next_item(rater):
        seen.append(item)
        study.answer(rater, item.id, right_answer(item) if is_check(item) else answer(item))
    return seen


def rate_at_once(study: Study, rater: str, answer: Callable[[Item], int]) -> list[Item]:
    """Do what :func:`rate_all` does in one transaction."""
    study.next_item(rater)
    number = study.raters().index(rater)
    items = [study._item(id, number) for id in study._order(number)]
    values = [right_answer(item) if is_check(item) else answer(item) for item in items]
    study._store([(rater, item.id, value, None) for item, value in zip(items, values, strict=True)])
    return items


def by_quality(item: Item) -> int:
    grades = [SYSTEMS.index(system_of(text)) + 2 for text in item.texts]
    return grades[0] if item.kind == "likert" else 1 if grades[0] > grades[1] else 2


def test_a_rater_meets_each_item_once_and_nothing_tells_whose_texts_they_are() -> None:
    study = new_study()
    seen = rate_all(study, "anna", by_quality)
    assert len({item.id for item in seen}) == len(seen) == study.size
    texts = Counter(text for item in seen if not is_check(item) and item.kind == "likert" for text in item.texts)
    assert set(texts.values()) == {1} and len(texts) == 4 * 8
    pairs = Counter(frozenset(item.texts) for item in seen if item.kind == "pairwise" and not is_check(item))
    assert set(pairs.values()) == {1} and len(pairs) == 6 * 8
    assert sum(map(is_check, seen)) == 4 + 5  # one in ten of 32 and of 48
    shown = repr(seen) + study.sheet("bo") + repr([field.name for field in fields(Item)])
    assert not any(system in shown for system in SYSTEMS)
    assert study.next_item("anna") is None
    assert study.progress("anna") == (study.size, study.size)
    assert study.progress("bo") == (0, study.size)


def test_ids_tell_nothing_and_orders_are_the_seeds() -> None:
    studies = [new_study(f"{name}.sqlite", seed=seed) for name, seed in (("a", 0), ("b", 0), ("c", 1))]
    orders = [[item.id for item in rate_at_once(study, "anna", by_quality)] for study in studies]
    assert orders[0] == orders[1] != orders[2]
    assert all(re.fullmatch("[0-9a-f]{12}", id) for id in orders[0])
    place = {id: i for i, id in enumerate(sorted(orders[0]))}
    systems = {r.item: r.system for r in studies[0].ratings() if r.kind == "likert" and r.expected is None}
    means = [np.mean([place[id] for id, s in systems.items() if s == system]) for system in SYSTEMS]
    assert max(means) - min(means) < len(place) / 2  # in the order of ids, systems are mixed


@pytest.mark.parametrize("raters", [2, 4])
def test_each_pair_is_shown_both_ways_equally_often(raters: int) -> None:
    study = new_study(kinds=("pairwise",))
    first: Counter[tuple[str, str]] = Counter()
    for rater in range(raters):
        own: Counter[tuple[str, str]] = Counter()
        for item in rate_at_once(study, f"rater {rater}", by_quality):
            if not is_check(item):
                first[item.texts] += 1
                own[system_of(item.texts[0]), system_of(item.texts[1])] += 1
        for a, b in itertools.combinations(SYSTEMS, 2):
            assert own[a, b] == own[b, a] == 4  # half of the prompts, for each single rater
    for pair, times in first.items():
        assert times == first[pair[::-1]] == raters / 2


def test_systems_come_equally_often_in_each_round_and_by_raters_in_a_row() -> None:
    study = new_study(kinds=("likert",), check_every=0)
    rounds = []
    for rater in range(4):
        systems = [system_of(item.texts[0]) for item in rate_at_once(study, f"rater {rater}", by_quality)]
        rounds.append([Counter(systems[i : i + 8]) for i in range(0, 32, 8)])
    assert all(counts == dict.fromkeys(SYSTEMS, 2) for own in rounds for counts in own)
    prompts = {}
    for rater in range(4):
        order = [study._entries[id] for id in study._order(rater)]
        for i, entry in enumerate(order):
            prompts.setdefault((entry.prompt, entry.systems), []).append(i // 8)
    assert all(sorted(rounds) == [0, 1, 2, 3] for rounds in prompts.values())


def test_checks_are_spread_and_criteria_of_a_text_follow_each_other() -> None:
    study = new_study(kinds=("likert",), criteria=("fluency", "interest"), check_every=8)
    items = rate_at_once(study, "anna", by_quality)
    places = [i for i, item in enumerate(items) if is_check(item)]
    assert len(places) == 8 and all(i * 9 <= place <= i * 9 + 9 for i, place in enumerate(places))
    rest = [item for item in items if not is_check(item)]
    for one, other in zip(rest[::2], rest[1::2], strict=True):
        assert one.texts == other.texts and "fluency" in one.question and "interest" in other.question


def test_a_study_is_resumed_where_it_stopped_in_another_process_too() -> None:
    study = new_study()
    for _ in range(5):
        item = study.next_item("anna")
        study.answer("anna", item.id, 1)
    again = Study.open("study.sqlite")
    assert again.progress("anna") == (5, study.size)
    assert again.next_item("anna") == study.next_item("anna")
    assert again.design == study.design
    assert again.next_item(" anna ") == again.next_item("anna")  # blanks make no other rater


def test_an_answer_given_again_replaces_the_one_before_which_is_kept() -> None:
    study = new_study(kinds=("likert",))
    item = next(i for i in (study.item("anna", id) for id in study._order(0)) if not is_check(i))
    assert item.answer is None
    study.answer("anna", item.id, 2, seconds=3.5)
    study.answer("anna", item.id, 4)
    assert study.item("anna", item.id).answer == 4
    assert [r.value for r in study.ratings()] == [4]
    assert [(r.value, r.seconds) for r in study.ratings(history=True)] == [(2, 3.5), (4, None)]
    assert study.progress("anna").done == 1


def test_answers_to_pairs_are_stored_for_the_system_however_it_was_shown() -> None:
    study = new_study()
    for rater in ("anna", "bo", "chen"):
        rate_at_once(study, rater, by_quality)
    pairs = [r for r in study.ratings() if r.kind == "pairwise" and r.expected is None]
    assert {r.turned for r in pairs} == {False, True}
    for r in pairs:
        assert SYSTEMS.index(r.system if r.value == 1 else r.other) > SYSTEMS.index(
            r.other if r.value == 1 else r.system
        )
    for rater in ("anna", "bo"):
        item = study.item(rater, pairs[0].item)
        assert item.answer == by_quality(item)
        study.answer(rater, item.id, 0)
        assert study.item(rater, item.id).answer == 0


RATE = """
import sys
from gpt_text_generation.evaluation.human_evaluation import Study
study, rater = Study.open("study.sqlite"), sys.argv[1]
while item := study.next_item(rater):
    study.answer(rater, item.id, 1)
"""


def test_two_raters_in_two_processes_lose_nothing() -> None:
    study = new_study(texts=some_texts(prompts=4))
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    processes = [subprocess.Popen([sys.executable, "-c", RATE, name], env=environment) for name in ("anna", "bo")]
    assert [process.wait(120) for process in processes] == [0, 0]
    assert sorted(study.raters()) == ["anna", "bo"]
    assert Counter(r.rater for r in study.ratings(history=True)) == {"anna": study.size, "bo": study.size}
    turned = Counter((r.item, r.turned) for r in study.ratings() if r.kind == "pairwise")
    assert set(turned.values()) == {1}  # the two had different numbers


def test_the_file_keeps_what_it_refers_to_and_writers_don_t_stop_readers() -> None:
    study = new_study()
    item = study.next_item("anna")
    with sqlite3.connect("study.sqlite") as db:
        assert db.execute("PRAGMA journal_mode").fetchone() == ("wal",)
        db.execute("PRAGMA foreign_keys = ON")
        with pytest.raises(sqlite3.IntegrityError):
            db.execute("INSERT INTO answers VALUES (1, 'nobody', ?, 1, 0, 'now', NULL)", [item.id])
        with pytest.raises(sqlite3.IntegrityError):
            db.execute("INSERT INTO answers VALUES (1, 'anna', 'no item', 1, 0, 'now', NULL)")
    db.close()
    assert [path.name for path in Path().iterdir()] == ["study.sqlite"]  # what was written beside it is gone


def test_who_reads_does_not_wait_for_who_writes() -> None:
    study = new_study()
    study.answer("anna", study.next_item("anna").id, 1)
    writer = sqlite3.connect("study.sqlite", isolation_level=None)
    writer.execute("BEGIN IMMEDIATE")
    writer.execute("DELETE FROM answers")
    began = time.monotonic()
    again = Study.open("study.sqlite")
    assert again.raters() == ["anna"] and len(again.ratings()) == 1 and again.progress("anna").done == 1
    assert again.next_item("anna") and len(filled(again.sheet("anna"), str)) == study.size - 1
    assert time.monotonic() - began < 10
    writer.execute("ROLLBACK")
    writer.close()


@pytest.mark.skipif(os.name != "posix", reason="Windows has other rights")
def test_a_study_that_can_not_be_written_to_can_be_read() -> None:
    with tempfile.TemporaryDirectory() as name:  # pytest's own folders are closed to others
        folder = Path(name)
        study = new_study(folder / "study.sqlite")
        rate_all(study, "anna", by_quality)
        (folder / "study.sqlite").chmod(0o444)
        folder.chmod(0o555)
        if root := os.geteuid() == 0:
            os.seteuid(65534)  # to root, nothing is forbidden
        try:
            again = Study.open(study.path)
            assert again.ratings() == study.ratings() and again.next_item("anna") is None
            assert again.table() == study.table() and again.progress("anna").done == study.size
            with pytest.raises(OSError, match=r"study\.sqlite can only be read"):
                again.answer("anna", study._order(0)[0], 1)
            with pytest.raises(OSError, match=r"study\.sqlite can only be read"):
                again.next_item("bo")
        finally:
            if root:
                os.seteuid(0)
            folder.chmod(0o755)


@pytest.mark.parametrize("value", [0, 6, -1, True, 2.5, "3", None])
def test_answers_out_of_scale_are_refused(value: Any) -> None:
    study = new_study(kinds=("likert",))
    with pytest.raises(InputError, match="must be one of 1, 2, 3, 4, 5"):
        study.answer("anna", study.next_item("anna").id, value)
    assert study.ratings() == []


def test_ties_need_to_be_allowed() -> None:
    study = new_study(kinds=("pairwise",), ties=False)
    item = study.next_item("anna")
    assert set(item.choices) == {1, 2}
    with pytest.raises(InputError, match="must be one of 1, 2. Got 0"):
        study.answer("anna", item.id, 0)
    with pytest.raises(InputError, match="no item 'x'"):
        study.answer("anna", "x", 1)
    for name in ("", "  ", "a" * 81, "a\x1bb"):
        with pytest.raises(InputError, match="name must be"):
            study.next_item(name)


def test_what_is_no_study_is_refused() -> None:
    with pytest.raises(FileNotFoundError, match="create"):
        Study.open("nowhere.sqlite")
    assert not Path("nowhere.sqlite").exists()
    Path("text").write_text("no database at all, whatever its name is" * 30)
    Path("empty").touch()
    sqlite3.connect("other").execute("CREATE TABLE t (x)").connection.close()
    for name in ("text", "empty", "other"):
        with pytest.raises(InputError, match="is no study"):
            Study.open(name)
    new_study()
    with pytest.raises(InputError, match="exists already"):
        new_study()
    with sqlite3.connect("study.sqlite") as db:
        db.execute("PRAGMA user_version = 99")
    db.close()
    with pytest.raises(InputError, match="version 99"):
        Study.open("study.sqlite")


@pytest.mark.parametrize(
    ("texts", "design", "message"),
    [
        ({"a": {"p": "x", "q": "y"}, "b": {"p": "z"}}, {}, "Missing: b: 'q'"),
        ({"a": {"p": "x"}}, {}, "pairs need two systems"),
        ({}, {"kinds": ("likert",)}, "needs a text"),
        ({"a": {"p": "x"}, "b": {"p": "x"}}, {"kinds": ("pairwise",)}, "nothing to ask"),
        (None, {"kinds": ("stars",)}, "kinds must be"),
        (None, {"kinds": ()}, "kinds must be"),
        (None, {"criteria": ("a", "a")}, "criteria must be"),
        (None, {"criteria": ()}, "criteria must be"),
        (None, {"low": 3, "high": 3}, "high must be in"),
        (None, {"check_every": -1}, "check_every must be in"),
        (None, {"language": "fr"}, "language must be"),
    ],
)
def test_studies_that_make_no_sense_are_refused(texts: Any, design: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        Study.create("study.sqlite", some_texts() if texts is None else texts, Design(**design))
    assert list(Path().iterdir()) == []


def test_equal_texts_of_two_systems_are_no_pair_and_broken_letters_are_no_failure() -> None:
    texts = {"a": {"p": "same", "q": "one \ud800"}, "b": {"p": "same", "q": ""}, "c": {"p": "x", "q": "y"}}
    study = new_study(texts=texts, kinds=("pairwise",), check_every=0)
    items = rate_at_once(study, "anna", lambda item: 1)
    assert len(items) == 5 and study.size == 5
    assert any("?" in text for item in items for text in item.texts)
    assert report(study, repeats=20).scores


def test_a_chinese_study_asks_in_chinese() -> None:
    texts = {"甲": {"从前": "有一座山。"}, "乙": {"从前": "有一条河。"}}
    study = Study.create("study.sqlite", texts, Design(criteria=("流畅",), language="zh"), "中文")
    item = study.next_item("小明")
    assert "流畅" in item.question and item.choices[1] == "最差"
    assert "小明" in study.sheet("小明") and "有一座山。" in study.sheet("小明")


# --- Import and export ------------------------------------------------------------------------------------------------


def filled(sheet: str, answer: Callable[[dict[str, str]], str]) -> list[dict[str, str]]:
    rows = list(csv.DictReader(io.StringIO(sheet.removeprefix("\ufeff"))))
    return [{**row, "value": answer(row)} for row in rows]


def save_csv(rows: Sequence[dict[str, str]], path: str = "ratings.csv") -> str:
    with open(path, "w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, rows[0].keys())
        writer.writeheader()
        writer.writerows(rows)
    return path


def quality_on_paper(row: dict[str, str]) -> str:
    texts = tuple(filter(None, [row["text"], row["second_text"]]))
    item = Item(row["item"], "pairwise" if row["second_text"] else "likert", "", row["prompt"], texts, {})
    return str(right_answer(item) if is_check(item) else by_quality(item))


def test_a_filled_sheet_gives_what_the_screen_gives() -> None:
    screen, paper = new_study("screen.sqlite"), new_study("paper.sqlite")
    for rater in ("anna", "bo"):
        rate_at_once(screen, rater, by_quality)
        first = paper.next_item(rater)
        paper.answer(rater, first.id, by_quality(first) if not is_check(first) else right_answer(first))
        rows = filled(paper.sheet(rater), quality_on_paper)
        assert paper.import_ratings(save_csv(rows)) == paper.size - 1
        assert filled(paper.sheet(rater), str) == []
    key = [lambda r: (r.rater, r.item)] * 2
    values = [[(r.rater, r.item, r.value, r.turned) for r in sorted(s.ratings(), key=k)]
              for s, k in zip((screen, paper), key, strict=True)]  # fmt: skip
    assert values[0] == values[1]


def test_ratings_that_are_missing_or_out_of_scale_are_named_by_line_and_nothing_is_taken() -> None:
    study = new_study()
    rows = filled(study.sheet("anna"), quality_on_paper)
    for line, value in ((2, "9"), (3, ""), (4, "good"), (6, "3.5"), (7, "nan"), (8, "1e999")):
        rows[line - 2]["value"] = value
    rows[3] = rows[-1]
    with pytest.raises(InputError) as caught:
        study.import_ratings(save_csv(rows))
    message = caught.value.args[0]
    for part in (
        "line 2: the value must be one of 1, 2, 3, 4, 5, and is 9",
        "line 3: the value is missing",
        "line 4: the value must be a number, and is 'good'",
        *("line 6:", "line 7:", "line 8:"),
        f"line {len(rows) + 1}: anna has answered {rows[3]['item']} before in this file",
    ):
        assert part in message
    assert "skip_missing" in caught.value.hint
    assert study.ratings() == []


def test_missing_ratings_can_be_passed_over() -> None:
    study = new_study()
    rows = filled(study.sheet("anna"), quality_on_paper)
    for row in rows[10:]:
        row["value"] = " "
    assert study.import_ratings(save_csv(rows), skip_missing=True) == 10
    assert study.progress("anna").done == 10


def test_no_spreadsheet_runs_what_a_model_wrote() -> None:
    texts = {"a": {"p": "=1+1", "@q": "-2"}, "b": {"p": "@SUM(A1)", "@q": "-cmd"}}
    study = new_study(texts=texts, check_every=0)
    rows = filled(study.sheet("=anna"), lambda row: "1")
    assert {row["text"] for row in rows} == {"'=1+1", "'@SUM(A1)", "-2", "'-cmd"}
    assert {row["prompt"] for row in rows} == {"p", "'@q"} and {row["rater"] for row in rows} == {"'=anna"}
    assert study.import_ratings(save_csv(rows)) == study.size  # the rater is who it was
    assert study.raters() == ["=anna"] and study.next_item("=anna") is None
    assert not re.search(r"(^|,)[=@]", study.table(), re.MULTILINE)


def test_strangers_can_grade_but_not_choose_between_texts_they_never_saw() -> None:
    study = new_study()
    rows = filled(study.sheet("anna"), quality_on_paper)
    for row in rows:
        row["rater"] = "bo"
    with pytest.raises(InputError, match="bo has seen no pair of this study"):
        study.import_ratings(save_csv(rows))
    grades = [row for row in rows if not row["second_text"]]
    assert study.import_ratings(save_csv(grades)) == len(grades)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"rater,item\nanna,x\n", "lacks the column value"),
        (b"", "lacks the column rater, item, value"),
        (b"rater,item,value\nanna,nothing,3\n", "line 2: the study has no item 'nothing'"),
        (b"rater,item,value\nanna\n", "line 2: the value is missing"),
        ("rater,item,value\né,x,1\n".encode("latin-1"), "not UTF-8"),
    ],
)
def test_broken_files_of_ratings_are_refused(content: bytes, message: str) -> None:
    study = new_study()
    Path("ratings.csv").write_bytes(content)
    with pytest.raises(InputError, match=message):
        study.import_ratings("ratings.csv")


def test_the_table_of_ratings_names_the_systems() -> None:
    study = new_study()
    rate_at_once(study, "anna", by_quality)
    rows = list(csv.DictReader(io.StringIO(study.table().removeprefix("\ufeff"))))
    assert len(rows) == study.size
    pairs = [row for row in rows if row["kind"] == "pairwise" and not row["expected"]]
    assert all(row["preferred"] == max((row["system"], row["other"]), key=SYSTEMS.index) for row in pairs)


# --- The report -------------------------------------------------------------------------------------------------------


def noisy(seed: int) -> Callable[[Item], int]:
    rng = random.Random(seed)

    def answer(item: Item) -> int:
        grades = [SYSTEMS.index(system_of(text)) + 1.5 + rng.gauss(0, 0.8) for text in item.texts]
        if item.kind == "likert":
            return min(5, max(1, round(grades[0])))
        return 0 if abs(grades[0] - grades[1]) < 0.2 else 1 if grades[0] > grades[1] else 2

    return answer


def test_a_report_ranks_the_systems_and_says_how_far_raters_agree(tmp_path: Path) -> None:
    study = new_study()
    for seed, rater in enumerate(("anna", "bo", "chen")):
        rate_at_once(study, rater, noisy(seed))
    found = report(study, repeats=100)
    for kind in ("likert", "pairwise"):
        scores = [s for s in found.scores if s.kind == kind]
        assert [s.system for s in scores] == SYSTEMS[::-1]
        assert all(s.low <= s.value <= s.high for s in scores)
    pairs = [s for s in found.scores if s.kind == "pairwise"]
    assert all(s.strength_low <= s.strength <= s.strength_high for s in pairs)
    assert sum(s.value for s in pairs) == pytest.approx(2)  # four systems win half of the time
    assert sum(s.strength for s in pairs) == pytest.approx(0)
    names = [f"{kind} {name}" for kind, _, name in found.agreement]
    assert names == [
        *("likert alpha, ordinal", "likert alpha, interval", "likert alpha, nominal", "likert Fleiss' kappa"),
        *("pairwise alpha, nominal", "pairwise Fleiss' kappa"),
    ]
    assert all(0 < one.low <= one.value <= one.high < 1 for one in found.agreement.values())
    assert 0.3 < found.first_chosen < 0.7
    json.dumps(found.metrics(), allow_nan=False)
    assert report(study, repeats=100) == found
    plot_report(found, tmp_path / "report.png")
    assert (tmp_path / "report.png").read_bytes().startswith(b"\x89PNG")
    for part in ("human", "alpha, ordinal", "anna", "strength"):
        assert part in str(found)


def test_mean_grades_and_win_rates_are_those_counted_out() -> None:
    study = new_study()
    for seed, rater in enumerate(("anna", "bo")):
        rate_at_once(study, rater, noisy(seed))
    ratings = [r for r in study.ratings() if r.expected is None]
    for score in report(study, repeats=10).scores:
        if score.kind == "likert":
            expected = np.mean([r.value for r in ratings if r.kind == "likert" and r.system == score.system])
        else:
            won = [1.0 if r.value == 1 + (r.other == score.system) else 0.5 * (r.value == 0) for r in ratings
                   if r.kind == "pairwise" and score.system in (r.system, r.other)]  # fmt: skip
            expected = np.mean(won)
            assert score.ratings == len(won)
        assert score.value == pytest.approx(expected)


def test_a_rater_who_fails_checks_is_named_and_can_be_left_out() -> None:
    study = new_study()
    rate_at_once(study, "anna", by_quality)
    rate_at_once(study, "bo", by_quality)
    while item := study.next_item("careless"):
        study.answer("careless", item.id, 1)
    everybody, others = report(study, repeats=20), report(study, leave_out_failing=True, repeats=20)
    assert [r.failed for r in everybody.raters] == [False, False, True]
    assert everybody.raters[2].wrong > 0 and everybody.raters[2].checks == everybody.raters[0].checks == 9
    assert "failed" in str(everybody) and "left out" not in str(everybody) and "left out" in str(others)
    assert others.agreement["likert", "quality", "alpha, ordinal"].value == pytest.approx(1)
    assert everybody.agreement["likert", "quality", "alpha, ordinal"].value < 0.8
    assert "Cohen's kappa" in str(others) and "Cohen's kappa" not in str(everybody)
    wrong = everybody.raters[2].wrong
    assert not report(study, allowed_wrong=wrong, repeats=20).raters[2].failed


def test_who_always_takes_the_first_is_seen_in_the_report() -> None:
    study = new_study(kinds=("pairwise",))
    for rater in ("anna", "bo"):
        rate_at_once(study, rater, lambda item: 1)
    found = report(study, repeats=20)
    assert found.first_chosen == 1
    assert [s.value for s in found.scores] == [0.5] * 4  # balance keeps the habit from favoring a system
    assert [s.strength for s in found.scores] == pytest.approx([0] * 4, abs=1e-6)


def test_reports_of_little_say_what_they_can() -> None:
    study = new_study()
    with pytest.raises(InputError, match="no ratings yet"):
        report(study)
    study.answer("anna", next(id for id in study._order(0) if study._entries[id].expected is None), 3)
    found = report(study)
    assert len(found.scores) == 1 and (found.scores[0].value, found.scores[0].low) == (3, None)
    assert all(one.value is None and "nothing to compare" in one.note for one in found.agreement.values())
    assert "nothing to compare" in str(found) and "–" in str(found)
    json.dumps(found.metrics(), allow_nan=False)
    plot_report(found, Path("one.png"))
    assert Path("one.png").exists()


def test_an_unbeaten_system_has_a_finite_strength_in_a_report() -> None:
    study = new_study(kinds=("pairwise",))
    rate_at_once(study, "anna", by_quality)
    best = report(study, repeats=50).scores[0]
    assert (best.system, best.value) == ("human", 1)
    assert 0 < best.strength_low <= best.strength <= best.strength_high < 10


# --- Commands ---------------------------------------------------------------------------------------------------------


def cli(*arguments: str) -> int:
    with pytest.raises(SystemExit) as exit_:
        run_commands(COMMANDS, module=MODULE, argv=arguments)
    return exit_.value.code


def save_texts(texts: dict[str, dict[str, str]]) -> None:
    rows = [{"system": s, "prompt": p, "text": t} for s, its in texts.items() for p, t in its.items()]
    Path("texts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def test_a_study_goes_from_create_to_report(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    save_texts(some_texts(SYSTEMS[:2], prompts=3))
    assert cli("create", "--texts", "texts.jsonl", "--study", "s.sqlite", "--title", "Two") == 0
    assert cli("create", "--texts", "texts.jsonl", "--study", "s.sqlite") == 2
    study = Study.open("s.sqlite")
    monkeypatch.setattr(sys, "stdin", io.StringIO("7\nno\n3\n2\nb\n1\nq\n"))
    assert cli("rate", "--study", "s.sqlite", "--rater", "anna") == 0
    assert "2 of 11 answered" in capsys.readouterr().out  # 6 texts, 3 pairs, a check each
    assert [r.value for r in study.ratings()][:1] == [3] and [r.value for r in study.ratings(history=True)] == [3, 2, 1]
    monkeypatch.setattr(sys, "stdin", io.StringIO("1\n" * 9))
    assert cli("rate", "--study", "s.sqlite", "--rater", "anna") == 0
    assert "11 of 11 answered. Thank you." in capsys.readouterr().out
    assert cli("export", "--study", "s.sqlite", "--rater", "bo", "--output", "bo.csv") == 0
    rows = list(csv.DictReader(io.StringIO(Path("bo.csv").read_text(encoding="utf-8-sig"))))
    save_csv([{**row, "value": "2"} for row in rows], "bo.csv")
    assert cli("import", "--study", "s.sqlite", "--ratings", "bo.csv") == 0
    assert cli("export", "--study", "s.sqlite", "--output", "all.csv") == 0
    assert len(Path("all.csv").read_text(encoding="utf-8").splitlines()) == 23
    assert cli("report", "--study", "s.sqlite", "--run", "r", "--repeats", "50") == 0
    assert "greedy" in capsys.readouterr().out
    folder = Path("outputs/gpt_text_generation/r")
    assert {"config.yaml", "results.json", "report.png", "ratings.csv"} <= {path.name for path in folder.iterdir()}
    results = json.loads((folder / "results.json").read_text())
    assert results["metrics"]["raters"] == 2 and results["model"] == "greedy, nucleus"
    assert 1 <= results["metrics"]["greedy quality mean"] <= 5


def test_the_embedded_model_writes_the_texts_of_a_study_with_each_strategy() -> None:
    from gpt_text_generation.text_generator import Settings, TextGenerator

    assert cli("create", "--strategies", "greedy,min_p", "--prompts", "3", "--max_new_tokens", "12") == 0
    study = Study.open(module.STUDY)
    assert study.systems == ["greedy", "min_p"]
    entries = [entry for entry in study._entries.values() if entry.expected is None]
    prompts = sorted({entry.prompt for entry in entries})
    assert len(prompts) == 3 and all(prompt.endswith(".") for prompt in prompts)
    made = TextGenerator("builtin:stories").generate(prompts, Settings("greedy", max_new_tokens=12))
    assert {one.text for one in made} <= {text for entry in entries for text in entry.texts}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["report", "--study", "none.sqlite"], "create"),
        (["rate", "--study", "s.sqlite"], "--rater"),
        (["import", "--study", "s.sqlite"], "--ratings"),
        (["report", "--study", "s.sqlite"], "no ratings yet"),
        (["report", "--study", "s.sqlite", "--prior", "0"], "prior must be in (0, inf)"),
        (["create", "--texts", "bad.jsonl", "--study", "b"], "Line 2 of bad.jsonl"),
        (["create", "--texts", "twice.csv", "--study", "b"], "second text of a for 'p'"),
        (["create", "--texts", "nowhere.jsonl", "--study", "b"], "nowhere.jsonl"),
        (["create", "--kinds", "stars"], "kinds must be"),
        (["judge"], "Unknown command"),
    ],
)
def test_wrong_input_is_one_clear_line(arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    new_study("s.sqlite")
    Path("bad.jsonl").write_text('{"system": "a", "prompt": "p", "text": "t"}\n{"system": "a", "prompt": 3}\n')
    Path("twice.csv").write_text("system,prompt,text\na,p,x\na,p,y\n")
    assert cli(*arguments) in (1, 2)
    error = capsys.readouterr().err
    assert message in error and "Traceback" not in error


def test_texts_come_from_csv_too() -> None:
    Path("texts.csv").write_text('system,prompt,text\na,p,"one\ntwo"\nb,p,三\n', encoding="utf-8-sig")
    assert read_texts(Path("texts.csv")) == {"a": {"p": "one\ntwo"}, "b": {"p": "三"}}


def test_a_study_is_made_of_what_compare_left(tiny_folder: Path) -> None:
    from gpt_text_generation.text_generator import CompareConfig, compare_command

    Path("prompts.txt").write_text("Maya\nTom and\n")
    compare_command(CompareConfig(str(tiny_folder), max_new_tokens=9, prompts="prompts.txt", samples=3, run="a",
                                  strategies=["greedy", "sampling"]))  # fmt: skip
    path = Path("outputs/gpt_text_generation/a/texts.jsonl")
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    assert len(rows) == 2 + 6
    assert cli("create", "--texts", str(path), "--study", "s.sqlite") == 0
    assert Study.open("s.sqlite").systems == ["greedy", "sampling"]
    assert read_texts(path)["sampling"] == {row["prompt"]: row["text"] for row in (rows[2], rows[5])}


def test_texts_can_not_steer_the_terminal() -> None:
    assert printable("a\x1b[2Jb\tc\n你　\u200d🙂") == "a�[2Jb\tc\n你　\u200d🙂"
