"""CIFAR's pickled files, as torchvision lays them: a dict of data u8[n 3072] and labels, keys bytes or str."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from .checks import check_file
from .cifar_binary import NUM_PIXELS
from .source import I64, U8
from .unpickle import load_dict

MAX_CLASSES = 100  # of CIFAR-100; `read` checks those of the kind
_META = {"batches.meta": "label_names", "meta": "fine_label_names"}


def read_pickled(path: Path) -> tuple[U8, I64]:
    """(planes u8[n 3 32 32], fine labels i64[n])."""
    content = _read_dict(path)
    data = content.get("data")
    if not isinstance(data, np.ndarray) or data.dtype != np.uint8 or data.ndim != 2 or data.shape[1] != NUM_PIXELS:
        got = f"{data.dtype} {list(data.shape)}" if isinstance(data, np.ndarray) else type(data).__name__
        raise ValueError(f"{path}: expected data to be uint8 of shape [n {NUM_PIXELS}], got {got}")
    labels = _labels(path, content)
    if len(labels) != len(data):
        raise ValueError(f"{path}: expected {len(data)} labels, one an image, got {len(labels)}")
    return data.reshape(-1, 3, 32, 32), labels


def _labels(path: Path, content: dict[str, Any]) -> I64:
    labels = content.get("fine_labels", content.get("labels"))
    if not isinstance(labels, list) or not all(isinstance(label, int) for label in labels):
        raise ValueError(f"{path}: expected a list of integers under labels or fine_labels, got {sorted(content)}")
    wrong = [index for index, label in enumerate(labels) if not 0 <= label < MAX_CLASSES]
    if wrong:  # the label itself may have any number of digits
        raise ValueError(
            f"{path}: the label at index {wrong[0]} is out of range: expected 0..{MAX_CLASSES - 1}; fetch it again"
        )
    return np.array(labels, np.int64)


def read_pickled_names(folder: Path) -> tuple[str, ...] | None:
    """None if the names file is not there."""
    for name, key in _META.items():
        if (folder / name).is_file():
            names = _read_dict(folder / name).get(key)
            if not isinstance(names, list) or not all(isinstance(name, (bytes, str)) for name in names):
                raise ValueError(f"{folder / name}: expected a list of class names under {key}; fetch it again")
            return tuple(_text(name) for name in names)
    return None


def _read_dict(path: Path) -> dict[str, Any]:
    check_file(path, path.is_file())
    return {_text(key): value for key, value in load_dict(path).items() if isinstance(key, (bytes, str))}


def _text(value: bytes | str) -> str:
    return value.decode("latin1") if isinstance(value, bytes) else value
