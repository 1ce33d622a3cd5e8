import sys

import pytest
import torch
from torch import nn
from torch.autograd.graph import saved_tensors_hooks

from fdt_pipeline.tensor_norm import relu_tensor_norm

GRADIENTS = ["straight-through", "exact"]
DTYPES = [torch.float64, torch.float32, torch.bfloat16, torch.float16]


def eager(x, gradient):
    activation = torch.relu(x)
    mean = activation.mean(1, keepdim=True, dtype=torch.promote_types(x.dtype, torch.float32)).to(x.dtype)
    return activation - (mean if gradient == "exact" else mean.detach())


def ordered_bits(x):
    """Number of the float in the order of its dtype, both zeros being 0: neighbours differ by one."""
    sizes = {2: torch.int16, 4: torch.int32, 8: torch.int64}
    bits = x.contiguous().view(sizes[x.element_size()]).long()
    lowest = torch.iinfo(sizes[x.element_size()]).min
    return torch.where(bits < 0, lowest - bits, bits)


def hard_map(dtype):
    """Per pixel one large value, then positives down to the least number, zeros of both signs and negatives."""
    tiny = torch.finfo(dtype).tiny
    columns = [1.0, 3.0, 0.1, 1e-30, tiny, 0.0, -0.0, -1e-30, -2.0]
    columns += [2.0**-power for power in range(4, 60, 2)]
    rows = torch.tensor(columns, dtype=torch.float64).repeat(6, 1)
    rows *= torch.tensor([[1.0], [0.37], [1e-3], [1e-5], [1.7], [0.0]])
    return rows.to(dtype).reshape(6, -1, 1, 1)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("gradient", GRADIENTS)
def test_every_positive_activation_keeps_its_gradient_however_small(dtype, gradient):
    x = hard_map(dtype).requires_grad_()
    y = relu_tensor_norm(x, gradient)
    g = torch.linspace(-1, 2, y.numel(), dtype=torch.float64).reshape(y.shape).to(dtype)
    (got,) = torch.autograd.grad(y, x, g)
    centred = g if gradient == "straight-through" else g - g.float().mean(1, keepdim=True).to(dtype)
    if dtype == torch.float64 and gradient == "exact":
        centred = g - g.mean(1, keepdim=True)
    assert torch.equal(got, centred.masked_fill(x <= 0, 0))


@pytest.mark.parametrize("dtype", DTYPES)
def test_differs_from_eager_only_by_one_number_where_rounding_would_hide_a_positive_value(dtype):
    x = torch.cat([hard_map(dtype), torch.randn(500, 37, 1, 1, generator=torch.Generator().manual_seed(0)).to(dtype)])
    expected, got = eager(x, "exact"), relu_tensor_norm(x)
    mean = x.relu() - expected
    hidden = (x > 0) & (expected == expected.amin(1, keepdim=True)) & (x.amin(1, keepdim=True) <= 0)
    assert mean.dtype == got.dtype == dtype
    assert hidden.any()
    assert torch.equal(ordered_bits(got) - ordered_bits(expected), hidden.long())


@pytest.mark.parametrize("gradient", GRADIENTS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_forward_and_backward_equal_autograd_of_the_eager_formula(gradient, dtype, memory_format):
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(4, 16, 6, 5, generator=generator).to(dtype).to(memory_format=memory_format)
    g = torch.randn(4, 16, 6, 5, generator=generator).to(dtype)
    ours, theirs = x.clone().requires_grad_(), x.clone().requires_grad_()
    a, b = relu_tensor_norm(ours, gradient), eager(theirs, gradient)
    tolerance = {"rtol": 0, "atol": 4 * torch.finfo(dtype).eps}
    torch.testing.assert_close(a, b, **tolerance)
    assert a.is_contiguous(memory_format=memory_format)
    a.backward(g)
    b.backward(g)
    torch.testing.assert_close(ours.grad, theirs.grad, **tolerance)


@pytest.mark.parametrize("shape", [(3, 4), (2, 3, 5), (2, 1, 3, 3), (1, 3, 2, 2, 2), (0, 3, 4, 4)])
def test_the_exact_gradient_is_the_derivative_in_any_number_of_dimensions(shape):
    x = torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    x = (x + x.sign() * 0.01).requires_grad_()
    assert torch.autograd.gradcheck(lambda t: relu_tensor_norm(t, "exact"), x)


def test_a_pixel_without_activation_is_zero_and_has_no_gradient():
    x = torch.tensor([[-1.0, -0.0, 0.0], [-1.0, 2.0, 0.0]], requires_grad=True)
    y = relu_tensor_norm(x)
    y.backward(torch.ones_like(y))
    assert y[0].tolist() == [0, 0, 0]
    assert x.grad.tolist() == [[0, 0, 0], [0, 1, 0]]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_a_mean_that_underflows_to_zero_leaves_value_and_gradient(dtype):
    least = torch.finfo(dtype).smallest_normal * torch.finfo(dtype).eps
    x = torch.zeros(1, 64, 1, 1, dtype=dtype)
    x[0, 5] = least
    x.requires_grad_()
    y = relu_tensor_norm(x)
    y.backward(torch.ones_like(y))
    assert torch.equal(y, x)
    assert x.grad.sum() == x.grad[0, 5] == 1


def test_nan_spoils_its_own_pixel_only():
    x = torch.ones(1, 3, 1, 2)
    x[0, 1, 0, 0] = float("nan")
    y = relu_tensor_norm(x)
    assert y[..., 0].isnan().all()
    assert torch.equal(y[..., 1], torch.zeros(1, 3, 1))


def saved_bytes(activation, x):
    """Bytes of the distinct storages that autograd keeps for conv -> BN -> activation -> conv, and the map's pixels."""
    torch.manual_seed(0)
    first, bn, second = nn.Conv2d(3, 16, 3, padding=1), nn.BatchNorm2d(16), nn.Conv2d(16, 8, 3, padding=1)
    kept = []
    with saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        second(activation(bn(first(x)))).sum()
    return sum({t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in kept}.values())


@pytest.mark.parametrize("gradient", GRADIENTS)
def test_keeps_what_relu_keeps_and_one_value_a_pixel_where_eager_keeps_a_map_more(gradient):
    x = torch.randn(4, 3, 10, 10)
    allowed = saved_bytes(torch.relu, x) + 4 * 10 * 10 * 4
    assert saved_bytes(lambda a: relu_tensor_norm(a, gradient), x) <= allowed
    assert saved_bytes(lambda a: eager(a, gradient), x) >= allowed + 4 * 15 * 10 * 10 * 4


def test_keeps_nothing_without_gradients():
    kept = []
    with saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        y = relu_tensor_norm(torch.randn(2, 3, 4, 4))
        with torch.no_grad():
            z = relu_tensor_norm(torch.randn(2, 3, 4, 4, requires_grad=True))
    assert not y.requires_grad
    assert not z.requires_grad
    assert not kept


def test_the_input_is_not_overwritten():
    x = torch.randn(2, 3, 4, 4)
    before = x.clone()
    relu_tensor_norm(x)
    assert torch.equal(x, before)


def test_a_second_backward_raises():
    x = torch.randn(2, 3, 4, 4, requires_grad=True)
    (gradient,) = torch.autograd.grad(relu_tensor_norm(x).square().sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="differentiate twice"):
        gradient.sum().backward()


def test_autocast_trains_in_bfloat16():
    torch.manual_seed(0)
    convolution = nn.Conv2d(3, 8, 3)
    with torch.autocast("cpu", torch.bfloat16):
        y = relu_tensor_norm(convolution(torch.randn(2, 3, 6, 6)))
    y.float().square().sum().backward()
    assert y.dtype == torch.bfloat16
    assert convolution.weight.grad.dtype == torch.float32
    assert convolution.weight.grad.abs().max() > 0


@pytest.mark.compile
@pytest.mark.skipif(
    sys.version_info >= (3, 12) and tuple(map(int, torch.__version__.split(".")[:2])) < (2, 4),
    reason="torch.compile came to Python 3.12 with torch 2.4",
)
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("gradient", GRADIENTS)
def test_compiles_as_one_graph_with_the_same_result(gradient):
    x = torch.randn(2, 3, 4, 4, requires_grad=True)
    compiled = torch.compile(lambda t: relu_tensor_norm(t * 2, gradient), backend="aot_eager", fullgraph=True)
    g = torch.randn_like(x)
    (expected,) = torch.autograd.grad(relu_tensor_norm(x * 2, gradient), x, g)
    (got,) = torch.autograd.grad(compiled(x), x, g)
    assert torch.equal(compiled(x), relu_tensor_norm(x * 2, gradient))
    assert torch.equal(got, expected)
