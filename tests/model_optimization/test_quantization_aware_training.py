from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from model_optimization.builtin.subject import Data, Recipe, Subject, accuracy
from model_optimization.deployment.onnx_conversion import MODEL
from model_optimization.quantization.quantization_aware_training import (
    ActivationQuantizer,
    QuantizedEmbedding,
    QuantizedLinear,
    channel_scales,
    convert_quantized,
    fake_quantize,
    prepare,
    quantization_aware_train,
    round_through,
)
from shared.errors import InputError


@given(st.integers(0, 1000), st.floats(0.01, 2), st.integers(0, 255))
def test_fake_quantization_and_its_gradient_are_pytorchs(seed: int, scale: float, zero_point: int) -> None:
    values = torch.randn(40, generator=torch.Generator().manual_seed(seed)) * 50
    scale = float(np.float32(scale))
    ours, theirs = values.clone().requires_grad_(), values.clone().requires_grad_()
    one = fake_quantize(ours, torch.tensor(scale), torch.tensor(float(zero_point)), 0, 255)
    other = torch.fake_quantize_per_tensor_affine(theirs, scale, zero_point, 0, 255)
    # A value on the border between two steps may go either way: PyTorch multiplies by 1 / scale.
    borders = (values / scale - (values / scale).floor() - 0.5).abs() < 1e-3
    torch.testing.assert_close(one[~borders], other[~borders])
    one.sum().backward()
    other.sum().backward()
    torch.testing.assert_close(ours.grad[~borders], theirs.grad[~borders])


def test_weights_are_rounded_as_pytorch_does_per_channel() -> None:
    weight = torch.randn(5, 9, generator=torch.Generator().manual_seed(0))
    scales = channel_scales(weight)
    ours = fake_quantize(weight, scales, torch.zeros_like(scales), -127, 127)
    theirs = torch.fake_quantize_per_channel_affine(
        weight, scales.flatten(), torch.zeros(5, dtype=torch.int32), 0, -127, 127
    )
    torch.testing.assert_close(ours, theirs)


def test_rounding_passes_the_gradient_through() -> None:
    values = torch.tensor([0.2, 1.7, -3.4], requires_grad=True)
    (round_through(values) * torch.tensor([1.0, 2.0, 3.0])).sum().backward()
    assert values.grad is not None and values.grad.tolist() == [1, 2, 3]


def test_ranges_follow_what_is_seen_and_then_hold() -> None:
    quantizer = ActivationQuantizer()
    quantizer(torch.tensor([-1.0, 3.0]))
    assert (quantizer.low.item(), quantizer.high.item()) == (-1, 3)
    quantizer(torch.tensor([-1.0, 5.0]))
    assert quantizer.high.item() == pytest.approx(3 + 0.05 * 2)
    quantizer.observing = False
    quantizer(torch.tensor([-100.0, 100.0]))
    assert quantizer.high.item() == pytest.approx(3.1)
    assert quantizer(torch.tensor([100.0])).item() == pytest.approx(3.1, rel=0.01)


def test_query_key_and_value_share_what_rounds_their_input(subject: Subject) -> None:
    layer = prepare(subject).model.bert.encoder.layer[0].attention
    assert layer.self.query.inputs is layer.self.key.inputs is layer.self.value.inputs
    assert layer.output.dense.inputs is not layer.self.query.inputs


def test_all_but_the_deciding_layer_is_prepared_once(subject: Subject) -> None:
    prepared = prepare(subject)
    assert isinstance(prepared.model.classifier, torch.nn.Linear)
    assert isinstance(prepared.model.get_input_embeddings(), QuantizedEmbedding)
    assert sum(isinstance(module, QuantizedLinear) for module in prepared.model.modules()) == 2 * 6 + 1
    assert not any(isinstance(module, QuantizedLinear) for module in subject.model.modules())
    with pytest.raises(InputError, match="prepared for quantization already"):
        prepare(prepared)


def test_training_brings_the_rounded_model_closer_to_its_original(subject: Subject, data: Data) -> None:
    texts = data.texts("test")
    before = prepare(subject)
    before.outputs(data.texts("train")[:64])
    # Weights that 8 bits round badly: one large value in each row.
    trained = quantization_aware_train(subject, data, Recipe(epochs=2, batch_size=16, learning_rate=5e-4))
    exact = subject.logits(texts)
    assert accuracy(trained, data) >= accuracy(subject, data) - 0.02
    assert np.abs(trained.logits(texts) - exact).mean() < 1


def test_the_exported_graph_computes_what_was_trained(subject: Subject, data: Data, tmp_path: Path) -> None:
    import onnx

    trained = quantization_aware_train(subject, data, Recipe(epochs=0.2, batch_size=16))
    bundle = convert_quantized(trained, tmp_path, data=data)
    texts = data.texts("test")
    assert np.abs(bundle.logits(texts) - trained.logits(texts)).max() < 0.05
    assert bundle.card.techniques == ["QAT INT8"]
    model = onnx.load(bundle.folder / MODEL)
    whole = [tensor for tensor in model.graph.initializer if tensor.data_type == onnx.TensorProto.INT8]
    most = sorted(int(np.abs(onnx.numpy_helper.to_array(tensor)).max()) for tensor in whole if len(tensor.dims) == 2)
    assert most[-2:] == [63, 127], "matrices in 7 bits, which no processor overflows with; the embeddings in 8"
    assert sum(np.prod(tensor.dims) >= 32 * 32 for tensor in whole) >= 13, "the matrices are stored as whole numbers"
    large = [tensor.name for tensor in model.graph.initializer
             if tensor.data_type == onnx.TensorProto.FLOAT and np.prod(tensor.dims) >= 64 * 32]  # fmt: skip
    assert [name for name in large if "position" not in name] == []


@pytest.mark.parametrize(("reduce_range", "most"), [(True, 63), (False, 127)])
def test_weights_have_seven_bits_unless_eight_are_wanted(subject: Subject, reduce_range: bool, most: int) -> None:
    linears = [m for m in prepare(subject, reduce_range).model.modules() if isinstance(m, QuantizedLinear)]
    for linear in linears:
        linear.freeze()
        assert linear.whole.abs().max() == most
