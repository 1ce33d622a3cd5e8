"""An exported run gives the logits of the run, in ONNX Runtime and from its safetensors, and says what it is."""

import re
import shutil
import sys

import pytest
import torch
from torch import nn

from fdt_pipeline.tensor_norm import tensor_norm_layers
from models import build_model
from tests.peers import needs
from train.__main__ import main
from train.export import CARD, ONNX, WEIGHTS, export_run, for_inference, largest_difference, to_onnx
from train.files import CONFIG, read_json, write_json
from train.recipes import make_recipe
from train.robustness import evaluate_robustness
from train.saved_run import first_samples, open_run
from train.threat_model import PixelBounds
from train.trainer import fit

CPU = torch.device("cpu")

pytestmark = [pytest.mark.usefixtures("one_thread"), pytest.mark.peer]
needs("onnxruntime")


def as_if_trained(model):
    """Statistics unlike those of a new network, which would hide a batch normalization that is left out."""
    generator = torch.Generator().manual_seed(1)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.copy_(0.2 * torch.randn(module.num_features, generator=generator))
            module.running_var.copy_(0.5 + torch.rand(module.num_features, generator=generator))
    return model.eval()


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


def test_the_model_is_left_as_it_was():
    model = build_model("small", 10, tensor_norm="straight-through").train().to(memory_format=torch.channels_last)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    ready, _ = for_inference(model)
    assert model.training
    assert len(tensor_norm_layers(model)) == 4
    assert not tensor_norm_layers(ready)
    assert model[0].weight.is_contiguous(memory_format=torch.channels_last)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_a_file_of_another_model_is_noticed():
    onnx, _ = to_onnx(as_if_trained(build_model("small", 10)), (3, 32, 32))
    with pytest.raises(RuntimeError, match="ONNX Runtime differs from PyTorch by"):
        largest_difference(as_if_trained(build_model("small", 10)), onnx, torch.randn(2, 3, 32, 32))


@pytest.fixture(scope="module")
def trained(few_shards, tmp_path_factory):
    """A run with its robustness and the checks of its attack beside it."""
    folder = tmp_path_factory.mktemp("trained") / "run"
    recipe = make_recipe("small_tn_fdt", max_steps=6)
    fit(recipe, few_shards, folder, device="cpu", show_progress=False)
    run = open_run(folder, CPU)
    loader = run.test_loader()
    bounds = PixelBounds.from_normalization(loader.mean, loader.std)
    row = evaluate_robustness(run.model, first_samples(loader, 20), bounds, [0.1], steps=2).to_dict()
    made_from = run.made_from(loader)
    common = {"made_from": made_from, "epoch": run.epoch}
    model = {"run": str(folder), "recipe": recipe.to_dict(), **common, **row}
    write_json(folder / "robustness.json", {"weights": "final", "models": {"small_tn_fdt": model}})
    check = {"name": "Square", "figures": {"PGD": 0.5, "Square": 0.25}, "verdict": "Square finds more than PGD"}
    found = {"eps": 0.01, "grey_levels": 2.56, "num_images": 20, "strongest": 0.25, "summary": "masked: 1 of 1 checks"}
    write_json(folder / "checks.json", {**common, "checks": [check], **found})
    return folder


@pytest.fixture(scope="module")
def exported(trained, tmp_path_factory):
    out = tmp_path_factory.mktemp("exported") / "small"
    assert main(["export", str(trained), "--out", str(out)]) == 0
    return out


def test_the_exported_onnx_file_gives_the_logits_of_the_run(trained, exported):
    run = open_run(trained, CPU)
    images, _ = next(iter(run.test_loader()))
    assert largest_difference(run.model, (exported / ONNX).read_bytes(), images) < 1e-4


def test_the_cards_own_lines_run_and_give_the_same_logits(trained, exported, monkeypatch):
    monkeypatch.chdir(exported)
    onnx_lines, torch_lines = re.findall(r"```python\n(.*?)```", (exported / CARD).read_text(), re.DOTALL)
    names = {}
    exec(onnx_lines, names)
    exec(torch_lines, names)
    standardized = torch.from_numpy((names["pixels"] - names["mean"]) / names["std"])
    images, _ = next(iter(open_run(trained, CPU).test_loader()))
    with torch.no_grad():
        expected = names["model"](standardized)
        assert torch.equal(names["model"](images), open_run(trained, CPU).model(images))
    torch.testing.assert_close(torch.from_numpy(names["logits"]), expected, rtol=0, atol=1e-4)


def test_the_normalization_is_that_of_the_runs_loader(trained, exported):
    config, loader = read_json(exported / CONFIG), open_run(trained, CPU).test_loader()
    assert config["input"]["mean"] == list(loader.mean)
    assert config["input"]["std"] == list(loader.std)
    assert config["classes"] == list(loader.classes)
    assert config["in_channels"] == loader.shape[0]


def test_the_card_has_the_runs_figures(trained, exported):
    card = (exported / CARD).read_text()
    final = read_json(trained / "results.json")["final"]
    assert f"| final | {final['epoch']} | {100 * final['accuracy']:.2f} |" in card
    assert "mean / last / worst" in card
    assert "on 20 images" in card
    assert "- Square: PGD 50.00, Square 25.00. Square finds more than PGD." in card
    assert "6 sites of tensor normalization are folded" in card
    assert {path.name for path in exported.iterdir()} == {WEIGHTS, ONNX, CONFIG, CARD}


def test_what_was_not_measured_is_said(trained, tmp_path):
    bare = shutil.copytree(trained, tmp_path / "bare")
    for name in ("results.json", "robustness.json", "checks.json"):
        (bare / name).unlink()
    export_run(bare, tmp_path / "out", "best")
    card = (tmp_path / "out" / CARD).read_text()
    assert card.count("Not measured") == 2
    assert "was not checked for masked gradients" in card


@pytest.mark.parametrize(
    ("field", "message"), [("weights", "is not of the final weights"), ("shards", "is not of the run's test shards")]
)
@pytest.mark.parametrize("name", ["robustness.json", "checks.json"])
def test_figures_of_other_weights_or_of_other_shards_are_refused(trained, tmp_path, name, field, message):
    run = shutil.copytree(trained, tmp_path / "run")
    value = read_json(run / "checks.json")["made_from"][field]
    (run / name).write_text((run / name).read_text().replace(value, "0" * 64))
    with pytest.raises(ValueError, match=f"{name} {message}"):
        export_run(run, tmp_path / "out")


def test_the_results_of_a_run_that_was_made_again_are_refused(trained, tmp_path):
    run = shutil.copytree(trained, tmp_path / "run")
    write_json(run / "results.json", {**read_json(run / "results.json"), "weights": "0" * 64})
    with pytest.raises(ValueError, match=r"results\.json is not of the final weights"):
        export_run(run, tmp_path / "out")


def test_several_models_of_one_recipe_are_refused(trained, tmp_path):
    run = shutil.copytree(trained, tmp_path / "run")
    content = read_json(run / "robustness.json")
    [model] = content["models"].values()
    content["models"] = {"a": model, "b": model}
    write_json(run / "robustness.json", content)
    with pytest.raises(ValueError, match="holds 2 models like small_tn_fdt"):
        export_run(run, tmp_path / "out")


@pytest.mark.parametrize("package", ["onnx", "onnxruntime", "onnxscript", "safetensors"])
def test_a_missing_package_is_told_with_its_extra(trained, tmp_path, package, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, package, None)
    assert main(["export", str(trained), "--out", str(tmp_path / "out")]) == 2
    assert f'export needs {package}: pip install -e ".[export]"' in capsys.readouterr().err


def test_a_folder_without_a_run_exits_2(tmp_path, capsys):
    assert main(["export", str(tmp_path), "--out", str(tmp_path / "out")]) == 2
    assert "holds no run" in capsys.readouterr().err
