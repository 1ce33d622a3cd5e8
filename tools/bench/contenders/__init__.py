"""Contenders by name: those of this package, each as its own users would write it, and `module:function` for your own.

A library is imported when its contender is set up.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace

from ..task import MIXING, Batch, Entry, Mixing, Task
from . import dali, data_loader, libraries, ours

ENTRIES = (*ours.ENTRIES, *dali.ENTRIES, *data_loader.ENTRIES, *libraries.ENTRIES)


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
    """The names of contenders, in the order asked for; ValueError where none is left.

    names: of ENTRIES, or how several begin; all where neither these nor `own`, as module:function, are given. mixings:
    those that are wanted, any where there are none.
    """
    known = [entry.name for entry in ENTRIES]
    chosen: list[str] = []
    for asked in names:
        begins = [name for name in known if name.startswith(asked)]
        chosen += [asked] if asked in known else begins or [find_entry(asked).name]
    chosen = list(dict.fromkeys([*chosen, *own])) if names or own else known
    left = [name for name in chosen if not mixings or find_entry(name).mixing in mixings]
    if not left:
        raise ValueError(f"no contender is left with mixing {', '.join(mixings) or 'any'}: see --list")
    return left


def _imported(name: str) -> Entry:
    module, _, attribute = name.partition(":")
    try:
        found = getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError) as error:
        raise ValueError(f"contender {name}: {error}") from error
    if isinstance(found, Entry):
        return replace(found, name=name)
    mixing: Mixing = getattr(found, "mixing", "none")
    if not callable(found) or mixing not in MIXING:
        raise ValueError(
            f"contender {name}: expected an Entry, or a function of a Task that gives batches (with an attribute "
            f"mixing, one of {', '.join(MIXING)}, if it mixes)"
        )
    return Entry(name, mixing, lambda task: OwnContender(found, task))


class OwnContender:
    """function(task): an iterable that gives an epoch each time it is iterated, such as a DataLoader.

    Or an iterator of one epoch, such as a generator function gives; then it is called again for the next epoch.
    """

    def __init__(self, function: Callable[[Task], Iterable[Batch]], task: Task) -> None:
        self._function, self._task = function, task
        self._batches: Iterable[Batch] | None = function(task)

    def epoch(self, number: int) -> Iterator[Batch]:
        batches = self._function(self._task) if self._batches is None else self._batches
        own = iter(batches)
        self._batches = None if own is batches else batches
        return own

    def close(self) -> None:
        close = getattr(self._batches, "close", None)
        if close is not None:
            close()
