"""Which mixings there are, and their options: FDT, MixUp, CutMix, and one of several by chance.

    FDT      K images, weights of a series (W. Fuhl 2021, Algorithm 2)
    MixUp    two images, weights lambda and 1 - lambda, lambda ~ Beta(alpha, alpha) (H. Zhang et al., arXiv 1710.09412)
    CutMix   two images, a box of the second in the first; the weights are their areas (S. Yun et al., arXiv 1905.04899)
    OneOf    each output by one of these, with given odds

What they mean is said by `superposition.draw_plan`, which draws plans of all of them.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Iterable, Mapping
from dataclasses import MISSING, Field, dataclass, field, fields
from functools import lru_cache
from typing import Any, Literal, NamedTuple

import numpy as np
import numpy.typing as npt

from fdt_pipeline.definition.series import Harmonic, Series, checked_weights

MOST_CHOICES = 8  # of OneOf
MOST_ALPHA = 1e300  # beyond it, and below its inverse, quantiles of Beta cannot be computed
_ALL = 2**32  # odds are shares of the values of a random word


def _check_is_number(name: str, value: Any) -> None:
    if isinstance(value, bool) or not isinstance(value, int | float | np.integer | np.floating):
        raise ValueError(f"{name} must be a number, got {value!r}")


def _check_share(name: str, value: Any) -> None:
    _check_is_number(name, value)
    if not 0 <= value <= 1:
        raise ValueError(f"{name} must be in [0, 1], got {value}")


def _checked_count(name: str, value: Any) -> int:
    if isinstance(value, bool) or not hasattr(value, "__index__"):
        raise ValueError(f"{name} must be a whole number, got {value!r}")
    return operator.index(value)


def _check_choice(name: str, value: Any, choices: tuple[str | None, ...]) -> None:
    if not isinstance(value, str | None) or value not in choices:
        wanted = " or ".join(f'"{choice}"' if choice else "None" for choice in choices)
        raise ValueError(f"{name} must be {wanted}, got {value!r}")


def _is_default(mixing: Any, option: Field[Any]) -> bool:
    default = option.default if option.default_factory is MISSING else option.default_factory()
    return bool(getattr(mixing, option.name) == default)


@dataclass(frozen=True, kw_only=True, repr=False)
class _Options:
    """What all mixings have.

    probability: share of the outputs that are mixed; the others are one whole image each.
    label_smoothing: s in [0, 1): targets become (1 - s) target + s / C, mixed or not.
    partners: where the other images come from. "set": the whole set (resident mode); "ring": the last samples read
        (streaming); "batch": the output's own batch (streaming). None: the set or the ring, as the mode has it.
    anchor: "epoch", the first image walks a permutation of the data set, so that each image leads exactly once an epoch
        (in streaming: the sample at the output's own place in the stream); "random", every image is drawn.
    targets: "soft", the weights; "dominant", one-hot of the class of the image with the largest weight, the first of
        those with equal weights.
    unique_classes: images of pairwise different classes, each uniform among the images of the classes that are unused.
        Otherwise every image is uniform among all, so that classes, and images, may repeat, and their weights add up.
    """

    probability: float = 1.0
    label_smoothing: float = 0.0
    partners: Literal["set", "ring", "batch"] | None = None
    anchor: Literal["random", "epoch"] = "epoch"
    targets: Literal["soft", "dominant"] = "soft"
    unique_classes: bool = False

    def __post_init__(self) -> None:
        name = type(self).__name__
        _check_share(f"{name}: probability", self.probability)
        _check_share(f"{name}: label_smoothing", self.label_smoothing)
        for share in ("probability", "label_smoothing"):  # NumPy's numbers may be of 16 bits
            object.__setattr__(self, share, float(getattr(self, share)))
        if self.label_smoothing == 1:
            raise ValueError(f"{name}: label_smoothing must be below 1, where targets would say nothing, got 1")
        _check_choice(f"{name}: anchor", self.anchor, ("random", "epoch"))
        _check_choice(f"{name}: targets", self.targets, ("soft", "dominant"))
        _check_choice(f"{name}: partners", self.partners, ("set", "ring", "batch", None))
        if not isinstance(self.unique_classes, bool):
            raise ValueError(f"{name}: unique_classes must be True or False, got {self.unique_classes!r}")

    def __repr__(self) -> str:
        """What differs from the defaults."""
        given = (
            f"{option.name}={getattr(self, option.name)!r}" for option in fields(self) if not _is_default(self, option)
        )
        return f"{type(self).__name__}({', '.join(given)})"


MOST_IMAGES = 65_536  # of an output where classes may repeat: kMostClasses of plan.h


@dataclass(frozen=True, repr=False, kw_only=True)
class FDT(_Options):
    """Full Distribution Training: K images with the weights F_1 >= .. >= F_K of a series. The defaults are the paper's.

    min_images, max_images: K is uniform on {min_images..max_images}; max_images None means the number of classes.
        Where fewer classes are at hand (a small ring), both are cut to their number, unless classes may repeat.
    series: the weights F_i, any object with `weights(k) -> f64[k]`.
    The other options are those of every mixing; the defaults of anchor and unique_classes are the paper's.
    `FDT(series=Power(2.8), min_images=2)` has the weights of zeta-mixup (K. Abhishek et al., arXiv 2204.03323), which
        sums as many images as a batch has.
    """

    min_images: int = 1
    max_images: int | None = None
    series: Series = field(default_factory=Harmonic)
    anchor: Literal["random", "epoch"] = "random"
    unique_classes: bool = True

    def __post_init__(self) -> None:
        super().__post_init__()
        object.__setattr__(self, "min_images", _checked_count("FDT: min_images", self.min_images))
        if self.max_images is not None:
            object.__setattr__(self, "max_images", _checked_count("FDT: max_images", self.max_images))
        if self.min_images < 1:
            raise ValueError(f"FDT: min_images must be 1 or more, got {self.min_images}")
        if self.max_images is not None and self.max_images < self.min_images:
            raise ValueError(f"FDT: max_images {self.max_images} must not be below min_images {self.min_images}")
        if isinstance(self.series, type) or not isinstance(self.series, Series):
            raise ValueError(f"FDT: series must have a method weights(k) -> f64[k], got {self.series!r}")

    def check_classes(self, num_classes: int) -> None:
        """ValueError unless these options fit a data set of num_classes classes."""
        if self.unique_classes and num_classes < 2:
            raise ValueError(f"FDT mixes images of different classes and needs 2 or more of them, got {num_classes}")
        for name, value in (("min_images", self.min_images), ("max_images", self.max_images)):
            if self.unique_classes and value is not None and value > num_classes:
                raise ValueError(
                    f"FDT: {name} {value} is over the number of classes, {num_classes}: each may be used once, so pass "
                    f"{name}={num_classes} or less"
                )
        most = self.most_images(num_classes)
        if most > max(MOST_IMAGES, num_classes):
            raise ValueError(f"FDT: an output is a sum of up to {MOST_IMAGES:,} images, got {self!r}")
        for k in {*range(1, min(most, 256) + 1), most}:
            checked_weights(self.series, k)

    def most_images(self, num_classes: int) -> int:
        """The largest K where so many classes are at hand."""
        most = self.max_images or max(self.min_images, num_classes)
        return min(most, num_classes) if self.unique_classes else most

    def least_images(self, num_classes: int) -> int:
        """The smallest K where so many classes are at hand, of what is mixed."""
        return min(self.min_images, num_classes) if self.unique_classes else self.min_images


@dataclass(frozen=True, repr=False)
class _Pair(_Options):
    """alpha: of Beta(alpha, alpha), above 0: small, one image outweighs the other; 1, any weight is as likely."""

    alpha: float

    def __post_init__(self) -> None:
        name = type(self).__name__
        _check_is_number(f"{name}: alpha", self.alpha)
        if not 1 / MOST_ALPHA <= self.alpha <= MOST_ALPHA:
            hint = "; for no mixing pass mix=None" if self.alpha == 0 else ""
            raise ValueError(
                f"{name}: alpha must be above 0 and finite (from {1 / MOST_ALPHA:g} to {MOST_ALPHA:g}), got "
                f"{self.alpha}{hint}"
            )
        object.__setattr__(self, "alpha", float(self.alpha))
        super().__post_init__()

    def check_classes(self, num_classes: int) -> None:
        """ValueError unless these options fit a data set of num_classes classes."""
        if self.unique_classes and num_classes < 2:
            raise ValueError(
                f"{type(self).__name__}: unique_classes=True mixes images of different classes and needs 2 or more of "
                f"them, got {num_classes}"
            )

    def most_images(self, num_classes: int) -> int:
        """2, or 1 where there is no other class to be mixed in."""
        return min(2, num_classes) if self.unique_classes else 2

    def least_images(self, num_classes: int) -> int:
        """As many: K of a pair is no range."""
        return self.most_images(num_classes)


@dataclass(frozen=True, repr=False)
class MixUp(_Pair):
    """lambda A + (1 - lambda) B, and the targets likewise; lambda ~ Beta(alpha, alpha), another one for every output.

    alpha: above 0; small, one image outweighs the other; 1, any weight is as likely. A leads: by default each image of
    the set does once an epoch. B is any. The other options are those of every mixing.
    """


@dataclass(frozen=True, repr=False)
class CutMix(_Pair):
    """A with a box of B, at the same place in both; the weights of the targets are the shares of the area.

    alpha: lambda ~ Beta(alpha, alpha), another one for every output. The box has 1 - lambda of the area where it is
    inside the image; its middle is uniform, and what is outside is cut off. A leads: by default each image of the set
    does once an epoch. B is any. The other options are those of every mixing.
    """


Single = FDT | MixUp | CutMix


@dataclass(frozen=True, init=False, repr=False)
class OneOf:
    """Each output is mixed by one of several, chosen by chance: `OneOf({MixUp(0.8): 0.5, CutMix(1.0): 0.5})`.

    choices: mixings, or None for a whole image, and the share of the outputs of each; the shares sum to 1. 1 to 8 of
    them, not None alone, with the same `partners` and `targets`; or pairs, where a mixing cannot be a key.
    """

    choices: tuple[tuple[Single | None, float], ...]

    def __init__(self, choices: Mapping[Any, float] | Iterable[tuple[Any, float]]) -> None:
        pairs = choices.items() if isinstance(choices, Mapping) else choices
        try:
            given = tuple((mixing, share) for mixing, share in pairs)
        except (TypeError, ValueError):
            raise ValueError(
                f"OneOf: expected mixings with their shares, {{MixUp(0.8): 0.5, ..}}, got {choices!r}"
            ) from None
        object.__setattr__(self, "choices", given)
        self._check()

    def __repr__(self) -> str:
        return f"OneOf({{{', '.join(f'{mixing!r}: {float(share)!r}' for mixing, share in self.choices)}}})"

    def _check(self) -> None:
        if not 1 <= len(self.choices) <= MOST_CHOICES:
            raise ValueError(f"OneOf: expected 1 to {MOST_CHOICES} mixings with their shares, got {len(self.choices)}")
        for mixing, share in self.choices:
            if mixing is not None and not isinstance(mixing, Single):
                raise ValueError(f"OneOf: expected FDT, MixUp, CutMix or None, got {mixing!r}")
            _check_share(f"OneOf: the share of {mixing!r}", share)
        total = math.fsum(share for _, share in self.choices)
        if abs(total - 1) > 1e-6:
            missing = "add None for whole images (a dict keeps one of equal mixings: give pairs)"
            hint = missing if total < 0.95 else f"divide them by {total:g}"
            raise ValueError(f"OneOf: the shares must sum to 1, got {total:g}: {hint}")
        mixings = self.mixings()
        if not mixings:
            raise ValueError("OneOf: None alone mixes nothing: pass mix=None")
        for name in ("partners", "targets"):
            values = {getattr(mixing, name) for mixing in mixings}
            if len(values) > 1:
                raise ValueError(
                    f"OneOf: all mixings must have the same {name}, got {', '.join(sorted(map(repr, values)))}: "
                    "give it to each of them or to none"
                )

    def mixings(self) -> list[Single]:
        """Those that are not None."""
        return [mixing for mixing, _ in self.choices if mixing is not None]

    @property
    def partners(self) -> Literal["set", "ring", "batch"] | None:
        """Where the other images come from, for all of the mixings."""
        return self.mixings()[0].partners

    @property
    def targets(self) -> Literal["soft", "dominant"]:
        """What targets are, for all of the mixings."""
        return self.mixings()[0].targets

    def check_classes(self, num_classes: int) -> None:
        """ValueError unless all of them fit a data set of num_classes classes."""
        for mixing in self.mixings():
            mixing.check_classes(num_classes)

    def most_images(self, num_classes: int) -> int:
        """The most images of an output, where so many classes are at hand."""
        return max(mixing.most_images(num_classes) for mixing in self.mixings())


Mix = FDT | MixUp | CutMix | OneOf

# Plain training is the same machine with one image an output, each leading once an epoch.
PLAIN = FDT(max_images=1, anchor="epoch")


class Branch(NamedTuple):
    """What an output is where the random word that decides is in [begin, end): mixed where it is below mixed_end, or
    else one whole image."""

    mixing: Single
    begin: int
    mixed_end: int
    end: int


def branches(mix: Mix) -> list[Branch]:
    """In the order of their words, from 0 to 2**32."""
    choices = mix.choices if isinstance(mix, OneOf) else ((mix, 1.0),)
    upto = [math.fsum(share for _, share in choices[: i + 1]) for i in range(len(choices))]
    ends = [min(round(share * _ALL), _ALL) for share in upto]
    ends[-1] = _ALL
    found, begin = [], 0
    for number, (given, _) in enumerate(choices):  # DALI's conditional execution, which reads this, has no strict zip
        mixing, end = given or PLAIN, ends[number]
        mixed_end = begin + round(mixing.probability * (end - begin))
        found.append(Branch(mixing, begin, mixed_end, end))
        begin = end
    return found


def is_led(mix: Mix) -> bool:
    """Whether outputs have a leader (`superposition.draw_plan`)."""
    return any(branch.mixing.anchor == "epoch" for branch in branches(mix))


QUANTILE_BITS = 12  # of a random word: lambda is one of 4,096 quantiles
LAMBDA_ONE = 1 << 24  # lambda is a multiple of 2**-24, so that it and 1 - lambda are floats of 32 bits


@lru_cache(maxsize=64)
def beta_quantiles(alpha: float) -> npt.NDArray[np.int64]:
    """i64[4096]: quantiles (j + 1/2) / 4096 of Beta(alpha, alpha), in units of 2**-24; the mean of both ends is 1/2."""
    from scipy.special import betaincinv  # takes 0.2 s to import

    n = 1 << QUANTILE_BITS
    lower = betaincinv(alpha, alpha, (np.arange(n // 2) + 0.5) / n)
    units = np.rint(lower * LAMBDA_ONE).astype(np.int64)
    table = np.concatenate([units, LAMBDA_ONE - units[::-1]])
    table.setflags(write=False)
    return table
