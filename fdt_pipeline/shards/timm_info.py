"""The `_info.json` by which timm's webdataset reader knows a set: its splits, their tars and their lengths.

    timm.data.create_dataset("wds/photos", root="runs/photos", split="train", is_training=True, batch_size=64)

reads `_info.json` in `root`, and the tars by their paths from there: one file in OUT serves OUT/train and OUT/test.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from .manifest import Manifest

TIMM_INFO_NAME = "_info.json"


def timm_info(sets: Mapping[str, Manifest]) -> dict[str, Any]:
    """sets: folder -> manifest, as seen from where `_info.json` is to lie; "" is that folder itself.

    ValueError for raw shards, which hold arrays: timm leaves every sample of them out with a warning; and for two sets
    of one split.
    """
    splits: dict[str, dict[str, Any]] = {}
    for folder, manifest in sets.items():
        name = _split_name(folder, manifest)
        if manifest.encoding == "raw":
            raise ValueError(f"{folder or 'the set'}: timm reads jpg, png and webp, not raw: convert it to one of them")
        if name in splits:
            raise ValueError(f"{folder}: is a second set of the split {name!r}: expected one folder a split")
        splits[name] = _split(name, folder, manifest)
    return {"splits": splits}


def timm_info_json(sets: Mapping[str, Manifest]) -> bytes:
    return (json.dumps(timm_info(sets), indent=2) + "\n").encode("ascii")


def _split_name(folder: str, manifest: Manifest) -> str:
    """A set without splits is the one to train on."""
    return manifest.split or folder.rstrip("/").rpartition("/")[2] or "train"


def _split(name: str, folder: str, manifest: Manifest) -> dict[str, Any]:
    prefix = f"{folder.rstrip('/')}/" if folder else ""
    return {
        "name": name,
        "num_samples": manifest.num_samples,
        "filenames": [prefix + shard.name for shard in manifest.shards],
        "shard_lengths": [shard.num_samples for shard in manifest.shards],
    }
