"""The verb `bench`: how many images a second, what mixing costs, and how others compare."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any, get_args

from fdt_pipeline.cli.command_line import verb_parser

from .spec import MODELS, TIMEOUT
from .summary import TOO_WIDE
from .task import Mixing

_DESCRIPTION = """Race data loaders on the images in SHARDS: ours, and what one would use instead.

Each contender is checked, then set up in a process of its own; in every round each has its turn while the others
rest. Printed are medians over the rounds, after one that is left out, with intervals, and ratios to the first
contender, taken within a round. Contenders that are not installed are listed (pip install -e ".[bench]")."""
_EXAMPLE = """example:
  python -m tools bench runs/shards/train --json runs/bench.json --plot runs/bench.png
  python -m tools bench runs/shards/train --contender my_module:my_loader --model small
  python -m tools bench --compare before.json after.json --bound 0.05"""

# Many short rounds, over few long ones: the interval of 15 leaves out the three slowest, that of 6 none.
REPEATS, SECONDS = 15, 1.0


def add_parser(verbs: Any) -> None:
    parser = verb_parser(verbs, "bench", "race data loaders on a set of shards", _DESCRIPTION, _EXAMPLE)
    parser.add_argument("shards", metavar="SHARDS", type=Path, nargs="?", help="folder of one set of shards")
    _add_choice(parser)
    _add_measuring(parser)
    _add_outputs(parser)
    parser.set_defaults(run=run)


def _add_choice(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("who races")
    group.add_argument("--contenders", nargs="+", default=[], metavar="NAME", help="names, or how several begin")
    group.add_argument(
        "--contender", action="append", default=[], metavar="MODULE:FUNCTION",
        help="a function of a Task that gives batches (images, targets); may be given again",
    )  # fmt: skip
    group.add_argument("--mixing", nargs="+", default=[], choices=get_args(Mixing), help="only those that mix so")
    group.add_argument("--list", action="store_true", help="list the contenders that there are, and end")


def _add_measuring(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("how it is measured")
    group.add_argument("--batch-size", type=int, default=256, metavar="N", help="(default: %(default)s)")
    group.add_argument("--workers", type=int, metavar="N", help="processes or threads of each (default: the CPUs)")
    group.add_argument("--repeats", type=int, default=REPEATS, metavar="N", help="rounds (default: %(default)s)")
    group.add_argument("--seconds", type=float, default=SECONDS, metavar="S", help="of a turn (default: %(default)s)")
    group.add_argument("--size", type=int, nargs=2, metavar=("H", "W"), help="resize the images")
    group.add_argument("--device", default="cpu", metavar="D", help="cpu or cuda (default: %(default)s)")
    group.add_argument("--model", choices=MODELS, help="train it too: alone, and on each loader")
    group.add_argument("--classes", type=int, nargs="+", default=[], metavar="C", help="race again on so many classes")
    group.add_argument("--batch-sizes", type=int, nargs="+", default=[], metavar="N", help="race again in such batches")
    group.add_argument(
        "--widest", type=float, default=TOO_WIDE, metavar="SHARE",
        help="an interval that reaches farther from its median is too noisy (default: %(default)s)",
    )  # fmt: skip
    group.add_argument(
        "--timeout", type=float, default=TIMEOUT, metavar="S",
        help="stop a contender that gives no batch for so many seconds (default: %(default)s)",
    )  # fmt: skip
    group.add_argument(
        "--work", type=Path, default=Path("runs/bench"), help="for others' formats (default: %(default)s)"
    )


def _add_outputs(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("what comes out")
    group.add_argument("--json", type=Path, metavar="OUT", help="write all raw numbers")
    group.add_argument("--plot", type=Path, metavar="OUT.png", help="draw them")
    group.add_argument(
        "--self-test", action="store_true", help="race one against itself and a planted slowdown; exit 1"
    )
    group.add_argument("--compare", type=Path, nargs=2, metavar=("A", "B"), help="two --json files; 1 on a regression")
    group.add_argument("--bound", type=float, default=0.05, metavar="SHARE", help="of --compare (default: %(default)s)")
    group.add_argument("--render", type=Path, nargs="+", metavar="FILE", help="print --json files as Markdown")
    group.add_argument("--into", type=Path, metavar="PAGE.md", help="make the page's bench blocks anew")


def run(arguments: argparse.Namespace) -> int:
    from .commands import run  # torchvision, scipy: not for the other verbs

    return run(arguments)
