"""Captions are the model's own, their probability is what it says, nothing is lost on the way, and training teaches."""

import importlib.util
import json
import math
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from multimodal_llm.image_captioning import blip_model
from multimodal_llm.image_captioning.blip_model import (
    MODULE,
    Captioner,
    Recipe,
    caption,
    caption_loss,
    evaluate,
    fit,
    load_captioned,
    load_captioner,
    padded_ids,
    share_of_rate,
    shuffled,
    train,
)
from multimodal_llm.image_captioning.caption_evaluation import clip_scores
from shared.config import run_commands
from shared.errors import InputError

ROOT = Path(__file__).parents[2]
spec = importlib.util.spec_from_file_location("tiny_models", Path(__file__).with_name("tiny_models.py"))
tiny_models = importlib.util.module_from_spec(spec)
spec.loader.exec_module(tiny_models)


def cli(*arguments: str) -> int:
    with pytest.raises(SystemExit) as exit_:
        run_commands({"caption": caption, "evaluate": evaluate, "train": train}, module=MODULE, argv=arguments)
    return exit_.value.code


def noise(seed: int, size: tuple[int, int] = (40, 30)) -> Any:
    from PIL import Image

    rng = np.random.default_rng(seed)
    return Image.fromarray(rng.integers(0, 256, (size[1], size[0], 3), dtype=np.uint8))


@pytest.fixture(scope="module")
def blip(tmp_path_factory: pytest.TempPathFactory) -> str:
    return tiny_models.tiny_blip(tmp_path_factory.mktemp("blip"))


@pytest.fixture(scope="module")
def captioner(blip: str) -> Captioner:
    return load_captioner(blip)


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    folder = tmp_path / "photos"
    (folder / "below").mkdir(parents=True)
    for i in range(5):
        noise(i).save(folder / ("below" if i > 2 else "") / f"{i}.png")
    (folder / "notes.txt").write_text("no image")
    return folder


# --- Captions ---------------------------------------------------------------------------------------------------------


def test_a_caption_is_what_the_model_itself_generates(captioner: Captioner) -> None:
    images = [noise(i) for i in range(4)]
    inputs = captioner.processor(images=images, return_tensors="pt")
    ids = captioner.model.generate(**inputs, max_new_tokens=6)
    expected = captioner.processor.batch_decode(ids[:, 1:], skip_special_tokens=True)
    assert [one.text for one in captioner.caption(images, max_new_tokens=6)] == expected
    assert len(set(expected)) > 1  # not blind


@pytest.mark.parametrize("num_beams", [1, 3])
@pytest.mark.parametrize("prefix", ["", "a picture of"])
def test_the_log_probability_is_that_of_the_caption_read_back(
    captioner: Captioner, num_beams: int, prefix: str
) -> None:
    import torch

    image, text = noise(7), captioner.model.config.text_config
    (made,) = captioner.caption([image], prefix=prefix, num_beams=num_beams, max_new_tokens=6)
    inputs = captioner.processor(images=[image], text=[prefix or ""], return_tensors="pt")
    start = inputs["input_ids"][:, :-1]
    start[:, 0] = text.bos_token_id
    ids = captioner.model.generate(**captioner._inputs([image], prefix), num_beams=num_beams, max_new_tokens=6)
    with torch.no_grad():
        logits = captioner.model(pixel_values=inputs["pixel_values"], input_ids=ids).logits
    each = logits[0, :-1].log_softmax(-1).gather(-1, ids[0, 1:, None])[start.shape[1] - 1 :, 0]
    assert made.log_probability == pytest.approx(float(each[: made.tokens].sum()), abs=1e-4)
    assert made.confidence == pytest.approx(math.exp(made.log_probability / made.tokens))
    assert made.text.startswith(prefix)


def test_captions_do_not_depend_on_the_batch(captioner: Captioner) -> None:
    images = [noise(i) for i in range(6)]
    alone = [captioner.caption([image], max_new_tokens=8)[0] for image in images]
    together = captioner.caption(images, max_new_tokens=8)
    assert [one.text for one in together] == [one.text for one in alone]
    assert [one.log_probability for one in together] == pytest.approx([one.log_probability for one in alone], abs=1e-4)
    assert captioner.caption([]) == []


@pytest.mark.parametrize("kind", ["tiny_git", "tiny_llava"])
def test_other_models_that_make_text_of_images_caption_too(kind: str, tmp_path: Path) -> None:
    captioner = load_captioner(getattr(tiny_models, kind)(tmp_path))
    for prefix in ("", "a picture of"):
        made = captioner.caption([noise(1), noise(2)], prefix=prefix, max_new_tokens=5)
        assert len(made) == 2 and all(0 < one.confidence <= 1 and one.tokens <= 5 for one in made)
        assert all(one.text.startswith(prefix) for one in made) or kind == "tiny_llava"


def test_a_folder_that_holds_no_model_is_named(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(InputError, match="holds no model") as error:
        load_captioner(str(tmp_path))
    assert "builtin:captions" in error.value.hint


@pytest.mark.parametrize("wrapped", [False, True])
def test_memory_that_runs_out_while_loading_is_called_that(wrapped: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    import transformers

    def fails(*arguments: Any, **options: Any) -> Any:
        error = RuntimeError("unable to mmap 4096 bytes: Cannot allocate memory (12)")
        raise OSError("can't load the weights") from error if wrapped else error

    monkeypatch.setattr(transformers.AutoModelForImageTextToText, "from_pretrained", fails)
    with pytest.raises(MemoryError):
        load_captioner()


# --- The command ------------------------------------------------------------------------------------------------------


def test_a_folder_is_captioned_and_what_is_no_image_is_reported(
    blip: str, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (photos / "broken.png").write_text("this is text")
    cut = (photos / "0.png").read_bytes()[:200]
    (photos / "cut.png").write_bytes(cut)
    flags = ["--model", blip, "--input", str(photos), "--max_new_tokens", "5", "--run", "r", "--batch_size", "2"]
    assert cli("caption", *flags, "--output", "out.csv") == 0
    rows = [json.loads(line) for line in Path("outputs/multimodal_llm/r/captions.jsonl").read_text().splitlines()]
    assert [Path(row["image"]).name for row in rows] == ["0.png", "1.png", "2.png", "3.png", "4.png"]
    assert all(Path(row["image"]).exists() and 0 < row["confidence"] <= 1 for row in rows)
    assert Path("out.csv").read_text().splitlines()[0] == "image,caption,confidence,log_probability"
    assert len(Path("out.csv").read_text().splitlines()) == 6
    results = json.loads(Path("outputs/multimodal_llm/r/results.json").read_text())
    assert results["metrics"]["captions"] == 5 and results["metrics"]["left out"] == 2
    error = capsys.readouterr().err
    assert "broken.png" in error and "cut.png" in error


def test_a_stopped_run_goes_on_where_it_stopped(
    blip: str, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    flags = ["--model", blip, "--input", str(photos), "--max_new_tokens", "5", "--batch_size", "2"]
    calls, plain = [], Captioner.caption

    def stops(self: Captioner, images: Any, **options: Any) -> Any:
        calls.append(len(images))
        if len(calls) == 2:
            raise KeyboardInterrupt
        return plain(self, images, **options)

    with monkeypatch.context() as patch:
        patch.setattr(Captioner, "caption", stops)
        assert cli("caption", *flags, "--run", "cut") == 130
    assert len(Path("outputs/multimodal_llm/cut/captions.jsonl").read_text().splitlines()) == 2
    assert cli("caption", *flags, "--run", "cut", "--resume", "true") == 0
    assert cli("caption", *flags, "--run", "whole") == 0
    whole, cut = (Path(f"outputs/multimodal_llm/{run}/captions.jsonl").read_text() for run in ("whole", "cut"))
    assert cut == whole


def test_a_run_goes_on_without_files_deleted_since_and_past_lines_that_are_no_captions(
    blip: str, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    flags = ["--model", blip, "--input", str(photos), "--max_new_tokens", "2", "--run", "r"]
    assert cli("caption", *flags) == 0
    run = Path("outputs/multimodal_llm/r")
    (run / "results.json").unlink()
    first, *_, last = (run / "captions.jsonl").read_text().splitlines()
    (run / "captions.jsonl").write_text("\n".join([first, "12", "[]", '{"image": []}', "[" * 100_000, last[:-9]]))
    Path(json.loads(first)["image"]).unlink()
    assert cli("caption", *flags, "--resume", "true") == 0
    names = [json.loads(line)["image"] for line in (run / "captions.jsonl").read_text().splitlines()]
    assert [Path(name).name for name in names] == [f"{i}.png" for i in range(5)]


@pytest.mark.parametrize("content", ["", "[1]", "a: [", "\ud800"])
def test_a_run_with_a_damaged_configuration_does_not_go_on(
    content: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("outputs/multimodal_llm/r").mkdir(parents=True)
    Path("outputs/multimodal_llm/r/config.yaml").write_text(content, errors="surrogatepass")
    assert cli("caption", "--run", "r", "--resume", "true") == 2
    assert "config.yaml is damaged" in capsys.readouterr().err


def test_a_folder_of_which_no_image_opens_is_an_error(
    blip: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("broken.png").write_text("this is text")
    assert cli("caption", "--model", blip, "--input", "broken.png", "--run", "r") == 2
    error = capsys.readouterr().err
    assert "None of the images could be opened" in error and "1 left out" in error


def test_large_images_are_drawn_small(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from matplotlib.axes import Axes

    drawn: list[int] = []
    monkeypatch.setattr(Axes, "imshow", lambda self, pixels: drawn.append(max(pixels.shape)))
    blip_model.plot_captions([(noise(0, (2000, 1000)), "a dog")], tmp_path / "a.png")
    assert drawn == [600]


def test_wrong_input_is_one_clear_line(blip: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "empty").mkdir()
    for flags, said in [
        (["--input", str(tmp_path / "empty")], "no image"),
        (["--input", str(tmp_path / "nothing")], "No such file"),
        (["--num_beams", "65"], "num_beams must be in"),
        (["--output", "a.xlsx"], "output must end with"),
        (["--model", "builtin:nothing"], "builtin:captions"),
        (["--resume", "true"], "name of the run"),
    ]:
        assert cli("caption", *flags) in (1, 2)
        error = capsys.readouterr().err
        assert said in error and "Traceback" not in error


def test_numbers_without_measure_are_refused(capsys: pytest.CaptureFixture[str]) -> None:
    for flags in (["--seed", "-1"], ["--count", "1000000000"]):
        assert cli("evaluate", *flags) == 2
        assert f"{flags[0][2:]} must be in" in capsys.readouterr().err


# --- Images with captions ---------------------------------------------------------------------------------------------


def test_a_prefix_that_fills_the_model_is_told(captioner: Captioner) -> None:
    with pytest.raises(InputError, match=r"prefix has \d+ tokens; .* reads at most 31"):
        captioner.caption([noise(1)], prefix="a dog " * 40)


def test_clip_scores_are_those_of_the_other_command(blip: str, tmp_path: Path) -> None:
    captioner = load_captioner(blip, clip=tiny_models.tiny_clip(tmp_path / "clip"))
    images = [noise(1), noise(2)]
    made = captioner.caption(images, max_new_tokens=4)
    scores, _ = clip_scores(captioner.clip, images, [one.text for one in made])
    assert [one.clip_score for one in made] == pytest.approx(scores.tolist())


def test_a_caption_without_a_word_is_left_out_before_anything_is_captioned(
    photos: Path, caplog: pytest.LogCaptureFixture
) -> None:
    lines = [{"image": "0.png", "captions": ["...", "a dog"]}, {"image": "1.png", "caption": "..."}]
    (photos / "captions.jsonl").write_text("\n".join(map(json.dumps, lines)))
    assert [(one.name, one.captions) for one in load_captioned(str(photos))] == [("0.png", ("a dog",))]
    assert "4 of 5 images have no caption with a word" in caplog.text


def test_a_folder_with_captions_is_read(photos: Path) -> None:
    lines = [{"image": "0.png", "captions": ["a dog", "the dog"]}, {"image": "3.png", "caption": "a cat"}]
    (photos / "captions.jsonl").write_text("\n".join(map(json.dumps, lines)))
    rows = load_captioned(str(photos))
    assert [(Path(row.name).name, row.captions) for row in rows] == [("0.png", ("a dog", "the dog")),
                                                                     ("3.png", ("a cat",))]  # fmt: skip
    noise(9).save(photos / "below" / "0.png")  # of the same name, but none of the captions is its
    assert len(load_captioned(str(photos))) == 2
    with pytest.raises(InputError, match="no captions"):
        load_captioned(str(photos / "below"))


# --- Training ---------------------------------------------------------------------------------------------------------


@given(st.integers(1, 40), st.integers(1, 8), st.integers(0, 5))
def test_every_image_comes_once_an_epoch(count: int, size: int, seed: int) -> None:
    size = min(size, count)
    per_epoch = count // size
    for epoch in (0, 1):
        rows = [i for n in range(per_epoch) for i in shuffled(count, size, seed, epoch * per_epoch + n)]
        assert len(set(rows)) == len(rows) == per_epoch * size and set(rows) <= set(range(count))


def test_the_rate_rises_holds_and_falls() -> None:
    shares = [share_of_rate(step, 100) for step in range(100)]
    assert shares[0] == 0.5 and shares[1:60] == [1.0] * 59 and shares[-1] == pytest.approx(1 / 40)
    assert all(later <= earlier for earlier, later in zip(shares[60:], shares[61:], strict=False))


def test_the_loss_is_the_models_own_without_padding(captioner: Captioner) -> None:
    import torch

    tokenizer, text = captioner.processor.tokenizer, captioner.model.config.text_config
    pixels = captioner.processor.image_processor([noise(1), noise(2)], return_tensors="pt")["pixel_values"]
    ids, mask = padded_ids(tokenizer, ["a dog", "a red circle on a square"], text.bos_token_id, 32)
    with torch.no_grad():
        loss = caption_loss(captioner.model, {"pixel_values": pixels, "input_ids": ids, "attention_mask": mask})
        logits = captioner.model(pixel_values=pixels, input_ids=ids, attention_mask=mask).logits
    each = logits[:, :-1].log_softmax(-1).gather(-1, ids[:, 1:, None])[..., 0]
    assert float(loss) == pytest.approx(float(-(each * mask[:, 1:]).sum() / mask[:, 1:].sum()), abs=1e-5)


def learn(blip: str, folder: Path, steps: int, muon: float = 0.0, rate: float = 3e-3) -> Captioner:
    captioner = load_captioner(blip)
    tokenizer, text = captioner.processor.tokenizer, captioner.model.config.text_config

    def batch_of(number: int) -> dict[str, Any]:
        images, said = [noise(number % 2), noise(2)], ["a red dog" if number % 2 else "a blue cat", "the square"]
        ids, mask = padded_ids(tokenizer, said, text.bos_token_id, 32)
        pixels = captioner.processor.image_processor(images, return_tensors="pt")["pixel_values"]
        return {"pixel_values": pixels, "input_ids": ids, "attention_mask": mask}

    fit(captioner.model, caption_loss, batch_of, Recipe(steps, 2, rate, muon=muon, device="cpu"), folder)
    return captioner


def test_training_teaches_what_pictures_show(blip: str, tmp_path: Path) -> None:
    captioner = learn(blip, tmp_path, 60)
    assert [one.text for one in captioner.caption([noise(1), noise(0), noise(2)])] == [
        "a red dog", "a blue cat", "the square",
    ]  # fmt: skip
    rows = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert rows[-1]["step"] == 60 and rows[-1]["loss"] < rows[0]["loss"] / 4


@pytest.mark.parametrize("muon", [0.0, 0.02])
def test_a_training_that_was_stopped_ends_as_one_that_was_not(
    blip: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, muon: float
) -> None:
    import torch

    whole = learn(blip, tmp_path / "whole", 12, muon).model.state_dict()
    steps = iter(range(100))
    asked = property(lambda self: next(steps) > 8, lambda self, value: None)
    monkeypatch.setattr(blip_model.StopRequest, "requested", asked, raising=False)
    with pytest.raises(KeyboardInterrupt, match="goes on"):
        learn(blip, tmp_path / "cut", 12, muon)
    monkeypatch.undo()
    cut = learn(blip, tmp_path / "cut", 12, muon).model.state_dict()
    assert all(torch.equal(whole[name], cut[name]) for name in whole)
    rows = (tmp_path / "cut/metrics.jsonl").read_text().splitlines()
    assert [json.loads(row)["step"] for row in rows] == [1, 11, 12]


def test_a_diverging_training_says_so(blip: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def diverges(model: Any, batch: Any) -> Any:
        return next(model.parameters()).sum() * math.inf

    captioner = load_captioner(blip)
    with pytest.raises(InputError, match="diverged"):
        fit(captioner.model, diverges, lambda number: {}, Recipe(3, 1, device="cpu"), tmp_path)


def test_a_last_step_that_breaks_the_weights_is_no_success(blip: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="diverged: some weights are not finite"):
        learn(blip, tmp_path, 1, rate=1e38)


def test_fine_tuning_on_a_folder_leaves_a_model_that_captions(
    blip: str, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    rows = [{"image": f"{'below/' if i > 2 else ''}{i}.png", "caption": "a dog runs"} for i in range(5)]
    (photos / "captions.jsonl").write_text("\n".join(map(json.dumps, rows)))
    flags = ["--data", str(photos), "--model", blip, "--steps", "80", "--batch_size", "4", "--learning_rate", "3e-3"]
    assert cli("train", *flags, "--held_out", "0.2", "--run", "t") == 0
    results = json.loads(Path("outputs/multimodal_llm/t/results.json").read_text())
    assert results["metrics"]["exact"] == 1.0 and results["metrics"]["exact before"] == 0.0
    made = load_captioner("outputs/multimodal_llm/t/model").caption([noise(9)])
    assert made[0].text == "a dog runs"
    assert not Path("outputs/multimodal_llm/t/checkpoint.safetensors").exists()


def test_a_training_does_not_go_on_with_other_images(
    blip: str, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    rows = [{"image": f"{i}.png", "caption": "a dog runs"} for i in range(3)]
    (photos / "captions.jsonl").write_text("\n".join(map(json.dumps, rows[:2])))
    flags = ["--data", str(photos), "--model", blip, "--steps", "2", "--batch_size", "1", "--held_out", "0.5"]
    assert cli("train", *flags, "--run", "t") == 0
    Path("outputs/multimodal_llm/t/results.json").unlink()
    (photos / "captions.jsonl").write_text("\n".join(map(json.dumps, rows)))
    assert cli("train", *flags, "--run", "t", "--resume", "true") == 2
    assert "is no longer what t began with" in capsys.readouterr().err


def test_a_training_that_did_nothing_leaves_its_name_free(
    blip: str, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (photos / "captions.jsonl").write_text("\n".join(json.dumps({"image": f"{i}.png", "caption": "a"}) for i in (0, 1)))
    flags = ["--data", str(photos), "--model", blip, "--steps", "1", "--held_out", "0.5", "--run", "t"]
    monkeypatch.setattr(blip_model, "fit", failing)
    assert cli("train", *flags) == 2
    monkeypatch.undo()
    monkeypatch.chdir(tmp_path)
    assert cli("train", *flags) == 0


def failing(*_: Any, **__: Any) -> None:
    raise InputError("no")


@pytest.mark.slow
def test_of_two_processes_one_measures_and_writes(blip: str, photos: Path, tmp_path: Path) -> None:
    (photos / "captions.jsonl").write_text(
        "\n".join(json.dumps({"image": f"{i}.png", "caption": "a"}) for i in range(3))
    )
    command = [
        # --multi_gpu starts both (--cpu would start one); with --device cpu they compute there and talk through gloo
        sys.executable, "-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2", "--num_machines",
        "1", "--mixed_precision", "no", "--dynamo_backend", "no", "--main_process_port", "0", "-m", MODULE, "train",
        "--data", str(photos), "--model", blip, "--steps", "3", "--batch_size", "1", "--device", "cpu",
    ]  # fmt: skip
    done = subprocess.run(
        command, cwd=tmp_path, capture_output=True, text=True, timeout=300, env={**os.environ, "PYTHONPATH": str(ROOT)}
    )
    assert done.returncode == 0, done.stderr[-2000:]
    [folder] = (tmp_path / "outputs/multimodal_llm").iterdir()
    made = {path.name for path in folder.iterdir()}
    assert made >= {"captions.jsonl", "config.yaml", "metrics.jsonl", "model", "results.json"}
    assert done.stdout.count("BLEU-1") == 1


def test_ctrl_c_saves_and_stops_at_the_end_of_a_step(blip: str, tmp_path: Path) -> None:
    def interrupt() -> None:
        while not (tmp_path / "metrics.jsonl").exists() or not (tmp_path / "metrics.jsonl").read_text():
            time.sleep(0.02)
        signal.raise_signal(signal.SIGINT)

    thread = threading.Thread(target=interrupt)
    thread.start()
    with pytest.raises(KeyboardInterrupt, match="goes on"):
        learn(blip, tmp_path, 100_000)
    thread.join()
    assert (tmp_path / "checkpoint.safetensors").exists()


# --- The embedded model -----------------------------------------------------------------------------------------------


def test_the_embedded_model_says_what_stands_in_scenes_it_never_saw() -> None:
    images = load_captioned("builtin:scenes", split="test", count=40)
    metrics, _ = blip_model.measure(load_captioner().caption, images, 40, objects=True)
    assert metrics["exact"] >= 0.85 and metrics["object F1"] >= 0.97 and metrics["confidence"] > 0.9
