"""Tars. Ours depend on their content alone, and their index is made in the same pass; tars of any origin are read.

tarfile takes a broken header for the end of the tar, and thus half of a damaged tar for the whole; here everything up
to the end mark must be right. USTAR, the older forms, GNU (long names, sizes over 8 GiB) and PAX are read.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import zlib
from collections.abc import Iterable, Iterator, Sequence
from typing import BinaryIO, NamedTuple

import numpy as np

from ..sources.source import check_no_pointer
from .index import Member, index_text

BLOCK = 512
RECORD = 20 * BLOCK  # a tar is filled up to whole records
_FLUSH = 1 << 20
_END = bytes(BLOCK)

# Mode, owners and time are the same for all: 0644, 0, 0, 0. tarfile writes the very same header, 10 times slower: it
# was half of the time of a shard of small images.
_BEFORE_SIZE = b"0000644\0" + b"0000000\0" * 2
_AFTER_SIZE = b"00000000000\0"
_AFTER_SUM = b" 0" + bytes(100) + b"ustar\x0000" + bytes(247)
_FIXED_SUM = sum(_BEFORE_SIZE) + sum(_AFTER_SIZE) + sum(_AFTER_SUM[1:]) + 8 * ord(" ")

_COMPRESSED = {b"\x1f\x8b": "gzip", b"BZh": "bzip2", b"\xfd7zX": "xz", b"\x28\xb5\x2f\xfd": "zstd"}
_REGULAR, _WITHOUT_CONTENT, _FOR_THE_NEXT, _SKIPPED = b"0\0", b"123456", b"LKxg", b"DV"
_MAX_EXTENDED = 1 << 20  # a name has at most 4 KB; a tar that says 5 GB of one is broken


def sample_checksum(members: Iterable[bytes]) -> int:
    """A CRC-32 over the contents of a sample's members: it tells which sample a damaged byte is in."""
    checksum = 0
    for data in members:
        checksum = zlib.crc32(data, checksum)
    return checksum


def pack_checksums(checksums: Sequence[int]) -> str:
    """Base64 of little-endian u32, in the order of the tar: 5.3 characters a sample in the manifest."""
    return base64.b64encode(np.array(checksums, "<u4").tobytes()).decode("ascii")


def unpack_checksums(text: str) -> list[int]:
    """The inverse of `pack_checksums`; ValueError for another text."""
    try:
        data = base64.b64decode(text, validate=True)
        return np.frombuffer(data, "<u4").tolist()
    except (binascii.Error, ValueError):
        raise ValueError(f"crc32 must be base64 of 32-bit numbers, got {text[:40]!r}") from None


def ustar_header(name: bytes, size: int) -> bytes:
    """The 512 bytes before a file of up to 100 bytes of name and 8 GiB of content."""
    if len(name) > 100 or size >= 8**11:
        raise ValueError(f"a tar member may have a name of 100 bytes and 8 GiB, got {len(name)} bytes and {size}")
    text = b"%011o\0" % size
    checksum = b"%06o\0" % (_FIXED_SUM + sum(name) + sum(text))
    return name.ljust(100, b"\0") + _BEFORE_SIZE + text + _AFTER_SIZE + checksum + _AFTER_SUM


def tar_size(content: int) -> int:
    """Bytes of a tar whose members, headers and fillings take `content`: two empty blocks, and whole records."""
    return -(-(content + 2 * BLOCK) // RECORD) * RECORD


def member_size(size: int) -> int:
    """Bytes that a file takes in a tar, header and filling included."""
    return BLOCK + -(-size // BLOCK) * BLOCK


class TarShard:
    """`add` samples, then `close`. What is written is hashed on its way, and at most 1 MiB is held back."""

    def __init__(self, file: BinaryIO) -> None:
        self._file, self._hash = file, hashlib.sha256()
        self._pending: list[bytes] = []
        self._num_pending = 0
        self._samples: list[list[Member]] = []
        self._checksums: list[int] = []
        self.num_bytes = 0

    def add(self, key: str, members: dict[str, bytes]) -> None:
        """members: extension -> content, written one after the other as KEY.EXTENSION."""
        self._samples.append([self._add(extension, f"{key}.{extension}", data) for extension, data in members.items()])
        self._checksums.append(sample_checksum(members.values()))

    def size_with(self, members: dict[str, bytes]) -> int:
        """Bytes of the whole tar if it were closed after one more sample."""
        return tar_size(self.num_bytes + sum(member_size(len(data)) for data in members.values()))

    def close(self) -> None:
        self._write(bytes(tar_size(self.num_bytes) - self.num_bytes))
        self._flush()

    @property
    def num_samples(self) -> int:
        return len(self._samples)

    @property
    def sha256(self) -> str:
        return self._hash.hexdigest()

    @property
    def crc32(self) -> str:
        """The packed checksums of the samples."""
        return pack_checksums(self._checksums)

    @property
    def index(self) -> bytes:
        return index_text(self._samples).encode("ascii")

    def _add(self, extension: str, name: str, data: bytes) -> Member:
        self._write(ustar_header(name.encode("ascii"), len(data)))
        member = Member(extension, self.num_bytes, len(data), name)
        self._write(data)
        self._write(bytes(-len(data) % BLOCK))
        return member

    def _write(self, data: bytes) -> None:
        self._pending.append(data)
        self.num_bytes += len(data)
        self._num_pending += len(data)
        if self._num_pending >= _FLUSH:
            self._flush()

    def _flush(self) -> None:
        block = b"".join(self._pending)
        self._hash.update(block)
        self._file.write(block)
        self._pending, self._num_pending = [], 0


class Entry(NamedTuple):
    """A regular file: bytes [offset, offset + size) of the tar."""

    name: bytes
    offset: int
    size: int

    @property
    def shown(self) -> str:
        return self.name.decode("utf-8", "replace")


def tar_entries(file: BinaryIO, num_bytes: int) -> Iterator[Entry]:
    """The regular files of a tar of `num_bytes` bytes, in its order; links and folders are left out. ValueError, saying
    where, unless the tar is whole: every header right, every content there, an end mark, and nothing after it.

    Only headers are read, so 10 GB take milliseconds; `file` is sought forward only. Where an entry is given out, the
    next bytes that `file` reads are its content.
    """
    offset, last, extended = 0, "its beginning", dict[str, bytes]()
    while header := _header(file, offset, num_bytes, last):
        kind, entry = header[156:157], _entry(header, offset, extended)
        if entry.offset + entry.size > num_bytes:
            raise ValueError(f"cut at byte {num_bytes}, in {entry.shown}")
        offset = entry.offset + -(-entry.size // BLOCK) * BLOCK
        if kind in _FOR_THE_NEXT:  # it describes the next member
            extended |= _extended(file, kind, entry)
            continue
        if kind not in _WITHOUT_CONTENT + _SKIPPED and not entry.name.endswith(b"/"):
            if kind not in _REGULAR:
                raise ValueError(f"{entry.shown} is neither a file nor a link nor a folder: kind {kind!r}")
            if any(keyword.startswith("GNU.sparse") for keyword in extended):
                raise ValueError(f"{entry.shown} is stored sparse, and not in one piece; make the tar without --sparse")
            yield entry
        last, extended = entry.shown, {}
    _check_end(file, offset)


def _header(file: BinaryIO, offset: int, num_bytes: int, last: str) -> bytes | None:
    """None for the end mark."""
    file.seek(offset)
    header = file.read(BLOCK)
    if offset == 0:
        _check_plain(header)
    if len(header) != BLOCK:
        raise ValueError(f"cut at byte {num_bytes}, in or after {last}: the end mark of the tar is missing")
    if header == _END:
        return None
    _check_header(header, offset, last)
    return header


def _entry(header: bytes, offset: int, extended: dict[str, bytes]) -> Entry:
    """A header that only describes the next member has no name of its own, and its size is that of the description."""
    kind = header[156:157]
    size_field = None if kind in _FOR_THE_NEXT else extended.get("size")
    size = 0 if kind in _WITHOUT_CONTENT else _size(header, size_field, offset)
    return Entry(extended.get("path") or _name(header), offset + BLOCK, size)


def _check_plain(beginning: bytes) -> None:
    check_no_pointer(beginning)
    for magic, program in _COMPRESSED.items():
        if beginning.startswith(magic):
            raise ValueError(f"compressed with {program}: DALI reads plain tars alone; decompress it")


def _check_end(file: BinaryIO, offset: int) -> None:
    """After the end mark there are only zeros, or programs would not agree on where the tar ends."""
    offset += BLOCK
    while rest := file.read(1 << 20):
        zeros = len(rest) - len(rest.lstrip(b"\0"))
        if zeros < len(rest):
            raise ValueError(f"there is more after its end, at byte {offset + zeros}: join tars with tar --concatenate")
        offset += len(rest)


def _check_header(header: bytes, offset: int, last: str) -> None:
    """ValueError if the checksum is wrong, which counts its own 8 bytes as blanks."""
    try:
        expected = int(header[148:156].strip(b" \0"), 8)
    except ValueError:
        expected = -1
    if expected != _byte_sum(header[:148] + b" " * 8 + header[156:]):
        if offset == 0:
            raise ValueError(f"not a tar: it begins with {header[:16]!r}")
        raise ValueError(f"no header of a member at byte {offset}, after {last}")


def _byte_sum(header: bytes) -> int:
    """The sum of 512 bytes, 10 times faster than `sum`: Adler-32's lower half is 1 + the sum, modulo 65,521, which 256
    bytes do not reach."""
    return (zlib.adler32(header[:256]) & 0xFFFF) + (zlib.adler32(header[256:]) & 0xFFFF) - 2


def _name(header: bytes) -> bytes:
    name = header[:100].partition(b"\0")[0]
    prefix = header[345:500].partition(b"\0")[0] if header[257:263] == b"ustar\0" else b""
    return prefix + b"/" + name if prefix else name


def _size(header: bytes, extended: bytes | None, offset: int) -> int:
    field = header[124:136]
    try:
        if extended is None and field[0] == 0x80:  # GNU: base 256
            return int.from_bytes(field[1:], "big")
        size = int(field.strip(b" \0") or b"0", 8) if extended is None else int(extended)
    except ValueError:
        size = -1
    if size < 0:
        raise ValueError(f"the header at byte {offset} has no size, but {(extended or field)[:20]!r}")
    return size


def _extended(file: BinaryIO, kind: bytes, entry: Entry) -> dict[str, bytes]:
    """Name and size of the member that follows, where its own header has no room for them."""
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
