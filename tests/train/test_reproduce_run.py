"""Training and attacking the rows of a table: what is left on disk, and going on after a stop."""

import re
import shutil

import numpy as np
import pytest
import torch

from fdt_pipeline.shards import load_shards
from tests.train.made_up import SMALLER, interrupt_attack, run_killed
from train import saved_run
from train.__main__ import main
from train.files import CHECKPOINT, read_json, write_json
from train.reproduce import running
from train.reproduce import settings as table_settings
from train.reproduce.record import read_records
from train.reproduce.running import ATTACK
from train.reproduce.settings import draw_subset
from train.robust_accuracy import Robustness
from train.saved_run import attack_run, open_run

pytestmark = pytest.mark.usefixtures("one_thread")

COLUMNS = ["plain", "tn_fdt"]
SHORT = ["--epochs", "2", "--images", "60", "--steps", "2", "--eps", "0.1", "0.01", "--device", "cpu"]
TABLE = ["reproduce", "table1", "--scale", "small", *SHORT, "--seeds", "2", "--only", *COLUMNS]


@pytest.fixture(autouse=True)
def small_subsets(monkeypatch):
    for change in SMALLER:
        monkeypatch.setattr(*change)


@pytest.fixture(scope="module")
def root(few_shards, tmp_path_factory):
    """ROOT with CIFAR-10 alone (Fashion-MNIST's images in truth)."""
    folder = tmp_path_factory.mktemp("root")
    (folder / "cifar10").symlink_to(few_shards)
    return folder


@pytest.fixture(scope="module")
def undisturbed(root, tmp_path_factory):
    out = tmp_path_factory.mktemp("table") / "table"
    with pytest.MonkeyPatch.context() as monkeypatch:
        small_subsets.__wrapped__(monkeypatch)
        assert main([*TABLE, "--data", str(root), "--out", str(out)]) == 0
    return out


def figures(out):
    """All that the records say, but for the time it took."""
    found = {record.name: record.content for record in read_records(out)}
    for content in found.values():
        del content["attack_seconds"], content["training"]["seconds"]
    return found


def test_a_table_leaves_a_record_a_seed_and_a_report_that_lists_what_is_missing(undisturbed):
    records = read_records(undisturbed)
    assert [r.name for r in records] == [f"cifar10-small-{c}-seed{seed}.json" for c in COLUMNS for seed in (0, 1)]
    assert records[0].robustness.num_images == 60
    assert records[0].content["training"]["final"]["accuracy"] == records[0].clean
    assert {len(values) for values in records[0].content["curves"].values()} == {2}
    report = (undisturbed / "report.md").read_text()
    assert "Fashion-MNIST, small ResNet: missing, no shards in fashion-mnist/train of --data" in report
    assert (undisturbed / "cifar10-small-paths.png").is_file()


def test_hours_and_gb_are_said_before_anything_is_trained(root, tmp_path, monkeypatch, capsys):
    said = []

    def fit(*_, **__):
        said.append(capsys.readouterr().err)
        raise KeyboardInterrupt

    monkeypatch.setattr("train.reproduce.running.fit", fit)
    assert main([*TABLE, "--data", str(root), "--out", str(tmp_path / "t")]) == 130
    assert re.search(r"4 runs to train and attack: about \S+ (min|hours) .*, \S+ GB of disk, and \S+ GB", said[0])


def test_the_medium_scale_is_the_papers_epochs_on_all_images_with_one_seed_of_fashion_mnist(
    few_shards, tmp_path, monkeypatch
):
    for name in ("cifar10", "fashion-mnist"):
        (tmp_path / name).symlink_to(few_shards)
    runs = []

    def run_rows(runner, *asked):
        runs.append((runner.settings, [(row.key, seed) for row, seed in running.in_order(*asked)]))
        return []

    monkeypatch.setattr(running.Runner, "run_rows", run_rows)
    monkeypatch.setattr("train.reproduce.cost.cost_of_rows", lambda *_: None)
    command = ["reproduce", "table1", "--scale", "medium", "--data", str(tmp_path), "--device", "cpu"]
    main([*command, "--out", str(tmp_path / "a")])
    main([*command, "--out", str(tmp_path / "b"), "--model", "small", "--only", "fdt"])
    (settings, rows), (_, others) = runs
    assert (settings.epochs, settings.attack_images, settings.scale) == (150, 1000, "medium")
    assert [seed for key, seed in rows if key == "cifar10-small32-plain"] == [0, 1, 2]
    assert [seed for key, seed in rows if key == "fashion-mnist-small32-plain"] == [0]
    assert len(rows) == 5 * (3 + 1)
    assert others == [*(("cifar10-small-fdt", seed) for seed in (0, 1, 2)), ("fashion-mnist-small-fdt", 0)]


def test_the_same_command_shows_the_same_table_and_runs_nothing(undisturbed, root, monkeypatch, shown):
    monkeypatch.setattr("train.reproduce.running.fit", None)
    monkeypatch.setattr(saved_run, "evaluate_robustness", None)
    first = shown(*TABLE, "--data", root, "--out", undisturbed)
    assert shown("reproduce", "table1", "--report", "--out", undisturbed) == first
    assert "ours, Eq. 7, 2 seeds" in first


@pytest.mark.process
def test_a_table_killed_in_a_run_and_interrupted_in_an_attack_comes_out_the_same(
    undisturbed, root, tmp_path, monkeypatch, shown, refused
):
    out = tmp_path / "table"
    command, run = [*TABLE, "--data", str(root), "--out", str(out)], out / "runs" / "cifar10-small-tn_fdt" / "seed0"
    run_killed(command, step=7)  # two steps an epoch: in the second epoch of the second run
    assert (run / CHECKPOINT).exists()
    assert len(read_records(out)) == 1
    batches = interrupt_attack(monkeypatch, 1)
    assert "the same command goes on" in refused(*command, code=130)
    assert read_json(run / ATTACK)["num_images"] == 25
    shown(*command)
    assert figures(out) == figures(undisturbed)
    assert next(batches) == 1 + 3 * 3  # no image twice: three batches a run, and one that was broken off


def test_autoattack_that_was_run_later_is_added_to_the_record(undisturbed, root, tmp_path, shown, refused):
    out = shutil.copytree(undisturbed, tmp_path / "table")
    command, run = [*TABLE, "--data", root, "--out", out], out / "runs" / "cifar10-small-plain" / "seed0"
    checks = [{"name": "Square", "figures": {"Square": 0.9}, "eps": 0.1}]
    checks += [{"name": "AutoAttack", "figures": {"PGD": 0.4, "Square": 0.3}, "eps": 8 / 256}]
    training = read_json(run / "results.json")
    made_from = {"weights": training["weights"], "shards": training["shards"]["test"]}
    content = {"weights": "final", "made_from": made_from, "num_images": 10, "masked": True, "checks": checks}
    write_json(run / "checks.json", content)
    shown(*command)
    record = next(r for r in read_records(out) if r.name == "cifar10-small-plain-seed0.json")
    found = {"accuracy": 0.3, "num_images": 10, "eps": 8 / 256, "masked": True, "weights": training["weights"]}
    assert record.content["autoattack"] == [found]
    for name in ("weights", "shards"):
        write_json(run / "checks.json", {**content, "made_from": {**made_from, name: "0" * 64}})
        assert "make it again without --weights and --data" in refused(*command)
    write_json(run / "checks.json", {})
    assert "holds no figures of AutoAttack that can be read" in refused(*command)


def test_a_run_that_diverges_is_reported_and_trained_again_only_if_asked(root, tmp_path, monkeypatch, capsys):
    out = tmp_path / "t"
    command = [*TABLE[:-2], "plain", "--seeds", "1", "--data", str(root), "--out", str(out), "--lr", "1e30"]
    assert main(command) == 1
    first = capsys.readouterr()
    assert "cifar10-small-plain seed 0: the loss of step" in first.err
    assert "Diverged: cifar10-small-plain seed 0" in first.out
    assert "Diverged: cifar10-small-plain seed 0" in (out / "report.md").read_text()
    assert "cifar10-small-plain," not in first.out  # among what was not run
    assert list(read_json(out / "plan.json")["diverged"]) == ["cifar10-small-plain seed 0"]
    trained = []
    monkeypatch.setattr("train.reproduce.running.fit", lambda *arguments, **options: trained.append(1) or 1 / 0)
    assert main(command) == 1
    again = capsys.readouterr()
    assert again.out == first.out
    assert "seed 0 diverged before: --retry-diverged trains it again" in again.err
    with pytest.raises(ZeroDivisionError):
        main([*command, "--retry-diverged"])
    assert trained == [1]


@pytest.mark.parametrize("change", [{"weights": "0" * 64}, {"shards": "0" * 64}, {"steps": 3}, None])
def test_an_attack_is_made_again_for_other_weights_samples_or_settings_alone(
    undisturbed, tmp_path, change, capsys, monkeypatch
):
    run = shutil.copytree(undisturbed / "runs" / "cifar10-small-plain" / "seed0", tmp_path / "run")
    saved, kept = open_run(run, torch.device("cpu")), run / ATTACK
    loader = saved.test_loader(undisturbed / "data" / "cifar10", 25)
    content = read_json(kept)
    made_from = content["made_from"] | change if change else None  # an older version's has none
    write_json(kept, {**content, "num_correct": 0, "made_from": made_from})
    for again in ("attacking again", ""):
        found = attack_run(saved, loader, (0.1, 0.01), 2, num_images=60, kept=kept)
        assert found == Robustness.from_dict(content)
        assert again in capsys.readouterr().err
        monkeypatch.setattr(saved_run, "evaluate_robustness", None)


def test_a_table_does_not_go_on_with_another_configuration_or_other_shards(undisturbed, root, tmp_path, refused):
    out = shutil.copytree(undisturbed, tmp_path / "table")
    error = refused(*TABLE, "--data", root, "--out", out, "--lr", "0.2", "--epochs", "3")
    assert "epochs is 2 in" in error
    assert "lr is None in" in error
    shutil.rmtree(out / "data" / "cifar10" / "test")
    shutil.copytree(root / "cifar10" / "test", out / "data" / "cifar10" / "test")
    assert "shards.test is" in refused(*TABLE, "--data", root, "--out", out)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["table1", "--data", "no/root"], "cifar10: no shards in cifar10/train of --data"),
        (["table1"], "cifar10: no --data was given"),
        (["table2", "--scale", "small"], "--scale small is for table1"),
        (["table2", "--scale", "medium"], "--scale medium is for table1"),
        (
            ["table1", "--data", "x", "--model", "small64"],
            "--model is for --scale medium, got small64 at the full scale",
        ),
        (["table1", "--data", "x", "--autoattack", "1", "1"], "expected different radii of AutoAttack"),
        (["table1", "--data", "x", "--autoattack-images", "9"], "--autoattack-images is of --autoattack R"),
        (["table1", "--only", "mnist"], "--only mnist names no row"),
        (["table1", "--report", "--data", "x"], "leave out --data"),
        (["table1", "--report", "--epochs", "3", "--no-clip"], "leave out --epochs, --no-clip"),
        (["table1", "--merge", "a", "--seeds", "1"], "leave out --seeds"),
        (["table1", "--scale", "small", "--data", "x", "--stem", "imagenet"], "leave --stem out"),
        (["table1", "--merge", "no/folder"], "no/folder holds no table"),
        (["table1", "--data", "x", "--seeds", "0"], "1 or more seeds"),
        (["table1", "--data", "x", "--eps", "0.1", "0.1"], "one or more different eps"),
        (["table1", "--data", "x", "--images", "0"], "1 or more images"),
        (["sweep"], "expected --data SHARDS, or --report"),
        (["sweep", "--data", "no/shards"], "no/shards"),
        (["sweep", "--report", "--data", "x"], "leave out --data"),
        (["sweep", "--data", "x/cifar10", "--model", "resnet3"], "there is no recipe 'resnet3_plain'"),
        (["sweep", "--data", "x/cifar10", "--only", "cutout"], "--only cutout names no row; rows: "),
    ],
)
def test_bad_input_exits_2(root, tmp_path, arguments, message, refused):
    arguments = [root / argument[2:] if argument[0] == "x" else argument for argument in arguments]
    verb = [] if arguments[0] == "sweep" else ["reproduce"]
    assert message in refused(*verb, *arguments, "--out", tmp_path / "out")
    assert not (tmp_path / "out" / "runs").exists()


def test_the_small_subset_is_the_same_whatever_the_order_of_the_shards(few_shards):
    images, labels, _ = load_shards(few_shards / "train")
    order = np.random.default_rng(0).permutation(len(labels))
    first, second = draw_subset(images, labels, 7), draw_subset(images[order], labels[order], 7)
    assert np.array_equal(images[first], images[order][second])
    assert np.bincount(labels[first]).tolist() == [7] * 10


def test_the_scripts_of_the_small_scale_use_the_bundled_images(tmp_path, monkeypatch):
    monkeypatch.undo()
    assert table_settings.missing_data(None, "fashion-mnist", "small") is None
    folder = table_settings.data_folder(None, "fashion-mnist", "small", tmp_path)
    images, labels, _ = load_shards(folder / "test")
    assert images.shape == (1000, 28, 28, 1)
    assert folder == tmp_path / "data" / "fashion-mnist"
    assert np.bincount(labels).tolist() == [100] * 10


def test_a_sweep_is_run_drawn_and_drawn_again(few_shards, tmp_path, monkeypatch, shown):
    out = tmp_path / "sweep"
    options = ["--epochs", 1, "--images", 20, "--steps", 2, "--device", "cpu", "--no-augment"]
    command = ["sweep", "--data", few_shards, "--out", out, *options, "--only", "plain", "fdt", "fdt_gamma2", "pono"]
    first = shown(*command)
    assert "PONO - plain" in first
    records = read_records(out)
    assert [record.row.column for record in records] == ["fdt", "fdt_gamma2", "plain", "pono"]
    assert {record.row.dataset for record in records} == {few_shards.name}
    assert {record.content["training"]["recipe"]["augment"] for record in records} == {None}
    assert {path.suffix for path in out.iterdir() if path.is_file()} == {".json", ".md", ".png"}
    monkeypatch.setattr("train.reproduce.running.fit", None)
    assert shown(*command) == first  # all is there
    assert shown("sweep", "--report", "--out", out) == first
