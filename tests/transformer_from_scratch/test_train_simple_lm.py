"""The character language model: text, drawing, measuring, training, stopping and going on, and its commands."""

import errno
import json
import math
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
from hypothesis import given, settings
from hypothesis import strategies as st
from matplotlib.figure import Figure
from torch import Tensor, nn

from shared.checkpoints import read_checkpoint, save_checkpoint
from shared.config import run_commands
from shared.errors import InputError
from shared.tracking import read_metrics
from transformer_from_scratch import train_simple_lm
from transformer_from_scratch.builtin.python_docs import python_docs
from transformer_from_scratch.train_simple_lm import (
    MODULE,
    CharacterLM,
    EncoderConfig,
    TrainConfig,
    Training,
    Vocabulary,
    attention,
    evaluate,
    generate,
    load_corpus,
    make_optimizers,
    next_probabilities,
    sample,
    schedule,
    text_figures,
    train,
    validation_loss,
)

ROOT = Path(__file__).parents[2]
COMMANDS = {"train": train, "sample": sample, "evaluate": evaluate, "attention": attention}
RUNS = Path("outputs/transformer_from_scratch")
TINY = {"d_model": 16, "num_heads": 2, "num_layers": 2, "d_ff": 32, "context_length": 16}
TEXT = python_docs()[:6000]


@pytest.fixture(autouse=True)
def _in_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("text.txt").write_text(TEXT, encoding="utf-8")
    torch.manual_seed(0)
    torch.set_num_threads(1)


def flags(**values: object) -> list[str]:
    return [f"--{name}={str(value).lower() if isinstance(value, bool) else value}" for name, value in values.items()]


def cli(*arguments: str) -> int:
    """Run a command as the command line does; returns the exit status."""
    with pytest.raises(SystemExit) as exit_:
        run_commands(COMMANDS, module=MODULE, argv=arguments)
    return exit_.value.code


def small_train(**changes: object) -> int:
    recipe = {"data": "text.txt", "steps": 60, "evaluate_every": 20, "warmup_steps": 5, "learning_rate": 0.01}
    return cli("train", *flags(**{**TINY, "device": "cpu", "threads": 1, **recipe, **changes}))


def error_lines(capsys: pytest.CaptureFixture[str]) -> list[str]:
    """Return the `error:` line and what follows it; there must be exactly one, and no traceback."""
    lines = capsys.readouterr().err.splitlines()
    [place] = [number for number, line in enumerate(lines) if line.startswith("error: ")]
    assert not any("Traceback" in line for line in lines)
    assert all(line.startswith("hint: ") for line in lines[place + 1 :])
    return lines[place:]


def random_model(vocab_size: int = 7, **changes: object) -> CharacterLM:
    """Build a model whose predictions are far from uniform."""
    model = CharacterLM(vocab_size, EncoderConfig(**{**TINY, "context_length": 8, **changes}))
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.5)
    return model


# --- The text ---------------------------------------------------------------------------------------------------------


@given(st.text(st.characters(exclude_categories=["Cs"]), min_size=1))
@settings(max_examples=50, deadline=None, derandomize=True)
def test_any_text_comes_back_from_its_numbers(text: str) -> None:
    vocabulary = Vocabulary("".join(sorted(set(text))))
    numbers = vocabulary.encode(text)
    assert vocabulary.decode(numbers.tolist()) == text
    assert len(numbers) == len(text)
    assert set(numbers.tolist()) == set(range(len(vocabulary)))


@pytest.mark.parametrize("unknown", ["z", "é", "词", "𝔸", "\0", "\udcff", "\U0010ffff", "!?"])
def test_unknown_characters_are_named(unknown: str) -> None:
    with pytest.raises(InputError) as error:
        Vocabulary("abc").encode(f"a{unknown}b{unknown}")
    shown = ", ".join(map(repr, sorted(unknown)))
    assert error.value.args[0] == f"The model has never seen {len(unknown)} of these characters: {shown}."
    assert error.value.hint == "it knows 'abc'"


def test_many_unknown_characters_are_cut_short() -> None:
    with pytest.raises(InputError, match=r"never seen 26 .*'j' …\."):
        Vocabulary("0").encode("abcdefghijklmnopqrstuvwxyz")


def text_of(tokens: Tensor, vocabulary: Vocabulary) -> str:
    return vocabulary.decode(tokens.tolist())


@pytest.mark.parametrize("text", ["plain text, " * 20, "这是中文，还有 𝔸。" * 20, "é\ttab\n" * 30])
def test_the_end_of_a_file_is_for_validation(text: str) -> None:
    Path("file.txt").write_text(text, encoding="utf-8")
    corpus = load_corpus("file.txt", 0.25)
    assert text_of(corpus.train, corpus.vocabulary) + text_of(corpus.validation, corpus.vocabulary) == text
    assert len(corpus.validation) == len(text) // 4
    assert corpus.name == "file.txt"


def test_the_builtin_is_half_a_megabyte_of_english() -> None:
    corpus = load_corpus("builtin:python-docs", 0.1)
    assert 300_000 < len(corpus.train) + len(corpus.validation) < 1_500_000
    assert "statement" in text_of(corpus.validation, corpus.vocabulary)


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """Data sets of one row a split that stand in for the hub's: split → text."""
    import datasets

    splits: dict[str, str] = {}

    def load_dataset(name: str, revision: str | None) -> datasets.DatasetDict:
        return datasets.DatasetDict({key: datasets.Dataset.from_dict({"text": [t]}) for key, t in splits.items()})

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    return splits


@pytest.mark.parametrize(
    ("splits", "train_text", "validation_text"),
    [
        ({"train": "a" * 90, "validation": "bcd", "test": "e"}, "a" * 90, "bcd"),
        ({"train": "a" * 90 + "b" * 10, "test": "e"}, "a" * 90, "b" * 10),
        ({"test": "a" * 90, "validation": "bcd"}, "a" * 90, "bcd"),
        ({"first": "a" * 90, "second": "b" * 9}, "a" * 90, "\n" + "b" * 9),
    ],
)
def test_splits_of_a_data_set_stay_apart(
    splits: dict[str, str], train_text: str, validation_text: str, hub: dict[str, str]
) -> None:
    hub.update(splits)
    corpus = load_corpus("org/name@v1", 0.1)
    assert text_of(corpus.train, corpus.vocabulary) == train_text
    assert text_of(corpus.validation, corpus.vocabulary) == validation_text
    assert corpus.name == "org/name@v1"


# --- Drawing ----------------------------------------------------------------------------------------------------------

LOGITS = st.lists(st.floats(-50, 50, width=32) | st.sampled_from([0.0, 1.0, -1e4, 1e4]), min_size=1, max_size=12)


@given(
    logits=LOGITS,
    temperature=st.sampled_from([0.1, 0.8, 1.0, 3.0, 1e-30]),
    top_k=st.integers(0, 13),
    top_p=st.floats(0.01, 1.0),
)
@settings(max_examples=300, deadline=None, derandomize=True)
def test_probabilities_keep_the_best_and_sum_to_one(
    logits: list[float], temperature: float, top_k: int, top_p: float
) -> None:
    logits = torch.tensor(logits).tolist()  # ties are those of float32
    probabilities = next_probabilities(torch.tensor(logits), temperature, top_k, top_p).tolist()

    weights = [math.exp(max((x - max(logits)) / max(temperature, 1e-6), -700)) for x in logits]
    everything = [w / sum(weights) for w in weights]
    order = sorted(range(len(logits)), key=lambda i: (-logits[i], i))
    mass, kept = 0.0, []
    for i in order[: top_k or None]:
        if kept and top_p < 1 and mass >= top_p:
            break
        mass, kept = mass + everything[i], [*kept, i]
    expected = [everything[i] / mass if i in kept else 0.0 for i in range(len(logits))]

    assert sum(probabilities) == pytest.approx(1, abs=1e-5)
    if top_p < 1 and any(abs(sum(everything[i] for i in order[:n]) - top_p) < 1e-5 for n in range(len(order) + 1)):
        return  # p lies on an edge, where rounding decides
    assert probabilities == pytest.approx(expected, abs=1e-5)


def test_top_k_keeps_exactly_k_of_equals_the_first() -> None:
    assert next_probabilities(torch.zeros(6), top_k=2).tolist() == [0.5, 0.5, 0, 0, 0, 0]
    assert next_probabilities(torch.tensor([0.0, 5, 0, 5, 5]), top_k=2).tolist() == [0, 0.5, 0, 0.5, 0]


def test_top_p_keeps_the_fewest_that_reach_it() -> None:
    logits = torch.tensor([0.5, 0.25, 0.125, 0.125]).log()
    for top_p, kept in ((0.1, 1), (0.5, 1), (0.6, 2), (0.75, 2), (0.76, 3), (0.9, 4), (1.0, 4)):
        assert next_probabilities(logits, top_p=top_p).count_nonzero() == kept


def test_a_nucleus_of_nothing_still_holds_the_best() -> None:
    assert next_probabilities(torch.tensor([0.0, 3.0, 1.0]), top_p=1e-300).tolist() == [0, 1, 0]


def test_without_a_filter_nothing_is_lost() -> None:
    assert next_probabilities(torch.tensor([0.0, -20.0, -60.0])).gt(0).all()


@given(logits=LOGITS)
@settings(max_examples=30, deadline=None, derandomize=True)
def test_temperature_zero_is_greedy(logits: list[float]) -> None:
    probabilities = next_probabilities(torch.tensor(logits), temperature=0, top_k=3, top_p=0.5)
    assert probabilities.tolist() == [float(i == logits.index(max(logits))) for i in range(len(logits))]


@pytest.mark.parametrize("temperature", [0.0, 0.9])
@pytest.mark.parametrize("position", ["rotary", "learned", "sinusoidal"])
@pytest.mark.parametrize("prompt_length", [1, 7, 8, 9, 30])
def test_a_cache_writes_the_same_text_far_beyond_the_context(
    prompt_length: int, position: str, temperature: float
) -> None:
    model = random_model(position=position)
    prompt = torch.randint(7, (prompt_length,))
    texts = [list(generate(model, prompt, 40, temperature=temperature, use_cache=cached)) for cached in (True, False)]
    assert texts[0] == texts[1]
    assert len(texts[0]) == 40
    assert len(set(texts[0])) > 1


def test_greedy_text_is_the_likeliest_character_each_time() -> None:
    model, prompt = random_model(), torch.tensor([1, 2, 3])
    seen = prompt.tolist()
    for token in generate(model, prompt, 5, temperature=0):
        assert token == model(torch.tensor([seen]))[0, -1].argmax()
        seen.append(token)


def test_drawn_characters_follow_their_probabilities() -> None:
    model, prompt = random_model(), torch.tensor([1, 2])
    draws = torch.tensor([next(generate(model, prompt, 1, seed=seed)) for seed in range(400)])
    shares = draws.bincount(minlength=7) / 400
    expected = model(prompt[None])[0, -1].softmax(-1)
    assert (shares - expected).abs().max() < 4 * math.sqrt(0.25 / 400)


def test_a_seed_draws_the_same_text_again_and_another_another() -> None:
    model, prompt = random_model(), torch.tensor([1])
    texts = [list(generate(model, prompt, 30, seed=seed)) for seed in (3, 3, 4)]
    assert texts[0] == texts[1] != texts[2]


def test_characters_come_one_by_one_and_leave_the_global_random_state_alone() -> None:
    state = torch.get_rng_state()
    stream = generate(random_model(), torch.tensor([1]), 10**9)
    torch.set_rng_state(state)
    next(stream), next(stream)
    assert torch.get_rng_state().equal(state)


# --- Measuring --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("length", [2, 8, 9, 10, 17, 27])
def test_validation_loss_predicts_every_character_once(length: int) -> None:
    model = random_model(dropout=0.5).train()
    tokens = torch.randint(7, (length,), dtype=torch.int32)
    state, weights = torch.get_rng_state(), [p.clone() for p in model.parameters()]
    losses = [validation_loss(model, tokens, batch_size) for batch_size in (64, 1, 2)]
    assert torch.get_rng_state().equal(state)
    assert model.training
    assert all(p.equal(w) for p, w in zip(model.parameters(), weights, strict=True))

    model.eval()
    expected = 0.0
    for place in range(1, length):
        start = (place - 1) // 8 * 8
        expected -= model(tokens[None, start:place])[0, -1].log_softmax(-1)[tokens[place]].item()
    assert losses == pytest.approx([expected / (length - 1)] * 3, rel=1e-5)
    assert validation_loss(model, tokens) == losses[0]
    assert not model.training


def test_an_untrained_model_knows_nothing() -> None:
    model = CharacterLM(7, EncoderConfig(**TINY))
    assert validation_loss(model, torch.randint(7, (50,))) == pytest.approx(math.log(7))


def test_a_loss_is_shown_in_three_units() -> None:
    assert text_figures(math.log(8)) == pytest.approx(
        {"validation_loss": math.log(8), "bits_per_character": 3, "perplexity": 8}
    )
    assert math.isfinite(text_figures(1e6)["perplexity"])


# --- Training ---------------------------------------------------------------------------------------------------------


def tiny_config(**changes: object) -> TrainConfig:
    return TrainConfig(**{**TINY, "data": "text.txt", "device": "cpu", **changes})


def make_training(**changes: object) -> Training:
    from accelerate import Accelerator

    config = tiny_config(**changes)
    return Training(config, load_corpus("text.txt", 0.1, config.context_length), Accelerator(cpu=True))


def test_the_learning_rate_warms_up_and_falls_as_half_a_cosine() -> None:
    config = tiny_config(steps=110, warmup_steps=10, final_rate=0.2)
    rates = [schedule(step, config) for step in range(111)]
    assert rates[:10] == pytest.approx([0.1 * (i + 1) for i in range(10)])
    assert rates[10] == 1
    assert rates[60] == pytest.approx(0.6)
    assert rates[110] == pytest.approx(0.2)
    assert all(a > b for a, b in zip(rates[10:], rates[11:], strict=False))
    assert schedule(0, tiny_config(steps=1, warmup_steps=0)) == 1
    assert schedule(3, tiny_config(steps=5, warmup_steps=100)) == pytest.approx(0.04)


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_only_matrices_decay_and_each_weight_has_one_optimizer(optimizer: str) -> None:
    config = tiny_config(optimizer=optimizer, norm="layer", bias=True, position="learned")
    model = CharacterLM(9, config)
    groups = [group for made in make_optimizers(model, config) for group in made.param_groups]
    decays = {id(p): group["weight_decay"] for group in groups for p in group["params"]}
    assert len(decays) == sum(len(group["params"]) for group in groups) == len(list(model.parameters()))
    for parameter in model.parameters():
        assert (decays[id(parameter)] > 0) == (parameter.ndim == 2)


def test_accumulating_two_batches_is_learning_from_one_of_both(monkeypatch: pytest.MonkeyPatch) -> None:
    windows = torch.randint(5, (8, TINY["context_length"] + 1))

    def weights_after_a_step(batch_size: int, accumulation: int) -> Tensor:
        def draw(_: Tensor, index: int, config: TrainConfig) -> tuple[Tensor, Tensor]:
            batch = windows[index * batch_size : (index + 1) * batch_size]
            return batch[:, :-1], batch[:, 1:]

        monkeypatch.setattr(train_simple_lm, "draw_batch", draw)
        training = make_training(batch_size=batch_size, accumulation=accumulation, warmup_steps=0, gradient_clip=0.5)
        torch.manual_seed(1)
        for parameter in training.model.double().parameters():
            nn.init.normal_(parameter, std=0.3)
        # Plain descent with rate 1: the weights move by the gradient itself.
        training.optimizers = [torch.optim.SGD([{"params": training.model.parameters(), "peak_lr": 1.0}], lr=1.0)]
        training.learn(training.model)
        return nn.utils.parameters_to_vector(training.model.parameters())

    at_once, in_parts = weights_after_a_step(8, 1), weights_after_a_step(4, 2)
    torch.testing.assert_close(at_once, in_parts, rtol=0, atol=1e-12)


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_sixty_steps_learn_and_leave_what_a_run_promises(optimizer: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert small_train(run="golden", optimizer=optimizer) == 0
    folder = RUNS / "golden"
    output = capsys.readouterr().out
    assert {path.name for path in folder.iterdir()} == {
        "config.yaml",
        "metrics.jsonl",
        "results.json",
        "loss.png",
        "best.safetensors",
        "last.safetensors",
    }
    rows = read_metrics(folder / "metrics.jsonl")
    results = json.loads((folder / "results.json").read_text(encoding="utf-8"))
    assert [row["step"] for row in rows] == [20, 40, 60]
    assert results.keys() == {
        "project",
        "command",
        "model",
        "data",
        "seed",
        "seconds",
        "hardware",
        "git_commit",
        "metrics",
    }
    assert results["metrics"]["validation_loss"] == min(row["validation_loss"] for row in rows)
    assert results["metrics"]["validation_loss"] < math.log(len(set(TEXT))) - 0.8
    assert (folder / "loss.png").read_bytes().startswith(b"\x89PNG")
    prompt = TEXT[round(len(TEXT) * 0.9) :][: TINY["context_length"] // 2]
    assert not output.startswith(prompt)
    assert len(output) == 300 + 1


def test_the_training_loss_is_logged_between_two_measurements() -> None:
    assert small_train(run="often", steps=25, evaluate_every=10, log_every=5) == 0
    assert small_train(run="seldom", steps=25, evaluate_every=10, log_every=1000) == 0
    often, seldom = (read_metrics(RUNS / name / "metrics.jsonl") for name in ("often", "seldom"))
    assert [row["step"] for row in often] == [5, 10, 15, 20, 25]
    assert [row["step"] for row in seldom] == [row["step"] for row in often if "validation_loss" in row] == [10, 20, 25]
    assert seldom[0]["train_loss"] == pytest.approx((often[0]["train_loss"] + often[1]["train_loss"]) / 2)


def test_the_same_seed_gives_the_same_weights_and_another_others() -> None:
    for name, seed in (("one", 5), ("two", 5), ("three", 6)):
        assert small_train(run=name, seed=seed, steps=5, dropout=0.2, inner_dropout=0.2) == 0
    assert_same_run(Path.cwd(), "one", "two")
    one, three = (read_checkpoint(RUNS / name / "last.safetensors")[0] for name in ("one", "three"))
    assert not one["model.head.weight"].equal(three["model.head.weight"])


def test_training_stops_early_and_stays_stopped(capsys: pytest.CaptureFixture[str]) -> None:
    still = {"learning_rate": 1e-30, "patience": 2, "steps": 100, "evaluate_every": 3, "run": "still"}
    assert small_train(**still) == 0
    results = json.loads((RUNS / "still/results.json").read_text())
    assert (results["metrics"]["steps"], results["metrics"]["best_step"]) == (9, 3)
    (RUNS / "still/results.json").unlink()
    assert small_train(**still, resume=True) == 0
    assert json.loads((RUNS / "still/results.json").read_text())["metrics"] == results["metrics"]


def test_diverged_training_is_said_in_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert small_train(learning_rate=1e30, steps=20) == 2
    assert error_lines(capsys) == [
        "error: Training diverged: the loss after step 20 is nan.",
        "hint: a smaller --learning_rate",
    ]


def test_bfloat16_learns_too() -> None:
    training = [make_training(), make_training()]
    with torch.autocast("cpu", torch.bfloat16):
        training[0].learn(training[0].model)
    training[1].learn(training[1].model)
    losses = [t.recent_losses[0].item() for t in training]
    assert losses[0] == pytest.approx(losses[1], abs=0.02)


@pytest.mark.parametrize("name", ["two words.txt", "price $^$.txt", "语料.txt", "[red].txt"])
def test_any_file_name_goes(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    Path(name).write_text(TEXT, encoding="utf-8")
    assert small_train(data=name, steps=1, run="my run") == 0
    assert json.loads((RUNS / "my run/results.json").read_text(encoding="utf-8"))["data"] == name


# --- Stopping and going on --------------------------------------------------------------------------------------------

LONG = {
    **TINY,
    "data": "text.txt",
    "steps": 500,
    "evaluate_every": 30,
    "dropout": 0.1,
    "inner_dropout": 0.1,
    "device": "cpu",
    "threads": 1,
    "patience": 50,
}


def assert_same_run(folder: Path, one: str, two: str) -> None:
    """Assert that two runs ended in the same weights, bit for bit, after the same losses."""
    for name in ("best.safetensors", "last.safetensors"):
        (ours, _), (theirs, _) = (read_checkpoint(folder / RUNS / run / name) for run in (one, two))
        assert ours.keys() == theirs.keys()
        assert all(ours[key].equal(theirs[key]) for key in ours)
    curves = [
        [(row["step"], row["train_loss"], row.get("validation_loss")) for row in read_metrics(path)]
        for path in (folder / RUNS / run / "metrics.jsonl" for run in (one, two))
    ]
    assert curves[0] == curves[1]


def start_training(*arguments: str) -> subprocess.Popen[str]:
    """Train in a process of its own, and return once its first checkpoint is there."""
    process = subprocess.Popen(
        [sys.executable, "-m", MODULE, "train", "--run", "cut", *arguments],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    while not (RUNS / "cut/last.safetensors").exists():
        assert process.poll() is None, process.stderr.read()
        time.sleep(0.01)
    return process


@pytest.mark.slow
@pytest.mark.parametrize(("optimizer", "moment"), [("adamw", 0.0), ("muon", 0.3)])
def test_a_run_killed_at_any_moment_goes_on_to_the_same_bits(optimizer: str, moment: float) -> None:
    recipe = flags(**LONG, optimizer=optimizer)
    with start_training(*recipe) as process:
        time.sleep(moment)
        process.send_signal(signal.SIGKILL)
        process.communicate()
    assert process.returncode == -signal.SIGKILL
    assert not (RUNS / "cut/results.json").exists()
    assert cli("train", *recipe, "--run", "cut", "--resume", "true") == 0
    assert cli("train", *recipe, "--run", "whole") == 0
    assert_same_run(Path.cwd(), "cut", "whole")


@pytest.mark.slow
def test_ctrl_c_saves_and_names_the_command_that_goes_on_to_the_same_bits() -> None:
    recipe = flags(**LONG)
    with start_training(*recipe) as process:
        process.send_signal(signal.SIGINT)
        _, log = process.communicate()
    assert process.returncode == 130
    saved, command = log.splitlines()[-2:]
    step = int(saved.removeprefix("stopped: saved after step ").removesuffix("; go on with"))
    assert read_checkpoint(RUNS / "cut/last.safetensors")[1]["step"] == step < 500
    assert command.startswith(f"python -m {MODULE} train ")
    assert cli(*shlex.split(command)[3:]) == 0
    assert cli("train", *recipe, "--run", "whole") == 0
    assert_same_run(Path.cwd(), "cut", "whole")


def test_a_full_disk_keeps_the_last_checkpoint_and_the_run_goes_on(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def full_after_the_first_checkpoint(_: int) -> None:
        if (RUNS / "full/last.safetensors").exists():
            raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full_after_the_first_checkpoint)
        assert small_train(run="full") == 1
    assert error_lines(capsys) == ["error: No space left on device"]
    assert read_checkpoint(RUNS / "full/last.safetensors")[1]["step"] == 20
    assert not [path for path in (RUNS / "full").iterdir() if path.name.startswith(".")]
    assert small_train(run="full", resume=True) == 0
    assert small_train(run="whole") == 0
    assert_same_run(Path.cwd(), "full", "whole")


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"steps": 61}, "steps"),
        ({"seed": 1, "dropout": 0.5}, "dropout, seed"),
        ({"data": "other.txt"}, "data, text, vocabulary"),
        ({"d_model": 32}, "d_model"),
        ({"optimizer": "muon"}, "optimizer"),
    ],
)
def test_another_recipe_can_not_go_on_and_changes_nothing(
    changes: dict[str, object], named: str, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("other.txt").write_text("other " * 100)
    assert small_train(run="mine", steps=20) == 0
    before = {path.name: path.read_bytes() for path in (RUNS / "mine").iterdir()}
    assert small_train(**{"run": "mine", "steps": 20, "resume": True, **changes}) == 2
    error, hint = error_lines(capsys)
    assert f"was trained with another {named}, so going on would not be the same run." in error
    assert {path.name: path.read_bytes() for path in (RUNS / "mine").iterdir()} == before
    assert cli("train", *shlex.split(hint.removeprefix("hint: ").partition(";")[0])) == 0


def forget_moments(tensors: dict[str, Tensor], state: dict[str, Any]) -> None:
    for name in [name for name in tensors if name.startswith("optimizer")]:
        del tensors[name]


def forget_one_moment(tensors: dict[str, Tensor], state: dict[str, Any]) -> None:
    del tensors["optimizer0.0.exp_avg"]


def add_a_moment(tensors: dict[str, Tensor], state: dict[str, Any]) -> None:
    tensors["optimizer0.999.exp_avg"] = torch.zeros(1)


DAMAGES = [
    forget_moments,
    forget_one_moment,
    add_a_moment,
    lambda tensors, state: state.clear(),
    lambda tensors, state: state.update(step=-5),
    lambda tensors, state: state.update(step=500),
    lambda tensors, state: state.update(step="3"),
    lambda tensors, state: state.update(recipe=[]),
    lambda tensors, state: state.update(best_loss=None),
    lambda tensors, state: state.update(seconds="x"),
    lambda tensors, state: state.update(recent_losses=["x"]),
]


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_checkpoint_that_lost_something_can_not_go_on(damage: Any, capsys: pytest.CaptureFixture[str]) -> None:
    assert small_train(run="mine", steps=1) == 0
    last = RUNS / "mine/last.safetensors"
    tensors, state = read_checkpoint(last)
    damage(tensors, state)
    save_checkpoint(last, tensors, state)
    capsys.readouterr()
    assert small_train(run="mine", steps=1, resume=True) == 2
    assert "last.safetensors is damaged" in error_lines(capsys)[0]


def test_a_run_without_its_last_checkpoint_is_not_begun_anew(capsys: pytest.CaptureFixture[str]) -> None:
    assert small_train(run="mine", steps=1) == 0
    (RUNS / "mine/last.safetensors").unlink()
    best = (RUNS / "mine/best.safetensors").read_bytes()
    assert small_train(run="mine", steps=1, resume=True) == 2
    assert "has best.safetensors and results.json, but no last.safetensors" in error_lines(capsys)[0]
    assert (RUNS / "mine/best.safetensors").read_bytes() == best


def test_a_damaged_checkpoint_can_not_go_on(capsys: pytest.CaptureFixture[str]) -> None:
    assert small_train(run="mine", steps=1) == 0
    last = RUNS / "mine/last.safetensors"
    last.write_bytes(last.read_bytes()[:-1])
    assert small_train(run="mine", steps=1, resume=True) == 2
    assert "last.safetensors is damaged" in error_lines(capsys)[0]


@pytest.mark.slow
def test_two_processes_learn_what_one_with_twice_the_accumulation_does() -> None:
    recipe = flags(**{**LONG, "steps": 60})
    # --multi_gpu starts both (--cpu would start one); with --device cpu they compute there and talk through gloo.
    launcher = "-m accelerate.commands.launch --multi_gpu --num_processes 2 --num_machines 1 --mixed_precision no"
    launch = [sys.executable, *launcher.split(), "--dynamo_backend", "no", "--main_process_port", "0", "-m", MODULE]
    run = subprocess.run(
        [*launch, "train", *recipe, "--run", "two"],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert run.returncode == 0, run.stderr
    for name, accumulation in (("one", 2), ("half", 1)):
        assert cli("train", *recipe, "--run", name, "--accumulation", str(accumulation)) == 0
    two, one, half = (
        [
            loss
            for row in read_metrics(RUNS / name / "metrics.jsonl")
            for loss in (row["train_loss"], row.get("validation_loss", 0.0))
        ]
        for name in ("two", "one", "half")
    )
    assert two == pytest.approx(one, abs=1e-4)
    assert two != pytest.approx(half, abs=1e-3)
    assert (RUNS / "two/results.json").exists()


# --- The commands -----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that learned a little."""
    folder = tmp_path_factory.mktemp("trained")
    (folder / "text.txt").write_text(TEXT, encoding="utf-8")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        assert small_train(run="run", data=folder / "text.txt") == 0
    return folder / RUNS / "run"


def test_sample_writes_the_prompt_and_its_continuation(trained: Path, capsys: pytest.CaptureFixture[str]) -> None:
    capsys.readouterr()
    texts = []
    for cache in ("true", "false"):
        assert cli("sample", "--model", str(trained), "--prompt", "The ", "--length", "50", "--cache", cache) == 0
        texts.append(capsys.readouterr().out)
    assert texts[0] == texts[1]
    assert texts[0].startswith("The ")
    assert len(texts[0]) == 55
    assert [path.read_text(encoding="utf-8") for path in RUNS.glob("*/sample.txt")] == texts


def test_what_was_drawn_before_the_reader_left_is_kept(trained: Path) -> None:
    process = subprocess.Popen(
        [sys.executable, "-m", MODULE, "sample", "--model", str(trained), "--length", "30000", "--run", "cut"],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    head = process.stdout.read(5)
    process.stdout.close()
    assert process.wait(60) == 1
    assert "error" not in process.stderr.read()
    process.stderr.close()
    assert (RUNS / "cut/sample.txt").read_text().startswith(head)


def test_a_terminal_without_the_letters_shows_their_codes(trained: Path) -> None:
    run = subprocess.run(
        [sys.executable, "-m", MODULE, "sample", "--model", str(trained), "--prompt", "词"],
        env={**os.environ, "PYTHONPATH": str(ROOT), "PYTHONIOENCODING": "ascii"},
        capture_output=True,
        text=True,
    )
    assert run.returncode == 2
    assert r"'\u8bcd'" in run.stderr


@pytest.mark.skipif(sys.platform != "linux", reason="names of files are UTF-8 here")
def test_a_file_name_that_is_not_utf_8_goes_too() -> None:
    name = os.fsdecode(b"c\xff.txt")
    Path(name).write_text(TEXT, encoding="utf-8")
    assert small_train(data=name, steps=1, run="odd") == 0
    assert (RUNS / "odd/results.json").exists()


def test_the_newest_run_here_is_the_default_model(trained: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert small_train(run="older", steps=1) == 0
    assert small_train(run="newer", steps=2) == 0
    capsys.readouterr()
    assert cli("sample", "--length", "3", "--run", "sampled") == 0
    assert len(capsys.readouterr().out) == 4
    assert json.loads((RUNS / "sampled/results.json").read_text())["model"] == str(RUNS / "newer/best.safetensors")


def test_evaluate_repeats_the_loss_of_the_run(trained: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli("evaluate", "--model", str(trained / "best.safetensors"), "--run", "again") == 0
    metrics = json.loads((RUNS / "again/results.json").read_text())["metrics"]
    promised = json.loads((trained / "results.json").read_text())["metrics"]
    assert metrics["validation_loss"] == promised["validation_loss"]
    assert f"validation_loss {metrics['validation_loss']:.4f}" in capsys.readouterr().out.splitlines()


def test_evaluate_can_take_the_whole_of_another_text(trained: Path) -> None:
    Path("other.txt").write_text(TEXT[1000:1500], encoding="utf-8")
    model = ["evaluate", "--model", str(trained), "--data", "other.txt"]
    assert cli(*model, "--whole", "true", "--run", "whole") == 0
    assert cli(*model, "--run", "part") == 0
    lengths = [
        json.loads((RUNS / run / "results.json").read_text())["metrics"]["characters"] for run in ("whole", "part")
    ]
    assert lengths == [500, 50]


def test_attention_draws_every_head_of_every_layer(trained: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    titles: list[str] = []
    save = Figure.savefig

    def savefig(figure: Figure, *arguments: Any, **options: Any) -> None:
        titles.extend(axes.get_title() for axes in figure.axes if axes.get_title())
        save(figure, *arguments, **options)

    monkeypatch.setattr(Figure, "savefig", savefig)
    assert cli("attention", "--model", str(trained), "--prompt", 'the "x"\n', "--run", "maps") == 0
    assert titles == [f"layer {i}, head {j}" for i in (1, 2) for j in (1, 2)]
    assert (RUNS / "maps/attention.png").read_bytes().startswith(b"\x89PNG")


def test_chinese_and_accents_go_all_the_way(capsys: pytest.CaptureFixture[str]) -> None:
    Path("text.txt").write_text("春眠不觉晓，处处闻啼鸟。Élève café 𝔸\n" * 30, encoding="utf-8")
    assert small_train(run="诗", steps=3) == 0
    capsys.readouterr()
    assert cli("sample", "--model", str(RUNS / "诗"), "--prompt", "春眠", "--length", "5") == 0
    assert capsys.readouterr().out.startswith("春眠")
    assert cli("attention", "--model", str(RUNS / "诗"), "--prompt", "处处闻é") == 0
    assert cli("attention", "--model", str(RUNS / "诗")) == 0  # by default it looks at a text of its own


def test_a_run_repeats_from_its_own_configuration() -> None:
    assert small_train(run="first", steps=3, seed=4) == 0
    assert cli("train", "--config", str(RUNS / "first/config.yaml"), "--run", "second") == 0
    assert_same_run(Path.cwd(), "first", "second")


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_prints_its_configuration(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli(command, "--threads", "3", "--print_config") == 0
    assert "threads: 3" in capsys.readouterr().out.splitlines()


@pytest.mark.parametrize("preset", TrainConfig.PRESETS)
def test_print_config_shows_the_values_of_a_preset(preset: str, capsys: pytest.CaptureFixture[str]) -> None:
    import yaml

    assert cli("train", "--preset", preset, "--seed", "9", "--print_config") == 0
    shown = yaml.safe_load(capsys.readouterr().out)
    assert shown == {**vars(TrainConfig(seed=9)), "preset": preset, **TrainConfig.PRESETS[preset]}


@pytest.mark.parametrize(
    ("arguments", "culprit"),
    [
        (["--d_model", "-16"], "d_model must be in [1, 1000000]. Got -16."),
        (["--num_layers", "0"], "num_layers must be in [1, 1000000]"),
        (["--num_heads", "3"], "num_heads must divide d_model=16. Got 3."),
        (["--num_heads", "16"], "position=rotary turns pairs"),
        (["--context_length", "-1"], "context_length must be"),
        (["--previous_tokens", "-1"], "previous_tokens must be"),
        (["--dropout", "1"], "dropout must be in [0, 1)"),
        (["--inner_dropout", "-0.1"], "inner_dropout must be in [0, 1)"),
        (["--steps", "0"], "steps must be in [1, 1e+09]"),
        (["--batch_size", "-3"], "batch_size must be"),
        (["--accumulation", "0"], "accumulation must be"),
        (["--evaluate_every", "0"], "evaluate_every must be"),
        (["--learning_rate", "0"], "learning_rate must be in (0, inf)"),
        (["--learning_rate", "fast"], "learning_rate"),
        (["--validation_fraction", "1"], "validation_fraction must be in (0, 0.99]"),
        (["--beta1", "1"], "beta1 must be"),
        (["--seed", "-1"], "seed must be"),
        (["--threads", "-1"], "threads must be"),
        (["--threads", "2147483648"], "threads must be"),
        (["--d_ff", "9223372036854775807"], "d_ff must be"),
        (["--previous_tokens", "10000000000000"], "previous_tokens must be"),
        (["--config", "null.yaml"], "preset"),
        (["--config", "endless.yaml"], ""),
        (["--run", "a\0b"], "plain folder name"),
        (["--position", "absolute"], "absolute"),
        (["--optimizer", "sgd"], "sgd"),
        (["--device", "gpu"], "device must be auto, cpu, cuda or mps"),
        (["--dtype", "float16"], "float16"),
        (["--preset", "huge"], "huge"),
        (["--prompt", "x"], "--prompt"),
        (["--resume", "true"], "resume needs the name of the run"),
        (["--run", "../escape"], "plain folder name"),
        (["--data", "builtin:shakespeare"], "There is no 'builtin:shakespeare'"),
        (["--data", "empty.txt"], "empty.txt is too short: 0 characters"),
        (
            ["--data", "short.txt"],
            "short.txt is too short: 18 characters to train on and 2 to validate on; at least 33",
        ),
        (["--data", "latin.txt"], "latin.txt is not UTF-8"),
    ],
)
def test_wrong_input_to_train_is_one_line(
    arguments: list[str], culprit: str, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("empty.txt").write_text("")
    Path("short.txt").write_text("twenty characters ok")
    Path("latin.txt").write_bytes("é".encode("latin-1") * 100)
    Path("null.yaml").write_text("preset: null\n")
    Path("endless.yaml").write_text("run: &a [*a]\n")
    assert cli("train", *flags(**{**TINY, "context_length": 32, "data": "text.txt", "steps": 1}), *arguments) == 2
    assert culprit in error_lines(capsys)[0]
    assert not list(RUNS.glob("*/*"))


@pytest.mark.parametrize("data", ["missing.txt", "nowhere/at/all", "", "."])
def test_text_that_is_not_there_is_a_failure_of_files(data: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert small_train(data=data) == 1
    assert len(error_lines(capsys)) == 1


def test_an_output_folder_that_can_not_be_is_a_failure_of_files(capsys: pytest.CaptureFixture[str]) -> None:
    Path("outputs").write_text("a file")
    assert small_train(steps=1) == 1
    assert "outputs" in error_lines(capsys)[0]


def test_a_hub_out_of_reach_fails_with_three_ways_out(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    import datasets

    def unreachable(*_: object, **__: object) -> None:
        raise ConnectionError("no route")

    monkeypatch.setattr(datasets, "load_dataset", unreachable)
    assert small_train(data="org/name") == 1
    error, hint = error_lines(capsys)
    assert error == "error: org/name is no file here, and could not be had from the hub: ConnectionError: no route"
    assert all(way_out in hint for way_out in ("builtin:python-docs", "local path", "HF_ENDPOINT"))


@pytest.mark.parametrize(
    ("arguments", "culprit"),
    [
        (["sample", "--prompt", "a词é"], "never seen 2 of these characters: 'é', '词'"),
        (["sample", "--prompt", "\udcff"], r"never seen 1 of these characters: '\udcff'"),
        (["sample", "--length", "-1"], "length must be in [0, inf). Got -1."),
        (["sample", "--temperature", "-1"], "temperature must be"),
        (["sample", "--temperature", "nan"], "temperature"),
        (["sample", "--top_p", "0"], "top_p must be in (0, 1]"),
        (["sample", "--top_p", "1.5"], "top_p must be in (0, 1]"),
        (["sample", "--top_k", "-1"], "top_k must be"),
        (["sample", "--threads", "-2"], "threads must be"),
        (["sample", "--run", ".."], "plain folder name"),
        (["attention", "--prompt", ""], "length of the prompt must be in [1, 16]. Got 0."),
        (["attention", "--prompt", "a" * 17], "length of the prompt must be in [1, 16]. Got 17."),
        (["evaluate", "--data", "chinese.txt"], "never seen"),
        (["evaluate", "--data", "builtin:x"], "There is no 'builtin:x'"),
    ],
)
def test_wrong_input_to_a_trained_model_is_one_line(
    arguments: list[str], culprit: str, trained: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("chinese.txt").write_text("中文" * 50, encoding="utf-8")
    capsys.readouterr()
    assert cli(*arguments, "--model", str(trained)) == 2
    assert culprit in error_lines(capsys)[0]


@pytest.mark.parametrize("temperature", ["0", "1e-300", "1e300"])
def test_any_temperature_draws(temperature: str, trained: Path) -> None:
    assert cli("sample", "--model", str(trained), "--length", "5", "--temperature", temperature) == 0


def damage_size(tensors: dict[str, Tensor], state: dict[str, Any]) -> None:
    state["encoder"]["d_model"] = 32


def damage_layers(tensors: dict[str, Tensor], state: dict[str, Any]) -> None:
    state["encoder"]["num_layers"] = 3


def damage_vocabulary(tensors: dict[str, Tensor], state: dict[str, Any]) -> None:
    state["vocabulary"] += "词"


def damage_key(tensors: dict[str, Tensor], state: dict[str, Any]) -> None:
    state["encoder"]["width"] = 1


def damage_type(tensors: dict[str, Tensor], state: dict[str, Any]) -> None:
    state["encoder"]["num_layers"] = 1.5


def damage_literal(tensors: dict[str, Tensor], state: dict[str, Any]) -> None:
    state["encoder"]["activation"] = "foo"


def damage_recipe(tensors: dict[str, Tensor], state: dict[str, Any]) -> None:
    state["recipe"] = []


def damage_everything(tensors: dict[str, Tensor], state: dict[str, Any]) -> None:
    state.clear()
    tensors.clear()


@pytest.mark.parametrize("command", ["sample", "evaluate", "attention"])
@pytest.mark.parametrize(
    "damage",
    [
        damage_size,
        damage_layers,
        damage_vocabulary,
        damage_key,
        damage_type,
        damage_literal,
        damage_recipe,
        damage_everything,
    ],
)
def test_a_checkpoint_that_does_not_fit_is_refused(
    damage: Any, command: str, trained: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tensors, state = read_checkpoint(trained / "best.safetensors")
    damage(tensors, state)
    save_checkpoint(Path("damaged.safetensors"), tensors, state)
    capsys.readouterr()
    assert cli(command, "--model", "damaged.safetensors") == 2
    assert "damaged.safetensors" in error_lines(capsys)[0]


def test_a_cut_checkpoint_is_refused(trained: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Path("cut.safetensors").write_bytes((trained / "best.safetensors").read_bytes()[:500])
    capsys.readouterr()
    assert cli("sample", "--model", "cut.safetensors") == 2
    assert "cut.safetensors is damaged" in error_lines(capsys)[0]


def test_without_a_model_the_way_to_one_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli("sample") == 2
    assert error_lines(capsys) == ["error: There is no trained model yet.", f"hint: python -m {MODULE} train"]
    Path("empty").mkdir()
    assert cli("sample", "--model", "empty") == 1
    assert "No such checkpoint: empty/best.safetensors" in error_lines(capsys)[0]
    assert cli("sample", "--model", "missing.safetensors") == 1
    assert "No such file or folder" in error_lines(capsys)[0]


def test_a_name_is_used_once(capsys: pytest.CaptureFixture[str]) -> None:
    assert small_train(run="mine", steps=1) == 0
    capsys.readouterr()
    assert small_train(run="mine", steps=2) == 2
    assert "exists already" in error_lines(capsys)[0]
    assert read_checkpoint(RUNS / "mine/last.safetensors")[1]["step"] == 1


def test_the_module_runs_from_a_terminal() -> None:
    run = subprocess.run(
        [sys.executable, "-m", MODULE, "--steps", "many"],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )
    assert run.returncode == 2
    assert [line.partition(":")[0] for line in run.stderr.splitlines()] == ["error", "hint"]
    assert not run.stdout
