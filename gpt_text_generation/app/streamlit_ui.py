"""A page to see how text comes into being: strategies, a writing assistant, code with its tests, and a study.

    streamlit run gpt_text_generation/app/streamlit_ui.py     # or: make serve-generation
    GENERATION_STUDY=study.sqlite streamlit run gpt_text_generation/app/streamlit_ui.py     # raters answer that study

All visitors share the models. What one of them writes is in a session of their own and ends with it; only the study
that GENERATION_STUDY names is everybody's.
"""

from __future__ import annotations

import html
import itertools
import logging
import math
import os
import re
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import streamlit as st

from gpt_text_generation.code_generator import EXAMPLE, Candidate, CodeGenerator, Limits, make_problem, protections
from gpt_text_generation.creative_writing_assistant import Article, Section, WriterConfig, WritingAssistant, figures
from gpt_text_generation.evaluation.human_evaluation import Design, Study, plot_report, report
from gpt_text_generation.text_generator import STRATEGIES, Generation, Settings, TextGenerator, read_prompts, text_after
from shared.errors import InputError
from shared.logs import hush_libraries

MODELS = {"Stories": "builtin:stories", "Python": "builtin:python", "Another model": ""}
PROMPTS = {"builtin:python": 'def double(xs: list[int]) -> list[int]:\n    """Return the numbers, doubled."""\n'}
PROMPT = "Maya lived by the sea. One morning"
LONGEST_PROMPT, LONGEST_CODE, LONGEST_SECTION = 2_000, 5_000, 10_000  # characters
MOST_TOKENS, MOST_SECTIONS, MOST_NAMES, OPENINGS = 300, 8, 5, 3
LIMITS = Limits(seconds=5)
OWN = {  # strategy → the setting of its own: name, lowest, highest, default, step
    "beam_search": ("num_beams", 2, 8, 4, 1),
    "top_k": ("top_k", 1, 200, 50, 1),
    "nucleus": ("top_p", 0.05, 1.0, 0.9, 0.05),
    "min_p": ("min_p", 0.01, 0.5, 0.05, 0.01),
    "typical": ("typical_p", 0.1, 0.95, 0.9, 0.05),
    "penalized": ("repetition_penalty", 1.05, 2.0, 1.3, 0.05),
}
DARKEST = math.log(1000)  # a token of probability 1/1000 or less has the darkest ground
GROUND = "217, 119, 6"
FINISHES = {"end": "ended by the model", "length": "cut at its length", "stop": "stopped"}
DEMO_SYSTEMS, DEMO_PROMPTS, DEMO_TOKENS = ("greedy", "nucleus", "sampling"), 3, 60
KINDS = {"Grades": ("likert",), "Pairs": ("pairwise",), "Both": ("likert", "pairwise")}
LANGUAGES = {"English": "en", "中文": "zh"}
logger = logging.getLogger(__name__)


# --- What all tabs share ----------------------------------------------------------------------------------------------


@st.cache_resource(max_entries=3, show_spinner="Loading the model …")
def load(name: str) -> TextGenerator:
    """Load a model once for all visitors."""
    return TextGenerator(name)


def plain(text: str) -> str:
    """Escape a text for where Streamlit reads Markdown: models and visitors write what they like."""
    text = re.sub(r"(?i)(?<=www)(?=\.)|(?<=:)(?=//)|(?=@)", "\u2060", text)  # an address is no link
    return re.sub(r"([!-/:-@\[-`{-~])", r"\\\1", text)


def complain(error: Exception) -> None:
    """Show what went wrong, and what to do about it."""
    message = str(error.args[0]) if isinstance(error, InputError) else str(error)
    if not isinstance(error, (InputError, OSError)):  # of a library: who runs the page may want to know more
        logger.error("%s", message, exc_info=error)
        message = f"{type(error).__name__}: {message}"
    st.error(plain(message))
    if hint := getattr(error, "hint", ""):
        st.caption(plain(hint))


@contextmanager
def told() -> Iterator[None]:
    """Make an error a message; what Streamlit ends a run with is none."""
    try:
        yield
    except Exception as error:
        complain(error)


@st.fragment
def drawn(draw: Callable[[Any], None], generator: TextGenerator | None) -> None:
    """Draw a tab, alone when something in it changes: a click in another one does not break off what it writes."""
    with told():
        draw(generator)


def text_html(text: str, name: str) -> str:
    """Return a text as HTML that keeps its lines and breaks its longest words; ``name`` is for tests to find it."""
    shown = html.escape(text.strip()) or "(empty)"
    return f'<div data-testid="{name}" style="white-space: pre-wrap; overflow-wrap: anywhere">{shown}</div>'


# --- Strategies -------------------------------------------------------------------------------------------------------


class Piece(NamedTuple):
    """The fewest tokens that are whole letters: one, but for letters such as 海 that a vocabulary of bytes divides."""

    text: str  # or, where it adds none, the name of the token
    log_probability: float  # of all of them, under the model; nats
    others: list[tuple[str, float]]  # the likeliest tokens in place of the first, with their probabilities


def pieces_of(generator: TextGenerator, made: Generation, others: int = 5) -> list[Piece]:
    """Divide a text into pieces; what else was likely takes one pass through the model."""
    import torch

    model, drawn = generator.language_model, made.token_ids
    prompt = model.encode(made.prompt)
    ids = torch.tensor([[*prompt, *drawn[:-1]]], device=model.device)
    with torch.inference_mode():
        logits = model.model(input_ids=ids, logits_to_keep=len(drawn)).logits[0].float()  # (T, V)
    values, tokens = logits.softmax(-1).topk(min(others, logits.shape[-1]))

    def text_of(place: int, ids: Sequence[int]) -> str:
        text = text_after(model.tokenizer, [*prompt, *drawn[:place]], ids)
        return text or str(model.tokenizer.decode(ids))

    found, place = [], 0
    while place < len(drawn):
        sizes = range(1, min(4, len(drawn) - place) + 1)  # a letter has four bytes at most
        size = next((n for n in sizes if "\ufffd" not in text_of(place, drawn[place : place + n])), 1)
        text, score = text_of(place, drawn[place : place + size]), sum(made.log_probabilities[place : place + size])
        instead = zip(tokens[place].tolist(), values[place].tolist(), strict=True)
        found.append(Piece(text, score, [(text_of(place, [token]), value) for token, value in instead]))
        place += size
    return found


def pieces_html(pieces: Sequence[Piece]) -> str:
    """Return pieces as HTML, each on a ground that is the darker the less likely it was; hovering tells more."""
    spans = []
    for piece in pieces:
        share = min(1.0, abs(piece.log_probability) / DARKEST)
        lines = [f"{piece.text!r}: {math.exp(piece.log_probability):.2%}", "", "likeliest here:"]
        title = "\n".join([*lines, *(f"{text!r}: {probability:.2%}" for text, probability in piece.others)])
        shown = html.escape(piece.text).replace("\n", "↵\n")
        ground = f"background: rgba({GROUND}, {0.75 * share:.2f})"
        spans.append(f'<span title="{html.escape(title)}" style="{ground}">{shown}</span>')
    style = "line-height: 1.7; white-space: pre-wrap; overflow-wrap: anywhere"
    return f'<div data-testid="tokens" style="{style}">{"".join(spans)}</div>'


def ask_settings(chosen: Sequence[str], context: int) -> list[Settings]:
    """Let the visitor set what the chosen strategies have, and return the settings of each."""
    columns = itertools.cycle(st.columns(3))
    longest = min(MOST_TOKENS, context - 1)
    shared: dict[str, Any] = {"max_new_tokens": next(columns).slider("max_new_tokens", 1, longest, min(80, longest))}
    if any(Settings(strategy).draws for strategy in chosen):  # type: ignore[arg-type]
        shared["temperature"] = next(columns).slider("temperature", 0.1, 2.0, 1.0, 0.1)
        shared["seed"] = next(columns).number_input("seed", 0, 1_000_000, 0)
    settings = []
    for strategy in chosen:
        own = {}
        if strategy in OWN:
            name, low, high, default, step = OWN[strategy]
            own[name] = next(columns).slider(f"{name} of {strategy}", low, high, default, step)
        settings.append(Settings(strategy, **shared, **own))  # type: ignore[arg-type]
    return settings


def strategies(generator: TextGenerator) -> None:
    """Show what strategies make of one prompt, token by token."""
    prompt = st.text_area("Prompt", PROMPTS.get(generator.name, PROMPT), height=100, max_chars=LONGEST_PROMPT)
    chosen = st.multiselect("Strategies", STRATEGIES, ["greedy", "nucleus"], max_selections=4,
                            help="One is shown while it is written, up to four side by side.")  # fmt: skip
    if not chosen:
        st.info("Choose a strategy.")
        return
    settings = ask_settings(chosen, generator.language_model.context)
    if st.button("Write", type="primary"):
        st.session_state.pop("written", None)
        alone = len(settings) == 1 and settings[0].strategy != "beam_search"
        written = []
        for its in settings:
            with st.spinner(f"{its.strategy} …"):
                made = streamed(generator, prompt, its) if alone else generator.generate([prompt], its)[0]
                written.append((its.strategy, made, pieces_of(generator, made)))
        st.session_state["written"] = generator.name, written
    if "written" in st.session_state:
        show_written(*st.session_state["written"])


def streamed(generator: TextGenerator, prompt: str, settings: Settings) -> Generation:
    """Show a text while it is written, and return it."""
    place, text = st.empty(), ""
    with closing(generator.stream(prompt, settings)) as stream:
        while True:
            try:
                text += next(stream)
            except StopIteration as end:
                place.empty()
                made: Generation = end.value
                return made
            place.html(text_html(text, "stream"))


def show_written(model: str, written: Sequence[tuple[str, Generation, list[Piece]]]) -> None:
    """Show texts in columns, and how likely their tokens were."""
    st.html(f'<div style="font-size: 0.85rem">The less likely a token was, the darker its ground, from 1 to 1/1000 and '
            f'less: <span style="display: inline-block; width: 5rem; height: 0.7rem; background: linear-gradient('
            f'to right, rgba({GROUND}, 0), rgba({GROUND}, 0.75))"></span>. Hover over one to see what else was likely '
            f"there. Probabilities are the model's, before a strategy changes them.</div>")  # fmt: skip
    rows = []
    for place, (strategy, made, pieces) in zip(st.columns(len(written)), written, strict=True):
        perplexity = math.exp(-sum(made.log_probabilities) / len(made.token_ids))
        with place:
            st.subheader(strategy)
            st.caption(f"{len(made.token_ids)} tokens, perplexity {perplexity:.3g}, {FINISHES[made.finish]}")
            st.html(pieces_html(pieces))
        rows += [{"strategy": strategy, "token": number, "log-probability": piece.log_probability, "text": piece.text}
                 for number, piece in enumerate(pieces, 1)]  # fmt: skip
    legend = {"orient": "top", "title": None, "columns": 2}  # four in a row are too wide for a phone
    spec = {
        "mark": {"type": "line", "point": {"size": 15}, "strokeWidth": 1, "tooltip": {"content": "data"}},
        "encoding": {
            "x": {"field": "token", "type": "quantitative"},
            "y": {"field": "log-probability", "type": "quantitative"},
            "color": {"field": "strategy", "type": "nominal", "sort": None, "legend": legend},
        },
    }
    st.caption(f"Log-probability of each token under {plain(model)}, in nats")
    st.vega_lite_chart(rows, spec, height=320)


# --- The writing assistant --------------------------------------------------------------------------------------------


def edit_outline(article: Article) -> None:
    """Take what the visitor made of the outline; with no title left, it stays as it was.

    Texts stay with their titles, or in their places where as many titles are only changed.
    """
    titles = [" ".join(line.split()) for line in st.session_state["outline"].splitlines() if line.strip()]
    titles, old, kept = titles[:MOST_SECTIONS], list(article.sections), []
    for title in titles:
        kept.append(next((section for section in old if section.title == title), None))
        if kept[-1]:
            old.remove(kept[-1])
    renamed = iter(old if len(titles) == len(article.sections) else [])
    new = Section("", seed=article.sections[0].seed)
    article.sections = [section or replace(next(renamed, new), title=title)
                        for title, section in zip(titles, kept, strict=True)] or article.sections  # fmt: skip
    article.outline_by = "user"


def edit_section(article: Article, number: int, key: str) -> None:
    """Take what the visitor made of a section; Streamlit also tells of fields that went with their titles."""
    if key in (f"section-{place}-{section.title}" for place, section in enumerate(article.sections)):
        article.sections[number].text = st.session_state[key]


def writing(generator: TextGenerator) -> None:
    """Let the visitor plan an article, have it written, and edit it."""
    with st.form("brief"):
        topic = st.text_input("Topic", "a lost kite", max_chars=200)
        left, right = st.columns(2)
        style = left.text_input("Style", max_chars=100, placeholder="plain and vivid")
        audience = right.text_input("Audience", max_chars=100, placeholder="general readers")
        names = left.text_input(f"Names, up to {MOST_NAMES}", "Maya, Tom", max_chars=200)
        language = right.selectbox("Language", ["The topic's", *LANGUAGES])
        first, second, third = st.columns(3)
        length = first.slider("Length, in words", 20, 1000, 160, 20)
        count = second.slider("Sections", 1, MOST_SECTIONS, 3)
        temperature = third.slider("Temperature", 0.1, 1.5, 0.8, 0.1)
        with st.container(horizontal=True):
            plan = st.form_submit_button("Plan an article", type="primary")
            open_ = st.form_submit_button(f"Write {OPENINGS} openings of a story")
    if not generator.has_chat_template:
        st.caption("This model goes on with a text and is not told what to do: it sees no style and no audience.")
    named = [name.strip() for name in re.split("[,，、]", names) if name.strip()][:MOST_NAMES]
    config = WriterConfig(topic=topic, names=named, style=style, audience=audience, words=length,
                          language=LANGUAGES.get(language, "auto"), temperature=temperature)  # fmt: skip
    brief, assistant = config.brief(), WritingAssistant(generator, config.settings())
    state = st.session_state
    if plan or open_:
        state["asked"] = state.get("asked", -1) + 1  # each time with another seed
    if plan:
        with st.spinner("Planning …"):
            state["article"] = assistant.outline(brief, count, state["asked"])
    if open_:
        with st.spinner("Writing openings …"):
            state["openings"] = assistant.openings(replace(brief, words=50), OPENINGS, state["asked"] * 100)
        if not state["openings"]:
            st.warning("The model wrote no whole sentence.")
    for opening in state.get("openings", ()):
        with st.container(border=True):
            st.html(text_html(opening, "opening"))
    if "article" in state:
        show_article(assistant, state["article"])


def show_article(assistant: WritingAssistant, article: Article) -> None:
    """Show an article to be written, edited and taken away. What is shown follows the article, not the other way."""
    state = st.session_state
    state["outline"] = "\n".join(section.title for section in article.sections)
    st.text_area("Outline, a title a line", key="outline", height="content", max_chars=100 * MOST_SECTIONS,
                 on_change=edit_outline, args=[article],
                 help=f"Change, move, add and remove lines, up to {MOST_SECTIONS}.")  # fmt: skip
    if article.outline_by == "frame":
        st.caption("The model had no outline of its own. This one fits any story.")
    all_of_them = st.button("Write all that is missing", type="primary")
    for number, section in enumerate(article.sections):
        left, right = st.columns([5, 1], vertical_alignment="bottom")
        left.subheader(plain(section.title), anchor=False)
        again = right.button("Write", key=f"write-{number}", width="stretch",
                             help="Anew, where there is a text already")  # fmt: skip
        place = st.empty()
        if again or (all_of_them and not section.text):
            try:
                text = ""
                with closing(assistant.stream_section(article, number)) as stream:  # type: ignore[type-var]
                    for sentence in stream:
                        text += sentence
                        place.html(text_html(text, "stream"))
            except Exception as error:  # the other sections are to be drawn all the same
                complain(error)
                all_of_them = False
        key = f"section-{number}-{section.title}"
        state[key] = article.sections[number].text
        place.text_area(f"Text of section {number + 1}", key=key, height="content", max_chars=LONGEST_SECTION,
                        on_change=edit_section, args=[article, number, key], label_visibility="collapsed",
                        placeholder="Not written yet")  # fmt: skip
    if article.text():
        found = figures(article)
        st.caption(f"{found['words']} of {article.brief.words} words; {found['names_kept']:.0%} of names kept; "
                   f"{found['repeated_4_grams']:.0%} of 4-grams repeated.")  # fmt: skip
        with st.container(horizontal=True):
            st.download_button("Markdown", article.to_markdown(), "article.md", "text/markdown", on_click="ignore")
            st.download_button("Word", article.to_docx(), "article.docx", on_click="ignore")


# --- The code generator -----------------------------------------------------------------------------------------------


def code(generator: TextGenerator) -> None:
    """Let the visitor describe a function, and show the programs that were written and what their tests say."""
    st.caption(f"Layers of the sandbox that are active here: {', '.join(protections()) or 'none'}. A program has "
               f"{LIMITS.seconds:g} seconds and {LIMITS.memory_mib} MiB.")  # fmt: skip
    if generator.name == "builtin:stories":
        st.caption("This model writes stories. The one for functions is Python, in the sidebar.")
    with st.form("task"):
        description = st.text_area("Description", EXAMPLE[0], height=80, max_chars=LONGEST_PROMPT)
        signature = st.text_input("Signature", EXAMPLE[1], max_chars=300, help="May be left empty.")
        tests = st.text_area("Tests", EXAMPLE[2].strip(), height=110, max_chars=LONGEST_CODE,
                             help="Assertions. Without any, the likeliest program is taken.")  # fmt: skip
        first, second, third = st.columns(3)
        samples = first.slider("Programs of a round", 1, 10, 4)
        repairs = second.slider("Further rounds", 0, 3, 1, help="In each the model is shown what is wrong.")
        temperature = third.slider("Temperature", 0.1, 1.5, 0.8, 0.1)
        asked = st.form_submit_button("Write the program", type="primary")
    if asked:
        st.session_state.pop("programs", None)
        problem, writer = make_problem(description, tests, signature), CodeGenerator(generator, LIMITS)
        longest = min(256, generator.language_model.context - 1)
        with st.spinner("Writing and testing …"):
            writer.judge("pass", problem)  # tests that can't be run are told of before the model writes
            found = writer.solve(problem, Settings(temperature=temperature, top_p=0.95, max_new_tokens=longest),
                                 samples=samples, repairs=repairs)  # fmt: skip
        st.session_state["programs"] = found, bool(tests.strip())
    if "programs" in st.session_state:
        found, tested = st.session_state["programs"]
        status = found[0].verdict.status
        if status != "passed":
            st.warning(f"The best of {len(found)} programs did not pass: {status}.")
        else:
            st.success("All tests passed." if tested else "It is Python. There are no tests.")
        show_program(found[0])
        if found[1:]:
            st.subheader("The others")
        for candidate in found[1:]:
            message = candidate.verdict.message.partition("\n")[0][:80]
            with st.expander(plain(f"{candidate.verdict.status}: {message or 'all is well'}")):
                show_program(candidate)


def show_program(candidate: Candidate) -> None:
    """Show a program, and what its tests and it itself said."""
    if candidate.code:
        st.code(candidate.code, "python")
    mean = math.exp(candidate.log_probability)
    st.caption(f"Geometric mean of its tokens' probabilities {mean:.3f}, round {candidate.round + 1}")
    for title, text in (("Verdict", candidate.verdict.message), ("Printed", candidate.verdict.output)):
        if text:
            st.caption(title)
            st.code(text, None, wrap_lines=True)


# --- The study --------------------------------------------------------------------------------------------------------


def new_demo(generator: TextGenerator, design: Design) -> tempfile.TemporaryDirectory[str]:
    """Make a study of texts by the page's model, in a folder that is gone when nobody holds it any more."""
    name = generator.name if generator.name in MODELS.values() else "builtin:stories"
    prompts, _ = read_prompts(name, DEMO_PROMPTS)
    longest = min(DEMO_TOKENS, generator.language_model.context - 1)
    made = {system: generator.generate(prompts, Settings(system, max_new_tokens=longest)) for system in DEMO_SYSTEMS}
    folder = tempfile.TemporaryDirectory()
    texts = {system: {one.prompt: one.text for one in its} for system, its in made.items()}
    Study.create(Path(folder.name) / "study.sqlite", texts, design, "Demo")
    return folder


def rating(generator: TextGenerator | None) -> None:
    """Let the visitor rate the operator's study, or one of their own."""
    path = os.environ.get("GENERATION_STUDY", "")
    if not path and generator:
        with st.expander("A study of this model's texts", expanded="demo" not in st.session_state):
            st.write(f"{', '.join(DEMO_SYSTEMS)}: which of them is which is not told. Only you see this study.")
            with st.form("demo-study", border=False):
                left, right = st.columns(2)
                kinds = KINDS[left.selectbox("Ask for", list(KINDS))]
                language = LANGUAGES[right.selectbox("Language of the questions", list(LANGUAGES))]
                make = st.form_submit_button("Make the study")
        if make:
            with st.spinner("Writing texts …"):
                st.session_state["demo"] = new_demo(generator, Design(kinds, language=language))
    if not path and "demo" in st.session_state:
        path = f"{st.session_state['demo'].name}/study.sqlite"
    if not path:
        return
    study = Study.open(path)
    if study.title:
        st.subheader(plain(study.title), anchor=False)
    name = st.text_input("Your name", max_chars=80, help="With the same name you go on where you stopped.")
    if name.strip():
        rate(study, name)
    if st.checkbox("Show the report, which names the systems"):
        show_report(study)


def rate(study: Study, name: str) -> None:
    """Ask for one item; its answer is stored before the next one is shown."""
    done, total = study.progress(name)
    st.progress(done / total, f"{done} of {total} answered")
    item = study.next_item(name)
    if item is None:
        st.success("You have answered all of them. Thank you.")
        return
    began = st.session_state.setdefault(f"began {study.path} {name} {item.id}", time.monotonic())
    with st.form(f"item-{item.id}"):
        if item.prompt:
            st.html(f'<div style="opacity: 0.7">{text_html(item.prompt, "prompt")}</div>')
        for number, (place, text) in enumerate(zip(st.columns(len(item.texts)), item.texts, strict=True), 1):
            with place.container(border=True):
                if len(item.texts) > 1:
                    st.caption(plain(item.choices[number]))
                st.html(text_html(text, "item"))
        shown = {value: meaning if item.kind == "pairwise" else f"{value} {meaning}"
                 for value, meaning in item.choices.items()}  # fmt: skip
        value = st.radio(plain(item.question), list(shown), None, shown.__getitem__, horizontal=True)
        following = st.form_submit_button("Next", type="primary")
    if following and value is None:
        st.warning("Choose an answer.")
    elif following:
        study.answer(name, item.id, value, time.monotonic() - began)
        st.rerun()


def show_report(study: Study) -> None:
    """Show agreement and ranking, and draw them."""
    if all(answer.expected is not None for answer in study.ratings()):  # of checks alone there is nothing to report
        st.info("No text has been rated yet.")
        return
    found = report(study)
    st.code(str(found), None)
    with tempfile.TemporaryDirectory() as folder:
        plot_report(found, Path(folder) / "report.png")
        st.image((Path(folder) / "report.png").read_bytes(), "The systems with 95 % intervals")


def main() -> None:
    """Draw the page."""
    hush_libraries()
    st.set_page_config("Text generation", "✍️", layout="wide")
    st.title("Text generation")
    chosen = st.sidebar.radio("Model", list(MODELS))
    name = MODELS[chosen] or st.sidebar.text_input(
        "Folder or hub id", max_chars=300, placeholder="such as gpt2", help="Any causal language model.",
    ).strip()  # fmt: skip
    generator = None
    if name:
        with told():
            generator = load(name)
    if generator:
        model = generator.language_model
        st.sidebar.caption(f"{model.model.num_parameters():,} weights, a context of {model.context:,} tokens")
    places = st.tabs(["Strategies", "Writing assistant", "Code generator", "Rating"])
    for place, draw in zip(places, (strategies, writing, code, rating), strict=True):
        with place:
            if generator or (draw is rating and os.environ.get("GENERATION_STUDY")):
                drawn(draw, generator)
            elif not name:
                st.info("Name a model in the sidebar.")


if __name__ == "__main__":
    main()
