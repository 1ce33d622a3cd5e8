"""The two engines behind a loader: what ends the DALI graph, and how its outputs become a batch.

native: the operators in C++ and CUDA (native/), one pass from u8 images to standardized batches.
torch:  plans in NumPy and sums in torch (stage.py), inside a Python operator; where the native one cannot be had.
An engine makes the pipeline of an epoch, and `finish` turns what it gives into (images, targets). `unmixed` is the same
one without the mixing.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from copy import copy
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import torch

from fdt_pipeline.definition.plans import unpack_plans
from fdt_pipeline.definition.superposition import Pool, image_range
from fdt_pipeline.loader import graphs as pipelines
from fdt_pipeline.loader.engine import ImagePool, superpose, to_device
from fdt_pipeline.loader.graphs import Decoding, Numbers, Windows
from fdt_pipeline.loader.stage import Mixing, ResidentStage, WindowStage
from fdt_pipeline.native import NativeUnavailable, processor
from fdt_pipeline.native.arguments import series_argument
from fdt_pipeline.native.load import load
from fdt_pipeline.native.pool import MOST_CLASSES, NativePool

Batch = tuple[torch.Tensor, torch.Tensor]


class ResidentEngine(Protocol):
    def unmixed(self) -> ResidentEngine: ...
    def pipeline(self, numbers: Numbers, options: dict[str, Any]) -> Any: ...
    def finish(self, outputs: Sequence[torch.Tensor], shared: bool) -> Batch: ...


class StreamingEngine(Protocol):
    def unmixed(self) -> StreamingEngine: ...
    def pipeline(self, windows: Windows, decoding: Decoding, options: dict[str, Any]) -> Any: ...
    def finish(self, outputs: Sequence[torch.Tensor], shared: bool) -> Batch: ...


class TooManyClasses(ValueError):  # noqa: N818 (it need not be an error: there is another engine)
    """A set has more classes than the native operators take."""


def check_native_classes(num_classes: int) -> None:
    if num_classes > MOST_CLASSES:
        raise TooManyClasses(
            f"the native engine is for up to {MOST_CLASSES:,} classes, this set has {num_classes:,}: "
            'FDTLoader(engine="torch") takes any number'
        )


def choose_engine(asked: str, device: torch.device, num_classes: int) -> str:
    """ "native" or "torch". "auto" is native wherever that can be built, and takes so many classes; where not,
    it says why."""
    processor.level()  # raises where $FDT_PIPELINE_ISA is wrong, whatever the engine
    if asked == "torch":
        return asked
    try:
        check_native_classes(num_classes)
        load()
    except (NativeUnavailable, TooManyClasses) as obstacle:
        if asked == "native":
            raise
        warnings.warn(f"the torch engine is used, which is slower: {obstacle}", stacklevel=3)
        return "torch"
    return "native"


def operator_arguments(mixing: Mixing, most: int) -> dict[str, Any]:
    """What fn.fdt.superpose and fn.fdt.superpose_resident take for sums of up to `most` images."""
    fdt, output = mixing.fdt, mixing.output
    return {
        "plan_seed": mixing.seed - (mixing.seed >> 63 << 64),  # the same 64 bits as a signed number
        "min_images": fdt.min_images,
        "max_images": fdt.max_images or 0,
        "probability": repr(float(fdt.probability)),
        "series": series_argument(fdt.series, most),
        "targets": fdt.targets if mixing.soft else "label",
        "pad": mixing.augment.pad,
        "flip": mixing.augment.flip,
        "mean": list(output.mean),
        "std": list(output.std),
        "channels": output.channels,
        "dtype": pipelines.types.FLOAT16 if output.dtype == torch.float16 else pipelines.types.FLOAT,
        "output_layout": "HWC" if output.channels_last else "CHW",
    }


class NativeResident:
    """Draws from a pool in the device's memory. This object keeps it, over the epochs, whose operators come and go."""

    def __init__(self, mixing: Mixing, device: torch.device, pool: NativePool, in_order: bool) -> None:
        assert pool.labels is not None
        self.mixing, self.pool, self.device, self.in_order = mixing, pool, device, in_order
        self.arguments = operator_arguments(mixing, image_range(mixing.fdt, pool.labels)[1])
        self.arguments["anchor"] = "index" if in_order else mixing.fdt.anchor

    def unmixed(self) -> NativeResident:
        return NativeResident(self.mixing.unmixed(), self.device, self.pool, self.in_order)

    def pipeline(self, numbers: Numbers, options: dict[str, Any]) -> Any:
        return pipelines.native_resident_pipeline(
            numbers, {**self.arguments, "pool": self.pool.name}, self.device.type, **options
        )

    def finish(self, outputs: Sequence[torch.Tensor], shared: bool) -> Batch:
        return _finished(outputs, self.mixing, shared)


class NativeStreaming:
    """Mixes within one DALI batch."""

    def __init__(self, mixing: Mixing, device: torch.device, window: int) -> None:
        self.mixing, self.device, self.window = mixing, device, window
        most = min(mixing.fdt.most_images(mixing.num_classes), window)
        self.arguments = operator_arguments(mixing, most)
        self.arguments |= {"anchor": mixing.fdt.anchor, "num_classes": mixing.num_classes}

    def unmixed(self) -> NativeStreaming:
        return NativeStreaming(self.mixing.unmixed(), self.device, self.window)

    def pipeline(self, windows: Windows, decoding: Decoding, options: dict[str, Any]) -> Any:
        return pipelines.native_streaming_pipeline(windows, decoding, self.arguments, self.device.type, **options)

    def finish(self, outputs: Sequence[torch.Tensor], shared: bool) -> Batch:
        return _finished(outputs, self.mixing, shared)


class TorchResident:
    """On a GPU the graph ends at the plans, and the batch is finished on the consumer's own CUDA stream."""

    def __init__(
        self, mixing: Mixing, device: torch.device, images: npt.NDArray[np.uint8], labels: Pool, in_order: bool
    ) -> None:
        self.mixing, self.device, self.labels = mixing, device, labels
        self.images = ImagePool(torch.from_numpy(images).to(device), mixing.augment.pad)
        self.stage = ResidentStage(mixing, labels, self.images, in_order)
        if device.type == "cuda":
            self.end_at_plans()

    def unmixed(self) -> TorchResident:
        other, stage = copy(self), self.stage
        other.mixing = self.mixing.unmixed()
        other.stage = ResidentStage(other.mixing, stage.labels, stage.images, stage.in_order)
        return other

    def end_at_plans(self) -> None:
        """Have the graph give plans, and finish the batches outside of it."""
        self.stage.images = None

    def pipeline(self, numbers: Numbers, options: dict[str, Any]) -> Any:
        return pipelines.resident_pipeline(numbers, self.stage, 3 if self.stage.images is None else 2, **options)

    def finish(self, outputs: Sequence[torch.Tensor], shared: bool) -> Batch:
        if self.stage.images is not None:
            return _finished(outputs, self.mixing, shared)
        numbers, weights, targets = outputs
        plans = unpack_plans(numbers.numpy(), weights.numpy(), self.labels.labels)
        return superpose(self.images, plans, self.mixing.output), to_device(targets, self.device)


class TorchStreaming:
    """The same; on a GPU the graph ends at window and plans."""

    def __init__(self, mixing: Mixing, device: torch.device) -> None:
        self.mixing, self.device = mixing, device
        self.ends_at_plans = device.type == "cuda"

    def unmixed(self) -> TorchStreaming:
        other = copy(self)
        other.mixing = self.mixing.unmixed()
        return other

    def end_at_plans(self) -> None:
        """Have the graph give windows and plans, and finish the batches outside of it."""
        self.ends_at_plans = True

    def pipeline(self, windows: Windows, decoding: Decoding, options: dict[str, Any]) -> Any:
        stage = WindowStage(self.mixing, pass_images=self.ends_at_plans)
        return pipelines.streaming_pipeline(windows, decoding, stage, 4 if self.ends_at_plans else 2, **options)

    def finish(self, outputs: Sequence[torch.Tensor], shared: bool) -> Batch:
        if not self.ends_at_plans:
            return _finished(outputs, self.mixing, shared)
        images, numbers, weights, targets = outputs
        plans = unpack_plans(numbers.numpy(), weights.numpy(), np.zeros(len(images), np.int64))
        pool = ImagePool(to_device(images, self.device), self.mixing.augment.pad)
        return superpose(pool, plans, self.mixing.output), to_device(targets, self.device)


def _finished(outputs: Sequence[torch.Tensor], mixing: Mixing, shared: bool) -> Batch:
    """shared: DALI will write to these tensors again, so they are copied."""
    images, targets = (output.clone() for output in outputs) if shared else outputs
    return images.permute(0, 3, 1, 2) if mixing.output.channels_last else images, targets
