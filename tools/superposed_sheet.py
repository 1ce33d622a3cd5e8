"""A sheet of superposed outputs, as training sees them: each image with its K and its soft target."""

from __future__ import annotations

import dataclasses

import numpy as np

from fdt_pipeline.definition.superposition import FDT, Plan, Pool, draw_plan, superpose_images, superpose_targets
from fdt_pipeline.shards import Manifest
from fdt_pipeline.sources.source import U8
from fdt_pipeline.storage import Folder

from .canvas import BLUE, GRAY, INK, PALE, Canvas, fitted, shortened
from .picking import Place, read_images, read_labels, spread_shards
from .sheet_title import MARGIN, TITLE, counted, draw_title

NUM_OUTPUTS, _COLUMNS = 12, 3
_SIDE, _TEXT, _LINE, _LARGEST = 160, 210, 23, 5
_MAX_SHARDS = 8  # of which images are drawn; each holds the classes in their proportions


def draw_superposed(folder: Folder, manifest: Manifest, seed: int) -> tuple[Canvas, str]:
    """The page, and what is on it in words. ValueError if images differ in size, or there is one class."""
    if manifest.shape is None:
        raise ValueError(f"{folder.url}: images differ in size: only one size can be superposed; shard with --size N")
    FDT().check_classes(len(manifest.classes))
    places, labels = _candidates(folder, manifest, seed)
    pool = Pool(labels, len(manifest.classes))
    height, width, _ = fitted(np.zeros(manifest.shape, np.uint8), _SIDE, _SIDE).shape
    tile = max(height, 7 * _LINE) + MARGIN
    canvas = Canvas(
        MARGIN + _COLUMNS * (width + 12 + _TEXT + 2 * MARGIN) - MARGIN, TITLE + NUM_OUTPUTS // _COLUMNS * tile
    )
    draw_title(canvas, folder, manifest, "superpositions by FDT(), each with its soft target")
    for index in range(NUM_OUTPUTS):
        row, column = divmod(index, _COLUMNS)
        x, y = MARGIN + column * (width + 12 + _TEXT + 2 * MARGIN), TITLE + row * tile
        plan = draw_plan(seed, 0, index, pool, FDT())
        canvas.image(x, y, fitted(_output(folder, manifest, plan, places), _SIDE, _SIDE))
        _draw_target(canvas, x + width + 12, y, plan, manifest)
    return canvas, f"{NUM_OUTPUTS} superpositions, {counted(len(manifest.classes), 'class')}"


def _candidates(folder: Folder, manifest: Manifest, seed: int) -> tuple[list[Place], np.ndarray]:
    """The samples of some shards, and their labels i64[n]."""
    numbers = spread_shards(manifest, _MAX_SHARDS, seed)
    labels = [read_labels(folder, manifest.shards[number]) for number in numbers]
    places = [Place(number, at) for number, some in zip(numbers, labels, strict=True) for at in range(len(some))]
    return places, np.concatenate(labels)


def _output(folder: Folder, manifest: Manifest, plan: Plan, places: list[Place]) -> U8:
    """u8[h w c]: D, rounded. One image of the plan is in memory at a time: there may be a thousand, and large."""
    chosen = [places[position] for position in plan.images]
    total = sum(
        superpose_images(_term(plan, chosen.index(place)), image[None])
        for place, image in read_images(folder, manifest, chosen)
    )
    return np.clip(np.rint(total), 0, 255).astype(np.uint8)


def _term(plan: Plan, i: int) -> Plan:
    """F_i I_i alone."""
    parts = {field.name: getattr(plan, field.name)[i : i + 1] for field in dataclasses.fields(plan)}
    return Plan(**{**parts, "images": np.zeros(1, np.int64)})


def _draw_target(canvas: Canvas, x: int, y: int, plan: Plan, manifest: Manifest) -> None:
    """K, and the largest weights as bars."""
    target = superpose_targets(plan, len(manifest.classes))
    order = [int(label) for label in np.argsort(-target, kind="stable")[: len(plan.images)]]
    canvas.text(x, y + _LINE / 2, f"K = {len(order)}", 13, INK, bold=True)
    for number, label in enumerate(order[:_LARGEST], 1):
        middle = y + _LINE * (number + 0.5)
        canvas.bar(x, middle + 8, _TEXT, 3, PALE)
        canvas.bar(x, middle + 8, _TEXT * float(target[label]), 3, BLUE)
        canvas.text(x, middle - 1, shortened(manifest.classes[label], _TEXT - 62, 12), 12, INK)
        canvas.text(x + _TEXT, middle - 1, f"{100 * target[label]:.1f} %", 12, INK, align="right")
    if rest := order[_LARGEST:]:
        left = 100 * float(sum(target[label] for label in rest))
        canvas.text(x, y + _LINE * 6.5, f"and {left:.1f} % in {len(rest)} more", 12, GRAY)
