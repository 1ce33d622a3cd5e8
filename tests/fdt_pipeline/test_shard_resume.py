"""Shards are whole or not there, and a killed run goes on and ends with the bytes of one that was not killed."""

import errno
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import fsspec
import numpy as np
import pytest

from fdt_pipeline.shards import BadSampleError, SourceError, read_manifest, shard_sets, verify_shards, write_shards
from fdt_pipeline.shards.codec import encode
from fdt_pipeline.sources import ArraySource, open_source
from fdt_pipeline.sources.image_folder import ImageFolder
from tests.folders import content, names, stop_after
from tests.numbered import PlainSource, numbered_images

SOURCE = ArraySource(numbered_images(40, (4, 4, 1)), np.arange(40) % 4)
SUBSET = "train/data/fashion_mnist_subset"
RUN = f"""
import sys
from fdt_pipeline.shards import write_shards
from fdt_pipeline.sources import open_source
if __name__ == "__main__":
    source = open_source("{SUBSET}", split="train")
    write_shards(source, sys.argv[1], "png", samples_per_shard=10, workers=int(sys.argv[2]), resume=True)
"""


def sharded(out, source=SOURCE, samples_per_shard=10, **options):
    write_shards(source, out, samples_per_shard=samples_per_shard, **options)
    return content(out)


def stopped_after(tasks, out, *source, stop=KeyboardInterrupt, **options):
    """A run that ends when `tasks` tasks of 10 samples are done."""
    with pytest.raises(stop):
        sharded(out, *source, progress=stop_after(10 * tasks, stop), **options)


@pytest.mark.soak
@pytest.mark.parametrize("workers", [1, 3])
def test_killed_at_random_moments_many_times_it_ends_with_the_same_bytes(tmp_path, workers):
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


def test_what_is_finished_is_not_done_again(tmp_path):
    stopped_after(2, tmp_path)
    assert names(tmp_path) == [".sharding"]
    before = [path.stat().st_mtime_ns for path in sorted((tmp_path / ".sharding").glob("*.tar"))]
    calls = []
    sharded(tmp_path, resume=True, progress=lambda done, _: calls.append(done))
    assert calls == [30, 40]
    assert [(tmp_path / f"shard-00000{i}.tar").stat().st_mtime_ns for i in range(2)] == before


@pytest.mark.parametrize(
    ("name", "damage"),
    [
        ("task-000000-0000.tar", lambda path: path.write_bytes(path.read_bytes().replace(b"cls", b"cl5"))),
        ("task-000000-0000.tar", lambda path: path.write_bytes(path.read_bytes()[:700])),
        ("task-000000-0000.tar", Path.unlink),
        ("task-000000.json", lambda path: path.write_text("{")),
    ],
    ids=["changed", "cut", "removed", "record"],
)
def test_what_was_damaged_meanwhile_is_done_again(tmp_path, name, damage):
    stopped_after(2, tmp_path / "out")
    damage(tmp_path / "out" / ".sharding" / name)
    assert sharded(tmp_path / "out", resume=True) == sharded(tmp_path / "whole")


def gray_png(value, side=2):
    return encode(np.full((side, side, 1), value, np.uint8), "png")


@pytest.mark.parametrize("url", ["{tmp}/photos", "memory://changing"])
def test_a_file_that_changes_while_it_is_read_is_read_again(tmp_path, monkeypatch, url):
    """Each file of the first run changes as soon as its bytes have been read."""
    url = url.format(tmp=tmp_path)
    photos, _ = fsspec.url_to_fs(url)
    place = photos._strip_protocol(url)
    for name in ("cat", "dog"):
        photos.makedirs(f"{place}/{name}")
    photos.pipe({f"{place}/{('cat', 'dog')[index % 2]}/{index}.png": gray_png(index) for index in range(20)})
    real = ImageFolder.read_file

    def changed_behind(self, index):
        data = real(self, index)
        photos.pipe(f"{place}/{self.key(index)}", gray_png(200, side=3))
        return data

    monkeypatch.setattr(ImageFolder, "read_file", changed_behind)
    stopped_after(1, tmp_path / "out", open_source(url), encoding="keep")
    monkeypatch.undo()
    resumed = sharded(tmp_path / "out", open_source(url), encoding="keep", resume=True)
    assert resumed == sharded(tmp_path / "whole", open_source(url), encoding="keep")


class Custom(PlainSource):
    """A source that says when its samples have changed."""

    def states(self, positions):
        return (f"{position}: {self.images[position]}" for position in positions)


CUSTOM = [Custom([np.full((2, 2, 1), value, np.uint8)] * 20) for value in (1, 2)]


@pytest.mark.parametrize(("first", "second"), [(SOURCE, ArraySource(255 - SOURCE.images, SOURCE.labels)), CUSTOM])
def test_tasks_whose_samples_have_changed_are_done_again(tmp_path, first, second):
    stopped_after(1, tmp_path / "out", first)
    assert sharded(tmp_path / "out", second, resume=True) == sharded(tmp_path / "whole", second)


ANOTHER_PLAN = "the unfinished run there is of another source, or has other options"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "holds an unfinished run: go on with --resume, or start over with --over"),
        ({"resume": True, "overwrite": True}, "--overwrite starts over and --resume goes on: choose one"),
        ({"resume": True, "seed": 1}, ANOTHER_PLAN),
        ({"resume": True, "encoding": "png"}, ANOTHER_PLAN),
        ({"resume": True, "size": 3}, ANOTHER_PLAN),
        ({"resume": True, "max_shard_bytes": 20480}, ANOTHER_PLAN),
        ({"resume": True, "source": ArraySource(SOURCE.images, SOURCE.labels[::-1])}, ANOTHER_PLAN),
    ],
)
def test_an_unfinished_run_goes_on_when_asked_to_with_the_same_plan_alone(tmp_path, options, message):
    stopped_after(1, tmp_path)
    with pytest.raises(ValueError, match=message):
        sharded(tmp_path, **options)
    sharded(tmp_path, overwrite=True)
    assert verify_shards(tmp_path) == []


def test_resuming_nothing_begins_and_resuming_a_finished_set_changes_nothing(tmp_path):
    """One command can be repeated until it succeeds."""
    begun = sharded(tmp_path, resume=True)
    assert verify_shards(tmp_path) == []
    assert sharded(tmp_path, resume=True) == begun
    with pytest.raises(ValueError, match="holds a finished set of another kind: seed is 0, asked for 1"):
        sharded(tmp_path, seed=1, resume=True)
    with pytest.raises(ValueError, match="holds shards already; replace them with --overwrite"):
        sharded(tmp_path, seed=1)
    assert content(tmp_path) == begun


def test_the_old_set_is_whole_until_the_new_one_is(tmp_path):
    """When the new set is whole, stale shards are gone, and nothing else."""
    (tmp_path / "out").mkdir()
    for name in ("notes.txt", "shard-list.txt"):
        (tmp_path / "out" / name).touch()
    old = sharded(tmp_path / "out", samples_per_shard=5)
    stopped_after(3, tmp_path / "out", overwrite=True)
    assert {name: data for name, data in content(tmp_path / "out").items() if ".sharding" not in name} == old
    assert verify_shards(tmp_path / "out") == []
    others = {"notes.txt": b"", "shard-list.txt": b""}
    assert sharded(tmp_path / "out", resume=True) == sharded(tmp_path / "fresh") | others


MOVING = """
import os, signal, sys
import numpy as np
from fdt_pipeline.shards import write_shards
from fdt_pipeline.storage.folder import LocalFolder
from fdt_pipeline.sources import ArraySource
from tests.numbered import numbered_images
calls, name, at = [], sys.argv[2], int(sys.argv[3])
real = getattr(LocalFolder, name)
def killed(self, *arguments):
    calls.append(arguments)
    if len(calls) == at:
        os.kill(os.getpid(), signal.SIGKILL)
    return real(self, *arguments)
setattr(LocalFolder, name, killed)
source = ArraySource(numbered_images(40, (4, 4, 1)), np.arange(40) % 4)
write_shards(source, sys.argv[1], samples_per_shard=20, overwrite=True)
"""


@pytest.mark.parametrize(
    ("call", "at"), [("move", 1), ("move", 2), ("move", 4), ("move", 5), ("remove_tree", 2), ("remove", 1), ("sync", 2)]
)
def test_killed_while_it_replaces_an_old_set_it_is_never_taken_for_whole(tmp_path, call, at):
    """The last moves are four of tars and indexes, and one of the manifest."""
    out = tmp_path / "out"
    sharded(out, samples_per_shard=5, seed=9)
    result = subprocess.run([sys.executable, "-c", MOVING, str(out), call, str(at)], capture_output=True, check=False)
    assert result.returncode == -signal.SIGKILL
    if (out / "manifest.json").exists():
        assert verify_shards(out) == []
    whole = sharded(tmp_path / "whole", samples_per_shard=20)
    assert sharded(out, samples_per_shard=20, resume=True) == whole


def test_two_runs_in_one_folder_are_refused(tmp_path):
    def second(done, total):
        with pytest.raises(ValueError, match="another process is writing shards there"):
            sharded(tmp_path, overwrite=True)

    sharded(tmp_path, progress=second)
    assert verify_shards(tmp_path) == []


def test_workers_end_with_the_process_that_started_them(tmp_path):
    script = tmp_path / "run.py"
    script.write_text(RUN.replace("samples_per_shard=10", "samples_per_shard=1000"))
    command, environment = [sys.executable, str(script), str(tmp_path / "out"), "2"], {**os.environ, "PYTHONPATH": "."}
    process = subprocess.Popen(command, stdout=subprocess.PIPE, env=environment)
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children")
    deadline = time.monotonic() + 300
    while len(children.read_text().split()) < 3:  # two workers, and multiprocessing's own
        assert time.monotonic() < deadline
        time.sleep(0.01)
    process.kill()
    process.communicate(timeout=60)  # until the last process that could write to the pipe has ended


@pytest.mark.parametrize(("workers", "stop"), [(1, RuntimeError), (2, KeyboardInterrupt)])
def test_an_interrupted_run_leaves_what_is_finished_and_is_not_passed_over(tmp_path, stop, workers):
    sharded(tmp_path / "train")
    out = tmp_path / "test"
    stopped_after(2, out, stop=stop, workers=workers)
    assert names(out) == [".sharding"]
    assert not list(out.rglob("*.tmp"))
    assert [folder.url for folder in shard_sets(tmp_path)] == [str(tmp_path / "train"), str(out)]
    message = "an unfinished run, no shards yet: go on with fdt-pipeline shard SOURCE OUT --resume"
    assert verify_shards(out) == [f"{out}: {message}"]
    with pytest.raises(ValueError, match=message):
        read_manifest(out)


@pytest.mark.parametrize("fails_at", range(1, 9))
def test_a_full_disk_says_what_to_do_and_with_room_the_run_goes_on(tmp_path, monkeypatch, fails_at):
    """The disk is full at the n-th file that is synced: plan, tar, index, record, tar, index, record, manifest."""
    real, calls = os.fsync, []

    def full(descriptor):
        calls.append(os.readlink(f"/proc/self/fd/{descriptor}"))
        if sum(name.endswith(".tmp") for name in calls) == fails_at:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        real(descriptor)

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match=r"could not write shards \(No space left on device\).*free space") as caught:
        sharded(tmp_path / "out", samples_per_shard=20)
    monkeypatch.undo()
    assert caught.value.errno == errno.ENOSPC
    assert names(tmp_path / "out") in ([], [".sharding"])
    assert not list((tmp_path / "out").rglob("*.tmp"))
    resumed = sharded(tmp_path / "out", samples_per_shard=20, resume=True)
    assert resumed == sharded(tmp_path / "whole", samples_per_shard=20)


def test_a_file_in_place_of_the_folder_is_named(tmp_path):
    (tmp_path / "file").touch()
    for out in (tmp_path / "file", tmp_path / "file" / "out"):
        for overwrite in (False, True):
            with pytest.raises(ValueError, match=f"^{tmp_path}/file: is a file, expected a folder"):
                write_shards(SOURCE, out, overwrite=overwrite)


@pytest.mark.parametrize(
    ("failure", "raised", "message"),
    [
        (PermissionError(errno.EACCES, "Permission denied", "cat/1.png"), BadSampleError, "Permission denied: 'cat/1"),
        (OSError(errno.EIO, "Input/output error"), SourceError, "could not read sample .*Input/output error; fix that"),
    ],
)
def test_a_failure_to_read_is_not_called_one_of_writing(tmp_path, monkeypatch, failure, raised, message):
    """A disk that fails is not taken for a bad sample either, which a quarantine would leave out."""

    def unreadable(self, index):
        raise failure

    monkeypatch.setattr(ArraySource, "__getitem__", unreadable)
    with pytest.raises(raised, match=rf"sample \d+ of the source.*{message}|{message}"):
        write_shards(SOURCE, tmp_path, on_bad="quarantine" if raised is SourceError else "stop")
