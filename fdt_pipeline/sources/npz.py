"""NumPy archives: `images` u8[n h w c] or u8[n h w], `labels` int[n] or int[n 1].

`classes` str[num_classes] may be there as well. SOURCE is one .npz file (no splits), or a folder with train.npz and
test.npz.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from .arrays import ArraySource, flat
from .source import Found, Source, check_file, few, numbered_classes


def find(path: Path, kind: str, asked: bool) -> Found | None:
    if path.is_file():
        return Found(kind, (), lambda split: _read(path, split)) if path.suffix == ".npz" else None
    splits = tuple(split for split in ("train", "test") if (path / f"{split}.npz").is_file())
    return Found(kind, splits, lambda split: _read(path / f"{split}.npz", split)) if splits else None


def npy_files(path: Path) -> str:
    """What an error says of .npy files, which do not tell which rows of which are the images and labels of a set; ""
    where there are none."""
    files = sorted(path.glob("*.npy")) if path.is_dir() else [path] if path.suffix == ".npy" else []
    shown, of_five = [], False
    for file in files:
        try:
            array = np.load(file, mmap_mode="r", allow_pickle=False)
        except (ValueError, OSError):
            continue
        shown.append(f"{file.name} ({array.dtype} {list(array.shape)})")
        of_five = of_five or array.shape[:1] == (50_000,)
    if not shown:
        return ""
    severities = ", and 50,000 rows may be five severities of 10,000, as in CIFAR-10-C" if of_five else ""
    return (
        f"{path}: {few(shown)}: .npy files do not say which rows are a set{severities}; choose them: "
        f"numpy.savez('set.npz', images=images[{'20000:30000' if of_five else ':'}], labels=...)"
    )


def _read(file: Path, split: str | None) -> Source:
    arrays = _load(file, "images", "labels", "classes")
    own = _names(arrays, file)
    train = file.with_name("train.npz")
    if file.name == "test.npz" and train.is_file():
        # A test file without names has those of its train file, so that labels mean the same.
        of_train = _load(train, "labels", "classes")
        names = _names(of_train, train)
        if names is not None and own not in (None, names):
            raise ValueError(f"{file}: classes must be those of train.npz, {names}, got {own}")
        own = own or names or numbered_classes(of_train["labels"], train)
    return ArraySource(arrays["images"], arrays["labels"], own, kind="npz", split=split, where=file)


def _names(arrays: dict[str, Any], file: Path) -> Sequence[str] | None:
    """The file's own class names, where it has some."""
    classes = arrays.get("classes")
    if classes is None:
        return None
    if classes.ndim != 1 or classes.dtype.kind not in "USiu":
        raise ValueError(
            f"{file}: classes must be strings of shape [num_classes], got {classes.dtype} {list(classes.shape)}"
        )
    try:
        return [name.decode("utf-8") if isinstance(name, bytes) else str(name) for name in classes.tolist()]
    except UnicodeDecodeError as error:
        raise ValueError(f"{file}: classes must be UTF-8 where they are byte strings: {error}") from None


def _load(file: Path, *names: str) -> dict[str, Any]:
    """The arrays of these names, "classes" only if it is there."""
    check_file(file)
    try:
        # Opened here, because np.load leaves a file open that turns out to be broken.
        with file.open("rb") as opened, np.load(opened, allow_pickle=False) as archive:
            there = list(archive)
            arrays = {name: archive[name] for name in names if name in there}
            arrays |= {"labels": flat(arrays["labels"])} if "labels" in arrays else {}
    except Exception as error:  # zipfile, zlib and numpy each have errors of their own for broken bytes
        raise ValueError(
            f"{file}: not a readable .npz file of plain arrays ({error}); write it with numpy.savez"
        ) from None
    if {*names} - {*arrays, "classes"}:
        got = ", ".join(there) or "none"
        raise ValueError(f"{file}: expected arrays named images and labels, got {got}")
    return arrays
