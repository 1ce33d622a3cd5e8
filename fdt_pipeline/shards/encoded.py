"""The samples of a source, encoded one by one in a given order."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from ..sources.source import I64, U8, Source
from .codec import EXTENSIONS, encode
from .key import sample_key
from .progress import Progress
from .statistics import PixelStatistics


class EncodedSample(NamedTuple):
    """members: extension -> file content."""

    key: str
    members: dict[str, bytes]


class EncodedSamples:
    """Iterable once; gathers what the manifest says of the pixels as they go by."""

    def __init__(self, source: Source, order: I64, encoding: str, progress: Progress | None) -> None:
        self.source, self.order, self.encoding, self.progress = source, order, encoding, progress
        self.statistics = PixelStatistics()
        self._shapes: set[tuple[int, int, int]] = set()

    def __iter__(self) -> Iterator[EncodedSample]:
        for done, position in enumerate(self.order.tolist(), 1):
            sample = self._encoded(position)
            if self.progress:
                self.progress(done, len(self.order))
            yield sample

    @property
    def shape(self) -> tuple[int, int, int] | None:
        """(h, w, c) if all images so far have it."""
        return next(iter(self._shapes)) if len(self._shapes) == 1 else None

    def _encoded(self, position: int) -> EncodedSample:
        try:
            image, label, source_key = self.source[position]
            check_image(image)
            self.statistics.add(image)
        except (OSError, ValueError) as error:  # an OSError of reading must not be taken for one of writing
            raise ValueError(f"sample {position} of the source: {error}") from error
        height, width, channels = image.shape
        self._shapes.add((height, width, channels))
        members = {EXTENSIONS[self.encoding]: encode(image, self.encoding), "cls": str(label).encode("ascii")}
        return EncodedSample(sample_key(position, source_key), members)


def check_image(image: U8) -> None:
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] not in (1, 3) or 0 in image.shape:
        raise ValueError(f"expected an image u8[h w 1] or u8[h w 3], got {image.dtype} {list(image.shape)}")
