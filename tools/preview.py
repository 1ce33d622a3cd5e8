"""The verb `preview`: a picture to judge a set of shards by."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from fdt_pipeline.shards import check_shards, read_manifest, shard_sets
from fdt_pipeline.storage.atomic import atomic_file

from .location import location
from .verb import verb_parser

_DESCRIPTION = """Draw samples of every class of the set in OUT, or of the first of its subfolders (train), as a PNG.

With --superpose, 12 superposed outputs with their soft targets. Single samples are read, so a set may have any size."""
_EXAMPLE = """example:
  python -m tools preview runs/shards --out sheet.png
  python -m tools preview runs/shards/test --out superposed.png --superpose --seed 1"""


def add_parser(verbs: Any) -> None:
    parser = verb_parser(verbs, "preview", "draw samples of a set of shards", _DESCRIPTION, _EXAMPLE)
    parser.add_argument("shards", metavar="OUT", type=location, help="folder of the shards, or of train/ and test/")
    parser.add_argument("--out", required=True, type=Path, metavar="PNG", help="file to draw to")
    parser.add_argument("--superpose", action="store_true", help="draw superposed outputs with their soft targets")
    parser.add_argument("--seed", type=int, default=0, metavar="S", help="other samples (default: %(default)s)")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    _check_out(arguments.out)
    if arguments.seed < 0:
        raise ValueError(f"--seed must be 0 or more, got {arguments.seed}")
    # Here, because matplotlib takes a second to import and not every verb needs it.
    from .contact_sheet import draw_contact_sheet
    from .superposed_sheet import draw_superposed

    folder = shard_sets(arguments.shards)[0]
    manifest = read_manifest(folder)
    check_shards(folder, manifest)
    draw = draw_superposed if arguments.superpose else draw_contact_sheet
    canvas, contents = draw(folder, manifest, arguments.seed)
    with atomic_file(arguments.out) as file:
        canvas.write(file)
    print(f"{arguments.out}: {contents} of {folder.url}, {canvas.width} x {canvas.height} pixels")
    return 0


def _check_out(out: Path) -> None:
    if out.suffix.lower() != ".png":
        raise ValueError(f"--out {out}: expected a name that ends in .png")
    if not out.parent.is_dir():
        raise ValueError(f"--out {out}: there is no folder {out.parent}; make it first")
