"""Turns under a clock that only contenders move."""

from types import SimpleNamespace

import pytest
import torch

from tools.bench.epoch_count import EpochCount
from tools.bench.errors import RefusedError
from tools.bench.fingerprints import Fingerprints
from tools.bench.turn import Taker

TASK = SimpleNamespace(num_workers=2, batch_size=10, manifest=SimpleNamespace(num_samples=100))


class Clock:
    def __init__(self):
        self.now = 0.0

    def __call__(self):
        return self.now


class Timed:
    """Batches of 10 images that take cost(number) seconds each, numbered from the first one on."""

    def __init__(self, clock, cost, batches=10):
        self.clock, self.cost, self.batches, self.number, self.epochs = clock, cost, batches, 0, []

    def epoch(self, number):
        self.epochs.append(number)
        for _ in range(self.batches):
            self.clock.now += self.cost(self.number)
            self.number += 1
            yield torch.full((10, 1, 2, 2), float(self.number)), None


def taker(cost, **options):
    clock = Clock()
    contender = Timed(clock, cost)
    return Taker(contender, TASK, clock=clock, **options), contender, clock


def test_a_turn_counts_whole_batches_for_at_least_its_seconds():
    turn = taker(lambda number: 0.3)[0].turn(2)
    assert (turn.batches, turn.images) == (7, 70)
    assert turn.seconds == pytest.approx(2.1)
    assert turn.rate == pytest.approx(10 / 0.3)


def test_batches_made_ahead_while_others_had_their_turns_are_not_counted():
    ahead = 2 * TASK.num_workers
    turn = taker(lambda number: 0.0 if number < ahead else 0.5)[0].turn(2)
    assert turn.rate == pytest.approx(20)


def test_a_turn_goes_across_the_ends_of_epochs_and_pays_for_them():
    found, contender, _ = taker(lambda number: 1.0 if number % 10 == 0 else 0.1)
    turn = found.turn(19)
    assert contender.epochs[:3] == [0, 1, 2]
    assert turn.rate == pytest.approx(100 / 1.9)
    assert turn.epoch == contender.epochs[-1]


def test_the_quantiles_of_a_batch_are_those_of_the_timed_ones():
    turn = taker(lambda number: 2.0 if number % 20 == 19 else 0.1)[0].turn(19)
    assert turn.p50 == pytest.approx(0.1)
    assert turn.p99 == pytest.approx(2.0)


def test_batches_that_come_together_are_timed_together():
    """A window of 4 batches: the first takes all of the time."""
    clock = Clock()
    contender = Timed(clock, lambda number: 4.0 if number % 4 == 0 else 0.0)
    contender.batches_at_once = 4
    for seconds in (1, 4.5, 9):
        turn = Taker(contender, TASK, clock=clock, count=EpochCount.none()).turn(seconds)
        assert turn.batches % 4 == 0
        assert turn.rate == pytest.approx(10)


def test_the_first_epoch_has_its_first_batch_and_ends_with_it():
    found, _, clock = taker(lambda number: 5.0 if number == 0 else 0.1)
    start = found.first_epoch(100)
    assert start["first_batch_seconds"] == 5.0
    assert start["first_epoch"] == {"images": 110, "seconds": 6.0, "whole": True}
    assert clock.now == pytest.approx(6.0)


def test_a_long_first_epoch_is_broken_off():
    start = taker(lambda number: 3.0)[0].first_epoch(10)
    assert start["first_epoch"] == {"images": 40, "seconds": 12.0, "whole": False}


def test_the_time_of_a_trainer_is_not_waiting():
    def step(images, targets):
        clock.now += 0.3

    found, _, clock = taker(lambda number: 0.1, step=step)
    turn = found.turn(4)
    assert turn.rate == pytest.approx(10 / 0.4)
    assert turn.waited / turn.seconds == pytest.approx(0.25)


def test_without_a_trainer_all_of_the_time_is_waiting():
    turn = taker(lambda number: 0.1)[0].turn(1)
    assert turn.waited == pytest.approx(turn.seconds)


@pytest.mark.parametrize(("batches", "message"), [(5, "50 images, expected 81 to 100"), (11, "110 images or more")])
def test_an_epoch_that_is_not_the_sets_is_refused_while_it_is_timed(batches, message):
    found, contender, _ = taker(lambda number: 0.1)
    contender.batches = batches
    with pytest.raises(RefusedError, match=message):
        found.turn(5)


def test_each_worker_may_leave_out_its_last_batch():
    found, contender, _ = taker(lambda number: 0.1)
    contender.batches = 9
    assert found.turn(5).images


def test_an_empty_epoch_is_refused():
    found, contender, _ = taker(lambda number: 0.1)
    contender.batches = 0
    with pytest.raises(RefusedError, match="0 images"):
        found.turn(1)


def test_the_same_batch_again_and_again_is_refused():
    found, contender, _ = taker(lambda number: 0.1, fingerprints=Fingerprints())
    found.turn(1)
    contender.number = 0
    contender.epoch = lambda number: iter([(torch.zeros(10, 1, 2, 2), None)] * 10)
    turns = (found.turn(0) for _ in range(5))
    with pytest.raises(RefusedError, match="the same batch"):
        list(turns)
