"""`fdt-pipeline build` and `doctor`: what it says, and its exit codes."""

import json
import shutil

import pytest
import torch

from fdt_pipeline.cli import main
from fdt_pipeline.definition.plans import draw_plans
from fdt_pipeline.native import gpu_check
from fdt_pipeline.native.doctor import examine, is_usable
from fdt_pipeline.native.recipe import operator_recipe
from tests.native_stand_in import write_sources

pytestmark = [pytest.mark.skipif(shutil.which("g++") is None, reason="needs g++"), pytest.mark.dali]


@pytest.fixture(autouse=True)
def stand_in(tmp_path, monkeypatch):
    """Small sources instead of the true ones, and a cache of this test alone. -> the folder of the sources."""
    sources = write_sources(tmp_path / "sources")
    for module in ("build", "doctor"):
        monkeypatch.setattr(f"fdt_pipeline.native.{module}.operator_recipe", lambda: operator_recipe(sources))
    monkeypatch.setenv("FDT_PIPELINE_CACHE", str(tmp_path / "cache"))
    for name in ("CXX", "FDT_PIPELINE_NATIVE", "FDT_PIPELINE_ISA"):
        monkeypatch.delenv(name, raising=False)
    return sources


def doctor(capsys):
    code = main(["doctor", "--json"])
    return code, json.loads(capsys.readouterr().out)


def set_gpu(monkeypatch, gpu, nvrtc="/lib/libnvrtc.so.13"):
    def look():
        if not gpu:
            raise ImportError("no NVIDIA driver")
        return "H100, compute capability 9.0"

    monkeypatch.setattr("fdt_pipeline.native.doctor._gpu", look)
    monkeypatch.setattr("fdt_pipeline.native.doctor.nvrtc_path", lambda: nvrtc)


def test_build_prints_the_path_and_the_seconds_or_the_compilers_words(capsys, tmp_path, stand_in):
    for arguments, printed in (([], "compiled in "), ([], "it was there already"), (["--force"], "compiled in ")):
        assert main(["build", *arguments]) == 0
        path, rest = capsys.readouterr().out.splitlines()
        assert path.startswith(str(tmp_path / "cache" / f"{operator_recipe(stand_in).name}-"))
        assert printed in rest
    (stand_in / "pool_api.cc").write_text("#error the compiler's own words\n")
    assert main(["build"]) == 1
    printed = capsys.readouterr()
    assert printed.out == ""
    assert "the compiler's own words" in printed.err


def test_doctor_sees_the_built_library(capsys, tmp_path):
    code, before = doctor(capsys)
    assert (code, before["library"]["found"], (tmp_path / "cache").exists()) == (0, False, False)
    main(["build"])
    path = capsys.readouterr().out.splitlines()[0]
    code, after = doctor(capsys)
    assert (code, after["library"]["found"], after["engine"]["cpu"]) == (0, True, "native")
    assert after["library"]["text"].startswith(f"{path}, ")


def test_doctor_prints_a_line_for_everything_that_matters(capsys):
    assert main(["doctor"]) == 0
    lines = capsys.readouterr().out.splitlines()
    names = [line.split()[0] for line in lines if not line.startswith(" ")]
    assert names == [
        "switch", "Python", "DALI", "compiler", "headers", "GPU", "NVRTC", "CPU", "cache", "library", "engine"
    ]  # fmt: skip
    assert max(map(len, lines)) < 200


def no_dali():
    raise ImportError("the pipeline needs NVIDIA DALI: pip install it")


def block_cache(patch):
    patch.setenv("FDT_PIPELINE_CACHE", f"{__file__}/cache")  # below a file


@pytest.mark.parametrize(
    ("part", "change", "words", "engine"),
    [
        ("compiler", lambda patch: patch.setenv("PATH", ""), "apt-get install g++", "torch"),
        ("switch", lambda patch: patch.setenv("FDT_PIPELINE_NATIVE", "0"), "turned off by FDT_PIPELINE_NATI", "torch"),
        ("DALI", lambda patch: patch.setattr("fdt_pipeline.dali.import_dali", no_dali), "pip install", "torch"),
        ("cache", block_cache, "builds go to", "native"),
    ],
)
def test_what_is_missing_is_named_and_exits_1_if_the_engine_needs_it(capsys, monkeypatch, part, change, words, engine):
    change(monkeypatch)
    code, found = doctor(capsys)
    assert (code, found["engine"]["cpu"], found[part]["found"]) == (engine == "torch", engine, False)
    assert words in found[part]["text"]
    assert (f'device="cpu": torch, see {part}' in found["engine"]["text"]) == (engine == "torch")


@pytest.mark.parametrize(
    ("gpu", "nvrtc", "engine", "why"),
    [
        (False, None, None, "see GPU"),
        (True, None, None, "see NVRTC"),
        (True, "/lib/libnvrtc.so.13", "native", "compiled by NVRTC"),
    ],
)
def test_the_engine_on_a_gpu_needs_a_gpu_and_nvrtc(capsys, monkeypatch, gpu, nvrtc, engine, why):
    set_gpu(monkeypatch, gpu, nvrtc)
    code, found = doctor(capsys)
    assert (code, found["engine"]["cuda"]) == (0, engine)
    assert why in found["engine"]["text"]


def test_a_variable_that_has_a_wrong_value_exits_2(capsys, monkeypatch):
    monkeypatch.setenv("FDT_PIPELINE_ISA", "nonsense")
    assert main(["doctor"]) == 2
    assert "FDT_PIPELINE_ISA must be one of" in capsys.readouterr().err


def test_the_check_of_the_gpu_is_a_finding_of_its_own(monkeypatch):
    def differ():
        raise RuntimeError("the image of output 3 is not the definition's")

    def found(gpu, check):
        set_gpu(monkeypatch, gpu)
        monkeypatch.setattr("fdt_pipeline.native.doctor.check_operators", check)
        findings = examine(gpu=True)
        return findings["GPU check"]["text"], is_usable(findings)

    assert found(False, differ) == ("not run: no GPU", False)
    assert found(True, lambda: "all agree") == ("passed: all agree", True)
    assert found(True, differ) == ("FAILED: the image of output 3 is not the definition's", False)


def test_the_check_passes_on_the_cpu_and_on_a_gpu_and_finds_what_differs(monkeypatch):
    """By the true operators."""
    monkeypatch.undo()
    for device in [("cpu", None), *([()] if torch.cuda.is_available() else [])]:
        assert gpu_check.check_operators(*device).startswith("both operators give the definition's targets")
    monkeypatch.setattr(gpu_check, "draw_plans", lambda seed, *given: draw_plans(seed + 1, *given))
    with pytest.raises(RuntimeError, match="superpose_resident on the cpu: the image of output 0 is not the definiti"):
        gpu_check.check_operators("cpu", None)
