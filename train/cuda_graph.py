"""A pass forward and back as a CUDA graph: recorded once, then replayed by one launch.

Recording does not run anything, so batch-norm statistics move only with the steps that count. A replay reads its batch
from, and leaves its gradients at, the addresses that were recorded.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor

Pass = Callable[[Tensor, Tensor], Tensor]
Record = Callable[[Callable[[], Tensor]], tuple[Tensor, Callable[[], None]]]

_WARM_UP = 3  # steps in which libraries get their workspaces and kernels are compiled, as torch's notes ask for


def record_cuda_graph(function: Callable[[], Tensor]) -> tuple[Tensor, Callable[[], None]]:
    """(where the result will be, replay); the function is not run."""
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, capture_error_mode="thread_local"):  # a loader's thread may allocate meanwhile
        result = function()
    return result, graph.replay


class GraphedPass:
    """`function` (images, targets) -> figures, which leaves gradients in `parameters`, as one launch.

    The first steps run as they are. So does a batch of another shape, and all of them after a recording that failed,
    of which a UserWarning tells.
    """

    def __init__(
        self,
        function: Pass,
        parameters: Sequence[Tensor],
        device: torch.device,
        record: Record = record_cuda_graph,
    ) -> None:
        self._function, self._parameters, self._record = function, parameters, record
        self._side_stream = torch.cuda.Stream(device) if device.type == "cuda" else None
        self._warm_up_steps = 0
        self._recording: _Recording | None = None
        self._failed = False

    def __call__(self, images: Tensor, targets: Tensor) -> Tensor:
        if self._warm_up_steps < _WARM_UP:
            self._warm_up_steps += 1
            with _on(self._side_stream):
                return self._function(images, targets)
        if self._recording is None and not self._failed:
            self._recording = self._try_recording(images, targets)
        if self._recording is None or not self._recording.fits(images, targets):
            return self._function(images, targets)
        return self._recording.replay(images, targets)

    def _try_recording(self, images: Tensor, targets: Tensor) -> _Recording | None:
        try:
            return _Recording(self._function, self._parameters, images, targets, self._record)
        except RuntimeError as error:
            self._failed = True
            warnings.warn(
                f"the step cannot be recorded as a CUDA graph ({error}): it goes on kernel by kernel, more slowly",
                UserWarning,
                stacklevel=2,
            )
            return None


class _Recording:
    def __init__(
        self, function: Pass, parameters: Sequence[Tensor], images: Tensor, targets: Tensor, record: Record
    ) -> None:
        self._images, self._targets = torch.empty_like(images), torch.empty_like(targets)
        for parameter in parameters:
            parameter.grad = None  # so that a replay writes gradients, and does not add to them
        self._figures, self._replay = record(lambda: function(self._images, self._targets))
        self._gradients = [(parameter, parameter.grad) for parameter in parameters]

    def fits(self, images: Tensor, targets: Tensor) -> bool:
        return images.shape == self._images.shape and targets.shape == self._targets.shape

    def replay(self, images: Tensor, targets: Tensor) -> Tensor:
        self._images.copy_(images)
        self._targets.copy_(targets)
        self._replay()
        for parameter, gradient in self._gradients:
            parameter.grad = gradient  # a step of another shape has put its own there
        return self._figures.clone()  # the next replay overwrites them, and they are looked at later


@contextmanager
def _on(stream: torch.cuda.Stream | None) -> Iterator[None]:
    """Where a pass must run before it is recorded: gradients remember the stream that they were first made on."""
    if stream is None:
        yield
        return
    current = torch.cuda.current_stream(stream.device)
    stream.wait_stream(current)
    with torch.cuda.stream(stream):
        yield
    current.wait_stream(stream)
