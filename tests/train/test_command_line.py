import json
import shutil

import numpy as np
import pytest
import torch
from PIL import Image

from fdt_pipeline.cli import main as cli
from train.__main__ import main
from train.recipes import RECIPES
from train.saved_run import open_run


def test_options_without_a_verb_are_the_demos_and_are_not_lost(monkeypatch, tmp_path, capsys):
    seen = []
    monkeypatch.setattr("train.demo.run_demo", lambda *arguments: seen.append(arguments) or "table")
    for argv in (["--quick", "--seed", "5"], ["demo", "--quick", "--seed", "5"]):
        assert main([*argv, "--out", str(tmp_path)]) == 0
    assert seen[0] == seen[1]
    assert (seen[0][1].seed, seen[0][1].epochs) == (5, 1)
    for argv in (["--seed", "5", "demo"], ["--quick", "fit", "--recipe", "small_fdt"]):
        with pytest.raises(SystemExit):
            main(argv)


@pytest.mark.parametrize("verb", [[], ["demo"], ["fit"], ["robustness"]])
def test_help_shows_an_example_to_copy(verb, capsys):
    with pytest.raises(SystemExit) as exit_:
        main([*verb, "--help"])
    assert exit_.value.code == 0
    assert f"\n    python -m train {' '.join(verb)}".rstrip() in capsys.readouterr().out


def test_help_of_fit_lists_every_recipe(capsys):
    with pytest.raises(SystemExit):
        main(["fit", "--help"])
    text = capsys.readouterr().out
    assert all(recipe in text for recipe in RECIPES)


@pytest.fixture(scope="module")
def trained(few_shards, tmp_path_factory):
    out = tmp_path_factory.mktemp("cli") / "run"
    fit = ["fit", "--recipe", "small_tn_fdt", "--data", str(few_shards), "--out", str(out), "--device", "cpu"]
    assert main([*fit, "--max-steps", "6"]) == 0
    return fit, out


def test_fit_then_robustness_prints_a_table_and_writes_its_counts(trained, tmp_path, capsys):
    capsys.readouterr()
    json_file = tmp_path / "robustness.json"
    command = ["robustness", str(trained[1]), "--eps", "0.1", "0", "--steps", "3", "--images", "40", "--device", "cpu"]
    assert main([*command, "--json", str(json_file)]) == 0
    output = capsys.readouterr().out
    assert "| small_tn_fdt |" in output
    row = json.loads(json_file.read_text())["models"]["small_tn_fdt"]
    assert row["num_images"] == 40
    assert set(row["radii"][0]["attacks"]) == {"exact", "straight-through"}
    assert row["radii"][1]["last"] == row["radii"][1]["worst"] == row["clean"]
    assert "on 40 images" in output
    saved = open_run(trained[1], torch.device("cpu"))
    assert row["made_from"] == saved.made_from(saved.test_loader())


def test_runs_of_one_recipe_have_a_row_each(trained, tmp_path, capsys):
    other = shutil.copytree(trained[1], tmp_path / "other")
    json_file = tmp_path / "both.json"
    command = ["robustness", str(trained[1]), str(other), "--steps", "1", "--images", "5", "--json", str(json_file)]
    assert main(command) == 0
    models = json.loads(json_file.read_text())["models"]
    assert [model["run"] for model in models.values()] == [str(trained[1]), str(other)]
    output = capsys.readouterr().out
    assert all(f"| small_tn_fdt ({folder}) " in output for folder in (trained[1], other))
    assert main(["robustness", str(other), f"{other}/."]) == 2
    assert "a run was given twice" in capsys.readouterr().err


def test_an_unwritable_json_is_told_before_the_attack(trained, capsys, monkeypatch):
    monkeypatch.setattr("train.saved_run.attack_run", None)
    assert main(["robustness", str(trained[1]), "--json", "/proc/no/such.json"]) == 2
    assert "/proc/no" in capsys.readouterr().err


def test_images_of_different_sizes_are_trained_on_and_attacked_at_one_size(tmp_path, capsys):
    generator = np.random.default_rng(0)
    for split, count in (("train", 60), ("test", 12)):
        for number in range(count):
            label = number % 3
            folder = tmp_path / "photos" / split / f"class{label}"
            folder.mkdir(parents=True, exist_ok=True)
            pixels = generator.integers(0, 80, (40 + number % 7, 36, 3), np.uint8) + 80 * (np.arange(3) == label)
            Image.fromarray(pixels.astype(np.uint8)).save(folder / f"{number}.png")
    shards, run = str(tmp_path / "shards"), str(tmp_path / "run")
    assert cli(["shard", str(tmp_path / "photos"), shards]) == 0
    fit = ["fit", "--recipe", "small_tn_fdt", "--data", shards, "--batch-size", "20", "--epochs", "2"]
    assert main([*fit, "--out", str(tmp_path / "unsized")]) == 2
    assert "different sizes" in capsys.readouterr().err
    assert main([*fit, "--out", run, "--size", "32", "32"]) == 0
    assert main(["robustness", run, "--steps", "2", "--eps", "0.01"]) == 0
    assert "on 12 images" in capsys.readouterr().out


def test_test_shards_that_changed_are_noticed_and_can_be_given(trained, few_shards, tmp_path, capsys):
    run = shutil.copytree(trained[1], tmp_path / "run")
    config = json.loads((run / "config.json").read_text())
    config["shards"]["test"] = "0" * 64
    (run / "config.json").write_text(json.dumps(config))
    assert main(["robustness", str(run), "--steps", "1", "--images", "9"]) == 2
    assert "has changed since small_tn_fdt was trained" in capsys.readouterr().err
    for data in (few_shards, few_shards / "test"):
        assert main(["robustness", str(run), "--steps", "1", "--images", "9", "--data", str(data)]) == 0


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (["--resume", "--lr", "0.5"], "lr was 0.1 and is now 0.5"),
        ([], "already holds a run: pass --resume"),
        (["--recipe", "resnet3_plain"], "there is no recipe 'resnet3_plain'"),
        (["--data", "no/such/folder"], "no/such/folder"),
    ],
)
def test_bad_input_of_fit_exits_2_with_one_line(trained, changes, message, capsys):
    assert main([*trained[0], "--max-steps", "6", *changes]) == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error.startswith("error: ")
    assert message in error


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["robustness", "no/such/run"], "no/such/run holds no run"),
        (["robustness", "RUN", "--images", "101"], "must be in 1..100, got 101"),
        (["robustness", "RUN", "--eps", "-1"], "eps"),
        (["robustness", "RUN", "--steps", "0"], "steps"),
    ],
)
def test_bad_input_of_robustness_exits_2(trained, arguments, message, capsys):
    arguments = [str(trained[1]) if argument == "RUN" else argument for argument in arguments]
    assert main(arguments) == 2
    assert message in capsys.readouterr().err


def test_a_diverging_run_exits_1(trained, tmp_path, capsys):
    changes = ["--lr", "1e30", "--out", str(tmp_path / "run")]
    assert main([*trained[0], *changes]) == 1
    assert "the loss of step" in capsys.readouterr().err


def test_an_unwritable_out_exits_2(trained, tmp_path, capsys):
    (tmp_path / "file").write_text("not a folder")
    assert main([*trained[0], "--out", str(tmp_path / "file" / "run")]) == 2
    assert "error:" in capsys.readouterr().err
