"""What all rows of one folder share; with the row and the seed it gives the recipe."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from typing import Any, Literal

from train.recipes import Recipe, make_recipe
from train.reproduce.paper import EPS_VALUES
from train.reproduce.rows import TABLES, Row
from train.threat_model import PGD

ONE_STEM = ("small", "demo", "wrn28_10")


@dataclass(frozen=True)
class Settings:
    """None is the recipe's own value, or all test images; PAPER.md says which reading each field switches.

    min_images, max_images, mix_probability, anchor: of FDT, in every column that has it. stem: of the ResNets.
    tensor_norm: TN's gradient in training, in every column that has TN; the controls keep their own.
    loss_eps: in every column with the multi-label loss.
    augment: False is no shift and flip; None is the recipe's own, and none for the tables' SVHN, as the paper says.
    """

    table: str
    scale: Literal["full", "small"] = "full"
    epochs: int | None = None
    batch_size: int | None = None
    lr: float | None = None
    stem: Literal["cifar", "cifar-pool", "imagenet"] = "cifar"
    tensor_norm: Literal["straight-through", "exact"] = "straight-through"
    loss_eps: float | None = None
    min_images: int | None = None
    max_images: int | None = None
    mix_probability: float | None = None
    anchor: Literal["random", "epoch"] | None = None
    attack_images: int | None = None
    attack_steps: int = 40
    eps_values: tuple[float, ...] = EPS_VALUES
    clip_pixels: bool = True
    augment: Literal[False] | None = None

    def __post_init__(self) -> None:
        if not self.eps_values or len(set(self.eps_values)) != len(self.eps_values):
            raise ValueError(f"expected one or more different eps, got {list(self.eps_values)}")
        for eps in self.eps_values:
            PGD(eps, self.attack_steps)  # says what is wrong with either
        if self.scale == "small" and self.stem != "cifar":
            raise ValueError(f"the small scale's network has one stem only, got {self.stem!r}: leave --stem out")
        if self.attack_images is not None and self.attack_images < 1:
            raise ValueError(f"expected 1 or more images to attack, got {self.attack_images}")

    def to_dict(self) -> dict[str, Any]:
        """JSON values."""
        return {**asdict(self), "eps_values": list(self.eps_values)}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Settings:
        """Without `augment`, which older folders lack, too; ValueError for any other fields than these."""
        names = {field.name for field in fields(cls)}
        if not names - {"augment"} <= set(values) <= names:
            raise ValueError(f"expected the settings {sorted(names)}, got {sorted(values)}: another version made them")
        return cls(**{**values, "eps_values": tuple(values["eps_values"])})


def recipe_of(row: Row, settings: Settings, seed: int) -> Recipe:
    """What `fit` is given. A sweep's data set is named by its folder, and the name decides nothing."""
    recipe = make_recipe(
        f"{row.model}_{row.column}",
        epochs=settings.epochs,
        batch_size=settings.batch_size,
        lr=settings.lr,
        seed=seed,
    )
    if row.model not in ONE_STEM:
        recipe = replace(recipe, stem=settings.stem)
    if settings.augment is False or (settings.table in TABLES and row.dataset == "svhn"):
        recipe = replace(recipe, augment=None)
    if recipe.loss == "multi-label" and settings.loss_eps is not None:
        recipe = replace(recipe, loss_eps=settings.loss_eps)
    if recipe.tensor_norm == "straight-through":
        recipe = replace(recipe, tensor_norm=settings.tensor_norm)
    return _with_mixing(recipe, settings)


def _with_mixing(recipe: Recipe, settings: Settings) -> Recipe:
    fdt = recipe.fdt
    if fdt is None:
        return recipe
    changes: dict[str, Any] = {"probability": settings.mix_probability, "anchor": settings.anchor}
    if fdt.min_images != fdt.max_images:  # fdt_k2 is about its two images
        changes |= {"min_images": settings.min_images, "max_images": settings.max_images}
    return replace(recipe, fdt=replace(fdt, **{name: value for name, value in changes.items() if value is not None}))
