"""What tensor normalization adds to a training step: time, and the peak of the memory.

On a CPU the memory is what the process holds of the machine's, with glibc told to give each large block back as it is
freed. Left alone it keeps some of them, and from run to run that is 7 % of a ResNet-18's peak more or less; told so,
0.05 %.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn

from fdt_pipeline.losses import cross_entropy
from models import Gradient, build_model
from train.speed.rounds import Figure, ratios, timed_rounds
from train.step import TrainStep, make_optimizer, make_scaler

SIDES: dict[str, Gradient | None] = {"plain": None, "tn": "straight-through"}


def step_time(
    model: str, batch_size: int, size: int, num_rounds: int, steps: int, device: torch.device, bound: float
) -> tuple[Figure, dict[str, list[float]]]:
    """(TN step : plain step, seconds of each turn of `steps` steps) on random images of size x size."""
    batch = random_batch(batch_size, size, device)
    turns = {name: partial(_repeat, make_step(model, side, device), batch, steps) for name, side in SIDES.items()}
    name = f"TN step : plain step, {model}, batch {batch_size}"
    seconds = timed_rounds(turns, num_rounds, device, name)
    return Figure(name, ratios(seconds["tn"], seconds["plain"]), bound), seconds


def peak_memory(
    model: str, batch_size: int, size: int, num_rounds: int, device: torch.device, bound: float
) -> tuple[Figure, dict[str, list[int]]]:
    """(TN : plain, bytes), each measured in a process of its own."""
    sizes: dict[str, list[int]] = {name: [] for name in SIDES}
    for _ in range(num_rounds):
        for side in SIDES:
            sizes[side].append(peak_in_a_process(side, model, str(batch_size), str(size), device.type))
    values = tuple(tn / plain for tn, plain in zip(sizes["tn"], sizes["plain"], strict=True))
    return Figure(f"peak memory, TN : plain, {model}, batch {batch_size}", values, bound), sizes


def random_batch(batch_size: int, size: int, device: torch.device) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    images = torch.rand(batch_size, 3, size, size, generator=generator).to(memory_format=torch.channels_last)
    targets = torch.softmax(torch.randn(batch_size, 10, generator=generator), dim=1)
    return images.to(device), targets.to(device)


def make_step(model: str, tensor_norm: Gradient | None, device: torch.device) -> TrainStep:
    """As the trainer makes it, with a learning rate so small that random targets do no harm."""
    torch.manual_seed(0)
    network: nn.Module = build_model(model, 10, tensor_norm=tensor_norm)
    network = network.to(device).to(memory_format=torch.channels_last).train()
    optimizer = make_optimizer(network, 1e-6, 0.9, 5e-4, device)
    return TrainStep(network, cross_entropy, optimizer, make_scaler(device), device, graph=device.type == "cuda")


def _repeat(step: Callable[[Tensor, Tensor], object], batch: tuple[Tensor, Tensor], steps: int) -> None:
    for _ in range(steps):
        step(*batch)


def peak_in_a_process(*arguments: str) -> int:
    command = [sys.executable, "-m", "train.speed.tensor_norm", *arguments]
    root = Path(__file__).parents[2]
    environment = {**os.environ, "MALLOC_MMAP_THRESHOLD_": str(2**17)}  # its default, which else grows with each free
    return int(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, cwd=root, env=environment).stdout)


def _peak_of_steps(side: str, model: str, batch_size: str, size: str, device_type: str) -> int:
    """Bytes that the model, its optimizer and its steps add to the process, or to the GPU, at their peak."""
    device = torch.device(device_type)
    batch = random_batch(int(batch_size), int(size), device)
    before = _status("VmRSS")
    _repeat(make_step(model, SIDES[side], device), batch, 6 if device.type == "cuda" else 2)
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return _status("VmHWM") - before


def _status(field: str) -> int:
    """Bytes. Not getrusage's ru_maxrss: that begins at the peak of the process that started this one."""
    lines = Path("/proc/self/status").read_text().splitlines()
    kibibytes = next(line.split()[1] for line in lines if line.startswith(f"{field}:"))
    return 1024 * int(kibibytes)


if __name__ == "__main__":
    print(_peak_of_steps(*sys.argv[1:]))
