"""A folder of image files: class = subfolder, split = subfolder train, test, val, ... above the classes.

Classes are sorted by name, samples by class and then by path; hidden files and folders are skipped. Which files
are images, and how their modes become gray or RGB, is the matter of `image_files` and `image_pixels`.
"""

from __future__ import annotations

from functools import cached_property
from pathlib import Path

import numpy as np
from PIL import Image

from .image_files import image_files, loose_files, subfolders, walk, warn_ignored
from .image_pixels import image_size, is_gray, read_pixels
from .source import Sample

_TEST_NAMES = ("test", "val", "valid", "validation")


class ImageFolder:
    """Images are decoded when asked for; opening reads headers only, up to the first image that is not gray."""

    kind = "folder"

    def __init__(self, root: Path, split: str | None) -> None:
        """`root` holds the split folders, or the class folders if split is None."""
        self.split = split
        loose_files(root)
        self.folder = root if split is None else _split_folders(root)[split]
        self.classes = _classes(root, self.folder)
        files = _files_by_class(self.folder, self.classes)
        self.paths = [path for paths in files for path in paths]
        self.labels = np.repeat(np.arange(len(files), dtype=np.int64), [len(paths) for paths in files])
        self.channels = 1 if all(is_gray(path) for path in (*self.paths, *_paths_of_other_splits(root, split))) else 3

    @cached_property
    def shape(self) -> tuple[int, int, int] | None:
        height, width = first = image_size(self.paths[0])
        same = all(image_size(path) == first for path in self.paths[1:])
        return (height, width, self.channels) if same else None

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> Sample:
        """The key is the path below the split's folder."""
        path = self.paths[index]
        key = path.relative_to(self.folder).as_posix()
        return Sample(read_pixels(path, self.channels), int(self.labels[index]), key)


def find(path: Path, kind: str) -> Path | None:
    return path if subfolders(path) else None


def has_images(path: Path) -> bool:
    """Whether any file in a subfolder is an image by its extension: for telling a data set from any other folder."""
    extensions = Image.registered_extensions()
    files = (file for folder in subfolders(path) for file in image_files(walk(folder)))
    return any(file.suffix.lower() in extensions for file in files)


def splits(path: Path, kind: str) -> tuple[str, ...]:
    return tuple(_split_folders(path))


def read(path: Path, kind: str, split: str | None) -> ImageFolder:
    return ImageFolder(path, split)


def _split_folders(root: Path) -> dict[str, Path]:
    """Split -> folder. Folders are splits only if one is train and no other name than a split's is among them.

    Upper and lower case do not matter: Train and TEST are splits.
    val (valid, validation) is the split "test" if there is no folder test; otherwise it keeps its name.
    """
    folders = {folder.name.lower(): folder for folder in subfolders(root)}
    if "train" not in folders or not set(folders) <= {"train", *_TEST_NAMES}:
        return {}
    twice = [path for path in subfolders(root) if path not in folders.values()]
    if twice:
        raise ValueError(
            f"{twice[0]}: {folders[twice[0].name.lower()].name} is the same split; merge them or rename one"
        )
    others = [name for name in _TEST_NAMES if name in folders]
    return {"train": folders["train"], **{"test" if i == 0 else name: folders[name] for i, name in enumerate(others)}}


def _classes(root: Path, folder: Path) -> tuple[str, ...]:
    """The train split's classes are those of every split, so that a label means the same in all."""
    train = _split_folders(root).get("train", folder)
    classes = tuple(path.name for path in subfolders(train))
    if not classes:
        raise ValueError(f"{train}: expected a subfolder of images for each class, got none")
    unknown = [path.name for path in subfolders(folder) if path.name not in classes]
    if unknown:
        raise ValueError(f"{folder}: expected only the classes of {train}, got {', '.join(unknown[:5])} as well")
    return classes


def _files_by_class(folder: Path, classes: tuple[str, ...]) -> list[list[Path]]:
    loose = loose_files(folder)
    files = [sorted(walk(folder / name)) if (folder / name).is_dir() else [] for name in classes]
    warn_ignored(folder, [*loose, *(path for paths in files for path in paths)])
    images = [list(image_files(paths)) for paths in files]
    empty = [name for name, paths in zip(classes, images, strict=True) if not paths and (folder / name).is_dir()]
    if not any(images):
        raise ValueError(f"{folder}: no image in it; add images in a subfolder for each class, or remove it")
    if empty:
        raise ValueError(f"{folder}: no image in the class folder {', '.join(empty[:5])}; add images or remove it")
    return images


def _paths_of_other_splits(root: Path, split: str | None) -> list[Path]:
    """All splits must agree on the number of channels, so each looks at all."""
    folders = [folder for name, folder in _split_folders(root).items() if name != split]
    return [path for folder in folders for below in subfolders(folder) for path in image_files(walk(below))]
