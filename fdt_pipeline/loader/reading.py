"""Reading shards for streaming: an epoch's samples, still encoded, batch after batch.

The order is `order.py`'s. Shards are read from their beginning to their end, a few megabytes at a time, and samples
wait until their batch comes. A sample that is not what its manifest and index say is named, or another one of its
batch takes its place: the next good one.

DALI's own reader keeps its order to itself, reads nothing but files that are all there, and does not say which sample
it was that did not decode; this one is faster, too (README.md).
"""

from __future__ import annotations

import os
import zlib
from collections import deque
from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import closing
from typing import NamedTuple

import numpy as np

from fdt_pipeline.loader.order import EpochOrder
from fdt_pipeline.loader.stats import annotated
from fdt_pipeline.shards import Manifest, Shard, ShardError
from fdt_pipeline.shards.codec import decode, not_raw, raw_images
from fdt_pipeline.shards.files import ShardFile, ShardFiles, file_state
from fdt_pipeline.shards.index import IndexColumns
from fdt_pipeline.shards.stored import StoredForm
from fdt_pipeline.shards.tar import unpack_checksums
from fdt_pipeline.sources.source import I64, U8

_BEGINNINGS = {"png": b"\x89PNG\r\n\x1a\n", "jpg": b"\xff\xd8\xff", "webp": b"RIFF"}
CHUNK_BYTES = 4 << 20  # bytes that are read at once, if no single sample is larger
_MORE = "`fdt-pipeline verify` says more"

# (shard, number in it) -> why: samples that are known to be bad beside those that the reader itself finds.
KnownBad = Mapping[tuple[str, int], str]


class Samples(NamedTuple):
    """Those of a batch. images: u8[n h w c] if they are raw and of one shape, a list of n u8[h w c] if raw and not,
    else of n files' bytes, u8[bytes] each; labels i64[n 1]; replaced: number -> what was wrong with the sample that
    stood there."""

    images: U8 | list[U8]
    labels: I64
    places: I64
    chunks: tuple[Chunk, ...]
    replaced: dict[int, str]

    def name(self, number: int) -> str:
        """ "SHARD: sample KEY" of one of its samples. Not kept for each: that took a tenth of the time."""
        chunk, place = self._chunk(number)
        return f"{chunk.shard.name}: sample {chunk.key(place)}"

    def identity(self, number: int) -> tuple[str, int]:
        """(shard, number in it), as `KnownBad` has it."""
        chunk, place = self._chunk(number)
        return chunk.shard.name, chunk.begin + place

    def _chunk(self, number: int) -> tuple[Chunk, int]:
        place = int(self.places[number])
        [chunk] = (chunk for chunk in self.chunks if chunk.first <= place < chunk.end)
        return chunk, place - chunk.first


def read_samples(
    files: ShardFiles,
    manifest: Manifest,
    order: EpochOrder,
    bounds: Sequence[tuple[int, int]],
    substitute: bool = False,
    known_bad: KnownBad | None = None,
    together: int = 1,
) -> Generator[Samples, None, None]:
    """Samples begin .. end - 1 of the order, for each (begin, end) of the bounds, which follow on each other; so many
    of these are gathered together, as that takes a time of its own. ShardError, naming shard and key, for what is not
    as the manifest says. substitute: a bad sample's place is taken by the next good one of its batch."""
    offset = bounds[0][0] if bounds else 0
    wanted = order.samples[offset : bounds[-1][1]] if bounds else order.samples[:0]
    # The first place that any batch from here on asks for: what lies before it can be forgotten.
    least = np.minimum.accumulate(wanted[::-1])[::-1]
    waiting: deque[Chunk] = deque()
    read = 0
    with closing(_chunks(files, manifest, order.shards, int(least[0]) if len(least) else 0, known_bad or {})) as chunks:
        for number in range(0, len(bounds), together):
            begins = [begin - offset for begin, _ in bounds[number : number + together]]
            end = bounds[min(number + together, len(bounds)) - 1][1] - offset
            with annotated("fdt_pipeline.read_samples"):
                while waiting and waiting[0].end <= least[begins[0]]:
                    waiting.popleft()
                while read <= wanted[begins[0] : end].max():
                    waiting.append(next(chunks))
                    read = waiting[-1].end
                batches = _batches(waiting, np.split(wanted[:end], begins)[1:], substitute)
            yield from batches


def _batches(waiting: Sequence[Chunk], places: Sequence[I64], substitute: bool) -> Iterator[Samples]:
    """The samples at the places of each batch; gathered at once where none is bad."""
    every = np.concatenate(places)
    if len(places) == 1 or _bad_among(waiting, every):
        return (_gathered(waiting, each, substitute) for each in places)
    whole = _gathered(waiting, every, substitute)
    ends = np.cumsum([len(each) for each in places]).tolist()
    parts = [slice(end - len(each), end) for each, end in zip(places, ends, strict=True)]
    return (whole._replace(images=whole.images[p], labels=whole.labels[p], places=whole.places[p]) for p in parts)


class Chunk:
    """Samples that were read together: number `first` to `end` of the stream, `begin` and on of their shard. Their
    files are views of `data`; bad: number -> what is wrong with it."""

    def __init__(self, shard: Shard, url: str, first: int, begin: int, samples: IndexColumns, data: U8) -> None:
        self.shard, self.url, self.first, self.begin, self.end = shard, url, first, begin, first + len(samples.names)
        self.samples, self.data = samples, data
        self.starts = samples.image_offsets - samples.begins[0]
        self.labels = np.empty(0, np.int64)
        self.images: U8 | None = None
        self.bad: dict[int, str] = {}

    def key(self, number: int) -> str:
        return self.samples.key(number)

    def file(self, number: int) -> U8:
        begin = self.starts[number]
        return self.data[begin : begin + self.samples.image_sizes[number]]

    def image(self, number: int) -> U8:
        """As `Samples` has it."""
        file = self.file(number)
        return decode(file.data, "npy") if self.samples.extensions[number] == "npy" else file

    def parse(self, manifest: Manifest, form: StoredForm) -> None:
        """Find labels and images, and the samples that are none."""
        self.labels, self.bad = form.labels(self.data, self.samples)
        if manifest.encoding == "raw" and manifest.shape is not None:
            self.images, wrong = raw_images(self.data, self.samples, manifest.shape)
            self.bad |= dict.fromkeys(wrong, not_raw(manifest.shape))
        else:
            self._look_at_files(form.in_place)

    def check(self, checksums: Sequence[int]) -> None:
        """Find the samples that are no longer what they were when they were written."""
        data, offset, samples = self.data.data, int(self.samples.begins[0]), self.samples
        members = zip(
            (samples.image_offsets - offset).tolist(),
            samples.image_sizes.tolist(),
            (samples.label_offsets - offset).tolist(),
            samples.label_sizes.tolist(),
            checksums,
            strict=True,
        )
        for number, (image, image_size, label, label_size, expected) in enumerate(members):
            found = zlib.crc32(data[label : label + label_size], zlib.crc32(data[image : image + image_size]))
            if found != expected:
                reason = f"changed since it was written: its CRC-32 is {found:08x}, expected {expected:08x}"
                self.bad.setdefault(number, reason)

    def _look_at_files(self, any_kind: bool) -> None:
        """any_kind: a .jpg may be a PNG, as one of ImageNet is."""
        for number, extension in enumerate(self.samples.extensions):
            if extension == "npy":
                try:
                    self.image(number)
                except ValueError as error:
                    self.bad[number] = str(error)
                continue
            # DALI 2.4's decoder kills the process, 5 times of 6, where an image does not begin as one.
            found = self.file(number)[:16].tobytes()
            if not found.startswith(tuple(_BEGINNINGS.values()) if any_kind else _BEGINNINGS[extension]):
                self.bad[number] = f"not {'an image' if any_kind else f'a {extension}'}: it begins with {found!r}"


def _gathered(waiting: Sequence[Chunk], places: I64, substitute: bool) -> Samples:
    """The samples at these places of the stream, all of which are waiting."""
    bad = _bad_among(waiting, places)
    if bad and not substitute:
        raise ShardError(f"{next(iter(bad.values()))}; {_MORE}")
    if bad:
        places = _substituted(places, bad)
    labels = np.empty((len(places), 1), np.int64)
    listed: list[U8] = [waiting[0].data] * len(places)
    of_one_shape = waiting[0].images
    stacked = None if of_one_shape is None else np.empty((len(places), *of_one_shape.shape[1:]), np.uint8)
    for chunk in waiting:
        there = np.flatnonzero((places >= chunk.first) & (places < chunk.end))
        if not len(there):
            continue
        numbers = places[there] - chunk.first
        labels[there, 0] = chunk.labels[numbers]
        if stacked is not None and chunk.images is not None:
            stacked[there] = chunk.images[numbers]
        else:
            for place, number in zip(there.tolist(), numbers.tolist(), strict=True):
                listed[place] = chunk.image(number)
    return Samples(listed if stacked is None else stacked, labels, places, tuple(waiting), bad)


def _bad_among(waiting: Sequence[Chunk], places: I64) -> dict[int, str]:
    """number in the batch -> "URL: sample KEY: what is wrong with it"."""
    found = {}
    for chunk in waiting:
        for place, reason in chunk.bad.items():
            for number in np.flatnonzero(places == chunk.first + place).tolist():
                found[number] = f"{chunk.url}: sample {chunk.key(place)}: {reason}"
    return dict(sorted(found.items()))


def _substituted(places: I64, bad: dict[int, str]) -> I64:
    """In the place of a bad sample, the next good one of the batch."""
    good = np.setdiff1d(np.arange(len(places)), list(bad))
    if not len(good):
        raise ShardError(f"no sample of this batch of {len(places)} is good: {next(iter(bad.values()))}; {_MORE}")
    places = places.copy()
    for number in bad:
        places[number] = places[good[np.searchsorted(good, number) % len(good)]]
    return places


def _chunks(
    files: ShardFiles, manifest: Manifest, shards: Sequence[Shard], least: int, known_bad: KnownBad
) -> Generator[Chunk, None, None]:
    """From the one that holds sample `least` of the stream on."""
    form = StoredForm.of(manifest)
    ends = np.cumsum([shard.num_samples for shard in shards]).tolist()
    wanted = [(shard, end - shard.num_samples) for shard, end in zip(shards, ends, strict=True) if end > least]
    with closing(files.in_order([shard for shard, _ in wanted])) as those:
        for (shard, first), file in zip(wanted, those, strict=True):
            try:
                yield from _chunks_of(file, shard, first, max(0, least - first), manifest, form, known_bad)
            except (ValueError, OSError) as error:
                raise ShardError(f"{file.url}: {error}; {_MORE}") from error


def _chunks_of(
    file: ShardFile,
    shard: Shard,
    first: int,
    skipped: int,
    manifest: Manifest,
    form: StoredForm,
    known_bad: KnownBad,
) -> Iterator[Chunk]:
    """first: the place of its first sample in the stream; skipped: how many of its samples nobody wants."""
    samples = form.columns(file.index, shard)
    checksums = unpack_checksums(shard.crc32)
    descriptor = os.open(file.tar, os.O_RDONLY)
    try:
        for begin, end in _together(samples, skipped):
            part = samples.part(begin, end)
            chunk = Chunk(shard, file.url, first + begin, begin, part, _read(descriptor, part))
            chunk.parse(manifest, form)
            # Raw samples are checked when this process reads them first, and again where the tar has changed since, as
            # each time took an eighth of the rate; beside the decoding of files it is nothing.
            checked, state = file.checked, file_state(os.fstat(descriptor))
            if manifest.encoding != "raw" or (checked and not checked.covers(state, begin, end)):
                chunk.check(checksums[begin:end])
                if checked:
                    checked.add(state, begin, end, chunk.bad)
            for number in range(begin, end) if known_bad else ():
                if (shard.name, number) in known_bad:
                    chunk.bad.setdefault(number - begin, known_bad[shard.name, number])
            yield chunk
    finally:
        os.close(descriptor)


def _read(descriptor: int, samples: IndexColumns) -> U8:
    """ValueError or OSError, naming the samples, where they cannot be read."""
    offset, stop = int(samples.begins[0]), int(samples.ends[-1])
    try:
        data = os.pread(descriptor, stop - offset, offset)
    except OSError as error:
        those = f"samples {samples.names[0].partition('.')[0]} to {samples.names[-1].partition('.')[0]}"
        raise OSError(f"{those} cannot be read: {error}") from error
    if len(data) != stop - offset:
        raise ValueError(f"cut or changed since it was checked, in or before {samples.names[-1]}")
    return np.frombuffer(data, np.uint8)


def _together(samples: IndexColumns, begin: int) -> Iterator[tuple[int, int]]:
    """begin, end of samples that are read at once, from sample `begin` on."""
    begins, ends = samples.begins, samples.ends
    while begin < len(ends):
        end = int(np.searchsorted(ends, begins[begin] + CHUNK_BYTES, "right"))
        yield begin, max(begin + 1, end)
        begin = max(begin + 1, end)
