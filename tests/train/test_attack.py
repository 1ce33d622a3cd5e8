"""PGD stays in its ball, walks the path that foolbox and torchattacks walk, and tells the truth about every step."""

import warnings
from contextlib import nullcontext

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from fdt_pipeline.tensor_norm import TensorNorm
from models import build_model
from tests.peers import peer
from tests.train.made_up import as_if_trained
from train.attack import PGD, PixelBounds, pgd_path, pgd_paths
from train.robustness import EPS_VALUES

GRAY = PixelBounds.from_normalization([117.0], 256.0)
UNIT = PixelBounds.from_normalization([0.0], 255.0)
PAPER = PixelBounds.from_normalization((122.0, 117.0, 104.0), 256.0)
ATTACKS = [PGD(eps, steps=8) for eps in EPS_VALUES]

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def foolbox():
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Please import `gaussian_filter`", DeprecationWarning)
        return peer("foolbox")


NORMS = {"plain": nn.Identity, "straight-through": TensorNorm, "exact": lambda: TensorNorm("exact")}


def conv_net(norm="plain", seed=0):
    """Random; train mode would answer differently."""
    torch.manual_seed(seed)
    stem = [nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), NORMS[norm]()]
    body = [nn.Conv2d(8, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), NORMS[norm]()]
    net = nn.Sequential(*stem, *body, nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(32, 10))
    return as_if_trained(net)


def images_in(bounds, num, seed=0, size=8):
    unit = torch.tensor(np.random.default_rng(seed).random((num, 3, size, size)), dtype=torch.float32)
    return bounds.clip(bounds.low + unit * (bounds.high - bounds.low))


def predicted(model, x):
    with torch.no_grad():
        return model(x).argmax(1)


def outside(lower, x, upper):
    return float(torch.maximum(lower.double() - x.double(), x.double() - upper.double()).max())


@settings(max_examples=25, deadline=None)
@given(
    eps=st.one_of(st.just(0.0), st.floats(1e-6, 3.0)),
    steps=st.integers(1, 6),
    rel_step=st.floats(1e-3, 2.0),
    random_start=st.booleans(),
    seed=st.integers(0, 99),
)
def test_an_attack_leaves_neither_ball_nor_pixels_and_radius_zero_changes_nothing(
    eps, steps, rel_step, random_start, seed
):
    x, model = images_in(PAPER, 2, seed, size=4), conv_net(seed=seed)
    attack = PGD(eps, steps, rel_step, random_start=random_start, seed=seed)
    path = pgd_path(model, x, torch.tensor([0, 1]), attack, PAPER)
    adversarial = path.adversarial
    rounding = float(np.spacing(np.float32(1.0)))  # values are below 1
    assert outside(x.double() - eps, adversarial, x.double() + eps) <= rounding
    assert outside(PAPER.low.expand_as(x), adversarial, PAPER.high.expand_as(x)) <= 0.0
    if eps == 0:
        assert torch.equal(adversarial, x)
        assert torch.equal(path.correct, (predicted(model, x) == torch.tensor([0, 1])).expand(steps + 1, 2))


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("eps", [1e-1, 1e-2, 1e-3])
@pytest.mark.peer
def test_path_is_bit_identical_to_foolbox(norm, eps, foolbox):
    model, x = conv_net(norm), images_in(GRAY, 6)
    labels = predicted(model, x)
    path = pgd_path(model, x, labels, PGD(eps), GRAY)
    theirs = foolbox.PyTorchModel(model, bounds=(GRAY.low.item(), GRAY.high.item()), device="cpu")
    linf = foolbox.attacks.LinfPGD(steps=40, rel_stepsize=0.01 / 0.3, random_start=False)
    raw, clipped, fooled = linf(theirs, x, labels, epsilons=eps)
    assert torch.equal(path.adversarial, raw)
    assert torch.equal(path.adversarial, clipped)
    assert torch.equal(~path.correct[-1], fooled)


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.peer
def test_path_is_bit_identical_to_torchattacks_at_a_power_of_two_batch(norm):
    torchattacks = peer("torchattacks")
    model, x = conv_net(norm), images_in(UNIT, 8)
    labels, attack = predicted(model, x), PGD(8 / 255)
    theirs = torchattacks.PGD(model, eps=attack.eps, alpha=attack.alpha, steps=40, random_start=False)(x, labels)
    assert torch.equal(pgd_path(model, x, labels, attack, UNIT).adversarial, theirs)


class Of(nn.Module):
    """A model that is a function of the flattened image."""

    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, x):
        return self.function(x.flatten(1))


def linear(weight):
    """Two logits, <weight, x> and 0; a zero weight makes a pixel that does not matter."""
    return Of(lambda x: torch.stack([x @ weight.flatten(), x.new_zeros(len(x))], dim=1))


def test_on_a_linear_model_the_radius_grows_linearly_to_eps_at_step_30_and_stays():
    weight = torch.tensor(np.random.default_rng(0).standard_normal((3, 4, 4)), dtype=torch.float32)
    weight[0, 0, :2] = 0.0
    labels, eps = torch.tensor([0, 1]), 0.1
    direction = torch.stack([-weight.sign(), weight.sign()])
    for t in (1, 7, 29, 30, 31, 40):
        path = pgd_path(linear(weight), torch.zeros(2, 3, 4, 4), labels, PGD(eps, steps=t), PAPER)
        tolerance = 0.0 if t > 30 else 1e-7
        torch.testing.assert_close(path.adversarial, direction * min(t * eps / 30, eps), rtol=0, atol=tolerance)


def sure(x):
    """Certain of class 0 by 87 nats: the gradient, 1.6e-38 * 1e-6, is near float32's smallest."""
    return torch.cat([torch.full_like(x, 87.0), 1e-6 * x], dim=1)


def test_a_sure_sample_is_attacked_in_a_large_batch_as_it_is_alone():
    model, attack = Of(sure), PGD(0.1, steps=1)
    alone = pgd_path(model, torch.zeros(1, 1, 1, 1), torch.zeros(1, dtype=torch.int64), attack, GRAY)
    among = pgd_path(model, torch.zeros(64, 1, 1, 1), torch.zeros(64, dtype=torch.int64), attack, GRAY)
    assert alone.adversarial.item() == np.float32(attack.alpha)
    assert torch.equal(among.adversarial, alone.adversarial.expand(64, 1, 1, 1))


def bump(center, width):
    """Answers 1 where the mean pixel is within `width` of `center`, else 0; its gradient points to the center."""

    def logits(x):
        margin = width - (x.mean(1) - center).abs()
        return torch.stack([torch.zeros_like(margin), margin], dim=1)

    return Of(logits)


def test_a_planted_adversarial_region_is_found_if_and_only_if_it_meets_the_ball():
    x, label, attack = torch.zeros(1, 1, 1, 1), torch.tensor([0]), PGD(0.1)
    inside = pgd_path(bump(center=0.06, width=0.005), x, label, attack, GRAY)
    assert inside.correct[:, 0].tolist() == [t < 17 for t in range(41)]  # alpha = 1/300: 17 alpha = 0.0567 > 0.055
    assert 0.055 < inside.adversarial.item() < 0.065
    beyond = pgd_path(bump(center=0.11, width=0.005), x, label, attack, GRAY)
    assert beyond.correct.all()
    assert beyond.adversarial.item() == np.float32(0.1)


def test_pixel_range_is_left_only_when_clipping_is_off():
    x = GRAY.high.expand(1, 1, 1, 1).clone()
    grow = linear(-torch.ones(1))
    clipped = pgd_path(grow, x, torch.tensor([0]), PGD(0.1), GRAY)
    free = pgd_path(grow, x, torch.tensor([0]), PGD(0.1, clip_pixels=False), GRAY)
    unbounded = pgd_path(grow, x, torch.tensor([0]), PGD(0.1, clip_pixels=False))
    assert torch.equal(free.adversarial, unbounded.adversarial)
    assert torch.equal(clipped.adversarial, x)
    assert free.adversarial.item() == pytest.approx(GRAY.high.item() + 0.1, abs=1e-6)


def test_random_start_is_drawn_from_its_seed_and_row_0_judges_it():
    x, label = torch.zeros(1, 1, 1, 1), torch.tensor([0])
    start = [PGD(0.1, steps=1, rel_step=1e-9, random_start=True, seed=seed) for seed in (1, 1, 2)]
    first, again, other = (pgd_path(bump(9.0, 0.1), x, label, attack, GRAY).adversarial.item() for attack in start)
    assert first == again
    assert first != other
    assert max(abs(first), abs(other)) <= np.float32(0.1)
    assert not pgd_path(bump(first, 1e-6), x, label, start[0], GRAY).correct[0]


class FailsAt(nn.Module):
    """Finite answers up to the call of that number, then the error or the values asked for."""

    def __init__(self, call, failure):
        super().__init__()
        self.net, self.call, self.failure, self.calls = conv_net(), call, failure, 0

    def forward(self, x):
        self.calls += 1
        return self.failure(self.net(x)) if self.calls > self.call else self.net(x)


def out_of_memory(logits):
    raise MemoryError


@pytest.mark.parametrize("failure", [None, out_of_memory])
def test_modes_and_flags_come_back_and_no_parameter_gets_a_gradient(failure):
    model = FailsAt(2, failure or nn.Identity()).train()
    batch_norm = model.net.get_submodule("1").eval()
    next(batch_norm.parameters()).requires_grad_(False)

    def state():
        modes = [module.training for module in model.modules()]
        flags = [(parameter.requires_grad, parameter.grad) for parameter in model.parameters()]
        return modes, flags, [value.tolist() for value in model.state_dict().values()]

    before = state()
    with pytest.raises(MemoryError) if failure else nullcontext():
        pgd_path(model, images_in(PAPER, 2), torch.tensor([0, 1]), PGD(0.1, steps=3), PAPER)
    assert state() == before


@pytest.mark.parametrize(
    "ambient", [torch.no_grad, torch.inference_mode, lambda: torch.autocast("cpu", torch.bfloat16)]
)
def test_the_callers_gradient_and_autocast_modes_do_not_matter(ambient):
    model, x, labels = conv_net(), images_in(PAPER, 4), torch.arange(4)
    expected = pgd_path(model, x, labels, PGD(0.1, steps=5), PAPER)
    with ambient():
        path = pgd_path(model, x + 0.0, labels + 0, PGD(0.1, steps=5), PAPER)
    assert torch.equal(path.adversarial, expected.adversarial)
    assert torch.equal(path.correct, expected.correct)


@pytest.mark.parametrize(
    ("make", "step"),
    [
        *((lambda step=step: FailsAt(step, lambda logits: logits * torch.inf), step) for step in (0, 3, 5)),
        (lambda: Of(lambda x: (x - x.detach()).abs().sqrt()), 0),  # the logits are finite, the slope at 0 is not
        (lambda: Of(lambda x: torch.cat([x, x.new_full((len(x), 1), -torch.inf)], dim=1)), 0),  # the gradient is finite
    ],
)
def test_logits_or_a_gradient_that_are_not_finite_are_reported_with_their_step(make, step):
    with pytest.raises(FloatingPointError, match=rf"x\^{step} \(step {step} of 5\) are not finite"):
        pgd_path(make(), images_in(PAPER, 2), torch.tensor([0, 1]), PGD(0.1, steps=5), PAPER)


def test_bounds_are_where_0_and_255_lie_in_each_channel():
    assert PAPER.low.flatten().tolist() == [-122 / 256, -117 / 256, -104 / 256]
    assert PAPER.high.flatten().tolist() == [133 / 256, 138 / 256, 151 / 256]


def attacked(x=None, labels=(0, 1), bounds=PAPER, model=None):
    x = images_in(PAPER, 2) if x is None else x
    return pgd_path(model or conv_net(), x, torch.tensor(labels, dtype=torch.int64), PGD(0.1, steps=1), bounds)


def together(*attacks):
    return pgd_paths(nn.Flatten(), images_in(PAPER, 1), torch.tensor([0]), attacks, PAPER)


UNLIKE = "expected attacks that differ in eps, rel_step and seed alone"
STDS = "one std > 0, or one for each of the 3 channels"


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (lambda: PGD(-0.1), "expected a finite eps >= 0"),
        (lambda: PGD(float("nan")), "expected a finite eps >= 0"),
        (lambda: PGD(0.1, steps=0), "expected steps >= 1, got 0"),
        (lambda: PGD(0.1, rel_step=0.0), "expected a finite rel_step > 0"),
        (lambda: PixelBounds.from_normalization((1.0, 2.0, 3.0), 0.0), STDS),
        (lambda: PixelBounds.from_normalization((1.0, 2.0, 3.0), [1.0, 2.0]), STDS),
        (lambda: attacked(torch.zeros(0, 3, 8, 8), ()), r"at least one image, f32\[n c h w\], got .* \(0, 3, 8, 8\)"),
        (lambda: attacked(torch.zeros(2, 3, 8, 8).double()), r"got torch\.float64"),
        (lambda: attacked(labels=(0,)), r"expected labels i64\[2\]"),
        (lambda: attacked(bounds=None), "expected the pixel bounds, got None"),
        (lambda: attacked(images_in(UNIT, 2)), "make the bounds from the mean and std"),
        (lambda: attacked(torch.zeros(2, 1, 8, 8)), "expected images with 3 channels, as the bounds have, got 1"),
        (lambda: attacked(model=nn.Identity()), r"logits of shape \[2 C\] from the model, got \(2, 3, 8, 8\)"),
        (lambda: attacked(labels=(0, 10)), r"labels in 0\.\.9, as the model has 10 outputs, got 0\.\.10"),
        (lambda: attacked(labels=(-100, 0)), r"labels in 0\.\.9, as the model has 10 outputs, got -100"),
        (together, UNLIKE),
        (lambda: together(PGD(0.1, steps=2), PGD(0.1, steps=3)), UNLIKE),
        (lambda: together(PGD(0.1), PGD(0.1, clip_pixels=False)), UNLIKE),
        (lambda: together(PGD(0.1), PGD(0.1, random_start=True)), UNLIKE),
    ],
)
def test_impossible_threat_models_and_input_that_does_not_fit_are_refused(wrong, message):
    with pytest.raises(ValueError, match=message):
        wrong()


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize(
    "attacks",
    [
        ATTACKS,
        [PGD(0.1, 8, random_start=True, seed=seed) for seed in (3, 4)],
        [PGD(0.1, 8, rel_step=share, clip_pixels=False) for share in (0.03, 0.3)],
    ],
)
def test_paths_are_those_of_the_attacks_alone_to_the_bit(attacks, memory_format):
    torch.manual_seed(0)
    model = as_if_trained(build_model("small", 10, tensor_norm="straight-through"))
    x = images_in(PAPER, 8, size=16).to(memory_format=memory_format)
    labels = predicted(model, x)
    together = pgd_paths(model, x, labels, attacks, PAPER)
    for path, attack in zip(together, attacks, strict=True):
        alone = pgd_path(model, x, labels, attack, PAPER)
        assert torch.equal(path.adversarial, alone.adversarial)
        assert torch.equal(path.correct, alone.correct)
        assert path.adversarial.is_contiguous(memory_format=memory_format)
    assert len({path.adversarial.sum().item() for path in together}) == len(attacks)
