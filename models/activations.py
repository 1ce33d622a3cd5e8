"""Find the activations of a model that are not ReLU: layers by their class, functions by name.

Where torch.fx cannot trace a forward, its code is read in place of running it: the names that it takes from anything
but its own module, followed into the methods and functions that it calls. A name made at run time is not found.
"""

from __future__ import annotations

import dis
import functools
import inspect
import re
from collections import defaultdict
from collections.abc import Iterator, Sequence
from types import CodeType
from typing import Any

from torch import fx, nn

from models.functional_relu import relu_nodes

# ReLU and its kin in torch, timm and transformers; not PixelUnshuffle, nor gates (sigmoids) and softmax.
_ACTIVATION = re.compile(r"[eEi]LU|[eE]lu|[sS]ilu|[sS]wish|[mM]ish|[sS]oftplus")
# They call their ReLU themselves, in evaluation as one fused kernel.
_FUSED = (nn.TransformerEncoderLayer, nn.TransformerDecoderLayer)


def is_relu(module: nn.Module) -> bool:
    return isinstance(module, nn.ReLU) and type(module).forward is nn.ReLU.forward


def other_activations(model: nn.Module, graphs: dict[nn.Module, fx.Graph]) -> list[nn.Module]:
    """Layers that are activations as a whole and more than ReLU, StarReLU for one, and those that hide one."""
    return [
        module
        for module in model.modules()
        if isinstance(module, _FUSED)
        or (
            all(_ACTIVATION.search(_class_name(inner)) for inner in module.modules())
            and not is_relu(module)
            and not (module in graphs and relu_nodes(graphs[module]) and len(graphs[module].nodes) == 3)
        )
    ]


def left_activations(
    model: nn.Module,
    others: Sequence[nn.Module],
    graphs: dict[nn.Module, fx.Graph],
    errors: dict[nn.Module, Exception],
) -> dict[str, list[str]]:
    """Names of modules by kind of activation: the `others`, functions in a forward, ReLUs in an untraced forward."""
    left: dict[str, list[str]] = defaultdict(list)
    inner = {module for other in others for module in other.modules() if module is not other}
    for name, module in model.named_modules():
        name = name or "the model"
        if module in inner:
            continue
        if module in others:
            left[_class_name(module)].append(name)
        elif module in graphs:
            for function in sorted(_names_in_graph(graphs[module])):
                if _ACTIVATION.search(function) and function not in ("relu", "relu_"):
                    left[f"{function}()"].append(name)
        elif module in errors:
            for function in sorted(filter(_ACTIVATION.search, names_in_forward(module))):
                reason = f": {errors[module]}" if function in ("relu", "relu_") else ""
                left[f"{function}() in a forward that torch.fx cannot trace"].append(name + reason)
    return left


def _class_name(module: nn.Module) -> str:
    scripted = getattr(module, "original_name", None)
    return f"{scripted} (scripted)" if scripted else type(module).__name__


def _names_in_graph(graph: fx.Graph) -> set[str]:
    calls = [node.target for node in graph.nodes if node.op in ("call_function", "call_method")]
    return {target if isinstance(target, str) else getattr(target, "__name__", "") for target in calls}


def names_in_forward(module: nn.Module) -> set[str]:
    """Names of the functions and methods that a module's forward may call, its children left out."""
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
            found = _attribute(module, name) if of_self else function.__globals__.get(name)
            if not of_self:
                names.add(name)
            if name == "super":
                todo += [vars(base).get("forward") for base in type(module).__mro__]
            if callable(found) and not isinstance(found, nn.Module | type):
                names.add(getattr(_unwrap_partial(found), "__name__", name))
                todo.append(found)
    return names


def _unwrap_partial(function: Any) -> Any:
    return function.func if isinstance(function, functools.partial) else function


def _attribute(module: nn.Module, name: str) -> Any:
    return module.__dict__.get(name, getattr(type(module), name, None))


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
