import copy
import json
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from model_optimization.builtin.subject import (
    CHECKPOINT,
    Data,
    Recipe,
    Subject,
    TrainConfig,
    accuracy,
    check_labels,
    epoch_batches,
    load_data,
    load_subject,
    task_loss,
    train,
    train_command,
)
from shared.errors import HubError, InputError


def write(folder: Path, split: str, rows: list[dict[str, object]]) -> None:
    folder.mkdir(exist_ok=True)
    (folder / f"{split}.jsonl").write_text("\n".join(map(json.dumps, rows)))


ROWS: list[dict[str, object]] = [{"text": f"text {i}", "label": "good" if i % 2 else "bad"} for i in range(40)]


def test_a_folder_is_read_and_missing_splits_are_carved_from_train(tmp_path: Path) -> None:
    write(tmp_path, "train", ROWS)
    data = load_data(str(tmp_path))
    assert data.label_names == ["bad", "good"]
    assert len(data.splits["train"]) == 36 and len(data.splits["validation"]) == 4
    assert set(data.splits["train"]).isdisjoint(data.splits["validation"])
    assert data.splits["test"] == data.splits["validation"]


def test_tsv_and_other_column_names_are_read(tmp_path: Path) -> None:
    for split in ("train", "validation", "test"):
        (tmp_path / f"{split}.tsv").write_text("sentence\tscore\nfine\t1\nawful\t0\n")
    data = load_data(str(tmp_path), text="sentence", label="score")
    assert (data.label_names, data.splits["test"]) == (["0", "1"], [("fine", 1), ("awful", 0)])


def test_texts_that_are_numbers_are_read_as_texts(tmp_path: Path) -> None:
    write(tmp_path, "train", [{"text": i, "label": i % 2} for i in range(40)])
    assert sorted(load_data(str(tmp_path)).splits["train"])[0] == ("0", 0)


def test_a_model_whose_positions_begin_behind_the_padding_reads_so_much_less(data: Data, tiny_tokenizer: Any) -> None:
    from transformers import RobertaConfig, RobertaForSequenceClassification

    model = RobertaForSequenceClassification(RobertaConfig(
        vocab_size=len(tiny_tokenizer()), hidden_size=8, num_hidden_layers=1, num_attention_heads=1,
        intermediate_size=8, max_position_embeddings=34, pad_token_id=1,
    ))  # fmt: skip
    long = Subject(model.eval(), tiny_tokenizer(), data.label_names, "roberta")
    assert long.max_length == 32
    assert np.isfinite(long.logits(["good " * 50])).all()


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([{"text": "a", "label": "x"}, {"text": "b", "label": "x"}] * 20, "one label only"),
        ([{"sentence": "a", "label": "x"}], "has no column text"),
        ([{"text": None, "label": "x"}], "no labeled text"),
    ],
)
def test_data_that_can_not_be_learned_is_one_clear_error(
    tmp_path: Path, rows: list[dict[str, object]], message: str
) -> None:
    write(tmp_path, "train", rows)
    with pytest.raises(InputError, match=message):
        load_data(str(tmp_path))


def test_a_label_that_train_does_not_have_is_an_error(tmp_path: Path) -> None:
    write(tmp_path, "train", ROWS)
    write(tmp_path, "test", [{"text": "new", "label": "ugly"}])
    with pytest.raises(InputError, match="ugly do not occur in train"):
        load_data(str(tmp_path))


def test_a_damaged_file_is_one_clear_error(tmp_path: Path) -> None:
    (tmp_path / "train.jsonl").write_bytes(b"\xff\xfe\x00{")
    with pytest.raises(InputError, match="can't be read"):
        load_data(str(tmp_path))


def test_a_hub_that_is_out_of_reach_is_named() -> None:
    with pytest.raises(HubError, match="could not be had from the hub"):
        load_subject("nobody/nothing")


def test_it_learns_the_toy_data(subject: Subject, data: Data, tiny_model: Any, tiny_tokenizer: Any) -> None:
    assert accuracy(subject, data) > 0.95
    assert accuracy(Subject(tiny_model(), tiny_tokenizer(), data.label_names, "untrained", 64), data) < 0.8


def test_batching_changes_no_logit(subject: Subject, data: Data) -> None:
    texts = data.texts("test")
    one_by_one = np.concatenate([subject.logits([text]) for text in texts])
    np.testing.assert_allclose(subject.logits(texts, 32), one_by_one, atol=1e-4)


def test_a_saved_subject_is_the_same_when_loaded(subject: Subject, data: Data, tmp_path: Path) -> None:
    subject.save(tmp_path / "model")
    again = load_subject(str(tmp_path))  # a run's folder
    np.testing.assert_array_equal(again.logits(data.texts("test")), subject.logits(data.texts("test")))
    assert again.label_names == subject.label_names


def test_transformers_reads_what_was_saved(subject: Subject, data: Data, tmp_path: Path) -> None:
    from transformers import pipeline

    subject.save(tmp_path)
    answers = pipeline("text-classification", str(tmp_path), device="cpu")(data.texts("test")[:5])
    assert [answer["label"] for answer in answers] == [one.label for one in subject.predict(data.texts("test")[:5])]


def test_an_encoder_without_a_trained_head_is_no_classifier(
    tmp_path: Path, tiny_model: Any, tiny_tokenizer: Any
) -> None:
    from transformers import BertModel

    BertModel(tiny_model().config).save_pretrained(tmp_path)
    tiny_tokenizer().save_pretrained(tmp_path)
    with pytest.raises(InputError, match="no trained classifier"):
        load_subject(str(tmp_path))


def test_other_labels_are_refused(subject: Subject, data: Data) -> None:
    with pytest.raises(InputError, match="tells negative, positive apart"):
        check_labels(subject, Data(data.splits, ["a", "b"], "other"))


def test_every_text_is_in_an_epoch_once_and_lengths_go_together() -> None:
    rng = np.random.default_rng(0)
    lengths = rng.integers(1, 100, 1000).tolist()
    batches = epoch_batches(lengths, 16, seed=1)
    assert sorted(i for batch in batches for i in batch) == list(range(1000))
    padded = sum(len(batch) * max(lengths[i] for i in batch) for batch in batches)
    assert padded < 1.3 * sum(lengths)
    assert batches != epoch_batches(lengths, 16, seed=2)


def test_training_is_the_same_each_time(data: Data, tiny_model: Any, tiny_tokenizer: Any) -> None:
    weights = []
    for _ in range(2):
        model = tiny_model()
        encoder = Subject(model, tiny_tokenizer(), data.label_names, "tiny", 64).encoder
        train(model, encoder, data.splits["train"][:64], Recipe(epochs=1, batch_size=16, seed=3))
        weights.append(model.classifier.weight.detach().numpy())
    np.testing.assert_array_equal(*weights)


def test_a_stopped_training_goes_on_to_the_same_weights(
    data: Data, tmp_path: Path, tiny_model: Any, tiny_tokenizer: Any
) -> None:
    rows, recipe = data.splits["train"][:160], Recipe(epochs=2, batch_size=16)
    whole = tiny_model()
    encoder = Subject(whole, tiny_tokenizer(), data.label_names, "tiny", 64).encoder
    train(whole, encoder, rows, recipe)
    model = tiny_model()

    def interrupt(step: int, total: int) -> None:
        if step == 7:
            signal.raise_signal(signal.SIGINT)

    with pytest.raises(KeyboardInterrupt, match="after 7 of 20 steps"):
        train(model, encoder, rows, recipe, after_step=interrupt, folder=tmp_path)
    assert (tmp_path / CHECKPOINT).exists()
    resumed = tiny_model()
    train(resumed, encoder, rows, recipe, folder=tmp_path)
    for one, other in zip(whole.parameters(), resumed.parameters(), strict=True):
        np.testing.assert_allclose(one.detach().numpy(), other.detach().numpy(), atol=1e-6)


def test_a_checkpoint_of_another_model_is_refused(
    data: Data, tmp_path: Path, tiny_model: Any, tiny_tokenizer: Any
) -> None:
    rows, recipe = data.splits["train"][:32], Recipe(epochs=1, batch_size=16)
    model = tiny_model()
    encoder = Subject(model, tiny_tokenizer(), data.label_names, "tiny", 64).encoder
    with pytest.raises(KeyboardInterrupt):
        train(model, encoder, rows, recipe, folder=tmp_path, after_step=lambda *_: signal.raise_signal(signal.SIGINT))
    with pytest.raises(InputError, match="of another model"):
        train(tiny_model(layers=1), encoder, rows, recipe, folder=tmp_path)


def test_divergence_is_told(data: Data, tiny_model: Any, tiny_tokenizer: Any) -> None:
    model = tiny_model()
    encoder = Subject(model, tiny_tokenizer(), data.label_names, "tiny", 64).encoder

    def broken(model, batch):  # type: ignore[no-untyped-def]
        return task_loss(model, batch)[0] * float("nan"), {}

    with pytest.raises(InputError, match="diverged"):
        train(model, encoder, data.splits["train"], Recipe(), broken)


def test_training_leaves_the_original_of_a_copy_alone(subject: Subject, data: Data) -> None:
    before = subject.logits(data.texts("test")[:8])
    train(copy.deepcopy(subject.model), subject.encoder, data.splits["train"][:32], Recipe(epochs=1))
    np.testing.assert_array_equal(subject.logits(data.texts("test")[:8]), before)


@pytest.mark.slow
def test_the_command_trains_stops_on_ctrl_c_and_resumes(tmp_path: Path, tiny_folder: Path) -> None:
    write(tmp_path / "data", "train", ROWS * 5)  # 180 to learn from
    command = [
        sys.executable, "-m", "model_optimization.builtin.subject", "train", "--data", str(tmp_path / "data"),
        "--model", str(tiny_folder), "--run", "mine", "--max_length", "16", "--batch_size", "4", "--epochs", "20",
    ]  # fmt: skip
    process = subprocess.Popen(command, cwd=tmp_path, stderr=subprocess.PIPE, text=True)
    figures = tmp_path / "outputs/model_optimization/mine/metrics.jsonl"
    for _ in range(600):
        if figures.exists() and figures.read_text().count("\n") > 2:
            break
        time.sleep(0.1)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130 and "--resume true goes on" in errors
    resume = [*command, "--resume", "true"]
    again = subprocess.run(resume, cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert again.returncode == 0, again.stderr
    results = json.loads((figures.parent / "results.json").read_text())
    assert set(results["metrics"]) == {"validation_accuracy", "test_accuracy"}
    steps = [json.loads(line)["step"] for line in figures.read_text().splitlines()]
    assert steps == sorted(set(steps)) and steps[-1] == 20 * 180 / 4


def test_only_a_run_that_was_cut_short_goes_on_and_only_as_it_was(
    tmp_path: Path, tiny_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "data", "train", ROWS)
    config = TrainConfig(data="data", model=str(tiny_folder), run="mine", epochs=0.5, max_length=16, resume=True)
    with pytest.raises(InputError, match="There is no run"):
        train_command(config)
    train_command(replace(config, resume=False))
    for changes, message in (
        ({"epochs": 1.0}, "another epochs"), ({"seed": 1}, "another seed"), ({}, "is finished"),
    ):  # fmt: skip
        with pytest.raises(InputError, match=message):
            train_command(replace(config, **changes))
