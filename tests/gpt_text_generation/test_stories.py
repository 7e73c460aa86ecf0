"""Stories keep to what they begin with, fit a small context, and held-out ones are new combinations."""

import hashlib
import os
import random
import re
import subprocess
import sys
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gpt_text_generation.builtin import stories
from gpt_text_generation.builtin.stories import (
    BOYS,
    CLOSING,
    FRIENDS,
    GIRLS,
    MODULE,
    NOUNS,
    PLACES,
    PROBLEMS,
    WEATHER,
    Story,
    check,
    count_choices,
    count_stories,
    prompts,
    split_of,
    story,
)
from shared.config import run_commands
from shared.errors import InputError

TEXT = """Title: The Lost Kite

Maya lived by the sea. Maya was a curious girl who loved her red kite.

One windy day, the kite was gone.

Maya found the kite. In the end, Maya was the happiest girl by the sea."""
HERS, HIS = {"she", "her", "hers", "herself"}, {"he", "him", "his", "himself"}


@pytest.fixture(scope="module")
def told() -> list[Story]:
    """Return stories of any split."""
    rng = random.Random(7)
    return [story(rng) for _ in range(1200)]


def words(text: str) -> list[str]:
    return re.findall(r"[\w-]+", text)


# --- Stories ----------------------------------------------------------------------------------------------------------


def test_name_and_place_are_there_to_the_end(told: list[Story]) -> None:
    for one in told:
        assert check(one.text, one.name, one.place), one.text
        first, *_, last = [part for part in one.text.split("\n\n") if not part.startswith("Title:")]
        assert one.name in first and one.place in first
        assert one.name in last and one.place in last


def test_every_problem_has_its_ways_out_and_all_are_told(told: list[Story]) -> None:
    assert len({problem.key for problem in PROBLEMS}) == len(PROBLEMS) >= 24
    ways = {problem.key: {way.key for way in problem.ways} for problem in PROBLEMS}
    seen = Counter((one.problem, one.resolution) for one in told)
    assert set(seen) == {(problem, way) for problem, its in ways.items() for way in its}
    assert max(seen.values()) < 5 * min(seen.values())


def test_pronouns_agree_with_the_name(told: list[Story]) -> None:
    kinds = Counter()
    for one in told:
        pronouns = set(words(one.text.lower())) & (HERS | HIS)
        assert pronouns <= HERS or pronouns <= HIS, one.text
        assert pronouns or one.resolution, one.text
        if one.name in GIRLS or one.name in BOYS:
            assert pronouns <= (HERS if one.name in GIRLS else HIS), one.text
            kinds[one.name in GIRLS] += bool(pronouns)
    assert min(kinds.values()) > 250


def test_the_weather_at_the_end_is_what_became_of_that_at_the_beginning(told: list[Story]) -> None:
    fixed = {problem.key: problem.weather for problem in PROBLEMS}
    cleared = 0
    for one in told:
        for weather, end in WEATHER.items():
            if f"{end}," in one.text:
                cleared += 1
                assert fixed[one.problem] == weather or f"{weather} " in one.text.split(end)[0], one.text
    assert cleared > 200


def test_the_thing_in_the_title_is_in_the_story(told: list[Story]) -> None:
    there = 0
    for one in told:
        for noun in NOUNS["any"]:
            if re.search(rf"\b{noun}\b", one.title):
                there += 1
                assert noun in one.text.split("\n\n", 1)[1].split("\n\n", 1)[1], one.text
    assert there > 300


def test_text_is_clean(told: list[Story]) -> None:
    for one in told:
        assert not re.search(r"[\[\]{}|<>]|  | ,| \.|\.\.|\n\n\n|,\?|!,|\?,", one.text), one.text
        assert not re.search(r"\b[Aa] [aeiou]|\b[Aa]n [^aeiouhAEIOU]", one.text), one.text
        assert not re.search(r"\b(\w+) \1\b", one.text.replace("jumped and jumped", "")), one.text
        body = one.text.split("\n\n")[-4:]
        assert len(body) == 4
        for paragraph in body:
            assert paragraph[0].isupper() or paragraph[0] == '"'
            assert paragraph.endswith((".", "!", '!"', '."')), paragraph
            assert paragraph.count('"') % 2 == 0
            assert not re.search(r"[.!?] [a-z]", paragraph), paragraph
        assert one.text.isascii()


def test_stories_are_short_and_of_many_kinds(told: list[Story]) -> None:
    lengths = sorted(len(words(one.text)) for one in told)
    assert lengths[0] >= 75 and lengths[-1] <= 180
    characters = sorted(len(one.text) for one in told)
    assert characters[len(characters) // 2] <= 660 and characters[-1] <= 800
    assert len({one.text for one in told}) == len(told)
    assert len({one.name for one in told}) > 400 and len({one.place for one in told}) > 300
    assert len({one.text.split("\n\n")[-1].split(". ")[-1] for one in told}) > 0.9 * len(told)


def test_stories_fit_a_context_of_256_tokens(told: list[Story]) -> None:
    tokenizers = pytest.importorskip("tokenizers")
    bpe = tokenizers.Tokenizer(tokenizers.models.BPE())
    bpe.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    alphabet = tokenizers.pre_tokenizers.ByteLevel.alphabet()
    trainer = tokenizers.trainers.BpeTrainer(vocab_size=1024, show_progress=False, initial_alphabet=alphabet)
    bpe.train_from_iterator(list(stories.stories(1500)), trainer)
    sizes = sorted(len(bpe.encode(one.text).ids) for one in told)
    assert sizes[len(sizes) * 95 // 100] <= 240
    assert sizes[len(sizes) * 99 // 100] <= 250


def test_names_and_places_are_told_apart() -> None:
    assert len(set(GIRLS + BOYS)) == len(GIRLS + BOYS) >= 180
    assert not set(FRIENDS) & set(GIRLS + BOYS)
    assert len({place for _, place in PLACES}) == len(PLACES) > 55


# --- Splits and prompts -----------------------------------------------------------------------------------------------


def test_combinations_of_the_splits_are_disjoint() -> None:
    found = {}
    for split in ("train", "validation", "test"):
        its = list(stories._told(split, 300, 0))  # type: ignore[arg-type]
        assert all(split_of(one.name, one.place, one.problem) == split for one in its)
        found[split] = {(one.name, one.place, one.problem) for one in its}
    assert not found["train"] & found["test"] and not found["train"] & found["validation"]
    assert {problem for _, _, problem in found["test"]} == {problem.key for problem in PROBLEMS}


def test_a_twentieth_of_combinations_is_tested(told: list[Story]) -> None:
    splits = Counter(split_of(one.name, one.place, one.problem) for one in told)
    assert splits["test"] / len(told) == pytest.approx(0.05, abs=0.02)
    assert splits["validation"] / len(told) == pytest.approx(0.05, abs=0.02)


def test_prompts_are_the_beginnings_of_the_stories_of_their_split() -> None:
    texts = list(stories.stories(200, 4, "test"))
    its = list(prompts("test", 200, 4))
    assert len({one.text for one in its}) == 200
    for one, text in zip(its, texts, strict=True):
        assert text.startswith(one.text) and one.text.endswith(".")
        assert one.name in one.text and one.place in one.text
        assert text[len(one.text)] == " "
        assert not check(one.text, one.name, one.place)
    titled = [one.text for one in its if one.text.startswith("Title: ")]
    assert 0.7 < len(titled) / len(its) < 0.95
    assert all(text.count("\n\n") == 1 for text in titled)
    assert any(text.split("\n")[0].istitle() for text in titled)
    assert any(re.match(r"Title: (a|the) [a-z]", text) for text in titled)


def test_the_same_seed_tells_the_same_stories_in_every_process() -> None:
    here = hashlib.sha256("".join(stories.stories(50, 3, "test")).encode()).hexdigest()
    code = (
        "import hashlib; from gpt_text_generation.builtin.stories import stories\n"
        "print(hashlib.sha256(''.join(stories(50, 3, 'test')).encode()).hexdigest())"
    )
    for hash_seed in ("1", "2"):
        environment = os.environ | {"PYTHONHASHSEED": hash_seed}
        done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
        assert done.stdout.strip() == here
    assert list(stories.stories(5, 1)) != list(stories.stories(5, 2))


# --- The check of generated stories -----------------------------------------------------------------------------------


def test_check_wants_name_and_place_in_the_last_paragraph() -> None:
    assert check(TEXT, "Maya", "the sea")
    before, last = TEXT.rsplit("\n\n", 1)
    assert not check(f"{before}\n\n{last.replace('Maya', 'She')}", "Maya", "the sea")
    assert not check(f"{before}\n\n{last.replace('the sea', 'the lake')}", "Maya", "the sea")
    assert not check(f"{before}\n\n{last.replace('Maya', 'Mayaro')}", "Maya", "the sea")
    assert not check(f"{before}\n\n{last.replace('the sea', 'the seaside')}", "Maya", "the sea")
    assert not check(TEXT + "\n\nThe end.", "Maya", "the sea")
    assert check(TEXT + "\n\n", "Maya", "the sea")


def test_check_wants_nobody_else_to_take_over() -> None:
    assert not check(TEXT.replace("Maya found", "Clara found"), "Maya", "the sea")
    assert check(TEXT.replace("Maya found", "Tom found"), "Maya", "the sea")  # a friend's name is no other hero's
    assert check(TEXT.replace("Maya", "Anna Clara"), "Anna Clara", "the sea")
    assert check(TEXT.replace("Maya", "X. (2)"), "X. (2)", "the sea")


def test_check_wants_a_story() -> None:
    assert not check("", "Maya", "the sea")
    assert not check("Maya lived by the sea.", "Maya", "the sea")
    assert not check("Title: Maya by the sea\n\nMaya lived by the sea.", "Maya", "the sea")


# --- The grammar ------------------------------------------------------------------------------------------------------


def readings(template: str) -> int:
    """Count by writing every choice out: the first bracket without brackets inside becomes each of its alternatives."""
    match = re.search(r"\[([^\[\]]*)\]", template)
    if not match:
        return 1
    numbers = [f"{match.start()}-{i}" for i, _ in enumerate(match[1].split("|"))]
    return sum(readings(template[: match.start()] + f"<{n}>" + template[match.end() :]) for n in numbers)


@pytest.mark.parametrize(("template", "ways"), [("a", 1), ("[a|b]", 2), ("[a|b] [c|d|e]", 6), ("[a|[b|c]x|d][|e]", 8)])
def test_choices_are_counted(template: str, ways: int) -> None:
    assert count_choices(template) == ways
    drawn = {stories._chosen(template, random.Random(seed)) for seed in range(300)}
    assert len(drawn) == ways


@given(template=st.lists(st.sampled_from(["a", "[b|c]", "[d|e|]", "x"]), max_size=6).map("".join))
@settings(max_examples=60, deadline=None, derandomize=True)
def test_choices_are_those_that_can_be_written_out(template: str) -> None:
    assert count_choices(template) == readings(template)


def test_there_are_as_many_stories_as_the_module_says() -> None:
    assert "10^30" in (stories.__doc__ or "")
    assert 10**30 < count_stories() < 10**40
    assert count_choices(CLOSING) >= 20


def test_every_template_is_well_formed() -> None:
    slots = stories._slots("girl", PROBLEMS[0], False, random.Random(0)).keys() | {"name", "at"}
    for problem in PROBLEMS:
        parts = [problem.title, problem.trouble, problem.topic]
        for template in parts + [part for way in problem.ways for part in (way.turn, way.end)]:
            assert template.count("[") == template.count("]")
            outside = template
            while (less := re.sub(r"\[[^\[\]]*\]", "", outside)) != outside:
                outside = less
            assert "|" not in outside, template
            assert set(re.findall(r"\{(\w+)\}", template)) <= slots, template
        for way in problem.ways:
            assert "{name}" in way.turn + way.end


# --- Bad input --------------------------------------------------------------------------------------------------------


def test_unknown_splits_and_negative_counts_are_refused() -> None:
    for make in (lambda: stories.stories(1, 0, "dev"), lambda: prompts("dev", 1)):  # type: ignore[arg-type]
        with pytest.raises(InputError, match="split must be one of train, validation, test. Got 'dev'"):
            make()
    with pytest.raises(InputError, match=r"count must be in \[0, inf\). Got -1"):
        stories.stories(-1)
    assert list(stories.stories(0)) == []


def test_show_prints_stories(capsys: pytest.CaptureFixture[str]) -> None:
    commands = {"show": stories.show}
    with pytest.raises(SystemExit) as done:
        run_commands(commands, module=MODULE, argv=["show", "--split", "validation", "--count", "2"])
    assert done.value.code == 0
    assert capsys.readouterr().out.count("\n\n\n") == 2
    with pytest.raises(SystemExit) as failed:
        run_commands(commands, module=MODULE, argv=["show", "--count", "0"])
    assert failed.value.code == 2
