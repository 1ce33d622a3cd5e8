"""What makes a training step on a GPU fast: torch.compile for its network, and its pass as a CUDA graph.

Compiled, a step of ResNet-34 with TN, batch 100, took 4.1 ms for 4.9 on an H100. Compiling takes some 10 s, so short
runs do without. Evaluation and attacks call the model itself.

A CUDA graph is recorded once, then replayed by one launch. Recording does not run anything, so batch-norm statistics
move only with the steps that count. A replay reads its batch from, and leaves its gradients at, the addresses that were
recorded.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

Pass = Callable[[Tensor, Tensor], Tensor]
Record = Callable[[Callable[[], Tensor]], tuple[Tensor, Callable[[], None]]]

_WARM_UP = 3  # steps in which libraries get their workspaces and kernels are compiled, as torch's notes ask for
FEWEST_STEPS = 10_000  # that win back what compiling takes

Network = Callable[[Tensor], Tensor]


def network_of_step(model: nn.Module, device: torch.device, num_steps: int, compile_it: bool | None) -> Network:
    """`model`, or `Compiled` where asked for; by default on a GPU, for a run of FEWEST_STEPS or more."""
    pays = device.type == "cuda" and num_steps >= FEWEST_STEPS
    return Compiled(model) if compile_it or (compile_it is None and pays) else model


class Compiled:
    """The model through torch.compile, sharing its weights; where it does not compile, itself, with a UserWarning."""

    def __init__(self, model: nn.Module) -> None:
        self._model = model
        self._network: Network = torch.compile(model)
        self._has_run = False

    def __call__(self, images: Tensor) -> Tensor:
        try:
            logits = self._network(images)
        except Exception as error:  # a compiler's own kinds, which differ from release to release
            if self._has_run:
                raise
            reason = str(error).strip().splitlines()
            warnings.warn(
                f"torch.compile failed here ({type(error).__name__}: {reason[0] if reason else 'no reason given'}): "
                "the network is called as it is, which on a GPU is slower",
                UserWarning,
                stacklevel=2,
            )
            self._network = self._model
            logits = self._model(images)
        self._has_run = True
        return logits


def record_cuda_graph(function: Callable[[], Tensor]) -> tuple[Tensor, Callable[[], None]]:
    """(where the result will be, replay); the function is not run."""
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, capture_error_mode="thread_local"):  # another loader's thread may allocate meanwhile
        result = function()
    return result, graph.replay


class GraphedPass:
    """`function` (images, targets) -> figures, which leaves gradients in `parameters`, as one launch.

    The first steps run as they are, and so does a batch of another shape. Where the recording fails, a UserWarning says
    why, and all steps run as they are.
    """

    def __init__(
        self, function: Pass, parameters: Sequence[Tensor], device: torch.device, record: Record = record_cuda_graph
    ) -> None:
        self._function, self._parameters, self._record = function, parameters, record
        self._side_stream = torch.cuda.Stream(device) if device.type == "cuda" else None
        self._steps = 0
        self._replay: Callable[[], None] | None = None  # with the tensors that it reads and leaves behind
        self._images = self._targets = self._figures = torch.empty(0)
        self._gradients: list[Tensor | None] = []

    def __call__(self, images: Tensor, targets: Tensor) -> Tensor:
        self._steps += 1
        if self._steps <= _WARM_UP:
            with _on(self._side_stream):
                return self._function(images, targets)
        if self._steps == _WARM_UP + 1:
            self._try_recording(images, targets)
        if self._replay is None or (images.shape, targets.shape) != (self._images.shape, self._targets.shape):
            return self._function(images, targets)
        self._images.copy_(images)
        self._targets.copy_(targets)
        self._replay()
        for parameter, gradient in zip(self._parameters, self._gradients, strict=True):
            parameter.grad = gradient  # a step of another shape has put its own there
        return self._figures.clone()  # the next replay overwrites them, and they are looked at later

    def _try_recording(self, images: Tensor, targets: Tensor) -> None:
        self._images, self._targets = torch.empty_like(images), torch.empty_like(targets)
        for parameter in self._parameters:
            parameter.grad = None  # so that a replay writes gradients, and does not add to them
        try:
            self._figures, self._replay = self._record(lambda: self._function(self._images, self._targets))
        except RuntimeError as error:
            warnings.warn(
                f"the step cannot be recorded as a CUDA graph ({error}): it goes on kernel by kernel, more slowly",
                UserWarning,
                stacklevel=2,
            )
        self._gradients = [parameter.grad for parameter in self._parameters]


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
