"""The page in a real browser: captions, questions, documents, labels, search; and what it refuses."""

import re
from pathlib import Path
from typing import Any

import pytest

from multimodal_llm.app import streamlit_ui
from multimodal_llm.app.streamlit_ui import Given, draw_document, fields_of, read, with_boxes
from multimodal_llm.builtin import scenes
from multimodal_llm.clip_applications.image_search import GALLERY_SIZE, distinct_scenes
from multimodal_llm.document_understanding.document_qa import DocumentQA
from multimodal_llm.document_understanding.layout_analysis import Page, Word, analyze_words
from shared.errors import InputError

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "multimodal_llm/app/streamlit_ui.py"
MARKUP = "![x](https:evil.example) :red[red] $x^2$ www.evil.example"
ATTACK = "<img src=x onerror=\"document.title='broken'\">"


# --- In a browser -----------------------------------------------------------------------------------------------------


@pytest.fixture
def page(page: Any) -> Any:
    """Give the page the time that its models and the reading of a document take on a busy machine."""
    from playwright.sync_api import expect

    expect.set_options(timeout=180_000)
    page.set_default_timeout(180_000)
    return page


def settled(page: Any) -> None:
    """Wait until the page is drawn: a click while it changes may be lost."""
    page.wait_for_timeout(300)
    page.locator("[data-testid=stApp][data-test-script-state=notRunning]").wait_for()
    page.wait_for_timeout(300)


def shown(page: Any, test_id: str) -> Any:
    return page.get_by_test_id(test_id).filter(visible=True)


def says(page: Any, test_id: str, text: str | re.Pattern[str]) -> None:
    """Wait until something says just this, or what a pattern finds."""
    from playwright.sync_api import expect

    expect(shown(page, test_id)).to_have_text(text)


def has(page: Any, test_id: str, *texts: str) -> None:
    """Wait until something holds these texts."""
    from playwright.sync_api import expect

    for text in texts:
        expect(shown(page, test_id)).to_contain_text(text)


def numbers(page: Any, test_id: str, count: int) -> None:
    from playwright.sync_api import expect

    expect(shown(page, test_id)).to_have_count(count)


def fill(page: Any, label: str, text: str) -> None:
    page.get_by_label(label, exact=True).filter(visible=True).fill(text)
    page.keyboard.press("ControlOrMeta+Enter")  # also of a text area
    settled(page)


def press(page: Any, name: str) -> None:
    page.get_by_role("button", name=name, exact=True).filter(visible=True).click()
    settled(page)


def open_tab(page: Any, name: str) -> None:
    settled(page)
    page.get_by_role("tab", name=name).click()
    settled(page)


def upload(page: Any, path: Path) -> None:
    """Upload a file in the open tab, in place of the one before."""
    drop = shown(page, "stFileUploader")
    drop.locator("input[type=file]").set_input_files(str(path))
    drop.get_by_text(path.name[-10:]).first.wait_for()  # it shortens names
    settled(page)


@pytest.fixture
def scene(tmp_path: Path) -> tuple[Path, scenes.Scene]:
    its = next(its for its in scenes.scenes("test", 100, 77) if len(its.objects) == 1)
    path = tmp_path / f"scene {MARKUP}.png"
    scenes.render(its).save(path)
    return path, its


@pytest.mark.browser
@pytest.mark.slow
def test_an_image_is_captioned_and_asked_about(page: Any, scene: tuple[Path, scenes.Scene], tmp_path: Path) -> None:
    shown(page, "answer").wait_for()
    first = shown(page, "caption").inner_text()
    page.get_by_text(f"It was drawn as {first}.").wait_for()
    page.get_by_text("Right is: ").wait_for()
    press(page, "Another scene")
    page.get_by_text(f"It was drawn as {first}.").wait_for(state="detached")

    path, its = scene
    color = its.objects[0].color
    upload(page, path)
    says(page, "caption", its.caption)
    page.get_by_text("It was drawn as").wait_for(state="detached")
    fill(page, "Question", f"what color is the {its.objects[0].shape}?")
    says(page, "answer", color)
    fill(page, "Answers to choose from", f"pink，{color}, {ATTACK}")
    says(page, "bars", re.compile(f"^{color}"))
    has(page, "bars", ATTACK, "pink")
    fill(page, "Question", "图里有几个圆？")  # not its script
    says(page, "stAlert", re.compile("can't read '图里有几个圆？'"))
    numbers(page, "answer", 0)
    fill(page, "Question", "how many circles are there?")
    numbers(page, "stAlert", 0)
    assert page.title() == "Images and documents"

    (tmp_path / "text.png").write_text("no image", encoding="utf-8")
    upload(page, tmp_path / "text.png")
    says(page, "stAlert", "text.png is no image that can be read here, or damaged.")
    numbers(page, "caption", 0)
    (tmp_path / "large.png").write_bytes(bytes(21 << 20))
    upload(page, tmp_path / "large.png")
    page.get_by_text("20.0MB or smaller").wait_for()


@pytest.mark.browser
@pytest.mark.slow
def test_a_model_that_is_missing_is_told_of_and_the_others_work(page: Any) -> None:
    shown(page, "answer").wait_for()
    settled(page)
    fill(page, "Captions", "no/such/folder")
    has(page, "stAlert", "no/such/folder")
    numbers(page, "caption", 0)
    shown(page, "answer").wait_for()


@pytest.mark.browser
@pytest.mark.slow
def test_a_document_is_read_asked_and_shown_where_the_answer_stands(page: Any, tmp_path: Path) -> None:
    from matplotlib.backends.backend_pdf import PdfPages
    from matplotlib.figure import Figure
    from playwright.sync_api import expect

    asked_for: list[str] = []
    page.on("request", lambda request: asked_for.append(request.url))
    open_tab(page, "Documents")
    shown(page, "found").wait_for()
    _, drawn = draw_document(0)
    its = {one.key: one.value for one in drawn.fields}
    has(page, "fields", its["total"])
    fill(page, "Question", "What is the total?")
    says(page, "found", its["total"])
    press(page, drawn.questions[-1].question)
    has(page, "stAlert", "Not in this document.")

    words = "![x](//evil.example) <b>bold</b> $x^2$ www.evil.example"  # a colon would make labels of them
    with PdfPages(tmp_path / "two.pdf") as book:
        for lines in ([f"Name: {words}", f"Department: {ATTACK}"], ["Subtotal: $10.00", "Total: $12.50"]):
            figure = Figure(figsize=(9, 3))
            for number, line in enumerate(lines):
                figure.text(0.05, 0.7 - 0.2 * number, line.replace("$", r"\$"))
            book.savefig(figure)
    upload(page, tmp_path / "two.pdf")
    has(page, "fields", words, ATTACK)
    fill(page, "Question", "总金额是多少？")
    says(page, "found", "$12.50")
    number = page.get_by_label("Page", exact=True)
    expect(number).to_have_value("2")
    fill(page, "Question", "What is the name?")
    says(page, "found", words)
    expect(number).to_have_value("1")
    page.get_by_text("Words, blocks and tables, too").click()
    page.get_by_text("Gray: words.").wait_for()
    assert page.locator("a[href*=evil], img[src*=evil], .katex").count() == 0
    assert not [url for url in asked_for if "evil" in url]
    assert page.title() == "Images and documents"

    (tmp_path / "broken.pdf").write_bytes(b"%PDF-1.7 nothing")
    upload(page, tmp_path / "broken.pdf")
    says(page, "stAlert", re.compile(r"^broken\.pdf can't be read as a PDF"))


@pytest.mark.browser
@pytest.mark.slow
def test_an_image_is_put_to_labels(page: Any, scene: tuple[Path, scenes.Scene]) -> None:
    open_tab(page, "Labels")
    shown(page, "bars").wait_for()
    path, its = scene
    upload(page, path)
    right = f"{its.objects[0].color} {its.objects[0].shape}"
    others = [f"{color} {shape}" for color in scenes.COLORS for shape in scenes.SHAPES]
    fill(page, "Labels, one a line", "\n".join([*others, ATTACK]))
    says(page, "bars", re.compile(f"^{right}"))
    has(page, "bars", ATTACK)
    fill(page, "Labels, one a line", f"圆形\n\n{right}\n{right}")
    page.get_by_text("一幅圆形的画").wait_for()  # the prompts follow the labels' language
    assert sorted(re.findall(rf"{right}|圆形", shown(page, "bars").inner_text())) == sorted([right, "圆形"])
    fill(page, "Labels, one a line", "\n".join(map(str, range(101))))
    says(page, "stAlert", "There may be 100 labels. Got 101.")
    fill(page, "Labels, one a line", " ")
    says(page, "stAlert", "Name a label.")


@pytest.mark.browser
@pytest.mark.slow
def test_a_gallery_and_a_folder_are_searched(page: Any, scene: tuple[Path, scenes.Scene], tmp_path: Path) -> None:
    open_tab(page, "Search")
    page.get_by_text("200 images: 200 new.").wait_for()
    numbers(page, "hit", 6)
    assert shown(page, "hit").first.inner_text().endswith("scene-003.png")
    says(page, "stAlert", "A match.")
    press(page, distinct_scenes(GALLERY_SIZE + 1)[-1].scene.caption)  # the one example that is not in the gallery
    says(page, "stAlert", re.compile("^No match"))
    numbers(page, "hit", 6)

    page.get_by_text("A folder of this machine").click()
    says(page, "stAlert", "Name a folder.")
    settled(page)
    missing = str(tmp_path / MARKUP)
    fill(page, "Folder", missing)
    has(page, "stAlert", "There is no folder")
    assert missing in shown(page, "stAlert").inner_text().replace("\u2060", "")
    path, its = scene
    scenes.render(next(iter(scenes.scenes("train", 1, 5)))).save(tmp_path / "other.png")
    (tmp_path / "zcopy.png").write_bytes(path.read_bytes())
    (tmp_path / "broken.png").write_bytes(path.read_bytes()[:100])
    fill(page, "Folder", str(tmp_path))
    page.get_by_text(re.compile("2 images: 2 new, 1 duplicates. 1 left out")).wait_for()
    fill(page, "What to look for", its.caption)
    has(page, "stAlert", "is not known here")
    numbers(page, "hit", 2)
    page.get_by_text("Image", exact=True).click()
    shown(page, "stFileUploader").wait_for()
    settled(page)
    upload(page, path)
    page.get_by_test_id("hit").filter(has_text="1.000").wait_for()
    best = shown(page, "hit").first.inner_text()
    assert MARKUP in best
    assert "and 1 more with this content" in best
    (tmp_path / "other.png").unlink()
    press(page, "Look again")
    page.get_by_text(re.compile("^1 images: 1 deleted")).wait_for()
    assert page.locator("a[href*=evil], img[src*=evil], .katex").count() == 0


# --- The page without a browser ---------------------------------------------------------------------------------------


def page_of(*rows: list[tuple[str, int]]) -> Page:
    """Return a page of words, each at its distance from the left."""
    words = [Word(part, (left + 12 * i, 40 * number, left + 12 * i + 10 * len(part), 40 * number + 20))
             for number, row in enumerate(rows, 1) for text, left in row
             for i, part in zip(range(len(text)), text.split(), strict=False)]  # fmt: skip
    return analyze_words(words, 800, 400)


def test_columns_of_a_table_are_no_fields() -> None:
    rows = [[("Item", 10), ("Quantity", 300), ("Price", 600)], *[[("Pen", 10), (str(n), 300), ("4.50", 600)]
            for n in (3, 4, 5)], [("Date:", 10), ("2024-05-06", 100)]]  # fmt: skip
    page = page_of(*rows)
    assert page.tables
    assert [(pair.key, pair.value) for pair in fields_of(page)] == [("Date", "2024-05-06")]


def test_boxes_are_drawn_around_labels_values_and_the_answer() -> None:
    from PIL import Image

    page = page_of([("Date:", 10), ("2024-05-06", 100)])
    [pair] = fields_of(page)
    picture = Image.new("RGB", (800, 400), "white")
    plain = with_boxes(page, picture, None, everything=False)
    corner = (int(pair.value_box[0]), int(pair.value_box[1]))
    assert plain.getpixel(corner) == streamlit_ui.COPPER
    assert plain.getpixel((300, 300)) == (255, 255, 255)
    assert with_boxes(page, picture, (300, 300, 350, 320), everything=False).getpixel((300, 300)) == (214, 39, 40)
    assert picture.getpixel(corner) == (255, 255, 255)  # the page itself stays as it is


def test_an_error_calls_an_upload_by_its_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(streamlit_ui.st, "session_state", {})
    with pytest.raises(InputError, match=r"^mine\.png is neither a picture nor a PDF"):
        read(DocumentQA(), Given("mine.png", b"text", 0))


def test_what_is_kept_is_made_anew_for_another_signature_and_after_a_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(streamlit_ui.st, "session_state", {})
    made: list[int] = []

    def make() -> int:
        made.append(1)
        if len(made) == 2:
            raise InputError("no")
        return len(made)

    assert [streamlit_ui.kept("a", 1, make), streamlit_ui.kept("a", 1, make)] == [1, 1]
    with pytest.raises(InputError):
        streamlit_ui.kept("a", 2, make)
    assert [streamlit_ui.kept("a", 2, make), streamlit_ui.kept("a", 2, make)] == [3, 3]


def test_drawn_documents_begin_with_an_invoice_and_have_all_kinds() -> None:
    families = [draw_document(number)[1].family for number in range(8)]
    assert families[0] == "invoice classic"
    assert len(set(families)) == 8
