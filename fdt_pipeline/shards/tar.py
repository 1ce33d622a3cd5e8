"""One shard: a USTAR tar that depends on its content alone, and its index, made in the same pass."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from typing import BinaryIO

from .checksums import pack_checksums, sample_checksum
from .index import Member, index_text

BLOCK = 512
RECORD = 20 * BLOCK  # a tar is filled up to whole records
_FLUSH = 1 << 20

# Mode, owners and time are the same for all: 0644, 0, 0, 0. tarfile writes the very same header, 10 times slower: it
# was half of the time of a shard of small images.
_BEFORE_SIZE = b"0000644\0" + b"0000000\0" * 2
_AFTER_SIZE = b"00000000000\0"
_AFTER_SUM = b" 0" + bytes(100) + b"ustar\x0000" + bytes(247)
_FIXED_SUM = sum(_BEFORE_SIZE) + sum(_AFTER_SIZE) + sum(_AFTER_SUM[1:]) + 8 * ord(" ")


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


def read_members(file: BinaryIO) -> Iterator[tuple[Member, bytes]]:
    """Each member and its content, of a tar that `TarShard` wrote; ValueError, saying where, for any other.

    tarfile would read more kinds, at 10 times the cost, and take a broken header for the end.
    """
    offset, last = 0, "its beginning"
    while True:
        header = _exactly(file, BLOCK, offset, last)
        if header == bytes(BLOCK):
            return
        member = _parse_header(header, offset, last)
        padded = member_size(member.size) - BLOCK
        data = _exactly(file, padded, offset + BLOCK, member.name)
        yield member, data[: member.size]
        offset, last = offset + BLOCK + padded, member.name


def _parse_header(header: bytes, offset: int, last: str) -> Member:
    name = header[:100].rstrip(b"\0")
    try:
        size = int(header[124:135], 8)
        text = name.decode("ascii")
    except ValueError:
        size, text = -1, ""
    if size < 0 or ustar_header(name, size) != header:
        raise ValueError(f"no header of a member at byte {offset}, after {last}")
    return Member(text.partition(".")[2], offset + BLOCK, size, text)


def _exactly(file: BinaryIO, num_bytes: int, offset: int, where: str) -> bytes:
    data = file.read(num_bytes)
    if len(data) != num_bytes:
        raise ValueError(f"cut at byte {offset + len(data)}, in or after {where}")
    return data


class TarShard:
    """`add` samples, then `close`; what was written is hashed on its way. At most 1 MiB is held back."""

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
        """Of the samples (checksums.py)."""
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
