"""Loaders and pipelines over a long time, beside each other, and at the end of the interpreter."""

import subprocess
import sys
import threading

import numpy as np
import pytest

from fdt_pipeline import FDTLoader
from fdt_pipeline.shards import write_shards
from fdt_pipeline.sources import ArraySource
from tests.loading import MODES, assert_same
from tests.memory import steady_growth
from tests.numbered import numbered_images

pytestmark = [pytest.mark.soak, pytest.mark.dali]

PRELUDE = """
import faulthandler, gc, os
from itertools import islice
faulthandler.dump_traceback_later(590, exit=True)
from nvidia.dali.plugin.pytorch import DALIGenericIterator
from fdt_pipeline import FDTLoader, fdt_pipeline

def dali_iterator(shards, mode):
    pipeline = fdt_pipeline(shards, mode=mode, mix=None, batch_size=32, num_threads=1, device_id=None)
    return DALIGenericIterator(pipeline, ["images", "targets"])

def figures():
    gc.collect()
    mebibytes = int(open("/proc/self/statm").read().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20
    return mebibytes, len(os.listdir("/proc/self/task")), len(os.listdir("/proc/self/fd"))
"""


@pytest.fixture(scope="module")
def small_shards(tmp_path_factory):
    """400 images of 8x8x3 in 10 classes, in 4 shards."""
    folder = tmp_path_factory.mktemp("small") / "shards"
    write_shards(ArraySource(numbered_images(400, (8, 8, 3)), np.arange(400) % 10), folder, samples_per_shard=100)
    return folder


def printed_by_a_process(code, *arguments):
    """A fresh one, as memory that others freed would hide a leak."""
    command = [sys.executable, "-c", PRELUDE + code, *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def figures_of_a_process(code, *arguments):
    """MiB, threads and file descriptors, of each of four times."""
    lines = [[float(word) for word in line.split()] for line in printed_by_a_process(code, *arguments).splitlines()]
    memory, threads, files = zip(*lines, strict=True)
    assert len(memory) == 4
    return memory, threads, files


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
    memory, threads, files = figures_of_a_process(BATCHES, small_shards, mode)
    assert steady_growth(memory) < 2  # MiB in 2,600 batches
    assert len({*threads}) == len({*files}) == 1


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
    memory, threads, files = figures_of_a_process(LOADERS, small_shards, mode)
    assert steady_growth(memory) < 3  # MiB in 20 pairs
    assert threads[-1] <= threads[0]
    assert files[-1] <= files[0]


EXITS = """
faulthandler.cancel_dump_traceback_later()  # a child would wait for its thread, which is not forked
import signal, sys, threading, time
def loaders():
    return [FDTLoader(sys.argv[1], 8, mode=mode, prefetch=2) for mode in ("resident", "streaming")]

def in_the_middle():
    iterations = [iter(loader) for loader in loaders()]
    iterations += [dali_iterator(sys.argv[1], mode) for mode in ("resident", "streaming")]
    for iteration in iterations:
        next(iteration)
    return iterations

def at_the_end_of_the_script():
    global iterations
    iterations = in_the_middle()

def by_an_exception():
    iterations = in_the_middle()
    raise RuntimeError("the consumer's own")

def by_sys_exit():
    iterations = in_the_middle()
    sys.exit(7)

def while_a_daemon_thread_iterates():
    started = threading.Event()
    def run():
        while True:
            for batch in loaders()[1]:
                started.set()
    threading.Thread(target=run, daemon=True).start()
    started.wait()

def while_readers_wait():
    global iterations
    from fdt_pipeline.loader import epoch, pipeline
    read = epoch.read_windows
    def slowly(*arguments):
        for window in read(*arguments):
            yield window
            time.sleep(0.3)
    epoch.read_windows = pipeline.read_windows = slowly
    iterations = in_the_middle()

def in_a_reference_cycle():
    cycle = in_the_middle()
    cycle.append(cycle)

EXPECTED = {
    at_the_end_of_the_script: [0],
    by_an_exception: [1],
    by_sys_exit: [7],
    while_a_daemon_thread_iterates: [0, -signal.SIGABRT],  # Python ends such a thread within DALI: C++ may abort
    while_readers_wait: [0],
    in_a_reference_cycle: [0],
}

def end_of(child, deadline):
    while time.monotonic() < deadline:
        found, status = os.waitpid(child, os.WNOHANG)
        if found:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.02)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    return "hangs"

children = {}
for way in EXPECTED:  # forked before there is any loader: that is safe, and saves the imports
    children[way] = os.fork()
    if children[way] == 0:
        way()
        break
else:
    deadline = time.monotonic() + 500
    for way, child in children.items():
        code = end_of(child, deadline)
        print(way.__name__, "as expected" if code in EXPECTED[way] else code, flush=True)
"""


def test_the_interpreter_exits_in_the_middle_of_an_epoch_in_whatever_way(small_shards):
    """Each way in a process of its own, that ends as any script does."""
    lines = printed_by_a_process(EXITS, small_shards).splitlines()
    assert len(lines) == 6
    assert [line for line in lines if not line.endswith(" as expected")] == []


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


def test_loaders_in_threads_of_their_own_do_not_disturb_each_other(small_shards):
    """Two of each mode, three epochs, beginning at once."""
    options = [{"mode": mode, "seed": seed} for mode in MODES for seed in (1, 2)]
    expected = [[*loader, *loader, *loader] for loader in (FDTLoader(small_shards, 32, **each) for each in options)]
    found = [None] * len(options)
    together = threading.Barrier(len(options))

    def run(number):
        loader = FDTLoader(small_shards, 32, **options[number])
        together.wait()
        found[number] = [*loader, *loader, *loader]

    threads = [threading.Thread(target=run, args=(number,)) for number in range(len(options))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for one, other in zip(found, expected, strict=True):
        assert_same(one, other)


def test_a_state_may_be_taken_by_another_thread_while_batches_are_made(small_shards):
    """As a checkpointing thread does: whatever moment it meets, what follows its state follows there."""
    loader = FDTLoader(small_shards, 8, mode="resident", seed=1)
    expected, states, done = list(loader), [], threading.Event()
    loader.set_epoch(0)

    def watch():
        while not done.is_set():
            states.append(loader.state_dict())

    watcher = threading.Thread(target=watch)
    watcher.start()
    list(loader)
    done.set()
    watcher.join()
    distinct = [state for state, before in zip(states, [None, *states], strict=False) if state != before]
    rests = []
    for state in distinct[:: max(1, len(distinct) // 8)]:
        resumed = FDTLoader(small_shards, 8, mode="resident", seed=1)
        resumed.load_state_dict(state)
        if resumed.epoch == 0:
            rests.append(list(resumed))
            assert_same(rests[-1], expected[len(expected) - len(rests[-1]) :])
    assert rests
