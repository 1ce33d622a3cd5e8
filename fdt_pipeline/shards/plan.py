"""What a run of sharding does, known before an image is read: which samples go into which task."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import PIL

from fdt_pipeline.definition.philox import Stream, permutation, random_words

from ..sources.source import I64, Sample, Source, check_class_names
from .codec import ShardingOptions
from .record import Gathered
from .task import Task

_SHUFFLE, _JITTER = 0, 1


def interleaved_order(labels: I64, num_classes: int, seed: int) -> I64:
    """labels i64[n] -> i64[n], the source positions in the order to write them: a function of labels and seed."""
    shuffled = permutation(seed, Stream.SHARDING, _SHUFFLE, len(labels))
    jitter = random_words(seed, Stream.SHARDING, _JITTER, np.arange(len(labels)), 0)[:, 0] / 2.0**32
    place = np.empty(len(labels))
    for label in range(num_classes):
        of_class = shuffled[labels[shuffled] == label]
        # j + u is exact in float64 and division is rounded as IEEE 754 says: the same order on every machine.
        place[of_class] = (np.arange(len(of_class)) + jitter[of_class]) / max(len(of_class), 1)
    return np.argsort(place, kind="stable")


PLAN_VERSION = 1


@dataclass(frozen=True)
class Plan:
    """order: positions in the source, in the order of writing; bounds: where its tasks end, the first begins at 0.
    carried: where the source is a set of shards itself, what its manifest says and the samples do not."""

    source: Source
    options: ShardingOptions
    order: I64
    bounds: tuple[int, ...]
    carried: Gathered = field(default_factory=Gathered)

    @property
    def num_tasks(self) -> int:
        return len(self.bounds)

    def positions(self, number: int) -> I64:
        """The positions in the source of a task's samples, in the order of writing."""
        return self.order[self.bounds[number - 1] if number else 0 : self.bounds[number]]

    def task(self, number: int) -> Task:
        positions = self.positions(number)
        return Task(number, taken(self.source, positions), positions)

    @property
    def fingerprint(self) -> str:
        """A hash of all that the bytes depend on, but for the images themselves (Record.state). Files that an encoder
        made depend on its version too."""
        source = self.source
        about = {
            "version": PLAN_VERSION,
            "kind": source.kind,
            "split": source.split,
            "classes": source.classes,
            "options": asdict(self.options),
            "encoder": None if self.options.encoding == "raw" else PIL.__version__,
            "bounds": self.bounds,
        }
        digest = hashlib.sha256(json.dumps(about, sort_keys=True).encode("ascii"))
        digest.update(np.ascontiguousarray(self.order, np.int64).data)
        for part in _identity(source):
            digest.update(part)
        return digest.hexdigest()


def planned(source: Source, options: ShardingOptions) -> Plan:
    """The plan of a source: shuffled, classes interleaved, samples_per_shard a task. ValueError if it is empty."""
    if not len(source):
        raise ValueError("the source has no samples: there is nothing to write")
    check_class_names(source.classes)
    order = interleaved_order(source.labels, len(source.classes), options.seed)
    step = options.samples_per_shard
    bounds = tuple(min(first + step, len(order)) for first in range(0, len(order), step))
    return Plan(source, options, order, bounds)


def taken(source: Source, positions: I64) -> Source:
    """A source of these samples alone, for another process: the source's own `take` sends less, where it has one."""
    own: Any = source
    return own.take(positions) if hasattr(source, "take") else _Taken(source, positions)


class _Taken:
    """Some samples of a source that has no `take`; it is sent whole."""

    def __init__(self, source: Source, positions: I64) -> None:
        self._source, self._positions = source, positions
        self.kind, self.split, self.classes, self.shape = source.kind, source.split, source.classes, source.shape
        self.labels = source.labels[positions]

    def __len__(self) -> int:
        return len(self._positions)

    def __getitem__(self, index: int) -> Sample:
        return self._source[int(self._positions[index])]

    def __getattr__(self, name: str) -> Any:
        """Optional methods of a source, where this one has them."""
        if name not in ("channels", "key", "read_file", "states"):
            raise AttributeError(name)
        own = getattr(self._source, name)
        if name == "states":
            return lambda positions: own([int(self._positions[position]) for position in positions])
        return own if name == "channels" else lambda index: own(int(self._positions[index]))


def _identity(source: Source) -> Iterator[bytes]:
    """What identifies the samples without reading an image: labels and keys, or what the source itself says."""
    own: Any = source
    if hasattr(source, "identity"):
        yield own.identity.encode("ascii")
        return
    yield np.ascontiguousarray(source.labels, np.int64).tobytes()
    if hasattr(source, "key"):
        for position in range(len(source)):
            yield own.key(position).encode("utf-8", "surrogateescape") + b"\0"
