"""Data sets of other libraries as sources: torchvision's, and stand-ins for others and for `datasets.Dataset`."""

from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image
from torch.utils.data import Subset

from fdt_pipeline.shards import load_shards, write_shards
from fdt_pipeline.sources import DatasetSource, open_source
from tests.folders import COLOR, save_image
from tests.numbered import numbered_images

IMAGES = numbered_images(12)
LABELS = [row % 3 for row in range(12)]
NAMES = ("cat", "dog", "eel")


class Pairs:
    """What torch calls a map-style data set."""

    def __init__(self, images=IMAGES, labels=LABELS, **attributes):
        self.images, self.rows = images, labels
        self.asked = []
        vars(self).update(attributes)

    def __len__(self):
        return len(self.rows)

    def __getitem__(self, index):
        self.asked.append(index)
        return Image.fromarray(self.images[index]), self.rows[index]


class Rows(Pairs):
    """What `datasets.Dataset` is: rows by number, columns by name, and features."""

    features = {"image": object(), "label": SimpleNamespace(names=list(NAMES))}  # noqa: RUF012

    def __getitem__(self, index):
        if index == "label":
            return list(self.rows)
        image, label = super().__getitem__(index)
        return {"image": image, "label": label, "caption": "a pet"}


@pytest.mark.parametrize(
    ("dataset", "classes"),
    [
        (Pairs(targets=np.array(LABELS), classes=list(NAMES)), NAMES),
        (Pairs(targets=LABELS, classes=[("cat", "puss"), ("dog",), ("eel",)]), ("cat, puss", "dog", "eel")),
        (Pairs(labels=np.array(LABELS)), ("0", "1", "2")),
        (Rows(), NAMES),
    ],
)
def test_shards_of_a_data_set_hold_its_pixels_labels_and_class_names(tmp_path, dataset, classes):
    source = DatasetSource(dataset)
    assert (source.kind, source.classes, source.channels, len(source)) == ("dataset", classes, 3, 12)
    assert write_shards(source, tmp_path, workers=2, samples_per_shard=6).classes == classes
    images, labels, keys = load_shards(tmp_path)
    rows = [int(key) for key in keys]
    assert sorted(rows) == list(range(12))
    np.testing.assert_array_equal(images, IMAGES[rows])
    assert labels.tolist() == [LABELS[row] for row in rows]


def test_torchvisions_image_folder_and_a_subset_of_it_are_what_the_folder_is(tmp_path):
    torchvision = pytest.importorskip("torchvision")
    for row in range(4):
        save_image(tmp_path / NAMES[row // 2] / f"{row}.png", COLOR + np.uint8(row))
    expected = open_source(tmp_path)
    whole = torchvision.datasets.ImageFolder(tmp_path)
    part = Subset(whole, [3, 0])
    for dataset, rows, classes in ((whole, range(4), ("cat", "dog")), (part, [3, 0], ("0", "1"))):
        source = DatasetSource(dataset)
        assert source.classes == classes
        for sample, row in zip(source, rows, strict=True):
            np.testing.assert_array_equal(sample.image, expected[row].image)
            assert sample.label == expected[row].label


@pytest.mark.parametrize("options", [{"labels": LABELS}, {}])
def test_images_are_not_asked_for_to_know_labels_that_are_at_hand(options):
    dataset = Pairs() if options else Pairs(targets=LABELS)
    DatasetSource(dataset, classes=NAMES, **options)
    assert dataset.asked == [0]


def test_gray_images_stay_gray_or_become_rgb_and_color_among_gray_is_refused():
    mixed = [*IMAGES[:6, ..., 0], *IMAGES[6:]]
    source = DatasetSource(Pairs(mixed, targets=LABELS))
    assert source[1].image.shape == (6, 5, 1)
    with pytest.raises(ValueError, match="sample 7: expected a gray image as sample 0 is, got RGB; set channels=3"):
        source[7]
    assert DatasetSource(Pairs(mixed, targets=LABELS), channels=3)[1].image.shape == (6, 5, 3)


@pytest.mark.parametrize(
    ("dataset", "options", "message"),
    [
        (iter([]), {}, r"data set list_iterator: expected len\(\) and \[i\]"),
        (Pairs(labels=[]), {}, "data set Pairs: expected labels, got none"),
        (Pairs(labels=["cat"] * 12), {}, "sample 0: expected .*'str' object cannot be interpreted as an integer"),
        (Pairs(targets=np.zeros((12, 2), int)), {}, r"labels must be integers of shape \[n\], got int64 \[12, 2\]"),
        (Pairs(targets=LABELS[:6]), {}, "expected one label a sample, got 6 for 12 samples"),
        (Pairs(targets=LABELS), {"classes": ["cat", "dog"]}, "label 2 at index 2 is out of range: expected 0..1"),
        (Pairs(targets=LABELS), {"classes": "abcd"}, r"1 of 4 classes have no sample: 3 \(d\)"),
        (Pairs(targets=LABELS), {"channels": 4}, "channels must be 1 or 3, got 4"),
    ],
)
def test_a_data_set_that_cannot_be_sharded_is_refused(dataset, options, message):
    with pytest.raises(ValueError, match=message):
        DatasetSource(dataset, **options)


def test_an_image_that_is_a_tensor_is_refused_with_what_to_change():
    dataset = [(np.zeros((3, 4, 4), np.float32), 0)]
    with pytest.raises(ValueError, match="data set list: sample 0: expected a PIL image, got ndarray; take off"):
        DatasetSource(dataset)


class Broken(Pairs):
    def __getitem__(self, index):
        if index == 4:
            raise OSError("image file is truncated")  # Pillow's, without an errno
        return super().__getitem__(index)


def test_a_broken_image_goes_to_the_quarantine_and_so_does_a_label_that_is_not_the_one_at_hand(tmp_path):
    source = DatasetSource(Broken(labels=[*LABELS[:9], 1, *LABELS[10:]], targets=LABELS))
    quarantine = write_shards(source, tmp_path, on_bad="quarantine").quarantine
    assert [bad.position for bad in quarantine] == [4, 9]
    assert "image file is truncated" in quarantine[0].reason
    assert "sample 9: expected label 0 as in the labels of the whole, got 1" in quarantine[1].reason


def test_a_disk_that_fails_is_no_bad_image():
    class Failing(Pairs):
        def __getitem__(self, index):
            raise OSError(5, "Input/output error")

    with pytest.raises(OSError, match="Input/output error"):
        DatasetSource(Failing(targets=LABELS))
