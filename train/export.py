"""`python -m train export`: a trained run as files that others can use: weights, ONNX, what goes in, what to expect.

model.safetensors   the state_dict, for the function that makes the network
model.onnx          images f32[n c h w], standardized -> logits f32[n num_classes]; n is open, and h and w are, too, but
                    for networks of the user's own. TN is folded into the weights where that is exact, and written as
                    plain operators where it is not
config.json         recipe, classes, and the normalization of the input
README.md           the model card
"""

from __future__ import annotations

import copy
import logging
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from fdt_pipeline.storage.atomic import atomic_file
from fdt_pipeline.tensor_norm import ReLUTensorNorm, TensorNorm, fold_tensor_norm, tensor_norm_layers
from train.environment import need
from train.export_card import model_card
from train.files import CONFIG, RESULTS, check_folder, fitting, read_json, write_json, write_text
from train.precision import full_float32
from train.saved_run import CHECKS, ROBUSTNESS, SavedRun, open_run
from train.setup import is_own

WEIGHTS = "model.safetensors"
ONNX = "model.onnx"
CARD = "README.md"
# Of ONNX Runtime to PyTorch: absolute where logits are below 1, else as a share of the largest of them.
TOLERANCE = 1e-4


def export_run(folder: Path, out: Path, weights: str = "final") -> str:
    """-> what was written, in a line.

    ImportError without the extra; ValueError where `folder` holds no run, or results of other weights; RuntimeError
    where ONNX Runtime does not give the model's logits.
    """
    need("export needs", "export", "onnx", "onnxruntime", "onnxscript", "safetensors")
    check_folder(out)
    run = open_run(folder, torch.device("cpu"), weights)
    with fitting(folder / CONFIG):
        config = exported_config(run)
    results = results_of(folder, run, weights)
    images = _example_images(config)
    onnx, num_folded = to_onnx(run.model, images.shape[1:], open_size=not is_own(config["recipe"]["model"]))
    difference = largest_difference(run.model, onnx, images)
    out.mkdir(parents=True, exist_ok=True)
    for name, content in ((WEIGHTS, _safetensors(run)), (ONNX, onnx)):
        with atomic_file(out / name) as file:
            file.write(content)
    write_json(out / CONFIG, config)
    write_text(out / CARD, model_card(run, config, results, num_folded, difference))
    return f"{run.name}, epoch {run.epoch}: {WEIGHTS}, {ONNX}, {CONFIG} and {CARD} are in {out}"


def exported_config(run: SavedRun) -> dict[str, Any]:
    """JSON values: all that it takes to build the model and to make its input."""
    config = run.config
    return {
        **{name: config[name] for name in ("recipe", "classes", "in_channels")},
        "epoch": run.epoch,
        "weights": run.weights,
        "input": {"pixels": "0..255, RGB, n c h w", "size": config["image_size"], **config["normalization"]},
    }


def results_of(folder: Path, run: SavedRun, weights: str) -> dict[str, Any]:
    """The run's own figures in each of its files, None for a file that is not there.

    ValueError, with what to run again, for figures of other weights than `run` holds, or of other test shards.
    """
    found: dict[str, Any] = dict.fromkeys((RESULTS, ROBUSTNESS, CHECKS))
    for name in found:
        path = folder / name
        if not path.exists():
            continue
        content = read_json(path)
        if name == RESULTS:
            found[name] = content if weights == "best" or content.get("weights") == run.weights else None
        else:  # of several models, or of the run alone
            models = [(model, model.get("made_from", {})) for model in content.get("models", {"": content}).values()]
            found[name] = next((model for model, made_from in models if made_from.get("weights") == run.weights), None)
        if found[name] is None:
            raise ValueError(
                f"{path} is not of the {weights} weights (epoch {run.epoch}): make it again with --weights {weights}, "
                "or move it away"
            )
        if name != RESULTS and found[name]["made_from"].get("shards") != run.config["shards"].get("test"):
            raise ValueError(f"{path} is not of the run's test shards: make it again without --data, or move it away")
    return found


def _safetensors(run: SavedRun) -> bytes:
    """Contiguous tensors, as the format wants them, under the names of the state_dict."""
    from safetensors.torch import save

    state = {name: value.contiguous() for name, value in run.model.state_dict().items()}
    return save(state, metadata={"format": "pt", "recipe": run.name, "epoch": str(run.epoch)})


def _example_images(config: dict[str, Any]) -> torch.Tensor:
    """Five of random pixels, standardized."""
    mean, std = (torch.tensor(config["input"][name]).view(-1, 1, 1) for name in ("mean", "std"))
    pixels = 255 * torch.rand(5, len(mean), *config["input"]["size"], generator=torch.Generator().manual_seed(0))
    return (pixels - mean) / std


class PlainTensorNorm(nn.Module):
    """Eq. 1 in operators that every exporter knows: f32[n z h w] -> f32[n z h w], for inference."""

    def __init__(self, relu: bool, channel_dim: int = 1) -> None:
        super().__init__()
        self.relu, self.channel_dim = relu, channel_dim

    def forward(self, x: Tensor) -> Tensor:
        x = x.relu() if self.relu else x
        return x - x.mean(self.channel_dim, keepdim=True)


def for_inference(model: nn.Module) -> tuple[nn.Module, int]:
    """(a copy on the CPU in evaluation mode that gives the same logits within rounding, number of TN sites folded)."""
    duplicate = copy.deepcopy(model).cpu().to(memory_format=torch.contiguous_format).eval()
    if not tensor_norm_layers(duplicate):
        return duplicate, 0
    folded, num_folded = fold_tensor_norm(duplicate)
    for name, layer in list(folded.named_modules()):
        if isinstance(layer, TensorNorm):
            parent, _, own = name.rpartition(".")
            plain = PlainTensorNorm(isinstance(layer, ReLUTensorNorm), layer.channel_dim or 1)
            setattr(folded.get_submodule(parent), own, plain)
    return folded, num_folded


def to_onnx(model: nn.Module, shape: tuple[int, ...], open_size: bool = True) -> tuple[bytes, int]:
    """(the file, number of TN sites folded) for images of `shape` (c, h, w), or of any size with `open_size`."""
    ready, num_folded = for_inference(model)
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)  # it logs each optional package that is not installed
    with torch.no_grad():
        program = torch.onnx.export(
            ready,
            (torch.zeros(2, *shape),),
            dynamo=True,
            verbose=False,
            input_names=["images"],
            output_names=["logits"],
            dynamic_shapes=({0: "n", 2: "h", 3: "w"} if open_size else {0: "n"},),
        )
    return program.model_proto.SerializeToString(), num_folded  # type: ignore[union-attr]


@torch.no_grad()
def largest_difference(model: nn.Module, onnx: bytes, images: Tensor) -> float:
    """Of ONNX Runtime's logits to the model's, for images f32[n c h w]; RuntimeError where it is above TOLERANCE."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3  # its warnings are about what it optimizes
    session: Any = onnxruntime.InferenceSession(onnx, options, providers=["CPUExecutionProvider"])
    found = torch.from_numpy(session.run(None, {"images": images.cpu().contiguous().numpy()})[0])
    with full_float32(images.device.type):
        expected = model.eval()(images).cpu()
    difference, largest = float((found - expected).abs().max()), float(expected.abs().max())
    if not difference <= TOLERANCE * max(1.0, largest):
        raise RuntimeError(
            f"ONNX Runtime differs from PyTorch by {difference:.2g} in logits up to {largest:.2g}, more than "
            f"{TOLERANCE:g}: the file is not written"
        )
    return difference
