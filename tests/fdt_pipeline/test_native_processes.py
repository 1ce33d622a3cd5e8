"""The native operators and the life of processes: how they are loaded, serialized and forked.

Every process here ends itself with all its stacks on stderr should it hang.
"""

import shutil

import numpy as np
import pytest

from fdt_pipeline import FDT, Augment
from fdt_pipeline.definition.superposition import Pool
from fdt_pipeline.shards import load_shards
from tests import native_stand_in
from tests.native_pools import defined_outputs
from tools.native_probe import Draw

pytestmark = [pytest.mark.skipif(shutil.which("g++") is None, reason="needs g++"), pytest.mark.dali]

IMPORTS = (
    "import fdt_pipeline\nfrom nvidia.dali import fn, pipeline_def",
    "from nvidia.dali import fn, pipeline_def\nimport fdt_pipeline",
)
GRAPHS = """
import faulthandler, functools, os, signal, sys, threading, time
from pathlib import Path
import numpy as np
faulthandler.dump_traceback_later(290, exit=True)
from fdt_pipeline.shards import load_shards
from tests.native_pools import load_arrays
FOLDER = Path({folder!r})

@functools.cache
def pool():
    images, labels, _ = load_shards(FOLDER)
    return load_arrays(images, labels, 7)

@pipeline_def(batch_size=8, num_threads=2, device_id=None, prefetch_queue_depth=3)
def resident():
    ids = fn.external_source(lambda info: np.array([0, info.idx_in_epoch]), batch=False)
    return tuple(fn.fdt.superpose_resident(ids, pool=pool().name, plan_seed=5, pad=2, flip=True))

@pipeline_def(batch_size=8, num_threads=2, device_id=None, prefetch_queue_depth=3)
def streaming():
    tars = sorted(map(str, FOLDER.glob("*.tar")))
    indexes = [tar.replace(".tar", ".idx") for tar in tars]
    encoded, label = fn.readers.webdataset(
        paths=tars, index_paths=indexes, ext=["npy", "cls"], missing_component_behavior="error"
    )
    return tuple(fn.fdt.superpose(fn.reshape(encoded[128:], shape=(6, 5, 3)), label, num_classes=7, plan_seed=5))

def started(graph):
    pipeline = graph()
    pipeline.build()
    pipeline.run()
    return pipeline

def first(graph):
    pipeline = graph()
    pipeline.build()
    return [np.array(part.as_array()) for part in pipeline.run()]
"""


def start(folder, code, imports=IMPORTS[0]):
    return native_stand_in.start(imports + GRAPHS.format(folder=str(folder)) + code)


def ended(process):
    """(exit code, what it printed, its errors)"""
    with process:
        output, errors = process.communicate(timeout=300)
    assert "Timeout" not in errors, errors
    return process.returncode, output, errors


@pytest.mark.parametrize("imports", IMPORTS)
def test_the_operators_are_in_dali_after_the_import_alone(numbered_shards, tmp_path, imports):
    code = f"""
np.savez({str(tmp_path / "streaming.npz")!r}, *first(streaming))
np.savez({str(tmp_path / "resident.npz")!r}, *first(resident))
"""
    assert ended(start(numbered_shards, code, imports))[0] == 0
    images, labels, _ = load_shards(numbered_shards)
    for name, n, augment in (("resident", len(labels), Augment(2)), ("streaming", 8, Augment(0, False))):
        mixed, targets = np.load(tmp_path / f"{name}.npz").values()
        draw = Draw(5, 0, np.arange(8), FDT(), augment)
        expected = defined_outputs(images[:n], Pool(labels[:n], 7), draw, [0.0] * 3, 1.0)
        assert np.array_equal(targets, expected[1])
        assert np.abs(mixed - expected[0].transpose(0, 3, 1, 2)).max() < 2e-6 * 256


@pytest.mark.process
def test_a_serialized_pipeline_runs_in_another_process_once_that_has_loaded_the_operators(numbered_shards, tmp_path):
    """It reads shards, as a source in Python would not go along. Nothing asks fn.fdt for an operator there."""
    file = tmp_path / "pipeline"
    write = f"Path({str(file)!r}).write_bytes(streaming().serialize())\nprint(*first(streaming)[1].ravel())"
    read = f"""
from nvidia.dali import Pipeline
fdt_pipeline.load_operators()
pipeline = Pipeline.deserialize(filename={str(file)!r}, batch_size=8, num_threads=2)
print(*first(lambda: pipeline)[1].ravel())
"""
    expected, got = (ended(start(numbered_shards, code)) for code in (write, read))
    assert expected[0] == 0, expected
    assert got[:2] == expected[:2], got


FORK = """
def same(parts, expected):
    return all(np.array_equal(part, other) for part, other in zip(parts, expected))

def in_a_child(work):
    child = os.fork()
    if child == 0:
        done = False
        try:
            signal.alarm(30)  # faulthandler's thread did not come along
            done = work()
        finally:
            os._exit(0 if done else 1)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
"""


@pytest.mark.process
@pytest.mark.parametrize("graph", ["resident", "streaming"])
def test_a_child_of_a_fork_runs_pipelines_of_its_own_before_and_after_its_parent_ran_one(numbered_shards, graph):
    code = f"""
before = in_a_child(lambda: len(first({graph})) == 2)
kept = started({graph})
expected = first({graph})
print(before, in_a_child(lambda: same(first({graph}), expected)), same(first({graph}), expected))
"""
    assert ended(start(numbered_shards, FORK + code))[:2] == (0, "0 0 True\n")


@pytest.mark.process
def test_without_the_native_engine_a_loader_takes_torch_and_says_why_once(numbered_shards):
    code = f"""
os.environ["FDT_PIPELINE_NATIVE"] = "0"
from fdt_pipeline import FDTLoader
for _ in range(2):
    loader = FDTLoader({str(numbered_shards)!r}, 8)
    images, targets = next(iter(loader))
    print(loader.engine, tuple(images.shape))
try:
    FDTLoader({str(numbered_shards)!r}, 8, engine="native")
except ImportError as error:
    print(error)
"""
    code, output, errors = ended(start(numbered_shards, code))
    assert output.splitlines()[:2] == ["torch (8, 3, 6, 5)"] * 2
    assert "the native engine is turned off by FDT_PIPELINE_NATIVE=0: unset it" in output.splitlines()[2]
    assert errors.count("UserWarning: the torch engine is used, which is slower") == 1, errors
    assert code == 0
