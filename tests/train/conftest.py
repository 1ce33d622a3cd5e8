"""One trained run, which most tests of the trainer's commands look at or copy."""

import pytest

from tests.train.made_up import fit_command
from train.__main__ import main


@pytest.fixture(scope="session")
def trained(few_shards, tmp_path_factory):
    """Folder of a run of small_tn_fdt, 4 epochs of 6 steps. Tests that change it take a copy."""
    out = tmp_path_factory.mktemp("trained") / "run"
    assert main(fit_command(few_shards, out)) == 0
    return out


@pytest.fixture
def shown(capsys):
    """-> function that runs `python -m train ARGUMENTS`, wants exit code 0, and returns stdout."""

    def run(*arguments):
        capsys.readouterr()
        assert main([str(argument) for argument in arguments]) == 0
        return capsys.readouterr().out

    return run


@pytest.fixture
def refused(capsys):
    """The same for exit code 2 (or `code`) and stderr."""

    def run(*arguments, code=2):
        capsys.readouterr()
        assert main([str(argument) for argument in arguments]) == code
        return capsys.readouterr().err

    return run
