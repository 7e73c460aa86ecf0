from pathlib import Path

import numpy as np
import pytest

from model_optimization.builtin.subject import Data
from model_optimization.deployment.onnx_conversion import MODEL, OnnxClassifier, gate
from model_optimization.quantization.static_quantization import (
    Method,
    calibration_batches,
    calibration_rows,
    node_errors,
    quantize_static_bundle,
)
from shared.errors import InputError


def test_calibration_takes_as_many_of_each_label(data: Data) -> None:
    rows = data.splits["train"]
    chosen = calibration_rows(rows, 40)
    labels = dict(rows)
    assert len(chosen) == 40 and sum(labels[text] for text in chosen) == 20
    assert chosen == calibration_rows(rows, 40) != calibration_rows(rows, 40, seed=1)


@pytest.mark.parametrize(("rows", "message"), [([], "is empty"), ([("a", 1), ("b", 1)], "one label only")])
def test_a_calibration_set_that_shows_too_little_is_refused(rows: list[tuple[str, int]], message: str) -> None:
    with pytest.raises(InputError, match=message):
        calibration_rows(rows)


def test_all_calibration_batches_have_one_length(float_bundle: OnnxClassifier) -> None:
    batches = calibration_batches(float_bundle, ["the bed", "the bed was very good !", "bad"], 2)
    assert [batch["input_ids"].shape for batch in batches] == [(2, 8), (1, 8)]
    assert batches[1]["attention_mask"].sum() == 3


@pytest.mark.parametrize("method", ["minmax", "percentile", "entropy"])
def test_static_int8_answers_like_float32(
    method: Method, float_bundle: OnnxClassifier, data: Data, tmp_path: Path
) -> None:
    texts = calibration_rows(data.splits["train"], 64)
    made = quantize_static_bundle(float_bundle, tmp_path / "int8", texts, method=method, data=data)
    gate(float_bundle, made, data, most_loss=0.03, least_agreement=0.95)
    assert made.card.techniques == [f"static INT8 ({method})"]


def test_the_report_names_the_matrix_that_8_bits_hurt(float_bundle: OnnxClassifier, data: Data, tmp_path: Path) -> None:
    import onnx

    from model_optimization.quantization.dynamic_quantization import derived

    texts = calibration_rows(data.splits["train"], 16)
    before = node_errors(float_bundle, texts)
    assert [error.decibels for error in before] == sorted(error.decibels for error in before)
    assert len(before) >= 12 and all(20 < error.decibels < 80 for error in before)
    # One weight a thousand times as large as the others takes all 8 bits of its column.
    model = onnx.load(float_bundle.folder / MODEL)
    victim = before[-1].node
    name = next(node.input[1] for node in model.graph.node if node.name == victim)
    tensor = next(tensor for tensor in model.graph.initializer if tensor.name == name)
    weight = onnx.numpy_helper.to_array(tensor).copy()
    weight[0] *= 1000
    tensor.CopyFrom(onnx.numpy_helper.from_array(weight, name))
    hurt = derived(float_bundle, tmp_path / "hurt", model.SerializeToString(), "spoiled")
    after = {error.node: error.decibels for error in node_errors(hurt, texts)}
    assert after[victim] < before[-1].decibels


def test_sensitive_matrices_can_stay_in_float32(float_bundle: OnnxClassifier, data: Data, tmp_path: Path) -> None:
    import onnx

    texts = calibration_rows(data.splits["train"], 32)
    bundles = [quantize_static_bundle(float_bundle, tmp_path / str(kept), texts, keep_float=kept) for kept in (0, 10)]
    counts = [
        sum(node.op_type == "DequantizeLinear" for node in onnx.load(made.folder / MODEL).graph.node)
        for made in bundles
    ]
    assert counts[1] < counts[0]
    assert bundles[1].card.techniques == ["static INT8 (minmax, 10 matrices in float32)"]
    exact = float_bundle.logits(data.texts("test"))
    errors = [np.abs(made.logits(data.texts("test")) - exact).mean() for made in bundles]
    assert errors[1] < errors[0]


def test_static_quantization_without_texts_is_refused(float_bundle: OnnxClassifier, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="calibration set is empty"):
        quantize_static_bundle(float_bundle, tmp_path / "int8", [])


def test_errors_of_a_quantized_bundle_are_not_asked_for(float_bundle: OnnxClassifier, tmp_path: Path) -> None:
    from model_optimization.quantization.dynamic_quantization import quantize_dynamic_bundle

    with pytest.raises(InputError, match="quantized already"):
        node_errors(quantize_dynamic_bundle(float_bundle, tmp_path / "int8"), ["the bed", "bad"])
