"""The native operators and loaders over a long time: memory and threads stay what they were."""

import shutil
import subprocess
import sys

import numpy as np
import pytest

from fdt_pipeline.shards import write_shards
from fdt_pipeline.sources import ArraySource
from tests.memory import steady_growth
from tests.numbered import numbered_images

pytestmark = [pytest.mark.skipif(shutil.which("g++") is None, reason="needs g++"), pytest.mark.soak, pytest.mark.dali]

PRELUDE = """
import ctypes, faulthandler, gc, os
import numpy as np
import fdt_pipeline
from nvidia.dali import fn, pipeline_def
faulthandler.dump_traceback_later(500, exit=True)

def resident_mebibytes():
    gc.collect()
    return int(open("/proc/self/statm").read().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20

def constant(batch):
    return fn.external_source(lambda info: batch, batch=True, batch_info=True)

def threads():
    return len(os.listdir("/proc/self/task"))
"""


@pytest.fixture(scope="module")
def small_shards(tmp_path_factory):
    """400 images of 8x8x3 in 10 classes."""
    folder = tmp_path_factory.mktemp("small") / "shards"
    write_shards(ArraySource(numbered_images(400, (8, 8, 3)), np.arange(400) % 10), folder)
    return folder


def figures(code):
    """MiB and threads at four times in a fresh process, as memory that others freed would hide a leak."""
    done = subprocess.run(
        [sys.executable, "-c", PRELUDE + code], capture_output=True, text=True, timeout=600, check=False
    )
    assert done.returncode == 0, done.stderr
    memory, threads = zip(*([float(word) for word in line.split()] for line in done.stdout.splitlines()), strict=True)
    assert len(memory) == 4
    return memory, threads


ITERATIONS = """
@pipeline_def(batch_size=8, num_threads=2, device_id=None)
def graph():
    source = lambda info: np.stack([np.full(8, info.iteration), np.arange(8)], axis=1)
    ids = fn.external_source(source, batch=True, batch_info=True)
    {graph}

pipeline = graph()
pipeline.build()
def run(n):
    for _ in range(n): pipeline.run()
    print(resident_mebibytes(), threads())
for n in (1_000, 4_000, 4_000, 4_000): run(n)
"""
GRAPHS = {
    "resident": "return tuple(fn.fdt.superpose_resident(ids, pool={folder!r}, pad=2, flip=True, anchor='epoch'))",
    "window": """images, labels = constant(np.zeros((8, 8, 8, 3), np.uint8)), constant(np.arange(8) % 5)
    return tuple(fn.fdt.superpose(images, labels, ids, num_classes=10, pad=2, flip=True))""",
}


@pytest.mark.parametrize("graph", GRAPHS)
def test_ten_thousand_iterations_take_no_more_memory(small_shards, graph):
    code = ITERATIONS.format(graph=GRAPHS[graph].format(folder=str(small_shards)))
    memory, threads = figures(code)
    assert steady_growth(memory) < 0.8  # MiB, of 200 bytes an iteration
    assert len({*threads}) == 1


PIPELINES = """
source = lambda info: np.stack([np.zeros(8, np.int64), np.arange(8)], axis=1)

@pipeline_def(batch_size=8, num_threads=2, device_id=None)
def graph():
    ids = fn.external_source(source, batch=True, batch_info=True)
    {graph}

def make(n):
    for _ in range(n):
        pipeline = graph()
        pipeline.build()
        pipeline.run()
    del pipeline
    print(resident_mebibytes(), threads())
for _ in range(4): make(33)
"""


@pytest.mark.parametrize("graph", GRAPHS)
def test_a_hundred_pipelines_made_and_dropped_leave_neither_memory_nor_threads(small_shards, graph):
    """The pool, too, is read and let go of each time."""
    code = PIPELINES.format(graph=GRAPHS[graph].format(folder=str(small_shards)))
    memory, threads = figures(code)
    assert steady_growth(memory) < 3  # MiB
    assert threads[-1] <= threads[0]


LOADERS = """
from itertools import islice
from fdt_pipeline import FDTLoader

def make(n):
    for i in range(n):
        loader = FDTLoader({folder!r}, 32, mode={mode!r}, engine="native", seed=i)
        list(islice(loader, 2))
    del loader
    print(resident_mebibytes(), threads())
for _ in range(4): make(33)
"""


@pytest.mark.parametrize("mode", ["resident", "streaming"])
def test_a_hundred_loaders_made_and_dropped_leave_neither_memory_nor_threads(small_shards, mode):
    memory, threads = figures(LOADERS.format(folder=str(small_shards), mode=mode))
    assert steady_growth(memory) < 3  # MiB
    assert threads[-1] <= threads[0]
