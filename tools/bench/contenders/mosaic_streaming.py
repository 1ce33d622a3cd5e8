"""MosaicML's streaming: MDSWriter writes its shards, StreamingDataset reads them."""

from __future__ import annotations

from functools import partial
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.data import default_collate

from ..task import Entry, Task
from .data_loader import loader_options
from .epochs import LoaderEpochs, to_device
from .images import arrays, image_files, is_raw, made_once, read_tensor
from .installed import imported
from .transforms import whole_transform

INSTALL = "pip install mosaicml-streaming"


class Decode:
    """Stored samples -> a batch (f32[n c h w], i64[n]), in the workers. Files are stored as bytes, which Pillow
    decodes, as it does with streaming's own encoding of JPEGs."""

    def __init__(self, task: Task) -> None:
        self._channels, self._transform = task.manifest.channels, whole_transform(task)

    def __call__(self, samples: list[dict[str, Any]]) -> Any:
        return default_collate(
            [(self._transform(self._tensor(sample["image"])), sample["label"]) for sample in samples]
        )

    def _tensor(self, image: Any) -> torch.Tensor:
        """u8[c h w] of bytes, or of u8[c h w]"""
        if isinstance(image, bytes):
            return read_tensor(BytesIO(image), self._channels)
        return torch.tensor(image)  # a copy: its arrays are views of bytes, not to be written to


def _make(task: Task) -> LoaderEpochs:
    streaming = imported("streaming", INSTALL)
    folder = made_once(task.work / "streaming", partial(_write, task))
    dataset = streaming.StreamingDataset(
        local=str(folder), shuffle=True, batch_size=task.batch_size, shuffle_seed=task.seed
    )
    loader = streaming.StreamingDataLoader(dataset, collate_fn=Decode(task), **loader_options(task))
    return LoaderEpochs(loader, lambda batch: to_device((batch[0], batch[1]), task))


def _write(task: Task, folder: Path) -> None:
    writer = imported("streaming", INSTALL).MDSWriter
    if is_raw(task):
        images, labels = arrays(task)
        shape = ",".join(map(str, (images.shape[3], *images.shape[1:3])))
        with writer(out=str(folder), columns={"image": f"ndarray:uint8:{shape}", "label": "int"}) as out:
            for image, label in zip(images, labels, strict=True):
                out.write({"image": np.ascontiguousarray(image.transpose(2, 0, 1)), "label": int(label)})
    else:
        with writer(out=str(folder), columns={"image": "bytes", "label": "int"}) as out:
            for path, label in image_files(task):
                out.write({"image": Path(path).read_bytes(), "label": label})


ENTRIES = (
    Entry("MosaicML streaming", "none", _make, note="MDSWriter and StreamingDataLoader"),
)  # fmt: skip
