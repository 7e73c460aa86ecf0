"""Chunks as vectors, behind LangChain's ``VectorStore`` interface: FAISS in a folder, or Milvus.

    store = FaissStore(embedding, "outputs/qa_system/index")    # or MilvusStore(embedding, "http://localhost:19530")
    store.add_documents(documents)
    store.similarity_search_with_score("what is attention?", k=3, filter={"document_name": ["a.pdf", "b.pdf"]})
    chain = store.as_retriever(search_kwargs={"k": 3}) | prompt | model

The score is the cosine, in [-1, 1], of vectors that are normalized here; ties go by id. A filter acts before the best k
are chosen. HNSW: Malkov and Yashunin, 2016 (arXiv:1603.09320); product quantization: Jégou et al., 2011.
"""

from __future__ import annotations

import copy
import hashlib
import json
import logging
import math
import os
import re
import threading
import uuid
from abc import abstractmethod
from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from contextlib import nullcontext, suppress
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, get_origin, get_type_hints

import numpy as np
from langchain_core.documents import Document
from langchain_core.embeddings import Embeddings
from langchain_core.vectorstores import VectorStore
from numpy.typing import ArrayLike, NDArray

from shared.config import check_range
from shared.errors import InputError
from shared.results import write_atomic

Filter = dict[str, Any] | Callable[[Document], bool] | None
Hits = list[tuple[Document, float]]
logger = logging.getLogger(__name__)


def model_name(embedding: Embeddings) -> str:
    """Return what an embedding calls its model: ``name``, ``model_name`` or ``model``, else its class."""
    names = (getattr(embedding, attribute, None) for attribute in ("name", "model_name", "model"))
    return next((name for name in names if name and isinstance(name, str)), type(embedding).__name__)


def unit_vectors(vectors: ArrayLike, count: int) -> NDArray[np.float32]:
    """Return ``count`` vectors scaled to length 1, (count, D) in float32.

    Raises:
        InputError: They are not that many of one length, or one is zero, NaN or infinite.
    """
    try:
        rows = np.asarray(vectors, dtype=np.float64)
    except (TypeError, ValueError):
        raise InputError("The embedding must give numbers, as many for every text.") from None
    if rows.ndim != 2 or len(rows) != count or not rows.size:
        raise InputError(f"The embedding must give {count} vectors of one length. Got an array of shape {rows.shape}.")
    lengths = np.linalg.norm(rows, axis=1, keepdims=True)
    for wrong, what in ((~np.isfinite(lengths), "NaN or infinite"), (lengths == 0, "zero")):
        if wrong.any():
            raise InputError(f"The embedding gave a vector that is {what}, number {int(wrong.argmax())} of {count}.")
    return (rows / lengths).astype(np.float32)


def _checked(document: Document, name: str) -> Document:
    """Return a document with an id, as it comes back from JSON, so that one just added equals one that was saved."""
    if not document.page_content.strip():
        raise InputError(f"{name} has no text.")
    try:
        content = json.dumps(
            [document.page_content, document.metadata], ensure_ascii=False, sort_keys=True, allow_nan=False
        )
        # With its metadata: the same sentence on two pages is two documents.
        digest = hashlib.sha256(f"{document.id or ''}{content}".encode()).hexdigest()
    except (TypeError, ValueError, RecursionError) as error:
        raise InputError(f"{name} can't be kept as UTF-8 JSON: {error}.") from None
    text, metadata = json.loads(content)
    return Document(id=document.id or f"sha256:{digest}", page_content=text, metadata=metadata)


def _checked_filter(filter: Filter) -> Filter:
    """Return a filter, a dict with a list of values for each key.

    Raises:
        InputError: It is neither a dict nor callable, or a value is not a string, a finite number or a truth value.
    """
    if filter is None or callable(filter):
        return filter
    if not isinstance(filter, dict) or not all(isinstance(key, str) for key in filter):
        raise InputError(f"filter must be a dict of metadata key → value or values, or callable. Got {filter!r:.200}.")
    wanted = {key: list(v) if isinstance(v, (list, tuple, set)) else [v] for key, v in filter.items()}
    for value in (value for values in wanted.values() for value in values):
        if not isinstance(value, (str, int, float)) or isinstance(value, float) and not math.isfinite(value):
            raise InputError(f"filter values must be strings, finite numbers or truth values. Got {value!r:.200}.")
    return wanted or None


def _predicate(filter: Filter) -> Callable[[Document], bool]:
    if callable(filter):
        return filter
    wanted = list((filter or {}).items())
    return lambda document: all(document.metadata.get(key) in values for key, values in wanted)


class CosineStore(VectorStore):
    """What both stores share: checks, embedding, dedupe, and LangChain's methods, over a few of their own.

    Args:
        embedding: Anything of LangChain's; its vectors need not be normalized.
    """

    def __init__(self, embedding: Embeddings) -> None:
        self.embedding = embedding
        self.model = model_name(embedding)

    @abstractmethod
    def __len__(self) -> int: ...

    @property
    @abstractmethod
    def version(self) -> Hashable:
        """What tells two states of the store apart; asking costs little."""

    @abstractmethod
    def _matching(self, filter: Filter) -> Iterator[Document]:
        """Yield what passes a checked filter; the documents are not to be changed."""

    @abstractmethod
    def _change(self, gone: list[str], documents: list[Document], vectors: NDArray[np.float32] | None) -> None:
        """Delete these ids; or put documents, whose ids they are, and vectors (N, D) in their place."""

    @abstractmethod
    def _search(self, query: NDArray[np.float32], k: int, filter: Filter) -> Hits:
        """Find the best k for a query (1, D); the documents are not to be changed."""

    @abstractmethod
    def _vectors(self, ids: list[str], dimension: int) -> tuple[list[str], ArrayLike]:
        """Return those of these ids that are there, and their unit vectors (N, D); D must be ``dimension``."""

    @property
    def embeddings(self) -> Embeddings:
        """The embedding, where LangChain looks for it."""
        return self.embedding

    def documents(self) -> Iterator[Document]:
        """Yield every document, in no order to rely on."""
        return map(_copy, self._matching(None))

    def texts(self, filter: Filter = None) -> dict[str, str]:
        """Return the text of every document by id, or of those that pass a filter."""
        return {document.id: document.page_content for document in self._matching(_checked_filter(filter))}

    def add_documents(
        self, documents: Sequence[Document], *, ids: Sequence[str | None] | None = None,
        vectors: ArrayLike | None = None,
    ) -> list[str]:  # fmt: skip
        """Add documents, or replace those of the same id; one that is there already as it is stays as it is.

        Args:
            documents: With text, and with metadata that JSON can hold. Without an id, one gets the hash of its text and
                metadata.
            ids: In the place of the documents' own.
            vectors: (N, D), embedded elsewhere; by default they are embedded here.

        Returns:
            The id of every document.

        Raises:
            InputError: A text is empty, metadata is not JSON, two documents that differ have one id, the vectors have
                another dimension than those here, or are zero or NaN. Nothing was added then.
        """
        documents = list(documents)
        if ids is not None:
            if isinstance(ids, str) or len(ids) != len(documents):
                raise InputError(f"ids must be as many as the documents, {len(documents)}. Got {ids!r:.200}.")
            documents = [document.model_copy(update={"id": id}) for document, id in zip(documents, ids, strict=True)]
        rows: dict[str, int] = {}
        for row, document in enumerate(documents):
            documents[row] = document = _checked(document, f"documents[{row}]")
            if documents[rows.setdefault(document.id, row)] != document:
                raise InputError(f"Two documents that differ have the id {document.id!r}.")
        there = {document.id: document for document in self.get_by_ids(list(rows))}
        fresh = [row for id, row in rows.items() if there.get(id) != documents[row]]
        if fresh:
            new = [documents[row] for row in fresh]
            if vectors is None:
                units = unit_vectors(self.embedding.embed_documents([d.page_content for d in new]), len(new))
            else:
                units = unit_vectors(vectors, len(documents))[fresh]
            self._change([document.id for document in new], new, units)
        return [document.id for document in documents]

    def add_texts(
        self, texts: Iterable[str], metadatas: Sequence[dict[str, Any]] | None = None, *,
        ids: Sequence[str | None] | None = None, **kwargs: Any,
    ) -> list[str]:  # fmt: skip
        """Add texts; see :meth:`add_documents`.

        Raises:
            InputError: Also if there are not as many metadatas as texts.
        """
        texts = list(texts)
        if metadatas is not None and len(metadatas) != len(texts):
            raise InputError(f"metadatas must be as many as the texts, {len(texts)}. Got {len(metadatas)}.")
        pairs = zip(texts, metadatas or [{}] * len(texts), strict=True)
        return self.add_documents([Document(page_content=t, metadata=m) for t, m in pairs], ids=ids, **kwargs)

    @classmethod
    def from_texts(
        cls, texts: list[str], embedding: Embeddings, metadatas: list[dict[str, Any]] | None = None, *,
        ids: list[str] | None = None, **kwargs: Any,
    ) -> CosineStore:  # fmt: skip
        """Make a store, its arguments given by name, and add texts."""
        store = cls(embedding, **kwargs)
        store.add_texts(texts, metadatas, ids=ids)
        return store

    def delete(self, ids: Sequence[str] | None = None, **kwargs: Any) -> bool:
        """Delete documents by id; None deletes all, as LangChain has it.

        Returns:
            Whether all of them were there; those that were are deleted in any case.

        Raises:
            InputError: ids is a string.
        """
        if isinstance(ids, str):
            raise InputError(f"ids must be a list of strings. Got {ids!r:.200}.")
        wanted = list(self.texts() if ids is None else dict.fromkeys(ids))
        there = {document.id for document in self.get_by_ids(wanted)}
        self._change([id for id in wanted if id in there], [], None)
        return len(there) == len(wanted)

    def similarity_search_with_score(self, query: str | ArrayLike, k: int = 4, filter: Filter = None) -> Hits:
        """Find the documents whose vectors are nearest to a text's.

        Args:
            query: The text; or its vector (D,), of any length.
            k: How many, at least 1; fewer come back where fewer are there.
            filter: Metadata key → a value or a list of values, all keys to hold; or a function of a document. Only
                what passes is ranked. A list in the metadata equals none of the values; take a function there.

        Returns:
            Document and cosine, best first, ties by id.

        Raises:
            InputError: The query is empty, or its vector zero, NaN or of another dimension; k or filter is wrong.
        """
        return [(_copy(document), score) for document, score in self._nearest(query, k, filter)]

    def similarity_search(self, query: str | ArrayLike, k: int = 4, filter: Filter = None) -> list[Document]:
        """Find documents; see :meth:`similarity_search_with_score`."""
        return [document for document, _ in self.similarity_search_with_score(query, k, filter)]

    def similarity_search_by_vector(self, embedding: ArrayLike, k: int = 4, filter: Filter = None) -> list[Document]:
        """Find documents by a vector (D,); see :meth:`similarity_search_with_score`."""
        return self.similarity_search(embedding, k, filter)

    def nearest(self, query: str | ArrayLike, k: int = 4, filter: Filter = None) -> dict[str, float]:
        """Find ids and their cosines, best first; see :meth:`similarity_search_with_score`."""
        return {document.id: score for document, score in self._nearest(query, k, filter)}

    def cosines(self, query: str | ArrayLike, ids: Sequence[str]) -> dict[str, float]:
        """Compare a text, or its vector (D,), with the documents of these ids, exactly.

        Returns:
            The cosine of each id that is there.
        """
        unit = self._query(query)
        found, vectors = self._vectors(list(ids), unit.shape[1])
        return {id: _cosine(np.dot(vector, unit[0])) for id, vector in zip(found, vectors, strict=True)}

    def _nearest(self, query: str | ArrayLike, k: int, filter: Filter) -> Hits:
        check_range("k", k, 1)
        return self._search(self._query(query), k, _checked_filter(filter))

    def _query(self, query: str | ArrayLike) -> NDArray[np.float32]:
        if isinstance(query, str):
            if not query.strip():
                raise InputError("The query is empty.")
            query = self.embedding.embed_query(query)
        return unit_vectors([query], 1)

    def _select_relevance_score_fn(self) -> Callable[[float], float]:
        return lambda cosine: max(cosine, 0.0)  # LangChain wants [0, 1], and its threshold should mean the cosine


def _check_dimension(here: int, came: int) -> None:
    if came != here:
        raise InputError(
            f"The vectors here have {here} dimensions. Got one of {came}.",
            hint="the same embedding as before; or, for another, a new folder or collection",
        )


def _best(k: int, nearest: Callable[[int], Hits]) -> Hits:
    """Return the best k of a search, ties by id: it is asked for more for as long as the last place is shared."""
    fetch = k + 1
    while True:
        hits = nearest(fetch)
        if len(hits) < fetch or hits[-1][1] < hits[k - 1][1]:
            return sorted(hits, key=lambda hit: (-hit[1], hit[0].id))[:k]
        fetch *= 2


def _cosine(score: float) -> float:
    return min(max(float(score), -1.0), 1.0)


def _copy(document: Document) -> Document:
    """Return a document that the caller may change."""
    return document.model_copy(update={"metadata": copy.deepcopy(document.metadata)})


# --- FAISS ------------------------------------------------------------------------------------------------------------

KINDS = ("flat", "hnsw", "ivfpq")
HNSW_LINKS, HNSW_BUILD, HNSW_SEARCH = 16, 80, 96  # M, efConstruction, efSearch
PROBED = 16  # one inverted list in so many
PQ_CODES = 256  # 8 bits
TRAINING_POINTS = 39  # for every centroid; with fewer FAISS warns
FORMAT = 1
MANIFEST = "manifest.json"
ROLES = ("index", "documents")
LEFT_OVER = ("index-*.faiss", "documents-*.jsonl", ".index-*", ".documents-*", f".{MANIFEST}.*")


@dataclass(frozen=True)
class _Manifest:
    """What the folder says of its newest generation."""

    generation: int
    model: str
    dimension: int
    index: str
    documents: int
    rows: int
    sha256: dict[str, str]  # role → of its file
    format: int = FORMAT


FIELDS = get_type_hints(_Manifest)


@dataclass(frozen=True)
class _State:
    """One generation. It is never changed, so whoever searches it needs no lock."""

    documents: list[Document | None]  # by row of the index; None was deleted
    rows: dict[str, int]  # id → row
    index: Any  # a faiss.Index, or None before the first document
    live: NDArray[np.bool_] = field(default_factory=lambda: np.zeros(0, dtype=bool))  # by row
    generation: int = 0
    manifest: bytes | None = None  # what the folder says as long as this is the newest


def _flat(index: Any) -> Any:
    """Return the exact index inside an index; its rows are the same."""
    import faiss

    if isinstance(index, faiss.IndexRefineFlat):
        return faiss.downcast_index(index.refine_index)
    return faiss.downcast_index(index.storage) if isinstance(index, faiss.IndexHNSW) else index


def _lists(index: Any) -> int:
    """Return the number of inverted lists of an index; 0 is none."""
    import faiss

    return faiss.downcast_index(index.base_index).nlist if isinstance(index, faiss.IndexRefineFlat) else 0


def _wanted_lists(kind: str, count: int) -> int:
    if kind != "ivfpq" or count < PQ_CODES * TRAINING_POINTS:
        return 0
    return min(int(4 * math.sqrt(count)), count // TRAINING_POINTS)


def _build(kind: str, vectors: NDArray[np.float32]) -> Any:
    """Build an index of unit vectors (N, D)."""
    import faiss

    count, dimension = vectors.shape
    index = faiss.IndexFlatIP(dimension)
    if kind == "hnsw":
        index = faiss.IndexHNSWFlat(dimension, HNSW_LINKS, faiss.METRIC_INNER_PRODUCT)
        index.hnsw.efConstruction = HNSW_BUILD
    elif lists := _wanted_lists(kind, count):
        codes = next(codes for codes in range(max(dimension // 8, 1), 0, -1) if dimension % codes == 0)
        coarse = faiss.IndexIVFPQ(index, dimension, lists, codes, 8, faiss.METRIC_INNER_PRODUCT)
        index = faiss.IndexRefineFlat(coarse)  # codes choose candidates, which get their exact cosine
        logger.info("training %d lists and %d codes a vector on %d vectors", lists, codes, count)
        index.train(vectors)
    elif kind == "ivfpq":
        logger.info("ivfpq needs %d vectors to train: exact search until then", PQ_CODES * TRAINING_POINTS)
    index.add(vectors)
    return index


class FaissStore(CosineStore):
    """Vectors in FAISS, in memory and, where a folder is given, in files that every change replaces as a whole.

    Threads and processes may search and write at once: one writes at a time, after taking up the newest generation; a
    search sees the newest or, whole, the one before. A kill at any moment leaves the old generation or the new.

    Args:
        embedding: Anything of LangChain's; its vectors need not be normalized.
        folder: Where the store is kept; made if it is not there. None keeps it in memory only.
        index: ``flat`` is exact. ``hnsw`` is a graph: approximate, fast, slow to build; its links depend on the order
            of threads. ``ivfpq`` is inverted lists and product quantization: exact until there are 9,984 vectors to
            train on. All three keep the full vectors, so that every score is exact; from the last two, what is deleted
            goes when it is a fifth, and the index is built anew.

    Raises:
        InputError: No such index; or the folder holds another kind, another model's vectors, or damaged files.
    """

    def __init__(self, embedding: Embeddings, folder: str | Path | None = None, index: str = "flat") -> None:
        super().__init__(embedding)
        if index not in KINDS:
            raise InputError(f"index must be one of {', '.join(KINDS)}. Got {index!r}.")
        self.kind = index
        self.folder = None if folder is None else Path(folder)
        self._writing, self._publishing = threading.Lock(), threading.Lock()
        self._state = _State([], {}, None)
        if self.folder is not None:
            self.folder.mkdir(parents=True, exist_ok=True)
            later = any(path > _path(self.folder, "documents", 1) for path in self.folder.glob("documents-*.jsonl"))
            if later and _manifest_of(self.folder) is None:  # the first alone may be what a killed writer left
                raise _damaged(self.folder, f"{MANIFEST} is missing")
        self._current()

    @classmethod
    def load(cls, folder: str | Path, embedding: Embeddings) -> FaissStore:
        """Open the store of a folder, of whichever kind it is.

        Raises:
            InputError: There is none, it is damaged, or of another model.
        """
        if (text := _manifest_of(Path(folder))) is None:
            raise InputError(f"There is no vector store in {folder}.", hint="add documents first")
        return cls(embedding, folder, _parse(Path(folder), text).index)

    def __len__(self) -> int:
        return len(self._current().rows)

    @property
    def version(self) -> int:
        """The generation, which every change raises."""
        return self._current().generation

    def _matching(self, filter: Filter) -> Iterator[Document]:
        passes = _predicate(filter)
        return (document for document in self._current().documents if document is not None and passes(document))

    def get_by_ids(self, ids: Sequence[str], /) -> list[Document]:
        """Return the documents of these ids, as far as they are there."""
        state = self._current()
        return [_copy(state.documents[state.rows[id]]) for id in dict.fromkeys(ids) if id in state.rows]

    def _vectors(self, ids: list[str], dimension: int) -> tuple[list[str], ArrayLike]:
        state = self._current()
        if found := [id for id in ids if id in state.rows]:
            _check_dimension(state.index.d, dimension)
            return found, _flat(state.index).reconstruct_batch([state.rows[id] for id in found])
        return [], []

    def _search(self, query: NDArray[np.float32], k: int, filter: Filter) -> Hits:
        import faiss

        state = self._current()
        if not state.rows:
            return []
        _check_dimension(state.index.d, query.shape[1])
        allowed = state.live
        if filter is not None:
            passes = _predicate(filter)
            allowed = np.array([d is not None and bool(passes(d)) for d in state.documents])
        count, size, flat = int(allowed.sum()), len(allowed), _flat(state.index)
        if count == 0:
            return []
        selector = None if count == size else faiss.IDSelectorBitmap(np.packbits(allowed, bitorder="little"))
        # A few are compared one by one: exact, and sooner done than a walk that passes over all the others.
        exact = flat is state.index or count < max(size // 10, 20 * k)

        def nearest(fetch: int) -> Hits:
            fetch = min(fetch, count)
            rows = np.full(fetch, -1)
            if not exact:
                parameters = _parameters(state.index, fetch, size / count, selector)
                [found], [rows] = state.index.search(query, fetch, params=parameters)
            if (rows < 0).any():  # the candidates ran out before enough of them were allowed
                [found], [rows] = flat.search(query, fetch, params=faiss.SearchParameters(sel=selector))
            pairs = zip(rows.tolist(), found.clip(-1, 1).tolist(), strict=True)
            return [(state.documents[row], score) for row, score in pairs]

        return _best(k, nearest)

    def _change(self, gone: list[str], documents: list[Document], vectors: NDArray[np.float32] | None) -> None:
        """Make the newest generation's successor, save it and show it to readers; one writer at a time."""
        from filelock import FileLock

        with self._writing, nullcontext() if self.folder is None else FileLock(self.folder / "lock"):
            state = self._current()
            changed = self._successor(state, gone, documents, vectors)
            if changed is state:
                return
            with self._publishing:  # readers here don't read again what is in memory
                self._state = changed if self.folder is None else self._saved(self.folder, changed)
            if self.folder is not None:
                _tidy(self.folder, changed.generation)

    def _successor(
        self, state: _State, gone: list[str], documents: list[Document], vectors: NDArray[np.float32] | None
    ) -> _State:
        """Return a state without the ids of ``gone`` and then with documents; the same if nothing changes."""
        import faiss

        dead = [state.rows[id] for id in gone if id in state.rows]
        if not dead and not documents:
            return state
        live, index = state.live.copy(), state.index
        live[dead] = False
        old = [document if keep else None for document, keep in zip(state.documents, live, strict=True)]
        if index is None:
            index = _build(self.kind, vectors)
        else:
            if vectors is not None:
                _check_dimension(index.d, vectors.shape[1])
            flat, holes, count = _flat(index), int((~live).sum()), int(live.sum()) + len(documents)
            # A graph and lists can't let go of rows: they stay as holes until there are too many.
            most = 0 if flat is index else len(live) // 5
            if holes > most or _wanted_lists(self.kind, count) > 2 * _lists(index):
                kept = flat.reconstruct_n(0, len(live))[live]
                index = _build(self.kind, kept if vectors is None else np.concatenate([kept, vectors]))
                old, live = [document for document in old if document is not None], live[live]
            else:
                index = faiss.clone_index(index)  # others are searching the old one
                if vectors is not None:
                    index.add(vectors)
        everything = old + documents
        rows = {document.id: row for row, document in enumerate(everything) if document is not None}
        live = np.concatenate([live, np.ones(len(documents), dtype=bool)])
        return _State(everything, rows, index, live, state.generation + 1)

    def _current(self) -> _State:
        """Return the newest generation, reading it if another process wrote it."""
        if self.folder is None or _manifest_of(self.folder) == self._state.manifest:
            return self._state
        with self._publishing:
            while (manifest := _manifest_of(self.folder)) != self._state.manifest:
                if manifest is None:
                    raise InputError(f"The vector store in {self.folder} was removed.", hint="open it anew")
                try:
                    self._state = self._read(self.folder, manifest)
                except FileNotFoundError as error:
                    if _manifest_of(self.folder) == manifest:  # else two writers were faster than this reader
                        raise _damaged(self.folder, f"{error.filename} is missing") from None
            return self._state

    def _saved(self, folder: Path, state: _State) -> _State:
        """Write the files of a generation, and at last the manifest that makes them valid."""
        import faiss

        kept = [d and {"id": d.id, "text": d.page_content, "metadata": d.metadata} for d in state.documents]
        contents = {
            "index": faiss.serialize_index(state.index).tobytes(),
            "documents": "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in kept).encode(),
        }
        for role, content in contents.items():
            write_atomic(_path(folder, role, state.generation), content)
        hashes = {role: hashlib.sha256(content).hexdigest() for role, content in contents.items()}
        manifest = _Manifest(
            state.generation, self.model, state.index.d, self.kind, len(state.rows), len(state.documents), hashes
        )
        text = (json.dumps(asdict(manifest), indent=2, ensure_ascii=False) + "\n").encode("utf-8", "backslashreplace")
        write_atomic(folder / MANIFEST, text)
        return replace(state, manifest=text)

    def _read(self, folder: Path, text: bytes) -> _State:
        """Read and check the generation of a manifest."""
        import faiss

        manifest = _parse(folder, text)
        dimension = getattr(self.embedding, "dimension", manifest.dimension)
        for name, here in (("model", self.model), ("index", self.kind), ("dimension", dimension)):
            if (there := getattr(manifest, name)) != here:
                raise InputError(
                    f"The vector store in {folder} has the {name} {there!r}, not {here!r}.",
                    hint="open it with what it was made with; or add the documents anew in another folder",
                )
        contents = {role: _path(folder, role, manifest.generation).read_bytes() for role in ROLES}
        for role, content in contents.items():
            if hashlib.sha256(content).hexdigest() != manifest.sha256.get(role):
                raise _damaged(folder, f"{_path(folder, role, manifest.generation).name} is not what was written")
        try:
            index = faiss.deserialize_index(np.frombuffer(contents["index"], dtype=np.uint8))
            lines = [json.loads(line) for line in contents["documents"].decode().split("\n")[:-1]]
            documents = [d and Document(id=d["id"], page_content=d["text"], metadata=d["metadata"]) for d in lines]
            rows = {document.id: row for row, document in enumerate(documents) if document is not None}
        except (ValueError, KeyError, TypeError, AttributeError, RuntimeError) as error:
            raise _damaged(folder, str(error)) from None
        said = (manifest.dimension, manifest.rows, manifest.rows, manifest.documents)
        if (found := (index.d, index.ntotal, len(documents), len(rows))) != said:
            raise _damaged(folder, f"dimension, vectors, rows and documents are {found}, and should be {said}")
        live = np.array([document is not None for document in documents], dtype=bool)
        return _State(documents, rows, index, live, manifest.generation, text)


def _parameters(index: Any, fetch: int, share: float, selector: Any) -> Any:
    """Return how an approximate index is searched; share is all rows by those allowed."""
    import faiss

    if isinstance(index, faiss.IndexHNSW):
        return faiss.SearchParametersHNSW(efSearch=int(max(HNSW_SEARCH, fetch) * share), sel=selector)
    probes = max(1, _lists(index) // PROBED)
    lists = faiss.SearchParametersIVF(nprobe=probes, sel=selector)
    return faiss.IndexRefineSearchParameters(k_factor=max(10.0, 100 / fetch), base_index_params=lists)


def _path(folder: Path, role: str, generation: int) -> Path:
    return folder / f"{role}-{generation:09d}.{'faiss' if role == 'index' else 'jsonl'}"


def _manifest_of(folder: Path) -> bytes | None:
    """Read the manifest, in microseconds; its bytes tell generations apart where times and sizes may not."""
    with suppress(FileNotFoundError):
        return (folder / MANIFEST).read_bytes()
    return None


def _damaged(folder: Path, what: str) -> InputError:
    return InputError(
        f"The vector store in {folder} is damaged: {what}.",
        hint="bring its files back from a copy, or delete the folder and add the documents anew",
    )


def _parse(folder: Path, text: bytes) -> _Manifest:
    try:
        manifest = _Manifest(**json.loads(text))
        # A generation has the nine digits of its files' names
        typed = all(isinstance(getattr(manifest, name), get_origin(kind) or kind) for name, kind in FIELDS.items())
        if typed and manifest.format == FORMAT and manifest.index in KINDS and 0 < manifest.generation < 10**9:
            return manifest
    except (ValueError, TypeError, RecursionError):
        pass
    raise _damaged(folder, f"{MANIFEST} is not one of format {FORMAT}")


def _tidy(folder: Path, generation: int) -> None:
    """Delete what no one needs: all but this generation and the one before, and what a killed writer left."""
    kept = {_path(folder, role, recent) for role in ROLES for recent in (generation, generation - 1)}
    for path in [path for pattern in LEFT_OVER for path in folder.glob(pattern) if path not in kept]:
        with suppress(OSError):  # Windows keeps what a reader has open; the next writer tries again
            path.unlink()


# --- Milvus -----------------------------------------------------------------------------------------------------------

MOST_HITS = 16_384  # of a search, a limit of Milvus
LONGEST_ID, LONGEST_TEXT = 512, 65_535  # bytes
AT_ONCE = 1000  # documents a request


class MilvusStore(CosineStore):
    """Vectors in Milvus: a file of milvus-lite, or a cluster.

    Each thousand documents is replaced at once. The index is Milvus' own choice, so that a large collection is searched
    approximately. A filter that is a function is asked about every document here, and the ids it takes are sent.

    Args:
        embedding: Anything of LangChain's; its vectors need not be normalized.
        uri: A file such as ``index.db``, which one process at a time may open, or a cluster's address.
        collection: Letters, digits and ``_``; made with the first document.
        token: Of a cluster, ``user:password`` or a key.

    Raises:
        InputError: Milvus can't be reached, or the collection is another model's or not made by this class.
    """

    def __init__(self, embedding: Embeddings, uri: str, collection: str = "documents", token: str = "") -> None:
        from pymilvus import MilvusClient
        from pymilvus.exceptions import MilvusException

        super().__init__(embedding)
        if not re.fullmatch(r"[A-Za-z_]\w{0,254}", collection, re.ASCII):
            raise InputError(f"collection must be letters, digits and _. Got {collection!r}.")
        self.collection = collection
        self._dimension = 0
        # pymilvus pings more often than the server that milvus-lite starts allows, and that hangs up on a busy machine
        lite = uri.endswith(".db")
        for tries_left in (2, 1, 0) if lite else (0,):
            try:
                self.client = MilvusClient(uri, token=token, timeout=60)
                break
            except MilvusException as error:
                if not tries_left:
                    hint = "another process may have it open, and only a cluster serves several" if lite else ""
                    raise InputError(f"Milvus can't be reached at {uri}: {error.message}.", hint) from None
        self._open()

    def _open(self) -> int:
        """Return the collection's dimension; 0 as long as there is none."""
        if not self._dimension and self.client.has_collection(self.collection):
            described = self.client.describe_collection(self.collection)
            model = dict(described.get("properties") or {}).get("model")
            if model != self.model:
                raise InputError(
                    f"The collection {self.collection} has the model {model!r}, not {self.model!r}.",
                    hint="open it with the embedding it was made with; or take another collection",
                )
            [vector] = [field for field in described["fields"] if field["name"] == "vector"]
            self.client.load_collection(self.collection)
            self._dimension = vector["params"]["dim"]
        return self._dimension

    def _create(self, dimension: int) -> None:
        from pymilvus import DataType

        schema = self.client.create_schema(auto_id=False, enable_dynamic_field=False)
        schema.add_field("id", DataType.VARCHAR, is_primary=True, max_length=LONGEST_ID)
        schema.add_field("vector", DataType.FLOAT_VECTOR, dim=dimension)
        schema.add_field("text", DataType.VARCHAR, max_length=LONGEST_TEXT)
        schema.add_field("metadata", DataType.JSON)
        index = self.client.prepare_index_params()
        index.add_index("vector", index_type="AUTOINDEX", metric_type="COSINE")
        self.client.create_collection(
            self.collection, schema=schema, index_params=index, consistency_level="Strong",
            properties={"model": self.model},
        )  # fmt: skip

    def __len__(self) -> int:
        if not self._open():
            return 0
        return self.client.query(self.collection, filter="", output_fields=["count(*)"])[0]["count(*)"]

    @property
    def version(self) -> str:
        """What the last change, whoever made it, left in the collection's properties."""
        return str(self._properties().get("changed", "")) if self._open() else ""

    def _properties(self) -> dict[str, Any]:
        return dict(self.client.describe_collection(self.collection).get("properties") or {})

    def _matching(self, filter: Filter) -> Iterator[Document]:
        expression = "" if callable(filter) else _expression(filter)
        if expression is None or not self._open():
            return
        passes = _predicate(filter)
        pages = self.client.query_iterator(
            self.collection, AT_ONCE, filter=expression, output_fields=["text", "metadata"]
        )
        while page := pages.next():
            yield from (document for document in map(_from_milvus, page) if passes(document))

    def get_by_ids(self, ids: Sequence[str], /) -> list[Document]:
        """Return the documents of these ids, as far as they are there."""
        if not self._open():
            return []
        found = {}
        for chosen in _batches(list(ids)):
            for row in self.client.get(self.collection, chosen, output_fields=["text", "metadata"]):
                found[row["id"]] = _from_milvus(row)
        return [found[id] for id in dict.fromkeys(ids) if id in found]

    def _vectors(self, ids: list[str], dimension: int) -> tuple[list[str], ArrayLike]:
        if not ids or not self._open():
            return [], []
        _check_dimension(self._dimension, dimension)
        batches = [self.client.get(self.collection, chosen, output_fields=["vector"]) for chosen in _batches(ids)]
        rows = [row for batch in batches for row in batch]
        return [row["id"] for row in rows], [row["vector"] for row in rows]

    def _change(self, gone: list[str], documents: list[Document], vectors: NDArray[np.float32] | None) -> None:
        for document in documents:
            for what, text, most in (("id", document.id, LONGEST_ID), ("text", document.page_content, LONGEST_TEXT)):
                if len(text.encode()) > most:
                    raise InputError(f"Milvus takes {most:,} bytes of {what}. Got {len(text.encode()):,}: {text:.50}…")
        if vectors is not None:
            if not self._open():
                self._create(vectors.shape[1])
            _check_dimension(self._open(), vectors.shape[1])
        elif not gone:
            return
        try:
            if vectors is None:
                for chosen in _batches(gone):
                    self.client.delete(self.collection, ids=chosen)
            else:
                rows = [
                    {"id": d.id, "vector": vector, "text": d.page_content, "metadata": d.metadata}
                    for d, vector in zip(documents, vectors, strict=True)
                ]
                for chosen in _batches(rows):
                    self.client.upsert(self.collection, chosen)
        finally:  # also where it ended halfway
            self.client.alter_collection_properties(self.collection, {"changed": uuid.uuid4().hex})

    def _search(self, query: NDArray[np.float32], k: int, filter: Filter) -> Hits:
        if not self._open():
            return []
        _check_dimension(self._dimension, query.shape[1])
        if k > MOST_HITS:
            check_range("k", min(k, len(self)), 1, MOST_HITS)
        if callable(filter):
            ids = [document.id for document in self._matching(filter)]
            expression = f"id in [{', '.join(map(_literal, ids))}]" if ids else None
        else:
            expression = _expression(filter)
        if expression is None:
            return []

        def nearest(fetch: int) -> Hits:
            [hits] = self.client.search(
                self.collection, data=query, anns_field="vector", filter=expression, limit=min(fetch, MOST_HITS),
                output_fields=["text", "metadata"],
            )  # fmt: skip
            return [(_from_milvus({"id": hit["id"], **hit["entity"]}), _cosine(hit["distance"])) for hit in hits]

        return _best(k, nearest)


def _batches(items: list[Any]) -> Iterator[list[Any]]:
    return (items[first : first + AT_ONCE] for first in range(0, len(items), AT_ONCE))


def _from_milvus(row: dict[str, Any]) -> Document:
    return Document(id=row["id"], page_content=row["text"], metadata=row["metadata"])


def _literal(value: str | int | float) -> str:
    """Write a value as Milvus' expressions have it; nothing in a string can end it."""
    if not isinstance(value, str):
        return json.dumps(value)
    return '"' + re.sub(r'[\\"\n\r\t]', lambda match: ESCAPES[match[0]], value) + '"'


ESCAPES = {"\\": r"\\", '"': r"\"", "\n": r"\n", "\r": r"\r", "\t": r"\t"}


def _expression(wanted: dict[str, list[Any]] | None) -> str | None:
    """Write a checked filter as an expression; None lets nothing pass."""
    if not all((wanted or {}).values()):
        return None
    return " and ".join(
        "(" + " or ".join(f"metadata[{_literal(key)}] == {_literal(value)}" for value in values) + ")"
        for key, values in (wanted or {}).items()
    )


# --- Either -----------------------------------------------------------------------------------------------------------

FAISS = "faiss"
MILVUS = re.compile(r"(https?|tcp|unix)://\S+|.+\.db")
TOKEN = "MILVUS_TOKEN"


def check_store(store: str) -> None:
    """Raise an :class:`InputError` unless ``store`` is one that :func:`open_store` knows."""
    if store != FAISS and not MILVUS.fullmatch(store):
        raise InputError(f"store must be faiss, a file that ends with .db, or an address such as "
                         f"http://localhost:19530. Got {store!r}.")  # fmt: skip


def open_store(
    embedding: Embeddings, folder: str | Path | None, store: str = FAISS, index: str = "flat"
) -> CosineStore:
    """Open the store that a folder keeps, or whose place in Milvus its manifest tells; or begin one.

    Args:
        embedding: Anything of LangChain's.
        folder: Made if it is not there. None keeps vectors in memory.
        store: ``faiss``; a file of milvus-lite such as ``vectors.db``; or the address of a cluster, whose key or
            ``user:password`` is ``MILVUS_TOKEN`` in the environment. Of a new one: later the folder knows.
        index: Of a new one with FAISS; see :class:`FaissStore`.

    Raises:
        InputError: There is no such store, the folder has another one, or the store can't be opened.
    """
    from filelock import FileLock

    check_store(store)
    if folder is None:
        if store != FAISS:
            raise InputError(f"store must be faiss where there is no folder. Got {store!r}.")
        return FaissStore(embedding, None, index)
    folder = Path(folder)
    wanted = store if store == FAISS or "://" in store else str(Path(store).expanduser().resolve())
    if wanted != FAISS and _manifest_of(folder) is None:
        folder.mkdir(parents=True, exist_ok=True)
        with FileLock(folder / "lock"):  # of two who begin here at once, one does
            if _manifest_of(folder) is None:
                place = {"milvus": wanted, "collection": f"library_{uuid.uuid4().hex}"}
                begun = _open_milvus(embedding, place)
                write_atomic(folder / MANIFEST, json.dumps(place, indent=2) + "\n")
                return begun
    if (text := _manifest_of(folder)) is None:
        return FaissStore(embedding, folder, index)
    place = _milvus_place(text)
    there = place.get("milvus", FAISS)
    if wanted not in (FAISS, there):
        hint = f"another folder; or, where Milvus moved, its new place in {folder / MANIFEST}"
        raise InputError(f"{folder} has its vectors in {there}. Got the store {store!r}.", hint)
    return _open_milvus(embedding, place) if place else FaissStore.load(folder, embedding)


def _milvus_place(manifest: bytes) -> dict[str, str]:
    """Return address and collection from a manifest; nothing of one that is not about Milvus."""
    with suppress(ValueError, TypeError, KeyError, RecursionError):
        said = json.loads(manifest)
        return {name: str(said[name]) for name in ("milvus", "collection")}
    return {}


def _open_milvus(embedding: Embeddings, place: dict[str, str]) -> MilvusStore:
    return MilvusStore(embedding, place["milvus"], place["collection"], os.environ.get(TOKEN, ""))
