"""Records as a table asks for them: one measure of one row over its seeds."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

from train.recipes import GAMMAS
from train.reproduce.paper import COLUMNS, DATASETS
from train.reproduce.record import Record
from train.reproduce.rows import Row
from train.robust_accuracy import RobustnessAtEps

Kind = Literal["clean", "mean", "last", "worst", "autoattack"]
NETWORKS = {"resnet34": "ResNet-34", "resnet152": "ResNet-152", "wrn28_10": "WRN-28-10", "small": "small ResNet"}
LABELS = {
    "plain": "plain",
    "ov": "OV",
    "fdt": "FDT",
    "tn": "TN",
    "tn_fdt": "TN+FDT",
    "label_smoothing": "label smoothing",
    "mixup": "mixup",
    "fdt_k2": "FDT, K = 2",
    "tn_exact": "TN, exact gradient",
    "pono": "PONO",
    **{f"fdt_gamma{gamma:g}": f"FDT, gamma = {gamma:g}" for gamma in GAMMAS},
}


@dataclass(frozen=True)
class Measure:
    """`eps` is None for what has no radius of the table: clean, and AutoAttack, which has its own."""

    kind: Kind
    eps: float | None = None

    def of(self, record: Record) -> float | None:
        """Percent, None where it was not measured."""
        if self.kind == "clean":
            return 100 * record.clean
        if self.kind == "autoattack":
            return None if record.autoattack is None else 100 * record.autoattack
        assert self.eps is not None
        radius: RobustnessAtEps = record.robustness.at(self.eps)
        return 100 * {"mean": radius.mean, "last": radius.last, "worst": radius.worst}[self.kind]


@dataclass(frozen=True)
class Results:
    """The records of one data set and network, by column in the paper's order, controls after it."""

    dataset: str
    model: str
    columns: dict[str, tuple[Record, ...]]

    @property
    def title(self) -> str:
        return f"{data_title(self.dataset)}, {NETWORKS.get(self.model, self.model)}"

    def row(self, column: str) -> Row:
        return Row(self.dataset, self.model, column)

    def values(self, column: str, measure: Measure) -> list[float]:
        """Percent, one a seed; empty where there is no record or none has the measure."""
        values = (measure.of(record) for record in self.columns.get(column, ()))
        return [value for value in values if value is not None]


def data_title(dataset: str) -> str:
    return DATASETS.get(dataset, dataset)


def label(column: str) -> str:
    return LABELS.get(column, column)


def grouped(rows: Sequence[Row], records: Iterable[Record]) -> list[Results]:
    """One for each data set and network of `rows`; a column without records is there, and empty."""
    by_row: dict[Row, list[Record]] = {}
    for record in records:
        by_row.setdefault(record.row, []).append(record)
    groups: dict[tuple[str, str], list[str]] = {}
    for row in rows:
        groups.setdefault((row.dataset, row.model), []).append(row.column)
    return [
        Results(
            dataset,
            model,
            {column: _seeds(by_row.get(Row(dataset, model, column), [])) for column in sorted(columns, key=_place)},
        )
        for (dataset, model), columns in groups.items()
    ]


def _seeds(records: list[Record]) -> tuple[Record, ...]:
    return tuple(sorted(records, key=lambda record: record.seed))


def _place(column: str) -> int:
    """sorted() keeps the controls' own order."""
    return COLUMNS.index(column) if column in COLUMNS else len(COLUMNS)
