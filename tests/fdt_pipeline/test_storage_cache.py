"""What the cache does with its directory, whatever else lies there and whatever has become of the remote file."""

import errno
import fcntl
import hashlib
import os
import resource
from contextlib import ExitStack, contextmanager
from threading import Event, Thread

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


def sha256(data):
    return hashlib.sha256(data).hexdigest()


@pytest.fixture
def folder(monkeypatch):
    """A folder in this process's memory, whose files are fetched in four requests each."""
    monkeypatch.setattr(fdt_pipeline.storage.cache, "BLOCK_BYTES", SIZE // 4)
    folder = RemoteFolder("memory://files", QUICK)
    folder.fs.pipe({f"/files/{name}": data for name, data in FILES.items()})
    yield folder
    folder.fs.rm("/files", recursive=True)


def entry(folder, number):
    data = FILES[f"file-{number}"]
    return Entry(folder, f"file-{number}", len(data), sha256(data))


def fetched(cache, wanted, **options):
    with cache.leased(wanted, **options) as path:
        return path.read_bytes()


def test_the_cache_keeps_to_its_size_and_forgets_what_was_not_used_for_longest(folder, tmp_path):
    """Other files there are neither counted nor removed; what a killed process left is."""
    others = {"holidays.jpg", "thesis.part"}
    for name in (*others, f".{sha256(b'a')}.123-abc.tmp"):
        (tmp_path / name).write_bytes(bytes(SIZE))
    (tmp_path / f"{sha256(b'b')}.{SIZE}.part").write_bytes(bytes(10))
    cache = Cache(tmp_path, max_bytes=3 * SIZE)
    assert cache.num_bytes() == 2 * SIZE, "a part counts whole"
    for number in (0, 1, 2, 0, 3, 4):
        with cache.leased(entry(folder, number)):
            assert cache.num_bytes() <= 3 * SIZE
    held = {sha256(FILES[f"file-{number}"]) for number in (0, 3, 4)}
    assert {path.name for path in tmp_path.iterdir()} == held | others | {"room.lock"}


def test_small_files_keep_to_the_bound_too(folder, tmp_path):
    cache = Cache(tmp_path, max_bytes=SIZE)
    with cache.leased(entry(folder, 0)) as held:
        assert cache.read_small(folder, "file-1", sha256(FILES["file-1"])) == FILES["file-1"], "read, if not kept"
        assert held.exists()
        assert cache.num_bytes() <= SIZE
    assert cache.read_small(folder, "file-1", sha256(FILES["file-1"])) == FILES["file-1"]
    assert cache.num_bytes() <= SIZE
    with pytest.raises(ChangedError, match=r"memory://files/file-0: expected sha256 .* changed since its manifest"):
        cache.read_small(folder, "file-0", sha256(b"another"))


def test_a_file_is_hashed_when_the_process_first_meets_it_or_it_has_changed(folder, tmp_path, monkeypatch):
    cache, hashed = Cache(tmp_path), []
    sha256_of = fdt_pipeline.storage.cache.sha256_of
    monkeypatch.setattr(fdt_pipeline.storage.cache, "sha256_of", lambda file: hashed.append(file) or sha256_of(file))
    for _ in range(3):
        assert fetched(cache, entry(folder, 0)) == FILES["file-0"]
    assert len(hashed) == 1
    path = tmp_path / entry(folder, 0).sha256
    path.write_bytes(FILES["file-1"])
    os.utime(path, (1, 1))
    assert fetched(cache, entry(folder, 0)) == FILES["file-0"], "a damaged file is fetched again"


@pytest.mark.parametrize(
    "data", [None, b"", FILES["file-1"][:100], FILES["file-1"] + b"x"], ids=["gone", "empty", "less", "more"]
)
def test_a_file_that_is_not_the_one_in_the_manifest_is_named(folder, tmp_path, data):
    folder.remove("file-0")
    error, message = FileNotFoundError, "not there"
    if data is not None:
        folder.fs.pipe("/files/file-0", data)
        error, message = ChangedError, "changed since its manifest was written"
    with pytest.raises(error, match=rf"memory://files/file-0: .*{message}"):
        fetched(Cache(tmp_path), entry(folder, 0))


def spied_on(monkeypatch, change=lambda begin, data: data):
    """Where each request for a range begins, from here on; what is answered may be changed."""
    begins = []
    real = RemoteFolder.read_range

    def read_range(self, name, begin, end):
        begins.append(begin)
        return change(begin, real(self, name, begin, end))

    monkeypatch.setattr(RemoteFolder, "read_range", read_range)
    return begins


@pytest.mark.parametrize("times", [1, 2])
def test_a_file_that_is_replaced_between_two_requests_is_never_served_mixed(folder, tmp_path, monkeypatch, times):

    def replaced(begin, data):
        return FILES["file-1"][begin : begin + 5000] if begin == 10_000 and begins.count(begin) <= times else data

    begins = spied_on(monkeypatch, replaced)
    if times == 1:
        assert fetched(Cache(tmp_path), entry(folder, 0)) == FILES["file-0"]
    else:
        with pytest.raises(ChangedError, match="changed since"):
            fetched(Cache(tmp_path), entry(folder, 0))
    assert not list(tmp_path.glob("*.part"))
    assert begins == [0, 5000, 10_000, 15_000] * 2, "once more from the beginning, and not for ever"


@pytest.mark.parametrize("answer", [None, errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOLCK])
@pytest.mark.parametrize("begins_then", [[10_000, 15_000, 15_000], [15_000, 0, 5000, 10_000, 15_000]])
def test_where_flock_locks_nothing_another_may_finish_or_remove_the_part(
    folder, tmp_path, monkeypatch, answer, begins_then
):
    """On file systems of some clusters flock locks nothing, or fails. The third request is met by another process."""

    def flock(descriptor, kind):
        if answer is not None:
            raise OSError(answer, os.strerror(answer))

    def met(begin, data):
        if len(begins) == 3 and begins_then[0] == 10_000:
            assert fetched(Cache(tmp_path), entry(folder, 0)) == FILES["file-0"], "it goes on from what has arrived"
        elif len(begins) == 3:
            next(tmp_path.glob("*.part")).unlink()
        return data

    monkeypatch.setattr(fdt_pipeline.storage.cache.fcntl, "flock", flock)
    begins = spied_on(monkeypatch, met)
    assert fetched(Cache(tmp_path), entry(folder, 0)) == FILES["file-0"]
    assert begins == [0, 5000, 10_000, *begins_then]
    assert not list(tmp_path.glob("*.part"))


def test_a_transfer_that_was_given_up_is_gone_on_with_by_the_same_process(folder, tmp_path, monkeypatch):

    def broken(begin, data):
        if begin == 10_000 and begins.count(begin) <= QUICK.tries:
            raise TimeoutError
        return data

    begins = spied_on(monkeypatch, broken)
    cache = Cache(tmp_path)
    with pytest.raises(OSError, match="what has arrived is kept"):
        fetched(cache, entry(folder, 0))
    assert fetched(cache, entry(folder, 0)) == FILES["file-0"]
    assert begins == [0, 5000, *[10_000] * (QUICK.tries + 1), 15_000]


class Patience(Event):
    """The third wait calls `happens`."""

    def __init__(self, happens):
        super().__init__()
        self.happens, self.num_waits = happens, 0

    def wait(self, timeout=None):
        self.num_waits += bool(timeout)
        if timeout and self.num_waits == 3:
            self.happens()
        return super().wait(0)


@contextmanager
def read_while_damaged(directory, wanted):
    with Cache(directory).leased(wanted) as path:
        path.write_bytes(FILES["file-1"])
        yield


@contextmanager
def fetched_by_another_process(directory, wanted):
    with (directory / f"{wanted.sha256}.{SIZE}.part").open("w") as part:
        fcntl.flock(part, fcntl.LOCK_EX)
        yield


@pytest.mark.parametrize("used", [read_while_damaged, fetched_by_another_process])
def test_a_file_that_another_uses_is_waited_for_without_spinning_while_it_is_wanted(folder, tmp_path, used):
    wanted, other = entry(folder, 0), ExitStack()
    other.enter_context(used(tmp_path, wanted))
    stop = Patience(lambda: stop.set())  # noqa: PLW0108
    with pytest.raises(OSError, match=r"^memory://files/file-0: not wanted any more$"):
        fetched(Cache(tmp_path), wanted, stop=stop)
    patient = Patience(other.close)
    assert fetched(Cache(tmp_path), wanted, stop=patient) == FILES["file-0"]
    assert (stop.num_waits, patient.num_waits) == (3, 3)


def test_a_full_disk_is_an_error_that_names_the_cache(folder, tmp_path):
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    wanted = entry(folder, 0)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, limits[1]))
    try:
        with pytest.raises(OSError, match=r"part: cannot be written \(File too large\).*FDT_PIPELINE_SHARD_CACHE"):
            fetched(Cache(tmp_path), wanted)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert fetched(Cache(tmp_path), wanted) == FILES["file-0"]


@pytest.mark.parametrize("text", ["a lot", "-1", "1e9"])
def test_a_bound_that_is_no_number_is_refused(tmp_path, monkeypatch, text):
    monkeypatch.setenv("FDT_PIPELINE_SHARD_CACHE_BYTES", text)
    with pytest.raises(ValueError, match="FDT_PIPELINE_SHARD_CACHE_BYTES must be a number of bytes, got"):
        Cache(tmp_path)


def test_the_default_directory_and_bound(tmp_path, monkeypatch):
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


def test_threads_with_one_small_cache_all_get_their_files(folder, tmp_path):
    cache, wrong = Cache(tmp_path, max_bytes=3 * SIZE), []

    def use(seed):
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


def test_what_is_in_use_is_not_forgotten_and_no_room_is_said_with_what_is_needed(folder, tmp_path):
    cache, other = Cache(tmp_path, 2 * SIZE), Cache(tmp_path, 2 * SIZE)
    with cache.leased(entry(folder, 0)) as first, other.leased(entry(folder, 1)) as second:
        message = rf"no room for {SIZE} bytes more: up to {2 * SIZE} are allowed, and what is there is in use"
        with pytest.raises(NoRoomError, match=message):
            fetched(cache, entry(folder, 2), wait=False)
        assert first.exists()
        assert second.exists()
    assert fetched(cache, entry(folder, 2), wait=False) == FILES["file-2"]
    with pytest.raises(ValueError, match=r"more than the cache may hold .* FDT_PIPELINE_SHARD_CACHE_BYTES to more"):
        fetched(Cache(tmp_path, 1000), entry(folder, 0))
