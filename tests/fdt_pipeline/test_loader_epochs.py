"""Epochs that follow each other share a pipeline, which works ahead; any other epoch is what a new loader gives."""

import gc
import os
import time
import weakref
from itertools import cycle, islice

import fsspec
import pytest
import torch

from fdt_pipeline import FDTLoader
from fdt_pipeline.loader import engines, epoch
from fdt_pipeline.loader.loader import _drop as drop
from fdt_pipeline.loader.running import DaliOptions
from fdt_pipeline.native.pool import NativePool
from fdt_pipeline.shards import read_manifest
from fdt_pipeline.storage import open_folder
from tests.loading import MODES, assert_same

pytestmark = pytest.mark.dali

SIZE = 23  # 10 batches an epoch


def loader_of(shards, mode, **options):
    window = {"ring": 64} if mode == "streaming" else {}
    return FDTLoader(shards, SIZE, mode=mode, seed=3, num_threads=1, **window, **options)


def fresh(shards, mode, number, **options):
    """An epoch of a loader that has done nothing before."""
    with loader_of(shards, mode, **options) as loader:
        loader.set_epoch(number)
        return list(loader)


def counted(monkeypatch, owner, name):
    """A list that grows by one with every call."""
    calls, real = [], getattr(owner, name)
    monkeypatch.setattr(owner, name, lambda *given, **options: calls.append(1) or real(*given, **options))
    return calls


@pytest.mark.parametrize("prefetch", [0, 1, 2, 8])
@pytest.mark.parametrize("mode", MODES)
def test_ten_epochs_take_one_pipeline_and_one_pool(numbered_shards, monkeypatch, mode, prefetch):
    """On a GPU, filling a pool is its upload."""
    pipelines, pools = counted(monkeypatch, engines, "run_pipeline"), counted(monkeypatch, NativePool, "begin")
    with loader_of(numbered_shards, mode, prefetch=prefetch) as loader:
        epochs = [list(loader) for _ in range(10)]
    assert len(pipelines) == 1
    assert len(pools) == (mode == "resident")
    for number in (0, 1, 9):
        assert_same(epochs[number], fresh(numbered_shards, mode, number))


@pytest.mark.parametrize("mode", MODES)
def test_forever_goes_on_with_epochs_of_new_mixtures_where_a_cycle_repeats_the_first(numbered_shards, mode):
    epochs = [fresh(numbered_shards, mode, number) for number in range(3)]
    with loader_of(numbered_shards, mode) as loader:
        assert_same(list(islice(loader.forever(), 25)), [batch for batches in epochs for batch in batches][:25])
    with loader_of(numbered_shards, mode) as loader:
        assert_same(list(islice(cycle(loader), 20)), epochs[0] * 2)
    assert not torch.equal(epochs[0][0][1], epochs[1][0][1])


@pytest.mark.parametrize("taken", [0, 7, 10, 11])
@pytest.mark.parametrize("mode", MODES)
def test_a_state_taken_in_the_midst_of_forever_goes_on_there_with_10_batches_an_epoch(numbered_shards, mode, taken):
    with loader_of(numbered_shards, mode) as first, loader_of(numbered_shards, mode) as second:
        batches = first.forever()
        list(islice(batches, taken))
        second.load_state_dict(first.state_dict())
        assert_same(list(islice(second.forever(), 14)), list(islice(batches, 14)))


def test_what_is_set_during_forever_holds_from_the_next_epoch_on_and_close_ends_it(numbered_shards):
    with loader_of(numbered_shards, "resident") as loader:
        batches = loader.forever()
        next(batches)
        loader.mixing = False
        loader.set_epoch(5)
        found = list(islice(batches, 19))
        assert_same(found[:9], fresh(numbered_shards, "resident", 0)[1:])
        assert_same(found[9:], fresh(numbered_shards, "resident", 5, mix=None))
    with pytest.raises(RuntimeError, match="this FDTLoader is closed"):
        next(batches)


def break_off(loader):
    list(islice(loader, 4))
    return 2


def go_back(loader):
    loader.set_epoch(0)
    return 0


def go_on_from_a_state(loader):
    state = loader.state_dict()
    list(islice(loader, 4))
    loader.load_state_dict(state)
    return 1


@pytest.mark.parametrize("change", [break_off, go_back, go_on_from_a_state])
@pytest.mark.parametrize("mode", MODES)
def test_an_epoch_that_nobody_foresaw_is_what_a_new_loader_gives(numbered_shards, mode, change):
    loader = loader_of(numbered_shards, mode)
    list(loader)
    number = change(loader)
    for following in (number, number + 1):
        assert loader.epoch == following
        assert_same(list(loader), fresh(numbered_shards, mode, following))


@pytest.mark.parametrize("mode", MODES)
def test_mixing_that_is_switched_off_is_off_in_the_next_epoch(numbered_shards, mode):
    loader = loader_of(numbered_shards, mode)
    list(loader)
    loader.mixing = False
    whole = loader_of(numbered_shards, mode)
    whole.set_epoch(1)
    whole.mixing = False
    assert_same(list(loader), list(whole))


def num_threads():
    gc.collect()
    return len(os.listdir("/proc/self/task"))


@pytest.mark.parametrize("end", ["close", "drop", "another state"])
@pytest.mark.parametrize("mode", MODES)
def test_what_waits_for_the_next_epoch_ends_when_it_is_not_wanted(numbered_shards, mode, end):
    list(loader_of(numbered_shards, mode))  # what starts once a process
    before = num_threads()
    loader = loader_of(numbered_shards, mode)
    state = loader.state_dict()
    list(loader)
    waiting = num_threads()
    assert waiting > before
    if end == "another state":
        for _ in range(3):
            loader.load_state_dict(state)
            list(loader)
        assert num_threads() == waiting
    if end == "drop":
        del loader
    else:
        loader.close()
    assert num_threads() == before


@pytest.mark.parametrize(("prefetch", "together"), [(0, 1), (2, 10)])
def test_without_prefetch_each_batch_is_made_alone_when_it_is_asked_for(
    numbered_shards, monkeypatch, prefetch, together
):
    asked, real = [], epoch.SpanBatch
    monkeypatch.setattr(epoch, "SpanBatch", lambda *given: asked.append(real(*given)) or asked[-1])
    loader = loader_of(numbered_shards, "resident", prefetch=prefetch)
    next(iter(loader))
    assert [len(batch.spans) for batch in asked] == ([together] if not prefetch else [together] * 2)


@pytest.mark.parametrize("prefetch", [1, 2, 40])
@pytest.mark.parametrize("mode", MODES)
def test_the_executor_of_gpus_gives_the_same_on_the_consumers_thread_alone(
    numbered_shards, monkeypatch, mode, prefetch
):
    """It works ahead without threads that issue work: those there are belong to DALI's pool and to the reader."""
    expected = [fresh(numbered_shards, mode, number) for number in range(3)]
    real = DaliOptions.arguments
    monkeypatch.setattr(DaliOptions, "arguments", lambda self, size: real(self, size) | {"exec_async": False})
    monkeypatch.setattr(epoch, "decoded", None)  # which is not for raw shards
    loader = loader_of(numbered_shards, mode, prefetch=prefetch)
    for batches in expected:
        assert_same(list(loader), batches)


def test_on_a_gpu_dali_works_ahead_on_no_thread_of_its_own():
    assert DaliOptions(1, 2, device_id=0).arguments(16) == {
        "batch_size": 16, "num_threads": 1, "prefetch_queue_depth": 3, "exec_async": False, "exec_pipelined": True,
        "device_id": 0,
    }  # fmt: skip


@pytest.mark.parametrize("mode", MODES)
def test_a_consumer_that_takes_as_many_batches_as_there_are_goes_on_with_the_pipeline(
    numbered_shards, monkeypatch, mode
):
    """And never asks for the end of an epoch."""
    pipelines = counted(monkeypatch, engines, "run_pipeline")
    loader = loader_of(numbered_shards, mode)
    epochs = [list(islice(loader, len(loader))) for _ in range(3)]
    assert len(pipelines) == 1
    assert_same(epochs[2], fresh(numbered_shards, mode, 2))


@pytest.mark.parametrize("end", ["close", "drop"])
def test_the_images_in_memory_are_free_when_the_loader_is_closed_or_dropped(numbered_shards, end):
    """Not when garbage is collected some time after that."""
    loader = loader_of(numbered_shards, "resident")
    list(loader)
    pool = weakref.ref(loader._epochs.engine.pool)
    gc.disable()
    try:
        if end == "close":
            loader.close()
        else:
            del loader
        assert pool() is None
    finally:
        gc.enable()


def test_batches_that_were_made_together_are_tensors_of_their_own(numbered_shards):
    """What is done to one in place, or asked for in inference mode, does not stop another's backward pass."""
    batches = iter(loader_of(numbered_shards, "resident"))
    with torch.inference_mode():
        next(batches)
    first, second = next(batches)[0], next(batches)[0]
    weight = torch.ones(1, requires_grad=True)
    loss = (first * weight).sum()
    second.mul_(2)
    loss.backward()
    assert weight.grad == pytest.approx(first.sum().item())


def test_a_loader_of_remote_shards_holds_none_of_them_between_its_epochs(numbered_shards, tmp_path, monkeypatch):
    """Or two loaders with a cache that has room for one shard would wait for each other."""
    store = fsspec.filesystem("memory")
    store.put(f"{numbered_shards}/", "/epochs/", recursive=True)
    largest = max(shard.num_bytes for shard in read_manifest(open_folder(numbered_shards)).shards)
    monkeypatch.setenv("FDT_PIPELINE_SHARD_CACHE", str(tmp_path))
    monkeypatch.setenv("FDT_PIPELINE_SHARD_CACHE_BYTES", str(largest * 3 // 2))
    loaders = [loader_of("memory://epochs", "streaming", verify=False) for _ in range(2)]
    epochs = [[list(loader) for loader in loaders] for _ in range(2)]
    for number, (one, other) in enumerate(epochs):
        assert_same(one, other)
        assert_same(one, fresh(numbered_shards, "streaming", number))
    store.rm("/epochs", recursive=True)


def test_a_ctrl_c_that_comes_while_a_dropped_loader_ends_its_pipeline_is_not_lost():
    class Interrupted(epoch.EpochChain):
        def close(self):
            raise KeyboardInterrupt

    loader = type("Loader", (), {})()
    weakref.finalize(loader, drop, [Interrupted(None)])
    del loader
    with pytest.raises(KeyboardInterrupt):
        time.sleep(5)
