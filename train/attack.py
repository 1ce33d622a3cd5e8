"""PGD in the L-infinity ball, and the model's answer at every point of its path (Eq. 6).

    x^t = x^0 + clip(x^(t-1) + alpha * sign(grad_x CE(f(x^(t-1)), y)) - x^0, -eps, eps),   then the pixel range

Eq. 6 as printed lacks "x^0 +". sign(0) = 0. No sample stops early: one that is fooled at step t may be right again
later. The answer at x^t is the forward pass of step t + 1, so a path costs T passes forward and back and one forward.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fdt_pipeline.loader.options import check_pixel_range
from fdt_pipeline.tensor_norm import Gradient, tensor_norm_layers
from train.precision import Precision, attack_precision, autotuned_convolutions, full_float32, tf32_behind_first_layer

_SLACK = 1e-3  # of the pixel range: far above rounding, far below a wrong mean or std


@dataclass(frozen=True)
class PGD:
    """Projected gradient descent in the L-infinity ball of radius `eps`, in the model's input units.

    Those are the units of (pixel - mean) / std: with std 256, eps = 0.1 is 25.6 grey levels. The step is
    alpha = rel_step * eps, by default eps / 30, so the path can first reach the radius eps at t = 30. A random start is
    x^0 + U(-eps, eps) drawn from `seed`, the same draw on every call: give each batch a seed of its own.
    """

    eps: float
    steps: int = 40
    rel_step: float = 0.01 / 0.3
    clip_pixels: bool = True
    random_start: bool = False
    seed: int = 0

    def __post_init__(self) -> None:
        if not (math.isfinite(self.eps) and self.eps >= 0):
            raise ValueError(f"expected a finite eps >= 0, a radius in units of (pixel - mean) / std, got {self.eps}")
        if self.steps < 1:
            raise ValueError(f"expected steps >= 1, got {self.steps}; the paper takes 40")
        if not (math.isfinite(self.rel_step) and self.rel_step > 0):
            raise ValueError(f"expected a finite rel_step > 0, the step as a share of eps, got {self.rel_step}")

    @property
    def alpha(self) -> float:
        """Step length; a product of Python floats, as foolbox takes it, so that both walk the same path to the bit."""
        return self.rel_step * self.eps


@dataclass(frozen=True, eq=False)
class PixelBounds:
    """Where the pixel values 0 and 255 lie in the model's input: low, high f32[c 1 1]; c = 1 serves any image."""

    low: Tensor
    high: Tensor

    @classmethod
    def from_normalization(cls, mean: Sequence[float], std: float | Sequence[float]) -> PixelBounds:
        """For x = (pixel - mean) / std, pixels in 0..255; `mean` has one entry a channel, `std` one or as many."""
        center = torch.tensor(mean, dtype=torch.float32).reshape(-1, 1, 1)
        width = torch.tensor(std, dtype=torch.float32).reshape(-1, 1, 1)
        if len(width) not in (1, len(center)) or not bool((width > 0).all()):
            raise ValueError(f"expected one std > 0, or one for each of the {len(center)} channels, got {std}")
        check_pixel_range(mean, std)
        return cls(low=(0 - center) / width, high=(255 - center) / width)

    def to(self, device: torch.device) -> PixelBounds:
        return PixelBounds(self.low.to(device), self.high.to(device))

    def clip(self, x: Tensor) -> Tensor:
        return torch.clamp(x, self.low, self.high)

    def check(self, x: Tensor) -> None:
        """Raises ValueError if x f32[n c h w] has other channels, or leaves the bounds by over 0.1 % of the range."""
        if len(self.low) not in (1, x.shape[1]):
            raise ValueError(f"expected images with {len(self.low)} channels, as the bounds have, got {x.shape[1]}")
        slack = _SLACK * (self.high - self.low)
        if not bool(((x >= self.low - slack) & (x <= self.high + slack)).all()):
            raise ValueError(
                f"expected x between {self.low.flatten().tolist()} and {self.high.flatten().tolist()}, got values in "
                f"[{x.min():.4g}, {x.max():.4g}]; make the bounds from the mean and std that x was normalized with"
            )


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
        # Copies, as the caller may be in inference mode; in x's memory format, which Tensor.repeat would not keep.
        origin, labels = torch.cat([x.detach()] * len(attacks)), labels.repeat(len(attacks))
        alpha, eps = (_of_each_image([getattr(a, name) for a in attacks], origin) for name in ("alpha", "eps"))

        def project(point: Tensor) -> Tensor:
            point = origin + torch.clamp(point - origin, -eps, eps)
            return bounds.clip(point) if bounds is not None and attacks[0].clip_pixels else point

        point = origin
        if attacks[0].random_start:
            point = project(origin + torch.cat([_noise(attack, x.shape) for attack in attacks]).to(x.device))
        correct, finite = [], []
        for step in range(attacks[0].steps):
            leaf = point.detach().requires_grad_()
            logits = model(leaf)
            if step == 0:
                _check_labels(labels, logits)
            gradient = _input_gradient(logits, labels, leaf)
            correct.append(logits.argmax(dim=1) == labels)
            finite.append(torch.isfinite(logits).all() & torch.isfinite(gradient).all())
            point = project(point + alpha * gradient.sign())
        point = project(point)
        logits = model(point)
        correct.append(logits.argmax(dim=1) == labels)
        finite.append(torch.isfinite(logits).all())
    _check_finite(torch.stack(finite))
    rows, points = torch.stack(correct).split(len(x), dim=1), point.split(len(x))
    return [AttackPath(*path) for path in zip(rows, points, strict=True)]


def _of_each_image(values: Sequence[float], origin: Tensor) -> Tensor:
    """f32[k*n 1 1 1] of k attacks' values."""
    each = torch.tensor(values, dtype=torch.float32, device=origin.device)
    return each.repeat_interleave(len(origin) // len(values)).view(-1, 1, 1, 1)


def _noise(attack: PGD, shape: torch.Size) -> Tensor:
    """U(-eps, eps): where a random start lies from x^0."""
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


def gradients_to_follow(model: nn.Module) -> list[Gradient]:
    """A model with TN layers is attacked along the exact and the straight-through gradient, any other along one."""
    return ["exact", "straight-through"] if tensor_norm_layers(model) else ["exact"]


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
