"""Ranks: the same global batches for any number of them (resident), every sample once over all of them (streaming)."""

import numpy as np
import pytest
import torch
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from fdt_pipeline import FDT, CutMix, FDTLoader, MixUp, OneOf
from fdt_pipeline.shards import write_shards
from fdt_pipeline.sources import ArraySource
from tests.loading import LEADER_FIRST, MODES, PIXELS, assert_same, global_batches, joined, numbers_of, ranks
from tests.native_stand_in import PATIENCE, start
from tests.numbered import LABELS, NUM_SAMPLES, numbered_images

LAST = ("drop", "partial", "fill")
# 9 whole global batches of 24 and 14 samples more, of which 8 ranks have one each at least.
GLOBAL = 24
MIXINGS = {
    "fdt": FDT(),
    "none": None,
    "anchor": FDT(anchor="epoch", min_images=2, probability=0.8),
    "one of": OneOf([(MixUp(0.8), 0.5), (CutMix(1.0, label_smoothing=0.1), 0.4), (None, 0.1)]),
}

# A rank's part of 230 samples in 7 classes is a small window.
pytestmark = [pytest.mark.filterwarnings("ignore:.*classes:UserWarning"), pytest.mark.dali]


@pytest.fixture(scope="module")
def sets_of_shards(numbered_shards, tmp_path_factory):
    """N -> folder of the first N numbered images."""
    folders = {NUM_SAMPLES: numbered_shards}
    for n in (9, 24, 61):
        folders[n] = tmp_path_factory.mktemp("sets") / str(n)
        write_shards(ArraySource(numbered_images(n), LABELS[:n]), folders[n], samples_per_shard=20)
    return folders


RUNS = [("native", fdt, last_batch) for fdt in MIXINGS for last_batch in LAST]


@pytest.mark.parametrize(
    ("engine", "fdt", "last_batch"),
    [*RUNS, ("torch", "fdt", "partial"), ("torch", "anchor", "fill"), ("torch", "one of", "partial")],
)
def test_resident_global_batches_are_the_same_for_any_number_of_ranks(numbered_shards, engine, fdt, last_batch):
    """What fills up the last one is the epoch's first outputs."""
    options = {"mode": "resident", "engine": engine, "mix": MIXINGS[fdt], "last_batch": last_batch, "seed": 3}
    [alone] = ranks(numbered_shards, GLOBAL, 1, num_threads=1, prefetch=0, **options)
    expected = [list(alone) for _ in range(2)]
    assert len(expected[0]) == NUM_SAMPLES // GLOBAL + (last_batch != "drop")
    if last_batch == "fill":
        for first, last in zip(expected[1][0], expected[1][-1], strict=True):
            assert torch.equal(last[NUM_SAMPLES % GLOBAL :], first[: GLOBAL - NUM_SAMPLES % GLOBAL])
    for world_size, num_threads, prefetch in ((2, 4, 3), (4, 1, 1), (8, 2, 2)):
        running = {"num_threads": num_threads, "prefetch": prefetch}
        loaders = ranks(numbered_shards, GLOBAL, world_size, **options, **running)
        for epoch in expected:
            assert_same(global_batches(loaders), epoch)


@pytest.mark.parametrize("world_size", [1, 3])
@pytest.mark.parametrize("fdt", MIXINGS.values(), ids=MIXINGS)
def test_streaming_repeats_itself_for_one_number_of_ranks(numbered_shards, world_size, fdt):
    options = {"mode": "streaming", "mix": fdt, "seed": 3, "ring": 50}
    first = ranks(numbered_shards, GLOBAL, world_size, num_threads=1, prefetch=0, **options)
    second = ranks(numbered_shards, GLOBAL, world_size, num_threads=3, prefetch=3, **options)
    for _ in range(2):
        assert_same(global_batches(first), global_batches(second))


@pytest.mark.parametrize("world_size", [1, 2, 4, 5, 7, 8])
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("last_batch", LAST)
@pytest.mark.parametrize("fdt", [None, LEADER_FIRST])
def test_plain_training_shows_every_sample_once_over_all_ranks(numbered_shards, mode, world_size, last_batch, fdt):
    """And with FDT, every sample leads one sum."""
    options = {"mix": fdt, "augment": None, "mode": mode, "last_batch": last_batch, "weights": True, **PIXELS}
    total = 3 * world_size
    if last_batch == "partial" and 0 < NUM_SAMPLES % total < world_size:
        with pytest.raises(ValueError, match="last_batch"):
            ranks(numbered_shards, total, world_size, **options)
        return
    images, targets, weights = joined(global_batches(ranks(numbered_shards, total, world_size, **options)))
    numbers = numbers_of([(images,)])
    whole = NUM_SAMPLES // total * total
    shown = numbers[weights.numpy() == 1]
    assert len(set(shown)) == len(shown) == (whole if last_batch == "drop" else NUM_SAMPLES)
    assert len(numbers) == {"drop": whole, "partial": NUM_SAMPLES, "fill": -(-NUM_SAMPLES // total) * total}[last_batch]
    assert set(weights.tolist()) <= {0.0, 1.0}
    assert torch.equal(targets.argmax(1), torch.from_numpy(LABELS[numbers]))
    assert ((targets > 0).sum(1) >= (2 if fdt else 1)).all()


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
@pytest.mark.parametrize(
    ("n", "batch_size", "world_size"), [(NUM_SAMPLES, 7, 1), (NUM_SAMPLES, 7, 3), (NUM_SAMPLES, 2, 8), (24, 5, 16)]
)
def test_evaluation_counts_every_sample_once_by_its_weight(sets_of_shards, mode, n, batch_size, world_size):
    """Also where a rank has no sample of the last batch, and where one batch takes the whole set again and again."""
    options = {"train": False, "mode": mode, "last_batch": "fill", "weights": True, **PIXELS}
    loaders = ranks(sets_of_shards[n], batch_size * world_size, world_size, **options)
    images, labels, weights = joined(global_batches(loaders))
    numbers = numbers_of([(images,)])
    assert np.array_equal(np.bincount(numbers, weights.numpy(), n), np.ones(n))
    assert torch.equal(labels, torch.from_numpy(LABELS[numbers]))
    assert weights.dtype == torch.float32
    assert len(weights) == batch_size * world_size * len(loaders[0])


TORCHRUN = {"RANK": "1", "WORLD_SIZE": "3"}


LAUNCHED = (
    "SLURM_PROCID", "SLURM_NTASKS", "SLURM_STEP_NUM_TASKS", "OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE", "PMI_RANK",
    "PMI_SIZE",
)  # fmt: skip


def set_environment(monkeypatch, environment):
    for name in ("RANK", "WORLD_SIZE", *LAUNCHED):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)


@pytest.mark.parametrize(
    ("environment", "options", "expected"),
    [
        ({}, {}, (0, 1, 5)),
        (TORCHRUN, {}, (1, 3, 15)),
        (TORCHRUN, {"rank": 2, "world_size": 4}, (2, 4, 20)),
        (TORCHRUN, {"rank": 0, "world_size": 1}, (0, 1, 5)),
    ],
)
def test_ranks_are_the_arguments_else_torchruns_else_one(numbered_shards, monkeypatch, environment, options, expected):
    set_environment(monkeypatch, environment)
    loader = FDTLoader(numbered_shards, 5, mix=None, **options)
    set_environment(monkeypatch, {"RANK": "2", "WORLD_SIZE": "3"})  # later, which changes nothing
    assert (loader.rank, loader.world_size, loader.global_batch_size) == expected
    same = FDTLoader(numbered_shards, 5, mix=None, rank=expected[0], world_size=expected[1])
    assert_same(list(loader), list(same))


@pytest.mark.parametrize(
    ("environment", "options", "match"),
    [
        ({}, {"rank": 0}, "world_size"),
        ({}, {"world_size": 2}, "rank"),
        ({}, {"rank": 2, "world_size": 2}, "rank"),
        ({}, {"rank": -1, "world_size": 2}, "rank"),
        ({}, {"rank": 0, "world_size": 0}, "world_size"),
        ({}, {"rank": 0.5, "world_size": 2}, "rank"),
        ({}, {"rank": 0, "world_size": 231, "last_batch": "fill"}, "230 samples are too few for 231 ranks"),
        ({"RANK": "1"}, {}, "RANK=1"),
        ({"WORLD_SIZE": "2"}, {}, "WORLD_SIZE=2"),
        ({"RANK": "2", "WORLD_SIZE": "2"}, {}, "RANK=2 and WORLD_SIZE=2"),
        ({"RANK": "one", "WORLD_SIZE": "2"}, {}, "RANK=one"),
    ],
)
def test_wrong_ranks_are_refused(numbered_shards, monkeypatch, environment, options, match):
    set_environment(monkeypatch, environment)
    with pytest.raises(ValueError, match=match):
        FDTLoader(numbered_shards, 5, **options)


def begin_group(monkeypatch, rank, world_size):
    """torch.distributed says that it is initialized."""
    for name, value in (("is_initialized", True), ("get_rank", rank), ("get_world_size", world_size)):
        monkeypatch.setattr(torch.distributed, name, lambda value=value: value)


@pytest.mark.parametrize("environment", [{}, {"SLURM_PROCID": "1"}, TORCHRUN])
def test_a_loader_that_is_older_than_other_ranks_of_the_process_group_cannot_be_iterated(
    numbered_shards, monkeypatch, environment
):
    """As one is that was built before Fabric launched: every process would see the same data."""
    set_environment(monkeypatch, environment)
    loader = FDTLoader(numbered_shards, 5)
    iter(loader)
    begin_group(monkeypatch, 1, 2)
    message = f"for rank {loader.rank} of {loader.world_size}, and torch.distributed says rank 1 of 2: build it after"
    with pytest.raises(RuntimeError, match=message):
        iter(loader)
    assert next(iter(FDTLoader(numbered_shards, 5, mix=None, rank=0, world_size=1)))[0].shape[0] == 5, "as it was asked"
    later = FDTLoader(numbered_shards, 5)
    assert (later.rank, later.world_size) == (1, 2)
    next(iter(later))


SLURM = {"SLURM_PROCID": "3", "SLURM_NTASKS": "4"}


@pytest.mark.parametrize(
    ("environment", "size"),
    [
        (SLURM, 4),
        (SLURM | {"RANK": "0"}, 4),
        (SLURM | {"SLURM_STEP_NUM_TASKS": "2"}, 2),
        (SLURM | {"SLURM_STEP_NUM_TASKS": "1"}, None),
        ({"SLURM_PROCID": "0", "SLURM_NTASKS": "1"}, None),
        ({"SLURM_NTASKS": "4"}, None),
        (SLURM | TORCHRUN, None),
        ({"OMPI_COMM_WORLD_RANK": "1", "OMPI_COMM_WORLD_SIZE": "2"}, 2),
        ({"PMI_RANK": "1", "PMI_SIZE": "2"}, 2),
        (SLURM | {"PMI_RANK": "3", "PMI_SIZE": "4"}, 4),  # srun with MPICH says both: one warning
    ],
)
def test_tasks_of_a_launcher_without_a_rank_are_warned_of(numbered_shards, monkeypatch, environment, size):
    """A warning that is not expected is an error."""
    set_environment(monkeypatch, environment)
    if size is None:
        FDTLoader(numbered_shards, 5)
        return
    advice = rf"says that there are {size} tasks, .* all of the data: .* pass rank=int\(os.environ.*world_size={size} "
    with pytest.warns(UserWarning, match=advice) as caught:
        FDTLoader(numbered_shards, 5)
    assert [one.filename for one in caught] == [__file__]
    FDTLoader(numbered_shards, 5, rank=0, world_size=1)


GROUP = """
import torch.distributed as dist
from fdt_pipeline import FDTLoader
from tests.loading import PIXELS, numbers_of
dist.init_process_group("gloo", init_method="file://" + store, rank=rank, world_size=2)
loader = FDTLoader(shards, 16, mix=None, augment=None, **PIXELS)
found = [None, None]
dist.all_gather_object(found, (loader.rank, loader.world_size, len(loader), numbers_of(list(loader)).tolist()))
if rank == 0:
    print(found)
dist.barrier()  # or a thread of gloo may still free a tensor when Python ends, which aborts the process
dist.destroy_process_group()
"""


def test_ranks_are_those_of_the_process_group(numbered_shards, tmp_path):
    """Though the environment says something else."""
    code = f"shards, store = {str(numbered_shards)!r}, {str(tmp_path / 'store')!r}\n{GROUP}"
    group = [start(f"rank = {rank}\n{code}", RANK=5, WORLD_SIZE=7, OMP_NUM_THREADS=1) for rank in range(2)]
    try:
        printed, _ = (process.communicate(timeout=PATIENCE)[0] for process in group)
    finally:
        for process in group:
            process.kill()
    found = eval(printed)
    assert [(rank, world_size, length) for rank, world_size, length, _ in found] == [(0, 2, 8), (1, 2, 8)]
    assert sorted(found[0][3] + found[1][3]) == list(range(NUM_SAMPLES))
