r"""How good captions are: BLEU, ROUGE-L, METEOR-like, CIDEr-D, objects named, CLIPScore; without Java.

    python -m multimodal_llm.image_captioning.caption_evaluation evaluate --predictions p.jsonl \
        --references captions.jsonl

    print(evaluate_captions({"a.jpg": "a dog runs"}, {"a.jpg": ["A dog is running.", "a running dog"]}))

Equal to pycocoevalcap 1.2 (Chen et al., 2015, arXiv:1504.00325) where that has the metric. BLEU: Papineni et al., 2002.
ROUGE-L: Lin, 2004. CIDEr-D: Vedantam et al., 2015, arXiv:1411.5726. METEOR 1.5: Denkowski and Lavie, 2014. Objects: as
CHAIR, Rohrbach et al., 2018, arXiv:1809.02156. CLIPScore: Hessel et al., 2021, arXiv:2104.08718.
"""

from __future__ import annotations

import csv
import functools
import json
import logging
import os
import re
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from shared.config import check_range, run_commands
from shared.errors import InputError, MissingPackageError
from shared.results import Run, write_atomic

if TYPE_CHECKING:
    from multimodal_llm.clip_applications.zero_shot_classification import ClipEncoder

PROJECT = "multimodal_llm"
MODULE = f"{PROJECT}.image_captioning.caption_evaluation"
NOT_RECIPE = {"recipe": False}
Floats = NDArray[np.float64]
Tokens = list[str]
FindObjects = Callable[[str], Counter[str]]
MOST_WORDS = 250  # of a caption: to align two of thousands takes hours
logger = logging.getLogger(MODULE)


# --- Words ------------------------------------------------------------------------------------------------------------

HAN = "\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff"
LETTER, PART = "[^\\W\\d_]", f"[^\\W_{HAN}]"
TOKEN = re.compile(
    rf"""https?://\S+ | [\w.+-]+@\w+(?:\.\w+)+
    | [{HAN}]
    | \d+(?:[.,:]\d+)+
    | (?<!{PART})(?:no\.(?=\s*\d) | (?:mr|mrs|ms|dr|prof|sgt|st|jr|sr|vs|etc|inc|corp|co|ltd|mt|ave|blvd|dept)\.)
    | (?<!{PART})(?:[a-z]\.)+(?:[a-z](?!{LETTER}))?
    | [a-z]+?(?=n't\b) | n't\b | '(?:s|m|re|ve|d|ll)\b | '\d0s\b
    | can(?=not\b) | gon(?=na\b) | wan(?=na\b) | got(?=ta\b) | gim(?=me\b) | lem(?=me\b)
    | (?:[odl]'(?={LETTER}{{2}}))?{PART}+(?:(?:[-/&_] | (?<={LETTER})\.(?={LETTER})){PART}+)*
    | [!?]{{2,}} | [^\w\s] | _""",
    re.VERBOSE,
)
STRAIGHT = str.maketrans("’‘“”", "''\"\"")
PUNCTUATION = set("'`\".?!,:;-–—…，。！？、；：《》（）「」『』【】·～")
BRACKETS = {"(": "-lrb-", ")": "-rrb-", "[": "-lsb-", "]": "-rsb-", "{": "-lcb-", "}": "-rcb-"}


def tokenize(text: str) -> Tokens:
    """Split a caption as the COCO code does, whose tokenizer (Stanford's for the Penn Treebank) needs Java.

    Lower case; ``dog's`` is two tokens, ``t-shirt`` one; punctuation is gone. What looks odd is COCO's: brackets stay
    as ``-lrb-``, and ``!!`` stays. All 600 captions of 120 COCO photos come out the same; rare abbreviations and runs
    of symbols can differ. On purpose, each Chinese character is a token: there a whole sentence would be one word.
    """
    found = (BRACKETS.get(token, token) for token in TOKEN.findall(text.lower().translate(STRAIGHT)))
    return [token for token in found if token not in PUNCTUATION]


def ngram_counts(tokens: Sequence[str], longest: int = 4) -> Counter[tuple[str, ...]]:
    """Count the n-grams of 1 to ``longest`` tokens."""
    return Counter(
        tuple(tokens[start : start + n]) for n in range(1, longest + 1) for start in range(len(tokens) - n + 1)
    )


# --- BLEU -------------------------------------------------------------------------------------------------------------

TINY, SMALL = 1e-15, 1e-9  # pycocoevalcap's, against division by zero; a caption without 4-grams owes them its BLEU-4


def bleu_statistics(candidate: Tokens, references: Sequence[Tokens]) -> Floats:
    """Count what BLEU is made of, so that captions can be added up.

    Returns:
        (10,): matching n-grams for n = 1…4, n-grams of the caption for n = 1…4, its length, and the length of the
        reference nearest in length (the shorter of two). An n-gram matches as often as it stands in one reference.
    """
    counts, most = ngram_counts(candidate), Counter[tuple[str, ...]]()
    for reference in references:
        most |= ngram_counts(reference)
    matches = Counter[int]()
    for ngram, count in (counts & most).items():
        matches[len(ngram)] += count
    length = len(candidate)
    nearest = min((len(reference) for reference in references), key=lambda other: (abs(other - length), other))
    guesses = [max(0, length - n + 1) for n in range(1, 5)]
    return np.array([*(matches[n] for n in range(1, 5)), *guesses, length, nearest], dtype=np.float64)


def bleu(statistics: Floats) -> Floats:
    """Return BLEU-1…4 = min(1, e^(1 − r/c)) · (p₁ · … · pₙ)^(1/n), with precisions pₙ and lengths r and c.

    Args:
        statistics: (…, 10) of one caption, or summed up over a corpus: BLEU of a corpus is no mean over its images.

    Returns:
        (…, 4), in [0, 1].
    """
    precisions = (statistics[..., :4] + TINY) / (statistics[..., 4:8] + SMALL)
    ratio = (statistics[..., 8] + TINY) / (statistics[..., 9] + SMALL)
    brevity = np.exp(np.minimum(0.0, 1 - 1 / ratio))
    return np.cumprod(precisions, axis=-1) ** (1 / np.arange(1, 5)) * brevity[..., None]


# --- ROUGE-L ----------------------------------------------------------------------------------------------------------


def longest_common_subsequence(one: Sequence[str], other: Sequence[str]) -> int:
    """Return how many tokens two texts share in the same order, with gaps allowed."""
    previous = [0] * (len(other) + 1)
    for token in one:
        row = [0]
        for column, against in enumerate(other):
            row.append(previous[column] + 1 if token == against else max(previous[column + 1], row[-1]))
        previous = row
    return previous[-1]


def rouge_l(candidate: Tokens, references: Sequence[Tokens], beta: float = 1.2) -> float:
    """Return ROUGE-L = (1 + β²) P R / (R + β² P), of the longest common subsequence, in [0, 1].

    As in pycocoevalcap, P and R are each the best over the references, be they of different ones.
    """
    if not candidate:
        return 0.0
    common = [(longest_common_subsequence(candidate, reference), len(reference)) for reference in references]
    precision = max(length for length, _ in common) / len(candidate)
    recall = max(length / max(of, 1) for length, of in common)
    return (1 + beta**2) * precision * recall / (recall + beta**2 * precision) if precision else 0.0


# --- CIDEr-D ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class DocumentFrequencies:
    """In how many images' references each n-gram stands, which says how much it tells: "a" little, "zebra" a lot.

    Attributes:
        counts: N-gram → images with it in a reference.
        images: How many there are.
    """

    counts: Counter[tuple[str, ...]]
    images: int

    @classmethod
    def of(cls, references: Sequence[Sequence[Tokens]]) -> DocumentFrequencies:
        """Count over the references of each image."""
        counts = Counter[tuple[str, ...]]()
        for its in references:
            counts.update({ngram for reference in its for ngram in ngram_counts(reference)})
        return cls(counts, len(references))

    def vectors(self, tokens: Tokens) -> list[dict[tuple[str, ...], float]]:
        """Return the weights g = count · ln(images / frequency) of a caption, a dictionary for each n = 1…4.

        Of one image each weight is its count: ln(1 / 1) would make every caption, the right one too, worth nothing.
        """
        vectors: list[dict[tuple[str, ...], float]] = [{} for _ in range(4)]
        for ngram, count in ngram_counts(tokens).items():
            tells = np.log(self.images / max(1, self.counts[ngram])) if self.images > 1 else 1.0
            vectors[len(ngram) - 1][ngram] = count * float(tells)
        return vectors


def cider_d(
    candidate: Tokens, references: Sequence[Tokens], frequencies: DocumentFrequencies, sigma: float = 6.0
) -> float:
    """Return CIDEr-D = 10 · mean over n = 1…4 and references of e^(−Δ² / 2σ²) · min(g_c, g_r) · g_r / (‖g_c‖ ‖g_r‖).

    Δ is the difference in length (pycocoevalcap counts bigrams), and the minimum keeps a repeated word from paying off.

    Args:
        candidate: The caption.
        references: Of its image.
        frequencies: Of the corpus. A corpus of a few images has little to tell n-grams apart by, and its figures can't
            be compared with those of another. With one image pycocoevalcap gives 0; here n-grams then weigh the same.
        sigma: How much length may differ, in tokens.

    Returns:
        In [0, 10]; 10 only if each reference has the same n-grams as the caption.
    """
    ours = frequencies.vectors(candidate)
    total = 0.0
    for reference in references:
        similarity = 0.0
        for mine, its in zip(ours, frequencies.vectors(reference), strict=True):
            norms = np.sqrt(sum(g * g for g in mine.values()) * sum(g * g for g in its.values()))
            if norms:
                similarity += sum(min(g, its[ngram]) * its[ngram] for ngram, g in mine.items() if ngram in its) / norms
        delta = max(len(candidate) - 1, 0) - max(len(reference) - 1, 0)
        total += float(np.exp(-(delta**2) / (2 * sigma**2))) * similarity / 4
    return 10 * total / len(references)


# --- METEOR, nearly ---------------------------------------------------------------------------------------------------

EXACT, STEM, SYNONYM = 1.0, 0.6, 0.8  # what a match of each kind is worth, as in METEOR 1.5
FUNCTION_WORDS = set(
    "a an the this that these those some any no and or but if as of to in on at by for from with into onto over under "
    "is are was were be been being am has have had do does did can will would it its he his she her they their them i "
    "my you your we our us who which what there not 's".split()
)


@functools.cache
def stem(word: str) -> str:
    """Return the English stem of a word, by Snowball."""
    try:
        from Stemmer import Stemmer
    except ImportError:
        raise MissingPackageError("PyStemmer", "multimodal") from None
    return str(Stemmer("english").stemWord(word))


def align(
    candidate: Tokens, reference: Tokens, synonyms: Mapping[str, set[str]] | None = None, beam: int = 40
) -> tuple[list[tuple[int, int, float]], int]:
    """Pair words of two captions, each at most once: most pairs, then fewest chunks, then the shortest way.

    Args:
        candidate: One caption.
        reference: The other.
        synonyms: Word → words of the same meaning; none by default.
        beam: How many unfinished alignments are kept, as many as METEOR keeps.

    Returns:
        Pairs of positions with the worth of each, and the number of chunks: runs that are in order in both.
    """
    stems = [stem(word) for word in reference]

    def worth(word: str, j: int) -> float:
        if word == reference[j]:
            return EXACT
        if reference[j] in (synonyms or {}).get(word, ()):
            return SYNONYM
        return STEM if stem(word) == stems[j] else 0.0

    # An alignment so far: minus pairs, chunks, distance, minus worth (so that the least is best), and the pairs
    alignments: list[tuple[int, int, int, float, tuple[tuple[int, int, float], ...]]] = [(0, 0, 0, 0.0, ())]
    for i, word in enumerate(candidate):
        options = [(j, value) for j in range(len(reference)) if (value := worth(word, j))]
        grown = list(alignments)  # leaving the word alone
        for pairs, chunks, distance, value, made in alignments:
            taken = {j for _, j, _ in made}
            for j, its in options:
                if j not in taken:
                    new_chunk = not made or made[-1][:2] != (i - 1, j - 1)
                    grown.append((pairs - 1, chunks + new_chunk, distance + abs(i - j), value - its,
                                  (*made, (i, j, its))))  # fmt: skip
        alignments = sorted(grown)[:beam]
    _, chunks, _, _, made = alignments[0]
    return list(made), chunks


def meteor_like(
    candidate: Tokens, references: Sequence[Tokens], synonyms: Mapping[str, set[str]] | None = None
) -> float:
    """Return (1 − γ · (chunks / matches)^β) · P R / (α P + (1 − α) R), the best over the references, in [0, 1].

    Formula, weights and α = 0.85, β = 0.2, γ = 0.6 are those of METEOR 1.5 for English; P and R weigh content words
    δ = 0.75 and function words 0.25. It differs in what it knows: no WordNet and no table of paraphrases (synonyms are
    those you give), a short list of function words, and a corpus has the mean of its images. On captions of 120 COCO
    photos, each against the photo's other four, it correlates 0.95 with METEOR 1.5 and is 5 % lower: never set it
    beside a METEOR of a paper.
    """

    def weight(words: Sequence[str]) -> float:
        return sum(0.25 if word in FUNCTION_WORDS else 0.75 for word in words)

    def one(reference: Tokens) -> float:
        pairs, chunks = align(candidate, reference, synonyms)
        if not pairs:
            return 0.0
        precision = sum(worth * weight([candidate[i]]) for i, _, worth in pairs) / weight(candidate)
        recall = sum(worth * weight([reference[j]]) for _, j, worth in pairs) / weight(reference)
        whole = chunks == 1 and len(pairs) == len(candidate) == len(reference)
        penalty = 0.0 if whole else 0.6 * (chunks / len(pairs)) ** 0.2
        return (1 - penalty) * precision * recall / (0.85 * precision + 0.15 * recall)

    return max(map(one, references))


# --- Objects ----------------------------------------------------------------------------------------------------------


def object_finder(words: Sequence[str]) -> FindObjects:
    """Make a function that finds the objects of a list in captions, in singular or plural, each once.

    Args:
        words: Such as ``["dog", "dining table", "猫"]``; the longer ones are looked for first.
    """
    plain = {" ".join(tokenize(word)): word for word in words}
    if not plain or "" in plain:
        raise InputError(f"objects must be words. Got {list(words)!r}.")
    irregular = {"person": "people", "man": "men", "woman": "women", "child": "children", "sheep": "sheep",
                 "mouse": "mice", "knife": "knives", "goose": "geese", "foot": "feet"}  # fmt: skip

    def forms(name: str) -> Iterator[str]:
        head, _, last = name.rpartition(" ")
        endings = [last, f"{last}s", f"{last}es", irregular.get(last, last)] + [f"{last[:-1]}ies"] * last.endswith("y")
        yield from (f"{head} {ending}".strip() for ending in endings)

    written = {form: word for name, word in plain.items() for form in forms(name)}
    longest_first = sorted(written, key=lambda form: (-len(form), form))
    pattern = re.compile(f"(?<= )(?:{'|'.join(map(re.escape, longest_first))})(?= )")
    return lambda caption: Counter({written[found]: 1 for found in pattern.findall(f" {' '.join(tokenize(caption))} ")})


def scene_objects(caption: str) -> Counter[str]:
    """Find the objects of a builtin scene in its caption: each with color, shape and size, as often as it is there."""
    from multimodal_llm.builtin.scenes import parse_caption

    return Counter(map(str, parse_caption(caption)))


def object_statistics(candidate: Counter[str], references: Sequence[Counter[str]]) -> Floats:
    """Return (3,): objects named and there, objects named, objects there (in any of the references)."""
    there = Counter[str]()
    for reference in references:
        there |= reference
    return np.array([(candidate & there).total(), candidate.total(), there.total()], dtype=np.float64)


def precision_recall_f1(statistics: Floats) -> Floats:
    """Return (…, 3) precision, recall and F1 of objects, from (…, 3) sums; NaN where nothing was to be counted.

    1 − precision is CHAIR's share of objects made up.
    """
    right, named, there = (statistics[..., n] for n in range(3))
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.stack([right / named, right / there, 2 * right / (named + there)], axis=-1)


# --- CLIPScore --------------------------------------------------------------------------------------------------------


CLIP_PROMPT = "A photo depicts "  # the paper's


def clip_score(images: ArrayLike, captions: ArrayLike) -> Floats:
    """Return CLIPScore = 2.5 · max(cos(image, caption), 0), in [0, 2.5]; it needs no references.

    Args:
        images: (N, C) embeddings.
        captions: (N, C) embeddings.

    Returns:
        (N,).
    """
    return 2.5 * np.maximum(0.0, (_unit(images) * _unit(captions)).sum(axis=-1))


def ref_clip_score(images: ArrayLike, captions: ArrayLike, references: Sequence[ArrayLike]) -> Floats:
    """Return RefCLIPScore: the harmonic mean of CLIPScore and max(the best cosine of caption and reference, 0).

    Args:
        images: (N, C) embeddings.
        captions: (N, C) embeddings.
        references: N times (references of the image, C).

    Returns:
        (N,), in [0, 10/7].
    """
    own = clip_score(images, captions)
    best = np.array([max(0.0, float((_unit(its) @ caption).max()))
                     for caption, its in zip(_unit(captions), references, strict=True)])  # fmt: skip
    return np.divide(2 * own * best, own + best, out=np.zeros_like(own), where=own + best > 0)


def _unit(vectors: ArrayLike) -> Floats:
    vectors = np.asarray(vectors, dtype=np.float64)
    return vectors / np.maximum(np.linalg.norm(vectors, axis=-1, keepdims=True), 1e-12)


def clip_scores(
    encoder: ClipEncoder, images: Sequence[Any], captions: Sequence[str],
    references: Sequence[Sequence[str]] | None = None, *, prompt: str = CLIP_PROMPT, batch_size: int = 32,
) -> tuple[Floats, Floats | None]:  # fmt: skip
    """Return CLIPScore and RefCLIPScore by a CLIP or SigLIP.

    Args:
        encoder: See ``zero_shot_classification.load_clip``.
        images: N, of what ``data_loader.open_image`` takes.
        captions: N.
        references: N times the references; without them there is no RefCLIPScore.
        prompt: Put before each text; leave it empty for a model that was trained without.
        batch_size: Images embedded at a time.
    """
    seen = encoder.embed_images(images, batch_size)
    its = references or [[] for _ in captions]
    read = encoder.embed_texts([prompt + text for text in [*captions, *(text for group in its for text in group)]])
    said = read[: len(captions)]
    if references is None:
        return clip_score(seen, said), None
    ends = np.cumsum([len(group) for group in references])[:-1]
    return clip_score(seen, said), ref_clip_score(seen, said, np.split(read[len(captions) :], ends))


# --- The report -------------------------------------------------------------------------------------------------------


def bootstrap_intervals(
    statistics: Floats, figures: Callable[[Floats], Floats], *, repeats: int = 1000, level: float = 0.95, seed: int = 0
) -> Floats:
    """Return percentile bootstrap intervals (Efron, 1979) of figures of a corpus, over which images are in it.

    Args:
        statistics: (N, K), a row an image.
        figures: From (…, K) sums of N rows to (…, M) figures, such as :func:`bleu`.
        repeats: Corpora of N images, drawn with replacement.
        level: Part of their figures that is inside the interval, in (0, 1).
        seed: Of the drawing.

    Returns:
        (2, M), low and high. Weights of CIDEr-D's n-grams stay those of the whole corpus.
    """
    rng, images = np.random.default_rng(seed), len(statistics)
    step = max(1, 10**6 // images)  # a million counts are in memory at once
    draws = []
    for first in range(0, repeats, step):
        times = rng.multinomial(images, np.full(images, 1 / images), size=min(step, repeats - first))
        draws.append(figures(times @ statistics))
    return np.nanquantile(np.concatenate(draws), [(1 - level) / 2, (1 + level) / 2], axis=0)


@dataclass(frozen=True)
class CaptionReport:
    """How good captions are; printed, it is a table.

    Attributes:
        figures: Metric → value of the corpus, low and high of its 95 % interval; both None for a single image.
        captions: For each caption its image, text, references and figures; what it does not have is left out.
    """

    figures: dict[str, tuple[float, float | None, float | None]]
    captions: list[dict[str, Any]]

    def __str__(self) -> str:
        lines = [f"{'metric':18} {'value':>7}   95 % interval"]
        for name, (value, low, high) in self.figures.items():
            lines.append(f"{name:18} {value:7.4f}" + ("" if low is None else f"   [{low:.4f}, {high:.4f}]"))
        return "\n".join(lines)

    def metrics(self) -> dict[str, float]:
        """Return every number under a name of its own, for ``results.json``."""
        named: dict[str, float] = {"images": len(self.captions)}
        for name, values in self.figures.items():
            parts = zip(("", " low", " high"), values, strict=True)
            named |= {f"{name}{part}": value for part, value in parts if value is not None}
        return named


def evaluate_captions(
    predictions: Mapping[str, str], references: Mapping[str, Sequence[str]], *,
    find_objects: FindObjects | None = None, synonyms: Mapping[str, set[str]] | None = None,
    more: Mapping[str, ArrayLike] | None = None, repeats: int = 1000, seed: int = 0,
) -> CaptionReport:  # fmt: skip
    """Measure captions by every metric, of each at most its first :data:`MOST_WORDS` words.

    Args:
        predictions: Image → its caption; an empty one counts, as 0.
        references: Image → captions by people, one at least. Images without a prediction play no part.
        find_objects: See :func:`object_finder`; by default objects are not counted.
        synonyms: For :func:`meteor_like`.
        more: Name → (N,) figures of the captions in the order of ``predictions``, such as CLIPScore.
        repeats: Draws of the intervals.
        seed: Of the drawing.

    Raises:
        InputError: There is no prediction, or an image has no reference.
    """
    if not predictions:
        raise InputError("There must be a prediction at least.")
    ours = {image: tokenize(caption) for image, caption in predictions.items()}
    theirs = {image: [tokens for tokens in map(tokenize, references.get(image, ())) if tokens] for image in ours}
    if missing := [image for image, its in theirs.items() if not its]:
        raise InputError(f"{len(missing)} of {len(ours)} images have no reference, such as {missing[0]!r}.")
    if longer := sum(len(tokens) > MOST_WORDS for image in ours for tokens in [ours[image], *theirs[image]]):
        logger.warning("%d captions have more than %d words; those after them play no part", longer, MOST_WORDS)
        ours = {image: tokens[:MOST_WORDS] for image, tokens in ours.items()}
        theirs = {image: [tokens[:MOST_WORDS] for tokens in its] for image, its in theirs.items()}
    if len(ours) == 1:
        logger.warning("CIDEr-D of one image weighs all n-grams alike, and compares with no other CIDEr")
    frequencies = DocumentFrequencies.of(list(theirs.values()))
    each = [(ours[image], theirs[image]) for image in ours]
    counted = np.array([bleu_statistics(*pair) for pair in each])
    columns = dict(zip([f"BLEU-{n}" for n in range(1, 5)], bleu(counted).T, strict=True))
    means = {
        "ROUGE-L": [rouge_l(*pair) for pair in each],
        "METEOR-like": [meteor_like(*pair, synonyms) for pair in each],
        "CIDEr-D": [cider_d(*pair, frequencies) for pair in each],
        "exact": [float(caption in its) for caption, its in each],
    } | dict(more or {})
    columns |= {name: np.asarray(values, dtype=np.float64) for name, values in means.items()}
    groups: list[tuple[list[str], Floats, Callable[[Floats], Floats]]] = [
        ([f"BLEU-{n}" for n in range(1, 5)], counted, bleu),
        (list(means), np.stack([columns[name] for name in means], axis=1), lambda sums: sums / len(ours)),
    ]
    if find_objects:
        named = np.array([object_statistics(find_objects(caption), list(map(find_objects, references[image])))
                          for image, caption in predictions.items()])  # fmt: skip
        names = ["object precision", "object recall", "object F1"]
        columns |= dict(zip(names, precision_recall_f1(named).T, strict=True))
        groups.append((names, named, precision_recall_f1))
    figures: dict[str, tuple[float, float | None, float | None]] = {}
    for names, statistics, function in groups:
        values = function(statistics.sum(axis=0))
        if np.isnan(values).all():
            continue  # no caption names an object
        intervals = np.full((2, len(names)), None)
        if len(ours) > 1:
            intervals = bootstrap_intervals(statistics, function, repeats=repeats, seed=seed)
        for name, value, low, high in zip(names, values, *intervals, strict=True):
            if not np.isnan(value):
                figures[name] = (float(value), *(None if end is None else float(end) for end in (low, high)))
    captions = [
        {"image": image, "caption": caption, "references": list(references[image]),
         **{name: float(column[n]) for name, column in columns.items() if not np.isnan(column[n])}}
        for n, (image, caption) in enumerate(predictions.items())
    ]  # fmt: skip
    return CaptionReport(figures, captions)


# --- Files ------------------------------------------------------------------------------------------------------------

IMAGE_KEYS, CAPTION_KEYS = ("image", "file", "file_name", "image_id", "path"), ("caption", "captions", "text")
COCO_NAME = re.compile(r"(?:COCO_\w+_)?0*(\d+)")


@dataclass(frozen=True)
class CaptionFile:
    """Captions as they stand in a file.

    Attributes:
        captions: Image, by path or id → its captions.
        file_names: Id → file name, where the file tells (COCO).
    """

    captions: dict[str, list[str]]
    file_names: dict[str, str] = field(default_factory=dict)


def read_captions(path: Path) -> CaptionFile:
    """Read captions from jsonl or csv with ``image`` and ``caption`` (or a list, ``captions``), or from COCO's json.

    Raises:
        InputError: The file is cut short, has no such columns, or holds no caption.
        OSError: It can't be read.
    """
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            if path.suffix == ".csv":
                rows: list[Any] = list(csv.DictReader(file, strict=True))
            elif path.suffix == ".jsonl":
                rows = [_json(line, f"Line {number} of {path}") for number, line in enumerate(file, 1) if line.strip()]
            elif path.suffix == ".json":
                rows = _json(file.read(), str(path))
            else:
                raise InputError(f"{path} must be a .jsonl, .csv or .json file.")
    except UnicodeDecodeError as error:
        raise InputError(f"{path} is not UTF-8 text: {error}.", hint="convert it, e.g. with iconv") from None
    except csv.Error as error:
        raise InputError(f"{path} can't be read as csv: {error}.") from None
    file_names = {}
    if isinstance(rows, dict):
        images = rows.get("images")
        file_names = {str(image.get("id")): str(image.get("file_name"))
                      for image in (images if isinstance(images, list) else ()) if isinstance(image, dict)}  # fmt: skip
        rows = rows.get("annotations")
    captions: dict[str, list[str]] = {}
    for number, row in enumerate(rows if isinstance(rows, list) else (), 1):
        row = row if isinstance(row, dict) else {}
        image, its = (next((row[key] for key in keys if row.get(key) is not None), None)
                      for keys in (IMAGE_KEYS, CAPTION_KEYS))  # fmt: skip
        its = [its] if isinstance(its, str) else its
        if not isinstance(image, (str, int)) or not isinstance(its, list) or not all(isinstance(c, str) for c in its):
            raise InputError(f"Row {number} of {path} must have an image and a caption, or a list of captions.",
                             hint='{"image": "a.jpg", "caption": "a dog"}')  # fmt: skip
        captions.setdefault(str(image), []).extend(its)
    if not captions:
        raise InputError(f"{path} holds no captions.", hint='a line: {"image": "a.jpg", "caption": "a dog"}')
    return CaptionFile(captions, file_names)


def _json(text: str, where: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise InputError(f"{where} is cut short, or not JSON: {error}.") from None


def match_images(predictions: CaptionFile, references: CaptionFile) -> dict[str, str]:
    """Find the references of each prediction: of the same path or id, else file name, else number of a COCO image.

    Returns:
        Image of the predictions → image of the references, where there is just one.

    Raises:
        InputError: Two predictions could be for the same image, and neither is more likely.
    """

    def number(name: str) -> str:
        match = COCO_NAME.fullmatch(Path(name).stem)
        return match[1] if match else name

    def names(file: CaptionFile, image: str, key: Callable[[str], str]) -> set[str]:
        return {key(name) for name in (image, file.file_names.get(image, image))}

    found: dict[str, str] = {}
    taken: set[str] = set()  # by a name that says more: a/x.jpg can't be x.jpg where there is an x.jpg besides
    for key in (str, lambda name: Path(name).name, number):
        known: dict[str, set[str]] = {}
        for image in references.captions:
            for name in names(references, image, key):
                known.setdefault(name, set()).add(image)
        claims: dict[str, list[str]] = {}
        for image in predictions.captions:
            its = set[str]().union(*(known.get(name, ()) for name in names(predictions, image, key)))
            if image not in found and len(its) == 1:
                claims.setdefault(its.pop(), []).append(image)
        free = {reference: its for reference, its in claims.items() if reference not in taken}
        for reference, (image, *others) in free.items():
            if others:
                raise InputError(f"{image!r} and {others[0]!r} could both be {reference!r}.",
                                 hint="name images by the same path in both files")  # fmt: skip
            found[image] = reference
        taken |= free.keys()
    return found


# --- The command ------------------------------------------------------------------------------------------------------


@dataclass
class EvaluateConfig:
    """Measure captions against those of people; without files, those that builtin:captions writes of unseen scenes."""

    predictions: str = ""
    """A jsonl or csv file with image and caption, or COCO's json."""
    references: str = ""
    """Likewise; an image may have several captions."""
    objects: str = "scenes"
    """What counts as an object: scenes (what builtin scenes hold), a text file with one a line, or words by commas."""
    images: str = ""
    """Folder of the images, for CLIPScore."""
    clip: str = ""
    """CLIP or SigLIP for CLIPScore, such as builtin:clip or openai/clip-vit-base-patch32; none by default."""
    clip_prompt: str = CLIP_PROMPT
    """Put before each caption for CLIPScore; the paper's, which builtin:clip is better without."""
    repeats: int = 1000
    """Draws of each interval."""
    device: str = field(default="auto", metadata=NOT_RECIPE)
    """auto, cpu, cuda or mps."""
    seed: int = field(default=0, metadata=NOT_RECIPE)
    """Of the drawing."""
    run: str = field(default="", metadata=NOT_RECIPE)
    """Name of this run's own folder; by default the time."""

    def __post_init__(self) -> None:
        """Check that all is there."""
        check_range("repeats", self.repeats, 100, 100_000)
        check_range("seed", self.seed, 0, 2**31 - 1)
        if bool(self.predictions) != bool(self.references):
            raise InputError("predictions and references go together.",
                             hint="--predictions p.jsonl --references captions.jsonl")  # fmt: skip
        if bool(self.clip) != bool(self.images):
            raise InputError("clip and images go together.", hint="--clip openai/clip-vit-base-patch32 --images photos")


def evaluate(config: EvaluateConfig) -> None:
    """Measure a file of captions; see :class:`EvaluateConfig`."""
    if config.predictions:
        said, known = read_captions(Path(config.predictions)), read_captions(Path(config.references))
    else:
        said, known = _of_scenes()
    if several := [image for image, its in said.captions.items() if len(its) > 1]:
        raise InputError(f"{config.predictions} has several captions for {len(several)} images, e.g. {several[0]!r}.")
    match = match_images(said, known)
    predictions = {image: said.captions[image][0] for image in match}
    references = {image: known.captions[match[image]] for image in match}
    skipped = {"without references": len(said.captions) - len(match),
               "without a prediction": len(known.captions) - len(match)}  # fmt: skip
    if not match:
        raise InputError(f"No image of {config.predictions} is in {config.references}.",
                         hint=f"{next(iter(said.captions))!r} against {next(iter(known.captions))!r}")  # fmt: skip
    for why, count in skipped.items():
        if count:
            logger.warning("%d images %s play no part", count, why)
    run = Run(PROJECT, MODULE, "evaluate", config, name=config.run)
    more = _clip_columns(config, predictions, references) if config.clip else {}
    report = evaluate_captions(predictions, references, find_objects=_finder(config.objects), more=more,
                               repeats=config.repeats, seed=config.seed)  # fmt: skip
    worst_first = sorted(report.captions, key=lambda row: row["CIDEr-D"])
    write_atomic(run.folder / "captions.jsonl",
                 "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in worst_first))  # fmt: skip
    write_atomic(run.folder / "table.txt", f"{report}\n")
    empty = sum(not tokenize(caption) for caption in predictions.values())
    metrics = {**report.metrics(), "empty captions": empty, **{f"images {why}": n for why, n in skipped.items()}}
    run.finish(model=config.clip or "–", data=config.references or "builtin:scenes", seed=config.seed,
               metrics=metrics)  # fmt: skip
    sys.stdout.write(f"{report}\n")
    logger.info("saved in %s", run.folder)


def _of_scenes(count: int = 200) -> tuple[CaptionFile, CaptionFile]:
    """Let ``builtin:captions`` caption unseen scenes, of which is known what is right."""
    from multimodal_llm.image_captioning.blip_model import caption_images, load_captioned, load_captioner
    from multimodal_llm.visual_question_answering.data_loader import Skipped

    images = load_captioned("builtin:scenes", split="test", count=count)
    made = caption_images(load_captioner().caption, [(one.name, one.image) for one in images], 64, Skipped())
    said = {name: [its.text] for name, its in made}
    return CaptionFile(said), CaptionFile({one.name: list(one.captions) for one in images})


def _finder(objects: str) -> FindObjects | None:
    if objects == "scenes":
        return scene_objects
    try:
        # Unlike Path.is_file, this takes words that are too long to be a file's name
        text = Path(objects).read_text(encoding="utf-8-sig") if os.path.isfile(objects) else objects
    except UnicodeDecodeError as error:
        raise InputError(f"{objects} is not UTF-8 text: {error}.") from None
    return object_finder(list(filter(None, map(str.strip, re.split("[,\n]", text)))))


def _clip_columns(
    config: EvaluateConfig, predictions: Mapping[str, str], references: Mapping[str, Sequence[str]]
) -> dict[str, Floats]:
    from multimodal_llm.clip_applications.zero_shot_classification import load_clip

    images = list(predictions)
    files = _image_files(Path(config.images), images)
    encoder = load_clip(config.clip, config.device)
    columns: list[tuple[Floats, Floats | None]] = []
    for start in range(0, len(images), 256):
        some = images[start : start + 256]
        columns.append(clip_scores(encoder, files[start : start + 256], [predictions[image] for image in some],
                                   [references[image] for image in some], prompt=config.clip_prompt))  # fmt: skip
    names = ("CLIPScore", "RefCLIPScore")
    return {name: np.concatenate(column) for name, column in zip(names, zip(*columns, strict=True), strict=True)}


def _image_files(folder: Path, images: Sequence[str]) -> list[Path]:
    """Find each image's file: at its path within the folder, else by its bare name where no other image has that."""
    bare = Counter(Path(image).name for image in images)
    files = [folder / image for image in images]
    for i, image in enumerate(images):
        if not files[i].is_file():
            name = Path(image).name
            if bare[name] > 1:
                raise InputError(f"{folder} has no {image!r}, and {bare[name]} images are called {name!r}.",
                                 hint="--images: the folder in which the images' paths begin")  # fmt: skip
            files[i] = folder / name
    return files


if __name__ == "__main__":
    run_commands({"evaluate": evaluate}, module=MODULE, extra="multimodal")
