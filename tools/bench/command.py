"""The verb `bench`: how many images a second, what mixing costs, and how others compare."""

from __future__ import annotations

import argparse
import json
from dataclasses import fields
from pathlib import Path
from typing import Any

from fdt_pipeline.cli import verb_parser
from fdt_pipeline.machine import available_cpus
from fdt_pipeline.storage.atomic import atomic_file

from .task import MIXING, MODELS, TIMEOUT

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
    option = parser.add_argument_group("who races").add_argument
    option("--contenders", nargs="+", default=[], metavar="NAME", help="names, or how several begin")
    own_help = "a function of a Task that gives batches (images, targets); may be given again"
    option("--contender", action="append", default=[], metavar="MODULE:FUNCTION", help=own_help)
    option("--mixing", nargs="+", default=[], choices=tuple(MIXING), help="only those that mix so")
    option("--list", action="store_true", help="list the contenders that there are, and end")

    option = parser.add_argument_group("how it is measured").add_argument
    default = "(default: %(default)s)"
    option("--batch-size", type=int, default=256, metavar="N", help=default)
    workers_help = "processes or threads of each (default: the CPUs)"
    option("--workers", type=int, default=available_cpus(), metavar="N", help=workers_help)
    option("--repeats", type=int, default=REPEATS, metavar="N", help=f"rounds {default}")
    option("--seconds", type=float, default=SECONDS, metavar="S", help=f"of a turn {default}")
    option("--size", type=int, nargs=2, metavar=("H", "W"), help="resize the images, whatever their proportions")
    crop_help = "random resized crops to N x N, flipped, instead of images that are shifted and flipped"
    option("--crop", type=int, metavar="N", help=crop_help)
    option("--step", type=float, metavar="MS", help="wait MS milliseconds after each batch, as if a GPU trained on it")
    option("--device", default="cpu", metavar="D", help=f"cpu or cuda {default}")
    option("--model", choices=MODELS, help="train it too: alone, and on each loader")
    classes_help = "race again on the same images in C classes"
    option("--classes", type=int, nargs="+", default=[], metavar="C", help=classes_help)
    option("--batch-sizes", type=int, nargs="+", default=[], metavar="N", help="race again in batches of N")
    widest_help = f"an interval that reaches farther from its median is too noisy {default}"
    option("--widest", type=float, default=0.25, metavar="SHARE", help=widest_help)
    timeout_help = f"stop a contender that gives no batch for S seconds {default}"
    option("--timeout", type=float, default=TIMEOUT, metavar="S", help=timeout_help)
    option("--work", type=Path, default=Path("runs/bench"), help=f"for others' formats {default}")

    option = parser.add_argument_group("what comes out").add_argument
    option("--json", type=Path, metavar="OUT", help="write all raw numbers")
    option("--plot", type=Path, metavar="OUT.png", help="draw them")
    option("--compare", type=Path, nargs=2, metavar=("A", "B"), help="two --json files; 1 on a regression")
    option("--bound", type=float, default=0.05, metavar="SHARE", help=f"of --compare {default}")
    option("--summary", type=Path, nargs="+", metavar="FILE", help="print --json files as the front page's table")
    option("--render", type=Path, nargs="+", metavar="FILE", help="print --json files as Markdown")
    parser.set_defaults(run=_run)


def _run(arguments: argparse.Namespace) -> int:
    if arguments.list:
        from .contenders import ENTRIES

        width = max(len(entry.name) for entry in ENTRIES)
        for entry in ENTRIES:
            print(f"{entry.name:{width}}  {MIXING[entry.mixing]:16}  {entry.note}".rstrip())
        return 0
    if arguments.compare:
        from .report import compare, describe_changes, lost
        from .results import read_results

        before, after = map(read_results, arguments.compare)
        changes = compare(before, after)
        print("\n".join(describe_changes(before, after, changes, arguments.bound)))
        slower = any(change.verdict(arguments.bound) == "regression" for change in changes)
        return 1 if slower or lost(before, after) else 0
    if arguments.summary:
        from .summary import summary

        print(summary(list(map(str, arguments.summary))), end="")
        return 0
    if arguments.render:
        from .report import rendered

        print(rendered(list(map(str, arguments.render))), end="")
        return 0
    if arguments.shards is None:
        raise ValueError("expected SHARDS, a folder of one set of shards")
    return _bench(arguments)


def _bench(arguments: argparse.Namespace) -> int:
    """Race, print, and write what was asked for; 1 where a contender was refused or failed."""
    from .contenders import choose  # torch, torchvision: not for the other verbs
    from .race import Bench, Options
    from .report import report

    asked = {field.name: getattr(arguments, field.name) for field in fields(Options)}
    asked["contenders"] = choose(arguments.contenders, arguments.contender, arguments.mixing)
    asked["size"] = arguments.size and tuple(arguments.size)
    results = Bench(Options(**asked)).run(["python", "-m", "tools", *arguments.argv])
    if arguments.json:
        arguments.json.parent.mkdir(parents=True, exist_ok=True)
        with atomic_file(arguments.json) as file:
            file.write((json.dumps(results, indent=1) + "\n").encode("ascii"))
    print("\n".join(report(results)))
    if arguments.plot:
        from .plot import draw

        arguments.plot.parent.mkdir(parents=True, exist_ok=True)
        draw(results, arguments.plot)
    return 1 if any(one["status"] in ("refused", "failed") for one in results["contenders"]) else 0
