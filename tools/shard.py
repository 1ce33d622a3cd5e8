"""The verb `shard`: write a data set as shards."""

from __future__ import annotations

import argparse
import json
from functools import partial
from pathlib import Path
from typing import Any

from fdt_pipeline.shards import Manifest, Progress, ShardingOptions, check_vacant, write_shards
from fdt_pipeline.shards.plan import planned
from fdt_pipeline.sources import KINDS, Source, download_source, open_source, source_splits
from fdt_pipeline.storage import open_folder

from .location import below, location
from .sharding import add_options, encode_choices, run_options, write_sets
from .verb import verb_parser

_DESCRIPTION = """Write SOURCE as shards to OUT: every image checked, shuffled, indexed and hashed.

All splits of SOURCE go to OUT/train, OUT/test; the one of --split, or a SOURCE without splits, to OUT itself.
SOURCE and OUT are paths or fsspec URLs (s3://, gs://, http(s):// to read from). OUT is as it was until all of a
split is written; a run that was broken off goes on with --resume."""
_EXAMPLE = """example:
  python -m tools shard train/data/fashion_mnist_subset runs/shards
  python -m tools shard photos runs/photos --on-bad quarantine --max-shard-bytes 500000000"""


def add_parser(verbs: Any) -> None:
    parser = verb_parser(verbs, "shard", "write a data set as shards", _DESCRIPTION, _EXAMPLE)
    parser.add_argument("source", metavar="SOURCE", type=location, help="folder or file of the data set")
    parser.add_argument("out", metavar="OUT", type=location, help="folder to write to; made if it is not there")
    parser.add_argument("--split", metavar="S", help="write this split alone, such as train or test (default: all)")
    parser.add_argument(
        "--source", dest="kind", metavar="KIND", help=f"{', '.join(KINDS)} (default: seen from the files)"
    )
    parser.add_argument(
        "--encode",
        choices=encode_choices(),
        help="how images are stored (default: keep for image files that are not resized, else raw)",
    )
    parser.add_argument("--samples-per-shard", type=int, default=1000, metavar="N", help="(default: %(default)s)")
    parser.add_argument("--max-shard-bytes", type=int, metavar="B", help="end a tar before it is larger than this")
    parser.add_argument("--seed", type=int, default=0, metavar="S", help="of the order (default: %(default)s)")
    add_options(parser)
    parser.add_argument("--dry-run", action="store_true", help="say what would be written; decode and write nothing")
    parser.add_argument("--download", action="store_true", help="fetch the data set to SOURCE first; needs --source")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    if arguments.download:
        download_source(Path(arguments.source), arguments.kind)
    outs = _outs(arguments)
    for out in outs.values():
        check_vacant(open_folder(out), arguments.overwrite, arguments.resume)
    # All are opened before any is written, so that a fault of one leaves nothing of the others.
    sources = {split: open_source(arguments.source, arguments.kind, split) for split in outs}
    if arguments.dry_run:
        return _say(arguments, {out: sources[split] for split, out in outs.items()})
    writers = {out: partial(_write, arguments, sources[split], out) for split, out in outs.items()}
    manifests = write_sets(arguments, writers)
    return 1 if any(manifest.quarantine for manifest in manifests.values()) else 0


def _outs(arguments: argparse.Namespace) -> dict[str | None, str]:
    """Split -> folder to write it to."""
    splits = source_splits(arguments.source, arguments.kind)
    if arguments.split is not None or not splits:
        return {arguments.split: arguments.out}
    return {split: below(arguments.out, split) for split in splits}


def _encoding(arguments: argparse.Namespace, source: Source) -> str:
    """Files are kept by default: decoded, photographs take ten times the room. Small arrays are read fastest raw."""
    if arguments.encode is not None:
        return arguments.encode
    return "keep" if hasattr(source, "read_file") and arguments.size is None else "raw"


def _write(arguments: argparse.Namespace, source: Source, out: str, progress: Progress) -> Manifest:
    return write_shards(
        source,
        out,
        encoding=_encoding(arguments, source),
        seed=arguments.seed,
        samples_per_shard=arguments.samples_per_shard,
        max_shard_bytes=arguments.max_shard_bytes,
        progress=progress,
        **run_options(arguments),
    )


def _say(arguments: argparse.Namespace, sources: dict[str, Source]) -> int:
    """--dry-run."""
    plans = [_described(arguments, source, out) for out, source in sources.items()]
    if arguments.json:
        print(json.dumps(plans, indent=2))
        return 0
    for plan in plans:
        print(
            f"{plan['out']}: would write {plan['num_samples']} samples of {plan['num_classes']} classes, "
            f"{plan['encoding']}, in {'at least ' if arguments.max_shard_bytes else ''}{plan['num_shards']} shards"
        )
    return 0


def _described(arguments: argparse.Namespace, source: Source, out: str) -> dict[str, Any]:
    encoding = _encoding(arguments, source)
    options = ShardingOptions(
        encoding, arguments.size, arguments.samples_per_shard, arguments.max_shard_bytes, arguments.seed
    )
    plan = planned(source, options)
    return {
        "out": out,
        "kind": source.kind,
        "split": source.split,
        "encoding": encoding,
        "num_samples": len(source),
        "num_classes": len(source.classes),
        "num_shards": plan.num_tasks,
    }
