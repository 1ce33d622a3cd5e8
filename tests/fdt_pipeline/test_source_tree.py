"""Folders as people have them: links, pipes, names of all kinds, and very many files."""

from __future__ import annotations

import os
import pickle
import re
import subprocess
import sys
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fdt_pipeline.shards import read_manifest, verify_shards, write_shards
from fdt_pipeline.shards.key import source_key_of
from fdt_pipeline.sources import open_source
from fdt_pipeline.sources.image_folder import Names

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


def save(path: Path, value: int = 0) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full((4, 5, 3), value, np.uint8)).save(path, "PNG")
    return path


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in ("cat", "dog"):
        save(tmp_path / "photos" / name / "good.png")
    return tmp_path / "photos"


def test_names_of_all_kinds_are_sharded_and_can_be_traced_back(folder: Path, tmp_path: Path) -> None:
    for name in ODD_NAMES:
        save(folder / "cat" / name)
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


def test_a_name_that_is_not_utf_8_is_sharded_too(folder: Path, tmp_path: Path) -> None:
    save(folder / "cat" / "plain.png").rename(os.fsdecode(os.fsencode(folder / "cat") + b"/\xff\xfe.png"))
    manifest = write_shards(open_source(folder), tmp_path / "out", "keep", workers=1)
    assert "cat/\udcff\udcfe.png" in manifest.keys.values()
    assert read_manifest(tmp_path / "out") == manifest


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (os.mkfifo, "a named pipe, not a file"),
        (lambda path: path.symlink_to("nowhere.png"), "a link to nowhere.png, which is not there"),
        (lambda path: path.symlink_to("/dev/zero"), "a device, not a file"),
        (lambda path: path.symlink_to(path), "a link that leads to itself"),
        (lambda path: path.touch(), "not an image: the file has zero bytes"),
    ],
)
def test_what_is_no_file_is_left_out_with_its_reason_and_never_waited_for(
    folder: Path, tmp_path: Path, make: object, reason: str
) -> None:
    make(folder / "cat" / "bad.png")  # type: ignore[operator]
    manifest = write_shards(open_source(folder), tmp_path / "out", "keep", on_bad="quarantine")
    [bad] = manifest.quarantine
    assert bad.key == "cat/bad.png"
    assert reason in bad.reason
    assert manifest.num_samples == 2


def test_a_file_over_the_budget_is_refused_before_it_is_read(folder: Path, tmp_path: Path) -> None:
    with (folder / "cat" / "large.png").open("wb") as file:
        file.truncate(3 << 30)  # takes no room on the disk
    manifest = write_shards(open_source(folder), tmp_path / "out", "keep", on_bad="quarantine")
    assert "a file of 3221225472 bytes, expected an image of at most" in manifest.quarantine[0].reason


def test_a_set_of_which_no_image_can_be_read_opens_as_color(folder: Path) -> None:
    for path in folder.glob("*/*"):
        path.write_bytes(b"text")
    source = open_source(folder, "folder")
    assert source.channels == 3  # type: ignore[attr-defined]


def test_a_part_that_travels_knows_its_own_files_alone(folder: Path) -> None:
    for index in range(2000):
        save(folder / "cat" / f"{index:05d}.png") if index < 3 else (folder / "cat" / f"{index:05d}.png").touch()
    part = open_source(folder).take(np.array([2, 0]))  # type: ignore[attr-defined]
    assert len(pickle.dumps(part)) < 2000
    assert [part.key(0), part.key(1)] == ["cat/00002.png", "cat/00000.png"]
    assert part[0].key == "cat/00002.png"


@pytest.mark.soak
def test_names_are_kept_in_little_memory() -> None:
    tracemalloc.start()
    names = Names(f"class-{i % 100}/{i:07d}.jpg" for i in range(200_000))
    held = tracemalloc.get_traced_memory()[0]
    tracemalloc.stop()
    assert names[123_456] == "class-56/0123456.jpg"
    assert held < 200_000 * 35, f"{held / 200_000:.0f} bytes a name of 20"


MEMORY = """
import sys
from fdt_pipeline.shards import write_shards
from fdt_pipeline.sources import open_source
from tests.fdt_pipeline.test_source_tree import links
write_shards(open_source(sys.argv[1], "folder"), sys.argv[2], "keep", samples_per_shard=500)
[line] = (line for line in open("/proc/self/status") if line.startswith("VmHWM"))
print(line.split()[1])
"""


def links(folder: Path, count: int) -> Path:
    """So many files of two classes, all the same one."""
    original = save(folder.with_name("original.png"))
    for index in range(count):
        path = folder / str(index % 2) / f"{index:07d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        if index % 30_000 == 0:  # a file system bounds the links to one file
            original = save(folder.with_name(f"original-{index}.png"))
        path.hardlink_to(original)
    return folder


@pytest.mark.soak
def test_memory_does_not_grow_with_the_number_of_files(tmp_path: Path) -> None:
    """A million in small. Linux's ru_maxrss would not do: a process begins with that of the one that starts it."""
    peaks = []
    for count in (1_000, 20_000):
        folder = links(tmp_path / str(count), count)
        command = [sys.executable, "-c", MEMORY, str(folder), str(tmp_path / f"out-{count}")]
        environment = {**os.environ, "PYTHONPATH": "."}
        done = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
        peaks.append(int(done.stdout) / 1024)
    assert peaks[1] - peaks[0] < 20, f"{peaks[0]:.0f} MB, then {peaks[1]:.0f} MB"
