"""What attacks along a path leave of a model's accuracy (Eq. 7), kept as counts so that every figure is exact.

Eq. 7 is a mean over the path: the radius grows from 0 to eps, so the figure lies above robustness at eps. The last
iterate and the worst over the iterates are therefore kept beside it. The table has a row a model, and one cell a
radius, "mean / last / worst": with the paper's four radii a row fits into 120 columns of a terminal.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any


@dataclass(frozen=True)
class AttackCounts:
    """One attack: how many of `num_images` are right at x^0 .. x^T (`correct`), and how many at all of these."""

    num_images: int
    correct: tuple[int, ...]
    correct_throughout: int

    def __add__(self, other: AttackCounts) -> AttackCounts:
        """Of the same attack on both sets of images."""
        correct = tuple(a + b for a, b in zip(self.correct, other.correct, strict=True))
        throughout = self.correct_throughout + other.correct_throughout
        return AttackCounts(self.num_images + other.num_images, correct, throughout)

    @property
    def path(self) -> list[float]:
        """Accuracy at x^t, t = 0..T."""
        return [count / self.num_images for count in self.correct]

    @property
    def mean(self) -> float:
        """Eq. 7: over the images and over t = 1..T."""
        return sum(self.correct[1:]) / (self.num_images * (len(self.correct) - 1))

    @property
    def last(self) -> float:
        return self.correct[-1] / self.num_images


@dataclass(frozen=True)
class RobustnessAtEps:
    """All attacks at one radius, by the TN gradient that they follow; the headline figures take the worse of them.

    `correct_throughout` counts the images that are right at every iterate of every attack.
    """

    eps: float
    attacks: Mapping[str, AttackCounts]
    correct_throughout: int

    def __add__(self, other: RobustnessAtEps) -> RobustnessAtEps:
        attacks = {name: attack + other.attacks[name] for name, attack in self.attacks.items()}
        return RobustnessAtEps(self.eps, attacks, self.correct_throughout + other.correct_throughout)

    @property
    def gradient(self) -> str:
        """The TN gradient whose attack has the lowest Eq. 7 mean, the first one on ties."""
        return min(self.attacks, key=lambda name: self.attacks[name].mean)

    @property
    def path(self) -> list[float]:
        """Accuracy at x^t, t = 0..T, under the attack that gives the headline mean."""
        return self.attacks[self.gradient].path

    @property
    def mean(self) -> float:
        return self.attacks[self.gradient].mean

    @property
    def last(self) -> float:
        return min(attack.last for attack in self.attacks.values())

    @property
    def worst(self) -> float:
        return self.correct_throughout / self.attacks[self.gradient].num_images

    def to_dict(self) -> dict[str, Any]:
        attacks = {
            name: {"correct": list(attack.correct), "correct_throughout": attack.correct_throughout}
            for name, attack in self.attacks.items()
        }
        headline = {"mean": self.mean, "last": self.last, "worst": self.worst, "gradient": self.gradient}
        return {"eps": self.eps, **headline, "correct_throughout": self.correct_throughout, "attacks": attacks}


@dataclass(frozen=True)
class Robustness:
    """A model's accuracy on clean images and, for each radius, under attack with `steps` steps.

    precision: "float32", or "tf32" behind the first layer (precision.py).
    """

    num_images: int
    num_correct: int
    steps: int
    clip_pixels: bool
    radii: tuple[RobustnessAtEps, ...]
    precision: str = "float32"

    def __add__(self, other: Robustness) -> Robustness:
        """Of the same attacks on both sets of images; ValueError where the attacks differ."""
        if self._attacks() != other._attacks():
            raise ValueError(f"expected counts of the attacks {self._attacks()}, got {other._attacks()}")
        radii = tuple(a + b for a, b in zip(self.radii, other.radii, strict=True))
        num_images, num_correct = self.num_images + other.num_images, self.num_correct + other.num_correct
        return replace(self, num_images=num_images, num_correct=num_correct, radii=radii)

    def _attacks(self) -> tuple[int, bool, str, list[tuple[float, list[str]]]]:
        radii = [(radius.eps, list(radius.attacks)) for radius in self.radii]
        return self.steps, self.clip_pixels, self.precision, radii

    @property
    def clean(self) -> float:
        return self.num_correct / self.num_images

    def at(self, eps: float) -> RobustnessAtEps:
        for radius in self.radii:
            if radius.eps == eps:
                return radius
        raise ValueError(f"expected one of the evaluated eps {[radius.eps for radius in self.radii]}, got {eps}")

    def to_dict(self) -> dict[str, Any]:
        """JSON values only. The shares are there to be read; `from_dict` goes by the counts."""
        names = ("num_images", "num_correct", "clean", "steps", "clip_pixels", "precision")
        return {**{name: getattr(self, name) for name in names}, "radii": [radius.to_dict() for radius in self.radii]}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Robustness:
        num_images = values["num_images"]
        radii = []
        for radius in values["radii"]:
            attacks = {
                name: AttackCounts(num_images, tuple(attack["correct"]), attack["correct_throughout"])
                for name, attack in radius["attacks"].items()
            }
            radii.append(RobustnessAtEps(radius["eps"], attacks, radius["correct_throughout"]))
        precision = values.get("precision", "float32")  # the only one there was
        return cls(num_images, values["num_correct"], values["steps"], values["clip_pixels"], tuple(radii), precision)


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
