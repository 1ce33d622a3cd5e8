"""What test_triton_kernels.py runs in a process of its own, on a GPU or with Triton's interpreter: the laws of the
fused function, through the kernels, and what can only be said of the passes themselves."""

import pytest
import torch
import triton
from triton.runtime import interpreter

from fdt_pipeline.tensor_norm import fused
from fdt_pipeline.tensor_norm import triton_kernels as kernels
from tests.tensor_norm.test_fused import (  # noqa: F401
    DTYPES,
    random_map,
    test_a_pixel_without_activation_is_zero_and_has_no_gradient_and_nan_spoils_its_own_pixel_only,
    test_every_positive_activation_keeps_its_gradient_however_small,
    test_forward_and_backward_equal_autograd_of_the_formula,
    test_the_exact_gradient_is_the_derivative_in_any_number_of_dimensions,
)

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
pytestmark = pytest.mark.filterwarnings("ignore:invalid value:RuntimeWarning")  # NumPy's, of the interpreter


@pytest.fixture(autouse=True)
def through_the_kernels(monkeypatch):
    """On a GPU, where float32 is rounded to the nearest bfloat16; the interpreter cuts off (triton 3.8)."""
    monkeypatch.setattr(fused, "_passes", lambda x: (kernels.forward, kernels.backward))
    cast = interpreter.InterpreterBuilder.cast_impl

    def rounding(self, source, dtype):
        if source.dtype.scalar == triton.language.float32 and dtype.scalar == triton.language.bfloat16:
            bits = torch.from_numpy(source.data).bfloat16().view(torch.int16).numpy().view("uint16")
            return interpreter.TensorHandle(bits, dtype.scalar)
        return cast(self, source, dtype)

    for name in ("cast_impl", "create_fp_ext", "create_fp_trunc") if DEVICE == "cpu" else ():
        monkeypatch.setattr(interpreter.InterpreterBuilder, name, rounding)
    with torch.device(DEVICE):
        yield


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("exact", [False, True])
def test_equals_the_eager_one_to_the_bit_where_the_order_of_a_sum_does_not_matter(exact, dtype):
    """Whole numbers, 16 channels: each mean is a multiple of 1/16, summed without rounding in any order."""
    torch.manual_seed(3)
    x = torch.randint(-8, 9, (4, 16, 3, 5)).to(dtype)
    ours, theirs = kernels.forward(x), fused.forward(x)
    assert torch.equal(ours[0], theirs[0])
    assert torch.equal(ours[1], theirs[1])
    grad = x.roll(1, 0)
    assert torch.equal(kernels.backward(grad, *ours, exact), fused.backward(grad, *theirs, exact))


def laid_out_otherwise(x):
    yield x.to(memory_format=torch.channels_last)
    yield x[:1, :1, :1, :1].expand_as(x)  # as the gradient of a sum comes
    yield x.transpose(2, 3).contiguous().transpose(2, 3)
    yield torch.cat([x, x], dim=1)[:, 1::2]


def test_input_and_gradient_may_lie_in_memory_in_any_way():
    for each in laid_out_otherwise(random_map((3, 6, 4, 5))):
        output, mean = kernels.forward(each)
        torch.testing.assert_close(output, fused.forward(each)[0])
        torch.testing.assert_close(kernels.backward(each, output, mean, True), fused.backward(each, output, mean, True))


def test_a_map_without_pixels_is_served():
    output, mean = kernels.forward(torch.zeros(2, 3, 0))
    assert (output.shape, mean.shape) == ((2, 3, 0), (2, 1, 0))
    assert kernels.backward(output, output, mean, True).shape == (2, 3, 0)
