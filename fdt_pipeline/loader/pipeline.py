"""`fdt_pipeline`: what FDTLoader does in training, as a `@pipeline_def` function for DALI's own iterators.

DALI calls for a batch with its BatchInfo (epoch_idx, iteration). A batch is a function of its epoch and its number
alone, so DALI's checkpoints, which keep these two, resume exactly. StopIteration ends an epoch; `reset` begins the
next.
"""

from __future__ import annotations

import os
import weakref
from collections.abc import Callable, Iterator
from typing import Any, Literal
from weakref import WeakValueDictionary

import numpy as np
import torch
from nvidia.dali import Pipeline

from fdt_pipeline.definition.mixing import Mix
from fdt_pipeline.definition.superposition import Augment
from fdt_pipeline.loader import graphs
from fdt_pipeline.loader.decoding import Decoding, Preprocess
from fdt_pipeline.loader.engines import check_native_classes
from fdt_pipeline.loader.graphs import fn, pipeline_def
from fdt_pipeline.loader.memory import choose_mode, read_pool, warn_of_small_ring
from fdt_pipeline.loader.mixes import MixContext
from fdt_pipeline.loader.options import (
    PAPER_STD,
    Augmentation,
    LastBatch,
    Options,
    PerChannel,
    check_choice,
    check_count,
    checked_image_size,
    checked_threads,
    chosen_augment,
    chosen_mix,
    chosen_normalization,
)
from fdt_pipeline.loader.order import Batching, EpochOrder, check_ranks, epoch_order, find_ranks
from fdt_pipeline.loader.prefetch import Prefetcher
from fdt_pipeline.loader.preprocessing import check_preprocess
from fdt_pipeline.loader.reading import Samples, first_positions, read_samples
from fdt_pipeline.native import NativeUnavailable
from fdt_pipeline.native.load import load
from fdt_pipeline.native.pool import NativePool
from fdt_pipeline.shards import Manifest, check_hashes, check_shards, read_manifest
from fdt_pipeline.shards.files import LocalShardFiles, ShardFiles, files_of
from fdt_pipeline.shards.progress import progress_bar
from fdt_pipeline.sources.source import I64
from fdt_pipeline.storage import Folder, open_folder

# (sha256 of the manifest, pad, device) -> the images in its memory, which the pipelines of a process share
_pools: WeakValueDictionary[tuple[str, int, torch.device], NativePool] = WeakValueDictionary()


@pipeline_def
def fdt_pipeline(
    shards: str | os.PathLike[str],
    *,
    mix: Mix | Literal["default"] | None = "default",
    augment: Augmentation | Literal["default"] | None = "default",
    preprocess: Preprocess | None = None,
    plan_seed: int = 0,
    mode: Literal["auto", "resident", "streaming"] = "auto",
    mean: PerChannel | None = None,
    std: PerChannel = PAPER_STD,
    normalize: Literal["imagenet"] | None = None,
    channels: int | None = None,
    dtype: torch.dtype = torch.float32,
    channels_last: bool = False,
    size: tuple[int, int] | None = None,
    verify: bool = False,
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

    shards, mix, augment, preprocess, mode, mean, std, normalize, channels, size, verify, rank, world_size and
    last_batch are FDTLoader's, plan_seed is its seed, and the outputs are its outputs. (The `seed` of a DALI pipeline
    decides nothing here.) A mix is one for all epochs. Streaming mixes within a DALI batch (partners="batch", or None),
    so that should be a large one, and last_batch="fill" goes on with this rank's samples just before the last batch.
    images: dtype (torch.float32 or torch.float16) [c h w], or [h w c] with channels_last; targets: f32 [num_classes].
    epoch: of the first pass; `reset` goes on to the next. device: "cpu" or "gpu", the one that device_id says.

    DALI's checkpoints (enable_checkpointing, checkpoint) resume exactly, with the same arguments; mode="auto" is then
    what it was. Errors: ValueError (ShardError where shards are broken) when the pipeline is made; NativeUnavailable,
    an ImportError, where the operators cannot be built, as there is no other engine here.
    """
    pipeline = Pipeline.current()
    check_count("plan_seed", plan_seed, 0)
    if not hasattr(epoch, "__index__") or not 0 <= epoch < 2**32:
        raise ValueError(f"epoch must be in [0, 2**32), got {epoch}")
    if dtype == torch.bfloat16:
        raise ValueError("DALI has no bfloat16: leave dtype torch.float32 or take torch.float16, and cast the batches")
    mean, std = chosen_normalization(normalize, mean, std)
    options = Options(
        batch_size=pipeline.max_batch_size, num_threads=checked_threads(pipeline.num_threads),
        mix=chosen_mix(True, mix), augment=chosen_augment(True, augment),
        device=_checked_device(device, pipeline.device_id), mode=mode, seed=plan_seed, mean=mean, std=std,
        channels=channels, dtype=dtype, channels_last=channels_last, size=size, preprocess=preprocess, verify=verify,
        last_batch=last_batch,
    )  # fmt: skip
    if callable(options.mix):
        raise ValueError("a mix that is a function of the epoch is for FDTLoader: pass one mix for all epochs, or None")
    if options.mix is not None and options.mix.partners == "ring":
        raise ValueError('partners="ring" is for FDTLoader, as DALI mixes within its batch: pass partners="batch" here')
    folder = open_folder(shards)
    manifest = read_manifest(folder)
    if folder.local:  # a remote shard is checked when it is fetched
        check_shards(folder, manifest)
    ranks = find_ranks(rank, world_size)
    batching = Batching(manifest.num_samples, options.batch_size, last_batch, ranks)
    mixing = options.mixing(manifest)
    asked = _mode_of_checkpoint(pipeline) or options.asked_mode(mixing.mix.partners) if mode == "auto" else mode
    chosen = choose_mode(asked, manifest.num_samples, manifest.shape, 0, options.device, ranks.world_size)
    height, width = checked_image_size(manifest.shape, folder.url, chosen, options.image_size)
    context = MixContext(
        mixing.num_classes, manifest.num_populated_classes, chosen, batching.batch_size, batching.smallest_batch
    )
    if options.mix is not None:
        context.check(options.mix, in_batch=chosen == "streaming")
    check_native_classes(mixing.num_classes)
    _load_operators()
    if chosen == "resident":
        pool = _pool(folder, manifest, options)
        ids = fn.external_source(source=IdSource(batching, epoch, pool, rank is None), batch_info=True, **graphs.IDS)
        return graphs.resident(ids, graphs.resident_arguments(mixing, pool), device)
    of_rank = batching.total // ranks.world_size
    window = min(batching.batch_size, of_rank)
    warn_of_small_ring("DALI batch", options.mix, window, of_rank, mixing.num_classes, stacklevel=3)
    files = files_of(folder, manifest)
    if verify and isinstance(files, LocalShardFiles):
        with progress_bar(f"check {folder.url}", "shards", delay=2) as progress:
            check_hashes(folder, manifest, options.num_threads, progress)
        files.mark_checked()
    depth = max(1, pipeline.prefetch_queue_depth)
    decoding = options.decoding(manifest)
    if preprocess is not None:
        check_preprocess(preprocess, (height, width, manifest.channels))
    source = SampleSource(files, manifest, decoding, mixing.seed, batching, epoch, depth, rank is None)
    image, label, ids, *numbers = fn.external_source(
        source=source, batch_info=True, num_outputs=3 + len(decoding.input_names), **graphs.batch_inputs(decoding)
    )
    named = {name: numbers[place] for place, name in enumerate(decoding.input_names)}
    image = graphs.decode(image, decoding, **named)
    return graphs.superpose(image, label, ids, graphs.streaming_arguments(mixing, options.batch_size), device)


class IdSource:
    """-> i64[n 2], the (epoch, index) of every output of a batch."""

    def __init__(self, batching: Batching, first_epoch: int, pool: object, checks_ranks: bool) -> None:
        self.batching, self.first_epoch, self.checks_ranks = batching, first_epoch, checks_ranks
        self.pool = pool  # kept here until the operator, which DALI makes when it builds, has found it

    def __call__(self, info: Any) -> I64:
        if self.checks_ranks:  # with every batch, as the first ones may be made before the ranks are known
            check_ranks(self.batching.ranks)
        if info.iteration >= self.batching.num_batches:
            raise StopIteration
        return _ids(self.first_epoch + info.epoch_idx, self.batching.span(info.iteration).numbers())


class SampleSource:
    """-> images as `Samples` has them, labels i64[n 1], (epoch, index) pairs i64[n 2] of a batch, and what
    `Decoding.inputs` gives for it.

    Up to `depth` batches are read ahead, on a thread that ends with the epoch, with this object, and before the
    interpreter does.
    """

    def __init__(
        self,
        files: ShardFiles,
        manifest: Manifest,
        decoding: Decoding,
        seed: int,
        batching: Batching,
        first_epoch: int,
        depth: int,
        checks_ranks: bool,
    ) -> None:
        self.files, self.manifest, self.seed, self.batching = files, manifest, seed, batching
        self.decoding, self.starts = decoding, first_positions(manifest)
        self.first_epoch, self.depth, self.checks_ranks = first_epoch, depth, checks_ranks
        self._samples: Iterator[Samples] = iter(())
        self._next: tuple[int, int] | None = None  # epoch and number of the batch that _samples gives next
        self._first = 0  # the index of this rank's first output of the epoch
        self._close: Callable[[], object] = lambda: None

    def __call__(self, info: Any) -> tuple[Any, ...]:
        if self.checks_ranks:
            check_ranks(self.batching.ranks)
        epoch, number = self.first_epoch + info.epoch_idx, info.iteration
        if number >= self.batching.num_batches:
            self._close()
            raise StopIteration
        if self._next != (epoch, number):  # a new epoch, or one that a checkpoint resumes
            self._open(epoch, number)
        self._next = None  # after an error it is opened again, as what has failed would seem to have ended
        samples = next(self._samples)
        self._next = epoch, number + 1
        index = self._first + number * self.batching.batch_size + np.arange(len(samples.labels))
        numbers = self.decoding.of_samples(self.seed, epoch, samples, self.starts)
        return samples.images, samples.labels, _ids(epoch, index), *numbers.values()

    def _open(self, epoch: int, number: int) -> None:
        self._close()
        self.files.check_unchanged()
        order, size = self._order(epoch), self.batching.batch_size
        bounds = order.bounds(number * size, size)
        with_sizes = self.decoding.crop is not None
        samples = Prefetcher(read_samples(self.files, self.manifest, order, bounds, with_sizes=with_sizes), self.depth)
        self._samples, self._first = samples, order.first
        self._close = weakref.finalize(self, samples.close)

    def _order(self, epoch: int) -> EpochOrder:
        """Of this rank's samples."""
        size, ranks = self.batching.batch_size, self.batching.ranks
        order = epoch_order(self.manifest, self.seed, epoch, size, ranks.rank, ranks.world_size)
        return order.of_batches(self.batching.num_batches, size, self.batching.last_batch == "fill")


def _ids(epoch: int, index: I64) -> I64:
    """i64[n] -> i64[n 2]: the (epoch, index) of each output."""
    return np.stack([np.full_like(index, epoch), index], axis=1)


def _mode_of_checkpoint(pipeline: Any) -> Literal["resident", "streaming"] | None:
    """A checkpoint names the operators that it is of."""
    checkpoint = getattr(pipeline, "_checkpoint", None)
    if checkpoint is None:
        return None
    return "resident" if b"SuperposeResident" in checkpoint else "streaming"


def _pool(folder: Folder, manifest: Manifest, options: Options) -> NativePool:
    """The whole set in the device's memory, once a process."""
    assert isinstance(options.augment, Augment)
    key = manifest.sha256, options.augment.pad, options.device
    pool = _pools.get(key)
    if pool is None:
        pool = _pools[key] = read_pool(folder, manifest, options.augment.pad, options.device, options.num_threads)
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
