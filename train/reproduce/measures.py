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

AUTOATTACK = "autoattack.json"  # of a run: the counts so far
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


def run_autoattack(run: SavedRun, loader: FDTLoader, asked: AutoAttack, kept: Path, seed: int = 0) -> None:
    """The standard version on the first test samples at each radius; the counts are left in `kept`.

    "correct" counts, at each radius, the images that are right clean and after each of its attacks. The attack goes on
    from what `kept` has of these weights, samples, radii and batches; what is there of more images stays.
    """
    bounds, levels = PixelBounds.from_normalization(loader.mean, loader.std), sorted(asked.grey_levels)
    batch_size, num_images = loader.batch_size, asked.num_images
    made_from = {**run.made_from(loader), "batch_size": batch_size, "grey_levels": levels, "seed": seed}
    content = _counts_so_far(kept, made_from)
    done, seen = content["num_images"], 0
    with tqdm(desc=f"AutoAttack on {run.name}", total=num_images, initial=min(done, num_images), unit="image") as bar:
        for images, labels in first_samples(loader, num_images):
            seen += len(labels)
            if seen <= done:
                continue
            start = time.perf_counter()
            target = Target(run.model, images, labels, bounds, batch_size, seed)
            found = [_radius(target, level, len(loader.classes)) for level in levels]
            radii = [_sum(a, b) for a, b in zip(content["radii"], found, strict=True)] if done else found
            done, seconds = seen, content["seconds"] + time.perf_counter() - start
            content = {"made_from": made_from, "num_images": done, "seconds": seconds, "radii": radii}
            write_json(kept, content)
            bar.update(len(labels))


def _counts_so_far(kept: Path, made_from: Mapping[str, Any]) -> dict[str, Any]:
    if kept.exists():
        content = read_json(kept)
        if content.get("made_from") == made_from:
            return dict(content)
        print(f"{kept} is of other weights, samples or settings: attacking again", file=sys.stderr)
    return {"num_images": 0, "seconds": 0.0, "radii": []}


def _radius(target: Target, grey_levels: float, num_classes: int) -> dict[str, Any]:
    """How many of the images are right, clean and after each attack on what the ones before have left."""
    eps = grey_levels * target.span / DEPTH
    right, stages = answers_right(target.model, target, target.x), AutoAttackStages(target, eps, num_classes)
    correct = {"clean": int(right.sum())}
    for stage in stages.stages():
        right = stages.survivors(stage, right)
        correct[stage] = int(right.sum())
    return {"grey_levels": grey_levels, "eps": eps, "correct": correct}


def _sum(a: Mapping[str, Any], b: Mapping[str, Any]) -> dict[str, Any]:
    """Of the same radius on other images."""
    return {**a, "correct": {stage: count + b["correct"][stage] for stage, count in a["correct"].items()}}


def autoattacks_of(run: Path, training: Mapping[str, Any]) -> list[dict[str, Any]]:
    """What RUN/autoattack.json and RUN/checks.json (of `python -m train checks`) have found, by rising radius.

    -> {"accuracy", "num_images", "eps" in input units, "masked": whether any of the checks shows masked gradients, None
    without checks, "weights": their sha256}. training is results.json. ValueError for figures of other weights than
    the final ones, or of other samples than the test shards.
    """
    found = {each["eps"]: each for path in (AUTOATTACK, CHECKS) for each in _found(run / path, training)}
    return [found[eps] for eps in sorted(found)]


def _found(path: Path, training: Mapping[str, Any]) -> list[dict[str, Any]]:
    if not path.exists():
        return []
    content = read_json(path)
    try:
        made_from = {name: content["made_from"][name] for name in ("weights", "shards")}
        _check_made_from(path, made_from, training)
        each = {"num_images": content["num_images"], "weights": made_from["weights"]}
        if path.name == AUTOATTACK:
            counts = [(radius["eps"], radius["correct"][LAST_STAGE]) for radius in content["radii"]]
            figures, masked = [(eps, count / each["num_images"]) for eps, count in counts], None
        else:
            attacks = [check for check in content["checks"] if check["name"] == "AutoAttack"]
            figures, masked = [(check["eps"], check["figures"][LAST_STAGE]) for check in attacks], content["masked"]
        return [{"accuracy": share, "eps": eps, "masked": masked, **each} for eps, share in figures]
    except (KeyError, TypeError) as error:
        raise ValueError(f"{path} holds no figures of AutoAttack that can be read ({error}): make it again") from error


def _check_made_from(path: Path, found: Mapping[str, Any], training: Mapping[str, Any]) -> None:
    expected = {"weights": training["weights"], "shards": training["shards"]["test"]}
    if found != expected:
        raise ValueError(
            f"{path} is of other weights or other samples ({found}) than the run's final ones and its test shards "
            f"({expected}): make it again without --weights and --data, or move it away"
        )
