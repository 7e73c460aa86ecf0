"""From raw text to what the encoder reads, the same in training and in serving.

Long texts are never cut silently: ``head_tail`` keeps both ends, where reviewers say what they think (Sun et al., 2019,
arXiv:1905.05583), ``windows`` reads everything in overlapping pieces whose logits are averaged, and both are counted.
"""

from __future__ import annotations

import hashlib
import html
import logging
import re
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from datasets import Dataset

LongTexts = Literal["head_tail", "windows"]
logger = logging.getLogger(__name__)

TAG = re.compile(r"</?[a-zA-Z][^<>]{0,200}>")
# Of ASCII alone: Chinese goes on right behind a link or a name.
LINK = re.compile(r"(?:https?://|www\.)[!-~]+", re.I)
USER = re.compile(r"(?<![A-Za-z0-9_@./])@[A-Za-z0-9_]+")
ESCAPE = re.compile(r"\\u([0-9a-fA-F]{4})")
# Also what is never seen: soft hyphens, marks of direction. U+200C and U+200D stay: emoji, Persian and Hindi need them.
CONTROL = re.compile(
    r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f\xad\u200b\u200e\u200f\u202a-\u202e\u2060-\u2064\u2066-\u206f\ufeff]"
)
INVISIBLE = ("Cf", "Mn", "Me", "Mc", "Zs")  # alone; combining marks need a letter


def clean(text: str) -> str:
    r"""Remove what carries no opinion: markup, addresses, names of users; emoji stay.

    ``<br />`` and other tags become spaces, ``&amp;`` and written-out ``\u2019`` their characters, links ``http`` and
    users ``@user`` (as in TweetEval, Barbieri et al., 2020, arXiv:2010.12421), and runs of blanks one. A text in which
    nothing can be seen becomes empty.
    """
    text = ESCAPE.sub(lambda match: chr(int(match[1], 16)), text)
    text = text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")  # two escapes may be one emoji
    text = TAG.sub(" ", html.unescape(html.unescape(text)))
    text = " ".join(USER.sub("@user", LINK.sub("http", CONTROL.sub("", text))).split())
    return text if any(unicodedata.category(letter) not in INVISIBLE for letter in text) else ""


@dataclass(frozen=True)
class Encoding:
    """How texts become tokens; saved with every model, so serving can't differ from training.

    Attributes:
        max_length: Most tokens the encoder sees at once, special ones included.
        long_texts: What happens to longer texts.
        head: Tokens that ``head_tail`` keeps from the beginning; the rest of ``max_length`` comes from the end.
        overlap: Tokens that two neighbouring ``windows`` share.
    """

    max_length: int = 256
    long_texts: LongTexts = "head_tail"
    head: int = 64
    overlap: int = 32


@dataclass(frozen=True)
class Encoded:
    """A batch of texts as pieces that the encoder reads.

    Attributes:
        input_ids: Token numbers of each piece, special tokens included.
        owners: For each piece, the index of its text.
        lengths: Tokens of each whole text, special tokens included.
    """

    input_ids: list[list[int]]
    owners: list[int]
    lengths: list[int]


def encode(texts: Sequence[str], tokenizer: Any, encoding: Encoding) -> Encoded:
    """Clean and tokenize texts.

    Args:
        texts: Raw.
        tokenizer: A tokenizer of transformers.
        encoding: How.

    Returns:
        One piece a text, or several of a long one with ``windows``.
    """
    rows = tokenizer([clean(text) for text in texts], verbose=False)["input_ids"]
    before, after = special_tokens(tokenizer)
    extra = before + after
    pieces: list[list[int]] = []
    owners: list[int] = []
    for index, row in enumerate(rows):
        for places in cut(len(row) - extra, encoding.max_length - extra, encoding):
            pieces.append(row[:before] + [row[before + i] for i in places] + row[len(row) - after :])
            owners.append(index)
    return Encoded(pieces, owners, [len(row) for row in rows])


def special_tokens(tokenizer: Any) -> tuple[int, int]:
    """Return how many special tokens a tokenizer writes before and after a text."""
    mask = tokenizer("a", return_special_tokens_mask=True)["special_tokens_mask"]
    return mask.index(0), mask[::-1].index(0)


def cut(length: int, room: int, encoding: Encoding) -> list[list[int]]:
    """Return which tokens of a text each of its pieces holds.

    Args:
        length: Tokens of the text.
        room: Most tokens of a piece.
        encoding: What to do with a longer text.
    """
    if length <= room:
        return [list(range(length))]
    if encoding.long_texts == "head_tail":
        head = min(encoding.head, room)
        return [[*range(head), *range(length - (room - head), length)]]
    step = room - min(encoding.overlap, room - 1)
    return [list(range(start, min(start + room, length))) for start in range(0, length - room + step, step)]


def describe_long_texts(lengths: Sequence[int], encoding: Encoding) -> str:
    """Say how many texts are longer than the encoder reads at once, and what became of them; empty if none."""
    long = [length for length in lengths if length > encoding.max_length]
    if not long:
        return ""
    share = f"{len(long):,} of {len(lengths):,} texts are longer than {encoding.max_length} tokens"
    if encoding.long_texts == "windows":
        return f"{share}: read whole, in windows that share {encoding.overlap} tokens"
    left_out = sum(length - encoding.max_length for length in long) / sum(lengths)
    head = min(encoding.head, encoding.max_length)
    tail = encoding.max_length - head
    return f"{share}: read at both ends ({head} and {tail} tokens); {left_out:.0%} of all tokens are left out"


def tokenize_split(rows: Dataset, tokenizer: Any, encoding: Encoding, cache: Path | None = None) -> Dataset:
    """Tokenize one split for the trainer, once: a second run with the same texts and settings reads it from disk.

    Args:
        rows: Columns ``text`` and ``label``.
        tokenizer: A tokenizer of transformers.
        encoding: How.
        cache: Folder to keep the result in; None keeps nothing.

    Returns:
        Columns ``input_ids``, ``labels``, ``length`` and ``owner``, the number of the text in ``rows``; a row a piece.
        Each window of a text has the text's label.
    """

    def convert(batch: dict[str, list[Any]], numbers: list[int]) -> dict[str, list[Any]]:
        encoded = encode(batch["text"], tokenizer, encoding)
        return {
            "input_ids": encoded.input_ids,
            "labels": [batch["label"][owner] for owner in encoded.owners],
            "length": [len(piece) for piece in encoded.input_ids],
            "owner": [numbers[owner] for owner in encoded.owners],
            "whole_length": [encoded.lengths[owner] for owner in encoded.owners],
        }

    name = None
    if cache:
        key = hashlib.sha256(Path(__file__).read_bytes())  # another cleaning, other tokens
        backend = getattr(tokenizer, "backend_tokenizer", None)
        vocabulary = backend.to_str() if backend else f"{type(tokenizer)} {sorted(tokenizer.get_vocab().items())}"
        key.update(f"{encoding} {vocabulary}".encode("utf-8", "surrogatepass"))
        for text, label in zip(rows["text"], rows["label"], strict=True):
            key.update(f"{len(text)} {text} {label}".encode("utf-8", "surrogatepass"))
        cache.mkdir(parents=True, exist_ok=True)
        name = str(cache / f"{key.hexdigest()[:24]}.arrow")
    tokenized = rows.map(
        convert,
        batched=True,
        with_indices=True,
        remove_columns=rows.column_names,
        cache_file_name=name,
        desc="tokenize",
    )
    note = describe_long_texts(tokenized["whole_length"], encoding)
    if note:
        logger.info("%s", note)
    return tokenized.remove_columns("whole_length")
