"""The verb `preview`: a picture to judge a set of shards by, drawn by matplotlib."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from fdt_pipeline.cli.command_line import location, verb_parser
from fdt_pipeline.cli.page import GAP, fitted, page, save_figure, shortened, write
from fdt_pipeline.cli.samples import Place, Samples
from fdt_pipeline.definition.superposition import FDT, Pool, draw_plan, superpose_targets
from fdt_pipeline.shards import Manifest, check_shards, read_manifest, shard_sets
from fdt_pipeline.sources.source import U8

_DESCRIPTION = """Draw samples of every class of the set in OUT, or of the first of its subfolders (train), as a PNG.

With --superpose, 12 superposed outputs with their soft targets. Single samples are read, so a set may have any size."""
_EXAMPLE = """example:
  fdt-pipeline preview runs/shards --out sheet.png
  fdt-pipeline preview runs/shards/test --out superposed.png --superpose --seed 1"""
MAX_CLASSES, NUM_OUTPUTS = 100, 12
_MAX_SHARDS = 8  # from which superposed images are drawn; each holds the classes in their proportions


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
    check_shards(folder, read_manifest(folder))
    draw = _draw_superposed if arguments.superpose else _draw_classes
    figure, contents = draw(Samples(folder, read_manifest(folder)), arguments.seed, folder.url)
    save_figure(figure, arguments.out)
    print(f"{arguments.out}: {contents} of {folder.url}")
    return 0


def _draw_classes(samples: Samples, seed: int, title: str) -> tuple[Any, str]:
    """Samples of each class, of MAX_CLASSES at equal distances where there are more; and what is shown, in words."""
    manifest, num_classes = samples.manifest, len(samples.manifest.classes)
    num_shown = min(num_classes, MAX_CLASSES)
    shown = [number * num_classes // num_shown for number in range(num_shown)]
    columns, per_class = (1, 8) if num_shown <= 20 else (-(-num_shown // 25), 4)
    side = 96 if num_shown <= 10 else 64
    picked = samples.pick(shown, per_class, seed)
    contents = f"{sum(map(len, picked.values()))} samples, {num_shown} of {num_classes} classes"
    width = per_class * (side + GAP)
    figure, panels = page([title, *_facts(samples.manifest), contents], num_shown, columns, (side, width), 24)
    for label, (text, panel) in zip(shown, panels, strict=True):
        name = shortened(manifest.classes[label], 22, 3)
        write(text, f"{name}\nn = {manifest.samples_per_class[label]:,}")
        row = np.full((side, width, 3), 255, np.uint8)
        for number, place in enumerate(picked[label]):
            row[:, number * (side + GAP) :][:, :side] = fitted(samples.image(place), side)
        panel.imshow(row)
        write(panel, "" if picked[label] else "no samples")
    return figure, contents


def _draw_superposed(samples: Samples, seed: int, title: str) -> tuple[Any, str]:
    """Superposed outputs, each with its K and the largest weights of its target; and what is shown, in words."""
    classes = samples.manifest.classes
    outputs = superposed(samples, NUM_OUTPUTS, seed, title)
    contents = f"{NUM_OUTPUTS} superpositions by FDT(), {len(classes)} classes"
    figure, panels = page([title, *_facts(samples.manifest), contents], NUM_OUTPUTS, 3, (160, 160), 36)
    for (image, target), (text, panel) in zip(outputs, panels, strict=True):
        panel.imshow(fitted(image, 160))
        order = [int(label) for label in np.argsort(-target, kind="stable") if target[label]]
        lines = [f"{100 * target[label]:5.1f} %  {shortened(classes[label], 24, 1)}" for label in order[:6]]
        if rest := order[6:]:
            lines.append(f"{100 * target[rest].sum():5.1f} %  in {len(rest)} more")
        write(text, "\n".join([f"K = {len(order)}", *lines]))
    return figure, contents


def superposed(samples: Samples, num_outputs: int, seed: int, url: str) -> list[tuple[U8, np.ndarray]]:
    """Outputs (u8[h w c], target f32[num_classes]); ValueError if images differ in size, or there is one class."""
    manifest = samples.manifest
    if manifest.shape is None:
        raise ValueError(f"{url}: images differ in size: only one size can be superposed; shard with --size N")
    FDT().check_classes(len(manifest.classes))
    numbers = samples.spread_shards(_MAX_SHARDS, seed)
    labels = [samples.labels(number) for number in numbers]
    places = [Place(number, at) for number, some in zip(numbers, labels, strict=True) for at in range(len(some))]
    pool, outputs = Pool(np.concatenate(labels), len(manifest.classes)), []
    for index in range(num_outputs):
        plan = draw_plan(seed, 0, index, pool, FDT())
        # One image is in memory at a time: a plan may have a thousand, and large ones.
        total = sum(
            weight * samples.image(places[image]) for weight, image in zip(plan.weights, plan.images, strict=True)
        )
        outputs.append((np.rint(total).clip(0, 255).astype(np.uint8), superpose_targets(plan, len(manifest.classes))))
    return outputs


def _facts(manifest: Manifest) -> Iterator[str]:
    """Lines for the head of a sheet."""
    size = " x ".join(map(str, manifest.shape)) if manifest.shape else f"mixed sizes, {manifest.channels} channels"
    megabytes = sum(shard.num_bytes for shard in manifest.shards) / 1e6
    split = f", {manifest.split}" if manifest.split else ""
    yield f"{manifest.kind}{split}: {manifest.num_samples:,} samples, {size}, {manifest.encoding}, {megabytes:,.1f} MB"
    mean, std = (" / ".join(f"{value:.1f}" for value in values) for values in (manifest.mean, manifest.std))
    left_out = f"; {len(manifest.quarantine)} bad samples left out" if manifest.quarantine else ""
    yield f"mean {mean}, std {std} of 255{left_out}"
