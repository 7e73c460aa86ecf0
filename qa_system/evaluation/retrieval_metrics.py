"""How well passages are found: figures as trec_eval computes them, with intervals, tests and latency.

    python -m qa_system.evaluation.retrieval_metrics evaluate
    python -m qa_system.evaluation.retrieval_metrics evaluate --data scifact/ --modes dense,hybrid
    python -m qa_system.evaluation.retrieval_metrics evaluate --data dev-v2.0.json --metrics nDCG@10,recall@100

    print(report({"mine": {"q1": {"d7": 2.5, "d2": 1.1}}}, {"q1": {"d2": 1}}))

nDCG: Järvelin and Kekäläinen, 2002. Randomization test: Smucker et al., 2007. Correction for several tests: Holm, 1979.
"""

from __future__ import annotations

import functools
import hashlib
import json
import logging
import math
import re
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike

from qa_system.document_processor.pdf_reader import Document, Page
from qa_system.document_processor.text_splitter import Chunk
from shared.config import check_range, run_commands
from shared.errors import InputError
from shared.logs import progress_bar
from shared.results import Run, write_atomic

PROJECT = "qa_system"
MODULE = f"{PROJECT}.evaluation.retrieval_metrics"
NOT_RECIPE = {"recipe": False}
DEPTH = 100  # chunks that are fetched a query, or three times the largest cutoff
Scores = Mapping[str, Mapping[str, float]]  # query → document → score, higher is better
Judgments = Mapping[str, Mapping[str, int]]  # query → document → grade; 0 or less is not relevant
Measure = Callable[[Sequence[str], Mapping[str, int], int], float]
logger = logging.getLogger(MODULE)


# --- Figures of one query: of a ranking (best first), the judgments, and a cutoff k -----------------------------------


def recall(ranking: Sequence[str], judged: Mapping[str, int], k: int) -> float:
    """Return the share of all relevant documents that is among the first k; 0 where there are none."""
    relevant = sum(grade > 0 for grade in judged.values())
    return sum(judged.get(id, 0) > 0 for id in ranking[:k]) / relevant if relevant else 0.0


def precision(ranking: Sequence[str], judged: Mapping[str, int], k: int) -> float:
    """Return the share of relevant documents in k, however many were found."""
    return sum(judged.get(id, 0) > 0 for id in ranking[:k]) / k


def reciprocal_rank(ranking: Sequence[str], judged: Mapping[str, int], k: int) -> float:
    """Return 1 / rank of the first relevant document, 0 where none is among the first k."""
    return next((1 / rank for rank, id in enumerate(ranking[:k], 1) if judged.get(id, 0) > 0), 0.0)


def average_precision(ranking: Sequence[str], judged: Mapping[str, int], k: int) -> float:
    """Return the sum of precisions at the ranks, up to k, of relevant documents, over the number of these in all."""
    found, total = 0, 0.0
    for rank, id in enumerate(ranking[:k], 1):
        if judged.get(id, 0) > 0:
            found += 1
            total += found / rank
    relevant = sum(grade > 0 for grade in judged.values())
    return total / relevant if relevant else 0.0


def ndcg(ranking: Sequence[str], judged: Mapping[str, int], k: int, *, exponential: bool = False) -> float:
    """Return DCG@k = Σ gain / log2(rank + 1) over that of the best possible ranking.

    Args:
        ranking: Ids, best first.
        judged: Document → grade.
        k: Ranks that count.
        exponential: Whether the gain is 2^grade − 1 (Burges et al., 2005); by default it is the grade itself, as in
            trec_eval and BEIR.
    """

    def dcg(grades: Sequence[int]) -> float:
        gains = [2.0**grade - 1 if exponential else grade for grade in grades]
        return sum(gain / math.log2(rank + 1) for rank, gain in enumerate(gains, 1) if gain > 0)

    ideal = dcg(sorted(judged.values(), reverse=True)[:k])
    return dcg([judged.get(id, 0) for id in ranking[:k]]) / ideal if ideal else 0.0


METRICS: dict[str, Measure] = {
    "nDCG": ndcg, "nDCG-exp": functools.partial(ndcg, exponential=True), "recall": recall, "precision": precision,
    "MRR": reciprocal_rank, "MAP": average_precision,
}  # fmt: skip
DEFAULT_METRICS = ("nDCG@10", "recall@10", "precision@10", "MRR@10", "MAP@10")


def parsed(metric: str) -> tuple[Measure, int]:
    """Return the function and the cutoff of a name such as ``nDCG@10``.

    Raises:
        InputError: There is no such metric.
    """
    name, _, cutoff = metric.partition("@")
    if name not in METRICS or not re.fullmatch("[1-9][0-9]{0,8}", cutoff):
        raise InputError(f"A metric must be one of {', '.join(METRICS)}, followed by @ and a cutoff. Got {metric!r}.")
    return METRICS[name], int(cutoff)


def ranked(scores: Mapping[str, float]) -> list[str]:
    """Order ids by score, best first; equal scores by id, descending, as trec_eval does (which compares 32 bits)."""
    if not all(map(math.isfinite, scores.values())):
        raise InputError("Scores must be finite numbers.")
    return sorted(scores, key=lambda id: (scores[id], id), reverse=True)


def per_query(run: Mapping[str, Mapping[str, float]], qrels: Judgments, metric: str) -> dict[str, float]:
    """Measure every query that is judged; one for which nothing was found, or nothing is relevant, counts as 0."""
    measure, k = parsed(metric)
    return {query: measure(ranked(run.get(query, {})), judged, k) for query, judged in qrels.items()}


# --- How sure a figure is ---------------------------------------------------------------------------------------------


def bootstrap_interval(
    values: ArrayLike, *, repeats: int = 10_000, level: float = 0.95, seed: int = 0
) -> tuple[float, float]:
    """Return the percentile bootstrap's confidence interval of a mean (Efron, 1979).

    Args:
        values: (N,), one a query.
        repeats: Samples of N, drawn with replacement.
        level: Part of the samples' means inside the interval, in (0, 1).
        seed: Of the drawing.
    """
    values, rng = np.asarray(values, dtype=np.float64), np.random.default_rng(seed)
    draws = (rng.integers(len(values), size=(some, len(values))) for some in _portions(repeats, len(values)))
    means = np.concatenate([values[rows].mean(axis=1) for rows in draws])
    low, high = np.quantile(means, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def randomization_test(one: ArrayLike, other: ArrayLike, *, repeats: int = 10_000, seed: int = 0) -> float:
    """Test whether two systems differ in the mean over the same queries, by a paired randomization test.

    If they did not, it would be chance which of a query's two values is whose: the signs of the differences are drawn
    at random, and p = (b + 1) / (n + 1), where b of n draws differ at least as much as what was measured.

    Args:
        one: (N,), one a query.
        other: (N,), of the same queries.
        repeats: Draws, n.
        seed: Of the drawing.

    Returns:
        The two-sided p, in (0, 1].
    """
    rng = np.random.default_rng(seed)
    differences = np.asarray(one, dtype=np.float64) - np.asarray(other, dtype=np.float64)
    least = abs(differences.sum()) - 1e-12 * np.abs(differences).sum()  # equal, whatever the order of summing
    draws = (rng.integers(2, size=(some, len(differences))) for some in _portions(repeats, len(differences)))
    extreme = sum(int((np.abs((2 * signs - 1) @ differences) >= least).sum()) for signs in draws)
    return (extreme + 1) / (repeats + 1)


def _portions(repeats: int, size: int) -> Iterator[int]:
    """Divide the draws so that a million numbers are in memory at once."""
    step = max(1, 10**6 // max(size, 1))
    return (min(step, repeats - first) for first in range(0, repeats, step))


def holm(p_values: Sequence[float]) -> list[float]:
    """Correct p values for their number: below 0.05 they hold together, with an error in at most 5 % of all such tests.

    The i-th smallest of m is multiplied by m − i + 1, and is never below a smaller one's.
    """
    corrected, largest = [0.0] * len(p_values), 0.0
    for position, index in enumerate(sorted(range(len(p_values)), key=lambda i: p_values[i])):
        largest = max(largest, min(1.0, (len(p_values) - position) * p_values[index]))
        corrected[index] = largest
    return corrected


def latency(seconds: ArrayLike) -> tuple[float, float]:
    """Return the median and the 95th percentile of times, in milliseconds."""
    p50, p95 = np.percentile(np.asarray(seconds, dtype=np.float64) * 1000, [50, 95])
    return float(p50), float(p95)


# --- The report -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Figure:
    """A system's mean of a metric over all queries.

    Attributes:
        metric: Its name.
        system: Whose.
        value: The mean, in [0, 1].
        low: Of its 95 % confidence interval.
        high: Likewise.
        p: Of the test against the first system, corrected by Holm for all those in this metric; None for the first.
    """

    metric: str
    system: str
    value: float
    low: float
    high: float
    p: float | None


@dataclass(frozen=True)
class Report:
    """Systems side by side; printed, it is a table.

    Attributes:
        queries: How many were judged.
        figures: By metric, then by system, in the order given.
        latencies: System → median and 95th percentile of a query's time, in milliseconds.
    """

    queries: int
    figures: list[Figure]
    latencies: dict[str, tuple[float, float]]

    def __str__(self) -> str:
        wide = max(len(figure.system) for figure in self.figures)
        lines = [f"{'metric':13} {'system':{wide}}  mean    95 % interval   p (Holm)"]
        for f in self.figures:
            lines += [""] * (f.p is None)
            p = "" if f.p is None else f"{f.p:.4f}" + " *" * (f.p < 0.05)
            lines.append(f"{f.metric:13} {f.system:{wide}}  {f.value:.4f}  [{f.low:.3f}, {f.high:.3f}]  {p}".rstrip())
        lines += [""] * bool(self.latencies)
        for name, (p50, p95) in self.latencies.items():
            lines.append(f"{'ms a query':13} {name:{wide}}  p50 {p50:.1f}, p95 {p95:.1f}")
        return "\n".join(lines)

    def metrics(self) -> dict[str, float]:
        """Return every number under a name of its own, for ``results.json``."""
        named: dict[str, float] = {"queries": self.queries}
        for f in self.figures:
            parts = {"": f.value, " low": f.low, " high": f.high, " p": f.p}
            named |= {f"{f.system} {f.metric}{part}": value for part, value in parts.items() if value is not None}
        for system, (p50, p95) in self.latencies.items():
            named |= {f"{system} ms p50": p50, f"{system} ms p95": p95}
        return named


def report(
    runs: Mapping[str, Scores], qrels: Judgments, metrics: Sequence[str] = DEFAULT_METRICS,
    seconds: Mapping[str, Sequence[float]] | None = None, *, repeats: int = 10_000, seed: int = 0,
) -> Report:  # fmt: skip
    """Measure systems on the same queries, and compare every other one with the first.

    Args:
        runs: System → query → document → score. Queries without judgments are left out.
        qrels: Query → document → grade.
        metrics: Names as in :data:`METRICS`, with a cutoff.
        seconds: System → time of each query.
        repeats: Draws of each interval and test.
        seed: Of the drawing.

    Raises:
        InputError: There is no run or no judged query, a metric is unknown, or a score is not finite.
    """
    if not runs or not qrels:
        raise InputError("There must be a run and a judged query at least.")
    figures = []
    for metric in metrics:
        values = {system: list(per_query(run, qrels, metric).values()) for system, run in runs.items()}
        first, *others = values
        p_values = holm([randomization_test(values[first], values[o], repeats=repeats, seed=seed) for o in others])
        for system, p in zip(values, [None, *p_values], strict=True):
            interval = bootstrap_interval(values[system], repeats=repeats, seed=seed)
            figures.append(Figure(metric, system, float(np.mean(values[system])), *interval, p))
    return Report(len(qrels), figures, {system: latency(times) for system, times in (seconds or {}).items()})


def plot_report(report: Report, path: Path, title: str = "") -> None:
    """Draw every figure as a bar with its interval, the systems side by side in each metric."""
    from matplotlib import colormaps

    from shared.plots import drawing

    metrics, systems = (list(dict.fromkeys(getattr(f, key) for f in report.figures)) for key in ("metric", "system"))
    width = 0.82 / len(systems)
    with drawing(path, 2.2 + len(metrics) * max(1.2, 0.42 * len(systems)), 4.4) as figure:
        axes = figure.add_subplot()
        for i, system in enumerate(systems):
            own = [f for f in report.figures if f.system == system]
            places = np.arange(len(metrics)) + width * (i - (len(systems) - 1) / 2)
            color = colormaps["Blues"](0.35 + 0.6 * i / max(len(systems) - 1, 1))
            ms = f", {report.latencies[system][0]:.0f} ms" if system in report.latencies else ""
            axes.bar(places, [f.value for f in own], 0.92 * width, label=f"{system}{ms}", color=color)
            errors = [[max(0.0, f.value - f.low) for f in own], [max(0.0, f.high - f.value) for f in own]]
            axes.errorbar(places, [f.value for f in own], errors, fmt="none", ecolor="#444444", elinewidth=1, capsize=2)
            for x, f in zip(places, own, strict=True):
                axes.text(x, f.high + 0.01, f"{f.value:.3f}".lstrip("0"), ha="center", va="bottom", fontsize=7)
        axes.set_xticks(range(len(metrics)), metrics)
        axes.set(ylim=(0, max(f.high for f in report.figures) + 0.08), ylabel="mean and 95 % interval")
        axes.spines[["top", "right"]].set_visible(False)
        axes.set_title(title, parse_math=False, fontsize=11)
        figure.legend(loc="outside lower center", ncols=min(len(systems), 5), frameon=False)


# --- Test collections -------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Collection:
    """Documents, queries, and which belong together.

    Attributes:
        documents: To be searched.
        queries: Id → text.
        qrels: Query → unit → grade.
        pages: Whether a unit is a page, ``name#number``; else it is a document, by name.
    """

    documents: list[Document]
    queries: dict[str, str]
    qrels: dict[str, dict[str, int]]
    pages: bool = False

    def units(self, chunk: Chunk) -> list[str]:
        """Return the units that a chunk stands for; pages that share one tie, and the later ranks first, as by id."""
        return [f"{chunk.document_name}#{page}" for page in chunk.pages] if self.pages else [chunk.document_name]


def text_document(name: str, text: str) -> Document:
    """Make a document of one page from a text."""
    digest = hashlib.sha256(f"{name}\n{text}".encode("utf-8", "backslashreplace")).hexdigest()
    return Document(digest, name, text, (Page(1, "1", 0, len(text), 0, 0, "txt"),), {})


def read_rows(path: Path, keys: Sequence[str]) -> Iterator[dict[str, Any]]:
    """Yield the objects of a JSONL file, each with these keys."""
    for number, line in enumerate(read_text(path).split("\n"), 1):
        if line.strip():
            try:
                row = json.loads(line)
            except (ValueError, RecursionError):
                row = None
            if not isinstance(row, dict) or not all(key in row for key in keys):
                raise InputError(f"Line {number} of {path} must be a JSON object with {', '.join(keys)}.")
            yield row


def read_text(path: Path) -> str:
    """Read a UTF-8 file."""
    try:
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise InputError(f"{path} is not UTF-8 text: {error}.") from None


def read_beir(folder: Path, split: str = "test") -> Collection:
    """Read a data set in BEIR's format: ``corpus.jsonl``, ``queries.jsonl`` and ``qrels/<split>.tsv``.

    Args:
        folder: That holds the files.
        split: Whose queries to take.

    Raises:
        InputError: A line is not as it must be, or a query is judged that is not there.
        FileNotFoundError: One of the files is missing.
    """
    texts = {str(row["_id"]): f"{row.get('title') or ''}\n\n{row['text']}".strip()
             for row in read_rows(folder / "corpus.jsonl", ["_id", "text"])}  # fmt: skip
    queries = {str(row["_id"]): str(row["text"]) for row in read_rows(folder / "queries.jsonl", ["_id", "text"])}
    qrels: dict[str, dict[str, int]] = {}
    path = folder / "qrels" / f"{split}.tsv"
    for number, line in enumerate(read_text(path).split("\n"), 1):
        match = re.fullmatch(r"([^\t]+)\t([^\t]+)\t(-?\d+)\s*", line)
        if match and match[1] in queries:
            qrels.setdefault(match[1], {})[match[2]] = int(match[3])
        elif line.strip() and number > 1:  # the first holds the names of the columns
            raise InputError(f"Line {number} of {path} must be a known query, a document and a grade, by tabs.")
    unknown = len({id for judged in qrels.values() for id in judged} - texts.keys())
    if unknown:
        logger.warning("%s judges %d documents that are not in the corpus; they count as not found", path, unknown)
    documents = [text_document(id, text) for id, text in texts.items() if text]
    return Collection(documents, {id: queries[id] for id in qrels}, qrels)


def load_collection(name: str, split: str = "test") -> Collection:
    """Load what to search and what to find: a folder in BEIR's format, or anything that ``load_questions`` takes.

    Of questions, the page that holds the answer is to be found; those without an answer are left out.
    """
    from qa_system.evaluation.answer_quality import load_questions  # which needs the statistics here

    if (Path(name) / "corpus.jsonl").is_file():
        return read_beir(Path(name), split)
    documents, questions = load_questions(name)
    known = {question.id: question for question in questions if question.answerable and question.document}
    qrels = {id: {f"{question.document}#{question.page}": 1} for id, question in known.items()}
    return Collection(documents, {id: question.question for id, question in known.items()}, qrels, pages=True)


# --- The command ------------------------------------------------------------------------------------------------------


@dataclass
class EvaluateConfig:
    """Measure how well each way of searching finds what is judged relevant, and compare them with the first."""

    data: str = "builtin:questions"
    """builtin:questions, a folder in BEIR's format, JSON of SQuAD, or a folder with questions.jsonl and documents."""
    split: str = "test"
    """Of a folder in BEIR's format."""
    modes: list[str] = field(default_factory=lambda: ["sparse", "dense", "hybrid-rrf", "hybrid-min-max", "hybrid"])
    """sparse (BM25), dense (embeddings), hybrid (both), or hybrid with another fusion; the first is compared with."""
    metrics: list[str] = field(default_factory=lambda: list(DEFAULT_METRICS))
    """nDCG (linear gain), nDCG-exp, recall, precision, MRR or MAP, each with @ and a cutoff."""
    model: str = "builtin:minilm"
    """builtin:minilm (all-MiniLM-L6-v2), a folder, or any hub id of sentence-transformers."""
    backend: Literal["torch", "onnx-int8"] = "torch"
    """torch, or onnx-int8: faster on CPUs."""
    max_tokens: int = 200
    """Most tokens of a chunk; a document counts as its best chunk."""
    device: str = field(default="auto", metadata=NOT_RECIPE)
    """auto, cpu, cuda or mps."""
    run: str = field(default="", metadata=NOT_RECIPE)
    """Name of this run's own folder; by default the time."""

    def __post_init__(self) -> None:
        """Check the names and ranges."""
        check_range("max_tokens", self.max_tokens, 16)
        modes = ("sparse", "dense", "hybrid", "hybrid-rrf", "hybrid-min-max")
        if not self.modes or not set(self.modes) <= set(modes):
            raise InputError(f"modes must be some of {', '.join(modes)}. Got {', '.join(self.modes)}.")
        if not self.metrics:
            raise InputError("metrics must name one at least.")
        for metric in self.metrics:
            parsed(metric)


def search_all(
    collection: Collection, retrievers: Mapping[str, Any], depth: int = DEPTH
) -> tuple[dict[str, dict[str, dict[str, float]]], dict[str, list[float]]]:
    """Ask every query of every retriever, in turns, so that a machine that slows down slows all of them.

    Args:
        collection: The queries.
        retrievers: Name → anything with ``search(question, k)`` that returns hits.
        depth: Chunks to fetch; of a unit, the best one counts.

    Returns:
        Name → query → unit → score, and name → seconds of each query.
    """
    runs: dict[str, dict[str, dict[str, float]]] = {name: {} for name in retrievers}
    seconds: dict[str, list[float]] = {name: [] for name in retrievers}
    with progress_bar() as bar:
        for id in bar.track(collection.queries, task_id=bar.add_task("search", figures="")):
            for name, retriever in retrievers.items():
                started = time.perf_counter()
                hits = retriever.search(collection.queries[id], depth)
                seconds[name].append(time.perf_counter() - started)
                runs[name][id] = {unit: hit.score for hit in reversed(hits) for unit in collection.units(hit.chunk)}
    return runs, seconds


def evaluate(config: EvaluateConfig) -> None:
    """Measure retrieval; see :class:`EvaluateConfig`."""
    from qa_system.retrieval.dense_retrieval import Library, SentenceEmbeddings
    from qa_system.retrieval.sparse_retrieval import HybridRetriever

    collection = load_collection(config.data, config.split)
    if not collection.queries:
        raise InputError(f"{config.data} has no judged query.")
    embedding = SentenceEmbeddings(config.model, config.backend, config.device, show_progress=True)
    run = Run(PROJECT, MODULE, "evaluate", config, name=config.run)
    library = Library(None, embedding, max_tokens=config.max_tokens)
    library.add_documents([(document, None) for document in collection.documents])
    retrievers = {}
    for name in config.modes:
        mode, _, fusion = name.partition("-")
        retrievers[name] = HybridRetriever(store=library.store, mode=mode, fusion=fusion or "z-score")
        retrievers[name].search(next(iter(collection.queries.values())), 1)  # builds its index before time is taken
    depth = max(DEPTH, 3 * max(parsed(metric)[1] for metric in config.metrics))
    runs, seconds = search_all(collection, retrievers, depth)
    table = report(runs, collection.qrels, config.metrics, seconds)
    values = {m: {name: per_query(one, collection.qrels, m) for name, one in runs.items()} for m in config.metrics}
    lines = [
        {"id": id, "query": query, "judged": collection.qrels[id],
         **{m: {name: its[id] for name, its in values[m].items()} for m in values},
         "found": {name: ranked(one[id])[:10] for name, one in runs.items()}}
        for id, query in collection.queries.items()
    ]  # fmt: skip
    write_atomic(run.folder / "queries.jsonl", "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in lines))
    plot_report(table, run.folder / "retrieval.png", f"{Path(config.data).name}: {len(collection.queries):,} queries")
    metrics = {"documents": len(collection.documents), "chunks": len(library.store), **table.metrics()}
    run.finish(model=embedding.name, data=config.data, seed=0, metrics=metrics)
    sys.stdout.write(f"{table}\n")
    logger.info("* differs from %s at the 5 %% level, by a paired randomization test; saved in %s", config.modes[0],
                run.folder)  # fmt: skip


if __name__ == "__main__":
    run_commands({"evaluate": evaluate}, module=MODULE, extra="qa")
