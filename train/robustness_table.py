"""The robustness table: a row a model, and for each radius the Eq. 7 mean beside the stricter figures.

One cell a radius, "mean / last / worst": with the paper's four radii a row fits into 120 columns of a terminal.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from train.robust_accuracy import Robustness


def format_table(rows: Mapping[str, Robustness]) -> str:
    """Markdown, aligned for a terminal too; accuracies in percent.

    ValueError unless all rows have the same eps, in the same order, steps and clip_pixels.
    """
    if not rows:
        raise ValueError("expected at least one row, got none")
    attacks = {name: ([radius.eps for radius in row.radii], row.steps, row.clip_pixels) for name, row in rows.items()}
    (eps_values, steps, clip), *_ = attacks.values()
    for name, attack in attacks.items():
        if attack != (eps_values, steps, clip):
            raise ValueError(
                f"expected all rows to have (eps, steps, clip_pixels) = {(eps_values, steps, clip)}, got {attack} "
                f"for {name}; make a table for each attack"
            )
    header = ["model", "clean", *(f"eps {eps:g}" for eps in eps_values)]
    header[2] += ": mean / last / worst"
    cells = []
    for name, row in rows.items():
        figures = [" / ".join(map(_percent, (radius.mean, radius.last, radius.worst))) for radius in row.radii]
        cells.append([name, _percent(row.clean), *figures])
    return "\n".join([*markdown_table(header, cells), "", *_footnotes(rows, steps, clip)]) + "\n"


def _percent(share: float) -> str:
    return f"{100 * share:.2f}"


def markdown_table(header: Sequence[str], cells: Sequence[Sequence[str]]) -> list[str]:
    """Lines of a table, the first column to the left and the others to the right."""
    widths = [max(len(line[i]) for line in [header, *cells]) for i in range(len(header))]
    rule = ["-" * widths[0], *("-" * (width - 1) + ":" for width in widths[1:])]
    lines = []
    for name, *figures in [header, rule, *cells]:
        padded = [figure.rjust(width) for figure, width in zip(figures, widths[1:], strict=True)]
        lines.append(" | ".join(["| " + name.ljust(widths[0]), *padded]) + " |")
    return lines


def _footnotes(rows: Mapping[str, Robustness], steps: int, clip_pixels: bool) -> list[str]:
    clip = "clipped" if clip_pixels else "not clipped"
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
