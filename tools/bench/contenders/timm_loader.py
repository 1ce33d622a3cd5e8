"""timm's loader, with its Mixup: `create_loader` as timm's own train.py calls it."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch

from ..task import Entry, Task
from .data_loader import whole_images
from .epochs import Batch, LoaderEpochs, to_device
from .installed import imported
from .transforms import augmentation, from_pil


def _make(task: Task, mixup: bool) -> LoaderEpochs:
    data = imported("timm.data", "pip install timm")
    on_gpu = task.device != "cpu"
    # Mixup pairs a batch with its mirror image, and so needs an even one.
    batch_size = task.batch_size - task.batch_size % 2 if mixup else task.batch_size
    options: dict[str, Any] = {"mixup_alpha": 1.0, "label_smoothing": 0.0, "num_classes": task.num_classes}
    torch.manual_seed(task.seed)  # of its sampler, which has no other
    loader = data.create_loader(
        whole_images(task, pil=True),
        task.shape,
        batch_size,
        is_training=True,
        mean=tuple(mean / 255 for mean in task.mean),
        std=tuple(std / 255 for std in task.std),
        num_workers=task.num_workers,
        persistent_workers=task.num_workers > 0,
        pin_memory=on_gpu,
        device=torch.device(task.device),
        use_prefetcher=on_gpu,
        collate_fn=data.FastCollateMixup(**options) if mixup and on_gpu else None,
    )
    # Its training transforms are ImageNet's random resized crops; who trains on crops with padding puts those in place.
    loader.dataset.transform = _to_u8(task) if on_gpu else from_pil(task)
    mix = data.Mixup(**options) if mixup and not on_gpu else None
    return LoaderEpochs(loader, partial(_finish, task=task, mix=mix))


def _to_u8(task: Task) -> Any:
    """The prefetcher normalizes on the GPU."""
    v2 = imported("torchvision.transforms.v2", "pip install torchvision")
    return v2.Compose([*augmentation(task), imported("timm.data.transforms", "pip install timm").ToNumpy()])


def _finish(batch: Any, task: Task, mix: Any) -> Batch:
    images, targets = to_device((batch[0], batch[1]), task)
    return mix(images, targets) if mix else (images, targets)


ENTRIES = (
    Entry("timm", "none", partial(_make, mixup=False), note="create_loader; the last batch is left out"),
    Entry(
        "timm, Mixup", "mixup", partial(_make, mixup=True), lambda num_classes: 2.0,
        note="create_loader and Mixup on the batch (while collating on a GPU); the last batch is left out",
    ),
)  # fmt: skip
