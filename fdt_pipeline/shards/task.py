"""One task of sharding: some samples of a source become one tar, or several if it would be too large.

A task knows its own samples and nothing else, so any process on any machine can run it, in any order, and again:
what it writes depends on the samples and the options alone.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..sources.source import I64, Source
from ..storage import Folder
from .codec import EncodedSample, encode_sample
from .key import needs_mapping, sample_key
from .manifest import Quarantined, Shard
from .plan import ShardingOptions
from .record import Gathered, PixelStatistics, Record
from .tar import TarShard, member_size, tar_size

_OF_THE_FILE = (FileNotFoundError, PermissionError, IsADirectoryError)


class BadSampleError(ValueError):
    """A sample that cannot be written: where it is in the source, what it is called there, and why not."""

    def __init__(self, position: int, key: str, reason: str) -> None:
        super().__init__(position, key, reason)
        self.position, self.key, self.reason = position, key, reason

    def __str__(self) -> str:
        return (
            f"sample {self.position} of the source ({self.key}): {self.reason}; fix or remove it, or leave it out with "
            '--on-bad quarantine (on_bad="quarantine")'
        )


class SourceError(OSError):
    """A sample could not be read for a reason that is not its own, such as a disk or a network that fails."""


def record_name(task: int) -> str:
    return f"task-{task:06d}.json"


@dataclass(frozen=True)
class Task:
    """samples: the task's own, in the order of writing; positions: their positions in the whole source."""

    number: int
    samples: Source
    positions: I64

    @property
    def record_name(self) -> str:
        return record_name(self.number)

    def part_name(self, part: int) -> str:
        return f"task-{self.number:06d}-{part:04d}.tar"


@dataclass(frozen=True)
class Work:
    """What all tasks of a run have in common. plan: its fingerprint. quarantine: leave bad samples out."""

    plan: str
    options: ShardingOptions
    staging: Folder
    quarantine: bool


def run_task(task: Task, work: Work) -> Record:
    """Write tars and indexes, then the record. BadSampleError if a sample is bad and there is no quarantine;
    SourceError if reading fails for another reason; OSError if writing does."""
    gathered = Gathered()
    state = source_state(task.samples)  # before they are read: a file that changes meanwhile has then changed since
    try:
        parts = tuple(_written_parts(task, work, _samples(task, work, gathered)))
    finally:
        if hasattr(task.samples, "close"):
            task.samples.close()
    record = Record(task.number, work.plan, state, parts, gathered)
    with work.staging.writing(task.record_name) as file:
        file.write(record.to_json().encode("ascii"))
    return record


def source_state(samples: Source) -> str:
    """A hash of what shows that files have changed (size and time of the last change), or of the pixels themselves
    where they are in memory; empty where a source has neither. SourceError if a disk or a network fails."""
    source: Any = samples
    digest = hashlib.sha256()
    if hasattr(samples, "states"):
        try:
            for state in source.states(range(len(samples))):
                digest.update(state.encode("utf-8", "surrogateescape") + b"\n")
        except OSError as error:
            raise _source_error("ask for the state of the source's files", error) from error
    elif isinstance(getattr(samples, "images", None), np.ndarray):
        digest.update(np.ascontiguousarray(source.images).data)
    else:
        return ""
    return digest.hexdigest()


def _samples(task: Task, work: Work, gathered: Gathered) -> Iterator[tuple[str, EncodedSample]]:
    """(KEY, sample) of the good samples, which are counted on the way."""
    for index, position in enumerate(task.positions.tolist()):
        try:
            sample = _checked(task.samples, index, work.options)
            _count(gathered.statistics, sample.values)
        except (ValueError, *_OF_THE_FILE) as error:
            bad = Quarantined(position, _source_key(task.samples, index, position), _reason(error))
            if not work.quarantine:
                raise BadSampleError(bad.position, bad.key, bad.reason) from error
            gathered.quarantine.append(bad)
            continue
        except OSError as error:  # must be taken neither for a bad sample nor for a failure of writing
            key = _source_key(task.samples, index, position)
            raise _source_error(f"read sample {position} of the source ({key})", error) from error
        key = _key(task.samples, position, sample.source_key)
        if key != sample.source_key and needs_mapping(key, sample.source_key):
            gathered.keys[key] = sample.source_key
        gathered.samples_per_class[sample.label] += 1
        gathered.samples_per_extension[next(iter(sample.members))] += 1
        gathered.see_shape(sample.shape)
        yield key, sample


def _source_error(what: str, error: OSError) -> SourceError:
    text = f"could not {what}: {error}; fix that, then --resume"
    return SourceError(text) if error.errno is None else SourceError(error.errno, text)


def _count(statistics: PixelStatistics, values: NDArray[Any]) -> None:
    if values.ndim == 3:
        statistics.add(values)
    else:
        statistics.add_counts(values)


def _key(samples: Source, position: int, source_key: str) -> str:
    """The KEY by the rule; samples that come from shards keep the KEY that they have."""
    return source_key if getattr(samples, "has_final_keys", False) else sample_key(position, source_key)


def _checked(samples: Source, index: int, options: ShardingOptions) -> EncodedSample:
    sample = encode_sample(samples, index, options)
    if options.max_shard_bytes is None:
        return sample
    alone = tar_size(sum(member_size(len(data)) for data in sample.members.values()))
    if alone > options.max_shard_bytes:
        raise ValueError(f"a tar of it alone has {alone} bytes, expected at most {options.max_shard_bytes} a shard")
    return sample


def _written_parts(task: Task, work: Work, samples: Iterator[tuple[str, EncodedSample]]) -> Iterator[Shard]:
    waiting = next(samples, None)
    number = 0
    while waiting is not None:
        name = task.part_name(number)
        with work.staging.writing(name) as file:
            tar = TarShard(file)
            while waiting is not None and _has_room(tar, waiting[1], work.options):
                tar.add(waiting[0], waiting[1].members)
                waiting = next(samples, None)
            tar.close()
        index = tar.index
        part = Shard(name, tar.num_samples, tar.num_bytes, tar.sha256, hashlib.sha256(index).hexdigest(), tar.crc32)
        with work.staging.writing(part.index_name) as file:
            file.write(index)
        yield part
        number += 1


def _has_room(tar: TarShard, sample: EncodedSample, options: ShardingOptions) -> bool:
    return options.max_shard_bytes is None or tar.size_with(sample.members) <= options.max_shard_bytes


def _source_key(samples: Source, index: int, position: int) -> str:
    source: Any = samples
    return source.key(index) if hasattr(samples, "key") else str(position)


def _reason(error: Exception) -> str:
    """The message in one line."""
    return " ".join(str(error).split()) or type(error).__name__
