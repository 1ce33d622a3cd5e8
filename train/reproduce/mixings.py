"""The table "which mixing should I take?": a line a mixing, with what it is worth, from the records of a sweep."""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import NormalDist

from train.recipes import BASES, MIXINGS, make_recipe
from train.reproduce.claims import CALIBRATION, CLEAN, CONFIDENCE, CONFIDENCE_TEXT, LABELS, Measure, Results
from train.reproduce.record import Record
from train.reproduce.tables import autoattack_names, over_seeds
from train.robust_accuracy import markdown_table

SMALLEST_SHOWN = 1e-3  # a quarter of a grey level: below, all is as clean


def mixing_table(results: Results, eps_values: Sequence[float]) -> str:
    """Markdown: a line for each of MIXINGS, with "not run" where there is no record."""
    radii = sorted((eps for eps in eps_values if eps >= SMALLEST_SHOWN), reverse=True)
    header = ["mixing", "mix=", "clean", *(f"eps {eps:g}" for eps in radii), *autoattack_names(results), "ECE"]
    lines = []
    for column in MIXINGS:
        line = [LABELS[column], _argument(results, column)]
        if not any(_is_of(record) for record in results.columns.get(column, ())):
            lines.append([*line, "not run", *("" for _ in header[3:])])
            continue
        attacks = [" / ".join(over_seeds(results.values(column, Measure(kind, eps))) for kind in ("mean", "last"))
                   for eps in radii]  # fmt: skip
        attacked = [_with_interval(results, column, measure) or "not run" for measure in results.autoattacks]
        calibration = over_seeds(results.values(column, CALIBRATION)) or "not measured"
        lines.append([*line, _with_interval(results, column, CLEAN), *attacks, *(attacked or ["not run"]), calibration])
    return "\n".join(markdown_table(header, lines))


def mixing_notes(results: Results) -> list[str]:
    """What the figures are, and how sure they are."""
    records = [record for found in results.run.values() for record in found]
    seeds = max((len(found) for found in results.run.values()), default=0)
    images = sorted({record.robustness.num_images for record in records})
    attacked = " or ".join(f"{count:,}" for count in images)
    text = (
        "Accuracies and the expected calibration error (ECE, 15 bins) in percent; clean and ECE over all test images. "
        f"Under an eps: mean over the attack's path (Eq. 7) / last iterate, on {attacked} images, where a share of one "
        f"half has a {CONFIDENCE_TEXT} interval of ± {_widest(images)} points."
    )
    spread = (
        "± is the standard deviation over the seeds." if seeds > 1 else "One seed; another one gives other figures."
    )
    return [text, f"In brackets: the {CONFIDENCE_TEXT} interval (Wilson) over the images alone. {spread}"]


def _is_of(record: Record) -> bool:
    """Not a record of an older version's mixup, which had one weight a batch and partners within it."""
    return not record.content["training"]["recipe"].get("mixup")


def _argument(results: Results, column: str) -> str:
    recipe = make_recipe(f"{results.model if results.model in BASES else 'small'}_{column}")
    if recipe.label_smoothing is not None:
        return f"`None`, label smoothing {recipe.label_smoothing}"
    return f"`{recipe.mix!r}`"


def _with_interval(results: Results, column: str, measure: Measure) -> str:
    """ "84.84 [84.12, 85.53]" for one seed; mean and deviation for several; "" where it was not measured."""
    values = results.values(column, measure)
    if len(values) != 1:
        return over_seeds(values)
    (record,) = (record for record in results.columns[column] if measure.of(record) is not None)
    low, high = wilson_interval(values[0] / 100, num_images_of(record, measure))
    return f"{values[0]:.2f} [{100 * low:.1f}, {100 * high:.1f}]"


def num_images_of(record: Record, measure: Measure) -> int:
    """On how many images it was measured; clean accuracy on all test images, where the record says how many."""
    if measure.kind == "autoattack":
        return next(int(found["num_images"]) for found in record.autoattacks if found["eps"] == measure.eps)
    calibration = record.content.get("calibration")
    return int(calibration["num_images"]) if calibration else record.robustness.num_images


def wilson_interval(share: float, count: int) -> tuple[float, float]:
    """E. B. Wilson, 1927: of a share of `count` independent images, at CONFIDENCE."""
    z = NormalDist().inv_cdf((1 + CONFIDENCE) / 2)
    middle = (share + z * z / (2 * count)) / (1 + z * z / count)
    half = z / (1 + z * z / count) * math.sqrt(share * (1 - share) / count + z * z / (4 * count * count))
    return max(0.0, middle - half), min(1.0, middle + half)


def _widest(images: Sequence[int]) -> str:
    """Half an interval at a share of one half, in points."""
    low, high = wilson_interval(0.5, min(images, default=1))
    return f"{50 * (high - low):.1f}"
