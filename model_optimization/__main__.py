"""The whole chain on one classifier: compress in every way, gate, compare, serve the best, watch it.

python -m model_optimization                                   # builtin:minilm-stays, a few minutes on 2 cores
python -m model_optimization --model outputs/model_optimization/mine/model --data my-folder
python -m model_optimization --serve true --port 8000          # and leave the best one running
"""

from __future__ import annotations

import copy
import json
import logging
import os
import re
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from model_optimization.builtin.subject import NOT_RECIPE, Data, DataConfig, Recipe, Subject, check_labels, load_subject
from model_optimization.deployment.onnx_conversion import (
    PROJECT,
    Classifier,
    GateError,
    OnnxClassifier,
    convert,
    measured,
    megabytes,
    softmax,
)
from model_optimization.distillation.teacher_student import Terms, distill, evenly, keep_layers
from model_optimization.monitoring.drift_detection import FEWEST, DriftMonitor, inject_typos
from model_optimization.monitoring.performance_metrics import (
    SINGLE,
    Target,
    Variant,
    bodies_of,
    closed_loop,
    key_header,
    measure_latency,
    plot_variants,
    process_memory,
    table_of_variants,
)
from model_optimization.pruning.magnitude_pruning import apply_masks, compressed_megabytes, masks, prunable
from model_optimization.pruning.structured_pruning import prune, prune_vocabulary
from model_optimization.quantization.dynamic_quantization import quantize_dynamic_bundle
from model_optimization.quantization.quantization_aware_training import convert_quantized, quantization_aware_train
from model_optimization.quantization.static_quantization import calibration_rows, quantize_static_bundle
from shared.config import check_range, run_commands
from shared.errors import InputError
from shared.results import Run, write_atomic

MODULE = "model_optimization"
PYTORCH = "PyTorch float32"
logger = logging.getLogger(MODULE)


@dataclass
class ChainConfig(DataConfig):
    """Compress one classifier in every way of this project, compare, serve the best, and watch it."""

    model: str = "builtin:minilm-stays"
    """The classifier: builtin:minilm-stays, a folder or a hub id."""
    layers: int = 3
    """Layers of the distilled student, >= 1."""
    heads: float = 0.5
    """Share of the attention heads that structured pruning cuts, in [0, 1)."""
    neurons: float = 0.5
    """Share of the feed-forward neurons that structured pruning cuts, in [0, 1)."""
    vocabulary: int = 8000
    """Tokens that the smallest model keeps; 0 keeps all."""
    sparsity: float = 0.5
    """Share of the weights that magnitude pruning sets to 0, in [0, 1)."""
    effort: float = 1.0
    """Multiplies the epochs of every training here, > 0."""
    most_loss: float = 0.03
    """Accuracy that the served model may have lost, in [0, 1]."""
    repeats: int = 5
    """Timed runs of each batch, >= 1."""
    seed: int = field(default=0, metadata=NOT_RECIPE)
    """Of the order of texts."""
    serve: bool = field(default=False, metadata=NOT_RECIPE)
    """Leave the best model running until Ctrl-C."""
    port: int = field(default=0, metadata=NOT_RECIPE)
    """Port of the service; 0 takes a free one."""

    def __post_init__(self) -> None:
        """Check the ranges."""
        super().__post_init__()
        for name in ("heads", "neurons", "sparsity"):
            if not 0 <= getattr(self, name) < 1:
                raise InputError(f"{name} must be in [0, 1). Got {getattr(self, name)}.")
        for name in ("layers", "repeats"):
            check_range(name, getattr(self, name), 1)
        check_range("effort", self.effort, 0, open_low=True)
        check_range("most_loss", self.most_loss, 0, 1)
        check_range("vocabulary", self.vocabulary, 0)
        check_range("port", self.port, 0, 65535)

    def recipe(self, epochs: float, learning_rate: float) -> Recipe:
        """Return a recipe for one of the trainings."""
        return Recipe(epochs=epochs * self.effort, learning_rate=learning_rate, seed=self.seed, device=self.device)


# --- Compress ---------------------------------------------------------------------------------------------------------


def variants_of(subject: Subject, data: Data, config: ChainConfig, folder: Path) -> Iterator[tuple[str, Classifier]]:
    """Make every variant, one after the other.

    Args:
        subject: The classifier.
        data: What it learns from, and is measured on.
        config: How.
        folder: Where the bundles go.

    Yields:
        Name and classifier; the first is the subject itself.
    """
    rows = data.splits["train"]
    calibration = calibration_rows(rows, 64)
    yield PYTORCH, subject
    exact = convert(subject, folder / "onnx-float32")
    yield "ONNX float32", exact
    yield "dynamic INT8", quantize_dynamic_bundle(exact, folder / "dynamic-int8", calibration)
    yield "static INT8", quantize_static_bundle(exact, folder / "static-int8", calibration)
    aware = quantization_aware_train(subject, data, config.recipe(0.25, 2e-5))
    yield "QAT INT8", convert_quantized(aware, folder / "qat-int8")
    yield f"{config.sparsity:.0%} of weights 0", sparse(subject, config.sparsity)
    pruned = prune(subject, rows[:256], heads=config.heads, neurons=config.neurons)
    distill(subject, pruned, rows, config.recipe(0.7, 2e-4), Terms(hidden=1.0), what="recover")
    yield "pruned, PyTorch", pruned
    depth = subject.model.config.num_hidden_layers
    student = keep_layers(subject, evenly(config.layers, depth))
    distill(subject, student, rows, config.recipe(1.2, 3e-4), Terms(hidden=1.0))
    yield "distilled, PyTorch", student
    small = keep_layers(pruned, evenly(min(config.layers + 1, depth), depth))  # narrow layers are cheap: one more
    distill(subject, small, rows, config.recipe(1, 2e-4), Terms(hidden=1.0))
    if 0 < config.vocabulary < subject.encoder.vocabulary:
        small = prune_vocabulary(small, data.texts("train"), config.vocabulary)  # what it has read, it reads as before
    small_exact = convert(small, folder / "small", techniques=["structured pruning", "distillation"])
    yield "all together", quantize_dynamic_bundle(small_exact, folder / "all-together", calibration)


def sparse(subject: Subject, sparsity: float) -> Subject:
    """Return a copy of a classifier whose smallest weights are 0."""
    copied = subject.with_model(copy.deepcopy(subject.model), f"{subject.name}, sparsity {sparsity:.0%}")
    weights = list(prunable(copied.model).values())
    apply_masks(weights, masks(weights, sparsity))
    return copied


def compare(named: Sequence[tuple[str, Classifier]], data: Data, repeats: int) -> list[Variant]:
    """Measure all variants in turn, on the same texts.

    Args:
        named: Name and classifier of each; the first is what the others are held against.
        data: Its test split is labeled.
        repeats: Timed runs of each batch.
    """
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # as many as a bundle is loaded with
    latencies = measure_latency([classifier for _, classifier in named], data.texts("test"), repeats=repeats, warmup=1)
    torch.set_num_threads(threads)
    answers = [classifier.logits(data.texts("test")).argmax(1) for _, classifier in named]
    rows = []
    for (name, classifier), latency, found in zip(named, latencies, answers, strict=True):
        if isinstance(classifier, OnnxClassifier):
            size, memory = megabytes(classifier.folder), process_memory(classifier.folder)
        else:
            assert isinstance(classifier, Subject)
            size, memory = compressed_megabytes(classifier.model)[0], None
        right = float((found == data.labels("test")).mean())
        rows.append(Variant(name, right, float((found == answers[0]).mean()), size, memory, latency))
    return rows


def best_of(variants: Sequence[Variant], most_loss: float) -> Variant:
    """Choose the fastest bundle that loses no more accuracy than allowed.

    Raises:
        GateError: None does.
    """
    passing = [v for v in variants if v.memory is not None and variants[0].accuracy - v.accuracy <= most_loss]
    if not passing:
        raise GateError(f"Every variant loses more than {most_loss} of accuracy.", hint="--most_loss, or more --effort")
    return min(passing, key=lambda variant: variant.latency[SINGLE].median)


# --- Serve and watch --------------------------------------------------------------------------------------------------


@contextmanager
def serving(bundle: Path, port: int = 0, monitor: Path | None = None) -> Iterator[tuple[str, subprocess.Popen[bytes]]]:
    """Run the service in a process of its own, with a drift monitor if there is one; yields address and process.

    Raises:
        OSError: It does not come up.
    """
    with socket.socket() as free:
        free.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            free.bind(("127.0.0.1", port))
        except OSError as error:  # or another service would answer in the place of this one
            raise OSError(f"Can't listen on 127.0.0.1:{port}: {error.strerror}.") from None
        port = free.getsockname()[1]
    command = [
        "-m",
        "model_optimization.deployment.fastapi_server",
        "serve",
        "--bundle",
        str(bundle),
        "--port",
        str(port),
    ]
    command += ["--drift", str(monitor)] if monitor else []
    log = (bundle.parent / "server.log").open("wb")
    process = subprocess.Popen([sys.executable, *command], stderr=log, env={**os.environ, "OMP_NUM_THREADS": "1"})
    address = f"http://127.0.0.1:{port}"
    try:
        for _ in range(600):
            try:
                with urllib.request.urlopen(f"{address}/readyz", timeout=1) as response:
                    if response.status == 200:
                        break
            except (urllib.error.URLError, OSError):
                if process.poll() is not None:
                    raise OSError(f"The service ended with {process.returncode}; see {log.name}.") from None
                time.sleep(0.1)
        else:
            raise OSError(f"The service at {address} is not ready after a minute; see {log.name}.")
        yield address, process
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(30)
        log.close()


def try_out(address: str, texts: Sequence[str], bundle: OnnxClassifier) -> dict[str, float]:
    """Ask the service, one request after the other and from 32 clients at once, and compare its labels.

    Args:
        address: Of the service.
        texts: What to ask.
        bundle: What it serves, loaded here.

    Returns:
        ``one_at_a_time`` and ``clients_32`` in answers a second, and ``same_labels``, a share.
    """
    answers: dict[int, str] = {}

    def remember(number: int, content: bytes) -> None:
        answers[number] = json.loads(content)["predictions"][0]["label"]

    target = Target(f"{address}/predict", bodies_of(texts), headers=key_header(), on_answer=remember)
    alone = closed_loop(target, 1, len(texts), what="one request at a time").figures()["throughput"]
    crowd = closed_loop(target, 32, 4 * len(texts), what="32 clients at once").figures()["throughput"]
    expected = [found.label for found in bundle.predict(texts, batch_size=1)]  # in company dynamic INT8 may differ
    same = sum(answers.get(number) == expected[number % len(texts)] for number in range(4 * len(texts)))
    return {"one_at_a_time": alone, "clients_32": crowd, "same_labels": same / (4 * len(texts))}


def watch(address: str, texts: Sequence[str]) -> bool:
    """Send texts to the service until its drift monitor has tested a window, and return whether it found drift.

    Args:
        address: Of the service.
        texts: As many as a window has, so that none is left of another kind.

    Raises:
        OSError: The monitor tests nothing.
    """
    before = _drift(address)["windows"]
    target = Target(f"{address}/predict", bodies_of(texts), headers=key_header())
    for _ in range(60):  # just after a window it passes texts over, so as not to take the processor
        closed_loop(target, 8, len(texts), what="watch for drift")
        for _ in range(10):
            report = _drift(address)
            if report["windows"] > before:
                return bool(report["results"][-1]["drift"])
            time.sleep(0.1)
    raise OSError("The drift monitor has not tested a window.")


def _drift(address: str) -> dict[str, Any]:
    request = urllib.request.Request(f"{address}/drift", headers=key_header())
    with urllib.request.urlopen(request, timeout=10) as response:
        report: dict[str, Any] = json.load(response)
        return report


# --- Command ----------------------------------------------------------------------------------------------------------


def chain(config: ChainConfig) -> None:
    """Run the chain; see :class:`ChainConfig`."""
    data = config.load()
    subject = load_subject(config.model, config.max_length)
    check_labels(subject, data)
    evenly(config.layers, subject.model.config.num_hidden_layers)  # or it would fail in the middle
    if len(held_out(data)) < 4 * FEWEST:
        raise InputError(f"validation and test must have {4 * FEWEST} texts together, for the drift monitor. "
                         f"{data.name} has {len(held_out(data))}.")  # fmt: skip
    run = Run(PROJECT, MODULE, "chain", config, name=config.run)
    named = list(variants_of(subject, data, config, run.folder / "bundles"))
    variants = compare(named, data, config.repeats)
    table = table_of_variants(variants)
    write_atomic(run.folder / "variants.md", table + "\n")
    plot_variants(variants, run.folder / "pareto.png")
    best = best_of(variants, config.most_loss)
    metrics = figures_of(variants, best)
    bundle = next(found for name, found in named if name == best.name and isinstance(found, OnnxClassifier))
    bundle = measured(bundle, data)
    metrics |= serve_and_watch(bundle, data, run.folder)
    run.finish(model=subject.name, data=data.name, seed=config.seed, metrics=metrics)
    sys.stdout.write(f"{table}\n\nbest: {best.name}, in {bundle.folder}\n")
    figures = {name: value for name, value in metrics.items() if name != "best"}
    sys.stdout.write("".join(f"{name} {value:.4g}\n" for name, value in figures.items()))
    sys.stdout.write(f"{run.folder / 'pareto.png'}\n")
    if config.serve:
        with serving(bundle.folder, config.port, run.folder / "monitor") as (address, process):
            sys.stdout.write(f"serving {best.name} at {address}, see {address}/docs; Ctrl-C ends it\n")
            sys.stdout.flush()
            process.wait()


def figures_of(variants: Sequence[Variant], best: Variant) -> dict[str, Any]:
    """Return the figures that the README promises."""
    first = variants[0]
    metrics: dict[str, Any] = {"accuracy": first.accuracy, "megabytes": first.megabytes}
    for variant in variants[1:]:
        key = re.sub(r"\W+", "_", variant.name).strip("_").lower()
        speedup = first.latency[SINGLE].median / variant.latency[SINGLE].median
        metrics |= {f"{key}_accuracy": variant.accuracy, f"{key}_speedup": speedup, f"{key}_mb": variant.megabytes}
    metrics["best"] = best.name
    metrics["best_speedup"] = first.latency[SINGLE].median / best.latency[SINGLE].median
    metrics["best_loss"] = first.accuracy - best.accuracy
    metrics["best_megabytes"] = best.megabytes
    return metrics


def held_out(data: Data) -> list[str]:
    """Return the texts that no model has learned from, each once."""
    return list(dict.fromkeys(data.texts("validation") + data.texts("test")))


def serve_and_watch(bundle: OnnxClassifier, data: Data, folder: Path) -> dict[str, float]:
    """Serve a bundle for a moment: throughput, labels, and what its monitor makes of texts without and with typos."""
    texts = held_out(data)
    window = min(200, len(texts) // 4)
    known, fresh = texts[window:], texts[:window]
    logits, embeddings = bundle.outputs(known)
    monitor = DriftMonitor.fit(softmax(logits), embeddings, bundle.label_names, window=window, model=bundle.version)
    monitor.save(folder / "monitor")
    with serving(bundle.folder, monitor=folder / "monitor") as (address, _):
        drift = watch(address, fresh)
        typos = watch(address, inject_typos(fresh, 0.3))
        figures = try_out(address, fresh, bundle)
    false_alarms = monitor.false_alarms
    return {
        **{f"served_{name}": value for name, value in figures.items()},
        "monitor_false_alarms": false_alarms.rate if false_alarms else float("nan"),
        "drift_found_in_fresh_texts": float(drift), "drift_found_in_typos": float(typos),
    }  # fmt: skip


if __name__ == "__main__":
    run_commands({"chain": chain}, module=MODULE, extra="optimization")
