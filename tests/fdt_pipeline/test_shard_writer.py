"""What is written: formats, bytes, order; read back by other programs."""

import hashlib
import subprocess
import sys
import tarfile
import tracemalloc

import numpy as np
import pytest

from fdt_pipeline.shards import write_shards
from fdt_pipeline.shards.codec import decode, encode
from fdt_pipeline.sources import ArraySource, open_source
from tests.folders import content
from tests.numbered import PlainSource, numbered_images


def numbered():
    return ArraySource(numbered_images(25), np.arange(25) % 5)


class Changed(ArraySource):
    """The numbered images, as `change` makes them when they are asked for."""

    def __init__(self, change):
        array = numbered()
        super().__init__(array.images, array.labels)
        self.change, self.shape = change, None

    def __getitem__(self, index):
        sample = super().__getitem__(index)
        return self.change(int(sample.key), sample)


def named(index, sample):
    """The key has all that names of files may have."""
    return sample._replace(key=f"cat.v2/ö 1-2_{'x' * index * 5}.tar.gz")


@pytest.mark.parametrize("source", [numbered(), Changed(named)])
@pytest.mark.parametrize("encoding", ["raw", "png"])
def test_the_index_is_byte_equal_to_that_of_wds2idx(tmp_path, source, encoding):
    pytest.importorskip("wds2idx")
    write_shards(source, tmp_path, encoding, samples_per_shard=20)
    for tar in tmp_path.glob("*.tar"):
        command = [sys.executable, "-m", "wds2idx", str(tar), str(tmp_path / "theirs")]
        subprocess.run(command, check=True, capture_output=True)
        assert tar.with_suffix(".idx").read_bytes() == (tmp_path / "theirs").read_bytes()


def test_the_files_never_change_between_versions(tmp_path):
    """Golden: whoever shards the same set anywhere gets the same files."""
    seed = np.uint64(2021)  # a seed may be NumPy's
    write_shards(open_source("train/data/fashion_mnist_subset", split="test"), tmp_path, seed=seed)
    golden = "3ebd7d9a6e4f85aa3a4fdc999d3917f8f23fc0e3b10d255e461cee70c103e417"
    assert hashlib.sha256((tmp_path / "shard-000000.tar").read_bytes()).hexdigest() == golden


JPEGS = [encode(np.full((8, 8, 3), 40 * index, np.uint8), "jpg") for index in range(6)]


class Files(PlainSource):
    """A source of JPEG files that knows no keys before it reads."""

    channels = 3

    def read_file(self, index):
        return JPEGS[index]


def test_files_of_a_source_without_keys_are_kept(tmp_path):
    write_shards(Files([decode(data, "jpg", 3) for data in JPEGS]), tmp_path, "keep")
    with tarfile.open(tmp_path / "shard-000000.tar") as tar:
        kept = [tar.extractfile(name).read() for name in tar.getnames() if name.endswith(".jpg")]
    assert sorted(kept) == sorted(JPEGS)


def test_memory_holds_a_sample_not_a_shard(tmp_path):
    """Images of 720 kB, made when asked for."""

    def large(index, sample):
        return sample._replace(image=np.full((600, 400, 3), index, np.uint8))

    tracemalloc.start()
    try:
        write_shards(Changed(large), tmp_path, samples_per_shard=25)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert (tmp_path / "shard-000000.tar").stat().st_size > 18e6
    assert peak < 6e6, f"{peak} bytes at once"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"encoding": "jpeg"}, "encoding must be one of raw, png, webp, jpg, keep, got 'jpeg'"),
        ({"samples_per_shard": 0}, "samples_per_shard must be at least 1, got 0"),
        ({"seed": -1}, "seed must be in"),
        ({"seed": 2**64}, "seed must be in"),
        ({"size": 0}, "size must be at least 1, got 0"),
        ({"max_shard_bytes": 10_000}, "max_shard_bytes must be at least 10240, the least a tar has, got 10000"),
        ({"workers": 0}, "workers must be at least 1, got 0"),
        ({"engine": "slurm"}, "engine must be one of local, ray, got 'slurm'"),
        ({"on_bad": "skip"}, "on_bad must be one of stop, quarantine, got 'skip'"),
    ],
)
def test_wrong_options_are_refused_before_anything_is_written(tmp_path, options, message):
    with pytest.raises(ValueError, match=message):
        write_shards(numbered(), tmp_path / "out", **options)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("image", "message"),
    [
        (np.zeros((2, 2, 1), np.uint8), "expected 3 channels as in the images before, got 1"),
        (np.zeros((2, 2), np.uint8), r"expected an image u8\[h w 1\] or u8\[h w 3\], got uint8 \[2, 2\]"),
        (np.zeros((2, 2, 3)), r"expected an image .*, got float64"),
        (np.zeros((0, 2, 3), np.uint8), r"expected an image .*, got uint8 \[0, 2, 3\]"),
    ],
)
def test_a_sample_that_is_no_image_is_named_and_nothing_is_left(tmp_path, image, message):
    with pytest.raises(ValueError, match=rf"sample 9 of the source \(9\): {message}"):
        write_shards(Changed(lambda i, sample: sample._replace(image=image) if i == 9 else sample), tmp_path)
    assert content(tmp_path) == {}


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"classes": ("a", "a")}, "class names must differ, got 'a' 2 times"),
        ({"classes": ("a", "")}, "not empty, got ''"),
        ({"labels": np.zeros(0, np.int64)}, "the source has no samples"),
    ],
)
def test_a_source_is_checked_before_anything_is_written(tmp_path, changed, message):
    source = numbered()
    vars(source).update(changed)
    with pytest.raises(ValueError, match=message):
        write_shards(source, tmp_path / "out")
    assert not (tmp_path / "out").exists()
