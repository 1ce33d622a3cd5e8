import pytest

from fdt_pipeline.shards import write_shards
from fdt_pipeline.sources import ArraySource, open_source
from tests.conftest import SUBSET


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
