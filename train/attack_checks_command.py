"""`python -m train checks`: is a trained run's robustness real, or does it hide from the attack?"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from torch import nn
from tqdm import tqdm

from fdt_pipeline import FDTLoader
from train.attack_checks import Target
from train.attack_checks_autoattack import import_autoattack
from train.attack_checks_options import NUM_IMAGES
from train.attack_checks_run import Settings, run_checks
from train.environment import hardware, versions
from train.files import write_json
from train.robustness_command import prepare_json
from train.saved_run import SavedRun, first_samples, open_run
from train.setup import pick_device
from train.threat_model import PixelBounds


def checks_of_run(arguments: argparse.Namespace) -> str:
    """-> the last lines; each check is printed as it is done. ValueError as from `robustness`."""
    import_autoattack()
    device = pick_device(arguments.device)
    settings = Settings(
        arguments.eps,
        arguments.steps,
        arguments.restarts,
        arguments.queries,
        None if arguments.no_autoattack else arguments.grey_levels,
    )
    if arguments.json:
        prepare_json(arguments.json)
    run = open_run(arguments.run_folder, device, arguments.weights)
    plain = _plain_model(arguments.plain, run, device) if arguments.plain else None
    loader = run.test_loader(arguments.data, arguments.batch_size)
    with tqdm(desc=f"checks of {run.name}", unit="check") as bar:

        def tell(text: str) -> None:
            tqdm.write(f"{text}\n")
            bar.update()

        report = run_checks(_target(run, loader, arguments), settings, plain, tell)
    if arguments.json:
        content = {
            "run": str(arguments.run_folder),
            "weights": arguments.weights,
            "made_from": run.made_from(loader),
            "epoch": run.epoch,
            "recipe": run.config["recipe"],
            "settings": vars(settings),
            "plain": str(arguments.plain) if arguments.plain else None,
            **report.to_dict(),
            "hardware": hardware(device),
            "versions": {**versions(), "pyautoattack": import_autoattack().__version__},
        }
        write_json(arguments.json, content)
    return report.summary()


def _target(run: SavedRun, loader: FDTLoader, arguments: argparse.Namespace) -> Target:
    count = min(NUM_IMAGES, loader.num_samples) if arguments.images is None else arguments.images
    parts = list(first_samples(loader, count))
    images, labels = (torch.cat(field) for field in zip(*parts, strict=True))
    bounds = PixelBounds.from_normalization(loader.mean, loader.std)
    return Target(run.model, images, labels, bounds, arguments.batch_size, arguments.seed)


def _plain_model(folder: Path, run: SavedRun, device: torch.device) -> nn.Module:
    plain = open_run(folder, device)
    for name in ("classes", "in_channels"):
        if plain.config[name] != run.config[name]:
            raise ValueError(f"{folder} has other {name} than {run.name}: --plain takes a run on the same data")
    return plain.model
