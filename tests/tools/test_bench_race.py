"""Rounds, and what they find, under a clock without time."""

import numpy as np
import pytest

from tools.bench.errors import FailedError, RefusedError
from tools.bench.proving import AGAIN, ITSELF, LOST, PLANTED, prove
from tools.bench.race import race, turn_order
from tools.bench.task import NotInstalledError


class FakeSeat:
    """Has a rate; the machine's clock and the seat's own noise come on top."""

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


def raced(seats, repeats=3):
    log = next(iter(seats.values())).log
    return race({name: lambda seat=seat: seat for name, seat in seats.items()}, repeats, 1.0, say=log.append)


def test_every_contender_has_a_turn_a_round_and_the_first_round_is_left_out():
    log = []
    found = raced({name: FakeSeat(name, 100, log) for name in "abc"})
    turns = [entry[1] for entry in log if entry[0] == "turn"]
    assert [sorted(turns[i : i + 3]) for i in range(0, 12, 3)] == [["a", "b", "c"]] * 4
    assert {name: len(one.turns) for name, one in found.items()} == {"a": 3, "b": 3, "c": 3}


def test_the_order_changes_from_round_to_round():
    orders = ["".join(turn_order("abc", number)) for number in range(6)]
    assert len({order[0] for order in orders}) == 3
    followers = {order[order.index("a") - 1] for order in orders if order[0] != "a"}
    assert followers == {"b", "c"}


def test_all_are_closed_in_the_end():
    log = []
    raced({name: FakeSeat(name, 100, log) for name in "ab"})
    assert sorted(entry[1] for entry in log if entry[0] == "close") == ["a", "b"]


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (RefusedError("it cheats"), "refused"),
        (FailedError("it cheats"), "failed"),
        (NotInstalledError("it cheats"), "not installed"),
    ],
)
@pytest.mark.parametrize("moment", ["start", 2])
def test_who_fails_is_out_with_the_reason_and_the_others_go_on(error, status, moment):
    log = []
    seats = {"a": FakeSeat("a", 100, log), "b": FakeSeat("b", 100, log, fails_in=moment, error=error)}
    found = raced(seats)
    assert (found["b"].status, found["b"].reason) == (status, "it cheats")
    assert found["a"].status == "measured"
    assert len(found["a"].turns) == 3
    assert sum(entry == ("turn", "b") for entry in log) == (0 if moment == "start" else 2)


def test_who_hangs_in_the_end_is_out_with_the_reason_and_the_others_are_closed():
    log = []
    seats = {name: FakeSeat(name, 100, log) for name in "ab"}
    seats["b"].fails_in, seats["b"].error = "close", FailedError("it did not end")
    found = raced(seats)
    assert (found["b"].status, found["b"].reason) == ("failed", "it did not end")
    assert found["a"].status == "measured"
    assert ("close", "a") in log


def test_the_first_reason_stays_where_the_end_fails_as_well():
    seat = FakeSeat("a", 100, [], fails_in=1, error=RefusedError("it cheats"))

    def close():
        raise FailedError("it did not end")

    seat.close = close
    assert raced({"a": seat})["a"].reason == "it cheats"


def self_test(noise, lost=LOST, repeats=6):
    log, rates = [], {ITSELF: 100, AGAIN: 100, PLANTED: 100 * (1 - lost)}
    return prove(raced({name: FakeSeat(name, rate, log, noise) for name, rate in rates.items()}, repeats))


def test_a_contender_against_itself_gives_1_and_a_planted_tenth_is_found():
    proof = self_test(noise=0.02)
    assert proof.holds
    assert proof.again.low < 1 < proof.again.high
    assert proof.planted.high < 1
    assert all(line.endswith("yes") for line in proof.lines())


@pytest.mark.parametrize("lost", [0.0, 0.3])
def test_the_self_test_fails_where_the_slowdown_is_another(lost):
    proof = self_test(noise=0.02, lost=lost)
    assert not proof.holds
    assert [line.endswith("NO") for line in proof.lines()] == [False, True]


def test_the_self_test_fails_where_a_contender_is_not_itself():
    log, rates = [], {ITSELF: 100, AGAIN: 104, PLANTED: 90}
    proof = prove(raced({name: FakeSeat(name, rate, log) for name, rate in rates.items()}, 6))
    assert not proof.holds


def test_the_self_test_needs_a_contender_that_can_be_measured():
    log = []
    seats = {name: FakeSeat(name, 1, log, fails_in=1, error=FailedError("broke")) for name in (ITSELF, AGAIN, PLANTED)}
    with pytest.raises(ValueError, match="failed: broke"):
        prove(raced(seats))
