"""Whether a process leaks, from its resident memory at equal steps of work."""

from collections.abc import Sequence
from itertools import pairwise


def steady_growth(figures: Sequence[float]) -> float:
    """The least growth from one figure to the next.

    A leak grows in every step; what an allocator takes from the system now and then, a few MiB, does not.
    """
    return min(after - before for before, after in pairwise(figures))
