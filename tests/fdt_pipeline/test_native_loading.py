"""The operators are loaded into the installed DALI once, and what stands against it is named."""

import shutil

import pytest

from fdt_pipeline.native import NativeUnavailable, build, load
from tests.native_stand_in import PATIENCE, start

pytestmark = [pytest.mark.skipif(shutil.which("g++") is None, reason="needs g++"), pytest.mark.dali]


def run(code):
    """What code prints in a process of its own, in words."""
    process = start("import os\nfrom fdt_pipeline.native import build, load\n" + code)
    output, errors = process.communicate(timeout=PATIENCE)
    assert output, errors
    return output.split()


def test_the_operator_is_in_dali_after_load_and_later_processes_compile_nothing():
    """Loading takes them 0.02 s on an idle machine."""
    loaded = "print(load.load()); from nvidia.dali import fn; print(fn.fdt.superpose.__name__)"
    asked = "from nvidia.dali import fn; fn.fdt.superpose; build.compile_library = None; " + loaded
    assert run(asked) == run("build.compile_library = None; " + loaded)


@pytest.mark.process
def test_threads_and_forks_share_one_load():
    code = """
import threading
builds, build_once = [], load.build
load.build = lambda: builds.append(1) or build_once()
threads = [threading.Thread(target=load.load) for _ in range(4)]
[thread.start() for thread in threads]; [thread.join() for thread in threads]
child = os.fork()
if child == 0:
    os._exit(0 if load.load().exists() and load.symbols().fdt_error() else 1)
print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), len(builds))
"""
    assert run(code) == ["0", "1"]


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
