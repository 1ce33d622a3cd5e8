"""Train and attack the rows of a table, seed by seed, going on where it was stopped, in the middle of an attack too."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from fdt_pipeline.shards import read_manifest
from train.files import check_folder, read_json
from train.reproduce import record as records
from train.reproduce.paper import Row
from train.reproduce.record import RECORDS, record_name
from train.reproduce.settings import Settings, recipe_of
from train.saved_run import CHECKS, attack_run, open_run
from train.setup import pick_device, test_folder, train_folder
from train.step import NonFiniteLossError
from train.trainer import fit

RUNS = "runs"
ATTACK = "attack.json"  # the counts so far
# On a GPU 250 images of 32x32 at four radii in one batch keep ResNet-34 busy, and take some 8 GB; on a CPU a batch is
# what a kill may lose.
BATCH_SIZE = {"cpu": 100, "cuda": 250}
LAST_STAGE = "Square"  # AutoAttack's: each of its four attacks is on what the ones before have left


def run_rows(
    rows: Sequence[Row],
    seeds: Sequence[int],
    settings: Settings,
    missing: Mapping[str, str],
    folder_of: Callable[[str], Path],
    out: Path,
    device_name: str | None = None,
    retry_diverged: bool = False,
    mixed: bool = False,
) -> list[str]:
    """Leaves one record a row and seed in out/records; rows of data sets in `missing` (name: reason) are left out.

    A run that diverges is noted in plan.json, and the others are done all the same; it is not trained again, unless
    with retry_diverged. -> the names of those that diverged, now or before. ValueError where `out` holds results of
    other settings or other shards.
    """
    check_folder(out)
    device = pick_device(device_name)
    diverged = records.write_plan(out, settings, rows, missing)
    names = []
    for row, seed in in_order(rows, seeds, missing):
        name, data = f"{row.key} seed {seed}", folder_of(row.dataset)
        names.append(name)
        if (out / RECORDS / record_name(row, seed)).exists():
            go_on_with_record(out, row, seed, data)
            continue
        if name in diverged and not retry_diverged:
            print(f"{name} diverged before: --retry-diverged trains it again", file=sys.stderr)
            continue
        try:
            records.write_record(out, run_one(row, seed, settings, data, out, device, mixed))
            diverged.pop(name, None)
        except NonFiniteLossError as error:
            diverged[name] = str(error)
            print(f"{name}: {error}", file=sys.stderr)
        records.write_plan(out, settings, rows, missing, diverged)
    return [name for name in names if name in diverged]


def in_order(rows: Sequence[Row], seeds: Sequence[int], missing: Mapping[str, str]) -> Iterator[tuple[Row, int]]:
    """A data set at a time, and in it a seed at a time: one whole table of one seed is worth more than half of one."""
    for dataset in dict.fromkeys(row.dataset for row in rows if row.dataset not in missing):
        for seed in seeds:
            yield from ((row, seed) for row in rows if row.dataset == dataset)


def run_one(
    row: Row, seed: int, settings: Settings, data: Path, out: Path, device: torch.device, mixed: bool = False
) -> dict[str, Any]:
    """The record of one row and seed. mixed: see `train.trainer.fit`."""
    run = out / RUNS / row.key / f"seed{seed}"
    training = fit(recipe_of(row, settings, seed), data, run, resume=True, device=device.type, mixed=mixed)
    saved = open_run(run, device)
    robustness = attack_run(
        saved,
        saved.test_loader(data, BATCH_SIZE[device.type]),
        settings.eps_values,
        settings.attack_steps,
        settings.clip_pixels,
        settings.attack_images,
        kept=run / ATTACK,
    )
    return records.make_record(
        row,
        seed,
        settings.to_dict(),
        training=training,
        precision=training["precision"],
        curves=records.learning_curves(run),
        robustness=robustness.to_dict(),
        attack_seconds=round(read_json(run / ATTACK)["seconds"], 1),
        autoattack=autoattack_of(run, training),
    )


def go_on_with_record(out: Path, row: Row, seed: int, data: Path) -> None:
    """Adds AutoAttack to a record that is there, where it was run after it. ValueError for a record of other shards."""
    record = records.read_record(out / RECORDS / record_name(row, seed))
    training, folders = record.content["training"], {"train": train_folder(data), "test": test_folder(data)}
    shards = {split: read_manifest(folder).sha256 for split, folder in folders.items() if folder}
    records.check_settings({"shards": training["shards"]}, {"shards": shards}, record.name, str(data))
    found = autoattack_of(out / RUNS / row.key / f"seed{seed}", training)
    if found is not None and found != record.content["autoattack"]:
        records.write_record(out, {**record.content, "autoattack": found})


def autoattack_of(run: Path, training: Mapping[str, Any]) -> dict[str, Any] | None:
    """What `python -m train checks` has found with AutoAttack; None without RUN/checks.json, or AutoAttack in it.

    -> {"accuracy", "num_images", "eps" in input units, "masked": whether any of the checks shows masked gradients,
    "weights": their sha256}. training is results.json. ValueError for checks of other weights than the final ones, or
    of other samples than the test shards.
    """
    path = run / CHECKS
    if not path.exists():
        return None
    report = read_json(path)
    try:
        found = report["made_from"]
        expected = {"weights": training["weights"], "shards": training["shards"]["test"]}
        if found != expected:
            raise ValueError(
                f"{path} is of other weights or other samples ({found}) than the run's final ones and its test shards "
                f"({expected}): make it again without --weights and --data, or move it away"
            )
        for check in report["checks"]:
            if check["name"] == "AutoAttack":
                counted = {"num_images": report["num_images"], "eps": check["eps"], "masked": report["masked"]}
                return {"accuracy": check["figures"][LAST_STAGE], **counted, "weights": found["weights"]}
    except (KeyError, TypeError) as error:
        raise ValueError(f"{path} is not a report of `python -m train checks` ({error}): make it again") from error
    return None
