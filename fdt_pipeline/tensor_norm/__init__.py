"""Tensor normalization (TN, Eq. 1): functions, layers, a rewrite of any model, and folding. Needs torch alone."""

from __future__ import annotations

from fdt_pipeline.tensor_norm.fold import fold_tensor_norm
from fdt_pipeline.tensor_norm.fused import Gradient, relu_tensor_norm
from fdt_pipeline.tensor_norm.insert import insert_tensor_norm
from fdt_pipeline.tensor_norm.layer import (
    ReLUTensorNorm,
    TensorNorm,
    count_tensor_norm_sites,
    set_tensor_norm_gradient,
    tensor_norm,
    tensor_norm_gradient,
    tensor_norm_layers,
)

__all__ = [
    "Gradient",
    "ReLUTensorNorm",
    "TensorNorm",
    "count_tensor_norm_sites",
    "fold_tensor_norm",
    "insert_tensor_norm",
    "relu_tensor_norm",
    "set_tensor_norm_gradient",
    "tensor_norm",
    "tensor_norm_gradient",
    "tensor_norm_layers",
]
