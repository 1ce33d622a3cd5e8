"""The tars and indexes of a set as files of this machine, one shard after the other, through the cache."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Generator, Iterator, Sequence
from concurrent import futures
from concurrent.futures import Future
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from threading import Event, Thread

from ..storage import Folder
from ..storage.cache import Cache, ChangedError, Entry, NoRoomError
from ..storage.folder import LocalFolder
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


class LocalShardFiles:
    """The files of a local folder."""

    def __init__(self, folder: LocalFolder, manifest: Manifest) -> None:
        self.folder, self._path = folder, folder.local
        self._states = {name: self._state(name) for name in manifest.files}

    def check_unchanged(self) -> None:
        """ShardError if a file is missing, or has changed since it was checked first."""
        for name, state in self._states.items():
            now = self._state(name)
            if now is None or state is None or now[:3] != state[:3]:  # the fourth changes by a chmod, too
                raise ShardError(
                    f"{self.folder.path(name)}: changed or removed since the loader was built: make a new loader"
                )

    def in_order(self, shards: Sequence[Shard]) -> Generator[ShardFile, None, None]:
        """Each file stays until the next is asked for, or the generator is closed."""
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
        waiting, stop = deque(shards), Event()
        fetching: deque[tuple[Shard, Future[None]]] = deque()
        try:
            while waiting or fetching:
                self._fetch_ahead(waiting, fetching, stop)
                shard, fetched = fetching.popleft()
                with suppress(NoRoomError):  # others hold it: now that this shard is the next, wait for them
                    fetched.result()
                with self._held(shard, True, stop) as file:
                    self._fetch_ahead(waiting, fetching, stop)
                    yield file
        finally:
            stop.set()
            futures.wait([fetched for _, fetched in fetching])

    def _fetch_ahead(self, waiting: deque[Shard], fetching: deque[tuple[Shard, Future[None]]], stop: Event) -> None:
        while waiting:
            ahead = [shard.num_bytes for shard, _ in fetching]
            if ahead and (len(ahead) == AHEAD or sum(ahead) + waiting[0].num_bytes > self.cache.max_bytes // 2):
                return
            shard = waiting.popleft()
            fetching.append((shard, self._fetch(shard, stop)))

    def _fetch(self, shard: Shard, stop: Event) -> Future[None]:
        """Fetch a shard on a thread of its own. It is not held before its turn: readers that held what they had not
        read yet, in a cache without room for more, would wait for each other."""
        fetched: Future[None] = Future()

        def work() -> None:
            try:
                with self._held(shard, False, stop):
                    fetched.set_result(None)
            except BaseException as error:  # raised again when the file is asked for
                fetched.set_exception(error)

        # A daemon, as the interpreter must not wait for a network when it ends.
        Thread(target=work, name=f"fetch {shard.name}", daemon=True).start()
        return fetched

    @contextmanager
    def _held(self, shard: Shard, wait: bool, stop: Event) -> Iterator[ShardFile]:
        """The file of a shard, which stays during the block. ShardError if it is not what the manifest says."""
        entry = Entry(self.folder, shard.name, shard.num_bytes, shard.sha256)
        try:
            with self.cache.leased(entry, wait, stop) as tar:
                index = self.cache.read_small(self.folder, shard.index_name, shard.index_sha256)
                yield ShardFile(tar, index, self.folder.path(shard.name))
        except ChangedError as error:
            raise ShardError(str(error)) from None


ShardFiles = LocalShardFiles | CachedShardFiles


def files_of(folder: Folder, manifest: Manifest) -> ShardFiles:
    """Files of a local folder where they are, those of a remote one through the cache."""
    return CachedShardFiles(folder) if isinstance(folder, RemoteFolder) else LocalShardFiles(folder, manifest)
