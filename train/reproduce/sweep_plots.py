"""The sweep's pictures: clean against robust accuracy, and both against the weight series."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from train.reproduce.differences import deviation
from train.reproduce.plots import COLORS, MARKERS, save
from train.reproduce.results import Kind, Measure, Results, label
from train.reproduce.sweep_tables import largest_radii

KINDS: tuple[tuple[Kind, str], ...] = (("mean", "Eq. 7 mean"), ("last", "last iterate"))


def draw_clean_against_robust(results: Results, eps_values: Sequence[float], path: Path) -> None:
    """Panels: the two largest radii by Eq. 7 and by the last iterate; a point a column, mean over the seeds."""
    radii = largest_radii(eps_values)
    figure = Figure(figsize=(6.2 * len(radii), 9.5), layout="constrained")
    panels = figure.subplots(len(KINDS), len(radii), squeeze=False, sharex=True)
    names = [column for column, records in results.columns.items() if records]
    for line, (kind, text) in zip(panels, KINDS, strict=True):
        for panel, eps in zip(line, radii, strict=True):
            for number, column in enumerate(names, 1):
                _draw_point(panel, results, column, Measure(kind, eps), number)
            panel.set_title(f"eps = {eps:g} ({eps * 256:.3g} grey levels)", fontsize=10)
            panel.set_ylabel(f"{text}, %")
            panel.grid(alpha=0.3)
            panel.margins(0.12)
            low, high = panel.get_ylim()
            panel.set_ylim(max(low, -0.5), max(high, 1))  # also where nothing is right any more
    for panel in panels[-1]:
        panel.set_xlabel("clean accuracy, %")
    handles, labels = panels[0][0].get_legend_handles_labels()
    figure.suptitle(f"{results.title}: clean against robust; bars are standard deviations over the seeds", fontsize=11)
    figure.legend(handles, labels, loc="outside right upper", frameon=False)
    save(figure, path)


def _draw_point(panel: Axes, results: Results, column: str, measure: Measure, number: int) -> None:
    """With its number beside it, as there are more columns than colours to tell apart."""
    clean, robust = results.values(column, Measure("clean")), results.values(column, measure)
    x, y = fmean(clean), fmean(robust)
    panel.errorbar(
        x,
        y,
        xerr=deviation(clean),
        yerr=deviation(robust),
        fmt=MARKERS.get(column, "^" if "gamma" in column else "o"),
        color=COLORS.get(column),
        label=f"{number}  {label(column)}",
        markersize=7,
        markeredgecolor="#222222",
        markeredgewidth=0.5,
        elinewidth=0.9,
    )
    panel.annotate(str(number), (x, y), xytext=(5, 4), textcoords="offset points", fontsize=9)


def draw_weight_series(
    results: Results, gamma_of: Mapping[str, float], eps_values: Sequence[float], path: Path
) -> None:
    """Clean and Eq.-7 accuracy of FDT against gamma, its weights being i^-gamma; the dotted line is plain training."""
    figure = Figure(figsize=(8, 4.6), layout="constrained")
    panel = figure.subplots()
    columns = sorted((c for c in gamma_of if results.columns.get(c)), key=gamma_of.__getitem__)
    measures = [(Measure("clean"), "clean"), *((Measure("mean", eps), f"Eq. 7, eps {eps:g}") for eps in eps_values)]
    for number, (measure, text) in enumerate(measures):
        values = [results.values(column, measure) for column in columns]
        panel.errorbar(
            [gamma_of[column] for column in columns],
            [fmean(found) for found in values],
            yerr=[deviation(found) or 0 for found in values],
            color=f"C{number}",
            marker="o",
            markersize=4,
            label=text,
        )
        plain = results.values("plain", measure)
        if plain:
            panel.axhline(fmean(plain), color=f"C{number}", linestyle=":", linewidth=1)
    panel.set_xlabel("gamma: image i weighs i^-gamma (1 is the paper's)")
    panel.set_ylabel("accuracy, %; dotted: plain training")
    panel.grid(alpha=0.3)
    panel.set_title(f"{results.title}: accuracy against the weight series", fontsize=11)
    figure.legend(loc="outside right upper", frameon=False)
    save(figure, path)
