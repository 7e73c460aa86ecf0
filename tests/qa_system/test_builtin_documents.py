"""The embedded documents are what their texts say, and the questions on them can be answered, or can't."""

import json
import re
from pathlib import Path

import pytest

from qa_system.builtin.make_documents import TEXTS, chinese_font, read_text, set_pages, to_pdf, wrap
from qa_system.document_processor.pdf_reader import Document, read_document

DOCUMENTS = TEXTS.parent / "documents"
SCAN = "harbour-letter-1978.pdf"
ROWS = [json.loads(line) for line in (TEXTS.parent / "questions.jsonl").read_text(encoding="utf-8").splitlines()]


@pytest.fixture(scope="module")
def documents() -> dict[str, Document]:
    return {path.name: read_document(path) for path in DOCUMENTS.glob("*.pdf") if path.name != SCAN}


def plain(text: str) -> str:
    return " ".join(text.split())


def test_every_text_has_its_pdf_and_all_are_small() -> None:
    pdfs = list(DOCUMENTS.iterdir())
    assert sorted(path.stem for path in pdfs) == sorted(path.stem for path in TEXTS.glob("*.md"))
    assert sum(path.stat().st_size for path in pdfs) < 1_000_000


@pytest.mark.parametrize("name", ["fares-2025", "battery-ageing-note", "fleet-handbook"])
def test_the_script_renders_the_pdfs_that_are_committed(
    name: str, documents: dict[str, Document], tmp_path: Path
) -> None:
    meta, blocks = read_text(TEXTS / f"{name}.md")
    (tmp_path / "new.pdf").write_bytes(to_pdf(meta, set_pages(meta, blocks)))
    again, committed = read_document(tmp_path / "new.pdf"), documents[f"{name}.pdf"]
    assert again.text == committed.text
    assert [page.label for page in again.pages] == [page.label for page in committed.pages]


def test_every_paragraph_of_a_text_is_read_from_its_pdf(documents: dict[str, Document]) -> None:
    lost = total = 0
    for name, document in documents.items():
        if name == "passenger-guide-zh.pdf":
            continue
        text = re.sub(r"\W", "", document.text)
        _, blocks = read_text(TEXTS / f"{Path(name).stem}.md")
        for kind, block in blocks:
            if kind == "paragraph":
                for sentence in block.replace("\u00ad", "").split(". "):
                    total += 1
                    lost += re.sub(r"\W", "", sentence) not in text
    assert total > 250
    assert lost / total < 0.08  # those that a page or column divides have its head or foot within


def test_questions_are_of_every_kind_and_their_answers_stand_on_their_pages(documents: dict[str, Document]) -> None:
    assert len({row["id"] for row in ROWS}) == len(ROWS)
    known = [row for row in ROWS if row["answerable"]]
    assert len(known) >= 60
    assert len(ROWS) - len(known) >= 15
    assert {row["document"] for row in known} == {path.name for path in DOCUMENTS.iterdir()}
    assert sum(bool(re.search("[\u4e00-\u9fff]", row["question"])) for row in ROWS) >= 8
    for row in known:
        if row["document"] != SCAN:
            document = documents[row["document"]]
            page = document.pages[row["page"] - 1]
            text = plain(document.text[page.start : page.end])
            assert all(plain(answer) in text for answer in row["answers"]), row
    assert all(not row["answers"] and row["document"] is None for row in ROWS if not row["answerable"])


@pytest.mark.slow
def test_the_scan_is_read_and_its_questions_have_answers() -> None:
    letter = read_document(DOCUMENTS / SCAN)
    assert {page.method for page in letter.pages} == {"ocr"}
    for row in (row for row in ROWS if row["document"] == SCAN):
        page = letter.pages[row["page"] - 1]
        assert plain(row["answers"][0]) in plain(letter.text[page.start : page.end]), row


def test_one_document_tries_to_give_orders_and_one_has_pages_of_two_kinds(documents: dict[str, Document]) -> None:
    assert "Ignore all previous instructions" in plain(documents["agents-newsletter.pdf"].text)
    assert [page.label for page in documents["fleet-handbook.pdf"].pages] == ["i", "ii", "1", "2", "3"]
    assert documents["fleet-handbook.pdf"].metadata["title"] == "Fleet Handbook"


def test_the_chinese_guide_is_readable(documents: dict[str, Document]) -> None:
    text = documents["passenger-guide-zh.pdf"].text
    assert "狗可以免费上船" in text
    assert "儿童（5至15岁） | 4.70英镑 | 8.60英镑" in text


def test_lines_break_between_words_and_where_a_soft_hyphen_lets_them() -> None:
    assert wrap("of measure\u00adment of it", 75, "DejaVuSans", 10) == ["of measure-", "ment of it"]
    assert wrap("of measurement of it", 75, "DejaVuSans", 10) == ["of", "measurement", "of it"]
    if chinese_font():
        assert all(not line.startswith(("，", "。")) for line in wrap("狗可以免费上船，但必须拴好。", 60, "zh", 10))
