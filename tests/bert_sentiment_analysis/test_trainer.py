"""Training: the recipe's parts one by one, a golden run, stopping and going on, several seeds, several models."""

import json
import os
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from bert_sentiment_analysis.data.preprocessor import Encoding
from bert_sentiment_analysis.inference.predictor import SentimentPredictor
from bert_sentiment_analysis.models import trainer
from bert_sentiment_analysis.models.bert_classifier import (
    Card,
    Classifier,
    load_classifier,
    new_classifier,
    save_classifier,
)
from bert_sentiment_analysis.models.trainer import (
    MODULE,
    SentimentLoss,
    TrainConfig,
    compare,
    last_checkpoint,
    parameter_groups,
    train,
)
from shared.config import run_commands
from shared.errors import HubError, InputError
from shared.tracking import read_metrics

ROOT = Path(__file__).parents[2]
RUNS = Path("outputs/bert_sentiment_analysis")
NAMES = ["negative", "positive"]


def cli(*arguments: str) -> int:
    with pytest.raises(SystemExit) as exit_:
        run_commands({"train": train, "compare": compare}, module=MODULE, argv=arguments)
    return exit_.value.code


@pytest.fixture
def recipe(tiny: Path) -> list[str]:
    """Flags of a training that learns two words in seconds."""
    lines = [f"{'lovely' if i % 2 else 'awful'} thing number {i},{NAMES[i % 2]}" for i in range(240)]
    Path("words.csv").write_text("text,label\n" + "\n".join(lines))
    return [f"--data={Path('words.csv').resolve()}", f"--model={tiny}", "--max_length=32", "--lora_rank=0",
            "--learning_rate=5e-3", "--epochs=3", "--batch_size=16", "--device=cpu", "--threads=1"]  # fmt: skip


# --- Parts ------------------------------------------------------------------------------------------------------------


def test_the_plain_loss_is_cross_entropy() -> None:
    logits, labels = torch.randn(6, 3), torch.tensor([0, 1, 2, 2, 1, 0])
    loss = SentimentLoss(TrainConfig(), torch.ones(3))
    assert loss({"logits": logits}, labels).item() == pytest.approx(F.cross_entropy(logits, labels).item())
    smooth = SentimentLoss(TrainConfig(label_smoothing=0.1), torch.ones(3))({"logits": logits}, labels)
    assert smooth.item() == pytest.approx(F.cross_entropy(logits, labels, label_smoothing=0.1).item())


def test_focal_loss_without_gamma_is_cross_entropy_and_with_it_forgives_easy_texts() -> None:
    logits, labels = torch.tensor([[3.0, 0.0], [0.0, 0.5]]), torch.tensor([0, 0])
    plain = SentimentLoss(TrainConfig(), torch.ones(2))({"logits": logits}, labels)
    same = SentimentLoss(TrainConfig(loss="focal", focal_gamma=0), torch.ones(2))({"logits": logits}, labels)
    focal = SentimentLoss(TrainConfig(loss="focal"), torch.ones(2))({"logits": logits}, labels)
    p = logits.softmax(-1)[:, 0]
    assert same.item() == pytest.approx(plain.item())
    assert focal.item() == pytest.approx((-((1 - p) ** 2) * p.log()).mean().item())


def test_rare_labels_weigh_more_and_the_mean_weight_is_one() -> None:
    counts = torch.tensor([90.0, 10.0])
    loss = SentimentLoss(TrainConfig(loss="weighted"), counts)
    assert (loss.weights * counts).sum() == pytest.approx(100)
    assert loss.weights[1] / loss.weights[0] == pytest.approx(9)


@pytest.mark.parametrize("kind", ["cross_entropy", "weighted", "focal"])
def test_the_parts_of_an_accumulated_batch_sum_to_the_whole(kind: str) -> None:
    logits, labels = torch.randn(8, 2), torch.tensor([0, 1] * 4)
    loss = SentimentLoss(TrainConfig(loss=kind), torch.tensor([3.0, 1.0]))
    parts = sum(loss({"logits": logits[i : i + 2]}, labels[i : i + 2], 8) for i in range(0, 8, 2))
    assert parts.item() == pytest.approx(loss({"logits": logits}, labels).item())


def test_layers_learn_slower_the_deeper_they_are_and_only_matrices_decay(tiny: Path) -> None:
    model = new_classifier(str(tiny), NAMES, Encoding(32)).model
    config = TrainConfig(layer_decay=0.5, learning_rate=0.8, weight_decay=0.1)
    groups = parameter_groups(model, config)
    assert sum(len(group["params"]) for group in groups) == len(list(model.parameters()))
    rates = {id(weight): group["lr"] for group in groups for weight in group["params"]}
    named = dict(model.named_parameters())
    for name, rate in (
        ("classifier.weight", 0.8),
        ("bert.pooler.dense.weight", 0.8),
        ("bert.encoder.layer.1.output.dense.weight", 0.4),
        ("bert.encoder.layer.0.output.dense.weight", 0.2),
        ("bert.embeddings.word_embeddings.weight", 0.1),
    ):
        assert rates[id(named[name])] == pytest.approx(rate)
    decays = {id(weight): group["weight_decay"] for group in groups for weight in group["params"]}
    assert all((decays[id(weight)] > 0) == (weight.ndim > 1) for weight in named.values())


# --- Classifiers ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("lora_rank", [0, 4])
def test_a_saved_classifier_answers_the_same(lora_rank: int, tiny: Path) -> None:
    classifier = new_classifier(str(tiny), ["bad", "so-so", "good"], Encoding(48), lora_rank=lora_rank, domain="tests")
    for name, weight in classifier.model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(weight)  # zero at the start, which would hide an adapter that is not loaded
    classifier.card.temperature = 1.5
    before = SentimentPredictor(classifier, "cpu").predict(["fine", "not so fine"])
    save_classifier(classifier, Path("saved"))
    loaded = SentimentPredictor("saved", "cpu")
    assert loaded.card == classifier.card
    assert not list(Path("saved").glob("*.bin"))
    for one, other in zip(before, loaded.predict(["fine", "not so fine"]), strict=True):
        assert other.probabilities == pytest.approx(one.probabilities, abs=1e-5)
    if lora_rank:
        assert not (Path("saved") / "model.safetensors").exists()
        assert str(Path.cwd()) not in (Path("saved") / "adapter_config.json").read_text()


def small(architecture: str) -> Any:
    """Return a tiny untrained checkpoint's config of an architecture that `compare` names."""
    import transformers

    sizes = {"vocab_size": 30522, "hidden_size": 32, "num_attention_heads": 2, "max_position_embeddings": 66}
    layers = {"num_hidden_layers": 2, "intermediate_size": 64}
    return {
        "bert": lambda: transformers.BertConfig(**sizes, **layers),
        "roberta": lambda: transformers.RobertaConfig(**sizes, **layers, pad_token_id=1),
        "distilbert": lambda: transformers.DistilBertConfig(
            vocab_size=30522, dim=32, n_heads=2, n_layers=2, hidden_dim=64, max_position_embeddings=66
        ),
        "albert": lambda: transformers.AlbertConfig(**sizes, **layers, embedding_size=16),
    }[architecture]()


@pytest.mark.parametrize("lora_rank", [0, 4])
@pytest.mark.parametrize("architecture", ["bert", "roberta", "distilbert", "albert"])
def test_every_architecture_to_compare_is_tuned_saved_and_loaded(architecture: str, lora_rank: int, tiny: Path) -> None:
    from transformers import AutoModel, AutoTokenizer

    AutoModel.from_config(small(architecture)).half().save_pretrained("base")  # many of the hub are in half precision
    AutoTokenizer.from_pretrained(tiny).save_pretrained("base")
    classifier = new_classifier("base", NAMES, Encoding(48), lora_rank=lora_rank)
    assert {weight.dtype for weight in classifier.model.parameters()} == {torch.float32}
    learning = [weight for weight in classifier.model.parameters() if weight.requires_grad]
    optimizer = torch.optim.AdamW(parameter_groups(classifier.model, TrainConfig(learning_rate=0.1)))
    assert sum(len(group["params"]) for group in optimizer.param_groups) == len(learning)
    ids = torch.arange(1000, 1024)[None]
    classifier.model(input_ids=ids, attention_mask=torch.ones_like(ids), labels=torch.tensor([1])).loss.backward()
    optimizer.step()
    before = SentimentPredictor(classifier, "cpu").logits(["fine", "not so fine at all"])[0]
    save_classifier(classifier, Path("saved"))
    after = SentimentPredictor("saved", "cpu").logits(["fine", "not so fine at all"])[0]
    torch.testing.assert_close(torch.tensor(after), torch.tensor(before), atol=1e-4, rtol=1e-4)


def test_lora_tunes_a_part_and_leaves_the_rest(tiny: Path) -> None:
    model = new_classifier(str(tiny), NAMES, Encoding(32), lora_rank=2).model
    tuned = {name for name, weight in model.named_parameters() if weight.requires_grad}
    assert all("lora_" in name or "classifier" in name for name in tuned)
    assert any("attention.self.query.lora_A" in name for name in tuned)


@pytest.mark.parametrize("lora_rank", [0, 2])
def test_without_dropout_training_is_deterministic_and_with_it_is_not(lora_rank: int, tiny: Path) -> None:
    batch = {"input_ids": torch.arange(1000, 1024)[None], "attention_mask": torch.ones(1, 24, dtype=torch.long)}
    for dropout, same in ((0.0, True), (0.5, False)):
        model = new_classifier(str(tiny), NAMES, Encoding(32), lora_rank=lora_rank, dropout=dropout).model.train()
        assert torch.equal(model(**batch).logits, model(**batch).logits) == same


@pytest.mark.parametrize("lora_rank", [4, 0])
def test_a_tuned_adapter_is_taken_up_where_it_stood(lora_rank: int, tiny: Path) -> None:
    tuned = new_classifier(str(tiny), NAMES, Encoding(32), lora_rank=4)
    for name, weight in tuned.model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(weight)
    save_classifier(tuned, Path("run/model"))
    further = new_classifier("run", NAMES, Encoding(48), lora_rank=lora_rank, dropout=0.1, domain="more")
    batch = {"input_ids": torch.arange(1000, 1024)[None], "attention_mask": torch.ones(1, 24, dtype=torch.long)}
    with torch.inference_mode():
        before, after = (one.model.eval()(**batch).logits for one in (tuned, further))
    torch.testing.assert_close(before, after)
    assert {module.p for module in further.model.modules() if isinstance(module, torch.nn.Dropout)} == {0.1}
    learns = [name for name, weight in further.model.named_parameters() if weight.requires_grad]
    assert all(("lora_" in name or "classifier" in name) == bool(lora_rank) for name in learns if "classif" not in name)
    assert (further.card.base, further.card.domain) == (str(tiny) if lora_rank else "run", "more")
    with pytest.raises(InputError, match="lora_rank must be 4 to tune run further, or 0. Got 8."):
        new_classifier("run", NAMES, Encoding(48), lora_rank=8)
    with pytest.raises(InputError, match="run tells apart negative, positive, and the data negative, neutral"):
        new_classifier("run", ["negative", "neutral", "positive"], Encoding(48), lora_rank=4)


def test_labels_are_checked_and_foreign_classifiers_are_taken(tiny: Path, caplog: pytest.LogCaptureFixture) -> None:
    foreign = load_classifier(str(tiny))
    assert foreign.card.label_names == ["LABEL_0", "LABEL_1"]
    assert "has no names for its labels" in caplog.text
    with pytest.raises(InputError, match="tells apart LABEL_0, LABEL_1, and the data negative, positive"):
        load_classifier(str(tiny), NAMES)


def test_a_model_in_disorder_is_one_error(tiny: Path) -> None:
    classifier = new_classifier(str(tiny), NAMES, Encoding(32))
    save_classifier(classifier, Path("saved"))
    Card(["positive", "negative"], "x", Encoding()).save(Path("saved"))
    with pytest.raises(InputError, match="its config has the labels"):
        load_classifier("saved")
    Card(NAMES, "x", Encoding()).save(Path("saved"))
    weights = Path("saved/model.safetensors").read_bytes()
    Path("saved/model.safetensors").write_bytes(weights[: len(weights) // 2])
    with pytest.raises(InputError, match="saved can't be loaded as a classifier"):
        load_classifier("saved")
    Path("saved/sentiment.json").write_text("{}")
    with pytest.raises(InputError, match="sentiment.json is damaged"):
        load_classifier("saved")
    (Path("run") / "seed-0").mkdir(parents=True)
    with pytest.raises(
        InputError, match="run can't be loaded as a classifier: there is no model in it.\nhint: run/seed-0"
    ):
        load_classifier("run")
    with pytest.raises(InputError, match=r"max_length must be in \[8, 64\] for this model. Got 65."):
        new_classifier(str(tiny), NAMES, Encoding(65))
    with pytest.raises(InputError, match="can't be loaded as a classifier"):
        new_classifier("saved/..", NAMES, Encoding(32))


@pytest.mark.parametrize(
    ("place", "value", "message"),
    [
        *(("temperature", value, "temperature must be > 0") for value in (0, float("nan"), -1, "x", float("inf"))),
        *(("label_names", value, "label_names must be two or more different texts") for value in (
            ["good", "good"], "good", [0, 1], ["good"])),
        ("max_length", 0, "max_length must be a whole number >= 4. Got 0."),
        ("max_length", -5, "max_length must be a whole number >= 4. Got -5."),
        ("head", 1.5, "head must be a whole number >= 0. Got 1.5."),
        ("long_texts", "foo", "long_texts must be head_tail or windows. Got 'foo'."),
        ("division", {"fold": 1}, "division must be a seed and two fractions"),
        ("base", None, "base must be a text. Got None."),
    ],
)  # fmt: skip
def test_a_card_with_a_value_that_can_not_be_is_damaged(place: str, value: Any, message: str) -> None:
    Card(NAMES, "x", Encoding()).save(Path())
    fields = json.loads(Path("sentiment.json").read_text())
    (fields["encoding"] if place in fields["encoding"] else fields)[place] = value
    Path("sentiment.json").write_text(json.dumps(fields))
    with pytest.raises(InputError, match="sentiment.json is damaged: ") as error:
        Card.load(Path())
    assert message in str(error.value)


def test_an_adapter_without_its_weights_is_named(tiny: Path) -> None:
    save_classifier(new_classifier(str(tiny), NAMES, Encoding(32), lora_rank=2), Path("saved"))
    Path("saved/adapter_model.safetensors").unlink()
    for load in (lambda: load_classifier("saved"), lambda: new_classifier("saved", NAMES, Encoding(32), lora_rank=2)):
        with pytest.raises(InputError, match="saved is not whole: adapter_model.safetensors is missing"):
            load()


def test_the_way_out_of_a_hub_out_of_reach_is_a_model_that_predicts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(HubError) as error:
        load_classifier("org/nowhere")
    assert "builtin:movies" in error.value.hint


def test_the_hub_is_asked_for_the_revision(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import transformers

    asked: list[Any] = []

    def from_pretrained(name: str, **options: Any) -> Any:
        asked.append((name, options.get("revision")))
        raise OSError("no route")

    monkeypatch.setattr(transformers.AutoTokenizer, "from_pretrained", from_pretrained)
    with pytest.raises(HubError, match="could not be had from the hub") as error:
        new_classifier("org/name@v1", NAMES, Encoding(32))
    assert asked == [("org/name", "v1")]
    assert "builtin:minilm" in error.value.hint


# --- Runs -------------------------------------------------------------------------------------------------------------


def test_a_golden_run_learns_and_leaves_what_a_run_promises(
    recipe: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli("train", *recipe, "--run", "golden") == 0
    folder = RUNS / "golden"
    results = json.loads((folder / "results.json").read_text(encoding="utf-8"))
    accuracy = results["metrics"]["accuracy"]
    assert accuracy > 0.95 and results["metrics"]["validation_accuracy"] > 0.95
    assert f"accuracy               {accuracy:.4f}" in capsys.readouterr().out.splitlines()
    rows = read_metrics(folder / "metrics.jsonl")
    assert [row["step"] for row in rows if "validation_loss" in row] == [6, 12, 18, 24, 30, 36, 39]
    assert any("train_loss" in row for row in rows)
    plots = {path.name for path in folder.glob("*.png")}
    assert plots == {
        "confusion_matrix.png",
        "classification_report.png",
        "reliability.png",
        "roc.png",
        "learning_curve.png",
    }
    [good, bad] = SentimentPredictor(str(folder), "cpu").predict(["lovely thing", "awful thing"])
    assert (good.label, bad.label) == ("positive", "negative")


def test_a_seed_gives_the_same_figures_and_several_their_mean(recipe: list[str]) -> None:
    short = [*recipe, "--epochs=0.5"]
    assert cli("train", *short, "--seeds=[1]", "--run", "one") == 0
    assert cli("train", *short, "--seeds=[1, 2]", "--run", "two") == 0
    one, two = (json.loads((RUNS / name / "results.json").read_text())["metrics"] for name in ("one", "two"))
    again = read_metrics(RUNS / "two/seed-1/metrics.jsonl")
    first = read_metrics(RUNS / "one/metrics.jsonl")
    assert [row.get("train_loss") for row in again] == [row.get("train_loss") for row in first]
    assert "accuracy_sd" in two and "accuracy_sd" not in one


def test_training_stops_early(recipe: list[str]) -> None:
    assert cli("train", *recipe, "--learning_rate=1e-30", "--patience=2", "--run", "still") == 0
    rows = read_metrics(RUNS / "still/metrics.jsonl")
    assert sum("validation_loss" in row for row in rows) == 3


@pytest.mark.parametrize("flags", [["--loss=focal"], ["--loss=weighted", "--layer_decay=0.8"], ["--lora_rank=4"],
                                   ["--long_texts=windows", "--max_length=8"], ["--group_by_length=false"],
                                   ["--scheduler=cosine", "--accumulation=2"], ["--dtype=bfloat16"]])  # fmt: skip
def test_every_part_of_the_recipe_runs(flags: list[str], recipe: list[str]) -> None:
    assert cli("train", *recipe, "--epochs=0.5", *flags, "--run", "x") == 0
    assert 0 <= json.loads((RUNS / "x/results.json").read_text())["metrics"]["accuracy"] <= 1


def test_a_model_may_read_more_than_it_learned_from(recipe: list[str]) -> None:
    assert cli("train", *recipe, "--epochs=0.5", "--max_length=8", "--read_length=40", "--run", "far") == 0
    predictor = SentimentPredictor(str(RUNS / "far"), "cpu")
    assert predictor.card.encoding == Encoding(40, "head_tail", 32, 32)
    [prediction] = predictor.predict(["word " * 30])
    assert prediction.note == ""


def figures(run: str) -> dict[str, float]:
    metrics = json.loads((RUNS / run / "results.json").read_text())["metrics"]
    return {name: value for name, value in metrics.items() if name != "texts_per_second"}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("how", "flags"),
    [
        (signal.SIGKILL, []),
        (signal.SIGINT, ["--lora_rank=4", "--dropout=0.2"]),
        (signal.SIGKILL, ["--patience=3", "--accumulation=2", "--long_texts=windows", "--max_length=8"]),
    ],
)
def test_a_run_cut_short_goes_on_to_the_same_figures(how: signal.Signals, flags: list[str], recipe: list[str]) -> None:
    longer = [*recipe, "--epochs=6", "--learning_rate=1e-3", *flags]
    process = subprocess.Popen(
        [sys.executable, "-m", MODULE, "train", *longer, "--run", "cut"],
        env={**os.environ, "PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1"},
        stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    while not last_checkpoint(RUNS / "cut/checkpoints"):
        assert process.poll() is None, process.stderr.read()
        time.sleep(0.01)
    process.send_signal(how)
    _, log = process.communicate()
    assert not (RUNS / "cut/results.json").exists()
    if how == signal.SIGINT:
        assert process.returncode == 130
        assert "stopped: saved after step" in log
        assert cli(*shlex.split(log.splitlines()[-1])[3:]) == 0
    else:
        assert process.returncode == -how
        assert cli("train", *longer, "--run", "cut", "--resume", "true") == 0
    assert cli("train", *longer, "--run", "whole") == 0
    assert figures("cut") == figures("whole")
    steps = [row["step"] for row in read_metrics(RUNS / "cut/metrics.jsonl")]
    assert steps == sorted(steps)


def test_early_stopping_remembers_its_patience(recipe: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    still = [*recipe, "--learning_rate=1e-30", "--patience=3"]
    assert cli("train", *still, "--run", "whole") == 0
    make = trainer.make_callback

    def stop_after_two(bar: Any, stop: Any, *more: Any) -> Any:
        watch = make(bar, stop, *more)
        after = watch.on_evaluate
        measured = []

        def on_evaluate(*arguments: Any, **rest: Any) -> None:
            after(*arguments, **rest)
            measured.append(1)
            stop.requested = len(measured) == 2

        watch.on_evaluate = on_evaluate
        return watch

    monkeypatch.setattr(trainer, "make_callback", stop_after_two)
    assert cli("train", *still, "--run", "cut") == 130
    monkeypatch.setattr(trainer, "make_callback", make)
    assert cli("train", *still, "--run", "cut", "--resume", "true") == 0
    steps = [[row["step"] for row in read_metrics(RUNS / run / "metrics.jsonl") if "validation_loss" in row]
             for run in ("whole", "cut")]  # fmt: skip
    assert steps[0] == steps[1]
    assert len(steps[0]) == 4


def test_a_model_that_is_trained_is_not_trained_again(recipe: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    short = [*recipe, "--epochs=0.5", "--run", "x"]
    report_figures = trainer.report_figures

    def interrupt(*_: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(trainer, "report_figures", interrupt)
    assert cli("train", *short) == 130
    monkeypatch.setattr(trainer, "report_figures", report_figures)
    monkeypatch.setattr(trainer, "learn", interrupt)
    assert cli("train", *short, "--resume", "true") == 0
    assert json.loads((RUNS / "x/results.json").read_text())["metrics"]["texts_per_second"] > 0


@pytest.mark.slow
def test_two_processes_learn_what_one_with_twice_the_accumulation_does(recipe: list[str]) -> None:
    words = [*recipe, "--epochs=5", "--group_by_length=false", "--max_train=192"]  # a whole number of steps
    launcher = "-m accelerate.commands.launch --multi_gpu --num_processes 2 --num_machines 1 --mixed_precision no"
    run = subprocess.run(
        [sys.executable, *launcher.split(), "--dynamo_backend", "no", "--main_process_port", "0", "-m", MODULE,
         "train", *words, "--run", "two"],
        env={**os.environ, "PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1"}, capture_output=True, text=True, timeout=180,
    )  # fmt: skip
    assert run.returncode == 0, run.stderr
    assert cli("train", *words, "--accumulation=2", "--run", "one") == 0
    two, one = (
        [row["train_loss"] for row in read_metrics(RUNS / run / "metrics.jsonl") if "train_loss" in row]
        for run in ("two", "one")
    )
    assert two == pytest.approx(one, abs=1e-3)
    assert two[-1] < two[0] / 10
    assert figures("two")["accuracy"] == figures("one")["accuracy"], (two, one)


def test_the_best_weights_are_saved_and_not_the_last(recipe: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    # A rate this high spoils what the first steps learned.
    assert cli("train", *recipe, "--learning_rate=0.03", "--scheduler=constant_with_warmup", "--run", "x") == 0
    rows = [row["validation_accuracy"] for row in read_metrics(RUNS / "x/metrics.jsonl") if "validation_loss" in row]
    assert figures("x")["validation_accuracy"] == pytest.approx(max(rows))


def test_another_recipe_or_a_finished_run_can_not_go_on(recipe: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert cli("train", *recipe, "--epochs=0.2", "--run", "mine") == 0
    saved = (RUNS / "mine/config.yaml").read_bytes()
    for change, message in ((["--batch_size=8", "--seeds=[3]"], "another batch_size, seeds"), ([], "is finished")):
        assert cli("train", *recipe, "--epochs=0.2", "--run", "mine", "--resume", "true", *change) == 2
        assert message in capsys.readouterr().err
    assert (RUNS / "mine/config.yaml").read_bytes() == saved
    assert cli("train", *recipe, "--run", "typo", "--resume", "true") == 2
    assert "There is no run outputs/bert_sentiment_analysis/typo to go on with" in capsys.readouterr().err


def test_a_checkpoint_cut_short_is_passed_over(recipe: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert cli("train", *recipe, "--epochs=1", "--lora_rank=2", "--evaluations=3", "--run", "mine") == 0
    older, newest = sorted((RUNS / "mine/checkpoints").iterdir(), key=lambda path: int(path.name.split("-")[1]))
    assert last_checkpoint(newest.parent) == newest
    for file in (path for path in newest.iterdir() if path.suffix in (".json", ".pt", ".safetensors")):
        whole = file.read_bytes()
        if file.name not in ("adapter_config.json", "tokenizer.json", "tokenizer_config.json"):  # nothing learned
            file.write_bytes(whole[: len(whole) // 2])
            assert last_checkpoint(newest.parent) == older, file
            assert f"{newest} is left aside, it is not whole" in capsys.readouterr().err
        file.write_bytes(whole)
    (newest / "optimizer.pt").write_bytes(b"")
    for file in ("results.json", "model/sentiment.json"):
        (RUNS / "mine" / file).unlink()
    flags = ["--epochs=1", "--lora_rank=2", "--evaluations=3", "--run", "mine", "--resume", "true"]
    assert cli("train", *recipe, *flags) == 0
    assert last_checkpoint(newest.parent / "nothing") is None


def test_a_run_that_failed_before_it_began_does_not_keep_its_name(recipe: list[str]) -> None:
    words = Path("words.csv").read_text()
    Path("words.csv").write_text("text,label\na,b\n")
    assert cli("train", *recipe, "--epochs=0.2", "--run", "mine") == 2
    assert cli("compare", *recipe, "--epochs=0.2", "--run", "mine") == 2
    assert not (RUNS / "mine").exists()
    Path("words.csv").write_text(words)
    assert cli("train", *recipe, "--epochs=0.2", "--run", "mine") == 0


def test_models_are_compared_and_one_that_can_not_be_had_is_a_row(
    recipe: list[str], tiny: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    models = json.dumps([str(tiny), "org/nowhere"])
    assert cli("compare", *recipe, "--models_to_compare", models, "--run", "c") == 0
    rows = json.loads((RUNS / "c/comparison.json").read_text())
    assert [row["model"] for row in rows] == ["TF-IDF + logistic regression", str(tiny), "org/nowhere"]
    for row in rows[:2]:
        assert row["accuracy"] > 0.9
        assert {"macro_f1", "macro_recall", "parameters", "MB", "minutes", "ms per text"} <= row.keys()
    assert "could not be had from the hub" in rows[2]["why not"]
    assert "TF-IDF" in capsys.readouterr().out


def test_a_comparison_cut_short_goes_on_with_the_next_model(
    recipe: list[str], tiny: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    done: list[str] = []

    def train_until_stopped(config: TrainConfig, seed: int, folder: Path) -> trainer.Trained:
        if len(done) == 1:
            done.append("interrupted")
            raise KeyboardInterrupt("saved after step 3")
        done.append(folder.parent.name)
        return train_once(config, seed, folder)

    train_once = trainer.train_once
    monkeypatch.setattr(trainer, "train_once", train_until_stopped)
    models = json.dumps([str(tiny), str(tiny)])
    assert cli("compare", *recipe, "--epochs=0.2", "--models_to_compare", models, "--run", "c") == 130
    assert cli(*shlex.split(capsys.readouterr().err.splitlines()[-1])[3:]) == 0
    assert done == ["model-0", "interrupted", "model-1"]
    rows = json.loads((RUNS / "c/comparison.json").read_text())
    assert [row["model"] for row in rows] == ["TF-IDF + logistic regression", str(tiny), str(tiny)]


@pytest.mark.parametrize(
    ("arguments", "culprit"),
    [
        (["--batch_size", "0"], "batch_size must be"),
        (["--lora_rank", "-1"], "lora_rank must be"),
        (["--lora_rank", "1025"], "lora_rank must be in [0, 1024]"),
        (["--max_length", "7"], "max_length must be in [8, inf)"),
        (["--max_length", "65"], "max_length must be in [8, 64]"),
        (["--read_length", "4"], "read_length must be"),
        (["--read_length", "65"], "max_length must be in [8, 64]"),
        (["--epochs", "0"], "epochs must be"),
        (["--learning_rate", "-1"], "learning_rate must be"),
        (["--layer_decay", "1.1"], "layer_decay must be"),
        (["--dropout", "1"], "dropout must be"),
        (["--scheduler", "square"], "square"),
        (["--loss", "hinge"], "hinge"),
        (["--seeds", "[]"], "seeds must name"),
        (["--seeds", "[-1]"], "seeds must be"),
        (["--seeds", "0,0"], "seeds must be different ones. Got 0, 0."),
        (["--resume", "true"], "resume needs the name"),
        (["--model", "builtin:bert"], "There is no 'builtin:bert'"),
        (["--data", "builtin:books"], "There is no 'builtin:books'"),
        (["--learning_rate", "1e30"], "Training diverged"),
    ],
)
def test_wrong_input_is_one_line(
    arguments: list[str], culprit: str, recipe: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli("train", *recipe, *arguments) == 2
    errors = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1
    assert culprit in errors[0]


def test_the_yaml_holds_every_key_with_its_default() -> None:
    import yaml

    text = (ROOT / "bert_sentiment_analysis/config.yaml").read_text(encoding="utf-8")
    assert yaml.safe_load(text) == vars(TrainConfig())
    keys = [line for line in text.splitlines() if line and not line.startswith("#")]
    before = dict(zip(text.splitlines()[1:], text.splitlines(), strict=False))
    assert all(before[key].startswith("# ") for key in keys)


def test_a_classifier_is_what_the_predictor_takes(tiny: Path) -> None:
    classifier = new_classifier(str(tiny), NAMES, Encoding(32))
    assert isinstance(classifier, Classifier)
    assert SentimentPredictor(classifier, "cpu").predict(["x"])[0].probabilities.keys() == set(NAMES)
