import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fdt_pipeline import FDT
from fdt_pipeline.definition.superposition import Pool, draw_plan, superpose_targets
from models import build_model
from tests.train.made_up import assert_equal_weights
from train.controls import (
    PositionalNorm,
    insert_positional_norm,
    make_batch_change,
    mean_target_entropy,
    mix_pairs,
    smooth_targets,
    smoothing_with_entropy,
)
from train.recipes import CONTROLS, make_recipe
from train.setup import make_model
from train.trainer import fit

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.mark.parametrize(("num_classes", "entropy"), [(10, 1.3314), (100, 2.9797)])
def test_fdts_targets_have_the_papers_entropy(num_classes, entropy):
    assert mean_target_entropy(FDT(), num_classes) == pytest.approx(entropy, abs=5e-5)


@pytest.mark.soak
def test_the_entropy_is_that_of_drawn_targets():
    pool, fdt = Pool(np.arange(10), 10), FDT(probability=0.7)
    drawn = [superpose_targets(draw_plan(0, 0, i, pool, fdt), 10).astype(np.float64) for i in range(4000)]
    entropies = [-(t[t > 0] * np.log(t[t > 0])).sum() for t in drawn]
    assert np.mean(entropies) == pytest.approx(mean_target_entropy(fdt, 10), abs=4 * np.std(entropies) / 4000**0.5)


@given(st.integers(2, 200), st.floats(0, 1))
def test_smoothing_gives_the_entropy_that_is_asked_for(num_classes, share):
    entropy = share * math.log(num_classes)
    smoothing = smoothing_with_entropy(entropy, num_classes)
    target = smooth_targets(torch.eye(num_classes, dtype=torch.float64)[:1], smoothing)
    assert float(torch.special.entr(target).sum()) == pytest.approx(entropy, abs=1e-6)
    with pytest.raises(ValueError, match=rf"in \[0, log {num_classes}\] nats, got"):
        smoothing_with_entropy(1.01 * math.log(num_classes), num_classes)


def test_label_smoothing_is_as_soft_as_fdt_on_clean_images():
    recipe = make_recipe("small_label_smoothing")
    images, targets = torch.rand(6, 3, 4, 4), torch.eye(10)[[0, 0, 1, 2, 9, 9]]
    same, soft = make_batch_change(recipe, 10)(images, targets, 0)
    assert same is images
    assert recipe.fdt is None
    torch.testing.assert_close(torch.special.entr(soft).sum(1), torch.full((6,), 1.3314), atol=5e-5, rtol=0)
    torch.testing.assert_close(soft.argmax(1), targets.argmax(1))


@settings(max_examples=50)
@given(st.lists(st.integers(0, 3), min_size=1, max_size=12), st.integers(0, 2**31), st.floats(0.2, 4))
def test_mixup_mixes_targets_as_it_mixes_images_where_classes_repeat(labels, seed, alpha):
    images = torch.tensor(labels, dtype=torch.float32)[:, None, None, None].expand(-1, 1, 2, 2)  # a pixel is its class
    mixed, targets = mix_pairs(images, torch.eye(4)[labels], alpha, np.random.default_rng(seed))
    torch.testing.assert_close(mixed[:, 0, 0, 0], (targets * torch.arange(4.0)).sum(1))
    torch.testing.assert_close(targets.sum(1), torch.ones(len(labels)))


def test_mixups_weights_have_the_law_of_beta():
    images, targets = torch.tensor([1.0, 0.0]).view(2, 1, 1, 1), torch.ones(2, 1)
    drawn = [float(mix_pairs(images, targets, 0.5, np.random.default_rng([7, step]))[0][0]) for step in range(3000)]
    assert np.mean([0 < value < 1 for value in drawn]) == pytest.approx(0.5, abs=0.05)  # else paired with itself
    inside = [value for value in drawn if value < 1]
    assert np.mean(inside) == pytest.approx(0.5, abs=0.04)
    assert np.var(inside) == pytest.approx(0.125, abs=0.01)  # 1 / (4 (2 a + 1))


def test_mixup_draws_from_seed_and_step_alone_and_their_streams_do_not_meet():
    images, targets = torch.rand(20, 1, 2, 2), torch.eye(20)
    draws = {}
    for seed in range(3):
        change = make_batch_change(make_recipe("small_mixup", seed=seed), 20)
        for step in range(3):
            draws[seed, step] = change(images, targets, step)[1]
            torch.testing.assert_close(draws[seed, step], change(images, targets, step)[1], rtol=0, atol=0)
    values = list(draws.values())
    assert all(not torch.equal(a, b) for i, a in enumerate(values) for b in values[:i])


@pytest.mark.soak
@pytest.mark.parametrize("control", CONTROLS)
def test_every_control_trains(few_shards, tmp_path, control):
    recipe = make_recipe(f"small_{control}", epochs=1)
    results = fit(recipe, few_shards, tmp_path / "run", device="cpu")
    assert results["steps"] == 3
    assert math.isfinite(results["final"]["accuracy"])


def test_positional_norm_is_layer_norm_over_the_channels_with_an_unbiased_variance():
    x = torch.randn(3, 8, 5, 4, dtype=torch.float64)
    biased = torch.nn.functional.layer_norm(x.permute(0, 2, 3, 1), (8,), eps=1e-5 * 7 / 8).permute(0, 3, 1, 2)
    torch.testing.assert_close(PositionalNorm()(x), biased * (7 / 8) ** 0.5)
    assert torch.autograd.gradcheck(PositionalNorm(), (x[:1, :4, :2, :2].clone().requires_grad_(),))
    assert not PositionalNorm()(torch.zeros(1, 4, 2, 2)).any(), "a pixel without activation stays zero"
    assert PositionalNorm()(x.bfloat16()).dtype == torch.bfloat16
    with pytest.raises(ValueError, match="2 or more channels"):
        PositionalNorm()(torch.rand(2, 1, 3, 3))


@pytest.mark.parametrize(("name", "sites"), [("small", 7), ("resnet18", 17)])
def test_positional_norm_follows_every_relu_and_changes_no_weight(name, sites):
    torch.manual_seed(0)
    plain = build_model(name, 10)
    torch.manual_seed(0)
    model = make_model(make_recipe(f"{name}_pono").to_dict(), 10, 3, torch.device("cpu")).eval()
    calls = []
    for module in model.modules():
        if isinstance(module, PositionalNorm):
            module.register_forward_hook(lambda *_: calls.append(1))
    model(torch.rand(1, 3, 32, 32))
    assert len(calls) == sites
    assert_equal_weights(model.state_dict(), plain.state_dict())
    with pytest.raises(ValueError, match=r"found no nn\.ReLU"):
        insert_positional_norm(build_model(name, 10, tensor_norm="exact"))
