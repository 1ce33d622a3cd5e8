"""Make the 224 x 224 JPEG set that the bench's results are of: CIFAR-100's images, enlarged.

    python -m tools.bench.jpeg_set shards/cifar100/train shards/jpeg224

Real images of 100 classes, bicubic from 32 x 32, JPEG quality 90, the files kept as they are in the shards. What a
decoder has to do depends on what is in an image: enlarged ones have no fine detail, so their files are small, 9 kB
each, and decode faster than photographs. The same for the same input, with the same version of Pillow.
"""

from __future__ import annotations

import argparse
import tempfile
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

from PIL import Image

from fdt_pipeline.shards import Manifest, read_manifest, read_shard, write_shards
from fdt_pipeline.sources import open_source
from fdt_pipeline.sources.source import U8

SIDE, QUALITY, IMAGES = 224, 90, 10_000


def write_jpeg_set(shards: Path, out: Path, num_images: int = IMAGES, overwrite: bool = False) -> Manifest:
    """Write the first images of each class in the order of the shards. ValueError where a class has too few."""
    with tempfile.TemporaryDirectory(dir=out.parent) as scratch:
        files = Path(scratch)
        for number, (image, name) in enumerate(_chosen(shards, num_images)):
            path = files / name / f"{number:05d}.jpg"
            path.parent.mkdir(exist_ok=True)
            enlarged = Image.fromarray(image).resize((SIDE, SIDE), Image.Resampling.BICUBIC)
            enlarged.save(path, "JPEG", quality=QUALITY)
        return write_shards(open_source(files, "folder"), out, "keep", overwrite=overwrite)


def _chosen(shards: Path, num_images: int) -> Iterator[tuple[U8, str]]:
    """(image, name of its class)"""
    manifest = read_manifest(shards)
    each, rest = divmod(num_images, len(manifest.classes))
    if rest or not 0 < each <= min(manifest.samples_per_class):
        raise ValueError(
            f"{shards}: expected a number of images that is a multiple of its {len(manifest.classes)} classes, with at "
            f"most {min(manifest.samples_per_class)} of each, got {num_images}"
        )
    taken: Counter[int] = Counter()
    for shard in manifest.shards:
        for _, image, label in read_shard(shards, manifest, shard):
            taken[label] += 1
            if taken[label] <= each:
                yield image, manifest.classes[label]


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("shards", type=Path, metavar="CIFAR100_SHARDS", help="folder of raw shards of 100 classes")
    parser.add_argument("out", type=Path, help="folder to write")
    parser.add_argument("--images", type=int, default=IMAGES, help="default: %(default)s")
    parser.add_argument("--overwrite", action="store_true", help="replace what is there")
    arguments = parser.parse_args(argv)
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    manifest = write_jpeg_set(arguments.shards, arguments.out, arguments.images, arguments.overwrite)
    megabytes = sum(shard.num_bytes for shard in manifest.shards) / 1e6
    print(f"{manifest.num_samples} images of {len(manifest.classes)} classes, {megabytes:.0f} MB, in {arguments.out}")


if __name__ == "__main__":
    main()
