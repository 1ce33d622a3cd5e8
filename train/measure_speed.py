"""Measure what the trainer's own work costs, each figure a ratio in one run with the bound that it must keep.

    python -m train.measure_speed --out train/results/speed.json

TN's share of a step and of its memory, the wait for the loader, PGD beside foolbox's (extra [test-all]). Contenders
take turns in rounds, and ratios are taken within a round, as a machine's clock may change in between; the median
counts. About 20 minutes on two CPU cores, with nothing else running; a GPU has bounds of its own.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from fdt_pipeline import FDTLoader
from fdt_pipeline.losses import cross_entropy
from fdt_pipeline.shards import write_shards
from fdt_pipeline.sources import ArraySource
from models import build_model
from tools.rounds import measure_rounds, ratios
from train.attack import PGD, PixelBounds, frozen, pgd_path
from train.environment import hardware, need, versions
from train.files import write_json
from train.precision import full_float32
from train.recipes import make_recipe
from train.robustness import EPS_VALUES, evaluate_robustness
from train.setup import make_loader, pick_device
from train.step import TrainStep, make_optimizer, make_scaler

COLUMNS = ("plain", "tn")
BOUNDS = PixelBounds.from_normalization([117.0], 256.0)  # one for all channels, as foolbox has it


@dataclass(frozen=True)
class Plan:
    """What is measured. steps: of a turn. rounds: of the wait and the attacks. attacks: model, images, size, steps."""

    model: str
    batch_sizes: tuple[int, ...]
    steps: int
    time_rounds: int
    rounds: int
    memory_rounds: int
    time_bound: float
    memory_bound: float
    waiting_bound: float
    attacks: tuple[tuple[str, int, int, int], ...]
    size: int = 32


PLANS = {
    "cpu": Plan("resnet18", (100,), 1, 15, 7, 3, 1.10, 1.03, 0.01, (("resnet18", 20, 32, 4), ("small", 100, 28, 10))),
    "cuda": Plan(
        "resnet34", (100, 512), 100, 5, 5, 1, 1.03, 1.01, 0.02, (("resnet34", 100, 32, 10), ("small", 100, 28, 10))
    ),
}


@dataclass(frozen=True)
class Figure:
    """A ratio in each round; bound: of the median, at most, or at least for a peer; None for a mere comparison."""

    name: str
    values: Sequence[float]
    bound: float | None = None
    side: str = "at most"

    @property
    def holds(self) -> bool | None:
        if self.bound is None:
            return None
        found = median(self.values)
        return found <= self.bound if self.side == "at most" else found >= self.bound

    def to_dict(self) -> dict[str, Any]:
        spread = {"median": median(self.values), "min": min(self.values), "max": max(self.values)}
        return {**asdict(self), **spread, "holds": self.holds}

    def to_text(self) -> str:
        spread = f"{median(self.values):.3f} [{min(self.values):.3f}, {max(self.values):.3f}]"
        bound = "" if self.bound is None else f", {self.side} {self.bound:g}: {'holds' if self.holds else 'FAILS'}"
        return f"{self.name}: {spread}{bound}"


Part = tuple[list[Figure], dict[str, Any]]  # figures, and what they were made of


def measure(plan: Plan, device: torch.device) -> Iterator[Part]:
    """A part at a time, so that what was measured is not lost with what comes after it."""
    for batch_size in plan.batch_sizes:
        yield step_time(plan, batch_size, device)
        yield peak_memory(plan, batch_size, device)
    yield waiting_share(plan, device)
    for attack in plan.attacks:
        yield attack_speed(*attack, plan.rounds, device)


def seconds_of(turn: Callable[[], object], device: torch.device) -> float:
    """How long one turn takes, the work that it leaves to a GPU included."""
    _wait_for(device)
    start = time.perf_counter()
    turn()
    _wait_for(device)
    return time.perf_counter() - start


def _wait_for(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def step_time(plan: Plan, batch_size: int, device: torch.device) -> Part:
    """Turns of `steps` steps on random images."""
    batch = random_batch(batch_size, plan.size, device)
    turns = {column: partial(_repeat, make_step(plan.model, column, device), batch, plan.steps) for column in COLUMNS}
    timed = {column: partial(seconds_of, turn, device) for column, turn in turns.items()}
    name = f"TN step : plain step, {plan.model}, batch {batch_size}"
    seconds = measure_rounds(timed, plan.time_rounds)
    return [Figure(name, ratios(seconds["tn"], seconds["plain"]), plan.time_bound)], {f"seconds, {name}": seconds}


def peak_memory(plan: Plan, batch_size: int, device: torch.device) -> Part:
    """Each peak is measured in a process of its own."""
    name = f"peak memory, TN : plain, {plan.model}, batch {batch_size}"
    size = batch_size, plan.size
    contenders = {column: partial(peak_in_a_process, column, plan.model, *size, device.type) for column in COLUMNS}
    peaks = measure_rounds(contenders, plan.memory_rounds)
    return [Figure(name, ratios(peaks["tn"], peaks["plain"]), plan.memory_bound)], {f"bytes, {name}": peaks}


def random_batch(batch_size: int, size: int, device: torch.device) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    images = torch.rand(batch_size, 3, size, size, generator=generator).to(memory_format=torch.channels_last)
    targets = torch.softmax(torch.randn(batch_size, 10, generator=generator), dim=1)
    return images.to(device), targets.to(device)


def make_step(model: str, column: str, device: torch.device) -> TrainStep:
    """As the trainer makes it, with a learning rate so small that random targets do no harm."""
    torch.manual_seed(0)
    network = build_model(model, 10, tensor_norm="straight-through" if column == "tn" else None)
    network = network.to(device).to(memory_format=torch.channels_last).train()
    optimizer = make_optimizer(network, 1e-6, 0.9, 5e-4, device)
    return TrainStep(network, cross_entropy, optimizer, make_scaler(device), device, graph=device.type == "cuda")


def _repeat(step: TrainStep, batch: tuple[Tensor, Tensor], steps: int) -> None:
    for _ in range(steps):
        step(*batch)


def peak_in_a_process(*arguments: str | int) -> int:
    """`peak_of_steps(*arguments)`, with glibc made to give each large block back when it is freed.

    Left alone it keeps some of them: 7 % of a ResNet-18's peak more or less from run to run, in place of 0.05 %.
    """
    command = [sys.executable, "-c", f"from train.measure_speed import *; print(peak_of_steps{arguments})"]
    environment = {**os.environ, "MALLOC_MMAP_THRESHOLD_": str(2**17)}  # its default, which else grows with each free
    root = Path(__file__).parents[1]
    return int(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, cwd=root, env=environment).stdout)


def peak_of_steps(column: str, model: str, batch_size: int, size: int, device_type: str) -> int:
    """Bytes that the model, its optimizer and its steps add to this process, or to the GPU, at their peak."""
    device = torch.device(device_type)
    batch = random_batch(batch_size, size, device)
    before = _status("VmRSS")
    _repeat(make_step(model, column, device), batch, 6 if device.type == "cuda" else 2)
    return torch.cuda.max_memory_allocated(device) if device.type == "cuda" else _status("VmHWM") - before


def _status(field: str) -> int:
    """Bytes. Not getrusage's ru_maxrss: that begins at the peak of the process that started this one."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith(f"{field}:"))


def waiting_share(plan: Plan, device: torch.device, step: TrainStep | None = None) -> Part:
    """Seconds in the loader : seconds in all, an epoch of `steps` steps in each of three rounds or more.

    In turns with as many steps on one batch again and again. step: by default the model's with TN.
    """
    batch_size, shares = plan.batch_sizes[0], []
    recipe = make_recipe(f"{plan.model}_tn_fdt", batch_size=batch_size)
    step = step or make_step(plan.model, "tn", device)
    num_images = batch_size * max(plan.steps, 3)
    images = np.random.default_rng(0).integers(0, 256, (num_images, plan.size, plan.size, 3), np.uint8)

    def epoch(loader: FDTLoader) -> None:
        waited, start = 0.0, time.perf_counter()
        asked = start
        for batch in loader:
            waited += time.perf_counter() - asked
            step(*batch)
            asked = time.perf_counter()
        _wait_for(device)
        shares.append(waited / (time.perf_counter() - start))

    with tempfile.TemporaryDirectory() as folder:
        write_shards(ArraySource(images, np.arange(num_images) % 10), Path(folder) / "shards")
        with make_loader(recipe, Path(folder) / "shards", device, train=True) as loader:
            turns = {
                "one batch": partial(_repeat, step, next(iter(loader)), len(loader)),
                "loader": partial(epoch, loader),
            }
            timed = {name: partial(seconds_of, turn, device) for name, turn in turns.items()}
            seconds = measure_rounds(timed, max(plan.rounds, 3))
    name = f"waiting for the loader : all, {recipe.name}, batch {batch_size}"
    return [Figure(name, shares[1:], plan.waiting_bound)], {f"seconds an epoch, {recipe.name}": seconds}


def attack_speed(name: str, num_images: int, size: int, steps: int, num_rounds: int, device: torch.device) -> Part:
    """Ratios foolbox : ours. "All columns" are the Eq-7 mean, the last iterate and the worst, at each eps in the paper.

    For all columns foolbox needs one more forward pass a point of the path; ours reads its answers off its passes.
    foolbox works out the gradients of the parameters too, unless its user freezes them.
    """
    model, x, labels = model_and_images(name, num_images, size, device)
    attack = PGD(0.01, steps)
    peer = partial(foolbox_path, model, x, labels, attack.eps, steps)
    turns: dict[str, Callable[[], object]] = {
        "ours": partial(pgd_path, model, x, labels, attack, BOUNDS),
        "foolbox": peer,
        "foolbox, parameters frozen": partial(peer, freeze=True),
        "ours, all columns": partial(evaluate_robustness, model, x, labels, BOUNDS, steps=steps, together=False),
        "foolbox, all columns, parameters frozen": partial(foolbox_columns, model, x, labels, steps),
    }
    seconds = measure_rounds({key: partial(seconds_of, turn, device) for key, turn in turns.items()}, num_rounds)
    subject = f"{name}, {num_images} images, {steps} steps"
    figures = [
        Figure(f"{above} : {below}, {subject}", ratios(seconds[above], seconds[below]), bound, "at least")
        for above, below, bound in (
            ("foolbox", "ours", 1.0),
            ("foolbox, parameters frozen", "ours", None),
            ("foolbox, all columns, parameters frozen", "ours, all columns", 1.3),
        )
    ]
    return figures, {f"seconds, PGD, {name}": seconds}


def model_and_images(name: str, num_images: int, size: int, device: torch.device) -> tuple[nn.Module, Tensor, Tensor]:
    """A plain network in eval mode, untrained but for its batch-norm statistics, images, and its answers to them.

    The statistics give logits of a usual size: gradients that underflow would be slow.
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
        need("PGD is measured beside", "test-all", "foolbox")
        import foolbox
    return foolbox


def foolbox_path(model: nn.Module, x: Tensor, labels: Tensor, eps: float, steps: int, freeze: bool = False) -> Tensor:
    """x^T, by Eq. 6; in full float32, as ours."""
    foolbox = import_foolbox()
    peer = foolbox.PyTorchModel(model, bounds=(BOUNDS.low.item(), BOUNDS.high.item()), device=x.device)
    attack = foolbox.attacks.LinfPGD(steps=steps, rel_stepsize=0.01 / 0.3, random_start=False)
    with full_float32(x.device.type), frozen(model) if freeze else nullcontext():
        return attack(peer, x, labels, epsilons=eps)[1]


def foolbox_columns(model: nn.Module, x: Tensor, labels: Tensor, steps: int) -> list[Tensor]:
    """bool[T+1 n] for each eps: is the answer right at x^t, a point that foolbox asks the frozen model about."""
    rows = []
    for eps in EPS_VALUES:
        points: list[Tensor] = []
        handle = model.register_forward_pre_hook(lambda _, inputs, kept=points: kept.append(inputs[0].detach()))
        last = foolbox_path(model, x, labels, eps, steps, freeze=True)
        handle.remove()
        with torch.no_grad(), full_float32(x.device.type):
            rows.append(torch.stack([model(point).argmax(1) == labels for point in [*points[:steps], last]]))
    return rows


def main(argv: Sequence[str] | None = None, plan: Plan | None = None) -> int:
    raw = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(prog="python -m train.measure_speed", description=__doc__, formatter_class=raw)
    parser.add_argument("--out", type=Path, required=True, metavar="JSON", help="where the figures are written")
    parser.add_argument("--device", choices=("cpu", "cuda"), help="default: cuda where there is a GPU")
    arguments = parser.parse_args(argv)
    device = pick_device(arguments.device)
    import_foolbox()
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    report: dict[str, Any] = {"figures": [], "raw": {}, "threads": torch.get_num_threads()}
    report |= {"hardware": hardware(device), "versions": versions()}
    for figures, raw_figures in measure(plan or PLANS[device.type], device):
        for figure in figures:
            report["figures"].append(figure.to_dict())
            print(figure.to_text(), flush=True)
        report["raw"] |= raw_figures
        write_json(arguments.out, report)
    return 0


if __name__ == "__main__":
    sys.exit(main())
