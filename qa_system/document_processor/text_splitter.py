"""Chunks of documents: whole sentences, never more tokens than the embedder reads, each at its place in the document.

    document = read_document("paper.pdf")
    chunks = split_document(document, embedding.count_tokens, max_tokens=200, overlap=30)
    assert all(document.text[chunk.start : chunk.end] == chunk.text for chunk in chunks)

Sentences are found by rules: abbreviations, initials, quotation marks, Chinese full stops.
"""

from __future__ import annotations

import bisect
import math
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from qa_system.document_processor.pdf_reader import Document
from shared.config import check_range
from shared.errors import InputError

if TYPE_CHECKING:
    from langchain_core.documents import Document as LangChainDocument

LEAST_TOKENS = 16  # less than that may not hold a single character of every script
CHARACTERS_PER_TOKEN = 8  # at most; English has 4 to 5, but some tokenizers make one token of a run without blanks
Span = tuple[int, int]


@dataclass(frozen=True)
class Chunk:
    """A passage of a document, as it is embedded and found.

    Attributes:
        document_id: SHA-256 of the document's file.
        document_name: Its name.
        start: ``document.text[start:end] == text``.
        end: Exclusive.
        text: Begins and ends with a character that is not blank.
        pages: Numbers of the pages it touches, from 1.
        heading: The nearest one above its first sentence, with which the text may begin; empty where there is none.
    """

    document_id: str
    document_name: str
    start: int
    end: int
    text: str
    pages: tuple[int, ...]
    heading: str = ""

    @property
    def id(self) -> str:
        """Its document and place: equal texts at two places are two chunks."""
        return f"{self.document_id}:{self.start}-{self.end}"

    def to_document(self) -> LangChainDocument:
        """Return it as LangChain's document, with all but the text as metadata that JSON can hold."""
        from langchain_core.documents import Document as LangChainDocument

        metadata = {
            "document_id": self.document_id, "document_name": self.document_name, "start": self.start, "end": self.end,
            "pages": list(self.pages), "heading": self.heading,
        }  # fmt: skip
        return LangChainDocument(page_content=self.text, id=self.id, metadata=metadata)

    @classmethod
    def from_document(cls, document: LangChainDocument) -> Chunk:
        """Return the chunk that :meth:`to_document` made this of.

        Raises:
            InputError: Its metadata is not that of a chunk.
        """
        names = ("document_id", "document_name", "start", "end", "pages", "heading")
        if missing := [name for name in names if name not in document.metadata]:
            raise InputError(f"The document {document.id!r} is not a chunk: no {', '.join(missing)} in its metadata.")
        fields = {name: document.metadata[name] for name in names}
        return cls(**{**fields, "pages": tuple(fields["pages"])}, text=document.page_content)


# --- Sentences --------------------------------------------------------------------------------------------------------

CLOSERS = r"""["'”’»)\]}」』）】》〉]"""
OPENERS = r"""["'“‘„«(\[{「『（【《〈¿¡]"""
CJK = "\u2e80-\u9fff\uac00-\ud7af\uf900-\ufaff\uff00-\uffef"
# A mark such as [3] that follows at once goes with the sentence. Each run of dots is tried once: (?<!…)
END = re.compile(
    rf"[。！？｡।؟۔]+(?:{CLOSERS}|[。！？])*|(?<![.!?…])[.!?…]+{CLOSERS}*(?:\[\d[\d,;\s–-]*\])*(?=\s|[{CJK}])"
)
AFTER_CJK = re.compile(f"(?<=[{CJK}])")
BLANKS = re.compile(r"\s*")
NEXT = re.compile(rf"\s*{OPENERS}*")
NEXT_WORD = re.compile(r"(?:\w{1,12}(?=[\s,’']))?")
NOT_FIRST = frozenset(",;:)]}%，；：、）】》」』")
WORD_BEFORE = re.compile(r"""[^\s(\["“‘'/—–]*$""")
NUMBERING = re.compile(r"\(?(?:\d{1,3}(?:\.\d+)*|[ivxIVX]{1,5}|[a-zA-Z])")
DOTTED = re.compile(r"[^\W\d_]{1,2}(?:\.[^\W\d_]{1,2})+|[^\W\d_]")  # "U.S", "Ph.D", "J"
# No sentence ends with these, …
NEVER_LAST = frozenset(
    "mr mrs ms mx dr prof st mt messrs rev hon gen col capt lt sgt sen rep gov pres fr e.g i.e cf vs viz ca approx "
    "resp incl esp fig figs eq eqs eqn sect vol vols pp chap".split()
)
# … these with a number after them, …
BEFORE_NUMBER = frozenset("p n jan feb mar apr jun jul aug sep sept oct nov dec".split())
# … these with a number, or what has one in it as "FAA-2020-0686"; capitalized within a sentence, also with a letter or
# Roman number, though "A" and "I" are mostly words; …
BEFORE_NAME = frozenset("no nos sec secs ch art arts para ref refs tab cl reg ex app".split())
WITH_NUMBER = re.compile(r"[\w./–-]{0,24}\d")
LETTERS = re.compile(
    r"(?:[B-HJ-Z]|[IVXLC]{2,}|[AI](?=[.,;:)]|\s+(?:and|as|at|by|for|in|of|on|or|to|with)\b))(?![\w–-])"
)
# … and these only before a word that seldom is part of a name
SELDOM_LAST = frozenset("al inc ltd co corp jr sr dept est ave blvd bros".split())
STARTERS = frozenset(
    "The This That These Those It Its He She They We You I In On At For From As If When While After Before But And Or "
    "So However There Here His Her Their Our My A An To By With Since Although Because What Who How Why Where Which "
    "Such Not Some All Both Each Other Most Many Yet Then Thus Also One".split()
)
HEADING = re.compile(r"\s*#{1,6}\s")
BULLET = re.compile(rf"\s*[•‣◦▪●○■–—*+-]\s|{HEADING.pattern}")
NUMBERED = re.compile(r"\s*(?:\(?\d{1,3}[.)]|\(?[a-z]\)|[（(]?[一二三四五六七八九十]{1,3}[、.)）])\s*\S")


def sentences(text: str) -> list[Span]:
    """Find the sentences of a text, English, Chinese or both.

    A line's end is no sentence's end, but an empty line is, and so is every row of a table (cells joined by ``|`` or
    tabs), list item and Markdown heading.

    Returns:
        Spans without outer blanks, in order; together they hold every character that is not blank.
    """
    spans: list[Span] = []
    for start, end in _blocks(text):
        position = _after_blanks(text, start)
        for match in END.finditer(text, start, end):
            if _ends(text, position, match):
                spans.append((position, match.end()))
                position = _after_blanks(text, match.end())
        spans.append(_stripped(text, position, end))
    return [(start, end) for start, end in spans if start < end]


def _blocks(text: str) -> Iterator[Span]:
    """Yield paragraphs, rows and items, between which a sentence can't go on."""
    lines = text.split("\n")
    cells = [line.lstrip().startswith("|") or " | " in line or "\t" in line.strip() for line in lines]
    start = -1  # of the block that is open
    position, alone, listed, before = 0, False, False, ""
    for number, line in enumerate(lines):
        if not line.strip():
            if start >= 0:
                yield start, position
            start, alone, listed = -1, False, False
        else:
            # A line of a paragraph may begin with "3." by chance, though not after a full stop or another item
            numbered = NUMBERED.match(line) and (start < 0 or listed or before[-1] in ".:;!?。：；！？")
            item = bool(numbered or BULLET.match(line))
            # One line with a bar is more likely p(x | y)
            row = (
                cells[number] and not item and any(cells[max(number - 1, 0) : number] + cells[number + 1 : number + 2])
            )
            if start >= 0 and (item or row or alone):
                yield start, position
                start = -1
            if start < 0:
                start = position
            alone, listed, before = row or HEADING.match(line) is not None, listed or item, line.rstrip()
        position += len(line) + 1
    if start >= 0:
        yield start, len(text)


def _ends(text: str, start: int, match: re.Match[str]) -> bool:
    """Tell whether a sentence that begins at ``start``, no blank, ends with a match: a full stop and what closes it."""
    marks, end = match[0], match.end()
    if marks[0] not in ".!?…":
        return True
    following = NEXT.match(text, end).end()  # type: ignore[union-attr]  # it matches everywhere
    next_one = text[following : following + 1]
    if next_one.islower() or next_one in NOT_FIRST or next_one == "|":  # "dep. | arr." are cells of a row
        return False
    if not text[end].isspace():  # "好吗?好" and "结束.下", but not "3.5元"
        return marks[0] in "!?" or (marks[0] == "." and AFTER_CJK.match(text, match.start()) is not None)
    if not re.match(r"\.(?![.!?…])", marks):
        return True
    word = WORD_BEFORE.search(text[max(start, match.start() - 24) : match.start()])[0]  # type: ignore[index]
    at = match.start() - len(word)
    first = at == start
    if first and NUMBERING.fullmatch(word):
        return False  # "1. Introduction"
    known = word.lower()
    if known in NEVER_LAST or (known in BEFORE_NUMBER and next_one.isdigit()):
        return False
    if known in BEFORE_NAME and (
        WITH_NUMBER.match(text, following) or (word[0].isupper() and not first and LETTERS.match(text, following))
    ):
        return False
    if known in ("a.m", "p.m") or not (known in SELDOM_LAST or DOTTED.fullmatch(word)):
        return True
    return NEXT_WORD.match(text, following)[0] in STARTERS  # type: ignore[index]


def _after_blanks(text: str, start: int) -> int:
    return BLANKS.match(text, start).end()  # type: ignore[union-attr]  # it matches everywhere


def _stripped(text: str, start: int, end: int) -> Span:
    while start < end and text[start].isspace():
        start += 1
    while start < end and text[end - 1].isspace():
        end -= 1
    return start, end


# --- Chunks -----------------------------------------------------------------------------------------------------------

# Where a sentence that is too long is cut, best first: between cells, between clauses, and so on
SEAMS = [re.compile(pattern) for pattern in (r"\s(?=\|)", r"[;:]\s|[；：—]", r",\s|[，、]", r"\s")]


@dataclass(frozen=True)
class _Unit:
    """A sentence, row or heading, or a part of one that is too long.

    Attributes:
        start: In the document's text.
        end: Exclusive.
        tokens: Without those that the tokenizer puts around every text.
        opens: Whether a paragraph begins with it.
        heading: Whether it is one.
    """

    start: int
    end: int
    tokens: int
    opens: bool
    heading: bool


def split_document(
    document: Document, count_tokens: Callable[[str], int], *, max_tokens: int = 200, overlap: int = 30
) -> list[Chunk]:
    """Cut a document into chunks of whole sentences.

    A heading begins a chunk, unless that leaves the one before with less than a quarter of ``max_tokens``; paragraphs
    are kept whole where that leaves a chunk at least half full. A sentence longer than ``max_tokens`` is cut between
    its clauses, else its words. No chunk has more than 8 characters for each of ``max_tokens``, however few tokens
    they are. Chunks may cross pages.

    Args:
        document: What to cut.
        count_tokens: Tokens of a text as the embedder counts them, with those it puts around every text; called about
            once a sentence and once a chunk.
        max_tokens: Most tokens of a chunk, >= 16; not above what the embedder reads.
        overlap: Most tokens that a chunk repeats of the one before it, in [0, ``max_tokens`` / 2]: whole sentences of
            the same section.

    Returns:
        Chunks in order; every character of the text that is not blank is in at least one.

    Raises:
        InputError: A number is out of range.
    """
    check_range("max_tokens", max_tokens, LEAST_TOKENS)
    check_range("overlap", overlap, 0, max_tokens // 2)
    text, headings = document.text, sorted(document.headings)
    around = count_tokens("")

    def tokens(start: int, end: int) -> int:
        return max(count_tokens(text[start:end]) - around, math.ceil((end - start) / CHARACTERS_PER_TOKEN))

    units = list(_units(text, headings, tokens, max_tokens - around))

    def fits(first: int, last: int) -> bool:  # joined pieces may have more tokens, or the blanks between them
        start, end = units[first].start, units[last - 1].end
        return end - start <= CHARACTERS_PER_TOKEN * max_tokens and count_tokens(text[start:end]) <= max_tokens

    chunks: list[Chunk] = []
    fresh = first = 0  # the first unit that is in no chunk yet, and the first of this chunk
    while fresh < len(units):
        size = sum(unit.tokens for unit in units[first : fresh + 1])
        while size > max_tokens - around:
            size -= units[first].tokens
            first += 1
        last = _last(units, fresh, size, max_tokens - around)
        while first + 1 < last and not fits(first, last):
            first, last = (first + 1, last) if first < fresh else (first, last - 1)
        chunks.append(_chunk(document, headings, units[first:last]))
        room, before = overlap, first
        fresh = first = last
        while first - 1 > before and not units[first - 1].heading and units[first - 1].tokens <= room:
            first -= 1
            room -= units[first].tokens
        if fresh < len(units) and units[fresh].heading:
            first = fresh
    return chunks


def _last(units: list[_Unit], fresh: int, size: int, most: int) -> int:
    """Return where a chunk ends, exclusive, if it has ``size`` tokens with the unit ``fresh`` and may have ``most``."""
    last, paragraph = fresh + 1, 0
    while last < len(units) and size + units[last].tokens <= most:
        if units[last].heading and not units[last - 1].heading and 4 * size >= most:
            return last
        if units[last].opens and 2 * size >= most:
            paragraph = last
        size += units[last].tokens
        last += 1
    if last == len(units):
        return last
    if paragraph and not units[last].opens:
        last = paragraph
    body = last
    while body - 1 > fresh and units[body - 1].heading:  # it belongs to what follows
        body -= 1
    return last if units[body - 1].heading else body  # where all of them are headings, they share the chunk


def _chunk(document: Document, headings: list[Span], units: list[_Unit]) -> Chunk:
    start, end = units[0].start, units[-1].end
    body = next((unit for unit in units if not unit.heading), units[-1])
    above = bisect.bisect_right(headings, (body.start, body.end)) - 1
    heading = " ".join(document.text[slice(*headings[above])].split()) if above >= 0 else ""
    pages = document.pages[document.page_at(start).number - 1 : document.page_at(end - 1).number]
    numbers = tuple(page.number for page in pages if page.start < page.end)
    return Chunk(document.id, document.name, start, end, document.text[start:end], numbers, heading)


def _units(text: str, headings: list[Span], tokens: Callable[[int, int], int], most: int) -> Iterator[_Unit]:
    end = 0
    for first, last, heading in _parts(text, headings):
        spans = [_stripped(text, first, last)] if heading else sentences(text[first:last])
        for start, stop in spans:
            start, stop = (start, stop) if heading else (first + start, first + stop)
            opens = heading or text.count("\n", end, start) > 1
            for piece in _pieces(text, start, stop, tokens, most):
                yield _Unit(*piece, opens, heading)
                opens = False
            end = stop


def _parts(text: str, headings: list[Span]) -> Iterator[tuple[int, int, bool]]:
    """Yield the spans of headings, widened to whole lines, and those between them."""
    position = 0
    for start, end in headings:
        start = max(text.rfind("\n", position, start) + 1, position)
        end = text.find("\n", end)
        end = len(text) if end < 0 else end
        if start < end and text[start:end].strip():
            yield position, start, False
            yield start, end, True
            position = end
    yield position, len(text), False


def _pieces(
    text: str, start: int, end: int, tokens: Callable[[int, int], int], most: int
) -> Iterator[tuple[int, int, int]]:
    """Cut a span into pieces (start, end, tokens) of at most ``most`` tokens, guessing how long they may be."""
    size = tokens(start, end)
    while size > most and end - start > 1:
        cut = _seam(text, start, start + max((end - start) * most // size, 1))
        taken = tokens(start, cut)
        while taken > most and cut - start > 1:
            cut = _seam(text, start, start + (cut - start) * 3 // 4)
            taken = tokens(start, cut)
        yield (*_stripped(text, start, cut), taken)
        start = _stripped(text, cut, end)[0]
        size -= taken + tokens(cut, start)
        if size <= most:  # by the guess
            size = tokens(start, end)
    yield start, end, size


def _seam(text: str, start: int, limit: int) -> int:
    """Return the best place to cut before ``limit``: a seam in the second half, else between words, else there."""
    for seam in SEAMS:
        low = start + 1 if seam is SEAMS[-1] else (start + limit) // 2
        if ends := [match.end() for match in seam.finditer(text, low, limit)]:
            return ends[-1]
    return limit
