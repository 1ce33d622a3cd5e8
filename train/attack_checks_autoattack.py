"""Attacks that are not the paper's, from pyautoattack: Square, APGD on the margin (DLR), and AutoAttack.

It is the authors' code on the package index (F. Croce and M. Hein, ICML 2020; M. Andriushchenko et al., ECCV 2020).
torchattacks' class of the same name gives each APGD 10 steps, where AutoAttack's have 100, and so is another attack.
They know pixels in 0..1 alone; what they return is clipped and judged again here.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from fdt_pipeline.tensor_norm import tensor_norm_gradient
from train.attack import frozen
from train.attack_checks import GRADIENT_SLACK, Found, Target, answers_right, judged, not_beaten, share
from train.environment import need
from train.precision import full_float32

STAGES = ("APGD-CE", "APGD-T", "FAB-T", "Square")
QUERIES = 5000  # of Square in AutoAttack


class UnitPixels(nn.Module):
    """The model as a function of pixels in 0..1: f32[n c h w] -> logits."""

    def __init__(self, target: Target) -> None:
        super().__init__()
        self.model = target.model
        self.bounds = target.bounds.to(target.x.device)

    def forward(self, pixels: Tensor) -> Tensor:
        laid_out = pixels.flatten(1).view_as(pixels)  # so that the gradient of a channels_last model is contiguous too
        return self.model(self.to_input(laid_out))

    def to_input(self, pixels: Tensor) -> Tensor:
        return self.bounds.low + pixels * (self.bounds.high - self.bounds.low)

    def to_pixels(self, x: Tensor) -> Tensor:
        return ((x - self.bounds.low) / (self.bounds.high - self.bounds.low)).clamp(0, 1).contiguous()


class AutoAttackStages:
    """The stages of the standard version, and its parts alone, at one radius."""

    def __init__(self, target: Target, eps: float, num_classes: int) -> None:
        library = import_autoattack()
        self.target, self.eps, self.num_classes = target, eps, num_classes
        self.pixels = UnitPixels(target)
        self.made = library.AutoAttack(
            self.pixels, eps=eps / target.span, seed=target.seed, device=target.x.device, version="standard"
        )
        self.made.apgd_targeted.n_target_classes = self.made.fab.n_target_classes = min(9, num_classes - 1)
        self.warnings: list[str] = []

    def stages(self) -> list[str]:
        """Targeted APGD compares four logits."""
        return [name for name in STAGES if name != "APGD-T" or self.num_classes >= 4]

    def survivors(self, name: str, right: Tensor, queries: int | None = None) -> Tensor:
        """bool[n] -> bool[n]: which of the images that are right stay so under STAGES' attack, or "APGD-DLR"."""
        if not bool(right.any()):
            return right
        target, made = self.target, self.made
        made.attacks_to_run, made.square.n_queries = [name.lower()], QUERIES if queries is None else queries
        which = right.to(target.x.device)
        x, labels, found = target.x[which], target.labels[which], target.x.clone()
        with _as_a_library_needs_it(target, self.warnings):
            pixels, _ = made.run_standard_evaluation(self.pixels.to_pixels(x), labels, batch_size=target.batch_size)
        within = (self.pixels.to_input(pixels.detach()) - x).clamp(-self.eps, self.eps)
        found[which] = self.pixels.bounds.clip(x + within)
        return right & answers_right(target.model, target, found)


def import_autoattack() -> Any:
    """ImportError with what to install."""
    need("checks need", "attacks", "pyautoattack")
    import pyautoattack

    return pyautoattack


def margin_loss(stages: AutoAttackStages, pgd: Tensor, clean: Tensor) -> Found:
    """Difference of logits ratio: a margin that no scale of the logits changes, so that no softmax saturates."""
    right = stages.survivors("APGD-DLR", clean)
    expectation = f"a margin in place of cross entropy takes off at most {100 * GRADIENT_SLACK:.0f} points"
    return not_beaten("margin loss", expectation, stages.eps, pgd, right, GRADIENT_SLACK, "APGD-DLR"), right


def square(stages: AutoAttackStages, pgd: Tensor, clean: Tensor, queries: int) -> Found:
    right = stages.survivors("Square", clean, queries)
    expectation = f"{queries} queries without a gradient find less than PGD"
    return not_beaten("Square", expectation, stages.eps, pgd, right, stages.target.slack), right


def autoattack(stages: AutoAttackStages, pgd: Tensor, clean: Tensor) -> Found:
    """The four attacks one after the other, each on what the ones before have left."""
    right, figures, slack = clean, {"PGD": share(pgd)}, stages.target.slack
    before_square = share(clean)
    for name in stages.stages():
        before_square = share(right)
        right = stages.survivors(name, right)
        figures[name] = share(right)
    levels = stages.target.grey_levels(stages.eps)
    expectation = f"at {levels:g} grey levels, each stage on what is left; Square, the last, finds nothing more"
    problems = ["Square finds what three attacks by gradients have not"] * (before_square - share(right) > slack)
    if share(pgd) - share(right) > GRADIENT_SLACK:
        problems.append(f"AutoAttack finds {100 * (share(pgd) - share(right)):.2f} points more than PGD")
    notes = "".join(f" (it warns: {text})" for text in dict.fromkeys(stages.warnings))
    return judged("AutoAttack", expectation, stages.eps, figures, problems, notes), right


@contextmanager
def _as_a_library_needs_it(target: Target, warnings: list[str]) -> Iterator[None]:
    """Eval mode, frozen parameters, exact TN gradient, full float32; random state and flags are put back.

    `warnings` gets what the library logs in place of warning.
    """
    model, device = target.model.eval(), target.x.device

    def collect(record: logging.LogRecord) -> bool:
        if record.levelno >= logging.WARNING:
            warnings.append(record.getMessage())
        return False

    logger = logging.getLogger("auto-attack")
    logger.addFilter(collect)
    try:
        with (
            frozen(model),
            torch.random.fork_rng(devices=[device] if device.type == "cuda" else []),
            tensor_norm_gradient(model, "exact"),
            full_float32(device.type),
        ):
            yield
    finally:
        logger.removeFilter(collect)
