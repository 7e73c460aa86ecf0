"""Quotes for answers: found, and checked so that each ``[n]`` stands in its document word for word, or goes.

:func:`weigh` finds the sentence or two among the hits that most likely hold an answer, and how likely they do.

A model's ``[2]`` points at the second passage it was shown. What it claims there is looked up in that passage: words in
quotation marks must stand in it as they are; else the sentence, or two, with most of the claim's words is the quote, if
that is enough of them and all its numbers. Nothing is guessed: a mark without such a quote is taken out and counted.

    stream = CitationStream(hits, library.document)
    text = stream.feed("The fare is £9.40 [1]. Dogs travel free [7].") + stream.close()
    stream.citations[0].quote, stream.dropped  # → the sentence with the fare, 1
"""

from __future__ import annotations

import functools
import html
import json
import math
import re
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from qa_system.document_processor.pdf_reader import Document, Limits, page_picture
from qa_system.document_processor.text_splitter import Chunk, sentences
from qa_system.retrieval.dense_retrieval import MissingDocumentError, reads
from qa_system.retrieval.sparse_retrieval import STOP_CHARACTERS, Hit, tokenize

if TYPE_CHECKING:
    from langchain_core.embeddings import Embeddings
    from PIL.Image import Image

WEIGHTS = Path(__file__).parents[1] / "builtin" / "evidence.json"
READ = 5  # hits whose sentences are weighed

ENOUGH = 0.6  # share of a claim's words that its quote must have
MARK = re.compile(r"[\[【]\s*(\^?\d{1,3}(?:\s*[,，、;；–-]\s*\^?\d{1,3})*)\s*[\]】]")
# With the blanks before; a run of them is tried once: (?<!…)
MARKS = re.compile(rf"(?<!\s)\s*{MARK.pattern}")
BEGUN = re.compile(r"(?<!\s)\s*(?:[\[【][\d\s^,，、;；–-]*)?$")  # what may yet become a mark, however long
QUOTED = re.compile(r"\"[^\"]*\"|[“”„][^“”„]*[“”]|[«»][^«»]*[«»]|[「『][^「」『』]*[」』]")
LEAST_QUOTED = 8  # characters; shorter ones are names and words so called
WORD = re.compile(r"[\u3400-\u9fff]|[^\W\d_]+|\d+")
# Of questions
HOLLOW = STOP_CHARACTERS | frozenset("什怎谁哪几多少有要会能可以请问我你您他她它这那个一不也都或及被把从到对为")
ENDED = re.compile(r"[.!?…。！？；;:：][\"'”’)\]）」』]*$")
NUMBER = re.compile(r"\d+(?:[.,:]\d+)*")
ALIKE = str.maketrans({**dict.fromkeys("“”„«»", '"'), **dict.fromkeys("‘’‚`´", "'"), **dict.fromkeys("‐‑‒–—−", "-")})


@dataclass(frozen=True)
class Citation:
    """A quote and where it stands: ``document.text[start:end] == quote``.

    Attributes:
        number: As in the answer's ``[number]``, from 1.
        document_id: SHA-256 of the file.
        document_name: Its name.
        page: Number of the page on which the quote begins; 1 is the first sheet.
        page_label: What is printed on that page.
        start: In the document's text.
        end: Exclusive.
        quote: Those characters.
    """

    number: int
    document_id: str
    document_name: str
    page: int
    page_label: str
    start: int
    end: int
    quote: str

    @classmethod
    def of(cls, number: int, document: Document, start: int, end: int) -> Citation:
        """Cite a span of a document, without the blanks around it."""
        quote = document.text[start:end]
        start += len(quote) - len(quote.lstrip())
        quote = quote.strip()
        page = document.page_at(start)
        return cls(number, document.id, document.name, page.number, page.label, start, start + len(quote), quote)

    def to_dict(self) -> dict[str, Any]:
        """Return the fields by name."""
        return asdict(self)


def verify(citation: Citation, document: Document) -> bool:
    """Tell whether a quote stands word for word where its citation says: document, page, characters."""
    return (
        bool(citation.quote)
        and citation.document_id == document.id
        and 0 <= citation.start < citation.end <= len(document.text)
        and document.text[citation.start : citation.end] == citation.quote
        and document.page_at(citation.start).number == citation.page
    )


def locate(text: str, quote: str, start: int = 0, end: int | None = None) -> tuple[int, int] | None:
    """Find a quote in a text word for word; only blanks, case and the shapes of quotation marks and dashes may differ.

    Args:
        text: To look in.
        quote: To look for.
        start: Where to begin.
        end: Where to stop, exclusive.

    Returns:
        Its first span, or None.
    """
    words = quote.translate(ALIKE).split()
    if not words:
        return None
    pattern = re.compile(r"\s+".join(map(re.escape, words)), re.I)
    found = pattern.search(text.translate(ALIKE), start, end or len(text))
    return found.span() if found else None


def supporting_span(claim: str, passage: str, question: str = "") -> tuple[int, int] | None:
    """Find what a passage says for a claim: the words it has in quotation marks, else the sentence or two most like it.

    Args:
        claim: A sentence or a part of one.
        passage: The text of the passage it cites.
        question: What it answers, if it is too short to be told from others like it: a word of it must stand there.

    Returns:
        A span of the passage; None where quoted words, of at least :data:`LEAST_QUOTED` characters, are not there; or
        where fewer than :data:`ENOUGH` of the claim's words, or not all its numbers, stand in any two sentences.
    """
    quoted = [words[1:-1].strip(" .,;，。") for words in QUOTED.findall(claim) if len(words) >= LEAST_QUOTED + 2]
    if quoted:
        spans = [locate(passage, words) for words in quoted]
        return max((s for s in spans if s), key=lambda s: s[1] - s[0], default=None) if all(spans) else None
    wanted, numbers, asked = set(tokenize(claim)), set(NUMBER.findall(claim)), set(tokenize(question))
    parts = sentences(passage)
    best, best_share = None, ENOUGH
    for length in (1, 2):  # two only where they have more
        for first, last in zip(parts, parts[length - 1 :], strict=False):
            span = first[0], last[1]
            said = set(tokenize(passage[slice(*span)]))
            share = len(wanted & said) / max(len(wanted), 1)
            fits = numbers <= set(NUMBER.findall(passage[slice(*span)])) and (not asked or asked & said)
            if fits and (share > best_share or best is None and share == ENOUGH):
                best, best_share = span, share
    return best


# --- Evidence ---------------------------------------------------------------------------------------------------------

FEATURES = ("sentence", "passage", "words", "words_around", "two")
SIGNS = ("sentence", "passage", "kind", "name", "contrary")  # of confidence

HAN = re.compile(r"[\u3400-\u9fff]")
# Of English questions and quotes
ASKED = re.compile(r"\b(?:what|which|who|whom|whose|when|where|why|how)\b", re.I)
ASKED_WHO = re.compile(r"who", re.I)
ASKED_NUMBER = re.compile(
    r"when|how (?:many|much|long|often|far|old|tall|high|big|large|fast|deep|heavy|early)\b"
    r"|(?:what|which) (?:percentage|share|year|century|decade|date|time|age|number)\b", re.I,
)  # fmt: skip
COUNT = re.compile(
    rf"{NUMBER.pattern}|\b(?i:(?:one|two|three|four|five|six|seven|eight|nine|ten|eleven|twelve|\w+teen|half|quarter|dozen"
    r"|once|twice|single|(?:twen|thir|for|fif|six|seven|eigh|nine)ty|hundred|thousand|[mb]illion|century)(?:s|th)?\b"
    r"|centuries\b|(?:mon|tues|wednes|thurs|fri|satur|sun)days?\b|(?:noon|midnight|spring|summer|autumn|winter)\b)"
    r"|\b(?:January|February|March|April|May|June|July|August|September|October|November|December)\b"
)
NAME = re.compile(r"(?<!^)(?<![.!?] )\b[A-Z][^\W_]*")  # at a sentence's start every word is in capitals
NOT = re.compile(r"\b(?:not|no|never|neither|nor|none|nobody|nothing|cannot)\b|n['’]t\b", re.I)
DENIED = re.compile(rf"{NOT.pattern}|\bwithout\b|\b(?:except|only|fail|lack|refus|forbid|prohibit)", re.I)
# "whether or not", and what a condition says of the case, not of the answer
ASIDE = re.compile(r"\bor (?:\w+ )?not\b|\b(?:if|unless|because|while|(?<=\w )when)\b[^,?]*", re.I)
OPPOSITES = [
    frozenset(pair.split("/"))
    for pair in "most/least more/less first/last before/after upper/lower best/worst largest/smallest longest/shortest "
    "highest/lowest oldest/newest increase/decrease always/never".split()
]
TURNED = re.compile(r"(?:un|non)(?=\w{4})|(?:in|im|il|ir)(?=\w{6})")  # unknown, informal; not income, imports


@dataclass(frozen=True)
class Evidence:
    """A quote for a question: a sentence, two of them, or the row of a table.

    Attributes:
        hit: Index of its hit.
        start: In the text of the hit's chunk.
        end: Exclusive.
        header: Span of the row with the names of the columns, if it is the row of a table that has one.
        features: By the names of :data:`FEATURES`.
        confidence: Probability that it holds the answer, in [0, 1]; see :func:`weigh`.
    """

    hit: int = -1
    start: int = 0
    end: int = 0
    header: tuple[int, int] | None = None
    features: tuple[float, ...] = ()
    confidence: float = 0.0


@functools.cache
def weights() -> dict[str, Any]:
    """Return what ``qa_system.builtin.fit_evidence`` learned."""
    loaded: dict[str, Any] = json.loads(WEIGHTS.read_text(encoding="utf-8"))
    return loaded


def threshold_of_refusal() -> float:
    """Return the confidence below which an answer is refused, unless said otherwise."""
    return float(weights()["confidence"]["threshold"])


def candidates(question: str, hits: Sequence[Hit], embedding: Embeddings) -> list[Evidence]:
    """List every sentence, every two neighbors and every row of the first :data:`READ` hits, with what speaks for them.

    The features: cosine of the question with the sentence (the nearer of two); with the whole passage; share of the
    question's words in the sentences; in the passage; 1 for two sentences, 0 for one. A row is read with its header.
    Both cosines are 0 where the embedding's model does not know the question's characters.
    """
    known = reads(embedding, question)
    asked = np.asarray(embedding.embed_query(question), dtype=np.float32) * known
    said = tokenize(question)
    wanted = {word for word in said if not HOLLOW & set(word)} or set(said)
    found = []
    for number, hit in enumerate(hits[:READ]):
        parts = _parts(hit.chunk.text, embedding)
        cosines = [float(part.vector @ asked) for part in parts]
        words = [wanted & part.words for part in parts]
        passage = hit.scores.get("dense", max(cosines, default=0.0)) * known
        around = len(set().union(*words)) / max(len(wanted), 1)
        for length in (1, 2):
            for first, last in zip(range(len(parts)), range(length - 1, len(parts)), strict=False):
                between = hit.chunk.text[parts[first].end : parts[last].start]
                if length == 2 and (parts[first].row or parts[last].row or "\n\n" in between):
                    continue  # neighbors are of one paragraph
                if length == 1 and parts[first].label and not all(part.label for part in parts):
                    continue
                share = len(words[first] | words[last]) / max(len(wanted), 1)
                features = (max(cosines[first], cosines[last]), passage, share, around, float(length - 1))
                header = parts[first].header
                found.append(Evidence(number, parts[first].start, parts[last].end, header, features))
    return found


def doubts(question: str, quote: str, passage: str) -> tuple[float, float, float]:
    """Say what speaks against a quote though its cosines are high, for these hardly change with a name or a "not".

    Args:
        question: In English; of what has Chinese characters nothing is said.
        quote: A sentence or two.
        passage: Where it stands.

    Returns:
        Each 1 or 0:

        - kind: the question asks for a number, a time or a person, and the quote names none but what the question
          says, so the answer is not in it;
        - name: a name or number of the question does not stand in the passage, so this may be about another;
        - contrary: the question is negated and the quote is not, or one has the opposite of the other's word
          ("least" and "most", "known" and "unknown"), so it tells of what was not asked. To what can be answered with
          yes or no, such a quote is an answer.
    """
    if HAN.search(question + quote):
        return 0.0, 0.0, 0.0
    asked = ASKED.search(question)
    kind = False
    if asked and ASKED_NUMBER.match(question, asked.start()):
        kind = not _lowered(COUNT, quote) - _lowered(COUNT, question)
    elif asked and ASKED_WHO.match(question, asked.start()):
        kind = all(found.lower() in question.lower() for found in NAME.findall(quote))
    names = {term for found in NAME.findall(question) for term in tokenize(found) if not question.isupper()}
    name = not (names <= set(tokenize(passage)) and _lowered(NUMBER, question) <= _lowered(NUMBER, passage))
    return float(kind), float(name), float(asked is not None and _contrary(question, quote))


def _lowered(pattern: re.Pattern[str], text: str) -> set[str]:
    return {found.lower() for found in pattern.findall(text)}


def _contrary(question: str, quote: str) -> bool:
    """Tell whether one is negated and the other is not, or they have words of opposite sense; both cancel out."""
    question = ASIDE.sub("", question)
    ours, theirs = (set(re.findall(r"[^\W\d_]+", re.sub(r"\bnon[ -]", "non", t.lower()))) for t in (question, quote))

    def turned(words: set[str], others: set[str]) -> bool:
        return any(TURNED.match(word) and TURNED.sub("", word, count=1) in others - words for word in words - others)

    negated = bool(NOT.search(question)) or turned(ours, theirs)
    # A "not" in the quote alone may be about something else
    denied = turned(theirs, ours) or negated and bool(DENIED.search(quote))
    opposite = any(pair & ours - theirs and pair & theirs - ours for pair in OPPOSITES)
    return (negated != denied) != opposite


def signs(question: str, evidence: Evidence, hits: Sequence[Hit]) -> tuple[float, ...]:
    """Return what confidence in a quote is told from, by the names of :data:`SIGNS`."""
    text = hits[evidence.hit].chunk.text
    header = text[slice(*evidence.header)] if evidence.header else ""
    return *evidence.features[:2], *doubts(question, f"{header}\n{text[evidence.start : evidence.end]}".strip(), text)


def weigh(question: str, hits: Sequence[Hit], embedding: Embeddings, follow_up: str = "") -> Evidence:
    """Find the quote that most likely answers a question.

    A linear model of the features chooses it. Logistic regression on its :func:`signs` says how likely it holds an
    answer at all (Platt, 1999). Both were fitted by ``qa_system.builtin.fit_evidence``. Where there are no cosines, as
    for Chinese questions to an English model, it is the share of the question's words that the passage has.

    Args:
        question: Any text.
        hits: Best first.
        embedding: That of the library.
        follow_up: The question as it was asked, if ``question`` is what it was made of: each counts half, but for
            the doubts, which are of what is asked now.

    Returns:
        The best candidate with its confidence; one of confidence 0 where there is none.
    """
    found = candidates(question, hits, embedding)
    if not found:
        return Evidence()
    if follow_up.strip() not in ("", question):
        pairs = zip(found, candidates(follow_up, hits, embedding), strict=True)
        found = [replace(a, features=tuple(np.mean([a.features, b.features], axis=0))) for a, b in pairs]
    learned = weights()
    scores = np.array([evidence.features for evidence in found]) @ np.array(learned["choice"])
    best = found[int(scores.argmax())]
    if not reads(embedding, question):
        return replace(best, confidence=best.features[FEATURES.index("words_around")])
    of_it = signs(follow_up.strip() or question, best, hits)
    logit = float(np.dot(of_it, learned["confidence"]["weights"])) + learned["confidence"]["bias"]
    return replace(best, confidence=1 / (1 + math.exp(-logit)))


@dataclass(frozen=True)
class _Part:
    """A sentence of a passage, or the row of a table, as it is compared with questions."""

    start: int
    end: int
    row: bool
    header: tuple[int, int] | None
    label: bool  # a heading, a caption or a table's first row: it names what it does not say
    words: frozenset[str]
    vector: NDArray[np.float32]


_read: OrderedDict[tuple[str, str], list[_Part]] = OrderedDict()
_read_lock = threading.Lock()
MOST_READ = 2_000  # passages whose sentences stay embedded, some 20 kB each


def _parts(text: str, embedding: Embeddings) -> list[_Part]:
    """Return a passage's sentences and rows, from memory where it was read lately."""
    key = (str(getattr(embedding, "name", id(embedding))), text)
    with _read_lock:
        if key in _read:
            _read.move_to_end(key)
            return _read[key]
    spans = [span for span in sentences(text) if re.search(r"\w", text[slice(*span)])] or [(0, len(text))]
    shown, rows, headers, labels = [], [], [], []
    header = None
    for (start, end), following in zip(spans, [*spans[1:], (len(text), len(text))], strict=True):
        row = " | " in text[start:end]
        if not row:
            header = None
        shown.append(text[start:end] if not row or header is None else f"{text[slice(*header)]}\n{text[start:end]}")
        rows.append(row)
        headers.append(header)
        head = row and header is None and " | " in text[slice(*following)]
        alone = not row and "\n\n" in text[end : following[0]] and not ENDED.search(text[start:end])
        labels.append(head or alone and len(text[start:end].split()) <= 12)
        header = (start, end) if row and header is None else header
    vectors = np.asarray(embedding.embed_documents(shown), dtype=np.float32)
    words = [frozenset(tokenize(one)) for one in shown]
    parts = [_Part(*span, *rest) for span, *rest in zip(spans, rows, headers, labels, words, vectors, strict=True)]
    with _read_lock:
        _read[key] = parts
        if len(_read) > MOST_READ:
            _read.popitem(last=False)
    return parts


# --- Citations --------------------------------------------------------------------------------------------------------


def places(mark: str) -> list[int]:
    """Return the numbers that a mark names: ``1, 3`` is 1 and 3, ``1-3`` also what lies between."""
    spans = re.findall(r"(\d+)(?:\s*[–-]\s*\^?(\d+))?", mark)
    return [place for first, last in spans for place in range(int(first), int(last or first) + 1)]


class CitationStream:
    """An answer as it is written: text goes in as it comes, and comes out with checked citations, never half a mark.

    Args:
        hits: What the marks of the answer count, from 1.
        document_of: Gives the document of an id.

    Attributes:
        citations: The verified ones, numbered as they came.
        dropped: How many marks were taken out.
        written: What came out so far.
    """

    def __init__(self, hits: Sequence[Hit], document_of: Callable[[str], Document]) -> None:
        self.hits = hits
        self.document_of = document_of
        self.citations: list[Citation] = []
        self.dropped = 0
        self._held = ""
        self.written = ""

    def feed(self, text: str) -> str:
        """Take more of the answer, and return what of it is certain."""
        self._held += text
        out = ""
        while mark := MARK.search(self._held):
            before, self._held = self._held[: mark.start()], self._held[mark.end() :]
            blanks = before[len(before.rstrip()) :]
            self.written += before.rstrip()
            numbers = [self._number(place) for place in places(mark[1])]
            marks = "".join(f"[{number}]" for number in dict.fromkeys(filter(None, numbers)))
            self.written += blanks + marks if marks else ""
            out += before.rstrip() + (blanks + marks if marks else "")
        begun = BEGUN.search(self._held)
        certain = self._held[: begun.start()] if begun else self._held
        self._held = self._held[len(certain) :]
        self.written += certain
        return out + certain

    def close(self) -> str:
        """Return the rest, which is empty: what is held back are blanks, or a mark that was never finished."""
        self._held = ""
        return ""

    def cite(self, chunk: Chunk, start: int, end: int) -> int | None:
        """Add a citation of a span of a chunk's text, or find the one that is there.

        Returns:
            Its number; None, and it is counted as dropped, where it is not verified, or its document was just deleted.
        """
        try:
            document = self.document_of(chunk.document_id)
        except MissingDocumentError:
            self.dropped += 1
            return None
        citation = Citation.of(len(self.citations) + 1, document, chunk.start + start, chunk.start + end)
        for there in self.citations:
            if (there.document_id, there.start, there.end) == (citation.document_id, citation.start, citation.end):
                return there.number
        if not verify(citation, document):
            self.dropped += 1
            return None
        self.citations.append(citation)
        return citation.number

    def _number(self, place: int) -> int | None:
        """Return the number of the citation for a mark ``[place]`` after what was written."""
        span = None
        if 1 <= place <= len(self.hits):
            chunk = self.hits[place - 1].chunk
            claims = self._claims()
            span = next(filter(None, (supporting_span(claim, chunk.text) for claim in claims)), None)
        if span is None:
            self.dropped += 1
            return None
        return self.cite(chunk, *span)

    def _claims(self) -> list[str]:
        """Return what the mark may stand for: the words since the last mark, if they are a few, and the sentence."""
        spans = sentences(self.written)
        sentence = self.written[slice(*spans[-1])] if spans else ""
        since = MARK.split(sentence)[-1]
        sentence = MARK.sub("", sentence)
        return [since, sentence] if len(tokenize(since)) >= 3 and since != sentence else [sentence]


# --- To look at -------------------------------------------------------------------------------------------------------


def highlighted_html(text: str, spans: Iterable[tuple[int, int]]) -> str:
    """Return a text as HTML, escaped, with spans in ``<mark>``; spans that overlap are one."""
    out, position = "", 0
    for start, end in sorted(spans):
        start, end = max(start, position), min(end, len(text))
        if start < end:
            joined = start == position and out.endswith("</mark>")
            out = out.removesuffix("</mark>") if joined else out + html.escape(text[position:start]) + "<mark>"
            out += html.escape(text[start:end]) + "</mark>"
            position = end
    return out + html.escape(text[position:])


def matching_spans(question: str, text: str) -> list[tuple[int, int]]:
    """Find the words of a text that a question has too, as the search by words sees them."""
    wanted = set(tokenize(question))
    return [word.span() for word in WORD.finditer(text) if wanted & set(tokenize(word[0]))]


def in_context(citation: Citation, document: Document, around: int = 200) -> str:
    """Return the quote as HTML, marked, with so many characters before and after it on its page."""
    page = document.page_at(citation.start)
    start = max(citation.start - around, min(page.start, citation.start))
    end = min(citation.end + around, max(page.end, citation.end))
    text = highlighted_html(document.text[start:end], [(citation.start - start, citation.end - start)])
    return f"{'… ' if start > page.start else ''}{text}{' …' if end < page.end else ''}"


def as_text(text: str, citations: Sequence[Citation]) -> str:
    """Return an answer with its quotes below it, for a terminal."""
    lines = [text, ""] if citations else [text]
    for citation in citations:
        quote = " ".join(citation.quote.split())
        name = " ".join(citation.document_name.split())
        lines.append(f"[{citation.number}] {name}, page {citation.page_label}: “{quote}”")
    return "\n".join(lines)


def page_image(
    file: str | Path, document: Document, citation: Citation, *, password: str = "", width: int = 1000,
    limits: Limits = Limits(),
) -> Image:  # fmt: skip
    """Draw the page of a citation with the quote boxed.

    Args:
        file: The PDF.
        document: As it was read.
        citation: Of it; its first page is drawn.
        password: Of the PDF.
        width: Of the image, in pixels.
        limits: What drawing may cost; it happens in a child process, as reading does.

    Returns:
        An RGB image.

    Raises:
        DocumentError: The page can't be drawn.
    """
    from PIL import ImageDraw

    image, boxes = page_picture(file, document.pages[citation.page - 1], citation.start, citation.end,
                                password=password, width=width, limits=limits)  # fmt: skip
    draw = ImageDraw.Draw(image, "RGBA")
    for left, top, right, bottom in boxes:
        draw.rectangle(
            (left - 2, top - 2, right + 2, bottom + 2), fill=(255, 214, 0, 70), outline=(214, 120, 0), width=2
        )
    return image
