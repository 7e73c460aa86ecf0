"""Quantization-aware training: the model learns while its weights and activations are rounded to 8 bits.

Rounding has no slope, so its gradient is taken to be 1 (the straight-through estimator, Bengio et al., 2013,
arXiv:1308.3432): forward x is rounded, backward it is as if it were not, but nothing flows where x was clamped. Weights
get a scale for each output channel at every step; activations one each, from a moving average of what is seen
(Jacob et al., 2018, arXiv:1712.05877). It learns from the labels, and from the unquantized model as its teacher.

    python -m model_optimization.quantization.quantization_aware_training train

The trained model is exported as QDQ, with weights that are whole numbers, and needs no calibration.
"""

from __future__ import annotations

import copy
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from model_optimization.builtin.subject import (
    LearnConfig,
    Subject,
    accuracy,
    check_labels,
    learning,
    load_subject,
)
from model_optimization.deployment.onnx_conversion import (
    Card,
    OnnxClassifier,
    build,
    export_graph,
    measured,
    write_bundle,
)
from model_optimization.distillation.teacher_student import Terms, distill
from model_optimization.pruning.structured_pruning import layers_of
from shared.config import check_range, run_commands
from shared.errors import InputError
from shared.tracking import Tracker

if TYPE_CHECKING:
    from model_optimization.builtin.subject import Data, Recipe

MODULE = "model_optimization.quantization.quantization_aware_training"
MOMENTUM = 0.05  # of a new batch in the moving average of ranges


def round_through(values: Tensor) -> Tensor:
    """Round; backward, pass the gradient on as if nothing had been rounded."""
    return values + (values.round() - values).detach()


def fake_quantize(values: Tensor, scale: Tensor, zero_point: Tensor, low: int, high: int) -> Tensor:
    """Return the reals that 8-bit numbers would stand for, with a gradient of 1 inside the range and 0 outside.

    Args:
        values: Any shape.
        scale: Broadcastable to it, > 0.
        zero_point: Likewise; whole numbers.
        low: Smallest whole number.
        high: Largest whole number.
    """
    whole = (round_through(values / scale) + zero_point).clamp(low, high)
    return (whole - zero_point) * scale


class ActivationQuantizer(nn.Module):
    """Rounds what flows into one or several layers to unsigned 8-bit numbers.

    Attributes:
        low: Moving average of the smallest value, 0 at most.
        high: Moving average of the largest value, 0 at least.
        observing: Whether the averages move.
    """

    low: Tensor
    high: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("low", torch.tensor(0.0))
        self.register_buffer("high", torch.tensor(0.0))
        self.observing, self.exporting = True, False

    def grid(self) -> tuple[Tensor, Tensor]:
        """Return scale and zero point for the range [low, high]."""
        scale = ((self.high - self.low) / 255).clamp(min=1e-8)
        return scale, (-self.low / scale).round().clamp(0, 255)

    def forward(self, values: Tensor) -> Tensor:
        """Round; (…) → (…)."""
        if self.exporting:
            scale, zero_point = self.grid()
            zero_point = zero_point.to(torch.uint8)
            whole = torch.onnx.ops.symbolic(
                "QuantizeLinear", (values, scale, zero_point), dtype=torch.uint8, shape=values.shape
            )
            return torch.onnx.ops.symbolic(
                "DequantizeLinear", (whole, scale, zero_point), dtype=torch.float32, shape=values.shape
            )
        if self.observing:
            with torch.no_grad():
                low, high = values.amin().clamp(max=0).float(), values.amax().clamp(min=0).float()
                first = bool(self.low == self.high)
                self.low.lerp_(low, 1.0 if first else MOMENTUM)
                self.high.lerp_(high, 1.0 if first else MOMENTUM)
        return fake_quantize(values, *self.grid(), 0, 255)


def channel_scales(weight: Tensor, most: int = 127) -> Tensor:
    """Return a scale for each row of a matrix, (out, 1): its largest weight becomes ±``most``."""
    return (weight.detach().abs().amax(-1, keepdim=True) / most).clamp(min=1e-8)


class QuantizedLinear(nn.Module):
    """A linear layer that computes as 8-bit arithmetic will.

    Args:
        linear: The layer; its weights are shared, not copied.
        inputs: Rounds its input; layers that read the same tensor share one.
        most: Largest whole number of a weight: 127 of 8 bits, 63 of 7.
    """

    whole: Tensor
    scales: Tensor

    def __init__(self, linear: nn.Linear, inputs: ActivationQuantizer, most: int = 127) -> None:
        super().__init__()
        self.most = most
        self.weight, self.bias, self.inputs = linear.weight, linear.bias, inputs
        self.in_features, self.out_features = linear.in_features, linear.out_features
        self.exporting = False

    def freeze(self) -> None:
        """Keep the weights as the whole numbers that will be exported, (in, out)."""
        scales = channel_scales(self.weight, self.most)
        whole = (self.weight.detach() / scales).round().clamp(-self.most, self.most).to(torch.int8)
        self.register_buffer("whole", whole.T.contiguous(), persistent=False)
        self.register_buffer("scales", scales.flatten().contiguous(), persistent=False)
        self.exporting = True

    def forward(self, hidden: Tensor) -> Tensor:
        """Compute (…, in) → (…, out)."""
        hidden = self.inputs(hidden)
        if self.exporting:
            zeros = torch.zeros_like(self.scales, dtype=torch.int8)
            weight = torch.onnx.ops.symbolic(
                "DequantizeLinear", (self.whole, self.scales, zeros), {"axis": 1}, dtype=torch.float32,
                shape=self.whole.shape,
            )  # fmt: skip
            product = hidden @ weight
            return product if self.bias is None else product + self.bias
        scales = channel_scales(self.weight, self.most)
        weight = fake_quantize(self.weight, scales, torch.zeros_like(scales), -self.most, self.most)
        return nn.functional.linear(hidden, weight, self.bias)


class QuantizedEmbedding(nn.Module):
    """A table whose rows are 8-bit numbers with a scale each.

    Args:
        embedding: The table; its weights are shared, not copied.
    """

    whole: Tensor
    scales: Tensor

    def __init__(self, embedding: nn.Embedding) -> None:
        super().__init__()
        self.weight, self.padding_idx = embedding.weight, embedding.padding_idx
        self.num_embeddings, self.embedding_dim = embedding.num_embeddings, embedding.embedding_dim
        self.exporting = False

    def freeze(self) -> None:
        """Keep the rows as the whole numbers that will be exported."""
        scales = channel_scales(self.weight)
        whole = (self.weight.detach() / scales).round().clamp(-127, 127).to(torch.int8)
        self.register_buffer("whole", whole, persistent=False)
        self.register_buffer("scales", scales, persistent=False)
        self.exporting = True

    def forward(self, ids: Tensor) -> Tensor:
        """Look up (B, T) → (B, T, C)."""
        if self.exporting:
            return self.whole[ids].float() * self.scales[ids]
        rows = nn.functional.embedding(ids, self.weight, self.padding_idx)
        scales = channel_scales(rows)
        return fake_quantize(rows, scales, torch.zeros_like(scales), -127, 127)


def prepare(subject: Subject, reduce_range: bool = True) -> Subject:
    """Return a copy whose linear layers (but the last, which decides) and word embeddings round as INT8 will.

    Args:
        subject: The classifier; it stays as it is.
        reduce_range: Matrices in 7 bits; see :func:`quantize_dynamic_bundle`. Embeddings, which are only looked up,
            have 8 in any case.

    Raises:
        InputError: It is prepared already, or of an unknown architecture.
    """
    if any(isinstance(module, QuantizedLinear) for module in subject.model.modules()):
        raise InputError(f"{subject.name} is prepared for quantization already.")
    model = copy.deepcopy(subject.model)
    shared = {}  # query, key and value read the same tensor
    for layer in layers_of(model):
        inputs = ActivationQuantizer()
        shared |= {id(linear): inputs for linear in (layer.query, layer.key, layer.value)}
    linears = [module for module in model.modules() if isinstance(module, nn.Linear)]
    most = 63 if reduce_range else 127
    new: dict[int, nn.Module] = {
        id(linear): QuantizedLinear(linear, shared.get(id(linear)) or ActivationQuantizer(), most)
        for linear in linears[:-1]
    }
    new[id(model.get_input_embeddings())] = QuantizedEmbedding(model.get_input_embeddings())
    for parent in list(model.modules()):
        for name, child in parent.named_children():
            if id(child) in new:
                setattr(parent, name, new[id(child)])
    return subject.with_model(model, f"{subject.name}, quantization-aware")


def observe(model: Any, on: bool) -> None:
    """Let the ranges of activations move, or hold them."""
    for module in model.modules():
        if isinstance(module, ActivationQuantizer):
            module.observing = on


@contextmanager
def exporting(model: Any) -> Iterator[None]:
    """Inside, the model is traced as QuantizeLinear, DequantizeLinear and whole numbers."""
    parts = [m for m in model.modules() if isinstance(m, (ActivationQuantizer, QuantizedLinear, QuantizedEmbedding))]
    for part in parts:
        if isinstance(part, ActivationQuantizer):
            part.exporting = True
        else:
            part.freeze()
    try:
        yield
    finally:
        for part in parts:
            part.exporting = False


def quantization_aware_train(
    subject: Subject, data: Data, recipe: Recipe, *, reduce_range: bool = True, folder: Path | None = None,
    tracker: Tracker | None = None,
) -> Subject:  # fmt: skip
    """Train a copy that computes as INT8 will, from the labels and from the original as its teacher.

    For the first half of the steps the ranges of activations follow what is seen; then they hold, and the weights
    settle.

    Args:
        subject: The classifier; it stays as it is.
        data: What it learns from.
        recipe: How it learns.
        reduce_range: See :func:`prepare`.
        folder: Where checkpoints go.
        tracker: Where the figures go.
    """
    student = prepare(subject, reduce_range)
    with torch.no_grad():
        student.outputs(data.texts("train")[:256])  # first ranges
    halfway = HoldRanges(student.model)
    recipe = replace(recipe, dtype="float32")  # bfloat16 would round once more
    distill(subject, student, data.splits["train"], recipe, Terms(alpha=0.5, hidden=1.0), what="quantization-aware",
            after_step=halfway, folder=folder, tracker=tracker)  # fmt: skip
    observe(student.model, False)
    return student


class HoldRanges:
    """Called after each step: holds the ranges of activations from half of the training on."""

    def __init__(self, model: Any) -> None:
        self.model = model

    def __call__(self, step: int, total: int) -> None:
        """Look at the step, of ``total``."""
        if step >= total // 2:
            observe(self.model, False)


def convert_quantized(
    subject: Subject, folder: Path, *, techniques: tuple[str, ...] = (), data: Data | None = None
) -> OnnxClassifier:
    """Write a bundle of a model that :func:`quantization_aware_train` made.

    Args:
        subject: The trained copy.
        folder: Of the bundle.
        techniques: What was done to the model before.
        data: Its test split is measured for the card.
    """
    observe(subject.model, False)
    with exporting(subject.model):
        graph = export_graph(subject.model, subject.max_length)
    card = Card(subject.label_names, subject.max_length, base=subject.name, techniques=[*techniques, "QAT INT8"])
    write_bundle(folder, graph, subject.tokenizer_json, card)
    return measured(OnnxClassifier(folder), data)


# --- Command ----------------------------------------------------------------------------------------------------------


@dataclass
class QatConfig(LearnConfig):
    """Train a classifier that computes in INT8, and write its bundle."""

    model: str = "builtin:minilm-stays"
    """The classifier: builtin:minilm-stays, a folder or a hub id."""
    output: str = "outputs/model_optimization/bundles/qat-int8"
    """The bundle's folder."""
    most_loss: float = 0.01
    """Accuracy that may be lost, in [0, 1]; more is an error, and leaves no bundle."""
    reduce_range: bool = True
    """Weights in 7 bits, which every processor adds without overflow."""
    epochs: float = 1
    """Passes over the training texts, > 0."""
    learning_rate: float = 2e-5
    """Highest learning rate, > 0."""

    def __post_init__(self) -> None:
        """Check the ranges."""
        super().__post_init__()
        check_range("most_loss", self.most_loss, 0, 1)


def train_command(config: QatConfig) -> None:
    """Train, export, and hold the bundle against the original."""
    data = config.load()
    subject = load_subject(config.model, config.max_length)
    check_labels(subject, data)
    with learning(MODULE, "train", config) as its:
        trained = quantization_aware_train(
            subject, data, config.recipe(), reduce_range=config.reduce_range, folder=its.folder, tracker=its.tracker
        )
        if its.run:
            make = partial(convert_quantized, trained, data=data)
            _, figures = build(make, Path(config.output), subject, data, config.most_loss)
            metrics = {"float32_accuracy": accuracy(subject, data), **figures}
            its.finish(None, model=subject.name, data=data.name, seed=config.seed, metrics=metrics)
            sys.stdout.write(f"{config.output}\n")


if __name__ == "__main__":
    run_commands({"train": train_command}, module=MODULE, extra="optimization")
