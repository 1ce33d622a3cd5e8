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
from fdt_pipeline.shards.codec import EXTENSIONS, decode, npy_header
from fdt_pipeline.shards.columns import IndexColumns, index_columns, parsed_labels
from fdt_pipeline.shards.files import ShardFile, ShardFiles
from fdt_pipeline.sources.image_pixels import decode_image
from fdt_pipeline.sources.source import I64, U8

_BEGINNINGS = {"png": b"\x89PNG\r\n\x1a\n", "jpg": b"\xff\xd8\xff", "webp": b"RIFF"}
_CHUNK = 4 << 20  # bytes that are read at once, if no single sample is larger


class Window(NamedTuple):
    """images: u8[n h w c] if they are raw and of one shape, a list of n u8[h w c] if raw and not, else of n files'
    bytes, u8[bytes] each; labels i64[n 1]."""

    images: U8 | list[U8]
    labels: I64
    places: I64
    chunks: tuple[_Chunk, ...]

    def name(self, number: int) -> str:
        """ "SHARD: sample KEY" of one of its samples. Not kept for each: that took a tenth of the time."""
        place = self.places[number]
        [chunk] = (chunk for chunk in self.chunks if chunk.first <= place < chunk.end)
        return f"{chunk.shard.name}: sample {chunk.key(place - chunk.first)}"


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


def bad_samples(window: Window, manifest: Manifest) -> list[str]:
    """ "SHARD: sample KEY: reason" for each sample of a window that does not decode."""
    if not isinstance(window.images, list) or manifest.encoding == "raw":
        return []
    found = []
    for number, image in enumerate(window.images):
        try:
            decode_image(image.tobytes(), manifest.channels)
        except ValueError as error:
            found.append(f"{window.name(number)}: {error}")
    return found


class _Chunk:
    """Samples that were read together, number `first` to `end` of the stream; their files are views of `data`."""

    def __init__(self, shard: Shard, url: str, first: int, samples: IndexColumns, data: U8) -> None:
        self.shard, self.url, self.first, self.end = shard, url, first, first + len(samples.names)
        self.samples, self.data = samples, data
        self.starts = samples.image_offsets - samples.image_offsets[0]
        self.labels = np.empty(0, np.int64)
        self.images: U8 | None = None

    def key(self, number: int) -> str:
        return self.samples.names[number].partition(".")[0]

    def image(self, number: int) -> U8:
        """As `Window` has it."""
        begin = self.starts[number]
        file = self.data[begin : begin + self.samples.image_sizes[number]]
        extension = self.samples.extensions[number]
        if extension != "npy":
            # DALI 2.4's decoder kills the process, 5 times of 6, where an image does not begin as one.
            if not file[:16].tobytes().startswith(_BEGINNINGS[extension]):
                found = file[:16].tobytes()
                raise ShardError(f"{self.url}: sample {self.key(number)}: not a {extension}: it begins with {found!r}")
            return file
        try:
            return decode(file.data, "npy")
        except ValueError as error:
            raise ShardError(f"{self.url}: sample {self.key(number)}: {error}") from None

    def parse(self, manifest: Manifest) -> None:
        """ValueError, naming the key, for a sample that is not an image and a label."""
        samples, offset = self.samples, self.samples.image_offsets[0]
        self.labels = parsed_labels(self.data, samples.label_offsets - offset, samples.label_sizes)
        for number in np.flatnonzero((self.labels < 0) | (self.labels >= len(manifest.classes))).tolist():
            begin = samples.label_offsets[number] - offset
            text = self.data[begin : begin + samples.label_sizes[number]].tobytes()
            raise ValueError(
                f"sample {self.key(number)}: the .cls member holds {text[:40]!r}, expected a class number below "
                f"{len(manifest.classes)}"
            )
        if manifest.encoding == "raw" and manifest.shape is not None:
            self.images, wrong = _raw_images(self.data, self.starts, samples.image_sizes, manifest.shape)
            for number in wrong:
                size = " x ".join(map(str, manifest.shape))
                raise ValueError(f"sample {self.key(number)}: not an npy file of one uint8 image of {size}")


def _raw_images(data: U8, starts: I64, sizes: I64, shape: tuple[int, int, int]) -> tuple[U8, list[int]]:
    """(u8[n h w c], which of them are no such image); a view, as samples of one shape lie at equal distances."""
    header = np.frombuffer(npy_header(shape), np.uint8)
    expected = len(header) + math.prod(shape)
    step = int(starts[1] - starts[0]) if len(starts) > 1 else expected
    irregular = (sizes != expected) | (starts != np.arange(len(starts)) * step)
    if irregular.any():
        return np.empty((0, *shape), np.uint8), np.flatnonzero(irregular).tolist()
    rows = as_strided(data, (len(starts), expected), (step, 1), writeable=False)
    wrong = np.flatnonzero((rows[:, : len(header)] != header).any(axis=1))
    h, w, c = shape
    images = as_strided(data[len(header) :], (len(starts), h, w, c), (step, w * c, c, 1), writeable=False)
    return images, wrong.tolist()


def _gathered(waiting: Sequence[_Chunk], places: I64) -> Window:
    """The samples at these places of the stream, all of which are waiting."""
    labels = np.empty((len(places), 1), np.int64)
    listed: list[U8] = [waiting[0].data] * len(places)
    of_one_shape = waiting[0].images
    stacked = None if of_one_shape is None else np.empty((len(places), *of_one_shape.shape[1:]), np.uint8)
    for chunk in waiting:
        there = np.flatnonzero((places >= chunk.first) & (places < chunk.end))
        numbers = places[there] - chunk.first
        labels[there, 0] = chunk.labels[numbers]
        if stacked is not None and chunk.images is not None:
            stacked[there] = chunk.images[numbers]
        elif len(there):
            for place, number in zip(there.tolist(), numbers.tolist(), strict=True):
                listed[place] = chunk.image(number)
    return Window(listed if stacked is None else stacked, labels, places, tuple(waiting))


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
    samples = index_columns(file.index.decode("ascii"), EXTENSIONS[manifest.encoding])
    if len(samples.names) != shard.num_samples:
        raise ValueError(f"its index has {len(samples.names)} samples, expected {shard.num_samples}")
    descriptor = os.open(file.tar, os.O_RDONLY)
    try:
        for begin, end in _together(samples):
            part = samples.part(begin, end)
            offset, stop = int(part.image_offsets[0]), int(part.label_offsets[-1] + part.label_sizes[-1])
            data = os.pread(descriptor, stop - offset, offset)
            if len(data) != stop - offset:
                raise ValueError(f"cut or changed since it was checked, in or before {part.names[-1]}")
            chunk = _Chunk(shard, file.url, first + begin, part, np.frombuffer(data, np.uint8))
            chunk.parse(manifest)
            yield chunk
    finally:
        os.close(descriptor)


def _together(samples: IndexColumns) -> Iterator[tuple[int, int]]:
    """begin, end of samples that are read at once."""
    ends = samples.label_offsets + samples.label_sizes
    begin = 0
    while begin < len(ends):
        end = int(np.searchsorted(ends, samples.image_offsets[begin] + _CHUNK, "right"))
        yield begin, max(begin + 1, end)
        begin = max(begin + 1, end)
