"""Data sets for the tests: real Fashion-MNIST in shards, and made-up images that identify themselves."""

import os
import signal
from pathlib import Path

if "PYTEST_XDIST_WORKER" in os.environ:  # one core a worker: torch's and OpenMP's threads would wait for each other
    os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest
import torch
from hypothesis import settings

from fdt_pipeline.shards import write_shards
from fdt_pipeline.sources import ArraySource, open_source
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


@pytest.fixture(scope="module")
def one_thread():
    """For networks so tiny that a second thread makes their tests seven times slower on two shared cores."""
    num_threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(num_threads)
