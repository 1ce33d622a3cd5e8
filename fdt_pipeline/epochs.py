"""One epoch of outputs, from a data set in memory or from the shards.

Each epoch runs a DALI pipeline of its own and closes it at its end, so breaking off leaves nothing behind that a later
epoch could see (25 ms until the first batch with DALI 1.34, 31 with 2.4: README.md).
On a GPU the graph ends at the plans (resident) or at window and plans (streaming), and the same torch code finishes
the batch on the consumer's own CUDA stream, where no hand-over between streams can go wrong.
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from fdt_pipeline.engine import ImagePool, superpose, to_device
from fdt_pipeline.philox import Stream, permutation, random_words
from fdt_pipeline.pipeline import Reading, resident_pipeline, streaming_pipeline
from fdt_pipeline.plans import unpack_plans
from fdt_pipeline.shards import ShardError
from fdt_pipeline.stage import Mixing, ResidentStage, WindowStage
from fdt_pipeline.superposition import Pool

Batch = tuple[torch.Tensor, torch.Tensor]


@dataclass(frozen=True)
class Running:
    """How DALI runs: where batches go, and its own knobs."""

    device: torch.device
    num_threads: int
    prefetch: int

    def options(self, batch_size: int, seed: int) -> dict[str, Any]:
        """Arguments of a `@pipeline_def` function. No GPU is asked for: see above."""
        return {
            "batch_size": batch_size,
            "num_threads": self.num_threads,
            "prefetch_queue_depth": max(1, self.prefetch),
            "exec_async": self.prefetch > 0,
            "exec_pipelined": self.prefetch > 0,
            "device_id": None,
            "seed": seed,
        }


class ResidentEpochs:
    """The whole set as one pool: images u8[n h w c], labels i64[n]."""

    def __init__(
        self, mixing: Mixing, running: Running, images: npt.NDArray[np.uint8], labels: Pool, in_order: bool
    ) -> None:
        self.mixing, self.running, self.labels = mixing, running, labels
        self.images = ImagePool(torch.from_numpy(images).to(running.device), mixing.augment.pad)
        self.stage = ResidentStage(mixing, labels, self.images, in_order)
        if running.device.type == "cuda":
            self.end_at_plans()

    def end_at_plans(self) -> None:
        """Have the graph give plans, and finish the batches outside of it."""
        self.stage.images = None

    def batches(self, epoch: int, batch_size: int, num_batches: int) -> Generator[Batch, None, None]:
        total = len(self.labels)
        options = self.running.options(batch_size, self.mixing.seed % 2**31)
        pipeline = resident_pipeline(
            _numbers(epoch, batch_size, total), self.stage, 3 if self.stage.images is None else 2, **options
        )
        with closing(_run(pipeline, num_batches)) as outputs:
            for number, output in enumerate(outputs):
                yield self._finish([part[: total - number * batch_size] for part in output])

    def _finish(self, output: Sequence[torch.Tensor]) -> Batch:
        if self.stage.images is not None:
            return _from_dali(output[0], self.mixing), output[1].clone()
        numbers, weights, targets = output
        plans = unpack_plans(numbers.numpy(), weights.numpy(), self.labels.labels)
        return superpose(self.images, plans, self.mixing.output), to_device(targets, self.running.device)


class StreamingEpochs:
    """The shards in a new order every epoch; shuffle and mixing within a window."""

    def __init__(
        self, mixing: Mixing, running: Running, reading: Reading, total: int, window: int, shuffle: bool
    ) -> None:
        self.mixing, self.running, self.reading = mixing, running, reading
        self.total, self.window, self.shuffle = total, window, shuffle
        self.ends_at_plans = running.device.type == "cuda"
        self._files = {path: _file_state(path) for path in (*reading.tars, *reading.indexes)}

    def end_at_plans(self) -> None:
        """Have the graph give windows and plans, and finish the batches outside of it."""
        self.ends_at_plans = True

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
        self._check_unchanged()
        options = self.running.options(self.window, self.mixing.seed % 2**31)
        pipeline = streaming_pipeline(
            self._reading(epoch),
            _numbers(epoch, self.window, self.total),
            WindowStage(self.mixing, pass_images=self.ends_at_plans),
            4 if self.ends_at_plans else 2,
            **options,
        )
        num_windows = -(-self.total // self.window)
        with closing(_run(pipeline, num_windows)) as outputs:
            for number in range(num_windows):
                with self._explained(epoch, number):
                    output = next(outputs)
                yield self._finish([part[: self.total - number * self.window] for part in output])

    @contextmanager
    def _explained(self, epoch: int, window: int) -> Iterator[None]:
        """DALI loses a whole batch to one bad sample, and does not say which: name the way to find it."""
        try:
            yield
        except RuntimeError as error:
            folder = Path(self.reading.tars[0]).parent
            raise RuntimeError(
                f"window {window} of epoch {epoch}: a sample of {folder} could not be read or decoded: {_gist(error)}; "
                f"`python -m tools verify {folder}` names shard and key"
            ) from error

    def _check_unchanged(self) -> None:
        """ShardError if a file is gone, or another than the one that was checked when the loader was built."""
        for path, state in self._files.items():
            if _file_state(path) != state:
                raise ShardError(f"{path}: changed or removed since the loader was built: make a new loader")

    def _reading(self, epoch: int) -> Reading:
        if not self.shuffle:
            return self.reading
        order = permutation(self.mixing.seed, Stream.SHARD_ORDER, epoch, len(self.reading.tars))
        seed = int(random_words(self.mixing.seed, Stream.READER, epoch, 0, 0)[0]) >> 1
        tars, indexes = ([paths[i] for i in order] for paths in (self.reading.tars, self.reading.indexes))
        return replace(self.reading, tars=tars, indexes=indexes, shuffle=self.window, seed=seed)

    def _finish(self, output: Sequence[torch.Tensor]) -> Batch:
        if not self.ends_at_plans:
            return _from_dali(output[0], self.mixing), output[1].clone()
        images, numbers, weights, targets = output
        plans = unpack_plans(numbers.numpy(), weights.numpy(), np.zeros(len(images), np.int64))
        pool = ImagePool(to_device(images, self.running.device), self.mixing.augment.pad)
        return superpose(pool, plans, self.mixing.output), to_device(targets, self.running.device)


def shard_paths(folder: Path, names: Sequence[str]) -> tuple[list[str], list[str]]:
    """(tars, DALI indexes) of the shards named in a manifest."""
    return [str(folder / name) for name in names], [str((folder / name).with_suffix(".idx")) for name in names]


def _numbers(epoch: int, batch_size: int, total: int) -> Callable[[int], list[npt.NDArray[np.int64]]]:
    """Batch -> its samples' (epoch, number), -1 past the end. StopIteration keeps DALI, which works ahead, from
    reading windows that nobody will ask for."""

    def numbers(batch: int) -> list[npt.NDArray[np.int64]]:
        index = batch * batch_size + np.arange(batch_size)
        if index[0] >= total:
            raise StopIteration
        return list(np.stack([np.full(batch_size, epoch), np.where(index < total, index, -1)], axis=1))

    return numbers


def _run(pipeline: Any, num_batches: int) -> Generator[list[torch.Tensor], None, None]:
    """Each batch's outputs as tensors over DALI's own buffers, good until the next is asked for."""
    pipeline.build()
    try:
        for _ in range(num_batches):
            yield [torch.from_numpy(np.asarray(output.as_tensor())) for output in _next_outputs(pipeline)]
    finally:
        _end(pipeline)
        _return_freed_memory()


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


def _file_state(path: str) -> tuple[int, int, int] | None:
    """What changes when a file does: inode, size and time of its last change; None if it is gone."""
    try:
        state = os.stat(path)
    except OSError:
        return None
    return state.st_ino, state.st_size, state.st_mtime_ns


def _gist(error: Exception) -> str:
    """The line of DALI's report that says what went wrong, without its frame and its stack."""
    frame = ("Critical error", "Error when", "Error in", "The above", "Traceback")
    lines = [line.strip() for line in str(error).splitlines() if line.strip() and not line.strip().startswith(frame)]
    reasons = [line for line in lines if "Error: " in line] or [line for line in lines if "rror" in line] or lines
    return reasons[0][:400].rstrip(".") if reasons else "no reason given"


def _from_dali(images: torch.Tensor, mixing: Mixing) -> torch.Tensor:
    copy = images.clone()
    return copy.permute(0, 3, 1, 2) if mixing.output.channels_last else copy


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
