"""What is measured of a trained run beside the paper's attack: its calibration error, and AutoAttack at small radii.

AutoAttack takes as long as training does, so it goes a batch of images at a time, keeps its counts in the run's folder
after each, and goes on from there.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tqdm import tqdm

from fdt_pipeline import FDTLoader
from train.attack import PixelBounds
from train.attack_checks import Target, answers_right
from train.attack_checks_autoattack import AutoAttackStages
from train.calibration import NUM_BINS, calibration_error
from train.files import read_json, write_json
from train.saved_run import CHECKS, SavedRun, first_samples

AUTOATTACK = "autoattack"  # of a run: autoattack-R.json has the counts so far at a radius of R grey levels
LAST_STAGE = "Square"  # each of the four attacks is on what the ones before have left
DEPTH = 255  # grey levels from black to white


@dataclass(frozen=True)
class AutoAttack:
    """What is asked of it: radii in grey levels, and how many of the first test images are attacked."""

    grey_levels: tuple[float, ...]
    num_images: int

    def __post_init__(self) -> None:
        levels = self.grey_levels
        if not levels or len(set(levels)) != len(levels) or not all(0 < level <= DEPTH for level in levels):
            raise ValueError(f"expected different radii of AutoAttack in (0, 255] grey levels, got {list(levels)}")
        if self.num_images < 1:
            raise ValueError(f"expected 1 or more images for AutoAttack, got {self.num_images}")


def measure_calibration(run: SavedRun, loader: FDTLoader) -> dict[str, Any]:
    """Over every test sample: JSON values, with the sha256 of the weights."""
    error = calibration_error(run.model, loader)
    return {"error": error, "bins": NUM_BINS, "num_images": loader.num_samples, "weights": run.weights}


def run_autoattack(run: SavedRun, loader: FDTLoader, asked: AutoAttack, folder: Path, seed: int = 0) -> None:
    """The standard version on the first test samples; folder/autoattack-R.json gets the counts at radius R.

    "correct" counts the images that are right clean and after each of its attacks. An attack goes on from what is there
    of these weights, samples and batches; what is there of more images stays.
    """
    for grey_levels in sorted(asked.grey_levels):
        _run_radius(run, loader, grey_levels, asked.num_images, folder / f"{AUTOATTACK}-{grey_levels:g}.json", seed)


def _run_radius(run: SavedRun, loader: FDTLoader, grey_levels: float, num_images: int, kept: Path, seed: int) -> None:
    bounds, batch_size = PixelBounds.from_normalization(loader.mean, loader.std), loader.batch_size
    made_from = {**run.made_from(loader), "batch_size": batch_size, "grey_levels": grey_levels, "seed": seed}
    content = _counts_so_far(kept, made_from)
    done, seen = content["num_images"], 0
    bar = {"total": num_images, "initial": min(done, num_images), "unit": "image"}
    with tqdm(desc=f"AutoAttack {grey_levels:g}/255 on {run.name}", **bar) as progress:
        for images, labels in first_samples(loader, num_images):
            seen += len(labels)
            if seen <= done:
                continue
            start = time.perf_counter()
            target = Target(run.model, images, labels, bounds, batch_size, seed)
            eps = grey_levels * target.span / DEPTH
            correct, before = _correct(target, eps, len(loader.classes)), content["correct"]
            correct = {stage: count + before.get(stage, 0) for stage, count in correct.items()}
            done, seconds = seen, content["seconds"] + time.perf_counter() - start
            content = {"made_from": made_from, "eps": eps, "num_images": done, "correct": correct, "seconds": seconds}
            write_json(kept, content)
            progress.update(len(labels))


def _counts_so_far(kept: Path, made_from: Mapping[str, Any]) -> dict[str, Any]:
    if kept.exists():
        content = read_json(kept)
        if content.get("made_from") == made_from:
            return dict(content)
        print(f"{kept} is of other weights, samples or settings: attacking again", file=sys.stderr)
    return {"num_images": 0, "seconds": 0.0, "correct": {}}


def _correct(target: Target, eps: float, num_classes: int) -> dict[str, int]:
    """How many of the images are right, clean and after each attack on what the ones before have left."""
    right, stages = answers_right(target.model, target, target.x), AutoAttackStages(target, eps, num_classes)
    correct = {"clean": int(right.sum())}
    for stage in stages.stages():
        right = stages.survivors(stage, right)
        correct[stage] = int(right.sum())
    return correct


def autoattacks_of(run: Path, training: Mapping[str, Any]) -> list[dict[str, Any]]:
    """What RUN/autoattack-R.json and RUN/checks.json (of `python -m train checks`) have found, by rising radius.

    -> {"accuracy", "num_images", "eps" in input units, "masked": whether any of the checks shows masked gradients, None
    without checks, "weights": their sha256}. training is results.json. ValueError for figures of other weights than
    the final ones, or of other samples than the test shards.
    """
    paths = [*run.glob(f"{AUTOATTACK}-*.json"), *run.glob(CHECKS)]
    found = {each["eps"]: each for path in paths for each in _found(path, training)}
    return [found[eps] for eps in sorted(found)]


def _found(path: Path, training: Mapping[str, Any]) -> list[dict[str, Any]]:
    content = read_json(path)
    try:
        made_from = {name: content["made_from"][name] for name in ("weights", "shards")}
        _check_made_from(path, made_from, training)
        each = {"num_images": content["num_images"], "weights": made_from["weights"]}
        if path.name != CHECKS:
            share = content["correct"][LAST_STAGE] / each["num_images"]
            return [{"accuracy": share, "eps": content["eps"], "masked": None, **each}]
        each["masked"] = content["masked"]
        attacks = [check for check in content["checks"] if check["name"] == "AutoAttack"]
        return [{"accuracy": check["figures"][LAST_STAGE], "eps": check["eps"], **each} for check in attacks]
    except (KeyError, TypeError) as error:
        raise ValueError(f"{path} holds no figures of AutoAttack that can be read ({error}): make it again") from error


def _check_made_from(path: Path, found: Mapping[str, Any], training: Mapping[str, Any]) -> None:
    expected = {"weights": training["weights"], "shards": training["shards"]["test"]}
    if found != expected:
        raise ValueError(
            f"{path} is of other weights or other samples ({found}) than the run's final ones and its test shards "
            f"({expected}): make it again without --weights and --data, or move it away"
        )
