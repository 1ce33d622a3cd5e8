"""How operations that take a while say how far they are."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from tqdm import tqdm

Progress = Callable[[int, int], None]
"""Called with how many samples (or shards) are done, and of how many."""


@contextmanager
def progress_bar(title: str, unit: str, always: bool = False, delay: float = 0) -> Iterator[Progress]:
    """A bar on stderr after `delay` seconds; unless `always`, only where that is a terminal, and cleared at the end."""
    with tqdm(desc=title, unit=f" {unit}", disable=False if always else None, leave=always, delay=delay) as bar:

        def show(done: int, total: int) -> None:
            bar.total = total
            bar.update(done - bar.n)

        yield show
