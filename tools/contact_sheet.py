"""A contact sheet: a row of samples for each class of a set, with its name and its number of samples."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from fdt_pipeline.shards import Manifest
from fdt_pipeline.sources.source import U8
from fdt_pipeline.storage import Folder

from .canvas import GRAY, INK, PALE, Canvas, fitted, text_width, wrapped
from .picking import pick_places, read_images
from .sheet_title import MARGIN, TITLE, counted, draw_title

MAX_CLASSES = 100
_GAP, _MAX_NAME = 5, 200


@dataclass(frozen=True)
class Layout:
    """cell: (height, width) of an image; rows: of one of the columns; name: pixels for a class's name."""

    cell: tuple[int, int]
    per_class: int
    columns: int
    rows: int
    name: int

    @property
    def block(self) -> int:
        """Width of a column."""
        return self.name + self.per_class * (self.cell[1] + _GAP)

    @property
    def row(self) -> int:
        return self.cell[0] + _GAP


def draw_contact_sheet(folder: Folder, manifest: Manifest, seed: int) -> tuple[Canvas, str]:
    """The page, and what is on it in words."""
    shown = _shown_classes(len(manifest.classes))
    layout = _layout(manifest, shown)
    places = pick_places(folder, manifest, shown, layout.per_class, seed)
    wanted = [place for some in places.values() for place in some]
    images = {place: fitted(image, *layout.cell) for place, image in read_images(folder, manifest, wanted)}
    hidden = len(manifest.classes) - len(shown)
    note = f"{len(shown)} of {len(manifest.classes):,} classes are shown, {hidden:,} are not" if hidden else ""
    width = max(700, 2 * MARGIN + layout.columns * layout.block + (layout.columns - 1) * 2 * MARGIN)
    canvas = Canvas(width, TITLE + layout.rows * layout.row + MARGIN)
    draw_title(canvas, folder, manifest, note)
    for number, label in enumerate(shown):
        column, row = divmod(number, layout.rows)
        x, y = MARGIN + column * (layout.block + 2 * MARGIN), TITLE + row * layout.row
        _draw_class(canvas, x, y, layout, manifest, label, [images[place] for place in places[label]])
    return (
        canvas,
        f"{len(images)} samples, {counted(len(shown), 'class')}{f' of {len(manifest.classes)}' * (hidden > 0)}",
    )


def _shown_classes(num_classes: int) -> list[int]:
    """All, or some at equal distances."""
    count = min(num_classes, MAX_CLASSES)
    return [at * num_classes // count for at in range(count)]


def _layout(manifest: Manifest, shown: list[int]) -> Layout:
    side, per_class, columns = (96, 8, 1) if len(shown) <= 10 else (64, 8, 1) if len(shown) <= 20 else (64, 4, 0)
    columns = columns or -(-len(shown) // 25)
    names = [text_width(manifest.classes[label], 14, True) for label in shown]
    return Layout(
        cell=_cell(manifest, side),
        per_class=per_class,
        columns=columns,
        rows=-(-len(shown) // columns),
        name=int(min(max([90, *names]), _MAX_NAME)) + 12,
    )


def _cell(manifest: Manifest, side: int) -> tuple[int, int]:
    """Of images of one size no more than they need; mixed sizes are fitted into squares."""
    if manifest.shape is None:
        return side, side
    height, width, _ = fitted(np.zeros(manifest.shape, np.uint8), side, side).shape
    return max(height, 36), max(width, 8)


def _draw_class(
    canvas: Canvas, x: int, y: int, layout: Layout, manifest: Manifest, label: int, images: list[U8]
) -> None:
    count = manifest.samples_per_class[label]
    width = layout.name - 12
    lines = wrapped(manifest.classes[label], width, 14, True, lines=3 if layout.cell[0] >= 80 else 2)
    top = y + layout.cell[0] / 2 - (len(lines) * 17 + 15) / 2
    for number, line in enumerate(lines):
        canvas.text(x, top + 17 * number + 8, line, 14, INK, bold=True)
    canvas.text(x, top + 17 * len(lines) + 8, f"n = {count:,}", 12, GRAY)
    if not images:
        canvas.text(x + layout.name, y + layout.cell[0] / 2, "no samples", 13, GRAY)
    for number, image in enumerate(images):
        _draw_cell(canvas, x + layout.name + number * (layout.cell[1] + _GAP), y, layout.cell, image)


def _draw_cell(canvas: Canvas, x: int, y: int, cell: tuple[int, int], picture: U8) -> None:
    """In the middle, on pale gray that is seen around it: a white image has an end too."""
    pale = np.full((cell[0] + 2, cell[1] + 2, 3), int(PALE[1:3], 16), np.uint8)
    top, left = 1 + (cell[0] - picture.shape[0]) // 2, 1 + (cell[1] - picture.shape[1]) // 2
    pale[top : top + picture.shape[0], left : left + picture.shape[1]] = picture
    canvas.image(x - 1, y - 1, pale)
