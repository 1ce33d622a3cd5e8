"""The attack on a trained run, a batch at a time, with the counts so far on disk: a killed attack goes on.

Several ranks attack a batch each at a time, the same batches as one process would.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Iterable, Iterator
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from train.ddp import from_each_rank, from_first_rank, is_first_rank, this_rank
from train.files import fitting, read_json, write_json
from train.full_float32 import attack_precision
from train.reproduce.settings import Settings
from train.robust_accuracy import AttackCounts, Robustness, RobustnessAtEps
from train.robustness import evaluate_robustness
from train.saved_run import first_samples, open_run
from train.threat_model import PixelBounds

PROGRESS = "attack.json"
# On a GPU 250 images of 32x32 at four radii in one batch keep ResNet-34 busy, and take some 8 GB; on a CPU a chunk is
# what a kill may lose.
BATCH_SIZE = {"cpu": 100, "cuda": 250}


def attack_in_chunks(
    run: Path, data: Path, settings: Settings, device: torch.device, show: bool
) -> tuple[Robustness, float]:
    """-> (counts, seconds); goes on with what RUN/attack.json has of these weights, samples and settings, if anything.

    Counts of batches add up, so the result is the one of an undisturbed attack.
    """
    found = from_first_rank(partial(_read_progress, run))  # the others wait here until its checkpoint is written
    saved, batch_size = open_run(run, device), BATCH_SIZE[device.type]
    loader = saved.test_loader(data, batch_size)
    num_images = loader.num_samples if settings.attack_images is None else settings.attack_images
    made_from = {
        **saved.made_from(loader),
        "precision": attack_precision(None, device.type),
        "batch_size": batch_size,
        "num_images": num_images,
        "eps_values": list(settings.eps_values),
        "steps": settings.attack_steps,
        "clip_pixels": settings.clip_pixels,
    }
    whole, seconds = _so_far(run, found, made_from)
    done = whole.num_images if whole else 0
    bounds = PixelBounds.from_normalization(loader.mean, loader.std)
    batches, ranks = _behind(done, first_samples(loader, num_images)), this_rank()
    hidden = not (show and is_first_rank())
    with tqdm(total=num_images, initial=done, desc=f"attack {saved.name}", unit="image", disable=hidden) as bar:
        while turn := list(islice(batches, ranks.world_size)):
            start = time.perf_counter()
            part = None
            if ranks.rank < len(turn):
                part = evaluate_robustness(
                    saved.model,
                    [turn[ranks.rank]],
                    bounds,
                    settings.eps_values,
                    steps=settings.attack_steps,
                    clip_pixels=settings.clip_pixels,
                    device=device,
                )
            for counts in filter(None, from_each_rank(part)):
                whole = add_counts(whole, counts) if whole else counts
            assert whole is not None  # the first rank had a batch
            seconds += time.perf_counter() - start
            if is_first_rank():
                content = {"made_from": made_from, "robustness": whole.to_dict(), "seconds": seconds}
                write_json(run / PROGRESS, content)
            bar.update(whole.num_images - bar.n)
    assert whole is not None  # num_images is 1 or more
    return whole, seconds


def _behind(done: int, batches: Iterable[tuple[Tensor, Tensor]]) -> Iterator[tuple[Tensor, Tensor]]:
    """The batches but for those of the first `done` images."""
    passed = 0
    for images, labels in batches:
        passed += len(labels)
        if passed > done:
            yield images, labels


def _read_progress(run: Path) -> dict[str, Any] | None:
    return read_json(run / PROGRESS) if (run / PROGRESS).exists() else None


def _so_far(run: Path, found: dict[str, Any] | None, made_from: dict[str, Any]) -> tuple[Robustness | None, float]:
    if found is None:
        return None, 0.0
    if found.get("made_from") != made_from:
        if is_first_rank():
            print(f"{run / PROGRESS} is of other weights, samples or settings: attacking again", file=sys.stderr)
        return None, 0.0
    with fitting(run / PROGRESS):
        return Robustness.from_dict(found["robustness"]), found["seconds"]


def add_counts(a: Robustness, b: Robustness) -> Robustness:
    """Of the same attacks on other images. ValueError where the attacks differ."""
    if _attacks(a) != _attacks(b):
        raise ValueError(f"expected counts of the attacks {_attacks(a)}, got {_attacks(b)}: delete {PROGRESS}")
    radii = tuple(_add_radius(x, y) for x, y in zip(a.radii, b.radii, strict=True))
    sums = a.num_images + b.num_images, a.num_correct + b.num_correct
    return Robustness(*sums, a.steps, a.clip_pixels, radii, a.precision)


def _attacks(robustness: Robustness) -> tuple[int, bool, str, list[tuple[float, list[str]]]]:
    return (
        robustness.steps,
        robustness.clip_pixels,
        robustness.precision,
        [(radius.eps, list(radius.attacks)) for radius in robustness.radii],
    )


def _add_radius(a: RobustnessAtEps, b: RobustnessAtEps) -> RobustnessAtEps:
    attacks = {name: _add_attack(a.attacks[name], b.attacks[name]) for name in a.attacks}
    return RobustnessAtEps(a.eps, attacks, a.correct_throughout + b.correct_throughout)


def _add_attack(a: AttackCounts, b: AttackCounts) -> AttackCounts:
    return AttackCounts(
        a.num_images + b.num_images,
        tuple(x + y for x, y in zip(a.correct, b.correct, strict=True)),
        a.correct_throughout + b.correct_throughout,
    )
