"""Epochs that follow each other share a pipeline, which works ahead; any other epoch is what a new loader gives."""

import gc
import os
from itertools import islice

import pytest

from fdt_pipeline import FDTLoader
from fdt_pipeline.loader import engines, epoch
from fdt_pipeline.loader.running import DaliOptions
from fdt_pipeline.native.pool import NativePool
from tests.loading import MODES, assert_same

pytestmark = pytest.mark.dali

SIZE = 23  # 10 batches an epoch


def loader_of(shards, mode, **options):
    window = {"mix_window": 64} if mode == "streaming" else {}
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
