"""Which samples of a batch they are that DALI did not decode: it loses a whole batch to one, and names none."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from fdt_pipeline.loader.decoding import F32, Decoding
from fdt_pipeline.loader.engines import Incoming
from fdt_pipeline.loader.graphs import decoding_pipeline
from fdt_pipeline.loader.preprocessing import conditionals
from fdt_pipeline.loader.running import DaliError, DaliOptions, run_pipeline
from fdt_pipeline.shards import Manifest
from fdt_pipeline.sources.image_pixels import decode_image, pixel_limit
from fdt_pipeline.sources.source import U8


def find_bad(batch: Incoming, manifest: Manifest, decoding: Decoding) -> dict[int, str]:
    """number -> reason. Pillow says why where it can; what Pillow decodes is tried with DALI, in halves."""
    images = batch.samples.images
    if not isinstance(images, list) or not decoding.is_encoded:
        return {}
    return _refused_by_pillow(images, manifest.channels) or _refused_by_dali(images, batch.numbers, decoding)


def _refused_by_pillow(images: Sequence[U8], channels: int) -> dict[int, str]:
    found = {}
    with pixel_limit(None):  # DALI has none, so that a large image is no fault
        for number, image in enumerate(images):
            try:
                decode_image(image.tobytes(), channels)
            except ValueError as error:
                found[number] = str(error)
    return found


def _refused_by_dali(images: Sequence[U8], numbers: Mapping[str, F32], decoding: Decoding) -> dict[int, str]:
    suspects = [range(len(images))]
    found = {}
    while suspects:
        those = suspects.pop()
        fed = {"images": [images[i] for i in those], **{name: values[those] for name, values in numbers.items()}}
        if _decodes(fed, decoding):
            continue
        if len(those) == 1:
            found[those[0]] = "DALI does not decode it, though Pillow does"
        else:
            half = len(those) // 2
            suspects += [those[:half], those[half:]]
    return dict(sorted(found.items()))


def _decodes(fed: Mapping[str, Any], decoding: Decoding) -> bool:
    options = DaliOptions(num_threads=1, ahead=0).arguments(len(fed["images"])) | conditionals(decoding.preprocess)
    try:
        list(run_pipeline(decoding_pipeline(decoding, **options), iter([fed]), lambda fed: fed))
    except DaliError:
        return False
    return True
