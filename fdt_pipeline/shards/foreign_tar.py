"""One pass over a webdataset tar of any origin: its index, its hash, and what its samples are or why they are none."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from typing import BinaryIO, NamedTuple, cast

import numpy as np
from PIL import Image

from ..sources.image_pixels import GRAY_MODES, is_turned, opened_file, pixels_as_stored
from ..sources.source import I64, few
from .index import VERSION, Member, key_of, readable
from .indexing import escaped
from .labels import Label, LabelField
from .stored import IMAGE_EXTENSIONS, last_part, members_of
from .tar import pack_checksums, sample_checksum, tar_entries

_BLOCK = 1 << 20
_FORMATS = ("JPEG", "MPO", "PNG", "WEBP")
_AGAIN = (
    "its key occurs once more: keys must differ, and the members of a sample lie side by side (tar --sort=name does it)"
)


class BrokenTarError(ValueError):
    """A file that is no tar, or not a whole one."""


class LeftOut(NamedTuple):
    """A sample that is not taken: its place among all of its tar, its key, and why."""

    number: int
    key: str
    reason: str


@dataclass
class ForeignTar:
    """What a tar holds. keys, lines (of DALI's index), labels and checksums are of its good samples, in its order.
    gray and color: of the images of this kind, how many pixels have which value, i64[1 256] and i64[3 256]; zeros where
    nothing was decoded. sizes: (height, width), up to two different ones. num_turned: images that EXIF would turn.
    unlabelled: the first sample that has an image and no label."""

    num_bytes: int
    sha256: str = ""
    keys: list[str] = field(default_factory=list)
    lines: list[str] = field(default_factory=list)
    labels: list[Label] = field(default_factory=list)
    checksums: list[int] = field(default_factory=list)
    left_out: list[LeftOut] = field(default_factory=list)
    extensions: Counter[str] = field(default_factory=Counter)
    sizes: set[tuple[int, int]] = field(default_factory=set)
    num_gray: int = 0
    num_turned: int = 0
    num_labelled: int = 0
    unlabelled: LeftOut | None = None
    gray: I64 = field(default_factory=lambda: np.zeros((1, 256), np.int64))
    color: I64 = field(default_factory=lambda: np.zeros((3, 256), np.int64))

    @property
    def num_groups(self) -> int:
        """Of samples, those that are left out among them."""
        return len(self.keys) + len(self.left_out)

    def pixel_counts(self, channels: int) -> I64:
        """i64[c 256]: how many pixels have which value; gray images among color have theirs in all three channels."""
        return self.gray if channels == 1 else self.color + self.gray

    @property
    def index(self) -> bytes:
        return "\n".join([f"{VERSION} {len(self.lines)}", *self.lines, ""]).encode("ascii")

    @property
    def crc32(self) -> str:
        return pack_checksums(self.checksums)


class Hashed:
    """A file that is read once, from its beginning to its end, and hashed on the way."""

    def __init__(self, file: BinaryIO) -> None:
        self._file, self._hash, self._at = file, hashlib.sha256(), 0

    def read(self, num_bytes: int) -> bytes:
        data = self._file.read(num_bytes)
        self._hash.update(data)
        self._at += len(data)
        return data

    def seek(self, offset: int) -> None:
        """Forward only."""
        while self._at < offset and self.read(min(offset - self._at, _BLOCK)):
            pass

    def sha256(self) -> str:
        """The hash of the whole file, which is read to its end."""
        while self.read(_BLOCK):
            pass
        return self._hash.hexdigest()


def read_foreign_tar(
    file: BinaryIO, num_bytes: int, label: LabelField, decode: bool, left_out: Collection[int] = ()
) -> ForeignTar:
    """Within `quiet`. decode: the images whole, and not their headers alone. left_out: the numbers of samples that are
    not to be looked at. One sample is in memory at a time.

    BrokenTarError, and ValueError for a sample with two images.
    """
    tar, hashed, seen = ForeignTar(num_bytes), Hashed(file), set[str]()
    groups = groupby(_contents(hashed, num_bytes, label), key=lambda content: key_of(content.member.name))
    for number, (key, contents) in enumerate(groups):
        if number in left_out:
            tar.left_out.append(LeftOut(number, readable(key), "left out before"))
            seen.add(key)
        elif key in seen:
            tar.left_out.append(LeftOut(number, readable(key), _AGAIN))
        else:
            seen.add(key)
            _add(tar, number, readable(key), list(contents), label, decode)
    tar.sha256 = hashed.sha256()
    return tar


class _Content(NamedTuple):
    """data: empty unless it may be an image or a label."""

    member: Member
    data: bytes


def _contents(file: Hashed, num_bytes: int, label: LabelField) -> Iterator[_Content]:
    """The members with an extension; not hidden files."""
    wanted = IMAGE_EXTENSIONS | {label.member}
    try:
        for entry in tar_entries(cast(BinaryIO, file), num_bytes):
            name = escaped(entry.name).replace(" ", "\\040")  # a blank would end the field in the index
            base = name.rpartition("/")[2]
            extension = base.partition(".")[2]
            if not base.startswith(".") and extension:
                data = file.read(entry.size) if last_part(extension) in wanted else b""
                yield _Content(Member(extension, entry.offset, entry.size, name), data)
    except ValueError as error:
        raise BrokenTarError(readable(str(error))) from None


def _add(tar: ForeignTar, number: int, key: str, contents: list[_Content], label: LabelField, decode: bool) -> None:
    extensions = [content.member.extension for content in contents]
    images, labels = members_of(extensions, IMAGE_EXTENSIONS), members_of(extensions, (label.member,))
    if len(images) > 1:
        names = few([f".{readable(extensions[image])}" for image in images])
        raise ValueError(
            f"sample {key}: which of {names} is the image? Expected one member that is called .jpg, .jpeg, .png or "
            ".webp; name the others otherwise, such as .mask.png. A key ends at the first dot of a name: if these are "
            "several samples, write their keys without dots"
        )
    try:
        [image] = _the(images, "image", extensions)
        value = _label(tar, number, key, contents, labels, label)
        _look_at(contents[image].data, tar, decode)
    except ValueError as error:
        tar.left_out.append(LeftOut(number, key, str(error)))
        return
    tar.keys.append(key)
    tar.lines.append(" ".join(" ".join(map(str, content.member)) for content in contents))
    tar.labels.append(value)
    tar.checksums.append(sample_checksum((contents[image].data, contents[labels[0]].data)))
    tar.extensions[extensions[image]] += 1


def _label(
    tar: ForeignTar, number: int, key: str, contents: list[_Content], labels: list[int], label: LabelField
) -> Label:
    try:
        [text] = _the(labels, f".{label.member}", [content.member.extension for content in contents])
        value = label.value(contents[text].data)
    except ValueError as error:
        tar.unlabelled = tar.unlabelled or LeftOut(number, key, str(error))
        raise
    tar.num_labelled += 1
    return value


def _the(numbers: list[int], what: str, extensions: Sequence[str]) -> list[int]:
    if len(numbers) != 1:
        shown = few([f".{readable(extension)}" for extension in extensions])
        raise ValueError(f"{'two' if numbers else 'no'} {what} among its members ({shown})")
    return numbers


def _look_at(data: bytes, tar: ForeignTar, decode: bool) -> None:
    """Count an image. ValueError if it is none that every DALI decodes alike."""
    with opened_file(data) as image:
        fault, turned, is_gray = _fault(image), is_turned(image), image.mode in GRAY_MODES
        size = image.height, image.width
        counts = _histogram(image, 1 if is_gray else 3) if decode and not fault else 0
    if fault:
        raise ValueError(fault)
    if is_gray:
        tar.gray += counts
    else:
        tar.color += counts
    tar.num_gray += is_gray
    tar.num_turned += turned
    if len(tar.sizes) < 2:
        tar.sizes.add(size)


def _fault(image: Image.Image) -> str:
    """What keeps DALI, of one version or the other, from decoding it as Pillow does."""
    if image.format not in _FORMATS:
        return f"it is a {image.format}: expected a JPEG, a PNG or a WebP"
    if image.format == "WEBP" and (getattr(image, "is_animated", False) or "exif" in image.info):
        return "a WebP of several frames or with EXIF, which DALI does not decode: save it without"
    return ""


def _histogram(image: Image.Image, channels: int) -> I64:
    """i64[c 256]. Pillow counts pixels three times faster than an array of them is made and summed."""
    if image.mode != ("L" if channels == 1 else "RGB"):
        pixels = pixels_as_stored(image, channels)
        image = Image.fromarray(pixels[..., 0] if channels == 1 else pixels)
    return np.array(image.histogram(), np.int64).reshape(channels, 256)
