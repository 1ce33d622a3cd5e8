"""FDTLoader: resident and streaming, with each mixing and without; and once on the torch engine."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any, Literal

import torch

from fdt_pipeline import FDT, Augment
from fdt_pipeline.definition.mixing import CutMix, MixUp, Single

from ..task import Entry, Mixing, Task
from .images import dali

Mode = Literal["resident", "streaming"]
Engine = Literal["native", "torch"]


class Ours:
    """Without a mixing its targets are one-hot rows, f32[n num_classes]."""

    def __init__(self, task: Task, mode: Mode, engine: Engine, mix: Single | None) -> None:
        dali()  # or NotInstalledError
        from fdt_pipeline import FDTLoader, RandomResizedCrop

        size = task.size if task.is_resized else None
        augment: Any = Augment(task.pad, task.flip)
        if task.crop:
            augment, size = RandomResizedCrop(task.shape[1:], flip=task.flip), None
        self._loader = FDTLoader(
            task.shards, task.batch_size, mix=mix, augment=augment, device=task.device, mode=mode,
            engine=engine, seed=task.seed, mean=task.mean, std=task.std, size=size,
            num_threads=max(1, task.num_workers), dtype=torch.float16 if task.half else torch.float32,
        )  # fmt: skip

    def epoch(self, number: int) -> Iterator[tuple[Any, Any]]:
        self._loader.set_epoch(number)
        return iter(self._loader)

    def close(self) -> None:
        self._loader.close()


def _entry(mode: Mode, engine: Engine, mix: Single | None) -> Entry:
    mixing: Mixing = "none"
    what, most = "no FDT", None
    if isinstance(mix, FDT):
        mixing, most = "fdt" if mode == "resident" else "fdt in a ring", mix.max_images
        what = f"FDT of at most {most}" if most else "FDT"
    elif mix is not None:
        mixing, what = ("mixup", "MixUp") if isinstance(mix, MixUp) else ("cutmix", "CutMix")
    return Entry(
        f"ours, {mode}, {engine}, {what}",
        mixing,
        partial(Ours, mode=mode, engine=engine, mix=mix),
        note="the decoded set in memory" if mode == "resident" else "reads the shards every epoch",
        max_images=most,
    )


ENTRIES = (
    _entry("resident", "native", FDT()),
    _entry("resident", "native", MixUp(1.0)),
    _entry("resident", "native", CutMix(1.0)),
    _entry("resident", "native", None),
    _entry("streaming", "native", FDT()),
    _entry("streaming", "native", FDT(max_images=4)),
    _entry("streaming", "native", MixUp(1.0)),
    _entry("streaming", "native", CutMix(1.0)),
    _entry("streaming", "native", None),
    _entry("resident", "torch", FDT()),
)
