"""Controls on a fast recipe: what of FDT's and TN's effects is soft targets, mixing, weights, or any norm."""

from __future__ import annotations

from collections.abc import Sequence
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from fdt_pipeline.shards import read_manifest
from train.files import write_text
from train.recipes import CONTROLS, GAMMAS, make_recipe
from train.reproduce.configuration import check_mixable
from train.reproduce.paper import COLUMNS
from train.reproduce.record import Record, read_records
from train.reproduce.report import REPORT, absent_rows, provenance
from train.reproduce.results import Results, grouped
from train.reproduce.rows import Row
from train.reproduce.running import read_plan, run_rows
from train.reproduce.settings import Settings
from train.reproduce.sweep_plots import draw_clean_against_robust, draw_weight_series
from train.reproduce.sweep_tables import separation_table
from train.reproduce.tables import READING, comparison_table, seeds_table

ALL_COLUMNS = (*COLUMNS, *CONTROLS)
MAX_IMAGES = 1000
# The weights' exponent by column; Harmonic is i^-1.
GAMMA_OF = {"fdt": 1.0, **{f"fdt_gamma{gamma:g}": gamma for gamma in GAMMAS}}


def run_sweep(
    data: Path,
    model: str,
    patterns: Sequence[str] | None,
    seeds: Sequence[int],
    settings: dict[str, Any],
    out: Path,
    device: str | None,
    retry_diverged: bool = False,
) -> list[str]:
    """Rows of `model` for every column (or those that a pattern names), on the shards data/{train,test}; -> the names
    of the runs that diverged."""
    test = read_manifest(data / "test")
    dataset = data.resolve().name
    make_recipe(f"{model}_plain")  # says which models there are
    images = settings["attack_images"]
    images = min(MAX_IMAGES, test.num_samples) if images is None else images
    return run_rows(
        [Row(dataset, model, column) for column in select_columns(patterns)],
        seeds,
        Settings("sweep", **{**settings, "attack_images": images}),
        {},
        lambda _: data,
        out,
        device,
        retry_diverged=retry_diverged,
    )


def select_columns(patterns: Sequence[str] | None) -> list[str]:
    """ValueError for a pattern that names no column."""
    for pattern in patterns or ():
        if not any(fnmatchcase(column, pattern) for column in ALL_COLUMNS):
            raise ValueError(f"--only {pattern} names no column; columns: {', '.join(ALL_COLUMNS)}")
    return [c for c in ALL_COLUMNS if not patterns or any(fnmatchcase(c, pattern) for pattern in patterns)]


def write_sweep_report(out: Path) -> str:
    """Writes report.md and its pictures; returns the table, for a terminal."""
    plan = read_plan(out, "sweep")
    settings = Settings.from_dict(plan["settings"])
    records = check_mixable([(str(out), record) for record in read_records(out)])
    groups = grouped(_rows_of(records), records)
    text = ["# Controls: what FDT's and TN's effects are made of", MEANING, *READING[:2]]
    text += ["Remake this page: `python -m train sweep --report --out DIR`."]
    tables = []
    for group in groups:
        part = [
            f"## {group.title}",
            comparison_table(group, settings.eps_values, beside_paper=False),
            separation_table(group, settings.eps_values),
        ]
        tables += part
        text += [*part, *_pictures(group, settings.eps_values, out)]
    absent = absent_rows(groups, plan)
    text += absent
    text += ["## Every seed"]
    text += [seeds_table(group, settings.eps_values) for group in groups]
    text += ["## Where the numbers come from", *provenance(records)]
    write_text(out / REPORT, "\n\n".join(text) + "\n")
    return "\n\n".join([*tables, *absent]) + "\n"


MEANING = (
    "*Label smoothing* gives clean images targets of the mean entropy of FDT's: the soft targets without the mixing. "
    "*Mixup* sums two images with a random weight. *FDT, K = 2* always sums two, 2/3 and 1/3. *FDT, gamma = G* weighs "
    "image i by i^-G (FDT itself is G = 1). *TN, exact gradient* trains with the gradient of what TN computes. *PONO* "
    "divides by the deviation as well, and has its exact gradient."
)


def _rows_of(records: Sequence[Record]) -> list[Row]:
    places = sorted({(record.row.dataset, record.row.model) for record in records})
    return [Row(dataset, model, column) for dataset, model in places for column in ALL_COLUMNS]


def _pictures(group: Results, eps_values: Sequence[float], out: Path) -> list[str]:
    name = f"{group.dataset}-{group.model}"
    draw_clean_against_robust(group, eps_values, out / f"{name}-clean-robust.png")
    pictures = [f"![{group.title}: clean against robust accuracy]({name}-clean-robust.png)"]
    if sum(bool(group.columns.get(column)) for column in GAMMA_OF) > 1:
        draw_weight_series(group, GAMMA_OF, eps_values, out / f"{name}-weights.png")
        pictures.append(f"![{group.title}: accuracy against the weights' exponent]({name}-weights.png)")
    return pictures
