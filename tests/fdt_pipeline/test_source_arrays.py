"""Arrays in memory and in .npz files."""

import numpy as np
import pytest

from fdt_pipeline.sources import ArraySource, open_source, source_splits

IMAGES = np.arange(6 * 4 * 5 * 3, dtype=np.uint8).reshape(6, 4, 5, 3)
LABELS = np.array([0, 1, 2, 0, 1, 2])


def test_samples_are_those_of_the_arrays():
    source = ArraySource(IMAGES, LABELS, ["a", "b", "c"])
    assert (len(source), source.shape, source.classes, source.split) == (6, (4, 5, 3), ("a", "b", "c"), None)
    assert [(label, key) for _, label, key in source] == [(int(label), str(i)) for i, label in enumerate(LABELS)]
    np.testing.assert_array_equal(np.stack([image for image, _, _ in source]), IMAGES)


def test_gray_images_get_a_channel_axis_and_strided_ones_become_contiguous():
    source = ArraySource(IMAGES[..., 0].transpose(0, 2, 1), LABELS.tolist())
    assert (source.shape, source.classes) == ((5, 4, 1), ("0", "1", "2"))
    image = source[2].image
    assert image.flags.c_contiguous
    np.testing.assert_array_equal(image[..., 0], IMAGES[2, :, :, 0].T)


@pytest.mark.parametrize(
    ("images", "labels", "classes", "message"),
    [
        (IMAGES.astype(np.float32), LABELS, None, "images must be a uint8 array with pixels 0..255, got float32"),
        (IMAGES.tolist(), LABELS, None, "images must be a uint8 array.*got list"),
        (IMAGES[..., :2], LABELS, None, r"images must have shape .*, got \[6, 4, 5, 2\]"),
        (IMAGES[0, 0], LABELS, None, r"images must have shape .*, got \[5, 3\]"),
        (IMAGES[:0], LABELS[:0], None, r"images must have shape .*, got \[0, 4, 5, 3\]"),
        (IMAGES, LABELS.astype(float), None, r"labels must be integers of shape \[n\], got float64"),
        (IMAGES, LABELS.reshape(3, 2), None, r"labels must be integers of shape \[n\], got int64 \[3, 2\]"),
        (IMAGES, LABELS[:5], None, "expected one label an image, got 6 images and 5 labels"),
        (IMAGES, LABELS, ["a", "b"], r"label 2 at index 2 is out of range: expected 0..1"),
        (IMAGES, LABELS - 1, None, r"label -1 at index 0 is out of range"),
        (IMAGES, LABELS, ["a", "b", "c", "d"], r"1 of 4 classes have no sample: 3 \(d\)"),
        (IMAGES, LABELS, ["a", "b", "a"], "class names must differ, got 'a' 2 times"),
        (IMAGES, LABELS, ["a", "b", ""], "class names must be strings that are not empty, got '' for class 2"),
        (IMAGES, LABELS * 10**9, None, r"label 2000000000 at index 2 .* 0..65535 where no class names are given"),
        (IMAGES, LABELS.astype(np.uint64) + np.uint64(2**63), None, "label 9223372036854775810 at index 2 is out of"),
    ],
)
def test_wrong_arrays_are_refused(images, labels, classes, message):
    with pytest.raises(ValueError, match=message):
        ArraySource(images, labels, classes)


def test_labels_of_any_integer_type_are_taken_unnamed_classes_may_be_many_and_a_test_split_may_lack_one():
    for dtype in ("u1", "i1", ">i4", "u8"):
        source = ArraySource(IMAGES, LABELS.astype(dtype))
        assert (source.labels.dtype, source.labels.tolist()) == (np.int64, LABELS.tolist()), dtype
    n = 65_600
    assert len(ArraySource(np.zeros((n, 1, 1), np.uint8), np.arange(n)).classes) == n
    assert len(ArraySource(IMAGES, LABELS, ["a", "b", "c", "d"], split="test")) == 6


def test_labels_of_shape_n_1_are_taken_from_memory_and_from_either_split_of_npz(tmp_path):
    assert ArraySource(IMAGES, LABELS[:, None]).labels.tolist() == LABELS.tolist()
    for split in ("train", "test"):
        np.savez(tmp_path / f"{split}.npz", images=IMAGES, labels=LABELS[:, None])
    source = open_source(tmp_path, split="test")
    assert (source.labels.tolist(), source.classes) == (LABELS.tolist(), ("0", "1", "2"))


def fifty_thousand(labels_of_one_severity):
    return np.broadcast_to(IMAGES[0], (50_000, 4, 5, 3)), np.tile(labels_of_one_severity, 5)


def test_five_severities_behind_each_other_are_said_and_nothing_is_guessed(tmp_path):
    """CIFAR-10-C has such arrays, and one file of labels for all."""
    images, labels = fifty_thousand(np.random.default_rng(0).integers(0, 10, 10_000))
    message = r"five times the same 10,000, as CIFAR-10-C .* all 50,000 are taken: pass images\[20_000:30_000\]"
    with pytest.warns(UserWarning, match=message):
        assert len(ArraySource(images, labels)) == 50_000
    assert len(ArraySource(images, np.sort(labels))) == 50_000, "which is an ordinary set, without a warning"
    assert len(ArraySource(*fifty_thousand(np.arange(10_000) % 10))) == 50_000
    np.save(tmp_path / "fog.npy", images[:, :1, :1])
    np.save(tmp_path / "labels.npy", labels)
    (tmp_path / "broken.npy").write_bytes(b"text")
    found = r"fog.npy \(uint8 \[50000, 1, 1, 3\]\), labels.npy \(int64 \[50000\]\): .npy files do not say which rows"
    for kind in (None, "npz"):
        with pytest.raises(ValueError, match=rf"{found} are a set, and 50,000 rows may be five severities of 10,000"):
            open_source(tmp_path, kind)
    with pytest.raises(ValueError, match=r"labels.npy \(int64 \[50000\]\): .*numpy.savez"):
        open_source(tmp_path / "labels.npy")


def test_one_file_has_no_splits(tmp_path):
    np.savez(tmp_path / "set.npz", images=IMAGES, labels=LABELS, classes=np.array(["a", "b", "c"]))
    assert source_splits(tmp_path / "set.npz") == ()
    source = open_source(tmp_path / "set.npz")
    assert (source.kind, source.split, source.classes) == ("npz", None, ("a", "b", "c"))
    np.testing.assert_array_equal(source[5].image, IMAGES[5])
    with pytest.raises(ValueError, match="npz has no splits"):
        open_source(tmp_path / "set.npz", split="train")


@pytest.mark.parametrize("names", [{}, {"classes": ["a", "b", "c"]}])
def test_a_folder_of_two_files_has_two_splits_and_the_classes_of_the_train_file(tmp_path, names):
    np.savez_compressed(tmp_path / "train.npz", images=IMAGES, labels=LABELS, **names)
    np.savez_compressed(tmp_path / "test.npz", images=IMAGES[:2], labels=LABELS[:2])
    assert source_splits(tmp_path) == ("train", "test")
    assert open_source(tmp_path, split="test").classes == tuple(names.get("classes", ["0", "1", "2"]))


@pytest.mark.parametrize(
    ("train", "test", "message"),
    [
        ({"classes": ["a", "b", "c"]}, {"classes": ["b", "a", "c"]}, "test.npz: classes must be those of train.npz"),
        ({"labels": LABELS * 10**9}, {}, "train.npz: label 2000000000 at index 2 is out of range: expected 0..65535"),
    ],
)
def test_what_the_train_file_says_of_the_classes_must_be_right_and_the_same(tmp_path, train, test, message):
    for name, arrays in (("train", train), ("test", test)):
        np.savez(tmp_path / f"{name}.npz", **{"images": IMAGES, "labels": LABELS, **arrays})
    with pytest.raises(ValueError, match=message):
        open_source(tmp_path, split="test")


@pytest.mark.parametrize("classes", [np.array([b"a", "\u00e9".encode(), b"c"]), np.array(["a", "\u00e9", "c"])])
def test_class_names_are_strings_or_utf_8(tmp_path, classes):
    np.savez(tmp_path / "set.npz", images=IMAGES, labels=LABELS, classes=classes)
    assert open_source(tmp_path / "set.npz").classes == ("a", "\u00e9", "c")


SET = {"images": IMAGES, "labels": LABELS}


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"x": IMAGES, "y": LABELS}, "expected arrays named images and labels, got x, y"),
        ({**SET, "images": np.array([object()], dtype=object)}, "not a readable .npz file of plain arrays"),
        ({**SET, "classes": np.array("a")}, r"classes must be strings of shape \[num_classes\], got <U1 \[\]"),
        ({**SET, "classes": np.array([["a", "b", "c"]])}, r"classes must be strings of .*, got <U1 \[1, 3\]"),
        ({**SET, "classes": np.array([0.5, 1.0, 2.0])}, r"classes must be strings of .*, got float64 \[3\]"),
        ({**SET, "classes": np.array([b"a", b"\xff", b"c"])}, "classes must be UTF-8 .*: .*0xff"),
    ],
)
def test_an_archive_of_other_arrays_is_named(tmp_path, arrays, message):
    np.savez(tmp_path / "set.npz", **arrays)
    with pytest.raises(ValueError, match=f"set.npz: {message}"):
        open_source(tmp_path / "set.npz")


def test_a_file_that_is_no_archive_is_named(tmp_path):
    path = tmp_path / "set.npz"
    np.savez(path, images=IMAGES, labels=LABELS)
    path.write_bytes(path.read_bytes()[:300])
    with pytest.raises(ValueError, match=r"set.npz: not a readable .npz file"):
        open_source(path)
    with path.open("wb") as file:
        np.save(file, IMAGES)
    with pytest.raises(ValueError, match=r"set.npz: not a readable .npz file .*write it with numpy.savez"):
        open_source(path)
