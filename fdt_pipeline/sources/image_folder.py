"""A folder of image files: class = subfolder, split = subfolder train, test, val, ... above the classes.

Classes are sorted by name, samples by class and then by path. Files whose extension clearly says something else (.txt,
.json, ...) are not images: one warning counts and names them. Every other file must be an image: one that is not is an
error when it is asked for. `files.py` lists and reads the files; `image_pixels.py` makes them gray or RGB.
"""

from __future__ import annotations

import copy
import io
import os
import warnings
from collections.abc import Iterable, Iterator
from functools import partial
from pathlib import Path

import numpy as np
from PIL import Image

from .files import Files, LocalFiles
from .image_pixels import decode_image, is_gray
from .source import I64, Found, Sample

_TEST_NAMES = ("test", "val", "valid", "validation")
_OF_THE_FILE = (FileNotFoundError, PermissionError, IsADirectoryError, NotADirectoryError)
_NOT_IMAGES = """
.7z .bz2 .cfg .conf .csv .dat .db .doc .docx .gz .h5 .hdf5 .htm .html .ini .ipynb .js .json .jsonl .lnk .log .md
.md5 .npy .npz .parquet .pdf .pickle .pkl .proto .pt .pth .py .pyc .rar .rst .sh .sha256 .sqlite .tar .tex .tgz
.toml .tsv .txt .url .xls .xlsx .xml .xz .yaml .yml .zip .zst .avi .mkv .mov .mp3 .mp4 .wav
"""
NOT_IMAGES = frozenset(_NOT_IMAGES.split())


def find(path: Path, kind: str, asked: bool) -> Found | None:
    return find_images(LocalFiles(path), asked)


def find_images(files: Files, asked: bool) -> Found | None:
    """asked: a folder in it is enough; else a file in one must be an image by its extension."""
    names = files.names()
    extensions = Image.registered_extensions()
    if not any("/" in name and (asked or _extension(name) in extensions) for name in names):
        return None
    return Found("folder", tuple(_split_folders(files.url, names)), partial(ImageFolder, files, names))


class ImageFolder:
    """Images are read when asked for; opening reads headers only, up to the first image that is not gray. A file that
    is no good image is found when it is asked for. The key of a sample is its path below the split's folder."""

    kind = "folder"
    shape = None  # known when all are decoded

    def __init__(self, files: Files, names: list[str], split: str | None) -> None:
        """names: of all files, which are in the split folders, or in the class folders if split is None."""
        self.split, self._files = split, files
        splits = _split_folders(files.url, names)
        self._folder, train = (splits[split], splits["train"]) if split else ("", "")
        # The train split's classes are those of every split, so that a label means the same in all.
        self.classes = tuple(_folders(_below(names, train)))
        if not self.classes:
            raise ValueError(f"{self._url(train)}: expected a subfolder of images for each class, got none")
        _check_loose(files.url, names)
        here = _below(names, self._folder)
        _check_names(self._url(self._folder), here, self.classes)
        self._names = [name for name in here if _may_be_image(name)]
        numbers = {name: number for number, name in enumerate(self.classes)}
        self.labels = np.array([numbers[name.partition("/")[0]] for name in self._names], np.int64)
        # All splits must agree on the number of channels, so each looks at all.
        self.channels = _channels(files, filter(_may_be_image, names))

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


def _folders(names: Iterable[str]) -> list[str]:
    """The folders that names begin with, in their order."""
    return list(dict.fromkeys(name.partition("/")[0] for name in names if "/" in name))


def _below(names: list[str], folder: str) -> list[str]:
    """The names in a folder, relative to it; "" is all."""
    start = len(folder) + 1
    return [name[start:] for name in names if name.startswith(f"{folder}/") and name[start:]] if folder else names


def _split_folders(url: str, names: Iterable[str]) -> dict[str, str]:
    """Split -> folder. Folders are splits only if one is train and no other name than a split's is among them.

    Upper and lower case do not matter: Train and TEST are splits.
    val (valid, validation) is the split "test" if there is no folder test; otherwise it keeps its name.
    """
    folders = _folders(names)
    found = {name.lower(): name for name in folders}
    if "train" not in found or not set(found) <= {"train", *_TEST_NAMES}:
        return {}
    for name in folders:
        if found[name.lower()] != name:
            raise ValueError(f"{url}/{name}: {found[name.lower()]} is the same split; merge them or rename one")
    others = [name for name in _TEST_NAMES if name in found]
    return {"train": found["train"], **{"test" if i == 0 else name: found[name] for i, name in enumerate(others)}}


def _check_names(where: str, names: list[str], classes: tuple[str, ...]) -> None:
    """ValueError for an image or a folder that is of no class, and for a folder without an image; a warning for files
    that are no images."""
    _check_loose(where, names)
    folders = _folders(names)
    unknown = [name for name in folders if name not in classes]
    if unknown:
        raise ValueError(f"{where}: expected only the classes of the train split, got {', '.join(unknown[:5])} as well")
    ignored = [name for name in names if _extension(name) in NOT_IMAGES]
    if ignored:
        shown = ", ".join(ignored[:3]) + (", ..." if len(ignored) > 3 else "")
        warnings.warn(f"{where}: ignored {len(ignored)} files that are no images: {shown}", stacklevel=3)
    filled = {name.partition("/")[0] for name in names if _may_be_image(name)}
    if not filled:
        raise ValueError(f"{where}: no image in it; add images in a subfolder for each class, or remove it")
    if empty := [name for name in folders if name not in filled]:
        raise ValueError(f"{where}: no image in the class folder {', '.join(empty[:5])}; add images or remove it")


def _check_loose(where: str, names: Iterable[str]) -> None:
    """ValueError if a file beside the subfolders may be an image: it has no label."""
    if loose := [name for name in names if "/" not in name and _extension(name) not in NOT_IMAGES]:
        shown = ", ".join(loose[:3])
        raise ValueError(f"{where}: {len(loose)} images lie beside the class folders: {shown}; move or remove them")


def _may_be_image(name: str) -> bool:
    """Whether it is that of a file in a folder which its extension does not clearly call something else."""
    return "/" in name and not name.endswith("/") and _extension(name) not in NOT_IMAGES


def _extension(name: str) -> str:
    """In lower case, with its dot; "" if there is none."""
    return os.path.splitext(name)[1].lower()


def _channels(files: Files, names: Iterable[str]) -> int:
    """1 if all images that can be read are gray, else 3. OSError if a disk or a store fails: the missed image may be
    the one in color."""
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
