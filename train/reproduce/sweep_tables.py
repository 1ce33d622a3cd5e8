"""Each control beside what it is to be told from."""

from __future__ import annotations

from collections.abc import Sequence

from train.recipes import GAMMAS
from train.reproduce.differences import difference
from train.reproduce.results import Measure, Results, label
from train.reproduce.tables import with_error
from train.robustness_table import markdown_table

NUM_RADII = 2  # the largest ones: below, nothing but clean accuracy shows
# The soft targets alone, and older mixing: do they do what FDT does to plain training? Other weights, another K: is it
# 1/i that does it? Another gradient, another norm: is it TN?
COMPARED = (
    ("fdt", "plain"),
    ("label_smoothing", "plain"),
    ("label_smoothing", "fdt"),
    ("mixup", "plain"),
    ("mixup", "fdt"),
    ("fdt_k2", "fdt"),
    *((f"fdt_gamma{gamma:g}", "fdt") for gamma in GAMMAS),
    ("tn", "plain"),
    ("tn_exact", "tn"),
    ("pono", "plain"),
    ("pono", "tn"),
)


def largest_radii(eps_values: Sequence[float]) -> list[float]:
    return sorted(eps_values, reverse=True)[:NUM_RADII]


def separation_table(results: Results, eps_values: Sequence[float]) -> str:
    """Differences of the means in points, each with its standard error where both columns have two seeds."""
    radii = largest_radii(eps_values)
    measures = [("clean", Measure("clean"))]
    for eps in radii:
        measures += [(f"Eq. 7, eps {eps:g}", Measure("mean", eps)), (f"last, eps {eps:g}", Measure("last", eps))]
    lines = [
        [f"{label(a)} - {label(b)}", *(_cell(results, a, b, measure) for _, measure in measures)]
        for a, b in COMPARED
        if results.columns.get(a) and results.columns.get(b)
    ]
    return "\n".join(markdown_table(["difference", *(name for name, _ in measures)], lines))


def _cell(results: Results, a: str, b: str, measure: Measure) -> str:
    return with_error(difference(results.values(a, measure), results.values(b, measure)))
