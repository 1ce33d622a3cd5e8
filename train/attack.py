"""PGD in the L-infinity ball, and the model's answer at every point of its path (Eq. 6).

    x^t = x^0 + clip(x^(t-1) + alpha * sign(grad_x CE(f(x^(t-1)), y)) - x^0, -eps, eps),   then the pixel range

Eq. 6 as printed lacks "x^0 +". sign(0) = 0. No sample stops early: one that is fooled at step t may be right again
later. The answer at x^t is the forward pass of step t + 1, so a path costs T passes forward and back and one forward.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from train.precision import Precision, attack_precision, autotuned_convolutions, full_float32, tf32_behind_first_layer
from train.threat_model import PGD, PixelBounds

__all__ = ["PGD", "AttackPath", "PixelBounds", "frozen", "pgd_path", "pgd_paths"]


@dataclass(frozen=True, eq=False)
class AttackPath:
    """`correct` bool[T+1 n]: is the answer right at x^t, t = 0..T; `adversarial` f32[n c h w]: x^T.

    x^T was clipped once more to ball and pixels, which changes nothing unless a step went wrong, and the last row of
    `correct` judges it by a forward pass of its own. A float32 x^T is within eps of x^0 up to its own rounding. With a
    random start, row 0 is the start.
    """

    correct: Tensor
    adversarial: Tensor


def pgd_path(
    model: nn.Module,
    x: Tensor,
    labels: Tensor,
    attack: PGD,
    bounds: PixelBounds | None = None,
    precision: Precision = "float32",
) -> AttackPath:
    """Follows Eq. 6 from x f32[n c h w] with labels i64[n]; `bounds` may be left out where pixels are not clipped.

    The model is in eval mode meanwhile, its parameters need no gradient, and autocast is off; all of it is put back.
    precision: "tf32" is `tf32_behind_first_layer`, which makes a difference on GPUs alone.
    FloatingPointError names the first step t whose logits or gradient at x^t are not finite.
    """
    return pgd_paths(model, x, labels, [attack], bounds, precision)[0]


def pgd_paths(
    model: nn.Module,
    x: Tensor,
    labels: Tensor,
    attacks: Sequence[PGD],
    bounds: PixelBounds | None = None,
    precision: Precision = "float32",
) -> list[AttackPath]:
    """`pgd_path` of each attack, all in one batch of n * len(attacks) images; eps, rel_step and seed may differ.

    A network may answer otherwise in the last bit in a batch of another size.
    """
    bounds = None if bounds is None else bounds.to(x.device)
    _check_input(x, labels, attacks, bounds)
    with _under_attack(model, x.device.type, precision):
        # out of inference mode, if the caller is in it
        origin, labels = _repeat(x.detach(), len(attacks)), labels.repeat(len(attacks))
        walk = _Walk(attacks, origin, bounds if attacks[0].clip_pixels else None)
        point = _start(origin, attacks, walk)
        correct, finite = [], []
        for step in range(attacks[0].steps):
            leaf = point.detach().requires_grad_()
            logits = model(leaf)
            if step == 0:
                _check_labels(labels, logits)
            gradient = _input_gradient(logits, labels, leaf)
            correct.append(logits.argmax(dim=1) == labels)
            finite.append(torch.isfinite(logits).all() & torch.isfinite(gradient).all())
            point = walk.project(point + walk.alpha * gradient.sign())
        point = walk.project(point)
        logits = model(point)
        correct.append(logits.argmax(dim=1) == labels)
        finite.append(torch.isfinite(logits).all())
    _check_finite(torch.stack(finite))
    rows, points = torch.stack(correct).split(len(x), dim=1), point.split(len(x))
    return [AttackPath(*path) for path in zip(rows, points, strict=True)]


class _Walk:
    """The step and the ball of each image: a number for one attack, f32[k*n 1 1 1] for k of them."""

    def __init__(self, attacks: Sequence[PGD], origin: Tensor, bounds: PixelBounds | None) -> None:
        self.origin, self.bounds = origin, bounds
        self.alpha = _of_each_image([attack.alpha for attack in attacks], origin)
        self.eps = _of_each_image([attack.eps for attack in attacks], origin)

    def project(self, point: Tensor) -> Tensor:
        point = self.origin + torch.clamp(point - self.origin, -self.eps, self.eps)
        return self.bounds.clip(point) if self.bounds is not None else point


def _of_each_image(values: Sequence[float], origin: Tensor) -> Any:
    if len(values) == 1:
        return values[0]
    each = torch.tensor(values, dtype=torch.float32, device=origin.device)
    return each.repeat_interleave(len(origin) // len(values)).view(-1, 1, 1, 1)


def _repeat(x: Tensor, times: int) -> Tensor:
    """A copy in x's memory format; Tensor.repeat makes NCHW of every format."""
    return torch.cat([x] * times) if times > 1 else x.clone()


def _start(origin: Tensor, attacks: Sequence[PGD], walk: _Walk) -> Tensor:
    if not attacks[0].random_start:
        return origin
    noise = [_noise(attack, part.shape) for attack, part in zip(attacks, origin.chunk(len(attacks)), strict=True)]
    return walk.project(origin + torch.cat(noise).to(origin.device))


def _noise(attack: PGD, shape: torch.Size) -> Tensor:
    generator = torch.Generator().manual_seed(attack.seed)
    return (2 * torch.rand(shape, generator=generator) - 1) * attack.eps


def _input_gradient(logits: Tensor, labels: Tensor, leaf: Tensor) -> Tensor:
    """The loss is summed, not averaged, so that the gradient of a sample does not depend on the size of its batch."""
    (gradient,) = torch.autograd.grad(F.cross_entropy(logits, labels, reduction="sum"), leaf)
    return gradient


@contextmanager
def _under_attack(model: nn.Module, device_type: str, precision: Precision) -> Iterator[None]:
    """Eval mode, frozen parameters, the precision; every module's mode and every parameter's flag is put back."""
    exact = attack_precision(precision, device_type) == "float32"  # ValueError for any other name
    number_format = full_float32(device_type) if exact else tf32_behind_first_layer(model, device_type)
    modes = [(module, module.training) for module in model.modules()]
    try:
        model.eval()
        with frozen(model), torch.inference_mode(False), number_format, autotuned_convolutions(device_type):
            yield  # outside of no_grad too, as inference_mode(False) is
    finally:
        for module, mode in modes:
            module.training = mode


@contextmanager
def frozen(model: nn.Module) -> Iterator[None]:
    """No parameter needs a gradient inside; every parameter's flag is put back."""
    flags = [(parameter, parameter.requires_grad) for parameter in model.parameters()]
    try:
        for parameter, _ in flags:
            parameter.requires_grad_(False)
        yield
    finally:
        for parameter, flag in flags:
            parameter.requires_grad_(flag)


def _check_input(x: Tensor, labels: Tensor, attacks: Sequence[PGD], bounds: PixelBounds | None) -> None:
    if len({(attack.steps, attack.clip_pixels, attack.random_start) for attack in attacks}) != 1:
        raise ValueError(f"expected attacks that differ in eps, rel_step and seed alone, got {list(attacks)}")
    if x.dim() != 4 or x.dtype != torch.float32 or len(x) == 0:
        raise ValueError(f"expected at least one image, f32[n c h w], got {x.dtype} of shape {tuple(x.shape)}")
    if labels.shape != x.shape[:1] or labels.dtype != torch.int64:
        raise ValueError(f"expected labels i64[{len(x)}], got {labels.dtype} of shape {tuple(labels.shape)}")
    if bounds is None and attacks[0].clip_pixels:
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
