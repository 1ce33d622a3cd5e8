import copy
import warnings

import pytest
import torch
import torch.nn.functional as F
import torchvision
from torch import fx, nn
from torch.overrides import TorchFunctionMode

from models.insert import insert_tensor_norm
from models.tensor_norm import ReLUTensorNorm, count_tensor_norm_sites, tensor_norm, tensor_norm_layers

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


@pytest.mark.filterwarnings("ignore:cannot trace")  # in torch 2.2, torch.cat takes no stand-in for its list
def test_the_one_functional_relu_of_densenet_is_found_among_its_121():
    with torch.device("meta"):
        model = insert_tensor_norm(torchvision.models.densenet121(weights=None))
        assert count_tensor_norm_sites(model, torch.empty(2, 3, 224, 224)) == 121
    assert isinstance(model, fx.GraphModule)


@pytest.mark.parametrize(
    "make",
    [Functional, lambda: Overwrites(F.relu_), lambda: nn.Sequential(Overwrites(torch.relu_), Functional())],
    ids=["spellings", "in place", "nested"],
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


def test_only_the_modules_that_call_functional_relus_change_their_class():
    model = nn.Sequential(nn.Conv2d(3, 3, 1), Functional())
    assert insert_tensor_norm(model) is model
    assert type(model) is nn.Sequential
    assert isinstance(model[1], fx.GraphModule)


def test_shared_modules_stay_shared():
    relu, block = nn.ReLU(), Functional()
    model = insert_tensor_norm(nn.Sequential(relu, nn.Sequential(relu, block), block))
    assert model[0] is model[1][0]
    assert model[1][1] is model[2]
    assert len(tensor_norm_layers(model)) == 1 + 6


def test_a_root_relu_is_replaced_and_modes_gradients_and_hooks_are_kept():
    relu, calls = nn.ReLU().eval(), []
    handle = relu.register_forward_hook(lambda *_: calls.append(1))
    new = insert_tensor_norm(relu, "exact")
    assert isinstance(new, ReLUTensorNorm)
    assert new.gradient == "exact"
    assert not new.training
    new(torch.zeros(1, 2))
    handle.remove()
    new(torch.zeros(1, 2))
    assert calls == [1]


def test_hooks_of_a_functional_module_are_kept():
    model, calls = Functional(), []
    handle = model.register_forward_pre_hook(lambda *_: calls.append(1))
    new = insert_tensor_norm(model)
    new(torch.zeros(1, 3, 6, 6))
    handle.remove()
    new(torch.zeros(1, 3, 6, 6))
    assert calls == [1]


class Branches(nn.Module):
    def __init__(self):
        super().__init__()
        self.relu = nn.ReLU()

    def forward(self, x):
        return self.relu(x) if x.sum() > 0 else F.relu(-x)


class BranchesOnMode(Branches):
    def forward(self, x):
        return F.relu(x) if self.training else self.relu(x)


@pytest.mark.parametrize("make", [Branches, BranchesOnMode])
def test_an_untraceable_forward_gets_its_modules_swapped_and_a_warning(make):
    model = nn.Sequential(make())
    with pytest.warns(
        UserWarning, match=f"cannot trace the forward of 0 .{make.__name__}: .*use nn.ReLU modules there"
    ):
        insert_tensor_norm(model)
    assert isinstance(model[0].relu, ReLUTensorNorm)


def test_a_forward_that_stores_its_features_is_left_as_it_was():
    class Stores(Functional):
        def forward(self, x):
            self.features = self.relu(x)
            return self.features

    model = Stores()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        insert_tensor_norm(model)
    assert not hasattr(model, "features")
    assert type(model) is Stores


@pytest.mark.parametrize("model", [nn.Linear(2, 2), nn.ReLU6(), nn.Sequential(nn.LeakyReLU())])
def test_a_model_without_relu_is_refused(model):
    with pytest.raises(
        ValueError, match=r"found no nn.ReLU and no functional ReLU .*, expected at least one: ReLU6 and"
    ):
        insert_tensor_norm(model)


def test_mobilenet_v2_is_refused_as_all_its_activations_are_relu6():
    with torch.device("meta"), pytest.raises(ValueError, match="in MobileNetV2"):
        insert_tensor_norm(torchvision.models.mobilenet_v2(weights=None))


def test_a_second_insertion_is_refused():
    model = insert_tensor_norm(nn.Sequential(nn.ReLU()))
    with pytest.raises(ValueError, match="has tensor normalization already"):
        insert_tensor_norm(model)
