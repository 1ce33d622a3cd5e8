"""Where the data sets of a table are: ROOT/NAME/{train,test} as shards, or the subsets of the small scale."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import numpy.typing as npt

from fdt_pipeline.shards import load_shards, read_manifest, write_shards
from fdt_pipeline.shards.progress import progress_bar
from fdt_pipeline.sources import ArraySource, Source, open_source

SPLITS = ("train", "test")
PER_CLASS = {"train": 500, "test": 100}  # of the small scale
BUNDLED = {"fashion-mnist": Path(__file__).parents[1] / "data" / "fashion_mnist_subset"}


def missing_data(root: Path | None, dataset: str, scale: str) -> str | None:
    """Why a data set cannot be trained on, None where it can."""
    if scale == "small" and dataset in BUNDLED:
        return None
    if root is None:
        return "no --data was given"
    for split in SPLITS:
        if not (root / dataset / split / "manifest.json").is_file():
            return f"no shards in {dataset}/{split} of --data"
    return None


def data_folder(root: Path | None, dataset: str, scale: str, out: Path) -> Path:
    """The folder with train/ and test/; at the small scale its subsets are drawn into out/data first, once."""
    if scale == "full":
        assert root is not None  # else the data is missing
        return root / dataset
    folder = out / "data" / dataset
    for split in SPLITS:
        if not (folder / split / "manifest.json").exists():
            source = _small_source(root, dataset, split)
            with progress_bar(f"shard {dataset} {split}", "images", always=True) as progress:
                write_shards(source, folder / split, overwrite=True, progress=progress)
    return folder


def _small_source(root: Path | None, dataset: str, split: str) -> Source:
    if dataset in BUNDLED:
        return open_source(BUNDLED[dataset], split=split)
    assert root is not None  # else the data is missing
    shards = root / dataset / split
    images, labels, _ = load_shards(shards)
    chosen = draw_subset(images, labels, PER_CLASS[split])
    return ArraySource(images[chosen], labels[chosen], read_manifest(shards).classes, kind=f"{dataset}-subset")


def draw_subset(images: npt.NDArray[np.uint8], labels: npt.NDArray[np.int64], per_class: int) -> npt.NDArray[np.int64]:
    """Positions of per_class images of every class: those with the lowest sha256 of their pixels.

    So the subset depends on the images alone, not on the order or the seed of the shards that they come from.
    """
    digests = np.array([hashlib.sha256(image.tobytes()).hexdigest() for image in images])
    order = np.argsort(digests, kind="stable")
    return np.concatenate([order[labels[order] == label][:per_class] for label in np.unique(labels)])
