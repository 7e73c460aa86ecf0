"""The page in a real browser: documents, answers with quotes on their pages, refusals, and what it refuses to read."""

from pathlib import Path
from typing import Any

import pytest

PAGE = Path(__file__).parents[2] / "qa_system/app/streamlit_ui.py"
LIGHT = "The <b>lighthouse</b> was built in 1874 by the engineer Alan Stevenson. It is 41 metres high."


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


def test_the_page_names_an_answerer_that_is_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from streamlit.testing.v1 import AppTest

    from qa_system.app import streamlit_ui

    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("QA_FOLDER", str(tmp_path / "library"))
    (tmp_path / "light.txt").write_text(LIGHT, encoding="utf-8")
    streamlit_ui.library.clear()
    from qa_system.retrieval.dense_retrieval import Library

    Library(tmp_path / "library").add(tmp_path / "light.txt")
    app = AppTest.from_file(str(PAGE), default_timeout=60)
    app.run()
    assert not app.exception
    app.sidebar.text_input[1].set_value("no/such/folder").run()
    assert not app.exception
    assert "no/such/folder" in app.error[0].value
