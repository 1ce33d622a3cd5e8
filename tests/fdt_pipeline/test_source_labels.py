"""Labels of images in a file: tables of every kind, and what is said where rows and images do not fit."""

import fsspec
import pytest

from fdt_pipeline.cli import main
from fdt_pipeline.shards import read_manifest
from fdt_pipeline.sources import open_source, source_splits
from tests.folders import save_image


@pytest.fixture
def images(tmp_path):
    for name in ("a.png", "b.jpg", "sub/c.png"):
        save_image(tmp_path / "images" / name)
    return tmp_path / "images"


def labelled(images, table, name="labels.csv", columns="", below="."):
    """The label of each image by its key, from a file beside the folder of images, or below it."""
    path = images.parent / below / name
    path.write_bytes(table.encode())
    source = open_source(images, labels=f"{path}{columns}")
    assert (source.kind, source.split, source.channels) == ("folder", None, 3)
    return {sample.key: source.classes[sample.label] for sample in source}


@pytest.mark.parametrize(
    ("name", "columns", "table"),
    [
        ("l.csv", "", "file,label\na.png,dog\nb.jpg,cat\nsub/c.png,dog\n"),
        ("l.csv", "", '\ufeffFile Name,Class,id\r\na.png,dog,1\r\nb.jpg, "cat",2\r\nsub/c.png ,dog,3\r\n\r\n'),
        ("l.csv", "", "image_id;category\na;dog\nb;cat\nc;dog\n"),
        ("l.tsv", "", "label\tpath\ndog\timages/a.png\ncat\timages/b.jpg\ndog\timages/sub/c.png\n"),
        ("l.txt", "", "a.png\tdog\t0\t9\nb.jpg\tcat\t1\t8\nc.png\tdog\t0\t7\n"),
        ("l 12:30:59", "", "\ufeffa.png  dog\nb.jpg cat\n\n sub/c.png dog\n"),
        ("l.csv", "", "1,images/a.png,dog\n2,images/b.jpg,cat\n3,images/sub/c.png,dog\n"),
        ("l.csv", ":id:breed", "id,breed,label\na,dog,1\nb,cat,2\nc,dog,3\n"),
        ("l.csv", "", "ImageId,PredictionString\na,dog 1 2 30 40 dog 5 2 31 40 \nb,cat 1 2 3 4\nc,dog 1 2 3 4\n"),
        ("l.csv", ":3:1", "dog,x,a.png\ncat,y,b.jpg\ndog,z,sub/c.png\n"),
        (
            "l.jsonl",
            "",
            '\n{"file_name": "a.png", "label": "dog", "box": [1]}\n\n{"label": "cat", "file_name": "b.jpg"}\n'
            '{"file_name": "sub/c.png", "label": "dog"}',
        ),
    ],
)
def test_a_table_of_any_kind_gives_each_image_its_label(images, name, columns, table):
    expected = {"a.png": "dog", "b.jpg": "cat", "sub/c.png": "dog"}
    assert labelled(images, table, name, columns) == expected
    assert labelled(images, table.replace("images/", ""), name, columns, below="images") == expected


def test_labels_are_text_and_numbers_are_ordered_as_numbers(images):
    path = images.parent / "labels.jsonl"
    path.write_text('{"path": "a.png", "label": 10}\n{"path": "b.jpg", "label": 2}\n{"path": "c.png", "label": "10"}\n')
    source = open_source(images, labels=path)
    assert (source.classes, source.labels.tolist()) == (("2", "10"), [1, 0, 1])
    path.write_text(path.read_text().replace("2}", '"x"}'))
    assert open_source(images, labels=path).classes == ("10", "x")
    assert source_splits(images, labels=path) == ()


NAME_THEM = "name two of them, --labels FILE:NAME_COLUMN:LABEL_COLUMN, by their headers, or by their numbers"
TWO = "a.png,dog\nb.jpg,cat\n"


@pytest.mark.parametrize(
    ("table", "columns", "message"),
    [
        (TWO, "", "1 images without a row: sub/c.png; expected one row with a label for each image in .*images"),
        (TWO + "c.png,dog\nd.png,dog\n", "", "1 rows without an image: d.png; expected one row"),
        (TWO + "c.png,dog\na.png,dog\n", "", "1 images with two rows: a.png; expected one row"),
        ("ImageId,PredictionString\na,dog 1 2 3 4 cat 1 2 3 4\n", "", r"expected boxes of one class, .* got "),
        ("ImageId,PredictionString\na,dog 0.9 1 2 3 4\n", "", "expected boxes of one class, CLASS X Y X Y CLASS "),
        ("ImageId,PredictionString\na,\n", "", "1 rows without a label: a; "),
        (TWO + "c.png,\n", "", "1 rows without a label: c.png"),
        (
            "file,label\n" + "".join(f"{number}.png,x\n" for number in range(5)),
            "",
            r"5 rows without an image: 0.png, 1.png, 2.png, \.\.\.; 3 images without a row: a.png, b.jpg, sub/c.png; ",
        ),
        (TWO + "c.png\n", "", r"expected 2 fields as in the first row, got \['c.png'\] in row 3"),
        ("", "", "expected rows of a file name and a label, got none"),
        ("a.png\nb.jpg\n", "", r"expected rows of a file name and a label, got \['a.png'\]"),
        ('"a.png,dog\n', "", r"not readable as a table \("),
        ('{"file": "a.png"\n', "", "line 1 is no JSON: "),
        ('{"file": "a.png", "label": 1}\n[2]\n', "", r"line 2: expected a JSON object, got \[2\]"),
        (
            '{"file": "a.png", "label": 1.5}\n{"file": "b.jpg", "label": true}',
            "",
            "2 rows without a label: a.png, b.jpg; ",
        ),
        (
            "file,label,class\na.png,1,dog\n",
            "",
            rf"cannot tell which .*; its columns are 1 \(file\), 2 \(label\), 3 \(class\): {NAME_THEM}",
        ),
        ("file,breed\na.png,dog\n", "", rf"cannot tell which .* 2 \(breed\): {NAME_THEM}"),
        (
            "code,diagnosis\na.png,dog\nb.jpg,cat\nc.png,dog\n",
            "",
            rf"the first line is no header .*, and names no image; .* 1 \(code\), 2 \(diagnosis\): {NAME_THEM}",
        ),
        ("a.png,a.png,dog\nb.jpg,b.jpg,cat\n", "", rf"no header that is known, nor one column.*{NAME_THEM}"),
        (
            "dog,a.png\ncat,b.jpg\n",
            "",
            rf"nor one column that names images in .*images, with labels after it.*{NAME_THEM}",
        ),
        ("file,label\na.png,dog\n", ":file:breed", rf"no columns file and breed; .* 2 \(label\): {NAME_THEM}"),
        ("a.png,dog\n", ":1:3", rf"no columns 1 and 3; .*{NAME_THEM}"),
    ],
)
def test_what_is_ambiguous_or_does_not_fit_is_refused_and_nothing_is_dropped(images, table, columns, message):
    with pytest.raises(ValueError, match=f"labels.csv: .*{message}"):
        labelled(images, table, columns=columns)


def test_a_name_that_several_images_have_is_refused(images):
    save_image(images / "sub" / "a.png")
    with pytest.raises(ValueError, match=r"1 rows that name several images: a.png; 2 images without a row: a.png, "):
        labelled(images, "a.png,dog\nb.jpg,cat\nc.png,dog\n")


def test_other_files_are_counted_and_a_faulty_place_is_named(images, tmp_path):
    (images / "notes.txt").touch()
    with pytest.warns(UserWarning, match=r"images: ignored 1 files that are no images: notes.txt"):
        labelled(images, f"{TWO}c.png,dog\n", below="images")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match=r"empty: no image in it; give the folder of the images that .*labels.csv"):
        open_source(tmp_path / "empty", labels=images / "labels.csv")
    with pytest.raises(ValueError, match="--labels is for image files, --source folder; npz has labels of its own"):
        open_source(images, "npz", labels=images / "labels.csv")
    (images / "labels.csv").write_bytes(b"a.png,\xff\n")
    with pytest.raises(ValueError, match=r"labels.csv: 'utf-8' codec can't decode"):
        open_source(images, labels=images / "labels.csv")


@pytest.mark.parametrize(("table", "hint"), [(None, "$"), ("labels.csv", ", such as --labels {0}/labels.csv$")])
def test_images_without_subfolders_are_refused_with_the_file_beside_them_that_may_have_the_labels(
    tmp_path, table, hint
):
    save_image(tmp_path / "1.jpg")
    if table:
        (tmp_path / table).write_text("file,label\n1.jpg,cat\n")
    url = f"memory:/{tmp_path}"  # each has one of its own, as copies are kept
    fsspec.filesystem("memory").put(f"{tmp_path}/", url, recursive=True)
    for place in (str(tmp_path), url):
        message = f"^{place}: images without a subfolder for each class: name a file of their labels with --labels"
        with pytest.raises(ValueError, match=message + hint.format(place)):
            open_source(place)
    fsspec.filesystem("memory").rm(url, recursive=True)


def test_the_command_line_shards_a_flat_folder_with_labels(images, tmp_path, capsys):
    (tmp_path / "labels.csv").write_text(f"name,kind\n{TWO}c.png,dog\n")
    command = ["shard", str(images), str(tmp_path / "out"), "--workers", "1", "--labels"]
    assert main([*command, str(tmp_path / "labels.csv")]) == 2
    assert "its columns are 1 (name), 2 (kind)" in capsys.readouterr().err
    assert main([*command, f"{tmp_path / 'labels.csv'}:name:kind"]) == 0
    manifest = read_manifest(tmp_path / "out")
    assert (manifest.classes, manifest.samples_per_class) == (("cat", "dog"), (1, 2))


def tiny_image_net(root):
    """Its official layout in small: n2 comes first in val, and test has no labels."""
    for name in ("n1", "n2"):
        for index in range(2):
            save_image(root / "train" / name / "images" / f"{name}_{index}.JPEG")
        (root / "train" / name / f"{name}_boxes.txt").write_text(f"{name}_0.JPEG\t0\t0\t62\t62\n")
    for index in range(3):
        save_image(root / "val" / "images" / f"val_{index}.JPEG")
        save_image(root / "test" / "images" / f"test_{index}.JPEG")
    rows = [f"val_{index}.JPEG\t{name}\t0\t32\t44\t62\n" for index, name in enumerate(("n2", "n1", "n2"))]
    (root / "val" / "val_annotations.txt").write_text("".join(rows))
    for name in ("wnids.txt", "words.txt"):
        (root / name).write_text("n2\nn1\n")
    return root


@pytest.mark.filterwarnings("ignore:.* files that are no images")
def test_tiny_image_net_opens_from_its_official_folders(tmp_path):
    root = tiny_image_net(tmp_path)
    assert source_splits(root) == ("train", "test")
    with pytest.warns(
        UserWarning, match=r"left out test \(its images have no labels: .*\), so that val is the split te"
    ):
        train = open_source(root, split="train")
    val = open_source(root, split="test")
    assert train.classes == val.classes == ("n1", "n2")
    assert train.labels.tolist() == [0, 0, 1, 1]
    labels = {"images/val_0.JPEG": 1, "images/val_1.JPEG": 0, "images/val_2.JPEG": 1}
    assert {sample.key: sample.label for sample in val} == labels
    with pytest.raises(ValueError, match="has the splits train, test: choose one of them as split, got val"):
        open_source(root, split="val")
    alone = open_source(root / "val", labels=root / "val" / "val_annotations.txt")
    assert (alone.classes, alone.labels.tolist()) == (("n1", "n2"), [1, 0, 1])
    with pytest.raises(
        ValueError, match=r"the only class would be images; if val_annotations.txt beside it has the la"
    ):
        open_source(root / "val")
    (root / "val" / "val_annotations.txt").write_text("".join(f"val_{index}.JPEG\tn3\n" for index in range(3)))
    with pytest.raises(ValueError, match=r"val_annotations.txt: expected only the classes of the train split, got n3"):
        open_source(root, split="test")
