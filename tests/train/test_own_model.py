"""`fit --model MODULE:FUNCTION`: a network of the user's own is trained, resumed, attacked and exported as ours are."""

import sys

import pytest
import torch

from fdt_pipeline.tensor_norm import tensor_norm_layers
from tests.peers import needs
from train.files import CONFIG, read_json
from train.saved_run import open_run

pytestmark = pytest.mark.usefixtures("one_thread")

NETWORKS = """
import torch
from torch import nn

def tiny(num_classes, in_channels):
    body = [nn.Conv2d(in_channels, 4, 3, stride=4), nn.BatchNorm2d(4), nn.ReLU(inplace=True)]
    return nn.Sequential(*body, nn.Conv2d(4, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 5 * 5, num_classes))

def many_logits(num_classes, in_channels):
    return nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(in_channels, num_classes + 1))

def other_sizes(num_classes, in_channels):
    return nn.Sequential(nn.Flatten(), nn.Linear(7, num_classes))

def without_channels(num_classes):
    return nn.Linear(1, num_classes)

def no_module(num_classes, in_channels):
    return 3
"""


@pytest.fixture(autouse=True)
def networks(tmp_path, monkeypatch):
    """The module my_networks, as in a folder on PYTHONPATH."""
    (tmp_path / "my_networks.py").write_text(NETWORKS)
    monkeypatch.syspath_prepend(tmp_path)
    yield
    sys.modules.pop("my_networks", None)


def fit(shards, out, *options, model="tiny", recipe="tn_fdt"):
    model = f"my_networks:{model}" if ":" not in model else model
    return ["fit", "--model", model, "--recipe", recipe, "--data", shards, "--out", out, "--device", "cpu", *options]


def test_it_is_trained_with_tensor_norm_resumed_and_attacked(few_shards, tmp_path, shown, refused):
    out = tmp_path / "run"
    command = (few_shards, out, "--epochs", 1)
    assert "tiny_tn_fdt: 3 steps" in shown(*fit(*command))
    run = open_run(out, torch.device("cpu"))
    assert len(tensor_norm_layers(run.model)) == 2
    assert run.config["recipe"]["loss"] == "multi-label"
    shown(*fit(*command, "--resume"))
    assert open_run(out, torch.device("cpu")).weights == run.weights
    assert "| tiny_tn_fdt |" in shown("robustness", out, "--steps", 1, "--images", 5)
    error = refused(*fit(*command, "--resume", recipe="fdt"))
    assert "tensor_norm was 'straight-through' and is now None" in error


@pytest.mark.peer
def test_it_is_exported_at_the_size_of_its_images(few_shards, tmp_path, shown):
    needs("onnxruntime")
    shown(*fit(few_shards, tmp_path / "run", "--max-steps", 2))
    shown("export", tmp_path / "run", "--out", tmp_path / "exported")
    config = read_json(tmp_path / "exported" / CONFIG)
    assert config["input"]["size"] == [28, 28]
    assert config["recipe"]["model"] == "my_networks:tiny"
    assert "to logits f32[n 10]; n is open" in (tmp_path / "exported" / "README.md").read_text()


@pytest.mark.parametrize(
    ("model", "recipe", "message"),
    [
        ("no_such_module:f", "plain", "no_such_module:f cannot be imported (No module named 'no_such_module')"),
        ("my_networks:vgg", "plain", "cannot be imported (module 'my_networks' has no attribute 'vgg')"),
        ("without_channels", "plain", "without_channels(num_classes=10, in_channels=3): got an unexpected"),
        ("no_module", "plain", "returns an nn.Module, got int"),
        ("many_logits", "plain", "expected logits f32[2 10] of the model for two images, got f32[2, 11]"),
        ("other_sizes", "plain", "the model cannot take images f32[n 3 28 28]"),
        ("my_networks:", "plain", "expected --model MODULE:FUNCTION, got 'my_networks:'"),
        ("tiny", "small_tn_fdt", "with --model, --recipe is one of plain, ov, fdt, tn, tn_fdt, smoothing, mixup"),
        ("tiny", "plain --stem imagenet", "stems are of the ResNets here, got stem 'imagenet' with my_networks:tiny"),
    ],
)
def test_a_model_or_recipe_that_does_not_fit_exits_2_and_says_why(
    few_shards, tmp_path, model, recipe, message, refused
):
    recipe, *options = recipe.split()
    assert message in refused(*fit(few_shards, tmp_path / "run", *options, model=model, recipe=recipe))
    assert not (tmp_path / "run").exists()
