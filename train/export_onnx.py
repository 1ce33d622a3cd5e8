"""A model as ONNX: TN folded into the weights where that is exact, and written as plain operators where it is not.

Number, height and width of the images are left open.
"""

from __future__ import annotations

import copy
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from fdt_pipeline.tensor_norm import ReLUTensorNorm, TensorNorm, fold_tensor_norm, tensor_norm_layers
from train.full_float32 import full_float32

# Of ONNX Runtime to PyTorch: absolute where logits are below 1, else as a share of the largest of them.
TOLERANCE = 1e-4


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


def to_onnx(model: nn.Module, channels: int, size: tuple[int, int] = (32, 32)) -> tuple[bytes, int]:
    """(the file, number of TN sites folded): images f32[n channels h w], standardized -> logits f32[n num_classes]."""
    ready, num_folded = for_inference(model)
    with _quiet(), torch.no_grad():
        program = torch.onnx.export(
            ready,
            (torch.zeros(2, channels, *size),),
            dynamo=True,
            verbose=False,
            input_names=["images"],
            output_names=["logits"],
            dynamic_shapes=({0: "n", 2: "h", 3: "w"},),
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


@contextmanager
def _quiet() -> Iterator[None]:
    """The exporter logs a line for each optional package that is not installed."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)
