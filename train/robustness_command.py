"""`python -m train robustness`: attack trained runs, print the table, write the counts."""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from tqdm import tqdm

from train.environment import hardware, versions
from train.files import write_json
from train.robustness import Robustness, format_table
from train.saved_run import SavedRun, attack_run, open_run
from train.setup import pick_device


def robustness_of_runs(arguments: argparse.Namespace) -> str:
    """-> the table. ValueError for a folder that holds no run, or eps, steps or images out of range."""
    device = pick_device(arguments.device)
    rows: dict[str, Robustness] = {}
    epochs: dict[str, int] = {}
    for folder in arguments.runs:
        run = open_run(folder, device, arguments.weights)
        name = _name(run, folder, rows)
        rows[name], epochs[name] = _attack(run, arguments), run.epoch
    if arguments.json:
        _write(arguments.json, arguments, rows, epochs, device)
    return format_table(rows)


def _name(run: SavedRun, folder: Path, taken: dict[str, Robustness]) -> str:
    return f"{run.name} ({folder})" if run.name in taken else run.name


def _attack(run: SavedRun, arguments: argparse.Namespace) -> Robustness:
    loader = run.test_loader(arguments.data, arguments.batch_size)
    gradients = 2 if run.config["recipe"]["tensor_norm"] else 1
    images = loader.num_samples if arguments.images is None else arguments.images
    total = images * arguments.steps * len(arguments.eps) * gradients
    with tqdm(total=total, desc=f"attack {run.name}", unit="image-step", unit_scale=True) as bar:
        return attack_run(
            run, loader, tuple(arguments.eps), arguments.steps, not arguments.no_clip, arguments.images, bar.update
        )


def _write(
    path: Path, arguments: argparse.Namespace, rows: dict[str, Robustness], epochs: dict[str, int], device: torch.device
) -> None:
    models = {name: {"epoch": epochs[name], **row.to_dict()} for name, row in rows.items()}
    path.parent.mkdir(parents=True, exist_ok=True)
    write_json(
        path,
        {"weights": arguments.weights, "models": models, "hardware": hardware(device), "versions": versions()},
    )
