"""The embedded models: what they learn from, that training learns and resumes exactly, and what they reach."""

import json
import math
import random
from pathlib import Path
from typing import Any

import pytest
import torch

from gpt_text_generation.builtin import python_tasks, stories, train_models
from gpt_text_generation.builtin.train_models import (
    BUILTIN,
    CONTEXT,
    CORPORA,
    END,
    MODULE,
    NgramModel,
    batches,
    evaluate,
    share_of_rate,
    train,
    train_tokenizer,
)
from gpt_text_generation.text_generator import Settings, TextGenerator
from shared.checkpoints import read_checkpoint
from shared.config import run_commands


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return train_tokenizer([*CORPORA["python"].texts("train", 300, 0), *CORPORA["stories"].texts("train", 100, 0)])


# --- Tokens -----------------------------------------------------------------------------------------------------------


def test_a_prompt_has_the_tokens_that_its_whole_text_begins_with(tokenizer: Any) -> None:
    pairs = [(task.prompt, python_tasks.document(task)) for task in python_tasks.tasks("test", 60, 0)]
    rng = random.Random(0)
    pairs += [(one.opening, one.text) for one in (stories.story(rng) for _ in range(60))]
    for prompt, text in pairs:
        begin, whole = tokenizer(prompt)["input_ids"], tokenizer(text)["input_ids"]
        assert whole[: len(begin)] == begin, prompt


def test_every_text_can_be_written_and_begins_with_the_end_token(tokenizer: Any) -> None:
    for text in ("def f():\n\treturn '天'\n\n", " a  b\r\n🎈", ""):
        ids = tokenizer(text)["input_ids"]
        assert ids[0] == tokenizer.eos_token_id and tokenizer.decode(ids[1:]) == text


def test_batches_are_texts_one_after_the_other(tokenizer: Any) -> None:
    corpus = CORPORA["python"]
    first, second = (next(batches(corpus, tokenizer, 3, seed=4)) for _ in range(2))
    assert first.shape == (3, CONTEXT) and torch.equal(first, second)
    assert not torch.equal(first, next(batches(corpus, tokenizer, 3, seed=5)))
    source = batches(corpus, tokenizer, 1, seed=4)
    text = tokenizer.decode(torch.cat([next(source) for _ in range(6)]).flatten())
    whole = [one for one in text.split(END) if one][:-1]
    assert len(whole) > 10 and all(one.startswith("def ") and one.endswith("\n") for one in whole)


# --- Training ---------------------------------------------------------------------------------------------------------


def test_the_rate_rises_holds_and_falls_to_nothing() -> None:
    shares = [share_of_rate(step, 100) for step in range(101)]
    assert shares[0] == 0.5 and shares[1:61] == [1.0] * 60 and shares[80] == 0.5 and shares[100] == 0
    assert share_of_rate(0, 1) == 1


def run(*arguments: str) -> int:
    with pytest.raises(SystemExit) as end:
        run_commands({"train": train, "evaluate": evaluate}, module=MODULE, argv=arguments, extra="generation")
    return int(end.value.code or 0)


TINY = ("train", "--model", "python", "--layers", "1", "--width", "32", "--steps", "12", "--tokens", "512")


def test_a_training_that_was_stopped_goes_on_as_if_it_had_not_been(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(train_models, "held_out_figures", lambda *_: {"pass_at_1": 0.25})
    assert run(*TINY, "--run", "whole", "--output", "whole") == 0

    class StopAtFive:
        requested = False

        def __enter__(self) -> "StopAtFive":
            return self

        def __exit__(self, *_: object) -> None:
            pass

    stopper = StopAtFive()
    clock = iter(range(10**9))

    def share(step: int, total: int) -> float:
        stopper.requested = step == 4 and next(clock) == 0
        return share_of_rate(step, total)

    monkeypatch.setattr(train_models, "StopRequest", lambda: stopper)
    monkeypatch.setattr(train_models, "share_of_rate", share)
    assert run(*TINY, "--run", "parts", "--output", "parts") == 130
    _, state = read_checkpoint(Path("outputs/gpt_text_generation/parts/checkpoint.safetensors"))
    assert state["step"] == 5
    assert run(*TINY, "--run", "parts", "--output", "parts", "--resume", "true") == 0
    one, other = (Path(name, "model.safetensors").read_bytes() for name in ("whole", "parts"))
    assert one == other
    losses = [json.loads(line)["loss"] for line in
              Path("outputs/gpt_text_generation/whole/metrics.jsonl").read_text().splitlines()]  # fmt: skip
    assert losses[-1] < losses[0]
    text = Path("whole/README.md").read_text()
    assert "--layers 1 --width 32 --steps 12 --tokens 512" in text and "| pass_at_1 | 0.25 |" in text
    assert run(*TINY, "--run", "parts", "--resume", "true") == 2  # it is finished


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--width", "48"), "width must be a multiple of 32"),
        (("--tokens", "100"), "tokens must be a multiple of 256"),
        (("--steps", "0"), "steps must be in"), (("--resume", "true"), "resume needs the name of the run"),
        (("--model", "poems"), "model"), (("--run", "nothing", "--resume", "true"), "There is no run"),
    ],
)  # fmt: skip
def test_wrong_input_is_one_line_and_status_2(
    flags: tuple[str, ...], message: str, capsys: pytest.CaptureFixture[str], tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    assert run("train", *flags) == 2
    error = capsys.readouterr().err
    assert message in error and "Traceback" not in error


# --- The peer ---------------------------------------------------------------------------------------------------------


def test_the_n_gram_model_is_a_distribution_and_what_its_formula_says() -> None:
    model = NgramModel(3, vocabulary=5)
    model.learn([0, 1, 2, 0, 1, 3])
    for history in ([], [0], [0, 1], [4, 4], [2, 0, 1]):
        assert sum(model.probability(history, token) for token in range(5)) == pytest.approx(1)
    unigram = (2 + 4 * (1 / 5)) / (6 + 4)  # 1 stands twice among 6 tokens of 4 kinds
    bigram = (2 + 1 * unigram) / (2 + 1)  # after 0 there is always 1
    assert model.probability([4, 0], 1) == pytest.approx(bigram)
    assert model.nats([0, 1]) == pytest.approx(-math.log(bigram))


# --- What is shipped --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", CORPORA)
def test_a_model_is_small_has_a_card_and_writes_what_it_learned(name: str) -> None:
    folder = BUILTIN / name
    assert (folder / "model.safetensors").stat().st_size < 10_000_000
    text = (folder / "README.md").read_text(encoding="utf-8")
    for said in ("Rebuild:", "Data:", "seed 0", "minutes", "held-out"):
        assert said in text
    generator = TextGenerator(f"builtin:{name}")
    retrained = train_tokenizer(list(CORPORA[name].texts("train", 3000, 0)))
    assert retrained.get_vocab() == generator.language_model.tokenizer.get_vocab()
    if name == "stories":
        prompts = list(stories.prompts("test", 12, 3))
        made = generator.generate([one.text for one in prompts], Settings(max_new_tokens=220))
        kept = [stories.check(p.text + m.text, p.name, p.place) for p, m in zip(prompts, made, strict=True)]
        assert sum(kept) >= 10
    else:
        tasks = list(python_tasks.tasks("test", 12, 3))
        made = generator.generate([task.prompt for task in tasks], Settings("greedy", max_new_tokens=120))
        right = [one.text == task.solution for one, task in zip(made, tasks, strict=True)]
        assert sum(right) >= 7
