"""FDTLoader: shards in, `(images, targets)` out, for any PyTorch trainer."""

from __future__ import annotations

import math
import operator
import os
import time
import warnings
import weakref
from _thread import interrupt_main
from collections.abc import Generator, Mapping
from contextlib import closing
from dataclasses import replace
from threading import Timer
from types import TracebackType
from typing import Any, Literal, NoReturn

import torch

from fdt_pipeline.definition.mixing import FDT, Mix
from fdt_pipeline.definition.superposition import Pool
from fdt_pipeline.loader.checkpoint import Cursor, OtherLoaderError, epoch_of, mode_of, pack_state, unpack_state
from fdt_pipeline.loader.decoding import Preprocess, preprocess_name
from fdt_pipeline.loader.engines import NativeResident, NativeStreaming, ResidentEngine, StreamingEngine, choose_engine
from fdt_pipeline.loader.epoch import EpochChain, Part, ResidentEpochs, StreamingEpochs
from fdt_pipeline.loader.memory import choose_mode, choose_ring, read_pool, warn_of_small_ring
from fdt_pipeline.loader.mixes import MixArgument, MixContext, MixSchedule, describe_mix, keeps_ring
from fdt_pipeline.loader.options import (
    PAPER_STD,
    Augmentation,
    LastBatch,
    Options,
    PerChannel,
    checked_device,
    checked_image_size,
    checked_threads,
    chosen_augment,
    chosen_mix,
    chosen_normalization,
)
from fdt_pipeline.loader.order import Batching, check_ranks, find_ranks
from fdt_pipeline.loader.preprocessing import check_preprocess
from fdt_pipeline.loader.running import DaliOptions
from fdt_pipeline.loader.stats import ClassWatch, LoaderStats, StatsCounter, annotated
from fdt_pipeline.loader.torch_engine import TorchResident, TorchStreaming
from fdt_pipeline.shards import check_hashes, check_shards, load_shards, read_manifest
from fdt_pipeline.shards.files import LocalShardFiles, files_of
from fdt_pipeline.shards.progress import progress_bar
from fdt_pipeline.storage import open_folder


class FDTLoader:
    """Batches `(images, targets)` from a folder of shards. Without `mix=` it mixes, by `FDT()`; `mix=None` does not.

    An epoch of training has as many outputs as the set has samples, in an order of its own (under FDT a sample may be
    in several of them or in none; under MixUp and CutMix each leads one); in evaluation it is every sample once, whole,
    in the order of the shards. What comes out:

    images: `dtype` [n c h w] on `device`, (pixel - mean) / std.
    targets: f32 [n num_classes], rows with sum 1; in evaluation labels, i64 [n]. `sparse_targets` makes them (classes,
        weights) where classes are many. With class weights w f32[num_classes] torch divides the loss of soft targets by
        n, but that of labels by the sum of their weights. This divides by the latter, for soft targets as for labels:
            loss = cross_entropy(logits, targets, weight=w, reduction="sum") / (targets * w).sum()
    weights, with weights=True: f32 [n], 0 for an output that only fills up the last batch, or takes a bad sample's
        place in evaluation, else 1. Metrics weighted so count every sample once, over any number of ranks.

    Which images (all arguments but the first two by name):

    shards: folder with manifest.json, made by `fdt-pipeline shard` or `index`; a path, or an fsspec URL (s3://, gs://,
        http(s)://), whose shards are fetched ahead into a cache (storage/README.md) and checked there.
    batch_size: of this rank; a global batch is batch_size * world_size outputs.
    train=True: False is evaluation, without mix and augment.
    rank=None, world_size=None: torch.distributed's, or torchrun's environment, when the loader is built; iterating is
        an error if torch.distributed was initialised after that and has other ranks. A loader that one rank alone is to
        use takes rank=0, world_size=1.
    seed=0: every random decision is a function of it, the epoch, and the place in the epoch.
    last_batch="partial" shares out what the last global batch has evenly, so its batches are smaller; "drop" leaves it
        out; "fill" fills it up with outputs that the epoch has had already.

    What is done to them:

    mix=FDT(): or MixUp(alpha), CutMix(alpha), OneOf({..}), which chooses for each output, None for whole images, each
        once an epoch in a new order; or a function of the epoch that gives one of these. It must be pure: it is called
        ahead, on any thread, more than once. Options: help(FDT), help(MixUp); `partners` says what images are mixed
        with: "set" (resident mode), "ring" or "batch", an output's own (streaming), or None, what the mode has.
    augment=Augment(pad=4, flip=True): done to every constituent; None for none. Streaming takes
        RandomResizedCrop(224), drawn for each sample once an epoch, from (seed, epoch, sample), of which no more is
        decoded, and in evaluation ResizeCrop(256, 224): the shorter side is resized and the middle shown.
    preprocess=None: a function of DALI nodes, done to the images, u8[h w c], while streaming, once they are decoded,
        cropped and resized and before they are mixed; it gives images of the same shape and type. What is a function
        of the images alone keeps every promise; so does `preprocess(images, random)`, whose random f32[16], uniform on
        [0, 1), is drawn for each sample from (seed, epoch, sample). DALI's own random operators begin anew with each
        pipeline: their numbers differ from run to run, after a resume, and between ranks.
    mean=None, std=256: in units of 0..255, a number or one a channel; by default the paper's mean, (122, 117, 104), 117
        for gray. normalize=None: "imagenet" stands for ImageNet's mean and std, which pretrained networks want.
    channels=None: 3 repeats gray images to three channels.
    dtype=torch.float32: or float16, bfloat16. channels_last=False: that memory format.
    size=None: (height, width) that streaming stretches whole images to, whatever their shape. Where images differ in
        size, this or a RandomResizedCrop or ResizeCrop is needed.

    How, and where:

    device="cpu": or "cuda", where the tensors are; of several GPUs the current one, or where nobody has set that
        LOCAL_RANK's. pin_memory=False: tensors of the host in pinned memory.
    mode="auto": "resident" keeps the set in memory and mixes over all of it; "streaming" reads the shards every epoch
        and mixes the last `ring` samples, or those of a batch; "auto" streams where images are cropped, resized or
        preprocessed; else it is the mode that has the mix's `partners` (of a function, in epoch 0), if it names any, or
        resident where all images have one shape and the u8 set (in the torch engine
        twice, once with frames of zeros) takes at most half of the free memory; a loaded state decides.
    engine="auto": "native" is the DALI operator in C++ and CUDA, compiled at first use (`fdt-pipeline build` does it
        ahead) and then kept; "torch" does the same with torch and NumPy, many times slower; "auto" takes native
        wherever it can be had, and warns where it cannot. Plans and targets are the same, images within 2e-6.
    ring=None: decoded samples that streaming keeps in memory, uint8, and draws each batch's outputs from; it is empty
        when an epoch begins, and there is none where nothing is mixed, or with partners="batch". By default 1,024, or
        where that is more 10 for each image of the largest sum: 10,000 for FDT() with 1,000 classes, and where the mix
        is a function; up to 2 GiB.
    decode=None: where streaming decodes, crops, resizes and preprocesses, "gpu" or "cpu"; by default on `device`. A
        GPU's JPEG decoder gives other pixels than the CPU's, by a few grey levels.
    verify=False: True reads every byte of the shards to check their sha256 before streaming begins (resident does in
        any case); otherwise each sample is checked by its CRC-32 when this process reads it first.
    on_bad="error": of a sample that does not decode, or has changed since it was written, while streaming, names shard
        and key; "substitute" takes the next good sample of its batch instead, warns, and counts it in `stats`; a batch
        without a good one is an error.
    weights=False: True yields (images, targets, weights).
    num_threads=None: of DALI (where it mixes on a GPU, of reading and decoding); by default the CPUs that this process
        may use, but at most 4.
    prefetch=2: DALI works so many batches ahead, or more, as up to 16 (64 MiB of images) are made together. These share
        memory, so clone what you keep long or save. 0 makes each batch when it is asked for, on the caller's thread,
        which is faster where the training itself keeps the same cores busy.
    strict_state=True: `load_state_dict` refuses the state of a loader with other data or options; with False it begins
        the epoch of such a state anew, and warns.

    Iterating goes through one epoch and moves on to the next; `set_epoch(e)` says which comes next; `forever()` has no
    end. `len()` is the number of batches of an epoch, the same on every rank. Breaking off is safe. Output i of epoch e
    depends on (seed, e, i) and the shards alone in resident mode, so global batches are the same for any number of
    ranks; in streaming on batch size, ring and ranks as well. `state_dict()` says how far the consumer is, and
    `load_state_dict()` goes on there, exactly. `mix = MixUp(0.2)`, and `mixing = False`, which switches it off, take
    effect with the next iteration; no other attribute can be set.
    `shape` is (channels, height, width) of an image; `num_classes`, `classes`, `num_samples`, `mode`, `ring` and others
    say what was chosen. `stats` says what was done so far: batches, images, wait_seconds (of the consumer), bad_samples
    and bad (those that were replaced), images_per_output and images_per_output_of_all (in streaming, whether the ring
    lacks classes).
    Errors: ValueError (ShardError where shards are broken) when the loader is built; ImportError without DALI.
    """

    def __init__(
        self,
        shards: str | os.PathLike[str],
        batch_size: int,
        *,
        train: bool = True,
        mix: MixArgument | Literal["default"] = "default",
        augment: Augmentation | Literal["default"] | None = "default",
        preprocess: Preprocess | None = None,
        decode: Literal["cpu", "gpu"] | None = None,
        device: str | torch.device = "cpu",
        mode: Literal["auto", "resident", "streaming"] = "auto",
        engine: Literal["auto", "native", "torch"] = "auto",
        seed: int = 0,
        mean: PerChannel | None = None,
        std: PerChannel = PAPER_STD,
        normalize: Literal["imagenet"] | None = None,
        channels: int | None = None,
        dtype: torch.dtype = torch.float32,
        channels_last: bool = False,
        pin_memory: bool = False,
        size: tuple[int, int] | None = None,
        ring: int | None = None,
        verify: bool = False,
        on_bad: Literal["error", "substitute"] = "error",
        last_batch: LastBatch = "partial",
        weights: bool = False,
        rank: int | None = None,
        world_size: int | None = None,
        num_threads: int | None = None,
        prefetch: int = 2,
        strict_state: bool = True,
    ) -> None:
        mean, std = chosen_normalization(normalize, mean, std)
        self.options = options = Options(
            batch_size=batch_size, train=train, mix=chosen_mix(train, mix), augment=chosen_augment(train, augment),
            device=checked_device(device), mode=mode, engine=engine, seed=seed, mean=mean, std=std, channels=channels,
            dtype=dtype, channels_last=channels_last, pin_memory=pin_memory, size=size, ring=ring,
            preprocess=preprocess, decode=decode, verify=verify, on_bad=on_bad, last_batch=last_batch, weights=weights,
            num_threads=checked_threads(num_threads), prefetch=prefetch, strict_state=strict_state,
        )  # fmt: skip
        ranks, self._ranks_are_given = find_ranks(rank, world_size), rank is not None
        self.shards = open_folder(shards)
        self.manifest = read_manifest(self.shards)
        if self.shards.local:  # a remote shard is checked when it is fetched
            check_shards(self.shards, self.manifest)
        self.batching = Batching(self.num_samples, operator.index(batch_size), last_batch, ranks)
        self._mixing = options.mixing(self.manifest)
        self.engine = choose_engine(engine, self.device, self.num_classes)
        asked = options.asked_mode(self._mixing.mix.partners)
        self._mode_follows_state = asked == "auto"
        frame = self._mixing.augment.pad if self.engine == "torch" else 0  # of zeros, which that engine keeps in memory
        chosen = choose_mode(asked, self.num_samples, self.manifest.shape, frame, self.device, ranks.world_size)
        height, width = checked_image_size(self.manifest.shape, self.shards.url, chosen, options.image_size)
        self.shape = (self._mixing.output.channels, height, width)
        # Not a WeakSet, whose callbacks are Python: a Ctrl-C that came in one was lost.
        self._iterations: list[weakref.ref[Generator[Any, None, None]]] = []
        self._stats = StatsCounter()
        self._schedule = MixSchedule(options.mix, self._context(chosen))  # of epochs that are not begun
        self._schedule.of(0)  # raises where a function gives what this loader cannot have
        self._next = Cursor()  # where the next iteration begins
        self._next_mix_stands = False  # as a state says; else the schedule says what is mixed in it
        self._reached: Cursor | None = None  # where the one is that moved last, between its first batch and its end
        self._epochs: ResidentEpochs | StreamingEpochs | None = None
        self._chains: list[EpochChain] = []  # the one of the epochs
        self._begin(chosen)
        self._is_made = True
        weakref.finalize(self, _drop, self._chains)  # at the latest before the interpreter ends

    def __setattr__(self, name: str, value: Any) -> None:
        """What a loader gives is decided when it is made, so that anything else, and a misspelt name, is an error."""
        if (
            "_is_made" in vars(self)
            and name not in ("mix", "mixing")
            and not (name.startswith("_") and name in vars(self))
        ):
            raise AttributeError(
                f"{name} of an FDTLoader cannot be set, only `mix` and `mixing` can: make a new loader with other "
                "arguments, FDTLoader(shards, batch_size, ...), and let it go on with load_state_dict if they allow it"
            )
        super().__setattr__(name, value)

    @property
    def mix(self) -> MixArgument:
        """What is mixed from the next iteration on, where `mixing` is on: an FDT, MixUp, CutMix or OneOf, a function of
        the epoch, or None."""
        return self._schedule.mix

    @mix.setter
    def mix(self, mix: MixArgument) -> None:
        if not self.options.train:
            raise ValueError(f"train=False yields every sample whole and unchanged, got mix={mix!r}")
        self._schedule.set(mix)
        self._schedule.is_on, self._next_mix_stands = mix is not None, False

    @property
    def ring(self) -> int | None:
        """Images in streaming's ring, in epochs that have one; None in resident mode, and where `mix` keeps none."""
        has_ring = callable(self.mix) or keeps_ring(self.mix)
        return self._epochs.ring if has_ring and isinstance(self._epochs, StreamingEpochs) else None

    @property
    def device(self) -> torch.device:
        """Where the tensors are."""
        return self.options.device

    @property
    def batch_size(self) -> int:
        """Of this rank."""
        return self.batching.batch_size

    @property
    def mode(self) -> str:
        """ "resident" or "streaming"."""
        return self._mode

    @property
    def classes(self) -> tuple[str, ...]:
        return self.manifest.classes

    @property
    def num_classes(self) -> int:
        return len(self.manifest.classes)

    @property
    def num_samples(self) -> int:
        return self.manifest.num_samples

    @property
    def mean(self) -> tuple[float, ...]:
        """Per channel, in 0..255: what is taken off."""
        return self._mixing.output.mean

    @property
    def std(self) -> tuple[float, ...]:
        """Per channel, in 0..255: what is divided by."""
        return self._mixing.output.std

    @property
    def rank(self) -> int:
        return self.batching.ranks.rank

    @property
    def world_size(self) -> int:
        return self.batching.ranks.world_size

    @property
    def global_batch_size(self) -> int:
        return self.batching.global_batch_size

    @property
    def stats(self) -> LoaderStats:
        """What has been done so far, on this rank."""
        return self._stats.now()

    @property
    def mixing(self) -> bool:
        """Whether the next iteration mixes. Without, it gives whole images, each once an epoch, in the same form."""
        return self._next.mix is not None if self._next_mix_stands else self._schedule.is_on

    @mixing.setter
    def mixing(self, on: bool) -> None:
        if on and self.mix is None:
            raise ValueError(
                "this loader has no mix to switch on: set loader.mix, or make it with train=True and a mix"
            )
        self._schedule.is_on, self._next_mix_stands = bool(on), False

    def _upcoming(self) -> Cursor:
        """Where the next iteration begins, with its mix."""
        cursor = self._next
        return cursor if self._next_mix_stands else replace(cursor, mix=self._schedule.of(cursor.epoch))

    @property
    def epoch(self) -> int:
        """The epoch that the next iteration goes through."""
        return self._next.epoch

    def set_epoch(self, epoch: int) -> None:
        """Say which epoch comes next, 0 <= epoch < 2**32; iterating moves on by one. The place within it that
        `load_state_dict` has set is kept if it is the same epoch."""
        if not hasattr(epoch, "__index__") or not 0 <= epoch < 2**32:
            raise ValueError(f"epoch must be in [0, 2**32), got {epoch}")
        if epoch != self._next.epoch:
            self._next, self._next_mix_stands = Cursor(operator.index(epoch)), False
        self._reached = None

    batch_sampler = None

    @property
    def sampler(self) -> FDTLoader:
        """Itself, as trainers that are made for a DataLoader (Lightning, timm) call `loader.sampler.set_epoch(e)`."""
        return self

    def state_dict(self) -> dict[str, Any]:
        """JSON values, a kilobyte: how far the iteration that moved last is, the batch that it gave last being done,
        and what tells this loader from others. Batches made ahead do not count, so none is lost or repeated."""
        cursor, has_mix = self._reached or self._next, bool(self._reached) or self._next_mix_stands
        return pack_state(cursor, has_mix, self._leg(), self._schedule, len(self), self._config)

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """The next iteration goes on where the state was taken, at once: the rest of that epoch, which is empty if its
        last batch had been given. Device, engine, threads and the number of ranks may be others (with the same global
        batch). A loader made with mode="auto" takes the state's mode; if that is the other one, it reads the shards
        anew. The mix that was set there holds here. ValueError, naming every field that differs, for the state of
        another loader."""
        leg = self._leg()
        try:
            mode = mode_of(state)
            if self._mode_follows_state and mode in {"resident", "streaming"} - {self.mode}:
                cursor = self._begin(mode, state)
            else:
                cursor = unpack_state(state, leg, self._schedule, len(self), self._config)
        except OtherLoaderError as error:
            if self.options.strict_state:
                raise OtherLoaderError(
                    f"{error}. To go on with other data or options, make the loader with strict_state=False: then it "
                    "begins the state's epoch anew (weights and optimizer are yours to keep)"
                ) from None
            cursor = Cursor(epoch_of(state))
            warnings.warn(f"epoch {cursor.epoch} is begun anew, with this loader's own mix: {error}", stacklevel=2)
            self._next, self._next_mix_stands, self._reached = cursor, False, None
            return
        self._next, self._next_mix_stands, self._reached = cursor, state["has_mix"], None

    def __len__(self) -> int:
        return self.batching.num_batches

    def __getitem__(self, index: object) -> NoReturn:
        """What a torch DataLoader would ask of its data set."""
        raise TypeError("FDTLoader gives whole batches: iterate over it, in the place of a DataLoader, not inside one")

    def __iter__(self) -> Generator[Any, None, None]:
        if self._epochs is None:
            raise RuntimeError("this FDTLoader is closed: make a new one")
        if self._next.epoch >= 2**32:
            raise ValueError(f"epoch must be in [0, 2**32), got {self._next.epoch}")
        if not self._ranks_are_given:
            check_ranks(self.batching.ranks)
        batches = self._iterate(self._epochs)
        self._iterations = [*(old for old in self._iterations if old() is not None), weakref.ref(batches)]
        return batches

    def forever(self) -> Generator[Any, None, None]:
        """Batches without end: the rest of this epoch, the next one, and so on, each with mixtures of its own.

            for step, (images, targets) in zip(range(100_000), loader.forever()):

        Not `itertools.cycle(loader)`, which keeps every batch of one epoch in memory and gives the same ones again and
        again. `state_dict()` may be taken at any batch; what is loaded or set (`load_state_dict`, `set_epoch`, `mix`,
        `mixing`) holds from the next epoch on: at once with a new `forever()`.
        """
        while True:
            yield from self

    def _iterate(self, epochs: ResidentEpochs | StreamingEpochs) -> Generator[Any, None, None]:
        """The epoch is taken with the first batch, not before: Lightning calls iter() twice for one epoch."""
        cursor = self._upcoming()
        self._next, self._next_mix_stands = Cursor(cursor.epoch + 1), False
        self._reached = cursor  # should the first batch fail
        with closing(epochs.batches(cursor)) as parts:
            while True:
                start = time.perf_counter()
                with annotated("fdt_pipeline.wait"):
                    part = next(parts, None)
                if part is None:
                    break
                batch = self._delivered(part)
                self._stats.wait_seconds += time.perf_counter() - start
                self._stats.batches += 1
                self._stats.images += len(part.weights)
                cursor = replace(cursor, batch=cursor.batch + 1)
                self._reached = cursor
                del part
                yield batch
        if self._reached is cursor:  # and not where another iteration is
            self._reached = None

    def _delivered(self, part: Part) -> tuple[torch.Tensor, ...]:
        """As the trainer takes it."""
        dtype = self.options.dtype
        images = part.images if part.images.dtype == dtype else part.images.to(dtype)
        weights = [part.weights.to(images.device)] if self.options.weights else []
        fields = images, part.targets, *weights
        return tuple(field.pin_memory() for field in fields) if self.options.pin_memory else fields

    def __reduce__(self) -> NoReturn:
        raise TypeError(
            "an FDTLoader holds threads, files and memory outside of Python, so it cannot be pickled or copied: make "
            "it in the process that uses it; a checkpoint keeps state_dict()"
        )

    def close(self) -> None:
        """End the iterations under way and let go of the images in memory; iterating afterwards is an error."""
        self._epochs = None
        for iteration in self._iterations:
            batches = iteration()
            if batches is not None:
                batches.close()
        _close(self._chains)

    def __enter__(self) -> FDTLoader:
        return self

    def __exit__(self, *_: type[BaseException] | BaseException | TracebackType | None) -> None:
        self.close()

    def __repr__(self) -> str:
        kind = f"mix={self.mix}" if self.options.train else "train=False"
        where = f"mode={self.mode!r}, engine={self.engine!r}, device={str(self.device)!r}"
        ranks = f", rank={self.rank}, world_size={self.world_size}" if self.world_size > 1 else ""
        return f"FDTLoader({self.shards.url!r}, {self.batch_size}, {kind}, {where}{ranks})"

    def _leg(self) -> Any:
        if self._epochs is None:
            raise RuntimeError("this FDTLoader is closed: take its state before")
        return self._epochs.leg()

    def _begin(self, mode: str, state: Mapping[str, Any] | None = None) -> Cursor:
        """Prepare epochs in this mode; with a state, -> what `unpack_state` makes of it. The shards are read,
        which takes time, once the state is known to fit; nothing changes where it does not."""
        if mode == "resident":
            self.options.check_resident()
        schedule = self._schedule.within(self._context(mode))
        epochs = self._streaming(schedule) if mode == "streaming" else None
        config = self._configuration(mode, epochs.ring if epochs else None)
        cursor = self._next
        if state is not None:
            cursor = unpack_state(state, epochs.leg() if epochs else None, schedule, len(self), config)
        if epochs and self.options.verify and isinstance(epochs.files, LocalShardFiles):
            with progress_bar(f"check {self.shards.url}", "shards", delay=2) as progress:
                check_hashes(self.shards, self.manifest, self.options.num_threads, progress)
            epochs.files.mark_checked()
        self._epochs = epochs or self._resident(schedule)
        _close(self._chains)
        self._chains.append(self._epochs.chain)
        self._mode, self._config, self._schedule = mode, config, schedule
        return cursor

    def _configuration(self, mode: str, ring: int | None) -> dict[str, Any]:
        """What the images and targets are a function of, as JSON values."""
        options, output = self.options, self._mixing.output
        return {
            "shards": self.manifest.sha256,
            "seed": self._mixing.seed,
            "train": options.train,
            "mode": mode,
            "mix": describe_mix(options.mix, self.num_classes),
            "augment": repr(options.augment),
            "preprocess": preprocess_name(options.preprocess) if options.preprocess else None,
            "global_batch_size": self.global_batch_size,
            "last_batch": options.last_batch,
            "mean": list(output.mean),
            "std": list(output.std),
            "channels": output.channels,
            "dtype": str(options.dtype),
            "size": list(options.size) if options.size else None,
            "ring": ring,
        }

    def _context(self, mode: str) -> MixContext:
        populated, smallest, at_hand = self.manifest.num_populated_classes, self.batching.smallest_batch, None
        if self.engine == "native":
            of_stream = mode == "streaming"
            at_hand = min(self.num_classes, self._ring(), self._most_samples()) if of_stream else populated
        return MixContext(self.num_classes, populated, mode, self.batch_size, smallest, at_hand)

    def _resident(self, schedule: MixSchedule) -> ResidentEpochs:
        engine: ResidentEngine
        in_order = not self.options.train
        most = 1 if self.engine == "torch" else self.options.batches_together(self.shape)
        if self.engine == "native":
            pool = read_pool(
                self.shards, self.manifest, self._mixing.augment.pad, self.device, self.options.num_threads
            )
            engine = NativeResident(self._mixing, self.device, pool, most, self._dali(most), in_order)
        else:
            with progress_bar(f"load {self.shards.url}", "images", delay=2) as progress:
                images, labels, _ = load_shards(self.shards, progress, self.options.num_threads)
            labelled = Pool(labels, self.num_classes)
            engine = TorchResident(self._mixing, images, labelled, self.options.prefetch, in_order)
        return ResidentEpochs(engine, self.batching, most, schedule)

    def _dali(self, num_batches: int) -> DaliOptions:
        """Of a pipeline that makes so many batches at once. On a GPU its threads have next to nothing to do."""
        options, on_gpu = self.options, self.device.type == "cuda"
        ahead = math.ceil(options.prefetch / num_batches)
        return DaliOptions(1 if on_gpu else options.num_threads, ahead, self.device.index if on_gpu else None)

    def _streaming(self, schedule: MixSchedule) -> StreamingEpochs:
        options, manifest = self.options, self.manifest
        ring, mix = self._ring(), self._mix_of_ring
        kind: Literal["ring", "batch"] = "ring" if mix is None or keeps_ring(mix) else "batch"
        size = ring if kind == "ring" else self.batch_size
        is_small = warn_of_small_ring(kind, mix, size, self._samples_of_rank(), self.num_classes, stacklevel=4)
        decoding, on_gpu = options.decoding(manifest), options.decodes_on_gpu
        if options.preprocess is not None:
            check_preprocess(
                options.preprocess, (*self.shape[1:], manifest.channels), self.device.index if on_gpu else None
            )
        engine: StreamingEngine
        if self.engine == "native":
            decodes = decoding.is_needed() and (on_gpu or self.device.type == "cpu")
            together = 1 if decoding.is_needed() else options.batches_together(self.shape)
            dali = self._dali(together)
            engine = NativeStreaming(
                self._mixing, self.device, min(ring, self._most_samples()), self.batch_size, together,
                manifest.channels, replace(dali, num_threads=options.num_threads) if decodes else dali,
                decoding if decodes else None
            )  # fmt: skip
        else:
            engine = TorchStreaming(self._mixing, min(ring, self._most_samples()), options.prefetch)
        files = files_of(self.shards, manifest)  # before they are checked, so that no change after that is missed
        watch = ClassWatch(
            min(ring, self._most_samples()), self._samples_of_rank(), manifest.samples_per_class, warns=not is_small
        )
        decoder = DaliOptions(options.num_threads, min(1, options.prefetch))
        return StreamingEpochs(
            engine, files, manifest, self.batching, decoding, decoder, ring, self._mixing.seed, schedule,
            train=options.train, substitute=options.on_bad == "substitute", prefetch=options.prefetch, watch=watch,
            stats=self._stats
        )  # fmt: skip

    def _samples_of_rank(self) -> int:
        """Of an epoch, at most."""
        return -(-self.num_samples // self.world_size)

    def _most_samples(self) -> int:
        """The same with those that fill up the last batch."""
        return self._samples_of_rank() + self.batch_size

    @property
    def _mix_of_ring(self) -> Mix | None:
        """What the ring is chosen for."""
        return FDT() if callable(self.options.mix) else self.options.mix

    def _ring(self) -> int:
        """Images in streaming's ring. ValueError if what was asked is too few."""
        least = self.batch_size if self.options.train else 1
        return choose_ring(self.options.ring, least, self._mix_of_ring, self.num_classes, self.shape)


def _close(chains: list[EpochChain]) -> None:
    while chains:
        chains.pop().close()


def _drop(chains: list[EpochChain]) -> None:
    """Close them as their loader is dropped. A Ctrl-C that comes in a callback of Python's is lost, so it is repeated
    after it."""
    try:
        _close(chains)
    except KeyboardInterrupt:
        Timer(0.1, interrupt_main).start()
