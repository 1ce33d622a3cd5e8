"""Shards: a data set as webdataset tars with DALI indexes and a manifest. See README.md."""

from .codec import EXTENSIONS
from .errors import ShardError
from .folder import check_vacant, read_manifest, shard_sets
from .manifest import Manifest, Shard
from .progress import Progress
from .reader import check_hashes, check_shards, iterate_shards, load_shards, read_shard
from .verify import verify_shards
from .writer import write_shards

__all__ = [
    "EXTENSIONS",
    "Manifest",
    "Progress",
    "Shard",
    "ShardError",
    "check_hashes",
    "check_shards",
    "check_vacant",
    "iterate_shards",
    "load_shards",
    "read_manifest",
    "read_shard",
    "shard_sets",
    "verify_shards",
    "write_shards",
]
