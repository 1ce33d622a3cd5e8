"""Operators that were built against the installed DALI are loaded into it; a stand-in of one operator plays them."""

import shutil

import pytest

from fdt_pipeline.native import NativeUnavailable, build, load
from tests.native_stand_in import DALI_OPERATORS, PATIENCE, start, write_sources

pytestmark = pytest.mark.dali

needs_compiler = pytest.mark.skipif(shutil.which("g++") is None, reason="needs g++")


@pytest.fixture(scope="module")
def cache_folder(tmp_path_factory):
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="module")
def run(tmp_path_factory, cache_folder):
    """Runs code in a process whose native operators are the stand-in; -> what it printed, in words."""
    sources = write_sources(tmp_path_factory.mktemp("stand_in"), operators=DALI_OPERATORS)
    prelude = f"""
import os, time
from functools import partial
from pathlib import Path
import numpy as np
from fdt_pipeline.native import build, load, recipe

build.operator_recipe = partial(recipe.operator_recipe, Path({str(sources)!r}))
recipe.import_module("nvidia.dali")

def answer():
    from nvidia.dali import fn, pipeline_def

    @pipeline_def(batch_size=2, num_threads=1, device_id=None)
    def graph():
        return fn.fdt.superpose(fn.external_source(lambda: np.zeros((2, 3), np.uint8), batch=False))

    pipeline = graph()
    pipeline.build()
    return np.unique(np.array(pipeline.run()[0].as_array()))
"""

    def run(code, **environment):
        process = start(prelude + code, FDT_PIPELINE_CACHE=cache_folder, **environment)
        output, errors = process.communicate(timeout=PATIENCE)
        assert output, errors
        return output.split()

    return run


@needs_compiler
def test_the_operator_is_in_dali_after_load_and_later_processes_compile_nothing(run):
    """Loading takes them 0.02 s on an idle machine."""
    assert run("load.load(); print(*answer())") == ["42"]
    assert run("build.compile_library = None; print(*answer())") == ["42"]  # asking DALI loads it


@pytest.mark.process
@needs_compiler
def test_threads_and_forks_share_one_load(run):
    code = """
import threading
threads = [threading.Thread(target=load.load) for _ in range(4)]
[thread.start() for thread in threads]; [thread.join() for thread in threads]
child = os.fork()
if child == 0:
    os._exit(0 if load.load().exists() and load.symbols().fdt_answer() == 42 else 1)
print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), *answer())
"""
    assert run(code) == ["0", "42"]


@pytest.mark.process
@needs_compiler
def test_the_library_gets_the_path_of_nvrtc(run):
    code = """
from ctypes import c_char_p
core = load.symbols()
core.fdt_nvrtc_path.restype = c_char_p
print(core.fdt_answer(), core.fdt_nvrtc_path().decode() or None)
"""
    assert run(code) == ["42", str(load.nvrtc_path())]


@pytest.fixture
def fresh(monkeypatch):
    """As if this process had loaded nothing."""
    monkeypatch.setattr(load, "_process", load._Process())


@pytest.mark.parametrize(
    ("variable", "value", "error", "match"),
    [
        ("FDT_PIPELINE_NATIVE", "0", NativeUnavailable, "turned off by FDT_PIPELINE_NATIVE=0"),
        ("FDT_PIPELINE_NATIVE", "off", ValueError, r"must be 0 \(off\) or 1 .* got 'off'"),
        ("FDT_PIPELINE_ISA", "v5", ValueError, "FDT_PIPELINE_ISA must be one of .*got 'v5'"),
    ],
)
def test_a_variable_that_turns_it_off_or_is_wrong_is_named(fresh, monkeypatch, variable, value, error, match):
    monkeypatch.setenv(variable, value)
    with pytest.raises(error, match=match):
        load.load()


def test_a_build_that_failed_is_not_tried_again_in_the_same_process(fresh, monkeypatch):
    asked = []

    def fail():
        asked.append(1)
        raise build.BuildFailed("the compiler's words")

    monkeypatch.setattr(load, "build", fail)
    for _ in range(2):
        with pytest.raises(NativeUnavailable, match="the compiler's words"):
            load.load()
    assert len(asked) == 1


@needs_compiler
def test_a_library_that_cannot_be_loaded_is_named_with_the_way_out(fresh, tmp_path, monkeypatch):
    (tmp_path / "nothing.so").write_text("not a library")
    monkeypatch.setattr(load, "build", lambda: build.Library(tmp_path / "nothing.so"))
    with pytest.raises(NativeUnavailable, match=r"nothing\.so.*build --force"):
        load.load()


def test_nvrtc_is_never_of_a_later_major_version_than_the_driver(monkeypatch):
    monkeypatch.setattr(load, "wheel_file", lambda wheel, name: f"{wheel}/{name}")
    for driver, expected in [
        (None, "nvidia-cuda-nvrtc/libnvrtc.so.13"),
        ("13.1", "nvidia-cuda-nvrtc/libnvrtc.so.13"),
        ("12.8", "nvidia-cuda-nvrtc-cu12/libnvrtc.so.12"),
    ]:
        monkeypatch.setattr(load, "driver_version", lambda driver=driver: driver)
        assert load.nvrtc_path() == expected
