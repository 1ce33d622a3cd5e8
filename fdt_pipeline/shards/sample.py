"""The members of a sample: an image, then its label in decimal."""

from __future__ import annotations

from collections.abc import Sequence

from ..sources.source import U8
from .codec import EXTENSIONS, decode
from .index import Member

Buffer = bytes | memoryview


def check_members(members: Sequence[Member], data: Sequence[Buffer], encoding: str) -> int:
    """The label; ValueError unless there is an image by its extension, and a label."""
    extensions = [member.extension for member in members]
    if len(extensions) != 2 or extensions[0] not in EXTENSIONS[encoding] or extensions[1] != "cls":
        names = ", ".join(member.name for member in members)
        raise ValueError(f"expected the members .{' or .'.join(EXTENSIONS[encoding])} and .cls, got {names}")
    return parse_label(data[1])


def parse_label(data: Buffer) -> int:
    text = bytes(data)
    try:
        return int(text)
    except ValueError:
        raise ValueError(f"the .cls member holds {text[:40]!r}, expected a class number") from None


def parse_sample(tar: memoryview, members: Sequence[Member], encoding: str, channels: int) -> tuple[U8, int]:
    """(image u8[h w channels], label) of the bytes of a whole tar; a raw image is a view of them."""
    data = [tar[member.offset : member.offset + member.size] for member in members]
    label = check_members(members, data, encoding)
    return decode(data[0], members[0].extension, channels), label
