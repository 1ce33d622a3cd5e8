"""`python -m train`: from image files to a robustness table, on a subset of Fashion-MNIST that comes with the code.

Every stage leaves its result under a final name only when it is whole, and is skipped where that is there, so the
same command goes on after Ctrl-C.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch

from fdt_pipeline import FDT, FDTLoader
from fdt_pipeline.shards import verify_shards
from fdt_pipeline.shards.progress import progress_bar
from fdt_pipeline.sources import open_source
from train.environment import hardware, versions
from train.files import check_folder, read_json, write_json, write_text
from train.plots import draw_batch, draw_paths
from train.recipes import make_recipe
from train.robust_accuracy import Robustness, format_table
from train.robustness import EPS_VALUES
from train.saved_run import ROBUSTNESS, attack_run, open_run
from train.setup import FASHION_SUBSET, SPLITS, pick_device, shard_once
from train.trainer import fit

NAMES = {"demo_plain": "plain", "demo_tn_fdt": "TN + FDT"}


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
    device, shards = pick_device(device_name), out / "shards"
    for split in SPLITS:
        shard_once(partial(open_source, FASHION_SUBSET, split=split), shards / split, split, settings.seed)
        _verify(shards / split)
    draw_batch(FDTLoader(shards / "train", 100, mix=FDT(), channels=3, seed=settings.seed), out / "batch.png")
    models, rows = {}, {}
    for recipe, name in NAMES.items():
        run = out / recipe
        made = make_recipe(recipe, epochs=settings.epochs, seed=settings.seed)
        training = fit(made, shards, run, resume=True, device=device_name)
        rows[name] = _attack(run, shards, settings, device)
        models[name] = {"training": training, "robustness": rows[name].to_dict()}
    table = format_table(rows)
    draw_paths(rows, out / "robustness.png")
    write_text(out / "table.md", table)
    about = {"hardware": hardware(device), "versions": versions()}
    write_json(out / "results.json", {"settings": settings.to_dict(), "models": models, **about})
    return table


def _check_settings(path: Path, settings: Settings) -> None:
    wanted = settings.to_dict()
    if path.exists() and (saved := read_json(path)) != wanted:
        raise ValueError(f"{path.parent} holds a demo with other settings ({saved}): delete it, or pass another --out")
    write_json(path, wanted)


def _verify(folder: Path) -> None:
    with progress_bar(f"verify {folder.name}", "shards", always=True) as progress:
        problems = verify_shards(folder, progress=progress)
    if problems:
        raise ValueError(f"{folder} is damaged: {problems[0]} ({len(problems)} in all). Delete it and run again")


def _attack(run: Path, shards: Path, settings: Settings, device: torch.device) -> Robustness:
    saved = open_run(run, device)
    loader, images = saved.test_loader(shards), settings.attack_images
    kept = run / ROBUSTNESS
    return attack_run(saved, loader, settings.eps_values, settings.attack_steps, num_images=images, kept=kept)
