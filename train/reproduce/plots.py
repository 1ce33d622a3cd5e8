"""The pictures of a report, drawn from the records alone: attack paths, learning curves, and the sweep's two."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from models import SMALL_WIDTHS
from train.plots import save_figure
from train.reproduce.claims import CLEAN, LABELS, Kind, Measure, Results, deviation
from train.reproduce.paper import DATASETS
from train.reproduce.tables import autoattack_names, largest_radii

# The paper's columns, then the controls; told apart by shape as well (MARKERS), as there are more than hues.
COLORS = {
    "plain": "#444444",
    "ov": "#d95f02",
    "fdt": "#1f77b4",
    "tn": "#4d9221",
    "tn_fdt": "#7b2d8e",
    "label_smoothing": "#8c564b",
    "mixup": "#e7298a",
    "fdt_k2": "#17becf",
    "tn_exact": "#a6d854",
    "pono": "#e6ab02",
    "fdt_gamma0.5": "#c6dbef",
    "fdt_gamma2": "#6baed6",
    "fdt_gamma2.8": "#3182bd",
    "fdt_gamma4": "#08306b",
}
MARKERS = {"tn_exact": "s", "pono": "s", "label_smoothing": "D", "mixup": "D", "fdt_k2": "D"}
WIDENED = ("plain", "fdt", "tn", "tn_fdt")  # asked for at each width
KINDS: tuple[tuple[Kind, str], ...] = (("mean", "Eq. 7 mean"), ("last", "last iterate"))


def draw_attack_paths(results: Results, eps_values: Sequence[float], path: Path) -> None:
    """One panel a radius: accuracy at x^0 .. x^T, mean over the seeds, with the band from their lowest to highest."""
    figure = Figure(figsize=(3.3 * len(eps_values), 3.7), layout="constrained")
    panels = figure.subplots(1, len(eps_values), sharey=True, squeeze=False)[0]
    for panel, eps in zip(panels, eps_values, strict=True):
        for column, records in results.run.items():
            curves = [[100 * share for share in record.robustness.at(eps).path] for record in records]
            _draw_band(panel, curves, column, first=0)
        panel.set_title(f"eps = {eps:g} ({eps * 256:.3g} grey levels)", fontsize=10)
        panel.set_xlabel("attack step t (the radius is eps from 30 on)", fontsize=8)
        panel.set_ylim(0, 100)
        panel.grid(alpha=0.3)
    panels[0].set_ylabel("accuracy at $x^t$, %")
    _legend(figure, panels[0], f"{results.title}: along the attack's path")
    save_figure(figure, path)


def draw_learning_curves(results: Results, path: Path) -> None:
    """Test accuracy, and the divergence of the model from its training targets, epoch by epoch."""
    figure = Figure(figsize=(10, 3.9), layout="constrained")
    left, right = figure.subplots(1, 2)
    for column, records in results.run.items():
        curves = [record.content["curves"] for record in records]
        _draw_band(left, [[100 * share for share in curve["test_accuracy"]] for curve in curves], column)
        _draw_band(right, [curve["train_kl"] for curve in curves], column)
    left.set_ylabel("test accuracy, %")
    right.set_ylabel("KL to the training targets, nats")
    right.set_yscale("log")
    for panel in (left, right):
        panel.set_xlabel("epoch")
        panel.xaxis.get_major_locator().set_params(integer=True)
        panel.grid(alpha=0.3)
    _legend(figure, left, f"{results.title}: learning curves")
    save_figure(figure, path)


def _draw_band(panel: Axes, curves: Sequence[Sequence[float]], column: str, first: int = 1) -> None:
    """The mean of curves, which may differ in length where a run was stopped, and their range."""
    length = min(map(len, curves))
    values: npt.NDArray[np.float64] = np.array([curve[:length] for curve in curves])
    x = np.arange(first, first + length)
    color = COLORS.get(column)
    (line,) = panel.plot(x, values.mean(0), color=color, label=LABELS[column], linewidth=1.7)
    if len(curves) > 1:
        panel.fill_between(x, values.min(0), values.max(0), color=line.get_color(), alpha=0.18, linewidth=0)


def _legend(figure: Figure, panel: Axes, title: str) -> None:
    handles, names = panel.get_legend_handles_labels()
    figure.suptitle(title, fontsize=11)
    figure.legend(handles, names, loc="outside lower center", ncols=len(names), frameon=False)


def draw_clean_against_robust(results: Results, eps_values: Sequence[float], path: Path) -> None:
    """Panels: the two largest radii by Eq. 7 and by the last iterate; a point a column, mean over the seeds."""
    radii = largest_radii(eps_values)
    figure = Figure(figsize=(6.2 * len(radii), 9.5), layout="constrained")
    panels = figure.subplots(len(KINDS), len(radii), squeeze=False, sharex=True)
    for line, (kind, text) in zip(panels, KINDS, strict=True):
        for panel, eps in zip(line, radii, strict=True):
            for number, column in enumerate(results.run, 1):
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
    save_figure(figure, path)


def _draw_point(panel: Axes, results: Results, column: str, measure: Measure, number: int) -> None:
    """With its number beside it, as there are more columns than colours to tell apart."""
    clean, robust = results.values(column, Measure("clean")), results.values(column, measure)
    x, y = fmean(clean), fmean(robust)
    marker = MARKERS.get(column, "^" if "gamma" in column else "o")
    look: dict[str, Any] = {"fmt": marker, "color": COLORS.get(column), "markersize": 7, "elinewidth": 0.9}
    edge: dict[str, Any] = {"markeredgecolor": "#222222", "markeredgewidth": 0.5}
    name, x_error, y_error = f"{number}  {LABELS[column]}", deviation(clean), deviation(robust)
    panel.errorbar(x, y, xerr=x_error, yerr=y_error, label=name, **look, **edge)
    panel.annotate(str(number), (x, y), xytext=(5, 4), textcoords="offset points", fontsize=9)


def draw_weight_series(
    results: Results, gamma_of: Mapping[str, float], eps_values: Sequence[float], path: Path
) -> None:
    """Clean and Eq.-7 accuracy of FDT against gamma, its weights being i^-gamma; the dotted line is plain training."""
    figure = Figure(figsize=(8, 4.6), layout="constrained")
    panel = figure.subplots()
    columns = sorted((c for c in gamma_of if results.columns.get(c)), key=gamma_of.__getitem__)
    measures = [(Measure("clean"), "clean"), *((Measure("mean", eps), f"Eq. 7, eps {eps:g}") for eps in eps_values)]
    gammas = [gamma_of[column] for column in columns]
    for number, (measure, text) in enumerate(measures):
        values, color = [results.values(column, measure) for column in columns], f"C{number}"
        errors = [deviation(found) or 0 for found in values]
        panel.errorbar(gammas, list(map(fmean, values)), errors, color=color, marker="o", markersize=4, label=text)
        plain = results.values("plain", measure)
        if plain:
            panel.axhline(fmean(plain), color=color, linestyle=":", linewidth=1)
    panel.set_xlabel("gamma: image i weighs i^-gamma (1 is the paper's)")
    panel.set_ylabel("accuracy, %; dotted: plain training")
    panel.grid(alpha=0.3)
    panel.set_title(f"{results.title}: accuracy against the weight series", fontsize=11)
    figure.legend(loc="outside right upper", frameon=False)
    save_figure(figure, path)


def draw_widths(groups: Sequence[Results], eps_values: Sequence[float], path: Path) -> None:
    """Clean accuracy, Eq. 7 at the largest radii, and AutoAttack where it was run, against the width of the small
    network; bars as everywhere.

    groups: of one data set, each of another width. Columns are the paper's, as far as they have been run.
    """
    groups = sorted(groups, key=lambda group: SMALL_WIDTHS[group.model])
    measures = [(CLEAN, "clean"), *((Measure("mean", eps), f"Eq. 7, eps {eps:g}") for eps in largest_radii(eps_values))]
    attacks = {pair for group in groups for pair in zip(group.autoattacks, autoattack_names(group), strict=False)}
    measures += sorted(attacks, key=lambda pair: pair[0].eps or 0)
    figure = Figure(figsize=(3.9 * len(measures), 3.9), layout="constrained")
    panels = figure.subplots(1, len(measures), squeeze=False)[0]
    for panel, (measure, text) in zip(panels, measures, strict=True):
        for column in WIDENED:
            run = [(SMALL_WIDTHS[group.model], group.values(column, measure)) for group in groups]
            run = [(width, values) for width, values in run if values]
            if run:
                widths, errors = [width for width, _ in run], [deviation(values) or 0 for _, values in run]
                means, look = [fmean(values) for _, values in run], {"marker": "o", "markersize": 4}
                panel.errorbar(widths, means, errors, color=COLORS[column], label=LABELS[column], **look)
        panel.set_xscale("log", base=2)
        ticks = [SMALL_WIDTHS[group.model] for group in groups]
        panel.set_xticks(ticks, list(map(str, ticks)))
        panel.set_xlabel("width of the first stage, channels")
        panel.set_ylabel(f"{text}, %")
        panel.grid(alpha=0.3)
    title = DATASETS.get(groups[0].dataset, groups[0].dataset)
    _legend(figure, panels[0], f"{title}, small ResNet: does width close the gap?")
    save_figure(figure, path)
