"""Train on shards with or without FDT and TN, and measure robustness.

    python -m train                                     the demo: two models and their robustness table, in minutes
    python -m train fit --recipe resnet18_tn_fdt --data shards/cifar10 --out runs/c10
    python -m train robustness runs/c10 --eps 0.1 0.01 --json robustness.json
    python -m train checks runs/c10 --json runs/c10/checks.json
    python -m train export runs/c10 --out exported/c10
    python -m train reproduce table1 --data shards --out runs/table1
    python -m train sweep --data shards/cifar10 --out runs/sweep

Exit status: 0 fine, 1 training failed, 2 bad input, 130 interrupted (the same command goes on; fit with --resume).
--debug after the verb shows the traceback of an error.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from pathlib import Path
from pkgutil import resolve_name

try:
    from fdt_pipeline.cli import add_debug, run_verb
    from train.recipes import CONTROLS, RECIPES
    from train.reproduce.command import (
        INTERRUPTED,
        REPRODUCE_HELP,
        SWEEP_HELP,
        add_reproduce,
        add_sweep,
    )
except KeyboardInterrupt:  # they take seconds, and a traceback says nothing of use
    sys.exit(130)


def main(argv: list[str] | None = None) -> int:
    argv = sys.argv[1:] if argv is None else argv
    if not argv or (argv[0].startswith("-") and argv[0] not in ("-h", "--help")):
        argv = ["demo", *argv]
    raw = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(prog="python -m train", description=__doc__, formatter_class=raw)
    verbs = parser.add_subparsers(metavar="VERB", required=True)
    for name, add_options, summary, description, run, interrupted in VERBS:
        verb = verbs.add_parser(name, help=summary, description=description, formatter_class=raw)
        add_options(verb)
        verb.set_defaults(run=run, interrupted=interrupted)
    add_debug(verbs)
    return run_verb(_run, parser.parse_args(argv), {RuntimeError: 1, FloatingPointError: 1})


def _run(arguments: argparse.Namespace) -> int:
    """What the verb's function returns: an exit code, or a text to print."""
    from fdt_pipeline.loader.order import find_ranks

    world_size = find_ranks(None, None).world_size
    if world_size > 1 and not arguments.run.endswith(":_fit"):
        raise ValueError(f"this is one of {world_size} processes: torchrun is for `fit`, run all else without it")
    found = resolve_name(arguments.run)(arguments)  # imported here, as torch takes seconds
    if isinstance(found, int):
        return found
    print(found)
    return 0


def _device_option(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--device", choices=("cpu", "cuda"), help="default: cuda where there is a GPU")


def _weights_option(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--weights", choices=("final", "best"), default="final", help="default: %(default)s")


DEMO_HELP = """Shard the Fashion-MNIST subset that comes with the code, train plain and TN + FDT, attack both.

    python -m train demo --out runs/demo

About two minutes on two cores. Leaves results.json, table.md, robustness.png, batch.png and the logs in --out.
"""


def _demo_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--out", type=Path, default=Path("runs/demo"), help="folder of the results (default: %(default)s)"
    )
    parser.add_argument(
        "--quick", action="store_true", help="one epoch and a short attack: proves the path, no numbers"
    )
    parser.add_argument("--seed", type=int, default=0, help="of shards, weights and mixing (default: %(default)s)")
    _device_option(parser)


def _demo(arguments: argparse.Namespace) -> str:
    from dataclasses import replace

    from train.demo import QUICK, Settings, run_demo

    settings = replace(QUICK if arguments.quick else Settings(), seed=arguments.seed)
    return run_demo(arguments.out, settings, arguments.device)


FIT_HELP = f"""Train one recipe on DATA/train, with the accuracy on DATA/test after every epoch.

    fdt-pipeline shard cifar-10-batches-bin shards/cifar10
    python -m train fit --recipe resnet18_tn_fdt --data shards/cifar10 --out runs/c10
    python -m train fit --recipe resnet18_tn_fdt --data shards/cifar10 --out runs/c10 --resume

Recipes are MODEL_COLUMN, columns as in the paper's Table 1 (plain, ov, fdt, tn, tn_fdt):
{chr(10).join("    " + " ".join(RECIPES[i : i + 5]) for i in range(0, len(RECIPES), 5))}

In place of COLUMN, controls that separate its causes (recipes.py says what each is):
    {" ".join(CONTROLS)}

A network of your own: --model MODULE:FUNCTION, and --recipe is a COLUMN or a control alone, with the paper's schedule.

    python -m train fit --model my_networks:vgg --recipe tn_fdt --data shards/cifar10 --out runs/vgg

MODULE is imported from the current folder or PYTHONPATH. FUNCTION(num_classes=..., in_channels=...) returns an
nn.Module: images f32[n in_channels h w] -> logits f32[n num_classes]. Recipes with TN put it after every ReLU.
"""


def _fit_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--recipe", required=True, metavar="NAME", help="one of the recipes above")
    parser.add_argument("--model", metavar="MODULE:FUNCTION", help="what makes a network of your own (see above)")
    parser.add_argument(
        "--data", type=Path, required=True, metavar="SHARDS", help="folder with train/ and test/ shards"
    )
    parser.add_argument("--out", type=Path, required=True, metavar="RUN", help="folder of the run")
    parser.add_argument("--resume", action="store_true", help="go on with the run in --out, if there is one")
    for flag, kind, text in (
        ("--epochs", int, "default: the recipe's; learning-rate drops keep their share of the run"),
        ("--max-steps", int, "stop after so many optimizer steps"),
        ("--batch-size", int, "default: the recipe's, 100"),
        ("--lr", float, "default: the recipe's, 0.1"),
        ("--seed", int, "of weights, order and mixing (default: 0)"),
        ("--stem", str, "cifar, cifar-pool or imagenet (ResNets; default: cifar)"),
    ):
        parser.add_argument(flag, type=kind, help=text)
    parser.add_argument(
        "--size", type=int, nargs=2, metavar=("H", "W"), help="stretch images to it, where they differ in size"
    )
    parser.add_argument("--no-augment", action="store_true", help="no shift and flip (the paper's choice for SVHN)")
    parser.add_argument(
        "--compile",
        action=argparse.BooleanOptionalAction,
        help="torch.compile, in one process (default: long runs on a GPU)",
    )
    parser.add_argument("--mixed-precision", action="store_true", help="bfloat16 on a CPU too (a GPU always takes it)")
    _device_option(parser)


def _fit(arguments: argparse.Namespace) -> int | str:
    from dataclasses import replace

    from train.ddp import is_first_rank
    from train.recipes import make_recipe
    from train.trainer import fit

    names = ("model", "epochs", "max_steps", "batch_size", "lr", "seed", "stem")
    changes = {name: getattr(arguments, name) for name in names}
    recipe = make_recipe(arguments.recipe, **changes, size=tuple(arguments.size) if arguments.size else None)
    recipe = replace(recipe, augment=None) if arguments.no_augment else recipe
    results = fit(
        recipe,
        arguments.data,
        arguments.out,
        arguments.resume,
        arguments.device,
        compile_it=arguments.compile,
        mixed=arguments.mixed_precision,
    )
    if not is_first_rank():
        return 0
    final, best = results["final"], results["best"]
    if final["accuracy"] is None:
        return f"{recipe.name}: {results['steps']} steps; no test shards under {arguments.data}, so no accuracy"
    return (
        f"{recipe.name}: {results['steps']} steps, {results['seconds']} s\n"
        f"test accuracy: final {100 * final['accuracy']:.2f} % (epoch {final['epoch']}), "
        f"best {100 * best['accuracy']:.2f} % (epoch {best['epoch']}, chosen on the test set)"
    )


ROBUSTNESS_HELP = """Attack a trained run with PGD (Eq. 6) and print its row of the table, with both TN gradients.

    python -m train robustness runs/c10
    python -m train robustness runs/c10 --eps 0.1 0.01 --images 1000 --json robustness.json

eps is in the model's input units, (pixel - mean) / 256: 0.1 is 25.6 grey levels.
"""


def _saved_run_options(parser: argparse.ArgumentParser) -> None:
    """What every attack on a saved run has."""
    parser.add_argument("--batch-size", type=int, default=100, help="default: %(default)s")
    _weights_option(parser)
    parser.add_argument("--data", type=Path, metavar="SHARDS", help="default: where the run found them")
    parser.add_argument("--json", type=Path, metavar="F", help="write the figures, versions and hardware to F")
    _device_option(parser)


def _robustness_options(parser: argparse.ArgumentParser) -> None:
    from_paper = (0.1, 0.01, 0.001, 0.0001)
    parser.add_argument("runs", type=Path, nargs="+", metavar="RUN", help="folder(s) that fit has written")
    parser.add_argument("--eps", type=float, nargs="+", default=from_paper, help="radii (default: the paper's four)")
    parser.add_argument("--steps", type=int, default=40, help="attack steps of eps / 30 (default: %(default)s)")
    parser.add_argument("--no-clip", action="store_true", help="let the attack leave the pixel range")
    parser.add_argument("--images", type=int, help="attack the first N test samples (default: all)")
    parser.add_argument(
        "--precision", choices=("float32", "tf32"),
        help="tf32: on a GPU, behind the first layer (the default there); elsewhere the same as float32",
    )  # fmt: skip
    _saved_run_options(parser)


CHECKS_HELP = """Check that the attack finds what there is to find: a robustness that only hides the gradient is none.

    python -m train checks runs/c10 --plain runs/c10_plain --json runs/c10/checks.json

Larger radii (to eps = 1), more steps (to 200), random starts, a single step, random noise, both TN gradients, images
made against the plain run, a margin loss, Square (no gradient) and AutoAttack (8 grey levels), each with its figures
and what they say of masked gradients. Needs pip install -e ".[attacks]" beside the extras of this installation.
"""


def _checks_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("run_folder", type=Path, metavar="RUN", help="folder that fit has written")
    parser.add_argument("--plain", type=Path, metavar="RUN2", help="a plain run on the same data, to transfer from")
    parser.add_argument("--images", type=int, help="the first N test samples (default: 1,000, or all if fewer)")
    parser.add_argument(
        "--eps", type=float, help="where attacks are compared, in input units (default: where PGD halves the accuracy)"
    )
    parser.add_argument("--steps", type=int, default=40, help="of PGD (default: %(default)s)")
    parser.add_argument("--restarts", type=int, default=5, help="random starts (default: %(default)s)")
    parser.add_argument("--queries", type=int, default=1000, help="of Square alone (default: %(default)s)")
    autoattack = parser.add_mutually_exclusive_group()
    autoattack.add_argument("--grey-levels", type=float, default=8, help="AutoAttack's radius (default: %(default)s)")
    autoattack.add_argument(
        "--no-autoattack", dest="grey_levels", action="store_const", const=None, help="leave AutoAttack out"
    )
    parser.add_argument("--seed", type=int, default=0, help="of starts, noise and queries (default: %(default)s)")
    _saved_run_options(parser)


EXPORT_HELP = """Write a trained run as safetensors and ONNX, with its classes and normalization, and a model card.

    python -m train export runs/c10 --out exported/c10

TN is folded into the weights where that is exact. ONNX Runtime's logits are compared with PyTorch's before anything is
written. The card has RUN/results.json, RUN/robustness.json and RUN/checks.json, as far as they are there. Needs
pip install -e ".[export]" beside the extras of this installation.
"""


def _export_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("run_folder", type=Path, metavar="RUN", help="folder that fit has written")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder of the files")
    _weights_option(parser)


def _export(arguments: argparse.Namespace) -> str:
    from train.export import export_run

    return export_run(arguments.run_folder, arguments.out, arguments.weights)


VERBS: tuple[tuple[str, Callable[..., None], str, str, str, str], ...] = (
    # (name, what adds its options, summary, description, what runs it, what Ctrl-C prints)
    ("demo", _demo_options, "what runs without a verb, and takes the options", DEMO_HELP, f"{__name__}:_demo",
     "the same command goes on from here"),
    ("fit", _fit_options, "train one recipe on shards", FIT_HELP, f"{__name__}:_fit",
     "the same command with --resume goes on from the last whole epoch"),
    ("robustness", _robustness_options, "attack a trained run", ROBUSTNESS_HELP, "train.saved_run:robustness_of_runs",
     "the runs that are done are in the --json file, if one was given"),
    ("checks", _checks_options, "does the attack find what there is to find?", CHECKS_HELP,
     "train.attack_checks_run:checks_of_run", "nothing was written"),
    ("export", _export_options, "a trained run as safetensors and ONNX, with a model card", EXPORT_HELP,
     f"{__name__}:_export", "the same command writes all files again"),
    ("reproduce", add_reproduce, "a table of the paper beside ours", REPRODUCE_HELP,
     "train.reproduce.command:reproduce", INTERRUPTED),
    ("sweep", add_sweep, "controls that separate the causes", SWEEP_HELP, "train.reproduce.command:sweep", INTERRUPTED),
)  # fmt: skip


if __name__ == "__main__":
    sys.exit(main())
