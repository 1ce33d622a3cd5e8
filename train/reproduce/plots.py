"""The pictures of a report, drawn from the records alone."""

from __future__ import annotations

from collections.abc import Sequence
from io import BytesIO
from pathlib import Path

import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from fdt_pipeline.storage.atomic import atomic_file
from train.reproduce.record import Record
from train.reproduce.results import Results, label

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


def draw_attack_paths(results: Results, eps_values: Sequence[float], path: Path) -> None:
    """One panel a radius: accuracy at x^0 .. x^T, mean over the seeds, with the band from their lowest to highest."""
    figure = Figure(figsize=(3.3 * len(eps_values), 3.7), layout="constrained")
    panels = figure.subplots(1, len(eps_values), sharey=True, squeeze=False)[0]
    for panel, eps in zip(panels, eps_values, strict=True):
        for column, records in _with_records(results):
            curves = [[100 * share for share in record.robustness.at(eps).path] for record in records]
            _draw_band(panel, curves, column, first=0)
        panel.set_title(f"eps = {eps:g} ({eps * 256:.3g} grey levels)", fontsize=10)
        panel.set_xlabel("attack step t (the radius is eps from 30 on)", fontsize=8)
        panel.set_ylim(0, 100)
        panel.grid(alpha=0.3)
    panels[0].set_ylabel("accuracy at $x^t$, %")
    _legend(figure, panels[0], f"{results.title}: along the attack's path")
    save(figure, path)


def draw_learning_curves(results: Results, path: Path) -> None:
    """Test accuracy, and the divergence of the model from its training targets, epoch by epoch."""
    figure = Figure(figsize=(10, 3.9), layout="constrained")
    left, right = figure.subplots(1, 2)
    for column, records in _with_records(results):
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
    save(figure, path)


def _with_records(results: Results) -> list[tuple[str, tuple[Record, ...]]]:
    return [(column, records) for column, records in results.columns.items() if records]


def _draw_band(panel: Axes, curves: Sequence[Sequence[float]], column: str, first: int = 1) -> None:
    """The mean of curves, which may differ in length where a run was stopped, and their range."""
    length = min(map(len, curves))
    values: npt.NDArray[np.float64] = np.array([curve[:length] for curve in curves])
    x = np.arange(first, first + length)
    color = COLORS.get(column)
    (line,) = panel.plot(x, values.mean(0), color=color, label=label(column), linewidth=1.7)
    if len(curves) > 1:
        panel.fill_between(x, values.min(0), values.max(0), color=line.get_color(), alpha=0.18, linewidth=0)


def _legend(figure: Figure, panel: Axes, title: str) -> None:
    handles, names = panel.get_legend_handles_labels()
    figure.suptitle(title, fontsize=11)
    figure.legend(handles, names, loc="outside lower center", ncols=len(names), frameon=False)


def save(figure: Figure, path: Path) -> None:
    data = BytesIO()
    figure.savefig(data, format="png", dpi=110)
    with atomic_file(path) as file:
        file.write(data.getvalue())
