"""Local copies of remote files whose size and sha256 are known: bounded, checked, and shared by processes.

    SHA256              a whole file; its time of access says when it was last used
    SHA256.SIZE.part    as much of it as has arrived
    room.lock           held while room is made or reserved

A file is locked itself: shared while somebody uses it, exclusively while it is fetched or removed.
On file systems that clusters share, flock may lock nothing. Two processes may then fetch the same file: they write the
same bytes to the same places of one part, and what comes of it is checked as any other file.

Files are named by their content, so a set that was changed never meets its old files, and sets share equal ones.
Files with other names are not the cache's: they are neither counted nor removed.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import os
import re
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from threading import Event
from typing import BinaryIO, NamedTuple

from .atomic import atomic_file, remedy, sha256_of
from .remote import RemoteFolder

DIRECTORY_VARIABLE = "FDT_PIPELINE_SHARD_CACHE"
BYTES_VARIABLE = "FDT_PIPELINE_SHARD_CACHE_BYTES"
BLOCK_BYTES = 4 << 20
_ROOM_SECONDS = 120.0  # to wait for others to release what they use
_POLL_SECONDS = 0.05
# A whole file, a part of one, or what a process was writing when it was killed.
_OURS = re.compile(r"\.?[0-9a-f]{64}(\.(?P<size>\d+)\.part|\..+\.tmp)?")
_Pause = Callable[[float], None]
# flock's answers where a file system has no locks. There a file may be fetched twice, or removed while it is in use.
_NO_LOCKS = (errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOLCK)


@dataclass(frozen=True)
class Entry:
    """A file of a folder, and what it must be."""

    folder: RemoteFolder
    name: str
    num_bytes: int
    sha256: str

    @property
    def url(self) -> str:
        return self.folder.path(self.name)


class _Held(NamedTuple):
    """A file in the cache. num_bytes: for a part, the size of the whole."""

    path: Path
    num_bytes: int
    last_used: float


class NoRoomError(OSError):
    """The cache is full of files that are in use."""


class ChangedError(ValueError):
    """A remote file is not, or no longer, what it should be."""


class Cache:
    """directory: default $FDT_PIPELINE_SHARD_CACHE, else fdt-pipeline/shards in $XDG_CACHE_HOME or ~/.cache.
    max_bytes: default $FDT_PIPELINE_SHARD_CACHE_BYTES, else half of what is free on that disk, counting what the cache
    holds already. Any number of processes may use one directory."""

    def __init__(self, directory: Path | None = None, max_bytes: int | None = None) -> None:
        self.directory = directory or _default_directory()
        self.directory.mkdir(parents=True, exist_ok=True)
        self.max_bytes = _default_bytes(self.directory) if max_bytes is None else max_bytes
        self._checked: dict[tuple[str, int, int, int], bool] = {}

    @contextmanager
    def leased(self, entry: Entry, wait: bool = True, stop: Event | None = None) -> Iterator[Path]:
        """The path of the file, which is not removed during the block. NoRoomError if there is no room for it: at once,
        or if `wait`, after two minutes; ChangedError if what is fetched has another sha256; OSError if it cannot be
        fetched, or `stop` is set meanwhile. ValueError if it is larger than the cache may be."""
        if entry.num_bytes > self.max_bytes:
            raise ValueError(
                f"{entry.url}: {entry.num_bytes} bytes, more than the cache may hold ({self.max_bytes}): set "
                f"{BYTES_VARIABLE} to more, or shard with a lower --max-shard-bytes"
            )
        path, pause, begin = self.directory / entry.sha256, _pause(entry, stop or Event()), time.monotonic()
        with ExitStack() as held:
            while True:
                try:
                    if self._holds(path, entry, held):
                        break
                    has_room = self._fetch(path, entry, pause)
                except BlockingIOError:  # another process fetches it, or reads one that is damaged
                    pause(_POLL_SECONDS)
                    begin = time.monotonic()
                    continue
                if not has_room:
                    if not wait or time.monotonic() - begin > _ROOM_SECONDS:
                        raise NoRoomError(
                            f"{self.directory}: no room for {entry.num_bytes} bytes more: up to {self.max_bytes} are "
                            f"allowed, and what is there is in use; set {BYTES_VARIABLE} to more"
                        )
                    pause(_POLL_SECONDS)
            yield path

    def read_small(self, folder: RemoteFolder, name: str, sha256: str) -> bytes:
        """A file of a few kilobytes, such as an index; kept if there is room."""
        path = self.directory / sha256
        with suppress(FileNotFoundError):
            data = path.read_bytes()
            if hashlib.sha256(data).hexdigest() == sha256:
                _mark_used(path)
                return data
        data = folder.read(name)
        got = hashlib.sha256(data).hexdigest()
        if got != sha256:
            raise _changed(folder.path(name), f"sha256 {sha256}", got)
        with self._counting():
            if self._frees(len(data)):
                with atomic_file(path) as file:
                    file.write(data)
        return data

    def num_bytes(self) -> int:
        """Bytes of all its files; those that are being fetched count whole."""
        return sum(held.num_bytes for held in _held(self.directory))

    def _holds(self, path: Path, entry: Entry, held: ExitStack) -> bool:
        """Whether the file is there and what it must be; then it is locked. A damaged one is removed."""
        with suppress(FileNotFoundError):
            held.enter_context(_locked(path, fcntl.LOCK_SH))
            if self._is_good(path, entry):
                _mark_used(path)
                return True
            held.close()
            with _locked(path, fcntl.LOCK_EX):
                if not self._is_good(path, entry):
                    path.unlink()
        return False

    def _is_good(self, path: Path, entry: Entry) -> bool:
        """Whether the file is what it must be. Hashed when this process first meets it, or it has changed."""
        status = path.stat()
        state = (entry.sha256, status.st_ino, status.st_size, status.st_mtime_ns)
        if state not in self._checked:
            with path.open("rb") as file:
                self._checked[state] = status.st_size == entry.num_bytes and sha256_of(file) == entry.sha256
        return self._checked[state]

    def _fetch(self, path: Path, entry: Entry, pause: _Pause) -> bool:
        """False if there is no room; BlockingIOError if another process is fetching the file."""
        part = path.with_name(f"{entry.sha256}.{entry.num_bytes}.part")
        with ExitStack() as held:
            with self._counting():
                if path.exists():
                    return True
                if not self._frees(0 if part.exists() else entry.num_bytes, part):
                    return False
                held.enter_context(_locked(part, fcntl.LOCK_EX, os.O_CREAT))  # room is reserved: it counts whole
            got = _download(part, entry, pause)
            if got != entry.sha256:  # it may have been begun before the file was changed
                part.write_bytes(b"")
                got = _download(part, entry, pause)
            if got != entry.sha256:
                part.unlink(missing_ok=True)
                raise _changed(entry.url, f"sha256 {entry.sha256}", got)
            with self._counting(), suppress(FileNotFoundError):  # where locks do nothing, another may have been quicker
                part.replace(path)
        return True

    def _frees(self, num_bytes: int, spared: Path | None = None) -> bool:
        """Remove the files that were not used for the longest time, until there is room; False if too much is in use.
        The caller holds the lock on room."""
        files = sorted(_held(self.directory), key=lambda held: held.last_used)
        missing = sum(held.num_bytes for held in files) + num_bytes - self.max_bytes
        for held in files:
            if missing > 0 and held.path != spared and self._removed(held):
                missing -= held.num_bytes
        return missing <= 0

    def _removed(self, held: _Held) -> bool:
        """False if the file is in use."""
        try:
            with _locked(held.path, fcntl.LOCK_EX):
                held.path.unlink()
        except FileNotFoundError:
            pass
        except BlockingIOError:
            return False
        return True

    @contextmanager
    def _counting(self) -> Iterator[None]:
        """While room is made, or a file changes its name, which a process that counts must not see half done."""
        descriptor = os.open(self.directory / "room.lock", os.O_RDWR | os.O_CREAT, 0o666)
        try:
            _flock(descriptor, fcntl.LOCK_EX)
            yield
        finally:
            os.close(descriptor)


def _held(directory: Path) -> Iterator[_Held]:
    for entry in os.scandir(directory):
        match = _OURS.fullmatch(entry.name)
        if match is None:
            continue
        with suppress(FileNotFoundError):  # another process may remove it at any time
            status = entry.stat()
            last_used = max(status.st_atime, status.st_mtime)
            yield _Held(Path(entry.path), int(match["size"] or status.st_size), last_used)


def _mark_used(path: Path) -> None:
    """Set the time of access. The time of change stays: it shows whether the file was changed."""
    with suppress(FileNotFoundError):
        os.utime(path, ns=(time.time_ns(), path.stat().st_mtime_ns))


def _pause(entry: Entry, stop: Event) -> _Pause:
    """Sleeps some seconds; OSError if `stop` is set."""

    def pause(seconds: float) -> None:
        if stop.wait(seconds):
            raise OSError(f"{entry.url}: not wanted any more")

    return pause


@contextmanager
def _locked(path: Path, kind: int, flags: int = 0) -> Iterator[None]:
    """Hold the lock of a file. BlockingIOError if others hold it; FileNotFoundError if the file is not there, or was
    removed before it was locked."""
    descriptor = os.open(path, os.O_RDWR | flags, 0o666)
    try:
        _flock(descriptor, kind | fcntl.LOCK_NB)
        if not os.path.samestat(os.fstat(descriptor), path.stat()):
            raise FileNotFoundError(f"{path}: another file has its name by now")
        yield
    finally:
        os.close(descriptor)


def _flock(descriptor: int, kind: int) -> None:
    try:
        fcntl.flock(descriptor, kind)
    except OSError as error:
        if error.errno not in _NO_LOCKS:
            raise


def _download(part: Path, entry: Entry, pause: _Pause) -> str:
    """Go on from what has arrived; the sha256 of the whole. A connection that breaks is taken up where it broke."""
    digest = hashlib.sha256()
    with open(os.open(part, os.O_RDWR | os.O_CREAT, 0o666), "r+b") as file:
        while block := file.read(BLOCK_BYTES):
            digest.update(block)
        while file.tell() < entry.num_bytes:
            pause(0)
            data = _next_block(entry, file.tell(), pause)
            digest.update(data)
            _append(file, data, part)
    return digest.hexdigest()


def _next_block(entry: Entry, begin: int, pause: _Pause) -> bytes:
    """The bytes from `begin` on that one request brings."""

    def one_request() -> bytes:
        data = entry.folder.read_range(entry.name, begin, min(begin + BLOCK_BYTES, entry.num_bytes))
        if not data:
            _check_size(entry)
            raise OSError(f"no bytes from {begin} on")
        return data[: entry.num_bytes - begin]

    broke_off = f"broke off at byte {begin} of {entry.num_bytes} (what has arrived is kept)"
    return entry.folder.retry.call(entry.url, one_request, broke_off, pause)


def _append(file: BinaryIO, data: bytes, part: Path) -> None:
    try:
        file.write(data)
        file.flush()
    except OSError as error:
        raise OSError(
            error.errno,
            f"{part}: cannot be written ({error.strerror}); {remedy(error)}, or set {DIRECTORY_VARIABLE} to "
            "another folder",
        ) from error


def _check_size(entry: Entry) -> None:
    got = entry.folder.size(entry.name)
    if got is not None and got != entry.num_bytes:
        raise _changed(entry.url, f"{entry.num_bytes} bytes", str(got))


def _changed(url: str, expected: str, got: str) -> ChangedError:
    return ChangedError(
        f"{url}: expected {expected}, got {got}: changed since its manifest was written; shard the source again "
        "with --overwrite"
    )


def _default_directory() -> Path:
    if chosen := os.environ.get(DIRECTORY_VARIABLE):
        return Path(chosen)
    base = os.environ.get("XDG_CACHE_HOME") or os.path.join(os.path.expanduser("~"), ".cache")
    return Path(base) / "fdt-pipeline" / "shards"


def _default_bytes(directory: Path) -> int:
    text = os.environ.get(BYTES_VARIABLE)
    if not text:
        held = sum(held.num_bytes for held in _held(directory))
        return (shutil.disk_usage(directory).free + held) // 2
    if not text.isdecimal():
        raise ValueError(f"{BYTES_VARIABLE} must be a number of bytes, got {text!r}")
    return int(text)
