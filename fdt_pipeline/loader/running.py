"""Running a DALI pipeline: inputs are fed by name, and each comes back with its outputs as tensors."""

from __future__ import annotations

import ctypes
from collections import deque
from collections.abc import Callable, Generator, Iterator, Mapping
from dataclasses import dataclass
from importlib import import_module
from typing import Any, Generic, NamedTuple, TypeVar

import numpy as np
import torch

T = TypeVar("T")


@dataclass(frozen=True)
class DaliOptions:
    """How DALI runs. ahead: iterations that it works ahead of the one in use, 0 for none; device_id: of its GPU, None
    for no GPU."""

    num_threads: int
    ahead: int
    device_id: int | None = None

    def arguments(self, batch_size: int) -> dict[str, Any]:
        """Arguments of a `@pipeline_def` function, for iterations of at most `batch_size` samples.

        On a GPU nothing but the thread that asks for outputs calls CUDA, so a trainer may capture a CUDA graph between
        two batches: work there is asynchronous without a thread of DALI's.
        """
        return {
            "batch_size": batch_size,
            "num_threads": self.num_threads,
            "prefetch_queue_depth": 1 + self.ahead,
            "exec_async": self.ahead > 0 and self.device_id is None,
            "exec_pipelined": self.ahead > 0,
            "device_id": self.device_id,
        }


class Copy(NamedTuple):
    """The stream in which tensors were made on a GPU, and what it records when they are."""

    stream: torch.cuda.Stream
    done: torch.cuda.Event

    @classmethod
    def of(cls, tensor: torch.Tensor) -> Copy | None:
        """What torch's current stream is to be waited for, if this is on a GPU."""
        if not tensor.is_cuda:
            return None
        stream = torch.cuda.current_stream(tensor.device)
        return cls(stream, stream.record_event())

    def hand_over(self, *tensors: torch.Tensor) -> None:
        """A consumer that has changed its stream since then waits for it, and keeps the memory until it is done."""
        current = torch.cuda.current_stream(tensors[0].device)
        if current != self.stream:
            current.wait_event(self.done)
            for tensor in tensors:
                tensor.record_stream(current)


class Outputs:
    """Outputs of one DALI iteration, of shape [samples ...] each.

    Those on the CPU are in DALI's own buffers, until the next iteration is asked for; `lent` says that DALI then writes
    to these again. Those on a GPU were copied in the order of torch's current stream, once for all samples; `copy` is
    to hand every batch of them over.
    """

    def __init__(self, tensors: list[torch.Tensor], lent: bool) -> None:
        self.tensors, self.lent = tensors, lent
        self.copy = Copy.of(tensors[0])

    def sample(self, number: int) -> list[torch.Tensor]:
        """One sample of each output, to keep. What is done to it in place does not count as done to the others."""
        views = [tensor[number].data for tensor in self.tensors]
        # NumPy's copy, as torch's takes all cores, whose threads then spin while DALI's have work to do.
        return [torch.from_numpy(view.numpy().copy("K")) for view in views] if self.lent else views

    def wait_until_copied(self) -> None:
        """Before DALI may write to the buffers of its outputs again, or free them."""
        if self.copy is not None:
            self.copy.done.synchronize()


class DaliError(RuntimeError):
    """DALI could not make the outputs of one of `inputs`, and does not say which."""

    def __init__(self, error: Exception, inputs: list[Any]) -> None:
        super().__init__(gist(error))
        self.inputs = inputs


def run_pipeline(
    pipeline: Any, inputs: Iterator[T], fields: Callable[[T], Mapping[str, Any]]
) -> Generator[tuple[T, Outputs], None, None]:
    """Each input with its outputs; the pipeline is closed at the end.

    fields: input -> its arrays by the names of the pipeline's external sources. An error of `inputs` is raised once the
    outputs of all inputs before it are out.
    """
    outputs: Outputs | None = None
    try:
        run = _Run(pipeline, inputs, fields)
        run.fill()
        while run.in_flight:
            outputs = run.take()
            yield run.in_flight.popleft(), outputs
            run.release(outputs)
            outputs = None
            run.fill()
        if run.error is not None:
            raise run.error
    finally:
        try:
            if outputs is not None:
                outputs.wait_until_copied()
        finally:
            _end(pipeline)
            _return_freed_memory()


class _Run(Generic[T]):
    """A pipeline at work. in_flight: inputs that DALI has been fed and whose outputs have not been taken."""

    def __init__(self, pipeline: Any, inputs: Iterator[T], fields: Callable[[T], Mapping[str, Any]]) -> None:
        self.pipeline, self.inputs, self.fields = pipeline, inputs, fields
        self.in_flight: deque[T] = deque()
        self.error: Exception | None = None
        self.has_begun = self.has_ended = False
        pipeline.build()
        self.depth: int = pipeline.prefetch_queue_depth
        # The dynamic executor (2.x, when it works ahead) leaves a buffer alone while a tensor holds it. The others
        # write to their buffers again.
        self.lends = not getattr(pipeline, "exec_dynamic", False)

    def fill(self) -> None:
        """Feed DALI as far as it may work ahead."""
        while not self.has_ended and len(self.in_flight) < self.depth:
            try:
                item = next(self.inputs)
            except StopIteration:
                self.has_ended = True
            except Exception as error:
                self.error, self.has_ended = error, True
            else:
                self.in_flight.append(item)
                self._call(self._feed, item)
        # The first call makes DALI run as often as it may work ahead, so all those inputs must be there. Where there
        # are fewer, the last one stands in for the others, and nobody takes those outputs.
        if self.in_flight and not self.has_begun:
            for _ in range(self.depth - len(self.in_flight)):
                self._call(self._feed, self.in_flight[-1])
            self._call(self.pipeline.schedule_run)
            self.has_begun = True

    def _feed(self, item: T) -> None:
        for name, arrays in self.fields(item).items():
            self.pipeline.feed_input(name, arrays)
        if self.has_begun:
            self.pipeline.schedule_run()

    def take(self) -> Outputs:
        """The outputs of the first input in flight."""
        found = self._call(lambda: [output.as_tensor() for output in self.pipeline.share_outputs()])
        with torch.inference_mode(False):  # of the batch that is asked for, and not of those made with it
            tensors = [self._tensor(each) for each in found]
            return Outputs(tensors, self.lends and not tensors[0].is_cuda)

    def release(self, outputs: Outputs) -> None:
        """Give DALI its buffers back."""
        outputs.wait_until_copied()
        self.pipeline.release_outputs()

    @staticmethod
    def _tensor(found: Any) -> torch.Tensor:
        """DALI's tensor as torch's. One on a GPU is copied in the order of torch's current stream."""
        if type(found).__name__ != "TensorGPU":
            return torch.from_numpy(np.asarray(found))
        plugin = import_module("nvidia.dali.plugin.pytorch")
        copy = torch.empty(found.shape(), dtype=plugin.to_torch_type[found.dtype], device=f"cuda:{found.device_id()}")
        plugin.feed_ndarray(found, copy, cuda_stream=torch.cuda.current_stream(copy.device))
        return copy

    def _call(self, function: Callable[..., Any], *arguments: Any) -> Any:
        try:
            return function(*arguments)
        except (RuntimeError, ValueError) as error:  # DALI 2 keeps what C++ calls an invalid argument
            raise DaliError(error, list(self.in_flight)) from error


class _Ended:
    """What a pipeline is made into after its end."""


def _end(pipeline: Any) -> None:
    """DALI's pipelines are in reference cycles. If one were collected later, its __del__ would swallow a Ctrl-C that
    came meanwhile, so it is shut down here and loses its __del__."""
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


def gist(error: Exception) -> str:
    """The line of DALI's report that says what went wrong, without its frame and its stack."""
    frame = ("Critical error", "Error when", "Error in", "The above", "Traceback")
    text = str(error)
    lines = [line.strip() for line in text.splitlines() if line.strip() and not line.strip().startswith(frame)]
    said = [line.strip() for line in text.rpartition("encountered:")[2].splitlines() if line.strip()]
    reasons = said[: "encountered:" in text] or [line for line in lines if "rror" in line] or lines
    return reasons[0][:400].rstrip(".") if reasons else "no reason given"
