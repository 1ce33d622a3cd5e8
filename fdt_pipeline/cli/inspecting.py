"""The verbs `verify` and `info`: whether a set of shards is whole, and what it holds."""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from typing import Any

from fdt_pipeline.cli import add_max_pixels, location, verb_parser
from fdt_pipeline.shards import Manifest, read_manifest, shard_sets, verify_shards
from fdt_pipeline.shards.progress import progress_bar

_VERIFY = """Check the shards in OUT, or in its subfolders (train, test), and print every problem, with its place.

Hashes, sizes, checksums of the samples, indexes, keys, labels, counts; raw images, and with --decode all, are decoded
too. OUT is a path or an fsspec URL. Exit code 1 if anything is wrong."""
_VERIFY_EXAMPLE = """example:
  fdt-pipeline verify runs/shards"""
_INFO = """Print what the shards in OUT, or in its subfolders (train, test), hold, as their manifests say.

With --json the manifest itself, or an object of them by subfolder."""
_INFO_EXAMPLE = """example:
  fdt-pipeline info runs/shards
  fdt-pipeline info runs/shards/train --json"""


def add_parsers(verbs: Any) -> None:
    verify = verb_parser(verbs, "verify", "check every byte of a set of shards", _VERIFY, _VERIFY_EXAMPLE)
    info = verb_parser(verbs, "info", "print what a set of shards holds", _INFO, _INFO_EXAMPLE)
    for parser, run, printed in ((verify, _verify, "problems"), (info, _info, "manifests")):
        parser.add_argument("out", metavar="OUT", type=location, help="folder of the shards, or of train/ and test/")
        parser.add_argument("--json", action="store_true", help=f"print the {printed} as JSON")
        parser.set_defaults(run=run)
    verify.add_argument("--decode", action="store_true", help="decode every image, and compare their mean and std")
    add_max_pixels(verify)


def _verify(arguments: argparse.Namespace) -> int:
    problems = {}
    for folder in shard_sets(arguments.out):
        with progress_bar(folder.url, "samples") as progress:
            found = problems[folder.url] = verify_shards(folder, progress, arguments.decode)
        if not arguments.json:
            print("\n".join([*found, f"{folder.url}: {f'problems found: {len(found)}' if found else 'fine'}"]))
    if arguments.json:
        print(json.dumps([{"out": url, "problems": found} for url, found in problems.items()], indent=2))
    return 1 if any(problems.values()) else 0


def _info(arguments: argparse.Namespace) -> int:
    manifests = {folder.url: read_manifest(folder) for folder in shard_sets(arguments.out)}
    if not arguments.json:
        print("\n\n".join("\n".join(describe(folder, manifest)) for folder, manifest in manifests.items()))
        return 0
    found = {url.rpartition("/")[2]: manifest.to_dict() for url, manifest in manifests.items()}
    print(json.dumps(manifests[arguments.out].to_dict() if arguments.out in manifests else found, indent=2))
    return 0


def describe(folder: str, manifest: Manifest) -> Iterator[str]:
    """Lines for people to read: the set, a blank line, and its classes."""
    size = " x ".join(map(str, manifest.shape)) if manifest.shape else f"sizes differ, {manifest.channels} channels"
    megabytes = sum(shard.num_bytes for shard in manifest.shards) / 1e6
    yield folder
    yield f"  source    {manifest.kind}{f', split {manifest.split}' if manifest.split else ''}"
    yield f"  samples   {manifest.num_samples} of {len(manifest.classes)} classes"
    yield f"  images    {size}, {manifest.encoding}: {stored_as(manifest)}"
    for name, values in (("mean", manifest.mean), ("std", manifest.std)):
        known = values and f"{', '.join(f'{value:.2f}' for value in values)} of 255"
        yield f"  {name:8}  {known or 'not known, as no image was decoded'}"
    yield f"  shards    {len(manifest.shards)} of up to {manifest.samples_per_shard} samples, {megabytes:.1f} MB"
    if manifest.in_place:
        yield f"  tars      as they are, such as {manifest.shards[0].name}; labels in {manifest.labels}"
    else:
        yield f"  seed      {manifest.seed}"
    if manifest.quarantine:
        origin = "tars" if manifest.in_place else "source"
        yield f"  left out  {len(manifest.quarantine)} bad samples of the {origin} (--json lists them)"
    yield ""
    width = max(len("class"), *map(len, manifest.classes))
    yield f"  label  {'class':{width}}  samples"
    for label, (name, num_samples) in enumerate(zip(manifest.classes, manifest.samples_per_class, strict=True)):
        yield f"  {label:5}  {name:{width}}  {num_samples:7}"


def stored_as(manifest: Manifest) -> str:
    """How many images are stored in which format, such as "20 jpg, 10 png"."""
    return ", ".join(f"{count} {extension}" for extension, count in manifest.samples_per_extension.items())
