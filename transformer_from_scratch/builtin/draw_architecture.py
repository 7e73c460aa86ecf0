"""Draws the picture of the README from the model itself: its boxes carry the real shapes and parameter counts.

python -m transformer_from_scratch.builtin.draw_architecture
"""

from __future__ import annotations

import json
from dataclasses import fields
from pathlib import Path
from typing import Any

from torch import nn

from transformer_from_scratch.train_simple_lm import CharacterLM, TrainConfig
from transformer_from_scratch.transformer_block import EncoderConfig

VOCAB_SIZE = 65  # of tinyshakespeare
BLUE, GREEN, ORANGE, GRAY, INK = "#cfe2f3", "#d9ead3", "#fce5cd", "#eeeeee", "#333333"


def description() -> str:
    """Return what the picture depends on; it is saved inside, so that a test can tell a stale one."""
    shape = {field.name: getattr(TrainConfig(), field.name) for field in fields(EncoderConfig)}
    return json.dumps({"vocab_size": VOCAB_SIZE, **shape})


def count(*modules: nn.Module | None) -> str:
    """Return the number of parameters of some modules, for a label."""
    return f"{sum(p.numel() for module in modules if module is not None for p in module.parameters()):,}"


def box(axes: Any, x: float, y: float, text: str, color: str, width: float = 3.4, height: float = 0.62) -> None:
    """Draw a labelled box around (x, y)."""
    from matplotlib.patches import FancyBboxPatch

    corner = (x - width / 2, y - height / 2)
    style = "round,pad=0.02,rounding_size=0.08"
    axes.add_patch(FancyBboxPatch(corner, width, height, boxstyle=style, facecolor=color, edgecolor=INK, linewidth=1))
    axes.text(x, y, text, ha="center", va="center", fontsize=8.5, color=INK)


def arrow(axes: Any, start: tuple[float, float], end: tuple[float, float]) -> None:
    """Draw an arrow from one point to another."""
    style = {"arrowstyle": "-|>", "color": INK, "linewidth": 1.1, "shrinkA": 0, "shrinkB": 0}
    axes.annotate("", end, start, arrowprops=style)


def draw(path: Path) -> None:
    """Draw the preset ``laptop``: the stack on the left, the inside of attention on the right."""
    from matplotlib.figure import Figure

    config, vocab_size = TrainConfig(), VOCAB_SIZE
    model = CharacterLM(vocab_size, config)
    encoder, layer = model.encoder, model.encoder.layers[0]
    heads, head_dim = config.num_heads, config.d_model // config.num_heads

    figure = Figure(figsize=(9.6, 6.6), layout="constrained")
    left, right = figure.subplots(1, 2)
    left.set(
        xlim=(-3.1, 3.1), ylim=(-0.6, 9.0), title=f"CharacterLM over {vocab_size} characters, {count(model)} parameters"
    )
    rows = [
        (0.0, f"characters  (B, T ≤ {config.context_length})", GRAY),
        (1.1, f"embedding of each and of {config.previous_tokens} before it\n"
              f"(B, T, {config.d_model})   {count(encoder.embedding, encoder.previous)}", BLUE),
        (2.5, "norm", GRAY),
        (3.3, f"multi-head attention, causal\n{heads} heads × {head_dim}   {count(layer.attention)}", ORANGE),
        (4.8, "norm", GRAY),
        (5.6, f"feed-forward {config.d_model} → {config.d_ff} → {config.d_model}\n"
              f"{config.activation}   {count(layer.feed_forward)}", GREEN),
        (7.3, "final norm", GRAY),
        (8.2, f"linear → scores of the next\ncharacter  (B, T, {vocab_size})   {count(model.head)}", BLUE),
    ]  # fmt: skip
    for y, text, color in rows:
        box(left, 0, y, text, color, height=0.4 if color == GRAY else 0.66)
    points = {"sum1": 4.1, "sum2": 6.4}
    for y in points.values():
        left.text(0, y, "+", ha="center", va="center", fontsize=13, bbox={"boxstyle": "circle,pad=0.12", "fc": "white"})
    stops = [0.2, 0.77, 1.43, 2.3, 2.7, 2.97, 3.63, 3.93, 4.27, 4.6, 5.0, 5.27, 5.93, 6.23, 6.57, 7.1, 7.5, 7.87]
    for start, end in zip(stops[::2], stops[1::2], strict=True):
        arrow(left, (0, start), (0, end))
    for start, end in ((2.1, points["sum1"]), (4.42, points["sum2"])):  # the residual path passes both sublayers
        left.plot([0, 2.25, 2.25], [start, start, end], color=INK, linewidth=1.1)
        arrow(left, (2.25, end), (0.2, end))
    left.plot([-2.5, 2.6, 2.6, -2.5, -2.5], [1.85, 1.85, 6.78, 6.78, 1.85], color=INK, linestyle=":", linewidth=1)
    left.text(-2.55, 4.4, f"× {config.num_layers}", ha="right", va="center", fontsize=12)

    right.set(xlim=(-3.4, 3.4), ylim=(-0.6, 9.0), title="softmax(Q Kᵀ / √D) V, in every head")
    for x, name in ((-2.1, "Q"), (0.0, "K"), (2.1, "V")):
        box(right, x, 1.5, f"{name} = x W{name.lower()}\n(B, {heads}, T, {head_dim})", BLUE, width=1.9, height=0.7)
        arrow(right, (0, 0.2), (x, 1.13))
    box(right, 0, 0, f"x  (B, T, {config.d_model})", GRAY, height=0.4)
    for x in (-2.1, 0.0):
        box(right, x, 2.8, "norm, then turn\nby position", ORANGE, width=1.9, height=0.7)
        arrow(right, (x, 1.87), (x, 2.43))
        arrow(right, (x, 3.17), (-1.05, 3.83))
    box(right, -1.05, 4.1, "Q Kᵀ / √D   (T, T)", GREEN, width=2.6, height=0.5)
    box(right, -1.05, 5.1, "hide later characters", GRAY, width=2.6, height=0.5)
    box(right, -1.05, 6.1, "softmax: rows sum to 1", GREEN, width=2.6, height=0.5)
    box(right, 0, 7.3, "weighted sum of V", ORANGE, width=2.6, height=0.5)
    box(right, 0, 8.3, f"heads side by side, times Wo  (B, T, {config.d_model})", GRAY, width=4.2, height=0.5)
    for start, end in (
        ((-1.05, 4.37), (-1.05, 4.83)),
        ((-1.05, 5.37), (-1.05, 5.83)),
        ((-1.05, 6.37), (-0.4, 7.03)),
        ((2.1, 1.87), (0.6, 7.03)),
        ((0, 7.57), (0, 8.03)),
    ):
        arrow(right, start, end)
    for axes in (left, right):
        axes.axis("off")
    figure.savefig(path, dpi=130, metadata={"Description": description()})


if __name__ == "__main__":
    draw(Path(__file__).with_name("architecture.png"))
