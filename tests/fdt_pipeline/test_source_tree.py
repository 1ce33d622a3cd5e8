"""Folders as people have them: links, pipes, names of all kinds, and very many files."""

import os
import re
import subprocess
import sys

import pytest

from fdt_pipeline.shards import read_manifest, verify_shards, write_shards
from fdt_pipeline.shards.key import source_key_of
from fdt_pipeline.sources import open_source
from tests.folders import save_image

ODD_NAMES = [
    "a.b.c.jpg",
    "with space.jpg",
    "UPPER.JPG",
    "größe.png",
    "猫.jpg",
    "quote'\".jpg",
    "new\nline.jpg",
    "%41.jpg",
    "x" * 251 + ".jpg",
    "no-extension",
    "-rf.jpg",
    "~tilde~.jpg",
]


@pytest.fixture
def folder(tmp_path):
    for name in ("cat", "dog"):
        save_image(tmp_path / "photos" / name / "good.png")
    return tmp_path / "photos"


def test_names_of_all_kinds_are_sharded_and_can_be_traced_back(folder, tmp_path):
    for name in ODD_NAMES:
        save_image(folder / "cat" / name)
    source = open_source(folder)
    manifest = write_shards(source, tmp_path / "out", "keep")
    assert verify_shards(tmp_path / "out", decode=True) == []
    index = (tmp_path / "out" / "shard-000000.idx").read_text("ascii")
    keys = re.findall(r"(\S+)\.png", index)
    assert len(keys) == len(ODD_NAMES) + 2
    found = {manifest.keys.get(key, source_key_of(key)) for key in keys}
    assert found == {f"cat/{name}" for name in ODD_NAMES} | {"cat/good.png", "dog/good.png"}
    assert {name for name in ODD_NAMES if f"cat/{name}" not in manifest.keys.values()} == {
        "UPPER.JPG",
        "no-extension",
        "-rf.jpg",
    }
    assert read_manifest(tmp_path / "out") == manifest


def test_a_name_that_is_not_utf_8_is_sharded_too(folder, tmp_path):
    save_image(folder / "cat" / "plain.png").rename(os.fsdecode(os.fsencode(folder / "cat") + b"/\xff\xfe.png"))
    manifest = write_shards(open_source(folder), tmp_path / "out", "keep", workers=1)
    assert "cat/\udcff\udcfe.png" in manifest.keys.values()
    assert read_manifest(tmp_path / "out") == manifest


def three_gigabytes(path):
    """They take no room on the disk."""
    with path.open("wb") as file:
        file.truncate(3 << 30)


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (os.mkfifo, "a named pipe, not a file"),
        (lambda path: path.symlink_to("nowhere.png"), "a link to nowhere.png, which leads nowhere"),
        (lambda path: path.symlink_to("/dev/zero"), "a device, not a file"),
        (lambda path: path.symlink_to(path), "leads nowhere (Too many levels"),
        (lambda path: path.symlink_to("good.png/x"), "leads nowhere (Not a directory)"),
        (lambda path: path.touch(), "not an image: the file has zero bytes"),
        (three_gigabytes, "a file of 3221225472 bytes, expected an image of at most"),
    ],
)
def test_what_cannot_be_read_is_left_out_with_its_reason_and_never_waited_for(folder, tmp_path, make, reason):
    make(folder / "cat" / "bad.png")
    manifest = write_shards(open_source(folder), tmp_path / "out", "keep", on_bad="quarantine")
    [bad] = manifest.quarantine
    assert bad.key == "cat/bad.png"
    assert reason in bad.reason
    assert manifest.num_samples == 2


MEMORY = """
import sys
from fdt_pipeline.shards import write_shards
from fdt_pipeline.sources import open_source
from tests.fdt_pipeline.test_source_tree import links
write_shards(open_source(sys.argv[1], "folder"), sys.argv[2], "keep", samples_per_shard=500)
[line] = (line for line in open("/proc/self/status") if line.startswith("VmHWM"))
print(line.split()[1])
"""


def links(folder, count):
    """`count` links to the same image, in two classes."""
    original = save_image(folder.with_name("original.png"))
    for index in range(count):
        path = folder / str(index % 2) / f"{index:07d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        if index % 30_000 == 0:  # a file system bounds the links to one file
            original = save_image(folder.with_name(f"original-{index}.png"))
        path.hardlink_to(original)
    return folder


@pytest.mark.soak
def test_memory_does_not_grow_with_the_number_of_files(tmp_path):
    """A million in small. Linux's ru_maxrss would not do: a process begins with that of the one that starts it."""
    peaks = []
    for count in (1_000, 20_000):
        folder = links(tmp_path / str(count), count)
        command = [sys.executable, "-c", MEMORY, str(folder), str(tmp_path / f"out-{count}")]
        environment = {**os.environ, "PYTHONPATH": "."}
        done = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
        peaks.append(int(done.stdout) / 1024)
    assert peaks[1] - peaks[0] < 20, f"{peaks[0]:.0f} MB, then {peaks[1]:.0f} MB"
