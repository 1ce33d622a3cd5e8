"""The verb `verify`: check every byte of a set of shards."""

from __future__ import annotations

import argparse
import json
from typing import Any

from fdt_pipeline.shards import shard_sets, verify_shards
from fdt_pipeline.shards.progress import progress_bar
from fdt_pipeline.storage import Folder

from .location import location
from .verb import verb_parser

_DESCRIPTION = """Check the shards in OUT, or in its subfolders (train, test), and print every problem, with its place.

Hashes, sizes, checksums of the samples, indexes, keys, labels, counts; raw images, and with --decode all, are decoded
too. OUT is a path or an fsspec URL. Exit code 1 if anything is wrong."""
_EXAMPLE = """example:
  python -m tools verify runs/shards"""


def add_parser(verbs: Any) -> None:
    parser = verb_parser(verbs, "verify", "check every byte of a set of shards", _DESCRIPTION, _EXAMPLE)
    parser.add_argument("out", metavar="OUT", type=location, help="folder of the shards, or of train/ and test/")
    parser.add_argument("--decode", action="store_true", help="decode every image, and compare their mean and std")
    parser.add_argument("--json", action="store_true", help="print the problems as JSON")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    problems = {}
    for folder in shard_sets(arguments.out):
        problems[folder.url] = _problems(folder, arguments.decode)
        if not arguments.json:
            _tell(folder.url, problems[folder.url])
    if arguments.json:
        print(json.dumps([{"out": url, "problems": found} for url, found in problems.items()], indent=2))
    return 1 if any(problems.values()) else 0


def _problems(folder: Folder, decode: bool) -> list[str]:
    with progress_bar(folder.url, "samples") as progress:
        return verify_shards(folder, progress, decode)


def _tell(url: str, problems: list[str]) -> None:
    for problem in problems:
        print(problem)
    print(f"{url}: {'fine' if not problems else f'problems found: {len(problems)}'}")
