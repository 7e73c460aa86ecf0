"""Documents of every kind and every state: their text, its map to the file's characters, and errors with a name."""

import hashlib
import io
import os
import random
import resource
import signal
import stat
import subprocess
import sys
import time
import zipfile
import zlib
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qa_system.document_processor import pdf_reader as module
from qa_system.document_processor.pdf_reader import (
    MODULE,
    Box,
    DamagedError,
    Document,
    DocumentError,
    EmptyError,
    LimitError,
    Limits,
    Page,
    PasswordError,
    UnsupportedError,
    page_picture,
    read,
    read_document,
    reading_order,
)
from shared.benchmark import Skip, data_folder
from shared.config import run_commands
from shared.errors import InputError, MissingPackageError

pytest.importorskip("pypdfium2")

# --- PDFs made here ---------------------------------------------------------------------------------------------------

A4 = (595, 842)
LIGATURES = {"ﬀ": "\1", "ﬁ": "\2", "ﬂ": "\3", "ﬃ": "\4"}


def show(x: float, y: float, text: str, size: float = 10, font: str = "Body") -> str:
    """Write a text from (x, y), in points from the bottom left; Body and Bold are Helvetica, Song is Chinese."""
    if font == "Song":
        codes = text.encode("utf-16-be")
    else:
        codes = b"".join(LIGATURES.get(c, "").encode() or c.encode("cp1252") for c in text)
    return f"BT /{font} {size} Tf {x} {y} Td <{codes.hex()}> Tj ET"


def lines(x: float, y: float, texts: Iterable[str], step: float = 12, **style: Any) -> list[str]:
    return [show(x, y - step * i, text, **style) for i, text in enumerate(texts)]


def make_pdf(*pages: Sequence[str], rotate: int = 0, pack: bool = False, catalog: str = "", size: tuple[int, int] = A4,
             objects: Sequence[bytes] = (), resources: str = "") -> bytes:  # fmt: skip
    """Write a PDF whose pages are operators of content streams; further objects are numbered from 10."""
    fonts = "/Body 3 0 R /Bold 4 0 R /Song 5 0 R"
    encoding = "<< /Type /Encoding /BaseEncoding /WinAnsiEncoding /Differences [1 /ff /fi /fl /ffi] >>"
    song = "/Type /Font /Subtype /CIDFontType0 /BaseFont /Song"
    made = {
        3: f"<< /Type /Font /Subtype /Type1 /BaseFont /Helvetica /Encoding {encoding} >>".encode(),
        4: f"<< /Type /Font /Subtype /Type1 /BaseFont /Helvetica-Bold /Encoding {encoding} >>".encode(),
        5: b"<< /Type /Font /Subtype /Type0 /BaseFont /Song /Encoding /UniGB-UCS2-H /DescendantFonts [6 0 R] >>",
        6: f"<< {song} /CIDSystemInfo << /Registry (Adobe) /Ordering (GB1) /Supplement 4 >> >>".encode(),
        7: b"<< /Title (A made one) /Author (Nobody) >>",
    }
    made |= dict(enumerate(objects, start=10))
    first = 10 + len(objects)
    kids = [first + 2 * i for i in range(len(pages))]
    for number, operators in zip(kids, pages, strict=True):
        content = "\n".join(operators).encode("latin-1")
        packed = b"/Filter /FlateDecode " if pack else b""
        content = zlib.compress(content) if pack else content
        made[number + 1] = b"<< %s/Length %d >>\nstream\n%s\nendstream" % (packed, len(content), content)
        made[number] = (
            f"<< /Type /Page /Parent 2 0 R /MediaBox [0 0 {size[0]} {size[1]}] /Rotate {rotate} "
            f"/Contents {number + 1} 0 R /Resources << /Font << {fonts} >> {resources} >> >>"
        ).encode()
    made[1] = f"<< /Type /Catalog /Pages 2 0 R {catalog} >>".encode()
    made[2] = f"<< /Type /Pages /Kids [{' '.join(f'{k} 0 R' for k in kids)}] /Count {len(kids)} >>".encode()
    out, places = b"%PDF-1.7\n", {}
    for number, content in sorted(made.items()):
        places[number] = len(out)
        out += b"%d 0 obj\n%s\nendobj\n" % (number, content)
    table = b"".join(
        b"%010d 00000 n \n" % places[n] if n in places else b"0000000000 65535 f \n" for n in range(max(places) + 1)
    )
    size_ = max(places) + 1
    tail = b"xref\n0 %d\n%strailer << /Size %d /Root 1 0 R /Info 7 0 R >>\nstartxref\n%d\n%%%%EOF\n"
    return out + tail % (size_, table, size_, len(out))


def picture_pdf(*texts: str, text_layer: str = "") -> bytes:
    """Make a scan: each page a picture of writing, over which there may be a little text."""
    from PIL import Image, ImageDraw, ImageFont

    images, pages = [], []
    for number, text in enumerate(texts):
        image = Image.new("L", (1240, 1754), 255)
        ImageDraw.Draw(image).multiline_text((120, 150), text, fill=0, font=ImageFont.load_default(40), spacing=20)
        pixels = zlib.compress(image.tobytes())
        head = "/Type /XObject /Subtype /Image /Width 1240 /Height 1754 /ColorSpace /DeviceGray /BitsPerComponent 8"
        images.append(f"<< {head} /Filter /FlateDecode /Length {len(pixels)} >>\nstream\n".encode() + pixels)
        images[-1] += b"\nendstream"
        pages.append([f"q 595 0 0 842 0 0 cm /Scan{number} Do Q", *([show(20, 20, text_layer)] if text_layer else [])])
    names = " ".join(f"/Scan{i} {10 + i} 0 R" for i in range(len(images)))
    return make_pdf(*pages, objects=images, resources=f"/XObject << {names} >>")


def encrypted(data: bytes, user: str, owner: str) -> bytes:
    import pypdf

    writer = pypdf.PdfWriter(clone_from=io.BytesIO(data))
    writer.encrypt(user, owner, algorithm="RC4-128")
    out = io.BytesIO()
    writer.write(out)
    return out.getvalue()


@pytest.fixture
def load(tmp_path: Path) -> Any:
    def load(data: bytes | str, name: str = "made.pdf", **options: Any) -> Document:
        path = tmp_path / name
        path.write_bytes(data.encode() if isinstance(data, str) else data)
        document = read_document(path, **options)
        check(document, path, options.get("password", ""))
        return document

    return load


def check(document: Document, path: Path, password: str = "") -> None:
    """Hold a document against all that is promised of every document, and its runs against pdfium's own characters."""
    data = path.read_bytes()
    assert document.id == hashlib.sha256(data).hexdigest()
    assert document.name == path.name
    assert Document.from_json(document.to_json()) == document
    assert document.text == "\n\n".join(document.text[page.start : page.end] for page in document.pages)
    assert [page.number for page in document.pages] == list(range(1, len(document.pages) + 1))
    assert all(0 <= start < end <= len(document.text) for start, end in document.headings)
    assert not any("\ufb00" <= c <= "\ufb06" or c in "\x02\xad\r" for c in document.text)
    if any(page.method == "pdfium" for page in document.pages):
        check_runs(document, data, password)


def check_runs(document: Document, data: bytes, password: str) -> None:
    """Every character equals its raw one or mends it, and no two have the same place unless a ligature came apart."""
    import pypdfium2

    pdf = pypdfium2.PdfDocument(data, password=password or None)
    for page in document.pages:
        if page.method != "pdfium":
            continue
        characters = pdf[page.number - 1].get_textpage()
        mapped: dict[int, str] = {}
        for start, raw, length in page.runs:
            assert page.start <= start < start + length <= page.end
            assert raw + length <= characters.count_chars()
            for i in range(length):
                code = pypdfium2.raw.FPDFText_GetUnicode(characters.raw, raw + i)
                mapped[raw + i] = mapped.get(raw + i, "") + document.text[start + i]
                theirs = "-" if code in (2, 0xAD) else chr(code)
                if 0xDC00 <= code < 0xE000:
                    assert ord(document.text[start + i]) > 0xFFFF
                elif theirs.isspace():
                    assert document.text[start + i].isspace()
                else:
                    assert document.text[start + i] in module._mended(theirs), (theirs, document.text[start + i])
        own = [c for c in document.text[page.start : page.end] if c not in " |\n"]
        assert len(own) <= sum(len(text.strip()) for text in mapped.values())
        codes = [pypdfium2.raw.FPDFText_GetUnicode(characters.raw, i) for i in range(characters.count_chars())]
        letters = [i for i, code in enumerate(codes) if chr(code).isalnum()]
        assert not own or len(set(letters) - set(mapped)) <= 0.02 * len(letters)


# --- The text of PDFs -------------------------------------------------------------------------------------------------

LEFT = """The harbour was built in the year
1870 by the town of Skerry for
boats that came from the north
with herring and with coal. Its
walls are eight metres high at
the side of the open sea, and
four at the other.""".split("\n")
RIGHT = """Trains came later. The first of
them ran in 1903, and a second
line was opened twenty years on
to take the goods of the island
to the mainland in half of the
time. Nobody remembers who had
paid for it.""".split("\n")


def test_a_page_has_its_text_size_label_and_metadata(load: Any) -> None:
    document = load(make_pdf([show(50, 800, "Nothing but this.")], [show(50, 800, "And this.")], size=(300, 900)))
    assert document.text == "Nothing but this.\n\nAnd this."
    assert document.metadata == {"title": "A made one", "author": "Nobody"}
    first, second = document.pages
    assert first == Page(1, "1", 0, 17, 300, 900, "pdfium", ((0, 0, 17),))
    assert (second.number, second.start, second.end) == (2, 19, 28)


def test_page_labels_are_those_of_the_file(load: Any) -> None:
    pages = [[show(50, 800, f"sheet {i}")] for i in range(4)]
    labels = "/PageLabels << /Nums [0 << /S /r /St 4 >> 2 << /S /D /P (A-) >>] >>"
    document = load(make_pdf(*pages, catalog=labels))
    assert [page.label for page in document.pages] == ["iv", "v", "A-1", "A-2"]


@pytest.mark.parametrize("by_row", [True, False])
def test_columns_are_read_one_after_the_other_below_what_spans_them(load: Any, by_row: bool) -> None:
    columns = [lines(50, 700, LEFT), lines(310, 700, RIGHT)]
    written = [line for row in zip(*columns, strict=True) for line in row] if by_row else columns[0] + columns[1]
    header = show(50, 760, "A header that goes over both of the columns of this page, from end to end of it")
    text = load(make_pdf([*written, header])).text
    assert text.split() == f"{_shown(header)} {' '.join(LEFT)} {' '.join(RIGHT)}".split()


def column(left: float, top: float, widths: Sequence[float]) -> list[Box]:
    return [(left, top - 12 * i - 10, left + width, top - 12 * i) for i, width in enumerate(widths)]


def test_columns_are_found_below_what_has_another_gutter() -> None:
    code, comments, caption = column(50, 800, [90] * 8), column(170, 800, [150] * 8), column(50, 690, [410] * 2)
    left, right = column(50, 660, [190, 190, 190, 80, 190, 190, 190, 190, 60]), column(270, 660, [190] * 9)
    boxes = [*code, *comments, *caption, *left, *right]
    assert reading_order(boxes)[16:] == list(range(16, len(boxes)))


def test_a_listing_with_comments_keeps_its_rows_above_columns() -> None:
    code, comments = column(50, 800, [110, 75, 75, 110, 75, 75]), column(170, 800, [150, 90, 90, 150, 90, 90])
    left, right = column(50, 700, [190] * 9), column(270, 700, [190] * 9)
    listing = [box for row in zip(code, comments, strict=True) for box in row]
    boxes = [*listing, *left, *right]
    assert reading_order(boxes) == list(range(len(boxes)))


def _shown(operator: str) -> str:
    return bytes.fromhex(operator.partition("<")[2].partition(">")[0]).decode("cp1252")


@pytest.mark.parametrize("rotate", [90, 180, 270])
def test_pages_that_are_turned_read_the_same(load: Any, rotate: int) -> None:
    operators = [show(50, 760, "Title of it"), *lines(50, 700, LEFT), *lines(310, 700, RIGHT)]
    upright = load(make_pdf(operators))
    document = load(make_pdf(operators, rotate=rotate))
    assert document.text.split() == upright.text.split()
    size = (842, 595) if rotate != 180 else A4
    assert (document.pages[0].width, document.pages[0].height) == size


def test_a_ruled_table_is_read_row_by_row_with_its_cells_apart(load: Any) -> None:
    rows = [["Line", "From", "Fare"], ["Red line", "Skerry", "£9.40"], ["Blue", "The long name of a", "£3"]]
    operators = ["0.5 w"]
    operators += [f"60 {640 - 40 * i} m 420 {640 - 40 * i} l S" for i in range(4)]
    operators += [f"{60 + 120 * i} 520 m {60 + 120 * i} 640 l S" for i in range(4)]
    for i, row in enumerate(rows):
        operators += [show(65 + 120 * j, 625 - 40 * i, cell) for j, cell in enumerate(row)]
    operators.insert(4, show(185, 533, "small harbour"))  # the second line of a cell, out of order
    operators += lines(60, 700, ["Above it stands a line that is no part of", "the table at all."])
    operators += lines(60, 480, ["And below it another one."])
    assert load(make_pdf(operators)).text == (
        "Above it stands a line that is no part of\nthe table at all.\n\n"
        "Line | From | Fare\nRed line | Skerry | £9.40\nBlue | The long name of a small harbour | £3\n\n"
        "And below it another one."
    )


def test_a_drawing_whose_lines_go_through_words_is_no_table(load: Any) -> None:
    rules = [f"40 {y} m 220 {y} l S" for y in (715, 650, 600)] + [f"{x} 600 m {x} 715 l S" for x in (40, 96, 220)]
    assert load(make_pdf(["0.5 w", *rules, *lines(50, 700, LEFT)])).text == "\n".join(LEFT)


def test_right_to_left_words_that_come_in_the_order_of_sight_are_turned() -> None:
    def written(text: str) -> str:
        characters = [(c, i, 10.0 * i, 0.0, 10.0 * i + 9, 12.0) for i, c in enumerate(text)]
        line = module._line(characters)
        return line.text if line else ""

    assert written("see םולש 12 םלוע ok") == "see עולם 12 שלום ok"
    assert written("left to right") == "left to right"


def test_ligatures_come_apart(load: Any) -> None:
    document = load(make_pdf([show(50, 800, "an oﬃce for ﬁsh and ﬂour, oﬀ")]))
    assert document.text == "an office for fish and flour, off"


@pytest.mark.parametrize(
    ("written", "read_as"),
    [
        (["An exam-", "ple of it."], "An example of it."),
        (["A self-", "made one."], "A self-made one."),
        (["From Baden-", "Baden here."], "From Baden-Baden here."),
        (["The SkerryLine, or Skerry-", "Line."], "The SkerryLine, or SkerryLine."),
        (["They co-operate, as we co-", "operate too."], "They co-operate, as we co-operate too."),
        (["pages 10-", "20 of it"], "pages 10-\n20 of it"),
        (["A REMARK-", "ABLE LIFE"], "A REMARKABLE LIFE"),
        (["a state-of-the-", "art one"], "a state-of-the-art one"),
        (["This ends -", "and goes on."], "This ends -\nand goes on."),
    ],
)
def test_words_divided_at_a_lines_end_are_whole_again(load: Any, written: list[str], read_as: str) -> None:
    assert load(make_pdf(lines(50, 800, written))).text == read_as


def test_paragraphs_are_parted_by_empty_lines(load: Any) -> None:
    operators = [*lines(50, 800, LEFT), *lines(50, 800 - 12 * 8, RIGHT), show(50, 560, "Far below.")]
    text = load(make_pdf(operators)).text
    assert text == "\n".join(LEFT) + "\n\n" + "\n".join(RIGHT) + "\n\nFar below."


def test_headings_are_larger_or_bold_lines_and_not_words_that_begin_a_line(load: Any) -> None:
    body = [*lines(50, 740, LEFT), show(50, 640, "2. Of trains", font="Bold"), *lines(50, 620, RIGHT)]
    run_in = [show(50, 500, "Boats and other things. ", font="Bold"), show(172, 500, "All of them came from the north")]
    document = load(make_pdf([show(50, 780, "The Harbour", size=18), *body, *run_in]))
    assert [document.text[slice(*span)] for span in document.headings] == ["The Harbour", "2. Of trains"]


def test_chinese_is_read(load: Any) -> None:
    document = load(make_pdf(lines(50, 800, ["港口建于一八七〇年，", "墙高八米。"], font="Song")))
    assert document.text == "港口建于一八七〇年，\n墙高八米。"


@given(st.lists(st.tuples(*[st.integers(0, 400)] * 2, st.integers(1, 200), st.integers(5, 20)), max_size=20))
def test_the_reading_order_has_every_line_once(boxes: list[tuple[int, int, int, int]]) -> None:
    order = reading_order([(x, y, x + width, y + height) for x, y, width, height in boxes])
    assert sorted(order) == list(range(len(boxes)))


def test_a_damaged_pdf_is_read_by_the_parser_that_can(load: Any) -> None:
    whole = make_pdf([show(50, 800, "Still here.")])
    assert load(whole[: whole.index(b"startxref")]).text == "Still here."


def test_pypdf_reads_what_pdfium_refuses(monkeypatch: pytest.MonkeyPatch) -> None:
    import pypdfium2

    class Refusing:
        def __init__(self, *arguments: Any, **options: Any) -> None:
            error = pypdfium2.PdfiumError("no")
            error.err_code = 3
            raise error

    monkeypatch.setattr(pypdfium2, "PdfDocument", Refusing)
    data = make_pdf(lines(50, 800, ["An exam-", "ple of ﬁsh."]), [show(50, 800, "More.")])
    document = module._read_pdf(data, "made.pdf", "", Limits(), time.monotonic())
    assert document.text == "An example of fish.\n\nMore."
    assert {page.method for page in document.pages} == {"pypdf"}
    assert document.metadata["title"] == "A made one"
    [*_, (start, raw, length)] = document.pages[0].runs
    assert document.text[start : start + length] == "ish."


# --- Scans ------------------------------------------------------------------------------------------------------------


def test_a_scan_is_read_by_ocr_and_its_lines_know_their_places(load: Any) -> None:
    pytest.importorskip("rapidocr")
    data = picture_pdf("The harbour was built\nin the year 1870.", text_layer="stray 17")
    document = load(data)
    [page] = document.pages
    assert page.method == "ocr"
    assert "The harbour was built\nin the year 1870." in document.text
    (start, end, left, bottom, right, top), *_ = page.boxes
    assert document.text[start:end] == "The harbour was built"
    assert left == pytest.approx(120 * 595 / 1240, abs=8)
    assert top == pytest.approx(842 - 150 * 595 / 1240, abs=8)
    assert 200 < right < 300
    assert 10 < top - bottom < 40


# --- Passwords --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("password", ["user", "owner"])
def test_either_password_opens(load: Any, password: str) -> None:
    data = encrypted(make_pdf([show(50, 800, "Secret.")]), "user", "owner")
    assert load(data, password=password).text == "Secret."


@pytest.mark.parametrize(("password", "message"), [("", "needs a password"), ("wrong", "is not that of made.pdf")])
def test_a_missing_and_a_wrong_password_are_errors_of_their_own(load: Any, password: str, message: str) -> None:
    data = encrypted(make_pdf([show(50, 800, "Secret.")]), "user", "owner")
    with pytest.raises(PasswordError, match=message) as error:
        load(data, password=password)
    assert "--password" in error.value.hint
    assert "wrong" not in error.value.args[0]  # no password in a message


def test_a_pdf_that_only_forbids_changes_needs_no_password(load: Any) -> None:
    assert load(encrypted(make_pdf([show(50, 800, "Open.")]), "", "owner")).text == "Open."


# --- Other formats ----------------------------------------------------------------------------------------------------


def make_docx(*, entity: str = "", stuffing: int = 0) -> bytes:
    import docx

    made = docx.Document()
    made.core_properties.title, made.core_properties.author = "标题", ""
    made.add_heading("The Harbour", 0)
    made.add_heading("Walls", 1)
    made.add_paragraph("It was built in 1870. 港口。")
    made.add_paragraph("herring", style="List Bullet")
    made.add_paragraph("coal", style="List Bullet")
    table = made.add_table(2, 2)
    for i, text in enumerate(["Line", "Fare", "Red\nline", "£9.40"]):
        table.cell(i // 2, i % 2).text = text
    wide = made.add_table(2, 2)
    wide.cell(0, 0).merge(wide.cell(0, 1)).text = "Both"
    wide.cell(1, 0).text, wide.cell(1, 1).text = "a", "b"
    made.add_paragraph("The end.")
    out = io.BytesIO()
    made.save(out)
    if not (entity or stuffing):
        return out.getvalue()
    changed = io.BytesIO()
    with zipfile.ZipFile(out) as there, zipfile.ZipFile(changed, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as new:
        for info in there.infolist():
            content = there.read(info)
            if entity and info.filename == "word/document.xml":
                content = content.replace(b"<w:document", entity.encode() + b"<w:document", 1)
                content = content.replace(b"The end.", b"The &lol9; end.")
            new.writestr(info.filename, content)
        if stuffing:
            with new.open("word/media/image1.png", "w") as file:
                for _ in range(stuffing):
                    file.write(bytes(2**20))
    return changed.getvalue()


def test_docx_has_its_headings_lists_tables_and_properties(load: Any) -> None:
    pytest.importorskip("docx")
    document = load(make_docx(), "made.docx")
    assert document.text == (
        "The Harbour\n\nWalls\n\nIt was built in 1870. 港口。\n\nherring\ncoal\n\n"
        "Line | Fare\nRed line | £9.40\nBoth\na | b\n\nThe end."
    )
    assert [document.text[slice(*span)] for span in document.headings] == ["The Harbour", "Walls"]
    assert document.metadata["title"] == "标题"
    assert "author" not in document.metadata
    assert document.pages[0].method == "docx"


HTML = """<!-- made --><!DOCTYPE html><html><head><title>The
 Harbour</title><style>p {color: red}</style></head><body>
<script>alert("no")</script><h1>Of <em>the</em> harbour</h1>
<p>It was   built in <b>18</b>70 &amp; later.<br>Its walls<br/>are high.</p><!-- not this -->
<ul><li>herring</li><li>coal, <a href="x">see</a></li></ul>
<table><tr><th>Line</th><th>Fare</th></tr><tr><td>Red</td><td>&pound;9.40</td></tr></table>
<pre>a  b
 c</pre><div>港口<div>inner</div>outer</div></body></html>"""


def test_html_has_its_text_without_scripts_and_its_headings_and_rows(load: Any) -> None:
    pytest.importorskip("bs4")
    document = load(HTML, "page.html")
    assert document.text == (
        "Of the harbour\n\nIt was built in 1870 & later.\nIts walls\nare high.\n\nherring\ncoal, see\n\n"
        "Line | Fare\nRed | £9.40\n\na  b\n c\n\n港口\n\ninner\n\nouter"
    )
    assert [document.text[slice(*span)] for span in document.headings] == ["Of the harbour"]
    assert document.metadata == {"title": "The Harbour"}


def test_markdown_has_headings_outside_of_code(load: Any) -> None:
    text = "# One #\n\ntext\n```\n# not\n```\nTwo\n===\n\n* * *\n- item\n---\n#nor\n### 三\n> q\n---\n"
    document = load(text, "made.md")
    assert document.text == text
    assert [document.text[slice(*span)] for span in document.headings] == ["One", "Two", "三"]


@pytest.mark.parametrize(
    ("line", "heading"),
    [("# C#", "C#"), ("# C #", "C"), ("## a # b ## \t", "a # b"), ("#\ta#b#", "a#b#"), ("# #", "#"), ("#   ", "")],
)
def test_the_marks_that_end_a_markdown_heading_stand_apart(load: Any, line: str, heading: str) -> None:
    document = load(f"before\n{line}\n", "made.md")
    assert [document.text[slice(*span)] for span in document.headings] == [heading] * bool(heading)


@pytest.mark.parametrize("line", ["# a" + " " * 30_000 + "x", "# a" + " #" * 15_000 + "x", "# " + "#" * 30_000,
                                  "#" * 30_000, " " * 30_000 + "x", "1" * 30_000, "-" * 30_000 + "x"])  # fmt: skip
def test_no_line_of_markdown_takes_long(load: Any, line: str) -> None:
    began = time.process_time()
    load(f"x\n{line}", "made.md")
    assert time.process_time() - began < 2


def test_plain_text_is_kept_as_it_is_but_for_line_ends(load: Any) -> None:
    document = load(b"\xef\xbb\xbfone\r\ntwo\rthree \xe6\xb8\xaf", "made.txt")
    assert document.text == "one\ntwo\nthree 港"
    assert document.pages == (Page(1, "1", 0, 15, 0, 0, "txt"),)


# --- Files that are not what they seem --------------------------------------------------------------------------------


def packed(**files: str) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return out.getvalue()


@pytest.mark.parametrize(
    ("name", "content", "kind", "message"),
    [
        ("made.pdf", b"", EmptyError, "made.pdf is empty"),
        ("made.txt", b" \n\t\n", EmptyError, "is empty"),
        ("made.docx", b"", EmptyError, "is empty"),
        ("made.html", b"<html><body><script>x</script></body></html>", EmptyError, "no text"),
        ("made.pdf", b"\x89PNG\r\n\x1a\nrest", UnsupportedError, "is a picture"),
        ("made.docx", packed(hello="x"), UnsupportedError, "is a zip archive"),
        ("made.pdf", packed(hello="x"), UnsupportedError, "is a zip archive"),
        ("made.pdf", b"MZ\x90\0 program", UnsupportedError, "is called .pdf, but"),
        ("made.txt", b"MZ\x90\0\0\0\1\2program", UnsupportedError, "neither text nor"),
        ("made.txt", b"\1\2\3\4\5\6\7 abc" * 50, UnsupportedError, "neither text nor"),
        ("made.md", "Größe".encode("latin-1"), UnsupportedError, "not UTF-8"),
        ("made.txt", "text".encode("utf-16"), UnsupportedError, "not UTF-8"),
        ("made.docx", b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1rest", UnsupportedError, "old or encrypted Office"),
        ("made.txt", b"{\\rtf1 text}", UnsupportedError, "an RTF file"),
        ("made.docx", b"PK\3\4 word/document.xml but broken", DamagedError, "is damaged"),
        ("made.docx", packed(**{"word/document.xml": "<a>"}), DamagedError, "is damaged"),
        ("made.pdf", b"%PDF-1.7\nnothing more", DamagedError, "no PDF that"),
        ("made.pdf", make_pdf([]), EmptyError, "No text was found"),
        ("made.pdf", make_pdf(), (EmptyError, DamagedError), "no pages|no PDF"),
    ],
)
def test_what_can_not_be_read_says_why(load: Any, name: str, content: bytes, kind: Any, message: str) -> None:
    with pytest.raises(kind, match=message) as error:
        load(content, name)
    assert isinstance(error.value, InputError)


@pytest.mark.parametrize("name", ["made.txt", "made.pdf", "made.docx", "made"])
def test_a_files_content_says_what_it_is(load: Any, name: str) -> None:
    assert load(make_pdf([show(50, 800, "A PDF.")]), name).text == "A PDF."


@pytest.mark.parametrize(
    ("head", "kind"),
    [
        (b"<?xml version='1.0'?>\n<!-- a --><!-- <b> -->\n\n<HTML>", "html"),
        (b"<!-- a ----><!doctype html>", "html"),
        (b"<!-- a --> b --><html>", "txt"),
        (b"<!-- a <html>", "txt"),
        *((part * 22 + b"x", "txt") for part in (b"<!---->", b"<!-- --> ", b"<!-- <!-- -->")),  # each more doubles it
        *((part * 500, "txt") for part in (b"<!--", b"-->", b"<?xml ", b"< ")),
    ],
)
def test_html_is_told_from_text_by_what_follows_its_comments_at_once(head: bytes, kind: str) -> None:
    began = time.process_time()
    assert module._kind(head, "made") == kind
    assert time.process_time() - began < 2


def test_html_and_docx_are_known_without_their_suffix(load: Any) -> None:
    assert load("\n<!DOCTYPE html><p>x &lt; y</p>", "made").text == "x < y"
    assert load(make_docx(), "made.zip").text.startswith("The Harbour")


def test_a_name_is_never_a_path(tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    (tmp_path / "x.txt").write_text("text")
    assert read_document(tmp_path / "sub" / ".." / "x.txt").name == "x.txt"


# --- Limits -----------------------------------------------------------------------------------------------------------


def test_more_pages_or_bytes_than_allowed_are_refused(load: Any) -> None:
    with pytest.raises(LimitError, match="has 1,001 pages, more than 1,000"):
        load(make_pdf(*[[]] * 1001))
    with pytest.raises(LimitError, match="larger than 1 MiB"):
        load(b"x" * (2**20 + 1), "made.txt", limits=Limits(file_megabytes=1))


@pytest.mark.parametrize("name", ["made.txt", "made.md", "made.html", "made.docx", "made.pdf"])
def test_more_characters_than_allowed_are_refused_in_every_format(load: Any, name: str) -> None:
    content = {"made.docx": make_docx(), "made.pdf": make_pdf([show(50, 800, "One page.")], [show(50, 800, "Two.")])}
    data = content.get(name, b"# " + b"a b\n" * 10)
    count = len(load(data, name).text)
    assert load(data, name, limits=Limits(characters=count)).text
    with pytest.raises(LimitError, match=f"{name} has more than 11 characters") as error:
        load(data, name, limits=Limits(characters=11))
    assert "a part of the document" in error.value.hint


def test_a_whole_book_may_be_read_but_not_a_shelf(load: Any) -> None:
    assert len(load("a b\n" * 750_000, "made.md").text) == 3_000_000
    with pytest.raises(LimitError, match="more than 3,000,000 characters"):
        load("a b\n" * 750_001, "made.md")


def test_a_heading_of_more_than_a_few_lines_is_text(load: Any) -> None:
    document = load(f"# {'a' * 250}\n# {'b' * 251}\n", "made.md")
    assert document.headings == ((2, 252),)


def test_archives_that_unpack_to_too_much_are_refused(load: Any) -> None:
    data = make_docx(stuffing=201)
    assert len(data) < 2**21
    with pytest.raises(LimitError, match="unpacks to 20. MiB, more than 200"):
        load(data, "made.docx")


def test_entities_that_grow_are_not_expanded(load: Any) -> None:
    names = ["lol", *(f"lol{i}" for i in range(1, 10))]
    grown = "".join(f'<!ENTITY {b} "{f"&{a};" * 10}">' for a, b in zip(names, names[1:], strict=False))
    began = time.monotonic()
    try:
        assert len(load(make_docx(entity=f'<!DOCTYPE w [<!ENTITY lol "lol">{grown}]>'), "made.docx").text) < 1_000
    except DocumentError:
        pass
    assert time.monotonic() - began < 5


@pytest.mark.parametrize("content", ["stream", "picture"])
def test_streams_that_unpack_to_gigabytes_stay_within_the_memory(load: Any, content: str) -> None:
    # Deflate repeats a block without looking at it, so that 1 GiB is made at once
    squeeze = zlib.compressobj(9)
    pixels = b"".join(squeeze.compress(bytes(2**24)) for _ in range(32)) + squeeze.flush()
    if content == "stream":
        stream = b"<< /Filter /FlateDecode /Length %d >>\nstream\n%s\nendstream" % (len(pixels), pixels)
        data = make_pdf([], objects=[stream]).replace(b"/Contents 12 0 R", b"/Contents 10 0 R")
    else:
        head = "/Type /XObject /Subtype /Image /Width 23000 /Height 23000 /ColorSpace /DeviceGray /BitsPerComponent 8"
        stream = f"<< {head} /Filter /FlateDecode /Length {len(pixels)} >>\nstream\n".encode() + pixels + b"\nendstream"
        data = make_pdf(
            ["q 595 0 0 842 0 0 cm /Scan0 Do Q"], objects=[stream], resources="/XObject << /Scan0 10 0 R >>"
        )
    with pytest.raises((LimitError, EmptyError, DamagedError)):
        load(data, limits=Limits(megabytes=256, seconds=20))


def test_too_little_memory_is_a_limit(load: Any) -> None:
    with pytest.raises(LimitError, match="more than 30 MiB of memory"):
        load(picture_pdf("text"), limits=Limits(megabytes=30))


def test_a_document_that_takes_too_long_is_given_up(load: Any) -> None:
    pages = [lines(50, 800, LEFT)] * 900
    began = time.monotonic()
    with pytest.raises(LimitError, match=r"0.7 seconds") as error:
        load(make_pdf(*pages, pack=True), limits=Limits(seconds=0.7))
    assert time.monotonic() - began < 2
    assert error.value.hint


def as_python(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, script: str) -> None:
    """Let the child be a script instead."""
    path = tmp_path / "child"
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(path.stat().st_mode | stat.S_IEXEC)
    monkeypatch.setattr(sys, "executable", str(path))


@pytest.mark.skipif(os.name == "nt", reason="needs a shell")
def test_a_reader_that_hangs_is_killed(load: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    as_python(tmp_path, monkeypatch, f"echo $$ > {tmp_path}/pid; exec sleep 60")
    began = time.monotonic()
    with pytest.raises(LimitError, match=r"could not be read in 0.5 seconds, and its reader was stopped"):
        load(make_pdf([]), limits=Limits(seconds=0.5))
    assert time.monotonic() - began < 5
    with pytest.raises(ProcessLookupError):
        os.kill(int((tmp_path / "pid").read_text()), 0)


@pytest.mark.skipif(os.name == "nt", reason="needs signals")
@pytest.mark.parametrize(
    ("script", "kind", "message"),
    [
        ("kill -KILL $$", LimitError, "1024 MiB of memory"),
        ("kill -SEGV $$", DamagedError, "crashed its reader"),
        ("echo '{'", DamagedError, "crashed its reader"),
        ("exit 3", DamagedError, "crashed its reader .exit status 3"),
    ],
)
def test_a_reader_that_crashes_is_an_error(
    load: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, script: str, kind: Any, message: str
) -> None:
    as_python(tmp_path, monkeypatch, f"cat > /dev/null; {script}")
    with pytest.raises(kind, match=message):
        load(make_pdf([]))


def test_a_missing_library_names_the_extra(load: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    broken = "raise ModuleNotFoundError('no', name='pypdfium2.raw')"
    (tmp_path / "pypdfium2.py").write_text(broken)
    monkeypatch.setattr(module, "__file__", str(tmp_path / "a" / "b" / "c.py"))
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[2]))
    with pytest.raises(MissingPackageError, match="pypdfium2") as error:
        load(make_pdf([]))
    assert "llm-roadmap[qa]" in error.value.hint


@pytest.mark.parametrize("name", ["seconds", "megabytes", "pages", "characters", "file_megabytes"])
def test_limits_are_positive(name: str) -> None:
    with pytest.raises(InputError, match=f"{name} must be > 0. Got 0"):
        Limits(**{name: 0})


# --- The document -----------------------------------------------------------------------------------------------------


def test_every_position_has_its_page() -> None:
    pages = (Page(1, "i", 0, 4, 0, 0, "txt"), Page(2, "ii", 6, 6, 0, 0, "txt"), Page(3, "1", 8, 10, 0, 0, "txt"))
    document = Document("0", "x", "abcd\n\n\n\nef", pages)
    assert [document.page_at(i).number for i in range(11)] == [1, 1, 1, 1, 1, 1, 2, 2, 3, 3, 3]
    for outside in (-1, 11):
        with pytest.raises(IndexError, match="must be in"):
            document.page_at(outside)


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"pages": [1]}', '{"pages": [], "headings": [], "more": 1}'])
def test_other_json_is_no_document(text: str) -> None:
    with pytest.raises(InputError, match="not the JSON of a document"):
        Document.from_json(text)


# --- Pictures of pages ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("rotate", [0, 90])
def test_the_boxes_of_a_quote_lie_on_its_words(tmp_path: Path, rotate: int) -> None:
    pytest.importorskip("PIL")
    path = tmp_path / "made.pdf"
    path.write_bytes(
        make_pdf(lines(100, 500, ["one two three", "four five six", "seven"]), rotate=rotate, size=(300, 600))
    )
    document = read_document(path)
    start = document.text.index("two")
    end = document.text.index(" six")
    image, boxes = page_picture(path, document.pages[0], start, end, width=800)
    assert image.mode == "RGB"
    assert image.width == 800
    assert len(boxes) == 2
    for left, top, right, bottom in boxes:
        assert 0 <= left < right <= image.width
        assert 0 <= top < bottom <= image.height
        assert min(image.crop((round(left), round(top), round(right), round(bottom))).convert("L").tobytes()) < 100
    dark = sum(pixel < 128 for pixel in image.convert("L").tobytes())
    for box in boxes:
        image.paste((255, 255, 255), tuple(round(x) for x in box))
    left = sum(pixel < 128 for pixel in image.convert("L").tobytes())
    assert 0.4 < left / dark < 0.65  # 13 of the 25 letters


def test_a_picture_of_a_page_that_is_none_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "made.txt"
    path.write_text("text")
    document = read_document(path)
    with pytest.raises(DamagedError, match="made.txt is no PDF"):
        page_picture(path, document.pages[0], 0, 4)


# --- The command ------------------------------------------------------------------------------------------------------


def cli(*arguments: str) -> int:
    with pytest.raises(SystemExit) as exit_:
        run_commands({"read": read}, module=MODULE, argv=["read", *arguments], extra="qa")
    return int(exit_.value.code or 0)


def test_the_command_prints_pages_and_saves_json(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path, output = tmp_path / "made.pdf", tmp_path / "made.json"
    path.write_bytes(encrypted(make_pdf([show(50, 800, "One.")], [show(50, 800, "Two.")]), "user", "owner"))
    try:
        run_commands({"read": read}, module=MODULE, extra="qa",
                     argv=["read", "--input", str(path), "--password", "user", "--output", str(output)])  # fmt: skip
    except SystemExit as exit_:
        assert not exit_.code
    assert capsys.readouterr().out == "--- page 1 (1 of 2) ---\nOne.\n--- page 2 (2 of 2) ---\nTwo.\n"
    assert Document.from_json(output.read_text(encoding="utf-8")).text == "One.\n\nTwo."


def test_the_command_reads_a_builtin_document_by_itself(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli() == 0
    assert "Child, return | £8.60 | £4.75 | £11.40" in capsys.readouterr().out


def test_the_log_counts_pages_in_english(load: Any, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    load(make_pdf([show(50, 800, "One.")]))
    load(make_pdf([show(50, 800, "One.")], [show(50, 800, "Two.")]))
    assert [record.getMessage().rpartition(",")[0] for record in caplog.records] == [
        "made.pdf: 1 page, 1 by pdfium", "made.pdf: 2 pages, 2 by pdfium",
    ]  # fmt: skip


def test_the_command_says_in_a_line_what_is_wrong(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name, message in (("", "input must name a file"), ("builtin:magic", "builtin:fares-2025, ")):
        assert cli("--input", name) == 2
        assert message in capsys.readouterr().err
    (tmp_path / "x.pdf").write_bytes(b"")
    assert cli("--input", str(tmp_path / "x.pdf")) == 2
    assert capsys.readouterr().err.startswith("error: x.pdf is empty.")


# --- Real files -------------------------------------------------------------------------------------------------------

PASSWORDS = {
    "pdfminer.six__aes-256": ["foo", "baz"], "pdfminer.six__rc4-128": ["foo", "baz"],
    "pdfplumber__password-example": ["test"], "onyx__encrypted": ["pass123"],
}  # fmt: skip


def real(name: str = "") -> Path:
    try:
        return data_folder() / "pdf" / name
    except Skip as reason:
        pytest.skip(str(reason))


@pytest.mark.slow
def test_every_real_pdf_gives_text_or_a_named_error_within_its_limits() -> None:
    failed, contents = {}, {}
    before = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss
    for path in sorted(real().glob("*.pdf")):
        began = time.monotonic()
        password = PASSWORDS.get(path.stem, [""])[0]
        # A paper of 23 pages whose letters have no codes: by OCR it takes about a minute
        limits = Limits(seconds=12 if path.stem == "pdf.js__TAMReview" else 180)
        try:
            document = read_document(path, password=password, limits=limits)
            check(document, path, password)
            contents[path.stem] = document
        except DocumentError as error:
            failed[path.stem] = type(error)
        assert time.monotonic() - began < limits.seconds + 1
    assert failed == {
        "OCRmyPDF__invalid": DamagedError, "OCRmyPDF__no_contents": EmptyError, "pdf.js__TAMReview": LimitError,
        "pdf.js__PDFBOX-3148-2-fuzzed": EmptyError, "pdfplumber__issue-297-example": EmptyError,
    }  # fmt: skip
    for stem, words in {
        "OCRmyPDF__ccitt": "32 Track MIDI Sequence Recorder", "OCRmyPDF__skew": "MIDI Sequence Recorder",
        "OCRmyPDF__multipage": "tip-toeing along a path", "OCRmyPDF__truetype_font_nomapping": "Phone",
        "haystack__non_text_searchable": "Non-text-searchable PDF", "pdfminer.six__aes-256": "Secret!",
        "pdfminer.six__issue-791-non-unicode-cmap": "Peněžní prostředky na účtech",
        "sample-files__habibi-rotated": "حَبيبي", "onyx__encrypted": "Secret Content",
        "pdf.js__tracemonkey": "languages such as JavaScript are more difficult to compile than statically typed ones",
        "pdfplumber__table-curves-example": "Anaemia | Common | Common | Common",
        "pdfplumber__nics-background-checks-2015-11": "Alaska",
    }.items():  # fmt: skip
        assert words in " ".join(contents[stem].text.split()), stem
    assert contents["OCRmyPDF__skew"].pages[0].method == "ocr"
    if sys.platform == "linux":  # the largest child of this process so far; one of another test may be larger
        assert resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss <= max(before, 1.1 * 2**20)  # KiB


@pytest.mark.slow
@pytest.mark.parametrize("stem", PASSWORDS)
def test_real_passwords_open_and_others_do_not(stem: str) -> None:
    for password in PASSWORDS[stem]:
        assert read_document(real(f"{stem}.pdf"), password=password).text
    for password in ("", "wrong"):
        with pytest.raises(PasswordError):
            read_document(real(f"{stem}.pdf"), password=password)


@pytest.mark.slow
def test_pdfs_with_broken_bytes_give_text_or_a_named_error(load: Any) -> None:
    rng = random.Random(0)
    whole = make_pdf([show(50, 760, "Title"), *lines(50, 700, LEFT)], lines(50, 700, RIGHT), pack=True)
    for _ in range(25):
        broken = bytearray(whole)
        for _ in range(rng.randrange(1, 60)):
            broken[rng.randrange(len(broken))] = rng.randrange(256)
        try:
            load(bytes(broken), limits=Limits(seconds=20))
        except DocumentError:
            pass


@pytest.mark.slow
@pytest.mark.skipif(os.name == "nt", reason="needs signals")
def test_ctrl_c_leaves_no_child(tmp_path: Path) -> None:
    path = tmp_path / "made.pdf"
    path.write_bytes(make_pdf(*[lines(50, 800, LEFT)] * 900, pack=True))
    code = f"from {MODULE} import read_document; print(1, flush=True); read_document({str(path)!r})"
    root = str(Path(__file__).parents[2])
    process = subprocess.Popen(
        [sys.executable, "-c", code],
        cwd=root,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    assert process.stdout
    process.stdout.readline()
    time.sleep(0.5)
    process.send_signal(signal.SIGINT)
    process.wait(10)
    with pytest.raises(ProcessLookupError):
        for _ in range(100):  # until the child, which is killed, has been taken off the system's list
            os.killpg(process.pid, 0)
            time.sleep(0.1)
