"""Parquet files as the Hugging Face hub has them, made here by pyarrow with the metadata that `datasets` writes."""

import io
import json
import pickle
import subprocess
import sys
import tempfile

import numpy as np
import pytest
from PIL import Image

from fdt_pipeline import FDTLoader
from fdt_pipeline.cli import main
from fdt_pipeline.shards import load_shards, read_manifest, write_shards
from fdt_pipeline.sources import open_source, source_splits
from tests.loading import PIXELS, joined
from tests.numbered import image_numbers, numbered_images
from tests.peers import needs

pytestmark = pytest.mark.peer
needs("pyarrow", "parquet")
import pyarrow as pa  # noqa: E402
import pyarrow.parquet as pq  # noqa: E402

NAMES = ("cat", "dog", "eel")
NUM_SAMPLES = 24
IMAGES = numbered_images(NUM_SAMPLES)
IMAGE_TYPE = pa.struct({"bytes": pa.binary(), "path": pa.string()})


def encoded(pixels, form="PNG"):
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, form)
    return file.getvalue()


def images_column(files):
    return pa.array([data if data is None else {"bytes": data, "path": "x.png"} for data in files], IMAGE_TYPE)


PNGS = [encoded(image) for image in IMAGES]
LABELS = [row % 3 for row in range(NUM_SAMPLES)]
IMAGE, LABEL = {"_type": "Image"}, {"_type": "ClassLabel", "names": list(NAMES)}


def write(path, files=PNGS, labels=LABELS, features=(IMAGE, LABEL), columns=None, **options):
    """Columns image and label, or `columns`; with features None, without the hub's metadata. The path is returned."""
    columns = columns or {"image": images_column(files), "label": pa.array(labels)}
    table = pa.table(columns)
    if features:
        about = {"info": {"features": dict(zip(columns, features, strict=True))}}
        table = table.replace_schema_metadata({"huggingface": json.dumps(about)})
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(table, path, **{"row_group_size": 5, **options})
    return path


def test_shards_of_a_parquet_file_give_the_loader_its_pixels_and_labels(tmp_path):
    """Two workers, which read what the parent has unpacked."""
    source = open_source(write(tmp_path / "pets.parquet"))
    assert (source.kind, source.split, source.classes, source.channels) == ("parquet", None, NAMES, 3)
    manifest = write_shards(source, tmp_path / "shards", "keep", samples_per_shard=10, workers=2)
    assert manifest.samples_per_extension == {"png": NUM_SAMPLES}
    images, labels = joined(FDTLoader(tmp_path / "shards", 5, train=False, **PIXELS))
    numbers = image_numbers(images)
    assert sorted(numbers) == list(range(NUM_SAMPLES))
    np.testing.assert_array_equal(images.permute(0, 2, 3, 1), IMAGES[numbers])
    assert labels.tolist() == [LABELS[number] for number in numbers]


def test_image_files_are_kept_byte_for_byte(tmp_path):
    files = [encoded(image, "JPEG" if row % 2 else "PNG") for row, image in enumerate(IMAGES)]
    source = open_source(write(tmp_path / "pets.parquet", files))
    assert [source.read_file(row) for row in range(NUM_SAMPLES)] == files
    assert [sample.key for sample in source] == [f"pets/{row}" for row in range(NUM_SAMPLES)]
    part = pickle.loads(pickle.dumps(source.take(np.array([20, 3]))))
    assert [part.read_file(0), part.read_file(1), part.key(1), part.channels] == [files[20], files[3], "pets/3", 3]
    manifest = write_shards(source, tmp_path / "shards", "keep")
    assert manifest.samples_per_extension == {"jpg": 12, "png": 12}
    tar = (tmp_path / "shards" / manifest.shards[0].name).read_bytes()
    assert all(data in tar for data in files)


@pytest.mark.parametrize("below", [".", "data"])
def test_files_of_the_hub_are_splits_by_their_names(tmp_path, below):
    halves = {"train-00000-of-00002": slice(0, 9), "train-00001-of-00002": slice(9, 18)}
    hub = tmp_path / "hub"
    for name, rows in {**halves, "validation-00000-of-00001-a09b74b3ef9c3b56": slice(18, 24)}.items():
        write(hub / below / f"{name}.parquet", PNGS[rows], LABELS[rows])
    assert source_splits(hub) == ("train", "validation")
    train, validation = (open_source(hub, split=split) for split in ("train", "validation"))
    np.testing.assert_array_equal([sample.image for sample in [*train, *validation]], IMAGES)
    assert [*train.labels, *validation.labels] == LABELS
    assert [train.key(8), train.key(9)] == ["train-00000-of-00002/8", "train-00001-of-00002/0"]
    assert main(["shard", str(hub), str(tmp_path / "out"), "--workers", "1"]) == 0
    assert read_manifest(tmp_path / "out" / "validation").samples_per_extension == {"png": 6}


@pytest.mark.parametrize(
    ("names", "splits", "num_files"),
    [
        (["0000", "0001"], (), 2),
        (["pets-00000-of-00001"], (), 1),
        (["test", "train"], ("train", "test"), 1),
        (["train-1", "train-2", "extra-1"], ("train", "extra"), 2),
        (["._train", "train"], ("train",), 1),
    ],
)
def test_other_names_are_one_whole_or_splits_beside_known_ones(tmp_path, names, splits, num_files):
    for name in names:
        write(tmp_path / f"{name}.parquet")
    assert source_splits(tmp_path) == splits
    assert len(open_source(tmp_path, split=splits[0] if splits else None)) == num_files * NUM_SAMPLES


def test_strings_are_classes_sorted_which_mean_the_same_in_every_split(tmp_path):
    features = (IMAGE, {"_type": "Value", "dtype": "string"})
    write(tmp_path / "train.parquet", PNGS[:4], ["eel", "cat", "eel", "dog"], features)
    test = write(tmp_path / "test.parquet", PNGS[:2], ["eel", "dog"], features)
    assert open_source(tmp_path, split="train").labels.tolist() == [2, 0, 2, 1]
    source = open_source(tmp_path, split="test")
    assert (source.classes, source.labels.tolist()) == (NAMES, [2, 1])
    write(test, PNGS[:2], ["eel", "fox"], features)
    with pytest.raises(ValueError, match=r"test.parquet: row 1: label 'fox' is out of range"):
        open_source(tmp_path, split="test")


def test_numbers_without_names_are_numbered_classes_of_the_train_split(tmp_path):
    write(tmp_path / "train.parquet", features=None)
    write(tmp_path / "test.parquet", PNGS[:2], [0, 1], None)
    assert open_source(tmp_path, split="test").classes == ("0", "1", "2")


def test_gray_images_of_all_splits_make_a_gray_source_and_one_in_color_does_not(tmp_path):
    gray = [encoded(image[..., 0]) for image in IMAGES]
    write(tmp_path / "train.parquet", gray)
    write(tmp_path / "test.parquet", gray)
    source = open_source(tmp_path, split="train")
    assert source.channels == 1
    np.testing.assert_array_equal(source[7].image, IMAGES[7, ..., :1])
    write(tmp_path / "test.parquet", [*gray[1:], PNGS[0]])
    assert open_source(tmp_path, split="train").channels == 3


MEASURED = """
import sys
import pyarrow
from fdt_pipeline.sources import open_source
source = open_source(sys.argv[1])
print(pyarrow.default_memory_pool().max_memory())
source.read_file(0)
print(pyarrow.default_memory_pool().max_memory())
"""


def test_opening_takes_the_memory_of_labels_and_unpacking_that_of_a_page(tmp_path):
    """48 MB of images in one row group of pages of 2 MB, in a process where nothing was read before."""
    files = [np.random.default_rng(row).bytes(100_000) for row in range(480)]
    path = write(tmp_path / "large.parquet", files, LABELS * 20, row_group_size=480, write_batch_size=20)
    done = subprocess.run([sys.executable, "-c", MEASURED, str(path)], check=True, capture_output=True, text=True)
    opened, unpacked = map(int, done.stdout.split())
    assert 0 < opened < 100_000
    assert unpacked < 15_000_000


def test_the_unpacked_images_are_removed_with_the_source(tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "unpacked"))
    (tmp_path / "unpacked").mkdir()
    source = open_source(write(tmp_path / "pets.parquet"))
    assert not list((tmp_path / "unpacked").iterdir()), "nothing is unpacked before an image is asked for"
    assert source[1].label == 1
    [file] = (tmp_path / "unpacked").iterdir()
    file.rename(tmp_path / "elsewhere")
    with pytest.raises(OSError, match="no unpacked images here; set TMPDIR"):
        source.read_file(1)
    (tmp_path / "elsewhere").rename(file)
    del source
    assert not list((tmp_path / "unpacked").iterdir())


def test_a_full_disk_is_no_bad_image(tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "missing"))
    with pytest.raises(OSError, match=r"could not unpack images to .*missing, which TMPDIR can change"):
        open_source(write(tmp_path / "pets.parquet"))[0]


def test_bad_images_go_to_the_quarantine_named_by_file_and_row(tmp_path):
    files = [*PNGS]
    files[4], files[9], files[11] = None, b"", files[11][:-20]
    path = write(tmp_path / "pets.parquet", files)
    with pytest.raises(ValueError, match=r"pets.parquet: row 4: expected the bytes of an image, got null"):
        open_source(path)[4]
    manifest = write_shards(open_source(path), tmp_path / "shards", "keep", on_bad="quarantine")
    assert [(bad.position, bad.key) for bad in manifest.quarantine] == [(4, "pets/4"), (9, "pets/9"), (11, "pets/11")]
    for bad, reason in zip(manifest.quarantine, ["got null", "zero bytes", "truncated"], strict=True):
        assert reason in bad.reason
    images, labels, keys = load_shards(tmp_path / "shards")
    assert len(images) == len(labels) == len(keys) == NUM_SAMPLES - 3


PICTURES = images_column(PNGS)
NUMBERS = pa.array(LABELS)


def pictures_and(labels):
    return {"image": PICTURES, "label": pa.array(labels)}


@pytest.mark.parametrize(
    ("columns", "features", "message"),
    [
        (
            {"image": pa.array(["a"] * 24), "label": NUMBERS},
            None,
            "column of images .*got 0 of image: string",
        ),
        ({"image": pa.array([[1, 2]] * 24), "label": NUMBERS}, None, r"got 0 of image: list<.*>, label: int64"),
        ({"image": PICTURES, "label": NUMBERS}, ({"_type": "Audio"}, LABEL), "expected one column of images"),
        (
            {"a": PICTURES, "b": PICTURES, "label": NUMBERS},
            None,
            "images .* or one named image, got 2 of a: ",
        ),
        ({"image": PICTURES}, None, "expected one column of labels .*got 0 of image: struct"),
        (pictures_and([0.5] * 24), None, "one column of labels .*got 0 .*label: double"),
        ({"img": PICTURES, "fine_label": NUMBERS, "coarse_label": NUMBERS}, (IMAGE, LABEL, LABEL), "labels .*got 2 of"),
        (
            {"image": PICTURES, "label": pa.array([*LABELS[:7], None, *LABELS[8:]])},
            None,
            "row 7: expected a label .*null",
        ),
        (
            {"image": PICTURES, "label": pa.array([*LABELS[:7], 3, *LABELS[8:]])},
            (IMAGE, LABEL),
            r"row 7: label 3 .* 0..2",
        ),
        (
            {"image": PICTURES, "label": pa.array([-1] * 24)},
            (IMAGE, LABEL),
            "row 0: label -1 .*choose another with --split",
        ),
        ({"image": PICTURES, "label": pa.array([0] * 24)}, (IMAGE, LABEL), r"2 of 3 classes have no sample: 1 \(dog\)"),
        ({"image": PICTURES[:0], "label": NUMBERS[:0]}, None, "expected rows, got none"),
    ],
)
def test_columns_that_are_no_images_and_labels_are_refused(tmp_path, columns, features, message):
    path = write(tmp_path / "x.parquet", columns=columns, features=features)
    with pytest.raises(ValueError, match=f"x.parquet: .*{message}"):
        open_source(path)


def test_of_several_columns_those_by_the_usual_names_or_the_hubs_metadata_are_taken(tmp_path):
    columns = {"mask": PICTURES, "image": PICTURES, "id": NUMBERS, "breed": NUMBERS}
    plain = {"_type": "Value", "dtype": "int64"}
    source = open_source(write(tmp_path / "x.parquet", columns=columns, features=(IMAGE, IMAGE, plain, LABEL)))
    assert source.classes == NAMES
    columns = {"image": PICTURES, "id": pa.array([*range(1, 25)]), "label": NUMBERS}
    assert open_source(write(tmp_path / "y.parquet", columns=columns, features=None)).labels.tolist() == LABELS


@pytest.mark.parametrize("kept", [0, 3, 0.5, -1])
def test_a_cut_file_is_refused(tmp_path, kept):
    path = write(tmp_path / "x.parquet")
    data = path.read_bytes()
    path.write_bytes(data[: int(kept * len(data)) if 0 < kept < 1 else kept])
    with pytest.raises(ValueError, match=r"x.parquet: expected a whole Parquet file .*; fetch it again"):
        open_source(path)


def test_damage_among_the_images_ends_the_run_and_names_the_file(tmp_path):
    path = write(tmp_path / "x.parquet", compression="gzip")
    data = bytearray(path.read_bytes())
    middle = pq.ParquetFile(path).metadata.row_group(2).column(0)
    start = middle.dictionary_page_offset or middle.data_page_offset
    data[start : start + middle.total_compressed_size] = bytes(middle.total_compressed_size)
    path.write_bytes(data)
    with pytest.raises(ValueError, match=r"x.parquet: expected a whole Parquet file"):
        write_shards(open_source(path), tmp_path / "shards", on_bad="quarantine")
    assert not (tmp_path / "shards" / "manifest.json").exists()


def test_files_of_a_split_that_are_missing_or_disagree_are_named(tmp_path):
    write(tmp_path / "train-00000-of-00002.parquet")
    with pytest.raises(ValueError, match=r"/train-\*.parquet: expected 2 files by their names, got 1; fetch all"):
        open_source(tmp_path)
    other = {"_type": "ClassLabel", "names": ["a", "b", "c"]}
    write(tmp_path / "train-00001-of-00002.parquet", features=(IMAGE, other))
    with pytest.raises(ValueError, match=r"00001-of-00002.parquet: expected labels and class names as in .*00000-of"):
        open_source(tmp_path, split="train")


@pytest.mark.parametrize("below", ["", "/train-00000-of-00001.parquet"])
def test_remote_files_are_to_be_downloaded_first(below):
    store = pytest.importorskip("fsspec").filesystem("memory")
    store.pipe({"/pets/train-00000-of-00001.parquet": b"PAR1"})
    with pytest.raises(ValueError, match=r"memory://pets.*: Parquet is read from this machine alone: download"):
        open_source(f"memory://pets{below}")
    store.rm("/pets", recursive=True)


def test_a_file_that_has_changed_is_sharded_again(tmp_path):
    path = write(tmp_path / "x.parquet")
    before = list(open_source(path).states(range(3)))
    assert list(open_source(path).states(range(3))) == before
    write(path, PNGS[::-1], compression="none")
    assert list(open_source(path).states(range(3))) != before


def test_without_pyarrow_the_error_names_the_extra(tmp_path, monkeypatch):
    path = write(tmp_path / "x.parquet")
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(ImportError, match=r"x.parquet: needs pyarrow: pip install 'fdt-pipeline\[parquet\]'"):
        open_source(path)
