"""How operations that take a while say how far they are."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from tqdm import tqdm

Progress = Callable[[int, int], None]
"""Called with how many samples (or shards) are done, and of how many."""

_LINE = "{desc}: {percentage:.0f}%, {n_fmt}/{total_fmt} [{elapsed}<{remaining}, {rate_fmt}]"
LOG_SECONDS = 10.0  # between the lines in a log file, the first after as many


@contextmanager
def progress_bar(title: str, unit: str, always: bool = False, delay: float = 0) -> Iterator[Progress]:
    """Rate and time left on stderr, after `delay` seconds: a bar that is cleared at the end on a terminal, else a line
    every 10 seconds. always: a bar anywhere, which stays."""
    if not always and not sys.stderr.isatty():
        yield _lines(title, unit)
        return
    with tqdm(desc=title, unit=f" {unit}", leave=always, delay=delay) as bar:

        def show(done: int, total: int) -> None:
            bar.total = total
            bar.update(done - bar.n)

        yield show


def _lines(title: str, unit: str) -> Progress:
    begin = last = time.monotonic()

    def show(done: int, total: int) -> None:
        nonlocal last
        now = time.monotonic()
        if now - last >= LOG_SECONDS:
            last = now
            line = tqdm.format_meter(done, total, now - begin, prefix=title, unit=f" {unit}", bar_format=_LINE)
            print(line, file=sys.stderr)

    return show
