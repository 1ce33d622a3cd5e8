"""The pictures: rates with their intervals, and the cost of an image against classes and batch size."""

from __future__ import annotations

import textwrap
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib import rc_context
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from matplotlib.ticker import LogLocator, NullFormatter

from train.plots import save_figure

from ..rounds import number
from .results import describe_data, describe_machine, measured
from .task import MIXING

COLOURS = {"none": "#8c8c8c", "mixup": "#4c9f70", "cutmix": "#a3b94a"}
COLOURS |= {"fdt in the batch": "#e0923a", "fdt in a ring": "#7a5fb0", "fdt": "#3b6fb6"}
SWEEPS = {"classes": "classes in the set, C", "batch_sizes": "images in a batch"}
MARKERS = "osD^vP*X<>"


@rc_context({"font.size": 8})
def draw(results: dict[str, Any], path: Path) -> None:
    """Draw the bars, and a panel for each sweep, as a PNG."""
    contenders = sorted(measured(results["contenders"]), key=lambda one: one["summary"]["images_per_second"]["median"])
    sweeps = {name: sweep for name, sweep in results["sweeps"].items() if sweep}
    heights = [1.1 + 0.34 * len(contenders), *(3.8 for _ in sweeps)]
    figure = Figure(figsize=(10, sum(heights) + 0.6), layout="constrained")
    panels = figure.subplots(len(heights), 1, squeeze=False, height_ratios=heights)[:, 0]
    _bars(panels[0], contenders)
    for panel, (name, sweep) in zip(panels[1:], sweeps.items(), strict=True):
        _lines(panel, sweep, SWEEPS[name])
    batches = f"batches of {results['options']['batch_size']}"
    title = f"{describe_data(results)}; {batches}; {describe_machine(results, ', ')}"
    figure.suptitle("\n".join(textwrap.wrap(title, 110)), fontsize=9)
    save_figure(figure, path)


def _bars(panel: Any, contenders: list[dict[str, Any]]) -> None:
    """On a logarithmic scale: contenders differ by factors of a hundred."""
    least = min((one["summary"]["images_per_second"]["low"] for one in contenders), default=1.0)
    most = max((one["summary"]["images_per_second"]["high"] for one in contenders), default=1.0)
    for place, contender in enumerate(contenders):
        rate, mixing = contender["summary"]["images_per_second"], contender["mixing"]
        error = [[rate["median"] - rate["low"]], [rate["high"] - rate["median"]]]
        panel.barh(place, rate["median"], xerr=error, color=COLOURS[mixing], height=0.7, capsize=3,
                   hatch="//" if rate["too_noisy"] else None, edgecolor="white")  # fmt: skip
        text = "too noisy" if rate["too_noisy"] else number(rate["median"])
        panel.annotate(text, (rate["high"], place), (5, 0), textcoords="offset points", va="center")
    panel.set_yticks(range(len(contenders)), [contender["name"] for contender in contenders])
    panel.set_xscale("log")
    panel.set_xlim(least / 2, most * 3)
    panel.set_ylim(-0.6, len(contenders) - 0.4)
    _plain_numbers(panel.xaxis)
    panel.set_xlabel("images a second, logarithmic: median, with the interval of the rounds")
    panel.grid(axis="x", alpha=0.3)
    panel.set_axisbelow(True)
    kinds = [kind for kind in MIXING if any(one["mixing"] == kind for one in contenders)]
    panel.legend([Patch(color=COLOURS[kind]) for kind in kinds], [MIXING[kind] for kind in kinds], loc="lower right")


def _plain_numbers(axis: Any) -> None:
    """1, 2 and 5 times the powers of ten, as one writes them: an axis may hold no power at all."""
    axis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
    axis.set_minor_formatter(NullFormatter())
    axis.set_major_formatter(lambda value, _: number(value))


def _lines(panel: Any, sweep: dict[str, list[dict[str, Any]]], label: str) -> None:
    """Microseconds an image; the interval as bars."""
    names = list(dict.fromkeys(one["name"] for contenders in sweep.values() for one in measured(contenders)))
    for place, name in enumerate(names):
        points = [(int(value), one) for value, found in sweep.items() for one in measured(found) if one["name"] == name]
        rates = [[one["summary"]["images_per_second"][key] for _, one in points] for key in ("high", "median", "low")]
        least, costs, most = 1e6 / np.array(rates)
        errors = np.stack([costs - least, most - costs])
        style = {"marker": MARKERS[place % len(MARKERS)], "linestyle": "-" if place < 10 else "--"}
        panel.errorbar([x for x, _ in points], costs, errors, label=name, capsize=3, color=f"C{place % 10}", **style)
    values = [int(value) for value in sweep]
    panel.set_xscale("log")
    panel.set_yscale("log")
    panel.set_xticks(values, [f"{value:,}" for value in values])
    panel.minorticks_off()
    _plain_numbers(panel.yaxis)
    panel.set_xlabel(label)
    panel.set_ylabel("microseconds an image")
    panel.grid(alpha=0.3)
    panel.legend(fontsize=7, loc="center left", bbox_to_anchor=(1.01, 0.5))
