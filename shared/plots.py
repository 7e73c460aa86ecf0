"""Plots as PNG files: no window, no global state, and Chinese, Japanese and Korean letters where a font has them."""

from __future__ import annotations

import io
import logging
import re
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from shared.results import write_atomic

if TYPE_CHECKING:
    from matplotlib.figure import Figure

logger = logging.getLogger(__name__)

# Matplotlib's own font has no such letters. These have, on Linux, macOS and Windows.
CJK_FONTS = ("Noto Sans CJK SC", "Noto Sans CJK JP", "WenQuanYi Micro Hei", "WenQuanYi Zen Hei", "PingFang SC",
             "Hiragino Sans GB", "Arial Unicode MS", "Microsoft YaHei", "SimHei")  # fmt: skip


@contextmanager
def drawing(path: Path, width: float, height: float) -> Iterator[Figure]:
    """Give an empty figure to draw into, and save it when the block ends: whole or not at all.

    Args:
        path: The PNG to write.
        width: Inches, of 130 pixels.
        height: Inches.
    """
    from matplotlib import font_manager, get_cachedir, rc_context
    from matplotlib.figure import Figure

    installed = set(font_manager.get_font_names())
    fonts = ["DejaVu Sans", *(name for name in CJK_FONTS if name in installed)]
    image = io.BytesIO()
    with rc_context({"font.family": fonts}), warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        figure = Figure(figsize=(width, height), layout="constrained")
        yield figure
        figure.savefig(image, format="png", dpi=130)
    missing = [int(match[1]) for w in caught if (match := re.match(r"Glyph (\d+)", str(w.message)))]
    others = [w for w in caught if not str(w.message).startswith("Glyph")]
    for warning in others:
        warnings.warn_explicit(warning.message, warning.category, warning.filename, warning.lineno)
    if missing:
        logger.warning("%s: no font here has %s, drawn as boxes", path, " ".join(map(chr, dict.fromkeys(missing))))
    if any(0x2E80 <= letter < 0x1F000 or letter >= 0x20000 for letter in missing):
        logger.warning("for Chinese letters install Noto Sans CJK, and delete %s/fontlist*.json", get_cachedir())
    write_atomic(path, image.getvalue())


def plot_curves(
    rows: Sequence[Mapping[str, Any]], curves: Mapping[str, str], path: Path, *, ylabel: str, title: str
) -> None:
    """Draw figures of a run over its steps, each curve through the rows that have it.

    Args:
        rows: The lines of ``metrics.jsonl``.
        curves: Figure → its name in the legend.
        path: The PNG to write.
        ylabel: What the figures measure, with its unit.
        title: Above the plot.
    """
    with drawing(path, 7, 4.2) as figure:
        axes = figure.add_subplot()
        for key, label in curves.items():
            measured = [row for row in rows if key in row]
            marker = "o" if len(measured) <= 20 else ""
            steps, values = [row["step"] for row in measured], [row[key] for row in measured]
            axes.plot(steps, values, marker=marker, markersize=4, label=label)
        axes.set(xlabel="step", ylabel=ylabel)
        # A file name that is not UTF-8 holds lone surrogates, which no font can draw.
        axes.set_title(title.encode("utf-8", "backslashreplace").decode(), parse_math=False)
        axes.grid(alpha=0.3)
        axes.legend()
