"""Which files of an image folder are its images.

Files whose extension clearly says something else (.txt, .json, ...) are left out, with one warning that counts and
names them. Everything else must be an image: one that is not is an error when it is asked for.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable

from .tree import Tree

_EXTENSIONS = """
.7z .bz2 .cfg .conf .csv .dat .db .doc .docx .gz .h5 .hdf5 .htm .html .ini .ipynb .js .json .jsonl .lnk .log .md
.md5 .npy .npz .parquet .pdf .pickle .pkl .proto .pt .pth .py .pyc .rar .rst .sh .sha256 .sqlite .tar .tex .tgz
.toml .tsv .txt .url .xls .xlsx .xml .xz .yaml .yml .zip .zst .avi .mkv .mov .mp3 .mp4 .wav
"""
NOT_IMAGES = frozenset(_EXTENSIONS.split())


def image_files(names: Iterable[str]) -> list[str]:
    return [name for name in names if not clearly_not_an_image(name)]


def clearly_not_an_image(name: str) -> bool:
    return extension(name) in NOT_IMAGES


def extension(name: str) -> str:
    """In lower case, with its dot; "" if there is none."""
    last = name.rpartition("/")[2]
    stem, dot, after = last.rpartition(".")
    return f".{after.lower()}" if dot and stem else ""


def warn_ignored(where: str, names: Iterable[str]) -> None:
    ignored = [name for name in names if clearly_not_an_image(name)]
    if ignored:
        shown = ", ".join(ignored[:3]) + (", ..." if len(ignored) > 3 else "")
        warnings.warn(f"{where}: ignored {len(ignored)} files that are no images: {shown}", stacklevel=2)


def loose_files(tree: Tree, below: str) -> list[str]:
    """The files that lie beside the subfolders; ValueError if one may be an image: it has no label."""
    files = tree.files(below)
    images = image_files(files)
    if images:
        names = ", ".join(images[:3])
        where = joined(tree.url, below)
        raise ValueError(f"{where}: {len(images)} images lie beside the class folders: {names}; move or remove them")
    return files


def joined(*parts: str) -> str:
    return "/".join(part for part in parts if part)
