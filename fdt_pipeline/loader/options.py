"""What a loader or an `fdt_pipeline(...)` is asked for: one frozen object, checked when it is made.

`Options` is checked without a data set; `Mixing` is what the operators need of it, for a set.
"""

from __future__ import annotations

import math
import operator
import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import torch

from fdt_pipeline.definition.crops import RandomResizedCrop, ResizeCrop
from fdt_pipeline.definition.mixing import FDT, PLAIN, Mix
from fdt_pipeline.definition.philox import Stream, random_words
from fdt_pipeline.definition.superposition import NO_AUGMENT, Augment
from fdt_pipeline.loader.decoding import Decoding, Preprocess, takes_random
from fdt_pipeline.loader.mixes import MixArgument, checked_mix, mix_of
from fdt_pipeline.machine import available_cpus
from fdt_pipeline.shards import Manifest

# The paper's input: (pixel - mean) / 256 in RGB; 117 is also the luma of that mean, for gray images.
PAPER_MEAN = (122.0, 117.0, 104.0)
PAPER_GRAY_MEAN = (117.0,)
PAPER_STD = 256.0

MOST_TOGETHER = 16  # batches of one DALI iteration
TOGETHER_BYTES = 64 << 20  # of their images

PerChannel = float | Sequence[float]
Augmentation = Augment | RandomResizedCrop | ResizeCrop
Mode = Literal["auto", "resident", "streaming"]
LastBatch = Literal["partial", "drop", "fill"]


@dataclass(frozen=True)
class Output:
    """What an image becomes: (pixels - mean) / std, `channels` of them, in this dtype and memory layout."""

    mean: tuple[float, ...]
    std: tuple[float, ...]
    channels: int
    dtype: torch.dtype = torch.float32
    channels_last: bool = False


@dataclass(frozen=True)
class Mixing:
    """What every output is a function of, beside its epoch and index."""

    seed: int
    mix: Mix
    augment: Augment
    num_classes: int
    output: Output
    soft: bool = True  # f32 soft targets; False gives the int64 label of the first image

    def of(self, mix: Mix | None) -> Mixing:
        """The same with this mix; or, with None, with whole images, each leading once an epoch."""
        return replace(self, mix=mix or PLAIN)


@dataclass(frozen=True, kw_only=True)
class Options:
    """The arguments of `FDTLoader`, which documents them; `fdt_pipeline` sets those that it has.

    What can be checked without a data set is checked here: ValueError names the argument, what was expected and what it
    got. `chosen_mix`, `chosen_augment`, `checked_device` and `checked_threads` make the first four of what a user
    passes.
    """

    mix: MixArgument
    augment: Augmentation
    device: torch.device
    num_threads: int
    batch_size: int
    train: bool = True
    mode: Mode = "auto"
    engine: Literal["auto", "native", "torch"] = "auto"
    seed: int = 0
    mean: PerChannel | None = None
    std: PerChannel = PAPER_STD
    channels: int | None = None
    dtype: torch.dtype = torch.float32
    channels_last: bool = False
    pin_memory: bool = False
    size: tuple[int, int] | None = None
    preprocess: Preprocess | None = None
    decode: Literal["cpu", "gpu"] | None = None
    ring: int | None = None
    verify: bool = False
    on_bad: Literal["error", "substitute"] = "error"
    last_batch: LastBatch = "partial"
    weights: bool = False
    prefetch: int = 2
    strict_state: bool = True

    def __post_init__(self) -> None:
        check_choice("mode", self.mode, ("auto", "resident", "streaming"))
        check_choice("engine", self.engine, ("auto", "native", "torch"))
        check_choice("last_batch", self.last_batch, ("partial", "drop", "fill"))
        check_choice("on_bad", self.on_bad, ("error", "substitute"))
        check_at_least_one(batch_size=self.batch_size, ring=self.ring, channels=self.channels)
        check_count("prefetch", self.prefetch, 0)
        check_count("seed", self.seed, 0)
        random_words(operator.index(self.seed), Stream.PLAN, 0, 0, 0)  # raises where it is out of range
        check_size(self.size)
        check_pinning(self.pin_memory, self.device)
        if self.decode is not None:
            check_choice("decode", self.decode, ("cpu", "gpu"))
        if self.decode == "gpu" and self.device.type == "cpu":
            raise ValueError('decode="gpu" needs device="cuda", but device is "cpu": leave decode out')
        if self.preprocess is not None:
            takes_random(self.preprocess)  # raises where it is no such function
        if self.ring is not None and isinstance(self.mix, Mix) and self.mix.partners == "batch":
            raise ValueError(f'partners="batch" keeps no ring: leave ring={self.ring} out, or pass partners="ring"')
        if self.mode == "resident" and self.crop is not None:
            raise ValueError(f'augment={self.crop!r} is for streaming: leave mode out, or pass mode="streaming"')
        if self.mode == "resident" and self.preprocess is not None:
            raise ValueError('preprocess is for streaming: leave mode out, or pass mode="streaming"')

    @property
    def crop(self) -> RandomResizedCrop | ResizeCrop | None:
        """What `augment` says of whole images, before they are mixed."""
        return None if isinstance(self.augment, Augment) else self.augment

    def decoding(self, manifest: Manifest) -> Decoding:
        """What is done to the images of streaming. ValueError where that cannot be."""
        return Decoding(manifest.encoding != "raw", manifest.channels, self.size, self.crop, self.preprocess)

    @property
    def decodes_on_gpu(self) -> bool:
        """Whether streaming decodes, crops, resizes and preprocesses images there."""
        return self.device.type == "cuda" and self.decode != "cpu"

    @property
    def image_size(self) -> tuple[int, int] | None:
        """(height, width) that images are cropped or stretched to."""
        return self.crop.output_size if self.crop else self.size

    def mixing(self, manifest: Manifest) -> Mixing:
        """What the operators are told. ValueError where the set does not allow it."""
        num_classes = len(manifest.classes)
        first = mix_of(self.mix, 0)
        if first is not None:
            first.check_classes(num_classes)
        augment = self.augment if isinstance(self.augment, Augment) else self.augment.augment
        output = checked_output(manifest.channels, self.channels, self.mean, self.std, self.dtype, self.channels_last)
        return Mixing(operator.index(self.seed), first or PLAIN, augment, num_classes, output, soft=self.train)

    def asked_mode(self, partners: str | None) -> Mode:
        """The mode that is asked for: "auto" is streaming where images are cropped, resized or preprocessed, or else
        the mode that has what images are mixed with."""
        if self.mode != "auto":
            return self.mode
        if self.image_size is not None or self.preprocess is not None or partners in ("ring", "batch"):
            return "streaming"
        return "resident" if partners == "set" else "auto"

    def batches_together(self, shape: tuple[int, int, int]) -> int:
        """How many batches of images [c h w] DALI makes in one iteration, which takes 0.1 ms and more for itself."""
        num_bytes = self.batch_size * math.prod(shape) * (2 if self.dtype == torch.float16 else 4)
        return 1 if not self.prefetch else max(1, min(MOST_TOGETHER, TOGETHER_BYTES // num_bytes))

    def check_resident(self) -> None:
        """ValueError for options of streaming."""
        if self.ring is not None:
            raise ValueError("ring is for streaming: a resident set is mixed as a whole, so leave it out")
        if self.on_bad != "error":
            raise ValueError("on_bad is for streaming: a resident set is checked when it is loaded, so leave it out")


def chosen_mix(train: bool, mix: MixArgument | str) -> MixArgument:
    """The default is FDT in training. Evaluation takes none, and says so if it is asked for one."""
    if not train:
        _check_left_out("mix", mix)
        return None
    return FDT() if isinstance(mix, str) and mix == "default" else checked_mix(mix)


def chosen_augment(train: bool, augment: Augmentation | str | None) -> Augmentation:
    """The default is `Augment()` in training. Evaluation takes a ResizeCrop or none, and says so if it is asked for
    another."""
    if not train:
        if isinstance(augment, ResizeCrop):
            return augment
        _check_left_out("augment", augment, " (or pass a ResizeCrop)")
        return NO_AUGMENT
    chosen = Augment() if isinstance(augment, str) and augment == "default" else augment or NO_AUGMENT
    if isinstance(chosen, Augmentation):
        return chosen
    raise ValueError(f"augment must be an Augment, a RandomResizedCrop, a ResizeCrop or None, got {augment!r}")


def _check_left_out(name: str, value: object, instead: str = "") -> None:
    if value not in ("default", None):
        raise ValueError(
            f"train=False yields every sample whole and unchanged: leave {name} out{instead}, got {value!r}"
        )


IMAGENET_MEAN, IMAGENET_STD = (123.675, 116.28, 103.53), (58.395, 57.12, 57.375)


def chosen_normalization(
    normalize: str | None, mean: PerChannel | None, std: PerChannel
) -> tuple[PerChannel | None, PerChannel]:
    """(mean, std) as they are given, or of the name that is."""
    if normalize is None:
        return mean, std
    check_choice("normalize", normalize, ("imagenet",))
    if mean is not None or std is not PAPER_STD:
        raise ValueError(
            f"normalize={normalize!r} stands for a mean and a std: leave it out, or leave out mean and std"
        )
    return IMAGENET_MEAN, IMAGENET_STD


def checked_threads(num_threads: int | None) -> int:
    """By default the CPUs that this process may use, but at most 4."""
    check_at_least_one(num_threads=num_threads)
    return min(4, available_cpus()) if num_threads is None else operator.index(num_threads)


def check_choice(name: str, value: str, choices: Sequence[str]) -> None:
    if value not in choices:
        raise ValueError(f"{name} must be one of {', '.join(map(repr, choices))}, got {value!r}")


def check_at_least_one(**counts: int | None) -> None:
    for name, count in counts.items():
        check_count(name, count, 1)


def check_count(name: str, count: int | None, least: int) -> None:
    if count is None:
        return
    if not hasattr(count, "__index__"):
        raise ValueError(f"{name} must be a whole number, got {count!r}")
    if count < least:
        raise ValueError(f"{name} must be {least} or more, got {count}")


def check_size(size: tuple[int, int] | None) -> None:
    if size is None:
        return
    if not isinstance(size, Sequence) or len(size) != 2:
        raise ValueError(f"size must be (height, width), got {size!r}")
    check_at_least_one(**{"height of size": size[0], "width of size": size[1]})


def check_pinning(pin_memory: bool, device: torch.device) -> None:
    if pin_memory and device.type != "cpu":
        raise ValueError(f"pin_memory is for tensors on the host, but device is {str(device)!r}: leave one of them out")
    if pin_memory and not torch.cuda.is_available():
        raise ValueError("pin_memory=True needs a GPU, but torch sees none here: leave it out")


def checked_image_size(
    shape: tuple[int, int, int] | None, url: str, mode: str, size: tuple[int, int] | None
) -> tuple[int, int]:
    """(height, width) of the outputs of a set whose images are of this shape, or of several."""
    if mode == "resident" and shape is None:
        raise ValueError(
            f'{url} holds images of different sizes, which cannot be resident: pass mode="streaming" and '
            "size=(height, width) or augment=RandomResizedCrop(size), or shard the images again at one size"
        )
    if mode == "resident" and size is not None:
        raise ValueError('size resizes while streaming: pass mode="streaming", or leave size out')
    if size is not None:
        return size
    if shape is None:
        raise ValueError(
            f"{url} holds images of different sizes: pass size=(height, width), which stretches them, or "
            "augment=RandomResizedCrop(size) or ResizeCrop(resize, crop), which crop them"
        )
    return shape[0], shape[1]


def checked_device(device: str | torch.device) -> torch.device:
    """With the number of a GPU: for "cuda" the current device; or, where torchrun says LOCAL_RANK and nobody has called
    `torch.cuda.set_device`, that one. ValueError for what is not there."""
    try:
        checked = torch.device(device)
    except RuntimeError:
        checked = torch.device("meta")
    if checked.type not in ("cpu", "cuda"):
        raise ValueError(f'device must be "cpu" or "cuda", got {device!r}')
    if checked.type == "cpu":
        return checked
    if not torch.cuda.is_available():
        raise ValueError(f'device is {device!r}, but torch sees no GPU here: pass device="cpu"')
    index = _own_gpu() if checked.index is None else checked.index
    if index >= torch.cuda.device_count():
        raise ValueError(f"device is {device!r}, but torch sees {torch.cuda.device_count()} GPU(s) here")
    return torch.device("cuda", index)


def _own_gpu() -> int:
    """Where each rank is shown a single GPU, it is number 0 for all."""
    current, local_rank = torch.cuda.current_device(), os.environ.get("LOCAL_RANK", "")
    is_untouched = current == 0 and local_rank.isdecimal() and int(local_rank) < torch.cuda.device_count()
    return int(local_rank) if is_untouched else current


def checked_output(
    stored: int, asked: int | None, mean: PerChannel | None, std: PerChannel, dtype: torch.dtype, channels_last: bool
) -> Output:
    channels = stored if asked is None else asked
    if channels != stored and stored != 1:
        raise ValueError(f"channels={asked}, but the images have {stored}: only gray ones can be repeated")
    if dtype not in (torch.float32, torch.float16, torch.bfloat16):
        raise ValueError(
            f"dtype must be torch.float32, torch.float16 or torch.bfloat16, got {dtype}: cast other types after"
        )
    if mean is None:
        if channels not in (1, 3):
            raise ValueError(f"the default mean is for 1 or 3 channels, these images have {channels}: pass mean")
        mean = PAPER_MEAN if channels == 3 else PAPER_GRAY_MEAN
    means, stds = (_per_channel(name, value, channels) for name, value in (("mean", mean), ("std", std)))
    if not min(stds) > 0:
        raise ValueError(f"std must be above 0, got {std}")
    check_pixel_range(mean, std)
    # DALI knows no bfloat16: it is cast to at the end.
    made = torch.float32 if dtype == torch.bfloat16 else dtype
    return Output(means, stds, channels, made, channels_last)


def check_pixel_range(mean: PerChannel, std: PerChannel) -> None:
    """ValueError for a mean or std of pixels in 0..1, such as ImageNet's: all in 0..1, and with a fraction. 0 and 1
    alone are fine, as they leave pixels as they are."""
    given = {"mean": np.asarray(mean, float), "std": np.asarray(std, float)}
    in_unit = {name: values for name, values in given.items() if ((values >= 0) & (values <= 1)).all()}
    if any((values % 1).any() for values in in_unit.values()):
        meant = (f"{name}={_shown(255 * values)}" for name, values in in_unit.items())
        raise ValueError(
            f"mean and std are in units of 0..255, got mean={mean} and std={std}: multiply by 255: {', '.join(meant)}"
        )


def _shown(values: np.ndarray) -> str:
    """As Python writes it, in 6 digits."""
    text = [f"{value:.6g}" for value in values.ravel()]
    return f"({', '.join(text)})" if values.ndim else text[0]


def _per_channel(name: str, value: PerChannel, channels: int) -> tuple[float, ...]:
    values = (float(value),) * channels if np.ndim(value) == 0 else tuple(map(float, value))  # type: ignore[arg-type]
    if len(values) != channels or not np.isfinite(values).all():
        raise ValueError(f"{name} must be a finite number or {channels} of them, got {value}")
    return values
