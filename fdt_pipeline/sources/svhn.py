"""SVHN, format 2: train_32x32.mat and test_32x32.mat with X u8[32 32 3 n] and y [n 1], digits 1..10.

Source: http://ufldl.stanford.edu/housenumbers. Digit 0 is written as label 10; here it is class 0.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from .arrays import ArraySource
from .idx import DIGITS
from .source import I64, Found, Source, check_file, check_labels, find_official

FILES = {"train": "train_32x32.mat", "test": "test_32x32.mat"}


def find(path: Path, kind: str, asked: bool) -> Found | None:
    return find_official(kind, (path, path / "svhn", path / "SVHN"), FILES.values(), _read)


def _read(folder: Path, kind: str, split: str) -> Source:
    path = folder / FILES[split]
    content = _load(path)
    images: Any = content.get("X")
    labels: Any = content.get("y")
    if not isinstance(images, np.ndarray) or images.shape[:3] != (32, 32, 3) or images.ndim != 4:
        raise ValueError(f"{path}: expected X of shape [32 32 3 n], got {list(np.shape(images))}")
    digits = _digits(np.ravel(labels), path)
    return ArraySource(images.transpose(3, 0, 1, 2), digits % 10, DIGITS, kind=kind, split=split, where=path)


def _digits(labels: npt.NDArray[Any], path: Path) -> I64:
    """Labels may be whole floats, as MATLAB's numbers are by default."""
    if labels.dtype.kind not in "iuf":
        raise ValueError(f"{path}: expected numbers in y, got {labels.dtype}; fetch it again")
    whole = np.isfinite(labels) & (labels == np.floor(labels))
    if not whole.all():
        index = int(np.argmin(whole))
        raise ValueError(f"{path}: expected whole numbers 1..10 in y, got {labels[index]} at index {index}")
    check_labels(labels, 10, path, first=1)
    return labels.astype(np.int64)


def _load(path: Path) -> dict[str, Any]:
    check_file(path)
    try:
        from scipy.io import loadmat
    except ImportError as error:
        raise ImportError("reading SVHN's .mat files needs scipy: pip install scipy") from error
    try:
        return loadmat(path)
    except Exception as error:  # the parser raises whatever broken bytes lead it to
        raise ValueError(f"{path}: not a readable MATLAB 5 file ({error}); fetch it again") from None
