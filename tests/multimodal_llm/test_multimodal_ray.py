"""What Ray Data does on many machines is what one machine does."""

import importlib.util
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from multimodal_llm.clip_applications.image_search import look_at, look_with_ray
from multimodal_llm.clip_applications.zero_shot_classification import load_clip
from multimodal_llm.image_captioning.blip_model import CaptionConfig, caption_images, caption_with_ray
from multimodal_llm.visual_question_answering.data_loader import Skipped

ray = pytest.importorskip("ray.data") and pytest.importorskip("ray")
spec = importlib.util.spec_from_file_location("tiny_models", Path(__file__).with_name("tiny_models.py"))
tiny_models = importlib.util.module_from_spec(spec)
spec.loader.exec_module(tiny_models)
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module", autouse=True)
def cluster() -> Iterator[None]:
    """Start Ray once: it takes longer than the tests."""
    ray.init(include_dashboard=False, log_to_driver=False)
    yield
    ray.shutdown()


@pytest.fixture(scope="module")
def paths(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    folder = tmp_path_factory.mktemp("photos")
    rng = np.random.default_rng(0)
    for i in range(5):
        Image.fromarray(rng.integers(0, 256, (30, 40, 3), dtype=np.uint8)).save(folder / f"{i}.png")
    (folder / "broken.png").write_text("this is text")
    return [str(path) for path in sorted(folder.iterdir())]


def test_captions_are_those_of_one_machine(paths: list[str], tmp_path: Path) -> None:
    config = CaptionConfig(model=tiny_models.tiny_blip(tmp_path), max_new_tokens=5, batch_size=2)
    named = [(path, Path(path)) for path in paths]
    skipped = [Skipped(), Skipped()]
    plain = dict(caption_images(config.writer(), named, 2, skipped[0]))
    spread = dict(caption_with_ray(config, named, 1, skipped[1]))
    assert {name: its.text for name, its in spread.items()} == {name: its.text for name, its in plain.items()}
    assert skipped[0].counts == skipped[1].counts and len(plain) == 5


def test_looks_at_images_are_those_of_one_machine(paths: list[str], tmp_path: Path) -> None:
    clip = tiny_models.tiny_clip(tmp_path)
    alone = {look.path: look for look in look_at(load_clip(clip, "cpu"), paths)}
    spread = {look.path: look for look in look_with_ray(paths, clip, device="cpu", batch_size=4, workers=1)}
    assert set(alone) == set(spread) == set(paths)
    for path, look in spread.items():
        own = alone[path]
        assert (look.sha256, look.thumbnail, look.reason) == (own.sha256, own.thumbnail, own.reason)
        if look.vector is not None:
            np.testing.assert_allclose(look.vector, own.vector, atol=1e-5)
    assert [look.vector is None for look in spread.values()].count(True) == 1
