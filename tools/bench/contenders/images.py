"""The images of a task as other libraries' users hold them: u8 arrays in memory, or image files in a folder a class."""

from __future__ import annotations

import os
import shutil
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO, NamedTuple

import torch
from PIL import Image

from fdt_pipeline.shards import EXTENSIONS, load_shards
from fdt_pipeline.sources.source import I64, U8

from ..task import Task
from .installed import imported


class ImageFile(NamedTuple):
    path: str
    label: int


class Arrays(NamedTuple):
    """images u8[n h w c], labels i64[n]."""

    images: U8
    labels: I64


def is_raw(task: Task) -> bool:
    """Shards of arrays, which in the libraries' own examples are kept in memory; else of image files."""
    return task.manifest.encoding == "raw"


def arrays(task: Task) -> Arrays:
    """The whole set, decoded. ValueError where images differ in size, or are to be resized."""
    shape = task.manifest.shape
    if shape is None or task.size not in (None, shape[:2]):
        raise ValueError("only images of one size, which stays as it is, are held in memory: leave this contender out")
    images, labels, _ = load_shards(task.shards)
    return Arrays(images, labels)


def image_files(task: Task) -> list[ImageFile]:
    """In the order of the shards; written to task.work once, as work/files/LABEL/KEY.jpg, byte for byte."""
    folder = made_once(task.work / "files", lambda out: _extract(task, out))
    return [
        ImageFile(entry.path, int(subfolder.name))
        for subfolder in sorted(folder.iterdir())
        for entry in sorted(os.scandir(subfolder), key=lambda entry: entry.name)
    ]


def made_once(path: Path, make: Callable[[Path], object]) -> Path:
    """path, which make(part) writes unless it is there; one that is cut short is begun anew."""
    if not path.exists():
        part = path.with_name(f"{path.name}.{os.getpid()}.part")
        path.parent.mkdir(parents=True, exist_ok=True)
        make(part)
        try:
            part.rename(path)
        except OSError:  # another process was faster
            if not path.exists():
                raise
            shutil.rmtree(part) if part.is_dir() else part.unlink()
    return path


def _extract(task: Task, folder: Path) -> None:
    for label in range(task.num_classes):
        (folder / f"{label:05d}").mkdir(parents=True)
    for shard in task.manifest.shards:
        with tarfile.open(task.shards / shard.name) as tar:
            content = {member.name: tar.extractfile(member).read() for member in tar}  # type: ignore[union-attr]
        for name, data in content.items():
            key, _, extension = name.partition(".")
            if extension in EXTENSIONS[task.manifest.encoding]:
                (folder / f"{int(content[f'{key}.cls']):05d}" / name).write_bytes(data)


def read_pil(file: str | BinaryIO, channels: int) -> Image.Image:
    with Image.open(file) as image:
        return image.convert("L" if channels == 1 else "RGB")


def read_tensor(file: str | BinaryIO, channels: int) -> torch.Tensor:
    """u8[c h w]. By Pillow, as torchvision's data sets do: torchvision's own decoders are deprecated since 0.29, and
    took as long."""
    v2 = imported("torchvision.transforms.v2", "pip install torchvision")
    return v2.functional.pil_to_tensor(read_pil(file, channels))
