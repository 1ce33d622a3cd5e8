"""Contenders by name: those of this package, and `module:function` for one of your own."""

from __future__ import annotations

import ctypes
import importlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import count
from typing import Any, get_args

from .contenders import ENTRIES
from .task import Contender, Entry, Mixing, Task


def find_entry(name: str) -> Entry:
    """ValueError for a name that is none."""
    if name in (known := {entry.name: entry for entry in ENTRIES}):
        return known[name]
    if ":" in name:
        return _imported(name)
    raise ValueError(
        f"unknown contender {name!r}: expected module:function, or one of "
        f"{'; '.join(known)} (python -m tools bench --list says more)"
    )


def choose(names: Sequence[str], own: Sequence[str], mixings: Sequence[str]) -> list[str]:
    """Names of contenders, in the order asked for: `names` (a name, or the beginning of several; all where there are
    none), and `own` as module:function; of these the ones with one of `mixings` (any where there are none)."""
    chosen = list(dict.fromkeys([*(name for asked in names for name in _named(asked)), *own]))
    if not names and not own:
        chosen = [entry.name for entry in ENTRIES]
    left = [name for name in chosen if not mixings or find_entry(name).mixing in mixings]
    if not left:
        raise ValueError(f"no contender is left with mixing {', '.join(mixings) or 'any'}: see --list")
    return left


def _named(asked: str) -> list[str]:
    names = [entry.name for entry in ENTRIES]
    if asked in names:
        return [asked]
    return [name for name in names if name.startswith(asked)] or [find_entry(asked).name]


def _imported(name: str) -> Entry:
    module, _, attribute = name.partition(":")
    try:
        found = getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError) as error:
        raise ValueError(f"contender {name}: {error}") from error
    if isinstance(found, Entry):
        return Entry(name, found.mixing, found.make, found.images_per_output, found.needs_gpu, found.note)
    mixing: Mixing = getattr(found, "mixing", "none")
    if not callable(found) or mixing not in get_args(Mixing):
        raise ValueError(
            f"contender {name}: expected an Entry, or a function of a Task that gives batches (with an attribute "
            f"mixing, one of {', '.join(get_args(Mixing))}, if it mixes)"
        )
    per_output: float = getattr(found, "images_per_output", 1.0)
    return Entry(name, mixing, lambda task: OwnContender(found, task), lambda _: per_output)


class OwnContender:
    """function(task): an iterable that gives an epoch each time it is iterated, such as a DataLoader; or, such as a
    generator function, an iterator of one epoch, and then it is called again for the next."""

    def __init__(self, function: Callable[[Task], Iterable[tuple[Any, Any]]], task: Task) -> None:
        self._function, self._task = function, task
        self._batches: Iterable[tuple[Any, Any]] | None = function(task)

    def epoch(self, number: int) -> Iterator[tuple[Any, Any]]:
        batches = self._function(self._task) if self._batches is None else self._batches
        own = iter(batches)
        self._batches = None if own is batches else batches
        return own

    def close(self) -> None:
        close = getattr(self._batches, "close", None)
        if close is not None:
            close()


class CountedBatches:
    """A contender that counts up `batches`, in memory shared with the parent, which so sees one that hangs."""

    def __init__(self, contender: Contender, batches: ctypes.c_uint64) -> None:
        self._contender, self._counted = contender, batches
        self.batches_at_once = getattr(contender, "batches_at_once", 1)

    def epoch(self, number: int) -> Iterator[tuple[Any, Any]]:
        for batch in self._contender.epoch(number):
            self._counted.value += 1
            yield batch

    def close(self) -> None:
        self._contender.close()


class FewerImages:
    """A contender with a planted slowdown: of every batch it makes, a share of the images is thrown away, so that those
    left have cost more. (A pause between batches would be hidden by those made ahead.)"""

    def __init__(self, contender: Contender, lost: float) -> None:
        self._contender, self._lost = contender, lost

    def epoch(self, number: int) -> Iterator[tuple[Any, Any]]:
        for images, targets in self._contender.epoch(number):
            kept = max(1, round(len(images) * (1 - self._lost)))
            yield images[:kept], targets[:kept]

    def close(self) -> None:
        self._contender.close()


class SameBatch:
    """The bound of a model without a loader: one batch, again and again."""

    def __init__(self, images: Any, targets: Any) -> None:
        self._batch = images, targets

    def epoch(self, number: int) -> Iterator[tuple[Any, Any]]:
        return (self._batch for _ in count())

    def close(self) -> None:
        pass
