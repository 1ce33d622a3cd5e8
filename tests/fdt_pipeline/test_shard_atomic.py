"""Shards are whole or not there, whatever happens while they are written."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from fdt_pipeline.shards import BadSampleError, SourceError, load_shards, read_manifest, write_shards
from fdt_pipeline.sources import ArraySource
from tests.folders import content, names

SOURCE = ArraySource(np.arange(40 * 4 * 4, dtype=np.uint16).astype(np.uint8).reshape(40, 4, 4), np.arange(40) % 4)


def test_only_final_files_are_left(tmp_path: Path) -> None:
    write_shards(SOURCE, tmp_path, samples_per_shard=20)
    tars = ["shard-000000.idx", "shard-000000.tar", "shard-000001.idx", "shard-000001.tar"]
    assert names(tmp_path) == ["manifest.json", *tars]


@pytest.mark.parametrize("stop", [KeyboardInterrupt, RuntimeError])
@pytest.mark.parametrize("workers", [1, 2])
def test_an_interrupted_run_leaves_what_is_finished_and_no_shard(
    tmp_path: Path, stop: type[BaseException], workers: int
) -> None:
    def interrupt(done: int, total: int) -> None:
        if done >= 20:
            raise stop

    with pytest.raises(stop):
        write_shards(SOURCE, tmp_path, samples_per_shard=10, progress=interrupt, workers=workers)
    assert names(tmp_path) == [".sharding"]
    assert not [name for name in names(tmp_path / ".sharding") if name.endswith(".tmp")]
    with pytest.raises(ValueError, match="an unfinished run, no shards yet"):
        read_manifest(tmp_path)


def test_a_run_that_fails_before_anything_is_finished_leaves_nothing(tmp_path: Path) -> None:
    broken = ArraySource(SOURCE.images, SOURCE.labels)
    broken.images = broken.images.astype(np.float32)  # type: ignore[assignment]
    with pytest.raises(ValueError, match="expected an image"):
        write_shards(broken, tmp_path)
    assert names(tmp_path) == []


@pytest.mark.parametrize("fails_at", range(1, 9))
def test_a_full_disk_says_what_to_do_and_with_room_the_run_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fails_at: int
) -> None:
    """The disk is full at the n-th file that is synced: plan, tar, index, record, tar, index, record, manifest."""
    real, calls = os.fsync, []

    def full(descriptor: int) -> None:
        calls.append(os.readlink(f"/proc/self/fd/{descriptor}"))
        if sum(name.endswith(".tmp") for name in calls) == fails_at:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        real(descriptor)

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match=r"could not write shards \(No space left on device\).*free space") as caught:
        write_shards(SOURCE, tmp_path / "out", samples_per_shard=20)
    monkeypatch.undo()
    assert caught.value.errno == errno.ENOSPC
    assert names(tmp_path / "out") in ([], [".sharding"])
    assert not list((tmp_path / "out").rglob("*.tmp"))
    write_shards(SOURCE, tmp_path / "out", samples_per_shard=20, resume=True)
    write_shards(SOURCE, tmp_path / "whole", samples_per_shard=20)
    assert content(tmp_path / "out") == content(tmp_path / "whole")


LIMITED = """
import resource, sys
import numpy as np
from fdt_pipeline.shards import write_shards
from fdt_pipeline.sources import ArraySource
from tests.folders import content, names
resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, 50_000))
write_shards(ArraySource(np.zeros((1000, 8, 8), np.uint8), np.zeros(1000, np.int64)), sys.argv[1])
"""


def test_a_write_that_the_kernel_refuses_leaves_nothing(tmp_path: Path) -> None:
    result = subprocess.run([sys.executable, "-c", LIMITED, str(tmp_path)], capture_output=True, text=True, check=False)
    assert "could not write shards (File too large)" in result.stderr
    assert names(tmp_path) == []


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


@pytest.mark.parametrize(
    ("failure", "raised", "message"),
    [
        (PermissionError(errno.EACCES, "Permission denied", "cat/1.png"), BadSampleError, "Permission denied: 'cat/1"),
        (
            OSError(errno.EIO, "Input/output error"),
            SourceError,
            "could not read sample .*Input/output error; fix that",
        ),
    ],
)
def test_a_failure_to_read_is_not_called_one_of_writing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failure: OSError, raised: type[Exception], message: str
) -> None:
    """Nor is a disk that fails taken for a bad sample, which a quarantine would leave out."""

    def unreadable(self: ArraySource, index: int) -> None:
        raise failure

    monkeypatch.setattr(ArraySource, "__getitem__", unreadable)
    with pytest.raises(raised, match=rf"sample \d+ of the source.*{message}|{message}"):
        write_shards(SOURCE, tmp_path, on_bad="quarantine" if raised is SourceError else "stop")
