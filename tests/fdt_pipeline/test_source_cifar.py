"""CIFAR-10 and CIFAR-100, binary and pickled, written here as the official files are."""

from __future__ import annotations

import os
import pickle
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest

from fdt_pipeline.sources import open_source, source_splits
from fdt_pipeline.sources.cifar import CIFAR100

FILES = {
    "cifar10": {**{f"data_batch_{i}": 20 for i in range(1, 6)}, "test_batch": 30},
    "cifar100": {"train": 200, "test": 100},
}


class Python2Pickler(pickle._Pickler):  # type: ignore[name-defined]
    """Writes what Python 2 wrote with protocol 2: byte strings, 0 and 1 for flags, NumPy's old module names."""

    dispatch: ClassVar[dict[type, Any]] = dict(pickle._Pickler.dispatch)  # type: ignore[attr-defined]

    def save_string(self, value: bytes | str) -> None:
        data = value.encode("latin1") if isinstance(value, str) else value
        self.write(pickle.BINSTRING + struct.pack("<i", len(data)) + data)
        self.memoize(value)

    def save_flag(self, value: bool) -> None:
        self.write(pickle.BININT1 + bytes([value]))

    def save_global(self, value: Any, name: str | None = None) -> None:
        if getattr(value, "__name__", "") == "_reconstruct":
            self.write(b"cnumpy.core.multiarray\n_reconstruct\n")
            self.memoize(value)
        else:
            super().save_global(value, name)

    dispatch[bytes] = dispatch[str] = save_string
    dispatch[bool] = save_flag
    dispatch[type(np.zeros(0).__reduce__()[0])] = save_global
    dispatch[type(os.getcwd)] = save_global


def dump_python2(content: Any, path: Path) -> None:
    with path.open("wb") as file:
        Python2Pickler(file, 2).dump(content)


def dump_python3(content: Any, path: Path) -> None:
    path.write_bytes(pickle.dumps(content, pickle.HIGHEST_PROTOCOL))


def dump_python3_as_2(content: Any, path: Path) -> None:
    path.write_bytes(pickle.dumps({key.encode(): value for key, value in content.items()}, 2))


def rows(kind: str, name: str) -> tuple[np.ndarray, np.ndarray]:
    """(planes u8[n 3072], labels u8[n]): random, but the same for the same file name."""
    count = FILES[kind][name]
    generator = np.random.default_rng(sum(name.encode()))
    return generator.integers(0, 256, (count, 3072), dtype=np.uint8), np.arange(count, dtype=np.uint8) % int(kind[5:])


def write_binary(folder: Path, kind: str) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for name in FILES[kind]:
        planes, labels = rows(kind, name)
        coarse = [labels[:, None] // 5] if kind == "cifar100" else []
        np.concatenate([*coarse, labels[:, None], planes], axis=1).tofile(folder / f"{name}.bin")
    return folder


def write_pickled(folder: Path, kind: str, dump: Callable[[Any, Path], None]) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    key = "labels" if kind == "cifar10" else "fine_labels"
    for name in FILES[kind]:
        planes, labels = rows(kind, name)
        dump({"data": planes, key: labels.tolist(), "batch_label": "one of five"}, folder / name)
    return folder


def expected(kind: str, split: str) -> tuple[np.ndarray, np.ndarray]:
    """(images u8[n 32 32 3], labels), by the definition of the format."""
    names = [name for name in FILES[kind] if name.startswith("test") == (split == "test")]
    planes, labels = zip(*(rows(kind, name) for name in names), strict=True)
    red, green, blue = np.split(np.concatenate(planes), 3, axis=1)
    return np.stack([red, green, blue], axis=-1).reshape(-1, 32, 32, 3), np.concatenate(labels)


def assert_holds(path: Path, kind: str) -> None:
    assert source_splits(path) == ("train", "test")
    for split in ("train", "test"):
        source = open_source(path, split=split)
        images, labels = expected(kind, split)
        assert (source.kind, source.shape) == (kind, (32, 32, 3))
        np.testing.assert_array_equal(np.stack([source[i].image for i in range(len(source))]), images)
        assert [source[i].label for i in range(len(source))] == source.labels.tolist() == labels.tolist()
        assert source[0].image.flags.c_contiguous


@pytest.mark.parametrize("parent", [False, True])
@pytest.mark.parametrize(("kind", "name"), [("cifar10", "cifar-10-batches-bin"), ("cifar100", "cifar-100-binary")])
def test_binary_files_hold_the_images(tmp_path: Path, kind: str, name: str, parent: bool) -> None:
    folder = write_binary(tmp_path / name, kind)
    assert_holds(tmp_path if parent else folder, kind)


@pytest.mark.parametrize("dump", [dump_python2, dump_python3, dump_python3_as_2])
@pytest.mark.parametrize(("kind", "name"), [("cifar10", "cifar-10-batches-py"), ("cifar100", "cifar-100-python")])
def test_pickles_of_every_age_hold_the_images(tmp_path: Path, kind: str, name: str, dump: Any) -> None:
    assert_holds(write_pickled(tmp_path / name, kind, dump), kind)
    assert_holds(tmp_path, kind)


def test_the_python_2_pickle_is_one(tmp_path: Path) -> None:
    """Guards the test above: without latin1, Python 3 reads its byte strings as bytes and refuses them as text."""
    write_pickled(tmp_path, "cifar10", dump_python2)
    content = (tmp_path / "test_batch").read_bytes()
    assert b"numpy.core.multiarray\n_reconstruct" in content
    assert b"_codecs" not in content
    with pytest.raises(UnicodeDecodeError):
        pickle.loads(content)


def test_official_class_names_are_used_when_there_is_no_file(tmp_path: Path) -> None:
    write_binary(tmp_path / "cifar-10-batches-bin", "cifar10")
    write_binary(tmp_path / "cifar-100-binary", "cifar100")
    assert open_source(tmp_path, "cifar10", "test").classes[3] == "cat"
    assert open_source(tmp_path, "cifar100", "test").classes[99] == "worm"


def test_the_hundred_names_are_distinct_and_sorted_as_their_labels_are() -> None:
    assert len(set(CIFAR100)) == 100
    assert list(CIFAR100) == sorted(CIFAR100)


@pytest.mark.parametrize(("kind", "name"), [("cifar10", "batches.meta.txt"), ("cifar100", "fine_label_names.txt")])
@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_a_line_of_a_text_file_is_a_name_that_may_hold_blanks(tmp_path: Path, kind: str, name: str, end: str) -> None:
    names = [f"class number {i}" for i in range(int(kind[5:]))]
    (write_binary(tmp_path, kind) / name).write_bytes(end.join([*names, "", ""]).encode())
    assert open_source(tmp_path, split="test").classes == tuple(names)


@pytest.mark.parametrize("dump", [dump_python2, dump_python3])
@pytest.mark.parametrize(
    ("kind", "name", "key"), [("cifar10", "batches.meta", "label_names"), ("cifar100", "meta", "fine_label_names")]
)
def test_names_of_a_pickled_file_are_read(tmp_path: Path, kind: str, name: str, key: str, dump: Any) -> None:
    names = [f"name{i}" for i in range(int(kind[5:]))]
    dump({key: names}, write_pickled(tmp_path, kind, dump) / name)
    assert open_source(tmp_path, split="test").classes == tuple(names)


def changed(path: Path, position: int, byte: int) -> None:
    content = bytearray(path.read_bytes())
    content[position] = byte
    path.write_bytes(content)


@pytest.mark.parametrize(
    ("name", "damage", "message"),
    [
        ("batches.meta.txt", lambda path: path.write_text("cat\ndog\n"), "expected 10 class names, got 2"),
        (
            "batches.meta.txt",
            lambda path: path.write_bytes(b"cat\nd\xf6g\n"),
            "batches.meta.txt: expected class names in ASCII, got byte 246 at position 5",
        ),
        (
            "data_batch_2.bin",
            lambda path: path.write_bytes(path.read_bytes()[:-1]),
            "data_batch_2.bin: the file is cut short: expected a multiple of 3073 bytes, at least 61460, got 61459",
        ),
        ("data_batch_3.bin", lambda path: path.unlink(), "data_batch_3.bin: the file is missing"),
        (
            "data_batch_4.bin",
            lambda path: changed(path, 3073 * 7, 10),
            "data_batch_4.bin: label 10 at index 7 is out of range: expected 0..9",
        ),
    ],
)
def test_a_broken_binary_file_is_named(
    tmp_path: Path, name: str, damage: Callable[[Path], object], message: str
) -> None:
    damage(write_binary(tmp_path, "cifar10") / name)
    with pytest.raises(ValueError, match=message):
        open_source(tmp_path, split="train")


class Evil:
    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, ("true",)


def test_a_pickle_that_would_run_code_is_refused_by_name(tmp_path: Path) -> None:
    write_pickled(tmp_path, "cifar10", dump_python2)
    (tmp_path / "test_batch").write_bytes(pickle.dumps({"data": Evil()}, 2))
    with pytest.raises(ValueError, match=r"test_batch: refused to unpickle: it refers to posix.system"):
        open_source(tmp_path, split="test")


class Calls:
    """Pickles as the call of a function with arguments."""

    def __init__(self, function: Any, *arguments: Any, state: Any = None) -> None:
        self.call = (function, arguments) if state is None else (function, arguments, state)

    def __reduce__(self) -> tuple[Any, ...]:
        return self.call


RECONSTRUCT = np.zeros(0).__reduce__()[0]
OVER_POINTERS = Calls(np.ndarray, (4,), np.dtype("O"), b"ABCDEFGH" * 4)
ATTACKS = {
    "an array over pointers": (OVER_POINTERS, "it holds an array of dtype 'O8?'"),
    "numpy.ndarray itself": (Calls(np.ndarray, (4,)), "it calls numpy.ndarray, which no array needs"),
    "objects by their state": (np.array([None, 1], object), "it holds an array of dtype 'O8?'"),
    "objects in a record": (np.zeros(2, [("x", object)]), "it holds an array of dtype 'V8'"),
    "a dtype with changed flags": (
        Calls(np.dtype, "O", state=(3, "|", None, None, None, -1, -1, 0)),
        "it holds an array of dtype 'O'",
    ),
    "fields by the dtype's state": (
        Calls(np.dtype, "u8", state=(3, "|", None, ("x",), {"x": 0}, 8, 1, 0)),
        "it holds an array of a dtype with fields",
    ),
    "an array that is its own memory": (
        Calls(RECONSTRUCT, np.ndarray, (0,), b"b", state=(1, (1,), np.dtype("u1"), False, [1])),
        "it makes an array of list, expected bytes",
    ),
    "a subclass": (Calls(RECONSTRUCT, np.dtype, (0,), b"b"), "it makes an array of a type that is not numpy.ndarray"),
    "a changed function": (Calls(RECONSTRUCT, np.ndarray, (0,), b"b", state={"x": 1}), "broken pickle"),
}


def protocol_2(content: Any) -> bytes:
    return pickle.dumps(content, 2)


@pytest.mark.parametrize("attack", ATTACKS)
@pytest.mark.parametrize("place", ["data", "labels", "a list of labels", "label_names", "a key of its own"])
def test_an_attack_by_numpy_is_refused_wherever_it_is(tmp_path: Path, attack: str, place: str) -> None:
    evil, message = ATTACKS[attack]
    write_pickled(tmp_path, "cifar10", dump_python3)
    content = {"data": np.zeros((1, 3072), np.uint8), "labels": [0], "label_names": [evil]}
    content |= {"a list of labels": {"labels": [evil]}}.get(place, {place: evil})
    name = "batches.meta" if place == "label_names" else "test_batch"
    if place != "label_names":
        del content["label_names"]
    (tmp_path / name).write_bytes(protocol_2(content))
    with pytest.raises(ValueError, match=f"{name}: .*{message}"):
        open_source(tmp_path, split="test")


@pytest.mark.parametrize("opcode", [b"}b", b"N}U\x01xK\x01s\x86b"])
def test_a_pickle_cannot_change_what_the_next_one_uses(tmp_path: Path, opcode: bytes) -> None:
    """BUILD on a global: it would set attributes of a function that is shared."""
    write_pickled(tmp_path, "cifar10", dump_python2)
    (tmp_path / "test_batch").write_bytes(b"\x80\x02cnumpy\ndtype\n" + opcode + b".")
    with pytest.raises(ValueError, match=r"refused to unpickle: it changes numpy.dtype, which no array needs"):
        open_source(tmp_path, split="test")


def test_numpy_ndarray_cannot_be_made_by_newobj(tmp_path: Path) -> None:
    write_pickled(tmp_path, "cifar10", dump_python2)
    (tmp_path / "test_batch").write_bytes(b"\x80\x02cnumpy\nndarray\nK\x04\x85\x81.")
    with pytest.raises(ValueError, match=r"test_batch: (refused to unpickle|broken pickle)"):
        open_source(tmp_path, split="test")


@pytest.mark.parametrize("label", [2**70, -1, 100, 2**20_000], ids=["70 bits", "-1", "100", "20,000 bits"])
def test_a_pickled_label_of_any_size_is_refused(tmp_path: Path, label: int) -> None:
    content = {"data": np.zeros((2, 3072), np.uint8), "labels": [0, label]}
    dump_python3(content, write_pickled(tmp_path, "cifar10", dump_python3) / "test_batch")
    with pytest.raises(ValueError, match=r"test_batch: the label at index 1 is out of range: expected 0..99"):
        open_source(tmp_path, split="test")


class OddCodec:
    def __reduce__(self) -> tuple[Any, ...]:
        import codecs

        return codecs.encode, ("text", "rot13")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (pickle.dumps({"data": OddCodec()}, 2), "encoding 'rot13' is not allowed"),
        (b"no pickle", "broken pickle|refused to unpickle"),
        (pickle.dumps({"data": np.zeros((2, 3072), np.uint8), "labels": [0, 1]}, 2)[:-100], "pickle"),
        (pickle.dumps([1], 2), "expected a pickled dict, got list"),
        (pickle.dumps({"data": np.zeros((2, 3072)), "labels": [0, 1]}, 2), r"expected data to be uint8.*float64"),
        (
            pickle.dumps({"data": np.zeros((2, 5), np.uint8), "labels": [0, 1]}, 2),
            r"shape \[n 3072\], got uint8 \[2, 5\]",
        ),
        (pickle.dumps({"data": np.zeros((2, 3072), np.uint8)}, 2), "expected a list of integers under labels"),
        (
            pickle.dumps({"data": np.zeros((2, 3072), np.uint8), "labels": [0]}, 2),
            "expected 2 labels, one an image, got 1",
        ),
    ],
)
def test_a_broken_pickle_is_named(tmp_path: Path, content: bytes, message: str) -> None:
    (write_pickled(tmp_path, "cifar10", dump_python2) / "test_batch").write_bytes(content)
    with pytest.raises(ValueError, match=f"test_batch: .*({message})"):
        open_source(tmp_path, split="test")


def test_a_names_pickle_without_names_is_refused(tmp_path: Path) -> None:
    dump_python3({"other": 1}, write_pickled(tmp_path, "cifar10", dump_python3) / "batches.meta")
    with pytest.raises(ValueError, match="expected a list of class names under label_names"):
        open_source(tmp_path, split="test")
