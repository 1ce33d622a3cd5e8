"""Fetch an official data set with torchvision, which knows the addresses and checks the sums."""

from __future__ import annotations

from pathlib import Path
from typing import Any

_TORCHVISION_NAME = {
    "fashion-mnist": "FashionMNIST",
    "mnist": "MNIST",
    "cifar10": "CIFAR10",
    "cifar100": "CIFAR100",
    "svhn": "SVHN",
}


def download_source(path: Path, kind: str | None) -> None:
    """All splits, into `path`, in torchvision's layout; what is already there is not fetched again."""
    if kind not in _TORCHVISION_NAME:
        kinds = ", ".join(_TORCHVISION_NAME)
        raise ValueError(f"to download, say what: expected --source to be one of {kinds}, got {kind}")
    dataset = _torchvision_dataset(_TORCHVISION_NAME[kind])
    path.mkdir(parents=True, exist_ok=True)
    try:
        for split in ("train", "test"):
            options = {"split": split} if kind == "svhn" else {"train": split == "train"}
            dataset(root=str(path), download=True, **options)
    except (RuntimeError, OSError) as error:
        raise OSError(
            f"could not download {kind} to {path}: {error}; fetch the files by hand, then shard them"
        ) from error


def _torchvision_dataset(name: str) -> Any:
    try:
        from torchvision import datasets
    except ImportError as error:
        raise ImportError("--download needs torchvision: pip install torchvision") from error
    return getattr(datasets, name)
