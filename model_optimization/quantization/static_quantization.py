"""Static INT8: activations get fixed scales, found beforehand on a few hundred typical texts.

Nothing is measured while serving; in return the ranges must be typical. Matrices that 8 bits hurt most are found first,
by the signal-to-noise ratio of what they give, and can be left in float32.

    python -m model_optimization.quantization.static_quantization quantize --data builtin:stays
    python -m model_optimization.quantization.static_quantization report --data builtin:stays

The result is "QDQ": QuantizeLinear and DequantizeLinear around each operator, which any ONNX runtime understands and
onnxruntime fuses into whole-number arithmetic (Wu et al., 2020, arXiv:2004.09602, on calibration).
"""

from __future__ import annotations

import logging
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from model_optimization.deployment.onnx_conversion import MODEL, OnnxClassifier, build, pad
from model_optimization.quantization.dynamic_quantization import (
    QuantizeConfig,
    asymmetric_grid,
    check_float,
    derived,
    report,
    symmetric_grid,
)
from shared.config import check_range, run_commands
from shared.errors import InputError

if TYPE_CHECKING:
    from model_optimization.builtin.subject import Data, Pair

MODULE = "model_optimization.quantization.static_quantization"
Method = Literal["minmax", "percentile", "entropy"]
CALIBRATION_TEXTS = 256
logger = logging.getLogger(MODULE)


def calibration_rows(rows: Sequence[Pair], number: int = CALIBRATION_TEXTS, seed: int = 0) -> list[str]:
    """Choose texts to calibrate on, as many of each label.

    Raises:
        InputError: There are none, or of one label only: what the others do to the ranges would never be seen.
    """
    if not rows:
        raise InputError("The calibration set is empty.", hint="a few hundred typical texts")
    labels = sorted({label for _, label in rows})
    if len(labels) < 2:
        raise InputError("The calibration set has texts of one label only.", hint="texts of every label")
    rng = np.random.default_rng(seed)
    chosen: list[str] = []
    for label in labels:
        texts = [text for text, its in rows if its == label]
        chosen += [texts[i] for i in rng.permutation(len(texts))[: -(-number // len(labels))]]
    return chosen


class _Reader:
    """Hands calibration batches to onnxruntime."""

    def __init__(self, batches: Sequence[dict[str, Any]]) -> None:
        self.batches = iter(batches)

    def get_next(self) -> dict[str, Any] | None:
        return next(self.batches, None)


def calibration_batches(bundle: OnnxClassifier, texts: Sequence[str], batch_size: int = 16) -> list[dict[str, Any]]:
    """Return a graph's inputs for texts, all padded to one length: some calibration methods stack what they see."""
    ids = bundle.encoder.encode(texts)
    longest = max(len(row) for row in ids)
    batches = []
    for first in range(0, len(ids), batch_size):
        input_ids, attention_mask = pad([*ids[first : first + batch_size], [0] * longest])
        batches.append({"input_ids": input_ids[:-1], "attention_mask": attention_mask[:-1]})
    return batches


@dataclass(frozen=True)
class NodeError:
    """What 8 bits do to one matrix.

    Attributes:
        node: Its name in the graph.
        shape: Of the weight, (in, out).
        decibels: 10 · log10(power of the output / power of the error), on calibration texts; 20 is an error of 10 %.
    """

    node: str
    shape: tuple[int, ...]
    decibels: float


def node_errors(bundle: OnnxClassifier, texts: Sequence[str]) -> list[NodeError]:
    """Measure what quantization does to each matrix alone, by the arithmetic of this project, worst first.

    Args:
        bundle: In float32.
        texts: Calibration texts; a few dozen do.

    Raises:
        InputError: The bundle is quantized already.
    """
    import onnx
    import onnxruntime

    check_float(bundle)
    model = onnx.load(bundle.folder / MODEL)
    weights = {tensor.name: tensor for tensor in model.graph.initializer}
    found = [
        node for node in model.graph.node
        if node.op_type in ("MatMul", "Gemm") and node.input[1] in weights and node.input[0] not in weights
    ]  # fmt: skip
    there = {output.name for output in model.graph.output}
    wanted = dict.fromkeys(node.input[0] for node in found)
    model.graph.output.extend(onnx.ValueInfoProto(name=name) for name in wanted if name not in there)
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    [batch] = calibration_batches(bundle, texts, len(texts))
    seen = batch["attention_mask"].astype(bool)
    inputs = dict(zip(wanted, session.run(list(wanted), batch), strict=True))
    errors = []
    for node in found:
        weight = onnx.numpy_helper.to_array(weights[node.input[1]])
        if any(attribute.name == "transB" and attribute.i for attribute in node.attribute):
            weight = weight.T
        given = inputs[node.input[0]]
        rows = given[seen] if given.ndim == 3 else given  # (tokens, in)
        grid, weight_grid = asymmetric_grid(rows.min(), rows.max()), symmetric_grid(weight, axis=1)
        exact = rows.astype(np.float64) @ weight
        rough = grid.dequantize(grid.quantize(rows)) @ weight_grid.dequantize(weight_grid.quantize(weight))
        ratio = (exact**2).sum() / max(((exact - rough) ** 2).sum(), 1e-30)
        errors.append(NodeError(node.name, weight.shape, float(10 * np.log10(max(ratio, 1e-30)))))
    return sorted(errors, key=lambda error: error.decibels)


def quantize_static_bundle(
    source: OnnxClassifier, folder: Path, texts: Sequence[str], *, method: Method = "minmax", keep_float: int = 0,
    reduce_range: bool = True, data: Data | None = None,
) -> OnnxClassifier:  # fmt: skip
    """Write a bundle with fixed 8-bit scales.

    Residual sums, layer norms and GELU stay in float32: 8 bits cost accuracy there and save little.

    Args:
        source: A bundle in float32.
        folder: Of the new bundle.
        texts: Typical texts to calibrate on.
        method: ``minmax`` takes the whole range that was seen, ``percentile`` 99.99 % of it, ``entropy`` the range
            whose histogram loses least information.
        keep_float: Leave this many of the matrices that 8 bits hurt most in float32.
        reduce_range: Weights in 7 bits; see :func:`quantize_dynamic_bundle`.
        data: Its test split is measured for the card.

    Raises:
        InputError: The source is quantized already, or there is no text to calibrate on.
    """
    from onnxruntime.quantization import CalibrationMethod, QuantFormat, QuantType, quantize_static

    check_float(source)
    if not texts:
        raise InputError("The calibration set is empty.", hint="a few hundred typical texts")
    worst = [error.node for error in node_errors(source, texts[:32])[:keep_float]] if keep_float else []
    methods = {
        "minmax": CalibrationMethod.MinMax, "percentile": CalibrationMethod.Percentile,
        "entropy": CalibrationMethod.Entropy,
    }  # fmt: skip
    with tempfile.TemporaryDirectory() as place:
        path = Path(place) / MODEL
        quantize_static(
            source.folder / MODEL, path, _Reader(calibration_batches(source, texts)),
            quant_format=QuantFormat.QDQ, op_types_to_quantize=["MatMul", "Gemm", "Gather"], per_channel=True,
            activation_type=QuantType.QUInt8, weight_type=QuantType.QInt8, reduce_range=reduce_range,
            nodes_to_exclude=[*worst, *_without_weights(source)], calibrate_method=methods[method],
            extra_options={"OpTypesToExcludeOutputQuantization": ["MatMul", "Gemm"]},  # what follows is in float32
        )  # fmt: skip
        model = path.read_bytes()
    kept = f", {keep_float} matrices in float32" if keep_float else ""
    return derived(source, folder, model, f"static INT8 ({method}{kept})", data)


def _without_weights(source: OnnxClassifier) -> list[str]:
    """Return the products of two activations, in attention: small, and their ranges change with each text."""
    import onnx

    model = onnx.load(source.folder / MODEL, load_external_data=False)
    weights = {tensor.name for tensor in model.graph.initializer}
    return [
        node.name for node in model.graph.node
        if node.op_type in ("MatMul", "Gather") and not weights & set(node.input[:2])
    ]  # fmt: skip


# --- Commands ---------------------------------------------------------------------------------------------------------


@dataclass
class StaticConfig(QuantizeConfig):
    """Quantize a bundle with fixed scales; where there is none, one is made of a model first."""

    output: str = "outputs/model_optimization/bundles/static-int8"
    """The new bundle's folder."""
    method: Method = "minmax"
    """How ranges are found: minmax, percentile or entropy."""
    keep_float: int = 0
    """Leave this many of the most sensitive matrices in float32, >= 0."""
    seed: int = 0
    """Of the choice of texts."""

    def __post_init__(self) -> None:
        """Check the ranges."""
        super().__post_init__()
        check_range("texts", self.texts, 2)
        check_range("keep_float", self.keep_float, 0)


def quantize_command(config: StaticConfig) -> None:
    """Calibrate, quantize, and hold the new bundle against the old."""
    from model_optimization.builtin.subject import load_data

    data = load_data(config.data)
    source = config.source()
    texts = calibration_rows(data.splits["train"], config.texts, config.seed)
    make = partial(
        quantize_static_bundle, source, texts=texts, method=config.method, keep_float=config.keep_float,
        reduce_range=config.reduce_range, data=data,
    )  # fmt: skip
    report(*build(make, Path(config.output), source, data, config.most_loss))


def report_command(config: StaticConfig) -> None:
    """Print what 8 bits do to each matrix, worst first: decibels, shape, name."""
    from model_optimization.builtin.subject import load_data

    texts = calibration_rows(load_data(config.data).splits["train"], min(config.texts, 32), config.seed)
    for error in node_errors(config.source(), texts):
        sys.stdout.write(f"{error.decibels:6.1f} dB  {' × '.join(map(str, error.shape)):12}  {error.node}\n")


if __name__ == "__main__":
    run_commands({"quantize": quantize_command, "report": report_command}, module=MODULE, extra="optimization")
