"""Which samples of a batch they are that DALI did not decode: it loses a whole batch to one, and names none."""

from __future__ import annotations

from collections.abc import Sequence

from fdt_pipeline.loader.graphs import Decoding, decoding_pipeline
from fdt_pipeline.loader.reading import Samples
from fdt_pipeline.loader.running import DaliError, DaliOptions, run_pipeline
from fdt_pipeline.shards import Manifest
from fdt_pipeline.sources.image_pixels import decode_image
from fdt_pipeline.sources.source import U8


def find_bad(samples: Samples, manifest: Manifest, decoding: Decoding) -> dict[int, str]:
    """number -> reason. Pillow says why where it can; what Pillow decodes is tried with DALI, in halves."""
    if not isinstance(samples.images, list) or not decoding.is_encoded:
        return {}
    return _refused_by_pillow(samples.images, manifest.channels) or _refused_by_dali(samples.images, decoding)


def _refused_by_pillow(images: Sequence[U8], channels: int) -> dict[int, str]:
    found = {}
    for number, image in enumerate(images):
        try:
            decode_image(image.tobytes(), channels)
        except ValueError as error:
            found[number] = str(error)
    return found


def _refused_by_dali(images: Sequence[U8], decoding: Decoding) -> dict[int, str]:
    suspects = [range(len(images))]
    found = {}
    while suspects:
        numbers = suspects.pop()
        if _decodes([images[number] for number in numbers], decoding):
            continue
        if len(numbers) == 1:
            found[numbers[0]] = "DALI does not decode it, though Pillow does"
        else:
            half = len(numbers) // 2
            suspects += [numbers[:half], numbers[half:]]
    return dict(sorted(found.items()))


def _decodes(images: Sequence[U8], decoding: Decoding) -> bool:
    options = DaliOptions(num_threads=1, ahead=0).arguments(len(images))
    try:
        list(run_pipeline(decoding_pipeline(decoding, **options), iter([images]), lambda images: {"images": images}))
    except DaliError:
        return False
    return True
