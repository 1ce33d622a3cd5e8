"""A folder of image files: class = subfolder, split = subfolder train, test, val, ... above the classes.

Classes are sorted by name, samples by class and then by path; hidden files and folders are skipped. `tree.py` lists and
reads the files, and decides which are images; `image_pixels.py` makes them gray or RGB.
"""

from __future__ import annotations

import copy
import io
from array import array
from collections.abc import Iterable, Iterator
from itertools import chain
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image

from .image_pixels import decode_image, is_gray
from .source import I64, Sample
from .tree import LocalTree, Tree, extension, image_files, joined, loose_files, warn_ignored

_TEST_NAMES = ("test", "val", "valid", "validation")
_OF_THE_FILE = (FileNotFoundError, PermissionError, IsADirectoryError, NotADirectoryError)


class ImageFolder:
    """Images are read when asked for; opening reads headers only, up to the first image that is not gray. A file that
    is no good image is found when it is asked for. The key of a sample is its path below the split's folder."""

    kind = "folder"
    shape = None  # known when all are decoded

    def __init__(self, tree: Tree, split: str | None) -> None:
        """The tree holds the split folders, or the class folders if split is None."""
        self.split, self._tree = split, tree
        loose_files(tree, "")
        self._folder = "" if split is None else _split_folders(tree)[split]
        self.classes = _classes(tree, self._folder)
        files = _files_by_class(tree, self._folder, self.classes)
        pairs = zip(self.classes, files, strict=True)
        self._names = Names(f"{name}/{file}" for name, of_class in pairs for file in of_class)
        self.labels = np.repeat(np.arange(len(files), dtype=np.int64), [len(of_class) for of_class in files])
        self.channels = _channels(tree, chain(self._all_names(), _names_of_other_splits(tree, split)))

    def __len__(self) -> int:
        return len(self._names)

    def __getitem__(self, index: int) -> Sample:
        """ValueError, naming the file, if it is no good image."""
        position = range(len(self))[index]
        try:
            pixels = decode_image(self.read_file(position), self.channels).pixels
        except ValueError as error:
            raise ValueError(
                f"{joined(self._tree.url, self._name(position))}: {error}; replace or remove it"
            ) from error
        return Sample(pixels, int(self.labels[position]), self.key(position))

    def key(self, index: int) -> str:
        return self._names[index]

    def read_file(self, index: int) -> bytes:
        """The bytes of a sample's file."""
        return self._tree.read(self._name(index))

    def states(self, positions: Iterable[int]) -> Iterator[str]:
        """For each sample, a str that is different when its file has changed."""
        return (self._tree.state(self._name(position)) for position in positions)

    def take(self, positions: I64) -> ImageFolder:
        """A source of these samples alone."""
        some = copy.copy(self)
        some._names, some.labels = self._names.take(positions), self.labels[positions]
        return some

    def _name(self, index: int) -> str:
        return joined(self._folder, self._names[index])

    def _all_names(self) -> Iterator[str]:
        return (self._name(index) for index in range(len(self)))


def find(path: Path, kind: str) -> Path | None:
    return path if LocalTree(path).folders("") else None


def has_images(tree: Tree) -> bool:
    """Whether any file in a subfolder is an image by its extension: for telling a data set from any other folder."""
    extensions = Image.registered_extensions()
    return any(extension(file) in extensions for name in tree.folders("") for file in image_files(tree.walk(name)))


def splits(path: Path, kind: str) -> tuple[str, ...]:
    return splits_of(LocalTree(path))


def splits_of(tree: Tree) -> tuple[str, ...]:
    return tuple(_split_folders(tree))


def read(path: Path, kind: str, split: str | None) -> ImageFolder:
    return ImageFolder(LocalTree(path), split)


def _split_folders(tree: Tree) -> dict[str, str]:
    """Split -> folder. Folders are splits only if one is train and no other name than a split's is among them.

    Upper and lower case do not matter: Train and TEST are splits.
    val (valid, validation) is the split "test" if there is no folder test; otherwise it keeps its name.
    """
    names = tree.folders("")
    folders = {name.lower(): name for name in names}
    if "train" not in folders or not set(folders) <= {"train", *_TEST_NAMES}:
        return {}
    twice = [name for name in names if name not in folders.values()]
    if twice:
        raise ValueError(
            f"{joined(tree.url, twice[0])}: {folders[twice[0].lower()]} is the same split; merge them or rename one"
        )
    others = [name for name in _TEST_NAMES if name in folders]
    return {"train": folders["train"], **{"test" if i == 0 else name: folders[name] for i, name in enumerate(others)}}


def _classes(tree: Tree, folder: str) -> tuple[str, ...]:
    """The train split's classes are those of every split, so that a label means the same in all."""
    train = _split_folders(tree).get("train", folder)
    classes = tuple(tree.folders(train))
    if not classes:
        raise ValueError(f"{joined(tree.url, train)}: expected a subfolder of images for each class, got none")
    unknown = [name for name in tree.folders(folder) if name not in classes]
    if unknown:
        raise ValueError(
            f"{joined(tree.url, folder)}: expected only the classes of {joined(tree.url, train)}, "
            f"got {', '.join(unknown[:5])} as well"
        )
    return classes


def _files_by_class(tree: Tree, folder: str, classes: tuple[str, ...]) -> list[list[str]]:
    where = joined(tree.url, folder)
    there = set(tree.folders(folder))
    loose = loose_files(tree, folder)
    files = [tree.walk(joined(folder, name)) if name in there else [] for name in classes]
    below = (f"{name}/{file}" for name, of_class in zip(classes, files, strict=True) for file in of_class)
    warn_ignored(where, [*loose, *below])
    images = [image_files(of_class) for of_class in files]
    empty = [name for name, of_class in zip(classes, images, strict=True) if not of_class and name in there]
    if not any(images):
        raise ValueError(f"{where}: no image in it; add images in a subfolder for each class, or remove it")
    if empty:
        raise ValueError(f"{where}: no image in the class folder {', '.join(empty[:5])}; add images or remove it")
    return images


def _names_of_other_splits(tree: Tree, split: str | None) -> Iterator[str]:
    """All splits must agree on the number of channels, so each looks at all."""
    for name, folder in _split_folders(tree).items():
        if name != split:
            for class_folder in tree.folders(folder):
                below = joined(folder, class_folder)
                yield from (joined(below, file) for file in image_files(tree.walk(below)))


def _channels(tree: Tree, names: Iterable[str]) -> int:
    """1 if all images that can be read are gray, else 3. OSError if a disk or a store fails: the missed image may be
    the one in color."""
    found = 0
    for name in names:
        try:
            if not _is_gray(tree, name):
                return 3
        except (ValueError, *_OF_THE_FILE):  # the error is raised when the image is asked for
            continue
        found += 1
    return 1 if found else 3


def _is_gray(tree: Tree, name: str) -> bool:
    """Whether an image is gray by its header; by the whole file where that fails, which tells a broken image from a
    broken connection: Pillow reports both alike."""
    try:
        with tree.open(name) as file:
            return is_gray(file)
    except ValueError:
        return is_gray(io.BytesIO(tree.read(name)))


class Names:
    """A sequence of str in little memory: each takes the bytes of its characters, not 100 more. Surrogates, which stand
    for bytes of file names that are not UTF-8, are kept."""

    def __init__(self, names: Iterable[str]) -> None:
        text, ends = bytearray(), array("q", [0])
        for name in names:
            text += name.encode("utf-8", "surrogateescape")
            ends.append(len(text))
        self._text, self._ends = bytes(text), np.array(ends, np.int64)

    def __len__(self) -> int:
        return len(self._ends) - 1

    def __getitem__(self, index: int) -> str:
        begin, end = self._ends[index], self._ends[index + 1]
        return self._text[begin:end].decode("utf-8", "surrogateescape")

    def __iter__(self) -> Iterator[str]:
        return (self[index] for index in range(len(self)))

    def take(self, positions: npt.NDArray[np.int64]) -> Names:
        return Names(self[position] for position in positions.tolist())
