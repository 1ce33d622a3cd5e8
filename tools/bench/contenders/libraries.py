"""timm, webdataset, litData and MosaicML's streaming, each as its own examples have it."""

from __future__ import annotations

import multiprocessing
from functools import partial
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch.utils.data import default_collate

from fdt_pipeline.shards import EXTENSIONS

from ..task import Entry, Task
from .data_loader import WholeImages, loader_options
from .images import (
    LoaderEpochs,
    augmentation,
    imported,
    is_raw,
    made_once,
    read_tensor,
    stored_images,
    torchvision_v2,
    whole_transform,
)

BUFFER = 1000  # samples, as in webdataset's own examples
LITDATA = "pip install litdata"
CHUNK = "64MB"  # as in its examples
STREAMING = "pip install mosaicml-streaming"


def _timm(task: Task, mixup: bool) -> LoaderEpochs:
    data = imported("timm.data", "pip install timm")
    on_gpu = task.device != "cpu"
    # Mixup pairs a batch with its mirror image, and so needs an even one.
    batch_size = task.batch_size - task.batch_size % 2 if mixup else task.batch_size
    options: dict[str, Any] = {"mixup_alpha": 1.0, "label_smoothing": 0.0, "num_classes": task.num_classes}
    torch.manual_seed(task.seed)  # of its sampler, which has no other
    loader = data.create_loader(
        WholeImages(task, pil=True),
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
    # Its training transforms are ImageNet's random resized crops: crops with padding take their place.
    loader.dataset.transform = _to_u8(task) if on_gpu else whole_transform(task, pil=True)
    mix = data.Mixup(**options) if mixup and not on_gpu else None
    return LoaderEpochs(loader, task, mix or (lambda *batch: batch))


def _to_u8(task: Task) -> Any:
    """The prefetcher normalizes on the GPU."""
    return torchvision_v2().Compose(
        [*augmentation(task), imported("timm.data.transforms", "pip install timm").ToNumpy()]
    )


class DecodeSample:
    """(content of an image, label) -> (f32[c h w], label).

    An npy has been decoded by webdataset; a file comes as bytes, which Pillow decodes, as for webdataset's "pil".
    """

    def __init__(self, task: Task) -> None:
        self._raw, self._channels, self._transform = is_raw(task), task.manifest.channels, whole_transform(task)

    def __call__(self, sample: tuple[Any, int]) -> tuple[torch.Tensor, int]:
        content, label = sample
        if self._raw:
            return self._transform(torch.from_numpy(content).permute(2, 0, 1)), label
        return self._transform(read_tensor(BytesIO(content), self._channels)), label


def _webdataset(task: Task) -> LoaderEpochs:
    wds = imported("webdataset", "pip install webdataset")
    tars = [str(task.shards / shard.name) for shard in task.manifest.shards]
    dataset = (
        wds.WebDataset(tars, shardshuffle=len(tars), detshuffle=True, seed=task.seed, empty_check=False)
        .shuffle(BUFFER)
        .decode()
        .to_tuple(";".join(EXTENSIONS[task.manifest.encoding]), "cls")
        .map(DecodeSample(task))
        .batched(task.batch_size, collation_fn=default_collate)
    )
    loader = wds.WebLoader(
        dataset, batch_size=None, num_workers=task.num_workers, persistent_workers=task.num_workers > 0,
        pin_memory=task.device != "cpu",
    )  # fmt: skip
    return LoaderEpochs(loader, task)


class StoreOne:
    """What litData stores of image i: a u8 tensor [c h w], or a file byte for byte.

    It does that with a PIL image of a JPEG that has been opened and not decoded.
    """

    def __init__(self, task: Task) -> None:
        self.images = stored_images(task)

    def __call__(self, i: int) -> dict[str, Any]:
        image, label = self.images[i]
        if isinstance(image, str):
            return {"image": Image.open(image), "label": label}
        return {"image": torch.from_numpy(image).permute(2, 0, 1).contiguous(), "label": label}


class DecodeStored:
    """A stored sample -> (f32[c h w], label); JPEGs come as tensors, other files as PIL images."""

    def __init__(self, task: Task) -> None:
        self._mode = "L" if task.manifest.channels == 1 else "RGB"
        self._tensor, self._pil = whole_transform(task), whole_transform(task, pil=True)

    def __call__(self, sample: dict[str, Any]) -> tuple[torch.Tensor, int]:
        image = sample["image"]
        if isinstance(image, Image.Image):
            return self._pil(image.convert(self._mode)), sample["label"]
        if self._mode == "RGB" and len(image) == 1:
            image = image.expand(3, -1, -1)
        return self._tensor(image), sample["label"]


def _litdata(task: Task) -> LoaderEpochs:
    litdata = imported("litdata", LITDATA)
    folder = made_once(task.work / "litdata", partial(_write_litdata, task))
    dataset = litdata.StreamingDataset(
        str(folder), shuffle=True, drop_last=False, seed=task.seed, transform=DecodeStored(task)
    )  # fmt: skip
    options = loader_options(task)
    del options["generator"]  # its data set shuffles
    loader = litdata.StreamingDataLoader(dataset, **options)
    return LoaderEpochs(loader, task)


def _write_litdata(task: Task, folder: Path) -> None:
    store = StoreOne(task)
    before = multiprocessing.get_start_method(allow_none=True)
    try:
        imported("litdata", LITDATA).optimize(
            store, list(range(len(store.images))), str(folder), chunk_bytes=CHUNK, num_workers=1, verbose=False
        )
    finally:  # which `optimize` has set to spawn; its users optimize and train in two processes
        multiprocessing.set_start_method(before, force=True)


class DecodeBatch:
    """Stored samples -> a batch (f32[n c h w], i64[n]), in the workers.

    Files are stored as bytes, which Pillow decodes, as it does with streaming's own encoding of JPEGs.
    """

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


def _mosaic(task: Task) -> LoaderEpochs:
    streaming = imported("streaming", STREAMING)
    folder = made_once(task.work / "streaming", partial(_write_mosaic, task))
    dataset = streaming.StreamingDataset(
        local=str(folder), shuffle=True, batch_size=task.batch_size, shuffle_seed=task.seed
    )
    loader = streaming.StreamingDataLoader(dataset, collate_fn=DecodeBatch(task), **loader_options(task))
    return LoaderEpochs(loader, task)


def _write_mosaic(task: Task, folder: Path) -> None:
    kind = "bytes"
    if is_raw(task):
        c, h, w = task.shape
        kind = f"ndarray:uint8:{c},{h},{w}"
    columns = {"image": kind, "label": "int"}
    with imported("streaming", STREAMING).MDSWriter(out=str(folder), columns=columns) as out:
        for image, label in stored_images(task):
            if isinstance(image, str):
                out.write({"image": Path(image).read_bytes(), "label": label})
            else:
                out.write({"image": np.ascontiguousarray(image.transpose(2, 0, 1)), "label": label})


ENTRIES = (
    Entry("timm", "none", partial(_timm, mixup=False), note="create_loader; the last batch is left out"),
    Entry(
        "timm, Mixup", "mixup", partial(_timm, mixup=True), lambda num_classes: 2.0,
        note="create_loader and Mixup on the batch (while collating on a GPU); the last batch is left out",
    ),
    Entry("webdataset", "none", _webdataset, note="WebLoader; batches are made in the workers"),
    Entry("litData", "none", _litdata, note="optimize and StreamingDataLoader, chunks of 64 MB"),
    Entry("MosaicML streaming", "none", _mosaic, note="MDSWriter and StreamingDataLoader"),
)  # fmt: skip
