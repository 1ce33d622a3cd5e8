"""The Triton kernels: run against the eager passes, compiled for a GPU that need not be there, chosen where one is."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

triton = pytest.importorskip("triton", reason="torch for CPUs comes without Triton")

from fdt_pipeline.tensor_norm import fused  # noqa: E402
from fdt_pipeline.tensor_norm import triton_kernels as kernels  # noqa: E402


@pytest.mark.parametrize(
    "cases_of", [pytest.param("test", marks=pytest.mark.compile), "nan_spoils"], ids=["all", "one"]
)
def test_equal_to_the_eager_passes_on_the_gpu_or_in_tritons_interpreter(cases_of):
    environment = os.environ | ({} if torch.cuda.is_available() else {"TRITON_INTERPRET": "1"})
    cases = Path(__file__).with_name("triton_cases.py")
    command = [sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider", "-n0", "-k", cases_of, str(cases)]
    root = cases.parents[2]
    run = subprocess.run(command, check=False, capture_output=True, text=True, env=environment, cwd=root, timeout=600)
    assert run.returncode == 0, run.stdout[-5000:]


def compiled(kernel, dtype, adjacent, channels, pixels):
    """PTX for compute capability 9.0, with the tile that is launched there; `adjacent` is the stride that is 1."""
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    constants = {"channels": channels, "pixels": pixels, "exact": True}
    constants |= {name: 1 for name in kernel.arg_names if name == f"stride_{adjacent}"}
    constants = {name: value for name, value in constants.items() if name in kernel.arg_names}
    kinds = {name: f"*{dtype}" if name.endswith("_ptr") else "i32" for name in kernel.arg_names}
    signature = kinds | dict.fromkeys(constants, "constexpr")
    aligned = {(i,): [["tt.divisibility", 16]] for i, name in enumerate(kernel.arg_names) if name not in constants}
    source = ASTSource(kernel, signature, constants, aligned)
    return triton.compile(source, target=GPUTarget("cuda", 90, 32)).asm["ptx"]


@pytest.mark.compile
@pytest.mark.parametrize("name", ["_forward", "_backward"])
@pytest.mark.parametrize("dtype", ["bf16", "fp32"])
@pytest.mark.parametrize(("adjacent", "channels", "pixels"), [("z", 64, 64), ("p", 64, 64), ("p", 512, 16)])
def test_compiles_for_a_gpu_in_both_layouts_to_16_byte_writes(
    name, dtype, adjacent, channels, pixels, tmp_path, monkeypatch
):
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    ptx = compiled(getattr(kernels, name), dtype, adjacent, channels, pixels)
    map_bytes = channels * pixels * (2 if dtype == "bf16" else 4)
    assert ptx.count("st.global.v4.b32") == map_bytes // 16 // 128  # each of 4 warps' threads
    assert ".ftz" not in ptx  # the least positive numbers are not taken for zero


class OnGpu:
    is_cuda = True


def test_taken_for_cuda_tensors_where_they_run_and_never_shown_to_a_compiler(monkeypatch):
    on_gpu, eager = (kernels.forward, kernels.backward), (fused.forward, fused.backward)
    monkeypatch.setattr(fused, "_kernels", lambda: on_gpu)
    assert fused._passes(OnGpu()) == on_gpu
    assert fused._passes(torch.zeros(1, 1)) == eager
    with monkeypatch.context() as compiling:
        compiling.setattr(torch.compiler, "is_compiling", lambda: True)
        assert fused._passes(OnGpu()) == eager
    monkeypatch.setattr(fused, "_kernels", lambda: None)
    assert fused._passes(OnGpu()) == eager


def test_kernels_that_do_not_run_give_way_with_the_reason(monkeypatch):
    def failing(x):
        raise RuntimeError("Failed to find C compiler")

    monkeypatch.setattr(torch, "zeros", lambda *shape, **_: torch.empty(shape))
    monkeypatch.setattr(kernels, "forward", failing)
    with pytest.warns(UserWarning, match="do not run here .*Failed to find C compiler"):
        assert fused._kernels.__wrapped__() is None
