"""The two engines behind a loader. An engine turns ids, or samples with ids, into images and targets.

native: the operators in C++ and CUDA (native/), one pass from u8 images to standardized batches.
torch:  the same on the CPU without a compiler (torch_engine.py).
"""

from __future__ import annotations

import warnings
from collections.abc import Generator, Iterator
from contextlib import closing
from typing import Any, NamedTuple, Protocol, TypeVar

import numpy as np
import numpy.typing as npt
import torch

from fdt_pipeline.definition.mixing import Mix
from fdt_pipeline.loader.graphs import (
    Decoding,
    batches_pipeline,
    decoding_pipeline,
    files_pipeline,
    resident_arguments,
    resident_pipeline,
    streaming_arguments,
)
from fdt_pipeline.loader.mixes import keeps_ring
from fdt_pipeline.loader.options import Mixing
from fdt_pipeline.loader.order import Span
from fdt_pipeline.loader.preprocessing import conditionals
from fdt_pipeline.loader.reading import Samples
from fdt_pipeline.loader.running import DaliOptions, Outputs, run_pipeline
from fdt_pipeline.native import NativeUnavailable
from fdt_pipeline.native.arguments import MOST_CLASSES
from fdt_pipeline.native.load import load
from fdt_pipeline.native.pool import NativePool, prepare_gpu
from fdt_pipeline.native.recipe import check_level


class SpanBatch(NamedTuple):
    """Batches that are made together: outputs of one epoch, as many in each."""

    epoch: int
    spans: list[Span]


class Incoming(NamedTuple):
    """A batch of streaming: samples that come into the ring together.

    images: as `Samples` has them; u8[n h w c] once they are decoded. first: the epoch's number of the first output;
    position: of the first sample in this rank's epoch. num_new: samples that do not only fill the batch up.
    has_outputs: otherwise the samples only fill the ring, as they did before the place where the epoch is resumed.
    numbers: what `Decoding.inputs` gives for them.
    """

    samples: Samples
    images: Any
    epoch: int
    first: int
    position: int
    num_new: int
    has_outputs: bool
    numbers: dict[str, npt.NDArray[np.float32]]

    @property
    def size(self) -> int:
        return len(self.samples.labels)

    def ids(self, with_position: bool) -> list[int]:
        """(epoch, first, count, modulo) and with a ring the position, as the operator takes it."""
        first = self.first if self.has_outputs else -1
        return [self.epoch, first, self.size, 1 << 32, self.position][: 5 if with_position else 4]

    def ids_of_samples(self, with_position: bool) -> np.ndarray:
        """i64[n 2], (epoch, index) of each sample, or with a ring i64[n 3], with the position."""
        at = np.arange(self.size)
        index = self.first + at if self.has_outputs else np.full_like(at, -1)
        columns = [np.full_like(at, self.epoch), index, self.position + at]
        return np.stack(columns[: 3 if with_position else 2], axis=1)


T = TypeVar("T")
Made = Generator[tuple[T, Outputs], None, None]  # each input with images [batches n c h w], targets [batches n ...]


class ResidentEngine(Protocol):
    def run(self, inputs: Iterator[SpanBatch], mix: Mix | None) -> Made[SpanBatch]:
        """mix=None: whole images."""


class StreamingEngine(Protocol):
    decodes: bool  # else it wants images u8[n h w c]
    together: int  # batches of one size that it takes at once, at most

    def run(self, inputs: Iterator[list[Incoming]], mix: Mix | None) -> Made[list[Incoming]]:
        """mix=None: whole images."""


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
        self.in_order = in_order
        if device.type == "cuda":
            prepare_gpu(device.index, pool.shape[-1], mixing.output.channels)  # what is missing is missed now
        resident_arguments(mixing, pool, in_order)  # raises where they cannot be

    def run(self, inputs: Iterator[SpanBatch], mix: Mix | None) -> Made[SpanBatch]:
        """As `ResidentEngine` has it."""
        arguments = resident_arguments(self.mixing.of(mix), self.pool, self.in_order)
        pipeline = resident_pipeline(arguments, dali_device(self.device), **self.dali.arguments(self.together))
        return _finished(run_pipeline(pipeline, inputs, _spans), self.mixing)


class NativeStreaming:
    """Mixes within a ring of `ring` images, which its operator keeps, or within each batch. decoding: what its pipeline
    does before, on the same device."""

    def __init__(
        self,
        mixing: Mixing,
        device: torch.device,
        ring: int,
        batch_size: int,
        together: int,
        stored: int,
        dali: DaliOptions,
        decoding: Decoding | None = None,
    ) -> None:
        self.mixing, self.device, self.ring, self.batch_size = mixing, device, ring, batch_size
        self.decodes, self.together, self.dali, self.decoding = decoding is not None, together, dali, decoding
        if device.type == "cuda":
            prepare_gpu(device.index, stored, mixing.output.channels)
        streaming_arguments(mixing, ring)  # raises where they cannot be

    def run(self, inputs: Iterator[list[Incoming]], mix: Mix | None) -> Made[list[Incoming]]:
        """As `StreamingEngine` has it."""
        ring = self.ring if keeps_ring(mix) else 0
        most = ring or max(self.batch_size, self.together)  # without a ring the operator wants weights for DALI's batch
        arguments, device = streaming_arguments(self.mixing.of(mix), most), dali_device(self.device)
        arguments["ring"] = ring
        if self.decoding is None:
            pipeline = batches_pipeline(arguments, device, **self.dali.arguments(self.together))
            return _finished(run_pipeline(pipeline, inputs, lambda group: _batches(group, ring > 0)), self.mixing)
        options = {**self.dali.arguments(self.batch_size), **conditionals(self.decoding.preprocess)}
        pipeline = files_pipeline(arguments, self.decoding, device, **options)
        made = run_pipeline(pipeline, inputs, lambda group: _files(group, ring > 0))
        return _finished(made, self.mixing, are_single=True)


def _spans(batch: SpanBatch) -> dict[str, Any]:
    return {"ids": np.array([span.id(batch.epoch) for span in batch.spans])}


def _batches(group: list[Incoming], with_position: bool) -> dict[str, Any]:
    """A sample of DALI's is a batch."""
    return {
        "images": [batch.images for batch in group],
        "labels": [batch.samples.labels[:, 0] for batch in group],
        "ids": np.array([batch.ids(with_position) for batch in group]),
    }


def _files(group: list[Incoming], with_position: bool) -> dict[str, Any]:
    """A sample of DALI's is one image."""
    [batch] = group
    ids = batch.ids_of_samples(with_position)
    return {"images": batch.images, "labels": batch.samples.labels, "ids": ids, **batch.numbers}


def _finished(made: Made[T], mixing: Mixing, are_single: bool = False) -> Made[T]:
    """DALI takes dense samples only, so channels_last comes as HWC. are_single: a sample of DALI's is one output."""
    with closing(made):  # not dropped: Python ignores a Ctrl-C that comes while it ends a generator that was dropped
        for batch, outputs in made:
            if are_single:
                outputs.tensors = [tensor[None] for tensor in outputs.tensors]
            if mixing.output.channels_last:
                outputs.tensors[0] = outputs.tensors[0].movedim(-1, -3)
            yield batch, outputs


def decoded(
    inputs: Generator[Incoming, None, None], decoding: Decoding, dali: DaliOptions, most: int
) -> Generator[Incoming, None, None]:
    """Batches of up to `most` files, or of images that there is something to do to, as batches of images u8[n h w c].

    In a pipeline of its own, on the CPU: it works ahead on threads, which must not call CUDA (running.py).
    """
    pipeline = decoding_pipeline(decoding, **dali.arguments(most), **conditionals(decoding.preprocess))
    with closing(inputs), closing(run_pipeline(pipeline, inputs, _undecoded)) as made:
        for batch, outputs in made:
            yield batch._replace(images=outputs.tensors[0].numpy())


def _undecoded(batch: Incoming) -> dict[str, Any]:
    return {"images": batch.images, **batch.numbers}


def grouped(inputs: Generator[Incoming, None, None], most: int) -> Generator[list[Incoming], None, None]:
    """Batches that follow on each other, up to `most` of one size together; those before an error come before it."""
    group: list[Incoming] = []
    with closing(inputs):
        try:
            for batch in inputs:
                if group and group[0].size != batch.size:
                    yield group
                    group = []
                group.append(batch)
                if len(group) == most:  # before the next is asked for, which may overwrite it
                    yield group
                    group = []
        except Exception:
            if group:
                yield group
            raise
        if group:
            yield group


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
