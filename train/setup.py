"""What a run is made of: device, loaders, model, loss, precision."""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from fdt_pipeline import FDTLoader
from fdt_pipeline.loader.options import checked_device
from fdt_pipeline.losses import cross_entropy, multi_label_loss
from fdt_pipeline.shards import read_manifest, write_shards
from fdt_pipeline.shards.progress import progress_bar
from fdt_pipeline.sources import Source
from fdt_pipeline.tensor_norm import insert_tensor_norm
from models import build_model
from train.controls import insert_positional_norm, loader_mix
from train.ddp import share_of_batch, sum_over_ranks
from train.precision import autocast, full_float32
from train.recipes import Recipe

SPLITS = ("train", "test")
FASHION_SUBSET = Path(__file__).parent / "data" / "fashion_mnist_subset"


def pick_device(name: str | None) -> torch.device:
    """The device asked for (ValueError if it is not there), or the GPU where there is one."""
    return checked_device(name or ("cuda" if torch.cuda.is_available() else "cpu"))


def train_folder(data: Path) -> Path:
    """data/train where it exists, else data itself."""
    return data / "train" if (data / "train").is_dir() else data


def test_folder(data: Path) -> Path | None:
    return data / "test" if (data / "test" / "manifest.json").is_file() else None


def shard_once(open_images: Callable[[], Source], folder: Path, name: str, seed: int = 0) -> None:
    """Makes the shards, with a bar, unless the folder has them already; what a kill left there is made again."""
    if not (folder / "manifest.json").exists():
        with progress_bar(f"shard {name}", "images", always=True) as progress:
            write_shards(open_images(), folder, seed=seed, overwrite=True, progress=progress)


def make_loader(recipe: Recipe, shards: Path, device: torch.device, train: bool) -> FDTLoader:
    """Training batches as the recipe asks for them, or the samples in order; channels_last, as convolutions want it."""
    common = output_options(device, recipe.channels, recipe.size)
    manifest = read_manifest(shards)
    if recipe.size is None and manifest.shape is None:
        raise ValueError(f"{shards} holds images of different sizes: pass --size H W, to which they are stretched")
    if not train:
        # Each rank has as many batches, with weight 0 for what only fills up the last one.
        return FDTLoader(shards, 200, train=False, last_batch="fill", weights=True, **common)
    common |= {"augment": recipe.augment, "seed": recipe.seed, "last_batch": "drop"}
    mix = loader_mix(recipe, len(manifest.classes))
    return FDTLoader(shards, share_of_batch(recipe), mix=mix, **common)


def output_options(device: torch.device, channels: int | None, size: Sequence[int] | None) -> dict[str, Any]:
    """What training and evaluation ask of FDTLoader alike. On a CPU the step itself keeps the cores busy, so batches
    are made in step with it: train/README.md has the ratio."""
    return {
        "device": device,
        "channels": channels,
        "channels_last": True,
        "size": (size[0], size[1]) if size else None,
        "prefetch": 0 if device.type == "cpu" else 2,
    }


def is_own(model: str) -> bool:
    """Whether a recipe's model is MODULE:FUNCTION, a network of the user's own."""
    return ":" in model


def make_model(recipe: Mapping[str, Any], num_classes: int, in_channels: int, device: torch.device) -> nn.Module:
    """The network of `Recipe.to_dict()`: weights depend on torch's global generator alone, which the caller seeds."""
    if is_own(recipe["model"]):
        model = _own_model(recipe["model"], num_classes, in_channels)
        if recipe["tensor_norm"] is not None:
            model = insert_tensor_norm(model, recipe["tensor_norm"])
    else:
        model = build_model(recipe["model"], num_classes, in_channels, recipe["stem"], recipe["tensor_norm"])
    if recipe["norm"] == "pono":
        insert_positional_norm(model)
    return model.to(device).to(memory_format=torch.channels_last)


def _own_model(name: str, num_classes: int, in_channels: int) -> nn.Module:
    """What FUNCTION(num_classes=..., in_channels=...) returns; ValueError where MODULE:FUNCTION is no such function."""
    module, _, attribute = name.partition(":")
    try:
        function = getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError, ValueError) as error:
        raise ValueError(
            f"the model {name} cannot be imported ({error}): expected MODULE:FUNCTION, with MODULE in the current "
            "folder or on PYTHONPATH"
        ) from error
    arguments = {"num_classes": num_classes, "in_channels": in_channels}
    called = f"{attribute}({', '.join(f'{key}={value}' for key, value in arguments.items())})"
    try:
        inspect.signature(function).bind(**arguments)
    except TypeError as error:
        raise ValueError(f"the model {name} cannot be called as {called}: {error}") from error
    model = function(**arguments)
    if not isinstance(model, nn.Module):
        raise ValueError(f"expected that {called} of {name} returns an nn.Module, got {type(model).__name__}")
    return model


@torch.no_grad()
def check_logits(model: nn.Module, shape: Sequence[int], num_classes: int, device: torch.device) -> None:
    """ValueError unless the model takes images of `shape` (c, h, w) and gives logits of num_classes."""
    try:
        logits = model.eval()(torch.zeros(2, *shape, device=device))
    except RuntimeError as error:
        raise ValueError(f"the model cannot take images f32[n {' '.join(map(str, shape))}]: {error}") from error
    if not isinstance(logits, Tensor) or logits.shape != (2, num_classes):
        found = f"f32{list(logits.shape)}" if isinstance(logits, Tensor) else type(logits).__name__
        raise ValueError(f"expected logits f32[2 {num_classes}] of the model for two images, got {found}")


def make_loss(recipe: Recipe) -> Callable[[Tensor, Tensor], Tensor]:
    if recipe.loss == "multi-label":
        return lambda logits, targets: multi_label_loss(logits, targets, recipe.loss_eps)
    return cross_entropy


@torch.no_grad()
def evaluate(model: nn.Module, loader: FDTLoader, precise: bool = True, mixed: bool = False) -> tuple[float, float]:
    """(accuracy, mean cross entropy in nats) over every sample of the test loader once, in eval mode.

    In full float32 where `precise`, else as a training step computes (mixed: see `amp_dtype`): on an H100 eight times
    as fast, for curves. Every rank has the same figures.
    """
    model.eval()
    sums = torch.zeros(2, dtype=torch.float64, device=loader.device)  # on the device, so that no batch waits for it
    with full_float32(loader.device.type) if precise else autocast(loader.device, mixed):
        for images, labels, weights in loader:
            logits = model(images).float()
            right = (logits.argmax(1) == labels).to(weights.dtype)
            loss = cross_entropy(logits, labels, reduction="none")
            sums += torch.stack([(weights * right).sum(), (weights * loss).sum()])
    accuracy, loss = (sum_over_ranks(sums) / loader.num_samples).tolist()
    return accuracy, loss
