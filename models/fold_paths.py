"""Follow a tensor normalization's output forward through a torch.fx graph to the layers that read it."""

from __future__ import annotations

from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import fx, nn

from models.tensor_norm import TensorNorm

Shape = Literal["map", "pixel", "vector", "tokens"]  # [n c h w], [n c 1 1], [n c], [n ... c]

_SAME = (nn.Identity, nn.Dropout, nn.Dropout2d)  # in evaluation
_MATRIX_TO_MATRIX = (nn.Linear, nn.BatchNorm1d, nn.ReLU, nn.Dropout, nn.Identity)


class Consumer(NamedTuple):
    """One call of a layer whose weights, centred over their inputs, take over the normalization."""

    node: fx.Node
    layer: nn.Conv2d | nn.Linear


def consumers(site: fx.Node, graph_module: fx.GraphModule) -> list[Consumer] | None:
    """Every call that the site's output ends in, or None if one, or something on the way, does not allow folding.

    A Linear layer reads the last dimension, so it counts only where its input is sure to be [n c]: after a flatten of
    [n c 1 1], or in a chain of layers that starts at a flatten; or where TN's channel_dim is the last. A flatten of a
    larger map mixes places with channels.
    """
    layer = graph_module.get_submodule(str(site.target))
    if _has_hooks(layer) or not isinstance(layer, TensorNorm):
        return None
    if _is_matrix(site.all_input_nodes[0], graph_module):
        return _follow(site, "vector", graph_module)
    if layer.channel_dim not in (None, 1, -1):
        return None
    return _follow(site, "tokens" if layer.channel_dim == -1 else "map", graph_module)


def _follow(node: fx.Node, shape: Shape, graph_module: fx.GraphModule) -> list[Consumer] | None:
    found: list[Consumer] = []
    for user in node.users:
        layer = _module(user, graph_module)
        if layer is not None and _has_hooks(layer):
            return None
        if isinstance(layer, nn.Conv2d | nn.Linear) and _centres(layer, shape):
            found.append(Consumer(user, layer))
            continue
        after = _shape_after(user, layer, shape)
        further = None if after is None else _follow(user, after, graph_module)
        if further is None:
            return None
        found.extend(further)
    return found


def _centres(layer: nn.Conv2d | nn.Linear, shape: Shape) -> bool:
    """Whether centred weights replace TN. Exact types: a subclass or a parametrized layer may compute its weight."""
    if type(layer) is nn.Conv2d:
        return layer.groups == 1 and shape in ("map", "pixel")
    return type(layer) is nn.Linear and shape in ("vector", "tokens")


def _shape_after(node: fx.Node, layer: nn.Module | None, shape: Shape) -> Shape | None:
    """The shape after an operation that treats all channels alike and linearly; None for any other."""
    if type(layer) in _SAME or (node.target is F.dropout and node.kwargs.get("training") is False):
        return shape
    if _flattens(node, layer):
        return None if shape in ("map", "tokens") else "vector"
    if isinstance(layer, nn.AdaptiveAvgPool2d):
        return _pooled(layer.output_size, shape)
    if node.target is F.adaptive_avg_pool2d:
        return _pooled(node.args[1] if len(node.args) > 1 else node.kwargs.get("output_size"), shape)
    if type(layer) is nn.AvgPool2d or node.target is F.avg_pool2d:
        return "map" if shape in ("map", "pixel") else None
    return None


def _pooled(output_size: object, shape: Shape) -> Shape | None:
    if shape not in ("map", "pixel"):
        return None
    return "pixel" if output_size in (1, (1, 1), [1, 1]) else "map"


def _flattens(node: fx.Node, layer: nn.Module | None) -> bool:
    """Whether node is flatten(x, 1), whose result is [n *]."""
    if isinstance(layer, nn.Flatten):
        return (layer.start_dim, layer.end_dim) == (1, -1)
    start = node.args[1] if len(node.args) > 1 else node.kwargs.get("start_dim", 0)
    end = node.args[2] if len(node.args) > 2 else node.kwargs.get("end_dim", -1)
    return node.target in (torch.flatten, "flatten") and (start, end) == (1, -1)


def _is_matrix(node: fx.Node, graph_module: fx.GraphModule) -> bool:
    """Whether a tensor is sure to be [n c]: it comes from a flatten, through layers that keep that."""
    layer = _module(node, graph_module)
    if _flattens(node, layer):
        return True
    keeps = type(layer) in _MATRIX_TO_MATRIX or node.target in (F.relu, torch.relu, "relu")
    return keeps and _is_matrix(node.all_input_nodes[0], graph_module)


def _module(node: fx.Node, graph_module: fx.GraphModule) -> nn.Module | None:
    return graph_module.get_submodule(str(node.target)) if node.op == "call_module" else None


def _has_hooks(module: nn.Module) -> bool:
    return bool(module._forward_hooks or module._forward_pre_hooks)
