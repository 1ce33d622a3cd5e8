"""What an honest epoch is: whole images once each, mixed ones by their law, targets that say what is in an image."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from scipy import stats

from fdt_pipeline.shards import read_shard

from .subsets import levels
from .task import Mixing, RefusedError, Task

F32 = npt.NDArray[np.float32]
Key = Callable[[torch.Tensor], list[Any]]

THUMBNAIL = 8  # pixels a side
STRANGE = 0.01  # share of thumbnails that may be nearest to another image's: near duplicates
FAR = 12.0  # grey levels between thumbnails, root mean square: more than decoders and filters differ by
TOLERANCE = 0.1  # grey levels, where nothing is lost: float32 leaves 0.001
LOSSY = 3.0  # the same for JPEG
DISTINCT = 0.9  # share of mixed outputs that must differ: a sum of one image may come again
ALPHA = 1e-9  # odds that an honest contender is refused by a test
BINS = 10
ENOUGH = 64  # outputs of a batch that show all classes it was drawn from
SIGMAS = 7.0
PAIRS = 0.25  # of MixUp's outputs mix two classes, at least


def exact_hashes(pixels: torch.Tensor) -> list[bytes]:
    """Keys of sums as they are: two that differ by a rounding have different ones."""
    return [hashlib.blake2b(image.tobytes(), digest_size=16).digest() for image in pixels.numpy()]


def hashes(pixels: torch.Tensor) -> list[bytes]:
    """Keys of pixels to the nearest quarter: roundings do not change them, a wrong mean or std does."""
    return exact_hashes((4 * pixels).round().to(torch.int16))


def thumbnails(pixels: torch.Tensor) -> list[F32]:
    """Keys f32[c x THUMBNAIL x THUMBNAIL], which another decoder or another filter hardly changes."""
    return list(torch.nn.functional.adaptive_avg_pool2d(pixels, THUMBNAIL).flatten(1).numpy())


class Reference:
    """The images of a set, to be found again in what a contender gives.

    Where nothing is lost on the way they are compared bit by bit; JPEGs and resized images, which decoders and filters
    see a little differently, as thumbnails.
    """

    def __init__(self, task: Task) -> None:
        manifest = task.manifest
        is_resized = task.size is not None and (manifest.shape is None or task.size != manifest.shape[:2])
        self._exact = manifest.encoding in ("raw", "png", "webp") and not is_resized
        self.key: Key = hashes if self._exact else thumbnails
        keys: list[Any] = []
        labels: list[int] = []
        for shard in manifest.shards:
            for _, image, label in read_shard(task.shards, manifest, shard):
                keys += self.key(_planes(image, task.shape))
                labels.append(label)
        self._keys, self._labels = keys, np.array(labels)

    def check(self, keys: list[Any], targets: F32) -> None:
        """RefusedError unless an epoch has no image twice, and each with its label."""
        if not np.isclose(targets.max(1), 1).all():
            raise RefusedError("targets must be whole classes, as it does not mix")
        n, labels = len(keys), targets.argmax(1)
        strange, twice, wrong = self._exact_faults(keys, labels) if self._exact else self._near_faults(keys, labels)
        tolerated = 0 if self._exact else STRANGE * n
        if strange:
            raise RefusedError(f"{strange} of {n} images are not in the set, with augmentation off")
        if twice > tolerated:
            raise RefusedError(f"{twice} of {n} images come more often than once an epoch")
        if wrong > tolerated:
            raise RefusedError(f"{wrong} of {n} images have a label that is not theirs")

    def _exact_faults(self, keys: list[Any], labels: npt.NDArray[np.int64]) -> tuple[int, int, int]:
        """Numbers of images that are not in the set, that come twice, and that have a wrong label."""
        images, known = Counter(self._keys), Counter(zip(self._keys, self._labels.tolist(), strict=True))
        strange = sum(key not in images for key in keys)
        twice = sum((Counter(keys) - images).values())
        return strange, twice, sum((Counter(zip(keys, labels.tolist(), strict=True)) - known).values())

    def _near_faults(self, keys: list[Any], labels: npt.NDArray[np.int64]) -> tuple[int, int, int]:
        """The same numbers, by the nearest thumbnail in root mean squares."""
        found, known = np.stack(keys).astype(np.float64), np.stack(self._keys).astype(np.float64)
        squares = (found**2).sum(1)[:, None] + (known**2).sum(1) - 2 * found @ known.T
        nearest = squares.argmin(1)
        distances = np.sqrt(np.maximum(squares[np.arange(len(found)), nearest], 0) / found.shape[1])
        twice = len(found) - len(np.unique(nearest))
        return int((distances > FAR).sum()), twice, int((self._labels[nearest] != labels).sum())


def _planes(image: npt.NDArray[np.uint8], shape: tuple[int, int, int]) -> torch.Tensor:
    """u8[h w c] -> f32[1 c h w], resized to the shape that the task has."""
    c, h, w = shape
    if image.shape[:2] != (h, w):
        whole = Image.fromarray(image[..., 0] if c == 1 else image).resize((w, h), Image.Resampling.BILINEAR)
        image = np.asarray(whole).reshape(h, w, c)
    return torch.from_numpy(np.array(image)).permute(2, 0, 1)[None].float()


def check_agreement(means: F32, targets: F32, flatness: float, encoding: str) -> None:
    """RefusedError unless flat images whose colour encodes their class are mixed as their targets say.

    means: f32[n c], 0..255; flatness: how far any pixel is from its image's mean.
    """
    tolerance = LOSSY if encoding in ("jpg", "keep") else TOLERANCE
    expected = targets @ levels(means.shape[1])
    off = np.abs(means - expected).max(1)
    if (off > tolerance).any():
        worst = int(off.argmax())
        raise RefusedError(
            f"{(off > tolerance).sum()} of {len(means)} images are not what their targets say: of flat images one has "
            f"the colour {np.round(means[worst], 1).tolist()}, its target {np.round(expected[worst], 1).tolist()}"
        )
    if flatness > tolerance:
        raise RefusedError(f"flat images come out with pixels {flatness:.3g} from their mean, augmentation off")


def check_law(keys: list[Any], batches: list[F32], mixing: Mixing, samples_per_class: Sequence[int]) -> None:
    """RefusedError unless outputs differ and their classes are drawn as the method says. batches: their targets."""
    if len(set(keys)) < DISTINCT * len(keys):
        raise RefusedError(f"only {len(set(keys))} of {len(keys)} outputs differ")
    frequencies = np.array(samples_per_class) / sum(samples_per_class)
    even = np.full_like(frequencies, 1 / len(frequencies))
    # In a batch of an uneven set the weights depend on what it happens to hold.
    if mixing != "fdt in the batch" or np.allclose(frequencies, even):
        _check_mass(np.concatenate(batches), frequencies if mixing == "mixup" else even)
    if mixing == "mixup":
        _check_pairs(np.concatenate(batches))
    else:
        _check_counts(batches, whole_set=mixing == "fdt")


def _check_mass(targets: F32, shares: npt.NDArray[np.float64]) -> None:
    """shares: the mean of each class's weight; its variance is less than that, as no weight exceeds 1."""
    expected = len(targets) * shares
    mass = targets.sum(0, dtype=np.float64)
    off = np.abs(mass - expected) / (SIGMAS * np.sqrt(expected) + 1)
    worst = int(off.argmax())
    if off[worst] > 1:
        raise RefusedError(
            f"class {worst} has a weight of {mass[worst]:.4g} in {len(targets)} outputs, expected {expected[worst]:.4g}"
        )


def _check_pairs(targets: F32) -> None:
    counts = (targets > 0).sum(1)
    if counts.max() > 2:
        raise RefusedError(f"MixUp mixes two images, got a target with {counts.max()} classes")
    if targets.shape[1] > 1 and (counts == 2).mean() < PAIRS:
        raise RefusedError(f"only {(counts == 2).mean():.1%} of the outputs mix two classes")


def _check_counts(batches: list[F32], whole_set: bool) -> None:
    """K, the number of classes in a sum, is uniform on 1..D.

    D is the number of classes that could be drawn: those of the set, or of the images that the outputs of a batch were
    made from, which is seen in the batch itself. K lies in (0, D], spread evenly within its step.
    """
    rng, places = np.random.default_rng(0), [np.empty(0)]
    for targets in batches:
        if whole_set or len(targets) >= ENOUGH:
            present = targets > 0
            most = targets.shape[1] if whole_set else int(present.any(0).sum())
            places.append((present.sum(1) - rng.random(len(targets))) / most)
    values = np.concatenate(places)
    if len(values) < 5 * BINS:
        return
    counts = np.histogram(values, BINS, (0, 1))[0]
    if stats.chisquare(counts).pvalue < ALPHA:
        raise RefusedError(
            f"the number of classes in a sum must be uniform on 1..D, got {counts.tolist()} in {BINS} equal parts of it"
        )
