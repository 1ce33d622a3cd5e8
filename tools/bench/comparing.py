"""What changed between two results, beyond noise."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from .report import text_table
from .results import estimate, measured, races, rates

SAME = ("data", "options")
# Options that change no rate.
REPEATING = ("repeats", "seconds", "widest", "timeout", "classes", "batch_sizes", "model")


@dataclass(frozen=True)
class Change:
    """How a contender's rate has changed.

    ratio: the later rate over the former; low and high: the least and most that it can be, from the intervals' ends.
    """

    name: str
    ratio: float
    low: float
    high: float

    def verdict(self, bound: float) -> str:
        """A regression is beyond noise, and more than `bound` of the rate."""
        if self.high < 1:
            return "regression" if self.ratio < 1 - bound else "slower, within the bound"
        return "faster" if self.low > 1 else "no change beyond noise"


def compare(before: dict[str, Any], after: dict[str, Any]) -> list[Change]:
    """The changes of what both have measured: images a second on one machine, ratios to the first contender on two.

    ValueError where the two do not measure the same.
    """
    _check_same(before, after)
    own_machine = before["machine"] == after["machine"]
    old, new = _values(before, own_machine), _values(after, own_machine)
    changes = []
    for name in (name for name in old if name in new):
        a, b = estimate(old[name]), estimate(new[name])
        changes.append(Change(name, b.median / a.median, b.low / a.high, b.high / a.low))
    if not changes:
        raise ValueError("the two results have no contender in common that was measured")
    return changes


def lost(before: dict[str, Any], after: dict[str, Any]) -> dict[str, str]:
    """Contenders that were measured before and are refused or fail now, each with the reason."""
    names = {one["name"] for one in measured(before["contenders"])}
    return {
        one["name"]: f"{one['status']}: {one['reason']}"
        for one in after["contenders"]
        if one["name"] in names and one["status"] in ("refused", "failed")
    }


def _check_same(before: dict[str, Any], after: dict[str, Any]) -> None:
    for part in SAME:
        for key in sorted((before[part].keys() | after[part].keys()) - set(REPEATING)):
            old, new = before[part].get(key), after[part].get(key)
            if old != new:
                raise ValueError(f"the two cannot be compared: {part}, {key}: {old} and {new}")


def _values(results: dict[str, Any], own_machine: bool) -> dict[str, list[float]]:
    """Name -> rates of the rounds, or on two machines their ratios to the first contender's of the same race."""
    found = {}
    for race, contenders in [("", results["contenders"]), *races(results)]:
        for contender in measured(contenders):
            under = [1.0] * len(contender["turns"]) if own_machine else rates(measured(contenders)[0])
            name = f"{race}: {contender['name']}" if race else contender["name"]
            found[name] = [a / b for a, b in zip(rates(contender), under, strict=True)]
    return found


def describe_changes(
    before: dict[str, Any], after: dict[str, Any], changes: list[Change], bound: float
) -> Iterator[str]:
    """Lines for people to read."""
    if before["machine"] != after["machine"]:
        yield "Two machines: the ratios to the first contender of each run are compared."
    rows = [("contender", "after : before", "interval", "")]
    for change in changes:
        between = f"{change.low:.3f} .. {change.high:.3f}"
        rows.append((change.name, f"{change.ratio:.3f}", between, change.verdict(bound)))
    yield from text_table(rows)
    yield from (f"{name}: regression: {reason}" for name, reason in lost(before, after).items())
    old, new = before["versions"], after["versions"]
    for name in sorted(old.keys() | new.keys()):
        if old.get(name) != new.get(name):
            yield f"{name}: {old.get(name)} -> {new.get(name)}"
