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
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from fdt_pipeline.ahead import Ahead
from fdt_pipeline.engines import Batch, ResidentEngine, StreamingEngine
from fdt_pipeline.pipeline import Decoding, Numbers
from fdt_pipeline.shards import Manifest, ShardError
from fdt_pipeline.shards.files import ShardFiles
from fdt_pipeline.windows import Window, bad_samples, epoch_order, read_windows


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


class ResidentEpochs:
    """`total` outputs an epoch, drawn from a set in memory."""

    def __init__(self, engine: ResidentEngine, running: Running, total: int, seed: int) -> None:
        self.engine, self.running, self.total, self.seed = engine, running, total, seed

    def batches(self, epoch: int, batch_size: int, num_batches: int) -> Generator[Batch, None, None]:
        options = self.running.options(batch_size, self.seed % 2**31)
        pipeline = self.engine.pipeline(_numbers(epoch, batch_size, self.total), options)
        with closing(_run(pipeline, num_batches)) as outputs:
            for number, (output, shared) in enumerate(outputs):
                yield self.engine.finish([part[: self.total - number * batch_size] for part in output], shared)


class StreamingEpochs:
    """The shards in a new order every epoch; shuffle and mixing within a window."""

    def __init__(
        self,
        engine: StreamingEngine,
        running: Running,
        files: ShardFiles,
        manifest: Manifest,
        size: tuple[int, int] | None,
        window: int,
        seed: int,
        shuffle: bool,
    ) -> None:
        self.engine, self.running, self.files, self.manifest = engine, running, files, manifest
        self.decoding = Decoding(manifest.encoding != "raw", manifest.channels, size)
        self.total, self.window, self.seed = manifest.num_samples, window, seed
        self.shuffle = window if shuffle else 0

    def batches(self, epoch: int, batch_size: int, num_batches: int) -> Generator[Batch, None, None]:
        """Windows cut into batches; a batch that spans two windows is put together of both."""
        kept: list[Batch] = []
        with closing(self._windows(epoch)) as windows:
            for _ in range(num_batches):
                while sum(len(part[1]) for part in kept) < batch_size and (window := next(windows, None)) is not None:
                    kept.append(window)
                batch, kept = _split(kept, batch_size)
                yield batch

    def _windows(self, epoch: int) -> Generator[Batch, None, None]:
        self.files.check_unchanged()
        options = self.running.options(self.window, self.seed % 2**31)
        order = epoch_order(self.manifest, self.seed, epoch, self.shuffle)
        read = read_windows(self.files, self.manifest, order, self.window)
        num_windows = -(-self.total // self.window)
        numbers = _numbers(epoch, self.window, self.total)
        with closing(_Feed(read, numbers, self.window, self.running.prefetch)) as feed:
            pipeline = self.engine.pipeline(feed, self.decoding, options)
            with closing(_run(pipeline, num_windows)) as outputs:
                for number in range(num_windows):
                    with self._explained(epoch, number, feed):
                        output, shared = next(outputs)
                    yield self.engine.finish([part[: self.total - number * self.window] for part in output], shared)

    @contextmanager
    def _explained(self, epoch: int, number: int, feed: _Feed) -> Iterator[None]:
        """DALI loses a whole batch to one bad sample, and does not say which: it is looked for."""
        try:
            yield
        except ShardError:
            raise
        except (RuntimeError, ValueError) as error:  # DALI 2 keeps what C++ calls an invalid argument
            url = self.files.folder.url
            advice = f"`python -m tools verify --decode {url}` names shard and key"
            raise RuntimeError(
                f"window {number} of epoch {epoch}: a sample of {url} could not be read or decoded: {_gist(error)}; "
                f"{feed.suspects(self.manifest) or advice}"
            ) from error


class _Feed:
    """What DALI calls for each window: images, labels and (epoch, number) pairs."""

    def __init__(self, windows: Generator[Window, None, None], numbers: Numbers, size: int, depth: int) -> None:
        self._windows = Ahead(windows, depth) if depth else windows
        self._numbers, self._size, self._next = numbers, size, 0
        self._recent: deque[Window] = deque(maxlen=2 * max(1, depth) + 3)

    def __call__(self) -> tuple[Any, npt.NDArray[np.int64], npt.NDArray[np.int64]]:
        """StopIteration keeps DALI, which works ahead, from asking for windows that there are not."""
        window = next(self._windows)
        numbers = self._numbers(self._next)
        missing = self._size - len(window.labels)
        self._recent.append(window)
        self._next += 1
        if not missing:
            return window.images, window.labels, numbers
        return _filled_up(window.images, missing), _filled_up(window.labels, missing), numbers

    def suspects(self, manifest: Manifest) -> str:
        """The samples of the last windows (DALI works ahead) that do not decode, as text; "" if all do."""
        return "; ".join(bad for window in self._recent for bad in bad_samples(window, manifest))

    def close(self) -> None:
        self._windows.close()


def _filled_up(samples: Any, missing: int) -> Any:
    """The last of the samples so many times more."""
    if isinstance(samples, list):
        return samples + samples[-1:] * missing
    return np.concatenate([samples, np.repeat(samples[-1:], missing, axis=0)])


def _numbers(epoch: int, batch_size: int, total: int) -> Numbers:
    """Batch -> its samples' (epoch, number), -1 past the end. StopIteration keeps DALI, which works ahead, from
    reading windows that nobody will ask for."""

    def numbers(batch: int) -> npt.NDArray[np.int64]:
        index = batch * batch_size + np.arange(batch_size)
        if index[0] >= total:
            raise StopIteration
        return np.stack([np.full(batch_size, epoch), np.where(index < total, index, -1)], axis=1)

    return numbers


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


def _split(parts: list[Batch], size: int) -> tuple[Batch, list[Batch]]:
    """The first `size` samples of consecutive parts, and what is left of the parts."""
    images, targets, missing = [], [], size
    while parts and missing:
        (image, target), *parts = parts
        images.append(image[:missing])
        targets.append(target[:missing])
        if len(target) > missing:
            parts = [(image[missing:], target[missing:]), *parts]
        missing -= len(targets[-1])
    if len(images) == 1:
        return (images[0], targets[0]), parts
    return (torch.cat(images), torch.cat(targets)), parts
