"""Controls that separate the causes of FDT's and TN's effects: label smoothing, and PONO in TN's place.

FDT does two things at once, it mixes images and it softens targets. Smoothing the labels of whole images until they
have the mean entropy of FDT's targets does the second alone.

Positional normalization (PONO) takes from each pixel its mean over the channels, as TN does, and divides by their
deviation. It stands after every ReLU, with the exact gradient, without the moment shortcut of its paper: B. Li, F. Wu,
K. Weinberger, S. Belongie, "Positional Normalization", NeurIPS 2019, arXiv 1907.04312.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from scipy.optimize import brentq
from torch import Tensor, nn

from fdt_pipeline.definition.mixing import FDT
from fdt_pipeline.loader.mixes import MixArgument
from train.recipes import Recipe

PONO_EPS = 1e-5  # added to the variance, as its authors' code does


def loader_mix(recipe: Recipe, num_classes: int) -> MixArgument:
    """What `FDTLoader` is told: the recipe's mix, in the epochs that have it, and the smoothing of whole images."""
    mix: MixArgument = recipe.mix
    if recipe.label_smoothing is not None:
        smoothing = recipe.label_smoothing
        if smoothing == "fdt-entropy":
            smoothing = smoothing_with_entropy(mean_target_entropy(FDT(), num_classes), num_classes)
        mix = FDT(probability=0.0, anchor="epoch", label_smoothing=smoothing)  # mixes nothing, and smooths
    if recipe.mixed_epochs in (0, recipe.epochs):
        return mix
    return lambda epoch: recipe.mix if epoch < recipe.mixed_epochs else None


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
