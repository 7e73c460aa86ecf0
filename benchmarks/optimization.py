"""Every promise of project 5, on SST-2: against eager PyTorch, and the same model one request at a time.

make bench-optimization                     # everything; about 40 minutes on two quiet cores, most of it training
make bench-optimization ARGS="--only dynamic --only static"

A MiniLM is trained on SST-2's train split; accuracy is that of its dev split, 872 sentences. Models are kept under
``outputs/model_optimization/cache`` and made anew when a recipe here changes.
"""

from __future__ import annotations

import hashlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

from model_optimization.__main__ import serving
from model_optimization.builtin.subject import CACHE, Data, Recipe, Subject, fine_tune, load_subject
from model_optimization.deployment.onnx_conversion import Classifier, OnnxClassifier, convert, gate, megabytes
from model_optimization.distillation.teacher_student import Terms, distill, evenly, keep_layers
from model_optimization.monitoring.performance_metrics import (
    MIXED,
    SINGLE,
    Target,
    bodies_of,
    closed_loop,
    measure_latency,
    open_loop,
)
from model_optimization.pruning.magnitude_pruning import compressed_megabytes
from model_optimization.pruning.structured_pruning import prune, prune_vocabulary
from model_optimization.quantization.dynamic_quantization import quantize_dynamic_bundle, torchao_int8
from model_optimization.quantization.quantization_aware_training import convert_quantized, quantization_aware_train
from model_optimization.quantization.static_quantization import calibration_rows, quantize_static_bundle
from shared.benchmark import Row, Skip, data_folder, run_benchmarks

THREADS = 1
PEER = "PyTorch eager float32, same model, same threads"


# --- The models -------------------------------------------------------------------------------------------------------


@cache
def sst2(quick: bool) -> Data:
    """Read SST-2: train, 400 sentences of it as validation, and dev as test."""
    folder = data_folder() / "sentiment" / "movies"

    def read(name: str) -> list[tuple[str, int]]:
        lines = (folder / name).read_text(encoding="utf-8").splitlines()
        return [(text, int(label)) for text, _, label in (line.rpartition("\t") for line in lines)]

    train = read("sst2_train.tsv")
    random.Random(0).shuffle(train)
    size = 200 if quick else None
    splits = {"train": train[400:][:size], "validation": train[:400], "test": read("sst2_dev.tsv")[:size]}
    return Data(splits, ["negative", "positive"], "SST-2")


def recipe(epochs: float, learning_rate: float, quick: bool) -> Recipe:
    """Return a recipe; a quick one looks at everything once."""
    return Recipe(epochs=0.2 if quick else epochs, learning_rate=learning_rate)


def kept(name: str, quick: bool, make: Callable[[Path], object]) -> Path:
    """Return the folder of a model; make it where it is missing or its recipe, this file and the project, changed."""
    root = Path(__file__).parents[1]
    sources = [Path(__file__), *sorted((root / "model_optimization").rglob("*.py"))]
    recipes = [path for path in sources if path.parent.name not in ("monitoring", "deployment") or "onnx" in path.name]
    digest = hashlib.sha256(b"".join(path.read_bytes() for path in recipes)).hexdigest()[:12]
    folder = CACHE / f"bench-{digest}{'-quick' if quick else ''}" / name
    if not folder.exists():
        part = folder.with_name(f".{name}.part")
        make(part)
        part.rename(folder)
    return folder


@cache
def subject(quick: bool) -> Subject:
    """Return MiniLM, fine-tuned on SST-2."""
    data = sst2(quick)
    return load_subject(str(kept("subject", quick, lambda to: fine_tune(data, recipe(3, 1e-4, quick)).save(to))))


@cache
def student(quick: bool) -> Subject:
    """Return three of its layers with nine tenths of their neurons, distilled."""

    def make(folder: Path) -> None:
        rows = sst2(quick).splits["train"]
        made = prune(keep_layers(subject(quick), evenly(3, 6)), rows[:512], heads=0.0, neurons=0.1)
        distill(subject(quick), made, rows, recipe(5, 3e-4, quick), Terms(hidden=1.0))
        made.save(folder)

    return load_subject(str(kept("student", quick, make)))


@cache
def float_bundle(quick: bool) -> OnnxClassifier:
    """Return the subject as ONNX."""
    return OnnxClassifier(kept("float32", quick, lambda to: convert(subject(quick), to)), THREADS)


@cache
def dynamic_bundle(quick: bool) -> OnnxClassifier:
    """Return the subject in dynamic INT8."""
    texts = calibration_rows(sst2(quick).splits["train"])
    return OnnxClassifier(
        kept("dynamic", quick, lambda to: quantize_dynamic_bundle(float_bundle(quick), to, texts)), THREADS
    )


@cache
def static_bundle(quick: bool) -> OnnxClassifier:
    """Return the subject in static INT8."""
    texts = calibration_rows(sst2(quick).splits["train"])
    return OnnxClassifier(
        kept("static", quick, lambda to: quantize_static_bundle(float_bundle(quick), to, texts)), THREADS
    )


@cache
def qat_bundle(quick: bool) -> OnnxClassifier:
    """Return the subject, trained in INT8."""

    def make(folder: Path) -> None:
        convert_quantized(quantization_aware_train(subject(quick), sst2(quick), recipe(1, 2e-5, quick)), folder)

    return OnnxClassifier(kept("qat", quick, make), THREADS)


@cache
def pruned(quick: bool) -> Subject:
    """Return the subject with half of its heads and neurons, recovered."""

    def make(folder: Path) -> None:
        rows = sst2(quick).splits["train"]
        made = prune(subject(quick), rows[:512], heads=0.5, neurons=0.6)
        distill(subject(quick), made, rows, recipe(4, 2e-4, quick), Terms(hidden=1.0), what="recover")
        made.save(folder)

    return load_subject(str(kept("pruned", quick, make)))


@cache
def stacked_bundle(quick: bool) -> OnnxClassifier:
    """Return the pruned model without two of its layers, distilled, with less vocabulary, in dynamic INT8."""

    def make(folder: Path) -> None:
        data = sst2(quick)
        rows = data.splits["train"]
        small = keep_layers(pruned(quick), evenly(4, 6))
        distill(subject(quick), small, rows, recipe(4, 2e-4, quick), Terms(hidden=1.0), what="recover")
        small = prune_vocabulary(small, data.texts("train"), 16_000)
        with tempfile.TemporaryDirectory() as place:
            quantize_dynamic_bundle(convert(small, Path(place)), folder, calibration_rows(rows))

    return OnnxClassifier(kept("stack", quick, make), THREADS)


# --- Compression ------------------------------------------------------------------------------------------------------


def in_turn(before: Classifier, after: Classifier, quick: bool) -> tuple[float, float, str, str]:
    """Time two classifiers in turn: speedups of both batches, and both sides' milliseconds."""
    import torch

    texts, threads = sst2(quick).texts("test"), torch.get_num_threads()
    torch.set_num_threads(THREADS)
    slow, fast = measure_latency([before, after], texts, repeats=3 if quick else 60)
    torch.set_num_threads(threads)
    single, mixed = (slow[batch].median / fast[batch].median for batch in (SINGLE, MIXED))
    shown = [f"{its[SINGLE].median:.1f} and {its[MIXED].median:.1f} ms" for its in (slow, fast)]
    return single, mixed, shown[0], f"×{single:.1f} and ×{mixed:.1f} ({shown[1]})"


def compression(
    what: str, classifier: Classifier, quick: bool, *, speed: float, most_loss: float, target: str,
    agreement: float = 0.0, share: float = 1.0, most_megabytes: float = float("inf"), kept_share: float = 0.0,
) -> Row:  # fmt: skip
    """Build the row of a compressed model: speed on both batches, size, accuracy and agreement."""
    single, mixed, peer, shown = in_turn(subject(quick), classifier, quick)
    figures = gate(subject(quick), classifier, sst2(quick), most_loss=1.0)
    whole = compressed_megabytes(subject(quick).model)[0]
    if isinstance(classifier, OnnxClassifier):
        size = megabytes(classifier.folder)
    else:
        assert isinstance(classifier, Subject)
        size = compressed_megabytes(classifier.model)[0]
    before = figures["accuracy"] + figures["loss"]
    shown += (
        f", accuracy {figures['accuracy']:.4f} ({-100 * figures['loss']:+.2f} points), agreement "
        f"{figures['agreement']:.2%}, {size:.1f} MB ({size / whole:.0%})"
    )
    good = (
        min(single, mixed) >= speed and figures["loss"] <= most_loss and figures["agreement"] >= agreement
        and size <= min(share * whole, most_megabytes) and figures["accuracy"] >= kept_share * before
    )  # fmt: skip
    return Row(f"{what}; {SINGLE}, and {MIXED}", PEER, f"{peer}, accuracy {before:.4f}, {whole:.1f} MB", shown, target,
               good)  # fmt: skip


def dynamic(quick: bool) -> Row:
    """Measure dynamic INT8."""
    return compression("dynamic INT8", dynamic_bundle(quick), quick, speed=3.0, most_loss=0.005, agreement=0.98,
                       share=0.27, target="×≥ 3.0, ≤ 27 %, loss ≤ 0.5 points, agreement ≥ 98 %")  # fmt: skip


def compiled(quick: bool) -> Row:
    """Measure torchao's dynamic INT8 against float32, both compiled by PyTorch: what is possible without ONNX."""
    import torch

    if not shutil.which("g++"):
        raise Skip("torch.compile needs a C++ compiler")
    before, after = subject(quick), torchao_int8(subject(quick))
    exact = before.with_model(before.model, "compiled float32")
    exact.model = torch.compile(before.model, dynamic=True)
    figures = gate(before, after, sst2(quick), most_loss=1.0)
    _, _, peer, shown = in_turn(exact, after, quick)
    return Row("torchao's dynamic INT8, compiled", "PyTorch float32, compiled, same threads", peer,
               f"{shown}, accuracy {figures['accuracy']:.4f} ({-100 * figures['loss']:+.2f} points)", "–",
               True)  # fmt: skip


def static(quick: bool) -> Row:
    """Measure static INT8."""
    return compression("static INT8", static_bundle(quick), quick, speed=3.0, most_loss=0.01,
                       target="×≥ 3.0, loss ≤ 1 point")  # fmt: skip


def qat(quick: bool) -> Row:
    """Measure quantization-aware training."""
    return compression("quantization-aware training, INT8", qat_bundle(quick), quick, speed=0.0, most_loss=0.003,
                       target="loss ≤ 0.3 points")  # fmt: skip


def structured(quick: bool) -> Row:
    """Measure structured pruning, still in eager PyTorch."""
    return compression("structured pruning with recovery, eager PyTorch", pruned(quick), quick, speed=1.8,
                       most_loss=0.015, target="×≥ 1.8, loss ≤ 1.5 points")  # fmt: skip


def distilled(quick: bool) -> Row:
    """Measure the student, still in eager PyTorch."""
    return compression("distilled into 3 layers, nine tenths of their neurons, eager PyTorch", student(quick), quick,
                       speed=1.9, most_loss=1.0, kept_share=0.97, target="×≥ 1.9, ≥ 97 % of the accuracy")  # fmt: skip


def stack(quick: bool) -> Row:
    """Measure everything together."""
    return compression("distilled, pruned, less vocabulary, INT8, ONNX", stacked_bundle(quick), quick, speed=8.0,
                       most_loss=0.02, most_megabytes=12, target="×≥ 8, loss ≤ 2 points, ≤ 12 MB")  # fmt: skip


# --- The service ------------------------------------------------------------------------------------------------------


def throughput(quick: bool) -> Row:
    """Count the answers a second of one client, and of 32 at once, from the same service."""
    texts = sst2(quick).texts("test")[: 100 if quick else 600]
    bundle = static_bundle(quick)
    answers: dict[int, str] = {}

    def remember(number: int, content: bytes) -> None:
        answers[number] = json.loads(content)["predictions"][0]["label"]

    with serving(bundle.folder) as (address, _):
        target = Target(f"{address}/predict", bodies_of(texts), on_answer=remember)
        closed_loop(target, 8, len(texts))  # warm
        alone = closed_loop(target, 1, len(texts) // 2).figures()["throughput"]
        answers.clear()
        crowd = closed_loop(target, 32, 4 * len(texts)).figures()
    expected = [found.label for found in bundle.predict(texts, batch_size=1)]
    same = sum(answers.get(i) == expected[i % len(texts)] for i in range(4 * len(texts)))
    ratio = crowd["throughput"] / alone
    return Row("service, static INT8, one sentence a request, 32 clients; load and service share two cores",
               "one request at a time, same service", f"{alone:.0f}/s",
               f"{crowd['throughput']:.0f}/s (×{ratio:.1f}), p95 {crowd['p95']:.0f} ms, {same:,} of {4 * len(texts):,} "
               "labels the same as the model's", "×≥ 3, all labels the same",
               ratio >= 3 and same == 4 * len(texts))  # fmt: skip


def overload(quick: bool) -> Row:
    """Send twice what the service can bear, then SIGTERM in the middle of a load."""
    texts = sst2(quick).texts("test")
    bodies = bodies_of([" ".join(texts[i : i + 4]) for i in range(0, len(texts) - 4, 4)])  # about 100 tokens each
    with serving(static_bundle(quick).folder) as (address, process):
        target = Target(f"{address}/predict", bodies, pid=process.pid, probe=f"{address}/healthz")
        capacity = closed_loop(target, 16, 200 if quick else 1500).figures()["throughput"]
        load = open_loop(target, 2 * capacity, 5 if quick else 60)
        figures = load.figures()
        lost, answered = stopped_under_load(f"{address}/predict", bodies, process)
    statuses = set(load.statuses)
    growth = figures["memory_last"] - figures["memory_first"]
    ok = (
        statuses <= {"200", "429", "503"} and "200" in statuses and figures["probe_max"] < 100 and growth < 50
        and lost == 0 and process.returncode == 0
    )  # fmt: skip
    return Row(f"{2 * capacity:.0f} requests/s for {5 if quick else 60} s, twice what was borne; SIGTERM under load",
               "–", f"{capacity:.0f}/s in closed loop",
               f"statuses {', '.join(sorted(statuses))}; {figures['goodput']:.0f} answers/s, "
               f"{figures['rejected']:.0%} refused; accepted p50 {figures['p50']:.0f}, p99 {figures['p99']:.0f} ms; "
               f"/healthz at most {figures['probe_max']:.0f} ms; memory {figures['memory_first']:.0f} → "
               f"{figures['memory_last']:.0f} MB; SIGTERM: {answered} answered, {lost} lost, exit {process.returncode}",
               "200, 429, 503 only; /healthz < 100 ms; memory flat; none lost", ok)  # fmt: skip


def stopped_under_load(url: str, bodies: list[bytes], process: subprocess.Popen[bytes]) -> tuple[int, int]:
    """Send SIGTERM while 16 clients ask; returns how many requests were lost after they were sent, and answered."""
    import httpx

    lost, answered = [0], [0]
    lock = threading.Lock()

    def client() -> None:
        with httpx.Client(timeout=30) as session:
            for body in bodies * 100:
                try:
                    status = session.post(url, content=body, headers={"content-type": "application/json"}).status_code
                except httpx.ConnectError:
                    return  # no longer there: nothing was accepted
                except httpx.HTTPError:
                    with lock:
                        lost[0] += 1
                    return
                with lock:
                    answered[0] += status == 200

    threads = [threading.Thread(target=client) for _ in range(16)]
    for thread in threads:
        thread.start()
    time.sleep(1.5)
    process.send_signal(signal.SIGTERM)
    process.wait(60)
    for thread in threads:
        thread.join()
    return lost[0], answered[0]


# --- Drift ------------------------------------------------------------------------------------------------------------


def drift(quick: bool) -> Row:
    """Measure false alarms and power on movie reviews, which the classifier has not learned from."""
    import gzip

    folder = data_folder() / "sentiment"
    with gzip.open(folder / "movies" / "imdb_train.jsonl.gz", "rt", encoding="utf-8") as file:
        reviews = [json.loads(line) for line in file]
    random.Random(0).shuffle(reviews)
    tweets = (folder / "tweets" / "val_text.txt").read_text(encoding="utf-8").splitlines()
    names = ["negative", "positive"]
    with tempfile.TemporaryDirectory() as place:
        rows = [{"text": row["text"], "label": names[int(row["label"])]} for row in reviews[: 1000 if quick else 6000]]
        Path(place, "reviews.jsonl").write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
        Path(place, "tweets.txt").write_text("\n".join(tweets), encoding="utf-8")
        run_module("model_optimization.monitoring.drift_detection", "simulate", "--bundle",
                   str(stacked_bundle(quick).folder.resolve()), "--data", f"{place}/reviews.jsonl", "--other",
                   f"{place}/tweets.txt", "--run", "drift", "--windows", "20" if quick else "200",
                   cwd=place)  # fmt: skip
        path = Path(place, "outputs/model_optimization/drift/results.json")
        figures = json.loads(path.read_text(encoding="utf-8"))["metrics"]
    power = [figures[f"power_{name}"] for name in ("prior", "typos", "domain")]
    return Row("drift monitor, windows of 200 IMDB reviews, level .05", "alibi-detect: 10/90 class skew at n = 1,000",
               "–", f"false alarms {figures['false_alarms']:.3f} [{figures['false_alarms_low']:.3f}, "
               f"{figures['false_alarms_high']:.3f}] in {figures['false_alarms_windows']:.0f} windows; power: "
               f"prior .5 → .7 {power[0]:.2f}, typos in 10 % of words {power[1]:.2f}, tweets {power[2]:.2f}",
               "false alarms ≤ .08, power ≥ .8 each",
               figures["false_alarms"] <= 0.08 and min(power) >= 0.8)  # fmt: skip


def run_module(module: str, *arguments: str, cwd: str) -> None:
    """Run a command of the project in a folder."""
    root = str(Path(__file__).parents[1])
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, [root, os.environ.get("PYTHONPATH")]))}
    subprocess.run([sys.executable, "-m", module, *arguments], cwd=cwd, env=environment, check=True)


def demo(quick: bool) -> Row:
    """Time the project's share of `make demo`, from nothing."""
    if quick:
        raise Skip("the demo is one length only")
    with tempfile.TemporaryDirectory() as place:
        started = time.monotonic()
        run_module("model_optimization", "--run", "demo", cwd=place)
        seconds = time.monotonic() - started
        path = Path(place, "outputs/model_optimization/demo/results.json")
        metrics: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))["metrics"]
    return Row("`make demo`'s share", "–", "", f"{seconds:.0f} s; {metrics['best']}: ×{metrics['best_speedup']:.1f}, "
               f"{100 * metrics['best_loss']:+.1f} points lost", "≤ 180 s", seconds <= 180)  # fmt: skip


if __name__ == "__main__":
    run_benchmarks("optimization", {
        "dynamic": dynamic, "compiled": compiled, "static": static, "qat": qat, "structured": structured,
        "distilled": distilled, "stack": stack, "throughput": throughput, "overload": overload, "drift": drift,
        "demo": demo,
    })  # fmt: skip
