"""Controls that separate the causes of FDT's and TN's effects: label smoothing, mixup, and PONO in TN's place.

FDT does two things at once, it mixes images and it softens targets. Smoothing the labels of whole images until they
have the mean entropy of FDT's targets does the second alone; mixup is the mixing that came before it. Both change a
batch of clean images before the step.

Positional normalization (PONO) takes from each pixel its mean over the channels, as TN does, and divides by their
deviation. It stands after every ReLU, with the exact gradient, without the moment shortcut of its paper: B. Li, F. Wu,
K. Weinberger, S. Belongie, "Positional Normalization", NeurIPS 2019, arXiv 1907.04312.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import torch
from scipy.optimize import brentq
from torch import Tensor, nn

from fdt_pipeline.definition.mixing import FDT
from train.recipes import Recipe

BatchChange = Callable[[Tensor, Tensor, int], tuple[Tensor, Tensor]]
PONO_EPS = 1e-5  # added to the variance, as its authors' code does


def make_batch_change(recipe: Recipe, num_classes: int) -> BatchChange:
    """(images f32[n c h w], targets f32[n C], step) -> both as the recipe trains on them; as they are without controls.

    Mixup draws from (seed, step) alone, so a resumed run draws what an undisturbed one does.
    """
    alpha, smoothing = recipe.mixup, None
    if recipe.label_smoothing == "fdt-entropy":
        smoothing = smoothing_with_entropy(mean_target_entropy(FDT(), num_classes), num_classes)

    def change(images: Tensor, targets: Tensor, step: int) -> tuple[Tensor, Tensor]:
        if smoothing is not None:
            targets = smooth_targets(targets, smoothing)
        if alpha is not None:
            images, targets = mix_pairs(images, targets, alpha, np.random.default_rng([recipe.seed, step]))
        return images, targets

    return change


def mean_target_entropy(fdt: FDT, num_classes: int) -> float:
    """Nats, the mean over FDT's outputs: 1.3314 for the paper's with 10 classes, 2.9797 with 100."""
    lowest, highest = min(fdt.min_images, num_classes), fdt.most_images(num_classes)
    entropies = [_entropy(fdt.series.weights(k)) for k in range(lowest, highest + 1)]
    return fdt.probability * float(np.mean(entropies))


def smoothing_with_entropy(entropy: float, num_classes: int) -> float:
    """The s in [0, 1] for which (1 - s) onehot + s / C has this entropy, which rises with s from 0 to log C nats."""
    if not 0 <= entropy <= math.log(num_classes):
        raise ValueError(f"the entropy must be in [0, log {num_classes}] nats, got {entropy}")

    def excess(smoothing: float) -> float:
        spread = np.full(num_classes, smoothing / num_classes)
        spread[0] += 1 - smoothing
        return _entropy(spread) - entropy

    return float(brentq(excess, 0.0, 1.0, xtol=1e-12)) if excess(1.0) > 0 else 1.0


def smooth_targets(targets: Tensor, smoothing: float) -> Tensor:
    """f32[n C] -> f32[n C]: (1 - s) t + s / C; rows keep their sum of 1."""
    return (1 - smoothing) * targets + smoothing / targets.shape[1]


def mix_pairs(images: Tensor, targets: Tensor, alpha: float, rng: np.random.Generator) -> tuple[Tensor, Tensor]:
    """Mixup: lambda x + (1 - lambda) x[order], and the targets likewise, with one lambda ~ Beta(alpha, alpha)."""
    weight = rng.beta(alpha, alpha)
    order = torch.from_numpy(rng.permutation(len(images))).to(images.device)
    return (
        weight * images + (1 - weight) * images[order],
        weight * targets + (1 - weight) * targets[order.to(targets.device)],
    )


def _entropy(weights: np.ndarray) -> float:
    """Of weights that sum to 1, in nats; 0 log 0 is 0."""
    positive = weights[weights > 0]
    return float(-(positive * np.log(positive)).sum())


class PositionalNorm(nn.Module):
    """f[n z ...] -> f[n z ...] in x's dtype, z >= 2: zero mean and unit deviation over z; float32 inside. No state."""

    def forward(self, x: Tensor) -> Tensor:
        if x.dim() < 2 or x.shape[1] < 2:
            raise ValueError(f"positional norm needs [n channels ...], 2 or more channels, got shape {tuple(x.shape)}")
        full = x.to(torch.promote_types(x.dtype, torch.float32))
        variance, mean = torch.var_mean(full, dim=1, keepdim=True)
        return ((full - mean) * torch.rsqrt(variance + PONO_EPS)).to(x.dtype)


def insert_positional_norm(model: nn.Module) -> nn.Module:
    """Put it after every nn.ReLU of a network of this package: changes the model in place and returns it.

    ValueError where there is no nn.ReLU: functional ones are not looked for.
    """
    modules = [(parent, *named) for parent in model.modules() for named in parent.named_children()]
    places = [(parent, name, relu) for parent, name, relu in modules if type(relu) is nn.ReLU]
    if not places:
        raise ValueError(f"found no nn.ReLU in {type(model).__name__}: build it without tensor_norm")
    for parent, name, relu in places:
        setattr(parent, name, nn.Sequential(relu, PositionalNorm()))
    return model
