"""Measure what the trainer's own work costs, each figure a ratio in one run with the bound that it must keep.

    python -m train.measure_speed --out train/results/speed.json

TN's share of a step and of its memory, the wait for the loader, PGD beside foolbox's (extra [test-all]). Contenders
take turns in rounds, ratios are taken within a round, and the median counts. About 20 minutes on two CPU cores, with
nothing else running; with a GPU its own bounds are measured.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from train.environment import hardware, versions
from train.files import write_json
from train.robustness_table import markdown_table
from train.setup import pick_device
from train.speed import Figure, attack_speed, import_foolbox, peak_memory, step_time, waiting_share


@dataclass(frozen=True)
class Settings:
    """What is measured. steps: of a turn. rounds: of the wait and the attacks. attacks: (model, images, size, steps)
    each."""

    model: str
    batch_sizes: tuple[int, ...]
    size: int
    steps: int
    time_rounds: int
    rounds: int
    memory_rounds: int
    time_bound: float
    memory_bound: float
    waiting_bound: float
    attacks: tuple[tuple[str, int, int, int], ...]


ON_CPU = Settings(
    model="resnet18",
    batch_sizes=(100,),
    size=32,
    steps=1,
    time_rounds=15,
    rounds=7,
    memory_rounds=3,
    time_bound=1.10,
    memory_bound=1.03,
    waiting_bound=0.01,
    attacks=(("resnet18", 20, 32, 4), ("small", 100, 28, 10)),
)
ON_GPU = Settings(
    model="resnet34",
    batch_sizes=(100, 512),
    size=32,
    steps=100,
    time_rounds=5,
    rounds=5,
    memory_rounds=1,
    time_bound=1.03,
    memory_bound=1.01,
    waiting_bound=0.02,
    attacks=(("resnet34", 100, 32, 10), ("small", 100, 28, 10)),
)


Part = tuple[list[Figure], dict[str, Any]]  # figures, and what they were made of


def measure(settings: Settings, device: torch.device) -> Iterator[Part]:
    """A part at a time, so that what was measured is not lost with what comes after it."""
    for batch_size in settings.batch_sizes:
        subject = (settings.model, batch_size, settings.size)
        time, seconds = step_time(*subject, settings.time_rounds, settings.steps, device, settings.time_bound)
        yield [time], {f"seconds, {time.name}": seconds}
        memory, peaks = peak_memory(*subject, settings.memory_rounds, device, settings.memory_bound)
        yield [memory], {f"bytes, {memory.name}": peaks}
    subject = (settings.model, settings.batch_sizes[0], settings.size)
    yield [waiting_share(*subject, settings.rounds, max(settings.steps, 3), device, settings.waiting_bound)], {}
    for attack in settings.attacks:
        found, seconds = attack_speed(*attack, settings.rounds, device)
        yield found, {f"seconds, PGD, {attack[0]}": seconds}


def report(figures: Sequence[Figure], raw: dict[str, Any], device: torch.device) -> dict[str, Any]:
    return {
        "figures": [figure.to_dict() for figure in figures],
        "raw": raw,
        "threads": torch.get_num_threads(),
        "hardware": hardware(device),
        "versions": versions(),
    }


def table(figures: Sequence[Figure]) -> str:
    words = {True: "yes", False: "no", None: ""}
    rows = [
        [
            figure.name,
            f"{figure.median:.3f} [{min(figure.values):.3f}, {max(figure.values):.3f}]",
            "" if figure.bound is None else f"{figure.side} {figure.bound:g}",
            words[figure.holds],
        ]
        for figure in figures
    ]
    return "\n".join(markdown_table(["ratio", "median [min, max]", "bound", "holds"], rows))


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m train.measure_speed",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--out", type=Path, required=True, metavar="JSON", help="where the figures are written")
    parser.add_argument("--device", choices=("cpu", "cuda"), help="default: cuda where there is a GPU")
    arguments = parser.parse_args(argv)
    device = pick_device(arguments.device)
    import_foolbox()
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    figures: list[Figure] = []
    raw: dict[str, Any] = {}
    for more_figures, more_raw in measure(ON_GPU if device.type == "cuda" else ON_CPU, device):
        figures += more_figures
        raw |= more_raw
        write_json(arguments.out, report(figures, raw, device))
    print(table(figures))
    return 0


if __name__ == "__main__":
    sys.exit(main())
