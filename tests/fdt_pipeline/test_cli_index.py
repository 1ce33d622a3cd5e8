"""`fdt-pipeline index`: the indexes of tars of any origin are those of DALI's wds2idx, and broken tars get none."""

from __future__ import annotations

import gzip
import importlib
import io
import json
import os
import random
import subprocess
import sys
import tarfile
import tracemalloc
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest

from fdt_pipeline.cli import main
from fdt_pipeline.shards import write_shards
from fdt_pipeline.shards.index import parse_index
from fdt_pipeline.shards.indexing import escaped, index_tar, readable
from fdt_pipeline.shards.tar import ustar_header
from fdt_pipeline.sources import ArraySource
from tests.peers import peer

LONG = "n" * 130


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Tests name tars as a user does who stands beside them."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def index(*arguments: object) -> int:
    return main(["index", *map(str, arguments)])


def write_tar(name: str, members: Sequence[tuple[str, bytes]], form: int = tarfile.USTAR_FORMAT) -> Path:
    with tarfile.open(name, "w", format=form) as tar:
        for member, data in members:
            info = tarfile.TarInfo(member)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return Path(name)


def samples(num_samples: int = 3, extensions: Sequence[str] = ("jpg", "cls")) -> list[tuple[str, bytes]]:
    return [(f"{i:03d}.{word}", bytes(i * 400)) for i in range(num_samples) for word in extensions]


def from_wds2idx(tar: Path) -> bytes:
    """In the C locale: in another it fails for names that are not ASCII."""
    out = tar.with_name("expected.txt")
    program = importlib.import_module("wds2idx").__file__
    subprocess.run([sys.executable, program, tar, out], check=True, stdout=subprocess.DEVNULL, env=c_locale())
    return out.read_bytes()


def c_locale() -> dict[str, str]:
    return {**os.environ, "LC_ALL": "C"}


def by_shard_writer(form: str) -> Callable[[Path], None]:
    def write(folder: Path) -> None:
        webdataset = peer("webdataset", "test")
        with webdataset.TarWriter(str(folder / "x.tar")) as writer:
            for i in range(5):
                writer.write({"__key__": form % i, "txt": "t" * i * 300, "cls": i, "json": {"a": i}})

    return write


def by_tar(*options: str) -> Callable[[Path], None]:
    """A tree with folders, links, hidden files and names of all kinds, packed by the tar of the system."""

    def write(folder: Path) -> None:
        tree = folder / "tree"
        for place in ("a", "a/b.c", "\u00e4"):
            (tree / place).mkdir(parents=True)
            for name in ("x", "y", "back\\slash", "UPPER", "\u00f6\u65e5"):
                (tree / place / f"{name}.img.jpg").write_bytes(os.urandom(700))
                (tree / place / f"{name}.cls").write_bytes(b"3")
        (tree / "a" / ".hidden.jpg").write_bytes(b"")
        (tree / "a" / "z.jpg").symlink_to("x.img.jpg")
        os.link(tree / "a" / "x.cls", tree / "a" / "zz.cls")
        subprocess.run(["tar", "--sort=name", *options, "-cf", folder / "x.tar", "-C", tree, "."], check=True)

    return write


def by_deep_names(folder: Path) -> None:
    """USTAR splits them between its prefix and its name."""
    deep = "/".join(["p" * 70, "q" * 70, "r" * 60])
    write_tar("x.tar", [(f"{deep}/0.a.b.jpg", b"1"), (f"{deep}/0.cls", b"2")])


def by_kinds_of_images(folder: Path) -> None:
    """The member that is an image may be of any kind."""
    write_tar("x.tar", [(f"{i}.{kind}", b"") for i in range(2) for kind in (("jpg", "PNG")[i], "cls")])


def ours(encoding: str) -> Callable[[Path], None]:
    def write(folder: Path) -> None:
        images = np.random.default_rng(0).integers(0, 256, (7, 9, 5, 3), np.uint8)
        write_shards(ArraySource(images, [0, 1, 0, 1, 0, 1, 0]), folder / "set", encoding)
        (folder / "set" / "shard-000000.tar").rename(folder / "x.tar")

    return write


@pytest.mark.parametrize(
    "write",
    [
        pytest.param(ours("raw"), id="ours-raw"),
        pytest.param(ours("png"), id="ours-png"),
        pytest.param(ours("webp"), id="ours-webp"),
        pytest.param(by_shard_writer("%06d"), id="webdataset"),
        pytest.param(by_shard_writer("folder.x/sub/%06d"), id="webdataset-folders"),
        pytest.param(by_tar(), id="gnu"),
        pytest.param(by_tar("--format=ustar"), id="ustar"),
        pytest.param(by_tar("--format=pax"), id="pax"),
        pytest.param(by_tar("--format=v7"), id="v7"),
        pytest.param(by_deep_names, id="deep"),
        pytest.param(by_kinds_of_images, id="kinds"),
    ],
)
def test_the_index_is_byte_for_byte_that_of_wds2idx(here: Path, write: Callable[[Path], None]) -> None:
    write(here)
    assert index("x.tar") == 0
    assert (here / "x.idx").read_bytes() == from_wds2idx(here / "x.tar")


@pytest.mark.dali
@pytest.mark.parametrize("form", [tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_names_over_100_bytes_get_an_index_that_dali_reads_right(here: Path, form: int) -> None:
    """wds2idx takes GNU's long name for the content, and without an index DALI does not know PAX's."""
    members = [(f"{LONG}{i}.{word}", f"{word} of {i}".encode()) for i in range(3) for word in ("txt", "cls")]
    tar = write_tar("x.tar", members, form)
    assert index(tar) == 0
    assert read_by_dali(tar, 3, "txt", "cls") == [(b"txt of %d" % i, b"cls of %d" % i) for i in range(3)]
    if form == tarfile.GNU_FORMAT:
        assert (here / "x.idx").read_bytes() != from_wds2idx(tar)


def read_by_dali(tar: Path, num_samples: int, *extensions: str) -> list[tuple[bytes, ...]]:
    dali = pytest.importorskip("nvidia.dali")

    @dali.pipeline_def(batch_size=num_samples, num_threads=1, device_id=None)
    def pipeline() -> tuple:
        paths = {"paths": [str(tar)], "index_paths": [str(tar.with_suffix(".idx"))]}
        return tuple(dali.fn.readers.webdataset(**paths, ext=list(extensions), missing_component_behavior="error"))

    built = pipeline()
    built.build()
    outputs = built.run()
    return [tuple(bytes(output.at(i)) for output in outputs) for i in range(num_samples)]


def test_a_line_a_tar_says_what_became_of_its_index(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_tar("a.b.tar", samples(4))
    (here / "sub").mkdir()
    write_tar("sub/y.tar", samples(2))
    assert index("a.b.tar", "sub", "sub/y.tar") == 0
    assert capsys.readouterr().out == "a.b.tar: 4 samples, written\nsub/y.tar: 2 samples, written\n"
    before = (here / "a.b.idx").stat()
    (here / "sub" / "y.idx").write_text("v1.2 0\n")
    assert index("a.b.tar", here / "sub") == 0
    assert capsys.readouterr().out == f"a.b.tar: 4 samples, unchanged\n{here}/sub/y.tar: 2 samples, replaced\n"
    after = (here / "a.b.idx").stat()
    assert (after.st_ino, after.st_mtime_ns) == (before.st_ino, before.st_mtime_ns)
    assert sorted(os.listdir(here)) == ["a.b.idx", "a.b.tar", "sub"]


def test_json_is_a_list_of_tars_and_of_many_problems_the_first(capsys: pytest.CaptureFixture[str]) -> None:
    write_tar("a.tar", samples(4))
    write_tar("b.tar", [("0.jpg", b""), ("0.cls", b""), ("1.jpg", b""), ("2.jpg", b""), ("2.cls", b"")])
    write_tar("c.tar", [*samples(50), *((f"x{i}.jpg", b"") for i in range(40))])
    assert index(".", "--json") == 1
    whole, one, many = json.loads(capsys.readouterr().out)
    assert whole == {"tar": "a.tar", "num_samples": 4, "index": "written", "problems": []}
    problems = ["sample 1: lacks .cls, which others have"]
    assert one == {"tar": "b.tar", "num_samples": 3, "index": "none", "problems": problems}
    assert many["problems"][9:] == ["sample x9: lacks .cls, which others have", "and 30 problems more"]
    assert many["num_samples"] == 90


@pytest.mark.parametrize(
    ("names", "problem"),
    [
        (["a.jpg", "b.jpg", "a.cls", "b.cls"], "sample a: occurs twice: the members of a sample must lie side by side"),
        (["a.jpg", "a.cls", "b.jpg", "c.jpg", "c.cls"], "sample b: lacks .cls, which others have"),
        (["a.jpg", "a.cls", "b.cls", "c.jpg", "c.cls"], "sample b: lacks an image, which others have"),
        (["a.cls", "b.cls", "b.json", "c.cls"], "sample b: has .json, which others lack"),
        (["f/a.jpg", "f/a.jpg"], "sample f/a: has two members of one name: jpg, jpg"),
        (["a.jpg", "README"], "README: has no extension: members are called KEY.EXTENSION"),
        (["a.jpg", "b."], "b.: has no extension"),
        (["a.jpg", "b c.jpg"], "b c.jpg: has a blank in its name"),
        (["\u00e4 b.jpg"], "\u00e4 b.jpg: has a blank in its name"),
        (["\u00e4\u65e5.jpg", "a.cls", "b.cls"], "sample \u00e4\u65e5: lacks .cls, which others have"),
        ([], "it holds no sample"),
        ([".hidden.jpg"], "it holds no sample"),
    ],
)
def test_samples_that_dali_cannot_read_are_named_and_the_tar_gets_no_index(
    here: Path, capsys: pytest.CaptureFixture[str], names: list[str], problem: str
) -> None:
    write_tar("bad.tar", [(name, b"") for name in names])
    write_tar("good.tar", samples())
    assert index("bad.tar", "good.tar") == 1
    out = capsys.readouterr().out.splitlines()
    assert out[0].startswith(f"bad.tar: {problem}")
    assert out[-2].endswith("samples, no index written, see above")
    assert out[-1] == "good.tar: 3 samples, written"
    assert not (here / "bad.idx").exists()


@pytest.mark.parametrize(
    ("damage", "problem"),
    [
        (lambda data: b"", "cut at byte 0, in or after its beginning"),
        (lambda data: data[:700], "cut at byte 700, in or after 000.jpg"),
        (lambda data: data[:1024], "cut at byte 1024, in or after 000.cls"),
        (lambda data: data[:2000], "cut at byte 2000, in 001.jpg"),
        (lambda data: data[:2040], "cut at byte 2040, in or after 001.jpg"),
        (lambda data: data[:2560], "cut at byte 2560, in or after 001.cls: the end mark of the tar is missing"),
        (lambda data: data[:1040] + b"x" + data[1041:], "no header of a member at byte 1024, after 000.cls"),
        (gzip.compress, "compressed with gzip: DALI reads plain tars alone"),
        (lambda data: b"PK" * 600, "not a tar: it begins with b'PKPK"),
        (lambda data: data + data, "there is more after its end, at byte 10240"),
    ],
)
def test_a_cut_or_broken_tar_is_named_and_gets_no_index(
    here: Path, capsys: pytest.CaptureFixture[str], damage: Callable[[bytes], bytes], problem: str
) -> None:
    """Headers at 0, 512, 1024 and 2048, a content at 1536."""
    members = [("000.jpg", b""), ("000.cls", b""), ("001.jpg", b"x" * 500), ("001.cls", b"")]
    data = write_tar("x.tar", members).read_bytes()
    (here / "x.tar").write_bytes(damage(data))
    assert index("x.tar") == 1
    assert capsys.readouterr().out.startswith(f"x.tar: {problem}")
    assert not (here / "x.idx").exists()


def test_a_flipped_bit_in_any_header_is_found(here: Path) -> None:
    data = write_tar("x.tar", samples(4)).read_bytes()
    with tarfile.open("x.tar") as tar:
        headers = [member.offset for member in tar]
    dice = random.Random(0)
    for _ in range(200):
        place = dice.choice(headers) + dice.randrange(512)
        broken = bytearray(data)
        broken[place] ^= 1 << dice.randrange(8)
        assert index_tar(io.BytesIO(broken)).problems, place


def test_a_sparse_member_is_refused(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with open("0.jpg", "wb") as file:
        file.truncate(1 << 20)
        file.write(b"x")
    for form, problem in (("gnu", "neither a file nor a link"), ("pax", "is stored sparse")):
        subprocess.run(["tar", "--sparse", f"--format={form}", "-cf", f"{form}.tar", "0.jpg"], check=True)
        assert index(f"{form}.tar") == 1
        assert problem in capsys.readouterr().out


def bytes_read() -> int:
    """What read() has given this process so far, from the page cache too."""
    return int(Path("/proc/self/io").read_text().split()[1])


@pytest.mark.parametrize("form", [tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_contents_are_not_read_and_memory_does_not_grow_with_them(here: Path, form: int) -> None:
    """Three members, all holes. USTAR has no room for a size of 9 GiB: GNU writes it in base 256, PAX ahead."""
    sizes = [7 << 30, 9 << 30, 7 << 30]
    with open("x.tar", "wb") as file:
        for i, size in enumerate(sizes):
            info = tarfile.TarInfo(f"{i}.jpg")
            info.size = size
            file.write(info.tobuf(form))
            file.seek(size, os.SEEK_CUR)
        file.write(bytes(10240))
    tracemalloc.start()
    before = bytes_read()
    assert index("x.tar") == 0
    read, (_, peak) = bytes_read() - before, tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert read < 16 << 20  # modules that are imported meanwhile among it
    assert peak < 16 << 20
    assert [members[0].size for members in parse_index((here / "x.idx").read_text())] == sizes
    if form == tarfile.PAX_FORMAT:
        assert (here / "x.idx").read_bytes() == from_wds2idx(here / "x.tar")


@pytest.mark.parametrize("place", ["nothing", "nothing.tar", "empty", "file.txt"])
def test_where_no_tar_is_nothing_is_done(here: Path, capsys: pytest.CaptureFixture[str], place: str) -> None:
    (here / "empty").mkdir()
    (here / "file.txt").write_text("")
    write_tar("x.tar", samples())
    assert index("x.tar", place) == 2
    assert capsys.readouterr().err.startswith(f"error: {place}: ")
    assert not (here / "x.idx").exists()


def test_a_killed_write_leaves_the_old_index(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    write_tar("x.tar", samples())
    (here / "x.idx").write_text("old")
    monkeypatch.setattr(os, "fsync", fail)
    assert index("x.tar") == 2
    assert (here / "x.idx").read_text() == "old"
    assert sorted(os.listdir(here)) == ["x.idx", "x.tar"]


def test_names_are_escaped_as_tar_does_and_printed_as_they_are(here: Path) -> None:
    names = [bytes(byte for byte in range(first, first + 16) if byte not in b"\0/ ") for first in range(0, 256, 16)]
    with open("x.tar", "wb") as file:
        for name in names:
            file.write(ustar_header(name, 0))
        file.write(bytes(10240))
    listed = subprocess.run(["tar", "-tf", "x.tar"], check=True, capture_output=True, env=c_locale()).stdout
    assert listed.decode("ascii").split("\n")[:-1] == [escaped(name) for name in names]
    assert readable(escaped("\u00e4\u65e5.jpg".encode())) == "\u00e4\u65e5.jpg"
    assert readable(escaped(b"\xff\\")) == "\\xff\\\\"
