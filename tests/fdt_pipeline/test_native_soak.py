"""The native operators over a long time: memory and threads stay what they were."""

import shutil

import pytest

from tests.memory import steady_growth
from tests.native_stand_in import start

pytestmark = [pytest.mark.skipif(shutil.which("g++") is None, reason="needs g++"), pytest.mark.soak, pytest.mark.dali]

CODE = """
import faulthandler, gc, os
import numpy as np
import fdt_pipeline
from nvidia.dali import fn, pipeline_def
from tests.native_pools import load_arrays
faulthandler.dump_traceback_later(500, exit=True)

def report():
    gc.collect()
    mebibytes = int(open("/proc/self/statm").read().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20
    print(mebibytes, len(os.listdir("/proc/self/task")))

def every_time(batch):
    return fn.external_source(lambda info: batch, batch=True, batch_info=True)

images, labels = np.zeros((400, 8, 8, 3), np.uint8), np.arange(400) % 10

@pipeline_def(batch_size=8, num_threads=2, device_id=None)
def graph(pool):
    source = lambda info: np.stack([np.full(8, info.iteration), np.arange(8)], axis=1)
    ids = fn.external_source(source, batch=True, batch_info=True)
    if pool is None:
        window = every_time(images[:8]), every_time(labels[:8] % 5)
        return tuple(fn.fdt.superpose(*window, ids, num_classes=10, pad=2, flip=True))
    return tuple(fn.fdt.superpose_resident(ids, pool=pool.name, pad=2, flip=True, anchor="epoch"))

pool = load_arrays(images, labels, 10) if KIND == "resident" else None
pipeline = graph(pool)
pipeline.build()
for n in (1_000, 4_000, 4_000, 4_000):
    for _ in range(n): pipeline.run()
    report()
"""


@pytest.mark.parametrize("kind", ["resident", "window"])
def test_ten_thousand_iterations_take_no_more_memory(kind):
    """In a fresh process, as memory that others freed would hide a leak."""
    process = start(f"KIND = {kind!r}\n{CODE}")
    output, errors = process.communicate(timeout=600)
    assert process.returncode == 0, errors
    memory, threads = zip(*([float(word) for word in line.split()] for line in output.splitlines()), strict=True)
    assert len(memory) == 4
    assert steady_growth(memory) < 0.8  # MiB, of 200 bytes an iteration
    assert len({*threads}) == 1
