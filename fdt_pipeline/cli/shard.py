"""The verbs `shard` and `convert`: write a data set as shards, and shards again in another encoding."""

from __future__ import annotations

import argparse
import json
from functools import partial
from pathlib import Path
from typing import Any

from fdt_pipeline.cli.command_line import location, verb_parser
from fdt_pipeline.cli.writing import add_options, run_options, write_sets
from fdt_pipeline.shards import (
    EXTENSIONS,
    ShardingOptions,
    check_vacant,
    convert_shards,
    read_manifest,
    shard_sets,
    write_shards,
)
from fdt_pipeline.shards.plan import planned
from fdt_pipeline.sources import KINDS, Source, download_source, open_source, source_splits
from fdt_pipeline.storage import open_folder

_SHARD = """Write SOURCE as shards to OUT: every image checked, shuffled, indexed and hashed.

All splits of SOURCE go to OUT/train, OUT/test; the one of --split, or a SOURCE without splits, to OUT itself.
SOURCE and OUT are paths or fsspec URLs (s3://, gs://, http(s):// to read from). OUT is as it was until all of a
split is written; a run that was broken off goes on with --resume."""
_SHARD_EXAMPLE = """example:
  fdt-pipeline shard train/data/fashion_mnist_subset runs/shards
  fdt-pipeline shard photos runs/photos --on-bad quarantine --max-shard-bytes 500000000"""
_CONVERT = """Write the shards in IN, or in its subfolders (train, test), to OUT in another encoding.

The same samples, keys and order, shard by shard. From raw, png or webp to raw, png or webp no pixel changes, and the
way back gives the first bytes again. The hashes of IN are checked first."""
_CONVERT_EXAMPLE = """example:
  fdt-pipeline convert runs/shards runs/webp --encode webp"""


def add_parsers(verbs: Any) -> None:
    parser = verb_parser(verbs, "shard", "write a data set as shards", _SHARD, _SHARD_EXAMPLE)
    parser.add_argument("source", metavar="SOURCE", type=location, help="folder or file of the data set")
    parser.add_argument("out", metavar="OUT", type=location, help="folder to write to; made if it is not there")
    parser.add_argument("--split", metavar="S", help="write this split alone, such as train or test (default: all)")
    parser.add_argument(
        "--source", dest="kind", metavar="KIND", help=f"{', '.join(KINDS)} (default: seen from the files)"
    )
    parser.add_argument(
        "--encode",
        choices=tuple(EXTENSIONS),
        help="how images are stored (default: keep for image files that are not resized, else raw)",
    )
    parser.add_argument("--samples-per-shard", type=int, default=1000, metavar="N", help="(default: %(default)s)")
    parser.add_argument("--max-shard-bytes", type=int, metavar="B", help="end a tar before it is larger than this")
    parser.add_argument("--seed", type=int, default=0, metavar="S", help="of the order (default: %(default)s)")
    add_options(parser)
    parser.add_argument("--dry-run", action="store_true", help="say what would be written; decode and write nothing")
    parser.add_argument("--download", action="store_true", help="fetch the data set to SOURCE first; needs --source")
    parser.set_defaults(run=_shard)
    parser = verb_parser(verbs, "convert", "write shards again in another encoding", _CONVERT, _CONVERT_EXAMPLE)
    parser.add_argument("shards", metavar="IN", type=location, help="folder of shards, or of train/ and test/")
    parser.add_argument("out", metavar="OUT", type=location, help="folder to write to; made if it is not there")
    parser.add_argument("--encode", choices=tuple(EXTENSIONS), required=True, help="how images are to be stored")
    add_options(parser)
    parser.set_defaults(run=_convert)


def _shard(arguments: argparse.Namespace) -> int:
    if arguments.download:
        download_source(Path(arguments.source), arguments.kind)
    splits = source_splits(arguments.source, arguments.kind)
    outs: dict[str | None, str] = {split: f"{arguments.out}/{split}" for split in splits}
    if arguments.split is not None or not splits:
        outs = {arguments.split: arguments.out}
    for out in outs.values():
        check_vacant(open_folder(out), arguments.overwrite, arguments.resume)
    # All are opened before any is written, so that a fault of one leaves nothing of the others.
    sources = {out: open_source(arguments.source, arguments.kind, split) for split, out in outs.items()}
    if arguments.dry_run:
        return _print_plans(arguments, sources)
    writers = {
        out: partial(write_shards, source, out, **vars(_options(arguments, source)) | run_options(arguments))
        for out, source in sources.items()
    }
    manifests = write_sets(arguments, writers)
    return 1 if any(manifest.quarantine for manifest in manifests.values()) else 0


def _options(arguments: argparse.Namespace, source: Source) -> ShardingOptions:
    """Files are kept by default: decoded, photographs take ten times the room. Small arrays are read fastest raw."""
    default = "keep" if hasattr(source, "read_file") and arguments.size is None else "raw"
    return ShardingOptions(
        arguments.encode or default,
        arguments.size,
        arguments.samples_per_shard,
        arguments.max_shard_bytes,
        arguments.seed,
    )


def _print_plans(arguments: argparse.Namespace, sources: dict[str, Source]) -> int:
    """--dry-run: what would be written to each folder."""
    plans = []
    for out, source in sources.items():
        options = _options(arguments, source)
        plans.append(
            {
                "out": out,
                "kind": source.kind,
                "split": source.split,
                "encoding": options.encoding,
                "num_samples": len(source),
                "num_classes": len(source.classes),
                "num_shards": planned(source, options).num_tasks,
            }
        )
    if arguments.json:
        print(json.dumps(plans, indent=2))
        return 0
    for plan in plans:
        print(
            f"{plan['out']}: would write {plan['num_samples']} samples of {plan['num_classes']} classes, "
            f"{plan['encoding']}, in {'at least ' if arguments.max_shard_bytes else ''}{plan['num_shards']} shards"
        )
    return 0


def _convert(arguments: argparse.Namespace) -> int:
    sets = {}
    for folder in shard_sets(arguments.shards):
        subfolder = "" if folder.url == arguments.shards else f"/{folder.url.rpartition('/')[2]}"
        sets[f"{arguments.out}{subfolder}"] = folder
    for out in sets:
        check_vacant(open_folder(out), arguments.overwrite, arguments.resume)
    options = {"encoding": arguments.encode, "size": arguments.size, **run_options(arguments)}
    writers = {out: partial(convert_shards, folder, out, **options) for out, folder in sets.items()}
    manifests = write_sets(arguments, writers)
    has_bad = any(
        len(manifests[out].quarantine) > len(read_manifest(folder).quarantine) for out, folder in sets.items()
    )
    return 1 if has_bad else 0
