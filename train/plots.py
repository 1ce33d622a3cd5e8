"""What the pictures of runs have in common, and the one of accuracy along the attack's path."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from io import BytesIO
from pathlib import Path

import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from fdt_pipeline.storage.atomic import atomic_file
from train.robust_accuracy import Robustness


def draw_paths(
    rows: Mapping[str, Sequence[Robustness]],
    eps_values: Sequence[float],
    title: str,
    path: Path,
    colors: Mapping[str, str] | None = None,
) -> None:
    """One panel a radius, one line a row: accuracy at x^0 .. x^T, as `draw_band` draws the row's seeds."""
    figure = Figure(figsize=(3.3 * len(eps_values), 3.7), layout="constrained")
    panels = figure.subplots(1, len(eps_values), sharey=True, squeeze=False)[0]
    for panel, eps in zip(panels, eps_values, strict=True):
        for name, seeds in rows.items():
            curves = [[100 * share for share in robustness.at(eps).path] for robustness in seeds]
            draw_band(panel, curves, name, (colors or {}).get(name), first=0)
        panel.set_title(f"eps = {eps:g} ({eps * 256:.3g} grey levels)", fontsize=10)
        panel.set_xlabel("attack step t (the radius is eps from 30 on)", fontsize=8)
        panel.set_ylim(0, 100)
        panel.grid(alpha=0.3)
    panels[0].set_ylabel("accuracy at $x^t$, %")
    add_legend(figure, panels[0], title)
    save_figure(figure, path)


def draw_band(panel: Axes, curves: Sequence[Sequence[float]], name: str, color: str | None, first: int = 1) -> None:
    """The mean of curves, which may differ in length where a run was stopped, and the band of their range."""
    length = min(map(len, curves))
    values: npt.NDArray[np.float64] = np.array([curve[:length] for curve in curves])
    x = np.arange(first, first + length)
    (line,) = panel.plot(x, values.mean(0), color=color, label=name, linewidth=1.7)
    if len(curves) > 1:
        panel.fill_between(x, values.min(0), values.max(0), color=line.get_color(), alpha=0.18, linewidth=0)


def add_legend(figure: Figure, panel: Axes, title: str) -> None:
    handles, names = panel.get_legend_handles_labels()
    figure.suptitle(title, fontsize=11)
    figure.legend(handles, names, loc="outside lower center", ncols=len(names), frameon=False)


def save_figure(figure: Figure, path: Path, dpi: int = 110) -> None:
    """A PNG, under its name only when it is whole."""
    data = BytesIO()
    figure.savefig(data, format="png", dpi=dpi)
    with atomic_file(path) as file:
        file.write(data.getvalue())
