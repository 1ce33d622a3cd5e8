"""Our PGD beside foolbox's, on the same network, images and steps.

All columns are the Eq-7 mean, the last iterate and the worst over the iterates, at each eps of the paper: foolbox then
needs a forward pass more for each point of the path, while ours reads its answers off the passes that it makes anyway.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from models import build_model
from train.attack import PGD, PixelBounds, pgd_path
from train.full_float32 import full_float32
from train.robustness import EPS_VALUES, evaluate_robustness
from train.speed.rounds import Figure, ratios, timed_rounds

BOUNDS = PixelBounds.from_normalization([117.0], 256.0)  # one for all channels, as foolbox has it
EPS = 0.01

PAIRS = (
    ("foolbox", "ours", 1.0),
    ("foolbox, parameters frozen", "ours", None),
    ("foolbox, all columns, parameters frozen", "ours, all columns", 1.3),
    ("ours, all columns", "ours, all columns, one batch", None),
)


def attack_speed(
    model_name: str, num_images: int, size: int, steps: int, num_rounds: int, device: torch.device
) -> tuple[list[Figure], dict[str, list[float]]]:
    """(ratios foolbox : ours, seconds)."""
    model, x, labels = model_and_images(model_name, num_images, size, device)
    batches = [(x, labels)]
    contenders: dict[str, Callable[[], object]] = {
        "ours": partial(pgd_path, model, x, labels, PGD(EPS, steps), BOUNDS),
        "foolbox": partial(_foolbox, model, x, labels, EPS, steps),
        "foolbox, parameters frozen": partial(frozen, _foolbox, model, x, labels, EPS, steps),
        "ours, all columns": partial(evaluate_robustness, model, batches, BOUNDS, steps=steps, together=False),
        "ours, all columns, one batch": partial(
            evaluate_robustness, model, batches, BOUNDS, steps=steps, together=True
        ),
        "foolbox, all columns, parameters frozen": partial(frozen, all_columns, model, x, labels, steps),
    }
    subject = f"{model_name}, {num_images} images, {steps} steps"
    seconds = timed_rounds(contenders, num_rounds, device, f"PGD, {subject}")
    return [
        Figure(f"{above} : {below}, {subject}", ratios(seconds[above], seconds[below]), bound, "at least")
        for above, below, bound in PAIRS
    ], seconds


def model_and_images(name: str, num_images: int, size: int, device: torch.device) -> tuple[nn.Module, Tensor, Tensor]:
    """A plain network in eval mode, untrained but for its batch-norm statistics.

    They give logits of a usual size: gradients that underflow would be slow.
    """
    torch.manual_seed(0)
    model = build_model(name, 10).to(device).to(memory_format=torch.channels_last)
    unit = torch.rand(num_images, 3, size, size, generator=torch.Generator().manual_seed(0))
    x = (BOUNDS.low + unit * (BOUNDS.high - BOUNDS.low)).to(device).to(memory_format=torch.channels_last)
    with torch.no_grad():
        for _ in range(20):
            model.train()(x)
        return model, x, model.eval()(x).argmax(1)


def import_foolbox() -> Any:
    """ImportError, with what to install, before anything is measured."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Please import `gaussian_filter`", DeprecationWarning)
        try:
            import foolbox
        except ImportError as error:
            raise ImportError(f"foolbox is what PGD is measured beside: pip install foolbox ({error})") from error
    return foolbox


def _foolbox(model: nn.Module, x: Tensor, labels: Tensor, eps: float, steps: int) -> Tensor:
    """x^T, by Eq. 6; in full float32, as ours."""
    foolbox = import_foolbox()
    bounds = (BOUNDS.low.item(), BOUNDS.high.item())
    peer = foolbox.PyTorchModel(model, bounds=bounds, device=x.device)
    attack = foolbox.attacks.LinfPGD(steps=steps, rel_stepsize=0.01 / 0.3, random_start=False)
    with full_float32(x.device.type):
        return attack(peer, x, labels, epsilons=eps)[1]


def all_columns(model: nn.Module, x: Tensor, labels: Tensor, steps: int) -> list[Tensor]:
    """bool[T+1 n] for each eps: is the answer right at x^t."""
    rows = []
    for eps in EPS_VALUES:
        with _inputs(model) as points:
            last = _foolbox(model, x, labels, eps, steps)
        with torch.no_grad(), full_float32(x.device.type):
            rows.append(torch.stack([model(point).argmax(1) == labels for point in [*points[:steps], last]]))
    return rows


@contextmanager
def _inputs(model: nn.Module) -> Iterator[list[Tensor]]:
    """The points that the model is asked about inside."""
    points: list[Tensor] = []
    handle = model.register_forward_pre_hook(lambda module, inputs: points.append(inputs[0].detach()))
    try:
        yield points
    finally:
        handle.remove()


def frozen(attack: Callable[..., object], model: nn.Module, *arguments: object) -> object:
    """foolbox leaves parameters as they are, and so works out their gradients too unless its user freezes them."""
    model.requires_grad_(False)
    try:
        return attack(model, *arguments)
    finally:
        model.requires_grad_(True)
