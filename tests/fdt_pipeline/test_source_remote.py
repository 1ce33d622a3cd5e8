"""Image folders at fsspec URLs: listed once, read file by file."""

from __future__ import annotations

import io
import os
import pickle
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

fsspec = pytest.importorskip("fsspec")

from fdt_pipeline.shards import SourceError, write_shards  # noqa: E402
from fdt_pipeline.sources import ArraySource, open_source  # noqa: E402
from fdt_pipeline.sources import tree as trees  # noqa: E402
from fdt_pipeline.sources.tree import RemoteTree  # noqa: E402
from fdt_pipeline.storage import retrying  # noqa: E402
from fdt_pipeline.storage.remote import RemoteFolder  # noqa: E402
from tests.web import RESET, web_server  # noqa: E402


def png(mode: str) -> bytes:
    file = io.BytesIO()
    Image.new(mode, (3, 2)).save(file, "PNG")
    return file.getvalue()


@pytest.fixture
def store() -> Iterator[Any]:
    """A store in this process's memory."""
    files = fsspec.filesystem("memory")
    yield files
    files.rm("/photos", recursive=True)


@pytest.fixture
def gray_but_one(store: Any) -> str:
    store.pipe({"/photos/cat/1.png": png("L"), "/photos/dog/1.png": png("L"), "/photos/dog/color.png": png("RGB")})
    return "memory://photos"


def test_names_come_back_as_they_are(store: Any) -> None:
    names = ["cat/a b.png", "cat/é.png", "cat/%41.png", "cat/h#1.png", "cat/q?x.png", "cat-2/1.png", "cat/sub/1.png"]
    for name in names:
        store.pipe(f"/photos/{name}", png("RGB"))
    source: Any = open_source("memory://photos")
    assert [source[i].key for i in range(len(source))] == sorted(names, key=lambda name: name.split("/"))
    assert source.classes == ("cat", "cat-2")


@pytest.mark.parametrize("below", ["", "cat", "cat/sub", "dog", "ca"])
def test_what_is_below_a_folder_is_what_a_look_at_every_name_finds(store: Any, below: str) -> None:
    names = ["cat/1.png", "cat/sub/1.png", "cat-2/1.png", "cat.png", "cat0/1.png", "cats/1.png"]
    for name in names:
        store.pipe(f"/photos/{name}", b"x")
    prefix = f"{below}/" if below else ""
    expected = [name.removeprefix(prefix) for name in names if name.startswith(prefix)]
    assert RemoteTree("memory://photos").walk(below) == sorted(expected, key=lambda name: name.split("/"))


def test_a_store_that_fails_while_colors_are_looked_for_is_an_error(
    gray_but_one: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Left out, the one image in color would turn the whole set gray."""
    assert open_source(gray_but_one).channels == 3  # type: ignore[attr-defined]

    def fails(self: RemoteFolder, name: str, *_: int) -> bytes:
        if "color" in name:
            raise TimeoutError("no answer")
        return self.fs.cat_file(self.path(name))

    monkeypatch.setattr(RemoteFolder, "read_range", fails)
    monkeypatch.setattr(RemoteFolder, "read", lambda self, name: self.retry.call(name, lambda: fails(self, name)))
    monkeypatch.setattr(retrying.time, "sleep", lambda seconds: None)
    with pytest.raises(OSError, match=r"dog/color.png: could not be reached in 6 tries: no answer"):
        open_source(gray_but_one)


def failing(monkeypatch: pytest.MonkeyPatch, method: str, times: int) -> Counter[str]:
    """Each of the store's requests first fails, so many times; how often it was made by then."""
    store, failures = fsspec.implementations.memory.MemoryFileSystem, Counter[str]()
    real = getattr(store, method)

    def fails(self: Any, path: str, *arguments: Any, **options: Any) -> Any:
        failures[path] += 1
        if failures[path] <= times:
            raise TimeoutError("503, slow down")
        return real(self, path, *arguments, **options)

    monkeypatch.setattr(store, method, fails)
    monkeypatch.setattr(retrying.time, "sleep", lambda seconds: None)
    return failures


@pytest.mark.parametrize("method", ["info", "find", "cat_file"])
def test_a_run_outlasts_requests_that_fail_a_few_times(
    gray_but_one: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, method: str
) -> None:
    failures = failing(monkeypatch, method, times=3)
    source = open_source(gray_but_one)
    failures.clear()
    assert write_shards(source, tmp_path, "keep").num_samples == 3


def test_a_store_that_does_not_tell_the_state_of_a_file_is_not_called_a_full_disk(
    gray_but_one: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = open_source(gray_but_one)
    failing(monkeypatch, "info", times=1000)
    with pytest.raises(
        SourceError, match=r"^could not ask for the state of the source's files: memory://.*503"
    ) as told:
        write_shards(source, tmp_path, "keep")
    assert "space" not in str(told.value)


def test_a_store_that_cannot_be_written_to_is_not_called_a_full_disk(
    store: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    store.mkdir("/photos")
    failing(monkeypatch, "put_file", times=1000)
    with pytest.raises(OSError, match=r"^memory://photos/out: could not write shards \(.*503.*--resume$") as told:
        write_shards(ArraySource(np.zeros((1, 2, 2), np.uint8), [0]), "memory://photos/out")
    assert "space" not in str(told.value)


def test_a_folder_that_cannot_be_listed_is_not_taken_for_an_empty_one(tmp_path: Path, monkeypatch: Any) -> None:
    """fsspec's own walk leaves it out."""
    pytest.importorskip("aiohttp")
    for name in ("cat/1.png", "dog/1.png"):
        (tmp_path / name).parent.mkdir()
        (tmp_path / name).write_bytes(png("L"))
    monkeypatch.setattr(retrying.time, "sleep", lambda seconds: None)
    with web_server(tmp_path) as web:
        web.lists = True
        web.statuses[:] = [RESET] * 4  # aiohttp tries each request twice
        assert RemoteTree(web.url).walk("") == ["cat/1.png", "dog/1.png"]
        web.statuses[:] = [RESET] * 100
        with pytest.raises(OSError, match="could not be reached in 6 tries"):
            RemoteTree(web.url).walk("")


def test_a_file_of_a_web_server_has_changed_when_its_time_has(tmp_path: Path) -> None:
    pytest.importorskip("aiohttp")
    (tmp_path / "cat.png").write_bytes(png("L"))
    with web_server(tmp_path) as web:
        tree, states = RemoteTree(web.url), []
        for time_of_change in (10**9, 10**9, 2 * 10**9):
            os.utime(tmp_path / "cat.png", (time_of_change, time_of_change))
            states.append(tree.state("cat.png"))
    assert states[0] == states[1] != states[2]


def test_a_broken_image_has_no_say_in_the_channels(store: Any) -> None:
    store.pipe({"/photos/cat/0.png": b"text", "/photos/cat/1.png": png("L"), "/photos/cat/2.png": b""})
    source: Any = open_source("memory://photos")
    assert source.channels == 1
    with pytest.raises(ValueError, match=r"memory://photos/cat/0.png: not an image: it begins with b'text'"):
        source[0]


def test_a_file_over_the_budget_is_refused_by_whoever_is_to_read_it(
    gray_but_one: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also in a worker, which has no listing: it is told of the few that are too large."""
    monkeypatch.setattr(trees, "MAX_FILE_BYTES", 10)
    source: Any = open_source(gray_but_one)
    part = pickle.loads(pickle.dumps(source.take(np.array([2]))))
    for reader, index in ((source, 0), (part, 0)):
        with pytest.raises(ValueError, match=r"bytes, expected an image of at most 10"):
            reader[index]


def test_a_part_that_travels_is_small(store: Any) -> None:
    store.pipe({f"/photos/cat/{index:05d}.png": png("RGB") for index in range(2000)})
    part = open_source("memory://photos").take(np.array([1999, 3]))  # type: ignore[attr-defined]
    travelled = pickle.dumps(part)
    assert len(travelled) < 2000
    assert [sample.key for sample in pickle.loads(travelled)] == ["cat/01999.png", "cat/00003.png"]


class CountedName(str):
    """Counts how often names are looked at: compared, cut, or asked for anything else."""

    looks = 0

    def __getattribute__(self, name: str) -> Any:
        CountedName.looks += 1
        return super().__getattribute__(name)

    def __lt__(self, other: str) -> bool:
        CountedName.looks += 1
        return super().__lt__(other)

    def __getitem__(self, key: Any) -> str:
        CountedName.looks += 1
        return super().__getitem__(key)


def test_listing_takes_no_look_at_all_names_for_each_class(monkeypatch: pytest.MonkeyPatch) -> None:
    """4 times the classes of as many files each: about 4 times the looks, and not 16."""

    def looks(num_classes: int) -> int:
        names = [CountedName(f"{label:05d}/{index}.png") for label in range(num_classes) for index in range(10)]
        monkeypatch.setattr(RemoteFolder, "files_below", lambda folder: {name: {"size": 1} for name in names})
        CountedName.looks = 0
        tree = RemoteTree("memory://photos")
        assert all(len(tree.walk(f"{label:05d}")) == 10 for label in range(num_classes))
        return CountedName.looks

    assert looks(200) < 8 * looks(50)
