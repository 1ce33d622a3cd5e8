"""Parquet files as the Hugging Face hub has them: a row is a sample, with the bytes of an image file and a label.

SOURCE is one file (no splits), or a folder with files such as train-00000-of-00002.parquet, in itself or in `data`.
`parquet_file.py` reads a file.
"""

from __future__ import annotations

import copy
import io
import re
import tempfile
import weakref
from collections.abc import Iterable, Iterator
from functools import cached_property, partial
from pathlib import Path
from typing import NamedTuple

import numpy as np

from .arrays import checked_labels
from .image_pixels import decode_image, is_gray
from .parquet_file import LabelColumn, read_images, read_labels
from .source import I64, Found, Sample, numbered_classes

NOT_REMOTE = (
    "Parquet is read from this machine alone: download the files (from the hub: hf download NAME --repo-type dataset "
    "--local-dir FOLDER) and give their folder"
)
_SPLITS = {"train", "test", "validation", "valid", "val"}
_NUMBER = re.compile(r"[-_.]?\d+(-of-(?P<total>\d+))?(-[0-9a-f]{16})?$")  # older files have part of a hash, too


def find(path: Path, kind: str, asked: bool) -> Found | None:
    if path.is_file():
        return Found(kind, (), partial(ParquetSource, {None: [path]})) if path.suffix == ".parquet" else None
    splits: dict[str | None, list[Path]] = {}
    files = sorted(path.glob("[!.]*.parquet")) or sorted((path / "data").glob("[!.]*.parquet"))
    for file in files:
        splits.setdefault(_NUMBER.sub("", file.stem) or file.stem, []).append(file)
    if not files:
        return None
    for split, some in splits.items():
        _check_complete(f"{some[0].parent}/{split}", some)
    if not splits.keys() & _SPLITS:
        return Found(kind, (), partial(ParquetSource, {None: files}))
    names = sorted((str(split) for split in splits), key=lambda name: (name != "train", name))
    return Found(kind, tuple(names), partial(ParquetSource, splits))


def _check_complete(where: str, files: list[Path]) -> None:
    """ValueError if their names tell of another number of files."""
    matches = [_NUMBER.search(file.stem) for file in files]
    totals = {int(match["total"]) for match in matches if match and match["total"]}
    if totals - {len(files)}:
        told = " or ".join(str(total) for total in sorted(totals))
        raise ValueError(
            f"{where}-*.parquet: expected {told} files by their names, got {len(files)}; fetch all of one version, or "
            "give one file as SOURCE"
        )


class _Unpacked(NamedTuple):
    """A file with the bytes of all images of a split after each other. extents i64[n 2]: the first byte and the end of
    each sample's, -1 where it has none; channels: those of the source."""

    path: Path
    extents: I64
    channels: int


class ParquetSource:
    """Opening reads labels alone. When the first image is asked for, all images of the split are copied to a temporary
    file: samples are wanted in shuffled order, and Parquet gives whole row groups. It lies where TMPDIR says, and is
    removed with the source. The key of a sample is the name of its file, without .parquet, and its row."""

    kind = "parquet"
    shape = None  # known when all are decoded

    def __init__(self, files: dict[str | None, list[Path]], split: str | None) -> None:
        """files: of every split, or {None: files} of a set without splits."""
        self.split, self._files = split, files[split]
        self._files_of_all_splits = [file for some in files.values() for file in some]
        own = [read_labels(file) for file in self._files]
        # The train split's classes are those of every split, so that a label means the same in all.
        train = own if split in (None, "train") else [read_labels(file) for file in files.get("train", self._files)]
        classes = _classes(train, own)
        labels = np.concatenate([_numbers(part, classes) for part in own])
        where = self._files[0] if len(self._files) == 1 else f"{self._files[0]} and the files after it"
        self.labels, self.classes = checked_labels(labels, classes, split, where)
        self._states = [part.state for part in own]
        self._ends = np.cumsum([len(part.labels) for part in own])
        self._positions = np.arange(len(labels))

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> Sample:
        """ValueError, naming the file and the row, if it is no good image."""
        place = range(len(self))[index]
        try:
            pixels = decode_image(self.read_file(place), self.channels).pixels
        except ValueError as error:
            file, row = self._place(place)
            raise ValueError(f"{self._files[file]}: row {row}: {error}; replace or remove it") from error
        return Sample(pixels, int(self.labels[place]), self.key(place))

    def key(self, index: int) -> str:
        file, row = self._place(index)
        return f"{self._files[file].stem}/{row}"

    def read_file(self, index: int) -> bytes:
        """The bytes of a sample's image file."""
        path, extents, _ = self._unpacked
        start, end = extents[index].tolist()
        if start < 0:
            raise ValueError("expected the bytes of an image, got null")
        try:
            with path.open("rb") as file:
                file.seek(start)
                return file.read(end - start)
        except FileNotFoundError:  # which would be taken for that of a bad sample
            text = "no unpacked images here; set TMPDIR to a folder that all machines share, and keep what is in it"
            raise OSError(f"{path}: {text}") from None

    def states(self, positions: Iterable[int]) -> Iterator[str]:
        """For each sample, a str that is different when its file has changed."""
        return (self._states[self._place(position)[0]] for position in positions)

    def take(self, positions: I64) -> ParquetSource:
        """A source of these samples alone, which may read the unpacked images while this one exists."""
        unpacked = self._unpacked
        some = copy.copy(self)
        some.labels, some._positions = self.labels[positions], self._positions[positions]
        some._unpacked = unpacked._replace(extents=unpacked.extents[positions])
        return some

    @property
    def channels(self) -> int:
        """1 if all images of all splits are gray, else 3."""
        return self._unpacked.channels

    def _place(self, index: int) -> tuple[int, int]:
        """(number of the file, row in it) of a sample."""
        position = int(self._positions[index])
        file = int(np.searchsorted(self._ends, position, "right"))
        return file, position - (int(self._ends[file - 1]) if file else 0)

    @cached_property
    def _unpacked(self) -> _Unpacked:
        extents = np.full((len(self), 2), -1)
        images = (data for file in self._files for data in read_images(file))
        try:
            with tempfile.NamedTemporaryFile(prefix="fdt-pipeline-parquet-", delete=False) as target:
                path = Path(target.name)
                weakref.finalize(self, path.unlink, missing_ok=True)
                for extent, data in zip(extents, images, strict=True):
                    if data is not None:
                        extent[:] = target.tell(), target.tell() + len(data)
                        target.write(data)
        except OSError as error:
            text = f"could not unpack images to {tempfile.gettempdir()}, which TMPDIR can change: {error}"
            raise OSError(error.errno, text) from error
        return _Unpacked(path, extents, _channels(self._files_of_all_splits))


def _channels(files: Iterable[Path]) -> int:
    """1 if all images that can be read are gray, else 3; read up to the first that is not."""
    found = 3
    for data in (data for file in files for data in read_images(file)):
        try:
            if not is_gray(io.BytesIO(data or b"")):
                return 3
        except ValueError:  # the error is raised when the image is asked for
            continue
        found = 1
    return found


def _classes(train: list[LabelColumn], own: list[LabelColumn]) -> tuple[str, ...]:
    """The names of the classes; sorted, if the labels are the names."""
    first = train[0]
    for part in (*train, *own):
        if part.is_text != first.is_text or (not first.is_text and part.names != first.names):
            raise ValueError(f"{part.file}: expected labels and class names as in {first.file}, got others")
    if first.is_text:
        return tuple(sorted({name for part in train for name in part.names or ()}))
    return first.names or numbered_classes(np.concatenate([part.labels for part in train]), first.file)


def _numbers(part: LabelColumn, classes: tuple[str, ...]) -> I64:
    """i64[n], numbers of classes. ValueError, naming the row, for the first label that is none of them."""
    labels = part.labels
    if part.is_text:
        numbers = {name: number for number, name in enumerate(classes)}
        labels = np.array([numbers.get(name, -1) for name in part.names or ()])[labels]
    wrong = np.flatnonzero((labels < 0) | (labels >= len(classes)))
    if wrong.size:
        row, label = wrong[0], part.labels[wrong[0]]
        got = repr(part.names[label]) if part.is_text and part.names else label
        raise ValueError(
            f"{part.file}: row {row}: label {got} is out of range: expected 0..{len(classes) - 1} or the names of the "
            f"{len(classes)} classes; of a split without labels (-1 at the hub) choose another with --split"
        )
    return labels.astype(np.int64)
