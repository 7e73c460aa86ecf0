"""Figures agree with scikit-learn and scipy, or with their definition; the commands write what they promise."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from sklearn import metrics

from bert_sentiment_analysis.data.preprocessor import Encoding
from bert_sentiment_analysis.evaluation.metrics import (
    MODULE,
    bootstrap_interval,
    classification_figures,
    cross_domain,
    evaluate,
    expected_calibration_error,
    fit_temperature,
    mcnemar,
    sentiment_metric,
    significance,
    softmax,
)
from bert_sentiment_analysis.models.bert_classifier import Card
from shared.config import run_commands

RUNS = Path("outputs/bert_sentiment_analysis")


def random_case(count: int = 200, classes: int = 3, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    labels = rng.integers(classes, size=count)
    logits = rng.normal(size=(count, classes)) + 1.5 * np.eye(classes)[labels]
    return labels, softmax(logits)


@pytest.mark.parametrize("classes", [2, 3, 5])
def test_figures_are_those_of_scikit_learn(classes: int) -> None:
    labels, probabilities = random_case(classes=classes)
    predicted = probabilities.argmax(1)
    figures = classification_figures(labels, probabilities)
    expected = {
        "accuracy": metrics.accuracy_score(labels, predicted),
        "macro_f1": metrics.f1_score(labels, predicted, average="macro"),
        "weighted_f1": metrics.f1_score(labels, predicted, average="weighted"),
        "micro_f1": metrics.f1_score(labels, predicted, average="micro"),
        "macro_recall": metrics.balanced_accuracy_score(labels, predicted),
        "mcc": metrics.matthews_corrcoef(labels, predicted),
    }
    if classes == 2:
        expected["roc_auc"] = metrics.roc_auc_score(labels, probabilities[:, 1])
    else:
        expected["roc_auc"] = metrics.roc_auc_score(labels, probabilities, multi_class="ovr", average="macro")
    assert {name: figures[name] for name in expected} == pytest.approx(expected)


def test_a_class_that_is_not_there_counts_for_nothing() -> None:
    labels = np.array([0, 0, 1, 1])
    figures = classification_figures(labels, np.eye(3)[labels])
    assert figures["macro_f1"] == figures["accuracy"] == 1
    assert "roc_auc" not in figures


@pytest.mark.filterwarnings("error")
def test_texts_of_one_label_are_measured_without_a_warning() -> None:
    labels = np.zeros(4, int)
    assert classification_figures(labels, np.eye(2)[labels])["mcc"] == 0


def test_the_library_evaluate_takes_the_metric_without_the_hub() -> None:
    import evaluate as library

    labels, probabilities = random_case()
    predicted = probabilities.argmax(1)
    computed = sentiment_metric().compute(predictions=predicted, references=labels)
    assert computed["accuracy"] == pytest.approx(metrics.accuracy_score(labels, predicted))
    both = library.combine([sentiment_metric()]).compute(predictions=predicted, references=labels)
    assert both["macro_f1"] == pytest.approx(computed["macro_f1"])


def test_calibration_error_is_its_definition() -> None:
    # Ten texts, 75 % sure of class 0; six of them right: |0.6 − 0.75|.
    probabilities = np.tile([0.75, 0.25], (10, 1))
    labels = np.array([0] * 6 + [1] * 4)
    assert expected_calibration_error(labels, probabilities) == pytest.approx(0.15)
    assert expected_calibration_error(np.zeros(5, int), np.tile([1.0, 0.0], (5, 1))) == 0


@given(seed=st.integers(0, 1000), scale=st.floats(0.2, 5))
@settings(max_examples=20, deadline=None, derandomize=True)
def test_temperature_undoes_a_scaling_and_changes_no_prediction(seed: int, scale: float) -> None:
    rng = np.random.default_rng(seed)
    logits = rng.normal(size=(4000, 3)) * 2
    labels = np.array([rng.choice(3, p=row) for row in softmax(logits)])  # logits are calibrated by construction
    temperature = fit_temperature(logits * scale, labels)
    assert temperature == pytest.approx(scale, rel=0.15)
    assert (softmax(logits * scale / temperature).argmax(1) == logits.argmax(1)).all()


def test_the_bootstrap_agrees_with_scipy() -> None:
    labels, probabilities = random_case(400, 2)
    predicted = probabilities.argmax(1)
    low, high = bootstrap_interval(labels, predicted, repeats=3000)
    right = (labels == predicted).astype(float)
    theirs = stats.bootstrap((right,), np.mean, n_resamples=3000, method="percentile", rng=0).confidence_interval
    assert (low, high) == pytest.approx((theirs.low, theirs.high), abs=0.006)
    assert low < right.mean() < high
    assert bootstrap_interval(labels, labels) == (1, 1)


def test_mcnemar_is_the_exact_binomial_test() -> None:
    labels = np.zeros(30, int)
    one, other = labels.copy(), labels.copy()
    one[:2] = 1
    other[5:16] = 1
    first, second, p = mcnemar(labels, one, other)
    assert (first, second) == (11, 2)
    assert p == pytest.approx(2 * stats.binom.cdf(2, 13, 0.5))
    assert mcnemar(labels, one, one) == (0, 0, 1.0)


# --- The commands -----------------------------------------------------------------------------------------------------


def cli(*arguments: str) -> int:
    commands = {"evaluate": evaluate, "cross_domain": cross_domain, "significance": significance}
    with pytest.raises(SystemExit) as exit_:
        run_commands(commands, module=MODULE, argv=arguments)
    return exit_.value.code


@pytest.fixture
def relabelled(tiny: Path, tmp_path: Path) -> Path:
    """The tiny model with names that the movies have."""
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    names = {"id2label": {0: "negative", 1: "positive"}, "label2id": {"negative": 0, "positive": 1}}
    AutoModelForSequenceClassification.from_pretrained(tiny, **names).save_pretrained(tmp_path / "named")
    AutoTokenizer.from_pretrained(tiny).save_pretrained(tmp_path / "named")
    return tmp_path / "named"


def test_evaluate_leaves_figures_and_plots(relabelled: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli("evaluate", "--model", str(relabelled), "--run", "x") == 0
    figures = json.loads((RUNS / "x/results.json").read_text())["metrics"]
    assert {"accuracy", "macro_recall", "mcc", "roc_auc", "pr_auc", "ece", "accuracy_low"} <= figures.keys()
    assert figures["accuracy_low"] <= figures["accuracy"] <= figures["accuracy_high"]
    assert f"accuracy             {figures['accuracy']:.4f}" in capsys.readouterr().out.splitlines()
    plots = {path.name for path in (RUNS / "x").glob("*.png")}
    assert plots == {"confusion_matrix.png", "classification_report.png", "reliability.png", "roc.png"}


def test_models_with_other_labels_are_refused(relabelled: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli("evaluate", "--model", str(relabelled), "--data", "builtin:tweets") == 2
    assert "labels that the model does not know: 'neutral'" in capsys.readouterr().err


def test_texts_that_a_model_learned_from_are_not_what_it_is_measured_on(
    relabelled: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lines = [f"text number {i},{('negative', 'positive')[i % 2]}" for i in range(100)]
    (tmp_path / "own.csv").write_text("text,label\n" + "\n".join(lines))
    models = []
    for seed in (3, 4):
        models.append(tmp_path / f"seed-{seed}")
        shutil.copytree(relabelled, models[-1])
        division = {"seed": seed, "validation_fraction": 0.1, "test_fraction": 0.3}
        Card(["negative", "positive"], "x", Encoding(32), domain="own.csv", division=division).save(models[-1])
    one, other = map(str, models)
    for data, texts in (("own.csv", 30), ("./own.csv", 30), ("copy.csv", 10)):
        (tmp_path / "copy.csv").write_text((tmp_path / "own.csv").read_text())
        assert cli("evaluate", "--model", one, "--data", data) == 0
        said = capsys.readouterr().err
        assert f"on {texts} texts of the test split of {data}" in said
        assert ("divided as it was when the model learned from it: seed 3" in said) == (texts == 30)
    assert cli("evaluate", "--model", one, "--data", "own.csv", "--split", "all") == 2
    assert "the model learned from a part of own.csv" in capsys.readouterr().err
    assert cli("evaluate", "--model", one, "--data", "copy.csv", "--split", "all") == 0
    assert "on 100 texts of all splits of copy.csv" in capsys.readouterr().err
    assert cli("significance", "--model", one, "--other", other, "--data", "own.csv") == 2
    assert "divided differently: each knows texts that the other is tested by" in capsys.readouterr().err
    assert cli("significance", "--model", one, "--other", other, "--data", "builtin:products") == 0
    assert cli("cross_domain", "--models", one, "--domains", "own.csv,builtin:movies") == 0


def test_labels_may_be_written_in_any_case(relabelled: Path) -> None:
    Path("own.csv").write_text("text,label\ngood,Positive\nbad,NEG\n")
    assert cli("evaluate", "--model", str(relabelled), "--data", "own.csv", "--split", "all") == 0


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--data", "builtin:tweets"], "takes --models and --domains, and neither --model nor --data"),
        (["--model", "builtin:tweets"], "takes --models and --domains, and neither --model nor --data"),
        (["--models", "builtin:nowhere"], "There is no 'builtin:nowhere'"),
    ],
)
def test_a_matrix_that_can_not_be_leaves_no_run(
    flags: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli("cross_domain", *flags) == 2
    assert message in capsys.readouterr().err
    assert not RUNS.exists()


def test_significance_compares_two_models(relabelled: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli("significance", "--model", str(relabelled), "--other", str(relabelled)) == 0
    assert "p = 1: no difference shown" in capsys.readouterr().out


def test_the_matrix_has_a_row_a_model_and_a_column_a_domain(relabelled: Path) -> None:
    assert cli("cross_domain", "--models", json.dumps([str(relabelled)]), "--run", "m") == 0
    figures = json.loads((RUNS / "m/results.json").read_text())["metrics"]
    assert len(figures) == 3
    assert all(0 <= value <= 1 for value in figures.values())
    assert (RUNS / "m/cross_domain.png").exists()
