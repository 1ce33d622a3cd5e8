"""The verbs `reproduce` and `sweep` of `python -m train`."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from train.recipes import SMALL_MODELS

if TYPE_CHECKING:  # importing torch takes seconds, and --help does without
    from train.reproduce.paper import Row
    from train.reproduce.settings import Settings

REPRODUCE_HELP = """Train and attack the rows of a table of the paper, and print the paper's figures beside ours.

    python -m train reproduce table1 --data shards --out runs/table1 --only cifar10
    python -m train reproduce table1 --scale medium --data shards --out runs/medium
    python -m train reproduce table1 --scale small --data shards --out runs/small
    python -m train reproduce table1 --merge machine_a machine_b --out runs/both
    python -m train reproduce table1 --report --out runs/both

--data ROOT holds shards: ROOT/cifar10/{train,test}, and so cifar100, fashion-mnist and svhn. What is not there is
listed as missing. The same command goes on where it was stopped, in the middle of a run or of an attack too. Several
machines share a table by --only and --first-seed, and --merge puts their results together. Hours and GB are printed
before anything is trained.
--scale medium: all images of CIFAR-10 (three seeds) and Fashion-MNIST (one), 150 epochs, a small network.
--scale small: a small network on 5,000 images, Fashion-MNIST's from the checkout and CIFAR-10's drawn from ROOT.
PAPER.md says what the switches of the readings stand for.
"""
SWEEP_HELP = """Train and attack controls that separate the causes of FDT's and TN's effects; draw clean against robust.

    python -m train sweep --data shards/cifar10 --out runs/sweep --seeds 3
    python -m train sweep --data shards/cifar10 --out runs/sweep --scale medium --only plain fdt 'mixup*'

The paper's five columns; what people mix by (label smoothing, MixUp, CutMix, either, zeta-mixup); FDT with fewer
images, other weights, each image leading once, half of the outputs, or not in the last epochs; TN with its exact
gradient, and PONO in its place (PAPER.md). The same command goes on where it was stopped.
"""
# Thirty runs and attacks took 56 minutes on two slow cores (results/table1-small); 40 epochs would have taken 75.
SMALL_EPOCHS, SMALL_IMAGES = 25, 500
SWEEP_IMAGES = AUTOATTACK_IMAGES = 1000
MEDIUM = {"epochs": 150, "attack_images": 1000}  # the paper's epochs
SEEDS, SEEDS_OF_SWEEP = 3, 1
MEDIUM_SEEDS = {"cifar10": 3, "fashion-mnist": 1}
INTERRUPTED = "the same command goes on from the last whole epoch, or the last images attacked"


# What PAPER.md's readings switch: (option, kind or choices, help).
READINGS: tuple[tuple[str, Any, str], ...] = (
    ("--batch-size", int, "default: 100"),
    ("--lr", float, "default: 0.1"),
    ("--loss-eps", float, "Algorithm 4's threshold (default: 1e-6)"),
    ("--min-images", int, "lowest K of a superposition (default: 1)"),
    ("--max-images", int, "highest K (default: the number of classes)"),
    ("--mix-probability", float, "share of the outputs that are superpositions (default: 1)"),
    ("--anchor", ("random", "epoch"), "image 1: drawn, or each image once an epoch (default: random)"),
    ("--stem", ("cifar", "cifar-pool", "imagenet"), "of the ResNets (default: cifar)"),
    ("--tensor-norm", ("straight-through", "exact"), "TN's gradient in training (default: straight-through)"),
)


def add_reproduce(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("table", choices=("table1", "table2"), help="of the paper")
    parser.add_argument("--scale", choices=("full", "medium", "small"), default="full", help="default: %(default)s")
    parser.add_argument("--model", choices=SMALL_MODELS, help="of the medium scale (default: small32)")
    instead = parser.add_mutually_exclusive_group()
    instead.add_argument("--merge", type=Path, nargs="+", metavar="DIR", help="copy these folders' results to --out")
    only = "data sets, models, columns or DATA-MODEL-COLUMN, * for any part (default: all)"
    data = "folder with a folder of shards for each data set"
    seeds = f"{SEEDS}; for Fashion-MNIST at the medium scale {MEDIUM_SEEDS['fashion-mnist']}"
    images = f"all; {MEDIUM['attack_images']:,} at the medium scale, {SMALL_IMAGES} at the small one"
    _add_common(parser, instead, only, data, seeds, images)
    for flag, kind, text in READINGS:
        parser.add_argument(flag, **{"type" if callable(kind) else "choices": kind}, help=text)


def add_sweep(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--model", default="small", help="of the recipes (default: %(default)s)")
    parser.add_argument("--scale", choices=("medium",), help=f"{MEDIUM['epochs']} epochs")
    parser.add_argument("--no-augment", action="store_true", help="no shift and flip (the paper's choice for SVHN)")
    only, data = "columns, * for any part (default: all)", "folder with train/ and test/ shards"
    _add_common(parser, parser, only, data, f"{SEEDS_OF_SWEEP}", images="1,000, or all if they are fewer")


def _add_common(parser: Any, instead: Any, only: str, data: str, seeds: str, images: str) -> None:
    """instead: where --report goes, as it takes the place of other options there."""
    instead.add_argument("--report", action="store_true", help="make the report of --out again, and run nothing")
    for flag, options in (
        ("--data", {"type": Path, "metavar": "ROOT", "help": data}),
        ("--out", {"type": Path, "metavar": "DIR", "required": True, "help": "folder of the results"}),
        ("--only", {"nargs": "+", "metavar": "ROW", "help": only}),
        ("--seeds", {"type": int, "metavar": "N", "help": f"how many (default: {seeds})"}),
        ("--first-seed", {"type": int, "default": 0, "metavar": "S", "help": "seeds S .. S+N-1 (default: 0)"}),
        ("--epochs", {"type": int, "help": "default: the recipe's; learning-rate drops keep their share"}),
        ("--images", {"type": int, "metavar": "N", "help": f"attack the first N test images (default: {images})"}),
        ("--steps", {"type": int, "default": 40, "help": "of the attack, each eps / 30 (default: %(default)s)"}),
        ("--eps", {"type": float, "nargs": "+", "help": "radii in input units (default: the paper's four)"}),
        ("--autoattack", {"type": float, "nargs": "+", "metavar": "R", "help": "at R of 255 grey levels, too"}),
        ("--autoattack-images", {"type": int, "metavar": "N", "help": f"the first N (default: {AUTOATTACK_IMAGES:,})"}),
        ("--no-clip", {"action": "store_true", "help": "let the attack leave the pixel range"}),
        ("--retry-diverged", {"action": "store_true", "help": "train again what has diverged"}),
        ("--mixed-precision", {"action": "store_true", "help": "train in bfloat16 on a CPU too (a GPU always does)"}),
        ("--device", {"choices": ("cpu", "cuda"), "help": "default: cuda where there is a GPU"}),
    ):
        parser.add_argument(flag, **options)
    parser.set_defaults(default_of=parser.get_default)


def reproduce(arguments: argparse.Namespace) -> int:
    from train.reproduce.paper import select_rows, table_rows
    from train.reproduce.record import merge
    from train.reproduce.report import write_report
    from train.reproduce.settings import data_folder, missing_data

    out, root, scale = arguments.out, arguments.data, arguments.scale
    diverged: list[str] = []
    if arguments.merge or arguments.report:
        _refuse_options(arguments)
    if arguments.merge:
        merge(arguments.merge, out)
    elif not arguments.report:
        rows = select_rows(table_rows(arguments.table, scale, arguments.model), arguments.only)
        reasons = {row.dataset: missing_data(root, row.dataset, scale) for row in rows}
        missing = {dataset: reason for dataset, reason in reasons.items() if reason}
        if len(missing) == len(reasons):
            raise ValueError("; ".join(f"{dataset}: {reason}" for dataset, reason in missing.items()))
        of_scale = {"small": {"epochs": SMALL_EPOCHS, "attack_images": SMALL_IMAGES}, "medium": MEDIUM}
        names = [flag.removeprefix("--").replace("-", "_") for flag, *_ in READINGS]
        given = {name: getattr(arguments, name) for name in names}
        settings = _settings(arguments, of_scale.get(scale, {}), table=arguments.table, scale=scale, **given)
        defaults = MEDIUM_SEEDS if scale == "medium" else {}
        seeds_of = partial(_seeds, arguments, defaults, SEEDS)
        diverged = _run(arguments, settings, partial(data_folder, root, scale=scale, out=out), rows, seeds_of, missing)
    print(write_report(out, arguments.table), end="")
    return 1 if diverged else 0


def sweep(arguments: argparse.Namespace) -> int:
    from fdt_pipeline.shards import read_manifest
    from train.recipes import make_recipe
    from train.reproduce.paper import Row, select_rows
    from train.reproduce.report import ALL_COLUMNS, write_sweep_report

    data, model = arguments.data, arguments.model
    diverged: list[str] = []
    if arguments.report:
        _refuse_options(arguments)
    elif data is None:
        raise ValueError("expected --data SHARDS, or --report to make the report of --out again")
    else:
        num_samples = read_manifest(data / "test").num_samples
        make_recipe(f"{model}_plain")  # says which models there are
        rows = select_rows([Row(data.resolve().name, model, column) for column in ALL_COLUMNS], arguments.only)
        defaults = {**(MEDIUM if arguments.scale else {}), "attack_images": min(SWEEP_IMAGES, num_samples)}
        settings = _settings(arguments, defaults, table="sweep", augment=False if arguments.no_augment else None)
        seeds_of = partial(_seeds, arguments, {}, SEEDS_OF_SWEEP)
        diverged = _run(arguments, settings, lambda _: data, rows, seeds_of, {})
    print(write_sweep_report(arguments.out), end="")
    return 1 if diverged else 0


def _refuse_options(arguments: argparse.Namespace) -> None:
    """ValueError for options that --merge or --report would ignore."""
    taken = ("table", "out", "merge", "report", "debug")
    given = [name for name, value in vars(arguments).items() if value != arguments.default_of(name)]
    ignored = [f"--{name.replace('_', '-')}" for name in given if name not in taken]
    if ignored:
        raise ValueError(f"--merge and --report go by what was run: leave out {', '.join(ignored)}")


def _settings(arguments: argparse.Namespace, defaults: Mapping[str, Any], **given: Any) -> Settings:
    """What is not given is the default of this command, or else of Settings."""
    from train.reproduce.settings import Settings

    given |= {"epochs": arguments.epochs, "attack_images": arguments.images, "attack_steps": arguments.steps}
    given |= {"clip_pixels": not arguments.no_clip, "eps_values": tuple(arguments.eps) if arguments.eps else None}
    return Settings(**{**defaults, **{name: value for name, value in given.items() if value is not None}})


def _run(
    arguments: argparse.Namespace,
    settings: Settings,
    folder_of: Callable[[str], Path],
    rows: Sequence[Row],
    seeds_of: Callable[[str], range],
    missing: Mapping[str, str],
) -> list[str]:
    """Says what it will cost, and runs it; -> the names of the runs that diverged."""
    from train.reproduce.cost import cost_of_rows
    from train.reproduce.measures import AutoAttack
    from train.reproduce.running import Runner
    from train.setup import pick_device

    levels, images = arguments.autoattack, arguments.autoattack_images
    if images is not None and not levels:
        raise ValueError("--autoattack-images is of --autoattack R: add it, or leave both out")
    autoattack = AutoAttack(tuple(levels), AUTOATTACK_IMAGES if images is None else images) if levels else None
    how = (pick_device(arguments.device), arguments.mixed_precision, autoattack, arguments.retry_diverged)
    runner = Runner(settings, arguments.out, folder_of, *how)
    runner.plan(rows, missing)  # which says what does not fit before anything is measured
    cost = cost_of_rows(runner, rows, seeds_of, missing)
    if cost is not None:
        print(cost, file=sys.stderr)
    return runner.run_rows(rows, seeds_of, missing)


def _seeds(arguments: argparse.Namespace, defaults: Mapping[str, int], default: int, dataset: str) -> range:
    first, count = arguments.first_seed, arguments.seeds
    count = defaults.get(dataset, default) if count is None else count
    if count < 1 or first < 0:
        raise ValueError(f"expected 1 or more seeds from 0 on, got {count} from {first} on")
    return range(first, first + count)
