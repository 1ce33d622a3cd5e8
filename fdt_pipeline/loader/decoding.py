"""What is done to the images of a batch before they are mixed, and what DALI is told of each of them for that."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from fdt_pipeline.definition.crops import RandomResizedCrop, ResizeCrop, draw_crops, middle_regions
from fdt_pipeline.definition.philox import Stream, random_words
from fdt_pipeline.sources.source import I64

if TYPE_CHECKING:
    from fdt_pipeline.loader.reading import Samples

Preprocess = Callable[..., Any]
NUM_RANDOM = 16  # numbers for `preprocess`, of each sample
F32 = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Decoding:
    """is_encoded: the images are files. size: (height, width) to stretch to; or crop: the part that is shown. At most
    one of them. preprocess: a function of DALI nodes, (images) or (images, random)."""

    is_encoded: bool
    channels: int
    size: tuple[int, int] | None = None
    crop: RandomResizedCrop | ResizeCrop | None = None
    preprocess: Preprocess | None = None

    def __post_init__(self) -> None:
        if self.size is not None and self.crop is not None:
            raise ValueError(f"size stretches whole images, augment={self.crop!r} crops them: leave one of them out")

    def is_needed(self) -> bool:
        """Whether it does anything."""
        return self.is_encoded or self.size is not None or self.crop is not None or self.preprocess is not None

    @property
    def output_size(self) -> tuple[int, int] | None:
        """(height, width) of every image; None where they stay as they are."""
        return self.size if self.crop is None else self.crop.output_size

    @cached_property
    def input_names(self) -> list[str]:
        """Of what `inputs` gives, in this order: "random" where `preprocess` takes random numbers."""
        is_random = self.preprocess is not None and takes_random(self.preprocess)
        return ["regions"] * (self.crop is not None) + ["random"] * is_random

    def of_samples(self, seed: int, epoch: int, samples: Samples, starts: Mapping[str, int]) -> dict[str, F32]:
        """Their `inputs`. starts: shard -> position of its first sample in the set."""
        if not self.input_names:
            return {}
        return self.inputs(seed, epoch, samples.positions(starts), samples.sizes)

    def inputs(self, seed: int, epoch: int, positions: I64, sizes: I64 | None) -> dict[str, F32]:
        """Inputs of the decoding pipeline beside "images". positions: in the set, i64[n]; sizes: (height, width)
        of their images, i64[n 2], which crops are made of.

        "regions" f32[n 4]: top, left, height, width; "random" f32[n 16]: uniform on [0, 1), a function of (seed, epoch,
        sample): words of the blocks 0 to 3, the upper 24 bits of each.
        """
        fed = {}
        if self.crop is not None:
            assert sizes is not None
            fed["regions"] = self._regions(seed, epoch, positions, sizes)
        if "random" in self.input_names:
            words = random_words(seed, Stream.PREPROCESS, epoch, positions[:, None], np.arange(NUM_RANDOM // 4))
            fed["random"] = (words.reshape(-1, NUM_RANDOM) >> np.uint32(8)).astype(np.float32) / np.float32(2**24)
        return fed

    def _regions(self, seed: int, epoch: int, positions: I64, sizes: I64) -> F32:
        if isinstance(self.crop, RandomResizedCrop):
            return draw_crops(self.crop, seed, epoch, positions, *sizes.T).astype(np.float32)
        assert self.crop is not None
        return middle_regions(self.crop, *sizes.T).astype(np.float32)


def takes_random(preprocess: Preprocess) -> bool:
    """Whether it has a second argument without a default. ValueError, naming it, unless it takes one or two."""
    if not callable(preprocess):
        raise ValueError(f"preprocess must be a function of DALI nodes, got {preprocess!r}")
    try:
        signature = inspect.signature(preprocess)
    except (TypeError, ValueError):  # a built-in one that does not tell
        return False
    kinds = inspect.Parameter
    required = [each for each in signature.parameters.values() if each.default is each.empty]
    num_places = sum(each.kind in (kinds.POSITIONAL_ONLY, kinds.POSITIONAL_OR_KEYWORD) for each in required)
    has_place = any(each.kind not in (kinds.KEYWORD_ONLY, kinds.VAR_KEYWORD) for each in signature.parameters.values())
    if not has_place or num_places > 2 or any(each.kind == kinds.KEYWORD_ONLY for each in required):
        raise ValueError(
            "preprocess must be a function of DALI nodes, (images) or (images, random), got "
            f"{preprocess_name(preprocess)}{signature}"
        )
    return num_places == 2


def preprocess_name(preprocess: Preprocess) -> str:
    """What a state and errors call it: "module.function"."""
    whole = getattr(preprocess, "func", preprocess)  # of a functools.partial
    named = whole if hasattr(whole, "__qualname__") else type(whole)
    return f"{named.__module__ or '__main__'}.{named.__qualname__}"
