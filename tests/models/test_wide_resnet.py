import pytest
import torch

from fdt_pipeline.tensor_norm import count_tensor_norm_sites
from models.wide_resnet import wide_resnet, wrn28_10


def hand_count(blocks, width, classes):
    """Parameters by the paper's table: 3x3 convolutions, 1x1 shortcuts, two a channel for each batch normalization."""
    total, before = 3 * 16 * 9, 16
    for channels in (16 * width, 32 * width, 64 * width):
        total += (
            before * channels * 9
            + (before != channels) * before * channels
            + 2 * before
            + 2 * channels
            + channels**2 * 9
        )
        total += (blocks - 1) * (2 * channels**2 * 9 + 4 * channels)
        before = channels
    return total + 2 * before + before * classes + classes


@pytest.mark.parametrize(("depth", "width", "classes"), [(10, 1, 10), (16, 4, 7), (28, 10, 100)])
def test_has_as_many_parameters_as_the_table_gives_by_hand(depth, width, classes):
    with torch.device("meta"):
        model = wide_resnet(depth, width, classes)
    assert sum(p.numel() for p in model.parameters()) == hand_count((depth - 4) // 6, width, classes)


def test_wrn28_10_has_the_published_number_of_parameters_and_the_papers_sites():
    with torch.device("meta"):
        model = wrn28_10(10, tensor_norm="straight-through")
        assert count_tensor_norm_sites(model, torch.empty(2, 3, 32, 32)) == 25
    assert sum(p.numel() for p in model.parameters()) == 36_479_194


def test_normalization_does_not_change_the_initial_weights():
    models = []
    for tensor_norm in (None, "exact"):
        torch.manual_seed(0)
        models.append(wide_resnet(10, 2, 10, in_channels=1, tensor_norm=tensor_norm).state_dict())
    assert list(models[0]) == list(models[1])
    assert all(torch.equal(models[0][name], models[1][name]) for name in models[0])


def test_the_skip_path_of_a_block_that_keeps_its_shape_carries_the_raw_input():
    model = wide_resnet(16, 1, 10, tensor_norm="exact").eval()
    block = model[2]
    torch.nn.init.zeros_(block.conv2.weight)
    x = torch.randn(2, 16, 8, 8)
    assert block.shortcut is None
    assert torch.equal(block(x), x)


@pytest.mark.parametrize(("depth", "width"), [(20, 1), (4, 1), (28, 0)])
def test_a_depth_without_whole_blocks_or_no_width_is_refused(depth, width):
    with pytest.raises(ValueError, match=f"depth must be 10, 16, .* got depth {depth} and width {width}"):
        wide_resnet(depth, width, 10)
