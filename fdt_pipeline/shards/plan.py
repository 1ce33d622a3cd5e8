"""What a run of sharding does, known before an image is read: which samples go into which task."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import PIL

from fdt_pipeline.definition.philox import Stream, permutation, random_words

from ..sources.source import I64, Source, check_class_names
from .codec import ShardingOptions
from .manifest import Manifest
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
    converted: where the source is a set of shards itself, its manifest, whose keys and quarantine stay."""

    source: Source
    options: ShardingOptions
    order: I64
    bounds: tuple[int, ...]
    converted: Manifest | None = None

    @property
    def num_tasks(self) -> int:
        return len(self.bounds)

    def num_samples(self, number: int) -> int:
        """The number of samples of a task."""
        return self.bounds[number] - (self.bounds[number - 1] if number else 0)

    def task(self, number: int) -> Task:
        """A task, with a source of its samples alone where the source can `take` them: it may go to another process."""
        source: Any = self.source
        end = self.bounds[number]
        positions = self.order[end - self.num_samples(number) : end]
        is_taken = hasattr(source, "take")
        return Task(number, source.take(positions) if is_taken else source, positions.tolist(), is_taken)

    @cached_property
    def fingerprint(self) -> str:
        """A hash of all that the bytes depend on, but for the images themselves (`task.source_state`). Files that an
        encoder made depend on its version too."""
        source, options = self.source, self.options
        encoder = None if options.encoding == "raw" else PIL.__version__
        about = (PLAN_VERSION, source.kind, source.split, source.classes, options, encoder, self.bounds)
        digest = hashlib.sha256(repr(about).encode("utf-8", "surrogateescape"))
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
