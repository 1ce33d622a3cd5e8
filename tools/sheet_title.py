"""The head of every sheet: which set it is, and what its manifest says of it."""

from __future__ import annotations

from collections.abc import Sequence

from fdt_pipeline.shards import Manifest
from fdt_pipeline.storage import Folder

from .canvas import GRAY, INK, Canvas, shortened

MARGIN, TITLE = 16, 100  # pixels around the page, and above what is drawn


def draw_title(canvas: Canvas, folder: Folder, manifest: Manifest, note: str) -> None:
    lines = [_contents(manifest), _numbers(manifest, note)]
    width = canvas.width - 2 * MARGIN
    canvas.text(MARGIN, 26, shortened(folder.url, width, 18, True), 18, INK, bold=True)
    for number, line in enumerate(lines):
        canvas.text(MARGIN, 52 + 20 * number, shortened(line, width, 13), 13, GRAY)


def _contents(manifest: Manifest) -> str:
    mixed = f"mixed sizes, {counted(manifest.channels, 'channel')}"
    size = " x ".join(map(str, manifest.shape)) if manifest.shape else mixed
    split = f", {manifest.split}" if manifest.split else ""
    megabytes = sum(shard.num_bytes for shard in manifest.shards) / 1e6
    samples, classes = counted(manifest.num_samples, "sample"), counted(len(manifest.classes), "class")
    return (
        f"{manifest.kind}{split}: {samples} of {classes}, {size}, {manifest.encoding}, "
        f"in {counted(len(manifest.shards), 'shard')}, {megabytes:,.1f} MB"
    )


def counted(number: int, noun: str) -> str:
    """ "1 class", "2,000 classes"."""
    plural = f"{noun}es" if noun.endswith("s") else f"{noun}s"
    return f"{number:,} {noun if number == 1 else plural}"


def _numbers(manifest: Manifest, note: str) -> str:
    parts = [f"mean {_joined(manifest.mean)}, std {_joined(manifest.std)} of 255"]
    if manifest.quarantine:
        parts.append(f"{counted(len(manifest.quarantine), 'bad sample')} left out")
    return "; ".join([*parts, note] if note else parts)


def _joined(values: Sequence[float]) -> str:
    return " / ".join(f"{value:.1f}" for value in values)
