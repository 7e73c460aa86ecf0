r"""Scenes of colored shapes made by code: what the builtin caption, question and CLIP models learn from.

A scene is a picture of 64 × 64 pixels with one to four objects; size, color and shape of each are in the caption, from
top to bottom and from left to right, so that exactly one caption is right:

    a large red circle, a small blue star and a small green cross

Two kinds of generalization can be measured (Lake and Baroni, 2018, arXiv:1711.00350): split ``test`` has captions that
no training scene has; split ``pairs`` has colors on shapes that never went together, as in CLEVR's CoGenT (Johnson et
al., 2017, arXiv:1612.06890). Objects stand on a grid of 16 pixels, the patches of a small vision transformer, which
learns them in minutes; ``grid=False`` puts them anywhere.

    python -m multimodal_llm.builtin.scenes show --split test --count 3 --folder scenes/
"""

from __future__ import annotations

import functools
import hashlib
import io
import itertools
import math
import random
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from shared.config import check_range, run_commands
from shared.errors import InputError
from shared.results import write_atomic

if TYPE_CHECKING:
    from PIL.Image import Image

MODULE = "multimodal_llm.builtin.scenes"
Split = Literal["train", "validation", "test", "pairs"]
SPLITS = ("train", "validation", "test", "pairs")
SIDE, CELL = 64, 16  # pixels of a picture and of a cell of its grid
MOST = 4  # objects
RADIUS = {"small": 4.2, "large": 7.4}  # pixels; both fit a cell
GROWTH = {"small": 1.2, "large": 7.6}  # pixels that radii of loose_scenes may have more
COLORS = {
    "red": (214, 39, 40), "orange": (255, 140, 0), "yellow": (250, 220, 30), "green": (40, 160, 60),
    "cyan": (40, 205, 215), "blue": (35, 80, 220), "purple": (135, 50, 180), "pink": (255, 135, 195),
}  # fmt: skip
SHAPES = ("circle", "square", "triangle", "diamond", "star", "cross")
PAIRS = frozenset(zip(tuple(COLORS)[1:], SHAPES, strict=False))  # color and shape that only split pairs has together
# Top and bottom of the picture; none has a hue of its own, so every color can be told from every background.
BACKGROUNDS = {
    "white": ((255, 255, 255), (255, 255, 255)), "gray": ((150, 150, 150), (150, 150, 150)),
    "black": ((18, 18, 18), (18, 18, 18)), "light": ((250, 250, 250), (205, 205, 205)),
    "dusk": ((120, 120, 120), (40, 40, 40)),
}  # fmt: skip
HELD_OUT = {0: "test", 1: "validation"}  # remainders of the hash of a caption, by 20
HELD_OUT_ALONE = 5  # by 5 where there is one object: there are but 84 such captions
QUESTION_KINDS = ("count", "color", "shape", "size", "exists", "relation")
SCENES = {"train": 6000, "validation": 500, "test": 500, "pairs": 500}  # of scene_questions
SIDES = {"to the left of": "left", "to the right of": "right", "above": "above", "below": "below"}
NUMBERS = ("one", "two", "three", "four")  # of rows and columns
SUPERSAMPLING = 16  # points a pixel, along each side


# --- What a scene is made of ------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class SceneObject:
    """One object.

    Attributes:
        size: A key of :data:`RADIUS`.
        color: A key of :data:`COLORS`.
        shape: One of :data:`SHAPES`.
    """

    size: str
    color: str
    shape: str

    def __str__(self) -> str:
        return f"{self.size} {self.color} {self.shape}"


@dataclass(frozen=True)
class Scene:
    """Objects before a background.

    Attributes:
        objects: In reading order; no two are alike.
        centers: Of each, x and y in pixels from the top left corner.
        background: A key of :data:`BACKGROUNDS`.
        radii: Of each, in pixels; by default :data:`RADIUS` of its size.
    """

    objects: tuple[SceneObject, ...]
    centers: tuple[tuple[int, int], ...]
    background: str
    radii: tuple[float, ...] = ()

    @property
    def caption(self) -> str:
        """The one caption that is right: all objects in reading order."""
        return joined([article(str(one)) for one in self.objects])


@dataclass(frozen=True)
class SceneQuestion:
    """A question about a scene.

    Attributes:
        kind: One of :data:`QUESTION_KINDS`.
        question: Its text.
        answer: One word; a count is written in figures.
    """

    kind: str
    question: str
    answer: str


def article(name: str) -> str:
    """Put "a" or "an" before a name."""
    return f"{'an' if name[0] in 'aeiou' else 'a'} {name}"


def joined(names: Sequence[str]) -> str:
    """Write "one, another and a third"."""
    return " and ".join(filter(None, (", ".join(names[:-1]), names[-1])))


# --- Drawing scenes at random -----------------------------------------------------------------------------------------


def split_of(objects: Sequence[SceneObject]) -> Split:
    """Return the split that a scene with these objects, in reading order, belongs to."""
    if any((one.color, one.shape) in PAIRS for one in objects):
        return "pairs"
    digest = hashlib.sha256("|".join(map(str, objects)).encode()).digest()
    parts = HELD_OUT_ALONE if len(objects) == 1 else 20
    return HELD_OUT.get(int.from_bytes(digest, "big") % parts, "train")  # type: ignore[return-value]


def _objects(rng: random.Random, count: int, pairs: bool) -> list[SceneObject]:
    """Draw objects; a third of the later ones repeat a color or a shape, so that there is more to count."""
    objects: list[SceneObject] = []
    for _ in range(count):
        while True:
            color, shape = rng.choice(tuple(COLORS)), rng.choice(SHAPES)
            if pairs and not objects:  # the first one is what the split is about
                color, shape = rng.choice(sorted(PAIRS))
            elif objects and rng.random() < 0.35:
                color, shape = rng.choice([(objects[-1].color, shape), (color, objects[-1].shape)])
            one = SceneObject(rng.choice(tuple(RADIUS)), color, shape)
            if one not in objects and (pairs or (color, shape) not in PAIRS):
                objects.append(one)
                break
    return objects


def _centers(rng: random.Random, count: int, grid: bool) -> list[tuple[int, int]]:
    """Draw places that do not touch, in reading order: rows of the grid, and in a row from left to right."""
    if grid:
        cells = rng.sample([(x, y) for y in range(SIDE // CELL) for x in range(SIDE // CELL)], count)
        places = [(x * CELL + CELL // 2, y * CELL + CELL // 2) for x, y in cells]
    else:
        places = []
        while len(places) < count:
            place = (rng.randint(CELL // 2, SIDE - CELL // 2), rng.randint(CELL // 2, SIDE - CELL // 2))
            if all(math.dist(place, other) > CELL for other in places):
                places.append(place)
    return sorted(places, key=lambda place: (place[1] // CELL, place[0]))


def scenes(split: Split, count: int, seed: int = 0, *, grid: bool = True) -> Iterator[Scene]:
    """Draw scenes of a split; another seed draws others.

    Args:
        split: ``pairs`` has at least one color on a shape that no other split shows.
        count: How many, >= 0.
        seed: Of the drawing.
        grid: Whether objects are centered on the patches.

    Raises:
        InputError: There is no such split, or the count is negative.
    """
    if split not in SPLITS:
        raise InputError(f"split must be one of {', '.join(SPLITS)}. Got {split!r}.")
    check_range("count", count, 0)
    rng = random.Random(f"scenes {split} {seed} {grid}")
    return (_scene(rng, split, grid) for _ in range(count))


def _scene(rng: random.Random, split: Split, grid: bool) -> Scene:
    count = rng.randint(1, MOST)  # drawn apart from the objects: splits would else have other counts
    while True:
        objects = _objects(rng, count, split == "pairs")
        rng.shuffle(objects)
        if split_of(objects) == split:
            break
    return Scene(tuple(objects), tuple(_centers(rng, count, grid)), rng.choice(tuple(BACKGROUNDS)))


def loose_scenes(split: Split, count: int, seed: int = 0, spread: float = 1.0) -> Iterator[Scene]:
    """Draw scenes of a split whose one to three objects stand off the grid and are larger than usual.

    A model that is to see shapes of every size anywhere learns it in steps only, from the grid outwards.

    Args:
        split: As of :func:`scenes`.
        count: How many, >= 0.
        seed: Of the drawing.
        spread: In [0, 1]. At 0 objects stand on the grid and are as large as usual; at 1 they stand anywhere, small
            ones have radii up to 5.4 pixels, and large ones up to 15.

    Raises:
        InputError: There is no such split, or a number is out of range.
    """
    if split not in SPLITS:
        raise InputError(f"split must be one of {', '.join(SPLITS)}. Got {split!r}.")
    check_range("count", count, 0)
    check_range("spread", spread, 0, 1)
    rng = random.Random(f"loose {seed} {spread}")
    return (_loose_scene(rng, split, spread) for _ in range(count))


def _loose_scene(rng: random.Random, split: Split, spread: float) -> Scene:
    while True:
        objects = _objects(rng, rng.choice((1, 1, 2, 3)), split == "pairs")
        radii = [round(rng.uniform(RADIUS[o.size], RADIUS[o.size] + spread * GROWTH[o.size]), 1) for o in objects]
        places = []
        for radius in radii:
            cell = [(rng.randrange(SIDE // CELL) + 0.5 + rng.uniform(-0.5, 0.5) * spread) * CELL for _ in "xy"]
            x, y = (round(min(max(place, 0.8 * radius), SIDE - 0.8 * radius)) for place in cell)
            places.append((x, y))
        order = sorted(range(len(objects)), key=lambda i: (places[i][1] // CELL, places[i][0]))
        objects = [objects[i] for i in order]
        apart = all(math.dist(places[i], places[j]) > radii[i] + radii[j] for i, j in itertools.combinations(order, 2))
        if apart and split_of(objects) == split:
            return Scene(tuple(objects), tuple(places[i] for i in order), rng.choice(tuple(BACKGROUNDS)),
                         tuple(radii[i] for i in order))  # fmt: skip


# --- Pictures ---------------------------------------------------------------------------------------------------------


def _outline(shape: str, radius: float) -> list[tuple[float, float]]:
    """Return the corners of a shape around (0, 0), y downwards; shapes have about the same area."""
    if shape == "square":
        half = radius * 0.86
        return [(-half, -half), (half, -half), (half, half), (-half, half)]
    if shape == "cross":
        arm, half = radius * 0.36, radius
        quarter = [(arm, -half), (arm, -arm), (half, -arm)]
        return [_turned(corner, turn) for turn in range(4) for corner in quarter]
    if shape == "star":
        tips = [(radius * (1.08 if i % 2 == 0 else 0.46), math.pi * (i / 5 - 0.5)) for i in range(10)]
        return [(length * math.cos(angle), length * math.sin(angle) + radius * 0.06) for length, angle in tips]
    if shape == "triangle":
        return [(0, -radius * 0.95), (radius, radius * 0.85), (-radius, radius * 0.85)]
    return [(0, -radius), (radius * 0.82, 0), (0, radius), (-radius * 0.82, 0)]  # diamond


def _turned(corner: tuple[float, float], quarters: int) -> tuple[float, float]:
    x, y = corner
    for _ in range(quarters):
        x, y = -y, x
    return x, y


@functools.cache
def _mask(shape: str, radius: float) -> Image:
    """Return how much of each pixel around it a shape covers, 0-255: drawn large, then averaged."""
    from PIL import Image, ImageDraw

    large, radius = CELL * math.ceil(2.16 * radius / CELL) * SUPERSAMPLING, radius * SUPERSAMPLING
    mask = Image.new("L", (large, large), 0)
    pen = ImageDraw.Draw(mask)
    middle = large / 2
    if shape == "circle":
        pen.ellipse((middle - radius, middle - radius, middle + radius, middle + radius), fill=255)
    else:
        pen.polygon([(middle + x, middle + y) for x, y in _outline(shape, radius)], fill=255)
    return mask.reduce(SUPERSAMPLING)


@functools.cache
def _backdrop(background: str) -> Image:
    import numpy as np
    from PIL import Image

    top, bottom = (np.array(color, dtype=np.float64) for color in BACKGROUNDS[background])
    share = np.linspace(0, 1, SIDE)[:, None]
    rows = ((1 - share) * top + share * bottom).round().astype(np.uint8)  # (64, 3)
    return Image.fromarray(np.repeat(rows[:, None], SIDE, axis=1))


def render(scene: Scene) -> Image:
    """Draw a scene: RGB, 64 × 64, with smooth edges."""
    picture = _backdrop(scene.background).copy()
    radii = scene.radii or tuple(RADIUS[one.size] for one in scene.objects)
    for one, (x, y), radius in zip(scene.objects, scene.centers, radii, strict=True):
        mask = _mask(one.shape, radius)
        picture.paste(COLORS[one.color], (x - mask.width // 2, y - mask.height // 2), mask)
    return picture


# --- Captions ---------------------------------------------------------------------------------------------------------


def captions(scene: Scene) -> list[str]:
    """Return what may be said of a scene: the canonical caption first, then ways to say the same."""
    backwards = joined([article(str(one)) for one in reversed(scene.objects)])
    return [scene.caption, f"there {'is' if len(scene.objects) == 1 else 'are'} {scene.caption}",
            f"a picture of {scene.caption}", f"the picture shows {backwards}"]  # fmt: skip


_OBJECT = re.compile(rf"\b({'|'.join(RADIUS)})\s+({'|'.join(COLORS)})\s+({'|'.join(SHAPES)})\b")


def parse_caption(caption: str) -> list[SceneObject]:
    """Find the objects that a caption names, in its order; what is not size, color and shape is passed over."""
    return [SceneObject(*found) for found in _OBJECT.findall(caption.lower())]


# --- Questions --------------------------------------------------------------------------------------------------------


def _plural(shape: str) -> str:
    return f"{shape}es" if shape == "cross" else f"{shape}s"


def _counts(scene: Scene) -> Iterator[tuple[str, str]]:
    yield "how many objects are there?", str(len(scene.objects))
    for color in COLORS:
        yield f"how many {color} objects are there?", str(sum(one.color == color for one in scene.objects))
    for shape in SHAPES:
        yield f"how many {_plural(shape)} are there?", str(sum(one.shape == shape for one in scene.objects))


def _attributes(scene: Scene) -> Iterator[tuple[str, str, str]]:
    """Ask for one attribute of an object that another one or two name, and no other object has."""
    for one in scene.objects:
        for kind, named in (("color", ("shape",)), ("color", ("size", "shape")), ("shape", ("color",)),
                            ("shape", ("size", "color")), ("size", ("color", "shape"))):  # fmt: skip
            same = [o for o in scene.objects if all(getattr(o, part) == getattr(one, part) for part in named)]
            if len(same) == 1:
                name = " ".join(getattr(one, part) for part in named) + ("" if "shape" in named else " object")
                yield kind, f"what {kind} is the {name}?", getattr(one, kind)


def _existence(scene: Scene) -> Iterator[tuple[str, str]]:
    """Ask for a color, for a shape, and for both: then a no has one of them there, so that one must look at both."""
    there = {(one.color, one.shape) for one in scene.objects}
    colors, shapes = {color for color, _ in there}, {shape for _, shape in there}
    for color in COLORS:
        yield f"is there {article(color)} object?", "yes" if color in colors else "no"
    for shape in SHAPES:
        yield f"is there {article(shape)}?", "yes" if shape in shapes else "no"
    unusual = split_of(scene.objects) == "pairs"
    for color, shape in itertools.product(COLORS, SHAPES):
        # Training would learn that held-out pairs are never there.
        if (color in colors or shape in shapes) and (unusual or (color, shape) not in PAIRS):
            yield f"is there {article(color)} {shape}?", "yes" if (color, shape) in there else "no"


def _relations(scene: Scene) -> Iterator[tuple[str, str]]:
    """Ask how two objects stand to each other, where that is clear: a cell apart at least."""
    kinds = [(one.color, one.shape) for one in scene.objects]
    clear = [(one, place) for one, place in zip(scene.objects, scene.centers, strict=True)
             if kinds.count((one.color, one.shape)) == 1]  # fmt: skip
    for (one, (x, y)), (other, (x2, y2)) in itertools.permutations(clear, 2):
        for words, gap in _gaps(x2 - x, y2 - y):
            name, named = f"{one.color} {one.shape}", f"{other.color} {other.shape}"
            yield f"is the {name} {words} the {named}?", "yes" if gap > 0 else "no"


def _gaps(across: int, down: int) -> list[tuple[str, int]]:
    """Return what may be asked of two objects, and by how many pixels it is so: those that are clear."""
    gaps = zip(SIDES, (across, -across, down, -down), strict=True)
    return [(words, gap) for words, gap in gaps if abs(gap) >= CELL // 2]


def all_questions(scene: Scene) -> list[SceneQuestion]:
    """Return every question about a scene that has one answer."""
    found = [SceneQuestion("count", *one) for one in _counts(scene)]
    found += [SceneQuestion(*one) for one in dict.fromkeys(_attributes(scene))]
    found += [SceneQuestion("exists", *one) for one in _existence(scene)]
    return found + [SceneQuestion("relation", *one) for one in _relations(scene)]


def questions(scene: Scene, rng: random.Random, count: int = len(QUESTION_KINDS)) -> list[SceneQuestion]:
    """Draw different questions about a scene, of as many kinds as there are.

    Kinds come in turn, and among the questions of a kind the answer is drawn before the question: who does not look at
    the picture is right seldom.

    Args:
        scene: To ask about.
        rng: What it draws from.
        count: How many at most, >= 0.
    """
    by_kind: dict[str, dict[str, list[SceneQuestion]]] = {}
    for one in all_questions(scene):
        by_kind.setdefault(one.kind, {}).setdefault(one.answer, []).append(one)
    drawn: list[SceneQuestion] = []
    while by_kind and len(drawn) < count:
        for kind in rng.sample(sorted(by_kind), len(by_kind))[: count - len(drawn)]:
            by_answer = by_kind[kind]
            # Nearly every scene has something to count that is there never or once.
            weights = [4 if answer in "234" else 1 for answer in by_answer]
            answer = rng.choices(list(by_answer), weights)[0]
            drawn.append(by_answer[answer].pop(rng.randrange(len(by_answer[answer]))))
            if not by_answer[answer]:
                del by_answer[answer]
            if not by_answer:
                del by_kind[kind]
    return drawn


def _names(scene: Scene) -> list[tuple[int, str]]:
    """Return objects that a color, a shape, or both single out: number and name."""
    ways: list[Callable[[SceneObject], str]] = [
        lambda one: f"{one.color} object", lambda one: one.shape, lambda one: f"{one.color} {one.shape}"
    ]  # fmt: skip
    named = [[name(one) for one in scene.objects] for name in ways]
    return [(i, name) for names in named for i, name in enumerate(names) if names.count(name) == 1]


def lessons(scene: Scene, rng: random.Random) -> list[SceneQuestion]:
    """Draw questions that teach where things are, without which relations are not learned: yes or no says too little.

    They ask for row and column of an object, "two three", for where one lies from another, "above left", and for
    relations; objects are named by color, by shape or by both, since one is a simpler name than two.
    """
    named = _names(scene)
    found = []
    for number, name in rng.sample(named, min(2, len(named))):
        column, row = (NUMBERS[place // CELL] for place in scene.centers[number])
        found.append(SceneQuestion("place", f"which place is the {name} at?", f"{row} {column}"))
    pairs = [(one, other) for one, other in itertools.permutations(named, 2)
             if one[0] != other[0] and one[1].count(" ") == other[1].count(" ")]  # fmt: skip
    for (number, name), (second, other) in rng.sample(pairs, min(2, len(pairs))):
        (x, y), (x2, y2) = scene.centers[number], scene.centers[second]
        gaps = _gaps(x2 - x, y2 - y)
        where = " ".join(sorted(SIDES[words] for words, gap in gaps if gap > 0))
        found.append(SceneQuestion("place", f"where is the {name} from the {other}?", where))
        words, gap = rng.choice(gaps)
        found.append(SceneQuestion("relation", f"is the {name} {words} the {other}?", "yes" if gap > 0 else "no"))
    return found


@dataclass(frozen=True)
class SceneImage:
    """A scene as a file that can be read: drawn when it is opened."""

    scene: Scene

    def read(self) -> bytes:
        """Return the picture as PNG."""
        file = io.BytesIO()
        render(self.scene).save(file, "PNG")
        return file.getvalue()

    def __str__(self) -> str:
        return f"the scene {self.scene.caption!r}"


@dataclass(frozen=True)
class QuestionRow:
    """A question with its picture, as data sets of visual questions have them.

    Attributes:
        id: Of the question.
        image: Anything with ``read()``.
        image_id: The same for all questions about a scene.
        question: Its text.
        answer: The right one.
        question_type: One of :data:`QUESTION_KINDS`.
    """

    id: str
    image: SceneImage
    image_id: str
    question: str
    answer: str
    question_type: str


def scene_questions(split: Split, count: int | None = None, seed: int = 0, each: int = 4) -> Iterator[QuestionRow]:
    """Yield questions about scenes of a split.

    Args:
        split: Of which split.
        count: Scenes; by default as :data:`SCENES` says.
        seed: Another one draws others.
        each: Questions about a scene, at most.

    Raises:
        InputError: There is no such split, or the count is negative.
    """
    rng = random.Random(f"questions {split} {seed}")
    for number, scene in enumerate(scenes(split, SCENES.get(split, 0) if count is None else count, seed)):
        name = f"{split}-{seed}-{number}"
        for i, one in enumerate(questions(scene, rng, each)):
            yield QuestionRow(f"{name}-{i}", SceneImage(scene), name, one.question, one.answer, one.kind)


# --- Commands ---------------------------------------------------------------------------------------------------------


@dataclass
class ShowConfig:
    """Print captions and questions of scenes, and save their pictures."""

    split: Split = "train"
    """Of which split."""
    count: int = 3
    """How many, >= 1."""
    seed: int = 0
    """Another one draws others."""
    grid: bool = True
    """Whether objects are centered on patches of 16 pixels."""
    folder: str = ""
    """Where pictures go as PNG; by default none is saved."""

    def __post_init__(self) -> None:
        """Check the ranges."""
        check_range("count", self.count, 1)


def show(config: ShowConfig) -> None:
    """Print scenes; see :class:`ShowConfig`."""
    rng = random.Random(config.seed)
    for number, scene in enumerate(scenes(config.split, config.count, config.seed, grid=config.grid)):
        sys.stdout.write(f"{scene.caption}\n")
        for one in questions(scene, rng):
            sys.stdout.write(f"    {one.question} {one.answer}\n")
        if config.folder:
            write_atomic(Path(config.folder) / f"{config.split}-{number}.png", SceneImage(scene).read())


if __name__ == "__main__":
    run_commands({"show": show}, module=MODULE, extra="multimodal")
