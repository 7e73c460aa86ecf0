"""Labelled texts: embedded, from files, from the hub; what is left out, and what is refused."""

import gzip
import json
from pathlib import Path
from typing import Any

import pytest

from bert_sentiment_analysis.builtin.synthetic_reviews import DOMAINS, SIZES, synthetic_reviews
from bert_sentiment_analysis.data import imdb_dataset
from bert_sentiment_analysis.data.imdb_dataset import (
    DataConfig,
    find_leaks,
    load_data,
    normalized,
    read_labels,
    read_splits,
    read_table,
    report,
)
from shared.config import run_commands
from shared.errors import InputError


def rows_of(splits: Any, split: str) -> list[tuple[str, str]]:
    names = splits[split].features["label"].names
    return [(row["text"], names[row["label"]]) for row in splits[split]]


def write_csv(name: str = "reviews.csv", count: int = 40, columns: str = "text,label") -> None:
    lines = [f'"review, number {i}",{"good" if i % 2 else "bad"}' for i in range(count)]
    Path(name).write_text("\n".join([columns, *lines]), encoding="utf-8")


# --- Embedded ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", DOMAINS)
def test_synthetic_reviews_are_balanced_unique_and_the_same_everywhere(name: str) -> None:
    splits = synthetic_reviews(name)
    assert {split: len(rows) for split, rows in splits.items()} == SIZES
    texts = [text for rows in splits.values() for text, _ in rows]
    assert len(set(texts)) == len(texts)
    for rows in splits.values():
        counts = [sum(label == wanted for _, label in rows) for wanted in DOMAINS[name].labels]
        assert max(counts) - min(counts) <= 1
    assert synthetic_reviews(name) == splits
    assert synthetic_reviews(name, seed=1) != splits


@pytest.mark.parametrize("name", DOMAINS)
def test_test_texts_have_opinion_words_that_train_has_not(name: str) -> None:
    splits = synthetic_reviews(name)
    words = {split: " ".join(text for text, _ in rows) for split, rows in splits.items()}
    domain = DOMAINS[name]
    held_back = [word for group in (domain.good, domain.bad) for word in group[len(group) * 2 // 3 :]]
    assert all(word in words["test"] for word in held_back)
    assert not any(f" {word}" in words["train"] for word in held_back)


def test_a_builtin_has_three_splits_and_its_labels_worst_first() -> None:
    splits = load_data(DataConfig(data="builtin:tweets"))
    assert list(splits) == ["train", "validation", "test"]
    assert splits["test"].features["label"].names == ["negative", "neutral", "positive"]


# --- Files ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["csv", "tsv", "jsonl", "csv.gz", "jsonl.gz"])
def test_every_kind_of_file_gives_the_same_texts(kind: str) -> None:
    pairs = [
        (f'say "{i}", 词\tx' if "tsv" not in kind else f'say "{i}" 词', "good" if i % 2 else "bad") for i in range(40)
    ]
    if "jsonl" in kind:
        content = "\n".join(json.dumps({"text": text, "label": label}, ensure_ascii=False) for text, label in pairs)
    elif kind == "tsv":
        content = "\n".join(["text\tlabel", *(f"{text}\t{label}" for text, label in pairs)])
    else:
        content = "\n".join(["text,label", *('"' + t.replace('"', '""') + f'",{label}' for t, label in pairs)])
    data = content.encode("utf-8-sig")
    Path(f"reviews.{kind}").write_bytes(gzip.compress(data) if kind.endswith("gz") else data)
    splits = load_data(DataConfig(data=f"reviews.{kind}"))
    assert sorted(pair for split in splits for pair in rows_of(splits, split)) == sorted(pairs)
    assert {split: len(rows) for split, rows in splits.items()} == {"train": 32, "validation": 4, "test": 4}


def test_quotes_commas_and_newlines_stay_inside_a_cell() -> None:
    body = "\n".join(f'"line one\nline ""two"", {i}",{"good" if i % 2 else "bad"}' for i in range(30))
    Path("reviews.csv").write_text(f"text,label\n{body}\n", encoding="utf-8")
    splits = load_data(DataConfig(data="reviews.csv"))
    texts = {text for split in splits for text, _ in rows_of(splits, split)}
    assert texts == {f'line one\nline "two", {i}' for i in range(30)}


def test_na_and_none_are_words_and_missing_cells_are_counted(caplog: pytest.LogCaptureFixture) -> None:
    lines = ["NA,good", "None,bad", ",good", "   ,bad", "a text,", "!!!,good", "🙂,good"]
    lines += [f"text {i},{'good' if i % 2 else 'bad'}" for i in range(30)]
    Path("reviews.csv").write_text("text,label\n" + "\n".join(lines), encoding="utf-8")
    splits = load_data(DataConfig(data="reviews.csv"))
    texts = {text for split in splits for text, _ in rows_of(splits, split)}
    assert {"NA", "None", "🙂", "!!!"} <= texts
    assert len(texts) == 34
    messages = [record.getMessage() for record in caplog.records]
    assert "reviews.csv: 2 of 37 rows left out, without a text" in messages
    assert "reviews.csv: 1 of 37 rows left out, without a label of ours" in messages


def test_nulls_in_jsonl_are_missing() -> None:
    rows = [{"text": None, "label": "good"}, {"label": "bad"}, {"text": "x", "label": None}]
    rows += [{"text": f"text {i}", "label": i % 2} for i in range(30)]
    Path("reviews.jsonl").write_text("\n".join(map(json.dumps, rows)))
    splits = load_data(DataConfig(data="reviews.jsonl"))
    assert sum(len(rows) for rows in splits.values()) == 30
    assert splits["train"].features["label"].names == ["0", "1"]


def test_columns_and_labels_are_mapped() -> None:
    lines = [f"{1 + i % 5},body {i}" for i in range(100)]
    Path("stars.csv").write_text("score,words\n" + "\n".join(lines))
    config = DataConfig(
        data="stars.csv", text_column="words", label_column="score",
        label_map={"1": "negative", "2": "negative", "4": "positive", "5": "positive"},
    )  # fmt: skip
    splits = load_data(config)
    pairs = [pair for split in splits for pair in rows_of(splits, split)]
    assert len(pairs) == 80
    assert all((int(text.split()[1]) % 5 < 2) == (label == "negative") for text, label in pairs)


def test_a_file_without_names_is_read_by_number() -> None:
    Path("pairs.tsv").write_text("".join(f"sentence {i}\t{i % 2}\n" for i in range(40)))
    splits = load_data(DataConfig(data="pairs.tsv", header=False, text_column="0", label_column="1"))
    assert sum(len(rows) for rows in splits.values()) == 40


def test_a_folder_has_its_splits_and_what_is_missing_is_carved_from_train() -> None:
    Path("folder").mkdir()
    write_csv("folder/train.csv", 100)
    Path("folder/test.csv").write_text("text,label\none,good\ntwo,bad\n")
    splits = load_data(DataConfig(data="folder"))
    assert rows_of(splits, "test") == [("one", "good"), ("two", "bad")]
    assert (len(splits["train"]), len(splits["validation"])) == (90, 10)


def test_shares_of_labels_are_kept_and_the_seed_decides() -> None:
    lines = [f"text {i},{'bad' if i % 5 == 0 else 'good'}" for i in range(200)]
    Path("skewed.csv").write_text("text,label\n" + "\n".join(lines))
    splits = load_data(DataConfig(data="skewed.csv", max_train=50))
    for split, size in (("train", 50), ("validation", 18), ("test", 20)):
        labels = [label for _, label in rows_of(splits, split)]
        assert len(labels) == size
        assert abs(labels.count("bad") - size / 5) <= 1
    assert rows_of(load_data(DataConfig(data="skewed.csv", max_train=50)), "train") == rows_of(splits, "train")
    assert rows_of(load_data(DataConfig(data="skewed.csv", max_train=50), seed=1), "train") != rows_of(splits, "train")


# --- Leaks ------------------------------------------------------------------------------------------------------------


def test_copies_of_validation_and_test_are_taken_out_of_train(caplog: pytest.LogCaptureFixture) -> None:
    Path("folder").mkdir()
    lines = [f"text {i},{'good' if i % 2 else 'bad'}" for i in range(30)] + ["A  Copy!,good", "another copy,bad"]
    Path("folder/train.csv").write_text("text,label\n" + "\n".join(lines))
    Path("folder/validation.csv").write_text("text,label\nanother copy?,bad\nnew,good\n")
    Path("folder/test.csv").write_text("text,label\na copy,good\nnewer,bad\n")
    splits = load_data(DataConfig(data="folder"))
    assert len(splits["train"]) == 30
    assert "2 texts of train also stand in validation or test, and are left out of train" in caplog.text
    assert not any(count for name, count in find_leaks(splits).items())


def test_leaks_and_copies_are_counted() -> None:
    found = find_leaks({"train": {"text": ["a", "A!", "b"]}, "test": {"text": ["a", "c"]}})
    assert found == {"copies in train": 1, "copies in test": 0, "test in train": 1}
    assert normalized("Été,  OK!") == "été ok"
    assert normalized("😀") != normalized("😡")
    assert normalized(r"@ann: it\u2019s http://a.b/c &amp; ok") == normalized("it’s & ok")


# --- The hub ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Data sets that stand in for the hub's: split → (labels, label feature)."""
    import datasets

    splits: dict[str, Any] = {}

    def load_dataset(name: str, subset: str | None, revision: str | None) -> datasets.DatasetDict:
        return datasets.DatasetDict(splits)

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    return splits


def hub_rows(labels: list[int], names: list[str] | None) -> Any:
    from datasets import ClassLabel, Dataset, Features, Value

    features = Features({"text": Value("string"), "label": ClassLabel(names=names) if names else Value("int64")})
    return Dataset.from_dict({"text": [f"{i} of {len(labels)}" for i in range(len(labels))], "label": labels}, features)


def test_names_of_labels_come_with_a_hub_data_set_or_are_known(hub: dict[str, Any]) -> None:
    hub |= {"train": hub_rows([0, 1] * 20, ["bad", "good"]), "test": hub_rows([0, 1, -1], ["bad", "good"])}
    splits = load_data(DataConfig(data="some/reviews"))
    assert splits["train"].features["label"].names == ["bad", "good"]
    assert len(splits["test"]) == 2
    hub.clear()
    hub |= {"train": hub_rows([0, 1] * 20, ["neg", "pos"]), "unsupervised": hub_rows([-1] * 3, ["neg", "pos"])}
    splits = load_data(DataConfig(data="stanfordnlp/imdb"))
    assert splits["train"].features["label"].names == ["negative", "positive"]
    hub["train"] = hub_rows([0, 1] * 20, None)
    assert load_data(DataConfig(data="stanfordnlp/imdb"))["test"].features["label"].names == ["negative", "positive"]
    hub["train"] = hub_rows([0, 1, 2] * 20, ["anger", "joy", "optimism"])
    splits = load_data(DataConfig(data="cardiffnlp/tweet_eval", subset="emotion"))
    assert splits["train"].features["label"].names == ["anger", "joy", "optimism"]


def test_a_test_split_without_labels_is_no_test_split(hub: dict[str, Any], caplog: pytest.LogCaptureFixture) -> None:
    names = ["negative", "positive"]
    hub |= {"train": hub_rows([0, 1] * 20, names), "test": hub_rows([-1] * 9, names)}
    assert len(load_data(DataConfig(data="stanfordnlp/sst2"))["test"]) == 4  # of train
    assert "stanfordnlp/sst2: nothing is left of the test split" in caplog.text
    hub.clear()
    hub |= {"one": hub_rows([0, 1] * 20, names), "two": hub_rows([0, 1] * 20, names)}
    with pytest.raises(InputError, match="no split called train, validation or test, but one, two"):
        load_data(DataConfig(data="some/reviews"))
    del hub["two"]
    assert len(load_data(DataConfig(data="some/reviews"))["train"]) > 20


def test_columns_of_a_hub_data_set_that_are_not_asked_for_may_hold_anything(hub: dict[str, Any]) -> None:
    from datasets import Dataset

    hub["train"] = Dataset.from_dict(
        {"text": [f"text {i}" for i in range(40)], "label": ["a", "b"] * 20, "tokens": [[1, 2]] * 40}
    )
    assert load_data(DataConfig(data="some/reviews"))["train"].column_names == ["text", "label"]


def test_a_hub_out_of_reach_names_three_ways_out(monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    def unreachable(*_: object, **__: object) -> None:
        raise ConnectionError("no route")

    monkeypatch.setattr(datasets, "load_dataset", unreachable)
    with pytest.raises(InputError, match="could not be had from the hub") as error:
        load_data(DataConfig(data="stanfordnlp/imdb"))
    assert all(way in error.value.hint for way in ("builtin:movies", "local path", "HF_ENDPOINT"))


# --- Refused ----------------------------------------------------------------------------------------------------------


def bad_files() -> None:
    write_csv()
    Path("one.csv").write_text("text,label\n" + "\n".join(f"text {i},good" for i in range(20)))
    Path("many.csv").write_text("text,label\n" + "\n".join(f"text {i},{i}" for i in range(200)))
    Path("few.csv").write_text("text,label\na,good\nb,bad\n")
    Path("empty.csv").write_text("")
    Path("head.csv").write_text("text,label\n")
    Path("latin.csv").write_bytes("text,label\né,good\n".encode("latin-1"))
    Path("broken.jsonl").write_text('{"text": "a"\n')
    Path("ragged.csv").write_text("text,label\na,b\nc,d,e,f\n")
    Path("twice.csv").write_text("text,label,text\na,b,c\n")
    Path("semicolons.csv").write_text("text;label\na;b\n")
    Path("rare.csv").write_text("text,label\n" + "\n".join(f"text {i},{'bad' if i else 'good'}" for i in range(40)))
    Path("reviews.xlsx").write_text("x")
    Path("folder").mkdir()


@pytest.mark.parametrize(
    ("arguments", "culprit"),
    [
        (["--data", "reviews.csv", "--text_column", "body"], "has no column 'body'. It has text, label"),
        (["--data", "reviews.csv", "--label_column", "x"], "has no column 'x'"),
        (["--data", "reviews.csv", "--header", "false"], "no column with a usual name for the texts"),
        (
            ["--data", "reviews.csv", "--label_map", '{"5": "x"}'],
            "None of the values of label_map stands in 'label'. It has",
        ),
        (["--data", "one.csv"], "has only one label, 'good'"),
        (["--data", "many.csv"], "has 200 different labels"),
        (
            ["--data", "few.csv"],
            "small to be divided: both parts need a text of each of 2 labels, and it has 2 texts, 1 of the rarest",
        ),
        (["--data", "rare.csv"], "and it has 40 texts, 1 of the rarest label."),
        (["--data", "reviews.csv", "--subset", "foo"], "subset is for data sets of the hub"),
        (["--data", "twice.csv"], "twice.csv has several columns of the same name: 'text'."),
        (["--data", "semicolons.csv"], "It has text;label."),
        (["--data", "empty.csv"], "can't be read as csv"),
        (["--data", "head.csv"], "has no labelled text"),
        (["--data", "latin.csv"], "latin.csv is not UTF-8 text"),
        (["--data", "broken.jsonl"], "can't be read as jsonl"),
        (["--data", "ragged.csv"], "ragged.csv can't be read as csv: Expected 2 fields in line 3, saw 4."),
        (["--data", "reviews.xlsx"], "must be a .csv, .tsv or .jsonl file"),
        (["--data", "folder"], "has no train, validation or test file"),
        (["--data", "builtin:books"], "There is no 'builtin:books'"),
        (["--test_fraction", "0.7"], "test_fraction must be in (0, 0.5]"),
        (["--max_train", "-1"], "max_train must be"),
    ],
)
def test_wrong_data_is_one_line(arguments: list[str], culprit: str, capsys: pytest.CaptureFixture[str]) -> None:
    bad_files()
    with pytest.raises(SystemExit) as exit_:
        run_commands({"report": report}, module=imdb_dataset.MODULE, argv=arguments)
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith(("error: ", "Traceback"))]
    assert exit_.value.code == 2
    assert len(lines) == 1
    assert culprit in lines[0]


def test_a_missing_file_is_a_failure_of_files() -> None:
    with pytest.raises(SystemExit) as exit_:
        run_commands({"report": report}, module=imdb_dataset.MODULE, argv=["--data", "missing.csv"])
    assert exit_.value.code == 1


def test_labels_that_the_model_does_not_know_are_named() -> None:
    write_csv()
    with pytest.raises(InputError, match="labels that the model does not know: 'bad', 'good'"):
        load_data(DataConfig(data="reviews.csv"), label_names=["negative", "positive"])


def test_the_report_counts_labels_and_leaks(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as exit_:
        run_commands({"report": report}, module=imdb_dataset.MODULE, argv=["--data", "builtin:tweets", "--run", "x"])
    assert exit_.value.code == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[1].split()[:5] == ["train", "400", "400", "400", "1,200"]
    assert "test in train: 0" in lines and "training leaves them out of train" not in lines
    folder = Path("outputs/bert_sentiment_analysis/x")
    assert (folder / "labels.png").read_bytes().startswith(b"\x89PNG")
    assert json.loads((folder / "results.json").read_text())["metrics"]["train_texts"] == 1200


def test_the_report_shows_leaks_though_training_leaves_them_out(capsys: pytest.CaptureFixture[str]) -> None:
    Path("set").mkdir()
    lines = [f"text {i},{'good' if i % 2 else 'bad'}" for i in range(60)]
    Path("set/train.csv").write_text("text,label\n" + "\n".join(lines))
    Path("set/test.csv").write_text("text,label\n" + "\n".join(line.replace("text", "TEXT") for line in lines[:5]))
    with pytest.raises(SystemExit):
        run_commands({"report": report}, module=imdb_dataset.MODULE, argv=["--data", "set", "--run", "x"])
    shown = capsys.readouterr().out.splitlines()
    assert "training leaves them out of train" in shown
    splits = load_data(DataConfig(data="set"))
    leaks = int(next(line for line in shown if line.startswith("test in train")).split()[-1])
    assert leaks >= 4 and find_leaks(splits)["test in train"] == 0


def test_test_is_never_learned_from_nor_divided() -> None:
    write_csv()
    Path("set").mkdir()
    Path("reviews.csv").rename("set/test.csv")
    with pytest.raises(InputError, match="set has no train and no validation split, only test"):
        load_data(DataConfig(data="set"))
    rows = read_table(Path("set/test.csv"))
    assert len(load_data(DataConfig(data="set"), needed=["test"])["test"]) == len(rows)
    Path("set/test.tsv").touch()
    with pytest.raises(InputError, match=r"set has several test files: test.csv, test.tsv"):
        load_data(DataConfig(data="set"))


@pytest.mark.parametrize("name", ["dev", "val", "valid", "validation"])
def test_a_validation_file_may_have_any_usual_name(name: str) -> None:
    Path("set").mkdir()
    for split, count in (("train", 60), (name, 8)):
        lines = [f"{split} {i},{'good' if i % 2 else 'bad'}" for i in range(count)]
        Path(f"set/{split}.csv").write_text("text,label\n" + "\n".join(lines))
    assert len(load_data(DataConfig(data="set"))["validation"]) == 8


def test_nothing_to_learn_from_is_an_error() -> None:
    Path("set").mkdir()
    lines = [f"text {i},{'good' if i % 2 else 'bad'}" for i in range(60)]
    for split in ("train", "test"):
        Path(f"set/{split}.csv").write_text("text,label\n" + "\n".join(lines))
    with pytest.raises(InputError, match="set has nothing to learn from in train: 0 texts, no label"):
        load_data(DataConfig(data="set"))
    Path("set/train.csv").write_text("text,label\n" + "\n".join(f"other {i},good" for i in range(20)))
    with pytest.raises(InputError, match="in train: 18 texts, only one label, 'good'"):
        load_data(DataConfig(data="set"))


def test_numbers_in_jsonl_stay_as_they_stand_there() -> None:
    rows = [{"text": f"text {i}", "label": i % 2 if i else None, "1": [i]} for i in range(40)]
    Path("rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    assert set(read_table(Path("rows.jsonl"))["label"]) == {"0", "1", ""}
    with pytest.raises(InputError, match="rows.jsonl has no column 'x'. It has text, label, 1"):
        load_data(DataConfig(data="rows.jsonl", label_column="x"))


@pytest.mark.parametrize(("name", "content"), [
    ("lists.jsonl", b'["a", 1]\n'), ("cut.csv.gz", gzip.compress(b"text,label\na,b\n" * 99, mtime=0)[:30]),
    ("not.csv.gz", b"text"), ("cut.jsonl.gz", gzip.compress(b'{"text": "a"}' * 99, mtime=0)[:20]),
    ("deep.jsonl", b"[" * 100_000), ("half.jsonl", rb'{"text": "a \ud83d", "label": 1}'),
])  # fmt: skip
def test_a_damaged_table_is_an_error(name: str, content: bytes) -> None:
    Path(name).write_bytes(content)
    with pytest.raises((InputError, OSError)):
        read_table(Path(name))


@pytest.mark.parametrize("rows", ["Bad film, really awful,negative", "good film,positive,", "a,b,c,d"])
def test_a_row_with_too_many_cells_shifts_nothing(rows: str) -> None:
    Path("t.csv").write_text(f"text,label\n{rows}\n{rows}\n")
    with pytest.raises(InputError, match=r"t.csv can't be read as csv: Expected 2 fields in line 2, saw \d.\nhint"):
        read_table(Path("t.csv"))


def test_a_column_without_a_name_is_called_by_its_number() -> None:
    Path("t.csv").write_text(",text\n7,a\n")
    assert read_table(Path("t.csv")).to_dict("records") == [{"0": "7", "text": "a"}]


def test_semicolons_are_met_with_what_a_csv_is() -> None:
    Path("t.csv").write_text("text;label\na;b\n")
    with pytest.raises(InputError, match="hint: columns are separated by commas"):
        load_data(DataConfig(data="t.csv"))


POLES = ["negative", "positive"]


@pytest.mark.parametrize(
    ("values", "names", "meant"),
    [
        (["Pos", " NEG ", "positive", "mixed"], POLES, ["positive", "negative", "positive", None]),
        (["0", "1", ""], POLES, ["negative", "positive", None]),
        (["1", "1"], POLES, [None, None]),
        (["1", "2", "5"], POLES, [None, None, None]),
        (["neutral", "POS"], ["NEG", "NEU", "POS"], ["NEU", "POS"]),
        (["good", "bad"], ["Bad", "Good"], ["Good", "Bad"]),
        (["0", "1"], ["1", "0"], ["0", "1"]),
        (["Neg", "POSITIVE", "0"], None, ["negative", "positive", None]),
    ],
)
def test_labels_count_in_any_case_for_short_and_as_all_numbers(
    values: list[str], names: list[str] | None, meant: list[str | None]
) -> None:
    found = read_labels(values, names)
    assert [found.get(value) for value in values] == meant


def test_labels_of_a_file_are_read_as_the_model_knows_them(caplog: pytest.LogCaptureFixture) -> None:
    lines = [f"text {i},{('Neg', 'POSITIVE')[i % 2]}" for i in range(40)]
    Path("reviews.csv").write_text("text,label\n" + "\n".join(lines))
    with caplog.at_level("INFO"):
        splits = load_data(DataConfig(data="reviews.csv"), label_names=["positive", "negative"])
    assert {label for split in splits for _, label in rows_of(splits, split)} == set(POLES)
    assert "reviews.csv: labels are read as Neg → negative, POSITIVE → positive" in caplog.text
    assert load_data(DataConfig(data="reviews.csv"))["train"].features["label"].names == POLES


def test_a_file_may_be_read_undivided_however_small() -> None:
    Path("few.csv").write_text("text,label\na,good\nb,bad\n")
    assert {split: len(rows) for split, rows in read_splits(DataConfig(data="few.csv"), divide=False).items()} == {
        "train": 2
    }


def test_a_model_that_knows_its_labels_is_measured_on_texts_of_one() -> None:
    Path("set").mkdir()
    Path("set/test.csv").write_text("text,label\na,good\nb,good\n")
    splits = load_data(DataConfig(data="set"), label_names=["bad", "good"], needed=["test"])
    assert splits["test"]["label"] == [1, 1]
    Path("bad.jsonl").write_text('{"text": "a"}\n\n{"text": }\n')
    with pytest.raises(InputError, match="line 3: Expecting value"):
        read_table(Path("bad.jsonl"))


@pytest.mark.parametrize(("cell", "kind"), [('["a", "b"]', "a list"), ('{"a": 1}', "an object")])
@pytest.mark.parametrize("column", ["text", "label"])
def test_a_text_or_label_that_is_a_list_is_named_with_its_line(column: str, cell: str, kind: str) -> None:
    row = {"text": '"a"', "label": "1", column: cell}
    lines = ['{"text": "a", "label": 0, "tags": ["x"]}', "", f'{{"text": {row["text"]}, "label": {row["label"]}}}']
    Path("rows.jsonl").write_text("\n".join(lines))
    with pytest.raises(InputError, match=f"rows.jsonl, line 3: '{column}' must be a text or a number, not {kind}"):
        load_data(DataConfig(data="rows.jsonl"))
