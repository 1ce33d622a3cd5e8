"""The paper's claims, judged on the records: a claim is a difference between two columns over their seeds.

A difference is of the means in percentage points, with Welch's interval: deviations may differ, seeds are not paired.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from statistics import fmean, stdev
from typing import Literal

from scipy.stats import ttest_ind

from train.recipes import GAMMAS
from train.reproduce.paper import COLUMNS, DATASETS, Row
from train.reproduce.record import Record
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
CONFIDENCE = 0.95
CONFIDENCE_TEXT = f"{100 * CONFIDENCE:g} %"
# "Keeps accuracy" is a claim of no loss: within half a point, the paper's largest standard deviation on CIFAR-100 being
# 0.61 and its largest loss through FDT 0.10.
KEEPS_WITHIN = 0.5


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


def deviation(values: Sequence[float]) -> float | None:
    """The standard deviation with ddof 1; None for a single value."""
    return stdev(values) if len(values) > 1 else None


@dataclass(frozen=True)
class Difference:
    """mean(a) - mean(b); standard error and interval are None unless both have two seeds or more."""

    value: float
    standard_error: float | None = None
    low: float | None = None
    high: float | None = None


def difference(a: Sequence[float], b: Sequence[float]) -> Difference:
    """Welch's, with an interval of CONFIDENCE."""
    value = fmean(a) - fmean(b)
    if len(a) < 2 or len(b) < 2:
        return Difference(value)
    error = math.sqrt(stdev(a) ** 2 / len(a) + stdev(b) ** 2 / len(b))
    if error == 0:
        return Difference(value, 0.0, value, value)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # scipy's, of seeds with equal figures
        interval = ttest_ind(a, b, equal_var=False).confidence_interval(CONFIDENCE)
    return Difference(value, error, float(interval.low), float(interval.high))


CLEAN, AUTOATTACK = Measure("clean"), Measure("autoattack")


@dataclass(frozen=True)
class Claim:
    """`better` is said to exceed `worse` by more than -margin points, in the measure's figure."""

    text: str
    better: str
    worse: str
    measure: Measure
    margin: float = 0.0

    @property
    def compared(self) -> str:
        what = "clean" if self.measure.kind == "clean" else f"Eq. 7, eps {self.measure.eps:g}"
        return f"{label(self.better)} - {label(self.worse)}, {what}"


@dataclass(frozen=True)
class Verdict:
    """ours, last, autoattack: the difference in the claim's measure, at the attack's last iterate, under AutoAttack;
    None where a column has no figure. paper: the printed difference."""

    claim: Claim
    paper: float | None
    ours: Difference | None
    last: Difference | None
    autoattack: Difference | None

    @property
    def word(self) -> str:
        """By the 95 % interval of the difference."""
        if self.ours is None:
            return "not run"
        return verdict(self.ours, self.claim.margin)


def verdict(found: Difference, margin: float) -> str:
    """holds: the whole interval is above -margin; does not hold: all of it is below; else undecided."""
    if found.low is None or found.high is None:
        return "one seed: undecided"
    if found.low > -margin:
        return "holds"
    return "does not hold" if found.high < -margin else "undecided"


def claims_of(eps_values: Sequence[float]) -> list[Claim]:
    """Eq. 7 claims are made at every radius: the paper's own gap closes as eps goes to 0."""
    robust = [Measure("mean", eps) for eps in eps_values]
    return [
        Claim("TN helps", "tn", "plain", CLEAN),
        Claim("TN helps", "tn_fdt", "fdt", CLEAN),
        Claim("FDT keeps accuracy", "fdt", "plain", CLEAN, KEEPS_WITHIN),
        *(Claim("FDT is more robust by Eq. 7", "fdt", "plain", measure) for measure in robust),
        Claim("OV is worse than FDT", "fdt", "ov", CLEAN),
        *(Claim("OV is worse than FDT", "fdt", "ov", measure) for measure in robust),
        Claim("both together", "tn_fdt", "plain", CLEAN),
        *(Claim("both together", "tn_fdt", "plain", measure) for measure in robust),
    ]


def judge(results: Results, eps_values: Sequence[float]) -> list[Verdict]:
    """Of the claims whose two columns are rows of this table, run or not."""
    return [
        _judge(results, claim)
        for claim in claims_of(eps_values)
        if claim.better in results.columns and claim.worse in results.columns
    ]


def _judge(results: Results, claim: Claim) -> Verdict:
    robust = claim.measure.kind != "clean"
    return Verdict(
        claim,
        _paper_difference(results, claim),
        _difference(results, claim, claim.measure),
        _difference(results, claim, Measure("last", claim.measure.eps)) if robust else None,
        _difference(results, claim, AUTOATTACK) if robust else None,
    )


def _difference(results: Results, claim: Claim, measure: Measure) -> Difference | None:
    better, worse = results.values(claim.better, measure), results.values(claim.worse, measure)
    return difference(better, worse) if better and worse else None


def _paper_difference(results: Results, claim: Claim) -> float | None:
    better, worse = results.row(claim.better).paper, results.row(claim.worse).paper
    if better is None or worse is None:
        return None
    if claim.measure.eps is None:
        return better.clean - worse.clean
    high, low = better.at(claim.measure.eps), worse.at(claim.measure.eps)
    return None if high is None or low is None else high - low
