"""Inside the block float32 is float32; outside, everything is as it was."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch

from train.full_float32 import full_float32

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
