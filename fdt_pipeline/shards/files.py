"""The tars and indexes of a set as files of this machine, one shard after the other, through the cache."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Generator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from threading import Event, Thread
from typing import Protocol

from ..storage import Folder
from ..storage.cache import Cache, ChangedError, Entry, NoRoomError
from ..storage.remote import RemoteFolder
from .manifest import Manifest, Shard, ShardError

AHEAD = 3  # shards that are fetched while one is read, if half of the cache has room for them


# What changes when a file does: inode, size, time of its last change, and that of its inode, which nobody can set back.
FileState = tuple[int, int, int, int]


def file_state(found: os.stat_result) -> FileState:
    return found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns


@dataclass(frozen=True)
class ShardFile:
    """index: its content; url: the tar's, for messages; state: the tar's when it was checked before."""

    tar: Path
    index: bytes
    url: str
    state: FileState | None = None


class ShardFiles(Protocol):
    @property
    def folder(self) -> Folder: ...

    def check_unchanged(self) -> None:
        """ShardError if a file is missing, or has changed since it was checked first."""

    def in_order(self, shards: Sequence[Shard]) -> Generator[ShardFile, None, None]:
        """Each file stays until the next is asked for, or the generator is closed."""


def files_of(folder: Folder, manifest: Manifest) -> ShardFiles:
    """Files of a local folder where they are, those of a remote one through the cache."""
    return CachedShardFiles(folder) if isinstance(folder, RemoteFolder) else LocalShardFiles(folder, manifest)


class LocalShardFiles:
    """The files of a local folder."""

    def __init__(self, folder: Folder, manifest: Manifest) -> None:
        assert folder.local is not None
        self.folder, self._path = folder, folder.local
        names = [name for shard in manifest.shards for name in (shard.name, shard.index_name)]
        self._states = {name: self._state(name) for name in names}

    def check_unchanged(self) -> None:
        for name, state in self._states.items():
            now = self._state(name)
            if now is None or state is None or now[:3] != state[:3]:  # the fourth changes by a chmod, too
                raise ShardError(
                    f"{self.folder.path(name)}: changed or removed since the loader was built: make a new loader"
                )

    def in_order(self, shards: Sequence[Shard]) -> Generator[ShardFile, None, None]:
        for shard in shards:
            try:
                index = self.folder.read(shard.index_name)
            except FileNotFoundError:
                raise ShardError(f"{self.folder.path(shard.index_name)}: missing; shard the source again") from None
            state = self._states[shard.name]
            yield ShardFile(self._path / shard.name, index, self.folder.path(shard.name), state)

    def _state(self, name: str) -> FileState | None:
        """The state of a file; None if it is missing."""
        try:
            return file_state(os.stat(self._path / name))
        except OSError:
            return None


class CachedShardFiles:
    """The files of a remote folder: fetched ahead into the cache, checked by sha256, and held while they are read."""

    def __init__(self, folder: RemoteFolder, cache: Cache | None = None) -> None:
        self.folder, self.cache = folder, cache or Cache()

    def check_unchanged(self) -> None:
        """Every file is checked when it is fetched, and is found by its sha256."""

    def in_order(self, shards: Sequence[Shard]) -> Generator[ShardFile, None, None]:
        waiting = deque(shards)
        fetching: deque[_Fetch] = deque()
        try:
            while waiting or fetching:
                self._fetch_ahead(waiting, fetching)
                fetch = fetching.popleft()
                if fetch.found_no_room():
                    self._release(fetching, waiting)
                with fetch as file:
                    self._fetch_ahead(waiting, fetching)
                    yield file
        finally:
            for fetch in fetching:
                fetch.cancel()

    def _fetch_ahead(self, waiting: deque[Shard], fetching: deque[_Fetch]) -> None:
        while waiting and self._has_room(waiting[0], fetching):
            fetching.append(_Fetch(self, waiting.popleft()))

    def _release(self, fetching: deque[_Fetch], waiting: deque[Shard]) -> None:
        """A reader that waits for room holds nothing: four of them with room for four shards waited for each other, two
        minutes, and one then gave up."""
        while fetching:
            fetch = fetching.pop()
            fetch.cancel()
            waiting.appendleft(fetch.shard)

    def _has_room(self, shard: Shard, fetching: Sequence[_Fetch]) -> bool:
        held = sum(fetch.shard.num_bytes for fetch in fetching)
        return not fetching or (len(fetching) < AHEAD and held + shard.num_bytes <= self.cache.max_bytes // 2)

    def file(self, shard: Shard, stack: ExitStack, wait: bool, stop: Event) -> ShardFile:
        """The file of a shard, held by the stack. ShardError if it is not what the manifest says."""
        entry = Entry(self.folder, shard.name, shard.num_bytes, shard.sha256)
        try:
            tar = stack.enter_context(self.cache.leased(entry, wait, stop))
            index = self.cache.read_small(self.folder, shard.index_name, shard.index_sha256)
        except ChangedError as error:
            raise ShardError(str(error)) from None
        return ShardFile(tar, index, self.folder.path(shard.name))


class _Fetch:
    """A shard that is fetched on a thread of its own; as a context manager, it gives the file."""

    def __init__(self, files: CachedShardFiles, shard: Shard) -> None:
        self.files, self.shard = files, shard
        self._stack, self._stop = ExitStack(), Event()
        self._file: ShardFile | None = None
        self._error: BaseException | None = None
        # A daemon, as the interpreter must not wait for a network when it ends.
        self._thread = Thread(target=self._work, name=f"fetch {shard.name}", daemon=True)
        self._thread.start()

    def found_no_room(self) -> bool:
        self._thread.join()
        return isinstance(self._error, NoRoomError)

    def __enter__(self) -> ShardFile:
        if self.found_no_room():  # others hold it: now that this shard is the next, wait for them
            return self.files.file(self.shard, self._stack, True, self._stop)
        if self._error is not None:
            raise self._error
        assert self._file is not None
        return self._file

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def cancel(self) -> None:
        self._stop.set()
        self._thread.join()
        self._stack.close()

    def _work(self) -> None:
        try:
            self._file = self.files.file(self.shard, self._stack, False, self._stop)
        except BaseException as error:  # raised again when the file is asked for
            self._error = error
