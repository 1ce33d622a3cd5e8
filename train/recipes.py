"""Recipes: the whole configuration of a run, by name.

The paper's optimisation (section 4 of its text): SGD, momentum 0.9, weight decay 5e-4, learning rate 0.1 divided by 10
every 30 epochs, batch 100, 150 epochs, no warm-up; an FDT epoch has as many steps as a plain one.
The five columns of its Table 1 are plain, ov, fdt, tn and tn_fdt; every base model has all of them. The controls
separate their causes: soft targets without mixing, mixing of other kinds, other weights, other norms.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field, fields, replace
from typing import Any, Literal

from fdt_pipeline.definition.mixing import FDT, CutMix, Mix, MixUp, OneOf
from fdt_pipeline.definition.series import Power
from fdt_pipeline.definition.superposition import Augment


@dataclass(frozen=True)
class Recipe:
    """All that a run depends on, beside its data and its machine.

    model: a name of `models.build_model`, or MODULE:FUNCTION for a network of the user's own (setup.py).
    epochs, lr_drop_every: in epochs; the learning rate is divided by 10 every lr_drop_every of them.
    max_steps: stop after so many optimizer steps, or None. channels: 3 repeats gray images, as the paper does.
    size: (height, width) to resize images to, needed where they differ in size; they are then streamed.
    tensor_norm: None, "straight-through" (the paper's backward pass) or "exact". loss_eps: Algorithm 4's threshold.
    norm: "pono" takes TN's place after every ReLU (mean and deviation per pixel, arXiv 1907.04312).
    mix: what the loader mixes, None for whole images. mix_share: the share of the epochs that are mixed, in (0, 1]; the
    others come last, and are of whole images.
    label_smoothing: of whole images, without mix: the share of a target that is spread over all classes;
    "fdt-entropy" is the one that makes targets as soft as FDT's are on average. A mixing has its own.
    """

    name: str
    model: str
    stem: Literal["cifar", "cifar-pool", "imagenet"] = "cifar"
    tensor_norm: Literal["straight-through", "exact"] | None = None
    norm: Literal["pono"] | None = None
    mix: Mix | None = None
    mix_share: float = 1.0
    label_smoothing: float | Literal["fdt-entropy"] | None = None
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
        if self.loss != "multi-label" and self.loss_eps != Recipe.loss_eps:
            raise ValueError(f"loss_eps is the multi-label loss's, got {self.loss_eps} with {self.loss}: leave it out")
        if ":" in self.model and self.stem != Recipe.stem:
            raise ValueError(f"stems are of the ResNets here, got stem {self.stem!r} with {self.model}: leave it out")
        self._check_controls()

    def _check_controls(self) -> None:
        if self.norm is not None and (self.norm != "pono" or self.tensor_norm is not None):
            raise ValueError(f'norm must be "pono" without tensor_norm, got {self.norm!r} with {self.tensor_norm!r}')
        smoothing = self.label_smoothing
        if smoothing is not None and smoothing != "fdt-entropy" and not 0 < smoothing < 1:
            raise ValueError(f'label_smoothing must be in (0, 1), "fdt-entropy" or None, got {smoothing!r}')
        if self.mix is not None and smoothing is not None:
            raise ValueError("label_smoothing is for whole images: leave it out, and give the mix its own")
        if not 0 < self.mix_share <= 1:
            raise ValueError(f"mix_share must be in (0, 1], got {self.mix_share}")
        if self.mix is None and self.mix_share != 1:
            raise ValueError(f"mix_share is of what is mixed, got {self.mix_share} without mix: leave it out")

    @property
    def mixed_epochs(self) -> int:
        """How many epochs, from the first on, have the mix; the others are of whole images."""
        return 0 if self.mix is None else max(1, round(self.mix_share * self.epochs))

    def to_dict(self) -> dict[str, Any]:
        """JSON values that tell two recipes apart; a series is named with its parameters."""
        return asdict(self) | {"mix": _described(self.mix), "size": list(self.size) if self.size else None}


def _described(mix: Mix | None) -> dict[str, Any] | None:
    if mix is None:
        return None
    if isinstance(mix, OneOf):
        return {"kind": "OneOf", "choices": [[_described(choice), share] for choice, share in mix.choices]}
    values = {option.name: getattr(mix, option.name) for option in fields(mix)}
    series = {"series": repr(values["series"])} if "series" in values else {}
    return {"kind": type(mix).__name__, **values, **series}


_FDT: dict[str, Any] = {"mix": FDT(), "loss": "multi-label"}
# The paper's columns, as changes to the recipe of a network.
COLUMNS: dict[str, dict[str, Any]] = {
    "plain": {},  # whole images, cross entropy (Algorithm 3)
    "ov": {"mix": FDT(targets="dominant")},  # overlays: FDT's images, but one hard label, the dominant image's class
    "fdt": _FDT,  # Full Distribution Training with the multi-label loss (Algorithms 2 and 4)
    "tn": {"tensor_norm": "straight-through"},  # tensor normalization after every ReLU (Algorithm 1)
    "tn_fdt": {**_FDT, "tensor_norm": "straight-through"},
}
# What people mix by, and label smoothing: rows of "which mixing should I take?" (README.md).
MIXINGS: dict[str, dict[str, Any]] = {
    "plain": {},
    "smoothing": {"label_smoothing": 0.1},
    "mixup0.2": {"mix": MixUp(0.2)},
    "mixup": {"mix": MixUp(1.0)},  # any weight is as likely; the authors' choice for CIFAR (arXiv 1710.09412)
    "cutmix": {"mix": CutMix(1.0)},
    "mixup_cutmix": {"mix": OneOf({MixUp(0.8): 0.5, CutMix(1.0): 0.5})},  # timm's and DeiT's
    "fdt": _FDT,
    "fdt_max2": {**_FDT, "mix": FDT(max_images=2)},  # half of the outputs are clean images
    "zeta": {**_FDT, "mix": FDT(min_images=2, series=Power(2.8))},  # zeta-mixup (arXiv 2204.03323)
    "mixup_unique": {"mix": MixUp(1.0, unique_classes=True)},  # FDT of two images with MixUp's random weights
}
GAMMAS = (0.5, 2.0, 2.8, 4.0)  # 1 is fdt itself, 2.8 the default of zeta-mixup
CONTROLS: dict[str, dict[str, Any]] = {
    **{name: changes for name, changes in MIXINGS.items() if name not in COLUMNS},
    "label_smoothing": {"label_smoothing": "fdt-entropy"},  # as soft as FDT on clean images: what is left is the mixing
    "fdt_k2": {**_FDT, "mix": FDT(min_images=2, max_images=2)},  # always two images, 2/3 and 1/3, never a clean one
    "fdt_epoch": {**_FDT, "mix": FDT(anchor="epoch")},  # each image leads once an epoch
    "fdt_half": {**_FDT, "mix": FDT(probability=0.5)},  # every other output is a clean image
    "fdt_clean10": {**_FDT, "mix_share": 14 / 15},  # clean images in the last 10 of 150 epochs
    "fdt_clean30": {**_FDT, "mix_share": 0.8},  # in the last 30
    "tn_exact": {"tensor_norm": "exact"},  # the gradient of what TN computes, in place of the straight-through one
    "pono": {"norm": "pono"},  # positional normalization in TN's place
    # Weights i**-gamma (over their sum) in place of 1/i.
    **{f"fdt_gamma{gamma:g}": {**_FDT, "mix": FDT(series=Power(gamma))} for gamma in GAMMAS},
}


SMALL_MODELS = ("small", "small32", "small64")  # one network at width 16, 32 and 64
BASES = {
    # Table 1. The paper on CIFAR-10: plain 92.52, ov 92.13, fdt 93.13, tn 93.69, tn_fdt 93.77 % clean.
    "resnet34": Recipe("resnet34", "resnet34"),
    # Table 2. The paper on CIFAR-100: plain 76.09, tn_fdt 77.11 % clean, and plain 78.23, tn_fdt 79.06 % clean.
    "resnet152": Recipe("resnet152", "resnet152"),
    "wrn28_10": Recipe("wrn28_10", "wrn28_10"),
    # Not in the paper: the same schedule on a network of half the cost, and a network that 2 CPU cores can train.
    "resnet18": Recipe("resnet18", "resnet18"),
    **{name: Recipe(name, name, epochs=20, lr_drop_every=8) for name in SMALL_MODELS},
    # `python -m train`: 5,000 images; plain trains in 33 s, tn_fdt in 36 s on two CPU cores (results/demo).
    "demo": Recipe("demo", "small", epochs=40, lr_drop_every=16),
}
RECIPES = tuple(f"{base}_{column}" for base in BASES for column in COLUMNS)


def make_recipe(name: str, model: str | None = None, **changes: Any) -> Recipe:
    """The recipe MODEL_COLUMN or MODEL_CONTROL with changes to its fields; None changes nothing.

    With a model of the user's own, MODULE:FUNCTION, name is COLUMN or CONTROL alone, and the schedule is the paper's. A
    change of epochs alone keeps the share of the run after which the learning rate drops.
    """
    base, column = _split(name) if model is None else (_own(model), name)
    columns = COLUMNS | CONTROLS
    if column not in columns:
        raise ValueError(f"with --model, --recipe is one of {', '.join(columns)}, got {name!r}")
    changes = {field: value for field, value in changes.items() if value is not None}
    if "epochs" in changes and "lr_drop_every" not in changes:
        changes["lr_drop_every"] = max(1, round(base.lr_drop_every * changes["epochs"] / base.epochs))
    return replace(base, name=f"{base.name}_{column}", **{**columns[column], **changes})


def _split(name: str) -> tuple[Recipe, str]:
    for base, recipe in BASES.items():
        column = name.removeprefix(f"{base}_")
        if column != name and column in COLUMNS | CONTROLS:
            return recipe, column
    raise ValueError(f"there is no recipe {name!r}; recipes: {', '.join(RECIPES)}; controls: {', '.join(CONTROLS)}")


def _own(model: str) -> Recipe:
    module, separator, function = model.partition(":")
    if not (module and separator and function):
        raise ValueError(f"expected --model MODULE:FUNCTION, got {model!r}; for a network of ours leave it out")
    return Recipe(function, model)
