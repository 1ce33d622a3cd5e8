import subprocess
import sys

import pytest

from fdt_pipeline import dali

pytestmark = pytest.mark.dali


def test_one_wheel_is_installed_and_imports():
    assert len(dali.installed_wheels()) == 1
    assert dali.version().split(".")[0] in ("1", "2")


BOTH = ["nvidia-dali-cuda110", "nvidia-dali-cuda130"]


@pytest.mark.parametrize(
    ("wheels", "match"),
    [
        ([], r"needs NVIDIA DALI.*pip install nvidia-dali-cuda130 \(or"),
        (BOTH, rf"{BOTH[0]} and {BOTH[1]} are installed.*pip uninstall -y {BOTH[0]}"),
    ],
)
def test_no_wheel_or_two_are_an_error_that_says_what_to_do(monkeypatch, wheels, match):
    monkeypatch.setattr(dali, "installed_wheels", lambda: wheels)
    monkeypatch.setitem(sys.modules, "nvidia.dali", None)
    with pytest.raises(ImportError, match=match) as error:
        dali.import_dali()
    assert "\n" not in str(error.value)


@pytest.mark.process
def test_a_loader_can_be_made_where_warnings_are_errors(numbered_shards):
    code = f"from fdt_pipeline import FDTLoader; next(iter(FDTLoader({str(numbered_shards)!r}, 23, engine='torch')))"
    done = subprocess.run([sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
