r"""Labelled texts from anywhere: three embedded domains, files of your own, data sets of the hub.

    python -m bert_sentiment_analysis.data.imdb_dataset report --data builtin:tweets
    python -m bert_sentiment_analysis.data.imdb_dataset report --data reviews.csv --label_column stars \
        --label_map '{"1": "negative", "5": "positive"}'

``report`` shows labels, lengths, duplicates and leaks before anything is trained on them.
"""

from __future__ import annotations

import csv
import gzip
import json
import logging
import math
import re
import sys
import textwrap
import zlib
from collections import Counter
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from bert_sentiment_analysis.builtin.synthetic_reviews import DOMAINS, synthetic_reviews
from bert_sentiment_analysis.data.preprocessor import clean
from shared.config import check_range, run_commands
from shared.errors import InputError
from shared.plots import drawing
from shared.results import Run
from shared.sources import Source, hub_errors, resolve

if TYPE_CHECKING:
    import pandas as pd
    from datasets import DatasetDict

PROJECT = "bert_sentiment_analysis"
MODULE = f"{PROJECT}.data.imdb_dataset"
NOT_RECIPE = {"recipe": False}
TEXT_COLUMNS = ("text", "sentence", "review", "content", "tweet", "reviewText", "verified_reviews")
LABEL_COLUMNS = ("label", "sentiment", "feedback", "stars", "rating", "overall")
# Data sets whose numbers have no names in some copies.
KNOWN_LABELS = {
    ("stanfordnlp/imdb", ""): {"0": "negative", "1": "positive"},
    ("fancyzhx/amazon_polarity", ""): {"0": "negative", "1": "positive"},
    ("stanfordnlp/sst2", ""): {"0": "negative", "1": "positive"},
    ("cardiffnlp/tweet_eval", "sentiment"): {"0": "negative", "1": "neutral", "2": "positive"},
}
SHORT_LABELS = {"neg": "negative", "neu": "neutral", "pos": "positive"}
SPLIT_NAMES = {"train": ("train",), "validation": ("validation", "valid", "val", "dev"), "test": ("test",)}
SEPARATED = {
    ".csv": "columns are separated by commas; a cell with a comma in it stands in double quotes",
    ".tsv": "columns are separated by tabs, without quotes around cells",
}
WORST_FIRST = ("very negative", "negative", "neutral", "positive", "very positive")
logger = logging.getLogger(MODULE)


@dataclass
class DataConfig:
    """Where labelled texts come from, and how they are divided."""

    data: str = "builtin:movies"
    """builtin:movies, builtin:products, builtin:tweets (all synthetic); a csv, tsv or jsonl file; a folder with
    train, validation and test files; or a hub id such as stanfordnlp/imdb."""
    subset: str = ""
    """Configuration of a hub data set, such as sentiment of cardiffnlp/tweet_eval."""
    text_column: str = ""
    """Column with the texts; found by its name where it is a usual one."""
    label_column: str = ""
    """Column with the labels; found by its name where it is a usual one."""
    label_map: dict[str, str] = field(default_factory=dict)
    """Value in the file → label, such as {"1": "negative", "5": "positive"}; rows with other values are left out."""
    header: bool = True
    """Whether csv and tsv files begin with the names of their columns; if not, they are called 0, 1, 2 …"""
    validation_fraction: float = 0.1
    """Part of train that is kept for validation where there is no such split, in (0, 0.5]."""
    test_fraction: float = 0.1
    """Part of train that is kept for testing where there is no such split, in (0, 0.5]."""
    max_train: int = 0
    """Use at most this many texts of train, with the same shares of labels; 0 is all."""

    def __post_init__(self) -> None:
        """Check the ranges."""
        check_range("validation_fraction", self.validation_fraction, 0, 0.5, open_low=True)
        check_range("test_fraction", self.test_fraction, 0, 0.5, open_low=True)
        check_range("max_train", self.max_train, 0)

    def division(self, seed: int) -> dict[str, float]:
        """Return what decides which texts of an undivided file are train, validation and test."""
        return {"seed": seed, "validation_fraction": self.validation_fraction, "test_fraction": self.test_fraction}


def load_data(
    config: DataConfig,
    seed: int = 0,
    label_names: list[str] | None = None,
    needed: Collection[str] = ("train", "validation", "test"),
) -> DatasetDict:
    """Load labelled texts as splits without leaks.

    Rows without a text or a label are left out and counted in the log, as are texts of train that also stand in
    validation or test. Missing splits are carved from train, with the shares of labels kept; test is never divided.

    Args:
        config: What to load.
        seed: Of the division.
        label_names: The labels to expect, in their order; by default those that are there, worst first.
        needed: The splits that must be there in the end.

    Returns:
        ``train``, ``validation`` and ``test``, as far as they are there, each with the columns ``text`` (string) and
        ``label`` (ClassLabel). Train is without leaks, and cut to ``max_train``, where it is needed.

    Raises:
        InputError: A column, split or label is unknown, the file is not UTF-8, or train has fewer than two labels.
        OSError: The data can't be read or fetched.
    """
    splits = read_splits(config, seed, label_names)
    missing = [split for split in needed if split not in splits]
    if missing:
        raise InputError(f"{config.data} has no {' and no '.join(missing)} split, only {', '.join(splits)}.")
    if "train" in needed:
        splits["train"] = _without_leaks(splits)
        labels = set(splits["train"]["label"])
        if len(labels) < 2:
            found = splits["train"].features["label"].int2str(sorted(labels))
            raise InputError(
                f"{config.data} has nothing to learn from in train: {len(splits['train'])} texts, "
                f"{'only one label, ' + repr(found[0]) if found else 'no label'}."
            )
        if 0 < config.max_train < len(labels):
            raise InputError(f"max_train must be at least {len(labels)}, one text a label. Got {config.max_train}.")
        if 0 < config.max_train < len(splits["train"]):
            _, splits["train"] = _carve(splits["train"], config.max_train, seed, config.data)
    return splits


def read_splits(
    config: DataConfig, seed: int = 0, label_names: list[str] | None = None, *, divide: bool = True
) -> DatasetDict:
    """Load labelled texts as :func:`load_data` does, with the leaks still in train, and undivided if so asked."""
    from datasets import ClassLabel, Dataset, DatasetDict, Features, Value

    source = resolve(config.data, builtins=DOMAINS)
    frames = {split: _two_columns(frame, config, source, label_names)
              for split, frame in _read(source, config).items()}  # fmt: skip
    for split in [split for split, frame in frames.items() if frame.empty]:
        logger.warning("%s: nothing is left of the %s split", source, split)
        del frames[split]
    labels = {label for frame in frames.values() for label in frame["label"]}
    fewest = 2 if label_names is None else 1  # a model that knows its labels can be measured on texts of one
    if label_names is None:
        label_names = sorted(labels, key=lambda name: (_rank(name), name))
    unknown = sorted(labels - set(label_names))
    if unknown:
        raise InputError(
            f"{source} has labels that the model does not know: {', '.join(map(repr, unknown[:10]))}.",
            hint=f"map them with --label_map to {', '.join(label_names)}",
        )
    if len(labels) < fewest:
        found = f"only one label, {', '.join(map(repr, labels))}" if labels else "no labelled text"
        raise InputError(f"{source} has {found}; there is nothing to tell apart.")
    if len(labels) > 100:
        raise InputError(f"{source} has {len(labels)} different labels.", hint="another --label_column?")
    features = Features({"text": Value("string"), "label": ClassLabel(names=label_names)})
    splits = {split: Dataset.from_pandas(frame, features=features, preserve_index=False)
              for split, frame in frames.items()}  # fmt: skip
    for split, fraction in (("test", config.test_fraction), ("validation", config.validation_fraction)):
        if divide and split not in splits and "train" in splits:
            splits["train"], splits[split] = _carve(splits["train"], fraction, seed, source)
    return DatasetDict({split: splits[split] for split in ("train", "validation", "test") if split in splits})


def _rank(label: str) -> int:
    return WORST_FIRST.index(label.lower()) if label.lower() in WORST_FIRST else len(WORST_FIRST)


def _read(source: Source, config: DataConfig) -> dict[str, pd.DataFrame]:
    """Return split → table of strings."""
    import pandas as pd

    if config.subset and source.origin != "hub":
        raise InputError(f"subset is for data sets of the hub, which {source} is not. Got {config.subset!r}.")
    if source.origin == "builtin":
        splits = synthetic_reviews(source.name)
        return {split: pd.DataFrame(rows, columns=["text", "label"]) for split, rows in splits.items()}
    if source.origin == "hub":
        return _from_hub(source, config)
    path = Path(source.name)
    if path.is_dir():
        files = {split: sorted(file for name in names for file in path.glob(f"{name}.*"))
                 for split, names in SPLIT_NAMES.items()}  # fmt: skip
        for split, found in files.items():
            if len(found) > 1:
                raise InputError(f"{path} has several {split} files: {', '.join(file.name for file in found)}.")
        if not any(files.values()):
            raise InputError(f"The folder {path} has no train, validation or test file.", hint="such as train.csv")
        return {split: read_table(found[0], header=config.header) for split, found in files.items() if found}
    return {"train": read_table(path, header=config.header)}


def read_table(path: Path, *, header: bool = True) -> pd.DataFrame:
    """Read a csv, tsv or jsonl file, compressed or not, with every cell as the string that stands there.

    Args:
        path: The file; tsv has no quotes around texts, csv may have.
        header: Whether csv and tsv begin with names; if not, the columns are called 0, 1, 2 …

    Returns:
        Strings; of jsonl also its lists and objects as they are, which :func:`pick_column` refuses.

    Raises:
        InputError: It is not UTF-8, not of its kind, or two of its columns have the same name.
        OSError: It can't be read.
    """
    import pandas as pd

    kind = next((suffix for suffix in path.suffixes if suffix in (".csv", ".tsv", ".jsonl")), "")
    try:
        if kind == ".jsonl":
            with (gzip.open if path.suffix == ".gz" else open)(path, "rt", encoding="utf-8-sig") as file:
                rows = {number: _read_object(line, number) for number, line in enumerate(file, 1) if line.strip()}
            return _as_strings(pd.DataFrame(rows.values(), rows.keys(), dtype=object))
        if kind in (".csv", ".tsv"):
            table = pd.read_csv(
                path,
                index_col=False,
                sep="\t" if kind == ".tsv" else ",",
                quoting=csv.QUOTE_NONE if kind == ".tsv" else csv.QUOTE_MINIMAL,  # tabs need no quotes around texts
                header=None,  # pandas would rename columns of the same name, and shift rows longer than the first
                dtype=str,
                keep_default_na=False,  # "None" and "NA" are words
                encoding="utf-8-sig",
            ).rename(columns=str)
            if not header:
                return table
            names = [name or number for number, name in table.iloc[0].items()]
            if twice := sorted({name for name in names if names.count(name) > 1}):
                raise InputError(f"{path} has several columns of the same name: {', '.join(map(repr, twice))}.")
            return table[1:].set_axis(names, axis=1)
    except InputError:
        raise
    except UnicodeDecodeError as error:
        raise InputError(f"{path} is not UTF-8 text: {error}.", hint="convert it, e.g. with iconv") from None
    except (ValueError, pd.errors.ParserError, EOFError, zlib.error, RecursionError) as error:
        reason = textwrap.shorten(str(error).removeprefix("Error tokenizing data. C error: "), 200, placeholder=" …")
        message = f"{path} can't be read as {kind[1:]}: {reason.rstrip('.')}."
        raise InputError(message, SEPARATED.get(kind, "")) from None
    raise InputError(f"{path} must be a .csv, .tsv or .jsonl file, or one of them as .gz.")


def _read_object(line: str, number: int) -> dict[str, Any]:
    try:
        row = json.loads(line)
        if r"\ud" in line.lower():
            json.dumps(row, ensure_ascii=False).encode()  # half a character, which no tokenizer takes
    except ValueError as error:
        raise ValueError(f"line {number}: {error}") from None
    if not isinstance(row, dict):
        raise ValueError(f'line {number} must be an object, such as {{"text": …, "label": …}}')
    return row


def _as_strings(frame: pd.DataFrame) -> pd.DataFrame:
    """Return a table with every simple cell as a string, empty where there is none."""

    def text(cell: Any) -> Any:
        if isinstance(cell, Iterable) and not isinstance(cell, str):
            return cell
        return "" if cell is None or cell != cell else str(cell)

    return frame.map(text)


def _from_hub(source: Source, config: DataConfig) -> dict[str, pd.DataFrame]:
    from datasets import ClassLabel, load_dataset

    with hub_errors(source, "builtin:movies"):
        splits = load_dataset(source.name, config.subset or None, revision=source.revision)
    frames = {}
    for split, rows in splits.items():
        chosen = [find_column(rows.column_names, wanted, getattr(config, f"{wanted}_column"), source)
                  for wanted in ("text", "label")]  # fmt: skip
        frame = rows.select_columns(chosen).to_pandas()
        feature = rows.features[chosen[1]]
        if isinstance(feature, ClassLabel):
            frame[chosen[1]] = [feature.int2str(int(i)) if i >= 0 else "" for i in frame[chosen[1]]]
        frames[split] = _as_strings(frame)
    usual = {split: frames[name] for split, names in SPLIT_NAMES.items() for name in names if name in frames}
    if usual:
        return usual
    if len(frames) > 1:
        raise InputError(f"{source} has no split called train, validation or test, but {', '.join(frames)}.")
    return dict(zip(["train"], frames.values(), strict=True))


def _two_columns(
    frame: pd.DataFrame, config: DataConfig, source: Source, label_names: list[str] | None
) -> pd.DataFrame:
    """Return the columns ``text`` and ``label`` of a table, without the rows where one is missing."""
    import pandas as pd

    columns = {wanted: pick_column(frame, wanted, getattr(config, f"{wanted}_column"), source)
               for wanted in ("text", "label")}  # fmt: skip
    table = pd.DataFrame(columns)
    table["label"] = table["label"].str.strip()
    empty = ~table["text"].map(clean).astype(bool)
    values = set(table["label"]) - {""}
    known = KNOWN_LABELS.get((source.name, config.subset), {})
    label_map = config.label_map or (known if values and values <= known.keys() else {})
    if label_map:
        missing = sorted(set(label_map) - set(table["label"]))
        if len(missing) == len(label_map):
            values = [value for value, _ in Counter(table["label"]).most_common(10)]
            raise InputError(
                f"None of the values of label_map stands in {columns['label'].name!r}. It has {', '.join(values)}."
            )
        table["label"] = table["label"].map(label_map).fillna("")
    meant = read_labels(table["label"], label_names)
    if changed := [f"{value} → {label}" for value, label in meant.items() if value != label]:
        logger.info("%s: labels are read as %s", source, ", ".join(sorted(changed)))
    table["label"] = table["label"].map(lambda value: meant.get(value, value))
    unlabelled = table["label"] == ""
    for rows, why in ((empty, "without a text"), (unlabelled & ~empty, "without a label of ours")):
        if rows.any():
            logger.warning("%s: %d of %d rows left out, %s", source, rows.sum(), len(table), why)
    return table[~empty & ~unlabelled].reset_index(drop=True)


def read_labels(values: Iterable[str], label_names: Sequence[str] | None = None) -> dict[str, str]:
    """Find out what labels mean that stand in a table: in any case, neg, neu and pos for short, or as numbers.

    Args:
        values: As they stand there.
        label_names: The labels to expect, in the order of a model's outputs; by default those of sentiment.

    Returns:
        Value → label, of the values that have one. Numbers from 0 count as ``label_names`` where they all stand there.
    """
    written = {value: value.strip().lower() for value in values}
    known = {str(number): name for number, name in enumerate(label_names or ())}
    if set(written.values()) - {""} != known.keys():
        known = {}
    known |= {name.lower(): name for name in label_names or WORST_FIRST}
    for short, long in SHORT_LABELS.items():
        for one, other in ((short, long), (long, short)):
            if other in known:
                known.setdefault(one, known[other])
    return {value: known[name] for value, name in written.items() if name in known}


def find_column(columns: Iterable[str], wanted: Literal["text", "label"], chosen: str, source: object) -> str:
    """Return the column that holds the texts or the labels: the chosen one, or one with a usual name.

    Raises:
        InputError: There is none; the message names those there are.
    """
    columns = list(map(str, columns))
    usual = TEXT_COLUMNS if wanted == "text" else LABEL_COLUMNS
    found = [name for name in ([chosen] if chosen else usual) if name in columns]
    if not found:
        missing = f"no column {chosen!r}" if chosen else f"no column with a usual name for the {wanted}s"
        one = len(columns) == 1 and re.search(r"[;,\t|]", columns[0])
        hint = "columns are separated by commas in a csv, by tabs in a tsv" if one else f"--{wanted}_column NAME"
        raise InputError(f"{source} has {missing}. It has {', '.join(columns)}.", hint)
    return found[0]


def pick_column(frame: pd.DataFrame, wanted: Literal["text", "label"], chosen: str, source: object) -> pd.Series:
    """Return the column of a table that holds the texts or the labels, as strings.

    Args:
        frame: From :func:`read_table`.
        wanted: Which.
        chosen: Its name; empty to look for a usual one.
        source: What to call the table in messages.

    Raises:
        InputError: There is no such column, or something else than texts stands in it.
    """
    column = frame[find_column(frame.columns, wanted, chosen, source)]
    for line, cell in column.items():
        if not isinstance(cell, str):
            kind = "an object" if isinstance(cell, dict) else "a list"
            raise InputError(f"{source}, line {line}: {column.name!r} must be a text or a number, not {kind}.")
    return column


def _carve(rows: Any, size: float, seed: int, source: object) -> tuple[Any, Any]:
    """Cut a part (below 1) or a number of rows off, with the shares of labels kept."""
    try:
        parts = rows.train_test_split(test_size=size, seed=seed, stratify_by_column="label")
    except ValueError:
        counts = Counter(rows["label"])
        raise InputError(
            f"{source} is too small to be divided: both parts need a text of each of {len(counts)} labels, and it has "
            f"{len(rows)} texts, {min(counts.values())} of the rarest label.",
            hint=f"some {math.ceil(len(counts) / size)} texts, three or more of each label; evaluate has --split all"
            if size < 1
            else "another --max_train",
        ) from None
    return parts["train"], parts["test"]


def normalized(text: str) -> str:
    """Return what two copies of a text have in common: its letters and digits, in lower case, without names and links.

    Public copies of a tweet differ in just these: TweetEval's have neither names nor links, SemEval's have both.
    """
    text = clean(text)
    words = re.sub(r"[\W_]+", " ", re.sub(r"@user|\bhttp\b", " ", text).casefold()).split()
    return " ".join(words) or text


def find_leaks(splits: DatasetDict | dict[str, Any]) -> dict[str, int]:
    """Count the texts that a split shares with an earlier one, and copies inside each split.

    Returns:
        ``"test in train"`` and so on → number of texts; ``"copies in train"`` and so on → rows beyond the first.
    """
    texts = {split: [normalized(text) for text in rows["text"]] for split, rows in splits.items()}
    found = {f"copies in {split}": len(rows) - len(set(rows)) for split, rows in texts.items()}
    order = [split for split in ("train", "validation", "test") if split in texts]
    for i, split in enumerate(order):
        for earlier in order[:i]:
            found[f"{split} in {earlier}"] = len(set(texts[split]) & set(texts[earlier]))
    return found


def _without_leaks(splits: dict[str, Any]) -> Any:
    """Return train without the texts that also stand in validation or test."""
    others = [rows for split, rows in splits.items() if split != "train"]
    kept_back = {normalized(text) for rows in others for text in rows["text"]}
    keep = [i for i, text in enumerate(splits["train"]["text"]) if normalized(text) not in kept_back]
    leaks = len(splits["train"]) - len(keep)
    if leaks:
        logger.warning("%d texts of train also stand in validation or test, and are left out of train", leaks)
    return splits["train"].select(keep) if leaks else splits["train"]


@dataclass
class ReportConfig(DataConfig):
    """Show what is in a data set: labels, lengths, copies and leaks."""

    max_train: int = 0
    """Of training; the report counts every text."""
    seed: int = field(default=0, metadata=NOT_RECIPE)
    """Of the division into splits."""
    run: str = field(default="", metadata=NOT_RECIPE)
    """Name of the run's folder; by default the time."""


def report(config: ReportConfig) -> None:
    """Report on a data set; see :class:`ReportConfig`."""
    splits = read_splits(config, config.seed)
    run = Run(PROJECT, MODULE, "report", config, name=config.run)
    names = next(iter(splits.values())).features["label"].names
    counts = {split: Counter(names[i] for i in rows["label"]) for split, rows in splits.items()}
    lengths = {split: sorted(len(text.split()) for text in rows["text"]) for split, rows in splits.items()}
    lines = [f"{'':12}" + "".join(f"{name:>12}" for name in (*names, "texts", "words", "longest"))]
    for split, rows in splits.items():
        figures = [counts[split][name] for name in names] + [
            len(rows),
            lengths[split][len(rows) // 2],
            lengths[split][-1],
        ]
        lines.append(f"{split:12}" + "".join(f"{figure:>12,}" for figure in figures))
    leaks = find_leaks(splits)
    lines += ["", *(f"{name}: {count:,}" for name, count in leaks.items())]
    if leaks.get("validation in train") or leaks.get("test in train"):
        lines.append("training leaves them out of train")
    sys.stdout.write("\n".join(lines) + "\n")
    plot_labels(counts, names, run.folder / "labels.png", config.data)
    metrics = {f"{split}_texts": len(rows) for split, rows in splits.items()}
    run.finish(model="–", data=config.data, seed=config.seed, metrics=metrics | leaks)
    logger.info("saved in %s", run.folder)


def plot_labels(counts: dict[str, Counter[str]], names: list[str], path: Path, title: str) -> None:
    """Draw the share of each label in each split."""
    with drawing(path, 6, 3.2) as figure:
        axes = figure.add_subplot()
        left = [0.0] * len(counts)
        for name in names:
            shares = [100 * split[name] / max(sum(split.values()), 1) for split in counts.values()]
            bars = axes.barh(list(counts), shares, left=left, label=name)
            axes.bar_label(bars, fmt="%.0f %%", label_type="center", fontsize=9)
            left = [a + b for a, b in zip(left, shares, strict=True)]
        axes.invert_yaxis()
        axes.set(xlabel="% of the texts", xlim=(0, 100))
        axes.set_title(title, parse_math=False)
        figure.legend(loc="outside lower center", ncols=len(names))


if __name__ == "__main__":
    run_commands({"report": report}, module=MODULE, extra="sentiment")
