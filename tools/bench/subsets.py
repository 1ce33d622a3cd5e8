"""Sets of shards made of a set: some of its images for the checks, or all of them in other classes for a sweep."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch.nn import functional

from fdt_pipeline.shards import Manifest, iterate_shards, read_manifest, write_shards
from fdt_pipeline.shards.conversion import OneShard, ShardSource
from fdt_pipeline.sources import ArraySource, Sample, Source
from fdt_pipeline.sources.source import I64, U8
from fdt_pipeline.storage import open_folder

from .task import Task, require

Key = Callable[[torch.Tensor], list[Any]]
SAMPLES, PER_CLASS = 2000, 5  # a check takes at least 2,000 of the set's own images, and 5 of each class
CODES, PER_CODE = 10, 24
STEP = 20  # grey levels between two codes: JPEG moves a flat colour by 2 at most
FACTORS = (1, 3, 7)  # a channel's levels are the classes' numbers times this, modulo CODES
THUMBNAIL = 8  # pixels a side
STRANGE = 0.01  # share of thumbnails that may be nearest to another image's: near duplicates
FAR = 12.0  # grey levels between thumbnails, root mean square: more than decoders and filters differ by


class SomeOfShards:
    """Samples of a set as a source, with labels of their own. Each is read when it is asked for.

    positions: i64[n], in the order of the shards. labels: i64[n], numbers of `classes`.
    """

    def __init__(self, source: ShardSource, positions: I64, labels: I64, classes: Sequence[str]) -> None:
        self.kind, self.split, self.shape, self.channels = source.kind, source.split, source.shape, source.channels
        self.labels, self.classes = labels, tuple(classes)
        self._positions, self._bounds, self._shard = positions, source.bounds, cache(source.shard)
        if source.manifest.encoding != "raw":
            self.read_file = self._read_file

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> Sample:
        shard, place = self._found(index)
        with closing(shard):
            return Sample(shard[place].image, int(self.labels[index]), self.key(index))

    def key(self, index: int) -> str:
        return str(self._positions[index])

    def _read_file(self, index: int) -> bytes:
        shard, place = self._found(index)
        with closing(shard):
            return shard.read_file(place)

    def _found(self, index: int) -> tuple[OneShard, int]:
        """The shard of a sample, and its place there."""
        position = int(self._positions[index])
        number = int(np.searchsorted(self._bounds, position, "right")) - 1
        return self._shard(number), position - int(self._bounds[number])


def relabelled(shards: Path, num_classes: int, work: Path) -> Path:
    """A folder of shards in which image number i is of class i % num_classes; kept in `work`.

    ValueError where there are fewer images than classes.
    """
    manifest = read_manifest(shards)
    if manifest.num_samples < num_classes:
        raise ValueError(f"--classes {num_classes} needs as many images, got {manifest.num_samples}")
    positions = np.arange(manifest.num_samples)
    names = [str(c) for c in range(num_classes)]
    source = SomeOfShards(ShardSource(open_folder(shards), manifest), positions, positions % num_classes, names)
    return _written(work / f"classes-{num_classes}", source, _kept(manifest), manifest.samples_per_shard)


@dataclass(frozen=True)
class CheckSets:
    """Folders of shards: some of the set's images, as many of each class as there are; flat images of CODES classes."""

    sample: Path
    coded: Path


def write_check_sets(task: Task) -> CheckSets:
    """Write them in `task.work`, unless they are there."""
    folder, sample = task.work / "check", _sample(task)
    sampled = _written(folder / "sample", sample, _kept(task.manifest), max(1, len(sample) // 4))
    encoding = "jpg" if task.manifest.encoding == "keep" else task.manifest.encoding
    return CheckSets(sampled, _written(folder / "coded", _coded(task.shape), encoding, CODES * PER_CODE // 4))


def _written(folder: Path, source: Source, encoding: str, samples_per_shard: int) -> Path:
    if not (folder / "manifest.json").exists():
        write_shards(source, folder, encoding, samples_per_shard=samples_per_shard, overwrite=True)
    return folder


def _kept(manifest: Manifest) -> str:
    return "raw" if manifest.encoding == "raw" else "keep"


def _sample(task: Task) -> SomeOfShards:
    """Images from all over the set; as many of each class as there are."""
    source, num_classes = ShardSource(open_folder(task.shards), task.manifest), task.num_classes
    labels = source.labels
    each = max(1, min(len(labels), max(SAMPLES, PER_CLASS * num_classes)) // num_classes)
    chosen = []
    for label in range(num_classes):
        positions = np.flatnonzero(labels == label)
        chosen.append(positions[np.linspace(0, len(positions) - 1, min(each, len(positions))).astype(np.int64)])
    some = np.sort(np.concatenate(chosen))
    return SomeOfShards(source, some, labels[some], source.classes)


def levels(num_channels: int) -> I64:
    """i64[CODES c], 0..255: the colour of each class. No two classes are alike in any channel."""
    codes = np.arange(CODES)
    return np.stack([STEP + STEP * (codes * factor % CODES) for factor in FACTORS[:num_channels]], axis=1)


def _coded(shape: tuple[int, int, int]) -> ArraySource:
    """Flat images whose colour is that of their class. shape: (c, h, w)."""
    c, h, w = shape
    labels = np.arange(CODES * PER_CODE) % CODES
    colours = levels(c).astype(np.uint8)[labels]
    return ArraySource(np.broadcast_to(colours[:, None, None, :], (len(labels), h, w, c)), labels, kind="coded")


def exact_hashes(pixels: torch.Tensor) -> list[bytes]:
    """Keys of sums as they are: two that differ by a rounding have different ones."""
    return [hashlib.blake2b(image.tobytes(), digest_size=16).digest() for image in pixels.numpy()]


def hashes(pixels: torch.Tensor) -> list[bytes]:
    """Keys of pixels to the nearest quarter: roundings do not change them, a wrong mean or std does."""
    return exact_hashes((4 * pixels).round().to(torch.int16))


def thumbnails(pixels: torch.Tensor) -> list[np.ndarray]:
    """Keys f32[c x THUMBNAIL x THUMBNAIL], which another decoder or another filter hardly changes."""
    return list(functional.adaptive_avg_pool2d(pixels, THUMBNAIL).flatten(1).numpy())


class Reference:
    """The images of a set, to be found again in what a contender gives.

    Where nothing is lost on the way they are compared bit by bit; JPEGs and resized images, which decoders and filters
    see a little differently, as thumbnails.
    """

    def __init__(self, task: Task) -> None:
        manifest = task.manifest
        self._exact = manifest.encoding in ("raw", "png", "webp") and not task.is_resized
        self.key: Key = hashes if self._exact else thumbnails
        keys: list[Any] = []
        labels: list[int] = []
        for shard in iterate_shards(task.shards, manifest):
            for image in shard.images:
                keys += self.key(_planes(image, task.shape))
            labels += shard.labels.tolist()
        self._keys, self._labels = keys, np.array(labels)

    def check(self, keys: list[Any], targets: np.ndarray) -> None:
        """RefusedError unless an epoch has no image twice, and each with its label."""
        require(np.isclose(targets.max(1), 1).all(), "targets must be whole classes, as it does not mix")
        n, labels = len(keys), targets.argmax(1)
        strange, twice, wrong = self._exact_faults(keys, labels) if self._exact else self._near_faults(keys, labels)
        tolerated = 0 if self._exact else STRANGE * n
        require(not strange, f"{strange} of {n} images are not in the set, with augmentation off")
        require(twice <= tolerated, f"{twice} of {n} images come more often than once an epoch")
        require(wrong <= tolerated, f"{wrong} of {n} images have a label that is not theirs")

    def _exact_faults(self, keys: list[Any], labels: I64) -> tuple[int, int, int]:
        """Numbers of images that are not in the set, that come twice, and that have a wrong label."""
        images, known = Counter(self._keys), Counter(zip(self._keys, self._labels.tolist(), strict=True))
        strange = sum(key not in images for key in keys)
        twice = sum((Counter(keys) - images).values())
        return strange, twice, sum((Counter(zip(keys, labels.tolist(), strict=True)) - known).values())

    def _near_faults(self, keys: list[Any], labels: I64) -> tuple[int, int, int]:
        """The same numbers, by the nearest thumbnail in root mean squares."""
        found, known = np.stack(keys).astype(np.float64), np.stack(self._keys).astype(np.float64)
        squares = (found**2).sum(1)[:, None] + (known**2).sum(1) - 2 * found @ known.T
        nearest = squares.argmin(1)
        distances = np.sqrt(np.maximum(squares[np.arange(len(found)), nearest], 0) / found.shape[1])
        twice = len(found) - len(np.unique(nearest))
        return int((distances > FAR).sum()), twice, int((self._labels[nearest] != labels).sum())


def _planes(image: U8, shape: tuple[int, int, int]) -> torch.Tensor:
    """u8[h w c] -> f32[1 c h w], resized to the shape that the task has."""
    c, h, w = shape
    if image.shape[:2] != (h, w):
        whole = Image.fromarray(image[..., 0] if c == 1 else image).resize((w, h), Image.Resampling.BILINEAR)
        image = np.asarray(whole).reshape(h, w, c)
    return torch.from_numpy(np.array(image)).permute(2, 0, 1)[None].float()
