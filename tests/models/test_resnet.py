import math

import pytest
import torch
import torchvision
from torch import nn

from models.resnet import resnet, resnet18, resnet34, resnet50, resnet152


def num_parameters(model):
    return sum(parameter.numel() for parameter in model.parameters())


def giga_macs(model, image):
    total = []

    def count(layer, _, output):
        total.append(output[0].numel() * layer.weight[0].numel())

    for module in model.modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            module.register_forward_hook(count)
    model.eval()(image)
    return sum(total) / 1e9


def test_the_imagenet_stem_is_torchvisions_network():
    torch.manual_seed(0)
    ours, theirs = resnet18(1000, stem="imagenet").eval(), torchvision.models.resnet18(weights=None).eval()
    theirs.load_state_dict(ours.state_dict())
    x = torch.randn(1, 3, 32, 32)
    assert torch.equal(ours(x), theirs(x))


@pytest.mark.parametrize(
    ("make", "classes", "stem", "expected"),
    [
        (resnet18, 10, "cifar", 11_173_962),
        (resnet34, 10, "cifar", 21_282_122),
        (resnet34, 1000, "imagenet", 21_797_672),
        (resnet50, 1000, "imagenet", 25_557_032),
        (resnet152, 1000, "imagenet", 60_192_808),
    ],
)
def test_has_the_published_number_of_parameters(make, classes, stem, expected):
    with torch.device("meta"):
        assert num_parameters(make(classes, stem=stem)) == expected


@pytest.mark.parametrize(("stem", "expected"), [("cifar", 1.159), ("cifar-pool", 0.291)])
def test_resnet34_costs_the_published_arithmetic_at_32_pixels(stem, expected):
    with torch.device("meta"):
        assert round(giga_macs(resnet34(10, stem=stem), torch.empty(1, 3, 32, 32)), 3) == expected


def test_initial_weights_are_he_normal_follow_the_global_generator_and_do_not_depend_on_normalization():
    torch.manual_seed(3)
    plain = resnet18(10).state_dict()
    torch.manual_seed(3)
    normalized = resnet18(10, tensor_norm="straight-through").state_dict()
    assert list(plain) == list(normalized)
    assert all(torch.equal(plain[name], normalized[name]) for name in plain)
    for name, fan_out in (("conv1.weight", 64 * 9), ("layer4.1.conv2.weight", 512 * 9)):
        assert plain[name].std().item() == pytest.approx(math.sqrt(2 / fan_out), rel=0.05)


def test_the_pool_reads_normalized_maps():
    model = resnet18(10, in_channels=1, stem="cifar-pool", tensor_norm="exact").eval()
    read = []
    model.maxpool.register_forward_pre_hook(lambda _, inputs: read.append(inputs[0]))
    assert model(torch.randn(2, 1, 8, 8)).shape == (2, 10)
    assert read[0].shape == (2, 64, 8, 8)
    assert read[0].mean(1).abs().max() < 1e-6


def test_an_unknown_depth_or_stem_is_refused():
    with pytest.raises(ValueError, match=r"depth must be one of \[18, 34, 50, 152\], got 20"):
        resnet(20, 10)
    with pytest.raises(ValueError, match=r"stem must be one of .*'cifar-pool'.*, got 'none'"):
        resnet(18, 10, stem="none")
