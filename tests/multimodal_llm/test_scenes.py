from __future__ import annotations

import io
import random
from collections import Counter, defaultdict

import numpy as np
import pytest

from shared.config import run_commands
from shared.errors import InputError

Image = pytest.importorskip("PIL.Image")

from multimodal_llm.builtin import scenes as module  # noqa: E402
from multimodal_llm.builtin.scenes import (  # noqa: E402
    BACKGROUNDS,
    CELL,
    COLORS,
    PAIRS,
    SHAPES,
    SPLITS,
    Scene,
    SceneObject,
    all_questions,
    captions,
    lessons,
    loose_scenes,
    parse_caption,
    questions,
    render,
    scene_questions,
    scenes,
    split_of,
)

TWO = Scene((SceneObject("large", "red", "circle"), SceneObject("small", "blue", "star")), ((8, 8), (40, 56)), "white")


def test_the_picture_shows_what_the_scene_says() -> None:
    pixels = np.asarray(render(TWO))
    assert pixels.shape == (64, 64, 3)
    assert tuple(pixels[8, 8]) == COLORS["red"] and tuple(pixels[56, 40]) == COLORS["blue"]
    assert tuple(pixels[30, 30]) == (255, 255, 255)
    there = (pixels != 255).any(axis=-1)
    assert there[:16, :16].sum() > 2 * there[48:, 32:48].sum() > 0
    assert there.sum() == there[:16, :16].sum() + there[48:, 32:48].sum()  # each within its cell
    edges = pixels[:16, :16].reshape(-1, 3)
    assert len(np.unique(edges, axis=0)) > 5  # smooth


def test_every_shape_and_size_looks_different() -> None:
    seen = {
        render(Scene((SceneObject(size, "red", shape),), ((8, 8),), "black")).tobytes()
        for size in ("small", "large")
        for shape in SHAPES
    }
    assert len(seen) == 2 * len(SHAPES)


def test_loose_scenes_leave_the_grid_grow_and_never_overlap() -> None:
    tight, loose = (list(loose_scenes("train", 200, 1, spread)) for spread in (0.0, 1.0))
    assert all(x % CELL == y % CELL == CELL // 2 for scene in tight for x, y in scene.centers)
    assert len({(x % CELL, y % CELL) for scene in loose for x, y in scene.centers}) > 150
    for scene in tight + loose:
        assert split_of(scene.objects) == "train" and 1 <= len(scene.objects) <= 3
        for one, radius, (x, y) in zip(scene.objects, scene.radii, scene.centers, strict=True):
            assert (4.2 <= radius <= 5.4) if one.size == "small" else (7.4 <= radius <= 15)
            assert min(x, y, 64 - x, 64 - y) > 0.7 * radius - 1
        rows = [(y // CELL, x) for x, y in scene.centers]
        assert rows == sorted(rows)
        for i, (x, y) in enumerate(scene.centers):
            for j in range(i):
                x2, y2 = scene.centers[j]
                assert (x - x2) ** 2 + (y - y2) ** 2 > (scene.radii[i] + scene.radii[j]) ** 2
    assert max(radius for scene in loose for radius in scene.radii) > 13 > 7.5 > max(tight[0].radii)


def test_loose_scenes_are_of_their_split_and_repeat_with_their_seed() -> None:
    for split in SPLITS:
        assert {split_of(scene.objects) for scene in loose_scenes(split, 30, 2)} == {split}
    assert list(loose_scenes("test", 5, 3)) == list(loose_scenes("test", 5, 3)) != list(loose_scenes("test", 5, 4))
    for arguments in (("tests", 1), ("train", -1), ("train", 1, 0, 1.5)):
        with pytest.raises(InputError):
            loose_scenes(*arguments)


def test_a_larger_object_covers_more_of_the_picture() -> None:
    covered = []
    for radius in (7.4, 10.0, 15.0):
        scene = Scene((SceneObject("large", "red", "circle"),), ((32, 32),), "black", (radius,))
        covered.append(int((np.asarray(render(scene))[..., 0] > 116).sum()))
    assert covered == pytest.approx([3.14159 * r * r for r in (7.4, 10.0, 15.0)], rel=0.05)


@pytest.mark.parametrize("grid", [True, False])
def test_objects_are_in_reading_order_and_apart(grid: bool) -> None:
    for one in scenes("train", 200, grid=grid):
        assert 1 <= len(one.objects) == len(one.centers) <= 4 and len(set(one.objects)) == len(one.objects)
        assert list(one.centers) == sorted(one.centers, key=lambda place: (place[1] // CELL, place[0]))
        assert all(8 <= x <= 56 and 8 <= y <= 56 for x, y in one.centers)
        if grid:
            assert all(x % CELL == y % CELL == CELL // 2 for x, y in one.centers)
        assert len(set(one.centers)) == len(one.centers)


def test_splits_share_no_caption_and_keep_pairs_apart() -> None:
    found = {split: list(scenes(split, 400)) for split in SPLITS}
    texts = {split: {one.caption for one in its} for split, its in found.items()}
    for split, its in found.items():
        assert all(split_of(one.objects) == split for one in its)
        assert all(not texts[split] & texts[other] for other in SPLITS if other != split)
        held_out = [any((o.color, o.shape) in PAIRS for o in one.objects) for one in its]
        assert all(held_out) if split == "pairs" else not any(held_out)
    assert {o.color for one in found["train"] for o in one.objects} == set(COLORS)
    assert {o.shape for one in found["train"] for o in one.objects} == set(SHAPES)
    assert {one.background for one in found["train"]} == set(BACKGROUNDS)
    assert len(PAIRS) == len(SHAPES)


def test_a_seed_draws_the_same_again() -> None:
    assert list(scenes("test", 20, 1)) == list(scenes("test", 20, 1)) != list(scenes("test", 20, 2))


def test_captions_name_the_objects_in_order() -> None:
    assert TWO.caption == "a large red circle and a small blue star"
    for one in scenes("train", 100):
        assert captions(one)[0] == one.caption
        assert parse_caption(one.caption) == list(one.objects)
        assert all(Counter(parse_caption(text)) == Counter(one.objects) for text in captions(one))
        assert len(set(captions(one))) == len(captions(one))
    assert [str(found) for found in parse_caption("A Large red circle, a huge dog, small green starfish")] == [
        "large red circle"
    ]


def test_answers_are_right() -> None:
    answers = {one.question: one.answer for one in all_questions(TWO)}
    assert answers["how many objects are there?"] == "2"
    assert answers["how many red objects are there?"] == "1" and answers["how many crosses are there?"] == "0"
    assert answers["what color is the star?"] == "blue" and answers["what size is the red circle?"] == "large"
    assert answers["what shape is the small blue object?"] == "star"
    assert answers["is there a red circle?"] == "yes" and answers["is there a blue circle?"] == "no"
    assert answers["is the red circle to the left of the blue star?"] == "yes"
    assert answers["is the red circle below the blue star?"] == "no"
    assert answers["is the blue star to the right of the red circle?"] == "yes"


def test_lessons_are_right_and_name_one_object() -> None:
    given: dict[str, str] = {}
    for seed in range(20):
        given |= {one.question: one.answer for one in lessons(TWO, random.Random(seed))}
    assert given["which place is the circle at?"] == "one one"
    assert given["which place is the blue star at?"] == "four three"
    assert given["where is the red object from the blue object?"] == "above left"
    assert given["where is the star from the circle?"] == "below right"
    assert given["is the circle to the left of the star?"] == "yes" and given["is the star above the circle?"] == "no"
    twins = Scene((SceneObject("large", "red", "star"), SceneObject("small", "red", "star")), ((8, 8), (40, 8)), "gray")
    assert lessons(twins, random.Random(0)) == []


def test_no_question_has_two_answers() -> None:
    for one in scenes("train", 100):
        texts = [found.question for found in all_questions(one)]
        assert len(set(texts)) == len(texts)
        drawn = questions(one, random.Random(0), 6)
        assert len(set(drawn)) == len(drawn) == 6


def test_who_does_not_look_is_seldom_right() -> None:
    answers: defaultdict[str, Counter[str]] = defaultdict(Counter)
    for row in scene_questions("train", 600):
        answers[row.question_type][row.answer] += 1
    most = {"count": 0.42, "color": 0.22, "shape": 0.28, "size": 0.6, "exists": 0.6, "relation": 0.6}
    for kind, limit in most.items():
        assert max(answers[kind].values()) / answers[kind].total() < limit, kind
    assert answers.keys() == most.keys()


def test_held_out_pairs_are_not_asked_about_in_training() -> None:
    for row in scene_questions("train", 200):
        assert not any(f"{color} {shape}" in row.question for color, shape in PAIRS)


def test_rows_can_be_opened() -> None:
    row = next(scene_questions("test", 1))
    assert Image.open(io.BytesIO(row.image.read())).size == (64, 64)
    assert row.id.startswith(row.image_id) and row.image_id.startswith("test-")


def test_bad_splits_and_counts_are_refused() -> None:
    with pytest.raises(InputError, match="split must be one of train, validation, test, pairs. Got 'dev'"):
        scenes("dev", 1)  # type: ignore[arg-type]
    with pytest.raises(InputError, match=r"count must be in \[0, inf\). Got -1"):
        scenes("train", -1)


def test_show_prints_and_saves(tmp_path, capsys: pytest.CaptureFixture[str]) -> None:
    argv = ["show", "--count", "2", "--folder", str(tmp_path)]
    with pytest.raises(SystemExit) as done:
        run_commands({"show": module.show}, module=module.MODULE, argv=argv)
    assert done.value.code == 0
    assert "how many" in capsys.readouterr().out
    assert len(list(tmp_path.glob("*.png"))) == 2
