"""Python numbers that f holds as inputs of its graph: a coefficient that is annealed needs no new graph.

Dynamo hands a number that has changed over as a 0-dim tensor, float64, and reads it in the graph. Here the graph goes
on with that tensor: arithmetic between numbers stays in double, as in Python, and what meets a tensor is first cast to
the precision of the state.
"""

from __future__ import annotations

import contextlib
import operator
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, fx

from .failure import CannotCompile

ARITHMETIC = {
    *(operator.add, operator.sub, operator.mul, operator.truediv, operator.pow, operator.neg, operator.abs),
    *(operator.pos, torch.sym_float),
}
"""What is the same of 0-dim tensors and of numbers."""
NEAR = 64.0
"""Roundings that a value may be off by where numbers are tensors."""


class NumbersStay(CannotCompile):
    """A number of f has to be a constant of its graph."""


def with_scalars(graph: fx.GraphModule) -> fx.GraphModule | None:
    """The graph with tensors where it reads numbers; None if it reads none.

    Raises
    ------
    NumbersStay
        Where it does with a number what nobody does with a tensor.
    """
    read = [node for node in graph.graph.find_nodes(op="call_method", target="item") if _is_number(node)]
    if not read:
        return None
    (output,) = graph.graph.find_nodes(op="output")
    other, known, numbers = fx.Graph(), dict[fx.Node, fx.Node](), dict[fx.Node, fx.Node]()
    dtype = output.args[0][0].meta["example_value"].dtype

    def cast(node: fx.Node) -> fx.Node:
        if node in numbers and node not in known:
            known[node] = other.call_method("to", (numbers[node], dtype))
        return known[node]

    for node in graph.graph.nodes:
        if node in read:
            numbers[node] = known[node.args[0]]
        elif not isinstance(node.meta.get("example_value"), torch.SymFloat):
            known[node] = other.node_copy(node, cast)
        elif node.target in ARITHMETIC:
            numbers[node] = other.node_copy(node, numbers.__getitem__)
        else:
            raise NumbersStay("f computes with a number that changes")
    made = fx.GraphModule(graph, other)
    made.recompile()
    return made


def _is_number(node: fx.Node) -> bool:
    """Whether a node reads a number that Dynamo hands over as a tensor."""
    source: Any = node.args[0]
    return source.op == "placeholder" and isinstance(node.meta.get("example_value"), torch.SymFloat)


@contextlib.contextmanager
def as_numbers_do(
    exact: fx.GraphModule | None, tensors: Sequence[Tensor]
) -> Iterator[Callable[[Tensor], None]]:
    """Around the first evaluation on tensors: hands over what its value is compared with, that of the `exact` graph.

    Raises
    ------
    NumbersStay
        Where numbers as tensors give another value, or none.
    """

    def check(value: Tensor) -> None:
        if exact is None:
            return
        wanted = exact(*tensors)[0].detach()
        near = NEAR * torch.finfo(wanted.dtype).eps
        same = value.dtype == wanted.dtype and torch.allclose(
            value.detach(), wanted, near, near, equal_nan=True
        )
        if not same:
            raise NumbersStay("f has another value where a number that changes is a tensor")

    try:
        yield check
    except NumbersStay:
        raise
    except Exception as error:
        if exact is None:
            raise
        raise NumbersStay("f takes no tensor in place of a number that changes") from error
