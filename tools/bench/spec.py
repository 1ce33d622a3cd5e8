"""What sits in a process of its own."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from .task import Task

TIMEOUT = 300.0  # seconds without a batch until a contender is stopped; building the native engine takes 12
MODELS = ("resnet34", "resnet18", "small")
Kind = Literal["loader", "model", "both"]


@dataclass(frozen=True)
class Spec:
    """contender: its name, or module:function. kind: the loader alone, the model alone (the contender does not matter),
    or the loader feeding the model. lost: share of images that are thrown away, a planted slowdown."""

    contender: str
    task: Task
    kind: Kind = "loader"
    model: str | None = None
    lost: float = 0.0
