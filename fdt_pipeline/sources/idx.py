"""MNIST's idx format, as Fashion-MNIST and MNIST are published: four files, plain or gzipped.

Format: big-endian u32 magic (2049 labels, 2051 images), u32 for each dimension, then the bytes. The names are
train-images-idx3-ubyte and the like; some tools unpack them with a dot, train-images.idx3-ubyte.
Source: http://yann.lecun.com/exdb/mnist and https://github.com/zalandoresearch/fashion-mnist.
"""

from __future__ import annotations

import gzip
import math
import re
import zlib
from pathlib import Path

import numpy as np

from .arrays import ArraySource
from .source import U8, Found, Source, check_file, find_official

_LABELS_MAGIC, _IMAGES_MAGIC = 2049, 2051
DIGITS = tuple("0123456789")
_FASHION = "T-shirt/top Trouser Pullover Dress Coat Sandal Shirt Sneaker Bag"
FASHION_MNIST = (*_FASHION.split(), "Ankle boot")
CLASSES = {"fashion-mnist": FASHION_MNIST, "mnist": DIGITS}
_TORCHVISION_FOLDER = {"fashion-mnist": "FashionMNIST", "mnist": "MNIST"}
_PREFIX = {"train": "train", "test": "t10k"}


def find(path: Path, kind: str, asked: bool) -> Found | None:
    """In SOURCE, SOURCE/raw, or torchvision's SOURCE/FashionMNIST/raw. Nothing in the files tells MNIST from
    Fashion-MNIST: the folder's name does, unless the kind was asked for; if it says nothing, they may be both.
    ValueError for EMNIST, KMNIST and the like, which have files of these names, or of nearly these."""
    names = [name for split in _PREFIX for part in ("images", "labels") for name in _names(split, part)]
    folders = (path, path / "raw", path / _TORCHVISION_FOLDER[kind] / "raw")
    may_be = [folder for folder in folders if asked or _kind_by_name(folder) in (kind, None)]
    found = find_official(kind, may_be, names, _read)
    if found is None:
        _check_relatives(path, names)
    return found


def _check_relatives(path: Path, names: list[str]) -> None:
    """ValueError if there is a set that only resembles MNIST."""
    for folder in (path, path / "raw"):
        is_other = _kind_by_name(folder) == "other" and any((folder / name).is_file() for name in names)
        if is_other or any(folder.glob("emnist-*idx[13]-ubyte*")):
            raise ValueError(
                f"{folder}: a relative of MNIST by its name, with classes of its own (and EMNIST's images lie on their "
                "side): open it with torchvision.datasets and shard it as an ArraySource, with its class names; or say "
                "--source mnist if it is MNIST"
            )


def _kind_by_name(folder: Path) -> str | None:
    """The kind, "other" for EMNIST, KMNIST and the like, or None if the name says nothing."""
    folder = folder.resolve()
    name = (folder.parent.name if folder.name == "raw" else folder.name).lower()
    letters = "".join(letter for letter in name if letter.isalpha())
    if "fashion" in letters or "fmnist" in letters:
        return "fashion-mnist"
    if re.search(r"[a-z]mnist|\b[a-z][-_ ]mnist", name):
        return "other"
    return "mnist" if "mnist" in letters else None


def _read(folder: Path, kind: str, split: str) -> Source:
    images_file, labels_file = _file(folder, split, "images"), _file(folder, split, "labels")
    images, labels = _read_idx(images_file, _IMAGES_MAGIC), _read_idx(labels_file, _LABELS_MAGIC)
    if labels.size and (labels.min(), labels.max()) == (1, 26):
        raise ValueError(f"{labels_file}: labels 1..26 are those of EMNIST's letters, expected 0..9 of {kind}")
    files = f"{images_file}, {labels_file.name}"
    return ArraySource(images, labels, CLASSES[kind], kind=kind, split=split, where=files)


def _read_idx(path: Path, magic: int) -> U8:
    """u8[n] of labels, u8[n rows columns] of images."""
    data = _read_bytes(path)
    if data[:4] != magic.to_bytes(4, "big"):
        raise ValueError(f"{path}: wrong magic number: expected {magic}, got {int.from_bytes(data[:4], 'big')}")
    header = 4 + 4 * (magic & 0xFF)  # its last byte is the number of dimensions
    dimensions = np.frombuffer(data[4:header], ">u4").tolist() if len(data) >= header else []
    num_bytes = header + math.prod(dimensions) if dimensions else header
    if len(data) != num_bytes:
        fault = "cut short" if len(data) < num_bytes else "longer than its header says"
        raise ValueError(f"{path}: the file is {fault}: expected {num_bytes} bytes, got {len(data)}; fetch it again")
    return np.frombuffer(data, np.uint8, offset=header).reshape(dimensions)


def _names(split: str, part: str) -> list[str]:
    """The names that a file may have. A plain one goes first: reading it saves 0.4 s of the 60,000 images."""
    plain = [f"{_PREFIX[split]}-{part}{mark}idx{3 if part == 'images' else 1}-ubyte" for mark in "-."]
    return [*plain, *(f"{name}.gz" for name in plain)]


def _file(folder: Path, split: str, part: str) -> Path:
    """The first of them that is there, else the one that is missing."""
    paths = [folder / name for name in _names(split, part)]
    return next((path for path in paths if path.is_file()), paths[0])


def _read_bytes(path: Path) -> bytes:
    check_file(path)
    if path.suffix != ".gz":
        return path.read_bytes()
    try:
        with gzip.open(path) as file:
            return file.read()
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise ValueError(f"{path}: broken gzip file ({error}); fetch it again") from None
