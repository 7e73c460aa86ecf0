import copy
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from model_optimization.builtin.subject import Data, Recipe, Subject, accuracy, load_subject
from model_optimization.deployment.onnx_conversion import convert
from model_optimization.distillation.teacher_student import distill
from model_optimization.pruning.structured_pruning import (
    choose,
    importance,
    layers_of,
    prune,
    prune_vocabulary,
)
from shared.errors import InputError


def test_importance_is_what_the_loss_changes_when_a_unit_is_scaled(subject: Subject, data: Data) -> None:
    rows = data.splits["train"][:1]
    heads, neurons = importance(subject.model, subject.encoder, rows)
    [ids] = subject.encoder.encode([rows[0][0]])

    def loss(model) -> float:  # type: ignore[no-untyped-def]
        logits = model(input_ids=torch.tensor([ids])).logits.double()
        return torch.nn.functional.cross_entropy(logits, torch.tensor([rows[0][1]])).item()

    step = 1e-2
    for layer_number, unit, scores, width in ((1, 2, heads, 8), (0, 5, neurons, 1)):
        changed = []
        for sign in (1, -1):
            model = copy.deepcopy(subject.model).double()
            layer = layers_of(model)[layer_number]
            linear = layer.output if width > 1 else layer.down
            with torch.no_grad():
                linear.weight[:, unit * width : (unit + 1) * width] *= 1 + sign * step
            changed.append(loss(model))
        slope = abs(changed[0] - changed[1]) / (2 * step)
        assert scores[layer_number][unit] == pytest.approx(slope, rel=0.02, abs=1e-7)


def test_what_was_cut_contributed_nothing_if_its_output_was_zero(subject: Subject, data: Data) -> None:
    model = copy.deepcopy(subject.model)
    layer = layers_of(model)[0]
    with torch.no_grad():
        layer.output.weight[:, 8:16] = 0  # head 1
        layer.down.weight[:, [3, 7]] = 0
    silenced = subject.with_model(model, "silenced")
    before = silenced.logits(data.texts("test"))
    layer.keep([0, 2, 3], [i for i in range(64) if i not in (3, 7)])
    assert (layer.heads, layer.neurons) == (3, 62)
    np.testing.assert_allclose(silenced.logits(data.texts("test")), before, atol=1e-5)


@given(st.integers(0, 50), st.floats(0, 0.7), st.sampled_from([1, 4]))
def test_what_stays_is_as_many_as_asked_in_order_and_in_every_layer(seed: int, sparsity: float, multiple: int) -> None:
    rng = np.random.default_rng(seed)
    scores = [rng.random(16) for _ in range(4)]
    kept = choose(scores, sparsity, multiple)
    assert all(layer and layer == sorted(set(layer)) and len(layer) % multiple == 0 for layer in kept)
    wanted = round(64 * (1 - sparsity))
    assert wanted - multiple < sum(map(len, kept)) <= wanted
    for layer, its in zip(scores, kept, strict=True):
        gone = [i for i in range(16) if i not in its]
        assert not gone or layer[gone].max() <= layer[its].min()


@pytest.mark.parametrize(("sparsity", "message"), [(1.0, r"\[0, 1\)"), (-0.1, r"\[0, 1\)"), (0.99, "would leave")])
def test_pruning_everything_is_refused(sparsity: float, message: str) -> None:
    with pytest.raises(InputError, match=message):
        choose([np.ones(4)] * 3, sparsity)


def test_pruning_every_head_is_refused(subject: Subject, data: Data) -> None:
    with pytest.raises(InputError, match="would leave 0 of 8"):
        prune(subject, data.splits["train"][:8], heads=0.99)


def test_a_pruned_model_recovers_and_is_the_same_after_saving(subject: Subject, data: Data, tmp_path: Path) -> None:
    pruned = prune(subject, data.splits["train"][:64], heads=0.5, neurons=0.5, multiple_of=8)
    assert sum(layer.heads for layer in layers_of(pruned.model)) == 4
    assert sum(layer.neurons for layer in layers_of(pruned.model)) == 64
    assert sum(layer.heads for layer in layers_of(subject.model)) == 8, "the original stays whole"
    distill(subject, pruned, data.splits["train"], Recipe(epochs=6, batch_size=16, learning_rate=2e-3))
    assert accuracy(pruned, data) > 0.93
    pruned.save(tmp_path / "pruned")
    again = load_subject(str(tmp_path / "pruned"))
    np.testing.assert_array_equal(again.logits(data.texts("test")), pruned.logits(data.texts("test")))
    bundle = convert(again, tmp_path / "bundle")
    np.testing.assert_allclose(bundle.logits(data.texts("test")), pruned.logits(data.texts("test")), atol=1e-4)


def test_widths_that_are_not_those_of_the_weights_are_refused(subject: Subject, data: Data, tmp_path: Path) -> None:
    prune(subject, data.splits["train"][:8], multiple_of=8).save(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    config["pruned"][0]["neurons"] += 8
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(InputError, match="no classifier that can be read"):
        load_subject(str(tmp_path))


def test_distilbert_and_roberta_are_pruned_too(data: Data, tiny_tokenizer: Any) -> None:
    from transformers import (
        DistilBertConfig,
        DistilBertForSequenceClassification,
        RobertaConfig,
        RobertaForSequenceClassification,
    )

    size = len(tiny_tokenizer())
    for model in (
        DistilBertForSequenceClassification(DistilBertConfig(
            vocab_size=size, dim=32, n_layers=2, n_heads=4, hidden_dim=64, max_position_embeddings=80)),
        RobertaForSequenceClassification(RobertaConfig(
            vocab_size=size, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=64,
            max_position_embeddings=80, pad_token_id=0)),
    ):  # fmt: skip
        whole = Subject(model.eval(), tiny_tokenizer(), data.label_names, model.config.model_type, 32)
        small = prune(whole, data.splits["train"][:8], heads=0.5, neurons=0.5, multiple_of=8)
        assert small.logits(["the bed was bad"]).shape == (1, 2)
        assert sum(layer.heads for layer in layers_of(small.model)) == 4


def test_another_architecture_is_named() -> None:
    from transformers import GPT2Config, GPT2ForSequenceClassification

    model = GPT2ForSequenceClassification(GPT2Config(n_embd=8, n_layer=1, n_head=2, vocab_size=10))
    with pytest.raises(InputError, match="Got a gpt2"):
        layers_of(model)


def test_a_smaller_vocabulary_reads_what_it_has_seen_as_before(subject: Subject, data: Data) -> None:
    texts = data.texts("train")
    size = subject.encoder.vocabulary - 3
    small = prune_vocabulary(subject, texts, size)
    assert small.encoder.vocabulary == small.model.get_input_embeddings().num_embeddings == size
    np.testing.assert_allclose(small.logits(texts[:50]), subject.logits(texts[:50]), atol=1e-5)
    unseen = small.tokenizer.tokenize("again")  # no longer a word, but letters of it are there
    assert unseen == ["a", "##g", "##a", "##i", "##n"]
    assert subject.tokenizer.tokenize("again") == ["again"]


@pytest.mark.parametrize("kind", ["bert", "roberta", "sequence"])
def test_a_smaller_vocabulary_puts_the_right_ids_at_both_ends(kind: str, subject: Subject, data: Data) -> None:
    from tokenizers import processors

    vocabulary = subject.tokenizer.get_vocab()
    separator, begin = (("[SEP]", vocabulary["[SEP]"]), ("[CLS]", vocabulary["[CLS]"]))
    processor = {
        "bert": processors.BertProcessing(separator, begin), "roberta": processors.RobertaProcessing(separator, begin),
        "sequence": processors.Sequence([processors.ByteLevel(), processors.BertProcessing(separator, begin)]),
    }[kind]  # fmt: skip
    tokenizer = copy.deepcopy(subject.tokenizer)
    tokenizer.backend_tokenizer.post_processor = processor
    whole = Subject(subject.model, tokenizer, subject.label_names, "whole", 64)
    texts = data.texts("train")[:20]
    small = prune_vocabulary(whole, texts, whole.encoder.vocabulary - 3)
    [ids] = small.encoder.encode(["the bed"])
    assert small.tokenizer.convert_ids_to_tokens([ids[0], ids[-1]]) == ["[CLS]", "[SEP]"]
    np.testing.assert_allclose(small.logits(texts), whole.logits(texts), atol=1e-5)


def test_a_smaller_vocabulary_is_the_same_after_saving(subject: Subject, data: Data, tmp_path: Path) -> None:
    small = prune_vocabulary(subject, data.texts("train"), 70)
    small.save(tmp_path)
    again = load_subject(str(tmp_path))
    np.testing.assert_array_equal(again.logits(["the room again"]), small.logits(["the room again"]))


@pytest.mark.parametrize("size", [10, 10_000])
def test_a_vocabulary_that_can_not_be_is_refused(subject: Subject, data: Data, size: int) -> None:
    with pytest.raises(InputError, match="vocabulary must be in"):
        prune_vocabulary(subject, data.texts("train"), size)


def test_the_tiny_model_is_what_the_other_tests_think(tiny_model: Any) -> None:
    assert [(layer.heads, layer.neurons) for layer in layers_of(tiny_model())] == [(4, 64)] * 2
