"""Tests agree with references, their p-values are right, false alarms are rare, and drift is found."""

import http.server
import json
import logging
import re
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from scipy.spatial.distance import pdist
from sklearn.linear_model import Ridge
from sklearn.metrics import roc_auc_score

from model_optimization.deployment.onnx_conversion import softmax
from model_optimization.monitoring import drift_detection
from model_optimization.monitoring.drift_detection import (
    FILE,
    MODULE,
    AccuracyEstimator,
    DriftMonitor,
    MonitorSettings,
    benjamini_hochberg,
    bonferroni,
    check,
    classifier_test,
    fit,
    holm,
    inject_typos,
    ks_test,
    mmd_test,
    out_of_fold_scores,
    population_stability_index,
    post_alert,
    random_windows,
    read_texts,
    resample_prior,
    simulate,
)
from shared.config import run_commands
from shared.errors import InputError

RUNS = Path("outputs/model_optimization")
P_VALUES = st.lists(st.integers(1, 100_003).map(lambda k: k / 100_003), min_size=1, max_size=12)  # never at a level
LABELS = ["negative", "positive"]


def sample(n: int, width: int = 4, shift: float = 0, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(shift, 1, (n, width)) * np.linspace(1, 2, width)


def traffic(
    n: int, *, positive: float = 0.5, shift: float = 0, classes: int = 2, seed: int = 0
) -> tuple[Any, Any, Any]:
    """Return probabilities, embeddings and labels of a classifier that is right on nine of ten texts."""
    rng = np.random.default_rng(seed)
    shares = [1 - positive, positive] if classes == 2 else np.full(classes, 1 / classes)
    label = rng.choice(classes, size=n, p=shares)
    embeddings = rng.normal(shift, 1, (n, 8))
    embeddings[:, :classes] += 2.5 * np.eye(classes)[label]
    logits = 1.7 * (embeddings[:, :classes] - shift) + rng.normal(0, 0.5, (n, classes))
    return softmax(logits), embeddings.astype(np.float32), label


def small_monitor(n: int = 600, classes: int = 2, **settings: Any) -> DriftMonitor:
    probabilities, embeddings, label = traffic(n, classes=classes)
    names = LABELS if classes == 2 else [f"class {i}" for i in range(classes)]
    defaults = {"window": 80, "permutations": 99, "alarm_every": 25, "held_out_windows": 0, "labels": label}
    return DriftMonitor.fit(probabilities, embeddings, names, **(defaults | settings))


# --- Corrections ------------------------------------------------------------------------------------------------------


@given(p_values=P_VALUES)
@settings(max_examples=100, deadline=None, derandomize=True)
def test_benjamini_hochberg_is_that_of_scipy(p_values: list[float]) -> None:
    assert benjamini_hochberg(p_values) == pytest.approx(stats.false_discovery_control(p_values, method="bh"))


@given(p_values=P_VALUES)
@settings(max_examples=100, deadline=None, derandomize=True)
def test_holm_rejects_step_by_step_as_defined(p_values: list[float]) -> None:
    corrected = holm(p_values)
    for level in (0.01, 0.05, 0.3):
        rejected, m = set(), len(p_values)
        for i, index in enumerate(np.argsort(p_values)):  # the procedure in Holm's words: stop at the first that stays
            if p_values[index] > level / (m - i):
                break
            rejected.add(int(index))
        assert set(np.flatnonzero(corrected <= level).tolist()) == rejected
    assert (corrected <= bonferroni(p_values) + 1e-12).all() and (corrected >= np.array(p_values) - 1e-12).all()
    assert corrected.min() == pytest.approx(bonferroni(p_values).min())


# --- Tests ------------------------------------------------------------------------------------------------------------


def test_kolmogorov_smirnov_is_that_of_scipy_with_its_correction() -> None:
    rng = np.random.default_rng(0)
    reference, window = rng.dirichlet([1, 1, 1], 300), rng.dirichlet([1, 1.2, 1.3], 100)
    each = [stats.ks_2samp(reference[:, k], window[:, k], method="asymp") for k in range(3)]
    found = ks_test(reference, window)
    assert found.effect == max(one.statistic for one in each)
    assert found.p_value == pytest.approx(min(1, 3 * min(one.pvalue for one in each)))
    fdr = ks_test(reference, window, "fdr")
    assert fdr.p_value == pytest.approx(stats.false_discovery_control([one.pvalue for one in each]).min())
    assert fdr.p_value <= found.p_value


def test_of_two_classes_one_is_tested_for_the_other_is_its_mirror_image() -> None:
    reference, window = traffic(300)[0], traffic(100, positive=0.7, seed=1)[0]
    found = ks_test(reference, window)
    theirs = stats.ks_2samp(reference[:, 1], window[:, 1], method="asymp")
    assert (found.effect, found.p_value) == pytest.approx((theirs.statistic, theirs.pvalue))
    mirrored = ks_test(reference[:, ::-1], window[:, ::-1])
    assert (mirrored.effect, mirrored.p_value) == pytest.approx((found.effect, found.p_value))
    apart = ks_test(np.tile([0.9, 0.1], (3000, 1)), np.tile([0.1, 0.9], (3000, 1)))
    assert apart.effect == 1 and 0 < apart.p_value < 1e-100  # too small for a number, yet not 0


def brute_force_mmd2(x: np.ndarray, y: np.ndarray) -> float:
    """Sum the kernel over all pairs, one at a time."""
    sigma = np.median(pdist(np.concatenate([x, y])))

    def k(a: np.ndarray, b: np.ndarray) -> float:
        return float(np.exp(-((a - b) ** 2).sum() / (2 * sigma**2)))

    n, m = len(x), len(y)
    within_x = sum(k(x[i], x[j]) for i in range(n) for j in range(n) if i != j) / (n * (n - 1))
    within_y = sum(k(y[i], y[j]) for i in range(m) for j in range(m) if i != j) / (m * (m - 1))
    return within_x + within_y - 2 * sum(k(a, b) for a in x for b in y) / (n * m)


@given(n=st.integers(3, 9), m=st.integers(3, 9), shift=st.floats(-2, 2), seed=st.integers(0, 99))
@settings(max_examples=25, deadline=None, derandomize=True)
def test_mmd_is_a_sum_over_all_pairs_and_symmetric(n: int, m: int, shift: float, seed: int) -> None:
    x, y = (
        sample(n, seed=seed) + 1000,
        sample(m, shift=shift, seed=seed + 1) + 1000,
    )  # far from 0, where digits get lost
    found = mmd_test(x, y, permutations=19, seed=seed)
    assert found.effect == pytest.approx(brute_force_mmd2(x, y), abs=1e-8)
    assert mmd_test(y, x, permutations=19).effect == pytest.approx(found.effect, abs=1e-12)
    assert found.p_value in [pytest.approx(i / 20) for i in range(1, 21)]


def test_the_p_value_of_mmd_counts_divisions_that_are_computed_anew() -> None:
    x, y = sample(12), sample(8, shift=0.4, seed=1)
    both = np.concatenate([x, y])
    divisions = drift_detection._divisions(12, 8, 49, np.random.default_rng(3)).astype(bool)
    assert (divisions.sum(1) == 8).all() and divisions[0].tolist() == [False] * 12 + [True] * 8
    values = [brute_force_mmd2(both[~own], both[own]) for own in divisions]
    expected = (1 + sum(value >= values[0] for value in values[1:])) / 50
    assert mmd_test(x, y, permutations=49, seed=3).p_value == pytest.approx(expected)


def test_divisions_are_drawn_with_equal_chances() -> None:
    drawn = drift_detection._divisions(3, 2, 5000, np.random.default_rng(0))[1:]
    counts = np.unique(drawn, axis=0, return_counts=True)[1]
    assert len(counts) == 10 and stats.chisquare(counts).pvalue > 0.001  # all ways to choose 2 of 5


@pytest.mark.parametrize("test", [mmd_test, classifier_test])
def test_without_drift_permutation_p_values_are_uniform(test: Any) -> None:
    p_values = [
        test(sample(24, seed=2 * i), sample(12, seed=2 * i + 1), permutations=19, seed=i).p_value for i in range(400)
    ]
    counts = np.bincount(np.round(np.array(p_values) * 20).astype(int), minlength=21)
    assert counts[0] == 0  # never 0
    assert stats.chisquare(counts[1:]).pvalue > 0.001


@pytest.mark.parametrize("test", [mmd_test, classifier_test])
def test_identical_texts_are_no_drift_and_a_far_window_is(test: Any) -> None:
    same = np.ones((40, 3))
    assert test(same, same[:20], permutations=19).p_value == 1
    far = test(sample(60), sample(30, shift=3, seed=1), permutations=99)
    assert far.p_value == 0.01
    assert far.effect > 0.3


def test_scores_are_those_of_a_ridge_regression_on_the_other_folds() -> None:
    x = sample(60, 5)
    labels = (np.random.default_rng(1).random((60, 3)) < 0.4).astype(float)
    fold = np.arange(60) % 4
    scores = out_of_fold_scores(x, labels, fold, ridge=0.7)
    for one in range(4):
        known = fold != one
        centered = x[known] - x[known].mean(0)
        penalty = 0.7 * (centered**2).sum() / 5
        for column in range(3):
            theirs = Ridge(alpha=penalty).fit(x[known], labels[known, column])
            expected = theirs.predict(x[~known]) - labels[known, column].mean()
            assert scores[~known, column] == pytest.approx(expected)


def test_the_classifier_test_learns_anew_for_each_permutation() -> None:
    x, y = sample(40), sample(25, shift=0.3, seed=1)
    both, seed = np.concatenate([x, y]), 5
    rng = np.random.default_rng(seed)
    fold = rng.permutation(65) % 5
    divisions = drift_detection._divisions(40, 25, 29, rng)
    areas = []
    for labels in divisions:
        scores = np.empty(65)
        for one in range(5):
            known = fold != one
            centered = both[known] - both[known].mean(0)
            model = Ridge(alpha=(centered**2).sum() / both.shape[1]).fit(both[known], labels[known])
            scores[~known] = model.predict(both[~known]) - labels[known].mean()
        areas.append(roc_auc_score(labels, scores))
    found = classifier_test(x, y, permutations=29, seed=seed)
    assert found.effect == pytest.approx(areas[0])
    assert found.p_value == pytest.approx(np.mean(np.array(areas) >= areas[0] - 1e-12))


def test_a_window_of_200_is_tested_against_1000_in_well_under_a_second() -> None:
    reference, window = sample(1000, 384), sample(200, 384, seed=1)
    for test in (mmd_test, classifier_test):
        started = time.process_time()
        test(reference, window, permutations=500)
        assert time.process_time() - started < 3  # 0.1-0.3 s on one core; here room for a slow one


@given(seed=st.integers(0, 500), n=st.integers(1, 200), m=st.integers(1, 200), digits=st.integers(0, 3))
@settings(max_examples=60, deadline=None, derandomize=True)
def test_the_stability_index_is_never_negative_and_0_for_the_same(seed: int, n: int, m: int, digits: int) -> None:
    rng = np.random.default_rng(seed)
    reference, window = rng.random(n).round(digits), (rng.random(m) ** 2).round(digits)
    assert population_stability_index(reference, window) >= 0
    assert population_stability_index(reference, reference) == pytest.approx(0, abs=1e-12)


def test_the_stability_index_is_its_formula_and_grows_by_chance_as_said() -> None:
    reference = np.repeat([0.1, 0.9], [60, 40])  # one edge, so two bins
    window = np.repeat([0.1, 0.9], [20, 30])
    p, q = np.array([60.5, 40.5]) / 101, np.array([20.5, 30.5]) / 51
    assert population_stability_index(reference, window, bins=2) == pytest.approx(((q - p) * np.log(q / p)).sum())
    rng = np.random.default_rng(0)
    noise = [population_stability_index(rng.random(1000), rng.random(200)) for _ in range(300)]
    assert np.mean(noise) == pytest.approx(9 * (1 / 1000 + 1 / 200), rel=0.1)


# --- Accuracy without labels ------------------------------------------------------------------------------------------


def calibrated(n: int, spread: float, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Return probabilities that are right, and labels drawn from them; less spread, harder texts."""
    rng = np.random.default_rng(seed)
    positive = 1 / (1 + np.exp(-rng.normal(0, spread, n)))
    return np.stack([1 - positive, positive], 1), (rng.random(n) < positive).astype(int)


@pytest.mark.parametrize(("spread", "off"), [(6, 0.01), (3, 0.04), (1.5, 0.1)])
def test_the_accuracy_of_harder_texts_is_guessed_without_labels(spread: float, off: float) -> None:
    estimator = AccuracyEstimator.fit(*calibrated(4000, 4, seed=0))
    probabilities, labels = calibrated(4000, spread, seed=1)
    truth = (probabilities.argmax(1) == labels).mean()
    guesses = estimator.estimate(probabilities)
    assert guesses["doc"] == pytest.approx(truth, abs=0.015)  # exact but for chance, where probabilities are right
    assert guesses["atc"] == pytest.approx(truth, abs=off)  # falls faster than the truth when all texts get harder
    assert abs(guesses["atc"] - truth) < abs(estimator.accuracy - truth)  # yet beats not looking


def test_as_many_texts_of_the_reference_are_above_the_threshold_as_are_right() -> None:
    probabilities, labels = calibrated(500, 2, seed=0)
    estimator = AccuracyEstimator.fit(probabilities, labels)
    right = (probabilities.argmax(1) == labels).mean()
    assert estimator.accuracy == pytest.approx(right)
    assert estimator.estimate(probabilities) == pytest.approx({"atc": right, "doc": right})
    never_wrong = AccuracyEstimator.fit(probabilities, probabilities.argmax(1))
    assert never_wrong.estimate(probabilities) == pytest.approx({"atc": 1, "doc": 1})


# --- The monitor ------------------------------------------------------------------------------------------------------


def test_alarms_without_drift_are_rare_and_drift_is_found() -> None:
    monitor = small_monitor(1500, reference_size=800)

    def rate(count: int, seed: int, **drift: float) -> float:
        windows = [traffic(80, seed=seed + i, **drift)[:2] for i in range(count)]
        return monitor.alarm_rate(windows, "test").rate

    assert rate(100, 1000) <= 0.1
    assert rate(15, 3000, positive=0.8) >= 0.8
    assert rate(15, 4000, shift=0.5) >= 0.8


def test_a_monitor_measures_its_own_false_alarms() -> None:
    monitor = small_monitor(1000, reference_size=360, held_out_windows=30)
    assert len(monitor.probabilities) == 360
    measured = monitor.false_alarms
    assert measured is not None and measured.windows == 30
    assert measured.low <= measured.rate <= measured.high and measured.rate <= 0.2
    theirs = stats.binomtest(round(measured.rate * 30), 30).proportion_ci(method="exact")
    assert (measured.low, measured.high) == pytest.approx((theirs.low, theirs.high))
    assert set(measured.by_test) == {"outputs", "embeddings", "classifier"}
    few = small_monitor(240, held_out_windows=30)  # 120 held out: one window, and four more that share its texts
    assert len(few.probabilities) == 120 and few.false_alarms is not None and few.false_alarms.windows == 5


def test_the_decision_is_the_smallest_p_value_by_holm() -> None:
    monitor = small_monitor()
    result = monitor.test_window(*traffic(80, positive=0.75, seed=1)[:2])
    p_values = [finding.p_value for finding in result.findings if finding.p_value is not None]
    assert len(p_values) == 3 and result.p_value == pytest.approx(min(1, 3 * min(p_values)))
    assert result.drift == (result.p_value <= 0.05) and result.alert == (result.p_value <= 1 / 25)
    assert [finding.test for finding in result.findings] == ["outputs", "embeddings", "classifier", "psi"]
    assert sum(result.label_shares.values()) == pytest.approx(1)
    assert result.label_shares["positive"] > 0.6
    assert set(result.accuracy) == {"atc", "doc"}


def test_texts_are_gathered_into_windows_in_their_order() -> None:
    monitor = small_monitor()
    probabilities, embeddings, _ = traffic(250, seed=1)
    for first in range(0, 250, 7):
        monitor.observe(probabilities[first : first + 7], embeddings[first : first + 7])
    report = monitor.report()
    assert (report["windows"], report["waiting_texts"]) == (3, 10)
    for number in (1, 2, 3):
        rows = slice(80 * (number - 1), 80 * number)
        alone = monitor.test_window(probabilities[rows], embeddings[rows], number)
        assert replace(alone, time=0) == replace(monitor.results[number - 1], time=0)
    monitor.observe(probabilities[:0], embeddings[:0])
    monitor.observe(probabilities[:230], embeddings[:230])  # more than two windows at once
    assert (monitor.windows, monitor.report()["waiting_texts"]) == (6, 0)


def test_several_threads_lose_no_text() -> None:
    monitor = small_monitor(tests=("outputs",))
    probabilities, embeddings, _ = traffic(400, seed=1)

    def send() -> None:
        for i in range(0, 400, 4):
            monitor.observe(probabilities[i : i + 4], embeddings[i : i + 4])

    threads = [threading.Thread(target=send) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert monitor.windows == 8 * 400 // 80
    assert sorted(result.number for result in monitor.results) == list(range(1, 41))
    assert monitor.report()["waiting_texts"] == 0


def test_testing_takes_no_more_than_its_share_of_the_time() -> None:
    fitted = small_monitor()
    monitor = DriftMonitor(fitted.settings, fitted.probabilities, fitted.embeddings, busy_share=0.01)
    probabilities, embeddings, _ = traffic(80, seed=1)
    monitor.observe(probabilities, embeddings)
    monitor.observe(probabilities, embeddings)
    assert (monitor.windows, monitor.passed_over) == (1, 80)
    monitor._ready_at = 0  # as if the time were over
    monitor.observe(probabilities, embeddings)
    assert monitor.windows == 2


def test_the_time_of_all_windows_that_came_at_once_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    fitted, clock = small_monitor(), [0.0]
    monitor = DriftMonitor(fitted.settings, fitted.probabilities, fitted.embeddings, busy_share=0.25)
    test_window = monitor.test_window

    def slow(*arguments: Any) -> Any:
        clock[0] += 1
        return test_window(*arguments)

    monkeypatch.setattr(monitor, "test_window", slow)
    monkeypatch.setattr(drift_detection, "time", SimpleNamespace(monotonic=lambda: clock[0], time=time.time))
    size = fitted.settings.window
    outputs = fitted.probabilities[:1].repeat(3 * size, 0), fitted.embeddings[:1].repeat(3 * size, 0)
    assert monitor.observe(*outputs) == 3 * size and clock == [3]
    clock[0] = 11.9  # three seconds are a quarter of twelve
    assert monitor.observe(*outputs) == 0
    clock[0] = 12
    assert monitor.observe(*outputs) == 3 * size


def test_what_is_given_may_change_later_without_harm() -> None:
    monitor = small_monitor()
    probabilities, embeddings, _ = traffic(80, seed=1)
    expected = monitor.test_window(probabilities, embeddings).p_value
    monitor.observe(probabilities[:40], embeddings[:40])
    kept = probabilities[40:].copy(), embeddings[40:].copy()
    probabilities[:], embeddings[:] = 0.5, 1e6  # a server that uses its buffers again
    monitor.observe(*kept)
    assert monitor.results[0].p_value == expected


P, E = traffic(80)[:2]


@pytest.mark.parametrize(
    ("probabilities", "embeddings", "message"),
    [
        (P[:, :1], E, r"probabilities must be \(N, 2\), of negative, positive. Got \(80, 1\)"),
        (P[0], E, r"probabilities must be \(N, 2\)"),
        (P, E[:, :3], r"embeddings must be \(N, 8\). Got \(80, 3\)"),
        (P[:10], E, "10 rows of probabilities and 80 of embeddings"),
        (np.where(P > 2, P, np.nan), E, "finite"),
        (P, np.where(E > 99, E, np.inf), "finite"),
        (P * 2, E, "add up to 1"),
        (np.log(P), E, "add up to 1"),
    ],
)
def test_wrong_outputs_are_told_and_not_taken_in(probabilities: Any, embeddings: Any, message: str) -> None:
    monitor = small_monitor()
    for call in (monitor.observe, monitor.test_window):
        with pytest.raises(InputError, match=message):
            call(probabilities, embeddings)
    assert monitor.report()["waiting_texts"] == 0


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"window": 19}, "window must be in"),
        ({"window": 300}, "needs 900 texts at least. Got 600"),
        ({"level": 0}, "level must be in"),
        ({"alarm_every": 0}, "alarm_every must be in"),
        ({"permutations": 74}, "permutations must be at least 75 for one alert in 25 windows"),
        ({"tests": ("outputs", "psi")}, "tests must be some of"),
        ({"tests": ()}, "tests must be some of"),
        ({"labels": np.zeros(5, int)}, "labels must be 600 numbers from 0 to 1"),
        ({"labels": np.full(600, 2)}, "labels must be 600 numbers from 0 to 1"),
    ],
)
def test_wrong_settings_are_told(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        small_monitor(**settings)


def test_other_wrong_beginnings_are_told() -> None:
    for names in (["one"], ["same", "same"]):
        with pytest.raises(InputError, match="label_names must be"):
            MonitorSettings(names)
    for wrong in ({"webhook": "file:///etc/passwd"}, {"busy_share": 0}, {"busy_share": 2}):
        with pytest.raises(InputError, match="must"):
            DriftMonitor(MonitorSettings(LABELS), P, E, **wrong)
    with pytest.raises(InputError, match="reference needs 20 texts"):
        DriftMonitor(MonitorSettings(LABELS), P[:19], E[:19])
    with pytest.raises(InputError, match="embeddings must be"):
        DriftMonitor(MonitorSettings(LABELS), P, E[:, 0])
    with pytest.raises(InputError, match="window needs 20 texts"):
        small_monitor().test_window(P[:19], E[:19])


@given(total=st.integers(5, 60), size=st.integers(1, 5), count=st.integers(0, 30))
@settings(max_examples=50, deadline=None, derandomize=True)
def test_windows_share_no_text_before_all_were_drawn(total: int, size: int, count: int) -> None:
    windows = random_windows(total, size, count, np.random.default_rng(0))
    assert [len(window) for window in windows] == [size] * count
    first = np.concatenate(windows[: total // size] or [np.array([], int)])
    assert len(set(first.tolist())) == len(first) and set(first.tolist()) <= set(range(total))


# --- Files ------------------------------------------------------------------------------------------------------------


def test_a_saved_monitor_decides_as_before(tmp_path: Path) -> None:
    monitor = small_monitor(held_out_windows=3, model="abc")
    monitor.save(tmp_path / "new")
    assert [path.name for path in (tmp_path / "new").iterdir()] == [FILE]
    loaded = DriftMonitor.load(tmp_path / "new", webhook="http://example.com/x")
    assert (loaded.settings, loaded.accuracy, loaded.false_alarms) == (
        monitor.settings, monitor.accuracy, monitor.false_alarms,
    )  # fmt: skip
    window = traffic(80, seed=1)[:2]
    assert replace(loaded.test_window(*window), time=0) == replace(monitor.test_window(*window), time=0)
    DriftMonitor(MonitorSettings(LABELS), P, E).save(tmp_path)
    assert DriftMonitor.load(tmp_path).accuracy is None


def test_a_damaged_monitor_is_told(tmp_path: Path) -> None:
    from safetensors.numpy import save

    with pytest.raises(FileNotFoundError, match="holds no monitor"):
        DriftMonitor.load(tmp_path)
    small_monitor().save(tmp_path)
    path = tmp_path / FILE
    whole = path.read_bytes()
    state = json.loads(json.loads(whole[8 : 8 + int.from_bytes(whole[:8], "little")])["__metadata__"]["state"])
    tensors = {"probabilities": P, "embeddings": E}

    def written(changed: dict[str, Any], **arrays: Any) -> bytes:
        return save({**tensors, **arrays}, metadata={"state": json.dumps(state | changed)})

    path.write_bytes(written({}))
    DriftMonitor.load(tmp_path)  # so what follows fails for what was changed
    broken = [
        b"", whole[:100], whole[:-1], b"\x80\x04K\x01.", save(tensors), save(tensors, metadata={"state": "[]"}),
        save(tensors, metadata={"state": "{"}), save({"probabilities": P}, metadata={"state": json.dumps(state)}),
        written({"settings": state["settings"] | {"label_names": ["a", "b", "c"]}}),
        written({"settings": state["settings"] | {"unknown": 1}}), written({"settings": None}),
        written({"settings": state["settings"] | {"window": "many"}}), written({"accuracy": {"accuracy": 1}}),
        written({}, embeddings=E[:10]), written({}, embeddings=E * np.nan), written({}, probabilities=P + 1),
    ]  # fmt: skip
    for content in broken:
        path.write_bytes(content)
        with pytest.raises(InputError, match="is damaged, or no monitor"):
            DriftMonitor.load(tmp_path)


def test_it_is_imported_and_used_without_pytorch(tmp_path: Path) -> None:
    small_monitor().save(tmp_path)
    program = (
        "import sys; import numpy as np\n"
        "from model_optimization.monitoring.drift_detection import DriftMonitor\n"
        "heavy = {'torch', 'scipy', 'sklearn', 'matplotlib', 'prometheus_client', 'transformers'}\n"
        "assert not heavy & set(sys.modules), heavy & set(sys.modules)\n"
        f"monitor = DriftMonitor.load({str(tmp_path)!r})\n"
        "monitor.observe(monitor.probabilities[:80], monitor.embeddings[:80])\n"
        "monitor.save(sys.argv[1])\n"
        "assert monitor.windows == 1 and not {'torch', 'transformers'} & set(sys.modules)\n"
    )
    subprocess.run([sys.executable, "-c", program, str(tmp_path / "again")], check=True)
    assert (tmp_path / "again" / FILE).exists()


# --- Live -------------------------------------------------------------------------------------------------------------


def drifted_window(seed: int = 1) -> tuple[Any, Any]:
    return traffic(80, positive=0.95, shift=1, seed=seed)[:2]


def test_findings_are_shown_as_metrics() -> None:
    from prometheus_client import CollectorRegistry

    monitor, registry = small_monitor(), CollectorRegistry()
    monitor.register(registry)
    monitor.observe(*drifted_window())
    monitor.observe(*traffic(80, seed=2)[:2])
    last = monitor.results[-1]
    for finding in last.findings:
        assert registry.get_sample_value("drift_effect", {"test": finding.test}) == finding.effect
        assert registry.get_sample_value("drift_p_value", {"test": finding.test}) == finding.p_value
    assert registry.get_sample_value("drift_p_value", {"test": "all"}) == last.p_value
    assert registry.get_sample_value("drift_estimated_accuracy", {"method": "atc"}) == last.accuracy["atc"]
    assert registry.get_sample_value("drift_windows_total") == 2
    assert registry.get_sample_value("drift_alerts_total") == monitor.alerts == 1
    successor = small_monitor()
    successor.metrics = monitor.metrics
    successor.observe(*drifted_window())
    assert registry.get_sample_value("drift_windows_total") == 3


def test_metrics_of_several_processes_come_together(tmp_path: Path) -> None:
    small_monitor().save(tmp_path)
    (tmp_path / "metrics").mkdir()
    program = (
        "from prometheus_client import CollectorRegistry\n"
        "from model_optimization.monitoring.drift_detection import DriftMonitor\n"
        f"monitor = DriftMonitor.load({str(tmp_path)!r})\n"
        "monitor.register(CollectorRegistry())\n"
        "monitor.observe(monitor.probabilities[:80], monitor.embeddings[:80])\n"
    )
    collect = (
        "from prometheus_client import CollectorRegistry, generate_latest, multiprocess\n"
        "registry = CollectorRegistry(); multiprocess.MultiProcessCollector(registry)\n"
        "print(generate_latest(registry).decode())\n"
    )
    environment = {"PROMETHEUS_MULTIPROC_DIR": str(tmp_path / "metrics"), "OMP_NUM_THREADS": "1"}
    for _ in range(2):
        subprocess.run([sys.executable, "-c", program], check=True, env=environment)
    shown = subprocess.run([sys.executable, "-c", collect], check=True, env=environment, capture_output=True, text=True)
    assert re.search(r"^drift_windows_total 2.0$", shown.stdout, re.M)
    assert len(re.findall(r'^drift_p_value\{test="all"\} ', shown.stdout, re.M)) == 1


class Hook(http.server.BaseHTTPRequestHandler):
    """Takes what is posted; answers with the server's next status."""

    def do_POST(self) -> None:
        server: Any = self.server
        server.posts.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
        self.send_response(server.statuses.pop(0) if server.statuses else 200)
        self.end_headers()

    def log_message(self, *_: object) -> None:
        """Stay quiet."""


@pytest.fixture
def hook() -> Iterator[Any]:
    server: Any = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Hook)
    server.posts, server.statuses = [], []
    server.url = f"http://127.0.0.1:{server.server_port}/secret-token"
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


def test_an_alert_is_posted_once_until_the_quiet_time_is_over(hook: Any) -> None:
    fitted = small_monitor(model="abc")
    monitor = DriftMonitor(fitted.settings, fitted.probabilities, fitted.embeddings, webhook=hook.url)
    monitor.observe(*traffic(80, seed=2)[:2])
    for _ in range(3):
        monitor.observe(*drifted_window())
    for _ in range(600):
        if hook.posts:
            break
        time.sleep(0.05)
    time.sleep(0.1)
    assert len(hook.posts) == 1 and monitor.alerts == 3
    post = hook.posts[0]
    assert (post["event"], post["model"], post["number"], post["alert"]) == ("drift", "abc", 2, True)
    assert {finding["test"] for finding in post["findings"]} == {"outputs", "embeddings", "classifier", "psi"}


def test_a_webhook_that_fails_is_tried_again_and_then_left(hook: Any, caplog: pytest.LogCaptureFixture) -> None:
    hook.statuses = [500, 503]
    assert post_alert(hook.url, {"a": 1}, pause=0.01)
    assert hook.posts == [{"a": 1}] * 3
    hook.statuses = [500] * 9
    caplog.set_level(logging.WARNING)
    assert not post_alert(hook.url, {}, tries=2, pause=0.01)
    assert len(hook.posts) == 5
    assert not post_alert("http://127.0.0.1:9/secret-token", {}, tries=2, pause=0.01)
    assert not post_alert("http://[::1/secret-token", {}, tries=1)
    assert "HTTPError 500" in caplog.text and "URLError" in caplog.text and "secret-token" not in caplog.text


def test_a_webhook_that_does_not_answer_holds_up_nothing() -> None:
    import socket

    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        url = f"http://127.0.0.1:{silent.getsockname()[1]}/"
        fitted = small_monitor()
        monitor = DriftMonitor(fitted.settings, fitted.probabilities, fitted.embeddings, webhook=url, quiet_seconds=0)
        started = time.monotonic()
        monitor.observe(*drifted_window())
        assert monitor.alerts == 1 and time.monotonic() - started < 10  # three tries take 18 s
        assert not post_alert(url, {}, timeout=0.2, tries=1)


def test_a_report_can_be_written_as_json_and_drawn(tmp_path: Path) -> None:
    for classes in (2, 3):
        monitor = small_monitor(classes=classes, held_out_windows=2)
        folder = tmp_path / str(classes)
        assert monitor.plot_report(folder) == []
        for seed in (1, 2):
            monitor.observe(*traffic(80, classes=classes, seed=seed)[:2])
        report = json.loads(json.dumps(monitor.report(), allow_nan=False))
        assert (report["windows"], len(report["results"]), report["reference_texts"]) == (2, 2, 300)
        assert report["false_alarms"]["windows"] == 2 and report["settings"]["alert_level"] == 0.04
        plots = monitor.plot_report(folder)
        assert [path.name for path in plots] == ["outputs.png", "p_values.png", "embeddings.png"]
        assert all(path.read_bytes().startswith(b"\x89PNG") for path in plots)


# --- Drift to order, data, commands -----------------------------------------------------------------------------------


def test_typos_change_words_and_nothing_else() -> None:
    texts = ["The shower was cold, and we paid 120 euros!", "Ok. So-so; 早餐很好 ñandú", ""]
    assert inject_typos(texts, 0) == texts
    changed = inject_typos(texts, 1, seed=3)
    assert changed == inject_typos(texts, 1, seed=3) != inject_typos(texts, 1, seed=4)
    word = r"[^\W\d_]+"
    for before, after in zip(texts, changed, strict=True):
        assert re.sub(word, "x", before) == re.sub(word, "x", after)  # digits, blanks and marks stay
        for old, new in zip(re.findall(word, before), re.findall(word, after), strict=True):
            assert (old != new) == (len(old) >= 3) and abs(len(old) - len(new)) <= 1
    many = ["word"] * 4000
    share = np.mean([text != "word" for text in inject_typos(many, 0.1)])
    assert share == pytest.approx(0.1, abs=0.02)
    with pytest.raises(InputError, match="rate must be in"):
        inject_typos(texts, 1.5)


@given(share=st.floats(0, 1), n=st.integers(1, 60), seed=st.integers(0, 50))
@settings(max_examples=60, deadline=None, derandomize=True)
def test_a_shifted_prior_is_exact_and_draws_no_row_twice(share: float, n: int, seed: int) -> None:
    rows = [(i, LABELS[i % 2]) for i in range(120)]
    drawn = resample_prior(rows, share, n, seed)
    assert len(drawn) == n and sum(label == "positive" for _, label in drawn) == round(n * share)
    assert len({i for i, _ in drawn}) == n and set(drawn) <= set(rows)
    assert drawn == resample_prior(rows, share, n, seed)


def test_a_prior_that_the_rows_can_not_have_is_told() -> None:
    rows = [("a", "positive")] * 3
    assert len(resample_prior(rows, 1, 10)) == 10  # there are not enough: some are drawn twice
    with pytest.raises(InputError, match="Every row is labeled 'positive'"):
        resample_prior(rows, 0.5, 10)
    with pytest.raises(InputError, match="No row is labeled 'good'"):
        resample_prior(rows, 0.5, 10, positive="good")


def test_texts_are_read_from_builtins_and_files(tmp_path: Path) -> None:
    texts, labels = read_texts("builtin:apps", 1500)
    assert len(texts) == len(labels) == 1600 and set(labels) == set(LABELS)
    lines = tmp_path / "texts.txt"
    lines.write_text("One.\n\n  \nZwei ñ 早\n", encoding="utf-8")
    assert read_texts(str(lines)) == (["One.", "Zwei ñ 早"], [])
    objects = tmp_path / "texts.jsonl"
    objects.write_text('{"text": "One.", "label": "positive"}\n{"text": "Two.", "label": "negative"}\n')
    assert read_texts(str(objects)) == (["One.", "Two."], ["positive", "negative"])
    for content, message in [(b"\n\n", "holds no text"), (b'{"txt": "a"}\n', "line 1: not an object"),
                             (b'{"text": "a"}\n[1]\n', "line 2: not an object"), (b'{"text": 3}', "must be a text"),
                             (b"{", "line 1"), (b"\xff\xfe", "not UTF-8")]:  # fmt: skip
        objects.write_bytes(content)
        with pytest.raises(InputError, match=message):
            read_texts(str(objects))
    with pytest.raises(InputError, match="builtin:"):
        read_texts("builtin:nothing")


def run(*arguments: str) -> int:
    with pytest.raises(SystemExit) as end:
        commands = {"fit": fit, "check": check, "simulate": simulate}
        run_commands(commands, module=MODULE, argv=arguments, extra="optimization")
    return int(end.value.code or 0)


# Even a model that has learned nothing sees that these are other words.
FOREIGN = "\n".join(f"Zzz {'qx' * (i % 5)} zq, vvv {'w' * (i % 7)}!" for i in range(90))
SMALL = ("--window", "40", "--reference_size", "150", "--permutations", "79", "--alarm_every", "25")


def test_a_monitor_is_made_and_texts_are_checked_by_commands(
    tiny_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    bundle = ("--bundle", str(tiny_bundle))
    assert run("fit", *bundle, *SMALL, "--folder", "monitor", "--held_out_windows", "5", "--run", "fit") == 0
    metrics = json.loads((RUNS / "fit" / "results.json").read_text())["metrics"]
    assert metrics["reference_texts"] == 150 and 0 <= metrics["false_alarms"] <= metrics["false_alarms_high"]
    Path("foreign.txt").write_text(FOREIGN, encoding="utf-8")
    checked = ("check", *bundle, "--monitor", "monitor")
    capsys.readouterr()
    assert run(*checked, "--input", "foreign.txt", "--run", "foreign", "--fail_on_drift", "true") == 1
    out = capsys.readouterr().out
    assert out.count("DRIFT") == 2  # the last ten texts fill no window
    results = json.loads((RUNS / "foreign" / "results.json").read_text())["metrics"]
    assert results["windows"] == results["drifted"] == 2
    report = json.loads((RUNS / "foreign" / "report.json").read_text())
    assert report["windows"] == 2 and report["settings"]["model"]
    assert {path.name for path in (RUNS / "foreign").glob("*.png")} == {"outputs.png", "p_values.png", "embeddings.png"}
    assert run(*checked, "--input", "foreign.txt", "--run", "again") == 0
    stays, _ = read_texts("builtin:stays", 2000)
    Path("stays.txt").write_text("\n".join(stays[1300:1330]), encoding="utf-8")
    assert run(*checked, "--input", "stays.txt", "--run", "stays", "--fail_on_drift", "true") == 0
    assert "window   1  same" in capsys.readouterr().out
    Path("few.txt").write_text("One.\nTwo.\n", encoding="utf-8")
    assert run(*checked, "--input", "few.txt") == 2
    assert "20 texts at least. Got 2" in capsys.readouterr().err
    other = shutil.copytree(tiny_bundle, tmp_path / "other")
    monitor = DriftMonitor.load("monitor")
    monitor.settings = replace(monitor.settings, model="another")
    monitor.save(Path("other-monitor"))
    assert run("check", "--bundle", str(other), "--monitor", "other-monitor", "--input", "foreign.txt") == 2
    assert "was not made for the model" in capsys.readouterr().err
    assert run("check", *bundle, "--monitor", "nowhere", "--input", "foreign.txt") == 1
    assert run("fit", *bundle, "--permutations", "10") == 2
    assert "permutations must be at least 600" in capsys.readouterr().err
    Path("strange.jsonl").write_text('{"text": "a", "label": "strange"}\n')
    assert run("fit", *bundle, "--data", "strange.jsonl") == 2
    assert "labels strange, which" in capsys.readouterr().err


def test_false_alarms_and_power_are_simulated_by_a_command(
    tiny_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("foreign.txt").write_text(FOREIGN, encoding="utf-8")
    arguments = ("--windows", "20", "--power_windows", "4", "--other", "foreign.txt", "--run", "simulated")
    assert run("simulate", "--bundle", str(tiny_bundle), *SMALL, *arguments) == 0
    metrics = json.loads((RUNS / "simulated" / "results.json").read_text())["metrics"]
    assert metrics["false_alarms_windows"] == 20 and metrics["power_typos_windows"] == 4
    assert metrics["false_alarms"] <= 0.25
    assert metrics["power_domain"] == 1
    assert {line.split()[0] for line in capsys.readouterr().out.splitlines()[1:]} == {
        "false_alarms", "power_prior", "power_typos", "power_domain",
    }  # fmt: skip
    Path("plain.txt").write_text("A text.\n" * 30)
    assert run("simulate", "--bundle", str(tiny_bundle), "--data", "plain.txt") == 2
    assert "has no labels" in capsys.readouterr().err
