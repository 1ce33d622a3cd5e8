"""Interleaved rounds: in each, every contender has its turn, while the others rest."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

from .errors import FailedError, RefusedError
from .seat import Seat
from .task import NotInstalledError

FIRST_EPOCH = 5  # times the seconds of a turn, at most
Say = Callable[[str], None]


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


@dataclass
class Raced:
    """check: what was seen before. start: set-up and first epoch. turns: one a round, the warm-up round left out.
    status: "measured", "refused", "not installed", "failed" or "left out", with the reason."""

    check: dict[str, Any] = field(default_factory=dict)
    start: dict[str, Any] = field(default_factory=dict)
    turns: list[dict[str, Any]] = field(default_factory=list)
    status: str = "measured"
    reason: str = ""


def race(
    makers: Mapping[str, Callable[[], Seat]],
    repeats: int,
    seconds: float,
    each_round: Callable[[], None] = lambda: None,
    say: Say = say,
) -> dict[str, Raced]:
    """name -> what it did. The first round touches memory for the first time and is left out. Whoever fails is out."""
    raced = {name: Raced() for name in makers}
    with ExitStack() as stack:
        seats: dict[str, Seat] = {}
        for name, make in makers.items():
            say(f"{name}: set up")
            with caught(raced[name]):
                seats[name] = make()
                stack.callback(_close, seats[name], raced[name])
                raced[name].start = seats[name].start(FIRST_EPOCH * seconds)
        for number in range(repeats + 1):
            each_round()
            for name in turn_order([name for name in seats if raced[name].status == "measured"], number):
                with caught(raced[name]):
                    turn = seats[name].turn(seconds)
                    say(f"round {number} of {repeats}: {name}: {turn['rate']:.0f} images/s")
                    if number:
                        raced[name].turns.append(turn)
    return raced


def _close(seat: Seat, raced: Raced) -> None:
    """The first reason why it is not measured stays."""
    with caught(raced if raced.status == "measured" else Raced()):
        seat.close()


def turn_order(names: Sequence[str], number: int) -> Iterator[str]:
    """Another one first in every round, and every other round backwards, so that nobody always follows the same."""
    first = number % max(1, len(names))
    turned = [*names[first:], *names[:first]]
    return iter(turned[::-1] if number % 2 else turned)


@contextmanager
def caught(raced: Raced) -> Iterator[None]:
    """Notes why it is not measured."""
    try:
        yield
    except RefusedError as error:
        raced.status, raced.reason = "refused", str(error)
    except NotInstalledError as error:
        raced.status, raced.reason = "not installed", str(error)
    except FailedError as error:
        raced.status, raced.reason = "failed", str(error)
