"""A contender is checked before it is timed: one that cheats is refused, with the reason.

Two small sets of the same form as the one that is raced on: of its own images, and of flat images whose colour encodes
their class. Without augmentation what comes out can be told apart.
"""

from .checking import check
from .sets import CheckSets, write_check_sets

__all__ = ["CheckSets", "check", "write_check_sets"]
