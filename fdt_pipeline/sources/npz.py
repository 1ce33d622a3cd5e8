"""NumPy archives: `images` u8[n h w c] or u8[n h w], `labels` int[n] and, if wanted, `classes` str[num_classes].

SOURCE is one .npz file (no splits), or a folder with train.npz and test.npz.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from .arrays import ArraySource
from .source import Found, Source, check_file, numbered_classes


def find(path: Path, kind: str, asked: bool) -> Found | None:
    if path.is_file():
        return Found(kind, (), lambda split: _read(path, split)) if path.suffix == ".npz" else None
    splits = tuple(split for split in ("train", "test") if (path / f"{split}.npz").is_file())
    return Found(kind, splits, lambda split: _read(path / f"{split}.npz", split)) if splits else None


def _read(file: Path, split: str | None) -> Source:
    images, labels = _read_array(file, "images"), _read_array(file, "labels")
    return ArraySource(images, labels, _classes(file), kind="npz", split=split, where=file)


def _classes(file: Path) -> Sequence[str] | None:
    """The file's own names; a test file without names has those of its train file, so that labels mean the same."""
    own = _own_classes(file)
    train = file.with_name("train.npz")
    if file.name != "test.npz" or not train.is_file():
        return own
    of_train = _own_classes(train)
    if own is None:
        return of_train or numbered_classes(np.asarray(_read_array(train, "labels")), train)
    if of_train is not None and own != of_train:
        raise ValueError(f"{file}: classes must be those of train.npz, {of_train}, got {own}")
    return own


def _own_classes(file: Path) -> list[str] | None:
    classes = _read_array(file, "classes", required=False)
    if classes is None:
        return None
    if not isinstance(classes, np.ndarray) or classes.ndim != 1 or classes.dtype.kind not in "USiu":
        got = f"{classes.dtype} {list(classes.shape)}" if isinstance(classes, np.ndarray) else type(classes).__name__
        raise ValueError(f"{file}: classes must be strings of shape [num_classes], got {got}")
    try:
        return [name.decode("utf-8") if isinstance(name, bytes) else str(name) for name in classes.tolist()]
    except UnicodeDecodeError as error:
        raise ValueError(f"{file}: classes must be UTF-8 where they are byte strings: {error}") from None


def _read_array(file: Path, name: str, required: bool = True) -> Any:
    check_file(file)
    try:
        # Opened here, because np.load leaves a file open that turns out to be broken.
        with file.open("rb") as opened:
            return _member(np.load(opened, allow_pickle=False), name, required)
    except KeyError as error:
        raise ValueError(f"{file}: expected arrays named images and labels, got {error.args[0]}") from None
    except Exception as error:  # zipfile, zlib and numpy each have errors of their own for broken bytes
        raise ValueError(
            f"{file}: not a readable .npz file of plain arrays ({error}); write it with numpy.savez"
        ) from None


def _member(archive: Any, name: str, required: bool) -> Any:
    """KeyError with the names that there are if it is required and not there."""
    if isinstance(archive, np.ndarray):
        raise TypeError("it is a single array, as .npy files are")
    with archive:
        if name in archive:
            return archive[name]
        if required:
            raise KeyError(", ".join(archive) or "none")
    return None
