"""The tars and indexes of a set as files of this machine, one shard after the other, through the cache."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Collection, Generator, Iterator, Sequence
from concurrent import futures
from concurrent.futures import Future
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from threading import Event, Thread

import numpy as np

from ..storage import Folder, located
from ..storage.cache import Cache, ChangedError, Entry, NoRoomError
from ..storage.folder import LocalFolder
from ..storage.remote import RemoteFolder
from .folder import remedy_of
from .manifest import Manifest, Shard, ShardError

AHEAD = 3  # shards that are fetched while one is read, if half of the cache has room for them


# What changes when a file does: inode, size, time of its last change, and that of its inode, which nobody can set back.
FileState = tuple[int, int, int, int]


def file_state(found: os.stat_result) -> FileState:
    return found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns


class Checked:
    """Which samples of a tar this process has seen to be what they were when they were written, and the state that the
    file was in."""

    def __init__(self, num_samples: int) -> None:
        self.num_samples = num_samples
        self._state: FileState | None = None
        self._is_good = np.zeros(num_samples, bool)

    def covers(self, state: FileState, begin: int, end: int) -> bool:
        """Whether samples begin to end were good, and the file has not changed since."""
        return self._state == state and bool(self._is_good[begin:end].all())

    def add(self, state: FileState | None, begin: int, end: int, bad: Collection[int] = ()) -> None:
        """Samples begin to end were checked; bad: the numbers, from begin on, of those that were not good."""
        if self._state != state:
            self._state, self._is_good = state, np.zeros_like(self._is_good)
        self._is_good[begin:end] = True
        self._is_good[[begin + number for number in bad]] = False


@dataclass(frozen=True)
class ShardFile:
    """index: its content; url, index_url: the tar's and the index's, for messages; checked: what is known of the tar's
    samples; None where raw samples need no look, as the sha256 was checked just now."""

    tar: Path
    index: bytes
    url: str
    index_url: str
    checked: Checked | None = None


class LocalShardFiles:
    """The files of a local folder. Each sample is checked when it is read first."""

    def __init__(self, folder: LocalFolder, manifest: Manifest) -> None:
        self.folder, self.manifest = folder, manifest
        self._states = {name: self._state(name) for name in manifest.files}
        self._checked = {shard.name: Checked(shard.num_samples) for shard in manifest.shards}

    def mark_checked(self) -> None:
        """All hashes were checked since this object was made, so that samples are only checked in tars that have
        changed since then."""
        for name, checked in self._checked.items():
            checked.add(self._states[name], 0, checked.num_samples)

    def check_unchanged(self) -> None:
        """ShardError if a file is missing, or has changed since it was checked first."""
        for name, state in self._states.items():
            now = self._state(name)
            if now is None or state is None or now[:3] != state[:3]:  # the fourth changes by a chmod, too
                raise ShardError(
                    f"{_path(self.folder, name)}: changed or removed since the loader was built: make a new loader"
                )

    def in_order(self, shards: Sequence[Shard]) -> Generator[ShardFile, None, None]:
        """Each file stays until the next is asked for, or the generator is closed."""
        for shard in shards:
            try:
                index = self.folder.read(shard.index_name)
            except FileNotFoundError:
                raise ShardError(f"{self.folder.path(shard.index_name)}: missing; {remedy_of(self.manifest)}") from None
            path, index_url = _path(self.folder, shard.name), self.folder.path(shard.index_name)
            yield ShardFile(Path(path), index, path, index_url, self._checked[shard.name])

    def _state(self, name: str) -> FileState | None:
        """The state of a file; None if it is missing."""
        try:
            return file_state(os.stat(_path(self.folder, name)))
        except OSError:
            return None


class CachedShardFiles:
    """Remote files: fetched ahead into the cache, checked by sha256, and held while they are read. Of a set that has
    some tars on this machine, those are read where they are."""

    def __init__(self, folder: Folder, cache: Cache | None = None) -> None:
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
        folder, name = located(self.folder, shard.name)
        url, index_url = folder.path(name), self.folder.path(shard.index_name)
        if isinstance(folder, LocalFolder):
            yield ShardFile(Path(url), self._index(shard), url, index_url)
            return
        try:
            with self.cache.leased(Entry(folder, name, shard.num_bytes, shard.sha256), wait, stop) as tar:
                yield ShardFile(tar, self._index(shard), url, index_url)
        except ChangedError as error:
            raise ShardError(str(error)) from None

    def _index(self, shard: Shard) -> bytes:
        if isinstance(self.folder, RemoteFolder):
            return self.cache.read_small(self.folder, shard.index_name, shard.index_sha256)
        return self.folder.read(shard.index_name)


def _path(folder: Folder, name: str) -> str:
    there, name = located(folder, name)
    return there.path(name)


ShardFiles = LocalShardFiles | CachedShardFiles


def files_of(folder: Folder, manifest: Manifest) -> ShardFiles:
    """Files of this machine where they are, remote ones through the cache."""
    tars_are_local = all(isinstance(located(folder, shard.name)[0], LocalFolder) for shard in manifest.shards)
    if isinstance(folder, LocalFolder) and tars_are_local:
        return LocalShardFiles(folder, manifest)
    return CachedShardFiles(folder)
