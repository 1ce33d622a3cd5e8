"""What compiles: the compiler, CUDA's headers where they are needed, the C library; or why there is none."""

from __future__ import annotations

import platform
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from fdt_pipeline.native.compiler import Compiler, find_compiler
from fdt_pipeline.native.headers import find_headers
from fdt_pipeline.native.unavailable import NativeUnavailable


@dataclass(frozen=True)
class Toolchain:
    """`ingredients` is its half of a library's key."""

    compiler: Compiler
    ingredients: Mapping[str, str]
    headers: tuple[Path, ...] = field(default=())


def find_toolchain(with_headers: bool) -> Toolchain | NativeUnavailable:
    """An obstacle is returned, not raised: it does not matter where the library has been built before."""
    try:
        compiler = find_compiler()
        ingredients = {"compiler": compiler.version, "libc": " ".join(platform.libc_ver())}
        if not with_headers:
            return Toolchain(compiler, ingredients)
        headers = find_headers()
    except NativeUnavailable as obstacle:
        return obstacle
    return Toolchain(compiler, {**ingredients, "cuda_headers": headers.version}, headers.folders)
