"""Loaders, pipelines and operators over a long time, beside each other, and at the end of the interpreter."""

import signal
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from fdt_pipeline import FDTLoader
from fdt_pipeline.shards import write_shards
from fdt_pipeline.sources import ArraySource
from tests.loading import MODES, assert_same
from tests.numbered import numbered_images

pytestmark = [pytest.mark.soak, pytest.mark.dali]

PRELUDE = """
import faulthandler, gc, os, time
from itertools import islice
faulthandler.dump_traceback_later(590, exit=True)
from nvidia.dali.plugin.pytorch import DALIGenericIterator
from fdt_pipeline import FDTLoader, fdt_pipeline

def dali_iterator(shards, mode):
    pipeline = fdt_pipeline(shards, mode=mode, mix=None, batch_size=32, num_threads=1, device_id=None)
    return DALIGenericIterator(pipeline, ["images", "targets"])

def figures():
    # Once the threads that work ahead for the next epoch rest: a reader that is between two tars has none open.
    gc.collect()
    before, now = None, counts()
    while now != before:
        time.sleep(0.5)
        before, now = now, counts()
    mebibytes = int(open("/proc/self/statm").read().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20
    return mebibytes, *now

def counts():
    return len(os.listdir("/proc/self/task")), len(os.listdir("/proc/self/fd"))
"""


@pytest.fixture(scope="module")
def small_shards(tmp_path_factory):
    """400 images of 8x8x3 in 10 classes, in 4 shards."""
    folder = tmp_path_factory.mktemp("small") / "shards"
    write_shards(ArraySource(numbered_images(400, (8, 8, 3)), np.arange(400) % 10), folder, samples_per_shard=100)
    return folder


def run_process(code, *arguments):
    """In a fresh one, as memory that others freed would hide a leak."""
    command = [sys.executable, "-c", PRELUDE + code, *map(str, arguments)]
    root = Path(__file__).parents[2]
    return subprocess.run(command, capture_output=True, text=True, timeout=600, check=False, cwd=root)


def printed_by_a_process(code, *arguments):
    done = run_process(code, *arguments)
    assert done.returncode == 0, done.stderr
    return done.stdout


def figures_of_a_process(code, *arguments):
    """MiB, threads and file descriptors, of each of four times. Of MiB, the least growth from one time to the next: a
    leak grows in every step; what an allocator takes from the system now and then, a few MiB, does not."""
    lines = [[float(word) for word in line.split()] for line in printed_by_a_process(code, *arguments).splitlines()]
    memory, threads, files = zip(*lines, strict=True)
    assert len(memory) == 4
    return min(after - before for before, after in pairwise(memory)), threads, files


BATCHES = """
import sys
loader = FDTLoader(sys.argv[1], 2, mode=sys.argv[2], num_threads=1, weights=True)
assert len(loader) == 200
for _ in range(4):
    for _ in range(13):
        for number, batch in enumerate(loader):
            if number % 20 == 0:
                state = loader.state_dict()
    print(*figures())
"""


@pytest.mark.parametrize("mode", MODES)
def test_ten_thousand_batches_take_no_more_memory_threads_or_files(small_shards, mode):
    growth, threads, files = figures_of_a_process(BATCHES, small_shards, mode)
    assert growth < 2  # MiB in 2,600 batches
    assert len({*threads}) == len({*files}) == 1


OPERATORS = """
import sys
import numpy as np
from nvidia.dali import fn, pipeline_def
from fdt_pipeline import FDT
from tests.native_pools import load_arrays

images, labels = np.zeros((400, 8, 8, 3), np.uint8), np.arange(400) % 10

def feed(source):
    return fn.external_source(source, batch=True, batch_info=True)

@pipeline_def(batch_size=8, num_threads=2, device_id=None)
def graph(pool):
    ids = feed(lambda info: np.stack([np.full(8, info.iteration), np.arange(8)], axis=1))
    if pool is None:
        window = feed(lambda info: images[:8]), feed(lambda info: labels[:8] % 5)
        return tuple(fn.fdt.superpose(*window, ids, num_classes=10, pad=2, flip=True))
    return tuple(fn.fdt.superpose_resident(ids, pool=pool.name, pad=2, flip=True, mix=FDT(anchor="epoch")))

pool = load_arrays(images, labels, 10) if sys.argv[1] == "resident" else None
pipeline = graph(pool)
pipeline.build()
for count in (1_000, 4_000, 4_000, 4_000):
    for _ in range(count):
        pipeline.run()
    print(*figures())
"""


@pytest.mark.parametrize("kind", ["resident", "window"])
def test_ten_thousand_iterations_of_an_operator_take_no_more_memory_or_threads(kind):
    growth, threads, _ = figures_of_a_process(OPERATORS, kind)
    assert growth < 0.8  # MiB, of 200 bytes an iteration
    assert len({*threads}) == 1


LOADERS = """
import sys
def make(count):
    for i in range(count):
        options = {"mode": sys.argv[2], "engine": ("native", "torch")[i % 2], "seed": i}
        loader = FDTLoader(sys.argv[1], 32, **options)
        list(islice(loader, 1 + i % 3))  # broken off
        resumed = FDTLoader(sys.argv[1], 32, **options)
        resumed.load_state_dict(loader.state_dict())
        if i % 5 == 0:
            list(resumed)
        if i % 4 < 2:
            loader.close()
        next(dali_iterator(sys.argv[1], sys.argv[2]))
    print(*figures())
make(10)
for _ in range(3):
    make(20)
"""


@pytest.mark.parametrize("mode", MODES)
def test_seventy_pairs_of_loaders_and_pipelines_made_resumed_and_dropped_leave_nothing_behind(small_shards, mode):
    growth, threads, files = figures_of_a_process(LOADERS, small_shards, mode)
    assert growth < 3  # MiB in 20 pairs
    assert threads[-1] <= threads[0]
    assert files[-1] <= files[0]


IN_THE_MIDDLE = """
import sys, threading, time
def in_the_middle():
    iterations = [iter(FDTLoader(sys.argv[1], 8, mode=mode)) for mode in ("resident", "streaming")]
    iterations += [dali_iterator(sys.argv[1], mode) for mode in ("resident", "streaming")]
    for iteration in iterations:
        next(iteration)
    return iterations
"""
READERS_THAT_WAIT = """
from fdt_pipeline.loader import epoch, pipeline
read = epoch.read_samples
def slowly(*arguments, **named):
    for samples in read(*arguments, **named):
        yield samples
        time.sleep(0.3)
epoch.read_samples = pipeline.read_samples = slowly
kept = in_the_middle()
"""
LOADERS_THAT_WAIT = """
kept = [FDTLoader(sys.argv[1], 8, mode=mode) for mode in ("resident", "streaming")]
for loader in kept:
    list(loader)
"""
A_DAEMON_THREAD = """
started = threading.Event()
def run():
    while True:
        for batch in FDTLoader(sys.argv[1], 8, mode="streaming"):
            started.set()
threading.Thread(target=run, daemon=True).start()
started.wait()
"""
ENDS = {
    "the end of the script": ("kept = in_the_middle()", {0}),
    "loaders that wait for the next epoch": (LOADERS_THAT_WAIT, {0}),
    "an exception": ("kept = in_the_middle()\nraise RuntimeError", {1}),
    "sys.exit in a function": ("def leave():\n    kept = in_the_middle()\n    sys.exit(7)\nleave()", {7}),
    "a reference cycle": ("cycle = in_the_middle()\ncycle.append(cycle)\ndel cycle", {0}),
    "readers that wait": (READERS_THAT_WAIT, {0}),
    # Python ends such a thread within DALI: C++ may abort.
    "a daemon thread that iterates": (A_DAEMON_THREAD, {0, -signal.SIGABRT}),
}


@pytest.mark.parametrize("end", ENDS)
def test_the_interpreter_exits_in_the_middle_of_an_epoch_in_whatever_way(small_shards, end):
    code, exit_codes = ENDS[end]
    done = run_process(IN_THE_MIDDLE + code, small_shards)
    assert done.returncode in exit_codes, done.stderr
    assert "Timeout" not in done.stderr


CTRL_C = """
import signal, sys, threading
loader = FDTLoader(sys.argv[1], 32, mode=sys.argv[2], prefetch=int(sys.argv[3]))
threading.Timer(0.5, lambda: os.kill(os.getpid(), signal.SIGINT)).start()
try:
    while True:
        list(loader)
except KeyboardInterrupt:
    print("interrupted")
"""


@pytest.mark.parametrize("prefetch", [0, 2])
@pytest.mark.parametrize("mode", MODES)
def test_ctrl_c_stays_a_keyboard_interrupt(small_shards, mode, prefetch):
    assert printed_by_a_process(CTRL_C, small_shards, mode, prefetch) == "interrupted\n"


def test_a_state_may_be_taken_by_another_thread_while_batches_are_made(small_shards):
    """As a checkpointing thread does: whatever moment it meets, what follows its state follows there."""
    options = {"mode": "resident", "seed": 1}
    loader = FDTLoader(small_shards, 8, **options)
    expected, states, rests, done = list(loader), [], [], threading.Event()
    loader.set_epoch(0)

    def watch():
        while not done.is_set():
            states.append(loader.state_dict())

    with ThreadPoolExecutor(1) as threads:
        threads.submit(watch)
        list(loader)
        done.set()
    for state in states[:: max(1, len(states) // 8)]:
        resumed = FDTLoader(small_shards, 8, **options)
        resumed.load_state_dict(state)
        if resumed.epoch == 0:
            rests.append(list(resumed))
            assert_same(rests[-1], expected[len(expected) - len(rests[-1]) :])
    assert rests
