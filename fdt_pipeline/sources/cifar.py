"""CIFAR-10 and CIFAR-100: which files there are. Binary and pickled files hold the same images in the same order.

Source: https://www.cs.toronto.edu/~kriz/cifar.html. SOURCE is the folder that the archive unpacks to, or its parent.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from .arrays import ArraySource
from .checks import check_labels
from .cifar_binary import read_binary, read_binary_names
from .cifar_pickle import read_pickled, read_pickled_names
from .class_names import CIFAR10, CIFAR100
from .source import Source

CLASSES = {"cifar10": CIFAR10, "cifar100": CIFAR100}
FOLDERS = {
    "cifar10": ("cifar-10-batches-bin", "cifar-10-batches-py"),
    "cifar100": ("cifar-100-binary", "cifar-100-python"),
}
FILES: dict[str, dict[str, tuple[str, ...]]] = {
    "cifar10": {"train": tuple(f"data_batch_{i}" for i in range(1, 6)), "test": ("test_batch",)},
    "cifar100": {"train": ("train",), "test": ("test",)},
}


def find(path: Path, kind: str) -> Path | None:
    """The first folder with at least one of the files; binary comes before pickled."""
    for folder in (path, *(path / name for name in FOLDERS[kind])):
        if _has_any(folder, kind, ".bin") or _has_any(folder, kind, ""):
            return folder
    return None


def splits(folder: Path, kind: str) -> tuple[str, ...]:
    return tuple(FILES[kind])


def read(folder: Path, kind: str, split: str | None) -> Source:
    assert split is not None
    binary = _has_any(folder, kind, ".bin")
    paths = [folder / f"{name}.bin" if binary else folder / name for name in FILES[kind][split]]
    parts = [read_binary(path, kind) if binary else read_pickled(path) for path in paths]
    classes = (read_binary_names(folder, kind) if binary else read_pickled_names(folder)) or CLASSES[kind]
    _check_names(folder, classes, CLASSES[kind])
    for path, (_, labels) in zip(paths, parts, strict=True):
        check_labels(labels, len(classes), path)
    planes = np.concatenate([planes for planes, _ in parts])
    labels = np.concatenate([labels for _, labels in parts])
    # Planes [n 3 32 32] are handed on as a view in HWC order: each image is copied when it is asked for.
    return ArraySource(planes.transpose(0, 2, 3, 1), labels, classes, kind=kind, split=split, where=folder)


def _has_any(folder: Path, kind: str, suffix: str) -> bool:
    return any((folder / f"{name}{suffix}").is_file() for names in FILES[kind].values() for name in names)


def _check_names(folder: Path, got: tuple[str, ...], official: tuple[str, ...]) -> None:
    if len(got) != len(official):
        raise ValueError(f"{folder}: expected {len(official)} class names, got {len(got)}; fetch the names file again")
