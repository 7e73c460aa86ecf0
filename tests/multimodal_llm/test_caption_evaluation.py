"""Metrics equal pycocoevalcap's, where it has them: frozen values, and the package itself where it is installed."""

import importlib.util
import json
import time
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from multimodal_llm.image_captioning.caption_evaluation import (
    MODULE,
    CaptionFile,
    DocumentFrequencies,
    _finder,
    _image_files,
    align,
    bleu,
    bleu_statistics,
    bootstrap_intervals,
    cider_d,
    clip_score,
    clip_scores,
    evaluate,
    evaluate_captions,
    longest_common_subsequence,
    match_images,
    meteor_like,
    object_finder,
    object_statistics,
    precision_recall_f1,
    read_captions,
    ref_clip_score,
    rouge_l,
    tokenize,
)
from shared.benchmark import Skip, data_folder
from shared.config import run_commands
from shared.errors import InputError

spec = importlib.util.spec_from_file_location("tiny_models", Path(__file__).with_name("tiny_models.py"))
tiny_models = importlib.util.module_from_spec(spec)
spec.loader.exec_module(tiny_models)

PREDICTIONS = {"a": "A dog runs on the beach.", "b": "two cats", "c": "", "d": "a man a man a man in a red hat"}
REFERENCES = {
    "a": ["A brown dog is running on the beach.", "The dog runs along the sea", "a dog on a beach"],
    "b": ["Two cats sleep on a sofa.", "two cats on the sofa"],
    "c": ["A bus."],
    "d": ["A man in a red hat is reading a paper.", "a man's hat is red"],
}
# What pycocoevalcap 1.2 gives: of the corpus, and of each image.
FROZEN = {
    "BLEU-1": (0.6312209402606699, [1, 0.22313016, 0, 0.7]),
    "BLEU-2": (0.5645811724945401, [0.894427191, 0.22313016, 0, 0.623609564]),
    "BLEU-3": (0.46508756529831297, [0.584803547, 0.0022313016, 0, 0.579337774]),
    "BLEU-4": (0.38884097267438933, [9.03602003e-05, 0.00022313016, 0, 0.537284966]),
    "ROUGE-L": (0.4859420289855073, [0.813333333, 0.530434783, 0, 0.6]),
    "CIDEr-D": (1.9016645821325708, [2.39429538, 2.61792772, 0, 2.59443522]),
}
# The first caption of each of 120 COCO photos against its other four, by pycocoevalcap after Stanford's tokenizer.
COCO_FROZEN = {"BLEU-1": 0.634244373, "BLEU-2": 0.432826854, "BLEU-3": 0.292415121, "BLEU-4": 0.194885419,
               "ROUGE-L": 0.463033900, "CIDEr-D": 0.930811965}  # fmt: skip


def cli(*arguments: str) -> int:
    with pytest.raises(SystemExit) as exit_:
        run_commands({"evaluate": evaluate}, module=MODULE, argv=["evaluate", *arguments])
    return exit_.value.code


def coco() -> tuple[dict[str, str], dict[str, list[str]]]:
    """The first caption of each photo against its other four."""
    try:
        path = data_folder() / "vision" / "coco_mini" / "captions.jsonl"
        rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    except (Skip, FileNotFoundError) as reason:
        pytest.skip(str(reason))
    return {row["file"]: row["captions"][0] for row in rows}, {row["file"]: row["captions"][1:] for row in rows}


def one_image(caption: str, *references: str) -> dict[str, float]:
    report = evaluate_captions({"x": caption}, {"x": references})
    return {name: value for name, (value, _, _) in report.figures.items()}


# --- Words ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "tokens"),
    [  # as Stanford's tokenizer and COCO's list of punctuation have them
        ("A man's hat.", "a man 's hat"),
        ("don't can't cannot won't I'm they've dogs' toys", "do n't ca n't can not wo n't i 'm they 've dogs toys"),
        ("Mr. Smith at 5 p.m. in the U.S. today.", "mr. smith at 5 p.m. in the u.s. today"),
        ("a black-and-white photo, a t-shirt", "a black-and-white photo a t-shirt"),
        ("3.5 lbs, 1,000 people & $5.00 at 50%", "3.5 lbs 1,000 people & $ 5.00 at 50 %"),
        ("hello (world) [x] {y}", "hello -lrb- world -rrb- -lsb- x -rsb- -lcb- y -rcb-"),
        ("“curly” ‘single’ it’s ``back''", "curly single it 's back"),
        ("and/or; the table.A man", "and/or the table.a man"),
        ("two dogs -- running - fast…", "two dogs running fast"),
        ("wow!!! ok? St. Louis no.5 etc.", "wow !!! ok st. louis no. 5 etc."),
        ("o'clock 60's 1960s '60s 12:30 1st", "o'clock 60 's 1960s '60s 12:30 1st"),
        ("gonna shouldn't've T.V.", "gon na should n't 've t.v."),
        ("naïve café", "naïve café"),
        ("?!.", "?!"),
        ("", ""),
    ],
)  # fmt: skip
def test_tokens_are_those_of_the_coco_code(text: str, tokens: str) -> None:
    assert tokenize(text) == tokens.split()


def test_chinese_is_split_into_characters() -> None:
    assert tokenize("一只狗，在海边跑！WiFi 5号") == [*"一只狗在海边跑", "wifi", "5", "号"]


# --- Parity -----------------------------------------------------------------------------------------------------------


def test_corpus_and_images_score_as_in_pycocoevalcap() -> None:
    report = evaluate_captions(PREDICTIONS, REFERENCES)
    for name, (corpus, images) in FROZEN.items():
        assert report.figures[name][0] == pytest.approx(corpus, abs=1e-9)
        assert [row[name] for row in report.captions] == pytest.approx(images, abs=1e-8)


def test_photos_score_as_after_stanfords_tokenizer() -> None:
    figures = {name: value for name, (value, _, _) in evaluate_captions(*coco()).figures.items()}
    assert {name: figures[name] for name in COCO_FROZEN} == pytest.approx(COCO_FROZEN, abs=1e-8)


def test_equal_to_pycocoevalcap_itself() -> None:
    pytest.importorskip("pycocoevalcap")
    from pycocoevalcap.bleu.bleu import Bleu
    from pycocoevalcap.cider.cider import Cider
    from pycocoevalcap.rouge.rouge import Rouge

    predictions, references = coco()
    images = list(predictions)
    predictions |= {images[0]: "", images[1]: "dog", images[2]: "a a a a a man man"}
    references[images[3]] = references[images[3]][:1]
    truth = {image: [" ".join(tokenize(text)) for text in its] for image, its in references.items()}
    ours = {image: [" ".join(tokenize(text))] for image, text in predictions.items()}
    report = evaluate_captions(predictions, references)
    corpus, each = Bleu(4).compute_score(truth, ours, verbose=0)
    expected = {f"BLEU-{n + 1}": (corpus[n], each[n]) for n in range(4)}
    expected |= {"ROUGE-L": Rouge().compute_score(truth, ours), "CIDEr-D": Cider().compute_score(truth, ours)}
    for name, (value, values) in expected.items():
        assert report.figures[name][0] == pytest.approx(value, abs=1e-6), name
        assert [row[name] for row in report.captions] == pytest.approx(list(values), abs=1e-6), name


# --- By hand ----------------------------------------------------------------------------------------------------------


def test_bleu_clips_repeated_words_and_punishes_brevity() -> None:
    the = bleu_statistics(["the"] * 7, [tokenize("the cat is on the mat"), tokenize("there is a cat on the mat")])
    assert the[[0, 4, 8, 9]].tolist() == [2, 7, 7, 7]  # Papineni's own example
    assert bleu(the)[0] == pytest.approx(2 / 7)
    short = bleu_statistics(tokenize("the cat"), [tokenize("the cat is on the mat")])
    assert bleu(short)[:2] == pytest.approx([np.exp(1 - 6 / 2)] * 2)


def test_of_two_references_equally_near_the_shorter_counts() -> None:
    assert bleu_statistics(list("abcd"), [list("abcde"), list("abc")])[9] == 3


def test_rouge_takes_precision_and_recall_from_different_references() -> None:
    assert longest_common_subsequence(list("abcde"), list("xaycez")) == 3
    assert rouge_l(list("ab"), [list("abcd"), list("a")]) == pytest.approx(1)
    assert rouge_l(list("ab"), [list("abcd")]) == pytest.approx(2.44 * 0.5 / (0.5 + 1.44))


def test_cider_of_one_image_weighs_all_ngrams_alike() -> None:
    caption = tokenize("a red dog on the grass")
    frequencies = DocumentFrequencies.of([[caption]])
    assert cider_d(caption, [caption], frequencies) == pytest.approx(10)
    some = cider_d(tokenize("a red dog"), [caption], frequencies)
    assert 0 < some < 10
    assert cider_d(tokenize("zebras fly"), [caption], frequencies) == 0


def test_cider_gives_nothing_for_what_all_images_share() -> None:
    frequencies = DocumentFrequencies.of([[["a", "dog"]], [["a", "cat"]]])
    assert cider_d(["a"], [["a", "dog"]], frequencies) == 0
    assert cider_d(["dog"], [["a", "dog"]], frequencies) > 0


def test_meteor_by_its_formula() -> None:
    assert meteor_like(tokenize("the red dog"), [tokenize("the red dog")]) == 1
    # One match of a content word out of two, one chunk: P = R = 1/2, penalty 0.6
    assert meteor_like(["red", "dog"], [["blue", "dog"]]) == pytest.approx(0.4 * 0.5)
    # A stem is worth 0.6
    assert meteor_like(["red", "dogs"], [["blue", "dog"]]) == pytest.approx(0.4 * 0.3)
    # "the" weighs a third of "dog"
    assert meteor_like(["the", "dog"], [["dog"]]) == pytest.approx(0.4 * 0.75 / (0.85 * 0.75 + 0.15))
    assert meteor_like(["puppy"], [["dog"]]) == 0
    assert meteor_like(["puppy"], [["dog"]], {"puppy": {"dog"}}) == pytest.approx(0.8)
    assert meteor_like(["cat"], [["dog"], ["cat"]]) == 1


def test_alignment_has_as_few_chunks_as_can_be() -> None:
    pairs, chunks = align(list("abcab"), list("abab"))
    assert len(pairs) == 4 and chunks == 2
    pairs, chunks = align(tokenize("the dog the cat"), tokenize("the cat"))
    assert [(i, j) for i, j, _ in pairs] == [(2, 0), (3, 1)] and chunks == 1


def test_objects_are_found_as_whole_words_in_singular_or_plural() -> None:
    find = object_finder(["dog", "dining table", "table", "person", "bus", "猫", "baby"])
    assert find("Two dogs at a dining table, people in a bus") == Counter(["dog", "dining table", "person", "bus"])
    assert find("hotdog tables, buses and babies") == Counter(["table", "bus", "baby"])
    assert object_finder(["沙发", "猫", "狗"])("沙发上有一只猫") == Counter(["沙发", "猫"])
    with pytest.raises(InputError, match="objects"):
        object_finder([" "])


def test_precision_recall_and_f1_of_objects() -> None:
    there = [Counter({"dog": 1}), Counter({"dog": 2, "cat": 1})]
    statistics = object_statistics(Counter({"dog": 2, "bus": 1}), there)
    assert statistics.tolist() == [2, 3, 3]
    assert precision_recall_f1(statistics) == pytest.approx([2 / 3] * 3)
    assert np.isnan(precision_recall_f1(np.zeros(3))).all()
    report = evaluate_captions({"a": "a dog", "b": "a tree"}, {"a": ["a dog and a cat"], "b": ["a tree"]},
                               find_objects=object_finder(["dog", "cat"]))  # fmt: skip
    assert [report.figures[f"object {name}"][0] for name in ("precision", "recall", "F1")] == pytest.approx(
        [1, 0.5, 2 / 3]
    )
    assert "object F1" not in report.captions[1]


# --- CLIPScore --------------------------------------------------------------------------------------------------------


def test_clip_scores_from_embeddings() -> None:
    images, captions = [[2, 0], [1, 0], [1, 0]], [[3, 0], [1, 1], [-1, 0]]
    assert clip_score(images, captions) == pytest.approx([2.5, 2.5 / np.sqrt(2), 0])
    both = ref_clip_score(images, captions, [[[0, 1], [5, 0]], [[1, 1]], [[-1, 0]]])
    first, second = 2 * 2.5 / 3.5, 2 * (2.5 / np.sqrt(2)) / (2.5 / np.sqrt(2) + 1)
    assert both == pytest.approx([first, second, 0])


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> str:
    return tiny_models.tiny_clip(tmp_path_factory.mktemp("clip"))


def test_clip_scores_from_a_model(clip: str) -> None:
    import torch
    from PIL import Image
    from transformers import AutoProcessor, CLIPModel

    from multimodal_llm.clip_applications.zero_shot_classification import load_clip

    encoder, images = load_clip(clip, "cpu"), [Image.effect_noise((40, 32), 60 + i).convert("RGB") for i in range(3)]
    own, with_references = clip_scores(encoder, images, ["a dog", "a cat", "red"],
                                       [["a dog"], ["bus", "a cat"], ["blue", "tree"]], batch_size=2)  # fmt: skip
    model = CLIPModel.from_pretrained(clip).eval()
    inputs = AutoProcessor.from_pretrained(clip)(images=images[1], text=["A photo depicts a cat"], return_tensors="pt")
    with torch.inference_mode():
        output = model(**inputs)
    cosine = float(torch.cosine_similarity(output.image_embeds[0], output.text_embeds[0], dim=0))
    assert own[1] == pytest.approx(2.5 * max(cosine, 0), abs=1e-5)
    assert with_references[:2] == pytest.approx(2 * own[:2] / (own[:2] + 1), abs=1e-5)  # a reference says the same
    assert clip_scores(encoder, images, ["a dog", "a cat", "red"])[1] is None


# --- Small, odd and large ---------------------------------------------------------------------------------------------


def test_one_image_is_measured_sanely(caplog: pytest.LogCaptureFixture) -> None:
    right = one_image("A red dog on the grass.", "a red dog on the grass")
    assert right == pytest.approx({name: 10 if name == "CIDEr-D" else 1 for name in right})
    assert "one image" in caplog.text
    assert evaluate_captions({"x": "a dog"}, {"x": ["a dog"]}).figures["BLEU-1"][1:] == (None, None)


def test_empty_and_one_word_captions() -> None:
    assert set(one_image("", "a dog").values()) == {0}
    word = one_image("dog", "dog", "a dog")
    assert (word["BLEU-1"], word["ROUGE-L"], word["METEOR-like"], word["exact"]) == pytest.approx((1, 1, 1, 1))
    assert word["CIDEr-D"] == pytest.approx(10 * (1 + np.exp(-1 / 72) / np.sqrt(2)) / 4 / 2)


def test_no_reference_is_an_error() -> None:
    with pytest.raises(InputError, match="prediction at least"):
        evaluate_captions({}, {})
    with pytest.raises(InputError, match="2 of 3 images have no reference, such as 'b'"):
        evaluate_captions({"a": "x", "b": "x", "c": "x"}, {"a": ["x"], "b": ["", "."]})


def test_hundreds_of_references() -> None:
    references = [f"a dog number {n} runs" for n in range(400)]
    figures = one_image("a dog number 7 runs", *references)
    assert (figures["BLEU-4"], figures["ROUGE-L"]) == pytest.approx((1, 1))
    assert 0 < figures["CIDEr-D"] < 10


def test_chinese_captions_are_compared_by_characters() -> None:
    figures = one_image("一只狗在海边跑。", "一只黑狗在海边奔跑")
    assert figures["BLEU-1"] == pytest.approx(np.exp(1 - 9 / 7))
    assert 0.3 < figures["METEOR-like"] < figures["ROUGE-L"] < 1


words = st.lists(st.sampled_from(["a", "dog", "dogs", "red", "on", "hat", "."]), max_size=8).map(" ".join)


@given(st.lists(st.tuples(words, st.lists(words.filter(tokenize), min_size=1, max_size=3)), min_size=1, max_size=4))
@settings(max_examples=25)
def test_figures_are_in_their_ranges_whatever_the_order(pairs: list[tuple[str, list[str]]]) -> None:
    predictions = {str(n): caption for n, (caption, _) in enumerate(pairs)}
    references = {str(n): its for n, (_, its) in enumerate(pairs)}
    report = evaluate_captions(predictions, references, repeats=10)
    for name, (value, _, _) in report.figures.items():
        assert -1e-9 <= value <= (10 if name == "CIDEr-D" else 1) + 1e-9
    backwards = evaluate_captions(dict(reversed(predictions.items())), references, repeats=10)
    assert {n: v[0] for n, v in backwards.figures.items()} == pytest.approx(
        {n: v[0] for n, v in report.figures.items()}
    )


def test_intervals_hold_the_figure_and_narrow_with_more_images() -> None:
    values = np.random.default_rng(1).random((400, 1))

    def mean_of(rows: np.ndarray) -> float:
        low, high = bootstrap_intervals(rows, lambda sums: sums / len(rows))[:, 0]
        assert low < rows.mean() < high
        return high - low

    standard_error = values.std() / np.sqrt(len(values))
    assert mean_of(values) == pytest.approx(2 * 1.96 * standard_error, rel=0.15)
    assert mean_of(values[:40]) > 2 * mean_of(values)


# --- Files and the command --------------------------------------------------------------------------------------------


def test_every_format_is_read(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text(
        '\ufeff{"image": "1.jpg", "caption": "一只狗"}\n\n{"file": "2.jpg", "captions": ["x", "y"]}\n'
    )
    assert read_captions(tmp_path / "a.jsonl").captions == {"1.jpg": ["一只狗"], "2.jpg": ["x", "y"]}
    (tmp_path / "a.csv").write_text('image,caption\n1.jpg,"a dog, running"\n1.jpg,a dog\n')
    assert read_captions(tmp_path / "a.csv").captions == {"1.jpg": ["a dog, running", "a dog"]}
    (tmp_path / "results.json").write_text('[{"image_id": 139, "caption": "a room"}]')
    assert read_captions(tmp_path / "results.json").captions == {"139": ["a room"]}
    (tmp_path / "coco.json").write_text(json.dumps({
        "images": [{"id": 7, "file_name": "seven.jpg"}],
        "annotations": [{"image_id": 7, "id": 1, "caption": "a"}, {"image_id": 7, "id": 2, "caption": "b"}],
    }))  # fmt: skip
    assert read_captions(tmp_path / "coco.json") == CaptionFile({"7": ["a", "b"]}, {"7": "seven.jpg"})


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.jsonl", b'{"image": "a", "caption": "x"}\n{"image": "b", "ca', "Line 2 .* cut short"),
        ("a.json", b'{"annotations": [{"image_id"', "cut short"),
        ("a.json", b'{"annotations": 3}', "no captions"),
        ("a.json", b'[[], {"image_id": 1}]', "Row 1"),
        ("a.jsonl", b"", "no captions"),
        ("a.jsonl", b'{"image": "a", "caption": 3}', "Row 1 .* list of captions"),
        ("a.csv", b"picture,words\n1,2\n", "Row 1"),
        ("a.csv", b'image,caption\na,"never closed\n', "csv"),
        ("a.txt", b"a dog", "jsonl, .csv or .json"),
        ("a.jsonl", b"\xff\xfe", "not UTF-8"),
        ("a.json", b"[" * 100_000, "cut short, or not JSON"),
    ],
)
def test_files_that_are_none_say_so(tmp_path: Path, name: str, content: bytes, message: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError, match=message):
        read_captions(tmp_path / name)


def test_images_are_matched_by_path_name_or_coco_number() -> None:
    def match(predictions: list[str], references: list[str], **names: str) -> dict[str, str]:
        made = [CaptionFile({image: ["x"] for image in images}) for images in (predictions, references)]
        return match_images(made[0], CaptionFile(made[1].captions, names))

    assert match(["p/1.jpg", "2.jpg"], ["1.jpg", "q/2.jpg", "3.jpg"]) == {"p/1.jpg": "1.jpg", "2.jpg": "q/2.jpg"}
    assert match(["COCO_val2014_000000000139.jpg"], ["139"]) == {"COCO_val2014_000000000139.jpg": "139"}
    assert match(["seven.jpg"], ["7"], **{"7": "seven.jpg"}) == {"seven.jpg": "7"}
    assert match(["1.jpg"], ["a/1.jpg", "b/1.jpg"]) == {}  # which one, nobody can tell
    assert match(["photo_12.jpg"], ["other_12.jpg"]) == {}
    assert match(["a/1.jpg", "1.jpg"], ["1.jpg"]) == {"1.jpg": "1.jpg"}
    with pytest.raises(InputError, match="'a/1.jpg' and 'b/1.jpg' could both be '1.jpg'"):
        match(["a/1.jpg", "b/1.jpg"], ["1.jpg"])


def test_images_for_clip_score_are_found_by_path_or_by_a_name_of_one(tmp_path: Path) -> None:
    for name in ("x/1.png", "y/1.png", "2.png", "1.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    files = _image_files(tmp_path, ["x/1.png", "y/1.png", "photos/2.png"])
    assert files == [tmp_path / "x/1.png", tmp_path / "y/1.png", tmp_path / "2.png"]
    with pytest.raises(InputError, match="has no 'z/1.png', and 2 images are called '1.png'"):
        _image_files(tmp_path, ["x/1.png", "z/1.png"])


def test_long_captions_are_cut_and_reported(caplog: pytest.LogCaptureFixture) -> None:
    started = time.monotonic()
    long = " ".join(f"w{n % 300}" for n in range(3000))
    report = evaluate_captions({"a": long, "b": "a dog"}, {"a": [long], "b": ["a dog"]})
    assert "2 captions have more than 250 words" in caplog.text
    assert report.figures["METEOR-like"][0] == 1 and time.monotonic() - started < 30


def test_words_too_long_for_the_name_of_a_file_are_objects() -> None:
    find = _finder(",".join(f"object{n}" for n in range(40)))
    assert find is not None and find("an object7 and an object39") == Counter(["object7", "object39"])


def test_the_command_leaves_results_and_a_table(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    rows = [{"image": f"photos/{image}", "caption": text} for image, text in PREDICTIONS.items()]
    rows.append({"image": "unknown", "caption": "x"})
    Path("p.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    Path("r.jsonl").write_text(
        "".join(
            json.dumps({"image": image, "captions": its}) + "\n" for image, its in [*REFERENCES.items(), ("e", ["y"])]
        )
    )
    assert cli("--predictions", "p.jsonl", "--references", "r.jsonl", "--objects", "dog,cat,man", "--run", "one") == 0
    table = capsys.readouterr().out
    folder = Path("outputs/multimodal_llm/one")
    assert (folder / "table.txt").read_text() == table
    assert "BLEU-4              0.3888   [" in table
    results = json.loads((folder / "results.json").read_text())
    metrics = results["metrics"]
    assert {name: metrics[name] for name in FROZEN} == pytest.approx(
        {name: value for name, (value, _) in FROZEN.items()}
    )
    assert metrics["CIDEr-D low"] <= metrics["CIDEr-D"] <= metrics["CIDEr-D high"]
    assert (metrics["images"], metrics["empty captions"], metrics["images without references"]) == (4, 1, 1)
    assert metrics["images without a prediction"] == 1 and metrics["object recall"] == 1
    captions = [json.loads(line) for line in (folder / "captions.jsonl").read_text().splitlines()]
    assert captions[0]["image"] == "photos/c" and len(captions) == 4  # the worst first


def test_wrong_use_is_told_in_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("p.jsonl").write_text('{"image": "a", "caption": "x"}\n')
    Path("r.jsonl").write_text('{"image": "b", "caption": "x"}\n')
    Path("twice.jsonl").write_text('{"image": "a", "caption": "x"}\n{"image": "a", "caption": "y"}\n')
    for arguments, message in [
        (["--seed", "-1"], "seed must be in"),
        (["--predictions", "p.jsonl"], "predictions and references go together"),
        (["--predictions", "p.jsonl", "--references", "r.jsonl"], "No image of p.jsonl is in r.jsonl"),
        (["--predictions", "twice.jsonl", "--references", "r.jsonl"], "several captions"),
        (["--predictions", "p.jsonl", "--references", "p.jsonl", "--clip", "x"], "clip and images"),
    ]:
        assert cli(*arguments) == 2
        assert message in capsys.readouterr().err
    assert cli("--predictions", "none.jsonl", "--references", "r.jsonl") == 1
    assert not Path("outputs").exists()


def test_clip_score_by_the_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, clip: str) -> None:
    from PIL import Image

    from multimodal_llm.clip_applications.zero_shot_classification import load_clip

    monkeypatch.chdir(tmp_path)
    Path("photos").mkdir()
    Image.new("CMYK", (8, 8)).save("photos/a.jpg")
    Path("p.jsonl").write_text('{"image": "a.jpg", "caption": "x"}\n')
    assert cli("--predictions", "p.jsonl", "--references", "p.jsonl", "--objects", "x", "--images", "photos",
               "--clip", clip, "--clip_prompt", "", "--run", "one") == 0  # fmt: skip
    metrics = json.loads(Path("outputs/multimodal_llm/one/results.json").read_text())["metrics"]
    own, with_references = clip_scores(load_clip(clip), [Path("photos/a.jpg")], ["x"], [["x"]], prompt="")
    assert (metrics["CLIPScore"], metrics["RefCLIPScore"]) == pytest.approx((float(own[0]), float(with_references[0])))


def test_without_files_the_embedded_captioner_is_measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert cli("--run", "scenes") == 0
    metrics = json.loads(Path("outputs/multimodal_llm/scenes/results.json").read_text())["metrics"]
    assert metrics["images"] == 200 and metrics["exact"] > 0.95
