import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fdt_pipeline import FDT
from fdt_pipeline.definition.superposition import Pool, draw_plan, superpose_targets
from models import build_model
from tests.train.made_up import assert_equal_weights
from train.controls import (
    PositionalNorm,
    insert_positional_norm,
    mean_target_entropy,
    smoothing_with_entropy,
)
from train.recipes import CONTROLS, make_recipe
from train.setup import make_loader, make_model
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
    target = (1 - smoothing) * torch.eye(num_classes, dtype=torch.float64)[0] + smoothing / num_classes
    assert float(torch.special.entr(target).sum()) == pytest.approx(entropy, abs=1e-6)
    with pytest.raises(ValueError, match=rf"in \[0, log {num_classes}\] nats, got"):
        smoothing_with_entropy(1.01 * math.log(num_classes), num_classes)


@pytest.mark.parametrize(("column", "entropy"), [("label_smoothing", 1.3314), ("smoothing", 0.5003)])
def test_smoothed_labels_are_as_soft_as_asked_for_on_whole_images_each_once_an_epoch(few_shards, column, entropy):
    recipe = make_recipe(f"small_{column}", augment=None, batch_size=30)
    loader = make_loader(recipe, few_shards / "train", torch.device("cpu"), train=True)
    plain = make_loader(replace(recipe, label_smoothing=None), few_shards / "train", torch.device("cpu"), train=True)
    batches, whole = list(loader), list(plain)
    targets = torch.cat([targets for _, targets in batches])
    torch.testing.assert_close(torch.special.entr(targets).sum(1), torch.full((300,), entropy), atol=5e-5, rtol=0)
    pixels = [
        torch.cat([images for images, _ in found]).flatten(1).double().sum(1).sort() for found in (batches, whole)
    ]
    torch.testing.assert_close(pixels[0].values, pixels[1].values)
    classes = torch.cat([targets for _, targets in whole]).argmax(1)
    torch.testing.assert_close(targets.argmax(1)[pixels[0].indices], classes[pixels[1].indices])


@pytest.mark.parametrize("column", ["fdt_clean30", "fdt", "plain", "mixup_cutmix"])
def test_the_last_epochs_are_of_whole_images_where_the_recipe_says_so(column, few_shards):
    recipe = make_recipe(f"small_{column}", epochs=5)
    loader = make_loader(recipe, few_shards / "train", torch.device("cpu"), train=True)
    is_mixed = []
    for epoch in range(5):
        loader.set_epoch(epoch)
        is_mixed.append(any(bool((targets.max(1).values < 1).any()) for _, targets in loader))
    assert is_mixed == [epoch < recipe.mixed_epochs for epoch in range(5)]


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
