"""The command line of `python -m train checks`; what it does is imported when it runs."""

from __future__ import annotations

import argparse
from pathlib import Path

NUM_IMAGES = 1000

CHECKS_HELP = """Check that the attack finds what there is to find: a robustness that only hides the gradient is none.

    python -m train checks runs/c10 --plain runs/c10_plain --json runs/c10/checks.json

Larger radii (to eps = 1), more steps (to 200), random starts, a single step, random noise, both TN gradients, images
made against the plain run, a margin loss, Square (no gradient) and AutoAttack (8 grey levels), each with its figures
and what they say of masked gradients. Needs pip install -e ".[attacks]" beside the extras of this installation.
"""


def add_checks(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("run_folder", type=Path, metavar="RUN", help="folder that fit has written")
    parser.add_argument("--plain", type=Path, metavar="RUN2", help="a plain run on the same data, to transfer from")
    parser.add_argument(
        "--images", type=int, help=f"the first N test samples (default: {NUM_IMAGES:,}, or all if they are fewer)"
    )
    parser.add_argument(
        "--eps", type=float, help="where attacks are compared, in input units (default: where PGD halves the accuracy)"
    )
    parser.add_argument("--steps", type=int, default=40, help="of PGD (default: %(default)s)")
    parser.add_argument("--restarts", type=int, default=5, help="random starts (default: %(default)s)")
    parser.add_argument("--queries", type=int, default=1000, help="of Square alone (default: %(default)s)")
    autoattack = parser.add_mutually_exclusive_group()
    autoattack.add_argument("--grey-levels", type=float, default=8, help="AutoAttack's radius (default: %(default)s)")
    autoattack.add_argument("--no-autoattack", action="store_true", help="leave AutoAttack out")
    parser.add_argument("--batch-size", type=int, default=100, help="default: %(default)s")
    parser.add_argument("--weights", choices=("final", "best"), default="final", help="default: %(default)s")
    parser.add_argument("--seed", type=int, default=0, help="of starts, noise and queries (default: %(default)s)")
    parser.add_argument("--data", type=Path, metavar="SHARDS", help="default: where the run found them")
    parser.add_argument("--json", type=Path, metavar="F", help="write figures, versions and hardware to F")
    parser.add_argument("--device", choices=("cpu", "cuda"), help="default: cuda where there is a GPU")
    parser.set_defaults(run=_checks, interrupted="nothing was written")


def _checks(arguments: argparse.Namespace) -> int:
    from train.attack_checks_command import checks_of_run

    print(checks_of_run(arguments))
    return 0
