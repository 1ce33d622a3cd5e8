"""What is known of a task that is done: its tars, and what the manifest says of their samples."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from typing import Any

from .statistics import PixelStatistics


@dataclass(frozen=True)
class Part:
    """A tar as it lies in the staging folder, and its index beside it. crc32: see checksums.py."""

    name: str
    num_samples: int
    num_bytes: int
    sha256: str
    index_sha256: str
    crc32: str

    @property
    def index_name(self) -> str:
        return self.name.removesuffix(".tar") + ".idx"


@dataclass(frozen=True)
class Quarantined:
    """A sample of the source that is in no shard: its position and key there, and why."""

    position: int
    key: str
    reason: str


@dataclass
class Gathered:
    """Of the samples that were written; merging is adding up, so the order of the tasks does not matter."""

    samples_per_class: Counter[int] = field(default_factory=Counter)
    samples_per_extension: Counter[str] = field(default_factory=Counter)
    smallest: tuple[int, ...] | None = None  # of the shapes (h, w, c) in lexical order, and the largest:
    largest: tuple[int, ...] | None = None  # they are equal where all are
    statistics: PixelStatistics = field(default_factory=PixelStatistics)
    keys: dict[str, str] = field(default_factory=dict)
    quarantine: list[Quarantined] = field(default_factory=list)

    def see_shape(self, shape: tuple[int, ...]) -> None:
        self.smallest = min(self.smallest or shape, shape)
        self.largest = max(self.largest or shape, shape)

    def merge(self, other: Gathered) -> None:
        self.samples_per_class.update(other.samples_per_class)
        self.samples_per_extension.update(other.samples_per_extension)
        for shape in (other.smallest, other.largest):
            if shape:
                self.see_shape(shape)
        self.statistics.merge(other.statistics)
        self.keys.update(other.keys)
        self.quarantine += other.quarantine


@dataclass(frozen=True)
class Record:
    """task: its number. plan: fingerprint of the plan it belongs to. state: of the files that it was made of."""

    task: int
    plan: str
    state: str
    parts: tuple[Part, ...]
    gathered: Gathered

    def to_json(self) -> str:
        gathered, statistics = self.gathered, self.gathered.statistics
        statistics.settle()
        return json.dumps(
            {
                "task": self.task,
                "plan": self.plan,
                "state": self.state,
                "parts": [asdict(part) for part in self.parts],
                "samples_per_class": sorted(gathered.samples_per_class.items()),
                "samples_per_extension": gathered.samples_per_extension,
                "shapes": [gathered.smallest, gathered.largest],
                "statistics": [statistics.num_pixels, statistics.sums, statistics.squares],
                "keys": gathered.keys,
                "quarantine": [asdict(sample) for sample in gathered.quarantine],
            }
        )


def record_from_json(text: str) -> Record:
    """What `to_json` wrote."""
    content: dict[str, Any] = json.loads(text)
    smallest, largest = (tuple(shape) if shape else None for shape in content["shapes"])
    num_pixels, sums, squares = content["statistics"]
    gathered = Gathered(
        Counter(dict(content["samples_per_class"])),
        Counter(content["samples_per_extension"]),
        smallest,
        largest,
        PixelStatistics(num_pixels, sums, squares),
        content["keys"],
        [Quarantined(**sample) for sample in content["quarantine"]],
    )
    parts = tuple(Part(**part) for part in content["parts"])
    return Record(content["task"], content["plan"], content["state"], parts, gathered)


def merged(records: Iterable[Record]) -> Gathered:
    total = Gathered()
    for record in records:
        total.merge(record.gathered)
    return total
