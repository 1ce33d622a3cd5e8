"""Find the activations of a model: ReLU modules, functional ReLUs, and those that are something else.

Functional ReLUs are found by tracing one module's own forward with torch.fx, its children being opaque calls. A trace
a module, not one for the whole model: a module without functional ReLUs is never rewritten, so it keeps its class,
and a forward that cannot be traced costs only itself: the names in its class's source then say what it may call.
"""

from __future__ import annotations

import ast
import inspect
import re
import textwrap
from collections import defaultdict
from collections.abc import Collection, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import fx, nn

Traced = dict[nn.Module, "fx.Graph | Exception"]

_FUNCTIONS = (F.relu, torch.relu, torch.relu_)
_METHODS = ("relu", "relu_")
# ReLU and its kin in torch, timm and transformers; not PixelUnshuffle, nor gates (sigmoids) and softmax.
_ACTIVATION = re.compile(r"[eEi]LU|[eE]lu|[sS]ilu|[sS]wish|[mM]ish|[sS]oftplus")
# They call their ReLU themselves, in evaluation as one fused kernel.
_FUSED = (nn.TransformerEncoderLayer, nn.TransformerDecoderLayer)


def is_relu(module: nn.Module) -> bool:
    """Whether a module is nn.ReLU, or a subclass that does not change its forward."""
    return isinstance(module, nn.ReLU) and type(module).forward is nn.ReLU.forward


def called_module(node: fx.Node, root: nn.Module) -> nn.Module | None:
    """The module that a node of root's graph calls, None for any other node."""
    return root.get_submodule(str(node.target)) if node.op == "call_module" else None


def relu_nodes(graph: fx.Graph) -> list[fx.Node]:
    """Calls of F.relu, torch.relu, torch.relu_, x.relu() and x.relu_(), in order."""
    targets = {"call_function": _FUNCTIONS, "call_method": _METHODS}
    return [node for node in graph.nodes if node.target in targets.get(node.op, ())]


def is_in_place(node: fx.Node) -> bool:
    """Whether a ReLU node also overwrites its input."""
    in_place = node.kwargs.get("inplace", len(node.args) > 1 and node.args[1])
    return node.target in (torch.relu_, "relu_") or bool(in_place)


def trace_forwards(model: nn.Module, skipped: Collection[nn.Module]) -> Traced:
    """The graph of each module's own forward, or the error of torch.fx; of torch.nn only nn.Sequential is traced."""
    traced: Traced = {}
    for module in model.modules():
        own = type(module).__module__.startswith("torch.nn.") and type(module) is not nn.Sequential
        if own or module in skipped or isinstance(module, torch.jit.ScriptModule):
            continue
        try:
            traced[module] = _ForwardTracer().trace(module)
        except Exception as error:  # a trace runs the user's code on stand-ins: it may raise anything
            traced[module] = error
    return traced


def functional_relus(module: nn.Module, traced: Traced) -> list[fx.Node]:
    """Those of a module's own forward; none where it could not be traced."""
    graph = traced.get(module)
    return relu_nodes(graph) if isinstance(graph, fx.Graph) else []


def other_activations(model: nn.Module, traced: Traced) -> list[nn.Module]:
    """Layers that are an activation as a whole and more than ReLU, StarReLU for one, and layers that hide one."""
    return [
        module
        for module in model.modules()
        if isinstance(module, _FUSED)
        or (
            all(_ACTIVATION.search(_class_name(inner)) for inner in module.modules())
            and not is_relu(module)
            and not ((relus := functional_relus(module, traced)) and len(relus[0].graph.nodes) == 3)
        )
    ]


def left_activations(model: nn.Module, others: Sequence[nn.Module], traced: Traced) -> dict[str, list[str]]:
    """Names of modules by kind of activation: the `others`, functions in a forward, ReLUs in an untraced forward."""
    left: dict[str, list[str]] = defaultdict(list)
    inner = {module for other in others for module in other.modules() if module is not other}
    for name, module in model.named_modules():
        name, found = name or "the model", traced.get(module)
        if module in inner:
            continue
        if module in others:
            left[_class_name(module)].append(name)
        elif isinstance(found, fx.Graph):
            for function in sorted(_names_in_graph(found)):
                if _ACTIVATION.search(function) and function not in _METHODS:
                    left[f"{function}()"].append(name)
        elif found is not None:
            for function in sorted(filter(_ACTIVATION.search, _names_in_source(module))):
                reason = f": {found}" if function in _METHODS else ""
                left[f"{function}() in a forward that torch.fx cannot trace"].append(name + reason)
    return left


class _ForwardTracer(fx.Tracer):
    """Traces one forward with every child as a leaf. `self.training` is kept as a name, as in F.dropout(x,
    training=self.training); a forward that branches on it cannot be traced."""

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return True

    def create_args_for_root(self, *args: Any, **kwargs: Any) -> Any:
        result = super().create_args_for_root(*args, **kwargs)
        self.root.__dict__["training"] = self.create_proxy("get_attr", "training", (), {})
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


def _class_name(module: nn.Module) -> str:
    scripted = getattr(module, "original_name", None)
    return f"{scripted} (scripted)" if scripted else type(module).__name__


def _names_in_graph(graph: fx.Graph) -> set[str]:
    calls = [node.target for node in graph.nodes if node.op in ("call_function", "call_method")]
    return {target if isinstance(target, str) else getattr(target, "__name__", "") for target in calls}


def _names_in_source(module: nn.Module) -> set[str]:
    """Names of functions, and of methods of anything but the module itself, in the source of its class and the classes
    above it; empty where there is no source, as in an interactive session. Functions that these call are not read."""
    names: set[str] = set()
    for kind in type(module).__mro__:
        if kind.__module__.startswith("torch.") or not issubclass(kind, nn.Module):
            continue
        try:
            tree = ast.parse(textwrap.dedent(inspect.getsource(kind)))
        except (OSError, TypeError, SyntaxError):
            continue
        for node in ast.walk(tree):
            if isinstance(node, ast.Attribute) and not (isinstance(node.value, ast.Name) and node.value.id == "self"):
                names.add(node.attr)
            elif isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
                names.add(node.func.id)
    return {name for name in names if name.islower()}  # the others are classes, whose modules are found as such
