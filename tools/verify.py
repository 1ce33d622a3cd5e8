"""The verb `verify`: check every byte of a set of shards."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from fdt_pipeline.shards import shard_sets, verify_shards
from fdt_pipeline.shards.progress import progress_bar

from .verb import verb_parser

_DESCRIPTION = """Check the shards in OUT, or in its subfolders (train, test), and print every problem.

Hashes, sizes, indexes, keys, labels, counts, and every image. Exit code 1 if anything is wrong."""
_EXAMPLE = """example:
  python -m tools verify runs/shards"""


def add_parser(verbs: Any) -> None:
    parser = verb_parser(verbs, "verify", "check every byte of a set of shards", _DESCRIPTION, _EXAMPLE)
    parser.add_argument("out", metavar="OUT", type=Path, help="folder of the shards, or of train/ and test/")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    fine = [_verify(folder) for folder in shard_sets(arguments.out)]
    return 0 if all(fine) else 1


def _verify(folder: Path) -> bool:
    with progress_bar(str(folder), "shards") as progress:
        problems = verify_shards(folder, progress)
    for problem in problems:
        print(problem)
    print(f"{folder}: {'fine' if not problems else f'problems found: {len(problems)}'}")
    return not problems
