"""All checks of one model, in order, and where they are compared."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from fdt_pipeline.tensor_norm import tensor_norm_layers
from train import attack_checks_autoattack as peers
from train import attack_checks_pgd as own
from train.attack_checks import Check, Target, overall, share
from train.threat_model import PGD

RADII = (0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0)
RUNGS = (10, 20, 40, 100, 200)


@dataclass(frozen=True)
class Settings:
    """eps: where attacks are compared; None for that of RADII at which PGD leaves nearest to half of the accuracy, so
    that a stronger attack could show. grey_levels: AutoAttack's radius (8, as it is usually given), None for none."""

    eps: float | None = None
    steps: int = 40
    restarts: int = 5
    queries: int = 1000
    grey_levels: float | None = 8.0

    def __post_init__(self) -> None:
        for name in ("steps", "restarts", "queries"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be 1 or more, got {getattr(self, name)}")
        for name in ("eps", "grey_levels"):
            value = getattr(self, name)
            if value is not None and not (math.isfinite(value) and value > 0):
                raise ValueError(f"{name} must be above 0, got {value}")


@dataclass
class Report:
    """strongest: the share that is right under every attack at `eps`."""

    num_images: int
    clean: float
    eps: float
    grey_levels: float
    checks: list[Check] = field(default_factory=list)
    strongest: float = 1.0

    @property
    def masked(self) -> bool:
        return any(check.masked for check in self.checks)

    def summary(self) -> str:
        at = f"eps = {self.eps:g} ({self.grey_levels:.3g} grey levels)"
        return (
            f"{overall(self.checks)}\n{self.num_images:,} images, {100 * self.clean:.2f} % right clean, "
            f"{100 * self.strongest:.2f} % under every attack at {at}"
        )

    def to_dict(self) -> dict[str, Any]:
        checks = [check.to_dict() for check in self.checks]
        return {**vars(self), "checks": checks, "masked": self.masked, "summary": overall(self.checks)}


def run_checks(
    target: Target,
    settings: Settings | None = None,
    plain: nn.Module | None = None,
    tell: Callable[[str], object] = lambda text: None,
) -> Report:
    """`plain`: where transferred images come from. `tell` is given each check as text when it is done.

    ImportError without pyautoattack; ValueError for a model that is never right, or channels of several stds.
    """
    settings = settings or Settings()
    peers.import_autoattack()
    clean = own.answers_right(target.model, target, target.x)
    if not bool(clean.any()):
        raise ValueError(f"the model is right on none of {target.num_images} images: there is nothing to attack")
    paths = {eps: own.paths_right(target, PGD(eps, settings.steps)) for eps in RADII}
    eps = _compared_at(paths, share(clean)) if settings.eps is None else settings.eps
    if eps not in paths:
        paths[eps] = own.paths_right(target, PGD(eps, settings.steps))
    report = Report(target.num_images, share(clean), eps, target.grey_levels(eps))
    right = [clean, own.throughout(paths[eps])]

    def add(check: Check, still: Tensor | None = None) -> None:
        report.checks.append(check)
        tell(check.to_text())
        right.extend([] if still is None else [still])
        report.strongest = share(torch.stack(right).all(0))

    add(own.growth_in_radius(target, {radius: paths[radius] for radius in sorted({*RADII})}))
    add(own.growth_in_steps(target, eps, RUNGS))
    _compare(target, settings, plain, paths[eps], clean, eps, add)
    if settings.grey_levels is not None:
        radius = settings.grey_levels * target.span / 255
        pgd = own.throughout(own.paths_right(target, PGD(radius, settings.steps)))
        num_classes = _num_classes(target)
        check, still = peers.autoattack(peers.AutoAttackStages(target, radius, num_classes), pgd, clean)
        add(check, still if math.isclose(radius, eps) else None)
    return report


def _compare(
    target: Target,
    settings: Settings,
    plain: nn.Module | None,
    paths: Tensor,
    clean: Tensor,
    eps: float,
    add: Callable[..., None],
) -> None:
    """Attacks at one radius, beside PGD's `paths`."""
    pgd = own.throughout(paths)
    add(*own.random_restarts(target, eps, settings.steps, pgd, settings.restarts))
    add(*own.single_step(target, eps, pgd))
    add(*own.random_noise(target, eps, pgd, clean))
    if tensor_norm_layers(target.model):
        add(own.tensor_norm_gradients(eps, paths, target.slack))
    if plain is not None:
        add(*own.transfer(target, plain, eps, settings.steps, pgd))
    stages = peers.AutoAttackStages(target, eps, _num_classes(target))
    if stages.num_classes >= 3:  # the ratio needs three logits
        add(*peers.margin_loss(stages, pgd, clean))
    add(*peers.square(stages, pgd, clean, settings.queries))


def _compared_at(paths: dict[float, Tensor], clean: float) -> float:
    """On ties the larger radius: there an attack that works shows most."""
    return min(reversed(paths), key=lambda eps: abs(share(own.throughout(paths[eps])) - clean / 2))


@torch.no_grad()
def _num_classes(target: Target) -> int:
    return target.model.eval()(target.x[:1]).shape[1]
