"""timm, webdataset, litData, MosaicML's streaming and FFCV, each as its own examples have it."""

from __future__ import annotations

import multiprocessing
from collections.abc import Iterator
from functools import partial
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch.utils.data import default_collate

from fdt_pipeline.shards import EXTENSIONS

from ..task import Batch, Entry, Task
from .data_loader import WholeImages, loader_options
from .images import (
    LoaderEpochs,
    augmentation,
    imported,
    is_raw,
    made_once,
    read_pil,
    read_tensor,
    stored_images,
    torchvision_v2,
    whole_transform,
)

BUFFER = 1000  # samples, as in webdataset's own examples
CHUNK = "64MB"  # as in litData's examples
TIMM, LITDATA, STREAMING = "pip install timm", "pip install litdata", "pip install mosaicml-streaming"
FFCV = "apt-get install libopencv-dev libturbojpeg0-dev pkg-config, then pip install ffcv opencv-python-headless"


class Decode:
    """A stored image with its label -> (f32[c h w], label), augmented, in the workers.

    Stored are a file's bytes, which Pillow decodes as the libraries' own decoders do; a PIL image; an array u8[h w c];
    or a tensor u8[c h w], which may be gray among color.
    """

    def __init__(self, task: Task) -> None:
        self._channels, self._transform = task.manifest.channels, whole_transform(task)

    def __call__(self, sample: dict[str, Any] | tuple[Any, int]) -> tuple[torch.Tensor, int]:
        image, label = (sample["image"], sample["label"]) if isinstance(sample, dict) else sample
        if isinstance(image, np.ndarray):  # a copy: it may be a view of bytes, not to be written to
            tensor = torch.tensor(image).permute(2, 0, 1)
        elif isinstance(image, torch.Tensor):
            tensor = image.expand(self._channels, -1, -1)
        else:
            tensor = read_tensor(BytesIO(image) if isinstance(image, bytes) else image, self._channels)
        return self._transform(tensor), label

    def batch(self, samples: list[Any]) -> Any:
        """Collate samples."""
        return default_collate([self(sample) for sample in samples])


def _timm(task: Task, alphas: dict[str, float] | None = None) -> LoaderEpochs:
    """alphas: what its Mixup is to do, for the whole of a batch alike, which is its default and its fastest mode."""
    data = imported("timm.data", TIMM)
    on_gpu = task.device != "cpu"
    # Workers give u8, and a batch is standardized at once; but mixed before that on a CPU, it would be rounded.
    prefetches = on_gpu or not (alphas or is_raw(task))
    # Mixup pairs a batch with its mirror image, and so needs an even one.
    batch_size = task.batch_size - task.batch_size % 2 if alphas else task.batch_size
    options: dict[str, Any] = {"label_smoothing": 0.0, "num_classes": task.num_classes, **(alphas or {})}
    torch.manual_seed(task.seed)  # of its sampler, which has no other
    loader = data.create_loader(
        WholeImages(task, pil=True), task.shape, batch_size, is_training=True, color_jitter=None,
        mean=tuple(mean / 255 for mean in task.mean), std=tuple(std / 255 for std in task.std),
        num_workers=task.num_workers, persistent_workers=task.num_workers > 0, pin_memory=on_gpu,
        device=torch.device(task.device), use_prefetcher=prefetches,
        collate_fn=data.FastCollateMixup(**options) if alphas and prefetches else None,
    )  # fmt: skip
    if not task.crop:
        # Its training transforms are ImageNet's random resized crops: crops with padding take their place.
        to_u8 = [*augmentation(task), imported("timm.data.transforms", TIMM).ToNumpy()]
        loader.dataset.transform = torchvision_v2().Compose(to_u8) if prefetches else whole_transform(task, pil=True)
    mix = data.Mixup(**options) if alphas and not prefetches else None
    return LoaderEpochs(loader, task, mix or (lambda *batch: batch))


def _webdataset(task: Task) -> LoaderEpochs:
    wds = imported("webdataset", "pip install webdataset")
    tars = [str(task.shards / shard.name) for shard in task.manifest.shards]
    dataset = (
        wds.WebDataset(tars, shardshuffle=len(tars), detshuffle=True, seed=task.seed, empty_check=False)
        .shuffle(BUFFER)
        .decode()
        .to_tuple(";".join(EXTENSIONS[task.manifest.encoding]), "cls")
        .map(Decode(task))
        .batched(task.batch_size, collation_fn=default_collate)
    )
    # The data set makes the batches, and shuffles.
    options = {**loader_options(task), "batch_size": None, "generator": None}
    return LoaderEpochs(wds.WebLoader(dataset, **options), task)


def _litdata(task: Task) -> LoaderEpochs:
    litdata = imported("litdata", LITDATA)
    folder = made_once(task.work / "litdata", partial(_write_litdata, task))
    dataset = litdata.StreamingDataset(
        str(folder), shuffle=True, drop_last=False, seed=task.seed, transform=Decode(task)
    )  # fmt: skip
    options = loader_options(task)
    del options["generator"]  # its data set shuffles
    return LoaderEpochs(litdata.StreamingDataLoader(dataset, **options), task)


class StoreOne:
    """What litData stores of image i: an array as a tensor u8[c h w], or a file byte for byte.

    It does that with a PIL image of a JPEG that has been opened and not decoded.
    """

    def __init__(self, task: Task) -> None:
        self.images = stored_images(task)

    def __call__(self, i: int) -> dict[str, Any]:
        image, label = self.images[i]
        if isinstance(image, str):
            return {"image": Image.open(image), "label": label}
        return {"image": torch.from_numpy(image).permute(2, 0, 1).contiguous(), "label": label}


def _write_litdata(task: Task, folder: Path) -> None:
    store = StoreOne(task)
    before = multiprocessing.get_start_method(allow_none=True)
    try:
        imported("litdata", LITDATA).optimize(
            store, list(range(len(store.images))), str(folder), chunk_bytes=CHUNK, num_workers=1, verbose=False
        )
    finally:  # which `optimize` has set to spawn; its users optimize and train in two processes
        multiprocessing.set_start_method(before, force=True)


def _mosaic(task: Task) -> LoaderEpochs:
    streaming = imported("streaming", STREAMING)
    folder = made_once(task.work / "streaming", partial(_write_mosaic, task))
    dataset = streaming.StreamingDataset(
        local=str(folder), shuffle=True, batch_size=task.batch_size, shuffle_seed=task.seed
    )
    loader = streaming.StreamingDataLoader(dataset, collate_fn=Decode(task).batch, **loader_options(task))
    return LoaderEpochs(loader, task)


def _write_mosaic(task: Task, folder: Path) -> None:
    kind = "ndarray:uint8:{1},{2},{0}".format(*task.shape) if is_raw(task) else "bytes"
    writer = imported("streaming", STREAMING).MDSWriter(out=str(folder), columns={"image": kind, "label": "int"})
    with writer as out:
        for image, label in stored_images(task):
            out.write({"image": Path(image).read_bytes() if isinstance(image, str) else image, "label": label})


class Beton:
    """An indexed data set of (u8[h w c], label), which FFCV writes."""

    def __init__(self, task: Task) -> None:
        self._images = stored_images(task)

    def __len__(self) -> int:
        return len(self._images)

    def __getitem__(self, i: int) -> tuple[Any, int]:
        image, label = self._images[i]
        return np.asarray(read_pil(image, 3)) if isinstance(image, str) else image, label


class FfcvEpochs:
    """A batch's memory is used again three batches later, as with FFCV itself.

    mixup: its ImageMixup, of standardized floats, for of u8 it makes u8 again; and its LabelMixup. Its MixupToOneHot
    does not add up the weights of two images of one class, so that targets are made here.
    """

    def __init__(self, task: Task, mixup: bool = False) -> None:
        ffcv = imported("ffcv.loader", FFCV)
        decoders, transforms = imported("ffcv.fields.decoders", FFCV), imported("ffcv.transforms", FFCV)
        if task.manifest.channels != 3:
            raise ValueError("FFCV's image field and its normalization are for RGB: leave FFCV out for gray images")
        np.random.seed(task.seed)  # noqa: NPY002 - what its augmentations draw from, outside of Numba
        beton = made_once(task.work / "images.beton", partial(_write_beton, task))
        on_gpu = task.device != "cpu"
        moved = [transforms.ToDevice(torch.device(task.device), non_blocking=True)] if on_gpu else []
        whole = (
            decoders.CenterCropRGBImageDecoder(task.size, ratio=1) if task.size else decoders.SimpleRGBImageDecoder()
        )
        image = [
            decoders.RandomResizedCropRGBImageDecoder(task.size) if task.crop else whole,
            *([transforms.RandomTranslate(padding=task.pad)] if task.pad else []),
            *([transforms.RandomHorizontalFlip()] if task.flip else []),
            transforms.NormalizeImage(np.array(task.mean), np.array(task.std), np.float32),
            *([transforms.ImageMixup(1.0, same_lambda=True)] if mixup else []),
            transforms.ToTensor(),
            *moved,
            transforms.ToTorchImage(),
        ]
        label = [decoders.IntDecoder(), *([transforms.LabelMixup(1.0, same_lambda=True)] if mixup else [])]
        self._targets = partial(pair_targets, num_classes=task.num_classes) if mixup else torch.Tensor.flatten
        self._loader = ffcv.Loader(
            str(beton), batch_size=task.batch_size, num_workers=max(1, task.num_workers), seed=task.seed,
            order=ffcv.OrderOption.RANDOM, os_cache=True, drop_last=False,
            pipelines={"image": image, "label": [*label, transforms.ToTensor(), *moved]},
        )  # fmt: skip

    def epoch(self, number: int) -> Iterator[Batch]:
        self._loader.next_epoch = number
        return ((images, self._targets(labels)) for images, labels in self._loader)

    def close(self) -> None:
        self._loader = None


def pair_targets(pairs: torch.Tensor, num_classes: int) -> torch.Tensor:
    """Two labels and the weight of the first, f32[n 3] -> f32[n num_classes]; weights of one class add up."""
    targets, weights = torch.zeros(len(pairs), num_classes, device=pairs.device), pairs[:, 2:]
    return targets.scatter_add_(1, pairs[:, :2].long(), torch.cat([weights, 1 - weights], 1))


def _write_beton(task: Task, path: Path) -> None:
    fields = imported("ffcv.fields", FFCV)
    lossy = task.manifest.encoding in ("jpg", "keep")
    image = fields.RGBImageField("jpg", jpeg_quality=95) if lossy else fields.RGBImageField("raw")
    columns = {"image": image, "label": fields.IntField()}
    imported("ffcv.writer", FFCV).DatasetWriter(str(path), columns, num_workers=1).from_indexed_dataset(Beton(task))


TIMM_MIXES = "create_loader and Mixup on the batch (while collating on a GPU); the last batch is left out"
ENTRIES = (
    Entry("timm", "none", _timm, note="create_loader; the last batch is left out"),
    Entry(
        "timm, Mixup", "mixup", partial(_timm, alphas={"mixup_alpha": 1.0, "cutmix_alpha": 0.0}), note=TIMM_MIXES
    ),
    Entry(
        "timm, CutMix", "cutmix", partial(_timm, alphas={"mixup_alpha": 0.0, "cutmix_alpha": 1.0}), note=TIMM_MIXES
    ),
    Entry("webdataset", "none", _webdataset, note="WebLoader; batches are made in the workers"),
    Entry("litData", "none", _litdata, note="optimize and StreamingDataLoader, chunks of 64 MB"),
    Entry("MosaicML streaming", "none", _mosaic, note="MDSWriter and StreamingDataLoader"),
    Entry(
        "FFCV", "none", FfcvEpochs,
        note="OrderOption.RANDOM, os_cache; its writer encodes JPEGs again, other files are stored decoded",
    ),
    Entry(
        "FFCV, MixUp", "mixup", partial(FfcvEpochs, mixup=True),
        note="ImageMixup and LabelMixup with one lambda a batch; one-hot targets are made in torch",
    ),
)  # fmt: skip
