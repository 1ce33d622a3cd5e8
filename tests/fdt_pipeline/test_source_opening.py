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


@pytest.mark.parametrize("split", [None, "validation"])
def test_an_unknown_split_lists_the_splits(split: str | None) -> None:
    with pytest.raises(ValueError, match=f"has the splits train, test: choose one of them as split, got {split}"):
        open_source(SUBSET, split=split)


def test_a_split_of_a_source_without_splits_is_refused(tmp_path: Path) -> None:
    np.savez(tmp_path / "set.npz", images=np.zeros((1, 2, 2), np.uint8), labels=[0])
    with pytest.raises(ValueError, match="npz has no splits"):
        open_source(tmp_path / "set.npz", split="train")


def test_a_path_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"nowhere: no such file or folder"):
        open_source(tmp_path / "nowhere")


@pytest.mark.parametrize("make", [lambda path: path.mkdir(), lambda path: path.write_text("text")])
def test_an_unknown_source_lists_what_was_looked_for(tmp_path: Path, make: Callable[[Path], object]) -> None:
    make(tmp_path / "x")
    with pytest.raises(ValueError, match=r"--source KIND; .*cifar10: data_batch_1.bin.*svhn: train_32x32.mat"):
        source_splits(tmp_path / "x")


def test_an_ambiguous_source_lists_the_kinds(tmp_path: Path) -> None:
    for name in ("test_batch.bin", "test_32x32.mat"):
        (tmp_path / name).touch()
    with pytest.raises(ValueError, match="could be any of cifar10, svhn: say which with --source KIND"):
        source_splits(tmp_path)


def test_arrays_beside_class_folders_are_ambiguous(tmp_path: Path) -> None:
    (tmp_path / "train.npz").touch()
    (tmp_path / "cat").mkdir()
    Image.new("L", (2, 2)).save(tmp_path / "cat" / "1.png")
    with pytest.raises(ValueError, match="could be any of npz, folder"):
        source_splits(tmp_path)


def test_an_unknown_kind_lists_the_kinds() -> None:
    kinds = "fashion-mnist, mnist, cifar10, cifar100, svhn, npz, folder"
    with pytest.raises(ValueError, match=f"unknown kind of source 'imagenet': expected --source to be one of {kinds}$"):
        open_source(SUBSET, "imagenet")


def test_a_kind_that_is_not_there_says_what_was_looked_for() -> None:
    with pytest.raises(ValueError, match=r"no cifar100 here: looked for train.bin"):
        open_source(SUBSET, "cifar100")


def test_positions_outside_the_source_are_an_index_error() -> None:
    with pytest.raises(IndexError):
        open_source(SUBSET, split="test")[1000]
