"""A page to try the models on: paste a text or upload a table, see labels, probabilities and the words behind them.

streamlit run bert_sentiment_analysis/app/streamlit_ui.py     # or: make serve-sentiment
"""

from __future__ import annotations

import html
import tempfile
from pathlib import Path

import numpy as np
import streamlit as st

from bert_sentiment_analysis.data.imdb_dataset import LABEL_COLUMNS, pick_column, read_labels, read_table
from bert_sentiment_analysis.evaluation.metrics import classification_figures
from bert_sentiment_analysis.evaluation.visualization import plot_confusion
from bert_sentiment_analysis.inference.predictor import (
    EMPTY,
    UNKNOWN,
    Explanation,
    Prediction,
    SentimentPredictor,
    as_csv,
    other_columns,
)
from shared.errors import InputError
from shared.logs import hush_libraries

MODELS = {
    "Movie reviews": "builtin:movies",
    "Product reviews": "builtin:products",
    "Tweets": "builtin:tweets",
    "Another model": "",
}
EXAMPLES = {
    "Movie reviews": "The plot is thin and the first hour drags, but what a performance! I would see it again.",
    "Product reviews": "Arrived quickly. The screen is not bad at all, the battery however died within a week.",
    "Tweets": "so the concert is on Friday after all, can't wait 🎉 @user",
    "Another model": "这家餐厅的菜很好吃，可是服务太慢了。",
}
MOST_CHARACTERS = 20_000
MOST_MEGABYTES = 5
MOST_ROWS = 5_000


@st.cache_resource(max_entries=3, show_spinner="Loading the model …")
def predictor(name: str) -> SentimentPredictor:
    """Load a model once for all visitors."""
    return SentimentPredictor(name)


def complain(error: Exception) -> None:
    """Show what went wrong, and what to do about it."""
    st.error(str(error.args[0] if isinstance(error, InputError) else error))
    if getattr(error, "hint", ""):
        st.caption(error.hint)


def highlighted(explanation: Explanation) -> str:
    """Return a text as HTML, each word on a ground of its share: blue speaks for the label, red against it."""
    strongest = max((abs(score) for score in explanation.scores), default=0) or 1.0
    spans = []
    for word, score in zip(explanation.words, explanation.scores, strict=True):
        color, share = "33, 102, 172" if score > 0 else "178, 24, 43", abs(score) / strongest
        ink = "; color: white" if share > 0.8 else ""
        spans.append(
            f'<span title="{score:+.3f}" style="background: rgba({color}, {0.9 * share:.2f}); '
            f'padding: 2px 3px; border-radius: 3px{ink}">{html.escape(word)}</span>'
        )
    return f'<div data-testid="words" style="line-height: 2; overflow-wrap: anywhere">{" ".join(spans)}</div>'


def one_text(model: SentimentPredictor, domain: str, threshold: float) -> None:
    """Let the visitor paste one text."""
    text = st.text_area("Text", EXAMPLES[domain], height=140, max_chars=MOST_CHARACTERS, key=f"text-{domain}")
    if not st.button("Analyze", type="primary") and "shown" not in st.session_state:
        return
    st.session_state["shown"] = True
    if not text.strip():
        st.warning("There is no text to analyze.")
        return
    [prediction] = model.predict([text], threshold=threshold)
    if prediction.note in (EMPTY, UNKNOWN):
        empty = prediction.note == EMPTY
        st.warning(
            "Without its markup, this text is empty." if empty else "This text has no word that the model knows."
        )
        return
    left, right = st.columns([1, 2])
    left.metric("Label", prediction.label or "not sure")
    left.caption(f"{prediction.confidence:.0%} sure")
    right.vega_lite_chart(
        [{"label": name, "probability": share} for name, share in prediction.probabilities.items()],
        {"mark": "bar", "encoding": {
            "x": {"field": "probability", "type": "quantitative", "scale": {"domain": [0, 1]}},
            "y": {"field": "label", "type": "nominal", "sort": None, "title": None},
        }},
        height=160,
    )  # fmt: skip
    if prediction.note:
        st.info(prediction.note)
    place = st.empty()  # else the words of the text before would stay while this one's are looked for
    try:
        with place, st.spinner("Looking for the words behind it …"):
            explanation = model.explain(text)
    except InputError as error:
        with place.container():
            complain(error)
        return
    with place.container():
        st.markdown(f"What speaks **for** (blue) and against (red) *{html.escape(explanation.label)}*:")
        st.html(highlighted(explanation))
        if explanation.note:
            st.caption(f"Of this long text, {explanation.note}.")


def labelled(model: SentimentPredictor, texts: list[str]) -> list[Prediction]:
    """Label texts while a bar shows how far it is."""
    bar = st.progress(0.0, "Reading …")
    done = 0

    def progress(count: int) -> None:
        nonlocal done
        done += count
        bar.progress(done / len(texts), f"{done:,} of {len(texts):,} texts")

    predictions = model.predict(texts, progress=progress)
    bar.empty()
    return predictions


def many_texts(model: SentimentPredictor, threshold: float) -> None:
    """Let the visitor upload a table."""
    upload = st.file_uploader(f"A csv, tsv or jsonl file of up to {MOST_ROWS:,} rows and {MOST_MEGABYTES} MB",
                              type=["csv", "tsv", "jsonl"], max_upload_size=MOST_MEGABYTES)  # fmt: skip
    column = st.text_input(
        "Column with the texts", help="Leave it empty if it has a usual name, such as text or review."
    )
    if upload is None:
        return
    if upload.size > MOST_MEGABYTES * 1_000_000:
        st.error(f"The file has {upload.size / 1e6:.1f} MB; up to {MOST_MEGABYTES} are taken here.")
        return
    try:
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / f"upload{Path(upload.name).suffix.lower()}"
            path.write_bytes(upload.getvalue())
            table = read_table(path)
        chosen = pick_column(table, "text", column.strip(), upload.name)
    except InputError as error:
        hint = error.hint.replace("--text_column NAME", "write the column's name in the field above")
        complain(InputError(error.args[0].replace(str(path), upload.name), hint))
        return
    texts, others = list(chosen), other_columns(table, chosen.name)
    if not 0 < len(texts) <= MOST_ROWS:
        st.error(f"The file has {len(texts):,} rows; 1 to {MOST_ROWS:,} are taken here.")
        return
    read = (model.classifier.name, upload.file_id, column)
    if st.session_state.get("read", (None,))[0] != read:  # not again for every touch of the page
        st.session_state["read"] = read, labelled(model, texts)
    predictions = [prediction.unless_below(threshold) for prediction in st.session_state["read"][1]]
    st.dataframe([
        {**other, "text": p.text, "label": p.label, "confidence": round(p.confidence, 3), "note": p.note}
        for other, p in zip(others, predictions, strict=True)
    ])  # fmt: skip
    st.download_button("Download as csv", as_csv(predictions, others), "predictions.csv", "text/csv", on_click="ignore")
    names = model.card.label_names
    given = next((name for name in LABEL_COLUMNS if name in table.columns), None)
    if given is None:
        return
    meant = read_labels(map(str, table[given]), names)
    right = [meant.get(str(label)) for label in table[given]]
    read_as = ", ".join(sorted(f"{value} → {label}" for value, label in meant.items() if value != label))
    if read_as:
        st.caption(f"Labels of the column {given!r} are read as: {read_as}.")
    full = [i for i, prediction in enumerate(predictions) if prediction.note != EMPTY]
    known = [i for i in full if right[i]]
    if not known:
        st.info(f"The column {given!r} has none of the labels {', '.join(names)}, so there is nothing to compare with.")
        return
    for count, what in ((len(texts) - len(full), "text"), (len(full) - len(known), "label that the model knows")):
        if count:
            st.info(f"{count:,} of {len(texts):,} rows have no {what}; the figures leave them out.")
    labels = np.array([names.index(right[i]) for i in known])
    probabilities = np.array([[predictions[i].probabilities[name] for name in names] for i in known])
    figures = classification_figures(labels, probabilities)
    for place, (title, name) in zip(
        st.columns(3),
        (("Accuracy", "accuracy"), ("Macro-F1", "macro_f1"), ("Macro-recall", "macro_recall")),
        strict=True,
    ):
        place.metric(title, f"{figures[name]:.3f}")
    with tempfile.TemporaryDirectory() as folder:
        plot_confusion(labels, probabilities.argmax(1), names, Path(folder) / "matrix.png")
        st.image((Path(folder) / "matrix.png").read_bytes(), "Confusion matrix", width=480)


def main() -> None:
    """Draw the page."""
    hush_libraries()
    st.set_page_config("Sentiment analysis", "💬")
    st.title("Sentiment analysis")
    domain = st.sidebar.radio("Domain", list(MODELS))
    name = MODELS[domain] or st.sidebar.text_input(
        "Model", placeholder="a run's folder or a hub id",
        help="Such as cardiffnlp/twitter-xlm-roberta-base-sentiment for Chinese and other languages.",
    ).strip()  # fmt: skip
    threshold = st.sidebar.slider("Give no label below this probability", 0.0, 1.0, 0.0, 0.05)
    if not name:
        st.info("Name a model in the sidebar.")
        return
    try:
        model = predictor(name)
    except (InputError, OSError) as error:
        complain(error)
        return
    single, table = st.tabs(["One text", "A table"])
    with single:
        one_text(model, domain, threshold)
    with table:
        many_texts(model, threshold)


if __name__ == "__main__":
    main()
