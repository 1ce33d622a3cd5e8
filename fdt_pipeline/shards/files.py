"""The tars and indexes of a set as files of this machine, one shard after the other, whether they lie here or not."""

from __future__ import annotations

import os
from collections.abc import Generator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from ..storage import Folder
from .errors import ShardError
from .manifest import Manifest, Shard


@dataclass(frozen=True)
class ShardFile:
    """url: of the tar, for messages."""

    tar: Path
    index: Path
    url: str


class ShardFiles(Protocol):
    @property
    def folder(self) -> Folder: ...

    def check_unchanged(self) -> None:
        """ShardError if a file is gone, or another than the one that was checked at first."""

    def in_order(self, shards: Sequence[Shard]) -> Generator[ShardFile, None, None]:
        """Each stays where it is until the next is asked for, or the generator is closed."""


class LocalShardFiles:
    """Of a folder that is here."""

    def __init__(self, folder: Folder, manifest: Manifest) -> None:
        assert folder.local is not None
        self.folder, self._path = folder, folder.local
        names = [name for shard in manifest.shards for name in (shard.name, shard.index_name)]
        self._states = {name: self._state(name) for name in names}

    def check_unchanged(self) -> None:
        for name, state in self._states.items():
            if self._state(name) != state:
                raise ShardError(
                    f"{self.folder.path(name)}: changed or removed since the loader was built: make a new loader"
                )

    def in_order(self, shards: Sequence[Shard]) -> Generator[ShardFile, None, None]:
        for shard in shards:
            yield ShardFile(self._path / shard.name, self._path / shard.index_name, self.folder.path(shard.name))

    def _state(self, name: str) -> tuple[int, int, int] | None:
        """What changes when a file does: inode, size and time of its last change; None if it is gone."""
        try:
            state = os.stat(self._path / name)
        except OSError:
            return None
        return state.st_ino, state.st_size, state.st_mtime_ns
