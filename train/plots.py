"""The pictures of a run: accuracy along the attack path, and a contact sheet of superposed images."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from io import BytesIO
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from matplotlib.figure import Figure

from fdt_pipeline import FDTLoader
from fdt_pipeline.storage.atomic import atomic_file
from train.robust_accuracy import Robustness

ROWS, COLUMNS = 4, 6


def draw_paths(rows: Mapping[str, Robustness], path: Path) -> None:
    """One panel a radius, one line a model: accuracy at x^0 .. x^T. The Eq. 7 mean is the level of the dotted line."""
    radii = next(iter(rows.values())).radii
    figure = Figure(figsize=(3.4 * len(radii), 3.6), layout="constrained")
    panels = figure.subplots(1, len(radii), sharey=True, squeeze=False)[0]
    for panel, radius in zip(panels, radii, strict=True):
        for number, (name, row) in enumerate(rows.items()):
            at = row.at(radius.eps)
            steps = np.arange(len(at.path))
            panel.plot(steps, 100 * np.array(at.path), color=f"C{number}", label=name, linewidth=1.8)
            panel.axhline(100 * at.mean, color=f"C{number}", linestyle=":", linewidth=1)
        panel.set_title(f"eps = {radius.eps:g} ({radius.eps * 256:.3g} grey levels)", fontsize=10)
        panel.set_xlabel("attack step t (the radius reaches eps at 30)", fontsize=8)
        panel.set_ylim(0, 100)
        panel.grid(alpha=0.3)
    panels[0].set_ylabel("accuracy at x^t, %; dotted: Eq-7 mean", fontsize=8)
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside upper center", ncols=len(rows))
    save_figure(figure, path)


def draw_batch(loader: FDTLoader, path: Path) -> None:
    """ROWS x COLUMNS outputs of a training loader, each over its target's largest weights in percent."""
    images, targets = next(iter(loader))
    pixels = to_pixels(images[: ROWS * COLUMNS], loader.mean, loader.std)
    figure = Figure(figsize=(1.75 * COLUMNS, 2.35 * ROWS), layout="constrained")
    panels = list(figure.subplots(ROWS, COLUMNS, squeeze=False).flat)
    for panel in panels:
        panel.axis("off")
    for panel, image, target in zip(panels, pixels, targets, strict=False):
        panel.imshow(image, interpolation="nearest")
        text = describe_target(target.tolist(), loader.classes)
        panel.text(0, -0.03, text, fontsize=7.5, va="top", transform=panel.transAxes)
    figure.suptitle("Superposed training images, each with the weights of its soft target", fontsize=11)
    save_figure(figure, path)


def describe_target(target: Sequence[float], classes: Sequence[str], lines: int = 4) -> str:
    """The largest weights, a line each, and what is left; always lines + 1 lines, so that tiles align."""
    order = [i for i in np.argsort(-np.asarray(target), kind="stable") if target[i] > 0]
    text = [f"{100 * target[i]:4.1f} % {classes[i]}" for i in order[:lines]]
    if rest := order[lines:]:
        text.append(f"{100 * sum(target[i] for i in rest):4.1f} % in {len(rest)} more")
    return "\n".join(text + [""] * (lines + 1 - len(text)))


def to_pixels(images: torch.Tensor, mean: Sequence[float], std: Sequence[float]) -> npt.NDArray[np.float64]:
    """Standardized f32[n c h w] -> [n h w 3] in [0, 1], for a person to see."""
    channels_last = images.detach().cpu().double().permute(0, 2, 3, 1).numpy()
    pixels = np.clip((channels_last * np.asarray(std) + np.asarray(mean)) / 255, 0, 1)
    return np.repeat(pixels, 3, axis=-1) if pixels.shape[-1] == 1 else pixels[..., :3]


def save_figure(figure: Figure, path: Path) -> None:
    """A PNG, under its name only when it is whole."""
    data = BytesIO()
    figure.savefig(data, format="png", dpi=110)
    with atomic_file(path) as file:
        file.write(data.getvalue())
