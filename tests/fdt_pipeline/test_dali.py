import subprocess
import sys
import warnings

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


FAKE = """
import sys, warnings
for category, text in ((DeprecationWarning, "distutils Version classes are deprecated"), (DeprecationWarning, "other"),
                       (UserWarning, "distutils")):
    warnings.warn_explicit(text, category, "gast_util.py", 1, module="nvidia.dali._autograph.pyct.gast_util")
for module in ("distutils.version", "setuptools._distutils.version", "mine"):
    warnings.warn_explicit(f"distutils in {module}", DeprecationWarning, "version.py", 1, module=module)
"""


def test_of_dalis_import_the_one_warning_is_silenced_that_nobody_can_mend(monkeypatch, tmp_path):
    for name in [name for name in sys.modules if name.partition(".")[0] == "nvidia"]:
        monkeypatch.delitem(sys.modules, name)
    (tmp_path / "nvidia" / "dali").mkdir(parents=True)
    (tmp_path / "nvidia" / "__init__.py").touch()
    (tmp_path / "nvidia" / "dali" / "__init__.py").write_text(FAKE)
    monkeypatch.syspath_prepend(tmp_path)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        dali.import_dali()
    for name in [name for name in sys.modules if name.partition(".")[0] == "nvidia"]:
        monkeypatch.delitem(sys.modules, name)
    assert [(w.category, str(w.message)) for w in caught] == [
        (DeprecationWarning, "other"),
        (UserWarning, "distutils"),
        (DeprecationWarning, "distutils in mine"),
    ]


@pytest.mark.process
def test_a_loader_can_be_made_where_warnings_are_errors(numbered_shards):
    code = f"from fdt_pipeline import FDTLoader; next(iter(FDTLoader({str(numbered_shards)!r}, 23, engine='torch')))"
    done = subprocess.run([sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
