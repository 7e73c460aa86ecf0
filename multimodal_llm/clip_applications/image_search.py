r"""Search a folder of images by text or by image: embeddings of any CLIP or SigLIP in an index that follows the folder.

    python -m multimodal_llm.clip_applications.image_search index --input photos/ --model openai/clip-vit-base-patch32
    python -m multimodal_llm.clip_applications.image_search search --text "a dog on a beach"
    python -m multimodal_llm.clip_applications.image_search search          # without anything: a gallery of scenes
    python -m multimodal_llm.clip_applications.image_search evaluate

    index = ImageIndex("my_index", load_clip("builtin:clip"))
    index.update(["photos/"])            # again whenever something changed: what only moved is not embedded again
    for hit in index.search_texts(["a red circle"], k=5)[0].hits: print(hit.cosine, hit.path)

A search always finds something nearest; whether that is a match, a threshold on its cosine decides. It is calibrated by
leaving out: a query is asked once with its image in the gallery and once without, and the threshold is where the most
of both are told right (balanced accuracy). Queries are captions, or images that were cropped, darkened and compressed;
half of them set the threshold, the other half say how good it is. It holds for galleries of about that size.

Inverted lists with product codes read by SIMD: Jégou et al., 2011; André et al., 2015; Douze et al., 2024
(arXiv:2401.08281). HNSW: Malkov and Yashunin, 2016 (arXiv:1603.09320).
"""

from __future__ import annotations

import functools
import hashlib
import io
import json
import logging
import math
import os
import random
import re
import shlex
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from multimodal_llm.clip_applications.zero_shot_classification import (
    ClipEncoder,
    Vectors,
    embed_readable,
    load_clip,
    unreadable,
)
from multimodal_llm.image_captioning.caption_evaluation import read_captions
from multimodal_llm.visual_question_answering.data_loader import (
    IMAGE_SUFFIXES,
    MAX_BYTES,
    Skipped,
    files_below,
    open_image,
    why_not,
)
from shared.config import check_range, run_commands
from shared.errors import InputError
from shared.logs import progress_bar
from shared.results import OUTPUTS, Run, write_atomic
from shared.runtime import set_threads
from shared.sources import resolve

if TYPE_CHECKING:
    from PIL.Image import Image

PROJECT = "multimodal_llm"
MODULE = f"{PROJECT}.clip_applications.image_search"
NOT_RECIPE = {"recipe": False}
Kind = Literal["text", "image"]
logger = logging.getLogger(MODULE)


# --- Looking at files -------------------------------------------------------------------------------------------------

THUMBNAIL = 160  # pixels of the long side


@dataclass(frozen=True)
class Look:
    """What became of one file.

    Attributes:
        path: The file.
        sha256: Of the bytes that were looked at; empty where it could not be read.
        vector: (C,), or None where it is no image that can be opened.
        thumbnail: A small JPEG.
        reason: Why there is no vector.
    """

    path: str
    sha256: str = ""
    vector: NDArray[np.float32] | None = None
    thumbnail: bytes = b""
    reason: str = ""


def read_file(path: str) -> bytes:
    """Read a file of a size that an image may have."""
    if (size := os.stat(path).st_size) > MAX_BYTES:
        raise InputError(f"{path} has {size:,} bytes; at most {MAX_BYTES:,} are read.")
    return Path(path).read_bytes()


def thumbnail(image: Image) -> bytes:
    """Return a JPEG of at most 160 pixels a side."""
    small = image.copy()
    small.thumbnail((THUMBNAIL, THUMBNAIL))
    file = io.BytesIO()
    small.save(file, "JPEG", quality=85)
    return file.getvalue()


def look_at(encoder: ClipEncoder, paths: Sequence[str], batch_size: int = 32) -> Iterator[Look]:
    """Open, hash and embed files, a batch at a time; what can't be opened comes with the reason.

    Args:
        encoder: The model.
        paths: Files.
        batch_size: Images embedded at a time; one at a time is in memory whole.

    Yields:
        A look at each file, in the order of the paths.
    """
    for start in range(0, len(paths), batch_size):
        looks, seen = [], []
        for path in paths[start : start + batch_size]:
            digest = ""
            try:
                data = read_file(path)
                digest = hashlib.sha256(data).hexdigest()
                image = open_image(data)
                seen.append(encoder.pixels(image))
                looks.append(Look(path, digest, thumbnail=thumbnail(image)))
            except (InputError, OSError) as error:
                looks.append(Look(path, digest, reason=str(getattr(error, "strerror", None) or error.args[0])))
        vectors = iter(encoder.embed_pixels(seen))
        yield from (look if look.reason else replace(look, vector=next(vectors)) for look in looks)


class _RayLooker:
    """One process of Ray's, with a model of its own."""

    def __init__(self, model: str, device: str, dtype: str, batch_size: int) -> None:
        self.encoder, self.batch_size = load_clip(model, device, dtype), batch_size

    def __call__(self, block: dict[str, Any]) -> dict[str, Any]:
        looks = list(look_at(self.encoder, [os.fsdecode(path) for path in block["path"]], self.batch_size))
        nothing = np.zeros(self.encoder.dimension, np.float32)
        return {
            "row": block["row"],
            "vector": np.stack([nothing if look.vector is None else look.vector for look in looks]),
            "thumbnail": np.array([look.thumbnail for look in looks], dtype=object),
            "rest": np.array([json.dumps([look.sha256, look.reason]) for look in looks], dtype=object),
        }


def look_with_ray(
    paths: Sequence[str], model: str, *, device: str = "auto", dtype: str = "auto", batch_size: int = 32,
    workers: int = 1, gpus_per_worker: float = 0,
) -> Iterator[Look]:  # fmt: skip
    """Do what :func:`look_at` does through Ray Data, here or on the cluster of ``RAY_ADDRESS``.

    Args:
        paths: Files that every machine can read.
        model: See ``load_clip``; each worker loads its own.
        device: Likewise.
        dtype: Likewise.
        batch_size: Images embedded at a time.
        workers: Processes.
        gpus_per_worker: Of each.

    Yields:
        A look at each file, as they are done.
    """
    import ray

    check_range("workers", workers, 1)
    started = not ray.is_initialized()
    if started:
        ray.init(include_dashboard=None if os.environ.get("RAY_ADDRESS") else False, log_to_driver=False)
    try:
        ray.data.DataContext.get_current().enable_progress_bars = False
        rows = [{"row": row, "path": os.fsencode(path)} for row, path in enumerate(paths)]
        blocks = ray.data.from_items(rows, override_num_blocks=max(1, min(4 * workers, len(rows)))).map_batches(
            _RayLooker, fn_constructor_args=(model, device, dtype, batch_size), batch_size=8 * batch_size,
            batch_format="numpy", compute=ray.data.ActorPoolStrategy(size=workers), num_gpus=gpus_per_worker or None,
        )  # fmt: skip
        for block in blocks.iter_batches(batch_format="numpy"):
            for row, vector, small, rest in zip(*(block[key] for key in ("row", "vector", "thumbnail", "rest")),
                                                strict=True):  # fmt: skip
                digest, reason = json.loads(rest)
                yield Look(paths[row], digest, None if reason else vector.astype(np.float32), bytes(small), reason)
    finally:
        if started:
            ray.shutdown()


# --- FAISS ------------------------------------------------------------------------------------------------------------

KINDS = ("flat", "hnsw", "ivf")
HNSW_LINKS, HNSW_BUILD, HNSW_SEARCH = 16, 80, 64  # M, efConstruction, efSearch
GOOD_RECALL = 0.98  # at 10, of ivf for vectors of its own: so many lists are read as that takes
CANDIDATES = 5  # times k that the codes of ivf choose, 50 at least; they get their exact cosine
TRAINING_POINTS = 39  # for every list; with fewer FAISS warns
FEWEST = 10_000  # vectors from which ivf has lists; a search of fewer is as fast without


def build_index(kind: str, vectors: Vectors) -> Any:
    """Build a FAISS index of unit vectors (N, C).

    How many lists ``ivf`` reads, it finds out on vectors of its own; texts, which lie elsewhere, it answers less well.
    Of 100,000 clustered vectors of 512 numbers, on one thread and one query at a time, ``ivf`` answers 70 to 100 times
    as many queries as ``flat`` at recall@10 .99, and is built in 10 seconds; ``hnsw`` 50 times at .98, in a minute.
    """
    import faiss

    count, dimension = vectors.shape
    if kind == "hnsw":
        index = faiss.IndexHNSWFlat(dimension, HNSW_LINKS, faiss.METRIC_INNER_PRODUCT)
        index.hnsw.efConstruction = HNSW_BUILD
    elif lists := wanted_lists(kind, count):
        most = min(dimension, max(64, dimension // 4))  # of 4 bits each
        codes = next(codes for codes in range(most, 0, -1) if dimension % codes == 0)
        index = faiss.index_factory(dimension, f"IVF{lists},PQ{codes}x4fs,RFlat", faiss.METRIC_INNER_PRODUCT)
        drawn = np.random.default_rng(0).permutation(count)[: lists * (TRAINING_POINTS + 1)]
        index.train(vectors[np.sort(drawn)])
        index.add(vectors)
        _choose_probes(index, vectors[drawn[:200]])
        return index
    else:
        index = faiss.IndexFlatIP(dimension)
    index.add(vectors)
    return index


def _choose_probes(index: Any, queries: Vectors) -> None:
    """Let as many lists be read, 8 at least, as it takes to find what is near to some of the vectors."""
    import faiss

    lists, true = faiss.downcast_index(index.base_index), nearest_rows(_flat(index), queries, 11)
    for lists.nprobe in (8 * 2**power for power in range(20)):
        found = nearest_rows(index, queries, 11)
        right = sum(len(set(one) & set(other)) for one, other in zip(found.tolist(), true.tolist(), strict=True))
        if right >= GOOD_RECALL * true.size or lists.nprobe >= lists.nlist:
            break


def wanted_lists(kind: str, count: int) -> int:
    """Return how many inverted lists an index of so many vectors should have; 0 is an exact search."""
    return min(int(3.2 * math.sqrt(count)), count // TRAINING_POINTS) if kind == "ivf" and count >= FEWEST else 0


def _lists(index: Any) -> int:
    import faiss

    return int(faiss.downcast_index(index.base_index).nlist) if isinstance(index, faiss.IndexRefine) else 0


def nearest_rows(index: Any, queries: Vectors, count: int) -> NDArray[np.int64]:
    """Return the rows (Q, count) that an index finds nearest to queries (Q, C); -1 where it finds no more."""
    import faiss

    parameters = None
    if isinstance(index, faiss.IndexHNSW):
        parameters = faiss.SearchParametersHNSW(efSearch=max(HNSW_SEARCH, count))
    elif isinstance(index, faiss.IndexRefine):
        parameters = faiss.IndexRefineSearchParameters(k_factor=max(CANDIDATES, 10 * CANDIDATES / count))
    found: NDArray[np.int64] = index.search(queries, count, params=parameters)[1]
    return found


def _flat(index: Any) -> Any:
    """Return the exact index inside an index; its rows are the same."""
    import faiss

    if isinstance(index, faiss.IndexRefine):
        return faiss.downcast_index(index.refine_index)
    return faiss.downcast_index(index.storage) if isinstance(index, faiss.IndexHNSW) else index


def exact_vectors(index: Any) -> Vectors:
    """Return the vectors (N, C) of an index as they were added, without copying them."""
    import faiss

    flat = _flat(index)
    rows: Vectors = faiss.rev_swig_ptr(flat.get_xb(), flat.ntotal * flat.d).reshape(flat.ntotal, flat.d)
    return rows


# --- No match ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Calibration:
    """From which cosine on the nearest image counts as a match.

    Attributes:
        threshold: The cosine.
        found: Part of the held-out queries with a match that reach it.
        refused: Part of the held-out queries without a match that don't.
        queries: Held out, each asked both ways.
        gallery: Images among which they were asked.
    """

    threshold: float
    found: float
    refused: float
    queries: int
    gallery: int

    def __str__(self) -> str:
        return (
            f"match from cosine {self.threshold:.4f} on; of {self.queries} held-out queries {self.found:.1%} with a "
            f"match are found and {self.refused:.1%} without one refused, among {self.gallery:,} images"
        )


def similarity_blocks(queries: Vectors, gallery: Vectors, size: int = 1000) -> Iterator[tuple[int, Vectors]]:
    """Yield the number of the first query and the cosines (B, M) of a block of queries, never all (N, M) at once."""
    for start in range(0, len(queries), size):
        yield start, queries[start : start + size] @ gallery.T


def best_cosines(
    queries: Vectors, gallery: Vectors, query_ids: Sequence[Any], gallery_ids: Sequence[Any]
) -> NDArray[np.float64]:
    """Return (2, N): the best cosine of each query in the gallery, and in the gallery without what has its id."""
    _, numbers = np.unique([*map(str, gallery_ids), *map(str, query_ids)], return_inverse=True)
    theirs, own = numbers[: len(gallery_ids)], numbers[len(gallery_ids) :]
    pairs = []
    for start, cosines in similarity_blocks(queries, gallery):
        same = own[start : start + len(cosines), None] == theirs[None]
        pairs.append([cosines.max(axis=1), np.where(same, -1, cosines).max(axis=1)])
    return np.concatenate(pairs, axis=1).astype(np.float64) if pairs else np.zeros((2, 0))


def best_threshold(matching: NDArray[np.float64], others: NDArray[np.float64]) -> float:
    """Return the cosine that best parts queries with a match from those without: most balanced accuracy.

    Of several as good, it is the middle of the widest gap.
    """
    scores = np.unique(np.concatenate([matching, others]))
    middles = np.concatenate([[scores[0] - 1e-6], (scores[1:] + scores[:-1]) / 2, [scores[-1] + 1e-6]])
    kept = 1 - np.searchsorted(np.sort(matching), middles) / len(matching)
    refused = np.searchsorted(np.sort(others), middles) / len(others)
    balanced = kept + refused
    gaps = np.concatenate([[0], np.diff(scores), [0]])
    best = np.flatnonzero(balanced >= balanced.max() - 1e-12)
    return float(middles[best[gaps[best].argmax()]])


def calibrated(pairs: NDArray[np.float64], held_out: NDArray[np.float64], gallery: int) -> Calibration:
    """Set a threshold on cosines (2, N), see :func:`best_cosines`, and measure it on others."""
    threshold = best_threshold(*pairs)
    found, refused = (held_out[0] >= threshold).mean(), (held_out[1] < threshold).mean()
    return Calibration(threshold, float(found), float(refused), held_out.shape[1], gallery)


def _halves(pairs: NDArray[np.float64], gallery: int) -> Calibration:
    return calibrated(pairs[:, ::2], pairs[:, 1::2], gallery)


@dataclass(frozen=True)
class _Altered:
    """An image file that is altered when it is read."""

    path: str
    seed: float

    def read(self) -> bytes:
        return altered(open_image(self.path), random.Random(self.seed))


def altered(image: Image, rng: random.Random) -> bytes:
    """Return an image as it comes back from the world: a little cropped, lighter or darker, smaller, as JPEG."""
    from PIL import ImageEnhance

    width, height = image.size
    box = [rng.uniform(0, 0.04) * side for side in (width, height)]
    box += [side * (1 - rng.uniform(0, 0.04)) for side in (width, height)]
    scale = rng.uniform(0.6, 1.0) if min(width, height) >= 400 else 1.0
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    changed = ImageEnhance.Brightness(image.resize(size, box=tuple(box))).enhance(rng.uniform(0.85, 1.15))
    file = io.BytesIO()
    changed.save(file, "JPEG", quality=rng.randint(60, 90))
    return file.getvalue()


# --- The index --------------------------------------------------------------------------------------------------------

FORMAT, MANIFEST = 1, "manifest.json"
# What an index writes, also what a killed writer leaves: nothing of another name is ever deleted
GENERATION = r"(index-\d{9,}\.faiss|entries-\d{9,}\.jsonl)"
OWN_FILE = re.compile(rf"{GENERATION}|\.({GENERATION}|{re.escape(MANIFEST)})\.[a-z0-9_]{{8}}")
OWN_THUMBNAIL = re.compile(r"[0-9a-f]{64}\.(jpg|new)")
SAVE_EVERY = 60.0  # seconds: so much embedding may be lost in a kill
HOLES = 0.2  # part of the rows of hnsw and ivf that may be deleted before they are built anew
FEWEST_CALIBRATED, MOST_CALIBRATED = 20, 400  # queries


@dataclass(frozen=True)
class Hit:
    """An image that was found.

    Attributes:
        path: The file, as the first of ``paths``.
        cosine: With the query, in [-1, 1].
        paths: All files with this very content.
        thumbnail: A small JPEG of it, if that is there.
        match: Whether the cosine reaches the threshold; None where none was calibrated.
    """

    path: str
    cosine: float
    paths: tuple[str, ...]
    thumbnail: str | None
    match: bool | None = None


@dataclass(frozen=True)
class Found:
    """What a query found: the nearest images, and whether the nearest is a match; None where nothing was calibrated."""

    hits: list[Hit]
    match: bool | None


@dataclass
class Changes:
    """What an update found; each list is of paths.

    Attributes:
        new: Content never seen.
        changed: Known files with other content than before.
        moved: From → to; not embedded again.
        duplicates: Files whose content another file has; not embedded again.
        deleted: Files that are gone.
        unchanged: How many are as they were.
        skipped: What could not be read, and why.
    """

    new: list[str] = field(default_factory=list)
    changed: list[str] = field(default_factory=list)
    moved: dict[str, str] = field(default_factory=dict)
    duplicates: list[str] = field(default_factory=list)
    deleted: list[str] = field(default_factory=list)
    unchanged: int = 0
    skipped: Skipped = field(default_factory=Skipped)

    def metrics(self) -> dict[str, int]:
        """Return how many there are of each."""
        names = ("new", "changed", "moved", "duplicates", "deleted")
        counts = {name: len(getattr(self, name)) for name in names}
        return counts | {"unchanged": self.unchanged, "left out": self.skipped.counts.total()}


Stat = tuple[int, int]  # size in bytes, time of change in nanoseconds


@dataclass(frozen=True)
class _Entry:
    """One content, by the hash of its bytes, and the files that have it."""

    sha256: str
    files: dict[str, Stat]


@dataclass(frozen=True)
class _State:
    """One generation. It is never changed, so whoever searches it needs no lock."""

    generation: int = 0
    entries: tuple[_Entry | None, ...] = ()  # by row of the index; None was deleted
    index: Any = None  # a faiss.Index, or None before the first image
    files: dict[str, list[str]] = field(default_factory=dict)  # role → file name and its sha256
    calibrations: dict[str, Calibration] = field(default_factory=dict)  # text, image
    manifest: bytes | None = None  # what the folder says as long as this is the newest

    @property
    def live(self) -> int:
        """How many entries there are."""
        return sum(entry is not None for entry in self.entries)


class ImageIndex:
    """Images of folders, to be searched: one vector for each content, in files that every change replaces as a whole.

    Threads and processes may search while one writes; a search sees the newest generation, or whole the one before. A
    kill at any moment leaves the old one or the new. Vectors and files of another model are refused.

    Args:
        folder: Where the index is kept; made with the first update.
        encoder: The model that embeds images and queries.
        kind: ``flat`` is exact. ``hnsw`` and ``ivf`` are approximate and fast, see :func:`build_index`; the cosines
            they give are exact. By default what the folder has, else flat.

    Raises:
        InputError: No such kind; or the folder holds another kind, another model's vectors, damaged files, or
            someone's files and no index.
    """

    def __init__(self, folder: str | Path, encoder: ClipEncoder, kind: str = "") -> None:
        if kind not in ("", *KINDS):
            raise InputError(f"index must be one of {', '.join(KINDS)}. Got {kind!r}.")
        self.folder, self.encoder = Path(folder), encoder
        self._kind, self._state, self._reading, self._writing = kind, _State(), threading.Lock(), threading.Lock()
        if self._current().manifest is None and self.folder.is_dir():
            own = ("lock", "thumbnails", MANIFEST)  # which another process may have written just now
            for path in self.folder.iterdir():
                if not path.name.startswith(".") and path.name not in own and not OWN_FILE.fullmatch(path.name):
                    raise InputError(f"{folder} is not empty, and holds no image index.", hint="another --folder")

    def __len__(self) -> int:
        return self._current().live

    @property
    def kind(self) -> str:
        """flat, hnsw or ivf."""
        return self._kind or "flat"

    @property
    def calibrations(self) -> dict[str, Calibration]:
        """Of ``text`` and ``image`` queries, as far as they were calibrated."""
        return dict(self._current().calibrations)

    def paths(self) -> list[str]:
        """Return every file that is in the index."""
        return sorted(path for entry in self._current().entries if entry for path in entry.files)

    def duplicates(self) -> list[list[str]]:
        """Return groups of files with the same content."""
        return sorted(sorted(entry.files) for entry in self._current().entries if entry and len(entry.files) > 1)

    # --- Searching

    def search(self, queries: Vectors, k: int = 10, kind: Kind = "image") -> list[Found]:
        """Find the images nearest to embeddings.

        Args:
            queries: (Q, C), of length 1.
            k: How many, at least 1; fewer where fewer are there.
            kind: What they are embeddings of, for the threshold of "no match".

        Returns:
            For each query, best first, ties by path.
        """
        check_range("k", k, 1)
        state = self._current()
        if not state.live:
            return [Found([], None) for _ in queries]
        queries = np.ascontiguousarray(queries, np.float32)
        if queries.ndim != 2 or queries.shape[1] != state.index.d:
            raise InputError(f"queries must be embeddings of {state.index.d} numbers. Got shape {queries.shape}.")
        vectors, holes = exact_vectors(state.index), len(state.entries) - state.live
        fetch = min(len(state.entries), k + 8 + min(holes, 4 * k))
        found = nearest_rows(state.index, queries, fetch)
        calibration = state.calibrations.get(kind)
        results = []
        for query, rows in zip(queries.astype(np.float64), found.tolist(), strict=True):
            pairs = self._scored(state, vectors, query, rows)
            exact = fetch
            # Too few are left of those found, or the last place is shared with what was not fetched
            while len(pairs) < min(k, state.live) or (
                exact < len(vectors) and len(pairs) > k and pairs[k - 1][0] - pairs[-1][0] < 1e-6
            ):
                exact = min(len(vectors), max(2 * exact, k + holes))
                [rows] = nearest_rows(_flat(state.index), query[None].astype(np.float32), exact).tolist()
                pairs = self._scored(state, vectors, query, rows)
            hits = [self._hit(entry, cosine, calibration) for cosine, entry in pairs[:k]]
            results.append(Found(hits, hits[0].match))
        return results

    def search_texts(self, texts: Sequence[str], k: int = 10) -> list[Found]:
        """Find images that go with texts; see :meth:`search`.

        Raises:
            InputError: A text is empty, or in a script that the model can't read.
        """
        for text in texts:
            if not text.strip():
                raise InputError("The query is empty.")
            if not self.encoder.reads(text):
                raise unreadable(text)
        return self.search(self.encoder.embed_texts(list(texts)), k, "text")

    def search_images(self, images: Iterable[Any], k: int = 10) -> list[Found]:
        """Find images that look like these, each anything that ``open_image`` takes; see :meth:`search`."""
        return self.search(self.encoder.embed_images(images), k, "image")

    def _scored(
        self, state: _State, vectors: Vectors, query: NDArray[np.float64], rows: list[int]
    ) -> list[tuple[float, _Entry]]:
        kept = [row for row in rows if row >= 0 and state.entries[row]]
        cosines = (vectors[kept].astype(np.float64) * query).sum(axis=1).clip(-1, 1).round(9)
        pairs = [(float(cosine), state.entries[row]) for cosine, row in zip(cosines, kept, strict=True)]
        return sorted(pairs, key=lambda pair: (-pair[0], min(pair[1].files)))  # type: ignore[misc, union-attr]

    def _hit(self, entry: _Entry, cosine: float, calibration: Calibration | None) -> Hit:
        paths, small = tuple(sorted(entry.files)), self._thumbnail(entry.sha256)
        match = None if calibration is None else cosine >= calibration.threshold
        return Hit(paths[0], cosine, paths, str(small) if small.exists() else None, match)

    def _thumbnail(self, sha256: str) -> Path:
        return self.folder / "thumbnails" / f"{sha256}.jpg"

    # --- Changing

    def update(
        self, inputs: Sequence[str | Path], *, look: Callable[[Sequence[str]], Iterator[Look]] | None = None,
        rehash: bool = False,
    ) -> Changes:  # fmt: skip
        """Make the index say what is in files and folders now; what it knows from elsewhere stays.

        Args:
            inputs: Files and folders, with all below them.
            look: Paths → looks at them, such as :func:`look_with_ray`; by default here.
            rehash: Read files again even where size and time say that they are as they were.

        Raises:
            InputError: There is no image, and none was.
            FileNotFoundError: One is not there: a disk that is not mounted is not taken for an empty folder.
        """
        roots = [os.path.abspath(os.path.expanduser(name)) for name in inputs]
        for root in roots:
            if not os.path.exists(root):
                raise FileNotFoundError(f"No such file or folder: {root!r}.")
        with self._writer() as state:
            changes, closed = Changes(), []
            found = list(dict.fromkeys(path for root in roots for path in _images_below(root, self.folder, closed)))
            known = {path: (entry, stat) for entry in state.entries if entry for path, stat in entry.files.items()}
            # What can't be read, or is in a folder that can't, is not taken for deleted
            gone = {path for path in known if _is_below(path, roots) and not _is_below(path, closed)} - set(found)
            for folder in closed:
                changes.skipped.add("it can't be looked into", folder)
            if not found and not gone:
                raise InputError(f"There is no image in {', '.join(map(str, inputs))}.",
                                 hint=f"files that end with {', '.join(sorted(IMAGE_SUFFIXES))}")  # fmt: skip
            files = {entry.sha256: dict(entry.files) for entry in state.entries if entry}
            hashed = self._hashed(found, known, rehash, changes)
            pending = self._sorted_out(hashed, known, gone, files, changes)
            calls = look or (lambda paths: look_at(self.encoder, paths))
            self._embed(state, files, pending, calls, changes)
        return changes

    def _hashed(
        self, found: list[str], known: dict[str, tuple[_Entry, Stat]], rehash: bool, changes: Changes
    ) -> dict[str, tuple[str, Stat]]:
        """Return hash and stat of the files that are new or other than before."""
        hashed: dict[str, tuple[str, Stat]] = {}
        with progress_bar(disable=len(found) < 1000) as bar:
            for path in bar.track(found, task_id=bar.add_task("look for changes", figures="")):
                try:
                    its = os.stat(path)
                    stat = (its.st_size, its.st_mtime_ns)
                    if not rehash and path in known and known[path][1] == stat:
                        changes.unchanged += 1
                        continue
                    hashed[path] = hashlib.sha256(read_file(path)).hexdigest(), stat
                except (InputError, OSError) as error:
                    changes.skipped.add("the file can't be read", why_not(path, error))
        return hashed

    def _sorted_out(
        self, hashed: dict[str, tuple[str, Stat]], known: dict[str, tuple[_Entry, Stat]], gone: set[str],
        files: dict[str, dict[str, Stat]], changes: Changes,
    ) -> dict[str, dict[str, Stat]]:  # fmt: skip
        """Move paths to the content they have now; return the contents never seen, and their files."""
        for path in gone:
            del files[known[path][0].sha256][path]
        left = {}  # content → its files that are gone, each of which may have moved
        for path in sorted(gone, reverse=True):
            left.setdefault(known[path][0].sha256, []).append(path)
        pending: dict[str, dict[str, Stat]] = {}
        for path, (digest, stat) in hashed.items():
            before = known[path][0].sha256 if path in known else ""
            if before == digest:  # only touched
                files[digest][path] = stat
                changes.unchanged += 1
                continue
            if before:
                files[before].pop(path)
                changes.changed.append(path)
            if digest in files:
                files[digest][path] = stat
                if left.get(digest):
                    changes.moved[left[digest].pop()] = path
                elif not before:
                    changes.duplicates.append(path)
            else:
                if not before:
                    (changes.duplicates if digest in pending else changes.new).append(path)
                pending.setdefault(digest, {})[path] = stat
        changes.deleted = sorted(gone - set(changes.moved))
        return pending

    def _embed(
        self, state: _State, files: dict[str, dict[str, Stat]], pending: dict[str, dict[str, Stat]],
        look: Callable[[Sequence[str]], Iterator[Look]], changes: Changes,
    ) -> None:  # fmt: skip
        """Embed contents never seen, and save what there is once a minute and at the end, also that of Ctrl-C."""
        first = {next(iter(its)): digest for digest, its in pending.items()}
        vectors: dict[str, NDArray[np.float32]] = {}
        bar = progress_bar(disable=len(first) < 64)
        done, saved = 0, time.monotonic()
        try:
            with bar:
                task = bar.add_task("embed", total=len(first), figures="")
                for one in look(list(first)) if first else ():
                    done += 1
                    its = pending[first[one.path]]
                    if one.sha256 != first[one.path]:  # changed a moment ago, and to be looked at again next time
                        its = {one.path: (-1, -1)}
                    if one.vector is None:
                        for path in its:
                            changes.skipped.add("the image can't be opened", f"{path}: {one.reason}")
                    else:
                        vectors[one.sha256] = one.vector
                        files.setdefault(one.sha256, {}).update(its)
                        self._keep_thumbnail(one)
                    bar.update(task, completed=done, figures=f"{changes.skipped.counts.total():,} left out")
                    if time.monotonic() - saved > SAVE_EVERY:
                        state = self._commit(state, files, vectors)
                        vectors, saved = {}, time.monotonic()
        except KeyboardInterrupt:
            self._commit(state, files, vectors)
            raise KeyboardInterrupt(f"{done:,} of {len(first):,} are in the index; the same command goes on") from None
        self._commit(state, files, vectors)
        there = {path for its in files.values() for path in its}
        for names in (changes.new, changes.changed, changes.duplicates):
            names[:] = [path for path in names if path in there]

    def remove(self, paths: Sequence[str | Path]) -> list[str]:
        """Forget files, or all below folders, whether they are still there or not; return those that were known."""
        roots = [os.path.abspath(os.path.expanduser(path)) for path in paths]
        with self._writer() as state:
            files = {entry.sha256: dict(entry.files) for entry in state.entries if entry}
            gone = [(digest, path) for digest, its in files.items() for path in its
                    if _is_below(path, roots)]  # fmt: skip
            for digest, path in gone:
                del files[digest][path]
            self._commit(state, files, {})
        return sorted(path for _, path in gone)

    def calibrate(self, captions: dict[str, list[str]] | None = None, seed: int = 0) -> dict[str, Calibration]:
        """Find out from which cosine on the nearest image is a match, and save it with the index.

        Args:
            captions: Path → what is said of it, for queries by text; without them those stay as they are.
            seed: Of the choice of images and of how they are altered.

        Returns:
            The calibrations; those of fewer than 20 queries are left out.
        """
        state, rng, found = self._current(), random.Random(seed), {}
        rows = [row for row, entry in enumerate(state.entries) if entry]
        if len(rows) >= FEWEST_CALIBRATED:
            gallery, drawn = exact_vectors(state.index)[rows], rng.sample(range(len(rows)), len(rows))
            files = [min(state.entries[rows[place]].files) for place in drawn[:MOST_CALIBRATED]]  # type: ignore[union-attr]
            images = [_Altered(path, rng.random()) for path in files]
            looked = list(embed_readable(self.encoder, images, Skipped(), what="calibrate"))
            if len(looked) >= FEWEST_CALIBRATED:
                ids = [drawn[i] for i, _ in looked]
                queries = np.stack([vector for _, vector in looked])
                found["image"] = _halves(best_cosines(queries, gallery, ids, range(len(rows))), len(rows))
            said = {}  # place → its captions
            for place in drawn if captions else ():
                its = state.entries[rows[place]].files  # type: ignore[union-attr]
                if texts := [text for path in sorted(its) for text in (captions or {}).get(path, ()) if text.strip()]:
                    said[place] = texts
            if len(said) >= FEWEST_CALIBRATED:
                asked = dict(list(said.items())[:MOST_CALIBRATED])
                queries = self.encoder.embed_texts([texts[0] for texts in asked.values()])
                # Images of which the same is said are all matches
                names = [said[place][0] if place in said else f"\1{place}" for place in range(len(rows))]
                own = [texts[0] for texts in asked.values()]
                found["text"] = _halves(best_cosines(queries, gallery, own, names), len(rows))
        if found:
            with self._writer() as newest:
                self._save(replace(newest, calibrations=newest.calibrations | found))
        return found

    # --- Files

    @contextmanager
    def _writer(self) -> Iterator[_State]:
        """Be the only writer for a while, of threads and processes, beginning with the newest state."""
        from filelock import FileLock

        self.folder.mkdir(parents=True, exist_ok=True)
        with self._writing, FileLock(self.folder / "lock"):
            yield self._current()

    def _keep_thumbnail(self, look: Look) -> None:
        path = self._thumbnail(look.sha256)
        if not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            beside = path.with_suffix(".new")  # not flushed to the disk as write_atomic does: it can be made again
            beside.write_bytes(look.thumbnail)
            beside.replace(path)

    def _commit(
        self, state: _State, files: dict[str, dict[str, Stat]], vectors: dict[str, NDArray[np.float32]]
    ) -> _State:
        """Save a generation with these files of each content, and new contents' vectors."""
        entries = [_Entry(entry.sha256, files[entry.sha256]) if entry and files.get(entry.sha256) else None
                   for entry in state.entries]  # fmt: skip
        here = {entry.sha256 for entry in entries if entry}
        added = [digest for digest in vectors if files.get(digest) and digest not in here]
        index, holes = state.index, entries.count(None)
        if added or holes > state.entries.count(None):
            fresh = [np.stack([vectors[digest] for digest in added])] if added else []
            count = len(here) + len(added)
            most = 0 if index is None or _flat(index) is index else HOLES * len(entries)
            if index is None or holes > most or wanted_lists(self.kind, count) > 2 * _lists(index):
                kept = [] if index is None else [exact_vectors(index)[[entry is not None for entry in entries]]]
                index = build_index(self.kind, np.concatenate([*kept, *fresh])) if count else None
                entries = [entry for entry in entries if entry]
            elif fresh:
                import faiss

                index = faiss.clone_index(index)  # others are searching the old one
                index.add(fresh[0])
        every_entry = (*entries, *(_Entry(digest, files[digest]) for digest in added))
        if every_entry == state.entries:
            return state
        return self._save(replace(state, entries=every_entry, index=index))

    def _save(self, state: _State) -> _State:
        """Write what changed of a generation, and at last the manifest that makes it valid."""
        import faiss

        before, generation = self._state, state.generation + 1
        contents: dict[str, bytes] = {}
        if state.index is not before.index or not state.files:
            contents["index"] = b"" if state.index is None else faiss.serialize_index(state.index).tobytes()
        if state.entries != before.entries or not state.files:
            lines = [entry and [entry.sha256, [[path, *stat] for path, stat in sorted(entry.files.items())]]
                     for entry in state.entries]  # fmt: skip
            contents["entries"] = "".join(json.dumps(line) + "\n" for line in lines).encode()
        files = dict(state.files)
        for role, content in contents.items():
            name = f"{role}-{generation:09d}.{'faiss' if role == 'index' else 'jsonl'}"
            write_atomic(self.folder / name, content)
            files[role] = [name, hashlib.sha256(content).hexdigest()]
        paths = sum(len(entry.files) for entry in state.entries if entry)
        manifest = {
            "format": FORMAT, "generation": generation, "model": self.encoder.name, "probe": self._probe,
            "dimension": self.encoder.dimension, "index": self.kind, "rows": len(state.entries), "images": state.live,
            "paths": paths, "files": files, "no match": {k: asdict(v) for k, v in state.calibrations.items()},
        }  # fmt: skip
        text = (json.dumps(manifest, indent=2) + "\n").encode()
        write_atomic(self.folder / MANIFEST, text)
        with self._reading:
            self._state = replace(state, generation=generation, files=files, manifest=text)
        self._tidy({name for its in (files, before.files) for name, _ in its.values()}, state)
        return self._state

    def _tidy(self, kept: set[str], state: _State) -> None:
        """Delete files of older generations but the last, what a killed writer left, and thumbnails of nothing."""
        with suppress(OSError):
            for path in self.folder.iterdir():
                if OWN_FILE.fullmatch(path.name) and path.name not in kept:
                    path.unlink(missing_ok=True)
            wanted = {f"{entry.sha256}.jpg" for entry in state.entries if entry}
            for path in (self.folder / "thumbnails").iterdir():
                if OWN_THUMBNAIL.fullmatch(path.name) and path.name not in wanted:
                    path.unlink(missing_ok=True)

    @functools.cached_property
    def _probe(self) -> list[float]:
        """A few numbers of both towers by which a model is known again, whatever it is called."""
        from PIL import Image

        both = self.encoder.embed_texts(["a photo"]), self.encoder.embed_images([Image.linear_gradient("L")])
        return [round(float(number), 4) for [vector] in both for number in vector[:8]]

    def _current(self) -> _State:
        """Return the newest generation, reading it if another process wrote it."""
        if self._manifest() == self._state.manifest:
            return self._state
        with self._reading:
            while (text := self._manifest()) != self._state.manifest:
                if text is None:
                    raise InputError(f"The image index in {self.folder} was removed.", hint="open it anew")
                try:
                    self._state = self._read(text)
                except FileNotFoundError as error:
                    if self._manifest() == text:  # else two writers were faster than this reader
                        raise _damaged(self.folder, f"{error.filename} is missing") from None
            return self._state

    def _manifest(self) -> bytes | None:
        with suppress(FileNotFoundError):
            return (self.folder / MANIFEST).read_bytes()
        return None

    def _read(self, text: bytes) -> _State:
        """Read and check the generation of a manifest."""
        import faiss

        said = None
        with suppress(ValueError, RecursionError):
            said = json.loads(text)
        if not isinstance(said, dict) or "probe" not in said:
            raise InputError(f"{self.folder / MANIFEST} is not of an image index.", hint="another --folder")
        try:
            if said["format"] != FORMAT or said["index"] not in KINDS:
                raise ValueError
            generation, model = int(said["generation"]), str(said["model"])
            files = {role: [str(name), str(digest)] for role, (name, digest) in said["files"].items()}
            calibrations = {kind: Calibration(**its) for kind, its in said["no match"].items()}
            if not all(math.isfinite(figure) for its in calibrations.values() for figure in asdict(its).values()):
                raise ValueError
            shape, probe = (int(said["rows"]), int(said["dimension"])), np.array(said["probe"], dtype=np.float64)
        except (ValueError, TypeError, KeyError, AttributeError, OverflowError):
            raise _damaged(self.folder, f"{MANIFEST} is not one of format {FORMAT}") from None
        if self._kind not in ("", said["index"]):
            raise InputError(f"The image index in {self.folder} is {said['index']}, not {self._kind}.",
                             hint="another folder; or leave the index out")  # fmt: skip
        own = np.array(self._probe)
        same = shape[1] == self.encoder.dimension and own.shape == probe.shape and np.abs(own - probe).max() <= 0.01
        if not same and model != self.encoder.name:
            raise InputError(f"The image index in {self.folder} is of the model {model}, not {self.encoder.name}.",
                             hint="that --model; or another folder")  # fmt: skip
        if not same:
            raise InputError(f"The image index in {self.folder} is of another model that was called {model}, or of "
                             f"another version of this program.", hint=_anew(self.folder))  # fmt: skip
        contents = {}
        for role in ("index", "entries"):
            name, digest = files.get(role, ("", ""))
            if not OWN_FILE.fullmatch(name):
                raise _damaged(self.folder, f"{MANIFEST} names no file for {role}")
            contents[role] = (self.folder / name).read_bytes()
            if hashlib.sha256(contents[role]).hexdigest() != digest:
                raise _damaged(self.folder, f"{name} is not what was written")
        try:
            packed = np.frombuffer(contents["index"], dtype=np.uint8)
            index = faiss.deserialize_index(packed) if len(packed) else None
            lines = [json.loads(line) for line in contents["entries"].decode().splitlines()]
            entries = tuple(line and _Entry(line[0], {path: (size, when) for path, size, when in line[1]})
                            for line in lines)  # fmt: skip
        except (ValueError, TypeError, LookupError, RuntimeError) as error:
            raise _damaged(self.folder, " ".join(str(error).split())[:200]) from None
        if (len(entries), index.d if index else shape[1], index.ntotal if index else 0) != (*shape, shape[0]):
            raise _damaged(self.folder, "there are not as many vectors as entries")
        self._kind = said["index"]
        return _State(generation, entries, index, files, calibrations, text)


def _damaged(folder: Path, what: str) -> InputError:
    return InputError(f"The image index in {folder} is damaged: {what}.", hint=_anew(folder))


def _anew(folder: Path) -> str:
    return f"delete {folder / MANIFEST}, and index the images anew"


def _is_below(path: str, roots: Sequence[str]) -> bool:
    return any(path == root or path.startswith(root.rstrip(os.sep) + os.sep) for root in roots)


def _images_below(root: str, index: Path, closed: list[str]) -> Iterator[str]:
    """Yield a file, or the images of a folder and those below it; an index's own are none. Takes what can't be read."""
    own = os.path.abspath(index)

    def enter(folder: str) -> bool:
        parent, name = os.path.split(folder)
        return folder != own and not (name == "thumbnails" and os.path.isfile(os.path.join(parent, MANIFEST)))

    if os.path.isfile(root):
        yield root
    else:
        yield from files_below(root, IMAGE_SUFFIXES, closed=closed.append, enter=enter)


# --- How good it is ---------------------------------------------------------------------------------------------------


def ranks(
    queries: Vectors, gallery: Vectors, query_ids: Sequence[Any], gallery_ids: Sequence[Any]
) -> NDArray[np.int64]:
    """Return the rank, from 1, of the best row of the gallery that has the id of a query.

    Whatever else has the same cosine or a higher one comes before it: a model that says the same of everything is last.

    Args:
        queries: (N, C).
        gallery: (M, C).
        query_ids: N; each is among the gallery's.
        gallery_ids: M.
    """
    _, numbers = np.unique([*map(str, gallery_ids), *map(str, query_ids)], return_inverse=True)
    theirs, own = numbers[: len(gallery_ids)], numbers[len(gallery_ids) :]
    found = []
    for start, cosines in similarity_blocks(queries, gallery):
        same = own[start : start + len(cosines), None] == theirs[None]
        best = np.where(same, cosines, -np.inf).max(axis=1, keepdims=True)
        found.append(1 + ((cosines >= best) & ~same).sum(axis=1))
    return np.concatenate(found) if found else np.zeros(0, np.int64)


def recall(
    images: Vectors, texts: Vectors, image_ids: Sequence[Any], text_ids: Sequence[Any], at: Sequence[int] = (1, 5, 10)
) -> dict[str, float]:
    """Return recall@k both ways: the part of the queries with one of their own among the best k.

    Args:
        images: (N, C).
        texts: (M, C).
        image_ids: N.
        text_ids: M; texts and images of the same id belong together.
        at: The ks.
    """
    figures = {}
    for name, its in (("text to image", ranks(texts, images, text_ids, image_ids)),
                      ("image to text", ranks(images, texts, image_ids, text_ids))):  # fmt: skip
        figures |= {f"{name} R@{k}": float((its <= k).mean()) for k in at}
        figures[f"{name} median rank"] = float(np.median(its))
    return figures


def distinct_scenes(count: int, split: str = "test", seed: int = 0) -> list[Any]:
    """Draw builtin scenes of which no two have the same caption, each a ``scenes.SceneImage``."""
    from multimodal_llm.builtin import scenes

    found: dict[str, Any] = {}
    for scene in scenes.scenes(split, 20 * count + 100, seed):  # type: ignore[arg-type]
        if len(found) < count:
            found.setdefault(scene.caption, scenes.SceneImage(scene))
    return list(found.values())


def scene_recall(encoder: ClipEncoder, count: int = 500, seed: int = 0) -> dict[str, float]:
    """Return recall@1 and @5, both ways, in a gallery of builtin scenes whose captions were never trained.

    Beside it, how well "no match" is told: its thresholds come from as many scenes of the validation split, and are
    measured in this gallery, each query once with its image in it and once without.
    """
    sides = {}
    for split in ("validation", "test"):
        drawn = distinct_scenes(count, split, seed)
        said = [one.scene.caption for one in drawn]
        again = [altered(open_image(one), random.Random(i)) for i, one in enumerate(drawn)]
        sides[split] = (encoder.embed_images(drawn), encoder.embed_texts(said), encoder.embed_images(again), said)
    images, texts, _, said = sides["test"]
    figures = recall(images, texts, said, said, at=(1, 5))
    for kind, place in (("text", 1), ("image", 2)):
        pairs, held_out = (best_cosines(its[place], its[0], its[3], its[3]) for its in sides.values())
        its = calibrated(pairs, held_out, len(images))
        figures |= {f"{kind}, match found": its.found, f"{kind}, no match told": its.refused,
                    f"{kind}, threshold": its.threshold}  # fmt: skip
    return figures


# --- Commands ---------------------------------------------------------------------------------------------------------

GALLERY, GALLERY_INDEX, GALLERY_SIZE = OUTPUTS / PROJECT / "gallery", OUTPUTS / PROJECT / "gallery_index", 200


@dataclass
class _ModelConfig:
    """Which model compares images with texts."""

    model: str = "builtin:clip"
    """builtin:clip, a folder, or a hub id such as openai/clip-vit-base-patch32; of an index, what it was made with."""
    device: str = field(default="auto", metadata=NOT_RECIPE)
    """auto, cpu, cuda or mps."""
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    """What to compute in."""
    threads: int = field(default=0, metadata=NOT_RECIPE)
    """CPU threads; 0 leaves it to PyTorch."""
    run: str = field(default="", metadata=NOT_RECIPE)
    """Name of the run's folder; by default the time."""

    def __post_init__(self) -> None:
        """Check the ranges."""
        check_range("threads", self.threads, 0)

    def encoder(self) -> ClipEncoder:
        """Load the model."""
        set_threads(self.threads)
        return load_clip(self.model, self.device, self.dtype)


@dataclass
class _FolderConfig(_ModelConfig):
    """Which index."""

    folder: str = str(OUTPUTS / PROJECT / "index")
    """Where the index is kept."""

    def opened(self) -> ImageIndex:
        """Open the index.

        Raises:
            InputError: There is none, or it is of another model.
        """
        if not (Path(self.folder) / MANIFEST).exists():
            its = "" if self.folder == _FolderConfig.folder else f" --folder {shlex.quote(self.folder)}"
            drawn = f"; or --folder {GALLERY_INDEX}, the gallery" if (GALLERY_INDEX / MANIFEST).exists() else ""
            raise InputError(f"There is no image index in {self.folder!r}.",
                             hint=f"python -m {MODULE} index --input PHOTOS{its}{drawn}")  # fmt: skip
        return ImageIndex(self.folder, self.encoder())


@dataclass
class IndexConfig(_FolderConfig):
    """Make the index say what is in folders now: new, changed, moved and deleted images, and duplicates."""

    input: list[str] = field(default_factory=list)
    """Files and folders; by default a gallery of scenes is drawn."""
    index: Literal["", "flat", "hnsw", "ivf"] = ""
    """flat is exact; hnsw, and ivf from 10,000 images on, are faster; by default what the folder has, else flat."""
    captions: str = ""
    """Captions of some of the images, as jsonl, csv or COCO's json: they calibrate "no match" for texts."""
    rehash: bool = False
    """Read all files again, even where size and time are as before."""
    batch_size: int = field(default=32, metadata=NOT_RECIPE)
    """Images embedded at a time."""
    ray: bool = field(default=False, metadata=NOT_RECIPE)
    """Embed through Ray Data, here or on the cluster of RAY_ADDRESS."""
    workers: int = field(default=1, metadata=NOT_RECIPE)
    """Ray's processes that embed."""
    gpus_per_worker: float = field(default=0, metadata=NOT_RECIPE)
    """Of each of Ray's processes."""

    def __post_init__(self) -> None:
        """Check the ranges."""
        super().__post_init__()
        check_range("batch_size", self.batch_size, 1, 4096)
        check_range("workers", self.workers, 1, 10_000)
        check_range("gpus_per_worker", self.gpus_per_worker, 0)


def index(config: IndexConfig) -> None:
    """Index images; see :class:`IndexConfig`."""
    inputs, captions = list(config.input), Path(config.captions) if config.captions else None
    for name in inputs:
        if not Path(name).expanduser().exists():
            raise FileNotFoundError(f"No such file or folder: {name!r}.")
    if not inputs:
        inputs, captions = [str(draw_gallery())], GALLERY / "captions.jsonl"
    if captions:
        read_captions(captions)  # complains now, and not after an hour
    images = ImageIndex(config.folder, config.encoder(), config.index)
    run = Run(PROJECT, MODULE, "index", config, name=config.run)
    how = {"batch_size": config.batch_size}
    look = functools.partial(look_at, images.encoder, **how)
    if config.ray:
        look = functools.partial(look_with_ray, model=config.model, device=config.device, dtype=config.dtype,
                                 workers=config.workers, gpus_per_worker=config.gpus_per_worker, **how)  # fmt: skip
    changes = images.update(inputs, look=look, rehash=config.rehash)
    metrics = changes.metrics() | {"images": len(images), "files": len(images.paths())}
    for line in filter(None, str(changes.skipped).split("\n")):
        logger.warning("%s", line)
    for before, now in list(changes.moved.items())[:5]:
        logger.info("moved: %s → %s", before, now)
    for group in images.duplicates()[:5]:
        logger.info("the same content: %s", ", ".join(group))
    if config.captions or changes.new or changes.changed or not images.calibrations:
        known = caption_paths(captions, images.paths()) if captions else {}
        if captions and not known:
            logger.warning("none of the captions is of an image in the index")
        images.calibrate(known)
    for kind, its in images.calibrations.items():
        logger.info("queries by %s: %s", kind, its)
        metrics |= {f"{kind}, {name}": value for name, value in asdict(its).items()}
    run.finish(model=images.encoder.name, data=", ".join(config.input) or "builtin:scenes", seed=0, metrics=metrics)
    counts = ", ".join(f"{name} {count:,}" for name, count in changes.metrics().items())
    sys.stdout.write(f"{config.folder}: {len(images):,} images in {len(images.paths()):,} files; {counts}\n")
    if not len(images) and changes.skipped.counts:
        raise InputError("None of the images could be opened.")
    if not len(images):
        sys.stdout.write(f"There is no image left in {', '.join(inputs)}: all were removed from the index.\n")


def gallery_index(model: str) -> Path:
    """Return the folder of the gallery's index, of which each model has its own."""
    digest = hashlib.sha256(model.encode("utf-8", "surrogatepass")).hexdigest()[:8]
    return GALLERY_INDEX if model == _ModelConfig.model else GALLERY_INDEX.with_name(f"{GALLERY_INDEX.name}-{digest}")


def draw_gallery() -> Path:
    """Draw the builtin gallery as files, with captions; return its folder."""
    if not (GALLERY / "captions.jsonl").exists():
        drawn = distinct_scenes(GALLERY_SIZE)
        for i, one in enumerate(drawn):
            write_atomic(GALLERY / f"scene-{i:03}.png", one.read())
        lines = [{"image": f"scene-{i:03}.png", "caption": one.scene.caption} for i, one in enumerate(drawn)]
        write_atomic(GALLERY / "captions.jsonl", "".join(json.dumps(line) + "\n" for line in lines))
    return GALLERY


def caption_paths(captions: Path, paths: Sequence[str]) -> dict[str, list[str]]:
    """Find the captions of images: by path, by path from the file of captions, or by a file name that only one has.

    Args:
        captions: See ``caption_evaluation.read_captions``.
        paths: Of images, absolute.

    Returns:
        Path → captions, of those that have any.
    """
    said = read_captions(captions)
    named = {said.file_names.get(image, image): its for image, its in said.captions.items()}
    base = os.path.dirname(os.path.abspath(captions))
    alone = Counter(map(os.path.basename, paths))
    found = {}
    for path in paths:
        names = [path, os.path.relpath(path), os.path.relpath(path, base)]
        names += [name for name in (os.path.basename(path), Path(path).stem) if alone[os.path.basename(path)] == 1]
        if its := next((named[name] for name in names if name in named), None):
            found[path] = its
    return found


@dataclass
class SearchConfig(_FolderConfig):
    """Find images in an index by text or by image."""

    text: str = ""
    """What to look for; several with | between them."""
    image: list[str] = field(default_factory=list)
    """Files to look for the like of. Without text, image and folder the gallery of scenes is searched."""
    k: int = 5
    """How many images."""

    def __post_init__(self) -> None:
        """Check the ranges."""
        super().__post_init__()
        check_range("k", self.k, 1, 10_000)


def search(config: SearchConfig) -> None:
    """Search; see :class:`SearchConfig`."""
    texts = list(filter(None, map(str.strip, config.text.split("|"))))
    if not texts and not config.image:  # the gallery, asked for two scenes that are there, and for one that is not
        gallery = str(gallery_index(config.model))
        if config.text or config.folder not in (SearchConfig.folder, gallery):
            raise InputError("text must not be empty.", hint='--text "a red circle", or --image FILE')
        config = replace(config, folder=gallery)
        index(IndexConfig(config.model, config.device, config.dtype, config.threads, folder=config.folder))
        drawn = distinct_scenes(GALLERY_SIZE + 1)
        texts = [drawn[place].scene.caption for place in (3, 4, GALLERY_SIZE)]
    images = config.opened()
    run = Run(PROJECT, MODULE, "search", config, name=config.run)
    queries = [*texts, *config.image]
    found = images.search_texts(texts, config.k) if texts else []
    found += images.search_images([Path(name).expanduser() for name in config.image], config.k) if config.image else []
    lines = []
    for number, (query, its) in enumerate(zip(queries, found, strict=True)):
        wanted = f"index {'with --captions of ' if number < len(texts) else ''}{FEWEST_CALIBRATED} images at least"
        sure = {True: "* is a match", False: "no match: the nearest are",
                None: f"the nearest; to know what is a match, {wanted}"}  # fmt: skip
        sys.stdout.write(f"{query}   {sure[its.match]}\n")
        for hit in its.hits:
            more = f"   and {len(hit.paths) - 1} with the same content" if len(hit.paths) > 1 else ""
            sys.stdout.write(f"  {'*' if hit.match else ' '} {hit.cosine:.4f}  {printable(hit.path)}{more}\n")
        lines.append(json.dumps({"query": query, "match": its.match, "hits": [asdict(hit) for hit in its.hits]}) + "\n")
    write_atomic(run.folder / "found.jsonl", "".join(lines))
    matches = [its.match for its in found if its.match is not None]
    metrics = {"queries": len(queries), "images": len(images), "matches": sum(matches)}
    run.finish(model=images.encoder.name, data=config.folder, seed=0, metrics=metrics)
    logger.info("saved in %s", run.folder)


def printable(path: str) -> str:
    """Return a file name as it can be shown, whatever bytes it is made of."""
    return path.encode("utf-8", "backslashreplace").decode()


@dataclass
class RemoveConfig(_FolderConfig):
    """Forget images, whether their files are still there or not; without any named, list what is in the index."""

    paths: list[str] = field(default_factory=list)
    """Files, or folders with all below them."""


def remove(config: RemoveConfig) -> None:
    """Forget images, or list them; see :class:`RemoveConfig`."""
    images = config.opened()
    gone = images.remove(config.paths) if config.paths else []
    if config.paths and not gone:
        raise InputError(f"None of {', '.join(config.paths)} is in the index.", hint=f"python -m {MODULE} remove")
    for path in gone or images.paths():
        sys.stdout.write(f"{'forgotten: ' if gone else ''}{printable(path)}\n")


@dataclass
class EvaluateConfig(_ModelConfig):
    """Measure recall@k both ways, and of scenes also how well "no match" is told."""

    data: str = "builtin:scenes"
    """builtin:scenes, or a folder of images with captions."""
    captions: str = ""
    """Captions of a folder, as jsonl, csv or COCO's json; by default captions.jsonl in it."""
    count: int = 500
    """Scenes of the gallery, >= 40."""
    seed: int = field(default=0, metadata=NOT_RECIPE)
    """Of the scenes."""

    def __post_init__(self) -> None:
        """Check the ranges."""
        super().__post_init__()
        check_range("count", self.count, 40, 100_000)


def evaluate(config: EvaluateConfig) -> None:
    """Measure; see :class:`EvaluateConfig`."""
    source = resolve(config.data, ["scenes"])
    if source.origin == "hub":
        raise InputError("data must be a folder of images here, with captions.")
    if source.origin == "path":
        folder = Path(source.name)
        known = caption_paths(Path(config.captions or folder / "captions.jsonl"),
                              list(_images_below(os.path.abspath(folder), folder / "no index", [])))  # fmt: skip
        if not known:
            raise InputError(f"None of the captions is of an image in {folder}.")
        skipped = Skipped()
        for path in (path for path, its in known.items() for text in its if not text.strip()):
            skipped.add("the caption is empty", path)
        known = {path: said for path, its in known.items() if (said := list(filter(str.strip, its)))}
        if not known:
            raise InputError(f"All captions of images in {folder} are empty.")
    encoder = config.encoder()
    run = Run(PROJECT, MODULE, "evaluate", config, name=config.run)
    if source.origin == "builtin":
        metrics: dict[str, float] = scene_recall(encoder, config.count, config.seed)
    else:
        looked = list(embed_readable(encoder, list(known), skipped, what="evaluate"))
        for line in filter(None, str(skipped).split("\n")):
            logger.warning("%s", line)
        if not looked:
            raise InputError("None of the images could be opened.")
        kept = [list(known)[i] for i, _ in looked]
        pairs = [(path, text) for path in kept for text in known[path]]
        texts = encoder.embed_texts([text for _, text in pairs])
        metrics = recall(np.stack([vector for _, vector in looked]), texts, kept, [path for path, _ in pairs])
        metrics |= {"images": len(kept), "captions": len(pairs), "left out": skipped.counts.total()}
    run.finish(model=encoder.name, data=str(source), seed=config.seed, metrics=metrics)
    sys.stdout.write("".join(f"{name:28} {value:.4f}\n" for name, value in metrics.items()))
    logger.info("saved in %s", run.folder)


if __name__ == "__main__":
    run_commands({"index": index, "search": search, "remove": remove, "evaluate": evaluate}, module=MODULE,
                 extra="multimodal")  # fmt: skip
