"""Recipes: a run is a function that returns a whole configuration.

The paper's optimisation (section 4 of its text): SGD, momentum 0.9, weight decay 5e-4, learning rate 0.1 divided by 10
every 30 epochs, batch 100, 150 epochs, no warm-up; an FDT epoch has as many steps as a plain one.
The five columns of its Table 1 are plain, ov, fdt, tn and tn_fdt; every base model has all of them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Literal

from fdt_pipeline.superposition import FDT, Augment


@dataclass(frozen=True)
class Recipe:
    """All that a run depends on, beside its data and its machine.

    epochs, lr_drop_every: in epochs; the learning rate is divided by 10 every lr_drop_every of them.
    max_steps: stop after so many optimizer steps, or None. channels: 3 repeats gray images, as the paper does.
    size: (height, width) to resize images to, needed where they differ in size; they are then streamed.
    tensor_norm: None, "straight-through" (the paper's backward pass) or "exact". loss_eps: Algorithm 4's threshold.
    """

    name: str
    model: str
    stem: Literal["cifar", "cifar-pool", "imagenet"] = "cifar"
    tensor_norm: Literal["straight-through", "exact"] | None = None
    fdt: FDT | None = None
    augment: Augment | None = field(default_factory=Augment)
    loss: Literal["cross-entropy", "multi-label"] = "cross-entropy"
    loss_eps: float = 1e-6
    channels: int | None = 3
    size: tuple[int, int] | None = None
    batch_size: int = 100
    epochs: int = 150
    max_steps: int | None = None
    lr: float = 0.1
    lr_drop_every: int = 30
    momentum: float = 0.9
    weight_decay: float = 5e-4
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("batch_size", "epochs", "lr_drop_every", "max_steps"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name} must be 1 or more, got {value}")
        if not self.lr > 0:
            raise ValueError(f"lr must be above 0, got {self.lr}")

    def to_dict(self) -> dict[str, Any]:
        """JSON values that tell two recipes apart; a series is named with its parameters."""
        values = asdict(self)
        values["size"] = list(self.size) if self.size else None
        if self.fdt is not None:
            values["fdt"]["series"] = repr(self.fdt.series)
        return values


def plain(base: Recipe) -> Recipe:
    """Whole images, cross entropy (Algorithm 3)."""
    return replace(base, name=f"{base.name}_plain")


def ov(base: Recipe) -> Recipe:
    """Overlays: FDT's images, but one hard label, the dominant image's class."""
    return replace(base, name=f"{base.name}_ov", fdt=FDT(targets="dominant"))


def fdt(base: Recipe) -> Recipe:
    """Full Distribution Training with the multi-label loss (Algorithms 2 and 4)."""
    return replace(base, name=f"{base.name}_fdt", fdt=FDT(), loss="multi-label")


def tn(base: Recipe) -> Recipe:
    """Tensor normalization after every ReLU (Algorithm 1)."""
    return replace(base, name=f"{base.name}_tn", tensor_norm="straight-through")


def tn_fdt(base: Recipe) -> Recipe:
    """Both."""
    return replace(fdt(base), name=f"{base.name}_tn_fdt", tensor_norm="straight-through")


def resnet34() -> Recipe:
    """Table 1. The paper on CIFAR-10: plain 92.52, ov 92.13, fdt 93.13, tn 93.69, tn_fdt 93.77 % clean."""
    return Recipe("resnet34", "resnet34")


def resnet152() -> Recipe:
    """Table 2. The paper on CIFAR-100: plain 76.09, tn_fdt 77.11 % clean."""
    return Recipe("resnet152", "resnet152")


def wrn28_10() -> Recipe:
    """Table 2. The paper on CIFAR-100: plain 78.23, tn_fdt 79.06 % clean."""
    return Recipe("wrn28_10", "wrn28_10")


def resnet18() -> Recipe:
    """Not in the paper: the same schedule on a network of half the cost."""
    return Recipe("resnet18", "resnet18")


def small() -> Recipe:
    """Not in the paper: a network that 2 CPU cores can train."""
    return Recipe("small", "small", epochs=20, lr_drop_every=8)


def demo() -> Recipe:
    """`python -m train`: 5,000 images; plain trains in 33 s, tn_fdt in 36 s on two CPU cores (results/demo)."""
    return Recipe("demo", "small", epochs=40, lr_drop_every=16)


BASES: tuple[Callable[[], Recipe], ...] = (resnet18, resnet34, resnet152, wrn28_10, small, demo)
COLUMNS: tuple[Callable[[Recipe], Recipe], ...] = (plain, ov, fdt, tn, tn_fdt)
RECIPES = tuple(f"{base.__name__}_{column.__name__}" for base in BASES for column in COLUMNS)


def make_recipe(name: str, **changes: Any) -> Recipe:
    """The recipe of this name with changes to its fields; None changes nothing.

    A change of epochs alone keeps the share of the run after which the learning rate drops.
    """
    made = next((c(b()) for b in BASES for c in COLUMNS if name == f"{b.__name__}_{c.__name__}"), None)
    if made is None:
        raise ValueError(f"there is no recipe {name!r}; recipes: {', '.join(RECIPES)}")
    changes = {field: value for field, value in changes.items() if value is not None}
    if "epochs" in changes and "lr_drop_every" not in changes:
        changes["lr_drop_every"] = max(1, round(made.lr_drop_every * changes["epochs"] / made.epochs))
    return replace(made, **changes)
