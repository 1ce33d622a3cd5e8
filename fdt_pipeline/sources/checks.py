"""Checks that every source makes of its labels, whatever file they came from."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt


def check_labels(labels: npt.NDArray[np.integer], num_classes: int, where: object, first: int = 0) -> None:
    """ValueError for the first label outside [first, first + num_classes)."""
    wrong = np.flatnonzero((labels < first) | (labels >= first + num_classes))
    if wrong.size:
        raise ValueError(
            f"{where}: label {int(labels[wrong[0]])} at index {wrong[0]} is out of range: "
            f"expected {first}..{first + num_classes - 1} for {num_classes} classes"
        )


def check_every_class_has_samples(
    labels: npt.NDArray[np.integer], classes: Sequence[str], split: str | None, where: object
) -> None:
    """ValueError if a class has no sample to train on. A test split may lack classes: it only measures."""
    if split not in (None, "train"):
        return
    empty = np.flatnonzero(np.bincount(labels, minlength=len(classes)) == 0)
    if empty.size:
        names = ", ".join(f"{index} ({classes[index]})" for index in empty[:5])
        raise ValueError(
            f"{where}: {empty.size} of {len(classes)} classes have no sample: {names}; add samples or drop the classes"
        )


def check_num_bytes(where: object, expected: int, got: int) -> None:
    if got != expected:
        fault = "cut short" if got < expected else "longer than its header says"
        raise ValueError(f"{where}: the file is {fault}: expected {expected} bytes, got {got}; fetch it again")


def check_file(path: object, found: bool) -> None:
    if not found:
        raise ValueError(f"{path}: the file is missing; fetch it, or choose a split that does not need it with --split")
