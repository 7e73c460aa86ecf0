"""Sections keep their length and names, say nothing twice, end with a sentence, and can be edited and redone."""

import io
import json
import os
import random
import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from docx import Document
from hypothesis import given, settings
from hypothesis import strategies as st

from gpt_text_generation import creative_writing_assistant
from gpt_text_generation.creative_writing_assistant import (
    LANGUAGES,
    MODULE,
    REPEATED,
    STALLS,
    TOLERANCE,
    Article,
    Brief,
    Draft,
    Repetition,
    Section,
    WritingAssistant,
    ends_whole,
    figures,
    frame,
    names_kept,
    openings,
    parse_outline,
    repetition,
    sentences,
    take_sentence,
    words,
    write,
)
from gpt_text_generation.text_generator import Generation, Settings
from shared.config import run_commands
from shared.errors import InputError

RUNS = Path("outputs/gpt_text_generation")
DATA = Path(os.environ.get("ROADMAP_DATA", Path(__file__).parents[2] / "../shared/data"))
STORIES = DATA / "models" / "stories260K" / "hf"
BRIEF = Brief("a lost kite", names=["Maya", "Tom"], words=120)
ENDS = ("nem", "dal", "rik", "tos", "wun", "bel", "gam", "fip", "hod", "jul", "kes", "lor")
NOUNS = [first + end for first in ("ka", "lo", "mi", "ru", "ta", "so", "ve", "pi") for end in ENDS]
VERBS = [noun + "ed" for noun in NOUNS[::2]]


def tale(seed: int, count: int = 40, names: Sequence[str] = ("Maya", "Tom"), first: str = "") -> str:
    """Return sentences of eight words, hardly any of them alike."""
    rng = random.Random(seed)
    made = [f"{rng.choice(names)} {rng.choice(VERBS)} a {rng.choice(NOUNS)} and {rng.choice(VERBS)} the "
            f"{rng.choice(NOUNS)}{rng.choice('!.')}" for _ in range(count)]  # fmt: skip
    made[0] = first + made[0] if first else made[0]
    return " " + " ".join(made)


def chinese_tale(seed: int) -> str:
    rng = random.Random(seed)
    signs = [chr(0x4E00 + i) for i in range(900)]
    return "".join("".join(rng.sample(signs, 9)) + "小雨。" for _ in range(60))


class Fake:
    """A generator of the same shape as the real one; a token is a word, or a character of Chinese."""

    name = "fake"
    batch_size = 4

    def __init__(
        self, reply: Callable[[str, int], str] | None = None, *, told: bool = False, context: int = 10**6
    ) -> None:
        self.reply = reply or (lambda prompt, seed: tale(seed))
        self.has_chat_template, self.told = told, told
        self.prompts: list[str] = []
        self.seeds: list[int] = []
        self.settings: list[Settings] = []
        self.language_model = SimpleNamespace(context=context, encode=words)

    def chat(self, instruction: str, system: str = "") -> str:
        return f"<{system}>{instruction}</>\n" if self.told else f"{system}\n\n{instruction}" if system else instruction

    def _text(self, prompt: str, settings: Settings, seed: int) -> str:
        room = self.language_model.context - len(words(prompt))
        assert 1 <= settings.max_new_tokens <= room, "what is asked for fits the context"
        self.prompts.append(prompt)
        self.seeds.append(seed)
        self.settings.append(settings)
        text = self.reply(prompt, seed)
        found = list(re.finditer(r"\w+", text, re.ASCII)) or list(re.finditer(r"\w", text))
        if len(found) > settings.max_new_tokens:
            text = text[: found[settings.max_new_tokens - 1].end()]
        for stop in settings.stop:
            text = text.partition(stop)[0]
        return text

    def generate(self, prompts: Sequence[str], settings: Settings) -> list[Generation]:
        texts = [self._text(prompt, settings, settings.seed + row) for row, prompt in enumerate(prompts)]
        return [Generation(prompt, text, [], [], "end") for prompt, text in zip(prompts, texts, strict=True)]

    def stream(self, prompt: str, settings: Settings) -> Iterator[str]:
        text = self._text(prompt, settings, settings.seed)
        for start in range(0, len(text), 3):
            yield text[start : start + 3]


def assistant(fake: Fake, **options: Any) -> WritingAssistant:
    return WritingAssistant(fake, **options)  # type: ignore[arg-type]


def article(*texts: str, brief: Brief = BRIEF, titles: Sequence[str] = ("Here", "There", "Home")) -> Article:
    sections = [Section(title) for title in titles]
    for section, text in zip(sections, texts, strict=False):
        section.text = text
    return Article(brief, brief.topic[0].upper() + brief.topic[1:], sections)


# --- Words and sentences ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("One. Two! Three? Four", ["One.", "Two!", "Three?", "Four"]),
        ("Mr. Brown met Dr. J. Smith. They ate 3.5 pies.", ["Mr. Brown met Dr. J. Smith.", "They ate 3.5 pies."]),
        ("“Stop!” she said. “Now.” He ran.", ["“Stop!” she said.", "“Now.”", "He ran."]),
        ('"Why...?" "Because."', ['"Why...?"', '"Because."']),
        ("你好。“走吧！”他说……好。", ["你好。", "“走吧！”", "他说……", "好。"]),
        ("A title\nA line\n\nA paragraph. Its end.", ["A title", "A line", "A paragraph.", "Its end."]),
        ("", []), (" \n ", []),
    ],
)  # fmt: skip
def test_texts_are_divided_into_sentences(text: str, found: list[str]) -> None:
    assert sentences(text) == found


@given(st.text(alphabet='aB .!?…\n"”。！」早Mr', max_size=60))
def test_sentences_lose_nothing_and_come_the_same_in_pieces(text: str) -> None:
    assert re.sub(r"\s", "", "".join(sentences(text))) == re.sub(r"\s", "", text)
    found, buffer = [], ""
    for letter in text.strip() + "\n":
        buffer += letter
        sentence, rest = take_sentence(buffer)
        while sentence:
            found.append(sentence.strip())
            buffer = rest
            sentence, rest = take_sentence(buffer)
    assert found == sentences(text)


def test_words_are_counted_in_both_languages() -> None:
    assert words("Maya's well-made kite, 你好 3 times!") == ["maya's", "well-made", "kite", "你", "好", "3", "times"]
    assert words(" … ") == []


def test_repetition_is_the_share_of_grams_that_were_there() -> None:
    its = Repetition("The dog ran down the hill.")
    assert its.share("The dog ran down the hill!") == 1
    assert its.share("The dog ran down to me.") == pytest.approx(1 / 3)
    assert its.share("Yes.") == 0 and its.share("") == 0 and Repetition("Yes. No.").share("No!") == 1
    assert Repetition().share("and so and so and so and so") == pytest.approx(3 / 5)
    assert repetition("a b c d. a b c d.") == pytest.approx(1 / 5) and repetition("") == 0
    assert Repetition("小雨跑到海边。").share("小雨跑到海边！") == 1


def test_names_are_found_as_words_of_their_own() -> None:
    assert names_kept("Maya's kite. TOM ran.", ["Maya", "Tom"]) == 1
    assert names_kept("Mayas and tomatoes", ["Maya", "Tom"]) == 0
    assert names_kept("那天小雨来了", ["小雨", "阿明"]) == 0.5
    assert names_kept("anything", []) == 1


# --- Outlines ---------------------------------------------------------------------------------------------------------


def test_outlines_are_read_from_lists() -> None:
    text = "Here you are:\n1. **The Storm**\n2) “Home”\n- At sea\n\n3. The storm\n4. " + "long " * 13 + "\nbye\n"
    assert parse_outline(text) == ["The Storm", "Home", "At sea"]
    assert parse_outline("1、开始\n二、寻找风筝\n第三章：结局\n") == ["开始", "寻找风筝", "结局"]
    assert parse_outline("No list at all.") == []


@given(st.sampled_from(list(LANGUAGES)), st.integers(1, 50))
def test_a_frame_has_as_many_different_titles_as_it_must(language: Any, sections: int) -> None:
    titles = frame(language, sections)
    assert len(titles) == len(set(titles)) == sections
    assert titles[0].startswith(LANGUAGES[language].frame[0])
    assert sections == 1 or titles[-1].startswith(LANGUAGES[language].frame[-1])


def test_a_model_that_is_told_plans_and_another_gets_a_frame() -> None:
    told = Fake(lambda prompt, seed: "1. Wind\n2. Search\n3. Rain\n4. Home\n", told=True)
    made = assistant(told).outline(BRIEF, 3, seed=5)
    assert [its.title for its in made.sections] == ["Wind", "Search", "Rain"] and made.outline_by == "model"
    assert {its.seed for its in made.sections} == {5} and made.title == "A lost kite"
    assert all(word in told.prompts[0] for word in ("a lost kite", "3 sections", "Maya, Tom", "120 words", "vivid"))
    base = Fake(lambda prompt, seed: " wind\n2. search\n3. rain\n\nAnd 4. so on")
    assert [its.title for its in assistant(base).outline(BRIEF, 3).sections] == ["wind", "search", "rain"]
    assert base.prompts[0].endswith("\n1.")
    framed = assistant(Fake()).outline(BRIEF, 3)
    assert [its.title for its in framed.sections] == frame("en", 3) and framed.outline_by == "frame"


# --- Sections ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("told", [True, False])
def test_a_stream_is_the_section(told: bool) -> None:
    made, same = article(), article()
    pieces = list(assistant(Fake(told=told)).stream_section(made, 0))
    assert len(pieces) > 3 and "".join(pieces) == made.sections[0].text
    assistant(Fake(told=told), attempts=1).write_section(same, 0)
    assert same == made
    before = article()
    stream = assistant(Fake(told=told)).stream_section(before, 0)
    next(stream)
    stream.close()  # type: ignore[attr-defined]
    assert before == article(), "who leaves a stream leaves the article as it is"


@given(wanted=st.integers(20, 200), seed=st.integers(0, 99), told=st.booleans())
@settings(max_examples=40)
def test_a_section_has_its_length_and_ends_with_a_sentence(wanted: int, seed: int, told: bool) -> None:
    made = article(brief=Brief("a lost kite", names=["Maya"], words=3 * wanted))
    section = assistant(Fake(told=told)).write_section(made, 1, seed)
    assert abs(len(words(section.text)) - wanted) <= 6, "half a sentence, and the first words of a paragraph"
    assert ends_whole(section.text)
    assert repetition(section.text) < 0.2
    assert all(ends_whole(sentence) for sentence in sentences(section.text))


def test_a_section_is_redone_with_another_seed_while_the_others_stay() -> None:
    made = article()
    writer = assistant(Fake())
    for number in range(3):
        writer.write_section(made, number)
    before = [section.text for section in made.sections]
    again = writer.write_section(made, 1)
    assert again.seed == 1 and again.text != before[1] and again.title == "There"
    assert [made.sections[0].text, made.sections[2].text] == [before[0], before[2]]
    assert writer.write_section(made, 1, seed=0).text == before[1], "the same seed writes the same"


def test_prompts_follow_an_edited_outline_and_remember_what_was() -> None:
    texts = (" ".join(f"Sentence number {i} of the first part." for i in range(20)), "")
    told = Fake(told=True)
    made = article(*texts)
    made.sections[1].title = "The lighthouse"
    assistant(told).write_section(made, 1)
    prompt = told.prompts[0]
    assert 'section 2, "The lighthouse"' in prompt and "2. The lighthouse\n3. Home" in prompt and "Maya, Tom" in prompt
    assert "number 14 of" in prompt and "number 13 of" not in prompt
    base = Fake()
    assistant(base).write_section(made, 1)
    assert base.prompts[0] == f"Title: A lost kite\n\n{texts[0]}\n\n"  # it goes on with what stands there
    less = Fake(context=180)
    assistant(less).write_section(article(*texts), 1)
    assert "Sentence number 0 of" in less.prompts[0] and "number 19 of" in less.prompts[0]
    assert "number 1 of" not in less.prompts[0]
    brief = Fake(lambda prompt, seed: tale(seed, 1) if prompt.endswith("\n\n") else tale(seed, 6))
    made = article(*texts)
    assistant(brief, attempts=1).write_section(made, 1)
    assert brief.prompts[1].endswith(".\n\nThen Maya") and "\n\nThen Maya" in made.sections[1].text
    first = Fake()
    assistant(first).write_section(article(), 0)
    assert first.prompts[0] == "Title: A lost kite\n\nMaya and Tom"


def test_every_part_of_a_long_section_goes_on_from_what_there_is() -> None:
    told = Fake(lambda prompt, seed: tale(seed, 3), told=True)
    made = article()
    section = assistant(told, attempts=1).write_section(made, 0)
    assert len(told.prompts) >= 2 and len(set(told.seeds)) == len(told.seeds)
    head, _, begun = told.prompts[-1].partition("</>\n")
    assert begun and section.text.startswith(begun) and head == told.prompts[0].partition("</>\n")[0]


def test_what_was_said_is_not_said_again() -> None:
    def stutters(prompt: str, seed: int) -> str:
        return tale(seed, 2) + " The same old sentence comes back again." * 9

    for told in (True, False):
        made = article("The same old sentence comes back again. And more.")
        section = assistant(Fake(stutters, told=told), attempts=1).write_section(made, 1)
        assert "same old sentence" not in section.text and section.dropped >= 2
        assert abs(len(words(section.text)) - 40) <= 8
    loop = Fake(lambda prompt, seed: " It is so very, very" + " good and it is so" * 30 + ".")
    with pytest.raises(InputError, match="wrote no whole sentence for 'There'"):
        assistant(loop).write_section(article(), 1)
    assert len(loop.prompts) == 3 * STALLS, "attempts and rounds are bounded"


def test_the_best_of_several_attempts_is_kept() -> None:
    def improves(prompt: str, seed: int) -> str:
        return tale(seed, names=["Somebody", "Maya", "Tom"] if seed // 1000 % 1000 == 2 else ["Somebody"])

    made = article()
    section = assistant(Fake(improves, told=True), attempts=3).write_section(made, 0)
    assert section.names_kept == 1 and section.attempts == 3 and section.score == pytest.approx(1)
    one = assistant(Fake(improves, told=True), attempts=1).write_section(article(), 0)
    assert one.names_kept == 0 and one.score == pytest.approx(2 / 3)
    good = assistant(Fake(told=True), attempts=3).write_section(article(), 0)
    assert good.attempts == 1, "there is nothing left to wish for"


def test_the_score_is_what_its_docstring_says() -> None:
    draft = Draft(100, ["Maya", "Tom"], text="word " * 50, own="Maya", taken=3, dropped=1)
    assert draft.length == 0.5 and draft.score == pytest.approx((0.5 + 0.5 + 0.75) / 3)
    assert Draft(100, [], text="word " * 119, taken=1).score == 1
    assert Draft(100, [], text="word " * 200, taken=1).length == 0.5
    assert Draft(100, []).score == 0


def test_names_in_given_words_are_not_the_models() -> None:
    anonymous = Fake(lambda prompt, seed: tale(seed, names=["Somebody"]))
    section = assistant(anonymous).write_section(article(), 0)
    assert section.text.startswith("Maya and Tom") and section.names_kept == 0


def test_a_model_with_little_to_say_is_left_in_peace() -> None:
    brief = Fake(lambda prompt, seed: " Maya and Tom went home." if "home" not in prompt.lower() else "", told=True)
    section = assistant(brief).write_section(article(titles=["Here", "There"]), 0)
    assert section.text == "Maya and Tom went home." and section.score < 0.8
    assert len(brief.prompts) == 3 * (1 + STALLS)


def test_headings_and_unfinished_sentences_are_left_out() -> None:
    fake = Fake(
        lambda prompt, seed: f"# There\n**Section 2: There**\nThere\nSection 2: There\n{tale(seed, 9).strip()} And",
        told=True,
    )
    section = assistant(fake, attempts=1).write_section(article(), 1)
    assert "There" not in section.text and "#" not in section.text and not section.text.endswith("And")


@pytest.mark.parametrize("told", [True, False])
def test_a_short_context_is_never_overrun(told: bool) -> None:
    made = article(tale(1, 60).strip(), brief=Brief("a lost kite", names=["Maya"], words=450))
    fake = Fake(told=told, context=200)  # Fake itself checks that each request fits
    section = assistant(fake, attempts=1).write_section(made, 1)
    assert abs(len(words(section.text)) - 150) <= TOLERANCE * 150
    with pytest.raises(InputError, match="leaves no room in the context of fake: 40 tokens"):
        assistant(Fake(told=told, context=40)).write_section(article(brief=Brief("far " * 90)), 0)


def test_an_article_can_be_chinese() -> None:
    brief = Brief("丢失的风筝", names=["小雨"], words=240, language="zh")
    for told in (True, False):
        fake = Fake(lambda prompt, seed: chinese_tale(seed), told=told)
        writer = assistant(fake)
        made = writer.outline(brief, 2)
        assert [its.title for its in made.sections] == ["开始", "结局"] and made.title == "丢失的风筝"
        for number in range(2):
            writer.write_section(made, number)
        assert not re.search(r"[A-Za-z]", "".join(fake.prompts).replace("1.", ""))
        assert figures(made)["sections_within_tolerance"] == 1 and figures(made)["names_kept"] == 1
        assert told or made.sections[0].text.startswith("小雨")


def test_openings_differ() -> None:
    made = assistant(Fake()).openings(Brief("a lost kite", names=["Maya"], words=40), 5, seed=3)
    assert len(set(made)) == 5 and all(one.startswith("Maya") for one in made)
    for i, one in enumerate(made):
        assert abs(len(words(one)) - 40) <= 4 and ends_whole(one)
        assert Repetition("\n".join(made[:i])).share(one) < REPEATED
    assert made == assistant(Fake()).openings(Brief("a lost kite", names=["Maya"], words=40), 5, seed=3)
    told = Fake(lambda prompt, seed: "It was dark. It was cold, and nobody knew why.\n\nThe next paragraph.", told=True)
    assert assistant(told).openings(Brief("a lost kite", words=40), 3) == [
        "It was dark. It was cold, and nobody knew why."
    ]
    assert len(told.prompts) == 12, "four rounds, and no more"


def test_what_can_not_be_written_is_told() -> None:
    for sure in (Settings("greedy"), Settings("beam_search")):
        with pytest.raises(InputError, match="writes the same text with every seed"):
            assistant(Fake(), settings=sure)
    for wrong, message in [({"topic": " "}, "topic must not be empty"), ({"words": 3}, "words must be in"),
                           ({"names": [""]}, "names must be names"), ({"language": "fr"}, "language must be one of"),
                           ({"style": None}, "style must be text")]:  # fmt: skip
        with pytest.raises(InputError, match=message):
            Brief(**{"topic": "kites", **wrong})


# --- State and export -------------------------------------------------------------------------------------------------

TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)


@given(titles=st.lists(TEXT, min_size=1, max_size=3), texts=st.lists(TEXT, max_size=3))
@settings(max_examples=30)
def test_an_article_is_read_as_it_was_saved(titles: list[str], texts: list[str], tmp_path_factory: Any) -> None:
    path = tmp_path_factory.getbasetemp() / "article.json"
    made = article(*texts, titles=titles)
    made.save(path)
    assert Article.load(path) == made


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"sections": []}, "there must be a section"), ({"sections": [{"titel": "x"}]}, "titel"),
        ({"brief": {}}, "topic"),
        ({"sections": [{"title": 3}]}, "must be text"), ({"sections": [{"title": "x", "seed": -1}]}, "seed must be"),
        ({"sections": [{"title": "x", "seed": "1"}]}, "seed must be"),
        ({"brief": {"topic": "x", "words": 1}}, "words must"),
        ({"sections": 3}, "is no article"), ({"brief": None}, "is no article"), ({"extra": 1}, "extra"),
    ],
)  # fmt: skip
def test_a_file_that_is_no_article_is_told(change: dict[str, Any], message: str, tmp_path: Path) -> None:
    path = tmp_path / "article.json"
    article().save(path)
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
    with pytest.raises(InputError, match=message):
        Article.load(path)
    path.write_text("{")
    with pytest.raises(InputError, match="is no article of this assistant"):
        Article.load(path)


def test_an_article_is_exported() -> None:
    made = article("One.\n\nTwo \x00\x0b<早>.", "", titles=["Here\nand now", "There"])
    assert made.to_markdown() == "# A lost kite\n\n## Here and now\n\nOne.\n\nTwo \x00\x0b<早>.\n\n## There\n"
    document = Document(io.BytesIO(made.to_docx()))
    assert [(its.style.name, its.text) for its in document.paragraphs] == [
        ("Title", "A lost kite"), ("Heading 1", "Here and now"), ("Normal", "One."), ("Normal", "Two <早>."),
        ("Heading 1", "There"),
    ]  # fmt: skip
    assert document.core_properties.title == "A lost kite"


def test_figures_are_of_the_article() -> None:
    made = article("Maya ran home now. " * 10, "Tom ran. " * 40, brief=Brief("kites", words=80), titles=["a", "b"])
    made.sections[0].names_kept = 1.0
    assert figures(made) == {
        "words": 120, "words_wanted": 80, "sections": 2, "sections_within_tolerance": 0.5, "names_kept": 0.5,
        "repeated_4_grams": pytest.approx(1 - (4 + 2 + 3) / 117), "sentences_dropped": 0, "score": 0,
    }  # fmt: skip


# --- Commands ---------------------------------------------------------------------------------------------------------


def run(*arguments: str) -> int:
    with pytest.raises(SystemExit) as end:
        run_commands({"write": write, "openings": openings}, module=MODULE, argv=arguments, extra="generation")
    return int(end.value.code or 0)


@pytest.fixture
def fake_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Fake:
    monkeypatch.chdir(tmp_path)
    fake = Fake()
    monkeypatch.setattr(creative_writing_assistant, "TextGenerator", lambda *_, **__: fake)
    return fake


def test_an_article_is_written_edited_and_redone_by_commands(
    fake_model: Fake, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("write", "--names", "Maya,Tom", "--words", "120", "--run", "first") == 0
    first = Article.load(RUNS / "first" / "article.json")
    out = capsys.readouterr().out
    assert out == first.to_markdown() == (RUNS / "first" / "article.md").read_text(encoding="utf-8")
    assert Document(str(RUNS / "first" / "article.docx")).paragraphs[0].text == "A lost kite"
    metrics = json.loads((RUNS / "first" / "results.json").read_text())["metrics"]
    assert metrics == figures(first) and metrics["sections_within_tolerance"] == 1 and metrics["names_kept"] == 1
    first.sections[0].text = "My own words about Maya."
    first.sections.insert(1, Section("A new part"))
    first.save(Path("edited.json"))
    assert run("write", "--article", "edited.json", "--regenerate", "4", "--run", "second") == 0
    second = Article.load(RUNS / "second" / "article.json")
    assert second.sections[0].text == "My own words about Maya." and second.sections[1].text
    assert second.sections[2] == first.sections[2]
    assert second.sections[3].text != first.sections[3].text and second.sections[3].seed == 1
    assert run("write", "--outline", "Wind,Home", "--run", "third") == 0
    third = Article.load(RUNS / "third" / "article.json")
    assert [its.title for its in third.sections] == ["Wind", "Home"] and third.outline_by == "user"


def test_what_was_interrupted_goes_on(fake_model: Fake, capsys: pytest.CaptureFixture[str]) -> None:
    reply, before = fake_model.reply, 0

    def interrupt(prompt: str, seed: int) -> str:
        if prompt.count("\n\n") == 3 and prompt.endswith("\n\n"):  # after title and two sections
            raise KeyboardInterrupt
        return reply(prompt, seed)

    fake_model.reply = interrupt
    assert run("write", "--run", "first", "--attempts", "1") == 130
    path = RUNS / "first" / "article.json"
    assert f"2 sections are written; --article {path} goes on" in capsys.readouterr().err
    half = Article.load(path)
    assert [bool(section.text) for section in half.sections] == [True, True, False]
    fake_model.reply, before = reply, len(fake_model.prompts)
    assert run("write", "--article", str(path), "--run", "second", "--attempts", "1") == 0
    whole = Article.load(RUNS / "second" / "article.json")
    assert whole.sections[:2] == half.sections[:2] and whole.sections[2].text
    assert fake_model.prompts[before].endswith(f"{half.sections[1].text}\n\n")


def test_openings_are_written_by_a_command(fake_model: Fake, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("openings", "--count", "2", "--run", "first") == 0
    out = capsys.readouterr().out
    assert re.match(r"1\. Maya .*\n\n2\. Maya .*\n$", out) and (RUNS / "first" / "openings.md").read_text() == out
    metrics = json.loads((RUNS / "first" / "results.json").read_text())["metrics"]
    assert metrics["openings"] == 2 and metrics["names_kept"] == 1 and 40 <= metrics["words"] <= 60
    fake_model.reply = lambda prompt, seed: tale(seed, names=["Somebody"])
    for names, kept in (("Maya", 0), ("Maya,Somebody", 0.5)):  # the first of them is put there, not written
        assert run("openings", "--count", "2", "--names", names, "--run", names) == 0
        assert json.loads((RUNS / names / "results.json").read_text())["metrics"]["names_kept"] == kept


def test_bad_input_is_one_line(fake_model: Fake, capsys: pytest.CaptureFixture[str]) -> None:
    article().save(Path("article.json"))
    for arguments, status, message in [
        (("--topic", ""), 2, "topic must not be empty"), (("--words", "5"), 2, "words must be in"),
        (("--sections", "0"), 2, "sections must be in"),
        (("--strategy", "greedy"), 2, "strategy must be one that draws"),
        (("--temperature", "0"), 2, "temperature"), (("--regenerate", "1"), 2, "regenerate needs the article"),
        (("--article", "nothing.json"), 1, "No such file"), (("--language", "fr"), 2, "language"),
        (("--article", "article.json", "--regenerate", "4"), 2, r"must name sections in [1, 3]"),
        (("--attempts", "0"), 2, "attempts must be in"), (("--seed", "-1"), 2, "seed must be in"),
    ]:  # fmt: skip
        assert run("write", *arguments) == status, arguments
        err = capsys.readouterr().err
        assert message in err and "Traceback" not in err
    fake_model.reply = lambda prompt, seed: " no end" * 500
    assert run("openings") == 2
    assert "wrote no whole sentence" in capsys.readouterr().err


@pytest.mark.skipif(not STORIES.exists(), reason="the data folder has no pretrained model")
def test_a_pretrained_model_writes_a_story(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    arguments = ("--model", str(STORIES), "--device", "cpu", "--names", "Lily", "--topic", "a red ball")
    assert run("write", *arguments, "--words", "60", "--sections", "2", "--attempts", "1", "--run", "story") == 0
    metrics = json.loads((RUNS / "story" / "results.json").read_text())["metrics"]
    assert metrics["sections_within_tolerance"] == 1 and metrics["repeated_4_grams"] < 0.2
    assert abs(metrics["words"] - 60) <= TOLERANCE * 60
    made = Article.load(RUNS / "story" / "article.json")
    assert all(ends_whole(section.text) for section in made.sections)
