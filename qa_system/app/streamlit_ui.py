"""A page to ask documents: upload, chat, and see each quote marked on its page.

streamlit run qa_system/app/streamlit_ui.py     # or: make serve-qa
"""

from __future__ import annotations

import html
import io
import os
import tempfile
from pathlib import Path
from typing import Any

import streamlit as st

from qa_system.document_processor.pdf_reader import Limits
from qa_system.generation.answer_generator import MOST_CHARACTERS, Answer, load_answerer, stream_pipeline
from qa_system.generation.citation_handler import Citation, highlighted_html, in_context, matching_spans, page_image
from qa_system.retrieval.dense_retrieval import Info, Library, files_of
from qa_system.retrieval.sparse_retrieval import Hit
from shared.errors import InputError

FOLDER = os.environ.get("QA_FOLDER", "outputs/qa_system/library")
LIMITS = Limits(file_megabytes=20, pages=300)
KINDS = ["pdf", "docx", "html", "htm", "md", "txt"]
MODES = {"Words and meaning": "hybrid", "Meaning": "dense", "Words": "sparse"}
EXAMPLES = [
    "How much is a return ticket for a child on route B?",
    "Why did the Petrel run aground?",
    "自行车的票价是多少？",
    "Who won the cup final in 1966?",
]


@st.cache_resource(show_spinner="Loading the model …")
def library() -> Library:
    """Open the library once for all visitors."""
    return Library(FOLDER)


def shown_error(error: InputError | OSError) -> None:
    """Show what went wrong, and what to do."""
    st.error(str(error.args[0] if isinstance(error, InputError) else error))
    if getattr(error, "hint", ""):
        st.caption(error.hint)


def add(path: Path, name: str, password: str = "") -> None:
    """Add one document, and tell how that went."""
    info = library().add(path, name=name, password=password, limits=LIMITS)
    if not info.new:
        st.toast(f"{name} is there already.")


def sidebar() -> list[Info]:
    """Let the visitor add and delete documents; return those to be asked."""
    st.sidebar.header("Documents")
    with st.sidebar.form("upload", clear_on_submit=True, border=False):
        uploads = st.file_uploader("Add documents", type=KINDS, accept_multiple_files=True,
                                   max_upload_size=LIMITS.file_megabytes)  # fmt: skip
        password = st.text_input("Password, if they have one", type="password")
        sent = st.form_submit_button("Read them", width="stretch")
    if sent and uploads:
        bar = st.sidebar.progress(0.0)
        for number, upload in enumerate(uploads):
            bar.progress(number / len(uploads), f"Reading {upload.name} …")
            with tempfile.TemporaryDirectory() as folder:
                path = Path(folder) / f"upload{Path(upload.name).suffix.lower()}"
                path.write_bytes(upload.getvalue())
                try:
                    add(path, upload.name, password)
                except (InputError, OSError) as error:
                    with st.sidebar:
                        shown_error(error)
        bar.empty()
    infos = library().infos()
    if not infos and st.sidebar.button("Take the example documents", type="primary", width="stretch"):
        bar = st.sidebar.progress(0.0)
        paths = files_of("builtin:documents")
        for number, path in enumerate(paths):
            bar.progress(number / len(paths), f"Reading {path.name} …")
            add(path, path.name)
        st.rerun()
    chosen = []
    for info in infos:
        left, right = st.sidebar.columns([6, 1], vertical_alignment="center")
        pages = f"{info.pages} page{'s' if info.pages != 1 else ''}"
        if left.checkbox(info.name, True, key=f"use-{info.id}", help=f"{info.title or info.name}: {pages}"):
            chosen.append(info)
        if right.button("✕", key=f"delete-{info.id}", help=f"Delete {info.name}", type="tertiary"):
            library().delete(info.id)
            st.rerun()
    return chosen


def shown_citation(citation: Citation, key: str) -> None:
    """Show a quote in its context; its page on request."""
    st.html(f'<div data-testid="quote" style="font-size: 0.9rem">{in_context_of(citation)}</div>')
    if not citation.document_name.lower().endswith(".pdf"):
        return
    if st.toggle("Show the page", key=key):
        try:
            st.image(page_of(citation), f"{citation.document_name}, page {citation.page_label}")
        except (InputError, OSError) as error:
            shown_error(error)


def in_context_of(citation: Citation) -> str:
    """Return a quote as HTML with what stands around it; the quote alone where its document is gone."""
    try:
        return in_context(citation, library().document(citation.document_id))
    except InputError:
        return f"<mark>{html.escape(citation.quote)}</mark> (the document was deleted)"


@st.cache_resource(max_entries=50, show_spinner="Drawing the page …")
def page_of(citation: Citation) -> bytes:
    """Draw the page of a citation with its quote marked, as PNG."""
    path = library().file(citation.document_id)
    if path is None:
        raise InputError("The document's file was not kept.")
    image = page_image(path, library().document(citation.document_id), citation, limits=LIMITS)
    png = io.BytesIO()
    image.save(png, "PNG")
    return png.getvalue()


def shown_answer(answer: Answer, turn: int) -> None:
    """Show an answer that is complete."""
    with st.chat_message("assistant"):
        if answer.refused:
            st.info(answer.text)
            st.caption(f"Confidence {answer.confidence:.0%}. The nearest passages are below.")
            with st.expander("What was found"):
                for hit in answer.hits[:3]:
                    shown_hit(hit, answer.standalone_question)
            return
        st.html(f'<div data-testid="answer">{html.escape(answer.text)}</div>')
        st.caption(f"Confidence {answer.confidence:.0%}, {answer.seconds:.1f} s, {answer.model}")
        for citation in answer.citations:
            with st.expander(f"[{citation.number}] {citation.document_name}, page {citation.page_label}"):
                shown_citation(citation, f"page-{turn}-{citation.number}")


def shown_hit(hit: Hit, question: str) -> None:
    """Show a passage with the question's words marked."""
    scores = ", ".join(f"{name} {score:.2f}" for name, score in hit.scores.items())
    st.caption(f"{hit.chunk.document_name}, page {', '.join(map(str, hit.chunk.pages))} — {scores}")
    marked = highlighted_html(hit.chunk.text, matching_spans(question, hit.chunk.text))
    st.html(f'<div style="font-size: 0.85rem">{marked}</div>')


def talk(chosen: list[Info], settings: dict[str, Any]) -> None:
    """Chat."""
    turns: list[Answer] = st.session_state.setdefault("turns", [])
    for number, answer in enumerate(turns):
        st.chat_message("user").text(answer.question)
        shown_answer(answer, number)
    asked = st.session_state.pop("asked", "")
    if not turns and not asked:
        st.caption("For example:")
        for example in EXAMPLES:
            if st.button(example):
                st.session_state["asked"] = example
                st.rerun()
    question = st.chat_input("Ask the documents", max_chars=MOST_CHARACTERS) or asked
    if not question or not question.strip():
        return
    st.chat_message("user").text(question)
    history = [(answer.standalone_question, answer.text) for answer in turns]
    chosen_ids = {"document_id": [info.id for info in chosen]}
    place = st.empty()
    written = ""
    try:
        for event in stream_pipeline(question, library(), history=history, filter=chosen_ids, **settings):
            if event["event"] == "token":
                written += event["text"]
                place.chat_message("assistant").text(written)
            elif event["event"] == "answer":
                turns.append(event["answer"])
    except (InputError, OSError) as error:
        shown_error(error)
        return
    st.rerun()


def compare(chosen: list[Info], k: int) -> None:
    """Show what each way to retrieve finds, side by side."""
    question = st.text_input("Question", EXAMPLES[0], max_chars=MOST_CHARACTERS)
    if not question.strip():
        return
    for place, (title, mode) in zip(st.columns(len(MODES)), MODES.items(), strict=True):
        with place:
            st.subheader(title)
            hits = library().search(question, k, mode=mode, filter={"document_id": [info.id for info in chosen]})
            for number, hit in enumerate(hits, start=1):
                with st.container(border=True):
                    st.markdown(f"**{number}** · score {hit.score:.2f}")
                    shown_hit(hit, question)
            if not hits:
                st.caption("Nothing.")


def main() -> None:
    """Draw the page."""
    st.set_page_config("Ask your documents", "📄", layout="wide")
    st.title("Ask your documents")
    try:
        chosen = sidebar()
    except (InputError, OSError) as error:
        shown_error(error)
        return
    st.sidebar.header("Settings")
    mode = MODES[st.sidebar.selectbox("Find passages by", list(MODES))]
    k = st.sidebar.slider("Passages", 1, 20, 8)
    answerer = st.sidebar.text_input(
        "Answerer", "builtin:extractive",
        help="builtin:extractive quotes; a language model writes: ollama:llama3.2, openai:…, a hub id or a folder.",
    )  # fmt: skip
    if st.sidebar.button("Forget the conversation", width="stretch"):
        st.session_state.pop("turns", None)
    if not chosen:
        st.info("Add documents on the left, or take the example documents.")
        return
    chat_tab, compare_tab = st.tabs(["Ask", "Compare retrieval"])
    with chat_tab:
        try:
            writer = load_answerer(answerer.strip())
        except (InputError, OSError) as error:
            shown_error(error)
        else:
            talk(chosen, {"answerer": writer, "k": k, "mode": mode})
    with compare_tab:
        compare(chosen, min(k, 5))


if __name__ == "__main__":
    main()
