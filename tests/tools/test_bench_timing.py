"""Turns under a clock that only contenders move."""

from contextlib import nullcontext
from types import SimpleNamespace

import pytest
import torch

from tools.bench.task import RefusedError
from tools.bench.timing import BatchTimer

TASK = SimpleNamespace(num_workers=2, batch_size=10, manifest=SimpleNamespace(num_samples=100))


class Timed:
    """Batches of 10 images that take cost(number) seconds of `now` each, numbered from the first one on."""

    def __init__(self, cost, batches=10):
        self.cost, self.batches = cost, batches
        self.now, self.number, self.epochs, self.differ = 0.0, 0, [], True

    def epoch(self, number):
        self.epochs.append(number)
        for _ in range(self.batches):
            self.now += self.cost(self.number)
            self.number += 1
            yield torch.full((10, 1, 2, 2), float(self.number if self.differ else 0)), None


def timer(cost, step=None, **about):
    contender = Timed(cost, **about)
    return BatchTimer(contender, TASK, clock=lambda: contender.now, step=step), contender


def test_a_turn_counts_whole_batches_for_at_least_its_seconds():
    turn = timer(lambda number: 0.3)[0].turn(2)
    assert (turn["batches"], turn["images"]) == (7, 70)
    assert turn["seconds"] == pytest.approx(2.1)
    assert turn["rate"] == pytest.approx(10 / 0.3, rel=1e-4)


def test_batches_made_ahead_while_others_had_their_turns_are_not_counted():
    ahead = 2 * TASK.num_workers
    turn = timer(lambda number: 0.0 if number < ahead else 0.5)[0].turn(2)
    assert turn["rate"] == pytest.approx(20)


def test_a_turn_goes_across_the_ends_of_epochs_and_pays_for_them():
    found, contender = timer(lambda number: 1.0 if number % 10 == 0 else 0.1)
    turn = found.turn(19)
    assert contender.epochs[:3] == [0, 1, 2]
    assert turn["rate"] == pytest.approx(100 / 1.9, rel=1e-4)
    assert turn["epoch"] == contender.epochs[-1]


def test_the_quantiles_of_a_batch_are_those_of_the_timed_ones():
    turn = timer(lambda number: 2.0 if number % 20 == 19 else 0.1)[0].turn(19)
    assert turn["p50"] == pytest.approx(0.1)
    assert turn["p99"] == pytest.approx(2.0)


@pytest.mark.parametrize(
    ("later", "limit", "images", "seconds", "whole"), [(0.1, 100, 110, 6.0, True), (3.0, 10, 30, 11.0, False)]
)
def test_the_first_epoch_has_its_first_batch_and_ends_with_it_or_at_its_limit(later, limit, images, seconds, whole):
    found, contender = timer(lambda number: later if number else 5.0)
    start = found.first_epoch(limit)
    assert start["first_batch_seconds"] == 5.0
    assert start["first_epoch"] == {"images": images, "seconds": seconds, "whole": whole}
    assert contender.now == pytest.approx(seconds)


def test_the_time_of_a_trainer_is_not_waiting_and_without_one_all_of_it_is():
    def step(images, targets):
        contender.now += 0.3

    found, contender = timer(lambda number: 0.1, step)
    turn = found.turn(4)
    assert turn["rate"] == pytest.approx(10 / 0.4)
    assert turn["waited"] / turn["seconds"] == pytest.approx(0.25)
    alone = timer(lambda number: 0.1)[0].turn(1)
    assert alone["waited"] == pytest.approx(alone["seconds"])


@pytest.mark.parametrize(
    ("batches", "message"),
    [(0, "0 images"), (5, "50 images, expected 81 to 100"), (11, "110 images or more"), (9, None)],
)
def test_an_epoch_that_is_not_the_sets_is_refused_while_it_is_timed(batches, message):
    """Each worker may leave out its last batch."""
    found, _ = timer(lambda number: 0.1, batches=batches)
    with pytest.raises(RefusedError, match=message) if message else nullcontext():
        assert found.turn(5)["images"]


def test_the_same_batch_again_and_again_is_refused():
    found, contender = timer(lambda number: 0.1)
    found.turn(1)
    turns = (found.turn(0.1) for _ in range(5))
    contender.differ = False
    with pytest.raises(RefusedError, match="the same batch"):
        list(turns)
