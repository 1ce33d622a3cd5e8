"""Rounds, and what they find, under a clock without time."""

import numpy as np
import pytest

from tools.bench.race import Raced, race
from tools.bench.results import paired_ratio
from tools.bench.task import FailedError, NotInstalledError, RefusedError
from tools.rounds import measure_rounds, turn_order


class FakeWorker:
    """Has a rate; the machine's clock and the worker's own noise come on top."""

    def __init__(self, name, rate, log, noise=0.0, fails_in=None, error=None):
        self.name, self.rate, self.log, self.fails_in, self.error = name, rate, log, fails_in, error
        self.rng, self.noise = np.random.default_rng(len(name)), noise

    def start(self, seconds):
        self._maybe("start")
        self.log.append(("start", self.name))
        return {"set_up_seconds": 1.0}

    def turn(self, seconds):
        self.log.append(("turn", self.name))
        self._maybe(sum(entry == ("turn", self.name) for entry in self.log))
        return {"rate": self.rate * float(np.exp(self.noise * self.rng.normal()))}

    def close(self):
        self.log.append(("close", self.name))
        self._maybe("close")

    def _maybe(self, moment):
        if moment == self.fails_in:
            raise self.error


def raced(workers, repeats=3):
    log = next(iter(workers.values())).log
    found = {name: Raced() for name in workers}
    race({name: (lambda name=name: workers[name], found[name]) for name in workers}, repeats, 1.0, say=log.append)
    return found


def test_every_contender_has_a_turn_a_round_and_the_first_round_is_left_out():
    log = []
    found = raced({name: FakeWorker(name, 100, log) for name in "abc"})
    turns = [entry[1] for entry in log if entry[0] == "turn"]
    assert [sorted(turns[i : i + 3]) for i in range(0, 12, 3)] == [["a", "b", "c"]] * 4
    assert {name: len(one.turns) for name, one in found.items()} == {"a": 3, "b": 3, "c": 3}


def test_the_order_changes_from_round_to_round():
    orders = ["".join(turn_order("abc", number)) for number in range(6)]
    assert len({order[0] for order in orders}) == 3
    followers = {order[order.index("a") - 1] for order in orders if order[0] != "a"}
    assert followers == {"b", "c"}


@pytest.mark.parametrize("moment", ["start", 2, "close"])
@pytest.mark.parametrize("error", [RefusedError, FailedError, NotInstalledError])
def test_a_contender_that_fails_is_dropped_with_the_reason_and_the_others_go_on(error, moment):
    log = []
    workers = {
        "a": FakeWorker("a", 100, log),
        "b": FakeWorker("b", 100, log, fails_in=moment, error=error("it cheats")),
    }
    found = raced(workers)
    status = {RefusedError: "refused", FailedError: "failed", NotInstalledError: "not installed"}[error]
    assert (found["b"].status, found["b"].reason) == (status, "it cheats")
    assert found["a"].status == "measured"
    assert len(found["a"].turns) == 3
    assert sum(entry == ("turn", "b") for entry in log) == {"start": 0, 2: 2, "close": 4}[moment]
    assert sorted(entry[1] for entry in log if entry[0] == "close") == ["a", "b"], "all are closed in the end"


def test_the_first_reason_stays_where_the_end_fails_as_well():
    worker = FakeWorker("a", 100, [], fails_in=1, error=RefusedError("it cheats"))

    def close():
        raise FailedError("it did not end")

    worker.close = close
    assert raced({"a": worker})["a"].reason == "it cheats"


@pytest.mark.parametrize(("share", "low", "high"), [(1.0, 0.95, 1.05), (0.9, 0.85, 0.95)])
def test_the_race_finds_a_planted_slowdown_and_nothing_where_there_is_none(share, low, high):
    """The self-test: a contender against itself, and against one that has lost a tenth of its rate, with noise."""
    found = raced({name: FakeWorker(name, rate, [], 0.02) for name, rate in (("a", 100), ("b1", 100 * share))}, 15)
    rates = {name: [turn["rate"] for turn in one.turns] for name, one in found.items()}
    ratio = paired_ratio(rates["b1"], rates["a"])
    assert ratio.covers(share)
    assert low < ratio.low <= ratio.high < high
    assert share == 1 or ratio.high < 1


def test_rounds_of_functions_leave_out_a_warm_up():
    log = []
    contenders = {name: lambda name=name: log.append(name) or float(len(log)) for name in "ab"}
    figures = measure_rounds(contenders, 2)
    assert log == [*turn_order("ab", 0), *turn_order("ab", 1), *turn_order("ab", 2)]
    assert {name: len(values) for name, values in figures.items()} == {"a": 2, "b": 2}
    assert 1.0 not in figures["a"] + figures["b"]
