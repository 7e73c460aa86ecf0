"""The layout of pages drawn here is found again; files of every odd kind are read or refused in one clear line."""

import json
import stat
from pathlib import Path
from typing import Any

import pytest
from PIL import Image, ImageDraw, ImageFont

from multimodal_llm.document_understanding import layout_analysis as module
from multimodal_llm.document_understanding.layout_analysis import (
    MODULE,
    AnalyzeConfig,
    Line,
    Page,
    Word,
    analyze,
    analyze_file,
    analyze_words,
    around,
    draw_page,
    find_pairs,
    find_tables,
    group_lines,
    iou,
    join_words,
    read_pages,
    reading_order,
    recognize,
    ruled_tables,
    split_box,
)
from shared.config import run_commands
from shared.errors import InputError


def written(*lines: tuple[float, float, str], size: float = 20) -> list[Word]:
    """Place lines of text (left, top, text) with letters half as wide as high, Chinese ones as wide."""
    words = []
    for left, top, text in lines:
        width = sum(2 if letter > "\u2e80" else 1 for letter in text) * size / 2
        words += split_box(text, (left, top, left + width, top + size))
    return words


def cli(*arguments: str) -> int:
    with pytest.raises(SystemExit) as exit_:
        run_commands({"analyze": analyze}, module=MODULE, argv=arguments)
    return exit_.value.code


def keys(page_words: list[Word], **options: Any) -> dict[str, str]:
    return {pair.key: pair.value for pair in find_pairs(group_lines(page_words), **options)}


@pytest.fixture(autouse=True)
def _in_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def printed(tmp_path: Path) -> Path:
    """Draw a small invoice."""
    picture = Image.new("RGB", (700, 300), "white")
    pen, font = ImageDraw.Draw(picture), ImageFont.load_default(26)
    for top, text in ((30, "Lakeside Books Ltd"), (100, "Date: 12/03/2024"), (150, "Total: 48.50")):
        pen.text((40, top), text, "black", font)
    path = tmp_path / "scans" / "invoice.png"
    path.parent.mkdir()
    picture.save(path)
    return path


def test_boxes() -> None:
    assert around([(1, 2, 3, 4), (0, 3, 2, 9)]) == (0, 2, 3, 9)
    assert iou((0, 0, 2, 2), (1, 0, 3, 2)) == pytest.approx(1 / 3)
    assert iou((0, 0, 1, 1), (2, 2, 3, 3)) == 0


def test_split_boxes_lie_side_by_side_and_join_again() -> None:
    words = split_box("Total  due 金额", (0, 0, 150, 10), 0.5)
    assert [word.text for word in words] == ["Total", "due", "金额"]
    assert words[0].box == (0, 0, 50, 10) and words[2].box == (110, 0, 150, 10)
    assert join_words(words) == "Total due 金额"
    assert join_words(written((0, 0, "发票"), (42, 0, "号码"))) == "发票号码"


def test_lines_follow_a_slight_tilt_and_end_at_wide_gaps() -> None:
    tilted = [Word(f"w{i}", (i * 50.0, i * 3.0, i * 50.0 + 40, i * 3.0 + 20)) for i in range(8)]
    far = Word("far", (700, 24, 740, 44))
    lines = group_lines([far, *reversed(tilted)])
    assert sorted(line.text for line in lines) == ["far", "w0 w1 w2 w3 w4 w5 w6 w7"]


def test_columns_are_read_one_after_the_other() -> None:
    title = [(150.0, 0.0, "A title that goes across both of the columns")]
    left = [(0.0, 50.0 + 30 * i, f"left line {i} of running text") for i in range(6)]
    right = [(400.0, 50.0 + 30 * i, f"right line {i} of running text") for i in range(6)]
    below = [(0.0, 300.0, "And a last paragraph that goes across the page again, all of it")]
    words = written(*title, *left, *right, *below)
    page = analyze_words(words, 800, 400)
    expected = [text for _, _, text in [*title, *left, *right, *below]]
    assert [line.text for line in page.lines] == expected
    assert sorted(word.box for word in page.words) == sorted(word.box for word in words)


def test_a_form_is_read_row_by_row() -> None:
    rows = [(0.0, 30.0 * i, f"Key {i}:") for i in range(5)] + [(300.0, 30.0 * i, f"value {i}") for i in range(5)]
    regions = reading_order(group_lines(written(*rows)))
    texts = [line.text for region in regions for line in region]
    assert texts == [text for i in range(5) for text in (f"Key {i}:", f"value {i}")]


def test_blocks_end_where_space_or_size_changes() -> None:
    words = written((0, 0, "one"), (0, 24, "two"), (0, 90, "three")) + written((0, 114, "LARGE"), size=50)
    page = analyze_words(words, 300, 300)
    assert [block.text for block in page.blocks] == ["one\ntwo", "three", "LARGE"]


def test_pairs_follow_stand_beside_or_stand_below() -> None:
    found = keys(
        written(
            (0, 0, "Name: Ada Lovelace"), (0, 60, "Phone:"), (200, 60, "555 0199"), (0, 120, "Address:"),
            (0, 145, "12 Main Street"), (0, 170, "Springfield"), (0, 250, "Tel: 03-1234"), (400, 250, "Time: 12:06"),
        )
    )  # fmt: skip
    assert found == {
        "Name": "Ada Lovelace", "Phone": "555 0199", "Address": "12 Main Street\nSpringfield", "Tel": "03-1234",
        "Time": "12:06",
    }  # fmt: skip


def test_pairs_in_chinese_and_inside_words() -> None:
    assert keys(written((0, 0, "发票号码：00123456"), (0, 60, "开票日期:"), (200, 60, "2024年3月5日"))) == {
        "发票号码": "00123456",
        "开票日期": "2024年3月5日",
    }
    [pair] = find_pairs(group_lines(written((0, 0, "Date:1/2/2024"))))
    assert pair.key_box[2] == pytest.approx(pair.value_box[0]) == pytest.approx(50)


def test_pairs_without_a_colon() -> None:
    words = written((0, 0, "TOTAL"), (300, 0, "RM 33.90"), (0, 60, "Bill to"), (0, 85, "Ada Lovelace"))
    assert keys(words) == {"TOTAL": "RM 33.90"}
    labelled = keys(words, is_label=lambda text: text.lower() == "bill to")
    assert labelled == {"TOTAL": "RM 33.90", "Bill to": "Ada Lovelace"}
    assert keys(written((0, 0, "Invoice no A-17")), is_label=lambda text: text == "Invoice no") == {
        "Invoice no": "A-17"
    }


@pytest.mark.parametrize("text", ["Opens at 12:06", "see https://example.org/a", ": : :", "no key at all"])
def test_not_every_colon_ends_a_key(text: str) -> None:
    assert keys(written((0, 0, text))) == {}


def test_aligned_tables() -> None:
    rows = [("Item", "Qty", "Price"), ("Pens", "3", "4.50"), ("Paper", "1", "9.00"), ("Ink", "2", "7.25")]
    places = [((0, 200, 300)[x], 30.0 * y, text) for y, row in enumerate(rows) for x, text in enumerate(row)]
    words = written(*places, (0, 300, "Thank you"))
    [table] = find_tables([], group_lines(words))
    assert not table.ruled
    assert {(cell.row, cell.column): cell.text for cell in table.cells} == {
        (y, x): text for y, row in enumerate(rows) for x, text in enumerate(row)
    }


def test_ruled_tables_with_a_cell_over_two_columns() -> None:
    picture = Image.new("RGB", (400, 200), "white")
    pen = ImageDraw.Draw(picture)
    for y in (20, 70, 120, 170):
        pen.line((20, y, 380, y), "black", 2)
    for x, top in ((20, 20), (200, 70), (380, 20)):  # the first row has no rule in the middle
        pen.line((x, top, x, 170), "black", 2)
    words = written((30, 35, "Both"), (30, 85, "a"), (210, 85, "b"), (30, 135, "c"), (210, 135, "d"))
    [table] = find_tables(ruled_tables(picture, words), group_lines(words))
    assert table.ruled
    assert [(cell.row, cell.column, cell.text, cell.column_span) for cell in table.cells] == [
        (0, 0, "Both", 2), (1, 0, "a", 1), (1, 1, "b", 1), (2, 0, "c", 1), (2, 1, "d", 1),
    ]  # fmt: skip
    assert all(0 <= cell.box[0] < cell.box[2] <= 400 for cell in table.cells)


def test_no_line_goes_over_a_rule() -> None:
    picture = Image.new("RGB", (400, 140), "white")
    pen = ImageDraw.Draw(picture)
    for y in (20, 70, 120):
        pen.line((20, y, 380, y), "black", 2)
    for x in (20, 200, 380):
        pen.line((x, 20, x, 120), "black", 2)
    words = written((56, 35, "Payment method"), (206, 35, "Bank transfer"), (56, 85, "Date"), (206, 85, "1/2/2024"))
    assert group_lines(words)[0].text == "Payment method Bank transfer"  # as near as words of one line
    page = analyze_words(words, 400, 140, picture=picture)
    assert [line.text for line in page.lines] == ["Payment method", "Bank transfer", "Date", "1/2/2024"]


def test_a_picture_that_another_program_would_open_is_refused(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    started: list[Any] = []
    monkeypatch.setattr("subprocess.Popen", lambda *arguments, **options: started.append(arguments))
    monkeypatch.setattr("subprocess.check_call", lambda *arguments, **options: started.append(arguments))
    Path("eps.png").write_text("%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 50 50\n%%EndComments\nshowpage\n%%EOF\n")
    assert cli("analyze", "--input", "eps.png") == 2
    assert "neither a picture nor a PDF" in capsys.readouterr().err and not started


def test_whatever_a_decoder_raises_is_reported(printed: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(file: Image.Image) -> Image.Image:
        raise RuntimeError("a surprise")

    monkeypatch.setattr(module, "_upright", fails)
    with pytest.raises(InputError, match="can't be decoded: a surprise"):
        list(read_pages(printed))


def test_drawn_boxes_leave_room_for_the_first_letter() -> None:
    page = analyze_words([Word("Total", (50, 50, 100, 70))], 200, 100)
    drawn = draw_page(page, Image.new("RGB", (200, 100), "white"), [(50, 50, 100, 70)])
    assert drawn.getpixel((46, 60)) == drawn.getpixel((104, 60)) == (214, 39, 40)
    assert drawn.getpixel((50, 60)) == (255, 255, 255)


def test_spaced_letters_are_joined_and_glued_words_divided() -> None:
    def pieces(*texts: str) -> list[Word]:
        return [Word(text, (10.0 * i, 0, 10.0 * i + 9, 10), 0.9) for i, text in enumerate(texts)]

    joined = module._whole_words("TAX 1", pieces("T", "A", "X", "1"))
    assert [(word.text, word.box) for word in joined] == [("TAX", (0, 0, 29, 10)), ("1", (30, 0, 39, 10))]
    assert [word.text for word in module._whole_words("16-04-201814:51", pieces("16-04-2018", "14:51"))] == [
        "16-04-2018",
        "14:51",
    ]
    assert module._whole_words("other text", pieces("T", "A")) == []
    assert module._half_width("（A）：1") == "(A):1" and module._half_width("（公司）") == "（公司）"


def test_ocr_reads_what_is_printed(printed: Path) -> None:
    pytest.importorskip("rapidocr")
    [(page, picture)] = analyze_file(printed)
    assert (page.width, page.height, page.engine) == (700, 300, "rapidocr") and picture.size == (700, 300)
    assert {pair.key: pair.value for pair in page.pairs} == {"Date": "12/03/2024", "Total": "48.50"}
    assert all(0.5 < word.confidence <= 1 for word in page.words)
    [word] = [word for word in page.words if word.text == "48.50"]
    assert iou(word.box, ImageDraw.Draw(picture).textbbox((118, 150), "48.50", ImageFont.load_default(26))) > 0.4
    drawn = draw_page(page, picture, [word.box])
    assert drawn.size == picture.size and drawn.tobytes() != picture.tobytes()


def test_tesseract_words(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(InputError, match="tesseract is not installed"):
        recognize(Image.new("RGB", (50, 50)), "tesseract")
    rows = ["level\tpage_num\t…", "4\t1\t1\t1\t1\t0\t5\t6\t90\t20\t-1\t", "5\t1\t1\t1\t1\t1\t5\t6\t40\t20\t91.5\tTotal"]
    fake = tmp_path / "tesseract"
    fake.write_text("#!/bin/sh\n" + "".join(f"echo '{row}'\n" for row in rows))
    fake.chmod(fake.stat().st_mode | stat.S_IXUSR)
    assert recognize(Image.new("RGB", (50, 50)), "tesseract") == [Word("Total", (5, 6, 45, 26), 0.915)]
    fake.write_text("#!/bin/sh\necho broken >&2\nexit 3\n")
    with pytest.raises(InputError, match="tesseract failed: broken"):
        recognize(Image.new("RGB", (50, 50)), "tesseract")
    with pytest.raises(InputError, match="engine must be"):
        recognize(Image.new("RGB", (50, 50)), "other")


def test_a_damaged_file_in_a_folder_named_tesseract_is_passed_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "tesseract_in"
    folder.mkdir()
    (folder / "bad.png").write_bytes(b"text")
    (folder / "own.pdf").write_bytes(_pdf("Invoice date: 5 March 2024"))
    analyze(AnalyzeConfig(input=str(folder), run="r"))
    assert list(json.loads(Path("outputs/multimodal_llm/r/skipped.json").read_text())) == [str(folder / "bad.png")]


def test_pdf_text_is_taken_as_it_is(tmp_path: Path) -> None:
    path = tmp_path / "own.pdf"
    path.write_bytes(_pdf("Invoice date: 5 March 2024"))
    [(page, picture)] = analyze_file(path)
    assert page.engine == "pdf" and page.text == "Invoice date: 5 March 2024"
    assert (page.width, page.height) == picture.size == (400, 200)
    left, top, right, bottom = page.words[0].box  # 20 points from the left and 60 above the lower edge, at 144 dpi
    assert left == pytest.approx(40, abs=3) and top < 200 - 120 <= bottom + 8 and right > left


def _pdf(text: str) -> bytes:
    """Write a PDF of one page, 200 × 100 points, with one line of text."""
    stream = f"BT /F1 12 Tf 20 60 Td ({text}) Tj ET".encode()
    parts = [
        b"<< /Type /Catalog /Pages 2 0 R >>",
        b"<< /Type /Pages /Kids [3 0 R] /Count 1 >>",
        b"<< /Type /Page /Parent 2 0 R /MediaBox [0 0 200 100] /Contents 4 0 R "
        b"/Resources << /Font << /F1 5 0 R >> >> >>",
        b"<< /Length " + str(len(stream)).encode() + b" >>\nstream\n" + stream + b"\nendstream",
        b"<< /Type /Font /Subtype /Type1 /BaseFont /Helvetica >>",
    ]
    body, places = b"%PDF-1.4\n", []
    for number, part in enumerate(parts, start=1):
        places.append(len(body))
        body += b"%d 0 obj\n%s\nendobj\n" % (number, part)
    table = b"".join(b"%010d 00000 n \n" % place for place in places)
    head = b"xref\n0 %d\n0000000000 65535 f \n" % (len(parts) + 1)
    return body + head + table + b"trailer << /Size 6 /Root 1 0 R >>\nstartxref\n%d\n%%%%EOF\n" % len(body)


@pytest.mark.parametrize("mode", ["L", "1", "P", "CMYK", "RGBA", "LA", "I;16"])
def test_every_mode_is_read_as_rgb(mode: str, tmp_path: Path) -> None:
    path = tmp_path / ("a.jpg" if mode == "CMYK" else "a.png")
    picture = Image.new("L", (60, 40), 255)
    picture.paste(0, (10, 10, 30, 30))
    if mode == "I;16":
        pixels = b"".join(b"\xff\xff" if value else b"\0\0" for value in picture.tobytes())
        Image.frombytes("I;16", (60, 40), pixels).save(path)
    elif mode in ("RGBA", "LA"):
        clear = Image.new(mode, (60, 40), 0)
        clear.paste((0, 255) if mode == "LA" else (0, 0, 0, 255), (10, 10, 30, 30))
        clear.save(path)
    else:
        picture.convert(mode).save(path)
    [(read, words)] = read_pages(path)
    assert read.mode == "RGB" and words == []
    assert min(read.getpixel((50, 35))) > 240 and max(read.getpixel((20, 20))) < 15


def test_exif_rotation_is_undone(tmp_path: Path) -> None:
    picture = Image.new("RGB", (60, 40), "white")
    picture.putpixel((0, 0), (255, 0, 0))
    exif = Image.Exif()
    exif[0x0112] = 6  # turn clockwise to view
    picture.save(tmp_path / "a.png", exif=exif)
    [(read, _)] = read_pages(tmp_path / "a.png")
    assert read.size == (40, 60) and read.getpixel((39, 0)) == (255, 0, 0)


def test_first_frame_of_an_animation_and_all_pages_of_a_tiff(tmp_path: Path) -> None:
    frames = [Image.new("RGB", (30, 20), color) for color in ("red", "lime", "blue")]
    frames[0].save(tmp_path / "a.gif", save_all=True, append_images=frames[1:])
    frames[0].save(tmp_path / "a.tiff", save_all=True, append_images=frames[1:])
    assert [page.getpixel((5, 5)) for page, _ in read_pages(tmp_path / "a.gif")] == [(255, 0, 0)]
    assert [page.getpixel((5, 5)) for page, _ in read_pages(tmp_path / "a.tiff", 2)] == [(255, 0, 0), (0, 255, 0)]


def test_nothing_on_the_page_is_no_error(tmp_path: Path) -> None:
    Image.new("RGB", (1, 1)).save(tmp_path / "a.png")
    [(page, picture)] = analyze_file(tmp_path / "a.png")
    assert page == Page(str(tmp_path / "a.png"), 1, 1, 1, "rapidocr", ())
    assert page.text == "" and json.loads(page.to_json())["blocks"] == []
    assert draw_page(page, picture).size == (1, 1)
    assert group_lines([]) == reading_order([]) == find_pairs([]) == find_tables([], []) == ruled_tables(None, []) == []


def test_too_large_pictures_are_refused_or_shrunk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Image.new("1", (400, 300)).save(tmp_path / "a.png")
    monkeypatch.setattr(module, "WORK_PIXELS", 30_000)
    [(read, _)] = read_pages(tmp_path / "a.png")
    assert read.size == (200, 150)
    monkeypatch.setattr(module, "MAX_PIXELS", 100_000)
    with pytest.raises(InputError, match="400 × 300 pixels"):
        list(read_pages(tmp_path / "a.png"))
    Image.new("1", (20_000, 20_000)).save(tmp_path / "bomb.png")  # Pillow's own limit
    with pytest.raises(InputError, match="too large"):
        list(read_pages(tmp_path / "bomb.png"))


def test_the_command_skips_what_it_cannot_read(printed: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = printed.parent
    (folder / "text.png").write_text("not a picture")
    (folder / "cut.png").write_bytes(printed.read_bytes()[:400])
    (folder / "broken.pdf").write_bytes(b"%PDF-1.4 nothing")
    (folder / "notes.txt").write_text("left alone")
    (folder / "sub").mkdir()
    printed.rename(folder / "sub" / "invoice.png")
    monkeypatch.setattr(module, "recognize", lambda picture, engine: written((40, 30, "Date: 1/2/2024")))
    assert cli("analyze", "--input", "scans", "--run", "r") == 0
    run = Path("outputs/multimodal_llm/r")
    assert {path.relative_to(run / "pages").as_posix() for path in (run / "pages").rglob("*") if path.is_file()} == {
        "sub/invoice.png-1.json",
        "sub/invoice.png-1.png",
    }
    page = json.loads((run / "pages/sub/invoice.png-1.json").read_text())
    assert page["text"] == "Date: 1/2/2024" and page["pairs"][0]["value"] == "1/2/2024"
    skipped = json.loads((run / "skipped.json").read_text())
    assert {Path(name).name for name in skipped} == {"text.png", "cut.png", "broken.pdf"}
    assert json.loads((run / "results.json").read_text())["metrics"] == {
        "files": 4, "pages": 1, "words": 2, "tables": 0, "pairs": 1, "skipped": 3,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("arguments", "message", "status"),
    [
        (("--input", "nowhere"), "No such file", 1),
        (("--input", "empty"), "no pictures or PDFs", 2),
        (("--input", "a.png"), "neither a picture nor a PDF", 2),
        (("--input", "a.png", "--max_pages", "0"), "max_pages", 2),
        (("--input", "a.png", "--engine", "other"), "engine", 2),
    ],
)
def test_wrong_input_is_one_line(
    arguments: tuple[str, ...], message: str, status: int, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("empty").mkdir()
    Path("a.png").write_text("text")
    assert cli("analyze", *arguments) == status
    error = capsys.readouterr().err
    assert message in error and "Traceback" not in error


def test_analyze_without_input_takes_a_rendered_invoice(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "recognize", lambda picture, engine: written((40, 30, "Date: 1/2/2024")))
    assert cli("analyze", "--run", "r") == 0
    run = Path("outputs/multimodal_llm/r")
    assert Image.open(run / "document.png").size == (900, 1272)
    assert json.loads((run / "results.json").read_text())["data"] == "builtin:documents"
    assert (run / "pages" / "document.png-1.json").exists()


def test_a_pdf_with_a_password_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    pypdf = pytest.importorskip("pypdf")
    writer = pypdf.PdfWriter()
    writer.add_blank_page(200, 100)
    writer.encrypt("secret", algorithm="RC4-128")
    writer.write("locked.pdf")
    assert cli("analyze", "--input", "locked.pdf") == 2
    error = capsys.readouterr().err
    assert "can't be read as a PDF" in error and "without its password" in error and "Traceback" not in error


def test_line_height_does_not_grow_with_a_tilt() -> None:
    line = Line(tuple(Word("w", (i * 30.0, i * 4.0, i * 30.0 + 25, i * 4.0 + 20)) for i in range(9)))
    assert line.height == 20 and line.box[3] - line.box[1] == 52
