"""Fold tensor normalization into the weights that read it, for inference without TN's cost.

Subtracting a pixel's channel mean is the projection P = 1 - (1/Z) 1 1^T on the channels, and W P = W - mean_in W:
a convolution or linear layer that reads P x equals the same one, its weights centred over their input channels,
reading x. What maps space linearly, and alike in every channel, commutes with P: average pooling with any padding
(its zeros add nothing, its divisors belong to a place, not to a channel) and each of Conv2d's padding modes. What
does not (max-pool, batch normalization, a sum with a map that is not normalized) keeps its TN.
"""

from __future__ import annotations

import copy
from collections import Counter
from typing import Literal

import torch
import torch.nn.functional as F
from torch import fx, nn

from fdt_pipeline.tensor_norm.activations import called_module
from fdt_pipeline.tensor_norm.layer import ReLUTensorNorm, TensorNorm

Shape = Literal["map", "pixel", "features"]  # [n c h w], [n c 1 1], [n ... c]

_SAME = (nn.Identity, nn.Dropout, nn.Dropout2d)  # in evaluation
Reader = tuple[fx.Node, "nn.Conv2d | nn.Linear"]  # one call of a layer that can take over the normalization


def fold_tensor_norm(model: nn.Module) -> tuple[fx.GraphModule, int]:
    """(folded copy in evaluation mode, number of TN call sites folded); the model is unchanged.

    A site folds if its output reaches nothing but the inputs of Conv2d (groups = 1) and Linear layers, directly or
    through average pooling, Identity and Dropout, and if all that those layers ever read comes from folding sites.
    Batched inputs are assumed: [n c h w], or [n ... c] where TN's channel_dim is -1.
    ValueError if torch.fx cannot trace the model.
    """
    graph_module = _traced_copy(model)
    graph = graph_module.graph
    reached = {
        node: _readers(node, graph_module)
        for node in graph.nodes
        if isinstance(called_module(node, graph_module), TensorNorm)
    }
    sites = _foldable(reached, graph_module)
    with torch.no_grad():
        for weight in {layer.weight for node in sites for _, layer in reached[node] or ()}:
            precise = weight.double()  # rounded once
            weight.copy_(precise - precise.mean(1, keepdim=True))
    for node in sites:
        _remove(node, graph_module)
    graph.lint()
    graph_module.recompile()
    graph_module.delete_all_unused_submodules()
    graph_module.eval()  # containers that the trace made up start in training mode
    return graph_module, len(sites)


class _LayerTracer(fx.Tracer):
    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return isinstance(m, TensorNorm) or super().is_leaf_module(m, module_qualified_name)


def _traced_copy(model: nn.Module) -> fx.GraphModule:
    duplicate = copy.deepcopy(model).eval()
    try:
        graph = _LayerTracer().trace(duplicate)
    except Exception as error:  # a trace runs the user's code on stand-ins: it may raise anything
        raise ValueError(
            f"cannot trace {type(model).__name__} ({type(error).__name__}: {error}): folding needs a forward "
            "that torch.fx can trace, without branches on tensor values"
        ) from error
    return fx.GraphModule(duplicate, graph)


def _foldable(reached: dict[fx.Node, list[Reader] | None], graph_module: fx.GraphModule) -> list[fx.Node]:
    """Drop sites until every layer that a remaining one reaches is read from remaining ones alone.

    Calls are counted by weight tensor, so that layers which share a weight stand or fall together.
    """
    calls = _weight_uses(graph_module)
    sites = [node for node, readers in reached.items() if readers]
    while True:
        readers = {reader for site in sites for reader in reached[site] or ()}
        fed = Counter(id(layer.weight) for _, layer in readers)
        starved = {id(layer.weight) for _, layer in readers if fed[id(layer.weight)] < calls[id(layer.weight)]}
        kept = [site for site in sites if not any(id(layer.weight) in starved for _, layer in reached[site] or ())]
        if kept == sites:
            return sites
        sites = kept


def _weight_uses(graph_module: fx.GraphModule) -> Counter[int]:
    """How often each parameter is read, by id: once a call of a layer that owns it, once a direct mention."""
    uses: Counter[int] = Counter()
    for node in graph_module.graph.nodes:
        if node.op == "call_module":
            uses.update(id(parameter) for parameter in graph_module.get_submodule(str(node.target)).parameters())
        elif node.op == "get_attr":
            owner, _, name = str(node.target).rpartition(".")
            uses[id(getattr(graph_module.get_submodule(owner), name))] += 1
    return uses


def _remove(node: fx.Node, graph_module: fx.GraphModule) -> None:
    source = node.all_input_nodes[0]
    if isinstance(called_module(node, graph_module), ReLUTensorNorm):
        with node.graph.inserting_before(node):
            source = node.graph.call_function(torch.relu, (source,))
    node.replace_all_uses_with(source)
    node.graph.erase_node(node)


def _readers(site: fx.Node, graph_module: fx.GraphModule) -> list[Reader] | None:
    """Every call that the site's output ends in, or None if one, or something on the way, does not allow folding.

    A Linear layer reads the last dimension, so it counts only where TN's channel_dim is the last, or after a flatten of
    [n c 1 1]. A flatten of a larger map mixes places with channels.
    """
    layer = called_module(site, graph_module)
    if not isinstance(layer, TensorNorm) or _has_hooks(layer) or layer.channel_dim not in (None, 1, -1):
        return None
    return _follow(site, "features" if layer.channel_dim == -1 else "map", graph_module)


def _follow(node: fx.Node, shape: Shape, graph_module: fx.GraphModule) -> list[Reader] | None:
    found: list[Reader] = []
    for user in node.users:
        layer = called_module(user, graph_module)
        if layer is not None and _has_hooks(layer):
            return None
        if isinstance(layer, nn.Conv2d | nn.Linear) and _centres(layer, shape):
            found.append((user, layer))
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
    return type(layer) is nn.Linear and shape == "features"


def _shape_after(node: fx.Node, layer: nn.Module | None, shape: Shape) -> Shape | None:
    """The shape after an operation that treats all channels alike and linearly; None for any other."""
    if type(layer) in _SAME or (node.target is F.dropout and node.kwargs.get("training") is False):
        return shape
    if _flattens(node, layer):
        return "features" if shape == "pixel" else None
    if shape != "features":
        if type(layer) is nn.AvgPool2d or node.target is F.avg_pool2d:
            return "map"
        if isinstance(layer, nn.AdaptiveAvgPool2d) or node.target is F.adaptive_avg_pool2d:
            size = layer.output_size if layer else [*node.args, node.kwargs.get("output_size")][1]
            return "pixel" if size in (1, (1, 1), [1, 1]) else "map"
    return None


def _flattens(node: fx.Node, layer: nn.Module | None) -> bool:
    """Whether node is flatten(x, 1), whose result is [n *]."""
    if isinstance(layer, nn.Flatten):
        return (layer.start_dim, layer.end_dim) == (1, -1)
    start = node.args[1] if len(node.args) > 1 else node.kwargs.get("start_dim", 0)
    end = node.args[2] if len(node.args) > 2 else node.kwargs.get("end_dim", -1)
    return node.target in (torch.flatten, "flatten") and (start, end) == (1, -1)


def _has_hooks(module: nn.Module) -> bool:
    return bool(module._forward_hooks or module._forward_pre_hooks)
