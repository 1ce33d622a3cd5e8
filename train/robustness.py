"""Robust accuracy: PGD at several radii, with both gradients of tensor normalization.

The paper's attack follows the straight-through gradient of TN, which is not the gradient of the network. A model with
TN is therefore attacked with the exact gradient too, and the worse of the two is reported.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from fdt_pipeline.tensor_norm import tensor_norm_gradient
from train.attack import PGD, PixelBounds, gradients_to_follow, pgd_paths
from train.precision import Precision, attack_precision
from train.robust_accuracy import AttackCounts, Robustness, RobustnessAtEps

EPS_VALUES = (1e-1, 1e-2, 1e-3, 1e-4)  # the columns of Tables 1 and 2


def evaluate_robustness(
    model: nn.Module,
    x: Tensor,
    labels: Tensor,
    bounds: PixelBounds | None,
    eps_values: Sequence[float] = EPS_VALUES,
    *,
    steps: int = 40,
    clip_pixels: bool = True,
    together: bool | None = None,
    precision: Precision | None = None,
    progress: Callable[[int], object] | None = None,
) -> Robustness:
    """Attacks a batch, x f32[n c h w] with labels i64[n], once for each eps and TN gradient; results of batches add up.

    A model with TN layers is attacked along the exact and the straight-through gradient, any other along the exact one.
    `together` attacks at all radii in one batch of n * radii images; by default on a GPU, which a batch of 100 does not
    fill. `precision` is "tf32" on a GPU by default (precision.py says what that is), else "float32", and is in the
    result. After each attack `progress` is called with the image-steps that it took (n * steps), as tqdm.update wants
    it; their total is images * steps * radii * gradients, each one pass forward and back.
    """
    if not eps_values or len(set(eps_values)) != len(eps_values):
        raise ValueError(f"expected one or more different eps_values, got {list(eps_values)}")
    attacks = [PGD(eps, steps, clip_pixels=clip_pixels) for eps in eps_values]
    precision = attack_precision(precision, x.device.type)
    together = x.device.type == "cuda" if together is None else together
    groups = [attacks] if together else [[attack] for attack in attacks]  # the attacks that share a batch
    rows, gradients = [], gradients_to_follow(model)
    for gradient in gradients:
        with tensor_norm_gradient(model, gradient):
            for group in groups:
                rows += [path.correct for path in pgd_paths(model, x, labels, group, bounds, precision)]
                if progress is not None:
                    progress(len(x) * steps * len(group))
    correct = torch.stack(rows).unflatten(0, (len(gradients), -1))  # bool[gradient eps T+1 n]
    return _counts(correct, attacks, gradients, precision)


def _counts(correct: Tensor, attacks: Sequence[PGD], gradients: Sequence[str], precision: Precision) -> Robustness:
    """Of one batch, from bool[gradient eps T+1 n].

    Clean is x^0 of the first attack, and part of every worst case: so worst <= clean on any hardware.
    """
    correct = correct.cpu()
    clean = correct[0, 0, 0]
    throughout = correct.all(dim=2) & clean  # bool[gradient eps n]
    radii = []
    for e, attack in enumerate(attacks):
        counts = {
            name: AttackCounts(len(clean), tuple(correct[g, e].sum(1).tolist()), int(throughout[g, e].sum()))
            for g, name in enumerate(gradients)
        }
        radii.append(RobustnessAtEps(attack.eps, counts, int(throughout[:, e].all(0).sum())))
    first = attacks[0]
    return Robustness(len(clean), int(clean.sum()), first.steps, first.clip_pixels, tuple(radii), precision)
