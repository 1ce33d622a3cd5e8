"""Inside the block float32 is float32; outside, everything is as it was."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch

from train.precision import attack_precision, full_float32, tf32_behind_first_layer

CUDNN: Any = torch.backends.cudnn
MATMUL: Any = torch.backends.cuda.matmul


@pytest.fixture(params=[(True, "highest"), (True, "high"), (False, "medium")])
def flags(request: pytest.FixtureRequest) -> Iterator[tuple[bool, str]]:
    before = CUDNN.allow_tf32, torch.get_float32_matmul_precision()
    CUDNN.allow_tf32 = request.param[0]
    torch.set_float32_matmul_precision(request.param[1])
    yield request.param
    CUDNN.allow_tf32 = before[0]
    torch.set_float32_matmul_precision(before[1])


def fail_after(claim: Callable[[], bool]) -> None:
    assert claim()
    raise KeyError


def test_tf32_is_off_inside_and_as_found_after_an_exception(flags: tuple[bool, str]) -> None:
    with pytest.raises(KeyError), full_float32("cpu"):
        fail_after(lambda: (CUDNN.allow_tf32, torch.get_float32_matmul_precision()) == (False, "highest"))
    assert (CUDNN.allow_tf32, torch.get_float32_matmul_precision()) == flags


@pytest.mark.skipif(not hasattr(CUDNN, "conv"), reason="torch before 2.9 has no fp32_precision")
def test_the_newer_tf32_switches_are_handled_too() -> None:
    before = CUDNN.conv.fp32_precision, MATMUL.fp32_precision
    try:
        CUDNN.conv.fp32_precision, MATMUL.fp32_precision = "ieee", "tf32"
        with pytest.raises(KeyError), full_float32("cpu"):
            fail_after(lambda: (CUDNN.conv.fp32_precision, MATMUL.fp32_precision) == ("ieee", "ieee"))
        assert (CUDNN.conv.fp32_precision, MATMUL.fp32_precision) == ("ieee", "tf32")
    finally:
        CUDNN.conv.fp32_precision, MATMUL.fp32_precision = before


def test_autocast_is_off_inside() -> None:
    a = torch.ones(2, 2)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert (a @ a).dtype == torch.bfloat16
        with full_float32("cpu"):
            assert (a @ a).dtype == torch.float32


class Layers(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = torch.nn.ModuleList([torch.nn.Conv2d(3, 4, 1), torch.nn.Conv2d(4, 4, 1), torch.nn.Linear(4, 2)])

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layers[2](self.layers[1](self.layers[0](x)).mean((2, 3)))


def switches() -> tuple[bool, str]:
    return CUDNN.allow_tf32, torch.get_float32_matmul_precision()


def test_behind_the_first_layer_tf32_is_on_in_every_pass(flags: tuple[bool, str]) -> None:
    model, images, seen = Layers(), torch.zeros(2, 3, 4, 4), []

    def note(*_: object) -> None:
        seen.append(switches())

    with tf32_behind_first_layer(model, "cpu"):
        for layer in model.layers:
            layer.register_forward_pre_hook(note)  # called after those that turn TF32 off
        for _ in range(2):
            model(images)
            assert switches() == (True, "high")
    assert seen == 2 * [(False, "highest"), (True, "high"), (True, "high")]
    assert switches() == flags
    model(images)
    assert seen[-3:] == 3 * [flags]  # nothing is left behind


def test_a_first_layer_that_fails_leaves_the_switches_as_they_were(flags: tuple[bool, str]) -> None:
    model = torch.nn.Conv2d(3, 4, 1)
    with pytest.raises(RuntimeError), tf32_behind_first_layer(model, "cpu"):
        model(torch.zeros(2, 5, 4, 4))
    assert switches() == flags


def test_the_precision_of_an_attack_is_chosen_by_the_device() -> None:
    assert [attack_precision(None, device) for device in ("cpu", "cuda")] == ["float32", "tf32"]
    assert attack_precision("float32", "cuda") == "float32"
    with pytest.raises(ValueError, match="precision must be one of"):
        attack_precision("bf16", "cuda")  # type: ignore[arg-type]
