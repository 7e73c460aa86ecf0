"""Fine-tune an encoder on labelled texts, on transformers' ``Trainer``, and compare several.

    python -m bert_sentiment_analysis.models.trainer train
    python -m bert_sentiment_analysis.models.trainer train --model roberta-base --data stanfordnlp/imdb --lora_rank 0
    python -m bert_sentiment_analysis.models.trainer compare --data builtin:products

Several processes or machines: ``accelerate launch -m bert_sentiment_analysis.models.trainer train``. What makes it fast
on short texts: batches of texts of like length, padded to their own longest.
"""

from __future__ import annotations

import json
import logging
import math
import re
import shutil
import statistics
import sys
import time
import zipfile
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager, nullcontext
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from rich.markup import escape
from torch import Tensor

from bert_sentiment_analysis.data.imdb_dataset import DataConfig, load_data
from bert_sentiment_analysis.data.preprocessor import Encoding, LongTexts, clean, tokenize_split
from bert_sentiment_analysis.evaluation.metrics import (
    classification_figures,
    fit_temperature,
    report_figures,
    score,
    softmax,
)
from bert_sentiment_analysis.inference.predictor import SentimentPredictor
from bert_sentiment_analysis.models.bert_classifier import (
    CARD,
    Classifier,
    load_classifier,
    new_classifier,
    quiet,
    save_classifier,
)
from shared.config import check_range, run_commands
from shared.errors import InputError
from shared.logs import console, progress_bar
from shared.plots import plot_curves
from shared.results import OUTPUTS, Run, open_run, resume_flags, write_atomic
from shared.runtime import StopRequest, pick_device, pick_dtype, set_threads
from shared.tracking import Tracker, read_metrics

PROJECT = "bert_sentiment_analysis"
MODULE = f"{PROJECT}.models.trainer"
NOT_RECIPE = {"recipe": False}
PROGRESS = "progress.json"
logger = logging.getLogger(MODULE)


@dataclass
class TrainConfig(DataConfig):
    """Fine-tune an encoder, whole or through LoRA, and measure it on the test split.

    `compare` does the same for several models and puts them into one table.
    """

    model: str = "builtin:minilm"
    """builtin:minilm (all-MiniLM-L6-v2), a folder, or a hub id such as bert-base-uncased."""
    lora_rank: int = 16
    """Rank of the LoRA adapters on every linear layer, up to 1024; 0 tunes all weights."""
    max_length: int = 128
    """Most tokens the encoder sees at once while it learns."""
    read_length: int = 0
    """Most tokens it sees at once afterwards, at least max_length; 0 is max_length."""
    long_texts: LongTexts = "head_tail"
    """Texts beyond max_length: head_tail keeps both ends, windows reads everything in overlapping pieces."""
    head: int = 32
    """head_tail: tokens kept from the beginning."""
    overlap: int = 32
    """windows: tokens that neighbours share."""
    epochs: float = 2.0
    """Passes over train."""
    batch_size: int = 32
    """Texts in one forward pass of one process."""
    accumulation: int = 1
    """Forward passes whose gradients are summed before a step."""
    learning_rate: float = 1e-3
    """Peak learning rate: about 1e-3 for LoRA, 2e-5 to 1e-4 for all weights."""
    scheduler: Literal["linear", "cosine", "constant_with_warmup"] = "linear"
    """How the learning rate falls after the warm-up."""
    warmup: float = 0.06
    """Part of all steps in which the learning rate grows to its peak, in [0, 1)."""
    layer_decay: float = 1.0
    """Each layer below the head learns this much slower than the one above, in (0, 1]; 1 is off."""
    weight_decay: float = 0.01
    """Decay of matrices."""
    dropout: float = 0.0
    """In the encoder, the head and the adapters, in [0, 1); above 0 a CPU takes up to three times as long."""
    gradient_clip: float = 1.0
    """Longest gradient; 0 is off."""
    loss: Literal["cross_entropy", "weighted", "focal"] = "cross_entropy"
    """weighted: rare labels count more; focal: hard texts count more."""
    focal_gamma: float = 2.0
    """focal: how much more."""
    label_smoothing: float = 0.0
    """Part of the target spread over all labels, in [0, 1)."""
    evaluations: int = 2
    """Measurements of validation in each epoch, each with a checkpoint."""
    metric: Literal["accuracy", "macro_f1", "macro_recall"] = "accuracy"
    """What the best checkpoint and early stopping go by."""
    patience: int = 0
    """Stop early after this many measurements without a new best; 0 is off."""
    group_by_length: bool = True
    """Batch texts of like length, so that little is padded."""
    models_to_compare: list[str] = field(
        default_factory=lambda: [
            "builtin:minilm", "bert-base-uncased", "roberta-base", "distilbert-base-uncased", "albert-base-v2",
        ]
    )  # fmt: skip
    """compare: the models to train instead of model; one that can't be had becomes a row that says so."""
    seeds: list[int] = field(default_factory=lambda: [0], metadata=NOT_RECIPE)
    """One run a seed; several end with mean and standard deviation."""
    device: str = field(default="auto", metadata=NOT_RECIPE)
    """auto, cpu, cuda or mps."""
    dtype: Literal["auto", "float32", "bfloat16"] = field(default="auto", metadata=NOT_RECIPE)
    """auto: bfloat16 on GPUs that have it, else float32."""
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
        super().__post_init__()
        for name in ("batch_size", "accumulation", "evaluations"):
            check_range(name, getattr(self, name), 1)
        check_range("lora_rank", self.lora_rank, 0, 1024)
        for name in ("head", "overlap", "weight_decay", "gradient_clip", "focal_gamma", "patience"):
            check_range(name, getattr(self, name), 0)
        check_range("threads", self.threads, 0)
        check_range("max_length", self.max_length, 8)
        if self.read_length:
            check_range("read_length", self.read_length, self.max_length)
        check_range("epochs", self.epochs, 0, open_low=True)
        check_range("learning_rate", self.learning_rate, 0, open_low=True)
        check_range("layer_decay", self.layer_decay, 0, 1, open_low=True)
        for name in ("warmup", "dropout", "label_smoothing"):
            check_range(name, getattr(self, name), 0, 0.99)
        if self.resume and not self.run:
            raise InputError("resume needs the name of the run.", hint="--run NAME --resume true")
        if not self.seeds:
            raise InputError("seeds must name at least one seed.", hint="--seeds '[0, 1, 2]'")
        if len(set(self.seeds)) < len(self.seeds):
            raise InputError(f"seeds must be different ones. Got {', '.join(map(str, self.seeds))}.")
        for seed in self.seeds:
            check_range("seeds", seed, 0, 2**31 - 1)

    @property
    def encoding(self) -> Encoding:
        """How texts become tokens while the model learns."""
        return Encoding(self.max_length, self.long_texts, self.head, self.overlap)

    @property
    def reading(self) -> Encoding:
        """How texts become tokens afterwards."""
        return replace(self.encoding, max_length=self.read_length or self.max_length)


class SentimentLoss:
    """The loss of a batch: cross-entropy, weighted by rarity, or focal (Lin et al., 2017, arXiv:1708.02002).

    Focal: −(1 − p)^γ log p, p the probability of the right label. With several batches to a step the sum is divided by
    the number of texts in all of them, so that accumulation changes nothing.

    Args:
        config: Which loss.
        counts: Texts of each label in train.
    """

    def __init__(self, config: TrainConfig, counts: Tensor) -> None:
        self.config = config
        self.weights = counts.sum() / (len(counts) * counts.clamp(min=1)) if config.loss == "weighted" else None

    def __call__(self, outputs: Any, labels: Tensor, num_items_in_batch: Tensor | int | None = None) -> Tensor:
        """Return the loss: logits (B, number of labels) in ``outputs``, labels (B,)."""
        logits = outputs["logits"].float()
        weights = self.weights.to(logits.device) if self.weights is not None else None
        losses = F.cross_entropy(logits, labels, weights, reduction="none", label_smoothing=self.config.label_smoothing)
        if self.config.loss == "focal":
            right = logits.softmax(-1).gather(1, labels[:, None]).squeeze(1)
            losses = (1 - right) ** self.config.focal_gamma * losses
        return losses.sum() / (len(labels) if num_items_in_batch is None else num_items_in_batch)


# --- transformers' Trainer, with what it lacks ------------------------------------------------------------------------


def parameter_groups(model: Any, config: TrainConfig) -> list[dict[str, Any]]:
    """Divide the trained weights by decay (matrices only) and by depth, for layer-wise rates.

    A weight d layers below the head gets ``learning_rate · layer_decay ** d`` (Howard and Ruder, 2018,
    arXiv:1801.06146): what is near the words is general and should change less.
    """
    named = [(name, weight) for name, weight in model.named_parameters() if weight.requires_grad]
    layer = re.compile(r"\.(?:layer|layers)\.(\d+)\.")
    depths = {name: int(match[1]) + 1 if (match := layer.search(name)) else 0 for name, _ in named}
    top = max(depths.values()) + 1
    depths |= {name: top for name, _ in named if re.search(r"classifier|pooler|score", name)}
    groups: dict[tuple[int, bool], dict[str, Any]] = {}
    for name, weight in named:
        decays = weight.ndim > 1
        group = groups.setdefault((depths[name], decays), {
            "params": [],
            "lr": config.learning_rate * config.layer_decay ** (top - depths[name]),
            "weight_decay": config.weight_decay if decays else 0.0,
        })  # fmt: skip
        group["params"].append(weight)
    return list(groups.values())


def make_trainer(
    classifier: Classifier, splits: Any, config: TrainConfig, seed: int, folder: Path, callback: Any
) -> Any:
    """Build transformers' ``Trainer`` for a recipe.

    Validation is measured by text, not by piece: the logits of a text's windows are averaged.

    Args:
        classifier: What is tuned.
        splits: Tokenized ``train`` and ``validation``.
        config: The recipe.
        seed: Of the batches and dropout.
        folder: Where its checkpoints go.
        callback: What watches it.
    """
    from accelerate import PartialState
    from torch.utils.data import SequentialSampler
    from transformers import DataCollatorWithPadding, EarlyStoppingCallback, PrinterCallback, Trainer, TrainingArguments
    from transformers.trainer_pt_utils import LengthGroupedSampler

    class EpochSampler(LengthGroupedSampler):
        """Orders an epoch by its number alone, so that a resumed run goes on with the same batches."""

        def set_epoch(self, epoch: int) -> None:
            self.generator = torch.Generator().manual_seed(seed * 1000 + epoch)

    class SentimentTrainer(Trainer):
        def _get_train_sampler(self, train_dataset: Any = None) -> EpochSampler:
            # Lengths that are all alike make groups a random order.
            lengths = self.train_dataset["length"] if config.group_by_length else [1] * len(self.train_dataset)
            return EpochSampler(at_once, lengths=list(lengths))

        def _get_eval_sampler(self, eval_dataset: Any) -> SequentialSampler:
            return SequentialSampler(eval_dataset)  # `measure` needs the order

        def create_optimizer(self, model: Any = None) -> torch.optim.Optimizer:
            if self.optimizer is None:
                groups = parameter_groups(self.model if model is None else model, config)
                self.optimizer = torch.optim.AdamW(groups, lr=config.learning_rate, fused=True)
            return self.optimizer

    device = pick_device(config.device)
    dtype = pick_dtype(config.dtype, device)
    if device.type == "cpu" and dtype == torch.bfloat16:
        # There the fused attention goes back so slowly that the written-out one learns 1.5 times as fast.
        classifier.model.set_attn_implementation("eager")
    at_once = config.batch_size * config.accumulation * PartialState().num_processes
    steps = math.ceil(len(splits["train"]) / at_once)
    every = max(1, steps // config.evaluations)
    arguments = TrainingArguments(
        output_dir=str(folder),
        num_train_epochs=config.epochs,
        per_device_train_batch_size=config.batch_size,
        per_device_eval_batch_size=2 * config.batch_size,
        gradient_accumulation_steps=config.accumulation,
        learning_rate=config.learning_rate,
        lr_scheduler_type=config.scheduler,
        warmup_steps=config.warmup,
        max_grad_norm=config.gradient_clip,
        seed=seed,
        use_cpu=device.type == "cpu",
        bf16=dtype == torch.bfloat16,
        dataloader_pin_memory=device.type == "cuda",
        eval_strategy="steps",
        eval_steps=every,
        save_strategy="steps",
        save_steps=every,
        save_total_limit=2,
        load_best_model_at_end=True,
        restore_callback_states_from_checkpoint=True,  # early stopping's patience
        metric_for_best_model=config.metric,
        logging_steps=max(1, every // 10),
        label_names=["labels"],
        report_to="none",
        disable_tqdm=True,
        log_level="error",
    )

    by_length = np.argsort(splits["validation"]["length"], kind="stable")  # little is padded
    validation = splits["validation"].select(by_length)
    owners, first, pieces = np.unique(validation["owner"], return_index=True, return_counts=True)

    def measure(predictions: Any) -> dict[str, float]:
        logits = np.asarray(predictions.predictions, dtype=np.float64)
        if not np.isfinite(logits).all():
            raise InputError("Training diverged: the logits are no longer numbers.", hint="a smaller --learning_rate")
        sums = np.zeros((len(owners), logits.shape[1]))
        np.add.at(sums, np.searchsorted(owners, validation["owner"]), logits)
        return classification_figures(np.asarray(predictions.label_ids)[first], softmax(sums / pieces[:, None]))

    labels = torch.tensor(splits["train"]["labels"])
    classes = len(classifier.card.label_names)
    callbacks = [callback]
    if config.patience:
        callbacks.append(EarlyStoppingCallback(config.patience))
    trainer = SentimentTrainer(
        model=classifier.model,
        args=arguments,
        train_dataset=splits["train"],
        eval_dataset=validation,
        data_collator=DataCollatorWithPadding(classifier.tokenizer),
        processing_class=classifier.tokenizer,
        compute_loss_func=SentimentLoss(config, labels.bincount(minlength=classes).float()),
        compute_metrics=measure,
        callbacks=callbacks,
    )
    trainer.remove_callback(PrinterCallback)  # it writes to stdout
    return trainer


def make_callback(bar: Any, stop: StopRequest, tracker: Tracker | None, texts: int, folder: Path) -> Any:
    """Build the callback that shows progress, writes figures and seconds down, and stops cleanly when asked to.

    Args:
        bar: Where progress shows.
        stop: The request to stop; of several processes one that is asked stops all, after the same step.
        tracker: Where the figures go; None in all processes but the first.
        texts: That an epoch has.
        folder: Of the run; ``progress.json`` in it lets a resumed run count all its time.
    """
    from accelerate import PartialState
    from accelerate.utils import reduce
    from transformers import TrainerCallback

    state_of = PartialState()

    class Watch(TrainerCallback):
        def __init__(self) -> None:
            self.task = bar.add_task("train", total=None, figures="")
            self.figures = ""

        def on_train_begin(self, arguments: Any, state: Any, control: Any, **_: Any) -> None:
            bar.update(self.task, total=state.max_steps, completed=state.global_step)
            self.first_epoch = state.epoch or 0.0
            before = read_progress(folder)["seconds"] if state.global_step else 0.0
            self.started = time.monotonic()
            self.clock = before - self.started

        def on_step_end(self, arguments: Any, state: Any, control: Any, **_: Any) -> None:
            speed = (state.epoch - self.first_epoch) * texts / (time.monotonic() - self.started)
            bar.update(self.task, completed=state.global_step, figures=f"{self.figures}{speed:,.0f} texts/s")
            asked = stop.requested
            if state_of.num_processes > 1:
                asked = reduce(torch.tensor(float(asked), device=state_of.device)).item() > 0
            if asked:
                stop.requested = control.should_save = control.should_training_stop = True

        def on_save(self, arguments: Any, state: Any, control: Any, **_: Any) -> None:
            if tracker:
                so_far = {"seconds": self.clock + time.monotonic(), "epochs": state.epoch}
                write_atomic(folder / PROGRESS, json.dumps(so_far) + "\n")

        def on_log(self, arguments: Any, state: Any, control: Any, logs: dict[str, float], **_: Any) -> None:
            if tracker and ("loss" in logs or "eval_loss" in logs):
                names = {"loss": "train_loss", "eval_loss": "validation_loss", "eval_accuracy": "validation_accuracy",
                         "eval_macro_f1": "validation_macro_f1", "eval_macro_recall": "validation_macro_recall",
                         "learning_rate": "learning_rate"}  # fmt: skip
                tracker.log(state.global_step, **{new: logs[old] for old, new in names.items() if old in logs})
            if "loss" in logs:
                self.figures = f"loss {logs['loss']:.3f}  "
            if "eval_accuracy" in logs:
                logger.info(
                    "step %d: validation accuracy %.4f, macro-F1 %.4f",
                    state.global_step, logs["eval_accuracy"], logs["eval_macro_f1"],
                )  # fmt: skip

    return Watch()


# --- One run, several seeds, several models ---------------------------------------------------------------------------


@dataclass
class Trained:
    """What training once came to.

    Attributes:
        classifier: The best checkpoint, its temperature fitted on validation; of several processes the first has it.
        figures: Of the test split; see :func:`report_figures`.
        minutes: Of training, validation included.
        texts_per_second: Learned from, while training.
    """

    classifier: Classifier | None
    figures: dict[str, float]
    minutes: float
    texts_per_second: float


def train_once(config: TrainConfig, seed: int, folder: Path) -> Trained:
    """Train with one seed, save the best model in ``folder/model``, and measure it on the test split.

    Args:
        config: The recipe.
        seed: Of the division, head, batches and dropout.
        folder: Of this seed.

    Raises:
        InputError: The data or model can't be used, or the loss is no longer a number.
        KeyboardInterrupt: Ctrl-C; a checkpoint is saved first.
    """
    from accelerate import PartialState

    is_main = PartialState().is_main_process
    splits = load_data(config, seed)
    names = splits["train"].features["label"].names
    model = folder / "model"
    if not (config.resume and (model / CARD).is_file()):  # there from the moment when training ends
        learn(config, seed, folder, splits)
    if not is_main:  # the first process measures for all
        return Trained(None, {}, 0.0, 0.0)
    classifier = replace(load_classifier(str(model), names), name=config.model)
    predictor = SentimentPredictor(classifier, config.device, "float32")  # its weights are saved in full
    labels = {split: np.array(splits[split]["label"]) for split in ("validation", "test")}
    logits = {split: score(predictor, splits[split]["text"], config.batch_size, split) for split in labels}
    classifier.card.temperature = fit_temperature(logits["validation"], labels["validation"])
    classifier.card.division = config.division(seed)
    classifier.card.save(model)
    figures = report_figures(labels["test"], logits["test"], classifier.card.temperature, names, folder)
    validation = classification_figures(labels["validation"], softmax(logits["validation"]))
    figures |= {f"validation_{config.metric}": validation[config.metric], "temperature": classifier.card.temperature}
    curves = {"train_loss": "training loss", "validation_loss": "validation loss",
                  f"validation_{config.metric}": f"validation {config.metric}"}  # fmt: skip
    plot_curves(read_metrics(folder / "metrics.jsonl"), curves, folder / "learning_curve.png",
                ylabel="loss, and score in [0, 1]", title=f"{config.model} on {config.data}")  # fmt: skip
    progress = read_progress(folder)
    speed = progress["epochs"] * len(splits["train"]) / max(progress["seconds"], 1e-9)
    return Trained(classifier, figures, progress["seconds"] / 60, speed)


def learn(config: TrainConfig, seed: int, folder: Path, splits: Any) -> None:
    """Train on ``train``, choose the best checkpoint by ``validation``, and save it in ``folder/model``."""
    from accelerate import PartialState
    from accelerate.utils import broadcast_object_list

    torch.manual_seed(seed)
    names = splits["train"].features["label"].names
    classifier = new_classifier(config.model, names, config.reading, lora_rank=config.lora_rank,
                                dropout=config.dropout, domain=config.data)  # fmt: skip
    cache = OUTPUTS / "cache" / PROJECT
    with PartialState().main_process_first():
        tokenized = {split: tokenize_split(splits[split], classifier.tokenizer, config.encoding, cache)
                     for split in ("train", "validation")}  # fmt: skip
    checkpoints = folder / "checkpoints"
    last = last_checkpoint(checkpoints) if config.resume else None
    [last] = broadcast_object_list([last])
    first_step = json.loads((last / "trainer_state.json").read_text())["global_step"] if last else 0
    is_main = PartialState().is_main_process
    tracker = Tracker(folder, config.tracking, config=asdict(config), resume_step=first_step) if is_main else None
    weights = list(classifier.model.parameters())
    logger.info(
        "%s: learns %s of %s weights from %s texts, validates on %s: %s",
        config.model, f"{sum(weight.numel() for weight in weights if weight.requires_grad):,}",
        f"{sum(weight.numel() for weight in weights):,}", f"{len(splits['train']):,}",
        f"{len(splits['validation']):,}", ", ".join(names),
    )  # fmt: skip
    with closing(tracker) if tracker else nullcontext(), StopRequest() as stop:
        with progress_bar(disable=not is_main) as bar, quiet():
            watch = make_callback(bar, stop, tracker, len(splits["train"]), folder)
            trainer = make_trainer(classifier, tokenized, config, seed, checkpoints, watch)
            trainer.train(resume_from_checkpoint=str(last) if last else None)
        if stop.requested:
            raise KeyboardInterrupt(f"saved after step {trainer.state.global_step}")
    if is_main:
        save_classifier(classifier, folder / "model")


def read_progress(folder: Path) -> dict[str, float]:
    """Return how many seconds and epochs a run has trained up to its last checkpoint."""
    path = folder / PROGRESS
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else {"seconds": 0.0, "epochs": 0.0}


def last_checkpoint(folder: Path) -> Path | None:
    """Return the newest checkpoint whose files can all be read to their ends: a kill may have cut one short."""
    from safetensors import SafetensorError, safe_open

    def step(checkpoint: Path) -> int:
        return int(checkpoint.name.partition("-")[2])

    for checkpoint in sorted(folder.glob("checkpoint-*"), key=step, reverse=True):
        try:
            json.loads((checkpoint / "trainer_state.json").read_text(encoding="utf-8"))  # its last file
            for file in checkpoint.iterdir():
                if file.suffix == ".safetensors":
                    with safe_open(file, "pt"):
                        pass
                elif file.suffix in (".pt", ".pth", ".bin") and not zipfile.is_zipfile(file):
                    raise ValueError(f"{file.name} is cut short")
        except (OSError, ValueError, SafetensorError) as error:
            logger.warning("%s is left aside, it is not whole: %s", checkpoint, error)
        else:
            return checkpoint
    return None


@contextmanager
def begin(config: TrainConfig, command: str) -> Iterator[tuple[Run | None, Path]]:
    """Start or go on with a run; of several processes the first has it, and all know its folder.

    An interruption tells how to go on, and an error before anything was learned leaves no folder behind.
    """
    from datasets import disable_progress_bars

    set_threads(config.threads)
    if not console().is_terminal:
        disable_progress_bars()
    folder, run = open_run(PROJECT, MODULE, command, config, also=("seeds",))
    try:
        yield run, folder
    except KeyboardInterrupt as interrupt:
        again = f"go on with\npython -m {MODULE} {command} {resume_flags(folder)}"
        raise KeyboardInterrupt("; ".join(filter(None, [str(interrupt), again]))) from None
    except (InputError, OSError):
        if run and [path.name for path in folder.iterdir()] == ["config.yaml"]:
            shutil.rmtree(folder)
        raise


def mean_figures(runs: list[dict[str, float]], spread: Sequence[str]) -> dict[str, float]:
    """Average figures over seeds, with the standard deviation of some of them where there are several."""
    means = {name: statistics.mean(figures[name] for figures in runs) for name in runs[0]}
    if len(runs) > 1:
        means |= {f"{name}_sd": statistics.stdev(figures[name] for figures in runs) for name in spread}
    return means


SCORES = ("accuracy", "macro_f1", "macro_recall")


def train(config: TrainConfig) -> None:
    """Train a classifier, once for each seed; see :class:`TrainConfig`."""
    from accelerate import PartialState

    results = []
    with begin(config, "train") as (run, folder):
        for seed in config.seeds:
            place = folder if len(config.seeds) == 1 else folder / f"seed-{seed}"
            results.append(train_once(config, seed, place))
    PartialState().wait_for_everyone()  # a process that leaves early takes those with it that still write results
    if not run:
        return
    figures = mean_figures([r.figures | {"texts_per_second": r.texts_per_second} for r in results], SCORES)
    seconds = 60 * sum(result.minutes for result in results) if config.resume else None  # of training, in all stretches
    run.finish(model=config.model, data=config.data, seed=config.seeds[0], metrics=figures, seconds=seconds)
    sys.stdout.write("".join(f"{name:22} {value:.4f}\n" for name, value in figures.items()))
    logger.info("accuracy %.4f on the test split; model, plots and figures in %s", figures["accuracy"], folder)


# --- Comparing models -------------------------------------------------------------------------------------------------


def compare(config: TrainConfig) -> None:
    """Train each of ``models_to_compare`` on the same data, and set their figures and costs side by side."""
    from accelerate import PartialState
    from accelerate.utils import broadcast_object_list

    with begin(config, "compare") as (run, folder):
        table = folder / "comparison.json"
        rows = None
        if run:
            rows = json.loads(table.read_text(encoding="utf-8")) if table.exists() else [baseline_row(config)]
        [rows] = broadcast_object_list([rows])
        for number, name in enumerate(config.models_to_compare):
            if number + 1 < len(rows):  # before an interruption
                continue
            chosen = replace(config, model=name)
            try:
                costs = []
                for seed in config.seeds:
                    trained = train_once(chosen, seed, folder / f"model-{number}" / f"seed-{seed}")
                    costs.append(model_costs(trained, chosen, seed) if run else {})
                rows.append({"model": name, **(mean_figures(costs, SCORES) if run else {})})
            except (InputError, OSError, MemoryError, torch.OutOfMemoryError) as error:
                reason = str(error.args[0] if isinstance(error, InputError) else error) or "out of memory"
                logger.warning("%s left out: %s", name, reason)
                rows.append({"model": name, "why not": reason})
            if run:
                write_atomic(table, json.dumps(rows, indent=2, ensure_ascii=False) + "\n")
    PartialState().wait_for_everyone()
    if not run:
        return
    show_comparison(rows, f"{config.data}, seeds {', '.join(map(str, config.seeds))}")
    metrics = {f"{row['model']} {name}": row[name] for row in rows for name in COSTS if name in row}
    run.finish(model=", ".join(config.models_to_compare), data=config.data, seed=config.seeds[0], metrics=metrics)


# Figure → its heading, how it is shown, and what it is divided by before.
COSTS = {
    "accuracy": ("accuracy", "{:.4f}", 1),
    "macro_f1": ("macro\nF1", "{:.4f}", 1),
    "macro_recall": ("macro\nrecall", "{:.4f}", 1),
    "parameters": ("million\nweights", "{:.1f}", 1e6),
    "MB": ("MB", "{:.1f}", 1),
    "minutes": ("minutes\nto train", "{:.2f}", 1),
    "ms per text": ("ms per\ntext", "{:.2f}", 1),
}


def show_comparison(rows: list[dict[str, Any]], title: str) -> None:
    """Print the rows of a comparison, and under it why some have no figures."""
    from rich.box import SIMPLE_HEAD
    from rich.console import Console
    from rich.table import Table

    table = Table(title=escape(title), title_justify="left", box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
    table.add_column("model", overflow="fold")
    for heading, _, _ in COSTS.values():
        table.add_column(heading, justify="right", no_wrap=True)
    for row in rows:
        cells = [text.format(row[name] / unit) if name in row else "–" for name, (_, text, unit) in COSTS.items()]
        cells = [
            f"{cell} ±{row[f'{name}_sd']:.4f}" if f"{name}_sd" in row else cell
            for name, cell in zip(COSTS, cells, strict=True)
        ]
        table.add_row(escape(row["model"]), *cells)
    console = Console()
    console.print(table)
    for row in rows:
        if "why not" in row:
            console.print(f"{row['model']} left out: {row['why not']}", markup=False, highlight=False)


def model_costs(trained: Trained, config: TrainConfig, seed: int) -> dict[str, float]:
    """Return a model's figures beside what it costs: weights, megabytes of them, minutes to train, time a text."""
    weights = sum(weight.numel() for weight in trained.classifier.model.parameters())
    size = sum(weight.numel() * weight.element_size() for weight in trained.classifier.model.parameters())
    predictor = SentimentPredictor(trained.classifier, config.device, config.dtype)
    texts = load_data(config, seed)["test"]["text"]
    started = time.perf_counter()
    predictor.logits(texts, config.batch_size)
    per_text = 1000 * (time.perf_counter() - started) / len(texts)
    figures = {name: trained.figures[name] for name in SCORES}
    return {**figures, "parameters": weights, "MB": size / 1e6, "minutes": trained.minutes, "ms per text": per_text}


def baseline_row(config: TrainConfig) -> dict[str, Any]:
    """Train and measure what every encoder must beat: TF-IDF of words and pairs, and logistic regression."""
    costs = [baseline_costs(config, seed) for seed in config.seeds]
    return {"model": "TF-IDF + logistic regression", **mean_figures(costs, SCORES)}


def baseline_costs(config: TrainConfig, seed: int) -> dict[str, float]:
    """Return the baseline's figures beside what it costs."""
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline

    splits = load_data(config, seed)
    model = make_pipeline(
        TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True, preprocessor=lambda text: clean(text).lower()),
        LogisticRegression(C=10, max_iter=1000),
    )
    started = time.perf_counter()
    model.fit(splits["train"]["text"], splits["train"]["label"])
    trained = time.perf_counter()
    probabilities = model.predict_proba(splits["test"]["text"])
    seconds = time.perf_counter() - trained
    names = splits["train"].features["label"].names
    filled = np.zeros((len(probabilities), len(names)))
    filled[:, model.classes_] = probabilities  # a label that train lacks has none
    figures = classification_figures(np.array(splits["test"]["label"]), filled)
    weights = model[-1].coef_.size + model[-1].intercept_.size
    return {
        **{name: figures[name] for name in SCORES},
        "parameters": weights,
        "MB": model[-1].coef_.nbytes / 1e6,
        "minutes": (trained - started) / 60,
        "ms per text": 1000 * seconds / len(probabilities),
    }


if __name__ == "__main__":
    run_commands(
        {"train": train, "compare": compare},
        module=MODULE,
        package_yaml=Path(__file__).parents[1] / "config.yaml",
        extra="sentiment",
    )
