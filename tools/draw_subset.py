"""Draw the demo's data from the official Fashion-MNIST files: 500 train and 100 test images of each class.

    python -m tools.draw_subset FASHION_MNIST_DIR train/data/fashion_mnist_subset

FASHION_MNIST_DIR holds the four official idx.gz files. Which images are taken depends on the seed alone, and the
result is written in the same format, so the project's own reader reads it. Same input and seed, same bytes.
"""

from __future__ import annotations

import argparse
import gzip
import struct
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from fdt_pipeline.definition.philox import Stream, permutation

SEED = 2021
PER_CLASS = {"train": 500, "t10k": 100}
IMAGES_MAGIC, LABELS_MAGIC = 2051, 2049


def draw_balanced(labels: np.ndarray, per_class: int, seed: int) -> np.ndarray:
    """u8[n] -> i64[classes * per_class]: positions of the drawn samples, in the order of the official file."""
    order = permutation(seed, Stream.SUBSET, 0, len(labels))
    chosen = [order[labels[order] == label][:per_class] for label in np.unique(labels)]
    return np.sort(np.concatenate(chosen))


def write_gz(path: Path, data: bytes) -> None:
    path.write_bytes(gzip.compress(data, compresslevel=9, mtime=0))


def draw(source: Path, out: Path, seed: int) -> None:
    out.mkdir(parents=True, exist_ok=True)
    for part, per_class in PER_CLASS.items():
        images = gzip.decompress((source / f"{part}-images-idx3-ubyte.gz").read_bytes())
        labels = gzip.decompress((source / f"{part}-labels-idx1-ubyte.gz").read_bytes())
        _, _, rows, columns = struct.unpack(">4I", images[:16])
        pixels = np.frombuffer(images, np.uint8, offset=16).reshape(-1, rows * columns)
        classes = np.frombuffer(labels, np.uint8, offset=8)
        chosen = draw_balanced(classes, per_class, seed)
        header = struct.pack(">4I", IMAGES_MAGIC, len(chosen), rows, columns)
        write_gz(out / f"{part}-images-idx3-ubyte.gz", header + pixels[chosen].tobytes())
        header = struct.pack(">2I", LABELS_MAGIC, len(chosen))
        write_gz(out / f"{part}-labels-idx1-ubyte.gz", header + classes[chosen].tobytes())


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", type=Path, help="folder of the official Fashion-MNIST .gz files")
    parser.add_argument("out", type=Path, help="folder to write the subset to")
    parser.add_argument("--seed", type=int, default=SEED, help="what the draw depends on (default: %(default)s)")
    arguments = parser.parse_args(argv)
    draw(arguments.source, arguments.out, arguments.seed)


if __name__ == "__main__":
    main()
