"""Measure what FDT costs in a pipeline on the CPU: the native operators beside the same without FDT; written as JSON.

    python -m tools.measure_native shards/cifar10/train shards/cifar100/train tools/results/native.json

Contenders are endless sources of batches, consumed alike: DALI runs with the same options on both sides, outputs are
looked at where DALI made them, and no side copies them. Every group of contenders runs in rounds. In a round each has
its turn, a short warm-up and then `--seconds` (a part of it in the larger groups); every other round goes backwards,
and the first is thrown away. Ratios are taken within a round, as a machine's clock may change from one to the next.
Where the other side can be written in several ways, all are measured and the fastest one counts. A figure is outputs a
second unless its group says otherwise. On two cores this takes about ten minutes.
"""

from __future__ import annotations

import argparse
import gc
import io
import json
import os
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import count, cycle
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from nvidia.dali import pipeline_def
from PIL import Image

from fdt_pipeline import FDT, FDTLoader
from fdt_pipeline.definition.superposition import Augment
from fdt_pipeline.loader.engines import native_core
from fdt_pipeline.loader.epoch import Running
from fdt_pipeline.loader.graphs import fn, types
from fdt_pipeline.loader.options import PAPER_MEAN, PAPER_STD
from fdt_pipeline.native.core import Core, CoreOutput
from fdt_pipeline.shards import load_shards, read_manifest
from fdt_pipeline.shards.codec import npy_header
from fdt_pipeline.shards.tar import TarShard
from train.environment import hardware, versions

U8 = npt.NDArray[np.uint8]
I64 = npt.NDArray[np.int64]
I32 = npt.NDArray[np.int32]
Figure = Callable[[float], float]  # seconds to spend -> what was measured

WINDOW, JPEG_WINDOW = 1024, 128
PREFETCH = 2  # batches that DALI works ahead, FDTLoader's default
BATCH_SIZES, THREADS = (32, 64, 256, 1024, 4096), (1, 2)
# Pixels of the superposition alone: 500 images of 32x32x3 are 1.5 MB, 64 float32 outputs 0.8 MB.
CACHED_IMAGES, CACHED_OUTPUTS = 500, 64
PAD = 4
NORMALIZE: dict[str, Any] = {"mean": list(PAPER_MEAN), "std": [PAPER_STD] * 3}
MIX: dict[str, Any] = {"plan_seed": 0, "pad": PAD, "flip": True, **NORMALIZE}


@dataclass(frozen=True)
class Ratio:
    """over : the fastest of under, and the bounds that it is held to, if any."""

    name: str
    over: str
    under: Sequence[str]
    at_least: float | None = None
    stretch: float | None = None


@dataclass
class Group:
    """Contenders by name, each a figure of `share` of --seconds, and the ratios between them."""

    share: float = 1.0
    unit: str = "outputs a second"
    figures: dict[str, Figure] = field(default_factory=dict)
    ratios: list[Ratio] = field(default_factory=list)


@dataclass(frozen=True)
class Data:
    """A set of raw shards, and the same in memory."""

    folder: Path

    @cached_property
    def num_classes(self) -> int:
        return len(read_manifest(self.folder).classes)

    @cached_property
    def loaded(self) -> tuple[U8, I64]:
        images, labels, _ = load_shards(self.folder)
        return images, labels

    @cached_property
    def framed(self) -> U8:
        """Every image with the zeros around it that a shift lets in."""
        return np.pad(self.loaded[0], ((0, 0), (PAD, PAD), (PAD, PAD), (0, 0)))

    @property
    def called(self) -> str:
        return f"C = {self.num_classes}"

    def of_each_class(self, n: int) -> tuple[U8, I64]:
        """Up to n in all, as many of each class."""
        images, labels = self.loaded
        each = max(1, n // self.num_classes)
        chosen = np.concatenate([np.flatnonzero(labels == c)[:each] for c in range(self.num_classes)])
        return images[chosen], labels[chosen]


@dataclass(frozen=True)
class Setting:
    data: tuple[Data, Data]
    seconds: float
    batch_size: int
    threads: int
    num_jpegs: int
    scratch: Path


def rate(step: Callable[[], int], ahead: int = 2 * PREFETCH + 1) -> Figure:
    """Outputs a second of a step, which makes one batch and says how many; after what had been made ahead is gone."""

    def figure(seconds: float) -> float:
        settle()
        _run(step, seconds / 5, ahead)
        outputs, elapsed = _run(step, seconds, 1)
        return outputs / elapsed

    return figure


def _run(step: Callable[[], int], seconds: float, at_least: int) -> tuple[int, float]:
    """(outputs, seconds)"""
    outputs, start = 0, time.perf_counter()
    for number in count(1):
        outputs += step()
        if number >= at_least and time.perf_counter() - start >= seconds:
            break
    return outputs, time.perf_counter() - start


def settle() -> None:
    """Wait until the one before has filled its queue: until this process's threads rest."""
    for _ in range(200):
        busy = time.process_time()
        time.sleep(0.005)
        if time.process_time() - busy < 0.001:
            return


def interleaved(group: Group, seconds: float, repeats: int) -> dict[str, list[float]]:
    """Contender -> a figure a round; the first round, in which memory is touched for the first time, is left out."""
    found: dict[str, list[float]] = {name: [] for name in group.figures}
    for round_ in range(repeats + 1):
        for name in list(found)[:: -1 if round_ % 2 else 1]:
            figure = group.figures[name](seconds * group.share)
            if round_:
                found[name].append(figure)
    return found


def spread(values: Sequence[float]) -> dict[str, Any]:
    return {
        "median": _rounded(median(values)),
        "min": _rounded(min(values)),
        "max": _rounded(max(values)),
        "values": [_rounded(value) for value in values],
    }


def _rounded(value: float) -> float:
    return float(f"{value:.4g}")


def compare(ratio: Ratio, figures: dict[str, list[float]]) -> dict[str, Any]:
    """The ratio of every round, its median, and whether that is within the bounds."""
    fastest = max(ratio.under, key=lambda name: median(figures[name]))
    values = [over / under for over, under in zip(figures[ratio.over], figures[fastest], strict=True)]
    return {
        "ratio": ratio.name,
        "over": ratio.over,
        "under": fastest,
        **spread(values),
        "at_least": ratio.at_least,
        "stretch": ratio.stretch,
        "holds": None if ratio.at_least is None else median(values) >= ratio.at_least,
        "reaches_stretch": None if ratio.stretch is None else median(values) >= ratio.stretch,
    }


Feed = Callable[[], tuple[Any, Any]]
End = Callable[[Any, Any], tuple[Any, Any]]


@pipeline_def
def _graph(feed: Feed, end: End) -> Any:
    return end(*feed())


@pipeline_def
def _resident_graph(folder: str, ids: Iterator[I64]) -> Any:
    number = fn.external_source(source=ids, batch=True, dtype=types.INT64, ndim=1)
    return tuple(fn.fdt.superpose_resident(number, pool=folder, **MIX))


def batches_of(pipeline: Any) -> Figure:
    """Run it, and look at a pixel of every image; the targets are there with them."""
    pipeline.build()

    def step() -> int:
        images, _ = pipeline.run()
        pixels = np.asarray(images.as_tensor())
        assert np.isfinite(pixels[:, 0, 0, 0]).all()
        return len(pixels)

    return rate(step)


def options(batch_size: int, threads: int) -> dict[str, Any]:
    return Running(threads, PREFETCH).options(batch_size, 0)


def resident(data: Data, batch_size: int, threads: int) -> Figure:
    """FDT from the whole set."""
    total = len(data.loaded[1])
    ids = _ids(total, batch_size)
    return batches_of(_resident_graph(str(data.folder), ids, **options(batch_size, threads)))


def _ids(total: int, batch_size: int) -> Iterator[I64]:
    """(epoch, index) of batch after batch."""
    for epoch in count():
        for first in range(0, max(1, total - batch_size + 1), batch_size):
            yield np.stack([np.full(batch_size, epoch), (first + np.arange(batch_size)) % total], axis=1)


def memory(images: U8, labels: I64, batch_size: int, copied: bool = False) -> Feed:
    """Random permutations of a set in memory, one array a batch. copied: NumPy makes a new array, and DALI copies it;
    else rows are taken into one of a few arrays, which DALI reads as they are."""
    batches = (_new_arrays if copied else _kept_arrays)(images, labels, _orders(len(labels), batch_size))

    def feed() -> tuple[Any, Any]:
        return tuple(
            fn.external_source(
                source=batches, num_outputs=2, batch=True, no_copy=not copied,
                dtype=[types.UINT8, types.INT64], ndim=[3, 0], layout=["HWC", ""],
            )
        )  # fmt: skip

    return feed


def _orders(total: int, batch_size: int) -> Iterator[I64]:
    """Rows of a batch, from one permutation after the other; a batch larger than the set goes round."""
    rng = np.random.default_rng(0)
    while True:
        order = np.resize(rng.permutation(total), max(total, batch_size))
        for first in range(0, len(order) - batch_size + 1, batch_size):
            yield order[first : first + batch_size]


def _new_arrays(images: U8, labels: I64, orders: Iterator[I64]) -> Iterator[tuple[U8, I64]]:
    return ((images[order], labels[order]) for order in orders)


def _kept_arrays(images: U8, labels: I64, orders: Iterator[I64]) -> Iterator[tuple[U8, I64]]:
    """More arrays than DALI has batches under way, which are two queues of PREFETCH."""
    kept: list[tuple[U8, I64]] = []
    for i, order in enumerate(orders):
        if len(kept) < 4 * PREFETCH:
            kept.append((np.empty((len(order), *images.shape[1:]), np.uint8), np.empty(len(order), np.int64)))
        pixels, classes = kept[i % (4 * PREFETCH)]
        np.take(images, order, axis=0, out=pixels, mode="clip")  # with mode="raise" NumPy would buffer it
        np.take(labels, order, axis=0, out=classes, mode="clip")
        yield pixels, classes


def shards(folder: Path) -> Feed:
    """Raw shards, shuffled within a window; labels are what .cls holds, ASCII digits."""
    manifest = read_manifest(folder)
    tars = [str(folder / shard.name) for shard in manifest.shards]
    indexes = [str(folder / shard.index_name) for shard in manifest.shards]
    assert manifest.shape is not None
    shape, header = manifest.shape, len(npy_header(manifest.shape))

    def feed() -> tuple[Any, Any]:
        encoded, label = _read(tars, indexes, "npy", WINDOW)
        return fn.reshape(encoded[header:], shape=shape, layout="HWC"), label

    return feed


def jpegs(tar: Path) -> Feed:
    def feed() -> tuple[Any, Any]:
        encoded, label = _read([str(tar)], [str(tar.with_suffix(".idx"))], "jpg", JPEG_WINDOW)
        return fn.decoders.image(encoded, device="cpu", output_type=types.RGB), label

    return feed


def _read(tars: Sequence[str], indexes: Sequence[str], extension: str, shuffle: int) -> tuple[Any, Any]:
    return tuple(
        fn.readers.webdataset(
            paths=list(tars), index_paths=list(indexes), ext=[extension, "cls"],
            missing_component_behavior="error", random_shuffle=True, initial_fill=shuffle, seed=0,
        )
    )  # fmt: skip


def mixed(num_classes: int) -> End:
    """FDT within the batch."""
    return lambda u8, label: tuple(fn.fdt.superpose(u8, label, num_classes=num_classes, **MIX))


def whole(num_classes: int | None, augment: str = "", flips: Iterator[I32] | None = None) -> End:
    """No FDT: normalized, targets one-hot, or labels as they come where num_classes is None.

    augment: "", nothing; "flip", as `flips` says, or as DALI draws it (of 32x32x3 that takes a quarter of the time);
    "slice", flip and a shift by up to PAD pixels, zeros come in; "crop", the same out of an image framed by zeros.
    """

    def end(u8: Any, label: Any) -> tuple[Any, Any]:
        more: dict[str, Any] = {"mirror": _mirror(flips)} if augment else {}
        if augment == "slice":
            start = fn.random.uniform(values=list(range(-PAD, PAD + 1)), shape=2, dtype=types.INT32)
            u8 = fn.slice(u8, start=start, shape=(32, 32), axes=(0, 1), out_of_bounds_policy="pad", fill_values=0)
        if augment == "crop":
            x, y = (fn.random.uniform(values=[i / (2 * PAD) for i in range(2 * PAD + 1)]) for _ in "xy")
            more |= {"crop": (32, 32), "crop_pos_x": x, "crop_pos_y": y}
        images = fn.crop_mirror_normalize(u8, dtype=types.FLOAT, output_layout="CHW", **NORMALIZE, **more)
        return images, label if num_classes is None else fn.one_hot(label, num_classes=num_classes)

    return end


def _mirror(flips: Iterator[I32] | None) -> Any:
    if flips is None:
        return fn.random.coin_flip()
    return fn.external_source(source=flips, batch=True, dtype=types.INT32, ndim=0)


def drawn_flips(batch_size: int) -> Iterator[I32]:
    rng = np.random.default_rng(0)
    while True:
        yield rng.integers(0, 2, batch_size, np.int32)


def graph(feed: Feed, end: End, batch_size: int, threads: int) -> Figure:
    return batches_of(_graph(feed, end, **options(batch_size, threads)))


def measure_resident(setting: Setting) -> Group:
    """From memory, all cores: the first two rows of the table, by what the other side does to its images."""
    group, run = Group(share=0.5), (setting.batch_size, setting.threads)
    for data, bounds in zip(setting.data, ((1.3, 1.8), (0.3, 0.5)), strict=True):
        fdt = f"{data.called}, FDT"
        group.figures[fdt] = resident(data, *run)
        for does, ways in _without_fdt(data, run[0]).items():
            names = [f"{data.called}, no FDT, {does}, {way}" for way in ways]
            figures = [graph(feed, end, *run) for feed, end in ways.values()]
            group.figures |= dict(zip(names, figures, strict=True))
            held = () if does == "flip and shift" else bounds
            group.ratios.append(Ratio(f"resident FDT : no FDT, {does}, {data.called}", fdt, names, *held))
    return group


def _without_fdt(data: Data, batch_size: int) -> dict[str, dict[str, tuple[Feed, End]]]:
    """What is done to images -> ways to do it."""
    (images, labels), c = data.loaded, data.num_classes

    def plain(copied: bool = False) -> Feed:
        return memory(images, labels, batch_size, copied)

    return {
        "normalize alone": {"copied": (plain(True), whole(c)), "not copied": (plain(), whole(c))},
        "flip": {
            "by DALI": (plain(), whole(c, "flip")),
            "by NumPy": (plain(), whole(c, "flip", drawn_flips(batch_size))),
        },
        "flip and shift": {
            "by slice": (plain(), whole(c, "slice")),
            "by crop": (memory(data.framed, labels, batch_size), whole(c, "crop")),
        },
    }


def measure_streaming(setting: Setting) -> Group:
    """A mix window of one DALI batch, from raw shards and from memory."""
    group, run = Group(share=0.5), (WINDOW, setting.threads)
    for data, of_shards, of_memory in zip(setting.data, ((1.0, 1.2), (0.6, 1.0)), ((), (0.6, 1.0)), strict=True):
        for place, bounds in (("shards", of_shards), ("memory", of_memory)):
            label = f"from {place}, {data.called}"
            targets = data.num_classes if place == "memory" else None
            ends = {"normalize alone": "", "flip": "flip", "flip and shift": "slice"}
            fdt = f"{label}, FDT"
            group.figures[fdt] = graph(_streamed(data, place), mixed(data.num_classes), *run)
            for does, augment in ends.items():
                name, held = f"{label}, no FDT, {does}", () if augment == "slice" else bounds
                group.figures[name] = graph(_streamed(data, place), whole(targets, augment), *run)
                group.ratios.append(Ratio(f"streaming FDT : no FDT, {does}, {label}", fdt, [name], *held))
    return group


def _streamed(data: Data, place: str) -> Feed:
    """Of shards the labels are text, which without FDT stays as it is: so the other side does a little less."""
    return shards(data.folder) if place == "shards" else memory(*data.loaded, WINDOW)


class SuperposedDataset(torch.utils.data.Dataset[tuple[torch.Tensor, torch.Tensor]]):
    """FDT as one would write it for a DataLoader: images drawn from the whole set, torchvision's transforms v2.

    "lean": crop and flip in u8, normalize the sum. "chain": every image goes through the whole chain before it is
    summed. "PIL": the same, of images as torchvision's own data sets give them.
    """

    def __init__(self, images: U8, labels: I64, num_classes: int, way: str) -> None:
        from torchvision.transforms import v2

        planes = torch.from_numpy(np.ascontiguousarray(images.transpose(0, 3, 1, 2)))
        self.images = images if way == "PIL" else planes
        self.by_class = [torch.from_numpy(np.flatnonzero(labels == c)) for c in range(num_classes)]
        augment = [v2.RandomCrop(images.shape[1], padding=PAD), v2.RandomHorizontalFlip()]
        normalize = [v2.ToDtype(torch.float32), v2.Normalize(PAPER_MEAN, [PAPER_STD] * 3)]
        begin = [v2.Lambda(Image.fromarray), v2.ToImage()] if way == "PIL" else []
        self.size = planes.shape[1:]
        self.each = v2.Compose(augment if way == "lean" else [*begin, *augment, *normalize])
        self.last = v2.Compose(normalize if way == "lean" else [v2.Identity()])

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, _: int) -> tuple[torch.Tensor, torch.Tensor]:
        num_classes = len(self.by_class)
        classes = random.sample(range(num_classes), random.randint(1, num_classes))
        weights = 1 / torch.arange(1, len(classes) + 1)
        weights /= weights.sum()
        image = torch.zeros(self.size)
        for weight, label in zip(weights, classes, strict=True):
            chosen = self.by_class[label]
            image += weight * self.each(self.images[chosen[random.randrange(len(chosen))]])
        return self.last(image), torch.zeros(num_classes).index_put_((torch.tensor(classes),), weights)


def data_loader(data: Data, batch_size: int, way: str, num_workers: int = 2) -> Figure:
    """Workers that stay, and an epoch a figure, so that they rest when others are measured. The first batch of each
    worker is the warm-up. Spawned: a fork after DALI's threads have run is not safe."""
    dataset = SuperposedDataset(*data.loaded, data.num_classes, way)
    indices: list[int] = []
    loader = torch.utils.data.DataLoader(
        dataset, batch_size, sampler=indices, num_workers=num_workers, persistent_workers=True,
        multiprocessing_context="spawn",
    )  # fmt: skip

    def figure(seconds: float) -> float:
        settle()
        timed = num_workers * max(1, round(2 * seconds))
        indices[:] = [i % len(dataset) for i in range((num_workers + timed) * batch_size)]
        batches = iter(loader)
        for _ in range(num_workers):
            next(batches)
        start = time.perf_counter()
        outputs = sum(len(targets) for _, targets in batches)
        return outputs / (time.perf_counter() - start)

    return figure


def measure_dataloader(setting: Setting) -> Group:
    data, group = setting.data[0], Group()
    ways = {"lean": "lean", "chain": "the whole chain for every image", "PIL": "the whole chain, from PIL images"}
    group.figures = {"FDT": resident(data, setting.batch_size, setting.threads)}
    group.figures |= {f"DataLoader, {text}": data_loader(data, setting.batch_size, way) for way, text in ways.items()}
    title = f"resident FDT : DataLoader, {data.called}"
    group.ratios = [Ratio(f"{title}, {text}", "FDT", [f"DataLoader, {text}"], 300, 500) for text in ways.values()]
    return group


def measure_arithmetic(setting: Setting) -> Group:
    """The superposition alone beside plain multiply-adds of the same images, all in the caches."""
    group, core = Group(share=0.25), native_core()
    for data in setting.data:
        for threads in sorted({1, setting.threads}):
            label = f"{data.called}, {threads} thread{'s' * (threads > 1)}"
            names = [f"{label}, {way}" for way in ("yardstick", "float32", "float16")]
            group.figures |= dict(zip(names, _sums(core, data, threads), strict=True))
            group.ratios += [
                Ratio(f"superposition : multiply-adds, {label}", names[1], names[:1], 0.6, 0.85),
                Ratio(f"superposition to float16 : multiply-adds, {label}", names[2], names[:1]),
            ]
    return group


def _sums(core: Core, data: Data, threads: int) -> list[Figure]:
    """Of the yardstick, and of the superposition to float32 and float16; a pool of cached images, the same plans."""
    pool = core.pool(*data.of_each_class(CACHED_IMAGES), data.num_classes, PAD)
    indices, fdt, augment = np.arange(CACHED_OUTPUTS), FDT(), Augment(PAD)
    plans = core.draw_plans(pool, 0, 0, indices, fdt, augment)

    def superpose(half: bool) -> Figure:
        output = CoreOutput(PAPER_MEAN, [PAPER_STD] * 3, half=half)
        more: dict[str, Any] = {"num_threads": threads}
        return _repeated(lambda n: core.superpose(pool, 0, 0, indices, fdt, augment, output, repeats=n, **more)[2])

    return [_repeated(lambda n: core.yardstick(pool, plans, threads, n)), superpose(False), superpose(True)]


def _repeated(work: Callable[[int], float]) -> Figure:
    """Outputs a second of work that is repeated n times and says how many seconds it took."""

    def figure(seconds: float) -> float:
        settle()
        repeats = max(1, round(seconds * 10 / work(10)))
        return CACHED_OUTPUTS * repeats / work(repeats)

    return figure


def measure_batch_sizes(setting: Setting) -> Group:
    """Fixed costs: small batches, large ones, one thread."""
    group = Group(share=0.2)
    for data in setting.data:
        for threads in THREADS:
            for batch_size in BATCH_SIZES:
                label = f"{data.called}, {threads} thread{'s' * (threads > 1)}, batch {batch_size}"
                fdt, plain = f"{label}, FDT", f"{label}, no FDT"
                feed = memory(*data.loaded, batch_size)
                group.figures[fdt] = resident(data, batch_size, threads)
                group.figures[plain] = graph(feed, whole(data.num_classes), batch_size, threads)
                group.ratios.append(Ratio(f"resident FDT : no FDT, {label}", fdt, [plain]))
    return group


def write_jpegs(data: Data, n: int, folder: Path) -> Path:
    """Real images of the set, enlarged to 224x224, in random order, as a tar of JPEGs with its index."""
    images, labels = data.of_each_class(n)
    path = folder / "jpegs.tar"
    with path.open("wb") as file:
        tar = TarShard(file)
        for i in np.random.default_rng(0).permutation(len(labels)):
            encoded = io.BytesIO()
            enlarged = Image.fromarray(images[i]).resize((224, 224), Image.Resampling.BICUBIC)
            enlarged.save(encoded, "JPEG", quality=90)
            tar.add(f"{i:08d}", {"jpg": encoded.getvalue(), "cls": str(labels[i]).encode()})
        tar.close()
    path.with_suffix(".idx").write_bytes(tar.index)
    return path


def measure_jpeg(setting: Setting) -> Group:
    """224x224 JPEGs of 100 classes, streamed and decoded; 1 - ratio is FDT's share of the time."""
    data, group, run = setting.data[1], Group(), (JPEG_WINDOW, setting.threads)
    tar = write_jpegs(data, setting.num_jpegs, setting.scratch)
    group.figures = {
        "FDT": graph(jpegs(tar), mixed(data.num_classes), *run),
        "no FDT": graph(jpegs(tar), whole(None, "flip"), *run),
    }
    group.ratios = [Ratio(f"JPEG 224x224, FDT : no FDT, flip, {data.called}", "FDT", ["no FDT"])]
    return group


def measure_loader(setting: Setting) -> Group:
    """FDTLoader as a trainer iterates it, from epoch to epoch, their beginnings included."""
    group = Group(share=0.25)
    for data in setting.data:
        for mode in ("resident", "streaming"):
            for engine in ("native", "torch"):
                label = f"{data.called}, {mode}, {engine}"
                loaders = [_loader(setting, data, mode, engine, fdt) for fdt in (FDT(), None)]
                fdt, plain = f"{label}, FDT", f"{label}, no FDT"
                group.figures |= {fdt: _epochs(loaders[0]), plain: _epochs(loaders[1])}
                group.ratios.append(Ratio(f"FDTLoader, FDT : no FDT, {label}", fdt, [plain]))
            names = [f"{data.called}, {mode}, {engine}, FDT" for engine in ("native", "torch")]
            group.ratios.append(Ratio(f"FDTLoader, native : torch, {data.called}, {mode}", names[0], names[1:]))
    return group


def _loader(setting: Setting, data: Data, mode: Any, engine: Any, fdt: FDT | None) -> FDTLoader:
    options: dict[str, Any] = {"num_threads": setting.threads, "prefetch": PREFETCH, "verify": False}
    return FDTLoader(data.folder, setting.batch_size, mode=mode, engine=engine, mix=fdt, **options)


def _epochs(loader: FDTLoader) -> Figure:
    batches = (batch for epoch in cycle([loader]) for batch in epoch)
    return rate(lambda: len(next(batches)[1]))


def measure_first_batch(setting: Setting) -> Group:
    """From the start of an epoch to its first batch."""
    group = Group(share=0, unit="milliseconds")
    for data in setting.data:
        for mode in ("resident", "streaming"):
            loader = _loader(setting, data, mode, "native", FDT())
            group.figures[f"{data.called}, {mode}"] = lambda _, loader=loader: _timed_ms(lambda: _first(loader))  # type: ignore[misc]
    return group


def _first(loader: FDTLoader) -> None:
    batches = iter(loader)
    next(batches)
    batches.close()


def _timed_ms(work: Callable[[], Any]) -> float:
    settle()
    start = time.perf_counter()
    work()
    return 1e3 * (time.perf_counter() - start)


LOAD = """import time
from fdt_pipeline.dali import import_dali
from fdt_pipeline.native import load
import_dali()
start = time.perf_counter()
load()
print(time.perf_counter() - start)"""


def measure_first_use(setting: Setting) -> Group:
    """A build into an empty cache, once, and what it takes a new process to load it from then on."""
    environment = {**os.environ, "FDT_PIPELINE_CACHE": str(setting.scratch / "cache")}

    def python(*arguments: str) -> str:
        command = [sys.executable, *arguments]
        return subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout

    group = Group(share=0, unit="seconds")
    built = _timed_ms(lambda: python("-m", "fdt_pipeline", "build")) / 1e3
    group.figures = {"build": lambda _: built, "load": lambda _: float(python("-c", LOAD))}
    return group


GROUPS: dict[str, Callable[[Setting], Group]] = {
    "resident": measure_resident,
    "streaming": measure_streaming,
    "dataloader": measure_dataloader,
    "arithmetic": measure_arithmetic,
    "batch-sizes": measure_batch_sizes,
    "jpeg": measure_jpeg,
    "loader": measure_loader,
    "first-batch": measure_first_batch,
    "first-use": measure_first_use,
}


def measure(setting: Setting, names: Sequence[str], repeats: int) -> dict[str, Any]:
    groups, ratios = {}, []
    for name in names:
        print(f"{name} ...", file=sys.stderr, flush=True)
        group = GROUPS[name](setting)
        figures = interleaved(group, setting.seconds, repeats)
        groups[name] = {"unit": group.unit, "figures": {key: spread(values) for key, values in figures.items()}}
        ratios += [compare(ratio, figures) for ratio in group.ratios]
        del group
        gc.collect()  # pipelines and their threads
    return {"ratios": ratios, "groups": groups}


def described(setting: Setting, repeats: int) -> dict[str, Any]:
    """What was measured where."""
    manifests = [read_manifest(data.folder) for data in setting.data]
    return {
        "data": [
            {"classes": len(m.classes), "samples": m.num_samples, "shape": m.shape, "manifest_sha256": m.sha256}
            for m in manifests
        ],
        "options": {
            "repeats": repeats,
            "seconds": setting.seconds,
            "batch_size": setting.batch_size,
            "mix_window": WINDOW,
            "jpeg_mix_window": JPEG_WINDOW,
            "jpegs": setting.num_jpegs,
            "dali, both sides": options(setting.batch_size, setting.threads),
            "isa": native_core().isa,
        },
        "hardware": hardware(torch.device("cpu")),
        "versions": versions(),
    }


def table(ratios: Sequence[dict[str, Any]]) -> str:
    rows = ["| ratio | median [min, max] | at least | stretch | holds |", "|---|---:|---:|---:|---|"]
    for r in ratios:
        holds = {None: "", False: "no", True: "stretch" if r["reaches_stretch"] else "yes"}[r["holds"]]
        bounds = " | ".join("" if r[key] is None else f"{r[key]:g}" for key in ("at_least", "stretch"))
        rows.append(f"| {r['ratio']} | {r['median']:.3g} [{r['min']:.3g}, {r['max']:.3g}] | {bounds} | {holds} |")
    return "\n".join(rows)


def bounded_table(ratios: Sequence[dict[str, Any]]) -> str:
    """Those that are held to a bound alone, as the READMEs have them."""
    return table([r for r in ratios if r["at_least"] is not None])


def main(argv: Sequence[str] | None = None) -> None:
    arguments = _parser().parse_args(argv)
    with tempfile.TemporaryDirectory() as scratch:
        setting = Setting(
            (Data(arguments.cifar10), Data(arguments.cifar100)),
            arguments.seconds,
            arguments.batch_size,
            arguments.threads,
            arguments.jpegs,
            Path(scratch),
        )
        results = {**described(setting, arguments.repeats), **measure(setting, arguments.only, arguments.repeats)}
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    arguments.out.write_text(json.dumps(results, indent=2) + "\n")
    print(table(results["ratios"]))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("cifar10", type=Path, help="folder of raw shards of 32x32x3, of 10 classes")
    parser.add_argument("cifar100", type=Path, help="the same, of 100 classes")
    parser.add_argument("out", type=Path, help="JSON file to write")
    parser.add_argument("--repeats", type=int, default=7, help="rounds that count (default: %(default)s)")
    parser.add_argument("--seconds", type=float, default=1.0, help="of a figure (default: %(default)s)")
    parser.add_argument("--batch-size", type=int, default=256, help="default: %(default)s")
    parser.add_argument("--threads", type=int, default=2, help="of DALI (default: %(default)s)")
    parser.add_argument("--jpegs", type=int, default=2000, help="images of 224x224 to make (default: %(default)s)")
    parser.add_argument("--only", nargs="+", choices=GROUPS, default=list(GROUPS), help="groups (default: all)")
    return parser


if __name__ == "__main__":
    main()
