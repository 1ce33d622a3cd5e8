"""The way of an image, one line a stage, in data order. Start reading here.

resident:   numbers -> draw a plan from the whole set -> gather, shift, flip, weigh, sum, normalize, cast, lay out
streaming:  shards -> read -> decode -> (resize) -> the same within one DALI batch, the mix window

The last stage is one native operator (native/csrc/operators.cc), or a Python operator that does the same in torch.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from fdt_pipeline.dali import import_dali
from fdt_pipeline.loader.stage import Stage

_dali = import_dali()
from nvidia.dali import pipeline_def  # noqa: E402

fn: Any = _dali.fn  # its operators are made at run time
types: Any = _dali.types

# i64[n 2], a batch's (epoch, number) pairs, from its place in the epoch; numbers below zero are padding.
Numbers = Callable[[int], npt.NDArray[np.int64]]
# A window's images (as Window has them), labels i64[n 1] and numbers, one window a call; StopIteration at the end.
Windows = Callable[[], tuple[Any, npt.NDArray[np.int64], npt.NDArray[np.int64]]]


@dataclass(frozen=True)
class Decoding:
    """What is done to the images of a window. is_encoded: they are files; size: (height, width) to resize to."""

    is_encoded: bool
    channels: int
    size: tuple[int, int] | None = None


@pipeline_def
def native_resident_pipeline(numbers: Numbers, arguments: dict[str, Any], device: str) -> Any:
    number = external_numbers(numbers)
    return tuple(fn.fdt.superpose_resident(number, device=_backend(device), **arguments))


@pipeline_def
def native_streaming_pipeline(windows: Windows, decoding: Decoding, arguments: dict[str, Any], device: str) -> Any:
    image, label, number = _read(windows, decoding)
    u8 = _decode(image, decoding)
    u8 = fn.resize(u8, size=decoding.size) if decoding.size else u8
    u8 = u8.gpu() if device == "cuda" else u8
    return tuple(fn.fdt.superpose(u8, label, number, device=_backend(device), **arguments))


@pipeline_def
def resident_pipeline(numbers: Numbers, superpose: Stage, num_outputs: int) -> Any:
    number = external_numbers(numbers)
    return tuple(_python(number, function=superpose, num_outputs=num_outputs))


@pipeline_def
def streaming_pipeline(windows: Windows, decoding: Decoding, superpose: Stage, num_outputs: int) -> Any:
    image, label, number = _read(windows, decoding)
    u8 = _decode(image, decoding)
    u8 = fn.resize(u8, size=decoding.size) if decoding.size else u8
    return tuple(_python(u8, label, number, function=superpose, num_outputs=num_outputs))


@pipeline_def
def decoding_pipeline(images: Sequence[Any], decoding: Decoding) -> Any:
    """Files u8[bytes] -> images, and nothing else."""
    return _decode(fn.external_source(lambda: images, batch=True, dtype=types.UINT8, ndim=1), decoding)


def _backend(device: str) -> str:
    """torch's name of a device as DALI's."""
    return "gpu" if device == "cuda" else "cpu"


def external_numbers(source: Numbers) -> Any:
    return fn.external_source(
        source=lambda info: source(info.iteration), batch=True, batch_info=True, dtype=types.INT64, ndim=1
    )


def _read(windows: Windows, decoding: Decoding) -> Any:
    """(image, label i64[1], (epoch, number) i64[2]) of each sample of a window."""
    return fn.external_source(
        source=windows,
        num_outputs=3,
        batch=True,
        dtype=[types.UINT8, types.INT64, types.INT64],
        ndim=[1 if decoding.is_encoded else 3, 1, 1],
        layout=["" if decoding.is_encoded else "HWC", "", ""],
    )


def _decode(image: Any, decoding: Decoding) -> Any:
    if not decoding.is_encoded:
        return image
    kind = types.GRAY if decoding.channels == 1 else types.RGB
    return fn.decoders.image(image, device="cpu", output_type=kind)


def _python(*inputs: Any, function: Stage, num_outputs: int) -> Any:
    return fn.dl_tensor_python_function(*inputs, function=function, batch_processing=True, num_outputs=num_outputs)
