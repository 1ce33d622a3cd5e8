"""What test_triton_kernels.py runs in a process of its own: on a GPU, or with Triton's interpreter."""

import pytest
import torch
import triton
from triton.runtime import interpreter

from fdt_pipeline.tensor_norm import eager, fused, relu_tensor_norm
from fdt_pipeline.tensor_norm import triton_kernels as kernels

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
DTYPES = [torch.float64, torch.float32, torch.bfloat16, torch.float16]
FORMATS = [torch.contiguous_format, torch.channels_last]
SHAPES = [(3, 16, 5, 7), (2, 64, 8, 8), (2, 5, 3, 3), (1, 300, 4, 4), (2, 1, 3, 3)]


@pytest.fixture(autouse=True)
def rounding_to_bfloat16(monkeypatch):
    """A GPU rounds float32 to the nearest bfloat16; the interpreter cuts off (triton 3.8, _convert_float)."""
    if DEVICE == "cuda":
        return
    cast = interpreter.InterpreterBuilder.cast_impl

    def rounding(self, source, dtype):
        if source.dtype.scalar == triton.language.float32 and dtype.scalar == triton.language.bfloat16:
            bits = torch.from_numpy(source.data).bfloat16().view(torch.int16).numpy().view("uint16")
            return interpreter.TensorHandle(bits, dtype.scalar)
        return cast(self, source, dtype)

    for name in ("cast_impl", "create_fp_ext", "create_fp_trunc"):
        monkeypatch.setattr(interpreter.InterpreterBuilder, name, rounding)


def random_map(shape, dtype, memory_format=torch.contiguous_format, seed=0):
    values = torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return values.to(DEVICE, dtype).to(memory_format=memory_format)


def close(got, expected, values=None):
    """Equal up to a mean summed in another order, which may move it, and so each value, by one rounding."""
    scale = float((expected if values is None else values).abs().max())
    torch.testing.assert_close(got, expected, rtol=0, atol=2 * torch.finfo(got.dtype).eps * scale)


@pytest.mark.parametrize("memory_format", FORMATS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES)
def test_forward_is_the_eager_one_up_to_rounding(shape, dtype, memory_format):
    x = random_map(shape, dtype, memory_format)
    (output, mean), (expected, expected_mean) = kernels.forward(x), eager.forward(x)
    close(mean, expected_mean)
    close(output, expected)
    assert output.is_contiguous(memory_format=memory_format)
    assert output.dtype == mean.dtype == dtype


@pytest.mark.parametrize("memory_format", FORMATS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("exact", [False, True])
def test_backward_is_the_eager_one_given_the_same_output(exact, dtype, memory_format):
    x, grad = (random_map((3, 16, 5, 7), dtype, memory_format, seed) for seed in (0, 1))
    output, mean = kernels.forward(x)
    got, expected = (passes.backward(grad, output, mean, exact) for passes in (kernels, eager))
    close(got, expected, grad)
    assert got.is_contiguous(memory_format=memory_format)
    assert torch.equal(got == 0, x <= 0)


def sums_without_rounding(dtype):
    """Whole numbers, 16 channels: each mean is a multiple of 1/16, summed without rounding in any order."""
    whole = torch.randint(-8, 9, (4, 16, 3, 5), generator=torch.Generator().manual_seed(3))
    return whole.to(DEVICE, dtype)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("exact", [False, True])
def test_equals_the_eager_one_to_the_bit_where_the_order_of_a_sum_does_not_matter(exact, dtype):
    x = sums_without_rounding(dtype)
    output, mean = kernels.forward(x)
    expected, expected_mean = eager.forward(x)
    assert torch.equal(mean, expected_mean)
    assert torch.equal(output, expected)
    grad = x.roll(1, 0)
    assert torch.equal(
        kernels.backward(grad, output, mean, exact), eager.backward(grad, expected, expected_mean, exact)
    )


@pytest.mark.parametrize("dtype", DTYPES)
def test_every_positive_activation_keeps_its_gradient_however_small(dtype):
    powers = [2.0**-power for power in range(4, 60, 2)]
    column = torch.tensor([1.0, 3.0, 1e-30, torch.finfo(dtype).tiny, 0.0, -0.0, -1e-30, *powers], dtype=torch.float64)
    scales = torch.tensor([1.0, 0.37, 1e-3, 1.7, 0.0], dtype=torch.float64)
    x = (scales[:, None] * column).to(DEVICE, dtype)
    output, mean = kernels.forward(x)
    assert torch.equal(kernels.backward(torch.ones_like(x), output, mean, False), (x > 0).to(dtype))


@pytest.mark.filterwarnings("ignore:invalid value:RuntimeWarning")  # NumPy's, of the interpreter
def test_nan_spoils_its_own_pixel_only():
    x = torch.ones(1, 3, 1, 2, device=DEVICE)
    x[0, 1, 0, 0] = float("nan")
    output, _ = kernels.forward(x)
    assert output[..., 0].isnan().all()
    assert torch.equal(output[..., 1], torch.zeros(1, 3, 1, device=DEVICE))


@pytest.mark.parametrize("shape", [(3, 4), (2, 3, 5), (1, 3, 2, 2, 2), (0, 3, 4, 4), (2, 3, 0)])
def test_any_number_of_dimensions_and_none_at_all_of_samples(shape):
    x = random_map(shape, torch.float32)
    output, mean = kernels.forward(x)
    expected, expected_mean = eager.forward(x)
    assert (output.shape, mean.shape) == (expected.shape, expected_mean.shape)
    torch.testing.assert_close(output, expected)
    grad = torch.ones_like(x)
    torch.testing.assert_close(
        kernels.backward(grad, output, mean, True), eager.backward(grad, expected, expected_mean, True)
    )


def laid_out_otherwise(x):
    yield x.to(memory_format=torch.channels_last)
    yield x[:1, :1, :1, :1].expand_as(x)  # as the gradient of a sum comes
    yield x.transpose(2, 3).contiguous().transpose(2, 3)
    yield torch.cat([x, x], dim=1)[:, 1::2]


def test_input_and_gradient_may_lie_in_memory_in_any_way():
    x = random_map((3, 6, 4, 5), torch.float32)
    for each in laid_out_otherwise(x):
        output, mean = kernels.forward(each)
        torch.testing.assert_close(output, eager.forward(each)[0])
        torch.testing.assert_close(kernels.backward(each, output, mean, True), eager.backward(each, output, mean, True))


def test_the_layer_trains_through_the_kernels(monkeypatch):
    calls = []
    monkeypatch.setattr(fused, "_passes", lambda x: calls.append(x.shape) or kernels)
    x = random_map((2, 8, 4, 4), torch.float32)
    ours, theirs = x.clone().requires_grad_(), x.clone().requires_grad_()
    relu_tensor_norm(ours, "exact").square().sum().backward()
    rectified = theirs.relu()
    (rectified - rectified.mean(1, keepdim=True)).square().sum().backward()
    torch.testing.assert_close(ours.grad, theirs.grad)
    assert len(calls) == 2
