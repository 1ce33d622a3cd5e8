"""Names of samples in their shards."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fdt_pipeline.shards.key import sample_key


@pytest.mark.parametrize(
    ("position", "source_key", "expected"),
    [
        (12, "12", "00000012"),
        (12, "", "00000012"),
        (12, "7", "00000012_7"),
        (3, "cat/a b.png", "00000003_cat_a_b_png"),
        (3, "Größe-1", "00000003_Gr__e-1"),
        (123456789, "x", "123456789_x"),
        (0, "a" * 50 + "b" * 50, "00000000_" + "a" * 21 + "b" * 50),
    ],
)
def test_the_rule(position: int, source_key: str, expected: str) -> None:
    assert sample_key(position, source_key) == expected


@given(st.integers(0, 10**9), st.text())
def test_keys_are_short_and_plain(position: int, source_key: str) -> None:
    assert re.fullmatch(r"\d{8,}[A-Za-z0-9_-]*", sample_key(position, source_key))
    assert len(sample_key(position, source_key)) <= 80


@given(st.text(), st.text(), st.integers(0, 10**9), st.integers(0, 10**9))
def test_other_positions_have_other_keys(first: str, second: str, i: int, j: int) -> None:
    if i != j:
        assert sample_key(i, first) != sample_key(j, second)
