"""Find the activations of a model: ReLU modules, functional ReLUs, and those that are something else.

Functional ReLUs are found by tracing one module's own forward with torch.fx, its children being opaque calls. A trace
a module, not one for the whole model: a module without functional ReLUs is never rewritten, so it keeps its class,
and a forward that cannot be traced costs only itself. The code of such a forward is read without running it: the names
that it takes from anything but its own module, followed into the functions and methods that it calls.
"""

from __future__ import annotations

import dis
import functools
import inspect
import re
from collections import defaultdict
from collections.abc import Collection, Iterator, Sequence
from types import CodeType
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
            traced[module] = _trace(module)
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
            for function in sorted(filter(_ACTIVATION.search, _names_in_forward(module))):
                reason = f": {found}" if function in _METHODS else ""
                left[f"{function}() in a forward that torch.fx cannot trace"].append(name + reason)
    return left


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


def _class_name(module: nn.Module) -> str:
    scripted = getattr(module, "original_name", None)
    return f"{scripted} (scripted)" if scripted else type(module).__name__


def _names_in_graph(graph: fx.Graph) -> set[str]:
    calls = [node.target for node in graph.nodes if node.op in ("call_function", "call_method")]
    return {target if isinstance(target, str) else getattr(target, "__name__", "") for target in calls}


def _names_in_forward(module: nn.Module) -> set[str]:
    """Names of the functions and methods that a module's forward may call, its children left out.

    A name made at run time is not found.
    """
    names: set[str] = set()
    seen: set[CodeType] = set()
    todo: list[Any] = [type(module).forward]
    while todo:
        function = inspect.unwrap(_unwrap_partial(todo.pop()))
        code = getattr(function, "__code__", None)
        if code is None or code in seen or str(function.__module__).startswith("torch."):
            continue
        seen.add(code)
        for of_self, name in _reads(code):
            if of_self:
                found = module.__dict__.get(name, getattr(type(module), name, None))
            else:
                found = function.__globals__.get(name)
                names.add(name)
            if name == "super":
                todo += [vars(base).get("forward") for base in type(module).__mro__]
            if callable(found) and not isinstance(found, nn.Module | type):
                names.add(getattr(_unwrap_partial(found), "__name__", name))
                todo.append(found)
    return names


def _unwrap_partial(function: Any) -> Any:
    return function.func if isinstance(function, functools.partial) else function


def _reads(code: CodeType) -> Iterator[tuple[bool, str]]:
    """(whether it is an attribute of `self`, name) of each global and attribute that code reads."""
    before: Any = None
    for instruction in dis.get_instructions(code):
        if instruction.opname.startswith(("LOAD_ATTR", "LOAD_METHOD", "LOAD_GLOBAL")):
            of_self = before == "self" or (isinstance(before, tuple) and before[-1] == "self")
            yield of_self and "GLOBAL" not in instruction.opname, str(instruction.argval)
        before = instruction.argval
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from _reads(constant)
