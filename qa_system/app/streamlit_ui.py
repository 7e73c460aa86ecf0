"""A page to ask documents: upload, chat, and see each quote marked on its page.

streamlit run qa_system/app/streamlit_ui.py     # or: make serve-qa
"""

from __future__ import annotations

import html
import io
import os
import re
import tempfile
import threading
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import streamlit as st

from qa_system.document_processor.pdf_reader import Document, DocumentError, Limits, PasswordError
from qa_system.generation.answer_generator import MOST_CHARACTERS, Answer, Answerer, load_answerer, stream_pipeline
from qa_system.generation.citation_handler import Citation, highlighted_html, in_context, matching_spans, page_image
from qa_system.retrieval.dense_retrieval import Info, Library, files_of, load_reranker
from qa_system.retrieval.sparse_retrieval import Hit
from shared.errors import InputError
from shared.logs import hush_libraries

FOLDER = os.environ.get("QA_FOLDER", "outputs/qa_system/library")
ANSWERER = os.environ.get("QA_ANSWERER", "builtin:extractive")
RERANK = os.environ.get("QA_RERANK", "")
LIMITS = Limits(file_megabytes=20, pages=300)
KINDS = ["pdf", "docx", "html", "htm", "md", "txt"]
MODES = {"Words and meaning": "hybrid", "Meaning": "dense", "Words": "sparse"}
EXAMPLES = [
    "How much is a return ticket for a child on route B?",
    "What did the repair of the Petrel cost?",
    "自行车的票价是多少？",
    "Who won the cup final in 1966?",
]


@st.cache_resource(show_spinner="Loading the model …")
def library() -> Library:
    """Open the library once for all visitors."""
    return Library(FOLDER)


@dataclass
class Reading:
    """What a visitor gave to read, and how that went.

    Attributes:
        uploads: That wait: name, bytes and password.
        told: Errors and notes that were not shown yet.
        passwords: Document id → password; only here, never on disk.
        lock: Held while a document is read: a click starts the page anew, but does not end the reading.
    """

    uploads: list[tuple[str, bytes, str]] = field(default_factory=list)
    told: list[InputError | OSError | str] = field(default_factory=list)
    passwords: dict[str, str] = field(default_factory=dict)
    lock: Any = field(default_factory=threading.Lock)

    def read(self) -> None:
        """Read the first document that waits."""
        kept = library()
        with self.lock, tempfile.TemporaryDirectory() as folder:
            if not self.uploads:
                return
            name, data, password = self.uploads[0]
            path = Path(folder) / f"upload{Path(name).suffix.lower()}"
            path.write_bytes(data)
            try:
                info = kept.add(path, name=name, password=password, limits=LIMITS)
                self.passwords |= {info.id: password} if password else {}
                self.told += [] if info.new else [f"{name} is there already."]
            except (InputError, OSError) as error:
                self.told.append(error)
            finally:
                del self.uploads[0]


def reading() -> Reading:
    """Return the visitor's own."""
    mine: Reading = st.session_state.setdefault("reading", Reading())
    return mine


def plain(text: str) -> str:
    """Escape a text for where Streamlit reads Markdown; names and errors may come from anyone."""
    text = re.sub(r"(?i)(?<=www)(?=\.)|(?<=:)(?=//)|(?=@)", "\u2060", text)  # an address is no link
    return re.sub(r"([!-/:-@\[-`{-~])", r"\\\1", text)


def shown_name(document_id: str, name: str, infos: list[Info] | None = None) -> str:
    """Return a document's name as Markdown, with the first of its hash where another document has that name too."""
    alike = sum(info.name == name for info in infos or library().infos())
    return plain(name if alike < 2 else f"{name} ({document_id[:8]})")


def shown_error(error: InputError | OSError) -> None:
    """Show what went wrong, and what to do."""
    st.error(plain(str(error.args[0] if isinstance(error, InputError) else error)))
    hint = "choose it again, with its password" if isinstance(error, PasswordError) else getattr(error, "hint", "")
    if hint:
        st.caption(plain(hint))


def sidebar() -> tuple[list[Info], Any]:
    """Let the visitor add and delete documents; return those to be asked, and the place to tell what is being read."""
    mine = reading()
    st.sidebar.header("Documents")
    with st.sidebar.form("upload", clear_on_submit=True, border=False):
        uploads = st.file_uploader("Add documents", type=KINDS, accept_multiple_files=True,
                                   max_upload_size=LIMITS.file_megabytes)  # fmt: skip
        password = st.text_input("Password, if they have one", type="password")
        if st.form_submit_button("Read them", width="stretch"):
            mine.uploads += [(upload.name, upload.getvalue(), password) for upload in uploads]
    place = st.sidebar.empty()
    with st.sidebar:
        for event in mine.told:
            if isinstance(event, str):
                st.info(plain(event))
            else:
                shown_error(event)
    if not mine.uploads:
        mine.told.clear()
    infos = library().infos()
    if not infos and not mine.uploads:
        if st.sidebar.button("Take the example documents", type="primary", width="stretch"):
            mine.uploads += [(path.name, path.read_bytes(), "") for path in files_of("builtin:documents")]
            st.rerun()
    chosen = []
    for info in infos:
        name, title = shown_name(info.id, info.name, infos), plain(info.title or info.name)
        left, right = st.sidebar.columns([6, 1], vertical_alignment="center")
        pages = f"{info.pages} page{'s' if info.pages != 1 else ''}"
        if left.checkbox(name, True, key=f"use-{info.id}", help=f"{title}: {pages}"):
            chosen.append(info)
        if right.button("✕", key=f"delete-{info.id}", help=f"Delete {name}", type="tertiary"):
            library().delete(info.id)
            st.rerun()
    return chosen, place


def shown_citation(citation: Citation, key: str) -> None:
    """Show a quote in its context; its page on request."""
    document = library().document(citation.document_id)
    quote = in_context(citation, document)
    st.html(f'<div data-testid="quote" style="font-size: 0.9rem; white-space: pre-line">{quote}</div>')
    if citation.document_name.lower().endswith(".pdf") and st.toggle("Show the page", key=key):
        shown_page(citation, document, key)


def shown_page(citation: Citation, document: Document, key: str) -> None:
    """Show the page of a quote; ask for the document's password where this visitor gave none that opens it."""
    passwords, name = reading().passwords, shown_name(citation.document_id, citation.document_name)
    password = passwords.get(citation.document_id, "")
    path = library().file(citation.document_id)
    if path is None:
        st.caption("The document's file was not kept.")
        return
    try:
        picture = page_of(path, document, citation, password)
        st.image(picture, f"{name}, page {plain(citation.page_label)}")
    except PasswordError:
        given = st.text_input(f"Password of {name}", type="password", key=f"{key}-password")
        if given and given != password:
            passwords[citation.document_id] = given
            st.rerun()
        if given:
            st.error(f"This is not the password of {name}.")


@st.cache_resource(max_entries=50, show_spinner="Drawing the page …")
def page_of(_path: Path, _document: Document, citation: Citation, password: str) -> bytes:
    """Draw the page of a citation with its quote marked, as PNG."""
    png = io.BytesIO()
    try:
        page_image(_path, _document, citation, password=password, limits=LIMITS).save(png, "PNG")
    except DocumentError as error:  # it knows the file by its hash
        raise type(error)(str(error.args[0]).replace(_path.name, citation.document_name), error.hint) from None
    return png.getvalue()


def quotes_deleted(answer: Answer) -> bool:
    """Tell whether an answer quotes a document that is not there any more."""
    return not {citation.document_id for citation in answer.citations} <= {info.id for info in library().infos()}


def shown_answer(answer: Answer, turn: int) -> None:
    """Show an answer that is complete."""
    with st.chat_message("assistant"):
        if quotes_deleted(answer):
            st.info("A document that this answer quotes was deleted.")
            return
        if answer.refused:
            st.info(answer.text)
            st.caption(f"Confidence {answer.confidence:.0%}. The nearest passages are below.")
            with st.expander("What was found"):
                there = {info.id for info in library().infos()}
                for hit in answer.hits[:3]:
                    if hit.chunk.document_id in there:
                        shown_hit(hit, answer.standalone_question)
            return
        st.html(f'<div data-testid="answer">{html.escape(answer.text)}</div>')
        st.caption(f"Confidence {answer.confidence:.0%}, {answer.seconds:.1f} s, {plain(answer.model)}")
        for citation in answer.citations:
            name = shown_name(citation.document_id, citation.document_name)
            with st.expander(f"[{citation.number}] {name}, page {plain(citation.page_label)}"):
                try:
                    shown_citation(citation, f"page-{turn}-{citation.number}")
                except (InputError, OSError) as error:
                    shown_error(error)


def shown_hit(hit: Hit, question: str) -> None:
    """Show a passage with the question's words marked."""
    scores = ", ".join(f"{name} {score:.2f}" for name, score in hit.scores.items())
    name = shown_name(hit.chunk.document_id, hit.chunk.document_name)
    st.caption(f"{name}, page {', '.join(map(str, hit.chunk.pages))} — {scores}")
    marked = highlighted_html(hit.chunk.text, matching_spans(question, hit.chunk.text))
    st.html(f'<div style="font-size: 0.85rem; white-space: pre-line">{marked}</div>')


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
    question = st.chat_input("Ask the documents", max_chars=MOST_CHARACTERS, disabled=bool(reading().uploads)) or asked
    if not question or not question.strip():
        return
    st.chat_message("user").text(question)
    history = [(answer.question, answer.text) for answer in turns if not quotes_deleted(answer)]
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
    st.caption(
        "The scores. Meaning (dense): cosine of question and passage, at most 1. Words (sparse): BM25, higher the more "
        "of the question's rare words are there. Words and meaning: both, scaled so that an average passage has 0."
    )
    ways = {title: (mode, None) for title, mode in MODES.items()}
    if reranker := load_reranker(RERANK):
        ways["Reranked"] = ("hybrid", reranker)
    question = st.text_input("Question", EXAMPLES[0], max_chars=MOST_CHARACTERS)
    if not question.strip():
        return
    chosen_ids = {"document_id": [info.id for info in chosen]}
    for place, (title, (mode, reranker)) in zip(st.columns(len(ways)), ways.items(), strict=True):
        with place:
            st.subheader(title)
            hits = library().search(question, k, mode=mode, filter=chosen_ids, reranker=reranker)
            for number, hit in enumerate(hits, start=1):
                with st.container(border=True):
                    st.markdown(f"**{number}** · score {hit.score:.2f}")
                    shown_hit(hit, question)
            if not hits:
                st.caption("Nothing.")


def writer_of(name: str) -> Answerer:
    """Load an answerer; at an address only the operator's, since the keys of this machine go there."""
    if "://" in name and name != ANSWERER:
        raise InputError(
            "This page sends nothing to an address that a visitor gives.",
            hint="whoever starts the page may name it in the environment variable QA_ANSWERER",
        )
    return load_answerer(name)


def main() -> None:
    """Draw the page."""
    hush_libraries()
    st.set_page_config("Ask your documents", "📄", layout="wide")
    st.title("Ask your documents")
    try:
        chosen, place = sidebar()
    except (InputError, OSError) as error:
        shown_error(error)
        return
    st.sidebar.header("Settings")
    mode = MODES[st.sidebar.selectbox("Find passages by", list(MODES))]
    k = st.sidebar.slider("Passages", 1, 20, 8)
    answerer = st.sidebar.text_input(
        "Answerer", ANSWERER,
        help="builtin:extractive quotes; a language model writes: ollama:llama3.2, openai:…, a hub id or a folder. "
        "A model at an address, …@http://…, is only that of QA_ANSWERER, where the page was started with it.",
    )  # fmt: skip
    if st.sidebar.button("Forget the conversation", width="stretch"):
        st.session_state.pop("turns", None)
    if chosen:
        chat_tab, compare_tab = st.tabs(["Ask", "Compare retrieval"])
        with chat_tab:
            try:
                writer = writer_of(answerer.strip())
            except (InputError, OSError) as error:
                shown_error(error)
            else:
                talk(chosen, {"answerer": writer, "k": k, "mode": mode, "rerank": RERANK})
        with compare_tab:
            try:
                compare(chosen, min(k, 5))
            except (InputError, OSError) as error:
                shown_error(error)
    else:
        st.info("Add documents on the left, or take the example documents.")
    mine = reading()
    for name, *_ in mine.uploads[:1]:  # last, so that the page is all there meanwhile
        with place, st.spinner(f"Reading {plain(name)} …"):
            mine.read()
        st.rerun()


if __name__ == "__main__":
    main()
