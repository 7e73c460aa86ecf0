"""Sentiment of any text: calibrated probabilities, an answer only where the model is sure, and the words behind it.

echo "The plot is thin, but what a performance!" | python -m bert_sentiment_analysis.inference.predictor predict
python -m bert_sentiment_analysis.inference.predictor predict --input reviews.csv --model builtin:products
python -m bert_sentiment_analysis.inference.predictor explain --text "not bad at all"
"""

from __future__ import annotations

import csv
import io
import json
import logging
import os
import re
import sys
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from bert_sentiment_analysis.data.imdb_dataset import pick_column, read_table
from bert_sentiment_analysis.data.preprocessor import clean, cut, encode, special_tokens
from bert_sentiment_analysis.evaluation.metrics import softmax
from bert_sentiment_analysis.evaluation.visualization import plot_attributions
from bert_sentiment_analysis.models.bert_classifier import Classifier, load_classifier
from shared.config import check_range, run_commands
from shared.errors import InputError
from shared.logs import progress_bar
from shared.results import Run
from shared.runtime import pick_device, pick_dtype, set_threads

if TYPE_CHECKING:
    import pandas as pd

PROJECT = "bert_sentiment_analysis"
MODULE = f"{PROJECT}.inference.predictor"
NOT_RECIPE = {"recipe": False}
AT_ONCE = 2_000  # texts that are tokenized and sorted together
EMPTY = "empty text"
UNKNOWN = "no word the model knows"
DTYPES = ("auto", "float32", "bfloat16")
OURS = ("text", "label", "confidence", "probabilities", "note")
FORMULA = ("=", "+", "-", "@", "\t", "\r")
NUMBER = re.compile(r"[+-]?[\d.,]+(?:[eE][+-]?\d+)?")
logger = logging.getLogger(MODULE)


@dataclass(frozen=True)
class Prediction:
    """What the model says of one text.

    Attributes:
        text: As it was given.
        label: The likeliest label; None where its probability stays below the threshold, or the text is empty or has
            no word that the model knows.
        confidence: Its probability, after temperature scaling.
        probabilities: Label → probability.
        note: Why there is no label, or that only both ends of a long text were read; empty otherwise.
    """

    text: str
    label: str | None
    confidence: float
    probabilities: dict[str, float]
    note: str = ""

    def unless_below(self, threshold: float) -> Prediction:
        """Return this prediction, without its label if that is less probable than the threshold."""
        if self.label is None or self.confidence >= threshold:
            return self
        unsure = f"not sure enough: {self.label} {self.confidence:.0%}"
        return replace(self, label=None, note="; ".join(filter(None, [unsure, self.note])))


@dataclass(frozen=True)
class Explanation:
    """The share of each word in a prediction.

    Attributes:
        label: The label explained.
        words: The text's words, as the tokenizer joins its pieces.
        scores: How much each moved the label's logit, against a text of blanks; they sum to ``total``.
        total: The label's logit less that of the blank text.
        note: That only a part of a long text was explained; empty otherwise.
    """

    label: str
    words: list[str]
    scores: list[float]
    total: float
    note: str = ""


class SentimentPredictor:
    """A tuned model that reads raw texts.

    Args:
        model: A :class:`Classifier`, or the name or path of one; see :func:`load_classifier`.
        device: ``auto``, ``cpu``, ``cuda`` or ``mps``.
        dtype: ``auto``, ``float32`` or ``bfloat16``.
        label_names: The labels to expect, in any order.
    """

    def __init__(
        self, model: str | Path | Classifier = "builtin:movies", device: str = "auto", dtype: str = "auto",
        label_names: list[str] | None = None,
    ) -> None:  # fmt: skip
        if dtype not in DTYPES:
            raise InputError(f"dtype must be one of {', '.join(DTYPES)}. Got {dtype!r}.")
        classifier = model if isinstance(model, Classifier) else load_classifier(str(model), label_names)
        self.device = pick_device(device)
        self.classifier = classifier
        self.model = classifier.model.to(self.device, pick_dtype(dtype, self.device)).eval()
        self.tokenizer, self.card = classifier.tokenizer, classifier.card

    @torch.inference_mode()
    def logits(
        self, texts: Sequence[str], batch_size: int = 32, progress: Callable[[int], object] = lambda done: None
    ) -> tuple[NDArray[np.float32], list[int]]:
        """Return the logits of texts, before temperature scaling, and their lengths.

        Pieces of like length share a batch, so that little is padded; of a text in several pieces the mean counts.

        Args:
            texts: Raw.
            batch_size: Pieces at a time.
            progress: Called with the number of texts done since the last call.

        Returns:
            (N, number of labels), and the tokens of each whole text, 0 where the model knows none that it reads.

        Raises:
            InputError: Something else than texts was given, or batch_size is below 1.
        """
        check_texts(texts)
        check_range("batch_size", batch_size, 1)
        nothing = set(self.tokenizer.all_special_ids)  # the unknown token among them
        means, lengths = [np.zeros((0, len(self.card.label_names)), dtype=np.float32)], []
        for first in range(0, len(texts), AT_ONCE):
            encoded = encode(texts[first : first + AT_ONCE], self.tokenizer, self.card.encoding)
            pieces = np.bincount(encoded.owners)
            known = {owner for owner, ids in zip(encoded.owners, encoded.input_ids, strict=True) if set(ids) - nothing}
            sums, left = np.zeros((len(pieces), len(self.card.label_names)), dtype=np.float32), pieces.copy()
            order = sorted(range(len(encoded.input_ids)), key=lambda i: len(encoded.input_ids[i]))
            for start in range(0, len(order), batch_size):
                chosen = order[start : start + batch_size]
                owners = [encoded.owners[i] for i in chosen]
                batch = self.tokenizer.pad({"input_ids": [encoded.input_ids[i] for i in chosen]}, return_tensors="pt")
                batch.pop("token_type_ids", None)  # one segment is what every encoder assumes
                np.add.at(sums, owners, self.model(**batch.to(self.device)).logits.float().cpu().numpy())
                np.subtract.at(left, owners, 1)
                progress(int((left[list(set(owners))] == 0).sum()))
            means.append(sums / pieces[:, None])
            lengths += [length if owner in known else 0 for owner, length in enumerate(encoded.lengths)]
        return np.concatenate(means), lengths

    def predict(
        self, texts: Sequence[str], batch_size: int = 32, threshold: float = 0.0,
        progress: Callable[[int], object] = lambda done: None,
    ) -> list[Prediction]:  # fmt: skip
        """Label texts.

        Args:
            texts: Raw; an empty one, and one without a word that the model knows, gets no label.
            batch_size: Texts at a time.
            threshold: Abstain below this probability.
            progress: Called with the number of texts done since the last call.

        Raises:
            InputError: Something else than texts was given, or a number is out of its range.
        """
        check_range("threshold", threshold, 0, 1)
        logits, lengths = self.logits(texts, batch_size, progress)
        probabilities = softmax(logits / self.card.temperature)
        return [
            self._prediction(text, row, length, threshold)
            for text, row, length in zip(texts, probabilities, lengths, strict=True)
        ]

    def _prediction(self, text: str, row: NDArray[np.float32], length: int, threshold: float) -> Prediction:
        names = self.card.label_names
        shares = {name: float(p) for name, p in zip(names, row, strict=True)}
        best = int(row.argmax())
        if not length:
            return Prediction(text, None, float(row[best]), shares, UNKNOWN if clean(text) else EMPTY)
        read = Prediction(text, names[best], float(row[best]), shares, self.what_was_read(length))
        return read.unless_below(threshold)

    def what_was_read(self, length: int) -> str:
        """Say that of a text of so many tokens only both ends are read; empty if it is read whole."""
        encoding = self.card.encoding
        if length <= encoding.max_length or encoding.long_texts == "windows":
            return ""
        return f"only both ends were read, {encoding.max_length} of {length} tokens"

    def explain(self, text: str, label: str | None = None, steps: int = 64) -> Explanation:
        """Share a logit out among the words: integrated gradients (Sundararajan et al., 2017, arXiv:1703.01365).

        On the straight way from the embeddings of a blank text (padding) to those of this one, each token's part is
        (x − x′) · mean gradient along the way; the parts sum to the difference of the logits, up to the error of the
        midpoint rule.

        Args:
            text: Raw; read as in :meth:`predict`, of several windows the first.
            label: The label to explain; the predicted one by default.
            steps: Points on the way.

        Raises:
            InputError: The text is empty or has no word that the model knows, or the label is unknown.
        """
        check_texts([text])
        check_range("steps", steps, 1, 10_000)
        text = clean(text)
        if not text:
            raise InputError("There is nothing to explain in an empty text.")
        names, tokenizer = self.card.label_names, self.tokenizer
        if label is not None and label not in names:
            raise InputError(f"label must be one of {', '.join(names)}. Got {label!r}.")
        if not tokenizer.is_fast:
            raise InputError(f"The tokenizer of {self.classifier.name} does not say where its tokens stand in a text.")
        row = tokenizer(text, return_offsets_mapping=True, verbose=False)
        before, after = special_tokens(tokenizer)
        extra = before + after
        windows = cut(len(row["input_ids"]) - extra, self.card.encoding.max_length - extra, self.card.encoding)
        inside = windows[0]
        if not {row["input_ids"][before + i] for i in inside} - set(tokenizer.all_special_ids):
            raise InputError("There is nothing to explain in a text without a word that the model knows.")
        places = [
            *range(before),
            *(before + i for i in inside),
            *range(len(row["input_ids"]) - after, len(row["input_ids"])),
        ]
        ids = torch.tensor([[row["input_ids"][i] for i in places]], device=self.device)
        special = torch.ones_like(ids, dtype=torch.bool)
        special[0, before : ids.shape[1] - after] = False
        embed = self.model.get_input_embeddings()
        blank_ids = torch.where(special, ids, tokenizer.pad_token_id)
        with torch.no_grad():
            there, blank = embed(ids), embed(blank_ids)
            ends = self._logits_of(torch.cat([blank, there]))
        target = names.index(label) if label is not None else int(ends[1].argmax())
        gradients = torch.zeros_like(there)
        for alphas in ((torch.arange(steps, device=self.device) + 0.5) / steps).split(16):
            points = (blank + alphas[:, None, None].to(there.dtype) * (there - blank)).detach().requires_grad_()
            [slope] = torch.autograd.grad(self._logits_of(points)[:, target].sum(), points)
            gradients += slope.sum(0)
        scores = ((there - blank) * gradients / steps).sum(-1)[0].float().cpu()
        words, sums = _join(
            [row["offset_mapping"][before + i] for i in inside], scores[~special[0].cpu()].tolist(), text
        )
        note = self.what_was_read(len(row["input_ids"]))
        if len(windows) > 1:
            note = f"this is the first of {len(windows)} windows"
        return Explanation(names[target], words, sums, float(ends[1, target] - ends[0, target]), note)

    def _logits_of(self, embeddings: Tensor) -> Tensor:
        """Score embeddings (B, T, C): → (B, number of labels)."""
        mask = torch.ones(embeddings.shape[:2], dtype=torch.long, device=embeddings.device)
        return self.model(inputs_embeds=embeddings, attention_mask=mask).logits


def check_texts(texts: Iterable[str]) -> None:
    """Raise an :class:`InputError` unless these are several texts, each a string."""
    several = isinstance(texts, Iterable) and not isinstance(texts, str)
    wrong = [text for text in texts if not isinstance(text, str)] if several else [texts]
    if wrong:
        raise InputError(f"texts must be a list of strings. Got {wrong[0]!r:.80}.", hint="one text is a list of one")


def _join(spans: list[tuple[int, int]], scores: list[float], text: str) -> tuple[list[str], list[float]]:
    """Join tokens into words: those between blanks, and single letters of Chinese and its like."""
    words: list[str] = []
    sums: list[float] = []
    end = -1
    for (start, stop), score in zip(spans, scores, strict=True):
        wide = any(unicodedata.east_asian_width(c) in "WF" for c in text[max(start - 1, 0) : start + 1])
        if words and start <= end and not wide:
            words[-1] += text[end:stop]
            sums[-1] += score
        else:
            words.append(text[start:stop])
            sums.append(score)
        end = max(end, stop)
    return words, sums


# --- The commands -----------------------------------------------------------------------------------------------------


@dataclass
class PredictorConfig:
    """What every command here needs."""

    model: str = "builtin:movies"
    """builtin:movies, builtin:products, builtin:tweets, a run's folder, or a classifier of the hub."""
    device: str = field(default="auto", metadata=NOT_RECIPE)
    """auto, cpu, cuda or mps."""
    dtype: Literal["auto", "float32", "bfloat16"] = field(default="auto", metadata=NOT_RECIPE)
    """auto, float32 or bfloat16."""
    threads: int = field(default=0, metadata=NOT_RECIPE)
    """CPU threads; 0 leaves it to PyTorch."""
    run: str = field(default="", metadata=NOT_RECIPE)
    """Name of this run's own folder; by default the time."""

    def __post_init__(self) -> None:
        """Check the ranges."""
        check_range("threads", self.threads, 0)


@dataclass
class PredictConfig(PredictorConfig):
    """Label every text of a file or of stdin; one JSON object a text goes to stdout, or to a file."""

    input: str = "-"
    """A txt (a text a line), csv, tsv or jsonl file; - is stdin, a text a line."""
    text_column: str = ""
    """Column with the texts; found by its name where it is a usual one."""
    output: str = "-"
    """Where the predictions go, in the order of the texts, behind the other columns of a table: a jsonl or csv file,
    called .part until it is whole; - is stdout, as jsonl."""
    threshold: float = 0.0
    """Give no label below this probability, in [0, 1]."""
    batch_size: int = 32
    """Texts at a time."""

    def __post_init__(self) -> None:
        """Check the ranges."""
        super().__post_init__()
        check_range("threshold", self.threshold, 0, 1)
        check_range("batch_size", self.batch_size, 1)
        if self.output != "-" and (Path(self.output).suffix not in (".jsonl", ".csv") or Path(self.output).is_dir()):
            raise InputError(f"output must be a .jsonl or .csv file. Got {self.output!r}.")


def predict(config: PredictConfig) -> None:
    """Label texts; see :class:`PredictConfig`."""
    set_threads(config.threads)
    if config.output == "-" and sys.stdout is None:
        raise InputError("stdout is closed, so nothing can be written to it.", hint="--output FILE")
    target = Path(config.output)
    part = target.with_name(f"{target.name}.part")
    part.parent.mkdir(parents=True, exist_ok=True)
    if not os.access(part.parent, os.W_OK):  # noticed before the work, not after
        raise PermissionError(f"{part.parent} can't be written to")
    texts, others = read_texts(config.input, config.text_column)
    if config.input != "-" and any(place.exists() and place.samefile(config.input) for place in (target, part)):
        raise InputError(f"output must be another file than input. Got {config.output!r} for both.")
    predictor = SentimentPredictor(config.model, config.device, config.dtype)
    run = Run(PROJECT, MODULE, "predict", config, name=config.run)
    counts: Counter[str | None] = Counter()
    with (
        nullcontext(sys.stdout) if config.output == "-" else part.open("w", encoding="utf-8", newline="") as file,
        progress_bar(disable=len(texts) < 100) as bar,
    ):
        task = bar.add_task("predict", total=len(texts), figures="")
        for first in range(0, len(texts), AT_ONCE):  # what is done is written, whatever happens later
            chosen, beside = texts[first : first + AT_ONCE], others[first : first + AT_ONCE]
            predictions = predictor.predict(
                chosen, config.batch_size, config.threshold, lambda done: bar.advance(task, done)
            )
            if target.suffix == ".csv":
                file.write(as_csv(predictions, beside, header=first == 0))
            else:
                rows = (other | asdict(p) for other, p in zip(beside, predictions, strict=True))
                file.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
            file.flush()
            counts.update(p.label for p in predictions)
    if config.output != "-":
        part.replace(target)
    labels = {f"labelled {name}": counts[name] for name in predictor.card.label_names}
    metrics = {"texts": len(texts), **labels, "abstained": counts[None]}
    run.finish(model=predictor.classifier.name, data=config.input, seed=0, metrics=metrics)
    logger.info(", ".join(f"{name} {count:,}" for name, count in metrics.items()))


def as_csv(predictions: Sequence[Prediction], others: Sequence[Mapping[str, Any]] = (), *, header: bool = True) -> str:
    """Write predictions as a table: other columns, text, label, confidence, a column of probabilities a label, note.

    A spreadsheet would run a text that begins as a formula does: it gets ``'`` in front (OWASP, CSV injection).
    """

    def safe(cell: object) -> str:
        return f"'{cell}" if str(cell).startswith(FORMULA) and not NUMBER.fullmatch(str(cell)) else str(cell)

    file = io.StringIO()
    names = list(predictions[0].probabilities) if predictions else []
    columns = ["text", "label", "confidence", *(f"p({name})" for name in names), "note"]
    writer = csv.writer(file)
    if header:
        writer.writerow(map(safe, [*(others[0] if others else ()), *columns]))
    for p, other in zip(predictions, others or [{}] * len(predictions), strict=True):
        shares = [f"{p.probabilities[name]:.4f}" for name in names]
        writer.writerow(map(safe, [*other.values(), p.text, p.label or "", f"{p.confidence:.4f}", *shares, p.note]))
    return file.getvalue()


def read_texts(place: str, text_column: str = "") -> tuple[list[str], list[dict[str, Any]]]:
    """Read the texts to label: lines of stdin (``-``) or of a file, or a column of a table.

    Returns:
        The texts, and the other cells of each one's row; see :func:`other_columns`.

    Raises:
        InputError: There is no such column, the file is not UTF-8, or it holds no text.
        OSError: It can't be read.
    """
    name = "stdin" if place == "-" else place
    try:
        if Path(place).name.removesuffix(".gz").endswith((".csv", ".tsv", ".jsonl")):
            table = read_table(Path(place))
            column = pick_column(table, "text", text_column, place)
            texts, others = list(column), other_columns(table, column.name)
        else:
            if place == "-" and sys.stdin is None:
                raise InputError("stdin is closed, so there are no texts in it.", hint="--input FILE")
            if place == "-" and sys.stdin.isatty():
                logger.info("reading texts from the terminal, one a line; Ctrl-D ends")
            raw = sys.stdin.buffer.read() if place == "-" else Path(place).read_bytes()
            # Not splitlines, which also divides at characters that may stand inside a text.
            texts = raw.decode("utf-8-sig").replace("\r\n", "\n").removesuffix("\n").split("\n")
            others = [{} for _ in texts]
    except UnicodeDecodeError as error:
        raise InputError(f"{name} is not UTF-8 text: {error}.", hint="convert it, e.g. with iconv") from None
    except OSError as error:
        raise OSError(f"{name} can't be read: {error.strerror or error}.") from None
    if not any(map(clean, texts)):
        raise InputError(f"There are no texts in {name}.")
    return texts, others


def other_columns(table: pd.DataFrame, text_column: str) -> list[dict[str, Any]]:
    """Return the rows of a table without their texts; a column called as one of ours gets ``input_`` in front."""
    others = table.drop(columns=text_column)
    names: list[str] = []
    for name in others.columns:
        while name in OURS or name.startswith("p(") or name in names:
            name = f"input_{name}"
        names.append(name)
    return others.set_axis(names, axis=1).to_dict("records")


@dataclass
class ExplainConfig(PredictorConfig):
    """Show which words a prediction comes from, as numbers on stdout and as a picture."""

    text: str = (
        "I expected little, and the first half hour is slow. But the cast is wonderful, the dialogue never puts a foot "
        "wrong, and the ending left me in tears. Not bad at all for a first film!"
    )
    """The text."""
    label: str = ""
    """The label to explain; by default the predicted one."""
    steps: int = 64
    """Points of the integral: more is more exact."""

    def __post_init__(self) -> None:
        """Check the ranges."""
        super().__post_init__()
        check_range("steps", self.steps, 1, 10_000)


def explain(config: ExplainConfig) -> None:
    """Explain a prediction; see :class:`ExplainConfig`."""
    set_threads(config.threads)
    predictor = SentimentPredictor(config.model, config.device, config.dtype)
    explanation = predictor.explain(config.text, config.label or None, config.steps)
    [prediction] = predictor.predict([config.text])
    run = Run(PROJECT, MODULE, "explain", config, name=config.run)
    if explanation.note:
        logger.info("%s", explanation.note)
    for word, score in zip(explanation.words, explanation.scores, strict=True):
        sys.stdout.write(f"{score:+8.3f}  {word}\n")
    title = f"what speaks for “{explanation.label}” ({prediction.probabilities[explanation.label]:.0%})"
    plot_attributions(explanation.words, explanation.scores, run.folder / "attributions.png", title)
    error = abs(sum(explanation.scores) - explanation.total)
    metrics = {"total": explanation.total, "error": error, "confidence": prediction.confidence}
    run.finish(model=predictor.classifier.name, data="text", seed=0, metrics=metrics)
    logger.info("%s; saved %s", title, run.folder / "attributions.png")


if __name__ == "__main__":
    run_commands({"predict": predict, "explain": explain}, module=MODULE, extra="sentiment")
