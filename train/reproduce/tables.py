"""The tables of a report, as Markdown that a terminal can show: ours beside the paper's, verdicts, seeds, controls."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import fmean

from train.recipes import GAMMAS
from train.reproduce.claims import (
    CLEAN,
    CONFIDENCE_TEXT,
    KEEPS_WITHIN,
    LABELS,
    Difference,
    Kind,
    Measure,
    Results,
    Verdict,
    deviation,
)
from train.reproduce.paper import ODD_CELLS
from train.robust_accuracy import markdown_table

FIGURES: tuple[tuple[Kind, str], ...] = (("mean", "ours, Eq. 7"), ("last", "last iterate"), ("worst", "worst"))
NUM_RADII = 2  # the largest ones: below, nothing but clean accuracy shows
# The soft targets alone, and older mixing: do they do what FDT does to plain training? Other weights, another K: is it
# 1/i that does it? Another gradient, another norm: is it TN?
COMPARED = (
    ("fdt", "plain"),
    ("label_smoothing", "plain"),
    ("label_smoothing", "fdt"),
    ("smoothing", "plain"),
    *((mixing, "plain") for mixing in ("mixup0.2", "mixup", "cutmix", "mixup_cutmix")),
    ("mixup", "fdt"),
    *((kind, base) for kind in ("fdt_max2", "zeta", "mixup_unique") for base in ("plain", "fdt")),
    *((kind, "fdt") for kind in ("fdt_k2", "fdt_epoch", "fdt_half")),
    *((kind, base) for kind in ("fdt_clean10", "fdt_clean30") for base in ("plain", "fdt")),
    *((f"fdt_gamma{gamma:g}", "fdt") for gamma in GAMMAS),
    ("tn", "plain"),
    ("tn_exact", "tn"),
    ("pono", "plain"),
    ("pono", "tn"),
)
READING = [
    "Accuracies in percent, mean ± standard deviation over the seeds (ddof 1). Clean: all test images, final epoch.",
    "Eq. 7 is a mean over the attack's path from radius 0 to eps, not robustness at eps; last iterate: t = T; worst: "
    "right at every iterate, t = 0 too. Models with TN are attacked along both gradients of TN, and the worse counts.",
    f"Verdicts: difference of the means in points, its standard error (Welch, seeds unpaired) and {CONFIDENCE_TEXT} "
    f"interval. A claim holds if the whole interval is above 0 (FDT keeps accuracy: above -{KEEPS_WITHIN}), does not "
    "hold if all of it is below, and is undecided otherwise. The error is of the seeds alone: all columns and seeds "
    "are attacked on the same images, and other images would shift all of them.",
]


def comparison_table(results: Results, eps_values: Sequence[float], beside_paper: bool = True) -> str:
    """Four lines a column: the paper's, if they are wanted and there, then ours."""
    header = ["column", "figure", "clean", *(f"eps {eps:g}" for eps in eps_values), *autoattack_names(results)]
    lines = [line for column in results.columns for line in _column_lines(results, column, eps_values, beside_paper)]
    return "\n".join(markdown_table(header, lines))


def _column_lines(results: Results, column: str, eps_values: Sequence[float], beside_paper: bool) -> list[list[str]]:
    lines, paper = [], results.row(column).paper if beside_paper else None
    not_attacked = [""] * len(autoattack_names(results))
    if paper:
        eq7 = [_paper_cell(paper.figure(eps), (results.dataset, column, eps)) for eps in eps_values]
        clean = f"{paper.clean:.2f}" + (f" ± {paper.std:.2f}" if paper.std is not None else "")
        lines.append([LABELS[column], "paper, Eq. 7", clean, *eq7, *not_attacked])
    name, num_seeds = "" if paper else LABELS[column], len(results.columns[column])
    if not num_seeds:
        return [*lines, [name, "ours", "not run", *("" for _ in eps_values), *not_attacked]]
    for kind, text in FIGURES:
        line = [text, "", *(over_seeds(results.values(column, Measure(kind, eps))) for eps in eps_values)]
        if kind == "mean":
            line[:2] = f"{text}, {num_seeds} seed{'s' * (num_seeds > 1)}", over_seeds(results.values(column, CLEAN))
            attacked = [over_seeds(results.values(column, measure)) or "not run" for measure in results.autoattacks]
            line += attacked or ["not run"]
        lines.append([name if kind == "mean" else "", *line, *(not_attacked if kind != "mean" else [])])
    return lines


def autoattack_names(results: Results) -> list[str]:
    """Of the columns; 255 grey levels are 255/256 of the network's input."""
    return [f"AutoAttack {256 * measure.eps:.3g}/255" for measure in results.autoattacks if measure.eps] or [
        "AutoAttack"
    ]


def _paper_cell(value: float | None, place: tuple[str, str, float]) -> str:
    if value is None:
        return ""
    return f"{value:.2f}" + (f" [{list(ODD_CELLS).index(place) + 1}]" if place in ODD_CELLS else "")


def odd_cell_notes(groups: Sequence[Results]) -> list[str]:
    """Of the cells that these tables show."""
    shown = {(group.dataset, column) for group in groups for column in group.columns}
    return [
        f"[{number}] The paper's figure {why}; it is not chased."
        for number, ((dataset, column, _), why) in enumerate(ODD_CELLS.items(), 1)
        if (dataset, column) in shown
    ]


def over_seeds(values: Sequence[float]) -> str:
    """ "92.52 ± 0.25", with ddof 1; no deviation for one seed."""
    if not values:
        return ""
    spread = deviation(values)
    return f"{fmean(values):.2f}" + (f" ± {spread:.2f}" if spread is not None else "")


def seeds_table(results: Results, eps_values: Sequence[float]) -> str:
    """One line a seed: clean, and mean / last / worst at each radius."""
    header = ["column", "seed", "clean", *(f"eps {eps:g}" for eps in eps_values), *autoattack_names(results)]
    lines = []
    for column, records in results.columns.items():
        for record in records:
            cells = [" / ".join(f"{Measure(kind, eps).of(record):.2f}" for kind, _ in FIGURES) for eps in eps_values]
            attacked = [measure.of(record) for measure in results.autoattacks] or [None]
            shown = ["not run" if share is None else f"{share:.2f}" for share in attacked]
            lines.append([LABELS[column], str(record.seed), f"{CLEAN.of(record):.2f}", *cells, *shown])
    return "\n".join(markdown_table(header, lines)) if lines else "No seed was run."


def verdict_table(verdicts: Sequence[Verdict]) -> str:
    names = "claim, compared, paper, ours, standard error, interval, verdict, last iterate, AutoAttack"
    return "\n".join(markdown_table(names.split(", "), [_verdict_line(verdict) for verdict in verdicts]))


def summary_table(groups: Sequence[tuple[Results, Sequence[Verdict]]]) -> str:
    """One line a claim, one column a data set and network: how many of its comparisons hold, or do not."""
    texts = list(dict.fromkeys(verdict.claim.text for _, verdicts in groups for verdict in verdicts))
    lines = []
    for text in texts:
        words = [[verdict.word for verdict in verdicts if verdict.claim.text == text] for _, verdicts in groups]
        lines.append([text, *map(_counted, words)])
    return "\n".join(markdown_table(["claim", *(group.title for group, _ in groups)], lines))


def _counted(words: Sequence[str]) -> str:
    """ "holds 3, undecided 1", in the order of first appearance."""
    return ", ".join(f"{word} {words.count(word)}" for word in dict.fromkeys(words))


def _verdict_line(verdict: Verdict) -> list[str]:
    claim, ours = verdict.claim, verdict.ours
    interval = "" if ours is None or ours.low is None else f"[{ours.low:+.2f}, {ours.high:+.2f}]"
    robust = claim.measure != CLEAN
    return [
        claim.text,
        claim.compared,
        "" if verdict.paper is None else f"{verdict.paper:+.2f}",
        "" if ours is None else f"{ours.value:+.2f}",
        "" if ours is None or ours.standard_error is None else f"{ours.standard_error:.2f}",
        interval,
        verdict.word,
        with_error(verdict.last) if robust else "",
        (with_error(verdict.autoattack) or "not run") if robust else "",
    ]


def with_error(found: Difference | None) -> str:
    """ "+1.17 ± 0.20", the standard error behind the difference; "" for none."""
    if found is None:
        return ""
    return f"{found.value:+.2f}" + ("" if found.standard_error is None else f" ± {found.standard_error:.2f}")


def largest_radii(eps_values: Sequence[float]) -> list[float]:
    return sorted(eps_values, reverse=True)[:NUM_RADII]


def separation_table(results: Results, eps_values: Sequence[float]) -> str:
    """Differences of the means in points, each with its standard error where both columns have two seeds."""
    measures = [("clean", CLEAN)]
    for eps in largest_radii(eps_values):
        measures += [(f"Eq. 7, eps {eps:g}", Measure("mean", eps)), (f"last, eps {eps:g}", Measure("last", eps))]
    lines = [
        [f"{LABELS[a]} - {LABELS[b]}", *(with_error(results.difference(a, b, measure)) for _, measure in measures)]
        for a, b in COMPARED
        if {a, b} <= results.run.keys()
    ]
    return "\n".join(markdown_table(["difference", *(name for name, _ in measures)], lines))
