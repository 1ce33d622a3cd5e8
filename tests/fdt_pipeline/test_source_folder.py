"""Folders of image files, of any mode and size."""

import re

import numpy as np
import pytest

from fdt_pipeline.shards import write_shards
from fdt_pipeline.sources import open_source, source_splits
from tests.folders import COLOR, RAMP, save_image


def two_classes(root, pixels=COLOR):
    save_image(root / "cat" / "1.png", pixels)
    save_image(root / "dog" / "1.png", pixels)
    return root


def test_classes_and_samples_are_sorted_and_keys_are_paths(tmp_path):
    hidden = ("dog/.hidden.png", ".cache/x.png", "cat/.x/y.png")
    for name in ("dog/2.png", "dog/1.png", "cat/b/9.png", *hidden):
        save_image(tmp_path / name)
    save_image(tmp_path / "cat" / "a.png", COLOR[:2])
    source = open_source(tmp_path)
    assert (source.kind, source.split, source.classes, source.channels) == ("folder", None, ("cat", "dog"), 3)
    assert [sample.key for sample in source] == ["cat/a.png", "cat/b/9.png", "dog/1.png", "dog/2.png"]
    assert [sample.label for sample in source] == source.labels.tolist() == [0, 0, 1, 1]
    assert source.shape is None, "images differ in size"
    np.testing.assert_array_equal(source[0].image, COLOR[:2])
    np.testing.assert_array_equal(source[1].image, COLOR)


@pytest.mark.parametrize(
    ("folders", "splits"),
    [
        (("train", "test"), ("train", "test")),
        (("train", "valid"), ("train", "test")),
        (("Training", "Testing"), ("train", "test")),
        (("seg_train", "seg_test"), ("train", "test")),
        (("Train_png", "Test_png", "val2017"), ("train", "test", "val")),
        (("TrainImages", "eval set"), ("train", "test")),
        (("training", "validation", "test-png"), ("train", "val", "test")),
        (("train", "test", "val"), ("train", "test", "val")),
        (("train",), ("train",)),
        (("Train", "VAL", "Test"), ("train", "val", "test")),
    ],
)
def test_split_folders_are_splits(tmp_path, folders, splits):
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
        (["train/cat/1", "test/cat/1", "test/bird/1"], "test", "only the classes of the train split, got bird as well"),
        (["train/cat/1", "test/dog/1", "test/bird/1"], "test", "only the classes of the train split, got bird, dog as"),
        (["test/cat/1", "train/"], "train", "train: expected a subfolder of images for each class, got none"),
        (["train/1", "test/1", "sample/1"], "train", "train: expected a subfolder .* name it with --labels FILE"),
        (
            ["images/1", "labels.csv"],
            None,
            "only class would be images; if labels.csv beside it has the labels, name it",
        ),
        (["cat/1", "bird/"], None, "no image in the class folder bird; add images or remove it"),
        (["cat/1", "dog/1", "loose"], None, "1 images lie beside the class folders: loose.png"),
    ],
)
def test_a_folder_that_is_no_set_is_refused(tmp_path, files, split, message):
    for name in files:
        if name.endswith("/"):
            (tmp_path / name).mkdir(parents=True)
        else:
            save_image(tmp_path / (name if "." in name else f"{name}.png"))
    with pytest.raises(ValueError, match=message):
        open_source(tmp_path, "folder", split=split)


@pytest.mark.parametrize(
    ("files", "message"),
    [
        (
            ["photo/cat/1", "photo/dog/1", "sketch/cat/1", "sketch/dog/1"],
            "photo, sketch would be classes, but .* further down: cat, dog in {0}/photo, {0}/sketch; give",
        ),
        (
            ["images/Images/a/1", "images/Images/b/1", "images/Images/b/sub/1"],
            "only class would be images, but .* further down: a, b in {0}/images/Images; give {0}/images/Images as",
        ),
        (
            ["seg_train/seg_train/a/1", "seg_train/seg_train/b/1", "seg_test/seg_test/a/1"],
            "the only class would be seg_train, but .*: a, b in {0}/seg_train/seg_train; give {0}/seg_train/seg",
        ),
    ],
)
def test_a_level_too_high_is_refused_with_the_level_of_the_classes(tmp_path, files, message):
    for name in files:
        save_image(tmp_path / f"{name}.png")
    split = "train" if "seg" in files[0] else None
    with pytest.raises(ValueError, match=message.format(tmp_path)):
        open_source(tmp_path, split=split)


@pytest.mark.parametrize(
    "files",
    [["n1/images/1", "n2/images/1"], ["a/x/1", "a/y/1", "b/x/1"], ["a/1", "a/x/1", "a/y/1", "b/1", "b/x/1", "b/y/1"]],
)
def test_folders_below_classes_that_differ_or_lie_beside_images_are_no_classes(tmp_path, files):
    for name in files:
        save_image(tmp_path / f"{name}.png")
    assert len(open_source(tmp_path).classes) == 2


@pytest.mark.parametrize(
    ("stranger", "reason"),
    [
        ("runs/plot", "runs (no split by its name)"),
        ("train_val/cat/1", "train_val (no split by its name)"),
        ("val/1", "val (its images have no labels: neither class folders nor one label file)"),
        ("val/unknown/1", "val (its images have no labels: neither class folders nor one label file)"),
    ],
)
def test_a_stranger_beside_splits_is_named_and_left_out(tmp_path, stranger, reason):
    for name in ("train/cat", "train/dog", "test/cat"):
        save_image(tmp_path / name / "1.png", RAMP)
    save_image(tmp_path / f"{stranger}.png")
    assert source_splits(tmp_path) == ("train", "test")
    with pytest.warns(UserWarning, match=re.escape(f"{tmp_path}: left out {reason}")):
        source = open_source(tmp_path, split="train")
    assert (source.classes, source.channels) == (("cat", "dog"), 1), "the stranger's colors do not count"
    assert open_source(tmp_path, split="test").labels.tolist() == [0]


@pytest.mark.parametrize("where", ["shards", "sets/train", "cat/shards"])
def test_shards_below_a_source_are_named_and_left_out(tmp_path, where):
    """As `shard photos photos/shards` would find them when it is given again."""
    two_classes(tmp_path / "photos")
    write_shards(open_source(tmp_path / "photos"), tmp_path / "photos" / where)
    if where == "sets/train":
        (tmp_path / "photos" / "sets" / "_info.json").touch()
    labels = tmp_path / "labels.csv"
    labels.write_text("cat/1.png,a\ndog/1.png,b\n")
    shown = where.removesuffix("/train")
    for options in ({}, {"kind": "folder"}, {"labels": labels}):
        with pytest.warns(UserWarning, match=f"{tmp_path}/photos: left out {shown} .shards."):
            source = open_source(tmp_path / "photos", **options)
        assert [sample.key for sample in source] == ["cat/1.png", "dog/1.png"]
        assert len(source.classes) == 2


@pytest.mark.filterwarnings("ignore:.*left out .*shards:UserWarning", "ignore:.* files that are no images:UserWarning")
def test_a_folder_with_images_beside_its_shards_is_not_left_out(tmp_path):
    two_classes(tmp_path)
    write_shards(open_source(tmp_path), tmp_path / "dog" / "more" / "shards")
    save_image(tmp_path / "dog" / "more" / "2.png")
    assert [sample.key for sample in open_source(tmp_path)] == ["cat/1.png", "dog/1.png", "dog/more/2.png"]


@pytest.mark.parametrize(
    ("files", "advice"),
    [
        (["images/1", "images/2"], "give the folder that holds one subfolder for each class, or name .* with --labels"),
        (["images/a/1", "images/a/2"], "give the folder that holds one subfolder for each class"),
        (["images/0", "images/a/1", "images/b/1"], "if a, b in {0}/images are classes, give {0}/images as SOURCE"),
        (["images/0", "images/in/1", "images/in/a/1", "images/in/b/1"], "if a, b in {0}/images/in are classes"),
        (["train/images/1", "test/images/2"], "give the folder that holds one subfolder for each class"),
    ],
)
def test_a_single_class_is_taken_with_a_warning_that_names_the_level_of_several(tmp_path, files, advice):
    for name in files:
        save_image(tmp_path / f"{name}.png")
    is_split = "train" in files[0]
    where = tmp_path / "train" if is_split else tmp_path
    message = f"{where}: the only class is images, and one class cannot be mixed: {advice.format(tmp_path)}"
    with pytest.warns(UserWarning, match=message):
        assert open_source(tmp_path, split="train" if is_split else None).classes == ("images",)


def test_folders_that_are_all_numbers_are_ordered_as_numbers(tmp_path):
    for number in range(12):
        save_image(tmp_path / str(number) / "1.png")
    with pytest.warns(UserWarning, match=r"are ordered as such: 0, 1, 2, \.\.\., not as text, as torchvision's Image"):
        source = open_source(tmp_path)
    assert source.classes == tuple(map(str, range(12)))
    assert all(sample.key == f"{sample.label}/1.png" for sample in source)
    save_image(tmp_path / "x" / "1.png")
    assert open_source(tmp_path).classes[:4] == ("0", "1", "10", "11")


def test_a_class_named_train_is_a_class_and_labels_mean_the_same_in_every_split(tmp_path):
    for name in ("no-splits/train", "no-splits/car", "splits/train/cat", "splits/train/dog", "splits/test/dog"):
        save_image(tmp_path / name / "1.png")
    assert open_source(tmp_path / "no-splits").classes == ("car", "train")
    source = open_source(tmp_path / "splits", split="test")
    assert (source.classes, source.labels.tolist()) == (("cat", "dog"), [1])


@pytest.mark.parametrize("color", [None, "train/cat/2.png", "test/cat/1.png"])
def test_one_color_image_in_any_split_makes_all_rgb(tmp_path, color):
    two_classes(tmp_path / "train", RAMP)
    if color:
        save_image(tmp_path / color)
    image = open_source(tmp_path, split="train")[0].image
    np.testing.assert_array_equal(image, np.stack([RAMP] * (3 if color else 1), axis=-1))
    for path in tmp_path.glob("*/*/*"):
        path.write_bytes(b"text")
    assert open_source(tmp_path, split="train").channels == 3, "where none can be read"


def test_other_files_are_counted_and_named_in_a_warning(tmp_path):
    two_classes(tmp_path)
    for name in ("classes.txt", "cat/notes.txt", "cat/boxes.xml", "dog/a.json", "dog/3.unknown"):
        (tmp_path / name).write_text("no image")
    with pytest.warns(
        UserWarning, match=r"ignored 4 files that are no images: cat/boxes.xml, cat/notes.txt, classes.txt, \.\.\."
    ):
        source = open_source(tmp_path)
    assert len(source) == 3, "an unknown extension is not dropped"
    message = r"dog/3.unknown: not an image: it begins with b'no image'; replace or remove it"
    with pytest.raises(ValueError, match=message):
        source[2]


def test_linked_folders_are_walked_and_loops_are_refused(tmp_path):
    two_classes(tmp_path / "real")
    (tmp_path / "set").mkdir()
    for name in ("cat", "dog"):
        (tmp_path / "set" / name).symlink_to(tmp_path / "real" / name)
    assert open_source(tmp_path / "set")[0].key == "cat/1.png"
    (tmp_path / "real" / "cat" / "loop").symlink_to(tmp_path / "real" / "cat")
    with pytest.raises(ValueError, match="loop: the link leads back to a folder above it"):
        open_source(tmp_path / "set", "folder")
