"""`python -m train`: from image files to a robustness table, on a subset of Fashion-MNIST that comes with the code.

Every stage leaves its result under a final name only when it is whole, and is skipped where that is there, so the
same command goes on after Ctrl-C.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from fdt_pipeline import FDT, FDTLoader
from fdt_pipeline.shards import verify_shards, write_shards
from fdt_pipeline.shards.progress import progress_bar
from fdt_pipeline.sources import open_source
from train.environment import hardware, versions
from train.files import check_folder, read_json, write_json, write_text
from train.plots import draw_batch, draw_paths
from train.recipes import make_recipe
from train.robust_accuracy import Robustness, format_table
from train.robustness import EPS_VALUES
from train.saved_run import attack_run, open_run
from train.setup import pick_device
from train.trainer import fit

DATA = Path(__file__).parent / "data" / "fashion_mnist_subset"
NAMES = {"demo_plain": "plain", "demo_tn_fdt": "TN + FDT"}
SPLITS = ("train", "test")


@dataclass(frozen=True)
class Settings:
    """What the demo's numbers depend on."""

    epochs: int | None = None  # the recipes' own
    seed: int = 0
    attack_images: int = 1000
    attack_steps: int = 40
    eps_values: tuple[float, ...] = EPS_VALUES

    def to_dict(self) -> dict[str, Any]:
        """JSON values."""
        return {**asdict(self), "eps_values": list(self.eps_values)}


QUICK = Settings(epochs=1, attack_images=100, attack_steps=5)


def run_demo(out: Path, settings: Settings, device_name: str | None = None) -> str:
    """Runs what is not there yet; returns the table. ValueError where `out` holds a demo with other settings."""
    check_folder(out)
    out.mkdir(parents=True, exist_ok=True)
    _check_settings(out / "settings.json", settings)
    device, seconds = pick_device(device_name), _Stopwatch(out / "seconds.json")
    shards = out / "shards"
    for split in SPLITS:
        with seconds.of(f"shard {split}"):
            shard_split(shards / split, split, settings.seed)
        with seconds.of(f"verify {split}"):
            _verify(shards / split)
    draw_batch(FDTLoader(shards / "train", 100, mix=FDT(), channels=3, seed=settings.seed), out / "batch.png")
    for recipe in NAMES:
        made = make_recipe(recipe, epochs=settings.epochs, seed=settings.seed)
        with seconds.of(f"fit {recipe}"):
            fit(made, shards, out / recipe, resume=True, device=device_name)
    rows = {}
    for recipe, name in NAMES.items():
        with seconds.of(f"attack {recipe}"):
            rows[name] = _attack(out / recipe, shards, settings, device)
    table = format_table(rows)
    draw_paths(rows, out / "robustness.png")
    write_text(out / "table.md", table)
    write_json(out / "results.json", _results(out, settings, rows, seconds.seconds, hardware(device)))
    return table


def _check_settings(path: Path, settings: Settings) -> None:
    wanted = settings.to_dict()
    if path.exists() and (saved := read_json(path)) != wanted:
        raise ValueError(f"{path.parent} holds a demo with other settings ({saved}): delete it, or pass another --out")
    write_json(path, wanted)


def shard_split(folder: Path, split: str, seed: int) -> None:
    if not (folder / "manifest.json").exists():
        with progress_bar(f"shard {split}", "images", always=True) as progress:
            write_shards(open_source(DATA, split=split), folder, seed=seed, overwrite=True, progress=progress)


def _verify(folder: Path) -> None:
    with progress_bar(f"verify {folder.name}", "shards", always=True) as progress:
        problems = verify_shards(folder, progress=progress)
    if problems:
        raise ValueError(f"{folder} is damaged: {problems[0]} ({len(problems)} in all). Delete it and run again")


def _attack(run: Path, shards: Path, settings: Settings, device: torch.device) -> Robustness:
    """Attacks again where robustness.json is of other weights, test shards or settings."""
    path, saved = run / "robustness.json", open_run(run, device)
    loader = saved.test_loader(shards)
    made_from = {**saved.made_from(loader), "settings": settings.to_dict()}
    if path.exists() and (found := read_json(path)).get("made_from") == made_from:
        return Robustness.from_dict(found)
    result = attack_run(saved, loader, settings.eps_values, settings.attack_steps, num_images=settings.attack_images)
    write_json(path, {"made_from": made_from, **result.to_dict()})
    return result


def _results(
    out: Path, settings: Settings, rows: dict[str, Robustness], seconds: dict[str, float], machine: dict[str, Any]
) -> dict[str, Any]:
    return {
        "settings": settings.to_dict(),
        "models": {
            name: {"training": read_json(out / recipe / "results.json"), "robustness": rows[name].to_dict()}
            for recipe, name in NAMES.items()
        },
        "seconds": seconds,
        "hardware": machine,
        "versions": versions(),
    }


class _Stopwatch:
    """Seconds of each stage, summed over the starts of an interrupted demo."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.seconds: dict[str, float] = read_json(path) if path.exists() else {}

    @contextmanager
    def of(self, stage: str) -> Iterator[None]:
        start = time.perf_counter()
        try:
            yield
        finally:
            spent = time.perf_counter() - start
            self.seconds[stage] = round(self.seconds.get(stage, 0) + spent, 2)
            write_json(self.path, self.seconds)
