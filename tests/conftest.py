"""Data sets for the tests: real Fashion-MNIST in shards, and made-up images that identify themselves."""

import locale
import os
import signal
import struct
from dataclasses import replace
from pathlib import Path

if "PYTEST_XDIST_WORKER" in os.environ:  # one core a worker: torch's and OpenMP's threads would wait for each other
    os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import pytest
import torch
from hypothesis import settings

from fdt_pipeline.shards import read_manifest, write_shards
from fdt_pipeline.sources import ArraySource, open_source
from fdt_pipeline.storage import open_folder
from tests.numbered import LABELS, numbered_images

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    # Started in the background by a shell: the processes of the tests about Ctrl-C would inherit that it is ignored.
    signal.signal(signal.SIGINT, signal.default_int_handler)

settings.register_profile("any machine", deadline=None)  # on a busy one an example of 20 ms took 300
settings.load_profile("any machine")

SUBSET = Path(__file__).parents[1] / "train" / "data" / "fashion_mnist_subset"


SLOW = {"process", "soak", "compile", "cluster", "peer"}


@pytest.hookimpl(tryfirst=True)  # before -m selects
def pytest_collection_modifyitems(items):
    for item in items:
        if SLOW.intersection(mark.name for mark in item.iter_markers()):
            item.add_marker("slow")


@pytest.fixture(scope="session")
def fashion_shards(tmp_path_factory):
    """Folder with train/ (5,000) and test/ (1,000): the embedded subset as raw shards."""
    folder = tmp_path_factory.mktemp("fashion")
    for split in ("train", "test"):
        write_shards(open_source(SUBSET, split=split), folder / split, seed=1)
    return folder


@pytest.fixture(scope="session")
def numbered_shards(tmp_path_factory):
    """Folder of the 230 numbered images in 4 raw shards."""
    folder = tmp_path_factory.mktemp("numbered") / "shards"
    write_shards(ArraySource(numbered_images(), LABELS), folder, samples_per_shard=60, seed=3)
    return folder


@pytest.fixture(scope="session")
def few_shards(tmp_path_factory):
    """Folder with train/ (300) and test/ (100): real images, few enough to train on in a test."""
    folder = tmp_path_factory.mktemp("few")
    for split, n in (("train", 300), ("test", 100)):
        source = open_source(SUBSET, split=split)
        order = [i for c in range(10) for i in (source.labels == c).nonzero()[0][: n // 10]]
        few = ArraySource(source.images[order], source.labels[order], source.classes)
        write_shards(few, folder / split, samples_per_shard=100)
    return folder


@pytest.fixture(scope="session")
def many_classes(tmp_path_factory):
    """Folder of 20 numbered images in raw shards, of 10 of 65,537 classes: one more than the native operators take."""
    folder = tmp_path_factory.mktemp("many_classes") / "shards"
    write_shards(ArraySource(numbered_images(20), np.arange(20) % 10), folder)
    manifest = read_manifest(open_folder(folder))
    names, counts = tuple(map(str, range(65_537))), (*manifest.samples_per_class, *[0] * 65_527)
    (folder / "manifest.json").write_text(replace(manifest, classes=names, samples_per_class=counts).to_json())
    return folder


@pytest.fixture
def decimal_comma(tmp_path, monkeypatch):
    """This process's C library writes and reads 1/2 as "0,5", as in de_DE."""
    folder = tmp_path / "locales" / "comma"
    folder.mkdir(parents=True)
    # What localedef makes of a locale's numbers: magic, six offsets, then ",", ".", groups of three, and "UTF-8".
    offsets = struct.pack("<8I", 0x20031114, 6, 32, 34, 36, 40, 44, 48)
    (folder / "LC_NUMERIC").write_bytes(offsets + b",\0.\0\3\3\0\0,\0\0\0.\0\0\0UTF-8\0")
    monkeypatch.setenv("LOCPATH", str(folder.parent))
    before = locale.setlocale(locale.LC_NUMERIC)
    try:
        locale.setlocale(locale.LC_NUMERIC, folder.name)
    except locale.Error:
        pytest.skip("the C library takes no locale from $LOCPATH")
    assert locale.localeconv()["decimal_point"] == ","
    yield
    locale.setlocale(locale.LC_NUMERIC, before)


@pytest.fixture(scope="module")
def one_thread():
    """For networks so tiny that a second thread makes their tests seven times slower on two shared cores."""
    num_threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(num_threads)
