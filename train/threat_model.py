"""What an attacker may do: the radius, the number of steps, and the range that pixels stay in."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from fdt_pipeline.loader.options import check_pixel_range

_SLACK = 1e-3  # of the pixel range: far above rounding, far below a wrong mean or std


@dataclass(frozen=True)
class PGD:
    """Projected gradient descent in the L-infinity ball of radius `eps`, in the model's input units.

    Those are the units of (pixel - mean) / std: with std 256, eps = 0.1 is 25.6 grey levels. The step is
    alpha = rel_step * eps, by default eps / 30, so the path can first reach the radius eps at t = 30. A random start is
    x^0 + U(-eps, eps) drawn from `seed`, the same draw on every call: give each batch a seed of its own.
    """

    eps: float
    steps: int = 40
    rel_step: float = 0.01 / 0.3
    clip_pixels: bool = True
    random_start: bool = False
    seed: int = 0

    def __post_init__(self) -> None:
        if not (math.isfinite(self.eps) and self.eps >= 0):
            raise ValueError(f"expected a finite eps >= 0, a radius in units of (pixel - mean) / std, got {self.eps}")
        if self.steps < 1:
            raise ValueError(f"expected steps >= 1, got {self.steps}; the paper takes 40")
        if not (math.isfinite(self.rel_step) and self.rel_step > 0):
            raise ValueError(f"expected a finite rel_step > 0, the step as a share of eps, got {self.rel_step}")

    @property
    def alpha(self) -> float:
        """Step length; a product of Python floats, as foolbox takes it, so that both walk the same path to the bit."""
        return self.rel_step * self.eps


@dataclass(frozen=True, eq=False)
class PixelBounds:
    """Where the pixel values 0 and 255 lie in the model's input: low, high f32[c 1 1]; c = 1 serves any image."""

    low: Tensor
    high: Tensor

    @classmethod
    def from_normalization(cls, mean: Sequence[float], std: float | Sequence[float]) -> PixelBounds:
        """For x = (pixel - mean) / std, pixels in 0..255; `mean` has one entry a channel, `std` one or as many."""
        center = torch.tensor(mean, dtype=torch.float32).reshape(-1, 1, 1)
        width = torch.tensor(std, dtype=torch.float32).reshape(-1, 1, 1)
        if len(width) not in (1, len(center)) or not bool((width > 0).all()):
            raise ValueError(f"expected one std > 0, or one for each of the {len(center)} channels, got {std}")
        check_pixel_range(mean, std)
        return cls(low=(0 - center) / width, high=(255 - center) / width)

    def to(self, device: torch.device) -> PixelBounds:
        return PixelBounds(self.low.to(device), self.high.to(device))

    def clip(self, x: Tensor) -> Tensor:
        return torch.clamp(x, self.low, self.high)

    def check(self, x: Tensor) -> None:
        """Raises ValueError if x f32[n c h w] has other channels, or leaves the bounds by over 0.1 % of the range."""
        if len(self.low) not in (1, x.shape[1]):
            raise ValueError(f"expected images with {len(self.low)} channels, as the bounds have, got {x.shape[1]}")
        slack = _SLACK * (self.high - self.low)
        if not bool(((x >= self.low - slack) & (x <= self.high + slack)).all()):
            raise ValueError(
                f"expected x between {self.low.flatten().tolist()} and {self.high.flatten().tolist()}, got values in "
                f"[{x.min():.4g}, {x.max():.4g}]; make the bounds from the mean and std that x was normalized with"
            )
