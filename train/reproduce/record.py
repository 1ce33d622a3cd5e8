"""A folder of results: plan.json, and in records/ a JSON file for each row and seed; what may stand in one table.

Tables, plots and the report are made from these files alone. In one table seed, hardware and versions may differ, and
are listed.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

from train.files import LOG, check_folder, differing_fields, fitting, read_json, write_json, write_text
from train.reproduce.paper import Row
from train.reproduce.settings import Settings
from train.robust_accuracy import Robustness

FORMAT = 1
RECORDS = "records"
PLAN = "plan.json"


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
    def autoattacks(self) -> list[dict[str, Any]]:
        """AutoAttack at each radius that was run, the smallest first (measures.py); older records have one or None."""
        found = self.content["autoattack"] or []
        return [found] if isinstance(found, dict) else found

    def under_autoattack(self, eps: float) -> float | None:
        """Accuracy, None where it was not run at this radius."""
        return next((float(found["accuracy"]) for found in self.autoattacks if found["eps"] == eps), None)

    @property
    def calibration_error(self) -> float | None:
        """None in records of older versions."""
        found = self.content.get("calibration")
        return None if found is None else float(found["error"])


def record_name(row: Row, seed: int) -> str:
    return f"{row.key}-seed{seed}.json"


def make_record(row: Row, seed: int, settings: dict[str, Any], **parts: Any) -> dict[str, Any]:
    """parts: training (results.json), precision, curves, robustness, attack_seconds, calibration, autoattack."""
    return {"format": FORMAT, "row": asdict(row), "seed": seed, "settings": settings, **parts}


def write_record(out: Path, content: dict[str, Any]) -> None:
    """One line a field: a record is 10 kB, and thirty of them are to be kept with the code."""
    name = record_name(Row(**content["row"]), content["seed"])
    lines = [f"{json.dumps(key)}: {json.dumps(value)}" for key, value in content.items()]
    (out / RECORDS).mkdir(parents=True, exist_ok=True)
    write_text(out / RECORDS / name, "{\n" + ",\n".join(lines) + "\n}\n")


def read_records(out: Path) -> list[Record]:
    """The records in out/records, by name."""
    return [read_record(path) for path in sorted((out / RECORDS).glob("*.json"))]


def read_record(path: Path) -> Record:
    """ValueError for a record of another format."""
    content = read_json(path)
    with fitting(path):
        if content["format"] != FORMAT:
            raise ValueError(f"{path} has format {content['format']}, expected {FORMAT}: another version made it")
        return Record.from_content(content)


def learning_curves(run: Path) -> dict[str, list[float]]:
    """From a run's log, one value an epoch: test_accuracy, and train_loss and train_kl (nats), means of the epoch."""
    records = [json.loads(line) for line in (run / LOG).read_text().splitlines()]
    curves: dict[str, dict[int, list[float]]] = {"test_accuracy": {}, "train_loss": {}, "train_kl": {}}
    for record in records:
        for name in {"test": ["accuracy"], "train": ["loss", "kl"]}[record["kind"]]:
            curves[f"{record['kind']}_{name}"].setdefault(record["epoch"], []).append(record[name])
    # To five places: they are for a picture.
    return {name: [round(fmean(values), 5) for values in epochs.values()] for name, epochs in curves.items()}


def write_plan(
    out: Path,
    settings: Settings,
    rows: Sequence[Row],
    missing: Mapping[str, str],
    diverged: Mapping[str, str] | None = None,
) -> dict[str, str]:
    """plan.json: the settings of this folder, and what of its rows cannot be had. -> the diverged runs so far.

    ValueError, naming the fields, where the folder has other settings. Rows asked for before stay in the plan.
    """
    out.mkdir(parents=True, exist_ok=True)
    path = out / PLAN
    old = read_json(path) if path.exists() else {"settings": settings.to_dict(), "missing": {}, "diverged": {}}
    check_settings(old["settings"], settings.to_dict(), str(out), "the command")
    asked = {row.dataset for row in rows}
    kept = {name: reason for name, reason in old["missing"].items() if name not in asked}
    noted = dict(old["diverged"] if diverged is None else diverged)
    gone = {name: reason for name, reason in missing.items() if name in asked}
    write_json(path, {"settings": settings.to_dict(), "missing": {**kept, **gone}, "diverged": noted})
    return noted


def read_plan(out: Path, table: str | None = None) -> dict[str, Any]:
    """ValueError where `out` holds no table, or another one than `table`."""
    if not (out / PLAN).is_file():
        raise ValueError(f"{out} holds no table: make one with `python -m train reproduce table1 --out {out} ...`")
    plan = dict(read_json(out / PLAN))
    held = plan["settings"]["table"]
    if table is not None and table != held:
        raise ValueError(f"{out} holds {held}, not {table}")
    return plan


def merge(folders: Sequence[Path], out: Path) -> None:
    """Copies the records of `folders` to `out`, beside those that it has. ValueError, and nothing is written, where
    they are not of one configuration (see `check_mixable`)."""
    check_folder(out)
    sources = [*folders, *([out] if (out / PLAN).is_file() else [])]
    plans = {str(folder): read_plan(folder) for folder in sources}
    first, *others = plans
    for other in others:
        check_settings(plans[first]["settings"], plans[other]["settings"], first, other)
    records = check_mixable([(str(folder), record) for folder in sources for record in read_records(folder)])
    done = {record.row.dataset for record in records}
    names = {f"{record.row.key} seed {record.seed}" for record in records}
    missing = {name: reason for plan in plans.values() for name, reason in plan["missing"].items() if name not in done}
    diverged = {name: why for plan in plans.values() for name, why in plan["diverged"].items() if name not in names}
    out.mkdir(parents=True, exist_ok=True)
    for record in records:
        write_record(out, record.content)
    write_json(out / PLAN, {"settings": plans[first]["settings"], "missing": missing, "diverged": diverged})


def check_settings(old: Mapping[str, Any], new: Mapping[str, Any], old_name: str, new_name: str) -> None:
    """ValueError that names every field in which two folders differ."""
    _refuse_differences(
        "these are results of different settings", old, new, old_name, new_name, ". Use a folder for each"
    )


def check_mixable(records: Sequence[tuple[str, Record]]) -> list[Record]:
    """(folder, record) -> one record a row and seed.

    ValueError, naming the fields, where rows differ in settings, recipe (but for the seed), precision or shards, and
    where a row and seed is there twice with other figures.
    """
    kept: dict[str, Record] = {}
    first: dict[str, tuple[str, Any]] = {}
    for folder, record in records:
        name = f"{folder} ({record.name})"
        for scope, part in _parts(record).items():
            where, known = first.setdefault(scope, (name, part))
            what = "one row and seed has two results" if scope == record.name else "results of different configurations"
            _refuse_differences(what, known, part, where, name)
        if record.name not in kept or len(kept[record.name].autoattacks) < len(record.autoattacks):  # it knows more
            kept[record.name] = record
    return list(kept.values())


def _refuse_differences(what: str, a: Any, b: Any, a_name: str, b_name: str, advice: str = "") -> None:
    """ValueError that names every field in which two JSON values differ."""
    fields = differing_fields(a, b)
    if fields:
        text = "; ".join(f"{name} is {_short(x)} in {a_name} and {_short(y)} in {b_name}" for name, x, y in fields)
        raise ValueError(f"{what}: {text}{advice}")


def _parts(record: Record) -> dict[str, dict[str, Any]]:
    """What must agree, by the records among which: of a table, of a data set, of a row, of a row and seed."""
    content, training = record.content, record.content["training"]
    recipe = {name: value for name, value in training["recipe"].items() if name != "seed"}
    attacked = {
        f"AutoAttack at eps {found['eps']:g}": {"num_images": found["num_images"]} for found in record.autoattacks
    }
    return {
        **{name: {name: part} for name, part in attacked.items()},
        "table": {
            "settings": content["settings"],
            "precision": content["precision"],
            "attack precision": content["robustness"].get("precision", "float32"),
        },
        f"data {record.row.dataset}": {"shards": training["shards"], "num_images": content["robustness"]["num_images"]},
        f"row {record.row.key}": {"recipe": recipe},
        # Two machines disagree in the last bits, so they train different weights from one seed; this is what it gave.
        record.name: {
            **{name: content[name] for name in ("curves", "robustness")},
            **{f"training.{name}": training[name] for name in ("final", "best", "accuracies")},
        },
    }


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
