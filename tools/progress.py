"""A progress bar on stderr for the operations that report how far they are."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from tqdm import tqdm

from fdt_pipeline.shards import Progress


@contextmanager
def progress_bar(title: str, unit: str) -> Iterator[Progress]:
    """Not drawn where stderr is no terminal."""
    with tqdm(desc=title, unit=f" {unit}", disable=None, leave=False) as bar:

        def show(done: int, total: int) -> None:
            bar.total = total
            bar.update(done - bar.n)

        yield show
