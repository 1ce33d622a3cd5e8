"""The rows of a table: a data set, a network and a column each, in the order in which they are worth having."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase

from train.reproduce.paper import DATASETS, PAPER, PaperRow

# The two ends of the paper's claim first, then what separates them.
BY_WORTH = ("plain", "tn_fdt", "fdt", "tn", "ov")
TABLES = ("table1", "table2")
SCALES = ("full", "small")
SMALL_DATASETS = ("fashion-mnist", "cifar10")
SMALL_MODEL = "small"


@dataclass(frozen=True)
class Row:
    """`column` is one of the paper's, or a control's name (recipes.py)."""

    dataset: str
    model: str
    column: str

    @property
    def key(self) -> str:
        """Names files: cifar10-resnet34-tn_fdt."""
        return f"{self.dataset}-{self.model}-{self.column}"

    @property
    def paper(self) -> PaperRow | None:
        """What the paper has for it; a small network is set beside ResNet-34's."""
        model = "resnet34" if self.model == SMALL_MODEL else self.model
        return PAPER.get((self.dataset, model, self.column))


def table_rows(table: str, scale: str = "full") -> tuple[Row, ...]:
    """All rows of `table1` or `table2`; the small scale has Table 1's columns alone, on two data sets."""
    if table not in TABLES or scale not in SCALES:
        raise ValueError(f"expected one of {TABLES} at a scale of {SCALES}, got {table!r} at {scale!r}")
    if table == "table1":
        datasets, model = (DATASETS, "resnet34") if scale == "full" else (SMALL_DATASETS, SMALL_MODEL)
        return tuple(Row(dataset, model, column) for dataset in datasets for column in BY_WORTH)
    if scale == "small":
        raise ValueError("table2 is about two large networks: --scale small is for table1")
    return tuple(
        Row("cifar100", model, column) for model in ("resnet152", "wrn28_10") for column in ("plain", "tn_fdt")
    )


def select_rows(rows: Sequence[Row], patterns: Sequence[str] | None) -> tuple[Row, ...]:
    """The rows that any pattern names: a data set, a model, a column, or DATA-MODEL-COLUMN with * for any of it.

    ValueError for a pattern that names none.
    """
    if not patterns:
        return tuple(rows)
    for pattern in patterns:
        if not any(_names(pattern, row) for row in rows):
            raise ValueError(f"--only {pattern} names no row; rows: {', '.join(row.key for row in rows)}")
    return tuple(row for row in rows if any(_names(pattern, row) for pattern in patterns))


def _names(pattern: str, row: Row) -> bool:
    return pattern in (row.dataset, row.model, row.column) or fnmatchcase(row.key, pattern)
