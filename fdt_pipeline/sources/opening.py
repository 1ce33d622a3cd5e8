"""Find out what lies at a path, and open it."""

from __future__ import annotations

from pathlib import Path
from typing import Protocol

from ..storage import is_url
from . import cifar, idx, image_folder, npz, svhn
from .download import download_source
from .image_folder import ImageFolder
from .local_copy import local_copy
from .remote_tree import RemoteTree
from .source import Source
from .tree import LocalTree


class Family(Protocol):
    """What each module of a file format offers."""

    def find(self, path: Path, kind: str, /) -> Path | None:
        """Where the files lie, at or below the path, or None."""

    def splits(self, path: Path, kind: str, /) -> tuple[str, ...]:
        """The splits of what `find` returned; () if it has none."""

    def read(self, path: Path, kind: str, split: str | None, /) -> Source: ...


_FAMILIES: dict[str, Family] = {
    "fashion-mnist": idx,
    "mnist": idx,
    "cifar10": cifar,
    "cifar100": cifar,
    "svhn": svhn,
    "npz": npz,
    "folder": image_folder,
}
_LOOKED_FOR = {
    "fashion-mnist": "train-images-idx3-ubyte[.gz] and its three companions",
    "mnist": "the same four files",
    "cifar10": "data_batch_1.bin or data_batch_1, ... (cifar-10-batches-bin, cifar-10-batches-py)",
    "cifar100": "train.bin or train, ... (cifar-100-binary, cifar-100-python)",
    "svhn": "train_32x32.mat, test_32x32.mat",
    "npz": "a .npz file, or train.npz and test.npz",
    "folder": "subfolders of images, one a class, or train/ and test/ with such subfolders",
}
KINDS = tuple(_FAMILIES)


def open_source(path: str | Path, kind: str | None = None, split: str | None = None, download: bool = False) -> Source:
    """The data set at `path`, or at an fsspec URL; `kind` is one of KINDS, found out from the files if None.

    Of an image folder at a URL, images are read when they are asked for; other sets are copied here first.

    ValueError, saying what was expected and what was found, for anything amiss: a wrong path, kind or split, a
    missing, cut or broken file, labels out of range, a class without a sample.
    """
    if is_url(str(path)):
        tree = _remote_folder(str(path), kind)
        if tree is not None:
            _check_split(path, "folder", image_folder.splits_of(tree), split)
            return ImageFolder(tree, split)
        path = local_copy(str(path))
    path = Path(path)
    if download:
        download_source(path, kind)
    kind, found = _locate(path, kind)
    _check_split(path, kind, _FAMILIES[kind].splits(found, kind), split)
    return _FAMILIES[kind].read(found, kind, split)


def source_splits(path: str | Path, kind: str | None = None) -> tuple[str, ...]:
    """("train", "test") and the like, or () if the source is one whole."""
    if is_url(str(path)):
        tree = _remote_folder(str(path), kind)
        if tree is not None:
            return image_folder.splits_of(tree)
        path = local_copy(str(path))
    kind, found = _locate(Path(path), kind)
    return _FAMILIES[kind].splits(found, kind)


def _check_split(path: object, kind: str, splits: tuple[str, ...], split: str | None) -> None:
    if split not in splits and (splits or split is not None):
        has = f"the splits {', '.join(splits)}" if splits else "no splits"
        raise ValueError(f"{path}: {kind} has {has}: choose one of them as split, got {split}")


def _remote_folder(url: str, kind: str | None) -> RemoteTree | None:
    """None if it is no image folder."""
    if kind not in (None, "folder"):
        return None
    tree = RemoteTree(url)
    return tree if kind or image_folder.has_images(tree) else None


def _locate(path: Path, kind: str | None) -> tuple[str, Path]:
    if kind is not None and kind not in KINDS:
        raise ValueError(f"unknown kind of source {kind!r}: expected --source to be one of {', '.join(KINDS)}")
    if not path.exists():
        raise ValueError(f"{path}: no such file or folder; give the path of a data set, or fetch one with --download")
    kind = kind or _recognise(path)
    found = _FAMILIES[kind].find(path, kind)
    if found is None:
        raise ValueError(f"{path}: no {kind} here: looked for {_LOOKED_FOR[kind]}")
    return kind, found


def _recognise(path: Path) -> str:
    """The official sets go before npz and folder: folders of images may lie beside their files."""
    kinds = [kind for kind in KINDS if kind not in ("npz", "folder") and _FAMILIES[kind].find(path, kind)]
    kinds = _tell_mnists_apart(path, kinds)
    if not kinds:
        kinds = ["npz"] * bool(npz.find(path, "npz")) + ["folder"] * image_folder.has_images(LocalTree(path))
    if not kinds:
        looked_for = "; ".join(f"{kind}: {files}" for kind, files in _LOOKED_FOR.items())
        raise ValueError(f"{path}: no data set that is known; choose with --source KIND; looked for {looked_for}")
    if len(kinds) > 1:
        raise ValueError(f"{path}: could be any of {', '.join(kinds)}: say which with --source KIND")
    return kinds[0]


def _tell_mnists_apart(path: Path, kinds: list[str]) -> list[str]:
    """Their files have the same names, so the folder's name decides; if it says nothing, both stay."""
    named = [kind for kind in kinds if _FAMILIES[kind] is not idx or idx.name_fits(idx.find(path, kind) or path, kind)]
    return named or kinds
