"""What the trainer's own work costs: TN in a step, the wait for the loader, PGD beside foolbox's.

Contenders take turns in rounds, and ratios are taken within a round: a machine's clock may change in between.

All columns of PGD are the Eq-7 mean, the last iterate and the worst over the iterates, at each eps of the paper. For
them foolbox needs a forward pass more for each point of the path; ours reads its answers off the passes that it makes.

Memory on a CPU is what the process holds of the machine's, with glibc made to give each large block back when it is
freed. Left alone it keeps some of them: 7 % of a ResNet-18's peak more or less from run to run, in place of 0.05 %.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn
from tqdm import tqdm

from fdt_pipeline.losses import cross_entropy
from fdt_pipeline.shards import write_shards
from fdt_pipeline.sources import ArraySource
from fdt_pipeline.tensor_norm import Gradient
from models import build_model
from train.attack import PGD, PixelBounds, frozen, pgd_path
from train.precision import full_float32
from train.recipes import make_recipe
from train.robustness import EPS_VALUES, evaluate_robustness
from train.setup import make_loader
from train.step import TrainStep, make_optimizer, make_scaler

SIDES: dict[str, Gradient | None] = {"plain": None, "tn": "straight-through"}
BOUNDS = PixelBounds.from_normalization([117.0], 256.0)  # one for all channels, as foolbox has it
EPS = 0.01

PAIRS = (
    ("foolbox", "ours", 1.0),
    ("foolbox, parameters frozen", "ours", None),
    ("foolbox, all columns, parameters frozen", "ours, all columns", 1.3),
)


@dataclass(frozen=True)
class Figure:
    """What was measured in each round, and the bound on its median, None where it is there for comparison alone."""

    name: str
    values: tuple[float, ...]
    bound: float | None = None
    side: Literal["at most", "at least"] = "at most"

    @property
    def median(self) -> float:
        return median(self.values)

    @property
    def holds(self) -> bool | None:
        if self.bound is None:
            return None
        return self.median <= self.bound if self.side == "at most" else self.median >= self.bound

    def to_dict(self) -> dict[str, Any]:
        spread = {"median": self.median, "min": min(self.values), "max": max(self.values)}
        bound = {"bound": self.bound, "side": self.side, "holds": self.holds}
        return {"name": self.name, **spread, **bound, "values": list(self.values)}


def timed_rounds(
    contenders: Mapping[str, Callable[[], object]], num_rounds: int, device: torch.device, label: str
) -> dict[str, list[float]]:
    """Seconds of each contender's turns. Every other round goes backwards; one more, the first, is thrown away."""
    seconds: dict[str, list[float]] = {name: [] for name in contenders}
    for index in tqdm(range(num_rounds + 1), desc=label, unit="round"):
        for name in list(contenders)[:: 1 if index % 2 else -1]:
            seconds[name].append(_seconds(contenders[name], device))
    return {name: turns[1:] for name, turns in seconds.items()}


def ratios(above: list[float], below: list[float]) -> tuple[float, ...]:
    return tuple(a / b for a, b in zip(above, below, strict=True))


def _seconds(turn: Callable[[], object], device: torch.device) -> float:
    _finish(device)
    start = time.perf_counter()
    turn()
    _finish(device)
    return time.perf_counter() - start


def _finish(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


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
    command = [sys.executable, "-m", "train.speed", *arguments]
    root = Path(__file__).parents[1]
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


def waiting_share(
    model: str, batch_size: int, size: int, num_rounds: int, steps: int, device: torch.device, bound: float
) -> Figure:
    """Seconds in the loader : seconds in all, over rounds of `steps` steps of MODEL_tn_fdt; one more is thrown away."""
    recipe = make_recipe(f"{model}_tn_fdt", batch_size=batch_size)
    step = make_step(model, recipe.tensor_norm, device)
    shares = []
    with tempfile.TemporaryDirectory() as folder:
        shards = _random_shards(Path(folder) / "shards", size, batch_size * steps * (num_rounds + 1))
        with make_loader(recipe, shards, device, train=True) as loader:
            batches = iter(loader)
            for _ in range(num_rounds + 1):
                start, waited = time.perf_counter(), 0.0
                for _ in range(steps):
                    asked = time.perf_counter()
                    images, targets = next(batches)
                    waited += time.perf_counter() - asked
                    step(images, targets)
                if device.type == "cuda":
                    torch.cuda.synchronize(device)
                shares.append(waited / (time.perf_counter() - start))
    return Figure(f"waiting for the loader : all, {recipe.name}, batch {batch_size}", tuple(shares[1:]), bound)


def _random_shards(folder: Path, size: int, num_images: int) -> Path:
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (num_images, size, size, 3), np.uint8)
    write_shards(ArraySource(images, np.arange(num_images) % 10), folder)
    return folder


def attack_speed(
    model_name: str, num_images: int, size: int, steps: int, num_rounds: int, device: torch.device
) -> tuple[list[Figure], dict[str, list[float]]]:
    """(ratios foolbox : ours, seconds)."""
    model, x, labels = model_and_images(model_name, num_images, size, device)
    batches = [(x, labels)]
    contenders: dict[str, Callable[[], object]] = {
        "ours": partial(pgd_path, model, x, labels, PGD(EPS, steps), BOUNDS),
        "foolbox": partial(_foolbox, model, x, labels, EPS, steps),
        "foolbox, parameters frozen": partial(_frozen, _foolbox, model, x, labels, EPS, steps),
        "ours, all columns": partial(evaluate_robustness, model, batches, BOUNDS, steps=steps, together=False),
        "foolbox, all columns, parameters frozen": partial(_frozen, all_columns, model, x, labels, steps),
    }
    subject = f"{model_name}, {num_images} images, {steps} steps"
    seconds = timed_rounds(contenders, num_rounds, device, f"PGD, {subject}")
    return [
        Figure(f"{above} : {below}, {subject}", ratios(seconds[above], seconds[below]), bound, "at least")
        for above, below, bound in PAIRS
    ], seconds


def model_and_images(name: str, num_images: int, size: int, device: torch.device) -> tuple[nn.Module, Tensor, Tensor]:
    """A plain network in eval mode, untrained but for its batch-norm statistics.

    They give logits of a usual size: gradients that underflow would be slow.
    """
    torch.manual_seed(0)
    model = build_model(name, 10).to(device).to(memory_format=torch.channels_last)
    unit = torch.rand(num_images, 3, size, size, generator=torch.Generator().manual_seed(0))
    x = (BOUNDS.low + unit * (BOUNDS.high - BOUNDS.low)).to(device).to(memory_format=torch.channels_last)
    with torch.no_grad():
        for _ in range(20):
            model.train()(x)
        return model, x, model.eval()(x).argmax(1)


def import_foolbox() -> Any:
    """ImportError, with what to install, before anything is measured."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Please import `gaussian_filter`", DeprecationWarning)
        try:
            import foolbox
        except ImportError as error:
            raise ImportError(f"foolbox is what PGD is measured beside: pip install foolbox ({error})") from error
    return foolbox


def _foolbox(model: nn.Module, x: Tensor, labels: Tensor, eps: float, steps: int) -> Tensor:
    """x^T, by Eq. 6; in full float32, as ours."""
    foolbox = import_foolbox()
    bounds = (BOUNDS.low.item(), BOUNDS.high.item())
    peer = foolbox.PyTorchModel(model, bounds=bounds, device=x.device)
    attack = foolbox.attacks.LinfPGD(steps=steps, rel_stepsize=0.01 / 0.3, random_start=False)
    with full_float32(x.device.type):
        return attack(peer, x, labels, epsilons=eps)[1]


def all_columns(model: nn.Module, x: Tensor, labels: Tensor, steps: int) -> list[Tensor]:
    """bool[T+1 n] for each eps: is the answer right at x^t."""
    rows = []
    for eps in EPS_VALUES:
        with _inputs(model) as points:
            last = _foolbox(model, x, labels, eps, steps)
        with torch.no_grad(), full_float32(x.device.type):
            rows.append(torch.stack([model(point).argmax(1) == labels for point in [*points[:steps], last]]))
    return rows


@contextmanager
def _inputs(model: nn.Module) -> Iterator[list[Tensor]]:
    """The points that the model is asked about inside."""
    points: list[Tensor] = []
    handle = model.register_forward_pre_hook(lambda module, inputs: points.append(inputs[0].detach()))
    try:
        yield points
    finally:
        handle.remove()


def _frozen(attack: Callable[..., object], model: nn.Module, *arguments: object) -> object:
    """foolbox works out the gradients of the parameters too, unless its user freezes them."""
    with frozen(model):
        return attack(model, *arguments)


if __name__ == "__main__":
    print(_peak_of_steps(*sys.argv[1:]))
