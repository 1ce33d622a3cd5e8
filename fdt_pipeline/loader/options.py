"""What `FDTLoader` can be asked for: defaults, and a clear error for what it cannot do."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch

from fdt_pipeline.definition.superposition import FDT, NO_AUGMENT, Augment
from fdt_pipeline.loader.engine import Output

# The paper's input: (pixel - mean) / 256 in RGB; 117 is also the luma of that mean, for gray images.
PAPER_MEAN = (122.0, 117.0, 104.0)
PAPER_GRAY_MEAN = (117.0,)
PAPER_STD = 256.0

PerChannel = float | Sequence[float]


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


def checked_targets(train: bool, fdt: FDT | None, targets: str | None) -> tuple[FDT | None, str]:
    """-> (fdt that makes such targets, "soft", "dominant" or "sparse"; "label" for evaluation)."""
    if not train:
        if targets is not None:
            raise ValueError(f"train=False yields the label of every sample: leave targets out, got {targets!r}")
        return fdt, "label"
    chosen = targets or (fdt.targets if fdt else "soft")
    check_choice("targets", chosen, ("soft", "dominant", "sparse"))
    return fdt and replace(fdt, targets="dominant" if chosen == "dominant" else "soft"), chosen


def checked_pinning(pin_memory: bool, device: torch.device) -> bool:
    if pin_memory and device.type != "cpu":
        raise ValueError(f"pin_memory is for tensors on the host, but device is {str(device)!r}: leave one of them out")
    if pin_memory and not torch.cuda.is_available():
        raise ValueError("pin_memory=True needs a GPU, but torch sees none here: leave it out")
    return pin_memory


def checked_image_size(
    shape: tuple[int, int, int] | None, url: str, mode: str, size: tuple[int, int] | None
) -> tuple[int, int]:
    """(height, width) of the outputs of a set whose images are of this shape, or of several."""
    if mode == "resident" and shape is None:
        raise ValueError(
            f'{url} holds images of different sizes, which cannot be resident: pass mode="streaming" and '
            "size=(height, width), or shard the images again at one size"
        )
    if mode == "resident" and size is not None:
        raise ValueError('size resizes while streaming: pass mode="streaming", or leave size out')
    if size is not None:
        return size
    if shape is None:
        raise ValueError(f"{url} holds images of different sizes: pass size=(height, width)")
    return shape[0], shape[1]


def checked_device(device: str | torch.device) -> torch.device:
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
    index = torch.cuda.current_device() if checked.index is None else checked.index
    if index >= torch.cuda.device_count():
        raise ValueError(f"device is {device!r}, but torch sees {torch.cuda.device_count()} GPU(s) here")
    return torch.device("cuda", index)


def checked_mixing(
    train: bool, mix: FDT | str | None, augment: Augment | str | None, num_classes: int
) -> tuple[FDT | None, Augment]:
    """What to do to training images; evaluation takes neither, and says so if it is asked to."""
    for name, value in (("mix", mix), ("augment", augment)):
        if not train and value not in ("default", None):
            raise ValueError(f"train=False yields every sample whole and unchanged: leave {name} out, got {value!r}")
    if not train:
        return None, NO_AUGMENT
    chosen = FDT() if mix == "default" else mix
    if not (chosen is None or isinstance(chosen, FDT)):
        raise ValueError(f"mix must be an FDT or None, got {mix!r}")
    if chosen:
        chosen.check_classes(num_classes)
    augmented = Augment() if augment == "default" else augment or NO_AUGMENT
    if not isinstance(augmented, Augment):
        raise ValueError(f"augment must be an Augment or None, got {augment!r}")
    return chosen, augmented


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
