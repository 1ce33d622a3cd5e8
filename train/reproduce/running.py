"""Train and attack the rows of a table, seed by seed, going on where it was stopped, in the middle of an attack too."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from fdt_pipeline.shards import read_manifest
from train.files import CHECKPOINT, check_folder, read_json
from train.reproduce import record as records
from train.reproduce.measures import AutoAttack, autoattacks_of, measure_calibration, run_autoattack
from train.reproduce.paper import Row
from train.reproduce.record import RECORDS, record_name
from train.reproduce.settings import Settings, recipe_of
from train.saved_run import attack_run, open_run
from train.setup import test_folder, train_folder
from train.step import NonFiniteLossError
from train.trainer import fit

RUNS = "runs"
ATTACK = "attack.json"  # the counts so far
# On a GPU 250 images of 32x32 at four radii in one batch keep ResNet-34 busy, and take some 8 GB; on a CPU a batch is
# what a kill may lose.
BATCH_SIZE = {"cpu": 100, "cuda": 250}


def in_order(
    rows: Sequence[Row], seeds_of: Callable[[str], Sequence[int]], missing: Mapping[str, str]
) -> Iterator[tuple[Row, int]]:
    """A data set at a time, and in it a seed at a time: one whole table of one seed is worth more than half of one."""
    for dataset in dict.fromkeys(row.dataset for row in rows if row.dataset not in missing):
        for seed in seeds_of(dataset):
            yield from ((row, seed) for row in rows if row.dataset == dataset)


@dataclass(frozen=True)
class Runner:
    """Trains and attacks rows, and leaves a record of each row and seed in out/records.

    folder_of: the shards of a data set. mixed: bfloat16 on a CPU too, see `train.trainer.fit`. autoattack: made of each
    run as well, None for none. retry_diverged: train again what has diverged.
    """

    settings: Settings
    out: Path
    folder_of: Callable[[str], Path]
    device: torch.device
    mixed: bool = False
    autoattack: AutoAttack | None = None
    retry_diverged: bool = False

    def run_rows(
        self, rows: Sequence[Row], seeds_of: Callable[[str], Sequence[int]], missing: Mapping[str, str]
    ) -> list[str]:
        """Rows of data sets in `missing` (name: reason) are left out.

        A run that diverges is noted in plan.json, and the others are done all the same. -> the names of those that
        diverged, now or before. ValueError where `out` holds results of other settings or other shards.
        """
        names, diverged = [], self.plan(rows, missing)
        for row, seed in in_order(rows, seeds_of, missing):
            name = f"{row.key} seed {seed}"
            names.append(name)
            if not self.record_of(row, seed).exists():
                if name in diverged and not self.retry_diverged:
                    print(f"{name} diverged before: --retry-diverged trains it again", file=sys.stderr)
                    continue
                try:
                    records.write_record(self.out, self._train_and_attack(row, seed))
                    diverged.pop(name, None)
                except NonFiniteLossError as error:
                    diverged[name] = str(error)
                    print(f"{name}: {error}", file=sys.stderr)
                records.write_plan(self.out, self.settings, rows, missing, diverged)
            if name not in diverged:
                self._add_measures(row, seed)
        return [name for name in names if name in diverged]

    def plan(self, rows: Sequence[Row], missing: Mapping[str, str]) -> dict[str, str]:
        """Writes plan.json; -> the runs that have diverged so far, with what was said of them."""
        check_folder(self.out)
        return records.write_plan(self.out, self.settings, rows, missing)

    def record_of(self, row: Row, seed: int) -> Path:
        return self.out / RECORDS / record_name(row, seed)

    def folder_of_run(self, row: Row, seed: int) -> Path:
        return self.out / RUNS / row.key / f"seed{seed}"

    def _train_and_attack(self, row: Row, seed: int) -> dict[str, Any]:
        """The record of one row and seed."""
        run, data, settings = self.folder_of_run(row, seed), self.folder_of(row.dataset), self.settings
        recipe = recipe_of(row, settings, seed)
        training = fit(recipe, data, run, resume=True, device=self.device.type, mixed=self.mixed)
        saved = open_run(run, self.device)
        loader = saved.test_loader(data, BATCH_SIZE[self.device.type])
        robustness = attack_run(
            saved,
            loader,
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
            calibration=measure_calibration(saved, loader),
            autoattack=autoattacks_of(run, training),
        )

    def _add_measures(self, row: Row, seed: int) -> None:
        """Adds to a record what it lacks and its run, where that is still there, can give: calibration, AutoAttack.

        ValueError for a record of other shards.
        """
        record, data = records.read_record(self.record_of(row, seed)), self.folder_of(row.dataset)
        training, folders = record.content["training"], {"train": train_folder(data), "test": test_folder(data)}
        shards = {split: read_manifest(folder).sha256 for split, folder in folders.items() if folder}
        records.check_settings({"shards": training["shards"]}, {"shards": shards}, record.name, str(data))
        run, content = self.folder_of_run(row, seed), dict(record.content)
        if (run / CHECKPOINT).exists() and (self.autoattack or "calibration" not in content):
            saved = open_run(run, self.device)
            loader = saved.test_loader(data, BATCH_SIZE[self.device.type])
            content["calibration"] = measure_calibration(saved, loader)
            if self.autoattack:
                run_autoattack(saved, loader, self.autoattack, run)
        content["autoattack"] = autoattacks_of(run, training) or content["autoattack"]
        if content != record.content:
            records.write_record(self.out, content)
