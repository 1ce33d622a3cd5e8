"""What a command will take, said before it starts: hours by a few steps on this machine, GB of disk and memory."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median

import torch
from torch import nn

from fdt_pipeline.shards import Manifest, read_manifest
from train.attack import PixelBounds
from train.recipes import Recipe
from train.reproduce.paper import Row
from train.reproduce.running import BATCH_SIZE, Runner, in_order
from train.reproduce.settings import recipe_of
from train.robustness import evaluate_robustness
from train.setup import make_loss, make_model, train_folder
from train.setup import test_folder as folder_of_tests
from train.step import TrainStep, make_optimizer, make_scaler

WARM_UP, TIMED = 2, 5  # batches
COPIES_OF_WEIGHTS = 3  # checkpoint.pt has them and their momentum, best.pt has them
# Passes forward and back an image and radius: APGD-CE 100, then APGD-T and FAB-T 9 x 100 each and Square 5,000 forward,
# on the half of the images that is left.
PASSES_OF_AUTOATTACK = 2000


@dataclass(frozen=True)
class NetworkCost:
    """Seconds of a training step, and of a pass forward and back through a batch of `attack_batch` images; bytes."""

    step: float
    attack_pass: float
    attack_batch: int
    weights: int


@dataclass(frozen=True)
class Cost:
    """Of what is left to run."""

    num_runs: int
    hours: float
    disk: float
    memory: float

    def __str__(self) -> str:
        hours = f"{math.ceil(60 * self.hours)} min" if self.hours < 1 else f"{self.hours:.1f} hours"
        return (
            f"{self.num_runs} run{'s' * (self.num_runs > 1)} to train and attack: about {hours} at the rate of this "
            f"machine as it is now, {self.disk / 1e9:.2g} GB of disk, and {self.memory / 1e9:.2g} GB of memory for "
            "the images"
        )


def cost_of_rows(
    runner: Runner, rows: Sequence[Row], seeds_of: Callable[[str], Sequence[int]], missing: Mapping[str, str]
) -> Cost | None:
    """Of the rows and seeds that have no record yet; None where all have one."""
    left = [(row, seed) for row, seed in in_order(rows, seeds_of, missing) if not runner.record_of(row, seed).exists()]
    if not left:
        return None
    networks: dict[tuple[object, ...], NetworkCost] = {}
    seconds, disk, memory = 0.0, 0.0, 0.0
    for row, seed in left:
        folder, recipe = runner.folder_of(row.dataset), recipe_of(row, runner.settings, seed)
        train, test = _manifests(folder)
        key = (row.dataset, recipe.model, recipe.stem, recipe.tensor_norm, recipe.norm, recipe.batch_size)
        if key not in networks:
            networks[key] = measure_network(recipe, train, runner.device, runner.mixed)
        seconds += _seconds(runner, recipe, networks[key], train, test)
        disk += COPIES_OF_WEIGHTS * networks[key].weights
        memory = max(memory, sum(_bytes(manifest) for manifest in (train, test)))
    return Cost(len(left), seconds / 3600, disk, memory)


def _manifests(folder: Path) -> tuple[Manifest, Manifest]:
    tests = folder_of_tests(folder)
    train = read_manifest(train_folder(folder))
    return train, read_manifest(tests) if tests else train


def _bytes(manifest: Manifest) -> int:
    height, width, channels = _shape(manifest)
    return manifest.num_samples * height * width * channels


def _shape(manifest: Manifest) -> tuple[int, int, int]:
    if manifest.shape is None:
        raise ValueError("the images of a table have one size, these differ: shard them again at one size")
    return manifest.shape


def _seconds(runner: Runner, recipe: Recipe, cost: NetworkCost, train: Manifest, test: Manifest) -> float:
    """Training, its evaluations (a third of a pass each), the attack, and AutoAttack."""
    settings, steps = runner.settings, recipe.epochs * (train.num_samples // recipe.batch_size)
    passes = recipe.epochs * test.num_samples / 3
    passes += (settings.attack_images or test.num_samples) * settings.attack_steps * len(settings.eps_values)
    if runner.autoattack:
        passes += runner.autoattack.num_images * len(runner.autoattack.grey_levels) * PASSES_OF_AUTOATTACK
    return steps * cost.step + passes / cost.attack_batch * cost.attack_pass


def measure_network(recipe: Recipe, manifest: Manifest, device: torch.device, mixed: bool) -> NetworkCost:
    """On random images: medians, after a warm-up."""
    height, width, stored = _shape(manifest)
    channels, num_classes, batch = recipe.channels or stored, len(manifest.classes), BATCH_SIZE[device.type]
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        model = make_model(recipe.to_dict(), num_classes, channels, device)
        x = 0.9 * (torch.rand(max(batch, recipe.batch_size), channels, height, width, device=device) - 0.5)
    x = x.to(memory_format=torch.channels_last)
    labels = torch.arange(len(x), device=device) % num_classes
    targets = nn.functional.one_hot(labels, num_classes).float()
    optimizer = make_optimizer(model, 0.0, recipe.momentum, recipe.weight_decay, device)  # its weights stay finite
    step = TrainStep(model.train(), make_loss(recipe), optimizer, make_scaler(device), device, False, mixed)
    bounds = PixelBounds.from_normalization([117.0], 256.0)

    def train() -> object:
        return step(x[: recipe.batch_size], targets[: recipe.batch_size])

    def attack() -> object:
        return evaluate_robustness(model.eval(), x[:batch], labels[:batch], bounds, (0.01,), steps=1)

    step_seconds = median(_timed(train, device))
    # An attack of one step evaluates before and after it: two passes forward, one back.
    pass_seconds = median(_timed(attack, device)) * 3 / 4
    weights = sum(value.numel() * value.element_size() for value in model.state_dict().values())
    return NetworkCost(step_seconds, pass_seconds, batch, weights)


def _timed(run: Callable[[], object], device: torch.device) -> Iterator[float]:
    """Seconds of each of TIMED calls."""
    for number in range(WARM_UP + TIMED):
        start = time.perf_counter()
        run()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        if number >= WARM_UP:
            yield time.perf_counter() - start
