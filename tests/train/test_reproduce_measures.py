"""AutoAttack and calibration of the runs of a table, and what a table costs, said before it starts."""

import shutil

import pytest
import torch
from scipy.stats import binomtest

from fdt_pipeline.shards import read_manifest
from tests.train.made_up import made_up_record, write_table
from train.files import read_json, write_json
from train.recipes import make_recipe
from train.reproduce import cost, measures
from train.reproduce.cost import Cost, NetworkCost, cost_of_rows
from train.reproduce.measures import AutoAttack, autoattacks_of, run_autoattack
from train.reproduce.mixings import wilson_interval
from train.reproduce.paper import Row
from train.reproduce.record import read_records
from train.reproduce.running import Runner
from train.reproduce.settings import Settings
from train.saved_run import open_run

pytestmark = pytest.mark.usefixtures("one_thread")

CPU = torch.device("cpu")
SPAN = 255 / 256  # of the network's input, from black to white


class StandIn:
    """Attacks that fool an image by its pixels and the radius alone, so that no batch changes what they find."""

    def __init__(self, target, eps, num_classes):
        self.x, self.eps = target.x, eps

    def stages(self):
        return ["APGD-CE", "Square"]

    def survivors(self, name, right):
        threshold = {"APGD-CE": 40, "Square": 60}[name] * self.eps
        return right & ((self.x.flatten(1).sum(1).abs() * 7 % 1) > threshold)


@pytest.fixture
def attacks(monkeypatch):
    """-> the radii that were attacked, a batch at a time."""
    made = []

    class Counted(StandIn):
        def __init__(self, target, eps, num_classes):
            super().__init__(target, eps, num_classes)
            made.append(round(eps / SPAN * 255))

    monkeypatch.setattr(measures, "AutoAttackStages", Counted)
    return made


@pytest.fixture
def run(trained, tmp_path):
    return shutil.copytree(trained, tmp_path / "run")


def attack(run, levels, num_images, batch_size=25, seed=0):
    """-> {radius: content of its file}, but for the time it took."""
    saved = open_run(run, CPU)
    run_autoattack(saved, saved.test_loader(batch_size=batch_size), AutoAttack(levels, num_images), run, seed)
    contents = {path.stem: read_json(path) for path in sorted(run.glob("autoattack-*.json"))}
    for content in contents.values():
        del content["seconds"]
    return contents


def test_autoattack_that_was_stopped_goes_on_and_gives_the_counts_of_one_that_was_not(run, attacks):
    attack(run, (2, 1), 50)
    assert attacks == [1, 1, 2, 2]
    attacks.clear()
    further = attack(run, (1, 2), 75)
    assert attacks == [1, 2], "only the batches that were missing"
    assert attack(run, (1,), 25) == further, "what is there of more images and other radii stays"
    for path in run.glob("autoattack-*.json"):
        path.unlink()
    assert attack(run, (1, 2), 75) == further
    in_one_batch = attack(run, (1, 2), 75, batch_size=75)
    assert [content["correct"] for content in in_one_batch.values()] == [
        content["correct"] for content in further.values()
    ]
    (clean, first, last), (_, _, last_of_larger) = (content["correct"].values() for content in further.values())
    assert clean >= first >= last > last_of_larger


@pytest.mark.parametrize("change", [{"batch_size": 20}, {"seed": 1}, {"weights": "0" * 64}])
def test_autoattack_is_made_again_for_other_weights_or_batches(run, attacks, change, capsys):
    attack(run, (1,), 25)
    path = run / "autoattack-1.json"
    if "weights" in change:
        content = read_json(path)
        write_json(path, {**content, "made_from": {**content["made_from"], "weights": change["weights"]}})
        change = {}
    attacks.clear()
    attack(run, **{"levels": (1,), "num_images": 25, **change})
    assert attacks
    assert "attacking again" in capsys.readouterr().err


def test_figures_of_autoattack_are_shares_at_each_radius_smallest_first(run, attacks):
    contents, training = attack(run, (8, 0.5), 50), read_json(run / "results.json")
    found = autoattacks_of(run, training)
    assert [each["eps"] for each in found] == pytest.approx([0.5 * SPAN / 255, 8 * SPAN / 255])
    shares = [contents[f"autoattack-{levels}"]["correct"]["Square"] / 50 for levels in ("0.5", "8")]
    assert [each["accuracy"] for each in found] == shares
    with pytest.raises(ValueError, match=r"autoattack-.*\.json is of other weights or other samples"):
        autoattacks_of(run, {**training, "weights": "0" * 64})
    write_json(run / "autoattack-8.json", {})
    with pytest.raises(ValueError, match="holds no figures of AutoAttack that can be read"):
        autoattacks_of(run, training)


@pytest.mark.parametrize(("levels", "count"), [((), 1), ((1, 1), 1), ((0,), 1), ((300,), 1), ((1,), 0)])
def test_radii_and_counts_that_cannot_be_are_refused(levels, count):
    with pytest.raises(ValueError, match=r"expected different radii of AutoAttack|expected 1 or more images"):
        AutoAttack(levels, count)


@pytest.mark.parametrize("autoattack", [None, AutoAttack((1,), 100)])
def test_a_record_of_an_older_version_gets_what_its_run_can_still_give(
    few_shards, trained, tmp_path, attacks, autoattack
):
    """And one whose run is gone stays as it is."""
    rows = [Row(few_shards.name, "small", column) for column in ("plain", "fdt")]
    training = read_json(trained / "results.json")
    records = [made_up_record(row, training=training) for row in rows]
    for record in records:
        del record["calibration"]
        record["autoattack"] = None
    settings = Settings("table1", "small", epochs=2, attack_images=1000, attack_steps=5)
    out = write_table(tmp_path / "t", records, settings)
    shutil.copytree(trained, out / "runs" / rows[0].key / "seed0")
    runner = Runner(settings, out, lambda _: few_shards, CPU, autoattack=autoattack)
    runner.run_rows(rows, lambda _: (0,), {})
    gone, kept = read_records(out)
    assert (gone.autoattacks, gone.calibration_error) == ([], None)
    assert kept.content["calibration"]["num_images"] == 100
    assert 0 < kept.calibration_error < 1
    assert [found["num_images"] for found in kept.autoattacks] == [100] * (autoattack is not None)


def test_the_cost_is_that_of_what_is_left_to_run(few_shards, tmp_path, monkeypatch):
    settings = Settings("sweep", epochs=4, attack_images=50, attack_steps=10, eps_values=(0.1, 0.01))
    rows = [Row(few_shards.name, "small", column) for column in ("plain", "fdt", "tn")]
    out = write_table(tmp_path / "t", [made_up_record(rows[0], settings=settings)], settings)
    measured = []

    def network(recipe, *_):
        measured.append(recipe.tensor_norm)
        return NetworkCost(step=1.0, attack_pass=10.0, attack_batch=100, weights=1000)

    monkeypatch.setattr(cost, "measure_network", network)
    runner = Runner(settings, out, lambda _: few_shards, CPU)
    found = cost_of_rows(runner, rows, lambda _: (0, 1), {})
    each = 4 * 3 * 1.0 + 4 * (100 / 3) / 100 * 10 + 50 * 10 * 2 / 100 * 10  # steps, evaluations, the attack
    assert found == Cost(5, pytest.approx(5 * each / 3600), 5 * 3 * 1000, 400 * 28 * 28)
    assert measured == [None, "straight-through"], "once a network"
    assert cost_of_rows(runner, rows[:1], lambda _: (0,), {}) is None


def test_a_networks_cost_is_measured_and_leaves_the_generator_as_it_was(few_shards):
    before = torch.get_rng_state()
    found = cost.measure_network(make_recipe("small_tn"), read_manifest(few_shards / "train"), CPU, mixed=True)
    assert torch.equal(torch.get_rng_state(), before)
    assert found.step > 0
    assert found.attack_pass > 0
    assert 4 * 78_042 < found.weights < 5 * 78_042


@pytest.mark.parametrize("right", [0, 1, 137, 500, 1000])
def test_the_interval_is_wilsons(right):
    theirs = binomtest(right, 1000).proportion_ci(0.95, method="wilson")
    assert wilson_interval(right / 1000, 1000) == pytest.approx((theirs.low, theirs.high), abs=1e-12)
