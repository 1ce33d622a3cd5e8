"""Weight series: how much each image of a superposition counts.

A series is any object with `weights(k) -> f64[k]`: positive, never rising, with sum 1. The paper's is `Harmonic`. Where
the weights are the first k of fixed terms over their sum, a method `terms(k) -> f64[k]` lets the native operator take
them for any k; otherwise it takes a table, for up to 2,048 images.
Frozen dataclasses make a series comparable, so a run can tell that it is resumed with another one.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import numpy as np
import numpy.typing as npt

F64 = npt.NDArray[np.float64]


@runtime_checkable
class Series(Protocol):
    """What `FDT(series=...)` takes."""

    def weights(self, k: int) -> F64:
        """f64[k]: the weights of a sum of k images, F_1 first."""
        ...


class _OfTerms:
    """The first k terms over their sum."""

    def terms(self, k: int) -> F64:
        raise NotImplementedError

    def weights(self, k: int) -> F64:
        terms = self.terms(k)
        return terms / terms.sum()


@dataclass(frozen=True)
class Harmonic(_OfTerms):
    """F_i = (1/i) / H_k with H_k = sum_{j<=k} 1/j (Eq. 2, Algorithm 2)."""

    def terms(self, k: int) -> F64:
        return 1.0 / np.arange(1, k + 1)


@dataclass(frozen=True)
class Power(_OfTerms):
    """F_i proportional to i**-gamma, gamma >= 0: 0 uniform, 1 harmonic, 2.8 the default of zeta-mixup (2204.03323)."""

    gamma: float

    def __post_init__(self) -> None:
        if not 0 <= self.gamma < np.inf:
            raise ValueError(f"Power: gamma must be 0 or more, got {self.gamma}")

    def terms(self, k: int) -> F64:
        return np.asarray(np.arange(1, k + 1, dtype=np.float64) ** -self.gamma)


@dataclass(frozen=True)
class Geometric(_OfTerms):
    """F_i proportional to ratio**(i-1), 0 < ratio <= 1."""

    ratio: float

    def __post_init__(self) -> None:
        if not 0 < self.ratio <= 1:
            raise ValueError(f"Geometric: ratio must be in (0, 1], got {self.ratio}")

    def terms(self, k: int) -> F64:
        return np.asarray(self.ratio ** np.arange(k, dtype=np.float64))


@dataclass(frozen=True)
class Uniform(_OfTerms):
    """F_i = 1/k."""

    def terms(self, k: int) -> F64:
        return np.ones(k)


def checked_weights(series: Series, k: int) -> F64:
    """`series.weights(k)`, or a ValueError that says what is wrong with them."""
    try:
        weights = np.asarray(series.weights(k), np.float64)
    except Exception as error:
        raise ValueError(
            f"{series!r}.weights({k}) failed ({error!r}): it must give weights for sums of up to max_images"
        ) from error
    if weights.shape != (k,):
        raise ValueError(f"{series!r}.weights({k}) must have shape ({k},), got {weights.shape}")
    if not (np.isfinite(weights).all() and (weights >= 0).all() and abs(weights.sum() - 1) < 1e-9):
        raise ValueError(f"{series!r}.weights({k}) must be 0 or more with sum 1, got sum {weights.sum()!r}")
    if (np.diff(weights) > 1e-12).any():
        raise ValueError(f"{series!r}.weights({k}) must not rise: the first image is the dominant one")
    return weights
