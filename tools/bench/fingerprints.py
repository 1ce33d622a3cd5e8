"""Whether batches are made anew: what is shuffled and augmented is never the same twice."""

from __future__ import annotations

from typing import Any

from .errors import RefusedError

ENOUGH = 16
IMAGES, PIXELS = 8, 8  # of a batch, and along each side of an image


class Fingerprints:
    """Of the batches of all warm-ups, outside of what is timed."""

    def __init__(self) -> None:
        self._found: set[bytes] = set()
        self._seen = 0

    def add(self, images: Any) -> None:
        """RefusedError where fewer than half of them differ."""
        h, w = images.shape[2:]
        some = images[:IMAGES, :, :: max(1, h // PIXELS), :: max(1, w // PIXELS)]
        self._found.add(some.float().cpu().numpy().tobytes())
        self._seen += 1
        if self._seen >= ENOUGH and 2 * len(self._found) < self._seen:
            raise RefusedError(f"the same batch again and again: {self._seen} batches, {len(self._found)} different")
