"""Decoding: how a causal language model's probabilities become text, in eight ways, for one prompt or many.

    python -m gpt_text_generation.text_generator generate --prompt "Maya lived by the sea."
    python -m gpt_text_generation.text_generator generate --model gpt2 --strategy min_p --prompt "Once upon a time"
    python -m gpt_text_generation.text_generator compare

A row of a batch is what it would be alone. Prompts are padded on the left and the padding is masked, counted in no
position and penalized by nothing; and each row draws from a generator of its own. A draw is the argmax of
log p + Gumbel noise, which is distributed as p (Gumbel, 1954; Maddison et al., 2014, arXiv:1411.0030), so that
sampling is greedy search on noisy scores and needs no other loop than transformers' own.

Holtzman et al. (2019, arXiv:1904.09751) tell why greedy and beam search repeat themselves and what nucleus sampling
does about it; ``compare`` shows it in figures.
"""

from __future__ import annotations

import inspect
import json
import logging
import math
import queue
import sys
import threading
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

from shared.config import check_range, run_commands
from shared.errors import InputError
from shared.logs import progress_bar
from shared.results import Run, write_atomic
from shared.runtime import pick_device, pick_dtype, set_threads
from shared.sources import loading_errors, resolve

if TYPE_CHECKING:
    import torch
    from torch import Tensor
    from transformers import GenerationConfig

PROJECT = "gpt_text_generation"
MODULE = "gpt_text_generation.text_generator"
BUILTIN = Path(__file__).parent / "builtin"
BUILTINS = ("stories", "python")
NOT_RECIPE = {"recipe": False}
Strategy = Literal["greedy", "beam_search", "sampling", "top_k", "nucleus", "min_p", "typical", "penalized"]
STRATEGIES: tuple[Strategy, ...] = get_args(Strategy)
LOADING = threading.Lock()  # transformers can't load two models at once, and leaves weights of one of them out
DRAWING = ("sampling", "top_k", "nucleus", "min_p", "typical")
logger = logging.getLogger(MODULE)


# --- Settings ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Settings:
    """How text is decoded.

    Attributes:
        strategy: ``greedy`` takes the likeliest token. ``penalized`` does too, after dividing the scores of tokens that
            are there already (Keskar et al., 2019, arXiv:1909.05858). ``beam_search`` looks for the likeliest text with
            ``num_beams`` candidates. ``sampling`` draws from all tokens, ``top_k`` from the k likeliest (Fan et al.,
            2018, arXiv:1805.04833), ``nucleus`` from the fewest that hold ``top_p`` of the probability, ``min_p`` from
            those at least ``min_p`` times as likely as the likeliest (Nguyen et al., 2024, arXiv:2407.01082),
            ``typical`` from those whose surprise is near the expected one (Meister et al., 2022, arXiv:2202.00666).
        max_new_tokens: Longest text, in tokens, >= 1.
        temperature: Divides the scores before a draw, > 0; below 1 the likely become likelier.
        top_k: Of ``top_k``, >= 1.
        top_p: Of ``nucleus``, in (0, 1].
        min_p: Of ``min_p``, in (0, 1].
        typical_p: Of ``typical``, in (0, 1).
        num_beams: Of ``beam_search``, >= 2.
        repetition_penalty: > 0, with any strategy; above 1 what is there already gets less likely. ``penalized`` takes
            1.3 where this is 1.
        stop: Text ends before the first of these.
        seed: Row i of a call draws with seed + i, whatever else is in the batch.

    Raises:
        InputError: A value is outside its range, or contradicts another.
    """

    strategy: Strategy = "nucleus"
    max_new_tokens: int = 128
    temperature: float = 1.0
    top_k: int = 50
    top_p: float = 0.9
    min_p: float = 0.05
    typical_p: float = 0.9
    num_beams: int = 4
    repetition_penalty: float = 1.0
    stop: tuple[str, ...] = ()
    seed: int = 0

    def __post_init__(self) -> None:
        """Check the ranges."""
        if self.strategy not in STRATEGIES:
            raise InputError(f"strategy must be one of {', '.join(STRATEGIES)}. Got {self.strategy!r}.")
        check_range("max_new_tokens", self.max_new_tokens, 1)
        if self.temperature == 0:
            raise InputError("temperature must be above 0.", hint="strategy greedy is what temperature 0 would be")
        check_range("temperature", self.temperature, 0, open_low=True)
        check_range("top_k", self.top_k, 1)
        for name in ("top_p", "min_p"):
            check_range(name, getattr(self, name), 0, 1, open_low=True)
        check_range("typical_p", self.typical_p, 0, 0.9999, open_low=True)
        check_range("num_beams", self.num_beams, 2)
        check_range("repetition_penalty", self.repetition_penalty, 0, open_low=True)
        check_range("seed", self.seed, 0, 2**62)
        if isinstance(self.stop, str) or not all(isinstance(one, str) and one for one in self.stop):
            raise InputError(f"stop must be texts that are not empty. Got {self.stop!r}.")

    @property
    def draws(self) -> bool:
        """Whether chance has a part in it."""
        return self.strategy in DRAWING

    @property
    def penalty(self) -> float:
        """The repetition penalty that is applied."""
        return 1.3 if self.strategy == "penalized" and self.repetition_penalty == 1 else self.repetition_penalty

    def generation_config(self) -> GenerationConfig:
        """Return transformers' ``GenerationConfig`` of the same; stop strings and seeds are no part of it."""
        from transformers import GenerationConfig

        own = {"top_k": {"top_k": self.top_k}, "nucleus": {"top_p": self.top_p}, "min_p": {"min_p": self.min_p},
               "typical": {"typical_p": self.typical_p}}.get(self.strategy, {})  # fmt: skip
        drawing: dict[str, Any] = {"temperature": self.temperature, "top_k": 0, **own} if self.draws else {}
        return GenerationConfig(
            max_new_tokens=self.max_new_tokens, do_sample=self.draws, repetition_penalty=self.penalty,
            num_beams=self.num_beams if self.strategy == "beam_search" else 1, **drawing,
        )  # fmt: skip


@dataclass(frozen=True)
class Generation:
    """What a model wrote after a prompt.

    Attributes:
        prompt: The prompt.
        text: What came after it, up to the stop string.
        token_ids: The tokens that were drawn, the end token and those of the stop string among them.
        log_probabilities: Of each of them under the model, before anything was scaled, cut or penalized; nats.
        finish: ``end``, the model ended the text; ``stop``, a stop string came; ``length``, there was no more room.
    """

    prompt: str
    text: str
    token_ids: list[int]
    log_probabilities: list[float]
    finish: Literal["end", "stop", "length"]


# --- Models -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class LanguageModel:
    """A causal language model with its tokenizer.

    Attributes:
        model: An ``AutoModelForCausalLM``.
        tokenizer: Its tokenizer.
        name: What it was resolved as.
        context: Most tokens that it sees.
    """

    model: Any
    tokenizer: Any
    name: str
    context: int

    @property
    def device(self) -> torch.device:
        """Where it computes."""
        device: torch.device = self.model.device
        return device

    def encode(self, text: str) -> list[int]:
        """Return the ids of a text, behind the token that begins one where the model was trained with it.

        A text that begins with that token, as many chat templates write it, has it once.

        Raises:
            InputError: It is empty, and the model has no token to begin with.
        """
        text, begin = text.encode("utf-8", "replace").decode(), self.tokenizer.bos_token_id
        begun = begin is not None and text.startswith(self.tokenizer.bos_token)
        ids: list[int] = self.tokenizer(text, add_special_tokens=not begun, verbose=False)["input_ids"]
        if not ids and begin is not None:
            ids = [begin]
        if not ids:
            raise InputError(f"The prompt is empty, and {self.name} has no token to begin with.", hint="a prompt")
        return ids

    def ends(self) -> set[int]:
        """Return the ids that end a text."""
        ids = self.model.generation_config.eos_token_id
        return set() if ids is None else {ids} if isinstance(ids, int) else set(ids)


def load_model(name: str, device: str = "auto", dtype: str = "auto") -> LanguageModel:
    """Load a causal language model.

    Args:
        name: ``builtin:stories`` or ``builtin:python``, a folder, or a hub id such as ``gpt2``.
        device: ``auto``, ``cpu``, ``cuda`` or ``mps``.
        dtype: ``auto``, ``float32`` or ``bfloat16``; 16 bits move logits a little when rows are padded.

    Raises:
        InputError: It is no causal language model.
        HubError: The hub can't be reached or does not have it.
        MemoryError: It does not fit.
    """
    from transformers import AutoModelForCausalLM, AutoTokenizer

    source = resolve(name, BUILTINS)
    place = str(BUILTIN / source.name) if source.origin == "builtin" else source.name
    where = pick_device(device)
    options: dict[str, Any] = {"revision": source.revision} if source.revision else {}

    with LOADING, loading_errors(source, "builtin:stories"):
        model = AutoModelForCausalLM.from_pretrained(place, dtype=pick_dtype(dtype, where), **options)
        tokenizer = AutoTokenizer.from_pretrained(place, **options)
    if not tokenizer("a")["input_ids"]:
        raise InputError(f"{source} has no tokenizer that can be read.", hint="tokenizer.json in the same folder")
    config = model.config
    context = getattr(config, "max_position_embeddings", None) or getattr(config, "n_positions", None) or 2**20
    return LanguageModel(model.to(where).eval(), tokenizer, str(source), int(context))


def set_threads_for(model: str, threads: int = 0) -> None:
    """Set PyTorch's threads; 0 is one for the embedded models, whose steps are too small to share."""
    set_threads(threads or int(model.startswith("builtin:")))


# --- Decoding ---------------------------------------------------------------------------------------------------------


class Recorder:
    """Keeps the log-probability, under the model, of each token that was chosen.

    Scores wait until there are ``MAX_HELD`` of them: of a small model, all steps are then worked out at once.
    """

    MAX_HELD = 1 << 22  # numbers; 16 MB

    def __init__(self) -> None:
        self.blocks: list[Tensor] = []
        self.held: list[Tensor] = []  # scores (B, V) of the last steps

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """Look at the scores (B, V) of the token that will follow ``input_ids`` (B, T); changes nothing."""
        if len(self.held) * scores.numel() >= self.MAX_HELD:
            self.take(input_ids)
        self.held.append(scores)
        return scores

    def take(self, input_ids: Tensor) -> None:
        """Note the log-probabilities of the tokens that were chosen since the last time, the last of (B, T)."""
        import torch

        if self.held:
            scores = torch.stack(self.held, 1)  # (B, S, V)
            chosen = input_ids[:, -len(self.held) :, None]
            self.blocks.append((scores.gather(2, chosen) - scores.logsumexp(2, keepdim=True))[..., 0])
            self.held = []

    def rows(self, input_ids: Tensor) -> list[list[float]]:
        """Return them as B lists, once ``input_ids`` (B, T) are all there."""
        import torch

        self.take(input_ids)
        found: list[list[float]] = torch.cat(self.blocks, 1).tolist()
        return found


class Penalty:
    """transformers' repetition penalty without a word on the padding, which it would take for tokens of the text."""

    def __init__(self, penalty: float, attention_mask: Tensor) -> None:
        from transformers import RepetitionPenaltyLogitsProcessor

        self.processor, self.mask = RepetitionPenaltyLogitsProcessor(penalty), attention_mask.bool()

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """Scale the scores (B, V) of what is in ``input_ids`` (B, T)."""
        import torch

        width = self.mask.shape[1]
        first = input_ids.gather(1, self.mask.int().argmax(1, keepdim=True))  # (B, 1), the prompt's first token
        prompt = torch.where(self.mask, input_ids[:, :width], first)  # twice the same token counts once
        return self.processor(torch.cat([prompt, input_ids[:, width:]], 1), scores)


class GumbelNoise:
    """Makes the argmax a draw, for each row from a generator of its own."""

    def __init__(self, seeds: Sequence[int]) -> None:
        import torch

        self.generators = [torch.Generator().manual_seed(seed) for seed in seeds]

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """Add noise to the scores (B, V)."""
        import torch

        noise = torch.empty(scores.shape)
        for row, generator in zip(noise, self.generators, strict=True):
            row.exponential_(generator=generator)  # −log of an exponential variable is a Gumbel variable
        return scores - noise.log().to(scores.device)


class InTurn:
    """Processors, one after the other, as one: transformers looks up the signature of each that it has, every token."""

    def __init__(self, processors: Sequence[Any]) -> None:
        self.processors = processors

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """Let each change the scores (B, V)."""
        for processor in self.processors:
            scores = processor(input_ids, scores)
        return scores

    # Found out once: transformers asks for it before every token, which costs more than a small model's layer.
    __call__.__signature__ = inspect.signature(__call__)  # type: ignore[attr-defined]


class StopAt:
    """Ends each row whose text holds a stop string, and all when it was told to."""

    def __init__(self, tokenizer: Any, stop: Sequence[str], prompt_width: int) -> None:
        self.tokenizer, self.stop, self.width = tokenizer, stop, prompt_width
        self.tail = max((len(one.encode()) for one in stop), default=0) + 8  # tokens: each is a byte at least
        self.cancelled = threading.Event()

    def __call__(self, input_ids: Tensor, scores: Any, **_: Any) -> Tensor:
        """Return which rows of ``input_ids`` (B, T) are done, (B,)."""
        import torch

        done = torch.full((len(input_ids),), self.cancelled.is_set(), device=input_ids.device)
        if self.stop:
            first = max(self.width, input_ids.shape[1] - self.tail)
            texts = [text_after(self.tokenizer, row[:first], row[first:]) for row in input_ids.tolist()]
            done |= torch.tensor([first_stop(text, self.stop) >= 0 for text in texts], device=input_ids.device)
        return done


def text_after(tokenizer: Any, before: Sequence[int], ids: Sequence[int]) -> str:
    """Return the text that tokens add to that of those before; alone they may lose a blank, as Llama's do."""
    before = before[-8:]
    start: str = tokenizer.decode(before, skip_special_tokens=True)
    whole: str = tokenizer.decode([*before, *ids], skip_special_tokens=True)
    return whole[len(start) :]


def first_stop(text: str, stop: Sequence[str]) -> int:
    """Return where the first stop string begins, −1 where there is none."""
    return min((place for one in stop if (place := text.find(one)) >= 0), default=-1)


def held_back(text: str, stop: Sequence[str]) -> int:
    """Return how many characters at the end of a text may be the beginning of a stop string, or of a letter."""
    broken = len(text) - len(text.rstrip("\ufffd"))  # bytes of a letter whose others are yet to come
    beginnings = (size for one in stop for size in range(1, len(one)) if text.endswith(one[:size]))
    return max(broken, max(beginnings, default=0))


class TextGenerator:
    """Writes text with any causal language model.

    Args:
        model: See :func:`load_model`; or one that is loaded.
        device: See :func:`load_model`.
        dtype: See :func:`load_model`.
        batch_size: Most prompts that are computed together.

    Attributes:
        name: What the model was resolved as.
    """

    def __init__(
        self, model: str | LanguageModel = "builtin:stories", *, device: str = "auto", dtype: str = "auto",
        batch_size: int = 16,
    ) -> None:  # fmt: skip
        check_range("batch_size", batch_size, 1)
        self.language_model = load_model(model, device, dtype) if isinstance(model, str) else model
        self.name, self.batch_size = self.language_model.name, batch_size

    @property
    def has_chat_template(self) -> bool:
        """Whether the model was trained on conversations."""
        return bool(getattr(self.language_model.tokenizer, "chat_template", None))

    def chat(self, instruction: str, system: str = "") -> str:
        """Return the prompt for an instruction: by the model's chat template if it has one, else the text itself."""
        if not self.has_chat_template:
            return f"{system}\n\n{instruction}" if system else instruction
        messages = [{"role": "system", "content": system}] if system else []
        messages.append({"role": "user", "content": instruction})
        prompt: str = self.language_model.tokenizer.apply_chat_template(
            messages, tokenize=False, add_generation_prompt=True
        )
        return prompt

    def has_room(self, prompt: str) -> bool:
        """Whether the model's context has room for a token behind a prompt."""
        return len(self.language_model.encode(prompt)) < self.language_model.context

    def generate(self, prompts: Sequence[str], settings: Settings | None = None, *, what: str = "") -> list[Generation]:
        """Continue prompts; each as if it were alone.

        Near the end of the model's context there may be room for fewer tokens than ``max_new_tokens``: such a text
        ends with ``length``.

        Args:
            prompts: Any number.
            settings: How.
            what: Name of the progress bar; without one there is none.

        Returns:
            One for each prompt, in order.

        Raises:
            InputError: A prompt is empty or fills the context, or ``max_new_tokens`` is larger than it.
        """
        settings = settings or Settings()
        ids = [self.language_model.encode(prompt) for prompt in prompts]
        jobs = defaultdict(list)  # room → rows
        for row, its in enumerate(ids):
            jobs[self._room(its, settings)].append(row)
        found: dict[int, Generation] = {}
        with progress_bar(disable=not what) as bar:
            task = bar.add_task(what, total=len(prompts), figures="")
            for room, rows in jobs.items():
                rows.sort(key=lambda row: len(ids[row]))  # little padding
                for first in range(0, len(rows), self.batch_size):
                    batch = rows[first : first + self.batch_size]
                    seeds = [settings.seed + row for row in batch]
                    made = self._batch([ids[row] for row in batch], seeds, replace(settings, max_new_tokens=room))
                    for row, generation in zip(batch, made, strict=True):
                        found[row] = replace(generation, prompt=prompts[row])
                    bar.advance(task, len(batch))
        return [found[row] for row in range(len(prompts))]

    def stream(self, prompt: str, settings: Settings | None = None) -> Generator[str, None, Generation]:
        """Yield the text that :meth:`generate` returns, piece by piece; what may be part of a stop string is held back.

        At its end, the generator's value is what :meth:`generate` returns.

        Raises:
            InputError: See :meth:`generate`; or the strategy is beam search, whose text is known at its end only.
        """
        settings = settings or Settings()
        if settings.strategy == "beam_search":
            raise InputError("Beam search can't be streamed: its text is known at the end only.",
                             hint="another strategy, or no streaming")  # fmt: skip
        ids = self.language_model.encode(prompt)
        settings = replace(settings, max_new_tokens=self._room(ids, settings))
        return self._pieces(prompt, ids, settings)

    def _pieces(self, prompt: str, ids: list[int], settings: Settings) -> Generator[str, None, Generation]:
        pieces: queue.Queue[int | BaseException | Generation] = queue.Queue()
        stop = StopAt(self.language_model.tokenizer, settings.stop, len(ids))

        class Streamer:
            prompt_seen = False

            def put(self, value: Tensor) -> None:
                if self.prompt_seen:
                    pieces.put(int(value.flatten()[-1]))
                self.prompt_seen = True

            def end(self) -> None:
                pass

        def work() -> None:
            try:
                pieces.put(self._batch([ids], [settings.seed], settings, stop, Streamer())[0])
            except BaseException as error:  # handed on to whoever reads
                pieces.put(error)

        thread = threading.Thread(target=work, daemon=True)
        thread.start()
        try:
            drawn: list[int] = []
            given = ""
            while not isinstance(piece := pieces.get(), Generation):
                if isinstance(piece, BaseException):
                    raise piece
                drawn.append(piece)
                text, stopped = self._cut(ids, drawn, settings)
                ready = text if stopped else text[: len(text) - held_back(text, settings.stop)]
                if len(ready) > len(given):
                    yield ready[len(given) :]
                    given = ready
            if len(piece.text) > len(given):
                yield piece.text[len(given) :]
            return replace(piece, prompt=prompt)
        finally:  # at the end, and when nobody wants more
            stop.cancelled.set()
            thread.join()

    def log_likelihoods(self, prompts: Sequence[str], continuations: Sequence[str]) -> list[float]:
        """Return log p(continuation | prompt) of each pair, in nats.

        Args:
            prompts: Any number.
            continuations: As many.

        Raises:
            InputError: The two are not of one number, or a pair does not fit the context.
        """
        return [sum(scores) for scores in self.token_log_probabilities(prompts, continuations)]

    def token_log_probabilities(self, prompts: Sequence[str], continuations: Sequence[str]) -> list[list[float]]:
        """Return the log-probability of each token of continuations after their prompts; see :meth:`log_likelihoods`.

        A pair is tokenized as one text; a token that holds letters of both counts to the continuation.
        """
        if len(prompts) != len(continuations):
            raise InputError(f"There are {len(prompts)} prompts and {len(continuations)} continuations.")
        pairs = [self._pair(prompt, rest) for prompt, rest in zip(prompts, continuations, strict=True)]
        found: list[list[float]] = [[] for _ in pairs]
        order = sorted(range(len(pairs)), key=lambda i: len(pairs[i][0]))
        for first in range(0, len(order), self.batch_size):
            rows = order[first : first + self.batch_size]
            for row, scores in zip(rows, self._scores([pairs[i][0] for i in rows]), strict=True):
                found[row] = scores[pairs[row][1] - 1 :]
        return found

    def _pair(self, prompt: str, rest: str) -> tuple[list[int], int]:
        """Return the ids of a prompt with what follows, and how many of them are the prompt's."""
        ids = self.language_model.encode(prompt + rest) if prompt + rest else []
        begin = self.language_model.encode(prompt)
        pairs = enumerate(zip(ids, begin, strict=False))
        shared = next((i for i, (one, other) in pairs if one != other), min(len(ids), len(begin)))
        if begin and not prompt and ids[:1] != begin[:1]:
            ids, shared = [*begin, *ids], len(begin)  # an empty prompt is the token that begins a text
        if not shared:
            rest_ids = self.language_model.tokenizer(rest, add_special_tokens=False)["input_ids"]
            ids, shared = [*begin, *rest_ids], len(begin)
        if len(ids) > self.language_model.context:
            raise InputError(f"A text has {len(ids):,} tokens; {self.name} sees {self.language_model.context:,}.")
        return ids, shared

    def _scores(self, rows: Sequence[list[int]]) -> list[list[float]]:
        """Return, for each row of ids, the log-probabilities of all but its first token."""
        import torch

        input_ids, attention_mask = self._padded(rows)
        positions = (attention_mask.cumsum(1) - 1).clamp(min=0)
        with torch.inference_mode():
            logits = self.language_model.model(
                input_ids=input_ids, attention_mask=attention_mask, position_ids=positions
            ).logits.float()
        chosen = logits[:, :-1].log_softmax(-1).gather(2, input_ids[:, 1:, None]).squeeze(2)  # (B, T - 1)
        return [scores[scores.numel() - len(row) + 1 :].tolist() for scores, row in zip(chosen, rows, strict=True)]

    def _room(self, ids: list[int], settings: Settings) -> int:
        context = self.language_model.context
        if settings.max_new_tokens >= context:
            raise InputError(f"max_new_tokens must be below the model's context of {context:,} tokens. "
                             f"Got {settings.max_new_tokens:,}.")  # fmt: skip
        if len(ids) >= context:
            raise InputError(f"The prompt has {len(ids):,} tokens, which leaves no room in the model's context of "
                             f"{context:,}.", hint="a shorter prompt")  # fmt: skip
        return min(settings.max_new_tokens, context - len(ids))

    def _padded(self, rows: Sequence[list[int]]) -> tuple[Tensor, Tensor]:
        """Return ids and mask (B, T), padded on the left."""
        import torch

        width = max(map(len, rows))
        input_ids = torch.tensor([[0] * (width - len(row)) + row for row in rows])
        mask = torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in rows])
        return input_ids.to(self.language_model.device), mask.to(self.language_model.device)

    def _batch(
        self, rows: Sequence[list[int]], seeds: Sequence[int], settings: Settings, stop: StopAt | None = None,
        streamer: Any = None,
    ) -> list[Generation]:  # fmt: skip
        import torch
        from transformers import LogitsProcessorList, StoppingCriteriaList
        from transformers.generation import logits_process

        input_ids, attention_mask = self._padded(rows)
        recorder, beams = Recorder(), settings.strategy == "beam_search"
        processors: list[Any] = [] if beams else [recorder]
        if settings.penalty != 1:
            mask = attention_mask.repeat_interleave(settings.num_beams, 0) if beams else attention_mask
            processors.append(Penalty(settings.penalty, mask))
        if settings.draws:
            if settings.temperature != 1:
                processors.append(logits_process.TemperatureLogitsWarper(settings.temperature))
            cut: dict[str, Callable[[], Any]] = {
                "top_k": lambda: logits_process.TopKLogitsWarper(settings.top_k),
                "nucleus": lambda: logits_process.TopPLogitsWarper(settings.top_p),
                "min_p": lambda: logits_process.MinPLogitsWarper(settings.min_p),
                "typical": lambda: logits_process.TypicalLogitsWarper(settings.typical_p),
            }
            if settings.strategy in cut:
                processors.append(cut[settings.strategy]())
            processors.append(GumbelNoise(seeds))
        width, ends = input_ids.shape[1], self.language_model.ends()
        if settings.stop and not stop:
            stop = StopAt(self.language_model.tokenizer, settings.stop, width)
        with torch.inference_mode():
            out = self.language_model.model.generate(
                input_ids, attention_mask=attention_mask, generation_config=self._plain(settings.max_new_tokens, beams,
                settings.num_beams), logits_processor=LogitsProcessorList([InTurn(processors)]),
                stopping_criteria=StoppingCriteriaList([stop] if stop else []), streamer=streamer,
            )  # fmt: skip
        drawn = [self._drawn(row, its, ends, settings) for row, its in zip(rows, out[:, width:].tolist(), strict=True)]
        if beams:
            scores = self._scores([[*row, *its] for row, its in zip(rows, drawn, strict=True)])
            scores = [one[len(one) - len(its) :] for one, its in zip(scores, drawn, strict=True)]
        else:
            scores = [one[: len(its)] for one, its in zip(recorder.rows(out), drawn, strict=True)]
        made = []
        for row, its, its_scores in zip(rows, drawn, scores, strict=True):
            text, stopped = self._cut(row, its, settings)
            ended = bool(its) and its[-1] in ends
            made.append(Generation("", text, its, its_scores, "stop" if stopped else "end" if ended else "length"))
        return made

    def _plain(self, max_new_tokens: int, beams: bool, num_beams: int) -> GenerationConfig:
        """Return a configuration of greedy or beam search, with none of the model's own habits."""
        from transformers import GenerationConfig

        ends = sorted(self.language_model.ends())
        return GenerationConfig(max_new_tokens=max_new_tokens, do_sample=False, num_beams=num_beams if beams else 1,
                                eos_token_id=ends or None, pad_token_id=ends[0] if ends else 0,
                                bos_token_id=self.language_model.tokenizer.bos_token_id)  # fmt: skip

    def _drawn(self, prompt: list[int], row: list[int], ends: set[int], settings: Settings) -> list[int]:
        """Return the tokens of a row up to the first end token or stop string; what follows is padding."""
        size = next((i + 1 for i, token in enumerate(row) if token in ends), len(row))
        row = row[:size]
        if settings.stop and first_stop(self._text(prompt, row), settings.stop) >= 0:
            low, high = 0, len(row)  # the fewest tokens that hold a stop string
            while low + 1 < high:
                middle = (low + high) // 2
                there = first_stop(self._text(prompt, row[:middle]), settings.stop) >= 0
                low, high = (low, middle) if there else (middle, high)
            row = row[:high]
        return row

    def _text(self, prompt: Sequence[int], ids: Sequence[int]) -> str:
        return text_after(self.language_model.tokenizer, prompt, ids)

    def _cut(self, prompt: Sequence[int], ids: Sequence[int], settings: Settings) -> tuple[str, bool]:
        """Return the text of tokens up to the stop string, and whether there was one."""
        text = self._text(prompt, ids)
        place = first_stop(text, settings.stop)
        return (text, False) if place < 0 else (text[:place], True)


# --- Commands ---------------------------------------------------------------------------------------------------------


EXAMPLE = "Maya lived by the sea."


@dataclass
class ModelConfig:
    """What the commands share."""

    model: str = "builtin:stories"
    """builtin:stories, builtin:python, a folder or a hub id such as gpt2."""
    max_new_tokens: int = 200
    """Longest text, in tokens, >= 1."""
    temperature: float = 1.0
    """Divides the scores before a draw, > 0."""
    top_k: int = 50
    """Of top_k: draw from so many of the likeliest tokens, >= 1."""
    top_p: float = 0.9
    """Of nucleus: draw from the fewest tokens that hold this part of the probability, in (0, 1]."""
    min_p: float = 0.05
    """Of min_p: draw from tokens at least this many times as likely as the likeliest, in (0, 1]."""
    typical_p: float = 0.9
    """Of typical: part of the probability that the least surprising surprises hold, in (0, 1)."""
    num_beams: int = 4
    """Of beam_search: candidates, >= 2."""
    repetition_penalty: float = 1.0
    """Above 1 what is there already gets less likely; penalized takes 1.3 where this is 1."""
    seed: int = 0
    """Of the first text; each next one has the next number."""
    batch_size: int = field(default=32, metadata=NOT_RECIPE)
    """Prompts that are computed together."""
    device: str = field(default="auto", metadata=NOT_RECIPE)
    """auto, cpu, cuda or mps."""
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    """auto is bfloat16 on GPUs that have it, float32 elsewhere."""
    threads: int = field(default=0, metadata=NOT_RECIPE)
    """CPU threads; 0 is 1 for the embedded models, which are no faster with more, and else PyTorch's choice."""

    def __post_init__(self) -> None:
        """Check the ranges."""
        self.settings("greedy")
        check_range("threads", self.threads, 0)
        check_range("batch_size", self.batch_size, 1)

    def settings(self, strategy: Strategy, stop: Sequence[str] = ()) -> Settings:
        """Return how to decode."""
        values = {one.name: getattr(self, one.name) for one in fields(Settings) if one.name not in ("strategy", "stop")}
        return Settings(strategy, stop=tuple(stop), **values)

    def generator(self) -> TextGenerator:
        """Load the model, after setting the threads."""
        set_threads_for(self.model, self.threads)
        return TextGenerator(self.model, device=self.device, dtype=self.dtype, batch_size=self.batch_size)


@dataclass
class GenerateConfig(ModelConfig):
    """Continue a prompt, or each line of standard input."""

    prompt: str = ""
    """The prompt; by default each line of standard input is one or, where that is a terminal, an example is."""
    strategy: Strategy = "nucleus"
    """greedy, penalized, beam_search, sampling, top_k, nucleus, min_p or typical."""
    stop: list[str] = field(default_factory=list, metadata={"whole": True})
    """Texts end before the first of these; each with a flag of its own."""
    samples: int = 1
    """Texts for each prompt, >= 1."""
    stream: bool = True
    """Print a single text as it comes; beam search can't."""
    show_probabilities: bool = False
    """Print each token with its probability under the model, a line each."""
    chat: bool = False
    """Take the prompt for an instruction, in the form of the model's chat template."""

    def __post_init__(self) -> None:
        """Check the ranges."""
        super().__post_init__()
        check_range("samples", self.samples, 1)
        if self.samples > 1 and not self.settings(self.strategy, self.stop).draws:
            raise InputError(f"{self.strategy} writes the same text every time.", hint="--samples 1, or nucleus")


def generate_command(config: GenerateConfig) -> None:
    """Generate; see :class:`GenerateConfig`."""
    prompt = config.prompt or (EXAMPLE if sys.stdin.isatty() else "")  # nobody at a terminal knows that it is read
    prompts = [prompt] if prompt else [line.rstrip("\n") for line in sys.stdin]
    if not prompts:
        raise InputError("There is no prompt.", hint=f'--prompt "{EXAMPLE}"')
    generator, settings = config.generator(), config.settings(config.strategy, config.stop)
    prompts = [generator.chat(prompt) if config.chat else prompt for prompt in prompts for _ in range(config.samples)]
    alone = len(prompts) == 1 and not config.show_probabilities and settings.strategy != "beam_search"
    if alone and config.stream:
        pieces = generator.stream(prompts[0], settings)  # which refuses a prompt that does not fit
        sys.stdout.write(prompts[0])
        for piece in pieces:
            sys.stdout.write(piece)
            sys.stdout.flush()
        sys.stdout.write("\n")
        return
    for number, made in enumerate(generator.generate(prompts, settings, what="generate"), start=1):
        title = f"--- {number} ({made.finish})\n" if len(prompts) > 1 else ""
        sys.stdout.write(f"{title}{made.prompt}{made.text}\n")
        if config.show_probabilities:
            for token, score in zip(made.token_ids, made.log_probabilities, strict=True):
                sys.stdout.write(f"{math.exp(score):8.4f}  {generator.language_model.tokenizer.decode([token])!r}\n")


@dataclass
class CompareConfig(ModelConfig):
    """Decode the same prompts in every way, and measure what comes of it."""

    prompts: str = "builtin:stories"
    """builtin:stories or builtin:python (their held-out prompts), or a text file with a prompt a line."""
    count: int = 16
    """Prompts, >= 2."""
    samples: int = 2
    """Texts of each prompt and strategy, with seeds of their own, >= 1."""
    strategies: list[Strategy] = field(default_factory=lambda: list(STRATEGIES))
    """Which ones."""
    run: str = field(default="", metadata=NOT_RECIPE)
    """Name of the run's folder; by default the time."""

    def __post_init__(self) -> None:
        """Check the ranges."""
        super().__post_init__()
        check_range("count", self.count, 2)
        check_range("samples", self.samples, 1)
        if not self.strategies:
            raise InputError("strategies must name one at least.", hint=", ".join(STRATEGIES))


def read_prompts(name: str, count: int) -> tuple[list[str], str]:
    """Return the first prompts of a builtin or a file, and what was resolved.

    Raises:
        InputError: There are none.
    """
    source = resolve(name, BUILTINS)
    if source.origin == "builtin":
        from gpt_text_generation.builtin import python_tasks, stories

        if source.name == "stories":
            return [one.text for one in stories.prompts("test", count, 0)], str(source)
        return [task.prompt for task in python_tasks.tasks("test", count, 0)], str(source)
    if source.origin != "path":
        raise InputError(f"prompts must be builtin:stories, builtin:python or a file. Got {name!r}.")
    try:
        lines = Path(source.name).read_text(encoding="utf-8-sig").splitlines()
    except UnicodeDecodeError as error:
        raise InputError(f"{source} is not UTF-8 text: {error}.") from None
    except IsADirectoryError:
        raise InputError(f"{source} is a folder.", hint="a text file with a prompt a line") from None
    prompts = [line for line in lines if line.strip()][:count]
    if not prompts:
        raise InputError(f"{source} has no prompt.", hint="a prompt a line")
    return prompts, str(source)


FIGURES = ("perplexity", "distinct_1", "distinct_2", "distinct_3", "self_bleu", "repetition_4", "length")


def compare_command(config: CompareConfig) -> None:
    """Compare; see :class:`CompareConfig`."""
    prompts, data = read_prompts(config.prompts, config.count)
    generator = config.generator()
    run = Run(PROJECT, MODULE, "compare", config, name=config.run)
    rows = [prompt for prompt in prompts for _ in range(config.samples)]
    texts: dict[str, list[Generation]] = {}
    speed: dict[str, float] = {}
    for strategy in config.strategies:
        # What chance has no part in is the same for every sample
        asked = rows if strategy in DRAWING else prompts
        started = time.perf_counter()
        texts[strategy] = generator.generate(asked, config.settings(strategy), what=strategy)
        speed[strategy] = sum(len(one.token_ids) for one in texts[strategy]) / (time.perf_counter() - started)
    figures = figures_of(texts, config.seed)
    for strategy, its in figures.items():
        its["tokens_per_second"] = speed[strategy]
    lines, seen = [], Counter[tuple[str, str]]()
    for strategy, one in ((strategy, one) for strategy, made in texts.items() for one in made):
        row = {"strategy": strategy, "prompt": one.prompt, "sample": seen[strategy, one.prompt], "text": one.text,
               "finish": one.finish}  # fmt: skip
        lines.append(json.dumps(row, ensure_ascii=False) + "\n")
        seen[strategy, one.prompt] += 1
    write_atomic(run.folder / "texts.jsonl", "".join(lines))
    table = table_of_strategies(figures)
    write_atomic(run.folder / "strategies.md", table + "\n")
    plot_strategies(figures, run.folder / "strategies.png")
    metrics = {f"{strategy}_{name}": its[name] for strategy, its in figures.items()
               for name in (*FIGURES, "tokens_per_second") if its.get(name) is not None}  # fmt: skip
    run.finish(model=generator.name, data=data, seed=config.seed, metrics=metrics)
    sys.stdout.write(f"{table}\n{run.folder / 'strategies.png'}\n{run.folder / 'texts.jsonl'}\n")


def figures_of(texts: Mapping[str, Sequence[Generation]], seed: int = 0) -> dict[str, dict[str, float | None]]:
    """Measure the texts of each strategy, cut to one length, with 95 % intervals.

    Returns:
        Strategy → ``perplexity`` (of all its tokens under the model, before anything was scaled or cut; the interval is
        the bootstrap's over texts) and what :func:`diversity` returns.
    """
    from gpt_text_generation.evaluation.diversity_metrics import bootstrap_interval, common_length, diversity

    cut = common_length([one.text for made in texts.values() for one in made])
    fewest = min(map(len, texts.values()))
    found = {}
    for strategy, made in texts.items():
        sizes = [len(one.token_ids) for one in made]
        nats = [-sum(one.log_probabilities) for one in made]
        mean, size = sum(nats) / sum(sizes), sum(sizes) / len(sizes)
        # To first order what a text adds to the mean of all tokens: one twice as long counts twice
        values = [mean + (one - mean * own) / size for one, own in zip(nats, sizes, strict=True)]
        low, high = bootstrap_interval(values, seed=seed) or (math.nan, math.nan)
        its: dict[str, float | None] = {"perplexity": math.exp(mean), "perplexity low": math.exp(low),
                                        "perplexity high": math.exp(high)}  # fmt: skip
        # as many texts of each: what counts different n-grams falls with their number
        some = [one.text for one in made[:: max(1, len(made) // fewest)]]
        found[strategy] = its | diversity(some, cut=cut, seed=seed)
    return found


def table_of_strategies(figures: Mapping[str, Mapping[str, float | None]]) -> str:
    """Return a table in Markdown, a strategy a row; below each figure its 95 % interval."""
    lines = [f"| strategy | {' | '.join(FIGURES)} | tokens/s |", "|---" * (len(FIGURES) + 2) + "|"]
    for strategy, its in figures.items():
        cells = []
        for name in FIGURES:
            value, low, high = (its.get(f"{name}{end}") for end in ("", " low", " high"))
            shown = "–" if value is None else f"{value:.3g}"
            cells.append(shown if low is None or high is None else f"{shown} ({low:.3g} – {high:.3g})")
        lines.append(f"| {strategy} | {' | '.join(cells)} | {its.get('tokens_per_second') or 0:,.0f} |")
    return "\n".join(lines)


def plot_strategies(figures: Mapping[str, Mapping[str, float | None]], path: Path) -> None:
    """Draw likelihood against repetition and variety: the strategies differ in what they trade for what."""
    from shared.plots import drawing

    with drawing(path, 11, 4.5) as figure:
        labels = {"repetition_4": "repeated 4-grams of a text", "self_bleu": "self-BLEU, of texts with others"}
        for axes, (name, label) in zip(figure.subplots(1, 2), labels.items(), strict=True):
            for strategy, its in figures.items():
                x, y = its["perplexity"], its.get(name)
                if x is None or y is None:
                    continue
                ends = [its.get(f"{one} {end}") for one in ("perplexity", name) for end in ("low", "high")]
                low_x, high_x, low_y, high_y = (math.nan if end is None else end for end in ends)
                axes.errorbar([x], [y], xerr=[[max(0.0, x - low_x)], [max(0.0, high_x - x)]],
                              yerr=[[max(0.0, y - low_y)], [max(0.0, high_y - y)]], fmt="o", capsize=3,
                              label=strategy)  # fmt: skip
            axes.set(xlabel="perplexity of the texts under the model", ylabel=label)
            axes.grid(alpha=0.3)
            axes.margins(0.15)
        figure.legend(*axes.get_legend_handles_labels(), loc="outside lower center", ncols=8, frameon=False)


if __name__ == "__main__":
    run_commands({"generate": generate_command, "compare": compare_command}, module=MODULE, extra="generation")
