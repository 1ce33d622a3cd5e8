"""The same images with another number of classes, for the cost of an image against C."""

from __future__ import annotations

from contextlib import closing
from pathlib import Path

import numpy as np

from fdt_pipeline.shards import read_manifest, write_shards
from fdt_pipeline.storage import open_folder

from .options import Options
from .some_of_shards import SomeOfShards


def relabelled(options: Options, num_classes: int) -> Path:
    """A folder of shards in which image number i is of class i % num_classes; kept in the work folder.

    ValueError where there are fewer images than classes.
    """
    manifest = read_manifest(options.shards)
    if manifest.num_samples < num_classes:
        raise ValueError(f"--classes {num_classes} needs as many images, got {manifest.num_samples}")
    folder = options.work / manifest.sha256[:12] / f"classes-{num_classes}"
    if not (folder / "manifest.json").exists():
        labels = np.arange(manifest.num_samples) % num_classes
        encoding = "raw" if manifest.encoding == "raw" else "keep"
        whole = SomeOfShards(open_folder(options.shards), manifest)
        with closing(whole.relabelled(labels, [str(c) for c in range(num_classes)])) as source:
            write_shards(source, folder, encoding, samples_per_shard=manifest.samples_per_shard, overwrite=True)
    return folder
