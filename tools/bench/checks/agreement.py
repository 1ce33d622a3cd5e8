"""Image and target agree: of flat images whose colour encodes their class, the mixed colour is the mixed target's."""

from __future__ import annotations

import numpy as np

from ..errors import RefusedError
from .epoch import Epoch
from .sets import levels

TOLERANCE = 0.1  # grey levels, where nothing is lost: float32 leaves 0.001
LOSSY = 3.0  # JPEG's


def check_agreement(epoch: Epoch, encoding: str) -> None:
    """RefusedError unless every output is the sum that its target says."""
    tolerance = LOSSY if encoding in ("jpg", "keep") else TOLERANCE
    means = np.concatenate(epoch.means)
    expected = epoch.all_targets @ levels(means.shape[1])
    wrong = np.abs(means - expected).max(1) > tolerance
    if wrong.any():
        worst = int(np.abs(means - expected).max(1).argmax())
        raise RefusedError(
            f"{wrong.sum()} of {len(means)} images are not what their targets say: of flat images one has the colour "
            f"{np.round(means[worst], 1).tolist()}, its target {np.round(expected[worst], 1).tolist()}"
        )
    if epoch.flatness > tolerance:
        raise RefusedError(f"flat images come out with pixels {epoch.flatness:.3g} from their mean, augmentation off")
