"""An iterator that works ahead on a thread of its own."""

from __future__ import annotations

from collections.abc import Generator, Iterator
from contextlib import closing, suppress
from queue import Empty, Full, Queue
from threading import Event, Thread, current_thread
from typing import Any, Generic, TypeVar

_T = TypeVar("_T")
_POLL_SECONDS = 0.1


def prefetched(items: Generator[_T, None, None], depth: int) -> Generator[_T, None, None]:
    """The same items, made up to `depth` ahead on a thread; with 0, each when it is asked for."""
    with closing(Prefetcher(items, depth) if depth else items) as made:
        yield from made


class Prefetcher(Generic[_T]):
    """`items`, made up to `depth` before they are asked for. Close it, or the thread stays."""

    def __init__(self, items: Generator[_T, None, None], depth: int) -> None:
        self._items = items
        self._made: Queue[tuple[str, Any]] = Queue(max(1, depth))
        self._closed = Event()
        self._thread: Thread | None = Thread(target=self._work, name="fdt_pipeline prefetch", daemon=True)
        self._thread.start()

    def __iter__(self) -> Iterator[_T]:
        return self

    def __next__(self) -> _T:
        """What the generator yields or raises."""
        if self._closed.is_set():
            raise StopIteration
        kind, value = self._made.get()
        if kind == "item":
            return value
        self._closed.set()
        if kind == "error":
            raise value
        raise StopIteration

    def close(self) -> None:
        """Ends the thread, and the generator on it. Called on that thread, as garbage is collected on any, it only says
        so, and the thread ends when it has read what it is at.

        It lets go of the thread, as DALI keeps what it calls in reference cycles: a thread that dies when these are
        collected runs Python's own callback, in which a Ctrl-C that came during the collection would be lost."""
        self._closed.set()
        thread = self._thread
        if thread is None or current_thread() is thread:
            return
        while thread.is_alive():
            with suppress(Empty):
                self._made.get(timeout=_POLL_SECONDS)  # make room for what it is about to put
        thread.join()
        self._thread = None

    def _work(self) -> None:
        with closing(self._items):
            try:
                for item in self._items:
                    if not self._put(("item", item)):
                        return
                self._put(("end", None))
            except BaseException as error:  # whatever it is, the consumer is to see it
                self._put(("error", error))

    def _put(self, made: tuple[str, Any]) -> bool:
        """False if nobody wants it any more."""
        while not self._closed.is_set():
            try:
                self._made.put(made, timeout=_POLL_SECONDS)
                return True
            except Full:
                continue
        return False
