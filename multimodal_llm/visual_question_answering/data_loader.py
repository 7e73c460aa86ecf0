r"""Questions about images from anywhere, opened safely, and scored by the rules of the VQA challenge.

    python -m multimodal_llm.visual_question_answering.data_loader report --data builtin:scenes
    python -m multimodal_llm.visual_question_answering.data_loader report --data vqa_v2/ --images val2014.zip

    splits = load_vqa(DataConfig(data="easy_vqa.zip")).splits
    vqa_accuracy("two", {"2": 9, "3": 1})

VQA v2: Goyal et al., 2017 (arXiv:1612.00837). Accuracy and its rules: Antol et al., 2015 (arXiv:1505.00468).
"""

from __future__ import annotations

import functools
import hashlib
import io
import json
import logging
import os
import re
import stat
import sys
import textwrap
import warnings
import zipfile
import zlib
from collections import Counter, defaultdict
from collections.abc import Callable, Container, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import IO, TYPE_CHECKING, Any, Literal

import numpy as np

from shared.config import check_range, run_commands
from shared.errors import InputError
from shared.results import Run
from shared.sources import Source, hub_errors, resolve

if TYPE_CHECKING:
    from PIL.Image import Image

PROJECT = "multimodal_llm"
MODULE = f"{PROJECT}.visual_question_answering.data_loader"
NOT_RECIPE = {"recipe": False}
logger = logging.getLogger(MODULE)


# --- Images -----------------------------------------------------------------------------------------------------------

MAX_PIXELS = 50_000_000  # a photo of 50 megapixels needs 150 MB in memory
MAX_BYTES = 100_000_000
FORMATS = ("JPEG", "PNG", "GIF", "WEBP", "BMP", "TIFF", "PPM")  # none that starts another program, as EPS does
IMAGE_SUFFIXES = {".jpg", ".jpeg", ".png", ".gif", ".webp", ".bmp", ".tif", ".tiff", ".ppm"}


@dataclass(frozen=True)
class ArchiveImage:
    """An image inside a zip, read when it is opened; it can be pickled to another process."""

    archive: Path
    member: str

    def read(self) -> bytes:
        """Return the file's bytes."""
        return _read_member(self.archive, self.member, MAX_BYTES)

    def __str__(self) -> str:
        return f"{self.archive}/{self.member}"


@dataclass(frozen=True)
class RowImage:
    """The image of a row of a data set of the hub, read when it is opened."""

    rows: Any
    column: str
    index: int

    def read(self) -> bytes:
        """Return the file's bytes."""
        if not (value := self.rows[self.index][self.column]):
            raise InputError(f"{self} is empty.")
        return bytes(value["bytes"]) if value.get("bytes") else Path(value["path"]).read_bytes()

    def __str__(self) -> str:
        return f"{self.column} of row {self.index}"


def _warn_of(place: str) -> None:
    logger.warning("%s can't be read, nor what is below it", place)


def files_below(
    folder: str | Path, suffixes: Container[str] | None = None, *, closed: Callable[[str], object] = _warn_of,
    enter: Callable[[str], bool] = lambda folder: True,
) -> Iterator[str]:  # fmt: skip
    """Yield the paths of the files in a folder and below it, in a fixed order; links to folders are not followed.

    Args:
        folder: To look in.
        suffixes: In small letters, of the files that are wanted; by default all are.
        closed: Called with each folder or file that can't be looked at; by default a warning is logged.
        enter: Whether to look in a folder below.
    """
    for place, folders, names in os.walk(folder, onerror=lambda error: closed(str(error.filename))):
        folders[:] = sorted(name for name in folders if enter(os.path.join(place, name)))
        for name in sorted(names):
            if suffixes is not None and PurePosixPath(name).suffix.lower() not in suffixes:
                continue
            path = os.path.join(place, name)
            try:
                if stat.S_ISREG(os.stat(path).st_mode):
                    yield path
            except FileNotFoundError:  # a link to nothing
                continue
            except OSError:
                closed(path)


def _read_member(archive: Path, member: str, most: int) -> bytes:
    with _opened_member(archive, member, most) as file:
        return b"".join(iter(lambda: file.read(4096), b""))  # all at once, it would unpack more than the header says


@contextmanager
def _opened_member(archive: Path, member: str, most: int) -> Iterator[IO[bytes]]:
    try:
        opened = _open_archive(archive)
        if (size := opened.getinfo(member).file_size) > most:  # what comes beyond it, zipfile cuts off
            raise InputError(f"{archive}/{member} has {size:,} bytes; at most {most:,} are read.")
        with opened.open(member) as file:
            yield file
    except (zipfile.BadZipFile, zlib.error, KeyError, EOFError, NotImplementedError, RuntimeError) as error:
        raise InputError(f"{archive}/{member} can't be unpacked: {error}.") from None


def _open_archive(path: Path) -> zipfile.ZipFile:
    """Open a zip once in each process: children of a fork would share, and move, one position in the file."""
    return _archive(path, path.stat().st_mtime_ns, os.getpid())


@functools.lru_cache(maxsize=8)
def _archive(path: Path, changed: int, process: int) -> zipfile.ZipFile:
    try:
        return zipfile.ZipFile(path)
    except zipfile.BadZipFile as error:
        raise InputError(f"{path} is cut short, or no zip: {error}.") from None


def open_image(source: Any, *, max_pixels: int = MAX_PIXELS) -> Image:
    """Open an image, whatever came, as RGB and upright.

    Of an animation it is the first frame; transparent parts become white; 16 bits become 8; EXIF's rotation is applied.

    Args:
        source: A path, bytes, an image of PIL, or anything with ``read()`` that returns bytes.
        max_pixels: Width times height above which an image is refused, before it is unpacked.

    Returns:
        An image of mode RGB, in memory whole.

    Raises:
        InputError: It is no image, no regular file, cut short, or too large.
        FileNotFoundError: There is no such file.
    """
    from PIL import Image, ImageOps

    named = not isinstance(source, bytes) and type(source).__str__ is not object.__str__
    name = str(source) if named else "The image"
    if isinstance(source, Image.Image):
        opened = [source, source]
    else:
        if isinstance(source, (str, os.PathLike)):
            about = Path(source).stat()
            if not stat.S_ISREG(about.st_mode):  # a device may have no end, a pipe no beginning
                raise InputError(f"{name} is no regular file.", hint="the path of an image")
            if (size := about.st_size) > MAX_BYTES:
                raise InputError(f"{name} has {size:,} bytes; at most {MAX_BYTES:,} are read.")
            with Path(source).open("rb") as file:
                source = file.read(size + 1)  # no more than was allowed, though the file may grow
        data = source if isinstance(source, bytes) else source.read()
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # PIL's own limit, and odd metadata
                opened = [Image.open(io.BytesIO(data), formats=FORMATS) for _ in range(2)]  # verify spoils the first
        except Exception as error:  # decoders raise whatever they like
            if isinstance(error, Image.DecompressionBombError):
                raise InputError(f"{name} is too large: {error}.", hint="scale it down") from None
            kinds = ", ".join(FORMATS)
            raise InputError(f"{name} is no image that can be read here, or damaged.", hint=f"one of {kinds}") from None
    width, height = opened[0].size
    if width * height > max_pixels:
        raise InputError(f"{name} has {width} × {height} pixels; at most {max_pixels:,} are opened.", "scale it down")
    try:
        if opened[0] is not opened[1]:
            opened[0].verify()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            opened[1].seek(0)
            return as_rgb(ImageOps.exif_transpose(opened[1]))
    except Exception as error:
        reason = textwrap.shorten(str(error), 200, placeholder=" …")
        raise InputError(f"{name} is damaged: {reason}.") from None


def as_rgb(image: Image) -> Image:
    """Return an image as RGB: what is transparent on white, 16 and 32 bits scaled to 8.

    Integers above 255 are scaled from the fewest bits that hold them, 12 or 16 or more: cameras and scanners fill
    16-bit files with 12. Floats are scaled from 1, or from 255 where one is larger.
    """
    from PIL import Image

    if image.mode.startswith(("I", "F")):  # PIL's own conversion would cut off at 255
        values = np.nan_to_num(np.asarray(image, dtype=np.float64))
        most = values.max()
        steps = (255, 4095, 65535) if image.mode.startswith("I") else (1, 255, 65535)
        top = next((step for step in steps if most <= step), most)
        return Image.fromarray((values.clip(0, top) / top * 255).round().astype(np.uint8)).convert("RGB")
    if image.mode in ("RGBA", "LA", "PA", "La", "RGBa") or "transparency" in image.info:
        layered = image.convert("RGBA")
        white = Image.new("RGBA", layered.size, "white")
        return Image.alpha_composite(white, layered).convert("RGB")
    return image.convert("RGB")  # also makes a copy of one that is RGB already


# --- Records ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class VQARecord:
    """A question about an image.

    Attributes:
        id: Its own in the data set.
        image: What :func:`open_image` takes; not opened yet.
        image_id: The same for all questions about an image.
        question: As asked.
        answers: Answer, as written → how many people gave it; one answer has count 1. Empty where none is known.
        question_type: What the data set says, or :func:`question_type` finds.
    """

    id: str
    image: Any
    image_id: str
    question: str
    answers: Mapping[str, int]
    question_type: str

    @property
    def answer(self) -> str:
        """The normalized answer most people gave, the first of several; empty where none is known."""
        counts = normalized_counts(self.answers)
        return max(counts, key=lambda answer: counts[answer], default="")


class Skipped:
    """What could not be used, and why: counts, and a few examples of each reason."""

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()
        self.examples: dict[str, list[str]] = {}

    def add(self, reason: str, what: object) -> None:
        """Count one."""
        self.counts[reason] += 1
        its = self.examples.setdefault(reason, [])
        if len(its) < 3:
            text = " ".join(str(what).split())
            its.append(text if len(text) <= 1000 else f"{text[:900]} … {text[-97:]}")  # paths may be long

    def __str__(self) -> str:
        return "\n".join(f"{n:,} left out, {why}: {', '.join(self.examples[why])}" for why, n in self.counts.items())


@dataclass(frozen=True)
class VQAData:
    """A data set.

    Attributes:
        name: What was resolved.
        splits: Train, validation, test, as far as there are → records.
        skipped: What was left out.
    """

    name: str
    splits: dict[str, list[VQARecord]]
    skipped: Skipped


def why_not(source: object, error: Exception) -> str:
    """Say why an image could not be opened, by its name: an error of the system's has none when it is a number's."""
    return str(error.args[0]) if isinstance(error, InputError) else f"{source}: {getattr(error, 'strerror', error)}"


def open_images(records: Iterable[VQARecord], skipped: Skipped) -> Iterator[tuple[VQARecord, Image]]:
    """Yield each record with its image opened; those that can't be opened are counted and left out."""
    for record in records:
        try:
            yield record, open_image(record.image)
        except (InputError, OSError) as error:
            skipped.add("the image can't be opened", why_not(record.image, error))


MAX_PEOPLE = 1_000_000_000  # who gave one answer; larger counts are no numbers of people, and soon no floats


def answer_counts(value: Any) -> dict[str, int]:
    """Read answers, most frequent first, however they are given.

    Args:
        value: One answer; a list of them, or of objects with ``answer`` (VQA v2); or answer → count. A count that is
            no whole number from 1 to a billion is left out.

    Returns:
        Answer → count, without empty answers; empty where it is none of these.
    """
    if isinstance(value, Mapping) and "answer" in value:
        value = value["answer"]
    if isinstance(value, Mapping):
        pairs = [(answer, count) for answer, count in value.items() if type(count) is int and 0 < count <= MAX_PEOPLE]
    else:
        several = value if isinstance(value, (list, tuple)) else [value]
        pairs = [(one.get("answer") if isinstance(one, Mapping) else one, 1) for one in several]
    counts = Counter[str]()
    for answer, count in pairs:
        if isinstance(answer, bool):
            answer = "yes" if answer else "no"
        if isinstance(answer, (str, int, float)) and str(answer).strip():
            counts[str(answer).strip()] += count
    return dict(counts.most_common())


# --- Rules ------------------------------------------------------------------------------------------------------------

NUMBERS = {"none": "0"} | {
    word: str(n) for n, word in enumerate("zero one two three four five six seven eight nine ten".split())
}
ARTICLES = {"a", "an", "the"}
# Each stands for itself with any one of its apostrophes forgotten. Words such as well (we'll) are not touched.
CONTRACTED = """
    ain't aren't can't could've couldn't couldn't've didn't doesn't don't hadn't hadn't've hasn't haven't he'd
    he'd've he's how'd how'll how's isn't it'd it'd've it'll ma'am mightn't mightn't've might've mustn't must've
    needn't not've o'clock oughtn't 'ow's'at shan't she'd've should've shouldn't shouldn't've somebody'd've
    somebody'll somebody's someone'd someone'd've someone'll someone's something'd something'd've something'll
    that's there'd there'd've there're there's they'd they'd've they'll they're they've 'twas wasn't we'd've we've
    weren't what'll what're what's what've when's where'd where's where've who'd who'd've who'll who's who've why'll
    why're why's won't would've wouldn't wouldn't've y'all y'all'll y'all'd've you'd you'd've you'll you're you've
"""
CONTRACTIONS = {
    word[:at] + word[at + 1 :]: word for word in CONTRACTED.split() for at, sign in enumerate(word) if sign == "'"
} | {"somebody'd": "somebodyd"}  # the official table has this one the wrong way round
PUNCTUATION = ';/[]"{}()=+\\_-><@`,?!'


def normalize_answer(answer: str) -> str:
    """Bring an answer into the form of the VQA challenge, rule by rule as its official script does.

    Punctuation goes: where a blank stands beside one of its kind, or a comma stands between digits anywhere, without a
    trace; else a blank takes its place. Colons and apostrophes stay, periods before digits too. Then lower case, number
    words to ten as digits (``none`` is 0), no articles, and forgotten apostrophes are put back.
    """
    answer = re.sub(r"[\n\t]", " ", answer).strip()
    thousands, mended = re.search(r"\d,\d", answer), answer
    for sign in PUNCTUATION:
        beside_blank = f"{sign} " in answer or f" {sign}" in answer
        mended = mended.replace(sign, "" if beside_blank or thousands else " ")
    mended = re.sub(r"\.(?!\d)", "", mended, count=32)  # the script hands a flag to the count, which is 32
    words = [NUMBERS.get(word, word) for word in mended.lower().split()]
    return " ".join(CONTRACTIONS.get(word, word) for word in words if word not in ARTICLES)


def normalized_counts(answers: Mapping[str, int]) -> Counter[str]:
    """Add up the answers that are the same when normalized."""
    counts = Counter[str]()
    for answer, count in answers.items():
        counts[normalize_answer(answer)] += count
    return counts


def vqa_accuracy(prediction: str, answers: Mapping[str, int], *, unanimous_as_written: bool = False) -> float:
    """Return the official accuracy: min(1, people who gave this answer / 3), averaged over leaving out each person.

    Of ten people, 1, 2, 3, 4 who say the same make it 0.3, 0.6, 0.9, 1. Of fewer than four, all the others must agree
    instead of three; a single answer is right or wrong.

    Args:
        prediction: The answer to judge.
        answers: Answer → how many people gave it.
        unanimous_as_written: As in the official script, compare letter by letter where all people wrote the same, so
            that "Yes" is wrong for ten times "yes". By default answers are normalized always, which only differs for
            predictions that are not normalized.

    Returns:
        In [0, 1].

    Raises:
        InputError: There is no answer to compare with.
    """
    people = sum(answers.values())
    if not people:
        raise InputError("answers must hold one at least, to compare the prediction with.")
    if unanimous_as_written and len(answers) == 1 and people > 1:
        same = people * (re.sub(r"[\n\t]", " ", prediction).strip() in answers)
    else:
        same = normalized_counts(answers)[normalize_answer(prediction)]
    if people == 1:
        return float(same)
    enough = min(3, people - 1)
    without_one_of_them, without_another = min(1.0, max(0, same - 1) / enough), min(1.0, same / enough)
    return (same * without_one_of_them + (people - same) * without_another) / people


_VERB = r"^(is|are|was|were|am|do|does|did|can|could|has|have|had|will|would|should)\b"
QUESTION_TYPES = {  # the first that fits
    "count": r"\bhow many\b|\bnumber of\b|多少|几个|几只|几种|数量",
    "color": r"\bwhat (is the )?colou?rs?\b|\bwhich colou?r\b|什么颜色",
    "shape": r"\b(what|which)\b.*\bshapes?\b|什么形状",
    "size": r"\b(what|which) size\b|\bhow (big|large|small|tall)\b|多大",
    "relation": rf"{_VERB}.*\b(left|right|above|below|under|behind|beside|next to|in front of)\b"
    r"|[左右][边面]|[上下][边方面]",
    "exists": rf"^(is|are|was|were) there\b|{_VERB}.*\b(contain|present|visible)\b|有没有|是否有|存在",
    "yes/no": rf"{_VERB}|吗[？?]?$|是否|是不是",
    "where": r"^where\b|哪里|在哪",
    "who": r"^who(se|m)?\b|谁",
    "when": r"^when\b|^what (time|year|day)\b|什么时候|几点",
    "why": r"^why\b|为什么",
    "how": r"^how\b|怎么|怎样",
    "what": r"^(what|which)\b|什么|哪",
}


def question_type(question: str) -> str:
    """Say what kind of question it is, by its words: one of :data:`QUESTION_TYPES`, or ``other``."""
    text = question.strip().lower()
    return next((kind for kind, pattern in QUESTION_TYPES.items() if re.search(pattern, text)), "other")


# --- What can be had without looking ----------------------------------------------------------------------------------


Level = Literal["question", "type", "overall"]


class QuestionPrior:
    """Answers without looking at the image: a model that is no better has learned nothing but the questions.

    Args:
        records: To learn from; their answers are counted after normalization.
    """

    def __init__(self, records: Iterable[VQARecord]) -> None:
        tables: dict[str, dict[str, Counter[str]]] = {"question": {}, "type": {}, "overall": {"": Counter()}}
        for record in records:
            counts = normalized_counts(record.answers)
            for level, key in self._keys(record).items():
                tables[level].setdefault(key, Counter()).update(counts)
        self._answers = {level: {key: min(counts, key=lambda answer: (-counts[answer], answer))
                                 for key, counts in table.items() if counts}
                         for level, table in tables.items()}  # fmt: skip

    @staticmethod
    def _keys(record: VQARecord) -> dict[str, str]:
        return {"question": " ".join(record.question.lower().rstrip("?？ ").split()), "type": record.question_type,
                "overall": ""}  # fmt: skip

    def predict(self, record: VQARecord, level: Level = "question") -> str:
        """Return the answer most frequent for this question; for one never seen, of its type, or of all.

        Args:
            record: Whose question to answer.
            level: Where to begin: ``type`` and ``overall`` make weaker baselines.
        """
        keys = self._keys(record)
        levels = list(keys)[list(keys).index(level) :]
        return next((self._answers[name][keys[name]] for name in levels if keys[name] in self._answers[name]), "")

    def accuracy(self, records: Sequence[VQARecord], level: Level = "question") -> float:
        """Return the mean VQA accuracy on records with answers, in [0, 1]."""
        return float(np.mean([vqa_accuracy(self.predict(record, level), record.answers) for record in records]))


def answer_vocabulary(
    records: Iterable[VQARecord], *, max_size: int = 0, min_count: int = 1
) -> tuple[list[str], float]:
    """Choose the answers that a classifier can give.

    Args:
        records: To count in: of each, the answer that most people gave.
        max_size: Most answers; 0 is all.
        min_count: Leave out what fewer questions have; 9 gives the usual 3,129 of VQA v2.

    Returns:
        The normalized answers, most frequent first and equal ones by the alphabet; and the share of questions they
        cover.
    """
    counts = Counter(record.answer for record in records if record.answer)
    ordered = sorted(counts, key=lambda answer: (-counts[answer], answer))
    chosen = [answer for answer in ordered if counts[answer] >= min_count][: max_size or None]
    return chosen, sum(counts[answer] for answer in chosen) / max(counts.total(), 1)


# --- Splits -----------------------------------------------------------------------------------------------------------

SPLIT_NAMES = {"train": ("train",), "validation": ("validation", "valid", "val", "dev"), "test": ("test", "testdev")}


def split_name(name: str) -> str:
    """Return train, validation or test for names such as ``val2014`` or ``vqa_test``; empty for another."""
    words = re.split(r"[\W\d_]+", name.lower())
    return next((split for word in words for split, names in SPLIT_NAMES.items() if word in names), "")


def split_by_image(
    records: Sequence[VQARecord], fractions: Mapping[str, float], seed: int = 0
) -> dict[str, list[VQARecord]]:
    """Divide records so that all questions about an image are in one part; what is left over is train.

    Args:
        records: To divide.
        fractions: Part → share of the images, in (0, 1); each gets one image at least.
        seed: Of the drawing.

    Raises:
        InputError: There are too few images.
    """
    images = sorted({record.image_id for record in records})
    if len(images) <= len(fractions) or sum(fractions.values()) >= 1:
        raise InputError(f"{len(images)} images can't be divided into train, {', '.join(fractions)}.")
    order = np.random.default_rng(seed).permutation(len(images))
    part_of, start = {}, 0
    for part, fraction in fractions.items():
        end = start + max(1, round(fraction * len(images)))
        part_of |= {images[i]: part for i in order[start:end]}
        start = end
    parts: dict[str, list[VQARecord]] = {"train": [], **{part: [] for part in fractions}}
    for record in records:
        parts[part_of.get(record.image_id, "train")].append(record)
    return parts


def digest_of(rows: Iterable[Iterable[str]]) -> str:
    """Return a SHA-256 of rows of texts in any order, by which a training can tell that its data are what they were."""
    return hashlib.sha256("\n".join(sorted(json.dumps(list(row)) for row in rows)).encode()).hexdigest()


# --- Files ------------------------------------------------------------------------------------------------------------

MAX_TEXT = 500_000_000  # bytes of a file in a zip; the largest of VQA v2 has about 400 MB


class Files:
    """The files of a folder or a zip, by their paths inside.

    Args:
        path: Of either.
        deep: Whether to look below the folders of the folder, which may be somebody's home.
        base: Where paths of images may start, too: the folder of what names them.
    """

    def __init__(self, path: Path, *, deep: bool = True, base: Path | None = None) -> None:
        self.path, self._starts = path, dict.fromkeys((path, base or path))  # in this order
        if path.is_dir():
            found = files_below(path, enter=lambda folder: deep or os.path.dirname(folder) == str(path))
            names = (Path(file).relative_to(path).as_posix() for file in found)
            self.names = sorted(name for name in names if not PurePosixPath(name).name.startswith("."))
        else:
            self.names = sorted(name for name in _open_archive(path).namelist() if not name.endswith("/"))
        self._images = {name for name in self.names if PurePosixPath(name).suffix.lower() in IMAGE_SUFFIXES}
        self._by_file_name: dict[str, list[str]] = defaultdict(list)
        for name in self._images:
            self._by_file_name[PurePosixPath(name).name].append(name)

    def lines(self, name: str) -> Iterator[str]:
        """Yield the lines of a UTF-8 file, of which one at a time is in memory."""
        path = self.path / name
        try:
            with path.open("rb") if self.path.is_dir() else _opened_member(self.path, name, MAX_TEXT) as file:
                yield from io.TextIOWrapper(file, "utf-8-sig", newline="\n")
        except UnicodeDecodeError as error:
            raise _not_utf8(path, error) from None

    def text(self, name: str) -> str:
        """Return a UTF-8 file."""
        data = (self.path / name).read_bytes() if self.path.is_dir() else _read_member(self.path, name, MAX_TEXT)
        return _decoded(data, self.path / name)

    def image(self, *paths: str, anywhere: bool = True) -> Path | ArchiveImage | None:
        """Return the first image that is here under one of some paths; None if none is.

        A path that leads out of the folder or the zip is never followed: who made the data set shall not say what of
        this machine is read. Links that lie in a folder are.

        Args:
            paths: To look for.
            anywhere: Whether a file name alone may be that of an image in any folder, if only one has it.
        """
        for path in paths:
            if (name := self._found(path, anywhere)) is not None:
                return self.path / name if self.path.is_dir() else ArchiveImage(self.path, name)
        return None

    def missing(self, path: str) -> str:
        """Return a path at which :meth:`image` found nothing, and why if it is not just that nothing is there."""
        if all(map(_leads_out, self._places(path))):
            return f"{path} (leads out of the data)"
        several = len(self._by_file_name.get(path, ()))
        return f"{path} (in {several} folders, of which it names none)" if several > 1 else path

    def _found(self, path: str, anywhere: bool) -> str | None:
        if path in self._images:
            return path
        if "/" not in path:
            its = self._by_file_name.get(path, ())
            return its[0] if anywhere and len(its) == 1 else None
        return next(filter(self._is_here, self._places(path)), None)

    def _is_here(self, place: str) -> bool:
        if not self.path.is_dir():
            return place in self._images
        return not _leads_out(place) and os.path.isfile(self.path / place)  # deeper than names go, too

    def _places(self, path: str) -> list[str]:
        if not self.path.is_dir():
            return [os.path.normpath(path)]
        return [os.path.relpath(os.path.join(start, path), self.path) for start in self._starts]


def _leads_out(place: str) -> bool:
    return os.path.isabs(place) or place.split(os.sep)[0] == os.pardir


def _decoded(data: bytes, path: Path) -> str:
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise _not_utf8(path, error) from None


def _not_utf8(path: Path, error: UnicodeDecodeError) -> InputError:
    return InputError(f"{path} is not UTF-8 text: {error}.", hint="convert it, e.g. with iconv")


def _parsed(text: str, path: Path) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path} is cut short, or not JSON: {error}.") from None


class _Collector:
    """Makes records of rows, and leaves out, with a reason, those that can't be."""

    def __init__(self, keep_unanswered: bool) -> None:
        self.skipped = Skipped()
        self.splits: dict[str, list[VQARecord]] = {}
        self._keep_unanswered = keep_unanswered
        self._seen: set[tuple[str, str]] = set()  # of a split and an id: each file may count from 0

    def add(self, split: str, id: str, image: Any, image_id: str, question: Any, answers: Any, kind: Any = None,
            name: str = "") -> None:  # fmt: skip
        """Take one row; ``name`` is what the row calls its image."""
        counts = answer_counts(answers)
        if not isinstance(question, str) or not question.strip():
            self.skipped.add("without a question", id)
        elif not counts and not self._keep_unanswered:
            self.skipped.add("without an answer", id)
        elif (split, id) in self._seen:
            self.skipped.add("with an id that was there before", id)
        elif image is None:
            self.skipped.add("without its image", name or id)
        else:
            self._seen.add((split, id))
            kind = kind if isinstance(kind, str) and kind else question_type(question)
            record = VQARecord(id, image, image_id, question.strip(), counts, kind)
            self.splits.setdefault(split, []).append(record)


def read_vqa_v2(documents: Sequence[Mapping[str, Any]], images: Files, into: _Collector) -> None:
    """Read questions and annotations of VQA v2, whose images are named as COCO's.

    Args:
        documents: The files' contents, in any order; annotations are found by the number of their question.
        images: Where the images are, as ``COCO_val2014_000000000139.jpg`` or ``000000000139.jpg``.
        into: Takes the records.
    """
    annotations = {str(row.get("question_id")): row for document in documents for row in _rows(document, "annotations")}
    for document in documents:
        subset = str(document.get("data_subtype", ""))
        for row in _rows(document, "questions"):
            number, annotation = row.get("image_id"), annotations.get(str(row.get("question_id")), {})
            padded = f"{number:012}" if type(number) is int else str(number)
            names = [f"COCO_{subset}_{padded}.jpg", f"{padded}.jpg", f"{number}.jpg", f"{number}.png"]
            answers = annotation.get("answers") or annotation.get("multiple_choice_answer")
            found = images.image(*names)
            into.add(split_name(subset) or "train", str(row.get("question_id")), found, str(number),
                     row.get("question"), answers, annotation.get("question_type"),
                     names[0] if found else images.missing(names[0]))  # fmt: skip


def _rows(document: Mapping[str, Any], key: str) -> list[Any]:
    rows = document.get(key)
    return [row for row in rows if isinstance(row, Mapping)] if isinstance(rows, list) else []


def read_easy_vqa(files: Files, into: _Collector) -> None:
    """Read easy-VQA: ``<split>/questions.json`` of [question, answer, image], and ``<split>/images/<image>.png``."""
    for name in (name for name in files.names if PurePosixPath(name).name == "questions.json"):
        folder = PurePosixPath(name).parent
        rows = _parsed(files.text(name), files.path / name)
        if not isinstance(rows, list):
            raise InputError(f"{files.path / name} must be a list of [question, answer, image].")
        split = split_name(folder.name) or "train"
        for number, row in enumerate(rows):
            question, answer, image = row if isinstance(row, list) and len(row) == 3 else (None, None, None)
            path = (folder / "images" / f"{image}.png").as_posix()
            found = files.image(path, anywhere=False)
            into.add(split, f"{split}-{number}", found, f"{split}-{image}", question, answer,
                     name=path if found else files.missing(path))  # fmt: skip


def read_jsonl(lines: Iterable[str], label: str, split: str, images: Files, into: _Collector) -> None:
    """Read lines of ``{"image", "question", "answer" or "answers"}``, also with ``id``, ``question_type`` or ``split``.

    A line that is no such object, such as the last of a file cut short, is left out.

    Args:
        lines: Of the file.
        label: What to call it.
        split: Where lines that don't say belong.
        images: Where the images are.
        into: Takes the records.
    """
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except (ValueError, RecursionError):
            row = None
        if not isinstance(row, dict):
            into.skipped.add("no JSON object", f"{label}, line {number}")
            continue
        _add_simple(row, f"{label}:{number}", split, images, into)


def _add_simple(row: Mapping[str, Any], id: str, split: str, images: Files, into: _Collector) -> None:
    name = str(row.get("image") or "")
    found = images.image(name) if name else None
    its_id = row.get("id", row.get("question_id"))  # an image_id is not asked for: others may have the same
    split = split_name(str(row.get("split") or "")) or split
    into.add(split, id if its_id in (None, "") else str(its_id), found, str(found), row.get("question"),
             row.get("answers") or row.get("answer"), row.get("question_type"),
             name if found or not name else images.missing(name))  # fmt: skip


def read_hub(source: Source, subset: str, into: _Collector) -> None:
    """Read a data set of the hub with columns such as image, question, and answers or answer."""
    import datasets

    with hub_errors(source, "builtin:scenes"):
        splits = datasets.load_dataset(source.name, subset or None, revision=source.revision)
    for name, rows in splits.items():
        columns = rows.column_names
        answers = next((c for c in ("answers", "answer", "multiple_choice_answer") if c in columns), "")
        if "image" not in columns or "question" not in columns:
            raise InputError(f"{source} must have the columns image and question. It has {', '.join(columns)}.")
        rows = rows.cast_column("image", datasets.Image(decode=False))  # opened when needed, by open_image
        texts = rows.remove_columns("image")
        split = split_name(name)
        if not split:
            logger.warning("%s: the split %r is none of train, validation and test, and is left out", source, name)
            continue
        for index, row in enumerate(texts):
            image, image_id = RowImage(rows, "image", index), row.get("image_id")
            id = row.get("question_id", row.get("id"))
            id = f"{name}-{index}" if id is None else str(id)
            if image_id is None:
                try:
                    image_id = hashlib.sha256(image.read()).hexdigest()
                except (InputError, OSError) as error:
                    into.skipped.add("without its image", error)
                    continue
            into.add(split, id, image, str(image_id), row["question"],
                     row.get(answers), row.get("question_type"))  # fmt: skip


def _read_scenes(into: _Collector) -> None:
    """Read the questions about the builtin scenes, which are drawn when they are opened."""
    from multimodal_llm.builtin.scenes import scene_questions

    for split in SPLIT_NAMES:
        for row in scene_questions(split):
            into.add(split, row.id, row.image, row.image_id, row.question, row.answer, row.question_type)


def _documents(paths: Iterable[Path]) -> list[dict[str, Any]]:
    """Read JSON objects from files, or from all JSON files in zips."""
    texts = []
    for path in paths:
        if path.suffix == ".zip":
            inside = Files(path)
            texts += [(path / name, inside.text(name)) for name in inside.names if name.endswith(".json")]
        else:
            texts.append((path, _decoded(path.read_bytes(), path)))
    parsed = [_parsed(text, path) for path, text in texts]
    return [document for document in parsed if isinstance(document, dict)]


def _read_path(path: Path, config: DataConfig, into: _Collector) -> None:
    """Find out what is at a path, and read it."""
    whole = path.is_dir() or path.suffix == ".zip"
    files = Files(path) if whole else Files(path.parent, deep=False)
    images = Files(Path(config.images), base=files.path) if config.images else files
    if path.suffix == ".jsonl":
        return read_jsonl(files.lines(path.name), path.name, "train", images, into)
    if whole:
        folders = {PurePosixPath(name).parent.as_posix() for name in files.names}
        if any(name.endswith("questions.json") and f"{PurePosixPath(name).parent.as_posix()}/images" in folders
               for name in files.names):  # fmt: skip
            return read_easy_vqa(files, into)
        lines = [name for name in files.names if name.endswith(".jsonl") and "/" not in name]
        if lines:
            for name in lines:
                split = split_name(PurePosixPath(name).stem)
                if not split and len(lines) > 1:
                    logger.warning("%s is taken for train: its name has none of train, validation and test", name)
                read_jsonl(files.lines(name), name, split or "train", images, into)
            return None
    beside = path if path.is_dir() else path.parent
    found = [file for file in sorted(beside.iterdir())
             if file.suffix in (".json", ".zip") and re.search("annotation", file.name, re.IGNORECASE)]  # fmt: skip
    if path.is_dir():
        found += [file for file in sorted(beside.iterdir())
                  if file.suffix in (".json", ".zip") and re.search("question", file.name, re.IGNORECASE)]  # fmt: skip
    elif path.suffix in (".json", ".zip"):
        found = [path, *([Path(config.annotations)] if config.annotations else (f for f in found if f != path))]
    documents = _documents(found)
    if not any(_rows(document, "questions") for document in documents):
        raise InputError(
            f"{path} holds no questions that can be read here.",
            hint="files of VQA v2, easy-VQA as folder or zip, or jsonl with image, question and answer",
        )
    return read_vqa_v2(documents, images, into)


# --- Loading ----------------------------------------------------------------------------------------------------------


def _same_image(one: Any, other: Any) -> bool:
    """Whether two images with one id are the same: in a data set of the hub, each split may count from 0."""
    try:
        return not isinstance(one, RowImage) or one.read() == other.read()
    except (InputError, OSError):
        return True  # which none can learn from


@dataclass
class DataConfig:
    """Where questions about images come from, and how they are divided."""

    data: str = "builtin:scenes"
    """builtin:scenes; a jsonl file with image, question and answer or answers; questions of VQA v2, json or zip; a
    folder or zip of easy-VQA; a folder with any of these; or a hub id."""
    images: str = ""
    """Folder or zip of the images; by default they are beside the questions. A path that leads out of it is not
    followed."""
    annotations: str = ""
    """Answers of VQA v2, json or zip; by default found beside the questions."""
    subset: str = ""
    """Configuration of a hub data set."""
    validation_fraction: float = 0.1
    """Part of the images that is kept for validation where there is no such split, in (0, 0.5]."""
    test_fraction: float = 0.1
    """Part of the images that is kept for testing where there is no such split, in (0, 0.5]."""
    max_questions: int = 0
    """Use at most this many questions of each split, drawn at random; 0 is all."""
    keep_unanswered: bool = False
    """Keep questions without an answer, which can be asked but not scored."""

    def __post_init__(self) -> None:
        """Check the ranges."""
        check_range("validation_fraction", self.validation_fraction, 0, 0.5, open_low=True)
        check_range("test_fraction", self.test_fraction, 0, 0.5, open_low=True)
        check_range("max_questions", self.max_questions, 0)


def load_vqa(config: DataConfig, seed: int = 0, *, divide: bool = True) -> VQAData:
    """Load questions about images, in splits that share no image.

    What can't be used (no image, question or answer; an id that was there before) is left out, and counted with its
    reason. Images are not opened.

    Args:
        config: What to load.
        seed: Of the division, and of what ``max_questions`` takes.
        divide: Carve missing validation and test splits from train; otherwise all that is undivided is train.

    Raises:
        InputError: It is of no known format, cut short, or nothing is left.
        OSError: It can't be read or fetched.
    """
    source = resolve(config.data, builtins=["scenes"])
    into = _Collector(config.keep_unanswered)
    if source.origin == "builtin":
        _read_scenes(into)
    elif source.origin == "hub":
        read_hub(source, config.subset, into)
    else:
        _read_path(Path(source.name), config, into)
    splits, skipped = into.splits, into.skipped
    kept_back = {one.image_id: one.image for split, records in splits.items() if split != "train" for one in records}
    learned = []
    for record in splits.get("train", ()):
        if record.image_id in kept_back and _same_image(record.image, kept_back[record.image_id]):
            skipped.add("of train, whose image is also in another split", record.id)
        else:
            learned.append(record)
    splits["train"] = learned
    for line in filter(None, str(skipped).split("\n")):
        logger.warning("%s: %s", source, line)
    splits = {split: splits[split] for split in SPLIT_NAMES if splits.get(split)}
    if not splits:
        raise InputError(f"{source} has no question that can be used. {skipped}".strip())
    missing = {part: getattr(config, f"{part}_fraction") for part in ("validation", "test") if part not in splits}
    if divide and missing and "train" in splits:
        splits |= split_by_image(splits["train"], missing, seed)
    if config.max_questions:
        rng = np.random.default_rng(seed)
        for split, records in splits.items():
            chosen = sorted(rng.permutation(len(records))[: config.max_questions])
            splits[split] = [records[i] for i in chosen]
    return VQAData(str(source), {split: splits[split] for split in SPLIT_NAMES if split in splits}, skipped)


# --- The command ------------------------------------------------------------------------------------------------------


@dataclass
class ReportConfig(DataConfig):
    """Show what is in a data set: questions, images, types, answers, and how far one comes without looking."""

    check_images: bool = False
    """Open every image once, and report those that can't be."""
    seed: int = field(default=0, metadata=NOT_RECIPE)
    """Of the division into splits."""
    run: str = field(default="", metadata=NOT_RECIPE)
    """Name of the run's folder; by default the time."""

    def __post_init__(self) -> None:
        """Check the ranges."""
        super().__post_init__()
        check_range("seed", self.seed, 0, 2**31 - 1)


def report(config: ReportConfig) -> None:
    """Report on a data set; see :class:`ReportConfig`."""
    data = load_vqa(config, config.seed)
    run = Run(PROJECT, MODULE, "report", config, name=config.run)
    metrics: dict[str, float] = {}
    lines = [f"{'':12}{'questions':>12}{'images':>12}{'answers':>12}"]
    for split, records in data.splits.items():
        images = {record.image_id: record for record in records}
        figures = [len(records), len(images), len({record.answer for record in records} - {""})]
        lines.append(f"{split:12}" + "".join(f"{figure:>12,}" for figure in figures))
        metrics |= dict(zip((f"{split} questions", f"{split} images", f"{split} answers"), figures, strict=True))
        if config.check_images:
            metrics[f"{split} images opened"] = sum(1 for _ in open_images(images.values(), data.skipped))
    everything = [record for records in data.splits.values() for record in records]
    lines += ["", "question type           questions  most frequent answers"]
    for kind, count in Counter(record.question_type for record in everything).most_common(20):
        answers = Counter(record.answer for record in everything if record.question_type == kind).most_common(4)
        lines.append(f"{kind:22}{count:>11,}  {', '.join(f'{answer} {n / count:.0%}' for answer, n in answers)}")
    if "train" in data.splits:
        prior = QuestionPrior(data.splits["train"])
        lines.append("")
        for split in ("validation", "test"):
            answered = [record for record in data.splits.get(split, ()) if record.answers]
            for level in ("overall", "type", "question") if answered else ():
                metrics[f"{split} prior by {level}"] = value = prior.accuracy(answered, level)
                lines.append(f"accuracy on {split} of the most frequent answer by {level:9} {value:.4f}")
    left_out = filter(None, str(data.skipped).split("\n"))
    sys.stdout.write("\n".join([*lines, *left_out]) + "\n")
    metrics |= {f"left out, {reason}": count for reason, count in data.skipped.counts.items()}
    run.finish(model="–", data=data.name, seed=config.seed, metrics=metrics)
    logger.info("saved in %s", run.folder)


if __name__ == "__main__":
    run_commands({"report": report}, module=MODULE, extra="multimodal")
