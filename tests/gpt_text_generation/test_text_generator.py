"""Rows are what they would be alone, draws have the model's distribution, and streams give what batches do."""

import io
import json
import math
import shutil
import threading
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from tokenizers.processors import TemplateProcessing

from gpt_text_generation.text_generator import (
    DRAWING,
    MODULE,
    STRATEGIES,
    Generation,
    Recorder,
    Settings,
    Strategy,
    TextGenerator,
    compare_command,
    figures_of,
    first_stop,
    generate_command,
    held_back,
    load_model,
)
from shared.config import run_commands
from shared.errors import HubError, InputError

PROMPTS = [
    "Maya lived by the sea.",
    "Tom",
    "",
    "The wind was strong, and the bread was warm. Who is",
    "你好，世",
    "hill",
]


@pytest.fixture(scope="module")
def generator(tiny_folder: Path) -> TextGenerator:
    return TextGenerator(str(tiny_folder))


@pytest.fixture(scope="module", params=["gpt2", "llama"])
def either(request: pytest.FixtureRequest, tmp_path_factory: Any, make_tiny: Callable[..., Path]) -> TextGenerator:
    """Return one with learned positions, and one with rotary ones."""
    return TextGenerator(str(make_tiny(tmp_path_factory.mktemp("either") / request.param, request.param)))


# --- A row is what it would be alone ----------------------------------------------------------------------------------


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_a_row_of_a_batch_is_what_it_would_be_alone(strategy: Strategy, either: TextGenerator) -> None:
    how = Settings(strategy, max_new_tokens=24, seed=5, temperature=0.9, stop=("zz",))
    batch = either.generate(PROMPTS, how)
    for row, (prompt, together) in enumerate(zip(PROMPTS, batch, strict=True)):
        [alone] = either.generate([prompt], replace(how, seed=5 + row))
        assert (alone.text, alone.token_ids, alone.finish) == (together.text, together.token_ids, together.finish)
        np.testing.assert_allclose(alone.log_probabilities, together.log_probabilities, atol=2e-4)


def test_the_penalty_counts_no_padding(generator: TextGenerator) -> None:
    how = Settings("greedy", max_new_tokens=20, repetition_penalty=1.7)
    together = generator.generate(PROMPTS, how)
    ids = generator.language_model.encode(PROMPTS[0])
    theirs = generator.language_model.model.generate(
        torch.tensor([ids]), attention_mask=torch.ones(1, len(ids)), max_new_tokens=20, do_sample=False,
        repetition_penalty=1.7, pad_token_id=0,
    )  # fmt: skip
    assert together[0].token_ids == theirs[0, len(ids) :].tolist()
    assert [one.token_ids for one in generator.generate(PROMPTS[1:2], how)] == [together[1].token_ids]


@pytest.mark.parametrize("strategy", ["greedy", "beam_search"])
def test_search_finds_what_transformers_finds(strategy: Strategy, either: TextGenerator) -> None:
    how = Settings(strategy, max_new_tokens=16)
    model = either.language_model.model
    for prompt, made in zip(PROMPTS, either.generate(PROMPTS, how), strict=True):
        ids = torch.tensor([either.language_model.encode(prompt)])
        config = how.generation_config()
        config.eos_token_id, config.pad_token_id = sorted(either.language_model.ends()), 0
        theirs = model.generate(ids, attention_mask=torch.ones_like(ids), generation_config=config)
        drawn = theirs[0, ids.shape[1] :].tolist()
        assert made.token_ids == drawn[: len(made.token_ids)]


# --- Draws ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("strategy", DRAWING)
def test_draws_have_the_distribution_that_transformers_draws_from(strategy: Strategy, generator: TextGenerator) -> None:
    how = Settings(strategy, max_new_tokens=1, temperature=1.5, top_k=8, top_p=0.8, min_p=0.2, typical_p=0.7)
    ids = torch.tensor([generator.language_model.encode("Maya")])
    model = generator.language_model.model
    config = how.generation_config()
    with torch.no_grad():
        processors = model._get_logits_processor(config, logits_processor=[], device=torch.device("cpu"))
        expected = processors(ids, model(ids).logits[:, -1]).softmax(-1)[0].double().numpy()
    wide = TextGenerator(generator.language_model, batch_size=500)
    drawn = Counter(one.token_ids[0] for one in wide.generate(["Maya"] * 3000, how))
    assert set(drawn) <= set(np.flatnonzero(expected).tolist())
    common = np.flatnonzero(expected * 3000 >= 5)
    counts = np.array([drawn[token] for token in common.tolist()] + [3000 - sum(drawn[t] for t in common.tolist())])
    shares = np.append(expected[common], max(0.0, 1 - expected[common].sum()))
    kept = shares * 3000 > 1
    assert counts[~kept].sum() < 15
    expected_counts = shares[kept] / shares[kept].sum() * counts[kept].sum()
    assert stats.chisquare(counts[kept], expected_counts).pvalue > 1e-3


def test_a_seed_gives_the_same_text_and_another_another(generator: TextGenerator) -> None:
    how = Settings("sampling", max_new_tokens=20, seed=1)
    one, two, other = (generator.generate(["Tom"], replace(how, seed=seed))[0].text for seed in (1, 1, 2))
    assert one == two != other


# --- What is told of a text -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("held", [1, 1 << 14, Recorder.MAX_HELD])
@pytest.mark.parametrize("strategy", ["greedy", "sampling", "beam_search"])
def test_log_probabilities_are_the_models_own(
    strategy: Strategy, held: int, generator: TextGenerator, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Recorder, "MAX_HELD", held)
    for prompt, made in zip(PROMPTS, generator.generate(PROMPTS, Settings(strategy, max_new_tokens=12)), strict=True):
        ids = generator.language_model.encode(prompt)
        row = torch.tensor([[*ids, *made.token_ids]])
        with torch.no_grad():
            scores = generator.language_model.model(row).logits[0, :-1].log_softmax(-1)
        theirs = scores.gather(1, row[0, 1:, None])[len(ids) - 1 :, 0]
        np.testing.assert_allclose(made.log_probabilities, theirs.tolist(), atol=2e-4)


def test_the_likelihood_of_a_continuation_is_that_of_its_tokens(generator: TextGenerator) -> None:
    prompts, rests = ["Maya lived", "", "你好", "Tom"], [" by the sea.", "Tom", "，世界", ""]
    found = generator.log_likelihoods(prompts, rests)
    assert found[3] == 0
    ids = torch.tensor([generator.language_model.encode("Maya lived by the sea.")])
    with torch.no_grad():
        scores = generator.language_model.model(ids).logits[0, :-1].log_softmax(-1).gather(1, ids[0, 1:, None])
    prompt = len(generator.language_model.encode("Maya lived"))
    assert found[0] == pytest.approx(scores[prompt - 1 :].sum().item(), abs=1e-3)
    assert all(value < 0 for value in found[:3])
    with pytest.raises(InputError, match="2 prompts and 1 continuations"):
        generator.log_likelihoods(["a", "b"], ["c"])
    with pytest.raises(InputError, match="tokens; .* sees 64"):
        generator.log_likelihoods(["a"], ["b c d " * 40])


@given(st.text("abz", max_size=12), st.lists(st.text("abz", min_size=1, max_size=3), max_size=3))
def test_what_is_held_back_is_the_least_that_may_begin_a_stop_string(text: str, stop: list[str]) -> None:
    size = held_back(text, stop)
    for more in range(len(text) + 1):
        tail = text[len(text) - more :]
        begins = any(one.startswith(tail) and len(tail) < len(one) for one in stop) and bool(tail)
        assert not begins or more <= size
    assert first_stop(text, stop) == min((text.index(one) for one in stop if one in text), default=-1)


def test_a_letter_that_is_not_whole_yet_is_held_back() -> None:
    assert held_back("天\ufffd", []) == 1
    assert held_back("天", []) == 0


@settings(max_examples=25)
@given(
    strategy=st.sampled_from([s for s in STRATEGIES if s != "beam_search"]), seed=st.integers(0, 1000), data=st.data()
)
def test_a_stream_gives_the_text_of_the_batch_and_no_part_of_a_stop_string(
    strategy: Strategy, seed: int, data: st.DataObject, generator: TextGenerator
) -> None:
    how = Settings(strategy, max_new_tokens=20, seed=seed)
    whole = generator.generate(["The wind"], how)[0].text
    if whole and data.draw(st.booleans()):
        first = data.draw(st.integers(0, len(whole) - 1))
        how = replace(how, stop=(whole[first : first + data.draw(st.integers(1, 4))],))
    [made] = generator.generate(["The wind"], how)
    assert "".join(generator.stream("The wind", how)) == made.text
    for one in how.stop:
        assert one not in made.text and made.finish == "stop"
    assert len(made.log_probabilities) == len(made.token_ids)


def test_a_stream_that_nobody_reads_on_ends(generator: TextGenerator) -> None:
    before = threading.active_count()
    stream = generator.stream("Maya", Settings("sampling", max_new_tokens=50))
    next(stream)
    stream.close()
    assert threading.active_count() == before


def test_an_error_in_the_middle_of_a_stream_reaches_the_reader(
    generator: TextGenerator, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: Any, **__: Any) -> None:
        raise MemoryError("no room")

    monkeypatch.setattr(generator.language_model.model, "generate", broken)
    with pytest.raises(MemoryError, match="no room"):
        list(generator.stream("Maya", Settings(max_new_tokens=9)))


def test_a_tokenizer_that_drops_the_first_blank_loses_none_of_a_continuation(
    tmp_path: Path, make_tiny: Callable[..., Path]
) -> None:
    generator = TextGenerator(str(make_tiny(tmp_path / "blank", "llama", sentencepiece=True)))
    tokenizer = generator.language_model.tokenizer
    assert tokenizer.decode(tokenizer(" the wind")["input_ids"]) == "the wind"
    begun = 0
    for made in generator.generate(["Maya", "The", "Tom and his"] * 8, Settings("sampling", max_new_tokens=8)):
        ids = [*generator.language_model.encode(made.prompt), *made.token_ids]
        assert made.prompt + made.text == tokenizer.decode(ids, skip_special_tokens=True)
        begun += made.text.startswith(" ")
        assert "".join(generator.stream(made.prompt, Settings("greedy", max_new_tokens=8))) == (
            generator.generate([made.prompt], Settings("greedy", max_new_tokens=8))[0].text
        )
    assert begun
    stopped = generator.generate(["Maya"] * 24, Settings("sampling", max_new_tokens=8, stop=(" ",)))
    assert any(one.finish == "stop" and not one.text for one in stopped)


# --- Limits -----------------------------------------------------------------------------------------------------------


def test_near_the_end_of_the_context_a_text_is_as_long_as_there_is_room(generator: TextGenerator) -> None:
    long = "a b c d e f g h i j " * 3
    size = len(generator.language_model.encode(long))
    assert 30 < size < 64
    short, cut = generator.generate(["Tom", long], Settings("greedy", max_new_tokens=50))
    assert len(cut.token_ids) <= 64 - size and (cut.finish == "length" or len(cut.token_ids) < 64 - size)
    assert short == generator.generate(["Tom"], Settings("greedy", max_new_tokens=50))[0]


def test_a_prompt_that_fills_the_context_and_a_length_beyond_it_are_refused(generator: TextGenerator) -> None:
    for call in (generator.stream, lambda prompt, how: generator.generate([prompt], how)):
        with pytest.raises(InputError, match="leaves no room in the model's context of 64"):
            call("a b c d " * 30, Settings(max_new_tokens=9))
        with pytest.raises(InputError, match="max_new_tokens must be below the model's context of 64"):
            call("a", Settings(max_new_tokens=64))
    with pytest.raises(InputError, match="can't be streamed"):
        generator.stream("a", Settings("beam_search", max_new_tokens=5))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"max_new_tokens": 0}, "max_new_tokens must be in"), ({"temperature": 0}, "strategy greedy"),
        ({"temperature": -1}, "temperature"), ({"top_p": 0}, "top_p"), ({"top_p": 1.1}, "top_p"),
        ({"top_k": 0}, "top_k"), ({"min_p": 2}, "min_p"), ({"typical_p": 1}, "typical_p"),
        ({"num_beams": 1}, "num_beams"), ({"repetition_penalty": 0}, "repetition_penalty"), ({"seed": -1}, "seed"),
        ({"stop": "end"}, "stop must be texts"), ({"stop": ("",)}, "stop must be texts"),
        ({"strategy": "contrastive"}, "strategy must be one of"),
    ],
)  # fmt: skip
def test_settings_outside_their_range_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        Settings(**changes)


def test_no_prompts_are_no_texts_and_an_odd_prompt_is_a_prompt(generator: TextGenerator) -> None:
    assert generator.generate([]) == []
    [made] = generator.generate(["\ud800 half a letter \x00"], Settings(max_new_tokens=3))
    assert len(made.token_ids) <= 3


def test_an_empty_prompt_needs_a_token_to_begin_with(tiny_folder: Path) -> None:
    without = TextGenerator(str(tiny_folder))
    without.language_model.tokenizer.bos_token = None
    with pytest.raises(InputError, match="The prompt is empty"):
        without.generate([""])


def test_what_is_no_model_is_one_clear_error(tmp_path: Path, tiny_folder: Path) -> None:
    cut, silent = (shutil.copytree(tiny_folder, tmp_path / name) for name in ("cut", "silent"))
    with (cut / "model.safetensors").open("r+b") as file:
        file.truncate(10_000)
    with pytest.raises(InputError, match="holds no model for this"):
        load_model(str(cut))
    for path in silent.glob("tokenizer*"):
        path.unlink()
    with pytest.raises(InputError, match="tokenizer|holds no model"):
        load_model(str(silent))
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(InputError, match="holds no model for this"):
        load_model(str(tmp_path))
    with pytest.raises(HubError, match="could not be had from the hub"):
        load_model("nobody/nothing")
    with pytest.raises(InputError, match="builtins: builtin:python, builtin:stories"):
        load_model("builtin:nothing")


def test_memory_that_runs_out_is_not_a_model_that_is_none(
    tiny_folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def full(*_: Any, **__: Any) -> None:
        raise RuntimeError("[enforce fail at alloc_cpu.cpp:118] DefaultCPUAllocator: can't allocate memory")

    monkeypatch.setattr("transformers.AutoModelForCausalLM.from_pretrained", full)
    with pytest.raises(MemoryError, match="can't allocate memory"):
        load_model(str(tiny_folder))
    assert run("generate", "--model", str(tiny_folder), "--prompt", "Tom") == 1
    assert "out of memory" in capsys.readouterr().err


@pytest.mark.parametrize("adds", [False, True])
def test_a_conversation_begins_once(adds: bool, tmp_path: Path, make_tiny: Callable[..., Path]) -> None:
    chatty = TextGenerator(str(make_tiny(tmp_path / "chatty", chat=True)))
    tokenizer = chatty.language_model.tokenizer
    if adds:
        tokenizer._tokenizer.post_processor = TemplateProcessing(
            single=f"{tokenizer.bos_token} $A", special_tokens=[(tokenizer.bos_token, tokenizer.bos_token_id)]
        )
    assert (tokenizer("Tom")["input_ids"][0] == tokenizer.bos_token_id) == adds
    tokenizer.chat_template = "{{ bos_token }}" + tokenizer.chat_template
    expected = tokenizer.apply_chat_template([{"role": "user", "content": "Who is Tom?"}], tokenize=True,
                                             add_generation_prompt=True, return_dict=False)  # fmt: skip
    assert expected.count(tokenizer.bos_token_id) == 1
    assert chatty.language_model.encode(chatty.chat("Who is Tom?")) == expected


def test_an_instruction_takes_the_form_of_the_chat_template(tmp_path: Path, make_tiny: Callable[..., Path]) -> None:
    chatty = TextGenerator(str(make_tiny(tmp_path / "chatty", chat=True)))
    assert chatty.has_chat_template
    assert chatty.chat("Hi", system="Be short.") == "[system] Be short.\n[user] Hi\n[assistant]"


def test_a_model_without_a_template_gets_the_text_itself(generator: TextGenerator) -> None:
    assert not generator.has_chat_template
    assert generator.chat("Hi") == "Hi"


# --- Commands ---------------------------------------------------------------------------------------------------------


def run(*arguments: str) -> int:
    with pytest.raises(SystemExit) as end:
        run_commands({"generate": generate_command, "compare": compare_command}, module=MODULE, argv=arguments,
                     extra="generation")  # fmt: skip
    return int(end.value.code or 0)


def test_a_prompt_is_streamed_and_lines_are_texts_each(
    tiny_folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, generator: TextGenerator
) -> None:
    flags = ("--model", str(tiny_folder), "--max_new_tokens", "8", "--strategy", "greedy")
    assert run("generate", *flags, "--prompt", "Tom, and") == 0
    expected = generator.generate(["Tom, and"], Settings("greedy", max_new_tokens=8))[0].text
    assert capsys.readouterr().out == f"Tom, and{expected}\n"
    monkeypatch.setattr("sys.stdin", io.StringIO("Tom\nMaya\n"))
    assert run("generate", *flags, "--show_probabilities", "true") == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("--- 1 (") and sum(line.startswith("--- ") for line in lines) == 2
    shown = [float(line.split()[0]) for line in lines if line.startswith("  0.") or line.startswith("  1.")]
    assert shown and all(0 <= value <= 1 for value in shown)


def test_nobody_at_a_terminal_is_waited_for(
    tiny_folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    terminal = io.StringIO()
    monkeypatch.setattr(terminal, "isatty", lambda: True)
    monkeypatch.setattr("sys.stdin", terminal)
    assert run("generate", "--model", str(tiny_folder), "--max_new_tokens", "8") == 0
    assert capsys.readouterr().out.startswith("Maya lived by the sea.")
    monkeypatch.setattr("sys.stdin", io.StringIO())
    assert run("generate", "--model", str(tiny_folder)) == 2
    assert "There is no prompt" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--temperature", "0"), "temperature must be above 0"), (("--max_new_tokens", "0"), "max_new_tokens"),
        (("--max_new_tokens", "64"), "below the model's context"), (("--strategy", "magic"), "strategy"),
        (("--prompt", "a b c d " * 40), "leaves no room"),
        (("--strategy", "greedy", "--samples", "2"), "writes the same text every time"),
    ],
)  # fmt: skip
def test_wrong_input_is_one_line_and_status_2(
    flags: tuple[str, ...], message: str, tiny_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    prompt = () if "--prompt" in flags else ("--prompt", "Tom")
    assert run("generate", "--model", str(tiny_folder), "--max_new_tokens=9", *prompt, *flags) == 2
    out, error = capsys.readouterr()
    assert message in error and "Traceback" not in error and not out


def test_the_perplexity_of_texts_is_that_of_all_their_tokens() -> None:
    rng = np.random.default_rng(0)
    sizes = rng.integers(1, 60, 80)
    rates = 1 + 0.02 * sizes + rng.exponential(1, 80)  # long texts are the more surprising here
    made = [Generation("", "a b c", [0] * n, [-rate] * n, "end") for n, rate in zip(sizes, rates, strict=True)]
    its = figures_of({"one": made})["one"]
    assert its["perplexity"] == pytest.approx(math.exp((sizes * rates).sum() / sizes.sum()))
    theirs = stats.bootstrap((sizes * rates, sizes), lambda x, n, axis: x.sum(axis) / n.sum(axis), paired=True,
                             vectorized=True, method="percentile", rng=0).confidence_interval  # fmt: skip
    assert [math.log(its[f"perplexity {end}"] or 0) for end in ("low", "high")] == pytest.approx(theirs, abs=0.05)
    assert theirs.high - theirs.low > 0.3


def test_strategies_are_compared_in_a_table_and_a_plot(
    tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "prompts.txt").write_text("Maya\nTom and\n\nThe wind\nWho is\n", encoding="utf-8")
    flags = ("--model", str(tiny_folder), "--prompts", "prompts.txt", "--max_new_tokens", "24", "--run", "a")
    assert run("compare", *flags, "--strategies", "greedy,nucleus,sampling") == 0
    folder = Path("outputs/gpt_text_generation/a")
    metrics = json.loads((folder / "results.json").read_text())["metrics"]
    assert metrics["greedy_perplexity"] < metrics["sampling_perplexity"]
    assert metrics["greedy_repetition_4"] >= metrics["sampling_repetition_4"]
    assert (folder / "strategies.png").stat().st_size > 10_000
    table = capsys.readouterr().out
    assert "| nucleus |" in table and " – " in table
    rows = [json.loads(line) for line in (folder / "texts.jsonl").read_text().splitlines()]
    assert Counter(row["strategy"] for row in rows) == {"greedy": 4, "nucleus": 8, "sampling": 8}
    assert all(math.isfinite(value) for value in metrics.values())
