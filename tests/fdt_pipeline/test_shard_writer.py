"""What is written: formats, bytes, order; read back by other programs."""

from __future__ import annotations

import hashlib
import subprocess
import sys
import tarfile
import tracemalloc
from pathlib import Path

import numpy as np
import pytest

from fdt_pipeline.shards import load_shards, read_manifest, write_shards
from fdt_pipeline.shards.codec import decode, encode
from fdt_pipeline.sources import ArraySource, Sample, Source, open_source
from tests.folders import content


def numbered(num_samples: int = 25, channels: int = 3, num_classes: int = 5) -> ArraySource:
    """The first pixel of sample i is i; the rest is noise."""
    images = np.random.default_rng(0).integers(0, 256, (num_samples, 6, 5, channels), dtype=np.uint8)
    images[:, 0, 0, 0] = np.arange(num_samples)
    return ArraySource(images, np.arange(num_samples) % num_classes)


class Named:
    """A source whose keys have all that names of files may have."""

    def __init__(self) -> None:
        self.array = numbered()
        self.kind, self.split, self.classes, self.labels = "named", "train", self.array.classes, self.array.labels
        self.shape = self.array.shape

    def __len__(self) -> int:
        return len(self.array)

    def __getitem__(self, index: int) -> Sample:
        return self.array[index]._replace(key=f"cat.v2/ö 1-2_{'x' * index * 5}.tar.gz")


@pytest.mark.parametrize("source", [numbered(), Named()])
@pytest.mark.parametrize("encoding", ["raw", "png"])
def test_the_index_is_byte_equal_to_that_of_wds2idx(tmp_path: Path, source: Source, encoding: str) -> None:
    pytest.importorskip("wds2idx")
    write_shards(source, tmp_path, encoding, samples_per_shard=20)
    for tar in tmp_path.glob("*.tar"):
        command = [sys.executable, "-m", "wds2idx", str(tar), str(tmp_path / "theirs")]
        subprocess.run(command, check=True, capture_output=True)
        assert tar.with_suffix(".idx").read_bytes() == (tmp_path / "theirs").read_bytes()


def test_tar_headers_hold_nothing_of_this_machine(tmp_path: Path) -> None:
    write_shards(numbered(), tmp_path)
    path = tmp_path / "shard-000000.tar"
    assert path.read_bytes()[257:265] == b"ustar\x0000"
    with tarfile.open(path) as tar:
        for info in tar:
            assert (info.mtime, info.uid, info.gid, info.uname, info.gname, info.mode) == (0, 0, 0, "", "", 0o644)


def test_another_seed_is_another_order_of_the_same_samples(tmp_path: Path) -> None:
    for seed in (0, 1):
        write_shards(numbered(), tmp_path / str(seed), seed=seed)
    first, second = load_shards(tmp_path / "0"), load_shards(tmp_path / "1")
    assert first[2] != second[2]
    assert sorted(zip(first[2], first[0].tolist(), first[1], strict=True)) == sorted(
        zip(second[2], second[0].tolist(), second[1], strict=True)
    )


def test_the_files_never_change_between_versions(tmp_path: Path) -> None:
    """Golden: whoever shards the same set anywhere gets the same files."""
    write_shards(open_source("train/data/fashion_mnist_subset", split="test"), tmp_path, seed=2021)
    golden = "3ebd7d9a6e4f85aa3a4fdc999d3917f8f23fc0e3b10d255e461cee70c103e417"
    assert hashlib.sha256((tmp_path / "shard-000000.tar").read_bytes()).hexdigest() == golden


def test_the_manifest_has_the_hash_of_every_file(tmp_path: Path) -> None:
    for shard in write_shards(numbered(), tmp_path, samples_per_shard=10).shards:
        tar, index = (tmp_path / shard.name).read_bytes(), (tmp_path / shard.index_name).read_bytes()
        assert (shard.num_bytes, shard.sha256) == (len(tar), hashlib.sha256(tar).hexdigest())
        assert shard.index_sha256 == hashlib.sha256(index).hexdigest()


class Sizes(Named):
    """Image i is cut to i % 3 + 1 rows."""

    def __getitem__(self, index: int) -> Sample:
        sample = self.array[index]
        return sample._replace(image=np.ascontiguousarray(sample.image[: index % 3 + 1]))


class Files:
    """A source of JPEG files that knows no keys before it reads."""

    kind, split, shape, classes, channels = "files", None, None, ("a", "b"), 3
    labels = np.arange(6) % 2

    def __len__(self) -> int:
        return 6

    def read_file(self, index: int) -> bytes:
        return encode(np.full((8, 8, 3), 40 * index, np.uint8), "jpg")

    def __getitem__(self, index: int) -> Sample:
        return Sample(decode(self.read_file(index), "jpg", 3), index % 2, f"file {index}")


def test_files_of_a_source_without_keys_are_kept(tmp_path: Path) -> None:
    write_shards(Files(), tmp_path, "keep")
    with tarfile.open(tmp_path / "shard-000000.tar") as tar:
        kept = {tar.extractfile(name).read() for name in tar.getnames() if name.endswith(".jpg")}
    assert kept == {Files().read_file(index) for index in range(6)}


@pytest.mark.parametrize("encoding", ["raw", "png"])
def test_images_may_differ_in_size(tmp_path: Path, encoding: str) -> None:
    assert write_shards(Sizes(), tmp_path, encoding).shape is None
    assert read_manifest(tmp_path).channels == 3


class Large(Named):
    """60 images of 300 kB, made when asked for."""

    def __init__(self) -> None:
        super().__init__()
        self.labels = np.arange(60) % 5

    def __len__(self) -> int:
        return 60

    def __getitem__(self, index: int) -> Sample:
        return Sample(np.full((400, 250, 3), index, np.uint8), index % 5, str(index))


def test_memory_holds_a_sample_not_a_shard(tmp_path: Path) -> None:
    tracemalloc.start()
    try:
        write_shards(Large(), tmp_path, samples_per_shard=60)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert (tmp_path / "shard-000000.tar").stat().st_size > 18e6
    assert peak < 6e6, f"{peak} bytes at once"


def test_progress_ends_at_the_number_of_samples(tmp_path: Path) -> None:
    calls: list[tuple[int, int]] = []
    write_shards(numbered(20), tmp_path, samples_per_shard=10, progress=lambda done, total: calls.append((done, total)))
    assert calls == [(10, 20), (20, 20)]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"encoding": "jpeg"}, "encoding must be one of raw, png, webp, jpg, keep, got 'jpeg'"),
        ({"samples_per_shard": 0}, "samples_per_shard must be at least 1, got 0"),
        ({"seed": -1}, "seed must be in"),
        ({"size": 0}, "size must be at least 1, got 0"),
        ({"max_shard_bytes": 10_000}, "max_shard_bytes must be at least 10240, the least a tar has, got 10000"),
        ({"workers": 0}, "workers must be at least 1, got 0"),
        ({"engine": "slurm"}, "engine must be one of local, ray, got 'slurm'"),
        ({"on_bad": "skip"}, "on_bad must be one of stop, quarantine, got 'skip'"),
    ],
)
def test_wrong_options_are_refused_before_anything_is_written(tmp_path: Path, options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        write_shards(numbered(), tmp_path / "out", **options)
    assert not (tmp_path / "out").exists()


class Broken(Named):
    def __init__(self, sample: Sample) -> None:
        super().__init__()
        self.sample = sample

    def __getitem__(self, index: int) -> Sample:
        return self.sample if index == 9 else self.array[index]


@pytest.mark.parametrize(
    ("image", "message"),
    [
        (np.zeros((2, 2, 1), np.uint8), "expected 3 channels as in the images before, got 1"),
        (np.zeros((2, 2), np.uint8), r"expected an image u8\[h w 1\] or u8\[h w 3\], got uint8 \[2, 2\]"),
        (np.zeros((2, 2, 3)), r"expected an image .*, got float64"),
        (np.zeros((0, 2, 3), np.uint8), r"expected an image .*, got uint8 \[0, 2, 3\]"),
    ],
)
def test_a_sample_that_is_no_image_is_named_and_nothing_is_left(
    tmp_path: Path, image: np.ndarray, message: str
) -> None:
    with pytest.raises(ValueError, match=rf"sample 9 of the source \(9\): {message}"):
        write_shards(Broken(Sample(image, 0, "9")), tmp_path)
    assert content(tmp_path) == {}


@pytest.mark.parametrize(
    ("classes", "message"), [(("a", "a"), "class names must differ, got 'a' 2 times"), (("a", ""), "not empty, got ''")]
)
def test_class_names_are_checked_before_anything_is_written(
    tmp_path: Path, classes: tuple[str, ...], message: str
) -> None:
    source = Named()
    source.classes = classes
    with pytest.raises(ValueError, match=message):
        write_shards(source, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_an_empty_source_is_refused(tmp_path: Path) -> None:
    source = Named()
    source.array.labels = source.array.labels[:0]
    with pytest.raises(ValueError, match="the source has no samples"):
        write_shards(source, tmp_path)


def test_a_seed_may_be_a_numpy_integer(tmp_path: Path) -> None:
    source = ArraySource(np.zeros((4, 2, 2, 3), np.uint8), [0, 1, 0, 1])
    manifests = [write_shards(source, tmp_path / str(i), seed=seed) for i, seed in enumerate((7, np.uint64(7)))]
    assert manifests[0] == manifests[1]
