"""Where CUDA's headers lie: DALI's own headers include them, even for the CPU.

They come from wheels, of which torch brings the first alone. A CUDA toolkit is neither needed nor looked for.
DALI 1.34 (CUDA 11) and 2.4 (CUDA 13) compile with those of CUDA 12 and 13 alike, in any mixture of 13.0 and 13.5.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import metadata, util
from pathlib import Path

from fdt_pipeline.native.unavailable import WAY_OUT, NativeUnavailable


@dataclass(frozen=True)
class Wheel:
    """A wheel, a header that only it has, and the folders below `nvidia` where that may lie."""

    name: str
    header: str
    folders: tuple[str, ...]


# One layout a major version, the newest first; all headers are taken from one of them.
LAYOUTS: Mapping[int, tuple[Wheel, ...]] = {
    13: (
        Wheel("nvidia-cuda-runtime", "cuda_runtime.h", ("cu13/include",)),
        Wheel("nvidia-cuda-crt", "crt/host_config.h", ("cu13/include",)),
        Wheel("nvidia-cuda-cccl", "nv/target", ("cu13/include", "cu13/include/cccl")),
    ),
    12: (
        Wheel("nvidia-cuda-runtime-cu12", "cuda_runtime.h", ("cuda_runtime/include",)),
        Wheel("nvidia-cuda-nvcc-cu12", "crt/host_config.h", ("cuda_nvcc/include",)),
        Wheel("nvidia-cuda-cccl-cu12", "nv/target", ("cuda_cccl/include",)),
    ),
}


@dataclass(frozen=True)
class Headers:
    """Folders to include, and the version of CUDA that they are of, such as "13.0"."""

    folders: tuple[Path, ...]
    version: str


def find_headers() -> Headers:
    """NativeUnavailable, with the wheels to install, where they are not complete."""
    roots = nvidia_folders()
    for wheels in LAYOUTS.values():
        folders = [_folder(wheel, roots) for wheel in wheels]
        if all(folders):
            found = tuple(dict.fromkeys(folder for folder in folders if folder))
            return Headers(found, _version(found[0]))
    raise NativeUnavailable(_what_is_missing(roots))


def nvidia_folders() -> list[Path]:
    """The folders of the package `nvidia`: what it says itself, and what the wheels say, as it may be split."""
    spec = util.find_spec("nvidia")
    places = [] if spec is None else [Path(place) for place in spec.submodule_search_locations or []]
    for wheel in (wheel for wheels in LAYOUTS.values() for wheel in wheels):
        try:
            places.append(Path(str(metadata.distribution(wheel.name).locate_file("nvidia"))))
        except metadata.PackageNotFoundError:
            continue
    return list(dict.fromkeys(places))


def _folder(wheel: Wheel, roots: list[Path]) -> Path | None:
    places = (root / folder for root in roots for folder in wheel.folders)
    return next((place for place in places if (place / wheel.header).is_file()), None)


def _version(folder: Path) -> str:
    """ "13.0" of `#define CUDART_VERSION 13000`."""
    text = (folder / "cuda_runtime_api.h").read_text(errors="replace")
    found = re.search(r"^#define\s+CUDART_VERSION\s+(\d+)", text, re.MULTILINE)
    return f"{int(found[1]) // 1000}.{int(found[1]) % 1000 // 10}" if found else "unknown"


def _what_is_missing(roots: list[Path]) -> str:
    missing = [wheel for wheel in LAYOUTS[13] if _folder(wheel, roots) is None]
    headers = ", ".join(wheel.header for wheel in missing)
    wheels = " ".join(f'"{wheel.name}>=13.0,<14"' for wheel in missing)
    return f"CUDA's headers, which DALI's own need, are incomplete (no {headers}): pip install {wheels}; {WAY_OUT}"
