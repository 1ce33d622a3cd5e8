"""torch.compile for the network of a training step: ResNet-34 with TN, batch 100, took 4.1 ms for 4.9 on an H100.

Compiling takes some 10 s, so that short runs do without. Evaluation and attacks call the model itself.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable

import torch
from torch import Tensor, nn

FEWEST_STEPS = 10_000  # that win back what compiling takes

Network = Callable[[Tensor], Tensor]


def network_of_step(model: nn.Module, device: torch.device, num_steps: int, compile_it: bool | None) -> Network:
    """`model`, or `Compiled` where asked for; None: on a GPU, for a run of FEWEST_STEPS or more."""
    pays = device.type == "cuda" and num_steps >= FEWEST_STEPS
    return Compiled(model) if compile_it or (compile_it is None and pays) else model


class Compiled:
    """The model through torch.compile, sharing its weights; where it does not compile, itself, with a UserWarning."""

    def __init__(self, model: nn.Module) -> None:
        self._model = model
        self._compiled: Network | None = torch.compile(model)
        self._has_run = False

    def __call__(self, images: Tensor) -> Tensor:
        if self._compiled is None:
            return self._model(images)
        if self._has_run:
            return self._compiled(images)
        try:
            logits = self._compiled(images)
        except Exception as error:  # a compiler's own kinds, which differ from release to release
            self._compiled = None
            reason = str(error).strip().splitlines()
            warnings.warn(
                f"torch.compile failed here ({type(error).__name__}: {reason[0] if reason else 'no reason given'}): "
                "the network is called as it is, which on a GPU is slower",
                UserWarning,
                stacklevel=2,
            )
            return self._model(images)
        self._has_run = True
        return logits
