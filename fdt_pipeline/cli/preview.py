"""The verb `preview`: a picture to judge a set of shards by, of single samples, so that a set may exceed the memory."""

from __future__ import annotations

import argparse
import textwrap
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from functools import cache
from io import BytesIO
from itertools import chain, takewhile, zip_longest
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from fdt_pipeline.cli import location, verb_parser
from fdt_pipeline.cli.inspecting import describe
from fdt_pipeline.definition.superposition import FDT, Pool, draw_plan, superpose_targets
from fdt_pipeline.shards import Manifest, ShardError, check_shards, read_manifest, shard_sets
from fdt_pipeline.shards.conversion import OneShard, ShardSource
from fdt_pipeline.sources.source import I64, U8
from fdt_pipeline.storage import Folder
from fdt_pipeline.storage.atomic import atomic_file

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_DESCRIPTION = """Draw samples of every class of the set in OUT, or of the first of its subfolders (train), as a PNG.

With --superpose, 12 superposed outputs with their soft targets. Single samples are read, so a set may have any size."""
_EXAMPLE = """example:
  fdt-pipeline preview runs/shards --out sheet.png
  fdt-pipeline preview runs/shards/test --out superposed.png --superpose --seed 1"""
MAX_CLASSES, NUM_OUTPUTS = 100, 12
_MAX_SHARDS = 8  # from which superposed images are drawn; each holds the classes in their proportions
_GAP, _MARGIN = 4, 16  # pixels between two images, and around the page
_DPI = 100
_FONT = "DejaVu Sans Mono"  # comes with matplotlib; every character has the same width, so a text's width is known
CHARACTER, _LINE = 7, 18  # its width and height in pixels, at 8 points
Entry = tuple[str, U8]  # a text, and the image that stands beside it
Place = tuple[int, int]  # the number of a shard, and the position of a sample in it


def add_parsers(verbs: Any) -> None:
    parser = verb_parser(verbs, "preview", "draw samples of a set of shards", _DESCRIPTION, _EXAMPLE)
    parser.add_argument("shards", metavar="OUT", type=location, help="folder of the shards, or of train/ and test/")
    parser.add_argument("--out", required=True, type=Path, metavar="PNG", help="file to draw to")
    parser.add_argument("--superpose", action="store_true", help="draw superposed outputs with their soft targets")
    parser.add_argument("--seed", type=int, default=0, metavar="S", help="other samples (default: %(default)s)")
    parser.set_defaults(run=_preview)


def _preview(arguments: argparse.Namespace) -> int:
    if arguments.out.suffix.lower() != ".png":
        raise ValueError(f"--out {arguments.out}: expected a name that ends in .png")
    if not arguments.out.parent.is_dir():
        raise ValueError(f"--out {arguments.out}: there is no folder {arguments.out.parent}; make it first")
    if arguments.seed < 0:
        raise ValueError(f"--seed must be 0 or more, got {arguments.seed}")
    folder = shard_sets(arguments.shards)[0]
    manifest = read_manifest(folder)
    check_shards(folder, manifest)
    samples = Samples(folder, manifest)
    if arguments.superpose:
        entries, columns, characters = superposed_entries(samples, arguments.seed, folder.url), 3, 36
        contents = f"{NUM_OUTPUTS} superpositions by FDT(), {len(manifest.classes)} classes"
    else:
        entries, num_samples = class_entries(samples, arguments.seed)
        columns, characters = 1 if len(entries) <= 20 else -(-len(entries) // 25), 24
        contents = f"{num_samples} samples, {len(entries)} of {len(manifest.classes)} classes"
    head = [*takewhile(bool, describe(folder.url, manifest)), f"  shown     {contents}"]
    data = BytesIO()
    page(head, entries, columns, characters).savefig(data, format="png")
    with atomic_file(arguments.out) as file:  # whole or not there
        file.write(data.getvalue())
    print(f"{arguments.out}: {contents} of {folder.url}")
    return 0


def class_entries(samples: Samples, seed: int) -> tuple[list[Entry], int]:
    """A row of samples of each class, of MAX_CLASSES at equal distances where there are more; and their number."""
    manifest, num_classes = samples.manifest, len(samples.manifest.classes)
    num_shown = min(num_classes, MAX_CLASSES)
    shown = [number * num_classes // num_shown for number in range(num_shown)]
    side, per_class = 96 if num_shown <= 10 else 64, 8 if num_shown <= 20 else 4
    picked = samples.pick(shown, per_class, seed)
    entries = []
    for label in shown:
        row = np.full((side, per_class * (side + _GAP), 3), 255, np.uint8)
        for number, place in enumerate(picked[label]):
            row[:, number * (side + _GAP) :][:, :side] = fitted(samples.image(place), side)
        count = f"n = {manifest.samples_per_class[label]:,}" if picked[label] else "no samples"
        entries.append((f"{shortened(manifest.classes[label], 22, 3)}\n{count}", row))
    return entries, sum(map(len, picked.values()))


def superposed_entries(samples: Samples, seed: int, url: str) -> list[Entry]:
    """Superposed outputs, each with its K and the largest weights of its target."""
    classes, entries = samples.manifest.classes, []
    for image, target in superposed(samples, NUM_OUTPUTS, seed, url):
        order = [int(label) for label in np.argsort(-target, kind="stable") if target[label]]
        lines = [f"{100 * target[label]:5.1f} %  {shortened(classes[label], 24, 1)}" for label in order[:6]]
        if rest := order[6:]:
            lines.append(f"{100 * target[rest].sum():5.1f} %  in {len(rest)} more")
        entries.append(("\n".join([f"K = {len(order)}", *lines]), fitted(image, 160)))
    return entries


def superposed(samples: Samples, num_outputs: int, seed: int, url: str) -> list[tuple[U8, np.ndarray]]:
    """Outputs (u8[h w c], target f32[num_classes]); ValueError if images differ in size, or there is one class."""
    manifest = samples.manifest
    if manifest.shape is None:
        raise ValueError(f"{url}: images differ in size: only one size can be superposed; shard with --size N")
    FDT().check_classes(len(manifest.classes))
    numbers = samples.spread_shards(_MAX_SHARDS, seed)
    labels = [samples.labels(number) for number in numbers]
    places = [(number, at) for number, some in zip(numbers, labels, strict=True) for at in range(len(some))]
    pool, outputs = Pool(np.concatenate(labels), len(manifest.classes)), []
    for index in range(num_outputs):
        plan = draw_plan(seed, 0, index, pool, FDT())
        # One image is in memory at a time: a plan may have a thousand, and large ones.
        total = sum(
            weight * samples.image(places[image]) for weight, image in zip(plan.weights, plan.images, strict=True)
        )
        outputs.append((np.rint(total).clip(0, 255).astype(np.uint8), superpose_targets(plan, len(manifest.classes))))
    return outputs


class Samples:
    """Labels and images by their places. What cannot be read is a ShardError that names the shard."""

    def __init__(self, folder: Folder, manifest: Manifest) -> None:
        self._folder, self.manifest = folder, manifest
        self._shard = cache(ShardSource(folder, manifest).shard)

    def labels(self, number: int) -> I64:
        """The labels of shard `number`, i64[number of samples]."""
        with self._opened(number, "labels") as shard:
            return shard.labels

    def image(self, place: Place) -> U8:
        """u8[h w c]"""
        number, position = place
        with self._opened(number, f"sample {self._shard(number).key(position)}") as shard:
            return shard[position].image

    @contextmanager
    def _opened(self, number: int, what: str) -> Iterator[OneShard]:
        """A shard whose file is closed in the end; what: the part of it that is damaged if it cannot be read."""
        with closing(self._shard(number)) as shard:
            try:
                yield shard
            except ShardError:
                raise
            except (ValueError, KeyError) as error:
                place = self._folder.path(self.manifest.shards[number].name)
                raise ShardError(f"{place}: {what}: {error}; see fdt-pipeline verify") from None

    def pick(self, classes: Sequence[int], per_class: int, seed: int) -> dict[int, list[Place]]:
        """Class -> up to `per_class` places, from shards all over the set. Another seed gives other places.

        More shards are read only for classes that are too rare to be found in `per_class` of them.
        """
        dice = np.random.default_rng(seed)
        spread = self.spread_shards(per_class, seed)
        others = [int(number) for number in dice.permutation(len(self.manifest.shards)) if number not in spread]
        wanted = {label: min(per_class, self.manifest.samples_per_class[label]) for label in classes}
        found: dict[int, list[list[Place]]] = {label: [] for label in classes}
        for count, number in enumerate([*spread, *others]):
            if count >= len(spread) and all(sum(map(len, found[label])) >= wanted[label] for label in classes):
                break
            labels = self.labels(number)
            for label in classes:
                here = dice.permutation(np.flatnonzero(labels == label)).tolist()
                found[label].append([(number, position) for position in here])
        in_turn = {
            label: chain(*zip_longest(*lists)) for label, lists in found.items()
        }  # first of each, second of each
        return {label: [place for place in in_turn[label] if place is not None][:per_class] for label in classes}

    def spread_shards(self, most: int, seed: int) -> list[int]:
        """Up to `most` shards, as far from each other as they can be."""
        total = len(self.manifest.shards)
        count = min(most, total)
        return sorted({(seed + number * total // count) % total for number in range(count)})


def page(head: Sequence[str], entries: Sequence[Entry], columns: int, characters: int) -> Figure:
    """A figure with `head` above, and the entries in columns, each image left of its text, not stretched or covered.

    Images have one size. characters: what a line of an entry's text has room for.
    """
    from matplotlib.figure import Figure  # takes a third of a second, and most verbs draw nothing

    rows, (high, wide) = -(-len(entries) // columns), entries[0][1].shape[:2]
    pitch = wide + (1 + characters) * CHARACTER + _MARGIN
    width = max(columns * pitch + _MARGIN, 640)
    height = 3 * _MARGIN + _LINE * len(head) + rows * (high + _GAP)
    figure = Figure(figsize=(width / _DPI, height / _DPI), dpi=_DPI)
    style: dict[str, Any] = {"family": _FONT, "size": 8, "parse_math": False}
    lines = [shortened(line, (width - 2 * _MARGIN) // CHARACTER, 1) for line in head]
    figure.text(_MARGIN / width, 1 - _MARGIN / height, "\n".join(lines), va="top", linespacing=1.4, **style)
    for number, (text, image) in enumerate(entries):
        column, row = divmod(number, rows)
        x, y = _MARGIN + column * pitch, _MARGIN + (rows - 1 - row) * (high + _GAP)
        figure.figimage(image, x, y)
        figure.text((x + wide + CHARACTER) / width, (y + high / 2) / height, text, va="center", **style)
    return figure


def shortened(text: str, characters: int, lines: int) -> str:
    """The text in at most `lines` lines of `characters` each; "…" stands where something is left out.

    What the font cannot show is written as \\uXXXX.
    """
    shown = "".join(
        char if char.isprintable() and ord(char) in _known() else char.encode("unicode_escape").decode()
        for char in text
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
    if factor := side // max(rgb.size):
        rgb = rgb.resize((factor * rgb.width, factor * rgb.height), Image.Resampling.NEAREST)
    else:
        rgb.thumbnail((side, side), Image.Resampling.LANCZOS)
    framed = Image.new("RGB", (side, side), (236, 236, 236))
    framed.paste(rgb, ((side - rgb.width) // 2, (side - rgb.height) // 2))
    return np.asarray(framed)
