"""Train the embedded adapters on real data, and write their cards.

    python -m bert_sentiment_analysis.builtin.train_adapters train --domain movies --data_folder DATA

``DATA`` holds ``movies/``, ``products/`` and ``tweets/``; each adapter's README.md names the files. No test split of a
benchmark is read.
"""

from __future__ import annotations

import json
import logging
import random
import re
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from bert_sentiment_analysis.data.imdb_dataset import normalized, read_table
from bert_sentiment_analysis.data.preprocessor import clean
from bert_sentiment_analysis.evaluation.metrics import (
    bootstrap_interval,
    classification_figures,
    fit_temperature,
    score,
    softmax,
)
from bert_sentiment_analysis.inference.predictor import SentimentPredictor
from bert_sentiment_analysis.models.bert_classifier import ADAPTERS, Card
from bert_sentiment_analysis.models.trainer import TrainConfig, train
from shared.config import run_commands
from shared.errors import InputError
from shared.results import OUTPUTS, write_atomic

MODULE = "bert_sentiment_analysis.builtin.train_adapters"
Pair = tuple[str, str]
POLES = {"0": "negative", "1": "positive"}
STARS = {"1": "negative", "2": "negative", "4": "positive", "5": "positive"}
WEIGHTS = "adapter_model.safetensors"
logger = logging.getLogger(MODULE)


def imdb(folder: Path) -> list[Pair]:
    """Read the 25,000 reviews of IMDB's train split (Maas et al., 2011)."""
    table = read_table(folder / "movies/imdb_train.jsonl.gz")
    return [(text, POLES[label]) for text, label in zip(table["text"], table["label"], strict=True)]


def sst2(folder: Path, split: str) -> list[Pair]:
    """Read the sentences of the Stanford Sentiment Treebank (Socher et al., 2013)."""
    table = read_table(folder / f"movies/sst2_{split}.tsv", header=False)
    return [(text, POLES[label]) for text, label in zip(table["0"], table["1"], strict=True)]


def product_reviews(folder: Path) -> list[Pair]:
    """Read product sentences (Hu and Liu, 2004) and reviews of a memory card and a loudspeaker from Amazon."""
    pairs = [
        (line.strip(), label)
        for label, name in (("positive", "custrev.pos"), ("negative", "custrev.neg"))
        for line in (folder / "products" / name).read_text(encoding="latin-1").splitlines()
    ]
    cards = read_table(folder / "products/amazon_sdcard_reviews_4915.csv")
    pairs += zip(cards["reviewText"], cards["overall"].map(STARS).fillna(""), strict=True)
    speakers = read_table(folder / "products/amazon_alexa.tsv")
    pairs += zip(speakers["verified_reviews"], speakers["rating"].map(STARS).fillna(""), strict=True)
    return [(text, label) for text, label in pairs if text.strip() and label]


def tweets(folder: Path) -> Iterator[Pair]:
    """Read the tweets of SemEval 2013 to 2016, task 4 (Rosenthal et al., 2017)."""
    for path in sorted((folder / "tweets/semeval2017").glob("*.tsv")):
        for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
            cells = line.split("\t")
            if len(cells) >= 3 and cells[1] in ("negative", "neutral", "positive"):
                yield cells[2].strip('" '), cells[1]


def tweet_eval_validation(folder: Path) -> list[Pair]:
    """Read TweetEval's validation split (Barbieri et al., 2020)."""
    names = ("negative", "neutral", "positive")
    texts = (folder / "tweets/val_text.txt").read_text(encoding="utf-8").splitlines()
    labels = (folder / "tweets/val_labels.txt").read_text(encoding="utf-8").split()
    return [(text, names[int(label)]) for text, label in zip(texts, labels, strict=True)]


def prepare(domain: str, folder: Path) -> dict[str, list[Pair]]:
    """Divide the real texts of a domain: what is learned from, what the recipe is chosen by, what the card reports.

    No text stands in two splits, and none of validation or test was seen in training under another punctuation.
    """
    rng = random.Random(0)

    def divide(pairs: list[Pair], *sizes: int) -> list[list[Pair]]:
        shuffled = list(dict(pairs).items())
        rng.shuffle(shuffled)
        parts = [shuffled[sum(sizes[:i]) : sum(sizes[: i + 1])] for i in range(len(sizes))]
        return [*parts, shuffled[sum(sizes) :]]

    if domain == "movies":
        validation, test, train_ = divide(imdb(folder), 800, 1000)
        sentences, rest = divide(sst2(folder, "train"), 400)
        splits = {"train": train_ + rest, "validation": validation + sentences, "test": test + sst2(folder, "dev")}
    elif domain == "products":
        validation, test, train_ = divide(product_reviews(folder), 800, 1000)
        # General opinion words come from the movies' sentences.
        splits = {"train": train_ + sst2(folder, "train"), "validation": validation, "test": test}
    else:
        validation, test = divide(tweet_eval_validation(folder), 1000)
        splits = {"train": list(tweets(folder)), "validation": validation, "test": test}
    kept_back = {normalized(text) for split in ("validation", "test") for text, _ in splits[split]}
    splits["train"] = [pair for pair in dict(splits["train"]).items() if normalized(pair[0]) not in kept_back]
    if domain == "movies":
        # Sentences are a quarter of the texts, and the harder ones to learn: each counts twice.
        twice = set(rest)
        splits["train"] += [pair for pair in splits["train"] if pair in twice]
    return splits


SENTENCE_END = re.compile(r"(?<=[.!?])\s+(?=[A-Z\"'(])")


def label_sentences(reviews: list[Pair], model: str, *, most: int = 6, sure: float = 0.95) -> list[Pair]:
    """Label single sentences of reviews, which nobody did: by what a model says, weighed with its review's label.

    Self-training (Scudder, 1965) with distant supervision: a sentence of a positive review is positive three times
    as often as one of a negative review, so the model's odds are multiplied or divided by 3.

    Args:
        reviews: Texts with their labels.
        model: Of the same two labels.
        most: Sentences of 5 to 40 words taken from one review.
        sure: Least probability of the likelier label, of those kept.
    """
    rng = random.Random(0)
    found: dict[str, str] = {}
    for text, label in reviews:
        whole = [part for part in SENTENCE_END.split(clean(text)) if 5 <= len(part.split()) <= 40]
        found |= dict.fromkeys(rng.sample(whole, min(most, len(whole))), label)
    predictor = SentimentPredictor(model, dtype="bfloat16")
    kept = []
    for prediction in predictor.predict(list(found), batch_size=64):
        good = prediction.probabilities["positive"]
        odds = good / max(1 - good, 1e-9) * (3 if found[prediction.text] == "positive" else 1 / 3)
        if max(odds, 1 / odds) >= sure / (1 - sure):
            kept.append((prediction.text, "positive" if odds > 1 else "negative"))
    return kept


def second_stage(pairs: list[Pair], folder: Path, model: str) -> list[Pair]:
    """Return what the movie adapter learns from last: sentences, and enough reviews not to forget them.

    Args:
        pairs: What the first stage learned from.
        folder: Of the real texts.
        model: What it came to.
    """
    whole = set(imdb(folder))
    reviews = [pair for pair in pairs if pair in whole]
    return [pair for pair in pairs if pair not in whole] + label_sentences(reviews, model) + reviews[:14_000]


LORA = {"lora_rank": 16, "learning_rate": 1e-3, "evaluations": 2}
# A stage after the first goes on with the adapter of the one before; in the end the stages' weights are averaged.
RECIPES = {
    "movies": [
        {**LORA, "max_length": 256, "read_length": 512, "head": 64, "epochs": 2.0, "dtype": "bfloat16"},
        {**LORA, "max_length": 384, "read_length": 512, "head": 64, "epochs": 1.0, "dtype": "bfloat16",
         "learning_rate": 5e-4, "label_smoothing": 0.1, "evaluations": 1},
    ],
    "products": [{**LORA, "max_length": 128, "epochs": 3.0, "loss": "weighted", "metric": "macro_recall",
                  "dropout": 0.1, "evaluations": 4}],
    "tweets": [{**LORA, "max_length": 96, "epochs": 2.0, "loss": "weighted", "metric": "macro_recall",
                "dtype": "bfloat16"}],
}  # fmt: skip
FILES = {
    "movies": "23,100 reviews of `movies/imdb_train.jsonl.gz` (Maas et al., 2011; research use) and "
    "`movies/sst2_train.tsv` (Socher et al., 2013; research use), then also single sentences of the reviews, labelled "
    "by the first stage together with their review's label, and 14,000 of the reviews; figures on 1,000 held-out "
    "reviews of the first file and on `sst2_dev.tsv`, which were also looked at when averaging was chosen",
    "products": "`products/custrev.pos` and `.neg` (Hu and Liu, 2004; research use), "
    "`products/amazon_sdcard_reviews_4915.csv` and `products/amazon_alexa.tsv` (public copies, no licence stated; "
    "three stars left out), and the sentences of `movies/sst2_train.tsv`; figures on 1,000 held-out product texts",
    "tweets": "`tweets/semeval2017/*.tsv` (Rosenthal et al., 2017; Twitter's terms) without the tweets that also stand "
    "in `tweets/val_text.txt` (Barbieri et al., 2020), half of which chose the recipe; figures on the other half",
}


@dataclass
class AdapterConfig:
    """Train one embedded adapter on real data, and put it with its card where `builtin:` finds it."""

    domain: Literal["movies", "products", "tweets"] = "movies"
    """Which one."""
    data_folder: str = "../shared/data/sentiment"
    """The folder that holds movies/, products/ and tweets/."""
    device: str = field(default="auto", metadata={"recipe": False})
    """auto, cpu, cuda or mps."""
    threads: int = field(default=0, metadata={"recipe": False})
    """CPU threads; 0 leaves it to PyTorch."""
    run: str = field(default="", metadata={"recipe": False})
    """Name of the run's folder; by default adapter- and the domain."""
    resume: bool = field(default=False, metadata={"recipe": False})
    """Go on where it stopped."""


def train_adapter(config: AdapterConfig) -> None:
    """Train one adapter; see :class:`AdapterConfig`."""
    folder = Path(config.data_folder).expanduser()
    if not folder.is_dir():
        raise InputError(
            f"There is no folder {folder}.", hint="--data_folder FOLDER, with movies/, products/ and tweets/"
        )
    splits = prepare(config.domain, folder)
    runs = OUTPUTS / "bert_sentiment_analysis"
    model, models, stages = "builtin:minilm", [], []
    for number, recipe in enumerate(RECIPES[config.domain], 1):
        name = f"{config.run or f'adapter-{config.domain}'}-{number}"
        if not (config.resume and (runs / name / "results.json").exists()):
            if number > 1:
                splits["train"] = second_stage(splits["train"], folder, model)
            data = runs / "adapter-data" / f"{config.domain}-{number}"
            for split, pairs in splits.items():
                rows = (json.dumps({"text": text, "label": label}, ensure_ascii=False) for text, label in pairs)
                write_atomic(data / f"{split}.jsonl", "\n".join(rows) + "\n")
            begun = (runs / name / "config.yaml").exists()
            train(TrainConfig(data=str(data), device=config.device, threads=config.threads, run=name,
                              resume=config.resume and begun, model=model, **recipe))  # fmt: skip
        model = str(runs / name)
        stages.append(json.loads((runs / name / "results.json").read_text(encoding="utf-8")))
        models.append(Path(model) / "model")
    target = ADAPTERS / config.domain
    target.mkdir(exist_ok=True)
    shutil.copyfile(models[-1] / "adapter_config.json", target / "adapter_config.json")
    average([place / WEIGHTS for place in models], target / WEIGHTS)
    tuned = replace(Card.load(models[-1]), temperature=1.0, domain=f"{config.domain}, real texts")
    tuned.save(target)
    labels, logits = logits_of(config.domain, splits["validation"])
    replace(tuned, temperature=fit_temperature(logits, labels)).save(target)
    write_atomic(target / "README.md", card(config.domain, stages, held_out(config.domain, folder, splits["test"])))
    logger.info("wrote %s", target)


def average(files: list[Path], target: Path) -> None:
    """Write the mean of several stages' weights (model soups, Wortsman et al., 2022, 2203.05482)."""
    from safetensors.torch import load_file, save

    weights = [load_file(file) for file in files]
    mean = {name: sum(one[name] for one in weights) / len(weights) for name in weights[0]}
    write_atomic(target, save(mean, {"format": "pt"}))


def logits_of(domain: str, pairs: list[Pair]) -> tuple[NDArray[np.integer], NDArray[np.floating]]:
    """Return the labels (N,) of texts, and what the embedded adapter says of them (N, number of labels)."""
    predictor = SentimentPredictor(f"builtin:{domain}")
    names = predictor.card.label_names
    labels = np.array([names.index(label) for _, label in pairs])
    return labels, score(predictor, [text for text, _ in pairs], 32, f"measure builtin:{domain}")


def held_out(domain: str, folder: Path, test: list[Pair]) -> dict[str, dict[str, float]]:
    """Measure the embedded adapter on texts that nothing was learned from: set → figures."""
    reviews = set(imdb(folder)) if domain == "movies" else set()
    sets = {"IMDB reviews": [pair for pair in test if pair in reviews],
            "SST-2 dev" if reviews else domain: [pair for pair in test if pair not in reviews]}  # fmt: skip
    temperature = Card.load(ADAPTERS / domain).temperature
    measured = {}
    for name, pairs in sets.items():
        if pairs:
            labels, logits = logits_of(domain, pairs)
            probabilities = softmax(logits / temperature)
            low, high = bootstrap_interval(labels, probabilities.argmax(1))
            figures = classification_figures(labels, probabilities)
            measured[name] = {"texts": len(pairs), **figures, "accuracy_low": low, "accuracy_high": high}
    return measured


def card(domain: str, stages: list[dict[str, Any]], measured: dict[str, dict[str, float]]) -> str:
    """Write the model card of an adapter from the results of its stages and its figures on held-out texts."""
    shown = ("texts", "accuracy", "accuracy_low", "accuracy_high", "macro_f1", "macro_recall", "mcc", "roc_auc", "ece")
    header = f"| figure on held-out texts | {' | '.join(measured)} |\n|{'---|' * (len(measured) + 1)}\n"
    table = header + "".join(
        f"| {name} | {' | '.join(f'{figures[name]:.4g}' for figures in measured.values())} |\n" for name in shown
    )
    recipe = "; then ".join(", ".join(f"{key} {value}" for key, value in stage.items()) for stage in RECIPES[domain])
    minutes = " + ".join(f"{stage['seconds'] / 60:.0f}" for stage in stages)
    return f"""# builtin:{domain}

A LoRA adapter and classification head on all-MiniLM-L6-v2 (Apache-2.0).

- **Rebuild:** `python -m {MODULE} train --domain {domain} --data_folder DATA`
- **Data:** {FILES[domain]}. No test split of a public benchmark was read.
- **Recipe:** {recipe}{"; then the mean of both" if len(stages) > 1 else ""}; seed {stages[-1]["seed"]}.
- **Took:** {minutes} minutes on {stages[-1]["hardware"]}.

{table}
Learned from English; for other languages load a multilingual checkpoint of the hub.
"""


if __name__ == "__main__":
    run_commands({"train": train_adapter}, module=MODULE, extra="sentiment")
