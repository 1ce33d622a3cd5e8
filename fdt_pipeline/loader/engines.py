"""The two engines behind a loader. An engine turns ids, or windows with ids, into images and targets.

native: the operators in C++ and CUDA (native/), one pass from u8 images to standardized batches.
torch:  the same on the CPU without a compiler (torch_engine.py).
"""

from __future__ import annotations

import warnings
from collections.abc import Generator, Iterator
from contextlib import closing
from typing import Any, NamedTuple, Protocol, TypeVar

import numpy as np
import torch

from fdt_pipeline.loader.graphs import (
    Decoding,
    decoding_pipeline,
    resident_arguments,
    resident_pipeline,
    streaming_arguments,
    streaming_pipeline,
)
from fdt_pipeline.loader.options import Mixing
from fdt_pipeline.loader.order import Span
from fdt_pipeline.loader.reading import Window
from fdt_pipeline.loader.running import DaliOptions, Outputs, run_pipeline
from fdt_pipeline.native import NativeUnavailable
from fdt_pipeline.native.load import load
from fdt_pipeline.native.pool import MOST_CLASSES, NativePool, prepare_gpu
from fdt_pipeline.native.recipe import check_level


class SpanBatch(NamedTuple):
    """Batches that are made together: outputs of one epoch, as many in each."""

    epoch: int
    spans: list[Span]


class WindowBatch(NamedTuple):
    """A mix window and its images; its outputs are number `first` and on of an epoch. is_last: of that epoch."""

    window: Window
    images: Any  # as `Window` has them; u8[n h w c] once they are decoded
    epoch: int
    first: int
    is_last: bool

    def id(self) -> tuple[int, int, int, int]:
        """(epoch, first, count, modulo), as the operators take it."""
        return Span(self.first, len(self.window.labels), 1 << 32).id(self.epoch)


T = TypeVar("T")
Made = Generator[tuple[T, Outputs], None, None]  # each input with images [batches n c h w], targets [batches n ...]


class ResidentEngine(Protocol):
    def run(self, inputs: Iterator[SpanBatch], mixes: bool) -> Made[SpanBatch]:
        """mixes=False: whole images."""


class StreamingEngine(Protocol):
    def run(self, inputs: Iterator[WindowBatch], mixes: bool) -> Made[WindowBatch]:
        """A window's outputs are one batch. mixes=False: whole images."""


class NativeResident:
    """Draws from a pool in the device's memory, which this object keeps; up to `together` batches at once."""

    def __init__(
        self,
        mixing: Mixing,
        device: torch.device,
        pool: NativePool,
        together: int,
        dali: DaliOptions,
        in_order: bool,
    ) -> None:
        self.mixing, self.device, self.pool, self.together, self.dali = mixing, device, pool, together, dali
        if device.type == "cuda":
            prepare_gpu(device.index, pool.shape[-1], mixing.output.channels)  # what is missing is missed now
        self.arguments = {mixes: resident_arguments(mixing.when(mixes), pool, in_order) for mixes in (True, False)}

    def run(self, inputs: Iterator[SpanBatch], mixes: bool) -> Made[SpanBatch]:
        """As `ResidentEngine` has it."""
        options = self.dali.arguments(self.together)
        pipeline = resident_pipeline(self.arguments[mixes], dali_device(self.device), **options)
        return _finished(run_pipeline(pipeline, inputs, _ids), self.mixing)


class NativeStreaming:
    """Mixes within one DALI sample, the window."""

    def __init__(self, mixing: Mixing, device: torch.device, window: int, stored: int, dali: DaliOptions) -> None:
        self.mixing, self.device, self.dali = mixing, device, dali
        if device.type == "cuda":
            prepare_gpu(device.index, stored, mixing.output.channels)
        self.arguments = {mixes: streaming_arguments(mixing.when(mixes), window) for mixes in (True, False)}

    def run(self, inputs: Iterator[WindowBatch], mixes: bool) -> Made[WindowBatch]:
        """As `StreamingEngine` has it."""
        pipeline = streaming_pipeline(self.arguments[mixes], dali_device(self.device), **self.dali.arguments(1))
        return _finished(run_pipeline(pipeline, inputs, _window), self.mixing)


def _ids(batch: SpanBatch) -> dict[str, Any]:
    return {"ids": np.array([span.id(batch.epoch) for span in batch.spans])}


def _window(batch: WindowBatch) -> dict[str, Any]:
    return {"images": batch.images[None], "labels": batch.window.labels.T, "ids": np.array([batch.id()])}


def _finished(made: Made[T], mixing: Mixing) -> Made[T]:
    """DALI takes dense samples only, so channels_last comes as HWC."""
    with closing(made):  # not dropped: Python ignores a Ctrl-C that comes while it ends a generator that was dropped
        for batch, outputs in made:
            if mixing.output.channels_last:
                outputs.tensors[0] = outputs.tensors[0].movedim(-1, -3)
            yield batch, outputs


def decoded(
    inputs: Generator[WindowBatch, None, None], decoding: Decoding, dali: DaliOptions, most: int
) -> Generator[WindowBatch, None, None]:
    """Windows of up to `most` files, or of images to be resized, as windows of images u8[n h w c].

    In a pipeline of its own, on the CPU: it works ahead on threads, which must not call CUDA (running.py).
    """
    pipeline = decoding_pipeline(decoding, **dali.arguments(most))
    with closing(inputs), closing(run_pipeline(pipeline, inputs, lambda batch: {"images": batch.images})) as made:
        for batch, outputs in made:
            yield batch._replace(images=outputs.tensors[0].numpy())


def dali_device(device: torch.device) -> str:
    """DALI's name for torch's kind of device."""
    return "gpu" if device.type == "cuda" else "cpu"


class TooManyClasses(ValueError):  # noqa: N818 (it need not be an error: there is another engine)
    """A set has more classes than the native operators take."""


def check_native_classes(num_classes: int) -> None:
    if num_classes > MOST_CLASSES:
        raise TooManyClasses(
            f"the native engine is for up to {MOST_CLASSES:,} classes, this set has {num_classes:,}: "
            'FDTLoader(engine="torch"), on the CPU, takes any number'
        )


def choose_engine(asked: str, device: torch.device, num_classes: int) -> str:
    """ "native" or "torch". "auto" is native wherever that can be had; on a CPU without it, it warns and is torch."""
    check_level()  # whatever the engine
    on_gpu = device.type == "cuda"
    if asked == "torch":
        if on_gpu:
            raise ValueError(f'engine="torch" is for the CPU, but device is {str(device)!r}: leave engine out')
        return asked
    try:
        check_native_classes(num_classes)
        load()
    except (NativeUnavailable, TooManyClasses) as obstacle:
        if asked == "native" or on_gpu:
            raise
        warnings.warn(f"the torch engine is used, which is slower: {obstacle}", stacklevel=3)
        return "torch"
    return "native"
