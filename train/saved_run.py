"""Runs that have been trained, opened again: the model with its weights, its test samples, and the attack on it."""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from tqdm import tqdm

from fdt_pipeline import FDTLoader
from train.attack import PixelBounds, gradients_to_follow
from train.environment import hardware, versions
from train.files import (
    BEST,
    CHECKPOINT,
    CONFIG,
    check_same,
    fitting,
    hash_weights,
    prepare_json,
    read_checkpoint,
    read_json,
    write_json,
)
from train.precision import Precision, attack_precision
from train.robust_accuracy import Robustness, format_table
from train.robustness import EPS_VALUES, evaluate_robustness
from train.setup import make_model, output_options, pick_device, test_folder

WEIGHTS = {"final": CHECKPOINT, "best": BEST}
ROBUSTNESS = "robustness.json"  # of `python -m train robustness RUN --json RUN/robustness.json`, or of the demo
CHECKS = "checks.json"  # of `python -m train checks RUN --json RUN/checks.json`


@dataclass
class SavedRun:
    """config is config.json; epoch is the one after which the weights were taken, weights is their sha256."""

    config: dict[str, Any]
    model: nn.Module
    epoch: int
    weights: str
    device: torch.device

    @property
    def name(self) -> str:
        return str(self.config["recipe"]["name"])

    def made_from(self, loader: FDTLoader) -> dict[str, Any]:
        """What figures of this run on the loader's samples depend on, beside the attack: JSON values."""
        return {"weights": self.weights, "shards": loader.manifest.sha256}

    def described(self, folder: Path, loader: FDTLoader) -> dict[str, Any]:
        """What a file of figures says of the run: JSON values."""
        recipe = self.config["recipe"]
        return {"run": str(folder), "made_from": self.made_from(loader), "epoch": self.epoch, "recipe": recipe}

    def test_loader(self, data: Path | None = None, batch_size: int = 100) -> FDTLoader:
        """The test samples, standardized as in training. data, a folder with test/ or the test shards themselves, takes
        the place of the run's own, and may hold other samples of the same classes."""
        folder = Path(data or self.config["data"])
        tests = test_folder(folder)
        if tests is None and data is not None and (folder / "manifest.json").is_file():
            tests = folder
        if tests is None:
            raise ValueError(f"{folder} has no test shards: shard that split to {folder / 'test'}, or pass --data")
        recipe = self.config["recipe"]
        options = output_options(self.device, recipe["channels"], recipe["size"])
        loader = FDTLoader(tests, batch_size, train=False, rank=0, world_size=1, **options)  # also under torchrun
        if list(loader.classes) != self.config["classes"]:
            raise ValueError(f"{tests} has other classes than {self.name} was trained on: pass --data with its own")
        if data is None and loader.manifest.sha256 != self.config["shards"]["test"]:
            raise ValueError(
                f"{tests} has changed since {self.name} was trained: pass --data to attack it all the same"
            )
        return loader


def open_run(run: Path, device: torch.device, weights: str = "final") -> SavedRun:
    """ValueError where the folder holds no run, no checkpoint yet, or the weights of another recipe."""
    if not (run / CONFIG).is_file():
        raise ValueError(f"{run} holds no run: make one with `python -m train fit --out {run} ...`")
    config = read_json(run / CONFIG)
    with fitting(run / CONFIG):
        model = make_model(config["recipe"], len(config["classes"]), config["in_channels"], device)
    state = read_checkpoint(run / WEIGHTS[weights])
    with fitting(run / WEIGHTS[weights]):
        check_same("recipe", json.loads(json.dumps(state["recipe"])), config["recipe"])  # tuples are lists there
        model.load_state_dict(state["model"])
        epoch = state["epoch"] if weights == "best" else state["progress"]["epoch"] - 1
    return SavedRun(config, model.eval(), epoch, hash_weights(state["model"]), device)


def attack_run(
    run: SavedRun,
    loader: FDTLoader,
    eps_values: Sequence[float] = EPS_VALUES,
    steps: int = 40,
    clip_pixels: bool = True,
    num_images: int | None = None,
    precision: Precision | None = None,
    kept: Path | None = None,
) -> Robustness:
    """Eq. 6 and 7 over the first num_images test samples (default: all; shards interleave the classes), with a bar.

    The JSON file `kept` gets the counts so far and their seconds after each batch, and an attack goes on from what it
    holds of these weights, samples and settings. Counts add up, so the result is the one of an undisturbed attack.
    """
    num_images = loader.num_samples if num_images is None else num_images
    made_from = {
        **run.made_from(loader),
        "precision": attack_precision(precision, run.device.type),
        "batch_size": loader.batch_size,
        "num_images": num_images,
        "eps_values": list(eps_values),
        "steps": steps,
        "clip_pixels": clip_pixels,
    }
    whole, seconds = _counts_so_far(kept, made_from)
    done, seen = whole.num_images if whole else 0, 0
    bounds = PixelBounds.from_normalization(loader.mean, loader.std)
    each = steps * len(eps_values) * len(gradients_to_follow(run.model))
    whole_bar = {"total": num_images * each, "initial": done * each}
    with tqdm(desc=f"attack {run.name}", unit="image-step", unit_scale=True, **whole_bar) as bar:
        for images, labels in first_samples(loader, num_images):
            seen += len(labels)
            if seen <= done:
                continue
            start = time.perf_counter()
            counts = evaluate_robustness(
                run.model,
                images,
                labels,
                bounds,
                eps_values,
                steps=steps,
                clip_pixels=clip_pixels,
                precision=precision,
                progress=bar.update,
            )
            whole = whole + counts if whole else counts
            seconds += time.perf_counter() - start
            if kept:
                write_json(kept, {"made_from": made_from, "seconds": seconds, **whole.to_dict()})
    assert whole is not None  # num_images is 1 or more
    return whole


def _counts_so_far(kept: Path | None, made_from: dict[str, Any]) -> tuple[Robustness | None, float]:
    """(counts, seconds) of an attack on the same weights and samples with the same settings, if the file has any."""
    if kept is None or not kept.exists():
        return None, 0.0
    found = read_json(kept)
    if found.get("made_from") != made_from:
        print(f"{kept} is of other weights, samples or settings: attacking again", file=sys.stderr)
        return None, 0.0
    with fitting(kept):
        return Robustness.from_dict(found), found["seconds"]


def first_samples(loader: FDTLoader, num_images: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Batches that hold the loader's first num_images samples."""
    if not 1 <= num_images <= loader.num_samples:
        raise ValueError(f"the number of images must be in 1..{loader.num_samples}, got {num_images}")
    left = num_images
    for images, labels in loader:
        yield images[:left], labels[:left]
        left -= len(labels)
        if left <= 0:
            return


def robustness_of_runs(arguments: argparse.Namespace) -> str:
    """-> the table. ValueError for a folder that holds no run, or eps, steps or images out of range."""
    device = pick_device(arguments.device)
    if arguments.json:
        prepare_json(arguments.json)
    runs = [open_run(folder, device, arguments.weights) for folder in arguments.runs]
    loaders = [run.test_loader(arguments.data, arguments.batch_size) for run in runs]
    rows: dict[str, Robustness] = {}
    report = {"weights": arguments.weights, "models": {}, "hardware": hardware(device), "versions": versions()}
    for run, loader, folder, name in zip(runs, loaders, arguments.runs, _row_names(runs, arguments.runs), strict=True):
        rows[name] = attack_run(
            run, loader, arguments.eps, arguments.steps, not arguments.no_clip, arguments.images, arguments.precision
        )
        report["models"][name] = {**run.described(folder, loader), **rows[name].to_dict()}
        if arguments.json:  # after every run, so that an interruption loses one at most
            write_json(arguments.json, report)
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
