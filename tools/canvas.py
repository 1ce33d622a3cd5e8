"""A white page of pixels with images and text at exact places, so that nothing is blurred, cut or covered.

Coordinates are (x, y) pixels from the top left corner.
"""

from __future__ import annotations

from bisect import bisect_right
from functools import cache
from io import BytesIO
from typing import BinaryIO

import numpy as np
from PIL import Image

from fdt_pipeline.sources.source import U8

try:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.font_manager import FontProperties, findfont, get_font
    from matplotlib.patches import Rectangle
    from matplotlib.transforms import IdentityTransform
except ImportError as error:
    raise ImportError(f"pictures are drawn by matplotlib: pip install matplotlib ({error})") from None

_DPI = 100
_POINT = 72 / _DPI
_FONT = "DejaVu Sans"  # comes with matplotlib
INK, GRAY, PALE, BLUE = "#1a1a1a", "#6b6b6b", "#ececec", "#3b6ea8"


def fitted(image: U8, height: int, width: int) -> U8:
    """u8[h w c] -> u8[<= height, <= width, 3], with its aspect: enlarged by whole numbers alone, so that it stays
    sharp, or shrunk by an averaging filter."""
    rgb = np.repeat(image, 3, axis=2) if image.shape[2] == 1 else image
    scale = min(height // rgb.shape[0], width // rgb.shape[1])
    if scale >= 1:
        return rgb.repeat(scale, axis=0).repeat(scale, axis=1)
    ratio = min(height / rgb.shape[0], width / rgb.shape[1])
    size = (max(1, round(rgb.shape[1] * ratio)), max(1, round(rgb.shape[0] * ratio)))
    return np.asarray(Image.fromarray(np.ascontiguousarray(rgb)).resize(size, Image.Resampling.LANCZOS))


class Canvas:
    """Sizes of text are the font's, in pixels."""

    def __init__(self, width: int, height: int) -> None:
        self.width, self.height = width, height
        self._pixels = np.full((height, width, 3), 255, np.uint8)
        self._figure = Figure(figsize=(width / _DPI, height / _DPI), dpi=_DPI)
        FigureCanvasAgg(self._figure)

    def image(self, x: int, y: int, image: U8) -> None:
        height, width, _ = image.shape
        self._pixels[y : y + height, x : x + width] = image

    def bar(self, x: float, y: float, width: float, height: float, color: str) -> None:
        bottom = self.height - y - height
        self._figure.add_artist(
            Rectangle((x, bottom), width, height, color=color, linewidth=0, transform=IdentityTransform())
        )

    def text(
        self, x: float, y: float, text: str, size: int, color: str = INK, bold: bool = False, align: str = "left"
    ) -> None:
        """y: of the middle of the line; x: of its left or right end."""
        self._figure.text(
            x / self.width,
            1 - y / self.height,
            printable(text),
            fontproperties=_font(size, bold),
            color=color,
            ha=align,
            va="center_baseline",
            parse_math=False,
        )

    def write(self, file: BinaryIO) -> None:
        """As a PNG."""
        self._figure.figimage(self._pixels, 0, 0, origin="upper")
        data = BytesIO()
        self._figure.savefig(data, format="png", dpi=_DPI)
        file.write(data.getvalue())


_MEASURE = FigureCanvasAgg(Figure(dpi=_DPI)).get_renderer()


def _font(size: int, bold: bool) -> FontProperties:
    return FontProperties(family=_FONT, size=size * _POINT, weight="bold" if bold else "normal")


def text_width(text: str, size: int, bold: bool = False) -> float:
    """In pixels."""
    width, _, _ = _MEASURE.get_text_width_height_descent(printable(text), _font(size, bold), ismath=False)
    return width


def printable(text: str) -> str:
    """What the font cannot show is written as \\uXXXX, line ends and tabs as blanks."""
    return "".join(
        char if char.isprintable() and ord(char) in _known_characters() else char.encode("unicode_escape").decode()
        for char in " ".join(text.split())
    )


@cache
def _known_characters() -> frozenset[int]:
    plain, bold = (frozenset(get_font(findfont(_font(10, weight))).get_charmap()) for weight in (False, True))
    return plain & bold


def shortened(text: str, width: float, size: int, bold: bool = False) -> str:
    """The text, or its two ends, so that it is not wider than `width` pixels."""
    text = printable(text)
    if text_width(text, size, bold) <= width:
        return text

    def ends(length: int) -> str:
        return f"{text[: length - length // 2]}…{text[len(text) - length // 2 :]}"

    # Longer ends are wider. To measure a text takes 1 ms, and a name of 100 characters would be measured as often.
    lengths = range(1, min(len(text) - 1, int(width)) + 1)
    return ends(bisect_right(lengths, width, key=lambda length: text_width(ends(length), size, bold)))


def wrapped(text: str, width: float, size: int, bold: bool, lines: int) -> list[str]:
    """Up to that many lines, broken at blanks, and within a word only if it is wider than a line; the rest is
    shortened."""
    words, found = printable(text).split(), list[str]()
    while words and len(found) < lines - 1:
        count = max(
            (n for n in range(1, len(words) + 1) if text_width(" ".join(words[:n]), size, bold) <= width), default=0
        )
        if not count:
            break
        found.append(" ".join(words[:count]))
        words = words[count:]
    return [*found, shortened(" ".join(words), width, size, bold)] if words else found
