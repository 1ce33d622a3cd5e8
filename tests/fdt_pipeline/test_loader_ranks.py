"""Ranks: the same global batches for any number of them (resident), every sample once over all of them (streaming)."""

import os
import subprocess
import sys

import numpy as np
import pytest
import torch
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from fdt_pipeline import FDT, Augment, FDTLoader, Geometric
from fdt_pipeline.definition.plans import batch_targets, draw_plans
from fdt_pipeline.definition.superposition import Pool, epoch_order, superpose_images
from fdt_pipeline.shards import load_shards, write_shards
from fdt_pipeline.sources import ArraySource
from tests.loading import PIXELS, assert_same, global_batches, joined, numbers_of, ranks
from tests.numbered import LABELS, NUM_SAMPLES, numbered_images

MODES = ("resident", "streaming")
LAST = ("drop", "partial", "fill")
# 9 whole global batches of 24 and 14 samples more, of which 8 ranks have one each at least.
GLOBAL = 24
LEADER_FIRST = FDT(min_images=2, series=Geometric(1e-4), anchor="epoch")  # as good as whole, so it can be told
MIXINGS = {"fdt": FDT(), "none": None, "anchor": FDT(anchor="epoch", min_images=2, probability=0.8)}

# A rank's part of 230 samples in 7 classes is a small window.
pytestmark = [pytest.mark.filterwarnings("ignore:.*classes:UserWarning"), pytest.mark.dali]


@pytest.fixture(scope="module")
def sets_of_shards(tmp_path_factory):
    """N -> folder of the first N numbered images."""
    folders = {}
    for n in (9, 24, 61):
        folders[n] = tmp_path_factory.mktemp("sets") / str(n)
        write_shards(ArraySource(numbered_images(n), LABELS[:n]), folders[n], samples_per_shard=20)
    return folders


RUNS = [("native", fdt, last_batch) for fdt in MIXINGS for last_batch in LAST]


@pytest.mark.parametrize(
    ("engine", "fdt", "last_batch"), [*RUNS, ("torch", "fdt", "partial"), ("torch", "anchor", "fill")]
)
def test_resident_global_batches_are_the_same_for_any_number_of_ranks(numbered_shards, engine, fdt, last_batch):
    options = {"mode": "resident", "engine": engine, "mix": MIXINGS[fdt], "last_batch": last_batch, "seed": 3}
    [alone] = ranks(numbered_shards, GLOBAL, 1, num_threads=1, prefetch=0, **options)
    expected = [global_batches([alone]) for _ in range(2)]
    assert len(expected[0]) == NUM_SAMPLES // GLOBAL + (last_batch != "drop")
    for world_size, num_threads, prefetch in ((2, 4, 3), (4, 1, 1), (8, 2, 2)):
        running = {"num_threads": num_threads, "prefetch": prefetch}
        loaders = ranks(numbered_shards, GLOBAL, world_size, **options, **running)
        for epoch in expected:
            assert_same(global_batches(loaders), epoch)


@pytest.mark.parametrize("last_batch", LAST)
@pytest.mark.parametrize("anchor", ["random", "epoch"])
def test_resident_global_batches_have_the_plans_of_their_outputs(numbered_shards, anchor, last_batch):
    """Output i of the epoch is number i - gB of global batch g; what fills up the last one is the epoch's first."""
    fdt, augment, epoch = FDT(anchor=anchor), Augment(pad=2), 5
    loaders = ranks(numbered_shards, GLOBAL, 2, mode="resident", mix=fdt, augment=augment, last_batch=last_batch,
                    seed=7, **PIXELS)  # fmt: skip
    for loader in loaders:
        loader.set_epoch(epoch)
    images, labels, _ = load_shards(numbered_shards)
    order = epoch_order(7, epoch, NUM_SAMPLES)
    end = {"drop": NUM_SAMPLES // GLOBAL * GLOBAL, "partial": NUM_SAMPLES, "fill": -(-NUM_SAMPLES // GLOBAL) * GLOBAL}
    outputs = np.arange(end[last_batch]) % NUM_SAMPLES
    leaders = order[outputs] if anchor == "epoch" else None
    plans = draw_plans(7, epoch, outputs, Pool(labels, 7), fdt, augment, leaders)
    mixed, targets = joined(global_batches(loaders))
    assert np.array_equal(targets.numpy(), batch_targets(plans, 7))
    for i in (*range(0, len(outputs), 29), len(outputs) - 1):
        expected = superpose_images(plans[i], images, 2).transpose(2, 0, 1)
        assert np.abs(mixed[i].numpy() - expected).max() < 2e-6 * 256


@pytest.mark.parametrize("world_size", [1, 3])
@pytest.mark.parametrize("fdt", MIXINGS.values(), ids=MIXINGS)
def test_streaming_repeats_itself_for_one_number_of_ranks(numbered_shards, world_size, fdt):
    options = {"mode": "streaming", "mix": fdt, "seed": 3, "mix_window": 50}
    first = ranks(numbered_shards, GLOBAL, world_size, num_threads=1, prefetch=0, **options)
    second = ranks(numbered_shards, GLOBAL, world_size, num_threads=3, prefetch=3, **options)
    for _ in range(2):
        assert_same(global_batches(first), global_batches(second))


@pytest.mark.parametrize("world_size", range(1, 9))
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("last_batch", ["partial", "fill"])
def test_plain_training_shows_every_sample_once_over_all_ranks(numbered_shards, mode, world_size, last_batch):
    options = {"mix": None, "augment": None, "mode": mode, "last_batch": last_batch, "weights": True, **PIXELS}
    batch_size = 3
    total = batch_size * world_size
    if last_batch == "partial" and 0 < NUM_SAMPLES % total < world_size:
        with pytest.raises(ValueError, match="last_batch"):
            ranks(numbered_shards, total, world_size, **options)
        return
    images, targets, weights = joined(global_batches(ranks(numbered_shards, total, world_size, **options)))
    numbers = numbers_of([(images,)])
    assert sorted(numbers[weights.numpy() == 1]) == list(range(NUM_SAMPLES))
    assert set(weights.tolist()) <= {0.0, 1.0}
    assert torch.equal(targets.argmax(1), torch.from_numpy(LABELS[numbers]))
    assert len(numbers) == (NUM_SAMPLES if last_batch == "partial" else -(-NUM_SAMPLES // total) * total)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("world_size", [1, 2, 5])
def test_dropping_the_last_batch_leaves_whole_batches_of_different_samples(numbered_shards, mode, world_size):
    options = {"mix": None, "augment": None, "mode": mode, "last_batch": "drop", **PIXELS}
    found = global_batches(ranks(numbered_shards, 20, world_size, **options))
    assert [len(targets) for _, targets in found] == [20] * 11
    assert len(set(numbers_of(found))) == 220


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("world_size", [1, 4, 7])
def test_each_sample_leads_one_sum_over_all_ranks(numbered_shards, mode, world_size):
    options = {"mix": LEADER_FIRST, "augment": None, "mode": mode, **PIXELS}
    found = global_batches(ranks(numbered_shards, 5 * world_size, world_size, **options))
    targets = joined(found)[1]
    assert sorted(numbers_of(found)) == list(range(NUM_SAMPLES))
    assert ((targets > 0).sum(1) >= 2).all()


@pytest.mark.parametrize("mode", MODES)
@settings(max_examples=12, deadline=None, derandomize=True, phases=[Phase.generate])
@given(
    n=st.sampled_from([9, 24, 61]),
    world_size=st.integers(1, 5),
    batch_size=st.integers(1, 9),
    last_batch=st.sampled_from(LAST),
    train=st.booleans(),
)
def test_every_rank_has_as_many_batches_and_shares_of_one_size(
    sets_of_shards, mode, n, world_size, batch_size, last_batch, train
):
    total = batch_size * world_size
    rest = n % total
    options = {"mode": mode, "train": train, "last_batch": last_batch, **({"mix": None} if train else {})}
    refused = n < total if last_batch == "drop" else last_batch == "partial" and 0 < rest < world_size
    if refused:
        with pytest.raises(ValueError, match="last_batch"):
            ranks(sets_of_shards[n], total, world_size, **options)
        return
    loaders = ranks(sets_of_shards[n], total, world_size, **options)
    sizes = np.array([[len(batch[1]) for batch in loader] for loader in loaders])
    whole = n // total + (last_batch == "fill" and rest > 0)
    assert (sizes[:, :whole] == batch_size).all()
    assert {len(loader) for loader in loaders} == {sizes.shape[1]}
    assert sizes.shape[1] == whole + (last_batch == "partial" and rest > 0)
    if sizes.shape[1] > whole:
        assert sizes[:, whole].sum() == rest
        assert np.ptp(sizes[:, whole]) <= 1


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("world_size", range(1, 9))
def test_evaluation_counts_every_sample_once_by_its_weight(numbered_shards, mode, world_size):
    options = {"train": False, "mode": mode, "last_batch": "fill", "weights": True, **PIXELS}
    loaders = ranks(numbered_shards, 7 * world_size, world_size, **options)
    images, labels, weights = joined(global_batches(loaders))
    numbers = numbers_of([(images,)])
    assert np.array_equal(np.bincount(numbers, weights.numpy(), NUM_SAMPLES), np.ones(NUM_SAMPLES))
    assert torch.equal(labels, torch.from_numpy(LABELS[numbers]))
    assert weights.dtype == torch.float32
    assert len(weights) == 7 * world_size * len(loaders[0])


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("train", [True, False])
def test_a_set_smaller_than_a_batch_is_shown_again_and_again_to_fill_it(sets_of_shards, mode, train):
    """24 samples in a batch of 16 x 5."""
    options = {"train": train, "mode": mode, "last_batch": "fill", "weights": True, **PIXELS}
    options |= {"mix": None, "augment": None} if train else {}
    [(images, _, weights)] = global_batches(ranks(sets_of_shards[24], 80, 16, **options))
    assert len(weights) == 80
    assert np.array_equal(np.bincount(numbers_of([(images,)]), weights.numpy(), 24), np.ones(24))


def test_more_ranks_than_samples_are_refused(sets_of_shards):
    with pytest.raises(ValueError, match="9 samples are too few for 10 ranks"):
        FDTLoader(sets_of_shards[9], 1, train=False, last_batch="fill", rank=0, world_size=10)


@pytest.mark.parametrize("mode", MODES)
def test_a_rank_makes_no_outputs_of_the_others(numbered_shards, mode):
    """What it has made by the end of an epoch is its part."""
    loaders = ranks(numbered_shards, 20, 2, mode=mode, mix=None)
    for loader in loaders:
        made = sum(len(batch[1]) for batch in loader)
        assert loader.stats.images == made
        assert made in (110, 115, 120)


def test_ranks_are_those_of_the_arguments(numbered_shards, monkeypatch):
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "3")
    loader = FDTLoader(numbered_shards, 5, rank=2, world_size=4)
    assert (loader.rank, loader.world_size, loader.global_batch_size) == (2, 4, 20)


def test_ranks_are_those_of_torchrun(numbered_shards, monkeypatch):
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "3")
    loader = FDTLoader(numbered_shards, 5)
    monkeypatch.setenv("RANK", "2")
    assert (loader.rank, loader.world_size, loader.global_batch_size) == (1, 3, 15)
    assert_same(list(loader), list(FDTLoader(numbered_shards, 5, rank=1, world_size=3)))


def test_one_process_alone_is_rank_0_of_1(numbered_shards, monkeypatch):
    monkeypatch.delenv("RANK", raising=False)
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    loader = FDTLoader(numbered_shards, 5)
    assert (loader.rank, loader.world_size, loader.global_batch_size) == (0, 1, 5)


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"rank": 0}, "world_size"),
        ({"world_size": 2}, "rank"),
        ({"rank": 2, "world_size": 2}, "rank"),
        ({"rank": -1, "world_size": 2}, "rank"),
        ({"rank": 0, "world_size": 0}, "world_size"),
        ({"rank": 0.5, "world_size": 2}, "rank"),
        ({"rank": 0, "world_size": 2.5}, "world_size"),
    ],
)
def test_wrong_ranks_are_refused(numbered_shards, options, match):
    with pytest.raises(ValueError, match=match):
        FDTLoader(numbered_shards, **{"batch_size": 5, **options})


@pytest.mark.parametrize(
    "environment",
    [
        {"RANK": "1"},
        {"WORLD_SIZE": "2"},
        {"RANK": "2", "WORLD_SIZE": "2"},
        {"RANK": "one", "WORLD_SIZE": "2"},
        {"RANK": "0", "WORLD_SIZE": "0"},
    ],
)
def test_a_wrong_environment_is_refused(numbered_shards, monkeypatch, environment):
    for name in ("RANK", "WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(ValueError, match=r"RANK|WORLD_SIZE"):
        FDTLoader(numbered_shards, 5)


GROUP = """
import sys
import torch.distributed as dist
from fdt_pipeline import FDTLoader
from tests.loading import PIXELS, numbers_of
shards, store, rank = sys.argv[1:]
dist.init_process_group("gloo", init_method="file://" + store, rank=int(rank), world_size=2)
loader = FDTLoader(shards, 16, mix=None, augment=None, **PIXELS)
found = [None, None]
dist.all_gather_object(found, (loader.rank, loader.world_size, len(loader), numbers_of(list(loader)).tolist()))
if rank == "0":
    print(found)
dist.destroy_process_group()
"""


def test_ranks_are_those_of_the_process_group(numbered_shards, tmp_path):
    """Though the environment says something else."""
    environment = {**os.environ, "RANK": "5", "WORLD_SIZE": "7", "OMP_NUM_THREADS": "1"}
    arguments = [sys.executable, "-c", GROUP, str(numbered_shards), str(tmp_path / "store")]
    group = [
        subprocess.Popen([*arguments, rank], stdout=subprocess.PIPE, text=True, env=environment) for rank in ("0", "1")
    ]
    try:
        said = [process.communicate(timeout=90)[0] for process in group]
    finally:
        for process in group:
            process.kill()
    found = eval(said[0])
    assert [(rank, world_size, length) for rank, world_size, length, _ in found] == [(0, 2, 8), (1, 2, 8)]
    assert sorted(found[0][3] + found[1][3]) == list(range(NUM_SAMPLES))
