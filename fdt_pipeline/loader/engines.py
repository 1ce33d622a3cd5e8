"""The two engines behind a loader. An engine turns ids, or windows with ids, into (images, targets).

native: the operators in C++ and CUDA (native/), one pass from u8 images to standardized batches.
torch:  the same on the CPU without a compiler (torch_engine.py).
"""

from __future__ import annotations

import warnings
from collections.abc import Generator, Iterator, Sequence
from contextlib import closing
from typing import NamedTuple, Protocol, TypeVar

import torch

from fdt_pipeline.loader.graphs import (
    Decoding,
    resident_arguments,
    resident_pipeline,
    streaming_arguments,
    streaming_pipeline,
)
from fdt_pipeline.loader.options import Mixing
from fdt_pipeline.loader.reading import Window
from fdt_pipeline.loader.running import DaliOptions, run_pipeline
from fdt_pipeline.native import NativeUnavailable
from fdt_pipeline.native.load import load
from fdt_pipeline.native.pool import MOST_CLASSES, NativePool
from fdt_pipeline.native.recipe import check_level
from fdt_pipeline.sources.source import I64


class IdBatch(NamedTuple):
    """ids i64[n 2]: the (epoch, index) of each output; weights f32[n], which engines pass on."""

    ids: I64
    weights: torch.Tensor


class WindowBatch(NamedTuple):
    """A mix window, and the ids i64[n 2] of the outputs that are made of it."""

    window: Window
    ids: I64


T = TypeVar("T")
Made = tuple[T, torch.Tensor, torch.Tensor]  # what was put in, images [n c h w], targets


class ResidentEngine(Protocol):
    def run(self, inputs: Iterator[IdBatch], num_batches: int, mixes: bool) -> Generator[Made[IdBatch], None, None]:
        """Outputs for each input, of which there are `num_batches`. mixes=False: whole images."""


class StreamingEngine(Protocol):
    def run(
        self, inputs: Iterator[WindowBatch], num_batches: int, mixes: bool
    ) -> Generator[Made[WindowBatch], None, None]:
        """Outputs for each input, of which there are `num_batches`. mixes=False: whole images."""


class NativeResident:
    """Draws from a pool in the device's memory. This object keeps it, over the epochs, whose operators come and go."""

    def __init__(
        self, mixing: Mixing, device: torch.device, pool: NativePool, batch_size: int, dali: DaliOptions, in_order: bool
    ) -> None:
        self.mixing, self.device, self.pool, self.batch_size, self.dali = mixing, device, pool, batch_size, dali
        self.arguments = {
            mixes: resident_arguments(each, pool, in_order)
            for mixes, each in ((True, mixing), (False, mixing.unmixed()))
        }

    def run(self, inputs: Iterator[IdBatch], num_batches: int, mixes: bool) -> Generator[Made[IdBatch], None, None]:
        """As `ResidentEngine` has it."""
        options = self.dali.arguments(self.batch_size, num_batches)
        pipeline = resident_pipeline(self.arguments[mixes], dali_device(self.device), **options)
        # Closed, not dropped: Python ignores a Ctrl-C that comes while it ends a generator that was dropped.
        with closing(run_pipeline(pipeline, inputs, lambda batch: {"ids": batch.ids})) as made:
            for batch, outputs in made:
                yield batch, *_finished(outputs, self.mixing)


class NativeStreaming:
    """Mixes within one DALI batch, the window."""

    def __init__(
        self, mixing: Mixing, device: torch.device, window: int, decoding: Decoding, dali: DaliOptions
    ) -> None:
        self.mixing, self.device, self.window, self.decoding, self.dali = mixing, device, window, decoding, dali
        self.arguments = {
            mixes: streaming_arguments(each, window) for mixes, each in ((True, mixing), (False, mixing.unmixed()))
        }

    def run(
        self, inputs: Iterator[WindowBatch], num_batches: int, mixes: bool
    ) -> Generator[Made[WindowBatch], None, None]:
        """As `StreamingEngine` has it."""
        options = self.dali.arguments(self.window, num_batches)
        pipeline = streaming_pipeline(self.decoding, self.arguments[mixes], dali_device(self.device), **options)
        with closing(run_pipeline(pipeline, inputs, _fields)) as made:
            for batch, outputs in made:
                yield batch, *_finished(outputs, self.mixing)


def _fields(batch: WindowBatch) -> dict[str, object]:
    return {"images": batch.window.images, "labels": batch.window.labels, "ids": batch.ids}


def _finished(outputs: Sequence[torch.Tensor], mixing: Mixing) -> tuple[torch.Tensor, torch.Tensor]:
    """DALI takes dense samples only, so channels_last comes as HWC."""
    images, targets = outputs
    return images.permute(0, 3, 1, 2) if mixing.output.channels_last else images, targets


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
