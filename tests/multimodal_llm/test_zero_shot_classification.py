"""Scores are the model's own, labels and prompts are taken as they are meant, and reports count what is there."""

import csv
import importlib.util
import json
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from multimodal_llm.clip_applications.zero_shot_classification import (
    MODULE,
    TEMPLATES,
    ClassReport,
    ClipEncoder,
    ZeroShotClassifier,
    calibration_error,
    class_vectors,
    classify,
    embed_readable,
    evaluate,
    filled,
    load_clip,
    read_class_folders,
    scene_accuracy,
    single_scenes,
    templates_for,
    wilson_interval,
)
from multimodal_llm.visual_question_answering.data_loader import Skipped
from shared.config import run_commands
from shared.errors import InputError

ROOT = Path(__file__).parents[2]
spec = importlib.util.spec_from_file_location("tiny_models", Path(__file__).with_name("tiny_models.py"))
tiny_models = importlib.util.module_from_spec(spec)
spec.loader.exec_module(tiny_models)
LABELS = ["red", "a cat", "dog"]


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    return {"clip": tiny_models.tiny_clip(tmp_path_factory.mktemp("clip")),
            "siglip": tiny_models.tiny_siglip(tmp_path_factory.mktemp("siglip"))}  # fmt: skip


@pytest.fixture(scope="module")
def encoders(folders: dict[str, str]) -> dict[str, ClipEncoder]:
    return {name: load_clip(folder, "cpu") for name, folder in folders.items()}


def noise(seed: int, size: tuple[int, int] = (50, 40)) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 255, (size[1], size[0], 3), dtype=np.uint8))


def cli(*arguments: str) -> int:
    with pytest.raises(SystemExit) as stopped:
        run_commands({"classify": classify, "evaluate": evaluate}, module=MODULE, argv=arguments)
    return int(stopped.value.code or 0)


def results(run: str = "one") -> dict[str, Any]:
    return json.loads(Path(f"outputs/multimodal_llm/{run}/results.json").read_text())


# --- The model --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["clip", "siglip"])
def test_probabilities_are_those_of_the_pipeline(
    kind: str, folders: dict[str, str], encoders: dict[str, ClipEncoder]
) -> None:
    from transformers import pipeline

    theirs = pipeline("zero-shot-image-classification", model=folders[kind], device="cpu")
    classifier = ZeroShotClassifier(encoders[kind], LABELS, "this is {}.")
    for seed, size in enumerate([(50, 40), (31, 200), (33, 32)]):
        wanted = theirs(noise(seed, size), candidate_labels=LABELS, hypothesis_template="this is {}.")
        [ours] = classifier.classify([noise(seed, size)])
        assert [label for label, _ in ours] == [one["label"] for one in wanted]
        assert [value for _, value in ours] == pytest.approx([one["score"] for one in wanted], abs=1e-5)


@pytest.mark.parametrize("kind", ["clip", "siglip"])
def test_embeddings_and_logits_are_those_of_the_models_forward(
    kind: str, folders: dict[str, str], encoders: dict[str, ClipEncoder]
) -> None:
    import torch
    from transformers import AutoModel, AutoProcessor

    images, texts = [noise(i) for i in range(5)], ["a dog", "red", "two dogs and a cat", ""]
    padding = {"padding": "max_length", "max_length": 64} if kind == "siglip" else {"padding": True}
    inputs = AutoProcessor.from_pretrained(folders[kind])(images=images, text=texts, return_tensors="pt", **padding)
    with torch.inference_mode():
        output = AutoModel.from_pretrained(folders[kind])(**inputs)
    encoder = encoders[kind]
    seen, read = encoder.embed_images(images, batch_size=2), encoder.embed_texts(texts, batch_size=3)
    assert seen.dtype == read.dtype == np.float32 and seen.shape == (5, encoder.dimension)
    np.testing.assert_allclose(np.linalg.norm(np.concatenate([seen, read]), axis=1), 1, atol=1e-5)
    np.testing.assert_allclose(seen, output.image_embeds, atol=1e-5)
    np.testing.assert_allclose(encoder.logits(seen, read), output.logits_per_image, atol=1e-4)


def test_scores_of_clip_compete_and_those_of_siglip_stand_alone(encoders: dict[str, ClipEncoder]) -> None:
    vectors = {name: encoder.embed_images([noise(0)]) for name, encoder in encoders.items()}
    all_labels, fewer = ({name: ZeroShotClassifier(encoder, labels, "{}").probabilities(vectors[name])[0]
                          for name, encoder in encoders.items()} for labels in (LABELS, LABELS[:2]))  # fmt: skip
    assert all_labels["clip"].sum() == pytest.approx(1) and fewer["clip"].sum() == pytest.approx(1)
    np.testing.assert_allclose(all_labels["siglip"][:2], fewer["siglip"], atol=1e-6)


def test_nothing_to_embed_and_texts_longer_than_the_model_reads(encoders: dict[str, ClipEncoder]) -> None:
    for encoder in encoders.values():
        assert encoder.embed_images([]).shape == encoder.embed_texts([]).shape == (0, encoder.dimension)
        assert encoder.embed_texts(["a dog " * 500, "中文 \ud800"]).shape == (2, encoder.dimension)


@pytest.mark.parametrize("size", [(1, 1), (1, 3), (3, 1), (2, 4000), (50_000, 1)])
def test_odd_sizes_are_embedded_without_ado(size: tuple[int, int], encoders: dict[str, ClipEncoder]) -> None:
    for encoder in encoders.values():
        assert np.isfinite(encoder.embed_images([Image.new("RGB", size, "red")])).all()


def test_what_is_no_clip_is_refused_in_one_line(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="does not compare images with texts"):
        load_clip(tiny_models.tiny_vilt(tmp_path / "vilt"))
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="holds no model"):
        load_clip(str(tmp_path / "empty"))
    with pytest.raises(InputError, match="There is no 'builtin:other'"):
        load_clip("builtin:other")


# --- Prompts ----------------------------------------------------------------------------------------------------------


def test_an_ensemble_is_the_normalized_mean_of_normalized_embeddings(encoders: dict[str, ClipEncoder]) -> None:
    encoder, templates = encoders["clip"], TEMPLATES["photo"]
    ours = class_vectors(encoder, LABELS, templates)
    for label, vector in zip(LABELS, ours, strict=True):
        mean = np.mean([encoder.embed_texts([filled(template, label)])[0] for template in templates], axis=0)
        np.testing.assert_allclose(vector, mean / np.linalg.norm(mean), atol=1e-5)


def test_prompts_have_articles_chinese_and_files(tmp_path: Path) -> None:
    assert [filled("a photo of {a}.", label) for label in ("dog", "orange")] == ["a photo of a dog.",
                                                                                 "a photo of an orange."]  # fmt: skip
    assert filled("{}的照片", "猫") == "猫的照片"
    own = [filled(template, "A red diamond") for template in ("{}", "an image of {a}.", "a photo of the {}.", "A {}")]
    assert own == ["A red diamond", "an image of A red diamond.", "a photo of the red diamond.", "A red diamond"]
    assert [filled("{a}", label) for label in ("the sea", "a", "anthill")] == ["the sea", "an a", "an anthill"]
    assert templates_for("", ["猫", "dog"]) == TEMPLATES["zh"]
    assert templates_for("", ["dog"], "builtin:clip") == TEMPLATES["scene"]
    assert templates_for("", ["dog"], "openai/clip-vit-base-patch32") == TEMPLATES["photo"]
    (tmp_path / "mine.txt").write_text("a sketch of {}\n\n{a}\n")
    assert templates_for(str(tmp_path / "mine.txt"), ["dog"]) == ("a sketch of {}", "{a}")
    with pytest.raises(InputError, match="where the label goes"):
        templates_for("a photo", ["dog"])
    long = "a photo of {}, " + "which is large, " * 500  # longer than a file's name may be
    assert templates_for(long, ["dog"]) == (long,)


@pytest.mark.parametrize("labels", [[], ["dog", " dog"], ["dog", ""]])
def test_labels_must_be_different_and_not_empty(labels: list[str], encoders: dict[str, ClipEncoder]) -> None:
    with pytest.raises(InputError, match="labels must be different"):
        ZeroShotClassifier(encoders["clip"], labels)


def test_what_a_tokenizer_only_spells_in_bytes_is_not_read(encoders: dict[str, ClipEncoder]) -> None:
    builtin = load_clip("builtin:clip", "cpu")
    for encoder in (builtin, *encoders.values()):
        assert not any(map(encoder.reads, ("😀", "圆形", "圆形！", "圆形, 方形", "Ж")))
        assert all(map(encoder.reads, ("a dog", "café", "red 圆形", "12", "...", "")))
    # One whose vocabulary has the script reads it, whole characters or pieces of their bytes
    for pieces in (["圆", "形"], ["▁", "圆", "形"], ["åľĨ", "å", "½", "¢</w>"]):
        tokenizer = SimpleNamespace(unk_token="<unk>", tokenize=lambda text, pieces=pieces: pieces)
        assert ClipEncoder.reads(SimpleNamespace(processor=SimpleNamespace(tokenizer=tokenizer)), "圆形")


def test_labels_that_the_model_cant_read_are_refused_or_told(
    encoders: dict[str, ClipEncoder], caplog: pytest.LogCaptureFixture
) -> None:
    with pytest.raises(InputError, match="can't read '圆形'"):
        ZeroShotClassifier(encoders["clip"], ["圆形", "方形"])
    assert ZeroShotClassifier(encoders["clip"], ["圆形", "dog"]).unread == ["圆形"]
    assert "can't read 圆形" in caplog.text


@given(st.permutations(LABELS + ["blue", "一"]))
def test_the_order_of_labels_does_not_matter(encoders: dict[str, ClipEncoder], labels: list[str]) -> None:
    image = noise(1)
    [ours] = ZeroShotClassifier(encoders["clip"], labels, "{}").classify([image])
    [others] = ZeroShotClassifier(encoders["clip"], sorted(labels), "{}").classify([image])
    assert dict(ours) == pytest.approx(dict(others), abs=1e-5)
    assert [value for _, value in ours] == sorted((value for _, value in ours), reverse=True)


# --- How good it is ---------------------------------------------------------------------------------------------------


def test_a_report_counts_what_is_there() -> None:
    probabilities = np.array([[0.9, 0.1, 0], [0.6, 0.4, 0], [0.2, 0.8, 0], [0.1, 0.9, 0]])
    report = ClassReport(["a", "b", "never"], np.array([0, 1, 1, 1]), probabilities)
    assert report.per_class["a"] == pytest.approx((0.5, 1, 2 / 3, 1))
    assert report.per_class["b"] == pytest.approx((1, 2 / 3, 0.8, 3))
    assert report.per_class["never"] == (0, 0, 0, 0)
    assert report.confusion.tolist() == [[1, 0, 0], [1, 2, 0], [0, 0, 0]]
    metrics = report.metrics()
    assert metrics["accuracy"] == 0.75 and metrics["top-5 accuracy"] == 1
    assert metrics["macro-F1"] == pytest.approx((2 / 3 + 0.8) / 2)  # of the classes that are there
    assert metrics["accuracy low"] < 0.75 < metrics["accuracy high"]
    assert "macro-F1 0.7333" in str(report)
    assert next(line for line in str(report).split("\n") if "never" in line).split() == ["never", *"–––0"]


def test_calibration_error_and_interval_against_their_definitions() -> None:
    confidence, right = np.array([0.95, 0.95, 0.55, 1.0]), np.array([True, False, True, True])
    assert calibration_error(confidence, right) == pytest.approx((abs(2 - 2.9) + abs(1 - 0.55)) / 4)
    low, high = wilson_interval(81, 263)
    assert (low, high) == pytest.approx((0.2553, 0.3662), abs=1e-4)  # Newcombe, 1998, table I, method 3
    assert wilson_interval(0, 10)[0] == 0 and wilson_interval(10, 10)[1] == 1 and wilson_interval(0, 0) == (0, 1)


def test_the_confusion_matrix_is_drawn(tmp_path: Path) -> None:
    for many in (2, 40):
        truth = np.arange(many)
        labels = [f"类 ${i}_\udcff" for i in range(many)]
        ClassReport(labels, truth, np.eye(many)[truth[::-1]]).plot(tmp_path / f"{many}.png", "title $")
        with Image.open(tmp_path / f"{many}.png") as drawn:
            assert min(drawn.size) > 400


def test_scenes_of_one_object_are_unseen_and_repeatable(encoders: dict[str, ClipEncoder]) -> None:
    drawn = single_scenes(40, seed=3)
    assert all(len(one.scene.objects) == 1 for one in drawn) and drawn == single_scenes(40, seed=3)
    figures = scene_accuracy(encoders["clip"], count=40)
    assert set(figures) == {"shape_accuracy", "color_accuracy"} and all(0 <= f <= 1 for f in figures.values())


# --- Files ------------------------------------------------------------------------------------------------------------


def bad_and_odd_images(folder: Path) -> tuple[set[str], set[str]]:
    """Write images that can be opened, and files that can't; return the names of each."""
    folder.mkdir(parents=True, exist_ok=True)
    picture = noise(0)
    picture.save(folder / "plain.png")
    picture.convert("CMYK").save(folder / "cmyk.jpg")
    picture.convert("L").save(folder / "gray.png")
    Image.new("RGB", (1, 1)).save(folder / "one.png")
    picture.save(folder / "animated.gif", save_all=True, append_images=[noise(1), noise(2)])
    exif = Image.Exif()
    exif[0x0112] = 6
    picture.save(folder / "rotated.jpg", exif=exif)
    good = {path.name for path in folder.iterdir()}
    (folder / "text.png").write_text("no picture")
    (folder / "cut.png").write_bytes((folder / "plain.png").read_bytes()[:900])
    (folder / "empty.jpg").write_bytes(b"")
    Image.new("1", (20_000, 20_000)).save(folder / "bomb.png")
    return good, {path.name for path in folder.iterdir()} - good


def test_bad_images_are_left_out_with_a_report_and_odd_ones_are_not(
    tmp_path: Path, encoders: dict[str, ClipEncoder]
) -> None:
    good, bad = bad_and_odd_images(tmp_path)
    paths, skipped = sorted(tmp_path.iterdir()), Skipped()
    kept = dict(embed_readable(encoders["clip"], paths, skipped, batch_size=3))
    assert {paths[i].name for i in kept} == good and skipped.counts.total() == len(bad) == 4
    for i, vector in kept.items():  # as alone
        np.testing.assert_allclose(vector, encoders["clip"].embed_images([paths[i]])[0], atol=1e-5)


def test_an_image_is_seen_upright(tmp_path: Path, encoders: dict[str, ClipEncoder]) -> None:
    picture, exif = noise(5, (32, 32)), Image.Exif()
    exif[0x0112] = 6
    picture.save(tmp_path / "rotated.png", exif=exif)
    seen = encoders["clip"].embed_images([tmp_path / "rotated.png", picture.rotate(-90), picture])
    np.testing.assert_allclose(seen[0], seen[1], atol=1e-6)
    assert np.abs(seen[0] - seen[2]).max() > 1e-3


def test_folders_are_classes(tmp_path: Path) -> None:
    for name in ("guinea_pig/a", "猫", ".hidden", "without"):
        (tmp_path / name).mkdir(parents=True)
    noise(0).save(tmp_path / "guinea_pig/a/x.PNG")
    noise(1).save(tmp_path / "猫/y.jpg")
    noise(1).save(tmp_path / ".hidden/z.jpg")
    (tmp_path / "without/notes.txt").write_text("")
    labels, paths, truth = read_class_folders(tmp_path)
    assert (labels, [path.name for path in paths], truth) == (["guinea pig", "猫"], ["x.PNG", "y.jpg"], [0, 1])
    with pytest.raises(InputError, match="no class"):
        read_class_folders(tmp_path / "without")


# --- Commands ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("output", ["out/classes.csv", "out/classes.jsonl"])
def test_a_folder_is_classified_into_a_file_with_the_original_paths(
    output: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, folders: dict[str, str],
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    good, bad = bad_and_odd_images(Path("photos, mine"))
    Path("labels.txt").write_text("red\n猫\na cat, sleeping\n", encoding="utf-8")
    assert cli("classify", "--model", folders["clip"], "--input", "photos, mine", "--labels", "labels.txt",
               "--top_k", "2", "--output", output, "--run", "one") == 0  # fmt: skip
    text = Path(output).read_text(encoding="utf-8")
    if output.endswith(".csv"):
        rows = list(csv.DictReader(text.splitlines()))
        assert list(rows[0]) == ["image", "label 1", "probability 1", "label 2", "probability 2"]
    else:
        rows = [json.loads(line) for line in text.splitlines()]
        assert len(rows[0]["ranked"]) == 2 and rows[0]["label"] == rows[0]["ranked"][0][0]
    assert {row["image"] for row in rows} == {f"photos, mine/{name}" for name in good}
    metrics = results()["metrics"]
    assert metrics["images"] == len(good) and metrics["left out"] == len(bad) and metrics["labels"] == 3
    assert capsys.readouterr().out.count("photos, mine/") == len(good)


def test_labels_may_be_more_than_fit_into_a_file_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, folders: dict[str, str]
) -> None:
    monkeypatch.chdir(tmp_path)
    noise(0).save("photo.png")
    labels = ",".join(f"label number {i}" for i in range(60))
    assert cli("classify", "--model", folders["clip"], "--input", "photo.png", "--labels", labels, "--run", "one") == 0
    assert results()["metrics"]["labels"] == 60


def test_a_folder_of_classes_is_evaluated(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, folders: dict[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    for label, count in (("dog", 3), ("cat", 5)):
        Path("data", label).mkdir(parents=True)
        for i in range(count):
            noise(i).save(f"data/{label}/{i}.png")
    Path("data/dog/broken.png").write_text("no")
    assert cli("evaluate", "--model", folders["siglip"], "--data", "data", "--run", "one") == 0
    metrics = results()["metrics"]
    assert metrics["images"] == 8 and metrics["left out"] == 1 and metrics["classes"] == 2
    assert Path("outputs/multimodal_llm/one/confusion.png").exists() and "macro-F1" in capsys.readouterr().out


def test_the_scenes_are_evaluated_by_shape_and_color(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, folders: dict[str, str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert cli("evaluate", "--model", folders["clip"], "--count", "30", "--run", "one") == 0
    metrics = results()["metrics"]
    assert metrics["shape_classes"] == 6 and metrics["color_classes"] == 8 and metrics["shape_images"] == 30
    assert {"shape_accuracy", "color_accuracy", "shape_macro-F1"} <= set(metrics)
    plots = {path.name for path in Path("outputs/multimodal_llm/one").glob("*.png")}
    assert plots == {"shape_confusion.png", "color_confusion.png"}


@pytest.mark.parametrize(
    ("arguments", "message", "status"),
    [
        (["classify", "--input", "photo.png"], "labels must not be empty", 2),
        (["classify", "--input", "photo.png", "--labels", "a", "--output", "x.txt"], "must end with", 2),
        (["classify", "--input", "none.png", "--labels", "a"], "No such file", 1),
        (["classify", "--input", "empty", "--labels", "a"], "There is no image", 2),
        (["classify", "--batch_size", "0"], "batch_size must be in", 2),
        (["evaluate", "--count", "1000000"], "count must be in", 2),
        (["evaluate", "--data", "empty"], "There is no class", 2),
        (["evaluate", "--data", "org/name"], "data must be a folder", 2),
    ],
)
def test_wrong_use_is_told_in_one_line(
    arguments: list[str], message: str, status: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    Path("empty").mkdir()
    noise(0).save("photo.png")
    assert cli(*arguments) == status
    error = capsys.readouterr().err
    assert message in error and "Traceback" not in error
    assert not Path("outputs").exists()


def test_the_command_runs_from_a_shell(tmp_path: Path, folders: dict[str, str]) -> None:
    command = [sys.executable, "-m", MODULE, "classify", "--model", folders["clip"], "--labels", "red circle,blue star"]
    done = subprocess.run(command, cwd=tmp_path, env={"PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1", "HOME": "/"},
                          capture_output=True, text=True)  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("the scene ") == 8 and done.stdout.count("red circle") >= 8
