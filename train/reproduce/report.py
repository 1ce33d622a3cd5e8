"""report.md: the paper's table beside ours, or the sweep's controls; verdicts, pictures, seeds, where they come from.

It is made from plan.json and records/ alone, so anybody who has these can make it again.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from train.files import write_text
from train.recipes import CONTROLS, GAMMAS
from train.reproduce.claims import Results, data_title, grouped, judge
from train.reproduce.paper import COLUMNS, Row, table_rows
from train.reproduce.plots import (
    draw_attack_paths,
    draw_clean_against_robust,
    draw_learning_curves,
    draw_weight_series,
)
from train.reproduce.record import Record, check_mixable, read_plan, read_records
from train.reproduce.settings import Settings
from train.reproduce.tables import (
    READING,
    comparison_table,
    odd_cell_notes,
    seeds_table,
    separation_table,
    summary_table,
    verdict_table,
)

REPORT = "report.md"
SMALL = (
    "**Scaled down, and no reproduction of the paper's figures:** a network of 78,042 parameters, 5,000 training and "
    "1,000 test images a data set, and a schedule of {epochs} epochs stand beside the paper's ResNet-34, 50,000 images "
    "and 150 epochs. What can be compared are the differences between the columns."
)
ALL_COLUMNS = (*COLUMNS, *CONTROLS)
# The weights' exponent by column; Harmonic is i^-1.
GAMMA_OF = {"fdt": 1.0, **{f"fdt_gamma{gamma:g}": gamma for gamma in GAMMAS}}
MEANING = (
    "*Label smoothing* gives clean images targets of the mean entropy of FDT's: the soft targets without the mixing. "
    "*Mixup* sums two images with a random weight. *FDT, K = 2* always sums two, 2/3 and 1/3. *FDT, gamma = G* weighs "
    "image i by i^-G (FDT itself is G = 1). *TN, exact gradient* trains with the gradient of what TN computes. *PONO* "
    "divides by the deviation as well, and has its exact gradient."
)


def write_report(out: Path, table: str | None = None) -> str:
    """Writes report.md and its pictures into `out`; returns the tables and verdicts, for a terminal.

    ValueError where `out` holds no table, another one than `table`, or records that cannot stand in one.
    """
    plan = read_plan(out, table)
    settings = Settings.from_dict(plan["settings"])
    records = check_mixable([(str(out), record) for record in read_records(out)])
    groups = grouped(table_rows(settings.table, settings.scale), records)
    shown, absent = list(filter(has_records, groups)), absent_rows(groups, plan)
    parts = [_group_part(group, settings.eps_values) for group in shown]
    notes = [*READING, *odd_cell_notes(shown)]
    summary = summary_table([(group, judge(group, settings.eps_values)) for group in shown]) if shown else ""
    text = [f"# {_title(settings)}", *_scale_part(settings, records), summary, *notes]
    text += [f"Remake this page: `python -m train reproduce {settings.table} --report --out DIR`."]
    for group, part in zip(shown, parts, strict=True):
        text += [*part, *_pictures(group, settings.eps_values, out)]
    text += ["## Not here", *(absent or ["Every row of the table was run."])]
    text += ["## Every seed"]
    for group in shown:
        text += [
            f"{group.title}; each cell: Eq. 7 mean / last iterate / worst.",
            seeds_table(group, settings.eps_values),
        ]
    text += ["## Where the numbers come from", *provenance(records), *_settings_part(settings)]
    write_text(out / REPORT, "\n\n".join(text) + "\n")
    return "\n\n".join([*(line for part in parts for line in part), *notes, summary, *absent]) + "\n"


def write_sweep_report(out: Path) -> str:
    """Writes report.md and its pictures; returns the table, for a terminal."""
    plan = read_plan(out, "sweep")
    settings = Settings.from_dict(plan["settings"])
    records = check_mixable([(str(out), record) for record in read_records(out)])
    places = sorted({(record.row.dataset, record.row.model) for record in records})
    groups = grouped([Row(*place, column) for place in places for column in ALL_COLUMNS], records)
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
        text += [*part, *_sweep_pictures(group, settings.eps_values, out)]
    absent = absent_rows(groups, plan)
    text += absent
    text += ["## Every seed"]
    text += [seeds_table(group, settings.eps_values) for group in groups]
    text += ["## Where the numbers come from", *provenance(records)]
    write_text(out / REPORT, "\n\n".join(text) + "\n")
    return "\n\n".join([*tables, *absent]) + "\n"


def _title(settings: Settings) -> str:
    name = {"table1": "Table 1", "table2": "Table 2"}[settings.table]
    return f"{name} of the paper, beside ours" + (" at a small scale" if settings.scale == "small" else "")


def _scale_part(settings: Settings, records: Sequence[Record]) -> list[str]:
    if settings.scale == "full":
        return []
    epochs = sorted({record.content["training"]["recipe"]["epochs"] for record in records})
    return [SMALL.format(epochs=" or ".join(map(str, epochs)))]


def _group_part(group: Results, eps_values: Sequence[float]) -> list[str]:
    return [
        f"## {group.title}",
        comparison_table(group, eps_values),
        verdict_table(judge(group, eps_values)),
    ]


def _pictures(group: Results, eps_values: Sequence[float], out: Path) -> list[str]:
    name = f"{group.dataset}-{group.model}"
    draw_attack_paths(group, eps_values, out / f"{name}-paths.png")
    draw_learning_curves(group, out / f"{name}-learning.png")
    return [
        f"![{group.title}: accuracy along the attack's path]({name}-paths.png)",
        f"![{group.title}: learning curves]({name}-learning.png)",
    ]


def _sweep_pictures(group: Results, eps_values: Sequence[float], out: Path) -> list[str]:
    name = f"{group.dataset}-{group.model}"
    draw_clean_against_robust(group, eps_values, out / f"{name}-clean-robust.png")
    pictures = [f"![{group.title}: clean against robust accuracy]({name}-clean-robust.png)"]
    if sum(bool(group.columns.get(column)) for column in GAMMA_OF) > 1:
        draw_weight_series(group, GAMMA_OF, eps_values, out / f"{name}-weights.png")
        pictures.append(f"![{group.title}: accuracy against the weights' exponent]({name}-weights.png)")
    return pictures


def has_records(group: Results) -> bool:
    return any(group.columns.values())


def absent_rows(groups: Iterable[Results], plan: Mapping[str, Any]) -> list[str]:
    """A line for each data set that is missing, each row that was not run, and each run that diverged."""
    lines = []
    diverged = {name.rpartition(" seed ")[0] for name in plan["diverged"]}
    for group in groups:
        absent = [group.row(column).key for column, records in group.columns.items() if not records]
        not_run = [key for key in absent if key not in diverged]
        if group.dataset in plan["missing"] and len(not_run) == len(group.columns):
            lines.append(f"* {group.title}: missing, {plan['missing'][group.dataset]}.")
        elif not_run:
            lines.append(f"* {group.title}: not run: {', '.join(not_run)}.")
    lines += [f"* Diverged: {name}: {reason}" for name, reason in plan["diverged"].items()]
    return ["\n".join(lines)] if lines else []


def provenance(records: Sequence[Record]) -> list[str]:
    """The machines and versions, each with the runs that it gave, and the hours that they took."""
    machines: dict[str, list[Record]] = {}
    for record in records:
        machines.setdefault(_machine(record), []).append(record)
    lines = []
    for machine, of_it in machines.items():
        training = sum(record.content["training"]["seconds"] for record in of_it)
        attacking = sum(record.content["attack_seconds"] for record in of_it)
        lines.append(
            f"* {machine}: {len(of_it)} runs, {training / 60:.1f} minutes of training, {attacking / 60:.1f} of attacks."
        )
    images = {data_title(r.row.dataset): r.content["robustness"]["num_images"] for r in records}
    attacked = ", ".join(f"{count:,} of {name}" for name, count in images.items())
    text = f"Images attacked: {attacked or 'none'}. {_autoattack_part(records)}"
    return ["\n".join(lines), text, *_weights_part(records)]


def _weights_part(records: Sequence[Record]) -> list[str]:
    """For records that older versions wrote."""
    unknown = sum("weights" not in record.content["training"] for record in records)
    return [f"Weights not recorded in {unknown} of {len(records)} records."] if unknown else []


def _autoattack_part(records: Sequence[Record]) -> str:
    results = [record.content["autoattack"] for record in records if record.content["autoattack"]]
    if not results:
        return "AutoAttack: not run."
    masked = sum(result["masked"] for result in results)
    num_unknown = sum(result.get("weights") is None for result in results)
    unknown = f"; the weights that it attacked are not recorded in {num_unknown}" if num_unknown else ""
    return (
        f"AutoAttack: {len(results)} runs, on {results[0]['num_images']:,} images at eps = {results[0]['eps']:g} "
        f"({256 * results[0]['eps']:.3g} grey levels); the checks found signs of masked gradients in {masked} of "
        f"them{unknown}."
    )


def _machine(record: Record) -> str:
    hardware, versions = record.content["training"]["hardware"], record.content["training"]["versions"]
    place = hardware.get("gpu") or f"{hardware['cores']} cores of {hardware['cpu']}"
    packages = ", ".join(f"{name} {version}" for name, version in versions.items() if version and name != "commit")
    return f"{place}, {record.content['precision']}; commit {versions['commit'] or 'unknown'}; {packages}"


def _settings_part(settings: Settings) -> list[str]:
    chosen = ", ".join(f"{name} {value}" for name, value in settings.to_dict().items() if value is not None)
    return [f"Settings ({chosen}); what is not named is the recipe's own. The whole recipe is in each record."]
