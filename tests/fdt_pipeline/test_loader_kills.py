"""Killed with SIGKILL again and again, a run ends with the weights, bit for bit, of one that nobody disturbed."""

import multiprocessing
import random
import signal
import time

import pytest
import torch

from tests.killed_trainer import BATCH_SIZE, NUM_EPOCHS, train
from tests.loading import MODES
from tests.numbered import NUM_SAMPLES

pytestmark = [pytest.mark.soak, pytest.mark.dali]

KILLS = 12


@pytest.fixture(scope="module")
def processes():
    """Children are forked, in a tenth of a second, from a process that has imported everything and begun nothing."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["tests.killed_trainer"])
    warm = context.Process(target=int)
    warm.start()
    warm.join()
    return context


@pytest.mark.parametrize("mode", MODES)
def test_a_killed_trainer_ends_with_the_weights_of_one_that_was_not(numbered_shards, tmp_path, processes, mode):
    """Killed while it begins, writes, steps or ends. A run that gets to its end is compared, and another begun."""

    def live(folder, seconds=None):
        """The exit code of a trainer that is killed after so many seconds."""
        folder.mkdir(exist_ok=True)
        process = processes.Process(target=train, args=(numbered_shards, folder, mode))
        process.start()
        process.join(seconds)
        process.kill()
        process.join()
        return process.exitcode

    begin = time.monotonic()
    assert live(tmp_path / "whole") == 0
    whole_run = time.monotonic() - begin
    whole = as_lists(torch.load(tmp_path / "whole" / "checkpoint.pt"))
    assert whole["num_steps"] == NUM_EPOCHS * -(-NUM_SAMPLES // BATCH_SIZE)
    chance, kills, checkpoint = random.Random(mode), 0, tmp_path / "killed" / "checkpoint.pt"
    while kills < KILLS or checkpoint.exists():
        exit_code = live(checkpoint.parent, chance.uniform(0, whole_run) if kills < KILLS else None)
        assert exit_code in (0, -signal.SIGKILL)
        kills += exit_code != 0
        if exit_code == 0:
            assert as_lists(torch.load(checkpoint)) == whole
            checkpoint.unlink()


def as_lists(tree):
    """The same with tensors as lists of numbers, which are equal bit for bit or not at all."""
    if isinstance(tree, dict):
        return {key: as_lists(value) for key, value in tree.items()}
    if isinstance(tree, list | tuple):
        return [as_lists(value) for value in tree]
    return tree.tolist() if isinstance(tree, torch.Tensor) else tree
