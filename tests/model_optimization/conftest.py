"""A tiny BERT with its words and bundle, and one that has learned to tell good from bad."""

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from model_optimization.builtin.subject import Data, Recipe, Subject, train
from model_optimization.deployment.onnx_conversion import Card, OnnxClassifier, convert, export_graph, write_bundle

WORDS = (
    "the room bed staff was were is not very good bad clean dirty and but a i we it never again best worst . , ! ?"
).split()


def make_tokenizer() -> Any:
    """Return a BERT-like tokenizer of a few words and all lower-case letters."""
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    letters = [f"{mark}{chr(code)}" for code in range(97, 123) for mark in ("", "##")]
    vocabulary = {
        word: i for i, word in enumerate(dict.fromkeys(["[PAD]", "[UNK]", "[CLS]", "[SEP]", *WORDS, *letters]))
    }
    tokenizer = Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", vocabulary["[CLS]"]), ("[SEP]", vocabulary["[SEP]"])]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, unk_token="[UNK]", pad_token="[PAD]", cls_token="[CLS]", sep_token="[SEP]"
    )


def make_model(labels: tuple[str, ...] = ("negative", "positive"), layers: int = 2) -> Any:
    """Return a BERT classifier of 32 dimensions with random weights, always the same."""
    import torch
    from transformers import BertConfig, BertForSequenceClassification

    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=len(make_tokenizer()), hidden_size=32, num_hidden_layers=layers, num_attention_heads=4,
        intermediate_size=64, max_position_embeddings=128, id2label=dict(enumerate(labels)),
        label2id={label: i for i, label in enumerate(labels)}, initializer_range=0.5,
    )  # fmt: skip
    return BertForSequenceClassification(config).eval()


@pytest.fixture(scope="session")
def tiny_model() -> Callable[..., Any]:
    """Return what makes the model: importlib's mode lets no test import this file."""
    return make_model


@pytest.fixture(scope="session")
def tiny_tokenizer() -> Callable[[], Any]:
    return make_tokenizer


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder that ``from_pretrained`` reads."""
    folder = tmp_path_factory.mktemp("tiny") / "tiny-bert"
    make_model().save_pretrained(folder)
    make_tokenizer().save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def tiny_bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a bundle, 64 tokens at most. Copy it before you change it."""
    folder = tmp_path_factory.mktemp("tiny") / "tiny-bundle"
    card = Card(["negative", "positive"], 64, base="tiny", techniques=["fp32"])
    write_bundle(folder, export_graph(make_model(), 64), make_tokenizer().backend_tokenizer.to_str(), card)
    return folder


def toy_data(seed: int = 0) -> Data:
    """Return sentences whose label is one word, or its denial."""
    rng = random.Random(seed)

    def rows(count: int) -> list[tuple[str, int]]:
        made = []
        for _ in range(count):
            good, denied = rng.random() < 0.5, rng.random() < 0.3
            word = rng.choice(("good", "clean", "best") if good != denied else ("bad", "dirty", "worst"))
            parts = [
                "the",
                rng.choice(("room", "bed", "staff")),
                "was",
                "not " if denied else "",
                word,
                rng.choice(".!,"),
            ]
            made.append((" ".join(filter(None, (part.strip() for part in parts))), int(good)))
        return made

    splits = {"train": rows(400), "validation": rows(60), "test": rows(120)}
    return Data(splits, ["negative", "positive"], "toy")


@pytest.fixture(scope="session")
def data() -> Data:
    return toy_data()


@pytest.fixture(scope="session")
def subject(data: Data) -> Subject:
    """Return a tiny classifier that has learned the toy data. Copy it before you change it."""
    made = Subject(make_model(), make_tokenizer(), data.label_names, "tiny", 64)
    train(made.model, made.encoder, data.splits["train"], Recipe(epochs=6, batch_size=16, learning_rate=2e-3))
    return made


@pytest.fixture(scope="session")
def float_bundle(subject: Subject, data: Data, tmp_path_factory: pytest.TempPathFactory) -> OnnxClassifier:
    """Return its bundle in float32."""
    return convert(subject, tmp_path_factory.mktemp("bundles") / "float32", data=data)
