"""A data set of another library that has a length and gives [i]: torchvision's, `datasets.Dataset`, or one's own."""

from __future__ import annotations

import operator
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from .arrays import checked_labels
from .image_pixels import GRAY_MODES, image_pixels
from .source import Sample


class DatasetSource:
    """A map-style data set: sample i is (PIL image, int), or a dict of the two with the keys image and label.

    labels: by default the column "label" of a `datasets.Dataset`, else `dataset.targets`, else every sample is asked
    for once to know them. classes: by default `dataset.classes`, else the names of the feature "label", else numbers.
    channels, 1 or 3: by default those of sample 0. In a set of 3, gray images become RGB; in a set of 1, others are
    refused. Workers get a pickled copy of the data set.
    """

    kind = "dataset"
    shape = None  # known when all are decoded

    def __init__(
        self,
        dataset: Any,
        labels: npt.NDArray[np.integer] | Sequence[int] | None = None,
        classes: Sequence[str] | None = None,
        *,
        channels: int | None = None,
        split: str | None = None,
    ) -> None:
        where = f"data set {type(dataset).__name__}"
        if not hasattr(dataset, "__len__") or not hasattr(dataset, "__getitem__"):
            raise ValueError(f"{where}: expected len() and [i]; shard a map-style data set, not an iterable one")
        if channels not in (None, 1, 3):
            raise ValueError(f"{where}: channels must be 1 or 3, got {channels}")
        self._dataset, self._where, self.split = dataset, where, split
        self.labels, self.classes = checked_labels(self._labels(labels), self._class_names(classes), split, where)
        if len(self) != len(dataset):
            raise ValueError(f"{where}: expected one label a sample, got {len(self)} for {len(dataset)} samples")
        self.channels = channels or (1 if self._pair(0)[0].mode in GRAY_MODES else 3)

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> Sample:
        """ValueError if it cannot be decoded, or does not have the label that `labels` says."""
        place = range(len(self))[index]
        image, label = self._pair(place)
        where = f"{self._where}: sample {place}"
        if label != self.labels[place]:
            raise ValueError(f"{where}: expected label {self.labels[place]} as in the labels of the whole, got {label}")
        if self.channels == 1 and image.mode not in GRAY_MODES:
            raise ValueError(f"{where}: expected a gray image as sample 0 is, got {image.mode}; set channels=3")
        return Sample(image_pixels(image, self.channels), label, str(place))

    def _labels(self, labels: npt.NDArray[np.integer] | Sequence[int] | None) -> npt.NDArray[np.integer]:
        if labels is not None:
            return np.asarray(labels)
        if self._label_feature is not None:
            return np.asarray(self._dataset["label"][:])  # of a lazy column, too
        if hasattr(self._dataset, "targets"):
            return np.asarray(self._dataset.targets)
        return np.array([self._pair(index)[1] for index in range(len(self._dataset))], np.int64)

    def _class_names(self, classes: Sequence[str] | None) -> Sequence[str] | None:
        places = ((self._dataset, "classes"), (self._label_feature, "names"))
        known = [classes, *(getattr(place, name, None) for place, name in places)]
        names = next((names for names in known if names is not None), None)
        # torchvision's ImageNet has tuples of synonyms.
        return names and [", ".join(name) if isinstance(name, tuple) else name for name in names]

    @property
    def _label_feature(self) -> Any:
        """What a `datasets.Dataset` says of its labels."""
        features = getattr(self._dataset, "features", None)
        return features.get("label") if isinstance(features, dict) else None

    def _pair(self, index: int) -> tuple[Image.Image, int]:
        """Image, decoded, and label. ValueError if it is anything else, or broken."""
        where = f"{self._where}: sample {index}"
        try:
            sample = self._dataset[index]
            image, label = (sample["image"], sample["label"]) if isinstance(sample, dict) else sample
            if isinstance(image, Image.Image):
                image.load()
                return image, operator.index(label)
        except MemoryError:
            raise
        except Exception as error:  # whatever broken files make of the data set's own code
            if isinstance(error, OSError) and error.errno is not None:  # a disk's
                raise
            raise ValueError(f"{where}: expected (PIL image, int) or a dict of image and label: {error!r}") from error
        raise ValueError(f"{where}: expected a PIL image, got {type(image).__name__}; take off the transform")
