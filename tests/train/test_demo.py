import json
import shutil

import numpy as np
import pytest
from PIL import Image

from train import demo
from train.__main__ import main
from train.reproduce import running
from train.reproduce.settings import SPLITS, shard_small


@pytest.fixture(scope="module")
def quick_demo(tmp_path_factory):
    out = tmp_path_factory.mktemp("demo") / "demo"
    return out, demo.run_demo(out, demo.QUICK, device_name="cpu")


def test_the_demo_leaves_table_results_pictures_and_logs(quick_demo):
    out, table = quick_demo
    assert (out / "table.md").read_text() == table
    assert "plain" in table
    assert "TN + FDT" in table
    models = json.loads((out / "results.json").read_text())["models"]
    assert models.keys() == {"plain", "TN + FDT"}
    for model in models.values():
        assert model["seed"] == 0
        assert model["training"]["versions"]["torch"]
        assert model["training"]["hardware"]["cores"] >= 1
        assert min(model["training"]["seconds"], model["attack_seconds"]) > 0
    logs = list(out.glob("runs/*/*/log.jsonl"))
    assert [log.read_text().count("\n") >= 2 for log in logs] == [True, True]
    for picture in ("batch.png", "robustness.png"):
        assert (np.asarray(Image.open(out / picture).convert("L")) < 200).mean() > 0.01


def test_a_finished_demo_is_shown_again_and_not_made_again(quick_demo, monkeypatch):
    monkeypatch.setattr(running, "fit", None)
    monkeypatch.setattr(running, "attack_run", None)
    monkeypatch.setattr("train.reproduce.settings.write_shards", None)
    assert demo.run_demo(quick_demo[0], demo.QUICK, device_name="cpu") == quick_demo[1]


def test_an_interrupted_demo_goes_on_to_the_same_numbers(quick_demo, tmp_path, monkeypatch):
    original, calls = running.attack_run, iter(range(9))

    def interrupted(*arguments, **options):
        if next(calls) == 1:
            raise KeyboardInterrupt
        return original(*arguments, **options)

    monkeypatch.setattr(running, "attack_run", interrupted)
    assert main(["--quick", "--out", str(tmp_path / "demo"), "--device", "cpu"]) == 130
    assert not (tmp_path / "demo" / "table.md").exists()
    assert demo.run_demo(tmp_path / "demo", demo.QUICK, device_name="cpu") == quick_demo[1]
    assert next(calls) == 3


def test_shards_that_a_kill_left_unfinished_are_made_again(quick_demo, tmp_path):
    (tmp_path / "train").mkdir()
    (tmp_path / "train" / "shard-000000.tar").write_bytes(b"half")
    shard_small(None, demo.DATASET, tmp_path)
    for split in SPLITS:
        manifests = (folder / split / "manifest.json" for folder in (tmp_path, quick_demo[0] / "shards"))
        assert len({manifest.read_text() for manifest in manifests}) == 1


def test_a_demo_with_other_settings_is_not_mixed_in_and_damaged_shards_stop_it(quick_demo, tmp_path, refused):
    out = shutil.copytree(quick_demo[0], tmp_path / "demo")
    assert "these are results of different settings: " in refused("demo", "--out", out)
    tar = next((out / "shards" / "train").glob("*.tar"))
    data = bytearray(tar.read_bytes())
    data[5000] ^= 1
    tar.write_bytes(data)
    error = refused("--quick", "--out", out, "--device", "cpu")
    assert "is damaged: " in error
    assert tar.name in error
