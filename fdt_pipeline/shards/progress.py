"""How long operations say how far they are."""

from __future__ import annotations

from collections.abc import Callable

Progress = Callable[[int, int], None]
"""Called with how many samples (or shards) are done, and of how many."""
