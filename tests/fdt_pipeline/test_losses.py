"""The losses have the gradients that the paper prints, in every case that a target can be."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from fdt_pipeline import FDTLoader
from fdt_pipeline.losses import (
    check_eps,
    cross_entropy,
    kl_to_target,
    multi_label_loss,
)

EPS = 1e-2
SIZES = st.tuples(st.integers(1, 5), st.integers(1, 12))


def printed_gradient(logits: np.ndarray, targets: np.ndarray, eps: float) -> np.ndarray:
    """Algorithm 4, entry by entry, in float64."""
    num, num_classes = logits.shape
    gradient = np.empty_like(logits)
    for i in range(num):
        exps = np.exp(logits[i] - logits[i].max())
        for c in range(num_classes):
            p = exps[c] / exps.sum()
            gradient[i, c] = (p - targets[i, c] if targets[i, c] > eps else p) / num
    return gradient


def fdt_targets(rng: np.random.Generator, num: int, num_classes: int) -> np.ndarray:
    targets = np.zeros((num, num_classes))
    for row in targets:
        k = rng.integers(1, num_classes + 1)
        weights = 1.0 / np.arange(1, k + 1)
        row[rng.permutation(num_classes)[:k]] = weights / weights.sum()
    return targets


KINDS = {
    "entries in (0, eps]": lambda rng, n, c: rng.choice([0.0, EPS / 3, EPS, np.nextafter(EPS, 1), 0.4], (n, c)),
    "sums unlike 1": lambda rng, n, c: rng.uniform(0.0, 3.0, (n, c)),
    "one-hot": lambda rng, n, c: np.eye(c)[rng.integers(c, size=n)],
    "zeros": lambda rng, n, c: np.zeros((n, c)),
    "superposed": fdt_targets,
}


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=40, deadline=None)
@given(sizes=SIZES, seed=st.integers(0, 2**32 - 1), spread=st.sampled_from([0.1, 3.0, 60.0]))
def test_gradient_is_the_printed_one(kind: str, sizes: tuple[int, int], seed: int, spread: float) -> None:
    rng = np.random.default_rng(seed)
    logits = spread * rng.standard_normal(sizes)
    targets = KINDS[kind](rng, *sizes)
    z = torch.tensor(logits, requires_grad=True)
    (gradient,) = torch.autograd.grad(multi_label_loss(z, torch.tensor(targets), eps=EPS), z)
    np.testing.assert_allclose(gradient.numpy(), printed_gradient(logits, targets, EPS), rtol=0, atol=1e-12)


@settings(max_examples=50, deadline=None)
@given(sizes=SIZES, seed=st.integers(0, 2**32 - 1))
def test_kl_is_phi_minus_entropy_and_is_zero_at_the_target(sizes: tuple[int, int], seed: int) -> None:
    rng = np.random.default_rng(seed)
    targets = torch.tensor(fdt_targets(rng, *sizes))
    logits = torch.tensor(3.0 * rng.standard_normal(sizes))
    entropy = torch.special.entr(targets).sum(1)
    kl = kl_to_target(logits, targets, reduction="none")
    torch.testing.assert_close(kl, multi_label_loss(logits, targets, reduction="none") - entropy, rtol=0, atol=1e-12)
    assert (kl >= -1e-12).all()
    assert not kl_to_target(logits.requires_grad_(), targets).requires_grad
    perfect = torch.log(targets.clamp_min(1e-300))
    torch.testing.assert_close(kl_to_target(perfect, targets), torch.zeros((), dtype=torch.float64), rtol=0, atol=1e-12)


@settings(max_examples=50, deadline=None)
@given(sizes=SIZES, seed=st.integers(0, 2**32 - 1))
def test_one_hot_targets_make_algorithm_4_equal_algorithm_3(sizes: tuple[int, int], seed: int) -> None:
    rng = np.random.default_rng(seed)
    labels = torch.tensor(rng.integers(sizes[1], size=sizes[0]))
    logits = torch.tensor(5.0 * rng.standard_normal(sizes))
    one_hot = F.one_hot(labels, sizes[1]).double()
    torch.testing.assert_close(multi_label_loss(logits, one_hot), cross_entropy(logits, labels), rtol=0, atol=1e-12)


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
def test_soft_cross_entropy_equals_torch(reduction: str) -> None:
    rng = np.random.default_rng(0)
    logits, targets = torch.tensor(rng.standard_normal((7, 10))), torch.tensor(fdt_targets(rng, 7, 10))
    expected = F.cross_entropy(logits, targets, reduction=reduction)
    torch.testing.assert_close(cross_entropy(logits, targets, reduction), expected, rtol=0, atol=1e-12)
    torch.testing.assert_close(multi_label_loss(logits, targets, reduction=reduction), expected, rtol=0, atol=1e-12)


def test_a_weight_of_exactly_eps_is_dropped_and_the_next_float_counts() -> None:
    logits = torch.tensor([[1.0, 3.0]], dtype=torch.float64)
    dropped, counted = (torch.tensor([[0.5, w]], dtype=torch.float64) for w in (EPS, math.nextafter(EPS, 1)))
    step = multi_label_loss(logits, dropped, eps=EPS) - multi_label_loss(logits, counted, eps=EPS)
    assert step.item() == pytest.approx(3.0 * EPS, abs=1e-12)


def losses_of(logits: torch.Tensor) -> list[torch.Tensor]:
    targets = torch.tensor(fdt_targets(np.random.default_rng(1), *logits.shape), dtype=torch.float32)
    labels = targets.argmax(dim=1)
    return [multi_label_loss(logits, targets), cross_entropy(logits, labels), kl_to_target(logits, targets)]


def test_autocast_changes_no_loss_and_half_logits_are_only_cast() -> None:
    half = torch.tensor(np.random.default_rng(2).standard_normal((4, 100)), dtype=torch.bfloat16)
    plain = losses_of(half.float())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        under_autocast = losses_of(half)
    for loss, expected in zip(under_autocast, plain, strict=True):
        assert loss.dtype == torch.float32
        assert loss.item() == expected.item()


@pytest.mark.parametrize(("num_classes", "printed"), [(10, 0.03414), (100, 0.0019278), (1000, 1.3359e-4)])
def test_eps_at_or_above_the_smallest_weight_of_the_paper_is_refused(num_classes: int, printed: float) -> None:
    weights = 1.0 / np.arange(1, num_classes + 1)
    smallest = weights.min() / weights.sum()
    assert smallest == pytest.approx(printed, rel=2e-4)
    for eps in (0.0, smallest * (1 - 1e-12)):
        check_eps(eps, num_classes)
    for eps in (smallest * (1 + 1e-12), 0.1, -1e-9, math.nan):
        with pytest.raises(ValueError, match=rf"expected 0 <= eps < {smallest:.4g}, .* {num_classes} .*lower eps"):
            check_eps(eps, num_classes)


def on_labels(labels: Any, reduction: Any = "mean") -> Callable[[], torch.Tensor]:
    return lambda: cross_entropy(torch.zeros(2, 3), torch.tensor(labels), reduction)


TARGETS = [
    (torch.zeros(2, 3), torch.zeros(3, 2), r"shape of the logits, \(2, 3\), got \(3, 2\)"),
    (torch.zeros(2, 3), torch.zeros(2, 3).half(), r"expected float32 targets, got torch\.float16"),
    (torch.zeros(0, 3), torch.zeros(0, 3), r"logits of shape \[n C\] with n, C >= 1, got \(0, 3\)"),
]


@pytest.mark.parametrize(
    ("wrong", "error", "message"),
    [
        *(
            (partial(loss, *inputs), ValueError, message)
            for loss in (multi_label_loss, kl_to_target)
            for *inputs, message in TARGETS
        ),
        (on_labels([0, 1, 2]), ValueError, r"expected labels i64\[2\]"),
        (on_labels([0.0, 1.0]), ValueError, r"got torch\.float32 of shape"),
        (on_labels([0, 1], "avg"), ValueError, "expected reduction"),
        *((on_labels([0, label]), IndexError, "out of bounds") for label in (-100, -1, 3)),  # none is ignored
    ],
)
def test_targets_and_labels_that_do_not_fit_are_refused(
    wrong: Callable[[], torch.Tensor], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        wrong()


def documented_loss(logits: torch.Tensor, targets: torch.Tensor, w: torch.Tensor) -> torch.Tensor:
    """The line that FDTLoader's docstring shows for class weights."""
    (line,) = re.findall(r"^ *loss = (.*weight=w.*)$", FDTLoader.__doc__, re.MULTILINE)
    return eval(line, {"cross_entropy": F.cross_entropy, "logits": logits, "targets": targets, "w": w})


def test_the_documented_mean_with_class_weights_is_torchs_of_labels_on_one_hot_targets() -> None:
    logits, labels = torch.randn(64, 5), torch.arange(64) % 4
    w = torch.tensor([0.1, 1.0, 5.0, 20.0, 3.0])
    one_hot = F.one_hot(labels, 5).float()
    expected = F.cross_entropy(logits, labels, weight=w)
    torch.testing.assert_close(documented_loss(logits, one_hot, w), expected)
    assert F.cross_entropy(logits, one_hot, weight=w) > 4 * expected, "which is why it is documented"


def test_the_documented_mean_depends_on_ratios_of_class_weights_alone_and_equal_ones_change_nothing() -> None:
    logits, targets = torch.randn(64, 5), torch.rand(64, 5).softmax(1)
    w = torch.tensor([0.1, 1.0, 5.0, 20.0, 3.0])
    torch.testing.assert_close(documented_loss(logits, targets, 100 * w), documented_loss(logits, targets, w))
    torch.testing.assert_close(documented_loss(logits, targets, torch.full((5,), 7.0)), cross_entropy(logits, targets))
