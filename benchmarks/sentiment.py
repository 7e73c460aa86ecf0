"""Every promise of project 2, measured against transformers' own pipeline and Trainer, and TF-IDF.

make bench-sentiment                  # everything; about 20 minutes on two quiet cores
make bench-sentiment ARGS="--only prediction --only demo"

The test splits of SST-2, IMDB and TweetEval are not at hand; their rows stand on texts held out of training.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from bert_sentiment_analysis.builtin.train_adapters import Pair, held_out, imdb, prepare, sst2
from bert_sentiment_analysis.data.preprocessor import Encoding, clean
from bert_sentiment_analysis.evaluation.metrics import classification_figures
from bert_sentiment_analysis.inference.predictor import SentimentPredictor
from bert_sentiment_analysis.models.trainer import TrainConfig, last_checkpoint
from shared.benchmark import Row, data_folder, interleaved_medians, run_benchmarks

MODULE = "bert_sentiment_analysis.models.trainer"


def environment() -> dict[str, str]:
    """Return the environment for a process that finds this repository's packages from any folder."""
    root = str(Path(__file__).parents[1])
    return {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, [root, os.environ.get("PYTHONPATH")]))}


# --- Quality ----------------------------------------------------------------------------------------------------------


def baseline(train: list[Pair], test: list[Pair], figure: str) -> str:
    """Return the same figure of TF-IDF (words and pairs) with logistic regression, learned from ``train``."""
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline

    model = make_pipeline(
        TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True), LogisticRegression(C=10, max_iter=1000)
    )
    names = sorted({label for _, label in train})
    model.fit([clean(text).lower() for text, _ in train], [names.index(label) for _, label in train])
    probabilities = model.predict_proba([clean(text).lower() for text, _ in test])
    figures = classification_figures(np.array([names.index(label) for _, label in test]), probabilities)
    return f"{figure} {figures[figure]:.3f}"


def quality(what: str, domain: str, train: list[Pair], test: list[Pair], figure: str, target: float) -> Row:
    """Build the row of one domain: its adapter's figure, with the bootstrap's 95 % interval of accuracy."""
    [figures] = held_out(domain, data_folder() / "sentiment", test).values()
    shown = f"accuracy {figures['accuracy']:.3f} [{figures['accuracy_low']:.3f}, {figures['accuracy_high']:.3f}]"
    shown = f"{'' if figure == 'accuracy' else f'{figure} {figures[figure]:.3f}, '}{shown}, ECE {figures['ece']:.3f}"
    return Row(f"{what}, builtin:{domain}", "TF-IDF + logistic regression, same texts", baseline(train, test, figure),
               f"{shown}, {len(test):,} texts", f"{figure} ≥ {target}", figures[figure] >= target)  # fmt: skip


def sst2_dev(quick: bool) -> Row:
    """Score the movie adapter on the sentences of SST-2's dev split."""
    folder = data_folder() / "sentiment"
    test = sst2(folder, "dev")[: 50 if quick else None]
    return quality("SST-2 dev (stand-in for test)", "movies", sst2(folder, "train"), test, "accuracy", 0.88)


def imdb_held_out(quick: bool) -> Row:
    """Score the movie adapter on 1,000 reviews of IMDB's train split that it has not seen."""
    folder = data_folder() / "sentiment"
    reviews = set(imdb(folder))
    splits = {split: [pair for pair in pairs if pair in reviews] for split, pairs in prepare("movies", folder).items()}
    test = splits["test"][: 20 if quick else None]
    return quality("IMDB, held-out reviews (stand-in for test)", "movies", splits["train"], test, "accuracy", 0.92)


def tweets(quick: bool) -> Row:
    """Score the tweet adapter on half of TweetEval's validation split, which it was not chosen by."""
    splits = prepare("tweets", data_folder() / "sentiment")
    test = splits["test"][: 50 if quick else None]
    return quality("TweetEval sentiment, held-out tweets (stand-in for test)", "tweets", splits["train"], test,
                   "macro_recall", 0.68)  # fmt: skip


def products(quick: bool) -> Row:
    """Score the product adapter on 1,000 held-out product texts."""
    splits = prepare("products", data_folder() / "sentiment")
    test = splits["test"][: 50 if quick else None]
    return quality("product reviews, held out", "products", splits["train"], test, "accuracy", 0.88)


# --- Speed ------------------------------------------------------------------------------------------------------------


def train_plainly(pairs: list[Pair], dev: list[Pair], config: TrainConfig) -> tuple[float, float]:
    """Train as tutorials do: transformers' ``Trainer``, every text padded to 128. Returns seconds and dev accuracy."""
    import torch
    from datasets import Dataset
    from transformers import Trainer, TrainingArguments

    from bert_sentiment_analysis.models.bert_classifier import new_classifier

    torch.manual_seed(0)
    names = ["negative", "positive"]
    made = new_classifier(config.model, names, config.encoding, lora_rank=config.lora_rank)

    def tokenized(rows: list[Pair]) -> Dataset:
        batch = made.tokenizer([clean(text) for text, _ in rows], truncation=True, padding="max_length", max_length=128)
        return Dataset.from_dict({**batch, "labels": [names.index(label) for _, label in rows]})

    with tempfile.TemporaryDirectory() as folder:
        arguments = TrainingArguments(
            output_dir=folder,
            num_train_epochs=config.epochs,
            per_device_train_batch_size=config.batch_size,
            per_device_eval_batch_size=64,
            learning_rate=config.learning_rate,
            warmup_steps=config.warmup,
            weight_decay=config.weight_decay,
            use_cpu=True,
            save_strategy="no",
            report_to="none",
            disable_tqdm=True,
            log_level="error",
            dataloader_pin_memory=False,
        )
        trainer = Trainer(model=made.model, args=arguments, train_dataset=tokenized(pairs))
        started = time.monotonic()
        trainer.train()
        seconds = time.monotonic() - started
        predicted = trainer.predict(tokenized(dev))
    return seconds, float((predicted.predictions.argmax(1) == predicted.label_ids).mean())


def training(quick: bool) -> Row:
    """Compare texts a second of our training with plain ``Trainer``, on SST-2, with the same model, rate and batch."""
    folder = data_folder() / "sentiment"
    pairs, dev = sst2(folder, "train")[: 200 if quick else None], sst2(folder, "dev")[: 50 if quick else None]
    config = TrainConfig(epochs=1.0)
    with tempfile.TemporaryDirectory() as place:
        data = Path(place) / "data"
        data.mkdir()
        for split, rows in (("train", pairs), ("validation", dev), ("test", dev)):
            lines = [json.dumps({"text": text, "label": label}) for text, label in rows]
            (data / f"{split}.jsonl").write_text("\n".join(lines), encoding="utf-8")
        flags = ["--data", str(data), "--epochs", "1", "--evaluations", "1", "--device", "cpu", "--run", "bench"]
        subprocess.run([sys.executable, "-m", MODULE, "train", *flags], cwd=place, check=True, env=environment(),
                       stdout=subprocess.DEVNULL)  # fmt: skip
        results = json.loads((Path(place) / "outputs/bert_sentiment_analysis/bench/results.json").read_text())
    ours = results["metrics"]
    seconds, accuracy = train_plainly(pairs, dev, config)
    theirs = len(pairs) / seconds
    ratio = ours["texts_per_second"] / theirs
    return Row(
        "training on SST-2, LoRA, batch 32, float32, our validation included",
        "transformers' Trainer, padded to 128",
        f"{theirs:.0f} texts/s, dev accuracy {accuracy:.3f}",
        f"{ours['texts_per_second']:.0f} texts/s (×{ratio:.1f}), dev accuracy {ours['accuracy']:.3f}",
        "×≥ 2.0, accuracy within 0.005 or above",
        ratio >= 2 and ours["accuracy"] >= accuracy - 0.005,
    )


def prediction(quick: bool) -> Row:
    """Predict 2,000 texts of mixed length against ``pipeline("text-classification")``: same weights, same batch."""
    from transformers import pipeline

    folder = data_folder() / "sentiment"
    count = 20 if quick else 1000
    rows = [pair for both in zip(imdb(folder)[-count:], sst2(folder, "train")[:count], strict=True) for pair in both]
    texts = [clean(text) for text, _ in rows]
    predictor = SentimentPredictor("builtin:movies", device="cpu")
    longest = 256
    # Cut at the end alone, since that is what the pipeline can do.
    predictor.card.encoding = Encoding(max_length=longest, head=longest)
    theirs = pipeline("text-classification", model=predictor.model, tokenizer=predictor.tokenizer, device="cpu")
    found: dict[str, list[str]] = {}

    def ours() -> None:
        found["ours"] = [p.label or "" for p in predictor.predict(texts, batch_size=32)]

    def peer() -> None:
        rows = theirs(texts, batch_size=32, truncation=True, max_length=longest)
        found["theirs"] = [row["label"] for row in rows]

    our_seconds, their_seconds = interleaved_medians(ours, peer, repeats=1 if quick else 3)
    same = sum(a == b for a, b in zip(found["ours"], found["theirs"], strict=True))
    return Row(
        f"prediction of {len(texts):,} texts of mixed length, batch 32, at most {longest} tokens",
        'pipeline("text-classification"), same weights',
        f"{len(texts) / their_seconds:.0f} texts/s",
        f"{len(texts) / our_seconds:.0f} texts/s (×{their_seconds / our_seconds:.1f}), {same:,} labels the same",
        "×≥ 2.0, same labels",
        their_seconds / our_seconds >= 2 and same == len(texts),
    )


# --- Kills and the demo -----------------------------------------------------------------------------------------------


def resume(quick: bool) -> Row:
    """Kill −9 in the middle, go on, and compare every figure with an uninterrupted run."""
    flags = ["--data", "builtin:products", "--max_train", "300", "--device", "cpu", "--run", "bench"]
    command = [sys.executable, "-m", MODULE, "train", *flags]
    quiet = {"env": environment(), "stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    figures = []
    with tempfile.TemporaryDirectory() as one, tempfile.TemporaryDirectory() as two:
        process = subprocess.Popen(command, cwd=two, **quiet)
        run = Path("outputs/bert_sentiment_analysis/bench")
        while process.poll() is None and not last_checkpoint(Path(two) / run / "checkpoints"):
            time.sleep(0.05)
        process.send_signal(signal.SIGKILL)
        killed = process.wait() == -signal.SIGKILL
        subprocess.run([*command, "--resume", "true"], cwd=two, check=True, **quiet)
        subprocess.run(command, cwd=one, check=True, **quiet)
        for place in (one, two):
            metrics = json.loads((Path(place) / run / "results.json").read_text(encoding="utf-8"))["metrics"]
            figures.append({name: value for name, value in metrics.items() if name != "texts_per_second"})
    same = figures[0] == figures[1]
    return Row(
        "resumed after kill −9",
        "an uninterrupted run",
        f"accuracy {figures[0]['accuracy']:.4f}",
        f"{'the same' if same else 'other'} {len(figures[0])} figures{'' if killed else ' (was not killed in time)'}",
        "same final figures",
        same and killed,
    )


def demo(quick: bool) -> Row:
    """What ``make demo`` runs: from data to the confusion matrix."""
    with tempfile.TemporaryDirectory() as folder:
        started = time.monotonic()
        flags = ["--max_train", "64"] if quick else []
        subprocess.run([sys.executable, "-m", MODULE, "train", *flags], cwd=folder, check=True, env=environment(),
                       stdout=subprocess.DEVNULL)  # fmt: skip
        seconds = time.monotonic() - started
        [results] = Path(folder).glob("outputs/*/*/results.json")
        accuracy = json.loads(results.read_text(encoding="utf-8"))["metrics"]["accuracy"]
    return Row("make demo's share, builtin:movies (synthetic)", "–", "", f"accuracy {accuracy:.3f} in {seconds:.0f} s",
               "≤ 180 s", seconds <= 180)  # fmt: skip


ROWS = {
    "sst2": sst2_dev,
    "imdb": imdb_held_out,
    "tweets": tweets,
    "products": products,
    "training": training,
    "prediction": prediction,
    "resume": resume,
    "demo": demo,
}

if __name__ == "__main__":
    run_benchmarks("sentiment", ROWS)
