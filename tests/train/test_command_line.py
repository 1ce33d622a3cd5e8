"""`python -m train`: fit, then the attack on what it has trained, and what is refused on the way."""

import shutil

import numpy as np
import pytest
import torch

from fdt_pipeline.cli import main as cli
from tests.folders import save_image
from train.__main__ import main
from train.files import read_json, write_json
from train.recipes import RECIPES
from train.saved_run import open_run

SHORT = ["--steps", "1", "--images", "5"]


def test_options_without_a_verb_are_the_demos_and_are_not_lost(monkeypatch, tmp_path):
    seen = []
    monkeypatch.setattr("train.demo.run_demo", lambda *arguments: seen.append(arguments) or "table")
    for argv in (["--quick", "--seed", "5"], ["demo", "--quick", "--seed", "5"]):
        assert main([*argv, "--out", str(tmp_path)]) == 0
    assert seen[0] == seen[1]
    assert (seen[0][1].seed, seen[0][1].epochs) == (5, 1)
    for argv in (["--seed", "5", "demo"], ["--quick", "fit", "--recipe", "small_fdt"]):
        with pytest.raises(SystemExit):
            main(argv)


@pytest.mark.parametrize(
    "verb", [[], *([verb] for verb in ["demo", "fit", "robustness", "checks", "export", "reproduce", "sweep"])]
)
def test_help_shows_an_example_to_copy_and_that_of_fit_every_recipe(verb, capsys):
    with pytest.raises(SystemExit) as exit_:
        main([*verb, "--help"])
    assert exit_.value.code == 0
    text = capsys.readouterr().out
    assert f"\n    python -m train {' '.join(verb)}".rstrip() in text
    assert verb != ["fit"] or all(recipe in text for recipe in RECIPES)


def test_fit_then_robustness_prints_a_table_and_writes_its_counts(trained, tmp_path, shown):
    json_file, attack = tmp_path / "robustness.json", ["--eps", 0.1, 0, "--steps", 3, "--images", 40]
    output = shown("robustness", trained, *attack, "--device", "cpu", "--json", json_file)
    assert "| small_tn_fdt |" in output
    assert "on 40 images" in output
    row = read_json(json_file)["models"]["small_tn_fdt"]
    assert row["num_images"] == 40
    assert set(row["radii"][0]["attacks"]) == {"exact", "straight-through"}
    assert row["radii"][1]["last"] == row["radii"][1]["worst"] == row["clean"]
    saved = open_run(trained, torch.device("cpu"))
    assert row["made_from"] == saved.made_from(saved.test_loader())


def test_runs_of_one_recipe_have_a_row_each(trained, tmp_path, shown, refused):
    other = shutil.copytree(trained, tmp_path / "other")
    output = shown("robustness", trained, other, *SHORT, "--json", tmp_path / "both.json")
    models = read_json(tmp_path / "both.json")["models"]
    assert [model["run"] for model in models.values()] == [str(trained), str(other)]
    assert all(f"| small_tn_fdt ({folder}) " in output for folder in (trained, other))
    assert "a run was given twice" in refused("robustness", other, f"{other}/.")


def test_images_of_different_sizes_are_trained_on_and_attacked_at_one_size(tmp_path, shown, refused):
    for split, count in (("train", 60), ("test", 12)):
        for number in range(count):
            level = np.full((40 + number % 7, 36, 3), 80 * (number % 3), np.uint8)
            save_image(tmp_path / "photos" / split / f"class{number % 3}" / f"{number}.png", level)
    shards, run = tmp_path / "shards", tmp_path / "run"
    assert cli(["shard", str(tmp_path / "photos"), str(shards)]) == 0
    fit = ["fit", "--recipe", "small_tn_fdt", "--data", shards, "--batch-size", 20, "--epochs", 2]
    assert "different sizes: pass --size H W" in refused(*fit, "--out", tmp_path / "unsized")
    shown(*fit, "--out", run, "--size", 32, 32)
    assert "on 12 images" in shown("robustness", run, "--steps", 2, "--eps", 0.01)


def test_test_shards_that_changed_are_noticed_and_can_be_given(trained, few_shards, tmp_path, shown, refused):
    run = shutil.copytree(trained, tmp_path / "run")
    config = read_json(run / "config.json")
    config["shards"]["test"] = "0" * 64
    write_json(run / "config.json", config)
    assert "has changed since small_tn_fdt was trained" in refused("robustness", run, *SHORT)
    for data in (few_shards, few_shards / "test"):
        assert "| small_tn_fdt |" in shown("robustness", run, *SHORT, "--data", data)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["fit", "OUT", "--out", "NEW", "--lr", "1e30"], "the loss of step"),
        (["fit", "OUT", "--resume", "--lr", "0.5"], "; lr was 0.1 and is now 0.5"),
        (["fit", "OUT"], "already holds a run: pass --resume"),
        (["fit", "OUT", "--recipe", "resnet3_plain"], "there is no recipe 'resnet3_plain'"),
        (["fit", "OUT", "--data", "no/such/folder"], "no/such/folder"),
        (["fit", "OUT", "--out", "FILE"], "file is a file, expected a folder"),
        (["fit", "OUT", "--out", "FILE/run"], "file"),
        (["robustness", "no/such/run"], "no/such/run holds no run"),
        (["robustness", "RUN", "--images", "101"], "must be in 1..100, got 101"),
        (["robustness", "RUN", "--eps", "-1"], "eps"),
        (["robustness", "RUN", "--steps", "0"], "steps"),
        (["robustness", "RUN", "--json", "/proc/no/such.json"], "/proc/no"),
        (["export", "no/such/run", "--out", "OUT"], "holds no run"),
    ],
)
def test_bad_input_exits_2_and_a_diverging_run_1_with_one_line_before_any_attack(
    trained, few_shards, tmp_path, arguments, message, monkeypatch, refused
):
    pytest.importorskip("onnxruntime") if arguments[0] == "export" else None
    monkeypatch.setattr("train.robustness.pgd_paths", None)
    (tmp_path / "file").write_text("not a folder")
    fit = ["--recipe", "small_tn_fdt", "--data", few_shards, "--out", trained, "--device", "cpu"]
    names = {"RUN": [trained], "OUT": fit if arguments[0] == "fit" else [tmp_path / "out"]}
    names |= {"FILE": [tmp_path / "file"], "FILE/run": [tmp_path / "file" / "run"], "NEW": [tmp_path / "new"]}
    parts = [part for argument in arguments for part in names.get(argument, [argument])]
    error = refused(*parts, code=1 if "loss" in message else 2)
    assert error.strip().splitlines()[-1].startswith("error: ")
    assert message in error
