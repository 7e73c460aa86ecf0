"""The two embedded models: GPT-2s of 3.6 million weights, trained here on texts that are made here.

    python -m gpt_text_generation.builtin.train_models train --model stories     # 45 minutes on 2 CPU cores
    python -m gpt_text_generation.builtin.train_models train --model python
    python -m gpt_text_generation.builtin.train_models evaluate --model python

Architecture: transformers' ``GPT2LMHeadModel`` and a byte-level BPE of 1,024 tokens. Texts are never the same twice:
each step makes new ones. Matrices learn by Muon (Jordan et al., 2024), the rest by AdamW.
"""

from __future__ import annotations

import json
import math
import sys
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from gpt_text_generation.builtin import python_tasks, stories
from shared.checkpoints import read_checkpoint, save_checkpoint, select
from shared.config import check_range, command_line, run_commands
from shared.errors import InputError
from shared.logs import progress_bar
from shared.results import OUTPUTS, Run, check_resumable, write_atomic
from shared.runtime import StopRequest, hardware, set_threads
from shared.tracking import Tracker

if TYPE_CHECKING:
    from torch import Tensor

PROJECT = "gpt_text_generation"
MODULE = "gpt_text_generation.builtin.train_models"
BUILTIN = Path(__file__).parent
CHECKPOINT = "checkpoint.safetensors"
END = "<|endoftext|>"
CONTEXT, VOCABULARY = 256, 1024
NOT_RECIPE = {"recipe": False}


@dataclass(frozen=True)
class Corpus:
    """Texts that are made by code.

    Attributes:
        texts: (split, count, seed) → texts; ``train``, ``validation`` or ``test``.
    """

    texts: Callable[[str, int, int], Iterator[str]]

    def held_out(self, count: int = 200) -> str:
        """Return texts of the test split, the end token between them."""
        return END.join(self.texts("test", count, 0))


CORPORA = {
    "stories": Corpus(lambda split, count, seed: stories.stories(count, seed, split)),
    "python": Corpus(lambda split, count, seed: map(python_tasks.document, python_tasks.tasks(split, count, seed))),
}


ABOUT = {
    "stories": {
        "what": "Short stories in English: name, place, problem and a way out, after a title or a first sentence.",
        "data": "`stories.py`, a grammar of 25 problems. No combination of name, place and problem of the test split "
        "stands in the training split.",
        "limits": "It knows the words and turns of that grammar and no others; what a prompt says beyond them is soon "
        "forgotten. Not for children unsupervised, not for facts.",
    },
    "python": {
        "what": "Python functions of one to three steps on numbers, texts, lists and dictionaries, after a docstring.",
        "data": "`python_tasks.py`, an algebra of typed operations. No composition of the test split stands in the "
        "training split.",
        "limits": "It knows the operations of that algebra, in the words that it says them with. Run what it writes in "
        "a sandbox.",
    },
}


@dataclass
class TrainConfig:
    """Train one of the embedded models, and put it in its place."""

    model: Literal["stories", "python"] = "stories"
    """Which one."""
    layers: int = 5
    """Blocks, >= 1."""
    width: int = 192
    """Width of the model, a multiple of 32."""
    steps: int = 5000
    """Steps, >= 1."""
    tokens: int = 2048
    """Tokens of a step, a multiple of the context of 256."""
    learning_rate: float = 0.02
    """Of the matrices, by Muon, > 0; AdamW's is a tenth of it."""
    output: str = field(default="", metadata=NOT_RECIPE)
    """Folder of the model; by default its place in the package."""
    seed: int = field(default=0, metadata=NOT_RECIPE)
    """Of weights and texts."""
    threads: int = field(default=0, metadata=NOT_RECIPE)
    """CPU threads; 0 leaves it to PyTorch."""
    run: str = field(default="", metadata=NOT_RECIPE)
    """Name of the run's folder; by default the time."""
    resume: bool = field(default=False, metadata=NOT_RECIPE)
    """Go on where the run of this name stopped."""
    tracking: Literal["none", "wandb"] = field(default="none", metadata=NOT_RECIPE)
    """Mirror the figures to Weights & Biases."""

    def __post_init__(self) -> None:
        """Check the ranges."""
        for name in ("layers", "steps"):
            check_range(name, getattr(self, name), 1)
        check_range("learning_rate", self.learning_rate, 0, open_low=True)
        check_range("threads", self.threads, 0)
        check_range("seed", self.seed, 0, 2**31)
        if self.width % 32 or self.width < 32:
            raise InputError(f"width must be a multiple of 32. Got {self.width}.")
        if self.tokens % CONTEXT or self.tokens < CONTEXT:
            raise InputError(f"tokens must be a multiple of {CONTEXT}. Got {self.tokens}.")
        if self.resume and not self.run:
            raise InputError("resume needs the name of the run.", hint="--run NAME --resume true")


def train_tokenizer(texts: Sequence[str]) -> Any:
    """Train a byte-level BPE, in which every text can be written; it begins each with ``<|endoftext|>``.

    Line breaks are tokens of their own, so that a prompt that ends with one has the tokens that its whole text has.
    GPT-2's rule would join them with the blanks that follow: after the prompt, the model would see what it never saw.
    """
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([
        pre_tokenizers.Split("\n", "isolated"), pre_tokenizers.ByteLevel(add_prefix_space=False),
    ])  # fmt: skip
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(vocab_size=VOCABULARY, special_tokens=[END], show_progress=False,
                                  initial_alphabet=pre_tokenizers.ByteLevel.alphabet())  # fmt: skip
    tokenizer.train_from_iterator(texts, trainer)
    begin = (END, tokenizer.token_to_id(END))
    tokenizer.post_processor = processors.TemplateProcessing(single=f"{END} $A", special_tokens=[begin])
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token=END, eos_token=END, model_max_length=CONTEXT)


def new_model(config: TrainConfig, tokenizer: Any) -> Any:
    """Return an untrained GPT-2 whose texts begin and end with ``<|endoftext|>``."""
    import torch
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(config.seed)
    end = tokenizer.eos_token_id
    return GPT2LMHeadModel(GPT2Config(
        vocab_size=len(tokenizer), n_positions=CONTEXT, n_embd=config.width, n_layer=config.layers,
        n_head=config.width // 32, activation_function="gelu_pytorch_tanh",  # GPT-2's own, and faster
        resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0, bos_token_id=end, eos_token_id=end,
    ))  # fmt: skip


def batches(corpus: Corpus, tokenizer: Any, rows: int, seed: int) -> Iterator[Tensor]:
    """Yield ids (rows, context) for ever: new texts, each behind an end token, one after the other."""
    import torch

    waiting: list[int] = []
    needed = rows * CONTEXT
    number = 0
    while True:
        while len(waiting) < needed:
            texts = list(corpus.texts("train", 64, seed * 1_000_003 + number))
            number += 1
            for ids in tokenizer(texts, verbose=False)["input_ids"]:
                waiting += ids
        yield torch.tensor(waiting[:needed]).view(rows, CONTEXT)
        waiting = waiting[needed:]


def share_of_rate(step: int, total: int) -> float:
    """Rise over the first 2 % of steps, hold, fall to 0 over the last 40 % (Hägele et al., 2024, arXiv:2405.18392)."""
    rising, falling = max(1, total // 50), max(1, round(total * 0.4))
    return min(1.0, (step + 1) / rising, (total - step) / falling)


def train(config: TrainConfig) -> None:
    """Train; see :class:`TrainConfig`."""
    import torch
    from torch.nn.functional import cross_entropy

    from shared.muon import Muon

    set_threads(config.threads)
    corpus = CORPORA[config.model]
    if config.resume:
        check_resumable(OUTPUTS / PROJECT / config.run, config, also=("seed",))
    run = Run(PROJECT, MODULE, "train", config, name=config.run, resume=config.resume)
    tokenizer = train_tokenizer(list(corpus.texts("train", 3000, 0)))
    model = new_model(config, tokenizer)
    hidden = [weight for weight in model.transformer.h.parameters() if weight.ndim == 2]
    known = {id(weight) for weight in hidden}
    others = [weight for weight in model.parameters() if id(weight) not in known]
    optimizers: dict[str, Any] = {
        "muon": Muon(hidden, lr=config.learning_rate),
        "adamw": torch.optim.AdamW(others, lr=config.learning_rate / 10, betas=(0.9, 0.95), weight_decay=0.0),
    }
    rates = {name: one.param_groups[0]["lr"] for name, one in optimizers.items()}
    done, seconds = _load(run.folder / CHECKPOINT, model, optimizers)
    tracker = Tracker(run.folder, config.tracking, config=asdict(config), resume_step=done)
    rows = config.tokens // CONTEXT
    started = saved = time.monotonic()
    source = batches(corpus, tokenizer, rows, config.seed + 1)
    for _ in range(done):  # the texts of the steps that are done
        next(source)
    with StopRequest() as stop, progress_bar() as bar:
        task = bar.add_task(config.model, total=config.steps, completed=done, figures="")
        for step in range(done, config.steps):
            share = share_of_rate(step, config.steps)
            for name, optimizer in optimizers.items():
                optimizer.param_groups[0]["lr"] = rates[name] * share
            ids = next(source)
            logits = model(input_ids=ids).logits[:, :-1]  # (B, T - 1, V)
            loss = cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten())
            loss.backward()
            torch.nn.utils.clip_grad_norm_(others, 1.0)
            for optimizer in optimizers.values():
                optimizer.step()
                optimizer.zero_grad()
            if not math.isfinite(loss.item()):
                raise InputError(f"The training diverged: the loss is {loss.item()}.", hint="a smaller --learning_rate")
            if step % 20 == 0 or step + 1 == config.steps:
                tracker.log(step + 1, loss=loss.item(), share_of_rate=share)
            bar.update(task, completed=step + 1, figures=f"loss {loss.item():.3f}")
            if stop.requested or time.monotonic() - saved > 120:
                _save(run.folder / CHECKPOINT, model, optimizers, step + 1, seconds + time.monotonic() - started)
                saved = time.monotonic()
            if stop.requested and step + 1 < config.steps:
                raise KeyboardInterrupt(f"after {step + 1} steps; the same with --run {run.folder.name} --resume true "
                                        "goes on")  # fmt: skip
    tracker.close()
    seconds += time.monotonic() - started
    folder = Path(config.output) if config.output else BUILTIN / config.model
    model.to(torch.bfloat16).save_pretrained(folder)  # half the size, and nothing measurable lost
    tokenizer.save_pretrained(folder)
    metrics = held_out_figures(config.model, folder)
    write_atomic(folder / "README.md", card(config, metrics, seconds))
    run.finish(model=f"builtin:{config.model}", data=f"builtin:{config.model}", seed=config.seed, metrics=metrics,
               seconds=seconds)  # fmt: skip
    (run.folder / CHECKPOINT).unlink(missing_ok=True)
    sys.stdout.write("".join(f"{name} {value:.4g}\n" for name, value in metrics.items()))
    sys.stdout.write(f"{folder}\n")


def card(config: TrainConfig, metrics: dict[str, float], seconds: float) -> str:
    """Write the model card."""
    its = ABOUT[config.model]
    figures = "".join(f"| {name} | {value:.4g} |\n" for name, value in metrics.items())
    return f"""# builtin:{config.model}

{its["what"]}
GPT-2's architecture (transformers' `GPT2LMHeadModel`), {config.layers} layers of width {config.width},
context {CONTEXT}, a byte-level BPE of {VOCABULARY:,} tokens; weights in bfloat16.

- **Rebuild:** `{command_line(MODULE, "train", config)} --threads {config.threads}`
- **Data:** {its["data"]} Made anew for each step; nothing that people wrote.
- **Recipe:** {config.steps:,} steps of {config.tokens:,} tokens, Muon {config.learning_rate:g} and
  AdamW {config.learning_rate / 10:g}, falling over the last 40 %; seed {config.seed}.
- **Took:** {seconds / 60:.0f} minutes with `--threads {config.threads}`, beside other work, on {hardware()}.

| figure on held-out texts | |
|---|---|
{figures}
{its["limits"]}
"""


def _save(path: Path, model: Any, optimizers: dict[str, Any], step: int, seconds: float) -> None:
    tensors = {f"model.{name}": tensor for name, tensor in model.state_dict().items() if name != "lm_head.weight"}
    for which, optimizer in optimizers.items():
        for number, state in optimizer.state_dict()["state"].items():
            tensors |= {f"{which}.{number}.{name}": value for name, value in state.items()}
    clones = {name: tensor.detach().clone() for name, tensor in tensors.items()}
    save_checkpoint(path, clones, {"step": step, "seconds": seconds})


def _load(path: Path, model: Any, optimizers: dict[str, Any]) -> tuple[int, float]:
    """Go on from a checkpoint; returns the steps done and their seconds, 0 where there is none."""
    if not path.exists():
        return 0, 0.0
    tensors, state = read_checkpoint(path)
    model.load_state_dict(select(tensors, "model."), strict=False)  # the head is the embedding
    for which, optimizer in optimizers.items():
        moments: dict[int, dict[str, Any]] = defaultdict(dict)
        for name, tensor in select(tensors, f"{which}.").items():
            number, _, key = name.partition(".")
            moments[int(number)][key] = tensor
        optimizer.load_state_dict({**optimizer.state_dict(), "state": dict(moments)})
    return int(state["step"]), float(state["seconds"])


# --- Figures ----------------------------------------------------------------------------------------------------------


class NgramModel:
    """An interpolated n-gram model of tokens, what a language model must beat (Witten and Bell, 1991).

    p(w | h) = (c(h w) + u(h) · p(w | shorter h)) / (c(h) + u(h)), u(h) being how many different tokens follow h.

    Args:
        order: n.
        vocabulary: Tokens there are; below the unigrams all are as likely.
    """

    def __init__(self, order: int, vocabulary: int) -> None:
        self.order, self.vocabulary = order, vocabulary
        self.followers: dict[tuple[int, ...], Counter[int]] = defaultdict(Counter)

    def learn(self, ids: Sequence[int]) -> None:
        """Count a text."""
        for place, token in enumerate(ids):
            for size in range(min(self.order - 1, place) + 1):
                self.followers[tuple(ids[place - size : place])][token] += 1

    def probability(self, history: Sequence[int], token: int) -> float:
        """Return p(token | history)."""
        found = 1 / self.vocabulary
        for size in range(min(self.order - 1, len(history)) + 1):
            counts = self.followers.get(tuple(history[len(history) - size :]))
            if counts:
                total, kinds = counts.total(), len(counts)
                found = (counts[token] + kinds * found) / (total + kinds)
        return found

    def nats(self, ids: Sequence[int]) -> float:
        """Return −Σ log p of all but the first token."""
        return -sum(math.log(self.probability(ids[max(0, i - self.order + 1) : i], ids[i])) for i in range(1, len(ids)))


def held_out_figures(name: str, folder: Path | None = None) -> dict[str, float]:
    """Measure a model on its test split; see :func:`evaluate`."""
    from gpt_text_generation.evaluation.perplexity_calculator import perplexity
    from gpt_text_generation.text_generator import Settings, TextGenerator, load_model

    language_model = load_model(str(folder) if folder else f"builtin:{name}")
    text = CORPORA[name].held_out()
    figures = {"perplexity": perplexity(language_model, text, what="perplexity").per_token}
    generator = TextGenerator(language_model, batch_size=32)
    if name == "stories":
        prompts = list(stories.prompts("test", 200, 0))
        made = generator.generate(
            [one.text for one in prompts], Settings(max_new_tokens=220, top_p=0.9), what="stories"
        )
        kept = [stories.check(one.text + its.text, one.name, one.place)
                for one, its in zip(prompts, made, strict=True)]  # fmt: skip
        figures["keeps_name_and_place"] = sum(kept) / len(kept)
        figures["ended"] = sum(its.finish == "end" for its in made) / len(made)
        ngrams = NgramModel(5, VOCABULARY)
        tokenizer = language_model.tokenizer
        for ids in tokenizer(list(CORPORA[name].texts("train", 20_000, 5)), verbose=False)["input_ids"]:
            ngrams.learn(ids)
        ids = tokenizer(text, verbose=False)["input_ids"]
        figures["five_gram_perplexity"] = math.exp(ngrams.nats(ids) / (len(ids) - 1))
    else:
        from gpt_text_generation.code_generator import run_tests

        tasks = list(python_tasks.tasks("test", 300, 0))
        made = generator.generate([task.prompt for task in tasks],
                                  Settings("greedy", max_new_tokens=120), what="tasks")  # fmt: skip
        passed = [run_tests(task.prompt + its.text, task.tests, entry_point=task.entry_point).passed
                  for task, its in zip(tasks, made, strict=True)]  # fmt: skip
        figures["pass_at_1"] = sum(passed) / len(passed)
    return figures


@dataclass
class EvaluateConfig:
    """Measure an embedded model on texts that it has not learned from."""

    model: Literal["stories", "python"] = "stories"
    """Which one."""
    folder: str = ""
    """Where it lies; by default its place in the package."""
    run: str = field(default="", metadata=NOT_RECIPE)
    """Name of the run's folder; by default the time."""


def evaluate(config: EvaluateConfig) -> None:
    """Measure; see :class:`EvaluateConfig`."""
    run = Run(PROJECT, MODULE, "evaluate", config, name=config.run)
    metrics = held_out_figures(config.model, Path(config.folder) if config.folder else None)
    name = f"builtin:{config.model}"
    run.finish(model=config.folder or name, data=name, seed=0, metrics=metrics)
    sys.stdout.write(json.dumps(metrics, indent=2) + "\n")


if __name__ == "__main__":
    run_commands({"train": train, "evaluate": evaluate}, module=MODULE, extra="generation")
