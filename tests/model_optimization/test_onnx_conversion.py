import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from model_optimization.builtin.subject import Data, Subject
from model_optimization.deployment.onnx_conversion import (
    CARD,
    MODEL,
    TOKENIZER,
    Card,
    GateError,
    OnnxClassifier,
    convert,
    export_graph,
    gate,
    length_batches,
    pad,
    parity,
    softmax,
    write_bundle,
)
from shared.errors import InputError


@pytest.fixture
def bundle(tiny_bundle: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny_bundle, tmp_path / "bundle"))


def rewrite_card(folder: Path, **changes: object) -> None:
    card = json.loads((folder / CARD).read_text())
    (folder / CARD).write_text(json.dumps({**card, **changes}))


def test_onnx_gives_pytorchs_logits_and_embeddings_at_every_shape(
    subject: Subject, float_bundle: OnnxClassifier
) -> None:
    assert parity(subject, float_bundle) < 1e-4
    for shape in ((1, 1), (7, 3), (2, 64)):
        ids = [[(7 * i + j) % 40 for j in range(shape[1])] for i in range(shape[0])]
        for ours, theirs in zip(float_bundle.run(ids), subject.run(ids), strict=True):
            np.testing.assert_allclose(ours, theirs, atol=1e-4)


def test_padding_changes_nothing(float_bundle: OnnxClassifier) -> None:
    alone, among = float_bundle.run([[2, 5, 3]]), float_bundle.run([[2, 5, 3], list(range(2, 42))])
    for one, other in zip(alone, among, strict=True):
        np.testing.assert_allclose(one[0], other[0], atol=1e-5)


def test_a_bundle_knows_what_it_is(float_bundle: OnnxClassifier, data: Data) -> None:
    card = float_bundle.card
    assert (card.label_names, card.max_length, card.techniques, card.data) == (data.label_names, 64, ["float32"], "toy")
    right = float_bundle.logits(data.texts("test")).argmax(1) == data.labels("test")
    assert card.accuracy == pytest.approx(right.mean(), abs=1e-6)


def test_roberta_and_distilbert_are_exported_too(tiny_tokenizer: Any) -> None:
    import torch
    from transformers import (
        DistilBertConfig,
        DistilBertForSequenceClassification,
        RobertaConfig,
        RobertaForSequenceClassification,
    )

    torch.manual_seed(0)
    vocabulary = len(tiny_tokenizer())
    models = [
        RobertaForSequenceClassification(RobertaConfig(
            vocab_size=vocabulary, hidden_size=32, num_hidden_layers=1, num_attention_heads=4, intermediate_size=64,
            max_position_embeddings=80, pad_token_id=0,
        )),
        DistilBertForSequenceClassification(DistilBertConfig(
            vocab_size=vocabulary, dim=32, n_layers=1, n_heads=4, hidden_dim=64, max_position_embeddings=80,
        )),
    ]  # fmt: skip
    for model in models:
        subject = Subject(model.eval(), tiny_tokenizer(), ["a", "b"], model.config.model_type, 32)
        session_bytes = export_graph(model, 32)
        import onnxruntime

        session = onnxruntime.InferenceSession(session_bytes, providers=["CPUExecutionProvider"])
        for shape in ((1, 5), (3, 9)):
            ids = np.arange(3, 3 + shape[0] * shape[1]).reshape(shape) % 40 + 1
            feeds = {"input_ids": ids, "attention_mask": np.ones_like(ids)}
            np.testing.assert_allclose(session.run(["logits"], feeds)[0], subject.run(ids.tolist())[0], atol=1e-4)


def test_a_truncated_model_is_told_by_its_hash(bundle: Path) -> None:
    content = (bundle / MODEL).read_bytes()
    (bundle / MODEL).write_bytes(content[: len(content) // 2])
    with pytest.raises(InputError, match="not the file that bundle.json was written for"):
        OnnxClassifier(bundle)


def test_a_file_that_is_no_onnx_is_refused(bundle: Path) -> None:
    write_bundle(bundle, b"this is no model", (bundle / TOKENIZER).read_text(), Card(["a", "b"], 16))
    with pytest.raises(InputError, match="is no ONNX model"):
        OnnxClassifier(bundle)


def test_a_graph_with_other_outputs_is_refused(bundle: Path) -> None:
    import onnx

    model = onnx.load(bundle / MODEL)
    del model.graph.output[1]
    write_bundle(bundle, model.SerializeToString(), (bundle / TOKENIZER).read_text(), Card(["a", "b"], 16))
    with pytest.raises(InputError, match="must take input_ids and attention_mask and give logits"):
        OnnxClassifier(bundle)


def test_a_tokenizer_with_more_tokens_than_the_model_is_refused(bundle: Path) -> None:
    content = json.loads((bundle / TOKENIZER).read_text())
    vocabulary = content["model"]["vocab"]
    vocabulary |= {f"new{i}": len(vocabulary) + i for i in range(50)}
    write_bundle(bundle, (bundle / MODEL).read_bytes(), json.dumps(content), Card(["a", "b"], 16))
    with pytest.raises(InputError, match="tokenizer of another model"):
        OnnxClassifier(bundle)


def test_more_labels_than_logits_are_refused(bundle: Path) -> None:
    write_bundle(bundle, (bundle / MODEL).read_bytes(), (bundle / TOKENIZER).read_text(), Card(["a", "b", "c"], 16))
    with pytest.raises(InputError, match=r"gives 2 logits, but bundle.json names a, b, c"):
        OnnxClassifier(bundle)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"label_names": ["one"]}, "label_names must be two or more"),
        ({"label_names": ["one", "one"]}, "label_names must differ"),
        ({"max_length": 0}, "max_length must be"),
        ({"unknown": 1}, "unexpected keyword"),
    ],
)
def test_a_damaged_card_is_told(bundle: Path, changes: dict[str, object], message: str) -> None:
    rewrite_card(bundle, **changes)
    with pytest.raises(InputError, match=message):
        OnnxClassifier(bundle)


def test_what_is_missing_is_named(bundle: Path, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="is no bundle"):
        OnnxClassifier(tmp_path / "nothing")
    (bundle / TOKENIZER).unlink()
    with pytest.raises(FileNotFoundError, match=r"has no tokenizer.json"):
        OnnxClassifier(bundle)


def test_long_texts_are_cut_and_it_is_told(tiny_bundle: Path) -> None:
    short, long = OnnxClassifier(tiny_bundle).predict(["the bed", "the bed " * 1000])
    assert (short.truncated, short.tokens) == (False, 4)
    assert (long.truncated, long.tokens) == (True, 64)


def test_lone_surrogates_are_read(tiny_bundle: Path) -> None:
    assert OnnxClassifier(tiny_bundle).predict(["bed \ud83d"])[0].label in ("negative", "positive")


def test_no_text_is_an_error(tiny_bundle: Path) -> None:
    with pytest.raises(InputError, match="no text"):
        OnnxClassifier(tiny_bundle).logits([])


def test_the_gate_holds_back_what_loses_too_much(subject: Subject, tiny_bundle: Path, data: Data) -> None:
    untrained = OnnxClassifier(tiny_bundle)
    figures = gate(subject, subject, data)
    assert (figures["loss"], figures["agreement"]) == (0, 1)
    with pytest.raises(GateError, match="loses"):
        gate(subject, untrained, data)
    with pytest.raises(GateError, match="agrees in"):
        gate(subject, untrained, data, most_loss=1, least_agreement=0.99)


def test_a_model_that_can_not_be_exported_faithfully_is_refused(
    subject: Subject, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tiny_model: Any
) -> None:
    other = subject.with_model(tiny_model(), "other")
    monkeypatch.setattr(
        "model_optimization.deployment.onnx_conversion.export_graph", lambda *_: export_graph(subject.model, 64)
    )
    with pytest.raises(InputError, match="differ by"):
        convert(other, tmp_path)


def test_padding_and_softmax_and_batches() -> None:
    ids, mask = pad([[5], [6, 7, 8]])
    assert ids.tolist() == [[5, 0, 0], [6, 7, 8]] and mask.tolist() == [[1, 0, 0], [1, 1, 1]]
    np.testing.assert_allclose(softmax(np.array([[1000.0, 1000.0]])), [[0.5, 0.5]])
    assert list(length_batches([3, 1, 2], 2)) == [[1, 2], [0]]


def test_the_command_labels_texts_without_pytorch(tiny_bundle: Path) -> None:
    code = (
        "import sys; sys.modules['torch'] = sys.modules['transformers'] = None; "
        "sys.argv = ['x', 'predict', '--bundle', sys.argv[1], '--text', 'good, the bed']; "
        "import runpy; runpy.run_module('model_optimization.deployment.onnx_conversion', run_name='__main__')"
    )
    process = subprocess.run([sys.executable, "-c", code, str(tiny_bundle)], capture_output=True, text=True)
    assert process.returncode == 0, process.stderr
    label, probability, text = process.stdout.strip().split("\t")
    assert label in ("negative", "positive") and 0.5 <= float(probability) <= 1 and text == "good, the bed"
