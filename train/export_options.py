"""The command line of `python -m train export`; what it does is imported when it runs."""

from __future__ import annotations

import argparse
from pathlib import Path

EXPORT_HELP = """Write a trained run as safetensors and ONNX, with its classes and normalization, and a model card.

    python -m train export runs/c10 --out exported/c10

TN is folded into the weights where that is exact. ONNX Runtime's logits are compared with PyTorch's before anything is
written. The card has RUN/results.json, RUN/robustness.json and RUN/checks.json, as far as they are there. Needs
pip install -e ".[export]" beside the extras of this installation.
"""


def add_export(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("run_folder", type=Path, metavar="RUN", help="folder that fit has written")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder of the files")
    parser.add_argument("--weights", choices=("final", "best"), default="final", help="default: %(default)s")
    parser.set_defaults(run=_export, interrupted="the same command writes all files again")


def _export(arguments: argparse.Namespace) -> int:
    from train.export import export_run

    print(export_run(arguments.run_folder, arguments.out, arguments.weights))
    return 0
