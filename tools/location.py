"""Paths and fsspec URLs on the command line."""

from __future__ import annotations

from pathlib import Path


def location(text: str) -> str:
    """A path in its plain form (no "./", no slash at the end); a URL as it is, without a slash at the end."""
    return text.rstrip("/") if "://" in text else str(Path(text))


def below(place: str, name: str) -> str:
    return f"{place}/{name}"
