"""Records with figures that are made up, as the runs of a table leave them; and runs that are killed or interrupted."""

import json
import signal
import subprocess
import sys

import torch

from train import saved_run
from train.environment import versions
from train.files import LOG
from train.reproduce import running
from train.reproduce import settings as table_settings
from train.reproduce.paper import Row
from train.reproduce.record import make_record, write_plan, write_record
from train.reproduce.settings import Settings, recipe_of
from train.robust_accuracy import AttackCounts, Robustness, RobustnessAtEps

STEPS = 5
TINY = Settings("table1", "small", epochs=2, attack_images=1000, attack_steps=STEPS)
# The small scale from ROOT alone, smaller still, attacked 25 images at a time: (module, name, value).
SMALLER = (
    (table_settings, "BUNDLED", {}),
    (table_settings, "PER_CLASS", {"train": 20, "test": 8}),
    (running, "BATCH_SIZE", {"cpu": 25}),
)
HARDWARE = {"device": "cpu", "cpu": "made up", "cores": 2, "memory_gib": 1.0}


def made_up_record(row=Row("cifar10", "small", "plain"), seed=0, clean=0.9, eq7=0.5, settings=TINY, **changes):  # noqa: B008
    """Accuracy falls from `clean` to 2 eq7 - clean along the path, so that its mean is near eq7 at every radius."""
    recipe = recipe_of(row, settings, seed).to_dict()
    training = {
        "recipe": recipe,
        "shards": {"train": f"{row.dataset} train", "test": f"{row.dataset} test"},
        "weights": f"{row.key} {seed}",
        "final": {"epoch": 1, "accuracy": clean},
        "best": {"epoch": 1, "accuracy": clean},
        "accuracies": [clean / 2, clean],
        "seconds": 60.0,
        "hardware": HARDWARE,
        "versions": versions(),
    }
    parts = {
        "training": training,
        "precision": "float32",
        "curves": {"test_accuracy": [clean / 2, clean], "train_loss": [2.0, 1.0], "train_kl": [1.0, 0.5]},
        "robustness": _robustness(clean, eq7, settings).to_dict(),
        "attack_seconds": 30.0,
        "calibration": {"error": 0.05, "bins": 15, "num_images": 1000, "weights": training["weights"]},
        "autoattack": [],
    }
    return make_record(row, seed, settings.to_dict(), **{**parts, **changes})


def _robustness(clean, eq7, settings):
    num_images = settings.attack_images
    radii = []
    for number, eps in enumerate(settings.eps_values):
        last = max(0.0, clean - 2 * (clean - eq7) / 4**number)
        path = [clean + (last - clean) * t / settings.attack_steps for t in range(settings.attack_steps + 1)]
        correct = tuple(round(num_images * share) for share in path)
        attacks = {"exact": AttackCounts(num_images, correct, correct[-1])}
        radii.append(RobustnessAtEps(eps, attacks, correct[-1]))
    return Robustness(num_images, round(num_images * clean), settings.attack_steps, True, tuple(radii))


def write_table(out, records, settings=TINY, missing=None):
    """A folder as `reproduce` leaves it, but for the runs."""
    out.mkdir(parents=True, exist_ok=True)
    rows = [Row(**record["row"]) for record in records]
    asked = [*rows, *(Row(dataset, "small", "plain") for dataset in missing or {})]
    write_plan(out, settings, asked, missing or {})
    for record in records:
        write_record(out, record)
    return out


def as_if_trained(model):
    """In eval mode, with statistics unlike a new network's, which would hide a batch normalization that is left out."""
    generator = torch.Generator().manual_seed(1)
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.running_mean.copy_(0.2 * torch.randn(module.num_features, generator=generator))
            module.running_var.copy_(0.5 + torch.rand(module.num_features, generator=generator))
    return model.eval()


def fit_command(shards, out):
    """Of the run of `trained`: 4 epochs of 6 steps."""
    command = ["fit", "--recipe", "small_tn_fdt", "--data", str(shards), "--out", str(out), "--device", "cpu"]
    return [*command, "--epochs", "4", "--batch-size", "50"]


def log_of(out, *kinds):
    """Records of these kinds in the log of a run."""
    records = map(json.loads, (out / LOG).read_text().splitlines())
    return [record for record in records if record["kind"] in kinds]


def assert_equal_weights(a, b):
    """Of two state_dicts."""
    assert a.keys() == b.keys()
    for name in a:
        assert torch.equal(a[name], b[name]), name


def interrupt_attack(monkeypatch, batch):
    """A Ctrl-C at this batch of all that are attacked. -> what gives the number of the next one."""
    attack, batches = saved_run.evaluate_robustness, iter(range(99))

    def interrupted(*arguments, **options):
        if next(batches) == batch:
            raise KeyboardInterrupt
        return attack(*arguments, **options)

    monkeypatch.setattr(saved_run, "evaluate_robustness", interrupted)
    return batches


def run_killed(command, step):
    """`python -m train COMMAND` in a process that is killed when it takes this optimizer step, counted from 0."""
    code = f"""
import os
import json
import signal
import torch
from tests.train.made_up import SMALLER
from train import trainer
from train.__main__ import main

torch.set_num_threads({torch.get_num_threads()})
for change in SMALLER:
    setattr(*change)
steps = iter(range(99))

class Killed(trainer.TrainStep):
    def __call__(self, *arguments):
        if next(steps) == {step}:
            os.kill(os.getpid(), signal.SIGKILL)
        return super().__call__(*arguments)

trainer.TrainStep = Killed
main({command!r})
"""
    process = subprocess.run([sys.executable, "-c", code], stderr=subprocess.DEVNULL, check=False)
    assert process.returncode == -signal.SIGKILL
