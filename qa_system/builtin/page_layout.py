"""Set text as pages: fonts, line breaks, headings, paragraphs, tables and a chart, drawn with Matplotlib.

``qa_system.builtin.make_documents`` renders the embedded documents with it.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from shared.errors import InputError
from shared.plots import CJK_FONTS

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from matplotlib.font_manager import FontProperties

WIDTH, HEIGHT = 595.0, 842.0  # points: A4
TOP, BOTTOM, LEFT = 770.0, 64.0, 68.0
GAP = 22.0  # between columns, points
INK, GREY = "#1c1c1c", "#777777"
Block = tuple[str, Any]  # its kind, and its text or the rows of a table


class Style(NamedTuple):
    """How a kind of block is set: font, size and color (empty: the document's), space above and below, inset."""

    font: str = "regular"
    size: float = 1.0  # times the document's
    color: str = INK
    above: float = 0.0  # lines
    below: float = 0.55
    inset: float = 0.0  # points
    keep: float = 0.0  # lines of room below which it goes to the next column, to stay with what follows


STYLES = {
    "heading": Style("bold", 1.4, "", above=0.55, below=0.2, keep=4.5),
    "subheading": Style("bold", 1.22, "", above=0.55, below=0.2, keep=4.5),
    "caption": Style("bold", 0.92, "#444444", below=0.3),
    "item": Style(inset=16),
    "small": Style(size=0.86, color="#7a7a7a", inset=16),
    "formula": Style("formula", 1.0, above=0.3, below=0.7, inset=28),
    "paragraph": Style(),
}


def chinese_font() -> str:
    """Return the first installed font with Chinese letters; empty if there is none."""
    from matplotlib import font_manager

    installed = set(font_manager.get_font_names())
    return next((name for name in CJK_FONTS if name in installed), "")


@cache
def font(name: str, size: float) -> FontProperties:
    """Return a font: ``zh`` and ``zh-bold`` are Chinese, any other name a file that comes with Matplotlib."""
    from matplotlib import get_data_path
    from matplotlib.font_manager import FontProperties

    if name.startswith("zh"):
        return FontProperties(family=chinese_font(), weight="bold" if name == "zh-bold" else "normal", size=size)
    return FontProperties(fname=Path(get_data_path()) / "fonts" / "ttf" / f"{name}.ttf", size=size)


@cache
def width_of(text: str, name: str, size: float) -> float:
    """Measure a text, in points."""
    from matplotlib.textpath import TextToPath

    return float(TextToPath().get_text_width_height_descent(text, font(name, size), False)[0])


def wrap(text: str, width: float, name: str, size: float, indent: float = 0) -> list[str]:
    """Break a text into lines of at most this width, in points.

    Lines end at blanks, but not between a number and its unit; between Chinese letters, but not before a closing mark;
    and at soft hyphens.
    """
    text = re.sub(r"(?<=\d) (?=%|°C|million|(mm|m|kn|kW|kWh|MW|MWh|m/s)\b)", "\u00a0", text)
    pattern = r"[（“《]*(?:[\u4e00-\u9fff]|[^ \u3000-\u9fff\uff00-\uffef（“《]+)[，。；：、）”》！？]* ?"
    lines, line, room = [], "", width - indent
    for word in re.findall(pattern, text):
        whole = word.replace("\u00ad", "")
        if not line or width_of((line + whole).rstrip(), name, size) <= room:
            line += whole
            continue
        parts = word.split("\u00ad")
        for count in range(len(parts) - 1, 0, -1):
            begun = line + "".join(parts[:count]) + "-"
            if width_of(begun, name, size) <= room:
                line, whole = begun, "".join(parts[count:])
                break
        lines.append(line)
        line, room = whole, width
    return [line.rstrip().replace("\u00a0", " ") for line in [*lines, line]]


@dataclass
class Layout:
    """A document being set: lines fill columns from the top, columns fill pages.

    Attributes:
        meta: The text's first lines.
        pages: What is set so far.
        column: The present one, from 0.
        top: Where columns of this page begin, in points from the foot.
        y: Where the next line begins.
    """

    meta: dict[str, str]
    pages: list[Figure] = field(default_factory=list)
    column: int = 0
    top: float = TOP
    y: float = TOP

    def __post_init__(self) -> None:
        """Choose fonts; letters and lines are measured in points."""
        self.columns, leading = 1, 1.46
        self.fonts = {"regular": "DejaVuSans", "bold": "DejaVuSans-Bold"}
        self.size, self.color = 9.6, self.meta.get("color", "#222222")
        if self.meta.get("language") == "zh":
            self.fonts = {"regular": "zh", "bold": "zh-bold"}
            self.size, leading = 10.6, 1.75
        elif self.meta["layout"] == "paper":
            self.fonts = {
                "regular": "STIXGeneral",
                "bold": "STIXGeneralBol",
                "italic": "STIXGeneralItalic",
                "formula": "DejaVuSerif-Italic",
            }  # which has a root
            self.columns, self.size, leading = 2, 10.2, 1.28
        self.leading = self.size * leading
        self.width = (WIDTH - 2 * LEFT - (self.columns - 1) * GAP) / self.columns

    @property
    def left(self) -> float:
        """Of the present column, in points."""
        return LEFT + self.column * (self.width + GAP)

    def write(
        self, x: float, y: float, text: str, font_name: str, size: float, color: str = INK, align: str = "left"
    ) -> None:
        """Put a line of text on the page, its base line at ``y`` points from the foot."""
        page = self.pages[-1]
        page.text(x / WIDTH, y / HEIGHT, text, fontproperties=font(self.fonts[font_name], size), color=color,
                  ha=align, va="baseline", parse_math=False, zorder=3 + len(page.texts))  # fmt: skip

    def box(self, x: float, y: float, width: float, height: float, color: str, edge: str = "none") -> None:
        """Draw a rectangle with its lower left corner at (x, y) points."""
        from matplotlib.patches import Rectangle

        place = (x / WIDTH, y / HEIGHT), width / WIDTH, height / HEIGHT
        self.pages[-1].add_artist(Rectangle(*place, facecolor=color, edgecolor=edge, linewidth=0.6))

    def new_page(self) -> None:
        """Begin a page; all but the first have a running head."""
        from matplotlib.figure import Figure

        self.pages.append(Figure(figsize=(WIDTH / 72, HEIGHT / 72)))
        self.column, self.y, self.top = 0, TOP, TOP
        if len(self.pages) > 1:
            self.write(LEFT, 796, self.meta["title"], "regular", 8, GREY)
            self.box(LEFT, 789, WIDTH - 2 * LEFT, 0.6, self.color)

    def feet(self) -> None:
        """Number the pages, in Roman numerals before the first."""
        pages, front = self.pages, int(self.meta.get("front", 0))
        for index, page in enumerate(pages):
            self.pages = [page]
            self.write(LEFT, 40, self.meta.get("footer", "Skerra Sound Ferries"), "regular", 8, GREY)
            number = str(index + 1 - front) if index >= front else "i" * (index + 1)
            self.write(WIDTH - LEFT, 40, number, "regular", 8.5, GREY, "right")
        self.pages = pages

    def next_column(self) -> None:
        """Go on in the next column, or on a new page."""
        if self.column + 1 < self.columns:
            self.column, self.y = self.column + 1, self.top
        else:
            self.new_page()

    def reserve(self, height: float) -> None:
        """Go on in the next column if there is not so much room, in points."""
        if self.y - height < BOTTOM:
            self.next_column()

    def lines(self, text: str, style: Style, indent: float = 0) -> None:
        """Set a text in lines; in columns they are justified."""
        name, size, leading = self.fonts[style.font], self.size * style.size, self.leading * style.size
        lines = wrap(text, self.width - style.inset, name, size, indent)
        for number, line in enumerate(lines):
            alone = number in (0, len(lines) - 2) and len(lines) > 1  # no single line at the end or top of a column
            self.reserve(leading * (2 if alone else 1))
            self.y -= leading
            first = indent if number == 0 else 0.0
            x, room = self.left + style.inset + first, self.width - style.inset - first
            if self.columns == 1 or number == len(lines) - 1:
                self.write(x, self.y, line, style.font, size, style.color or self.color)
                continue
            words = line.split()
            widths = [width_of(word, name, size) for word in words]
            space = (room - sum(widths)) / max(len(words) - 1, 1)
            for word, width in zip(words, widths, strict=True):
                self.write(x, self.y, word, style.font, size, style.color or self.color)
                x += width + space

    def block(self, kind: str, text: str, following: Block) -> None:
        """Set a block other than a table or chart; a caption stays with its table."""
        style, unit = STYLES[kind], self.leading
        if self.columns > 1 and kind.endswith("heading"):
            style = style._replace(size=style.size * 0.77)
        self.reserve(unit * 2 + self.table_height(following[1]) if following[0] == "table" else unit * style.keep)
        self.y -= unit * style.above * (self.y < self.top)
        if kind == "item" and not re.match(r"\d+\. ", text):
            self.write(self.left + 4, self.y - unit, "•", "regular", self.size, self.color)
        self.lines(text, style, 2 * self.size if kind == "paragraph" and self.fonts["regular"] == "zh" else 0)
        self.y -= unit * (0.15 if kind == following[0] == "item" else style.below)

    def table_height(self, rows: list[list[str]]) -> float:
        """Tell the height of a table with the space around it, in points."""
        return self.size * 1.8 * len(rows) + 4 + self.leading * 0.7

    def table(self, rows: list[list[str]]) -> None:
        """Draw a ruled table, its first row as a head; it is never divided."""
        size, padding = (self.size - 0.6, 6.0) if self.columns == 1 else (self.size - 1.2, 3.0)
        height = self.size * 1.8
        fonts = ["bold"] + ["regular"] * (len(rows) - 1)
        needed = [
            max(width_of(cell, self.fonts[name], size) for cell, name in zip(column, fonts, strict=True)) + 2 * padding
            for column in zip(*rows, strict=True)
        ]
        spare = self.width - sum(needed)
        if spare < 0:
            raise InputError(f"A table of {self.meta['title']!r} is {-spare:.0f} points too wide.")
        self.reserve(self.table_height(rows))
        self.y -= 4
        for number, (row, name) in enumerate(zip(rows, fonts, strict=True)):
            x = self.left
            self.y -= height
            for cell, width in zip(row, needed, strict=True):
                width += spare / len(needed)
                shade = self.color if number == 0 else "#f4f6f8" if number % 2 == 0 else "#ffffff"
                self.box(x, self.y, width, height, shade, "#9aa4ad")
                self.write(x + padding, self.y + height * 0.33, cell, name, size, "#ffffff" if number == 0 else INK)
                x += width
        self.y -= self.leading * 0.7

    def banner(self) -> None:
        """Draw the band with the title on top of a first page."""
        self.box(0, HEIGHT - 120, WIDTH, 120, self.color)
        size = min(24.0, 24.0 * (WIDTH - 2 * LEFT) / width_of(self.meta["title"], self.fonts["bold"], 24))
        self.write(LEFT, HEIGHT - 68, self.meta["title"], "bold", size, "#ffffff")
        self.write(LEFT, HEIGHT - 94, self.meta["subtitle"], "regular", 11, "#ffffff")
        self.top = self.y = HEIGHT - 146

    def abstract(self, text: str) -> None:
        """Set title, authors and abstract of a paper over both columns."""
        self.write(WIDTH / 2, 738, self.meta["title"], "bold", 17, align="center")
        self.write(WIDTH / 2, 717, self.meta["subtitle"], "regular", 11.5, align="center")
        self.y = 700
        for line in wrap(text, WIDTH - 2 * LEFT - 60, self.fonts["italic"], self.size):
            self.y -= self.leading
            self.write(LEFT + 30, self.y, line, "italic", self.size)
        self.top = self.y = self.y - 14

    def chart(self) -> None:
        """Draw the figure of the paper: capacity over months."""
        self.reserve(180)
        self.y -= 142
        place = (self.left + 26) / WIDTH, (self.y + 24) / HEIGHT, (self.width - 28) / WIDTH, 112 / HEIGHT
        axes = self.pages[-1].add_axes(place, zorder=3 + len(self.pages[-1].texts))
        months = np.arange(25)
        measured = np.interp(months, [0, 6, 12, 18, 24], [100, 97.9, 96.7, 95.6, 94.6])
        measured[months % 6 != 0] += np.random.default_rng(0).normal(0, 0.12, 20)
        fitted = 100 * (1 - 0.0071 * np.sqrt(months) - 0.0000153 * months * 1278 / 24)
        axes.axvspan(15, 15.6, color="#cccccc", linewidth=0)
        axes.plot(months, fitted, color="#14506e", linewidth=1.2)
        axes.plot(months, measured, "o", markersize=2.6, color="#c0562b")
        axes.set(xlim=(-0.5, 24.5), ylim=(93.5, 100.5), xticks=range(0, 25, 6))
        label = font(self.fonts["regular"], 8)
        axes.set_xlabel("month", fontproperties=label, labelpad=1)
        axes.set_ylabel("capacity, %", fontproperties=label, labelpad=2)
        axes.tick_params(length=2, pad=2, labelsize=7.5, labelfontfamily=label.get_name())
        axes.spines[["top", "right"]].set_visible(False)
