"""Plots that say at a glance what a classifier gets right, how sure it is, and why: all PNG files."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from shared.plots import drawing

Floats = NDArray[np.floating]
Integers = NDArray[np.integer]


def plot_confusion(labels: Integers, predicted: Integers, names: Sequence[str], path: Path, title: str = "") -> None:
    """Draw the confusion matrix: rows are the right labels, columns the predicted ones, colored by share of the row."""
    from sklearn.metrics import confusion_matrix

    counts = confusion_matrix(labels, predicted, labels=range(len(names)))
    shares = counts / counts.sum(1, keepdims=True).clip(min=1)
    plot_matrix(shares, names, names, path, title=title, xlabel="predicted", ylabel="right",
                texts=[[f"{n:,}\n{share:.0%}" for n, share in zip(*row, strict=True)]
                       for row in zip(counts, shares, strict=True)])  # fmt: skip


def plot_matrix(
    values: Floats, rows: Sequence[str], columns: Sequence[str], path: Path, *, title: str, xlabel: str, ylabel: str,
    texts: Sequence[Sequence[str]] | None = None, low: float = 0.0,
) -> None:  # fmt: skip
    """Draw a table of figures in [low, 1] as colored squares with their values."""
    names = max(map(len, [*rows, *columns]))
    with drawing(path, 1.7 + 0.09 * names + max(1.1, 0.09 * names) * len(columns), 1.7 + 0.8 * len(rows)) as figure:
        axes = figure.add_subplot()
        image = axes.imshow(values, cmap="Blues", vmin=low, vmax=1, aspect="auto")
        axes.set_xticks(range(len(columns)), columns)
        axes.set_yticks(range(len(rows)), rows)
        for i, row in enumerate(values):
            for j, value in enumerate(row):
                text = texts[i][j] if texts else f"{value:.3f}"
                dark = value > (1 + low) / 2
                axes.text(j, i, text, ha="center", va="center", color="white" if dark else "#1b2a41", fontsize=10)
        axes.set(xlabel=xlabel, ylabel=ylabel)
        axes.set_title(title, parse_math=False)
        figure.colorbar(image, ax=axes, shrink=0.8)


def plot_report(labels: Integers, predicted: Integers, names: Sequence[str], path: Path) -> None:
    """Draw precision, recall and F1 of every label as bars, with the number of texts behind each."""
    from sklearn.metrics import precision_recall_fscore_support

    scores = precision_recall_fscore_support(labels, predicted, labels=range(len(names)), zero_division=0)
    with drawing(path, 1.8 + 1.7 * len(names), 3.6) as figure:
        axes = figure.add_subplot()
        for i, (name, color) in enumerate((("precision", "#8fb8de"), ("recall", "#3d7ab8"), ("F1", "#1b3a5c"))):
            bars = axes.bar(np.arange(len(names)) + 0.26 * (i - 1), scores[i], 0.24, label=name, color=color)
            axes.bar_label(bars, fmt="%.2f", fontsize=8)
        axes.set_xticks(range(len(names)), [f"{name}\n{n:,} texts" for name, n in zip(names, scores[3], strict=True)])
        axes.set(ylim=(0, 1.12), ylabel="score")
        figure.legend(loc="outside upper center", ncols=3, frameon=False)


def plot_reliability(labels: Integers, probabilities: Floats, path: Path, *, ece: float, bins: int = 10) -> None:
    """Draw accuracy over confidence: on the diagonal, 80 % sure means right in 80 % of all cases."""
    confidence, right = probabilities.max(1), probabilities.argmax(1) == labels
    owner = np.minimum((confidence * bins).astype(int), bins - 1)
    used = np.unique(owner)
    with drawing(path, 4.6, 4.8) as figure:
        top, bottom = figure.subplots(2, 1, sharex=True, height_ratios=(3, 1))
        top.plot([0, 1], [0, 1], color="gray", linestyle="--", label="perfect")
        points = [(confidence[owner == b].mean(), right[owner == b].mean()) for b in used]
        top.plot(*zip(*points, strict=True), marker="o", color="#1b3a5c", label=f"model, ECE {ece:.3f}")
        top.set(ylabel="accuracy", xlim=(0, 1), ylim=(0, 1.02))
        top.legend(loc="upper left")
        top.grid(alpha=0.3)
        bottom.hist(confidence, bins=bins, range=(0, 1), color="#8fb8de")
        bottom.set(xlabel="confidence", ylabel="texts")


def plot_roc(labels: Integers, probabilities: Floats, names: Sequence[str], path: Path) -> None:
    """Draw the ROC curve of every label against the rest; of the last alone where there are two."""
    from sklearn.metrics import auc, roc_curve

    with drawing(path, 4.8, 4.4) as figure:
        axes = figure.add_subplot()
        for k in [1] if len(names) == 2 else range(len(names)):
            if 0 < (labels == k).sum() < len(labels):
                false_rate, true_rate, _ = roc_curve(labels == k, probabilities[:, k])
                axes.plot(false_rate, true_rate, label=f"{names[k]}, area {auc(false_rate, true_rate):.3f}")
        axes.plot([0, 1], [0, 1], color="gray", linestyle="--", linewidth=1)
        axes.set(xlabel="share of the other texts that get the label", ylabel="share of its own texts that get it")
        axes.set(xlim=(0, 1), ylim=(0, 1.01))
        axes.grid(alpha=0.3)
        axes.legend(loc="lower right")


def plot_attributions(
    words: Sequence[str], scores: Sequence[float], path: Path, title: str, *, width: int = 80
) -> None:
    """Write a text with every word on a ground of its share in the prediction: blue speaks for it, red against."""
    from matplotlib import colormaps, rcParams

    lines: list[list[tuple[str, float]]] = [[]]
    parts = [(word[start : start + width], score) for word, score in zip(words, scores, strict=True)
             for start in range(0, len(word), width)]  # fmt: skip
    for word, score in parts:
        if lines[-1] and sum(len(w) + 1 for w, _ in lines[-1]) + len(word) > width:
            lines.append([])
        lines[-1].append((word, score))
    strongest = max((abs(score) for score in scores), default=0) or 1.0
    fonts = ["DejaVu Sans Mono", *rcParams["font.family"]]
    with drawing(path, 0.11 * width + 0.6, 0.34 * len(lines) + 0.8) as figure:
        axes = figure.add_subplot()
        axes.set(xlim=(0, width), ylim=(len(lines), -0.5))
        axes.axis("off")
        axes.set_title(title, loc="left", fontsize=11, parse_math=False)
        for y, line in enumerate(lines):
            x = 0.0
            for word, score in line:
                color = colormaps["RdBu"](0.5 + 0.42 * score / strongest)
                ink = "white" if abs(score) > 0.7 * strongest else "black"
                axes.text(x, y + 0.3, word, family=fonts, fontsize=9, color=ink, parse_math=False,
                          bbox={"facecolor": color, "edgecolor": "none", "pad": 1.5})  # fmt: skip
                x += len(word) + 1


def plot_evaluation(labels: Integers, probabilities: Floats, names: Sequence[str], folder: Path, *, ece: float) -> None:
    """Draw confusion matrix, report, reliability and ROC curve into a folder."""
    predicted = probabilities.argmax(1)
    plot_confusion(labels, predicted, names, folder / "confusion_matrix.png")
    plot_report(labels, predicted, names, folder / "classification_report.png")
    plot_reliability(labels, probabilities, folder / "reliability.png", ece=ece)
    plot_roc(labels, probabilities, names, folder / "roc.png")
