"""`python -m train export`: a trained run as files that others can use: weights, ONNX, what goes in, what to expect.

model.safetensors   the state_dict, for `build_model`
model.onnx          images f32[n c h w], standardized -> logits f32[n num_classes]; n, h and w are open
config.json         recipe, classes, and the normalization of the input
README.md           the model card
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import nn

from fdt_pipeline.loader.options import PAPER_STD, checked_output
from fdt_pipeline.storage.atomic import atomic_file
from train.export_card import model_card
from train.export_onnx import largest_difference, to_onnx
from train.export_results import results_of
from train.files import CONFIG, check_folder, hash_weights, read_json, write_json, write_text
from train.saved_run import SavedRun, open_run
from train.setup import make_model

WEIGHTS = "model.safetensors"
ONNX = "model.onnx"
CARD = "README.md"


def export_run(folder: Path, out: Path, weights: str = "final") -> str:
    """-> what was written, in a line. ImportError without the extra; ValueError where `folder` holds no run, or results
    of other weights; RuntimeError where ONNX Runtime does not give the model's logits."""
    _check_installed()
    check_folder(out)
    run = open_run(folder, torch.device("cpu"), weights)
    config = exported_config(run)
    found = results_of(folder, run, weights)
    channels, size = len(config["input"]["mean"]), config["input"]["size"]
    onnx, num_folded = to_onnx(run.model, channels, tuple(size) if size else (32, 32))
    difference = largest_difference(run.model, onnx, _example_images(config))
    out.mkdir(parents=True, exist_ok=True)
    for name, content in ((WEIGHTS, _safetensors(run)), (ONNX, onnx)):
        with atomic_file(out / name) as file:
            file.write(content)
    write_json(out / CONFIG, config)
    write_text(out / CARD, model_card(run, config, found, num_folded, difference))
    return f"{run.name}, epoch {run.epoch}: {WEIGHTS}, {ONNX}, {CONFIG} and {CARD} are in {out}"


def exported_config(run: SavedRun) -> dict[str, Any]:
    """JSON values: all that it takes to build the model and to make its input."""
    recipe, channels = run.config["recipe"], run.config["in_channels"]
    output = checked_output(channels, None, None, PAPER_STD, torch.float32, False)  # as the loaders of `fit` have it
    normalization = {"mean": list(output.mean), "std": list(output.std)}
    return {
        "recipe": recipe,
        "classes": run.config["classes"],
        "in_channels": channels,
        "epoch": run.epoch,
        "weights": run.weights,
        "input": {"pixels": "0..255, RGB, n c h w", "size": recipe["size"], **normalization},
    }


def load_exported(folder: Path) -> nn.Module:
    """The model of an exported folder, from its safetensors, in evaluation mode. ValueError for other weights than its
    configuration names."""
    from safetensors.torch import load_file

    config = read_json(folder / CONFIG)
    model = make_model(config["recipe"], len(config["classes"]), config["in_channels"], torch.device("cpu"))
    state = load_file(folder / WEIGHTS)
    if config.get("weights") not in (None, hash_weights(state)):  # older folders name none
        raise ValueError(f"{folder / WEIGHTS} does not hold the weights that {CONFIG} names: export the run again")
    model.load_state_dict(state)
    return model.eval()


def _safetensors(run: SavedRun) -> bytes:
    """Contiguous tensors, as the format wants them, under the names of the state_dict."""
    from safetensors.torch import save

    state = {name: value.contiguous() for name, value in run.model.state_dict().items()}
    return save(state, metadata={"format": "pt", "recipe": run.name, "epoch": str(run.epoch)})


def _example_images(config: dict[str, Any]) -> torch.Tensor:
    """Five of random pixels, standardized."""
    mean, std = (torch.tensor(config["input"][name]).view(-1, 1, 1) for name in ("mean", "std"))
    height, width = config["input"]["size"] or (32, 32)
    pixels = 255 * torch.rand(5, len(mean), height, width, generator=torch.Generator().manual_seed(0))
    return (pixels - mean) / std


def _check_installed() -> None:
    try:
        import onnx  # noqa: F401
        import onnxruntime  # noqa: F401
        import onnxscript  # noqa: F401
        import safetensors  # noqa: F401
    except ImportError as error:
        raise ImportError(
            f'export needs {error.name}: pip install -e ".[export]", beside the extras of this installation'
        ) from error
