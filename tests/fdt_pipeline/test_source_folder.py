"""Folders of image files, of any mode and size."""

from __future__ import annotations

import io
import os
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from fdt_pipeline.sources import open_source, source_splits
from fdt_pipeline.sources.image_pixels import decode_image


def read_pixels(file: Path | io.BytesIO, channels: int) -> np.ndarray:
    data = file.getvalue() if isinstance(file, io.BytesIO) else file.read_bytes()
    return decode_image(data, channels).pixels


RAMP = np.arange(12, dtype=np.uint8).reshape(3, 4) * 20
COLOR = np.stack([RAMP, 255 - RAMP, RAMP // 2], axis=-1)


def save(path: Path, pixels: np.ndarray = COLOR) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)
    return path


def two_classes(root: Path, pixels: np.ndarray = COLOR) -> Path:
    save(root / "cat" / "1.png", pixels)
    save(root / "dog" / "1.png", pixels)
    return root


def test_classes_and_samples_are_sorted_and_keys_are_paths(tmp_path: Path) -> None:
    for name in (
        "dog/2.png",
        "dog/1.png",
        "cat/b/9.png",
        "cat/a.png",
        "dog/.hidden.png",
        ".cache/x.png",
        "cat/.x/y.png",
    ):
        save(tmp_path / name)
    source = open_source(tmp_path)
    assert (source.kind, source.split, source.classes, source.channels) == ("folder", None, ("cat", "dog"), 3)
    assert [(sample.key, sample.label) for sample in source] == [
        ("cat/a.png", 0),
        ("cat/b/9.png", 0),
        ("dog/1.png", 1),
        ("dog/2.png", 1),
    ]
    assert source.labels.tolist() == [0, 0, 1, 1]
    np.testing.assert_array_equal(source[0].image, COLOR)


@pytest.mark.parametrize(
    ("folders", "splits"),
    [
        (("train", "test"), ("train", "test")),
        (("train", "val"), ("train", "test")),
        (("train", "valid"), ("train", "test")),
        (("train", "test", "val"), ("train", "test", "val")),
        (("train",), ("train",)),
        (("Train", "VAL", "Test"), ("train", "val", "test")),
    ],
)
def test_split_folders_are_splits(tmp_path: Path, folders: tuple[str, ...], splits: tuple[str, ...]) -> None:
    for folder in folders:
        two_classes(tmp_path / folder)
    assert set(source_splits(tmp_path)) == set(splits)
    for folder, split in zip(folders, splits, strict=True):
        assert open_source(tmp_path, split=split)[1].key == "dog/1.png", folder


@pytest.mark.parametrize(
    ("files", "split", "message"),
    [
        (["train/cat/1", "Train/cat/1", "test/cat/1"], "train", "Train: train is the same split; merge them or rename"),
        (["train/cat/1", "test/"], "test", "/test: no image in it; add images"),
        (["train/cat/1", "test/cat/"], "test", "/test: no image in it; add images"),
        (["train/cat/1", "test/bird/1"], "test", "expected only the classes of .*train, got bird as well"),
        (["test/cat/1", "train/"], "train", "train: expected a subfolder of images for each class, got none"),
        (["cat/1", "bird/"], None, "no image in the class folder bird; add images or remove it"),
        (["cat/1", "dog/1", "loose"], None, "1 images lie beside the class folders: loose.png"),
    ],
)
def test_a_folder_that_is_no_set_is_refused(tmp_path: Path, files: list[str], split: str | None, message: str) -> None:
    for name in files:
        if name.endswith("/"):
            (tmp_path / name).mkdir(parents=True)
        else:
            save(tmp_path / f"{name}.png")
    with pytest.raises(ValueError, match=message):
        open_source(tmp_path, "folder", split=split)


def test_a_class_named_train_is_a_class(tmp_path: Path) -> None:
    save(tmp_path / "train" / "1.png")
    save(tmp_path / "car" / "1.png")
    assert source_splits(tmp_path) == ()
    assert open_source(tmp_path).classes == ("car", "train")


def test_labels_mean_the_same_in_every_split(tmp_path: Path) -> None:
    two_classes(tmp_path / "train")
    save(tmp_path / "test" / "dog" / "1.png")
    source = open_source(tmp_path, split="test")
    assert (source.classes, source.labels.tolist()) == (("cat", "dog"), [1])


def test_images_of_different_sizes_have_no_common_shape(tmp_path: Path) -> None:
    two_classes(tmp_path)
    save(tmp_path / "cat" / "2.png", COLOR[:2])
    source = open_source(tmp_path)
    assert source.shape is None
    assert source[1].image.shape == (2, 4, 3)


def test_a_set_of_gray_images_has_one_channel(tmp_path: Path) -> None:
    two_classes(tmp_path, RAMP)
    source = open_source(tmp_path)
    assert source[0].image.shape == (3, 4, 1)
    np.testing.assert_array_equal(source[0].image[..., 0], RAMP)


@pytest.mark.parametrize("name", ["cat/2.png", "../test/cat/1.png"])
def test_one_color_image_in_any_split_makes_all_rgb(tmp_path: Path, name: str) -> None:
    two_classes(tmp_path / "train", RAMP)
    save(tmp_path / "train" / name)
    source = open_source(tmp_path, split="train")
    assert source[0].image.shape == (3, 4, 3)
    np.testing.assert_array_equal(source[0].image, np.stack([RAMP] * 3, axis=-1))


def test_other_files_are_counted_and_named_in_a_warning(tmp_path: Path) -> None:
    two_classes(tmp_path)
    for name in ("classes.txt", "cat/notes.txt", "cat/boxes.xml", "dog/a.json"):
        (tmp_path / name).touch()
    with pytest.warns(
        UserWarning, match=r"ignored 4 files that are no images: classes.txt, cat/boxes.xml, cat/notes.txt, \.\.\."
    ):
        assert len(open_source(tmp_path)) == 2


def test_a_file_that_should_be_an_image_is_not_dropped(tmp_path: Path) -> None:
    (two_classes(tmp_path) / "dog" / "3.unknown").write_text("no image")
    with pytest.raises(
        ValueError, match=r"dog/3.unknown: not an image: it begins with b'no image'; replace or remove it"
    ):
        open_source(tmp_path)[2]


def test_an_image_needs_no_extension(tmp_path: Path) -> None:
    save(tmp_path / "cat" / "1.png").rename(tmp_path / "cat" / "1")
    np.testing.assert_array_equal(open_source(tmp_path, "folder")[0].image, COLOR)


def test_a_cut_image_is_named(tmp_path: Path) -> None:
    path = two_classes(tmp_path) / "dog" / "1.png"
    path.write_bytes(path.read_bytes()[:-30])
    source = open_source(tmp_path)
    with pytest.raises(ValueError, match=r"dog/1.png: not a readable image"):
        source[1]


def test_linked_folders_are_walked_and_loops_are_refused(tmp_path: Path) -> None:
    two_classes(tmp_path / "real")
    (tmp_path / "set").mkdir()
    (tmp_path / "set" / "cat").symlink_to(tmp_path / "real" / "cat")
    assert open_source(tmp_path / "set")[0].key == "cat/1.png"
    (tmp_path / "real" / "cat" / "loop").symlink_to(tmp_path / "real" / "cat")
    with pytest.raises(ValueError, match="loop: the link leads back to a folder above it"):
        open_source(tmp_path / "set", "folder")


def test_folders_may_be_deeper_than_python_recurses(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    two_classes(tmp_path / "set")
    monkeypatch.chdir(tmp_path / "set" / "cat")
    for _ in range(1100):  # step by step: the whole path is too long for some calls
        os.mkdir("d")
        os.chdir("d")
    save(Path("deep.png"))
    try:
        assert open_source(tmp_path / "set").key(1) == "cat/" + "d/" * 1100 + "deep.png"
    finally:  # pytest's own removal recurses
        os.remove("deep.png")
        for _ in range(1100):
            os.chdir("..")
            os.rmdir("d")


def test_a_link_through_a_file_is_told_when_it_is_asked_for(tmp_path: Path) -> None:
    (two_classes(tmp_path) / "cat" / "2.png").symlink_to("1.png/x")
    source = open_source(tmp_path)
    with pytest.raises(ValueError, match=r"cat/2.png: a link that leads through a file as if it were a folder"):
        source[1]


@pytest.mark.parametrize(
    ("mode", "suffix"), [("1", "png"), ("L", "png"), ("P", "png"), ("RGB", "bmp"), ("CMYK", "tiff")]
)
def test_opaque_8_bit_modes_are_what_pillow_makes_of_them(tmp_path: Path, mode: str, suffix: str) -> None:
    image = Image.fromarray(COLOR).convert(mode)
    path = tmp_path / f"1.{suffix}"
    image.save(path)
    with Image.open(path) as saved:
        np.testing.assert_array_equal(read_pixels(path, 3), np.asarray(saved.convert("RGB")))


@given(st.integers(0, 65535))
def test_16_bits_are_rounded_to_8(value: int) -> None:
    file = io.BytesIO()
    Image.fromarray(np.full((1, 1), value, np.uint16)).save(file, "png")
    assert read_pixels(file, 1).item() == round(value / 257)  # type: ignore[arg-type]


@pytest.mark.parametrize("dtype", [">u2", "<u2"])
def test_16_bit_gray_is_gray_in_either_byte_order(tmp_path: Path, dtype: str) -> None:
    mode = "I;16B" if dtype == ">u2" else "I;16"
    wide = (RAMP.astype(np.uint16) * 257).astype(dtype)
    (tmp_path / "cat").mkdir()
    Image.frombytes(mode, (4, 3), wide.tobytes()).save(tmp_path / "cat" / "1.tif")
    source = open_source(tmp_path)
    np.testing.assert_array_equal(source[0].image[..., 0], RAMP)


def test_32_bits_and_floats_are_refused_by_name(tmp_path: Path) -> None:
    wide, real = tmp_path / "wide.tif", tmp_path / "float.tif"
    Image.fromarray(np.full((2, 2), 70000, np.int32)).save(wide)
    Image.fromarray(np.ones((2, 2), np.float32)).save(real)
    with pytest.raises(ValueError, match=r"expected 16-bit pixels 0..65535, got 70000..70000"):
        read_pixels(wide, 1)
    with pytest.raises(ValueError, match=r"save it with 8 or 16 bits"):
        read_pixels(real, 1)


@pytest.mark.parametrize(("mode", "channels"), [("RGBA", 3), ("LA", 1), ("LA", 3)])
def test_transparent_images_are_laid_on_black(tmp_path: Path, mode: str, channels: int) -> None:
    value = (200,) * (len(mode) - 1)
    image = Image.new(mode, (3, 1), (*value, 255))
    image.putpixel((1, 0), (*value, 51))
    image.putpixel((2, 0), (*value, 0))
    image.save(tmp_path / "1.png")
    np.testing.assert_array_equal(
        read_pixels(tmp_path / "1.png", channels)[0], [[200] * channels, [40] * channels, [0] * channels]
    )


def test_a_transparent_color_of_the_palette_is_black(tmp_path: Path) -> None:
    image = Image.new("P", (2, 1))
    image.putpalette([10, 20, 30, 200, 100, 50])
    image.putpixel((1, 0), 1)
    image.save(tmp_path / "1.png", transparency=1)
    np.testing.assert_array_equal(read_pixels(tmp_path / "1.png", 3), [[[10, 20, 30], [0, 0, 0]]])


@pytest.mark.parametrize(("orientation", "turns"), [(1, 0), (3, 2), (6, -1), (8, 1)])
def test_exif_orientation_is_applied(tmp_path: Path, orientation: int, turns: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    (tmp_path / "cat").mkdir()
    Image.fromarray(COLOR).save(tmp_path / "cat" / "1.png", exif=exif)
    source = open_source(tmp_path)
    expected = np.rot90(COLOR, turns)
    assert source[0].image.shape == expected.shape
    np.testing.assert_array_equal(source[0].image, expected)
