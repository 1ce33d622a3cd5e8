"""Shards are whole or not there, and a killed run goes on and ends with the bytes of one that was not killed."""

from __future__ import annotations

import errno
import io
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pytest
from PIL import Image

from fdt_pipeline.shards import (
    BadSampleError,
    SourceError,
    load_shards,
    read_manifest,
    shard_sets,
    verify_shards,
    write_shards,
)
from fdt_pipeline.sources import ArraySource, Source, open_source
from fdt_pipeline.sources.image_folder import ImageFolder
from fdt_pipeline.sources.source import Sample
from tests.folders import content, names

SOURCE = ArraySource(np.arange(40 * 4 * 4, dtype=np.uint16).astype(np.uint8).reshape(40, 4, 4), np.arange(40) % 4)
SUBSET = "train/data/fashion_mnist_subset"
RUN = f"""
import sys
from fdt_pipeline.shards import write_shards
from fdt_pipeline.sources import open_source
if __name__ == "__main__":
    source = open_source("{SUBSET}", split="train")
    write_shards(source, sys.argv[1], "png", samples_per_shard=10, workers=int(sys.argv[2]), resume=True)
"""


class StopError(Exception):
    pass


def stopped_after(
    tasks: int, out: Path, source: Source = SOURCE, stop: type[BaseException] = StopError, **options: Any
) -> None:
    """A run that ends when so many tasks of 10 samples are done."""

    def progress(done: int, total: int) -> None:
        if done >= 10 * tasks:
            raise stop

    with pytest.raises(stop):
        write_shards(source, out, samples_per_shard=10, progress=progress, **options)


@pytest.mark.soak
@pytest.mark.parametrize("workers", [1, 3])
def test_killed_at_random_moments_many_times_it_ends_with_the_same_bytes(tmp_path: Path, workers: int) -> None:
    script = tmp_path / "run.py"
    script.write_text(RUN)
    whole, out = tmp_path / "whole", tmp_path / "out"
    write_shards(open_source(SUBSET, split="train"), whole, "png", samples_per_shard=10)
    moments, kills = random.Random(workers), 0
    while True:
        command = [sys.executable, str(script), str(out), str(workers)]
        process = subprocess.Popen(command, env={**os.environ, "PYTHONPATH": "."})
        try:
            assert process.wait(moments.uniform(0.2, 0.7 + 0.15 * kills)) == 0  # some machines are slow to start
            break
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGKILL)
            process.wait()
            kills += 1
            assert kills < 100, "no run gets anything done"
        if (out / "manifest.json").exists():
            assert verify_shards(out, decode=True) == []
    assert kills >= 4
    assert content(out) == content(whole)


def test_what_is_finished_is_not_done_again(tmp_path: Path) -> None:
    stopped_after(2, tmp_path)
    assert names(tmp_path) == [".sharding"]
    tars = sorted((tmp_path / ".sharding").glob("*.tar"))
    before = [path.stat().st_mtime_ns for path in tars]
    assert len(tars) == 2
    calls: list[int] = []
    write_shards(SOURCE, tmp_path, samples_per_shard=10, resume=True, progress=lambda done, _: calls.append(done))
    assert calls == [30, 40]
    after = [(tmp_path / f"shard-00000{i}.tar").stat().st_mtime_ns for i in range(2)]
    assert after == before


@pytest.mark.parametrize("damage", ["flip", "cut", "remove", "record"])
def test_what_was_damaged_meanwhile_is_done_again(tmp_path: Path, damage: str) -> None:
    write_shards(SOURCE, tmp_path / "whole", samples_per_shard=10)
    out = tmp_path / "out"
    stopped_after(2, out)
    path = out / ".sharding" / "task-000000-0000.tar"
    data = bytearray(path.read_bytes())
    data[600] ^= 1
    if damage == "remove":
        path.unlink()
    elif damage == "record":
        path.with_name("task-000000.json").write_text("{")
    else:
        path.write_bytes(data if damage == "flip" else data[:700])
    write_shards(SOURCE, out, samples_per_shard=10, resume=True)
    assert content(out) == content(tmp_path / "whole")


def png(value: int, side: int = 2) -> bytes:
    file = io.BytesIO()
    Image.new("L", (side, side), value).save(file, "PNG")
    return file.getvalue()


@pytest.mark.parametrize("url", ["{tmp}/photos", "memory://changing"])
def test_a_file_that_changes_while_it_is_read_is_read_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, url: str
) -> None:
    """Each file of the first run does, as soon as its bytes have been read."""
    url = url.format(tmp=tmp_path)
    photos, _ = fsspec.url_to_fs(url)
    place = photos._strip_protocol(url)
    photos.makedirs(f"{place}/cat")
    photos.pipe({f"{place}/cat/{index}.png": png(index) for index in range(20)})
    real = ImageFolder.read_file

    def changed_behind(self: ImageFolder, index: int) -> bytes:
        data = real(self, index)
        photos.pipe(f"{place}/{self.key(index)}", png(200, side=3))
        return data

    monkeypatch.setattr(ImageFolder, "read_file", changed_behind)
    stopped_after(1, tmp_path / "out", open_source(url), encoding="keep")
    monkeypatch.undo()
    write_shards(open_source(url), tmp_path / "out", "keep", samples_per_shard=10, resume=True)
    write_shards(open_source(url), tmp_path / "whole", "keep", samples_per_shard=10)
    assert content(tmp_path / "out") == content(tmp_path / "whole")


class Custom:
    """A source of one's own, that says when it has changed and knows no lean `take`."""

    kind, split, shape, classes = "custom", None, None, ("cat",)
    labels = np.zeros(20, np.int64)

    def __init__(self, value: int) -> None:
        self.value = value

    def __len__(self) -> int:
        return 20

    def __getitem__(self, index: int) -> Sample:
        return Sample(np.full((2, 2, 1), self.value, np.uint8), 0, str(index))

    def states(self, positions: Iterable[int]) -> Iterator[str]:
        return (f"{position}: {self.value}" for position in positions)


@pytest.mark.parametrize(
    ("first", "second"), [(SOURCE, ArraySource(255 - SOURCE.images, SOURCE.labels)), (Custom(1), Custom(2))]
)
def test_tasks_whose_samples_have_changed_are_done_again(tmp_path: Path, first: Source, second: Source) -> None:
    stopped_after(1, tmp_path / "out", first)
    write_shards(second, tmp_path / "out", samples_per_shard=10, resume=True)
    write_shards(second, tmp_path / "whole", samples_per_shard=10)
    assert content(tmp_path / "out") == content(tmp_path / "whole")


@pytest.mark.parametrize("changed", [{"seed": 1}, {"encoding": "png"}, {"size": 3}, {"max_shard_bytes": 20480}])
def test_another_plan_is_refused(tmp_path: Path, changed: dict[str, object]) -> None:
    stopped_after(1, tmp_path)
    options = {"samples_per_shard": 10, **changed}
    with pytest.raises(ValueError, match="the unfinished run there is of another source, or has other options"):
        write_shards(SOURCE, tmp_path, resume=True, **options)  # type: ignore[arg-type]
    relabelled = ArraySource(SOURCE.images, SOURCE.labels[::-1])
    with pytest.raises(ValueError, match="the unfinished run there is of another source, or has other options"):
        write_shards(relabelled, tmp_path, samples_per_shard=10, resume=True)


def test_an_unfinished_run_is_neither_replaced_nor_gone_on_with_unasked(tmp_path: Path) -> None:
    stopped_after(1, tmp_path)
    with pytest.raises(ValueError, match="holds an unfinished run: go on with --resume, or start over with --over"):
        write_shards(SOURCE, tmp_path, samples_per_shard=10)
    write_shards(SOURCE, tmp_path, samples_per_shard=20, overwrite=True)
    assert len(read_manifest(tmp_path).shards) == 2


def test_resume_and_overwrite_exclude_each_other(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="--overwrite starts over and --resume goes on: choose one"):
        write_shards(SOURCE, tmp_path, resume=True, overwrite=True)


def test_resuming_nothing_begins(tmp_path: Path) -> None:
    """So that one command can be repeated until it succeeds."""
    write_shards(SOURCE, tmp_path / "out", resume=True)
    assert verify_shards(tmp_path / "out") == []


def test_resuming_a_finished_set_changes_nothing(tmp_path: Path) -> None:
    manifest = write_shards(SOURCE, tmp_path)
    before = content(tmp_path)
    assert write_shards(SOURCE, tmp_path, resume=True) == manifest
    with pytest.raises(ValueError, match="holds a finished set of another kind: seed is 0, asked for 1"):
        write_shards(SOURCE, tmp_path, seed=1, resume=True)
    assert content(tmp_path) == before


def test_the_old_set_is_whole_until_the_new_one_is(tmp_path: Path) -> None:
    write_shards(SOURCE, tmp_path, samples_per_shard=40)
    old = content(tmp_path)
    stopped_after(3, tmp_path, overwrite=True)
    assert {name: data for name, data in content(tmp_path).items() if ".sharding" not in name} == old
    assert verify_shards(tmp_path) == []
    write_shards(SOURCE, tmp_path, samples_per_shard=10, resume=True)
    write_shards(SOURCE, tmp_path.with_name("fresh"), samples_per_shard=10)
    assert content(tmp_path) == content(tmp_path.with_name("fresh"))


MOVING = """
import os, signal, sys
import numpy as np
from fdt_pipeline.shards import write_shards
from fdt_pipeline.sources import ArraySource
from fdt_pipeline.storage.folder import LocalFolder
calls, name, at = [], sys.argv[2], int(sys.argv[3])
real = getattr(LocalFolder, name)
def killed(self, *arguments):
    calls.append(arguments)
    if len(calls) == at:
        os.kill(os.getpid(), signal.SIGKILL)
    return real(self, *arguments)
source = ArraySource(np.arange(40 * 16, dtype=np.uint16).astype(np.uint8).reshape(40, 4, 4), np.arange(40) % 4)
setattr(LocalFolder, name, killed)
write_shards(source, sys.argv[1], samples_per_shard=20, overwrite=True)
"""


@pytest.mark.parametrize(
    ("call", "at"), [("move", 1), ("move", 2), ("move", 4), ("move", 5), ("remove_tree", 2), ("remove", 1), ("sync", 2)]
)
def test_killed_while_it_replaces_an_old_set_it_is_never_taken_for_whole(tmp_path: Path, call: str, at: int) -> None:
    """The last moves are four of tars and indexes, and one of the manifest."""
    out = tmp_path / "out"
    write_shards(SOURCE, out, samples_per_shard=5, seed=9)
    result = subprocess.run([sys.executable, "-c", MOVING, str(out), call, str(at)], capture_output=True, check=False)
    assert result.returncode == -signal.SIGKILL
    if (out / "manifest.json").exists():
        assert verify_shards(out) == []
    write_shards(SOURCE, out, samples_per_shard=20, resume=True)
    write_shards(SOURCE, tmp_path / "whole", samples_per_shard=20)
    assert content(out) == content(tmp_path / "whole")


def test_two_runs_in_one_folder_are_refused(tmp_path: Path) -> None:
    def second(done: int, total: int) -> None:
        with pytest.raises(ValueError, match="another process is writing shards there"):
            write_shards(SOURCE, tmp_path, samples_per_shard=10, overwrite=True)

    write_shards(SOURCE, tmp_path, samples_per_shard=10, progress=second)
    assert verify_shards(tmp_path) == []


def test_workers_end_with_the_process_that_started_them(tmp_path: Path) -> None:
    script = tmp_path / "run.py"
    script.write_text(RUN.replace("samples_per_shard=10", "samples_per_shard=1000"))
    process = subprocess.Popen(
        [sys.executable, str(script), str(tmp_path / "out"), "2"], env={**os.environ, "PYTHONPATH": "."}
    )
    deadline = time.monotonic() + 300
    while len(children := _children(process.pid)) < 3:  # two workers, and multiprocessing's own
        assert time.monotonic() < deadline
        time.sleep(0.01)
    process.kill()
    process.wait()
    deadline = time.monotonic() + 60
    while any(_is_running(child) for child in children):
        assert time.monotonic() < deadline, f"{children} outlive their parent"
        time.sleep(0.05)


def _children(pid: int) -> list[str]:
    return Path(f"/proc/{pid}/task/{pid}/children").read_text().split()


def _is_running(pid: str) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().split()[2] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def test_an_unfinished_split_is_not_passed_over(tmp_path: Path) -> None:
    write_shards(SOURCE, tmp_path / "train")
    stopped_after(1, tmp_path / "test")
    assert [folder.url for folder in shard_sets(tmp_path)] == [str(tmp_path / "train"), str(tmp_path / "test")]
    assert verify_shards(tmp_path / "test") == [
        f"{tmp_path}/test: an unfinished run, no shards yet: go on with fdt-pipeline shard SOURCE OUT --resume"
    ]


@pytest.mark.parametrize("stop", [KeyboardInterrupt, RuntimeError])
@pytest.mark.parametrize("workers", [1, 2])
def test_an_interrupted_run_leaves_what_is_finished_and_no_shard(
    tmp_path: Path, stop: type[BaseException], workers: int
) -> None:
    stopped_after(2, tmp_path, stop=stop, workers=workers)
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
