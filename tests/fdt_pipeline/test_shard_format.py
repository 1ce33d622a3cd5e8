"""The parts of the format: tars are tarfile's, the index is DALI's, keys are short, plain and different."""

import io
import re
import tarfile

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fdt_pipeline.shards.index import IndexColumns, Member, index_columns, index_text, read_labels
from fdt_pipeline.shards.key import needs_mapping, sample_key, source_key_of
from fdt_pipeline.shards.tar import TarShard, ustar_header
from fdt_pipeline.shards.verify import tar_samples

NAMES = st.from_regex(r"[A-Za-z0-9_%-]{1,80}\.[a-z]{1,5}", fullmatch=True)
FILES = st.lists(st.binary(max_size=1500), max_size=8)
POSITIONS = st.integers(0, 10**9)


def written(files):
    file = io.BytesIO()
    tar = TarShard(file)
    for number, data in enumerate(files):
        tar.add(f"{number:08d}", {"npy": data, "cls": b"1"})
    tar.close()
    return file.getvalue(), tar


@given(NAMES, st.integers(0, 8**11 - 1))
def test_a_header_is_the_one_that_tarfile_writes(name, size):
    info = tarfile.TarInfo(name)
    info.size = size
    assert ustar_header(name.encode(), size) == info.tobuf(tarfile.USTAR_FORMAT)


@given(FILES)
def test_a_tar_is_the_one_that_tarfile_writes_and_is_read_as_it_was_written(files):
    theirs = io.BytesIO()
    with tarfile.TarFile(fileobj=theirs, mode="w", format=tarfile.USTAR_FORMAT) as tar:
        for number, data in enumerate(files):
            for extension, content in (("npy", data), ("cls", b"1")):
                info = tarfile.TarInfo(f"{number:08d}.{extension}")
                info.size = len(content)
                tar.addfile(info, io.BytesIO(content))
    data, shard = written(files)
    assert data == theirs.getvalue()
    samples = list(tar_samples(io.BytesIO(data), len(data)))
    assert [(sample.key, sample.data) for sample in samples] == [(f"{i:08d}", [f, b"1"]) for i, f in enumerate(files)]
    assert index_text([sample.members for sample in samples]).encode() == shard.index


@given(FILES.filter(bool))
def test_the_size_of_a_tar_is_known_before_a_sample_is_added(files):
    data, _ = written(files)
    unfinished = TarShard(io.BytesIO())
    for number, content in enumerate(files[:-1]):
        unfinished.add(f"{number:08d}", {"npy": content, "cls": b"1"})
    assert unfinished.size_with({"npy": files[-1], "cls": b"1"}) == len(data)
    assert len(data) % 10_240 == 0


def with_size(data, size):
    """Another size in the first header, which has its checksum right."""
    header = bytearray(data[:512])
    header[124:136] = size.ljust(12, b"\0")
    header[148:156] = b" " * 8
    header[148:156] = b"%06o\0 " % sum(header)
    return bytes(header) + data[512:]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda data: data[:700], "cut at byte 700, in or after 00000000.npy"),
        (lambda data: data[:514], "cut at byte 514, in 00000000.npy"),
        (lambda data: b"x" + data[1:], "not a tar: it begins with b'x0000000.npy"),
        (lambda data: data[:1024] + b"\1" * 512 + data[1536:], "no header of a member at byte 1024, after 00000000.n"),
        (lambda data: b"", "cut at byte 0, in or after its beginning"),
        (lambda data: with_size(data, b"-0000001000"), "the header at byte 0 has no size, but b'-0000001000"),
        (lambda data: data[:-1] + b"x", "there is more after its end"),
    ],
)
def test_a_broken_tar_is_named_with_the_place(change, message):
    data = change(written([b"abc", b"def"])[0])
    with pytest.raises(ValueError, match=message):
        list(tar_samples(io.BytesIO(data), len(data)))


def test_what_a_header_has_no_room_for_is_refused():
    with pytest.raises(ValueError, match="a name of 100 bytes and 8 GiB, got 101 bytes and 3"):
        ustar_header(b"x" * 101, 3)
    with pytest.raises(ValueError, match="got 1 bytes and 8589934592"):
        ustar_header(b"x", 8**11)


@given(st.lists(st.tuples(st.integers(1, 900), st.integers(1, 5)), min_size=1, max_size=9))
def test_the_columns_of_an_index_are_its_members(sizes):
    samples = [
        [Member("npy", 2000 * i, image, f"{i}.npy"), Member("cls", 2000 * i + image, label, f"{i}.cls")]
        for i, (image, label) in enumerate(sizes)
    ]
    columns = index_columns(index_text(samples), ("npy", "png"), 2000 * len(samples))
    images = zip(columns.image_offsets, columns.image_sizes, columns.names, strict=True)
    labels = zip(columns.label_offsets, columns.label_sizes, strict=True)
    assert list(images) == [sample[0][1:] for sample in samples]
    assert list(labels) == [sample[1][1:3] for sample in samples]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "expected 'v1.2' and the number of lines"),
        ("v1.1 1\ncls 512 1 0.cls\n", "expected 'v1.2' and the number of lines that follow, got 'v1.1 1', 1"),
        ("v1.2 2\ncls 512 1 0.cls\n", "expected 'v1.2' and the number of lines that follow, got 'v1.2 2', 1"),
        ("v1.2 1\ncls 512 1 0.cls", "expected 'v1.2'"),
        ("v1.2 1\ncls 512 1\n", "expected EXTENSION OFFSET SIZE NAME twice in each line"),
        ("v1.2 1\nnpy 512 1 a.npy\n", "expected EXTENSION OFFSET SIZE NAME twice in each line"),
        ("v1.2 1\nnpy x 1 a.npy cls 1536 1 a.cls\n", "invalid literal"),
        (f"v1.2 1\nnpy {2**64} 1 a.npy cls 1536 1 a.cls\n", "expected offsets and sizes of up to 64 bits"),
        ("v1.2 1\nnpy 2048 1 a.npy cls 1536 1 a.cls\n", "expected each member behind the one before, .* got npy 2048"),
        ("v1.2 1\njpg 512 1 a.jpg cls 1536 1 a.cls\n", r"expected the members .npy and .cls, got cls, jpg"),
        ("v1.2 1\nnpy 512 1 a.npy txt 1536 1 a.txt\n", r"expected the members .npy and .cls, got npy, txt"),
    ],
)
def test_a_text_that_is_no_index_of_images_and_labels_is_refused(text, message):
    with pytest.raises(ValueError, match=message):
        index_columns(text, ("npy",), 1 << 20)


def labels_in(texts, num_classes):
    """The labels of samples without images whose .cls members hold these texts."""
    sizes = np.array([len(text) for text in texts])
    offsets, nothing = np.cumsum([0, *(sizes + 1)[:-1]]), np.zeros_like(sizes)
    names = [f"{i}.npy" for i in range(len(texts))]
    samples = IndexColumns(nothing, nothing, offsets, sizes, ["npy"] * len(texts), names)
    labels, bad = read_labels(np.frombuffer(b"/".join(texts) + b"/", np.uint8), samples, num_classes)
    return labels.tolist(), bad


@given(st.lists(st.integers(0, 10**9 - 1), min_size=1, max_size=50))
def test_labels_are_parsed_as_int_does(labels):
    assert labels_in([str(label).encode() for label in labels], 10**9) == (labels, {})


@pytest.mark.parametrize("text", [b"", b"-1", b"1.", b" 1", b"1\n", b"\xb2", b"1234567890", b"20"])
def test_a_label_that_is_no_class_is_named(text):
    labels, bad = labels_in([b"12", text, b"19"], 20)
    assert labels[::2] == [12, 19]
    assert bad == {1: f"the .cls member holds {text!r}, expected a class number below 20"}


@pytest.mark.parametrize(
    ("position", "source_key", "expected"),
    [
        (12, "12", "00000012"),
        (12, "", "00000012"),
        (12, "7", "00000012_7"),
        (3, "cat/a b.png", "00000003_cat%2Fa%20b%2Epng"),
        (3, "Größe-1", "00000003_Gr%C3%B6%C3%9Fe-1"),
        (123456789, "x", "123456789_x"),
        (3, "a~b", "00000003_a%7Eb"),
        (0, "a" * 50 + "b" * 50, "00000000_" + "a" * 21 + "b" * 50),
        (0, "." + "b" * 69, "00000000_" + "b" * 69),
        (0, "." + "b" * 68, "00000000_%2E" + "b" * 68),
    ],
)
def test_the_rule_of_keys(position, source_key, expected):
    assert sample_key(position, source_key) == expected


@given(st.text(), st.text(), POSITIONS, POSITIONS)
def test_keys_are_short_plain_and_different(first, second, i, j):
    key = sample_key(i, first)
    assert re.fullmatch(r"\d{8,}(_([A-Za-z0-9_-]|%[0-9A-F]{2})*)?", key)
    assert len(key) <= 80
    assert i == j or key != sample_key(j, second)


@given(POSITIONS, st.text(st.characters(exclude_categories=["Cs"]), max_size=6))
def test_the_source_key_can_be_read_off_a_key_that_was_not_cut(position, source_key):
    if source_key not in ("", str(position)):
        assert source_key_of(sample_key(position, source_key)) == source_key


@pytest.mark.parametrize(
    ("source_key", "expected"),
    [
        *((key, False) for key in ("cat/IMG_1.JPG", "12", "")),
        *((key, True) for key in ("cat/a.b.jpg", "cat/a b.jpg", "Größe", "a" * 300, "\udcff.jpg")),
    ],
)
def test_the_manifest_maps_keys_that_were_cut_or_hold_odd_characters(source_key, expected):
    assert needs_mapping(sample_key(12, source_key), source_key) is expected
