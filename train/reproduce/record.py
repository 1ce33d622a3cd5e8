"""The result of one row and seed as one JSON file: all that tables, plots and the report are made from."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

from train.files import LOG, fitting, read_json, write_text
from train.reproduce.rows import Row
from train.robust_accuracy import Robustness

FORMAT = 1
RECORDS = "records"


@dataclass(frozen=True)
class Record:
    """`content` as in the file (see `make_record`); accuracies are shares."""

    row: Row
    seed: int
    content: dict[str, Any]

    @classmethod
    def from_content(cls, content: dict[str, Any]) -> Record:
        return cls(Row(**content["row"]), content["seed"], content)

    @property
    def name(self) -> str:
        return record_name(self.row, self.seed)

    @property
    def clean(self) -> float:
        """The final epoch's, over the whole test set."""
        return float(self.content["training"]["final"]["accuracy"])

    @property
    def robustness(self) -> Robustness:
        return Robustness.from_dict(self.content["robustness"])

    @property
    def autoattack(self) -> float | None:
        """Accuracy under AutoAttack, None where it was not run."""
        result = self.content["autoattack"]
        return None if result is None else float(result["accuracy"])


def record_name(row: Row, seed: int) -> str:
    return f"{row.key}-seed{seed}.json"


def make_record(row: Row, seed: int, settings: dict[str, Any], **parts: Any) -> dict[str, Any]:
    """parts: training (results.json), precision, curves, robustness, attack_seconds, autoattack."""
    return {"format": FORMAT, "row": asdict(row), "seed": seed, "settings": settings, **parts}


def write_record(out: Path, content: dict[str, Any]) -> None:
    """One line a field: a record is 10 kB, and thirty of them are to be kept with the code."""
    name = record_name(Row(**content["row"]), content["seed"])
    lines = [f"{json.dumps(key)}: {json.dumps(value)}" for key, value in content.items()]
    (out / RECORDS).mkdir(parents=True, exist_ok=True)
    write_text(out / RECORDS / name, "{\n" + ",\n".join(lines) + "\n}\n")


def read_records(out: Path) -> list[Record]:
    """Those in out/records, by name. ValueError for one of another format."""
    return [read_record(path) for path in sorted((out / RECORDS).glob("*.json"))]


def read_record(path: Path) -> Record:
    content = read_json(path)
    with fitting(path):
        if content["format"] != FORMAT:
            raise ValueError(f"{path} has format {content['format']}, expected {FORMAT}: another version made it")
        return Record.from_content(content)


def learning_curves(run: Path) -> dict[str, list[float]]:
    """From a run's log, one value an epoch: test_accuracy, and train_loss and train_kl (nats), means of the epoch."""
    records = [json.loads(line) for line in (run / LOG).read_text().splitlines()]
    test = [record["accuracy"] for record in records if record["kind"] == "test"]
    train = [record for record in records if record["kind"] == "train"]
    epochs = sorted({record["epoch"] for record in train})
    return {
        "test_accuracy": _rounded(test),
        "train_loss": _rounded(fmean(r["loss"] for r in train if r["epoch"] == epoch) for epoch in epochs),
        "train_kl": _rounded(fmean(r["kl"] for r in train if r["epoch"] == epoch) for epoch in epochs),
    }


def _rounded(values: Iterable[float]) -> list[float]:
    """To five places: they are for a picture."""
    return [round(value, 5) for value in values]
