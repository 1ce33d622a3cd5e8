"""Results of several machines in one folder."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from train.files import check_folder, write_json
from train.reproduce.configuration import check_mixable, check_settings
from train.reproduce.record import read_records, write_record
from train.reproduce.running import PLAN, read_plan


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
