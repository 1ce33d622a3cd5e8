"""A run that is killed at any moment goes on, and ends with the bytes of one that was not."""

from __future__ import annotations

import io
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator
from pathlib import Path

import fsspec
import numpy as np
import pytest
from PIL import Image

from fdt_pipeline.shards import load_shards, read_manifest, shard_sets, verify_shards, write_shards
from fdt_pipeline.sources import ArraySource, open_source
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


def stopped_after(tasks: int, out: Path, **options: object) -> None:
    """A run that ends when so many samples are done."""

    def stop(done: int, total: int) -> None:
        if done >= 10 * tasks:
            raise StopError

    with pytest.raises(StopError):
        write_shards(SOURCE, out, samples_per_shard=10, progress=stop, **options)  # type: ignore[arg-type]


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


def test_tasks_whose_samples_have_changed_are_done_again(tmp_path: Path) -> None:
    stopped_after(2, tmp_path / "out")
    other = ArraySource(255 - SOURCE.images, SOURCE.labels)
    write_shards(other, tmp_path / "out", samples_per_shard=10, resume=True)
    write_shards(other, tmp_path / "whole", samples_per_shard=10)
    assert content(tmp_path / "out") == content(tmp_path / "whole")


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

    def stop(done: int, total: int) -> None:
        raise StopError

    monkeypatch.setattr(ImageFolder, "read_file", changed_behind)
    with pytest.raises(StopError):
        write_shards(open_source(url), tmp_path / "out", "keep", samples_per_shard=10, progress=stop)
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


def test_a_custom_source_that_says_it_has_changed_is_read_again(tmp_path: Path) -> None:
    def stop(done: int, total: int) -> None:
        raise StopError

    with pytest.raises(StopError):
        write_shards(Custom(1), tmp_path, samples_per_shard=10, progress=stop)
    write_shards(Custom(2), tmp_path, samples_per_shard=10, resume=True)
    assert set(load_shards(tmp_path)[0].flat) == {2}


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
    with pytest.raises(ValueError, match="holds an unfinished run: go on with --resume, or begin anew with --over"):
        write_shards(SOURCE, tmp_path, samples_per_shard=10)
    write_shards(SOURCE, tmp_path, samples_per_shard=20, overwrite=True)
    assert len(read_manifest(tmp_path).shards) == 2


def test_resume_and_overwrite_exclude_each_other(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="--overwrite begins anew and --resume goes on: choose one"):
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
from fdt_pipeline.storage.local import LocalFolder
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


def test_a_record_says_what_the_manifest_will(tmp_path: Path) -> None:
    stopped_after(1, tmp_path)
    record = json.loads((tmp_path / ".sharding" / "task-000000.json").read_text())
    assert record["parts"][0]["num_samples"] == 10
    assert sum(count for _, count in record["samples_per_class"]) == 10


def test_an_unfinished_split_is_not_passed_over(tmp_path: Path) -> None:
    write_shards(SOURCE, tmp_path / "train")
    stopped_after(1, tmp_path / "test")
    assert [folder.url for folder in shard_sets(tmp_path)] == [str(tmp_path / "train"), str(tmp_path / "test")]
    assert verify_shards(tmp_path / "test") == [
        f"{tmp_path}/test: an unfinished run, no shards yet: go on with fdt-pipeline shard SOURCE OUT --resume"
    ]
