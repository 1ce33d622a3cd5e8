"""`python -m train robustness`: attack trained runs, print the table, write the counts."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from fdt_pipeline import FDTLoader
from fdt_pipeline.storage.atomic import atomic_file
from train.environment import hardware, versions
from train.files import write_json
from train.robustness import Robustness, format_table
from train.saved_run import SavedRun, attack_run, open_run
from train.setup import pick_device


def robustness_of_runs(arguments: argparse.Namespace) -> str:
    """-> the table. ValueError for a folder that holds no run, or eps, steps or images out of range."""
    device = pick_device(arguments.device)
    if arguments.json:
        prepare_json(arguments.json)
    runs = [open_run(folder, device, arguments.weights) for folder in arguments.runs]
    loaders = [run.test_loader(arguments.data, arguments.batch_size) for run in runs]
    rows: dict[str, Robustness] = {}
    names = _row_names(runs, arguments.runs)
    for run, loader, name in zip(runs, loaders, names, strict=True):
        rows[name] = attack_run(
            run, loader, arguments.eps, arguments.steps, not arguments.no_clip, arguments.images, arguments.precision
        )
        if arguments.json:  # after every run, so that an interruption loses one at most
            write_json(arguments.json, _report(arguments, rows, runs, loaders, device))
    return format_table(rows)


def _row_names(runs: Sequence[SavedRun], folders: Sequence[Path]) -> list[str]:
    """The recipe's name, with the folder where several runs are of one recipe."""
    if len({folder.resolve() for folder in folders}) < len(folders):
        raise ValueError("a run was given twice: name each folder once")
    recipes = [run.name for run in runs]
    return [
        name if recipes.count(name) == 1 else f"{name} ({folder})"
        for name, folder in zip(recipes, folders, strict=True)
    ]


def prepare_json(path: Path) -> None:
    """OSError now, rather than after an hour of attacks, if the file cannot be written."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_file(path.with_name(f"{path.name}.try")):
        pass
    path.with_name(f"{path.name}.try").unlink()


def _report(
    arguments: argparse.Namespace,
    rows: dict[str, Robustness],
    runs: list[SavedRun],
    loaders: list[FDTLoader],
    device: torch.device,
) -> dict[str, Any]:
    models = {
        name: {
            "run": str(folder),
            "made_from": run.made_from(loader),
            "epoch": run.epoch,
            "recipe": run.config["recipe"],
            **row.to_dict(),
        }
        for (name, row), run, loader, folder in zip(rows.items(), runs, loaders, arguments.runs, strict=False)
    }
    return {"weights": arguments.weights, "models": models, "hardware": hardware(device), "versions": versions()}
