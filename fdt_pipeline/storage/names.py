"""Names of files below a folder: they may not lead out of it."""

from __future__ import annotations


def checked_name(name: str) -> str:
    """The name itself; ValueError if it is absolute, empty or has a part that is "..", "." or empty."""
    if any(part in ("", ".", "..") for part in name.split("/")) or "\0" in name:
        raise ValueError(f"expected the name of a file below the folder, got {name!r}")
    return name
