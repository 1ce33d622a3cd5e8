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
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from itertools import product
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
from train.files import write_json

from .rounds import measure_rounds, ratios

NUM_PHOTOS, NUM_FOLDERS = 20_000, 100
SHARD = 1000
Members = tuple[dict[str, Any], int]  # the image by its extension, and the label
Write = Callable[[Path], Any]


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


def loop(samples: Callable[[], Iterable[Members]], out: Path) -> None:
    """ShardWriter in a loop, as its documentation has it."""
    out.mkdir()
    with webdataset.ShardWriter(f"{out}/shard-%06d.tar", maxcount=SHARD, verbose=0) as sink:
        for number, (members, label) in enumerate(samples()):
            sink.write({"__key__": f"{number:08d}", "cls": label, **members})


def loops_of_files(folder: Path) -> dict[str, Write]:
    files = sorted((path, int(path.parent.name)) for path in folder.glob("*/*.jpg"))

    def checked(path: Path) -> Any:
        data = path.read_bytes()
        Image.open(io.BytesIO(data)).load()
        return data

    def encoded(path: Path) -> Any:
        with Image.open(path) as image:
            return image.convert("RGB")

    def samples(read: Callable[[Path], Any]) -> Iterator[Members]:
        return (({"jpg": read(path)}, label) for path, label in files)

    named = {"bytes unseen": Path.read_bytes, "each image decoded": checked, "decoded and encoded": encoded}
    return {f"ShardWriter, {name}": partial(loop, partial(samples, read)) for name, read in named.items()}


def measure(source: Source, loops: dict[str, Write], encodings: Sequence[str], rounds: int) -> dict[str, Any]:
    """Samples a second of the loops and of ours in each of the encodings, with [median, least, most] of all ratios."""
    writers = dict(loops)
    for encoding, (workers, text) in product(encodings, ((1, "1 worker"), (2, "2 workers"))):
        options: dict[str, Any] = {"encoding": encoding, "samples_per_shard": SHARD, "workers": workers}
        writers[f"{encoding}, {text}"] = partial(write_shards, source, **options)
    Path("runs").mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(dir="runs") as scratch:  # on the disk of the checkout: /tmp may be memory

        def rate(write: Write) -> float:
            begin = time.perf_counter()
            write(Path(scratch, "out"))
            os.sync()
            seconds = time.perf_counter() - begin
            shutil.rmtree(Path(scratch, "out"))
            return len(source) / seconds

        rates = measure_rounds({name: partial(rate, write) for name, write in writers.items()}, rounds)
    compared = {
        f"{over} : {under}": ratios(rates[over], rates[under])
        for over, under in product(writers, writers)
        if over not in loops and over != under
    }
    return {
        "samples": len(source),
        "samples a second: median, least, most": {name: spread(values) for name, values in rates.items()},
        "ratio: median, least, most": {name: spread(values) for name, values in compared.items()},
    }


def spread(values: Sequence[float]) -> list[float]:
    return [float(f"{value:.4g}") for value in (median(values), min(values), max(values))]


def verified(source: Source, encoding: str, rounds: int = 3) -> dict[str, float]:
    """Seconds that it takes to verify the shards, with decoding and without."""
    with tempfile.TemporaryDirectory(dir="runs") as place:
        manifest = write_shards(source, place, encoding, samples_per_shard=SHARD, overwrite=True)

        def seconds(decode: bool) -> float:
            begin = time.perf_counter()
            verify_shards(place, decode=decode)
            return time.perf_counter() - begin

        checks = {"verify, seconds": partial(seconds, False), "verify --decode, seconds": partial(seconds, True)}
        found = {name: round(median(values), 3) for name, values in measure_rounds(checks, rounds).items()}
        return {"MB": round(sum(shard.num_bytes for shard in manifest.shards) / 1e6, 1), **found}


# Not ru_maxrss: Linux hands a process the peak of the one that started it.
_PEAK = """
import re, sys
from fdt_pipeline.cli import main
main(sys.argv[1:])
print(re.search(r"VmHWM:\\s+(\\d+)", open("/proc/self/status").read())[1])
"""


def peak_memory(photos: Path) -> float:
    """MB at the highest of `fdt-pipeline shard` with one worker, which writes images one by one."""
    with tempfile.TemporaryDirectory(dir="runs") as place:
        command = [sys.executable, "-c", _PEAK, "shard", str(photos), f"{place}/out", "--workers", "1"]
        done = subprocess.run(command, stdout=subprocess.PIPE, check=True, text=True)
    return round(int(done.stdout.split()[-1]) / 1024, 1)


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("cifar", type=Path, metavar="CIFAR10", help="folder of the official files")
    parser.add_argument("photos", type=Path, metavar="PHOTOS", help="folder of JPEGs; made if it is not there")
    parser.add_argument("out", type=Path, help="JSON file to write")
    parser.add_argument("--rounds", type=int, default=5, help="after a warm-up (default: %(default)s)")
    arguments = parser.parse_args(argv)
    arrays = open_source(arguments.cifar, "cifar10", "train")
    if not arguments.photos.exists():
        make_photos(arrays, arguments.photos)
    files = open_source(arguments.photos, "folder")

    def members(extension: str) -> Iterator[Members]:
        return (({extension: arrays[i].image}, arrays[i].label) for i in range(len(arrays)))

    loops: dict[str, Write] = {f"ShardWriter, {word}": partial(loop, partial(members, word)) for word in ("npy", "png")}
    results = {
        "CIFAR-10 train": measure(arrays, loops, ("raw", "png"), arguments.rounds)
        | {"verify": {encoding: verified(arrays, encoding) for encoding in ("raw", "png", "webp", "jpg")}},
        "JPEG files": measure(files, loops_of_files(arguments.photos), ("keep",), arguments.rounds)
        | {"verify": {"keep": verified(files, "keep")}, "peak MB, 1 worker": peak_memory(arguments.photos)},
        "rounds": arguments.rounds,
        "hardware": hardware(torch.device("cpu")),
        "versions": versions(),
    }
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    write_json(arguments.out, results)


if __name__ == "__main__":
    main()
