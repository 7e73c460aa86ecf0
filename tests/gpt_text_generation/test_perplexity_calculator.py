"""Every token is counted once, with the context it should have; and the figure is that of one token at a time."""

import copy
import json
import math
import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from gpt_text_generation.evaluation.perplexity_calculator import (
    MODULE,
    Perplexity,
    measure,
    perplexity,
    token_nats,
    windows,
)
from gpt_text_generation.text_generator import LanguageModel, load_model
from shared.config import run_commands
from shared.errors import InputError

TEXT = "Maya lived by the sea. One morning she lost her red kite. 你好，世界。 Who is there? " * 4


@pytest.fixture(scope="module")
def language_model(tiny_folder: Path) -> LanguageModel:
    return load_model(str(tiny_folder))


@given(st.integers(1, 300), st.integers(2, 40), st.data())
def test_every_token_is_counted_once_with_as_much_before_it_as_promised(
    tokens: int, context: int, data: st.DataObject
) -> None:
    stride = data.draw(st.integers(1, context))
    counted: list[int] = []
    for window in windows(tokens, context, stride):
        assert 0 <= window.begin < window.counted < window.end <= tokens
        assert window.end - window.begin <= context
        for place in range(window.counted, window.end):
            assert place - window.begin >= min(place, context - stride) or window.begin == 0
            counted.append(place)
    assert counted == sorted(set(counted))
    if stride < context:
        assert counted == list(range(1, tokens))
    else:  # the first of each window has nothing before it
        assert len(counted) >= tokens - 1 - -(-tokens // context)


def brute_force(language_model: LanguageModel, ids: list[int], context: int) -> list[float]:
    """Return −log p of each token, computed alone with all that the model sees before it."""
    nats = []
    with torch.no_grad():
        for place in range(1, len(ids)):
            row = torch.tensor([ids[max(0, place - context + 1) : place]])
            nats.append(-language_model.model(row).logits[0, -1].log_softmax(-1)[ids[place]].item())
    return nats


@pytest.mark.parametrize("context", [64, 17])
def test_stride_1_is_one_token_at_a_time(context: int, language_model: LanguageModel) -> None:
    ids = language_model.tokenizer(TEXT)["input_ids"]
    assert len(ids) > 100
    ours = token_nats(language_model, ids, 1, context=context)
    np.testing.assert_allclose(ours, brute_force(language_model, ids, context), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("stride", [1, 7, 32, 63, 64])
def test_any_stride_is_the_sum_of_its_windows(stride: int, language_model: LanguageModel) -> None:
    ids = language_model.tokenizer(TEXT)["input_ids"]
    expected = []
    with torch.no_grad():
        for window in windows(len(ids), 64, stride):
            row = torch.tensor([ids[window.begin : window.end]])
            scores = -language_model.model(row).logits[0, :-1].log_softmax(-1).gather(1, row[0, 1:, None])[:, 0]
            expected += scores[window.counted - window.begin - 1 :].tolist()
    found = perplexity(language_model, TEXT, stride=stride)
    assert found.tokens == len(expected)
    assert found.per_token == pytest.approx(math.exp(sum(expected) / len(expected)), rel=1e-4)


def test_batches_change_nothing(language_model: LanguageModel) -> None:
    one, many = (perplexity(language_model, TEXT, stride=5, batch_size=size) for size in (1, 16))
    assert one.nats == pytest.approx(many.nats, rel=1e-5) and one.tokens == many.tokens


def test_the_normalisers_are_those_of_the_text() -> None:
    found = Perplexity(nats=math.log(2) * 24, tokens=6, text_tokens=6, words=4, bytes=12)
    assert found.per_token == pytest.approx(16) and found.per_word == pytest.approx(64)
    assert found.per_byte == pytest.approx(4) and found.bits_per_byte == pytest.approx(2)
    half = Perplexity(nats=math.log(2) * 12, tokens=3, text_tokens=6, words=4, bytes=12)  # every other one was counted
    assert half.per_token == pytest.approx(16) and half.bits_per_byte == pytest.approx(2)


@pytest.mark.parametrize("context", [2, 3, 64])
def test_tokens_that_are_not_counted_are_in_no_figure(context: int, language_model: LanguageModel) -> None:
    """A model without an idea spends log2 V bits on each token, at any stride."""
    model = copy.deepcopy(language_model.model)
    torch.nn.init.zeros_(model.get_output_embeddings().weight)
    blank = replace(language_model, model=model)
    size = len(TEXT.encode())
    for stride in {1, context // 2, context}:
        found = perplexity(blank, TEXT, stride=stride, context=context)
        tokens = len(blank.tokenizer(TEXT)["input_ids"])
        assert found.text_tokens == tokens > found.tokens
        assert found.bits_per_byte == pytest.approx(math.log2(model.config.vocab_size) * tokens / size, rel=1e-5)
        assert found.per_byte == pytest.approx(2**found.bits_per_byte)
        assert found.per_word == pytest.approx(2 ** (found.bits_per_byte * size / found.words), rel=1e-4)


def test_the_token_that_begins_a_text_is_none_of_the_text(language_model: LanguageModel) -> None:
    tokenizer = language_model.tokenizer
    alone, begun = (perplexity(language_model, start + TEXT) for start in ("", tokenizer.bos_token))
    assert begun.text_tokens == begun.tokens == alone.text_tokens == alone.tokens + 1


def test_words_are_divided_at_white_space_and_chinese_has_none(language_model: LanguageModel) -> None:
    def words_of(text: str) -> int:
        return perplexity(language_model, text).words

    assert words_of("One morning,  she lost\nher red kite .") == 8
    assert words_of("你好，世界。") == 6 and words_of("说 GPT-2 吧") == 3 and words_of("カタカナ") == 4
    assert math.isfinite(perplexity(language_model, "你好，世界。今天天气很好。" * 99).per_word)


def test_a_surprise_beyond_what_a_float_holds_is_infinite() -> None:
    assert Perplexity(nats=1e6, tokens=1, text_tokens=1, words=1, bytes=1).per_token == math.inf


@pytest.mark.parametrize(
    ("text", "options", "message"),
    [
        ("", {}, "needs two tokens"), ("a", {}, "needs two tokens"),
        (TEXT, {"stride": 65}, r"stride must be in \[1, 64\]"),
        (TEXT, {"context": 65}, "which .* sees"), (TEXT, {"context": 8, "stride": 9}, r"\[1, 8\]"),
    ],
)  # fmt: skip
def test_what_can_not_be_measured_is_refused(
    text: str, options: dict[str, int], message: str, language_model: LanguageModel
) -> None:
    with pytest.raises(InputError, match=message):
        perplexity(language_model, text, **options)


def run(*arguments: str) -> int:
    with pytest.raises(SystemExit) as end:
        run_commands({"measure": measure}, module=MODULE, argv=arguments, extra="generation")
    return int(end.value.code or 0)


def test_the_command_measures_a_file_at_several_strides(
    tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
    language_model: LanguageModel,
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    (tmp_path / "text.txt").write_text(TEXT, encoding="utf-8")
    flags = ("--model", str(tiny_folder), "--data", "text.txt", "--run", "a")
    assert run("measure", *flags, "--strides", "8,64") == 0
    metrics = json.loads(Path("outputs/gpt_text_generation/a/results.json").read_text())["metrics"]
    assert metrics["perplexity at stride 8"] == pytest.approx(perplexity(language_model, TEXT, stride=8).per_token)
    assert "stride 64" in capsys.readouterr().out
    for wrong, message in ((("--strides", "0"), "strides must be in"), (("--data", "none.txt"), "No such file")):
        assert run("measure", *flags[:2], *wrong) in (1, 2)
        assert message in capsys.readouterr().err


@pytest.mark.slow
def test_real_text_under_a_real_model_is_one_token_at_a_time() -> None:
    folder = Path(os.environ.get("ROADMAP_DATA", "../shared/data"))
    if not (folder / "models/stories260K/hf").is_dir():
        pytest.skip("no test data: set ROADMAP_DATA to its folder")
    real = load_model(str(folder / "models/stories260K/hf"))
    text = (folder / "wikitext2/test.txt").read_text(encoding="utf-8")[:1500]
    ids = real.tokenizer(text)["input_ids"]
    exact = brute_force(real, ids, 128)
    ours = token_nats(real, ids, 1, context=128)
    assert math.exp(np.mean(ours)) == pytest.approx(math.exp(np.mean(exact)), rel=1e-4)
