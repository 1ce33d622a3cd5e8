"""A set of webdataset tars of other programs: a manifest and DALI indexes for them, while they stay as they are."""

from __future__ import annotations

import errno
import hashlib
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import numpy as np

from ..machine import available_cpus
from ..sources.image_pixels import quiet
from ..sources.source import few
from ..storage import Folder, place_of
from .folder import MANIFEST_NAME, read_manifest
from .foreign_tar import BrokenTarError, ForeignTar, read_foreign_tar
from .labels import ClassNumbers, Label, LabelField, checked_classes, classes_found
from .manifest import Manifest, Quarantined, Shard, ShardError
from .pixel_statistics import PixelStatistics
from .progress import Progress

MAX_THREADS = 4  # each reads a tar; Pillow decodes without Python's lock


class BadTarsError(ValueError):
    """Tars that cannot be read, a line each, or that hold no sample that can be taken; nothing was written."""


class InPlace(NamedTuple):
    """manifest: as it was written. num_turned: images that EXIF would turn, which the loader does not. empty: the tars
    that are not in the manifest, as no sample of them can be taken."""

    manifest: Manifest
    num_turned: int
    empty: tuple[str, ...]


def index_in_place(
    tars: Sequence[tuple[Folder, str]],
    out: Folder,
    classes: Sequence[str] | None = None,
    label: LabelField = LabelField("cls"),  # noqa: B008  # frozen
    decode: bool = True,
    progress: Progress | None = None,
) -> InPlace:
    """Read each tar (its folder, and its name there) once, and write an index for each and the manifest to `out`.

    classes: their names; by default what `classes_found` makes of the labels. decode: every image whole, else their
    headers alone, and mean and std stay unknown. Samples without an image that DALI decodes, or without a label, are
    left out and listed in the manifest's quarantine. Indexes are in memory until all tars are read.

    BadTarsError if a tar cannot be read, or no sample is left; ValueError for a tar that is given twice, labels that
    are of no class, a sample with two images, and shards of our own in `out`.
    """
    places = [place_of(out, folder, name) for folder, name in tars]
    _check_places(places, out)
    given = None if classes is None else checked_classes(classes)
    read = _read_all(tars, label, decode, progress)
    if not any(tar.keys for tar in read):
        raise BadTarsError(f"no sample is left of {sum(tar.num_groups for tar in read)}: {_reasons(places, read)}")
    names = classes_found(_labels(places, read)) if given is None else given
    samples_per_class = _samples_per_class(places, read, names)
    indexed = zip(places, _index_names(places), read, strict=True)
    shards = {_shard(place, index, tar): tar for place, index, tar in indexed if tar.keys}
    manifest = _manifest(places, read, list(shards), names, samples_per_class, label)
    out.make()
    for shard, tar in shards.items():
        _write(out, shard.index_name, tar.index)
    _write(out, MANIFEST_NAME, manifest.to_json().encode("ascii"))
    empty = tuple(place for place, tar in zip(places, read, strict=True) if not tar.keys)
    return InPlace(manifest, sum(tar.num_turned for tar in read), empty)


def _check_places(places: Sequence[str], out: Folder) -> None:
    for place, count in Counter(places).items():
        if count > 1:
            raise ValueError(f"{place}: is given {count} times: expected each tar once")
    if out.is_file():
        raise ValueError(f"{out.url}: is a file, expected a folder for the manifest and the indexes")
    if out.size(MANIFEST_NAME) is None:
        return
    try:
        is_ours = not read_manifest(out).in_place
    except ShardError as error:
        raise ValueError(f"{error}; or remove it, or choose another folder for the manifest") from None
    if is_ours:
        raise ValueError(f"{out.url}: holds shards that were written there: choose another folder")


def _read_all(
    tars: Sequence[tuple[Folder, str]], label: LabelField, decode: bool, progress: Progress | None
) -> list[ForeignTar]:
    """On a few threads, in the order of the tars. All broken tars are named; any other error ends it."""
    broken, read = [], []
    pool = ThreadPoolExecutor(min(MAX_THREADS, available_cpus()), "fdt_pipeline index")
    with quiet():
        try:
            waiting = [pool.submit(_read, folder, name, label, decode) for folder, name in tars]
            for done, (tar, (folder, name)) in enumerate(zip(waiting, tars, strict=True), 1):
                try:
                    read.append(tar.result())
                except BrokenTarError as error:
                    broken.append(f"{folder.path(name)}: {error}")
                except OSError as error:
                    broken.append(f"{folder.path(name)}: could not be read: {error.strerror or error}")
                if progress:
                    progress(done, len(tars))
        finally:
            pool.shutdown(cancel_futures=True)
    if broken:
        raise BadTarsError("\n".join(broken))
    return read


def _read(folder: Folder, name: str, label: LabelField, decode: bool) -> ForeignTar:
    size = folder.size(name)
    if size is None:
        raise FileNotFoundError(errno.ENOENT, "no such file")
    with folder.open(name) as file:
        try:
            tar = read_foreign_tar(file, size, label, decode)
        except BrokenTarError:
            raise
        except ValueError as error:
            raise ValueError(f"{folder.path(name)}: {error}") from None
    if tar.unlabelled and not tar.num_labelled:
        _, key, reason = tar.unlabelled
        raise ValueError(
            f"{folder.path(name)}: none of its samples has a label in {label}: sample {key}: {reason}; say where "
            "labels are with --label cls, --label txt or --label json:FIELD"
        )
    return tar


def _labels(places: Sequence[str], read: Sequence[ForeignTar]) -> Iterator[tuple[str, Label]]:
    """(where it is, label) of each sample."""
    for place, tar in zip(places, read, strict=True):
        for key, label in zip(tar.keys, tar.labels, strict=True):
            yield f"{place}: sample {key}", label


def _samples_per_class(places: Sequence[str], read: Sequence[ForeignTar], classes: Sequence[str]) -> tuple[int, ...]:
    """ValueError, naming tar and key, for a label that is of no class."""
    class_number, counts = ClassNumbers(classes), [0] * len(classes)
    for where, label in _labels(places, read):
        try:
            counts[class_number(label)] += 1
        except ValueError as error:
            raise ValueError(f"{where}: {error}; fix the label, or the classes (--classes FILE)") from None
    return tuple(counts)


def _index_names(places: Sequence[str]) -> Iterator[str]:
    """NAME.idx of NAME.tar; with the number of the tar before it where two have one name."""
    stems = [place.rpartition("/")[2].removesuffix(".tar") for place in places]
    counts = Counter(stems)
    for number, stem in enumerate(stems):
        yield f"{stem}.idx" if counts[stem] == 1 else f"{number:06d}-{stem}.idx"


def _shard(place: str, index_name: str, tar: ForeignTar) -> Shard:
    sha256 = hashlib.sha256(tar.index).hexdigest()
    return Shard(place, len(tar.keys), tar.num_bytes, tar.sha256, sha256, tar.crc32, index_name)


def _manifest(
    places: Sequence[str],
    read: Sequence[ForeignTar],
    shards: Sequence[Shard],
    classes: tuple[str, ...],
    samples_per_class: tuple[int, ...],
    label: LabelField,
) -> Manifest:
    sizes = set().union(*(tar.sizes for tar in read))
    channels = 1 if all(tar.num_gray == len(tar.keys) for tar in read) else 3
    statistics = _statistics(read, channels)
    return Manifest(
        kind="webdataset",
        split=None,
        classes=classes,
        num_samples=sum(shard.num_samples for shard in shards),
        samples_per_class=samples_per_class,
        shape=(*sizes.pop(), channels) if len(sizes) == 1 else None,
        channels=channels,
        encoding="keep",
        seed=0,
        samples_per_shard=max(shard.num_samples for shard in shards),
        max_shard_bytes=None,
        size=None,
        mean=statistics.mean if statistics else None,
        std=statistics.std if statistics else None,
        shards=tuple(shards),
        keys={},
        quarantine=tuple(_quarantine(places, read)),
        samples_per_extension=dict(sorted(sum((tar.extensions for tar in read), Counter[str]()).items())),
        labels=str(label),
    )


def _statistics(read: Sequence[ForeignTar], channels: int) -> PixelStatistics | None:
    """None if nothing was decoded."""
    counts = sum((tar.pixel_counts(channels) for tar in read), np.zeros((channels, 256), np.int64))
    if not counts.any():
        return None
    statistics = PixelStatistics()
    statistics.add(counts)
    return statistics


def _quarantine(places: Sequence[str], read: Sequence[ForeignTar]) -> Iterator[Quarantined]:
    """position: among the samples of its tar."""
    for place, tar in zip(places, read, strict=True):
        for number, key, reason in tar.left_out:
            yield Quarantined(number, f"{place}: {key}", reason)


def _reasons(places: Sequence[str], read: Sequence[ForeignTar]) -> str:
    return few([f"{bad.key}: {bad.reason}" for bad in _quarantine(places, read)]) or "the tars are empty"


def _write(out: Folder, name: str, data: bytes) -> None:
    if out.size(name) is None or out.read(name) != data:
        with out.writing(name) as file:
            file.write(data)
