"""One epoch of outputs, from a data set in memory or from the shards.

Each epoch runs a DALI pipeline of its own and closes it at its end, so breaking off leaves nothing behind that a later
epoch could see (25 ms until the first batch with DALI 1.34, 31 with 2.4: README.md).
What the graph ends with, and how a batch is made of it, is the engine's (engines.py).
"""

from __future__ import annotations

import ctypes
from collections import deque
from collections.abc import Generator, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from importlib import import_module
from typing import Any, NamedTuple

import numpy as np
import torch

from fdt_pipeline.loader.bad_samples import find_bad
from fdt_pipeline.loader.checkpoint import Place
from fdt_pipeline.loader.engines import ResidentEngine, StreamingEngine
from fdt_pipeline.loader.graphs import Decoding, Numbers
from fdt_pipeline.loader.order import EpochOrder, Leg, epoch_order
from fdt_pipeline.loader.prefetch import Ahead
from fdt_pipeline.loader.ranks import Batching
from fdt_pipeline.loader.reading import Window, read_windows
from fdt_pipeline.loader.stats import ClassWatch, StatsCounter
from fdt_pipeline.shards import Manifest, ShardError
from fdt_pipeline.shards.files import ShardFiles
from fdt_pipeline.sources.source import I64


@dataclass(frozen=True)
class Running:
    """How DALI runs. device_id: of the GPU that its operators use, None where there are none."""

    num_threads: int
    prefetch: int
    device_id: int | None = None

    def options(self, batch_size: int, seed: int) -> dict[str, Any]:
        """Arguments of a `@pipeline_def` function."""
        return {
            "batch_size": batch_size,
            "num_threads": self.num_threads,
            "prefetch_queue_depth": max(1, self.prefetch),
            "exec_async": self.prefetch > 0,
            "exec_pipelined": self.prefetch > 0,
            "device_id": self.device_id,
            "seed": seed,
        }


class Part(NamedTuple):
    """Outputs of this rank; weights f32[n]: 0 for those that stand for no sample, else 1."""

    images: torch.Tensor
    targets: torch.Tensor
    weights: torch.Tensor

    def rows(self, begin: int, end: int | None = None) -> Part:
        return Part(*(field[begin:end] for field in self))


class ResidentEpochs:
    """Outputs drawn from a set in memory."""

    def __init__(self, engine: ResidentEngine, running: Running, batching: Batching, seed: int) -> None:
        self.engine, self.running, self.batching, self.seed = engine, running, batching, seed

    def leg(self) -> None:
        """Global batches do not depend on the number of ranks, so there are no legs."""

    def batches(self, place: Place, stats: StatsCounter) -> Generator[Part, None, None]:
        """From the place on, to the end of its epoch."""
        batching = self.batching
        if place.batch >= batching.num_batches:
            return
        engine = self.engine if place.mixing else self.engine.unmixed()
        options = self.running.options(batching.batch_size, self.seed % 2**31)
        pipeline = engine.pipeline(self._ids(place), options)
        with closing(_run(pipeline, batching.num_batches - place.batch)) as outputs:
            for batch, (output, shared) in enumerate(outputs, place.batch):
                weights = torch.from_numpy(batching.numbers(batch)[1]).float()
                yield Part(*engine.finish([field[: len(weights)] for field in output], shared), weights)

    def _ids(self, place: Place) -> Numbers:
        def ids(number: int) -> I64:
            batch = place.batch + number
            if batch >= self.batching.num_batches:
                raise StopIteration
            return _padded_ids(place.epoch, self.batching.numbers(batch)[0], self.batching.batch_size)

        return ids


class StreamingEpochs:
    """Outputs of the samples of the shards; shuffled and mixed within a window."""

    def __init__(
        self,
        engine: StreamingEngine,
        running: Running,
        files: ShardFiles,
        manifest: Manifest,
        batching: Batching,
        size: tuple[int, int] | None,
        window: int,
        seed: int,
        *,
        train: bool,
        substitute: bool,
        watch: ClassWatch | None,
    ) -> None:
        self.engine, self.running, self.files, self.manifest, self.batching = engine, running, files, manifest, batching
        self.decoding = Decoding(manifest.encoding != "raw", manifest.channels, size)
        self.window, self.seed, self.train, self.substitute, self.watch = window, seed, train, substitute, watch
        self.known_bad: dict[tuple[str, int], str] = {}

    def leg(self) -> Leg:
        """What the epochs of this loader are, as a leg; no batches of it yet."""
        shuffle = self.window if self.train else 0
        return Leg(self.batching.ranks.world_size, self.batching.batch_size, shuffle, 0)

    def batches(self, place: Place, stats: StatsCounter) -> Generator[Part, None, None]:
        """Windows cut into batches; a batch that spans two windows is put together of both."""
        batching, size = self.batching, self.batching.batch_size
        if place.batch >= batching.num_batches:
            return
        # A last batch is filled up with the outputs of the one before.
        before = batching.is_filled(place.batch) and place.batch > place.batches_before
        begin = place.batch - before
        kept: list[Part] = []
        previous: Part | None = None
        with closing(self._parts(place, (begin - place.batches_before) * size, stats)) as parts:
            for batch in range(begin, batching.num_batches):
                num_new = batching.num_new(batch)
                while sum(len(part.weights) for part in kept) < num_new:
                    kept.append(next(parts))
                taken, kept = _split(kept, num_new)
                if batching.is_filled(batch):
                    had = [previous.rows(num_new)] if previous else taken or [next(parts)]
                    taken = [*taken, *_repeated(had, size - num_new)]
                part = _joined(taken)
                previous = part if batching.last_batch == "fill" else None
                if batch >= place.batch:
                    yield part

    def _parts(self, place: Place, position: int, stats: StatsCounter) -> Generator[Part, None, None]:
        """Windows of outputs, from one that is number `position` of this rank and leg on."""
        self.files.check_unchanged()
        engine = self.engine if place.mixing else self.engine.unmixed()
        leg, ranks = self.leg(), self.batching.ranks
        order = epoch_order(
            self.manifest, self.seed, place.epoch, leg.shuffle, ranks.rank, ranks.world_size, place.legs
        )
        if not len(order.samples):  # of a last batch that is to be filled up: with those of another rank
            order = epoch_order(self.manifest, self.seed, place.epoch, leg.shuffle, legs=place.legs)
        number, skipped = divmod(position, self.window)
        num_windows = -(-len(order.samples) // self.window)
        while number < num_windows:
            reading = _Reading(self, order, place.epoch, number)
            try:
                with closing(reading.parts(engine, num_windows - number)) as parts:
                    for part, window in parts:
                        self._count(window, place.mixing, stats)
                        yield part.rows(skipped)
                        number, skipped = number + 1, 0
            except BadSamplesError as error:
                self.known_bad |= error.found  # and once more, now that they are known

    def _count(self, window: Window, mixing: bool, stats: StatsCounter) -> None:
        stats.add(windows=1)
        stats.add_bad(list(window.replaced.values()))
        if self.watch and mixing:
            self.watch.add(window.labels, stats)


class BadSamplesError(Exception):
    """Samples that DALI does not decode, though they are what was written."""

    def __init__(self, found: dict[tuple[str, int], str]) -> None:
        super().__init__(found)
        self.found = found


class _Reading:
    """A pipeline over the windows of an epoch from number `first` on."""

    def __init__(self, epochs: StreamingEpochs, order: EpochOrder, epoch: int, first: int) -> None:
        self.epochs, self.order, self.epoch, self.first = epochs, order, epoch, first

    def parts(self, engine: StreamingEngine, num_windows: int) -> Generator[tuple[Part, Window], None, None]:
        epochs = self.epochs
        read = read_windows(
            epochs.files, epochs.manifest, self.order, epochs.window, self.first, epochs.substitute,
            dict(epochs.known_bad)
        )  # fmt: skip
        with closing(_Feed(read, self._ids, epochs.window, epochs.running.prefetch)) as feed:
            options = epochs.running.options(epochs.window, epochs.seed % 2**31)
            pipeline = engine.pipeline(feed, epochs.decoding, options)
            with closing(_run(pipeline, num_windows)) as outputs:
                for number in range(num_windows):
                    with self._explained(self.first + number, feed):
                        output, shared = next(outputs)
                    window = feed.given.popleft()
                    images, targets = engine.finish([field[: len(window.labels)] for field in output], shared)
                    yield Part(images, targets, self._weights(window)), window

    def _ids(self, number: int) -> I64:
        size = self.epochs.window
        index = (self.first + number) * size + np.arange(size)
        return _padded_ids(self.epoch, self.order.first + index[index < len(self.order.samples)], size)

    def _weights(self, window: Window) -> torch.Tensor:
        weights = torch.ones(len(window.labels))
        if window.replaced and not self.epochs.train:
            weights[list(window.replaced)] = 0
        return weights

    @contextmanager
    def _explained(self, number: int, feed: _Feed) -> Iterator[None]:
        """DALI loses a whole batch to one bad sample, and does not say which: it is looked for."""
        try:
            yield
        except ShardError:
            raise
        except (RuntimeError, ValueError) as error:  # DALI 2 keeps what C++ calls an invalid argument
            epochs = self.epochs
            named = [(window, find_bad(window, epochs.manifest, epochs.decoding)) for window in feed.given]
            found = [(window, i, reason) for window, reasons in named for i, reason in reasons.items()]
            if found and epochs.substitute:
                raise BadSamplesError({window.identity(i): reason for window, i, reason in found}) from error
            url = epochs.files.folder.url
            names = "; ".join(f"{window.name(i)}: {reason}" for window, i, reason in found)
            raise RuntimeError(
                f"window {number} of epoch {self.epoch}: a sample of {url} could not be read or decoded: "
                f"{_gist(error)}; {names or f'`fdt-pipeline verify --decode {url}` names shard and key'}"
            ) from error


class _Feed:
    """What DALI calls for each window: images, labels and (epoch, number) pairs. given: the windows that it has called
    for, and whose outputs it has not given yet, as DALI works ahead."""

    def __init__(self, windows: Generator[Window, None, None], ids: Numbers, size: int, depth: int) -> None:
        self._windows = Ahead(windows, depth) if depth else windows
        self._ids, self._size, self._next = ids, size, 0
        self.given: deque[Window] = deque()

    def __call__(self) -> tuple[Any, I64, I64]:
        """StopIteration keeps DALI, which works ahead, from asking for windows that there are not."""
        window = next(self._windows)
        ids = self._ids(self._next)
        missing = self._size - len(window.labels)
        self.given.append(window)
        self._next += 1
        if not missing:
            return window.images, window.labels, ids
        return _filled_up(window.images, missing), _filled_up(window.labels, missing), ids

    def close(self) -> None:
        self._windows.close()


def _filled_up(samples: Any, missing: int) -> Any:
    """The last of the samples so many times more."""
    if isinstance(samples, list):
        return samples + samples[-1:] * missing
    return np.concatenate([samples, np.repeat(samples[-1:], missing, axis=0)])


def _padded_ids(epoch: int, numbers: I64, size: int) -> I64:
    """(epoch, number) of each output, number -1 past the last: i64[size 2]."""
    padded = np.full(size, -1)
    padded[: len(numbers)] = numbers
    return np.stack([np.full(size, epoch), padded], axis=1)


def _run(pipeline: Any, num_batches: int) -> Generator[tuple[list[torch.Tensor], bool], None, None]:
    """Each batch's outputs as tensors, and whether DALI will write to their memory again: it does unless its executor
    is the dynamic one (2.x, when it works ahead), which leaves a buffer alone as long as somebody has it. Those of a
    GPU are copies, made in the order of torch's current stream."""
    pipeline.build()
    shared = not getattr(pipeline, "exec_dynamic", False)
    try:
        for _ in range(num_batches):
            outputs = _next_outputs(pipeline)
            tensors = [_to_torch(output) for output in outputs]
            yield tensors, shared and tensors[0].device.type == "cpu"
    finally:
        _end(pipeline)
        _return_freed_memory()


def _to_torch(output: Any) -> torch.Tensor:
    tensor = output.as_tensor()
    if type(tensor).__name__ != "TensorGPU":
        return torch.from_numpy(np.asarray(tensor))
    plugin = import_module("nvidia.dali.plugin.pytorch")
    copy = torch.empty(tensor.shape(), dtype=plugin.to_torch_type[tensor.dtype], device=f"cuda:{tensor.device_id()}")
    plugin.feed_ndarray(tensor, copy, cuda_stream=torch.cuda.current_stream(copy.device))
    return copy


class _Ended:
    """What a pipeline is made into after its end."""


def _end(pipeline: Any) -> None:
    """DALI 1.34 keeps a pipeline with a Python operator alive for ever unless it is shut down, and in reference cycles
    after that. Collected some day, its __del__ would swallow a Ctrl-C that came meanwhile, so it loses that here."""
    try:
        pipeline._shutdown()
    except KeyboardInterrupt:
        pipeline._shutdown()
        raise
    finally:
        pipeline.__class__ = _Ended


def _return_freed_memory() -> None:
    """The threads of each epoch's pipeline leave freed memory behind in glibc's arenas: streaming 400 small images grew
    by 2.5 MB an epoch without this, and stays flat with it."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # glibc alone has it
    if trim is not None:
        trim(0)


def _next_outputs(pipeline: Any) -> Any:
    """With prefetch=0 the stage runs on the caller's thread, where Ctrl-C may reach it: DALI makes an error of that."""
    try:
        return pipeline.run()
    except RuntimeError as error:
        if "KeyboardInterrupt" in str(error):
            raise KeyboardInterrupt from None
        raise


def _gist(error: Exception) -> str:
    """The line of DALI's report that says what went wrong, without its frame and its stack."""
    frame = ("Critical error", "Error when", "Error in", "The above", "Traceback")
    text = str(error)
    lines = [line.strip() for line in text.splitlines() if line.strip() and not line.strip().startswith(frame)]
    said = [line.strip() for line in text.rpartition("encountered:")[2].splitlines() if line.strip()]
    errors = [line for line in lines if "Error: " in line]
    reasons = errors or said[: "encountered:" in text] or [line for line in lines if "rror" in line] or lines
    return reasons[0][:400].rstrip(".") if reasons else "no reason given"


def _split(parts: list[Part], size: int) -> tuple[list[Part], list[Part]]:
    """The first `size` outputs of consecutive parts, and what is left of the parts."""
    taken: list[Part] = []
    while parts and size:
        part, *parts = parts
        taken.append(part.rows(0, size))
        if len(part.weights) > size:
            parts = [part.rows(size), *parts]
        size -= len(taken[-1].weights)
    return taken, parts


def _repeated(parts: list[Part], size: int) -> list[Part]:
    """So many outputs of these, again and again, with weight 0."""
    repeated: list[Part] = []
    while size:
        taken, _ = _split(parts, size)
        repeated += [part._replace(weights=torch.zeros_like(part.weights)) for part in taken]
        size -= sum(len(part.weights) for part in taken)
    return repeated


def _joined(parts: list[Part]) -> Part:
    return parts[0] if len(parts) == 1 else Part(*(torch.cat(fields) for fields in zip(*parts, strict=True)))
