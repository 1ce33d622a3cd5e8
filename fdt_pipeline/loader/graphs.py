"""The way of an image through DALI, one line a stage, in data order. Start reading here.

resident:   ids -> draw a plan from the whole set -> gather, shift, flip, weigh, sum, normalize, cast, lay out
streaming:  files or arrays -> decode -> (resize) -> into the ring -> the same, drawn from the ring

The last stage is one native operator (native/csrc/operators.cc). `FDTLoader` feeds the pipelines below by name
(running.py). `fdt_pipeline(...)` gives the same graphs inputs that DALI itself calls for.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from fdt_pipeline.dali import import_dali
from fdt_pipeline.definition.superposition import image_range
from fdt_pipeline.loader.options import Mixing
from fdt_pipeline.native.arguments import series_argument
from fdt_pipeline.native.pool import NativePool

_dali = import_dali()
from nvidia.dali import pipeline_def  # noqa: E402

fn: Any = _dali.fn  # its operators are made at run time
types: Any = _dali.types


@dataclass(frozen=True)
class Decoding:
    """What is done to the images of a batch. is_encoded: they are files; size: (height, width) to resize to."""

    is_encoded: bool
    channels: int
    size: tuple[int, int] | None = None

    def is_needed(self) -> bool:
        """Whether it does anything."""
        return self.is_encoded or self.size is not None


def resident(ids: Any, arguments: dict[str, Any], device: str) -> Any:
    """Ids -> (images, targets); `arguments` are `resident_arguments`, device is "cpu" or "gpu"."""
    return tuple(fn.fdt.superpose_resident(ids, device=device, **arguments))


def streaming(image: Any, label: Any, ids: Any, decoding: Decoding, arguments: dict[str, Any], device: str) -> Any:
    """Images or files, labels i64[1] and ids -> (images, targets); `arguments` are `streaming_arguments`."""
    return superpose(decode(image, decoding), label, ids, arguments, device)


def superpose(image: Any, label: Any, ids: Any, arguments: dict[str, Any], device: str) -> Any:
    """Images u8[h w c] or u8[n h w c], labels and ids -> (images, targets)."""
    u8 = image.gpu() if device == "gpu" else image
    return tuple(fn.fdt.superpose(u8, label, ids, device=device, **arguments))


def decode(image: Any, decoding: Decoding) -> Any:
    """Files u8[bytes] or images u8[h w c] -> images u8[h w c], of `decoding.size` if that is given."""
    if decoding.is_encoded:
        kind = types.GRAY if decoding.channels == 1 else types.RGB
        image = fn.decoders.image(image, device="cpu", output_type=kind, **AS_STORED)
    return fn.resize(image, size=decoding.size) if decoding.size else image


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
    """Inputs "images", "labels" i64[1] and "ids" i64[2] or i64[3]: a sample is a file, or an image to be resized."""
    image = fn.external_source(name="images", **_images(decoding))
    label, ids = fn.external_source(name="labels", **IDS), fn.external_source(name="ids", **IDS)
    return streaming(image, label, ids, decoding, arguments, device)


@pipeline_def
def decoding_pipeline(decoding: Decoding) -> Any:
    """Input "images"; images u8[h w c] and nothing else."""
    return decode(fn.external_source(name="images", **_images(decoding)), decoding)


# DALI 2 turns images as their EXIF says, and DALI 1 does not: like torchvision's loaders, none does here.
_can_turn: bool = _dali.backend.GetSchema("decoders__Image").HasArgument("adjust_orientation")
AS_STORED: dict[str, Any] = {"adjust_orientation": False} if _can_turn else {}
IDS: dict[str, Any] = {"batch": True, "dtype": types.INT64, "ndim": 1}


def _images(decoding: Decoding) -> dict[str, Any]:
    is_encoded = decoding.is_encoded
    return {"batch": True, "dtype": types.UINT8, "ndim": 1 if is_encoded else 3, "layout": "" if is_encoded else "HWC"}


def batch_inputs(decoding: Decoding) -> dict[str, Any]:
    """Arguments of one external source that gives a batch's images, labels and ids."""
    images = _images(decoding)
    return {"batch": True, **{name: [images[name], IDS[name], IDS[name]] for name in ("dtype", "ndim")}} | {
        "layout": [images["layout"], "", ""]
    }


def resident_arguments(mixing: Mixing, pool: NativePool, in_order: bool = False) -> dict[str, Any]:
    """Arguments of fn.fdt.superpose_resident. in_order: output i is image i (evaluation)."""
    assert pool.labels is not None
    most = image_range(mixing.fdt, pool.labels)[1]
    return {**_arguments(mixing, most), "anchor": "index" if in_order else mixing.fdt.anchor, "pool": pool.name}


def streaming_arguments(mixing: Mixing, num_images: int) -> dict[str, Any]:
    """Arguments of fn.fdt.superpose that draws from up to so many images."""
    most = min(mixing.fdt.most_images(mixing.num_classes), num_images)
    return {**_arguments(mixing, most), "anchor": mixing.fdt.anchor, "num_classes": mixing.num_classes}


def _arguments(mixing: Mixing, most: int) -> dict[str, Any]:
    """What both operators take for sums of up to `most` images."""
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
        "dtype": types.FLOAT16 if output.dtype == torch.float16 else types.FLOAT,
        "output_layout": "HWC" if output.channels_last else "CHW",
    }
