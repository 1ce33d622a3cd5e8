"""What a run leaves on disk: written under a temporary name and renamed, so that a final name is always whole."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch

from fdt_pipeline.shards.atomic import atomic_file

CHECKPOINT = "checkpoint.pt"
BEST = "best.pt"
CONFIG = "config.json"
LOG = "log.jsonl"
RESULTS = "results.json"


def write_text(path: Path, text: str) -> None:
    with atomic_file(path) as file:
        file.write(text.encode())


def write_json(path: Path, content: Any) -> None:
    write_text(path, json.dumps(content, indent=2) + "\n")


def read_json(path: Path) -> Any:
    try:
        return json.loads(path.read_text())
    except ValueError as error:
        raise ValueError(f"{path} is not valid JSON ({error}): delete it, and make it again") from None


def write_checkpoint(path: Path, state: dict[str, Any]) -> None:
    with atomic_file(path) as file:
        torch.save(state, file)


def read_checkpoint(path: Path) -> dict[str, Any]:
    """ValueError if the file is not a checkpoint; nothing but tensors and plain values is unpickled."""
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise ValueError(
            f"{path}: no checkpoint there; has `python -m train fit` run with this folder as --out?"
        ) from None
    except Exception as error:
        raise ValueError(f"{path} cannot be read as a checkpoint ({error}); delete it to train again") from error
