"""Attacks that share a batch walk the paths that each of them walks alone."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from models import build_model
from train.attack import PGD, PixelBounds, pgd_path, pgd_paths
from train.robustness import EPS_VALUES, evaluate_robustness

BOUNDS = PixelBounds.from_normalization((122.0, 117.0, 104.0), 256.0)
ATTACKS = [PGD(eps, steps=8) for eps in EPS_VALUES]

pytestmark = pytest.mark.usefixtures("one_thread")


def small_net() -> nn.Module:
    """With TN, batch-norm statistics of its own, and no class that is always answered."""
    torch.manual_seed(0)
    model = build_model("small", 10, tensor_norm="straight-through")
    with torch.no_grad():
        for _ in range(20):
            model.train()(images(64, seed=1))
    return model.eval()


def images(num: int, seed: int = 0) -> Tensor:
    unit = torch.rand(num, 3, 16, 16, generator=torch.Generator().manual_seed(seed))
    return BOUNDS.clip(BOUNDS.low + unit * (BOUNDS.high - BOUNDS.low))


def labelled(model: nn.Module, num: int) -> tuple[Tensor, Tensor]:
    x = images(num)
    with torch.no_grad():
        return x, model(x).argmax(1)


@pytest.mark.soak
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize(
    "attacks",
    [
        ATTACKS,
        [PGD(0.1, 8, random_start=True, seed=seed) for seed in (3, 4)],
        [PGD(0.1, 8, rel_step=share, clip_pixels=False) for share in (0.03, 0.3)],
    ],
)
def test_paths_are_those_of_the_attacks_alone_to_the_bit(
    attacks: list[PGD], memory_format: torch.memory_format
) -> None:
    model = small_net()
    x, labels = labelled(model, 8)
    x = x.to(memory_format=memory_format)
    together = pgd_paths(model, x, labels, attacks, BOUNDS)
    for path, attack in zip(together, attacks, strict=True):
        alone = pgd_path(model, x, labels, attack, BOUNDS)
        assert torch.equal(path.adversarial, alone.adversarial)
        assert torch.equal(path.correct, alone.correct)
        assert path.adversarial.is_contiguous(memory_format=memory_format)
    assert len({path.adversarial.sum().item() for path in together}) == len(attacks)


def test_counts_are_those_of_separate_attacks() -> None:
    model = small_net()
    x, labels = labelled(model, 32)
    batches = [(x[:16], labels[:16]), (x[16:], labels[16:])]
    together, separately = (
        evaluate_robustness(model, batches, BOUNDS, steps=8, together=together) for together in (True, False)
    )
    assert together == separately
    assert len({radius.mean for radius in together.radii}) > 2, "the radii must differ for this test to see anything"


def test_radii_that_share_a_batch_share_the_passes() -> None:
    model, passes = small_net(), []
    model.register_forward_hook(lambda module, inputs, logits: passes.append(len(logits)))
    told: list[int] = []
    x, labels = images(4), torch.arange(4)
    evaluate_robustness(model, [(x, labels)], BOUNDS, steps=3, together=True, progress=told.append)
    assert passes == [16] * 4 * 2  # 3 steps and the last answer, for 4 radii at once, along 2 gradients
    assert told == [4 * 4 * 3] * 2
    passes.clear()
    evaluate_robustness(model, [(x, labels)], BOUNDS, steps=3)  # on a CPU each radius has a batch of its own
    assert passes == [4] * 4 * 4 * 2


@pytest.mark.parametrize(
    "attacks",
    [
        [],
        [PGD(0.1, steps=2), PGD(0.1, steps=3)],
        [PGD(0.1), PGD(0.1, clip_pixels=False)],
        [PGD(0.1), PGD(0.1, random_start=True)],
    ],
)
def test_attacks_that_cannot_share_a_batch_are_refused(attacks: list[PGD]) -> None:
    with pytest.raises(ValueError, match="expected attacks that differ in eps, rel_step and seed alone"):
        pgd_paths(nn.Flatten(), images(1), torch.tensor([0]), attacks, BOUNDS)
