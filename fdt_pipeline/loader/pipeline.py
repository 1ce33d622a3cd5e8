"""`fdt_pipeline`: what FDTLoader does in training, as a `@pipeline_def` function for DALI's own iterators."""

from __future__ import annotations

import os
import warnings
from typing import Any, Literal
from weakref import WeakValueDictionary

import torch
from nvidia.dali import Pipeline

from fdt_pipeline.definition.philox import Stream, random_words
from fdt_pipeline.definition.superposition import FDT, PLAIN, Augment
from fdt_pipeline.loader.batch_sources import IdSource, WindowSource
from fdt_pipeline.loader.engines import NativeResident, NativeStreaming, check_native_classes
from fdt_pipeline.loader.graphs import fn, pipeline_def, types
from fdt_pipeline.loader.memory import SAMPLES_PER_CLASS, choose_mode, is_small_window
from fdt_pipeline.loader.options import (
    PAPER_STD,
    PerChannel,
    check_at_least_one,
    check_choice,
    check_count,
    check_size,
    checked_image_size,
    checked_mixing,
    checked_output,
)
from fdt_pipeline.loader.ranks import Batching, LastBatch, find_ranks
from fdt_pipeline.loader.resident_pool import read_pool
from fdt_pipeline.loader.stage import Mixing
from fdt_pipeline.native import NativeUnavailable
from fdt_pipeline.native.load import load
from fdt_pipeline.native.pool import NativePool
from fdt_pipeline.shards import Manifest, check_hashes, check_shards, read_manifest
from fdt_pipeline.shards.files import files_of
from fdt_pipeline.shards.progress import progress_bar
from fdt_pipeline.storage import Folder, open_folder

# (sha256 of the manifest, pad, device) -> the images in its memory, which the pipelines of a process share
_pools: WeakValueDictionary[tuple[str, int, torch.device], NativePool] = WeakValueDictionary()


@pipeline_def
def fdt_pipeline(
    shards: str | os.PathLike[str],
    *,
    mix: FDT | Literal["default"] | None = "default",
    augment: Augment | Literal["default"] | None = "default",
    plan_seed: int = 0,
    mode: Literal["auto", "resident", "streaming"] = "auto",
    mean: PerChannel | None = None,
    std: PerChannel = PAPER_STD,
    channels: int | None = None,
    dtype: torch.dtype = torch.float32,
    channels_last: bool = False,
    size: tuple[int, int] | None = None,
    verify: bool = True,
    epoch: int = 0,
    rank: int | None = None,
    world_size: int | None = None,
    last_batch: LastBatch = "partial",
    device: Literal["cpu", "gpu"] = "cpu",
) -> Any:
    """Outputs images, targets of training from a folder of shards, one epoch after the other.

        pipeline = fdt_pipeline("shards/train", batch_size=256, num_threads=4, device_id=None)
        batches = DALIGenericIterator(pipeline, ["images", "targets"])  # size stays -1
        for epoch in range(2):
            for [batch] in batches:
                train(batch["images"], batch["targets"])
            batches.reset()

    shards, mix, augment, mode, mean, std, channels, size, verify, rank, world_size and last_batch are FDTLoader's,
    plan_seed is its seed, and the outputs are its outputs. (The `seed` of a DALI pipeline decides nothing here.)
    Streaming mixes within a DALI batch, so batch_size is the mix window too, and last_batch="fill" goes on with this
    rank's samples just before the last batch.
    images: dtype (torch.float32 or torch.float16) [c h w], or [h w c] with channels_last; targets: f32 [num_classes].
    epoch: of the first pass; `reset` goes on to the next. device: "cpu" or "gpu", the one that device_id says.

    DALI's checkpoints (enable_checkpointing, checkpoint) resume exactly, with the same arguments; mode="auto" is then
    what it was. Errors: ValueError (ShardError where shards are broken) when the pipeline is made; NativeUnavailable,
    an ImportError, where the operators cannot be built, as there is no other engine here.
    """
    pipeline = Pipeline.current()
    check_at_least_one(batch_size=pipeline.max_batch_size, num_threads=pipeline.num_threads)
    check_choice("mode", mode, ("auto", "resident", "streaming"))
    check_choice("last_batch", last_batch, ("partial", "drop", "fill"))
    check_size(size)
    check_count("plan_seed", plan_seed, 0)
    random_words(plan_seed, Stream.PLAN, 0, 0, 0)  # raises where it is out of range
    if not hasattr(epoch, "__index__") or not 0 <= epoch < 2**32:
        raise ValueError(f"epoch must be in [0, 2**32), got {epoch}")
    on_device = _checked_device(device, pipeline.device_id)
    folder = open_folder(shards)
    manifest = read_manifest(folder)
    if folder.local:  # a remote shard is checked when it is fetched
        check_shards(folder, manifest)
    batching = Batching(manifest.num_samples, pipeline.max_batch_size, last_batch, find_ranks(rank, world_size))
    chosen, augmented = checked_mixing(True, mix, augment, len(manifest.classes))
    if dtype == torch.bfloat16:
        raise ValueError("DALI has no bfloat16: leave dtype torch.float32 or take torch.float16, and cast the batches")
    output = checked_output(manifest.channels, channels, mean, std, dtype, channels_last)
    mixing = Mixing(plan_seed, chosen or PLAIN, augmented, len(manifest.classes), output)
    checkpoint = getattr(pipeline, "_checkpoint", None)
    if size is not None and mode == "auto":
        mode = "streaming"
    elif checkpoint is not None and mode == "auto":  # it names the operators that it is of
        mode = "resident" if b"SuperposeResident" in checkpoint else "streaming"
    world_size = batching.ranks.world_size
    chosen_mode = choose_mode(mode, manifest.num_samples, manifest.shape, 0, on_device, world_size)
    checked_image_size(manifest.shape, folder.url, chosen_mode, size)
    check_native_classes(len(manifest.classes))
    _load_operators()
    if chosen_mode == "resident":
        pool = _pool(folder, manifest, augmented.pad, on_device)
        arguments = {**NativeResident(mixing, on_device, pool, False).arguments, "pool": pool.name}
        return _resident_graph(IdSource(batching, epoch, pool), arguments, device)
    _warn_of_small_windows(chosen, batching, len(manifest.classes))
    if verify and folder.local:
        with progress_bar(f"check {folder.url}", "shards", delay=2) as progress:
            check_hashes(folder, manifest, pipeline.num_threads, progress)
    depth = max(1, pipeline.prefetch_queue_depth)
    source = WindowSource(files_of(folder, manifest), manifest, plan_seed, batching, epoch, depth)
    arguments = NativeStreaming(mixing, on_device, batching.batch_size).arguments
    return _streaming_graph(source, manifest, size, arguments, device)


def _resident_graph(source: IdSource, arguments: dict[str, Any], device: str) -> Any:
    ids = fn.external_source(source=source, batch=True, batch_info=True, dtype=types.INT64, ndim=1)
    return tuple(fn.fdt.superpose_resident(ids, device=device, **arguments))


def _streaming_graph(
    source: WindowSource, manifest: Manifest, size: tuple[int, int] | None, arguments: dict[str, Any], device: str
) -> Any:
    encoded = manifest.encoding != "raw"
    image, label, ids = fn.external_source(
        source=source,
        num_outputs=3,
        batch=True,
        batch_info=True,
        dtype=[types.UINT8, types.INT64, types.INT64],
        ndim=[1 if encoded else 3, 1, 1],
        layout=["" if encoded else "HWC", "", ""],
    )
    kind = types.GRAY if manifest.channels == 1 else types.RGB
    u8 = fn.decoders.image(image, device="cpu", output_type=kind) if encoded else image
    u8 = fn.resize(u8, size=size) if size else u8
    u8 = u8.gpu() if device == "gpu" else u8
    return tuple(fn.fdt.superpose(u8, label, ids, device=device, **arguments))


def _pool(folder: Folder, manifest: Manifest, pad: int, device: torch.device) -> NativePool:
    """The whole set in the device's memory, once a process."""
    key = manifest.sha256, pad, device
    pool = _pools.get(key)
    if pool is None:
        pool = _pools[key] = read_pool(folder, manifest, pad, device)
    return pool


def _load_operators() -> None:
    try:
        load()
    except NativeUnavailable as obstacle:
        raise NativeUnavailable(f"fdt_pipeline needs the native operators, unlike FDTLoader: {obstacle}") from obstacle


def _checked_device(device: str, device_id: int | None) -> torch.device:
    """As torch names it."""
    check_choice("device", device, ("cpu", "gpu"))
    if device == "cpu":
        return torch.device("cpu")
    if device_id is None or device_id < 0:
        raise ValueError(f'device="gpu" needs the number of one: pass device_id=0, got device_id={device_id}')
    return torch.device("cuda", device_id)


def _warn_of_small_windows(fdt: FDT | None, batching: Batching, num_classes: int) -> None:
    num_samples = batching.total // batching.ranks.world_size
    window = min(batching.batch_size, num_samples)
    if fdt and is_small_window(fdt, window, num_samples, num_classes):
        wanted = fdt.most_images(num_classes)
        warnings.warn(
            f"a DALI batch of {window} samples, which is the mix window, will often hold fewer than {wanted} classes, "
            f"so fewer images are superposed than asked: pass batch_size={SAMPLES_PER_CLASS * wanted} or more, or "
            'mode="resident"',
            stacklevel=4,
        )
