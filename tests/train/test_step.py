"""A step is the textbook's one on a CPU; its CUDA graph is tested with a recording that replays on a CPU."""

import copy
from contextlib import nullcontext
from functools import partial

import pytest
import torch
from torch import nn

from fdt_pipeline.losses import cross_entropy, kl_to_target
from models import build_model
from tests.train.made_up import assert_equal_weights
from train.accelerate import FEWEST_STEPS, Compiled, GraphedPass, network_of_step
from train.step import TrainStep, load_optimizer, make_optimizer, make_scaler

CPU = torch.device("cpu")

pytestmark = pytest.mark.usefixtures("one_thread")


def tiny_model():
    torch.manual_seed(0)
    return build_model("small", 10, tensor_norm="straight-through")


def batches(num, size=4):
    generator = torch.Generator().manual_seed(1)
    for _ in range(num):
        images = torch.randn(size, 3, 8, 8, generator=generator).to(memory_format=torch.channels_last)
        yield images, torch.softmax(torch.randn(size, 10, generator=generator), dim=1)


def train_step(model, graph=False):
    optimizer = make_optimizer(model, 0.1, 0.9, 5e-4, CPU)
    return TrainStep(model, cross_entropy, optimizer, torch.amp.GradScaler("cpu", enabled=False), CPU, graph)


def test_a_step_is_forward_backward_and_sgd_of_the_textbook():
    model = tiny_model()
    reference = copy.deepcopy(model)
    step = train_step(model)
    sgd = torch.optim.SGD(reference.parameters(), 0.1, momentum=0.9, weight_decay=5e-4)
    for images, targets in batches(3):
        loss, kl = step(images, targets)
        logits = reference(images)
        expected = cross_entropy(logits, targets)
        sgd.zero_grad()
        expected.backward()
        sgd.step()
        assert torch.equal(loss, expected.detach())
        assert torch.equal(kl, kl_to_target(logits.detach(), targets))
    assert_equal_weights(model.state_dict(), reference.state_dict())


@pytest.mark.parametrize(("mixed", "dtype"), [(False, torch.float32), (True, torch.bfloat16)])
def test_mixed_precision_on_a_cpu_is_bfloat16_and_only_where_it_is_asked_for(mixed, dtype):
    model, seen = tiny_model(), []
    model.fc.register_forward_hook(lambda module, inputs, logits: seen.append(logits.dtype))
    optimizer, scaler = make_optimizer(model, 0.1, 0.9, 5e-4, CPU), make_scaler(CPU)
    loss, _ = TrainStep(model, cross_entropy, optimizer, scaler, CPU, False, mixed)(*next(batches(1)))
    assert seen == [dtype]
    assert loss.dtype == model.fc.weight.dtype == model.fc.weight.grad.dtype == torch.float32


class RecordOnCpu:
    """What a CUDA graph does: recording leaves no trace in the model, a replay writes where the recording did."""

    def __init__(self, model):
        self.model, self.recordings, self.replays = model, 0, 0

    def __call__(self, function):
        self.recordings += 1
        buffers = [buffer.clone() for buffer in self.model.buffers()]
        result = function()
        for buffer, before in zip(self.model.buffers(), buffers, strict=True):
            buffer.copy_(before)
        gradients = [parameter.grad for parameter in self.model.parameters()]
        result.fill_(torch.nan)
        for gradient in gradients:
            gradient.fill_(torch.nan)

        def replay():
            self.replays += 1
            before = [parameter.grad for parameter in self.model.parameters()]
            result.copy_(function())
            for parameter, gradient, own in zip(self.model.parameters(), gradients, before, strict=True):
                gradient.copy_(parameter.grad)
                parameter.grad = own

        return result, replay


@pytest.fixture
def graphed(monkeypatch):
    """-> (model, record) -> its step, which `record` records."""

    def make(model, record):
        monkeypatch.setattr("train.step.GraphedPass", partial(GraphedPass, record=record))
        return train_step(model, graph=True)

    return make


def test_a_recorded_pass_trains_as_the_step_itself_does_and_a_batch_of_another_shape_runs_as_it_is(graphed):
    ours, theirs = tiny_model(), tiny_model()
    record = RecordOnCpu(ours)
    step, reference = graphed(ours, record), train_step(theirs)
    figures = [(step(*batch), reference(*batch)) for batch in [*batches(8), *batches(2, size=6), *batches(2)]]
    for got, expected in figures:  # looked at late: no replay may have overwritten them
        assert torch.equal(torch.stack(got), torch.stack(expected))
    assert_equal_weights(ours.state_dict(), theirs.state_dict())
    assert (record.recordings, record.replays) == (1, 5 + 2)


def test_a_recording_that_fails_is_told_once_and_training_goes_on(graphed):
    ours, theirs = tiny_model(), tiny_model()

    def fails(function):
        raise RuntimeError("operation not permitted when stream is capturing")

    step, reference = graphed(ours, fails), train_step(theirs)
    told = pytest.warns(UserWarning, match="cannot be recorded .*not permitted.*kernel by kernel")
    for i, batch in enumerate(batches(6)):
        with told if i == 3 else nullcontext():
            step(*batch)
        reference(*batch)
    assert_equal_weights(ours.state_dict(), theirs.state_dict())


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_cuda_graph_trains_as_the_step_itself_does():
    device, steps = torch.device("cuda"), []
    for graph in (True, False):
        model = tiny_model().to(device).to(memory_format=torch.channels_last)
        optimizer = make_optimizer(model, 0.1, 0.9, 5e-4, device)
        scaler = torch.amp.GradScaler("cuda", enabled=False)
        steps.append(TrainStep(model, cross_entropy, optimizer, scaler, device, graph))
    for images, targets in batches(8, size=16):
        figures = [torch.stack(step(images.to(device), targets.to(device))) for step in steps]
        torch.testing.assert_close(*figures, rtol=0.02, atol=0.02)
    for ours, theirs in zip(*(step.network.parameters() for step in steps), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0.05, atol=0.01)


def test_a_loaded_state_does_not_bring_the_kernels_of_another_machine():
    on_gpu = make_optimizer(nn.Linear(2, 2), 0.025, 0.9, 5e-4, torch.device("cuda"))
    optimizer = make_optimizer(nn.Linear(2, 2), 0.1, 0.9, 5e-4, CPU)
    load_optimizer(optimizer, on_gpu.state_dict())
    assert (optimizer.param_groups[0]["fused"], optimizer.param_groups[0]["lr"]) == (None, 0.025)


def losses(model, network):
    """Of four steps with one batch, which `network` is called in, in place of the model."""
    step = train_step(model)
    step.network = network
    (batch,) = batches(1)
    return [float(step(*batch)[0]) for _ in range(4)]


@pytest.mark.compile
def test_a_compiled_step_trains_the_model_as_the_plain_one_does():
    model = tiny_model()
    other = copy.deepcopy(model)
    plain, compiled = losses(model, model), losses(other, Compiled(other))
    assert compiled == pytest.approx(plain, abs=1e-4)
    assert compiled[-1] < compiled[0]
    states = dict(other.state_dict()), dict(model.state_dict())  # running statistics too
    torch.testing.assert_close(*states, rtol=1e-3, atol=1e-4)


def test_what_does_not_compile_is_called_as_it_is_with_the_reason(monkeypatch):
    def failing(images):
        raise RuntimeError("Failed to find C compiler\nand more")

    monkeypatch.setattr(torch, "compile", lambda model: failing)
    model, other = tiny_model(), tiny_model()
    expected = losses(model, model)
    with pytest.warns(UserWarning, match=r"torch.compile failed here \(RuntimeError: Failed to find C compiler\)"):
        found = losses(other, Compiled(other))
    assert found == expected


@pytest.mark.parametrize(
    ("device", "num_steps", "asked", "compiled"),
    [
        ("cuda", FEWEST_STEPS, None, True),
        ("cuda", FEWEST_STEPS - 1, None, False),
        ("cuda", FEWEST_STEPS, False, False),
        ("cpu", FEWEST_STEPS, None, False),
        ("cpu", 1, True, True),
    ],
)
def test_long_runs_on_a_gpu_are_compiled_unless_asked_otherwise(device, num_steps, asked, compiled, monkeypatch):
    monkeypatch.setattr(torch, "compile", lambda model: model)
    network = network_of_step(nn.Identity(), torch.device(device), num_steps, asked)
    assert isinstance(network, Compiled) == compiled
