"""Libraries that tests compare with. A test without its peer is skipped, with the name of the extra that brings it."""

from importlib import import_module
from importlib.util import find_spec

import pytest


def needs(name, extra="test-all"):
    """Skip the test, or the file, where there is no such module; nothing is imported."""
    top = name.partition(".")[0]
    if find_spec(top) is None:
        pytest.skip(f'{top} is not installed: pip install -e ".[{extra}]"', allow_module_level=True)


def peer(name, extra="test-all"):
    """The module, where it is installed."""
    needs(name, extra)
    return import_module(name)
