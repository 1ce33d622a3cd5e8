import pytest
import torch

import models
from fdt_pipeline.tensor_norm import count_tensor_norm_sites
from models import build_model

SITES = {"resnet18": 17, "resnet34": 33, "resnet50": 49, "resnet152": 151, "wrn28_10": 25, "small": 7}


@pytest.mark.parametrize("name", SITES)
def test_every_name_builds_a_network_with_its_classes_channels_and_sites(name):
    with torch.device("meta"):
        model = build_model(name, 7, in_channels=1, tensor_norm="exact")
        assert model.eval()(torch.empty(2, 1, 32, 32)).shape == (2, 7)
        assert count_tensor_norm_sites(model, torch.empty(2, 1, 32, 32)) == SITES[name]


def test_an_unknown_name_is_answered_with_the_names():
    with pytest.raises(
        ValueError, match=r"unknown model 'vgg', expected one of resnet18, resnet34, .*, wrn28_10, small"
    ):
        build_model("vgg", 10)


@pytest.mark.parametrize("name", ["wrn28_10", "small"])
def test_a_stem_that_the_network_does_not_have_is_refused(name):
    with pytest.raises(ValueError, match=f"{name} has one stem only, got stem 'cifar-pool'"):
        build_model(name, 10, stem="cifar-pool")


def test_all_that_is_exported_exists():
    assert all(hasattr(models, name) for name in models.__all__)
