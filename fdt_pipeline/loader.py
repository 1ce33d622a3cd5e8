"""FDTLoader: shards in, `(images, targets)` out, for any PyTorch trainer."""

from __future__ import annotations

import math
import operator
import os
import warnings
from collections.abc import Generator
from types import TracebackType
from typing import Literal
from weakref import WeakSet

import numpy as np
import torch

from fdt_pipeline.arguments import (
    PAPER_SCALE,
    PerChannel,
    check_at_least_one,
    check_choice,
    check_count,
    check_one_rank,
    check_size,
    checked_device,
    checked_mixing,
    checked_output,
)
from fdt_pipeline.engines import (
    Batch,
    NativeResident,
    NativeStreaming,
    TorchResident,
    TorchStreaming,
    choose_engine,
    native_core,
)
from fdt_pipeline.epochs import ResidentEpochs, Running, StreamingEpochs
from fdt_pipeline.native.core import NativePool
from fdt_pipeline.philox import Stream, random_words
from fdt_pipeline.residency import ENOUGH_PER_CLASS, SAMPLES_PER_CLASS, choose_mode, choose_window
from fdt_pipeline.shards import check_hashes, check_shards, iterate_shards, load_shards, read_manifest
from fdt_pipeline.shards.files import files_of
from fdt_pipeline.shards.progress import Progress, progress_bar
from fdt_pipeline.stage import Mixing
from fdt_pipeline.storage import open_folder
from fdt_pipeline.superposition import FDT, PLAIN, Augment, Pool


class FDTLoader:
    """Batches `(images, targets)` from a folder of shards.

    shards: folder with manifest.json, made by `python -m tools shard`; a path, or an fsspec URL (s3://, gs://,
        http(s)://), whose shards are fetched ahead into a cache (storage/README.md) and checked there.
    train=True: an epoch is as many outputs as the set has samples. fdt mixes them (default `FDT()`, None gives whole
        images, each once an epoch in a new order); augment is done to every constituent (default `Augment()`, pad 4
        and flip; None for none). targets: f32 [n num_classes], rows with sum 1.
    train=False: every sample exactly once, whole, in the order of the shards; targets: i64 [n] labels.
    images: `dtype` (torch.float32 or torch.float16) [n c h w], standardized to (pixel - mean) / scale in units of
        0..255; mean and scale are a number or one a channel (default: the paper's (122, 117, 104) and 256; 117 for
        gray). channels=3 repeats gray images to three channels. channels_last=True gives that memory format.
    device: "cpu" or "cuda", where the tensors are.
    mode: "resident" keeps the set in memory and mixes over all of it; "streaming" reads the shards every epoch and
        mixes within `mix_window` samples; "auto" is resident where all images have one shape and the u8 set (in the
        torch engine with its frames of zeros) takes at most half of the free memory.
    engine: "native" is the DALI operator in C++ and CUDA, compiled at first use (`python -m fdt_pipeline build` does
        it ahead) and then kept; "torch" does the same with torch and NumPy, many times slower; "auto" takes native
        wherever it can be had, and warns where it cannot. Plans and targets are the same, images within 2e-6.
    size: (height, width) that streaming resizes to; needed where images differ in size.
    verify: streaming reads every shard once to check its sha256 before it begins (resident does in any case).
    num_threads: of DALI. prefetch: batches that it works ahead, on threads of its own; 0 makes each batch when it is
        asked for, on the caller's thread, which is faster where the training itself keeps the same cores busy.
    last_batch: "partial" yields a last batch that is not full, "drop" leaves it out.

    Iterating goes through one epoch and moves on to the next; `set_epoch(e)` says which comes next. Output i of epoch
    e depends on (seed, e, i) and the shards alone in resident mode, on the mix window also in streaming. Breaking off
    is safe. `len()` is the number of batches of an epoch. Errors: ValueError (ShardError where shards are broken) when
    the loader is built; ImportError without DALI.
    """

    def __init__(
        self,
        shards: str | os.PathLike[str],
        batch_size: int,
        *,
        train: bool = True,
        fdt: FDT | Literal["default"] | None = "default",
        augment: Augment | Literal["default"] | None = "default",
        device: str | torch.device = "cpu",
        mode: Literal["auto", "resident", "streaming"] = "auto",
        engine: Literal["auto", "native", "torch"] = "auto",
        seed: int = 0,
        mean: PerChannel | None = None,
        scale: PerChannel = PAPER_SCALE,
        channels: int | None = None,
        dtype: torch.dtype = torch.float32,
        channels_last: bool = False,
        size: tuple[int, int] | None = None,
        mix_window: int | None = None,
        verify: bool = True,
        last_batch: Literal["partial", "drop"] = "partial",
        num_threads: int = min(4, os.cpu_count() or 1),
        prefetch: int = 2,
    ) -> None:
        check_choice("mode", mode, ("auto", "resident", "streaming"))
        check_choice("engine", engine, ("auto", "native", "torch"))
        check_choice("last_batch", last_batch, ("partial", "drop"))
        check_at_least_one(batch_size=batch_size, num_threads=num_threads, mix_window=mix_window, channels=channels)
        check_count("prefetch", prefetch, 0)
        if train:
            check_one_rank()
        check_count("seed", seed, 0)
        seed = operator.index(seed)
        random_words(seed, Stream.PLAN, 0, 0, 0)  # raises where the seed is out of range
        check_size(size)
        self.shards = open_folder(shards)
        self.manifest = read_manifest(self.shards)
        if self.shards.local:  # a remote shard is checked when it is fetched
            check_shards(self.shards, self.manifest)
        self.batch_size, self.train, self.last_batch, self.seed = batch_size, train, last_batch, seed
        self.device = checked_device(device)
        self.fdt, self.augment = checked_mixing(train, fdt, augment, self.num_classes)
        if size is not None and mode == "auto":
            mode = "streaming"
        self.engine = choose_engine(engine, self.device)
        frame = self.augment.pad if self.engine == "torch" else 0  # of zeros, which that engine keeps in memory
        self.mode = choose_mode(mode, self.num_samples, self.manifest.shape, frame, self.device)
        height, width = self._checked_size(size)
        if mix_window is not None and self.mode == "resident":
            raise ValueError("mix_window is for streaming: a resident set is mixed as a whole, so leave it out")
        output = checked_output(self.manifest.channels, channels, mean, scale, dtype, channels_last)
        self.shape = (output.channels, height, width)
        self._mixing = Mixing(seed, self.fdt or PLAIN, self.augment, self.num_classes, output, soft=train)
        on_gpu = self.engine == "native" and self.device.type == "cuda"
        self._running = Running(num_threads, prefetch, self.device.index if on_gpu else None)
        self._epochs: ResidentEpochs | StreamingEpochs | None
        self._epochs = self._resident() if self.mode == "resident" else self._streaming(size, mix_window, verify)
        self._iterations: WeakSet[Generator[Batch, None, None]] = WeakSet()
        self._epoch = 0
        if not len(self):
            raise ValueError(
                f'last_batch="drop" leaves no batch: {self.num_samples} samples in batches of {batch_size}'
            )

    @property
    def classes(self) -> tuple[str, ...]:
        return self.manifest.classes

    @property
    def num_classes(self) -> int:
        return len(self.manifest.classes)

    @property
    def num_samples(self) -> int:
        return self.manifest.num_samples

    @property
    def mean(self) -> tuple[float, ...]:
        """Per channel, in 0..255: what is taken off."""
        return self._mixing.output.mean

    @property
    def scale(self) -> tuple[float, ...]:
        """Per channel, in 0..255: what is divided by."""
        return self._mixing.output.scale

    @property
    def epoch(self) -> int:
        """The epoch that the next iteration goes through."""
        return self._epoch

    def set_epoch(self, epoch: int) -> None:
        """Say which epoch comes next, 0 <= epoch < 2**32; iterating moves on by one."""
        if not 0 <= epoch < 2**32:
            raise ValueError(f"epoch must be in [0, 2**32), got {epoch}")
        self._epoch = epoch

    def __len__(self) -> int:
        exact = self.num_samples / self.batch_size
        return math.floor(exact) if self.last_batch == "drop" else math.ceil(exact)

    def __iter__(self) -> Generator[Batch, None, None]:
        if self._epochs is None:
            raise RuntimeError("this FDTLoader is closed: make a new one")
        self.set_epoch(self._epoch)  # raises past the last one
        epoch, self._epoch = self._epoch, self._epoch + 1
        batches = self._epochs.batches(epoch, self.batch_size, len(self))
        self._iterations.add(batches)
        return batches

    def close(self) -> None:
        """End the iterations under way and let go of the images in memory; iterating afterwards is an error."""
        self._epochs = None
        for batches in list(self._iterations):
            batches.close()

    def __enter__(self) -> FDTLoader:
        return self

    def __exit__(self, *_: type[BaseException] | BaseException | TracebackType | None) -> None:
        self.close()

    def __repr__(self) -> str:
        kind = f"fdt={self.fdt}" if self.train else "train=False"
        where = f"mode={self.mode!r}, engine={self.engine!r}, device={str(self.device)!r}"
        return f"FDTLoader({self.shards.url!r}, {self.batch_size}, {kind}, {where})"

    def _resident(self) -> ResidentEpochs:
        engine: NativeResident | TorchResident
        in_order = not self.train
        with progress_bar(f"load {self.shards.url}", "images", delay=2) as progress:
            if self.engine == "native":
                engine = NativeResident(self._mixing, self.device, self._native_pool(progress), in_order)
            else:
                images, labels, _ = load_shards(self.shards, progress)
                engine = TorchResident(self._mixing, self.device, images, Pool(labels, self.num_classes), in_order)
        return ResidentEpochs(engine, self._running, self.num_samples, self.seed)

    def _native_pool(self, progress: Progress) -> NativePool:
        pool = native_core().begin_pool(self.num_samples, self.manifest.shape or (), self.augment.pad)
        labels = np.empty(self.num_samples, np.int64)
        for shard in iterate_shards(self.shards, self.manifest, progress):
            pool.set_images(shard.first, shard.images)
            labels[shard.first : shard.first + len(shard.labels)] = shard.labels
        return pool.finish(Pool(labels, self.num_classes))

    def _streaming(self, size: tuple[int, int] | None, mix_window: int | None, verify: bool) -> StreamingEpochs:
        manifest, window = self.manifest, self._checked_window(mix_window)
        if verify and self.shards.local:
            with progress_bar(f"check {self.shards.url}", "shards", delay=2) as progress:
                check_hashes(self.shards, manifest, self._running.num_threads, progress)
        files = files_of(self.shards, manifest)
        engine: NativeStreaming | TorchStreaming
        if self.engine == "native":
            engine = NativeStreaming(self._mixing, self.device, window)
        else:
            engine = TorchStreaming(self._mixing, self.device)
        return StreamingEpochs(engine, self._running, files, manifest, size, window, self.seed, shuffle=self.train)

    def _checked_window(self, asked: int | None) -> int:
        classes, mixed = self.num_classes, self.fdt is not None
        window = choose_window(asked, self.num_samples, self.batch_size, classes, self.shape, even=mixed)
        if self.fdt and self.fdt.max_images != 1 and window < min(ENOUGH_PER_CLASS * classes, self.num_samples):
            warnings.warn(
                f"a mix window of {window} samples will often lack some of the {classes} classes, so fewer images are "
                f"superposed than asked: pass mix_window={SAMPLES_PER_CLASS * classes} or more, memory allowing",
                stacklevel=4,
            )
        return window

    def _checked_size(self, size: tuple[int, int] | None) -> tuple[int, int]:
        shape = self.manifest.shape
        if self.mode == "resident" and shape is None:
            raise ValueError(
                f'{self.shards} holds images of different sizes, which cannot be resident: pass mode="streaming" and '
                "size=(height, width), or shard the images again at one size"
            )
        if self.mode == "resident" and size is not None:
            raise ValueError('size resizes while streaming: pass mode="streaming", or leave size out')
        if size is None and shape is None:
            raise ValueError(f"{self.shards.url} holds images of different sizes: pass size=(height, width)")
        return size or _height_and_width(shape)


def _height_and_width(shape: tuple[int, ...] | None) -> tuple[int, int]:
    assert shape is not None
    return shape[0], shape[1]
