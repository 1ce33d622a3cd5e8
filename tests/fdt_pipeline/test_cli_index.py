"""`fdt-pipeline index`: the indexes of tars of any origin are those of DALI's wds2idx, and broken tars get none."""

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
from functools import partial
from pathlib import Path

import numpy as np
import psutil
import pytest

from fdt_pipeline.shards import write_shards
from fdt_pipeline.shards.indexing import index_tar
from fdt_pipeline.sources import ArraySource
from tests.folders import LFS_POINTER, names, parse_index
from tests.peers import peer

C_LOCALE = {**os.environ, "LC_ALL": "C"}  # in another one wds2idx fails for names that are not ASCII


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    """Tests name tars as a user does who stands beside them."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def write_tar(path, members, form=tarfile.USTAR_FORMAT):
    with tarfile.open(path, "w", format=form) as tar:
        for member, data in members:
            info = tarfile.TarInfo(member)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))


def samples(num_samples=3):
    return [(f"{i:03d}.{word}", bytes(i * 400)) for i in range(num_samples) for word in ("jpg", "cls")]


def from_wds2idx(tar):
    out = tar.with_name("expected.txt")
    command = [sys.executable, importlib.import_module("wds2idx").__file__, tar, out]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, env=C_LOCALE)
    return out.read_bytes()


def by_shard_writer(form, folder):
    with peer("webdataset", "test").TarWriter(str(folder / "x.tar")) as writer:
        for i in range(5):
            writer.write({"__key__": form % i, "txt": "t" * i * 300, "cls": i, "json": {"a": i}})


def by_tar(options, folder):
    """A tree with folders, links, hidden files and names of all kinds, packed by the tar of the system."""
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


def ours(encoding, folder):
    images = np.random.default_rng(0).integers(0, 256, (7, 9, 5, 3), np.uint8)
    write_shards(ArraySource(images, [0, 1, 0, 1, 0, 1, 0]), folder / "set", encoding)
    (folder / "set" / "shard-000000.tar").rename(folder / "x.tar")


def by_members(members, folder):
    write_tar(folder / "x.tar", members)


DEEP = "/".join(["p" * 70, "q" * 70, "r" * 60])  # USTAR splits it between its prefix and its name
EVERY_BYTE = [os.fsdecode(bytes([byte])) for byte in range(1, 256) if byte not in b" ./"]
ORIGINS = {
    **{f"ours, {encoding}": partial(ours, encoding) for encoding in ("raw", "png", "webp")},
    "webdataset": partial(by_shard_writer, "%06d"),
    "webdataset, in folders": partial(by_shard_writer, "folder.x/sub/%06d"),
    "tar": partial(by_tar, []),
    **{f"tar, {form}": partial(by_tar, [f"--format={form}"]) for form in ("ustar", "pax", "v7")},
    "deep names": partial(by_members, [(f"{DEEP}/0.a.b.jpg", b"1"), (f"{DEEP}/0.cls", b"2")]),
    "names of all bytes": partial(by_members, [(f"a{byte}b.jpg", b"1") for byte in EVERY_BYTE]),
    "images of two kinds": partial(by_members, [(name, b"") for name in ("0.jpg", "0.cls", "1.PNG", "1.cls")]),
}


@pytest.mark.parametrize("origin", ORIGINS)
def test_the_index_is_byte_for_byte_that_of_wds2idx(run, here, origin):
    ORIGINS[origin](here)
    assert run("index", "x.tar").code == 0
    assert (here / "x.idx").read_bytes() == from_wds2idx(here / "x.tar")


@pytest.mark.dali
@pytest.mark.parametrize("form", [tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_names_over_100_bytes_get_an_index_that_dali_reads_right(run, here, form):
    """wds2idx takes GNU's long name for the content, and without an index DALI does not know PAX's."""
    dali = pytest.importorskip("nvidia.dali")
    names = [(i, f"{'n' * 130}{i}", word) for i in range(3) for word in ("txt", "cls")]
    write_tar("x.tar", [(f"{name}.{word}", f"{word} of {i}".encode()) for i, name, word in names], form)
    assert run("index", "x.tar").code == 0
    if form == tarfile.GNU_FORMAT:
        assert (here / "x.idx").read_bytes() != from_wds2idx(here / "x.tar")

    @dali.pipeline_def(batch_size=3, num_threads=1, device_id=None)
    def pipeline():
        paths = {"paths": [str(here / "x.tar")], "index_paths": [str(here / "x.idx")]}
        return tuple(dali.fn.readers.webdataset(**paths, ext=["txt", "cls"], missing_component_behavior="error"))

    built = pipeline()
    built.build()
    outputs = built.run()
    found = [tuple(bytes(output.at(i)) for output in outputs) for i in range(3)]
    assert found == [(b"txt of %d" % i, b"cls of %d" % i) for i in range(3)]


def test_a_line_a_tar_says_what_became_of_its_index(run, here):
    write_tar("a.b.tar", samples(4))
    (here / "sub").mkdir()
    write_tar("sub/y.tar", samples(2))
    printed = "a.b.tar: 4 samples, written\nsub/y.tar: 2 samples, written\n"
    assert run("index", "a.b.tar", "sub", "sub/y.tar")[:2] == (0, printed)
    before = (here / "a.b.idx").stat()
    (here / "sub" / "y.idx").write_text("v1.2 0\n")
    printed = f"a.b.tar: 4 samples, unchanged\n{here}/sub/y.tar: 2 samples, replaced\n"
    assert run("index", "a.b.tar", here / "sub")[:2] == (0, printed)
    after = (here / "a.b.idx").stat()
    assert (after.st_ino, after.st_mtime_ns) == (before.st_ino, before.st_mtime_ns)
    assert names(here) == ["a.b.idx", "a.b.tar", "sub"]


def test_json_is_a_list_of_tars_and_of_many_problems_the_first(run):
    write_tar("a.tar", samples(4))
    write_tar("b.tar", [("0.jpg", b""), ("0.cls", b""), ("1.jpg", b""), ("2.jpg", b""), ("2.cls", b"")])
    write_tar("c.tar", [*samples(50), *((f"x{i}.jpg", b"") for i in range(40))])
    done = run("index", ".", "--json")
    assert done.code == 1
    whole, one, many = json.loads(done.out)
    assert whole == {"tar": "a.tar", "num_samples": 4, "index": "written", "problems": [], "spellings": []}
    problems = ["sample 1: lacks .cls, which others have"]
    assert one == {"tar": "b.tar", "num_samples": 3, "index": "none", "problems": problems, "spellings": []}
    assert many["problems"][9:] == ["sample x9: lacks .cls, which others have", "and 30 problems more"]
    assert many["num_samples"] == 90


@pytest.mark.parametrize("spellings", [("JPG", "jpg"), ("jpeg", "jpg", "png")])
def test_images_of_several_spellings_are_said_as_dalis_reader_takes_only_those_that_it_is_told_of(run, spellings):
    members = [(f"{number}.{word}", b"1") for number, image in enumerate(spellings) for word in (image, "cls")]
    write_tar("mixed.tar", members)
    write_tar("same.tar", samples())
    said = (
        f"mixed.tar: its images end in {', '.join(spellings)}: name all to DALI's reader, ext=[\"{';'.join(spellings)}"
    )
    done = run("index", "mixed.tar", "same.tar")
    assert (done.code, done.out.count("its images end in")) == (0, 1)
    assert said in done.out
    assert [tar["spellings"] for tar in json.loads(run("index", "mixed.tar", "same.tar", "--json").out)] == [
        list(spellings),
        [],
    ]


def damaged(damage):
    """Headers at 0, 512, 1024 and 2048, a content at 1536."""
    write_tar("bad.tar", [("000.jpg", b""), ("000.cls", b""), ("001.jpg", b"x" * 500), ("001.cls", b"")])
    Path("bad.tar").write_bytes(damage(Path("bad.tar").read_bytes()))


def sparse(form):
    with open("0.jpg", "wb") as file:
        file.truncate(1 << 20)
        file.write(b"x")
    subprocess.run(["tar", "--sparse", f"--format={form}", "-cf", "bad.tar", "0.jpg"], check=True)


@pytest.mark.parametrize(
    ("bad", "problem"),
    [
        # Names of members: DALI cannot read such samples.
        (["a.jpg", "b.jpg", "a.cls", "b.cls"], "sample a: occurs twice: the members of a sample must lie side by side"),
        (["a.jpg", "a.cls", "b.jpg", "c.jpg", "c.cls"], "sample b: lacks .cls, which others have"),
        (["a.jpg", "a.cls", "b.cls", "c.jpg", "c.cls"], "sample b: lacks an image, which others have"),
        (["a.cls", "b.cls", "b.json", "c.cls"], "sample b: has .json, which others lack"),
        (["f/a.jpg", "f/a.jpg"], "sample f/a: has two members of one name: jpg, jpg"),
        (["a.jpg", "README"], "README: has no extension: members are called KEY.EXTENSION"),
        (["a.jpg", "b."], "b.: has no extension"),
        (["a.jpg", "b c.jpg"], "b c.jpg: has a blank in its name"),
        (["\u00e4 b.jpg"], "\u00e4 b.jpg: has a blank in its name"),
        (["\udcff\\ b.jpg"], "\\xff\\\\ b.jpg: has a blank in its name"),
        (["\u00e4\u65e5.jpg", "a.cls", "b.cls"], "sample \u00e4\u65e5: lacks .cls, which others have"),
        ([], "it holds no sample"),
        ([".hidden.jpg"], "it holds no sample"),
        # What became of a good tar.
        (lambda data: b"", "cut at byte 0, in or after its beginning"),
        (lambda data: data[:700], "cut at byte 700, in or after 000.jpg"),
        (lambda data: data[:1024], "cut at byte 1024, in or after 000.cls"),
        (lambda data: data[:2000], "cut at byte 2000, in 001.jpg"),
        (lambda data: data[:2040], "cut at byte 2040, in or after 001.jpg"),
        (lambda data: data[:2560], "cut at byte 2560, in or after 001.cls: the end mark of the tar is missing"),
        (lambda data: data[:1040] + b"x" + data[1041:], "no header of a member at byte 1024, after 000.cls"),
        (lambda data: LFS_POINTER, "a Git LFS pointer, not the file itself: git lfs pull"),
        (gzip.compress, "compressed with gzip: DALI reads plain tars alone"),
        (lambda data: b"PK" * 600, "not a tar: it begins with b'PKPK"),
        (lambda data: data + data, "there is more after its end, at byte 10240"),
        # A member with holes, in the format of its name.
        ("gnu", "neither a file nor a link"),
        ("pax", "is stored sparse"),
    ],
)
def test_a_tar_that_dali_cannot_read_is_named_and_gets_no_index(run, here, bad, problem):
    if isinstance(bad, list):
        write_tar("bad.tar", [(name, b"") for name in bad])
    else:
        (damaged if callable(bad) else sparse)(bad)
    write_tar("good.tar", samples())
    code, printed, _ = run("index", "bad.tar", "good.tar")
    out = printed.splitlines()
    assert code == 1
    assert out[0].startswith("bad.tar: ")
    assert problem in out[0]
    assert out[-2].endswith("no index written, see above")
    assert out[-1] == "good.tar: 3 samples, written"
    assert not (here / "bad.idx").exists()


def test_a_flipped_bit_in_any_header_is_found(here):
    write_tar("x.tar", samples(4))
    data = (here / "x.tar").read_bytes()
    with tarfile.open("x.tar") as tar:
        headers = [member.offset for member in tar]
    dice = random.Random(0)
    for _ in range(200):
        place = dice.choice(headers) + dice.randrange(512)
        broken = bytearray(data)
        broken[place] ^= 1 << dice.randrange(8)
        assert index_tar(io.BytesIO(broken)).problems, place


@pytest.mark.parametrize("form", [tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_contents_are_not_read_and_memory_does_not_grow_with_them(run, here, form):
    """Three members, all holes. USTAR has no room for a size of 9 GiB: GNU writes it in base 256, PAX ahead."""
    sizes, process = [7 << 30, 9 << 30, 7 << 30], psutil.Process()
    with open("x.tar", "wb") as file:
        for i, size in enumerate(sizes):
            info = tarfile.TarInfo(f"{i}.jpg")
            info.size = size
            file.write(info.tobuf(form))
            file.seek(size, os.SEEK_CUR)
        file.write(bytes(10240))
    tracemalloc.start()
    before = process.io_counters().read_chars
    assert run("index", "x.tar").code == 0
    read, (_, peak) = process.io_counters().read_chars - before, tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert read < 16 << 20  # modules that are imported meanwhile among it
    assert peak < 16 << 20
    assert [members[0].size for members in parse_index((here / "x.idx").read_text())] == sizes
    if form == tarfile.PAX_FORMAT:
        assert (here / "x.idx").read_bytes() == from_wds2idx(here / "x.tar")


@pytest.mark.parametrize("place", ["nothing", "nothing.tar", "empty", "file.txt"])
def test_where_no_tar_is_nothing_is_done(run, here, place):
    (here / "empty").mkdir()
    (here / "file.txt").write_text("")
    write_tar("x.tar", samples())
    done = run("index", "x.tar", place)
    assert done.code == 2
    assert done.err.startswith(f"error: {place}: ")
    assert not (here / "x.idx").exists()


def test_a_killed_write_leaves_the_old_index(run, here, monkeypatch):
    def fail(descriptor):
        raise OSError(28, "No space left on device")

    write_tar("x.tar", samples())
    (here / "x.idx").write_text("old")
    monkeypatch.setattr(os, "fsync", fail)
    assert run("index", "x.tar").code == 2
    assert (here / "x.idx").read_text() == "old"
    assert names(here) == ["x.idx", "x.tar"]
