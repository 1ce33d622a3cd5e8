"""Whether a GPU is relied on: here its check is played by another program, as there is no GPU."""

import subprocess
import sys

import pytest
import torch

from fdt_pipeline.loader import engines
from fdt_pipeline.native import cache, gpu_check
from fdt_pipeline.native.unavailable import NativeUnavailable

pytestmark = pytest.mark.dali


@pytest.fixture
def checks(monkeypatch, tmp_path):
    """What the check's process does, changed by the test, and how often it was asked."""

    class Checks:
        code, asked = "", 0

    def run(command, **options):
        assert command[1:3] == ["-m", "fdt_pipeline.native.gpu_check"]
        Checks.asked += 1
        return real([sys.executable, "-c", Checks.code], **options)

    real = subprocess.run
    monkeypatch.setattr(gpu_check.subprocess, "run", run)
    monkeypatch.setenv("FDT_PIPELINE_CACHE", str(tmp_path))
    monkeypatch.setattr(gpu_check, "load", lambda: tmp_path / "operators-1-2-3.so")
    return Checks


def test_a_check_that_passes_is_asked_once(checks):
    for _ in range(3):
        gpu_check.require_checked_gpu(0, "H100, CUDA 13.0")
    assert checks.asked == 1
    gpu_check.require_checked_gpu(0, "H100, CUDA 13.1")
    gpu_check.require_checked_gpu(1, "H100, CUDA 13.1")
    assert checks.asked == 3


def test_a_check_that_fails_is_an_error_with_its_words_and_is_asked_again(checks):
    checks.code = "print('plans differ at output 3'); raise SystemExit(1)"
    for _ in range(2):
        with pytest.raises(
            NativeUnavailable, match=r'check of H100 failed \(plans differ at output 3\); engine="torch"'
        ):
            gpu_check.require_checked_gpu(0, "H100")
    assert checks.asked == 2


def test_a_check_that_is_killed_fails(checks):
    checks.code = "import os, signal; os.kill(os.getpid(), signal.SIGSEGV)"
    with pytest.raises(NativeUnavailable, match="it was killed"):
        gpu_check.require_checked_gpu(0, "H100")


def test_a_cache_that_cannot_be_written_to_only_costs_another_check(checks, monkeypatch, tmp_path):
    monkeypatch.setattr(cache, "cache_folder", lambda: tmp_path / "file" / "below")
    (tmp_path / "file").touch()
    gpu_check.require_checked_gpu(0, "H100")
    gpu_check.require_checked_gpu(0, "H100")
    assert checks.asked == 2


def test_without_a_driver_the_real_check_fails_and_says_so():
    if torch.cuda.is_available():
        pytest.skip("there is a GPU: the check itself is test_native_gpu.py's")
    command = [sys.executable, "-m", "fdt_pipeline.native.gpu_check"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=200)
    assert done.returncode == 1
    assert "needs NVIDIA's driver" in done.stdout


@pytest.mark.parametrize(("asked", "chosen"), [("auto", "torch"), ("native", "native")])
def test_auto_takes_torch_where_the_check_fails_and_native_does_not_ask(checks, monkeypatch, asked, chosen):
    checks.code = "raise SystemExit(1)"
    monkeypatch.setattr(engines, "load", lambda: None)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda index: "H100")
    device = torch.device("cuda", 0)
    if chosen == "torch":
        with pytest.warns(UserWarning, match="the torch engine is used, which is slower: .*check of H100"):
            assert engines.choose_engine(asked, device, 10) == chosen
    else:
        assert engines.choose_engine(asked, device, 10) == chosen
        assert checks.asked == 0
