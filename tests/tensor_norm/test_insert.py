import copy
import functools

import pytest
import torch
import torch.nn.functional as F
import torchvision
from torch import fx, nn
from torch.overrides import TorchFunctionMode

from fdt_pipeline.tensor_norm import (
    ReLUTensorNorm,
    TensorNorm,
    count_tensor_norm_sites,
    insert_tensor_norm,
    tensor_norm,
    tensor_norm_layers,
)

RELUS = {F.relu, torch.relu, torch.relu_, torch.Tensor.relu, torch.Tensor.relu_}


class _NormalizeEveryReLU(TorchFunctionMode):
    """Independent of module swaps and of torch.fx: catches each ReLU when it is called."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        if func in (torch.relu_, torch.Tensor.relu_):
            return args[0].copy_(tensor_norm(result))
        return tensor_norm(result) if func in RELUS else result


class Functional(nn.Module):
    """Every spelling of ReLU, a branch-free use of the mode, and a child that is called twice."""

    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 3, padding=1)
        self.unused = nn.Parameter(torch.ones(2))
        self.relu = nn.ReLU(inplace=True)
        self.head = nn.Linear(8, 5)
        self.width = 8

    def forward(self, x):
        x = F.relu(self.first(x))
        x = torch.relu(self.second(x)) + self.relu(self.second(x))
        x = F.dropout(x.mean((2, 3)) - 0.1, 0.5, training=self.training)
        x = F.relu(input=self.head(x).relu(), inplace=True)
        return x.relu_() - 0.1


class Overwrites(nn.Module):
    """Reads its input again after an in-place ReLU."""

    def __init__(self, relu):
        super().__init__()
        self.body, self.relu = nn.Conv2d(3, 4, 1), relu

    def forward(self, x):
        x = self.body(x)
        y = x * 2
        self.relu(x)
        return x + y


class OneReLU(nn.Module):
    """One ReLU for maps and for vectors."""

    def __init__(self):
        super().__init__()
        self.conv, self.relu, self.fc, self.head = nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Linear(4, 6), nn.Linear(6, 2)

    def forward(self, x):
        return self.head(self.relu(self.fc(self.relu(self.conv(x)).mean((2, 3)))))


@pytest.mark.parametrize(("name", "sites"), [("resnet18", 17), ("resnet34", 33), ("googlenet", 57), ("vgg11_bn", 10)])
def test_every_relu_of_a_torchvision_network_is_normalized_without_a_warning(name, sites):
    options = {"aux_logits": True, "init_weights": False} if name == "googlenet" else {}
    with torch.device("meta"):
        model = getattr(torchvision.models, name)(weights=None, **options)
        names = list(model.state_dict())
        model = insert_tensor_norm(model)
        assert count_tensor_norm_sites(model, torch.empty(2, 3, 224, 224)) == sites
    assert list(model.state_dict()) == names
    assert not any(isinstance(module, nn.ReLU) for module in model.modules())


@pytest.mark.parametrize(
    "make",
    [Functional, lambda: Overwrites(F.relu_), lambda: nn.Sequential(Overwrites(torch.relu_), Functional()), OneReLU],
    ids=["spellings", "in place", "nested", "one for maps and vectors"],
)
def test_equals_normalizing_each_relu_as_it_is_called(make):
    torch.manual_seed(0)
    model, x = make().eval(), torch.randn(2, 3, 6, 6)
    if isinstance(model, nn.Sequential):
        model.insert(1, nn.Conv2d(4, 3, 1))
    with _NormalizeEveryReLU():
        expected = model(x)
    torch.testing.assert_close(insert_tensor_norm(copy.deepcopy(model))(x), expected)


def test_a_functional_module_becomes_a_graph_module_with_its_mode_names_and_attributes():
    torch.manual_seed(0)
    model = Functional()
    names = list(model.state_dict())
    new = insert_tensor_norm(model)
    assert isinstance(new, fx.GraphModule)
    assert list(new.state_dict()) == names
    assert new.width == 8
    x = torch.randn(64, 3, 6, 6)
    assert torch.equal(new.eval()(x), new(x))
    assert not torch.equal(new.train()(x), new(x)), "dropout must still follow the mode"
    assert count_tensor_norm_sites(copy.deepcopy(new), x) == 6


def test_shared_modules_stay_shared_and_only_those_that_call_functional_relus_change_their_class():
    relu, block = nn.ReLU(), Functional()
    old = nn.Sequential(relu, nn.Sequential(relu, block), block)
    model = insert_tensor_norm(old)
    assert model is old
    assert type(model[1]) is nn.Sequential
    assert isinstance(model[2], fx.GraphModule)
    assert model[0] is model[1][0]
    assert model[1][1] is model[2]
    assert len(tensor_norm_layers(model)) == 1 + 6


@pytest.mark.parametrize(("make", "kind"), [(nn.ReLU, ReLUTensorNorm), (Functional, fx.GraphModule)])
def test_a_root_that_is_replaced_keeps_its_mode_and_its_hooks(make, kind):
    model, calls = make().eval(), []
    handle = model.register_forward_pre_hook(lambda *_: calls.append(1))
    new = insert_tensor_norm(model, "exact")
    assert isinstance(new, kind)
    assert not new.training
    assert {layer.gradient for layer in tensor_norm_layers(new)} == {"exact"}
    new(torch.zeros(1, 3, 6, 6))
    handle.remove()
    new(torch.zeros(1, 3, 6, 6))
    assert calls == [1]


class HasReLU(nn.Module):
    def __init__(self):
        super().__init__()
        self.relu = nn.ReLU()


class BranchesOnAValue(HasReLU):
    """One branch has a functional ReLU, which torch.fx cannot see."""

    def forward(self, x):
        return self.relu(x) if x.sum() > 0 else F.relu(-x)


class BranchesOnTheMode(HasReLU):
    def forward(self, x):
        return F.relu(x) if self.training else self.relu(x)


class CallsAMethod(HasReLU):
    def forward(self, x):
        return self.relu(x) if x.sum() > 0 else self.other(x)

    def other(self, x):
        return -x.relu()


class CallsAnAttribute(HasReLU):
    activation = functools.partial(F.relu, inplace=False)

    def forward(self, x):
        return self.relu(x) if x.sum() > 0 else self.activation(x)


@pytest.mark.parametrize("make", [BranchesOnAValue, BranchesOnTheMode, CallsAMethod, CallsAnAttribute])
def test_an_untraceable_forward_gets_its_modules_swapped_and_a_warning_of_its_functional_relu(make):
    model = nn.Sequential(make())
    with pytest.warns(
        UserWarning,
        match=r"ReLUs in 1 module \(0.relu\). Left as they are: relu\(\) in a forward that torch.fx cannot trace in "
        r"1 module \(0: .*Use nn.ReLU modules there",
    ):
        insert_tensor_norm(model)
    assert isinstance(model[0].relu, ReLUTensorNorm)


class BranchesWithoutFunctions(HasReLU):
    def forward(self, x):
        """Neither self.relu(...) nor torch.cat is F.relu(...)."""
        relu = self.relu(x)
        return torch.cat([relu, self.relu(-x)]) if relu.sum() > 0 else relu


class Stores(Functional):
    def forward(self, x):
        self.features = self.relu(x)
        return self.features


@pytest.mark.parametrize("make", [BranchesWithoutFunctions, Stores])
def test_a_forward_without_functional_relus_is_no_reason_to_warn_and_stays_as_it_was(make):
    model = insert_tensor_norm(nn.Sequential(make()))
    assert type(model[0]) is make
    assert isinstance(model[0].relu, ReLUTensorNorm)
    assert not hasattr(model[0], "features"), "a stand-in of the trace"


NO_RELU = r"found no nn.ReLU and no functional ReLU in {}, expected at least one: ReLU6 and"


@pytest.mark.parametrize(
    ("make", "options", "message"),
    [
        (lambda: nn.Linear(2, 2), {}, NO_RELU.format("Linear")),
        (lambda: nn.Sequential(nn.LeakyReLU(), nn.ReLU6()), {}, NO_RELU.format("Sequential")),
        (lambda: torchvision.models.mobilenet_v2(weights=None), {}, NO_RELU.format("MobileNetV2")),  # all are ReLU6
        (lambda: nn.Sequential(nn.ReLU()), {"skip": "0"}, NO_RELU.format("Sequential outside skip")),
        (lambda: insert_tensor_norm(nn.Sequential(nn.ReLU())), {}, "has tensor normalization already"),
        (nn.ReLU, {"channel_dim": 0}, "channel_dim must be 1 .* got 0, which is the batch"),
        (nn.ReLU, {"gradient": "precise"}, "'straight-through' or 'exact', got 'precise'"),
        (
            lambda: nn.Sequential(nn.ReLU()),
            {"skip": "layer9.*"},
            r"skip has 'layer9\.\*', which is no module of Sequential: .* last here is '0'",
        ),
    ],
)
def test_what_cannot_be_converted_is_refused_and_stays_as_it_is(make, options, message):
    with torch.device("meta"):
        model = make()
    before = repr(model)
    with pytest.raises(ValueError, match=message):
        insert_tensor_norm(model, **options)
    assert repr(model) == before


class Tokens(nn.Module):
    """A ViT's block in small: [n tokens 6] -> [n tokens 6]; with `functional`, F.relu in place of a module."""

    def __init__(self, functional=False):
        super().__init__()
        self.norm, self.fc1, self.drop, self.fc2 = nn.LayerNorm(6), nn.Linear(6, 8), nn.Dropout(0.5), nn.Linear(8, 6)
        self.act = F.relu if functional else nn.ReLU()

    def forward(self, x):
        return x + self.fc2(self.act(self.drop(self.fc1(self.norm(x)))))


def over_last_dimension(block, x):
    hidden = F.relu(block.fc1(block.norm(x)))
    return x + block.fc2(hidden - hidden.mean(-1, keepdim=True))


@pytest.mark.parametrize("shape", [(2, 5, 6), (2, 6), (2, 4, 5, 6)], ids=["tokens", "vectors", "channels last"])
@pytest.mark.parametrize("functional", [False, True])
def test_a_relu_that_reads_a_linear_layer_is_normalized_over_its_outputs(shape, functional):
    torch.manual_seed(0)
    block, x = Tokens(functional).eval(), torch.randn(shape)
    expected = over_last_dimension(block, x)
    torch.testing.assert_close(insert_tensor_norm(block)(x), expected)


def test_three_dimensions_of_unknown_meaning_are_refused_until_channel_dim_is_given():
    x = torch.randn(2, 5, 6)
    with pytest.raises(
        ValueError, match=r"cannot know the channels .* \[2, 5, 6\]: give insert_tensor_norm.*channel_dim=-1"
    ):
        insert_tensor_norm(nn.Sequential(nn.Identity(), nn.ReLU()))(x)
    for channel_dim in (1, 2, -1):
        model = insert_tensor_norm(nn.Sequential(nn.Identity(), nn.ReLU()), channel_dim=channel_dim)
        torch.testing.assert_close(model(x), x.relu() - x.relu().mean(channel_dim, keepdim=True))


class SqueezeExcite(nn.Module):
    def __init__(self, channels):
        super().__init__()
        self.reduce, self.act, self.expand = nn.Conv2d(channels, 2, 1), nn.ReLU(), nn.Conv2d(2, channels, 1)
        self.gate = nn.Hardsigmoid()

    def forward(self, x):
        return x * self.gate(self.expand(self.act(self.reduce(x.mean((2, 3), keepdim=True)))))


class Functions(nn.Module):
    def forward(self, x):
        return F.leaky_relu(F.gelu(x)) + x.sigmoid()


def mobile_net():
    first = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Hardswish(), SqueezeExcite(4), nn.ReLU())
    return nn.Sequential(first, Functions(), nn.Hardswish(), nn.Softmax(1))


def test_a_model_that_is_converted_in_part_says_what_is_and_what_is_not_before_it_changes():
    model = mobile_net()
    with pytest.raises(UserWarning) as caught:
        insert_tensor_norm(model)
    assert not tensor_norm_layers(model)
    assert str(caught.value).startswith(
        "a part of Sequential gets tensor normalization: the ReLUs in 2 modules (0.2.act, 0.3). Left as they are: "
        "Hardswish in 2 modules (0.1, 2); gelu() in 1 module (1); leaky_relu() in 1 module (1). Use nn.ReLU"
    )


@pytest.mark.parametrize(
    "skip",
    [
        ["*.1", "0.2", "1", "2"],
        lambda name, module: isinstance(module, SqueezeExcite | Functions | nn.Hardswish),
    ],
    ids=["names and patterns", "predicate"],
)
def test_what_skip_names_stays_with_all_that_is_in_it_and_without_a_warning(skip):
    model = insert_tensor_norm(mobile_net(), skip=skip)
    assert isinstance(model[0][2].act, nn.ReLU)
    assert isinstance(model[0][3], ReLUTensorNorm)
    assert len(tensor_norm_layers(model)) == 1


def test_skip_keeps_functional_relus_too_and_a_module_that_is_also_elsewhere():
    relu = nn.ReLU()
    model = insert_tensor_norm(nn.Sequential(Functional(), nn.Sequential(relu), relu, nn.ReLU()), skip=["0", "1"])
    assert type(model[0]) is Functional
    assert model[2] is relu
    assert isinstance(model[3], ReLUTensorNorm)


class StarReLU(HasReLU):
    """Squares its ReLU: zero mean before the square would give weight to what was inactive."""

    def forward(self, x):
        return self.relu(x) ** 2


class PlainReLU(nn.Module):
    def forward(self, x):
        return F.relu(x)


@pytest.mark.parametrize(
    "make",
    [StarReLU, lambda: nn.TransformerEncoderLayer(4, 1, 8, activation=nn.ReLU(), batch_first=True)],
    ids=["StarReLU", "TransformerEncoderLayer"],
)
def test_a_relu_inside_an_activation_or_a_fused_layer_is_left_and_named(make):
    model = nn.Sequential(make(), PlainReLU(), nn.PixelUnshuffle(2))
    with pytest.warns(
        UserWarning, match=rf"ReLUs in 1 module \(1\)\..*: {type(model[0]).__name__} in 1 module \(0\)\."
    ):
        insert_tensor_norm(model)
    assert not tensor_norm_layers(model[0])
    assert len(tensor_norm_layers(model[1])) == 1


@pytest.mark.filterwarnings("ignore:.*torch.jit")
@pytest.mark.parametrize("gradient", ["straight-through", "exact"])
def test_a_scripted_model_gives_the_same_result_and_gradient(gradient):
    torch.manual_seed(0)
    model, x = insert_tensor_norm(nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU()), gradient), torch.randn(2, 3, 6, 6)
    model.append(TensorNorm(gradient, channel_dim=-1))
    scripted = torch.jit.script(model)
    torch.testing.assert_close(scripted(x), model(x))
    weight = model[0].weight
    ours, theirs = (torch.autograd.grad(m(x).square().sum(), weight)[0] for m in (scripted, model))
    torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize("gradient", ["straight-through", "exact"])
@pytest.mark.filterwarnings("ignore:.*torch.jit")  # torch itself scripts when jvp is first called
@pytest.mark.parametrize("inplace", [False, True])
def test_torch_func_gives_the_gradients_of_autograd_for_one_sample_after_the_other(gradient, inplace):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 2, 1))
    model, x = insert_tensor_norm(model, gradient, inplace), torch.randn(3, 3, 6, 6)
    parameters = dict(model.named_parameters())

    def loss(parameters, image):
        return torch.func.functional_call(model, parameters, (image[None],)).square().sum()

    one_by_one = torch.func.vmap(torch.func.grad(loss), (None, 0))(parameters, x)
    expected = torch.autograd.grad(model(x).square().sum(), list(parameters.values()))
    for ours, theirs in zip(one_by_one.values(), expected, strict=True):
        torch.testing.assert_close(ours.sum(0), theirs)
    direction = torch.randn_like(x)
    value, slope = torch.func.jvp(lambda images: model(images).square().sum(), (x,), (direction,))
    images = x.clone().requires_grad_()
    (gradient_of_images,) = torch.autograd.grad(model(images).square().sum(), images)
    torch.testing.assert_close(slope, (gradient_of_images * direction).sum())
    torch.testing.assert_close(value, model(x).square().sum())
