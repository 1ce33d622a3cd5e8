"""Which files of an image folder are its images.

Hidden files are none. Files whose extension clearly says something else (.txt, .json, ...) are left out, with one
warning that counts and names them. Everything else must be an image: what Pillow cannot open is an error.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterable, Iterator
from pathlib import Path

_EXTENSIONS = """
.7z .bz2 .cfg .conf .csv .dat .db .doc .docx .gz .h5 .hdf5 .htm .html .ini .ipynb .js .json .jsonl .lnk .log .md
.md5 .npy .npz .parquet .pdf .pickle .pkl .proto .pt .pth .py .pyc .rar .rst .sh .sha256 .sqlite .tar .tex .tgz
.toml .tsv .txt .url .xls .xlsx .xml .xz .yaml .yml .zip .zst .avi .mkv .mov .mp3 .mp4 .wav
"""
NOT_IMAGES = frozenset(_EXTENSIONS.split())


def subfolders(folder: Path) -> list[Path]:
    """Sorted by name, hidden ones left out."""
    if not folder.is_dir():
        return []
    return sorted(path for path in folder.iterdir() if path.is_dir() and not path.name.startswith("."))


def walk(folder: Path, above: tuple[str, ...] = ()) -> Iterator[Path]:
    """Every file below the folder that is not hidden, through links to folders too; ValueError if a link loops."""
    real = os.path.realpath(folder)
    if real in above:
        raise ValueError(f"{folder}: the link leads back to a folder above it; remove it")
    for entry in sorted(os.scandir(folder), key=lambda entry: entry.name):
        if entry.name.startswith("."):
            continue
        if entry.is_dir():
            yield from walk(Path(entry.path), (*above, real))
        else:
            yield Path(entry.path)


def image_files(paths: Iterable[Path]) -> Iterator[Path]:
    return (path for path in paths if not clearly_not_an_image(path))


def clearly_not_an_image(path: Path) -> bool:
    return path.suffix.lower() in NOT_IMAGES


def warn_ignored(folder: Path, paths: Iterable[Path]) -> None:
    ignored = [path.relative_to(folder).as_posix() for path in paths if clearly_not_an_image(path)]
    if ignored:
        names = ", ".join(ignored[:3]) + (", ..." if len(ignored) > 3 else "")
        warnings.warn(f"{folder}: ignored {len(ignored)} files that are no images: {names}", stacklevel=2)


def loose_files(folder: Path) -> list[Path]:
    """The files that lie beside the subfolders; ValueError if one may be an image: it has no label."""
    files = [path for path in sorted(folder.iterdir()) if path.is_file() and not path.name.startswith(".")]
    images = [path.name for path in image_files(files)]
    if images:
        names = ", ".join(images[:3])
        raise ValueError(f"{folder}: {len(images)} images lie beside the class folders: {names}; move or remove them")
    return files
