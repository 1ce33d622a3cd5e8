"""Contenders take turns in rounds, and ratios are taken within a round: a machine's clock may change in between."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from statistics import median
from typing import Any, Literal

import torch
from tqdm import tqdm


@dataclass(frozen=True)
class Figure:
    """What was measured in each round, and the bound on its median, None where it is there for comparison alone."""

    name: str
    values: tuple[float, ...]
    bound: float | None = None
    side: Literal["at most", "at least"] = "at most"

    @property
    def median(self) -> float:
        return median(self.values)

    @property
    def holds(self) -> bool | None:
        if self.bound is None:
            return None
        return self.median <= self.bound if self.side == "at most" else self.median >= self.bound

    def to_dict(self) -> dict[str, Any]:
        spread = {"median": self.median, "min": min(self.values), "max": max(self.values)}
        bound = {"bound": self.bound, "side": self.side, "holds": self.holds}
        return {"name": self.name, **spread, **bound, "values": list(self.values)}


def timed_rounds(
    contenders: Mapping[str, Callable[[], object]], num_rounds: int, device: torch.device, label: str
) -> dict[str, list[float]]:
    """Seconds of each contender's turns. Every other round goes backwards; one more, the first, is thrown away."""
    seconds: dict[str, list[float]] = {name: [] for name in contenders}
    for index in tqdm(range(num_rounds + 1), desc=label, unit="round"):
        for name in list(contenders)[:: 1 if index % 2 else -1]:
            seconds[name].append(_seconds(contenders[name], device))
    return {name: turns[1:] for name, turns in seconds.items()}


def ratios(above: list[float], below: list[float]) -> tuple[float, ...]:
    return tuple(a / b for a, b in zip(above, below, strict=True))


def _seconds(turn: Callable[[], object], device: torch.device) -> float:
    _finish(device)
    start = time.perf_counter()
    turn()
    _finish(device)
    return time.perf_counter() - start


def _finish(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
