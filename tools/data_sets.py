"""The data sets that the project has made of others: the demo's, and the JPEGs that the bench's results are of.

    python -m tools.data_sets fashion FASHION_MNIST_DIR train/data/fashion_mnist_subset
    python -m tools.data_sets jpeg shards/cifar100/train shards/jpeg224

fashion: 500 train and 100 test images of each class, out of the four official idx.gz files and in their format. Which
images are taken depends on a seed alone: same input, same bytes.
jpeg: real images of 100 classes, bicubic from 32 x 32 to 224 x 224, JPEG quality 90, the files kept as they are in the
shards. What a decoder has to do depends on what is in an image: enlarged ones have no fine detail, so their files are
small, 9 kB each, and decode faster than photographs. The same for the same input, with the same version of Pillow.
"""

from __future__ import annotations

import argparse
import gzip
import struct
import tempfile
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from fdt_pipeline.definition.philox import Stream, permutation
from fdt_pipeline.shards import Manifest, iterate_shards, read_manifest, write_shards
from fdt_pipeline.sources import ArraySource, open_source
from fdt_pipeline.sources.source import I64, U8

SEED = 2021
PER_CLASS = {"train": ("train", 500), "test": ("t10k", 100)}  # split -> how its files begin, images of each class
IMAGES_MAGIC, LABELS_MAGIC = 2051, 2049
SIDE, QUALITY, IMAGES = 224, 90, 10_000


def draw_balanced(labels: I64, per_class: int, seed: int = SEED) -> I64:
    """i64[n] -> i64[classes * per_class]: positions of the drawn samples, in the order of the official file."""
    order = permutation(seed, Stream.SUBSET, 0, len(labels))
    chosen = [order[labels[order] == label][:per_class] for label in np.unique(labels)]
    return np.sort(np.concatenate(chosen))


def write_fashion_subset(official: Path, out: Path) -> None:
    out.mkdir(parents=True, exist_ok=True)
    for split, (name, per_class) in PER_CLASS.items():
        source = open_source(official, "fashion-mnist", split)
        assert isinstance(source, ArraySource)
        chosen = draw_balanced(source.labels, per_class)
        images, labels = source.images[chosen], source.labels[chosen].astype(np.uint8)
        for kind, header, values in (
            ("images-idx3", struct.pack(">4I", IMAGES_MAGIC, *images.shape[:3]), images),
            ("labels-idx1", struct.pack(">2I", LABELS_MAGIC, len(labels)), labels),
        ):
            data = gzip.compress(header + values.tobytes(), compresslevel=9, mtime=0)
            (out / f"{name}-{kind}-ubyte.gz").write_bytes(data)


def write_jpeg_set(shards: Path, out: Path, num_images: int = IMAGES) -> Manifest:
    """Write the first images of each class in the order of the shards. ValueError where a class has too few."""
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=out.parent) as scratch:
        files = Path(scratch)
        for number, (image, name) in enumerate(_first_of_each_class(shards, num_images)):
            path = files / name / f"{number:05d}.jpg"
            path.parent.mkdir(exist_ok=True)
            enlarged = Image.fromarray(image).resize((SIDE, SIDE), Image.Resampling.BICUBIC)
            enlarged.save(path, "JPEG", quality=QUALITY)
        return write_shards(open_source(files, "folder"), out, "keep")


def _first_of_each_class(shards: Path, num_images: int) -> Iterator[tuple[U8, str]]:
    """(image, name of its class)"""
    manifest = read_manifest(shards)
    each, rest = divmod(num_images, len(manifest.classes))
    if rest or not 0 < each <= min(manifest.samples_per_class):
        raise ValueError(
            f"{shards}: expected a number of images that is a multiple of its {len(manifest.classes)} classes, with at "
            f"most {min(manifest.samples_per_class)} of each, got {num_images}"
        )
    taken: Counter[int] = Counter()
    for shard in iterate_shards(shards, manifest):
        for image, label in zip(shard.images, shard.labels.tolist(), strict=True):
            taken[label] += 1
            if taken[label] <= each:
                yield image, manifest.classes[label]


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name", choices=("fashion", "jpeg"), help="which data set to make")
    parser.add_argument("source", type=Path, help="the official files; raw shards of 100 classes")
    parser.add_argument("out", type=Path, help="folder to write")
    arguments = parser.parse_args(argv)
    if arguments.name == "fashion":
        write_fashion_subset(arguments.source, arguments.out)
    else:
        write_jpeg_set(arguments.source, arguments.out)


if __name__ == "__main__":
    main()
