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

import torch
from torch import fx, nn

from models.fold_paths import Consumer, consumers
from models.tensor_norm import ReLUTensorNorm, TensorNorm


def fold_tensor_norm(model: nn.Module) -> tuple[fx.GraphModule, int]:
    """(folded copy in evaluation mode, number of TN call sites folded); the model is unchanged.

    A site folds if its output reaches nothing but the inputs of Conv2d (groups = 1) and Linear layers, directly or
    through average pooling, Identity and Dropout, and if all that those layers ever read comes from folding sites.
    Batched inputs are assumed: [n c h w], or [n ... c] where TN's channel_dim is -1.
    ValueError if torch.fx cannot trace the model.
    """
    graph_module = _traced_copy(model)
    graph = graph_module.graph
    reached = {node: consumers(node, graph_module) for node in graph.nodes if _is_site(node, graph_module)}
    sites = _foldable(reached, graph_module)
    for weight in {reader.layer.weight for node in sites for reader in reached[node] or ()}:
        _centre(weight)
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


def _is_site(node: fx.Node, graph_module: fx.GraphModule) -> bool:
    return node.op == "call_module" and isinstance(graph_module.get_submodule(str(node.target)), TensorNorm)


def _foldable(reached: dict[fx.Node, list[Consumer] | None], graph_module: fx.GraphModule) -> list[fx.Node]:
    """Drop sites until every layer that a remaining one reaches is read from remaining ones alone.

    Calls are counted by weight tensor, so that layers which share a weight stand or fall together.
    """
    calls = _weight_uses(graph_module)
    sites = [node for node, readers in reached.items() if readers]
    while True:
        fed = Counter(id(weight) for weight, _ in {(r.layer.weight, r.node) for n in sites for r in reached[n] or ()})
        kept = [n for n in sites if all(fed[id(r.layer.weight)] == calls[id(r.layer.weight)] for r in reached[n] or ())]
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


@torch.no_grad()
def _centre(weight: torch.Tensor) -> None:
    """W - mean_in W in place, in float64 and rounded once."""
    precise = weight.double()
    weight.copy_(precise - precise.mean(1, keepdim=True))


def _remove(node: fx.Node, graph_module: fx.GraphModule) -> None:
    source = node.all_input_nodes[0]
    if isinstance(graph_module.get_submodule(str(node.target)), ReLUTensorNorm):
        with node.graph.inserting_before(node):
            source = node.graph.call_function(torch.relu, (source,))
    node.replace_all_uses_with(source)
    node.graph.erase_node(node)
