"""A race: contenders are set up once, and have their turns in interleaved rounds, while the others are idle."""

from __future__ import annotations

import hashlib
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from ..rounds import turn_order
from .results import rounded
from .task import FailedError, NotInstalledError, RefusedError
from .worker import WorkerHandle

FIRST_EPOCH = 5  # times the seconds of a turn, at most


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


@dataclass
class Raced:
    """What a contender did. check: what was seen before. start: set-up and first epoch. turns: one a round.

    status: "measured", "refused", "not installed", "failed" or "left out", with the reason.
    """

    check: dict[str, Any] = field(default_factory=dict)
    start: dict[str, Any] = field(default_factory=dict)
    turns: list[dict[str, Any]] = field(default_factory=list)
    status: str = "measured"
    reason: str = ""


def race(
    makers: Mapping[str, Callable[[], WorkerHandle]],
    repeats: int,
    seconds: float,
    each_round: Callable[[], None] = lambda: None,
    say: Callable[[str], None] = say,
) -> dict[str, Raced]:
    """Name -> what the contender did. A contender that fails is dropped.

    The first round touches memory for the first time and is left out.
    """
    raced = {name: Raced() for name in makers}
    with ExitStack() as stack:
        workers: dict[str, WorkerHandle] = {}
        for name, make in makers.items():
            say(f"{name}: set up")
            with caught(raced[name]):
                workers[name] = make()
                stack.callback(_close, workers[name], raced[name])
                raced[name].start = workers[name].start(FIRST_EPOCH * seconds)
        for number in range(repeats + 1):
            each_round()
            for name in turn_order([name for name in workers if raced[name].status == "measured"], number):
                with caught(raced[name]):
                    turn = workers[name].turn(seconds)
                    say(f"round {number} of {repeats}: {name}: {turn['rate']:.0f} images/s")
                    if number:
                        raced[name].turns.append(turn)
    return raced


def _close(worker: WorkerHandle, raced: Raced) -> None:
    """Close a worker. The first reason why it is not measured stays."""
    with caught(raced if raced.status == "measured" else Raced()):
        worker.close()


@contextmanager
def caught(raced: Raced) -> Iterator[None]:
    """Note why a contender is not measured."""
    try:
        yield
    except (RefusedError, NotInstalledError, FailedError) as error:
        kinds = {RefusedError: "refused", NotInstalledError: "not installed", FailedError: "failed"}
        raced.status, raced.reason = kinds[type(error)], str(error)


def noise_works() -> dict[str, Callable[[], object]]:
    """A tenth of a second of arithmetic and of memory traffic, on one core."""
    text, array = bytes(64 << 20), np.ones(16 << 20, np.float32)
    return {
        "arithmetic": lambda: hashlib.blake2b(text).digest(),
        "memory": lambda: [array.copy() for _ in range(4)],
    }


class Noise:
    """How steady the machine is: seconds of the same work, once a round."""

    def __init__(self, clock: Callable[[], float] = time.perf_counter) -> None:
        self._works, self._clock = noise_works(), clock
        self.seconds: dict[str, list[float]] = {name: [] for name in self._works}

    def measure(self) -> None:
        for name, work in self._works.items():
            begin = self._clock()
            work()
            self.seconds[name].append(rounded(self._clock() - begin))

    def to_dict(self) -> dict[str, object]:
        """spread: (most - least) / least, 0 on a quiet machine."""
        return {
            name: {"seconds": values, "spread": rounded(max(values) / min(values) - 1) if values else 0.0}
            for name, values in self.seconds.items()
        }
