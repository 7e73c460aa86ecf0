"""Figures equal their definitions counted out plainly, worked examples and SciPy; intervals hold what they should."""

import json
import logging
import math
import os
import random
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gpt_text_generation.evaluation import diversity_metrics as module
from gpt_text_generation.evaluation.diversity_metrics import (
    FIGURES,
    MODULE,
    beginning,
    bootstrap_interval,
    common_length,
    distinct_n,
    diversity,
    hashed_features,
    hidden_features,
    mauve,
    measure,
    pseudo_values,
    read_groups,
    repetition_n,
    self_bleu,
    table,
    tokens,
    zipf_coefficient,
)
from shared.config import run_commands
from shared.errors import InputError

DATA = Path(os.environ.get("ROADMAP_DATA", Path(__file__).parents[2] / "../shared/data"))
WORDS = st.lists(st.sampled_from(["a", "b", "c", "d"]), max_size=9)
GROUPS = st.lists(WORDS, max_size=6)


@pytest.fixture(autouse=True)
def _in_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def cli(*arguments: str) -> int:
    with pytest.raises(SystemExit) as exit_:
        run_commands({"measure": measure}, module=MODULE, argv=arguments)
    return exit_.value.code


def written(count: int, length: int = 30, *, words: int = 300, seed: int = 0) -> list[str]:
    """Return texts whose words are distributed as Zipf has it."""
    rng = random.Random(seed)
    weights = [1 / rank for rank in range(1, words + 1)]
    return [" ".join(rng.choices([f"w{i}" for i in range(words)], weights, k=length)) for _ in range(count)]


# --- Tokens -----------------------------------------------------------------------------------------------------------


def test_tokens_are_words_marks_and_chinese_characters() -> None:
    assert tokens("Don’t stop – iPhone手机很好！") == ["don’t", "stop", "–", "iphone", "手", "机", "很", "好", "！"]
    assert tokens("ひらがなとカナ、한국어 문장") == [*"ひらがなとカナ、", "한국어", "문장"]
    assert tokens("na\u0308ive") == tokens("näive") == ["näive"]
    assert tokens(" \n\t\u3000") == []
    assert tokens(["As", "they", "are"]) == ["As", "they", "are"]


@given(st.text(alphabet=st.sampled_from("aB é’!你好\n 1_\ud800"), max_size=30), st.integers(0, 12))
def test_a_beginning_has_the_first_tokens(text: str, count: int) -> None:
    assert tokens(beginning(text, count)) == tokens(text)[:count]


def test_the_common_length_is_that_of_nine_in_ten_texts_of_the_shortest_group() -> None:
    texts = [["w"] * n for n in (0, 0, 3, 10, 11, 12, 13, 14, 15, 16, 17, 18)]
    assert common_length(texts) == 10  # 3 is the one in ten
    assert common_length(texts, [["w"] * 7], [[], []]) == 7
    assert common_length([]) == common_length([[], ""]) == common_length() == 0


# --- Figures ----------------------------------------------------------------------------------------------------------


@given(texts=GROUPS, n=st.integers(1, 4))
def test_distinct_n_counts_n_grams_of_all_texts_together(texts: list[list[str]], n: int) -> None:
    grams = [tuple(text[i : i + n]) for text in texts for i in range(len(text) - n + 1)]
    expected = len(set(grams)) / len(grams) if grams else None
    assert distinct_n(texts, n) == expected
    assert distinct_n(texts[::-1], n) == expected


def test_distinct_and_repetition_of_a_worked_example() -> None:
    texts = ["the cat sat on the mat", "The cat ran"]
    assert distinct_n(texts, 1) == 6 / 9  # the cat sat on mat ran
    assert distinct_n(texts, 2) == 6 / 7  # "the cat" is there twice
    assert repetition_n("a b c d a b c d a b c d", 4) == pytest.approx(1 - 4 / 9)
    assert repetition_n("我爱你我爱你我爱你", 4) == pytest.approx(1 - 3 / 6)
    assert repetition_n("one two three", 4) is None
    assert repetition_n("one two three four", 4) == 0


def test_distinct_n_falls_with_length_which_is_why_texts_are_cut() -> None:
    long, short = written(40, 60, seed=1), written(40, 20, seed=2)
    assert distinct_n(long, 1) < 0.6 * distinct_n(short, 1)
    cut = [diversity(texts, cut=20, repeats=20)["distinct_1"] for texts in (long, short)]
    assert cut[0] == pytest.approx(cut[1], rel=0.08)


@given(counts=st.lists(st.integers(1, 50), min_size=2, max_size=30))
def test_the_zipf_coefficient_is_the_slope_that_scipy_finds(counts: list[int]) -> None:
    from scipy.stats import linregress

    text = [f"t{i}" for i, count in enumerate(counts) for _ in range(count)]
    frequencies = sorted(counts, reverse=True)
    slope = linregress(np.log(range(1, len(counts) + 1)), np.log(frequencies)).slope
    assert zipf_coefficient([text]) == pytest.approx(-slope, abs=1e-9)


@pytest.mark.parametrize("exponent", [0.7, 1.0, 1.3])
def test_the_zipf_coefficient_is_the_exponent_of_a_power_law(exponent: float) -> None:
    counts = {f"t{rank}": round(1e5 / rank**exponent) for rank in range(1, 101)}
    assert zipf_coefficient([list(Counter(counts).elements())]) == pytest.approx(exponent, abs=1e-3)
    flat = [f"t{rank}" for rank in range(50)]
    assert zipf_coefficient([flat]) == 0.0
    assert zipf_coefficient([["a"] * 9]) is zipf_coefficient([]) is None


# --- Self-BLEU --------------------------------------------------------------------------------------------------------


def plain_bleu(hypothesis: Sequence[str], references: Sequence[Sequence[str]]) -> float:
    """Return BLEU-4 with zero counts as 0.1, written down as Papineni et al. (2002) define it."""
    logs = []
    for n in range(1, 5):
        own = Counter(tuple(hypothesis[i : i + n]) for i in range(len(hypothesis) - n + 1))
        if not own:
            break
        there = [Counter(tuple(r[i : i + n]) for i in range(len(r) - n + 1)) for r in references]
        right = sum(min(count, max(one[gram] for one in there)) for gram, count in own.items())
        if n == 1 and not right:
            return 0.0
        logs.append(math.log((right or 0.1) / own.total()))
    closest = min((abs(len(r) - len(hypothesis)), len(r)) for r in references)[1]
    brevity = min(0.0, 1 - closest / len(hypothesis))
    return math.exp(brevity + sum(logs) / len(logs))


def test_bleu_is_that_of_the_example_of_its_paper() -> None:
    """Papineni et al.'s first candidate with three references; the value is the one that NLTK's manual gives."""
    pytest.importorskip("sacrebleu")
    candidate = "It is a guide to action which ensures that the military always obeys the commands of the party"
    references = [
        "It is a guide to action that ensures that the military will forever heed Party commands",
        "It is the guiding principle which guarantees the military forces always being under the command of the Party",
        "It is the practical guide for the army always to heed the directions of the party",
    ]
    texts = [text.split() for text in [candidate, *references]]  # tokens, so that letters stay as large as they are
    assert self_bleu(texts)[0] == pytest.approx(0.5045666840058485, abs=1e-9)


@given(texts=st.lists(st.lists(st.sampled_from("abcde"), min_size=1, max_size=9), min_size=2, max_size=6))
@settings(max_examples=50)
def test_self_bleu_of_few_texts_is_each_ones_bleu_against_all_others(texts: list[list[str]]) -> None:
    pytest.importorskip("sacrebleu")
    expected = [plain_bleu(text, texts[:i] + texts[i + 1 :]) for i, text in enumerate(texts)]
    assert self_bleu(texts) == pytest.approx(expected, abs=1e-9)


def test_self_bleu_has_a_fixed_number_of_references_and_each_text_is_one_equally_often(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    bleu = pytest.importorskip("sacrebleu.metrics.bleu")
    seen: list[list[str]] = []

    def note(self: object, hypothesis: str, references: list[str]) -> SimpleNamespace:
        assert hypothesis not in references
        seen.append(references)
        return SimpleNamespace(score=50.0)

    monkeypatch.setattr(bleu.BLEU, "sentence_score", note)
    texts = [f"w{i}" for i in range(12)]
    assert self_bleu(texts, 5) == [0.5] * 12
    assert {len(set(references)) for references in seen} == {5}
    assert set(Counter(text for references in seen for text in references).values()) == {5}


def test_self_bleu_grows_with_references_and_is_1_for_equal_texts() -> None:
    pytest.importorskip("sacrebleu")
    texts = written(30)
    few, many = (sum(self_bleu(texts, count)) for count in (3, 20))
    assert few < 0.8 * many
    assert self_bleu(["so it goes on and on"] * 4) == pytest.approx([1.0] * 4)
    assert self_bleu(["你好，世界真大"] * 2) == pytest.approx([1.0] * 2)
    assert self_bleu(["Same WORDS here now"] * 1 + ["same words here now"]) == pytest.approx([1.0] * 2)
    assert self_bleu([]) == self_bleu(["one text"]) == []
    assert self_bleu(["one", "one"]) == pytest.approx([1.0, 1.0])
    assert self_bleu(["one", "two"]) == [0.0, 0.0]


# --- MAUVE ------------------------------------------------------------------------------------------------------------


def test_mauve_is_1_for_one_distribution_less_for_two_and_warns_of_few_texts(caplog: pytest.LogCaptureFixture) -> None:
    pytest.importorskip("mauve")
    with caplog.at_level(logging.WARNING):
        same = mauve(written(80, seed=1), written(80, seed=2))
    assert "MAUVE of 80 and 80 texts" in caplog.text
    half = written(40, seed=1) + [text.replace("w", "v") for text in written(40, seed=4)]
    mixed = mauve(half, written(80, seed=2))
    other = mauve([text.replace("w", "v") for text in written(80, seed=1)], written(80, seed=2))
    assert same > 0.9 > mixed > other
    assert other < 0.1


def test_mauve_of_enough_texts_does_not_warn(caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("mauve")
    monkeypatch.setattr(module, "FEW", 20)
    with caplog.at_level(logging.WARNING):
        mauve(written(20, seed=1), written(20, seed=2))
    assert caplog.text == ""


def test_mauve_without_texts_is_none_and_of_one_point_is_1() -> None:
    assert mauve([], ["a"]) is mauve(["a"], []) is None
    pytest.importorskip("mauve")
    assert mauve(["the same"] * 3, ["the same"] * 5) == 1.0


def test_hashed_features_are_the_same_everywhere_and_linear_in_counts() -> None:
    one, two = hashed_features(["a b", "a b a b"])
    assert one.shape == (512,) and abs(one).sum() == 3  # a, b, "a b"
    assert two @ one > one @ one
    assert np.flatnonzero(hashed_features(["a"])[0]).tolist() == [0xE8B7BE43 % 512]  # the CRC-32 of "a"
    assert hashed_features(["a b", "\ud800"]).shape == (2, 512)


def test_hidden_features_are_those_of_the_last_token_whatever_the_batch() -> None:
    torch = pytest.importorskip("torch")
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(0)
    config = GPT2Config(vocab_size=300, n_positions=16, n_embd=8, n_layer=2, n_head=2, bos_token_id=0, eos_token_id=0)
    model = GPT2LMHeadModel(config).eval()
    fake = SimpleNamespace(
        model=model, device=torch.device("cpu"), context=16, name="tiny", encode=lambda text: list(text.encode())
    )
    texts = ["short", "a longer one", "and this is longer than what it sees", ""]
    features = hidden_features(texts, fake, batch_size=3)
    for text, row in zip(texts, features, strict=True):
        ids = torch.tensor([list((text or " ").encode())[:16]])
        with torch.no_grad():
            expected = model.transformer(ids).last_hidden_state[0, -1].numpy()
        assert row == pytest.approx(expected, abs=1e-5)


# --- Intervals --------------------------------------------------------------------------------------------------------


def test_the_bootstrap_interval_is_that_of_scipy() -> None:
    from scipy.stats import bootstrap

    values = np.random.default_rng(0).normal(3, 1, 60)
    theirs = bootstrap((values,), np.mean, method="percentile", n_resamples=4000, rng=1).confidence_interval
    assert bootstrap_interval(values, repeats=4000) == pytest.approx((theirs.low, theirs.high), abs=0.03)
    assert bootstrap_interval([1.0]) is bootstrap_interval([]) is None
    assert bootstrap_interval([2.0] * 5) == (2.0, 2.0)


def test_pseudo_values_of_a_mean_are_its_values() -> None:
    values = np.array([1.0, 4.0, 2.0, 9.0])
    without = [np.delete(values, i).mean() for i in range(4)]
    assert pseudo_values(values.mean(), without) == pytest.approx(values)


@pytest.mark.parametrize("name", ["distinct_1", "distinct_2", "zipf"])
def test_pseudo_values_are_of_the_figure_without_each_text(name: str) -> None:
    texts = [text.split() for text in written(12, 15, words=40)]
    figure = zipf_coefficient if name == "zipf" else lambda them: distinct_n(them, int(name[-1]))
    expected = pseudo_values(figure(texts), [figure(texts[:i] + texts[i + 1 :]) for i in range(12)])
    values = module._zipf_values(texts) if name == "zipf" else module._distinct_values(texts, int(name[-1]))
    assert values == pytest.approx(list(expected))


def test_intervals_hold_the_expected_figure_about_as_often_as_they_say() -> None:
    samples = [[text.split() for text in written(30, 15, words=80, seed=seed)] for seed in range(100)]
    expected = np.mean([distinct_n(texts, 1) for texts in samples])
    inside, naive = 0, 0
    for texts in samples:
        low, high = bootstrap_interval(module._distinct_values(texts, 1), repeats=200)
        inside += low <= expected <= high
        again = [distinct_n(random.Random(i).choices(texts, k=30), 1) for i in range(10)]
        naive += max(again) >= expected
    assert 88 <= inside <= 99
    assert naive < 20  # texts drawn twice: what a plain bootstrap of texts would say


# --- All of them ------------------------------------------------------------------------------------------------------


def test_all_figures_are_there_with_intervals_around_them() -> None:
    pytest.importorskip("sacrebleu")
    figures = diversity(written(25), repeats=50)
    for name in FIGURES[:-1]:
        assert figures[f"{name} low"] <= figures[name] <= figures[f"{name} high"], name
    assert figures["cut"] == figures["length"] == 30 and figures["used"] == 25 and figures["bleu_references"] == 20
    assert figures == diversity(written(25), repeats=50)
    assert "mauve" not in figures
    json.dumps(figures, allow_nan=False)


def test_human_like_text_differs_from_loops_as_holtzman_et_al_show() -> None:
    pytest.importorskip("sacrebleu")
    varied = diversity(written(20), repeats=20)
    loops = diversity([" ".join(["on and", *text.split()[:4]] * 6) for text in written(20)], repeats=20)
    assert loops["repetition_4"] > 0.5 > 0.05 > varied["repetition_4"]
    assert loops["distinct_2"] < varied["distinct_2"]
    assert loops["self_bleu"] > varied["self_bleu"]


def test_degenerate_texts_have_the_figures_that_the_module_states() -> None:
    pytest.importorskip("sacrebleu")
    nothing = diversity([], repeats=10)
    assert nothing["texts"] == nothing["cut"] == 0
    assert all(nothing[f"{name}{end}"] is None for name in FIGURES[:-1] for end in ("", " low", " high"))
    empty = diversity(["", " \n", ""], repeats=10)
    assert (empty["empty"], empty["length"], empty["used"], empty["distinct_1"]) == (3, 0, 0, None)
    one = diversity(["just one text of six"], repeats=10)
    assert (one["distinct_1"], one["repetition_4"], one["self_bleu"], one["bleu_references"]) == (1, 0, None, 0)
    assert one["distinct_1 low"] is one["length high"] is one["zipf low"] is None
    words = diversity(["yes", "no", "yes", ""], repeats=10)
    assert (words["distinct_1"], words["distinct_2"], words["repetition_4"]) == (2 / 3, None, None)
    assert words["self_bleu"] == pytest.approx(2 / 3)  # yes and yes are the same, no is like none
    assert (words["used"], words["empty"]) == (3, 1)
    same = diversity(["a a a a a"] * 3, repeats=10)
    assert (same["distinct_1"], same["zipf"], same["self_bleu"]) == (1 / 15, None, pytest.approx(1))
    for figures in (nothing, empty, one, words, same):
        json.dumps(figures, allow_nan=False)
        assert "–" in table({"texts": figures})


@given(texts=st.lists(st.text(alphabet="ab 你,", max_size=12), max_size=6), cut=st.integers(0, 6))
@settings(max_examples=40)
def test_no_texts_make_it_fail_or_leave_the_range(texts: list[str], cut: int) -> None:
    pytest.importorskip("sacrebleu")
    figures = diversity(texts, cut=cut, repeats=5)
    for name in ("distinct_1", "distinct_2", "distinct_3", "repetition_4", "self_bleu"):
        assert figures[name] is None or 0 <= figures[name] <= 1 + 1e-9
    json.dumps(figures, allow_nan=False)


def test_references_are_cut_like_the_texts() -> None:
    pytest.importorskip("mauve")
    texts, references = written(20, 30), [f"{text} something else follows" for text in written(20, 25, seed=1)]
    figures = diversity(texts, references=references, repeats=5)
    assert figures["cut"] == 28
    assert 0 < figures["mauve"] <= 1
    assert diversity(texts, cut=40, references=references, repeats=5)["mauve"] is None


def test_chinese_and_english_stories_of_one_kind_are_measured_alike() -> None:
    pytest.importorskip("sacrebleu")
    english = diversity(["the cat runs home now", "the dog runs home now"], repeats=10)
    chinese = diversity(["猫今天回家", "狗今天回家"], repeats=10)
    assert english["length"] == chinese["length"] == 5
    assert chinese["distinct_1"] == english["distinct_1"] == 0.6


# --- Command ----------------------------------------------------------------------------------------------------------


def test_the_command_compares_files_of_a_folder_on_equal_terms(capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("sacrebleu")
    Path("texts").mkdir()
    Path("texts/varied.txt").write_text("\n\n".join(written(12, 40)), encoding="utf-8")
    rows = [json.dumps({"text": "and on " * 15, "prompt": "p"}) for _ in range(8)]
    Path("texts/loops.jsonl").write_text("\n".join(rows), encoding="utf-8")
    Path("texts/notes.md").write_text("no text")
    assert cli("measure", "--data", "texts", "--run", "one") == 0
    printed = capsys.readouterr().out
    results = json.loads(Path("outputs/gpt_text_generation/one/results.json").read_text())
    metrics = results["metrics"]
    assert metrics["varied texts"] == metrics["loops texts"] == 8
    assert metrics["varied cut"] == metrics["loops cut"] == 30
    assert metrics["loops repetition_4"] > 0.8 > metrics["varied repetition_4"]
    assert metrics["loops distinct_1 low"] <= metrics["loops distinct_1"] == pytest.approx(2 / 240)
    assert "loops" in printed and "self_bleu" in printed and "of at least" not in printed
    assert results["seed"] == 0 and results["data"] == "texts"


def test_the_command_divides_a_file_by_a_key_and_measures_mauve(capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("mauve")
    rows = [{"strategy": name, "text": text} for name in ("greedy", "nucleus") for text in written(10, seed=len(name))]
    Path("samples.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    Path("human.txt").write_text("\n".join(written(10, seed=9)), encoding="utf-8")
    flags = ["--by", "strategy", "--references", "human.txt", "--count", "9", "--run", "two"]
    assert cli("measure", "--data", "samples.jsonl", *flags) == 0
    metrics = json.loads(Path("outputs/gpt_text_generation/two/results.json").read_text())["metrics"]
    assert metrics["greedy texts"] == metrics["nucleus texts"] == 9
    assert 0 < metrics["nucleus mauve"] <= 1
    assert "mauve" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--data", "bad.jsonl"], "Line 2 of bad.jsonl"),
        (["--data", "empty.txt"], "holds no text"),
        (["--data", "nowhere.txt"], "No such file"),
        (["--data", "builtin:poems"], "builtin:stories"),
        (["--data", "good.txt", "--count", "3"], "count must be at most 2, what good has. Got 3."),
        (["--data", "good.txt", "--cut", "-1"], "cut must be in [0, inf). Got -1."),
        (["--data", "good.txt", "--model", "builtin:stories"], "--references"),
        (["--data", "latin.txt"], "not UTF-8"),
        (["--data", "good.txt", "--cuts", "3"], "cuts"),
    ],
)
def test_wrong_input_is_one_clear_line(arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    Path("bad.jsonl").write_text('"fine"\n{"words": "none"}\n')
    Path("empty.txt").write_text("\n \n")
    Path("good.txt").write_text("one text\nanother\n")
    Path("latin.txt").write_bytes("é".encode("latin-1"))
    assert cli("measure", *arguments) in (1, 2)
    error = capsys.readouterr().err
    assert message in error and "Traceback" not in error


def test_groups_are_files_keys_or_both() -> None:
    Path("in").mkdir()
    Path("in/a.jsonl").write_text('{"system": "x", "text": ""}\n"plain"\n', encoding="utf-8")
    Path("in/b.txt").write_text("一行\n", encoding="utf-8")
    assert read_groups("in") == {"a x": [""], "a": ["plain"], "b": ["一行"]}
    assert read_groups("in/a.jsonl") == {"x": [""], "a": ["plain"]}
    Path("in/a.txt").write_text("more")
    assert set(read_groups("in")) == {"a.jsonl x", "a.jsonl", "a.txt", "b"}
    with pytest.raises(InputError, match="Line 1 of"):
        Path("one.jsonl").write_text('{"text": 3}')
        read_groups("one.jsonl")


def test_builtin_texts_are_the_held_out_ones() -> None:
    pytest.importorskip("gpt_text_generation.builtin.train_models", exc_type=ImportError)
    groups = read_groups("builtin:stories", count=5)
    assert len(groups["builtin:stories"]) == 5 and all(groups["builtin:stories"])


def test_wikipedia_follows_zipfs_law_and_repeats_itself_seldom() -> None:
    pytest.importorskip("sacrebleu")
    path = DATA / "wikitext2/valid.txt"
    if not path.exists():
        pytest.skip("needs ../shared/data/wikitext2")
    lines = [line for line in path.read_text(encoding="utf-8").split("\n") if len(line) > 400][:80]
    figures = diversity(lines, cut=60, repeats=50)
    assert 0.7 < figures["zipf"] < 1.2
    assert figures["repetition_4"] < 0.05
    assert 0.02 < figures["self_bleu"] < 0.5
