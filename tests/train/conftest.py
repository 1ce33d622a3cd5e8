"""One trained run, which most tests of the trainer's commands look at or copy."""

import pytest

from train.__main__ import main


@pytest.fixture(scope="session")
def trained(few_shards, tmp_path_factory):
    """Folder of a run of small_tn_fdt, 4 epochs of 6 steps. Tests that change it take a copy."""
    out = tmp_path_factory.mktemp("trained") / "run"
    command = ["fit", "--recipe", "small_tn_fdt", "--data", str(few_shards), "--out", str(out), "--device", "cpu"]
    assert main([*command, "--epochs", "4", "--batch-size", "50"]) == 0
    return out


@pytest.fixture
def refused(capsys):
    """-> function that runs `python -m train ARGUMENTS`, wants exit code 2 (or `code`), and returns stderr."""

    def run(*arguments, code=2):
        capsys.readouterr()
        assert main([str(argument) for argument in arguments]) == code
        return capsys.readouterr().err

    return run
