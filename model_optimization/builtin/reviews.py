"""Reviews made by code: what ``builtin:stays`` and ``builtin:apps`` are.

No person wrote them. Guests of hotels and users of apps praise and blame by adjectives, by denied adjectives and by
what happened to them; a text may hold both, and its label is what it holds more of. A third of the adjectives and
events of validation and test never occurs in train, so a model has to know words, not remember them. They show that a
compressed model answers like the one it came from, and say nothing about real reviews. ``apps`` is the other domain
that a drift detector of ``stays`` must notice.

    python -m model_optimization.builtin.reviews show --name apps
"""

from __future__ import annotations

import random
import sys
from dataclasses import dataclass
from typing import Literal

from shared.config import run_commands

LABELS = ("negative", "positive")
SIZES = {"train": 1600, "validation": 400, "test": 400}


@dataclass(frozen=True)
class Domain:
    """The words of one domain; of each list of opinions the last third is kept for validation and test.

    Attributes:
        openers: First sentences without an opinion.
        parts: What can be good or bad.
        blame: Adjectives.
        praise: Adjectives.
        mishaps: What happens to those who will complain.
        delights: What happens to those who will praise.
    """

    openers: tuple[str, ...]
    parts: tuple[str, ...]
    blame: tuple[str, ...]
    praise: tuple[str, ...]
    mishaps: tuple[str, ...]
    delights: tuple[str, ...]


def _list(lines: str) -> tuple[str, ...]:
    return tuple(item.strip() for item in lines.replace("\n", " ").split(","))


DOMAINS = {
    "stays": Domain(
        openers=_list("We spent {n} nights here in {month}, Booked for a weekend, Third time in this town, "
                      "Stayed for work in {month}, Room {n}05"),
        parts=_list("the room, the bed, breakfast, the staff, the bathroom, the view, the lobby, the pool, "
                    "check-in, the neighborhood, the restaurant, the shower"),
        blame=_list("dirty, noisy, rude, cramped, shabby, cold, overpriced, stuffy, smelly, gloomy, unfriendly, "
                    "worn out, chaotic, disgusting, dreadful, filthy, horrible, awful"),
        praise=_list("spotless, quiet, friendly, spacious, cozy, bright, generous, charming, helpful, elegant, fresh, "
                     "comfortable, welcoming, gorgeous, excellent, wonderful, immaculate, superb"),
        mishaps=_list("we waited {n} hours for our key, somebody had slept in the sheets before us, the heating broke "
                      "on the first evening, they charged my card twice, nobody answered the phone, we found mold "
                      "behind the curtain, they lost our booking, the fire alarm rang at {n} in the morning, we asked "
                      "for our money back, water dripped from the ceiling, my suitcase was stolen, I got food "
                      "poisoning"),
        delights=_list("they moved us to a suite for free, somebody carried our bags up {n} floors, a cake stood on "
                       "the table for my birthday, they kept the kitchen open for us, the owner drove us to the "
                       "station, our children did not want to leave, we slept like stones, they found my lost ring, "
                       "we have booked again for {month}, a bottle of wine came with a note, they remembered our "
                       "names, I have told all my friends"),
    ),
    "apps": Domain(
        openers=_list("Installed it {n} weeks ago, Using version {n}.2 on my old tablet, Switched in {month}, "
                      "Downloaded it for school, Needed something for invoices"),
        parts=_list("the interface, sync, the search, the update, dark mode, support, the widget, export, "
                    "the tutorial, the free plan, the login, the calendar view"),
        blame=_list("buggy, slow, confusing, bloated, unstable, ugly, intrusive, clumsy, outdated, unreliable, laggy, "
                    "useless, broken, infuriating, terrible, worthless, pathetic, hopeless"),
        praise=_list("fast, intuitive, stable, polished, simple, clever, lightweight, responsive, reliable, smooth, "
                     "thoughtful, handy, tidy, brilliant, fantastic, flawless, delightful, outstanding"),
        mishaps=_list("it deleted {n} months of notes, ads cover the whole screen, it crashes when I open a file, "
                      "I was billed after I had canceled, it drains the battery by noon, my password was rejected "
                      "{n} times, the last update removed what I paid for, it froze during my exam, I had to reset "
                      "the phone, I removed it the same day, it leaked my contacts, my backup is corrupted"),
        delights=_list("it saved me {n} hours a week, my data was back within minutes, a bug I reported was fixed "
                       "overnight, it works without a connection, my whole team uses it now, I finished my budget in "
                       "{n} minutes, my grandmother learned it in a day, it opened every file I had, I gladly paid "
                       "for it, it replaced three others, they answered on a Sunday, I can not imagine a day "
                       "without it"),
    ),
}  # fmt: skip
MONTHS = ("January", "March", "May", "July", "September", "November")
DEGREES = ("", "", "", "very ", "rather ", "so ", "really ", "surprisingly ")
DENIALS = ("{part} was not {word}", "{part} was hardly {word}", "{part} was anything but {word}",
           "nobody could call {part} {word}")  # fmt: skip
JOINTS = (". ", ". ", ", and ", "; ", ". Also, ")
TURNS = (". Yet ", ", but ", ", although ", ". On the other hand, ")


def reviews(name: str, seed: int = 0) -> dict[str, list[tuple[str, str]]]:
    """Make the texts of a domain.

    Args:
        name: ``stays`` or ``apps``.
        seed: Another one makes other texts of the same kind.

    Returns:
        Split → (text, label) pairs: as many of each label, in random order, no text twice, in any split.
    """
    rng = random.Random(f"{name} {seed}")
    seen: set[str] = set()
    splits = {}
    for split, size in SIZES.items():
        rows: list[tuple[str, str]] = []
        while len(rows) < size:
            label = len(rows) % 2
            text = _text(DOMAINS[name], positive=label == 1, known_only=split == "train", rng=rng)
            if text not in seen:
                seen.add(text)
                rows.append((text, LABELS[label]))
        rng.shuffle(rows)
        splits[split] = rows
    return splits


def _text(domain: Domain, *, positive: bool, known_only: bool, rng: random.Random) -> str:
    number = rng.choice((1, 1, 2, 2, 3))
    opinions = [positive] * number + [not positive] * rng.randint(0, number - 1)
    rng.shuffle(opinions)
    parts = rng.sample(domain.parts, len(opinions))
    clauses = [_clause(domain, part, good, known_only, rng) for part, good in zip(parts, opinions, strict=True)]
    text = clauses[0]
    for clause, before, after in zip(clauses[1:], opinions, opinions[1:], strict=False):
        text += rng.choice(JOINTS if before == after else TURNS) + clause
    if rng.random() < 0.4:
        text = f"{rng.choice(domain.openers)}. {text}"
    text = text.format(n=rng.randint(2, 9), month=rng.choice(MONTHS))
    sentences = [sentence[:1].upper() + sentence[1:] for sentence in f"{text}.".split(". ")]
    return ". ".join(sentences)


def _clause(domain: Domain, part: str, good: bool, known_only: bool, rng: random.Random) -> str:
    """Say something good or bad: by what happened, by an adjective, or by denying the opposite one."""

    def choose(words: tuple[str, ...]) -> str:
        return rng.choice(words[: len(words) * 2 // 3] if known_only else words)

    kind = rng.random()
    if kind < 0.35:
        return choose(domain.delights if good else domain.mishaps)
    if kind < 0.75:
        return f"{part} was {rng.choice(DEGREES)}{choose(domain.praise if good else domain.blame)}"
    return rng.choice(DENIALS).format(part=part, word=choose(domain.blame if good else domain.praise))


@dataclass
class ShowConfig:
    """Print a domain's texts, a line each: split, label, text."""

    name: Literal["stays", "apps"] = "stays"
    """Which domain."""
    seed: int = 0
    """Another one makes other texts."""


def show(config: ShowConfig) -> None:
    """Print the texts."""
    for split, rows in reviews(config.name, config.seed).items():
        for text, label in rows:
            sys.stdout.write(f"{split}\t{label}\t{text}\n")


if __name__ == "__main__":
    run_commands({"show": show}, module="model_optimization.builtin.reviews")
