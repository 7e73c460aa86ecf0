"""Answers are the model's own whoever is asked beside, probabilities are what they say, and training teaches."""

import importlib.util
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from multimodal_llm.visual_question_answering import vqa_system
from multimodal_llm.visual_question_answering.data_loader import (
    DataConfig,
    QuestionPrior,
    Skipped,
    VQARecord,
    load_vqa,
)
from multimodal_llm.visual_question_answering.vqa_system import (
    MODULE,
    Answerer,
    answer_batch,
    answer_loss,
    ask,
    evaluate,
    load_answerer,
    train,
    vilt_inputs,
)
from shared.config import run_commands
from shared.errors import InputError

spec = importlib.util.spec_from_file_location("tiny_models", Path(__file__).with_name("tiny_models.py"))
tiny_models = importlib.util.module_from_spec(spec)
spec.loader.exec_module(tiny_models)
QUESTIONS = ["is there a dog?", "what color is the picture of the circle on the square?", "how many?"]


def cli(*arguments: str) -> int:
    with pytest.raises(SystemExit) as exit_:
        run_commands({"ask": ask, "evaluate": evaluate, "train": train}, module=MODULE, argv=arguments)
    return exit_.value.code


def plain(color: str | tuple[int, int, int]) -> Any:
    from PIL import Image

    return Image.new("RGB", (40, 30), color)


def noise(seed: int) -> Any:
    from PIL import Image

    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (30, 40, 3), dtype=np.uint8))


@pytest.fixture(scope="module")
def blip(tmp_path_factory: pytest.TempPathFactory) -> str:
    return tiny_models.tiny_blip_vqa(tmp_path_factory.mktemp("blip"))


@pytest.fixture(scope="module")
def vilt(tmp_path_factory: pytest.TempPathFactory) -> str:
    return tiny_models.tiny_vilt(tmp_path_factory.mktemp("vilt"))


@pytest.fixture
def colors(tmp_path: Path) -> Path:
    """Make a data set of red and blue pictures, which must be looked at."""
    folder = tmp_path / "colors"
    folder.mkdir()
    rows = []
    for i in range(24):
        color, shade = ("red", "blue")[i % 2], 150 + 4 * i
        plain((shade, 0, 0) if color == "red" else (0, 0, shade)).save(folder / f"{i}.png")
        rows.append({"image": f"{i}.png", "question": "what color is the picture?", "answer": color})
        rows.append({"image": f"{i}.png", "question": "is the picture red?", "answer": "yes" if i % 2 == 0 else "no"})
    (folder / "train.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return folder


# --- Answers ----------------------------------------------------------------------------------------------------------


def test_a_written_answer_is_what_the_model_itself_generates(blip: str) -> None:
    answerer = load_answerer(blip)
    for question in QUESTIONS:
        inputs = answerer.processor(images=[noise(3)], text=[question], return_tensors="pt")
        ids = answerer.model.generate(**inputs, max_new_tokens=20, num_beams=2)
        (made,) = answerer.answer([noise(3)], [question], num_beams=2)
        assert made.text == answerer.processor.decode(ids[0][1:], skip_special_tokens=True).strip()


def test_an_answer_does_not_depend_on_the_questions_beside_it(blip: str) -> None:
    answerer = load_answerer(blip)
    images = [noise(1), noise(2)]
    together = answerer.answer(images, [*QUESTIONS, *QUESTIONS], image_of=[0, 0, 0, 1, 1, 1])
    alone = [answerer.answer([image], [question])[0] for image in images for question in QUESTIONS]
    assert [one.text for one in together] == [one.text for one in alone]
    assert [one.probability for one in together] == pytest.approx([one.probability for one in alone], rel=1e-3)
    assert answerer.answer([], []) == []


def test_ranked_probabilities_are_the_shares_of_what_the_model_gives_each_answer(blip: str) -> None:
    import torch

    answerer, candidates = load_answerer(blip), ["yes", "no", "a red circle"]
    (made,) = answerer.answer([noise(1)], [QUESTIONS[0]], candidates=candidates)
    text = answerer.model.config.text_config
    inputs = answerer.processor(images=[noise(1)], text=[QUESTIONS[0]], return_tensors="pt")
    each = []
    for candidate in candidates:
        ids = answerer.processor.tokenizer(candidate, return_tensors="pt")["input_ids"]
        ids[:, 0] = text.bos_token_id
        with torch.no_grad():
            seen = answerer.model.vision_model(pixel_values=inputs["pixel_values"])[0]
            asked = answerer.model.text_encoder(input_ids=inputs["input_ids"], encoder_hidden_states=seen)[0]
            logits = answerer.model.text_decoder(input_ids=ids, encoder_hidden_states=asked).logits
        each.append(math.exp(float(logits[0, :-1].log_softmax(-1).gather(-1, ids[0, 1:, None]).sum())))
    shares = dict(zip(candidates, np.array(each) / sum(each), strict=True))
    assert dict(made.ranked) == pytest.approx(shares, abs=1e-5)
    assert made.text == max(shares, key=lambda one: shares[one]) and made.ranked[0] == (made.text, made.probability)


def test_vilt_chooses_among_its_own_answers_or_those_that_are_given(vilt: str) -> None:
    import torch

    answerer = load_answerer(vilt)
    with torch.no_grad():
        logits = answerer.model(**vilt_inputs(answerer.model, answerer.processor, [noise(1)], QUESTIONS[:1])).logits[0]
    (made,) = answerer.answer([noise(1)], QUESTIONS[:1])
    assert made.text == answerer.model.config.id2label[int(logits.argmax())]
    assert made.probability == pytest.approx(float(logits.max().sigmoid()))
    (chosen,) = answerer.answer([noise(1)], QUESTIONS[:1], candidates=["Two", "no"])
    assert {name for name, _ in chosen.ranked} == {"2", "no"}
    with pytest.raises(InputError, match="none of these"):
        answerer.answer([noise(1)], QUESTIONS[:1], candidates=["elephant"])


def test_models_of_other_kinds_and_empty_questions_are_refused(blip: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="must be BLIP or ViLT"):
        model = load_answerer(blip)
        model.model.config.model_type = "git"
        Answerer(model.model, model.processor)
    with pytest.raises(InputError, match="question must not be empty"):
        load_answerer(blip).answer([noise(1)], [" "])


def test_a_captioner_can_learn_to_answer_and_is_not_asked_before(
    colors: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    captioner = tiny_models.tiny_blip(tmp_path / "captioner")
    with pytest.raises(InputError, match="has not learned to answer"):
        load_answerer(captioner)
    made = []
    for run in ("a", "b"):
        flags = ["--model", "builtin:captions", "--steps", "1", "--batch_size", "2", "--run", run]
        assert cli("train", "--data", str(colors), *flags) == 0
        made.append(load_answerer(f"outputs/multimodal_llm/{run}/model").model)
    assert all((one == two).all() for one, two in zip(made[0].parameters(), made[1].parameters(), strict=True))


def test_a_question_in_a_script_that_the_model_cannot_read_is_refused_and_left_out_of_many(blip: str) -> None:
    answerer = load_answerer(blip)
    with pytest.raises(InputError, match="can't read '有几个圆形？'"):
        answerer.answer([noise(1)], ["有几个圆形？"])
    with pytest.raises(InputError, match="can't read '红色'"):
        answerer.answer([noise(1)], ["what color?"], candidates=["blue", "红色"])
    skipped = Skipped()
    records = [VQARecord("1", noise(1), "a", text, {"2": 1}, "number") for text in ("how many?", "有几个圆形？")]
    assert [record.question for record, _ in vqa_system.answer_records(answerer, records, skipped)] == ["how many?"]
    assert "1 left out, the model can't read the question: 有几个圆形？" in str(skipped)


# --- Training ---------------------------------------------------------------------------------------------------------


def test_the_loss_is_the_models_own_though_each_image_is_encoded_once(blip: str) -> None:
    import torch

    answerer = load_answerer(blip)
    tokenizer, text = answerer.processor.tokenizer, answerer.model.config.text_config
    pixels = answerer.processor.image_processor([noise(1), noise(2)], return_tensors="pt")["pixel_values"]
    said = ["yes", "red", "a blue circle"]
    batch = answer_batch(tokenizer, pixels, [0, 1, 1], QUESTIONS, said, first=text.bos_token_id, longest=32)
    labels = batch["answer_ids"].masked_fill(batch["answer_mask"] == 0, -100)
    with torch.no_grad():
        ours = answer_loss(answerer.model, batch)
        theirs = answerer.model(
            pixel_values=pixels[batch["image_of"]], input_ids=batch["input_ids"],
            attention_mask=batch["attention_mask"], decoder_input_ids=batch["answer_ids"],
            decoder_attention_mask=batch["answer_mask"], labels=labels,
        ).loss  # fmt: skip
    assert float(ours) == pytest.approx(float(theirs), abs=1e-6)


@pytest.mark.parametrize("kind", ["blip", "vilt"])
def test_training_teaches_what_only_the_picture_tells(
    kind: str, colors: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    flags = ["--data", str(colors), "--model", request.getfixturevalue(kind), "--steps", "150", "--batch_size", "8",
             "--learning_rate", "3e-3", "--test_fraction", "0.25", "--run", "t"]  # fmt: skip
    assert cli("train", *flags) == 0
    metrics = json.loads(Path("outputs/multimodal_llm/t/results.json").read_text())["metrics"]
    assert metrics["accuracy"] == 1.0 and metrics["prior"] < 0.8
    assert "question type" in capsys.readouterr().out
    answerer = load_answerer("outputs/multimodal_llm/t/model")
    (made,) = answerer.answer([plain((200, 0, 0))], ["what color is the picture?"])
    assert made.text == "red"
    assert not Path("outputs/multimodal_llm/t/checkpoint.safetensors").exists()


def test_questions_nobody_has_answered_are_not_learned(
    blip: str, colors: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    rows = [json.loads(line) for line in (colors / "train.jsonl").read_text().splitlines()]
    rows[::2] = [row | {"answer": ""} for row in rows[::2]]
    (colors / "train.jsonl").write_text("\n".join(map(json.dumps, rows)))
    flags = ["--data", str(colors), "--model", blip, "--steps", "1", "--keep_unanswered", "true", "--run", "r"]
    assert cli("train", *flags) == 0
    answers = Path("outputs/multimodal_llm/r/answers.jsonl").read_text().splitlines()
    assert answers and {json.loads(line)["question"] for line in answers} == {"is the picture red?"}


def test_a_training_goes_on_only_with_the_data_that_it_began_with(
    blip: str, colors: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def stopped(model: Any, loss: Any, batch_of: Any, *_: Any, **__: Any) -> None:
        batch_of(0)
        raise KeyboardInterrupt("stopped")

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(vqa_system, "fit", stopped)
    flags = ["--data", str(colors), "--model", blip, "--batch_size", "2", "--run", "r"]
    assert cli("train", *flags) == 130
    (colors / "3.png").rename(colors / "99.png")
    assert cli("train", *flags, "--resume", "true") == 2
    assert "is no longer what r began with" in capsys.readouterr().err
    (colors / "99.png").rename(colors / "3.png")
    assert cli("train", *flags, "--resume", "true") == 130


# --- Commands ---------------------------------------------------------------------------------------------------------


def test_a_folder_is_measured_by_type_beside_the_prior_and_broken_images_are_reported(
    blip: str, colors: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (colors / "3.png").write_text("this is text")
    assert cli("evaluate", "--data", str(colors), "--model", blip, "--run", "e", "--split", "train") == 0
    out = capsys.readouterr()
    metrics = json.loads(Path("outputs/multimodal_llm/e/results.json").read_text())["metrics"]
    assert metrics["questions"] + metrics["left out"] in (38, 40)
    assert metrics["left out"] in (0, 2)  # its image may be of another split
    assert "color" in out.out and "all" in out.out


def test_asking_shows_answers_and_wrong_input_is_one_clear_line(
    blip: str, vilt: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    noise(1).save("a.png")
    Path("b.png").write_text("this is text")
    flags = ["--image", "a.png", "--question", "is there a dog?", "--model"]
    assert cli("ask", *flags, vilt, "--candidates", "yes,no") == 0
    assert capsys.readouterr().out.startswith("is there a dog?  ")
    for arguments, said in [
        (["--image", "b.png", "--model", blip], "no image"),
        (["--image", "c.png", "--question", "a?", "--model", blip], "No such file"),
        (["--image", "a.png"], "question must not be empty"),
        (["--image", "a.png", "--question", "有几个？", "--model", blip], "can't read"),
        (["--model", "builtin:nothing"], "builtin:vqa"),
        (["--seed", "-1"], "seed must be in"),
        ([*flags, vilt, "--candidates", "elephant"], "none of these"),
        ([*flags, blip, "--candidates", "红色,蓝色"], "can't read"),
    ]:
        assert cli("ask", *arguments) in (1, 2)
        error = capsys.readouterr().err
        assert said in error and "Traceback" not in error
    assert cli("evaluate", "--seed", "-1") == 2


def test_questions_that_can_be_read_are_answered_beside_others_and_the_scene_can_be_seen(
    blip: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from multimodal_llm.builtin import scenes

    monkeypatch.chdir(tmp_path)
    asked = ["--question", '["有几个？", "how many?", ""]']
    assert cli("ask", *asked, "--model", blip, "--candidates", "1,2,3", "--seed", "2", "--run", "a") == 0
    lines = capsys.readouterr().out.splitlines()
    assert "not answered: The model can't read" in lines[1] and lines[2].startswith("how many?  ")
    assert lines[3].endswith("not answered: question must not be empty.")
    folder = Path("outputs/multimodal_llm/a")
    [row] = map(json.loads, (folder / "answers.jsonl").read_text().splitlines())
    assert row["question"] == "how many?" and row["answer"] in ("1", "2", "3")
    scene = next(iter(scenes.scenes("test", 1, 2)))
    assert np.array_equal(vqa_system.open_image(folder / "scene.png"), scenes.render(scene))


# --- The embedded model -----------------------------------------------------------------------------------------------


def test_the_embedded_model_answers_far_better_than_the_prior() -> None:
    splits = load_vqa(DataConfig(max_questions=300)).splits
    prior = QuestionPrior(load_vqa(DataConfig()).splits["train"])
    metrics, _ = vqa_system.measure(load_answerer(), splits["test"], prior)
    assert metrics["accuracy"] >= 0.93 and metrics["prior"] < 0.45
    for kind in ("count", "color", "shape", "size", "exists", "relation"):
        assert metrics[f"accuracy {kind}"] >= metrics[f"prior {kind}"] + 0.05
