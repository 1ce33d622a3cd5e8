"""The command line, run in the process of the test."""

from typing import NamedTuple

import pytest

from fdt_pipeline.cli import main


class Done(NamedTuple):
    code: int
    out: str
    err: str


@pytest.fixture
def run(capsys):
    """run(verb, *arguments): the exit code of `fdt-pipeline`, what it has printed, and its errors."""
    return lambda *arguments: Done(main([str(argument) for argument in arguments]), *capsys.readouterr())
