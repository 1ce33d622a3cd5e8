"""Interleaved rounds: in each, every contender has its turn, in an order that changes from round to round."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

Figure = Callable[[], float]


def turn_order(names: Sequence[str], number: int) -> list[str]:
    """Another name is first in every round, and every other round runs backwards: nobody always follows the same."""
    first = number % max(1, len(names))
    turned = [*names[first:], *names[:first]]
    return turned[::-1] if number % 2 else turned


def measure_rounds(contenders: Mapping[str, Figure], num_rounds: int) -> dict[str, list[float]]:
    """Name -> what the contender returned in each round. A round before them warms up and is left out."""
    figures: dict[str, list[float]] = {name: [] for name in contenders}
    for number in range(num_rounds + 1):
        for name in turn_order(list(contenders), number):
            figure = contenders[name]()
            if number:
                figures[name].append(figure)
    return figures
