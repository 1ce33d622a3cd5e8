"""Results of several machines in one table: they must be of one configuration."""

import copy
import json
from dataclasses import replace

import pytest

from tests.train.made_up import TINY, made_up_record, write_table
from train.reproduce.paper import Row
from train.reproduce.record import merge, read_records, write_record
from train.reproduce.report import write_report

FDT = Row("cifar10", "small", "fdt")


def changed(record, path, value):
    """A copy with another value at a dotted path."""
    record = copy.deepcopy(record)
    *parents, last = path.split(".")
    place = record
    for name in parents:
        place = place[name]
    place[last] = value
    return record


@pytest.fixture
def one(tmp_path):
    return write_table(tmp_path / "one", [made_up_record(seed=0), made_up_record(seed=1)])


def test_seeds_and_rows_of_two_machines_make_one_table(one, tmp_path):
    elsewhere = {"device": "cuda", "gpu": "another", "cpu": "made up", "cores": 16, "memory_gib": 1.0}
    records = [made_up_record(seed=2), made_up_record(FDT)]
    two = write_table(tmp_path / "two", [changed(r, "training.hardware", elsewhere) for r in records])
    merge([one, two], tmp_path / "both")
    found = read_records(tmp_path / "both")
    assert [record.name for record in found] == [
        "cifar10-small-fdt-seed0.json",
        *(f"cifar10-small-plain-seed{seed}.json" for seed in range(3)),
    ]
    text = write_report(tmp_path / "both")
    assert "ours, Eq. 7, 3 seeds" in text
    report = (tmp_path / "both" / "report.md").read_text()
    assert "2 cores of made up, float32" in report
    assert "* another, float32" in report


def test_merging_again_and_into_a_folder_with_results_changes_nothing_that_is_there(one, tmp_path):
    before = {path.name: path.read_bytes() for path in (one / "records").iterdir()}
    two = write_table(tmp_path / "two", [made_up_record(FDT)])
    for _ in range(2):
        merge([two], one)
    after = {path.name: path.read_bytes() for path in (one / "records").iterdir()}
    assert set(after) == {*before, "cifar10-small-fdt-seed0.json"}
    assert all(after[name] == content for name, content in before.items())


def test_a_missing_data_set_that_another_machine_has_is_no_longer_missing(tmp_path):
    without = write_table(tmp_path / "a", [made_up_record()], missing={"fashion-mnist": "gone", "svhn": "gone"})
    have = write_table(tmp_path / "b", [made_up_record(Row("fashion-mnist", "small", "plain"))])
    merge([without, have], tmp_path / "c")
    assert json.loads((tmp_path / "c" / "plan.json").read_text())["missing"] == {"svhn": "gone"}


ATTACKED = {"accuracy": 0.1, "num_images": 50, "eps": 0.03, "masked": False}
OTHER, TWO = "results of different configurations", "one row and seed has two results"


@pytest.mark.parametrize(
    ("seed", "path", "value", "message"),
    [
        (2, "training.recipe.lr", 0.2, rf"{OTHER}: recipe\.lr is 0\.1 in .*one .* and 0\.2 in .*two"),
        (2, "training.recipe.augment.pad", 0, rf"{OTHER}: recipe\.augment\.pad is 4"),
        (2, "training.shards.test", "other", rf"{OTHER}: shards\.test is 'cifar10 test'"),
        (2, "precision", "bfloat16", f"{OTHER}: precision is 'float32'"),
        (2, "robustness.num_images", 7, f"{OTHER}: num_images is 1000"),
        (2, "autoattack", [{**ATTACKED, "num_images": 40}], rf"{OTHER}: AutoAttack at eps 0\.03\.num_images is 50 in"),
        (1, "training.final.accuracy", 0.91, rf"{TWO}: training\.final\.accuracy"),
        (1, "robustness.num_correct", 3, rf"{TWO}: robustness\.num_correct"),
        (1, "curves.train_kl", [1.0, 0.6], rf"{TWO}: curves\.train_kl"),
    ],
)
def test_results_of_another_configuration_or_of_one_seed_twice_are_refused_with_the_field(
    tmp_path, seed, path, value, message
):
    one = write_table(tmp_path / "one", [made_up_record(seed=0), made_up_record(seed=1, autoattack=[ATTACKED])])
    two = write_table(tmp_path / "two", [changed(made_up_record(seed=seed), path, value)])
    with pytest.raises(ValueError, match=message):
        merge([one, two], tmp_path / "both")
    assert not (tmp_path / "both").exists()


def test_folders_of_other_settings_are_refused_with_the_field(one, tmp_path):
    other = replace(TINY, epochs=30, eps_values=(0.1,))
    two = write_table(tmp_path / "two", [made_up_record(seed=2, settings=other)], other)
    with pytest.raises(ValueError, match=r"epochs is 2 in .*one and 30 in .*two; eps_values is"):
        merge([one, two], tmp_path / "both")


def test_a_report_of_mixed_records_is_refused(one):
    write_record(one, changed(made_up_record(seed=2), "training.recipe.lr", 0.2))
    with pytest.raises(ValueError, match=r"recipe\.lr"):
        write_report(one)


def test_a_seed_that_was_run_twice_with_the_same_figures_is_one_seed(one, tmp_path):
    again = changed(made_up_record(seed=1, autoattack=[ATTACKED]), "training.seconds", 7.0)
    two = write_table(tmp_path / "two", [again])
    merge([one, two], tmp_path / "both")
    records = read_records(tmp_path / "both")
    assert len(records) == 2
    assert records[1].under_autoattack(0.03) == 0.1  # the one that knows more is kept
