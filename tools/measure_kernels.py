"""Measure the operators' kernels alone, without DALI; written as JSON.

    python -m tools.measure_kernels tools/results/kernels.json

On the CPU plans, shifts, sums and outputs are held against the machine's own bound: the products of the same images,
summed in the first-level cache, and nothing else (yardstick_kernel.cc). All images are in the caches. Contenders run in
interleaved rounds. Ratios are taken within a round, as a machine's clock may change from one to the next. On a GPU
(--gpu) the figures are outputs a second of the kernel alone. `python -m tools bench` measures whole loaders.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import tempfile
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch

from fdt_pipeline.definition.superposition import FDT, Augment
from fdt_pipeline.machine import available_cpus
from fdt_pipeline.native.load import nvrtc_path
from tools.bench.results import rounded
from tools.native_probe import Draw, Probe, ProbeOutput, build_probe, load_levels
from tools.rounds import measure_rounds
from train.environment import hardware, versions

Contender = Callable[[int], float]  # how often to repeat its outputs -> seconds
SHAPE, PAD, CLASSES = (32, 32, 3), 4, (10, 100)
IMAGES, OUTPUTS = 500, 64  # 1.5 MB of images, 0.8 MB of float32 outputs: they stay in the second-level cache
GPU_IMAGES, GPU_OUTPUTS = 50_000, 4096
AT_LEAST, STRETCH = 0.6, 0.85  # of the multiply-adds' rate, in float32 at the machine's own level


def output_of(half: bool) -> ProbeOutput:
    return ProbeOutput((122.0, 117.0, 104.0), (256.0,) * 3, half)


def made_up(n: int, num_classes: int) -> tuple[Any, Any]:
    """Images of noise and their labels; what is in the pixels takes no time."""
    return np.random.default_rng(0).integers(0, 256, (n, *SHAPE), np.uint8), np.arange(n) % num_classes


def cpu_contenders(probe: Probe, num_classes: int, num_threads: int) -> dict[str, Contender]:
    """The yardstick, and the superposition to float32 and to float16."""
    pool = probe.pool(*made_up(IMAGES, num_classes), num_classes, PAD)
    draw = Draw(0, 0, np.arange(OUTPUTS), FDT(), Augment(PAD))
    plans = probe.draw_plans(pool, draw)
    return {
        "multiply-adds": lambda repeats: probe.yardstick(pool, plans, num_threads, repeats),
        "float32": lambda repeats: probe.superpose(pool, draw, output_of(False), num_threads, repeats)[2],
        "float16": lambda repeats: probe.superpose(pool, draw, output_of(True), num_threads, repeats)[2],
    }


def rates(contenders: Mapping[str, Contender], outputs: int, seconds: float, rounds: int) -> dict[str, list[float]]:
    """Outputs a second of every contender, one figure a round."""

    def rate(contender: Contender) -> float:
        repeats = max(2, round(10 * seconds / max(contender(10), 1e-6)))
        return rounded(outputs * repeats / contender(repeats))

    return measure_rounds({name: partial(rate, contender) for name, contender in contenders.items()}, rounds)


def ratio(name: str, over: Sequence[float], under: Sequence[float], bounds: tuple[float | None, float | None]) -> Any:
    values = [rounded(a / b) for a, b in zip(over, under, strict=True)]
    return {"ratio": name, **spread(values), "at_least": bounds[0], "stretch": bounds[1]}


def spread(values: Sequence[float]) -> dict[str, Any]:
    return {"median": median(values), "min": min(values), "max": max(values), "values": values}


def measure_cpu(probes: Mapping[str, Probe], seconds: float, rounds: int) -> tuple[dict[str, Any], list[Any]]:
    """(rates, ratios) by level of the instruction set, the machine's own first, by classes and by threads."""
    figures: dict[str, Any] = {}
    ratios = []
    for level in reversed(list(probes)):
        probe, own = probes[level], level == list(probes)[-1]
        for num_classes in CLASSES:
            for num_threads in sorted({1, available_cpus()} if own else {1}):
                label = f"C = {num_classes}, {num_threads} thread{'s' * (num_threads > 1)}" + (f", {level}" * (not own))
                found = rates(cpu_contenders(probe, num_classes, num_threads), OUTPUTS, seconds, rounds)
                figures |= {f"{label}, {name}": values for name, values in found.items()}
                bounds = (AT_LEAST, STRETCH) if own else (None, None)
                under = found["multiply-adds"]
                ratios += [
                    ratio(f"superposition : multiply-adds, {label}", found["float32"], under, bounds),
                    ratio(f"superposition to float16 : multiply-adds, {label}", found["float16"], under, (None, None)),
                ]
    return figures, ratios


def measure_gpu(probe: Probe, seconds: float, rounds: int) -> dict[str, Any]:
    """Outputs a second on GPU 0, by classes and type, from a pool there."""

    def superpose(pool: Any, draw: Draw, half: bool, repeats: int) -> float:
        return probe.gpu_superpose(pool, draw, output_of(half), GPU_OUTPUTS, repeats + 1)[2]

    contenders: dict[str, Contender] = {}
    for num_classes in CLASSES:
        pool = probe.pool(*made_up(GPU_IMAGES, num_classes), num_classes, PAD, device=0)
        draw = Draw(0, 0, np.arange(GPU_OUTPUTS), FDT(), Augment(PAD))
        for half in (False, True):
            contenders[f"GPU, C = {num_classes}, float{16 if half else 32}"] = partial(superpose, pool, draw, half)
    return rates(contenders, GPU_OUTPUTS, seconds, rounds)


def table(ratios: Sequence[dict[str, Any]]) -> str:
    """Median and interval of each ratio, and whether the median is within the bounds."""
    rows = ["| ratio | median [min, max] | at least | stretch | holds |", "|---|---:|---:|---:|---|"]
    for r in ratios:
        values, bounds = r["values"], [r["at_least"], r["stretch"]]
        holds = "" if None in bounds else ("no", "yes", "stretch")[sum(median(values) >= bound for bound in bounds)]
        cells = " | ".join("" if bound is None else f"{bound:g}" for bound in bounds)
        interval = f"{median(values):.3g} [{min(values):.3g}, {max(values):.3g}]"
        rows.append(f"| {r['ratio']} | {interval} | {cells} | {holds} |")
    return "\n".join(rows)


def main(argv: Sequence[str] | None = None) -> None:
    arguments = _parser().parse_args(argv)
    library = build_probe()
    with tempfile.TemporaryDirectory() as folder:
        probes = load_levels(library, Path(folder))
        figures, ratios = measure_cpu(probes, arguments.seconds, arguments.rounds)
    device = torch.device("cpu")
    if arguments.gpu:
        device, probe = torch.device("cuda", 0), Probe(ctypes.CDLL(str(library)))
        probe.set_driver("libcuda.so.1", nvrtc_path())
        figures |= measure_gpu(probe, arguments.seconds, arguments.rounds)
    results = {
        "ratios": ratios,
        "outputs a second": {name: spread(values) for name, values in figures.items()},
        "options": {"rounds": arguments.rounds, "seconds": arguments.seconds, "shape": SHAPE, "pad": PAD},
        "hardware": hardware(device),
        "versions": versions(),
    }
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    arguments.out.write_text(json.dumps(results, indent=2) + "\n")
    print(table(ratios))
    for name, values in figures.items():
        if name.startswith("GPU"):
            print(f"{name}: {median(values):,.0f} outputs a second")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path, help="JSON file to write")
    parser.add_argument("--rounds", type=int, default=7, help="rounds that count (default: %(default)s)")
    parser.add_argument("--seconds", type=float, default=0.2, help="of a figure (default: %(default)s)")
    parser.add_argument("--gpu", action="store_true", help="measure the kernel on GPU 0 as well")
    return parser


if __name__ == "__main__":
    main()
