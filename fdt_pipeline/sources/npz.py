"""NumPy archives: `images` u8[n h w c] or u8[n h w], `labels` int[n] and, if wanted, `classes` str[num_classes].

SOURCE is one .npz file (no splits), or a folder with train.npz and test.npz.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from .arrays import ArraySource
from .checks import check_file
from .source import Source

SPLITS = ("train", "test")


def find(path: Path, kind: str) -> Path | None:
    if path.is_file():
        return path if path.suffix == ".npz" else None
    return path if splits(path, kind) else None


def splits(path: Path, kind: str) -> tuple[str, ...]:
    return tuple(split for split in SPLITS if (path / f"{split}.npz").is_file())


def read(path: Path, kind: str, split: str | None) -> Source:
    file = path if split is None else path / f"{split}.npz"
    images, labels = _read_array(file, "images"), _read_array(file, "labels")
    return ArraySource(images, labels, _classes(file), kind=kind, split=split, where=file)


def _classes(file: Path) -> list[str] | None:
    """The file's own names; a test file that has none goes by its train file, so that labels mean the same."""
    own = _own_classes(file)
    train = file.with_name("train.npz")
    if file.name != "test.npz" or not train.is_file():
        return own
    of_train = _own_classes(train)
    if own is None:
        return of_train or [str(label) for label in range(int(_read_array(train, "labels").max()) + 1)]
    if of_train is not None and own != of_train:
        raise ValueError(f"{file}: classes must be those of train.npz, {of_train}, got {own}")
    return own


def _own_classes(file: Path) -> list[str] | None:
    classes = _read_array(file, "classes", required=False)
    return None if classes is None else [str(name) for name in classes]


def _read_array(file: Path, name: str, required: bool = True) -> Any:
    check_file(file, file.is_file())
    try:
        # Opened here, because np.load leaves a file open that turns out to be broken.
        with file.open("rb") as opened, np.load(opened, allow_pickle=False) as archive:
            if name in archive:
                return archive[name]
            names = list(archive)
    except Exception as error:  # zipfile, zlib and numpy each have errors of their own for broken bytes
        raise ValueError(
            f"{file}: not a readable .npz file of plain arrays ({error}); write it with numpy.savez"
        ) from None
    if required:
        raise ValueError(f"{file}: expected arrays named images and labels, got {', '.join(names) or 'none'}")
    return None
