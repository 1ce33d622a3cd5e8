"""Give any model tensor normalization: every ReLU becomes ReLU then TN.

nn.ReLU modules are swapped. A module that calls functional ReLUs becomes a torch.fx GraphModule with the same
children, parameters and names.
"""

from __future__ import annotations

from torch import fx, nn

from models.functional_relu import functional_relu_graphs, is_in_place, relu_nodes
from models.tensor_norm import Gradient, ReLUTensorNorm, check_gradient, tensor_norm_layers


def insert_tensor_norm(model: nn.Module, gradient: Gradient = "straight-through", inplace: bool = False) -> nn.Module:
    """Change the model in place and return it; parameters, state_dict names, modes, devices and hooks stay.

    A module whose own forward calls a functional ReLU (F.relu, torch.relu, x.relu() and the in-place forms) is
    replaced by a GraphModule, and a model that is itself such a module, or an nn.ReLU, comes back as a new object:
    use the result. Where torch.fx cannot trace a forward, its functional ReLUs stay and a UserWarning names the
    module. ReLU6, LeakyReLU, clamp(min=0) and what is inside torch.nn's own layers are no ReLU here. The result of
    an in-place nn.ReLU must be taken from its return value, as its input is no longer overwritten; or, with `inplace`,
    may be overwritten, which saves time and memory where no ReLU's input is read after it. ValueError if there is no
    ReLU, or if the model has TN already; the model is then unchanged.
    """
    check_gradient(gradient)
    if tensor_norm_layers(model):
        raise ValueError(
            f"{type(model).__name__} has tensor normalization already: give the model before it was inserted"
        )
    graphs = dict(functional_relu_graphs(model))
    if not graphs and not any(_is_relu(module) for module in model.modules()):
        raise ValueError(
            f"found no nn.ReLU and no functional ReLU in {type(model).__name__}, expected at least one: ReLU6 and "
            "other activations are left alone, replace them with ReLU or place TensorNorm by hand"
        )
    model = _rewrite(model, graphs, gradient, {})
    for layer in tensor_norm_layers(model):
        if isinstance(layer, ReLUTensorNorm):
            layer.inplace = inplace
    return model


def _rewrite(
    module: nn.Module, graphs: dict[nn.Module, fx.Graph], gradient: Gradient, done: dict[nn.Module, nn.Module]
) -> nn.Module:
    """Children first, so that a GraphModule takes up its rewritten children; a shared module is rewritten once."""
    if module not in done:
        done[module] = module
        for name, child in module._modules.items():
            if child is not None:
                module._modules[name] = _rewrite(child, graphs, gradient, done)
        if _is_relu(module):
            done[module] = _take_tables(ReLUTensorNorm(gradient), module)
        elif module in graphs:
            done[module] = _graph_module(module, graphs[module], gradient)
    return done[module]


def _is_relu(module: nn.Module) -> bool:
    return isinstance(module, nn.ReLU) and type(module).forward is nn.ReLU.forward


def _graph_module(module: nn.Module, graph: fx.Graph, gradient: Gradient) -> nn.Module:
    for index, node in enumerate(relu_nodes(graph)):
        name = f"relu_tensor_norm_{index}"
        module.add_module(name, ReLUTensorNorm(gradient).train(module.training))
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
