"""Expected calibration error: how far a network's confidence is from its accuracy.

M. Naeini, G. Cooper, M. Hauskrecht, AAAI 2015; C. Guo et al., "On Calibration of Modern Neural Networks", ICML 2017.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from fdt_pipeline import FDTLoader
from train.precision import full_float32

NUM_BINS = 15  # as Guo et al. take


def expected_calibration_error(confidences: Tensor, right: Tensor, num_bins: int = NUM_BINS) -> float:
    """f[n] in [0, 1], bool[n] -> the mean over the samples of |accuracy - confidence| of their bin, in [0, 1].

    Bins are of equal width, (0, 1/m] .. (1 - 1/m, 1]; confidence 0 belongs to the first. ValueError for no samples.
    """
    if confidences.shape != right.shape or confidences.dim() != 1 or not len(confidences):
        raise ValueError(
            f"expected confidences f[n] and right bool[n], n >= 1, got {list(confidences.shape)}, {list(right.shape)}"
        )
    confidences = confidences.double()
    bins = (confidences * num_bins).ceil().long().clamp(1, num_bins) - 1
    excess = torch.zeros(num_bins, dtype=torch.float64, device=bins.device)
    excess.index_add_(0, bins, right.double() - confidences)
    return float(excess.abs().sum() / len(confidences))


@torch.no_grad()
def calibration_error(model: nn.Module, loader: FDTLoader) -> float:
    """Of the largest softmax probability, over every sample of a loader of (images, labels), in full float32."""
    model.eval()
    confidences, right = [], []
    with full_float32(loader.device.type):
        for images, labels in loader:
            largest, classes = model(images).double().softmax(1).max(1)
            confidences.append(largest)
            right.append(classes == labels)
    return expected_calibration_error(torch.cat(confidences), torch.cat(right))
