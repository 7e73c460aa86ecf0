import copy
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from hypothesis import given
from hypothesis import strategies as st

from model_optimization.builtin.subject import Data, Recipe, Subject, accuracy
from model_optimization.distillation.teacher_student import (
    DistillationLoss,
    Terms,
    attention_loss,
    cosine_loss,
    distill,
    evenly,
    hidden_loss,
    keep_layers,
    matched_layers,
    soft_loss,
)
from shared.errors import InputError

ROOT = Path(__file__).parents[2]


def logits(seed: int) -> torch.Tensor:
    return torch.randn(5, 3, generator=torch.Generator().manual_seed(seed)) * 3


@given(st.integers(0, 100), st.floats(0.5, 10))
def test_the_soft_loss_is_pytorchs_divergence_times_t_squared(seed: int, temperature: float) -> None:
    student, teacher = logits(seed), logits(seed + 1)
    theirs = F.kl_div(
        (student / temperature).log_softmax(-1), (teacher / temperature).softmax(-1), reduction="batchmean"
    )
    torch.testing.assert_close(soft_loss(student, teacher, temperature), theirs * temperature**2, rtol=1e-4, atol=1e-5)
    assert soft_loss(teacher, teacher, temperature).abs() < 1e-5


def test_t_squared_keeps_the_gradient_as_large_whatever_the_temperature() -> None:
    norms = []
    for temperature in (4.0, 32.0):
        student = logits(0).requires_grad_()
        soft_loss(student, logits(1), temperature).backward()
        assert student.grad is not None
        norms.append(student.grad.norm().item())
    assert 0.7 < norms[0] / norms[1] < 1.4  # without T² it would be 64


def test_padding_adds_nothing_to_any_term() -> None:
    generator = torch.Generator().manual_seed(0)
    student, teacher = (torch.randn(2, 4, 6, generator=generator) for _ in range(2))
    mask = torch.tensor([[1, 1, 1, 1], [1, 1, 0, 0]])
    spoiled = student.clone()
    spoiled[1, 2:] = 1e3
    for loss in (hidden_loss, cosine_loss):
        torch.testing.assert_close(loss(student, teacher, mask), loss(spoiled, teacher, mask))
    expected = F.mse_loss(student[mask.bool()], teacher[mask.bool()])
    torch.testing.assert_close(hidden_loss(student, teacher, mask), expected)
    target = torch.ones(6)
    expected = F.cosine_embedding_loss(student[mask.bool()], teacher[mask.bool()], target)
    torch.testing.assert_close(cosine_loss(student, teacher, mask), expected)


def test_the_attention_loss_is_pytorchs_divergence() -> None:
    generator = torch.Generator().manual_seed(0)
    student, teacher = (torch.randn(2, 3, 4, 4, generator=generator).softmax(-1) for _ in range(2))
    theirs = F.kl_div(student.log(), teacher, reduction="none").sum(-1).mean()
    torch.testing.assert_close(attention_loss(student, teacher, torch.ones(2, 4)), theirs, rtol=1e-4, atol=1e-6)
    assert attention_loss(teacher[:, :1], teacher, torch.ones(2, 4)).isfinite(), "other numbers of heads are averaged"


def test_the_loss_is_the_sum_of_its_terms(subject: Subject, data: Data) -> None:
    student = keep_layers(subject, [0])
    ids = torch.tensor(subject.encoder.encode(data.texts("train")[:1]))
    batch = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": torch.tensor([1])}
    terms = Terms(alpha=0.7, temperature=3, hidden=0.5, attention=0.25, cosine=2.0)
    loss, parts = DistillationLoss(copy.deepcopy(subject.model), student.model, terms)(student.model, batch)
    mine = student.model(input_ids=ids, output_hidden_states=True, output_attentions=True)
    its = subject.model(input_ids=ids, output_hidden_states=True)
    assert parts["task"] == pytest.approx(0.3 * F.cross_entropy(mine.logits, batch["labels"]).item(), rel=1e-4)
    assert parts["soft"] == pytest.approx(0.7 * soft_loss(mine.logits, its.logits, 3).item(), rel=1e-3, abs=1e-6)
    squares = [F.mse_loss(mine.hidden_states[i], its.hidden_states[2 * i]).item() for i in (0, 1)]
    assert parts["hidden"] == pytest.approx(0.5 * sum(squares) / 2, rel=1e-3)
    assert set(parts) == {"task", "soft", "hidden", "attention", "cosine"}
    assert loss.item() == pytest.approx(sum(parts.values()), rel=1e-5)


@pytest.mark.parametrize(("student", "teacher", "pairs"), [
    (3, 6, [(0, 0), (1, 2), (2, 4), (3, 6)]), (2, 2, [(0, 0), (1, 1), (2, 2)]), (1, 12, [(0, 0), (1, 12)]),
])  # fmt: skip
def test_layers_are_matched_evenly(student: int, teacher: int, pairs: list[tuple[int, int]]) -> None:
    assert matched_layers(student, teacher) == pairs


@pytest.mark.parametrize(("kept", "depth", "layers"), [(3, 6, [0, 2, 5]), (1, 6, [0]), (6, 6, [0, 1, 2, 3, 4, 5])])
def test_kept_layers_are_spread_evenly(kept: int, depth: int, layers: list[int]) -> None:
    assert evenly(kept, depth) == layers


@pytest.mark.parametrize("layers", [[], [0, 0], [1, 0], [2], [-1]])
def test_layers_that_are_not_there_are_refused(subject: Subject, layers: list[int]) -> None:
    with pytest.raises(InputError, match=r"layers must be different ones in \[0, 1\]"):
        keep_layers(subject, layers)


def test_a_student_of_all_layers_is_its_teacher(subject: Subject, data: Data) -> None:
    texts = data.texts("test")
    np.testing.assert_array_equal(keep_layers(subject, [0, 1]).logits(texts), subject.logits(texts))


def test_a_student_learns_what_its_teacher_knows(subject: Subject, data: Data) -> None:
    student = keep_layers(subject, [0])
    distill(subject, student, data.splits["train"], Recipe(epochs=12, batch_size=8, learning_rate=2e-3),
            Terms(alpha=1.0, hidden=0.1))  # fmt: skip
    assert accuracy(student, data) > 0.97 * accuracy(subject, data)


def test_labels_are_not_needed_with_alpha_1(subject: Subject, data: Data) -> None:
    unlabeled = [(text, 0) for text, _ in data.splits["train"]]
    student = keep_layers(subject, [0])
    distill(subject, student, unlabeled, Recipe(epochs=6, batch_size=16, learning_rate=1e-3), Terms(alpha=1.0))
    assert accuracy(student, data) > 0.9


def test_a_narrower_student_learns_through_projections_that_learn_too(
    subject: Subject, data: Data, tiny_tokenizer: Any
) -> None:
    from transformers import BertConfig, BertForSequenceClassification

    torch.manual_seed(0)
    narrow = BertForSequenceClassification(BertConfig(
        vocab_size=len(tiny_tokenizer()), hidden_size=16, num_hidden_layers=1, num_attention_heads=2,
        intermediate_size=32, max_position_embeddings=64,
    ))  # fmt: skip
    student = Subject(narrow, tiny_tokenizer(), data.label_names, "narrow", 64)
    loss = DistillationLoss(subject.model, narrow, Terms(hidden=1.0))
    assert [tuple(projection.weight.shape) for projection in loss.projections] == [(32, 16)] * 2
    distill(subject, student, data.splits["train"], Recipe(epochs=20, batch_size=16, learning_rate=1e-2),
            Terms(hidden=0.01))  # fmt: skip
    assert accuracy(student, data) > 0.85


@pytest.mark.parametrize("terms", [Terms(hidden=0.1), Terms(cosine=1.0)], ids=["all layers", "the last alone"])
def test_projections_begin_the_same_whatever_was_drawn_before(
    subject: Subject, data: Data, tiny_tokenizer: Any, terms: Terms
) -> None:
    from transformers import BertConfig, BertForSequenceClassification

    weights = []
    for drawn_before in (1, 2):
        torch.manual_seed(0)
        narrow = BertForSequenceClassification(BertConfig(
            vocab_size=len(tiny_tokenizer()), hidden_size=16, num_hidden_layers=1, num_attention_heads=2,
            intermediate_size=32, max_position_embeddings=64,
        ))  # fmt: skip
        torch.manual_seed(drawn_before)
        student = Subject(narrow, tiny_tokenizer(), data.label_names, "narrow", 64)
        distill(subject, student, data.splits["train"][:64], Recipe(epochs=1, batch_size=16), terms)
        weights.append(student.model.classifier.weight.detach())
    torch.testing.assert_close(*weights, rtol=0, atol=0)


def test_pairs_that_do_not_fit_are_refused(subject: Subject, data: Data, tiny_model: Any, tiny_tokenizer: Any) -> None:
    other = Subject(tiny_model(("a", "b")), tiny_tokenizer(), ["a", "b"], "other", 64)
    with pytest.raises(InputError, match="have other labels"):
        distill(subject, other, data.splits["train"], Recipe())
    with pytest.raises(InputError, match="more layers than its teacher"):
        DistillationLoss(subject.model, tiny_model(layers=3), Terms(hidden=1))
    with pytest.raises(InputError, match="must have the same labels"):
        DistillationLoss(subject.model, tiny_model(("a", "b", "c")), Terms())


@pytest.mark.parametrize("changes", [{"alpha": 1.5}, {"temperature": 0}, {"hidden": -1}])
def test_terms_outside_their_range_are_refused(changes: dict[str, float]) -> None:
    with pytest.raises(InputError, match="must be in"):
        Terms(**changes)


@pytest.mark.slow
def test_two_processes_distill_together(subject: Subject, data: Data, tmp_path: Path) -> None:
    subject.save(tmp_path / "teacher")
    (tmp_path / "data").mkdir()
    for split, rows in data.splits.items():
        lines = [json.dumps({"text": text, "label": data.label_names[label]}) for text, label in rows]
        (tmp_path / "data" / f"{split}.jsonl").write_text("\n".join(lines))
    command = [
        # --multi_gpu starts both (--cpu would start one); with --device cpu they compute there and talk through gloo
        sys.executable, "-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2", "--num_machines",
        "1", "--mixed_precision", "no", "--dynamo_backend", "no", "--main_process_port", "0", "-m",
        "model_optimization.distillation.teacher_student", "distill", "--teacher", str(tmp_path / "teacher"),
        "--data", str(tmp_path / "data"), "--layers", "1", "--batch_size", "8", "--epochs", "4", "--run", "two",
        "--learning_rate", "1e-3", "--device", "cpu",
    ]  # fmt: skip
    process = subprocess.run(
        command, cwd=tmp_path, capture_output=True, text=True, timeout=300, env={**os.environ, "PYTHONPATH": str(ROOT)}
    )
    assert process.returncode == 0, process.stderr[-2000:]
    folder = tmp_path / "outputs/model_optimization/two"
    steps = [json.loads(line)["step"] for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert max(steps) == 100  # 400 texts, 4 times, 8 in each of two processes
    assert json.loads((folder / "results.json").read_text())["metrics"]["student_accuracy"] > 0.8
