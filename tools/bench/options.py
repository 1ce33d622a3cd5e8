"""What a bench is asked for."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from fdt_pipeline.loader.options import PAPER_MEAN, PAPER_STD
from fdt_pipeline.shards import Manifest, read_manifest

from .spec import MODELS, TIMEOUT
from .summary import TOO_WIDE
from .task import Task

FEWEST_REPEATS = 2


@dataclass(frozen=True)
class Options:
    """contenders: names, the first one is what the others are compared with. workers: processes or threads of each.
    repeats of `seconds` each, after one that is left out. widest: how far an interval may reach from its median.
    timeout: seconds without a batch after which a contender is stopped. classes, batch_sizes: what else to race with,
    one after the other. work: where contenders keep their own formats."""

    shards: Path
    contenders: tuple[str, ...]
    batch_size: int
    workers: int
    repeats: int
    seconds: float
    work: Path
    device: str = "cpu"
    size: tuple[int, int] | None = None
    model: str | None = None
    widest: float = TOO_WIDE
    timeout: float = TIMEOUT
    classes: tuple[int, ...] = ()
    batch_sizes: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        counts = {"batch-size": self.batch_size, "workers": self.workers, "classes": min(self.classes, default=1)}
        counts |= {"batch-sizes": min(self.batch_sizes, default=1)}
        for name, value in counts.items():
            if value < 1:
                raise ValueError(f"--{name} must be at least 1, got {value}")
        if self.repeats < FEWEST_REPEATS:
            raise ValueError(f"--repeats must be at least {FEWEST_REPEATS} for an interval, got {self.repeats}")
        for name in ("seconds", "widest", "timeout"):
            if not getattr(self, name) > 0:
                raise ValueError(f"--{name} must be above 0, got {getattr(self, name)}")
        if self.model not in (None, *MODELS):
            raise ValueError(f"--model must be one of {', '.join(MODELS)}, got {self.model}")
        if torch.device(self.device).type == "cuda" and not torch.cuda.is_available():
            raise ValueError(f"--device {self.device}: torch sees no GPU; leave --device out")

    def to_dict(self) -> dict[str, Any]:
        """As JSON values, without what depends on where things lie."""
        found = {key: value for key, value in vars(self).items() if key not in ("shards", "work", "contenders")}
        return {key: list(value) if isinstance(value, tuple) else value for key, value in found.items()}

    def task(self, shards: Path | None = None, batch_size: int | None = None) -> Task:
        """On these shards, or on others of the same images; ValueError for sizes that differ without --size."""
        shards = shards or self.shards
        manifest = read_manifest(shards)
        if manifest.shape is None and self.size is None:
            raise ValueError(f"{shards} holds images of different sizes: pass --size H W")
        work = self.work / manifest.sha256[:12]
        work.mkdir(parents=True, exist_ok=True)
        mean, std = PAPER_MEAN[: manifest.channels], (PAPER_STD,) * manifest.channels
        return Task(
            shards, work, manifest, batch_size or self.batch_size, self.workers, self.device,
            mean=tuple(mean), std=std, size=self.size,
        )  # fmt: skip


def describe_data(manifest: Manifest) -> dict[str, Any]:
    """Which images, without where they lie."""
    return {
        "kind": manifest.kind,
        "split": manifest.split,
        "samples": manifest.num_samples,
        "classes": len(manifest.classes),
        "shape": list(manifest.shape) if manifest.shape else None,
        "encoding": manifest.encoding,
        "megabytes": round(sum(shard.num_bytes for shard in manifest.shards) / 1e6, 1),
        "manifest_sha256": manifest.sha256,
    }
