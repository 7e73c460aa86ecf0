"""Train the embedded adapters on real data, and write their cards.

    python -m bert_sentiment_analysis.builtin.train_adapters train --domain movies --data_folder DATA

``DATA`` holds ``movies/``, ``products/`` and ``tweets/``; each adapter's README.md names the files. No test split of a
benchmark is read.
"""

from __future__ import annotations

import json
import logging
import random
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from bert_sentiment_analysis.data.imdb_dataset import normalized, read_table
from bert_sentiment_analysis.models.bert_classifier import ADAPTERS, Card
from bert_sentiment_analysis.models.trainer import TrainConfig, train
from shared.config import run_commands
from shared.errors import InputError
from shared.results import OUTPUTS, write_atomic

MODULE = "bert_sentiment_analysis.builtin.train_adapters"
Pair = tuple[str, str]
POLES = {"0": "negative", "1": "positive"}
STARS = {"1": "negative", "2": "negative", "4": "positive", "5": "positive"}
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
        # Half of the reviews: what two cores read in an hour.
        train_ = train_[:12_000] + rest
        splits = {"train": train_, "validation": validation + sentences, "test": test + sst2(folder, "dev")}
    elif domain == "products":
        validation, test, train_ = divide(product_reviews(folder), 800, 1000)
        # General opinion words come from the movies' sentences.
        splits = {"train": train_ + sst2(folder, "train"), "validation": validation, "test": test}
    else:
        validation, test = divide(tweet_eval_validation(folder), 1000)
        splits = {"train": list(tweets(folder)), "validation": validation, "test": test}
    kept_back = {normalized(text) for split in ("validation", "test") for text, _ in splits[split]}
    splits["train"] = [pair for pair in dict(splits["train"]).items() if normalized(pair[0]) not in kept_back]
    return splits


RECIPES = {
    "movies": {"max_length": 192, "head": 48, "epochs": 1.0, "lora_rank": 16, "learning_rate": 1e-3,
               "dtype": "bfloat16"},
    "products": {"max_length": 128, "epochs": 3.0, "lora_rank": 16, "learning_rate": 1e-3, "loss": "weighted",
                 "metric": "macro_recall"},
    "tweets": {"max_length": 96, "max_train": 16_000, "epochs": 1.0, "lora_rank": 16, "learning_rate": 1e-3,
               "loss": "weighted", "metric": "macro_recall", "dtype": "bfloat16"},
}  # fmt: skip
FILES = {
    "movies": "12,000 reviews of `movies/imdb_train.jsonl.gz` (Maas et al., 2011; research use) and "
    "`movies/sst2_train.tsv` (Socher et al., 2013; research use); figures on 1,000 held-out reviews of the "
    "first and on `sst2_dev.tsv`",
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
    prepared = OUTPUTS / "bert_sentiment_analysis" / "adapter-data" / config.domain
    for split, pairs in prepare(config.domain, folder).items():
        rows = (json.dumps({"text": text, "label": label}, ensure_ascii=False) for text, label in pairs)
        write_atomic(prepared / f"{split}.jsonl", "\n".join(rows) + "\n")
    run = config.run or f"adapter-{config.domain}"
    train(TrainConfig(data=str(prepared), evaluations=4, device=config.device, threads=config.threads, run=run,
                      resume=config.resume, **RECIPES[config.domain]))  # fmt: skip
    trained = OUTPUTS / "bert_sentiment_analysis" / run
    target = ADAPTERS / config.domain
    target.mkdir(exist_ok=True)
    for name in ("adapter_config.json", "adapter_model.safetensors", "sentiment.json"):
        shutil.copyfile(trained / "model" / name, target / name)
    tuned = Card.load(target)
    tuned.domain = f"{config.domain}, real texts"
    tuned.save(target)
    results = json.loads((trained / "results.json").read_text(encoding="utf-8"))
    write_atomic(target / "README.md", card(config.domain, results))
    logger.info("wrote %s", target)


def card(domain: str, results: dict) -> str:
    """Write the model card of an adapter."""
    figures = results["metrics"]
    shown = ("accuracy", "accuracy_low", "accuracy_high", "macro_f1", "macro_recall", "mcc", "roc_auc", "ece")
    table = "".join(f"| {name} | {figures[name]:.4f} |\n" for name in shown if name in figures)
    recipe = ", ".join(f"{key} {value}" for key, value in RECIPES[domain].items())
    return f"""# builtin:{domain}

A LoRA adapter and classification head on all-MiniLM-L6-v2 (Apache-2.0).

- **Rebuild:** `python -m {MODULE} train --domain {domain} --data_folder DATA`
- **Data:** {FILES[domain]}. No test split of a public benchmark was read.
- **Recipe:** {recipe}; seed {results["seed"]}.
- **Took:** {results["seconds"] / 60:.0f} minutes on {results["hardware"]}.

| figure on held-out texts | value |
|---|---|
{table}
Learned from English; for other languages load a multilingual checkpoint of the hub.
"""


if __name__ == "__main__":
    run_commands({"train": train_adapter}, module=MODULE)
