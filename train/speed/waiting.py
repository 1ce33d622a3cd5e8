"""How long a trainer waits for its batches: the share of the time, with FDT on images like CIFAR-10's."""

from __future__ import annotations

import tempfile
import time
from pathlib import Path

import numpy as np
import torch

from fdt_pipeline.shards import write_shards
from fdt_pipeline.sources import ArraySource
from train.recipes import make_recipe
from train.setup import make_loader
from train.speed.rounds import Figure
from train.speed.tensor_norm import make_step


def waiting_share(
    model: str, batch_size: int, size: int, num_rounds: int, steps: int, device: torch.device, bound: float
) -> Figure:
    """Seconds in the loader : seconds in all, over rounds of `steps` steps of MODEL_tn_fdt; one more is thrown away."""
    recipe = make_recipe(f"{model}_tn_fdt", batch_size=batch_size)
    step = make_step(model, recipe.tensor_norm, device)
    shares = []
    with tempfile.TemporaryDirectory() as folder:
        shards = _random_shards(Path(folder) / "shards", size, batch_size * steps * (num_rounds + 1))
        with make_loader(recipe, shards, device, train=True) as loader:
            batches = iter(loader)
            for _ in range(num_rounds + 1):
                start, waited = time.perf_counter(), 0.0
                for _ in range(steps):
                    asked = time.perf_counter()
                    images, targets = next(batches)
                    waited += time.perf_counter() - asked
                    step(images, targets)
                if device.type == "cuda":
                    torch.cuda.synchronize(device)
                shares.append(waited / (time.perf_counter() - start))
    return Figure(f"waiting for the loader : all, {recipe.name}, batch {batch_size}", tuple(shares[1:]), bound)


def _random_shards(folder: Path, size: int, num_images: int) -> Path:
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (num_images, size, size, 3), np.uint8)
    write_shards(ArraySource(images, np.arange(num_images) % 10), folder)
    return folder
