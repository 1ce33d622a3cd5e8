"""Find functional ReLUs: trace one module's own forward with torch.fx, its children being opaque calls.

A trace a module, not one for the whole model: what holds no functional ReLU is never rewritten, so it keeps its
class, and a forward that cannot be traced costs only itself.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import torch
import torch.nn.functional as F
from torch import fx, nn

_FUNCTIONS = (F.relu, torch.relu, torch.relu_)
_METHODS = ("relu", "relu_")


def trace_forwards(
    model: nn.Module, skipped: Collection[nn.Module]
) -> tuple[dict[nn.Module, fx.Graph], dict[nn.Module, Exception]]:
    """(graph of each module's own forward, the error of each that torch.fx cannot trace).

    Of torch.nn's own modules only nn.Sequential is traced.
    """
    graphs: dict[nn.Module, fx.Graph] = {}
    errors: dict[nn.Module, Exception] = {}
    for module in model.modules():
        own = type(module).__module__.startswith("torch.nn.") and type(module) is not nn.Sequential
        if own or module in skipped or isinstance(module, torch.jit.ScriptModule):
            continue
        try:
            graphs[module] = _trace(module)
        except Exception as error:  # a trace runs the user's code on stand-ins: it may raise anything
            errors[module] = error
    return graphs, errors


def relu_nodes(graph: fx.Graph) -> list[fx.Node]:
    """Calls of F.relu, torch.relu, torch.relu_, x.relu() and x.relu_(), in order."""
    return [
        node
        for node in graph.nodes
        if (node.op == "call_function" and node.target in _FUNCTIONS)
        or (node.op == "call_method" and node.target in _METHODS)
    ]


def is_in_place(node: fx.Node) -> bool:
    """Whether a ReLU node also overwrites its input."""
    in_place = node.kwargs.get("inplace", len(node.args) > 1 and node.args[1])
    return node.target in (torch.relu_, "relu_") or bool(in_place)


def _trace(module: nn.Module) -> fx.Graph:
    """One forward, `self.training` kept as a name where it is passed on, as in F.dropout(x, training=self.training).

    Where it is branched on, both branches are traced: they must agree, or be free of ReLUs.
    """
    try:
        return _ForwardTracer(training=None).trace(module)
    except fx.proxy.TraceError:
        train, evaluation = (_ForwardTracer(training=mode).trace(module) for mode in (True, False))
    if str(train) == str(evaluation) or not (relu_nodes(train) or relu_nodes(evaluation)):
        return train
    raise ValueError("it differs between training and evaluation")


class _ForwardTracer(fx.Tracer):
    """Traces one forward with every child as a leaf, `self.training` being the mode given, or a name for None."""

    def __init__(self, training: bool | None) -> None:
        super().__init__()
        self._training = training

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return True

    def create_args_for_root(self, *args: Any, **kwargs: Any) -> Any:
        result = super().create_args_for_root(*args, **kwargs)
        named = self._training is None
        self.root.__dict__["training"] = self.create_proxy("get_attr", "training", (), {}) if named else self._training
        return result

    def trace(self, root: Any, concrete_args: dict[str, Any] | None = None) -> fx.Graph:
        attributes = dict(root.__dict__)  # a forward that stores something on self stores a stand-in
        try:
            graph = super().trace(root, concrete_args)
        finally:
            root.__dict__.clear()
            root.__dict__.update(attributes)
        for node in [node for node in graph.nodes if node.target == "training" and not node.users]:
            graph.erase_node(node)
        return graph
