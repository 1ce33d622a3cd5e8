"""SVHN's .mat files."""

import sys

import numpy as np
import pytest

from fdt_pipeline.sources import open_source

savemat = pytest.importorskip("scipy.io").savemat


def write_svhn(folder, shape=(32, 32, 3, 20), labels=None):
    """The labels are 1..10, as in the official files; returns X."""
    folder.mkdir(parents=True, exist_ok=True)
    images = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    digits = np.arange(20, dtype=np.uint8)[:, None] % 10 + 1 if labels is None else labels
    for split in ("train", "test"):
        savemat(folder / f"{split}_32x32.mat", {"X": images, "y": digits})
    return images


@pytest.mark.parametrize(("below", "dtype"), [(".", np.uint8), ("svhn", np.uint8), (".", np.float64)])
def test_images_are_read_and_label_10_is_digit_0(tmp_path, below, dtype):
    images = write_svhn(tmp_path / below, labels=np.arange(20, dtype=dtype)[:, None] % 10 + 1)
    source = open_source(tmp_path, split="train")
    assert (source.kind, source.shape, source.classes) == ("svhn", (32, 32, 3), tuple("0123456789"))
    assert source.labels.tolist() == [1, 2, 3, 4, 5, 6, 7, 8, 9, 0] * 2
    np.testing.assert_array_equal(source[13].image, images[..., 13])


@pytest.mark.parametrize(
    ("shape", "labels", "message"),
    [
        ((28, 32, 3, 20), None, r"expected X of shape \[32 32 3 n\], got \[28, 32, 3, 20\]"),
        ((32, 32, 3, 21), None, "expected one label an image, got 21 images and 20 labels"),
        ((32, 32, 3, 20), np.full((20, 1), 11, np.uint8), r"label 11 at index 0 is out of range: expected 1..10"),
        ((32, 32, 3, 20), np.full((20, 1), 1.5), "expected whole numbers 1..10 in y, got 1.5 at index 0"),
        ((32, 32, 3, 20), np.full((20, 1), np.nan), "expected whole numbers 1..10 in y, got nan at index 0"),
        ((32, 32, 3, 20), np.full((20, 1), np.inf), "expected whole numbers 1..10 in y, got inf at index 0"),
        ((32, 32, 3, 20), np.full((20, 1), 1e300), "label 10+[0-9]* at index 0 is out of range"),
        ((32, 32, 3, 20), np.full((20, 1), 1, object), "expected numbers in y, got object; fetch it again"),
    ],
)
def test_wrong_content_is_named(tmp_path, shape, labels, message):
    write_svhn(tmp_path, shape, labels)
    with pytest.raises(ValueError, match=f"train_32x32.mat: {message}"):
        open_source(tmp_path, split="train")


def test_a_cut_file_is_named_and_without_scipy_the_error_says_what_to_install(tmp_path, monkeypatch):
    write_svhn(tmp_path)
    path = tmp_path / "test_32x32.mat"
    path.write_bytes(path.read_bytes()[:5000])
    with pytest.raises(ValueError, match=r"test_32x32.mat: not a readable MATLAB 5 file"):
        open_source(tmp_path, split="test")
    monkeypatch.setitem(sys.modules, "scipy.io", None)
    with pytest.raises(ImportError, match="pip install scipy"):
        open_source(tmp_path, split="train")
