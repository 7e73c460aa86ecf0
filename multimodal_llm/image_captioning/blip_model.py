r"""Captions by BLIP (Li et al., 2022, arXiv:2201.12086), or by any model that makes text of an image.

    python -m multimodal_llm.image_captioning.blip_model caption --input photos/
    python -m multimodal_llm.image_captioning.blip_model caption --model Salesforce/blip-image-captioning-base \
        --input photos/ --num_beams 3 --clip openai/clip-vit-base-patch32
    python -m multimodal_llm.image_captioning.blip_model train --data photos/ --captions captions.jsonl
    python -m multimodal_llm.image_captioning.blip_model evaluate

    captioner = load_captioner()
    captioner.caption([open_image("a.jpg")])

How sure a caption is, is said twice: by the model that wrote it (the probability of its tokens) and, with ``--clip``,
by one that did not (CLIPScore). The loop of this file, ``fit``, trains the other models of this project too.
"""

from __future__ import annotations

import csv
import functools
import io
import json
import logging
import math
import sys
import textwrap
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from multimodal_llm.image_captioning.caption_evaluation import (
    CLIP_PROMPT,
    CaptionFile,
    clip_scores,
    evaluate_captions,
    match_images,
    read_captions,
    scene_objects,
    tokenize,
)
from multimodal_llm.visual_question_answering.data_loader import (
    IMAGE_SUFFIXES,
    RowImage,
    Skipped,
    digest_of,
    files_below,
    open_image,
    why_not,
)
from shared.checkpoints import read_checkpoint, save_checkpoint, select
from shared.config import check_range, run_commands
from shared.errors import InputError
from shared.logs import progress_bar
from shared.plots import drawing
from shared.results import OUTPUTS, Run, check_resumable, open_run, resume_flags, write_atomic
from shared.runtime import StopRequest, pick_device, pick_dtype, set_threads
from shared.sources import Source, hub_errors, loading_errors, resolve
from shared.tracking import Tracker

if TYPE_CHECKING:
    from PIL.Image import Image
    from torch import Tensor

PROJECT = "multimodal_llm"
MODULE = f"{PROJECT}.image_captioning.blip_model"
BUILTIN = Path(__file__).parents[1] / "builtin"
NOT_RECIPE = {"recipe": False}
LOADING = threading.Lock()  # transformers can't load two models at once, and leaves weights of one of them out
INSTRUCTION = "Describe this image in one short sentence."  # for models that chat
CHECKPOINT = "checkpoint.safetensors"
MOST = 100_000  # images that can be asked for by number: all scenes are drawn first
logger = logging.getLogger(MODULE)


# --- Loading ----------------------------------------------------------------------------------------------------------


def load_pretrained(name: str, builtin: str, auto_class: str, device: str, dtype: str) -> tuple[Any, Any, Source]:
    """Load a model and its processor.

    Args:
        name: ``builtin:<builtin>``, a folder or a hub id.
        builtin: The embedded model there is, a folder of ``builtin/``.
        auto_class: The class of transformers that knows the models of this task.
        device: ``auto``, ``cpu``, ``cuda`` or ``mps``.
        dtype: ``auto``, ``float32`` or ``bfloat16``.

    Returns:
        The model, ready to predict; its processor; and what was resolved.

    Raises:
        InputError: The folder holds no such model.
        HubError: The hub can't be reached.
        MemoryError: It does not fit.
    """
    import transformers

    source = resolve(name, [builtin])
    place = str(BUILTIN / builtin) if source.origin == "builtin" else source.name
    where = pick_device(device)
    options = {"revision": source.revision or "main"} if source.origin == "hub" else {}
    auto = getattr(transformers, auto_class)
    transformers.utils.logging.disable_progress_bar()  # of weights being read, which takes no time worth a bar
    with LOADING, loading_errors(source, f"builtin:{builtin}"):
        processor = transformers.AutoProcessor.from_pretrained(place, backend="pil", **options)
        model = auto.from_pretrained(place, dtype=pick_dtype(dtype, where), **options)
    return model.to(where).eval(), processor, source


@dataclass(frozen=True)
class Caption:
    """A caption.

    Attributes:
        text: What it says, with its prefix.
        log_probability: Of the tokens after the prefix, Σ log p, in nats.
        tokens: How many those are, the end included.
        clip_score: How well it goes with its image, in [0, 2.5]; None if no CLIP was asked.
    """

    text: str
    log_probability: float
    tokens: int
    clip_score: float | None = None

    @property
    def confidence(self) -> float:
        """The mean probability of a token, e^(log p / tokens), in (0, 1]: it does not punish long captions."""
        return math.exp(self.log_probability / max(1, self.tokens))


class Captioner:
    """Writes captions with one model.

    Args:
        model: Of transformers' ``AutoModelForImageTextToText``: BLIP, BLIP-2, GIT, or one that chats.
        processor: Its own.
        name: What was resolved.
        clip: A CLIP to judge captions by, see ``zero_shot_classification.load_clip``.
        clip_prompt: Put before each caption then.
    """

    def __init__(
        self, model: Any, processor: Any, name: str = "", clip: Any = None, clip_prompt: str = CLIP_PROMPT
    ) -> None:
        self.model, self.processor, self.name = model, processor, name
        self.clip, self.clip_prompt = clip, clip_prompt
        processor.tokenizer.padding_side = "left"

    def _inputs(self, images: Sequence[Image], prefix: str) -> Any:
        if getattr(self.processor, "chat_template", None):
            ask = {"type": "text", "text": prefix or INSTRUCTION}
            turns = [[{"role": "user", "content": [{"type": "image", "image": image}, ask]}] for image in images]
            return self.processor.apply_chat_template(
                turns, add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt",
                processor_kwargs={"padding": True},
            )  # fmt: skip
        text = {"text": [prefix] * len(images)} if prefix else {}
        inputs = self.processor(images=list(images), return_tensors="pt", **text)
        inputs.pop("token_type_ids", None)  # BERT's tokenizer makes them, and no model here takes them
        ends = prefix and int(inputs["input_ids"][0, -1]) in self._ends
        if ends and self.model.config.model_type != "blip":  # whose own generate takes the separator off
            inputs |= {name: inputs[name][:, :-1] for name in ("input_ids", "attention_mask")}
        return inputs

    def caption(
        self, images: Sequence[Image], *, prefix: str = "", num_beams: int = 1, max_new_tokens: int = 40
    ) -> list[Caption]:
        """Caption images, in one batch.

        Args:
            images: RGB; see ``data_loader.open_image``.
            prefix: How each caption begins; to a model that chats, what it is told.
            num_beams: 1 is greedy.
            max_new_tokens: Most tokens of a caption; it has no more than the model has positions.

        Returns:
            One of each image.

        Raises:
            InputError: The prefix fills the model's positions.
        """
        import torch

        if not images:
            return []
        inputs = self._inputs(images, prefix).to(self.model.device, self.model.dtype)
        said = inputs["input_ids"].shape[1] if "input_ids" in inputs else 1
        room = getattr(self.model.config.get_text_config(), "max_position_embeddings", sys.maxsize) - said
        if room < 1:
            raise InputError(f"prefix has {said} tokens; {self.name} reads at most {said + room - 1}.")
        max_new_tokens = min(max_new_tokens, room)
        with torch.inference_mode():
            out = self.model.generate(**inputs, num_beams=num_beams, do_sample=False, max_new_tokens=max_new_tokens,
                                      return_dict_in_generate=True, output_scores=True)  # fmt: skip
            beams = getattr(out, "beam_indices", None)
            scores = self.model.compute_transition_scores(
                out.sequences, out.scores, beams, normalize_logits=beams is None
            )
        made = out.sequences[:, out.sequences.shape[1] - scores.shape[1] :]  # (B, new tokens)
        chats = bool(getattr(self.processor, "chat_template", None))
        shown = made if chats else self._without_start(out.sequences)
        texts = self.processor.batch_decode(shown, skip_special_tokens=True)
        captions = []
        for text, row, its_scores in zip(texts, made.tolist(), scores.float().tolist(), strict=True):
            count = next((i + 1 for i, token in enumerate(row) if token in self._ends), len(row))
            captions.append(Caption(" ".join(text.split()), sum(its_scores[:count]), count))
        return self._judged(images, captions) if self.clip else captions

    def _without_start(self, sequences: Tensor) -> Tensor:
        """Take off BLIP's start token, which some tokenizers do not know for a special one."""
        start = self.model.config.get_text_config().bos_token_id
        return sequences[:, 1:] if (sequences[:, 0] == start).all() else sequences

    @functools.cached_property
    def _ends(self) -> set[int]:
        """The tokens that end a text: BLIP's configuration calls its own a separator."""
        config = self.model.config.get_text_config()
        ends = [getattr(config, "sep_token_id", None), self.model.generation_config.eos_token_id]
        flat = [one for some in ends for one in (some if isinstance(some, list) else [some])]
        return {one for one in flat if one is not None}

    def _judged(self, images: Sequence[Image], captions: Sequence[Caption]) -> list[Caption]:
        scores, _ = clip_scores(self.clip, images, [one.text for one in captions], prompt=self.clip_prompt)
        return [Caption(one.text, one.log_probability, one.tokens, float(score))
                for one, score in zip(captions, scores, strict=True)]  # fmt: skip


def load_captioner(
    model: str = "builtin:captions", device: str = "auto", dtype: str = "auto", clip: str = "",
    clip_prompt: str = CLIP_PROMPT,
) -> Captioner:  # fmt: skip
    """Load a model that writes captions; see :func:`load_pretrained`, and ``clip`` for CLIPScores beside them."""
    loaded, processor, source = load_pretrained(model, "captions", "AutoModelForImageTextToText", device, dtype)
    if not clip:
        return Captioner(loaded, processor, str(source))
    from multimodal_llm.clip_applications.zero_shot_classification import load_clip

    return Captioner(loaded, processor, str(source), load_clip(clip, device, dtype), clip_prompt)


# --- Images with captions ---------------------------------------------------------------------------------------------


def find_images(inputs: Sequence[str]) -> list[Path]:
    """Return the image files among files and folders, folders with all that is below them.

    Raises:
        InputError: There is none.
        FileNotFoundError: A file or folder is not there.
    """
    found: list[Path] = []
    for name in inputs:
        path = Path(name).expanduser()
        if not path.exists():
            raise FileNotFoundError(f"No such file or folder: {name!r}.")
        found += sorted(map(Path, files_below(path, IMAGE_SUFFIXES))) if path.is_dir() else [path]
    if not found:
        kinds = ", ".join(sorted(IMAGE_SUFFIXES))
        raise InputError(f"There is no image in {', '.join(inputs)}.", hint=f"files that end with {kinds}")
    return list(dict.fromkeys(found))


@dataclass(frozen=True)
class CaptionedImage:
    """An image and what people say of it: its name, what ``open_image`` takes, and one caption at least."""

    name: str
    image: Any
    captions: tuple[str, ...]


def load_captioned(data: str, captions: str = "", split: str = "train", count: int = 0,
                   seed: int = 0, grid: bool = True) -> list[CaptionedImage]:  # fmt: skip
    """Load images with captions.

    Args:
        data: ``builtin:scenes``; a folder of images; or a hub id with columns ``image`` and ``caption`` or the like.
        captions: A file of captions for a folder, see ``caption_evaluation.read_captions``; by default the one in it.
        split: Of the scenes, or of the hub's data set.
        count: How many; 0 is all, of the scenes 500.
        seed: Of the scenes.
        grid: Whether the scenes' objects stand on patches.

    Raises:
        InputError: There are no captions, or no image of theirs.
        OSError: It can't be read or fetched.
    """
    source = resolve(data, ["scenes"])
    if source.origin == "builtin":
        from multimodal_llm.builtin import scenes

        drawn = scenes.scenes(split, count or 500, seed, grid=grid)  # type: ignore[arg-type]
        return [CaptionedImage(f"{split}-{i}", scenes.SceneImage(scene), (scene.caption,))
                for i, scene in enumerate(drawn)]  # fmt: skip
    rows = _of_hub(source, split) if source.origin == "hub" else _of_folder(Path(source.name), captions)
    if not rows:
        raise InputError(f"{source} has no image with a caption.", hint='captions.jsonl: {"image": …, "caption": …}')
    return rows[:count] if count else rows


def _of_folder(folder: Path, captions: str) -> list[CaptionedImage]:
    if not folder.is_dir():
        raise InputError(f"data must be a folder of images. Got {folder}.", hint="--captions FILE beside it")
    places = [Path(captions)] if captions else sorted(folder.glob("*captions*.json*")) + sorted(folder.glob("*.csv"))
    if not places:
        raise InputError(f"{folder} has no captions.", hint="--captions FILE, or captions.jsonl in the folder")
    known, paths = read_captions(places[0]), find_images([str(folder)])
    by_name = {str(path.relative_to(folder)): path for path in paths}
    match = match_images(CaptionFile({name: [""] for name in by_name}), known)
    said = {name: tuple(filter(tokenize, known.captions[its])) for name, its in match.items()}
    found = [CaptionedImage(name, by_name[name], texts) for name, texts in said.items() if texts]
    if len(found) < len(by_name):
        left_out = len(by_name) - len(found)
        logger.warning("%d of %d images have no caption with a word in %s", left_out, len(by_name), places[0])
    return found


def _of_hub(source: Source, split: str) -> list[CaptionedImage]:
    import datasets

    with hub_errors(source, "builtin:scenes"):
        rows = datasets.load_dataset(source.name, split=split, revision=source.revision)
    column = next((name for name in ("caption", "captions", "text", "sentences") if name in rows.column_names), "")
    if "image" not in rows.column_names or not column:
        raise InputError(f"{source} must have the columns image and caption. It has {', '.join(rows.column_names)}.")
    rows = rows.cast_column("image", datasets.Image(decode=False))
    found = []
    for i, its in enumerate(rows[column]):
        texts = tuple(filter(tokenize, [its] if isinstance(its, str) else map(str, its or [])))
        if texts:
            found.append(CaptionedImage(f"{split}-{i}", RowImage(rows, "image", i), texts))
    return found


# --- Training ---------------------------------------------------------------------------------------------------------


@dataclass
class Recipe:
    """How a model learns.

    Attributes:
        steps: Of the optimizer, >= 1.
        batch_size: Images of a step of one process, >= 1.
        learning_rate: Highest; it rises over the first 2 % of steps, holds, and falls to 0 over the last 40 %.
        weight_decay: Of matrices, >= 0.
        muon: Learning rate of Muon, to which the matrices of the layers go then; 0 leaves them to AdamW.
        seed: Of the order of the data, and of new weights.
        device: ``auto``, ``cpu``, ``cuda`` or ``mps``.
    """

    steps: int = 500
    batch_size: int = 32
    learning_rate: float = 1e-3
    weight_decay: float = 0.01
    muon: float = 0.0
    seed: int = 0
    device: str = "auto"


def share_of_rate(step: int, total: int) -> float:
    """Rise over the first 2 % of steps, hold, fall to 0 over the last 40 % (Hägele et al., 2024, arXiv:2405.18392)."""
    rising, falling = max(1, total // 50), max(1, round(total * 0.4))
    return min(1.0, (step + 1) / rising, (total - step) / falling)


DIGEST = "data.sha256"  # of a run that learns, what digest_of says of its data


@contextmanager
def learning(module: str, config: Any, digest: str) -> Iterator[tuple[Path, Run | None]]:
    """Open the run of a command that learns; ``accelerate launch -m`` starts the command in several processes.

    Args:
        module: The module as ``python -m`` takes it.
        config: Its configuration, with run, resume, seed, data and device.
        digest: Of the data, which must be the same when a run goes on: else what was learned could be measured on.

    Yields:
        The run's folder; and the run in the first process, which alone measures and writes, None in the others.

    Raises:
        InputError: The run can't go on, or its data have changed.
    """
    from accelerate import PartialState

    before = OUTPUTS / PROJECT / config.run / DIGEST
    if config.resume and before.exists() and before.read_text() != digest:
        raise InputError(f"{config.data} is no longer what {config.run} began with: its images or texts changed.",
                         hint="the data as they were; or another --run")  # fmt: skip
    folder, run = open_run(PROJECT, module, "train", config, also=("seed",))
    if run:
        write_atomic(run.folder / DIGEST, digest)
    try:
        yield folder, run
    except (InputError, OSError):
        if run and {path.name for path in folder.iterdir()} == {"config.yaml", DIGEST}:
            (folder / DIGEST).unlink()  # nothing was done: the name is free
        raise
    PartialState().wait_for_everyone()  # a process that leaves early takes those with it that still write results


def fit(
    model: Any, loss_of: Callable[[Any, Any], Tensor], batch_of: Callable[[int], Any], recipe: Recipe, folder: Path, *,
    tracking: Literal["none", "wandb"] = "none", what: str = "train",
) -> None:  # fmt: skip
    """Train in place with AdamW and Muon, on one or more devices through accelerate (``accelerate launch -m …``).

    Args:
        model: What learns.
        loss_of: Model and batch → loss.
        batch_of: Number of a batch → its tensors, the same whenever it is asked: a run that goes on needs no other
            memory. Process p of n takes batch step · n + p.
        recipe: How.
        folder: Of the run. The figures go there, and a checkpoint each minute and when stopped; one that is there is
            gone on from.
        tracking: Where the figures go too.
        what: Name of the progress bar.

    Raises:
        InputError: The loss, or a weight at the end, is no longer a number.
        KeyboardInterrupt: It was stopped; the same call goes on.
    """
    import torch
    from accelerate import Accelerator
    from accelerate.utils import send_to_device

    class Loss(torch.nn.Module):  # its forward is the loss, so that accelerate's wrapper averages every gradient
        def __init__(self) -> None:
            super().__init__()
            self.model = model

        def forward(self, batch: Any) -> Tensor:
            return loss_of(self.model, batch)

    loss_module = Loss()
    accelerator = Accelerator(cpu=pick_device(recipe.device).type == "cpu")
    torch.manual_seed(recipe.seed)
    optimizers, rates = _optimizers(loss_module, recipe)
    trained, *optimizers = accelerator.prepare(loss_module, *optimizers)
    done = _load_checkpoint(folder / CHECKPOINT, loss_module, optimizers)
    first = accelerator.is_main_process
    tracker = Tracker(folder, tracking, config=asdict(recipe), resume_step=done) if first else None
    trained.train()
    saved = time.monotonic()
    with StopRequest() as stop, progress_bar(disable=not first) as bar:
        task = bar.add_task(what, total=recipe.steps, completed=done, figures="")
        for step in range(done, recipe.steps):
            share = share_of_rate(step, recipe.steps)
            for optimizer, rate in zip(optimizers, rates, strict=True):
                for group in optimizer.param_groups:
                    group["lr"] = rate * share
            batch = batch_of(step * accelerator.num_processes + accelerator.process_index)
            loss = trained(send_to_device(batch, accelerator.device))
            accelerator.backward(loss)
            accelerator.clip_grad_norm_(trained.parameters(), 1.0)
            for optimizer in optimizers:
                optimizer.step()
                optimizer.zero_grad()
            value = loss.item()
            if not math.isfinite(value):
                raise InputError(f"{what} diverged: the loss is {value}.", hint="a smaller --learning_rate")
            if tracker and (step % 10 == 0 or step + 1 == recipe.steps):
                tracker.log(step + 1, loss=value, learning_rate=recipe.learning_rate * share)
            bar.update(task, completed=step + 1, figures=f"loss {value:.3f}")
            if first and (stop.requested or time.monotonic() - saved > 60):
                _save_checkpoint(folder / CHECKPOINT, loss_module, optimizers, step + 1)
                saved = time.monotonic()
            if stop.requested and step + 1 < recipe.steps:
                raise KeyboardInterrupt(f"after {step + 1} of {recipe.steps} steps; the same command with "
                                        f"{resume_flags(folder)} goes on")  # fmt: skip
    if tracker:
        tracker.close()
    if not all(weight.isfinite().all() for weight in model.parameters()):  # a loss tells of the step before it only
        raise InputError(f"{what} diverged: some weights are not finite.", hint="a smaller --learning_rate")
    loss_module.eval()


def _optimizers(module: Any, recipe: Recipe) -> tuple[list[Any], list[float]]:
    """Return AdamW, and Muon if it is wanted, with the learning rate of each."""
    import torch

    learning = {name: weight for name, weight in module.named_parameters() if weight.requires_grad}
    of_layers = {name: weight for name, weight in learning.items() if weight.ndim == 2 and ".layer" in name}
    rest = [weight for name, weight in learning.items() if not (recipe.muon and name in of_layers)]
    groups = [{"params": [w for w in rest if w.ndim > 1], "weight_decay": recipe.weight_decay},
              {"params": [w for w in rest if w.ndim <= 1], "weight_decay": 0.0}]  # fmt: skip
    adamw = torch.optim.AdamW(groups, lr=recipe.learning_rate, betas=(0.9, 0.98), fused=True)
    if not recipe.muon:
        return [adamw], [recipe.learning_rate]
    from shared.muon import Muon

    return [adamw, Muon(of_layers.values(), lr=recipe.muon)], [recipe.learning_rate, recipe.muon]


def _save_checkpoint(path: Path, module: Any, optimizers: Sequence[Any], step: int) -> None:
    tensors = {f"model.{name}": weight for name, weight in module.named_parameters()}
    for which, optimizer in enumerate(optimizers):
        for number, state in optimizer.state_dict()["state"].items():
            tensors |= {f"optimizer{which}.{number}.{name}": value for name, value in state.items()}
    save_checkpoint(path, {name: tensor.detach().clone() for name, tensor in tensors.items()}, {"step": step})


def _load_checkpoint(path: Path, module: Any, optimizers: Sequence[Any]) -> int:
    """Go on from a checkpoint; returns the steps done, 0 where there is none."""
    if not path.exists():
        return 0
    tensors, state = read_checkpoint(path)
    weights = select(tensors, "model.")
    if set(weights) != {name for name, _ in module.named_parameters()}:
        raise InputError(f"{path} is of another model.", hint="another --run")
    module.load_state_dict(weights, strict=False)  # tied weights stand there once
    for which, optimizer in enumerate(optimizers):
        moments: dict[int, dict[str, Any]] = {}
        for name, tensor in select(tensors, f"optimizer{which}.").items():
            number, _, key = name.partition(".")
            moments.setdefault(int(number), {})[key] = tensor
        optimizer.load_state_dict({**optimizer.state_dict(), "state": moments})
    return int(state["step"])


def shuffled(count: int, batch_size: int, seed: int, number: int) -> list[int]:
    """Return which rows batch ``number`` has: an epoch is whole batches, in an order of its own, without the rest."""
    per_epoch = max(1, count // batch_size)
    epoch, place = divmod(number, per_epoch)
    order = np.random.default_rng((seed, epoch)).permutation(count)
    return [int(i) for i in order[place * batch_size : (place + 1) * batch_size]]


def padded_ids(tokenizer: Any, texts: Sequence[str], first: int, longest: int) -> tuple[Tensor, Tensor]:
    """Return ids and mask (B, T) of what a BLIP decoder writes: its own start token, the text, the separator."""
    out = tokenizer(list(texts), return_tensors="pt", padding=True, padding_side="right", truncation=True,
                    max_length=longest)  # fmt: skip
    input_ids = out["input_ids"]
    input_ids[:, 0] = first  # [CLS] of BERT is not what generation begins with
    return input_ids, out["attention_mask"]


def caption_loss(model: Any, batch: dict[str, Tensor]) -> Tensor:
    """Return BLIP's language-modeling loss of pixel values, ids and mask."""
    labels = batch["input_ids"].masked_fill(batch["attention_mask"] == 0, -100)
    loss: Tensor = model(**batch, labels=labels).loss
    return loss


# --- Commands ---------------------------------------------------------------------------------------------------------


@dataclass
class ModelConfig:
    """Which model writes captions, and how."""

    model: str = "builtin:captions"
    """builtin:captions, a folder, or a hub id such as Salesforce/blip-image-captioning-base."""
    prefix: str = ""
    """How each caption begins, such as "a picture of"; to a model that chats, what it is told."""
    num_beams: int = 1
    """Captions that are pursued at a time; 1 is greedy."""
    max_new_tokens: int = 40
    """Most tokens of a caption, >= 1."""
    batch_size: int = field(default=32, metadata=NOT_RECIPE)
    """Images captioned at a time."""
    clip: str = ""
    """A CLIP or SigLIP that judges captions, such as builtin:clip; none by default."""
    clip_prompt: str = CLIP_PROMPT
    """Put before each caption for it; the paper's, which builtin:clip is better without."""
    device: str = field(default="auto", metadata=NOT_RECIPE)
    """auto, cpu, cuda or mps."""
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    """What to compute in."""
    threads: int = field(default=0, metadata=NOT_RECIPE)
    """CPU threads; 0 leaves it to PyTorch."""
    run: str = field(default="", metadata=NOT_RECIPE)
    """Name of the run's folder; by default the time."""

    def __post_init__(self) -> None:
        """Check the ranges."""
        check_range("num_beams", self.num_beams, 1, 64)
        for name in ("max_new_tokens", "batch_size"):
            check_range(name, getattr(self, name), 1, 4096)
        check_range("threads", self.threads, 0)

    def writer(self) -> Callable[[Sequence[Image]], list[Caption]]:
        """Load the model, and return what captions images."""
        set_threads(self.threads)
        captioner = load_captioner(self.model, self.device, self.dtype, self.clip, self.clip_prompt)
        return functools.partial(captioner.caption, prefix=self.prefix, num_beams=self.num_beams,
                                 max_new_tokens=self.max_new_tokens)  # fmt: skip


def caption_images(
    write: Callable[[Sequence[Image]], list[Caption]], named: Sequence[tuple[str, Any]], batch_size: int,
    skipped: Skipped, *, what: str = "captions",
) -> Iterator[tuple[str, Caption]]:  # fmt: skip
    """Yield each image's name with its caption; those that can't be opened are counted and left out.

    Args:
        write: See :meth:`ModelConfig.writer`.
        named: Name and what ``open_image`` takes, opened a batch at a time.
        batch_size: Images of a batch.
        skipped: Takes what was left out.
        what: Name of the progress bar.
    """
    with progress_bar() as bar:
        task = bar.add_task(what, total=len(named), figures="")
        for start in range(0, len(named), batch_size):
            opened = []
            for name, image in named[start : start + batch_size]:
                try:
                    opened.append((name, open_image(image)))
                except (InputError, OSError) as error:
                    skipped.add("the image can't be opened", why_not(image, error))
            made = write([image for _, image in opened])
            yield from zip((name for name, _ in opened), made, strict=True)
            bar.update(task, completed=min(len(named), start + batch_size), figures=made[-1].text[:50] if made else "")


class _RayWriter:
    """One process of Ray's, with a model of its own."""

    def __init__(self, config: ModelConfig) -> None:
        self.write, self.config = config.writer(), config

    def __call__(self, block: dict[str, Any]) -> dict[str, Any]:
        skipped = Skipped()
        named = [(path, Path(path)) for path in block["path"]]
        made = dict(caption_images(self.write, named, self.config.batch_size, skipped))
        rows = [json.dumps(asdict(made[path]) if path in made else None) for path in block["path"]]
        return {"path": block["path"], "caption": np.array(rows, dtype=object)}


def caption_with_ray(
    config: ModelConfig, named: Sequence[tuple[str, Any]], workers: int, skipped: Skipped
) -> Iterator[tuple[str, Caption]]:
    """Do what :func:`caption_images` does on every machine of a Ray cluster, files only.

    Args:
        config: Of the model; each worker loads its own.
        named: Paths that every machine can read.
        workers: Processes.
        skipped: Takes what was left out.
    """
    import os

    import ray

    config.writer()  # a model that is not there is told here; one of the hub is fetched once
    started = not ray.is_initialized()
    if started:
        ray.init(include_dashboard=None if os.environ.get("RAY_ADDRESS") else False, log_to_driver=False)
    try:
        ray.data.DataContext.get_current().enable_progress_bars = False
        rows = ray.data.from_items([{"path": str(image)} for _, image in named],
                                   override_num_blocks=max(1, min(4 * workers, len(named))))  # fmt: skip
        made = rows.map_batches(_RayWriter, fn_constructor_args=(config,), batch_size=config.batch_size,
                                compute=ray.data.ActorPoolStrategy(size=workers), num_cpus=1)  # fmt: skip
        for row in made.iter_rows():
            content = json.loads(row["caption"])
            if content is None:
                skipped.add("the image can't be opened", row["path"])
            else:
                yield row["path"], Caption(**content)
    finally:
        if started:
            ray.shutdown()


@dataclass
class CaptionConfig(ModelConfig):
    """Caption images, and save what is said of them."""

    input: list[str] = field(default_factory=list)
    """Files and folders; by default eight scenes are drawn."""
    output: str = field(default="", metadata=NOT_RECIPE)
    """A .csv or .jsonl file; by default captions.jsonl in the run's folder."""
    ray: bool = field(default=False, metadata=NOT_RECIPE)
    """Caption files through Ray Data: on the cluster of RAY_ADDRESS, else on this machine."""
    workers: int = field(default=2, metadata=NOT_RECIPE)
    """Processes of Ray, each with a model of its own."""
    resume: bool = field(default=False, metadata=NOT_RECIPE)
    """Go on where the run of this name stopped."""

    def __post_init__(self) -> None:
        """Check the ranges and the kind of file."""
        super().__post_init__()
        check_range("workers", self.workers, 1, 10_000)
        if self.output and Path(self.output).suffix not in (".csv", ".jsonl"):
            raise InputError(f"output must end with .csv or .jsonl. Got {self.output!r}.")
        if self.resume and not self.run:
            raise InputError("resume needs the name of the run.", hint="--run NAME --resume true")


def caption(config: CaptionConfig) -> None:
    """Caption images; see :class:`CaptionConfig`."""
    if config.input:
        named: list[tuple[str, Any]] = [(str(path), path) for path in find_images(config.input)]
    elif config.ray:
        raise InputError("ray works on files.", hint="--input FOLDER")
    else:
        named = [(one.name, one.image) for one in load_captioned("builtin:scenes", split="test", count=8)]
    if config.resume:
        check_resumable(OUTPUTS / PROJECT / config.run, config)
    run = Run(PROJECT, MODULE, "caption", config, name=config.run, resume=config.resume)
    path, skipped = run.folder / "captions.jsonl", Skipped()
    rows = _rows_so_far(path)
    done = {row["image"] for row in rows}
    left = [one for one in named if one[0] not in done]
    made = (caption_with_ray(config, left, config.workers, skipped) if config.ray
            else caption_images(config.writer(), left, config.batch_size, skipped))  # fmt: skip
    write_atomic(path, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
    with path.open("a", encoding="utf-8", errors="backslashreplace") as file:
        try:
            for name, its in made:
                score = {} if its.clip_score is None else {"clip_score": round(its.clip_score, 4)}
                rows.append({"image": name, "caption": its.text, "confidence": round(its.confidence, 4),
                             "log_probability": round(its.log_probability, 4), **score})  # fmt: skip
                file.write(json.dumps(rows[-1], ensure_ascii=False) + "\n")
        except KeyboardInterrupt:
            raise KeyboardInterrupt(f"{len(rows)} of {len(named)} captions are in {path}; the same with "
                                    f"{resume_flags(run.folder)} goes on") from None  # fmt: skip
    for row in rows[:50]:
        sys.stdout.write(f"{row['confidence']:.3f}  {row['image']}: {row['caption']}\n")
    if len(rows) > 50:
        sys.stdout.write(f"… and {len(rows) - 50:,} more\n")
    for line in filter(None, str(skipped).split("\n")):
        logger.warning("%s", line)
    if not rows:
        raise InputError("None of the images could be opened.")
    if config.output:
        write_atomic(Path(config.output), _csv(rows) if config.output.endswith(".csv") else path.read_bytes())
    metrics = {"captions": len(rows), "left out": skipped.counts.total()}
    images = dict(named)
    shown = [row for row in rows if row["image"] in images][:12]  # without files deleted since the run was begun
    plot_captions([(images[row["image"]], f"{row['caption']} ({row['confidence']:.2f})") for row in shown],
                  run.folder / "captions.png")  # fmt: skip
    metrics["mean confidence"] = float(np.mean([row["confidence"] for row in rows]))
    run.finish(model=config.model, data=", ".join(config.input) or "builtin:scenes", seed=0, metrics=metrics)
    logger.info("saved in %s", config.output or path)


def plot_captions(shown: Sequence[tuple[Any, str]], path: Path) -> None:
    """Draw images with what is said of them, four in a row; those that can't be opened are left out.

    Args:
        shown: What ``open_image`` takes, and a text.
        path: The PNG to write.
    """
    opened = []
    for image, text in shown:
        try:
            opened.append((open_image(image), text))
        except (InputError, OSError):
            continue
        opened[-1][0].thumbnail((600, 600))  # a dozen photos whole are more than a gigabyte
    if not opened:
        return
    rows = -(-len(opened) // 4)
    with drawing(path, 11, 3.1 * rows) as figure:
        for axes, (image, text) in zip(figure.subplots(rows, 4, squeeze=False).flat, opened, strict=False):
            axes.imshow(np.asarray(image))
            axes.set_title("\n".join(textwrap.wrap(text, 34)[:4]), fontsize=8, parse_math=False)
        for axes in figure.axes:
            axes.set_axis_off()


def _rows_so_far(path: Path) -> list[dict[str, Any]]:
    """Return the captions that are there; a line that is none, such as one cut short by a kill, is made again."""
    rows = []
    for line in path.read_text(encoding="utf-8", errors="replace").split("\n") if path.exists() else []:
        try:
            row = json.loads(line)
        except (ValueError, RecursionError):
            continue
        kinds = {"image": str, "caption": str, "confidence": float}
        if isinstance(row, dict) and all(isinstance(row.get(key), kind) for key, kind in kinds.items()):
            rows.append(row)
    return rows


def _csv(rows: Sequence[dict[str, Any]]) -> str:
    text = io.StringIO()
    writer = csv.DictWriter(text, list(dict.fromkeys(key for row in rows for key in row)) or ["image", "caption"])
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


@dataclass
class EvaluateConfig(ModelConfig):
    """Caption images that people have captioned, and measure how near it comes."""

    data: str = "builtin:scenes"
    """builtin:scenes, a folder of images, or a hub id."""
    captions: str = ""
    """A file of captions for the folder; by default the one in it."""
    split: str = "test"
    """Of the scenes (test: captions never trained; pairs: colors on shapes never seen together) or of the hub."""
    count: int = 0
    """How many images; 0 is all, of the scenes 500."""
    grid: bool = True
    """Whether the scenes' objects stand on patches of 16 pixels."""
    seed: int = field(default=0, metadata=NOT_RECIPE)
    """Of the scenes and of the intervals."""

    def __post_init__(self) -> None:
        """Check the ranges."""
        super().__post_init__()
        check_range("count", self.count, 0, MOST)
        check_range("seed", self.seed, 0, 2**31 - 1)


def evaluate(config: EvaluateConfig) -> None:
    """Measure captions; see :class:`EvaluateConfig`."""
    images = load_captioned(config.data, config.captions, config.split, config.count, config.seed, config.grid)
    write = config.writer()
    run = Run(PROJECT, MODULE, "evaluate", config, name=config.run)
    metrics, table = measure(write, images, config.batch_size, objects=config.data == "builtin:scenes",
                             seed=config.seed, path=run.folder / "captions.jsonl")  # fmt: skip
    run.finish(model=config.model, data=config.data, seed=config.seed, metrics=metrics)
    sys.stdout.write(f"{table}\n")
    logger.info("saved in %s", run.folder)


def measure(
    write: Callable[[Sequence[Image]], list[Caption]], images: Sequence[CaptionedImage], batch_size: int, *,
    objects: bool, seed: int = 0, path: Path | None = None,
) -> tuple[dict[str, float], str]:  # fmt: skip
    """Caption images and hold the captions against their references.

    Args:
        write: See :meth:`ModelConfig.writer`.
        images: With their references.
        batch_size: Images captioned at a time.
        objects: Whether captions name the objects of builtin scenes.
        seed: Of the intervals.
        path: Where captions go with their figures, worst first.

    Returns:
        Figures, and a table of them.
    """
    skipped = Skipped()
    made = dict(caption_images(write, [(one.name, one.image) for one in images], batch_size, skipped, what="evaluate"))
    for line in filter(None, str(skipped).split("\n")):
        logger.warning("%s", line)
    scored = [its.clip_score for its in made.values() if its.clip_score is not None]
    report = evaluate_captions(
        {name: its.text for name, its in made.items()}, {one.name: list(one.captions) for one in images},
        find_objects=scene_objects if objects else None, more={"CLIPScore": scored} if scored else None, seed=seed,
    )  # fmt: skip
    if path:
        rows = [row | {"confidence": made[row["image"]].confidence} for row in report.captions]
        rows.sort(key=lambda row: (row["exact"], row["CIDEr-D"]))
        write_atomic(path, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
    confidence = float(np.mean([its.confidence for its in made.values()]))
    return report.metrics() | {"confidence": confidence, "left out": skipped.counts.total()}, str(report)


@dataclass
class TrainConfig:
    """Teach a BLIP to caption images like yours, and measure it before and after.

    Without arguments, the embedded model learns scenes with colors on shapes that it has never seen together.
    """

    model: str = "builtin:captions"
    """builtin:captions, a folder, or a hub id such as Salesforce/blip-image-captioning-base."""
    data: str = "builtin:scenes"
    """builtin:scenes, a folder of images with captions, or a hub id with columns image and caption."""
    captions: str = ""
    """A file of captions for the folder; by default the one in it."""
    grid: bool = True
    """Whether the scenes' objects stand on patches of 16 pixels."""
    count: int = 0
    """Use at most this many images; 0 is all, of the scenes 4,000."""
    held_out: float = 0.1
    """Share of the images that is kept to measure on, in (0, 0.5]; scenes to measure on are drawn."""
    steps: int = 400
    """Steps, >= 1."""
    batch_size: int = 32
    """Images of a step of one process."""
    learning_rate: float = 5e-4
    """Highest, > 0. For models of the hub 1e-5 is usual."""
    seed: int = field(default=0, metadata=NOT_RECIPE)
    """Of the division and the order."""
    device: str = field(default="auto", metadata=NOT_RECIPE)
    """auto, cpu, cuda or mps."""
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
        check_range("count", self.count, 0, MOST)
        check_range("held_out", self.held_out, 0, 0.5, open_low=True)
        check_range("steps", self.steps, 1)
        check_range("batch_size", self.batch_size, 1)
        check_range("learning_rate", self.learning_rate, 0, open_low=True)
        check_range("seed", self.seed, 0, 2**31 - 1)
        check_range("threads", self.threads, 0)
        if self.resume and not self.run:
            raise InputError("resume needs the name of the run.", hint="--run NAME --resume true")


def train(config: TrainConfig) -> None:
    """Fine-tune a BLIP; see :class:`TrainConfig`."""
    set_threads(config.threads)
    if config.data == "builtin:scenes":
        rows = load_captioned(config.data, split="pairs", count=config.count or 4000, seed=1, grid=config.grid)
        held_out = load_captioned(config.data, split="pairs", count=200, grid=config.grid)
    else:
        rows = load_captioned(config.data, config.captions, count=config.count)
        order = np.random.default_rng(config.seed).permutation(len(rows))
        kept = max(1, round(config.held_out * len(rows)))
        if len(rows) <= kept:
            raise InputError(f"{config.data} must have two images at least, to learn from one and measure on one.")
        rows, held_out = [rows[i] for i in order[kept:]], [rows[i] for i in order[:kept]]
    captioner = load_captioner(config.model, config.device, "float32")
    digest = digest_of((part, one.name, *one.captions) for part, its in (("train", rows), ("held out", held_out))
                       for one in its)  # fmt: skip
    if captioner.model.config.model_type != "blip":
        raise InputError(f"train knows BLIP. {config.model} is {captioner.model.config.model_type}.",
                         hint="Salesforce/blip-image-captioning-base")  # fmt: skip
    objects = config.data == "builtin:scenes"
    text = captioner.model.config.text_config
    processor, skipped = captioner.processor, Skipped()

    def batch_of(number: int) -> dict[str, Tensor]:
        chosen = [rows[i] for i in shuffled(len(rows), min(config.batch_size, len(rows)), config.seed, number)]
        opened = []
        for one in chosen:
            try:
                opened.append((open_image(one.image), one.captions[number % len(one.captions)]))
            except (InputError, OSError) as error:
                skipped.add("the image can't be opened", why_not(one.image, error))
        if not opened:
            raise InputError(f"None of {len(chosen)} images can be opened. {skipped}")
        ids, mask = padded_ids(processor.tokenizer, [its for _, its in opened], text.bos_token_id,
                               min(64, text.max_position_embeddings))  # fmt: skip
        images = processor.image_processor([image for image, _ in opened], return_tensors="pt")["pixel_values"]
        return {"pixel_values": images, "input_ids": ids, "attention_mask": mask}

    recipe = Recipe(config.steps, config.batch_size, config.learning_rate, seed=config.seed, device=config.device)
    with learning(MODULE, config, digest) as (folder, run):
        before = measure(captioner.caption, held_out, 32, objects=objects)[0] if run else {}
        fit(captioner.model, caption_loss, batch_of, recipe, folder, tracking=config.tracking)
        if skipped.counts:
            logger.warning("%s", skipped)
        if run:
            after, table = measure(captioner.caption, held_out, 32, objects=objects, path=folder / "captions.jsonl")
            captioner.model.save_pretrained(folder / "model")
            processor.save_pretrained(folder / "model")
            shown = {f"{name} before": before[name] for name in ("exact", "CIDEr-D", "BLEU-4") if name in before}
            run.finish(model=config.model, data=config.data, seed=config.seed, metrics=after | shown)
            (folder / CHECKPOINT).unlink(missing_ok=True)
            sys.stdout.write(f"{table}\nbefore: exact {before['exact']:.4f}, CIDEr-D {before['CIDEr-D']:.4f}\n")
            sys.stdout.write(f"{folder / 'model'}\n")


if __name__ == "__main__":
    run_commands({"caption": caption, "evaluate": evaluate, "train": train}, module=MODULE, extra="multimodal")
