import math
from functools import partial

import pytest
import torch
import torchvision
from torch import nn

from fdt_pipeline.tensor_norm import count_tensor_norm_sites
from models import build_model, resnet, resnet18, small_resnet, wide_resnet


def macs(model, image):
    total = []
    for module in model.modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            module.register_forward_hook(lambda layer, _, out: total.append(out[0].numel() * layer.weight[0].numel()))
    model.eval()(image)
    return sum(total)


@pytest.mark.parametrize(
    ("name", "parameters", "sites"),
    [
        ("resnet18", 11_173_962, 17),
        ("resnet34", 21_282_122, 33),
        ("resnet50", 23_520_842, 49),
        ("resnet152", 58_156_618, 151),
        ("wrn28_10", 36_479_194, 25),
        ("small", 78_042, 7),
        ("small32", 308_650, 7),
        ("small64", 1_227_594, 7),
    ],
)
def test_every_network_has_the_parameters_sites_classes_and_channels_that_it_should(name, parameters, sites):
    with torch.device("meta"):
        assert sum(parameter.numel() for parameter in build_model(name, 10).parameters()) == parameters
        model = build_model(name, 7, in_channels=1, tensor_norm="exact")
        assert model.eval()(torch.empty(2, 1, 32, 32)).shape == (2, 7)
        assert count_tensor_norm_sites(model, torch.empty(2, 1, 32, 32)) == sites


@pytest.mark.parametrize(
    ("name", "stem", "size", "millions"),
    [("resnet34", "cifar", 32, 1159), ("resnet34", "cifar-pool", 32, 291), ("small", "cifar", 28, 2.61)],
)
def test_costs_the_arithmetic_that_the_readme_says(name, stem, size, millions):
    with torch.device("meta"):
        assert macs(build_model(name, 10, stem=stem), torch.empty(1, 3, size, size)) / 1e6 == pytest.approx(
            millions, rel=0.002
        )


def test_the_imagenet_stem_is_torchvisions_network():
    torch.manual_seed(0)
    ours, theirs = resnet18(1000, stem="imagenet").eval(), torchvision.models.resnet18(weights=None).eval()
    theirs.load_state_dict(ours.state_dict())
    x = torch.randn(1, 3, 32, 32)
    assert torch.equal(ours(x), theirs(x))


@pytest.mark.parametrize(
    ("make", "fan_outs"),
    [
        (resnet18, {"conv1.weight": 64 * 9, "layer4.1.conv2.weight": 512 * 9}),
        (small_resnet, {"conv1.weight": 16 * 9, "stage3.conv2.weight": 64 * 9}),
        (partial(wide_resnet, 10, 2), {"3.conv2.weight": 128 * 9}),
    ],
)
def test_initial_weights_are_he_normal_and_the_same_with_normalization_and_without(make, fan_outs):
    states = []
    for tensor_norm in (None, "straight-through"):
        torch.manual_seed(3)
        states.append(make(10, tensor_norm=tensor_norm).state_dict())
    plain, normalized = states
    assert list(plain) == list(normalized)
    assert all(torch.equal(plain[name], normalized[name]) for name in plain)
    for name, fan_out in fan_outs.items():
        assert plain[name].std().item() == pytest.approx(math.sqrt(2 / fan_out), rel=0.08)


def test_the_pool_reads_normalized_maps():
    model = resnet18(10, in_channels=1, stem="cifar-pool", tensor_norm="exact").eval()
    read = []
    model.maxpool.register_forward_pre_hook(lambda _, inputs: read.append(inputs[0]))
    assert model(torch.randn(2, 1, 8, 8)).shape == (2, 10)
    assert read[0].shape == (2, 64, 8, 8)
    assert read[0].mean(1).abs().max() < 1e-6


def test_the_skip_path_of_a_wide_block_that_keeps_its_shape_carries_the_raw_input():
    block = wide_resnet(16, 1, 10, tensor_norm="exact").eval()[2]
    nn.init.zeros_(block.conv2.weight)
    x = torch.randn(2, 16, 8, 8)
    assert torch.equal(block(x), x)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (partial(build_model, "vgg", 10), "unknown model 'vgg', expected one of resnet18, .*, wrn28_10, small"),
        (partial(build_model, "wrn28_10", 10, stem="cifar-pool"), "wrn28_10 has one stem only, got stem 'cifar-pool'"),
        (partial(resnet, 20, 10), r"depth must be one of \[18, 34, 50, 152\], got 20"),
        (partial(resnet, 18, 10, stem="none"), "stem must be one of .*'cifar-pool'.*, got 'none'"),
        (partial(wide_resnet, 20, 1, 10), "depth must be 10, 16, .* got depth 20 and width 1"),
        (partial(wide_resnet, 16, 0, 10), "got depth 16 and width 0"),
        (partial(small_resnet, 10, width=0), "width must be at least 1, got 0"),
    ],
)
def test_networks_that_do_not_exist_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()
