"""A compiled step computes what the plain one does; what does not compile is called as it is."""

import copy

import pytest
import torch

from fdt_pipeline.losses import cross_entropy
from models import build_model
from train.accelerate import FEWEST_STEPS, Compiled, network_of_step
from train.step import TrainStep, make_optimizer

pytestmark = pytest.mark.compile

CPU, GPU = torch.device("cpu"), torch.device("cuda")


def model_with_tn():
    torch.manual_seed(0)
    return build_model("small", 10, tensor_norm="straight-through").to(memory_format=torch.channels_last).train()


def batch():
    generator = torch.Generator().manual_seed(1)
    images = torch.randn(4, 3, 8, 8, generator=generator).to(memory_format=torch.channels_last)
    return images, torch.softmax(torch.randn(4, 10, generator=generator), dim=1)


def losses(model, network):
    optimizer = make_optimizer(model, 0.05, 0.9, 5e-4, CPU)
    step = TrainStep(network, cross_entropy, optimizer, torch.amp.GradScaler("cpu", enabled=False), CPU, graph=False)
    return [float(step(*batch())[0]) for _ in range(4)]


def test_a_compiled_step_trains_the_model_as_the_plain_one_does():
    model = model_with_tn()
    other = copy.deepcopy(model)
    plain, compiled = losses(model, model), losses(other, Compiled(other))
    assert compiled == pytest.approx(plain, abs=1e-4)
    assert compiled[-1] < compiled[0]
    for name, value in model.state_dict().items():  # running statistics too
        torch.testing.assert_close(other.state_dict()[name], value, rtol=1e-3, atol=1e-4)


def test_what_does_not_compile_is_called_as_it_is_with_the_reason(monkeypatch):
    def failing(model):
        def call(images):
            raise RuntimeError("Failed to find C compiler\nand more")

        return call

    monkeypatch.setattr(torch, "compile", failing)
    model, other = model_with_tn(), model_with_tn()
    expected = losses(model, model)
    with pytest.warns(UserWarning, match=r"torch.compile failed here \(RuntimeError: Failed to find C compiler\)"):
        found = losses(other, Compiled(other))
    assert found == expected


def test_long_runs_on_a_gpu_are_compiled_unless_asked_otherwise(monkeypatch):
    monkeypatch.setattr(torch, "compile", lambda model: model)
    model = torch.nn.Identity()

    def chosen(device, num_steps, asked=None):
        return isinstance(network_of_step(model, device, num_steps, asked), Compiled)

    assert chosen(GPU, FEWEST_STEPS)
    assert not chosen(GPU, FEWEST_STEPS - 1)
    assert not chosen(CPU, FEWEST_STEPS)
    assert chosen(CPU, 1, True)
    assert not chosen(GPU, FEWEST_STEPS, False)
