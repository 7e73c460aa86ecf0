import copy
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from model_optimization.builtin.subject import Data, Subject
from model_optimization.deployment.onnx_conversion import (
    MODEL,
    GateError,
    OnnxClassifier,
    build,
    convert,
    gate,
    megabytes,
)
from model_optimization.pruning.structured_pruning import layers_of
from model_optimization.quantization.dynamic_quantization import (
    asymmetric_grid,
    derived,
    processor_flags,
    quantize_dynamic_bundle,
    smooth,
    symmetric_grid,
)
from shared.errors import InputError

reals = st.floats(-1e3, 1e3, width=32)
arrays = hnp.arrays(np.float32, hnp.array_shapes(min_dims=2, max_dims=2, max_side=8), elements=reals)


@given(arrays)
def test_rounding_to_the_grid_errs_by_half_a_step_at_most(values: np.ndarray) -> None:
    for grid in (asymmetric_grid(float(values.min()), float(values.max())), symmetric_grid(values)):
        error = np.abs(grid.dequantize(grid.quantize(values)) - values)
        # The zero point is rounded too, so one end of an asymmetric grid may be off by half a step more.
        assert error.max() <= grid.scale * 1.01 + 1e-9


@given(arrays)
def test_zero_is_exact_and_what_was_rounded_stays(values: np.ndarray) -> None:
    for grid in (asymmetric_grid(float(values.min()), float(values.max())), symmetric_grid(values, axis=1)):
        assert (grid.dequantize(grid.quantize(np.zeros_like(values))) == 0).all()
        once = grid.dequantize(grid.quantize(values))
        np.testing.assert_allclose(grid.dequantize(grid.quantize(once)), once)


@given(arrays)
def test_a_scale_for_each_channel_is_never_worse(values: np.ndarray) -> None:
    def error(axis: int | None) -> float:
        grid = symmetric_grid(values, axis=axis)
        return float(np.abs(grid.dequantize(grid.quantize(values)) - values).max())

    assert error(1) <= symmetric_grid(values).scale / 2 + 1e-6


def test_the_grid_is_pytorchs() -> None:
    rng = np.random.default_rng(0)
    values = rng.normal(1, 2, (5, 7)).astype(np.float32)
    grid = asymmetric_grid(float(values.min()), float(values.max()))
    theirs = torch.fake_quantize_per_tensor_affine(torch.tensor(values), grid.scale, grid.zero_point, 0, 255)
    np.testing.assert_allclose(grid.dequantize(grid.quantize(values)), theirs.numpy(), atol=1e-5)
    channels = symmetric_grid(values, axis=0)
    scales, zeros = torch.tensor(channels.scale.flatten()), torch.zeros(5, dtype=torch.int32)
    theirs = torch.fake_quantize_per_channel_affine(torch.tensor(values), scales, zeros, 0, -127, 127)
    np.testing.assert_allclose(channels.dequantize(channels.quantize(values)), theirs.numpy(), atol=1e-5)


def test_seven_bits_leave_the_eighth_alone() -> None:
    values = np.linspace(-1, 1, 100)
    assert np.abs(symmetric_grid(values, bits=7).quantize(values)).max() == 63


def test_dynamic_int8_answers_like_float32_and_is_smaller(
    float_bundle: OnnxClassifier, data: Data, tmp_path: Path
) -> None:
    made = quantize_dynamic_bundle(float_bundle, tmp_path / "int8", data=data)
    assert gate(float_bundle, made, data, most_loss=0.02, least_agreement=0.97)["accuracy"] > 0.9
    assert megabytes(made.folder) < megabytes(float_bundle.folder)
    assert made.card.techniques == ["dynamic INT8"] and made.version != float_bundle.version
    assert 0 < np.abs(made.logits(data.texts("test")) - float_bundle.logits(data.texts("test"))).mean() < 0.5


def test_smoothing_changes_the_graph_and_not_what_it_computes(
    float_bundle: OnnxClassifier, data: Data, tmp_path: Path
) -> None:
    texts = data.texts("test")
    for strength in (0.0, 0.5, 1.0):
        graph = smooth(float_bundle, texts[:20], strength)
        made = derived(float_bundle, tmp_path / str(strength), graph, "smoothed")
        np.testing.assert_allclose(made.logits(texts), float_bundle.logits(texts), atol=1e-3)


def test_smoothing_helps_where_one_channel_is_far_larger(subject: Subject, data: Data, tmp_path: Path) -> None:
    model = copy.deepcopy(subject.model)
    layer = layers_of(model)[0]
    with torch.no_grad():  # the same function, but neurons 0 to 3 give values a hundred times as large where positive
        layer.up.weight[:4] *= 100
        layer.up.bias[:4] *= 100
        layer.down.weight[:, :4] /= 100
    spoiled = convert(subject.with_model(model, "spoiled"), tmp_path / "float32")
    texts = data.texts("train")[:64]
    plain = quantize_dynamic_bundle(spoiled, tmp_path / "plain")
    smoothed = quantize_dynamic_bundle(spoiled, tmp_path / "smoothed", texts)
    exact = spoiled.logits(data.texts("test"))
    errors = [np.abs(made.logits(data.texts("test")) - exact).mean() for made in (plain, smoothed)]
    assert errors[1] < 0.7 * errors[0]
    assert "smoothed by" in smoothed.card.techniques[0]


def test_a_quantized_bundle_is_not_quantized_again(float_bundle: OnnxClassifier, tmp_path: Path) -> None:
    made = quantize_dynamic_bundle(float_bundle, tmp_path / "int8")
    with pytest.raises(InputError, match="quantized already"):
        quantize_dynamic_bundle(made, tmp_path / "again")


def test_a_bundle_is_not_written_over_by_its_own_quantization(float_bundle: OnnxClassifier) -> None:
    with pytest.raises(InputError, match="would be written over"):
        quantize_dynamic_bundle(float_bundle, float_bundle.folder)


def test_a_bundle_that_the_gate_stops_leaves_what_lay_there(
    float_bundle: OnnxClassifier, data: Data, tmp_path: Path
) -> None:
    def spoiled(folder: Path) -> OnnxClassifier:
        model = onnx.load(float_bundle.folder / MODEL)
        weight = next(tensor for tensor in model.graph.initializer if "classifier.weight" in tensor.name)
        weight.CopyFrom(onnx.numpy_helper.from_array(-onnx.numpy_helper.to_array(weight), weight.name))
        return derived(float_bundle, folder, model.SerializeToString(), "spoiled", data)

    place = tmp_path / "bundle"
    made, figures = build(lambda folder: quantize_dynamic_bundle(float_bundle, folder), place, float_bundle, data, 0.05)
    assert made.folder == place and figures["agreement"] > 0.95
    before = {path.name: path.read_bytes() for path in place.iterdir()}
    with pytest.raises(GateError, match="bundle loses"):
        build(spoiled, place, float_bundle, data, 0.05)
    assert {path.name: path.read_bytes() for path in place.iterdir()} == before
    assert list(tmp_path.iterdir()) == [place]
    with pytest.raises(InputError, match="would be written over"):
        build(spoiled, float_bundle.folder, float_bundle, data, 1)


def test_processor_flags_are_those_that_matter() -> None:
    assert set(processor_flags()) <= {"avx2", "avx512f", "avx512_vnni", "avx_vnni", "amx_int8", "asimddp"}
