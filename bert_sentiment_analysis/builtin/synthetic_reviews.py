"""Reviews made by code: what ``builtin:movies``, ``builtin:products`` and ``builtin:tweets`` are.

No person wrote them. They exercise what makes sentiment hard (negation, contrast, intensity, hedging), they are the
same on every machine, and a third of the opinion words of validation and test never occurs in train, so a model has to
know words, not remember them. Figures on them say that the machinery works, and nothing about real reviews.

    python -m bert_sentiment_analysis.data.imdb_dataset report --data builtin:tweets
"""

from __future__ import annotations

import random
from dataclasses import dataclass


@dataclass(frozen=True)
class Domain:
    """The words of one domain.

    Attributes:
        labels: The classes, worst first.
        things: What the text is about.
        aspects: Its parts that can be good or bad.
        good: Adjectives of praise; the last third is kept for validation and test.
        bad: Adjectives of blame, likewise.
        openers: How a text may begin, with ``{thing}``.
        verdicts: Last sentences of praise and of blame.
    """

    labels: tuple[str, ...]
    things: tuple[str, ...]
    aspects: tuple[str, ...]
    good: tuple[str, ...]
    bad: tuple[str, ...]
    openers: tuple[str, ...]
    verdicts: tuple[tuple[str, ...], tuple[str, ...]]


def _words(list_: str) -> tuple[str, ...]:
    return tuple(list_.split(", "))


DOMAINS = {
    "movies": Domain(
        labels=("negative", "positive"),
        things=("this thriller", "the new comedy", "this drama", "the sequel", "this western", "the documentary"),
        aspects=("the plot", "the acting", "the dialogue", "the pacing", "the ending", "the camera work", "the score"),
        good=_words(
            "gripping, moving, clever, funny, charming, convincing, lively, warm, fresh, superb, delightful, "
            "brilliant, touching, witty, masterful"
        ),
        bad=_words(
            "dull, clumsy, predictable, silly, flat, tedious, messy, cold, stale, terrible, boring, awful, "
            "lifeless, ridiculous, dreadful"
        ),
        openers=("I saw {thing} last night.", "We watched {thing} at home.", "I had read about {thing} before.", ""),
        verdicts=(
            ("I would watch it again.", "Go and see it.", "It stays with you.", "I left with a smile."),
            ("I want my evening back.", "Stay at home.", "I nearly walked out.", "I kept looking at my watch."),
        ),
    ),
    "products": Domain(
        labels=("negative", "positive"),
        things=("this camera", "the headset", "this kettle", "the memory card", "this keyboard", "the vacuum cleaner"),
        aspects=("the battery", "the screen", "the build", "the manual", "the sound", "the delivery", "the price"),
        good=_words(
            "sturdy, reliable, handy, fast, crisp, comfortable, quiet, solid, fair, excellent, durable, "
            "outstanding, smooth, well made, flawless"
        ),
        bad=_words(
            "flimsy, unreliable, useless, slow, blurry, uncomfortable, noisy, cheap, unfair, horrible, "
            "defective, disappointing, sloppy, badly made, worthless"
        ),
        openers=("I bought {thing} in March.", "We use {thing} every day.", "I got {thing} as a gift.", ""),
        verdicts=(
            ("Worth every cent.", "I ordered a second one.", "I recommend it.", "It does what it should."),
            ("It went back the next day.", "Save your money.", "It broke within a week.", "I asked for a refund."),
        ),
    ),
    "tweets": Domain(
        labels=("negative", "neutral", "positive"),
        things=("the concert", "the new phone", "the match", "my flight", "the festival", "the update"),
        aspects=("the crowd", "the weather", "the service", "the line-up", "the queue", "the app", "the food"),
        good=_words(
            "great, amazing, fun, lovely, cool, exciting, awesome, sweet, perfect, happy, wonderful, "
            "fantastic, stunning, adorable, glorious"
        ),
        bad=_words(
            "bad, annoying, sad, ugly, lame, stressful, painful, rude, broken, angry, pathetic, disgusting, "
            "miserable, shameful, hopeless"
        ),
        openers=("@user about {thing}:", "{thing} today:", "so, {thing}.", ""),
        verdicts=(
            ("😍", "best day ever!", "can't wait for more 🎉", "thank you @user ❤️"),
            ("😡", "never again.", "what a day 😞", "fix this @user"),
        ),
    ),
}

INTENSIFIERS = ("", "", "", "really ", "very ", "so ", "truly ", "absolutely ")
HEDGES = ("I guess ", "I think ", "to me ", "if I am honest, ", "it seems that ", "")
NEGATIONS = ("is not {} at all", "is hardly {}", "is anything but {}", "was never {}", "isn't {}")
CONTRASTS = ("{a}, but {b}.", "Although {a}, {b}.", "{a}. Still, {b}.", "Yes, {a}; {b}, and that is what counts.")
FACTS = (
    "{thing} starts at {hour} on {day}.",
    "who is going to {thing} on {day}?",
    "{thing} moved to {day}, see http",
    "reading about {thing} on page {hour}.",
    "{day}: {thing}, {hour} o'clock, be there with @user",
    "is {aspect} the same as on {day}?",
)
DAYS = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday")
SIZES = {"train": 1200, "validation": 200, "test": 400}


def synthetic_reviews(name: str, seed: int = 0) -> dict[str, list[tuple[str, str]]]:
    """Make the texts of a domain.

    Args:
        name: ``movies``, ``products`` or ``tweets``.
        seed: Another one makes other texts of the same kind.

    Returns:
        Split → (text, label) pairs: as many of each label, in random order, no text twice, in any split.
    """
    domain = DOMAINS[name]
    rng = random.Random(f"{name} {seed}")
    seen: set[str] = set()
    splits = {}
    for split, size in SIZES.items():
        rows: list[tuple[str, str]] = []
        while len(rows) < size:
            label = domain.labels[len(rows) % len(domain.labels)]
            text = _text(domain, label, split, rng)
            if text not in seen:
                seen.add(text)
                rows.append((text, label))
        rng.shuffle(rows)
        splits[split] = rows
    return splits


def _text(domain: Domain, label: str, split: str, rng: random.Random) -> str:
    thing = rng.choice(domain.things)
    if label == "neutral":
        facts = rng.sample(FACTS, rng.choice((1, 1, 2)))
        text = " ".join(
            fact.format(thing=thing, aspect=rng.choice(domain.aspects), hour=rng.randint(1, 12), day=rng.choice(DAYS))
            for fact in facts
        )
        return text
    positive = label == "positive"
    sentences = [rng.choice(domain.openers).format(thing=thing)]
    aspects = rng.sample(domain.aspects, rng.randint(1, 3))
    for i, aspect in enumerate(aspects):
        clause = _clause(domain, aspect, positive, split, rng)
        if i == len(aspects) - 1 and rng.random() < 0.4:  # the side that the writer comes down on stands last
            other = rng.choice([a for a in domain.aspects if a != aspect])
            concession = _clause(domain, other, not positive, split, rng)
            sentences.append(rng.choice(CONTRASTS).format(a=concession, b=clause))
        else:
            sentences.append(f"{rng.choice(HEDGES)}{clause}.")
    if rng.random() < 0.3:
        sentences.append(rng.choice(domain.verdicts[0 if positive else 1]))
    if "neutral" not in domain.labels:  # who tweets has no time for capitals
        sentences = [sentence[:1].upper() + sentence[1:] for sentence in sentences]
    return " ".join(filter(None, sentences))


def _clause(domain: Domain, aspect: str, positive: bool, split: str, rng: random.Random) -> str:
    """Say something good or bad about an aspect, in a third of all cases by denying the opposite."""
    negated = rng.random() < 0.33
    words = domain.good if positive != negated else domain.bad
    known = len(words) * 2 // 3
    word = rng.choice(words[:known] if split == "train" else words)
    if negated:
        return f"{aspect} {rng.choice(NEGATIONS).format(word)}"
    return f"{aspect} is {rng.choice(INTENSIFIERS)}{word}"
