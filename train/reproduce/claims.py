"""The paper's claims as differences between two columns, each with its error and a verdict."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from train.reproduce.differences import CONFIDENCE, Difference, difference
from train.reproduce.results import Measure, Results, label

# "Keeps accuracy" is a claim of no loss: within half a point, the paper's largest standard deviation on CIFAR-100 being
# 0.61 and its largest loss through FDT 0.10.
KEEPS_WITHIN = 0.5
CONFIDENCE_TEXT = f"{100 * CONFIDENCE:g} %"
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
