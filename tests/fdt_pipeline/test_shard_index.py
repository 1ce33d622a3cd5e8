"""DALI's index of a tar."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fdt_pipeline.shards.index import Member, index_text, parse_index

WORDS = st.from_regex(r"[a-z0-9_.]+", fullmatch=True)
MEMBERS = st.builds(Member, WORDS, st.integers(0), st.integers(0), WORDS)


def test_a_line_a_sample_and_four_words_a_member() -> None:
    samples = [[Member("npy", 512, 200, "0.npy"), Member("cls", 1536, 1, "0.cls")], [Member("cls", 2560, 1, "1.cls")]]
    assert index_text(samples) == "v1.2 2\nnpy 512 200 0.npy cls 1536 1 0.cls\ncls 2560 1 1.cls\n"


@given(st.lists(st.lists(MEMBERS, min_size=1, max_size=3), max_size=5))
def test_parsing_inverts_writing(samples: list[list[Member]]) -> None:
    assert parse_index(index_text(samples)) == samples


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "expected 'v1.2' and the number of lines"),
        ("v1.1 1\ncls 512 1 0.cls\n", "expected 'v1.2' and the number of lines that follow, got 'v1.1 1', 1"),
        ("v1.2 2\ncls 512 1 0.cls\n", "expected 'v1.2' and the number of lines that follow, got 'v1.2 2', 1"),
        ("v1.2 1\ncls 512 1 0.cls", "expected 'v1.2'"),
        ("v1.2 1\ncls 512 1\n", "expected EXTENSION OFFSET SIZE NAME for each member, got 'cls 512 1'"),
        ("v1.2 1\ncls x 1 0.cls\n", "invalid literal"),
    ],
)
def test_anything_else_is_refused(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        parse_index(text)
