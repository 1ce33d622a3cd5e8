"""Checks with the paper's attack itself: does it find what there is to find?

Each check is a way in which masked gradients show: radius, steps, random starts, a single step, noise, the gradients of
TN, transfer.

A defence may only hide the way: the gradient vanishes, or points elsewhere, PGD fails, and the network is no more
robust than before. Then PGD is beaten by what needs no gradient, gains nothing from a larger radius, or loses to
another loss. Sources: A. Athalye, N. Carlini, D. Wagner, "Obfuscated Gradients Give a False Sense of Security", ICML
2018, section 3.1; N. Carlini et al., "On Evaluating Adversarial Robustness", arXiv 1902.06705.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

import torch
from torch import Tensor, nn

from fdt_pipeline.tensor_norm import Gradient, tensor_norm_gradient
from train.attack import PGD, PixelBounds, gradients_to_follow, pgd_path
from train.precision import full_float32

# An attack without gradients, or one of a single step, that leaves fewer images right than PGD does is a sign: by more
# than this share of the images, or two of them, which is chance and rounding.
SLACK = 0.02
# Another loss or more restarts follow the gradient as well, and may do better by some points: 3 to 10 between PGD and
# AutoAttack are usual on models that mask nothing (F. Croce and M. Hein, ICML 2020, table 2). More is a sign.
GRADIENT_SLACK = 0.1
# With eps = 1 every pixel may take any value: what is still right then was not attacked.
LEFT_AT_ONE = 0.05


@dataclass(frozen=True, eq=False)
class Target:
    """What is attacked: x f32[n c h w] standardized, labels i64[n], on the model's device; seed: of what is drawn."""

    model: nn.Module
    x: Tensor
    labels: Tensor
    bounds: PixelBounds
    batch_size: int = 100
    seed: int = 0

    @property
    def num_images(self) -> int:
        return len(self.labels)

    @property
    def slack(self) -> float:
        return max(SLACK, 2 / self.num_images)

    @property
    def span(self) -> float:
        """Input units between the pixel values 0 and 255. ValueError where it is another in each channel, as a radius
        would then be another number of grey levels in each."""
        spans = (self.bounds.high - self.bounds.low).flatten()
        if not torch.allclose(spans, spans[:1]):
            raise ValueError(f"expected one std for all channels, got 255 / std = {spans.tolist()}")
        return float(spans[0])

    def grey_levels(self, eps: float) -> float:
        """Of a radius in input units: 25.6 for 0.1 where the std is 256."""
        return eps * 255 / self.span

    def batches(self) -> list[tuple[Tensor, Tensor]]:
        size = self.batch_size
        return list(zip(self.x.split(size), self.labels.split(size), strict=True))


@dataclass(frozen=True)
class Check:
    """What one check found. figures: shares of the images that are still right; eps: in input units, None for a series.

    masked: whether it shows that gradients are masked.
    """

    name: str
    expectation: str
    eps: float | None
    figures: Mapping[str, float]
    masked: bool
    verdict: str

    def to_text(self) -> str:
        figures = ", ".join(f"{name} {100 * value:.2f}" for name, value in self.figures.items())
        return f"{self.name}: {figures}\n    expected: {self.expectation}\n    {self.verdict}"


Found = tuple[Check, Tensor]  # bool[n]: the images that the check's attack leaves right
NO_SIGN = "no sign of masked gradients"


def judged(
    name: str,
    expectation: str,
    eps: float | None,
    figures: Mapping[str, float],
    problems: Sequence[str],
    note: str = "",
) -> Check:
    """A check that shows masked gradients where there are `problems`."""
    verdict = f"{' and '.join(problems)}: gradients are masked" if problems else NO_SIGN
    return Check(name, expectation, eps, figures, bool(problems), verdict + note)


def not_beaten(
    name: str, expectation: str, eps: float, pgd: Tensor, other: Tensor, slack: float, others_name: str = ""
) -> Check:
    """PGD must leave no more right than the other attack does, but for `slack`; pgd, other bool[n]: still right."""
    others_name = others_name or name
    more = int(pgd.sum()) - int(other.sum())
    masked = more > slack * len(pgd) + 1e-6  # 0.5 - 0.48 is above 0.02 in floats
    only_other = f" ({others_name} fools {int((pgd & ~other).sum())} of {len(pgd)} images that PGD does not)"
    figures = {"PGD": share(pgd), others_name: share(other)}
    return judged(name, expectation, eps, figures, [f"{others_name} finds more than PGD"] * masked, only_other)


def rises(values: Sequence[float], slack: float) -> bool:
    return any(b > a + slack for a, b in pairwise(values))


def share(right: Tensor) -> float:
    """bool[n] -> in 0..1."""
    return int(right.sum()) / len(right)


def overall(checks: Sequence[Check]) -> str:
    """One line."""
    signs = [check.name for check in checks if check.masked]
    if signs:
        return f"masked: {len(signs)} of {len(checks)} checks show masked gradients ({', '.join(signs)})"
    return f"not masked: none of {len(checks)} checks shows masked gradients"


def path_right(target: Target, attack: PGD, gradient: Gradient = "exact") -> Tensor:
    """bool[T+1 n] on the CPU: is the answer right at x^t. Each batch draws a random start of its own."""
    batches = target.batches()
    with tensor_norm_gradient(target.model, gradient):
        paths = [
            pgd_path(target.model, x, labels, replace(attack, seed=attack.seed * len(batches) + i), target.bounds)
            for i, (x, labels) in enumerate(batches)
        ]
    return torch.cat([path.correct.cpu() for path in paths], dim=1)


def paths_right(target: Target, attack: PGD) -> Tensor:
    """bool[gradient T+1 n], for a model with TN along both gradients."""
    return torch.stack([path_right(target, attack, gradient) for gradient in gradients_to_follow(target.model)])


def throughout(paths: Tensor) -> Tensor:
    """bool[gradient T+1 n] -> bool[n]: right at every iterate of every path."""
    return paths.all(1).all(0)


def last(paths: Tensor) -> float:
    """At x^T, along the gradient that leaves less."""
    return min(share(path[-1]) for path in paths)


def growth_in_radius(target: Target, paths: Mapping[float, Tensor]) -> Check:
    """paths: bool[gradient T+1 n] for each eps, in rising order, up to 1.0."""
    lasts = {eps: last(path) for eps, path in paths.items()}
    values = list(lasts.values())
    problems = ["accuracy rises with the radius"] * rises(values, target.slack)
    if values[-1] > LEFT_AT_ONE:
        problems.append(f"{100 * values[-1]:.2f} % are right at eps = {max(paths):g}, where any image can be reached")
    names = {f"eps {eps:g} ({target.grey_levels(eps):.3g} grey levels)": value for eps, value in lasts.items()}
    return judged(
        "larger radius", "the last iterate falls with the radius, to about 0 at eps = 1", None, names, problems
    )


def growth_in_steps(target: Target, eps: float, rungs: Sequence[int]) -> Check:
    """One path, as its step does not depend on its length; `rungs` are the iterates that are looked at, rising."""
    paths = paths_right(target, PGD(eps, steps=max(rungs)))
    figures = {f"t = {step}": min(share(path[step]) for path in paths) for step in rungs}
    problems = ["accuracy rises with the steps"] * rises(list(figures.values()), target.slack)
    return judged("more steps", "the accuracy at x^t falls with t, and hardly after x^40", eps, figures, problems)


def random_restarts(target: Target, eps: float, steps: int, pgd: Tensor, restarts: int) -> Found:
    """The clean start and `restarts` random ones."""
    after = [pgd]
    for restart in range(restarts):
        attack = PGD(eps, steps, random_start=True, seed=target.seed + restart)
        after.append(after[-1] & throughout(paths_right(target, attack)))
    expectation = f"{restarts} random starts take off at most {100 * GRADIENT_SLACK:.0f} points"
    check = not_beaten("random restarts", expectation, eps, pgd, after[-1], GRADIENT_SLACK, f"{restarts} more starts")
    return replace(check, figures={**check.figures, "1 more start": share(after[1])}), after[-1]


def single_step(target: Target, eps: float, pgd: Tensor) -> Found:
    """FGSM: all of eps at once, along the sign at x^0."""
    right = throughout(paths_right(target, PGD(eps, steps=1, rel_step=1.0)))
    expectation = "one step of eps finds less than many small ones"
    return not_beaten("single step", expectation, eps, pgd, right, target.slack, "FGSM"), right


def random_noise(target: Target, eps: float, pgd: Tensor, clean: Tensor, draws: int = 10) -> Found:
    """Corners of the ball, drawn `draws` times; the best for the attacker counts."""
    right = clean.clone()
    generator = torch.Generator().manual_seed(target.seed)
    for _ in range(draws):
        sign = torch.randint(0, 2, target.x.shape, generator=generator) * 2 - 1
        right &= answers_right(target.model, target, target.bounds.clip(target.x + eps * sign.to(target.x)))
    no_better = share(pgd) >= share(right) - target.slack
    harms = share(right) < share(clean) - target.slack
    figures = {"clean": share(clean), "noise": share(right), "PGD": share(pgd)}
    expectation = f"the worst of {draws} random corners of the ball is far weaker than PGD"
    check = judged(
        "random noise", expectation, eps, figures, ["PGD finds no more than noise does"] * (no_better and harms)
    )
    if no_better and not harms:
        check = replace(check, verdict="neither finds anything at this radius, so this says nothing")
    return check, right


def tensor_norm_gradients(eps: float, paths: Tensor, slack: float) -> Check:
    """paths bool[2 T+1 n]: along the exact and the straight-through gradient. The reported PGD follows both."""
    exact, straight = (share(path.all(0)) for path in paths)
    difference = straight - exact
    if abs(difference) <= slack:
        verdict = f"{NO_SIGN}: both find about as much"
    else:
        weak, strong = ("straight-through", "exact") if difference > 0 else ("exact", "straight-through")
        verdict = (
            f"the {weak} gradient misses {100 * abs(difference):.2f} points that the {strong} one finds: an attack "
            "along it alone would overstate robustness; PGD here follows both"
        )
    figures = {"exact": exact, "straight-through": straight}
    return Check("TN gradient", "both gradients of TN find about as much", eps, figures, False, verdict)


def transfer(target: Target, source: nn.Module, eps: float, steps: int, pgd: Tensor) -> Found:
    """source: another model of the same classes and input, whose adversarial images the target is shown."""
    attack = PGD(eps, steps)
    points = [pgd_path(source, x, labels, attack, target.bounds).adversarial for x, labels in target.batches()]
    right = answers_right(target.model, target, torch.cat(points)) & answers_right(target.model, target, target.x)
    expectation = "images made against the plain model fool this one less than its own"
    return not_beaten("transfer", expectation, eps, pgd, right, target.slack, "transfer from the plain model"), right


@torch.no_grad()
def answers_right(model: nn.Module, target: Target, x: Tensor) -> Tensor:
    """bool[n] on the CPU, in eval mode and full float32: does the model give x f32[n c h w] the target's labels."""
    model.eval()
    size = target.batch_size
    with full_float32(x.device.type):
        parts = [
            (model(images).argmax(1) == labels).cpu()
            for images, labels in zip(x.split(size), target.labels.split(size), strict=True)
        ]
    return torch.cat(parts)
