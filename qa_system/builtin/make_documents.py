"""Render the embedded documents: ``texts/*.md`` → ``documents/*.pdf``.

    python -m qa_system.builtin.make_documents make --folder documents

Each text begins with ``key: value`` lines; ``layout`` is ``banner``, ``paper`` (two columns) or ``scan``.
Marks of its lines are in ``MARKS``; soft hyphens say where words may be divided.
"""

from __future__ import annotations

import io
import logging
import textwrap
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from qa_system.builtin.page_layout import Block, Layout, chinese_font, font
from shared.config import run_commands
from shared.results import write_atomic

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from PIL.Image import Image

MODULE = "qa_system.builtin.make_documents"
TEXTS = Path(__file__).parent / "texts"
MARKS = {"# ": "heading", "## ": "subheading", "- ": "item", "^ ": "caption", "> ": "small", "= ": "formula",
         "!chart": "chart", "---": "break"}  # fmt: skip
logger = logging.getLogger(MODULE)


def read_text(path: Path) -> tuple[dict[str, str], list[Block]]:
    """Read a text.

    Returns:
        Its ``key: value`` lines, and its blocks: kind and text, or the rows of a table.
    """
    head, _, body = path.read_text(encoding="utf-8").partition("\n\n")
    meta = dict(line.split(": ", 1) for line in head.splitlines())
    blocks: list[Block] = []
    for line in filter(None, body.splitlines()):
        if not line.startswith("|"):
            mark = next((mark for mark in MARKS if line.startswith(mark)), "")
            blocks.append((MARKS.get(mark, "paragraph"), line.removeprefix(mark)))
        elif blocks[-1][0] != "table":
            blocks.append(("table", [_cells(line)]))
        elif set(line) - set("|-"):
            blocks[-1][1].append(_cells(line))
    return meta, blocks


def _cells(line: str) -> list[str]:
    return [cell.strip() for cell in line.strip("|").split("|")]


def set_pages(meta: dict[str, str], blocks: list[Block]) -> list[Figure]:
    """Set a text as pages."""
    layout = Layout(meta)
    layout.new_page()
    if meta["layout"] == "banner":
        layout.banner()
    else:
        layout.abstract(blocks[0][1])
        blocks = blocks[1:]
    for (kind, block), following in zip(blocks, [*blocks[1:], ("", "")], strict=True):
        if kind == "break":
            layout.next_column()
        elif kind == "table":
            layout.table(block)
        elif kind == "chart":
            layout.chart()
        else:
            layout.block(kind, block, following)
    layout.feet()
    return layout.pages


def to_pdf(meta: dict[str, str], pages: list[Figure]) -> bytes:
    """Write pages as a PDF whose text can be read, and whose bytes tell nothing of when it was made."""
    from matplotlib import rc_context
    from matplotlib.backends.backend_pdf import PdfPages
    from pypdf import PdfWriter

    date = datetime.strptime(meta["date"], "%Y-%m-%d").replace(tzinfo=timezone.utc)
    info = {"Title": meta["title"], "Author": meta["author"], "CreationDate": date, "ModDate": date}
    file = io.BytesIO()
    # Letters as TrueType; Chinese fonts are often of another kind, which only fonts drawn as shapes (3) hold validly.
    with rc_context({"pdf.fonttype": 3 if meta.get("language") == "zh" else 42}), PdfPages(file, metadata=info) as pdf:
        for page in pages:
            pdf.savefig(page)
    if "front" not in meta:
        return file.getvalue()
    front = int(meta["front"])
    writer = PdfWriter(clone_from=file)
    writer.set_page_label(0, front - 1, style="/r")
    writer.set_page_label(front, len(pages) - 1, style="/D")
    labeled = io.BytesIO()
    writer.write(labeled)
    return labeled.getvalue()


# --- The scan ---------------------------------------------------------------------------------------------------------


def scan(meta: dict[str, str], body: str) -> bytes:
    """Write a letter with a typewriter and scan it: pages that are images, slightly turned, grey and noisy.

    Args:
        meta: The text's first lines.
        body: The letter; ``---`` alone on a line begins a page, ``@sign`` a signature.
    """
    date = datetime.strptime(meta["date"], "%Y-%m-%d").timetuple()
    random = np.random.default_rng(1978)
    sheets = [_sheet(page.strip(), number, random) for number, page in enumerate(body.split("\n---\n"))]
    file = io.BytesIO()
    sheets[0].save(file, "PDF", save_all=True, append_images=sheets[1:], resolution=150, quality=45,
                   title=meta["title"], author=meta["author"], creationDate=date, modDate=date)  # fmt: skip
    return file.getvalue()


def _sheet(text: str, number: int, random: np.random.Generator) -> Image:
    """Type one page of a letter and scan it at 150 dots an inch, grey (1754, 1240)."""
    from PIL import Image, ImageDraw, ImageFilter, ImageFont

    def face(name: str, size: int) -> ImageFont.FreeTypeFont:
        return ImageFont.truetype(font(name, 1).get_file(), size)

    sheet = Image.new("L", (1240, 1754), 240)
    pen = ImageDraw.Draw(sheet)
    y = 150
    blocks = text.split("\n\n")
    if number == 0:
        name, address = blocks.pop(0).splitlines()
        pen.text((620, y), name, 25, face("STIXGeneralBol", 46), "ma")
        pen.text((620, y + 62), address, 25, face("STIXGeneral", 27), "ma")
        pen.line((150, y + 110, 1090, y + 110), 40, 3)
        y += 150
    for line in "\n\n".join(blocks).splitlines():
        if line.startswith("@sign "):
            pen.text((150, y + 20), line.removeprefix("@sign "), 60, face("STIXGeneralItalic", 62))
            y += 120
            continue
        for typed in textwrap.wrap(line, 66):
            pen.text((150 + random.integers(-1, 2), y), typed, int(random.integers(30, 55)), face("cmtt10", 27))
            y += 40
        y += 0 if line else 26
    sheet = sheet.rotate([0.6, -0.45][number % 2], Image.Resampling.BICUBIC, fillcolor=236)
    pixels = np.asarray(sheet.filter(ImageFilter.GaussianBlur(0.6)), dtype=np.float32)
    light = np.linspace(1.0, 0.94, pixels.shape[1])[None] * np.linspace(0.97, 1.0, pixels.shape[0])[:, None]
    pixels = pixels * light + random.normal(0, 4, pixels.shape)
    return Image.fromarray(pixels.clip(0, 255).astype(np.uint8))


# --- The command ------------------------------------------------------------------------------------------------------


def render(path: Path) -> bytes:
    """Render one text as a PDF."""
    meta, blocks = read_text(path)
    if meta["layout"] == "scan":
        return scan(meta, path.read_text(encoding="utf-8").partition("\n\n")[2])
    return to_pdf(meta, set_pages(meta, blocks))


@dataclass
class MakeConfig:
    """Render the embedded documents from their texts."""

    folder: str = "outputs/qa_system/documents"
    """Where the PDFs go."""


def make(config: MakeConfig) -> None:
    """Render all documents; see :class:`MakeConfig`."""
    for path in sorted(TEXTS.glob("*.md")):
        target = Path(config.folder) / f"{path.stem}.pdf"
        if path.stem.endswith("-zh") and not chinese_font():
            logger.warning("%s is left as it is: no font here has Chinese letters; install Noto Sans CJK", target)
            continue
        pdf = render(path)
        write_atomic(target, pdf)
        logger.info("%s, %d kB", target, len(pdf) // 1000)


if __name__ == "__main__":
    run_commands({"make": make}, module=MODULE, extra="qa")
