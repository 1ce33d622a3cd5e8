"""`fdt-pipeline build` and `doctor`: what it says, and its exit codes."""

import json
import shutil
import subprocess
import sys

import pytest
import torch

from fdt_pipeline.cli import main
from fdt_pipeline.definition.plans import draw_plans
from fdt_pipeline.native import gpu_check
from fdt_pipeline.native.doctor import examine, is_usable
from fdt_pipeline.native.driver import Driver, Gpu, Nvrtc
from fdt_pipeline.native.recipe import operator_recipe
from tests.native_stand_in import write_sources

pytestmark = pytest.mark.dali

NVRTC = Nvrtc("/lib/libnvrtc.so.13", "13.0")
needs_compiler = pytest.mark.skipif(shutil.which("g++") is None, reason="needs g++")


@pytest.fixture(autouse=True)
def stand_in(tmp_path, monkeypatch):
    """Small sources instead of the true ones, and a cache of this test alone. -> the folder of the sources."""
    sources = write_sources(tmp_path / "sources")
    monkeypatch.setattr("fdt_pipeline.native.build.operator_recipe", lambda: operator_recipe(sources))
    monkeypatch.setenv("FDT_PIPELINE_CACHE", str(tmp_path / "cache"))
    for name in ("CXX", "FDT_PIPELINE_NATIVE", "FDT_PIPELINE_ISA"):
        monkeypatch.delenv(name, raising=False)
    return sources


def doctor(capsys):
    code = main(["doctor", "--json"])
    return code, json.loads(capsys.readouterr().out)


def set_gpu(monkeypatch, capabilities, nvrtc=NVRTC):
    driver = Driver("13.0", tuple(Gpu("H100", capability) for capability in capabilities))
    monkeypatch.setattr("fdt_pipeline.native.doctor.find_driver", lambda: driver)
    monkeypatch.setattr("fdt_pipeline.native.doctor.find_nvrtc", lambda: nvrtc)


@needs_compiler
def test_build_prints_the_path_the_seconds_and_the_key(capsys, tmp_path, stand_in):
    assert main(["build"]) == 0
    path, rest = capsys.readouterr().out.splitlines()
    assert path.startswith(str(tmp_path / "cache" / "operators-"))
    assert rest.startswith(f"key {operator_recipe(stand_in).key}, ")
    assert path.split("operators-")[1].startswith(operator_recipe(stand_in).key)
    assert "compiled in " in rest
    assert main(["build"]) == 0
    assert capsys.readouterr().out.endswith("it was there already\n")
    assert main(["build", "--force"]) == 0
    assert "compiled in " in capsys.readouterr().out


@needs_compiler
def test_a_failed_build_shows_the_compilers_words_and_exits_1(capsys, stand_in):
    (stand_in / "pool_api.cc").write_text("#error the compiler's own words\n")
    assert main(["build"]) == 1
    printed = capsys.readouterr()
    assert printed.out == ""
    assert "the compiler's own words" in printed.err


@needs_compiler
def test_doctor_sees_the_built_library(capsys):
    code, before = doctor(capsys)
    assert (code, before["library"]["path"]) == (0, None)
    main(["build"])
    path = capsys.readouterr().out.splitlines()[0]
    code, after = doctor(capsys)
    assert (code, after["library"]["path"], after["engine"]["reason"]) == (0, path, "it has been built")
    assert after["library"]["bytes"] > 1000


@needs_compiler
def test_doctor_makes_nothing(capsys, tmp_path):
    doctor(capsys)
    assert not (tmp_path / "cache").exists()


@needs_compiler
def test_doctor_prints_a_line_for_everything_that_matters(capsys):
    assert main(["doctor"]) == 0
    lines = capsys.readouterr().out.splitlines()
    names = [line.split()[0] for line in lines if not line.startswith(" ")]
    assert names == ["Python", "DALI", "compiler", "headers", "GPU", "NVRTC", "CPU", "cache", "library", "engine"]
    assert max(map(len, lines)) < 200


def test_without_a_compiler_doctor_exits_1_and_says_what_to_install(capsys, monkeypatch):
    monkeypatch.setenv("PATH", "")
    code, found = doctor(capsys)
    assert (code, found["engine"]["cpu"], found["compiler"]["command"]) == (1, "torch", None)
    assert "apt-get install g++" in found["compiler"]["text"]
    assert found["engine"]["text"].startswith('device="cpu": torch, see compiler')


def test_turned_off_it_exits_1_and_says_by_what(capsys, monkeypatch):
    monkeypatch.setenv("FDT_PIPELINE_NATIVE", "0")
    code, found = doctor(capsys)
    assert code == 1
    assert "FDT_PIPELINE_NATIVE=0" in found["engine"]["reason"]


def test_without_dali_it_exits_1_and_says_what_to_install(capsys, monkeypatch):
    def no_dali():
        raise ImportError("the pipeline needs NVIDIA DALI: pip install it")

    monkeypatch.setattr("fdt_pipeline.dali.import_dali", no_dali)
    code, found = doctor(capsys)
    assert (code, found["DALI"]["version"]) == (1, None)
    assert "pip install" in found["DALI"]["text"]


@needs_compiler
@pytest.mark.parametrize(
    ("gpus", "nvrtc", "engine", "why"),
    [
        ([], None, None, "no GPU"),
        (["9.0"], None, None, "NVRTC is missing"),
        (["9.0"], NVRTC, "native", "compiled by NVRTC 13.0 for compute capability 9.0"),
    ],
)
def test_the_engine_on_a_gpu_needs_a_gpu_and_nvrtc(capsys, monkeypatch, gpus, nvrtc, engine, why):
    set_gpu(monkeypatch, gpus, nvrtc)
    code, found = doctor(capsys)
    assert (code, found["engine"]["cuda"]) == (0, engine)
    assert why in found["engine"]["text"]


@needs_compiler
def test_a_cache_that_cannot_be_written_to_is_reported(capsys, monkeypatch, tmp_path):
    (tmp_path / "file").touch()
    monkeypatch.setenv("FDT_PIPELINE_CACHE", str(tmp_path / "file" / "cache"))
    code, found = doctor(capsys)
    assert (code, found["cache"]["writable"]) == (0, False)
    assert "builds go to" in found["cache"]["text"]


@pytest.mark.parametrize("arguments", [[], ["cure"], ["doctor", "--xml"]])
def test_a_wrong_usage_exits_2(arguments):
    done = subprocess.run(
        [sys.executable, "-m", "fdt_pipeline", *arguments], capture_output=True, text=True, check=False
    )
    assert done.returncode == 2
    assert done.stderr.startswith("usage: fdt-pipeline")


@pytest.mark.parametrize(
    ("variable", "value", "match"),
    [
        ("FDT_PIPELINE_ISA", "nonsense", "FDT_PIPELINE_ISA must be one of"),
        ("FDT_PIPELINE_NATIVE", "perhaps", "must be 0 (off) or 1"),
    ],
)
def test_a_variable_that_has_a_wrong_value_exits_2(capsys, monkeypatch, variable, value, match):
    monkeypatch.setenv(variable, value)
    assert main(["doctor"]) == 2
    assert match in capsys.readouterr().err


@needs_compiler
def test_the_check_of_the_gpu_is_a_finding_of_its_own(monkeypatch):
    def check():
        raise RuntimeError("the image of output 3 is not the definition's")

    set_gpu(monkeypatch, [])
    findings = examine(gpu=True)
    assert (findings["GPU check"]["text"], is_usable(findings)) == ("not run: no GPU", False)
    set_gpu(monkeypatch, ["9.0"])
    monkeypatch.setattr("fdt_pipeline.native.doctor.check_operators", lambda: "all agree")
    findings = examine(gpu=True)
    assert (findings["GPU check"]["text"], is_usable(findings)) == ("passed: all agree", True)
    monkeypatch.setattr("fdt_pipeline.native.doctor.check_operators", check)
    findings = examine(gpu=True)
    assert (findings["GPU check"]["text"][:31], is_usable(findings)) == ("FAILED: the image of output 3 i", False)


@needs_compiler
def test_the_check_passes_on_the_cpu_and_finds_what_differs(monkeypatch):
    """By the true operators: where there is a GPU, the next test runs it there."""
    monkeypatch.undo()
    assert gpu_check.check_operators("cpu", None).startswith("both operators give the definition's targets")
    monkeypatch.setattr(gpu_check, "draw_plans", lambda seed, *given: draw_plans(seed + 1, *given))
    with pytest.raises(RuntimeError, match="superpose_resident on the cpu: the image of output 0 is not the definiti"):
        gpu_check.check_operators("cpu", None)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_the_check_passes_on_the_gpu(monkeypatch):
    monkeypatch.undo()
    assert gpu_check.check_operators().startswith("both operators give the definition's targets")
