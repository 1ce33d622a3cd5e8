"""Which files of a folder are shards, and which folders hold a set of them."""

from __future__ import annotations

from pathlib import Path

from .errors import ShardError
from .manifest import Manifest, manifest_from_json

MANIFEST_NAME = "manifest.json"


def shard_files(folder: Path) -> list[Path]:
    """The tars and indexes there, by name."""
    return sorted(path for path in folder.glob("shard-*") if path.suffix in (".tar", ".idx"))


def foreign_files(folder: Path, manifest: Manifest) -> list[Path]:
    """The tars and indexes, of whatever name, that the manifest does not list."""
    listed = {name for shard in manifest.shards for name in (shard.name, shard.index_name)}
    return sorted(
        path for path in folder.iterdir() if path.suffix.lower() in (".tar", ".idx") and path.name not in listed
    )


def read_manifest(folder: str | Path) -> Manifest:
    """ShardError for a broken manifest or shards without one; ValueError where no shards are."""
    folder = Path(folder)
    path = folder / MANIFEST_NAME
    check_is_folder(folder)
    if not folder.is_dir():
        raise ValueError(f"{folder}: no such folder; make one with python -m tools shard SOURCE {folder}")
    if not path.is_file():
        raise _no_manifest(folder)
    try:
        return manifest_from_json(path.read_bytes().decode("utf-8"))
    except ValueError as error:
        raise ShardError(f"{path}: {error}; shard the source again with --overwrite") from None


def check_is_folder(path: Path) -> None:
    if path.is_file():
        raise ValueError(f"{path}: is a file, expected a folder; choose a folder of shards, or one to write them to")


def check_vacant(out: str | Path, overwrite: bool) -> None:
    """ValueError if it is a file, or if shards are there already and `overwrite` does not allow to remove them."""
    out = Path(out)
    for folder in (out, *out.parents):
        check_is_folder(folder)
    if overwrite:
        return
    if (out / MANIFEST_NAME).exists():
        raise ValueError(f"{out}: holds shards already; replace them with --overwrite or choose another folder")
    if shard_files(out):
        raise ValueError(
            f"{out}: holds shard files without {MANIFEST_NAME}, of an interrupted run or of another program; "
            "replace them with --overwrite or choose another folder"
        )


def shard_sets(folder: str | Path) -> tuple[Path, ...]:
    """The folder itself if it holds shards, else its subfolders that do, train first."""
    folder = Path(folder)
    if _holds_shards(folder):
        return (folder,)
    below = sorted(folder.iterdir()) if folder.is_dir() else []
    sets = [path for path in below if path.is_dir() and _holds_shards(path)]
    return tuple(sorted(sets, key=lambda path: path.name != "train")) or (folder,)


def _holds_shards(folder: Path) -> bool:
    return (folder / MANIFEST_NAME).is_file() or bool(shard_files(folder))


def _no_manifest(folder: Path) -> ValueError:
    if shard_files(folder):
        return ShardError(
            f"{folder}: shards without {MANIFEST_NAME}: writing them was interrupted; shard again with --overwrite"
        )
    sets = [str(path) for path in shard_sets(folder) if path != folder]
    if sets:
        return ValueError(f"{folder}: no shards here, but in its subfolders: choose one of {', '.join(sets)}")
    return ValueError(f"{folder}: no shards here: run python -m tools shard SOURCE {folder}")
