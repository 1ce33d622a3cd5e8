"""Whoever writes the shards, and in however many parts: the same bytes. Bad samples: told, and never lost."""

from __future__ import annotations

import io
import os
import signal
import subprocess
import sys
import tarfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from fdt_pipeline.shards import BadSampleError, WorkerError, load_shards, verify_shards, write_shards
from fdt_pipeline.sources import ArraySource, Sample, Source, open_source
from tests.folders import content, names

SUBSET = "train/data/fashion_mnist_subset"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """120 files of three classes and many kinds, class-sorted; 9 of them are no good images."""
    root = tmp_path_factory.mktemp("photos")
    rng = np.random.default_rng(0)
    for index in range(120):
        image = Image.fromarray(rng.integers(0, 256, (20 + index % 7, 24, 3), dtype=np.uint8))
        path = root / "abc"[index // 40] / f"{index:03d}.jpg"
        path.parent.mkdir(exist_ok=True)
        image.convert(["RGB", "L", "CMYK"][index % 3]).save(path, ["JPEG", "TIFF"][index % 2])
    for index in range(3, 120, 13):
        path = root / "abc"[index // 40] / f"{index:03d}.jpg"
        data = path.read_bytes()
        path.write_bytes([b"", data[: len(data) // 2], b"text"][index % 3])
    return root


class Generic:
    """A source with nothing but what every source must have."""

    kind, split, shape, classes = "generic", "train", None, ("a", "b")
    labels = np.arange(50) % 2

    def __len__(self) -> int:
        return 50

    def __getitem__(self, index: int) -> Sample:
        image = np.random.default_rng(index).integers(0, 256, (5 + index % 3, 6, 3), dtype=np.uint8)
        return Sample(image, index % 2, f"item {index}")


def sources(folder: Path) -> list[Source]:
    return [open_source(SUBSET, split="test"), open_source(folder), Generic()]


def assert_same_bytes(source: Source, out: Path, encoding: str, numbers: Sequence[int], **options: Any) -> None:
    for workers in numbers:
        write_shards(source, out / str(workers), encoding, on_bad="quarantine", workers=workers, **options)
    one, *others = (content(out / str(workers)) for workers in numbers)
    assert others == [one] * len(others)


def test_two_workers_write_the_bytes_of_one(tmp_path: Path, folder: Path) -> None:
    assert_same_bytes(open_source(folder), tmp_path, "keep", (1, 2), samples_per_shard=30)
    assert len(names(tmp_path / "2")) > 8


@pytest.mark.process
@pytest.mark.parametrize("which", range(3))
@pytest.mark.parametrize("encoding", ["raw", "keep", "webp", "jpg"])
def test_any_number_of_workers_writes_the_same_bytes(tmp_path: Path, folder: Path, which: int, encoding: str) -> None:
    source = sources(folder)[which]
    limits = {"samples_per_shard": len(source) // 9, "max_shard_bytes": 51_200 if which else None}
    assert_same_bytes(source, tmp_path, encoding, (1, 8), **limits)
    assert verify_shards(tmp_path / "1", decode=True) == []
    assert len(names(tmp_path / "1")) > 15


def test_no_tar_is_larger_than_asked_and_none_could_be_joined(tmp_path: Path) -> None:
    source = ArraySource(np.zeros((100, 10, 10, 3), np.uint8), np.arange(100) % 4)
    manifest = write_shards(source, tmp_path, samples_per_shard=40, max_shard_bytes=40_960)
    sizes = [shard.num_bytes for shard in manifest.shards]
    assert max(sizes) <= 40_960
    assert [shard.num_samples for shard in manifest.shards] == [19, 19, 2, 19, 19, 2, 19, 1]
    assert [shard.name for shard in manifest.shards] == [f"shard-{i:06d}.tar" for i in range(8)]


def test_a_sample_that_fits_into_no_tar_is_bad(tmp_path: Path) -> None:
    with pytest.raises(BadSampleError, match="a tar of it alone has 20480 bytes, expected at most 10240 a shard"):
        write_shards(ArraySource(np.zeros((4, 60, 60, 3), np.uint8), [0, 1, 0, 1]), tmp_path, max_shard_bytes=10_240)


def test_bad_samples_end_the_run_and_are_named(tmp_path: Path, folder: Path) -> None:
    with pytest.raises(BadSampleError, match=r"sample \d+ of the source \(./\d+\.jpg\): not a") as caught:
        write_shards(open_source(folder), tmp_path, samples_per_shard=1000)
    assert caught.value.key == f"{'abc'[caught.value.position // 40]}/{caught.value.position:03d}.jpg"
    assert names(tmp_path) == []


def test_in_quarantine_they_are_listed_with_their_reasons_and_all_others_are_written(
    tmp_path: Path, folder: Path
) -> None:
    manifest = write_shards(open_source(folder), tmp_path, samples_per_shard=50, on_bad="quarantine")
    assert [bad.position for bad in manifest.quarantine] == list(range(3, 120, 13))
    assert [bad.key for bad in manifest.quarantine][:2] == ["a/003.jpg", "a/016.jpg"]
    assert manifest.quarantine[0].reason == "not an image: the file has zero bytes"
    assert manifest.quarantine[2].reason == "not an image: it begins with b'text'"
    assert all("not a readable image" in bad.reason for bad in manifest.quarantine if bad.position % 3 == 1)
    assert (manifest.num_samples, sum(manifest.samples_per_class)) == (111, 111)
    assert verify_shards(tmp_path) == []


def test_quarantine_can_be_asked_for_when_a_run_has_stopped(tmp_path: Path, folder: Path) -> None:
    with pytest.raises(BadSampleError):
        write_shards(open_source(folder), tmp_path / "out", samples_per_shard=4)
    for name in ("out", "whole"):
        write_shards(open_source(folder), tmp_path / name, samples_per_shard=4, on_bad="quarantine", resume=True)
    assert content(tmp_path / "out") == content(tmp_path / "whole")
    with pytest.raises(ValueError, match="holds shards already"):
        write_shards(open_source(folder), tmp_path / "out", samples_per_shard=4)


def test_a_set_of_bad_samples_alone_is_an_error(tmp_path: Path) -> None:
    source = ArraySource(np.zeros((3, 2, 2), np.uint8), [0, 0, 0])
    source.images = source.images.astype(np.float32)  # type: ignore[assignment]
    with pytest.raises(ValueError, match="none of the 3 samples is good: 1: expected an image"):
        write_shards(source, tmp_path, on_bad="quarantine")


def test_kept_files_are_the_sources_own_and_others_are_png(tmp_path: Path, folder: Path) -> None:
    write_shards(open_source(folder), tmp_path, "keep", on_bad="quarantine")
    with tarfile.open(tmp_path / "shard-000000.tar") as tar:
        files = {info.name: tar.extractfile(info).read() for info in tar}  # type: ignore[union-attr]
    for name, data in files.items():
        number, _, extension = name.partition("_")[0], *name.rpartition(".")[1:]
        if extension == "cls":
            continue
        path = folder / "abc"[int(number) // 40] / f"{int(number):03d}.jpg"
        if int(number) % 6 == 0:  # color JPEGs
            assert (extension, data) == ("jpg", path.read_bytes())
        else:
            assert extension == "png"
            with Image.open(path) as image, Image.open(io.BytesIO(data)) as kept:
                np.testing.assert_array_equal(np.asarray(kept), np.asarray(image.convert("RGB")))


class Fatal(Generic):
    """Its reading kills the process, as the kernel does when memory ends."""

    def __getitem__(self, index: int) -> Sample:
        os.kill(os.getpid(), signal.SIGKILL)
        raise AssertionError


def test_a_worker_that_is_killed_is_reported(tmp_path: Path) -> None:
    with pytest.raises(WorkerError, match=r"a worker process ended with exit code -9 in task \d .*go on with --resume"):
        write_shards(Fatal(), tmp_path, samples_per_shard=10, workers=2)


def test_an_error_in_a_worker_keeps_its_type_and_its_traceback(tmp_path: Path, folder: Path) -> None:
    with pytest.raises(BadSampleError) as caught:
        write_shards(open_source(folder), tmp_path, samples_per_shard=30, workers=2)
    assert isinstance(caught.value.__cause__, WorkerError)
    assert "run_task" in str(caught.value.__cause__)


def test_images_are_resized_to_one_shape(tmp_path: Path, folder: Path) -> None:
    manifest = write_shards(open_source(folder), tmp_path, "png", size=16, on_bad="quarantine")
    assert (manifest.shape, manifest.size) == ((16, 16, 3), 16)
    assert load_shards(tmp_path)[0].shape == (111, 16, 16, 3)


SCRIPT = """
import sys
import numpy as np
from fdt_pipeline.shards import write_shards
from fdt_pipeline.sources import ArraySource
print("imported", flush=True)
source = ArraySource(np.zeros((40, 4, 4), np.uint8), np.arange(40) % 4)
write_shards(source, sys.argv[1], samples_per_shard=10, workers=2)
"""
OWN_CLASS = """
import sys
import numpy as np
from fdt_pipeline.shards import write_shards
from fdt_pipeline.sources import ArraySource
print("imported", flush=True)

class Own(ArraySource):
    pass

if __name__ == "__main__":
    source = Own(np.zeros((40, 4, 4), np.uint8), np.arange(40) % 4)
    write_shards(source, sys.argv[1], samples_per_shard=10, workers=2)
"""


@pytest.mark.process
@pytest.mark.parametrize(("script", "imports"), [(SCRIPT, 1), (OWN_CLASS, 3)])
def test_a_script_is_imported_by_workers_only_where_they_need_a_class_of_it(
    tmp_path: Path, script: str, imports: int
) -> None:
    """So most need no `if __name__ == "__main__"`, and do not import torch once more a worker."""
    (tmp_path / "script.py").write_text(script)
    command = [sys.executable, str(tmp_path / "script.py"), str(tmp_path / "out")]
    environment = {**os.environ, "PYTHONPATH": "."}
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
    assert done.stdout.split() == ["imported"] * imports
    assert verify_shards(tmp_path / "out") == []


@pytest.mark.process
def test_a_script_from_standard_input_may_use_workers(tmp_path: Path) -> None:
    command = [sys.executable, "-", str(tmp_path / "out")]
    subprocess.run(command, input=SCRIPT, text=True, check=True, env={**os.environ, "PYTHONPATH": "."})
    assert verify_shards(tmp_path / "out") == []
