"""One optimizer step, as fast as the device allows, without ever waiting for a GPU; and noticing that a run diverges.

On a GPU: mixed precision, cuDNN's algorithms chosen by trial, the pass forward and back as one CUDA graph (at batch 100
the launches of some 500 kernels would take longer than the kernels), SGD as one kernel for many weights. A CPU takes
the plain step.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from fdt_pipeline.losses import kl_to_target
from train.accelerate import GraphedPass
from train.ddp import mean_over_ranks
from train.precision import amp_dtype, autocast, autotuned_convolutions

Loss = Callable[[Tensor, Tensor], Tensor]


class TrainStep:
    """(images f32[n c h w], targets f32[n C]) -> (loss f32[], KL f32[]) in nats, of the weights before the update.

    `network` is what is called, in the mode that it is in. With `graph` the first few steps run as they are, then one
    is recorded and replayed: no decision in `network` may depend on values. mixed: see `amp_dtype`.
    """

    def __init__(
        self,
        network: Callable[[Tensor], Tensor],
        loss: Loss,
        optimizer: torch.optim.Optimizer,
        scaler: torch.amp.GradScaler,
        device: torch.device,
        graph: bool,
        mixed: bool = False,
    ) -> None:
        self.mixed = mixed
        self.network, self.loss, self.optimizer, self.scaler, self.device = network, loss, optimizer, scaler, device
        parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
        self._pass = GraphedPass(self._forward_and_back, parameters, device) if graph else self._forward_and_back

    def __call__(self, images: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        with autotuned_convolutions(self.device.type):
            figures = self._pass(images, targets)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        return figures[0], figures[1]

    def _forward_and_back(self, images: Tensor, targets: Tensor) -> Tensor:
        """-> f32[2]; the gradients are in the parameters."""
        with autocast(self.device, self.mixed):
            logits = self.network(images)
        loss = self.loss(logits, targets)
        self.optimizer.zero_grad(set_to_none=True)
        self.scaler.scale(loss).backward()
        with torch.no_grad():
            return torch.stack([loss.detach(), kl_to_target(logits.detach(), targets)])


def make_optimizer(
    model: nn.Module, lr: float, momentum: float, weight_decay: float, device: torch.device
) -> torch.optim.SGD:
    """On a GPU one kernel updates many weights, and a scaled loss needs no look at its gradients from the host."""
    fused = True if device.type == "cuda" else None
    return torch.optim.SGD(model.parameters(), lr, momentum=momentum, weight_decay=weight_decay, fused=fused)


def make_scaler(device: torch.device) -> torch.amp.GradScaler:
    """Scales the loss where the step computes in float16, and does nothing elsewhere."""
    return torch.amp.GradScaler(device.type, enabled=amp_dtype(device) == torch.float16)


def load_optimizer(optimizer: torch.optim.Optimizer, state: Mapping[str, Any]) -> None:
    """The state, without the choice of kernels of the machine that it comes from."""
    own = [group["fused"] for group in optimizer.param_groups]
    optimizer.load_state_dict(dict(state))
    for group, fused in zip(optimizer.param_groups, own, strict=True):
        group["fused"] = fused


class NonFiniteLossError(RuntimeError):
    """Training diverged."""


def checked_figures(first_step: int, figures: Sequence[tuple[Tensor, Tensor]]) -> list[tuple[float, float]]:
    """(loss f32[], KL f32[]) of each step from `first_step` on -> numbers, fetched together: a fetch waits for a GPU.

    Means over the ranks, so that all of them stop at the same step. NonFiniteLossError for the first step whose loss is
    none.
    """
    means = mean_over_ranks(torch.stack([torch.stack(pair) for pair in figures])).tolist()
    for step, (loss, _) in enumerate(means, first_step):
        check_finite(step, "loss of", loss)
    return means


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
