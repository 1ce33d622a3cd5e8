"""Which mixing the epochs of a loader have, what it needs, and how a checkpoint says which."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from copy import copy
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import torch

from fdt_pipeline.definition.mixing import FDT, CutMix, Mix, MixUp, OneOf, Single, branches
from fdt_pipeline.definition.series import Geometric, Harmonic, Power, Uniform
from fdt_pipeline.native.arguments import MAX_TABLE_IMAGES, series_argument

MixArgument = Mix | Callable[[int], Mix | None] | None  # one for all epochs, or a function of the epoch

OF_EPOCH = "a function of the epoch"
_SERIES = {series.__name__: series for series in (Harmonic, Power, Geometric, Uniform)}
_PAIRS = {pair.__name__: pair for pair in (MixUp, CutMix)}
_LATER = ("label_smoothing", "partners", "unique_classes")  # options that FDT has not always had
_SERIES_ROWS = 64  # sums of up to so many images tell one series from another


def checked_mix(mix: Any) -> MixArgument:
    """ValueError for what is no mix."""
    if mix is None or isinstance(mix, Mix) or (callable(mix) and not isinstance(mix, type | torch.nn.Module)):
        return mix
    raise ValueError(
        "mix must be an FDT, MixUp, CutMix or OneOf, a function of the epoch that gives one, or None, got "
        f"{_named(mix)}"
    )


def _named(mix: Any) -> str:
    if isinstance(mix, torch.nn.Module):  # such as torchvision's MixUp, which is callable, but of batches
        return f"the torch module {mix!r}"
    return f"the class {mix.__name__}" if isinstance(mix, type) else repr(mix)


def mix_of(mix: MixArgument, epoch: int) -> Mix | None:
    """What that epoch has; None: whole images. ValueError for what a function gives that is no mix, or if it fails."""
    if mix is None or isinstance(mix, Mix):
        return mix
    try:
        given = mix(epoch)
    except Exception as error:
        raise ValueError(
            f"mix({epoch}) failed ({type(error).__name__}: {error}): a mix is an FDT, MixUp, CutMix, OneOf, or a "
            "function of the epoch that gives one"
        ) from error
    if given is not None and not isinstance(given, Mix):
        raise ValueError(f"mix({epoch}) must give an FDT, MixUp, CutMix, OneOf or None, got {_named(given)}")
    return given


def are_equal(one: Mix | None, other: Mix | None) -> bool:
    """False also where it cannot be said, as of two series that hold arrays."""
    try:
        return bool(one == other)
    except Exception:
        return False


def keeps_ring(mix: Mix | None) -> bool:
    """Whether streaming draws outputs from more than their own batch."""
    return mix is not None and mix.partners != "batch"


def mean_images(mix: Mix, num_classes: int) -> float:
    """The expected number of images of an output, where so many classes are at hand."""
    total = 0.0
    for branch in branches(mix):
        least, most = branch.mixing.least_images(num_classes), branch.mixing.most_images(num_classes)
        total += (branch.mixed_end - branch.begin) * (least + most) / 2 + (branch.end - branch.mixed_end)
    return total / 2**32


def classes_wanted(mix: Mix | None, num_classes: int) -> int:
    """How many classes must be at hand so that no output has fewer images than are asked for; 1: any will do."""
    mixed = [branch.mixing for branch in branches(mix) if branch.mixed_end > branch.begin] if mix else []
    return max((one.most_images(num_classes) for one in mixed if one.most_images(1) == 1), default=1)


_BY_FIRST = ' (mode="auto" goes by the mix of epoch 0 alone)'


@dataclass(frozen=True)
class MixContext:
    """What the mixes of a loader must fit. populated: how many of the classes have images; batch_size: of this rank;
    smallest_batch: of any rank in an epoch.
    classes_at_hand: the most that the native engine finds in the set or in its ring; None where it is not used."""

    num_classes: int
    populated: int
    mode: str
    batch_size: int
    smallest_batch: int
    classes_at_hand: int | None = None

    def check(self, mix: Mix, in_batch: bool = False) -> None:
        """ValueError where it does not fit. in_batch: partners=None means those of the batch, but then a last batch of
        one image is left whole."""
        mix.check_classes(self.num_classes)
        if self.populated < 2 and classes_wanted(mix, self.num_classes) > 1:
            raise ValueError(
                f"only one of the {self.num_classes} classes has images, so that {mix!r} would mix none: see how many "
                "each class has with `fdt-pipeline info`, or pass mix=None"
            )
        if mix.partners == "set" and self.mode == "streaming":
            raise ValueError(
                'partners="set" needs the set in memory, but it is streamed: pass mode="resident", which takes images '
                f"of one size, uncropped and without preprocess{_BY_FIRST}, or leave partners out"
            )
        if mix.partners in ("ring", "batch") and self.mode == "resident":
            raise ValueError(
                f'partners="{mix.partners}" needs streaming, but the set is in memory: pass mode="streaming"'
                f"{_BY_FIRST}, or leave partners out"
            )
        if mix.partners == "batch" or (in_batch and self.batch_size == 1 and mix.most_images(self.num_classes) > 1):
            self._check_batches()
        if self.classes_at_hand is not None:
            self._check_tables(mix, self.classes_at_hand if keeps_ring(mix) else self.batch_size)

    @staticmethod
    def _check_tables(mix: Mix, num_classes: int) -> None:
        """ValueError for a series that the native engine cannot be told for images of so many classes."""
        for one in (branch.mixing for branch in branches(mix)):
            if isinstance(one, FDT) and getattr(one.series, "terms", None) is None:
                most = one.most_images(num_classes)
                if most > MAX_TABLE_IMAGES:  # else it would make the table
                    series_argument(one.series, most)

    def _check_batches(self) -> None:
        """ValueError where a batch has no other image to be mixed with."""
        if self.batch_size == 1:
            raise ValueError("images are mixed within their batch, but a batch has one: pass batch_size=2 or more")
        if self.smallest_batch == 1:
            raise ValueError(
                "images are mixed within their batch, but the last batch of a rank has one: pass "
                'last_batch="drop" or "fill"'
            )


class MixSchedule:
    """What epochs that are not begun will have. is_on=False: none of it."""

    def __init__(self, mix: MixArgument, context: MixContext) -> None:
        self.context, self.is_on = context, mix is not None
        self.set(mix)

    def within(self, context: MixContext) -> MixSchedule:
        """The same, for mixes that must fit another context; the one that it has is not checked again."""
        schedule = copy(self)
        schedule.context = context
        return schedule

    def set(self, mix: MixArgument) -> None:
        """ValueError for what is no mix, or is none for this loader."""
        checked = checked_mix(mix)
        if isinstance(checked, Mix):
            self.context.check(checked)
        self.mix = checked

    def of(self, epoch: int) -> Mix | None:
        """What that epoch has; None: whole images."""
        return self.given(epoch) if self.is_on else None

    def given(self, epoch: int) -> Mix | None:
        """The same as if it is on. ValueError for what a function gives that is no mix for this loader."""
        mix = mix_of(self.mix, epoch)
        if mix is not None and mix is not self.mix:
            self.context.check(mix)
        return mix

    def described(self) -> Any:
        """JSON values."""
        return describe_mix(self.mix, self.context.num_classes)


def describe_mix(mix: MixArgument, num_classes: int) -> Any:
    """JSON values that tell two mixings of num_classes classes apart; a series by its weights, so that one without a
    repr of its own is known again in another process.

    An FDT has no name, and options that were added later are said only where they are not the default, so that states
    of before are loaded.
    """
    if mix is None:
        return None
    if isinstance(mix, OneOf):
        return {"one_of": [[describe_mix(choice, num_classes), float(share)] for choice, share in mix.choices]}
    if not isinstance(mix, Single):
        return OF_EPOCH
    said = {option.name: getattr(mix, option.name) for option in fields(mix)}
    for name in _LATER:
        if said[name] == getattr(type(mix), name):
            del said[name]
    if not isinstance(mix, FDT):
        return {"name": type(mix).__name__, **_plain(said)}
    most = min(mix.most_images(num_classes), _SERIES_ROWS)  # never more than a plan has: a table may end there
    rows = [np.asarray(mix.series.weights(k), np.float32) for k in range(1, most + 1)]
    digest = hashlib.sha256(np.concatenate(rows).tobytes()).hexdigest()[:12]
    name = type(mix.series).__name__
    arguments = vars(mix.series) if type(mix.series) is _SERIES.get(name) else {}
    return _plain(said) | {"series": {"name": name, "weights": digest} | _plain(arguments)}


def _plain(values: Mapping[str, Any]) -> dict[str, Any]:
    """Numbers of NumPy as Python's."""
    return {name: value.item() if isinstance(value, np.generic) else value for name, value in values.items()}


def described_mix(described: Any, context: MixContext, own: Callable[[], MixArgument]) -> MixArgument:
    """The mix that was described so: made again, or the loader's own if that is it. ValueError where it is neither, or
    does not fit."""
    if described is None:
        return None
    try:
        mix: MixArgument = _made(described)
    except (AttributeError, KeyError, TypeError, ValueError):  # of another series, a function, or no description
        mix = None
    if mix is None or describe_mix(mix, context.num_classes) != described:  # its series may have other weights
        mix = own()
    if describe_mix(mix, context.num_classes) != described:
        raise ValueError(
            f"the state was taken with a mix that cannot be made of it, {described!r}: set loader.mix to that mix, and "
            "load the state then"
        )
    if isinstance(mix, Mix):
        context.check(mix)
    return mix


def _made(described: Mapping[str, Any]) -> Mix:
    """Some error where it is not the description of a mixing, with series of ours."""
    if "one_of" in described:
        return OneOf([(choice and _made(choice), share) for choice, share in described["one_of"]])
    if "name" in described:
        return _PAIRS[described["name"]](**{name: value for name, value in described.items() if name != "name"})
    arguments = {name: value for name, value in described["series"].items() if name not in ("name", "weights")}
    return FDT(**{**described, "series": _SERIES[described["series"]["name"]](**arguments)})
