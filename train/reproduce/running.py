"""Train and attack the rows of a table, seed by seed, going on where it was stopped.

Under torchrun all ranks do each row together (train/ddp.py), and the first one alone writes: the others must see its
files, as ranks of one machine do.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch

from fdt_pipeline.shards import read_manifest
from train.ddp import from_first_rank, is_first_rank, process_group, share_of_batch
from train.divergence import NonFiniteLossError
from train.files import check_folder, read_json, write_json
from train.reproduce.autoattack import autoattack_of
from train.reproduce.chunked_attack import attack_in_chunks
from train.reproduce.configuration import check_settings
from train.reproduce.record import RECORDS, learning_curves, make_record, read_record, record_name, write_record
from train.reproduce.rows import Row
from train.reproduce.settings import Settings, recipe_of
from train.setup import amp_dtype, pick_device, test_folder, train_folder
from train.trainer import fit

RUNS = "runs"
PLAN = "plan.json"

Folders = Callable[[str], Path]


def run_rows(
    rows: Sequence[Row],
    seeds: Sequence[int],
    settings: Settings,
    missing: Mapping[str, str],
    folder_of: Folders,
    out: Path,
    device: str | None = None,
    show: bool = True,
    retry_diverged: bool = False,
) -> list[str]:
    """Leaves one record a row and seed in out/records; rows of data sets in `missing` (name: reason) are left out.

    A run that diverges is noted in plan.json, and the others are done all the same; it is not trained again, unless
    with retry_diverged. -> the names of those that diverged, now or before. ValueError where `out` holds results of
    other settings or other shards.
    """
    check_folder(out)
    for row in rows:
        share_of_batch(recipe_of(row, settings, 0))
    with process_group(pick_device(device)) as device_of_rank:
        diverged = from_first_rank(partial(write_plan, out, settings, rows, missing))
        names = []
        for row, seed in in_order(rows, seeds, missing):
            name = f"{row.key} seed {seed}"
            names.append(name)
            data = from_first_rank(partial(folder_of, row.dataset))
            if from_first_rank((out / RECORDS / record_name(row, seed)).exists):
                if is_first_rank():
                    go_on_with_record(out, row, seed, data)
                continue
            if name in diverged and not retry_diverged:
                if is_first_rank():
                    print(f"{name} diverged before: --retry-diverged trains it again", file=sys.stderr)
                continue
            try:
                record = run_one(row, seed, settings, data, out, device_of_rank, show)
            except NonFiniteLossError as error:  # on all ranks, at the same step
                diverged[name] = str(error)
                if is_first_rank():
                    print(f"{name}: {error}", file=sys.stderr)
            else:
                diverged.pop(name, None)
                if is_first_rank():
                    write_record(out, record)
            if is_first_rank():
                write_plan(out, settings, rows, missing, diverged)
    return [name for name in names if name in diverged]


def in_order(rows: Sequence[Row], seeds: Sequence[int], missing: Mapping[str, str]) -> Iterator[tuple[Row, int]]:
    """A data set at a time, and in it a seed at a time: one whole table of one seed is worth more than half of one."""
    for dataset in dict.fromkeys(row.dataset for row in rows if row.dataset not in missing):
        for seed in seeds:
            yield from ((row, seed) for row in rows if row.dataset == dataset)


def run_one(
    row: Row, seed: int, settings: Settings, data: Path, out: Path, device: torch.device, show: bool
) -> dict[str, Any]:
    """The record of one row and seed."""
    run = out / RUNS / row.key / f"seed{seed}"
    training = fit(recipe_of(row, settings, seed), data, run, resume=True, device=device.type, show_progress=show)
    robustness, attack_seconds = attack_in_chunks(run, data, settings, device, show)
    return make_record(
        row,
        seed,
        settings.to_dict(),
        training=training,
        precision=str(amp_dtype(device) or "torch.float32").removeprefix("torch."),
        curves=learning_curves(run),
        robustness=robustness.to_dict(),
        attack_seconds=round(attack_seconds, 1),
        autoattack=autoattack_of(run, training),
    )


def go_on_with_record(out: Path, row: Row, seed: int, data: Path) -> None:
    """Adds AutoAttack to a record that is there, where it was run after it. ValueError for a record of other shards."""
    record = read_record(out / RECORDS / record_name(row, seed))
    training, folders = record.content["training"], {"train": train_folder(data), "test": test_folder(data)}
    shards = {split: read_manifest(folder).sha256 for split, folder in folders.items() if folder}
    check_settings({"shards": training["shards"]}, {"shards": shards}, record.name, str(data))
    found = autoattack_of(out / RUNS / row.key / f"seed{seed}", training)
    if found is not None and found != record.content["autoattack"]:
        write_record(out, {**record.content, "autoattack": found})


def write_plan(
    out: Path,
    settings: Settings,
    rows: Sequence[Row],
    missing: Mapping[str, str],
    diverged: Mapping[str, str] | None = None,
) -> dict[str, str]:
    """plan.json: the settings of this folder, and what of its rows cannot be had. -> the diverged runs so far.

    ValueError, naming the fields, where the folder has other settings. Rows asked for before stay in the plan.
    """
    out.mkdir(parents=True, exist_ok=True)
    path = out / PLAN
    old = read_json(path) if path.exists() else {"settings": settings.to_dict(), "missing": {}, "diverged": {}}
    check_settings(old["settings"], settings.to_dict(), str(out), "the command")
    asked = {row.dataset for row in rows}
    kept = {name: reason for name, reason in old["missing"].items() if name not in asked}
    noted = dict(old["diverged"] if diverged is None else diverged)
    gone = {name: reason for name, reason in missing.items() if name in asked}
    write_json(path, {"settings": settings.to_dict(), "missing": {**kept, **gone}, "diverged": noted})
    return noted


def read_plan(out: Path, table: str | None = None) -> dict[str, Any]:
    """ValueError where `out` holds no table, or another one than `table`."""
    if not (out / PLAN).is_file():
        raise ValueError(f"{out} holds no table: make one with `python -m train reproduce table1 --out {out} ...`")
    plan = dict(read_json(out / PLAN))
    held = plan["settings"]["table"]
    if table is not None and table != held:
        raise ValueError(f"{out} holds {held}, not {table}")
    return plan
