"""`python -m train checks`: is a trained run's robustness real, or does it hide from the attack?

All checks of one model in order, and the radius at which they are compared.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from tqdm import tqdm

from fdt_pipeline.tensor_norm import tensor_norm_layers
from train import attack_checks as own
from train import attack_checks_autoattack as peers
from train.attack import PGD, PixelBounds
from train.attack_checks import Check, Target, overall, share
from train.environment import hardware, versions
from train.files import prepare_json, write_json
from train.saved_run import SavedRun, first_samples, open_run
from train.setup import pick_device

RADII = (0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0)
RUNGS = (10, 20, 40, 100, 200)
NUM_IMAGES = 1000  # that are attacked, unless the user says otherwise


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


@dataclass(frozen=True)
class Report:
    """strongest: the share that is right under every attack at `eps`."""

    num_images: int
    clean: float
    eps: float
    grey_levels: float
    checks: Sequence[Check]
    strongest: float

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
        return {**asdict(self), "masked": self.masked, "summary": overall(self.checks)}


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
    at_eps = paths[eps] if eps in paths else own.paths_right(target, PGD(eps, settings.steps))
    checks, right = [], clean & own.throughout(at_eps)
    for check, still in _findings(target, settings, plain, paths, at_eps, clean, eps):
        checks.append(check)
        tell(check.to_text())
        right = right if still is None else right & still
    return Report(target.num_images, share(clean), eps, target.grey_levels(eps), checks, share(right))


def _findings(
    target: Target,
    settings: Settings,
    plain: nn.Module | None,
    paths: dict[float, Tensor],
    at_eps: Tensor,
    clean: Tensor,
    eps: float,
) -> Iterator[tuple[Check, Tensor | None]]:
    """Each check, with the images that are right under its attack where that was made at `eps`."""
    steps, pgd = settings.steps, own.throughout(at_eps)
    yield own.growth_in_radius(target, paths), None
    yield own.growth_in_steps(target, eps, RUNGS), None
    yield own.random_restarts(target, eps, steps, pgd, settings.restarts)
    yield own.single_step(target, eps, pgd)
    yield own.random_noise(target, eps, pgd, clean)
    if tensor_norm_layers(target.model):
        yield own.tensor_norm_gradients(eps, at_eps, target.slack), None
    if plain is not None:
        yield own.transfer(target, plain, eps, steps, pgd)
    num_classes = _num_classes(target)
    stages = peers.AutoAttackStages(target, eps, num_classes)
    if num_classes >= 3:  # the ratio needs three logits
        yield peers.margin_loss(stages, pgd, clean)
    yield peers.square(stages, pgd, clean, settings.queries)
    if settings.grey_levels is not None:
        radius = settings.grey_levels * target.span / 255
        pgd = own.throughout(own.paths_right(target, PGD(radius, steps)))
        check, still = peers.autoattack(peers.AutoAttackStages(target, radius, num_classes), pgd, clean)
        yield check, still if math.isclose(radius, eps) else None


def _compared_at(paths: dict[float, Tensor], clean: float) -> float:
    """On ties the larger radius: there an attack that works shows most."""
    return min(reversed(paths), key=lambda eps: abs(share(own.throughout(paths[eps])) - clean / 2))


@torch.no_grad()
def _num_classes(target: Target) -> int:
    return target.model.eval()(target.x[:1]).shape[1]


def checks_of_run(arguments: argparse.Namespace) -> str:
    """-> the last lines; each check is printed as it is done. ValueError as from `robustness`."""
    peers.import_autoattack()
    device = pick_device(arguments.device)
    settings = Settings(**{field.name: getattr(arguments, field.name) for field in fields(Settings)})
    if arguments.json:
        prepare_json(arguments.json)
    run = open_run(arguments.run_folder, device, arguments.weights)
    plain = _plain_model(arguments.plain, run, device) if arguments.plain else None
    loader = run.test_loader(arguments.data, arguments.batch_size)
    count = min(NUM_IMAGES, loader.num_samples) if arguments.images is None else arguments.images
    images, labels = (torch.cat(parts) for parts in zip(*first_samples(loader, count), strict=True))
    bounds = PixelBounds.from_normalization(loader.mean, loader.std)
    target = Target(run.model, images, labels, bounds, arguments.batch_size, arguments.seed)
    with tqdm(desc=f"checks of {run.name}", unit="check") as bar:

        def tell(text: str) -> None:
            tqdm.write(f"{text}\n")
            bar.update()

        report = run_checks(target, settings, plain, tell)
    if arguments.json:
        content = {
            **run.described(arguments.run_folder, loader),
            "weights": arguments.weights,
            "settings": vars(settings),
            "plain": str(arguments.plain) if arguments.plain else None,
            **report.to_dict(),
            "hardware": hardware(device),
            "versions": versions("pyautoattack"),
        }
        write_json(arguments.json, content)
    return report.summary()


def _plain_model(folder: Path, run: SavedRun, device: torch.device) -> nn.Module:
    plain = open_run(folder, device)
    for name in ("classes", "in_channels"):
        if plain.config[name] != run.config[name]:
            raise ValueError(f"{folder} has other {name} than {run.name}: --plain takes a run on the same data")
    return plain.model
