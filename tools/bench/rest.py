"""Waiting until a contender rests, so that it takes no time from the next one's turn."""

from __future__ import annotations

import os
import time

from .resources import cpu_of

WINDOW, BUSY = 0.1, 0.2  # seconds, and the share of one core from which on it is not at rest
PATIENCE = 10.0


def settle(patience: float = PATIENCE) -> bool:
    """Until this process and all that it started have filled their queues; False if they never rest."""
    end = time.monotonic() + patience
    before = cpu_of(os.getpid())
    while time.monotonic() < end:
        time.sleep(WINDOW)
        now = cpu_of(os.getpid())
        if now - before <= WINDOW * BUSY:
            return True
        before = now
    return False
