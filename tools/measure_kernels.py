"""Measure the operators' kernels alone, without DALI; written as JSON.

    python -m tools.measure_kernels tools/results/kernels.json

On the CPU plans, shifts, sums and outputs are held against the machine's own bound: the products of the same images,
summed in the first-level cache, and nothing else (yardstick_kernel.cc). All images are in the caches. Contenders run in
interleaved rounds. Ratios are taken within a round, as a machine's clock may change from one to the next.
`python -m tools gpu` measures the GPU's kernels, `python -m tools bench` whole loaders.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from fdt_pipeline.definition.mixing import FDT
from fdt_pipeline.definition.superposition import Augment
from fdt_pipeline.machine import available_cpus
from tools.native_probe import Draw, Probe, ProbeOutput, build_probe, load_levels
from tools.rounds import bounded, measure_rounds, ratios, rounded, spread, table
from train.environment import hardware, versions
from train.files import write_json

Contender = Callable[[int], float]  # how often to repeat its outputs -> seconds
SHAPE, PAD, CLASSES = (32, 32, 3), 4, (10, 100)
IMAGES, OUTPUTS = 500, 64  # 1.5 MB of images, 0.8 MB of float32 outputs: they stay in the second-level cache
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


def measure_cpu(probes: Mapping[str, Probe], seconds: float, rounds: int) -> tuple[dict[str, Any], list[Any]]:
    """(rates, ratios) by level of the instruction set, the machine's own first, by classes and by threads."""
    figures: dict[str, Any] = {}
    rows = []
    for level in reversed(list(probes)):
        probe, own = probes[level], level == list(probes)[-1]
        for num_classes in CLASSES:
            for num_threads in sorted({1, available_cpus()} if own else {1}):
                label = f"C = {num_classes}, {num_threads} thread{'s' * (num_threads > 1)}" + (f", {level}" * (not own))
                found = rates(cpu_contenders(probe, num_classes, num_threads), OUTPUTS, seconds, rounds)
                figures |= {f"{label}, {name}": values for name, values in found.items()}
                bounds = (AT_LEAST, STRETCH) if own else (None, None)
                full, half = (ratios(found[name], found["multiply-adds"]) for name in ("float32", "float16"))
                rows += [
                    bounded("ratio", f"superposition : multiply-adds, {label}", full, *bounds),
                    bounded("ratio", f"superposition to float16 : multiply-adds, {label}", half),
                ]
    return figures, rows


def main(argv: Sequence[str] | None = None) -> None:
    arguments = _parser().parse_args(argv)
    with tempfile.TemporaryDirectory() as folder:
        probes = load_levels(build_probe(), Path(folder))
        figures, rows = measure_cpu(probes, arguments.seconds, arguments.rounds)
    results = {
        "ratios": rows,
        "outputs a second": {name: spread(values) for name, values in figures.items()},
        "options": {"rounds": arguments.rounds, "seconds": arguments.seconds, "shape": SHAPE, "pad": PAD},
        "hardware": hardware(torch.device("cpu")),
        "versions": versions(),
    }
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    write_json(arguments.out, results)
    print(table(rows))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path, help="JSON file to write")
    parser.add_argument("--rounds", type=int, default=7, help="rounds that count (default: %(default)s)")
    parser.add_argument("--seconds", type=float, default=0.2, help="of a figure (default: %(default)s)")
    return parser


if __name__ == "__main__":
    main()
