"""Every kind of damage is found and named."""

import dataclasses
import hashlib
import io
import re
import shutil
import tarfile
from contextlib import contextmanager

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fdt_pipeline.shards import read_manifest, verify_shards, write_shards
from fdt_pipeline.shards.index import index_text
from fdt_pipeline.shards.tar import pack_checksums, sample_checksum
from fdt_pipeline.shards.verify import tar_samples
from fdt_pipeline.sources import ArraySource

SOURCE = ArraySource(np.random.default_rng(0).integers(0, 256, (12, 3, 2, 3), dtype=np.uint8), np.arange(12) % 3)


@pytest.fixture(scope="module", params=["raw", "png"])
def whole(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole") / request.param
    write_shards(SOURCE, folder, request.param, samples_per_shard=6)
    return folder


@pytest.fixture
def damaged(whole, tmp_path):
    """A copy to damage."""
    return shutil.copytree(whole, tmp_path / "copy")


def test_whole_shards_have_no_problems(whole):
    calls = []
    assert verify_shards(whole, lambda done, total: calls.append((done, total))) == []
    assert calls == [(6, 12), (12, 12)]


@contextmanager
def with_flipped_bit(path, bit):
    content = path.read_bytes()
    broken = bytearray(content)
    broken[bit // 8] ^= 1 << bit % 8
    path.write_bytes(broken)
    yield
    path.write_bytes(content)


@given(bit=st.integers(0))
@pytest.mark.parametrize("suffix", ["tar", "idx"])
def test_a_single_flipped_bit_anywhere_is_found(whole, suffix, bit):
    path = whole / f"shard-000001.{suffix}"
    with with_flipped_bit(path, bit % (8 * path.stat().st_size)):
        assert any(f"{path}: damaged: expected sha256" in problem for problem in verify_shards(whole))


@pytest.mark.parametrize("size", [0, 100, 512, 2000, -512])
def test_a_cut_tar_is_found(damaged, size):
    path = damaged / "shard-000000.tar"
    content = path.read_bytes()
    path.write_bytes(content[:size])
    problems = verify_shards(damaged)
    assert f"{path}: expected {len(content)} bytes, got {len(content[:size])}" in problems
    assert any(f"{path}: not a readable tar: cut at byte" in problem for problem in problems) or size == -512


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (lambda folder: (folder / "shard-000000.tar").unlink(), "shard-000000.tar: missing"),
        (lambda folder: (folder / "shard-000001.idx").unlink(), "shard-000001.idx: missing"),
        (lambda folder: (folder / "shard-000002.tar").touch(), "shard-000002.tar: not in the manifest; move it"),
        (lambda folder: (folder / "photos.TAR").touch(), "photos.TAR: not in the manifest; move it elsewhere or"),
        (lambda folder: (folder / "a.idx").touch(), "a.idx: not in the manifest; move it elsewhere or remove it"),
        (lambda folder: (folder / "manifest.json").write_text("{"), "manifest.json: Expecting property name"),
        (lambda folder: (folder / "manifest.json").unlink(), ": shards without manifest.json: writing them was inter"),
    ],
)
def test_files_that_are_missing_added_or_broken_are_named(damaged, change, expected):
    (damaged / "notes.txt").touch()
    change(damaged)
    problem, *others = verify_shards(damaged)
    assert problem.startswith(str(damaged))
    assert expected in problem
    assert bool(others) == ("tar: missing" in expected), "its samples are missing too"


@given(st.data())
def test_a_bit_that_flips_in_a_sample_is_found_there(whole, data):
    """Where only hashes of whole files were known, nobody could say which image it is."""
    path = whole / "shard-000001.tar"
    content = path.read_bytes()
    sample = data.draw(st.sampled_from(list(tar_samples(io.BytesIO(content), len(content)))))
    member = data.draw(st.sampled_from(sample.members))
    with with_flipped_bit(path, data.draw(st.integers(8 * member.offset, 8 * (member.offset + member.size) - 1))):
        of_samples = [problem for problem in verify_shards(whole) if ": sample " in problem]
    assert f"{path}: sample {sample.key}: its bytes are not those that were written (CRC-32)" in of_samples
    assert all(f": sample {sample.key}: " in problem for problem in of_samples)


Files = list[tuple[str, bytes]]


def rewrite(folder, change):
    """Change what shard-000000.tar holds and make hashes, index and sizes fit, as a faulty writer would."""
    path = folder / "shard-000000.tar"
    with tarfile.open(path) as tar:
        files = [(info.name, tar.extractfile(info).read()) for info in tar]
    content = io.BytesIO()
    with tarfile.open(fileobj=content, mode="w", format=tarfile.USTAR_FORMAT) as tar:
        for name, data in change(files):
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    path.write_bytes(content.getvalue())
    samples = list(tar_samples(io.BytesIO(content.getvalue()), len(content.getvalue())))
    index = index_text([sample.members for sample in samples]).encode()
    checksums = [sample_checksum(sample.data) for sample in samples] + [0] * 6
    path.with_suffix(".idx").write_bytes(index)
    manifest = read_manifest(folder)
    hashes = {
        "sha256": hashlib.sha256(content.getvalue()).hexdigest(),
        "index_sha256": hashlib.sha256(index).hexdigest(),
        "crc32": pack_checksums(checksums[:6]),
    }
    shard = dataclasses.replace(manifest.shards[0], num_bytes=len(content.getvalue()), **hashes)
    manifest = dataclasses.replace(manifest, shards=(shard, *manifest.shards[1:]))
    (folder / "manifest.json").write_text(manifest.to_json())


def with_first_label(label):
    return lambda files: [files[0], (files[1][0], label), *files[2:]]


@pytest.mark.parametrize(
    ("change", "messages"),
    [
        (lambda files: files, []),
        (with_first_label(b"3"), ["label 3 is out of range: expected 0..2", "class . .*expected 4 samples"]),
        (with_first_label(b"-1"), ["sample 0000000.: label -1 is out of range"]),
        (with_first_label(b"cat"), ["sample 0000000.: the .cls member holds b'cat', expected a class number"]),
        (lambda files: [(files[0][0], b"x"), *files[1:]], ["sample 0000000.: (not an npy file|broken png)"]),
        (lambda files: [*files[:2], *files], ["sample 0000000.: expected the members"]),
        (lambda files: [*files, *files[:2]], ["expected 6 samples, got 7", "sample 0000000.: the key occurs twice"]),
        (lambda files: [files[0], *files[2:], files[1]], ["occurs twice", "expected the members .* got 0000000..cls"]),
        (lambda files: files[2:], ["expected 6 samples, got 5", r"class \d \(\d\): expected 4 samples, got 3"]),
        (lambda files: [(files[2][0], files[2][1]), *files[1:]], ["expected the members"]),
        (
            lambda files: [("../" + files[0][0], files[0][1]), ("../" + files[1][0], files[1][1]), *files[2:]],
            [r"its member is called '../0000000\d.\w+': expected letters, digits, _, - and %"],
        ),
        (lambda files: [(files[0][0], files[2][1]), *files[1:]], ["mean and std of the pixels are not those"]),
    ],
)
def test_faults_of_content_are_found_even_where_the_hashes_fit(damaged, change, messages):
    rewrite(damaged, change)
    problems = verify_shards(damaged, decode=True)
    assert bool(problems) == bool(messages)
    for message in messages:
        assert any(re.search(message, problem) for problem in problems), problems


def test_an_image_of_another_shape_is_named(damaged):
    manifest = read_manifest(damaged)
    (damaged / "manifest.json").write_text(dataclasses.replace(manifest, shape=(2, 3, 3)).to_json())
    problems = verify_shards(damaged, decode=True)
    message = r"shard-000000.tar: sample \d{8}: expected an image of shape \[2, 3, 3\], got \[3, 2, 3\]"
    assert len([problem for problem in problems if re.search(message, problem)]) == 6


def test_an_index_of_another_tar_is_found(damaged):
    """The manifest has the hash of the wrong index."""
    manifest = read_manifest(damaged)
    first, second = manifest.shards
    shutil.copy(damaged / second.index_name, damaged / first.index_name)
    swapped = (dataclasses.replace(first, index_sha256=second.index_sha256), second)
    (damaged / "manifest.json").write_text(dataclasses.replace(manifest, shards=swapped).to_json())
    expected = f"{damaged}/shard-000000.idx: does not say where the samples of shard-000000.tar are"
    assert verify_shards(damaged) == [expected]
