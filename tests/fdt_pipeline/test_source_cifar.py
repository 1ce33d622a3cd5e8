"""CIFAR-10 and CIFAR-100, binary and pickled, written here as the official files are."""

import codecs
import os
import pickle
import struct
from functools import partial

import numpy as np
import pytest

from fdt_pipeline.sources import open_source, source_splits

FILES = {
    "cifar10": {**{f"data_batch_{i}": 20 for i in range(1, 6)}, "test_batch": 30},
    "cifar100": {"train": 200, "test": 100},
}


def python2(content):
    """What Python 2 wrote with protocol 2: byte strings, which are no text without latin1, and NumPy's old names."""
    return b"\x80\x02" + python2_opcodes(content) + b"."


def python2_opcodes(value):
    """The opcodes of a dict, list, string, whole number or u8[n m]."""
    if isinstance(value, int):
        return b"J" + struct.pack("<i", value)
    if isinstance(value, str | bytes):
        return b"T" + struct.pack("<i", len(value)) + (value if isinstance(value, bytes) else value.encode("latin1"))
    if isinstance(value, list):
        return b"](" + b"".join(map(python2_opcodes, value)) + b"e"
    if isinstance(value, dict):
        return b"}(" + b"".join(python2_opcodes(part) for item in value.items() for part in item) + b"u"
    array = b"cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\0\x85U\1b\x87R"
    dtype = b"cnumpy\ndtype\nU\2u1K\0K\1\x87R(K\3U\1|NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\0tb"
    shape = b"".join(map(python2_opcodes, value.shape)) + b"\x86"
    return array + b"(K\1" + shape + dtype + b"K\0" + python2_opcodes(value.tobytes()) + b"tb"


def python3(content):
    return pickle.dumps(content, pickle.HIGHEST_PROTOCOL)


def python3_as_2(content):
    return pickle.dumps({key.encode(): value for key, value in content.items()}, 2)


DUMPS = (python2, python3, python3_as_2)


def rows(kind, name):
    """(planes u8[n 3072], labels u8[n]): random, but the same for the same file name."""
    count = FILES[kind][name]
    generator = np.random.default_rng(sum(name.encode()))
    return generator.integers(0, 256, (count, 3072), dtype=np.uint8), np.arange(count, dtype=np.uint8) % int(kind[5:])


def write_binary(folder, kind):
    folder.mkdir(parents=True, exist_ok=True)
    for name in FILES[kind]:
        planes, labels = rows(kind, name)
        coarse = [labels[:, None] // 5] if kind == "cifar100" else []
        np.concatenate([*coarse, labels[:, None], planes], axis=1).tofile(folder / f"{name}.bin")
    return folder


def write_pickled(folder, kind, dump):
    folder.mkdir(parents=True, exist_ok=True)
    key = "labels" if kind == "cifar10" else "fine_labels"
    for name in FILES[kind]:
        planes, labels = rows(kind, name)
        (folder / name).write_bytes(dump({"data": planes, key: labels.tolist(), "batch_label": "one of five"}))
    return folder


def expected(kind, split):
    """(images u8[n 32 32 3], labels), by the definition of the format."""
    names = [name for name in FILES[kind] if name.startswith("test") == (split == "test")]
    planes, labels = zip(*(rows(kind, name) for name in names), strict=True)
    red, green, blue = np.split(np.concatenate(planes), 3, axis=1)
    return np.stack([red, green, blue], axis=-1).reshape(-1, 32, 32, 3), np.concatenate(labels)


@pytest.mark.parametrize(
    ("kind", "name", "write"),
    [
        ("cifar10", "cifar-10-batches-bin", write_binary),
        ("cifar100", "cifar-100-binary", write_binary),
        *(("cifar10", "cifar-10-batches-py", partial(write_pickled, dump=dump)) for dump in DUMPS),
        *(("cifar100", "cifar-100-python", partial(write_pickled, dump=dump)) for dump in DUMPS),
    ],
)
def test_binary_files_and_pickles_of_every_age_hold_the_images(tmp_path, kind, name, write):
    folder = write(tmp_path / name, kind)
    assert source_splits(folder) == ("train", "test")
    for path, split in ((tmp_path, "train"), (folder, "test")):
        source = open_source(path, split=split)
        images, labels = expected(kind, split)
        assert (source.kind, source.shape) == (kind, (32, 32, 3))
        np.testing.assert_array_equal(np.stack([source[i].image for i in range(len(source))]), images)
        assert [source[i].label for i in range(len(source))] == source.labels.tolist() == labels.tolist()
        assert source[0].image.flags.c_contiguous


@pytest.mark.parametrize(("kind", "last"), [("cifar10", "truck"), ("cifar100", "worm")])
def test_classes_have_their_official_names(tmp_path, kind, last):
    classes = open_source(write_binary(tmp_path, kind), split="test").classes
    assert (len(set(classes)), classes[-1]) == (int(kind[5:]), last)
    assert classes == tuple(sorted(classes)), "as their labels are"


def with_byte(position, byte):
    return lambda data: data[:position] + bytes([byte]) + data[position + 1 :]


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("data_batch_2.bin", lambda data: data[:-1], "cut short: .* multiple of 3073 bytes, at least 61460, got 61459"),
        ("data_batch_3.bin", lambda _: None, "the file is missing"),
        ("data_batch_4.bin", with_byte(3073 * 7, 10), "label 10 at index 7 is out of range: expected 0..9"),
    ],
)
def test_a_broken_binary_file_is_named(tmp_path, name, change, message):
    path = write_binary(tmp_path, "cifar10") / name
    data = change(path.read_bytes() if path.exists() else b"")
    path.write_bytes(data) if data else path.unlink()
    with pytest.raises(ValueError, match=f"{name}: .*{message}"):
        open_source(tmp_path, split="train")


class Calls:
    """Pickles as the call of a function with arguments."""

    def __init__(self, function, *arguments, state=None):
        self.call = (function, arguments) if state is None else (function, arguments, state)

    def __reduce__(self):
        return self.call


RECONSTRUCT = np.zeros(0).__reduce__()[0]
OVER_POINTERS = Calls(np.ndarray, (4,), np.dtype("O"), b"ABCDEFGH" * 4)
ATTACKS = {
    "a call of the system": (Calls(os.system, "true"), "refused to unpickle: it refers to posix.system"),
    "an odd codec": (Calls(codecs.encode, "text", "rot13"), "encoding 'rot13' is not allowed"),
    "an array over pointers": (OVER_POINTERS, "it holds an array of dtype 'O8?'"),
    "numpy.ndarray itself": (Calls(np.ndarray, (4,)), "it calls numpy.ndarray, which no array needs"),
    "objects by their state": (np.array([None, 1], object), "it holds an array of dtype 'O8?'"),
    "objects in a record": (np.zeros(2, [("x", object)]), "it holds an array of dtype 'V8'"),
    "a dtype with changed flags": (
        Calls(np.dtype, "O", state=(3, "|", None, None, None, -1, -1, 0)),
        "it holds an array of dtype 'O'",
    ),
    "fields by the dtype's state": (
        Calls(np.dtype, "u1", state=(3, "|", None, ("x",), {"x": 0}, 8, 1, 0)),
        "it holds an array of a dtype with fields",
    ),
    "an array that is its own memory": (
        Calls(RECONSTRUCT, np.ndarray, (0,), b"b", state=(1, (1,), np.dtype("u1"), False, [1])),
        "it makes an array of list, expected bytes",
    ),
    "a subclass": (Calls(RECONSTRUCT, np.dtype, (0,), b"b"), "it makes an array of a type that is not numpy.ndarray"),
    "a changed function": (Calls(RECONSTRUCT, np.ndarray, (0,), b"b", state={"x": 1}), "broken pickle"),
}


@pytest.mark.parametrize("attack", ATTACKS)
@pytest.mark.parametrize("place", ["data", "labels", "other"])
def test_an_attack_is_refused_wherever_it_is(tmp_path, attack, place):
    evil, message = ATTACKS[attack]
    content = {"data": np.zeros((1, 3072), np.uint8), "labels": [0], place: [evil] if place == "labels" else evil}
    (write_pickled(tmp_path, "cifar10", python3) / "test_batch").write_bytes(pickle.dumps(content, 2))
    with pytest.raises(ValueError, match=f"test_batch: .*{message}"):
        open_source(tmp_path, split="test")


def of_two(**changed):
    """A pickle of two images and labels, but for what has changed; None takes a key out."""
    content = {"data": np.zeros((2, 3072), np.uint8), "labels": [0, 1], **changed}
    return pickle.dumps({key: value for key, value in content.items() if value is not None}, 2)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        # BUILD on a global would set attributes of a function that the next pickle uses.
        (b"\x80\x02cnumpy\ndtype\n}b.", "refused to unpickle: it changes a function, which no array needs"),
        (b"\x80\x02cnumpy\ndtype\nN}U\x01xK\x01s\x86b.", "refused to unpickle: it changes a function, which no"),
        (b"\x80\x02cnumpy\nndarray\nK\x04\x85\x81.", "refused to unpickle|broken pickle"),  # by NEWOBJ
        (b"no pickle", "broken pickle|refused to unpickle"),
        (of_two()[:-100], "pickle"),
        (pickle.dumps([1], 2), "expected a pickled dict, got list"),
        (of_two(data=np.zeros((2, 3072))), "it holds an array of dtype 'f8', expected 'u1'"),
        (of_two(data=[1]), r"expected data to be uint8 of shape .*, got list"),
        (of_two(data=np.zeros((2, 5), np.uint8)), r"shape \[n 3072\], got \[2, 5\]"),
        (of_two(labels=None), "expected a list of integers under labels"),
        (of_two(labels=[0]), "expected 2 labels, one an image, got 1"),
        *(
            (of_two(labels=[0, label]), "the label at index 1 is out of range: expected 0..9;")
            for label in (-1, 10, 2**70, 2**20_000)
        ),
    ],
)
def test_a_broken_pickle_is_named(tmp_path, content, message):
    (write_pickled(tmp_path, "cifar10", python2) / "test_batch").write_bytes(content)
    with pytest.raises(ValueError, match=f"test_batch: .*({message})"):
        open_source(tmp_path, split="test")


@pytest.mark.parametrize(
    ("kind", "name", "key"),
    [
        *(("cifar10", "batches.meta.txt", end) for end in ("\n", "\r\n")),
        ("cifar100", "fine_label_names.txt", "\n"),
        ("cifar10", "batches.meta", "label_names"),
        ("cifar100", "meta", "fine_label_names"),
    ],
)
def test_class_names_of_a_file_are_read_and_must_be_all_there_are(tmp_path, kind, name, key):
    names = [f"class number {i}" for i in range(int(kind[5:]))]
    is_text = name.endswith(".txt")
    path = (write_binary(tmp_path, kind) if is_text else write_pickled(tmp_path, kind, python2)) / name

    def store(names):
        path.write_bytes(key.join([*names, "", ""]).encode() if is_text else python2({key: names}))

    store(names)
    assert open_source(tmp_path, split="test").classes == tuple(names)
    store(names[:2])
    with pytest.raises(ValueError, match=f"{name}: expected {len(names)} class names, got 2; fetch it again"):
        open_source(tmp_path, split="test")
