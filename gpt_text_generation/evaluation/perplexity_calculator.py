r"""Perplexity of any text under any causal language model, with windows that overlap.

    perplexity = exp(−1/N · Σ log p(token_i | the tokens before it, as far as the model sees them))

A model sees ``context`` tokens. A long text is read in windows that begin ``stride`` tokens apart, and each token is
counted once, in the first window that holds it: so it has at least ``context − stride`` tokens before it. Stride 1 is
the exact figure and takes context times as long; stride = context is the cheapest and the worst, since the first token
of each window would be guessed from nothing and so is not counted. (The loop that transformers' documentation made
popular subtracts one token in every window, which is right for the first one only.)

Per token, per word and per byte are three different figures of the same surprise; only the last compares models with
different vocabularies. Tokens that are not counted are taken to be as surprising as the mean of the others:

    bits per byte = tokens of the text / bytes of the text · mean of −log2 p        Gao et al., 2020, arXiv:2101.00027

A word is what stands between white space, or one character of Chinese or Japanese, which have no blanks.

    python -m gpt_text_generation.evaluation.perplexity_calculator measure --model gpt2 --data book.txt --strides 512
"""

from __future__ import annotations

import math
import re
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from gpt_text_generation.evaluation.diversity_metrics import CJK
from shared.config import check_range, run_commands
from shared.errors import InputError
from shared.logs import progress_bar
from shared.results import Run
from shared.sources import load_text, resolve

if TYPE_CHECKING:
    from gpt_text_generation.text_generator import LanguageModel

PROJECT = "gpt_text_generation"
MODULE = "gpt_text_generation.evaluation.perplexity_calculator"
NOT_RECIPE = {"recipe": False}
WORD = re.compile(rf"[{CJK}]|[^\s{CJK}]+")


@dataclass(frozen=True)
class Window:
    """A stretch of a text's tokens that the model reads at once.

    Attributes:
        begin: Its first token.
        end: One past its last.
        counted: The first token that counts in it; those before were counted in earlier windows.
    """

    begin: int
    end: int
    counted: int


def windows(tokens: int, context: int, stride: int) -> Iterator[Window]:
    """Divide a text so that every token but the first of a window without context is counted exactly once.

    Args:
        tokens: Of the text.
        context: Most tokens of a window, >= 2.
        stride: Tokens from one window's end to the next one's, in [1, context].

    Raises:
        InputError: ``stride`` is outside its range.
    """
    check_range("context", context, 2)
    check_range("stride", stride, 1, context)
    counted = 1  # nothing comes before the first token
    end = min(context, tokens)
    while True:
        begin = max(0, end - context)
        first = max(counted, begin + 1)  # at stride = context the first token of a window has nothing before it
        if first < end:
            yield Window(begin, end, first)
        if end >= tokens:
            return
        counted, end = end, min(end + stride, tokens)


@dataclass(frozen=True)
class Perplexity:
    """What a model makes of a text.

    Attributes:
        nats: −Σ log p of the tokens that were counted.
        tokens: How many were.
        text_tokens: Of the text, counted or not.
        words: Of the text, divided at white space; each character of Chinese or Japanese is one.
        bytes: Of the text, in UTF-8.
    """

    nats: float
    tokens: int
    text_tokens: int
    words: int
    bytes: int

    @property
    def per_token(self) -> float:
        """exp(nats / tokens), what most papers call perplexity; depends on the vocabulary."""
        return _exp(self.nats / self.tokens)

    @property
    def per_word(self) -> float:
        """exp(nats of all the text / words), for papers that measure words."""
        return _exp(self._text_nats / max(1, self.words))

    @property
    def per_byte(self) -> float:
        """exp(nats of all the text / bytes), the same whatever the vocabulary."""
        return _exp(self._text_nats / max(1, self.bytes))

    @property
    def bits_per_byte(self) -> float:
        """How far the model would compress the text."""
        return self._text_nats / math.log(2) / max(1, self.bytes)

    @property
    def _text_nats(self) -> float:
        """What all tokens would have, if those that were not counted were as surprising as the others."""
        return self.nats / self.tokens * self.text_tokens

    def figures(self) -> dict[str, float]:
        """Return all of them, for tables."""
        return {"perplexity": self.per_token, "word_perplexity": self.per_word, "byte_perplexity": self.per_byte,
                "bits_per_byte": self.bits_per_byte, "tokens": self.tokens, "words": self.words,
                "bytes": self.bytes}  # fmt: skip


def _exp(exponent: float) -> float:
    return math.exp(exponent) if exponent < 700 else math.inf


def token_nats(
    language_model: LanguageModel, ids: Sequence[int], stride: int, *, context: int = 0, batch_size: int = 8,
    what: str = "",
) -> list[float]:  # fmt: skip
    """Return −log p of each token that is counted, in order; see :func:`windows`.

    Args:
        language_model: The model.
        ids: Of the text.
        stride: See :func:`windows`.
        context: Tokens of a window; 0 is all that the model sees.
        batch_size: Windows that are computed together; all but the last are of one length.
        what: Name of the progress bar; without one there is none.
    """
    import torch

    context = context or language_model.context
    todo = list(windows(len(ids), context, stride))
    found: list[float] = []
    tokens = torch.tensor(ids)
    with progress_bar(disable=not what) as bar, torch.inference_mode():
        task = bar.add_task(what, total=len(todo), figures="")
        for batch in _batches(todo, batch_size):
            input_ids = torch.stack([tokens[window.begin : window.end] for window in batch])  # (B, T)
            input_ids = input_ids.to(language_model.device)
            logits = language_model.model(input_ids=input_ids).logits[:, :-1].float()  # (B, T - 1, V)
            scores = logits.log_softmax(-1).gather(2, input_ids[:, 1:, None]).squeeze(2).cpu().double()
            for row, window in zip(scores, batch, strict=True):
                found += (-row[window.counted - window.begin - 1 :]).tolist()
            mean = sum(found) / len(found)
            bar.update(task, advance=len(batch), figures=f"perplexity {_exp(mean):.2f}")
    return found


def _batches(todo: Sequence[Window], batch_size: int) -> Iterator[list[Window]]:
    """Yield windows of one length together; only the last can be of another."""
    batch: list[Window] = []
    for window in todo:
        if batch and (len(batch) == batch_size or window.end - window.begin != batch[0].end - batch[0].begin):
            yield batch
            batch = []
        batch.append(window)
    if batch:
        yield batch


def perplexity(
    language_model: LanguageModel, text: str, *, stride: int = 0, context: int = 0, batch_size: int = 8, what: str = ""
) -> Perplexity:
    """Measure a text.

    Args:
        language_model: The model.
        text: Any; it begins with the model's first token where the model was trained so.
        stride: Tokens from window to window; 0 is half the context.
        context: Tokens of a window; 0 is all that the model sees.
        batch_size: Windows that are computed together.
        what: Name of the progress bar; without one there is none.

    Raises:
        InputError: The text has fewer than two tokens, or ``stride`` is above the context.
    """
    tokenizer = language_model.tokenizer
    length = getattr(tokenizer, "model_max_length", 0)
    tokenizer.model_max_length = 10**18  # a long text is no mistake here
    try:
        ids = tokenizer(text)["input_ids"]
    finally:
        tokenizer.model_max_length = length
    if len(ids) < 2:
        raise InputError(f"A text needs two tokens to be measured. Got {len(ids)}.")
    context = context or language_model.context
    if context > language_model.context:
        raise InputError(f"context must be in [2, {language_model.context}], which {language_model.name} sees. "
                         f"Got {context}.")  # fmt: skip
    nats = token_nats(language_model, ids, stride or max(1, context // 2), context=context, batch_size=batch_size,
                      what=what)  # fmt: skip
    text_tokens = len(ids) - (ids[0] == tokenizer.bos_token_id)
    words, size = len(WORD.findall(text)), len(text.encode("utf-8", "replace"))
    return Perplexity(math.fsum(nats), len(nats), text_tokens, words, size)


# --- Command ----------------------------------------------------------------------------------------------------------


@dataclass
class MeasureConfig:
    """Measure the perplexity of a text."""

    model: str = "builtin:stories"
    """builtin:stories, builtin:python, a folder or a hub id such as gpt2."""
    data: str = "builtin:stories"
    """builtin:stories or builtin:python (their held-out texts), a text file, or a data set of the hub."""
    split: str = "test"
    """Of a data set of the hub."""
    strides: list[int] = field(default_factory=list)
    """Tokens from window to window, one or several; by default half the context."""
    context: int = 0
    """Tokens of a window; 0 is all that the model sees."""
    characters: int = 0
    """Read only the first of the text; 0 reads all."""
    batch_size: int = field(default=8, metadata=NOT_RECIPE)
    """Windows that are computed together."""
    device: str = field(default="auto", metadata=NOT_RECIPE)
    """auto, cpu, cuda or mps."""
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    """auto is bfloat16 on GPUs that have it, float32 elsewhere."""
    threads: int = field(default=0, metadata=NOT_RECIPE)
    """CPU threads; 0 leaves it to PyTorch."""
    run: str = field(default="", metadata=NOT_RECIPE)
    """Name of the run's folder; by default the time."""

    def __post_init__(self) -> None:
        """Check the ranges."""
        for stride in self.strides:
            check_range("strides", stride, 1)
        if self.context:
            check_range("context", self.context, 2)
        check_range("characters", self.characters, 0)
        check_range("batch_size", self.batch_size, 1)
        check_range("threads", self.threads, 0)


def read_data(name: str, split: str) -> tuple[str, str]:
    """Return a text to measure, and what it was resolved as.

    Raises:
        InputError: There is no such split, or the text is empty.
    """
    from gpt_text_generation.builtin.train_models import CORPORA

    source = resolve(name, CORPORA)
    if source.origin == "builtin":
        return CORPORA[source.name].held_out(), str(source)
    splits = load_text(source, "builtin:stories")
    if source.origin == "path":
        split = "train"  # a file has one
    if split not in splits:
        raise InputError(f"{source} has no split {split}. It has {', '.join(splits)}.")
    return splits[split], str(source)


def measure(config: MeasureConfig) -> None:
    """Measure; see :class:`MeasureConfig`."""
    from gpt_text_generation.text_generator import load_model, set_threads_for

    set_threads_for(config.model, config.threads)
    text, data = read_data(config.data, config.split)
    text = text[: config.characters or None]
    language_model = load_model(config.model, config.device, config.dtype)
    run = Run(PROJECT, MODULE, "measure", config, name=config.run)
    metrics: dict[str, Any] = {}
    for stride in config.strides or [0]:
        found = perplexity(language_model, text, stride=stride, context=config.context, batch_size=config.batch_size,
                           what=f"stride {stride or 'half the context'}")  # fmt: skip
        figures = found.figures()
        metrics |= {f"{name} at stride {stride}" if stride else name: value for name, value in figures.items()}
        sys.stdout.write(f"stride {stride}\n" if stride else "")
        sys.stdout.write("".join(f"{name:16} {value:,.6g}\n" for name, value in figures.items()))
    run.finish(model=language_model.name, data=data, seed=0, metrics=metrics)


if __name__ == "__main__":
    run_commands({"measure": measure}, module=MODULE, extra="generation")
