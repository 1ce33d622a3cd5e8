"""The two small sets that contenders are checked on."""

from __future__ import annotations

from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from fdt_pipeline.shards import Manifest, read_manifest, write_shards
from fdt_pipeline.sources import ArraySource, Source
from fdt_pipeline.storage import open_folder

from ..some_of_shards import SomeOfShards
from ..task import Task

SAMPLES, PER_CLASS = 2000, 5  # at least so many of the set's own images, if it has them
CODES, PER_CODE = 10, 24
STEP = 20  # grey levels between two codes: JPEG moves a flat colour by 2 at most
FACTORS = (1, 3, 7)  # a channel's levels are the classes' numbers times this, modulo CODES


@dataclass(frozen=True)
class CheckSets:
    """Folders of shards: some of the set's images, as many of each class as there are; flat images of CODES classes."""

    sample: Path
    coded: Path


def write_check_sets(task: Task) -> CheckSets:
    """In `task.work`, unless they are there."""
    folder = task.work / "check"
    sets = CheckSets(folder / "sample", folder / "coded")
    with closing(sample_of(task)) as sample:
        _write(sets.sample, sample, _kept(task.manifest))
    _write(sets.coded, coded_source(task.shape), _encoding(task.manifest))
    return sets


def _write(folder: Path, source: Source, encoding: str) -> None:
    if not (folder / "manifest.json").exists():
        write_shards(source, folder, encoding, samples_per_shard=max(1, len(source) // 4), overwrite=True)
    read_manifest(folder)


def _kept(manifest: Manifest) -> str:
    return "raw" if manifest.encoding == "raw" else "keep"


def _encoding(manifest: Manifest) -> str:
    return "jpg" if manifest.encoding == "keep" else manifest.encoding


def sample_of(task: Task) -> SomeOfShards:
    """Images of the set, spread over it; those of all classes as even as they are there."""
    source = SomeOfShards(open_folder(task.shards), task.manifest)
    labels, num_classes = source.labels, task.num_classes
    wanted = min(len(labels), max(SAMPLES, PER_CLASS * num_classes))
    each = max(1, wanted // num_classes)
    chosen = [_spread(np.flatnonzero(labels == c), each) for c in range(num_classes)]
    return source.only(np.sort(np.concatenate(chosen)))


def _spread(positions: npt.NDArray[np.int64], n: int) -> npt.NDArray[np.int64]:
    return positions[np.linspace(0, len(positions) - 1, min(n, len(positions))).astype(np.int64)]


def levels(num_channels: int) -> npt.NDArray[np.int64]:
    """i64[CODES c], 0..255: the colour of each class. No two classes are alike in any channel."""
    codes = np.arange(CODES)
    return np.stack([STEP + STEP * (codes * factor % CODES) for factor in FACTORS[:num_channels]], axis=1)


def coded_source(shape: tuple[int, int, int]) -> ArraySource:
    """shape: (c, h, w)."""
    c, h, w = shape
    labels = np.arange(CODES * PER_CODE) % CODES
    colours = levels(c).astype(np.uint8)[labels]
    return ArraySource(np.broadcast_to(colours[:, None, None, :], (len(labels), h, w, c)), labels, kind="coded")
