"""DALI without us: its webdataset reader, its decoders and operators, its iterator for PyTorch."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from itertools import cycle
from typing import Any

import numpy as np
import torch

from fdt_pipeline.shards import webdataset_files
from fdt_pipeline.shards.codec import npy_header
from fdt_pipeline.sources.source import I64, U8

from ..task import Batch, Entry, Task
from .images import arrays, dali, framed

Graph = Callable[[], tuple[Any, Any]]
KEPT = 8  # batches; DALI has two queues of two under way, and reads them where they are
CROP = {"random_area": [0.08, 1.0], "random_aspect_ratio": [3 / 4, 4 / 3], "num_attempts": 10}  # as torchvision's
SHUFFLED = 4096  # samples that the reader keeps to draw from; four of our shards


class DaliEpochs:
    """A pipeline behind DALIGenericIterator; labels(u8 or i64 tensor of a batch) -> i64[n]."""

    def __init__(self, task: Task, graph: Graph, labels: Callable[[Any], Any], **options: Any) -> None:
        package = dali()
        from nvidia.dali.plugin.pytorch import DALIGenericIterator, LastBatchPolicy

        on_gpu = task.device != "cpu"
        pipeline = package.pipeline_def(graph)(
            batch_size=task.batch_size, num_threads=max(1, task.num_workers),
            device_id=torch.device(task.device).index or 0 if on_gpu else None, seed=task.seed,
        )  # fmt: skip
        self._labels = labels
        self._batches: Any = DALIGenericIterator(
            pipeline, ["images", "labels"], auto_reset=True, last_batch_policy=LastBatchPolicy.PARTIAL, **options
        )

    def epoch(self, number: int) -> Iterator[Batch]:
        """An epoch that was broken off goes on where it was: DALI cannot begin another."""
        for [batch] in self._batches:
            images = batch["images"]
            yield images, self._labels(batch["labels"]).to(images.device, non_blocking=True)

    def close(self) -> None:
        self._batches = None


def from_shards(task: Task) -> DaliEpochs:
    """Read, decode all of an image or a random part of it, resize, shift, then flip and normalize."""
    fn, types = dali().fn, dali().types

    def graph() -> tuple[Any, Any]:
        encoded, label = fn.readers.webdataset(
            **webdataset_files(task.shards), missing_component_behavior="error", random_shuffle=True,
            initial_fill=SHUFFLED, pad_last_batch=True, name="reader",
        )  # fmt: skip
        images = _decoded(encoded, task)
        if task.size is not None:
            images = fn.resize(images, size=task.size)
        if task.pad:
            start = fn.random.uniform(values=list(range(-task.pad, task.pad + 1)), shape=2, dtype=types.INT32)
            h, w = task.shape[1:]
            crop = {"start": start, "shape": (h, w), "axes": (0, 1)}
            images = fn.slice(images, **crop, out_of_bounds_policy="pad", fill_values=0)
        return _normalized(images, task), fn.pad(label, fill_value=0)

    return DaliEpochs(task, graph, _parsed, reader_name="reader")


def _decoded(encoded: Any, task: Task) -> Any:
    """u8[h w c]; a raw sample is an npy, whose header all have alike."""
    fn, types = dali().fn, dali().types
    on_gpu = task.device != "cpu"
    if task.manifest.encoding == "raw":
        assert task.manifest.shape is not None
        pixels = fn.reshape(encoded[len(npy_header(task.manifest.shape)) :], shape=task.manifest.shape, layout="HWC")
        return pixels.gpu() if on_gpu else pixels
    kind = types.GRAY if task.manifest.channels == 1 else types.RGB
    decoder = partial(fn.decoders.image_random_crop, **CROP) if task.crop else fn.decoders.image
    return decoder(encoded, device="mixed" if on_gpu else "cpu", output_type=kind)


def _normalized(images: Any, task: Task, **crop: Any) -> Any:
    """u8[h w c] -> f32[c h w], with a flip."""
    fn, types = dali().fn, dali().types
    flip = {"mirror": fn.random.coin_flip()} if task.flip else {}
    return fn.crop_mirror_normalize(
        images, dtype=types.FLOAT, output_layout="CHW", mean=list(task.mean), std=list(task.std), **flip, **crop
    )


def _parsed(text: torch.Tensor) -> torch.Tensor:
    """u8[n l], the digits of .cls with zeros after them -> i64[n]"""
    labels = torch.zeros(len(text), dtype=torch.int64)
    for digits in text.unbind(1):
        labels = torch.where(digits > 0, 10 * labels + digits - ord("0"), labels)
    return labels


def shuffled_batches(images: U8, labels: I64, batch_size: int, seed: int) -> Callable[[], Iterator[tuple[U8, I64]]]:
    """A function that gives an epoch: (u8[n h w c], i64[n]) of a new permutation; the last batch may be smaller.

    Rows are taken into one of a few arrays, which are used again: DALI need not copy them, and no memory is touched
    for the first time.
    """
    rng, rows = np.random.default_rng(seed), min(batch_size, len(labels))
    kept = cycle([(np.empty((rows, *images.shape[1:]), np.uint8), np.empty(rows, np.int64)) for _ in range(KEPT)])

    def epoch() -> Iterator[tuple[U8, I64]]:
        order = rng.permutation(len(labels))
        for first in range(0, len(order), batch_size):
            some = order[first : first + batch_size]
            pixels, classes = next(kept)
            pixels, classes = pixels[: len(some)], classes[: len(some)]
            np.take(images, some, axis=0, out=pixels, mode="clip")  # with mode="raise" NumPy would buffer it
            np.take(labels, some, axis=0, out=classes, mode="clip")
            yield pixels, classes

    return epoch


def from_memory(task: Task) -> DaliEpochs:
    """The set in memory, framed by zeros once, so that a shift is a crop; what resident FDT is to be held against."""
    fn, types = dali().fn, dali().types
    images, labels = arrays(task)
    batches = shuffled_batches(framed(images, task.pad), labels, task.batch_size, task.seed)

    def graph() -> tuple[Any, Any]:
        pixels, label = fn.external_source(
            source=batches, num_outputs=2, batch=True, cycle="raise", no_copy=True,
            dtype=[types.UINT8, types.INT64], ndim=[3, 0], layout=["HWC", ""],
        )  # fmt: skip
        crop: dict[str, Any] = {}
        if task.pad:
            places = [i / (2 * task.pad) for i in range(2 * task.pad + 1)]
            x, y = (fn.random.uniform(values=places) for _ in "xy")
            crop = {"crop": task.shape[1:], "crop_pos_x": x, "crop_pos_y": y}
        return _normalized(pixels.gpu() if task.device != "cpu" else pixels, task, **crop), label

    return DaliEpochs(task, graph, torch.Tensor.flatten)  # i64[n] or i64[n 1] -> i64[n]


ENTRIES = (
    Entry(
        "DALI, from memory", "none", from_memory,
        note="external_source of arrays framed by zeros once: a shift is a crop; the decoded set in memory",
    ),
    Entry(
        "DALI, webdataset", "none", from_shards,
        note="shifts with a slice that pads, or decodes with image_random_crop; then crop_mirror_normalize",
    ),
)  # fmt: skip
