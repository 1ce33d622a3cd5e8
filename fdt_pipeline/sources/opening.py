"""Find out what lies at a path, and open it."""

from __future__ import annotations

import atexit
import shutil
import tempfile
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

from ..storage import is_url
from ..storage.remote import RemoteFolder
from . import cifar, folder_layout, idx, npz, parquet, svhn
from .files import RemoteFiles, files_at
from .source import Found, Source


class Format(NamedTuple):
    """find(path, kind, asked): the set at or below a path, or None; what it looks for, in words; torchvision's name.

    asked: whether the user has named the kind; if not, the files must say that they are of this one.
    """

    find: Callable[[Path, str, bool], Found | None]
    looks_for: str
    torchvision: str | None = None


_CIFAR10_FILES = "data_batch_1.bin or data_batch_1, ... (cifar-10-batches-bin, cifar-10-batches-py)"
_FOLDERS = "subfolders of images, one a class, or train/ and test/ with such subfolders, or images with --labels FILE"
_FORMATS = {
    "fashion-mnist": Format(idx.find, "train-images-idx3-ubyte[.gz] and its three companions", "FashionMNIST"),
    "mnist": Format(idx.find, "the same four files", "MNIST"),
    "cifar10": Format(cifar.find, _CIFAR10_FILES, "CIFAR10"),
    "cifar100": Format(cifar.find, "train.bin or train, ... (cifar-100-binary, cifar-100-python)", "CIFAR100"),
    "svhn": Format(svhn.find, "train_32x32.mat, test_32x32.mat", "SVHN"),
    "npz": Format(npz.find, "a .npz file, or train.npz and test.npz"),
    "parquet": Format(parquet.find, "a .parquet file, or train-00000-of-00001.parquet and the like"),
    "folder": Format(folder_layout.find, _FOLDERS),
}
KINDS = tuple(_FORMATS)
_OFFICIAL = tuple(kind for kind, form in _FORMATS.items() if form.torchvision)
MAX_FILES = 200  # the official sets have up to 10


def open_source(
    path: str | Path,
    kind: str | None = None,
    split: str | None = None,
    download: bool = False,
    labels: str | Path | None = None,
) -> Source:
    """The data set at `path`, or at an fsspec URL; `kind` is one of KINDS, found out from the files if None.

    labels: a file with the labels of the images in `path`, "FILE" or "FILE:NAME_COLUMN:LABEL_COLUMN"; there are no
    splits then.

    Of an image folder at a URL, images are read when they are asked for; other sets are copied here first.

    ValueError, saying what was expected and what was found, for anything amiss: a wrong path, kind or split, a
    missing, cut or broken file, labels out of range, a class without a sample.
    """
    if download:
        if is_url(str(path)):
            raise ValueError(f"{path}: --download needs a folder of this machine, got a URL")
        download_source(Path(path), kind)
    found = _find(path, kind, labels)
    if split not in found.splits and (found.splits or split is not None):
        has = f"the splits {', '.join(found.splits)}" if found.splits else "no splits"
        raise ValueError(f"{path}: {found.kind} has {has}: choose one of them as split, got {split}")
    return found.read(split)


def source_splits(path: str | Path, kind: str | None = None, labels: str | Path | None = None) -> tuple[str, ...]:
    """("train", "test") and the like, or () if the source is one whole."""
    return _find(path, kind, labels).splits


def _find(path: str | Path, kind: str | None, labels: str | Path | None) -> Found:
    if kind not in (None, *KINDS):
        raise ValueError(f"unknown kind of source {kind!r}: expected --source to be one of {', '.join(KINDS)}")
    if labels is not None and kind not in (None, "folder"):
        raise ValueError(f"--labels is for image files, --source folder; {kind} has labels of its own")
    if not is_url(str(path)) and not Path(path).exists():
        raise ValueError(f"{path}: no such file or folder; give the path of a data set, or fetch one with --download")
    if labels is not None:
        return folder_layout.find_labelled(files_at(str(path)), str(labels))
    if is_url(str(path)):
        if kind in (None, "folder"):
            found = folder_layout.find_images(RemoteFiles(str(path)), asked=kind is not None)
            if found is not None:
                return found
        return _found_below(local_copy(str(path)), kind, str(path))
    return _found_below(Path(path), kind, str(path))


def _found_below(path: Path, kind: str | None, where: str) -> Found:
    """where: the path or URL that the user gave, for errors."""
    if kind is None:
        return _recognise(path, where)
    found = _FORMATS[kind].find(path, kind, True)
    if found is None:
        if kind == "npz" and (arrays := npz.npy_files(path)):
            raise ValueError(f"{where}: {arrays}")
        raise ValueError(f"{where}: no {kind} here: looked for {_FORMATS[kind].looks_for}")
    return found


def _recognise(path: Path, where: str) -> Found:
    """The official sets go before the others: folders of images may lie beside their files."""
    for kinds in (_OFFICIAL, ("npz", "parquet", "folder")):
        found = [found for kind in kinds if (found := _FORMATS[kind].find(path, kind, False)) is not None]
        if len(found) > 1:
            names = ", ".join(one.kind for one in found)
            raise ValueError(f"{where}: could be any of {names}: say which with --source KIND")
        if found:
            return found[0]
    if reason := npz.npy_files(path) or folder_layout.flat_images(files_at(str(path)), where) or _tars(path, where):
        raise ValueError(f"{where}: {reason}")
    if path.is_dir() and not is_url(where) and not any(path.iterdir()):
        raise ValueError(f"{where}: the folder is empty")
    looked_for = "; ".join(f"{kind}: {form.looks_for}" for kind, form in _FORMATS.items())
    raise ValueError(f"{where}: no data set that is known; choose with --source KIND; looked for {looked_for}")


def _tars(path: Path, where: str) -> str | None:
    tars = [path] if path.suffix == ".tar" else sorted(path.glob("*.tar")) or sorted(path.glob("*/*.tar"))
    if not tars:
        return None
    folder = f"{where}/{tars[0].parent.name}" if tars[0].parent.parent == path else where
    return f"tars: webdataset's need no sharding, run fdt-pipeline index {folder} --out OUT; unpack any others"


def download_source(path: Path, kind: str | None) -> None:
    """Fetch all splits into `path`, in torchvision's layout: it knows the addresses and checks the sums. Files that are
    there are not fetched again."""
    if kind is None or kind not in _OFFICIAL:
        raise ValueError(f"to download, say what: expected --source to be one of {', '.join(_OFFICIAL)}, got {kind}")
    try:
        from torchvision import datasets
    except ImportError as error:
        raise ImportError("--download needs torchvision: pip install torchvision") from error
    dataset = getattr(datasets, str(_FORMATS[kind].torchvision))
    path.mkdir(parents=True, exist_ok=True)
    try:
        for split in ("train", "test"):
            options = {"split": split} if kind == "svhn" else {"train": split == "train"}
            dataset(root=str(path), download=True, **options)
    except (RuntimeError, OSError) as error:
        raise OSError(
            f"could not download {kind} to {path}: {error}; fetch the files by hand, then shard them"
        ) from error


@lru_cache(maxsize=8)
def local_copy(url: str) -> Path:
    """A copy of the folder or file at a URL, which is removed when the interpreter ends. It keeps its name, which may
    say what it is."""
    above, _, name = url.rpartition("/")
    temporary = tempfile.mkdtemp(prefix="fdt-pipeline-source-")
    atexit.register(shutil.rmtree, temporary, ignore_errors=True)
    place = Path(temporary, name or "source")
    if name.lower().endswith((".npz", ".mat")):
        _copy(RemoteFolder(above), name, place)
        return place
    names = [name] if name.lower().endswith(".parquet") else RemoteFiles(url).names()
    if any(name.lower().endswith(".parquet") for name in names):
        raise ValueError(f"{url}: {parquet.NOT_REMOTE}")
    if not names:
        raise ValueError(f"{url}: no files there; give the URL of a data set")
    if len(names) > MAX_FILES:
        raise ValueError(
            f"{url}: {len(names)} files, which are no image folder; expected those of an official data set, at most "
            f"{MAX_FILES}; name the folder that holds them"
        )
    folder = RemoteFolder(url)
    for file in names:
        _copy(folder, file, place / file)
    return place


def _copy(folder: RemoteFolder, name: str, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with folder.open(name) as source, path.open("wb") as target:
        shutil.copyfileobj(source, target, 8 << 20)
