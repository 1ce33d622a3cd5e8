"""Reading shards for streaming: an epoch's samples, still encoded, in windows.

The shards come in a new order every epoch; within that, sample j of the stream moves to place j + u B, u uniform on
[0, 1) and B the length of the shuffle: shards are read from their beginning to their end, a few megabytes at a time,
and no more than B samples are waiting. The order is a function of (seed, epoch, B) and the manifest alone, so any
window can be the first one read.

DALI's own reader keeps its order to itself, reads nothing but files that are all there, and does not say which sample
it was that did not decode; this one is faster, too (README.md).
"""

from __future__ import annotations

import math
import os
from collections import deque
from collections.abc import Generator, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.lib.stride_tricks import as_strided

from fdt_pipeline.philox import Stream, permutation, random_words
from fdt_pipeline.shards import Manifest, Shard, ShardError
from fdt_pipeline.shards.codec import decode, npy_header
from fdt_pipeline.shards.files import ShardFile, ShardFiles
from fdt_pipeline.shards.index import Member, parse_index
from fdt_pipeline.shards.sample import check_members
from fdt_pipeline.sources.image_pixels import decode_image
from fdt_pipeline.sources.source import I64, U8

_CHUNK = 4 << 20  # bytes that are read at once, if no single sample is larger


class Place(NamedTuple):
    """Of a sample."""

    shard: Shard
    key: str


class Window(NamedTuple):
    """images: u8[n h w c] if they are raw and of one shape, a list of n u8[h w c] if raw and not, else of n files'
    bytes, u8[bytes] each; labels i64[n 1]."""

    images: U8 | list[U8]
    labels: I64
    places: list[Place]


@dataclass(frozen=True)
class EpochOrder:
    """shards: their order; samples i64[n]: the places in the stream of the shards, in the order of the epoch."""

    shards: tuple[Shard, ...]
    samples: I64


def epoch_order(manifest: Manifest, seed: int, epoch: int, shuffle: int) -> EpochOrder:
    """shuffle: how far samples move; 0 is the order of the manifest."""
    if not shuffle:
        return EpochOrder(manifest.shards, np.arange(manifest.num_samples))
    order = permutation(seed, Stream.SHARD_ORDER, epoch, len(manifest.shards))
    places = np.arange(manifest.num_samples)
    moved = places + shuffle * (random_words(seed, Stream.READER, epoch, places, 0)[:, 0] / 2.0**32)
    return EpochOrder(tuple(manifest.shards[i] for i in order), np.argsort(moved, kind="stable"))


def read_windows(
    files: ShardFiles, manifest: Manifest, order: EpochOrder, size: int, first: int = 0
) -> Generator[Window, None, None]:
    """Windows number `first` and on, of `size` samples each but for the last. ShardError, naming shard and key, for
    what is not as the manifest says."""
    wanted = order.samples[first * size :]
    # The first place that any window from here on asks for: what lies before it can be forgotten.
    least = np.minimum.accumulate(wanted[::-1])[::-1]
    waiting: deque[_Chunk] = deque()
    read = 0
    with closing(_chunks(files, manifest, order.shards, int(least[0]) if len(least) else 0)) as chunks:
        for begin in range(0, len(wanted), size):
            places = wanted[begin : begin + size]
            while waiting and waiting[0].end <= least[begin]:
                waiting.popleft()
            while read <= places.max():
                waiting.append(next(chunks))
                read = waiting[-1].end
            yield _gathered(waiting, places)


class _Chunk:
    """Samples that were read together, number `first` to `end` of the stream; their files are views of `data`."""

    def __init__(self, shard: Shard, url: str, first: int, samples: list[list[Member]], data: U8) -> None:
        self.shard, self.url, self.first, self.end = shard, url, first, first + len(samples)
        self.samples, self.data = samples, data
        self.labels = np.empty(0, np.int64)
        self.images: U8 | None = None

    def file(self, member: Member) -> U8:
        begin = member.offset - self.samples[0][0].offset
        return self.data[begin : begin + member.size]

    def image(self, number: int) -> U8:
        """As `Window` has it."""
        member = self.samples[number][0]
        file = self.file(member)
        try:
            return decode(file.data, "npy") if member.extension == "npy" else file
        except ValueError as error:
            raise ShardError(f"{self.url}: sample {_key(self.samples[number])}: {error}") from None

    def parse(self, manifest: Manifest) -> None:
        """ValueError, naming the key, for a sample that is not an image and a label."""
        self.labels = np.array([self._label(members, manifest) for members in self.samples], np.int64)
        if manifest.encoding == "raw" and manifest.shape is not None:
            self.images, wrong = _raw_images([self.file(members[0]) for members in self.samples], manifest.shape)
            for number in wrong:
                size = " x ".join(map(str, manifest.shape))
                raise ValueError(f"sample {_key(self.samples[number])}: not an npy file of one uint8 image of {size}")

    def _label(self, members: list[Member], manifest: Manifest) -> int:
        try:
            label = check_members(members, [b"", self.file(members[-1]).tobytes()], manifest.encoding)
            if not 0 <= label < len(manifest.classes):
                raise ValueError(f"label {label} is out of range: expected 0..{len(manifest.classes) - 1}")
        except ValueError as error:
            raise ValueError(f"sample {_key(members)}: {error}") from None
        return label


def _raw_images(files: list[U8], shape: tuple[int, int, int]) -> tuple[U8, list[int]]:
    """(u8[n h w c], which of them are no such image); a view, as samples of one shape lie at equal distances."""
    header = np.frombuffer(npy_header(shape), np.uint8)
    expected = len(header) + math.prod(shape)
    addresses = np.array([file.__array_interface__["data"][0] for file in files])
    step = int(addresses[1] - addresses[0]) if len(files) > 1 else expected
    distances = np.diff(addresses, append=addresses[-1] + step)
    irregular = (np.array([len(file) for file in files]) != expected) | (distances != step)
    if irregular.any():
        return np.empty((0, *shape), np.uint8), np.flatnonzero(irregular).tolist()
    rows = as_strided(files[0], (len(files), expected), (step, 1), writeable=False)
    wrong = np.flatnonzero((rows[:, : len(header)] != header).any(axis=1))
    h, w, c = shape
    images = as_strided(rows[:, len(header) :], (len(files), h, w, c), (step, w * c, c, 1), writeable=False)
    return images, wrong.tolist()


def _gathered(waiting: Sequence[_Chunk], places: I64) -> Window:
    """The samples at these places of the stream, all of which are waiting."""
    labels = np.empty((len(places), 1), np.int64)
    found = [Place(waiting[0].shard, "")] * len(places)
    listed: list[U8] = [waiting[0].data] * len(places)
    of_one_shape = waiting[0].images
    stacked = None if of_one_shape is None else np.empty((len(places), *of_one_shape.shape[1:]), np.uint8)
    for chunk in waiting:
        there = np.flatnonzero((places >= chunk.first) & (places < chunk.end))
        numbers = places[there] - chunk.first
        labels[there, 0] = chunk.labels[numbers]
        if stacked is not None and chunk.images is not None:
            stacked[there] = chunk.images[numbers]
        for place, number in zip(there.tolist(), numbers.tolist(), strict=True):
            found[place] = Place(chunk.shard, _key(chunk.samples[number]))
            if stacked is None:
                listed[place] = chunk.image(number)
    return Window(listed if stacked is None else stacked, labels, found)


def _chunks(
    files: ShardFiles, manifest: Manifest, shards: Sequence[Shard], least: int
) -> Generator[_Chunk, None, None]:
    """Of all shards but those whose samples are all before number `least` of the stream."""
    ends = np.cumsum([shard.num_samples for shard in shards]).tolist()
    wanted = [(shard, end - shard.num_samples) for shard, end in zip(shards, ends, strict=True) if end > least]
    with closing(files.in_order([shard for shard, _ in wanted])) as those:
        for (shard, first), file in zip(wanted, those, strict=True):
            try:
                yield from _chunks_of(file, shard, first, manifest)
            except (ValueError, OSError) as error:
                raise ShardError(f"{file.url}: {error}; `python -m tools verify` says more") from error


def _chunks_of(file: ShardFile, shard: Shard, first: int, manifest: Manifest) -> Iterator[_Chunk]:
    samples = parse_index(file.index.decode("ascii"))
    if len(samples) != shard.num_samples:
        raise ValueError(f"its index has {len(samples)} samples, expected {shard.num_samples}")
    descriptor = os.open(file.tar, os.O_RDONLY)
    try:
        for begin, end in _together(samples):
            part = samples[begin:end]
            offset, stop = part[0][0].offset, _end(part[-1])
            data = os.pread(descriptor, stop - offset, offset)
            if len(data) != stop - offset:
                raise ValueError(f"cut or changed since it was checked, in or before sample {_key(part[-1])}")
            chunk = _Chunk(shard, file.url, first + begin, part, np.frombuffer(data, np.uint8))
            chunk.parse(manifest)
            yield chunk
    finally:
        os.close(descriptor)


def _together(samples: list[list[Member]]) -> Iterator[tuple[int, int]]:
    """begin, end of samples that are read at once."""
    begin = 0
    for number, members in enumerate(samples):
        if number > begin and _end(members) - samples[begin][0].offset > _CHUNK:
            yield begin, number
            begin = number
    if samples:
        yield begin, len(samples)


def _end(members: list[Member]) -> int:
    return members[-1].offset + members[-1].size


def _key(members: list[Member]) -> str:
    return members[0].name.partition(".")[0]


def bad_samples(window: Window, manifest: Manifest) -> list[str]:
    """ "SHARD: sample KEY: reason" for each sample of a window that does not decode."""
    images = window.images
    if not isinstance(images, list) or manifest.encoding == "raw":
        return []
    found = []
    for image, place in zip(images, window.places, strict=True):
        try:
            decode_image(image.tobytes(), manifest.channels)
        except ValueError as error:
            found.append(f"{place.shard.name}: sample {place.key}: {error}")
    return found
