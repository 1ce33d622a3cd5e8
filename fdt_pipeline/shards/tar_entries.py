"""The members of a tar of any origin, by their headers alone: contents are skipped, so 10 GB take milliseconds.

USTAR, the older forms, GNU (long names, sizes over 8 GiB) and PAX. tarfile takes a broken header for the end of the
tar, and thus half of a damaged tar for the whole; here everything up to the end mark must be right.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import BinaryIO, NamedTuple

from .tar import BLOCK

_COMPRESSED = {b"\x1f\x8b": "gzip", b"BZh": "bzip2", b"\xfd7zX": "xz", b"\x28\xb5\x2f\xfd": "zstd"}
_REGULAR, _WITHOUT_CONTENT, _FOR_THE_NEXT, _SKIPPED = b"0\0", b"123456", b"LKxg", b"DV"
_MAX_EXTENDED = 1 << 20  # a name has at most 4 KB; a tar that says 5 GB of one is broken


class Entry(NamedTuple):
    """A regular file: bytes [offset, offset + size) of the tar."""

    name: bytes
    offset: int
    size: int

    @property
    def shown(self) -> str:
        return self.name.decode("utf-8", "replace")


def tar_entries(file: BinaryIO) -> Iterator[Entry]:
    """The regular files of a tar, in its order; links and folders are left out. ValueError, saying where, unless the
    tar is whole: every header right, every content there, an end mark, and nothing after it."""
    for kind, entry, extended in _members(file):
        if kind in _WITHOUT_CONTENT + _SKIPPED or entry.name.endswith(b"/"):
            continue
        if kind not in _REGULAR:
            raise ValueError(f"{entry.shown} is neither a file nor a link nor a folder: kind {kind!r}")
        if any(keyword.startswith("GNU.sparse") for keyword in extended):
            raise ValueError(f"{entry.shown} is stored sparse, and not in one piece; make the tar without --sparse")
        yield entry


def _members(file: BinaryIO) -> Iterator[tuple[bytes, Entry, dict[str, bytes]]]:
    """(kind, entry, PAX keywords) of every member; what only describes the next one is joined with it."""
    num_bytes = file.seek(0, os.SEEK_END)
    file.seek(0)
    _check_plain(file.read(4))
    offset, last, extended = 0, "its beginning", dict[str, bytes]()
    while header := _header(file, offset, num_bytes, last):
        kind, entry = header[156:157], _entry(header, offset, extended)
        if entry.offset + entry.size > num_bytes:
            raise ValueError(f"cut at byte {num_bytes}, in {entry.shown}")
        if kind in _FOR_THE_NEXT:
            extended |= _extended(file, kind, entry)
        else:
            yield kind, entry, extended
            extended, last = {}, entry.shown
        offset = entry.offset + -(-entry.size // BLOCK) * BLOCK
    _check_end(file, offset)


def _header(file: BinaryIO, offset: int, num_bytes: int, last: str) -> bytes | None:
    """None for the end mark."""
    file.seek(offset)
    header = file.read(BLOCK)
    if len(header) != BLOCK:
        raise ValueError(f"cut at byte {num_bytes}, in or after {last}: the end mark of the tar is missing")
    if header == bytes(BLOCK):
        return None
    _check_header(header, offset, last)
    return header


def _entry(header: bytes, offset: int, extended: dict[str, bytes]) -> Entry:
    """Of a header that only describes the next member, the name says nothing, and the size is its own."""
    kind = header[156:157]
    told = None if kind in _FOR_THE_NEXT else extended.get("size")
    size = 0 if kind in _WITHOUT_CONTENT else _size(header, told, offset)
    return Entry(extended.get("path") or _name(header), offset + BLOCK, size)


def _check_plain(beginning: bytes) -> None:
    for magic, program in _COMPRESSED.items():
        if beginning.startswith(magic):
            raise ValueError(f"compressed with {program}: DALI reads plain tars alone; decompress it")


def _check_end(file: BinaryIO, offset: int) -> None:
    """Behind the end mark there are only zeros, or programs would not agree on where the tar ends."""
    offset += BLOCK
    while rest := file.read(1 << 20):
        zeros = len(rest) - len(rest.lstrip(b"\0"))
        if zeros < len(rest):
            raise ValueError(f"there is more after its end, at byte {offset + zeros}: join tars with tar --concatenate")
        offset += len(rest)


def _check_header(header: bytes, offset: int, last: str) -> None:
    """Its checksum takes its own 8 bytes for blanks."""
    try:
        expected = int(header[148:156].strip(b" \0"), 8)
    except ValueError:
        expected = -1
    if expected != sum(header) - sum(header[148:156]) + 8 * ord(" "):
        if offset == 0:
            raise ValueError(f"not a tar: it begins with {header[:16]!r}")
        raise ValueError(f"no header of a member at byte {offset}, after {last}")


def _name(header: bytes) -> bytes:
    name = header[:100].partition(b"\0")[0]
    prefix = header[345:500].partition(b"\0")[0] if header[257:263] == b"ustar\0" else b""
    return prefix + b"/" + name if prefix else name


def _size(header: bytes, extended: bytes | None, offset: int) -> int:
    field = header[124:136]
    try:
        if extended is not None:
            return int(extended)
        if field[0] == 0x80:  # GNU: base 256
            return int.from_bytes(field[1:], "big")
        return int(field.strip(b" \0") or b"0", 8)
    except ValueError:
        raise ValueError(f"the header at byte {offset} has no size, but {(extended or field)[:20]!r}") from None


def _extended(file: BinaryIO, kind: bytes, entry: Entry) -> dict[str, bytes]:
    """What the member that follows is really called, and how long it is."""
    if entry.size > _MAX_EXTENDED:
        raise ValueError(f"{entry.size} bytes of names are announced at byte {entry.offset}: broken")
    data = file.read(entry.size)
    if kind == b"L":
        return {"path": data.partition(b"\0")[0]}
    return dict(_pax_records(data, entry.offset)) if kind == b"x" else {}


def _pax_records(data: bytes, offset: int) -> Iterator[tuple[str, bytes]]:
    """ "LENGTH KEYWORD=VALUE\\n", one after the other."""
    data = data.rstrip(b"\0")
    while data:
        length, _, _ = data.partition(b" ")
        record = data[: int(length)] if length.isdigit() else b""
        keyword, equals, value = record[len(length) + 1 : -1].partition(b"=")
        if not equals or not record.endswith(b"\n"):
            raise ValueError(f"the PAX header at byte {offset} is broken: {data[:40]!r}")
        yield keyword.decode("utf-8", "replace"), value
        data = data[len(record) :]
