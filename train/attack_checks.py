"""Does the attack find what there is to find? Each check is a way in which masked gradients show.

A defence may only hide the way: the gradient vanishes, or points elsewhere, PGD fails, and the network is no more
robust than before. Then PGD is beaten by what needs no gradient, gains nothing from a larger radius, or loses to
another loss. Sources: A. Athalye, N. Carlini, D. Wagner, "Obfuscated Gradients Give a False Sense of Security", ICML
2018, section 3.1; N. Carlini et al., "On Evaluating Adversarial Robustness", arXiv 1902.06705.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from train.threat_model import PixelBounds

# An attack without gradients, or one of a single step, that leaves fewer images right than PGD does is a sign: by more
# than this share of the images, or two of them, which is chance and rounding.
SLACK = 0.02
# Another loss or more restarts follow the gradient as well, and may do better by some points: 3 to 10 between PGD and
# AutoAttack are usual on models that mask nothing (F. Croce and M. Hein, ICML 2020, table 2). More is a sign.
GRADIENT_SLACK = 0.1


@dataclass(frozen=True, eq=False)
class Target:
    """What is attacked: x f32[n c h w] standardized, labels i64[n], on the model's device; seed: of what is drawn."""

    model: nn.Module
    x: Tensor
    labels: Tensor
    bounds: PixelBounds
    batch_size: int = 100
    seed: int = 0

    @property
    def num_images(self) -> int:
        return len(self.labels)

    @property
    def slack(self) -> float:
        return max(SLACK, 2 / self.num_images)

    @property
    def span(self) -> float:
        """Input units between the pixel values 0 and 255. ValueError where it is another in each channel, as a radius
        would then be another number of grey levels in each."""
        spans = (self.bounds.high - self.bounds.low).flatten()
        if not torch.allclose(spans, spans[:1]):
            raise ValueError(f"expected one std for all channels, got 255 / std = {spans.tolist()}")
        return float(spans[0])

    def grey_levels(self, eps: float) -> float:
        """Of a radius in input units: 25.6 for 0.1 where the std is 256."""
        return eps * 255 / self.span

    def batches(self) -> list[tuple[Tensor, Tensor]]:
        size = self.batch_size
        return list(zip(self.x.split(size), self.labels.split(size), strict=True))


@dataclass(frozen=True)
class Check:
    """What one check found. figures: shares of the images that are still right; eps: in input units, None for a series.

    masked: whether it shows that gradients are masked.
    """

    name: str
    expectation: str
    eps: float | None
    figures: Mapping[str, float]
    masked: bool
    verdict: str

    def to_text(self) -> str:
        figures = ", ".join(f"{name} {100 * value:.2f}" for name, value in self.figures.items())
        return f"{self.name}: {figures}\n    expected: {self.expectation}\n    {self.verdict}"

    def to_dict(self) -> dict[str, Any]:
        return {**vars(self), "figures": dict(self.figures)}


def share(right: Tensor) -> float:
    """bool[n] -> in 0..1."""
    return int(right.sum()) / len(right)


def not_beaten(
    name: str, expectation: str, eps: float, pgd: Tensor, other: Tensor, slack: float, others_name: str = ""
) -> Check:
    """PGD must leave no more right than the other attack does, but for `slack`; pgd, other bool[n]: still right."""
    others_name = others_name or name
    more = int(pgd.sum()) - int(other.sum())
    masked = more > slack * len(pgd) + 1e-6  # 0.5 - 0.48 is above 0.02 in floats
    only_other = f"{others_name} fools {int((pgd & ~other).sum())} of {len(pgd)} images that PGD does not"
    verdict = f"{others_name} finds more than PGD: gradients are masked" if masked else "no sign of masked gradients"
    figures = {"PGD": share(pgd), others_name: share(other)}
    return Check(name, expectation, eps, figures, masked, f"{verdict} ({only_other})")


def overall(checks: Sequence[Check]) -> str:
    """One line."""
    signs = [check.name for check in checks if check.masked]
    if signs:
        return f"masked: {len(signs)} of {len(checks)} checks show masked gradients ({', '.join(signs)})"
    return f"not masked: none of {len(checks)} checks shows masked gradients"
