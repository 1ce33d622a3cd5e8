"""The robustness table: a row a model, and for each radius the Eq. 7 mean beside the stricter figures.

One cell a radius, "mean / last / worst": with the paper's four radii a row fits into 120 columns of a terminal.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from train.robust_accuracy import Robustness, RobustnessAtEps

_COLUMNS = "mean / last / worst"


def format_table(rows: Mapping[str, Robustness]) -> str:
    """Markdown, aligned for a terminal too; accuracies in percent.

    ValueError unless all rows have the same eps, in the same order, steps and clip_pixels.
    """
    first = _common_attack(rows)
    header = ["model", "clean", *(f"eps {radius.eps:g}: {_COLUMNS}" for radius in first.radii[:1])]
    header += [f"eps {radius.eps:g}" for radius in first.radii[1:]]
    cells = [[name, _percent(row.clean), *map(_cell, row.radii)] for name, row in rows.items()]
    return "\n".join([*markdown_table(header, cells), "", *_footnotes(rows, first)]) + "\n"


def _cell(radius: RobustnessAtEps) -> str:
    return " / ".join(map(_percent, (radius.mean, radius.last, radius.worst)))


def _percent(share: float) -> str:
    return f"{100 * share:.2f}"


def _common_attack(rows: Mapping[str, Robustness]) -> Robustness:
    if not rows:
        raise ValueError("expected at least one row, got none")
    first = next(iter(rows.values()))
    for name, row in rows.items():
        if _attack(row) != _attack(first):
            raise ValueError(
                f"expected all rows to have (eps, steps, clip_pixels) = {_attack(first)}, got {_attack(row)} "
                f"for {name}; make a table for each attack"
            )
    return first


def _attack(row: Robustness) -> tuple[list[float], int, bool]:
    return [radius.eps for radius in row.radii], row.steps, row.clip_pixels


def markdown_table(header: Sequence[str], cells: Sequence[Sequence[str]]) -> list[str]:
    """Lines of a table, the first column to the left and the others to the right."""
    widths = [max(len(line[i]) for line in [header, *cells]) for i in range(len(header))]
    rule = ["-" * widths[0], *("-" * (width - 1) + ":" for width in widths[1:])]
    return ["| " + " | ".join(_pad(line, widths)) + " |" for line in [header, rule, *cells]]


def _pad(line: Sequence[str], widths: Sequence[int]) -> list[str]:
    """Names to the left, figures to the right."""
    return [line[0].ljust(widths[0])] + [cell.rjust(width) for cell, width in zip(line[1:], widths[1:], strict=True)]


def _footnotes(rows: Mapping[str, Robustness], first: Robustness) -> list[str]:
    steps, clip = first.steps, "clipped" if first.clip_pixels else "not clipped"
    return [
        f"* Accuracy in percent on {_image_counts(rows)}: clean, and under L-infinity PGD with {steps} steps of "
        f"eps / 30, eps in units of the model's input, {clip} to the pixel range.",
        f"* mean (Eq. 7): over the images and the iterates t = 1..{steps}, so an average over the path from radius 0 "
        "to eps, not robustness at eps.",
        f"* last: at the last iterate, t = {steps}.",
        f"* worst: share of the images that are right at every iterate t = 0..{steps}.",
        *_gradient_notes(rows),
    ]


def _image_counts(rows: Mapping[str, Robustness]) -> str:
    counts = {name: row.num_images for name, row in rows.items()}
    if len(set(counts.values())) == 1:
        return f"{next(iter(counts.values())):,} images"
    return ", ".join(f"{count:,} images ({name})" for name, count in counts.items())


def _gradient_notes(rows: Mapping[str, Robustness]) -> list[str]:
    """Names the models whose tensor normalization was attacked along other gradients than the exact one alone."""
    models: dict[tuple[str, ...], list[str]] = {}
    for name, row in rows.items():
        models.setdefault(tuple(row.radii[0].attacks), []).append(name)
    models.pop(("exact",), None)
    return [
        f"* {', '.join(names)}: attacked along the {' and the '.join(gradients)} gradient of TN; mean "
        "and last are the lowest among these attacks, worst asks for every iterate of all."
        for gradients, names in models.items()
    ]
