import shutil

import numpy as np
import pytest
from PIL import Image

from fdt_pipeline.shards import verify_shards
from fdt_pipeline.sources import ArraySource
from tests.numbered import LABELS, numbered_images
from tests.train.made_up import interrupt_attack
from train import demo, saved_run, setup
from train.files import read_json


@pytest.fixture(scope="module")
def quick_demo(tmp_path_factory):
    out = tmp_path_factory.mktemp("demo") / "demo"
    return out, demo.run_demo(out, demo.QUICK, "cpu")


def test_the_demo_leaves_table_results_pictures_and_logs(quick_demo):
    out, table = quick_demo
    assert (out / "table.md").read_text() == table
    results = read_json(out / "results.json")
    assert results["models"].keys() == {"plain", "TN + FDT"}
    assert results["settings"]["seed"] == 0
    assert results["versions"]["torch"]
    assert results["hardware"]["cores"] >= 1
    for name in demo.NAMES:
        assert (out / name / "log.jsonl").read_text().count("\n") >= 2
    for picture in ("batch.png", "robustness.png"):
        assert (np.asarray(Image.open(out / picture).convert("L")) < 200).mean() > 0.01


def test_a_finished_demo_is_shown_again_and_not_made_again(quick_demo, monkeypatch):
    monkeypatch.setattr(saved_run, "evaluate_robustness", None)
    monkeypatch.setattr(setup, "write_shards", None)
    assert demo.run_demo(quick_demo[0], demo.QUICK, "cpu") == quick_demo[1]


def test_an_interrupted_demo_goes_on_to_the_same_numbers(quick_demo, tmp_path, monkeypatch, refused):
    batches = interrupt_attack(monkeypatch, 1)
    assert "the same command goes on" in refused("--quick", "--out", tmp_path / "demo", "--device", "cpu", code=130)
    assert not (tmp_path / "demo" / "table.md").exists()
    assert demo.run_demo(tmp_path / "demo", demo.QUICK, "cpu") == quick_demo[1]
    assert next(batches) == 3


def test_shards_that_a_kill_left_unfinished_are_made_again(tmp_path):
    (tmp_path / "shard-000000.tar").write_bytes(b"half")
    setup.shard_once(lambda: ArraySource(numbered_images(), LABELS), tmp_path, "numbered")
    assert not verify_shards(tmp_path)


def test_a_demo_with_other_settings_is_not_mixed_in_and_damaged_shards_stop_it(quick_demo, tmp_path, refused):
    out = shutil.copytree(quick_demo[0], tmp_path / "demo")
    assert "holds a demo with other settings" in refused("demo", "--quick", "--seed", "7", "--out", out)
    tar = next((out / "shards" / "train").glob("*.tar"))
    data = bytearray(tar.read_bytes())
    data[5000] ^= 1
    tar.write_bytes(data)
    error = refused("--quick", "--out", out, "--device", "cpu")
    assert "is damaged: " in error
    assert tar.name in error
