"""Data comes in as it should, whatever is wrong with it, and answers are scored by the official script's rules."""

import io
import json
import os
import re
import struct
import tracemalloc
import zipfile
import zlib
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from multimodal_llm.visual_question_answering import data_loader
from multimodal_llm.visual_question_answering.data_loader import (
    CONTRACTIONS,
    IMAGE_SUFFIXES,
    MODULE,
    ArchiveImage,
    DataConfig,
    QuestionPrior,
    Skipped,
    VQAData,
    VQARecord,
    answer_counts,
    answer_vocabulary,
    as_rgb,
    files_below,
    load_vqa,
    normalize_answer,
    open_image,
    open_images,
    question_type,
    report,
    split_by_image,
    split_name,
    vqa_accuracy,
)
from shared.benchmark import Skip, data_folder
from shared.config import run_commands
from shared.errors import InputError

PIL = pytest.importorskip("PIL.Image")


def cli(*arguments: str) -> int:
    with pytest.raises(SystemExit) as exit_:
        run_commands({"report": report}, module=MODULE, argv=["report", *arguments])
    return exit_.value.code


def png(color: str = "red", size: tuple[int, int] = (4, 3)) -> bytes:
    return encoded(PIL.new("RGB", size, color), "PNG")


def encoded(image: Any, kind: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def record(id: str, question: str, answers: dict[str, int], image_id: str = "", kind: str = "") -> VQARecord:
    return VQARecord(id, None, image_id or id, question, answers, kind or question_type(question))


def load(path: Path, **options: Any) -> VQAData:
    return load_vqa(DataConfig(data=str(path), **options), divide=False)


def jsonl(folder: Path, *rows: Any, name: str = "questions.jsonl") -> Path:
    (folder / name).write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows))
    return folder / name


# --- Rules ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("answer", "normalized"),
    [  # as the official script gives them
        ("The Dog.", "dog"),
        ("a red hat", "red hat"),
        ("An apple, a pear", "apple pear"),
        ("two", "2"),
        ("None", "0"),
        ("ten dogs", "10 dogs"),
        ("eleven", "eleven"),
        ("dont", "don't"),
        ("couldntve", "couldntve"),
        ("couldnt've", "couldn't've"),
        ("somebody'd", "somebodyd"),
        ("were", "were"),
        ("I've", "i've"),
        ("1,000", "1000"),
        ("1,000 red/blue", "1000 redblue"),  # a comma between digits makes all punctuation go without a trace
        ("red/blue", "red blue"),
        ("red / blue", "red blue"),
        ("t-shirt", "t shirt"),
        ("t-shirt -", "tshirt"),  # one dash beside a blank decides for all of them
        ("3.5", "3.5"),
        ("u.s.", "us"),
        (".5", ".5"),
        ("10:30", "10:30"),
        ("it's", "it's"),
        ("yes!", "yes"),
        ("what?!", "what"),
        ("(left)", "left"),
        ("back\\slash", "back slash"),
        ("a\nb\tc", "b c"),
        ("the", ""),
        ("", ""),
        ("红色", "红色"),
        ("." * 40 + "x", "........x"),  # the script strips 32 periods
    ],
)
def test_answers_are_normalized_by_the_official_rules(answer: str, normalized: str) -> None:
    assert normalize_answer(answer) == normalized


def test_the_table_of_contractions_is_the_official_one() -> None:
    assert len(CONTRACTIONS) == 114  # of the script, without those it can never reach or that change nothing
    assert CONTRACTIONS["yall'd've"] == CONTRACTIONS["y'all'dve"] == "y'all'd've"
    assert CONTRACTIONS["ow's'at"] == "'ow's'at" and CONTRACTIONS["twas"] == "'twas"


@pytest.mark.parametrize(("same", "accuracy"), [(0, 0), (1, 0.3), (2, 0.6), (3, 0.9), (4, 1), (9, 1), (10, 1)])
def test_accuracy_of_ten_people(same: int, accuracy: float) -> None:
    answers = {"yes": same, "no": 10 - same} if same < 10 else {"yes": 10}
    assert vqa_accuracy("Yes", {k: n for k, n in answers.items() if n}) == pytest.approx(accuracy)


def left_out(prediction: str, answers: list[str]) -> float:
    """The definition, spelled out."""
    subsets = [answers[:i] + answers[i + 1 :] for i in range(len(answers))]
    return float(np.mean([min(1, subset.count(prediction) / 3) for subset in subsets]))


@given(st.lists(st.sampled_from(["yes", "no", "2", "blue"]), min_size=4, max_size=10))
def test_accuracy_is_the_mean_over_leaving_each_person_out(answers: list[str]) -> None:
    for flag in (False, True):
        assert vqa_accuracy("yes", Counter(answers), unanimous_as_written=flag) == pytest.approx(
            left_out("yes", answers)
        )


def test_accuracy_of_few_people() -> None:
    assert vqa_accuracy("the circle.", {"Circle": 1}) == 1
    assert vqa_accuracy("square", {"Circle": 1}) == 0
    assert vqa_accuracy("a", {"b": 1, "c": 1}) == 0
    assert vqa_accuracy("b", {"b": 2}) == 1
    assert vqa_accuracy("b", {"b": 1, "c": 1}) == 0.5
    with pytest.raises(InputError, match="one at least"):
        vqa_accuracy("b", {})


def test_accuracy_of_unanimous_answers_can_be_the_scripts() -> None:
    assert vqa_accuracy("Yes.", {"yes": 10}) == 1
    assert vqa_accuracy("Yes.", {"yes": 10}, unanimous_as_written=True) == 0
    assert vqa_accuracy("yes\n", {"yes": 10}, unanimous_as_written=True) == 1
    assert vqa_accuracy("Two", {"2": 5, "two": 5}, unanimous_as_written=True) == 1


@pytest.mark.parametrize(
    ("question", "kind"),
    [
        ("How many red circles are there?", "count"),
        ("what color is the triangle?", "color"),
        ("what is the color of the bus", "color"),
        ("what shape does the image contain?", "shape"),
        ("Is there a teal rectangle?", "exists"),
        ("does the image not contain a gray shape?", "exists"),
        ("Is the circle left of the square?", "relation"),
        ("is this a dog?", "yes/no"),
        ("which size is it", "size"),
        ("Where is the dog?", "where"),
        ("what time is it?", "when"),
        ("why", "why"),
        ("what is he holding?", "what"),
        ("图中有几个圆？", "count"),
        ("三角形是什么颜色？", "color"),
        ("圆在方块左边吗？", "relation"),
        ("有红色的圆吗？", "yes/no"),
        ("name it", "other"),
    ],
)
def test_types_of_questions(question: str, kind: str) -> None:
    assert question_type(question) == kind


@pytest.mark.parametrize(
    ("value", "counts"),
    [
        ("red", {"red": 1}),
        (3, {"3": 1}),
        (0, {"0": 1}),
        (True, {"yes": 1}),
        (["b", "a", "a", " ", None], {"a": 2, "b": 1}),
        ([{"answer": "no", "answer_id": 1}, {"answer": "no"}, {"else": 1}], {"no": 2}),
        ({"answer": ["x", "x", "y"], "answer_id": [1, 2, 3]}, {"x": 2, "y": 1}),
        ({"a": 2, "b": 3, "c": 0}, {"b": 3, "a": 2}),
        (None, {}),
        ([], {}),
        ("", {}),
    ],
)
def test_answers_are_read_however_they_are_given(value: Any, counts: dict[str, int]) -> None:
    assert answer_counts(value) == counts
    assert list(answer_counts(value)) == list(counts)


# --- What can be had without looking ----------------------------------------------------------------------------------


def test_the_prior_falls_back_from_question_to_type_to_all() -> None:
    records = [
        record("1", "What color is it?", {"red": 1}), record("2", "what color is it", {"Red": 1}),
        record("3", "what color is it", {"blue": 3}), record("4", "what color is the dog", {"red": 2}),
        record("5", "is it a dog", {"yes": 9}),
    ]  # fmt: skip
    prior = QuestionPrior(records)
    assert prior.predict(record("x", "What color is it??", {})) == "blue"
    assert prior.predict(record("x", "What color is it??", {}), "type") == "red"
    assert prior.predict(record("x", "what color is she", {})) == "red"
    assert prior.predict(record("x", "how many", {})) == "yes"
    assert prior.accuracy(records, "overall") == pytest.approx(1 / 5)
    assert QuestionPrior([]).predict(records[0]) == ""


def test_the_vocabulary_is_ordered_and_says_what_it_covers() -> None:
    records = [record(str(n), "q", {answer: 1}) for n, answer in enumerate(["b", "e", "The b", "c", "e", "d"])]
    assert answer_vocabulary(records) == (["b", "e", "c", "d"], 1)
    assert answer_vocabulary(records, max_size=1) == (["b"], pytest.approx(2 / 6))
    assert answer_vocabulary([*records, record("x", "q", {})], min_count=2) == (["b", "e"], pytest.approx(4 / 6))
    assert answer_vocabulary([]) == ([], 0)


# --- Splits -----------------------------------------------------------------------------------------------------------


@given(st.lists(st.integers(0, 9), min_size=40, max_size=60), st.integers(0, 5))
def test_no_image_is_in_two_splits(images: list[int], seed: int) -> None:
    images += range(10)
    records = [record(str(n), "q", {"a": 1}, str(image)) for n, image in enumerate(images)]
    splits = split_by_image(records, {"validation": 0.2, "test": 0.1}, seed)
    its = {split: {r.image_id for r in part} for split, part in splits.items()}
    assert {split: len(part) for split, part in its.items()} == {"train": 7, "validation": 2, "test": 1}
    assert sum(map(len, splits.values())) == len(records) and len(set().union(*its.values())) == 10
    assert splits == split_by_image(records, {"validation": 0.2, "test": 0.1}, seed)


def test_too_few_images_to_divide() -> None:
    with pytest.raises(InputError, match="2 images"):
        split_by_image([record("1", "q", {}), record("2", "q", {})], {"validation": 0.1, "test": 0.1})


def test_names_of_splits() -> None:
    names = {"val2014": "validation", "Train": "train", "dev": "validation", "test-dev2015": "test", "test2015": "test",
             "vqa_test": "test", "v2_OpenEnded_mscoco_train2014_questions": "train", "testdev_balanced": "test",
             "latest": "", "other": ""}  # fmt: skip
    assert {name: split_name(name) for name in names} == names


# --- Images -----------------------------------------------------------------------------------------------------------


def test_every_kind_of_image_becomes_rgb(tmp_path: Path) -> None:
    half_clear = PIL.new("RGBA", (2, 2), (255, 0, 0, 0))
    palette = PIL.new("P", (2, 2))
    sixteen = PIL.fromarray(np.array([[0, 65535], [32768, 65535]], dtype=np.uint16))
    cases = [
        (encoded(PIL.new("CMYK", (2, 2), (0, 255, 255, 0)), "JPEG"), (254, 0, 0)),
        (encoded(PIL.new("L", (2, 2), 7), "PNG"), (7, 7, 7)),
        (encoded(PIL.new("1", (1, 1), 1), "PNG"), (255, 255, 255)),
        (encoded(half_clear, "PNG"), (255, 255, 255)),
        (encoded(PIL.new("LA", (2, 2), (9, 255)), "PNG"), (9, 9, 9)),
        (encoded(palette, "PNG", transparency=0), (255, 255, 255)),
        (encoded(sixteen, "PNG"), (0, 0, 0)),
        (encoded(PIL.new("RGB", (2, 2), "red"), "WEBP", lossless=True), (255, 0, 0)),
    ]
    for data, color in cases:
        image = open_image(data)
        assert image.mode == "RGB" and np.abs(np.subtract(image.getpixel((0, 0)), color)).max() <= 2
    assert open_image(encoded(sixteen, "PNG")).getpixel((0, 1)) == (128, 128, 128)
    (tmp_path / "a.png").write_bytes(png())
    for source in (tmp_path / "a.png", str(tmp_path / "a.png"), io.BytesIO(png()), PIL.new("L", (4, 3))):
        assert open_image(source).size == (4, 3)


def test_the_first_frame_of_an_animation_counts() -> None:
    frames = [PIL.new("RGB", (3, 3), color) for color in ("red", "blue", "green")]
    for kind in ("GIF", "WEBP", "PNG", "TIFF"):
        options = {"lossless": True} if kind == "WEBP" else {}
        data = encoded(frames[0], kind, save_all=True, append_images=frames[1:], **options)
        assert open_image(data).getpixel((1, 1)) == (255, 0, 0), kind


def test_rotation_of_exif_is_applied() -> None:
    exif = PIL.Exif()
    exif[0x0112] = 6  # the camera was turned by 90°
    assert open_image(encoded(PIL.new("RGB", (6, 2)), "JPEG", exif=exif)).size == (2, 6)


def bomb(width: int = 100_000, height: int = 100_000) -> bytes:
    """A PNG of a few bytes that says it has ten gigapixels."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "no image"),
        (b"just text", "no image"),
        (encoded(PIL.effect_noise((64, 64), 50), "JPEG")[:900], "damaged"),
        (encoded(PIL.effect_noise((64, 64), 50), "PNG")[:900], "damaged"),
        (bomb(), "too large"),
        (bomb(9_000, 9_000), "9000 × 9000 pixels; at most 50,000,000"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 1 1\n", "no image"),  # PIL would start Ghostscript
    ],
)
def test_what_is_no_image_is_told(tmp_path: Path, data: bytes, message: str) -> None:
    (tmp_path / "odd.png").write_bytes(data)
    with pytest.raises(InputError, match=message) as error:
        open_image(tmp_path / "odd.png")
    assert "odd.png" in str(error.value)


def test_a_cap_of_pixels_and_a_missing_file(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="4 × 3 pixels"):
        open_image(png(), max_pixels=11)
    assert open_image(png(), max_pixels=12).size == (4, 3)
    with pytest.raises(FileNotFoundError):
        open_image(tmp_path / "none.png")


def test_what_is_no_regular_file_is_not_opened(tmp_path: Path) -> None:
    for path in (tmp_path, "/dev/null"):  # others have no end, as /dev/zero
        with pytest.raises(InputError, match="no regular file"):
            open_image(path)


def test_unreadable_images_are_left_out_with_a_report(tmp_path: Path) -> None:
    (tmp_path / "good.png").write_bytes(png())
    (tmp_path / "bad.png").write_bytes(b"text")
    records = [VQARecord(name, tmp_path / f"{name}.png", name, "q", {}, "what") for name in ("bad", "good", "gone")]
    skipped = Skipped()
    assert [r.id for r, image in open_images(records, skipped)] == ["good"]
    assert skipped.counts.total() == 2 and "bad.png" in str(skipped) and "gone.png: No such file" in str(skipped)


def test_an_image_in_a_zip_is_called_by_its_name(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "data.zip", "w") as archive:
        archive.writestr("deep/photo.png", b"text")
    with pytest.raises(InputError, match="data.zip/deep/photo.png is no image"):
        open_image(ArchiveImage(tmp_path / "data.zip", "deep/photo.png"))


@pytest.mark.parametrize(("values", "brightest"), [
    (np.array([[0, 0.5, 1]], np.float32), 255), (np.array([[0, 100, 200]], np.float32), 200),
    (np.array([[0, 2000, 4095]], np.uint16), 255), (np.array([[0, 2000, 65535]], np.uint16), 255),
    (np.array([[0, 100, 255]], np.int32), 255), (np.array([[0, np.nan, 0.5]], np.float32), 128),
])  # fmt: skip
def test_more_than_8_bits_are_scaled_to_8(values: np.ndarray, brightest: int) -> None:
    image = as_rgb(PIL.fromarray(values))
    assert image.mode == "RGB" and np.asarray(image).max() == brightest


def test_what_cant_be_looked_into_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    for name in ("a/1.png", "a/2.txt", "b/3.PNG", "4.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"")
    (tmp_path / "gone.png").symlink_to("nowhere")
    os.mkfifo(tmp_path / "pipe.png")
    its = [Path(path).relative_to(tmp_path).as_posix() for path in files_below(tmp_path, IMAGE_SUFFIXES)]
    assert its == ["4.png", "a/1.png", "b/3.PNG"] and not caplog.records
    look = os.scandir

    def closed(path: str) -> object:
        if str(path).endswith("b"):
            raise PermissionError(13, "Permission denied", str(path))
        return look(path)

    monkeypatch.setattr(os, "scandir", closed)
    assert [Path(path).name for path in files_below(tmp_path, IMAGE_SUFFIXES)] == ["4.png", "1.png"]
    assert f"{tmp_path / 'b'} can't be read" in caplog.text


@pytest.mark.parametrize("depth", range(30, 250, 20))
def test_the_report_names_files_of_any_depth(tmp_path: Path, depth: int) -> None:
    folder = tmp_path / ("a" * depth)
    folder.mkdir()
    (folder / "bad.png").write_bytes(b"text")
    skipped = Skipped()
    assert not list(open_images([VQARecord("0", folder / "bad.png", "0", "q", {}, "what")], skipped))
    assert "bad.png" in str(skipped)


# --- Formats ----------------------------------------------------------------------------------------------------------


def test_files_named_for_their_splits_may_each_count_from_0(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    for split, color in (("train", "red"), ("test", "blue"), ("more", "green")):
        names = [f"{split}{i}.png" for i in range(4)]
        rows = [{"id": i, "image": name, "question": "why", "answer": color} for i, name in enumerate(names)]
        for name in names:
            (tmp_path / name).write_bytes(png())
        (tmp_path / f"vqa_{split}.jsonl").write_text("\n".join(map(json.dumps, rows[: 3 if split == "more" else 4])))
    data = load(tmp_path)
    assert {split: {one.answer for one in its} for split, its in data.splits.items()} == {
        "train": {"red", "green"}, "test": {"blue"}}  # fmt: skip
    assert "vqa_more.jsonl is taken for train" in caplog.text
    assert len(data.splits["test"]) == 4 and data.skipped.counts == {"with an id that was there before": 3}


def test_lines_with_one_or_several_answers(tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "一.png").write_bytes(png())
    path = jsonl(
        tmp_path,
        {"image": "一.png", "question": " 什么颜色？ ", "answer": "红色"},
        {"image": "images/一.png", "question": "what color", "answers": ["red", "Red", "blue"], "id": 7},
        {
            "image": str(tmp_path / "images" / "一.png"),
            "question": "why",
            "answers": {"so": 4},
            "question_type": "deep",
        },
    )
    first, second, third = load(path).splits["train"]
    assert (first.question, first.answers, first.question_type) == ("什么颜色？", {"红色": 1}, "color")
    assert (second.id, second.answer, second.answers["Red"]) == ("7", "red", 1)
    assert (third.answers, third.question_type) == ({"so": 4}, "deep")
    assert first.image_id == second.image_id == third.image_id
    assert open_image(third.image).size == (4, 3)


def test_an_image_is_never_taken_for_another(tmp_path: Path) -> None:
    for name in ("a/0.png", "a/2.png", "c/1.png", "c/2.png", "deep/er/3.png"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(png())
    names = ["a/0.png", "c/1.png", "./a/0.png", "1.png", "deep/er/3.png", "b/0.png", "2.png"]
    rows = [{"image": name, "image_id": "7", "question": "what", "answer": "x"} for name in names]
    data = load(jsonl(tmp_path, *rows))
    its = [str(record.image.relative_to(tmp_path)) for record in data.splits["train"]]
    assert its == ["a/0.png", "c/1.png", "a/0.png", "c/1.png", "deep/er/3.png"]
    assert len({record.image_id for record in data.splits["train"]}) == 3  # whatever they say that they are
    assert str(data.skipped) == "2 left out, without its image: b/0.png, 2.png (in 2 folders, of which it names none)"
    (tmp_path / "a" / "questions.jsonl").write_text(json.dumps({**rows[0], "image": "../c/1.png"}))
    assert load(tmp_path / "a" / "questions.jsonl", images=str(tmp_path / "c")).splits["train"]


@pytest.mark.parametrize("zipped", [False, True])
def test_nothing_outside_of_the_data_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, zipped: bool) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("inside/a.png", "outside/b.png", "inside-b.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(png())
    names = ["a.png", "../outside/b.png", "outside/b.png", str(tmp_path / "outside/b.png"), "../inside-b.png"]
    rows = [{"image": name, "question": "what", "answer": "x"} for name in names]
    path = jsonl(tmp_path / "inside", *rows).parent
    if zipped:
        with zipfile.ZipFile("data.zip", "w") as archive:
            for file in path.iterdir():
                archive.write(file, file.name)
        path = tmp_path / "data.zip"
    data = load(path)
    assert [record.question for record in data.splits["train"]] == ["what"]
    assert data.skipped.counts == {"without its image": 4} and "b.png (leads out of the data)" in str(data.skipped)
    folder = easy(tmp_path / "easy")
    (folder / "train" / "questions.json").write_text(json.dumps([["what?", "x", "../../../outside/b"]]))
    assert list(load(folder).splits) == ["test"]


def test_odd_values_are_left_out_and_end_nothing(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(png())
    good = {"image": "a.png", "question": "what", "answer": "x"}
    nested = '{"image": "a.png", "question": "what", "answer": ' + '{"answer": ' * 900 + '"x"' + "}" * 901
    path = jsonl(tmp_path, good, {**good, "image": "folder/" + 300 * "a"}, {**good, "answers": {"yes": 10**400}},
                 {**good, "image": "b/a\0.png"}, nested)  # fmt: skip
    data = load(path)
    assert len(data.splits["train"]) == 1 and data.skipped.counts.total() == 4
    assert "without an answer" in data.skipped.counts and "folder/aaa" in str(data.skipped)
    path.unlink()
    questions, annotations = vqa_v2(tmp_path)
    for file in (questions, annotations):
        file.write_text(re.sub(r'"question_id": 1\b', '"question_id": [1]', file.read_text()))
    assert len(load(questions).splits["validation"]) == 2


def test_bad_lines_are_left_out_with_their_reasons(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "a.png").write_bytes(png())
    good = {"image": "a.png", "question": "what", "answer": "x"}
    rows = [{**good, "id": 1}, {**good, "id": 1}, {**good, "image": "gone.png"}, {**good, "answers": [], "answer": ""},
            {**good, "question": ""}, {"image": "a.png"}, [1, 2], {**good, "image": 3}]  # fmt: skip
    path = jsonl(tmp_path, *rows, '{"image": "a.png", "quest')
    data = load(path)
    assert len(data.splits["train"]) == 1
    assert data.skipped.counts == {
        "with an id that was there before": 1, "without its image": 2, "without an answer": 1, "without a question": 2,
        "no JSON object": 2,
    }  # fmt: skip
    assert "gone.png" in caplog.text and "line 9" in caplog.text
    assert len(load(path, keep_unanswered=True).splits["train"]) == 2
    with pytest.raises(InputError, match="no question that can be used.*without its image"):
        load(jsonl(tmp_path, {**good, "image": "gone.png"}))


def test_zips_that_unpack_to_more_than_is_sane_are_refused_before_they_fill_the_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "bomb.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("train.jsonl", (b" " * 999 + b"\n") * 10_000)
    with monkeypatch.context() as lower, pytest.raises(InputError, match="10,000,000 bytes; at most 9,999,999"):
        lower.setattr(data_loader, "MAX_TEXT", 9_999_999)
        load(path)
    packed = path.read_bytes()  # now its header says that it has ten bytes
    path.write_bytes(packed.replace(struct.pack("<I", 10_000_000), struct.pack("<I", 10)))
    tracemalloc.start()
    for read in (load, lambda path: data_loader.Files(path).text("train.jsonl")):
        with pytest.raises(InputError, match="can't be unpacked"):
            read(path)
    path.write_bytes(packed)
    with pytest.raises(InputError, match="no question that can be used"):
        load(path)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 1_000_000


def vqa_v2(folder: Path, subset: str = "val2014", first: int = 1) -> tuple[Path, Path]:
    questions = [{"image_id": 139, "question": "How many?", "question_id": first},
                 {"image_id": 139, "question": "What is it?", "question_id": first + 1},
                 {"image_id": 140, "question": "Where?", "question_id": first + 2},
                 {"image_id": 141, "question": "Why?", "question_id": first + 3}]  # fmt: skip
    given = [("2", 8), ("3", 2)]
    answers = [{"answer": a, "answer_confidence": "yes", "answer_id": i} for i, a in
               enumerate([a for a, n in given for _ in range(n)], 1)]  # fmt: skip
    annotations = [{"question_id": first + n, "image_id": 139 + max(0, n - 1), "question_type": "how many",
                    "multiple_choice_answer": "2", "answers": answers} for n in range(3)]  # fmt: skip
    paths = (folder / f"v2_OpenEnded_mscoco_{subset}_questions.json", folder / f"v2_mscoco_{subset}_annotations.json")
    paths[0].write_text(json.dumps({"data_subtype": subset, "questions": questions}))
    paths[1].write_text(json.dumps({"data_subtype": subset, "annotations": annotations}))
    (folder / subset).mkdir()
    (folder / subset / f"COCO_{subset}_000000000139.jpg").write_bytes(encoded(PIL.new("RGB", (5, 4)), "JPEG"))
    (folder / subset / "000000000141.jpg").write_bytes(encoded(PIL.new("RGB", (5, 4)), "JPEG"))
    return paths


def test_vqa_v2_from_files_folder_and_zips(tmp_path: Path) -> None:
    questions, annotations = vqa_v2(tmp_path)
    data = load(questions)
    first = data.splits["validation"][0]
    assert (first.id, first.answers, first.question_type, first.image_id) == ("1", {"2": 8, "3": 2}, "how many", "139")
    assert open_image(first.image).size == (5, 4)
    assert data.skipped.counts == {"without its image": 1, "without an answer": 1}
    assert load(tmp_path).splits == data.splits
    assert load(questions, keep_unanswered=True).splits["validation"][-1].answer == ""
    zipped, elsewhere = tmp_path / "zips", tmp_path / "elsewhere"
    for folder in (zipped, elsewhere):
        folder.mkdir()
    for path, name in ((questions, zipped / "v2_Questions_Val.zip"), (annotations, elsewhere / "answers.zip")):
        with zipfile.ZipFile(name, "w") as archive:
            archive.write(path, path.name)
    with zipfile.ZipFile(elsewhere / "val2014.zip", "w") as archive:
        for path in (tmp_path / "val2014").iterdir():
            archive.write(path, f"val2014/{path.name}")
    both = load(zipped / "v2_Questions_Val.zip", annotations=str(elsewhere / "answers.zip"),
                images=str(elsewhere / "val2014.zip"))  # fmt: skip
    assert [r.answers for r in both.splits["validation"]] == [r.answers for r in data.splits["validation"]]
    image = both.splits["validation"][0].image
    assert open_image(image).size == (5, 4) and "val2014.zip" in str(image)


def test_files_cut_short_or_of_another_kind(tmp_path: Path) -> None:
    questions, _ = vqa_v2(tmp_path)
    questions.write_text(questions.read_text()[:100])
    with pytest.raises(InputError, match="cut short, or not JSON"):
        load(questions)
    for name, content in (("x.zip", b"PK\x03\x04 no zip"), ("x.json", b'{"data": []}'), ("x.json", b"\xff")):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(InputError, match="no zip|no questions|not UTF-8"):
            load(tmp_path / name)
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="no questions that can be read"):
        load(tmp_path / "empty")


def easy(folder: Path) -> Path:
    for split, first in (("train", 0), ("test", 100)):
        (folder / split / "images").mkdir(parents=True)
        rows = [[f"what color is shape {n}?", "blue", n] for n in (0, 1, 1, 9)] + [["short"], ["is it?", None, 0]]
        (folder / split / "questions.json").write_text(json.dumps(rows))
        for n in (0, 1):
            (folder / split / "images" / f"{n}.png").write_bytes(png(size=(first + 8, 8)))
    return folder


def test_easy_vqa_from_a_folder_and_from_a_zip(tmp_path: Path) -> None:
    folder = easy(tmp_path / "data")
    with zipfile.ZipFile(tmp_path / "easy.zip", "w") as archive:
        for path in folder.rglob("*.*"):
            archive.write(path, path.relative_to(tmp_path))
    for data in (load(folder), load(tmp_path / "easy.zip")):
        assert {split: len(part) for split, part in data.splits.items()} == {"train": 3, "test": 3}
        assert open_image(data.splits["test"][0].image).size == (108, 8)  # not train's image of the same name
        assert data.skipped.counts == {"without its image": 2, "without a question": 2, "without an answer": 2}
    assert not list(tmp_path.glob("easy/*"))  # nothing is unpacked


def test_easy_vqa_itself() -> None:
    try:
        path = data_folder() / "vision" / "easy_vqa_train.zip"
    except Skip as reason:
        pytest.skip(str(reason))
    data = load_vqa(DataConfig(data=str(path)))
    everything = [record for part in data.splits.values() for record in part]
    assert len(everything) == 38_575 and not data.skipped.counts
    assert len(answer_vocabulary(everything)[0]) == 13
    assert open_image(everything[-1].image).size == (64, 64)
    assert 0.6 < QuestionPrior(data.splits["train"]).accuracy(data.splits["validation"]) < 0.75


def test_a_data_set_of_the_hub(monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    rows = datasets.Dataset.from_dict(
        {"image": [{"bytes": png(c), "path": None} for c in ("red", "red", "blue")],
         "question": ["what color", "is it", "what color"], "answers": [["red"] * 3, ["yes", "no"], []]},
        features=datasets.Features({"image": datasets.Image(), "question": datasets.Value("string"),
                                    "answers": datasets.List(datasets.Value("string"))}),
    )  # fmt: skip
    asked: list[Any] = []

    def fake(name: str, subset: Any, *, revision: Any) -> Any:
        asked.extend([name, subset, revision])
        return datasets.DatasetDict({"validation": rows, "odd": rows})

    monkeypatch.setattr("datasets.load_dataset", fake)
    data = load_vqa(DataConfig(data="some/vqa@v1", subset="small"), divide=False)
    first, second = data.splits["validation"]
    assert asked == ["some/vqa", "small", "v1"] and list(data.splits) == ["validation"]
    assert (first.answers, second.answers, first.image_id == second.image_id) == ({"red": 3}, {"yes": 1, "no": 1}, True)
    assert open_image(first.image).getpixel((0, 0)) == (255, 0, 0)
    assert data.skipped.counts == {"without an answer": 1}
    nameless = rows.remove_columns("answers").add_column("answer", ["a"] * 3).add_column("image_id", [None] * 3)
    empty = nameless.map(lambda row: {**row, "image": None})
    monkeypatch.setattr("datasets.load_dataset", lambda *_, **__: {"train": nameless, "test": empty})
    data = load_vqa(DataConfig(data="some/vqa"), divide=False)
    first, second, third = data.splits["train"]
    assert first.image_id == second.image_id != third.image_id and "test" not in data.splits
    assert str(data.skipped).startswith("3 left out, without its image: image of row 0 is empty")
    monkeypatch.setattr("datasets.load_dataset", lambda *_, **__: {"train": rows.remove_columns("question")})
    with pytest.raises(InputError, match="columns image and question"):
        load_vqa(DataConfig(data="some/vqa"))


def test_undivided_data_is_divided_by_image_and_leaks_leave_train(tmp_path: Path) -> None:
    rows = []
    for n in range(20):
        (tmp_path / f"{n}.png").write_bytes(png())
        rows += [{"image": f"{n}.png", "question": f"what {i}", "answer": "x"} for i in range(3)]
    data = load_vqa(DataConfig(data=str(jsonl(tmp_path, *rows))))
    assert {split: len(part) for split, part in data.splits.items()} == {"train": 48, "validation": 6, "test": 6}
    few = load_vqa(DataConfig(data=str(tmp_path / "questions.jsonl"), max_questions=5))
    assert {split: len(part) for split, part in few.splits.items()} == {"train": 5, "validation": 5, "test": 5}
    (tmp_path / "questions.jsonl").unlink()
    jsonl(tmp_path, *rows, name="train.jsonl")
    jsonl(tmp_path, *rows[:6], name="val.jsonl")
    split = load(tmp_path)
    assert {name: len(part) for name, part in split.splits.items()} == {"train": 54, "validation": 6}
    assert split.skipped.counts == {"of train, whose image is also in another split": 6}


# --- The command ------------------------------------------------------------------------------------------------------


def test_the_report_shows_types_and_priors(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    folder = easy(tmp_path / "data")
    (folder / "train" / "images" / "1.png").write_bytes(b"no image")
    (folder / "train").rename(folder / "val")
    assert cli("--data", "data", "--run", "one", "--check_images", "true") == 0
    out = capsys.readouterr().out
    assert "color                           6  blue 100%" in out and "the image can't be opened" in out
    metrics = json.loads(Path("outputs/multimodal_llm/one/results.json").read_text())["metrics"]
    assert (metrics["test questions"], metrics["validation images opened"], metrics["test images opened"]) == (3, 1, 2)
    assert cli("--data", "none.jsonl") == 1
    assert cli("--validation_fraction", "0.9") == cli("--data", "data", "--seed", "-1") == 2


def test_the_builtin_scenes_are_questions_about_images() -> None:
    pytest.importorskip("multimodal_llm.builtin.scenes")
    data = load_vqa(DataConfig(max_questions=20))
    assert list(data.splits) == ["train", "validation", "test"] and not data.skipped.counts
    for part in data.splits.values():
        assert len(part) == 20 and all(record.answer for record in part)
        assert open_image(part[0].image).mode == "RGB"
