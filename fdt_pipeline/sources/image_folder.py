"""Image files as a source: read when asked for, all gray or all RGB.

Files whose extension clearly says something else (.txt, .json, ...) are not images. Every other file must be one: one
that is not is an error when it is asked for. `folder_layout.py` and `label_file.py` say which files belong to a source
and what their labels are; `files.py` lists and reads them; `image_pixels.py` makes them gray or RGB.
"""

from __future__ import annotations

import copy
import io
import os
from collections.abc import Iterable, Iterator

import numpy as np

from .files import Files
from .image_pixels import decode_image, is_gray
from .source import I64, Sample

_OF_THE_FILE = (FileNotFoundError, PermissionError, IsADirectoryError, NotADirectoryError)
_NOT_IMAGES = """
.7z .bz2 .cfg .conf .csv .dat .db .doc .docx .gz .h5 .hdf5 .htm .html .idx .ini .ipynb .js .json .jsonl .lnk .log .md
.md5 .ndjson .npy .npz .parquet .pdf .pickle .pkl .proto .pt .pth .py .pyc .rar .rst .sh .sha256 .sqlite .tar .tex
.tgz .toml .tsv .txt .url .xls .xlsx .xml .xz .yaml .yml .zip .zst .avi .mkv .mov .mp3 .mp4 .wav
"""
NOT_IMAGES = frozenset(_NOT_IMAGES.split())


class ImageFolder:
    """A file that is no good image is found when it is asked for. The key of a sample is its path below `folder`."""

    kind = "folder"
    shape = None  # known when all are decoded

    def __init__(
        self,
        files: Files,
        folder: str,
        names: list[str],
        labels: Iterable[str],
        classes: tuple[str, ...],
        *,
        split: str | None,
        channels: int,
    ) -> None:
        """names: of the images, relative to `folder`, which is relative to `files` ("" for the same place); labels: the
        name of the class of each."""
        self._files, self._folder, self._names = files, folder, names
        self.split, self.classes, self.channels = split, classes, channels
        numbers = {name: number for number, name in enumerate(classes)}
        self.labels = np.fromiter((numbers[label] for label in labels), np.int64, len(names))

    def __len__(self) -> int:
        return len(self._names)

    def __getitem__(self, index: int) -> Sample:
        """ValueError, naming the file, if it is no good image."""
        position = range(len(self))[index]
        try:
            pixels = decode_image(self.read_file(position), self.channels).pixels
        except ValueError as error:
            raise ValueError(f"{self._url(self._name(position))}: {error}; replace or remove it") from error
        return Sample(pixels, int(self.labels[position]), self.key(position))

    def key(self, index: int) -> str:
        return self._names[index]

    def read_file(self, index: int) -> bytes:
        """The bytes of a sample's file."""
        return self._files.read(self._name(index))

    def states(self, positions: Iterable[int]) -> Iterator[str]:
        """For each sample, a str that is different when its file has changed."""
        return (self._files.state(self._name(position)) for position in positions)

    def take(self, positions: I64) -> ImageFolder:
        """A source of these samples alone."""
        some = copy.copy(self)
        some._names, some.labels = [self._names[position] for position in positions], self.labels[positions]
        return some

    def _name(self, index: int) -> str:
        return f"{self._folder}/{self._names[index]}" if self._folder else self._names[index]

    def _url(self, name: str) -> str:
        return f"{self._files.url}/{name}" if name else self._files.url


def may_be_image(name: str) -> bool:
    """Whether it is that of a file which its extension does not clearly call something else."""
    return not name.endswith("/") and extension(name) not in NOT_IMAGES


def extension(name: str) -> str:
    """In lower case, with its dot; "" if there is none."""
    return os.path.splitext(name)[1].lower()


def common_channels(files: Files, names: Iterable[str]) -> int:
    """1 if all images that can be read are gray, else 3. Headers are read, up to the first image in color. OSError if a
    disk or a store fails: the missed image may be the one in color."""
    found = 0
    for name in names:
        try:
            if not _is_gray(files, name):
                return 3
        except (ValueError, *_OF_THE_FILE):  # the error is raised when the image is asked for
            continue
        found += 1
    return 1 if found else 3


def _is_gray(files: Files, name: str) -> bool:
    """Whether an image is gray by its header; by the whole file where that fails, which tells a broken image from a
    broken connection: Pillow reports both alike."""
    try:
        with files.open(name) as file:
            return is_gray(file)
    except ValueError:
        return is_gray(io.BytesIO(files.read(name)))
