"""A sample as it is stored: where its image and its label lie in the tar, which label it is, which pixels it has.

Of our own shards a sample is an image and a .cls, side by side. Of tars of other programs it is among whatever else
they keep; which of its members are image and label is a function of their extensions alone (`member_of`).
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from ..sources.image_pixels import opened_file, pixels_as_stored, quiet
from ..sources.source import I64, U8
from .codec import EXTENSIONS, decode
from .index import VERSION, IndexColumns, index_columns, parse_label, read_labels
from .labels import ClassNumbers, LabelField, label_field
from .manifest import Manifest, Shard

IMAGE_EXTENSIONS = frozenset({"jpg", "jpeg", "png", "webp"})


def last_part(extension: str) -> str:
    """ "jpg" of "seg.JPG"."""
    return extension.rpartition(".")[2].lower()


def members_of(extensions: Sequence[str], kinds: Collection[str]) -> list[int]:
    """The numbers of a sample's members of these kinds: those whose extension is one of them, in any case; if there are
    none, those whose extension ends in one, as "seg.png" does."""
    whole = [number for number, extension in enumerate(extensions) if extension.lower() in kinds]
    return whole or [number for number, extension in enumerate(extensions) if last_part(extension) in kinds]


@dataclass(frozen=True)
class StoredForm:
    """How the samples of a set are stored. in_place: in tars of other programs; labels: where theirs are."""

    in_place: bool
    encoding: str
    channels: int
    classes: tuple[str, ...]
    label_field: LabelField

    @staticmethod
    def of(manifest: Manifest) -> StoredForm:
        return StoredForm(
            manifest.in_place, manifest.encoding, manifest.channels, manifest.classes, label_field(manifest.labels)
        )

    def columns(self, index: bytes, shard: Shard) -> IndexColumns:
        """The index of a shard. ValueError if it is none of samples of this set."""
        text = index.decode("ascii")
        if self.in_place:
            columns = _columns_in_place(text, self.label_field.member, shard.num_bytes)
        else:
            columns = index_columns(text, EXTENSIONS[self.encoding], shard.num_bytes)
        if len(columns.names) != shard.num_samples:
            raise ValueError(f"its index has {len(columns.names)} samples, expected {shard.num_samples}")
        return columns

    def labels(self, data: U8, samples: IndexColumns) -> tuple[I64, dict[int, str]]:
        """(i64[n], number -> what is wrong with its label). data: the tar's bytes from the first sample's begin on."""
        if not self.in_place:
            return read_labels(data, samples, len(self.classes))
        labels, bad = np.full(len(samples.names), -1, np.int64), {}
        begins = samples.label_offsets - samples.begins[0]
        for number, (begin, size) in enumerate(zip(begins.tolist(), samples.label_sizes.tolist(), strict=True)):
            try:
                labels[number] = self.label(data[begin : begin + size].tobytes())
            except ValueError as error:
                bad[number] = str(error)
        return labels, bad

    def label(self, data: bytes) -> int:
        """The number of the class that a label's member says. ValueError if it says none."""
        return self._class_numbers(self.label_field.value(data)) if self.in_place else parse_label(data)

    def pixels(self, data: bytes | memoryview, extension: str) -> U8:
        """u8[h w c], as the loader gives it. ValueError if it is no such image."""
        if not self.in_place:
            return decode(data, extension, self.channels)
        with quiet(), opened_file(bytes(data)) as image:
            return pixels_as_stored(image, self.channels)

    @cached_property
    def _class_numbers(self) -> ClassNumbers:
        return ClassNumbers(self.classes)


def _columns_in_place(text: str, label: str, num_bytes: int) -> IndexColumns:
    head, _, rest = text.partition("\n")
    lines = rest.split("\n")[:-1]
    if head != f"{VERSION} {len(lines)}":
        raise ValueError(f"expected {VERSION!r} and the number of lines that follow, got {head[:40]!r}, {len(lines)}")
    members: list[list[str]] = []  # EXTENSION OFFSET SIZE NAME of an image, then of its label, and so on
    for line in lines:
        words = line.split(" ")
        for kinds in (IMAGE_EXTENSIONS, (label,)):
            found = members_of(words[0::4], kinds)
            if len(words) % 4 or len(found) != 1:
                raise ValueError(f"expected one image and one .{label} in each line, got {line[:80]}")
            members.append(words[4 * found[0] : 4 * found[0] + 4])
    offsets, sizes = (np.array([int(member[place]) for member in members], np.int64) for place in (1, 2))
    extensions, names = ([member[place] for member in members[0::2]] for place in (0, 3))
    columns = IndexColumns(offsets[0::2], sizes[0::2], offsets[1::2], sizes[1::2], extensions, names)
    bounds = np.stack([columns.begins, columns.ends], axis=1).ravel()
    if (sizes < 0).any() or (np.append(0, bounds) > np.append(bounds, num_bytes)).any():
        raise ValueError(f"expected each sample behind the one before, within the tar's {num_bytes} bytes")
    return columns
