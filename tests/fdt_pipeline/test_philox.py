import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fdt_pipeline.definition.philox import Stream, bounded32, bounded64, permutation, philox4x32, random_words

# Published known-answer vectors of Random123 (kat_vectors, "philox 4x32 10").
KNOWN_ANSWERS = [
    ([0, 0, 0, 0], [0, 0], [0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8]),
    ([0xFFFFFFFF] * 4, [0xFFFFFFFF] * 2, [0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD]),
    (
        [0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344],
        [0xA4093822, 0x299F31D0],
        [0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1],
    ),
]


def test_philox_gives_the_published_vectors_all_at_once():
    counters = np.array([counter for counter, _, _ in KNOWN_ANSWERS])
    keys = np.array([key for _, key, _ in KNOWN_ANSWERS])
    assert philox4x32(counters, keys).tolist() == [expected for _, _, expected in KNOWN_ANSWERS]


@given(
    st.integers(0, 2**64 - 1), st.sampled_from(Stream), st.integers(0, 2**32 - 1), st.integers(0, 2**32 - 1),
    st.integers(0, 2**32 - 1),
)  # fmt: skip
def test_every_part_of_the_address_reaches_the_generator(seed, stream, epoch, index, block):
    expected = philox4x32([block, index, epoch, int(stream)], [seed % 2**32, seed >> 32])
    assert (random_words(seed, stream, epoch, index, block) == expected).all()


@given(st.integers(0, 2**32 - 1), st.integers(0, 2**32 - 1), st.integers(1, 2**32 - 1))
def test_bounded_numbers_are_the_exact_products(high, low, bound):
    assert bounded64(high, low, bound) == ((high * 2**32 + low) * bound) >> 64
    if bound <= 2**31:
        assert bounded32(low, bound) == (low * bound) >> 32


@given(st.integers(0, 2**64 - 1), st.integers(0, 300))
def test_permutation_holds_every_index_once(seed, n):
    assert sorted(permutation(seed, Stream.EPOCH_ORDER, 0, n)) == list(range(n))


def test_permutations_of_three_are_equally_likely():
    counts = {}
    for epoch in range(3000):
        order = tuple(permutation(3, Stream.EPOCH_ORDER, epoch, 3))
        counts[order] = counts.get(order, 0) + 1
    assert len(counts) == 6
    chi_square = sum((count - 500) ** 2 / 500 for count in counts.values())
    assert chi_square < 20.5  # 5 degrees of freedom, p = 0.001


@pytest.mark.parametrize(
    ("seed", "epoch", "index", "match"),
    [(-1, 0, 0, "seed"), (2**64, 0, 0, "seed"), (0, -1, 0, "epoch"), (0, 2**32, 0, "epoch"), (0, 0, 2**32, "index")],
)
def test_an_address_out_of_range_is_refused(seed, epoch, index, match):
    with pytest.raises(ValueError, match=match):
        random_words(seed, Stream.PLAN, epoch, index, 0)
