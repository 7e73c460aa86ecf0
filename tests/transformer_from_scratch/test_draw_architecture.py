"""The picture in the README shows the model as it is."""

from pathlib import Path

from PIL import Image

from transformer_from_scratch.builtin import draw_architecture
from transformer_from_scratch.builtin.draw_architecture import description, draw


def test_the_picture_is_not_stale() -> None:
    with Image.open(Path(draw_architecture.__file__).with_name("architecture.png")) as picture:
        assert picture.text["Description"] == description(), (
            "python -m transformer_from_scratch.builtin.draw_architecture"
        )


def test_the_picture_can_be_drawn_again(tmp_path: Path) -> None:
    draw(tmp_path / "architecture.png")
    with Image.open(tmp_path / "architecture.png") as picture:
        assert picture.text["Description"] == description()
