"""Which FDT the epochs of a loader have, and how a checkpoint says which."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import fields
from typing import Any

import numpy as np

from fdt_pipeline.definition.mixing import FDT
from fdt_pipeline.definition.series import Geometric, Harmonic, Power, Uniform

Mix = FDT | Callable[[int], FDT | None] | None  # one for all epochs, or a function of the epoch

OF_EPOCH = "a function of the epoch"
_SERIES = {series.__name__: series for series in (Harmonic, Power, Geometric, Uniform)}
_SERIES_ROWS = 64  # sums of up to so many images tell one series from another


def checked_mix(mix: Any) -> Mix:
    """ValueError for what is no mix."""
    if mix is None or isinstance(mix, FDT) or (callable(mix) and not isinstance(mix, type)):
        return mix
    raise ValueError(f"mix must be an FDT, a function of the epoch that gives one, or None, got {mix!r}")


class MixSchedule:
    """What epochs that are not begun will have. is_on=False: none of it."""

    def __init__(self, mix: Mix, num_classes: int) -> None:
        self.num_classes, self.is_on = num_classes, mix is not None
        self.set(mix)

    def set(self, mix: Mix) -> None:
        """ValueError for what is no mix, or is none for so many classes."""
        checked_mix(mix)
        if isinstance(mix, FDT):
            mix.check_classes(self.num_classes)
        self.mix = mix

    def of(self, epoch: int) -> FDT | None:
        """What that epoch has; None: whole images."""
        return self.given(epoch) if self.is_on else None

    def given(self, epoch: int) -> FDT | None:
        """The same as if it is on. ValueError for what a function gives that is no FDT."""
        if self.mix is None or isinstance(self.mix, FDT):
            return self.mix
        fdt = self.mix(epoch)
        if fdt is not None and not isinstance(fdt, FDT):
            raise ValueError(f"mix({epoch}) must give an FDT or None, got {fdt!r}")
        if fdt is not None:
            fdt.check_classes(self.num_classes)
        return fdt

    def described(self) -> Any:
        """JSON values."""
        return describe_mix(self.mix, self.num_classes)


def describe_mix(mix: Mix, num_classes: int) -> Any:
    """JSON values that tell two mixings of num_classes classes apart; a series by its weights, so that one without a
    repr of its own is known again in another process."""
    if mix is None:
        return None
    if not isinstance(mix, FDT):
        return OF_EPOCH
    most = min(mix.most_images(num_classes), _SERIES_ROWS)  # never more than a plan has: a table may end there
    rows = [np.asarray(mix.series.weights(k), np.float32) for k in range(1, most + 1)]
    digest = hashlib.sha256(np.concatenate(rows).tobytes()).hexdigest()[:12]
    name = type(mix.series).__name__
    arguments = vars(mix.series) if type(mix.series) is _SERIES.get(name) else {}
    described = {field.name: getattr(mix, field.name) for field in fields(mix)}
    return _plain(described) | {"series": {"name": name, "weights": digest} | _plain(arguments)}


def _plain(values: Mapping[str, Any]) -> dict[str, Any]:
    """Numbers of NumPy as Python's."""
    return {name: value.item() if isinstance(value, np.generic) else value for name, value in values.items()}


def described_mix(described: Any, num_classes: int, own: Callable[[], Mix]) -> Mix:
    """The mix that was described so: made anew, or the loader's own if that is it. ValueError where it is neither."""
    if described is None:
        return None
    try:
        return _made(described, num_classes)
    except (KeyError, TypeError, ValueError):  # of another series, a function, or no description
        mix = own()
    if describe_mix(mix, num_classes) == described:
        return mix
    raise ValueError(
        f"the state was taken with a mix that cannot be made of it, {described!r}: set loader.mix to that mix, and "
        "load the state then"
    )


def _made(described: Any, num_classes: int) -> FDT:
    """ValueError, KeyError or TypeError where it is not the description of an FDT with a series of ours."""
    arguments = {name: value for name, value in described["series"].items() if name not in ("name", "weights")}
    fdt = FDT(**{**described, "series": _SERIES[described["series"]["name"]](**arguments)})
    if describe_mix(fdt, num_classes) != described:
        raise ValueError("a series of this name with other weights")
    return fdt
