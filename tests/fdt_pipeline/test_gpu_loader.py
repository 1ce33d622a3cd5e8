"""FDTLoader on each device there is, over epochs, beside other work and left in mid-epoch.

A GPU is tested where torch sees one; its outputs must be the CPU's. On the CPU the same loops must give what a loader
gives that makes each batch when it is asked for.
"""

import gc
import os
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, nullcontext
from functools import cache

import pytest
import torch

from fdt_pipeline import FDTLoader
from tests.loading import MODES, joined
from tests.native_stand_in import PATIENCE, at_once, start

pytestmark = pytest.mark.dali

DEVICES = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]
EPOCHS, BATCH = 4, 32
SLEEP = 1_000_000  # cycles of a GPU, half a millisecond
PIXELS, HALF_STEP = 2e-6, 2.0**-11  # how far images may be from each other; a half has 11 bits

in_each_mode = pytest.mark.parametrize("mode", MODES)


@pytest.fixture(scope="module", params=DEVICES)
def device(request):
    return request.param


@pytest.fixture(scope="module")
def shards(fashion_shards, device):
    """1,000 real images of 28 x 28 in 10 classes. On a GPU 5,000: its memory is taken in pieces of 2 MiB, so a smaller
    copy that is never freed would not show."""
    return fashion_shards / ("train" if device == "cuda" else "test")


def options_of(mode, device, **others):
    return {"mode": mode, "device": device} | ({"ring": 512} if mode == "streaming" else {}) | others


def loader_of(shards, mode, device, batch_size=BATCH, **others):
    return FDTLoader(shards, batch_size, **options_of(mode, device, **others))


@cache
def expected(shards, mode, seed=0, epochs=EPOCHS, batch_size=BATCH):
    """Epoch after epoch in float32, each from a loader of its own on the CPU that makes batches one by one."""
    found = []
    for epoch in range(epochs):
        loader = loader_of(shards, mode, "cpu", batch_size, seed=seed, prefetch=0)
        loader.set_epoch(epoch)
        found.append(joined([[field.clone() for field in batch] for batch in loader]))
    return found


def assert_outputs(batches, right):
    """The CPU's own bit for bit; halves, and what a GPU has summed, within their roundings."""
    (images, targets), (right_images, right_targets) = joined(batches), right
    allowed = PIXELS if images.is_cuda else 0
    if images.dtype == torch.float16:
        allowed = PIXELS + HALF_STEP * right_images.abs()
    assert images.shape == right_images.shape
    assert ((images.cpu().float() - right_images).abs() <= allowed).all()
    assert torch.equal(targets.cpu(), right_targets)


def wait(device):
    """For all that streams still have to do."""
    if device == "cuda":
        torch.cuda.synchronize()


def in_use(device):
    """Threads and open files of this process, and bytes of the GPU that are taken."""
    gc.collect()
    wait(device)
    taken = 0
    if device == "cuda":
        torch.cuda.empty_cache()
        free, total = torch.cuda.mem_get_info()
        taken = total - free
    return len(os.listdir("/proc/self/task")), len(os.listdir("/proc/self/fd")), taken


def assert_no_more_in_use(before, device):
    """Threads that have been joined may be listed for another moment."""
    end = time.monotonic() + 5
    while any(now > then for now, then in zip(in_use(device), before, strict=True)) and time.monotonic() < end:
        time.sleep(0.01)
    assert all(now <= then for now, then in zip(in_use(device), before, strict=True)), (in_use(device), before)


@in_each_mode
def test_epochs_are_those_of_fresh_loaders_and_take_no_more_memory_threads_or_files(shards, mode, device):
    loader, used = loader_of(shards, mode, device), []
    for right in expected(shards, mode):
        assert_outputs(list(loader), right)
        used.append(in_use(device))
    assert_no_more_in_use(used[1], device)


@contextmanager
def recorded(device):
    """What is done within is recorded as a CUDA graph, in which no thread of the process may do what that forbids."""
    if device == "cpu":
        yield
        return
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, capture_error_mode="global"):
        yield
        time.sleep(0.002)  # in which threads that work ahead would be caught
    graph.replay()


@in_each_mode
def test_a_cuda_graph_can_be_recorded_between_any_two_batches(shards, mode, device):
    count = torch.zeros(8, device=device)
    count.add_(1).zero_()  # so that its kernels are loaded
    batch_size = 250 if device == "cpu" else 500  # recording takes a tenth of a second
    loader = loader_of(shards, mode, device, batch_size)
    for right in expected(shards, mode, epochs=3, batch_size=batch_size):
        batches = []
        for batch in loader:
            batches.append(batch)
            with recorded(device):
                count.add_(1)
        assert_outputs(batches, right)
    assert count.tolist() == [3 * len(loader)] * 8


def streams_of(device):
    """Where a consumer may work: on torch's current stream; on a GPU on one beside it too, or on another each time."""
    if device == "cpu":
        return [nullcontext]
    side = torch.cuda.Stream()
    return [nullcontext, lambda: torch.cuda.stream(side), lambda: torch.cuda.stream(torch.cuda.Stream())]


def keep_busy(device, turns=1):
    """What comes next on the stream has to wait for half a millisecond, that many times."""
    if device == "cuda":
        torch.cuda._sleep(turns * SLEEP)


@in_each_mode
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=["f32", "f16"])
@pytest.mark.parametrize("prefetch", [0, 1, 2, 8])
def test_batches_are_whole_on_busy_streams_whether_they_are_kept_or_dropped(shards, mode, prefetch, dtype, device):
    """Every other one is dropped, behind a copy that has not begun when the next batch is asked for. The stream of each
    eighth is the busiest by far, so that batches which share its memory must wait for it on other streams."""
    loader = loader_of(shards, mode, device, prefetch=prefetch, dtype=dtype)
    for stream, right in zip(streams_of(device), expected(shards, mode), strict=False):
        found, batches = [], iter(loader)
        for number in range(len(loader)):
            with stream():
                keep_busy(device, 1 if number % 8 else 40)
                batch = next(batches)
                found.append(batch if number % 2 else [field.clone() for field in batch])
                keep_busy(device)
                del batch
        assert next(batches, None) is None
        wait(device)
        assert_outputs(found, right)


def test_loaders_in_threads_of_their_own_do_not_disturb_each_other(shards, device):
    """Two of each mode, two epochs, beginning at once."""
    asked = [(mode, seed) for mode in MODES for seed in (1, 2)]
    together = threading.Barrier(len(asked))

    def run(mode, seed):
        loader = loader_of(shards, mode, device, seed=seed)
        together.wait(PATIENCE)
        with streams_of(device)[-1]():
            epochs = [list(loader) for _ in range(2)]
        wait(device)
        return epochs

    with ThreadPoolExecutor(len(asked)) as threads:
        found = [threads.submit(run, *each) for each in asked]
    for each, epochs in zip(asked, found, strict=True):
        for batches, right in zip(epochs.result(), expected(shards, *each, 2), strict=True):
            assert_outputs(batches, right)


@pytest.mark.process
@in_each_mode
def test_loaders_in_processes_of_their_own_do_not_disturb_each_other(shards, mode, device, tmp_path):
    at_once(2, f"""
import os, torch
from fdt_pipeline import FDTLoader
loader = FDTLoader({str(shards)!r}, {BATCH}, **{options_of(mode, device)})
torch.save([[tuple(field.cpu() for field in batch) for batch in loader] for _ in range(2)],
           {str(tmp_path)!r} + f"/{{os.getpid()}}.pt")
""")  # fmt: skip
    files = list(tmp_path.glob("*.pt"))
    assert len(files) == 2
    for file in files:
        for batches, (images, targets) in zip(torch.load(file), expected(shards, mode), strict=False):
            found = joined(batches)
            assert (found[0] - images).abs().max() <= (PIXELS if device == "cuda" else 0)
            assert torch.equal(found[1], targets)


def leave(loader, way):
    """Take three batches, and leave in mid-epoch."""
    for number, _ in enumerate(loader):
        if number < 2:
            continue
        if way == "close":
            loader.close()
        if way in ("an exception", "Ctrl-C"):
            raise RuntimeError if way == "an exception" else KeyboardInterrupt
        break


@in_each_mode
@pytest.mark.parametrize("way", ["break", "an exception", "Ctrl-C", "close", "dropping the loader"])
def test_an_epoch_may_be_left_in_any_way_and_nothing_stays_behind(shards, mode, way, device):
    """Where the loader is still there, it goes on with the next epoch."""

    def once():
        loader = loader_of(shards, mode, device)
        if way == "dropping the loader":
            batches = iter(loader)
            next(batches)
            del loader
            next(batches)
            return
        try:
            leave(loader, way)
        except (RuntimeError, KeyboardInterrupt):
            assert way in ("an exception", "Ctrl-C")
        if way != "close":
            assert_outputs(list(loader), expected(shards, mode)[1])

    once()
    before = in_use(device)
    for _ in range(2):
        once()
    assert_no_more_in_use(before, device)


@pytest.mark.process
@pytest.mark.skipif("cuda" not in DEVICES, reason="needs a GPU")
@in_each_mode
def test_without_nvrtc_a_loader_for_a_gpu_is_refused_when_it_is_built(shards, mode, tmp_path):
    child = start(f"""
from fdt_pipeline import FDTLoader
from fdt_pipeline.native import load
load.nvrtc_path = lambda: {str(tmp_path / "libnvrtc.so.13")!r}
try:
    FDTLoader({str(shards)!r}, {BATCH}, **{options_of(mode, "cuda")})
except Exception as error:
    print(error)
""")
    printed, errors = child.communicate(timeout=PATIENCE)
    assert "needs NVRTC" in printed, errors
