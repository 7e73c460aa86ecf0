r"""DistilBERT's recipe: a student of every other layer of its teacher, and a loss of three parts.

    L = w_soft · T² · KL(teacher ‖ student) + w_task · CE(student, label or masked word) + w_cosine · (1 − cos(h, h'))

(Sanh et al., 2019, arXiv:1910.01108; their weights are 5, 2 and 1, T = 2.) With ``--objective task`` both models
classify; with ``--objective mlm`` they guess masked words of any text, as in the paper, and the student is fine-tuned
afterwards.

    python -m model_optimization.distillation.distilbert_training train --layers 3
    python -m model_optimization.distillation.distilbert_training train --objective mlm --teacher bert-base-uncased \
        --data corpus.txt --layers 6
    accelerate launch -m model_optimization.distillation.distilbert_training train --objective mlm ...
"""

from __future__ import annotations

import copy
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from model_optimization.builtin.subject import (
    BASE,
    SUBJECTS,
    LearnConfig,
    Pair,
    check_labels,
    learning,
    load_subject,
    positions,
    train,
)
from model_optimization.deployment.onnx_conversion import TextEncoder, length_batches, pad
from model_optimization.distillation.teacher_student import (
    Terms,
    cosine_loss,
    evenly,
    keep_layers,
    learn_from,
    soft_loss,
)
from shared.config import check_range, run_commands
from shared.errors import InputError
from shared.runtime import set_threads
from shared.sources import hub_errors, load_text, resolve

if TYPE_CHECKING:
    from torch import Tensor

MODULE = "model_optimization.distillation.distilbert_training"
MASKED = 0.15  # of the words; of these 80 % become [MASK], 10 % another word, 10 % stay (Devlin et al., 2018)
IGNORED = -100  # what cross_entropy leaves out


def mask_words(
    input_ids: Tensor, *, mask_id: int, special_ids: Collection[int], vocabulary: int, seed: int
) -> tuple[Tensor, Tensor]:
    """Hide words for a model to guess.

    Args:
        input_ids: (B, T).
        mask_id: Id of ``[MASK]``.
        special_ids: Ids that are never hidden: padding, start, end.
        vocabulary: Number of ids.
        seed: The same hides the same words.

    Returns:
        What the model sees, (B, T), and what it must guess, (B, T): the hidden words, elsewhere −100.
    """
    import torch

    device = input_ids.device
    generator = torch.Generator().manual_seed(seed)
    chance, fate = (torch.rand(input_ids.shape, generator=generator).to(device) for _ in range(2))
    others = torch.randint(vocabulary, input_ids.shape, generator=generator).to(device)
    hidden = (chance < MASKED) & ~torch.isin(input_ids, torch.tensor(sorted(special_ids), device=device))
    seen = torch.where(hidden & (fate < 0.8), mask_id, input_ids)
    seen = torch.where(hidden & (fate >= 0.8) & (fate < 0.9), others, seen)
    return seen, torch.where(hidden, input_ids, IGNORED)


class MaskedLanguageLoss:
    """DistilBERT's own loss, on masked words; :func:`model_optimization.builtin.subject.train` takes it.

    Args:
        teacher: An ``AutoModelForMaskedLM``; its weights never change.
        tokenizer: Of teacher and student.
        soft: w_soft.
        task: w_task.
        cosine: w_cosine.
        temperature: T.
        seed: Of the words that are hidden.
    """

    def __init__(
        self, teacher: Any, tokenizer: Any, *, soft: float, task: float, cosine: float, temperature: float, seed: int
    ) -> None:
        if tokenizer.mask_token_id is None:
            raise InputError("The teacher's tokenizer has no mask token.", hint="--objective task")
        self.teacher, self.tokenizer, self.seed = teacher.eval(), tokenizer, seed
        self.soft, self.task, self.cosine, self.temperature = soft, task, cosine, temperature

    def __call__(self, model: Any, batch: dict[str, Tensor]) -> tuple[Tensor, dict[str, float]]:
        """Return the loss of a batch, and each part's share of it."""
        import torch
        import torch.nn.functional as F  # noqa: N812

        mask = batch["attention_mask"]
        seen, wanted = mask_words(
            batch["input_ids"] * mask + (1 - mask) * (self.tokenizer.pad_token_id or 0),
            mask_id=self.tokenizer.mask_token_id, special_ids=self.tokenizer.all_special_ids,
            vocabulary=len(self.tokenizer), seed=self.seed + int((batch["input_ids"] * mask).sum()),
        )  # fmt: skip
        inputs = {"input_ids": seen, "attention_mask": mask, "output_hidden_states": True}
        if self.teacher.device != mask.device:
            self.teacher.to(mask.device)
        with torch.no_grad():
            teacher = self.teacher(**inputs)
        student = model(**inputs)
        hidden = wanted != IGNORED
        parts = {"cosine": self.cosine * cosine_loss(student.hidden_states[-1], teacher.hidden_states[-1], mask)}
        if hidden.any():
            logits = student.logits[hidden]  # (hidden words, V)
            parts["soft"] = self.soft * soft_loss(logits, teacher.logits[hidden], self.temperature)
            parts["task"] = self.task * F.cross_entropy(logits.float(), wanted[hidden])
        return torch.stack(list(parts.values())).sum(), {name: part.item() for name, part in parts.items()}


# --- Command ----------------------------------------------------------------------------------------------------------


@dataclass
class DistilBertConfig(LearnConfig):
    """Train a student of every other layer of its teacher."""

    objective: Literal["task", "mlm"] = "task"
    """task: classify labeled texts; mlm: guess masked words of plain text."""
    teacher: str = f"builtin:{next(iter(SUBJECTS))}"
    """A classifier for task, a masked language model for mlm: builtin:minilm-stays (task), a folder or a hub id."""
    layers: int = 3
    """Layers of the student, >= 1; they are taken evenly from the teacher's."""
    soft: float = 5.0
    """Weight of the softened teacher, >= 0."""
    task: float = 2.0
    """Weight of the labels or masked words, >= 0."""
    cosine: float = 1.0
    """Weight of 1 - cosine of the last hidden states, >= 0."""
    temperature: float = 2.0
    """Softens both models' probabilities, > 0."""
    epochs: float = 5
    """Passes over the training texts, > 0."""
    learning_rate: float = field(default=3e-4)
    """Highest learning rate, > 0."""

    def __post_init__(self) -> None:
        """Check the ranges."""
        super().__post_init__()
        check_range("layers", self.layers, 1)
        check_range("temperature", self.temperature, 0, open_low=True)
        for name in ("soft", "task", "cosine"):
            check_range(name, getattr(self, name), 0)
        if not self.soft + self.task:
            raise InputError("One of soft and task must be above 0.")
        if self.objective == "mlm" and self.teacher.startswith("builtin:"):
            raise InputError(
                f"There is no builtin masked language model; builtin:{BASE} only embeds.",
                hint="--teacher bert-base-uncased, or a folder",
            )


def train_command(config: DistilBertConfig) -> None:
    """Distill; see :class:`DistilBertConfig`."""
    (_train_mlm if config.objective == "mlm" else _train_task)(config)


def _train_task(config: DistilBertConfig) -> None:
    data = config.load()
    teacher = load_subject(config.teacher, config.max_length)
    check_labels(teacher, data)
    student = keep_layers(teacher, evenly(config.layers, teacher.model.config.num_hidden_layers))
    whole = config.soft + config.task  # the loss is one of weights 1 - alpha and alpha
    terms = Terms(config.soft / whole, config.temperature, cosine=config.cosine / whole)
    with learning(MODULE, "train", config) as its:
        learn_from(teacher, student, data, config, terms, its)


def _train_mlm(config: DistilBertConfig) -> None:
    import torch
    from transformers import AutoModelForMaskedLM, AutoTokenizer

    set_threads(config.threads)
    source, text_source = resolve(config.teacher), resolve(config.data)
    lines = [line for line in load_text(text_source, "builtin:stays")["train"].splitlines() if line.strip()]
    kwargs = {"revision": source.revision} if source.revision else {}
    with hub_errors(source, "a local path"):
        teacher = AutoModelForMaskedLM.from_pretrained(source.name, dtype=torch.float32, **kwargs)
        tokenizer = AutoTokenizer.from_pretrained(source.name, **kwargs)
    body = getattr(teacher, teacher.base_model_prefix)
    kept = evenly(config.layers, teacher.config.num_hidden_layers)
    student = copy.deepcopy(teacher)
    body = getattr(student, student.base_model_prefix)
    stack = body.transformer if hasattr(body, "transformer") else body.encoder
    stack.layer = torch.nn.ModuleList(stack.layer[layer] for layer in kept)
    student.config.num_hidden_layers = len(kept)
    encoder = TextEncoder(tokenizer.backend_tokenizer.to_str(), min(config.max_length, positions(teacher)))
    loss = MaskedLanguageLoss(
        teacher, tokenizer, soft=config.soft, task=config.task, cosine=config.cosine, temperature=config.temperature,
        seed=config.seed,
    )  # fmt: skip
    kept_back = set(lines[:: max(1, len(lines) // 50)])
    held_out = [(line, 0) for line in kept_back]
    rows = [(line, 0) for line in lines if line not in kept_back] or held_out

    def save(folder: Path) -> None:
        student.save_pretrained(folder)
        tokenizer.save_pretrained(folder)

    with learning(MODULE, "train", config) as its:
        train(student, encoder, rows, config.recipe(), loss, what="distill", folder=its.folder, tracker=its.tracker)
        if its.run:
            metrics = {
                f"{name}_masked_loss": masked_loss(model, encoder, tokenizer, held_out)
                for name, model in (("teacher", teacher), ("student", student))
            }
            its.finish(save, model=str(source), data=str(text_source), seed=config.seed, metrics=metrics)


def masked_loss(model: Any, encoder: TextEncoder, tokenizer: Any, rows: Sequence[Pair]) -> float:
    """Return the mean cross-entropy of hidden words, the same ones for every model; nats."""
    import torch
    import torch.nn.functional as F  # noqa: N812

    total, words = 0.0, 0
    ids = encoder.encode([text for text, _ in rows])
    for seed, batch in enumerate(length_batches([len(row) for row in ids], 16)):
        input_ids, mask = (torch.from_numpy(array).to(model.device) for array in pad([ids[i] for i in batch]))
        seen, wanted = mask_words(
            input_ids, mask_id=tokenizer.mask_token_id, special_ids=tokenizer.all_special_ids,
            vocabulary=len(tokenizer), seed=seed,
        )  # fmt: skip
        hidden = (wanted != IGNORED) & (mask > 0)
        with torch.inference_mode():
            logits = model(input_ids=seen, attention_mask=mask).logits[hidden]
        total += F.cross_entropy(logits.float(), wanted[hidden], reduction="sum").item()
        words += int(hidden.sum())
    if not words:
        raise InputError("There are too few words to measure on.", hint="more text")
    return total / words


if __name__ == "__main__":
    run_commands({"train": train_command}, module=MODULE, extra="optimization")
