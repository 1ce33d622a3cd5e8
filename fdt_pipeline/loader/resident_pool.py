"""A set of shards in memory, as the native operator draws from it."""

from __future__ import annotations

import numpy as np
import torch

from fdt_pipeline.definition.superposition import Pool
from fdt_pipeline.native.pool import HOST, NativePool
from fdt_pipeline.shards import Manifest, iterate_shards
from fdt_pipeline.shards.progress import progress_bar
from fdt_pipeline.storage import Folder


def read_pool(folder: Folder, manifest: Manifest, pad: int, device: torch.device) -> NativePool:
    """Every shard read, and its sha256 checked; images of one shape, which plans may shift by up to `pad` pixels. On
    the way to a GPU one shard at a time is in the host's memory."""
    index = (device.index or 0) if device.type == "cuda" else HOST
    pool = NativePool.begin(manifest.num_samples, manifest.shape or (), pad, index)
    labels = np.empty(manifest.num_samples, np.int64)
    with progress_bar(f"load {folder.url}", "images", delay=2) as progress:
        for shard in iterate_shards(folder, manifest, progress):
            pool.set_images(shard.first, shard.images)
            labels[shard.first : shard.first + len(shard.labels)] = shard.labels
    return pool.finish(Pool(labels, len(manifest.classes)))
