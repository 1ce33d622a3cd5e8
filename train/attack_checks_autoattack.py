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
from train.attack_checks import GRADIENT_SLACK, Found, Target, judged, not_beaten, share
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
        device = target.x.device
        made = library.AutoAttack(
            self.pixels, eps=eps / target.span, seed=target.seed, device=device, version="standard"
        )
        made.apgd_targeted.n_target_classes = made.fab.n_target_classes = min(9, num_classes - 1)
        made.fab.targeted = True
        self.made = made
        self.warnings: list[str] = []

    def stages(self) -> list[str]:
        """Targeted APGD compares four logits."""
        return [name for name in STAGES if name != "APGD-T" or self.num_classes >= 4]

    def survivors(self, name: str, right: Tensor, queries: int | None = None) -> Tensor:
        """bool[n] -> bool[n]: which of the images that are right stay so under STAGES' attack, or "APGD-DLR"."""
        attack = self._attack(name, queries)
        right = right.clone()
        with _as_a_library_needs_it(self.target, self.warnings):
            for indices in right.nonzero().flatten().split(self.target.batch_size):
                right[indices] = self._judged(attack, indices.to(self.target.x.device)).cpu()
        return right

    def _attack(self, name: str, queries: int | None) -> Any:
        made = self.made
        made.square.n_queries = QUERIES if queries is None else queries
        made.apgd.loss = "dlr" if name == "APGD-DLR" else "ce"
        parts = {"APGD-T": made.apgd_targeted, "FAB-T": made.fab, "Square": made.square}
        return parts.get(name, made.apgd)

    def _judged(self, attack: Any, indices: Tensor) -> Tensor:
        x, labels = self.target.x[indices], self.target.labels[indices]
        found = self.pixels.to_input(attack.perturb(self.pixels.to_pixels(x), labels).detach())
        found = self.pixels.bounds.clip(x + (found - x).clamp(-self.eps, self.eps))
        with torch.no_grad():
            return self.target.model(found).argmax(1) == labels


def import_autoattack() -> Any:
    """ImportError with what to install."""
    try:
        import pyautoattack
    except ImportError as error:
        raise ImportError(
            f'checks need {error.name}: pip install -e ".[attacks]", beside the extras of this installation'
        ) from error
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
    """Eval mode, frozen parameters, exact TN gradient, full float32; random state and flags are put back."""
    model, device = target.model.eval(), target.x.device
    collect = _Collect(warnings)
    logger = logging.getLogger("auto-attack")
    logger.addHandler(collect)
    try:
        with (
            frozen(model),
            torch.random.fork_rng(devices=[device] if device.type == "cuda" else []),
            tensor_norm_gradient(model, "exact"),
            full_float32(device.type),
        ):
            yield
    finally:
        logger.removeHandler(collect)


class _Collect(logging.Handler):
    """Keeps warnings, which the library logs in place of warning."""

    def __init__(self, warnings: list[str]) -> None:
        super().__init__(logging.WARNING)
        self.warnings = warnings

    def emit(self, record: logging.LogRecord) -> None:
        self.warnings.append(record.getMessage())
