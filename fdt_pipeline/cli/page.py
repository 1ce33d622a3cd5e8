"""A page of images with texts beside them, drawn by matplotlib: nothing is stretched, cut or covered."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from functools import cache
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from fdt_pipeline.sources.source import U8
from fdt_pipeline.storage.atomic import atomic_file

if TYPE_CHECKING:
    from matplotlib.figure import Figure

GAP = 4  # pixels between two images
_MARGIN, _LINE = 16, 18
_DPI, _POINTS = 100, 8
_FONT = "DejaVu Sans Mono"  # comes with matplotlib; every character has the same width, so a text's width is known
_CHARACTER = 7  # its width in pixels


def page(
    head: Sequence[str], count: int, columns: int, size: tuple[int, int], characters: int
) -> tuple[Figure, list[tuple[Any, Any]]]:
    """A figure with `head` above, and for each of `count` entries a panel for text and one for an image.

    size: (height, width) of an image panel in pixels; characters: what a line of a text panel has room for.
    """
    from matplotlib.figure import Figure  # takes a third of a second, and most verbs draw nothing

    rows = -(-count // columns)
    beside, top = characters * _CHARACTER, _MARGIN + _LINE * len(head) + _MARGIN
    pitch = beside + size[1] + _MARGIN
    width = max(columns * pitch + _MARGIN, 640)
    height = top + rows * (size[0] + GAP) + _MARGIN
    figure = Figure(figsize=(width / _DPI, height / _DPI), dpi=_DPI)
    for number, line in enumerate(head):
        text = shortened(line, (width - 2 * _MARGIN) // _CHARACTER, 1)
        place = (_MARGIN / width, 1 - (_MARGIN + _LINE * number) / height)
        figure.text(*place, text, va="top", weight="bold" if number == 0 else "normal", **_style())
    panels = []
    for number in range(count):
        column, row = divmod(number, rows)
        x, y = _MARGIN + column * pitch, height - top - row * (size[0] + GAP) - size[0]
        boxes = ((x, y, beside, size[0]), (x + beside, y, size[1], size[0]))
        empty = [figure.add_axes(_share(box, width, height), frameon=False, xticks=(), yticks=()) for box in boxes]
        panels.append((empty[0], empty[1]))
    return figure, panels


def _share(box: tuple[int, int, int, int], width: int, height: int) -> tuple[float, float, float, float]:
    """(x, y, width, height) in pixels -> in shares of the page."""
    return box[0] / width, box[1] / height, box[2] / width, box[3] / height


def write(panel: Any, text: str) -> None:
    """Write in the middle of the panel's height, from its left edge on."""
    panel.text(0, 0.5, text, transform=panel.transAxes, va="center", **_style())


def _style() -> dict[str, Any]:
    return {"family": _FONT, "size": _POINTS, "parse_math": False}


def shortened(text: str, characters: int, lines: int) -> str:
    """The text in at most `lines` lines of `characters` each; "…" stands where something is left out.

    What the font cannot show is written as \\uXXXX.
    """
    shown = "".join(
        char if char.isprintable() and ord(char) in _known() else char.encode("unicode_escape").decode()
        for char in " ".join(text.split())
    )
    found = textwrap.wrap(shown, characters)
    if len(found) > lines:
        found[lines - 1 :] = [f"{found[lines - 1][: characters - 1]}…"]
    return "\n".join(found)


@cache
def _known() -> frozenset[int]:
    """The characters of the font."""
    from matplotlib.font_manager import findfont, get_font

    return frozenset(get_font(findfont(_FONT)).get_charmap())


def fitted(image: U8, side: int) -> U8:
    """u8[h w c] -> u8[side side 3], on gray: enlarged by a whole number, which keeps pixels sharp, or shrunk."""
    rgb = Image.fromarray(image[..., 0] if image.shape[2] == 1 else image).convert("RGB")
    scale = side // max(rgb.size) or side / max(rgb.size)
    size = (max(1, round(scale * rgb.width)), max(1, round(scale * rgb.height)))
    rgb = rgb.resize(size, Image.Resampling.NEAREST if scale >= 1 else Image.Resampling.LANCZOS)
    framed = Image.new("RGB", (side, side), (236, 236, 236))
    framed.paste(rgb, ((side - rgb.width) // 2, (side - rgb.height) // 2))
    return np.asarray(framed)


def save_figure(figure: Figure, path: Path, dpi: int = _DPI) -> None:
    """Write the figure as a PNG that is whole or not there."""
    data = BytesIO()
    figure.savefig(data, format="png", dpi=dpi)
    with atomic_file(path) as file:
        file.write(data.getvalue())
