"""Which files of a folder are shards, and which folders hold a set of them. Folders are paths or fsspec URLs."""

from __future__ import annotations

import os

from ..sources.source import check_no_pointer
from ..storage import Folder, located, open_folder
from .manifest import Manifest, ShardError, manifest_from_json

MANIFEST_NAME = "manifest.json"
STAGING_NAME = ".sharding"  # staging.py
Location = str | os.PathLike[str] | Folder


def shard_files(folder: Folder) -> list[str]:
    """The names of the tars and indexes there."""
    return [name for name in folder.names() if name.startswith("shard-") and name.endswith((".tar", ".idx"))]


def foreign_files(folder: Folder, manifest: Manifest) -> list[str]:
    """The tars and indexes, of whatever name, that the manifest does not list; none where the set is of tars of other
    programs, as those beside them may be of another set."""
    if manifest.in_place:
        return []
    listed = manifest.files
    return [name for name in folder.names() if name.lower().endswith((".tar", ".idx")) and name not in listed]


def read_manifest(location: Location) -> Manifest:
    """ShardError for a broken manifest or shards without one; ValueError where no shards are."""
    folder = open_folder(location)
    check_is_folder(folder)
    try:
        text = folder.read(MANIFEST_NAME)
    except FileNotFoundError:
        raise _no_manifest(folder) from None
    try:
        return manifest_from_json(text.decode("utf-8"))
    except ValueError as error:
        raise ShardError(f"{folder.path(MANIFEST_NAME)}: {error}; shard the source again with --overwrite") from None


def check_is_folder(folder: Folder) -> None:
    if folder.is_file():
        raise ValueError(
            f"{folder.url}: is a file, expected a folder; choose a folder of shards, or one to write them to"
        )


def webdataset_files(location: Location) -> dict[str, list[str]]:
    """The files of a folder of shards, as arguments of DALI's reader: `fn.readers.webdataset(**files)` gives (image
    file, label in ASCII, or of tars of other programs the file that has the label). ext names every format in which
    images are stored, such as ["jpg;png", "cls"].

    ValueError for a URL, as DALI reads files of this machine; ShardError if a tar or an index is missing.
    """
    folder = open_folder(location)
    if folder.local is None:
        raise ValueError(f"{folder.url}: DALI's reader needs files of this machine: copy the shards, or use FDTLoader")
    manifest = read_manifest(folder)
    check_shards(folder, manifest)
    places = [located(folder, shard.name) for shard in manifest.shards]
    tars = [there.path(name) for there, name in places if there.local is not None]
    if len(tars) < len(places):
        raise ValueError(
            f"{folder.url}: has tars at URLs, and DALI's reader needs files of this machine: use FDTLoader"
        )
    return {
        "paths": tars,
        "index_paths": [folder.path(shard.index_name) for shard in manifest.shards],
        "ext": [";".join(manifest.samples_per_extension), manifest.labels.partition(":")[0]],
    }


def check_shards(location: Location, manifest: Manifest) -> None:
    """Cheap: ShardError unless every tar is there with its size, and every index is there. The remote tars of a local
    set are not asked for: they are checked when they are fetched."""
    folder = open_folder(location)
    expected = {shard.name: shard.num_bytes for shard in manifest.shards}
    for name in manifest.files:
        there, file = located(folder, name)
        if folder.local and not there.local:
            continue
        got = there.size(file)
        if got is None:
            raise ShardError(f"{there.path(file)}: missing; {remedy_of(manifest)}")
        if got != expected.get(name, got):
            _check_no_pointer(there, file, got)
            raise ShardError(f"{there.path(file)}: expected {expected[name]} bytes, got {got}; {remedy_of(manifest)}")


def _check_no_pointer(folder: Folder, file: str, num_bytes: int) -> None:
    """ShardError if Git LFS has not fetched the file yet: sharding again would be the wrong advice."""
    try:
        check_no_pointer(folder.read(file) if num_bytes < 1024 else b"")
    except ValueError as error:
        raise ShardError(f"{folder.path(file)}: {error}") from None


def remedy_of(manifest: Manifest) -> str:
    """What to do where its files are not what it says."""
    return "run fdt-pipeline index again" if manifest.in_place else "shard the source again with --overwrite"


def shard_sets(location: Location) -> tuple[Folder, ...]:
    """The folder itself if it holds shards, else its subfolders that do, train first."""
    folder = open_folder(location)
    if folder.size(MANIFEST_NAME) is not None:
        return (folder,)
    sets = [] if folder.is_file() else _sets_below(folder)
    return tuple(sets) if sets and not shard_files(folder) else (folder,)


def classes_beside(location: str) -> tuple[str, ...] | None:
    """The classes of the set in the folder `train` beside this one, if there is one: labels of a data set's splits are
    numbers of the same classes, also where one of them has no sample of some."""
    above, slash, name = location.rstrip("/").rpartition("/")
    if name == "train" or above.endswith(":/"):
        return None
    train = open_folder(f"{above}{slash}train")
    return read_manifest(train).classes if train.size(MANIFEST_NAME) is not None else None


def _sets_below(folder: Folder) -> list[Folder]:
    names = sorted(folder.subfolders(), key=lambda name: (name != "train", name))
    return [below for name in names if _holds_shards(below := folder.folder(name))]


def _holds_shards(folder: Folder) -> bool:
    """Whether it holds shards, or an unfinished run, which must not be missed."""
    return folder.size(MANIFEST_NAME) is not None or bool(shard_files(folder)) or STAGING_NAME in folder.subfolders()


def _no_manifest(folder: Folder) -> ValueError:
    if not folder.exists():
        above = os.path.dirname(folder.url.rstrip("/"))
        if above and open_folder(above).size(MANIFEST_NAME) is not None:
            return ValueError(
                f"{folder.url}: no such folder, but {above} is a set without splits: pass {above}, or shard images "
                "that have folders train and test above their classes"
            )
        if beside := ", ".join(found.url for found in _sets_below(open_folder(above))) if above else "":
            return ValueError(f"{folder.url}: no such folder: choose one of {beside}")
        return ValueError(f"{folder.url}: no such folder; make one with fdt-pipeline shard SOURCE {folder.url}")
    if STAGING_NAME in folder.subfolders():
        return ShardError(
            f"{folder.url}: an unfinished run, no shards yet: go on with fdt-pipeline shard SOURCE OUT --resume"
        )
    if shard_files(folder):
        return ShardError(
            f"{folder.url}: shards without {MANIFEST_NAME}: writing them was interrupted, so shard again with "
            f"--overwrite; or they are another program's: {_indexing(folder)}"
        )
    sets = [below.url for below in _sets_below(folder)]
    if sets:
        return ValueError(f"{folder.url}: no shards here, but in its subfolders: choose one of {', '.join(sets)}")
    if any(name.endswith(".tar") for name in folder.names()):
        return ValueError(f"{folder.url}: tars without {MANIFEST_NAME}: make one with {_indexing(folder)}")
    if folder.subfolders() or folder.names():  # images, perhaps, which shards must not lie among
        return ValueError(f"{folder.url}: no shards here; if these are images: run fdt-pipeline shard {folder.url} OUT")
    return ValueError(f"{folder.url}: no shards here: run fdt-pipeline shard SOURCE {folder.url}")


def _indexing(folder: Folder) -> str:
    return f"fdt-pipeline index {folder.url} --out {folder.url}"
