"""A character language model: the encoder of this project with a causal mask, trained to name the next character.

    python -m transformer_from_scratch.train_simple_lm train --data builtin:python-docs
    python -m transformer_from_scratch.train_simple_lm sample --prompt "The " --length 300
    python -m transformer_from_scratch.train_simple_lm evaluate
    python -m transformer_from_scratch.train_simple_lm attention --prompt "import the module"

Several processes or machines: ``accelerate launch -m transformer_from_scratch.train_simple_lm train``.
"""

from __future__ import annotations

import hashlib
import logging
import math
import shlex
import sys
import time
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from shared.checkpoints import read_checkpoint, save_checkpoint, select
from shared.config import check_range, run_commands
from shared.errors import InputError
from shared.logs import progress_bar
from shared.muon import Muon
from shared.plots import drawing, plot_curves
from shared.results import OUTPUTS, Run, write_atomic
from shared.runtime import StopRequest, pick_device, pick_dtype, set_threads
from shared.sources import Source, hub_errors, load_text, resolve
from shared.tracking import Tracker, read_metrics
from transformer_from_scratch.builtin.python_docs import python_docs
from transformer_from_scratch.transformer_block import EncoderCache, EncoderConfig, TransformerEncoder

PROJECT = "transformer_from_scratch"
MODULE = f"{PROJECT}.train_simple_lm"
logger = logging.getLogger(MODULE)


# --- The text ---------------------------------------------------------------------------------------------------------


class Vocabulary:
    """The characters of a corpus, numbered in code-point order.

    Args:
        characters: Each character once.
    """

    def __init__(self, characters: str) -> None:
        self.characters = characters
        self._codes = np.array([ord(c) for c in characters], dtype=np.uint32)

    def __len__(self) -> int:
        return len(self.characters)

    def encode(self, text: str) -> Tensor:
        """Return the number of every character, (T,) int32.

        Raises:
            InputError: Some characters are not in the vocabulary; the message names them.
        """
        codes = np.frombuffer(text.encode("utf-32-le", "surrogatepass"), dtype=np.uint32)
        numbers = np.searchsorted(self._codes, codes).clip(max=len(self) - 1)
        unknown = sorted({chr(c) for c in codes[self._codes[numbers] != codes]})
        if unknown:
            shown = ", ".join(map(repr, unknown[:10])) + (" …" if len(unknown) > 10 else "")
            raise InputError(
                f"The model has never seen {len(unknown)} of these characters: {shown}.",
                hint=f"it knows {self.characters[:200]!r}",
            )
        return torch.from_numpy(numbers.astype(np.int32))

    def decode(self, tokens: list[int]) -> str:
        """Return the text of a list of numbers."""
        return "".join(self.characters[token] for token in tokens)


@dataclass
class Corpus:
    """A text in numbers: what is learned from, and what is measured on."""

    name: str
    vocabulary: Vocabulary
    train: Tensor
    validation: Tensor


def load_corpus(data: str, validation_fraction: float, context_length: int = 1) -> Corpus:
    """Load a text and cut its end off for validation.

    Args:
        data: ``builtin:python-docs``, a UTF-8 file, or a hub id; its own validation split is used if it has one.
        validation_fraction: Part of the text, at its end, that is kept for validation.
        context_length: The training text must be longer than this.

    Raises:
        InputError: The text is empty, not UTF-8, or shorter than the context.
        OSError: It can't be read or fetched.
    """
    source = resolve(data, builtins={"python-docs"})
    texts = {"train": python_docs()} if source.origin == "builtin" else load_text(source, "builtin:python-docs")
    validation = texts.pop("validation", None)
    train = texts["train"] if "train" in texts else "\n".join(texts.values())
    if validation is None:
        cut = round(len(train) * (1 - validation_fraction))
        train, validation = train[:cut], train[cut:]
    if len(train) <= context_length or len(validation) < 2:
        raise InputError(
            f"{source} is too short: {len(train)} characters to train on and {len(validation)} to validate on; "
            f"at least {context_length + 1} and 2 are needed.",
            hint="a longer text, or a smaller --context_length",
        )
    vocabulary = Vocabulary("".join(sorted(set(train) | set(validation))))
    return Corpus(str(source), vocabulary, vocabulary.encode(train), vocabulary.encode(validation))


# --- The model --------------------------------------------------------------------------------------------------------


class CharacterLM(nn.Module):
    """Encoder with a causal mask, and a linear layer from each vector to the scores of the next character.

    Args:
        vocab_size: V.
        config: The encoder's shape.
    """

    def __init__(self, vocab_size: int, config: EncoderConfig) -> None:
        super().__init__()
        self.config = config
        self.encoder = TransformerEncoder(vocab_size, config)
        self.head = nn.Linear(config.d_model, vocab_size, bias=False)
        self._initialize()

    def _initialize(self) -> None:
        """Start every layer as the identity and every prediction as uniform.

        Projections that write into the residual path, and the head, start at zero, so the first loss is ln V; the
        others keep unit variance: N(0, 1 / inputs).
        """
        for name, module in self.named_modules():
            if isinstance(module, nn.Linear):
                if name.endswith(("out_proj", "linear2", "head")):
                    nn.init.zeros_(module.weight)
                else:
                    nn.init.normal_(module.weight, std=module.in_features**-0.5)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)

    def forward(self, tokens: Tensor, cache: EncoderCache | None = None, weights: list[Tensor] | None = None) -> Tensor:
        """Score the next character behind every token: (B, T) → logits (B, T, V)."""
        return self.head(self.encoder(tokens, causal=True, cache=cache, weights=weights))


def next_probabilities(logits: Tensor, temperature: float = 1.0, top_k: int = 0, top_p: float = 1.0) -> Tensor:
    """Turn scores into the probabilities to draw the next character from.

    Args:
        logits: (V,).
        temperature: Divides the scores: below 1 bolder, above 1 more random; 0 is greedy.
        top_k: Keep only the k best (all if 0); of equal ones those with the lowest number.
        top_p: Keep the fewest best ones whose probabilities sum to at least p (nucleus; Holtzman et al., 2020,
            arXiv:1904.09751).

    Returns:
        (V,), summing to 1.
    """
    if temperature == 0:
        return F.one_hot(logits.argmax(), len(logits)).to(logits.dtype)
    scores = (logits - logits.max()) / max(temperature, 1e-6)  # dividing by less overflows
    probabilities, order = scores.softmax(-1).sort(descending=True, stable=True)
    if top_k:
        probabilities[top_k:] = 0
    if top_p < 1:
        # The mass before a character decides, so the one that reaches p is kept and at least one always is.
        mass_before = probabilities.cumsum(-1) - probabilities
        probabilities[1:][mass_before[1:] >= top_p] = 0  # not the first, should p be as good as 0
    return torch.zeros_like(probabilities).scatter(0, order, probabilities / probabilities.sum())


@torch.inference_mode()
def generate(
    model: CharacterLM,
    prompt: Tensor,
    length: int,
    *,
    temperature: float = 1.0,
    top_k: int = 0,
    top_p: float = 1.0,
    seed: int = 0,
    use_cache: bool = True,
) -> Iterator[int]:
    """Draw characters one after another.

    The model sees at most ``context_length`` characters. When they are full it goes on with the younger half, with a
    cache and without, so both give the same text.

    Args:
        model: The language model.
        prompt: (T,) at least one character.
        length: Number of characters to draw.
        temperature: See :func:`next_probabilities`, as for ``top_k`` and ``top_p``.
        top_k: Keep the k best.
        top_p: Keep the nucleus.
        seed: Draws the same text again.
        use_cache: Compute each character's keys and values once instead of at every step.

    Yields:
        The number of each new character.
    """
    model.eval()
    generator = torch.Generator().manual_seed(seed)
    context = model.config.context_length
    window = prompt[-context:].tolist()
    cache = None
    for _ in range(length):
        if len(window) > context:
            window, cache = window[-max(context // 2, 1) :], None
        new = window[-1:]
        if cache is None:
            new, cache = window, EncoderCache(model.config.num_layers) if use_cache else None
        logits = model(torch.tensor([new], device=prompt.device), cache)[0, -1].float().cpu()
        if temperature == 0:
            token = int(logits.argmax())
        else:
            token = int(next_probabilities(logits, temperature, top_k, top_p).multinomial(1, generator=generator))
        window.append(token)
        yield token


@torch.inference_mode()
def validation_loss(model: CharacterLM, tokens: Tensor, batch_size: int = 64) -> float:
    """Measure the mean cross-entropy over a whole text, in nats a character.

    The text is cut into windows of ``context_length``, one behind the other, so every character but the first is
    predicted exactly once, and two calls give the same.

    Args:
        model: The language model; its mode (training or not) is kept.
        tokens: (T,) the text.
        batch_size: Windows at a time.
    """
    was_training = model.training
    model.eval()
    context = model.config.context_length
    whole = (len(tokens) - 1) // context * context
    inputs = list(tokens[:whole].view(-1, context).split(batch_size))
    targets = list(tokens[1 : whole + 1].view(-1, context).split(batch_size))
    if whole < len(tokens) - 1:  # what is left at the end is a shorter window
        inputs.append(tokens[None, whole:-1])
        targets.append(tokens[None, whole + 1 :])
    total = 0.0
    for x, y in zip(inputs, targets, strict=True):
        total += F.cross_entropy(model(x).flatten(0, 1).float(), y.flatten().long(), reduction="sum").item()
    model.train(was_training)
    return total / (len(tokens) - 1)


# --- Checkpoints ------------------------------------------------------------------------------------------------------


# What reading a value of the wrong type or size raises.
DAMAGE = (KeyError, TypeError, ValueError, AttributeError, IndexError, RuntimeError)


def load_weights(model: CharacterLM, tensors: dict[str, Tensor], path: Path) -> None:
    """Fill a model from a checkpoint's tensors.

    Raises:
        InputError: The checkpoint has other sizes or names.
    """
    try:
        model.load_state_dict(select(tensors, "model."))
    except RuntimeError as error:
        raise InputError(f"{path} does not fit this model: {' '.join(str(error).split())[:300]}") from None


def load_model(model: str, device: torch.device) -> tuple[CharacterLM, Vocabulary, dict[str, Any], str]:
    """Load a trained model.

    Args:
        model: A checkpoint, a run's folder, or a hub id with a ``best.safetensors``; empty is the newest run here.
        device: Where to put it.

    Returns:
        The model in evaluation mode, its vocabulary, its JSON state, and the name of what was loaded.

    Raises:
        InputError: There is no trained run, or the checkpoint is damaged.
        OSError: The checkpoint can't be read or fetched.
    """
    if not model:
        newest = sorted((OUTPUTS / PROJECT).glob("*/best.safetensors"), key=lambda p: p.stat().st_mtime)
        if not newest:
            raise InputError("There is no trained model yet.", hint=f"python -m {MODULE} train")
        model = str(newest[-1])
    source = resolve(model)
    path = _checkpoint_path(source)
    tensors, state = read_checkpoint(path)
    try:
        vocabulary = Vocabulary(state["vocabulary"])
        language_model = CharacterLM(len(vocabulary), EncoderConfig(**state["encoder"]))
        if not {"data", "validation_fraction"} <= state["recipe"].keys():
            raise ValueError("its recipe is missing")
    except DAMAGE as error:
        raise InputError(f"{path} is damaged or no checkpoint of this project: {error}.") from None
    load_weights(language_model, tensors, path)
    return language_model.to(device).eval(), vocabulary, state, str(source)


def _checkpoint_path(source: Source) -> Path:
    if source.origin == "hub":
        from huggingface_hub import hf_hub_download

        with hub_errors(source, "a run of your own"):
            return Path(hf_hub_download(source.name, "best.safetensors", revision=source.revision))
    path = Path(source.name)
    return path / "best.safetensors" if path.is_dir() else path


# --- Training ---------------------------------------------------------------------------------------------------------

NOT_RECIPE = {"recipe": False}  # changes where and how fast a run goes, not what its README promises


@dataclass
class LearningConfig:
    """How to learn: what ``train`` takes besides the encoder's shape, and shows before it."""

    preset: Literal["laptop", "best"] = "laptop"
    """laptop: a minute and a half on two cores; best: half an hour. The other keys change single values of it."""
    data: str = "builtin:python-docs"
    """builtin:python-docs, a UTF-8 text file, or a hub id such as karpathy/tiny_shakespeare."""
    validation_fraction: float = 0.1
    """Part of the text, at its end, that is kept for validation, in (0, 1)."""
    steps: int = 1440
    """Optimizer steps."""
    batch_size: int = 6
    """Windows of context_length characters in one forward pass of one process."""
    accumulation: int = 1
    """Forward passes whose gradients are averaged before a step."""
    learning_rate: float = 3e-3
    """Peak learning rate."""
    final_rate: float = 0.0
    """Part of the peak learning rate where the cosine ends, in [0, 1]."""
    optimizer: Literal["adamw", "muon"] = "adamw"
    """adamw; or muon for the matrices inside the layers and adamw for the rest."""
    muon_learning_rate: float = 0.02
    """Muon: peak learning rate of its matrices."""
    warmup_steps: int = 100
    """Steps of linear growth up to the peak."""
    beta1: float = 0.9
    """AdamW: memory of the gradient's mean, in [0, 0.9999]."""
    beta2: float = 0.95
    """AdamW: memory of the gradient's square, in [0, 0.9999]."""
    weight_decay: float = 0.1
    """AdamW: decay of matrices; vectors (norms, biases) have none."""
    gradient_clip: float = 1.0
    """Longest gradient, as a Euclidean norm over all weights; 0 is off."""
    log_every: int = field(default=20, metadata=NOT_RECIPE)
    """Steps between two lines of metrics.jsonl with the mean training loss."""
    evaluate_every: int = 480
    """Steps between two measurements of the whole validation text, each with a checkpoint."""
    patience: int = 0
    """Stop early after this many measurements without a new best; 0 is off."""
    seed: int = field(default=0, metadata=NOT_RECIPE)
    """Fixes weights, batches and dropout."""
    device: str = field(default="auto", metadata=NOT_RECIPE)
    """auto, cpu, cuda or mps."""
    dtype: Literal["auto", "float32", "bfloat16"] = field(default="auto", metadata=NOT_RECIPE)
    """auto: bfloat16 on GPUs that have it, else float32."""
    threads: int = field(default=0, metadata=NOT_RECIPE)
    """CPU threads; 0 leaves it to PyTorch."""
    run: str = field(default="", metadata=NOT_RECIPE)
    """Name of the run's folder; by default the time."""
    resume: bool = field(default=False, metadata=NOT_RECIPE)
    """Go on where the run of this name stopped, exactly as if it never had."""
    tracking: Literal["none", "wandb"] = field(default="none", metadata=NOT_RECIPE)
    """Mirror the figures to Weights & Biases."""


@dataclass
class TrainConfig(EncoderConfig, LearningConfig):
    """Train a character language model on a text, on any machine.

    The defaults are the preset `laptop`. Every run is saved under outputs/ and ends with its loss on the
    whole validation text, a loss curve and a sample.
    """

    PRESETS: ClassVar[dict[str, dict[str, Any]]] = {
        "laptop": {},
        "best": {
            "num_layers": 5,
            "d_model": 160,
            "num_heads": 5,
            "d_ff": 640,
            "context_length": 256,
            "dropout": 0.1,
            "batch_size": 8,
            "steps": 5400,
            "evaluate_every": 900,
            "optimizer": "muon",
        },
    }

    def __post_init__(self) -> None:
        """Check the ranges."""
        super().__post_init__()
        for name in ("steps", "batch_size", "accumulation", "log_every", "evaluate_every"):
            check_range(name, getattr(self, name), 1, 10**9)
        for name in ("warmup_steps", "patience", "weight_decay", "gradient_clip"):
            check_range(name, getattr(self, name), 0)
        check_range("threads", self.threads, 0, 1024)
        check_range("learning_rate", self.learning_rate, 0, open_low=True)
        check_range("validation_fraction", self.validation_fraction, 0, 0.99, open_low=True)
        check_range("final_rate", self.final_rate, 0, 1)
        check_range("muon_learning_rate", self.muon_learning_rate, 0, open_low=True)
        check_range("beta1", self.beta1, 0, 0.9999)
        check_range("beta2", self.beta2, 0, 0.9999)
        check_range("seed", self.seed, 0, 2**31 - 1)
        if self.resume and not self.run:
            raise InputError("resume needs the name of the run.", hint="--run NAME --resume true")


def schedule(step: int, config: TrainConfig) -> float:
    """Return the part of the peak learning rate that a step gets: linear warm-up, then half a cosine down."""
    if step < config.warmup_steps:
        return (step + 1) / config.warmup_steps
    progress = (step - config.warmup_steps) / max(config.steps - config.warmup_steps, 1)
    return config.final_rate + (1 - config.final_rate) * 0.5 * (1 + math.cos(math.pi * progress))


def make_optimizers(model: CharacterLM, config: TrainConfig) -> list[torch.optim.Optimizer]:
    """Return AdamW (Loshchilov and Hutter, 2019, arXiv:1711.05101), which decays matrices only.

    With ``optimizer="muon"`` the matrices inside the layers go to Muon (Jordan et al., 2024), which replaces each
    update by the nearest orthogonal matrix, so that rare directions learn as fast as common ones. Its decay a step is
    set to be that of AdamW.
    """
    hidden = [p for p in model.encoder.layers.parameters() if p.ndim == 2] if config.optimizer == "muon" else []
    muons = set(hidden)
    others = [p for p in model.parameters() if p not in muons]
    groups = [
        {"params": [p for p in others if p.ndim >= 2], "weight_decay": config.weight_decay},
        {"params": [p for p in others if p.ndim < 2], "weight_decay": 0.0},
    ]
    betas = (config.beta1, config.beta2)
    optimizers: list[torch.optim.Optimizer] = [
        torch.optim.AdamW(groups, lr=config.learning_rate, betas=betas, fused=True)
    ]
    if hidden:
        decay = config.weight_decay * config.learning_rate / config.muon_learning_rate
        optimizers.append(Muon(hidden, lr=config.muon_learning_rate, weight_decay=decay))
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["peak_lr"] = group["lr"]
    return optimizers


def random_seed(seed: int, index: int) -> int:
    """Return a different number for every batch of every run."""
    return seed * 2**32 + index


def draw_batch(tokens: Tensor, index: int, config: TrainConfig) -> tuple[Tensor, Tensor]:
    """Cut the windows of one batch out of the text, at random places that the seed and the index alone decide.

    So the position in the data needs no memory: a resumed run goes on with the same batches, and so do two processes
    that share the work of one.

    Returns:
        Inputs and targets (one character later), both (B, T).
    """
    generator = torch.Generator().manual_seed(random_seed(config.seed, index))
    starts = torch.randint(len(tokens) - config.context_length, (config.batch_size, 1), generator=generator)
    windows = tokens[(starts + torch.arange(config.context_length + 1)).to(tokens.device)]
    return windows[:, :-1], windows[:, 1:]


class Training:
    """One training run: what it needs, what it has reached, and how it goes on.

    Everything random in step n follows from the seed and n, so the position is all that a checkpoint must remember
    besides weights and moments.

    Args:
        config: The recipe.
        corpus: The text.
        accelerator: Devices and processes (``accelerate.Accelerator``).
    """

    def __init__(self, config: TrainConfig, corpus: Corpus, accelerator: Any) -> None:
        self.config = config
        self.corpus = corpus
        self.accelerator = accelerator
        self.training_text = corpus.train.to(accelerator.device)
        self.validation_text = corpus.validation.to(accelerator.device)
        torch.manual_seed(config.seed)
        self.model = CharacterLM(len(corpus.vocabulary), config).to(accelerator.device)
        self.optimizers = make_optimizers(self.model, config)
        self.step = 0
        self.best_loss, self.best_step = math.inf, 0
        self.seconds = 0.0
        self.recent_losses: list[Tensor] = []

    @property
    def learning_rate(self) -> float:
        """AdamW's learning rate in the last step."""
        return self.optimizers[0].param_groups[0]["lr"]

    @property
    def characters_a_step(self) -> int:
        """Characters that one optimizer step learns from, over all processes."""
        config = self.config
        return config.batch_size * config.context_length * config.accumulation * self.accelerator.num_processes

    def learn(self, prepared: nn.Module) -> None:
        """Take one optimizer step.

        Args:
            prepared: The model as ``accelerator.prepare`` returned it.
        """
        config, accelerator = self.config, self.accelerator
        for group in (group for optimizer in self.optimizers for group in optimizer.param_groups):
            group["lr"] = group["peak_lr"] * schedule(self.step, config)
        for i in range(config.accumulation):
            # Counted over all processes: two of them draw what one would with twice the accumulation.
            index = (self.step * config.accumulation + i) * accelerator.num_processes + accelerator.process_index
            inputs, targets = draw_batch(self.training_text, index, config)
            torch.manual_seed(random_seed(config.seed, index))  # for dropout
            with accelerator.no_sync(prepared) if i < config.accumulation - 1 else nullcontext():
                loss = F.cross_entropy(prepared(inputs).flatten(0, 1), targets.flatten().long())
                accelerator.backward(loss / config.accumulation)
            self.recent_losses.append(loss.detach())
        if config.gradient_clip:
            accelerator.clip_grad_norm_(prepared.parameters(), config.gradient_clip)
        for optimizer in self.optimizers:
            optimizer.step()
            optimizer.zero_grad()
        self.step += 1

    def measure(self) -> float:
        """Measure the whole validation text, in nats a character, and keep the best.

        Raises:
            InputError: The loss is no longer a number.
        """
        loss = validation_loss(self.model, self.validation_text)
        if not math.isfinite(loss):
            raise InputError(
                f"Training diverged: the loss after step {self.step} is {loss}.", hint="a smaller --learning_rate"
            )
        if loss < self.best_loss:
            self.best_loss, self.best_step = loss, self.step
        return loss

    def mean_recent_loss(self) -> float:
        """Return the mean training loss since the last call, over all processes."""
        mean = self.accelerator.reduce(torch.stack(self.recent_losses).mean(), "mean").item()
        self.recent_losses.clear()
        return mean

    def out_of_patience(self) -> bool:
        """Tell whether the last ``patience`` measurements brought no new best."""
        config = self.config
        return bool(config.patience) and self.step - self.best_step >= config.patience * config.evaluate_every

    def save(self, path: Path, *, with_optimizer: bool) -> None:
        """Write a checkpoint: to go on from with the optimizer's moments, else to sample from."""
        tensors = {f"model.{name}": tensor for name, tensor in self.model.state_dict().items()}
        if with_optimizer:
            for i, optimizer in enumerate(self.optimizers):
                for index, moments in optimizer.state_dict()["state"].items():
                    tensors |= {f"optimizer{i}.{index}.{name}": tensor for name, tensor in moments.items()}
        state = {
            "step": self.step,
            "best_loss": self.best_loss,
            "best_step": self.best_step,
            "seconds": self.seconds,
            "recent_losses": [loss.item() for loss in self.recent_losses],
            "encoder": {f.name: getattr(self.config, f.name) for f in fields(EncoderConfig)},
            "recipe": self.recipe(),
            "vocabulary": self.corpus.vocabulary.characters,
        }
        save_checkpoint(path, tensors, state)

    def load(self, path: Path) -> None:
        """Go on from a checkpoint.

        Raises:
            InputError: It is damaged, or was trained with another recipe, text or vocabulary.
        """
        tensors, state = read_checkpoint(path)
        try:
            self._load(tensors, state, path)
        except InputError:
            raise
        except DAMAGE as error:
            raise InputError(f"{path} is damaged: {type(error).__name__}: {error}.") from None

    def _load(self, tensors: dict[str, Tensor], state: dict[str, Any], path: Path) -> None:
        recipe = self.recipe()
        changed = [key for key in recipe if state["recipe"].get(key) != recipe[key]]
        if changed:
            raise InputError(
                f"{path} was trained with another {', '.join(changed)}, so going on would not be the same run.",
                hint=f"{resume_flags(path.parent)}; or another --run",
            )
        load_weights(self.model, tensors, path)
        for i, optimizer in enumerate(self.optimizers):
            packed = optimizer.state_dict()
            for name, tensor in select(tensors, f"optimizer{i}.").items():
                index, _, moment = name.partition(".")
                packed["state"].setdefault(int(index), {})[moment] = tensor
            weights = sum(len(group["params"]) for group in optimizer.param_groups)
            moments = {tuple(sorted(packed["state"].get(index, {}))) for index in range(weights)}
            if len(packed["state"]) != weights or len(moments) != 1 or moments == {()}:
                raise ValueError("the optimizer's moments are not all there")
            optimizer.load_state_dict(packed)
        if not 0 < state["step"] <= self.config.steps:
            raise ValueError(f"step {state['step']}")
        self.step, self.seconds = int(state["step"]), float(state["seconds"])
        self.best_loss, self.best_step = float(state["best_loss"]), int(state["best_step"])
        self.recent_losses = [torch.tensor(loss, device=self.accelerator.device) for loss in state["recent_losses"]]

    def recipe(self) -> dict[str, Any]:
        """Return all that must stay the same for a run to go on exactly."""
        config = self.config
        keys = [f.name for f in fields(config) if f.metadata.get("recipe", True)]
        text = hashlib.sha256(self.corpus.train.numpy().tobytes() + self.corpus.validation.numpy().tobytes())
        return {
            **{key: getattr(config, key) for key in keys if key not in ("preset", "fused")},
            "seed": config.seed,
            "text": text.hexdigest(),
            "vocabulary": self.corpus.vocabulary.characters,
        }


def resume_flags(folder: Path) -> str:
    """Return the flags that go on with a run."""
    return f"--config {shlex.quote(str(folder / 'config.yaml'))} --run {shlex.quote(folder.name)} --resume true"


def train(config: TrainConfig) -> None:
    """Train a model; see :class:`TrainConfig`."""
    from accelerate import Accelerator
    from accelerate.utils import broadcast_object_list

    set_threads(config.threads)
    device = pick_device(config.device)
    bf16 = pick_dtype(config.dtype, device) == torch.bfloat16
    accelerator = Accelerator(cpu=device.type == "cpu", mixed_precision="bf16" if bf16 else "no")
    is_main = accelerator.is_main_process
    corpus = load_corpus(config.data, config.validation_fraction, config.context_length)
    training = Training(config, corpus, accelerator)
    last = OUTPUTS / PROJECT / config.run / "last.safetensors"
    finished = [name for name in ("best.safetensors", "results.json") if (last.parent / name).exists()]
    if config.resume and not last.exists() and finished:
        raise InputError(
            f"{last.parent} has {' and '.join(finished)}, but no {last.name} to go on from.", hint="another --run"
        )
    if config.resume and last.exists():  # before anything is written: a run that can't go on keeps its files
        training.load(last)
        logger.info("resumed %s after step %d", last.parent, training.step)
    run = Run(PROJECT, MODULE, "train", config, name=config.run, resume=config.resume) if is_main else None
    [folder] = broadcast_object_list([run.folder if run else None])
    last = folder / "last.safetensors"
    tracker = Tracker(folder, config.tracking, config=asdict(config), resume_step=training.step) if is_main else None
    prepared = accelerator.prepare(training.model)
    logger.info(
        f"{config.preset}: {sum(p.numel() for p in prepared.parameters()):,} parameters on {accelerator.device}; "
        f"{corpus.name}: {len(corpus.train):,} characters to learn from, {len(corpus.validation):,} to validate on, "
        f"{len(corpus.vocabulary)} different"
    )

    earlier_seconds, first_step = training.seconds, training.step
    clock = earlier_seconds - time.monotonic()
    stopped = training.out_of_patience()  # killed after its last step, before its results
    prepared.train()
    with StopRequest() as stop, progress_bar(disable=not is_main) as bar:
        task = bar.add_task("train", total=config.steps, completed=training.step, figures="")
        while training.step < config.steps and not stopped:
            training.learn(prepared)
            training.seconds = clock + time.monotonic()
            evaluates = training.step % config.evaluate_every == 0 or training.step == config.steps
            if evaluates or training.step % config.log_every == 0:
                speed = (training.step - first_step) * training.characters_a_step / (training.seconds - earlier_seconds)
                figures = {"train_loss": training.mean_recent_loss(), "learning_rate": training.learning_rate}
                text = f"loss {figures['train_loss']:.3f}  {speed:,.0f} characters/s"
                bar.update(task, completed=training.step, figures=text)
                if evaluates:
                    figures["validation_loss"] = training.measure()
                    training.seconds = clock + time.monotonic()
                    stopped = training.out_of_patience()
                if tracker:
                    tracker.log(training.step, **figures, characters_per_second=round(speed))
            if evaluates and is_main:
                logger.info("step %d: validation loss %.4f", training.step, figures["validation_loss"])
                if training.best_step == training.step:
                    training.save(folder / "best.safetensors", with_optimizer=False)
                training.save(last, with_optimizer=True)
            if _any_process(stop.requested, accelerator):
                if is_main:
                    training.save(last, with_optimizer=True)
                raise KeyboardInterrupt(
                    f"saved after step {training.step}; go on with\npython -m {MODULE} train {resume_flags(folder)}"
                )
    if run and tracker:
        tracker.close()
        report(training, run)
    accelerator.wait_for_everyone()  # a process that leaves early takes those with it that still write results
    accelerator.end_training()


def _any_process(requested: bool, accelerator: Any) -> bool:
    """Tell whether any process was asked to stop, so that none waits for one that has gone."""
    if accelerator.num_processes == 1:
        return requested
    return bool(accelerator.reduce(torch.tensor(float(requested), device=accelerator.device), "max"))


def report(training: Training, run: Run) -> None:
    """Finish a run: its results, its loss curve, and a sample of what it learned, on stdout."""
    config = training.config
    tensors, _ = read_checkpoint(run.folder / "best.safetensors")
    load_weights(training.model, tensors, run.folder / "best.safetensors")
    run.finish(
        model=config.preset,
        data=training.corpus.name,
        seed=config.seed,
        seconds=training.seconds,
        metrics={
            **text_figures(training.best_loss),
            "best_step": training.best_step,
            "steps": training.step,
            "parameters": sum(p.numel() for p in training.model.parameters()),
        },
    )
    plot_curves(
        read_metrics(run.folder / "metrics.jsonl"),
        {"train_loss": "training", "validation_loss": "validation, whole text"},
        run.folder / "loss.png",
        ylabel="cross-entropy, nats a character",
        title=training.corpus.name,
    )
    bits = training.best_loss / math.log(2)
    logger.info("validation loss %.4f nats = %.4f bits a character; saved in %s", training.best_loss, bits, run.folder)
    vocabulary = training.corpus.vocabulary
    start = training.validation_text[: min(config.context_length // 2, len(training.validation_text))]
    logger.info("what it writes behind the first %d characters of the validation text:", len(start))
    tokens = generate(training.model, start, 300, temperature=0.8, seed=config.seed)
    sys.stdout.write(vocabulary.decode(list(tokens)) + "\n")


def text_figures(loss: float) -> dict[str, float]:
    """Return a cross-entropy (nats a character) in the three units that people compare."""
    perplexity = math.exp(min(loss, 700))  # no float holds more
    return {"validation_loss": loss, "bits_per_character": loss / math.log(2), "perplexity": perplexity}


# --- The other commands -----------------------------------------------------------------------------------------------


@dataclass
class ModelConfig:
    """What every command on a trained model needs."""

    model: str = ""
    """A checkpoint, a run's folder, or a hub id; by default the newest run under outputs/."""
    device: str = field(default="auto", metadata=NOT_RECIPE)
    """auto, cpu, cuda or mps."""
    threads: int = field(default=0, metadata=NOT_RECIPE)
    """CPU threads; 0 leaves it to PyTorch."""
    run: str = field(default="", metadata=NOT_RECIPE)
    """Name of this run's own folder; by default the time."""

    def __post_init__(self) -> None:
        """Check the ranges."""
        check_range("threads", self.threads, 0, 1024)


@dataclass
class SampleConfig(ModelConfig):
    """Write text with a trained model: the prompt and its continuation go to stdout as they are drawn."""

    prompt: str = ""
    """Text to go on from; by default a new line."""
    length: int = 500
    """Characters to draw."""
    temperature: float = 0.8
    """Below 1 bolder, above 1 more random, 0 always the likeliest."""
    top_k: int = 0
    """Draw from the k likeliest only; 0 is all."""
    top_p: float = 1.0
    """Draw from the fewest likeliest that hold this much probability, in (0, 1]."""
    cache: bool = True
    """Keep keys and values of earlier characters (false: compute them again each time; same text, slower)."""
    seed: int = field(default=0, metadata=NOT_RECIPE)
    """Draws the same text again."""

    def __post_init__(self) -> None:
        """Check the ranges."""
        super().__post_init__()
        check_range("length", self.length, 0)
        check_range("temperature", self.temperature, 0)
        check_range("top_k", self.top_k, 0)
        check_range("top_p", self.top_p, 0, 1, open_low=True)
        check_range("seed", self.seed, 0, 2**63 - 1)


def sample(config: SampleConfig) -> None:
    """Draw a text; see :class:`SampleConfig`."""
    set_threads(config.threads)
    device = pick_device(config.device)
    model, vocabulary, _, name = load_model(config.model, device)
    prompt = config.prompt or ("\n" if "\n" in vocabulary.characters else vocabulary.characters[0])
    tokens = vocabulary.encode(prompt).to(device)
    run = Run(PROJECT, MODULE, "sample", config, name=config.run)
    text = config.prompt
    sys.stdout.write(text)
    started = time.monotonic()
    try:
        for token in generate(
            model,
            tokens,
            config.length,
            temperature=config.temperature,
            top_k=config.top_k,
            top_p=config.top_p,
            seed=config.seed,
            use_cache=config.cache,
        ):
            text += vocabulary.decode([token])
            sys.stdout.write(text[-1])
            sys.stdout.flush()
    finally:  # also what was drawn before Ctrl-C, or before a reader like `head` had enough
        write_atomic(run.folder / "sample.txt", text + "\n")
    seconds = time.monotonic() - started
    sys.stdout.write("\n")
    speed = config.length / max(seconds, 1e-9)
    logger.info("%d characters, %.0f a second; saved in %s", config.length, speed, run.folder)
    metrics = {"characters": config.length, "characters_per_second": speed}
    run.finish(model=name, data="prompt", seed=config.seed, metrics=metrics)


@dataclass
class EvaluateConfig(ModelConfig):
    """Measure a trained model on a text: cross-entropy, bits a character and perplexity."""

    data: str = ""
    """As for train; by default the validation part of the text that the model was trained on."""
    whole: bool = False
    """Measure the whole text, not only its validation part: for a text that the model has never seen."""


def evaluate(config: EvaluateConfig) -> None:
    """Measure a model; see :class:`EvaluateConfig`."""
    set_threads(config.threads)
    device = pick_device(config.device)
    model, vocabulary, state, name = load_model(config.model, device)
    corpus = load_corpus(config.data or state["recipe"]["data"], state["recipe"]["validation_fraction"])
    parts = [corpus.train, corpus.validation] if config.whole else [corpus.validation]
    text = "".join(corpus.vocabulary.decode(part.tolist()) for part in parts)
    tokens = vocabulary.encode(text).to(device)  # the model's own numbers
    run = Run(PROJECT, MODULE, "evaluate", config, name=config.run)
    figures = text_figures(validation_loss(model, tokens))
    run.finish(model=name, data=corpus.name, seed=0, metrics={**figures, "characters": len(tokens)})
    sys.stdout.write("".join(f"{key} {value:.4f}\n" for key, value in figures.items()))
    logger.info("%s on %s, %s characters; saved in %s", name, corpus.name, f"{len(tokens):,}", run.folder)


@dataclass
class AttentionConfig(ModelConfig):
    """Draw what each head of each layer looks at, as heat maps: rows are queries, columns the keys they attend to."""

    prompt: str | None = None
    """The text to look at, at most context_length characters; by default one that the model writes."""


def attention(config: AttentionConfig) -> None:
    """Draw a prompt's attention weights; see :class:`AttentionConfig`."""
    set_threads(config.threads)
    device = pick_device(config.device)
    model, vocabulary, _, name = load_model(config.model, device)
    prompt = config.prompt
    if prompt is None:
        prompt = vocabulary.decode(
            list(generate(model, torch.tensor([0], device=device), min(28, model.config.context_length)))
        )
    tokens = vocabulary.encode(prompt).to(device)
    check_range("length of the prompt", len(tokens), 1, model.config.context_length)
    weights: list[Tensor] = []
    with torch.inference_mode():
        model(tokens[None], weights=weights)
    run = Run(PROJECT, MODULE, "attention", config, name=config.run)
    path = run.folder / "attention.png"
    plot_attention([layer[0].float().cpu() for layer in weights], prompt, path)
    entropy = torch.stack([-torch.special.xlogy(w, w).sum(-1).mean() for w in weights]).mean().item()
    run.finish(model=name, data="prompt", seed=0, metrics={"mean_entropy_nats": entropy})
    logger.info("saved %s", path)


def plot_attention(layers: list[Tensor], prompt: str, path: Path) -> None:
    """Draw a grid of heat maps, a row a layer and a column a head.

    Args:
        layers: Attention weights (H, T, T) of each layer.
        prompt: The T characters.
        path: The PNG to write.
    """
    heads, length = layers[0].shape[:2]
    labels = [{"\n": "↵", " ": "·", "\t": "→"}.get(c, c) for c in prompt]
    side = max(2.2, min(length * 0.11, 6.0))
    size = 8 if length <= 12 else 5
    with drawing(path, heads * side, len(layers) * side) as figure:
        grid = figure.subplots(len(layers), heads, squeeze=False)
        for i, layer in enumerate(layers):
            for j, head in enumerate(layer):
                axes = grid[i][j]
                image = axes.imshow(head.numpy(), cmap="magma", vmin=0, vmax=1)
                axes.set_title(f"layer {i + 1}, head {j + 1}", fontsize=9)
                axes.set_xticks(range(length), labels, fontsize=size)
                axes.set_yticks(range(length), labels, fontsize=size)
                axes.tick_params(length=0, pad=1)
        figure.colorbar(image, ax=grid, shrink=0.5, label="attention weight")


if __name__ == "__main__":
    run_commands({"train": train, "sample": sample, "evaluate": evaluate, "attention": attention}, module=MODULE)
