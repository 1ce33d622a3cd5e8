"""`--self-test`: the bench finds what is there, and nothing where there is nothing."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from .interval import Estimate, paired_ratio
from .race import Raced

ITSELF, AGAIN, PLANTED = "itself", "itself again", "a tenth slower"
LOST = 0.1  # planted: the share of images that are thrown away


@dataclass(frozen=True)
class Proof:
    """again: the same contender against itself. planted: one that is a tenth slower."""

    again: Estimate
    planted: Estimate

    @property
    def holds(self) -> bool:
        return self.again.covers(1) and self.planted.high < 1 and self.planted.covers(1 - LOST)

    def lines(self) -> Iterator[str]:
        yield f"against itself: {_told(self.again)}, expected to cover 1: {_verdict(self.again.covers(1))}"
        found = self.planted.high < 1 and self.planted.covers(1 - LOST)
        yield f"a planted tenth: {_told(self.planted)}, expected below 1 and to cover {1 - LOST}: {_verdict(found)}"


def prove(raced: dict[str, Raced]) -> Proof:
    """ValueError where the contender could not be measured."""
    for found in raced.values():
        if found.status != "measured":
            raise ValueError(f"the self-test needs a contender that can be measured: {found.status}: {found.reason}")
    rates = {name: [turn["rate"] for turn in found.turns] for name, found in raced.items()}
    return Proof(paired_ratio(rates[AGAIN], rates[ITSELF]), paired_ratio(rates[PLANTED], rates[ITSELF]))


def _told(ratio: Estimate) -> str:
    return f"{ratio.median:.3f} [{ratio.low:.3f}, {ratio.high:.3f}]"


def _verdict(holds: bool) -> str:
    return "yes" if holds else "NO"
