import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from model_optimization.builtin.subject import Data, Subject
from model_optimization.distillation.distilbert_training import (
    IGNORED,
    DistilBertConfig,
    MaskedLanguageLoss,
    mask_words,
)
from shared.errors import InputError


def mask_tokenizer(tiny_tokenizer: Any):  # type: ignore[no-untyped-def]
    tokenizer = tiny_tokenizer()
    tokenizer.add_special_tokens({"mask_token": "[MASK]"})
    return tokenizer


@given(st.integers(0, 1000))
def test_only_words_are_hidden_and_each_hidden_one_must_be_guessed(seed: int) -> None:
    ids = torch.randint(5, 60, (4, 200), generator=torch.Generator().manual_seed(seed))
    ids[:, 0], ids[:, -3:] = 2, 0
    seen, wanted = mask_words(ids, mask_id=99, special_ids={0, 2, 3}, vocabulary=60, seed=seed)
    hidden = wanted != IGNORED
    assert not hidden[:, 0].any() and not hidden[:, -3:].any()
    assert (wanted[hidden] == ids[hidden]).all() and (seen[~hidden] == ids[~hidden]).all()
    assert 0.08 < hidden.float().mean() < 0.22
    share = (seen[hidden] == 99).float().mean()
    assert 0.6 < share < 0.95


def test_the_same_seed_hides_the_same_words() -> None:
    ids = torch.arange(5, 55).repeat(2, 1)
    first, again, other = (
        mask_words(ids, mask_id=99, special_ids={0}, vocabulary=60, seed=seed)[0] for seed in (1, 1, 2)
    )
    assert torch.equal(first, again) and not torch.equal(first, other)


def test_the_masked_loss_has_three_parts_with_their_weights(tiny_model: Any, tiny_tokenizer: Any) -> None:
    from transformers import BertForMaskedLM

    tokenizer = mask_tokenizer(tiny_tokenizer)
    config = tiny_model().config
    config.vocab_size = len(tokenizer)
    torch.manual_seed(0)
    teacher, student = BertForMaskedLM(config).eval(), BertForMaskedLM(config).eval()
    ids = torch.randint(5, 60, (4, 30), generator=torch.Generator().manual_seed(0))
    batch = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    weights = {"soft": 5.0, "task": 2.0, "cosine": 1.0}
    loss, parts = MaskedLanguageLoss(teacher, tokenizer, **weights, temperature=2.0, seed=0)(student, batch)
    assert set(parts) == set(weights) and loss.item() == pytest.approx(sum(parts.values()), rel=1e-5)
    doubled = {name: 2 * value for name, value in weights.items()}
    twice, _ = MaskedLanguageLoss(teacher, tokenizer, **doubled, temperature=2.0, seed=0)(student, batch)
    assert twice.item() == pytest.approx(2 * loss.item(), rel=1e-5)
    _, same = MaskedLanguageLoss(student, tokenizer, **weights, temperature=2.0, seed=0)(student, batch)
    assert same["soft"] == pytest.approx(0, abs=1e-5) and same["cosine"] == pytest.approx(0, abs=1e-5)


def test_a_tokenizer_without_a_mask_is_refused(tiny_model: Any, tiny_tokenizer: Any) -> None:
    with pytest.raises(InputError, match="no mask token"):
        MaskedLanguageLoss(tiny_model(), tiny_tokenizer(), soft=1, task=1, cosine=1, temperature=1, seed=0)


def test_there_is_no_builtin_masked_language_model() -> None:
    with pytest.raises(InputError, match="no builtin masked language model"):
        DistilBertConfig(objective="mlm")


def test_a_loss_of_nothing_is_refused() -> None:
    with pytest.raises(InputError, match="soft and task"):
        DistilBertConfig(soft=0, task=0)


@pytest.mark.slow
def test_the_command_trains_both_objectives(
    subject: Subject, data: Data, tmp_path: Path, tiny_model: Any, tiny_tokenizer: Any
) -> None:
    from transformers import AutoModelForMaskedLM, BertForMaskedLM

    subject.save(tmp_path / "teacher")
    (tmp_path / "data").mkdir()
    for split, rows in data.splits.items():
        lines = [json.dumps({"text": text, "label": data.label_names[label]}) for text, label in rows]
        (tmp_path / "data" / f"{split}.jsonl").write_text("\n".join(lines))
    (tmp_path / "corpus.txt").write_text("\n".join(data.texts("train")))
    tokenizer = mask_tokenizer(tiny_tokenizer)
    config = tiny_model().config
    config.vocab_size = len(tokenizer)
    BertForMaskedLM(config).save_pretrained(tmp_path / "mlm")
    tokenizer.save_pretrained(tmp_path / "mlm")
    module = [sys.executable, "-m", "model_optimization.distillation.distilbert_training", "train", "--layers", "1"]
    runs = {
        "task": ["--teacher", str(tmp_path / "teacher"), "--data", str(tmp_path / "data"), "--learning_rate", "1e-3"],
        "mlm": ["--objective", "mlm", "--teacher", str(tmp_path / "mlm"), "--data", str(tmp_path / "corpus.txt")],
    }
    for name, flags in runs.items():
        process = subprocess.run(
            [*module, *flags, "--epochs", "4", "--batch_size", "16", "--run", name], cwd=tmp_path, capture_output=True,
            text=True, timeout=300,
        )  # fmt: skip
        assert process.returncode == 0, process.stderr[-2000:]
    folder = tmp_path / "outputs/model_optimization"
    assert json.loads((folder / "task/results.json").read_text())["metrics"]["student_accuracy"] > 0.85
    metrics = json.loads((folder / "mlm/results.json").read_text())["metrics"]
    assert 0 < metrics["student_masked_loss"] < 20
    student = AutoModelForMaskedLM.from_pretrained(folder / "mlm/model")
    assert student.config.num_hidden_layers == 1
