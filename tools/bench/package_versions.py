"""Versions of all that contenders are made of."""

from __future__ import annotations

from importlib import metadata

from train.environment import versions

PACKAGES = ("pillow", "scipy", "timm", "litdata", "mosaicml-streaming", "ffcv")


def package_versions() -> dict[str, str | None]:
    """None for what is not installed."""
    found = versions()
    for name in PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            found[name] = None
    return found
