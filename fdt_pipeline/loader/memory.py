"""Where the images live: the rule behind mode="auto", pools in memory, and the size of streaming's ring."""

from __future__ import annotations

import math
import os
import warnings
from typing import Literal

import numpy as np
import torch

from fdt_pipeline.definition.mixing import Mix
from fdt_pipeline.definition.superposition import Pool
from fdt_pipeline.loader.mixes import classes_wanted
from fdt_pipeline.loader.options import check_count, checked_device
from fdt_pipeline.loader.order import local_world_size
from fdt_pipeline.machine import available_memory, total_memory
from fdt_pipeline.native.pool import HOST, NativePool
from fdt_pipeline.shards import Manifest, iterate_shards, read_manifest
from fdt_pipeline.shards.progress import progress_bar
from fdt_pipeline.storage import Folder, open_folder

# With 10 random samples a class 0.005 % of the classes are missing on average (e**-10), with 5 a class 0.7 %.
RING_SAMPLES = 1024
SAMPLES_PER_CLASS = 10
ENOUGH_PER_CLASS = 5
RING_BYTES = 2 << 30  # 14,266 images of 224 x 224
SHUFFLED = 1024  # places that streaming moves a sample, at most: meanwhile it waits, still encoded


def pool_bytes(num_samples: int, shape: tuple[int, int, int], pad: int) -> int:
    """Bytes that a resident pool takes: every image as u8; where the engine keeps it with a frame of `pad` zeros, once
    more with that, as both are there while the frames are made."""
    h, w, c = shape
    return num_samples * (h * w * c + ((h + 2 * pad) * (w + 2 * pad) * c if pad else 0))


def available_bytes(device: torch.device) -> int:
    """Free memory of the host, and at most a GPU's own: on its way there the torch engine's set is on the host whole,
    the native engine's a shard at a time."""
    host = available_memory()
    return min(host, torch.cuda.mem_get_info(device)[0]) if device.type == "cuda" else host


def room_for_pool(device: torch.device, world_size: int) -> int:
    """Bytes that a resident pool may take: half of the free memory. What is free may differ from rank to rank, and all
    ranks must choose alike, so with several it is a quarter of the memory there is, shared by those of a machine."""
    if world_size == 1:
        return available_bytes(device) // 2
    host = total_memory() // (4 * local_world_size(world_size))
    return min(host, torch.cuda.mem_get_info(device)[1] // 4) if device.type == "cuda" else host


def choose_mode(
    mode: str, num_samples: int, shape: tuple[int, int, int] | None, pad: int, device: torch.device, world_size: int = 1
) -> str:
    """For "auto": resident where all images have one shape and there is room for the pool."""
    if mode != "auto":
        return mode
    if shape is None or pool_bytes(num_samples, shape, pad) > room_for_pool(device, world_size):
        return "streaming"
    return "resident"


def is_small_ring(mix: Mix | None, ring: int, num_samples: int, num_classes: int) -> bool:
    """Whether so many samples, of classes of one size, will often be of fewer classes than the largest sum takes: on
    average 0.7 % fewer, as where it takes all classes and there are 5 samples of each."""
    wanted = classes_wanted(mix, num_classes)
    if wanted == 1 or ring >= min(ENOUGH_PER_CLASS * wanted, num_samples):
        return False
    if wanted == num_classes or ring < wanted:
        return True
    chances = np.eye(1, wanted + 1)[0]  # that the samples so far are of 0, 1, .. classes, the last: of `wanted` or more
    old = np.arange(wanted + 1) / num_classes  # the chance that one more is of a class that is there
    old[-1] = 1
    for _ in range(ring):
        chances = chances * old + np.append(0, (chances * (1 - old))[:-1])
    return bool(chances @ np.arange(wanted, -1, -1) > wanted * math.exp(-ENOUGH_PER_CLASS))


def choose_ring(asked: int | None, least: int, mix: Mix | None, num_classes: int, shape: tuple[int, int, int]) -> int:
    """Images in the ring: as asked, or 1,024 (10 for each image of the largest sum where that is more) up to 2 GiB,
    but at least so many, a batch."""
    if asked is not None:
        if asked < least:
            raise ValueError(f"ring={asked} is smaller than a batch of {least}: pass {least} or more")
        return asked
    most = mix.most_images(num_classes) if mix else 1
    fitting = RING_BYTES // math.prod(shape)
    return max(least, min(max(RING_SAMPLES, SAMPLES_PER_CLASS * most), fitting))


_LARGER = {
    "ring": "ring={} or more, memory allowing",
    "batch": 'batch_size={} or more, or partners="ring"',
    "DALI batch": 'batch_size={} or more, or mode="resident"',
}


def warn_of_small_ring(
    kind: Literal["ring", "batch", "DALI batch"],
    mix: Mix | None,
    size: int,
    num_samples: int,
    num_classes: int,
    stacklevel: int,
) -> bool:
    """Warn where `is_small_ring`, and say whether it is. kind: what outputs are drawn from; size: of it."""
    is_small = is_small_ring(mix, size, num_samples, num_classes)
    if is_small:
        wanted = classes_wanted(mix, num_classes)
        within = "" if kind == "ring" else ", within which it mixes,"
        warnings.warn(
            f"a {kind} of {size} samples{within} will often hold fewer than {wanted} classes, so fewer images are "
            f"superposed than asked: pass {_LARGER[kind].format(SAMPLES_PER_CLASS * wanted)}",
            stacklevel=stacklevel + 1,
        )
    return is_small


def load_pool(
    shards: str | os.PathLike[str],
    *,
    pad: int = 4,
    device: str | torch.device = "cpu",
    num_threads: int | None = None,
    name: str | None = None,
) -> NativePool:
    """Read a set into memory for `fn.fdt.superpose_resident(ids, pool=pool.name)` in a pipeline of your own.

        pool = load_pool("shards/train")  # keep it: the operator finds it by its name when the pipeline is built

    shards: folder or URL of shards whose images have one shape. pad: the largest shift that plans may ask for.
    device: "cpu" or "cuda", where the operator draws from. num_threads: that read and check shards (default: up to 4).
    name: the pool's, for a pipeline that was serialized with it; by default one that no other pool has.
    The memory is free once the returned object and all operators that use it are gone.
    Errors: ValueError (ShardError where shards are broken); NativeUnavailable where the operators cannot be built.
    """
    check_count("pad", pad, 0)
    check_count("num_threads", num_threads, 1)
    folder = open_folder(shards)
    manifest = read_manifest(folder)
    return read_pool(folder, manifest, pad, checked_device(device), num_threads, name)


def read_pool(
    folder: Folder,
    manifest: Manifest,
    pad: int,
    device: torch.device,
    num_threads: int | None = None,
    name: str | None = None,
) -> NativePool:
    """Every shard read, and its sha256 checked. On the way to a GPU a few shards at a time are in the host's memory."""
    if manifest.shape is None:
        raise ValueError(f"{folder.url} holds images of different sizes, and a pool's have one: shard them at one size")
    index = (device.index or 0) if device.type == "cuda" else HOST
    pool = NativePool.begin(manifest.num_samples, manifest.shape, pad, index)
    labels = np.empty(manifest.num_samples, np.int64)
    with progress_bar(f"load {folder.url}", "images", delay=2) as progress:
        for shard in iterate_shards(folder, manifest, progress, num_threads):
            pool.set_images(shard.first, shard.images)
            labels[shard.first : shard.first + len(shard.labels)] = shard.labels
    return pool.finish(Pool(labels, len(manifest.classes)), name)
