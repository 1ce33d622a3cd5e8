"""What `python -m tools gpu` measures. A stage is a function that yields what it finds as it finds it.

    python -m tools.gpu_stages STAGE cuda FOLDER    one stage; a JSON line in FOLDER/STAGE.jsonl for each finding

A finding is {"rows": {name: row of the table}} or {"notes": {name: value}}.
"""

from __future__ import annotations

import ctypes
import json
import sys
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, closing
from dataclasses import dataclass, replace
from functools import partial
from importlib import import_module
from itertools import islice
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import torch
import torchvision

from fdt_pipeline import FDT, Augment, FDTLoader, RandomResizedCrop
from fdt_pipeline.definition.mixing import CutMix, Mix, MixUp
from fdt_pipeline.loader import graphs
from fdt_pipeline.machine import available_cpus
from fdt_pipeline.native.load import nvrtc_path
from fdt_pipeline.native.pool import HOST
from fdt_pipeline.shards import read_manifest, write_shards
from fdt_pipeline.sources import ArraySource
from train.accelerate import Compiled, network_of_step
from train.measure_speed import PLANS, make_step, random_batch, seconds_of, waiting_share
from train.step import TrainStep

from .bench.contenders import find_entry
from .bench.task import Task
from .bench.timing import BatchTimer
from .measure_kernels import CLASSES, PAD, SHAPE, made_up, output_of, rates
from .native_probe import Draw, Probe, build_probe
from .rounds import bounded, measure_rounds, ratios

Found = dict[str, dict[str, Any]]
EPOCHS = 150  # of the paper's schedule
RESIDENT, LARGE, PLAIN = "resident FDT, C = 10", "resident FDT, C = 100", "resident, no FDT, C = 10"
STREAMING, INDEXED = "streaming FDT, C = 10", "a tensor indexed on the GPU, no mixing"
LOADERS = {  # name -> contender of the bench, number of classes
    RESIDENT: ("ours, resident, native, FDT", 10),
    LARGE: ("ours, resident, native, FDT", 100),
    PLAIN: ("ours, resident, native, no FDT", 10),
    STREAMING: ("ours, streaming, native, FDT", 10),
    INDEXED: ("GPU, as airbench", 10),
}


@dataclass(frozen=True)
class Sizes:
    """How much is measured. steps: of a turn; outputs: of a launch; copied: bytes that show the memory's speed;
    side: of photographs."""

    images: int
    batch_size: int
    model: str
    train_batch: int
    steps: int
    outputs: int
    copied: int
    side: int
    rounds: int
    seconds: float


SIZES = {
    "cuda": Sizes(50_000, 512, "resnet34", 100, 100, 4096, 2**31, 224, 7, 0.5),
    "cpu": Sizes(640, 32, "small", 32, 2, 16, 2**20, 32, 2, 0.02),  # to try the command out; its figures mean nothing
}


@dataclass(frozen=True)
class Place:
    """Where it is measured, and the folder that the stages share."""

    device: torch.device
    folder: Path

    @property
    def sizes(self) -> Sizes:
        return SIZES[self.device.type]

    @property
    def has_gpu(self) -> bool:
        return self.device.type == "cuda"

    def wait(self) -> None:
        if self.has_gpu:
            torch.cuda.synchronize(self.device)

    def shards(self, num_classes: int = 10) -> Path:
        """Noise in raw shards, as large as CIFAR-10."""
        shards = self.folder / f"shards-{num_classes}"
        if not (shards / "manifest.json").exists():
            write_shards(ArraySource(*made_up(self.sizes.images, num_classes)), shards, overwrite=True)
        return shards


def row(name: str, values: Any, at_least: float | None = None, stretch: float | None = None) -> Found:
    return {"rows": {name: bounded("figure", name, values, at_least, stretch)}}


def loaders(place: Place) -> Iterator[Found]:
    """Images a second in float16, over the ends of epochs."""
    sizes = place.sizes
    with ExitStack() as stack:

        def timer(contender: str, num_classes: int) -> BatchTimer:
            shards = place.shards(num_classes)
            task = Task(shards, place.folder, read_manifest(shards), sizes.batch_size, 4, str(place.device), half=True)
            made = stack.enter_context(closing(find_entry(contender).make(task)))
            return BatchTimer(made, task, ready=place.wait)

        def rate(timer: BatchTimer) -> float:
            return timer.turn(sizes.seconds)["rate"]

        turns = {name: partial(rate, timer(*contender)) for name, contender in LOADERS.items()}
        found = measure_rounds(turns, sizes.rounds)
    for name, values in found.items():
        bounds = {RESIDENT: (1e6, 5e6), LARGE: (7e5, 3e6)}.get(name, ())
        yield row(f"{name}, images/s, batch {sizes.batch_size}, f16", values, *bounds)
    for over, under, *held in (
        (RESIDENT, PLAIN, 0.95, 1),
        (RESIDENT, INDEXED, 0.5, 1.5),
        (STREAMING, RESIDENT, 0.3, 0.6),
    ):
        yield row(f"{over} : {under}", ratios(found[over], found[under]), *held)


def decoding(place: Place) -> Iterator[Found]:
    """The whole loader on JPEGs of 224 pixels in 1,000 classes, decoded on the GPU and on the CPU, and beside a step of
    ResNet-50."""
    sizes, shards = place.sizes, place.folder / "jpegs"
    images = np.random.default_rng(0).integers(0, 256, (200, 16, 16, 3), np.uint8).repeat(16, 1).repeat(16, 2)
    number = min(sizes.images, 10_000)
    num_classes = min(1000, number)
    write_shards(ArraySource(np.resize(images, (number, 256, 256, 3)), np.arange(number) % num_classes), shards, "jpg")
    options: dict[str, Any] = {
        "augment": RandomResizedCrop(place.sizes.side),
        "normalize": "imagenet",
        "dtype": torch.float16,
    }
    options |= {"device": place.device, "num_threads": available_cpus(), "channels_last": True}
    batch_size = min(128, sizes.batch_size)

    def loader(decode: str | None, fdt: FDT | None) -> FDTLoader:
        chosen: Any = {"decode": decode} if place.has_gpu else {}
        return FDTLoader(shards, batch_size, mix=fdt, **options, **chosen)

    with ExitStack() as stack:
        loaders = {
            f"decoded on the {kind.upper()}, {name}": stack.enter_context(loader(kind, fdt))
            for kind in ("gpu", "cpu")
            for name, fdt in (("FDT", FDT()), ("FDT(max_images=4)", FDT(max_images=4)), ("no mixing", None))
        }

        def rate(loader: FDTLoader) -> float:
            return number / seconds_of(lambda: deque(loader, maxlen=0), place.device)

        found = measure_rounds({name: partial(rate, each) for name, each in loaders.items()}, min(3, sizes.rounds))
        for name, values in found.items():
            yield row(f"{name}, images/s of the loader at {sizes.side} pixels, C = {num_classes:,}", values)
        for name in ("FDT", "FDT(max_images=4)", "no mixing"):
            gpu, cpu = (found[f"decoded on the {kind}, {name}"] for kind in ("GPU", "CPU"))
            yield row(f"decoded on the GPU : on the CPU, {name}", ratios(gpu, cpu))
        step = step_of_photographs(place, batch_size, num_classes)
        for name, each in loaders.items():
            yield row(f"share of the time that a step of ResNet-50 waits, {name}", [_waiting(each, step, place)])


def step_of_photographs(
    place: Place, batch_size: int, num_classes: int
) -> Callable[[torch.Tensor, torch.Tensor], None]:
    """torchvision's ResNet-50, forward and backward in bfloat16, channels last."""
    make = torchvision.models.resnet50 if place.has_gpu else torchvision.models.resnet18
    network = make(num_classes=num_classes).to(place.device, memory_format=torch.channels_last)
    optimizer = torch.optim.SGD(network.parameters(), lr=0.01)

    def step(images: torch.Tensor, targets: torch.Tensor) -> None:
        with torch.autocast(place.device.type, torch.bfloat16):
            loss = torch.nn.functional.cross_entropy(network(images.float()), targets)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()

    shapes = (batch_size, 3, place.sizes.side, place.sizes.side), (batch_size, num_classes)
    step(*(torch.zeros(shape, device=place.device) for shape in shapes))
    return step


def _waiting(loader: FDTLoader, step: Callable[[torch.Tensor, torch.Tensor], None], place: Place) -> float:
    """1 - (time of the steps on one batch, again and again) : (time of as many with the loader)."""
    batches, steps = list(islice(loader, 1)), min(len(loader), place.sizes.steps)

    def train(given: Iterable[Any]) -> None:
        for batch in given:
            step(*batch)

    alone = seconds_of(partial(train, batches * steps), place.device)
    fed = seconds_of(partial(train, islice(loader, steps)), place.device)
    return max(1e-9, 1 - alone / fed)


def host(place: Place) -> Iterator[Found]:
    """What a batch of 512 costs the host: DALI, Python and hand-over, with constants of a pixel in the operator's
    place."""
    fn, types = import_module("nvidia.dali.fn"), import_module("nvidia.dali.types")
    size, shards = 512, place.folder / "pixels"
    write_shards(ArraySource(np.zeros((100 * size, 1, 1, 1), np.uint8), np.arange(100 * size) % 10), shards)

    def constants(ids: Any, arguments: Any, device: str) -> Any:
        fed = fn.cast(ids[0] * 0, dtype=types.FLOAT)  # or DALI would leave the ids out
        outputs = [fn.constant(fdata=0.0, shape=shape, device=device) for shape in ([size, 1, 1, 1], [size, 10])]
        return outputs[0], outputs[1] + (fed.gpu() if device == "gpu" else fed)

    with mock.patch.object(graphs, "resident", constants), FDTLoader(shards, size, device=place.device) as loader:
        epochs = [seconds_of(lambda: deque(loader, maxlen=0), place.device) for _ in range(8)]
    spent = [seconds / len(loader) for seconds in epochs[1:]]
    yield row("us of the host for a batch of 512, without the kernel", [1e6 * seconds for seconds in spent])
    yield row("150 us : host time of a batch", [150e-6 / seconds for seconds in spent], 1, 2.5)


def epochs(place: Place) -> Iterator[Found]:
    """The first batch of epochs 0 to 3, memory after each, and what is copied to the GPU."""
    options: dict[str, Any] = {"device": place.device, "mode": "resident", "dtype": torch.float16}
    firsts, taken = [], []
    with FDTLoader(place.shards(), place.sizes.batch_size, **options) as loader:
        for _ in range(4):
            batches = iter(loader)
            firsts.append(seconds_of(partial(next, batches), place.device))
            deque(batches, maxlen=0)
            place.wait()
            free, total = torch.cuda.mem_get_info(place.device) if place.has_gpu else (0, 0)
            taken.append(total - free)
    yield {"notes": {"first batch of epochs 0 to 3, ms": [round(1e3 * seconds, 3) for seconds in firsts]}}
    yield {"notes": {"MB of the GPU in use after each": [round(number / 1e6, 1) for number in taken]}}
    yield row("20 ms : first batch of an epoch, from epoch 1 on", [0.02 / seconds for seconds in firsts[1:]], 1)

    def three_epochs() -> None:
        with FDTLoader(place.shards(), place.sizes.batch_size, **options) as loader:
            for _ in range(3):
                deque(loader, maxlen=0)

    if place.has_gpu:
        copied = bytes_copied(three_epochs, place) / (place.sizes.images * np.prod(SHAPE))
        yield {"notes": {"bytes copied to the GPU by a loader and its three epochs : bytes of the set": float(copied)}}


def bytes_copied(work: Callable[[], object], place: Place) -> int:
    """Bytes that go from the host to the GPU meanwhile, by torch's profiler."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
        work()
        place.wait()
    trace = place.folder / "trace.json"
    profile.export_chrome_trace(str(trace))
    events = json.loads(trace.read_text())["traceEvents"]
    copies = [event for event in events if event.get("cat") == "gpu_memcpy" and "HtoD" in event["name"]]
    return sum(event["args"]["bytes"] for event in copies)


def step_of(place: Place, wrap: Callable[[Any], Any], graph: bool) -> TrainStep:
    """The trainer's step with TN, whose network is called through `wrap`."""
    plain = make_step(place.sizes.model, "tn", place.device)
    return TrainStep(wrap(plain.network), plain.loss, plain.optimizer, plain.scaler, place.device, graph)


def training(place: Place) -> Iterator[Found]:
    """Epochs of the step that a long run takes, on one batch again and again and on the loader."""
    sizes, device = place.sizes, place.device
    num_steps = sizes.images // sizes.train_batch
    plan = replace(PLANS[device.type], model=sizes.model, batch_sizes=(sizes.train_batch,), steps=num_steps, rounds=3)
    step = step_of(place, lambda network: network_of_step(network, device, EPOCHS * num_steps, None), place.has_gpu)
    [waiting], raw = waiting_share(plan, device, step)
    [seconds] = raw.values()
    name = f"{sizes.model} with TN, batch {sizes.train_batch}"
    yield row(f"{name}: epoch on one batch : epoch on the loader", ratios(*seconds.values()), 0.99, 0.998)
    minutes = [6 * 60 / (EPOCHS * fed) for fed in seconds["loader"]]
    yield row(f"{name}: 6 minutes : {EPOCHS} epochs, extrapolated from one, without evaluation", minutes, 1, 1.2)
    yield {"notes": {"share of an epoch in which the host waits for batches": list(waiting.values)}}


def steps(place: Place) -> Iterator[Found]:
    """Milliseconds a step as a CUDA graph of ours, and by torch.compile's own."""
    batch = random_batch(place.sizes.train_batch, SHAPE[0], place.device)

    def milliseconds(step: TrainStep) -> float:
        def turn() -> None:
            for _ in range(place.sizes.steps):
                step(*batch)

        return 1e3 * seconds_of(turn, place.device) / place.sizes.steps

    own, compiled, theirs = "our CUDA graph", "our CUDA graph, compiled", "reduce-overhead"
    ways = {own: step_of(place, lambda network: network, graph=place.has_gpu)}
    if place.has_gpu:
        ways[compiled] = step_of(place, Compiled, graph=True)
        ways[theirs] = step_of(place, reduce_overhead, graph=False)
    found = measure_rounds({name: partial(milliseconds, step) for name, step in ways.items()}, place.sizes.rounds)
    for name, values in found.items():
        yield row(f"ms a step, {name}", values)
    if place.has_gpu:
        yield row(f"ms a step, {theirs} : {compiled}", ratios(found[theirs], found[compiled]))


def reduce_overhead(network: Any) -> Callable[[torch.Tensor], torch.Tensor]:
    """torch.compile's own CUDA graphs, which each step begins anew."""
    compiled = torch.compile(network, mode="reduce-overhead")

    def call(images: torch.Tensor) -> torch.Tensor:
        torch.compiler.cudagraph_mark_step_begin()
        return compiled(images)

    return call


# name -> mixing, number of classes, images that an output is made of on average. Without leaders, which the probe
# would upload with every launch.
KERNELS: dict[str, tuple[Mix, int, float]] = {f"C = {c}": (FDT(), c, (c + 1) / 2) for c in CLASSES}
KERNELS |= {"MixUp": (MixUp(1, anchor="random"), 10, 2), "CutMix": (CutMix(1, anchor="random"), 10, 2)}


def kernel(place: Place) -> Iterator[Found]:
    """Outputs a second of the kernel alone, and the share of the memory's speed that its bytes come to."""
    probe, sizes, threads = Probe(ctypes.CDLL(str(build_probe()))), place.sizes, 1
    if place.has_gpu:
        probe.set_driver("libcuda.so.1", nvrtc_path())
    superpose, number = (probe.gpu_superpose, sizes.outputs) if place.has_gpu else (probe.superpose, threads)

    def seconds(pool: Any, mixing: Mix, repeats: int) -> float:
        draw = Draw(0, 0, np.arange(sizes.outputs), mixing, Augment(PAD))
        return superpose(pool, draw, output_of(True), number, repeats + place.has_gpu)[2]

    device = 0 if place.has_gpu else HOST
    pools = {c: probe.pool(*made_up(sizes.images, c), c, PAD, device=device) for c in CLASSES}
    contenders = {name: partial(seconds, pools[c], mixing) for name, (mixing, c, _) in KERNELS.items()}
    source, copy = (torch.ones(sizes.copied, dtype=torch.uint8, device=place.device) for _ in range(2))

    def copying(repeats: int) -> float:
        return seconds_of(lambda: [copy.copy_(source) for _ in range(repeats)], place.device)

    found = rates(contenders, sizes.outputs, sizes.seconds, sizes.rounds)
    speed = rates({"copy": copying}, 2 * sizes.copied, sizes.seconds, sizes.rounds)["copy"]
    yield row("GB/s of a copy, read and written", [value / 1e9 for value in speed])
    image = int(np.prod(SHAPE))
    for name, (_, num_classes, images) in KERNELS.items():
        moved = images * image + 2 * image + 4 * num_classes
        bound = 0.6 if name.startswith("C = ") else None
        yield row(f"outputs/s of the kernel, {sizes.outputs} a launch, f16, {name}", found[name])
        yield row(f"kernel : copy, bytes a second, {name}", ratios([moved * v for v in found[name]], speed), bound)


def main(name: str, device: str, folder: str) -> None:
    stage: Callable[[Place], Iterator[Found]] = globals()[name]
    with open(Path(folder) / f"{name}.jsonl", "a") as file:
        for found in stage(Place(torch.device(device), Path(folder))):
            print(json.dumps(found), file=file, flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
