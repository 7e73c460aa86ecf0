"""How varied generated texts are, and how near to what people write.

    python -m gpt_text_generation.evaluation.diversity_metrics measure
    python -m gpt_text_generation.evaluation.diversity_metrics measure --data samples.jsonl --by strategy
    python -m gpt_text_generation.evaluation.diversity_metrics measure --data texts/ --references human.txt --model gpt2

    distinct-n    different n-grams / n-grams, of all texts together            Li et al., 2015, 1510.03055
    repetition-n  mean over texts of 1 − different n-grams / n-grams            Welleck et al., 2019, 1908.04319
    self-BLEU     mean over texts of their BLEU-4 against others                Zhu et al., 2018, 1802.01886
    Zipf          s of frequency ∝ 1 / rank^s, the slope of logs on logs        Holtzman et al., 2019, 1904.09751
    MAUVE         area under two divergences' curve, 1 where nothing differs    Pillutla et al., 2021, 2102.01454

(the numbers are arXiv's). Most of them depend on more than the texts. Distinct-n falls with every token, so texts are
cut to one length, and all groups have one number of texts. Self-BLEU depends on references, smoothing and casing: each
text has 20 others, zero counts are 0.1 as in the paper's own code, letters are small. High is no aim in itself: random
words are as varied as can be. What people wrote, measured alike, is the value to be near to.

Where there is nothing to measure, a figure is None. No text: all of them. One text: self-BLEU, and every interval.
Empty texts count as ``empty`` and in the mean length; elsewhere they are left out, as are those shorter than the cut.
Texts of one word: all that counts pairs and longer.
"""

from __future__ import annotations

import json
import logging
import math
import re
import sys
import unicodedata
import zlib
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from shared.config import check_range, run_commands
from shared.errors import InputError
from shared.results import Run
from shared.sources import Source, load_text, resolve

if TYPE_CHECKING:
    from gpt_text_generation.text_generator import LanguageModel

PROJECT = "gpt_text_generation"
MODULE = "gpt_text_generation.evaluation.diversity_metrics"
NOT_RECIPE = {"recipe": False}
FIGURES = ("length", "distinct_1", "distinct_2", "distinct_3", "repetition_4", "self_bleu", "zipf", "mauve")
REFERENCES = 20  # other texts that self-BLEU compares each with
ZIPF_RANKS = 5000  # the rest are words seen once or twice, whose ranks are chance
FEW = 1000  # texts; MAUVE's authors take 5,000 and find it too kind with fewer
Text = str | Sequence[str]  # a text, or its tokens
Floats = NDArray[np.float64]
logger = logging.getLogger(MODULE)

# --- Tokens -----------------------------------------------------------------------------------------------------------

# Han, kana and bopomofo, which are written without blanks. Hangul is written with them.
CJK = ("\u2e80-\u2fdf\u3005-\u3007\u3040-\u30ff\u3100-\u312f\u31a0-\u31bf\u31f0-\u31ff\u3400-\u4dbf\u4e00-\u9fff"
       "\uf900-\ufaff\uff66-\uff9f\U00020000-\U0003ffff")  # fmt: skip
TOKEN = re.compile(rf"[{CJK}]|(?:(?![{CJK}])\w)+(?:['’](?:(?![{CJK}])\w)+)*|[^\w\s]")


def tokens(text: Text) -> list[str]:
    """Split a text into words, punctuation marks and Chinese or Japanese characters, in small letters.

    Tokens come back as they are.
    """
    if not isinstance(text, str):
        return list(text)
    return TOKEN.findall(unicodedata.normalize("NFC", text).lower())


def beginning(text: Text, count: int) -> str:
    """Return a text up to its ``count``-th token."""
    if not isinstance(text, str):
        return " ".join(text[:count])
    text = unicodedata.normalize("NFC", text)
    end = 0
    for _, match in zip(range(count), TOKEN.finditer(text), strict=False):
        end = match.end()
    return text[:end]


def common_length(*groups: Sequence[Text], share: float = 0.9) -> int:
    """Return the most tokens that this share of each group's texts has, empty ones aside; 0 where all are empty."""
    lengths = [sorted(filter(None, (len(tokens(text)) for text in texts)), reverse=True) for texts in groups]
    return min((its[math.ceil(share * len(its)) - 1] for its in lengths if its), default=0)


def ngrams(text: Text, n: int) -> Iterator[tuple[str, ...]]:
    """Return the n-grams of a text, in order: none where it has fewer than n tokens."""
    its = tokens(text)
    return zip(*(its[i:] for i in range(n)), strict=False)


# --- Figures ----------------------------------------------------------------------------------------------------------


def distinct_n(texts: Sequence[Text], n: int) -> float | None:
    """Return different n-grams / n-grams, of all texts together, in (0, 1]; None without any.

    Li et al. divide by tokens, of which each text has n − 1 more: then even texts without repetition stay below 1.
    Texts of different lengths can't be compared by it: it falls with each token.
    """
    seen = Counter(gram for text in texts for gram in ngrams(text, n))
    return len(seen) / seen.total() if seen else None


def repetition_n(text: Text, n: int) -> float | None:
    """Return 1 − different n-grams / n-grams of one text, in [0, 1); None without any. The paper takes n = 4."""
    different = distinct_n([text], n)
    return None if different is None else 1 - different


def zipf_coefficient(texts: Sequence[Text], ranks: int = ZIPF_RANKS) -> float | None:
    """Return s, where the r-th most frequent token comes about 1 / r^s as often as the first; natural text is near 1.

    It is the slope, less its sign, of log frequency on log rank by least squares. None with fewer than two different
    tokens, which make no line; 0 where all are equally frequent.

    Args:
        texts: Counted together.
        ranks: The most frequent tokens that count, >= 2.
    """
    return _zipf(np.array(list(Counter(token for text in texts for token in tokens(text)).values())), ranks)


def _zipf(counts: NDArray[np.integer], ranks: int = ZIPF_RANKS) -> float | None:
    frequencies = np.sort(counts[counts > 0])[::-1][:ranks]
    if len(frequencies) < 2:
        return None
    x, y = np.log(np.arange(1, len(frequencies) + 1)), np.log(frequencies)
    x -= x.mean()
    return float(-(x @ y) / (x @ x)) + 0.0


def self_bleu(texts: Sequence[Text], references: int = REFERENCES, *, seed: int = 0) -> list[float]:
    """Return each text's BLEU-4 against others, in [0, 1]: 1 where they hold all that it says. No texts, or one: none.

    It is sacrebleu's, on :func:`tokens`, with zero counts as 0.1 (method 1 of Chen and Cherry, 2014, which Zhu et al.
    take) and, for shorter texts than four tokens, as many orders as there are.

    Args:
        texts: At least one more than ``references``, or all others are taken, which makes it lower.
        references: Others to compare each with, >= 1. Every text is one equally often.
        seed: Decides which.
    """
    from sacrebleu.metrics.bleu import BLEU

    if len(texts) < 2:
        return []
    bleu = BLEU(tokenize="none", smooth_method="floor", smooth_value=0.1, effective_order=True, force=True)
    joined = [" ".join(tokens(text)) for text in texts]
    order = np.random.default_rng(seed).permutation(len(texts))
    ring = [joined[i] for i in np.concatenate([order, order])]
    count = min(references, len(texts) - 1)
    scores = [0.0] * len(texts)
    for place, row in enumerate(order):
        scores[row] = bleu.sentence_score(joined[row], ring[place + 1 : place + 1 + count]).score / 100
    return scores


# --- MAUVE ------------------------------------------------------------------------------------------------------------


def hashed_features(texts: Sequence[Text], size: int = 512) -> Floats:
    """Return (N, size): words and pairs of words, counted at places that a hash gives them.

    They tell texts of other words apart, and know nothing of meaning or order beyond that.
    """
    features = np.zeros((len(texts), size))
    for row, text in zip(features, texts, strict=True):
        for n in (1, 2):
            for gram in ngrams(text, n):
                code = zlib.crc32(" ".join(gram).encode("utf-8", "backslashreplace"))
                row[code % size] += 1 if code & 1 << 31 else -1  # so that two at one place don't look like one twice
    return features


def hidden_features(texts: Sequence[str], language_model: LanguageModel, batch_size: int = 16) -> Floats:
    """Return (N, C): what a language model's last layer holds at the last token of each text, as MAUVE's authors do."""
    import torch

    ids = [language_model.encode(text or " ")[: language_model.context] for text in texts]
    order = sorted(range(len(ids)), key=lambda i: len(ids[i]))
    features: list[Any] = [None] * len(ids)
    with torch.inference_mode():
        for first in range(0, len(order), batch_size):
            rows = order[first : first + batch_size]
            width = len(ids[rows[-1]])
            # A token sees none after it, so padding on the right changes nothing
            input_ids = torch.tensor([ids[i] + [0] * (width - len(ids[i])) for i in rows])
            mask = torch.tensor([[1] * len(ids[i]) + [0] * (width - len(ids[i])) for i in rows])
            device = language_model.device
            output = language_model.model(
                input_ids=input_ids.to(device), attention_mask=mask.to(device), output_hidden_states=True
            )
            for row, i in enumerate(rows):
                features[i] = output.hidden_states[-1][row, len(ids[i]) - 1].double().cpu().numpy()
    return np.stack(features)


def mauve(
    texts: Sequence[Text], references: Sequence[Text], *, language_model: LanguageModel | None = None, seed: int = 0
) -> float | None:
    """Return how near the distribution of texts is to that of references, in (0, 1]; None where either has none.

    Both are divided into clusters, and their histograms compared. With fewer than some thousand texts it is too high
    and uncertain, which is logged. Values of other features, numbers and lengths of texts can't be compared.

    Args:
        texts: What was generated.
        references: What people wrote; as many are best.
        language_model: Gives :func:`hidden_features`; without one, :func:`hashed_features` are taken.
        seed: Of the clusters.
    """
    if not texts or not references:
        return None
    if min(len(texts), len(references)) < FEW:
        logger.warning("MAUVE of %d and %d texts is too high and uncertain; take %d of each at least, better 5000",
                       len(texts), len(references), FEW)  # fmt: skip
    from mauve import compute_mauve

    both = [*texts, *references]
    if language_model:
        features = hidden_features([t if isinstance(t, str) else " ".join(t) for t in both], language_model)
    else:
        features = hashed_features(both)
    if (features == features[0]).all():
        return 1.0  # one point has no clusters
    p, q = features[: len(texts)], features[len(texts) :]
    return float(compute_mauve(p_features=p, q_features=q, seed=seed, verbose=False).mauve)


# --- How sure a figure is ---------------------------------------------------------------------------------------------


def bootstrap_interval(
    values: ArrayLike, *, repeats: int = 1000, level: float = 0.95, seed: int = 0
) -> tuple[float, float] | None:
    """Return the percentile bootstrap's confidence interval of a mean (Efron, 1979); None with fewer than two values.

    Args:
        values: (N,), one a text.
        repeats: Samples of N, drawn with replacement.
        level: Part of the samples' means inside the interval, in (0, 1).
        seed: Of the drawing.
    """
    values, rng = np.asarray(values, dtype=np.float64), np.random.default_rng(seed)
    if len(values) < 2:
        return None
    count = len(values)
    means = [values[rng.integers(count, size=(some, count))].mean(1) for some in portions(repeats, count)]
    low, high = np.quantile(np.concatenate(means), [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def portions(draws: int, size: int) -> Iterator[int]:
    """Divide draws of so many numbers each so that a million numbers are in memory at once."""
    step = max(1, 10**6 // max(1, size))
    return (min(step, draws - first) for first in range(0, draws, step))


def pseudo_values(whole: float, without: ArrayLike) -> Floats:
    """Return one value a text whose mean is a figure of all texts, so that it can be resampled (Tukey, 1958).

    A bootstrap of the texts themselves would be wrong for what counts different n-grams: it takes some texts twice, and
    what is there twice is less varied, so that its interval lies below the figure. The jackknife leaves texts out
    instead. Text i has the value N·θ − (N − 1)·(θ without i), and all are moved to have the mean θ.

    Args:
        whole: θ, of all N texts.
        without: (N,) θ without each.
    """
    others = np.asarray(without, dtype=np.float64)
    influence: Floats = (len(others) - 1) * (others.mean() - others)
    return whole + influence


def _distinct_values(texts: Sequence[list[str]], n: int) -> list[float]:
    """Return the pseudo-values of distinct-n; none where they are not defined."""
    grams = [list(ngrams(text, n)) for text in texts]
    holders = Counter(gram for its in grams for gram in set(its))  # texts that have it
    total = sum(map(len, grams))
    if sum(map(bool, grams)) < 2:
        return []
    without = [(len(holders) - sum(holders[gram] == 1 for gram in set(its))) / (total - len(its)) for its in grams]
    return list(pseudo_values(len(holders) / total, without))


def _zipf_values(texts: Sequence[list[str]]) -> list[float]:
    """Return the pseudo-values of the Zipf coefficient; none where they are not defined."""
    numbers: dict[str, int] = {}
    rows = [Counter(numbers.setdefault(token, len(numbers)) for token in text) for text in texts]
    counts = np.zeros(len(numbers), dtype=np.int64)
    for row in rows:
        counts[list(row)] += list(row.values())
    without = []
    for row in rows:
        rest = counts.copy()
        rest[list(row)] -= list(row.values())
        without.append(_zipf(rest))
    whole = _zipf(counts)
    known = [value for value in without if value is not None]
    return list(pseudo_values(whole, known)) if whole is not None and len(known) == len(texts) else []


# --- All of them ------------------------------------------------------------------------------------------------------


def diversity(
    texts: Sequence[Text], *, cut: int = 0, references: Sequence[Text] | None = None,
    language_model: LanguageModel | None = None, bleu_references: int = REFERENCES, repeats: int = 1000, seed: int = 0,
) -> dict[str, float | None]:  # fmt: skip
    """Measure texts; see the module for the figures and for what is None.

    Args:
        texts: Any number.
        cut: Tokens that count of each; shorter texts are left out. 0 is :func:`common_length`, of references too. To
            compare groups, give the same to all.
        references: Texts of people, for MAUVE; cut likewise.
        language_model: Of MAUVE.
        bleu_references: Of :func:`self_bleu`.
        repeats: Samples of each interval.
        seed: Of every choice.

    Returns:
        ``texts``, ``empty``, ``used`` (as long as the cut), ``cut``, ``bleu_references``; ``length`` (mean number of
        tokens, before the cut), ``distinct_1`` … ``_3``, ``repetition_4``, ``self_bleu``, ``zipf``, each with
        `` low`` and `` high`` behind it for the ends of its 95 % interval; and ``mauve``, where there are references.
        That of self-BLEU is for given references.

    Raises:
        InputError: ``cut`` or ``bleu_references`` is outside its range.
    """
    check_range("cut", cut, 0)
    check_range("bleu_references", bleu_references, 1)
    every = [tokens(text) for text in texts]
    cut = cut or common_length(every, references or [])
    used = [text[:cut] for text in every if len(text) >= cut > 0]
    figures: dict[str, float | None] = {
        "texts": len(every), "empty": sum(not text for text in every), "used": len(used), "cut": cut,
        "bleu_references": max(0, min(bleu_references, len(used) - 1)),
    }  # fmt: skip

    def put(name: str, value: float | None, values: Sequence[float]) -> None:
        interval = bootstrap_interval(values, repeats=repeats, seed=seed) or (None, None)
        figures.update({name: value, f"{name} low": interval[0], f"{name} high": interval[1]})

    lengths = [len(text) for text in every]
    put("length", _mean(lengths), lengths)
    for n in (1, 2, 3):
        put(f"distinct_{n}", distinct_n(used, n), _distinct_values(used, n))
    repetitions = [value for text in used if (value := repetition_n(text, 4)) is not None]
    put("repetition_4", _mean(repetitions), repetitions)
    bleu = self_bleu(used, bleu_references, seed=seed)
    put("self_bleu", _mean(bleu), bleu)
    put("zipf", zipf_coefficient(used), _zipf_values(used))
    if references is not None:
        long_enough = [[beginning(t, cut) for t in them if len(tokens(t)) >= cut > 0] for them in (texts, references)]
        figures["mauve"] = mauve(*long_enough, language_model=language_model, seed=seed)
    return figures


def _mean(values: Sequence[float]) -> float | None:
    return math.fsum(values) / len(values) if values else None


def table(groups: Mapping[str, Mapping[str, float | None]]) -> str:
    """Write figures of groups below each other; – where there is none."""
    wide = max(map(len, groups))
    lines = [f"{group:{wide}}  {its['texts']} texts, {its['empty']} empty, {its['used']} as long as the cut of "
             f"{its['cut']} tokens, {its['bleu_references']} references of self-BLEU"
             for group, its in groups.items()]  # fmt: skip
    measured = [name for name in FIGURES if any(name in its for its in groups.values())]
    for name in measured:
        lines += [""] * (len(groups) > 1)
        for group, its in groups.items():
            value, low, high = (its.get(f"{name}{end}") for end in ("", " low", " high"))
            shown = "–" if value is None else f"{value:.4g}"
            interval = "" if low is None else f"  [{low:.4g}, {high:.4g}]"
            lines.append(f"{name:12}  {group:{wide}}  {shown:>9}{interval}")
    return "\n".join(lines)


# --- Texts ------------------------------------------------------------------------------------------------------------


def read_groups(name: str, *, by: str = "system", split: str = "test", count: int = 0) -> dict[str, list[str]]:
    """Read texts.

    Args:
        name: ``builtin:stories`` or ``builtin:python`` (their held-out texts); a ``.txt`` with a text a line, of which
            empty ones are no texts; a ``.jsonl`` of strings, or of objects with ``text``; a folder of these, each file
            a group; a data set of the hub, each line a text.
        by: The key of a JSONL's objects whose values divide them into groups.
        split: Of a data set of the hub.
        count: Of a builtin; 200 by default.

    Returns:
        Group → texts.

    Raises:
        InputError: There are no texts, or a line can't be read.
    """
    from gpt_text_generation.text_generator import BUILTINS

    source = resolve(name, BUILTINS)
    groups: dict[str, list[str]] = {}
    if source.origin == "builtin":
        from gpt_text_generation.builtin.train_models import CORPORA

        groups[str(source)] = list(CORPORA[source.name].texts("test", count or 200, 0))
    elif source.origin == "hub":
        splits = load_text(source, "builtin:stories")
        if split not in splits:
            raise InputError(f"{source} has no split {split!r}.", hint=f"--split {' or '.join(splits)}")
        groups[str(source)] = list(filter(str.strip, splits[split].split("\n")))
    else:
        path = Path(source.name)
        inside = sorted(p for p in path.iterdir() if p.suffix in (".txt", ".jsonl")) if path.is_dir() else [path]
        stems = Counter(file.stem for file in inside)
        for file in inside:
            for group, text in _read_file(file, by):
                own = file.stem if stems[file.stem] == 1 else file.name
                key = " ".join(filter(None, [own if len(inside) > 1 else "", group])) or own
                groups.setdefault(key, []).append(text)
    if not groups:
        raise InputError(f"{name} holds no text.", hint="a .txt with a text a line, or a .jsonl of objects with text")
    return groups


def _read_file(path: Path, by: str) -> Iterator[tuple[str, str]]:
    """Yield the group, perhaps empty, and the text of each row."""
    text = load_text(Source("path", str(path)), "builtin:stories")["train"]
    for number, line in enumerate(text.split("\n"), 1):
        if not line.strip():
            continue
        if path.suffix != ".jsonl":
            yield "", line.strip()
            continue
        try:
            row = json.loads(line)
        except (ValueError, RecursionError):
            row = None
        row = {"text": row} if isinstance(row, str) else row
        if not isinstance(row, dict) or not isinstance(row.get("text"), str):
            raise InputError(f"Line {number} of {path} must be a JSON string, or an object with a string as text.")
        yield str(row.get(by, "")), row["text"]


# --- Command ----------------------------------------------------------------------------------------------------------


@dataclass
class MeasureConfig:
    """Measure how varied texts are."""

    data: str = "builtin:stories"
    """builtin:stories, builtin:python, a .txt (a text a line), a .jsonl, a folder of these, or a hub's data set."""
    by: str = "system"
    """Key of a .jsonl's objects whose values divide them into groups, such as strategy."""
    references: str = ""
    """Texts of people, for MAUVE, named as data is; without them there is none."""
    model: str = ""
    """Whose hidden states MAUVE compares: builtin:stories, a folder or a hub id; by default it is hashed n-grams."""
    cut: int = 0
    """Tokens that count of each text; 0 is the most that nine of ten have."""
    count: int = 0
    """Texts of each group, the first; 0 is as many as the smallest has."""
    bleu_references: int = REFERENCES
    """Other texts that self-BLEU compares each with, >= 1."""
    split: str = "test"
    """Of a data set of the hub."""
    device: str = field(default="auto", metadata=NOT_RECIPE)
    """auto, cpu, cuda or mps; of the model."""
    seed: int = field(default=0, metadata=NOT_RECIPE)
    """Of every choice."""
    run: str = field(default="", metadata=NOT_RECIPE)
    """Name of the run's folder; by default the time."""

    def __post_init__(self) -> None:
        """Check the ranges."""
        check_range("cut", self.cut, 0)
        check_range("count", self.count, 0)
        check_range("bleu_references", self.bleu_references, 1)
        check_range("seed", self.seed, 0, 2**31)
        if self.model and not self.references:
            raise InputError("model is MAUVE's, which needs texts to compare with.", hint="--references human.txt")


def measure(config: MeasureConfig) -> None:
    """Measure texts; see :class:`MeasureConfig`."""
    groups = read_groups(config.data, by=config.by, split=config.split, count=config.count)
    smallest = min(groups, key=lambda group: len(groups[group]))
    count = config.count or len(groups[smallest])
    if count > len(groups[smallest]):
        raise InputError(f"count must be at most {len(groups[smallest])}, what {smallest} has. Got {count}.")
    groups = {group: texts[:count] for group, texts in groups.items()}
    references, language_model = None, None
    if config.references:
        read = read_groups(config.references, by="", split=config.split, count=count)
        references = [text for texts in read.values() for text in texts]
    if config.model:
        from gpt_text_generation.text_generator import load_model

        language_model = load_model(config.model, config.device)
    run = Run(PROJECT, MODULE, "measure", config, name=config.run)
    cut = config.cut or common_length(*groups.values(), references or [])
    logger.info("%s; %d texts each, cut to %d tokens", ", ".join(groups), count, cut)
    figures = {}
    for group, texts in groups.items():
        figures[group] = diversity(texts, cut=cut, references=references, language_model=language_model,
                                   bleu_references=config.bleu_references, seed=config.seed)  # fmt: skip
        if figures[group]["used"] != count:
            logger.warning("%s: %d of %d texts are shorter than the cut, and left out of all but the length", group,
                           count - (figures[group]["used"] or 0), count)  # fmt: skip
    metrics = {(name if len(groups) == 1 else f"{group} {name}"): value
               for group, its in figures.items() for name, value in its.items() if value is not None}  # fmt: skip
    name = language_model.name if language_model else "hashed n-grams" if references else ""
    run.finish(model=name, data=config.data, seed=config.seed, metrics=metrics)
    sys.stdout.write(f"{table(figures)}\n")
    logger.info("saved in %s", run.folder)


if __name__ == "__main__":
    run_commands({"measure": measure}, module=MODULE, extra="generation")
