"""The layout of a page: words, lines, blocks in reading order, tables with cells, and keys with their values.

    python -m multimodal_llm.document_understanding.layout_analysis analyze --input scans/

A picture is read by OCR (RapidOCR, whose models come with its package, or tesseract), a PDF page by its own text where
it has some. Everything after that is geometry. Reading order: recursive XY-cut (Nagy and Seth, 1984), where neighboring
bands that share a gutter stay together, so that columns are read one after the other.

Every box is ``(left, top, right, bottom)`` in pixels of the upright page, from its top left corner.
"""

from __future__ import annotations

import functools
import io
import json
import logging
import os
import re
import shutil
import subprocess
import unicodedata
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any, Literal

from multimodal_llm.visual_question_answering.data_loader import FORMATS, as_rgb, files_below
from shared.config import check_range, run_commands
from shared.errors import InputError
from shared.logs import progress_bar
from shared.results import Run, write_atomic

if TYPE_CHECKING:
    from PIL.Image import Image

PROJECT = "multimodal_llm"
MODULE = f"{PROJECT}.document_understanding.layout_analysis"
PICTURES = (".png", ".jpg", ".jpeg", ".tif", ".tiff", ".bmp", ".gif", ".webp")
KINDS = (*PICTURES, ".pdf")
BUILTIN_DATA = "builtin:documents"
MAX_PIXELS = 80_000_000  # a larger picture is refused before it is decoded
WORK_PIXELS = 12_000_000  # a larger page is shrunk: A4 at 300 dots an inch has 8.7 million
DPI = 144  # of rendered PDF pages
MIN_LETTERS = 10  # a PDF page with fewer letters and digits of its own is read as a picture
MAX_CHARACTERS = 100_000  # of a PDF page's own text
MARGIN = 0.1  # of a box's height, above and below the letters: the detector widens what it finds
LEGEND = "words gray, blocks blue, tables green, keys orange, answers red"
Box = tuple[float, float, float, float]
logger = logging.getLogger(MODULE)


# --- What a page is made of -------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Word:
    """Letters without a blank between them.

    Attributes:
        text: As read.
        box: Pixels.
        confidence: Of the OCR, in [0, 1]; 1 for a PDF's own text.
    """

    text: str
    box: Box
    confidence: float = 1.0


@dataclass(frozen=True)
class Line:
    """Words on one height with no wide gap between them; a row of a table has one line a cell."""

    words: tuple[Word, ...]

    @functools.cached_property
    def box(self) -> Box:
        """The box around its words, in pixels."""
        return around(word.box for word in self.words)

    @functools.cached_property
    def text(self) -> str:
        """The words with blanks between them, none between Chinese letters."""
        return join_words(self.words)

    @property
    def height(self) -> float:
        """The median height of its words, in pixels: unlike the box it does not grow when the line is tilted."""
        return median(bottom - top for _, top, _, bottom in (word.box for word in self.words))


@dataclass(frozen=True)
class Block:
    """Lines that stand together, such as a paragraph, in reading order."""

    lines: tuple[Line, ...]

    @property
    def box(self) -> Box:
        """The box around its lines, in pixels."""
        return around(line.box for line in self.lines)

    @property
    def text(self) -> str:
        """Its lines, one under the other."""
        return "\n".join(line.text for line in self.lines)


@dataclass(frozen=True)
class Cell:
    """A cell of a table: row and column from 0, its text, and its box in pixels."""

    row: int
    column: int
    text: str
    box: Box
    column_span: int = 1


@dataclass(frozen=True)
class Table:
    """A table with its cells; ``ruled`` where lines are drawn, otherwise found by the alignment of its columns."""

    cells: tuple[Cell, ...]
    box: Box
    ruled: bool


@dataclass(frozen=True)
class Pair:
    """A key and its value.

    Attributes:
        key: Without its colon.
        value: Its lines, one under the other.
        key_box: Pixels.
        value_box: Pixels, around all lines of the value.
        score: How sure it is that the two belong together, in [0, 1].
    """

    key: str
    value: str
    key_box: Box
    value_box: Box
    score: float


@dataclass(frozen=True)
class Page:
    """One page and everything found on it.

    Attributes:
        source: The file.
        number: Of the page, from 1.
        width: Pixels.
        height: Pixels.
        engine: What read it: rapidocr, tesseract, pdf, given, or none where only the picture is looked at.
        blocks: In reading order.
        tables: From top to bottom.
        pairs: Keys and values, from top to bottom.
    """

    source: str
    number: int
    width: int
    height: int
    engine: str
    blocks: tuple[Block, ...]
    tables: tuple[Table, ...] = ()
    pairs: tuple[Pair, ...] = ()

    @functools.cached_property
    def lines(self) -> list[Line]:
        """All lines in reading order."""
        return [line for block in self.blocks for line in block.lines]

    @functools.cached_property
    def words(self) -> list[Word]:
        """All words in reading order."""
        return [word for line in self.lines for word in line.words]

    @property
    def text(self) -> str:
        """The text in reading order, an empty line between blocks."""
        return "\n\n".join(block.text for block in self.blocks)

    def to_json(self) -> str:
        """Write the page as JSON, boxes rounded to tenths of a pixel."""
        return json.dumps(_rounded(asdict(self) | {"text": self.text}), ensure_ascii=False, indent=1)


def _rounded(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: round(item, 4) if isinstance(item, float) else _rounded(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [round(float(item), 1) if isinstance(item, float) else _rounded(item) for item in value]
    return value


# --- Boxes and letters ------------------------------------------------------------------------------------------------


def around(boxes: Iterable[Box]) -> Box:
    """Return the smallest box around boxes."""
    lefts, tops, rights, bottoms = zip(*boxes, strict=True)
    return min(lefts), min(tops), max(rights), max(bottoms)


def iou(one: Box, other: Box) -> float:
    """Return the intersection of two boxes over their union, in [0, 1]."""
    width, height = min(one[2], other[2]) - max(one[0], other[0]), min(one[3], other[3]) - max(one[1], other[1])
    common = max(width, 0) * max(height, 0)
    areas = [(box[2] - box[0]) * (box[3] - box[1]) for box in (one, other)]
    return common / (sum(areas) - common) if common else 0.0


def same_row(one: Box, other: Box) -> bool:
    """Tell whether two boxes stand at the same height: they share half the height of the lower one."""
    return min(one[3], other[3]) - max(one[1], other[1]) >= 0.5 * min(one[3] - one[1], other[3] - other[1])


def is_wide(letter: str) -> bool:
    """Tell whether a letter is Chinese or the like, which stands without blanks."""
    return unicodedata.east_asian_width(letter) in "WF"


def join_words(words: Sequence[Word]) -> str:
    """Join words with blanks; none between Chinese letters, nor beside one where hardly any space is."""
    text = words[0].text if words else ""
    for before, word in zip(words, words[1:], strict=False):
        wide = is_wide(before.text[-1]) + is_wide(word.text[0])
        near = word.box[0] - before.box[2] < 0.5 * (word.box[3] - word.box[1])
        text += ("" if wide == 2 or (wide and near) else " ") + word.text
    return text


def split_box(text: str, box: Box, confidence: float = 1.0) -> list[Word]:
    """Cut a line of text at its blanks, the box in proportion to the letters; a Chinese letter is as wide as two."""
    sizes = [2 if is_wide(letter) else 1 for letter in text]
    step = (box[2] - box[0]) / max(sum(sizes), 1)
    return [
        Word(match[0], (box[0] + step * sum(sizes[: match.start()]), box[1],
                        box[0] + step * sum(sizes[: match.end()]), box[3]), confidence)
        for match in re.finditer(r"\S+", text)
    ]  # fmt: skip


# --- Reading files and words ------------------------------------------------------------------------------------------


def read_pages(path: Path, max_pages: int = 50) -> Iterator[tuple[Image, list[Word]]]:
    """Read the pages of a picture or PDF, each upright, in RGB and within ``WORK_PIXELS``.

    Args:
        path: A PDF, a picture, or a TIFF of several pages; of an animation the first frame is read.
        max_pages: Later ones are left out, and a warning says so.

    Yields:
        The page's picture, and the words of its own text; none where it must be read by OCR.

    Raises:
        InputError: It is not a picture or a PDF, is damaged, too large, or needs a password.
        OSError: It can't be opened.
    """
    with path.open("rb") as file:
        is_pdf = b"%PDF-" in file.read(1024)
    yield from (_pdf_pages if is_pdf else _picture_pages)(path, max_pages)


def _picture_pages(path: Path, max_pages: int) -> Iterator[tuple[Image, list[Word]]]:
    from PIL import Image, UnidentifiedImageError

    try:
        with warnings.catch_warnings(), Image.open(path, formats=FORMATS) as file:
            warnings.simplefilter("ignore")  # of odd metadata, which does not matter here
            frames = getattr(file, "n_frames", 1) if file.format in ("TIFF", "MPO") else 1
            frames = 1 if file.format == "MPO" else frames  # a photo and its preview
            if frames > max_pages:
                logger.warning("%s: pages after the first %d are left out", path, max_pages)
            for index in range(min(frames, max_pages)):
                file.seek(index)
                if file.width * file.height > MAX_PIXELS:
                    size = f"{file.width} × {file.height}"
                    raise InputError(f"{path} has {size} pixels; at most {MAX_PIXELS:,} are read.")
                yield _upright(file), []
    except UnidentifiedImageError:
        raise InputError(f"{path} is neither a picture nor a PDF.", hint=f"one of {', '.join(KINDS)}") from None
    except Image.DecompressionBombError:
        raise InputError(f"{path} is too large a picture; at most {MAX_PIXELS:,} pixels are read.") from None
    except InputError:
        raise
    except Exception as error:  # decoders raise whatever they like
        raise InputError(f"{path} can't be decoded: {str(error) or type(error).__name__}.") from None


def _upright(file: Image) -> Image:
    """Turn a picture as its EXIF data says, and bring it to RGB and size."""
    from PIL import ImageOps

    picture = as_rgb(ImageOps.exif_transpose(file))
    scale = (WORK_PIXELS / (picture.width * picture.height)) ** 0.5
    if scale < 1:
        picture = picture.resize((max(int(picture.width * scale), 1), max(int(picture.height * scale), 1)))
    return picture


def _pdf_pages(path: Path, max_pages: int) -> Iterator[tuple[Image, list[Word]]]:
    import pypdfium2

    try:
        document = pypdfium2.PdfDocument(path)
    except pypdfium2.PdfiumError as error:
        hint = "save it without its password" if "assword" in str(error) else ""
        raise InputError(f"{path} can't be read as a PDF: {error}", hint=hint) from None
    try:
        if len(document) > max_pages:
            logger.warning("%s: pages after the first %d are left out", path, max_pages)
        for index in range(min(len(document), max_pages)):
            try:
                page = document[index]
                scale = min(DPI / 72, (WORK_PIXELS / max(page.get_width() * page.get_height(), 1)) ** 0.5)
                bitmap = page.render(scale=scale)
                words = _own_words(page, bitmap.get_posconv(page))
                picture = bitmap.to_pil().convert("RGB")
            except Exception as error:
                raise InputError(f"Page {index + 1} of {path} can't be read: {error}") from None
            letters = sum(letter.isalnum() for word in words for letter in word.text)
            yield picture, words if letters >= MIN_LETTERS else []
    finally:
        document.close()


def _own_words(page: Any, place: Any) -> list[Word]:
    """Return the words of a PDF page's own text, in pixels of its rendered picture."""
    text = page.get_textpage()
    words: list[Word] = []
    letters: list[tuple[str, Box]] = []

    def finish() -> None:
        if letters:
            words.append(Word("".join(letter for letter, _ in letters), around(box for _, box in letters)))
            letters.clear()

    for index in range(min(text.count_chars(), MAX_CHARACTERS)):
        letter = text.get_text_range(index, 1)
        if not letter.strip() or letter == "\ufffe":
            finish()
            continue
        left, bottom, right, top = text.get_charbox(index, loose=True)
        corners = place.to_bitmap(left, bottom), place.to_bitmap(right, top)
        box = around((float(x), float(y), float(x), float(y)) for x, y in corners)
        # pypdfium leaves out the blank between the cells of some tables
        if letters and (not same_row(letters[-1][1], box) or box[0] - letters[-1][1][2] > 0.5 * (box[3] - box[1])):
            finish()
        letters.append((letter, box))
    finish()
    return words


class EngineError(InputError):
    """The OCR itself does not work, with whatever file."""


def recognize(picture: Image, engine: str = "rapidocr") -> list[Word]:
    """Read the words of a picture.

    Args:
        picture: RGB.
        engine: ``rapidocr`` or ``tesseract``.

    Returns:
        The words, in no order that matters; none where there is no text.

    Raises:
        InputError: There is no such engine.
        EngineError: Tesseract is not installed, or fails.
    """
    if engine not in ("rapidocr", "tesseract"):
        raise InputError(f"engine must be rapidocr or tesseract. Got {engine!r}.")
    if min(picture.size) < 8:  # smaller than any letter
        return []
    return _by_tesseract(picture) if engine == "tesseract" else _by_rapidocr(picture)


@functools.cache
def _rapidocr() -> Any:
    from rapidocr import RapidOCR

    # On a busy machine threads wait for one another, so the variable that holds PyTorch's down does it here too
    wanted = os.environ.get("OMP_NUM_THREADS", "")
    threads = int(wanted) if wanted.isdecimal() and int(wanted) else min(4, os.cpu_count() or 1)
    return RapidOCR(
        params={
            "Global.log_level": "critical",
            "Global.use_cls": False,  # it would turn single lines, but not the page
            "EngineConfig.onnxruntime.intra_op_num_threads": threads,
            "Rec.rec_batch_num": 1,  # a batch is padded to its longest line: twice the memory, no faster
        }
    )


def _by_rapidocr(picture: Image) -> list[Word]:
    import numpy as np

    pixels = np.ascontiguousarray(np.asarray(picture)[:, :, ::-1])  # it wants blue first
    found = _rapidocr()(pixels, return_word_box=True)
    words = []
    for index, corners in enumerate(found.boxes if found.boxes is not None else []):
        text, score = found.txts[index], float(found.scores[index])
        parts = found.word_results[index] if found.word_results and index < len(found.word_results) else ()
        pieces = [Word(part, _corners_box(place), min(float(sure), 1.0)) for part, sure, place in parts]
        words += _whole_words(text, pieces) or split_box(text, _corners_box(corners), score)
    return [replace(word, text=_half_width(word.text)) for word in words]


def _whole_words(text: str, pieces: Sequence[Word]) -> list[Word]:
    """Join the pieces that RapidOCR cuts a line into where it cut spaced letters or Chinese ones apart.

    Args:
        text: The line, with the blanks that were read.
        pieces: Parts of it, cut where there is space, also where no blank was read.

    Returns:
        The words; none where the pieces are not those of the text.
    """
    words: list[Word] = []
    left = list(reversed(pieces))
    for token in text.split():
        taken: list[Word] = []
        while left and sum(len(piece.text) for piece in taken) < len(token):
            taken.append(left.pop())
        if "".join(piece.text for piece in taken) != token:
            return []
        if len(token) < 3 * len(taken):
            box = around(piece.box for piece in taken)
            words.append(Word(token, box, min(piece.confidence for piece in taken)))
        else:
            words += taken
    return [] if left else words


def _half_width(text: str) -> str:
    """Write marks as they are written between Latin letters, unless there are Chinese ones."""
    marks_only = not any(is_wide(letter) and letter.isalpha() and ord(letter) < 0xFF00 for letter in text)
    return unicodedata.normalize("NFKC", text) if marks_only else text


def _corners_box(corners: Any) -> Box:
    left, top, right, bottom = around((float(x), float(y), float(x), float(y)) for x, y in corners)
    margin = MARGIN * (bottom - top)
    return left, top + margin, right, bottom - margin


def _by_tesseract(picture: Image) -> list[Word]:
    binary = shutil.which("tesseract")
    if binary is None:
        raise EngineError("tesseract is not installed.", hint="--engine rapidocr, or apt install tesseract-ocr")
    image = io.BytesIO()
    picture.save(image, "PNG")
    done = subprocess.run([binary, "stdin", "stdout", "tsv"], input=image.getvalue(), capture_output=True, check=False)
    if done.returncode:
        raise EngineError(f"tesseract failed: {done.stderr.decode(errors='replace').strip()[-200:]}")
    words = []
    for row in done.stdout.decode("utf-8", "replace").splitlines()[1:]:
        cells = row.split("\t")
        if len(cells) == 12 and cells[11].strip() and float(cells[10]) >= 0:
            left, top, width, height = map(float, cells[6:10])
            words.append(Word(cells[11].strip(), (left, top, left + width, top + height), float(cells[10]) / 100))
    return words


# --- Lines, reading order, blocks -------------------------------------------------------------------------------------


def group_lines(words: Iterable[Word], cells: Sequence[Box] = ()) -> list[Line]:
    """Join words into lines, from left to right: each to the nearest word on its height, up to its height away.

    Args:
        words: In any order.
        cells: Of ruled tables; no line goes from one into another.
    """
    lines: list[list[Word]] = []
    places: list[int] = []  # the cell of each line
    for word in sorted(words, key=lambda word: word.box[0]):
        height = word.box[3] - word.box[1]
        place = next((i for i, cell in enumerate(cells) if _inside(word.box, cell)), -1)
        best, nearest = None, float("inf")
        for line, its in zip(lines, places, strict=True):
            if its != place:
                continue
            last = line[-1].box
            tall = min(height, last[3] - last[1])
            gap = word.box[0] - last[2]
            letter = (last[2] - last[0]) / len(line[-1].text)  # letters set wide have wide blanks
            if -0.6 * tall <= gap <= max(tall, letter) and abs(gap) < nearest and same_row(last, word.box):
                best, nearest = line, abs(gap)
        if best is None:
            lines.append([word])
            places.append(place)
        else:
            best.append(word)
    return [Line(tuple(line)) for line in lines]


def group_rows(lines: Iterable[Line]) -> list[list[Line]]:
    """Put lines on the same height together: rows from top to bottom, each from left to right."""
    rows: list[list[Line]] = []
    for line in sorted(lines, key=lambda line: line.box[1] + line.box[3]):
        middle = (line.box[1] + line.box[3]) / 2
        last = rows[-1] if rows else []
        if last and middle - median((other.box[1] + other.box[3]) / 2 for other in last) < 0.5 * line.height:
            last.append(line)
        else:
            rows.append([line])
    return [sorted(row, key=lambda line: line.box[0]) for row in rows]


def _cuts(lines: Sequence[Line], low: int, least: float) -> list[list[Line]]:
    """Cut where a gap of at least so many pixels goes through all lines; ``low`` is 0 across the page, 1 down it."""
    parts: list[list[Line]] = []
    end = float("-inf")
    for line in sorted(lines, key=lambda line: line.box[low]):
        if line.box[low] - end >= least or not parts:
            parts.append([])
        parts[-1].append(line)
        end = max(end, line.box[low + 2])
    return parts


def _runs(column: Sequence[Line]) -> bool:
    """Tell running text from a form's keys or values, which are no column of their own."""
    wide = [line for line in column if line.box[2] - line.box[0] >= 8 * line.height]
    return len(column) >= 3 and len(wide) >= 0.6 * len(column)


def reading_order(lines: Sequence[Line]) -> list[list[Line]]:
    """Put lines in reading order by recursive XY-cut.

    Returns:
        Regions, each with its lines in order: a column, or what stands between two sets of columns.
    """
    regions: list[list[Line]] = []
    between: list[Line] = []
    bands = _cuts(lines, 1, 0.01)
    while bands:
        # Paragraphs of two columns may end at the same height: bands that share a gutter stay together
        columns: list[list[Line]] = []
        group: list[Line] = []
        taken = 1
        for count, band in enumerate(bands, start=1):
            group += band
            parts = _cuts(group, 0, median(line.height for line in group))
            if len(parts) == 1:
                break
            if all(map(_runs, parts)):
                columns, taken = parts, count
        if not columns:
            between += bands[0]
        else:
            regions += [between, *(region for column in columns for region in reading_order(column))]
            between = []
        bands = bands[taken:]
    regions.append(between)
    return [[line for row in group_rows(region) for line in row] for region in regions if region]


def group_blocks(region: Sequence[Line]) -> list[Block]:
    """Divide a region where space, size of letters or place changes."""
    blocks: list[list[Line]] = []
    for line in region:
        last = blocks[-1][-1] if blocks else None
        if last is not None:
            gap = line.box[1] - last.box[3]
            sizes = sorted((line.height, last.height))
            box = around(other.box for other in blocks[-1])
            apart = line.box[0] > box[2] or line.box[2] < box[0]
            if same_row(last.box, line.box) or (gap <= 0.8 * sizes[0] and sizes[1] <= 1.6 * sizes[0] and not apart):
                blocks[-1].append(line)
                continue
        blocks.append([line])
    return [Block(tuple(block)) for block in blocks]


# --- Tables -----------------------------------------------------------------------------------------------------------


def find_tables(ruled: Sequence[Table], lines: Sequence[Line]) -> list[Table]:
    """Add to :func:`ruled_tables` those by alignment among the lines outside them; all from top to bottom."""
    outside = [line for line in lines if not any(_inside(line.box, table.box) for table in ruled)]
    return sorted([*ruled, *_aligned_tables(outside)], key=lambda table: table.box[1])


def _inside(box: Box, other: Box) -> bool:
    x, y = (box[0] + box[2]) / 2, (box[1] + box[3]) / 2
    return other[0] <= x <= other[2] and other[1] <= y <= other[3]


def ruled_tables(picture: Image | None, words: Sequence[Word]) -> list[Table]:
    """Find grids of long straight lines; the cells between them hold the words whose middle lies there."""
    import cv2
    import numpy as np

    if picture is None or not words:
        return []
    gray = np.asarray(picture.convert("L"))
    if min(gray.shape) < 20:
        return []
    ink = cv2.adaptiveThreshold(255 - gray, 255, cv2.ADAPTIVE_THRESH_MEAN_C, cv2.THRESH_BINARY, 15, -8)
    letter = int(median(word.box[3] - word.box[1] for word in words))
    reach = max(2 * letter, 20)  # longer than any stroke of a letter
    across = cv2.dilate(cv2.morphologyEx(ink, cv2.MORPH_OPEN, np.ones((1, 2 * reach), np.uint8)), np.ones((3, 3)))
    down = cv2.dilate(cv2.morphologyEx(ink, cv2.MORPH_OPEN, np.ones((reach, 1), np.uint8)), np.ones((3, 3)))
    _, _, stats, _ = cv2.connectedComponentsWithStats(cv2.bitwise_or(across, down))
    tables = []
    for left, top, width, height, _ in stats[1:].tolist():
        grid = slice(top, top + height), slice(left, left + width)
        ys = _rules((across[grid] > 0).sum(1) >= 0.5 * width)
        xs = _rules((down[grid] > 0).sum(0) >= 0.4 * height)
        if len(ys) < 3 or len(xs) < 3:  # two rows and two columns at least
            continue
        cells = []
        for row, (upper, lower) in enumerate(zip(ys, ys[1:], strict=False)):
            start = 0
            for column in range(1, len(xs)):
                rule = down[grid][upper + 3 : lower - 2, max(xs[column] - 3, 0) : xs[column] + 4]
                if column + 1 < len(xs) and rule.size and (rule > 0).any(1).mean() < 0.5:
                    continue  # no rule here: the cell goes on
                box = (float(left + xs[start]), float(top + upper), float(left + xs[column]), float(top + lower))
                inner = group_rows(group_lines(word for word in words if _inside(word.box, box)))
                text = "\n".join(line.text for part in inner for line in part)
                cells.append(Cell(row, start, text, box, column - start))
                start = column
        if sum(bool(cell.text) for cell in cells) >= 2:
            box = (float(left), float(top), float(left + width), float(top + height))
            tables.append(Table(tuple(cells), box, ruled=True))
    return tables


def _rules(there: Any) -> list[int]:
    """Return the middle of each run of true values."""
    import numpy as np

    edges = np.flatnonzero(np.diff(np.concatenate([[0], there.astype(np.int8), [0]])))
    return [int(start + stop - 1) // 2 for start, stop in edges.reshape(-1, 2)]


def _aligned_tables(lines: Sequence[Line]) -> list[Table]:
    """Find rows whose lines stand in the same columns: three columns and three rows at least."""
    tables, columns, rows = [], list[Box](), list[list[tuple[int, Line]]]()

    def finish() -> None:
        while rows and len(rows[-1]) < 2:  # a last row with one cell is the text below
            rows.pop()
        if len(rows) >= 3 and sum(len(row) >= 3 for row in rows) >= 2:
            cells = [Cell(i, column, line.text, line.box) for i, row in enumerate(rows) for column, line in row]
            tables.append(Table(tuple(cells), around(cell.box for cell in cells), ruled=False))
        rows.clear()
        columns.clear()

    for row in group_rows(lines):
        box = around(line.box for line in row)
        if rows and box[1] - max(line.box[3] for _, line in rows[-1]) > 2 * row[0].height:
            finish()
        places = _places(row, columns)
        if places is None and rows:
            finish()
            places = _places(row, columns)
        if places is None:
            if len(row) >= 3:
                columns += [line.box for line in row]
                rows.append(list(enumerate(row)))
            continue
        for column, line in zip(places, row, strict=True):
            columns[column] = around([columns[column], line.box])
        rows.append(list(zip(places, row, strict=True)))
    finish()
    return tables


def _places(row: Sequence[Line], columns: Sequence[Box]) -> list[int] | None:
    """Return the column of each line of a row; None unless each overlaps just one, and each another."""
    places = []
    for line in row:
        over = [i for i, c in enumerate(columns) if min(line.box[2], c[2]) > max(line.box[0], c[0])]
        if len(over) != 1:
            return None
        places += over
    return places if len(set(places)) == len(places) else None


# --- Keys and values --------------------------------------------------------------------------------------------------

# A colon that ends a key: not the one in 12:06, in ://, nor one at the very start
COLON = re.compile(r"(?<=[^\W\d_])[.)\]]?\s*[:：](?!//)|(?<=[)#.])\s*[:：]|(?<=\d)\s*[:：](?!\d)")


@dataclass(eq=False)
class _Piece:
    """A part of a line that is a key, a value, or neither."""

    words: list[Word]
    is_key: bool = False
    value: _Piece | None = None
    taken: bool = False
    box: Box = field(init=False)

    def __post_init__(self) -> None:
        self.box = around(word.box for word in self.words)

    @property
    def text(self) -> str:
        return join_words(self.words)

    @property
    def height(self) -> float:
        return median(word.box[3] - word.box[1] for word in self.words)


def find_pairs(lines: Sequence[Line], is_label: Callable[[str], bool] = lambda text: False) -> list[Pair]:
    """Find keys and their values.

    A key ends in a colon or is a known label. Its value follows it, else stands to its right, else below it; more lines
    of the value may follow under its first. Of a row with just two parts, words and a number, the words are a key too.

    Args:
        lines: Of a page.
        is_label: Tells whether a text, without colon, is a key all the same.

    Returns:
        The pairs from top to bottom.
    """
    pieces = [piece for line in lines for piece in _pieces(line, is_label)]
    scores: dict[_Piece, float] = {key: 0.95 for key in pieces if key.value is not None}
    rows = {piece: [p for p in pieces if p is not piece and same_row(p.box, piece.box)] for piece in pieces}
    for key in (piece for piece in pieces if piece.is_key and piece.value is None):
        right = min((p for p in rows[key] if p.box[0] >= key.box[2] - key.height), key=lambda p: p.box[0], default=None)
        if right is not None and not right.is_key and not right.taken:
            _take(key, right, scores, 0.9)
    for key in (piece for piece in pieces if piece.is_key and piece.value is None):
        below = [
            p for p in pieces
            if 0 <= p.box[1] - key.box[3] + 0.5 * key.height <= 2 * key.height
            and (min(p.box[2], key.box[2]) > max(p.box[0], key.box[0]) or abs(p.box[0] - key.box[0]) < key.height)
        ]  # fmt: skip
        nearest = min(below, key=lambda p: (p.box[1], abs(p.box[0] - key.box[0])), default=None)
        if nearest is not None and not nearest.is_key and not nearest.taken:
            _take(key, nearest, scores, 0.7)
    for key in pieces:
        others = rows[key]
        if key.is_key or key.taken or len(others) != 1 or others[0].is_key or others[0].taken:
            continue
        value = others[0]
        if value.box[0] > key.box[2] and re.search(r"[^\W\d_]{2}", key.text) and re.search(r"\d", value.text):
            _take(key, value, scores, 0.5)
    pairs = []
    for key, score in scores.items():
        value = key.value
        assert value is not None
        parts = [value, *_continuation(value, pieces, rows)]
        text = "\n".join(part.text for part in parts)
        pairs.append(Pair(re.sub(r"[\s:：]+$", "", key.text), text, key.box, around(p.box for p in parts), score))
    return sorted(pairs, key=lambda pair: (pair.key_box[1], pair.key_box[0]))


def _take(key: _Piece, value: _Piece, scores: dict[_Piece, float], score: float) -> None:
    key.value, key.is_key, value.taken = value, True, True
    scores[key] = score


def _continuation(value: _Piece, pieces: Sequence[_Piece], rows: dict[_Piece, list[_Piece]]) -> Iterator[_Piece]:
    """Yield what goes on under a value: same left edge, close below, no key, and none to the left."""
    last = value
    for piece in sorted(pieces, key=lambda piece: piece.box[1]):
        if piece.is_key or piece.taken or not -0.5 * last.height < piece.box[1] - last.box[3] <= 0.7 * last.height:
            continue
        alone = not any(p.is_key and p.box[0] < piece.box[0] for p in rows[piece])
        if abs(piece.box[0] - value.box[0]) < value.height and alone:
            piece.taken = True
            last = piece
            yield piece


def _pieces(line: Line, is_label: Callable[[str], bool]) -> list[_Piece]:
    """Divide a line at the colons of its keys, or behind a known label."""
    words = list(line.words)
    text = " ".join(word.text for word in words)
    ends = [match.end() for match in COLON.finditer(text)]
    if not ends:
        return _by_label(words, is_label)
    parts: list[list[Word]] = [[]]
    position = 0
    for word in words:
        stop = position + len(word.text)
        cuts = [0, *(end - position for end in ends if position < end <= stop), len(word.text)]
        for start, end in zip(cuts, cuts[1:], strict=False):
            if start < end:
                parts[-1].append(_part(word, start, end))
            if position + end in ends and start < end:
                parts.append([])
        position = stop + 1
    last = parts.pop()
    pieces: list[_Piece] = []
    for index, part in enumerate(parts):
        key = part
        if index and len(part) > 1:  # between two colons stand a value and the next key, of which one word is certain
            cut = -2 if len(part) > 2 and part[-1].text.strip(":： ") == "" else -1
            pieces[-1].value = _Piece(part[:cut], taken=True)
            key = part[cut:]
        pieces.append(_Piece(key, is_key=True))
    if last:
        pieces[-1].value = _Piece(last, taken=True)
    return [p for piece in pieces for p in ([piece] if piece.value is None else [piece, piece.value])]


def _part(word: Word, start: int, end: int) -> Word:
    left, top, right, bottom = word.box
    sizes = [2 if is_wide(letter) else 1 for letter in word.text]
    step = (right - left) / sum(sizes)
    box = left + step * sum(sizes[:start]), top, left + step * sum(sizes[:end]), bottom
    return replace(word, text=word.text[start:end], box=box)


def _by_label(words: list[Word], is_label: Callable[[str], bool]) -> list[_Piece]:
    if words[0].text[0] in ":：" and len(words[0].text) > 1:  # its key stands to the left
        return [_Piece([_part(words[0], 1, len(words[0].text)), *words[1:]])]
    if is_label(join_words(words)):
        return [_Piece(words, is_key=True)]
    for count in range(min(len(words) - 1, 6), 0, -1):
        rest = words[count:]
        if is_label(join_words(words[:count])) and re.search(r"\d", rest[0].text):
            key = _Piece(words[:count], is_key=True, value=_Piece(rest, taken=True))
            return [key, key.value] if key.value else [key]
    return [_Piece(words)]


# --- A whole page -----------------------------------------------------------------------------------------------------


def analyze_words(
    words: Sequence[Word], width: int, height: int, *, source: str = "", number: int = 1, engine: str = "given",
    picture: Image | None = None,
) -> Page:  # fmt: skip
    """Find the layout of words.

    Args:
        words: In any order; boxes in pixels.
        width: Of the page, in pixels.
        height: Of the page, in pixels.
        source: The file they are from.
        number: Of the page, from 1.
        engine: What read them.
        picture: To find ruled tables in.
    """
    # Before the lines: a label may end so near the rule that the value behind it seems to be its next word
    ruled = ruled_tables(picture, words)
    regions = reading_order(group_lines(words, [cell.box for table in ruled for cell in table.cells]))
    blocks = tuple(block for region in regions for block in group_blocks(region))
    page = Page(source, number, width, height, engine, blocks)
    return replace(page, tables=tuple(find_tables(ruled, page.lines)), pairs=tuple(find_pairs(page.lines)))


def analyze_file(path: Path, engine: str = "rapidocr", max_pages: int = 50) -> Iterator[tuple[Page, Image]]:
    """Yield each page of a picture or PDF with its picture, one at a time.

    Args:
        path: The file.
        engine: What reads pages without text of their own: ``rapidocr`` or ``tesseract``.
        max_pages: Later ones are left out, and a warning says so.

    Raises:
        InputError: The file can't be read; see :func:`read_pages`.
        OSError: It can't be opened.
    """
    for number, (picture, words) in enumerate(read_pages(path, max_pages), start=1):
        read_by = "pdf" if words else engine
        yield analyze_words(
            words or recognize(picture, engine), picture.width, picture.height,
            source=str(path), number=number, engine=read_by, picture=picture,
        ), picture  # fmt: skip


def draw_page(page: Page, picture: Image, marked: Sequence[Box] = ()) -> Image:
    """Draw what was found on a page, in the colors of :data:`LEGEND`, and a line from each key to its value.

    All but rules are drawn a little wider than they are, since OCR's boxes often begin within the first letter.

    Args:
        page: The page.
        picture: Its picture.
        marked: More boxes, in red, such as an answer.
    """
    from PIL import ImageDraw

    drawn = picture.convert("RGB")
    pen = ImageDraw.Draw(drawn)
    thick = max(round(max(drawn.size) / 700), 1)
    for word in page.words:
        pen.rectangle(_wider(word.box), outline=(190, 190, 190))
    for block in page.blocks:
        height = max(line.height for line in block.lines)
        pen.rectangle(_wider(block.box, height), outline=(31, 119, 180), width=thick)
    for table in page.tables:
        for cell in table.cells:
            pen.rectangle(cell.box if table.ruled else _wider(cell.box), outline=(44, 160, 44), width=thick)
    for pair in page.pairs:
        (_, top, right, bottom), value = pair.key_box, pair.value_box
        pen.rectangle(_wider(pair.key_box), outline=(255, 127, 14), width=thick)
        pen.line((right, (top + bottom) / 2, value[0], (value[1] + value[3]) / 2), (255, 127, 14), thick)
    for box in marked:
        pen.rectangle(_wider(box), outline=(214, 39, 40), width=2 * thick)
    return drawn


def _wider(box: Box, height: float = 0.0) -> Box:
    """Widen a box by a fifth of the height of its letters."""
    more = 0.2 * (height or box[3] - box[1])
    return box[0] - more, box[1], box[2] + more, box[3]


# --- The command ------------------------------------------------------------------------------------------------------


@dataclass
class AnalyzeConfig:
    """Find the layout of pictures and PDFs; the run's folder gets a json and a drawing of every page.

    Drawn are words gray, blocks blue, tables green, and keys orange with a line to their values.
    """

    input: str = BUILTIN_DATA
    """A picture, a PDF, or a folder with such files at any depth; builtin:documents is a rendered invoice."""
    engine: Literal["rapidocr", "tesseract"] = "rapidocr"
    """What reads pages without text of their own."""
    max_pages: int = 50
    """Pages of one file; later ones are left out."""
    draw: bool = True
    """Save a drawing beside the json."""
    run: str = field(default="", metadata={"recipe": False})
    """Name of this run's own folder; by default the time."""

    def __post_init__(self) -> None:
        """Check the ranges."""
        check_range("max_pages", self.max_pages, 1)


def rendered_file(folder: Path) -> Path:
    """Save a rendered invoice, the first document of the test split, in a folder, and return its file."""
    from multimodal_llm.builtin.documents import documents

    [document] = documents("test", 1, languages=("en",))
    image = io.BytesIO()
    document.pages[0].save(image, "PNG")
    write_atomic(folder / "document.png", image.getvalue())
    return folder / "document.png"


def find_files(place: str) -> list[Path]:
    """Return a file, or the pictures and PDFs of a folder at any depth, sorted by name.

    Raises:
        InputError: There are none in the folder.
        FileNotFoundError: Nothing is there.
    """
    path = Path(place).expanduser()
    if not path.exists():
        raise FileNotFoundError(f"No such file or folder: {place!r}.")
    if path.is_file():
        return [path]
    files = sorted(map(Path, files_below(path, KINDS)))
    if not files:
        raise InputError(f"There are no pictures or PDFs in {place!r}.", hint=f"files ending in {', '.join(KINDS)}")
    return files


def analyze(config: AnalyzeConfig) -> None:
    """Analyze files; see :class:`AnalyzeConfig`."""
    if config.input == BUILTIN_DATA:
        run = Run(PROJECT, MODULE, "analyze", config, name=config.run)
        files = [rendered_file(run.folder)]
    else:
        files = find_files(config.input)
        run = Run(PROJECT, MODULE, "analyze", config, name=config.run)
    place = Path(config.input).expanduser()
    root = place if place.is_dir() else files[0].parent
    skipped: dict[str, str] = {}
    counts = dict.fromkeys(("pages", "words", "tables", "pairs"), 0)
    with progress_bar(disable=len(files) < 2) as bar:
        task = bar.add_task("analyze", total=len(files), figures="")
        for file in files:
            try:
                for page, picture in analyze_file(file, config.engine, config.max_pages):
                    # The whole name stays: a.png and a.pdf are two files
                    target = run.folder / "pages" / file.relative_to(root).parent / f"{file.name}-{page.number}"
                    write_atomic(target.with_name(f"{target.name}.json"), page.to_json() + "\n")
                    if config.draw:
                        drawn = io.BytesIO()
                        draw_page(page, picture).save(drawn, "PNG")
                        write_atomic(target.with_name(f"{target.name}.png"), drawn.getvalue())
                    counts["pages"] += 1
                    for name in ("words", "tables", "pairs"):
                        counts[name] += len(getattr(page, name))
            except (InputError, OSError) as error:
                if len(files) == 1 or isinstance(error, EngineError):
                    raise
                skipped[str(file)] = str(error.args[0] if isinstance(error, InputError) else error)
                logger.warning("skipped: %s", skipped[str(file)])
            bar.update(task, advance=1, figures=f"{counts['words']:,} words, {len(skipped)} skipped")
    if skipped:
        write_atomic(run.folder / "skipped.json", json.dumps(skipped, indent=1, ensure_ascii=False) + "\n")
    metrics = {"files": len(files), **counts, "skipped": len(skipped)}
    run.finish(model=config.engine, data=config.input, seed=0, metrics=metrics)
    logger.info("%s: %s", run.folder, ", ".join(f"{name} {count:,}" for name, count in metrics.items()))


if __name__ == "__main__":
    run_commands({"analyze": analyze}, module=MODULE, extra="multimodal")
