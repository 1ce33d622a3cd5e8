"""CIFAR-10 and CIFAR-100, in binary or pickled files, which hold the same images in the same order.

Binary: rows of label bytes (CIFAR-100: coarse, fine) and 3072 pixels, red plane first. Pickled, as torchvision lays
them: a dict of data u8[n 3072] and labels, whose keys are bytes or str.

Source: https://www.cs.toronto.edu/~kriz/cifar.html. SOURCE is the folder that the archive unpacks to, or its parent.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from .arrays import ArraySource
from .source import U8, Found, Source, check_file, check_labels, find_official
from .unpickle import load_dict

_NUM_PIXELS = 3 * 32 * 32
_NUM_LABELS = {"cifar10": 1, "cifar100": 2}
_FOLDERS = {
    "cifar10": ("cifar-10-batches-bin", "cifar-10-batches-py"),
    "cifar100": ("cifar-100-binary", "cifar-100-python"),
}
_FILES: dict[str, dict[str, tuple[str, ...]]] = {
    "cifar10": {"train": tuple(f"data_batch_{i}" for i in range(1, 6)), "test": ("test_batch",)},
    "cifar100": {"train": ("train",), "test": ("test",)},
}

# Files of class names, and the keys of the pickled ones.
_BINARY_NAMES = {"cifar10": "batches.meta.txt", "cifar100": "fine_label_names.txt"}
_PICKLED_NAMES = {"cifar10": ("batches.meta", "label_names"), "cifar100": ("meta", "fine_label_names")}

# Official class names in label order, where there is no such file.
CIFAR10 = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
_FINE = """
apple aquarium_fish baby bear beaver bed bee beetle bicycle bottle
bowl boy bridge bus butterfly camel can castle caterpillar cattle
chair chimpanzee clock cloud cockroach couch crab crocodile cup dinosaur
dolphin elephant flatfish forest fox girl hamster house kangaroo keyboard
lamp lawn_mower leopard lion lizard lobster man maple_tree motorcycle mountain
mouse mushroom oak_tree orange orchid otter palm_tree pear pickup_truck pine_tree
plain plate poppy porcupine possum rabbit raccoon ray road rocket
rose sea seal shark shrew skunk skyscraper snail snake spider
squirrel streetcar sunflower sweet_pepper table tank telephone television tiger tractor
train trout tulip turtle wardrobe whale willow_tree wolf woman worm
"""
CIFAR100 = tuple(_FINE.split())
_CLASSES = {"cifar10": CIFAR10, "cifar100": CIFAR100}


def find(path: Path, kind: str, asked: bool) -> Found | None:
    """In the first folder with at least one of the files; binary comes before pickled."""
    folders = (path, *(path / name for name in _FOLDERS[kind]))
    return find_official(kind, folders, [*_names(kind, ".bin"), *_names(kind, "")], _read)


def _names(kind: str, suffix: str) -> list[str]:
    return [f"{name}{suffix}" for names in _FILES[kind].values() for name in names]


def _read(folder: Path, kind: str, split: str) -> Source:
    binary = any((folder / name).is_file() for name in _names(kind, ".bin"))
    paths = [folder / f"{name}.bin" if binary else folder / name for name in _FILES[kind][split]]
    parts = [_read_binary(path, kind) if binary else _read_pickled(path, kind) for path in paths]
    planes = np.concatenate([planes for planes, _ in parts])
    labels = np.concatenate([labels for _, labels in parts])
    # Planes [n 3 32 32] are handed on as a view in HWC order: each image is copied when it is asked for.
    classes = _read_names(folder, kind, binary)
    return ArraySource(planes.transpose(0, 2, 3, 1), labels, classes, kind=kind, split=split, where=folder)


def _read_names(folder: Path, kind: str, binary: bool) -> tuple[str, ...]:
    """Class names that a file beside the data has, one a line or as a pickled list; else the official ones."""
    name, key = (_BINARY_NAMES[kind], "") if binary else _PICKLED_NAMES[kind]
    path = folder / name
    if not path.is_file():
        return _CLASSES[kind]
    found = path.read_text(encoding="latin1").split("\n") if binary else _load(path).get(key)
    names = [each.strip() for each in map(_text, found)] if isinstance(found, list) else []
    names = [each for each in names if each]
    if len(names) != len(_CLASSES[kind]):
        raise ValueError(f"{path}: expected {len(_CLASSES[kind])} class names, got {len(names)}; fetch it again")
    return tuple(names)


def _read_binary(path: Path, kind: str) -> tuple[U8, U8]:
    """(planes u8[n 3 32 32], fine labels u8[n])."""
    check_file(path)
    data = np.fromfile(path, np.uint8)
    row = _NUM_LABELS[kind] + _NUM_PIXELS
    num_rows, rest = divmod(data.size, row)
    if rest or not num_rows:
        raise ValueError(
            f"{path}: the file is cut short: expected a multiple of {row} bytes, at least {(num_rows + 1) * row}, "
            f"got {data.size}; fetch it again"
        )
    rows = data.reshape(num_rows, row)
    labels = rows[:, _NUM_LABELS[kind] - 1]
    check_labels(labels, len(_CLASSES[kind]), path)
    return rows[:, _NUM_LABELS[kind] :].reshape(num_rows, 3, 32, 32), labels


def _read_pickled(path: Path, kind: str) -> tuple[U8, U8]:
    """(planes u8[n 3 32 32], fine labels u8[n])."""
    check_file(path)
    content = _load(path)
    data = content.get("data")
    if not isinstance(data, np.ndarray) or data.ndim != 2 or data.shape[1] != _NUM_PIXELS:
        got = list(data.shape) if isinstance(data, np.ndarray) else type(data).__name__
        raise ValueError(f"{path}: expected data to be uint8 of shape [n {_NUM_PIXELS}], got {got}")
    labels = content.get("fine_labels", content.get("labels"))
    if not isinstance(labels, list) or not all(isinstance(label, int) for label in labels):
        raise ValueError(f"{path}: expected a list of integers under labels or fine_labels, got {list(content)}")
    num_classes = len(_CLASSES[kind])
    wrong = [index for index, label in enumerate(labels) if not 0 <= label < num_classes]
    if wrong:  # the label itself may have any number of digits
        raise ValueError(
            f"{path}: the label at index {wrong[0]} is out of range: expected 0..{num_classes - 1}; fetch it again"
        )
    if len(labels) != len(data):
        raise ValueError(f"{path}: expected {len(data)} labels, one an image, got {len(labels)}")
    return data.reshape(-1, 3, 32, 32), np.array(labels, np.uint8)


def _load(path: Path) -> dict[str, Any]:
    return {_text(key): value for key, value in load_dict(path).items()}


def _text(value: Any) -> str:
    return value.decode("latin1") if isinstance(value, bytes) else str(value)
