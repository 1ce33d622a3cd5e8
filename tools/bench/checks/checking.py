"""All checks of one contender, in a process like the one that is timed."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from fdt_pipeline.shards import read_manifest

from ..errors import RefusedError
from ..task import Contender, Entry, Task
from .agreement import check_agreement
from .epoch import exact_hashes, take_epoch
from .identity import Reference
from .law import check_law
from .sets import CheckSets

BATCHES = 8  # an epoch of a check has at least so many


def check(entry: Entry, task: Task, sets: CheckSets) -> dict[str, Any]:
    """What was seen; RefusedError with the reason for one that cheats.

    In the end it is set up for the race once, so that what it keeps in the work folder is there when it is timed.
    """
    seen = _check_sample(entry, on(sets.sample, task))
    _check_coded(entry, on(sets.coded, task))
    with _made(entry, task):
        return seen


def on(shards: Path, task: Task) -> Task:
    """The task without augmentation, on another set; batches so small that leaving out the last is no great part."""
    manifest = read_manifest(shards)
    share = manifest.num_samples // (BATCHES * max(1, task.num_workers))
    work = task.work / "check" / f"{shards.name}-files"
    work.mkdir(parents=True, exist_ok=True)
    return replace(
        task, shards=shards, manifest=manifest, work=work, pad=0, flip=False,
        batch_size=max(1, min(task.batch_size, share)),
    )  # fmt: skip


@contextmanager
def _made(entry: Entry, task: Task) -> Iterator[Contender]:
    contender = entry.make(task)
    try:
        yield contender
    finally:
        contender.close()


def _check_sample(entry: Entry, task: Task) -> dict[str, Any]:
    reference = Reference(task) if entry.mixing == "none" else None
    key = reference.key if reference else exact_hashes
    with _made(entry, task) as contender:
        epochs = [take_epoch(contender, task, entry.mixing, number, key) for number in range(2)]
    for epoch in epochs:
        if reference:
            reference.check(epoch)
    if not reference:
        check_law(epochs, entry.mixing, task.manifest.samples_per_class)
    _check_shuffled(epochs[0].keys, epochs[1].keys)
    return {"images": task.manifest.num_samples, "in two epochs": sum(len(epoch.keys) for epoch in epochs)}


def _check_shuffled(first: list[Any], second: list[Any]) -> None:
    """Every epoch has an order of its own."""
    same = [_equal(a, b) for a, b in zip(first, second, strict=False)]
    if sum(same) > len(same) / 2:
        raise RefusedError(
            f"{sum(same)} of {len(same)} images come at the same place in two epochs: it does not shuffle"
        )


def _equal(a: Any, b: Any) -> bool:
    return a == b if isinstance(a, bytes) else bool(abs(a - b).max() < 1e-3)


def _check_coded(entry: Entry, task: Task) -> None:
    with _made(entry, task) as contender:
        epoch = take_epoch(contender, task, entry.mixing, 0, exact_hashes)
    check_agreement(epoch, task.manifest.encoding)
