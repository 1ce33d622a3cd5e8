"""What a run is made of: device, loaders, model, loss, precision."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from fdt_pipeline import FDTLoader
from fdt_pipeline.loader.options import checked_device
from fdt_pipeline.losses import cross_entropy, multi_label_loss
from models import build_model
from models.positional_norm import insert_positional_norm
from train.ddp import evaluate_over_ranks, evaluation_options, share_of_batch
from train.full_float32 import full_float32
from train.recipes import Recipe


def pick_device(name: str | None) -> torch.device:
    """The device asked for (ValueError if it is not there), or the GPU where there is one."""
    return checked_device(name or ("cuda" if torch.cuda.is_available() else "cpu"))


def train_folder(data: Path) -> Path:
    """data/train where it exists, else data itself."""
    return data / "train" if (data / "train").is_dir() else data


def test_folder(data: Path) -> Path | None:
    return data / "test" if (data / "test" / "manifest.json").is_file() else None


def make_loader(recipe: Recipe, shards: Path, device: torch.device, train: bool) -> FDTLoader:
    """Training batches as the recipe asks for them, or the samples in order; channels_last, as convolutions want it."""
    common = output_options(device, recipe.channels, recipe.size)
    if not train:
        return FDTLoader(shards, 200, train=False, **evaluation_options(), **common)
    batch_size = share_of_batch(recipe)
    return FDTLoader(
        shards, batch_size, mix=recipe.fdt, augment=recipe.augment, seed=recipe.seed, last_batch="drop", **common
    )


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


def fingerprint(loader: FDTLoader) -> str:
    """The manifest's sha256 of itself, and so of the shards' hashes: tells data sets apart."""
    return loader.manifest.sha256


def make_model(recipe: Mapping[str, Any], num_classes: int, in_channels: int, device: torch.device) -> nn.Module:
    """The network of `Recipe.to_dict()`: weights depend on torch's global generator alone, which the caller seeds."""
    model = build_model(
        recipe["model"],
        num_classes=num_classes,
        in_channels=in_channels,
        stem=recipe["stem"],
        tensor_norm=recipe["tensor_norm"],
    )
    if recipe.get("norm") == "pono":  # not in the configuration of runs from before the controls
        insert_positional_norm(model)
    return model.to(device).to(memory_format=torch.channels_last)


def make_loss(recipe: Recipe) -> Callable[[Tensor, Tensor], Tensor]:
    if recipe.loss == "multi-label":
        return lambda logits, targets: multi_label_loss(logits, targets, recipe.loss_eps)
    return cross_entropy


def amp_dtype(device: torch.device) -> torch.dtype | None:
    """Mixed precision is for GPUs: bfloat16 where it is native, else float16 with a scaled loss."""
    if device.type != "cuda":
        return None
    native = torch.cuda.get_device_capability(device)[0] >= 8  # is_bf16_supported() counts emulation as support
    return torch.bfloat16 if native else torch.float16


def autocast(device: torch.device) -> AbstractContextManager[Any]:
    dtype = amp_dtype(device)
    return torch.autocast(device.type, dtype) if dtype else nullcontext()


@torch.no_grad()
def evaluate(model: nn.Module, loader: FDTLoader, precise: bool = True) -> tuple[float, float]:
    """(accuracy, mean cross entropy in nats) over every sample of the loader once, in eval mode.

    In full float32 where `precise`, else as a training step computes: on an H100 eight times as fast, for curves.
    """
    number_format = full_float32(loader.device.type) if precise else autocast(loader.device)
    if loader.world_size > 1:
        return evaluate_over_ranks(model, loader, number_format)
    model.eval()
    correct = torch.zeros((), dtype=torch.int64, device=loader.device)  # on the device, so that no batch waits for it
    loss = torch.zeros((), dtype=torch.float64, device=loader.device)
    with number_format:
        for images, labels in loader:
            logits = model(images).float()
            correct += (logits.argmax(1) == labels).sum()
            loss += cross_entropy(logits, labels, reduction="sum")
    return int(correct) / loader.num_samples, float(loss) / loader.num_samples
