"""The order of a streaming epoch, over ranks and legs."""

import numpy as np
from hypothesis import given, reject, settings
from hypothesis import strategies as st

from fdt_pipeline.loader.order import Batching, Leg, Ranks, epoch_order


class Set:
    """As much of a manifest as an order needs."""

    num_samples = 230
    shards = tuple(type("Shard", (), {"name": f"s{i}", "num_samples": n})() for i, n in enumerate((60, 60, 60, 50)))


EPOCHS, SEEDS = st.integers(0, 2**32 - 1), st.integers(0, 2**64 - 1)


@given(EPOCHS, st.integers(1, 300), SEEDS)
def test_samples_move_less_than_the_shuffle_within_shards_of_a_new_order(epoch, shuffle, seed):
    order = epoch_order(Set, seed, epoch, shuffle)
    assert sorted(order.samples.tolist()) == list(range(230))
    assert np.abs(order.samples - np.arange(230)).max() < shuffle
    assert set(order.shards) == set(Set.shards)


@settings(deadline=None)
@given(EPOCHS, st.integers(0, 300), st.integers(1, 9), SEEDS)
def test_ranks_share_every_sample_out_evenly(epoch, shuffle, world_size, seed):
    orders = [epoch_order(Set, seed, epoch, shuffle, rank, world_size) for rank in range(world_size)]
    assert sorted(np.concatenate([order.samples for order in orders])) == list(range(230))
    sizes = [len(order.samples) for order in orders]
    assert max(sizes) - min(sizes) <= 1
    assert [order.first for order in orders] == np.cumsum([0, *sizes[:-1]]).tolist()
    for order in orders:  # contiguous parts of the stream, so that a rank reads but its own shards
        assert np.ptp(order.samples) == len(order.samples) - 1


@settings(max_examples=60, deadline=None)
@given(st.data(), EPOCHS, st.sampled_from([0, 20, 70]))
def test_legs_of_any_number_of_ranks_show_every_sample_once_with_numbers_of_its_own(data, epoch, shuffle):
    legs, seen, numbers, left = [], [], [], 230
    while left >= 24 and len(legs) < 4:
        world_size = data.draw(st.sampled_from([1, 2, 3, 4, 6]))
        batches = data.draw(st.integers(0, left // 24))
        for rank in range(world_size):
            order = epoch_order(Set, 5, epoch, shuffle, rank, world_size, legs)
            taken = order.samples[: batches * 24 // world_size]
            seen.extend(taken.tolist())
            numbers.extend(range(order.first, order.first + len(taken)))
        legs.append(Leg(world_size, 24 // world_size, shuffle, batches))
        left -= 24 * batches
    last = epoch_order(Set, 5, epoch, shuffle, 0, 1, legs)
    seen.extend(last.samples.tolist())
    numbers.extend(range(last.first, last.first + len(last.samples)))
    assert sorted(seen) == list(range(230))
    assert len(set(numbers)) == 230


@given(
    st.integers(1, 400), st.integers(1, 50), st.sampled_from([1, 2, 3]), st.sampled_from(["partial", "drop", "fill"]),
    st.integers(1, 16), st.data(),
)  # fmt: skip
def test_batches_that_are_made_together_are_all_there_are_in_order_of_one_size_and_evenly_many(
    total, size, world_size, last_batch, most, data
):
    try:
        batching = Batching(total, size, last_batch, Ranks(world_size - 1, world_size))
    except ValueError:
        reject()
    first = data.draw(st.integers(0, batching.num_batches - 1))
    groups = list(batching.groups(first, most))
    assert [span for group in groups for span in group] == [
        batching.span(batch) for batch in range(first, batching.num_batches)
    ]
    assert all(len({span.size for span in group}) == 1 for group in groups)
    full = [len(group) for group in groups if group[0].size == size]
    assert not full or (max(full) <= most and max(full) - min(full) <= 1)
    assert len(full) == -(-sum(full) // most)
