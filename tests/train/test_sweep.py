import shutil

import pytest

from train.__main__ import main
from train.recipes import make_recipe
from train.reproduce.command import select_columns
from train.reproduce.record import read_records
from train.step import NonFiniteLossError

pytestmark = pytest.mark.usefixtures("one_thread")

SWEEP = ["sweep", "--epochs", "1", "--images", "20", "--steps", "2", "--device", "cpu"]


def test_the_sweep_has_the_papers_columns_and_every_control():
    columns = select_columns(None)
    assert columns[:5] == ["plain", "ov", "fdt", "tn", "tn_fdt"]
    assert {"label_smoothing", "mixup", "fdt_k2", "tn_exact", "pono", "fdt_gamma0.5", "fdt_gamma4"} <= {*columns}
    assert select_columns(["fdt*"])[:2] == ["fdt", "fdt_k2"]
    with pytest.raises(ValueError, match="--only cutmix names no column; columns: plain, ov"):
        select_columns(["cutmix"])


def test_a_sweep_is_run_drawn_and_drawn_again(few_shards, tmp_path, monkeypatch, capsys):
    out = tmp_path / "sweep"
    command = [*SWEEP, "--data", str(few_shards), "--out", str(out), "--only", "plain", "fdt", "fdt_gamma2", "pono"]
    assert main(command) == 0
    shown = capsys.readouterr().out
    assert "PONO - plain" in shown
    records = read_records(out)
    assert [record.row.column for record in records] == ["fdt", "fdt_gamma2", "plain", "pono"]
    assert {record.row.dataset for record in records} == {few_shards.name}
    assert {path.suffix for path in out.iterdir() if path.is_file()} == {".json", ".md", ".png"}
    monkeypatch.setattr("train.reproduce.running.fit", None)
    assert main(command) == 0  # all is there
    assert main(["sweep", "--report", "--out", str(out)]) == 0
    assert capsys.readouterr().out == 2 * shown


@pytest.mark.parametrize("name", ["svhn", "digits"])
def test_the_augmentation_is_an_option_and_not_the_name_of_the_folder(few_shards, tmp_path, monkeypatch, name, capsys):
    (tmp_path / "shards").mkdir()
    data = shutil.copytree(few_shards, tmp_path / "shards" / name)
    recipes = []

    def fit(recipe, *arguments, **options):
        recipes.append(recipe)
        raise NonFiniteLossError

    monkeypatch.setattr("train.reproduce.running.fit", fit)
    for options in ([], ["--no-augment"]):
        out = tmp_path / f"sweep{len(options)}"
        assert main([*SWEEP, "--data", str(data), "--out", str(out), "--only", "plain", *options]) == 1
    assert [recipe.augment for recipe in recipes] == [make_recipe("small_plain").augment, None]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "expected --data SHARDS, or --report"),
        (["--data", "no/shards"], "no/shards"),
        (["--report", "--data", "few"], "leave out --data"),
        (["--data", "few", "--model", "resnet3"], "there is no recipe 'resnet3_plain'"),
    ],
)
def test_bad_input_exits_2(few_shards, tmp_path, arguments, message, capsys):
    arguments = [str(few_shards) if argument == "few" else argument for argument in arguments]
    assert main(["sweep", *arguments, "--out", str(tmp_path / "out")]) == 2
    assert message in capsys.readouterr().err
