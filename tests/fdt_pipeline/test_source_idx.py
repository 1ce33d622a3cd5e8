"""Fashion-MNIST and MNIST in their official idx files."""

from __future__ import annotations

import gzip
import struct
from pathlib import Path

import numpy as np
import pytest

from fdt_pipeline.sources import open_source

SUBSET = Path("train/data/fashion_mnist_subset")


def idx_bytes(array: np.ndarray) -> bytes:
    return struct.pack(f">{1 + array.ndim}I", 0x800 | array.ndim, *array.shape) + array.tobytes()


def write_idx(folder: Path, num_images: int = 30, zipped: bool = False) -> Path:
    """Image i of each split has all pixels i and label i % 10."""
    folder.mkdir(parents=True, exist_ok=True)
    images = np.broadcast_to(np.arange(num_images, dtype=np.uint8)[:, None, None], (num_images, 28, 28))
    labels = np.arange(num_images, dtype=np.uint8) % 10
    for prefix in ("train", "t10k"):
        for name, array in (("images-idx3", images), ("labels-idx1", labels)):
            path = folder / f"{prefix}-{name}-ubyte"
            data = idx_bytes(array)
            path.with_name(path.name + ".gz" * zipped).write_bytes(gzip.compress(data) if zipped else data)
    return folder


@pytest.mark.parametrize(("split", "num_samples"), [("train", 5000), ("test", 1000)])
def test_the_embedded_subset_is_balanced_fashion_mnist(split: str, num_samples: int) -> None:
    source = open_source(SUBSET, split=split)
    assert (source.kind, source.split, len(source), source.shape) == ("fashion-mnist", split, num_samples, (28, 28, 1))
    assert source.classes[0] == "T-shirt/top"
    assert source.classes[9] == "Ankle boot"
    assert np.bincount(source.labels).tolist() == [num_samples // 10] * 10


def test_images_equal_those_of_torchvision(tmp_path: Path) -> None:
    datasets = pytest.importorskip("torchvision.datasets")
    raw = tmp_path / "FashionMNIST" / "raw"
    raw.mkdir(parents=True)
    for path in SUBSET.glob("*.gz"):
        (raw / path.stem).write_bytes(gzip.decompress(path.read_bytes()))
    ours, theirs = open_source(tmp_path, split="test"), datasets.FashionMNIST(tmp_path, train=False)
    assert ours.classes == tuple(theirs.classes)
    np.testing.assert_array_equal(ours.labels, theirs.targets.numpy())
    np.testing.assert_array_equal(np.stack([ours[i].image[..., 0] for i in range(len(ours))]), theirs.data.numpy())


@pytest.mark.parametrize("zipped", [False, True])
@pytest.mark.parametrize("below", ["FashionMNIST/raw", "raw", "."])
def test_every_layout_is_found(tmp_path: Path, below: str, zipped: bool) -> None:
    write_idx(tmp_path / below, zipped=zipped)
    source = open_source(tmp_path, "fashion-mnist", "train")
    assert [int(source[i].image.mean()) for i in range(len(source))] == list(range(30))


def test_a_plain_file_is_preferred_to_its_zipped_twin(tmp_path: Path) -> None:
    write_idx(tmp_path, 30)
    write_idx(tmp_path, 20, zipped=True)
    assert len(open_source(tmp_path, "mnist", "train")) == 30


def test_mnist_has_digits_for_classes(tmp_path: Path) -> None:
    write_idx(tmp_path / "MNIST" / "raw")
    assert open_source(tmp_path, split="test").classes == tuple("0123456789")


def test_a_folder_whose_name_says_nothing_is_ambiguous(tmp_path: Path) -> None:
    write_idx(tmp_path / "downloads")
    with pytest.raises(ValueError, match=r"could be any of fashion-mnist, mnist: say which with --source KIND"):
        open_source(tmp_path / "downloads", split="train")


def damage(path: Path, start: int, data: bytes) -> None:
    content = bytearray(path.read_bytes())
    content[start : start + len(data)] = data
    path.write_bytes(content)


@pytest.mark.parametrize(
    ("name", "start", "data", "message"),
    [
        ("train-images-idx3-ubyte", 0, b"\0\0\x08\x01", r"train-images.*wrong magic number: expected 2051, got 2049"),
        ("train-images-idx3-ubyte", 11, b"\x1d", r"train-images.*cut short: expected 24376 bytes, got 23536"),
        ("train-labels-idx1-ubyte", 12, b"\x0a", r"train-labels.*label 10 at index 4 is out of range: expected 0..9"),
    ],
)
def test_a_wrong_byte_is_named(tmp_path: Path, name: str, start: int, data: bytes, message: str) -> None:
    damage(write_idx(tmp_path) / name, start, data)
    with pytest.raises(ValueError, match=message):
        open_source(tmp_path, "mnist", "train")


@pytest.mark.parametrize(
    ("size", "message"), [(9, "expected 16 bytes, got 9"), (20000, "expected 23536 bytes, got 20000")]
)
def test_a_cut_file_says_how_long_it_should_be(tmp_path: Path, size: int, message: str) -> None:
    path = write_idx(tmp_path) / "train-images-idx3-ubyte"
    path.write_bytes(path.read_bytes()[:size])
    with pytest.raises(ValueError, match=f"train-images.*cut short: {message}"):
        open_source(tmp_path, "mnist", "train")


def test_a_file_that_is_too_long_is_refused(tmp_path: Path) -> None:
    path = write_idx(tmp_path) / "train-images-idx3-ubyte"
    path.write_bytes(path.read_bytes() + b"x")
    with pytest.raises(ValueError, match="longer than its header says"):
        open_source(tmp_path, "mnist", "train")


def test_counts_of_images_and_labels_must_agree(tmp_path: Path) -> None:
    write_idx(tmp_path)
    (tmp_path / "train-labels-idx1-ubyte").write_bytes(idx_bytes(np.zeros(29, np.uint8)))
    with pytest.raises(ValueError, match=r"train-labels.*expected 30 labels, one an image, got 29"):
        open_source(tmp_path, "mnist", "train")


def test_a_class_without_a_train_sample_is_named(tmp_path: Path) -> None:
    write_idx(tmp_path, num_images=9)
    with pytest.raises(ValueError, match=r"1 of 10 classes have no sample: 9 \(Ankle boot\)"):
        open_source(tmp_path, "fashion-mnist", "train")
    assert len(open_source(tmp_path, "fashion-mnist", "test")) == 9


@pytest.mark.parametrize(
    "broken", [b"no gzip at all", gzip.compress(b"x" * 9999, mtime=0)[:-20]], ids=["no gzip", "cut"]
)
def test_a_broken_gzip_file_is_named(tmp_path: Path, broken: bytes) -> None:
    write_idx(tmp_path, zipped=True)
    (tmp_path / "train-images-idx3-ubyte.gz").write_bytes(broken)
    with pytest.raises(ValueError, match=r"train-images-idx3-ubyte.gz: broken gzip file"):
        open_source(tmp_path, "mnist", "train")


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    (write_idx(tmp_path) / "t10k-labels-idx1-ubyte").unlink()
    with pytest.raises(ValueError, match=r"t10k-labels-idx1-ubyte.gz: the file is missing"):
        open_source(tmp_path, "mnist", "test")
