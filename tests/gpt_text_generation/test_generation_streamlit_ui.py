"""The page in a real browser: tokens, an article, a program with its tests, a study; and what it refuses."""

import gc
import io
import itertools
import math
import random
import re
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from gpt_text_generation import code_generator
from gpt_text_generation.app import streamlit_ui
from gpt_text_generation.app.streamlit_ui import Piece, edit_outline, new_demo, pieces_html, pieces_of
from gpt_text_generation.builtin import stories
from gpt_text_generation.creative_writing_assistant import Article, Brief, Section
from gpt_text_generation.evaluation.human_evaluation import Design, Study
from gpt_text_generation.text_generator import Generation, Settings, TextGenerator

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "gpt_text_generation/app/streamlit_ui.py"
HEAD = 'def double(x):\n    """Return twice the number."""\n'
ATTACK = "<img src=x onerror=\"document.title='broken'\">"
MARKUP = "![x](https:evil.example) [click](https:evil.example) :red[red] $x^2$ www.evil.example"


@pytest.fixture(scope="module")
def folder(make_tiny: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> str:
    """A model of seconds: one function by heart, and something like words in something like sentences."""
    import torch
    from transformers import AutoTokenizer, GPT2Config, GPT2LMHeadModel

    place = tmp_path_factory.mktemp("learned") / "model"
    tokenizer = AutoTokenizer.from_pretrained(make_tiny(place))
    end = tokenizer.eos_token_id
    torch.manual_seed(0)
    model = GPT2LMHeadModel(GPT2Config(
        vocab_size=len(tokenizer), n_positions=128, n_embd=64, n_layer=2, n_head=4, bos_token_id=end, eos_token_id=end,
        resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0,
    ))  # fmt: skip
    program = torch.tensor([[*tokenizer(HEAD + "    return 2 * x\n")["input_ids"], end]])
    chinese = [
        f"{who}{what}。" for who, what in itertools.product("她他我猫鱼", ("看海", "找门", "吃饭", "回家", "唱歌"))
    ]
    random.Random(0).shuffle(chinese)
    texts = ["\n".join(stories.stories(60)), "".join(chinese) * 3]
    english, others = (torch.tensor(tokenizer(text)["input_ids"]) for text in texts)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    for _ in range(120):
        rows = torch.stack([ids[first : first + 64] for ids in (english, others)
                            for first in torch.randint(len(ids) - 64, (4,)).tolist()])  # fmt: skip
        (model(input_ids=rows, labels=rows).loss + model(input_ids=program, labels=program).loss).backward()
        optimizer.step()
        optimizer.zero_grad()
    model.save_pretrained(place)
    return str(place)


# --- In a browser -----------------------------------------------------------------------------------------------------


def settled(page: Any) -> None:
    """Wait until the page is drawn: a click while it changes may be lost."""
    page.locator("[data-testid=stApp][data-test-script-state=notRunning]").wait_for()
    page.wait_for_timeout(300)


def choose(page: Any, folder: str) -> None:
    settled(page)
    page.get_by_test_id("stSidebar").get_by_text("Another model").click()
    page.get_by_label("Folder or hub id", exact=True).wait_for()
    settled(page)
    fill(page, "Folder or hub id", folder)
    page.get_by_text("a context of 128 tokens").wait_for()
    settled(page)


def fill(page: Any, label: str, text: str) -> None:
    page.get_by_label(label, exact=True).fill(text)
    page.keyboard.press("Tab")
    settled(page)


def press(page: Any, name: str, number: int = 0) -> None:
    page.get_by_role("button", name=name, exact=True).nth(number).click()
    page.wait_for_timeout(100)
    settled(page)


def alone(page: Any, message: str) -> None:
    """Wait for an error, and for those before it to go."""
    page.get_by_test_id("stAlert").filter(has_text=message).wait_for()
    settled(page)
    assert page.get_by_test_id("stAlert").filter(visible=True).count() == 1


def open_tab(page: Any, name: str) -> None:
    page.get_by_role("tab", name=name).click()
    settled(page)


@pytest.mark.browser
@pytest.mark.slow
def test_tokens_are_shown_with_their_probabilities_side_by_side_and_streamed(page: Any, folder: str) -> None:
    choose(page, folder)
    fill(page, "Prompt", f"{ATTACK} 从前有座山 Maya")
    press(page, "Write")
    tokens = page.get_by_test_id("tokens")
    tokens.nth(1).wait_for()
    assert tokens.count() == 2
    assert "likeliest here:" in tokens.first.locator("span").first.get_attribute("title")
    page.locator("[data-testid=stVegaLiteChart] canvas, [data-testid=stVegaLiteChart] svg").first.wait_for()
    fill(page, "Prompt", "sea " * 400)
    press(page, "Write")
    alone(page, "leaves no room in the model's context of 128")
    assert page.title() == "Text generation"

    page.get_by_test_id("stSidebar").get_by_text("Stories").click()
    page.get_by_text("a context of 256 tokens").wait_for()
    fill(page, "Prompt", "Maya lived by the sea.")
    page.get_by_role("button", name="Remove nucleus").click()
    settled(page)
    page.get_by_role("slider", name="max_new_tokens").press("End")
    settled(page)
    page.evaluate("""() => {  // a stream may be over before anybody asks for it
        window.seen = [];
        new MutationObserver(() => {
            const stream = document.querySelector("[data-testid=stream]");
            if (stream) window.seen.push(stream.innerText);
        }).observe(document.body, {childList: true, subtree: true});
    }""")
    page.get_by_role("button", name="Write", exact=True).click()
    page.wait_for_function("window.seen.length && !document.querySelector('[data-testid=stream]')")
    tokens.wait_for()
    seen = page.evaluate("window.seen")
    assert len(set(seen)) > 1  # it grew
    assert tokens.inner_text().replace("↵", "").strip().startswith(seen[0][:20].strip())


@pytest.mark.browser
@pytest.mark.slow
def test_an_article_is_planned_edited_written_and_downloaded(page: Any, folder: str) -> None:
    from docx import Document
    from playwright.sync_api import expect

    expect.set_options(timeout=60_000)
    choose(page, folder)
    open_tab(page, "Writing assistant")
    fill(page, "Topic", "小雨的风筝 <b>")
    fill(page, "Style", ATTACK)
    fill(page, "Names, up to 5", "小雨、Maya")
    press(page, "Plan an article")
    expect(page.get_by_label("Outline, a title a line", exact=True)).to_have_value("开始\n难走的路\n结局")
    fill(page, "Outline, a title a line", f"{MARKUP}\n结局\n")
    expect(page.get_by_label("Text of section 3", exact=True)).to_have_count(0)
    press(page, "Write all that is missing")
    first, second = (page.get_by_label(f"Text of section {number}", exact=True) for number in (1, 2))
    page.get_by_role("button", name="Markdown").wait_for()
    settled(page)
    assert "小雨" in first.input_value()
    assert second.input_value()
    fill(page, "Text of section 1", f"改写了。{ATTACK}")
    written = second.input_value()
    press(page, "Write", 1)
    expect(second).not_to_have_value(written)
    settled(page)
    expect(second).not_to_be_empty()
    assert first.input_value() == f"改写了。{ATTACK}"
    with page.expect_download() as download:
        page.get_by_role("button", name="Markdown").click()
    content = Path(download.value.path()).read_text(encoding="utf-8")
    assert content.startswith("# 小雨的风筝 <b>\n")
    assert f"## {MARKUP}\n\n改写了。" in content
    with page.expect_download() as download:
        page.get_by_role("button", name="Word").click()
    paragraphs = [one.text for one in Document(io.BytesIO(Path(download.value.path()).read_bytes())).paragraphs]
    assert f"改写了。{ATTACK}" in paragraphs
    assert page.locator("a[href*=evil], img[src*=evil], .katex").count() == 0

    fill(page, "Topic", "  ")
    press(page, "Write 3 openings of a story")
    alone(page, "topic must not be empty.")
    fill(page, "Topic", "a kite")
    press(page, "Write 3 openings of a story")
    page.get_by_test_id("opening").nth(2).wait_for()
    assert first.input_value() == f"改写了。{ATTACK}"
    assert page.title() == "Text generation"


@pytest.mark.browser
@pytest.mark.slow
@pytest.mark.skipif(bool(code_generator.missing_protection(code_generator.protections())), reason="there is no sandbox")
def test_a_program_is_written_and_tested(page: Any, folder: str) -> None:
    choose(page, folder)
    open_tab(page, "Code generator")
    page.get_by_text("that are active here: limits").wait_for()
    fill(page, "Description", "Return twice the number.")
    fill(page, "Signature", "def double(x)")
    fill(page, "Tests", "assert double(2) == 4\nassert double('海') == '海海'")
    press(page, "Write the program")
    page.get_by_text("All tests passed.").wait_for()
    assert "return 2 * x" in page.get_by_test_id("stCode").first.inner_text()
    fill(page, "Tests", f"assert double(2) == 5, '{ATTACK[:9]}'")
    press(page, "Write the program")
    page.get_by_text("did not pass: failed").wait_for()
    page.get_by_text("double(2) → 4").first.wait_for()
    assert page.get_by_text("All tests passed.").count() == 0
    for label, text, message in (
        ("Tests", "double(2)", "The tests check nothing."), ("Tests", "assert double(", "The tests are not Python"),
        ("Signature", "double", "signature must be a function's head. Got 'double'."),
    ):  # fmt: skip
        fill(page, label, text)
        press(page, "Write the program")
        alone(page, message)


@pytest.mark.browser
@pytest.mark.slow
def test_a_visitor_rates_a_study_of_their_own(page: Any, folder: str, address: str) -> None:
    choose(page, folder)
    open_tab(page, "Rating")
    page.get_by_label("Ask for", exact=True).click()
    page.get_by_role("option", name="Pairs").click()
    press(page, "Make the study")
    fill(page, "Your name", "小明 <b>")
    items = page.get_by_test_id("item")
    items.nth(1).wait_for()
    assert not re.search("greedy|nucleus|sampling", page.get_by_test_id("stForm").last.inner_text())
    press(page, "Next")
    page.get_by_text("Choose an answer.").wait_for()
    for done in (1, 2):
        page.get_by_test_id("stMain").get_by_role("radiogroup").locator("label").first.click()
        press(page, "Next")
        page.get_by_text(re.compile(rf"{done} of \d+ answered")).wait_for()
        settled(page)
    page.get_by_text("Show the report, which names the systems").click()
    page.get_by_test_id("stImage").locator("img").wait_for()
    assert "小明 <b>" in page.get_by_test_id("stCode").inner_text()

    other = page.context.browser.new_page()
    other.goto(address)
    other.get_by_text("a context of 256 tokens").wait_for()
    open_tab(other, "Rating")
    other.get_by_role("button", name="Make the study").wait_for()
    assert other.get_by_label("Your name", exact=True).count() == 0


# --- The page without a browser ---------------------------------------------------------------------------------------


@pytest.fixture
def visit(folder: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[], Any]]:
    """Return what opens the page as a new visitor who has chosen the model."""
    import streamlit
    from streamlit.testing.v1 import AppTest

    monkeypatch.chdir(tmp_path)
    streamlit.cache_resource.clear()

    def opened(model: str = folder) -> Any:
        app = AppTest.from_file(str(PAGE), default_timeout=60).run()
        app.sidebar.radio[0].set_value("Another model").run()
        app.sidebar.text_input[0].set_value(model).run()
        assert not app.exception
        return app

    yield opened
    streamlit.cache_resource.clear()


def said(elements: Any) -> str:
    """Return what elements say, without the escapes."""
    return "\n".join(element.value for element in elements).replace("\\", "").replace("\u2060", "")


def shown(app: Any, name: str) -> str:
    return "\n".join(one.proto.body for one in app.get("html") if f'data-testid="{name}"' in one.proto.body)


def button(app: Any, label: str) -> Any:
    return next(one for one in app.button if one.label == label)


def field(app: Any, label: str) -> Any:
    return next(one for one in [*app.text_input, *app.text_area] if one.label == label)


@pytest.mark.parametrize(("model", "message"), [("no/such/folder", "No such file or folder: 'no/such/folder'."),
                                                (".", "holds no model for this"),
                                                ("builtin:poems", "There is no 'builtin:poems'.")])  # fmt: skip
def test_a_model_that_can_not_be_had_is_named_once(visit: Callable[..., Any], model: str, message: str) -> None:
    app = visit(model)
    assert message in said(app.error)
    assert len(app.error) == 1
    assert not app.get("button")
    app.sidebar.text_input[0].set_value(" ").run()
    assert [one.value for one in app.info] == ["Name a model in the sidebar."] * 4


def test_models_that_are_asked_for_at_once_are_all_loaded(folder: str, tiny_folder: Path) -> None:
    streamlit_ui.st.cache_resource.clear()
    names = [folder, str(tiny_folder)] * 2
    with ThreadPoolExecutor(len(names)) as pool:
        loaded = list(pool.map(streamlit_ui.load, names))
    assert loaded[0] is loaded[2]
    assert loaded[1] is loaded[3]
    assert [one.language_model.context for one in loaded[:2]] == [128, 64]


def test_what_visitors_write_at_once_is_their_own(visit: Callable[..., Any]) -> None:
    one, other = visit(), visit()
    for app, topic in ((one, "a kite"), (other, "风筝")):
        field(app, "Topic").set_value(topic)
        button(app, "Plan an article").click().run()
        button(app, "Write").click().run()
    one.run()
    assert field(one, "Outline, a title a line").value == "The beginning\nA hard way\nThe end"
    assert field(other, "Outline, a title a line").value == "开始\n难走的路\n结局"
    assert shown(one, "tokens")
    assert one.session_state["article"] is not other.session_state["article"]


def test_without_a_sandbox_programs_are_refused_and_nothing_is_run(
    visit: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(code_generator, "_probe", lambda layers: ((), {"limits": "not on this system"}))
    monkeypatch.setattr(code_generator, "_watch", None)
    app = visit()
    assert "active here: none" in said(app.caption)
    button(app, "Write the program").click().run()
    assert "Here is no sandbox to run the code in" in said(app.error)
    assert "Linux with namespaces or Landlock" in said(app.caption)
    assert not app.exception


def make_study(path: Path, **design: Any) -> Study:
    texts = {
        system: {f"{MARKUP} {prompt}": f"{ATTACK} {system} {prompt}" for prompt in "甲乙"} for system in ("a", "b")
    }
    return Study.create(path, texts, Design(check_every=0, **design), MARKUP)


def test_raters_go_on_where_they_stopped_and_need_no_model(
    visit: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    study = make_study(tmp_path / "study.sqlite", kinds=("likert",), language="zh")
    monkeypatch.setenv("GENERATION_STUDY", str(study.path))
    app = visit("")
    assert MARKUP in said(app.subheader)
    for name, answers in (("Anna", 3), ("小明", 1)):
        field(app, "Your name").set_value(name).run()
        for number in range(answers):
            app.main.radio[0].set_value(number + 1)
            button(app, "Next").click().run()
    again = visit("")
    field(again, "Your name").set_value(" Anna ").run()
    assert "3 of 4 answered" in again.get("progress")[0].proto.text
    assert ATTACK not in shown(again, "item")
    assert "&lt;img" in shown(again, "item")
    assert again.main.radio[0].label.replace("\\", "") == "这篇文本的“quality”如何？"
    assert list(again.main.radio[0].options) == ["1 最差", "2 ", "3 ", "4 ", "5 最好"]
    again.main.radio[0].set_value(5)
    button(again, "Next").click().run()
    assert "Thank you." in said(again.success)
    assert not app.exception
    assert not again.exception
    values = [(one.rater, one.value) for one in study.ratings()]
    assert values == [("Anna", 1), ("Anna", 2), ("Anna", 3), ("小明", 1), ("Anna", 5)]
    assert all(one.seconds is not None and one.seconds < 600 for one in study.ratings())
    again.checkbox[0].set_value(True).run()
    assert "quality, likert: alpha, ordinal" in again.code[0].value


@pytest.mark.parametrize("content", [None, "no study"])
def test_a_study_that_can_not_be_opened_is_named(
    visit: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: str | None
) -> None:
    path = tmp_path / "study.sqlite"
    if content:
        path.write_text(content)
    monkeypatch.setenv("GENERATION_STUDY", str(path))
    app = visit("")
    assert ("is no study" if content else "There is no study") in said(app.error)
    assert len(app.error) == 1


def test_a_study_without_ratings_and_a_rater_without_a_name_are_told(
    visit: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GENERATION_STUDY", str(make_study(tmp_path / "study.sqlite").path))
    app = visit("")
    app.checkbox[0].set_value(True).run()
    assert "No text has been rated yet." in said(app.info)
    field(app, "Your name").set_value("a\u200bb").run()
    assert "1 to 80 printable characters" in said(app.error)


def test_a_demo_study_is_gone_with_who_holds_it(folder: str) -> None:
    demo = new_demo(TextGenerator(folder), Design(("likert",)))
    path = Path(demo.name)
    assert set(Study.open(path / "study.sqlite").systems) == set(streamlit_ui.DEMO_SYSTEMS)
    with pytest.warns(ResourceWarning):
        del demo
        gc.collect()
    assert not path.exists()


# --- Pieces and outlines ----------------------------------------------------------------------------------------------


def test_pieces_are_whole_letters_and_keep_the_probability(tiny_folder: Path) -> None:
    generator = TextGenerator(str(tiny_folder))
    model = generator.language_model
    ids = [*model.encode("海 is\nwide"), next(iter(model.ends()))]
    [scores] = generator._scores([[*model.encode("Maya"), *ids]])
    made = Generation("Maya", "海 is\nwide", ids, scores[-len(ids) :], "end")
    pieces = pieces_of(generator, made)
    assert pieces[0].text == "海"
    assert len(pieces) == len(ids) - 2  # the letter has three tokens
    assert "".join(piece.text for piece in pieces) == "海 is\nwide<|endoftext|>"
    assert sum(piece.log_probability for piece in pieces) == pytest.approx(sum(made.log_probabilities))
    broken = replace(made, token_ids=ids[:2], log_probabilities=made.log_probabilities[:2])
    assert [piece.text for piece in pieces_of(generator, broken)] == ["\ufffd", "\ufffd"]


def test_what_else_was_likely_is_what_greedy_search_chose_from(tiny_folder: Path) -> None:
    generator = TextGenerator(str(tiny_folder))
    [made] = generator.generate(["Maya"], Settings("greedy", max_new_tokens=20))
    for piece, score in zip(pieces_of(generator, made), made.log_probabilities, strict=False):
        if "\ufffd" in piece.text:
            break  # from here a piece may have several tokens
        text, probability = piece.others[0]
        assert (text, probability) == (piece.text, pytest.approx(math.exp(score), rel=1e-4))
        assert [one for _, one in piece.others] == sorted((one for _, one in piece.others), reverse=True)


def test_pieces_are_escaped_and_the_darker_the_less_likely() -> None:
    pieces = [Piece("<b>", 0.0, [('"><script>', 0.5)]), Piece("\n", math.log(1e-6), [])]
    page = pieces_html(pieces)
    assert "<b>" not in page
    assert "<script>" not in page
    assert "&lt;b&gt;</span>" in page
    assert "↵\n</span>" in page
    assert re.findall(r"6, (\d\.\d\d)\)", page) == ["0.00", "0.75"]


@pytest.mark.parametrize(("outline", "kept"), [
    ("C\nA\nB", "C=c A=a B=b"), ("A\n  new  one \nC", "A=a new one=b C=c"), ("A\nC", "A=a C=c"),
    ("A\nX\nB\nC", "A=a X= B=b C=c"), ("\n \n", "A=a B=b C=c"), ("A\nA\nB\nC", "A=a A= B=b C=c"),
    ("\n".join("ABCDEFGHIJK"), "A=a B=b C=c D= E= F= G= H="),
])  # fmt: skip
def test_texts_stay_with_their_titles(outline: str, kept: str, monkeypatch: pytest.MonkeyPatch) -> None:
    sections = [Section(title, title.lower(), 3) for title in "ABC"]
    article = Article(Brief("a kite"), "A kite", sections)
    monkeypatch.setattr(streamlit_ui.st, "session_state", {"outline": outline})
    edit_outline(article)
    assert " ".join(f"{section.title}={section.text}" for section in article.sections) == kept
    assert all(section.seed == 3 for section in article.sections)
