"""The page in a real browser: documents, answers with quotes on their pages, refusals, and what it refuses to read."""

import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from qa_system.app import streamlit_ui
from qa_system.document_processor.pdf_reader import DamagedError
from qa_system.generation import answer_generator, citation_handler
from qa_system.generation.answer_generator import TextAnswerer, rag_pipeline
from qa_system.retrieval.dense_retrieval import Library

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "qa_system/app/streamlit_ui.py"
LIGHT = "The <b>lighthouse</b> was built in 1874 by the engineer Alan Stevenson. It is 41 metres high."
MARKUP = "![x](https:evil.example) [click](https:evil.example) :red[red] $x^2$ www.evil.example.pdf"


def give(page: Any, path: Path) -> None:
    page.locator("input[type=file]").set_input_files(str(path))
    page.get_by_text(path.name, exact=True).first.wait_for()
    page.get_by_role("button", name="Read them").click()


def ask(page: Any, question: str) -> None:
    page.get_by_placeholder("Ask the documents").fill(question)
    page.keyboard.press("Enter")


def settled(page: Any) -> None:
    """Wait until the page is drawn: a click while it changes may be lost."""
    page.locator("[data-testid=stApp][data-test-script-state=notRunning]").wait_for()
    page.wait_for_timeout(500)  # of the expander's opening


def draw(path: Path, text: str) -> None:
    from matplotlib.backends.backend_pdf import PdfPages
    from matplotlib.figure import Figure

    with PdfPages(path) as book:
        figure = Figure(figsize=(6, 3))
        figure.text(0.1, 0.5, text)
        book.savefig(figure)


@pytest.mark.browser
@pytest.mark.slow
def test_documents_are_read_asked_shown_and_deleted(page: Any, tmp_path: Path) -> None:
    page.get_by_role("button", name="Take the example documents").wait_for()
    (tmp_path / "light.txt").write_text(LIGHT, encoding="utf-8")
    draw(tmp_path / "seals.pdf", "The colony of the skerries has 412 grey seals.")
    (tmp_path / "broken.pdf").write_bytes(b"%PDF-1.7 nothing")

    give(page, tmp_path / "light.txt")
    page.get_by_placeholder("Ask the documents").wait_for()
    ask(page, "Who built the lighthouse?")
    answer = page.get_by_test_id("answer")
    answer.wait_for()
    assert "<b>lighthouse</b>" in answer.inner_text()  # as written, not as markup
    settled(page)
    page.get_by_text("[1] light.txt, page 1").click()
    page.locator("[data-testid=quote] mark").wait_for()

    ask(page, "Who won the world cup in 1966?")
    page.get_by_text("The answer is not in these documents.").first.wait_for()

    give(page, tmp_path / "broken.pdf")
    page.get_by_text("broken.pdf is no PDF").first.wait_for()

    give(page, tmp_path / "seals.pdf")
    page.locator("[data-testid=stChatInputTextArea]:disabled").wait_for()  # a question would wait, too
    page.get_by_test_id("stCheckbox").filter(has_text="seals.pdf").wait_for()
    ask(page, "How many grey seals has the colony?")
    page.get_by_text("[1] seals.pdf, page 1").wait_for()
    settled(page)
    page.get_by_text("[1] seals.pdf, page 1").click()
    settled(page)
    page.get_by_text("Show the page").last.click()
    page.get_by_test_id("stImage").locator("img").wait_for()
    page.screenshot(path=str(tmp_path / "answer.png"), full_page=True)

    settled(page)
    page.get_by_role("tab", name="Compare retrieval").click()
    page.get_by_label("Question", exact=True).fill("How high is the lighthouse?")
    page.keyboard.press("Enter")
    page.get_by_role("heading", name="Words and meaning").wait_for()
    page.locator("mark", has_text="lighthouse").last.wait_for()

    for name in ("light.txt", "seals.pdf"):
        page.get_by_test_id("stSidebar").get_by_role("button", name="✕").first.click()
        page.get_by_test_id("stCheckbox").filter(has_text=name).wait_for(state="detached")
    page.get_by_role("button", name="Take the example documents").wait_for()


@pytest.mark.browser
@pytest.mark.slow
def test_a_name_that_is_markup_is_shown_as_it_is_and_nothing_is_fetched(page: Any, tmp_path: Path) -> None:
    asked_for: list[str] = []
    page.on("request", lambda request: asked_for.append(request.url))
    draw(tmp_path / MARKUP, "The colony of the skerries has 412 grey seals.")
    (tmp_path / f"no {MARKUP}").write_bytes(b"%PDF-1.7 nothing")
    page.locator("input[type=file]").set_input_files([tmp_path / MARKUP, tmp_path / f"no {MARKUP}"])
    page.get_by_test_id("stFileChip").nth(1).wait_for()
    page.get_by_role("button", name="Read them").click()
    error = page.get_by_test_id("stAlert").filter(has_text="is no PDF")
    error.wait_for()
    assert MARKUP in error.inner_text().replace("\u2060", "")
    ask(page, "How many grey seals has the colony?")
    page.get_by_test_id("answer").wait_for()
    settled(page)
    page.get_by_test_id("stExpander").locator("summary").click()
    settled(page)
    page.get_by_text("Show the page").last.click()
    page.get_by_test_id("stImage").locator("img").wait_for()
    page.get_by_test_id("stSidebar").get_by_role("button", name="✕").hover()
    tip = page.get_by_test_id("stTooltipContent")
    tip.wait_for()
    shown = [page.get_by_test_id(f"st{kind}") for kind in ("Checkbox", "Expander", "ImageCaption")]
    for place in [*shown, tip]:
        assert MARKUP in place.first.inner_text().replace("\u2060", "")
    assert page.locator("a[href*=evil], img[src*=evil], .katex").count() == 0
    assert not [url for url in asked_for if "evil" in url]
    page.get_by_test_id("stSidebar").get_by_role("button", name="✕").click()
    page.get_by_role("button", name="Take the example documents").wait_for()


# --- The page without a browser ---------------------------------------------------------------------------------------


@pytest.fixture
def library(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Library]:
    import streamlit

    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("QA_FOLDER", str(tmp_path / "library"))
    streamlit.cache_resource.clear()
    yield Library(tmp_path / "library")
    streamlit.cache_resource.clear()


def opened(*questions: str) -> Any:
    """Open the page as one visitor, and ask."""
    from streamlit.testing.v1 import AppTest

    app = AppTest.from_file(str(PAGE), default_timeout=60).run()
    for question in questions:
        app.chat_input[0].set_value(question).run()
    assert not app.exception
    return app


def said(elements: Any) -> str:
    """Return what elements say, without the escapes."""
    return "\n".join(element.value for element in elements).replace("\\", "")


def with_text(library: Library, path: Path, text: str) -> Any:
    path.parent.mkdir(exist_ok=True)
    path.write_text(text, encoding="utf-8")
    return library.add(path)


def locked(path: Path, text: str) -> None:
    from pypdf import PdfReader, PdfWriter

    draw(path, text)
    writer = PdfWriter(clone_from=PdfReader(path))
    writer.encrypt("secret", algorithm="AES-256")
    writer.write(path)


def test_the_page_names_an_answerer_that_is_missing(library: Library, tmp_path: Path) -> None:
    with_text(library, tmp_path / "light.txt", LIGHT)
    app = opened()
    app.sidebar.text_input[1].set_value("no/such/folder").run()
    assert not app.exception
    assert "no/such/folder" in said(app.error)


def test_only_the_operator_names_an_address_that_answers(
    library: Library, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded: list[str] = []
    monkeypatch.setattr(answer_generator, "load_answerer", loaded.append)
    monkeypatch.setenv("QA_ANSWERER", "openai:own@http://localhost:1/v1")
    with_text(library, tmp_path / "light.txt", LIGHT)
    app = opened()
    assert loaded == ["openai:own@http://localhost:1/v1"]
    app.sidebar.text_input[1].set_value("openai:own@http://evil.example/v1").run()
    assert loaded == ["openai:own@http://localhost:1/v1"]
    assert "an address that a visitor gives" in said(app.error)


def test_a_reranker_is_compared_with_the_other_ways(
    library: Library, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cross_encoder: Callable[..., str]
) -> None:
    with_text(library, tmp_path / "light.txt", LIGHT)
    with_text(library, tmp_path / "seals.txt", "Grey seals rest on the skerries at low tide.")
    assert [way.value for way in opened().subheader] == list(streamlit_ui.MODES)
    monkeypatch.setenv("QA_RERANK", cross_encoder())
    app = opened("Who built the lighthouse?")
    assert [way.value for way in app.subheader] == [*streamlit_ui.MODES, "Reranked"]
    assert "rerank" in said(app.caption)
    assert "rerank" in app.session_state["turns"][0].hits[0].scores
    monkeypatch.setenv("QA_RERANK", "no/such/folder")
    assert "no/such/folder" in said(opened().error)


def test_a_model_that_fails_is_told_of(library: Library, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Broken(TextAnswerer):
        name = "openai:x"

        def generate(self, messages: list[dict[str, str]]) -> Iterator[str]:
            raise ConnectionError("refused")
            yield ""

    monkeypatch.setattr(answer_generator, "load_answerer", lambda name: Broken())
    with_text(library, tmp_path / "light.txt", LIGHT)
    app = opened("Who built the lighthouse?")
    assert "openai:x failed: ConnectionError: refused" in said(app.error)


def test_a_page_is_shown_to_who_has_its_password(library: Library, tmp_path: Path) -> None:
    locked(tmp_path / "locked.pdf", "The safe holds 12 coins.")
    info = library.add(tmp_path / "locked.pdf", password="secret")
    question = "How many coins does the safe hold?"

    giver = opened()
    giver.session_state["reading"].uploads.append(("locked.pdf", (tmp_path / "locked.pdf").read_bytes(), "secret"))
    giver.run().chat_input[0].set_value(question).run()
    giver.toggle[0].set_value(True).run()
    assert len(giver.get("image")) == 1

    other = opened(question)
    other.toggle[0].set_value(True).run()
    assert not other.get("image")
    other.text_input(key="page-0-1-password").set_value("guess").run()
    assert "This is not the password of locked.pdf" in said(other.error)
    assert not other.get("image")
    other.text_input(key="page-0-1-password").set_value("secret").run()
    assert len(other.get("image")) == 1
    assert info.id not in said([*giver.error, *other.error])
    kept = [path.read_bytes() for path in (tmp_path / "library").rglob("*") if path.is_file()]
    assert not any(b"secret" in data for data in kept)


def test_nothing_of_a_deleted_document_is_shown(library: Library, tmp_path: Path) -> None:
    draw(tmp_path / "seals.pdf", "The colony of the skerries has 412 grey seals.")
    info = library.add(tmp_path / "seals.pdf")
    with_text(library, tmp_path / "light.txt", LIGHT)
    app = opened("How many grey seals has the colony?", "Who won the world cup in 1966?")
    app.toggle[0].set_value(True).run()
    assert len(app.get("image")) == 1
    library.delete(info.id)
    app.run()
    assert not app.exception
    assert not app.get("image")
    assert "A document that this answer quotes was deleted." in said(app.info)
    everything = " ".join(str(getattr(element, "proto", "")) for element in app.main).replace("\\", "")
    assert "lighthouse" in everything
    assert "412" not in everything
    assert "seals.pdf" not in everything


def test_a_page_that_cannot_be_drawn_names_its_document(
    library: Library, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(path: Path, *_: Any, **__: Any) -> None:
        raise DamagedError(f"{path.name} can be read, but not drawn.")

    monkeypatch.setattr(citation_handler, "page_image", fail)
    draw(tmp_path / "seals.pdf", "The colony of the skerries has 412 grey seals.")
    library.add(tmp_path / "seals.pdf")
    app = opened("How many grey seals has the colony?")
    app.toggle[0].set_value(True).run()
    assert said(app.error) == "seals.pdf can be read, but not drawn."


def test_documents_of_one_name_are_told_apart(library: Library, tmp_path: Path) -> None:
    old = with_text(library, tmp_path / "old/light.txt", LIGHT)
    new = with_text(library, tmp_path / "new/light.txt", "The harbour master is Ada Holm, who came in 1980.")
    with_text(library, tmp_path / "seals.txt", "Grey seals rest on the skerries at low tide.")
    app = opened("Who built the lighthouse?")
    labels = [box.label.replace("\\", "") for box in app.sidebar.checkbox]
    assert sorted(labels) == sorted([f"light.txt ({old.id[:8]})", f"light.txt ({new.id[:8]})", "seals.txt"])
    assert app.expander[0].label.replace("\\", "") == f"[1] light.txt ({old.id[:8]}), page 1"


def test_rows_of_a_table_stay_on_lines_of_their_own(library: Library, tmp_path: Path) -> None:
    with_text(library, tmp_path / "fares.md", "Fares\n\n| Ticket | Price |\n|---|---|\n| Adult | 9 |\n| Child | 4 |\n")
    app = opened("How much is a child ticket?")
    [quote, *_] = [html.proto.body for html in app.get("html") if 'data-testid="quote"' in html.proto.body]
    assert "white-space: pre-line" in quote
    assert "| Adult | 9 |\n" in quote


def test_a_click_while_a_document_is_read_neither_ends_nor_repeats_the_reading(monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[str] = []

    class Slow:
        def add(self, path: Path, name: str, **_: Any) -> Any:
            time.sleep(0.2)
            read.append(name)
            return SimpleNamespace(id=name, new=True)

    monkeypatch.setattr(streamlit_ui, "library", Slow)
    mine = streamlit_ui.Reading(uploads=[("a.txt", b"a", ""), ("b.txt", b"b", "secret")])
    runs = [threading.Thread(target=mine.read) for _ in range(3)]  # each click starts one
    for run in runs:
        run.start()
    for run in runs:
        run.join()
    assert read == ["a.txt", "b.txt"]
    assert mine.uploads == []
    assert mine.passwords == {"b.txt": "secret"}


@pytest.mark.slow
def test_the_example_questions_have_the_answers_they_should(tmp_path: Path) -> None:
    library = Library(tmp_path)
    for path in (ROOT / "qa_system/builtin/documents").glob("*.pdf"):
        library.add(path)
    texts = [rag_pipeline(question, library)[0].text for question in streamlit_ui.EXAMPLES]
    for text, answer in zip(texts, ["£4.75", "£412,000", "2.00英镑", "not in these documents"], strict=True):
        assert answer in text


def test_make_serves_pages_that_report_to_no_one_and_offer_no_deployment() -> None:
    lines = [line for line in (ROOT / "Makefile").read_text().splitlines() if "streamlit run" in line]
    assert len(lines) == 4
    for line in lines:
        assert "--browser.gatherUsageStats false --client.toolbarMode minimal" in line
