"""Tensor normalization in timm's families: what is converted, what is named as left, what is refused."""

import re

import pytest
import torch
from torch import nn
from torch.overrides import TorchFunctionMode

from fdt_pipeline.tensor_norm import count_tensor_norm_sites, insert_tensor_norm, tensor_norm_layers
from tests.peers import peer
from tests.tensor_norm.test_insert import RELUS

timm = peer("timm")
pytestmark = pytest.mark.peer


class CountReLUs(TorchFunctionMode):
    """Independent of modules and of torch.fx: counts each ReLU when it is called."""

    calls = 0

    def __torch_function__(self, func, types, args=(), kwargs=None):
        self.calls += func in RELUS
        return func(*args, **(kwargs or {}))


def build(name, device="meta", **options):
    """(the network, one input), without weights and arithmetic on the meta device."""
    with torch.device(device):
        model = timm.create_model(name, pretrained=False, **options).eval()
        return model, torch.zeros(1, *model.default_cfg["input_size"])


def relu_calls(model, x):
    with torch.no_grad(), CountReLUs() as count:
        model.eval()(x)
    return count.calls


# Squeeze-excite, split attention, several branches, forwards that torch.fx cannot trace, functional ReLUs (densenet).
ALL_RELU = [
    *("regnety_002", "repvgg_a0", "ese_vovnet19b_dw", "hrnet_w18_small", "selecsls42", "resnet18", "seresnet18"),
    *("densenet121", "dla34", "dpn68", "hgnet_tiny", "ghostnet_050", "repghostnet_050", "efficientvit_m0"),
    *("xception41", "res2net50_26w_4s", "resnest14d", "resnetv2_50", "nf_resnet26", "convmixer_768_32", "skresnet18"),
    *("vgg11_bn", "legacy_seresnet18", "mobileone_s0", "halonet26t", "gernet_s"),
]


@pytest.mark.parametrize("name", ALL_RELU)
def test_every_relu_is_converted_and_nothing_is_warned_of(name):
    model, x = build(name)
    calls = relu_calls(model, x)
    model = insert_tensor_norm(model)
    assert relu_calls(model, x) == 0
    assert count_tensor_norm_sites(model, x) == calls > 0


NO_RELU = ["convnext_atto", "mobilenetv2_050", "efficientnet_b0", "cspresnet50", "caformer_s18", "vit_tiny_patch16_224"]
PART = {
    "mobilenetv3_small_050": ["Hardswish"],
    "lcnet_050": ["Hardswish"],
    "efficientvit_b0": ["Hardswish"],
    "efficientformer_l1": ["GELU"],
    "fastvit_t8": ["GELU"],
    "repvit_m0_9": ["GELU"],
    "mixnet_s": ["SiLU"],
    "nf_regnet_b0": ["SiLU"],
    "rexnet_100": ["SiLU", "ReLU6"],
}


@pytest.mark.parametrize("name", PART)
def test_other_activations_beside_relu_are_named(name):
    model, x = build(name)
    with pytest.warns(UserWarning, match="a part of .* gets tensor normalization") as caught:
        model = insert_tensor_norm(model)
    (warning,) = caught
    _, left = str(warning.message).split("Left as they are: ")
    assert re.findall(r"([\w()]+) in \d+ module", left) == PART[name]
    assert relu_calls(model, x) == 0


@pytest.mark.parametrize("name", NO_RELU)
def test_a_network_without_relu_is_refused_and_nothing_else_is_said(name):
    with pytest.raises(ValueError, match=r"found no nn.ReLU and no functional ReLU"):
        insert_tensor_norm(build(name)[0])


@pytest.mark.parametrize(
    "name", ["vit_tiny_patch16_224", "deit_tiny_patch16_224", "mixer_s32_224", "convnext_tiny", "cait_xxs24_224"]
)
def test_token_models_and_channels_last_are_normalized_over_their_last_dimension(name):
    model, x = build(name, "cpu", act_layer=nn.ReLU)
    model = insert_tensor_norm(model)
    means = []
    for layer in tensor_norm_layers(model):
        layer.register_forward_hook(lambda _, inputs, output: means.append(output.mean(-1).abs().max().item()))
    with torch.no_grad():
        model(x + torch.linspace(-1, 1, x.shape[-1]))
    assert len(means) >= 12
    assert max(means) < 1e-5
