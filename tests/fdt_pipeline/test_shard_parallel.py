"""Any number of workers writes the same bytes, and bad samples are reported."""

import io
import os
import signal
import subprocess
import sys
import tarfile

import numpy as np
import pytest
from PIL import Image

from fdt_pipeline.shards import BadSampleError, WorkerError, verify_shards, write_shards
from fdt_pipeline.sources import ArraySource, open_source
from tests.folders import content, names, stop_after
from tests.numbered import PlainSource

SUBSET = "train/data/fashion_mnist_subset"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
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


def sources(folder):
    noise = np.random.default_rng(0).integers(0, 256, (50, 7, 6, 3), dtype=np.uint8)
    mixed_sizes = PlainSource([image[: 5 + index % 3] for index, image in enumerate(noise)])
    return [open_source(SUBSET, split="test"), open_source(folder), mixed_sizes]


def assert_same_bytes(source, out, encoding, num_workers, **options):
    for workers in (1, num_workers):
        write_shards(source, out / str(workers), encoding, on_bad="quarantine", workers=workers, **options)
    assert content(out / str(num_workers)) == content(out / "1")


def test_two_workers_write_the_bytes_of_one(tmp_path, folder):
    assert_same_bytes(open_source(folder), tmp_path, "keep", 2, samples_per_shard=30)
    assert len(names(tmp_path / "2")) > 8


@pytest.mark.process
@pytest.mark.parametrize("which", range(3))
@pytest.mark.parametrize("encoding", ["raw", "keep", "webp", "jpg"])
def test_any_number_of_workers_writes_the_same_bytes(tmp_path, folder, which, encoding):
    source = sources(folder)[which]
    limits = {"samples_per_shard": len(source) // 9, "max_shard_bytes": 51_200 if which else None}
    assert_same_bytes(source, tmp_path, encoding, 8, **limits)
    assert verify_shards(tmp_path / "1", decode=True) == []
    assert len(names(tmp_path / "1")) > 15


def test_no_tar_is_larger_than_asked_and_none_could_be_joined(tmp_path):
    source = ArraySource(np.zeros((100, 10, 10, 3), np.uint8), np.arange(100) % 4)
    manifest = write_shards(source, tmp_path, samples_per_shard=40, max_shard_bytes=40_960)
    sizes = [shard.num_bytes for shard in manifest.shards]
    assert max(sizes) <= 40_960
    assert [shard.num_samples for shard in manifest.shards] == [19, 19, 2, 19, 19, 2, 19, 1]
    assert [shard.name for shard in manifest.shards] == [f"shard-{i:06d}.tar" for i in range(8)]


def test_a_sample_that_fits_into_no_tar_is_bad(tmp_path):
    with pytest.raises(BadSampleError, match="a tar of it alone has 20480 bytes, expected at most 10240 a shard"):
        write_shards(ArraySource(np.zeros((4, 60, 60, 3), np.uint8), [0, 1, 0, 1]), tmp_path, max_shard_bytes=10_240)


def test_in_quarantine_they_are_listed_with_their_reasons_and_all_others_are_written(tmp_path, folder):
    manifest = write_shards(open_source(folder), tmp_path, samples_per_shard=50, on_bad="quarantine")
    assert [bad.position for bad in manifest.quarantine] == list(range(3, 120, 13))
    assert [bad.key for bad in manifest.quarantine][:2] == ["a/003.jpg", "a/016.jpg"]
    assert manifest.quarantine[0].reason == "not an image: the file has zero bytes"
    assert manifest.quarantine[2].reason == "not an image: it begins with b'text'"
    assert all("not a readable image" in bad.reason for bad in manifest.quarantine if bad.position % 3 == 1)
    assert (manifest.num_samples, sum(manifest.samples_per_class)) == (111, 111)
    assert verify_shards(tmp_path) == []


def test_quarantine_can_be_asked_for_when_a_run_has_stopped(tmp_path, folder):
    with pytest.raises(BadSampleError):
        write_shards(open_source(folder), tmp_path / "out", samples_per_shard=4)
    for name in ("out", "whole"):
        write_shards(open_source(folder), tmp_path / name, samples_per_shard=4, on_bad="quarantine", resume=True)
    assert content(tmp_path / "out") == content(tmp_path / "whole")
    with pytest.raises(ValueError, match="holds shards already"):
        write_shards(open_source(folder), tmp_path / "out", samples_per_shard=4)


def test_a_run_that_goes_on_with_a_larger_limit_of_pixels_takes_up_the_images_that_were_too_large(
    tmp_path, monkeypatch
):
    for number in range(8):
        path = tmp_path / "photos" / "ab"[number % 2] / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (40, 40) if number in (2, 5) else (4, 4)).save(path)
    options = {"samples_per_shard": 2, "on_bad": "quarantine", "resume": True}
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    with pytest.raises(KeyboardInterrupt):
        write_shards(open_source(tmp_path / "photos"), tmp_path / "out", progress=stop_after(6), **options)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10_000)
    for name in ("out", "whole"):
        assert write_shards(open_source(tmp_path / "photos"), tmp_path / name, **options).num_samples == 8
    assert content(tmp_path / "out") == content(tmp_path / "whole")


def test_a_set_of_bad_samples_alone_is_an_error(tmp_path):
    source = ArraySource(np.zeros((3, 2, 2), np.uint8), [0, 0, 0])
    source.images = source.images.astype(np.float32)
    with pytest.raises(ValueError, match="none of the 3 samples is good: 1: expected an image"):
        write_shards(source, tmp_path, on_bad="quarantine")


def test_kept_files_are_the_sources_own_and_others_are_png(tmp_path, folder):
    write_shards(open_source(folder), tmp_path, "keep", on_bad="quarantine")
    with tarfile.open(tmp_path / "shard-000000.tar") as tar:
        files = {info.name: tar.extractfile(info).read() for info in tar}
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


class Fatal(PlainSource):
    """Its reading kills the process, as the kernel does when memory ends."""

    def __getitem__(self, index):
        os.kill(os.getpid(), signal.SIGKILL)
        raise AssertionError


def test_a_worker_that_is_killed_is_reported(tmp_path):
    with pytest.raises(WorkerError, match=r"a worker process was killed.*go on with --resume"):
        write_shards(Fatal(range(50)), tmp_path, samples_per_shard=10, workers=2)


@pytest.mark.parametrize("workers", [1, 2])
def test_a_bad_sample_ends_the_run_and_is_named(tmp_path, folder, workers):
    """An error in a worker keeps its type and its traceback."""
    with pytest.raises(BadSampleError, match=r"sample \d+ of the source \(./\d+\.jpg\): not a") as caught:
        write_shards(open_source(folder), tmp_path, workers=workers, samples_per_shard=60)
    assert caught.value.key == f"{'abc'[caught.value.position // 40]}/{caught.value.position:03d}.jpg"
    if workers == 2:
        assert "run_task" in str(caught.value.__cause__)


SCRIPT = """
import sys
import numpy as np
from fdt_pipeline.shards import write_shards
from fdt_pipeline.sources import ArraySource
print("imported", flush=True)
class Own(ArraySource):
    pass
if not {own} or __name__ == "__main__":
    source = (Own if {own} else ArraySource)(np.zeros((40, 4, 4), np.uint8), np.arange(40) % 4)
    write_shards(source, sys.argv[1], samples_per_shard=10, workers=2)
"""


@pytest.mark.process
@pytest.mark.parametrize(("own", "is_file", "imports"), [(False, True, 1), (True, True, 3), (False, False, 1)])
def test_a_script_is_imported_by_workers_only_where_they_need_a_class_of_it(tmp_path, own, is_file, imports):
    """Most scripts need no `if __name__ == "__main__"`, may come from standard input, and import torch once."""
    script = SCRIPT.format(own=own)
    (tmp_path / "script.py").write_text(script)
    command = [sys.executable, str(tmp_path / "script.py") if is_file else "-", str(tmp_path / "out")]
    environment = {**os.environ, "PYTHONPATH": "."}
    done = subprocess.run(command, input=script, capture_output=True, text=True, check=True, env=environment)
    assert done.stdout.count("imported") == imports
    assert verify_shards(tmp_path / "out") == []
