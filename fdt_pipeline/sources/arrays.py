"""A data set that is already in memory: one array of images, one of labels."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from .source import (
    I64,
    Sample,
    check_class_names,
    check_label_array,
    check_labels,
    numbered_classes,
)


class ArraySource:
    """images u8[n h w c] (c = 1 or 3) or u8[n h w] (gray), labels int[n] or int[n 1]; classes default to "0", "1", ...

    The images may be any strided view and are not copied. `where` names the data in errors.
    """

    def __init__(
        self,
        images: npt.NDArray[np.uint8],
        labels: npt.NDArray[np.integer] | Sequence[int],
        classes: Sequence[str] | None = None,
        *,
        kind: str = "arrays",
        split: str | None = None,
        where: object = "arrays",
    ) -> None:
        labels = flat(np.asarray(labels))
        _check_arrays(images, labels, where)
        self.labels, self.classes = checked_labels(labels, classes, split, where)
        _warn_of_severities(self.labels, where)
        self.images = images if images.ndim == 4 else images[..., None]
        self.kind, self.split = kind, split
        self.positions = np.arange(len(labels))
        height, width, channels = self.images.shape[1:]
        self.shape: tuple[int, int, int] | None = (height, width, channels)

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> Sample:
        """The key is the position in the whole source."""
        place = range(len(self))[index]
        image = np.ascontiguousarray(self.images[place])
        return Sample(image, int(self.labels[place]), str(self.positions[place]))

    def take(self, positions: I64) -> ArraySource:
        """A copy of these samples alone; they keep their keys."""
        some = copy.copy(self)
        some.images, some.labels = np.ascontiguousarray(self.images[positions]), self.labels[positions]
        some.positions = self.positions[positions]
        return some


def flat(labels: npt.NDArray[np.integer]) -> npt.NDArray[np.integer]:
    """int[n 1], as Keras and MedMNIST have labels -> int[n]; all else as it is."""
    return labels[:, 0] if labels.ndim == 2 and labels.shape[1] == 1 else labels


def checked_labels(
    labels: npt.NDArray[np.integer], classes: Sequence[str] | None, split: str | None, where: object
) -> tuple[I64, tuple[str, ...]]:
    """(i64[n], class names). ValueError for labels that are no integers or out of range, for names that are empty or
    not all different, and for a class without a sample unless this is a test split."""
    check_label_array(labels, where)
    names = _class_names(labels, classes, where)
    check_labels(labels, len(names), where)
    numbers = labels.astype(np.int64)
    if split in (None, "train"):  # a test split may lack classes: it only measures
        _check_every_class_has_samples(numbers, names, where)
    return numbers, names


def _class_names(labels: npt.NDArray[np.integer], classes: Sequence[str] | None, where: object) -> tuple[str, ...]:
    if classes is None:
        return numbered_classes(labels, where)
    names = tuple(str(name) for name in classes)
    try:
        check_class_names(names)
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from None
    return names


def _check_arrays(images: npt.NDArray[np.uint8], labels: npt.NDArray[np.integer], where: object) -> None:
    if not isinstance(images, np.ndarray) or images.dtype != np.uint8:
        got = images.dtype if isinstance(images, np.ndarray) else type(images).__name__
        raise ValueError(f"{where}: images must be a uint8 array with pixels 0..255, got {got}")
    if images.ndim not in (3, 4) or (images.ndim == 4 and images.shape[3] not in (1, 3)) or 0 in images.shape:
        raise ValueError(f"{where}: images must have shape [n h w], [n h w 1] or [n h w 3], got {list(images.shape)}")
    check_label_array(labels, where)
    if len(images) != len(labels):
        raise ValueError(f"{where}: expected one label an image, got {len(images)} images and {len(labels)} labels")


def _warn_of_severities(labels: I64, where: object) -> None:
    """CIFAR-10-C's arrays have 10,000 images in five severities, one behind the other."""
    once = labels[:10_000]
    if len(labels) == 50_000 and (labels.reshape(5, -1) == once).all() and (once[:5000] != once[5000:]).any():
        warnings.warn(
            f"{where}: the labels are five times the same 10,000, as CIFAR-10-C has one severity behind the other; all "
            "50,000 are taken: pass images[20_000:30_000] and their labels for the third severity alone",
            stacklevel=3,
        )


def _check_every_class_has_samples(labels: I64, classes: Sequence[str], where: object) -> None:
    empty = np.flatnonzero(np.bincount(labels, minlength=len(classes)) == 0)
    if empty.size:
        names = ", ".join(f"{index} ({classes[index]})" for index in empty[:5])
        raise ValueError(
            f"{where}: {empty.size} of {len(classes)} classes have no sample: {names}; add samples or drop the classes"
        )
