"""A page to look at images with: captions and questions, documents, labels of one's own, and search.

    streamlit run multimodal_llm/app/streamlit_ui.py     # or: make serve-multimodal

All visitors share the models and the indices of folders. What one of them uploads is in a session of their own and ends
with it. A visitor may name any model and any folder that this machine can read: show the page only to people who may.
"""

from __future__ import annotations

import hashlib
import html
import io
import logging
import os
import random
import re
import tempfile
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import streamlit as st

from multimodal_llm.builtin import documents, scenes
from multimodal_llm.clip_applications import image_search
from multimodal_llm.clip_applications.zero_shot_classification import TEMPLATES, ZeroShotClassifier, filled, load_clip
from multimodal_llm.document_understanding.document_qa import RECEIPT_QUESTIONS, Answer, DocumentQA, labelled_pairs
from multimodal_llm.document_understanding.layout_analysis import KINDS, Box, Page, Pair, draw_page, iou
from multimodal_llm.image_captioning.blip_model import load_captioner
from multimodal_llm.visual_question_answering.data_loader import IMAGE_SUFFIXES, open_image
from multimodal_llm.visual_question_answering.vqa_system import load_answerer
from shared.errors import InputError
from shared.logs import hush_libraries
from shared.results import OUTPUTS

if TYPE_CHECKING:
    from PIL.Image import Image

CLIP, LOOK = "Labels and search", "What to look for"
MODELS: dict[str, tuple[Callable[[str], Any], str, str]] = {  # task → what loads a model, the embedded one, and others
    "Captions": (load_captioner, "builtin:captions", "Salesforce/blip-image-captioning-base"),
    "Questions": (load_answerer, "builtin:vqa", "Salesforce/blip-vqa-base or dandelin/vilt-b32-finetuned-vqa"),
    "Documents": (DocumentQA, "builtin:layout", "naver-clova-ix/donut-base-finetuned-docvqa, or a LayoutLMv3"),
    CLIP: (load_clip, "builtin:clip", "openai/clip-vit-base-patch32 or google/siglip-base-patch16-224"),
}
MEGABYTES, MOST_PAGES, MOST_LABELS, MOST_CANDIDATES, LONGEST = 20, 10, 100, 50, 200
QUESTIONS = ("what is in the picture?", "what color is it?", "how many are there?")
SHOWN = 1600  # pixels of the long side of an image that is shown, and looked at by models that see far less
INDICES = OUTPUTS / "multimodal_llm" / "page_indices"
SMALL = "font-size: 0.8rem; white-space: pre-wrap; overflow-wrap: anywhere"
LARGE = SMALL.replace("0.8", "1.3")
COPPER, GROUND = (217, 119, 6), "rgba(217, 119, 6, 0.75)"
logger = logging.getLogger(__name__)


# --- What all tabs share ----------------------------------------------------------------------------------------------


@st.cache_resource(max_entries=8, show_spinner="Loading the model …")
def load(task: str, name: str) -> Any:
    """Load a model once for all visitors."""
    return MODELS[task][0](name)


@st.cache_resource
def one_reader() -> threading.Lock:
    """Return the lock that has pages read one document at a time, whoever gave them."""
    return threading.Lock()


def kept(slot: str, signature: Any, make: Callable[[], Any]) -> Any:
    """Return what this session keeps in a slot, made anew only where its signature is another one."""
    held = st.session_state.get(slot)
    if held is None or held[0] != signature:
        st.session_state.pop(slot, None)
        st.session_state[slot] = held = signature, make()
    return held[1]


def plain(text: str) -> str:
    """Escape a text for where Streamlit reads Markdown: documents and visitors say what they like."""
    text = re.sub(r"(?i)(?<=www)(?=\.)|(?<=:)(?=//)|(?=@)", "\u2060", text)  # an address is no link
    return re.sub(r"([!-/:-@\[-`{-~])", r"\\\1", text)


@contextmanager
def told() -> Iterator[None]:
    """Make an error a message and what to do about it; what Streamlit ends a run with is none."""
    try:
        yield
    except Exception as error:
        message = str(error.args[0]) if isinstance(error, InputError) else str(error)
        if not isinstance(error, (InputError, OSError)):  # of a library: who runs the page may want to know more
            logger.error("%s", message, exc_info=error)
            message = f"{type(error).__name__}: {message}"
        st.error(plain(message))
        if hint := getattr(error, "hint", ""):
            st.caption(plain(hint))


@st.fragment
def drawn(draw: Callable[[dict[str, str]], None], models: dict[str, str]) -> None:
    """Draw a tab, alone when something in it changes."""
    with told():
        draw(models)


def distinct(names: Sequence[str]) -> list[str]:
    """Return names without blanks around them, each once, none empty."""
    return list(dict.fromkeys(filter(None, map(str.strip, names))))


def show_text(text: str, name: str, style: str = LARGE, title: str = "") -> None:
    """Show a text as it is, with a title under the pointer; ``name`` is for tests to find it."""
    st.html(f'<div data-testid="{name}" title="{html.escape(title)}" style="{style}">'
            f'{html.escape(text.strip()) or "(empty)"}</div>')  # fmt: skip


def show_bars(ranked: Sequence[tuple[str, float]]) -> None:
    """Show texts with their probabilities as bars, in the order they come."""
    cells = "".join(
        f'<div style="overflow-wrap: anywhere">{html.escape(text)}</div>'
        f'<div style="width: {max(probability, 0.002):.1%}; background: {GROUND}; height: 0.8rem; align-self: center; '
        f'border-radius: 0.2rem"></div><div style="text-align: right">{probability:.1%}</div>'
        for text, probability in ranked
    )
    columns = "fit-content(16rem) minmax(3rem, 1fr) max-content"
    st.html(f'<div data-testid="bars" style="display: grid; gap: 0.3rem 0.8rem; max-width: 40rem; '
            f'grid-template-columns: {columns}">{cells}</div>')  # fmt: skip


@dataclass(frozen=True)
class Given:
    """What a visitor uploaded, or what was drawn for them: its name, its content, and a number of its own."""

    name: str
    content: bytes
    id: Any
    drawn: Any = None  # the Scene or the Document, where it was drawn

    def read(self) -> bytes:
        """Return its bytes: ``open_image`` takes it, and calls it by its name."""
        return self.content

    def __str__(self) -> str:
        return self.name


def ask_for(key: str, what: str, kinds: Sequence[str], draw: Callable[[int], tuple[bytes, Any]], other: str) -> Given:
    """Let the visitor upload a file; until they do, take one that is drawn."""
    suffixes = sorted(kind.lstrip(".") for kind in kinds)
    upload = st.file_uploader(what, suffixes, key=f"{key}-upload", max_upload_size=MEGABYTES)
    if upload:
        return Given(upload.name, upload.getvalue(), upload.file_id)
    number = st.session_state.setdefault(f"{key}-number", 0)
    if st.button(other, key=f"{key}-other"):
        st.session_state[f"{key}-number"] = number = number + 1
    content, its = kept(f"{key}-drawn", number, lambda: draw(number))
    return Given("The drawn one", content, number, its)


def ask_image(key: str, most: int = scenes.MOST) -> tuple[Given, Image]:
    """Let the visitor give an image, or take a scene of at most so many objects, and show it."""

    def draw(number: int) -> tuple[bytes, Any]:
        scene = next(one for one in scenes.scenes("test", 1000, number) if len(one.objects) <= most)
        return scenes.SceneImage(scene).read(), scene

    def opened() -> Image:
        image = open_image(given)
        image.thumbnail((SHOWN, SHOWN))
        return image

    given = ask_for(key, "An image of yours", list(IMAGE_SUFFIXES), draw, "Another scene")
    image = kept(f"{key}-image", given.id, opened)
    st.image(enlarged(image))
    return given, image


def enlarged(image: Image, side: int = 320) -> Image:
    """Bring a small image nearer to a size, its pixels as squares."""
    times = max(1, side // max(image.size))
    return image.resize((image.width * times, image.height * times), 0)  # 0: NEAREST


def ask_question(key: str, examples: Sequence[str], label: str = "Question") -> str:
    """Let the visitor ask in words of their own, or take an example."""
    state, key = st.session_state, f"{key}-question"
    old = state.get(f"{key}-examples", [])
    if old != list(examples):
        if state.get(key) in (None, *old):  # an example of another image asks nothing of this one
            state[key] = examples[0]
        state[f"{key}-examples"] = list(examples)
    place = st.container()
    with st.container(horizontal=True, gap="small"):
        for example in examples:
            st.button(example, f"{key}-{example}", type="tertiary", on_click=state.update, args=[{key: example}])
    return place.text_input(label, key=key, max_chars=LONGEST).strip()


# --- Captions and questions -------------------------------------------------------------------------------------------


def looking(models: dict[str, str]) -> None:
    """Caption an image, and answer a question about it."""
    left, right = st.columns([2, 3], gap="large")
    with left:
        given, image = ask_image("look")
    known = {one.question: one.answer for one in scenes.all_questions(given.drawn)} if given.drawn else {}
    with right, told():
        captioner = load("Captions", models["Captions"])
        with st.spinner("Looking …"):
            caption = kept("caption", (given.id, models["Captions"]), lambda: captioner.caption([image])[0])
        show_text(caption.text, "caption")
        st.caption(f"Confidence {caption.confidence:.1%}: the mean probability of its {caption.tokens} tokens."
                   + (f" It was drawn as {given.drawn.caption}." if given.drawn else ""))  # fmt: skip
    with right, told():
        st.divider()
        question = ask_question("look", random.Random(0).sample(sorted(known), 4) if known else QUESTIONS)
        listed = st.text_input("Answers to choose from", max_chars=1000, placeholder="yes, no",
                               help="Separated by commas. Without any, the model says what it likes.")  # fmt: skip
        candidates = distinct(re.split("[,，、;；]", listed))[:MOST_CANDIDATES]
        if not question:
            return
        answerer, signature = load("Questions", models["Questions"]), (given.id, models["Questions"], question)
        with st.spinner("Thinking …"):
            [answer] = kept("answer", (*signature, *candidates), lambda: answerer.answer(
                [image], [question], candidates=candidates, top_k=10))  # fmt: skip
        show_text(answer.text, "answer")
        st.caption(f"Probability {answer.probability:.1%}{' among these answers' if candidates else ''}."
                   + (f" Right is: {known[question]}." if question in known else ""))  # fmt: skip
        if len(answer.ranked) > 1:
            show_bars(answer.ranked)


# --- Documents --------------------------------------------------------------------------------------------------------


def draw_document(number: int) -> tuple[bytes, Any]:
    """Draw a document as PNG: an invoice, a receipt, a form, in English and, where there is a font, in Chinese."""
    families = sorted(documents.FAMILIES, key=lambda name: name != "invoice classic")
    language: Any = "zh" if number % 2 and documents.chinese_font() else "en"
    its = documents.make_document(random.Random(number), families[number % len(families)], language)
    png = io.BytesIO()
    its.pages[0].save(png, "PNG")
    return png.getvalue(), its


def read(qa: DocumentQA, given: Given) -> list[tuple[Page, Any]]:
    """Read a document; it has no name on this machine."""
    st.session_state["page"] = 1
    with one_reader(), tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "document"
        path.write_bytes(given.content)
        try:
            return qa.read(path, MOST_PAGES)
        except InputError as error:
            raise InputError(str(error.args[0]).replace(str(path), given.name), error.hint) from None


def reading(models: dict[str, str]) -> None:
    """Show what is in a document, and answer a question about it where it stands."""
    left, right = st.columns([2, 3], gap="large")
    with left:
        what = f"An image or a PDF, {MOST_PAGES} pages at most"
        given = ask_for("read", what, KINDS, draw_document, "Another document")
        qa = load("Documents", models["Documents"])
        with st.spinner("Reading …"):
            pages = kept("pages", (given.id, models["Documents"]), lambda: read(qa, given))
        examples = list(RECEIPT_QUESTIONS.values())
        if given.drawn:  # questions half as many of which are about what is not there
            examples = [one.question for one in (*given.drawn.questions[:3], given.drawn.questions[-1])]
        question = ask_question("read", examples)

        def ask() -> Answer:
            answer = qa.ask(question, pages)
            st.session_state["page"] = answer.page or st.session_state.get("page", 1)
            return answer

        answer = kept("found", (given.id, models["Documents"], question), ask) if question else Answer("")
        if answer.found:
            show_text(answer.text, "found")
            st.caption(f"Page {answer.page}, score {answer.score:.2f}{'' if answer.box else ', place unknown'}.")
        elif question:
            st.info("Not in this document.")
        show_fields(pages)
    with right:
        number = st.number_input("Page", 1, len(pages), key="page") if len(pages) > 1 else 1
        everything = st.toggle("Words, blocks and tables, too")
        page, picture = pages[number - 1]
        box = answer.box if answer.page == number else None
        st.caption("Orange: labels and their values. Red: the answer."
                   + (" Gray: words. Blue: blocks. Green: cells of tables." if everything else ""))  # fmt: skip
        st.image(with_boxes(page, picture, box, everything))


def fields_of(page: Page) -> list[Pair]:
    """Return labels with their values, but for the columns of tables, which are no values of their heads."""
    heads = [cell.box for table in page.tables for cell in table.cells if cell.row == 0]

    def is_column(pair: Pair) -> bool:
        below = pair.value_box[3] > 2 * pair.key_box[3] - pair.key_box[1]
        return below and any(iou(pair.key_box, head) for head in heads)

    return [pair for pair in labelled_pairs(page) if pair.key and not is_column(pair)]


def with_boxes(page: Page, picture: Image, answer: Box | None, everything: bool) -> Image:
    """Draw what was found on a page."""
    from PIL import ImageDraw

    pairs = fields_of(page)
    shown = page if everything else replace(page, blocks=(), tables=())
    image = draw_page(replace(shown, pairs=tuple(pairs)), picture, [answer] if answer else [])
    pen = ImageDraw.Draw(image)
    for pair in pairs:
        pen.rectangle(pair.value_box, outline=COPPER, width=max(1, max(image.size) // 700))
    image.thumbnail((SHOWN, SHOWN))
    return image


def show_fields(pages: Sequence[tuple[Page, Any]]) -> None:
    """Show the labels of a document with their values."""
    found = [(pair, page.number) for page, _ in pages for pair in fields_of(page)]
    st.caption(f"{len(found)} fields" if found else "No fields: no labels with values were found.")
    where = [f"page {number}" if len(pages) > 1 else "" for _, number in found]
    rows = "".join(
        f'<tr><td style="padding: 0.15rem 0.8rem 0.15rem 0; min-width: 6rem; opacity: 0.7">{html.escape(pair.key)}</td>'
        f'<td style="white-space: pre-line; overflow-wrap: anywhere">{html.escape(pair.value)}</td>'
        f'<td style="text-align: right; white-space: nowrap; opacity: 0.7">{place}</td></tr>'
        for (pair, _), place in zip(found, where, strict=True)
    )
    st.html(f'<div style="max-height: 24rem; overflow: auto"><table data-testid="fields" '
            f'style="width: 100%; font-size: 0.9rem">{rows}</table></div>')  # fmt: skip


# --- Labels -----------------------------------------------------------------------------------------------------------


def labelling(models: dict[str, str]) -> None:
    """Put an image to labels that the visitor names."""
    names = {"": "What suits labels and model", **{name: f"{name}: {its[-1]}" for name, its in TEMPLATES.items()}}
    left, right = st.columns([2, 3], gap="large")
    with left:
        given, image = ask_image("label", most=1)
    with right, told():
        text = st.text_area("Labels, one a line", "\n".join(scenes.SHAPES), height=190, max_chars=5000)
        labels = distinct(text.splitlines())
        if len(labels) > MOST_LABELS:
            raise InputError(f"There may be {MOST_LABELS} labels. Got {len(labels):,}.")
        template = st.selectbox("Prompts", list(names), format_func=names.__getitem__)
        if not labels:
            st.info("Name a label.")
            return
        encoder = load(CLIP, models[CLIP])
        with st.spinner("Comparing …"):
            classifier = kept("classifier", (models[CLIP], template, *labels),
                              lambda: ZeroShotClassifier(encoder, labels, template))  # fmt: skip
            vector = kept("label-vector", (given.id, models[CLIP]), lambda: encoder.embed_images([image]))
        if classifier.unread:
            st.warning(plain(f"The model can't read these: {', '.join(classifier.unread)}"))
        show_bars(classifier.ranked(classifier.probabilities(vector)[0], len(labels)))
        st.caption("Each label is judged alone." if encoder.each_alone else "The probabilities sum to 1.")
        st.caption(plain("Compared with: " + "; ".join(filled(one, labels[0]) for one in classifier.templates)))


# --- Search -----------------------------------------------------------------------------------------------------------


@st.cache_resource(max_entries=8, show_spinner=False)
def index_of(folder: str, model: str) -> image_search.ImageIndex:
    """Open the page's own index of a folder, for all visitors."""
    name = hashlib.sha256(f"{model}\n{folder}".encode("utf-8", "surrogatepass")).hexdigest()[:16]
    return image_search.ImageIndex(INDICES / name, load(CLIP, model))


def look_into(index: image_search.ImageIndex, folder: Path) -> str:
    """Make an index say what is in its folder now; return what it found."""
    bar = st.progress(0.0, "Looking into the folder …")

    def look(paths: Sequence[str]) -> Iterator[image_search.Look]:
        for done, one in enumerate(image_search.look_at(index.encoder, paths), 1):
            yield one
            bar.progress(done / len(paths), f"{done:,} of {len(paths):,} new images")

    try:
        changes = index.update([folder], look=look)
        if changes.new or changes.changed or not index.calibrations:
            bar.progress(1.0, "Finding out from where on it is a match …")
            said = folder / "captions.jsonl"
            index.calibrate(image_search.caption_paths(said, index.paths()) if said.is_file() else {})
    finally:
        bar.empty()
    counts = ", ".join(f"{count:,} {name}" for name, count in changes.metrics().items()
                       if count and name != "left out")  # fmt: skip
    return f"{len(index):,} images: {counts}. {changes.skipped}"


def searching(models: dict[str, str]) -> None:
    """Search a folder of this machine, or the drawn gallery."""
    left, right = st.columns([2, 3], gap="large")
    with left:
        own = st.radio("Where", ["The drawn gallery", "A folder of this machine"]) != "The drawn gallery"
        name = (
            st.text_input("Folder", max_chars=1000, placeholder="where your photos are").strip() if own else "gallery"
        )
        if st.button("Look again", help="After files were added, changed, moved or deleted."):
            st.session_state.pop("looked", None)
        if not name:
            st.info("Name a folder.")
            return
        folder = Path(name).expanduser().absolute()
        if own and not folder.is_dir():
            raise FileNotFoundError(f"There is no folder {name!r} on this machine.")
        load(CLIP, models[CLIP])
        folder = folder if own else image_search.draw_gallery().absolute()
        index = index_of(str(folder), models[CLIP])
        st.caption(plain(kept("looked", (str(folder), models[CLIP]), lambda: look_into(index, folder))))
        by = st.radio("Search by", ["Text", "Image"], horizontal=True)
        if by == "Image":
            query = ask_image("query")[1]
        elif own:
            query = st.text_input(LOOK, max_chars=LONGEST).strip()
        else:  # for two scenes that are there, and for one that is not
            count = image_search.GALLERY_SIZE + 1
            drawn = kept("gallery", count, lambda: image_search.distinct_scenes(count))
            query = ask_question("search", [drawn[place].scene.caption for place in (3, 4, count - 1)], LOOK)
        most = st.slider("Images", 1, 20, 6)
    with right, told():
        if not len(index):
            raise InputError(f"There is no image in {folder} that can be opened.")
        if not query:
            st.info("Say what to look for.")
            return
        [found] = index.search_images([query], most) if by == "Image" else index.search_texts([query], most)
        if found.match is None:
            st.info("The nearest. From where on it is a match is not known here: that takes 20 images, and for texts "
                    "their captions, in captions.jsonl of the folder.")  # fmt: skip
        elif found.match:
            st.success("A match.")
        else:
            st.warning("No match. The nearest are:")
        if calibration := index.calibrations.get("image" if by == "Image" else "text"):
            st.caption(f"{str(calibration).capitalize()}. ✓ is a match.")
        with st.container(horizontal=True):
            for hit in found.hits:
                with st.container(width=145):
                    show_hit(hit, folder)


def show_hit(hit: image_search.Hit, folder: Path) -> None:
    """Show a thumbnail with its cosine and its path in the folder."""
    if hit.thumbnail:
        st.image(enlarged(open_image(hit.thumbnail), 145))
    more = f"\nand {len(hit.paths) - 1} more with this content" if len(hit.paths) > 1 else ""
    path, name = map(image_search.printable, (hit.path, os.path.relpath(hit.path, folder)))
    show_text(f"{'✓ ' if hit.match else ''}{hit.cosine:.3f}  {name}{more}", "hit", SMALL, path)


def main() -> None:
    """Draw the page."""
    hush_libraries()
    st.set_page_config("Images and documents", "🖼️", layout="wide")
    st.title("Images and documents")
    st.sidebar.header("Models")
    models = {}
    for task, (_, builtin, others) in MODELS.items():
        help_text = f"{builtin}, a folder, or a hub id such as {others}."
        models[task] = st.sidebar.text_input(task, builtin, max_chars=300, help=plain(help_text)).strip() or builtin
    tabs = {"Captions and questions": looking, "Documents": reading, "Labels": labelling, "Search": searching}
    opened = st.session_state.setdefault("opened", set())
    for (name, draw), place in zip(tabs.items(), st.tabs(list(tabs), on_change="rerun"), strict=True):
        if place.open:
            opened.add(name)
        if name in opened:  # a tab that was never open costs nothing; one that was keeps what is in it
            with place:
                drawn(draw, models)


if __name__ == "__main__":
    main()
