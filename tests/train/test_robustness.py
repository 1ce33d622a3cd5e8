"""Robust accuracy is Eq. 7, counted exactly, and takes the worse of the attacks on tensor normalization."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from fdt_pipeline.tensor_norm import ReLUTensorNorm, tensor_norm_gradient
from tests.train.test_attack import PAPER as BOUNDS
from tests.train.test_attack import conv_net as attacked_net
from tests.train.test_attack import images_in
from train.attack import PixelBounds
from train.robust_accuracy import AttackCounts, Robustness, RobustnessAtEps, format_table
from train.robustness import evaluate_robustness

EPS = (0.05, 0.005)
STEPS = 6


pytestmark = pytest.mark.usefixtures("one_thread")


def conv_net(normalized, seed=0):
    net = attacked_net("straight-through" if normalized else "plain", seed)
    with torch.no_grad():
        net[-1].bias -= net(images(50, seed)).mean(0)  # so that all classes are answered
    return net


def images(num, seed):
    return images_in(BOUNDS, num, seed)


def labelled(model, num, seed=0):
    """Images with the model's own answers as labels, every fifth of them wrong."""
    x = images(num, seed)
    with torch.no_grad():
        labels = model(x).argmax(1)
    labels[::5] = (labels[::5] + 1) % 10
    return x, labels


@settings(max_examples=15, deadline=None)
@given(
    seed=st.integers(0, 99),
    normalized=st.booleans(),
    eps=st.sampled_from([0.0, 1e-3, 0.05, 0.5]),
    steps=st.integers(1, 8),
)
def test_worst_is_never_above_any_other_figure(seed, normalized, eps, steps):
    model = conv_net(normalized, seed)
    result = evaluate_robustness(model, *labelled(model, 10, seed), BOUNDS, [eps], steps=steps)
    radius = result.at(eps)
    assert list(radius.attacks) == ["exact", "straight-through"][: 1 + normalized]
    assert result.clean == 0.8
    assert radius.worst <= min(result.clean, radius.last, radius.mean, *radius.path)
    assert eps or radius.worst == radius.mean == 0.8
    for attack in radius.attacks.values():
        assert radius.worst <= attack.correct_throughout / 10 <= min(attack.path)


def slow_answers(model, x, label, eps, clip):
    """One image at a time, Eq. 6 in its own words: the whole sum is projected by limits computed in advance."""
    lower, upper = x - eps, x + eps
    if clip:
        lower, upper = torch.maximum(lower, BOUNDS.low), torch.minimum(upper, BOUNDS.high)
    point, answers = x.clone(), []
    for _ in range(STEPS + 1):
        point.requires_grad_()
        log_p = torch.log_softmax(model(point), 1)
        answers.append(bool(log_p.argmax(1) == label))
        (-log_p[0, label]).sum().backward()
        with torch.no_grad():
            point = torch.minimum(torch.maximum(point + eps / 30 * point.grad.sign(), lower), upper)
    return answers


@pytest.mark.parametrize("clip", [True, False])
def test_figures_equal_a_slow_independent_count(clip):
    model = conv_net(normalized=True)
    x, labels = labelled(model, 20)
    first, second = (
        evaluate_robustness(model, x[part], labels[part], BOUNDS, EPS, steps=STEPS, clip_pixels=clip, together=together)
        for part, together in ((slice(12), False), (slice(12, 20), True))
    )
    result = first + second
    assert (result.steps, result.clip_pixels) == (STEPS, clip)
    for eps in EPS:
        answers = {}
        for name in ("exact", "straight-through"):
            with tensor_norm_gradient(model, name):
                slow = [slow_answers(model, x[i : i + 1], labels[i : i + 1], eps, clip) for i in range(20)]
            answers[name] = np.array(slow)
            attack = result.at(eps).attacks[name]
            assert attack.path == (answers[name].sum(0) / 20).tolist()
            assert attack.mean == pytest.approx(answers[name][:, 1:].mean(), abs=1e-12)
            assert attack.correct_throughout == answers[name].all(1).sum()
        assert result.at(eps).worst == (answers["exact"].all(1) & answers["straight-through"].all(1)).mean()
        assert result.at(eps).mean < result.clean
    assert result.at(0.05).attacks["exact"] != result.at(0.05).attacks["straight-through"]


class TwoTraps(nn.Module):
    """One pixel of two channels (a, b). After TN the first logit is b - a + 0.01, the second is 0.

    Straight-through moves both channels up, which TN undoes; the exact gradient parts them. On the way up the answer is
    wrong, without a slope to show it, for b in (0.351, 0.369).
    """

    def __init__(self):
        super().__init__()
        self.norm = ReLUTensorNorm()

    def forward(self, x):
        a, b = self.norm(x)[:, :, 0, 0].unbind(1)
        trap = ((x[:, 1, 0, 0] - 0.36).abs() < 0.009).float()
        score = -3 * a - b + 0.01 - 10 * trap
        return torch.stack([score, torch.zeros_like(score)], dim=1)


def test_each_gradient_finds_what_the_other_misses_and_worst_counts_both():
    x = torch.tensor([[0.2, 0.2], [0.05, 0.3]]).reshape(2, 2, 1, 1)
    bounds = PixelBounds.from_normalization([117.0], 256.0)
    radius = evaluate_robustness(TwoTraps(), x, torch.tensor([0, 0]), bounds, [0.1]).at(0.1)
    exact, through = radius.attacks["exact"], radius.attacks["straight-through"]
    assert exact.correct == (2,) * 2 + (1,) * 39  # image 1: 2 t alpha > 0.01 from t = 2 on
    assert through.correct == (2,) * 16 + (1,) * 5 + (2,) * 20  # image 2: t alpha in (0.051, 0.069) for t = 16..20
    assert (exact.mean, exact.last, exact.correct_throughout) == (41 / 80, 0.5, 1)
    assert (through.mean, through.last, through.correct_throughout) == (75 / 80, 1.0, 1)
    assert (radius.gradient, radius.mean, radius.last, radius.worst) == ("exact", 41 / 80, 0.5, 0.0)


def row(clean, exact, through=(), steps=2):
    """Of 1000 images; each attack fools one image for a while only, and both attacks fool the same."""
    paths = {"exact": exact, "straight-through": through} if through else {"exact": exact}
    attacks = {name: AttackCounts(1000, path, min(path) - 1) for name, path in paths.items()}
    worst = min(attack.correct_throughout for attack in attacks.values())
    return Robustness(1000, clean, steps, True, (RobustnessAtEps(0.001, attacks, worst),))


def test_table_has_a_row_a_model_and_says_what_its_columns_mean():
    text = format_table({"plain": row(925, (925, 500, 301)), "TN+FDT": row(938, (938, 700, 400), (938, 800, 399))})
    assert text.splitlines()[:4] == [
        "| model  | clean | eps 0.001: mean / last / worst |",
        "| ------ | ----: | -----------------------------: |",
        "| plain  | 92.50 |          40.05 / 30.10 / 30.00 |",
        "| TN+FDT | 93.80 |          55.00 / 39.90 / 39.80 |",
    ]
    assert "on 1,000 images" in text
    assert "average over the path from radius 0 to eps, not robustness at eps" in text
    assert "TN+FDT: attacked along the exact and the straight-through gradient" in text


def table_of(**rows):
    return lambda: format_table(rows)


def attack_of(eps_values):
    return lambda: evaluate_robustness(conv_net(normalized=False), images(4, 0), torch.arange(4), BOUNDS, eps_values)


OTHERWISE = r"got \(\[0\.001\], 3, True\) for other; make a table for each attack"


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (table_of(one=row(1, (1, 1, 1)), other=row(1, (1, 1, 1, 1), steps=3)), OTHERWISE),
        (table_of(), "expected at least one row"),
        (lambda: row(1, (1, 1, 1)) + row(1, (1, 1, 1, 1), steps=3), "expected counts of the attacks"),
        (lambda: row(1, (1, 1, 1)).at(0.1), r"one of the evaluated eps \[0\.001\], got 0\.1"),
        (attack_of([]), "one or more different eps_values"),
        (attack_of([0.1, 0.1]), "one or more different eps_values"),
    ],
)
def test_what_cannot_be_evaluated_or_shown_is_refused(wrong, message):
    with pytest.raises(ValueError, match=message):
        wrong()
