"""Find out what lies at a path, and open it."""

from __future__ import annotations

import atexit
import shutil
import tempfile
from functools import lru_cache
from pathlib import Path
from typing import Any, Protocol

from ..storage import is_url
from ..storage.remote import RemoteFolder
from . import cifar, idx, image_folder, npz, svhn
from .image_folder import ImageFolder
from .source import Source
from .tree import LocalTree, RemoteTree, extension


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
_TORCHVISION_NAME = {
    "fashion-mnist": "FashionMNIST",
    "mnist": "MNIST",
    "cifar10": "CIFAR10",
    "cifar100": "CIFAR100",
    "svhn": "SVHN",
}
MAX_FILES = 200  # the official sets have up to 10


def open_source(path: str | Path, kind: str | None = None, split: str | None = None, download: bool = False) -> Source:
    """The data set at `path`, or at an fsspec URL; `kind` is one of KINDS, found out from the files if None.

    Of an image folder at a URL, images are read when they are asked for; other sets are copied here first.

    ValueError, saying what was expected and what was found, for anything amiss: a wrong path, kind or split, a
    missing, cut or broken file, labels out of range, a class without a sample.
    """
    if download:
        if is_url(str(path)):
            raise ValueError(f"{path}: --download needs a folder of this machine, got a URL")
        download_source(Path(path), kind)
    kind, place, splits = _found(path, kind)
    if split not in splits and (splits or split is not None):
        has = f"the splits {', '.join(splits)}" if splits else "no splits"
        raise ValueError(f"{path}: {kind} has {has}: choose one of them as split, got {split}")
    return ImageFolder(place, split) if isinstance(place, RemoteTree) else _FAMILIES[kind].read(place, kind, split)


def source_splits(path: str | Path, kind: str | None = None) -> tuple[str, ...]:
    """("train", "test") and the like, or () if the source is one whole."""
    return _found(path, kind)[2]


def _found(path: str | Path, kind: str | None) -> tuple[str, Path | RemoteTree, tuple[str, ...]]:
    """(kind, where its files lie, splits)."""
    if is_url(str(path)):
        tree = RemoteTree(str(path))
        if kind == "folder" or (kind is None and image_folder.has_images(tree)):
            return "folder", tree, image_folder.splits_of(tree)
        path = local_copy(str(path))
    kind, place = _locate(Path(path), kind)
    return kind, place, _FAMILIES[kind].splits(place, kind)


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


def download_source(path: Path, kind: str | None) -> None:
    """Fetch all splits into `path`, in torchvision's layout: it knows the addresses and checks the sums. Files that are
    there are not fetched again."""
    if kind not in _TORCHVISION_NAME:
        kinds = ", ".join(_TORCHVISION_NAME)
        raise ValueError(f"to download, say what: expected --source to be one of {kinds}, got {kind}")
    dataset = _torchvision_dataset(_TORCHVISION_NAME[kind])
    path.mkdir(parents=True, exist_ok=True)
    try:
        for split in ("train", "test"):
            options = {"split": split} if kind == "svhn" else {"train": split == "train"}
            dataset(root=str(path), download=True, **options)
    except (RuntimeError, OSError) as error:
        raise OSError(
            f"could not download {kind} to {path}: {error}; fetch the files by hand, then shard them"
        ) from error


def _torchvision_dataset(name: str) -> Any:
    try:
        from torchvision import datasets
    except ImportError as error:
        raise ImportError("--download needs torchvision: pip install torchvision") from error
    return getattr(datasets, name)


@lru_cache(maxsize=8)
def local_copy(url: str) -> Path:
    """A copy of the folder or file at a URL, which is removed when the interpreter ends. It keeps its name, which may
    say what it is."""
    above, _, name = url.rpartition("/")
    temporary = tempfile.mkdtemp(prefix="fdt-pipeline-source-")
    atexit.register(shutil.rmtree, temporary, ignore_errors=True)
    if extension(name) in (".npz", ".mat"):
        return _copied(RemoteFolder(above), name, Path(temporary))
    place = Path(temporary) / (name or "source")
    tree, folder = RemoteTree(url), RemoteFolder(url)
    names = tree.walk("")
    if not names:
        raise ValueError(f"{url}: no files there; give the URL of a data set")
    if len(names) > MAX_FILES:
        raise ValueError(
            f"{url}: {len(names)} files, which are no image folder; expected those of an official data set, at most "
            f"{MAX_FILES}; name the folder that holds them"
        )
    for file in names:
        _copied(folder, file, place)
    return place


def _copied(folder: RemoteFolder, name: str, place: Path) -> Path:
    path = place / name
    path.parent.mkdir(parents=True, exist_ok=True)
    with folder.open(name) as source, path.open("wb") as target:
        shutil.copyfileobj(source, target, 8 << 20)
    return path
