"""Local copies of remote files whose size and sha256 are known: bounded, checked, and shared by processes.

    SHA256              a whole file; its time of change says when it was last used
    SHA256.SIZE.part    as much of it as has arrived
    SHA256.lock         shared while somebody uses the file, exclusive while it is fetched or removed

Files are named by their content, so a set that was changed never meets its old files, and sets share equal ones.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from threading import Event

from .atomic import atomic_file
from .hashing import sha256_of
from .remote import RemoteFolder
from .retrying import is_transient

DIRECTORY_VARIABLE = "FDT_PIPELINE_SHARD_CACHE"
BYTES_VARIABLE = "FDT_PIPELINE_SHARD_CACHE_BYTES"
_BLOCK = 4 << 20
_ROOM_SECONDS = 120.0  # to wait for others to let go of what they use
_POLL_SECONDS = 0.05


@dataclass(frozen=True)
class Entry:
    """A file of a folder, and what it must be."""

    folder: RemoteFolder
    name: str
    num_bytes: int
    sha256: str


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
        self._checked: set[tuple[str, int, int]] = set()

    @contextmanager
    def leased(self, entry: Entry, wait: bool = True, stop: Event | None = None) -> Iterator[Path]:
        """The file, which stays as long as the block. NoRoomError if there is no room for it: at once, or if `wait`,
        after two minutes; ChangedError if what is fetched has another sha256; OSError if it cannot be fetched, or
        `stop` is set meanwhile."""
        if entry.num_bytes > self.max_bytes:
            raise ValueError(
                f"{entry.folder.path(entry.name)}: {entry.num_bytes} bytes, more than the cache may hold "
                f"({self.max_bytes}): set {BYTES_VARIABLE} to more, or shard with a lower --max-shard-bytes"
            )
        path = self.directory / entry.sha256
        while True:
            with self._locked(entry, fcntl.LOCK_SH):
                if self._is_good(path, entry):
                    os.utime(path)
                    yield path
                    return
            with self._locked(entry, fcntl.LOCK_EX):
                if not self._is_good(path, entry):
                    path.unlink(missing_ok=True)
                    self._fetch(path, entry, wait, stop or Event())

    def read_small(self, folder: RemoteFolder, name: str, sha256: str) -> bytes:
        """A file of a few kilobytes, such as an index."""
        path = self.directory / sha256
        with suppress(FileNotFoundError):
            data = path.read_bytes()
            if hashlib.sha256(data).hexdigest() == sha256:
                return data
        data = folder.read(name)
        got = hashlib.sha256(data).hexdigest()
        if got != sha256:
            raise _changed(folder.path(name), sha256, got)
        with atomic_file(path) as file:
            file.write(data)
        return data

    def num_bytes(self) -> int:
        """Of all files; those that are being fetched count whole."""
        return sum(size for _, size, _ in self._files())

    def _is_good(self, path: Path, entry: Entry) -> bool:
        """Looked at byte by byte when this process meets the file, or it has changed, and not again."""
        try:
            status = path.stat()
        except FileNotFoundError:
            return False
        if status.st_size != entry.num_bytes:
            return False
        state = (entry.sha256, status.st_ino, status.st_size)
        if state in self._checked:
            return True
        with path.open("rb") as file:
            is_good = sha256_of(file) == entry.sha256
        if is_good:
            self._checked.add(state)
        return is_good

    def _fetch(self, path: Path, entry: Entry, wait: bool, stop: Event) -> None:
        part = path.with_name(f"{entry.sha256}.{entry.num_bytes}.part")
        self._make_room(part, entry, wait)
        for is_last in (False, True):
            got = _download(part, entry, stop)
            if got == entry.sha256:
                part.replace(path)
                return
            part.write_bytes(b"")  # it may have been begun before the file was changed
            if is_last:
                part.unlink()
                raise _changed(entry.folder.path(entry.name), entry.sha256, got)

    def _make_room(self, part: Path, entry: Entry, wait: bool) -> None:
        """Remove what was not used for the longest time, and reserve the room by making `part`."""
        deadline = time.monotonic() + (_ROOM_SECONDS if wait else 0)
        while True:
            with _flocked(self.directory / "room.lock", fcntl.LOCK_EX):
                missing = self.num_bytes() + (0 if part.exists() else entry.num_bytes) - self.max_bytes
                for old, size, _ in sorted(self._files(), key=lambda file: file[2]):
                    if missing > 0 and old != part and self._removed(old):
                        missing -= size
                if missing <= 0:
                    part.touch()
                    return
            if time.monotonic() > deadline:
                raise NoRoomError(
                    f"{self.directory}: no room for {entry.num_bytes} bytes more: up to {self.max_bytes} are allowed, "
                    f"and what is there is in use; set {BYTES_VARIABLE} to more"
                )
            time.sleep(_POLL_SECONDS)

    def _removed(self, path: Path) -> bool:
        """False if it is in use."""
        lock = self.directory / f"{path.name.partition('.')[0]}.lock"
        try:
            with _flocked(lock, fcntl.LOCK_EX | fcntl.LOCK_NB):
                path.unlink(missing_ok=True)
                lock.unlink(missing_ok=True)
                return True
        except BlockingIOError:
            return False

    def _files(self) -> list[tuple[Path, int, float]]:
        """(path, bytes, when it was last used) of all that takes room."""
        found = []
        for entry in os.scandir(self.directory):
            with suppress(FileNotFoundError):  # another process may remove it at any time
                if entry.name.endswith(".part"):
                    found.append((Path(entry.path), int(entry.name.split(".")[1]), entry.stat().st_mtime))
                elif not entry.name.endswith(".lock"):
                    found.append((Path(entry.path), entry.stat().st_size, entry.stat().st_mtime))
        return found

    def _locked(self, entry: Entry, kind: int) -> AbstractContextManager[None]:
        return _flocked(self.directory / f"{entry.sha256}.lock", kind)


@contextmanager
def _flocked(path: Path, kind: int) -> Iterator[None]:
    """BlockingIOError if it is taken and `kind` says not to wait."""
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            fcntl.flock(descriptor, kind)
            if _is_at(descriptor, path):  # else whoever had it has removed the file, and the lock guards nothing
                yield
                return
        finally:
            os.close(descriptor)


def _is_at(descriptor: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(descriptor), path.stat())
    except FileNotFoundError:
        return False


def _download(part: Path, entry: Entry, stop: Event) -> str:
    """Go on from what has arrived; the sha256 of the whole. A connection that breaks is taken up where it broke."""
    retry, url = entry.folder.retry, entry.folder.path(entry.name)
    failures, wait = 0, retry.first_wait
    digest = hashlib.sha256()
    with part.open("r+b") as file:
        while block := file.read(_BLOCK):
            digest.update(block)
        while file.tell() < entry.num_bytes:
            if stop.is_set():
                raise OSError(f"{url}: not wanted any more")
            try:
                data = entry.folder.read_range(entry.name, file.tell(), min(file.tell() + _BLOCK, entry.num_bytes))
                if not data:
                    raise OSError(f"no bytes from {file.tell()} on, expected {entry.num_bytes}")
            except Exception as error:
                failures += 1
                if not is_transient(error):
                    raise
                if failures >= retry.tries:
                    reason = " ".join(str(error).split()) or type(error).__name__
                    raise OSError(
                        f"{url}: broke off at byte {file.tell()} of {entry.num_bytes}, {failures} times in a row: "
                        f"{reason}; what has arrived is kept, try again later"
                    ) from error
                stop.wait(wait)
                wait = min(2 * wait, retry.longest_wait)
                continue
            failures, wait = 0, retry.first_wait
            digest.update(data)
            file.write(data)
            file.flush()
    return digest.hexdigest()


def _changed(url: str, expected: str, got: str) -> ChangedError:
    return ChangedError(
        f"{url}: expected sha256 {expected}, got {got}: changed since its manifest was written; shard the source again "
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
        held = sum(entry.stat().st_size for entry in os.scandir(directory) if entry.is_file())
        return (shutil.disk_usage(directory).free + held) // 2
    if not text.isdigit():
        raise ValueError(f"{BYTES_VARIABLE} must be a number of bytes, got {text!r}")
    return int(text)
