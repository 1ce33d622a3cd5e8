"""Rounds, and what they find, under a clock without time."""

import numpy as np
import pytest

from tools.bench.race import race
from tools.bench.results import paired_ratio
from tools.bench.task import FailedError, NotInstalledError, RefusedError
from tools.rounds import measure_rounds, turn_order


class FakeWorker:
    """Has a rate, with noise. errors: what it raises, by the moment: "start", "close", or the number of a turn."""

    def __init__(self, name, rate, log, noise=0.0, errors=None):
        self.name, self.rate, self.log, self.noise, self.errors = name, rate, log, noise, errors or {}
        self.rng = np.random.default_rng(len(name))

    def start(self, seconds):
        self._note("start", "start")
        return {"set_up_seconds": 1.0}

    def turn(self, seconds):
        self._note("turn", 1 + self.log.count(("turn", self.name)))
        return {"rate": self.rate * float(np.exp(self.noise * self.rng.normal()))}

    def close(self):
        self._note("close", "close")

    def _note(self, verb, moment):
        self.log.append((verb, self.name))
        if moment in self.errors:
            raise self.errors[moment]


def raced(workers, repeats=3):
    return race({name: lambda name=name: workers[name] for name in workers}, repeats, 1.0)


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


@pytest.mark.parametrize(("moment", "turns"), [("start", 0), (2, 2), ("close", 4)])
@pytest.mark.parametrize(
    ("error", "status"), [(RefusedError, "refused"), (FailedError, "failed"), (NotInstalledError, "not installed")]
)
def test_a_contender_that_fails_is_dropped_with_the_reason_and_the_others_go_on(error, status, moment, turns):
    """The first reason stays where the end fails as well."""
    log, errors = [], {"close": FailedError("it did not end"), moment: error("it cheats")}
    found = raced({"a": FakeWorker("a", 100, log), "b": FakeWorker("b", 100, log, errors=errors)})
    assert (found["b"].status, found["b"].reason) == (status, "it cheats")
    assert found["a"].status == "measured"
    assert len(found["a"].turns) == 3
    assert log.count(("turn", "b")) == turns
    assert sorted(name for verb, name in log if verb == "close") == ["a", "b"], "all are closed in the end"


@pytest.mark.parametrize(("share", "low", "high"), [(1.0, 0.95, 1.05), (0.9, 0.85, 0.95)])
def test_the_race_finds_a_planted_slowdown_and_nothing_where_there_is_none(share, low, high):
    """The self-test: a contender against itself, and against one that has lost a tenth of its rate, with noise."""
    found = raced({name: FakeWorker(name, rate, [], 0.02) for name, rate in (("a", 100), ("b1", 100 * share))}, 15)
    rates = {name: [turn["rate"] for turn in one.turns] for name, one in found.items()}
    ratio = paired_ratio(rates["b1"], rates["a"])
    assert low < ratio.low <= share <= ratio.high < high
    assert share == 1 or ratio.high < 1


def test_rounds_of_functions_leave_out_a_warm_up():
    log = []
    contenders = {name: lambda name=name: log.append(name) or float(len(log)) for name in "ab"}
    figures = measure_rounds(contenders, 2)
    assert log == [*turn_order("ab", 0), *turn_order("ab", 1), *turn_order("ab", 2)]
    assert {name: len(values) for name, values in figures.items()} == {"a": 2, "b": 2}
    assert 1.0 not in figures["a"] + figures["b"]
