"""The index says what is in the folders, whatever happened to them; searches equal brute force; nothing is lost."""

import contextlib
import importlib.util
import json
import os
import random
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from multimodal_llm.clip_applications import image_search
from multimodal_llm.clip_applications.image_search import (
    MODULE,
    ImageIndex,
    best_cosines,
    best_threshold,
    build_index,
    caption_paths,
    distinct_scenes,
    evaluate,
    exact_vectors,
    index,
    look_at,
    nearest_rows,
    ranks,
    recall,
    remove,
    scene_recall,
    search,
)
from multimodal_llm.clip_applications.zero_shot_classification import load_clip
from shared.config import run_commands
from shared.errors import InputError

ROOT = Path(__file__).parents[2]
spec = importlib.util.spec_from_file_location("tiny_models", Path(__file__).with_name("tiny_models.py"))
tiny_models = importlib.util.module_from_spec(spec)
spec.loader.exec_module(tiny_models)


class Eyes:
    """Stands for a model: embeds an image as its pixels at 4 × 4, and a text as noise of its own."""

    dimension = 48

    def __init__(self, name: str = "eyes") -> None:
        self.name, self.seen = name, 0

    def pixels(self, image: Image.Image) -> Any:
        return np.asarray(image.resize((4, 4)), dtype=np.float32).ravel() - 127.2

    def embed_pixels(self, batch: Sequence[Any]) -> Any:
        self.seen += len(batch)
        return self.unit(batch)

    def unit(self, batch: Sequence[Any]) -> Any:
        rows = np.array(batch, dtype=np.float32).reshape(-1, self.dimension)
        return rows / np.linalg.norm(rows, axis=1, keepdims=True)

    def embed_images(self, images: Any, batch_size: int = 32) -> Any:
        from multimodal_llm.visual_question_answering.data_loader import open_image

        return self.unit([self.pixels(open_image(image)) for image in images])

    def reads(self, text: str) -> bool:
        return text.isascii()

    def embed_texts(self, texts: Sequence[str]) -> Any:
        rows = np.array([np.random.default_rng(list(f"{self.name} {text}".encode())).standard_normal(48)
                         for text in texts], dtype=np.float32)  # fmt: skip
        return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def picture(seed: int) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (8, 8, 3), dtype=np.uint8))


def folder_of(folder: Path, seeds: Sequence[int]) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for seed in seeds:
        picture(seed).save(folder / f"{seed}.png")
    return folder


def names(paths: Sequence[str]) -> list[str]:
    return [Path(path).name for path in paths]


def brute_force(paths: Sequence[Path], query: Any) -> list[tuple[str, float]]:
    cosines = Eyes().embed_images(paths).astype(np.float64) @ query
    return sorted(((str(path), round(float(c), 6)) for path, c in zip(paths, cosines, strict=True)),
                  key=lambda pair: (-pair[1], pair[0]))  # fmt: skip


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    return folder_of(tmp_path / "photos", range(6))


# --- What happens to folders ------------------------------------------------------------------------------------------


def test_an_update_finds_what_is_new_changed_moved_deleted_and_double(photos: Path, tmp_path: Path) -> None:
    eyes = Eyes()
    images = ImageIndex(tmp_path / "index", eyes)
    changes = images.update([photos])
    assert names(changes.new) == [f"{i}.png" for i in range(6)] and eyes.seen == len(images) == 6
    assert images.update([photos]).metrics() == {
        "new": 0, "changed": 0, "moved": 0, "duplicates": 0, "deleted": 0, "unchanged": 6, "left out": 0,
    }  # fmt: skip

    (photos / "deep/er").mkdir(parents=True)
    (photos / "0.png").rename(photos / "deep/er/moved.png")
    shutil.copy(photos / "1.png", photos / "double.png")
    (photos / "2.png").unlink()
    picture(99).save(photos / "3.png")
    picture(50).save(photos / "new.png")
    os.utime(photos / "4.png", ns=(1, 1))
    changes = images.update([photos])
    assert {Path(a).name: Path(b).name for a, b in changes.moved.items()} == {"0.png": "moved.png"}
    assert (names(changes.duplicates), names(changes.deleted)) == (["double.png"], ["2.png"])
    assert (names(changes.changed), names(changes.new), changes.unchanged) == (["3.png"], ["new.png"], 3)
    assert eyes.seen == 8  # the changed and the new one only
    assert sorted(map(os.path.basename, images.paths())) == [
        "1.png", "3.png", "4.png", "5.png", "double.png", "moved.png", "new.png",
    ]  # fmt: skip
    assert [names(group) for group in images.duplicates()] == [["1.png", "double.png"]]
    [found] = images.search(eyes.embed_images([picture(1)]), k=2)
    assert names(found.hits[0].paths) == ["1.png", "double.png"] and found.hits[0].cosine == pytest.approx(1)
    assert len(list((tmp_path / "index/thumbnails").iterdir())) == len(images) == 6


def test_files_that_swap_their_names_are_not_embedded_again(photos: Path, tmp_path: Path) -> None:
    eyes = Eyes()
    images = ImageIndex(tmp_path / "index", eyes)
    images.update([photos])
    for before, now in (("0.png", "x"), ("1.png", "0.png"), ("x", "1.png")):
        (photos / before).rename(photos / now)
    os.utime(photos / "0.png", ns=(7, 7))
    os.utime(photos / "1.png", ns=(8, 8))
    images.update([photos])
    assert eyes.seen == 6
    [found] = images.search(eyes.embed_images([picture(0)]), k=1)
    assert Path(found.hits[0].path).name == "1.png"


def test_other_folders_stay_and_a_missing_one_is_not_taken_for_empty(photos: Path, tmp_path: Path) -> None:
    other = folder_of(tmp_path / "photos2", [10, 11])
    images = ImageIndex(tmp_path / "index", Eyes())
    images.update([photos, other])
    shutil.rmtree(photos)
    assert images.update([other]).deleted == [] and len(images) == 8
    with pytest.raises(FileNotFoundError, match="No such file or folder"):
        images.update([photos])
    photos.mkdir()
    assert len(images.update([photos]).deleted) == 6 and len(images) == 2
    with pytest.raises(InputError, match="There is no image"):
        images.update([photos])
    assert names(images.remove([other / "10.png"])) == ["10.png"] and len(images) == 1
    assert images.remove([other]) == [str(other / "11.png")] and len(images) == 0
    assert images.search(Eyes().embed_images([picture(0)]))[0].hits == []
    assert len(images.update([other]).new) == 2 and len(images) == 2  # and it fills again


@pytest.mark.skipif(os.name == "nt" or os.geteuid() == 0, reason="everything can be read here")
def test_a_folder_that_cant_be_read_loses_nothing(photos: Path, tmp_path: Path) -> None:
    images = ImageIndex(tmp_path / "index", Eyes())
    folder_of(photos / "locked", [20])
    images.update([photos])
    (photos / "locked").chmod(0)
    try:
        changes = images.update([photos])
    finally:
        (photos / "locked").chmod(0o755)
    assert changes.deleted == [] and len(images) == 7 and changes.skipped.counts.total() == 1


def test_the_index_may_lie_in_the_folder_that_it_is_of(photos: Path) -> None:
    images = ImageIndex(photos / "index", Eyes())
    images.update([photos])
    assert images.update([photos]).unchanged == 6 and len(images) == 6
    ImageIndex(photos / "second", Eyes()).update([photos])  # nor are the thumbnails of another one images
    assert len(ImageIndex(photos / "second", Eyes())) == 6


def test_odd_images_are_found_and_bad_ones_reported(tmp_path: Path) -> None:
    photos = folder_of(tmp_path / "photos", range(3))
    picture(3).convert("CMYK").save(photos / "cmyk.jpg")
    picture(4).convert("L").save(photos / "gray.png")
    Image.new("RGB", (1, 1), "red").save(photos / "one.png")
    picture(5).save(photos / "animated.gif", save_all=True, append_images=[picture(6)])
    exif = Image.Exif()
    exif[0x0112] = 6
    picture(7).save(photos / "rotated.png", exif=exif)
    with contextlib.suppress(OSError):  # not every disk takes such a name
        (photos / os.fsdecode(b"caf\xe9.png")).write_bytes((photos / "0.png").read_bytes())
    good = {path.name for path in photos.iterdir()}
    (photos / "text.png").write_text("no picture")
    (photos / "twice.png").write_text("no picture")
    (photos / "cut.png").write_bytes((photos / "0.png").read_bytes()[:100])
    (photos / "empty.jpg").write_bytes(b"")
    Image.new("1", (20_000, 20_000)).save(photos / "bomb.png")
    (photos / "notes.txt").write_text("no image at all")
    os.mkfifo(photos / "pipe.png")
    images = ImageIndex(tmp_path / "index", Eyes())
    changes = images.update([photos])
    assert {os.path.basename(path) for path in images.paths()} == good
    assert changes.skipped.counts == {"the image can't be opened": 5}
    assert {os.path.basename(path) for path in changes.new + changes.duplicates} == good
    [found] = images.search_images([picture(7).rotate(-90)], k=1)
    assert Path(found.hits[0].path).name == "rotated.png" and found.hits[0].cosine == pytest.approx(1, abs=1e-5)
    assert images.update([photos]).metrics()["unchanged"] == len(good)


def test_a_few_bad_ones_among_a_thousand_cost_no_other(tmp_path: Path) -> None:
    photos = folder_of(tmp_path / "photos", range(1000))
    for i in range(0, 1000, 100):
        (photos / f"{i}.png").write_bytes(b"\x89PNG\r\n\x1a\n cut %d" % i)
    images = ImageIndex(tmp_path / "index", Eyes())
    assert images.update([photos]).metrics()["left out"] == 10 and len(images) == 990
    assert {int(Path(path).stem) for path in images.paths()} == {i for i in range(1000) if i % 100}


def test_a_file_that_changes_while_it_is_indexed_is_seen_again(photos: Path, tmp_path: Path) -> None:
    eyes = Eyes()

    def look(paths: Sequence[str]) -> Iterator[Any]:
        picture(77).save(paths[0])
        yield from look_at(eyes, paths)

    images = ImageIndex(tmp_path / "index", eyes)
    shutil.copy(photos / "0.png", photos / "same.png")
    images.update([photos], look=look)
    images.update([photos])
    for seed, name in ((77, "0.png"), (0, "same.png")):
        [found] = images.search_images([picture(seed)], k=1)
        assert names(found.hits[0].paths) == [name] and found.hits[0].cosine == pytest.approx(1)


# --- Searching --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["flat", "hnsw", "ivf"])
@settings(max_examples=12)
@given(steps=st.lists(st.tuples(st.sampled_from(["add", "delete", "copy"]), st.integers(0, 25)), min_size=3,
                      max_size=12), k=st.integers(1, 30))  # fmt: skip
def test_the_order_of_changes_does_not_matter_and_results_equal_brute_force(
    kind: str, steps: list[tuple[str, int]], k: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.mktemp("any")
    photos = folder_of(folder / "photos", [100])
    little = ImageIndex(folder / "little", Eyes(), kind)
    for what, seed in steps:
        path = photos / f"{seed}.png"
        if what == "delete":
            path.unlink(missing_ok=True)
        else:
            picture(seed).save(photos / f"{'copy' if what == 'copy' else ''}{seed}.png")
        little.update([photos])
    once = ImageIndex(folder / "once", Eyes(), kind)
    once.update([photos])
    again = ImageIndex(folder / "little", Eyes())
    query = Eyes().embed_images([picture(1000)])
    results = [[(hit.paths, hit.cosine) for hit in images.search(query, k)[0].hits] for images in (little, once, again)]
    assert results[0] == results[1] == results[2]
    first = {hit.path for hit in once.search(query, 1000)[0].hits}
    wanted = [pair for pair in brute_force(sorted(photos.glob("*.png")), query[0]) if pair[0] in first][:k]
    assert [(paths[0], round(cosine, 6)) for paths, cosine in results[0]] == wanted


def clustered(count: int, dimension: int, seed: int) -> Any:
    """Make unit vectors as models make them: in a cone, in clusters, each spread in few directions."""
    world, rng = np.random.default_rng(0), np.random.default_rng(seed)
    centers = world.standard_normal((60, dimension)) * 0.6 + world.standard_normal(dimension)
    spread = world.standard_normal((12, dimension)) * 0.3
    rows = centers[rng.integers(60, size=count)] + rng.standard_normal((count, 12)) @ spread
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)


@pytest.mark.parametrize("kind", ["flat", "hnsw", "ivf"])
def test_every_kind_of_index_finds_nearly_all_of_the_true_neighbors(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(image_search, "FEWEST", 4000)
    vectors, queries = clustered(5000, 32, 1), clustered(100, 32, 2)
    built = build_index(kind, vectors)
    np.testing.assert_array_equal(exact_vectors(built), vectors)
    wanted = np.argsort(-(queries @ vectors.T), axis=1)[:, :10]
    found = nearest_rows(built, queries, 10)
    share = np.mean([len(set(a) & set(b)) / 10 for a, b in zip(found.tolist(), wanted.tolist(), strict=True)])
    assert share >= (0.999 if kind == "flat" else 0.95)


@pytest.mark.parametrize("kind", ["hnsw", "ivf"])
def test_deleted_images_are_never_found_in_an_approximate_index(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(image_search, "FEWEST", 1500)
    photos = folder_of(tmp_path / "photos", range(40))
    vectors = clustered(2000, 48, 3)
    some = folder_of(tmp_path / "some", [0])
    images = ImageIndex(tmp_path / "index", Eyes(), kind)
    # As if two thousand files had been looked at
    stat = {f"{some}/{i}.png": (1, 1) for i in range(len(vectors))}
    with images._writer() as state:
        files = {f"{i:064}": {path: its} for i, (path, its) in enumerate(stat.items())}
        images._commit(state, files, {f"{i:064}": vector for i, vector in enumerate(vectors)})
    assert images.update([photos]).metrics()["new"] == 40 and len(images) == 2040
    best = [hit.path for hit in images.search(vectors[:1], 60)[0].hits]
    assert best[0] == f"{some}/0.png"
    images.remove(best[:50])  # all around the query are gone, but they are holes: 50 of 2,040
    left = images.search(vectors[:1], 20)[0].hits
    assert len(left) == 20 and not {hit.path for hit in left} & set(best[:50]) and left[0].path == best[50]
    images.remove([some])
    assert len(images) == 40 and len(images.search(vectors[:1], 100)[0].hits) == 40


def test_ranks_and_recall_against_a_loop() -> None:
    rng = np.random.default_rng(0)
    images, texts = rng.standard_normal((30, 8)).astype(np.float32), rng.standard_normal((50, 8)).astype(np.float32)
    image_ids, text_ids = list(range(30)), [i % 30 for i in range(50)]
    wanted = []
    for text, own in zip(texts, text_ids, strict=True):
        order = np.argsort(-(images @ text))
        wanted.append(1 + order.tolist().index(own))
    assert ranks(texts, images, text_ids, image_ids).tolist() == wanted
    assert recall(images, texts, image_ids, text_ids, at=[5])["text to image R@5"] == np.mean(np.array(wanted) <= 5)
    same = np.ones((30, 8), np.float32)
    assert ranks(same, same, image_ids, image_ids).tolist() == [30] * 30  # who sees no difference is last


# --- No match ---------------------------------------------------------------------------------------------------------


@given(st.lists(st.integers(-9, 9), min_size=1, max_size=30), st.lists(st.integers(-9, 9), min_size=1, max_size=30))
def test_the_threshold_is_the_best_there_is(matching: list[int], others: list[int]) -> None:
    def balanced(threshold: float) -> float:
        return np.mean(np.array(matching) >= threshold) + np.mean(np.array(others) < threshold)

    found = best_threshold(np.array(matching, dtype=float), np.array(others, dtype=float))
    assert balanced(found) == pytest.approx(max(balanced(t / 2) for t in range(-21, 22)))


def test_best_cosines_leave_out_what_is_the_querys_own() -> None:
    gallery = np.eye(3, dtype=np.float32)
    queries = np.array([[0.8, 0.6, 0], [0, 0, 1]], dtype=np.float32)
    np.testing.assert_allclose(best_cosines(queries, gallery, ["a", "c"], ["a", "b", "c"]), [[0.8, 1], [0.6, 0]],
                               atol=1e-6)  # fmt: skip
    np.testing.assert_allclose(best_cosines(queries[:1], gallery, ["a"], ["a", "a", "c"])[1], 0, atol=1e-6)


def test_no_match_is_calibrated_saved_and_told(tmp_path: Path) -> None:
    photos = folder_of(tmp_path / "photos", range(60))
    images = ImageIndex(tmp_path / "index", Eyes())
    images.update([photos])
    [before] = images.search_images([picture(0)], k=1)
    assert before.match is None and images.calibrations == {}
    found = images.calibrate({str(photos / f"{i}.png"): [f"number {i}"] for i in range(60)})
    assert set(found) == {"image", "text"} and found["image"].gallery == 60
    assert found["image"].found > 0.9 and found["image"].refused > 0.9
    again = ImageIndex(tmp_path / "index", Eyes())
    assert again.calibrations == found
    assert again.search_images([picture(0)], k=1)[0].match is True
    assert again.search_images([picture(4711)], k=1)[0].match is False
    [some] = again.search_images([picture(0)], k=9)
    assert [hit.match for hit in some.hits] == [hit.cosine >= found["image"].threshold for hit in some.hits]
    assert {hit.match for hit in some.hits} == {True, False}
    again.update([folder_of(tmp_path / "photos", [61])])
    assert again.calibrations == found  # stays until it is made anew
    few = ImageIndex(tmp_path / "few", Eyes())
    few.update([folder_of(tmp_path / "little", range(5))])
    assert few.calibrate() == {}


# --- Files of the index -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("killed_at", range(1, 4))
def test_a_kill_at_any_write_leaves_the_old_index_whole(
    killed_at: int, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    images = ImageIndex(tmp_path / "index", Eyes())
    images.update([photos])
    writes, real = [], image_search.write_atomic

    def write(path: Path, content: Any) -> None:
        writes.append(path)
        if len(writes) == killed_at:
            raise SystemExit("killed")
        real(path, content)

    folder_of(photos, [6, 7])
    with monkeypatch.context() as patched, pytest.raises(SystemExit):
        patched.setattr(image_search, "write_atomic", write)
        images.update([photos])
    again = ImageIndex(tmp_path / "index", Eyes())
    assert len(again) == len(images) == 6
    assert again.search_images([picture(3)], k=1)[0].hits[0].path == str(photos / "3.png")
    assert len(again.update([photos]).new) == 2 and len(images) == 8
    files = {path.name for path in (tmp_path / "index").iterdir()} - {"lock", "thumbnails", "manifest.json"}
    assert len(files) == 4  # of this generation and the one before


def test_ctrl_c_keeps_what_was_embedded(photos: Path, tmp_path: Path) -> None:
    eyes = Eyes()

    def look(paths: Sequence[str]) -> Iterator[Any]:
        yield from look_at(eyes, paths[:4])
        raise KeyboardInterrupt

    images = ImageIndex(tmp_path / "index", eyes)
    with pytest.raises(KeyboardInterrupt, match="4 of 6 are in the index"):
        images.update([photos], look=look)
    assert len(images) == 4
    assert len(images.update([photos]).new) == 2 and eyes.seen == 6


CALIBRATION = {"threshold": 0.3, "found": 1.0, "refused": 1.0, "queries": 20, "gallery": 20}


def altered_manifest(**changes: Any) -> Callable[[Path], Any]:
    """Return what writes other values into an index's manifest; None takes one out."""

    def damage(folder: Path) -> None:
        said = json.loads((folder / "manifest.json").read_text()) | changes
        kept = {name: value for name, value in said.items() if value is not None}
        (folder / "manifest.json").write_text(json.dumps(kept))

    return damage


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda folder: (folder / "manifest.json").write_text("{"), "not of an image index"),
        (lambda folder: (folder / "manifest.json").write_text('{"name": "app"}'), "not of an image index"),
        (altered_manifest(format=2), "not one of format 1"),
        (altered_manifest(generation="abc"), "not one of format 1"),
        (altered_manifest(generation=float("inf")), "not one of format 1"),
        (altered_manifest(model=None), "not one of format 1"),
        (altered_manifest(probe=[0.1] * 8), "another version of this program"),
        (altered_manifest(probe=[float("nan")] * 16), "another version of this program"),
        (altered_manifest(**{"no match": {"text": CALIBRATION | {"threshold": "0.3"}}}), "not one of format 1"),
        (altered_manifest(**{"no match": {"text": CALIBRATION | {"threshold": float("nan")}}}), "not one of format 1"),
        (lambda folder: [path.unlink() for path in folder.glob("index-*")], "is missing"),
        (lambda folder: [path.write_bytes(path.read_bytes()[:-1]) for path in folder.glob("index-*")], "not what was"),
        (lambda folder: [path.write_text("[]\n") for path in folder.glob("entries-*")], "not what was"),
        (lambda folder: (folder / "manifest.json").write_text(
            (folder / "manifest.json").read_text().replace('"index-0', '"../index-0')), "names no file"),
    ],
)  # fmt: skip
def test_damage_is_told_and_never_searched(
    damage: Callable[[Path], None], message: str, photos: Path, tmp_path: Path
) -> None:
    ImageIndex(tmp_path / "index", Eyes()).update([photos])
    damage(tmp_path / "index")
    with pytest.raises(InputError, match=message):
        ImageIndex(tmp_path / "index", Eyes())


@pytest.mark.parametrize("tower", ["embed_texts", "pixels"])
def test_a_model_of_the_same_name_with_another_tower_is_refused(
    tower: str, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ImageIndex(tmp_path / "index", Eyes()).update([photos])
    real = getattr(Eyes, tower)
    monkeypatch.setattr(Eyes, tower, lambda self, given: -real(self, given))
    with pytest.raises(InputError, match="of another model that was called eyes"):
        ImageIndex(tmp_path / "index", Eyes())


def test_files_of_others_are_never_deleted(photos: Path, tmp_path: Path) -> None:
    for name in ("index-001.png", "entries-1.png", "index-notes.txt", ".index-000000001.faiss.mine"):
        (photos / name).write_text("mine")
    with pytest.raises(InputError, match="is not empty, and holds no image index"):
        ImageIndex(photos, Eyes())
    (tmp_path / "app").mkdir()
    (tmp_path / "app/manifest.json").write_text('{"name": "app"}')
    with pytest.raises(InputError, match="not of an image index") as refused:
        ImageIndex(tmp_path / "app", Eyes())
    assert refused.value.hint == "another --folder"

    images = ImageIndex(tmp_path / "index", Eyes())
    images.update([photos])
    shutil.copytree(photos, tmp_path / "index", dirs_exist_ok=True)  # whoever puts files there afterwards
    (tmp_path / "index/thumbnails/family.png").write_text("mine")
    own = {path for path in (tmp_path / "index").rglob("*") if path.suffix not in (".faiss", ".jsonl")}
    for seed in (6, 7, 8):
        images.update([folder_of(photos, [seed])])
    assert all(path.exists() for path in own)
    assert len(list((tmp_path / "index").glob("*.faiss"))) == 2  # of its own, only the last two stay


def test_a_damaged_index_is_made_anew_as_its_hint_says(photos: Path, tmp_path: Path) -> None:
    ImageIndex(tmp_path / "index", Eyes()).update([photos])
    altered_manifest(generation="abc")(tmp_path / "index")
    with pytest.raises(InputError, match="damaged") as refused:
        ImageIndex(tmp_path / "index", Eyes())
    assert f"delete {tmp_path / 'index' / 'manifest.json'}" in refused.value.hint
    (tmp_path / "index/manifest.json").unlink()
    assert len(ImageIndex(tmp_path / "index", Eyes()).update([photos]).new) == 6


def test_another_model_or_kind_is_refused(photos: Path, tmp_path: Path) -> None:
    ImageIndex(tmp_path / "index", Eyes(), "hnsw").update([photos])
    with pytest.raises(InputError, match="is of the model eyes, not others"):
        ImageIndex(tmp_path / "index", Eyes("others"))
    with pytest.raises(InputError, match="is hnsw, not ivf"):
        ImageIndex(tmp_path / "index", Eyes(), "ivf")
    with pytest.raises(InputError, match="index must be one of"):
        ImageIndex(tmp_path / "index", Eyes(), "annoy")
    assert ImageIndex(tmp_path / "index", Eyes()).kind == "hnsw"
    images = ImageIndex(tmp_path / "index", Eyes())
    with pytest.raises(InputError, match="embeddings of 48 numbers"):
        images.search(np.ones((1, 3), np.float32))
    with pytest.raises(InputError, match="k must be in"):
        images.search_images([picture(0)], k=0)
    with pytest.raises(InputError, match="The query is empty"):
        images.search_texts([" "])
    with pytest.raises(InputError, match="can't read '😀'"):
        images.search_texts(["a dog", "😀"])


# --- Real models, processes and commands ------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> str:
    return tiny_models.tiny_clip(tmp_path_factory.mktemp("clip"))


@pytest.mark.parametrize("kind", ["clip", "siglip"])
def test_models_of_the_hubs_classes_index_and_search(kind: str, photos: Path, tmp_path: Path) -> None:
    encoder = load_clip(getattr(tiny_models, f"tiny_{kind}")(tmp_path / "model"), "cpu")
    images = ImageIndex(tmp_path / "index", encoder)
    images.update([photos])
    [by_text] = images.search_texts(["a red dog"], k=6)
    vectors, [query] = encoder.embed_images(sorted(photos.iterdir())), encoder.embed_texts(["a red dog"])
    wanted = sorted(zip(vectors @ query, range(6), strict=True), reverse=True)
    assert [Path(hit.path).stem for hit in by_text.hits] == [str(i) for _, i in wanted]
    assert [hit.cosine for hit in by_text.hits] == pytest.approx([cosine for cosine, _ in wanted], abs=1e-5)
    with Image.open(by_text.hits[0].thumbnail) as small:
        assert small.format == "JPEG" and max(small.size) <= 160


WRITER = """
import sys
from multimodal_llm.clip_applications.image_search import ImageIndex
import importlib.util
spec = importlib.util.spec_from_file_location("tests_of_search", sys.argv[1])
module = importlib.util.module_from_spec(spec)
spec.loader.exec_module(module)
images = ImageIndex(sys.argv[2], module.Eyes())
for name in sys.argv[3:]:
    images.update([name])
"""


def test_two_processes_write_and_one_reads(tmp_path: Path) -> None:
    folders = [folder_of(tmp_path / f"photos{n}", range(10 * n, 10 * n + 10)) for n in range(6)]
    images = ImageIndex(tmp_path / "index", Eyes())
    images.update([folder_of(tmp_path / "first", [100])])
    writers = [
        subprocess.Popen(
            [sys.executable, "-c", WRITER, __file__, tmp_path / "index", *folders[part::2]],
            env={**os.environ, "PYTHONPATH": str(ROOT)}, stderr=subprocess.PIPE,
        )
        for part in range(2)
    ]  # fmt: skip
    sizes, query = [], Eyes().embed_images([picture(100)])
    while any(writer.poll() is None for writer in writers):
        [found] = images.search(query, k=100)
        sizes.append(len(found.hits))
        assert found.hits[0].path == str(tmp_path / "first/100.png")
    for writer in writers:
        assert writer.wait() == 0, writer.stderr.read().decode()
    assert sizes == sorted(sizes) and len(images) == 61
    assert all((size - 1) % 10 == 0 for size in sizes)  # whole generations only


def cli(*arguments: str) -> int:
    commands = {"index": index, "search": search, "remove": remove, "evaluate": evaluate}
    with pytest.raises(SystemExit) as stopped:
        run_commands(commands, module=MODULE, argv=arguments)
    return int(stopped.value.code or 0)


def metrics_of(run: str) -> dict[str, Any]:
    return json.loads(Path(f"outputs/multimodal_llm/{run}/results.json").read_text())["metrics"]


def test_the_commands_index_search_and_forget(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, clip: str, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    folder_of(photos, range(30))
    shutil.copy(photos / "7.png", photos / "z.png")
    (photos / "bad.png").write_text("no")
    lines = [json.dumps({"image": f"{i}.png", "caption": f"number {i}"}) for i in range(30)]
    Path("captions.jsonl").write_text("\n".join(lines))
    assert cli("index", "--input", "photos", "--model", clip, "--captions", "captions.jsonl", "--run", "one") == 0
    assert "30 images in 31 files; new 30" in capsys.readouterr().out
    metrics = metrics_of("one")
    assert metrics["duplicates"] == metrics["left out"] == 1
    assert 0 <= metrics["text, refused"] <= 1 and -1 <= metrics["image, threshold"] <= 1

    query = ["--text", "a red dog, a cat | one", "--image", "photos/7.png", "--k", "3"]
    assert cli("search", "--model", clip, *query, "--run", "two") == 0
    shown = capsys.readouterr().out
    assert "photos/7.png   * is a match\n" in shown
    assert f"  * 1.0000  {photos}/7.png   and 1 with the same content" in shown
    found = [json.loads(line) for line in Path("outputs/multimodal_llm/two/found.jsonl").read_text().splitlines()]
    assert [one["query"] for one in found] == ["a red dog, a cat", "one", "photos/7.png"]
    assert found[2]["match"] is True
    assert found[2]["hits"][0]["paths"] == [f"{photos}/7.png", f"{photos}/z.png"]

    assert cli("remove", "--model", clip, "--paths", "photos/7.png") == 0
    assert cli("remove", "--model", clip) == 0
    assert capsys.readouterr().out.count(".png\n") == 1 + 30


def test_a_search_says_what_lacks_for_it_to_know_a_match_and_where_the_gallery_is(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, clip: str, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert cli("index", "--input", "photos", "--model", clip) == 0
    assert cli("search", "--text", "red", "--image", "photos/1.png", "--model", clip) == 0
    shown = capsys.readouterr().out
    assert "red   the nearest; to know what is a match, index with --captions of 20 images at least" in shown
    assert "1.png   the nearest; to know what is a match, index 20 images at least" in shown
    Path("outputs/multimodal_llm/index").rename("outputs/multimodal_llm/gallery_index")
    assert cli("search", "--text", "red", "--model", clip) == 2
    hint = capsys.readouterr().err
    assert "index --input PHOTOS; or --folder outputs/multimodal_llm/gallery_index, the gallery" in hint


def test_an_emptied_folder_empties_the_index_and_is_no_error(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, clip: str, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert cli("index", "--input", "photos", "--model", clip) == 0
    shutil.rmtree(photos)
    photos.mkdir()
    assert cli("index", "--input", "photos", "--model", clip) == 0
    shown = capsys.readouterr().out
    assert "0 images in 0 files" in shown and "There is no image left in photos: all were removed" in shown


def test_captions_are_found_by_path_or_by_a_name_that_only_one_has(photos: Path, tmp_path: Path) -> None:
    folder_of(photos / "deep", [0, 77])
    lines = [{"image": name, "caption": name} for name in ("photos/deep/0.png", "0.png", "1.png", "77", "none.png")]
    (tmp_path / "captions.jsonl").write_text("\n".join(map(json.dumps, lines)))
    found = caption_paths(tmp_path / "captions.jsonl", [str(path) for path in photos.rglob("*.png")])
    assert {os.path.relpath(path, photos): its for path, its in found.items()} == {
        "deep/0.png": ["photos/deep/0.png"], "1.png": ["1.png"], "deep/77.png": ["77"],
    }  # fmt: skip


def test_a_search_without_anything_shows_a_gallery(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, clip: str, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(image_search, "GALLERY_SIZE", 40)
    assert cli("search", "--model", clip, "--run", "one") == 0
    assert "40 images in 40 files" in (shown := capsys.readouterr().out) and shown.count("scene-") == 15
    assert metrics_of("one")["queries"] == 3


def test_recall_of_a_folder_and_of_the_scenes(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, clip: str, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    lines = [json.dumps({"image": f"{i}.png", "captions": [f"number {i}", f"{i}!"]}) for i in range(6)]
    (photos / "captions.jsonl").write_text("\n".join(lines))
    (photos / "3.png").write_text("broken")
    assert cli("evaluate", "--data", "photos", "--model", clip, "--run", "one") == 0
    metrics = metrics_of("one")
    assert (metrics["images"], metrics["captions"], metrics["left out"]) == (5, 10, 1)
    assert metrics["text to image R@5"] == 1 and 0 <= metrics["image to text R@1"] <= 1
    said = [[f"number {i}", " "] if i % 2 else [""] for i in range(6)]
    lines = [json.dumps({"image": f"{i}.png", "captions": its}) for i, its in enumerate(said)]
    (photos / "captions.jsonl").write_text("\n".join(lines))
    assert cli("evaluate", "--data", "photos", "--model", clip, "--run", "half") == 0
    metrics = metrics_of("half")  # of 1 and 5: the others say nothing, and 3 is broken
    assert (metrics["images"], metrics["captions"], metrics["left out"]) == (2, 2, 6 + 1)
    assert metrics["image to text R@5"] == 1
    (photos / "captions.jsonl").write_text('{"image": "1.png", "caption": " "}')
    assert cli("evaluate", "--data", "photos", "--model", clip) == 2
    assert "All captions of images in photos are empty" in capsys.readouterr().err
    assert cli("evaluate", "--count", "40", "--model", clip, "--run", "two") == 0
    figures = metrics_of("two")
    assert figures == pytest.approx(scene_recall(load_clip(clip), 40))
    assert {"text to image R@1", "image to text R@5", "text, no match told", "image, match found"} <= set(figures)
    captions = [one.scene.caption for one in distinct_scenes(100)]
    assert len(set(captions)) == 100


@pytest.mark.parametrize(
    ("arguments", "message", "status"),
    [
        (["index", "--input", "none"], "No such file or folder", 1),
        (["index", "--input", "empty", "--model", "MODEL"], "There is no image", 2),
        (["index", "--input", "texts", "--model", "MODEL"], "None of the images could be opened", 2),
        (["index", "--index", "annoy"], "annoy", 2),
        (["search", "--text", "a dog", "--folder", "empty"], "There is no image index", 2),
        (["search", "--text", "a dog", "--folder", "empty"], "index --input PHOTOS --folder empty", 2),
        (["search", "--text", " | ", "--folder", "empty"], "text must not be empty", 2),
        (["search", "--folder", "empty"], "text must not be empty", 2),
        (["search", "--text", " "], "text must not be empty", 2),
        (["search", "--k", "0"], "k must be in", 2),
        (["evaluate", "--data", "empty"], "captions.jsonl", 1),
        (["evaluate", "--count", "3"], "count must be in", 2),
    ],
)
def test_wrong_use_is_told_in_one_line(
    arguments: list[str], message: str, status: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, clip: str,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    Path("empty").mkdir()
    Path("texts").mkdir()
    Path("texts/a.png").write_text("no")
    assert cli(*(clip if argument == "MODEL" else argument for argument in arguments)) == status
    error = capsys.readouterr().err
    assert message in error and "Traceback" not in error


def test_altered_images_stay_images(tmp_path: Path) -> None:
    for size in ((1, 1), (3, 900), (500, 700)):
        data = image_search.altered(Image.new("RGB", size, "teal"), random.Random(0))
        assert image_search.open_image(data).mode == "RGB"
