from functools import partial

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from fdt_pipeline.tensor_norm import (
    ReLUTensorNorm,
    TensorNorm,
    count_tensor_norm_sites,
    fold_tensor_norm,
    set_tensor_norm_gradient,
    tensor_norm,
    tensor_norm_gradient,
    tensor_norm_layers,
)

maps = st.builds(
    lambda seed, shape: torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)),
    st.integers(0, 2**32),
    st.lists(st.integers(1, 5), min_size=2, max_size=5).map(tuple),
)
LAYERS = (TensorNorm, ReLUTensorNorm)


@settings(max_examples=30, deadline=None)
@given(maps, st.floats(-10, 10))
def test_each_pixel_has_zero_channel_mean_whatever_constant_is_added_and_loses_z_times_its_squared_mean(x, constant):
    assert tensor_norm(x).mean(1).abs().max() < 1e-14
    left = x.square().sum(1) - x.shape[1] * x.mean(1).square()
    torch.testing.assert_close(tensor_norm(x).square().sum(1), left, rtol=0, atol=1e-12)
    torch.testing.assert_close(tensor_norm(tensor_norm(x)), tensor_norm(x), rtol=0, atol=1e-14)
    shift = constant * torch.arange(x[:, :1].numel(), dtype=x.dtype).reshape(x[:, :1].shape)
    torch.testing.assert_close(tensor_norm(x + shift), tensor_norm(x), rtol=0, atol=1e-10)


def test_equals_algorithm_1_written_as_loops():
    x = np.random.default_rng(0).standard_normal((2, 3, 4, 5))
    expected = np.empty_like(x)
    for b, row, column in np.ndindex(2, 4, 5):
        mean = 0.0
        for z in range(3):
            mean += x[b, z, row, column] / 3
        for z in range(3):
            expected[b, z, row, column] = x[b, z, row, column] - mean
    np.testing.assert_allclose(tensor_norm(torch.from_numpy(x)).numpy(), expected, atol=1e-15)


def test_the_straight_through_gradient_passes_and_the_exact_one_is_centred():
    x = torch.randn(2, 3, 4, 4, dtype=torch.float64, requires_grad=True)
    g = torch.randn_like(x)
    (passed,) = torch.autograd.grad(tensor_norm(x), x, g)
    (exact,) = torch.autograd.grad(tensor_norm(x, "exact"), x, g)
    assert torch.equal(passed, g)
    torch.testing.assert_close(exact, g - g.mean(1, keepdim=True))
    assert torch.autograd.gradcheck(lambda t: tensor_norm(t, "exact"), x)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_sums_the_mean_in_float32(dtype):
    # 4,096 ones: a bfloat16 sum stops at 256, a float16 one of 32s overflows at 65,504.
    x = torch.full((1, 4096, 2, 2), 32.0, dtype=dtype)
    assert tensor_norm(x).dtype == dtype
    assert torch.equal(tensor_norm(x), torch.zeros_like(x))
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(ReLUTensorNorm()(x), torch.zeros_like(x))


@pytest.mark.parametrize("layer", [TensorNorm(), ReLUTensorNorm()])
def test_layers_have_no_state_and_evaluate_as_they_train(layer):
    x = torch.randn(2, 3, 4, 4)
    assert not layer.state_dict()
    assert not list(layer.parameters())
    assert torch.equal(layer.train()(x), layer.eval()(x))


def test_inside_the_block_all_layers_have_its_gradient_and_after_an_error_their_own():
    model = nn.Sequential(TensorNorm("exact"), nn.Sequential(ReLUTensorNorm("straight-through")))

    def gradients():
        return [layer.gradient for layer in tensor_norm_layers(model)]

    with tensor_norm_gradient(model, "exact"):
        assert gradients() == ["exact", "exact"]
    with pytest.raises(AttributeError), tensor_norm_gradient(model, "exact"):
        model(None)
    assert gradients() == ["exact", "straight-through"]
    set_tensor_norm_gradient(model, "straight-through")
    assert gradients() == ["straight-through", "straight-through"]


def test_a_graph_built_inside_the_block_keeps_the_gradient_of_the_block():
    layer = ReLUTensorNorm()
    x = torch.rand(2, 3, 4, 4, requires_grad=True)
    with tensor_norm_gradient(layer, "exact"):
        y = layer(x)
    (gradient,) = torch.autograd.grad(y, x, torch.ones_like(y))
    assert gradient.abs().max() < 1e-6


def test_counting_counts_calls_and_leaves_modes_statistics_and_random_state():
    layer = ReLUTensorNorm()
    model = nn.Sequential(nn.BatchNorm2d(3), layer, nn.Dropout(0.5), layer, TensorNorm())
    model[2].eval()
    before, state = {k: v.clone() for k, v in model.state_dict().items()}, torch.get_rng_state()
    modes = [module.training for module in model.modules()]
    assert count_tensor_norm_sites(model, torch.randn(2, 3, 4, 4, generator=torch.Generator())) == 3
    assert [module.training for module in model.modules()] == modes
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    assert torch.equal(torch.get_rng_state(), state)
    convolutions = nn.Sequential(layer, nn.Conv2d(3, 1, 1))
    assert fold_tensor_norm(convolutions)[1] == 1, "a layer with hooks would not fold"


@pytest.mark.parametrize("gradient", ["straight-through", "exact"])
@pytest.mark.parametrize("layer", LAYERS)
@pytest.mark.parametrize("channel_dim", [1, 2, 3, -1, -3])
def test_any_dimension_but_the_first_may_be_the_channels(channel_dim, layer, gradient):
    x = torch.randn(2, 3, 4, 5, requires_grad=True)
    g = torch.randn_like(x)
    ours, theirs = layer(gradient, channel_dim=channel_dim)(x), layer(gradient)(x.movedim(channel_dim, 1))
    torch.testing.assert_close(ours, theirs.movedim(1, channel_dim))
    (expected,) = torch.autograd.grad(theirs, x, g.movedim(channel_dim, 1))
    torch.testing.assert_close(torch.autograd.grad(ours, x, g)[0], expected)


def run(layer, x):
    return lambda: layer(x)


UNKNOWN = "'straight-through' or 'exact', got 'precise'"
NO_MAP = r"needs a float \[n channels \.\.\.\] tensor, got"
NO_DIMENSION = "channel_dim must be 1 to 2, or -1 to -2, .* got {}:"


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (lambda: set_tensor_norm_gradient(TensorNorm(), "precise"), UNKNOWN),
        (lambda: set_tensor_norm_gradient(nn.ReLU(), "exact"), "no tensor normalization to switch"),
        *((partial(layer, "precise"), UNKNOWN) for layer in LAYERS),
        *(
            (run(layer(channel_dim=dim), torch.zeros(2, 3, 4)), NO_DIMENSION.format(dim))
            for layer in LAYERS
            for dim in (0, 3, -3)  # the batch, or none of the input's
        ),
        *((run(layer(), x), NO_MAP) for layer in LAYERS for x in (torch.zeros(3), torch.zeros(2, 3).long())),
    ],
)
def test_what_is_no_gradient_and_no_map_is_refused(wrong, message):
    with pytest.raises(ValueError, match=message):
        wrong()
