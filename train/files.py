"""What a run leaves on disk: its files and its log.

Files are written under a temporary name and renamed, so that a final name is always whole. The log is log.jsonl and
TensorBoard, one record each for the same numbers.
"""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.tensorboard import SummaryWriter

from fdt_pipeline.storage.atomic import atomic_file

CHECKPOINT = "checkpoint.pt"
BEST = "best.pt"
CONFIG = "config.json"
LOG = "log.jsonl"
RESULTS = "results.json"
Log = Callable[..., None]  # (kind, step, epoch, **figures): appends a record of them


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


def prepare_json(path: Path) -> None:
    """OSError now, rather than after an hour of attacks, if the file cannot be written."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_file(path.with_name(f"{path.name}.try")):
        pass
    path.with_name(f"{path.name}.try").unlink()


def write_checkpoint(path: Path, state: dict[str, Any]) -> None:
    data = io.BytesIO()  # torch.save hides the reason of a write that fails, such as a full disk
    torch.save(state, data)
    with atomic_file(path) as file:
        file.write(data.getbuffer())


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


def check_folder(out: Path) -> None:
    if out.exists() and not out.is_dir():
        raise ValueError(f"{out} is a file, expected a folder: pass another --out")


def hash_weights(state: Mapping[str, Tensor]) -> str:
    """sha256 of a state_dict: the same on every device and in every memory format."""
    digest = hashlib.sha256()
    for name, value in sorted(state.items()):
        digest.update(f"{name} {value.dtype} {tuple(value.shape)} ".encode())
        digest.update(value.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


@contextmanager
def fitting(path: Path) -> Iterator[None]:
    """What is read from a damaged or foreign file as a ValueError that names it, not as an error of the code inside."""
    what = "a run's configuration" if path.name == CONFIG else "a checkpoint of this trainer"
    try:
        yield
    except KeyError as error:
        raise ValueError(f"{path} is not {what} (no {error})") from error
    except (RuntimeError, TypeError) as error:
        reason = str(error).splitlines()[0]
        raise ValueError(f"{path} does not fit the run that it lies in ({reason}): delete it to train again") from error


def check_same(what: str, saved: dict[str, Any], wanted: dict[str, Any]) -> None:
    """ValueError that names every field in which a checkpoint differs from what is asked for now."""
    fields = differing_fields(saved, wanted)
    if fields:
        differing = [f"{name} was {a!r} and is now {b!r}" for name, a, b in fields]
        raise ValueError(f"the checkpoint is of another {what}: {'; '.join(differing)}. Use another --out, or go back")


def differing_fields(a: Any, b: Any, prefix: str = "") -> list[tuple[str, Any, Any]]:
    """(dotted name, value in a, value in b) of the leaves of two JSON values that differ; None where one lacks it."""
    if isinstance(a, Mapping) and isinstance(b, Mapping):
        names = sorted({*a, *b})
        dotted = [(name, f"{prefix}.{name}" if prefix else str(name)) for name in names]
        return [field for name, path in dotted for field in differing_fields(a.get(name), b.get(name), path)]
    return [] if a == b else [(prefix, a, b)]


@contextmanager
def run_log(out: Path, resume_step: int) -> Iterator[Log]:
    """Yields what appends a record. What a killed run logged after its checkpoint (step) is dropped."""
    path = out / LOG
    kept = [record for record in _records(path) if record["step"] <= resume_step] if resume_step else []
    write_text(path, "".join(json.dumps(record) + "\n" for record in kept))
    with path.open("a") as file, SummaryWriter(str(out / "tensorboard"), purge_step=resume_step + 1) as board:

        def add(kind: str, step: int, epoch: int, **values: float) -> None:
            record: dict[str, Any] = {"kind": kind, "step": step, "epoch": epoch, **values}
            file.write(json.dumps(record, allow_nan=False) + "\n")
            file.flush()
            for name, value in values.items():
                board.add_scalar(f"{kind}/{name}", value, step)

        yield add


def _records(path: Path) -> list[dict[str, Any]]:
    """The whole lines of a log; a kill may have cut the last one."""
    records = []
    for line in path.read_text().splitlines() if path.exists() else []:
        try:
            record = json.loads(line)
        except ValueError:
            break
        records.append(record)
    return records
