"""Shards are whole or not there, whatever happens while they are written."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from fdt_pipeline.shards import ShardError, load_shards, read_manifest, verify_shards, write_shards
from fdt_pipeline.shards.atomic import atomic_file
from fdt_pipeline.sources import ArraySource

SOURCE = ArraySource(np.arange(40 * 4 * 4, dtype=np.uint16).astype(np.uint8).reshape(40, 4, 4), np.arange(40) % 4)


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_only_final_files_are_left(tmp_path: Path) -> None:
    write_shards(SOURCE, tmp_path, samples_per_shard=20)
    tars = ["shard-000000.idx", "shard-000000.tar", "shard-000001.idx", "shard-000001.tar"]
    assert names(tmp_path) == ["manifest.json", *tars]


def test_a_file_appears_when_its_block_ends_well_and_not_before(tmp_path: Path) -> None:
    with atomic_file(tmp_path / "file") as file:
        file.write(b"whole")
        assert names(tmp_path) == [".file.tmp"]
    assert names(tmp_path) == ["file"]
    assert (tmp_path / "file").read_bytes() == b"whole"


def test_a_block_that_fails_leaves_the_old_file(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"old")
    with pytest.raises(TypeError), atomic_file(tmp_path / "file") as file:
        file.writelines([b"half", None])  # type: ignore[list-item]
    assert names(tmp_path) == ["file"]
    assert (tmp_path / "file").read_bytes() == b"old"


@pytest.mark.parametrize("stop", [KeyboardInterrupt, RuntimeError])
def test_an_interrupted_run_leaves_nothing(tmp_path: Path, stop: type[BaseException]) -> None:
    def interrupt(done: int, total: int) -> None:
        if done == 25:
            raise stop

    with pytest.raises(stop):
        write_shards(SOURCE, tmp_path, samples_per_shard=10, progress=interrupt)
    assert names(tmp_path) == []


@pytest.mark.parametrize("fails_at", range(1, 6))
def test_a_full_disk_leaves_nothing_and_says_what_to_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fails_at: int
) -> None:
    """The disk is full at the n-th file that is synced: tar, index, tar, index, manifest."""
    real, calls = os.fsync, []

    def full(descriptor: int) -> None:
        calls.append(os.readlink(f"/proc/self/fd/{descriptor}"))
        if sum(name.endswith(".tmp") for name in calls) == fails_at:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        real(descriptor)

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match=r"could not write shards \(No space left on device\).*free space") as caught:
        write_shards(SOURCE, tmp_path, samples_per_shard=20)
    assert caught.value.errno == errno.ENOSPC
    assert names(tmp_path) == []


LIMITED = """
import resource, sys
import numpy as np
from fdt_pipeline.shards import write_shards
from fdt_pipeline.sources import ArraySource
resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, 50_000))
write_shards(ArraySource(np.zeros((1000, 8, 8), np.uint8), np.zeros(1000, np.int64)), sys.argv[1])
"""


def test_a_write_that_the_kernel_refuses_leaves_nothing(tmp_path: Path) -> None:
    result = subprocess.run([sys.executable, "-c", LIMITED, str(tmp_path)], capture_output=True, text=True, check=False)
    assert "could not write shards (File too large)" in result.stderr
    assert names(tmp_path) == []


KILLED = """
import os, signal, sys
import numpy as np
from fdt_pipeline.shards import write_shards
from fdt_pipeline.sources import ArraySource
kill = lambda done, total: done == 25 and os.kill(os.getpid(), signal.SIGKILL)
source = ArraySource(np.zeros((40, 4, 4), np.uint8), np.arange(40) % 4)
write_shards(source, sys.argv[1], samples_per_shard=10, overwrite=True, progress=kill)
"""


def test_a_killed_overwrite_is_never_taken_for_whole_and_can_be_repeated(tmp_path: Path) -> None:
    write_shards(SOURCE, tmp_path, samples_per_shard=10)
    result = subprocess.run([sys.executable, "-c", KILLED, str(tmp_path)], capture_output=True, check=False)
    assert result.returncode == -signal.SIGKILL
    assert ".shard-000002.tar.tmp" in names(tmp_path), "it died in the third shard"
    with pytest.raises(ShardError, match="interrupted"):
        read_manifest(tmp_path)
    with pytest.raises(ValueError, match="of an interrupted run or of another program; replace them with --overwrite"):
        write_shards(SOURCE, tmp_path)
    write_shards(SOURCE, tmp_path, overwrite=True)
    assert names(tmp_path) == ["manifest.json", "shard-000000.idx", "shard-000000.tar"]
    assert verify_shards(tmp_path) == []


def test_shards_are_not_overwritten_unasked(tmp_path: Path) -> None:
    write_shards(SOURCE, tmp_path)
    with pytest.raises(ValueError, match="holds shards already; replace them with --overwrite"):
        write_shards(SOURCE, tmp_path, seed=1)
    assert read_manifest(tmp_path).seed == 0


def test_overwriting_removes_stale_shards_and_nothing_else(tmp_path: Path) -> None:
    write_shards(SOURCE, tmp_path, samples_per_shard=5)
    for name in ("notes.txt", "shard-list.txt"):
        (tmp_path / name).touch()
    write_shards(SOURCE, tmp_path, samples_per_shard=40, overwrite=True)
    assert names(tmp_path) == ["manifest.json", "notes.txt", "shard-000000.idx", "shard-000000.tar", "shard-list.txt"]
    assert len(load_shards(tmp_path)[2]) == 40


def test_a_file_in_place_of_the_folder_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for out in (tmp_path / "file", tmp_path / "file" / "out"):
        for overwrite in (False, True):
            with pytest.raises(ValueError, match=f"^{tmp_path}/file: is a file, expected a folder"):
                write_shards(SOURCE, out, overwrite=overwrite)


def test_a_failure_to_read_is_not_called_one_of_writing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def unreadable(self: ArraySource, index: int) -> None:
        raise PermissionError(errno.EACCES, "Permission denied", "cat/1.png")

    monkeypatch.setattr(ArraySource, "__getitem__", unreadable)
    with pytest.raises(ValueError, match=r"of the source: .*Permission denied: 'cat/1.png'"):
        write_shards(SOURCE, tmp_path)
