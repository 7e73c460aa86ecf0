"""Dynamic INT8: weights are 8-bit from the start, each activation gets its scale when it is there.

A real x in [low, high] becomes one of 256 whole numbers: q = clamp(round(x / scale) + zero_point, q_low, q_high), and
x ≈ (q − zero_point) · scale (Jacob et al., 2018, arXiv:1712.05877). The functions below show the arithmetic;
onnxruntime does it to a bundle's matrices and embeddings, and multiplies the whole numbers.

    python -m model_optimization.quantization.dynamic_quantization quantize --data builtin:stays
    python -m model_optimization.quantization.dynamic_quantization quantize --bundle my-bundle --output my-bundle-int8
"""

from __future__ import annotations

import logging
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from model_optimization.deployment.onnx_conversion import (
    MODEL,
    TOKENIZER,
    OnnxClassifier,
    build,
    check_other,
    convert,
    describe,
    length_batches,
    measured,
    pad,
    write_bundle,
)
from shared.config import check_range, run_commands
from shared.errors import InputError

if TYPE_CHECKING:
    from model_optimization.builtin.subject import Data, Subject

MODULE = "model_optimization.quantization.dynamic_quantization"
STRENGTHS = (0.6, 0.7, 0.8)  # of smoothing
logger = logging.getLogger(MODULE)


# --- The arithmetic ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Grid:
    """The whole numbers that reals are rounded to.

    Attributes:
        scale: Distance of two neighbors, > 0; an array where each channel has its own.
        zero_point: The whole number that stands for 0.0, exactly: padding and ReLU give many zeros.
        low: Smallest whole number.
        high: Largest whole number.
    """

    scale: Any
    zero_point: Any
    low: int
    high: int

    def quantize(self, values: NDArray[Any]) -> NDArray[np.int64]:
        """Round to the grid; halves go to the even number, as in PyTorch and ONNX."""
        whole = np.rint(values / self.scale) + self.zero_point
        return np.clip(whole, self.low, self.high).astype(np.int64)

    def dequantize(self, whole: NDArray[Any]) -> NDArray[np.float64]:
        """Return the reals that whole numbers stand for."""
        return np.asarray((whole - self.zero_point) * self.scale, dtype=np.float64)


def asymmetric_grid(low: float, high: float, bits: int = 8) -> Grid:
    """Spread unsigned whole numbers over [low, high], widened to hold 0: for activations, which lean to one side."""
    most = 2**bits - 1
    low, high = min(low, 0.0), max(high, 0.0)
    scale = (high - low) / most or 1.0
    return Grid(scale, int(np.clip(np.rint(-low / scale), 0, most)), 0, most)


def symmetric_grid(values: NDArray[Any], bits: int = 8, axis: int | None = None) -> Grid:
    """Spread signed whole numbers evenly around 0, where they stay exact: for weights.

    With zero_point 0 a product of whole numbers needs no corrections, and −128 stays unused.

    Args:
        values: The weights.
        bits: Of a whole number. 7 leave room where a processor adds products in 16 bits (x86 without VNNI).
        axis: Give each index of this axis a scale of its own ("per channel"); None is one for all.
    """
    most = 2 ** (bits - 1) - 1
    others = None if axis is None else tuple(i for i in range(values.ndim) if i != axis)
    largest = np.abs(values).max(axis=others, keepdims=axis is not None)
    scale = np.where(largest < 1e-30, 1.0, largest / most)
    return Grid(scale if axis is not None else float(scale), 0, -most, most)


# --- onnxruntime's ----------------------------------------------------------------------------------------------------


def processor_flags() -> list[str]:
    """Return what the processor has for 8-bit arithmetic; empty where that can't be read."""
    path = Path("/proc/cpuinfo")
    flags = set(path.read_text().split()) if path.exists() else set()
    return [flag for flag in ("avx2", "avx512f", "avx512_vnni", "avx_vnni", "amx_int8", "asimddp") if flag in flags]


def smooth(source: OnnxClassifier, texts: Sequence[str], strength: float) -> bytes:
    """Move what 8 bits can't hold from activations to weights (SmoothQuant, Xiao et al., 2022, arXiv:2211.10438).

    Some channels of an activation are a hundred times as large as the rest, which then share few of the 256 numbers.
    x W = (x / s) (s W) with s_j = max|x_j|^α / max|W_j|^(1 − α) for each channel j: the product stays the same.

    Args:
        source: A bundle in float32.
        texts: Typical texts, to find the largest value of each channel on.
        strength: α, in [0, 1]; 1 makes all channels of the activation equally large.

    Returns:
        The graph, with a product before each matrix.
    """
    import onnx
    import onnxruntime

    check_range("strength", strength, 0, 1)
    model = onnx.load(source.folder / MODEL)
    weights = {tensor.name: tensor for tensor in model.graph.initializer}
    readers: dict[str, list[Any]] = {}  # of each activation: query, key and value read the same one
    for node in model.graph.node:
        if node.op_type == "MatMul" and node.input[1] in weights and node.input[0] not in weights:
            readers.setdefault(node.input[0], []).append(node)
    probe = onnx.ModelProto()
    probe.CopyFrom(model)
    there = {output.name for output in probe.graph.output}
    probe.graph.output.extend(onnx.ValueInfoProto(name=name) for name in readers if name not in there)
    session = onnxruntime.InferenceSession(probe.SerializeToString(), providers=["CPUExecutionProvider"])
    ids = source.encoder.encode(texts)
    largest: dict[str, Any] = {}
    for rows in length_batches([len(row) for row in ids], 16):
        input_ids, attention_mask = pad([ids[i] for i in rows])
        feeds = {"input_ids": input_ids, "attention_mask": attention_mask}
        for name, values in zip(readers, session.run(list(readers), feeds), strict=True):
            tokens = values[attention_mask.astype(bool)] if values.ndim == 3 else values  # (tokens, in)
            largest[name] = np.maximum(largest.get(name, 0), np.abs(tokens).max(0))
    products = {}
    for name, nodes in readers.items():
        matrices = [onnx.numpy_helper.to_array(weights[node.input[1]]) for node in nodes]
        of_weights = np.maximum(np.max([np.abs(matrix).max(1) for matrix in matrices], axis=0), 1e-5)
        scales = np.maximum(largest[name] ** strength / of_weights ** (1 - strength), 1e-3).astype(np.float32)
        model.graph.initializer.append(onnx.numpy_helper.from_array(1 / scales, f"{name}_smoothing"))
        for node, matrix in zip(nodes, matrices, strict=True):
            tensor = weights[node.input[1]]
            tensor.CopyFrom(onnx.numpy_helper.from_array(matrix * scales[:, None], tensor.name))
            node.input[0] = f"{name}_smoothed"
        products[id(nodes[0])] = onnx.helper.make_node(
            "Mul", [name, f"{name}_smoothing"], [f"{name}_smoothed"], name=f"{name}_smooth"
        )
    ordered = [each for node in model.graph.node for each in (products.get(id(node)), node) if each is not None]
    nodes_now = [onnx.NodeProto.FromString(node.SerializeToString()) for node in ordered]
    del model.graph.node[:]
    model.graph.node.extend(nodes_now)
    content: bytes = model.SerializeToString()
    return content


def quantize_dynamic_bundle(
    source: OnnxClassifier, folder: Path, texts: Sequence[str] = (), *, reduce_range: bool = True,
    data: Data | None = None,
) -> OnnxClassifier:  # fmt: skip
    """Write a bundle with 8-bit matrices and embeddings.

    Args:
        source: A bundle in float32.
        folder: Of the new bundle.
        texts: Typical texts: each strength of :func:`smooth` is tried on them, and the one kept whose logits come
            nearest to the source's. Without texts nothing is smoothed.
        reduce_range: Keep weights in 7 bits. Without VNNI, x86 adds pairs of products in 16 bits, where 8 bits times
            8 bits overflow unseen; a bundle that may run anywhere is safe with it.
        data: Its test split is measured for the card.

    Raises:
        InputError: The source is quantized already.
    """
    check_float(source)
    plain = (source.folder / MODEL).read_bytes()
    graphs = {0.0: plain} | {strength: smooth(source, texts, strength) for strength in STRENGTHS if texts}
    exact = source.logits(texts) if texts else None
    best: tuple[float, float, bytes] | None = None
    for strength, graph in graphs.items():
        model = _quantize_dynamic(graph, reduce_range)
        error = 0.0
        if exact is not None:
            with tempfile.TemporaryDirectory() as place:
                tried = derived(source, Path(place), model, "dynamic INT8")
            error = float(np.abs(tried.logits(texts) - exact).mean())
        if best is None or error < best[0]:
            best = error, strength, model
    assert best is not None
    smoothed = f", smoothed by {best[1]}" if best[1] else ""
    return derived(source, folder, best[2], f"dynamic INT8{smoothed}", data)


def _quantize_dynamic(graph: bytes, reduce_range: bool) -> bytes:
    from onnxruntime.quantization import QuantType, quantize_dynamic

    with tempfile.TemporaryDirectory() as place:
        before, after = Path(place) / "before.onnx", Path(place) / "after.onnx"
        before.write_bytes(graph)
        quantize_dynamic(
            before, after, op_types_to_quantize=["MatMul", "Gemm", "Gather"], weight_type=QuantType.QInt8,
            per_channel=True, reduce_range=reduce_range,
        )  # fmt: skip
        return after.read_bytes()


def check_float(source: OnnxClassifier) -> None:
    """Raise an :class:`InputError` where a bundle is quantized already."""
    done = [technique for technique in source.card.techniques if "INT8" in technique]
    if done:
        raise InputError(f"{source.folder} is quantized already: {', '.join(done)}.", hint="take the float32 bundle")


def derived(
    source: OnnxClassifier, folder: Path, model: bytes, technique: str, data: Data | None = None
) -> OnnxClassifier:
    """Write a bundle that differs from another in its model alone, and measure it."""
    check_other(source, folder)
    techniques = [name for name in source.card.techniques if name != "float32"]
    card = replace(source.card, techniques=[*techniques, technique], accuracy=None)
    write_bundle(folder, model, (source.folder / TOKENIZER).read_text(encoding="utf-8"), card)
    return measured(OnnxClassifier(folder), data)


def torchao_int8(subject: Subject) -> Subject:
    """Return a copy with torchao's dynamic INT8, compiled: the way to stay in PyTorch.

    The first batch of each shape compiles, which takes most of a minute and a C++ compiler.

    Raises:
        MissingPackageError: torchao is not installed.
    """
    import copy

    import torch

    from shared.errors import MissingPackageError

    try:
        from torchao.quantization import Int8DynamicActivationIntxWeightConfig, PerAxis, quantize_
    except ImportError:
        raise MissingPackageError("torchao", "optimization") from None
    model = copy.deepcopy(subject.model).eval()
    quantize_(model, Int8DynamicActivationIntxWeightConfig(torch.int8, PerAxis(0)))
    quantized = subject.with_model(model, f"{subject.name}, torchao INT8")
    quantized.model = torch.compile(model, dynamic=True)
    return quantized


# --- Command ----------------------------------------------------------------------------------------------------------


@dataclass
class QuantizeConfig:
    """Quantize a bundle; where there is none, one is made of a model first."""

    bundle: str = ""
    """The float32 bundle; by default one is made of model."""
    model: str = "builtin:minilm-stays"
    """Without a bundle: builtin:minilm-stays, a folder or a hub id."""
    output: str = "outputs/model_optimization/bundles/dynamic-int8"
    """The new bundle's folder."""
    data: str = "builtin:stays"
    """Measures the cost, and calibrates: builtin:stays, a folder or a hub id."""
    texts: int = 256
    """Texts of the train split to smooth or calibrate on; 0 smooths nothing."""
    most_loss: float = 0.01
    """Accuracy that may be lost, in [0, 1]; more is an error, and leaves no bundle."""
    reduce_range: bool = True
    """Weights in 7 bits, which every processor adds without overflow."""

    def __post_init__(self) -> None:
        """Check the ranges."""
        check_range("texts", self.texts, 0)
        check_range("most_loss", self.most_loss, 0, 1)

    def source(self) -> OnnxClassifier:
        """Return the float32 bundle."""
        from model_optimization.builtin.subject import load_subject

        if self.bundle:
            return OnnxClassifier(self.bundle)
        return convert(load_subject(self.model), Path(self.output).with_name("float32"))


def quantize_command(config: QuantizeConfig) -> None:
    """Quantize, and hold the new bundle against the old."""
    from model_optimization.builtin.subject import load_data

    data = load_data(config.data)
    source = config.source()
    logger.info("8-bit arithmetic of this processor: %s", ", ".join(processor_flags()) or "unknown")
    texts = data.texts("train")[: config.texts]

    def make(folder: Path) -> OnnxClassifier:
        return quantize_dynamic_bundle(source, folder, texts, reduce_range=config.reduce_range, data=data)

    report(*build(make, Path(config.output), source, data, config.most_loss))


def report(made: OnnxClassifier, figures: Mapping[str, float]) -> None:
    """Print what became of a bundle, and what the gate measured."""
    sys.stdout.write(describe(made) + "".join(f"{name} {value:.4g}\n" for name, value in figures.items()))


if __name__ == "__main__":
    run_commands({"quantize": quantize_command}, module=MODULE, extra="optimization")
