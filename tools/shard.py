"""The verb `shard`: write a data set as shards."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from fdt_pipeline.shards import EXTENSIONS, check_vacant, write_shards
from fdt_pipeline.shards.progress import progress_bar
from fdt_pipeline.sources import KINDS, Source, download_source, open_source, source_splits

from .verb import verb_parser

_DESCRIPTION = """Write SOURCE as shards to OUT: shuffled, indexed and hashed.

All splits of SOURCE go to OUT/train, OUT/test; the one of --split, or a SOURCE without splits, to OUT itself."""
_EXAMPLE = """example:
  python -m tools shard train/data/fashion_mnist_subset runs/shards"""


def add_parser(verbs: Any) -> None:
    parser = verb_parser(verbs, "shard", "write a data set as shards", _DESCRIPTION, _EXAMPLE)
    parser.add_argument("source", metavar="SOURCE", type=Path, help="folder or file of the data set")
    parser.add_argument("out", metavar="OUT", type=Path, help="folder to write to; made if it is not there")
    parser.add_argument("--split", help="write this split alone, such as train or test (default: all)")
    parser.add_argument(
        "--source", dest="kind", metavar="KIND", help=f"{', '.join(KINDS)} (default: seen from the files)"
    )
    parser.add_argument("--encode", choices=tuple(EXTENSIONS), default="raw", help="(default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="what the order depends on (default: %(default)s)")
    parser.add_argument("--samples-per-shard", type=int, default=1000, metavar="N", help="(default: %(default)s)")
    parser.add_argument("--overwrite", action="store_true", help="replace the shards that are in OUT")
    parser.add_argument("--download", action="store_true", help="fetch the data set to SOURCE first; needs --source")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    if arguments.download:
        download_source(arguments.source, arguments.kind)
    outs = _outs(arguments)
    for out in outs.values():
        check_vacant(out, arguments.overwrite)
    # All are opened before any is written, so that a fault of one leaves nothing of the others.
    sources = {split: open_source(arguments.source, arguments.kind, split) for split in outs}
    for split, out in outs.items():
        _write(arguments, sources[split], out)
    return 0


def _outs(arguments: argparse.Namespace) -> dict[str | None, Path]:
    """Split -> folder to write it to."""
    splits = source_splits(arguments.source, arguments.kind)
    if arguments.split is not None or not splits:
        return {arguments.split: arguments.out}
    return {split: arguments.out / split for split in splits}


def _write(arguments: argparse.Namespace, source: Source, out: Path) -> None:
    with progress_bar(str(out), "samples") as progress:
        manifest = write_shards(
            source,
            out,
            encoding=arguments.encode,
            seed=arguments.seed,
            samples_per_shard=arguments.samples_per_shard,
            overwrite=arguments.overwrite,
            progress=progress,
        )
    print(f"{out}: shards: {len(manifest.shards)}, samples: {manifest.num_samples}, classes: {len(manifest.classes)}")
