"""report.md: the paper's table beside ours, or the sweep's controls; verdicts, pictures, seeds, where they come from.

It is made from plan.json and records/ alone, so anybody who has these can make it again.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from models import SMALL_WIDTHS
from train.files import write_text
from train.recipes import CONTROLS, GAMMAS
from train.reproduce import plots, tables
from train.reproduce.claims import CONFIDENCE_TEXT, Results, claims_of, grouped, judge
from train.reproduce.mixings import mixing_notes, mixing_table
from train.reproduce.paper import COLUMNS, DATASETS, Row, table_rows
from train.reproduce.record import Record, check_mixable, read_plan, read_records
from train.reproduce.settings import Settings
from train.reproduce.tables import READING

REPORT = "report.md"
SMALL = (
    "**Scaled down, and no reproduction of the paper's figures:** a network of 78,042 parameters, 5,000 training and "
    "1,000 test images a data set, and a schedule of {epochs} epochs stand beside the paper's ResNet-34, 50,000 images "
    "and 150 epochs. What can be compared are the differences between the columns."
)
MEDIUM = (
    "**Scaled down in its network, and no reproduction of the paper's figures:** {networks} in place of the paper's "
    "ResNet-34 with 21.28 million, on all images and over {epochs} epochs, with two drops of the learning rate and not "
    "four. What can be compared are the differences between the columns."
)
ALL_COLUMNS = (*COLUMNS, *CONTROLS)
PARAMETERS = {"small": "78,042", "small32": "308,650", "small64": "1,227,594"}
# The weights' exponent by column; Harmonic is i^-1.
GAMMA_OF = {"fdt": 1.0, **{f"fdt_gamma{gamma:g}": gamma for gamma in GAMMAS}}
MEANING = (
    "*Label smoothing as FDT* gives clean images targets of the mean entropy of FDT's: the soft targets without the "
    "mixing. *MixUp A* sums two images with weights of Beta(A, A), *CutMix A* puts a box of one into the other. *FDT,"
    " K <= 2* sums one or two, *FDT, K = 2* always two, 2/3 and 1/3; *FDT of 2, random weights* two of different "
    "classes with weights of Beta(1, 1). *Zeta-mixup* is FDT with i^-2.8 and two images or more, *FDT, gamma = G* "
    "weighs image i by i^-G (FDT itself is G = 1). *Anchor epoch*: each image leads once an epoch. *Last 1/5 clean*: "
    "no mixing in the last fifth of the epochs. *TN, exact gradient* trains with the gradient of what TN computes. "
    "*PONO* divides by the deviation as well, and has its exact gradient."
)


def write_report(out: Path, table: str | None = None) -> str:
    """Writes report.md and its pictures into `out`; returns the tables and verdicts, for a terminal.

    ValueError where `out` holds no table, another one than `table`, or records that cannot stand in one.
    """
    plan, settings, records = _read(out, table)
    groups = grouped(_rows_of_table(settings, records), records)
    shown, absent = [group for group in groups if group.run], absent_rows(groups, plan)
    name, at = settings.table.replace("table", "Table "), settings.scale
    title = f"# {name} of the paper, beside ours" + (f" at a {at} scale" if at != "full" else "")
    scale = _scale_text(settings, records)
    judged = [(group, judge(group, settings.eps_values)) for group in shown]
    parts = {
        group.title: [
            f"## {group.title}",
            tables.comparison_table(group, settings.eps_values),
            tables.verdict_table(verdicts),
        ]
        for group, verdicts in judged
    }
    many = (
        f"A group tests {len(claims_of(settings.eps_values))} claims, each at {CONFIDENCE_TEXT} on its own: of twenty "
        "verdicts one is to be expected to come out otherwise by chance."
    )
    notes, summary = [*READING, many, *tables.odd_cell_notes(shown)], tables.summary_table(judged) if shown else ""
    text = [title, *scale, summary, *notes]
    text += [f"Remake this page: `python -m train reproduce {settings.table} --report --out DIR`."]
    for group in shown:
        text += parts[group.title]
        along, curves = "accuracy along the attack's path", "learning curves"
        text += [_picture(group, out, "paths", along, plots.draw_attack_paths, settings.eps_values)]
        text += [_picture(group, out, "learning", curves, plots.draw_learning_curves)]
    text += _width_pictures(shown, out, settings.eps_values)
    text += ["## Not here", *(absent or ["Every row of the table was run."])]
    text += ["## Every seed"]
    for group in shown:
        text += [f"{group.title}; each cell: Eq. 7 mean / last iterate / worst."]
        text += [tables.seeds_table(group, settings.eps_values)]
    chosen = ", ".join(f"{name} {value}" for name, value in settings.to_dict().items() if value is not None)
    text += ["## Where the numbers come from", *provenance(records)]
    text += [f"Settings ({chosen}); what is not named is the recipe's own. The whole recipe is in each record."]
    write_text(out / REPORT, "\n\n".join(text) + "\n")
    return "\n\n".join([*(line for part in parts.values() for line in part), *notes, summary, *absent]) + "\n"


def _rows_of_table(settings: Settings, records: Sequence[Record]) -> list[Row]:
    """At the medium scale of the networks that were run, where any were."""
    models: set[str | None] = {record.row.model for record in records} if settings.scale == "medium" else set()
    tables = [table_rows(settings.table, settings.scale, model) for model in sorted(models, key=str) or [None]]
    return [row for rows in tables for row in rows]


def _scale_text(settings: Settings, records: Sequence[Record]) -> list[str]:
    """How far the table is from the paper's; nothing at the full scale."""
    if settings.scale == "full":
        return []
    epochs = sorted({record.content["training"]["recipe"]["epochs"] for record in records})
    models = sorted({record.row.model for record in records})
    networks = " and ".join(f"a network of {PARAMETERS[model]} parameters" for model in models)
    text = SMALL if settings.scale == "small" else MEDIUM
    return [text.format(epochs=" or ".join(map(str, epochs)), networks=networks)]


def write_sweep_report(out: Path) -> str:
    """Writes report.md and its pictures; returns the table, for a terminal."""
    plan, settings, records = _read(out, "sweep")
    eps_values = settings.eps_values
    places = sorted({(record.row.dataset, record.row.model) for record in records})
    groups = grouped([Row(*place, column) for place in places for column in ALL_COLUMNS], records)
    text = ["# Controls: what FDT's and TN's effects are made of", MEANING, *READING[:2]]
    text += ["Remake this page: `python -m train sweep --report --out DIR`."]
    shown, absent = [], absent_rows(groups, plan)
    for group in groups:
        run = replace(group, columns=group.run)  # what was not run is listed below, and has a line among the mixings
        part = [f"## {group.title}", tables.comparison_table(run, eps_values, beside_paper=False)]
        part += [tables.separation_table(group, eps_values)]
        shown += part
        clean_robust = _picture(
            group, out, "clean-robust", "clean against robust accuracy", plots.draw_clean_against_robust, eps_values
        )
        text += [*part, clean_robust]
        if len(GAMMA_OF.keys() & group.run) > 1:
            what = "accuracy against the weights' exponent"
            text += [_picture(group, out, "weights", what, plots.draw_weight_series, GAMMA_OF, eps_values)]
        text += ["### Which mixing?", mixing_table(group, eps_values), *mixing_notes(group)]
    text += _width_pictures(groups, out, eps_values)
    text += [*absent, "## Every seed", *(tables.seeds_table(group, eps_values) for group in groups)]
    text += ["## Where the numbers come from", *provenance(records)]
    write_text(out / REPORT, "\n\n".join(text) + "\n")
    return "\n\n".join([*shown, *absent]) + "\n"


def _read(out: Path, table: str | None) -> tuple[dict[str, Any], Settings, list[Record]]:
    """(plan.json, its settings, the records, which can stand in one table)."""
    plan = read_plan(out, table)
    return plan, Settings.from_dict(plan["settings"]), check_mixable([(str(out), r) for r in read_records(out)])


def _picture(group: Results, out: Path, name: str, what: str, draw: Callable[..., None], *arguments: Any) -> str:
    """Draws it, and gives the line that shows it."""
    file = f"{group.dataset}-{group.model}-{name}.png"
    draw(group, *arguments, out / file)
    return f"![{group.title}: {what}]({file})"


def _width_pictures(groups: Sequence[Results], out: Path, eps_values: Sequence[float]) -> list[str]:
    """A picture for each data set on which the small network was trained at two widths or more."""
    lines = []
    for dataset in dict.fromkeys(group.dataset for group in groups):
        widths = [group for group in groups if group.dataset == dataset and group.model in SMALL_WIDTHS]
        if len(widths) > 1:
            file, title = f"{dataset}-width.png", DATASETS.get(dataset, dataset)
            plots.draw_widths(widths, eps_values, out / file)
            lines += [f"![{title}: accuracy against the network's width]({file})"]
    return lines


def absent_rows(groups: Iterable[Results], plan: Mapping[str, Any]) -> list[str]:
    """A line for each data set that is missing, each row that was not run, and each run that diverged."""
    lines = []
    diverged = {name.rpartition(" seed ")[0] for name in plan["diverged"]}
    for group in groups:
        absent = [group.row(column).key for column in group.columns if column not in group.run]
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
    for machine, runs in machines.items():
        training = sum(record.content["training"]["seconds"] for record in runs) / 60
        attacking = sum(record.content["attack_seconds"] for record in runs) / 60
        lines.append(f"* {machine}: {len(runs)} runs, {training:.1f} minutes of training, {attacking:.1f} of attacks.")
    images = {r.row.dataset: r.content["robustness"]["num_images"] for r in records}
    attacked = ", ".join(f"{count:,} of {DATASETS.get(name, name)}" for name, count in images.items())
    text = f"Images attacked: {attacked or 'none'}. {_autoattack_part(records)}"
    unknown = sum("weights" not in record.content["training"] for record in records)  # in records of older versions
    note = [f"Weights not recorded in {unknown} of {len(records)} records."] if unknown else []
    return ["\n".join(lines), text, *note]


def _autoattack_part(records: Sequence[Record]) -> str:
    radii: dict[float, list[dict[str, Any]]] = {}
    for record in records:
        for found in record.autoattacks:
            radii.setdefault(found["eps"], []).append(found)
    if not radii:
        return "AutoAttack: not run."
    lines = []
    for eps, results in sorted(radii.items()):
        images, levels = f"{results[0]['num_images']:,} images", f"{256 * eps:.3g} grey level{'s' * (256 * eps != 1)}"
        text = f"{len(results)} run{'s' * (len(results) > 1)}, on {images} at eps = {eps:g} ({levels})"
        checked = [result["masked"] for result in results if result["masked"] is not None]
        if checked:
            text += f"; the checks found signs of masked gradients in {sum(checked)} of {len(checked)}"
        lines.append(f"AutoAttack: {text}.")
    return " ".join(lines)


def _machine(record: Record) -> str:
    hardware, versions = record.content["training"]["hardware"], record.content["training"]["versions"]
    place = hardware.get("gpu") or f"{hardware['cores']} cores of {hardware['cpu']}"
    packages = ", ".join(f"{name} {version}" for name, version in versions.items() if version and name != "commit")
    return f"{place}, {record.content['precision']}; commit {versions['commit'] or 'unknown'}; {packages}"
