import pytest
import torch
from torch import nn

from fdt_pipeline.tensor_norm import count_tensor_norm_sites
from models.small_resnet import small_resnet


@pytest.mark.parametrize("size", [28, 32])
def test_gives_logits_for_both_image_sizes(size):
    model = small_resnet(7, in_channels=1, tensor_norm="straight-through").eval()
    assert model(torch.randn(2, 1, size, size)).shape == (2, 7)
    assert count_tensor_norm_sites(model, torch.randn(2, 1, size, size)) == 7


def test_costs_what_its_docstring_says():
    model, macs = small_resnet(10).eval(), []
    for module in model.modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            module.register_forward_hook(lambda layer, _, out: macs.append(out[0].numel() * layer.weight[0].numel()))
    model(torch.zeros(1, 3, 28, 28))
    assert round(sum(macs) / 1e6, 2) == 2.61
    assert sum(p.numel() for p in model.parameters()) == 78_042


def test_normalization_does_not_change_the_initial_weights():
    models = []
    for tensor_norm in (None, "exact"):
        torch.manual_seed(0)
        models.append(small_resnet(10, tensor_norm=tensor_norm).state_dict())
    assert all(torch.equal(models[0][name], models[1][name]) for name in models[0])


def test_learns_sixty_random_images_by_heart(one_thread):
    torch.manual_seed(0)
    model = small_resnet(10, tensor_norm="straight-through")
    x, y = torch.randn(60, 3, 16, 16), torch.randint(10, (60,))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    for _ in range(25):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(x), y).backward()
        optimizer.step()
    assert (model(x).argmax(1) == y).float().mean() > 0.9


def test_no_width_is_refused():
    with pytest.raises(ValueError, match="width must be at least 1, got 0"):
        small_resnet(10, width=0)
