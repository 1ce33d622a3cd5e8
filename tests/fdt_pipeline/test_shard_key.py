"""Names of samples in their shards."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fdt_pipeline.shards.key import needs_mapping, sample_key, source_key_of


@pytest.mark.parametrize(
    ("position", "source_key", "expected"),
    [
        (12, "12", "00000012"),
        (12, "", "00000012"),
        (12, "7", "00000012_7"),
        (3, "cat/a b.png", "00000003_cat%2Fa%20b%2Epng"),
        (3, "Größe-1", "00000003_Gr%C3%B6%C3%9Fe-1"),
        (123456789, "x", "123456789_x"),
        (3, "a~b", "00000003_a%7Eb"),
        (0, "a" * 50 + "b" * 50, "00000000_" + "a" * 21 + "b" * 50),
        (0, "." + "b" * 69, "00000000_" + "b" * 69),
        (0, "." + "b" * 68, "00000000_%2E" + "b" * 68),
    ],
)
def test_the_rule(position: int, source_key: str, expected: str) -> None:
    assert sample_key(position, source_key) == expected


@given(st.integers(0, 10**9), st.text())
def test_keys_are_short_and_plain(position: int, source_key: str) -> None:
    assert re.fullmatch(r"\d{8,}(_([A-Za-z0-9_-]|%[0-9A-F]{2})*)?", sample_key(position, source_key))
    assert len(sample_key(position, source_key)) <= 80


@given(st.text(), st.text(), st.integers(0, 10**9), st.integers(0, 10**9))
def test_other_positions_have_other_keys(first: str, second: str, i: int, j: int) -> None:
    if i != j:
        assert sample_key(i, first) != sample_key(j, second)


@given(st.integers(0, 10**9), st.text(st.characters(exclude_categories=["Cs"]), max_size=6))
def test_the_source_key_can_be_read_off_a_key_that_was_not_cut(position: int, source_key: str) -> None:
    if source_key not in ("", str(position)):
        assert source_key_of(sample_key(position, source_key)) == source_key


@pytest.mark.parametrize(
    ("source_key", "expected"),
    [
        ("cat/IMG_1.JPG", False),
        ("12", False),
        ("", False),
        ("cat/a.b.jpg", True),
        ("cat/a b.jpg", True),
        ("Größe", True),
        ("a" * 300, True),
        ("\udcff.jpg", True),
    ],
)
def test_the_manifest_maps_keys_that_were_cut_or_hold_odd_characters(source_key: str, expected: bool) -> None:
    assert needs_mapping(sample_key(12, source_key), source_key) is expected
