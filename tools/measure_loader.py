"""Measure what fdt_pipeline/README.md says of the torch engine, and write it as JSON.

    python -m tools.measure_loader shards/cifar10/train tools/results/loader-cpu.json

Medians of interleaved repeats, after a warm-up. The full benchmark against other loaders is a tool of its own to come.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Sequence
from itertools import islice
from pathlib import Path
from statistics import median
from typing import Any

import torch

from fdt_pipeline import FDT, FDTLoader
from fdt_pipeline.definition.philox import Stream, permutation
from fdt_pipeline.loader.engine import ImagePool
from fdt_pipeline.losses import multi_label_loss
from models import build_model
from train.environment import hardware, versions

REPEATS = 7


def interleaved_medians(contenders: dict[str, Callable[[], float]], repeats: int = REPEATS) -> dict[str, float]:
    """Each contender returns its own figure; one round runs all of them, and the first round is a warm-up."""
    figures: dict[str, list[float]] = {name: [] for name in contenders}
    for round_ in range(repeats + 1):
        for name, contender in contenders.items():
            figure = contender()
            if round_:
                figures[name].append(figure)
    return {name: round(median(values), 4) for name, values in figures.items()}


def timed_ms(work: Callable[[], Any]) -> float:
    start = time.perf_counter()
    work()
    return 1e3 * (time.perf_counter() - start)


def images_per_second(loader: FDTLoader, num_batches: int) -> float:
    """After the first batch, which waits for the pipeline to fill."""
    batches = iter(loader)
    next(batches)
    start = time.perf_counter()
    count = sum(len(targets) for _, targets in islice(batches, num_batches))
    return count / (time.perf_counter() - start)


def loaders(shards: Path, batch_size: int) -> dict[str, FDTLoader]:
    return {
        f"{mode} {name}": FDTLoader(shards, batch_size, mix=fdt, mode=mode, engine="torch")
        for mode in ("resident", "streaming")
        for name, fdt in (("no FDT", None), ("FDT", FDT()))
    }


def trained_per_second(shards: Path, prefetch: int, num_batches: int) -> float:
    """Training steps of the demo's model on the loader's batches, all on the CPU."""
    loader = FDTLoader(shards, 100, prefetch=prefetch, channels_last=True)
    model = build_model("small", loader.num_classes, loader.shape[0]).to(memory_format=torch.channels_last)
    optimizer = torch.optim.SGD(model.parameters(), 0.01)
    start = time.perf_counter()
    for images, targets in islice(loader, num_batches):
        optimizer.zero_grad()
        multi_label_loss(model(images), targets).backward()
        optimizer.step()
    return 100 * num_batches / (time.perf_counter() - start)


def gather_ms(n: int = 50_000, m: int = 1350) -> dict[str, float]:
    """The two ways to fetch m shifted crops of 32x32x3 out of a padded pool of n images."""
    pool = ImagePool(torch.randint(0, 256, (n, 32, 32, 3), dtype=torch.uint8), 4)
    images, dy, dx = torch.randint(n, (m,)), torch.randint(9, (m,)), torch.randint(9, (m,))
    starts = (images * pool.height + dy) * pool.width + dx
    row = pool.width * 3
    windows = pool.padded.as_strided((n, 9, 9, 32, 96), (pool.height * row, row, 3, row, 1))
    return interleaved_medians(
        {
            "index_select": lambda: timed_ms(lambda: pool.crops(starts)),
            "advanced indexing": lambda: timed_ms(lambda: windows[images, dy, dx]),
        }
    )


def measure(shards: Path, batch_size: int, num_batches: int) -> dict[str, Any]:
    made = loaders(shards, batch_size)
    rates = interleaved_medians(
        {name: lambda loader=loader: images_per_second(loader, num_batches) for name, loader in made.items()}  # type: ignore[misc]
    )
    resident = made["resident FDT"]
    return {
        "data": {"classes": resident.num_classes, "samples": resident.num_samples, "shape": list(resident.shape)},
        "batch_size": batch_size,
        "images_per_second": rates,
        "FDT : no FDT": {
            mode: round(rates[f"{mode} FDT"] / rates[f"{mode} no FDT"], 3) for mode in ("resident", "streaming")
        },
        "images_per_second, training on the CPU": interleaved_medians(
            {f"prefetch {n}": lambda n=n: trained_per_second(shards, n, num_batches) for n in (0, 2)}  # type: ignore[misc]
        ),
        "ms": {
            **interleaved_medians({"epoch start to first batch": lambda: timed_ms(lambda: next(iter(resident)))}),
            **interleaved_medians(
                {"order of 50,000": lambda: timed_ms(lambda: permutation(0, Stream.PLAN, 0, 50_000))}
            ),
            **{f"gather by {name}": figure for name, figure in gather_ms().items()},
        },
        "repeats": REPEATS,
        "hardware": hardware(torch.device("cpu")),
        "versions": versions(),
    }


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("shards", type=Path, help="folder of raw shards, such as shards/cifar10/train")
    parser.add_argument("out", type=Path, help="JSON file to write")
    parser.add_argument("--batch-size", type=int, default=256, help="default: %(default)s")
    parser.add_argument("--batches", type=int, default=40, help="timed in each repeat (default: %(default)s)")
    arguments = parser.parse_args(argv)
    results = measure(arguments.shards, arguments.batch_size, arguments.batches)
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    arguments.out.write_text(json.dumps(results, indent=2) + "\n")
    print(json.dumps(results, indent=2))


if __name__ == "__main__":
    main()
