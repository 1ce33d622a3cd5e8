"""manifest.json."""

import dataclasses
import hashlib
import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from PIL import Image

from fdt_pipeline import webdataset_files
from fdt_pipeline.shards import ShardError, read_manifest, shard_sets, verify_shards, write_shards
from fdt_pipeline.sources import ArraySource, open_source

SOURCE = ArraySource(np.arange(7 * 2 * 3 * 3, dtype=np.uint8).reshape(7, 2, 3, 3), [0, 0, 0, 0, 1, 1, 1], ["a", "b"])


def test_it_tells_what_was_written(tmp_path):
    manifest = write_shards(SOURCE, tmp_path, seed=5, samples_per_shard=4)
    assert manifest == read_manifest(tmp_path)
    assert (manifest.kind, manifest.split, manifest.classes) == ("arrays", None, ("a", "b"))
    assert (manifest.num_samples, manifest.samples_per_class) == (7, (4, 3))
    assert (manifest.shape, manifest.channels, manifest.encoding) == ((2, 3, 3), 3, "raw")
    assert (manifest.seed, manifest.samples_per_shard, manifest.format_version) == (5, 4, 2)
    assert [shard.name for shard in manifest.shards] == ["shard-000000.tar", "shard-000001.tar"]
    assert [shard.num_samples for shard in manifest.shards] == [4, 3]
    np.testing.assert_allclose(manifest.mean, SOURCE.images.mean((0, 1, 2)))
    np.testing.assert_allclose(manifest.std, SOURCE.images.std((0, 1, 2)))


def photos(folder):
    """Four JPEGs, of which one is gray, and a PNG."""
    for name in ("cat/1.jpg", "cat/2.jpg", "cat/gray.jpg", "dog/1.jpg", "dog/2.png"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("L" if "gray" in name else "RGB", (3, 2)).save(folder / name)
    return folder


def test_what_dalis_reader_takes(tmp_path):
    write_shards(open_source(photos(tmp_path / "photos")), tmp_path / "kept", "keep", samples_per_shard=3)
    paths = [f"{tmp_path}/kept/shard-00000{number}" for number in range(2)]
    expected = {"paths": [f"{path}.tar" for path in paths], "index_paths": [f"{path}.idx" for path in paths]}
    assert webdataset_files(tmp_path / "kept") == {**expected, "ext": ["jpg;png", "cls"]}
    write_shards(SOURCE, tmp_path / "raw")
    assert webdataset_files(str(tmp_path / "raw"))["ext"] == ["npy", "cls"]
    (tmp_path / "raw" / "shard-000000.idx").unlink()
    with pytest.raises(ShardError, match=r"shard-000000.idx: missing"):
        webdataset_files(tmp_path / "raw")
    with pytest.raises(ValueError, match=r"memory://raw: DALI's reader needs files of this machine: copy the shards"):
        webdataset_files("memory://raw")


def test_it_counts_what_is_stored_as_what_and_other_counts_are_a_problem(tmp_path):
    assert write_shards(SOURCE, tmp_path / "raw").samples_per_extension == {"npy": 7}
    kept = tmp_path / "kept"
    manifest = write_shards(open_source(photos(tmp_path / "photos")), kept, "keep", samples_per_shard=2)
    assert read_manifest(kept) == manifest
    counts, wrong = {"jpg": 3, "png": 2}, {"jpg": 1, "png": 4}
    assert manifest.samples_per_extension == counts
    (kept / "manifest.json").write_text(dataclasses.replace(manifest, samples_per_extension=wrong).to_json())
    assert verify_shards(kept) == [f"{kept}: expected images stored as {wrong}, got {counts}"]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda path: None, "set: no such folder; make one with fdt-pipeline shard SOURCE"),
        (
            lambda path: (path.parent / "manifest.json").touch(),
            "no such folder, but .* is a set without splits: pass",
        ),
        (lambda path: (path / "cat").mkdir(parents=True), "if these are images: run fdt-pipeline shard .*set OUT"),
        (Path.mkdir, "no shards here: run fdt-pipeline shard SOURCE"),
        (Path.touch, "set: is a file, expected a folder; choose a folder of shards"),
    ],
)
def test_a_place_without_shards_says_how_to_make_some(tmp_path, make, message):
    make(tmp_path / "set")
    for read in (read_manifest, verify_shards):
        with pytest.raises(ValueError, match=message):
            read(tmp_path / "set")


def test_a_folder_of_sets_names_them(tmp_path):
    write_shards(SOURCE, tmp_path / "train")
    write_shards(SOURCE, tmp_path / "test")
    with pytest.raises(ValueError, match=f"in its subfolders: choose one of {tmp_path}/train, {tmp_path}/test"):
        read_manifest(tmp_path)
    with pytest.raises(ValueError, match=f"val: no such folder: choose one of {tmp_path}/train, {tmp_path}/test"):
        read_manifest(tmp_path / "val")
    assert [folder.local for folder in shard_sets(tmp_path)] == [tmp_path / "train", tmp_path / "test"]
    assert [folder.local for folder in shard_sets(tmp_path / "test")] == [tmp_path / "test"]


def canonical_hash(fields):
    """As any other program can compute it with the standard library alone."""
    return hashlib.sha256(json.dumps(fields, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def changed(**fields):
    return lambda text: json.dumps({**json.loads(text), **fields})


def without(field):
    return lambda text: json.dumps({key: value for key, value in json.loads(text).items() if key != field})


def by_another_program(change):
    """Change the content, and make the hash fit."""

    def changed(text):
        content = json.loads(text)
        del content["manifest_sha256"]
        change(content)
        return json.dumps({**content, "manifest_sha256": canonical_hash(content)})

    return changed


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda text: text[:-5], "Unterminated string"),
        (lambda text: "[1]", "expected a JSON object"),
        (lambda text: "\udcff", "decode"),
        (lambda text: "[" * 100_000, "nested without end"),
        (changed(format_version=1), "expected format_version 2, got 1; shard the source again with"),
        (changed(format_version=2.5), "expected format_version 2, got 2.5"),
        (without("manifest_sha256"), "expected manifest_sha256 .{64}, got None"),
        (changed(manifest_sha256="0" * 64), "damaged: expected manifest_sha256 .{64}, got '0{64}'"),
        (changed(seed=6), "was changed by hand or damaged: expected manifest_sha256"),
        (lambda text: text.replace("\n", "\r"), "was changed by hand or damaged after it was written"),
        (by_another_program(lambda content: None), "was changed by hand or damaged after it was written"),
        (by_another_program(lambda content: content.pop("classes")), "other fields than a manifest: .*classes"),
        (by_another_program(lambda content: content.update(extra=1)), "other fields than a manifest: .*extra"),
        (by_another_program(lambda content: content.update(shards=[1])), "other fields than a manifest"),
        (by_another_program(lambda content: content["shards"][0].update(name="../x.tar")), "00000.tar, got ../x.tar"),
        (by_another_program(lambda content: content["shards"][0].update(sha256="/x")), "64 digits 0..f, got '/x'"),
        (
            by_another_program(lambda content: content.update(num_samples=8)),
            "is 8, but samples_per_class sum to 7 and",
        ),
    ],
)
def test_a_broken_manifest_is_a_shard_error(tmp_path, change, message):
    write_shards(SOURCE, tmp_path)
    path = tmp_path / "manifest.json"
    path.write_bytes(change(path.read_text()).encode("utf-8", "surrogateescape"))
    with pytest.raises(ShardError, match=rf"manifest.json: .*{message}"):
        read_manifest(tmp_path)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    folder = tmp_path_factory.mktemp("set")
    write_shards(SOURCE, folder)
    return folder


@given(position=st.integers(0), byte=st.integers(0, 255))
def test_a_single_changed_byte_anywhere_is_found(whole, position, byte):
    path = whole / "manifest.json"
    whole_content = path.read_bytes()
    content = bytearray(whole_content)
    position %= len(content)
    assume(content[position] != byte)
    content[position] = byte
    path.write_bytes(content)
    try:
        with pytest.raises(ShardError, match=r"manifest.json: "):
            read_manifest(whole)
    finally:
        path.write_bytes(whole_content)


def test_the_hash_is_that_of_the_canonical_json_of_all_other_fields(whole):
    fields = json.loads((whole / "manifest.json").read_text())
    assert fields.pop("manifest_sha256") == canonical_hash(fields)
