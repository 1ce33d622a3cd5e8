"""Shards: a data set as webdataset tars with DALI indexes and a manifest. See README.md."""

from .codec import EXTENSIONS, ShardingOptions
from .conversion import convert_shards
from .folder import check_shards, classes_beside, read_manifest, shard_sets, webdataset_files
from .in_place import BadTarsError, InPlace, index_in_place
from .labels import LabelField, label_field, read_classes
from .manifest import Manifest, Quarantined, Shard, ShardError
from .progress import Progress
from .reader import check_hashes, iterate_shards, load_shards
from .running import WorkerError
from .task import BadSampleError, SourceError
from .verify import verify_shards
from .writer import check_vacant, write_shards

__all__ = [
    "EXTENSIONS",
    "BadSampleError",
    "BadTarsError",
    "InPlace",
    "LabelField",
    "Manifest",
    "Progress",
    "Quarantined",
    "Shard",
    "ShardError",
    "ShardingOptions",
    "SourceError",
    "WorkerError",
    "check_hashes",
    "check_shards",
    "check_vacant",
    "classes_beside",
    "convert_shards",
    "index_in_place",
    "iterate_shards",
    "label_field",
    "load_shards",
    "read_classes",
    "read_manifest",
    "shard_sets",
    "verify_shards",
    "webdataset_files",
    "write_shards",
]
