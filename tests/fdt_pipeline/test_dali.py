import sys

import pytest

from fdt_pipeline import dali


def test_one_wheel_is_installed_and_imports():
    assert len(dali.installed_wheels()) == 1
    assert dali.version().split(".")[0] in ("1", "2")


def test_without_a_wheel_the_error_says_what_to_install(monkeypatch):
    monkeypatch.setattr(dali, "installed_wheels", list)
    monkeypatch.setitem(sys.modules, "nvidia.dali", None)
    with pytest.raises(ImportError, match=r"needs NVIDIA DALI.*pip install nvidia-dali-cuda130 \(or") as error:
        dali.import_dali()
    assert "\n" not in str(error.value)


def test_two_wheels_are_refused_with_what_to_remove(monkeypatch):
    monkeypatch.setattr(dali, "_is_installed", lambda name: name != "nvidia-dali-cuda120")
    expected = r"nvidia-dali-cuda110 and nvidia-dali-cuda130 are installed.*pip uninstall -y nvidia-dali-cuda110"
    with pytest.raises(ImportError, match=expected) as error:
        dali.import_dali()
    assert "\n" not in str(error.value)
