"""Notice that a run diverges, with the step, before a checkpoint is made of it."""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from torch import Tensor, nn

from train.ddp import mean_over_ranks


class NonFiniteLossError(RuntimeError):
    """Training diverged."""


def checked_figures(waiting: list[tuple[int, Tensor, Tensor]]) -> Iterator[tuple[int, float, float]]:
    """(step, loss f32[], KL f32[]) -> numbers, fetched together, as each fetch waits for a GPU.

    Means over the ranks, so that all of them stop at the same step. NonFiniteLossError for the first step whose loss is
    none.
    """
    if not waiting:
        return
    figures = mean_over_ranks(torch.stack([torch.stack([loss, kl]) for _, loss, kl in waiting])).tolist()
    for (step, _, _), (loss, kl) in zip(waiting, figures, strict=True):
        check_finite(step, "loss of", loss)
        yield step, loss, kl


def check_weights(model: nn.Module, step: int) -> None:
    """The last update of an epoch is not followed by a loss that would show what it did."""
    values = [value for value in model.state_dict().values() if value.is_floating_point()]
    check_finite(step, "largest weight after", float(torch.stack([value.abs().max() for value in values]).max()))


def check_finite(step: int, what: str, value: float) -> None:
    if not math.isfinite(value):
        raise NonFiniteLossError(
            f"the {what} step {step} is {value}: lower the learning rate (--lr), or look at the data; "
            "the checkpoint of the epoch before is kept, if there was one"
        )
