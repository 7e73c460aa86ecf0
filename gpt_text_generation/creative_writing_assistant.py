"""A writing assistant: from a topic to an outline, to sections, to an article, each of which can be edited and redone.

    python -m gpt_text_generation.creative_writing_assistant write --topic "a lost kite" --names Maya,Tom
    python -m gpt_text_generation.creative_writing_assistant write --model Qwen/Qwen2.5-0.5B-Instruct --words 600
    python -m gpt_text_generation.creative_writing_assistant write --article article.json --regenerate 2
    python -m gpt_text_generation.creative_writing_assistant openings --count 3

Plan first, then write (Yao et al., 2019, arXiv:1811.05701; Yang et al., 2022, 2210.06774). A model with a chat template
is told what to write; another one is given a beginning that it goes on with. Either sees a compact memory instead of
the whole text: topic, names, how the article began and its last sentences.

Text is taken sentence by sentence. A sentence is taken if that brings the section nearer to its length, and dropped if
half of its 4-grams or more have been there (repetition is what likelihood is prone to: Holtzman et al., 2019,
1904.09751); then the model goes on from there with another seed.
"""

from __future__ import annotations

import io
import itertools
import json
import logging
import re
import sys
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Literal

from gpt_text_generation.prompt_engineering import PROMPTS, Template, read_template
from gpt_text_generation.text_generator import NOT_RECIPE, PROJECT, Settings, Strategy, TextGenerator, set_threads_for
from shared.config import check_range, run_commands
from shared.errors import InputError
from shared.logs import progress_bar
from shared.results import Run, write_atomic

MODULE = "gpt_text_generation.creative_writing_assistant"
GRAM = 4  # words of the n-grams that repetition is counted in
REPEATED = 0.5  # share of its n-grams that have been there already, from which a sentence is a repetition
TOLERANCE = 0.2  # of a section's length: nearer is as good as exact
STALLS = 4  # rounds in a row that add no sentence, after which a section has said what it has to say
MEMORY = 6  # sentences that a prompt carries from before
LONGEST = 150  # words without an end, after which nobody waits for one
Language = Literal["en", "zh"]
logger = logging.getLogger(MODULE)


# --- Words and sentences ----------------------------------------------------------------------------------------------

HAN = "\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff"
WORD = re.compile(rf"[{HAN}]|[^\W_{HAN}]+(?:['’-][^\W_{HAN}]+)*")
CLOSING = "\"'”’)\\]」』）》"
# An end is known when what comes next is: no small letter, which would go on with the sentence, and no closing mark.
ENDING = re.compile(
    rf"(?:(?<!\bMr)(?<!\bMs)(?<!\bDr)(?<!\bSt)(?<!\bMrs)(?<!\b[A-Z])[.!?…]+[{CLOSING}]*(?=\s+[^\sa-z]|\s*\n)"
    rf"|(?:[。！？]|……)[.!?。！？…]*[{CLOSING}]*(?=[^.!?。！？…{CLOSING}])|(?=\n))"
)


def words(text: str) -> list[str]:
    """Return the words of a text in small letters; each Chinese character is one."""
    return WORD.findall(text.casefold())


def take_sentence(text: str) -> tuple[str, str]:
    """Divide a text after its first whole sentence, which keeps the white space before it; ``""`` where there is none.

    The end of the text is no end of a sentence: more may come.
    """
    start = len(text) - len(text.lstrip())
    match = ENDING.search(text, start)
    return (text[: match.end()].rstrip(), text[match.end() :]) if match else ("", text)


def sentences(text: str) -> list[str]:
    """Divide a whole text into sentences; what no mark ends, at its end, is one too."""
    return [piece.strip() for piece in pieces(text)]


def pieces(text: str) -> list[str]:
    """Divide a text like :func:`sentences`, but keep the white space before each: joined they are the text."""
    found, rest = [], text.strip() + "\n"
    while rest.strip():
        piece, rest = take_sentence(rest)
        found.append(piece)
    return found


def ends_whole(text: str) -> bool:
    """Whether a text ends as a sentence does."""
    return re.search(rf"[.!?…。！？][{CLOSING}]*\s*$", text) is not None


class Repetition:
    """Remembers the n-grams of what was said; a sentence of fewer words is one gram.

    Args:
        text: Said already.
    """

    def __init__(self, text: str = "") -> None:
        self.said: set[tuple[str, ...]] = set()
        for sentence in sentences(text):
            self.add(sentence)

    def add(self, sentence: str) -> None:
        """Remember a sentence."""
        self.said.update(self._grams(sentence))

    def share(self, sentence: str) -> float:
        """Return the share of a sentence's n-grams that were said, before or earlier in it."""
        grams = self._grams(sentence)
        new = len(set(grams) - self.said)
        return 1 - new / len(grams) if grams else 0.0

    def _grams(self, sentence: str) -> list[tuple[str, ...]]:
        its = words(sentence)
        return [tuple(its[i : i + GRAM]) for i in range(max(1, len(its) - GRAM + 1))] if its else []


def repetition(text: str) -> float:
    """Return the share of a text's 4-grams that are not the first of their kind, in [0, 1]."""
    return Repetition().share(text)


def names_kept(text: str, names: Sequence[str]) -> float:
    """Return the share of names that occur in a text, as words of their own; 1 where there are none."""
    return sum(bool(_name_in(name, text)) for name in names) / len(names) if names else 1.0


def _name_in(name: str, text: str) -> re.Match[str] | None:
    edge = rf"[^\W_{HAN}]"  # Chinese has no blanks between words
    return re.search(rf"(?<!{edge}){re.escape(name)}(?!{edge})", text, re.IGNORECASE)


# --- What is written --------------------------------------------------------------------------------------------------


@dataclass
class Brief:
    """What to write.

    Attributes:
        topic: What about.
        style: How; empty is plain.
        audience: For whom; empty is everybody.
        names: Of those in it, the main one first; every section should keep them.
        words: Length of the article; in Chinese, characters.
        language: Of the article.

    Raises:
        InputError: The topic is empty, a name too, or the length is out of range.
    """

    topic: str
    style: str = ""
    audience: str = ""
    names: list[str] = field(default_factory=list)
    words: int = 400
    language: Language = "en"

    def __post_init__(self) -> None:
        """Check the values."""
        for name in ("topic", "style", "audience"):
            if not isinstance(value := getattr(self, name), str):
                raise InputError(f"{name} must be text. Got {value!r}.")
        if not self.topic.strip():
            raise InputError("topic must not be empty.")
        if not isinstance(self.names, list) or not all(isinstance(name, str) and name.strip() for name in self.names):
            raise InputError(f"names must be names. Got {self.names!r}.")
        if self.language not in LANGUAGES:
            raise InputError(f"language must be one of {', '.join(LANGUAGES)}. Got {self.language!r}.")
        check_range("words", self.words, 10, 100_000)


@dataclass
class Section:
    """A part of an article.

    Attributes:
        title: Its heading.
        text: Empty while it is not written.
        seed: That it was, or will be, written with.
        score: Of the attempt that was kept, see :class:`Draft`.
        attempts: How many there were.
        dropped: Sentences of the kept one that were dropped as repetitions.
        names_kept: Share of the brief's names in what the model wrote of it.
    """

    title: str
    text: str = ""
    seed: int = 0
    score: float = 0.0
    attempts: int = 0
    dropped: int = 0
    names_kept: float = 0.0


@dataclass
class Article:
    """A brief, its outline and what is written so far; a plain JSON file that may be edited by hand.

    Attributes:
        brief: What to write.
        title: Heading of the whole.
        sections: The outline. Titles may be changed, and sections added, removed and moved; those without text are
            written.
        outline_by: Whose the outline is: the ``model``'s, the ``user``'s, or a ``frame`` that fits any story, where the
            model had none.
        model: Who wrote.
    """

    brief: Brief
    title: str
    sections: list[Section]
    outline_by: Literal["model", "user", "frame"] = "model"
    model: str = ""

    @property
    def section_words(self) -> int:
        """Length of a section."""
        return max(1, self.brief.words // len(self.sections))

    def text(self, upto: int | None = None) -> str:
        """Return the text of all sections, or of the first ones."""
        return "\n\n".join(section.text for section in self.sections[:upto] if section.text)

    def save(self, path: Path) -> None:
        """Write the JSON file, whole or not at all."""
        write_atomic(path, json.dumps(asdict(self), indent=2, ensure_ascii=False) + "\n")

    @staticmethod
    def load(path: Path) -> Article:
        """Read what :meth:`save` wrote, or somebody edited.

        Raises:
            InputError: It is not as it must be.
        """
        try:
            state = json.loads(path.read_text(encoding="utf-8-sig"))
            article = Article(**{**state, "brief": Brief(**state["brief"]),
                                 "sections": [Section(**section) for section in state["sections"]]})  # fmt: skip
        except InputError as error:
            raise InputError(f"{path}: {error.args[0]}") from None
        except (ValueError, TypeError, KeyError, RecursionError) as error:
            raise InputError(f"{path} is no article of this assistant: {' '.join(str(error).split())}.") from None
        texts = [article.title, *(text for its in article.sections for text in (its.title, its.text))]
        seeds = [section.seed for section in article.sections]
        if not article.sections or not all(isinstance(text, str) for text in texts):
            raise InputError(f"{path}: titles and texts must be text, and there must be a section.")
        if not all(type(seed) is int and seed >= 0 for seed in seeds):
            raise InputError(f"{path}: a seed must be a whole number from 0.")
        return article

    def to_markdown(self) -> str:
        """Return the article as Markdown."""
        parts = [f"# {_line(self.title)}"]
        for section in self.sections:
            parts += [f"## {_line(section.title)}", *([section.text.strip()] if section.text.strip() else [])]
        return "\n\n".join(parts) + "\n"

    def to_docx(self) -> bytes:
        """Return the article as a Word document."""
        from docx import Document

        document = Document()
        document.core_properties.title = _xml(_line(self.title))[:255]
        document.add_heading(_xml(_line(self.title)), 0)
        for section in self.sections:
            document.add_heading(_xml(_line(section.title)), 1)
            for paragraph in filter(str.strip, section.text.split("\n")):
                document.add_paragraph(_xml(paragraph.strip()))
        out = io.BytesIO()
        document.save(out)
        return out.getvalue()


def _line(text: str) -> str:
    return " ".join(text.split())


def _xml(text: str) -> str:
    """Leave out what XML has no place for."""
    return re.sub("[\x00-\x08\x0b\x0c\x0e-\x1f\ud800-\udfff\ufffe\uffff]", "", text)


@dataclass(frozen=True)
class Phrases:
    """What a language has for briefs that leave something open, and for models that are not told what to do.

    Attributes:
        style: Where the brief has none.
        audience: Likewise.
        joiner: Between two names.
        nobody: Where there are no names.
        blank: Between two sentences.
        frame: Titles that fit any story.
        leads: First words of a paragraph; ``{name}`` is one of the names.
        last_lead: First words of the last section.
    """

    style: str
    audience: str
    joiner: str
    nobody: str
    blank: str
    frame: tuple[str, ...]
    leads: tuple[str, ...]
    last_lead: str


LANGUAGES: dict[str, Phrases] = {
    "en": Phrases(
        "plain and vivid", "general readers", " and ", "none", " ",
        ("The beginning", "Something happens", "A hard way", "The turn", "The end"),
        ("The next day, {name}", "After a while, {name}", "Then {name}", "In the evening, {name}", "Later, {name}"),
        "In the end, {name}",
    ),
    "zh": Phrases(
        "朴素生动", "普通读者", "和", "无", "",
        ("开始", "有事发生", "难走的路", "转折", "结局"),
        ("第二天，{name}", "过了一会儿，{name}", "后来，{name}", "到了晚上，{name}", "再后来，{name}"),
        "最后，{name}",
    ),
}  # fmt: skip


# --- The assistant ----------------------------------------------------------------------------------------------------


@dataclass
class Draft:
    """One attempt at a section.

    Attributes:
        wanted: Its length in words.
        names: That it should keep.
        text: What was taken.
        own: What of it the model wrote: all but the first words it was given.
        taken: Sentences that were taken.
        dropped: Sentences that were repetitions.
    """

    wanted: int
    names: list[str]
    text: str = ""
    own: str = ""
    taken: int = 0
    dropped: int = 0

    @property
    def missing(self) -> int:
        """Words that are still missing."""
        return max(0, self.wanted - len(words(self.text)))

    def nearer(self, sentence: str) -> bool:
        """Whether a sentence brings the text nearer to its length; a first one always does."""
        there, more = len(words(self.text)), len(words(sentence))
        return not there or abs(there + more - self.wanted) < abs(there - self.wanted)

    @property
    def length(self) -> float:
        """How near the length is: the shorter over the longer of wanted and written; 1 within :data:`TOLERANCE`."""
        there = len(words(self.text))
        near = min(there, self.wanted) / max(there, self.wanted)
        return 1.0 if abs(there - self.wanted) <= TOLERANCE * self.wanted else near

    @property
    def score(self) -> float:
        """The mean of three shares: length, names kept, and sentences that were no repetition; 0 without any text."""
        new = self.taken / max(1, self.taken + self.dropped)
        return (self.length + names_kept(self.own, self.names) + new) / 3 if self.text else 0.0


class WritingAssistant:
    """Writes articles with a :class:`TextGenerator`.

    Args:
        generator: The model. Whether it has a chat template decides the form of the prompts.
        settings: How to decode; must draw, or another seed would be no other text. Length and seed are set here.
        attempts: Drafts of a section, at most; the one with the best score is kept.

    Raises:
        InputError: The strategy does not draw.
    """

    def __init__(self, generator: TextGenerator, settings: Settings | None = None, *, attempts: int = 3) -> None:
        self.settings = settings or Settings("nucleus")
        if not self.settings.draws:
            raise InputError(f"strategy {self.settings.strategy} writes the same text with every seed.",
                             hint="nucleus, top_k, min_p, typical or sampling")  # fmt: skip
        check_range("attempts", attempts, 1)
        self.generator, self.attempts = generator, attempts
        self.told = generator.has_chat_template

    def outline(self, brief: Brief, sections: int = 4, seed: int = 0) -> Article:
        """Let the model plan an article.

        Args:
            brief: What to write.
            sections: How many, >= 1.
            seed: Of the plan and, at first, of the sections.

        Returns:
            The article without any text. Where the model gives no usable plan, its sections are those of a frame.
        """
        check_range("sections", sections, 1, 50)
        template = self._template("outline", brief)
        prompt = self._filled(template, brief, sections=str(sections))
        settings = replace(self.settings, seed=seed, max_new_tokens=self._room(prompt, template.max_new_tokens),
                           stop=tuple(template.stop))  # fmt: skip
        text = template.begin + self.generator.generate([prompt], settings)[0].text
        titles = parse_outline(text)[:sections]
        by: Literal["model", "frame"] = "model"
        if len(titles) < sections:
            logger.info("%s gave no outline of %d sections: a frame stands in", self.generator.name, sections)
            titles, by = frame(brief.language, sections), "frame"
        topic = _line(brief.topic)
        title = topic[0].upper() + topic[1:]
        return Article(brief, title, [Section(its, seed=seed) for its in titles], by, self.generator.name)

    def stream_section(self, article: Article, number: int, seed: int | None = None) -> Iterator[str]:
        """Write a section, and yield it sentence by sentence; joined they are its text.

        Args:
            article: The section in it is replaced at the end; nothing changes if the iterator is left before.
            number: Of the section, from 0.
            seed: By default the section's own or, where it has text already, the next one.
        """
        section = article.sections[number]
        seed = _next_seed(section) if seed is None else seed
        draft = Draft(article.section_words, article.brief.names)
        yield from self._draft(article, number, seed, draft)
        article.sections[number] = self._kept(section, [draft], seed)

    def write_section(self, article: Article, number: int, seed: int | None = None) -> Section:
        """Write a section in several attempts, until one leaves nothing to wish for, and keep the best.

        Args:
            article: The section in it is replaced; the others stay.
            number: Of the section, from 0.
            seed: By default the section's own or, where it has text already, the next one.

        Raises:
            InputError: The model wrote no whole sentence.
        """
        section = article.sections[number]
        seed = _next_seed(section) if seed is None else seed
        drafts: list[Draft] = []
        for attempt in range(self.attempts):
            drafts.append(Draft(article.section_words, article.brief.names))
            for _ in self._draft(article, number, seed, drafts[-1], attempt):
                pass
            if drafts[-1].score == 1:
                break
        article.sections[number] = self._kept(section, drafts, seed)
        return article.sections[number]

    def openings(self, brief: Brief, count: int = 3, seed: int = 0) -> list[str]:
        """Write first paragraphs that differ: none shares half of its 4-grams with those before it.

        Args:
            brief: What to write; ``words`` is the length of a paragraph.
            count: How many, >= 1.
            seed: Of the first; further ones follow.

        Returns:
            As many as were asked for, or fewer where the model has no more ideas in four rounds.
        """
        check_range("count", count, 1, 100)
        phrases, template, lead = LANGUAGES[brief.language], self._template("opening", brief), self.first_words(brief)
        prompt = self._filled(template, brief) + lead
        settings = replace(self.settings, stop=tuple(template.stop),
                           max_new_tokens=self._room(prompt, self._tokens(prompt, brief.words)))  # fmt: skip
        found: list[str] = []
        said = Repetition()
        for first in range(seed, seed + 4 * count, count):
            for made in self.generator.generate([prompt] * count, replace(settings, seed=first)):
                draft, own = Draft(brief.words, brief.names), Repetition()
                for sentence in sentences((lead + made.text).strip().split("\n\n")[0]):
                    if ends_whole(sentence) and own.share(sentence) < REPEATED and draft.nearer(sentence):
                        draft.text += (phrases.blank if draft.text else "") + sentence
                        own.add(sentence)
                if draft.text and draft.text not in found and said.share(draft.text) < REPEATED:
                    found.append(draft.text)
                    said.add(draft.text)
                if len(found) == count:
                    return found
        logger.warning("%s had %d different openings, not %d", self.generator.name, len(found), count)
        return found

    def first_words(self, brief: Brief) -> str:
        """Return what a text begins with before the model goes on: names, unless the model is told what to write."""
        return "" if self.told else LANGUAGES[brief.language].joiner.join(brief.names[:2])

    # --- How a section comes to be ---

    def _draft(self, article: Article, number: int, seed: int, draft: Draft, attempt: int = 0) -> Iterator[str]:
        """Fill a draft, and yield its sentences with the white space before them.

        A round ends where the model does, or where it repeats itself; the next one goes on from there with its own
        seed. A model that is not told what to do is then given the first words of a paragraph.
        """
        phrases = LANGUAGES[article.brief.language]
        title = words(article.sections[number].title)
        said = Repetition("\n".join(section.text for i, section in enumerate(article.sections) if i != number))
        stalls = 0
        for round_ in itertools.count():
            lead = "" if self.told else self._lead(article, number, round_)
            prompt = self._section_prompt(article, number, draft, lead)
            settings = replace(self.settings, seed=(seed * 1000 + attempt) * 1000 + round_,
                               max_new_tokens=self._room(prompt, self._tokens(prompt, draft.missing)))  # fmt: skip
            stalls += 1
            with closing(self._spoken(prompt, settings, lead)) as spoken:
                for sentence in spoken:
                    core = sentence.strip()
                    if not words(core) or _is_heading(core, title):
                        continue
                    if said.share(core) >= REPEATED:
                        draft.dropped += 1
                        break
                    if not draft.nearer(core):
                        break
                    paragraph = lead or "\n" in sentence[: len(sentence) - len(sentence.lstrip())]
                    gap = "" if not draft.text else "\n\n" if paragraph else phrases.blank
                    draft.text += gap + core
                    draft.own += gap + core[len(lead) :]
                    draft.taken += 1
                    said.add(core)
                    stalls, lead = 0, ""
                    yield gap + core
            if draft.length == 1 or stalls == STALLS:
                return

    def _spoken(self, prompt: str, settings: Settings, lead: str) -> Iterator[str]:
        """Yield whole sentences as they come, with the white space before them; an unfinished one is left out."""
        buffer = lead
        with closing(self.generator.stream(prompt, settings)) as pieces:  # type: ignore[type-var]
            for piece in pieces:
                buffer += piece
                sentence, rest = take_sentence(buffer)
                while sentence:
                    yield sentence
                    buffer = rest
                    sentence, rest = take_sentence(buffer)
                if len(words(buffer)) > LONGEST:
                    return
        if buffer.strip() and ends_whole(buffer):
            yield buffer.rstrip()

    def _lead(self, article: Article, number: int, round_: int) -> str:
        """Return the first words of a paragraph: of the article, or of one more after the model had come to an end."""
        phrases, names = LANGUAGES[article.brief.language], article.brief.names
        if round_ == 0:
            return "" if number else self.first_words(article.brief)
        last = number == len(article.sections) - 1 and round_ == 1
        lead = phrases.last_lead if last else phrases.leads[(number + round_) % len(phrases.leads)]
        return lead.replace("{name}", names[(number + round_) % len(names)] if names else "").rstrip()

    def _section_prompt(self, article: Article, number: int, draft: Draft, lead: str) -> str:
        """Return the prompt that a section begins or goes on with; it remembers less where the context is short."""
        brief, phrases = article.brief, LANGUAGES[article.brief.language]
        template = self._template("section", brief)
        before, now = sentences(article.text(number)), sentences(draft.text)
        written = pieces("\n\n".join(filter(None, (article.text(number), draft.text))))
        for keep in range(MEMORY if self.told else len(written), -1, -1):
            memory = phrases.blank.join(_last(before, keep)) or phrases.nobody
            begun = phrases.blank.join(_last(now, 4 * keep))
            if not self.told:  # it goes on with what stands there, paragraphs and all
                memory = "".join(written if keep == len(written) else [*written[:1], *_last(written[1:], keep)])
                begun = ("\n\n" if memory and (lead or not draft.text) else "") + lead
            prompt = self._filled(
                template, brief, title=article.title, memory=memory,
                outline="\n".join(f"{i}. {section.title}" for i, section in enumerate(article.sections, 1)),
                number=str(number + 1), heading=article.sections[number].title, words=str(article.section_words),
            ) + begun  # fmt: skip
            free = self.generator.language_model.context - len(self.generator.language_model.encode(prompt))
            if free >= min(self._tokens(prompt, draft.missing), self.generator.language_model.context // 2):
                return prompt
        return prompt

    def _template(self, what: str, brief: Brief) -> Template:
        form = "" if self.told else "base-"
        return read_template(PROMPTS / f"writing-{what}-{form}{brief.language}.yaml")

    def _filled(self, template: Template, brief: Brief, **more: str) -> str:
        phrases = LANGUAGES[brief.language]
        values = {"topic": _line(brief.topic), "style": brief.style or phrases.style, "words": str(brief.words),
                  "audience": brief.audience or phrases.audience, "names": ", ".join(brief.names) or phrases.nobody,
                  **more}  # fmt: skip
        return template.fill({name: values[name] for name in template.variables}).text(self.generator)

    def _tokens(self, prompt: str, count: int) -> int:
        """Return how many tokens so many words may need, by what the prompt's own words need."""
        ratio = len(self.generator.language_model.encode(prompt)) / max(1, len(words(prompt)))
        return 16 + int(1.5 * count * min(max(ratio, 1.0), 6.0))

    def _room(self, prompt: str, wanted: int) -> int:
        """Return how many of the tokens that are wanted fit behind a prompt."""
        language_model = self.generator.language_model
        free = language_model.context - len(language_model.encode(prompt))
        if free < 16:
            raise InputError(
                f"The brief leaves no room in the context of {self.generator.name}: {language_model.context:,} tokens.",
                hint="a shorter topic, style or audience",
            )
        return min(wanted, free)

    def _kept(self, section: Section, drafts: Sequence[Draft], seed: int) -> Section:
        best = max(drafts, key=lambda draft: draft.score)
        if not best.text:
            raise InputError(f"{self.generator.name} wrote no whole sentence for {section.title!r}.",
                             hint="another seed, a lower temperature or another model")  # fmt: skip
        return Section(section.title, best.text, seed, best.score, len(drafts), best.dropped,
                       names_kept(best.own, best.names))  # fmt: skip


def _next_seed(section: Section) -> int:
    return section.seed + 1 if section.text else section.seed


def _is_heading(line: str, title: list[str]) -> bool:
    """Whether a line is the section's heading, as it is or as "Section 2: …", or one of Markdown."""
    its = words(line)
    numbered = not ends_whole(line) and its[-len(title) :] == title and len(its) <= len(title) + 2
    return line.startswith(("#", "**")) or its == title or numbered


def _last(items: list[str], count: int) -> list[str]:
    return items[max(0, len(items) - count) :]


def parse_outline(text: str) -> list[str]:
    """Return the titles in a numbered or bulleted list: different ones, of 12 words at most."""
    found: dict[str, str] = {}
    for line in text.splitlines():
        match = re.match(r"\s*(?:\d+\s*[.)、:：]|[-*•]\s|第?[一二三四五六七八九十]+[、.章节][:：]?)\s*(.+)", line)
        title = match[1].strip(' *_"“”「」《》') if match else ""
        if 0 < len(words(title)) <= 12:
            found.setdefault(" ".join(words(title)), title)
    return list(found.values())


def frame(language: Language, sections: int) -> list[str]:
    """Return titles that fit any story: its stations, the middle ones counted where there are more sections."""
    stations = LANGUAGES[language].frame
    last = len(stations) - 1
    places = [round(i * last / (sections - 1)) if sections > 1 else 0 for i in range(sections)]
    return [stations[place] + (f" {1 + places[:i].count(place)}" if places.count(place) > 1 else "")
            for i, place in enumerate(places)]  # fmt: skip


# --- Commands ---------------------------------------------------------------------------------------------------------


@dataclass
class WriterConfig:
    """What both commands take."""

    model: str = "builtin:stories"
    """builtin:stories, a folder or a hub id; one with a chat template is told what to write."""
    topic: str = "a lost kite"
    """What about."""
    names: list[str] = field(default_factory=lambda: ["Maya"])
    """Of those in it, the main one first; every section should keep them."""
    style: str = ""
    """How it is written, plain by default; only models that are told what to write know of it."""
    audience: str = ""
    """For whom, everybody by default; likewise."""
    language: Literal["auto", "en", "zh"] = "auto"
    """auto is Chinese for a topic with Chinese characters, else English."""
    words: int = 130
    """Length in words, in Chinese in characters, in [10, 100000]; builtin:stories has no more to say than 130."""
    strategy: Strategy = "nucleus"
    """How to decode; one that draws."""
    temperature: float = 0.8
    """> 0; higher is more surprising."""
    top_p: float = 0.9
    """Of nucleus, in (0, 1]."""
    repetition_penalty: float = 1.0
    """> 0; above 1 what is there already gets less likely."""
    device: str = field(default="auto", metadata=NOT_RECIPE)
    """auto, cpu, cuda or mps."""
    dtype: Literal["auto", "float32", "bfloat16"] = field(default="auto", metadata=NOT_RECIPE)
    """Data type of the weights."""
    seed: int = field(default=0, metadata=NOT_RECIPE)
    """Of the drawing."""
    run: str = field(default="", metadata=NOT_RECIPE)
    """Name of this run's own folder; by default the time."""

    def __post_init__(self) -> None:
        """Check the ranges."""
        self.brief()
        check_range("seed", self.seed, 0, 2**31)
        if not self.settings().draws:
            raise InputError(f"strategy must be one that draws. Got {self.strategy!r}.",
                             hint="nucleus, top_k, min_p, typical or sampling")  # fmt: skip

    def brief(self) -> Brief:
        """Return what to write."""
        language: Language = "zh" if re.search(f"[{HAN}]", self.topic) else "en"
        return Brief(self.topic, self.style, self.audience, self.names, self.words,
                     language if self.language == "auto" else self.language)  # fmt: skip

    def settings(self) -> Settings:
        """Return how to decode."""
        return Settings(self.strategy, temperature=self.temperature, top_p=self.top_p,
                        repetition_penalty=self.repetition_penalty)  # fmt: skip


@dataclass
class WriteConfig(WriterConfig):
    """Write an article, and leave article.json (to edit and go on with), article.md and article.docx."""

    sections: int = 3
    """How many, in [1, 50]."""
    outline: list[str] = field(default_factory=list)
    """Titles of the sections, instead of a plan by the model."""
    attempts: int = 3
    """Drafts of a section, at most, of which the best is kept, >= 1."""
    article: str = field(default="", metadata=NOT_RECIPE)
    """An article.json to go on with: its brief and outline count, and its sections without text are written."""
    regenerate: list[int] = field(default_factory=list, metadata=NOT_RECIPE)
    """Numbers, from 1, of sections of that article to write anew with the next seed."""

    def __post_init__(self) -> None:
        """Check the ranges."""
        super().__post_init__()
        check_range("sections", self.sections, 1, 50)
        check_range("attempts", self.attempts, 1, 100)
        if self.regenerate and not self.article:
            raise InputError("regenerate needs the article whose sections it names.", hint="--article article.json")
        if any(not title.strip() for title in self.outline) or len(self.outline) > 50:
            raise InputError("outline must be 50 titles at most, none of them empty.")


def write(config: WriteConfig) -> None:
    """Write an article; see :class:`WriteConfig`."""
    import docx  # noqa: F401  # missing, it is missing now and not after an hour

    article = Article.load(Path(config.article)) if config.article else None
    if article and not all(1 <= number <= len(article.sections) for number in config.regenerate):
        raise InputError(f"regenerate must name sections in [1, {len(article.sections)}]. Got {config.regenerate}.")
    run = Run(PROJECT, MODULE, "write", config, name=config.run)
    set_threads_for(config.model)
    generator = TextGenerator(config.model, device=config.device, dtype=config.dtype)
    assistant = WritingAssistant(generator, config.settings(), attempts=config.attempts)
    if article is None:
        brief = config.brief()
        if config.outline:
            sections = [Section(title, seed=config.seed) for title in config.outline]
            article = Article(brief, brief.topic[0].upper() + brief.topic[1:], sections, "user")
        else:
            article = assistant.outline(brief, config.sections, config.seed)
    article.model = generator.name
    path = run.folder / "article.json"
    article.save(path)
    todo = [number for number, section in enumerate(article.sections)
            if not section.text or number + 1 in config.regenerate]  # fmt: skip
    with progress_bar() as bar:
        task = bar.add_task("sections", total=len(todo), figures="")
        for number in todo:
            try:
                section = assistant.write_section(article, number)
            except KeyboardInterrupt:
                raise KeyboardInterrupt(f"{number} sections are written; --article {path} goes on") from None
            article.save(path)
            bar.update(task, advance=1, figures=f"{len(words(section.text))} words, score {section.score:.2f}")
    write_atomic(run.folder / "article.md", article.to_markdown())
    write_atomic(run.folder / "article.docx", article.to_docx())
    metrics = figures(article)
    run.finish(model=generator.name, data=article.brief.topic, seed=config.seed, metrics=metrics)
    sys.stdout.write(article.to_markdown())
    logger.info("%s", ", ".join(f"{name.replace('_', ' ')} {value:.3g}" for name, value in metrics.items()))
    logger.info("article.json, article.md and article.docx are in %s", run.folder)


def figures(article: Article) -> dict[str, float]:
    """Measure an article: length, sections within :data:`TOLERANCE` of it, names kept, and repetition."""
    lengths = [len(words(section.text)) for section in article.sections]
    wanted = article.section_words
    return {
        "words": sum(lengths),
        "words_wanted": article.brief.words,
        "sections": len(lengths),
        "sections_within_tolerance": sum(abs(n - wanted) <= TOLERANCE * wanted for n in lengths) / len(lengths),
        "names_kept": sum(section.names_kept for section in article.sections) / len(lengths),
        "repeated_4_grams": repetition(article.text()),
        "sentences_dropped": sum(section.dropped for section in article.sections),
        "score": sum(section.score for section in article.sections) / len(lengths),
    }


@dataclass
class OpeningsConfig(WriterConfig):
    """Write different first paragraphs of a story, and leave openings.md."""

    words: int = 50
    """Length of a paragraph in words, in Chinese in characters, in [10, 100000]."""
    count: int = 3
    """How many, in [1, 100]."""

    def __post_init__(self) -> None:
        """Check the ranges."""
        super().__post_init__()
        check_range("count", self.count, 1, 100)


def openings(config: OpeningsConfig) -> None:
    """Write openings; see :class:`OpeningsConfig`."""
    run = Run(PROJECT, MODULE, "openings", config, name=config.run)
    set_threads_for(config.model)
    generator = TextGenerator(config.model, device=config.device, dtype=config.dtype)
    assistant, brief = WritingAssistant(generator, config.settings()), config.brief()
    found = assistant.openings(brief, config.count, config.seed)
    if not found:
        raise InputError(f"{generator.name} wrote no whole sentence.", hint="another seed or another model")
    text = "\n\n".join(f"{number}. {opening}" for number, opening in enumerate(found, 1)) + "\n"
    write_atomic(run.folder / "openings.md", text)
    own = [one.removeprefix(assistant.first_words(brief)) for one in found]  # names in given words are not the model's
    metrics = {"openings": len(found), "names_kept": sum(names_kept(one, brief.names) for one in own) / len(own),
               "words": sum(len(words(one)) for one in found) / len(found),
               "repeated_4_grams": repetition(" ".join(found))}  # fmt: skip
    run.finish(model=generator.name, data=config.topic, seed=config.seed, metrics=metrics)
    sys.stdout.write(text)


if __name__ == "__main__":
    run_commands({"write": write, "openings": openings}, module=MODULE, extra="generation")
