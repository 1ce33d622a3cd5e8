"""An exported run gives the logits of the run, in ONNX Runtime and from its safetensors, and says what it is."""

import re
import shutil
import sys

import pytest
import torch

from fdt_pipeline import FDT, OneOf
from models import build_model
from tests.peers import needs
from tests.train.made_up import as_if_trained
from train.__main__ import main
from train.export import CARD, ONNX, WEIGHTS, export_run, largest_difference, to_onnx
from train.export_card import methods_of
from train.files import CONFIG, read_json, write_json
from train.recipes import Recipe, make_recipe
from train.saved_run import open_run

CPU = torch.device("cpu")

pytestmark = [pytest.mark.usefixtures("one_thread"), pytest.mark.peer]
needs("onnxruntime")


@pytest.mark.parametrize(
    ("name", "tensor_norm", "sites"),
    [
        ("small", None, 0),
        ("small", "exact", 6),
        ("resnet18", "straight-through", 12),
        ("wrn28_10", "straight-through", 25),
    ],
)
def test_onnx_runtime_gives_the_logits_of_every_base_model(name, tensor_norm, sites):
    torch.manual_seed(0)
    model = as_if_trained(build_model(name, 10, tensor_norm=tensor_norm)).to(memory_format=torch.channels_last)
    onnx, folded = to_onnx(model, (3, 32, 32))
    assert folded == sites
    for shape in ((1, 3, 32, 32), (3, 3, 28, 24)):  # number and size of the images are open
        assert largest_difference(model, onnx, torch.randn(shape)) < 1e-4


def test_a_file_of_another_model_is_noticed():
    onnx, _ = to_onnx(as_if_trained(build_model("small", 10)), (3, 32, 32))
    with pytest.raises(RuntimeError, match="ONNX Runtime differs from PyTorch by"):
        largest_difference(as_if_trained(build_model("small", 10)), onnx, torch.randn(2, 3, 32, 32))


@pytest.fixture(scope="module")
def measured(trained, tmp_path_factory):
    """A run with its robustness and the checks of its attack beside it."""
    folder = shutil.copytree(trained, tmp_path_factory.mktemp("measured") / "run")
    attack = ["--images", "20", "--steps", "2", "--eps", "0.1", "--device", "cpu"]
    assert main(["robustness", str(folder), *attack, "--json", str(folder / "robustness.json")]) == 0
    [row] = read_json(folder / "robustness.json")["models"].values()
    check = {"name": "Square", "figures": {"PGD": 0.5, "Square": 0.25}, "verdict": "Square finds more than PGD"}
    found = {"eps": 0.01, "grey_levels": 2.56, "num_images": 20, "strongest": 0.25, "summary": "masked: 1 of 1 checks"}
    write_json(folder / "checks.json", {"made_from": row["made_from"], "checks": [check], **found})
    return folder


@pytest.fixture(scope="module")
def exported(measured, tmp_path_factory):
    out = tmp_path_factory.mktemp("exported") / "small"
    assert main(["export", str(measured), "--out", str(out)]) == 0
    return out


def test_the_cards_own_lines_run_and_give_the_same_logits(measured, exported, monkeypatch):
    monkeypatch.chdir(exported)
    onnx_lines, torch_lines = re.findall(r"```python\n(.*?)```", (exported / CARD).read_text(), re.DOTALL)
    names = {}
    exec(onnx_lines, names)
    exec(torch_lines, names)
    standardized = torch.from_numpy((names["pixels"] - names["mean"]) / names["std"])
    run = open_run(measured, CPU)
    loader, config = run.test_loader(), read_json(exported / CONFIG)
    images, _ = next(iter(loader))
    with torch.no_grad():
        expected = names["model"](standardized)
        assert torch.equal(names["model"](images), run.model(images))
    assert largest_difference(run.model, (exported / ONNX).read_bytes(), images) < 1e-4
    assert (config["input"]["mean"], config["input"]["std"]) == (list(loader.mean), list(loader.std))
    assert (config["classes"], config["in_channels"]) == (list(loader.classes), loader.shape[0])
    torch.testing.assert_close(torch.from_numpy(names["logits"]), expected, rtol=0, atol=1e-4)


def test_the_card_has_the_runs_figures(measured, exported):
    card = (exported / CARD).read_text()
    final = read_json(measured / "results.json")["final"]
    assert f"| final | {final['epoch']} | {100 * final['accuracy']:.2f} |" in card
    assert "mean / last / worst" in card
    assert "on 20 images" in card
    assert "- Square: PGD 50.00, Square 25.00. Square finds more than PGD." in card
    assert "6 sites of tensor normalization are folded" in card
    assert {path.name for path in exported.iterdir()} == {WEIGHTS, ONNX, CONFIG, CARD}


@pytest.mark.parametrize(
    ("recipe", "methods"),
    [
        (make_recipe("small_plain").to_dict(), []),
        (make_recipe("small_tn_fdt").to_dict(), ["tensor normalization", "Full Distribution Training"]),
        (make_recipe("small_mixup_cutmix").to_dict(), ["MixUp or CutMix"]),
        (Recipe("half", "small", mix=OneOf([(FDT(), 0.5), (None, 0.5)])).to_dict(),
         ["Full Distribution Training or whole images"]),
        ({"tensor_norm": None, "fdt": {"min_images": 1}, "mixup": None}, ["Full Distribution Training"]),
        ({"tensor_norm": None, "fdt": None, "mixup": 1.0}, ["MixUp"]),
        ({"tensor_norm": None, "fdt": None}, []),
    ],
)  # fmt: skip
def test_the_card_says_what_the_images_were_mixed_by_in_recipes_of_older_versions_too(recipe, methods):
    assert methods_of(recipe) == methods


def test_what_was_not_measured_is_said(trained, tmp_path):
    bare = shutil.copytree(trained, tmp_path / "bare")
    (bare / "results.json").unlink()
    export_run(bare, tmp_path / "out", "best")
    card = (tmp_path / "out" / CARD).read_text()
    assert card.count("Not measured") == 2
    assert "was not checked for masked gradients" in card


OTHER_WEIGHTS, OTHER_SHARDS = "is not of the final weights", "is not of the run's test shards"


@pytest.mark.parametrize(
    ("name", "field", "message"),
    [
        ("robustness.json", "weights", OTHER_WEIGHTS),
        ("robustness.json", "shards", OTHER_SHARDS),
        ("checks.json", "weights", OTHER_WEIGHTS),
        ("checks.json", "shards", OTHER_SHARDS),
        ("results.json", "weights", OTHER_WEIGHTS),
    ],
)
def test_figures_of_other_weights_or_other_shards_are_refused(measured, tmp_path, name, field, message, refused):
    run = shutil.copytree(measured, tmp_path / "run")
    content = (run / name).read_text()
    (run / name).write_text(content.replace(read_json(run / "checks.json")["made_from"][field], "0" * 64))
    assert f"{name} {message}" in refused("export", run, "--out", tmp_path / "out")


@pytest.mark.parametrize("package", ["onnx", "onnxruntime", "onnxscript", "safetensors"])
def test_a_missing_package_is_told_with_its_extra(trained, tmp_path, package, monkeypatch, refused):
    monkeypatch.setitem(sys.modules, package, None)
    error = refused("export", trained, "--out", tmp_path / "out")
    assert f'export needs {package}: pip install -e ".[export]"' in error
