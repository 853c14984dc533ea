"""What Dynamo's graph of f tells: whether it is a function of tensors, and the precision in which it computes."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, fx

from ..field.dynamics import coarser
from ..state import HALF
from ..torch_internals import (
    DUAL_LEVEL,
    GRAD_TRANSFORM,
    INFERENCE_MODE,
    JVP_TRANSFORM,
    SET_GRAD_ENABLED,
    pytree,
    shows_another,
    write_code,
)
from .failure import CannotCompile

REFUSED = {
    GRAD_TRANSFORM: "f differentiates inside (torch.func.grad, vjp, jacrev?)",
    JVP_TRANSFORM: "f differentiates inside (torch.func.jvp, jacfwd?)",
    DUAL_LEVEL: "f differentiates inside (forward-mode AD)",
    INFERENCE_MODE: "f enters inference mode",
}
"""Operations in a graph that code around it, or its backward pass, does not survive."""
TRANSFORMS = (GRAD_TRANSFORM,)
"""Those of them that a graph of ATen's operations has no more; of forward-mode AD it may leave a level behind."""


def refuse(graph: fx.GraphModule, *, transforms: bool = False) -> None:
    """Raise for a graph that is not to be compiled; with `transforms`, those of torch.func may be in it.

    Raises
    ------
    CannotCompile
    """
    for node in _nodes(graph):
        name = getattr(node.target, "__name__", "")
        reason = REFUSED.get(name)
        if reason is not None and not (transforms and name in TRANSFORMS):
            raise CannotCompile(reason)


def without_switches(graph: fx.GraphModule) -> fx.GraphModule | None:
    """The graph for where nothing is recorded: it leaves grad mode alone. None if `graph` is that already."""
    if not any(node.target is SET_GRAD_ENABLED for node in graph.graph.nodes):
        return None
    other, known = fx.Graph(), dict[fx.Node, fx.Node]()
    for node in graph.graph.nodes:
        if node.target is not SET_GRAD_ENABLED:
            known[node] = other.node_copy(node, known.__getitem__)
    return fx.GraphModule(graph, other)


def half_inside(graph: fx.GraphModule) -> torch.dtype | None:
    """The coarsest half precision among what the derivative passes through; as `dynamics.half_inside`."""
    (output,) = graph.graph.find_nodes(op="output")
    found: torch.dtype | None = None
    pending, visited = list(output.all_input_nodes), set[fx.Node]()
    while pending:
        node = pending.pop()
        if node in visited or node.op == "placeholder":  # a weight, which f may widen first
            continue
        visited.add(node)
        made = [x for x in pytree.tree_leaves(node.meta.get("example_value")) if isinstance(x, Tensor)]
        if made and not any(x.requires_grad for x in made):
            continue
        for x in made:
            if x.dtype in HALF:
                found = x.dtype if found is None else coarser(found, x.dtype)
        pending.extend(node.all_input_nodes)
    return found


def read_unrecorded(graph: fx.GraphModule) -> frozenset[int]:
    """The inputs that an operation reads where grad mode is off, or a view of them, if the value has no graph."""
    (output,) = graph.graph.find_nodes(op="output")
    if any(_example_requires_grad(node) for node in output.all_input_nodes):
        return frozenset()
    origin: dict[fx.Node, int] = {n: i for i, n in enumerate(graph.graph.find_nodes(op="placeholder"))}
    found, on = set[int](), True
    for node in graph.graph.nodes:
        if node.target is SET_GRAD_ENABLED:
            on = bool(node.args[0])
            continue
        read = [origin[x] for x in node.all_input_nodes if x in origin]
        if node.op != "output" and not on:
            found.update(read)
        made = node.meta.get("example_value")
        if read and isinstance(made, Tensor) and shows_another(made):
            origin[node] = read[0]
    return frozenset(found)


def _example_requires_grad(node: fx.Node) -> bool:
    made = pytree.tree_leaves(node.meta.get("example_value"))
    return any(isinstance(x, Tensor) and x.requires_grad for x in made)


def dynamic_sizes(graph: fx.GraphModule) -> tuple[tuple[int, int], ...]:
    """The (input, dimension) pairs whose sizes may change."""
    shapes = [node.meta["example_value"].shape for node in graph.graph.find_nodes(op="placeholder")]
    return tuple(
        (at, dim)
        for at, shape in enumerate(shapes)
        for dim, size in enumerate(shape)
        if isinstance(size, torch.SymInt)
    )


def without_sizes(graph: fx.GraphModule) -> fx.GraphModule:
    """The graph with tensors as its only inputs: dynamic sizes are read from them."""
    placeholders = graph.graph.find_nodes(op="placeholder")
    tensors = [node for node in placeholders if isinstance(node.meta["example_value"], Tensor)]
    for node in placeholders:
        size = node.meta["example_value"]
        if isinstance(size, Tensor):
            continue
        found = [
            (owner, dim)
            for owner in tensors
            for dim, length in enumerate(owner.meta["example_value"].shape)
            if isinstance(length, torch.SymInt) and length.node.expr == size.node.expr
        ]
        if found and node.users:
            owner, dim = found[0]
            with graph.graph.inserting_after(placeholders[-1]):
                read = graph.graph.call_method("size", (owner, dim))
                read.meta["example_value"] = size
            node.replace_all_uses_with(read)
        if node.users:
            raise CannotCompile("f depends on a number that changes from call to call")
        graph.graph.erase_node(node)
    (output,) = graph.graph.find_nodes(op="output")
    if len(pytree.tree_leaves(output.args)) != 1:
        raise CannotCompile("f leaves something behind beside its value")
    graph.recompile()
    for module in graph.modules():
        if isinstance(module, fx.GraphModule):  # now, not in the middle of somebody's trace
            write_code(module)
    return graph


def _nodes(graph: fx.GraphModule) -> Iterator[Any]:
    """All nodes, those of the graphs inside of it as well."""
    for module in graph.modules():
        if isinstance(module, fx.GraphModule):
            yield from module.graph.nodes
