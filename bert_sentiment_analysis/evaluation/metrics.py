"""Everything a classifier is measured by, and the commands that measure one.

    python -m bert_sentiment_analysis.evaluation.metrics evaluate --model builtin:movies --data builtin:movies
    python -m bert_sentiment_analysis.evaluation.metrics cross_domain
    python -m bert_sentiment_analysis.evaluation.metrics significance --model builtin:movies --other builtin:products

scikit-learn computes the standard figures; calibration, bootstrap and McNemar's test are written out.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from bert_sentiment_analysis.data.imdb_dataset import DataConfig, load_data, read_splits
from bert_sentiment_analysis.data.preprocessor import describe_long_texts
from bert_sentiment_analysis.evaluation.visualization import plot_evaluation, plot_matrix
from shared.config import check_range, run_commands
from shared.errors import InputError
from shared.logs import progress_bar
from shared.results import Run
from shared.runtime import set_threads

if TYPE_CHECKING:
    from datasets import Dataset

    from bert_sentiment_analysis.inference.predictor import SentimentPredictor
    from bert_sentiment_analysis.models.bert_classifier import Card

PROJECT = "bert_sentiment_analysis"
MODULE = f"{PROJECT}.evaluation.metrics"
NOT_RECIPE = {"recipe": False}
Floats = NDArray[np.floating]
Integers = NDArray[np.integer]
logger = logging.getLogger(MODULE)


# --- Figures ----------------------------------------------------------------------------------------------------------


def softmax(logits: Floats) -> Floats:
    """Turn logits (N, K) into probabilities."""
    from scipy import special

    return special.softmax(logits, axis=1)


def classification_figures(labels: Integers, probabilities: Floats) -> dict[str, float]:
    """Measure predictions.

    Args:
        labels: (N,) the right classes.
        probabilities: (N, K), rows summing to 1; the likeliest class is the prediction.

    Returns:
        Accuracy; precision, recall and F1, micro, macro and weighted (a class that is neither there nor predicted is
        left out of the means); ``macro_recall``, the figure of TweetEval (Barbieri et al., 2020, arXiv:2010.12421);
        Matthews' correlation; areas under the ROC and precision-recall curves (mean of one against the rest where
        there are more than two classes; absent where a class is); expected calibration error.
    """
    from sklearn import metrics

    predicted = probabilities.argmax(1)
    present = np.union1d(labels, predicted)
    figures = {"accuracy": metrics.accuracy_score(labels, predicted)}
    for average in ("macro", "weighted", "micro"):
        scores = metrics.precision_recall_fscore_support(
            labels, predicted, labels=present, average=average, zero_division=0
        )
        figures |= {
            f"{average}_{name}": score for name, score in zip(("precision", "recall", "f1"), scores[:3], strict=True)
        }
    figures["mcc"] = metrics.matthews_corrcoef(labels, predicted) if len(present) > 1 else 0.0
    classes = probabilities.shape[1]
    if len(np.unique(labels)) == classes:
        against_rest = [1] if classes == 2 else range(classes)
        areas = [(metrics.roc_auc_score(labels == k, probabilities[:, k]),
                  metrics.average_precision_score(labels == k, probabilities[:, k])) for k in against_rest]  # fmt: skip
        figures["roc_auc"], figures["pr_auc"] = np.mean(areas, axis=0)
    figures["ece"] = expected_calibration_error(labels, probabilities)
    return {name: float(value) for name, value in figures.items()}


def sentiment_metric() -> Any:
    """Return these figures as a metric of the library ``evaluate``, which needs no script from the hub.

    It takes class numbers as predictions, so what needs probabilities is left out; ``evaluate.combine`` and
    ``evaluate.evaluator`` accept it.
    """
    import datasets
    import evaluate

    class SentimentMetric(evaluate.Metric):
        def _info(self) -> evaluate.MetricInfo:
            features = datasets.Features(
                {"predictions": datasets.Value("int64"), "references": datasets.Value("int64")}
            )
            return evaluate.MetricInfo(
                description="Accuracy, precision, recall and F1 in three averages, MCC.",
                citation="",
                inputs_description="predictions and references: class numbers",
                features=features,
            )

        def _compute(self, predictions: list[int], references: list[int]) -> dict[str, float]:
            numbers = np.array(predictions)
            one_hot = np.eye(max(numbers.max(), max(references)) + 1)[numbers]
            figures = classification_figures(np.array(references), one_hot)
            return {name: figures[name] for name in figures if name not in ("roc_auc", "pr_auc", "ece")}

    return SentimentMetric(module_name="sentiment")


def expected_calibration_error(labels: Integers, probabilities: Floats, bins: int = 15) -> float:
    """Measure how far confidence is from accuracy: Σ (n_b / N) |accuracy_b − confidence_b| over bins of confidence.

    Naeini et al., 2015; bins of equal width, as in Guo et al., 2017 (arXiv:1706.04599).
    """
    confidence, right = probabilities.max(1), probabilities.argmax(1) == labels
    owner = np.minimum((confidence * bins).astype(int), bins - 1)
    return float(sum(
        (owner == b).mean() * abs(right[owner == b].mean() - confidence[owner == b].mean()) for b in np.unique(owner)
    ))  # fmt: skip


def fit_temperature(logits: Floats, labels: Integers) -> float:
    """Find the number that logits must be divided by to make the right labels likeliest (Guo et al., 2017).

    It changes no prediction, only how sure the model says it is. Minimizes the mean −log softmax(logits / T), a convex
    function of 1 / T, between T = 0.05 and T = 20. Without a single error there is nothing to learn from, and T is 1.

    Args:
        logits: (N, K) on texts the model has not learned from.
        labels: (N,).
    """
    from scipy.optimize import minimize_scalar
    from scipy.special import log_softmax

    def loss(inverse: float) -> float:
        return float(-log_softmax(logits * inverse, axis=1)[np.arange(len(labels)), labels].mean())

    if (logits.argmax(1) == labels).all():
        return 1.0
    return float(1 / minimize_scalar(loss, bounds=(1 / 20, 20), method="bounded").x)


def bootstrap_interval(
    labels: Integers,
    predicted: Integers,
    figure: Any = None,
    *,
    repeats: int = 1000,
    level: float = 0.95,
    seed: int = 0,
) -> tuple[float, float]:
    """Return the percentile bootstrap's confidence interval of a figure (Efron, 1979), accuracy by default.

    Args:
        labels: (N,).
        predicted: (N,).
        figure: Function of resampled labels and predictions.
        repeats: Number of samples of N texts, drawn with replacement.
        level: Part of the samples' figures inside the interval.
        seed: Of the drawing.
    """
    rng = np.random.default_rng(seed)
    figure = figure or (lambda a, b: (a == b).mean())
    samples = (rng.integers(len(labels), size=len(labels)) for _ in range(repeats))
    draws = [figure(labels[rows], predicted[rows]) for rows in samples]
    low, high = np.quantile(draws, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def mcnemar(labels: Integers, one: Integers, other: Integers) -> tuple[int, int, float]:
    """Test whether two models that predicted the same texts differ (McNemar, 1947; the exact binomial form).

    Returns:
        Texts that only the first gets right, texts that only the second does, and the probability of a split at least
        as uneven if both were equally good.
    """
    from scipy.stats import binomtest

    first = int(((one == labels) & (other != labels)).sum())
    second = int(((one != labels) & (other == labels)).sum())
    p = binomtest(first, first + second).pvalue if first + second else 1.0
    return first, second, float(p)


# --- The commands -----------------------------------------------------------------------------------------------------


@dataclass
class MeasureConfig(DataConfig):
    """What every command here needs."""

    model: str = "builtin:movies"
    """builtin:movies, builtin:products, builtin:tweets, a run's folder, or a classifier of the hub."""
    split: Literal["test", "validation", "train", "all"] = "test"
    """The split to measure on; all is every text, of data that the model did not learn from."""
    batch_size: int = 32
    """Texts at a time."""
    seed: int = field(default=0, metadata=NOT_RECIPE)
    """Of the division of undivided data into splits; that of the model's training where it learned from them."""
    device: str = field(default="auto", metadata=NOT_RECIPE)
    """auto, cpu, cuda or mps."""
    threads: int = field(default=0, metadata=NOT_RECIPE)
    """CPU threads; 0 leaves it to PyTorch."""
    run: str = field(default="", metadata=NOT_RECIPE)
    """Name of this run's own folder; by default the time."""

    def __post_init__(self) -> None:
        """Check the ranges."""
        super().__post_init__()
        check_range("batch_size", self.batch_size, 1)
        check_range("threads", self.threads, 0)
        check_range("seed", self.seed, 0, 2**31 - 1)


def held_back(
    config: MeasureConfig, cards: Sequence[Card], label_names: list[str] | None
) -> tuple[MeasureConfig, Dataset]:
    """Load the texts that models are measured on: of data they learned from, those they did not see.

    Args:
        config: Which data and split; its division counts only for data that no model was tuned on.
        cards: Of the models.
        label_names: The labels to expect, in their order.

    Returns:
        The configuration with the division that was taken, and rows with ``text`` and ``label``.

    Raises:
        InputError: Two models learned from the same data, divided differently; or one learned from it, and every
            text is asked for.
    """
    data = Path(config.data).expanduser().resolve()
    divisions = [card.division for card in cards
                 if card.division and Path(card.domain).expanduser().resolve() == data]  # fmt: skip
    if config.split == "all":
        from datasets import concatenate_datasets

        if divisions:
            raise InputError(f"split can't be all: the model learned from a part of {config.data}.", "--split test")
        splits = read_splits(config, label_names=label_names, divide=False)
        return config, concatenate_datasets(list(splits.values()))
    chosen = [replace(config, **division) for division in divisions] or [config]
    rows, *others = [load_data(one, one.seed, label_names, needed=[config.split])[config.split] for one in chosen]
    if any(list(other["text"]) != list(rows["text"]) for other in others):
        raise InputError(
            f"The models learned from {config.data} divided differently: each knows texts that the other is tested by.",
            hint="train both with the same --seeds, --validation_fraction and --test_fraction",
        )
    if chosen[0] != config:
        taken = ", ".join(f"{name} {value:g}" for name, value in divisions[0].items())
        logger.info("%s is divided as it was when the model learned from it: %s", config.data, taken)
    return chosen[0], rows


def score(predictor: SentimentPredictor, texts: Sequence[str], batch_size: int, what: str) -> Floats:
    """Return a predictor's logits (N, K) of texts, with a progress bar, and a word on the long ones."""
    with progress_bar() as bar:
        task = bar.add_task(what, total=len(texts), figures="")
        logits, lengths = predictor.logits(texts, batch_size, lambda done: bar.advance(task, done))
    note = describe_long_texts(lengths, predictor.card.encoding)
    if note:
        logger.info("%s: %s", what, note)
    return logits


@dataclass
class EvaluateConfig(MeasureConfig):
    """Measure a model on labelled texts: every figure, with plots."""


def evaluate(config: EvaluateConfig) -> None:
    """Measure a model; see :class:`EvaluateConfig`."""
    from bert_sentiment_analysis.inference.predictor import SentimentPredictor

    set_threads(config.threads)
    predictor = SentimentPredictor(config.model, config.device)
    config, rows = held_back(config, [predictor.card], predictor.card.label_names)
    labels = np.array(rows["label"])
    logits = score(predictor, rows["text"], config.batch_size, f"measure {config.model}")
    run = Run(PROJECT, MODULE, "evaluate", config, name=config.run)
    figures = report_figures(labels, logits, predictor.card.temperature, predictor.card.label_names, run.folder)
    run.finish(model=predictor.classifier.name, data=config.data, seed=config.seed, metrics=figures)
    sys.stdout.write("".join(f"{name:20} {value:.4f}\n" for name, value in figures.items()))
    part = "all splits" if config.split == "all" else f"the {config.split} split"
    logger.info("%s on %s texts of %s of %s: accuracy %.4f; saved in %s", config.model, f"{len(labels):,}", part,
                config.data, figures["accuracy"], run.folder)  # fmt: skip


def report_figures(
    labels: Integers, logits: Floats, temperature: float, names: Sequence[str], folder: Path
) -> dict[str, float]:
    """Measure calibrated predictions, draw them into a folder, and return the figures.

    Beside :func:`classification_figures`: ``accuracy_low`` and ``accuracy_high``, the bootstrap's 95 % interval, and
    ``ece_uncalibrated``, before temperature scaling.
    """
    probabilities = softmax(logits / temperature)
    figures = classification_figures(labels, probabilities)
    figures["accuracy_low"], figures["accuracy_high"] = bootstrap_interval(labels, probabilities.argmax(1))
    figures["ece_uncalibrated"] = expected_calibration_error(labels, softmax(logits))
    plot_evaluation(labels, probabilities, names, folder, ece=figures["ece"])
    return figures


@dataclass
class SignificanceConfig(MeasureConfig):
    """Test whether two models differ on the same texts, by McNemar's test."""

    other: str = "builtin:products"
    """The model to compare with."""


def significance(config: SignificanceConfig) -> None:
    """Compare two models; see :class:`SignificanceConfig`."""
    from bert_sentiment_analysis.inference.predictor import SentimentPredictor

    set_threads(config.threads)
    predictors = {name: SentimentPredictor(name, config.device) for name in (config.model, config.other)}
    cards = [predictor.card for predictor in predictors.values()]
    if cards[0].label_names != cards[-1].label_names:
        raise InputError(f"{config.other} has other labels than {config.model}.")
    config, rows = held_back(config, cards, cards[0].label_names)
    labels = np.array(rows["label"])
    predicted = [score(predictors[name], rows["text"], config.batch_size, f"measure {name}").argmax(1)
                 for name in (config.model, config.other)]  # fmt: skip
    run = Run(PROJECT, MODULE, "significance", config, name=config.run)
    first, second, p = mcnemar(labels, *predicted)
    accuracies = [float((one == labels).mean()) for one in predicted]
    metrics = {"accuracy": accuracies[0], "other_accuracy": accuracies[1], "only_first_right": first,
               "only_other_right": second, "p": p}  # fmt: skip
    run.finish(model=config.model, data=config.data, seed=config.seed, metrics=metrics)
    sys.stdout.write(
        f"{config.model} {accuracies[0]:.4f}, {config.other} {accuracies[1]:.4f}\n"
        f"only the first is right on {first}, only the other on {second} of {len(labels)} texts\n"
        f"p = {p:.2g}: {'they differ' if p < 0.05 else 'no difference shown'} (McNemar's test, 5 % level)\n"
    )


@dataclass
class CrossDomainConfig(MeasureConfig):
    """Measure every model on every domain's test texts: what a model learned in one, and can't in another.

    A model of three labels takes part in two by leaving neutral out of its choice.
    """

    data: str = ""
    """Not taken here: see domains."""
    model: str = ""
    """Not taken here: see models."""
    models: list[str] = field(default_factory=lambda: ["builtin:movies", "builtin:products", "builtin:tweets"])
    """The models, a row each."""
    domains: list[str] = field(default_factory=lambda: ["builtin:movies", "builtin:products", "builtin:tweets"])
    """The data sets, a column each; only texts labelled negative or positive count."""


def cross_domain(config: CrossDomainConfig) -> None:
    """Measure models across domains; see :class:`CrossDomainConfig`."""
    from bert_sentiment_analysis.inference.predictor import SentimentPredictor

    if config.data or config.model:
        raise InputError("cross_domain takes --models and --domains, and neither --model nor --data.")
    set_threads(config.threads)
    poles = ("negative", "positive")
    matrix = np.zeros((len(config.models), len(config.domains)))
    with progress_bar() as bar:
        task = bar.add_task("measure", total=matrix.size, figures="")
        for i, name in enumerate(config.models):
            predictor = SentimentPredictor(name, config.device)
            if not set(poles) <= set(predictor.card.label_names):
                raise InputError(f"{name} has no labels negative and positive, but {predictor.card.label_names}.")
            columns = [predictor.card.label_names.index(pole) for pole in poles]
            for j, domain in enumerate(config.domains):
                _, rows = held_back(replace(config, data=domain), [predictor.card], None)
                names = rows.features["label"].names
                rows = rows.select([i for i, label in enumerate(rows["label"]) if names[label] in poles])
                if not len(rows):
                    raise InputError(f"No text of {domain} is labelled negative or positive.", hint="--label_map")
                logits, _ = predictor.logits(rows["text"], config.batch_size)
                chosen = logits[:, columns].argmax(1)
                right = [poles[k] == names[label] for k, label in zip(chosen, rows["label"], strict=True)]
                matrix[i, j] = np.mean(right)
                bar.advance(task)
    run = Run(PROJECT, MODULE, "cross_domain", config, name=config.run)
    plot_matrix(matrix, config.models, config.domains, run.folder / "cross_domain.png", title="accuracy across domains",
                xlabel="test texts", ylabel="model", low=0.5)  # fmt: skip
    metrics = {f"{model} on {domain}": float(matrix[i, j])
               for i, model in enumerate(config.models) for j, domain in enumerate(config.domains)}  # fmt: skip
    run.finish(model=", ".join(config.models), data=", ".join(config.domains), seed=config.seed, metrics=metrics)
    width = max(map(len, config.models))
    sys.stdout.write(" " * width + "".join(f"{domain:>20}" for domain in config.domains) + "\n")
    for name, row in zip(config.models, matrix, strict=True):
        sys.stdout.write(f"{name:{width}}" + "".join(f"{value:20.3f}" for value in row) + "\n")


if __name__ == "__main__":
    run_commands({"evaluate": evaluate, "cross_domain": cross_domain, "significance": significance}, module=MODULE,
                 extra="sentiment")  # fmt: skip
