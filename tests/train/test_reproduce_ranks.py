"""A table on two ranks: each run and each attack is shared, and one of them writes."""

import re
import subprocess
import sys

import pytest
import torch

from tests import table_on_ranks
from train.__main__ import main
from train.files import read_json
from train.reproduce.record import read_records
from train.saved_run import attack_run, open_run

pytestmark = [pytest.mark.usefixtures("one_thread"), pytest.mark.cluster]

SHORT = ["--epochs", "1", "--images", "60", "--steps", "2", "--eps", "0.1", "0.01", "--device", "cpu"]
TABLE = ["reproduce", "table1", "--scale", "small", *SHORT, "--seeds", "1", "--only", "plain", "tn_fdt"]


@pytest.fixture(scope="module")
def root(few_shards, tmp_path_factory):
    folder = tmp_path_factory.mktemp("root")
    (folder / "cifar10").symlink_to(few_shards)
    return folder


def on_two_ranks(*arguments):
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    command = [*launcher, table_on_ranks.__file__, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)


def test_a_table_on_two_ranks_is_one_table(root, tmp_path, monkeypatch, capsys):
    out = tmp_path / "table"
    command = [*TABLE, "--data", str(root), "--out", str(out)]
    finished = on_two_ranks(*command)
    assert finished.returncode == 0, finished.stderr
    records = read_records(out)
    assert [record.row.column for record in records] == ["plain", "tn_fdt"]
    assert [record.content["training"]["ranks"] for record in records] == [2, 2]
    for record in records:
        saved = open_run(out / "runs" / record.row.key / "seed0", torch.device("cpu"))
        loader = saved.test_loader(out / "data" / "cifar10", 25)
        assert record.robustness.to_dict() == attack_run(saved, loader, (0.1, 0.01), 2, num_images=60).to_dict()
    assert re.search(r"\* 2 processes on \d+ cores? of", (out / "report.md").read_text())
    monkeypatch.setattr("train.reproduce.data.BUNDLED", {})
    monkeypatch.setattr("train.reproduce.running.fit", None)  # one process finds nothing left to do
    assert main(command) == 0
    assert capsys.readouterr().out == finished.stdout


def test_runs_that_diverge_on_two_ranks_are_noted_and_the_others_are_done(root, tmp_path):
    out = tmp_path / "table"
    finished = on_two_ranks(*TABLE, "--lr", "1e30", "--data", root, "--out", out)
    assert finished.returncode != 0
    assert "cifar10-small-plain seed 0: the loss of step" in finished.stderr
    assert sorted(read_json(out / "plan.json")["diverged"]) == [
        "cifar10-small-plain seed 0",
        "cifar10-small-tn_fdt seed 0",
    ]
    assert not read_records(out)


def test_a_column_that_ranks_cannot_share_is_refused_before_anything_is_run(few_shards, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "2")
    command = ["sweep", "--data", str(few_shards), "--out", str(tmp_path / "sweep"), "--only", "plain", "mixup"]
    assert main(command) == 2
    assert "mixup pairs the images of a whole batch" in capsys.readouterr().err
    assert not (tmp_path / "sweep").exists()
