"""Inside the block float32 is float32; outside, everything is as it was."""

import pytest
import torch

from train.precision import attack_precision, full_float32, tf32_behind_first_layer

CUDNN = torch.backends.cudnn
MATMUL = torch.backends.cuda.matmul


@pytest.fixture(params=[(True, "highest"), (True, "high"), (False, "medium")])
def flags(request):
    before = switches()
    CUDNN.allow_tf32 = request.param[0]
    torch.set_float32_matmul_precision(request.param[1])
    yield request.param
    CUDNN.allow_tf32 = before[0]
    torch.set_float32_matmul_precision(before[1])


def switches():
    return CUDNN.allow_tf32, torch.get_float32_matmul_precision()


def fail_after(claim):
    assert claim()
    raise KeyError


def test_tf32_is_off_inside_and_as_found_after_an_exception(flags):
    with pytest.raises(KeyError), full_float32("cpu"):
        fail_after(lambda: switches() == (False, "highest"))
    assert switches() == flags


@pytest.mark.skipif(not hasattr(CUDNN, "conv"), reason="torch before 2.9 has no fp32_precision")
def test_the_newer_tf32_switches_are_handled_too():
    before = CUDNN.conv.fp32_precision, MATMUL.fp32_precision
    try:
        CUDNN.conv.fp32_precision, MATMUL.fp32_precision = "ieee", "tf32"
        with pytest.raises(KeyError), full_float32("cpu"):
            fail_after(lambda: (CUDNN.conv.fp32_precision, MATMUL.fp32_precision) == ("ieee", "ieee"))
        assert (CUDNN.conv.fp32_precision, MATMUL.fp32_precision) == ("ieee", "tf32")
    finally:
        CUDNN.conv.fp32_precision, MATMUL.fp32_precision = before


def test_behind_the_first_layer_tf32_is_on_in_every_pass(flags):
    layers = [torch.nn.Conv2d(3, 4, 1), torch.nn.Conv2d(4, 4, 4), torch.nn.Flatten(), torch.nn.Linear(4, 2)]
    model, images, seen = torch.nn.Sequential(*layers), torch.zeros(2, 3, 4, 4), []

    def note(*_):
        seen.append(switches())

    with tf32_behind_first_layer(model, "cpu"):
        for layer in (model[0], model[1], model[3]):
            layer.register_forward_pre_hook(note)  # called after those that turn TF32 off
        for _ in range(2):
            model(images)
            assert switches() == (True, "high")
    assert seen == 2 * [(False, "highest"), (True, "high"), (True, "high")]
    assert switches() == flags
    model(images)
    assert seen[-3:] == 3 * [flags]  # nothing is left behind


def test_a_first_layer_that_fails_leaves_the_switches_as_they_were(flags):
    model = torch.nn.Conv2d(3, 4, 1)
    with pytest.raises(RuntimeError), tf32_behind_first_layer(model, "cpu"):
        model(torch.zeros(2, 5, 4, 4))
    assert switches() == flags


def test_the_precision_of_an_attack_is_chosen_by_the_device():
    assert [attack_precision(None, device) for device in ("cpu", "cuda")] == ["float32", "tf32"]
    assert attack_precision("float32", "cuda") == "float32"
    with pytest.raises(ValueError, match="precision must be one of"):
        attack_precision("bf16", "cuda")
