"""What contenders share: a task's images as arrays or files, torchvision's transforms, and loaders as contenders."""

from __future__ import annotations

import os
import tarfile
from collections.abc import Callable, Iterator
from importlib import import_module
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np
import torch
from filelock import FileLock
from PIL import Image

from fdt_pipeline.dali import import_dali
from fdt_pipeline.shards import EXTENSIONS, load_shards
from fdt_pipeline.sources.source import I64, U8

from ..task import Batch, NotInstalledError, Task


def imported(module: str, install: str) -> Any:
    """The module, or NotInstalledError that says what to install.

    A library that is there but does not import counts as not installed: the message says why.
    """
    try:
        return import_module(module)
    except ImportError as error:
        raise NotInstalledError(f"{module.partition('.')[0]} could not be imported ({error}): {install}") from error


def dali() -> Any:
    """The package, with `fn` and `types`."""
    try:
        return import_dali()
    except ImportError as error:
        raise NotInstalledError(str(error)) from error


def torchvision_v2() -> Any:
    return imported("torchvision.transforms.v2", "pip install torchvision")


class LoaderEpochs:
    """A contender out of any iterable; finish: what a trainer does to a batch before it is used."""

    def __init__(self, loader: Any, task: Task, finish: Callable[[Any, Any], Batch] = lambda *batch: batch) -> None:
        self._loader, self._task, self._finish = loader, task, finish

    def epoch(self, number: int) -> Iterator[Batch]:
        """A batch is moved as trainers do with pinned ones; no-op on a CPU."""
        for images, targets, *_ in self._loader:
            yield self._finish(*(tensor.to(self._task.device, non_blocking=True) for tensor in (images, targets)))

    def close(self) -> None:
        """Release the loader: the workers of a DataLoader end when nothing holds it."""
        self._loader = None


class ImageFile(NamedTuple):
    path: str
    label: int


def is_raw(task: Task) -> bool:
    """Shards of arrays, which in the libraries' own examples are kept in memory; else of image files."""
    return task.manifest.encoding == "raw"


def arrays(task: Task) -> tuple[U8, I64]:
    """The whole set, decoded: u8[n h w c], i64[n]. ValueError where images differ in size, or are to be resized."""
    if task.manifest.shape is None or task.is_resized:
        raise ValueError("only images of one size, which stays as it is, are held in memory: leave this contender out")
    images, labels, _ = load_shards(task.shards)
    return images, labels


def framed(images: U8, pad: int) -> U8:
    """Images with a frame of zeros, so that a shift is a crop: [n h w c] -> [n h+2pad w+2pad c]."""
    return np.pad(images, ((0, 0), (pad, pad), (pad, pad), (0, 0)))


def image_files(task: Task) -> list[ImageFile]:
    """In the order of the shards; written to task.work once, as work/files/LABEL/KEY.jpg, byte for byte."""
    folder = made_once(task.work / "files", lambda out: _extract(task, out))
    return [
        ImageFile(entry.path, int(subfolder.name))
        for subfolder in sorted(folder.iterdir())
        for entry in sorted(os.scandir(subfolder), key=lambda entry: entry.name)
    ]


def stored_images(task: Task) -> list[tuple[U8 | str, int]]:
    """(u8[h w c], label) of each array, or (path, label) of each image file."""
    stored = zip(*arrays(task), strict=True) if is_raw(task) else image_files(task)
    return [(image, int(label)) for image, label in stored]


def made_once(path: Path, make: Callable[[Path], object]) -> Path:
    """path, which make(part) writes unless it is there; what was cut short is made again."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{path}.lock"):
        if not path.exists():
            part = path.with_name(f"{path.name}.{os.getpid()}.part")
            make(part)
            part.rename(path)
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


def read_pil(file: str | BinaryIO | Image.Image, channels: int) -> Image.Image:
    """A file, or a PIL image that is opened, decoded."""
    with file if isinstance(file, Image.Image) else Image.open(file) as image:
        return image.convert("L" if channels == 1 else "RGB")


def read_tensor(file: str | BinaryIO | Image.Image, channels: int) -> torch.Tensor:
    """u8[c h w]. By Pillow, as torchvision's data sets do: torchvision's own decoders are deprecated since 0.29, and
    took as long."""
    return torchvision_v2().functional.pil_to_tensor(read_pil(file, channels))


def augmentation(task: Task) -> list[Any]:
    """Transforms of u8[c h w], or of PIL images: random resized crop; or resize, and random crop out of a frame of
    zeros; then flip."""
    v2 = torchvision_v2()
    size = task.shape[1:]
    resize = [v2.Resize(size, antialias=True)] if task.size is not None else []
    crop = [v2.RandomCrop(size, padding=task.pad)] if task.pad else []
    moved = [v2.RandomResizedCrop(size, antialias=True)] if task.crop else [*resize, *crop]
    return [*moved, *([v2.RandomHorizontalFlip()] if task.flip else [])]


def whole_transform(task: Task, pil: bool = False) -> Any:
    """u8[c h w], or a PIL image -> f32[c h w], in the order of torchvision's examples.

    Without the scaling to [0, 1], which would be a second pass.
    """
    v2 = torchvision_v2()
    to_tensor = [v2.ToImage()] if pil else []
    standardize = [v2.ToDtype(torch.float32), v2.Normalize(list(task.mean), list(task.std), inplace=True)]
    return v2.Compose([*augmentation(task), *to_tensor, *standardize])


def standardized(u8: torch.Tensor, task: Task) -> torch.Tensor:
    """u8[n c h w] -> f32[n c h w], in one pass and two in place."""
    mean, std = (torch.tensor(values, device=u8.device).reshape(1, -1, 1, 1) for values in (task.mean, task.std))
    return u8.float().sub_(mean).div_(std)
