r"""Knowledge distillation: a small model learns what a large one makes of texts, not only the right answers.

    L = (1 − α) · CE(student, label)
        + α · T² · KL(teacher's softmax(z / T) ‖ student's softmax(z / T))            Hinton et al., 2015, 1503.02531
        + β · mean over matched layers of MSE(W · student's hidden, teacher's hidden) FitNets, 2015, 1412.6550
        + γ · mean over matched layers of KL(teacher's attention ‖ student's)         MiniLM, 2020, 2002.10957

(the numbers are arXiv's). T² makes up for the 1 / T² in the gradient of softened logits; without it a change of T is a
change of the learning rate. W is a learned matrix where the widths differ, and left out where they don't.

    python -m model_optimization.distillation.teacher_student distill --layers 3
    python -m model_optimization.distillation.teacher_student distill --teacher textattack/bert-base-uncased-SST-2 \
        --student google/bert_uncased_L-4_H-256_A-4 --data my-folder
    accelerate launch -m model_optimization.distillation.teacher_student distill --batch_size 16

Two processes on one CPU: ``accelerate launch --multi_gpu --num_processes 2 -m … distill --device cpu``.
"""

from __future__ import annotations

import copy
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from model_optimization.builtin.subject import (
    AfterStep,
    Data,
    LearnConfig,
    Learning,
    Pair,
    Recipe,
    Subject,
    accuracy,
    check_labels,
    learning,
    load_subject,
    new_subject,
    train,
)
from shared.config import check_range, run_commands
from shared.errors import InputError
from shared.tracking import Tracker

if TYPE_CHECKING:
    from torch import Tensor

MODULE = "model_optimization.distillation.teacher_student"
logger = logging.getLogger(MODULE)


@dataclass(frozen=True)
class Terms:
    """Weights of the loss's terms, as in the module's formula.

    Attributes:
        alpha: α, share of the softened teacher against the labels, in [0, 1].
        temperature: T, > 0; higher shows more of what the teacher thinks of the wrong labels.
        hidden: β, >= 0.
        attention: γ, >= 0; wants the written-out attention, which is slower.
        cosine: Weight of 1 − cos(last hidden states), >= 0: the third part of DistilBERT's loss.
    """

    alpha: float = 0.9
    temperature: float = 2.0
    hidden: float = 0.0
    attention: float = 0.0
    cosine: float = 0.0

    def __post_init__(self) -> None:
        """Check the ranges."""
        check_range("alpha", self.alpha, 0, 1)
        check_range("temperature", self.temperature, 0, open_low=True)
        for name in ("hidden", "attention", "cosine"):
            check_range(name, getattr(self, name), 0)


def soft_loss(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """Return T² · KL(softmax(teacher / T) ‖ softmax(student / T)), the mean over all but the last axis.

    Args:
        student: Logits, (…, classes).
        teacher: Logits, (…, classes).
        temperature: T, > 0.
    """
    teacher_logs = (teacher.float() / temperature).log_softmax(-1)
    student_logs = (student.float() / temperature).log_softmax(-1)
    divergence = (teacher_logs.exp() * (teacher_logs - student_logs)).sum(-1)  # (…)
    return divergence.mean() * temperature**2


def hidden_loss(student: Tensor, teacher: Tensor, attention_mask: Tensor) -> Tensor:
    """Return the mean squared difference of hidden states (B, T, C), over tokens that are no padding."""
    squared = (student.float() - teacher.float()).pow(2).mean(-1)  # (B, T)
    return (squared * attention_mask).sum() / attention_mask.sum()


def cosine_loss(student: Tensor, teacher: Tensor, attention_mask: Tensor) -> Tensor:
    """Return the mean of 1 − cos of hidden states (B, T, C), over tokens that are no padding."""
    import torch.nn.functional as F  # noqa: N812

    distance = 1 - F.cosine_similarity(student.float(), teacher.float(), dim=-1)  # (B, T)
    return (distance * attention_mask).sum() / attention_mask.sum()


def attention_loss(student: Tensor, teacher: Tensor, attention_mask: Tensor) -> Tensor:
    """Return KL(teacher ‖ student) of the attention, averaged over heads and over queries that are no padding.

    Args:
        student: (B, H, T, T), rows adding up to 1.
        teacher: Likewise, with any number of heads: where it differs, each model's heads are averaged first.
        attention_mask: (B, T).
    """
    if student.shape[1] != teacher.shape[1]:
        student, teacher = student.mean(1, keepdim=True), teacher.mean(1, keepdim=True)
    tiny = 1e-9  # padding has attention 0 in both
    divergence = (teacher.float() * ((teacher.float() + tiny).log() - (student.float() + tiny).log())).sum(-1).mean(1)
    return (divergence * attention_mask).sum() / attention_mask.sum()


def matched_layers(student: int, teacher: int) -> list[tuple[int, int]]:
    """Match hidden states evenly: the embeddings with each other, the last layers with each other.

    Args:
        student: Layers of the student.
        teacher: Layers of the teacher, at least as many.

    Returns:
        (student's, teacher's) indices into ``hidden_states``, where 0 is the embeddings.
    """
    return [(layer, round(layer * teacher / student)) for layer in range(student + 1)]


class DistillationLoss:
    """The loss of the module's formula, as :func:`model_optimization.builtin.subject.train` takes it.

    Args:
        teacher: The model to learn from; its weights never change.
        student: The model that will learn.
        terms: Weights of the terms.

    Attributes:
        projections: W of each matched layer, to be learned beside the student; None where the widths agree.

    Raises:
        InputError: Teacher and student tell different numbers of labels apart, or the student is the deeper one.
    """

    def __init__(self, teacher: Any, student: Any, terms: Terms) -> None:
        import torch

        if teacher.config.num_labels != student.config.num_labels:
            raise InputError(
                f"Teacher and student must have the same labels. Got {teacher.config.num_labels} and "
                f"{student.config.num_labels}."
            )
        depths = [model.config.num_hidden_layers for model in (student, teacher)]
        if (terms.hidden or terms.attention) and depths[0] > depths[1]:
            raise InputError(f"The student has more layers than its teacher: {depths[0]} and {depths[1]}.")
        self.teacher, self.terms = teacher.eval(), terms
        self.layers = matched_layers(*depths)
        widths = [model.config.hidden_size for model in (student, teacher)]
        self.projections: Any = None
        if (terms.hidden or terms.cosine) and widths[0] != widths[1]:
            self.projections = torch.nn.ModuleList(
                torch.nn.Linear(*widths, bias=False, device=student.device) for _ in self.layers
            )
        if terms.attention:
            for model in (teacher, student):
                model.set_attn_implementation("eager")  # the others don't tell

    def _projected(self, hidden_states: Sequence[Tensor], number: int, layer: int) -> Tensor:
        hidden = hidden_states[layer]
        return self.projections[number](hidden) if self.projections is not None else hidden

    def __call__(self, model: Any, batch: dict[str, Tensor]) -> tuple[Tensor, dict[str, float]]:
        """Return the loss of a batch, and each term's share of it."""
        import torch
        import torch.nn.functional as F  # noqa: N812

        terms, mask = self.terms, batch["attention_mask"]
        inputs = {
            "input_ids": batch["input_ids"], "attention_mask": mask,
            "output_hidden_states": bool(terms.hidden or terms.cosine), "output_attentions": bool(terms.attention),
        }  # fmt: skip
        if self.teacher.device != mask.device:
            self.teacher.to(mask.device)
        with torch.no_grad():
            teacher = self.teacher(**inputs)
        student = model(**inputs)
        parts = {
            "task": (1 - terms.alpha) * F.cross_entropy(student.logits.float(), batch["labels"]),
            "soft": terms.alpha * soft_loss(student.logits, teacher.logits, terms.temperature),
        }
        if terms.hidden:
            losses = [
                hidden_loss(self._projected(student.hidden_states, i, mine), teacher.hidden_states[its], mask)
                for i, (mine, its) in enumerate(self.layers)
            ]
            parts["hidden"] = terms.hidden * torch.stack(losses).mean()
        if terms.attention:
            losses = [
                attention_loss(student.attentions[mine - 1], teacher.attentions[its - 1], mask)
                for mine, its in self.layers[1:]
            ]
            parts["attention"] = terms.attention * torch.stack(losses).mean()
        if terms.cosine:
            last = self._projected(student.hidden_states, -1, -1)
            parts["cosine"] = terms.cosine * cosine_loss(last, teacher.hidden_states[-1], mask)
        return torch.stack(list(parts.values())).sum(), {name: part.item() for name, part in parts.items()}


def distill(
    teacher: Subject, student: Subject, rows: Sequence[Pair], recipe: Recipe, terms: Terms | None = None, *,
    what: str = "distill", after_step: AfterStep | None = None, folder: Path | None = None,
    tracker: Tracker | None = None,
) -> Subject:  # fmt: skip
    """Let a student learn from its teacher, in place.

    Args:
        teacher: Stays as it is.
        student: Learns.
        rows: Texts and labels. Texts without labels do as well, with any label and ``alpha`` 1.
        recipe: How it learns.
        terms: Weights of the loss's terms.
        what: Name of the progress bar.
        after_step: Called with the number of steps done and of all steps.
        folder: Where checkpoints go.
        tracker: Where the figures go.

    Returns:
        The student.
    """
    import torch

    if teacher.label_names != student.label_names:
        raise InputError(
            f"{teacher.name} and {student.name} have other labels: {', '.join(teacher.label_names)} and "
            f"{', '.join(student.label_names)}."
        )
    if teacher.encoder.tokenizer.get_vocab() != student.encoder.tokenizer.get_vocab():
        raise InputError(f"{teacher.name} and {student.name} have other vocabularies: the same ids must mean the same.")
    torch.manual_seed(recipe.seed)  # projections begin the same in every process and run
    loss = DistillationLoss(teacher.model, student.model, terms or Terms())
    train(
        student.model, student.encoder, rows, recipe, loss, what=what, also=loss.projections,
        after_step=after_step, folder=folder, tracker=tracker,
    )  # fmt: skip
    return student


def keep_layers(teacher: Subject, layers: Sequence[int]) -> Subject:
    """Make a student of some of a teacher's layers; embeddings and head are the teacher's.

    Args:
        teacher: Stays as it is.
        layers: Which, counted from 0.

    Raises:
        InputError: There is no such layer, or none is kept.
    """
    import torch

    depth = teacher.model.config.num_hidden_layers
    if not layers or not all(0 <= layer < depth for layer in layers) or list(layers) != sorted(set(layers)):
        raise InputError(f"layers must be different ones in [0, {depth - 1}], in order. Got {list(layers)}.")
    model = copy.deepcopy(teacher.model)
    body = getattr(model, model.base_model_prefix)
    stack = body.transformer if hasattr(body, "transformer") else body.encoder
    stack.layer = torch.nn.ModuleList(stack.layer[layer] for layer in layers)
    model.config.num_hidden_layers = len(layers)
    if widths := getattr(model.config, "pruned", None):
        model.config.pruned = [widths[layer] for layer in layers]
    return teacher.with_model(model, f"{teacher.name}, {len(layers)} of {depth} layers")


def evenly(kept: int, depth: int) -> list[int]:
    """Choose layers evenly, the first and the last among them (Sanh et al., 2019, keep every other one)."""
    if not 1 <= kept <= depth:
        raise InputError(f"layers must be in [1, {depth}], the teacher's. Got {kept}.")
    return [0] if kept == 1 else [round(i * (depth - 1) / (kept - 1)) for i in range(kept)]


# --- Command ----------------------------------------------------------------------------------------------------------


@dataclass
class DistillConfig(LearnConfig):
    """Let a small classifier learn from a large one."""

    teacher: str = "builtin:minilm-stays"
    """The classifier to learn from: builtin:minilm-stays, a folder or a hub id."""
    student: str = ""
    """An encoder with the teacher's vocabulary, as a folder or hub id; by default some of the teacher's layers."""
    layers: int = 3
    """Layers of a student that is made of its teacher's, >= 1."""
    alpha: float = 0.9
    """Share of the softened teacher against the labels, in [0, 1]."""
    temperature: float = 2.0
    """Softens both models' probabilities, > 0."""
    hidden: float = 1.0
    """Weight of the hidden states' squared difference, >= 0."""
    attention: float = 0.0
    """Weight of the attention's divergence, >= 0; slower above 0."""
    cosine: float = 0.0
    """Weight of 1 - cosine of the last hidden states, >= 0."""
    epochs: float = 5
    """Passes over the training texts, > 0."""
    learning_rate: float = 3e-4
    """Highest learning rate, > 0."""

    def __post_init__(self) -> None:
        """Check the ranges."""
        super().__post_init__()
        self.terms()
        check_range("layers", self.layers, 1)

    def terms(self) -> Terms:
        """Return the weights of the loss's terms."""
        return Terms(self.alpha, self.temperature, self.hidden, self.attention, self.cosine)


def distill_command(config: DistillConfig) -> None:
    """Distill, and report both models' figures."""
    data = config.load()
    teacher = load_subject(config.teacher, config.max_length)
    check_labels(teacher, data)
    if config.student:
        student = new_subject(config.student, data, config.max_length, config.seed)
    else:
        student = keep_layers(teacher, evenly(config.layers, teacher.model.config.num_hidden_layers))
    with learning(MODULE, "distill", config) as its:
        learn_from(teacher, student, data, config, config.terms(), its)


def learn_from(
    teacher: Subject, student: Subject, data: Data, config: LearnConfig, terms: Terms, its: Learning
) -> None:
    """Distill inside a run, and report the figures of both models."""
    distill(teacher, student, data.splits["train"], config.recipe(), terms, folder=its.folder, tracker=its.tracker)
    if not its.run:
        return
    metrics = {"teacher_accuracy": accuracy(teacher, data), "student_accuracy": accuracy(student, data)}
    metrics["kept"] = metrics["student_accuracy"] / metrics["teacher_accuracy"]
    for which, subject in (("teacher", teacher), ("student", student)):
        metrics[f"{which}_parameters"] = sum(weight.numel() for weight in subject.model.parameters())
    its.finish(student.save, model=teacher.name, data=data.name, seed=config.seed, metrics=metrics)


if __name__ == "__main__":
    run_commands({"distill": distill_command}, module=MODULE, extra="optimization")
