"""Documents as text that can be cited: each character knows its page, in PDFs its place among the file's characters.

    python -m qa_system.document_processor.pdf_reader read                  # a builtin document
    python -m qa_system.document_processor.pdf_reader read --input paper.pdf --output paper.json

PDFs are read by pdfium, damaged ones by pypdf, ruled tables with pdfplumber's help, and pages without usable text by
RapidOCR; also txt, md, html and docx. All but plain text is parsed in a child process with limits of time and memory,
for a file from outside may be made to hang or kill its reader. Columns are found by a recursive XY-cut (Nagy and Seth,
1984).
"""

from __future__ import annotations

import base64
import bisect
import ctypes
import functools
import hashlib
import io
import itertools
import json
import logging
import math
import os
import re
import signal
import statistics
import subprocess
import sys
import time
import unicodedata
import zipfile
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from shared.errors import InputError, MissingPackageError

MODULE = "qa_system.document_processor.pdf_reader"
BUILTINS = Path(__file__).parents[1] / "builtin" / "documents"
JOINT = "\n\n"  # between pages
DPI = 200  # of pages rendered for OCR
LONGEST_SIDE = 2_400  # pixels, whatever size a page claims
NO_MEMORY = "alloc|memory|failed to map"  # in what libraries say when they get none
LONGEST_HEADING = 250  # characters; every passage below carries it, and what is longer is text in a heading's dress
MOST_PATHS = 5_000  # a page with more of them is a drawing, not a table
UNZIPPED_MEGABYTES = 200
logger = logging.getLogger(MODULE)

Box = tuple[float, float, float, float]  # left, bottom, right, top in points, from the bottom left of the page as shown


class DocumentError(InputError):
    """A document can't be read; its subclasses say why."""


class PasswordError(DocumentError):
    """The file is encrypted, and there was no password or a wrong one."""


class DamagedError(DocumentError):
    """The file is broken beyond what any of the parsers mends."""


class LimitError(DocumentError):
    """The file is larger, or takes more time or memory, than is allowed."""


class UnsupportedError(DocumentError):
    """The file is of another kind than its name says, or of one that can't be read."""


class EmptyError(DocumentError):
    """There is nothing to read in the file."""


ERRORS = {kind.__name__: kind for kind in (PasswordError, DamagedError, LimitError, UnsupportedError, EmptyError)}


@dataclass(frozen=True)
class Limits:
    """What a document may cost.

    Attributes:
        seconds: Wall-clock for the whole document, > 0. OCR takes a few a page.
        megabytes: Memory that the child process may ask for, in MiB; enforced where the system can (Linux).
        pages: Most pages.
        characters: Most of the text. The default is 1,000 full pages, whose passages take some minutes to embed.
        file_megabytes: Largest file, in MiB.
    """

    seconds: float = 60
    megabytes: int = 1024
    pages: int = 1000
    characters: int = 3_000_000
    file_megabytes: int = 50

    def __post_init__(self) -> None:
        """Check the ranges."""
        for name, value in asdict(self).items():
            if not value > 0:
                raise InputError(f"{name} must be > 0. Got {value}.")


@dataclass(frozen=True)
class Page:
    """A page, as a span of the document's text.

    Attributes:
        number: 1 is the first sheet.
        label: As printed in the file ("iv", "12"); the number where there is none.
        start: In the document's text.
        end: Exclusive. Pages are joined by an empty line, which belongs to none.
        width: In points, as the page is shown; 0 where a format has no pages.
        height: Likewise.
        method: "pdfium", "pypdf", "ocr", or the format: "txt", "md", "html", "docx".
        runs: (start in the document's text, index of the page's raw character, length): there text and raw characters
            go in step. Raw characters are pdfium's (its ``FPDFText_…`` functions take the index), or of pypdf's text.
        boxes: On pages read by OCR, (start, end in the document's text, left, bottom, right, top) of each line, in
            points, from the bottom left.
    """

    number: int
    label: str
    start: int
    end: int
    width: float
    height: float
    method: str
    runs: tuple[tuple[int, int, int], ...] = ()
    boxes: tuple[tuple[int, int, float, float, float, float], ...] = ()


@dataclass(frozen=True)
class Document:
    """A document's text, to which every start and end refers.

    Attributes:
        id: SHA-256 of the file's bytes, hexadecimal.
        name: The file's name without folders.
        text: All pages.
        pages: In order; at least one.
        metadata: title, author, … as far as the file has them.
        headings: Spans (start, end) of headings, where the format or the type's size says so.
    """

    id: str
    name: str
    text: str
    pages: tuple[Page, ...]
    metadata: dict[str, str] = field(default_factory=dict)
    headings: tuple[tuple[int, int], ...] = ()

    def page_at(self, position: int) -> Page:
        """Return the page of a position in the text; between two pages it is the one before.

        Raises:
            IndexError: The position is outside of the text.
        """
        if not 0 <= position <= len(self.text):
            raise IndexError(f"position must be in [0, {len(self.text)}]. Got {position}.")
        return self.pages[max(bisect.bisect_right(self._starts, position) - 1, 0)]

    @functools.cached_property
    def _starts(self) -> list[int]:
        return [page.start for page in self.pages]

    def to_json(self) -> str:
        """Return all of it as JSON."""
        return json.dumps(asdict(self), ensure_ascii=False)

    @classmethod
    def from_json(cls, text: str) -> Document:
        """Read what :meth:`to_json` wrote.

        Raises:
            InputError: It is something else.
        """
        try:
            return _document(json.loads(text))
        except (ValueError, TypeError, KeyError) as error:
            raise InputError(f"This is not the JSON of a document: {type(error).__name__}: {error}.") from None


def _document(content: dict[str, Any]) -> Document:
    def tuples(rows: Iterable[Iterable[Any]]) -> tuple[Any, ...]:
        return tuple(tuple(row) for row in rows)

    pages = [
        Page(**{**page, "runs": tuples(page["runs"]), "boxes": tuples(page["boxes"])}) for page in content["pages"]
    ]
    return Document(**{**content, "pages": tuple(pages), "headings": tuples(content["headings"])})


# --- Reading any file -------------------------------------------------------------------------------------------------

MAGIC = {
    b"\xd0\xcf\x11\xe0": ("an old or encrypted Office file", "save it as docx without a password, or as PDF"),
    b"{\\rtf": ("an RTF file", "save it as docx or PDF"),
    (b"\x89PNG", b"\xff\xd8\xff", b"II*\0", b"MM\0*", b"GIF8"): ("a picture", "put it into a PDF; it is read by OCR"),
}
KINDS = "pdf, docx, html, md and txt can be read"
SUFFIXES = {".pdf": "pdf", ".docx": "docx", ".html": "html", ".htm": "html", ".md": "md", ".markdown": "md"}


def read_document(path: str | Path, *, name: str = "", password: str = "", limits: Limits = Limits()) -> Document:
    """Read a document of any kind; what kind it is is seen from its content.

    Args:
        path: A pdf, docx, html, md or txt file.
        name: What to call it, if not as the file.
        password: Of an encrypted PDF, the user's or the owner's.
        limits: What it may cost.

    Raises:
        PasswordError: The password is missing or wrong.
        DamagedError: No parser can read it, or one crashed over it.
        LimitError: It is too large, or takes too long or too much memory.
        UnsupportedError: It is of another kind than its name says, or than can be read; or it isn't UTF-8.
        EmptyError: There is no text in it.
        MissingPackageError: A library of the extra ``qa`` is not installed.
        OSError: It can't be opened.
    """
    path = Path(path)
    name = name or path.name
    with path.open("rb") as file:
        data = file.read(limits.file_megabytes * 2**20 + 1)
    if len(data) > limits.file_megabytes * 2**20:
        raise LimitError(f"{name} is larger than {limits.file_megabytes} MiB.", hint="a higher file_megabytes")
    kind = _kind(data, name)
    if kind in ("txt", "md"):
        return _read_text(data, name, kind, limits)
    began = time.monotonic()
    document = _document(_in_child(data, {"name": name, "kind": kind, "password": password}, limits))
    methods = Counter(page.method for page in document.pages)
    read_by = ", ".join(f"{count} by {method}" for method, count in methods.items())
    count = f"{len(document.pages)} page{'s' * (len(document.pages) > 1)}"
    logger.info("%s: %s, %s, %.1f s", name, count, read_by, time.monotonic() - began)
    return document


def _kind(data: bytes, name: str) -> str:
    """Tell the format by content; the suffix only decides among kinds of plain text."""
    suffix = SUFFIXES.get(Path(name).suffix.lower(), "")
    head = data.removeprefix(b"\xef\xbb\xbf").lstrip()[:1024]
    if not head:
        raise EmptyError(f"{name} is empty.")
    if head.startswith(b"%PDF-") or (suffix == "pdf" and b"%PDF-" in data[:1024]):
        return "pdf"
    if data.startswith((b"PK\x03\x04", b"PK\x05\x06")):
        if b"word/document.xml" in data:
            return "docx"
        raise UnsupportedError(f"{name} is a zip archive or another Office file.", hint=KINDS)
    for magic, (what, hint) in MAGIC.items():
        if data.startswith(magic):
            raise UnsupportedError(f"{name} is {what}.", hint=hint)
    if suffix in ("pdf", "docx"):
        raise UnsupportedError(f"{name} is called .{suffix}, but its content is not of that kind.", hint=KINDS)
    if b"\0" in data[:65536] and not data.startswith((b"\xff\xfe", b"\xfe\xff")):
        raise UnsupportedError(f"{name} is neither text nor of a kind that can be read.", hint=KINDS)
    if suffix:
        return suffix
    # A comment ends at its first -->: were that open, a row of comments could be cut in more ways than can be tried
    html = rb"(<\?xml[^>]*>\s*)?(<!--((?!-->).)*-->\s*)*<(!doctype html|html)\b"
    return "html" if re.match(html, head, re.I | re.S) else "txt"


def _in_child(data: bytes, job: dict[str, Any], limits: Limits) -> dict[str, Any]:
    """Let a child process with limits do something with a file's bytes; return its answer, or raise its error."""
    name = job["name"]
    root = str(Path(__file__).parents[2])
    environment = os.environ | {
        "PYTHONPATH": os.pathsep.join(filter(None, [root, os.environ.get("PYTHONPATH")])),
        "MALLOC_ARENA_MAX": "2",  # an arena a thread would count as memory without being used
        "OPENBLAS_NUM_THREADS": "1",
    }
    try:
        child = subprocess.run(
            [sys.executable, "-m", MODULE, "child"],
            input=json.dumps({**job, "limits": asdict(limits)}).encode() + b"\n" + data, capture_output=True,
            env=environment, timeout=limits.seconds,
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        text = f"{name} could not be read in {limits.seconds:g} seconds, and its reader was stopped."
        raise LimitError(text, hint="a higher limit of seconds, or a part of the document") from None
    try:
        answer = json.loads(child.stdout)
    except ValueError:
        said = child.stderr[-2000:].decode(errors="replace")
        logger.debug("the reader of %s left on stderr: %s", name, said)
        raise _crash(name, child.returncode, said, limits) from None
    if "missing" in answer:
        raise MissingPackageError(answer["missing"], "qa")
    if "error" in answer:
        raise ERRORS[answer["error"]](answer["message"], answer["hint"])
    return dict(answer)


def _crash(name: str, code: int, said: str, limits: Limits) -> DocumentError:
    # pdfium and the C++ libraries end themselves by these where memory is refused
    signals = (signal.SIGKILL, signal.SIGABRT, signal.SIGILL, getattr(signal, "SIGTRAP", None))
    if -code in signals or re.search(NO_MEMORY, said, re.I):
        text = f"{name} takes more than {limits.megabytes} MiB of memory, and its reader was stopped."
        return LimitError(text, hint="a higher limit of megabytes")
    return DamagedError(f"{name} is damaged: it crashed its reader (exit status {code}).", hint="save it anew as PDF")


def child() -> None:
    """Read the job and the file from stdin, and write the document or the error to stdout, both as JSON."""
    started = time.monotonic()
    job = json.loads(sys.stdin.buffer.readline())
    limits = Limits(**job["limits"])
    answer_file = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # what libraries print must not mix with the answer
    try:
        import resource
    except ImportError:  # Windows
        pass
    else:  # address space would also count what libraries only map
        resource.setrlimit(resource.RLIMIT_DATA, (limits.megabytes * 2**20,) * 2)
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    try:
        data = sys.stdin.buffer.read()
        if job["kind"] == "picture":
            answer = _draw(data, job)
        else:
            readers = {"pdf": _read_pdf, "docx": _read_docx, "html": _read_html}
            answer = asdict(readers[job["kind"]](data, job["name"], job["password"], limits, started))
    except ModuleNotFoundError as error:
        answer = {"missing": (error.name or "").partition(".")[0]}
    except DocumentError as error:
        answer = {"error": type(error).__name__, "message": error.args[0], "hint": error.hint}
    except Exception as error:
        # onnxruntime and OpenCV have their own errors for refused memory
        reason = f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
        if isinstance(error, MemoryError) or re.search(NO_MEMORY, str(error), re.I):
            text, kind = f"{job['name']} takes more than {limits.megabytes} MiB of memory", "LimitError"
        else:
            text, kind = f"{job['name']} is damaged: {reason}", "DamagedError"
        answer = {"error": kind, "message": f"{text}.", "hint": "save it anew, or raise the limits"}
    json.dump(answer, answer_file)
    answer_file.flush()
    os._exit(0)  # without the libraries' clean-up, which may crash over a damaged file


# --- Formats other than PDF -------------------------------------------------------------------------------------------


def _utf8(data: bytes, name: str) -> str:
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise UnsupportedError(f"{name} is not UTF-8 text: {error}.", hint="convert it, e.g. with iconv") from None
    text = text.replace("\r\n", "\n").replace("\r", "\n")
    if sum(unicodedata.category(c) == "Cc" for c in text[:65536] if c not in "\t\n\f") > len(text[:65536]) / 100:
        raise UnsupportedError(f"{name} is neither text nor of a kind that can be read.", hint=KINDS)
    if not text.strip():
        raise EmptyError(f"{name} is empty.")
    return text


def _check_length(name: str, characters: int, limits: Limits) -> None:
    if characters > limits.characters:
        text = f"{name} has more than {limits.characters:,} characters."
        raise LimitError(text, hint="a part of the document, or a higher limit of characters")


def _one_page(
    data: bytes, name: str, kind: str, text: str, metadata: dict[str, str], headings: Iterable[tuple[int, int]],
    limits: Limits,
) -> Document:  # fmt: skip
    if not text.strip():
        raise EmptyError(f"There is no text in {name}.")
    _check_length(name, len(text), limits)
    page = Page(1, "1", 0, len(text), 0, 0, kind)
    short = tuple((start, end) for start, end in headings if end - start <= LONGEST_HEADING)
    return Document(hashlib.sha256(data).hexdigest(), name, text, (page,), metadata, short)


def _read_text(data: bytes, name: str, kind: str, limits: Limits) -> Document:
    text = _utf8(data, name)
    return _one_page(data, name, kind, text, {}, _markdown_headings(text) if kind == "md" else (), limits)


def _markdown_headings(text: str) -> Iterator[tuple[int, int]]:
    """Find headings outside of code: ``# one`` without its marks, and lines underlined by === or ---."""
    fence = ""
    position, before = 0, (0, 0)
    for line in text.split("\n"):
        mark = re.match(r" {0,3}(```+|~~~+)", line)
        if mark and (not fence or line.strip().startswith(fence)):
            fence = "" if fence else mark[1]
        elif not fence:
            marks = re.match(r" {0,3}#{1,6}[ \t]+", line)
            if marks and (title := _without_closing_marks(line[marks.end() :])):
                yield position + marks.end(), position + marks.end() + len(title)
            elif before[0] < before[1] and re.fullmatch(r" {0,3}(=+|-{2,})[ \t]*", line):
                yield before
        plain = not fence and line.strip() and not re.match(r"\s*([#>|*+-]|\d+[.)])", line)
        before = (position, position + len(line.rstrip())) if plain else (0, 0)
        position += len(line) + 1


def _without_closing_marks(title: str) -> str:
    """Return what stands before the ``#`` marks that end a heading, if blanks set them apart: not those of ``C#``."""
    title = title.rstrip(" \t")
    bare = title.rstrip("#")
    return bare.rstrip(" \t") if bare.endswith((" ", "\t")) else title


def _blocks(blocks: Iterable[tuple[str, str]]) -> tuple[str, list[tuple[int, int]]]:
    """Join blocks (text, kind) by empty lines, those of one list or table by line ends; find the headings."""
    text, before = "", ""
    headings = []
    for block, kind in blocks:
        if block := block.strip():
            if text:
                text += "\n" if kind == before and kind not in ("heading", "paragraph") else JOINT
            if kind == "heading":
                headings.append((len(text), len(text) + len(block)))
            text += block  # in place, as it would not be beside another assignment
            before = kind
    return text, headings


HTML_ROWS = {"li", "tr", "dt", "dd"}
HTML_HEADINGS = {"h1", "h2", "h3", "h4", "h5", "h6"}
HTML_BLOCKS = {
    *HTML_ROWS,
    *HTML_HEADINGS,
    *("p div section article header footer main aside nav ul ol dl table pre blockquote figure figcaption".split()),
    *("form fieldset body html address details summary caption [document]".split()),
}


def _read_html(data: bytes, name: str, password: str, limits: Limits, started: float) -> Document:
    from bs4 import BeautifulSoup, NavigableString

    soup = BeautifulSoup(_utf8(data, name), "html.parser")
    title = " ".join(soup.title.get_text().split()) if soup.title else ""
    for tag in soup.find_all(["script", "style", "noscript", "template", "head", "svg"]):
        tag.decompose()
    for tag in soup.find_all("br"):
        tag.replace_with("\v")  # stands for the newline where blanks are joined
    for tag in soup.find_all(["td", "th"]):
        if tag.find_previous_sibling(["td", "th"]):
            tag.insert_before(" | ")
    blocks: list[tuple[list[str], Any]] = []
    for node in soup.descendants:
        if type(node) is NavigableString:  # its subclasses are comments and the like
            block = next(parent for parent in node.parents if parent.name in HTML_BLOCKS)
            if not blocks or blocks[-1][1] is not block:
                blocks.append(([], block))
            blocks[-1][0].append(str(node))
    text, headings = _blocks((_html_text("".join(parts), block.name), _html_kind(block)) for parts, block in blocks)
    metadata = {"title": title} if title else {}
    return _one_page(data, name, "html", text, metadata, headings, limits)


def _html_text(text: str, block: str) -> str:
    return text if block == "pre" else re.sub(r" ?\v ?", "\n", re.sub(r"[^\S\v]+", " ", text))


def _html_kind(block: Any) -> str:
    return "heading" if block.name in HTML_HEADINGS else block.name if block.name in HTML_ROWS else "paragraph"


def _read_docx(data: bytes, name: str, password: str, limits: Limits, started: float) -> Document:
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            unzipped = sum(info.file_size for info in archive.infolist())
    except zipfile.BadZipFile as error:
        raise DamagedError(f"{name} is damaged: {error}.", hint="save it anew") from None
    if unzipped > UNZIPPED_MEGABYTES * 2**20:
        text = f"{name} unpacks to {unzipped / 2**20:,.0f} MiB, more than {UNZIPPED_MEGABYTES}."
        raise LimitError(text, hint="a document with fewer or smaller pictures")
    import docx
    from docx.table import Table

    document = docx.Document(io.BytesIO(data))
    blocks: list[tuple[str, str]] = []
    for item in document.iter_inner_content():
        if isinstance(item, Table):
            # A merged cell comes once a column
            rows = [{id(cell._tc): cell for cell in row.cells}.values() for row in item.rows]
            blocks += [(" | ".join(" ".join(cell.text.split()) for cell in row), "row") for row in rows]
        else:
            style = item.style.name if item.style is not None and item.style.name else ""
            kind = "heading" if re.match("Heading|Title", style) else "li" if style.startswith("List") else "paragraph"
            blocks.append((item.text, kind))
    text, headings = _blocks(blocks)
    properties = document.core_properties
    fields = {key: str(getattr(properties, key) or "") for key in ("title", "author", "subject", "keywords")}
    return _one_page(data, name, "docx", text, {k: v for k, v in fields.items() if v}, headings, limits)


# --- PDF: characters and lines ----------------------------------------------------------------------------------------

HYPHEN = "\xad"  # at a line's end: a hyphen that may only be there for the line's sake
Character = tuple[str, int, float, float, float, float]  # text, raw index, left, bottom, right, top


@dataclass(eq=False)
class _Line:
    """A line or a part of one that belongs together.

    Attributes:
        characters: (text, raw index, or -1 for what the page does not have), mended, without outer blanks.
        box: Around them.
        size: Of the type, in points; 0 where unknown.
        bold: Whether the type is bold.
        table: Which of the page's tables it is a row of; -1 for none.
    """

    characters: list[tuple[str, int]]
    box: Box
    size: float = 0
    bold: bool = False
    table: int = -1

    @functools.cached_property
    def text(self) -> str:
        return "".join(text for text, _ in self.characters)


@functools.lru_cache(maxsize=4096)
def _mended(character: str) -> str:
    """Return what a character is in plain text: ligatures and Arabic forms apart, blanks one kind, controls nothing."""
    code = ord(character)
    if 0xFB00 <= code <= 0xFB06 or 0xFB50 <= code <= 0xFDFF or 0xFE70 <= code <= 0xFEFC:
        return unicodedata.normalize("NFKC", character)
    if character == HYPHEN or character in "\u200c\u200d":  # the joiners change what Persian and Hindi words look like
        return character
    category = unicodedata.category(character)
    if category == "Zs" or character in "\t\v\f\x85\u2028\u2029":
        return "\u3000" if character == "\u3000" else " "
    return "" if category in ("Cc", "Cf", "Cs", "Cn") else character


def _line(characters: Sequence[Character]) -> _Line | None:
    """Make a line of characters in reading order; None if they are all blank."""
    solid = [c for c in characters if not c[0].isspace() and c[4] > c[2]]
    if not solid:
        return None
    mended: list[tuple[str, int]] = []
    for position, (text, raw, *_) in enumerate(_logical_order(characters)):
        for one in _mended(text):
            if (one == " " and (not mended or mended[-1][0] == " ")) or (
                one == HYPHEN and position < len(characters) - 1
            ):
                continue
            mended.append((one, raw))
    while mended and mended[-1][0] == " ":
        mended.pop()
    return _Line(mended, _around([c[2:] for c in solid])) if mended else None


BIDI = {"R": "R", "AL": "R", "NSM": "M", "EN": "D", "AN": "D", "L": "L"}


def _logical_order(characters: Sequence[Character]) -> Sequence[Character]:
    """Turn right-to-left runs that come in the order of sight, as their places show, into the order of reading."""
    kinds = "".join(BIDI.get(unicodedata.bidirectional(c[0]), "N") for c in characters)
    if "R" not in kinds:
        return characters
    turned = list(characters)
    for run in re.finditer("[RM](?:[RMDN]*[RM])?", kinds):
        strong = [c for c, kind in zip(characters[run.start() : run.end()], run[0], strict=True) if kind == "R"]
        rightward = sum(b[2] >= a[2] for a, b in zip(strong, strong[1:], strict=False))
        if 2 * rightward > len(strong) - 1:
            turned[run.start() : run.end()] = characters[run.start() : run.end()][::-1]
            for digits in re.finditer("D+", run[0][::-1]):  # numbers run from left to right
                span = slice(run.start() + digits.start(), run.start() + digits.end())
                turned[span] = turned[span][::-1]
    return turned


def _pdfium_lines(characters: Iterable[Character | None], *, at_gaps: bool) -> list[_Line]:
    """Cut characters into lines where pdfium does (None), and on demand where a gap is as wide as a gutter."""
    lines: list[_Line | None] = []
    part: list[Character] = []
    for character in characters:
        if character is None:
            lines.append(_line(part))
            part = []
            continue
        if at_gaps and part and character[4] > character[2]:
            before = next((c for c in reversed(part) if c[4] > c[2] and not c[0].isspace()), None)
            if before is not None and character[2] - before[4] > 1.4 * (character[5] - character[3]):
                lines.append(_line(part))
                part = []
        part.append(character)
    lines.append(_line(part))
    return [line for line in lines if line is not None]


# --- PDF: reading order -----------------------------------------------------------------------------------------------


def reading_order(boxes: Sequence[Box]) -> list[int]:
    """Order the boxes of lines as they are read: a recursive XY-cut (Nagy and Seth, 1984).

    A gutter with long lines on both sides divides columns, so that tables keep their rows; lines across it, as headers
    over both columns, divide what is above from what is below, and may have a gutter of their own. Elsewhere rows go
    from top to bottom.

    Args:
        boxes: In points, from the bottom left.

    Returns:
        Indices of the boxes.
    """
    rows = _rows(boxes, range(len(boxes)))
    # A running header or page number stands apart, and would else be read with the column below or above it
    first = rows.pop(0) if len(rows) > 4 and _apart(boxes, rows[:1], rows[1:]) else []
    last = rows.pop() if len(rows) > 4 and _apart(boxes, rows[:-1], rows[-1:]) else []
    return [*first, *_cut(boxes, [i for row in rows for i in row]), *last]


def _height(boxes: Sequence[Box], chosen: Sequence[int]) -> float:
    return statistics.median(boxes[i][3] - boxes[i][1] for i in chosen)


def _apart(boxes: Sequence[Box], above: list[list[int]], below: list[list[int]]) -> bool:
    [alone] = min(above, below, key=len)
    gap = min(boxes[i][1] for row in above for i in row) - max(boxes[i][3] for row in below for i in row)
    return gap > 0.5 * _height(boxes, alone)


def _rows(boxes: Sequence[Box], chosen: Iterable[int]) -> list[list[int]]:
    """Group boxes that stand beside one another, from top to bottom, each row from left to right."""
    rows: list[list[int]] = []
    for i in sorted(chosen, key=lambda i: (-(boxes[i][1] + boxes[i][3]), boxes[i][0])):
        if rows and _beside(boxes[rows[-1][0]], boxes[i]):
            rows[-1].append(i)
        else:
            rows.append([i])
    return [sorted(row, key=lambda i: boxes[i][0]) for row in rows]


def _beside(a: Box, b: Box) -> bool:
    return min(a[3], b[3]) - max(a[1], b[1]) >= 0.5 * min(a[3] - a[1], b[3] - b[1])


def _cut(boxes: Sequence[Box], chosen: list[int], fill: float = 0.45) -> list[int]:
    """Order boxes; in a column, half of them must fill more than ``fill`` of its width."""
    rows, gutter = _rows(boxes, chosen), _gutter(boxes, chosen, fill)
    if gutter is None:
        return [i for row in rows for i in row]
    order: list[int] = []
    kinds = "".join("x" if any(_side(boxes[i], gutter) < 0 for i in row) else "." for row in rows)
    # One or two rows after some that go across may be a heading or a paragraph's last line
    for match in re.finditer(r"x(?:\.{0,2}(?:x|$))*|\.+", kinds):
        block, across = [i for row in rows[slice(*match.span())] for i in row], match[0][0] == "x"
        for part in [block] if across else [[i for i in block if _side(boxes[i], gutter) == side] for side in (0, 1)]:
            # What goes across is cut again, unless it may be a listing with comments, which keeps its rows
            order += _cut(boxes, part, 0.9 if across else fill) if len(part) < len(chosen) else part
    return order


def _side(box: Box, gutter: tuple[float, float]) -> int:
    """Return 0 left of a gutter, 1 right of it, -1 across; a tenth of a line may stand out."""
    width = box[2] - box[0]
    if box[2] - gutter[0] <= 0.1 * width:
        return 0
    return 1 if gutter[1] - box[0] <= 0.1 * width else -1


def _gutter(boxes: Sequence[Box], chosen: Sequence[int], fill: float) -> tuple[float, float] | None:
    """Find the gutter that the fewest lines cross; None where there are no columns of prose."""
    if len(chosen) < 6:
        return None
    height = _height(boxes, chosen)
    lefts, rights = sorted(boxes[i][0] for i in chosen), sorted(boxes[i][2] for i in chosen)
    candidates = []
    for x in sorted(set(rights)):
        after = bisect.bisect_left(lefts, x + 0.6 * height)
        across = after - bisect.bisect_right(rights, x)
        if after < len(lefts) and across <= 0.4 * len(chosen):
            candidates.append((across, x - lefts[after], x, lefts[after]))
    for _, _, left, right in sorted(candidates)[:8]:
        sides = [[i for i in chosen if _side(boxes[i], (left, right)) == side] for side in (0, 1)]
        if all(len(side) >= 3 and _prose(boxes, side, height, fill) for side in sides):
            top = min(max(boxes[i][3] for i in side) for side in sides)
            bottom = max(min(boxes[i][1] for i in side) for side in sides)
            if top - bottom > 2 * height:
                return left, right
    return None


def _prose(boxes: Sequence[Box], chosen: Sequence[int], height: float, fill: float) -> bool:
    width = statistics.median(boxes[i][2] - boxes[i][0] for i in chosen)
    extent = max(boxes[i][2] for i in chosen) - min(boxes[i][0] for i in chosen)
    return width > 7 * height and width > fill * extent


def _flows(a: Box, b: Box) -> bool:
    """Tell whether b may follow a without a jump of the eye: close to its right, or close below."""
    height = min(a[3] - a[1], b[3] - b[1])
    if _beside(a, b):
        return -height < b[0] - a[2] < 3 * height
    return min(a[2], b[2]) > max(a[0], b[0]) and -height < a[1] - b[3] < 3 * height


def _jumps(boxes: Sequence[Box], order: Sequence[int]) -> int:
    """Count jumps of the eye; to go up to what stands above counts twice."""
    pairs = [(boxes[i], boxes[j]) for i, j in zip(order, order[1:], strict=False)]
    up = sum(a[3] <= b[1] and min(a[2], b[2]) > max(a[0], b[0]) for a, b in pairs)
    return up + sum(not _flows(a, b) for a, b in pairs)


def _ordered(lines: list[_Line], *, keep: bool) -> list[_Line]:
    """Order lines, a table as one.

    Args:
        lines: As they come.
        keep: Let them be unless the other order has fewer jumps, for the file's own is often right.
    """
    blocks = [
        list(group) for _, group in itertools.groupby(lines, lambda line: line.table if line.table >= 0 else line)
    ]
    if not 1 < len(blocks) <= 2_000:
        return lines
    boxes = [_around([line.box for line in block]) for block in blocks]
    order: Sequence[int] = reading_order(boxes)
    if keep and _jumps(boxes, order) >= _jumps(boxes, range(len(blocks))):
        return lines
    return [line for i in order for line in blocks[i]]


def _around(boxes: Sequence[Box]) -> Box:
    lefts, bottoms, rights, tops = zip(*boxes, strict=True)
    return min(lefts), min(bottoms), max(rights), max(tops)


# --- PDF: text --------------------------------------------------------------------------------------------------------

# Hyphenated compounds that begin so are seldom written as one word
COMPOUNDS = frozenset(
    "all cross ex half high ill long low mid multi non quasi self semi short so soft state well".split()
)
WORD = re.compile(r"[^\W\d_]+(?:-[^\W\d_]+)*")


def _keeps_hyphen(before: str, after: str, known: Counter[str]) -> bool:
    """Tell whether a hyphen between two parts of a word would be there in the middle of a line, too.

    Args:
        before: The part before it, with earlier parts of a compound.
        after: The part after it.
        known: The document's words, in lower case.
    """
    joined, apart = known[f"{before}{after}".lower()], known[f"{before}-{after}".lower()]
    if before.isupper() and after.isupper():
        return apart > joined
    if after[0].isupper():
        return apart >= joined
    return apart > joined if apart or joined else "-" in before or before.lower() in COMPOUNDS


def _page_text(lines: Sequence[_Line], known: Counter[str]) -> tuple[list[tuple[str, int]], list[tuple[int, int]]]:
    """Write lines one after the other.

    Returns:
        The page's characters (one character, raw index or -1), and each line's span.
    """
    written: list[tuple[str, int]] = []
    spans: list[tuple[int, int]] = []
    for position, line in enumerate(lines):
        if position:
            before = lines[position - 1]
            word = re.search(r"(?:[^\W\d_][\w-]*)?[^\W\d_]$", before.text[-60:-1])
            rest = re.match(r"[^\W\d_]+", line.text)
            if before.table < 0 and line.table < 0 and before.text[-1] in (HYPHEN, "-", "\u2010"):
                raw = written.pop()[1]
                if word and rest and not _beside(before.box, line.box):
                    if _keeps_hyphen(word[0], rest[0], known):
                        written.append(("-", raw))
                else:
                    written += [("-", raw), ("\n", -1)]
            else:
                written += [(c, -1) for c in _separator(before, line)]
        start = len(written)
        written += line.characters
        spans.append((start, len(written)))
    if written and written[-1][0] == HYPHEN:
        written[-1] = ("-", written[-1][1])
    return written, [(start, min(end, len(written))) for start, end in spans]


def _separator(a: _Line, b: _Line) -> str:
    if a.table >= 0 or b.table >= 0:
        return "\n" if a.table == b.table else JOINT
    if _beside(a.box, b.box) and a.box[0] < b.box[0]:
        return "" if b.box[0] - a.box[2] < 0.1 * (b.box[3] - b.box[1]) else " "
    ends = a.text.rstrip("\"'”’)]）」』").endswith((".", "!", "?", ":", "。", "！", "？", "："))
    if not _flows(a.box, b.box):
        return JOINT if ends or abs(a.size - b.size) > 0.5 else "\n"
    height = min(a.box[3] - a.box[1], b.box[3] - b.box[1])
    indented = ends and 0.8 * height < b.box[0] - a.box[0] < 5 * height
    apart = a.box[1] - b.box[3] > 0.6 * height or a.bold != b.bold or abs(a.size - b.size) > 0.12 * a.size
    return JOINT if apart or indented else "\n"


def _headings(sheets: Sequence[_Sheet], spans: Sequence[Sequence[tuple[int, int]]]) -> Iterator[tuple[int, int]]:
    """Find lines set larger than the body, or bold where the body isn't; neighbours of one size are one heading."""
    weights: Counter[tuple[float, bool]] = Counter()
    for line in (line for sheet in sheets for line in sheet.lines if line.size):
        weights[round(line.size * 2) / 2, line.bold] += len(line.text)
    if not weights:
        return
    (body, body_bold), _ = max(weights.items(), key=lambda item: (item[1], item[0]))

    def stands_out(line: _Line) -> bool:
        larger = line.size > 1.12 * body
        bolder = line.bold and not body_bold and line.size > 0.9 * body and line.text[-1] not in ".,;"
        return (larger or bolder) and line.table < 0 and bool(re.search(r"[^\W\d_]{2}", line.text))

    for sheet, its_spans in zip(sheets, spans, strict=True):
        groups = itertools.groupby(
            range(len(sheet.lines)), lambda i, s=sheet: (stands_out(s.lines[i]), s.lines[i].bold)
        )
        found = []
        for (stands, _), group in groups:
            lines = list(group)
            if stands and len(lines) <= 4 and sum(len(sheet.lines[i].text) for i in lines) <= LONGEST_HEADING:
                found.append((its_spans[lines[0]][0], its_spans[lines[-1]][1]))
        if 2 * len(found) <= len(sheet.lines):  # a page of headings alone is a cover or a slide
            yield from found


# --- PDF: pages -------------------------------------------------------------------------------------------------------


@dataclass
class _Sheet:
    """A page before its text is put together."""

    label: str
    width: float
    height: float
    method: str
    lines: list[_Line]
    usable: bool = True  # False: its text is missing or no text
    letters: int = 0  # that a page which is not usable has all the same


def _read_pdf(data: bytes, name: str, password: str, limits: Limits, started: float) -> Document:
    pdf = _Pdf(data, name, password)
    if pdf.count > limits.pages:
        raise LimitError(f"{name} has {pdf.count:,} pages, more than {limits.pages:,}.", hint="a higher limit of pages")
    sheets: list[_Sheet] = []
    characters = 0
    deadline, slowest = started + 0.95 * limits.seconds - 0.5, 0.0
    for index in range(pdf.count):
        began = time.monotonic()
        sheet = pdf.sheet(index)
        if time.monotonic() + (0 if sheet.usable else 1.2 * slowest) > deadline:
            text = f"{name} takes more than {limits.seconds:g} seconds: pages {index + 1} to {pdf.count} were not read."
            raise LimitError(text, hint="a higher limit of seconds, or fewer pages; pages read by OCR take a few each")
        if not sheet.usable:
            sheet = pdf.recognized(index, sheet)
            slowest = max(slowest, time.monotonic() - began)
        sheets.append(sheet)
        characters += sum(len(line.text) for line in sheet.lines)
        _check_length(name, characters, limits)
    return _put_together(data, name, sheets, pdf.metadata())


def _put_together(data: bytes, name: str, sheets: list[_Sheet], metadata: dict[str, str]) -> Document:
    known = Counter(word.lower() for sheet in sheets for line in sheet.lines for word in WORD.findall(line.text))
    pages, parts, all_spans, position = [], [], [], 0
    for number, sheet in enumerate(sheets, start=1):
        characters, spans = _page_text(sheet.lines, known)
        spans = [(position + start, position + end) for start, end in spans]
        boxes = [(*span, *line.box) for span, line in zip(spans, sheet.lines, strict=True)]
        end = position + len(characters)
        page = Page(
            number, sheet.label or str(number), position, end, sheet.width, sheet.height, sheet.method,
            _runs(characters, position), tuple(boxes) if sheet.method == "ocr" else (),
        )  # fmt: skip
        pages.append(page)
        parts.append("".join(c for c, _ in characters))
        all_spans.append(spans)
        position = end + len(JOINT)
    text = JOINT.join(parts)
    if not text.strip():
        raise EmptyError(f"No text was found in {name}.", hint="it may be blank, or a picture without writing")
    headings = tuple(_headings(sheets, all_spans))
    return Document(hashlib.sha256(data).hexdigest(), name, text, tuple(pages), metadata, headings)


def _runs(characters: Sequence[tuple[str, int]], offset: int) -> tuple[tuple[int, int, int], ...]:
    runs: list[list[int]] = []
    for position, (_, raw) in enumerate(characters, start=offset):
        if raw < 0:
            continue
        if runs and runs[-1][0] + runs[-1][2] == position and runs[-1][1] + runs[-1][2] == raw:
            runs[-1][2] += 1
        else:
            runs.append([position, raw, 1])
    return tuple((start, raw, length) for start, raw, length in runs)


class _Pdf:
    """An open PDF, in pdfium where that can read it, and in the other libraries from when they are needed."""

    def __init__(self, data: bytes, name: str, password: str) -> None:
        import pypdfium2

        self._data, self._name, self._password = data, name, password
        self._pdfium: Any = None
        try:
            self._pdfium = pypdfium2.PdfDocument(data, password=password or None)
            self.count = len(self._pdfium)
        except pypdfium2.PdfiumError as error:
            if error.err_code == pypdfium2.raw.FPDF_ERR_PASSWORD:
                raise self._password_error() from None
            self.count = len(self._pypdf.pages)
        if not self.count:
            raise EmptyError(f"{name} has no pages.")

    def _password_error(self) -> PasswordError:
        if self._password:
            return PasswordError(f"The password given is not that of {self._name}.", hint="--password, or password=")
        return PasswordError(f"{self._name} needs a password.", hint="give it by --password, or password=")

    @functools.cached_property
    def _pypdf(self) -> Any:
        import pypdf

        logging.getLogger("pypdf").setLevel(logging.CRITICAL)
        try:
            reader = pypdf.PdfReader(io.BytesIO(self._data), strict=False)
            if reader.is_encrypted and not reader.decrypt(self._password):
                raise self._password_error()
            len(reader.pages)
        except (PasswordError, MemoryError, ModuleNotFoundError):
            raise
        except Exception as error:  # over damaged files pypdf raises whatever comes up
            reason = " ".join(str(error).split())[:200]
            text = f"{self._name} is no PDF that pdfium or pypdf can read: {type(error).__name__}: {reason}."
            raise DamagedError(text, hint="open it in a viewer and save it anew, if that can read it") from None
        return reader

    @functools.cached_property
    def _plumber(self) -> Any:
        import pdfplumber

        logging.getLogger("pdfminer").setLevel(logging.CRITICAL)
        return pdfplumber.open(io.BytesIO(self._data), password=self._password)

    def metadata(self) -> dict[str, str]:
        if self._pdfium is not None:
            entries = self._pdfium.get_metadata_dict(skip_empty=True)
        else:
            entries = {key.lstrip("/"): str(value) for key, value in (self._pypdf.metadata or {}).items()}
        cleaned = {key.lower(): "".join(_mended(c) for c in value).strip() for key, value in entries.items()}
        return {key: value for key, value in cleaned.items() if value}

    def sheet(self, index: int) -> _Sheet:
        """Read a page's own text."""
        import pypdfium2

        if self._pdfium is None:
            return self._pypdf_sheet(index)
        try:
            page = self._pdfium[index]
            label = self._pdfium.get_page_label(index)
            page_text = page.get_textpage()
        except pypdfium2.PdfiumError:
            return self._pypdf_sheet(index)
        width, height = page.get_size()
        turn = _turn(page_text)
        characters, bad = _pdfium_characters(page, page_text, turn)
        coverage, ruled = _inventory(page)
        table_lines: list[_Line] = []
        if ruled and any(characters) and turn == page.get_rotation():
            characters, table_lines = _with_tables(characters, self._tables(index))
        lines = _pdfium_lines(characters, at_gaps=True)
        for line in lines:
            _measure(page_text, line)
        lines = _ordered(_with_blocks(lines, table_lines), keep=True)
        text = "".join(line.text for line in lines)
        solid = len(re.sub(r"\s", "", text))
        words = len(re.sub(r"[\W_]", "", text))
        # Fonts without a map to letters, glyphs that spell nothing, or a stray word on a scan
        garbage = bad > 0.5 * solid or words < 0.4 * len(re.sub(r"(.)\1+|\s", r"\1", text))
        stray = coverage > 0.5 and words < 200
        usable = not (garbage or bad > 0.2 * solid or stray or not solid) or _blank(page)
        if garbage:
            lines, words = [], 0
        return _Sheet(label, width, height, "pdfium", lines, usable, max(words - bad, 0))

    def _pypdf_sheet(self, index: int) -> _Sheet:
        try:
            page = self._pypdf.pages[index]
            text, box, label = page.extract_text(), page.mediabox, self._pypdf.page_labels[index]
            width, height = float(box.width), float(box.height)
        except (MemoryError, PasswordError, DamagedError, ModuleNotFoundError):
            raise
        except Exception as error:
            logger.warning("page %d of %s is damaged: %s", index + 1, self._name, error)
            return _Sheet("", 0, 0, "pypdf", [])
        lines, raw = [], 0
        for row, piece in enumerate(text.split("\n")):
            # pypdf tells no places: lines stand under one another, 12 points high
            characters = [(c, raw + i, 0.0, -12.0 * row - 12, 500.0, -12.0 * row) for i, c in enumerate(piece)]
            lines.append(_line(characters))
            raw += len(piece) + 1
        return _Sheet(label, width, height, "pypdf", [line for line in lines if line is not None])

    def _tables(self, index: int) -> list[list[list[Box]]]:
        """Return the cells of each ruled table, row by row."""
        try:
            page = self._plumber.pages[index]
            left, top, _, bottom = page.bbox
            height = bottom - top
            tables = [
                [
                    [(c[0] - left, height - c[3] + top, c[2] - left, height - c[1] + top) for c in row.cells if c]
                    for row in table.rows
                ]
                for table in page.find_tables()
            ]
            page.close()
        except MemoryError:
            raise
        except Exception as error:
            logger.warning("the tables on page %d of %s are read as text: %s", index + 1, self._name, error)
            return []
        return [table for table in tables if len(table) > 1 and max(map(len, table)) > 1]

    def recognized(self, index: int, sheet: _Sheet) -> _Sheet:
        """Read a page by OCR; its own text stays where that finds less."""
        page = self._pdfium[index]
        scale = min(DPI / 72, LONGEST_SIDE / max(sheet.width, sheet.height))
        found = _ocr()(page.render(scale=scale).to_numpy())
        lines = []
        for corners, text in zip(found.boxes if found.boxes is not None else [], found.txts or (), strict=True):
            xs, ys = [float(x) / scale for x, _ in corners], [float(y) / scale for _, y in corners]
            box = (min(xs), sheet.height - max(ys), max(xs), sheet.height - min(ys))
            line = _line([(c, -1, *box) for c in text])
            if line is not None:
                lines.append(line)
        if sum(c.isalnum() for line in lines for c in line.text) <= sheet.letters:
            return sheet
        return _Sheet(sheet.label, sheet.width, sheet.height, "ocr", _ordered(lines, keep=False))


@functools.cache
def _ocr() -> Any:
    from rapidocr import RapidOCR

    return RapidOCR(
        params={
            "Global.log_level": "critical",
            "Global.use_cls": False,  # it would turn lines, but not the page's order
            # Finding lines in a smaller picture finds the same ones in a fifth of the time
            "Det.limit_type": "max",
            "Det.limit_side_len": 960,
            # On a busy machine threads wait for one another: two took twice the time of one
            "EngineConfig.onnxruntime.intra_op_num_threads": 1,
            "Rec.rec_batch_num": 1,  # batches are no faster, and pad to the longest line: twice the memory
        }
    )


def _turn(page_text: Any) -> int:
    """Return by how many degrees, clockwise, a page must be turned for most of its text to stand upright."""
    from pypdfium2 import raw

    matrix, count = raw.FS_MATRIX(), page_text.count_chars()
    turns: Counter[int] = Counter()
    for index in range(0, count, count // 200 + 1):
        if raw.FPDFText_GetMatrix(page_text.raw, index, ctypes.byref(matrix)) and (matrix.a or matrix.b):
            turns[round(math.degrees(math.atan2(matrix.b, matrix.a)) / 90) * 90 % 360] += 1
    return max(turns, key=turns.__getitem__, default=0)


def _pdfium_characters(page: Any, page_text: Any, turn: int) -> tuple[list[Character | None], int]:
    """Return a page's characters with places as they are on the turned page, None where a line ends.

    Returns:
        The characters, and how many have no letter in their font's map.
    """
    from pypdfium2 import raw

    left, bottom, right, top = page.get_bbox()
    place = {
        0: lambda x, y, r, t: (x - left, y - bottom, r - left, t - bottom),
        90: lambda x, y, r, t: (y - bottom, right - r, t - bottom, right - x),
        180: lambda x, y, r, t: (right - r, top - t, right - x, top - y),
        270: lambda x, y, r, t: (top - t, x - left, top - y, r - left),
    }[turn]
    handle, box = page_text.raw, raw.FS_RECTF()
    pointer = ctypes.byref(box)
    characters: list[Character | None] = []
    bad = high = 0
    for index in range(page_text.count_chars()):
        code = raw.FPDFText_GetUnicode(handle, index)
        if code in (10, 13) and not raw.FPDFText_HasUnicodeMapError(handle, index):
            if characters and characters[-1] is not None:
                characters.append(None)
            continue
        if code == 2 and raw.FPDFText_IsHyphen(handle, index) == 1:
            code = 0xAD
        elif 0xD800 <= code < 0xDC00:
            high = code
            continue
        elif 0xDC00 <= code < 0xE000 and high:
            code = 0x10000 + ((high - 0xD800) << 10) + code - 0xDC00
        high = 0
        raw.FPDFText_GetLooseCharBox(handle, index, pointer)
        corners = place(box.left, box.bottom, box.right, box.top)
        character = chr(code) if code < 0x110000 else "\ufffd"
        if not character.isspace() and raw.FPDFText_HasUnicodeMapError(handle, index) == 1:
            bad += 1
        characters.append((character, index, *corners))
        if code == 0xAD:
            characters.append(None)
    return characters, bad


def _measure(page_text: Any, line: _Line) -> None:
    """Note the size of a line's type, as that of its middle character, and whether all of it is bold."""
    from pypdfium2 import raw

    # Of blanks, some are pdfium's own, whose size is 1
    solid = [index for character, index in line.characters if not character.isspace()]
    places = [solid[i] for i in (0, len(solid) // 2, -1)]
    index = places[1]
    matrix = raw.FS_MATRIX()
    if raw.FPDFText_GetMatrix(page_text.raw, index, matrix):
        line.size = raw.FPDFText_GetFontSize(page_text.raw, index) * math.hypot(matrix.c, matrix.d)
    line.bold = all(_is_bold(page_text, index) for index in places)


def _is_bold(page_text: Any, index: int) -> bool:
    from pypdfium2 import raw

    name = ctypes.create_string_buffer(128)
    raw.FPDFText_GetFontInfo(page_text.raw, index, name, 128, None)
    weight = raw.FPDFText_GetFontWeight(page_text.raw, index)
    return weight >= 600 or bool(re.search(rb"bold|black|heavy|CMBX|-Medi", name.value, re.I))


def _inventory(page: Any) -> tuple[float, bool]:
    """Return the share of a page that pictures cover, and whether it has rules enough for a table."""
    from pypdfium2 import raw

    area, flat, steep = 0.0, 0, 0
    kinds = [raw.FPDF_PAGEOBJ_IMAGE, raw.FPDF_PAGEOBJ_PATH]
    objects = list(itertools.islice(page.get_objects(filter=kinds, max_depth=5), MOST_PATHS))
    for thing in objects:
        left, bottom, right, top = thing.get_bounds()
        width, height = right - left, top - bottom
        if thing.type == raw.FPDF_PAGEOBJ_IMAGE:
            area += width * height
            continue
        segments = raw.FPDFPath_CountSegments(thing.raw)
        grid = 3 if width > 30 and height > 15 and segments > 8 else 1
        flat += grid * (width > 30)
        steep += grid * (height > 8)
    page_width, page_height = page.get_size()
    ruled = flat >= 3 and steep >= 2 and len(objects) < MOST_PATHS
    return area / max(page_width * page_height, 1), ruled


def _blank(page: Any) -> bool:
    pixels = page.render(scale=200 / max(*page.get_size(), 1), grayscale=True).to_numpy()
    return bool(pixels.min() == pixels.max())


def _with_tables(
    characters: list[Character | None], tables: list[list[list[Box]]]
) -> tuple[list[Character | None], list[_Line]]:
    """Take the characters of tables out of a page, and make lines of cells joined by " | " of them."""
    found, sizes, cut, place = [], Counter[int](), Counter[int](), None
    before: Character | None = None
    for character in characters:
        solid = character is not None and not character[0].isspace()
        if character is not None and solid and character[4] > character[2]:
            where = _cell(tables, (character[2] + character[4]) / 2, (character[3] + character[5]) / 2)
            if before and where != place and 0 <= character[2] - before[2] < before[5] - before[3]:
                cut.update({at[0] for at in (where, place) if at})
            place = where
            sizes.update([place[0]] if place else [])
        before = character if solid else None
        found.append(place)
    rest: list[Character | None] = []
    cells: dict[tuple[int, int, int], list[Character | None]] = {}
    for character, place in zip(characters, found, strict=True):
        if place is not None and 100 * cut[place[0]] > sizes[place[0]]:
            place = None  # a drawing, whose lines go through words
        if place is not None:
            cells.setdefault(place, []).append(character)
        if place is None or character is None:
            rest.append(character)
    lines = []
    for number, table in enumerate(tables):
        for row, boxes in enumerate(table):
            places = [(number, row, column) for column in range(len(boxes))]
            parts = [_ordered(_pdfium_lines(cells.get(place, []), at_gaps=False), keep=True) for place in places]
            for one in _table_rows(parts):
                if any(one):
                    joined = _joined(one)
                    lines.append(_Line(joined, _around([line.box for part in one for line in part]), table=number))
    return rest, lines


def _cell(tables: list[list[list[Box]]], x: float, y: float) -> tuple[int, int, int] | None:
    for number, table in enumerate(tables):
        for row, boxes in enumerate(table):
            for column, (left, bottom, right, top) in enumerate(boxes):
                if left <= x <= right and bottom <= y <= top:
                    return number, row, column
    return None


def _table_rows(parts: list[list[_Line]]) -> list[list[list[_Line]]]:
    """Part a row with several lines of numbers in its cells: not every row of a table need be ruled."""
    lines = [line for part in parts for line in part]
    rows = _rows([line.box for line in lines], range(len(lines)))
    numbers = sum(bool(re.fullmatch(r"[\d.,%$€£¥()+−–-]+", line.text)) for line in lines)
    if len(rows) < 2 or sum(map(bool, parts)) < 3 or 2 * numbers < len(lines):
        return [parts]
    chosen = [{id(lines[i]) for i in row} for row in rows]
    return [[[line for line in part if id(line) in row] for part in parts] for row in chosen]


def _joined(cells: list[list[_Line]]) -> list[tuple[str, int]]:
    joined: list[tuple[str, int]] = []
    for number, cell in enumerate(cells):
        joined += [(c, -1) for c in " | "] if number else []
        for position, line in enumerate(cell):
            if position and joined[-1][0] == HYPHEN:
                joined.pop()
            elif position:
                joined.append((" ", -1))
            joined += line.characters
    return joined


def _with_blocks(lines: list[_Line], table_lines: list[_Line]) -> list[_Line]:
    """Put each table among the lines where the file has its first character."""
    tables = [list(group) for _, group in itertools.groupby(table_lines, lambda line: line.table)]
    for table in tables:
        first = min(raw for line in table for _, raw in line.characters if raw >= 0)
        at = next((i for i, line in enumerate(lines) if line.characters[0][1] > first), len(lines))
        lines[at:at] = table
    return lines


# --- Pictures of pages ------------------------------------------------------------------------------------------------


def page_picture(
    path: str | Path, page: Page, start: int, end: int, *, password: str = "", width: int = 1000,
    limits: Limits = Limits(),
) -> tuple[Any, list[Box]]:  # fmt: skip
    """Draw a page of a PDF, and find where on it a span of the text stands.

    Args:
        path: The PDF.
        page: As :func:`read_document` gave it.
        start: In the document's text.
        end: Exclusive; what lies on other pages is left out.
        password: Of the PDF.
        width: Of the picture in pixels.
        limits: What drawing may cost.

    Returns:
        A PIL image; and the boxes (left, top, right, bottom) of the span's lines, in pixels from the upper left.

    Raises:
        DocumentError: The page can't be drawn.
        OSError: The file can't be opened.
    """
    from PIL import Image

    path = Path(path)
    parts = [(max(start, at), min(end, at + length), raw - at) for at, raw, length in page.runs]
    job = {
        "kind": "picture", "name": path.name, "password": password, "page": page.number - 1, "width": width,
        "raw": [i for first, last, shift in parts for i in range(first + shift, last + shift)],
    }  # fmt: skip
    answer = _in_child(path.read_bytes(), job, limits)
    image = Image.open(io.BytesIO(base64.b64decode(answer["png"]))).convert("RGB")
    lines = [tuple(box) for box in answer["boxes"]]
    if page.method == "ocr":  # a part of a line is taken to be as wide as its share of the characters
        for first, last, left, bottom, right, top in page.boxes:
            if first < end and start < last:
                step = (right - left) / (last - first)
                lines.append((left + step * max(start - first, 0), bottom, right - step * max(last - end, 0), top))
    scale = image.width / page.width
    return image, [(x * scale, (page.height - t) * scale, r * scale, (page.height - y) * scale) for x, y, r, t in lines]


def _draw(data: bytes, job: dict[str, Any]) -> dict[str, Any]:
    """Draw a page as PNG, and find the boxes of raw characters, one for each line, in points."""
    pdf = _Pdf(data, job["name"], job["password"])
    if pdf._pdfium is None:
        raise DamagedError(f"{job['name']} can be read, but not drawn.")
    page = pdf._pdfium[job["page"]]
    width, height = page.get_size()
    picture = io.BytesIO()
    scale = min(job["width"] / width, LONGEST_SIDE / max(width, height))
    page.render(scale=scale).to_pil().save(picture, "PNG")
    wanted = set(job["raw"])
    boxes: list[Box] = []
    part: list[Box] = []
    for character in [*_pdfium_characters(page, page.get_textpage(), page.get_rotation())[0], None]:
        if character is not None and character[1] in wanted and character[4] > character[2]:
            part.append(character[2:])
        elif part and (character is None or not character[0].isspace()):
            boxes.append(_around(part))
            part = []
    return {"png": base64.b64encode(picture.getvalue()).decode(), "boxes": boxes}


# --- The command ------------------------------------------------------------------------------------------------------


@dataclass
class ReadConfig:
    """Print the text of a document, page by page; how it was read, and in how long, goes to the log."""

    input: str = "builtin:fares-2025"
    """A pdf, docx, html, md or txt file; or builtin: and the name of one of the builtin documents."""
    password: str = ""
    """Of an encrypted PDF."""
    output: str = ""
    """Where the document goes as JSON, with the map to the file's characters."""
    seconds: float = 60
    """Most time it may take, > 0."""
    megabytes: int = 1024
    """Most memory it may take, in MiB, > 0."""
    characters: int = 3_000_000
    """Most characters of its text, > 0."""


def read(config: ReadConfig) -> None:
    """Read a document; see :class:`ReadConfig`."""
    from shared.results import write_atomic
    from shared.sources import resolve

    if not config.input:
        raise InputError("input must name a file.", hint="--input paper.pdf")
    path = Path(config.input)
    if config.input.startswith("builtin:"):
        builtins = {path.stem: path for path in BUILTINS.glob("*.pdf")}
        path = builtins[resolve(config.input, builtins).name]
    limits = Limits(seconds=config.seconds, megabytes=config.megabytes, characters=config.characters)
    document = read_document(path, password=config.password, limits=limits)
    for page in document.pages:
        sys.stdout.write(f"--- page {page.label} ({page.number} of {len(document.pages)}) ---\n")
        sys.stdout.write(document.text[page.start : page.end] + "\n")
    if config.output:
        write_atomic(Path(config.output), document.to_json() + "\n")
        logger.info("saved %s", config.output)


if __name__ == "__main__":
    if sys.argv[1:] == ["child"]:
        child()
    else:  # imported here, so that the child starts without it
        from shared.config import run_commands

        run_commands({"read": read}, module=MODULE, extra="qa")
