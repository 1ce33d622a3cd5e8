"""The way of an image, one line a stage, in data order. Start reading here.

resident:   numbers -> draw a plan from the whole set -> gather, shift, flip, weigh, sum, normalize, cast, lay out
streaming:  shards -> read -> decode -> (resize) -> the same within one DALI batch, the mix window

The last stage is one native operator (native/csrc/operators.cc), or a Python operator that does the same in torch.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from fdt_pipeline.dali import import_dali
from fdt_pipeline.stage import Stage, decode_npy

_dali = import_dali()
from nvidia.dali import pipeline_def  # noqa: E402

fn: Any = _dali.fn  # its operators are made at run time
types: Any = _dali.types

# i64[n 2], a batch's (epoch, number) pairs, from its place in the epoch; numbers below zero are padding.
Numbers = Callable[[int], npt.NDArray[np.int64]]


@dataclass(frozen=True)
class Reading:
    """How the shards of one epoch are read and decoded."""

    tars: Sequence[str]
    indexes: Sequence[str]
    encoding: str  # "raw" or "png"
    shape: tuple[int, int, int] | None  # of every image, or None where they differ
    channels: int
    size: tuple[int, int] | None = None  # (height, width) to resize to
    shuffle: int = 0  # samples in the shuffle buffer; 0 reads in order
    seed: int = 0


@pipeline_def
def native_resident_pipeline(numbers: Numbers, arguments: dict[str, Any], device: str) -> Any:
    number = _numbers(numbers)
    return tuple(fn.fdt.superpose_resident(number, device=_backend(device), **arguments))


@pipeline_def
def native_streaming_pipeline(reading: Reading, numbers: Numbers, arguments: dict[str, Any], device: str) -> Any:
    encoded, label = _read(reading)
    u8 = _decode(encoded, reading)
    u8 = fn.resize(u8, size=reading.size) if reading.size else u8
    u8 = u8.gpu() if device == "cuda" else u8
    return tuple(fn.fdt.superpose(u8, label, _numbers(numbers), device=_backend(device), **arguments))


@pipeline_def
def resident_pipeline(numbers: Numbers, superpose: Stage, num_outputs: int) -> Any:
    number = _numbers(numbers)
    return tuple(_python(number, function=superpose, num_outputs=num_outputs))


@pipeline_def
def streaming_pipeline(reading: Reading, numbers: Numbers, superpose: Stage, num_outputs: int) -> Any:
    encoded, label = _read(reading)
    u8 = _decode(encoded, reading)
    u8 = fn.resize(u8, size=reading.size) if reading.size else u8
    return tuple(_python(u8, label, _numbers(numbers), function=superpose, num_outputs=num_outputs))


def _backend(device: str) -> str:
    """torch's name of a device as DALI's."""
    return "gpu" if device == "cuda" else "cpu"


def _numbers(source: Numbers) -> Any:
    return fn.external_source(
        source=lambda info: source(info.iteration), batch=True, batch_info=True, dtype=types.INT64, ndim=1
    )


def _read(reading: Reading) -> Any:
    """(encoded u8[bytes], label as ASCII u8[digits]); the last window is filled up with copies of the last sample."""
    return fn.readers.webdataset(
        paths=list(reading.tars),
        index_paths=list(reading.indexes),
        ext=["npy" if reading.encoding == "raw" else "png", "cls"],
        missing_component_behavior="error",
        random_shuffle=reading.shuffle > 0,
        initial_fill=max(reading.shuffle, 1),
        pad_last_batch=True,
        seed=reading.seed,
    )


def _decode(encoded: Any, reading: Reading) -> Any:
    if reading.encoding == "png":
        kind = types.GRAY if reading.channels == 1 else types.RGB
        return fn.decoders.image(encoded, device="cpu", output_type=kind)
    if reading.shape is None:
        return fn.dl_tensor_python_function(encoded, function=decode_npy, batch_processing=False)
    return fn.reshape(encoded[npy_header_size(reading.shape) :], shape=reading.shape)


def _python(*inputs: Any, function: Stage, num_outputs: int) -> Any:
    return fn.dl_tensor_python_function(*inputs, function=function, batch_processing=True, num_outputs=num_outputs)


def npy_header_size(shape: tuple[int, int, int]) -> int:
    """Bytes before the pixels in a .npy file of one uint8 image of this shape."""
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(header, {"descr": "|u1", "fortran_order": False, "shape": shape})
    return len(header.getvalue())
