"""Interleaved rounds: in each, every contender has its turn, in an order that changes from round to round.

And their figures: medians with the least and the most, held against bounds.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from statistics import median
from typing import Any

Measure = Callable[[], float]


def turn_order(names: Sequence[str], number: int) -> list[str]:
    """Another name is first in every round, and every other round runs backwards: nobody always follows the same."""
    first = number % max(1, len(names))
    turned = [*names[first:], *names[:first]]
    return turned[::-1] if number % 2 else turned


def measure_rounds(contenders: Mapping[str, Measure], num_rounds: int) -> dict[str, list[float]]:
    """Name -> what the contender returned in each round. A round before them warms up and is left out."""
    found: dict[str, list[float]] = {name: [] for name in contenders}
    for round_number in range(num_rounds + 1):
        for name in turn_order(list(contenders), round_number):
            value = contenders[name]()
            if round_number:
                found[name].append(value)
    return found


def ratios(over: Sequence[float], under: Sequence[float]) -> list[float]:
    """Taken within a round: a clock that changes from one to the next cancels."""
    return [a / b for a, b in zip(over, under, strict=True)]


def rounded(value: float) -> float:
    return float(f"{value:.5g}")


def spread(values: Sequence[float]) -> dict[str, Any]:
    values = [rounded(value) for value in values]
    return {"median": median(values), "min": min(values), "max": max(values), "values": values}


def bounded(
    kind: str, name: str, values: Sequence[float], at_least: float | None = None, stretch: float | None = None
) -> dict[str, Any]:
    """A row of `table`: a figure or a ratio (the kind), and what it should at least be; None for a mere comparison."""
    return {kind: name, **spread(values), "at_least": at_least, "stretch": stretch}


def table(rows: Sequence[Mapping[str, Any]], kind: str = "ratio") -> str:
    """Median and interval of each, and whether the median is within the bounds."""
    lines = [f"| {kind} | median [min, max] | at least | stretch | holds |", "|---|---:|---:|---:|---|"]
    for row in rows:
        bounds = row["at_least"], row["stretch"]
        kept = [row["median"] >= bound for bound in bounds if bound is not None]
        holds = ("no", "yes", "stretch")[sum(kept)] if kept else ""
        cells = " | ".join("" if bound is None else number(bound) for bound in bounds)
        interval = f"{number(row['median'])} [{number(row['min'])}, {number(row['max'])}]"
        lines.append(f"| {row[kind]} | {interval} | {cells} | {holds} |")
    return "\n".join(lines)


def number(value: float) -> str:
    """Three digits, with commas between thousands."""
    shown = float(f"{value:.3g}")
    return f"{shown:,.0f}" if abs(shown) >= 100 else f"{shown:.3g}"
