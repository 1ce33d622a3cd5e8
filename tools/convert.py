"""The verb `convert`: write shards again in another encoding."""

from __future__ import annotations

import argparse
from functools import partial
from typing import Any

from fdt_pipeline.shards import Manifest, Progress, check_vacant, convert_shards, read_manifest, shard_sets
from fdt_pipeline.storage import Folder, open_folder

from .location import below, location
from .sharding import add_options, encode_choices, run_options, write_sets
from .verb import verb_parser

_DESCRIPTION = """Write the shards in IN, or in its subfolders (train, test), to OUT in another encoding.

The same samples, keys and order, shard by shard. From raw, png or webp to raw, png or webp no pixel changes, and the
way back gives the first bytes again. The hashes of IN are checked first."""
_EXAMPLE = """example:
  python -m tools convert runs/shards runs/webp --encode webp"""


def add_parser(verbs: Any) -> None:
    parser = verb_parser(verbs, "convert", "write shards again in another encoding", _DESCRIPTION, _EXAMPLE)
    parser.add_argument("shards", metavar="IN", type=location, help="folder of shards, or of train/ and test/")
    parser.add_argument("out", metavar="OUT", type=location, help="folder to write to; made if it is not there")
    parser.add_argument("--encode", choices=encode_choices(), required=True, help="how images are to be stored")
    add_options(parser)
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    sets = shard_sets(arguments.shards)
    outs = {_out(arguments, folder): folder for folder in sets}
    for out in outs:
        check_vacant(open_folder(out), arguments.overwrite, arguments.resume)
    writers = {out: partial(_convert, arguments, folder, out) for out, folder in outs.items()}
    manifests = write_sets(arguments, writers)
    has_bad = any(len(manifests[out].quarantine) > _num_bad_before(folder) for out, folder in outs.items())
    return 1 if has_bad else 0


def _out(arguments: argparse.Namespace, folder: Folder) -> str:
    is_below = folder.url != arguments.shards
    return below(arguments.out, folder.url.rpartition("/")[2]) if is_below else arguments.out


def _num_bad_before(folder: Folder) -> int:
    return len(read_manifest(folder).quarantine)


def _convert(arguments: argparse.Namespace, folder: Folder, out: str, progress: Progress) -> Manifest:
    return convert_shards(folder, out, arguments.encode, progress=progress, **run_options(arguments))
