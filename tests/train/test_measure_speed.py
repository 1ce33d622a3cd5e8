"""The measuring tool: its arithmetic, and that each part of it runs; nothing here depends on how long anything took."""

import json

import pytest
import torch

from tests.peers import needs
from train import measure_speed
from train.measure_speed import BOUNDS, Figure, Plan, foolbox_columns, model_and_images
from train.robustness import evaluate_robustness

CPU = torch.device("cpu")
TINY = Plan("small", (4,), 1, 2, 2, 1, 1.1, 1.03, 0.01, attacks=(("small", 2, 8, 2),), size=8)

pytestmark = pytest.mark.usefixtures("one_thread")


def test_the_median_is_held_against_the_bound_on_its_side():
    assert Figure("a", (1.0, 1.2, 1.1), 1.1, "at most").holds
    assert not Figure("a", (1.0, 1.2, 1.3), 1.1, "at most").holds
    assert Figure("a", (1.0, 1.2, 1.3), 1.1, "at least").holds
    assert Figure("a", (1.0,)).holds is None


@pytest.mark.peer
def test_the_whole_of_it_runs_and_is_written(tmp_path):
    needs("foolbox")
    assert measure_speed.main(["--out", str(tmp_path / "speed.json"), "--device", "cpu"], TINY) == 0
    figures = json.loads((tmp_path / "speed.json").read_text())["figures"]
    assert [figure["bound"] for figure in figures] == [1.1, 1.03, 0.01, 1.0, None, 1.3]
    assert all(value > 0 for figure in figures for value in figure["values"])
    assert figures[2]["values"][0] < 1


@pytest.mark.peer
def test_foolbox_is_asked_for_the_same_columns_as_ours():
    needs("foolbox")
    model, x, labels = model_and_images("small", 4, 8, CPU)
    labels[0] = (labels[0] + 1) % 10
    theirs = foolbox_columns(model, x, labels, 5)
    ours = evaluate_robustness(model, x, labels, BOUNDS, steps=5)
    assert all(parameter.requires_grad for parameter in model.parameters())
    for rows, radius in zip(theirs, ours.radii, strict=True):
        assert tuple(rows.sum(1).tolist()) == radius.attacks["exact"].correct
