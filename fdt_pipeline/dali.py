"""The one door to NVIDIA DALI: exactly one of its wheels must be installed, as they share a folder."""

from __future__ import annotations

import warnings
from importlib import import_module, metadata
from typing import Any

WHEELS = ("nvidia-dali-cuda110", "nvidia-dali-cuda120", "nvidia-dali-cuda130")
_INSTALL = (
    "pip install nvidia-dali-cuda130 (or nvidia-dali-cuda120, or nvidia-dali-cuda110==1.34.0), with or without a GPU"
)


def installed_wheels() -> list[str]:
    """The DALI wheels that pip knows of here."""
    return [wheel for wheel in WHEELS if _is_installed(wheel)]


def _is_installed(name: str) -> bool:
    try:
        metadata.version(name)
    except metadata.PackageNotFoundError:
        return False
    return True


def import_dali() -> Any:
    """The module nvidia.dali, or an ImportError that says in one sentence what to install."""
    wheels = installed_wheels()
    if len(wheels) > 1:
        both = " and ".join(wheels)
        raise ImportError(
            f"{both} are installed, but they overwrite each other's files: "
            f"pip uninstall -y {' '.join(wheels)}, then {_INSTALL}"
        )
    try:
        with warnings.catch_warnings():
            # DALI 1.34 imports distutils, and compares its versions. Warnings of other modules remain.
            modules = r"(nvidia\.dali|(setuptools\._)?distutils)\b"
            warnings.filterwarnings("ignore", ".*distutils", DeprecationWarning, modules)
            return import_module("nvidia.dali")
    except ImportError as error:
        raise ImportError(
            f"the pipeline needs NVIDIA DALI, which could not be imported ({error}): {_INSTALL}"
        ) from error


def version() -> str:
    """DALI's version, such as "1.34.0"."""
    return str(import_dali().__version__)
