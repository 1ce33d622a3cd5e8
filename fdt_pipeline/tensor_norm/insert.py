"""Give any model tensor normalization: every ReLU becomes ReLU then TN.

nn.ReLU modules are swapped. A module that calls functional ReLUs becomes a torch.fx GraphModule with the same
children, parameters and names.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from fnmatch import fnmatchcase

from torch import fx, nn

from fdt_pipeline.tensor_norm.activations import (
    Traced,
    called_module,
    functional_relus,
    is_in_place,
    is_relu,
    left_activations,
    other_activations,
    relu_nodes,
    trace_forwards,
)
from fdt_pipeline.tensor_norm.fused import Gradient, check_gradient
from fdt_pipeline.tensor_norm.layer import ReLUTensorNorm, tensor_norm_layers

Skip = str | Sequence[str] | Callable[[str, nn.Module], bool]
_MakeLayer = Callable[[nn.Module | fx.Node], ReLUTensorNorm]


def insert_tensor_norm(
    model: nn.Module,
    gradient: Gradient = "straight-through",
    inplace: bool = False,
    channel_dim: int | None = None,
    skip: Skip = (),
) -> nn.Module:
    """Change the model in place and return it; parameters, state_dict names, modes, devices and hooks stay.

    A module whose own forward calls a functional ReLU (F.relu, torch.relu, x.relu() and the in-place forms) is
    replaced by a GraphModule, and a model that is itself such a module, or an nn.ReLU, comes back as a new object:
    use the result. Other activations stay (ReLU6, GELU, Hardswish, ..., torch.nn.TransformerEncoderLayer), as do the
    functional ReLUs of a forward that torch.fx cannot trace: one UserWarning says what is converted and what is not,
    before anything is changed. clamp(min=0) is no ReLU here.

    `channel_dim` is the dimension of the channels at every ReLU: 1 for [n c h w], -1 for [n tokens c]. None takes -1
    where a ReLU reads nothing but Linear and LayerNorm layers, and 1 elsewhere; there the model's forward raises
    ValueError for a tensor of three dimensions. `skip` leaves modules with all that is in them, without a warning:
    names or patterns of fnmatch ("*.se"), or a predicate of (name, module).

    The result of an in-place nn.ReLU must be taken from its return value, as its input is no longer overwritten; or,
    with `inplace`, may be overwritten, which saves time and memory where no ReLU's input is read after it. ValueError
    if there is no ReLU, or if the model has TN already; the model is then unchanged.
    """
    check_gradient(gradient)
    if channel_dim == 0:
        raise ValueError("channel_dim must be 1 for [n c h w], -1 for [n tokens c] or None, got 0, which is the batch")
    if tensor_norm_layers(model):
        raise ValueError(
            f"{type(model).__name__} has tensor normalization already: give the model before it was inserted"
        )
    skipped = _skipped(model, skip)
    traced = trace_forwards(model, skipped)
    others = [module for module in other_activations(model, traced) if module not in skipped]
    left = skipped | {inner for module in others for inner in module.modules()}
    candidates = [(name, module) for name, module in model.named_modules() if module not in left]
    relus = [name for name, module in candidates if is_relu(module) or functional_relus(module, traced)]
    if not relus:
        raise ValueError(
            f"found no nn.ReLU and no functional ReLU in {type(model).__name__}{' outside skip' if skipped else ''}, "
            "expected at least one: ReLU6 and other activations are left alone, replace them with ReLU or place "
            "TensorNorm by hand"
        )
    _warn_of_what_is_left(model, relus, left_activations(model, others, traced))
    features = _sites_of_features(traced)

    def make_layer(site: nn.Module | fx.Node) -> ReLUTensorNorm:
        return ReLUTensorNorm(gradient, inplace, -1 if channel_dim is None and site in features else channel_dim)

    return _rewrite(model, traced, make_layer, {module: module for module in left})


def _skipped(model: nn.Module, skip: Skip) -> set[nn.Module]:
    """The modules that `skip` names, and all in them; ValueError for a pattern that names none."""
    named = list(model.named_modules(remove_duplicate=False))
    if callable(skip):
        return {inner for name, module in named if skip(name, module) for inner in module.modules()}
    found: set[nn.Module] = set()
    for pattern in [skip] if isinstance(skip, str) else skip:
        matching = [module for name, module in named if fnmatchcase(name, pattern)]
        found |= {inner for module in matching for inner in module.modules()}
        if not matching:
            raise ValueError(
                f"skip has {pattern!r}, which is no module of {type(model).__name__}: expected names as in "
                f"named_modules(), the last here is {named[-1][0]!r}, or patterns of them"
            )
    return found


def _warn_of_what_is_left(model: nn.Module, relus: Sequence[str], left: dict[str, list[str]]) -> None:
    if not left:
        return
    kinds = "; ".join(f"{kind} in {_listed(names)}" for kind, names in left.items())
    warnings.warn(
        f"a part of {type(model).__name__} gets tensor normalization: the ReLUs in {_listed(relus)}. Left as they are: "
        f"{kinds}. Use nn.ReLU modules there, or name in skip= what shall stay, to have no warning",
        UserWarning,
        stacklevel=3,
    )


def _listed(names: Sequence[str]) -> str:
    first = ", ".join(name or "the model" for name in names[:3])
    return f"{len(names)} module{'s' * (len(names) > 1)} ({first}{', ...' * (len(names) > 3)})"


def _sites_of_features(traced: Traced) -> set[nn.Module | fx.Node]:
    """nn.ReLU modules, and nodes, that read nothing but Linear and LayerNorm layers, whose channels come last."""
    features: set[nn.Module | fx.Node] = set()
    others: set[nn.Module | fx.Node] = set()
    for module, graph in traced.items():
        if isinstance(graph, Exception):
            others.update(module.children())
            continue
        for node in graph.nodes:
            layer = called_module(node, module)
            if node in relu_nodes(graph) or isinstance(layer, nn.ReLU):
                (features if _reads_features(node, module) else others).add(layer or node)
    return features - others


def _reads_features(node: fx.Node, module: nn.Module) -> bool:
    source = node.all_input_nodes[0]
    while isinstance(layer := called_module(source, module), nn.Dropout | nn.Identity):
        source = source.all_input_nodes[0]
    if isinstance(layer, nn.LayerNorm):  # of one dimension, the last; timm's LayerNorm2d is another name
        return type(layer).__name__ == "LayerNorm" and len(layer.normalized_shape) == 1
    return isinstance(layer, nn.Linear)


def _rewrite(module: nn.Module, traced: Traced, make_layer: _MakeLayer, done: dict[nn.Module, nn.Module]) -> nn.Module:
    """Children first, so that a GraphModule gets its rewritten children; a shared module is rewritten once."""
    if module not in done:
        done[module] = module
        for name, child in module._modules.items():
            if child is not None:
                module._modules[name] = _rewrite(child, traced, make_layer, done)
        if is_relu(module):
            done[module] = _take_tables(make_layer(module), module)
        elif relus := functional_relus(module, traced):
            done[module] = _graph_module(module, relus, make_layer)
    return done[module]


def _graph_module(module: nn.Module, relus: Sequence[fx.Node], make_layer: _MakeLayer) -> nn.Module:
    graph = relus[0].graph
    for index, node in enumerate(relus):
        name = f"relu_tensor_norm_{index}"
        module.add_module(name, make_layer(node).train(module.training))
        _replace(graph, node, name)
    new = _take_tables(fx.GraphModule(module, graph, type(module).__name__), module)
    for key, value in module.__dict__.items():  # plain attributes, which callers may read
        new.__dict__.setdefault(key, value)
    return new


def _replace(graph: fx.Graph, node: fx.Node, name: str) -> None:
    """Put the layer in the node's place; after an in-place ReLU, its input's later readers saw the ReLU too."""
    source = node.args[0] if node.args else node.kwargs["input"]
    nodes = list(graph.nodes)
    later = set(nodes[nodes.index(node) + 1 :])
    with graph.inserting_before(node):
        layer = graph.call_module(name, (source,))
    if is_in_place(node) and isinstance(source, fx.Node):
        source.replace_all_uses_with(layer, delete_user_cb=later.__contains__)
    node.replace_all_uses_with(layer)
    graph.erase_node(node)


def _take_tables(new: nn.Module, old: nn.Module) -> nn.Module:
    """Give new the mode, children, parameters and hooks of old: the very tables, so that handles still remove hooks."""
    for key, value in old.__dict__.items():
        if key in ("_parameters", "_buffers", "_modules", "_non_persistent_buffers_set", "training") or "hook" in key:
            new.__dict__[key] = value
    return new
