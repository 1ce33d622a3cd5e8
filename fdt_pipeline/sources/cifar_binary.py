"""CIFAR's binary files: rows of label bytes (CIFAR-100: coarse, fine) and 3072 pixels, red plane first."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from .checks import check_file
from .source import U8

NUM_PIXELS = 3 * 32 * 32
NUM_LABELS = {"cifar10": 1, "cifar100": 2}
NAMES_FILE = {"cifar10": "batches.meta.txt", "cifar100": "fine_label_names.txt"}


def read_binary(path: Path, kind: str) -> tuple[U8, U8]:
    """(planes u8[n 3 32 32], fine labels u8[n])."""
    check_file(path, path.is_file())
    data = np.fromfile(path, np.uint8)
    row = NUM_LABELS[kind] + NUM_PIXELS
    num_rows, rest = divmod(data.size, row)
    if rest or not num_rows:
        raise ValueError(
            f"{path}: the file is cut short: expected a multiple of {row} bytes, at least {(num_rows + 1) * row}, "
            f"got {data.size}; fetch it again"
        )
    rows = data.reshape(num_rows, row)
    return rows[:, NUM_LABELS[kind] :].reshape(num_rows, 3, 32, 32), rows[:, NUM_LABELS[kind] - 1]


def read_binary_names(folder: Path, kind: str) -> tuple[str, ...] | None:
    """One name a line, blank lines aside; None if the file is not there."""
    path = folder / NAMES_FILE[kind]
    if not path.is_file():
        return None
    try:
        lines = path.read_text(encoding="ascii").split("\n")
    except UnicodeDecodeError as error:
        got = f"byte {error.object[error.start]} at position {error.start}"
        raise ValueError(f"{path}: expected class names in ASCII, got {got}; fetch it again") from None
    return tuple(line.strip() for line in lines if line.strip())
