"""The checks tell a network that hides its gradient from one that does not."""

import shutil
import sys
from dataclasses import replace

import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy

from fdt_pipeline.tensor_norm import ReLUTensorNorm
from tests.peers import needs
from train.attack import PGD, PixelBounds
from train.attack_checks import (
    Target,
    growth_in_radius,
    not_beaten,
    overall,
    path_right,
    random_noise,
    tensor_norm_gradients,
)
from train.attack_checks_autoattack import AutoAttackStages
from train.attack_checks_run import Settings, run_checks
from train.files import read_json, write_json
from train.saved_run import open_run

BOUNDS = PixelBounds.from_normalization((122.0, 117.0, 104.0), 256.0)
NUM_CLASSES = 5
QUICK = Settings(restarts=1, queries=200)

pytestmark = [pytest.mark.usefixtures("one_thread"), pytest.mark.peer]
needs("pyautoattack", "attacks")


@pytest.fixture(autouse=True)
def fewer_queries(monkeypatch):
    """Of Square within AutoAttack, of whose time its 5,000 would be most."""
    monkeypatch.setattr("train.attack_checks_autoattack.QUERIES", 300)


def images(num, seed):
    """x f32[num 3 8 8] in channels_last and labels: noise around one image a class."""
    prototypes = torch.rand(NUM_CLASSES, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(0, NUM_CLASSES, (num,), generator=generator)
    noise = torch.rand(num, 3, 8, 8, generator=generator) - 0.5
    pixels = (0.5 + 0.25 * (prototypes[labels] - 0.5) + 0.3 * noise).clamp(0, 1)
    return (BOUNDS.low + pixels * (BOUNDS.high - BOUNDS.low)).to(memory_format=torch.channels_last), labels


def trained_net(relu=nn.ReLU):
    torch.manual_seed(0)
    body = [nn.Conv2d(3, 8, 3, padding=1), relu(), nn.Conv2d(8, 16, 3, stride=2, padding=1), relu()]
    net = nn.Sequential(*body, nn.Flatten(), nn.Linear(256, NUM_CLASSES))
    optimizer = torch.optim.Adam(net.parameters(), 3e-3)
    for step in range(150):
        x, labels = images(64, step + 1)
        optimizer.zero_grad()
        cross_entropy(net(x), labels).backward()
        optimizer.step()
    return net.eval().to(memory_format=torch.channels_last)


@pytest.fixture(scope="module")
def net():
    return trained_net()


class Behind(nn.Module):
    """The network behind a function of its input, and of its logits."""

    def __init__(self, net, before=lambda x: x, after=lambda logits: logits):
        super().__init__()
        self.net, self.before, self.after = net, before, after

    def forward(self, x):
        return self.after(self.net(self.before(x)))


def quantized(net):
    """Rounds its input to 24 steps a unit: the answers hardly change, the gradient is zero."""
    return Behind(net, before=lambda x: (24 * x).round() / 24)


def saturated(net):
    """The same answers from logits so large that the softmax has no gradient left."""
    return Behind(net, after=lambda logits: 1000 * logits)


def target_of(model, num=32, batch_size=32):
    return Target(model, *images(num, 1000), BOUNDS, batch_size)


@pytest.mark.soak
def test_a_plain_network_and_one_with_tn_mask_nothing(net):
    normalized = trained_net(ReLUTensorNorm)
    told = []
    short = replace(QUICK, grey_levels=None)
    reports = [run_checks(target_of(net), short), run_checks(target_of(normalized), QUICK, net, told.append)]
    for report in reports:
        assert not report.masked, report.summary()
        assert report.clean > 0.9
        assert report.strongest < report.clean
    names = ["larger radius", "more steps", "random restarts", "single step", "random noise"]
    ends = ["margin loss", "Square", "AutoAttack"]
    assert [check.name for check in reports[0].checks] == [*names, *ends[:2]]
    assert [check.name for check in reports[1].checks] == [*names, "TN gradient", "transfer", *ends]
    assert len(told) == 10
    assert "not masked: none of 10 checks" in reports[1].summary()


@pytest.mark.soak
def test_a_quantized_input_is_found_to_mask(net):
    report = run_checks(target_of(quantized(net)), replace(QUICK, grey_levels=24.0), plain=net)
    masked = {check.name for check in report.checks if check.masked}
    assert masked >= {"larger radius", "random noise", "transfer", "Square", "AutoAttack"}
    assert report.strongest < 0.2
    assert report.summary().startswith("masked: ")
    assert "it warns: there are" in report.checks[-1].verdict, "AutoAttack's own flag of zero gradients"


def test_saturated_logits_are_found_to_mask_and_the_margin_finds_what_is_behind(net):
    report = run_checks(target_of(saturated(net)), Settings(restarts=1, queries=50, grey_levels=None))
    checks = {check.name: check for check in report.checks}
    assert checks["margin loss"].masked
    assert checks["margin loss"].figures["APGD-DLR"] < 0.1 < checks["margin loss"].figures["PGD"]
    assert "AutoAttack" not in checks


def test_a_librarys_attack_leaves_model_and_random_state_as_they_were(net):
    state = torch.get_rng_state()
    net.zero_grad()  # another test has the library itself attack the net
    stages = AutoAttackStages(target_of(net, 8), 0.05, NUM_CLASSES)
    stages.survivors("FAB-T", torch.ones(8, dtype=torch.bool))
    assert torch.equal(torch.get_rng_state(), state)
    assert all(parameter.requires_grad and parameter.grad is None for parameter in net.parameters())


def test_what_a_library_returns_is_clipped_and_judged_again(net):
    def far_outside(pixels, labels, batch_size):
        return images(len(pixels), 5)[0] + 100, labels

    target, stages = target_of(net), AutoAttackStages(target_of(net), 1e-4, NUM_CLASSES)
    stages.made.run_standard_evaluation = far_outside
    right = path_right(target, PGD(0.0, steps=1))[0]
    assert torch.equal(stages.survivors("Square", right), right)


@pytest.mark.parametrize("num_classes", [2, 3])
def test_few_classes_have_the_attacks_that_there_are(num_classes):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(192, num_classes))
    x = images(12, 3)[0]
    with torch.no_grad():
        target = Target(model, x, model(x).argmax(1), BOUNDS)
    report = run_checks(target, Settings(restarts=1, queries=20, eps=0.01))
    names = [check.name for check in report.checks]
    assert ("margin loss" in names) == (num_classes >= 3)
    assert list(report.checks[-1].figures) == ["PGD", "APGD-CE", "FAB-T", "Square"]


def paths(*lasts, num=100):
    """For each share: bool[1 2 num], that many right at the last of two iterates."""
    return [torch.stack([torch.ones(num), torch.arange(num) < round(num * value)]).bool()[None] for value in lasts]


@pytest.mark.parametrize(
    ("lasts", "masked"),
    [
        ((0.9, 0.5, 0.0), False),
        ((0.9, 0.5, 0.06), True),  # something is left where everything can be reached
        ((0.5, 0.9, 0.0), True),  # rises
        ((0.5, 0.52, 0.0), False),  # within the slack
    ],
)
def test_the_radius_masks_where_accuracy_rises_or_is_left_at_one(lasts, masked):
    check = growth_in_radius(target_of(nn.Identity(), 100), dict(zip((0.1, 0.3, 1.0), paths(*lasts), strict=True)))
    assert check.masked == masked
    assert check.figures["eps 0.1 (25.6 grey levels)"] == lasts[0]


def right(value, num=100):
    return torch.arange(num) < round(num * value)


def test_an_attack_that_finds_more_than_its_slack_is_a_sign():
    for other, masked in ((0.6, False), (0.49, False), (0.48, False), (0.47, True)):
        check = not_beaten("Square", "", 0.1, right(0.5), right(other), 0.02)
        assert check.masked == masked
        assert check.figures == {"PGD": 0.5, "Square": other}
    assert "Square fools 3 of 100 images that PGD does not" in check.verdict
    assert overall([check]) == "masked: 1 of 1 checks show masked gradients (Square)"


def test_noise_that_does_nothing_says_nothing(net):
    target = target_of(net)
    clean = path_right(target, PGD(0.0, steps=1))[0]
    check, still = random_noise(target, 1e-6, clean, clean)
    assert not check.masked
    assert "says nothing" in check.verdict
    assert torch.equal(still, clean)


@pytest.mark.parametrize(("exact", "straight", "weak"), [(0.3, 0.5, "straight-through"), (0.5, 0.3, "exact")])
def test_the_tn_gradient_that_finds_less_is_named(exact, straight, weak):
    check = tensor_norm_gradients(0.1, torch.cat(paths(exact, straight)), 0.02)
    assert f"the {weak} gradient misses 20.00 points" in check.verdict


@pytest.mark.parametrize(
    ("values", "match"),
    [({"steps": 0}, "steps must be 1 or more"), ({"eps": 0.0}, "eps must be above 0"), ({"grey_levels": -1.0}, "grey")],
)
def test_impossible_settings_a_model_that_is_never_right_and_several_stds_are_refused(net, values, match):
    with pytest.raises(ValueError, match=match):
        Settings(**values)
    x, labels = images(8, 0)
    with pytest.raises(ValueError, match="right on none of 8 images"):
        run_checks(Target(net, x, (labels + 1) % NUM_CLASSES, BOUNDS))
    with pytest.raises(ValueError, match="expected one std for all channels"):
        _ = Target(net, x, labels, PixelBounds.from_normalization((0, 0, 0), (255, 128, 64))).span


def test_checks_of_a_run_are_printed_and_written(trained, tmp_path, shown):
    quick = ["--images", 6, "--restarts", 1, "--queries", 20, "--device", "cpu"]
    output = shown("checks", trained, "--plain", trained, *quick, "--json", tmp_path / "checks.json")
    report = read_json(tmp_path / "checks.json")
    assert report["num_images"] == 6
    saved = open_run(trained, torch.device("cpu"))
    assert report["made_from"] == saved.made_from(saved.test_loader())
    assert report["versions"]["pyautoattack"]
    assert report["grey_levels"] == pytest.approx(256 * report["eps"])
    assert report["checks"][-1]["name"] == "AutoAttack"
    assert report["checks"][-1]["eps"] == pytest.approx(8 / 256)
    assert report["masked"] == any(check["masked"] for check in report["checks"])
    for check in report["checks"]:
        assert f"{check['name']}: " in output
        assert check["verdict"] in output
    assert report["summary"] in output


def test_a_plain_run_on_other_classes_and_more_images_than_there_are_are_refused(trained, tmp_path, refused):
    other = shutil.copytree(trained, tmp_path / "other")
    config = read_json(other / "config.json")
    write_json(other / "config.json", {**config, "classes": config["classes"][::-1]})
    assert "has other classes than small_tn_fdt" in refused("checks", trained, "--plain", other, "--images", "5")
    assert "must be in 1..100, got 101" in refused("checks", trained, "--images", "101")


def test_a_missing_package_is_told_with_its_extra(trained, monkeypatch, refused):
    monkeypatch.setitem(sys.modules, "pyautoattack", None)
    assert 'checks need pyautoattack: pip install -e ".[attacks]"' in refused("checks", trained)
