"""Whole images: every one of the set once an epoch, with its own label."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image

from fdt_pipeline.shards import read_shard

from ..errors import RefusedError
from ..task import Task
from .epoch import Epoch, Key, hashes, thumbnails

STRANGE = 0.01  # share of thumbnails that may be nearest to another image's: near duplicates
FAR = 12.0  # grey levels between thumbnails, root mean square: more than decoders and filters differ by


class Reference:
    """The images of a set, to be found again in what a contender gives.

    Where nothing is lost on the way they are compared bit by bit; JPEGs and resized images, which decoders and filters
    see a little differently, as thumbnails.
    """

    def __init__(self, task: Task) -> None:
        self.exact = task.manifest.encoding in ("raw", "png", "webp") and task.size in (None, _size(task))
        self.key: Key = hashes if self.exact else thumbnails
        keys: list[Any] = []
        labels: list[int] = []
        for shard in task.manifest.shards:
            for _, image, label in read_shard(task.shards, task.manifest, shard):
                keys += self.key(_planes(image, task.shape))
                labels.append(label)
        self._keys, self._labels = keys, np.array(labels)

    def check(self, epoch: Epoch) -> None:
        """RefusedError unless the epoch has no image twice, and each with its label."""
        labels = epoch.all_targets.argmax(1)
        if not np.isclose(epoch.all_targets.max(1), 1).all():
            raise RefusedError("targets must be whole classes, as it does not mix")
        if self.exact:
            self._check_exact(epoch.keys, labels)
        else:
            self._check_nearest(np.stack(epoch.keys), labels)

    def _check_exact(self, keys: list[Any], labels: npt.NDArray[np.int64]) -> None:
        images = Counter(self._keys)
        if strange := sum((key not in images) for key in keys):
            raise RefusedError(f"{strange} of {len(keys)} images are not in the set, with augmentation off")
        if twice := sum((Counter(keys) - images).values()):
            raise RefusedError(f"{twice} of {len(keys)} images come more often than once an epoch")
        known = Counter(zip(self._keys, self._labels.tolist(), strict=True))
        if wrong := sum((Counter(zip(keys, labels.tolist(), strict=True)) - known).values()):
            raise RefusedError(f"{wrong} of {len(keys)} images have a label that is not theirs")

    def _check_nearest(self, keys: npt.NDArray[np.float32], labels: npt.NDArray[np.int64]) -> None:
        nearest, distances = _nearest(keys, np.stack(self._keys))
        n = len(keys)
        if strange := int((distances > FAR).sum()):
            raise RefusedError(f"{strange} of {n} images are not in the set, with augmentation off")
        if (twice := n - len(np.unique(nearest))) > STRANGE * n:
            raise RefusedError(f"{twice} of {n} images come more often than once an epoch")
        if (wrong := int((self._labels[nearest] != labels).sum())) > STRANGE * n:
            raise RefusedError(f"{wrong} of {n} images have a label that is not theirs")


def _nearest(
    found: npt.NDArray[np.float32], known: npt.NDArray[np.float32]
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float64]]:
    """Index of the nearest of `known`, and the root mean square of the difference to it."""
    squares = (found.astype(np.float64) ** 2).sum(1)[:, None] + (known.astype(np.float64) ** 2).sum(1)
    squares -= 2 * found.astype(np.float64) @ known.T.astype(np.float64)
    nearest = squares.argmin(1)
    return nearest, np.sqrt(np.maximum(squares[np.arange(len(found)), nearest], 0) / found.shape[1])


def _size(task: Task) -> tuple[int, int] | None:
    return task.manifest.shape[:2] if task.manifest.shape else None


def _planes(image: npt.NDArray[np.uint8], shape: tuple[int, int, int]) -> torch.Tensor:
    """u8[h w c] -> f32[1 c h w], resized to the shape that the task has."""
    c, h, w = shape
    if image.shape[:2] != (h, w):
        whole = Image.fromarray(image[..., 0] if c == 1 else image).resize((w, h), Image.Resampling.BILINEAR)
        image = np.asarray(whole).reshape(h, w, c)
    return torch.from_numpy(np.array(image)).permute(2, 0, 1)[None].float()
