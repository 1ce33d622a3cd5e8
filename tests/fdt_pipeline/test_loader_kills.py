"""Killed with SIGKILL again and again, a run ends with the weights, bit for bit, of one that nobody disturbed."""

import multiprocessing
import os
import random
import signal

import pytest
import torch

from tests.killed_trainer import BATCH_SIZE, NUM_EPOCHS, train
from tests.numbered import NUM_SAMPLES

pytestmark = [pytest.mark.soak, pytest.mark.dali]

NUM_STEPS = NUM_EPOCHS * -(-NUM_SAMPLES // BATCH_SIZE)
KILLS = 12


@pytest.fixture(scope="module")
def processes():
    """Whose children are forked from one that has imported everything and begun nothing, in a tenth of a second."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["tests.killed_trainer"])
    return context


class Trainer:
    """One life of the trainer."""

    def __init__(self, processes, shards, folder, mode):
        self._reading, writing = processes.Pipe(duplex=False)
        self._process = processes.Process(target=_live, args=(shards, folder, mode, writing))
        self._process.start()
        writing.close()
        self._done = 0

    def kill_after(self, steps, seconds, chance):
        """When it has done so many steps and up to so many seconds more have passed, whatever it is doing then."""
        self._read(steps)
        self._process.join(chance.uniform(0, seconds))
        self._process.kill()

    def end(self):
        """(its exit code, the number of its steps)."""
        self._read(10**6)
        self._process.join()
        self._reading.close()
        return self._process.exitcode, self._done

    def _read(self, steps):
        while self._done < steps and os.read(self._reading.fileno(), 1):
            self._done += 1


def _live(shards, folder, mode, writing):
    train(shards, folder, mode, writing.fileno())


@pytest.mark.parametrize("mode", ["resident", "streaming"])
def test_a_killed_trainer_ends_with_the_weights_of_one_that_was_not(numbered_shards, tmp_path, processes, mode):
    """Killed some steps after the start, or some time after it: while it imports, writes, steps or shuts down. Where a
    run gets to its end between two kills, it is compared and another begun."""
    chance = random.Random(mode)
    for folder in ("whole", "killed"):
        (tmp_path / folder).mkdir()
    assert Trainer(processes, numbered_shards, tmp_path / "whole", mode).end() == (0, NUM_STEPS)
    whole = as_lists(torch.load(tmp_path / "whole" / "checkpoint.pt"))
    checkpoint = tmp_path / "killed" / "checkpoint.pt"
    kills = lives = steps = 0
    while kills < KILLS or checkpoint.exists():
        trainer = Trainer(processes, numbered_shards, checkpoint.parent, mode)
        if kills < KILLS:
            trainer.kill_after(*((chance.randrange(5), 0.01) if lives % 2 else (0, 0.3)), chance)
        exit_code, done = trainer.end()
        lives, steps, kills = lives + 1, steps + done, kills + (exit_code == -signal.SIGKILL)
        assert exit_code in (0, -signal.SIGKILL)
        assert steps <= NUM_STEPS, "a step that was in a checkpoint was done again"
        if exit_code == 0:
            assert steps >= NUM_STEPS - lives, "steps were left out"
            assert as_lists(torch.load(checkpoint)) == whole
            checkpoint.unlink()
            lives = steps = 0


def as_lists(tree):
    """The same with tensors as lists of numbers, which are equal bit for bit or not at all."""
    if isinstance(tree, dict):
        return {key: as_lists(value) for key, value in tree.items()}
    if isinstance(tree, list | tuple):
        return [as_lists(value) for value in tree]
    return tree.tolist() if isinstance(tree, torch.Tensor) else tree
