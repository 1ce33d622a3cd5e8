"""SVHN's .mat files."""

from __future__ import annotations

import builtins
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fdt_pipeline.sources import open_source

savemat = pytest.importorskip("scipy.io").savemat


def write_svhn(folder: Path, shape: tuple[int, ...] = (32, 32, 3, 20), labels: Any = None) -> np.ndarray:
    """The labels are 1..10, as in the official files; returns X."""
    folder.mkdir(parents=True, exist_ok=True)
    images = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    digits = np.arange(20, dtype=np.uint8)[:, None] % 10 + 1 if labels is None else labels
    for split in ("train", "test"):
        savemat(folder / f"{split}_32x32.mat", {"X": images, "y": digits})
    return images


@pytest.mark.parametrize("below", [".", "svhn"])
def test_images_are_read_and_label_10_is_digit_0(tmp_path: Path, below: str) -> None:
    images = write_svhn(tmp_path / below)
    source = open_source(tmp_path, split="train")
    assert (source.kind, source.shape, source.classes) == ("svhn", (32, 32, 3), tuple("0123456789"))
    assert source.labels.tolist() == [1, 2, 3, 4, 5, 6, 7, 8, 9, 0] * 2
    np.testing.assert_array_equal(source[13].image, images[..., 13])


@pytest.mark.parametrize(
    ("shape", "labels", "message"),
    [
        ((28, 32, 3, 20), None, r"expected X of shape \[32 32 3 n\], got \[28, 32, 3, 20\]"),
        ((32, 32, 3, 21), None, "expected 21 labels in y, one an image, got 20"),
        ((32, 32, 3, 20), np.full((20, 1), 11, np.uint8), r"label 11 at index 0 is out of range: expected 1..10"),
        ((32, 32, 3, 20), np.full((20, 1), 1.5), "expected whole numbers 1..10 in y, got 1.5 at index 0"),
        ((32, 32, 3, 20), np.full((20, 1), np.nan), "expected whole numbers 1..10 in y, got nan at index 0"),
        ((32, 32, 3, 20), np.full((20, 1), np.inf), "expected whole numbers 1..10 in y, got inf at index 0"),
        ((32, 32, 3, 20), np.full((20, 1), 1e300), "label 10+[0-9]* at index 0 is out of range"),
        ((32, 32, 3, 20), np.full((20, 1), 1, object), "expected numbers in y, got object; fetch it again"),
    ],
)
def test_wrong_content_is_named(tmp_path: Path, shape: tuple[int, ...], labels: Any, message: str) -> None:
    write_svhn(tmp_path, shape, labels)
    with pytest.raises(ValueError, match=f"train_32x32.mat: {message}"):
        open_source(tmp_path, split="train")


def test_whole_floats_are_labels(tmp_path: Path) -> None:
    write_svhn(tmp_path, labels=np.arange(20.0)[:, None] % 10 + 1)
    assert open_source(tmp_path, split="train").labels.tolist() == [1, 2, 3, 4, 5, 6, 7, 8, 9, 0] * 2


def test_a_cut_file_is_named(tmp_path: Path) -> None:
    write_svhn(tmp_path)
    path = tmp_path / "test_32x32.mat"
    path.write_bytes(path.read_bytes()[:5000])
    with pytest.raises(ValueError, match=r"test_32x32.mat: not a readable MATLAB 5 file"):
        open_source(tmp_path, split="test")


def test_without_scipy_the_error_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_svhn(tmp_path)
    real_import = builtins.__import__

    def no_scipy(name: str, *arguments: Any, **keywords: Any) -> Any:
        if name.startswith("scipy"):
            raise ImportError(name)
        return real_import(name, *arguments, **keywords)

    monkeypatch.setattr(builtins, "__import__", no_scipy)
    with pytest.raises(ImportError, match="pip install scipy"):
        open_source(tmp_path, split="train")
