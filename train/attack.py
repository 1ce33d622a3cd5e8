"""PGD in the L-infinity ball, and the model's answer at every point of its path (Eq. 6).

    x^t = x^0 + clip(x^(t-1) + alpha * sign(grad_x CE(f(x^(t-1)), y)) - x^0, -eps, eps),   then the pixel range

Eq. 6 as printed lacks "x^0 +". sign(0) = 0. No sample stops early: one that is fooled at step t may be right again
later. The answer at x^t is the forward pass of step t + 1, so a path costs T passes forward and back and one forward.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from train.full_float32 import full_float32
from train.threat_model import PGD, PixelBounds

__all__ = ["PGD", "AttackPath", "PixelBounds", "pgd_path"]


@dataclass(frozen=True, eq=False)
class AttackPath:
    """`correct` bool[T+1 n]: is the answer right at x^t, t = 0..T; `adversarial` f32[n c h w]: x^T.

    x^T was clipped once more to ball and pixels, which changes nothing unless a step went wrong, and the last row of
    `correct` judges it by a forward pass of its own. A float32 x^T is within eps of x^0 up to its own rounding. With a
    random start, row 0 is the start.
    """

    correct: Tensor
    adversarial: Tensor


def pgd_path(model: nn.Module, x: Tensor, labels: Tensor, attack: PGD, bounds: PixelBounds | None = None) -> AttackPath:
    """Follows Eq. 6 from x f32[n c h w] with labels i64[n]; `bounds` may be left out where pixels are not clipped.

    The model is in eval mode meanwhile, its parameters need no gradient, and autocast is off; all of it is put back.
    FloatingPointError names the first step t whose logits or gradient at x^t are not finite.
    """
    bounds = None if bounds is None else bounds.to(x.device)
    _check_input(x, labels, attack, bounds)
    with _under_attack(model, x.device.type):
        origin, labels = x.detach().clone(), labels.clone()  # out of inference mode, if the caller is in it
        point = _start(origin, attack, bounds)
        correct, finite = [], []
        for step in range(attack.steps):
            leaf = point.detach().requires_grad_()
            logits = model(leaf)
            if step == 0:
                _check_labels(labels, logits)
            gradient = _input_gradient(logits, labels, leaf)
            correct.append(logits.argmax(dim=1) == labels)
            finite.append(torch.isfinite(logits).all() & torch.isfinite(gradient).all())
            point = _project(point + attack.alpha * gradient.sign(), origin, attack, bounds)
        point = _project(point, origin, attack, bounds)
        logits = model(point)
        correct.append(logits.argmax(dim=1) == labels)
        finite.append(torch.isfinite(logits).all())
    _check_finite(torch.stack(finite))
    return AttackPath(correct=torch.stack(correct), adversarial=point)


def _start(origin: Tensor, attack: PGD, bounds: PixelBounds | None) -> Tensor:
    if not attack.random_start:
        return origin
    generator = torch.Generator().manual_seed(attack.seed)
    noise = (2 * torch.rand(origin.shape, generator=generator) - 1) * attack.eps
    return _project(origin + noise.to(origin.device), origin, attack, bounds)


def _project(point: Tensor, origin: Tensor, attack: PGD, bounds: PixelBounds | None) -> Tensor:
    point = origin + torch.clamp(point - origin, -attack.eps, attack.eps)
    return bounds.clip(point) if attack.clip_pixels and bounds is not None else point


def _input_gradient(logits: Tensor, labels: Tensor, leaf: Tensor) -> Tensor:
    """The loss is summed, not averaged, so that the gradient of a sample does not depend on the size of its batch."""
    (gradient,) = torch.autograd.grad(F.cross_entropy(logits, labels, reduction="sum"), leaf)
    return gradient


@contextmanager
def _under_attack(model: nn.Module, device_type: str) -> Iterator[None]:
    """Eval mode, frozen parameters, full float32; every module's mode and every parameter's flag is put back."""
    modes = [(module, module.training) for module in model.modules()]
    flags = [(parameter, parameter.requires_grad) for parameter in model.parameters()]
    try:
        model.eval()
        for parameter, _ in flags:
            parameter.requires_grad_(False)
        with torch.inference_mode(False), full_float32(device_type):  # switches no_grad off as well
            yield
    finally:
        for module, mode in modes:
            module.training = mode
        for parameter, flag in flags:
            parameter.requires_grad_(flag)


def _check_input(x: Tensor, labels: Tensor, attack: PGD, bounds: PixelBounds | None) -> None:
    if x.dim() != 4 or x.dtype != torch.float32 or len(x) == 0:
        raise ValueError(f"expected at least one image, f32[n c h w], got {x.dtype} of shape {tuple(x.shape)}")
    if labels.shape != x.shape[:1] or labels.dtype != torch.int64:
        raise ValueError(f"expected labels i64[{len(x)}], got {labels.dtype} of shape {tuple(labels.shape)}")
    if bounds is None and attack.clip_pixels:
        raise ValueError("expected the pixel bounds, got None; pass PixelBounds, or PGD(clip_pixels=False)")
    if bounds is not None:
        bounds.check(x)


def _check_labels(labels: Tensor, logits: Tensor) -> None:
    if logits.dim() != 2 or len(logits) != len(labels):
        raise ValueError(f"expected logits of shape [{len(labels)} C] from the model, got {tuple(logits.shape)}")
    low, high, num_classes = int(labels.min()), int(labels.max()), logits.shape[1]
    if low < 0 or high >= num_classes:
        raise ValueError(
            f"expected labels in 0..{num_classes - 1}, as the model has {num_classes} outputs, got {low}..{high}; "
            "number the classes from 0 or widen the model"
        )


def _check_finite(finite: Tensor) -> None:
    """finite bool[T+1], looked at once at the end, so that the steps never wait for a GPU to answer."""
    if not bool(finite.all()):
        step = int((~finite).nonzero()[0])
        raise FloatingPointError(f"logits or gradient at x^{step} (step {step} of {len(finite) - 1}) are not finite")
