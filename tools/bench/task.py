"""What every contender of a race is asked for, and what it has to be."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

from fdt_pipeline.shards import Manifest

Mixing = Literal["none", "mixup", "cutmix", "fdt in the batch", "fdt in a ring", "fdt"]
MIXING: dict[Mixing, str] = {
    "none": "no mixing",
    "mixup": "MixUp",  # of lambda ~ Beta(1, 1), as CutMix
    "cutmix": "CutMix",
    "fdt in the batch": "FDT in the batch",
    "fdt in a ring": "FDT in a ring",  # of the last images that were read
    "fdt": "FDT",
}
TIMEOUT = 300.0  # seconds without a batch until a contender is stopped; building the native engine takes 12
MODELS = ("resnet34", "resnet18", "small")
Batch = tuple[Any, Any]


class NotInstalledError(ImportError):
    """A library that a contender needs is missing; the message says what to install."""


class RefusedError(Exception):
    """A contender does not do what it is asked for; the message says what was expected and what came."""


class FailedError(Exception):
    """A contender raised an error, or its process died; the message says how."""


def require(holds: Any, message: str) -> None:
    """RefusedError with the message unless what a contender must do holds."""
    if not holds:
        raise RefusedError(message)


@dataclass(frozen=True)
class Task:
    """One epoch after another of `manifest`'s images as standardized float32 [n c h w] batches on `device`.

    shards: a local folder of our shards; work: a folder that the contender may fill with the same images in its own
    format, before it is timed (it is kept from run to run, for one set of shards). Every image is shifted by up to
    `pad` pixels over zeros and flipped with odds 1/2 if `flip` (a contender that has a random crop with padding and a
    flip of its own uses those). mean and std: per channel, in 0..255. size: (height, width) to resize to, where the
    files' sizes are not all that. crop: a random part of each image is resized to `size`, by the law of torchvision's
    RandomResizedCrop with its defaults; else the whole image is. num_workers: processes or threads of the loader. seed:
    of its randomness. half: in float16, for contenders that `python -m tools gpu` asks.
    """

    shards: Path
    work: Path
    manifest: Manifest
    batch_size: int
    num_workers: int
    device: str = "cpu"
    pad: int = 4
    flip: bool = True
    mean: tuple[float, ...] = (122.0, 117.0, 104.0)
    std: tuple[float, ...] = (256.0, 256.0, 256.0)
    size: tuple[int, int] | None = None
    crop: bool = False
    seed: int = 0
    half: bool = False

    @property
    def num_classes(self) -> int:
        return len(self.manifest.classes)

    @property
    def is_resized(self) -> bool:
        """Whether images are not just those of the set, which may be of several sizes."""
        if self.size is None:
            return False
        return self.crop or self.manifest.shape is None or self.size != self.manifest.shape[:2]

    @property
    def shape(self) -> tuple[int, int, int]:
        """(c, h, w) of an output."""
        if self.size is None:
            assert self.manifest.shape is not None
            h, w, c = self.manifest.shape
            return c, h, w
        return (self.manifest.channels, *self.size)


class Contender(Protocol):
    """A loader that is set up. Batches are (images, targets): targets i64[n], or f32[n num_classes] where it mixes."""

    def epoch(self, number: int) -> Iterator[Batch]:
        """The batches of an epoch, shuffled; the last one may be smaller or left out."""
        ...

    def close(self) -> None: ...


@dataclass(frozen=True)
class Entry:
    """name: as the table has it. make: sets the contender up; raises NotInstalledError. needs_gpu: it runs on GPUs
    alone. note: what the reader should know. max_images: of FDT's sums; None for as many as there are classes."""

    name: str
    mixing: Mixing
    make: Callable[[Task], Contender]
    needs_gpu: bool = False
    note: str = ""
    max_images: int | None = None

    def images_per_output(self, num_classes: int) -> float:
        """E[K]: how many images of the set an output reads on average."""
        most = min(num_classes, self.max_images or num_classes)
        return {"none": 1.0, "mixup": 2.0, "cutmix": 2.0}.get(self.mixing, (most + 1) / 2)


@dataclass(frozen=True)
class Spec:
    """What a worker process runs.

    contender: its name, or module:function. kind: the loader alone, the model alone (the contender does not matter
    then), or the loader feeding the model. step_ms: instead of a model, how long a trainer's step takes that leaves the
    CPU to the loader, as one on a GPU does.
    """

    contender: str
    task: Task
    kind: Literal["loader", "model", "both"] = "loader"
    model: str | None = None
    step_ms: float | None = None
