"""What the embedded adapters learn from: no text on both sides of a split, and sentences labelled with sense."""

import csv
import gzip
import json
from pathlib import Path

import pytest

from bert_sentiment_analysis.builtin.train_adapters import label_sentences, prepare
from bert_sentiment_analysis.data.imdb_dataset import normalized


@pytest.fixture
def folder() -> Path:
    """Write the files of the real data, with texts of our own: 2,100 a file, the first twice."""
    root = Path("sentiment")
    for name in ("movies", "products", "tweets/semeval2017"):
        (root / name).mkdir(parents=True)

    def texts(kind: str) -> list[str]:
        return [f"{kind} number {max(i, 1)}" for i in range(2100)]

    rows = [{"id": i, "label": i % 2, "text": text} for i, text in enumerate(texts("review"))]
    with gzip.open(root / "movies/imdb_train.jsonl.gz", "wt") as file:
        file.writelines(json.dumps(row) + "\n" for row in rows)
    for split, kind in (("train", "sentence"), ("dev", "Sentence!")):
        lines = [f"{text}\t{i % 2}" for i, text in enumerate(texts(kind)[:900])]
        (root / f"movies/sst2_{split}.tsv").write_text("\n".join(lines))
    for label in ("pos", "neg"):
        (root / f"products/custrev.{label}").write_text("\n".join(texts(f"{label} gadget")), encoding="latin-1")
    for name, text, stars in (("amazon_sdcard_reviews_4915.csv", "reviewText", "overall"),
                              ("amazon_alexa.tsv", "verified_reviews", "rating")):  # fmt: skip
        with (root / "products" / name).open("w", newline="") as file:
            table = csv.writer(file, delimiter="\t" if name.endswith("tsv") else ",")
            table.writerow([text, stars])
            table.writerows([f"{name} {i}", 1 + i % 5] for i in range(100))
    names = ("negative", "neutral", "positive")
    (root / "tweets/val_text.txt").write_text("\n".join(f"@user tweet number {i} !" for i in range(2000)))
    (root / "tweets/val_labels.txt").write_text("\n".join(str(i % 3) for i in range(2000)))
    lines = [f"{i}\t{names[i % 3]}\t@john Tweet number {i} http://t.co/{i}" for i in range(1500, 2500)]
    (root / "tweets/semeval2017/a.tsv").write_text("\n".join(lines))
    return root


@pytest.mark.parametrize(("domain", "held_out"), [("movies", 3100), ("products", 1800), ("tweets", 2000)])
def test_nothing_that_is_held_out_is_learned_from(domain: str, held_out: int, folder: Path) -> None:
    splits = prepare(domain, folder)
    learned = {normalized(text) for text, _ in splits["train"]}
    kept_back = [normalized(text) for split in ("validation", "test") for text, _ in splits[split]]
    assert splits["train"] and not learned & set(kept_back)
    assert len(kept_back) == held_out
    assert {label for _, label in splits["train"]} <= {"negative", "neutral", "positive"}
    if domain == "tweets":  # the copies differ in names, links and case
        assert learned == {f"tweet number {i}" for i in range(2000, 2500)}


def test_sentences_are_labelled_by_what_they_say_unless_that_is_unsure() -> None:
    praise, blame = "What a wonderful, moving and funny film this is!", "It is a boring and awful waste of time."
    unsure = "The film is ninety minutes long, as most are."
    text = f"{praise} {unsure} {blame} Short one."
    for label, agrees in (("positive", praise), ("negative", blame)):
        found = dict(label_sentences([(text, label)], "builtin:movies"))
        assert found[agrees] == label
        assert found.pop(praise, "positive") == "positive" and found.pop(blame, "negative") == "negative"
        assert set(found) <= {unsure} and found.get(unsure, label) == label
    assert label_sentences([(text, "positive")], "builtin:movies", most=0) == []
