"""Retrieval by words, and its fusion with retrieval by vectors.

    retriever = HybridRetriever(store=store, k=8)
    hits = retriever.search("What does C++ cost in 3.5?", filter={"document_name": "prices.pdf"})
    chain = retriever | prompt | model

BM25: Robertson and Zaragoza, 2009, in Lucene's form, with every weight computed before the first query as in bm25s (Lù,
2024, arXiv:2407.03618), whose scores these are; other than there, documents come and go without a rebuild.
"""

from __future__ import annotations

import functools
import re
import threading
import unicodedata
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from langchain_core.documents import Document
from langchain_core.retrievers import BaseRetriever
from numpy.typing import NDArray
from pydantic import PrivateAttr

from qa_system.document_processor.text_splitter import Chunk
from qa_system.document_processor.vector_store import CosineStore, Filter
from shared.config import check_range
from shared.errors import InputError

Run = Mapping[str, float]
Ranking = list[tuple[str, float]]


@dataclass(frozen=True)
class Hit:
    """A chunk that was found.

    Attributes:
        chunk: What was found.
        score: What it is ranked by, higher is better.
        scores: Its cosine as ``dense`` and its BM25 score as ``sparse``, as far as they were computed.
    """

    chunk: Chunk
    score: float
    scores: dict[str, float]


# --- Words ------------------------------------------------------------------------------------------------------------

UNSPACED = "\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff"  # kana and Han
ANY = rf"[^\W_{UNSPACED}]"  # letter or digit
LETTER = rf"[^\W\d_{UNSPACED}]"
TERM = re.compile(
    rf"(?P<unspaced>[{UNSPACED}]+)"
    rf"|(?P<dotted>(?<!{ANY})(?:{LETTER}\.){{2,}}(?:{LETTER}(?!{ANY}))?)"  # U.S.
    r"|(?P<name>(?<=\w )A(?![\w&+#-]))"  # vitamin A, but not the first word of a sentence
    # C++, A-1, R&D, max_tokens, 3.5, 1,000; but not "1, 2"
    rf"|(?P<word>{ANY}+(?:[-_&]{ANY}+|(?<=\d)(?:\.(?=\d)|,(?=\d{{3}}(?!\d))){ANY}+)*(?:\+\+|\#(?!\w))?)"
)
JOINTS = re.compile("[-_&]")
ACCENTS = re.compile(r"(?<=[A-Za-z])[\u0300-\u036f]+")
HYPHENS = str.maketrans({"\u2010": "-", "\u2011": "-", "\u00ad": None, "’": "'"})
ENDINGS = re.compile(r"(?<=\w)'(?:s|t|d|m|ll|re|ve)\b", re.IGNORECASE)
STOP_WORDS = frozenset(
    "a about an and are as at be by can could did do does for from had has have how i if in into is it its not of on "
    "or such than that the their then there these they this to was were what when where which who will with "
    "aren couldn didn doesn don hadn hasn haven isn shouldn wasn weren wouldn".split()
)
STOP_CHARACTERS = frozenset("的了是在和与吗呢吧么")
_stemmers = threading.local()  # PyStemmer's are for one thread


@functools.lru_cache(maxsize=100_000)
def _stem(word: str) -> str:
    if not hasattr(_stemmers, "english"):
        from Stemmer import Stemmer

        _stemmers.english = Stemmer("english", 0)
    return _stemmers.english.stemWord(word)


def tokenize(text: str) -> list[str]:
    """Return the terms of a text for BM25, in its order.

    Words are folded (case, Latin accents, full width) and stemmed by Snowball's English stemmer. Stop words are left
    out, but for those in capitals: WHO, vitamin A. ``C++``, ``C#``, ``3.5``, ``U.S.`` and letters are terms. What
    ``-``, ``_`` or ``&`` joins gives its parts, and also the whole unless it is words with hyphens: ``A-1``. Chinese
    gives every character and every two neighbors; stop characters only the latter.
    """
    if not text.isascii():
        text = unicodedata.normalize("NFC", ACCENTS.sub("", unicodedata.normalize("NFKD", text))).translate(HYPHENS)
    text = ENDINGS.sub("", text)
    shouted = text.isupper()  # capitals mean nothing then
    terms: list[str] = []
    for match in TERM.finditer(text):
        term, word = match[0], match[0].casefold()
        if match.lastgroup == "unspaced":
            terms += [character for character in term if character not in STOP_CHARACTERS]
            terms += map("".join, zip(term, term[1:], strict=False))
        elif match.lastgroup != "word":
            terms.append(word.replace(".", ""))
        elif JOINTS.search(word):
            parts = JOINTS.split(word)
            if "_" in word or "&" in word or any(len(part) == 1 or not part.isalpha() for part in parts):
                terms.append("".join(map(_stem, re.split("([-_&])", word))))
            terms += [_stem(part) for part in parts if len(part) > 1 and part not in STOP_WORDS]
        elif word not in STOP_WORDS or len(term) > 1 and term.isupper() and not shouted:
            terms.append(_stem(word.replace(",", "")))
    return terms


# --- BM25 -------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Postings:
    """All weights of one state of the index, by term; never changed, so whoever searches it needs no lock."""

    ids: list[str]  # by row, sorted, so that equal scores in the order of rows are in the order of ids
    rows: dict[str, int]
    vocabulary: dict[str, int]  # term → number; terms that come later are added to it, and not in the next three
    starts: NDArray[np.int32]  # (V + 1,): a term's place in the next two
    places: NDArray[np.int32]  # rows
    weights: NDArray[np.float32]


class BM25Index:
    """BM25 over texts that come and go.

    The score of a text d for a query q, with N texts of mean length L of which n(t) have the term t f(t, d) times:
    Σ_{t in q} ln(1 + (N - n(t) + ½) / (n(t) + ½)) · f(t, d) / (f(t, d) + k1 · (1 - b + b · |d| / L)).

    Of a text the counts of its terms are kept. The weights, all of which any change shifts, are made from them at the
    first search after it, which takes some 40 ms for 10,000 chunks. Terms that no text has any more go then, once they
    are most. Threads may change and search at once.

    Args:
        k1: How much a term's repetition counts, at least 0.
        b: How much a text's length counts, in [0, 1].
    """

    def __init__(self, k1: float = 1.2, b: float = 0.75) -> None:
        check_range("k1", k1, 0)
        check_range("b", b, 0, 1)
        self.k1, self.b = k1, b
        self._vocabulary: dict[str, int] = {}
        self._counts: dict[str, NDArray[np.int32]] = {}  # id → its terms' numbers and counts, (2, U)
        self._postings: _Postings | None = None
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self._counts)

    def __contains__(self, id: object) -> bool:
        return id in self._counts

    def add(self, ids: Sequence[str], texts: Sequence[str]) -> None:
        """Add texts, or replace those of the same id.

        Raises:
            InputError: There are not as many ids as texts.
        """
        if len(ids) != len(texts):
            raise InputError(f"ids must be as many as the texts, {len(texts)}. Got {len(ids)}.")
        counters = [Counter(tokenize(text)) for text in texts]
        with self._lock:
            numbers = self._vocabulary
            for id, counter in zip(ids, counters, strict=True):
                terms = [numbers.setdefault(term, len(numbers)) for term in counter]
                self._counts[id] = np.array([terms, list(counter.values())], dtype=np.int32)
            self._postings = None

    def delete(self, ids: Iterable[str]) -> None:
        """Delete texts by id, as far as they are there."""
        with self._lock:
            for id in ids:
                self._counts.pop(id, None)
            self._postings = None

    def search(self, query: str, k: int, allowed: Collection[str] | None = None) -> Ranking:
        """Find the texts that fit a query best.

        Args:
            query: Any text; an empty one finds nothing.
            k: How many, at least 1; fewer come back where fewer share a term with the query.
            allowed: The ids to rank; None is all.

        Returns:
            Id and score, which is positive, best first, ties by id.
        """
        check_range("k", k, 1)
        postings = self._current()
        scores = self._score(postings, query)
        if allowed is not None:
            mask = np.zeros(len(scores), dtype=bool)
            mask[[postings.rows[id] for id in allowed if id in postings.rows]] = True
            scores = scores * mask
        least = np.partition(scores, -k)[-k] if k < len(scores) else 0
        found = np.flatnonzero((scores > 0) & (scores >= least))  # with all that share the last place
        best = found[np.argsort(-scores[found], kind="stable")[:k]]
        return [(postings.ids[row], score) for row, score in zip(best.tolist(), scores[best].tolist(), strict=True)]

    def scores(self, query: str, ids: Iterable[str] | None = None) -> dict[str, float]:
        """Return the scores of these ids, or of all, as far as they are there; 0 is no term in common."""
        postings = self._current()
        scores = self._score(postings, query)
        chosen = postings.ids if ids is None else [id for id in ids if id in postings.rows]
        return {id: float(scores[postings.rows[id]]) for id in chosen}

    def _score(self, postings: _Postings, query: str) -> NDArray[np.float32]:
        scores = np.zeros(len(postings.ids), dtype=np.float32)
        for term in tokenize(query):
            number = postings.vocabulary.get(term, len(postings.starts))
            if number < len(postings.starts) - 1:  # others came after these postings
                its = slice(postings.starts[number], postings.starts[number + 1])
                scores[postings.places[its]] += postings.weights[its]
        return scores

    def _current(self) -> _Postings:
        if (postings := self._postings) is not None:
            return postings
        with self._lock:
            if self._postings is None:
                self._postings = self._weighed()
            return self._postings

    def _weighed(self) -> _Postings:
        from scipy.sparse import csr_array

        ids, total = sorted(self._counts), len(self._counts)
        counts = [self._counts[id] for id in ids]
        terms, values = np.concatenate([np.zeros((2, 0), dtype=np.int32), *counts], axis=1)
        used = np.bincount(terms, minlength=len(self._vocabulary)) > 0
        if 2 * used.sum() < len(used):
            self._keep(used)
            return self._weighed()
        ends = np.cumsum([0, *(count.shape[1] for count in counts)])
        table = csr_array((values, terms, ends), shape=(total, len(self._vocabulary)))
        lengths = table.sum(axis=1)
        mean = lengths.mean() if len(values) else 1.0
        norms = self.k1 * (1 - self.b + self.b * lengths / mean)  # (N,)
        table = table.tocsc()
        having = np.diff(table.indptr)  # (V,)
        rarity = np.log(1 + (total - having + 0.5) / (having + 0.5)).astype(np.float32)
        weights = np.repeat(rarity, having) * (table.data / (norms[table.indices] + table.data))
        rows = {id: row for row, id in enumerate(ids)}
        return _Postings(ids, rows, self._vocabulary, table.indptr, table.indices, weights.astype(np.float32))

    def _keep(self, used: NDArray[np.bool_]) -> None:
        """Number these terms anew, and forget the others."""
        numbers = np.cumsum(used, dtype=np.int32) - 1
        # Earlier postings, in which someone may be searching, have the old dict
        self._vocabulary = {term: int(numbers[old]) for term, old in self._vocabulary.items() if used[old]}
        self._counts = {id: np.stack([numbers[terms], values]) for id, (terms, values) in self._counts.items()}


# --- Fusion -----------------------------------------------------------------------------------------------------------


def _ranked(scores: Mapping[str, float]) -> Ranking:
    return sorted(scores.items(), key=lambda item: (-item[1], item[0]))


def reciprocal_rank_fusion(rankings: Sequence[Sequence[str]], k: int = 60) -> Ranking:
    """Fuse rankings: score(d) = Σ 1 / (k + rank(d)), over those that have d (Cormack et al., 2009).

    Args:
        rankings: Each the ids of chunks, best first; of an id that comes again, the first rank counts.
        k: How little the first ranks stand out.

    Returns:
        Every id once with its score, best first, ties by id.
    """
    fused: dict[str, float] = {}
    for ranking in rankings:
        for rank, id in enumerate(dict.fromkeys(ranking), 1):
            fused[id] = fused.get(id, 0.0) + 1 / (k + rank)
    return _ranked(fused)


def min_max_fusion(runs: Sequence[Run], weights: Sequence[float]) -> Ranking:
    """Fuse scores: score(d) = Σ w · (s(d) - min) / (max - min) (Lee, 1997; Bruch et al., 2022, arXiv:2210.11934).

    Args:
        runs: Each chunk id → score.
        weights: One for each run.

    Returns:
        Every id once with its score, best first, ties by id. What a run lacks gets its minimum, so 0.
    """

    def scaled(scores: NDArray[np.float64]) -> NDArray[np.float64]:
        low, high = scores.min(), scores.max()
        return (scores - low) / (high - low) if high > low else np.zeros_like(scores)

    return _fused(runs, weights, scaled)


def z_score_fusion(runs: Sequence[Run], weights: Sequence[float]) -> Ranking:
    """Fuse scores: score(d) = Σ w · (s(d) - mean) / standard deviation (Montague and Aslam, 2001).

    Args:
        runs: Each chunk id → score.
        weights: One for each run.

    Returns:
        Every id once with its score, best first, ties by id. What a run lacks gets its minimum.
    """

    def scaled(scores: NDArray[np.float64]) -> NDArray[np.float64]:
        deviation = scores.std()
        return (scores - scores.mean()) / deviation if deviation > 1e-12 else np.zeros_like(scores)

    return _fused(runs, weights, scaled)


def _fused(
    runs: Sequence[Run], weights: Sequence[float], scaled: Callable[[NDArray[np.float64]], NDArray[np.float64]]
) -> Ranking:
    if len(runs) != len(weights):
        raise InputError(f"weights must be as many as the runs, {len(runs)}. Got {len(weights)}.")
    ids = sorted(set().union(*runs))
    fused = np.zeros(len(ids))
    for run, weight in zip(runs, weights, strict=True):
        if run:
            values = scaled(np.array(list(run.values()), dtype=np.float64))
            by_id = dict(zip(run, values.tolist(), strict=True))
            lowest = values.min()
            fused += weight * np.array([by_id.get(id, lowest) for id in ids])
    return _ranked(dict(zip(ids, fused.tolist(), strict=True)))


MODES, FUSIONS = ("hybrid", "dense", "sparse"), ("z-score", "min-max", "rrf")
CANDIDATES = 200  # of each half; on six collections so many gave what normalizing over all documents gives
SPARSE_WEIGHT = 0.4  # of z-scores and min-max; from .3 to .5 all are alike there


def _check_choice(name: str, value: str, allowed: Sequence[str]) -> None:
    if value not in allowed:
        raise InputError(f"{name} must be one of {', '.join(allowed)}. Got {value!r}.")


class HybridRetriever(BaseRetriever):
    """The best chunks of a store by cosine, by BM25, or by both, as LangChain's retriever.

    The BM25 index is made of the store and follows it: before a search, what came and went since the last is added and
    deleted. Both halves offer their best candidates of those that the filter lets pass; each of these gets its exact
    cosine and its BM25 score, which are then fused. Threads may search while others change the store.

    Args:
        store: Of chunks.
        k: How many to find.
        mode: ``hybrid``, ``dense`` or ``sparse``.
        fusion: ``z-score``, ``min-max`` or ``rrf``.

    Raises:
        InputError: An argument is out of range.
    """

    store: CosineStore
    k: int = 8
    mode: str = "hybrid"
    fusion: str = "z-score"
    _index: BM25Index = PrivateAttr(default_factory=BM25Index)
    _texts: dict[str, str] = PrivateAttr(default_factory=dict)
    _version: Any = PrivateAttr(default=None)
    _lock: Any = PrivateAttr(default_factory=threading.Lock)

    def __init__(self, **fields: Any) -> None:
        super().__init__(**fields)
        # Here, for pydantic's own validators would turn an InputError into its ValidationError.
        check_range("k", self.k, 1)
        _check_choice("mode", self.mode, MODES)
        _check_choice("fusion", self.fusion, FUSIONS)

    def search(self, question: str, k: int | None = None, filter: Filter = None, mode: str | None = None) -> list[Hit]:
        """Find chunks.

        Args:
            question: Any text that is not blank.
            k: How many, at least 1; None is the retriever's own. Fewer come back where fewer fit.
            filter: See :meth:`CosineStore.similarity_search_with_score`.
            mode: None is the retriever's own.

        Returns:
            Best first, ties by id. The score is the cosine or the BM25 score, in hybrid what the fusion makes of both.

        Raises:
            InputError: The question is blank, an argument is wrong, or the store holds other than chunks.
        """
        found = self._find(question, k, filter, mode)
        return [Hit(Chunk.from_document(document), score, scores) for document, score, scores in found]

    def _get_relevant_documents(
        self, query: str, *, run_manager: Any = None, k: int | None = None, filter: Filter = None,
        mode: str | None = None,
    ) -> list[Document]:  # fmt: skip
        found = self._find(query, k, filter, mode)
        for document, score, _ in found:
            document.metadata["score"] = score  # it is a copy of the store's
        return [document for document, _, _ in found]

    def _find(
        self, question: str, k: int | None, filter: Filter, mode: str | None
    ) -> list[tuple[Document, float, dict[str, float]]]:
        k, mode = self.k if k is None else k, mode or self.mode
        check_range("k", k, 1)
        _check_choice("mode", mode, MODES)
        if not question.strip():
            raise InputError("The question is empty.")
        if mode == "dense":
            hits = self.store.similarity_search_with_score(question, k, filter)
            return [(document, score, {"dense": score}) for document, score in hits]
        self._follow()
        allowed = None if filter is None else self.store.texts(filter).keys()
        if mode == "sparse":
            sparse = dict(self._index.search(question, k, allowed))
            runs, ranked = {"sparse": sparse}, _ranked(sparse)
        else:
            most = max(k, CANDIDATES)
            vector = self.store.embedding.embed_query(question)
            dense = self.store.nearest(vector, most, filter)
            lacking = [id for id, _ in self._index.search(question, most, allowed) if id not in dense]
            dense |= self.store.cosines(vector, lacking)
            sparse = dict.fromkeys(dense, 0.0) | self._index.scores(question, dense)
            runs, ranked = {"dense": dense, "sparse": sparse}, self._fuse(dense, sparse)
        documents = {document.id: document for document in self.store.get_by_ids([id for id, _ in ranked[:k]])}
        return [
            (documents[id], score, {name: run[id] for name, run in runs.items()})
            for id, score in ranked[:k]
            if id in documents  # what was deleted meanwhile
        ]

    def _fuse(self, dense: dict[str, float], sparse: dict[str, float]) -> Ranking:
        if self.fusion == "rrf":
            rankings = [[id for id, score in _ranked(run) if run is dense or score > 0] for run in (dense, sparse)]
            return reciprocal_rank_fusion(rankings)
        fuse = z_score_fusion if self.fusion == "z-score" else min_max_fusion
        return fuse([dense, sparse], [1 - SPARSE_WEIGHT, SPARSE_WEIGHT])

    def _follow(self) -> None:
        """Bring the index in step with the store."""
        if self.store.version == self._version:
            return
        with self._lock:
            if (version := self.store.version) == self._version:
                return
            texts = self.store.texts()
            self._index.delete([id for id in self._texts if id not in texts])
            came = [id for id, text in texts.items() if self._texts.get(id) != text]
            self._index.add(came, [texts[id] for id in came])
            self._texts, self._version = texts, version
