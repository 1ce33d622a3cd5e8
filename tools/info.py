"""The verb `info`: what a set of shards holds, from its manifest."""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from typing import Any

from fdt_pipeline.shards import Manifest, read_manifest, shard_sets

from .location import location
from .sharding import stored
from .verb import verb_parser

_DESCRIPTION = """Print what the shards in OUT, or in its subfolders (train, test), hold, as their manifests say.

With --json the manifest itself, or an object of them by subfolder."""
_EXAMPLE = """example:
  python -m tools info runs/shards
  python -m tools info runs/shards/train --json"""


def add_parser(verbs: Any) -> None:
    parser = verb_parser(verbs, "info", "print what a set of shards holds", _DESCRIPTION, _EXAMPLE)
    parser.add_argument("out", metavar="OUT", type=location, help="folder of the shards, or of train/ and test/")
    parser.add_argument("--json", action="store_true", help="print the manifests as JSON")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    manifests = {folder.url: read_manifest(folder) for folder in shard_sets(arguments.out)}
    if arguments.json:
        print(json.dumps(_as_json(manifests, arguments.out), indent=2))
    else:
        print("\n\n".join("\n".join(table(folder, manifest)) for folder, manifest in manifests.items()))
    return 0


def _as_json(manifests: dict[str, Manifest], out: str) -> dict[str, Any]:
    if out in manifests:
        return manifests[out].to_dict()
    return {url.rpartition("/")[2]: manifest.to_dict() for url, manifest in manifests.items()}


def table(folder: str, manifest: Manifest) -> Iterator[str]:
    """Lines for people to read."""
    size = " x ".join(map(str, manifest.shape)) if manifest.shape else f"sizes differ, {manifest.channels} channels"
    megabytes = sum(shard.num_bytes for shard in manifest.shards) / 1e6
    yield folder
    yield f"  source    {manifest.kind}{f', split {manifest.split}' if manifest.split else ''}"
    yield f"  samples   {manifest.num_samples} of {len(manifest.classes)} classes"
    yield f"  images    {size}, {manifest.encoding}: {stored(manifest)}"
    yield f"  mean      {_numbers(manifest.mean)} of 255"
    yield f"  std       {_numbers(manifest.std)} of 255"
    yield f"  shards    {len(manifest.shards)} of up to {manifest.samples_per_shard} samples, {megabytes:.1f} MB"
    yield f"  seed      {manifest.seed}"
    if manifest.quarantine:
        yield f"  left out  {len(manifest.quarantine)} bad samples of the source (--json lists them)"
    yield ""
    width = max(len("class"), *map(len, manifest.classes))
    yield f"  label  {'class':{width}}  samples"
    for label, (name, num_samples) in enumerate(zip(manifest.classes, manifest.samples_per_class, strict=True)):
        yield f"  {label:5}  {name:{width}}  {num_samples:7}"


def _numbers(values: tuple[float, ...]) -> str:
    return ", ".join(f"{value:.2f}" for value in values)
