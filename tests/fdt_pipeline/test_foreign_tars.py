"""`fdt-pipeline index --out`: webdataset tars of other programs are trained on as they are, where they are."""

import io
import json
import re
import shutil
import struct
import zlib
from collections import Counter
from contextlib import closing
from dataclasses import replace

import fsspec
import numpy as np
import pytest
import torch
from PIL import Image

from fdt_pipeline import FDTLoader, fdt_pipeline
from fdt_pipeline.cli import main
from fdt_pipeline.shards import load_shards, read_manifest, verify_shards, webdataset_files
from fdt_pipeline.shards.conversion import ShardSource
from fdt_pipeline.storage import open_folder
from tests.folders import content, names, parse_index
from tests.foreign_tars import LAYOUTS, label_of, levels, picture, sample, write_tar
from tests.loading import PIXELS, members_of, overwrite
from tests.peers import needs, peer
from tests.servers import object_store, web_server

pytestmark = pytest.mark.dali

SIZE = (8, 8)
IMAGES = {"jpg", "jpeg", "png", "webp"}


def index(*arguments):
    return main(["index", *map(str, arguments)])


def indexed(out, *tars, label="cls"):
    assert index(*tars, "--out", out, "--label", label) == 0
    return read_manifest(out)


def epoch(location, **options):
    """(levels, labels) of every sample of an epoch, unmixed."""
    loader = FDTLoader(location, 7, mode="streaming", mix=None, augment=None, size=SIZE, **PIXELS, **options)
    batches = list(loader)
    shown = np.concatenate([levels(images) for images, _ in batches])
    return shown, np.concatenate([targets.argmax(1).numpy() for _, targets in batches])


@pytest.fixture(scope="module", params=LAYOUTS)
def layout(request, tmp_path_factory):
    """(folder of read-only tars, the manifest's folder beside it, what is to be found)."""
    tars = tmp_path_factory.mktemp("foreign") / "tars"
    expected = LAYOUTS[request.param](tars)
    before = content(tars)
    for path in [*tars.iterdir(), tars]:
        path.chmod(0o555)
    out = tars.with_name("set")
    indexed(out, tars, label=expected.pop("label", "cls"))
    yield tars, out, expected
    assert content(tars) == before
    tars.chmod(0o755)


@pytest.mark.parametrize("engine", ["native", "torch"])
def test_every_sample_is_in_an_epoch_once_with_its_own_label(layout, engine):
    _, out, expected = layout
    shown, labels = epoch(out, engine=engine)
    assert len(labels) == expected["num_samples"] == read_manifest(out).num_samples
    np.testing.assert_array_equal(shown, labels)
    assert Counter(labels.tolist()) == dict(enumerate(read_manifest(out).samples_per_class))


def test_fdt_trains_on_them(layout):
    for images, targets in FDTLoader(layout[1], 8, size=SIZE, mode="streaming"):
        assert images.shape[1:] == (3, *SIZE)
        np.testing.assert_allclose(targets.sum(1), 1, rtol=1e-6)


def test_all_verbs_read_them(layout, tmp_path, capsys):
    _, out, expected = layout
    assert main(["verify", "--decode", str(out)]) == 0
    assert main(["preview", str(out), "--out", str(tmp_path / "sheet.png")]) == 0
    assert main(["info", str(out)]) == 0
    assert ("left out" in capsys.readouterr().out) == bool(expected["left_out"])
    assert len(read_manifest(out).quarantine) == expected["left_out"]
    assert main(["convert", str(out), str(tmp_path / "png"), "--encode", "png"]) == 0
    shown, labels = epoch(tmp_path / "png")
    np.testing.assert_array_equal(shown, labels)
    assert len(labels) == expected["num_samples"]


@pytest.mark.peer
def test_webdataset_itself_finds_the_same_samples_in_the_same_order(layout):
    reading = peer("webdataset.tariterators", "test")
    tars, out, _ = layout
    source = ShardSource(open_folder(out), read_manifest(out))
    for number, path in enumerate(sorted(tars.iterdir())):
        with path.open("rb") as file:
            members = ({**member, "__url__": ""} for member in reading.tar_file_iterator(file))
            theirs = [sample for sample in reading.group_by_keys(members) if IMAGES & sample.keys()]
        with closing(source.shard(number)) as ours:
            found = [(ours.key(at), ours.read_file(at)) for at in range(len(ours))]
        assert found == [(sample["__key__"], sample[(IMAGES & sample.keys()).pop()]) for sample in theirs]


@pytest.mark.parametrize("layout", ["timm's ImageNet"], indirect=True)
def test_the_pipeline_function_reads_them(layout):
    pipeline = fdt_pipeline(layout[1], batch_size=20, num_threads=1, device_id=None, size=SIZE, mix=None, augment=None,
                            mean=0, std=1)  # fmt: skip
    pipeline.build()
    for _ in range(3):
        images, targets = pipeline.run()
        shown = torch.from_numpy(images.as_array().copy())
        np.testing.assert_array_equal(levels(shown), targets.as_array().argmax(1))


def test_what_failed_to_download_is_named_and_left_out(tmp_path, capsys):
    LAYOUTS["img2dataset"](tmp_path / "tars")
    assert index(tmp_path / "tars", "--out", tmp_path / "set", "--label", "json:meta.class", "--json") == 0
    report = json.loads(capsys.readouterr().out)
    assert report["left_out"][0] == {
        "sample": "../tars/00000.tar: 000000009",
        "reason": "no image among its members (.json)",
    }
    assert len(report["left_out"]) == 6
    assert index(tmp_path / "tars", "--out", tmp_path / "set", "--label", "json:meta.class") == 0
    printed = capsys.readouterr().out
    assert "left out: 1 more, which --json lists" in printed
    assert "54 samples in 2 tars, 6 left out" in printed


def test_the_index_of_a_tar_without_faults_is_that_of_the_verb_without_out(tmp_path):
    """All members are in it, so that other readers of DALI find what they look for."""
    LAYOUTS["timm's ImageNet"](tmp_path / "tars")
    assert index(tmp_path / "tars") == 0
    beside = {name: data for name, data in content(tmp_path / "tars").items() if name.endswith(".idx")}
    indexed(tmp_path / "set", tmp_path / "tars")
    assert beside == {name: data for name, data in content(tmp_path / "set").items() if name != "manifest.json"}
    indexed(tmp_path / "tars", tmp_path / "tars")
    assert read_manifest(tmp_path / "tars").shards[0].name == "imagenet-train-0000.tar"
    assert len(epoch(tmp_path / "tars")[0]) == 60


def test_dalis_own_reader_takes_them(tmp_path):
    import nvidia.dali as dali

    LAYOUTS["timm's ImageNet"](tmp_path / "tars")
    indexed(tmp_path / "set", tmp_path / "tars")

    @dali.pipeline_def(batch_size=60, num_threads=1, device_id=None)
    def pipeline():
        return tuple(dali.fn.readers.webdataset(**webdataset_files(tmp_path / "set")))

    built = pipeline()
    built.build()
    images, labels = built.run()
    for number in range(60):
        assert bytes(images.at(number)) == picture(number)
        assert bytes(labels.at(number)) == b"%d" % label_of(number)


def test_a_set_can_be_moved_with_its_tars_and_says_so_without_them(tmp_path):
    write_tar(tmp_path / "a" / "tars" / "x.tar", [member for number in range(9) for member in sample(number)])
    indexed(tmp_path / "a" / "set", tmp_path / "a" / "tars")
    (tmp_path / "a").rename(tmp_path / "b")
    assert len(epoch(tmp_path / "b" / "set")[0]) == 9
    (tmp_path / "link").symlink_to(tmp_path / "b" / "set")
    assert len(epoch(tmp_path / "link")[0]) == 9
    (tmp_path / "b" / "set").rename(tmp_path / "set")
    with pytest.raises(ValueError, match=r"tars/x\.tar: missing; run fdt-pipeline index again"):
        epoch(tmp_path / "set")


def test_tars_of_one_name_in_two_folders_and_equal_keys_are_two_shards(tmp_path):
    for folder in "ab":
        write_tar(tmp_path / folder / "0.tar", [member for number in range(9) for member in sample(number)])
    manifest = indexed(tmp_path / "set", tmp_path / "a" / "0.tar", tmp_path / "b")
    assert [shard.name for shard in manifest.shards] == ["../a/0.tar", "../b/0.tar"]
    assert names(tmp_path / "set") == ["000000-0.idx", "000001-0.idx", "manifest.json"]
    assert len(epoch(tmp_path / "set")[0]) == 18
    [(image, _), *_] = parse_index((tmp_path / "set" / "000001-0.idx").read_text())
    overwrite(tmp_path / "b" / "0.tar", image.offset + image.size - 30, 1)
    with pytest.raises(ValueError, match=r"b/0\.tar: sample 0000: changed since it was written"):
        epoch(tmp_path / "set")


@pytest.mark.parametrize("out", ["local", "remote"])
def test_tars_in_a_store_come_through_the_cache(tmp_path, monkeypatch, out):
    monkeypatch.setenv("FDT_PIPELINE_SHARD_CACHE", str(tmp_path / "cache"))
    expected = LAYOUTS["timm's ImageNet"](tmp_path / "tars")
    store = fsspec.filesystem("memory")
    store.put(f"{tmp_path}/tars/", "/foreign/tars/", recursive=True)
    try:
        location = str(tmp_path / "set") if out == "local" else "memory://foreign/set"
        manifest = indexed(location, "memory://foreign/tars")
        url = "../tars" if out == "remote" else "memory://foreign/tars"
        assert manifest.shards[0].name == f"{url}/imagenet-train-0000.tar"
        shown, labels = epoch(location)
        np.testing.assert_array_equal(shown, labels)
        assert len(labels) == expected["num_samples"]
        assert manifest.shards[0].sha256 in names(tmp_path / "cache")
        assert verify_shards(location, decode=True) == []
    finally:
        store.rm("/foreign", recursive=True)


def test_tars_on_a_web_server_and_on_this_machine_are_one_set(tmp_path, monkeypatch):
    monkeypatch.setenv("FDT_PIPELINE_SHARD_CACHE", str(tmp_path / "cache"))
    for name, numbers in (("here", range(9)), ("there", range(9, 20))):
        write_tar(tmp_path / name / f"{name}.tar", [member for number in numbers for member in sample(number)])
    with web_server(tmp_path / "there") as web:
        manifest = indexed(tmp_path / "set", f"{web.url}/there.tar", tmp_path / "here")
        assert [shard.name for shard in manifest.shards] == [f"{web.url}/there.tar", "../here/here.tar"]
        np.testing.assert_array_equal(*epoch(tmp_path / "set"))
        web.reset()
        assert len(epoch(tmp_path / "set")[0]) == 20
        assert web.requests == []  # it is in the cache
        with pytest.raises(ValueError, match="has tars at URLs"):
            webdataset_files(tmp_path / "set")
        write_tar(tmp_path / "here" / "here.tar", [member for number in range(1, 10) for member in sample(number)])
        with pytest.raises(ValueError, match=r"here\.tar: sample 0000: |here\.tar: expected \d+ bytes"):
            epoch(tmp_path / "set")


@pytest.mark.peer
def test_tars_on_s3_are_read_in_place(tmp_path, monkeypatch):
    needs("moto")
    needs("s3fs")
    monkeypatch.setenv("FDT_PIPELINE_SHARD_CACHE", str(tmp_path / "cache"))
    with object_store():
        folder = open_folder("s3://bucket/tars")
        LAYOUTS["timm's ImageNet"](tmp_path / "tars")
        for name, data in content(tmp_path / "tars").items():
            with folder.writing(name) as file:
                file.write(data)
        indexed("s3://bucket/set", "s3://bucket/tars")
        shown, labels = epoch("s3://bucket/set")
        np.testing.assert_array_equal(shown, labels)
        assert len(labels) == 60
        assert {name: folder.read(name) for name in folder.names()} == content(tmp_path / "tars")


def test_tars_of_one_size_are_resident_and_load(tmp_path):
    members = [member for number in range(0, 300, 15) for member in sample(number)]  # of one size
    write_tar(tmp_path / "tars" / "x.tar", members)
    manifest = indexed(tmp_path / "set", tmp_path / "tars")
    assert manifest.shape == (8, 9, 3)
    images, labels, keys = load_shards(tmp_path / "set")
    np.testing.assert_array_equal(np.rint((images.mean((1, 2, 3)) - 10) / 20), labels)
    assert keys[1] == "0015"
    for mode in ("resident", "streaming"):
        loader = FDTLoader(tmp_path / "set", 5, mode=mode, mix=None, augment=None, **PIXELS)
        for images, targets in loader:
            np.testing.assert_array_equal(levels(images), targets.argmax(1))
    assert FDTLoader(tmp_path / "set", 5, mix=None).mode == "resident"


# Labels


LABELS = {
    "cls": ({"cls": "3\n"}, "cls", 3),
    "cls of a torch scalar": ({"cls": "tensor(3)"}, "cls", 3),
    "spelling": ({"CLS": "3"}, "cls", 3),
    "txt, a name": ({"txt": " bird \n"}, "txt", 3),
    "json, a number": ({"json": '{"y": 3}'}, "json:y", 3),
    "json, a name": ({"json": '{"y": "bird"}'}, "json:y", 3),
    "json, a float that is whole": ({"json": '{"y": 3.0}'}, "json:y", 3),
    "json, nested": ({"json": '{"a": {"y": "3"}}'}, "json:a.y", 3),
    "json, a key with a dot": ({"json": '{"a.y": 3}'}, "json:a.y", 3),
}
NAMES = ["ant", "bee", "cat", "bird"]


@pytest.mark.parametrize("case", LABELS)
def test_labels_are_numbers_or_names_wherever_they_are(tmp_path, case):
    members, label, expected = LABELS[case]
    write_tar(tmp_path / "x.tar", sample(0, **members))
    (tmp_path / "names.txt").write_text("\n".join(NAMES) + "\n")
    assert (
        index(tmp_path / "x.tar", "--out", tmp_path / "set", "--label", label, "--classes", tmp_path / "names.txt") == 0
    )
    manifest = read_manifest(tmp_path / "set")
    assert manifest.classes == tuple(NAMES)
    assert manifest.samples_per_class == tuple(int(number == expected) for number in range(4))
    assert epoch(tmp_path / "set")[1].tolist() == [expected]
    assert ShardSource(open_folder(tmp_path / "set"), manifest).labels.tolist() == [expected]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("b\na\n", ("b", "a")),
        ("\ufeffb\r\na\r\n", ("b", "a")),
        ('["b", "a"]', ("b", "a")),
        ('{"a": 1, "b": 0}', ("b", "a")),
    ],
)
def test_class_names_are_lines_or_json(tmp_path, text, expected):
    (tmp_path / "names").write_text(text)
    write_tar(tmp_path / "x.tar", sample(0, cls="a"))
    assert index(tmp_path / "x.tar", "--out", tmp_path / "set", "--classes", tmp_path / "names") == 0
    assert read_manifest(tmp_path / "set").classes == expected
    assert epoch(tmp_path / "set")[1].tolist() == [1]


@pytest.mark.parametrize(
    ("labels", "classes", "said"),
    [
        (["dog", "cat", "dog"], ("cat", "dog"), "2, found in the labels, cat to dog"),
        (["0", "2"], ("0", "1", "2"), "3, found in the labels, 0 to 2; --classes FILE names them; 1 without samples"),
    ],
)
def test_classes_that_are_not_given_are_found_and_said(tmp_path, capsys, labels, classes, said):
    write_tar(tmp_path / "x.tar", [m for number, label in enumerate(labels) for m in sample(number, cls=label)])
    assert indexed(tmp_path / "set", tmp_path / "x.tar").classes == classes
    assert said in capsys.readouterr().out


@pytest.mark.parametrize(
    ("members", "arguments", "classes", "message"),
    [
        (sample(0, json="{}"), [], None, r"x\.tar: none of its samples has a label in cls: sample 0000: no "
         r"\.cls among its members \(\.jpg, \.json\); say where labels are with --label"),
        (sample(0, json='{"a": 1, "b": 2}'), ["--label", "json:c"], None, r"its \.json has no field c, it has a, b"),
        (sample(0, cls="4") + sample(1, cls="7"), [], "a\nb\nc\nd\ne", r"x\.tar: sample 0001: label 7 is out of range: "
         r"expected 0\.\.4"),
        (sample(0, cls="-1"), [], "a", r"x\.tar: sample 0000: label -1 is out of range"),
        (sample(0, cls="-1"), [], None, r"x\.tar: sample 0000: label -1"),
        (sample(0, cls="zebra"), [], "a\nb", r"x\.tar: sample 0000: label 'zebra' is none of the 2 classes"),
        (sample(0, cls="zebra") + sample(1, cls="1"), [], None, r"labels are names, such as 'zebra' "
         r"\(\.\./x\.tar: sample 0000\), and numbers, such as 1 \(\.\./x\.tar: sample 0001\): pass --classes"),
        (sample(0, cls="70000"), [], None, r"x\.tar: sample 0000: label 70000 is out of range"),
        (sample(0), [], "0\n2\n1", r"names: class 1 is called '2', so a label 2 could be its name or the number"),
        (sample(0), [], "\n", r"names: no class names there"),
        (sample(0), [], "a\na", r"names: class names must differ"),
        (sample(0), [], '{"a": 0, "b": 2}', r"names: expected the numbers 0\.\.1"),
        (sample(0), [], "[1, 2]", r"names: class names must be strings"),
        (sample(0), ["--label", "json"], None, r"a label is in cls, txt or json:FIELD .*got 'json'"),
        (sample(0), ["--label", "png"], None, r"a label is in cls, txt or json:FIELD .*got 'png'"),
        (sample(0, cls="1", png="x"), [], None, r"x\.tar: sample 0000: which of \.jpg, \.png is the image\?"),
        ([sample(i)[j] for j in range(2) for i in range(2)], [], None, "none of its samples has a label in cls"),
    ],
)  # fmt: skip
def test_what_cannot_be_a_set_is_refused_in_one_line_and_nothing_is_written(
    tmp_path, capsys, members, arguments, classes, message
):
    write_tar(tmp_path / "x.tar", members)
    if classes:
        (tmp_path / "names").write_text(classes)
        arguments = [*arguments, "--classes", tmp_path / "names"]
    assert index(tmp_path / "x.tar", "--out", tmp_path / "set", *arguments) == 2
    [line] = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ")
    assert re.search(message, line)
    assert not (tmp_path / "set").exists()


def bomb():
    """A PNG that says that it has 10,000 x 10,000 pixels."""
    data = picture(0, "PNG")
    header = b"IHDR" + struct.pack(">II", 10_000, 10_000) + data[24:29]
    return data[:12] + header + struct.pack(">I", zlib.crc32(header)) + data[33:]


def broken_png():
    """A PNG whose header is fine, and whose pixels are not."""
    data = bytearray(picture(1, "PNG"))
    data[data.index(b"IDAT") + 4] = 0xFF  # where zlib's stream begins
    return bytes(data)


@pytest.mark.filterwarnings("ignore")  # not errors, as elsewhere in the tests: Pillow only warns of a bomb
@pytest.mark.parametrize(
    ("members", "reason"),
    [
        (sample(8, json="{}")[:1], "no .cls among its members (.jpg)"),
        (sample(8, cls=""), 'no label: its .cls is "", expected a number or a name'),
        (sample(8, cls=b"\xff\xfe"), "its .cls is no text: it begins with b'\\xff\\xfe'"),
        ([*sample(8), ("0008.CLS", b"2")], "two .cls among its members (.jpg, .cls, .CLS)"),
        ([("0008.jpg", b""), ("0008.cls", b"1")], "not an image: the file has zero bytes"),
        ([("0008.jpg", picture(8)[:-40]), ("0008.cls", b"1")], "not a readable image ("),
        ([("0008.jpg", b"<html>"), ("0008.cls", b"1")], "not an image: it begins with b'<html>'"),
        ([("0008.png", picture(8, "GIF", "P")), ("0008.cls", b"1")], "it is a GIF: expected a JPEG, a PNG or a WebP"),
        ([("0008.png", bomb()), ("0008.cls", b"1")], "too large to decode within the memory budget"),
        ([("0008.png", broken_png()), ("0008.cls", b"1")], "not a readable image ("),
        ([*sample(8), *sample(9), ("0008.txt", b"")], None),
        ([*sample(9), *sample(3)], None),
    ],
)  # fmt: skip
def test_one_bad_sample_is_named_and_the_others_are_taken(tmp_path, capsys, members, reason):
    good = [member for number in range(7) for member in sample(number)]
    write_tar(tmp_path / "x.tar", [*good, *members])
    assert index(tmp_path / "x.tar", "--out", tmp_path / "set") == 0
    [bad] = read_manifest(tmp_path / "set").quarantine
    reason = reason or "its key occurs once more: keys must differ, and the members of a sample lie side by side"
    assert reason in bad.reason
    assert f"left out: ../x.tar: {'0003' if members[-1][0] == '0003.cls' else '0008'}: " in capsys.readouterr().out
    shown, labels = epoch(tmp_path / "set")
    np.testing.assert_array_equal(shown, labels)
    for decode in (False, True):
        assert verify_shards(tmp_path / "set", decode=decode) == []


@pytest.mark.parametrize(
    ("json_of_one", "reason"),
    [
        ("{}", "no label: its .json has no field y, it has none"),
        ("[]", "its .json has no field y, it has none"),
        ('{"y": null}', "field y of its .json is null, expected a number or a name"),
        ('{"y": true}', "field y of its .json is true"),
        ('{"y": [1]}', "field y of its .json is [1]"),
        ('{"y": 1.5}', "field y of its .json is 1.5"),
        ('{"y": 1', "its .json is broken: it begins with '{\"y\": 1'"),
    ],
)
def test_a_field_that_is_missing_in_one_sample_is_named(tmp_path, json_of_one, reason):
    members = [m for number in range(9) for m in sample(number, json=json_of_one if number == 5 else '{"y": 1}')]
    write_tar(tmp_path / "x.tar", members)
    [bad] = indexed(tmp_path / "set", tmp_path / "x.tar", label="json:y").quarantine
    assert (bad.position, bad.key) == (5, "../x.tar: 0005")
    assert reason in bad.reason


def test_broken_tars_are_all_named_with_exit_code_1_and_nothing_is_written(tmp_path, capsys):
    good = write_tar(tmp_path / "good.tar", sample(0))
    (tmp_path / "cut.tar").write_bytes(good.read_bytes()[:1000])
    (tmp_path / "none.tar").write_bytes(b"PK" * 600)
    assert index(tmp_path, "--out", tmp_path / "set") == 1
    error = capsys.readouterr().err
    assert "cut.tar: cut at byte 1000" in error
    assert "none.tar: not a tar" in error
    assert not (tmp_path / "set").exists()


@pytest.mark.parametrize(
    ("members", "message"),
    [
        ([], "no sample is left of 0: the tars are empty"),
        (sample(0, image="npy"), "no sample is left of 1: ../x.tar: 0000: no image among its members (.npy, .cls)"),
    ],
)
def test_tars_of_which_no_sample_is_left_end_with_exit_code_1(tmp_path, capsys, members, message):
    write_tar(tmp_path / "x.tar", members)
    assert index(tmp_path / "x.tar", "--out", tmp_path / "set") == 1
    assert capsys.readouterr().err == f"error: {message}\n"
    assert not (tmp_path / "set").exists()


def test_an_empty_tar_among_others_is_said(tmp_path, capsys):
    write_tar(tmp_path / "a.tar", [])
    write_tar(tmp_path / "b.tar", sample(0))
    assert len(indexed(tmp_path / "set", tmp_path).shards) == 1
    assert "  empty    1 tars without a sample to take: ../a.tar\n" in capsys.readouterr().out


def test_tars_of_which_some_have_their_labels_elsewhere_are_named(tmp_path, capsys):
    write_tar(tmp_path / "a.tar", sample(0))
    write_tar(tmp_path / "b.tar", sample(1, json='{"label": 1}'))
    assert index(tmp_path, "--out", tmp_path / "set") == 2
    assert "b.tar: none of its samples has a label in cls" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["x.tar", "shard-000000.tar"])
def test_a_loader_of_a_folder_of_tars_says_what_to_do(tmp_path, name):
    write_tar(tmp_path / name, sample(0))
    with pytest.raises(ValueError, match=f"fdt-pipeline index {tmp_path} --out {tmp_path}$"):
        FDTLoader(tmp_path, 1)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"index": "../x.idx"}, r"x\.tar: expected an index beside the manifest, got '\.\./x\.idx'"),
        ({"index": "manifest.json"}, "expected an index beside the manifest"),
        ({"index": "y.idx"}, "all names to differ"),
        ({"name": "../y.tar"}, "all names to differ"),
        ({"index": ""}, "expected an index for each shard"),
    ],
)
def test_a_manifest_whose_indexes_lead_elsewhere_or_meet_is_refused(tmp_path, changes, message):
    for name in "xy":
        write_tar(tmp_path / f"{name}.tar", sample(0))
    manifest = indexed(tmp_path / "set", tmp_path)
    with pytest.raises(ValueError, match=message):
        replace(manifest, shards=(replace(manifest.shards[0], **changes), manifest.shards[1]))


def test_a_tar_that_is_given_twice_is_an_error(tmp_path, capsys):
    write_tar(tmp_path / "x.tar", sample(0))
    (tmp_path / "link").symlink_to(tmp_path)
    for again in (tmp_path, tmp_path / "link" / "x.tar"):
        assert index(tmp_path / "x.tar", again, "--out", tmp_path / "set") == 2
        assert "../x.tar: is given 2 times" in capsys.readouterr().err


def test_shards_of_our_own_are_not_replaced_and_a_set_of_tars_is(tmp_path, capsys, numbered_shards):
    write_tar(tmp_path / "x.tar", sample(0))
    ours = shutil.copytree(numbered_shards, tmp_path / "ours")
    before = content(ours)
    assert index(tmp_path / "x.tar", "--out", ours) == 2
    assert "holds shards that were written there" in capsys.readouterr().err
    assert content(ours) == before
    indexed(tmp_path / "set", tmp_path / "x.tar")
    write_tar(tmp_path / "x.tar", [*sample(0), *sample(1)])
    assert indexed(tmp_path / "set", tmp_path / "x.tar").num_samples == 2


def test_a_set_beside_train_has_its_classes_and_no_others(tmp_path, capsys):
    """Also where it has no sample of the first: its numbers are to mean what train's do."""
    for split, labels in (("train", ["cat", "dog", "yak"]), ("test", ["yak", "dog"]), ("other", ["dog", "eel"])):
        members = (member for number, name in enumerate(labels) for member in sample(number, cls=name))
        write_tar(tmp_path / split / "x.tar", members)
    indexed(tmp_path / "sets" / "train", tmp_path / "train")
    manifest = indexed(tmp_path / "sets" / "test", tmp_path / "test")
    assert (manifest.classes, manifest.samples_per_class) == (("cat", "dog", "yak"), (0, 1, 1))
    assert "those of the folder train beside it; 1 without samples" in capsys.readouterr().out
    assert index(tmp_path / "other", "--out", tmp_path / "sets" / "other") == 2
    assert "label 'eel' is none of the 3 classes" in capsys.readouterr().err
    assert indexed(tmp_path / "elsewhere" / "test", tmp_path / "test").classes == ("dog", "yak")


def test_tars_that_leave_an_index_are_named(tmp_path, capsys):
    for name in "xy":
        write_tar(tmp_path / f"{name}.tar", sample(0))
    indexed(tmp_path / "set", tmp_path / "x.tar")
    indexed(tmp_path / "set", tmp_path / "x.tar", tmp_path / "y.tar")
    assert "no longer" not in capsys.readouterr().err
    indexed(tmp_path / "set", tmp_path / "y.tar")
    assert f"warning: {tmp_path}/set: no longer in its index: ../x.tar" in capsys.readouterr().err


@pytest.mark.parametrize("option", [["--classes", "f"], ["--label", "txt"], ["--no-decode"]])
def test_options_of_a_set_need_a_folder_for_it(tmp_path, capsys, option):
    write_tar(tmp_path / "x.tar", sample(0))
    assert index(tmp_path / "x.tar", *option) == 2
    assert f"{option[0]} is for a set of tars: name the folder for its manifest with --out" in capsys.readouterr().err


def test_the_image_is_the_member_with_an_images_extension_else_the_only_one_that_ends_so(tmp_path):
    mask = picture(1, "PNG")
    write_tar(tmp_path / "x.tar", [("a.seg.png", mask), *sample(0, "a"), *sample(2, "b.v2")])
    manifest = indexed(tmp_path / "set", tmp_path / "x.tar")
    assert manifest.samples_per_extension == {"jpg": 1, "v2.jpg": 1}
    np.testing.assert_array_equal(*epoch(tmp_path / "set"))


# Pixels


def other_kinds():
    """Files of images that are not plain: what the loader gives is what Pillow reads, and nothing else."""
    ramp = Image.fromarray(np.add.outer(np.arange(16), 10 * np.arange(20)).astype(np.uint8))
    color = Image.merge("RGB", (ramp, ramp.rotate(180), ramp))
    clear = color.copy()
    clear.putalpha(ramp)
    exif = Image.Exif()
    exif[0x0112] = 6
    palette = color.quantize(8)
    return {
        "turned by EXIF": (color, "JPEG", {"exif": exif}),
        "gray among color": (ramp, "JPEG", {}),
        "CMYK": (color.convert("CMYK"), "JPEG", {}),
        "progressive": (color, "JPEG", {"progressive": True}),
        "palette": (palette, "PNG", {}),
        "palette with a clear color": (palette, "PNG", {"transparency": 3}),
        "alpha": (clear, "PNG", {}),
        "gray with alpha": (clear.convert("LA"), "PNG", {}),
        "16 bits": (Image.fromarray(np.asarray(ramp).astype(np.uint16) * 257), "PNG", {}),
        "1 bit": (ramp.convert("1"), "PNG", {}),
        "webp with alpha": (clear, "WEBP", {"lossless": True}),
    }


@pytest.mark.parametrize("kind", other_kinds())
def test_the_loader_gives_what_preview_and_load_shards_read(tmp_path, kind):
    image, form, options = other_kinds()[kind]
    file = io.BytesIO()
    image.save(file, form, **options)
    plain = io.BytesIO()
    Image.new("RGB", image.size, (1, 2, 3)).save(plain, "PNG")
    members = [("a.jpg", file.getvalue()), ("a.cls", b"0"), ("b.png", plain.getvalue()), ("b.cls", b"1")]
    write_tar(tmp_path / "x.tar", members)  # a PNG by the name of a JPEG is no fault either
    manifest = indexed(tmp_path / "set", tmp_path / "x.tar")
    assert (manifest.quarantine, manifest.shape) == ((), (image.height, image.width, 3))
    images, _, _ = load_shards(tmp_path / "set")
    loader = FDTLoader(tmp_path / "set", 2, train=False, mode="streaming", **PIXELS)
    [(shown, _)] = list(loader)
    np.testing.assert_allclose(shown.permute(0, 2, 3, 1), images, atol=1)
    np.testing.assert_allclose(manifest.mean, images.reshape(-1, 3).mean(0), atol=1e-9)
    assert verify_shards(tmp_path / "set", decode=True) == []


@pytest.mark.parametrize("fault", ["animation", "EXIF"])
def test_webps_that_not_every_dali_decodes_are_left_out(tmp_path, fault):
    exif = Image.Exif()
    exif[0x0112] = 1
    options = {"EXIF": {"exif": exif}, "animation": {"save_all": True, "append_images": [Image.new("RGB", (9, 9))]}}[
        fault
    ]
    file = io.BytesIO()
    Image.new("RGB", (9, 9), (200, 0, 0)).save(file, "WEBP", **options)
    write_tar(tmp_path / "x.tar", [*sample(0), ("b.webp", file.getvalue()), ("b.cls", b"0")])
    [bad] = indexed(tmp_path / "set", tmp_path / "x.tar").quarantine
    assert "a WebP of several frames or with EXIF" in bad.reason


def test_how_many_images_exif_would_turn_is_said(tmp_path, capsys):
    exif = Image.Exif()
    exif[0x0112] = 3
    write_tar(tmp_path / "x.tar", [*sample(0), ("b.jpg", picture(1, exif=exif)), ("b.cls", b"0")])
    indexed(tmp_path / "set", tmp_path / "x.tar")
    assert "EXIF     would turn 1 images; the loader shows them as they are stored" in capsys.readouterr().out


def test_gray_tars_are_one_channel(tmp_path):
    write_tar(tmp_path / "x.tar", [(f"{i}.{e}", d) for i in range(5)
              for e, d in (("jpg", picture(i, mode="L")), ("cls", b"%d" % label_of(i)))])  # fmt: skip
    assert indexed(tmp_path / "set", tmp_path / "x.tar").channels == 1
    np.testing.assert_array_equal(*epoch(tmp_path / "set"))
    assert verify_shards(tmp_path / "set", decode=True) == []


def test_without_decoding_only_headers_are_looked_at(tmp_path, capsys):
    members = [("b.png", broken_png()), ("b.cls", b"0"), ("c.jpg", b"?"), ("c.cls", b"0")]
    write_tar(tmp_path / "x.tar", [*sample(0), *members])
    assert index(tmp_path / "x.tar", "--out", tmp_path / "set", "--no-decode") == 0
    assert "mean and std are not known" in capsys.readouterr().out
    manifest = read_manifest(tmp_path / "set")
    assert (manifest.mean, manifest.std, manifest.num_samples) == (None, None, 2)
    assert main(["info", str(tmp_path / "set")]) == 0
    assert "mean      not known, as no image was decoded" in capsys.readouterr().out
    assert verify_shards(tmp_path / "set") == []
    assert "x.tar: sample b: not a readable image" in verify_shards(tmp_path / "set", decode=True)[0]


# Damage


@pytest.mark.parametrize("part", ["image", "label"])
def test_a_byte_that_spoils_is_found_before_its_sample_is_handed_out(tmp_path, part):
    write_tar(tmp_path / "tars" / "x.tar", [member for number in range(9) for member in sample(number)])
    indexed(tmp_path / "set", tmp_path / "tars")
    _, image, label = members_of(tmp_path / "set", 5)
    overwrite(tmp_path / "tars" / "x.tar", image.offset + image.size - 30 if part == "image" else label.offset, 1)
    with pytest.raises(ValueError, match=r"tars/x\.tar: sample 0005: (changed since it was written|its .cls)"):
        epoch(tmp_path / "set")
    problems = verify_shards(tmp_path / "set")
    assert any("x.tar: damaged: expected sha256" in problem for problem in problems)
    assert any("x.tar: sample 0005: " in problem for problem in problems)


def test_an_index_of_another_tar_is_found(tmp_path):
    for name, numbers in (("a", range(9)), ("b", range(9, 20))):
        write_tar(tmp_path / "tars" / f"{name}.tar", [member for number in numbers for member in sample(number)])
    indexed(tmp_path / "set", tmp_path / "tars")
    shutil.copy(tmp_path / "set" / "b.idx", tmp_path / "set" / "a.idx")
    with pytest.raises(ValueError, match=r"a\.tar: (its index has 11 samples, expected 9|expected each sample)"):
        epoch(tmp_path / "set")
    assert any("a.idx: damaged" in problem for problem in verify_shards(tmp_path / "set"))


def test_bytes_between_the_samples_are_nobodys_but_the_hashs(tmp_path):
    """What else the tars hold is not read by the loader, and verified all the same."""
    write_tar(tmp_path / "tars" / "x.tar", [m for number in range(9) for m in sample(number, cls="1", npy=b"x" * 900)])
    indexed(tmp_path / "set", tmp_path / "tars")
    place = (tmp_path / "tars" / "x.tar").read_bytes().index(b"x" * 900)
    overwrite(tmp_path / "tars" / "x.tar", place, 1)
    assert len(epoch(tmp_path / "set")[0]) == 9
    [problem] = verify_shards(tmp_path / "set")
    assert "x.tar: damaged: expected sha256" in problem
    with pytest.raises(ValueError, match=r"x\.tar: damaged: .*run fdt-pipeline index again"):
        epoch(tmp_path / "set", verify=True)
