import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from fdt_pipeline.tensor_norm import ReLUTensorNorm, TensorNorm, fold_tensor_norm, tensor_norm_layers
from models import resnet34, wide_resnet


def settle(model):
    """Weights in float64, and batch normalizations that do something."""
    torch.manual_seed(0)
    for module in model.double().eval().modules():
        if isinstance(module, nn.BatchNorm2d | nn.BatchNorm1d):
            module.running_mean.uniform_(-0.3, 0.3)
            module.running_var.uniform_(0.5, 2)
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.uniform_(module.bias, -0.3, 0.3)
    return model


def assert_folds(model, shape, sites):
    """The folded copy gives the same result, with `sites` fewer calls, and the model is as it was."""
    model = settle(model).train()
    before = copy.deepcopy(model.state_dict())
    folded, num_folded = fold_tensor_norm(model)
    x = torch.randn(shape, dtype=torch.float64)
    assert all(module.training for module in model.modules())
    assert not any(module.training for module in folded.modules())
    expected = model.eval()(x)
    assert num_folded == sites
    torch.testing.assert_close(folded(x), expected, rtol=0, atol=1e-10 * max(1.0, expected.abs().max().item()))
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    return folded


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("mode", ["zeros", "reflect", "replicate", "circular"])
def test_a_convolution_folds_in_every_padding_mode(mode, bias):
    convolution = nn.Conv2d(4, 3, 3, 2, 1, padding_mode=mode, bias=bias)
    folded = assert_folds(nn.Sequential(ReLUTensorNorm(), convolution), (2, 4, 7, 7), 1)
    assert not tensor_norm_layers(folded)
    assert folded.get_submodule("1").weight.mean(1).abs().max() < 1e-15


@pytest.mark.parametrize("include_pad", [True, False])
def test_average_pooling_commutes_whatever_its_padding(include_pad):
    pool = nn.AvgPool2d(3, 2, 1, ceil_mode=True, count_include_pad=include_pad)
    assert_folds(nn.Sequential(ReLUTensorNorm(), pool, nn.Identity(), nn.Conv2d(4, 3, 3)), (2, 4, 8, 8), 1)


def test_resnet34_folds_twenty_of_its_33_sites():
    # 16 inside the blocks, 3 before the blocks whose shortcut is a convolution, 1 before the classifier.
    folded = assert_folds(resnet34(10, tensor_norm="exact"), (1, 3, 8, 8), 16 + 3 + 1)
    calls = [node for node in folded.graph.nodes if node.op == "call_module"]
    assert sum(isinstance(folded.get_submodule(node.target), TensorNorm) for node in calls) == 33 - 20


def test_a_normalization_without_relu_folds_to_nothing_and_so_does_all_of_a_wide_resnet():
    folded = assert_folds(nn.Sequential(TensorNorm(), nn.Conv2d(4, 3, 3)), (2, 4, 7, 7), 1)
    assert [node.op for node in folded.graph.nodes] == ["placeholder", "call_module", "output"]
    folded = assert_folds(wide_resnet(16, 2, 10, tensor_norm="exact"), (2, 3, 16, 16), 13)
    assert not tensor_norm_layers(folded)


def test_a_classifier_of_matrices_folds_and_dropout_lets_through():
    head = [
        nn.AdaptiveAvgPool2d((1, 1)),
        nn.Flatten(),
        nn.Linear(6, 8),
        nn.BatchNorm1d(8),
        ReLUTensorNorm(channel_dim=-1),
    ]
    model = nn.Sequential(nn.Conv2d(3, 6, 3), ReLUTensorNorm(), *head, nn.Dropout(), nn.Linear(8, 5))
    assert_folds(model, (2, 3, 6, 6), 2)


class FunctionalHead(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.relu, self.head = nn.Conv2d(3, 6, 3), ReLUTensorNorm(), nn.Linear(6, 5)

    def forward(self, x):
        x = F.avg_pool2d(self.relu(self.first(x)), 2)
        x = torch.flatten(F.adaptive_avg_pool2d(x, 1), 1)
        return self.head(F.dropout(x, 0.5, training=self.training))


def test_functional_pooling_dropout_and_flatten_let_through():
    assert_folds(FunctionalHead(), (2, 3, 8, 8), 1)


class Wired(nn.Module):
    """Two normalizations and a convolution or two, joined by a function."""

    def __init__(self, wiring):
        super().__init__()
        self.a, self.b = ReLUTensorNorm(), ReLUTensorNorm()
        self.first, self.second = nn.Conv2d(4, 4, 3, padding=1), nn.Conv2d(4, 4, 3, padding=1)
        self.wiring = wiring

    def forward(self, x):
        return self.wiring(self, x)


def concatenated(m, x):
    return F.conv2d(torch.cat([m.a(x), x], 1), m.first.weight.repeat(1, 2, 1, 1))


@pytest.mark.parametrize(
    ("wiring", "sites"),
    [
        (lambda m, x: m.first(m.a(x)) + m.first(m.b(-x)), 2),  # shared, fed by folded sites alone
        (lambda m, x: m.first(m.a(x)) + m.first(x), 0),  # shared with a path that is not normalized
        (
            lambda m, x: m.first(m.a(x)) + m.first(m.b(x)) + m.second(m.b(x)) * m.b(x),
            3,
        ),  # the last call of b does not fold
        (lambda m, x: m.first(m.a(x)) + m.second(m.a(x)) + m.second(x), 1),  # one of two calls of a folds
        (lambda m, x: m.first(y := m.a(x)) + m.second(y), 1),  # one map, two convolutions
        (lambda m, x: m.first(y := m.a(x)) + m.second(y) + m.second(m.b(x) + y), 0),  # falls site after site
        (lambda m, x: m.first(y := m.a(x)) + y, 0),  # a skip addition
        (lambda m, x: m.first(F.max_pool2d(m.a(x), 2)), 0),
        (lambda m, x: m.first(m.a(x)) + F.conv2d(x, m.first.weight, padding=1), 0),  # its weight is read elsewhere
        (concatenated, 0),
        (lambda m, x: m.a(x), 0),
    ],
)
def test_only_convolutions_that_read_nothing_else_are_centred(wiring, sites):
    assert_folds(Wired(wiring), (2, 4, 6, 6), sites)


def test_layers_that_share_a_weight_stand_or_fall_together():
    model = Wired(lambda m, x: m.first(m.a(x)) + m.second(x))
    model.second.weight = model.first.weight
    assert_folds(model, (2, 4, 6, 6), 0)
    model = Wired(lambda m, x: m.first(m.a(x)) + m.second(m.b(-x)))
    model.second.weight = model.first.weight
    assert_folds(model, (2, 4, 6, 6), 2)


class Doubled(nn.Conv2d):
    def forward(self, x):
        return self._conv_forward(x, self.weight.abs(), self.bias)


def hooked(reader):
    reader.register_forward_pre_hook(lambda _, inputs: (inputs[0] + 1,))
    return reader


@pytest.mark.parametrize(
    ("reader", "channel_dim"),
    [
        pytest.param(nn.Conv2d(4, 4, 3, groups=2), 1, id="groups"),
        pytest.param(Doubled(4, 4, 3), 1, id="subclass"),
        pytest.param(nn.Sequential(nn.Flatten(), nn.Linear(4 * 36, 3)), 1, id="flattened map"),
        pytest.param(nn.Linear(6, 3), 1, id="linear on columns"),
        pytest.param(nn.Sequential(nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(16, 3)), 1, id="pool to 2x2"),
        pytest.param(nn.Sequential(nn.BatchNorm2d(4), nn.Conv2d(4, 4, 3)), 1, id="BN"),
        pytest.param(nn.utils.parametrizations.weight_norm(nn.Conv2d(4, 4, 3)), 1, id="weight norm"),
        pytest.param(hooked(nn.Conv2d(4, 4, 3)), 1, id="hooked"),
        pytest.param(nn.Conv2d(4, 3, 1), -1, id="channels last, read by a convolution"),
        pytest.param(nn.Sequential(nn.Flatten(), nn.Linear(4 * 36, 2)), -1, id="channels last, flattened"),
    ],
)
def test_what_does_not_commute_keeps_its_normalization(reader, channel_dim):
    assert_folds(nn.Sequential(ReLUTensorNorm(channel_dim=channel_dim), reader), (2, 4, 6, 6), 0)


@pytest.mark.parametrize(("channel_dim", "sites"), [(1, 0), (2, 0), (-1, 1)])
def test_tokens_are_not_mistaken_for_channels_and_a_linear_layer_folds_where_the_channels_are_last(channel_dim, sites):
    model = nn.Sequential(nn.Linear(6, 5), ReLUTensorNorm(channel_dim=channel_dim), nn.Dropout(), nn.Linear(5, 3))
    assert_folds(model, (2, 4, 6), sites)


class Branching(nn.Module):
    def forward(self, x):
        return x if x.sum() > 0 else -x


def test_an_untraceable_model_is_refused():
    with pytest.raises(ValueError, match=r"cannot trace Branching .*: folding needs a forward"):
        fold_tensor_norm(Branching())
