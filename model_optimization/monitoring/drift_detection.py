"""Notice when live texts are no longer like those a classifier was made for, and say so only when it is true.

    python -m model_optimization.monitoring.drift_detection fit --bundle my-bundle --data texts.jsonl
    python -m model_optimization.monitoring.drift_detection check --bundle my-bundle --input new-texts.txt
    python -m model_optimization.monitoring.drift_detection simulate --bundle my-bundle

Windows of live traffic are compared with a reference by three tests: Kolmogorov and Smirnov's on the classifier's
outputs ("Failing Loudly", Rabanser et al., 2019, arXiv:1810.11953), the maximum mean discrepancy of its embeddings
(Gretton et al., 2012) and a classifier that tries to tell window from reference (Lopez-Paz and Oquab, 2017,
arXiv:1610.06545). Holm's correction makes one decision of them. Needs numpy and scipy, and no PyTorch, which the
server's image does not have.
"""

from __future__ import annotations

import http.client
import json
import logging
import random
import sys
import threading
import time
import urllib.request
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeVar

import numpy as np
from numpy.typing import ArrayLike, NDArray

from model_optimization.deployment.onnx_conversion import PROJECT, OnnxClassifier, softmax
from shared.config import check_range, run_commands
from shared.errors import InputError
from shared.logs import progress_bar
from shared.results import Run, write_atomic

if TYPE_CHECKING:
    from prometheus_client import CollectorRegistry

MODULE = "model_optimization.monitoring.drift_detection"
FILE = "monitor.safetensors"
NOT_RECIPE = {"recipe": False}
FEWEST = 20  # texts of a window; below it no test sees anything
KEPT = 100  # results of windows that a monitor remembers
Floats = NDArray[np.floating]
Item = TypeVar("Item")
logger = logging.getLogger(MODULE)


# --- Corrections for several tests ------------------------------------------------------------------------------------


def bonferroni(p_values: ArrayLike) -> Floats:
    """Correct p-values for their number: m·p. Holds down the chance of a single false alarm among them all."""
    p = np.asarray(p_values, dtype=float)
    return np.minimum(1, p * len(p))


def holm(p_values: ArrayLike) -> Floats:
    """Correct p-values for what :func:`bonferroni` does, and find more (Holm, 1979).

    The i-th smallest of m becomes (m − i + 1)·p, or what a smaller one became where that is more.
    """
    p = np.asarray(p_values, dtype=float)
    order = np.argsort(p)
    corrected = np.empty_like(p)
    corrected[order] = np.maximum.accumulate(p[order] * np.arange(len(p), 0, -1))
    return np.minimum(1, corrected)


def benjamini_hochberg(p_values: ArrayLike) -> Floats:
    """Correct p-values for the share of false alarms among all alarms (Benjamini and Hochberg, 1995).

    The i-th smallest becomes p·m/i, or what a larger one became where that is less. It finds more than
    :func:`bonferroni` and, without any drift, raises a false alarm no more often.
    """
    p = np.asarray(p_values, dtype=float)
    order = np.argsort(p)
    scaled = p[order] * len(p) / np.arange(1, len(p) + 1)
    corrected = np.empty_like(p)
    corrected[order] = np.minimum.accumulate(scaled[::-1])[::-1]
    return np.minimum(1, corrected)


# --- Two-sample tests -------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Finding:
    """What a test says of a window."""

    test: str
    effect: float
    """How large the difference is, in the test's own unit."""
    p_value: float | None = None
    """The chance, without drift, of a difference at least as large, in (0, 1]; None where it is not a test."""


def ks_test(
    reference: Floats, window: Floats, correction: Literal["bonferroni", "fdr"] = "bonferroni", name: str = "outputs"
) -> Finding:
    """Compare each class's probability by Kolmogorov and Smirnov's test, and correct for the number of classes.

    Of two classes only the second is tested: the first is its mirror image.

    Args:
        reference: (N, K) probabilities.
        window: (M, K).
        correction: :func:`bonferroni` or, for many classes, ``fdr``: :func:`benjamini_hochberg`.
        name: The finding's.

    Returns:
        The largest distance D between cumulative distributions, in [0, 1], and the smallest corrected p-value.
    """
    from scipy.stats import ks_2samp

    classes = range(1 if reference.shape[1] == 2 else 0, reference.shape[1])
    tests = [ks_2samp(reference[:, k], window[:, k], method="asymp") for k in classes]
    corrected = {"bonferroni": bonferroni, "fdr": benjamini_hochberg}[correction]([test.pvalue for test in tests])
    smallest = max(float(corrected.min()), np.finfo(float).tiny)  # it may be too small for a number
    return Finding(name, max(float(test.statistic) for test in tests), smallest)


def mmd_test(
    reference: Floats, window: Floats, *, permutations: int = 999, seed: Any = 0, name: str = "embeddings"
) -> Finding:
    """Compare two samples of vectors by their maximum mean discrepancy (Gretton et al., 2012), by permutations.

    The kernel is k(x, y) = exp(−‖x−y‖² / 2σ²), σ the median distance of all pairs. It is computed once: another
    division of the same vectors only adds up other entries of its matrix.

    Args:
        reference: (N, C): embeddings, or a classifier's logits or probabilities.
        window: (M, C).
        permutations: P random divisions; the p-value is (1 + those with at least this MMD²) / (1 + P).
        seed: Of the divisions.
        name: The finding's.

    Returns:
        The unbiased estimate of MMD² (0 on average without drift, so it may be negative), and the p-value.
    """
    vectors = np.concatenate([reference, window]).astype(np.float64)
    divisions = _divisions(len(reference), len(window), permutations, np.random.default_rng(seed))
    values = _mmd2(_kernel(vectors), divisions)
    return Finding(name, float(values[0]), _permutation_p(values))


def _kernel(vectors: Floats) -> Floats:
    """Return the RBF kernel's matrix (N, N), zero on its diagonal: unbiased, no vector is compared with itself."""
    centered = vectors - vectors.mean(0)  # distances of vectors far from 0 are differences of large numbers
    squares = (centered**2).sum(1)
    distances = np.maximum(squares[:, None] + squares - 2 * centered @ centered.T, 0)  # (N, N), squared
    sigma = np.median(np.sqrt(distances[np.triu_indices(len(vectors), 1)]))
    kernel = np.exp(-distances / (2 * sigma**2 or 1.0))
    np.fill_diagonal(kernel, 0)
    return kernel


def _mmd2(kernel: Floats, divisions: Floats) -> Floats:
    """Return the unbiased MMD² of each division, (P,).

    MMD² = Σ k(x, x′) / N(N−1) + Σ k(y, y′) / M(M−1) − 2 Σ k(x, y) / NM, x ≠ x′ of the reference, y ≠ y′ of the window.
    """
    m = divisions[0].sum()
    n = len(kernel) - m
    to_window = divisions @ kernel  # (P, N+M): each vector's similarity to all of the window
    inside = (to_window * divisions).sum(1)
    across = to_window.sum(1) - inside
    outside = kernel.sum() - inside - 2 * across
    return outside / (n * (n - 1)) + inside / (m * (m - 1)) - 2 * across / (n * m)


def classifier_test(
    reference: Floats,
    window: Floats,
    *,
    folds: int = 5,
    permutations: int = 999,
    ridge: float = 1.0,
    seed: Any = 0,
    name: str = "classifier",
) -> Finding:
    """Learn to tell window from reference; where that works on vectors not learned from, they differ.

    The scores of folds share what they were learned from, so a binomial test of them all raises a false alarm twice as
    often as it says. Instead labels are permuted and everything is learned anew, P times: least squares with a ridge
    (Fisher's discriminant) has its scores linear in the labels, and all permutations are one product of matrices.

    Args:
        reference: (N, C).
        window: (M, C).
        folds: Parts; each is scored by what was learned from the others.
        permutations: P.
        ridge: Penalty of the weights, in units of the features' mean variance.
        seed: Of folds and permutations.
        name: The finding's.

    Returns:
        The area under the ROC curve of the scores (0.5: no better than chance), and the p-value as in :func:`mmd_test`.
    """
    from scipy.stats import rankdata

    vectors = np.concatenate([reference, window]).astype(np.float64)
    rng = np.random.default_rng(seed)
    fold = rng.permutation(len(vectors)) % folds
    divisions = _divisions(len(reference), len(window), permutations, rng)
    scores = out_of_fold_scores(vectors, divisions.T, fold, ridge).T  # (P+1, N+M)
    n, m = len(reference), len(window)
    ranks = (rankdata(scores, axis=1) * divisions).sum(1)
    areas = (ranks - m * (m + 1) / 2) / (n * m)  # Mann and Whitney's U, as a share of all pairs
    return Finding(name, float(areas[0]), _permutation_p(areas))


def out_of_fold_scores(vectors: Floats, labels: Floats, fold: NDArray[np.integer], ridge: float) -> Floats:
    """Score each vector by ridge regressions learned on the other folds: x·w with w = (XᵀX + λI)⁻¹ Xᵀy.

    Args:
        vectors: (N, C).
        labels: (N, P): P regressions at once.
        fold: (N,) the fold of each vector.
        ridge: λ, in units of the mean of XᵀX's diagonal.

    Returns:
        (N, P), without the intercept, which would tell nothing but how many of each label a fold has.
    """
    scores = np.empty(labels.shape)
    for one in np.unique(fold):
        known, new = fold != one, fold == one
        mean = vectors[known].mean(0)
        x, x_new = vectors[known] - mean, vectors[new] - mean
        moments = x.T @ x  # (C, C)
        penalty = ridge * np.trace(moments) / len(moments) or 1.0
        hat = np.linalg.solve(moments + penalty * np.eye(len(moments)), x_new.T).T @ x.T  # (new, known)
        scores[new] = hat @ labels[known]
    return scores


def _divisions(n: int, m: int, permutations: int, rng: np.random.Generator) -> Floats:
    """Return (1 + permutations, n + m): 1 where a row is of the window; first the true division, then random ones."""
    divisions = np.zeros((1 + permutations, n + m))
    divisions[0, n:] = 1
    chosen = rng.random((permutations, n + m)).argpartition(m - 1, axis=1)[:, :m]
    np.put_along_axis(divisions[1:], chosen, 1, axis=1)
    return divisions


def _permutation_p(values: Floats) -> float:
    """Return the share of values that are at least the first, itself among them: (1 + k) / (1 + P)."""
    return float((values >= values[0] - 1e-12).mean())


def population_stability_index(reference: Floats, window: Floats, bins: int = 10) -> float:
    """Return Σ (qᵢ − pᵢ) ln(qᵢ / pᵢ) over bins with equally much of the reference: Jeffreys' divergence, ≥ 0.

    Banks call 0.1 a shift and 0.25 a large one; but sampling alone gives (bins − 1)(1/N + 1/M) on average, 0.05 for
    windows of 200, so it is shown as a size of the effect and decides nothing. Half a text is added to each bin, for
    empty ones have no logarithm.

    Args:
        reference: (N,) of one class's probability.
        window: (M,).
        bins: Number of bins; fewer where the reference has too few different values.
    """
    edges = np.unique(np.quantile(reference, np.linspace(0, 1, bins + 1)[1:-1]))
    counts = [np.bincount(np.searchsorted(edges, x), minlength=len(edges) + 1) + 0.5 for x in (reference, window)]
    p, q = (count / count.sum() for count in counts)
    return float(((q - p) * np.log(q / p)).sum())


# --- Accuracy without labels ------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class AccuracyEstimator:
    """Guesses the accuracy on texts without labels from how sure the classifier is of them.

    Both guesses hold where it is less sure because texts are harder, and fail where it is wrong and sure of it: nothing
    in its outputs tells the two apart.
    """

    accuracy: float
    """On the reference."""
    confidence: float
    """Mean probability of the predicted label, on the reference."""
    threshold: float
    """As many texts of the reference are surer than this, by negative entropy, as are labeled rightly."""

    @classmethod
    def fit(cls, probabilities: Floats, labels: NDArray[np.integer]) -> AccuracyEstimator:
        """Learn from the reference: probabilities (N, K) and right labels (N,)."""
        wrong = int((probabilities.argmax(1) != labels).sum())
        threshold = np.sort(_sureness(probabilities))[min(wrong, len(labels) - 1)]
        return cls(1 - wrong / len(labels), float(probabilities.max(1).mean()), float(threshold))

    def estimate(self, probabilities: Floats) -> dict[str, float]:
        """Guess the accuracy on a window.

        Args:
            probabilities: (M, K).

        Returns:
            ``atc``, the share of texts surer than the threshold (average thresholded confidence, Garg et al., 2022,
            arXiv:2201.04234), and ``doc``, the reference's accuracy less what confidence has fallen (difference of
            confidences, Guillory et al., 2021, arXiv:2107.03315).
        """
        atc = (_sureness(probabilities) >= self.threshold).mean()
        doc = self.accuracy + probabilities.max(1).mean() - self.confidence
        return {"atc": float(atc), "doc": float(np.clip(doc, 0, 1))}


def _sureness(probabilities: Floats) -> Floats:
    """Return the negative entropy of each row, Σ p ln p ≤ 0."""
    p = probabilities.astype(np.float64)
    return (p * np.log(np.maximum(p, 1e-300))).sum(1)


# --- The monitor ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class MonitorSettings:
    """How a monitor tests. Checked when it is made."""

    label_names: list[str]
    """The classes in the order of the probabilities."""
    window: int = 200
    """Texts that are tested together."""
    level: float = 0.05
    """A window has drifted where its p-value, corrected for the number of tests, is at most this."""
    alarm_every: int = 200
    """Windows between two false alerts, on average: one alerts where its p-value is at most 1 / alarm_every.

    A monitor runs for ever, so the chance that it *ever* raises a false alert can't be held down without making it
    deaf: a level of 0.05 spent as 6/(π²k²) leaves 0.000003 for window 100. What can be promised is how rare false
    alerts are, as control charts do. Nothing is added up over windows either: any finite reference differs a little
    from all texts, and that little adds up to an alert too.
    """
    permutations: int = 999
    """Of the tests that permute."""
    tests: tuple[str, ...] = ("outputs", "embeddings", "classifier")
    """Which of them decide."""
    model: str = ""
    """The version of the classifier whose outputs these are."""
    seed: int = 0
    """Of the permutations."""

    def __post_init__(self) -> None:
        """Check the ranges."""
        if len(self.label_names) < 2 or len(set(self.label_names)) < len(self.label_names):
            raise InputError(f"label_names must be two or more different texts. Got {self.label_names!r}.")
        check_range("window", self.window, FEWEST)
        check_range("level", self.level, 0, 0.5, open_low=True)
        check_range("alarm_every", self.alarm_every, 1)
        unknown = set(self.tests) - {"outputs", "embeddings", "classifier"}
        if unknown or not self.tests:
            raise InputError(f"tests must be some of outputs, embeddings, classifier. Got {', '.join(self.tests)!r}.")
        needed = int(np.ceil(len(self.tests) / self.alert_level))  # else no p-value of theirs is small enough
        if self.permutations < needed and set(self.tests) != {"outputs"}:
            raise InputError(
                f"permutations must be at least {needed:,} for one alert in {self.alarm_every:,} windows. "
                f"Got {self.permutations:,}.", hint="more permutations, or fewer windows as alarm_every"
            )  # fmt: skip

    @property
    def alert_level(self) -> float:
        """The level of an alert; never above that of drift."""
        return min(self.level, 1 / self.alarm_every)


@dataclass(frozen=True)
class WindowResult:
    """What came of one window."""

    number: int
    """Counted from 1."""
    time: float
    """Seconds since 1970."""
    texts: int
    p_value: float
    """Of the whole decision: the smallest, by Holm's correction."""
    drift: bool
    """Whether that is at most ``level``."""
    alert: bool
    """Whether it is at most 1 / ``alarm_every``."""
    findings: list[Finding]
    """Of each test, uncorrected, and of ``psi``."""
    label_shares: dict[str, float]
    """Label → share of texts it was predicted for."""
    accuracy: dict[str, float]
    """Guess → accuracy; empty without labels of the reference."""


@dataclass(frozen=True)
class AlarmRate:
    """How often windows of one kind are called drifted. The intervals hold 95 % (Clopper and Pearson, 1934)."""

    windows: int
    rate: float
    low: float
    high: float
    alert_rate: float
    """At the level of alerts."""
    by_test: dict[str, float]
    """Test → share of windows in which it alone, uncorrected, has a p-value of at most ``level``."""


class DriftMonitor:
    """Compares windows of live outputs with a reference; safe to use from several threads.

    Made by :meth:`fit` or :meth:`load`.

    Args:
        settings: How it tests.
        probabilities: (N, K) of the reference.
        embeddings: (N, C) of the reference.
        accuracy: What guesses the accuracy, if labels were known.
        false_alarms: As measured when it was made.
        webhook: Where alerts are posted as JSON; http or https.
        quiet_seconds: Least time between two of them.
        busy_share: Most of one core's time that live testing may take, in (0, 1]. Beyond, texts are passed over until
            the next window.

    Raises:
        InputError: Shapes don't fit, something is no number, or the URL is no URL.
    """

    def __init__(
        self,
        settings: MonitorSettings,
        probabilities: Floats,
        embeddings: Floats,
        accuracy: AccuracyEstimator | None = None,
        false_alarms: AlarmRate | None = None,
        *,
        webhook: str = "",
        quiet_seconds: float = 600,
        busy_share: float = 1,
    ) -> None:
        check_range("busy_share", busy_share, 0, 1, open_low=True)
        if webhook and not webhook.startswith(("http://", "https://")):
            raise InputError("webhook must be an address that begins with http:// or https://.")
        if np.ndim(embeddings) != 2:
            raise InputError(f"embeddings must be (N, C). Got {np.shape(embeddings)}.")
        self.settings, self.accuracy, self.false_alarms = settings, accuracy, false_alarms
        self.webhook, self.quiet_seconds, self.busy_share = webhook, quiet_seconds, busy_share
        self.width = np.shape(embeddings)[1]
        self.probabilities, self.embeddings = self._checked(probabilities, embeddings)
        if len(self.embeddings) < FEWEST:
            raise InputError(f"The reference needs {FEWEST} texts at least. Got {len(self.embeddings)}.")
        self.metrics: DriftMetrics | None = None
        self.windows = self.drifted = self.alerts = self.passed_over = 0
        self.results: deque[WindowResult] = deque(maxlen=KEPT)
        self._last: tuple[Floats, Floats] | None = None  # outputs of the last window, for plots
        self._waiting: list[tuple[Floats, Floats]] = []
        self._taken = 0  # windows, tested or being tested
        self._ready_at = self._quiet_until = float("-inf")
        self._lock = threading.Lock()

    @classmethod
    def fit(
        cls,
        probabilities: Floats,
        embeddings: Floats,
        label_names: Sequence[str],
        *,
        labels: NDArray[np.integer] | None = None,
        reference_size: int = 1000,
        held_out_windows: int = 50,
        **settings: Any,
    ) -> DriftMonitor:
        """Make a monitor from the outputs of texts like those to come, which the classifier has not learned from.

        One part, chosen at random, is the reference; of the rest windows are drawn, on which its own rate of false
        alarms is measured. Windows share texts where the rest is too small, which the interval knows nothing of.

        Args:
            probabilities: (N, K), N at least three windows.
            embeddings: (N, C).
            label_names: K names.
            labels: (N,) the right classes, for guesses of the accuracy.
            reference_size: Most texts of the reference; half of all is the most that is taken. A reference has its own
                rate of false alarms, near ``level``; the larger it is, the nearer: take five windows or more.
            held_out_windows: Most windows to measure false alarms on: five for each that the rest is enough for. 0
                measures nothing.
            settings: Of :class:`MonitorSettings`.

        Raises:
            InputError: Shapes don't fit, something is no number, or there are too few texts.
        """
        how = MonitorSettings(list(label_names), **settings)
        whole = cls(how, probabilities, embeddings)  # checks them
        total, needed = len(whole.probabilities), 3 * how.window
        if total < needed:
            raise InputError(
                f"A monitor with windows of {how.window} needs {needed:,} texts at least. Got {total:,}.",
                hint="more texts, or a smaller window",
            )
        if labels is not None:
            labels = np.asarray(labels)
            if len(labels) != total or not np.isin(labels, range(len(how.label_names))).all():
                raise InputError(f"labels must be {total:,} numbers from 0 to {len(how.label_names) - 1}.")
        rng = np.random.default_rng(how.seed)
        order = rng.permutation(total)
        size = min(reference_size, total // 2)
        kept, held_out = np.sort(order[:size]), order[size:]
        estimator = AccuracyEstimator.fit(whole.probabilities, labels) if labels is not None else None
        monitor = cls(how, whole.probabilities[kept], whole.embeddings[kept], estimator)
        count = min(held_out_windows, 5 * (len(held_out) // how.window))
        if count:
            drawn = [held_out[rows] for rows in random_windows(len(held_out), how.window, count, rng)]
            windows = [(whole.probabilities[rows], whole.embeddings[rows]) for rows in drawn]
            monitor.false_alarms = monitor.alarm_rate(windows, "measure false alarms")
        return monitor

    def test_window(self, probabilities: Floats, embeddings: Floats, number: int = 1) -> WindowResult:
        """Test one window of any size and remember nothing of it.

        Args:
            probabilities: (M, K), M ≥ 20.
            embeddings: (M, C).
            number: The window's, and of its permutations.

        Raises:
            InputError: Shapes don't fit, something is no number, or it is too small.
        """
        probabilities, embeddings = self._checked(probabilities, embeddings)
        if len(embeddings) < FEWEST:
            raise InputError(f"A window needs {FEWEST} texts at least. Got {len(embeddings)}.")
        how = self.settings
        permuted: dict[str, Any] = {"permutations": how.permutations, "seed": (how.seed, number)}
        tests: dict[str, Callable[[], Finding]] = {
            "outputs": lambda: ks_test(self.probabilities, probabilities),
            "embeddings": lambda: mmd_test(self.embeddings, embeddings, **permuted),
            "classifier": lambda: classifier_test(self.embeddings, embeddings, **permuted),
        }
        findings = [tests[name]() for name in how.tests]
        p_value = float(holm([finding.p_value or 1 for finding in findings]).min())
        index = max(population_stability_index(a, b)
                    for a, b in zip(self.probabilities.T, probabilities.T, strict=True))  # fmt: skip
        shares = np.bincount(probabilities.argmax(1), minlength=len(how.label_names)) / len(probabilities)
        return WindowResult(
            number, time.time(), len(probabilities), p_value, p_value <= how.level, p_value <= how.alert_level,
            [*findings, Finding("psi", index)], dict(zip(how.label_names, shares.tolist(), strict=True)),
            self.accuracy.estimate(probabilities) if self.accuracy else {},
        )  # fmt: skip

    def alarm_rate(self, windows: Sequence[tuple[Floats, Floats]], what: str) -> AlarmRate:
        """Measure which share of windows, (probabilities, embeddings) each, is called drifted; with a progress bar."""
        from scipy.stats import binomtest

        results: list[WindowResult] = []
        with progress_bar() as bar:
            task = bar.add_task(what, total=len(windows), figures="")
            for number, (probabilities, embeddings) in enumerate(windows, 1):
                results.append(self.test_window(probabilities, embeddings, number))
                bar.update(task, advance=1, figures=f"drift {sum(one.drift for one in results) / number:.3f}")
        drifts = sum(one.drift for one in results)
        interval = binomtest(drifts, len(windows)).proportion_ci(0.95, method="exact")
        by_test = {
            test: float(np.mean([(one.findings[i].p_value or 1) <= self.settings.level for one in results]))
            for i, test in enumerate(self.settings.tests)
        }
        return AlarmRate(len(windows), drifts / len(windows), float(interval.low), float(interval.high),
                         sum(one.alert for one in results) / len(windows), by_test)  # fmt: skip

    # Live use

    @property
    def model(self) -> str:
        """The version of the classifier whose outputs it compares; empty where that was not said."""
        return self.settings.model

    def observe(self, probabilities: Floats, embeddings: Floats) -> int:
        """Take in the outputs of live texts, and test each window that gets full.

        Testing takes a few tenths of a second and 100 MB with a reference of 1,000, in the caller's thread: call it
        from one that no client waits for.

        Args:
            probabilities: (M, K), M ≥ 0.
            embeddings: (M, C).

        Returns:
            M, or 0 where it passes these texts over; see ``busy_share``.

        Raises:
            InputError: Shapes don't fit or something is no number; none of these texts is taken in.
        """
        probabilities, embeddings = self._checked(probabilities, embeddings)
        with self._lock:
            if time.monotonic() < self._ready_at:
                self.passed_over += len(probabilities)
                return 0
            self._waiting.append((probabilities, embeddings))
            full = self._full_windows()
        started = time.monotonic()
        for number, window in full:
            result = self.test_window(*window, number)
            with self._lock:
                now = time.monotonic()
                self._ready_at = now + (now - started) * (1 / self.busy_share - 1)  # for all of these windows
                self._remember(result, window)
        return len(probabilities)

    def _full_windows(self) -> list[tuple[int, tuple[Floats, Floats]]]:
        """Cut full windows off what waits; the caller holds the lock."""
        size = self.settings.window
        if sum(len(rows) for rows, _ in self._waiting) < size:
            return []
        probabilities, embeddings = (np.concatenate(arrays) for arrays in zip(*self._waiting, strict=True))
        cuts = range(0, len(probabilities) - size + 1, size)
        full = [(self._taken + i, (probabilities[cut : cut + size], embeddings[cut : cut + size]))
                for i, cut in enumerate(cuts, 1)]  # fmt: skip
        end = len(full) * size
        self._waiting = [(probabilities[end:], embeddings[end:])]
        self._taken += len(full)
        return full

    def _remember(self, result: WindowResult, window: tuple[Floats, Floats]) -> None:
        self.results.append(result)
        self._last = window
        self.windows += 1
        self.drifted += result.drift
        self.alerts += result.alert
        if self.metrics:
            self.metrics.record(result)
        if result.alert:
            logger.warning("drift: window %d has p = %.2g; %s", result.number, result.p_value,
                           ", ".join(f"{one.test} {one.effect:.3g}" for one in result.findings))  # fmt: skip
            now = time.monotonic()
            if self.webhook and now >= self._quiet_until:
                self._quiet_until = now + self.quiet_seconds
                payload = {"event": "drift", "model": self.settings.model, **asdict(result)}
                threading.Thread(target=post_alert, args=(self.webhook, payload), daemon=True).start()

    def register(self, registry: CollectorRegistry) -> None:
        """Show what is found as metrics of a Prometheus registry."""
        self.metrics = DriftMetrics(registry)

    def report(self) -> dict[str, Any]:
        """Return settings, counts and the last results; all of it can be written as JSON."""
        with self._lock:
            return {
                "settings": asdict(self.settings) | {"alert_level": self.settings.alert_level},
                "reference_texts": len(self.probabilities),
                "reference_accuracy": self.accuracy.accuracy if self.accuracy else None,
                "false_alarms": asdict(self.false_alarms) if self.false_alarms else None,
                "windows": self.windows,
                "drifted": self.drifted,
                "alerts": self.alerts,
                "waiting_texts": sum(len(rows) for rows, _ in self._waiting),
                "passed_over_texts": self.passed_over,
                "results": [asdict(result) for result in self.results],
            }

    def plot_report(self, folder: Path) -> list[Path]:
        """Draw the last windows into a folder.

        Returns:
            ``outputs.png`` (probabilities of reference and last window), ``p_values.png`` (of all windows, with the
            levels) and ``embeddings.png`` (both on the reference's two main axes); nothing before the first window.
        """
        with self._lock:
            results, last = sorted(self.results, key=lambda result: result.number), self._last
        if last is None:
            return []
        folder = Path(folder)
        _plot_outputs(self.probabilities, last[0], self.settings.label_names, folder / "outputs.png")
        _plot_p_values(results, self.settings, folder / "p_values.png")
        _plot_embeddings(self.embeddings, last[1], folder / "embeddings.png")
        return [folder / name for name in ("outputs.png", "p_values.png", "embeddings.png")]

    # Files

    def save(self, folder: Path) -> None:
        """Write ``monitor.safetensors``: the reference, with settings and figures as JSON in its header."""
        from safetensors.numpy import save

        state = {
            "settings": asdict(self.settings),
            "accuracy": asdict(self.accuracy) if self.accuracy else None,
            "false_alarms": asdict(self.false_alarms) if self.false_alarms else None,
        }
        tensors = {"probabilities": self.probabilities, "embeddings": self.embeddings}
        write_atomic(Path(folder) / FILE, save(tensors, metadata={"state": json.dumps(state)}))

    @classmethod
    def load(cls, folder: str | Path, **live: Any) -> DriftMonitor:
        """Read a monitor.

        Args:
            folder: Where it was saved.
            live: ``webhook``, ``quiet_seconds``, ``busy_share``: where it runs decides them.

        Raises:
            FileNotFoundError: There is none.
            InputError: It is damaged.
        """
        from safetensors import SafetensorError, safe_open

        path = Path(folder) / FILE
        if not path.is_file():
            raise FileNotFoundError(f"{str(folder)!r} holds no monitor: it has no {FILE}.")
        try:
            with safe_open(path, "np") as file:
                state = json.loads(file.metadata()["state"])
                probabilities, embeddings = file.get_tensor("probabilities"), file.get_tensor("embeddings")
            settings = MonitorSettings(**state["settings"] | {"tests": tuple(state["settings"]["tests"])})
            accuracy = AccuracyEstimator(**state["accuracy"]) if state["accuracy"] else None
            false_alarms = AlarmRate(**state["false_alarms"]) if state["false_alarms"] else None
            cls(settings, probabilities, embeddings)
        except (SafetensorError, ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
            reason = " ".join(str(error.args[0] if error.args else error).split())[:200].rstrip(".")
            raise InputError(f"{path} is damaged, or no monitor: {reason}.", hint="fit it anew") from None
        return cls(settings, probabilities, embeddings, accuracy, false_alarms, **live)

    def _checked(self, probabilities: Floats, embeddings: Floats) -> tuple[Floats, Floats]:
        """Return copies, or raise an :class:`InputError` that says what is wrong."""
        p, e = np.array(probabilities, dtype=np.float32), np.array(embeddings, dtype=np.float32)
        names = self.settings.label_names
        if p.ndim != 2 or p.shape[1] != len(names):
            raise InputError(f"probabilities must be (N, {len(names)}), of {', '.join(names)}. Got {p.shape}.")
        if e.ndim != 2 or e.shape[1] != self.width:
            raise InputError(f"embeddings must be (N, {self.width}). Got {e.shape}.")
        if len(p) != len(e):
            raise InputError(f"There are {len(p):,} rows of probabilities and {len(e):,} of embeddings.")
        if not (np.isfinite(p).all() and np.isfinite(e).all()):
            raise InputError("probabilities and embeddings must be finite numbers; some are not.")
        if (p < 0).any() or (np.abs(p.sum(1) - 1) > 1e-3).any():
            raise InputError("Each row of probabilities must add up to 1.", hint="softmax of the logits")
        return p, e


def random_windows(total: int, size: int, count: int, rng: np.random.Generator) -> list[NDArray[np.integer]]:
    """Draw windows of row numbers: no row twice in one, and in none again before all others were in one."""
    windows: list[NDArray[np.integer]] = []
    while len(windows) < count:
        order = rng.permutation(total)
        windows += [order[i : i + size] for i in range(0, total - size + 1, size)]
    return windows[:count]


# --- Alerts -----------------------------------------------------------------------------------------------------------


class DriftMetrics:
    """The gauges and counters of a monitor, in a Prometheus registry; right in multiprocess mode too."""

    def __init__(self, registry: CollectorRegistry) -> None:
        from prometheus_client import Counter, Gauge

        def gauge(name: str, text: str, labels: Sequence[str] = ()) -> Gauge:
            return Gauge(name, text, labels, registry=registry, multiprocess_mode="mostrecent")

        self.p_value = gauge("drift_p_value", "p-value of the last window, corrected in all", ["test"])
        self.effect = gauge("drift_effect", "Size of the difference in the last window", ["test"])
        self.accuracy = gauge("drift_estimated_accuracy", "Accuracy guessed without labels", ["method"])
        self.windows = Counter("drift_windows", "Windows tested", registry=registry)
        self.drifted = Counter("drift_drifted_windows", "Windows with drift at the level", registry=registry)
        self.alerts = Counter("drift_alerts", "Windows with drift at the level of alerts", registry=registry)

    def record(self, result: WindowResult) -> None:
        """Show a window's result."""
        self.p_value.labels("all").set(result.p_value)
        for finding in result.findings:
            self.effect.labels(finding.test).set(finding.effect)
            if finding.p_value is not None:
                self.p_value.labels(finding.test).set(finding.p_value)
        for method, value in result.accuracy.items():
            self.accuracy.labels(method).set(value)
        self.windows.inc()
        self.drifted.inc(result.drift)
        self.alerts.inc(result.alert)


def post_alert(url: str, payload: dict[str, Any], *, timeout: float = 5, tries: int = 3, pause: float = 1) -> bool:
    """Post JSON; log a failure instead of raising it, without the address, which often holds a secret.

    Args:
        url: Where to.
        payload: What.
        timeout: Seconds of one try.
        tries: At most.
        pause: Seconds before the second try, twice as many before each further one.

    Returns:
        Whether it was taken.
    """
    for attempt in range(tries):
        try:
            request = urllib.request.Request(url, json.dumps(payload).encode(), {"Content-Type": "application/json"})
            with urllib.request.urlopen(request, timeout=timeout):
                return True
        except (OSError, ValueError, http.client.HTTPException) as error:
            reason = f"{type(error).__name__} {getattr(error, 'code', '')}".strip()
            logger.warning("the webhook failed (try %d of %d): %s", attempt + 1, tries, reason)
            if attempt + 1 < tries:
                time.sleep(pause * 2**attempt)
    return False


# --- Plots ------------------------------------------------------------------------------------------------------------


def _plot_outputs(reference: Floats, window: Floats, label_names: Sequence[str], path: Path) -> None:
    from shared.plots import drawing

    shown = list(range(len(label_names)))[1 if len(label_names) == 2 else 0 :][:6]
    with drawing(path, 5 * len(shown), 3.6) as figure:
        for axes, k in zip(np.atleast_1d(figure.subplots(1, len(shown))), shown, strict=True):
            bins = np.linspace(0, 1, 26)
            axes.hist(reference[:, k], bins, density=True, alpha=0.5, label=f"reference, {len(reference):,} texts")
            axes.hist(window[:, k], bins, density=True, histtype="step", lw=2, label=f"last window, {len(window):,}")
            axes.set_xlabel(f"probability of {label_names[k]}", parse_math=False)
            axes.set_ylabel("density")
            axes.legend()


def _plot_p_values(results: Sequence[WindowResult], settings: MonitorSettings, path: Path) -> None:
    from shared.plots import drawing

    numbers = [result.number for result in results]
    floor = min(1e-4, settings.alert_level / 5)  # what is smaller is drawn there
    with drawing(path, 8, 4.2) as figure:
        axes = figure.add_subplot()
        for i, test in enumerate(settings.tests):
            axes.plot(numbers, [max(result.findings[i].p_value or 0, floor) for result in results], ".", label=test)
        together = [max(result.p_value, floor) for result in results]
        axes.plot(numbers, together, "k-", marker="o", ms=4, alpha=0.6, label="all, corrected")
        axes.axhline(settings.level, color="tab:orange", ls="--", label=f"drift, {settings.level:g}")
        axes.axhline(settings.alert_level, color="tab:red", ls="--", label=f"alert, {settings.alert_level:g}")
        axes.set(yscale="log", xlabel="window", ylabel="p-value", ylim=(floor * 0.7, 1.5))
        axes.legend(ncols=2, fontsize="small")
        axes.grid(alpha=0.3)


def _plot_embeddings(reference: Floats, window: Floats, path: Path) -> None:
    from shared.plots import drawing

    mean = reference.mean(0)
    _, spread, axes_of_reference = np.linalg.svd(reference - mean, full_matrices=False)
    shares = spread**2 / max((spread**2).sum(), 1e-12)
    with drawing(path, 5.5, 5) as figure:
        axes = figure.add_subplot()
        for points, name, size in ((reference, "reference", 8), (window, "last window", 14)):
            x, y = ((points - mean) @ axes_of_reference[:2].T).T
            axes.scatter(x, y, s=size, alpha=0.5, label=name)
        axes.set_xlabel(f"first principal axis of the reference ({shares[0]:.0%} of its variance)")
        axes.set_ylabel(f"second ({shares[1]:.0%})")
        axes.legend()


# --- Drift to order ---------------------------------------------------------------------------------------------------

KEYBOARD = ("qwertyuiop", "asdfghjkl", "zxcvbnm")
NEIGHBORS = {key: row[max(i - 1, 0) : i] + row[i + 1 : i + 2] for row in KEYBOARD for i, key in enumerate(row)}


def inject_typos(texts: Sequence[str], rate: float, seed: int = 0) -> list[str]:
    """Mistype words: two letters swapped, one left out, doubled, or hit beside (on a QWERTY keyboard).

    Args:
        texts: Any.
        rate: Chance of each word of three or more letters, in [0, 1].
        seed: Of the chance.
    """
    import re

    check_range("rate", rate, 0, 1)
    rng = random.Random(seed)

    def mistype(match: re.Match[str]) -> str:
        word = match[0]
        if rng.random() >= rate:
            return word
        i = rng.randrange(len(word) - 1)
        a, b = word[i], word[i + 1]
        beside = NEIGHBORS.get(a.lower(), a * 2)
        options = [b + a, b, a + a + b, rng.choice(beside) + b]
        return word[:i] + rng.choice([option for option in options if option != a + b]) + word[i + 2 :]

    return [re.sub(r"[^\W\d_]{3,}", mistype, text) for text in texts]


def resample_prior(
    rows: Sequence[tuple[Item, str]], positive_share: float, n: int, seed: int = 0, *, positive: str = "positive"
) -> list[tuple[Item, str]]:
    """Draw a window in which a label has another share; none is drawn twice while there are enough of its kind.

    Args:
        rows: Anything with its label.
        positive_share: Of rows labeled ``positive``, in [0, 1]; n times it is rounded.
        n: Rows to draw.
        seed: Of the drawing.
        positive: The label.

    Raises:
        InputError: There is no row of one of the two kinds.
    """
    check_range("positive_share", positive_share, 0, 1)
    rng = random.Random(seed)
    drawn: list[tuple[Item, str]] = []
    wanted = round(n * positive_share)
    for kind, count in ((True, wanted), (False, n - wanted)):
        pool = [row for row in rows if (row[1] == positive) == kind]
        if count and not pool:
            raise InputError(f"{'No' if kind else 'Every'} row is labeled {positive!r}.")
        drawn += rng.sample(pool, count) if count <= len(pool) else rng.choices(pool, k=count)
    rng.shuffle(drawn)
    return drawn


# --- The commands -----------------------------------------------------------------------------------------------------


def read_texts(name: str, count: int = 0) -> tuple[list[str], list[str]]:
    """Read texts that no builtin model has learned from, and their labels.

    Args:
        name: ``builtin:stays``, ``builtin:apps``; a file with a text a line, or ``.jsonl`` with ``text`` and perhaps
            ``label``; a folder or hub id as :func:`~model_optimization.builtin.subject.load_data` reads it, of which
            validation and test are taken.
        count: Of a builtin, at least so many; of others all there are.

    Returns:
        Texts, and as many labels or none.

    Raises:
        InputError: There are no texts, or a line of a file can't be read.
    """
    path = Path(name)
    if name.startswith("builtin:"):
        from model_optimization.builtin.reviews import DOMAINS, reviews
        from shared.sources import resolve

        domain = resolve(name, builtins=DOMAINS).name
        rows: list[tuple[str, str]] = []
        seed = 0
        while len(rows) < max(count, 1):
            splits = reviews(domain, seed)
            rows += splits["validation"] + splits["test"]
            seed += 1
    elif path.is_file():
        rows = _read_lines(path)
    else:
        from model_optimization.builtin.subject import load_data

        data = load_data(name)
        rows = [(text, data.label_names[i]) for split in ("validation", "test") for text, i in data.splits[split]]
    if not rows:
        raise InputError(f"{name} holds no text.")
    labels = [label for _, label in rows]
    return [text for text, _ in rows], labels if all(labels) else []


def _read_lines(path: Path) -> list[tuple[str, str]]:
    """Read the texts of a file, each with its label or an empty one."""
    rows = []
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except UnicodeDecodeError as error:
        raise InputError(f"{path} is not UTF-8 text: {error.reason} at byte {error.start}.") from None
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        if path.suffix == ".jsonl":
            try:
                value = json.loads(line)
                text, label = value["text"], value.get("label", "")
            except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
                raise InputError(f'{path}, line {number}: not an object with "text".') from None
            if not isinstance(text, str):
                raise InputError(f'{path}, line {number}: "text" must be a text. Got {text!r:.50}.')
            rows.append((text, str(label)))
        else:
            rows.append((line, ""))
    return rows


def outputs_of(classifier: OnnxClassifier, texts: Sequence[str], what: str) -> tuple[Floats, Floats]:
    """Compute probabilities (N, K) and embeddings (N, C) of texts, with a progress bar."""
    parts = []
    with progress_bar() as bar:
        task = bar.add_task(what, total=len(texts), figures="")
        for first in range(0, len(texts), 512):
            logits, embeddings = classifier.outputs(texts[first : first + 512])
            parts.append((softmax(logits), embeddings))
            bar.advance(task, len(logits))
    probabilities, vectors = zip(*parts, strict=True)
    return np.concatenate(probabilities), np.concatenate(vectors)


def class_numbers(labels: Sequence[str], classifier: OnnxClassifier, data: str) -> NDArray[np.integer]:
    """Return labels as numbers, (N,).

    Raises:
        InputError: The classifier does not know one of them.
    """
    numbers = {name: i for i, name in enumerate(classifier.label_names)}
    if unknown := set(labels) - set(numbers):
        raise InputError(
            f"{data} has the labels {', '.join(sorted(unknown)[:5])}, which {classifier.name} does not know.",
            hint=f"it knows {', '.join(numbers)}",
        )
    return np.array([numbers[label] for label in labels])


@dataclass
class MonitorConfig:
    """What a monitor is made from."""

    bundle: str = "outputs/model_optimization/bundles/float32"
    """The classifier's bundle."""
    data: str = "builtin:stays"
    """The texts: builtin:stays, builtin:apps, a file with a text a line, .jsonl, a folder or a hub id."""
    window: int = 200
    """Texts that are tested together."""
    level: float = 0.05
    """Chance that a window without drift is called drifted."""
    alarm_every: int = 200
    """Windows between two false alerts, on average."""
    reference_size: int = 1000
    """Most texts of the reference."""
    permutations: int = 999
    """Random divisions of the tests that permute."""
    seed: int = field(default=0, metadata=NOT_RECIPE)
    """Of the choice of the reference, of windows and of permutations."""
    threads: int = field(default=1, metadata=NOT_RECIPE)
    """CPU threads of the classifier; 0 is all cores."""
    run: str = field(default="", metadata=NOT_RECIPE)
    """Name of this run's own folder; by default the time."""

    def __post_init__(self) -> None:
        """Check the ranges before anything is computed."""
        check_range("reference_size", self.reference_size, FEWEST)
        check_range("seed", self.seed, 0, 2**31 - 1)
        MonitorSettings(["one", "other"], **self.settings())

    def settings(self) -> dict[str, Any]:
        """Return what goes to :class:`MonitorSettings`."""
        return {name: getattr(self, name) for name in ("window", "level", "alarm_every", "permutations", "seed")}


@dataclass
class FitConfig(MonitorConfig):
    """Make a monitor from the outputs of texts like those to come, and measure its false alarms."""

    folder: str = "outputs/model_optimization/monitor"
    """Where the monitor is saved."""
    held_out_windows: int = 50
    """Windows to measure false alarms on."""

    def __post_init__(self) -> None:
        """Check the ranges."""
        super().__post_init__()
        check_range("held_out_windows", self.held_out_windows, 1)


def fit(config: FitConfig) -> None:
    """Make, save and describe a monitor; see :class:`FitConfig`."""
    classifier = OnnxClassifier(config.bundle, config.threads)
    texts, labels = read_texts(config.data, config.reference_size + 20 * config.window)
    numbers = class_numbers(labels, classifier, config.data) if labels else None
    run = Run(PROJECT, MODULE, "fit", config, name=config.run)
    probabilities, embeddings = outputs_of(classifier, texts, "classify")
    monitor = DriftMonitor.fit(
        probabilities, embeddings, classifier.label_names, labels=numbers, reference_size=config.reference_size,
        held_out_windows=config.held_out_windows, model=classifier.version, **config.settings(),
    )  # fmt: skip
    monitor.save(Path(config.folder))
    measured = monitor.false_alarms
    assert measured is not None
    metrics: dict[str, Any] = {
        "false_alarms": measured.rate, "false_alarms_low": measured.low, "false_alarms_high": measured.high,
        "reference_texts": len(monitor.probabilities),
    }  # fmt: skip
    if monitor.accuracy:
        metrics["accuracy"] = monitor.accuracy.accuracy
    run.finish(model=classifier.name, data=config.data, seed=config.seed, metrics=metrics)
    sys.stdout.write("".join(f"{name:20} {value:.4g}\n" for name, value in metrics.items()))
    logger.info("%.3f of windows like these are called drifted (95 %% between %.3f and %.3f); saved in %s",
                measured.rate, measured.low, measured.high, config.folder)  # fmt: skip


@dataclass
class CheckConfig:
    """Test a file's texts, window by window, and leave a report with plots.

    All windows of the file are one question, so their p-values are corrected for the share of false alarms among them
    (Benjamini and Hochberg, 1995).
    """

    input: str = "texts.txt"
    """A file with a text a line, or .jsonl with "text"; or whatever --data of fit takes."""
    monitor: str = "outputs/model_optimization/monitor"
    """The monitor's folder."""
    bundle: str = "outputs/model_optimization/bundles/float32"
    """The bundle it was made for."""
    fail_on_drift: bool = False
    """Exit with 1 where there is drift."""
    threads: int = field(default=1, metadata=NOT_RECIPE)
    """CPU threads of the classifier; 0 is all cores."""
    run: str = field(default="", metadata=NOT_RECIPE)
    """Name of this run's own folder; by default the time."""


def check(config: CheckConfig) -> None:
    """Test texts; see :class:`CheckConfig`."""
    monitor = DriftMonitor.load(config.monitor, busy_share=1)
    classifier = OnnxClassifier(config.bundle, config.threads)
    if monitor.settings.model != classifier.version:
        raise InputError(
            f"The monitor in {config.monitor} was not made for the model in {config.bundle}.", hint="fit it anew"
        )
    texts, _ = read_texts(config.input, monitor.settings.window)
    if len(texts) < FEWEST:
        raise InputError(f"{config.input} must hold {FEWEST} texts at least. Got {len(texts)}.")
    if len(texts) < monitor.settings.window:
        logger.warning("one small window of %d texts: only large drift will show", len(texts))
        monitor.settings = replace(monitor.settings, window=len(texts))
    window = monitor.settings.window
    if rest := len(texts) % window:
        logger.info("the last %d texts fill no window and are left out", rest)
    run = Run(PROJECT, MODULE, "check", config, name=config.run)
    probabilities, embeddings = outputs_of(classifier, texts[: len(texts) - rest], "classify")
    results = []
    with progress_bar() as bar:
        task = bar.add_task("test windows", total=len(texts) // window, figures="")
        for first in range(0, len(probabilities), window):
            monitor.observe(probabilities[first : first + window], embeddings[first : first + window])
            results.append(monitor.results[-1])
            bar.advance(task)
    corrected = benjamini_hochberg([result.p_value for result in results])
    drifted = corrected <= monitor.settings.level
    for result, p_value, drift in zip(results, corrected, drifted, strict=True):
        effects = ", ".join(f"{finding.test} {finding.effect:.3g}" for finding in result.findings)
        guesses = "".join(f", {name} accuracy {value:.3f}" for name, value in result.accuracy.items())
        verdict = "DRIFT" if drift else "same "
        sys.stdout.write(f"window {result.number:3}  {verdict}  p {p_value:<8.2g} {effects}{guesses}\n")
    write_atomic(run.folder / "report.json", json.dumps(monitor.report(), indent=2, ensure_ascii=False) + "\n")
    monitor.plot_report(run.folder)
    metrics = {"windows": len(results), "drifted": int(drifted.sum()), "p_value": float(corrected.min())}
    run.finish(model=classifier.name, data=config.input, seed=monitor.settings.seed, metrics=metrics)
    logger.info("%d of %d windows have drifted; report and plots in %s", drifted.sum(), len(results), run.folder)
    if config.fail_on_drift and drifted.any():
        sys.exit(1)


@dataclass
class SimulateConfig(MonitorConfig):
    """Measure how often windows are called drifted: without drift, and with three kinds of it made to order."""

    other: str = "builtin:apps"
    """Texts of another domain."""
    windows: int = 200
    """Windows without drift."""
    power_windows: int = 100
    """Windows of each kind of drift."""
    share: float = 0.7
    """Share of the last label after its prior has shifted."""
    typo_rate: float = 0.1
    """Chance of a word to be mistyped."""

    def __post_init__(self) -> None:
        """Check the ranges."""
        super().__post_init__()
        check_range("windows", self.windows, 1)
        check_range("power_windows", self.power_windows, 1)
        check_range("share", self.share, 0, 1)
        check_range("typo_rate", self.typo_rate, 0, 1)


def simulate(config: SimulateConfig) -> None:
    """Measure false alarms and power; see :class:`SimulateConfig`."""
    classifier = OnnxClassifier(config.bundle, config.threads)
    texts, labels = read_texts(config.data, config.reference_size + 30 * config.window)
    if not labels:
        raise InputError(f"{config.data} has no labels, without which no shift of the prior can be made.")
    class_numbers(labels, classifier, config.data)
    other_texts, _ = read_texts(config.other, 15 * config.window)
    size = min(config.reference_size, len(texts) // 2)
    if min(len(texts) - size, len(other_texts)) < config.window:
        raise InputError(f"{config.data} and {config.other} have too few texts for windows of {config.window}.")
    run = Run(PROJECT, MODULE, "simulate", config, name=config.run)
    rng = np.random.default_rng(config.seed)
    order = rng.permutation(len(texts))
    pool = order[size:]  # never in the reference
    typed = pool[: 15 * config.window]
    probabilities, embeddings = outputs_of(classifier, texts, "classify")
    mistyped = outputs_of(classifier, inject_typos([texts[i] for i in typed], config.typo_rate, config.seed), "typos")
    others = outputs_of(classifier, other_texts, "other domain")
    settings = MonitorSettings(classifier.label_names, **config.settings())
    monitor = DriftMonitor(settings, probabilities[order[:size]], embeddings[order[:size]])
    positive, rows = classifier.label_names[-1], [(int(i), labels[i]) for i in pool]

    def draw(outputs: tuple[Floats, Floats], count: int) -> list[tuple[Floats, Floats]]:
        return [(outputs[0][i], outputs[1][i]) for i in random_windows(len(outputs[0]), config.window, count, rng)]

    def shifted(seed: int) -> tuple[Floats, Floats]:
        drawn = [i for i, _ in resample_prior(rows, config.share, config.window, seed, positive=positive)]
        return probabilities[drawn], embeddings[drawn]

    kinds = {
        "false_alarms": draw((probabilities[pool], embeddings[pool]), config.windows),
        "power_prior": [shifted(config.seed + i) for i in range(config.power_windows)],
        "power_typos": draw(mistyped, config.power_windows),
        "power_domain": draw(others, config.power_windows),
    }
    rates = {name: monitor.alarm_rate(windows, name.replace("_", " ")) for name, windows in kinds.items()}
    metrics: dict[str, Any] = {}
    tests = monitor.settings.tests
    heading = f"{'':14}{'windows':>8}{'drift':>7}{'95 % interval':>16}{'alert':>7}"
    sys.stdout.write(heading + "".join(f"{test:>12}" for test in tests) + "\n")
    for name, rate in rates.items():
        metrics |= {name: rate.rate, f"{name}_low": rate.low, f"{name}_high": rate.high}
        metrics |= {f"{name}_windows": rate.windows, f"{name}_alerts": rate.alert_rate}
        interval = f"{rate.low:.3f} – {rate.high:.3f}"
        sys.stdout.write(f"{name:14}{rate.windows:8}{rate.rate:7.3f}{interval:>16}{rate.alert_rate:7.3f}"
                         + "".join(f"{rate.by_test[test]:12.3f}" for test in tests) + "\n")  # fmt: skip
    run.finish(model=classifier.name, data=config.data, seed=config.seed, metrics=metrics)
    logger.info("prior: %s at %.2f; typos in %.0f %% of words; domain: %s; each test's column is at the level %.2g, "
                "uncorrected", positive, config.share, 100 * config.typo_rate, config.other, config.level)  # fmt: skip


if __name__ == "__main__":
    run_commands({"fit": fit, "check": check, "simulate": simulate}, module=MODULE, extra="optimization")
