"""What must be the same for results to stand in one table. Seed, hardware and versions may differ, and are listed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from train.reproduce.record import Record

# Two machines disagree in the last bits, so they train different weights from one seed; these are what a seed gave.
FIGURES = ("curves", "robustness", "training.final", "training.best", "training.accuracies")


def check_settings(old: Mapping[str, Any], new: Mapping[str, Any], old_name: str, new_name: str) -> None:
    """ValueError that names every field in which two folders differ."""
    fields = differing_fields(old, new)
    if fields:
        text = "; ".join(f"{name} is {a!r} in {old_name} and {b!r} in {new_name}" for name, a, b in fields)
        raise ValueError(f"these are results of different settings: {text}. Use a folder for each")


def check_mixable(records: Sequence[tuple[str, Record]]) -> list[Record]:
    """(folder, record) -> one record a row and seed.

    ValueError, naming the fields, where rows differ in settings, recipe (but for the seed), precision or shards, and
    where a row and seed is there twice with other figures.
    """
    kept: dict[str, tuple[str, Record]] = {}
    first: dict[str, tuple[str, Record]] = {}
    for folder, record in records:
        for scope, part in _parts(record).items():
            where, known = first.setdefault(scope, (folder, record))
            _refuse(
                differing_fields(_parts(known)[scope], part), f"{where} ({known.name})", f"{folder} ({record.name})"
            )
        if record.name in kept:
            where, known = kept[record.name]
            fields = differing_fields(_figures(known), _figures(record))
            _refuse(fields, f"{where} ({known.name})", f"{folder} ({record.name})", same_seed=True)
        if record.name not in kept or kept[record.name][1].autoattack is None:  # the same figures, and perhaps more
            kept[record.name] = (folder, record)
    return [record for _, record in kept.values()]


def differing_fields(a: Any, b: Any, prefix: str = "") -> list[tuple[str, Any, Any]]:
    """(dotted name, value in a, value in b) of the leaves of two JSON values that differ; None where one lacks it."""
    if isinstance(a, Mapping) and isinstance(b, Mapping):
        names = sorted({*a, *b})
        dotted = [(name, f"{prefix}.{name}" if prefix else str(name)) for name in names]
        return [field for name, path in dotted for field in differing_fields(a.get(name), b.get(name), path)]
    return [] if a == b else [(prefix, a, b)]


def _parts(record: Record) -> dict[str, dict[str, Any]]:
    """What must agree, by the records among which: of a table, of a data set, of a row."""
    content, training = record.content, record.content["training"]
    recipe = {name: value for name, value in training["recipe"].items() if name != "seed"}
    attacked = content["autoattack"]
    more = {"autoattack": {"autoattack": {name: attacked[name] for name in ("eps", "num_images")}}} if attacked else {}
    return {
        **more,
        "table": {
            "settings": content["settings"],
            "precision": content["precision"],
            "attack precision": content["robustness"].get("precision", "float32"),
        },
        f"data {record.row.dataset}": {"shards": training["shards"], "num_images": content["robustness"]["num_images"]},
        f"row {record.row.key}": {"recipe": recipe},
    }


def _figures(record: Record) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name in FIGURES:
        value: Any = record.content
        for part in name.split("."):
            value = value[part]
        found[name] = value
    return found


def _refuse(fields: list[tuple[str, Any, Any]], a_name: str, b_name: str, same_seed: bool = False) -> None:
    if fields:
        text = "; ".join(f"{name} is {_short(a)} in {a_name} and {_short(b)} in {b_name}" for name, a, b in fields)
        what = "one row and seed has two results" if same_seed else "results of different configurations"
        raise ValueError(f"{what}: {text}")


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
