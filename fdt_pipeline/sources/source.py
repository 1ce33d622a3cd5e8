"""What every source is: a sequence of labelled 8-bit images that can be asked for one by one."""

from __future__ import annotations

import copy
import re
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol, cast

import numpy as np
import numpy.typing as npt

U8 = npt.NDArray[np.uint8]
I64 = npt.NDArray[np.int64]


class Sample(NamedTuple):
    """image u8[h w c] in C order, c = 1 (gray) or 3 (RGB); label in 0..len(classes)-1; key, unique in its source."""

    image: U8
    label: int
    key: str


class Source(Protocol):
    """Labels are known without reading an image; images are read when asked for.

    A source may have more methods: `take(positions i64[m]) -> Source`, these samples alone, which other processes get
    instead of the whole; `key(i) -> str`, without reading the image; `channels` and `read_file(i) -> bytes`, if samples
    are image files, which may then be kept; `states(positions)`, for each a str that is different when the file has
    changed, so that a resumed run does it again; `close()`.
    """

    @property
    def kind(self) -> str: ...

    @property
    def split(self) -> str | None: ...

    @property
    def classes(self) -> tuple[str, ...]: ...

    @property
    def labels(self) -> I64: ...

    @property
    def shape(self) -> tuple[int, int, int] | None:
        """(h, w, c) if all images are known to have it, else None."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> Sample: ...


class Found(NamedTuple):
    """A data set that was found in some files; `read` opens one of its splits, or with None a set that has none."""

    kind: str
    splits: tuple[str, ...]
    read: Callable[[str | None], Source]


MAX_NUMBERED_CLASSES = 65_536


def check_label_array(labels: npt.NDArray[np.integer], where: object) -> None:
    """ValueError unless they are integers of shape [n], n > 0."""
    if labels.ndim != 1 or not np.issubdtype(labels.dtype, np.integer):
        raise ValueError(f"{where}: labels must be integers of shape [n], got {labels.dtype} {list(labels.shape)}")
    if not len(labels):
        raise ValueError(f"{where}: expected labels, got none; add samples")


def numbered_classes(labels: npt.NDArray[np.integer], where: object) -> tuple[str, ...]:
    """ "0", "1", ... up to the largest label; ValueError if that is too large to be the number of a class."""
    check_label_array(labels, where)
    largest, bound = int(labels.max()), max(MAX_NUMBERED_CLASSES, len(labels))
    if largest >= bound:
        raise ValueError(
            f"{where}: label {largest} at index {labels.argmax()} is out of range: expected 0..{bound - 1} where no "
            "class names are given; number the classes from 0, or name them"
        )
    return tuple(str(label) for label in range(max(largest, 0) + 1))


def ordered_classes(names: Iterable[str]) -> tuple[str, ...]:
    """The different names, by their numbers where all are whole numbers (2 before 10), else as text."""
    different = sorted(set(names))
    if all(re.fullmatch(r"-?\d{1,18}", name) for name in different):
        different.sort(key=int)
    return tuple(different)


def with_classes(source: Source, classes: tuple[str, ...], where: str) -> Source:
    """The same samples, their labels as numbers of these classes: those of another split, which lies at `where`."""
    numbers = {name: number for number, name in enumerate(classes)}
    if unknown := [name for name in source.classes if name not in numbers]:
        raise ValueError(
            f"expected only the {len(classes)} classes of {where}, got {few(unknown)} as well: splits of a data set "
            "share their classes; for another data set choose a folder that is not beside it"
        )
    if source.classes == classes:
        return source
    other: Any = copy.copy(source)
    other.classes, other.labels = classes, np.array([numbers[name] for name in source.classes])[source.labels]
    return cast(Source, other)


def few(names: Sequence[str]) -> str:
    """The first three, for an error or a warning that says how many there are."""
    return ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")


def check_class_names(names: Sequence[object]) -> None:
    """ValueError unless they are strings, not empty, and all different."""
    for index, name in enumerate(names):
        if not isinstance(name, str) or not name:
            raise ValueError(f"class names must be strings that are not empty, got {name!r} for class {index}")
    if len(set(names)) != len(names):
        [(name, count)] = Counter(names).most_common(1)
        raise ValueError(f"class names must differ, got {name!r} {count} times")


def check_labels(labels: npt.NDArray[np.integer], num_classes: int, where: object, first: int = 0) -> None:
    """ValueError for the first label outside [first, first + num_classes)."""
    wrong = np.flatnonzero((labels < first) | (labels >= first + num_classes))
    if wrong.size:
        raise ValueError(
            f"{where}: label {int(labels[wrong[0]])} at index {wrong[0]} is out of range: "
            f"expected {first}..{first + num_classes - 1} for {num_classes} classes"
        )


def check_file(path: Path) -> None:
    """ValueError if it is missing, or a Git LFS pointer."""
    if not path.is_file():
        raise ValueError(f"{path}: the file is missing; fetch it, or choose a split that does not need it with --split")
    with path.open("rb") as file:
        beginning = file.read(len(_LFS_POINTER))
    try:
        check_no_pointer(beginning)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None


_LFS_POINTER = b"version https://git-lfs.github.com/spec/"


def check_no_pointer(beginning: bytes) -> None:
    """ValueError if a file begins as what stands in its place until Git LFS has fetched it."""
    if beginning.startswith(_LFS_POINTER):
        raise ValueError("a Git LFS pointer, not the file itself: git lfs pull")


def find_official(
    kind: str, folders: Iterable[Path], names: Collection[str], read: Callable[[Path, str, str], Source]
) -> Found | None:
    """An official set in the first folder that holds at least one file of these names; `read(folder, kind, split)`."""
    folder = next((folder for folder in folders if any((folder / name).is_file() for name in names)), None)
    return None if folder is None else Found(kind, ("train", "test"), lambda split: read(folder, kind, str(split)))
