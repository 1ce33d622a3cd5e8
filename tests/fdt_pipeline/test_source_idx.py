"""Fashion-MNIST and MNIST in their official idx files."""

import gzip
import struct
from pathlib import Path

import numpy as np
import pytest

from fdt_pipeline.sources import open_source

SUBSET = Path("train/data/fashion_mnist_subset")


def idx_bytes(array):
    return struct.pack(f">{1 + array.ndim}I", 0x800 | array.ndim, *array.shape) + array.tobytes()


def write_idx(folder, num_images=30, zipped=False):
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
def test_the_embedded_subset_is_balanced_fashion_mnist(split, num_samples):
    source = open_source(SUBSET, split=split)
    assert (source.kind, source.split, len(source), source.shape) == ("fashion-mnist", split, num_samples, (28, 28, 1))
    assert source.classes[0] == "T-shirt/top"
    assert source.classes[9] == "Ankle boot"
    assert np.bincount(source.labels).tolist() == [num_samples // 10] * 10


def test_images_equal_those_of_torchvision(tmp_path):
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
def test_every_layout_is_found(tmp_path, below, zipped):
    write_idx(tmp_path / below, zipped=zipped)
    source = open_source(tmp_path, "fashion-mnist", "train")
    assert [int(source[i].image.mean()) for i in range(len(source))] == list(range(30))


def test_a_plain_file_is_preferred_to_its_zipped_twin_and_mnist_has_digits_for_classes(tmp_path):
    write_idx(tmp_path / "MNIST" / "raw", 30)
    write_idx(tmp_path / "MNIST" / "raw", 20, zipped=True)
    source = open_source(tmp_path, split="train")
    assert (source.kind, source.classes, len(source)) == ("mnist", tuple("0123456789"), 30)


@pytest.mark.parametrize("zipped", [False, True])
def test_names_with_a_dot_are_read(tmp_path, zipped):
    for path in list(write_idx(tmp_path / "mnist", 30, zipped).iterdir()):
        path.rename(path.with_name(path.name.replace("-idx", ".idx")))
    assert (tmp_path / "mnist" / ("train-images.idx3-ubyte" + ".gz" * zipped)).is_file()
    assert len(open_source(tmp_path / "mnist", split="test")) == 30


RELATIVE = "a relative of MNIST by its name, with classes of its own"


@pytest.mark.parametrize("folder", ["EMNIST/raw", "KMNIST", "my-q-mnist", "notMNIST"])
def test_relatives_of_mnist_are_not_taken_for_it(tmp_path, folder):
    write_idx(tmp_path / folder)
    with pytest.raises(ValueError, match=f"{folder}: {RELATIVE}"):
        open_source(tmp_path / folder, split="train")
    assert open_source(tmp_path / folder, "mnist", "train").kind == "mnist", "if somebody says so"


def test_the_letters_of_emnist_are_refused_by_their_file_names_and_by_their_labels(tmp_path):
    (tmp_path / "emnist-letters-train-images-idx3-ubyte.gz").touch()
    for kind in (None, "mnist"):
        with pytest.raises(ValueError, match=RELATIVE):
            open_source(tmp_path, kind, "train")
    write_idx(tmp_path / "mnist")
    letters = np.arange(30, dtype=np.uint8) % 26 + 1
    (tmp_path / "mnist" / LABELS).write_bytes(idx_bytes(letters))
    with pytest.raises(
        ValueError, match=f"{LABELS}: labels 1..26 are those of EMNIST's letters, expected 0..9 of mnist"
    ):
        open_source(tmp_path / "mnist", split="train")


def test_a_folder_whose_name_says_nothing_is_ambiguous(tmp_path):
    write_idx(tmp_path / "downloads")
    with pytest.raises(ValueError, match=r"could be any of fashion-mnist, mnist: say which with --source KIND"):
        open_source(tmp_path / "downloads", split="train")


IMAGES, LABELS = "train-images-idx3-ubyte", "train-labels-idx1-ubyte"


def changed(start, data):
    return lambda content: content[:start] + data + content[start + len(data) :]


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        (IMAGES, changed(0, b"\0\0\x08\x01"), r"wrong magic number: expected 2051, got 2049"),
        (IMAGES, changed(11, b"\x1d"), r"cut short: expected 24376 bytes, got 23536"),
        (LABELS, changed(12, b"\x0a"), r"label 10 at index 4 is out of range: expected 0..9"),
        (IMAGES, lambda data: data[:9], "cut short: expected 16 bytes, got 9"),
        (IMAGES, lambda data: data[:20000], "cut short: expected 23536 bytes, got 20000"),
        (IMAGES, lambda data: data + b"x", "longer than its header says"),
        (
            LABELS,
            lambda _: idx_bytes(np.zeros(29, np.uint8)),
            "expected one label an image, got 30 .* and 29 labels",
        ),
        (IMAGES + ".gz", lambda data: b"no gzip at all", "broken gzip file"),
        (IMAGES + ".gz", lambda data: data[:-20], "broken gzip file"),
    ],
)
def test_a_broken_file_is_named(tmp_path, name, change, message):
    path = write_idx(tmp_path, zipped=name.endswith(".gz")) / name
    path.write_bytes(change(path.read_bytes()))
    with pytest.raises(ValueError, match=f"{name}: .*{message}"):
        open_source(tmp_path, "mnist", "train")


def test_a_class_without_a_train_sample_and_a_missing_file_are_named(tmp_path):
    write_idx(tmp_path, num_images=9)
    with pytest.raises(ValueError, match=r"1 of 10 classes have no sample: 9 \(Ankle boot\)"):
        open_source(tmp_path, "fashion-mnist", "train")
    assert len(open_source(tmp_path, "fashion-mnist", "test")) == 9
    (tmp_path / "t10k-labels-idx1-ubyte").unlink()
    with pytest.raises(ValueError, match=r"t10k-labels-idx1-ubyte: the file is missing"):
        open_source(tmp_path, "mnist", "test")
