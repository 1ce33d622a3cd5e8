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

Kind = Literal["clean", "mean", "last", "worst", "autoattack", "calibration"]
NETWORKS = {
    "resnet34": "ResNet-34",
    "resnet152": "ResNet-152",
    "wrn28_10": "WRN-28-10",
    "small": "small ResNet",
    "small32": "small ResNet, width 32",
    "small64": "small ResNet, width 64",
}
LABELS = {
    "plain": "plain",
    "ov": "OV",
    "fdt": "FDT",
    "tn": "TN",
    "tn_fdt": "TN+FDT",
    "label_smoothing": "label smoothing as FDT",
    "smoothing": "label smoothing 0.1",
    "mixup0.2": "MixUp 0.2",
    "mixup": "MixUp 1.0",
    "cutmix": "CutMix 1.0",
    "mixup_cutmix": "MixUp 0.8 or CutMix 1.0",
    "fdt_max2": "FDT, K <= 2",
    "zeta": "zeta-mixup",
    "mixup_unique": "FDT of 2, random weights",
    "fdt_k2": "FDT, K = 2",
    "fdt_epoch": "FDT, anchor epoch",
    "fdt_half": "FDT, probability 0.5",
    "fdt_clean10": "FDT, last 1/15 clean",
    "fdt_clean30": "FDT, last 1/5 clean",
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
    """`eps` is None for what has no radius: clean, and the calibration error. AutoAttack has radii of its own."""

    kind: Kind
    eps: float | None = None

    def of(self, record: Record) -> float | None:
        """Percent, None where it was not measured."""
        if self.eps is None:
            share = record.clean if self.kind == "clean" else record.calibration_error
        elif self.kind == "autoattack":
            share = record.under_autoattack(self.eps)
        else:
            share = getattr(record.robustness.at(self.eps), self.kind)
        return None if share is None else 100 * share


CLEAN, CALIBRATION = Measure("clean"), Measure("calibration")


@dataclass(frozen=True)
class Results:
    """The records of one data set and network, by column in the paper's order, controls after it."""

    dataset: str
    model: str
    columns: dict[str, tuple[Record, ...]]

    @property
    def title(self) -> str:
        return f"{DATASETS.get(self.dataset, self.dataset)}, {NETWORKS.get(self.model, self.model)}"

    @property
    def run(self) -> dict[str, tuple[Record, ...]]:
        """The columns that have records."""
        return {column: records for column, records in self.columns.items() if records}

    @property
    def autoattacks(self) -> list[Measure]:
        """AutoAttack at each radius that any record has, the smallest first."""
        found = {each["eps"] for records in self.run.values() for record in records for each in record.autoattacks}
        return [Measure("autoattack", eps) for eps in sorted(found)]

    def row(self, column: str) -> Row:
        return Row(self.dataset, self.model, column)

    def values(self, column: str, measure: Measure) -> list[float]:
        """Percent, one a seed; empty where there is no record or none has the measure."""
        values = (measure.of(record) for record in self.columns.get(column, ()))
        return [value for value in values if value is not None]

    def difference(self, a: str, b: str, measure: Measure) -> Difference | None:
        """None where a column has no figure."""
        of_a, of_b = self.values(a, measure), self.values(b, measure)
        return difference(of_a, of_b) if of_a and of_b else None

    def paper_difference(self, a: str, b: str, measure: Measure) -> float | None:
        """Of the printed figures, None where one is not printed."""
        printed = [None if row is None else row.figure(measure.eps) for row in (self.row(a).paper, self.row(b).paper)]
        return None if printed[0] is None or printed[1] is None else printed[0] - printed[1]


def grouped(rows: Sequence[Row], records: Iterable[Record]) -> list[Results]:
    """One for each data set and network of `rows`; a column without records is there, and empty."""
    groups: dict[tuple[str, str], Results] = {}
    for row in sorted(rows, key=lambda row: COLUMNS.index(row.column) if row.column in COLUMNS else len(COLUMNS)):
        groups.setdefault((row.dataset, row.model), Results(row.dataset, row.model, {})).columns[row.column] = ()
    for record in sorted(records, key=lambda record: record.seed):
        if (group := groups.get((record.row.dataset, record.row.model))) and record.row.column in group.columns:
            group.columns[record.row.column] += (record,)
    return [groups[place] for place in dict.fromkeys((row.dataset, row.model) for row in rows)]


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
        return f"{LABELS[self.better]} - {LABELS[self.worse]}, {what}"


@dataclass(frozen=True)
class Verdict:
    """ours, last, autoattack: the difference in the claim's measure, at the attack's last iterate, under AutoAttack at
    its smallest radius; None where a column has no figure. paper: the printed difference. word: by the 95 % interval of
    ours."""

    claim: Claim
    paper: float | None
    ours: Difference | None
    last: Difference | None
    autoattack: Difference | None
    word: str


def verdict(found: Difference | None, margin: float) -> str:
    """holds: the whole interval is above -margin; does not hold: all of it is below; else undecided."""
    if found is None:
        return "not run"
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
    verdicts = []
    for claim in claims_of(eps_values):
        pair = claim.better, claim.worse
        if results.columns.keys() >= {*pair}:
            ours, last, attacked = results.difference(*pair, claim.measure), None, None
            if claim.measure != CLEAN:
                last = results.difference(*pair, Measure("last", claim.measure.eps))
                attacks = results.autoattacks
                attacked = results.difference(*pair, attacks[0]) if attacks else None
            paper = results.paper_difference(*pair, claim.measure)
            verdicts.append(Verdict(claim, paper, ours, last, attacked, verdict(ours, claim.margin)))
    return verdicts
