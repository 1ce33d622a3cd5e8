"""Image folders at fsspec URLs: listed once, read file by file."""

import os
import pickle
from collections import Counter

import numpy as np
import pytest

fsspec = pytest.importorskip("fsspec")

from fdt_pipeline.shards import SourceError, write_shards  # noqa: E402
from fdt_pipeline.shards.codec import encode  # noqa: E402
from fdt_pipeline.sources import files as source_files  # noqa: E402
from fdt_pipeline.sources import open_source  # noqa: E402
from fdt_pipeline.sources.files import RemoteFiles  # noqa: E402
from fdt_pipeline.storage import retrying  # noqa: E402
from tests.servers import Fault, web_server  # noqa: E402

GRAY, COLOR = (encode(np.zeros((2, 3, channels), np.uint8), "png") for channels in (1, 3))


@pytest.fixture
def store():
    """A store in this process's memory."""
    files = fsspec.filesystem("memory")
    yield files
    for folder in filter(files.exists, ("/photos", "/tables")):
        files.rm(folder, recursive=True)


@pytest.fixture
def gray_but_one(store):
    store.pipe({"/photos/cat/1.png": GRAY, "/photos/dog/1.png": GRAY, "/photos/dog/color.png": COLOR})
    return "memory://photos"


def test_names_come_back_as_they_are(store):
    names = ["cat/a b.png", "cat/é.png", "cat/%41.png", "cat/h#1.png", "cat/q?x.png", "cat-2/1.png", "cat/sub/1.png"]
    store.pipe({f"/photos/{name}": COLOR for name in names})
    source = open_source("memory://photos")
    assert [source[i].key for i in range(len(source))] == sorted(names, key=lambda name: name.split("/"))
    assert source.classes == ("cat", "cat-2")


def test_keys_that_a_console_makes_to_show_folders_are_no_images(store, monkeypatch):
    """S3 lists them, and the store in memory does not have them."""
    store.pipe({f"/photos/{name}": GRAY for name in ("cat/1.png", "dog/1.png")})
    find = type(store).find

    def with_folders(self, path, **options):
        keys = ("/photos/", "/photos/cat/", "/photos/empty/")
        return find(self, path, **options) | {key: {"name": key, "size": 0, "type": "file"} for key in keys}

    monkeypatch.setattr(type(store), "find", with_folders)
    source = open_source("memory://photos")
    assert (source.classes, [sample.key for sample in source]) == (("cat", "dog"), ["cat/1.png", "dog/1.png"])


@pytest.mark.parametrize("labels", ["memory://photos/labels.csv", "memory://tables/labels.csv", "{tmp}/labels.csv"])
def test_labels_and_images_may_lie_in_a_store(store, tmp_path, labels):
    store.pipe({"/photos/1.png": GRAY, "/photos/2.png": GRAY})
    with fsspec.open(labels.format(tmp=tmp_path), "w") as file:
        file.write("1.png,b\n2.png,a\n")
    source = open_source("memory://photos", labels=labels.format(tmp=tmp_path))
    assert (source.classes, source.labels.tolist()) == (("a", "b"), [1, 0])


def test_a_store_that_fails_while_colors_are_looked_for_is_an_error(gray_but_one, monkeypatch):
    """If the one image in color were left out, the whole set would turn gray."""
    assert open_source(gray_but_one).channels == 3
    failing(monkeypatch, "cat_file", times=1000, name="color")
    with pytest.raises(OSError, match=r"dog/color.png: could not be reached in 6 tries: 503"):
        open_source(gray_but_one)


def failing(monkeypatch, method, times, name=""):
    """Each of the store's requests for such a name first fails, so many times; how often it was made by then."""
    store, failures = fsspec.implementations.memory.MemoryFileSystem, Counter[str]()
    real = getattr(store, method)

    def fails(self, path, *arguments, **options):
        failures[path] += name in path
        if name in path and failures[path] <= times:
            raise TimeoutError("503, slow down")
        return real(self, path, *arguments, **options)

    monkeypatch.setattr(store, method, fails)
    monkeypatch.setattr(retrying.time, "sleep", lambda seconds: None)
    return failures


@pytest.mark.parametrize("method", ["info", "find", "cat_file"])
def test_a_run_outlasts_requests_that_fail_a_few_times(gray_but_one, tmp_path, monkeypatch, method):
    failures = failing(monkeypatch, method, times=3)
    source = open_source(gray_but_one)
    failures.clear()
    assert write_shards(source, tmp_path, "keep").num_samples == 3


def test_a_store_that_fails_is_not_called_a_full_disk(gray_but_one, tmp_path, monkeypatch):
    source = open_source(gray_but_one)
    failing(monkeypatch, "put_file", times=1000)
    with pytest.raises(OSError, match=r"^memory://photos/out: could not write shards \(.*503.*--resume$") as of_writing:
        write_shards(source, "memory://photos/out")
    failing(monkeypatch, "info", times=1000)
    with pytest.raises(
        SourceError, match=r"^could not ask for the state of the source's files: memory:.*503"
    ) as of_state:
        write_shards(source, tmp_path, "keep")
    assert "space" not in f"{of_writing.value} {of_state.value}"


def test_a_folder_that_cannot_be_listed_is_not_taken_for_an_empty_one(tmp_path, monkeypatch):
    """fsspec's own walk leaves it out."""
    pytest.importorskip("aiohttp")
    for name in ("cat/1.png", "dog/1.png"):
        (tmp_path / name).parent.mkdir()
        (tmp_path / name).write_bytes(GRAY)
    monkeypatch.setattr(retrying.time, "sleep", lambda seconds: None)
    with web_server(tmp_path, lists=True) as web:
        web.put_in(Fault(reset=True), times=4)  # aiohttp tries each request twice
        assert RemoteFiles(web.url).names() == ["cat/1.png", "dog/1.png"]
        web.put_in(Fault(reset=True))
        with pytest.raises(OSError, match="could not be reached in 6 tries"):
            RemoteFiles(web.url).names()


def test_a_file_of_a_web_server_has_changed_when_its_time_has(tmp_path):
    pytest.importorskip("aiohttp")
    (tmp_path / "cat.png").write_bytes(GRAY)
    with web_server(tmp_path) as web:
        files, states = RemoteFiles(web.url), []
        for time_of_change in (10**9, 10**9, 2 * 10**9):
            os.utime(tmp_path / "cat.png", (time_of_change, time_of_change))
            states.append(files.state("cat.png"))
    assert states[0] == states[1] != states[2]


def test_a_broken_image_has_no_say_in_the_channels(store):
    store.pipe({"/photos/cat/0.png": b"text", "/photos/dog/1.png": GRAY, "/photos/dog/2.png": b""})
    source = open_source("memory://photos")
    assert source.channels == 1
    with pytest.raises(ValueError, match=r"memory://photos/cat/0.png: not an image: it begins with b'text'"):
        source[0]


def test_a_file_over_the_budget_is_refused_by_whoever_is_to_read_it(gray_but_one, monkeypatch):
    """A worker, which has no listing, gets a list of the few files that are too large."""
    monkeypatch.setattr(source_files, "MAX_FILE_BYTES", 10)
    source = open_source(gray_but_one)
    part = pickle.loads(pickle.dumps(source.take(np.array([2]))))
    for reader, index in ((source, 0), (part, 0)):
        with pytest.raises(ValueError, match=r"bytes, expected an image of at most 10"):
            reader[index]


@pytest.mark.parametrize("url", ["{tmp}/photos", "memory://photos"])
def test_a_part_that_travels_knows_its_own_files_alone(store, tmp_path, url):
    files, place = fsspec.url_to_fs(url.format(tmp=tmp_path))
    for name in ("cat", "dog"):
        files.makedirs(f"{place}/{name}")
        files.pipe({f"{place}/{name}/{index:05d}.png": COLOR for index in range(1000)})
    part = open_source(url.format(tmp=tmp_path)).take(np.array([1999, 3]))
    travelled = pickle.dumps(part)
    assert len(travelled) < 2000
    assert [sample.key for sample in pickle.loads(travelled)] == ["dog/00999.png", "cat/00003.png"]
