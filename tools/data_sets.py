"""The data sets that the project has made of others: the demo's, and the JPEGs that the bench's results are of.

    python -m tools.data_sets fashion FASHION_MNIST_DIR train/data/fashion_mnist_subset
    python -m tools.data_sets jpeg shards/cifar100/train shards/jpeg224
    python -m tools.data_sets photos shards/cifar100/train shards/photos

fashion: 500 train and 100 test images of each class, out of the four official idx.gz files and in their format. Which
images are taken depends on a seed alone: same input, same bytes.
jpeg: real images of 100 classes, bicubic from 32 x 32 to 224 x 224, JPEG quality 90, the files kept as they are in the
shards. What a decoder has to do depends on what is in an image: enlarged ones have no fine detail, so their files are
small, 9 kB each, and decode faster than photographs. The same for the same input, with the same version of Pillow.
photos: 15,000 JPEGs of eight sizes, 250 x 250 to 800 x 600, of 100 kB each, 4 bits a pixel, about as ImageNet's are.
CIFAR's images, bicubic, with a texture over them whose spectrum falls as 1 / frequency, as that of photographs does,
JPEG quality 95. Image number i is of class i % 200, so that nothing can be learned from them.
"""

from __future__ import annotations

import argparse
import gzip
import struct
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from itertools import islice
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image

from fdt_pipeline.definition.philox import Stream, permutation
from fdt_pipeline.shards import Manifest, iterate_shards, read_manifest, write_shards
from fdt_pipeline.sources import ArraySource, open_source
from fdt_pipeline.sources.source import I64, U8

F32 = npt.NDArray[np.float32]

SEED = 2021
PER_CLASS = {"train": ("train", 500), "test": ("t10k", 100)}  # split -> how its files begin, images of each class
IMAGES_MAGIC, LABELS_MAGIC = 2051, 2049
SIDE, QUALITY, IMAGES = 224, 90, 10_000
PHOTOS, PHOTO_CLASSES, PHOTO_QUALITY = 15_000, 200, 95
PHOTO_SIZES = ((500, 375), (375, 500), (500, 333), (333, 500), (400, 300), (640, 480), (800, 600), (250, 250))  # w, h
TEXTURE_SIDE, TEXTURE_STD = 1024, 16.0  # the second in grey levels


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


def write_photo_set(shards: Path, out: Path, num_images: int = PHOTOS) -> Manifest:
    """Write the first images in the order of the shards. ValueError where there are too few."""
    manifest = read_manifest(shards)
    if not 0 < num_images <= manifest.num_samples:
        raise ValueError(f"{shards}: expected 1 to {manifest.num_samples} images to be asked for, got {num_images}")
    rng = np.random.default_rng(SEED)
    texture = _texture(rng)
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=out.parent) as scratch:
        images = (image for shard in iterate_shards(shards, manifest) for image in shard.images)
        for number, image in enumerate(islice(images, num_images)):
            path = Path(scratch) / f"{number % PHOTO_CLASSES:03d}" / f"{number:05d}.jpg"
            path.parent.mkdir(exist_ok=True)
            w, h = PHOTO_SIZES[rng.integers(len(PHOTO_SIZES))]
            y, x = rng.integers(TEXTURE_SIDE - h), rng.integers(TEXTURE_SIDE - w)
            enlarged = Image.fromarray(image).resize((w, h), Image.Resampling.BICUBIC)
            photo = (np.asarray(enlarged) + texture[y : y + h, x : x + w, None]).clip(0, 255).astype(np.uint8)
            Image.fromarray(photo).save(path, "JPEG", quality=PHOTO_QUALITY)
        return write_shards(open_source(Path(scratch), "folder"), out, "keep")


def _texture(rng: np.random.Generator) -> F32:
    """f32[TEXTURE_SIDE TEXTURE_SIDE] of mean 0, whose amplitude spectrum falls as 1 / frequency."""
    frequencies = np.fft.fftfreq(TEXTURE_SIDE)
    radius = np.hypot(frequencies[:, None], frequencies[None])
    radius[0, 0] = np.inf
    noise = rng.normal(size=radius.shape)
    texture = np.fft.ifft2(np.fft.fft2(noise) / radius).real
    return (texture * (TEXTURE_STD / texture.std())).astype(np.float32)


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
    parser.add_argument("name", choices=("fashion", "jpeg", "photos"), help="which data set to make")
    parser.add_argument("source", type=Path, help="the official files; raw shards of color images")
    parser.add_argument("out", type=Path, help="folder to write")
    arguments = parser.parse_args(argv)
    writers: dict[str, Callable[[Path, Path], object]] = {
        "fashion": write_fashion_subset,
        "jpeg": write_jpeg_set,
        "photos": write_photo_set,
    }
    writers[arguments.name](arguments.source, arguments.out)


if __name__ == "__main__":
    main()
