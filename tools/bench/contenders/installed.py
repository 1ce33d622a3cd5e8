"""Libraries of others, imported when a contender is set up."""

from __future__ import annotations

from importlib import import_module
from typing import Any

from ..task import NotInstalledError


def imported(module: str, install: str) -> Any:
    """The module, or NotInstalledError that says what to install. A library that is there but does not import counts
    as not installed: the message says why."""
    try:
        return import_module(module)
    except ImportError as error:
        raise NotInstalledError(f"{module.partition('.')[0]} could not be imported ({error}): {install}") from error


def torchvision_v2() -> Any:
    return imported("torchvision.transforms.v2", "pip install torchvision")
