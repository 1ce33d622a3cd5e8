"""The way of an image through DALI, one line a stage, in data order. Start reading here.

resident:   ids -> draw a plan from the whole set -> gather, shift, flip, weigh, sum, normalize, cast, lay out
streaming:  files or arrays -> decode (a crop) -> (resize, preprocess) -> into the ring -> the same, drawn from the ring

The last stage is one native operator (native/csrc/operators.cc). `FDTLoader` feeds the pipelines below by name
(running.py). `fdt_pipeline(...)` gives the same graphs inputs that DALI itself calls for.
"""

from __future__ import annotations

from typing import Any

import torch

from fdt_pipeline.dali import import_dali
from fdt_pipeline.definition.crops import RandomResizedCrop
from fdt_pipeline.loader.decoding import Decoding
from fdt_pipeline.loader.options import Mixing
from fdt_pipeline.loader.preprocessing import preprocessed
from fdt_pipeline.native.arguments import mix_argument
from fdt_pipeline.native.pool import NativePool

_dali = import_dali()
from nvidia.dali import pipeline_def  # noqa: E402

fn: Any = _dali.fn  # its operators are made at run time
types: Any = _dali.types


def resident(ids: Any, arguments: dict[str, Any], device: str) -> Any:
    """Ids -> (images, targets); `arguments` are `resident_arguments`, device is "cpu" or "gpu"."""
    return tuple(fn.fdt.superpose_resident(ids, device=device, **arguments))


def superpose(image: Any, label: Any, ids: Any, arguments: dict[str, Any], device: str) -> Any:
    """Images u8[h w c] or u8[n h w c], labels and ids -> (images, targets)."""
    u8 = image.gpu() if device == "gpu" and image.device == "cpu" else image
    return tuple(fn.fdt.superpose(u8, label, ids, device=device, **arguments))


def decode(image: Any, decoding: Decoding, regions: Any = None, random: Any = None, device: str = "cpu") -> Any:
    """Files u8[bytes] or images u8[h w c] -> images u8[h w c], of `decoding.output_size` where that is given.

    regions, random: what `Decoding.inputs` gives for the sample, where it does. device: "gpu" decodes files there.
    """
    if isinstance(decoding.crop, RandomResizedCrop):  # no more than the crop is decoded
        place, extent = fn.cast(regions[:2], dtype=types.INT32), fn.cast(regions[2:], dtype=types.INT32)
        image = fn.resize(
            _read(image, decoding, device, start=place, shape=extent, axes=(0, 1)), size=decoding.output_size
        )
    elif decoding.crop is not None:  # resized and cropped at once
        begin, end = regions[:2], regions[:2] + regions[2:]
        image = fn.resize(_read(image, decoding, device), size=decoding.output_size, roi_start=begin, roi_end=end)
    else:
        image = _read(image, decoding, device)
        image = fn.resize(image, size=decoding.size) if decoding.size else image
    return preprocessed(image, decoding.preprocess, random) if decoding.preprocess else image


def _read(image: Any, decoding: Decoding, device: str, **part: Any) -> Any:
    """Images u8[h w c], or a part of them."""
    if decoding.is_encoded:
        operator = fn.decoders.image_slice if part else fn.decoders.image
        kind = types.GRAY if decoding.channels == 1 else types.RGB
        return operator(image, device="mixed" if device == "gpu" else "cpu", output_type=kind, **AS_STORED, **part)
    image = image.gpu() if device == "gpu" else image
    return fn.slice(image, **part) if part else image


@pipeline_def
def resident_pipeline(arguments: dict[str, Any], device: str) -> Any:
    """Input "ids"."""
    return resident(fn.external_source(name="ids", **IDS), arguments, device)


@pipeline_def
def batches_pipeline(arguments: dict[str, Any], device: str) -> Any:
    """Inputs "images" u8[n h w c], "labels" i64[n] and "ids" i64[4] or i64[5]: a sample is a batch."""
    image = fn.external_source(name="images", batch=True, dtype=types.UINT8, ndim=4, layout="NHWC")
    label, ids = fn.external_source(name="labels", **IDS), fn.external_source(name="ids", **IDS)
    return superpose(image, label, ids, arguments, device)


@pipeline_def
def files_pipeline(arguments: dict[str, Any], decoding: Decoding, device: str) -> Any:
    """Inputs "images", "labels" i64[1], "ids" i64[2] or i64[3], and those of `Decoding.inputs`: a sample is a file, or
    an image to be cropped, resized or preprocessed."""
    image = _decoded(decoding, device)
    label, ids = fn.external_source(name="labels", **IDS), fn.external_source(name="ids", **IDS)
    return superpose(image, label, ids, arguments, device)


@pipeline_def
def decoding_pipeline(decoding: Decoding) -> Any:
    """Inputs "images" and those of `Decoding.inputs`; images u8[h w c] and nothing else."""
    return _decoded(decoding)


def _decoded(decoding: Decoding, device: str = "cpu") -> Any:
    image = fn.external_source(name="images", **_images(decoding))
    numbers = {name: fn.external_source(name=name, **NUMBERS) for name in decoding.input_names}
    return decode(image, decoding, **numbers, device=device)


# DALI 2 turns images as their EXIF says, and DALI 1 does not: like torchvision's loaders, none does here.
_can_turn: bool = _dali.backend.GetSchema("decoders__Image").HasArgument("adjust_orientation")
AS_STORED: dict[str, Any] = {"adjust_orientation": False} if _can_turn else {}
IDS: dict[str, Any] = {"batch": True, "dtype": types.INT64, "ndim": 1}
NUMBERS: dict[str, Any] = {"batch": True, "dtype": types.FLOAT, "ndim": 1}


def _images(decoding: Decoding) -> dict[str, Any]:
    is_encoded = decoding.is_encoded
    return {"batch": True, "dtype": types.UINT8, "ndim": 1 if is_encoded else 3, "layout": "" if is_encoded else "HWC"}


def batch_inputs(decoding: Decoding) -> dict[str, Any]:
    """Arguments of one external source that gives a batch's images, labels, ids, and what `Decoding.inputs` gives."""
    images, numbers = _images(decoding), [NUMBERS] * len(decoding.input_names)
    kinds = [images, IDS, IDS, *numbers]
    fields = {name: [kind[name] for kind in kinds] for name in ("dtype", "ndim")}
    return {"batch": True, **fields, "layout": [images["layout"]] + [""] * (len(kinds) - 1)}


def resident_arguments(mixing: Mixing, pool: NativePool, in_order: bool = False) -> dict[str, Any]:
    """Arguments of fn.fdt.superpose_resident. in_order: output i is image i (evaluation)."""
    assert pool.labels is not None
    return {**_arguments(mixing, pool.labels.num_distinct), "in_order": in_order, "pool": pool.name}


def streaming_arguments(mixing: Mixing, num_images: int) -> dict[str, Any]:
    """Arguments of fn.fdt.superpose that draws from up to so many images."""
    return {**_arguments(mixing, min(mixing.num_classes, num_images)), "num_classes": mixing.num_classes}


def _arguments(mixing: Mixing, num_distinct: int) -> dict[str, Any]:
    """What both operators take for images of up to so many classes."""
    output = mixing.output
    return {
        "plan_seed": mixing.seed - (mixing.seed >> 63 << 64),  # the same 64 bits as a signed number
        "mix": mix_argument(mixing.mix, num_distinct),
        "targets": mixing.mix.targets if mixing.soft else "label",
        "pad": mixing.augment.pad,
        "flip": mixing.augment.flip,
        "mean": list(output.mean),
        "std": list(output.std),
        "channels": output.channels,
        "dtype": types.FLOAT16 if output.dtype == torch.float16 else types.FLOAT,
        "output_layout": "HWC" if output.channels_last else "CHW",
    }
