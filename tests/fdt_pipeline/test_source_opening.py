"""Which kind of source a path is, its splits, and what is said if it is none.

Downloads go through torchvision; here it is replaced by one that has the files at hand.
"""

import shutil
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from PIL import Image

from fdt_pipeline.sources import open_source, source_splits
from tests.folders import LFS_POINTER

SUBSET = "train/data/fashion_mnist_subset"


def test_an_official_set_has_train_and_test():
    assert source_splits(SUBSET) == ("train", "test")


def two_official_sets(path):
    path.mkdir()
    for name in ("test_batch.bin", "test_32x32.mat"):
        (path / name).touch()


def arrays_beside_class_folders(path):
    (path / "cat").mkdir(parents=True)
    Image.new("L", (2, 2)).save(path / "cat" / "1.png")
    (path / "train.npz").touch()


KIND_LIST = "fashion-mnist, mnist, cifar10, cifar100, svhn, npz, parquet, folder"
LOOKED_FOR = r"--source KIND; .*cifar10: data_batch_1.bin.*svhn: train_32x32.mat"


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda path: None, "x: no such file or folder"),
        (Path.mkdir, "x: the folder is empty"),
        (lambda path: path.write_text("text"), LOOKED_FOR),
        (two_official_sets, "could be any of cifar10, svhn: say which with --source KIND"),
        (arrays_beside_class_folders, "could be any of npz, folder"),
    ],
)
def test_a_place_that_is_no_one_kind_of_source_is_refused(tmp_path, make, message):
    make(tmp_path / "x")
    with pytest.raises(ValueError, match=message):
        source_splits(tmp_path / "x")


@pytest.mark.parametrize(
    ("kind", "split", "message"),
    [
        (None, None, "has the splits train, test: choose one of them as split, got None"),
        (None, "validation", "has the splits train, test: choose one of them as split, got validation"),
        ("imagenet", None, f"unknown kind of source 'imagenet': expected --source to be one of {KIND_LIST}$"),
        ("cifar100", None, r"no cifar100 here: looked for train.bin"),
    ],
)
def test_what_a_source_has_not_is_refused_with_what_there_is(kind, split, message):
    with pytest.raises(ValueError, match=message):
        open_source(SUBSET, kind, split=split)


def test_positions_outside_the_source_are_an_index_error():
    with pytest.raises(IndexError):
        open_source(SUBSET, split="test")[1000]


def fake_torchvision(monkeypatch, name, dataset):
    datasets = SimpleNamespace(**{name: dataset})
    monkeypatch.setitem(sys.modules, "torchvision", SimpleNamespace(datasets=datasets))
    monkeypatch.setitem(sys.modules, "torchvision.datasets", datasets)


def test_a_download_is_put_into_the_source_folder_and_opened(tmp_path, monkeypatch):
    asked = []

    def fashion_mnist(root, train, download):
        asked.append((train, download))
        shutil.copytree(SUBSET, f"{root}/FashionMNIST/raw", dirs_exist_ok=True)

    fake_torchvision(monkeypatch, "FashionMNIST", fashion_mnist)
    assert len(open_source(tmp_path / "new", "fashion-mnist", "test", download=True)) == 1000
    assert asked == [(True, True), (False, True)]


def test_svhn_is_asked_for_by_split(tmp_path, monkeypatch):
    asked = []
    fake_torchvision(monkeypatch, "SVHN", lambda root, split, download: asked.append(split))
    with pytest.raises(ValueError, match="no svhn here"):
        open_source(tmp_path, "svhn", "train", download=True)
    assert asked == ["train", "test"]


def no_network(**_):
    raise RuntimeError("no network")


@pytest.mark.parametrize(
    ("kind", "torchvision", "error", "message"),
    [
        (None, no_network, ValueError, "expected --source to be one of fashion-mnist, .*svhn, got None"),
        ("folder", no_network, ValueError, "expected --source to be one of fashion-mnist, .*svhn, got folder"),
        ("cifar10", no_network, OSError, r"could not download cifar10 to .*: no network; fetch the files by hand"),
        ("cifar10", None, ImportError, "pip install torchvision"),
    ],
)
def test_a_download_that_fails_says_why(tmp_path, monkeypatch, kind, torchvision, error, message):
    fake_torchvision(monkeypatch, "CIFAR10", torchvision)
    if torchvision is None:
        monkeypatch.setitem(sys.modules, "torchvision", None)
    with pytest.raises(error, match=message):
        open_source(tmp_path, kind, download=True)


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("train-labels-idx1-ubyte", {"kind": "mnist", "split": "train"}),
        ("data_batch_3.bin", {"kind": "cifar10", "split": "train"}),
        ("data_batch_1", {"kind": "cifar10", "split": "train"}),
        ("train_32x32.mat", {"kind": "svhn", "split": "train"}),
        ("train.npz", {"kind": "npz", "split": "train"}),
        ("labels.csv", {"labels": "{0}/labels.csv"}),
    ],
)
def test_a_git_lfs_pointer_in_the_place_of_a_file_is_named_with_the_remedy(tmp_path, name, options):
    for number in range(1, 6) if name.endswith(".bin") else ():
        (tmp_path / f"data_batch_{number}.bin").write_bytes(bytes(3073))
    (tmp_path / "train-images-idx3-ubyte").write_bytes(bytes.fromhex("00000803 00000001 00000001 00000001 00"))
    Image.new("L", (2, 2)).save(tmp_path / "1.png")
    (tmp_path / name).write_bytes(LFS_POINTER)
    with pytest.raises(ValueError, match=f"{tmp_path}/{name}: a Git LFS pointer, not the file itself: git lfs pull"):
        open_source(tmp_path, **{key: value.format(tmp_path) for key, value in options.items()})
