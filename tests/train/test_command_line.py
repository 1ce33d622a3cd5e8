import json

import pytest

from train.__main__ import main
from train.recipes import RECIPES


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
