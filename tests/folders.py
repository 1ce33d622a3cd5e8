"""Folders of image files, and what lies in a folder, for comparing two of them."""

import numpy as np
from PIL import Image

from fdt_pipeline.shards.index import Member

RAMP = np.arange(12, dtype=np.uint8).reshape(3, 4) * 20
LFS_POINTER = f"version https://git-lfs.github.com/spec/v1\noid sha256:{64 * '0'}\nsize 12345\n".encode()
COLOR = np.stack([RAMP, 255 - RAMP, RAMP // 2], axis=-1)


def save_image(path, pixels=COLOR):
    """A PNG, whatever the name says. The folders above are made; the path is returned."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path, "PNG")
    return path


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def content(folder):
    """The bytes of all files below it, by path."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def stop_after(num_samples, error=KeyboardInterrupt):
    """A `progress` that ends a run when so many samples are written."""

    def progress(done, total):
        if done >= num_samples:
            raise error

    return progress


def parse_index(text):
    """The members of each sample in an index of DALI's."""
    samples = []
    for line in text.splitlines()[1:]:
        words = line.split(" ")
        fields = zip(words[0::4], map(int, words[1::4]), map(int, words[2::4]), words[3::4], strict=True)
        samples.append([Member(*member) for member in fields])
    return samples
