"""One shard: a USTAR tar that depends on its content alone, and its index, made in the same pass."""

from __future__ import annotations

import io
import tarfile
from typing import BinaryIO

from .atomic import HashedFile
from .index import Member, index_text


class TarShard:
    """`add` samples, then `close`. Times, owners and modes are fixed, so the same samples give the same bytes."""

    def __init__(self, file: BinaryIO) -> None:
        self.file = HashedFile(file)
        self._tar = tarfile.TarFile(fileobj=self.file, mode="w", format=tarfile.USTAR_FORMAT)  # type: ignore[arg-type]
        self._samples: list[list[Member]] = []

    def add(self, key: str, members: dict[str, bytes]) -> None:
        """members: extension -> content, written one after the other as KEY.EXTENSION."""
        self._samples.append([self._add(extension, f"{key}.{extension}", data) for extension, data in members.items()])

    def close(self) -> None:
        self._tar.close()

    @property
    def num_samples(self) -> int:
        return len(self._samples)

    @property
    def index(self) -> bytes:
        return index_text(self._samples).encode("ascii")

    def _add(self, extension: str, name: str, data: bytes) -> Member:
        info = tarfile.TarInfo(name)  # mtime 0, uid 0, gid 0, no names, mode 0644 are its defaults
        info.size = len(data)
        offset = self.file.tell() + tarfile.BLOCKSIZE
        self._tar.addfile(info, io.BytesIO(data))
        return Member(extension, offset, len(data), name)
