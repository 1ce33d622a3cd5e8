"""What all rows of one folder share: settings, which give each row and seed its recipe, and the data sets.

A data set is ROOT/NAME/{train,test} as shards, or a subset of it at the small scale.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from fdt_pipeline.definition.superposition import FDT
from fdt_pipeline.shards import load_shards, read_manifest
from fdt_pipeline.sources import ArraySource, Source, open_source
from train.attack import PGD
from train.recipes import SMALL_MODELS, Recipe, make_recipe
from train.reproduce.paper import TABLES, Row
from train.robustness import EPS_VALUES
from train.setup import FASHION_SUBSET, SPLITS, shard_once

ONE_STEM = (*SMALL_MODELS, "demo", "wrn28_10")
PER_CLASS = {"train": 500, "test": 100}  # of the small scale
BUNDLED = {"fashion-mnist": FASHION_SUBSET}


@dataclass(frozen=True)
class Settings:
    """None is the recipe's own value, or all test images; PAPER.md says which reading each field switches.

    min_images, max_images, mix_probability, anchor: of FDT, in every column that has it. stem: of the ResNets.
    tensor_norm: TN's gradient in training, in every column that has TN; the controls keep their own.
    loss_eps: in every column with the multi-label loss.
    augment: False is no shift and flip; None is the recipe's own, and none for the tables' SVHN, as the paper says.
    """

    table: str
    scale: Literal["full", "medium", "small"] = "full"
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
        if self.scale != "full" and self.stem != "cifar":
            raise ValueError(f"the {self.scale} scale's network has one stem only, got {self.stem!r}: leave --stem out")
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
    changed = {name: getattr(settings, name) for name in ("epochs", "batch_size", "lr")}
    recipe = make_recipe(f"{row.model}_{row.column}", **changed, seed=seed)
    changes: dict[str, Any] = {}
    if row.model not in ONE_STEM:
        changes["stem"] = settings.stem
    if settings.augment is False or (settings.table in TABLES and row.dataset == "svhn"):
        changes["augment"] = None
    if recipe.loss == "multi-label" and settings.loss_eps is not None:
        changes["loss_eps"] = settings.loss_eps
    if recipe.tensor_norm == "straight-through":
        changes["tensor_norm"] = settings.tensor_norm
    if isinstance(recipe.mix, FDT):
        mixing: dict[str, Any] = {"probability": settings.mix_probability, "anchor": settings.anchor}
        if recipe.mix.min_images != recipe.mix.max_images:  # fdt_k2 is about its two images
            mixing |= {"min_images": settings.min_images, "max_images": settings.max_images}
        given = {name: value for name, value in mixing.items() if value is not None}
        changes["mix"] = replace(recipe.mix, **given)
    return replace(recipe, **changes)


def missing_data(root: Path | None, dataset: str, scale: str) -> str | None:
    """Why a data set cannot be trained on, None where it can."""
    if scale == "small" and dataset in BUNDLED:
        return None
    if root is None:
        return "no --data was given"
    for split in SPLITS:
        if not (root / dataset / split / "manifest.json").is_file():
            return f"no shards in {dataset}/{split} of --data"
    return None


def data_folder(root: Path | None, dataset: str, scale: str, out: Path) -> Path:
    """The folder with train/ and test/; at the small scale its subsets are drawn into out/data first, once."""
    if scale != "small":
        assert root is not None  # else the data is missing
        return root / dataset
    folder = out / "data" / dataset
    for split in SPLITS:
        shard_once(partial(_small_source, root, dataset, split), folder / split, f"{dataset} {split}")
    return folder


def _small_source(root: Path | None, dataset: str, split: str) -> Source:
    if dataset in BUNDLED:
        return open_source(BUNDLED[dataset], split=split)
    assert root is not None  # else the data is missing
    shards = root / dataset / split
    images, labels, _ = load_shards(shards)
    chosen = draw_subset(images, labels, PER_CLASS[split])
    return ArraySource(images[chosen], labels[chosen], read_manifest(shards).classes, kind=f"{dataset}-subset")


def draw_subset(images: npt.NDArray[np.uint8], labels: npt.NDArray[np.int64], per_class: int) -> npt.NDArray[np.int64]:
    """Positions of per_class images of every class: those with the lowest sha256 of their pixels.

    So the subset depends on the images alone, not on the order or the seed of the shards that they come from.
    """
    digests = np.array([hashlib.sha256(image.tobytes()).hexdigest() for image in images])
    order = np.argsort(digests, kind="stable")
    return np.concatenate([order[labels[order] == label][:per_class] for label in np.unique(labels)])
