"""What the cache does with its directory, whatever else lies there and whatever has become of the remote file."""

from __future__ import annotations

import errno
import hashlib
import os
import resource
import socket
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from threading import Event, Thread
from typing import Any

import numpy as np
import pytest

import fdt_pipeline.storage.cache
from fdt_pipeline.storage.cache import Cache, ChangedError, Entry, NoRoomError
from fdt_pipeline.storage.remote import RemoteFolder
from fdt_pipeline.storage.retrying import Retry

fsspec = pytest.importorskip("fsspec")

SIZE = 20_000
FILES = {f"file-{number}": np.random.default_rng(number).bytes(SIZE) for number in range(6)}
QUICK = Retry(tries=3, first_wait=0.01, longest_wait=0.05)


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


@pytest.fixture
def folder() -> Iterator[RemoteFolder]:
    """Of a store in this process's memory."""
    folder = RemoteFolder("memory://files", QUICK)
    folder.fs.pipe({f"/files/{name}": data for name, data in FILES.items()})
    yield folder
    folder.fs.rm("/files", recursive=True)


def entry(folder: RemoteFolder, number: int) -> Entry:
    data = FILES[f"file-{number}"]
    return Entry(folder, f"file-{number}", len(data), sha256(data))


def overwrite(folder: RemoteFolder, number: int, data: bytes) -> None:
    with folder.writing(f"file-{number}") as file:
        file.write(data)


def test_files_that_are_not_of_the_cache_are_left_alone(folder: RemoteFolder, tmp_path: Path) -> None:
    (tmp_path / "holidays.jpg").write_bytes(bytes(SIZE))
    (tmp_path / "thesis.part").write_bytes(bytes(SIZE))
    (tmp_path / "folder").mkdir()
    cache = Cache(tmp_path, max_bytes=2 * SIZE)
    for number in range(4):
        with cache.leased(entry(folder, number)):
            assert cache.num_bytes() <= 2 * SIZE
    assert (tmp_path / "holidays.jpg").exists()
    assert (tmp_path / "thesis.part").exists()
    assert (tmp_path / "folder").is_dir()


def test_small_files_keep_to_the_bound_too(folder: RemoteFolder, tmp_path: Path) -> None:
    cache = Cache(tmp_path, max_bytes=SIZE)
    with cache.leased(entry(folder, 0)) as held:
        assert cache.read_small(folder, "file-1", sha256(FILES["file-1"])) == FILES["file-1"], "read, if not kept"
        assert held.exists()
        assert cache.num_bytes() <= SIZE
    assert cache.read_small(folder, "file-1", sha256(FILES["file-1"])) == FILES["file-1"]
    assert cache.num_bytes() <= SIZE


def test_a_small_file_that_was_changed_is_an_error(folder: RemoteFolder, tmp_path: Path) -> None:
    with pytest.raises(ChangedError, match=r"memory://files/file-0: expected sha256 .* changed since its manifest"):
        Cache(tmp_path).read_small(folder, "file-0", sha256(b"another"))


def test_what_a_killed_process_left_behind_is_forgotten_when_room_is_needed(
    folder: RemoteFolder, tmp_path: Path
) -> None:
    (tmp_path / f".{sha256(b'a')}.123-abc.tmp").write_bytes(bytes(SIZE))
    (tmp_path / f"{sha256(b'b')}.{SIZE}.part").write_bytes(bytes(10))
    cache = Cache(tmp_path, max_bytes=2 * SIZE)
    assert cache.num_bytes() == 2 * SIZE, "a part counts whole"
    for number in (0, 1):
        with cache.leased(entry(folder, number)):
            assert cache.num_bytes() <= 2 * SIZE
    assert sorted(path.name for path in tmp_path.iterdir() if path.suffix in (".part", ".tmp")) == []


def test_a_file_that_is_damaged_while_the_process_runs_is_fetched_again(folder: RemoteFolder, tmp_path: Path) -> None:
    cache, wanted = Cache(tmp_path), entry(folder, 0)
    with cache.leased(wanted) as path:
        assert sha256(path.read_bytes()) == wanted.sha256
    os.utime(path, (1, 1))
    path.write_bytes(FILES["file-1"])
    with cache.leased(wanted) as path:
        assert sha256(path.read_bytes()) == wanted.sha256


def test_a_file_is_looked_at_byte_by_byte_once_a_process(
    folder: RemoteFolder, tmp_path: Path, monkeypatch: Any
) -> None:
    cache, hashed = Cache(tmp_path), []
    sha256_of = fdt_pipeline.storage.cache.sha256_of
    monkeypatch.setattr(fdt_pipeline.storage.cache, "sha256_of", lambda file: hashed.append(file) or sha256_of(file))
    for _ in range(3):
        with cache.leased(entry(folder, 0)):
            pass
    assert len(hashed) == 1


@pytest.mark.parametrize("data", [b"", FILES["file-1"][:100], FILES["file-1"] + b"x"], ids=["empty", "less", "more"])
def test_a_file_of_another_size_has_changed(folder: RemoteFolder, tmp_path: Path, data: bytes) -> None:
    overwrite(folder, 0, data)
    with (
        pytest.raises(ChangedError, match=r"memory://files/file-0: .*changed since its manifest was written"),
        Cache(tmp_path).leased(entry(folder, 0)),
    ):
        pass


def test_a_file_that_is_gone_is_named(folder: RemoteFolder, tmp_path: Path) -> None:
    folder.remove("file-0")
    with pytest.raises(FileNotFoundError, match=r"memory://files/file-0"), Cache(tmp_path).leased(entry(folder, 0)):
        pass


def spied_on(monkeypatch: Any, change: Any = lambda begin, data: data) -> list[int]:
    """Where each request for a range begins, from here on; what is answered may be changed."""
    begins: list[int] = []
    real = RemoteFolder.read_range

    def read_range(self: RemoteFolder, name: str, begin: int, end: int) -> bytes:
        begins.append(begin)
        return change(begin, real(self, name, begin, end))

    monkeypatch.setattr(RemoteFolder, "read_range", read_range)
    return begins


@pytest.mark.parametrize("times", [1, 2])
def test_a_file_that_is_replaced_between_two_requests_is_never_served_mixed(
    folder: RemoteFolder, tmp_path: Path, monkeypatch: Any, times: int
) -> None:
    monkeypatch.setattr(fdt_pipeline.storage.cache, "BLOCK_BYTES", 5000)

    def replaced(begin: int, data: bytes) -> bytes:
        return FILES["file-1"][begin : begin + 5000] if begin == 10_000 and begins.count(begin) <= times else data

    begins = spied_on(monkeypatch, replaced)
    fetching = Cache(tmp_path).leased(entry(folder, 0))
    if times == 1:
        with fetching as path:
            assert path.read_bytes() == FILES["file-0"]
    else:
        with pytest.raises(ChangedError, match="changed since"), fetching:
            pass
        assert not list(tmp_path.glob("*.part"))
    assert begins == [0, 5000, 10_000, 15_000] * 2, "once more from the beginning, and not for ever"


def without_locks(monkeypatch: Any, answer: int | None) -> None:
    """As on file systems of clusters, where flock locks nothing, or fails."""

    def flock(descriptor: int, kind: int) -> None:
        if answer is not None:
            raise OSError(answer, os.strerror(answer))

    monkeypatch.setattr(fdt_pipeline.storage.cache.fcntl, "flock", flock)


@pytest.mark.parametrize("answer", [None, errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOLCK])
def test_where_flock_locks_nothing_two_processes_may_fetch_the_same_file(
    folder: RemoteFolder, tmp_path: Path, monkeypatch: Any, answer: int | None
) -> None:
    monkeypatch.setattr(fdt_pipeline.storage.cache, "BLOCK_BYTES", 5000)
    without_locks(monkeypatch, answer)

    def another_is_quicker(begin: int, data: bytes) -> bytes:
        if len(begins) == 3:
            with Cache(tmp_path).leased(entry(folder, 0)) as path:
                assert path.read_bytes() == FILES["file-0"]
        return data

    begins = spied_on(monkeypatch, another_is_quicker)
    with Cache(tmp_path).leased(entry(folder, 0)) as path:
        assert path.read_bytes() == FILES["file-0"]
    assert begins == [0, 5000, 10_000, 0, 5000, 10_000, 15_000, 15_000], "each for itself"
    assert not list(tmp_path.glob("*.part"))


def test_where_flock_locks_nothing_a_part_that_another_removed_is_fetched_again(
    folder: RemoteFolder, tmp_path: Path, monkeypatch: Any
) -> None:
    without_locks(monkeypatch, None)

    def removed(begin: int, data: bytes) -> bytes:
        if len(begins) == 1:
            [part] = tmp_path.glob("*.part")
            part.unlink()
        return data

    begins = spied_on(monkeypatch, removed)
    with Cache(tmp_path).leased(entry(folder, 0)) as path:
        assert path.read_bytes() == FILES["file-0"]


def part_of(process: str) -> str:
    return f"{sha256(FILES['file-0'])}.{SIZE}.{process}.part"


def test_the_largest_part_that_dead_processes_left_is_gone_on_with(
    folder: RemoteFolder, tmp_path: Path, monkeypatch: Any
) -> None:
    host, no_process = socket.gethostname().replace(".", "_"), 2**22 + 1
    names = [part_of(f"{host}-{no_process}-1234-{number}") for number in range(3)]
    names.append(part_of(f"{host}-{os.getpid()}-0-0"))  # of a process whose number has come again
    for name, num_bytes in zip(names, (7000, 9000, 8000, 6000), strict=True):
        (tmp_path / name).write_bytes(FILES["file-0"][:num_bytes])
    begins = spied_on(monkeypatch)
    with Cache(tmp_path).leased(entry(folder, 0)) as path:
        assert path.read_bytes() == FILES["file-0"]
    assert begins == [9000]
    assert not list(tmp_path.glob("*.part"))


def test_a_part_of_another_host_is_left_alone_until_room_is_needed(folder: RemoteFolder, tmp_path: Path) -> None:
    part = tmp_path / part_of("another-host-7-1234-0")
    part.write_bytes(b"what it will be")
    os.utime(part, (1, 1))
    cache = Cache(tmp_path, max_bytes=3 * SIZE)
    with cache.leased(entry(folder, 0)):
        assert part.exists()
        assert cache.num_bytes() == 2 * SIZE, "it counts whole"
    with cache.leased(entry(folder, 1)), cache.leased(entry(folder, 2)):
        assert not part.exists()


def test_a_transfer_that_was_given_up_is_gone_on_with_by_the_same_process(
    folder: RemoteFolder, tmp_path: Path, monkeypatch: Any
) -> None:
    monkeypatch.setattr(fdt_pipeline.storage.cache, "BLOCK_BYTES", 5000)

    def broken(begin: int, data: bytes) -> bytes:
        if begin == 10_000 and begins.count(begin) <= QUICK.tries:
            raise TimeoutError
        return data

    begins = spied_on(monkeypatch, broken)
    cache = Cache(tmp_path)
    with pytest.raises(OSError, match="what has arrived is kept"), cache.leased(entry(folder, 0)):
        pass
    with cache.leased(entry(folder, 0)) as path:
        assert path.read_bytes() == FILES["file-0"]
    assert begins == [0, 5000, *[10_000] * (QUICK.tries + 1), 15_000]


class Patience(Event):
    """At the third wait something happens."""

    def __init__(self, happens: Any) -> None:
        super().__init__()
        self.happens, self.num_waits = happens, 0

    def wait(self, timeout: float | None = None) -> bool:
        self.num_waits += bool(timeout)
        if timeout and self.num_waits == 3:
            self.happens()
        return super().wait(0)


def test_a_damaged_file_that_another_is_reading_is_waited_for_without_spinning(
    folder: RemoteFolder, tmp_path: Path, monkeypatch: Any
) -> None:
    wanted, num_locks, reader = entry(folder, 0), [], ExitStack()
    reader.enter_context(Cache(tmp_path).leased(wanted)).write_bytes(FILES["file-1"])
    flock = fdt_pipeline.storage.cache.fcntl.flock

    def counted(descriptor: int, kind: int) -> None:
        num_locks.append(kind)
        assert len(num_locks) < 20, "it spins"
        flock(descriptor, kind)

    monkeypatch.setattr(fdt_pipeline.storage.cache.fcntl, "flock", counted)
    stop = Patience(reader.close)
    with Cache(tmp_path).leased(wanted, stop=stop) as path:
        assert path.read_bytes() == FILES["file-0"]
    assert stop.num_waits == 3


def test_waiting_for_whoever_reads_a_damaged_file_ends_when_it_is_not_wanted_any_more(
    folder: RemoteFolder, tmp_path: Path
) -> None:
    wanted = entry(folder, 0)
    with Cache(tmp_path).leased(wanted) as path:
        path.write_bytes(FILES["file-1"])
        stop = Patience(lambda: stop.set())  # noqa: PLW0108
        with pytest.raises(OSError, match="not wanted any more"), Cache(tmp_path).leased(wanted, stop=stop):
            pass


def test_waiting_for_another_process_ends_when_the_file_is_not_wanted_any_more(
    folder: RemoteFolder, tmp_path: Path
) -> None:
    fetching, go_on, stop, errors = Event(), Event(), Event(), []

    class Slow(RemoteFolder):
        def read_range(self, name: str, begin: int, end: int) -> bytes:
            fetching.set()
            go_on.wait()
            return super().read_range(name, begin, end)

    def lease(wanted: Entry, stop: Event) -> None:
        try:
            with Cache(tmp_path).leased(wanted, stop=stop):
                pass
        except OSError as error:
            errors.append(str(error))

    other = Thread(target=lease, args=(entry(Slow("memory://files", QUICK), 0), Event()), daemon=True)
    other.start()
    fetching.wait()
    waiting = Thread(target=lease, args=(entry(folder, 0), stop), daemon=True)
    waiting.start()
    stop.set()
    waiting.join(60)
    assert not waiting.is_alive()
    go_on.set()
    other.join()
    assert errors == ["memory://files/file-0: not wanted any more"]


def test_a_full_disk_is_an_error_that_names_the_cache(folder: RemoteFolder, tmp_path: Path) -> None:
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    wanted = entry(folder, 0)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, limits[1]))
    try:
        with (
            pytest.raises(OSError, match=r"part: cannot be written \(File too large\).*FDT_PIPELINE_SHARD_CACHE"),
            Cache(tmp_path).leased(wanted),
        ):
            pass
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    with Cache(tmp_path).leased(wanted) as path:
        assert path.read_bytes() == FILES["file-0"]


@pytest.mark.parametrize("text", ["a lot", "-1", "1e9"])
def test_a_bound_that_is_no_number_is_refused(tmp_path: Path, monkeypatch: Any, text: str) -> None:
    monkeypatch.setenv("FDT_PIPELINE_SHARD_CACHE_BYTES", text)
    with pytest.raises(ValueError, match="FDT_PIPELINE_SHARD_CACHE_BYTES must be a number of bytes, got"):
        Cache(tmp_path)


def test_the_default_directory_and_bound(tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.delenv("FDT_PIPELINE_SHARD_CACHE", raising=False)
    monkeypatch.delenv("FDT_PIPELINE_SHARD_CACHE_BYTES", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    cache = Cache()
    assert cache.directory == tmp_path / "xdg" / "fdt-pipeline" / "shards"
    disk = os.statvfs(tmp_path)
    assert cache.max_bytes == pytest.approx(disk.f_bavail * disk.f_frsize / 2, rel=0.2)
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert Cache().directory == tmp_path / "home" / ".cache" / "fdt-pipeline" / "shards"


def test_threads_with_one_small_cache_all_get_their_files(folder: RemoteFolder, tmp_path: Path) -> None:
    cache, wrong = Cache(tmp_path, max_bytes=3 * SIZE), []

    def use(seed: int) -> None:
        for number in np.random.default_rng(seed).integers(0, len(FILES), 15):
            with cache.leased(entry(folder, int(number))) as path:
                if path.read_bytes() != FILES[f"file-{number}"] or cache.num_bytes() > 3 * SIZE:
                    wrong.append(number)

    threads = [Thread(target=use, args=(seed,), daemon=True) for seed in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert not any(thread.is_alive() for thread in threads)
    assert wrong == []


def test_what_is_in_use_is_not_forgotten_and_no_room_is_said_with_what_is_needed(
    folder: RemoteFolder, tmp_path: Path
) -> None:
    cache, other = Cache(tmp_path, 2 * SIZE), Cache(tmp_path, 2 * SIZE)
    with cache.leased(entry(folder, 0)) as first, other.leased(entry(folder, 1)) as second:
        message = rf"no room for {SIZE} bytes more: up to {2 * SIZE} are allowed, and what is there is in use"
        with pytest.raises(NoRoomError, match=message), cache.leased(entry(folder, 2), wait=False):
            pass
        assert first.exists()
        assert second.exists()
    with cache.leased(entry(folder, 2), wait=False) as third:
        assert third.exists()


def test_a_file_larger_than_the_cache_is_refused(folder: RemoteFolder, tmp_path: Path) -> None:
    with (
        pytest.raises(ValueError, match=r"more than the cache may hold .* FDT_PIPELINE_SHARD_CACHE_BYTES to more"),
        Cache(tmp_path, 1000).leased(entry(folder, 0)),
    ):
        pass
