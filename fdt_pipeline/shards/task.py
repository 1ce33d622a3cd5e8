"""One task of sharding: some samples of a source become one tar, or several if it would be too large.

A task knows its own samples and nothing else, so any process on any machine can run it, in any order, and again:
what it writes depends on the samples and the options alone. Its record, written last, says what is in its tars.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

from ..sources.image_pixels import pixel_limit
from ..sources.source import Source
from ..storage import Folder
from .codec import EncodedSample, ShardingOptions, encode_sample
from .key import needs_mapping, sample_key
from .manifest import Quarantined, Shard
from .pixel_statistics import PixelStatistics
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


@dataclass(frozen=True)
class Task:
    """positions: of its samples in the whole source, in the order of writing. source: these samples alone, if
    `is_taken`, else the whole source."""

    number: int
    source: Source
    positions: Sequence[int]
    is_taken: bool

    @property
    def indices(self) -> Sequence[int]:
        """The places of its samples in `source`."""
        return range(len(self.positions)) if self.is_taken else self.positions


@dataclass(frozen=True)
class Work:
    """What all tasks of a run have in common. plan: its fingerprint. quarantine: leave bad samples out. max_pixels: of
    an image, None for no limit; the process that begins the run says it to all others."""

    plan: str
    options: ShardingOptions
    staging: Folder
    quarantine: bool
    max_pixels: int | None


def record_name(task: int) -> str:
    return f"task-{task:06d}.json"


@dataclass
class Record:
    """What a task has written. plan: fingerprint of the plan it belongs to. state: of the files that it was made of.
    parts: its tars, by their names in the staging folder. shapes: two of them where sizes differ. pixel_counts:
    [c 256], how many pixels have which value; None if there are none. max_pixels: the limit that images had to keep."""

    task: int
    plan: str
    state: str
    samples_per_class: list[int]
    samples_per_extension: dict[str, int] = field(default_factory=dict)
    shapes: list[tuple[int, ...]] = field(default_factory=list)
    pixel_counts: list[list[int]] | None = None
    keys: dict[str, str] = field(default_factory=dict)
    parts: list[Shard] = field(default_factory=list)
    quarantine: list[Quarantined] = field(default_factory=list)
    max_pixels: int | None = None

    def to_json(self) -> str:
        return json.dumps(asdict(self))

    def count(self, sample: EncodedSample) -> None:
        self.samples_per_class[sample.label] += 1
        extension = next(iter(sample.members))
        self.samples_per_extension[extension] = self.samples_per_extension.get(extension, 0) + 1
        if sample.shape not in self.shapes and len(self.shapes) < 2:
            self.shapes.append(sample.shape)


def record_from_json(text: str) -> Record:
    """The record that `to_json` wrote; ValueError, KeyError or TypeError for another text."""
    content: dict[str, Any] = json.loads(text)
    content["parts"] = [Shard(**part) for part in content["parts"]]
    content["quarantine"] = [Quarantined(**bad) for bad in content["quarantine"]]
    return Record(**content)


def run_task(task: Task, work: Work) -> Record:
    """Write tars and indexes, then the record. BadSampleError if a sample is bad and there is no quarantine;
    SourceError if reading fails for another reason; OSError if writing does."""
    state = source_state(task)  # before they are read: a file that changes meanwhile has then changed since
    record = Record(task.number, work.plan, state, [0] * len(task.source.classes), max_pixels=work.max_pixels)
    try:
        with pixel_limit(work.max_pixels):
            record.parts = list(_written_parts(task, work, _samples(task, work, record)))
    finally:
        if task.is_taken and hasattr(task.source, "close"):
            task.source.close()
    with work.staging.writing(record_name(task.number)) as file:
        file.write(record.to_json().encode("ascii"))
    return record


def source_state(task: Task) -> str:
    """A hash of what shows that files have changed (size and time of the last change), or of the pixels themselves
    where they are in memory; empty where a source has neither. SourceError if a disk or a network fails."""
    source: Any = task.source
    digest = hashlib.sha256()
    if hasattr(source, "states"):
        try:
            for state in source.states(task.indices):
                digest.update(state.encode("utf-8", "surrogateescape") + b"\n")
        except OSError as error:
            raise _source_error("ask for the state of the source's files", error) from error
    elif task.is_taken and isinstance(getattr(source, "images", None), np.ndarray):
        digest.update(np.ascontiguousarray(source.images).data)
    else:
        return ""
    return digest.hexdigest()


def _samples(task: Task, work: Work, record: Record) -> Iterator[tuple[str, EncodedSample]]:
    """(KEY, sample) of the good samples, which are counted on the way."""
    statistics = PixelStatistics()
    has_final_keys = getattr(task.source, "has_final_keys", False)  # samples that come from shards keep their KEY
    for index, position in zip(task.indices, task.positions, strict=True):
        try:
            sample = _checked(task.source, index, work.options)
            statistics.add(sample.values)
        except (ValueError, *_OF_THE_FILE) as error:
            bad = Quarantined(position, _source_key(task.source, index, position), _reason(error))
            if not work.quarantine:
                raise BadSampleError(bad.position, bad.key, bad.reason) from error
            record.quarantine.append(bad)
            continue
        except OSError as error:  # must be taken neither for a bad sample nor for a failure of writing
            key = _source_key(task.source, index, position)
            raise _source_error(f"read sample {position} of the source ({key})", error) from error
        key = sample.source_key if has_final_keys else sample_key(position, sample.source_key)
        if not has_final_keys and needs_mapping(key, sample.source_key):
            record.keys[key] = sample.source_key
        record.count(sample)
        yield key, sample
    record.pixel_counts = None if statistics.counts is None else statistics.counts.tolist()


def _source_error(what: str, error: OSError) -> SourceError:
    text = f"could not {what}: {error}; fix that, then --resume"
    return SourceError(text) if error.errno is None else SourceError(error.errno, text)


def _checked(source: Source, index: int, options: ShardingOptions) -> EncodedSample:
    sample = encode_sample(source, index, options)
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
        name = f"task-{task.number:06d}-{number:04d}.tar"
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


def _source_key(source: Any, index: int, position: int) -> str:
    return source.key(index) if hasattr(source, "key") else str(position)


def _reason(error: Exception) -> str:
    """The message in one line."""
    return " ".join(str(error).split()) or type(error).__name__
