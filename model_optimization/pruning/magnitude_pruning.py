"""Magnitude pruning: the smallest weights become 0.

Zeros stay in dense matrices, so the model is no faster; it is smaller only where zeros are not stored: compressed on
disk. The rows of ``prune`` say so with measured figures.

- ``global``: one threshold for all matrices; ``layer``: each matrix loses the same share (Han et al., 2015,
  arXiv:1506.02626).
- ``gradual``: a training during which sparsity rises as s(t) = s_end · (1 − (1 − t)³), t from 0 to 1 (Zhu and Gupta,
  2017, arXiv:1710.01878); weights under the threshold are 0, but learn on and may come back when the threshold is found
  anew.

    python -m model_optimization.pruning.magnitude_pruning prune --sparsity 0.6
    python -m model_optimization.pruning.magnitude_pruning prune --sparsity 0.8 --schedule gradual
"""

from __future__ import annotations

import copy
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from model_optimization.builtin.subject import (
    AfterStep,
    LearnConfig,
    accuracy,
    check_labels,
    learning,
    load_subject,
    train,
)
from shared.config import run_commands
from shared.errors import InputError

if TYPE_CHECKING:
    from torch import Tensor

MODULE = "model_optimization.pruning.magnitude_pruning"
Scope = Literal["global", "layer"]


def prunable(model: Any) -> dict[str, Tensor]:
    """Return the weights that are pruned: all matrices of linear layers but the last, which decides."""
    import torch

    linear = {name: module.weight for name, module in model.named_modules() if isinstance(module, torch.nn.Linear)}
    if len(linear) < 2:
        raise InputError(f"{type(model).__name__} has no linear layers to prune.")
    linear.popitem()
    return linear


def masks(weights: Sequence[Tensor], sparsity: float, scope: Scope = "global") -> list[Tensor]:
    """Find the weights that stay.

    Args:
        weights: Matrices.
        sparsity: Share of weights that go, in [0, 1).
        scope: ``global``: of all matrices together; ``layer``: of each.

    Returns:
        For each matrix True where a weight stays; exactly round(share · number) go, the first of equals.

    Raises:
        InputError: ``sparsity`` is outside its range.
    """
    import torch

    if not 0 <= sparsity < 1:
        raise InputError(f"sparsity must be in [0, 1). Got {sparsity}.")

    def smallest(values: Tensor) -> Tensor:
        keep = torch.ones(values.numel(), dtype=torch.bool, device=values.device)
        keep[values.argsort(stable=True)[: round(sparsity * values.numel())]] = False
        return keep

    sizes = [weight.detach().abs().flatten() for weight in weights]
    if scope == "layer":
        kept = [smallest(size) for size in sizes]
    else:
        kept = list(smallest(torch.cat(sizes)).split([size.numel() for size in sizes]))
    return [keep.view_as(weight) for keep, weight in zip(kept, weights, strict=True)]


def apply_masks(weights: Sequence[Tensor], kept: Sequence[Tensor]) -> None:
    """Set what does not stay to 0, in place."""
    import torch

    with torch.no_grad():
        for weight, keep in zip(weights, kept, strict=True):
            weight.mul_(keep)


def sparsity_at(progress: float, final: float) -> float:
    """Return s(t) of the gradual schedule: fast at first, when much is redundant, and slow at the end.

    Args:
        progress: t, the share of the schedule that is over; beyond 1 it stays at ``final``.
        final: Sparsity at the end.
    """
    return final * (1 - (1 - min(progress, 1.0)) ** 3)


def gradual(model: Any, final: float, scope: Scope = "global", *, until: float = 0.7, every: int = 5) -> AfterStep:
    """Return a function to call after each step of a training, which prunes ever more.

    Args:
        model: What is trained.
        final: Sparsity at the end, in [0, 1).
        scope: See :func:`masks`.
        until: Share of the steps after which the sparsity no longer rises; what is left recovers.
        every: Steps between two searches for what stays; then the masks are found anew.
    """
    weights = list(prunable(model).values())
    kept: list[Tensor] = []

    def after_step(step: int, total: int) -> None:
        progress = step / max(1.0, total * until)
        due = (step % every == 0 and progress <= 1) or step == max(1, round(total * until))
        if due or not kept:  # a training that goes on begins in the middle
            kept[:] = masks(weights, sparsity_at(progress, final), scope)
        apply_masks(weights, kept)

    return after_step


def sparsity_of(model: Any) -> float:
    """Return the share of zeros among the prunable weights."""
    weights = list(prunable(model).values())
    return sum(int((weight == 0).sum()) for weight in weights) / sum(weight.numel() for weight in weights)


def compressed_megabytes(model: Any) -> tuple[float, float]:
    """Return the size of a model's weights as they are and deflated (zlib, level 6), in MB."""
    content = b"".join(tensor.detach().cpu().numpy().tobytes() for tensor in model.state_dict().values())
    return len(content) / 1e6, len(zlib.compress(content, 6)) / 1e6


# --- Command ----------------------------------------------------------------------------------------------------------


@dataclass
class PruneConfig(LearnConfig):
    """Set a classifier's smallest weights to 0, and measure what that changes: accuracy, size, speed."""

    model: str = "builtin:minilm-stays"
    """The classifier: builtin:minilm-stays, a folder or a hub id."""
    sparsity: float = 0.5
    """Share of the weights of linear layers to set to 0, in [0, 1)."""
    scope: Scope = "global"
    """global: the smallest of all; layer: the same share of each matrix."""
    schedule: Literal["once", "gradual"] = "once"
    """once: at once, no training; gradual: little by little while training."""
    epochs: float = 2
    """gradual: passes over the training texts, > 0."""

    def __post_init__(self) -> None:
        """Check the ranges."""
        super().__post_init__()
        if not 0 <= self.sparsity < 1:
            raise InputError(f"sparsity must be in [0, 1). Got {self.sparsity}.")


def prune_command(config: PruneConfig) -> None:
    """Prune, measure and save."""
    from model_optimization.monitoring.performance_metrics import SINGLE, measure_latency

    data = config.load()
    subject = load_subject(config.model, config.max_length)
    check_labels(subject, data)
    pruned = subject.with_model(copy.deepcopy(subject.model), f"{subject.name}, sparsity {config.sparsity:.0%}")
    weights = list(prunable(pruned.model).values())
    with learning(MODULE, "prune", config) as its:
        if config.schedule == "gradual":
            after_step = gradual(pruned.model, config.sparsity, config.scope)
            train(pruned.model, pruned.encoder, data.splits["train"], config.recipe(), after_step=after_step,
                  what="prune", folder=its.folder, tracker=its.tracker)  # fmt: skip
        else:
            apply_masks(weights, masks(weights, config.sparsity, config.scope))
        if not its.run:
            return
        megabytes, deflated = compressed_megabytes(pruned.model)
        metrics = {
            "accuracy_before": accuracy(subject, data), "accuracy": accuracy(pruned, data),
            "sparsity": sparsity_of(pruned.model), "megabytes": megabytes, "megabytes_deflated": deflated,
            "megabytes_deflated_before": compressed_megabytes(subject.model)[1],
        }  # fmt: skip
        before, after = measure_latency([subject, pruned], data.texts("test"))
        metrics["speedup"] = before[SINGLE].median / after[SINGLE].median  # none: zeros are multiplied like the rest
        its.finish(pruned.save, model=subject.name, data=data.name, seed=config.seed, metrics=metrics)


if __name__ == "__main__":
    run_commands({"prune": prune_command}, module=MODULE, extra="optimization")
