"""Predictions equal transformers' own pipeline, whatever the batch; explanations add up."""

import csv
import io
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from bert_sentiment_analysis.data.preprocessor import Encoding
from bert_sentiment_analysis.evaluation.visualization import plot_attributions
from bert_sentiment_analysis.inference import predictor as module
from bert_sentiment_analysis.inference.predictor import (
    MODULE,
    Prediction,
    SentimentPredictor,
    as_csv,
    explain,
    predict,
    read_texts,
)
from shared.config import run_commands
from shared.errors import InputError

ROOT = Path(__file__).parents[2]
RUNS = Path("outputs/bert_sentiment_analysis")
TEXTS = [
    "A fine film, truly.",
    "bad",
    "It was not that good at all, and much too long. " * 3,
    "这部电影很好看",
    "🙂 ok",
]


@pytest.fixture(scope="module")
def predictor(tiny: Path) -> SentimentPredictor:
    return SentimentPredictor(str(tiny), device="cpu")


def cli(*arguments: str) -> int:
    with pytest.raises(SystemExit) as exit_:
        run_commands({"predict": predict, "explain": explain}, module=MODULE, argv=arguments)
    return exit_.value.code


def test_predictions_are_those_of_the_pipeline(tiny: Path, predictor: SentimentPredictor) -> None:
    from transformers import pipeline

    theirs = pipeline("text-classification", model=str(tiny), device="cpu", top_k=None)(TEXTS)
    for prediction, scores in zip(predictor.predict(TEXTS), theirs, strict=True):
        expected = {score["label"]: score["score"] for score in scores}
        assert prediction.probabilities == pytest.approx(expected, abs=1e-5)
        assert prediction.label == max(expected, key=expected.get)


@pytest.mark.parametrize("batch_size", [1, 2, 5, 64])
def test_the_batch_changes_nothing_but_the_speed(batch_size: int, predictor: SentimentPredictor) -> None:
    alone = np.concatenate([predictor.logits([text])[0] for text in TEXTS])
    together, _ = predictor.logits(TEXTS, batch_size)
    np.testing.assert_allclose(together, alone, atol=1e-5)


def test_windows_count_as_the_mean_of_their_logits(tiny: Path) -> None:
    predictor = SentimentPredictor(str(tiny), device="cpu")
    predictor.card.encoding = Encoding(max_length=12, long_texts="windows", overlap=2)
    pieces = module.encode([TEXTS[2]], predictor.tokenizer, predictor.card.encoding).input_ids
    with torch.inference_mode():
        each = [predictor.model(torch.tensor([piece])).logits[0].numpy() for piece in pieces]
    assert len(pieces) > 2
    np.testing.assert_allclose(predictor.logits([TEXTS[2], "bad"])[0][0], np.mean(each, axis=0), atol=1e-5)


def test_a_temperature_changes_how_sure_it_is_and_nothing_else(tiny: Path) -> None:
    predictor = SentimentPredictor(str(tiny), device="cpu")
    before = predictor.predict(TEXTS)
    predictor.card.temperature = 100.0
    after = predictor.predict(TEXTS)
    assert [p.label for p in before] == [p.label for p in after]
    assert all(p.confidence < 0.52 for p in after)


def test_empty_texts_and_doubtful_ones_get_no_label(predictor: SentimentPredictor) -> None:
    [empty, blank, doubtful] = predictor.predict(["", " \n<br />", "bad"], threshold=1.0)
    assert (empty.label, empty.note) == (blank.label, blank.note) == (None, "empty text")
    assert doubtful.label is None
    assert doubtful.note.startswith("not sure enough: LABEL_")
    [long] = predictor.predict(["word " * 100], threshold=1.0)
    assert long.note.endswith("; only both ends were read, 62 of 102 tokens")
    assert predictor.predict([]) == []


@pytest.mark.parametrize("text", ["😡😡😡", "🎉🎉", "x" * 200, "\ue000", "[SEP]"])
def test_a_text_without_a_word_that_the_model_knows_gets_no_label(text: str, predictor: SentimentPredictor) -> None:
    [prediction] = predictor.predict([text])
    assert (prediction.label, prediction.note) == (None, "no word the model knows")
    assert predictor.predict([f"{text} good"])[0].label
    with pytest.raises(InputError, match="without a word that the model knows"):
        predictor.explain(text)


@pytest.mark.parametrize("text", ["\u200d", "\u2060", "\u00ad", "\u202e", "\u0301", " \u200b \ufe0f"])
def test_a_text_in_which_nothing_can_be_seen_is_empty(text: str, predictor: SentimentPredictor) -> None:
    assert predictor.predict([text])[0].note == "empty text"
    with pytest.raises(InputError, match="empty text"):
        predictor.explain(text)
    Path("texts.txt").write_text(f"{text}\n", encoding="utf-8")
    with pytest.raises(InputError, match="There are no texts in texts.txt"):
        read_texts("texts.txt")


@pytest.mark.parametrize(
    ("call", "culprit"),
    [
        (lambda p: p.predict("good film"), "texts must be a list of strings. Got 'good film'"),
        (lambda p: p.predict(["good", None]), "texts must be a list of strings. Got None"),
        (lambda p: p.predict([float("nan")]), "Got nan"),
        (lambda p: p.predict(7), "Got 7"),
        (lambda p: p.predict(["good"], batch_size=-1), "batch_size must be in [1, inf). Got -1"),
        (lambda p: p.predict(["good"], batch_size=0), "batch_size must be in [1, inf). Got 0"),
        (lambda p: p.predict(["good"], threshold=1.1), "threshold must be in [0, 1]. Got 1.1"),
        (lambda p: p.explain("good", steps=0), "steps must be in [1, 10000]. Got 0"),
        (lambda p: p.explain(None), "texts must be a list of strings. Got None"),
        (lambda p: SentimentPredictor(p.classifier, dtype="foo"), "dtype must be one of auto, float32, bfloat16"),
    ],
)
def test_wrong_arguments_are_input_errors(call: Any, culprit: str, predictor: SentimentPredictor) -> None:
    with pytest.raises(InputError) as error:
        call(predictor)
    assert culprit in str(error.value)


def test_a_model_may_be_named_by_a_path(tiny: Path) -> None:
    assert SentimentPredictor(tiny, device="cpu").predict(["good"])[0].label


def test_a_megabyte_is_read_at_both_ends_and_says_so(predictor: SentimentPredictor) -> None:
    [prediction] = predictor.predict(["word " * 200_000])
    assert prediction.label
    assert prediction.note == "only both ends were read, 62 of 200002 tokens"


@pytest.mark.parametrize(
    "text", ["not bad at all!", "a", "这部电影 很好看", "un-be-liev-able <br> @john", TEXTS[2] * 3]
)
def test_attributions_sum_to_the_difference_of_the_logits(text: str, predictor: SentimentPredictor) -> None:
    explanation = predictor.explain(text, steps=200)
    assert sum(explanation.scores) == pytest.approx(explanation.total, abs=0.02)
    assert explanation.label == predictor.predict([text])[0].label
    assert len(explanation.words) == len(explanation.scores)
    cleaned = module.clean(text).replace(" ", "")
    if len(text) < 100:
        assert "".join(explanation.words).replace(" ", "") == cleaned


def test_a_part_of_a_long_text_is_explained_as_such_and_any_precision_will_do(tiny: Path) -> None:
    predictor = SentimentPredictor(str(tiny), device="cpu", dtype="bfloat16")
    long = predictor.explain("word " * 100, steps=2)
    assert (len(long.words), long.note) == (60, "only both ends were read, 62 of 102 tokens")
    predictor.card.encoding = Encoding(max_length=12, long_texts="windows", overlap=2)
    assert predictor.explain("word " * 30, steps=2).note == "this is the first of 4 windows"


def test_words_are_joined_as_they_are_written(predictor: SentimentPredictor) -> None:
    assert predictor.explain("It isn't unwatchable, 很好!").words == ["It", "isn't", "unwatchable,", "很", "好", "!"]


def test_attributions_of_a_linear_model_are_exact(predictor: SentimentPredictor) -> None:
    # With logits linear in the embeddings each token's part is its own term, whatever the number of steps.
    weight = torch.randn(2, 32)

    class Linear(torch.nn.Module):
        def __init__(self, embeddings: torch.nn.Module) -> None:
            super().__init__()
            self.embeddings = embeddings

        def get_input_embeddings(self) -> torch.nn.Module:
            return self.embeddings

        def forward(self, inputs_embeds: torch.Tensor, attention_mask: torch.Tensor) -> Any:
            return type("Output", (), {"logits": inputs_embeds.sum(1) @ weight.T})

    embeddings = predictor.model.get_input_embeddings()
    linear = SentimentPredictor.__new__(SentimentPredictor)
    linear.__dict__.update({**vars(predictor), "model": Linear(embeddings)})
    ids = torch.tensor(predictor.tokenizer("not bad", add_special_tokens=False)["input_ids"])
    pad = embeddings(torch.tensor([predictor.tokenizer.pad_token_id]))
    expected = (embeddings(ids) - pad) @ weight[1]
    explanation = linear.explain("not bad", label=predictor.card.label_names[1], steps=1)
    assert explanation.scores == pytest.approx(expected.tolist(), abs=1e-4)


def test_an_empty_text_or_an_unknown_label_can_not_be_explained(predictor: SentimentPredictor) -> None:
    with pytest.raises(InputError, match="empty text"):
        predictor.explain("<br />")
    with pytest.raises(InputError, match="label must be one of LABEL_0, LABEL_1. Got 'good'"):
        predictor.explain("fine", label="good")


# --- The commands -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["txt", "csv", "jsonl"])
def test_predict_reads_any_file_and_writes_a_line_a_text(
    kind: str, tiny: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    texts = ["good, truly", 'so "bad"', "很好"]
    if kind == "txt":
        content = "\n".join(texts)
    elif kind == "csv":
        content = "id,review\n" + "\n".join(f'{i},"{t}"'.replace('"bad"', '""bad""') for i, t in enumerate(texts))
    else:
        content = "\n".join(json.dumps({"text": text}) for text in texts)
    Path(f"texts.{kind}").write_text(content, encoding="utf-8")
    assert cli("predict", "--model", str(tiny), "--input", f"texts.{kind}", "--run", "p") == 0
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [row["text"] for row in rows] == texts
    assert all(sum(row["probabilities"].values()) == pytest.approx(1) for row in rows)
    assert json.loads((RUNS / "p/results.json").read_text())["metrics"]["texts"] == 3


def test_predictions_go_to_a_file(tiny: Path) -> None:
    Path("texts.txt").write_text("one\n\ntwo, 二\n", encoding="utf-8")
    for name in ("out.csv", "out.jsonl"):
        assert cli("predict", "--model", str(tiny), "--input", "texts.txt", "--output", name) == 0
    rows = list(csv.DictReader(io.StringIO(Path("out.csv").read_text(encoding="utf-8"))))
    lines = [json.loads(line) for line in Path("out.jsonl").read_text(encoding="utf-8").splitlines()]
    assert [row["text"] for row in rows] == [line["text"] for line in lines] == ["one", "", "two, 二"]
    assert [row["note"] for row in rows] == ["", "empty text", ""]
    assert as_csv([]) == "text,label,confidence,note\r\n"


@pytest.mark.parametrize("kind", ["csv", "jsonl"])
def test_other_columns_of_a_table_stay_beside_its_texts(kind: str, tiny: Path) -> None:
    rows = [
        {"id": "007", "review": "good", "label": "positive", "p(x)": "1"},
        {"id": "8", "review": "bad", "label": ""},
    ]
    Path("in.jsonl").write_text("\n".join(map(json.dumps, rows)))
    assert cli("predict", "--model", str(tiny), "--input", "in.jsonl", "--output", f"out.{kind}") == 0
    with Path(f"out.{kind}").open(newline="") as file:
        written = list(csv.DictReader(file)) if kind == "csv" else [json.loads(line) for line in file]
    assert list(written[0])[:5] == ["id", "input_label", "input_p(x)", "text", "label"]
    assert [(row["id"], row["input_label"], row["text"]) for row in written] == [
        ("007", "positive", "good"),
        ("8", "", "bad"),
    ]


@pytest.mark.parametrize("given", ["good.csv", "./good.csv", "good.csv.part"])
def test_predictions_never_overwrite_their_input(given: str, tiny: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Path(given).write_text("text\nfine\n")
    assert cli("predict", "--model", str(tiny), "--input", given, "--output", "good.csv") == 2
    assert "output must be another file than input" in capsys.readouterr().err
    assert Path(given).read_text() == "text\nfine\n"


def test_no_cell_of_a_csv_is_a_formula_and_numbers_stay_as_they_are() -> None:
    others = [{"=id": "-5", "more": "-cmd"}]
    prediction = Prediction('=HYPERLINK("x")', "@good", 1.0, {"@good": 1.0}, "\tnote")
    header, row = csv.reader(io.StringIO(as_csv([prediction], others)))
    assert header[:2] == ["'=id", "more"]
    assert row == ["-5", "'-cmd", '\'=HYPERLINK("x")', "'@good", "1.0000", "1.0000", "'\tnote"]


@pytest.mark.parametrize(
    ("redirection", "message"), [("<&-", "stdin is closed"), (">&- < texts.txt", "stdout is closed")]
)
def test_a_closed_stream_is_one_line(redirection: str, message: str, tiny: Path) -> None:
    Path("texts.txt").write_text("fine\n")
    run = subprocess.run(
        f"{sys.executable} -m {MODULE} predict --model {tiny} {redirection}", shell=True, capture_output=True,
        text=True, env={"PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1"},
    )  # fmt: skip
    assert run.returncode == 2
    assert f"error: {message}" in run.stderr and "Traceback" not in run.stderr


def test_stdin_is_a_text_a_line(tiny: Path) -> None:
    run = subprocess.run(
        [sys.executable, "-m", MODULE, "predict", "--model", str(tiny)],
        input="so good\nso bad\n", capture_output=True, text=True, env={"PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1"},
    )  # fmt: skip
    assert run.returncode == 0, run.stderr
    assert [json.loads(line)["text"] for line in run.stdout.splitlines()] == ["so good", "so bad"]


def test_stdin_in_another_encoding_is_one_line(tiny: Path) -> None:
    run = subprocess.run(
        [sys.executable, "-m", MODULE, "predict", "--model", str(tiny)], input="é\n".encode("latin-1"),
        capture_output=True, env={"PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1"},
    )  # fmt: skip
    assert run.returncode == 2
    assert b"error: stdin is not UTF-8 text" in run.stderr and b"Traceback" not in run.stderr


def test_what_was_done_before_an_interruption_is_kept(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "AT_ONCE", 2)
    Path("texts.txt").write_text("one\ntwo\x0b\u2028still two\nthree\nfour\r\n", encoding="utf-8")
    whole = SentimentPredictor.predict
    calls = []

    def once(*arguments: Any, **more: Any) -> Any:
        calls.append(1)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return whole(*arguments, **more)

    monkeypatch.setattr(SentimentPredictor, "predict", once)
    assert cli("predict", "--model", str(tiny), "--input", "texts.txt", "--output", "out.csv", "--run", "p") == 130
    assert not Path("out.csv").exists()
    assert [row[0] for row in csv.reader(Path("out.csv.part").open(newline=""))] == [
        "text",
        "one",
        "two\x0b\u2028still two",
    ]
    assert cli("predict", "--model", str(tiny), "--input", "texts.txt", "--output", "out.csv") == 0
    assert not Path("out.csv.part").exists()
    rows = list(csv.DictReader(Path("out.csv").open(newline="")))
    assert [row["text"] for row in rows] == ["one", "two\x0b\u2028still two", "three", "four"]


def test_progress_counts_texts_also_where_they_have_many_windows(tiny: Path) -> None:
    predictor = SentimentPredictor(str(tiny), device="cpu")
    predictor.card.encoding = Encoding(max_length=12, long_texts="windows", overlap=2)
    done: list[int] = []
    predictor.predict([TEXTS[2], "bad", TEXTS[2] * 3], batch_size=2, progress=done.append)
    assert sum(done) == 3


def test_a_missing_library_is_named_with_what_brings_it(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "transformers", None)
    Path("texts.txt").write_text("one")
    with pytest.raises(SystemExit) as exit_:
        run_commands({"predict": predict}, module=MODULE, argv=["--input", "texts.txt"], extra="sentiment")
    assert exit_.value.code == 2
    assert "package 'transformers'.\nhint: pip install \"llm-roadmap[sentiment]\"" in capsys.readouterr().err


def test_a_very_long_word_leaves_the_picture_its_title() -> None:
    from matplotlib.image import imread

    plot_attributions(["a", "b" * 75], [1.0, 0.5], Path("short.png"), "a title")
    plot_attributions(["a", "b" * 400], [1.0, 0.5], Path("long.png"), "a title")
    short, long = (imread(name) for name in ("short.png", "long.png"))
    assert short.shape[1] == long.shape[1]
    ink = [(image[:40, :, :3] < 0.5).sum() for image in (short, long)]
    assert ink[0] == ink[1] > 0


def test_explain_draws_the_words(tiny: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli("explain", "--model", str(tiny), "--text", "not <b>bad</b> 很好", "--run", "e") == 0
    assert [line.split()[-1] for line in capsys.readouterr().out.splitlines()] == ["not", "bad", "很", "好"]
    assert (RUNS / "e/attributions.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("arguments", "culprit", "status"),
    [
        (["predict", "--input", "empty.txt"], "There are no texts in empty.txt", 2),
        (["predict", "--input", "latin.txt"], "latin.txt is not UTF-8", 2),
        (["predict", "--input", "missing.txt"], "missing.txt can't be read: No such file or directory.", 1),
        (["predict", "--input", "."], ". can't be read: Is a directory.", 1),
        (["predict", "--input", "table.csv", "--text_column", "x"], "has no column 'x'. It has a, b", 2),
        (["predict", "--input", "table.csv"], "no column with a usual name for the texts", 2),
        (["predict", "--input", "ok.txt", "--output", "out.xlsx"], "output must be a .jsonl or .csv file", 2),
        (["predict", "--input", "ok.txt", "--threshold", "1.5"], "threshold must be in [0, 1]", 2),
        (["predict", "--input", "ok.txt", "--batch_size", "0"], "batch_size must be", 2),
        (["predict", "--input", "ok.txt", "--model", "builtin:books"], "There is no 'builtin:books'", 2),
        (["predict", "--input", "ok.txt", "--model", "."], "can't be loaded as a classifier", 2),
        (["predict", "--input", "ok.txt", "--dtype", "int8"], "dtype", 2),
        (["explain", "--text", ""], "empty text", 2),
        (["explain", "--steps", "0"], "steps must be", 2),
        (["explain", "--label", "x"], "label must be one of", 2),
    ],
)
def test_wrong_input_is_one_line(
    arguments: list[str], culprit: str, status: int, tiny: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("empty.txt").write_text("\n \n")
    Path("latin.txt").write_bytes("é".encode("latin-1"))
    Path("table.csv").write_text("a,b\n1,2\n")
    Path("ok.txt").write_text("fine\n")
    model = [] if "--model" in arguments else ["--model", str(tiny)]
    assert cli(*arguments, *model) == status
    errors = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1
    assert culprit in errors[0]


def test_texts_of_a_compressed_table_are_read() -> None:
    import gzip

    Path("t.jsonl.gz").write_bytes(gzip.compress(b'{"text": "a"}\n{"text": "b"}\n'))
    assert read_texts("t.jsonl.gz") == (["a", "b"], [{}, {}])
