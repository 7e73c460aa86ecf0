"""Structured pruning: whole heads, feed-forward neurons and vocabulary rows go, so that matrices really shrink.

A head's or neuron's importance is how much the loss would change without it, to first order: put a gate of 1 on its
output and take |∂loss / ∂gate|, averaged over texts (Michel et al., 2019, arXiv:1905.10650; Molchanov et al., 2019,
arXiv:1906.10771). The least important go, layers keep what they need, and a short training under the unpruned model
as teacher recovers what was lost.

    python -m model_optimization.pruning.structured_pruning prune --heads 0.5 --neurons 0.5
    python -m model_optimization.pruning.structured_pruning prune --heads 0.5 --neurons 0.75 --vocabulary 12000

transformers can't reload a model whose layers have widths of their own. ``config.json`` of a pruned model keeps them
under ``pruned``, and :func:`from_pretrained` here rebuilds the layers before it loads the weights.
"""

from __future__ import annotations

import copy
import json
import logging
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from model_optimization.builtin.subject import (
    LearnConfig,
    Pair,
    Subject,
    accuracy,
    check_labels,
    learning,
    load_subject,
)
from model_optimization.deployment.onnx_conversion import TextEncoder, length_batches, pad
from shared.config import check_range, run_commands
from shared.errors import InputError
from shared.results import write_atomic

if TYPE_CHECKING:
    from torch import Tensor

MODULE = "model_optimization.pruning.structured_pruning"
logger = logging.getLogger(MODULE)


# --- The layers of an encoder -----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Layer:
    """One Transformer layer's matrices: all that pruning has to know of an architecture.

    transformers' attention counts its heads by the width of what query, key and value give, so nothing else changes.

    Attributes:
        query: (C → H · D), like key and value.
        key: See query.
        value: See query.
        output: (H · D → C).
        up: (C → neurons).
        down: (neurons → C).
        head_width: D.
    """

    query: Any
    key: Any
    value: Any
    output: Any
    up: Any
    down: Any
    head_width: int

    @property
    def heads(self) -> int:
        """Heads there are now."""
        return int(self.query.out_features) // self.head_width

    @property
    def neurons(self) -> int:
        """Feed-forward neurons there are now."""
        return int(self.up.out_features)

    def keep(self, heads: Sequence[int], neurons: Sequence[int]) -> None:
        """Cut all other heads and neurons out."""
        width = self.head_width
        columns = [head * width + d for head in heads for d in range(width)]
        for linear in (self.query, self.key, self.value):
            _keep(linear, columns, 0)
        _keep(self.output, columns, 1)
        _keep(self.up, neurons, 0)
        _keep(self.down, neurons, 1)


def layers_of(model: Any) -> list[Layer]:
    """Find the layers of a BERT, RoBERTa, ELECTRA or DistilBERT classifier.

    Raises:
        InputError: It is of another family.
    """
    body, kind = getattr(model, model.base_model_prefix, None), model.config.model_type
    if kind in ("bert", "roberta", "electra", "xlm-roberta", "camembert"):
        width = model.config.hidden_size // model.config.num_attention_heads
        return [
            Layer(block.attention.self.query, block.attention.self.key, block.attention.self.value,
                  block.attention.output.dense, block.intermediate.dense, block.output.dense, width)
            for block in body.encoder.layer
        ]  # fmt: skip
    if kind == "distilbert":
        width = model.config.dim // model.config.n_heads
        return [
            Layer(block.attention.q_lin, block.attention.k_lin, block.attention.v_lin, block.attention.out_lin,
                  block.ffn.lin1, block.ffn.lin2, width)
            for block in body.transformer.layer
        ]  # fmt: skip
    raise InputError(f"Pruning knows bert, roberta, electra and distilbert. Got a {kind}.")


def _keep(linear: Any, kept: Sequence[int], axis: int) -> None:
    """Keep some output rows (axis 0) or input columns (axis 1) of a linear layer, in place."""
    import torch

    index = torch.as_tensor(list(kept), device=linear.weight.device)
    linear.weight = torch.nn.Parameter(linear.weight.detach().index_select(axis, index).clone())
    if axis == 0 and linear.bias is not None:
        linear.bias = torch.nn.Parameter(linear.bias.detach().index_select(0, index).clone())
    linear.out_features, linear.in_features = linear.weight.shape


# --- Importance and surgery -------------------------------------------------------------------------------------------


def importance(
    model: Any, encoder: TextEncoder, rows: Sequence[Pair], batch_size: int = 32
) -> tuple[list[NDArray[Any]], list[NDArray[Any]]]:
    """Measure what the loss owes to each head and neuron: the mean over texts of |∂loss / ∂gate|, gates at 1.

    Args:
        model: The classifier.
        encoder: Texts → ids.
        rows: Labeled texts; a few hundred do.
        batch_size: Texts at a time.

    Returns:
        For each layer the importance of its heads, (H,), and of its neurons, (neurons,).

    Raises:
        InputError: There is no text.
    """
    import torch
    import torch.nn.functional as F  # noqa: N812

    if not rows:
        raise InputError("Importance is measured on labeled texts. There are none.")
    layers = layers_of(model)
    sums = [(np.zeros(layer.heads), np.zeros(layer.neurons)) for layer in layers]
    gates: dict[tuple[int, int], Tensor] = {}

    def gated(key: tuple[int, int], width: int) -> Any:
        def hook(module: Any, inputs: tuple[Tensor]) -> tuple[Tensor]:
            hidden = inputs[0]  # (B, T, H · D) or (B, T, neurons)
            gate = torch.ones(len(hidden), 1, hidden.shape[-1] // width, device=hidden.device, requires_grad=True)
            gates[key] = gate  # one for each text
            return (hidden * gate.repeat_interleave(width, -1),)

        return hook

    hooks = []
    for i, layer in enumerate(layers):
        hooks.append(layer.output.register_forward_pre_hook(gated((i, 0), layer.head_width)))
        hooks.append(layer.down.register_forward_pre_hook(gated((i, 1), 1)))
    training = model.training
    model.eval()
    ids = encoder.encode([text for text, _ in rows])
    try:
        for batch in length_batches([len(row) for row in ids], batch_size):
            input_ids, attention_mask = (torch.from_numpy(a).to(model.device) for a in pad([ids[i] for i in batch]))
            labels = torch.tensor([rows[i][1] for i in batch], device=model.device)
            logits = model(input_ids=input_ids, attention_mask=attention_mask).logits
            loss = F.cross_entropy(logits.float(), labels, reduction="sum")
            gradients = torch.autograd.grad(loss, list(gates.values()))
            for (layer_number, kind), gradient in zip(gates, gradients, strict=True):
                sums[layer_number][kind][:] += gradient.abs().sum((0, 1)).cpu().numpy()
    finally:
        for hook in hooks:
            hook.remove()
        model.train(training)
    return [heads / len(rows) for heads, _ in sums], [neurons / len(rows) for _, neurons in sums]


def choose(scores: Sequence[NDArray[Any]], sparsity: float, multiple_of: int = 1) -> list[list[int]]:
    """Choose what stays: the most important over all layers, each layer's scores first brought to length 1.

    Args:
        scores: For each layer, the importance of its units.
        sparsity: Share of all units to leave out, in [0, 1).
        multiple_of: Each layer keeps a multiple of this many, one multiple at least: processors like round widths.

    Returns:
        For each layer the units that stay, in order.

    Raises:
        InputError: ``sparsity`` is outside its range, or would leave nothing.
    """
    if not 0 <= sparsity < 1:
        raise InputError(f"The share of heads and of neurons to prune must be in [0, 1). Got {sparsity}.")
    total = sum(len(layer) for layer in scores)
    wanted = round(total * (1 - sparsity))
    least = sum(min(multiple_of, len(layer)) for layer in scores)
    if wanted < least:
        raise InputError(
            f"Pruning {sparsity:.0%} would leave {wanted} of {total} in {len(scores)} layers, which need {least}.",
            hint="a smaller share, or distill into fewer layers",
        )
    normal = [layer / max(float(np.linalg.norm(layer)), 1e-30) for layer in scores]
    # Blocks of `multiple_of` units, best units first, so that each layer's count comes out round.
    blocks = []
    orders = [np.argsort(-layer, kind="stable") for layer in normal]
    for i, (layer, order) in enumerate(zip(normal, orders, strict=True)):
        for first in range(0, len(layer), multiple_of):
            block = order[first : first + multiple_of]
            blocks.append((first > 0, -float(layer[block].mean()), i, first, len(block)))
    counts = [0] * len(scores)
    for _, _, i, _, size in sorted(blocks):  # the first block of each layer stays, whatever it is worth
        if sum(counts) + size <= wanted or counts[i] == 0:
            counts[i] += size
    return [sorted(order[:count].tolist()) for order, count in zip(orders, counts, strict=True)]


def prune(
    subject: Subject, rows: Sequence[Pair], *, heads: float = 0.5, neurons: float = 0.5, multiple_of: int = 32
) -> Subject:
    """Cut heads and neurons out of a copy of a classifier.

    Args:
        subject: The classifier; it stays as it is.
        rows: Labeled texts to measure importance on.
        heads: Share of all heads to leave out, in [0, 1).
        neurons: Share of all neurons to leave out, in [0, 1).
        multiple_of: See :func:`choose`; for neurons.

    Raises:
        InputError: A share is outside its range or would leave a layer empty, or the architecture is unknown.
    """
    model = copy.deepcopy(subject.model)
    head_scores, neuron_scores = importance(model, subject.encoder, rows)
    kept = zip(choose(head_scores, heads), choose(neuron_scores, neurons, multiple_of), strict=True)
    for layer, (kept_heads, kept_neurons) in zip(layers_of(model), kept, strict=True):
        layer.keep(kept_heads, kept_neurons)
    model.config.pruned = [{"heads": layer.heads, "neurons": layer.neurons} for layer in layers_of(model)]
    return subject.with_model(model, f"{subject.name}, heads −{heads:.0%}, neurons −{neurons:.0%}")


def prune_vocabulary(subject: Subject, texts: Sequence[str], size: int) -> Subject:
    """Leave rows of the embedding out: what is not in the vocabulary any more is read in smaller pieces.

    Special tokens and single characters stay, then what occurs in ``texts``, by frequency, then the rest in the order
    of the old vocabulary, which BERT's has by frequency.

    Args:
        subject: A classifier with a WordPiece vocabulary; it stays as it is.
        texts: What it will read is like these.
        size: Tokens to keep.

    Raises:
        InputError: The vocabulary is of another kind, or ``size`` is too small for what must stay.
    """
    import torch
    from tokenizers import Tokenizer
    from transformers import PreTrainedTokenizerFast

    content = json.loads(subject.tokenizer_json)
    if content["model"]["type"] != "WordPiece":
        raise InputError(f"Only WordPiece vocabularies can be pruned. Got {content['model']['type']}.")
    vocabulary: dict[str, int] = content["model"]["vocab"]
    counts = np.bincount([i for ids in subject.encoder.encode(texts) for i in ids], minlength=len(vocabulary))
    special = {token["content"] for token in content["added_tokens"]}
    must = {i for token, i in vocabulary.items() if token in special or len(token.removeprefix("##")) == 1}
    if not len(must) <= size <= len(vocabulary):
        raise InputError(f"vocabulary must be in [{len(must):,}, {len(vocabulary):,}]. Got {size:,}.")
    order = sorted(vocabulary.values(), key=lambda i: (i not in must, -counts[i], i))
    kept = sorted(order[:size])
    new_ids = {old: new for new, old in enumerate(kept)}
    content["model"]["vocab"] = {token: new_ids[i] for token, i in vocabulary.items() if i in new_ids}
    for token in content["added_tokens"]:
        token["id"] = new_ids[token["id"]]
    renumber(content["post_processor"], new_ids)
    model = copy.deepcopy(subject.model)
    old = model.get_input_embeddings()
    pad_id = None if old.padding_idx is None else new_ids[old.padding_idx]
    weight = old.weight.detach()[torch.tensor(kept, device=old.weight.device)].clone()
    model.set_input_embeddings(torch.nn.Embedding.from_pretrained(weight, freeze=False, padding_idx=pad_id))
    model.config.vocab_size = size
    if model.config.pad_token_id is not None:
        model.config.pad_token_id = pad_id if pad_id is not None else new_ids[model.config.pad_token_id]
    tokens = {
        name: str(token) for name, token in subject.tokenizer.special_tokens_map.items() if isinstance(token, str)
    }
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=Tokenizer.from_str(json.dumps(content)), **tokens)
    name = f"{subject.name}, {size:,} tokens"
    return type(subject)(model, tokenizer, subject.label_names, name, subject.max_length)


def renumber(processor: dict[str, Any] | None, new_ids: dict[int, int]) -> None:
    """Renew the ids in a tokenizer's post-processor, in place: each kind keeps them elsewhere."""
    if not processor:
        return
    for token in processor.get("special_tokens", {}).values():  # TemplateProcessing
        token["ids"] = [new_ids[i] for i in token["ids"]]
    for key in ("cls", "sep"):  # BertProcessing and RobertaProcessing: (token, id)
        if key in processor:
            processor[key] = [processor[key][0], new_ids[processor[key][1]]]
    for part in processor.get("processors", ()):  # Sequence
        renumber(part, new_ids)


# --- Saving and loading -----------------------------------------------------------------------------------------------


def save_pretrained(model: Any, folder: Path) -> None:
    """Write ``config.json`` and ``model.safetensors``, for :func:`from_pretrained`."""
    from safetensors.torch import save

    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in model.state_dict().items()}
    write_atomic(folder / "model.safetensors", save(tensors, metadata={"format": "pt"}))
    write_atomic(folder / "config.json", model.config.to_json_string(use_diff=False))


def from_pretrained(name: str | Path, **options: Any) -> Any:
    """Load a classifier, pruned or not.

    Args:
        name: A folder or a hub id.
        options: For transformers' own ``from_pretrained``.

    Raises:
        InputError: There is no classifier in the folder, or its widths are not those of its weights.
    """
    import torch
    from safetensors import SafetensorError
    from safetensors.torch import load_file
    from transformers import AutoConfig, AutoModelForSequenceClassification
    from transformers.utils import logging as transformers_logging

    def damaged(error: Exception) -> InputError:
        return InputError(f"{name} holds no classifier that can be read: {' '.join(str(error).split())[:200]}")

    transformers_logging.disable_progress_bar()
    local = Path(name).is_dir()
    try:
        config = AutoConfig.from_pretrained(name, **options)
        widths = getattr(config, "pruned", None)
        if not widths:
            level = transformers_logging.get_verbosity()
            transformers_logging.set_verbosity_error()
            try:
                model, info = AutoModelForSequenceClassification.from_pretrained(
                    name, dtype=torch.float32, output_loading_info=True, **options
                )
            finally:
                transformers_logging.set_verbosity(level)
            if missing := sorted(info["missing_keys"]):
                raise InputError(
                    f"{name} is no trained classifier: it has no {missing[0]}.",
                    hint="train one on it: python -m model_optimization.builtin.subject train --model NAME",
                )
            return model
        model = AutoModelForSequenceClassification.from_config(config, dtype=torch.float32)
        for layer, width in zip(layers_of(model), widths, strict=True):
            layer.keep(range(width["heads"]), range(width["neurons"]))
        model.load_state_dict(load_file(Path(name) / "model.safetensors"))
        return model.eval()
    except InputError:
        raise
    except (OSError, ValueError, KeyError, TypeError, RuntimeError, IndexError, SafetensorError) as error:
        if not local:
            raise  # the caller tells of the hub
        raise damaged(error) from None


# --- Command ----------------------------------------------------------------------------------------------------------


@dataclass
class PruneConfig(LearnConfig):
    """Cut the least important heads and neurons out of a classifier, and recover under the original as teacher."""

    model: str = "builtin:minilm-stays"
    """The classifier: builtin:minilm-stays, a folder or a hub id."""
    heads: float = 0.5
    """Share of all attention heads to cut, in [0, 1)."""
    neurons: float = 0.5
    """Share of all feed-forward neurons to cut, in [0, 1)."""
    multiple_of: int = 32
    """Each layer keeps a multiple of this many neurons, >= 1."""
    vocabulary: int = 0
    """Tokens to keep of the vocabulary; 0 keeps all."""
    importance_texts: int = 512
    """Labeled texts that importance is measured on, >= 1."""
    epochs: float = 3
    """Passes over the training texts to recover, > 0."""
    learning_rate: float = 2e-4
    """Highest learning rate, > 0."""

    def __post_init__(self) -> None:
        """Check the ranges."""
        super().__post_init__()
        for name in ("heads", "neurons"):
            if not 0 <= getattr(self, name) < 1:
                raise InputError(f"{name} must be in [0, 1). Got {getattr(self, name)}.")
        check_range("multiple_of", self.multiple_of, 1)
        check_range("importance_texts", self.importance_texts, 1)
        check_range("vocabulary", self.vocabulary, 0)


def prune_command(config: PruneConfig) -> None:
    """Prune, recover, measure and save."""
    from model_optimization.distillation.teacher_student import Terms, distill

    data = config.load()
    subject = load_subject(config.model, config.max_length)
    check_labels(subject, data)
    rows = data.splits["train"]
    pruned = prune(subject, rows[: config.importance_texts], heads=config.heads, neurons=config.neurons,
                   multiple_of=config.multiple_of)  # fmt: skip
    metrics = {"accuracy_before": accuracy(subject, data), "accuracy_unrecovered": accuracy(pruned, data)}
    with learning(MODULE, "prune", config) as its:
        distill(subject, pruned, rows, config.recipe(), Terms(hidden=1.0), what="recover", folder=its.folder,
                tracker=its.tracker)  # fmt: skip
        if not its.run:
            return
        if config.vocabulary:
            pruned = prune_vocabulary(pruned, data.texts("train"), config.vocabulary)
        metrics["accuracy"] = accuracy(pruned, data)
        for name, which in (("parameters_before", subject), ("parameters", pruned)):
            metrics[name] = sum(weight.numel() for weight in which.model.parameters())
        for number, layer in enumerate(layers_of(pruned.model)):
            sys.stdout.write(f"layer {number}: {layer.heads} heads, {layer.neurons} neurons\n")
        its.finish(pruned.save, model=subject.name, data=data.name, seed=config.seed, metrics=metrics)


if __name__ == "__main__":
    run_commands({"prune": prune_command}, module=MODULE, extra="optimization")
