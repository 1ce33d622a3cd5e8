"""Which kind of source a path is, its splits, and what is said if it is none."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fdt_pipeline.sources import open_source, source_splits

SUBSET = "train/data/fashion_mnist_subset"


def test_an_official_set_has_train_and_test() -> None:
    assert source_splits(SUBSET) == ("train", "test")


def two_official_sets(path: Path) -> None:
    path.mkdir()
    for name in ("test_batch.bin", "test_32x32.mat"):
        (path / name).touch()


def arrays_beside_class_folders(path: Path) -> None:
    (path / "cat").mkdir(parents=True)
    Image.new("L", (2, 2)).save(path / "cat" / "1.png")
    (path / "train.npz").touch()


KIND_LIST = "fashion-mnist, mnist, cifar10, cifar100, svhn, npz, folder"
LOOKED_FOR = r"--source KIND; .*cifar10: data_batch_1.bin.*svhn: train_32x32.mat"


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda path: None, "x: no such file or folder"),
        (Path.mkdir, LOOKED_FOR),
        (lambda path: path.write_text("text"), LOOKED_FOR),
        (two_official_sets, "could be any of cifar10, svhn: say which with --source KIND"),
        (arrays_beside_class_folders, "could be any of npz, folder"),
    ],
)
def test_a_place_that_is_no_one_kind_of_source_is_refused(
    tmp_path: Path, make: Callable[[Path], object], message: str
) -> None:
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
def test_what_a_source_has_not_is_refused_with_what_there_is(kind: str | None, split: str | None, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        open_source(SUBSET, kind, split=split)


def test_a_split_of_a_source_without_splits_is_refused(tmp_path: Path) -> None:
    np.savez(tmp_path / "set.npz", images=np.zeros((1, 2, 2), np.uint8), labels=[0])
    with pytest.raises(ValueError, match="npz has no splits"):
        open_source(tmp_path / "set.npz", split="train")


def test_positions_outside_the_source_are_an_index_error() -> None:
    with pytest.raises(IndexError):
        open_source(SUBSET, split="test")[1000]
