"""What the embedded models learn from is right, they begin as is said, and what is shipped is small and said truly."""

import json
import random
import re
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from multimodal_llm.builtin import scenes, train_models
from multimodal_llm.builtin.train_models import (
    BUILTIN,
    KINDS,
    MODULE,
    blip_processor,
    borrow_eyes,
    caption_batch,
    clip_batch,
    clip_processor,
    contrastive_loss,
    evaluate,
    pixels,
    place_of,
    said_of,
    train,
    true_of,
    untrained_clip,
    variant,
)
from shared.config import run_commands
from shared.errors import InputError

seeds = st.integers(0, 10**6)


def scene_of(seed: int) -> scenes.Scene:
    return next(iter(scenes.scenes("train", 1, seed)))


# --- Data -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("processor", [blip_processor, clip_processor])
def test_pictures_are_what_the_processors_make_of_them(processor: object) -> None:
    drawn = list(scenes.scenes("train", 5))
    its = processor().image_processor([scenes.render(scene) for scene in drawn], return_tensors="np")["pixel_values"]
    assert np.abs(its - pixels(drawn).numpy()).max() < 1e-5


@pytest.mark.parametrize("processor", [blip_processor, clip_processor])
def test_each_word_of_the_scenes_is_one_token_and_any_text_can_be_written(processor: object) -> None:
    tokenizer, again = processor().tokenizer, processor().tokenizer
    assert tokenizer.get_vocab() == again.get_vocab()
    for word in (*scenes.COLORS, *scenes.SHAPES, "small", "large", "rectangle", "teal", "object"):
        assert len(tokenizer(word)["input_ids"]) == 3, word
    ids = tokenizer("xylophone 42")["input_ids"]
    assert tokenizer.decode(ids, skip_special_tokens=True).replace(" ", "") == "xylophone42"
    assert tokenizer.unk_token_id not in ids or tokenizer.unk_token_id == tokenizer.eos_token_id


@settings(max_examples=60)
@given(seeds)
def test_a_variant_differs_in_one_attribute_and_is_of_the_training_split(seed: int) -> None:
    scene = scene_of(seed)
    other = variant(scene, random.Random(seed))
    changed = [(one, its) for one, its in zip(scene.objects, other.objects, strict=True) if one != its]
    assert len(changed) == 1
    assert sum(getattr(changed[0][0], part) != getattr(changed[0][1], part) for part in ("size", "color", "shape")) == 1
    assert scenes.split_of(other.objects) == "train" and other.centers == scene.centers


@settings(max_examples=60)
@given(seeds)
def test_what_is_said_of_a_scene_is_true_of_it_and_not_of_its_variant_when_whole(seed: int) -> None:
    scene, rng = scene_of(seed), random.Random(seed)
    text, meaning = said_of(scene, rng)
    assert true_of(meaning, scene.objects)
    assert re.fullmatch(r"((a picture|an image) of )?an? .+", text) and text.count(" and ") == (len(meaning) > 1)
    if all(all(said) for said in meaning):
        assert not true_of(meaning, variant(scene, rng).objects)
    assert not true_of(meaning[:-1], scene.objects)


def test_a_batch_marks_the_captions_that_are_right_for_other_pictures_too() -> None:
    batch = clip_batch(clip_processor().tokenizer, 3, 64, 5)
    also = batch["also"]
    assert also.shape == (64, 64) and not also.diagonal().any() and 0 < also.sum() < 300
    again = clip_batch(clip_processor().tokenizer, 3, 64, 5)
    assert all((batch[name] == again[name]).all() for name in batch)
    other = clip_batch(clip_processor().tokenizer, 3, 64, 6)
    assert not (batch["pixel_values"] == other["pixel_values"]).all()


# --- Models -----------------------------------------------------------------------------------------------------------


def test_the_contrastive_loss_is_clips_own_where_no_other_caption_is_right() -> None:
    import torch
    from transformers import CLIPModel

    model = CLIPModel.from_pretrained(BUILTIN / "clip", dtype=torch.float32).eval()
    batch = clip_batch(clip_processor().tokenizer, 0, 32, 0)
    inputs = {name: batch[name] for name in ("pixel_values", "input_ids", "attention_mask")}
    with torch.no_grad():
        plain = contrastive_loss(model, batch | {"also": torch.zeros(32, 32, dtype=torch.bool)})
        assert float(plain) == pytest.approx(float(model(**inputs, return_loss=True).loss), abs=1e-6)
        if batch["also"].any():
            assert float(contrastive_loss(model, batch)) < float(plain)


def test_clip_begins_with_the_attention_of_its_captioner() -> None:
    import torch

    taught = KINDS["grid"].model(blip_processor(), 0).vision_model
    model = untrained_clip(clip_processor(), 1)
    borrow_eyes(model, taught)
    x = torch.randn(2, 5, 128)
    for mine, its in zip(model.vision_model.encoder.layers, taught.encoder.layers, strict=True):
        parts = [part(x) for part in (mine.self_attn.q_proj, mine.self_attn.k_proj, mine.self_attn.v_proj)]
        assert torch.allclose(torch.cat(parts, -1), its.self_attn.qkv(x), atol=1e-5)
        assert torch.allclose(mine.mlp(x), its.mlp(x), atol=1e-4)
    image = pixels([scene_of(1)])
    seen = taught.embeddings(image)[:, 1:]
    own = model.vision_model.embeddings(image)[:, 1:]
    assert torch.allclose(seen, own, atol=1e-4)


@pytest.mark.parametrize("name", ["vqa", "clip"])
def test_models_begin_with_the_eyes_of_a_captioner_and_say_when_it_is_not_there(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    processor = KINDS[name].processor()
    with pytest.raises(InputError, match="grid") as raised:
        KINDS[name].model(processor, 0)
    assert raised.value.hint == f"python -m {MODULE} train --model grid"
    taught = KINDS["grid"].model(blip_processor(), 7)
    taught.save_pretrained(place_of("grid"))
    mine = dict(KINDS[name].model(processor, 0).vision_model.named_parameters())
    its = dict(taught.vision_model.named_parameters())
    assert (mine["embeddings.patch_embedding.weight"] == its["embeddings.patch_embedding.weight"]).all()
    assert (mine["encoder.layers.3.mlp.fc1.weight"] == its["encoder.layers.3.mlp.fc1.weight"]).all()


def test_captions_leave_the_grid_step_by_step(monkeypatch: pytest.MonkeyPatch) -> None:
    tokenizer, spreads, plain = blip_processor().tokenizer, [], scenes.loose_scenes
    monkeypatch.setattr(scenes, "loose_scenes",
                        lambda *its: spreads.append(its[3]) or plain(*its))  # type: ignore[func-returns-value]  # fmt: skip
    sizes = [
        len(caption_batch(tokenizer, 0, 5, number)["input_ids"]) for number in (0, *range(700, 720), *range(1300, 1320))
    ]
    assert sizes == [5] * 41
    assert spreads[0] == 0 and 0.5 < max(spreads[1:21]) < 0.52 and max(spreads[21:]) == 1
    assert min(spreads[21:]) < 1  # what was learned first comes again


def test_blip_does_not_start_dead() -> None:
    import torch

    model = KINDS["captions"].model(blip_processor(), 0)
    drawn = list(scenes.scenes("train", 4))
    with torch.no_grad():
        seen = model.vision_model(pixel_values=pixels(drawn)).last_hidden_state
    assert float((seen[0] - seen[1]).abs().mean()) > 0.05


@pytest.mark.parametrize("name", sorted(name for name, kind in KINDS.items() if kind.shipped))
def test_a_shipped_model_is_small_safe_and_has_a_card_with_its_command(name: str) -> None:
    folder = BUILTIN / name
    assert sum(path.stat().st_size for path in folder.iterdir()) < 10_000_000
    assert {path.suffix for path in folder.iterdir()} <= {".safetensors", ".json", ".md", ".txt"}
    card = (folder / "README.md").read_text(encoding="utf-8")
    assert f"python -m {MODULE} train" in card and "minutes" in card and "seed 0" in card


def test_training_makes_a_model_with_its_card(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    flags = ["train", "--model", "captions", "--steps", "2", "--batch_size", "8", "--output", "made", "--run", "t"]
    monkeypatch.setattr(train_models, "figures", lambda name, folder: {"recall": 0.5})
    for arguments, status in [(flags, 0), (["train", "--resume", "true"], 2), (["train", "--model", "x"], 2)]:
        with pytest.raises(SystemExit) as exit_:
            run_commands({"train": train, "evaluate": evaluate}, module=MODULE, argv=arguments)
        assert exit_.value.code == status
    assert {"model.safetensors", "README.md", "tokenizer.json"} <= {path.name for path in Path("made").iterdir()}
    assert "--batch_size 8" in Path("made/README.md").read_text(encoding="utf-8")
    results = json.loads(Path("outputs/multimodal_llm/t/results.json").read_text())
    assert results["metrics"] == {"recall": 0.5}
