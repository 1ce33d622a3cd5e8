"""The verb `preview`: a picture to judge a set of shards by, of single samples, so that a set may exceed the memory."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from contextlib import closing
from functools import cache
from io import BytesIO
from itertools import takewhile
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from fdt_pipeline.cli import add_max_pixels, location, verb_parser
from fdt_pipeline.cli.inspecting import describe
from fdt_pipeline.definition.mixing import FDT, CutMix, Mix, MixUp
from fdt_pipeline.definition.superposition import Pool, draw_plan, superpose_constituents, superpose_targets
from fdt_pipeline.shards import Manifest, ShardError, check_shards, read_manifest, shard_sets
from fdt_pipeline.shards.conversion import OneShard, ShardSource
from fdt_pipeline.sources.image_pixels import resized
from fdt_pipeline.sources.source import I64, U8
from fdt_pipeline.storage import Folder
from fdt_pipeline.storage.atomic import atomic_file

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_DESCRIPTION = """Draw samples of every class of the set in OUT, or of the first of its subfolders (train), as a PNG.

With --superpose, 12 mixed outputs with their soft targets: of FDT(), MixUp(1.0) or CutMix(1.0), of single samples,
so that a set may have any size. Images that differ in size are resized and cropped to 224 x 224."""
_EXAMPLE = """example:
  fdt-pipeline preview runs/shards --out sheet.png
  fdt-pipeline preview runs/shards/test --out superposed.png --superpose --seed 1
  fdt-pipeline preview runs/shards --out cut.png --superpose cutmix"""
MAX_CLASSES, NUM_OUTPUTS = 100, 12
_SIDE = 224  # of mixed outputs, where images differ in size
_MIXES: dict[str, Mix] = {
    "fdt": FDT(),
    "mixup": MixUp(1.0, anchor="random"),
    "cutmix": CutMix(1.0, anchor="random"),
}
_MAX_SHARDS = 8  # from which superposed images are drawn; each holds the classes in their proportions
_GAP, _MARGIN = 4, 16  # pixels between two images, and around the page
_DPI = 100
CHARACTER, _LINE = 7, 14  # width and height of a character in pixels: DejaVu Sans Mono, which matplotlib has, 8 points
Place = tuple[int, int]  # the number of a shard, and the position of a sample in it


class Entry(NamedTuple):
    """Images beside each other, and the text at their right."""

    images: list[U8]
    text: str


def add_parsers(verbs: Any) -> None:
    parser = verb_parser(verbs, "preview", "draw samples of a set of shards", _DESCRIPTION, _EXAMPLE)
    parser.add_argument("shards", metavar="OUT", type=location, help="folder of the shards, or of train/ and test/")
    parser.add_argument("--out", required=True, type=Path, metavar="PNG", help="file to draw to")
    parser.add_argument(
        "--superpose", nargs="?", const="fdt", choices=_MIXES, help="draw mixed outputs with their soft targets (fdt)"
    )
    parser.add_argument("--seed", type=int, default=0, metavar="S", help="other samples (default: %(default)s)")
    add_max_pixels(parser)
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
    samples, num_classes = Samples(folder, manifest), len(manifest.classes)
    if arguments.superpose:
        mix = _MIXES[arguments.superpose]
        entries, columns, side, characters = superposed_entries(samples, mix, arguments.seed), 3, 160, 36
        contents = f"{NUM_OUTPUTS} outputs of {mix!r}, {num_classes} classes"
    else:
        num_shown = min(num_classes, MAX_CLASSES)
        entries = class_entries(samples, num_shown, 8 if num_shown <= 20 else 4, arguments.seed)
        columns, side, characters = -(-num_shown // 25), 96 if num_shown <= 10 else 64, 22
        contents = f"{sum(len(entry.images) for entry in entries)} samples, {num_shown} of {num_classes} classes"
    head = [*takewhile(bool, describe(folder.url, manifest)), f"  shown     {contents}"]
    data = BytesIO()
    page(head, entries, columns, side, characters).savefig(data, format="png")
    with atomic_file(arguments.out) as file:  # whole or not there
        file.write(data.getvalue())
    print(f"{arguments.out}: {contents} of {folder.url}")
    return 0


def class_entries(samples: Samples, num_shown: int, per_class: int, seed: int) -> list[Entry]:
    """Samples of each class, of classes at equal distances where not all are shown."""
    manifest = samples.manifest
    shown = [number * len(manifest.classes) // num_shown for number in range(num_shown)]
    entries = []
    for label, places in samples.pick(shown, per_class, seed).items():
        count = f"n = {manifest.samples_per_class[label]:,}" if places else "no samples"
        images = [samples.image(place) for place in places]
        entries.append(Entry(images, f"{manifest.classes[label]}\n{count}"))
    return entries


def superposed_entries(samples: Samples, mix: Mix, seed: int) -> list[Entry]:
    """Mixed outputs, each with its K and the largest weights of its target."""
    classes, entries = samples.manifest.classes, []
    for image, target, k in superposed(samples, mix, NUM_OUTPUTS, seed):
        order = [int(label) for label in np.argsort(-target, kind="stable") if target[label]]
        lines = [f"{100 * target[label]:5.1f} %  {classes[label]}" for label in order[:6]]
        if rest := order[6:]:
            lines.append(f"{100 * target[rest].sum():5.1f} %  in {len(rest)} more")
        entries.append(Entry([image], "\n".join([f"K = {k}", *lines])))
    return entries


def superposed(samples: Samples, mix: Mix, num_outputs: int, seed: int) -> list[tuple[U8, np.ndarray, int]]:
    """(u8[h w c], target f32[num_classes], K) of a mix without a leader; ValueError if the set has too few classes."""
    manifest = samples.manifest
    num_classes = len(manifest.classes)
    mix.check_classes(num_classes)
    height, width, _ = manifest.shape or (_SIDE, _SIDE, None)
    numbers = np.sort(np.random.default_rng(seed).permutation(len(manifest.shards))[:_MAX_SHARDS]).tolist()
    labels = [samples.labels(number) for number in numbers]
    places = [(number, at) for number, some in zip(numbers, labels, strict=True) for at in range(len(some))]
    pool, outputs = Pool(np.concatenate(labels), num_classes), []
    for index in range(num_outputs):
        plan = draw_plan(seed, 0, index, pool, mix, size=(height, width))
        # One image is in memory at a time: a plan may have a thousand, and large ones.
        images = (samples.image(places[image], None if manifest.shape else _SIDE) for image in plan.images)
        pixels = np.rint(superpose_constituents(plan, images)).clip(0, 255).astype(np.uint8)
        outputs.append((pixels, superpose_targets(plan, num_classes), len(plan.images)))
    return outputs


class Samples:
    """Labels and images by their places. What cannot be read is a ShardError that names the shard."""

    def __init__(self, folder: Folder, manifest: Manifest) -> None:
        self.url, self.manifest = folder.url, manifest
        self._shard = cache(ShardSource(folder, manifest).shard)

    def labels(self, number: int) -> I64:
        """The labels of shard `number`, i64[number of samples]."""
        return self._read(number, lambda shard: shard.labels, "labels")

    def image(self, place: Place, side: int | None = None) -> U8:
        """u8[h w c]; side: resized and cropped to it."""
        number, position = place
        key = self._shard(number).key(position)
        pixels: U8 = self._read(number, lambda shard: shard[position].image, f"sample {key}")
        return pixels if side is None else resized(pixels, side)

    def _read(self, number: int, read: Callable[[OneShard], Any], what: str) -> Any:
        """What `read` takes of a shard, whose file is closed then; what: how an error names it."""
        with closing(self._shard(number)) as shard:
            try:
                return read(shard)
            except ShardError:
                raise
            except (ValueError, KeyError) as error:
                name = self.manifest.shards[number].name
                raise ShardError(f"{self.url}/{name}: {what}: {error}; see fdt-pipeline verify") from None

    def pick(self, classes: Sequence[int], per_class: int, seed: int) -> dict[int, list[Place]]:
        """Class -> up to `per_class` places, from shards all over the set. Another seed gives other places.

        `per_class` shards are looked through, and more only for classes that are rarer than that.
        """
        dice = np.random.default_rng(seed)
        found: dict[int, list[Place]] = {label: [] for label in classes}
        wanted = {label: min(per_class, self.manifest.samples_per_class[label]) for label in classes}
        for count, number in enumerate(dice.permutation(len(self.manifest.shards)).tolist()):
            if count >= per_class and all(len(found[label]) >= wanted[label] for label in classes):
                break
            labels = self.labels(number)
            for label, places in found.items():
                places += [(number, position) for position in np.flatnonzero(labels == label).tolist()]
        return {
            label: [places[number] for number in dice.permutation(len(places))[:per_class]]
            for label, places in found.items()
        }


def page(head: Sequence[str], entries: Sequence[Entry], columns: int, side: int, characters: int) -> Figure:
    """A figure with `head` above, and the entries in columns. Images lie within squares of `side` pixels.

    characters: what a line of an entry's text has room for.
    """
    from matplotlib.figure import Figure  # takes a third of a second, and most verbs draw nothing

    rows, most = -(-len(entries) // columns), max(len(entry.images) for entry in entries)
    pitch = most * (side + _GAP) + (1 + characters) * CHARACTER + _MARGIN
    width = max(columns * pitch + _MARGIN, 640)
    top = 2 * _MARGIN + _LINE * len(head)
    height = top + rows * (side + _GAP) + _MARGIN
    figure = Figure(figsize=(width / _DPI, height / _DPI), dpi=_DPI)
    axes = figure.add_axes((0, 0, 1, 1))
    style: dict[str, Any] = {"family": "DejaVu Sans Mono", "size": 8, "parse_math": False}
    axes.text(_MARGIN, _MARGIN, shortened("\n".join(head), (width - 2 * _MARGIN) // CHARACTER), va="top", **style)
    for number, (images, text) in enumerate(entries):
        column, row = divmod(number, rows)
        x, y = _MARGIN + column * pitch, top + row * (side + _GAP)
        for place, image in enumerate(images):
            longest, left = max(image.shape[:2]), x + place * (side + _GAP)
            scale = side // longest or side / longest  # enlarged by a whole number, pixels stay sharp
            extent = (left, left + scale * image.shape[1], y + scale * image.shape[0], y)
            pixels = image[..., 0] if image.shape[2] == 1 else image
            filtering = "nearest" if scale >= 1 else "hanning"
            axes.imshow(pixels, cmap="gray", vmin=0, vmax=255, extent=extent, interpolation=filtering)
        x += most * (side + _GAP) + CHARACTER
        axes.text(x, y + side / 2, shortened(text, characters), va="center", **style)
    axes.set(xlim=(0, width), ylim=(height, 0), aspect="auto")
    axes.set_axis_off()
    return figure


def shortened(text: str, characters: int) -> str:
    """Lines of at most so many characters: "…" stands where something is left out, and \\uXXXX for what is no Latin-1,
    as the font may not have it."""
    lines = [repr(line)[1:-1].encode("latin-1", "backslashreplace").decode("latin-1") for line in text.split("\n")]
    return "\n".join(line if len(line) <= characters else f"{line[: characters - 1]}…" for line in lines)
