"""The passes in torch's operations: piece by piece as at once, and the same after a compiler has fused them."""

import sys

import pytest
import torch
from torch.overrides import TorchFunctionMode

from fdt_pipeline.tensor_norm import eager, relu_tensor_norm

DTYPES = [torch.float64, torch.float32, torch.bfloat16, torch.float16]


def random_map(shape, dtype=torch.float32, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


class Means(TorchFunctionMode):
    """How many samples each mean is taken of."""

    def __init__(self):
        super().__init__()
        self.num_samples = []

    def __torch_function__(self, func, types, args=(), kwargs=None):
        if func is torch.Tensor.mean:
            self.num_samples.append(len(args[0]))
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("exact", [False, True])
def test_pieces_give_the_very_numbers_of_a_map_taken_whole(exact, dtype, memory_format, monkeypatch):
    x, grad = (random_map((7, 16, 5, 6), dtype, seed).to(memory_format=memory_format) for seed in (0, 1))
    with Means() as means:
        whole = eager.forward(x)
    assert means.num_samples == [7]
    expected = eager.backward(grad, *whole, exact)
    monkeypatch.setattr(eager, "PIECE", 3 * x[0].numel() * x.element_size() - 1)
    with Means() as means:
        output, mean = eager.forward(x)
    assert means.num_samples == [2, 2, 2, 1]
    assert torch.equal(output, whole[0])
    assert torch.equal(mean, whole[1])
    assert output.is_contiguous(memory_format=memory_format)
    assert torch.equal(eager.backward(grad, output, mean, exact), expected)


def test_a_sample_larger_than_a_piece_is_a_piece(monkeypatch):
    monkeypatch.setattr(eager, "PIECE", 1)
    x = random_map((3, 4, 2, 2))
    assert torch.equal(eager.forward(x)[0], x.relu() - x.relu().mean(1, keepdim=True))


def test_any_other_device_takes_a_map_whole(monkeypatch):
    monkeypatch.setattr(eager, "PIECE", 1)
    with Means() as means:
        eager.forward(torch.empty(7, 16, 5, 6, device="meta"))
    assert means.num_samples == [7]


@pytest.mark.compile
@pytest.mark.skipif(
    sys.version_info >= (3, 12) and tuple(map(int, torch.__version__.split(".")[:2])) < (2, 4),
    reason="torch.compile came to Python 3.12 with torch 2.4",
)
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("gradient", ["straight-through", "exact"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_inductor_fuses_it_with_its_neighbours_and_no_positive_activation_loses_its_gradient(gradient, dtype):
    torch._dynamo.reset()
    powers = (2.0 ** -torch.arange(96.0)).reshape(2, 16, 3, 1).expand(2, 16, 3, 4)  # most are lost beside the largest
    x = torch.cat([random_map((2, 16, 3, 4), dtype), powers.to(dtype)]).requires_grad_()

    def scaled(t):
        return relu_tensor_norm(t * 2, gradient) * 3

    compiled = torch.compile(scaled, backend="inductor", fullgraph=True)
    got, expected = compiled(x), scaled(x)
    rounding = 4 * torch.finfo(dtype).eps
    torch.testing.assert_close(got, expected, rtol=0, atol=rounding * float(expected.abs().max()))
    grad = random_map(got.shape, dtype, seed=5).sign()  # centred, none is near zero
    (ours,), (theirs,) = (torch.autograd.grad(y, x, grad) for y in (got, expected))
    torch.testing.assert_close(ours, theirs, rtol=0, atol=rounding * float(theirs.abs().max()))
    assert torch.equal(ours != 0, x > 0)
