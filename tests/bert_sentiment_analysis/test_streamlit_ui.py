"""The demo in a real browser: labels, words, tables, and what it refuses."""

from pathlib import Path
from typing import Any

import pytest

from bert_sentiment_analysis.app import streamlit_ui
from bert_sentiment_analysis.app.streamlit_ui import highlighted
from bert_sentiment_analysis.inference.predictor import Explanation

PAGE = Path(__file__).parents[2] / "bert_sentiment_analysis/app/streamlit_ui.py"


def test_words_are_escaped_and_colored_by_their_share() -> None:
    page = highlighted(Explanation("good", ["<script>", "fine", "bad"], [0.0, 2.0, -1.0], 1.0))
    assert "<script>" not in page
    assert "&lt;script&gt;" in page
    assert "rgba(33, 102, 172, 0.90); padding: 2px 3px; border-radius: 3px; color: white" in page
    assert 'rgba(178, 24, 43, 0.45); padding: 2px 3px; border-radius: 3px"' in page
    assert "overflow-wrap: anywhere" in page


def test_the_page_draws_without_a_model_and_names_one_that_is_missing() -> None:
    from streamlit.testing.v1 import AppTest

    page = AppTest.from_file(str(PAGE), default_timeout=60)
    page.run()
    page.sidebar.radio[0].set_value("Another model").run()
    assert not page.exception
    assert page.info[0].value == "Name a model in the sidebar."
    page.sidebar.text_input[0].set_value("  ").run()
    assert page.info[0].value == "Name a model in the sidebar."
    page.sidebar.text_input[0].set_value(" no/such/folder ").run()
    assert not page.exception
    assert page.error[0].value == "No such file or folder: 'no/such/folder'."


@pytest.mark.parametrize(
    ("text", "warning"),
    [
        ("<br />", "Without its markup, this text is empty."),
        ("😡😡😡", "This text has no word that the model knows."),
    ],
)
def test_a_text_that_the_model_can_not_read_gets_no_label(text: str, warning: str) -> None:
    from streamlit.testing.v1 import AppTest

    page = AppTest.from_file(str(PAGE), default_timeout=120)
    page.run()
    page.text_area[0].set_value(text).run()
    page.button[0].click().run()
    assert not page.exception
    assert page.warning[0].value == warning
    assert not page.metric


@pytest.mark.browser
@pytest.mark.slow
def test_a_text_gets_a_label_and_its_words(page: Any) -> None:
    attack = "<img src=x onerror=\"document.title='broken'\"> what a wonderful film"
    page.get_by_label("Text", exact=True).fill(attack)
    page.get_by_role("button", name="Analyze").click()
    words = page.get_by_test_id("words")
    words.wait_for()
    assert "wonderful" in words.inner_text()
    assert page.get_by_test_id("stMetricValue").first.inner_text() == "positive"
    assert page.title() == "Sentiment analysis"
    page.screenshot(path="one_text.png")


@pytest.mark.browser
@pytest.mark.slow
def test_a_table_gets_labels_a_confusion_matrix_and_a_download(page: Any) -> None:
    rows = ['"wonderful, ""moving"" film\nin two lines",Positive ', "a terrible bore,neg", ",negative"] * 5
    rows.append("so-so,mixed")
    Path("table.csv").write_text("\n".join(["text,label", *rows]), encoding="utf-8")
    page.get_by_role("tab", name="A table").click()
    page.locator("input[type=file]").set_input_files("table.csv")
    page.get_by_text("Confusion matrix").wait_for()
    assert page.get_by_test_id("stMetricValue").first.inner_text() == "1.000"
    page.get_by_text("are read as: Positive → positive, neg → negative.").wait_for()
    page.get_by_text("5 of 16 rows have no text; the figures leave them out.").wait_for()
    page.get_by_text("1 of 16 rows have no label that the model knows").wait_for()
    with page.expect_download() as download:
        page.get_by_role("button", name="Download as csv", exact=True).click()
    content = Path(download.value.path()).read_text(encoding="utf-8")
    assert content.startswith("input_label,text,label,confidence,p(negative),p(positive),note")
    assert content.count("empty text") == 5
    page.screenshot(path="table.png", full_page=True)


@pytest.mark.browser
@pytest.mark.slow
@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"body\nx\n", "has no column with a usual name for the texts"),
        (b"body\nx\n", "write the column's name in the field above"),
        (b"text;label\nx;y\n", "columns are separated by commas"),
        ("text\né\n".encode("latin-1"), "is not UTF-8 text"),
        (b"text\n" + b"x\n" * (streamlit_ui.MOST_ROWS + 1), "rows; 1 to 5,000 are taken here"),
    ],
)
def test_tables_it_can_not_read_are_named(content: bytes, message: str, page: Any) -> None:
    Path("table.csv").write_bytes(content)
    page.get_by_role("tab", name="A table").click()
    page.locator("input[type=file]").set_input_files("table.csv")
    page.get_by_text(message).wait_for()


@pytest.mark.browser
@pytest.mark.slow
def test_files_over_the_limit_are_refused(page: Any) -> None:
    Path("table.csv").write_bytes(b"text\n" + b"long " * 1_200_000)
    page.get_by_role("tab", name="A table").click()
    page.locator("input[type=file]").set_input_files("table.csv")
    page.get_by_text("must be 5.0MB or smaller").wait_for()
    page.get_by_text("up to 5,000 rows and 5 MB").wait_for()


@pytest.mark.browser
@pytest.mark.slow
def test_the_words_of_a_text_go_before_those_of_the_next_come(page: Any) -> None:
    words = page.get_by_test_id("words")
    page.get_by_role("button", name="Analyze").click()
    words.wait_for()
    page.get_by_label("Text", exact=True).fill("a dreadful, endless film " * 40)
    page.get_by_role("button", name="Analyze").click()
    page.get_by_text("Looking for the words behind it").wait_for()
    assert not words.is_visible()
    words.wait_for()
    assert "dreadful" in words.inner_text()
