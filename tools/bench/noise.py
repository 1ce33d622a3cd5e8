"""How steady the machine is: the same work once a round, one part of it arithmetic, the other memory."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable

import numpy as np

from .interval import rounded

Work = Callable[[], object]


def works() -> dict[str, Work]:
    """A tenth of a second each, on one core."""
    text, array = bytes(64 << 20), np.ones(16 << 20, np.float32)
    return {
        "arithmetic": lambda: hashlib.blake2b(text).digest(),
        "memory": lambda: [array.copy() for _ in range(4)],
    }


class Noise:
    """Seconds of each work, a figure a round."""

    def __init__(self, clock: Callable[[], float] = time.perf_counter) -> None:
        self._works, self._clock = works(), clock
        self.seconds: dict[str, list[float]] = {name: [] for name in self._works}

    def measure(self) -> None:
        for name, work in self._works.items():
            begin = self._clock()
            work()
            self.seconds[name].append(rounded(self._clock() - begin))

    def to_dict(self) -> dict[str, object]:
        return {name: {"seconds": values, "spread": spread(values)} for name, values in self.seconds.items()}


def spread(seconds: list[float]) -> float:
    """(most - least) / least: 0 on a quiet machine."""
    return rounded(max(seconds) / min(seconds) - 1) if seconds else 0.0
