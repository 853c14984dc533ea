"""A function of tensors as two graphs: forward, which hands out what its backward needs, and backward.

The residuals are those that autograd saves for the function. What follows from the function's arguments alone without
work (views, parameters and what is made of them, numbers made of the time) is no residual.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx

from ..torch_internals import is_view, joint_graphs
from .compiler import renamed
from .failure import CannotCompile

Graph = Callable[..., Any]
COUNT = iter(range(10**9))


@dataclass(frozen=True, eq=False)
class Halves:
    """`forward(*args)` -> outputs and residuals; `backward(*args, *residuals, *cotangents)` -> gradients.

    The gradients are those of the differentiated arguments. `like` are residuals of one call.
    """

    forward: Callable[..., tuple[Sequence[Tensor], Sequence[Tensor]]]
    backward: Callable[..., Sequence[Tensor | None]]
    like: tuple[Tensor, ...]


@dataclass
class Joint:
    """The graph of outputs and gradients; `primals` are the positions of the graph's inputs among the arguments."""

    graph: fx.GraphModule
    n_outputs: int
    primals: list[int]


def halves(
    function: Callable[..., tuple[Tensor, ...]],
    args: Sequence[Tensor],
    wanted: Sequence[bool],
    constant: Sequence[bool],
    lost: int,
) -> Halves:
    """Split a pure function into its halves, for arguments of these shapes; evaluates it once.

    `wanted` says which arguments are differentiated, `constant` which are the same in all calls of one solve, and
    `lost` the one that the backward half is not called with.

    Raises
    ------
    CannotCompile
        Where an output has no gradient.
    """
    joint = traced(function, args, wanted)
    split = Split(joint, [constant[i] for i in joint.primals], wanted, lost)
    first, second, n_args = split.forward(), split.backward(), len(args)
    order = [i for i, want in enumerate(wanted) if want]
    places = [order.index(i) for i, g in zip(joint.primals, split.grads, strict=True) if g is not None]

    def forward(*args: Tensor) -> tuple[Sequence[Tensor], Sequence[Tensor]]:
        values = first(*(args[i] for i in joint.primals))
        return values[: joint.n_outputs], values[joint.n_outputs :]

    def backward(*args: Tensor) -> Sequence[Tensor | None]:
        grads: list[Tensor | None] = [None] * len(order)
        values = second(*(args[i] for i in joint.primals), *args[n_args:])
        for place, value in zip(places, values, strict=True):
            grads[place] = value
        return grads

    with torch.no_grad():
        _, like = forward(*args)
    return Halves(forward, backward, tuple(like))


def traced(
    function: Callable[..., tuple[Tensor, ...]], args: Sequence[Tensor], wanted: Sequence[bool]
) -> Joint:
    """The function's joint graph."""
    leaves = [x.detach().requires_grad_(want) for x, want in zip(args, wanted, strict=True)]
    places, found = {id(x): i for i, x in enumerate(leaves)}, []

    compiler = joint_graphs(lambda graph, n_outputs: found.append((graph, n_outputs)))
    order: list[int] = []

    def backend(graph: fx.GraphModule, inputs: Sequence[Tensor]) -> Graph:
        run = compiler(graph, inputs)

        def noted(*tensors: Tensor) -> Any:
            order[:] = [places[id(x)] for x in tensors]
            return run(*tensors)

        return noted

    own = renamed(function, f"{function.__name__}_{next(COUNT)}")
    with torch.enable_grad():
        outputs = torch.compile(own, fullgraph=True, dynamic=False, backend=backend)(*leaves)
    if not found or not all(x.requires_grad for x in outputs):
        raise CannotCompile("f does not depend on the state in a way that autograd follows")
    graph, n_outputs = found[0]
    if n_outputs != len(outputs):
        raise CannotCompile("f returns one of the tensors that it reads")
    return Joint(graph, n_outputs, order)


class Split:
    """The nodes of a joint graph, sorted to its halves."""

    def __init__(self, joint: Joint, constant: Sequence[bool], wanted: Sequence[bool], lost: int) -> None:
        self.joint = joint
        nodes = list(joint.graph.graph.nodes)
        placeholders = [node for node in nodes if node.op == "placeholder"]
        n = len(joint.primals)
        self.primals, self.tangents = placeholders[:n], placeholders[n:]
        (output,) = joint.graph.graph.find_nodes(op="output")
        self.outputs = list(output.args[0][: joint.n_outputs])
        self.grads = list(output.args[0][joint.n_outputs :])
        known = [(node, wanted[i]) for node, i in zip(self.primals, joint.primals, strict=True) if i != lost]
        self.there = {node for node, _ in known}
        fixed = {n for n, i in zip(self.primals, joint.primals, strict=True) if constant[i]}
        numbers = {node for node, want in known if not want and _is_number(node)}
        views: set[fx.Node] = set()
        self.backwards = set(self.tangents)
        for node in nodes:
            if node.op in ("placeholder", "output"):
                continue
            inputs = node.all_input_nodes
            if any(x in self.backwards for x in inputs):
                self.backwards.add(node)
            elif all(x in fixed for x in inputs):
                fixed.add(node)
            elif _is_number(node) and all(x in fixed or x in numbers for x in inputs):
                numbers.add(node)
            elif is_view(node.target):
                views.add(node)
        self.cheap = fixed | numbers | views
        self.residuals: dict[fx.Node, None] = {}
        for node in nodes:
            if node in self.backwards:
                for x in node.all_input_nodes:
                    self._need(x)

    def _need(self, node: fx.Node) -> None:
        """Make a forward node available to the backward half."""
        if node in self.backwards or node in self.there or node in self.residuals:
            return
        if node in self.cheap:
            for x in node.all_input_nodes:
                self._need(x)
        else:
            self.residuals[node] = None

    def forward(self) -> fx.GraphModule:
        """`(*primals)` -> outputs, residuals."""
        return self._made([], [*self.outputs, *self.residuals])

    def backward(self) -> fx.GraphModule:
        """`(*primals, *residuals, *tangents)` -> gradients of the primals that have one."""
        return self._made([*self.residuals, *self.tangents], [g for g in self.grads if g is not None])

    def _made(self, inputs: Sequence[fx.Node], results: Sequence[fx.Node]) -> fx.GraphModule:
        graph, known = fx.Graph(), {}
        for i, node in enumerate([*self.primals, *inputs]):
            known[node] = graph.placeholder(f"x{i}")
        for node in self.joint.graph.graph.nodes:
            known_already = node in known or node.op in ("placeholder", "output")
            if not known_already and all(x in known for x in node.all_input_nodes):
                known[node] = graph.node_copy(node, known.__getitem__)
        graph.output(tuple(known[node] for node in results))
        graph.eliminate_dead_code()
        return fx.GraphModule(self.joint.graph, graph)


def _is_number(node: fx.Node) -> bool:
    """Whether the node's value is one number, of which more can be made again for nothing."""
    made = node.meta.get("val")
    return isinstance(made, Tensor) and made.numel() == 1
