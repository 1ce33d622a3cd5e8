import json
import resource
import shutil
from dataclasses import replace

import pytest
import torch

from fdt_pipeline.shards import read_manifest
from tests.train.made_up import assert_equal_weights, fit_command, log_of, run_killed
from train import files, setup, trainer
from train.files import BEST, CHECKPOINT, CONFIG, LOG, RESULTS, read_checkpoint, read_json, run_log
from train.recipes import make_recipe
from train.saved_run import open_run
from train.setup import evaluate, make_loader
from train.step import NonFiniteLossError, check_weights
from train.trainer import fit

TN_FDT = make_recipe("small_tn_fdt", epochs=4, batch_size=50, lr_drop_every=2)


def run(recipe, data, out, **options):
    return fit(recipe, data, out, device="cpu", **options)


def weights(out):
    return read_checkpoint(out / CHECKPOINT)["model"]


def test_a_run_leaves_its_results_logs_and_checkpoints(trained):
    results, out = read_json(trained / RESULTS), trained
    assert {path.name for path in out.iterdir()} == {CHECKPOINT, BEST, CONFIG, RESULTS, LOG, "tensorboard"}
    assert any((out / "tensorboard").iterdir())
    assert results["steps"] == 4 * 6
    assert results["final"]["accuracy"] == results["accuracies"][-1]
    assert results["best"]["accuracy"] == max(results["accuracies"])
    assert results["versions"]["torch"] == torch.__version__
    assert [record["epoch"] for record in log_of(out, "test")] == [0, 1, 2, 3]
    rates = {record["epoch"]: record["lr"] for record in log_of(out, "train")}
    assert rates == pytest.approx({0: 0.1, 1: 0.1, 2: 0.01, 3: 0.01})


def test_saved_weights_give_the_logged_accuracy(trained, few_shards):
    results = read_json(trained / RESULTS)
    for name in ("final", "best"):
        saved = open_run(trained, torch.device("cpu"), name)
        assert saved.epoch == results[name]["epoch"]
        assert name == "best" or saved.weights == results["weights"]
        loader = make_loader(TN_FDT, few_shards / "test", saved.device, train=False)
        assert evaluate(saved.model, loader)[0] == results[name]["accuracy"]


def test_checkpoints_that_are_written_seldom_hold_the_same_in_the_end(few_shards, trained, tmp_path, monkeypatch):
    """As on a GPU, where an epoch takes less time than writing it. The last accuracy alone is in full float32."""
    written, precise, write = [], [], files.write_checkpoint

    def noting(model, loader, **options):
        precise.append(options["precise"])
        return evaluate(model, loader, **options)

    monkeypatch.setattr(setup, "evaluate", noting)
    monkeypatch.setitem(trainer.CHECKPOINT_EVERY, "cpu", 1e9)
    monkeypatch.setattr(files, "write_checkpoint", lambda path, state: written.append(path.name) or write(path, state))
    assert run(TN_FDT, few_shards, tmp_path / "run")["best"] == read_json(trained / RESULTS)["best"]
    assert written == [BEST, CHECKPOINT]
    assert precise == [False, False, False, True]
    for name in (BEST, CHECKPOINT):
        ours, theirs = (read_checkpoint(folder / name) for folder in (tmp_path / "run", trained))
        assert ours.get("epoch") == theirs.get("epoch")
        assert_equal_weights(ours["model"], theirs["model"])


def test_a_run_killed_in_an_epoch_resumes_to_the_very_same_weights(few_shards, trained, tmp_path):
    out = tmp_path / "killed"
    run_killed(fit_command(few_shards, out), step=8)  # in the second epoch
    assert read_checkpoint(out / CHECKPOINT)["progress"]["epoch"] == 1
    results = run(TN_FDT, few_shards, out, resume=True)
    assert_equal_weights(weights(out), weights(trained))
    assert results["accuracies"] == read_json(trained / RESULTS)["accuracies"]
    assert [record["step"] for record in log_of(out, "test")] == [6, 12, 18, 24]


@pytest.mark.soak
def test_training_lowers_the_divergence_from_the_targets(few_shards, tmp_path):
    run(replace(TN_FDT, epochs=20, lr_drop_every=20, seed=3), few_shards, tmp_path / "run")
    divergence = [record["kl"] for record in log_of(tmp_path / "run", "train")]
    assert len(divergence) == 20
    assert max(divergence[-5:]) < min(divergence[:2])
    accuracies = read_json(tmp_path / "run" / RESULTS)["accuracies"]
    assert max(accuracies[-5:]) > 0.4  # chance is 0.1


def test_max_steps_stops_within_an_epoch(few_shards, tmp_path):
    results = run(replace(TN_FDT, max_steps=8), few_shards, tmp_path / "run")
    assert results["steps"] == 8
    assert results["final"]["epoch"] == 1


@pytest.mark.parametrize(
    ("changes", "message"),
    [({"lr": 1e30}, "loss of step"), ({"lr": 1e38, "max_steps": 1}, "(largest weight|test loss) after step 1")],
)
def test_a_diverging_run_stops_with_its_step_and_keeps_no_spoilt_checkpoint(few_shards, tmp_path, changes, message):
    with pytest.raises(NonFiniteLossError, match=rf"the {message}.* is (nan|inf)"):
        run(replace(TN_FDT, **changes), few_shards, tmp_path / "run")
    assert not list((tmp_path / "run").glob("*.pt"))


@pytest.mark.parametrize("name", ["0.weight", "1.running_var"])
def test_a_weight_or_statistic_that_is_no_number_is_noticed(name):
    model = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.BatchNorm1d(2))
    check_weights(model, 7)
    model.state_dict()[name].view(-1)[0] = torch.nan
    with pytest.raises(NonFiniteLossError, match=r"largest weight after step 7 is nan"):
        check_weights(model, 7)


def test_a_checkpoint_of_another_recipe_or_of_other_shards_is_refused_with_its_fields(
    trained, few_shards, fashion_shards, tmp_path
):
    other = replace(TN_FDT, lr=0.2, mix=None)
    with pytest.raises(ValueError, match=r"another recipe: lr was 0\.1 and is now 0\.2; mix was .* is now None"):
        run(other, few_shards, trained, resume=True)
    with pytest.raises(ValueError, match="another shards: test was"):
        run(TN_FDT, fashion_shards, trained, resume=True)
    out = shutil.copytree(trained, tmp_path / "run")
    best = read_checkpoint(out / BEST)
    files.write_checkpoint(out / BEST, {**best, "recipe": {**best["recipe"], "seed": 7}})
    with pytest.raises(ValueError, match="another recipe: seed was 7 and is now 0"):
        open_run(out, torch.device("cpu"), "best")


def test_a_run_goes_on_in_the_precision_that_it_began_in(few_shards, tmp_path):
    recipe, out = make_recipe("small_plain", max_steps=1), tmp_path / "run"
    assert fit(recipe, few_shards, out, device="cpu", mixed=True)["precision"] == "bfloat16"
    with pytest.raises(ValueError, match="precision was 'bfloat16' and is now 'float32'"):
        fit(recipe, few_shards, out, resume=True, device="cpu")
    assert fit(recipe, few_shards, out, resume=True, device="cpu", mixed=True)["steps"] == 1


def test_a_file_that_is_no_checkpoint_of_a_run_is_named(trained, few_shards, tmp_path):
    def refuse(message, read=lambda: open_run(tmp_path, torch.device("cpu"))):
        with pytest.raises(ValueError, match=message):
            read()

    files.write_checkpoint(tmp_path / CHECKPOINT, {"model": {}})
    no_checkpoint = r"checkpoint\.pt is not a checkpoint of this trainer"
    refuse(rf"{no_checkpoint} \(no 'recipe'\)", lambda: run(TN_FDT, few_shards, tmp_path, resume=True))
    (tmp_path / CONFIG).write_text((trained / CONFIG).read_text())
    refuse(no_checkpoint)
    (tmp_path / CHECKPOINT).write_bytes((trained / CHECKPOINT).read_bytes()[:5000])
    refuse(r"checkpoint\.pt cannot be read")
    (tmp_path / CONFIG).write_text("{}")
    refuse(r"config\.json is not a run's configuration \(no 'recipe'\)")


def test_the_hash_of_weights_is_of_their_values_alone():
    model = torch.nn.Conv2d(3, 4, 3)
    found = files.hash_weights(model.state_dict())
    assert files.hash_weights(model.to(memory_format=torch.channels_last).state_dict()) == found
    model.weight.data[0, 0, 0, 0] += 1
    assert files.hash_weights(model.state_dict()) != found


def test_a_line_that_a_kill_has_cut_is_not_in_the_log_that_a_resumed_run_keeps(tmp_path):
    (tmp_path / LOG).write_text('{"kind": "train", "step": 1, "epoch": 0}\n{"kind": "tr')
    with run_log(tmp_path, resume_step=24) as log:
        log("test", 25, 4, accuracy=0.5)
    assert [json.loads(line)["step"] for line in (tmp_path / LOG).read_text().splitlines()] == [1, 25]


def test_a_full_disk_leaves_the_last_checkpoint_whole(tmp_path):
    files.write_checkpoint(tmp_path / CHECKPOINT, {"epoch": 1})
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, limits[1]))  # a real write error in the middle of the file
    try:
        with pytest.raises(OSError, match="File too large"):
            files.write_checkpoint(tmp_path / CHECKPOINT, {"weights": torch.zeros(100_000)})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert read_checkpoint(tmp_path / CHECKPOINT) == {"epoch": 1}
    assert [path.name for path in tmp_path.iterdir()] == [CHECKPOINT]


def test_test_shards_whose_labels_mean_other_classes_are_refused(few_shards, tmp_path):
    data = shutil.copytree(few_shards, tmp_path / "data")
    manifest = read_manifest(data / "test")
    (data / "test" / "manifest.json").write_text(replace(manifest, classes=manifest.classes[::-1]).to_json())
    with pytest.raises(ValueError, match=r"test has other classes than .*train, so their labels differ in meaning"):
        run(TN_FDT, data, tmp_path / "run")


def test_shards_without_a_test_split_train_without_an_accuracy(few_shards, tmp_path):
    results = run(replace(TN_FDT, epochs=1), few_shards / "train", tmp_path / "run")
    assert results["final"]["accuracy"] is None
    with pytest.raises(ValueError, match="has no test shards"):
        open_run(tmp_path / "run", torch.device("cpu")).test_loader()
