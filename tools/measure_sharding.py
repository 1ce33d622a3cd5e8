"""Measure sharding against webdataset's ShardWriter in a loop, on CIFAR-10 and on a folder of JPEGs, and write JSON.

    python -m tools.measure_sharding CIFAR10 PHOTOS tools/results/sharding.json

CIFAR10 holds the official files. PHOTOS is made if it is not there: 20,000 JPEGs of 96 to 480 pixels a side, mosaics of
CIFAR-10's images in 100 folders. Each contender runs once a round, on an empty folder of the same disk, and starts
from an open data set; rates are medians over the rounds after a warm-up, with minimum and maximum, and ratios are
taken within a round. The loops are what people write: encoders are webdataset's own.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
import webdataset
from PIL import Image

from fdt_pipeline.definition.philox import Stream, random_words
from fdt_pipeline.shards import verify_shards, write_shards
from fdt_pipeline.sources import Source, open_source
from train.environment import hardware, versions

NUM_PHOTOS, NUM_FOLDERS = 20_000, 100
SHARD = 1000
Contender = Callable[[Path], Any]


def make_photos(source: Source, folder: Path, num_photos: int = NUM_PHOTOS) -> None:
    """Mosaics of 32 x 32 tiles, 3 to 15 a side, JPEG quality 75 to 95; the same for the same source."""
    words = random_words(0, Stream.SUBSET, 1, np.arange(num_photos), 0)
    for index, (rows, columns, quality, first) in enumerate(words.tolist()):
        rows, columns = 3 + rows % 13, 3 + columns % 13
        tiles = [source[(first + tile) % len(source)].image for tile in range(rows * columns)]
        mosaic = np.stack(tiles).reshape(rows, columns, 32, 32, 3).swapaxes(1, 2).reshape(rows * 32, columns * 32, 3)
        path = folder / f"{index % NUM_FOLDERS:03d}" / f"{index:05d}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(mosaic).save(path, quality=75 + quality % 21)


def loop(samples: Callable[[], Any]) -> Contender:
    """ShardWriter in a loop, as its documentation has it."""

    def run(out: Path) -> None:
        out.mkdir()
        with webdataset.ShardWriter(f"{out}/shard-%06d.tar", maxcount=SHARD, verbose=0) as sink:
            for number, (members, label) in enumerate(samples()):
                sink.write({"__key__": f"{number:08d}", "cls": label, **members})

    return run


def ours(source: Source, encoding: str, workers: int) -> Contender:
    return lambda out: write_shards(source, out, encoding, samples_per_shard=SHARD, workers=workers)


def array_contenders(source: Source) -> dict[str, Contender]:
    def members(extension: str) -> Callable[[], Any]:
        return lambda: (({extension: image}, label) for image, label, _ in source)  # type: ignore[attr-defined]

    return {
        "ShardWriter, npy": loop(members("npy")),
        "raw, 1 worker": ours(source, "raw", 1),
        "raw, 2 workers": ours(source, "raw", 2),
        "ShardWriter, png": loop(members("png")),
        "png, 1 worker": ours(source, "png", 1),
        "png, 2 workers": ours(source, "png", 2),
    }


def file_contenders(folder: Path) -> dict[str, Contender]:
    source = open_source(folder, "folder")
    files = sorted((path, int(path.parent.name)) for path in folder.glob("*/*.jpg"))

    def copied() -> Any:
        return (({"jpg": path.read_bytes()}, label) for path, label in files)

    def checked() -> Any:
        for path, label in files:
            data = path.read_bytes()
            with Image.open(io.BytesIO(data)) as image:
                image.load()
            yield {"jpg": data}, label

    def encoded() -> Any:
        for path, label in files:
            with Image.open(path) as image:
                yield {"jpg": image.convert("RGB")}, label

    return {
        "ShardWriter, bytes unseen": loop(copied),
        "ShardWriter, each image decoded": loop(checked),
        "ShardWriter, decoded and encoded": loop(encoded),
        "keep, 1 worker": ours(source, "keep", 1),
        "keep, 2 workers": ours(source, "keep", 2),
    }


def raced(contenders: dict[str, Contender], num_samples: int, rounds: int) -> dict[str, list[float]]:
    """Samples a second of each round."""
    rates: dict[str, list[float]] = {name: [] for name in contenders}
    with tempfile.TemporaryDirectory(dir=_scratch()) as place:
        for round_ in range(rounds + 1):
            for name, contender in contenders.items():
                out = Path(place) / "out"
                begin = time.perf_counter()
                contender(out)
                os.sync()
                if round_:
                    rates[name].append(num_samples / (time.perf_counter() - begin))
                    print(f"{name}: {rates[name][-1]:.0f} samples/s", file=sys.stderr)
                shutil.rmtree(out)
    return rates


def _scratch() -> Path:
    """On the disk of the checkout: /tmp may be memory."""
    Path("runs").mkdir(exist_ok=True)
    return Path("runs")


def told(rates: dict[str, list[float]]) -> dict[str, list[float]]:
    return {name: _spread(values) for name, values in rates.items()}


def ratios(rates: dict[str, list[float]], pairs: dict[str, tuple[str, str]]) -> dict[str, list[float]]:
    """[median, least, most] of what is taken round by round."""
    found = {}
    for name, (first, second) in pairs.items():
        found[name] = _spread([a / b for a, b in zip(rates[first], rates[second], strict=True)])
    return found


def _spread(values: list[float]) -> list[float]:
    return [float(f"{value:.4g}") for value in (median(values), min(values), max(values))]


# Not ru_maxrss: Linux hands a process the peak of the one that started it.
_PEAK = """
import sys
from tools.__main__ import main
code = main(sys.argv[1:])
[line] = (line for line in open("/proc/self/status") if line.startswith("VmHWM"))
print(line.split()[1])
sys.exit(code)
"""


def peak_memory(source: Path, kind: str) -> dict[str, float]:
    """Of the command with one worker, which writes images one by one."""
    with tempfile.TemporaryDirectory(dir=_scratch()) as place:
        command = ["shard", str(source), f"{place}/out", "--source", kind, "--workers", "1"]
        done = subprocess.run([sys.executable, "-c", _PEAK, *command], stdout=subprocess.PIPE, check=True, text=True)
    return {"peak MB, 1 worker": round(int(done.stdout.split()[-1]) / 1024, 1)}


def seconds(work: Callable[[], Any], rounds: int = 3) -> float:
    times = []
    for _ in range(rounds):
        begin = time.perf_counter()
        work()
        times.append(time.perf_counter() - begin)
    return round(median(times), 3)


def verified(source: Source, encoding: str) -> dict[str, float]:
    with tempfile.TemporaryDirectory(dir=_scratch()) as place:
        manifest = write_shards(source, place, encoding, samples_per_shard=SHARD, overwrite=True)
        return {
            "MB": round(sum(shard.num_bytes for shard in manifest.shards) / 1e6, 1),
            "verify, seconds": seconds(lambda: verify_shards(place)),
            "verify --decode, seconds": seconds(lambda: verify_shards(place, decode=True)),
        }


def measure(cifar: Path, photos: Path, rounds: int) -> dict[str, Any]:
    arrays = open_source(cifar, "cifar10", "train")
    if not photos.exists():
        make_photos(arrays, photos)
    files = open_source(photos, "folder")
    of_arrays = raced(array_contenders(arrays), len(arrays), rounds)
    of_files = raced(file_contenders(photos), len(files), rounds)
    return {
        "CIFAR-10 train": {
            "samples": len(arrays),
            "samples a second: median, least, most": told(of_arrays),
            "ratio: median, least, most": ratios(
                of_arrays,
                {
                    "raw, 1 worker : ShardWriter": ("raw, 1 worker", "ShardWriter, npy"),
                    "raw, 2 workers : ShardWriter": ("raw, 2 workers", "ShardWriter, npy"),
                    "raw, 2 workers : 1 worker": ("raw, 2 workers", "raw, 1 worker"),
                    "png, 1 worker : ShardWriter": ("png, 1 worker", "ShardWriter, png"),
                    "png, 2 workers : ShardWriter": ("png, 2 workers", "ShardWriter, png"),
                    "png, 2 workers : 1 worker": ("png, 2 workers", "png, 1 worker"),
                },
            ),
            "verify": {encoding: verified(arrays, encoding) for encoding in ("raw", "png", "webp", "jpg")},
        },
        "JPEG files": {
            "samples": len(files),
            "MB": round(sum(path.stat().st_size for path in photos.glob("*/*.jpg")) / 1e6, 1),
            "samples a second: median, least, most": told(of_files),
            "ratio: median, least, most": ratios(
                of_files,
                {
                    f"keep, {workers} : {name}": (f"keep, {workers}", name)
                    for workers in ("1 worker", "2 workers")
                    for name in list(of_files)[:3]
                }
                | {"keep, 2 workers : 1 worker": ("keep, 2 workers", "keep, 1 worker")},
            ),
            "verify": {"keep": verified(files, "keep")},
            **peak_memory(photos, "folder"),
        },
        "rounds": rounds,
        "hardware": hardware(torch.device("cpu")),
        "versions": versions() | {"webdataset": webdataset.__version__},
    }


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("cifar", type=Path, metavar="CIFAR10", help="folder of the official files")
    parser.add_argument("photos", type=Path, metavar="PHOTOS", help="folder of JPEGs; made if it is not there")
    parser.add_argument("out", type=Path, help="JSON file to write")
    parser.add_argument("--rounds", type=int, default=5, help="after a warm-up (default: %(default)s)")
    arguments = parser.parse_args(argv)
    results = measure(arguments.cifar, arguments.photos, arguments.rounds)
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    arguments.out.write_text(json.dumps(results, indent=2) + "\n")
    print(json.dumps(results, indent=2))


if __name__ == "__main__":
    main()
