"""Small tensors, where a call, or a buffer, costs more than its numbers.

A pass over the graphs that PyTorch's compiler is about to turn into code, which changes nothing but rounding:

    addmm(b, x, w)            ->  x w + b        the addition becomes a part of the loop that reads it
    a_1 b_1 + a_2 b_2 + ...   ->  [a_1 a_2 ...] [b_1; b_2; ...]    a weight's gradients from all stages of a step
    cat([a, b, ...])          ->  where(i < n, a, ...)    an expression of the loop that reads it, and no buffer
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeGuard

import torch
from torch import Tensor, fx

from ..torch_internals import examples, hash_of_files

aten, prims = torch.ops.aten, torch.ops.prims
EXACT = (torch.float32, torch.float64)  # in half precision, addmm adds before it rounds
IOTA = {"start": 0, "step": 1, "dtype": torch.int64, "requires_grad": False}
FEW = 64  # numbers in a tensor, up to which a choice for each of them costs less than a buffer
SMALL = 2**17  # multiplications in a product, below which joining it with others pays


@dataclass(frozen=True)
class Small:
    """The pass; the disk cache of graphs knows it by its source.

    `cats`: look at `cat` as well. In a backward pass, which needs the values more than once, buffers are cheaper.
    """

    cats: bool

    def __call__(self, graph: fx.Graph) -> None:
        for node in graph.find_nodes(op="call_function", target=aten.cat.default) if self.cats else ():
            _select(graph, node)
        for node in graph.find_nodes(op="call_function", target=aten.addmm.default):
            if not node.kwargs and _value(node).dtype in EXACT:
                _separate(graph, node)
        for node in reversed(graph.find_nodes(op="call_function", target=aten.add.Tensor)):
            if _is_sum(node) and not any(_is_sum(user) for user in node.users):
                _join(graph, node)
        graph.eliminate_dead_code()

    def uuid(self) -> tuple[bytes, bool]:
        return hash_of_files(__file__), self.cats


def _separate(graph: fx.Graph, node: fx.Node) -> None:
    """`addmm` as a product and a sum."""
    added, *factors = node.args
    with graph.inserting_before(node):
        total = _new(graph, aten.add.Tensor, _new(graph, aten.mm.default, *factors), added)
    node.replace_all_uses_with(total)
    graph.erase_node(node)


def _join(graph: fx.Graph, total: fx.Node) -> None:
    """The small products among the terms of a sum as one product."""
    terms = _terms(total)
    products = [term for term in terms if _is_small(term)]
    if len(products) < 2 or len({_value(term).dtype for term in terms}) > 1:
        return
    lefts, rights = zip(*(node.all_input_nodes for node in products), strict=True)
    with graph.inserting_before(total):
        value = _new(graph, aten.mm.default, _joined(graph, lefts, 1), _joined(graph, rights, 0))
        for term in terms:
            if term not in products:
                value = _new(graph, aten.add.Tensor, value, term)
    total.replace_all_uses_with(value)


def _is_sum(node: object) -> TypeGuard[fx.Node]:
    """Whether a node adds two tensors of its own shape."""
    if not isinstance(node, fx.Node) or node.target is not aten.add.Tensor or node.kwargs:
        return False
    return len(node.args) == len(node.all_input_nodes) == 2 and all(
        _value(x).shape == _value(node).shape for x in node.all_input_nodes
    )


def _terms(node: fx.Node) -> list[fx.Node]:
    """What a sum adds up; sums that somebody else reads as well stay whole."""
    terms: list[fx.Node] = []
    for term in node.all_input_nodes:
        terms += _terms(term) if _is_sum(term) and len(term.users) == 1 else [term]
    return terms


def _is_small(node: fx.Node) -> bool:
    if node.target is not aten.mm.default or len(node.users) > 1 or len(node.all_input_nodes) < 2:
        return False
    (rows, inner), columns = _value(node.all_input_nodes[0]).shape, _value(node).shape[1]
    known = all(isinstance(n, int) for n in (rows, inner, columns))
    return known and _value(node).dtype in EXACT and rows * inner * columns < SMALL


def _select(graph: fx.Graph, node: fx.Node) -> None:
    """A small `cat` as a choice between its parts, each moved to its place."""
    given: Any = node.args
    parts: list[fx.Node] = given[0]
    shape, sizes = _value(node).shape, [size for x in parts for size in _value(x).shape]
    if not all(isinstance(size, int) and size for size in sizes) or shape.numel() > FEW or node.kwargs:
        return
    dim: int = (given[1] if len(given) > 1 else 0) % len(shape)
    with graph.inserting_before(node):
        places = _new(graph, prims.iota.default, shape[dim], **IOTA, device=_value(node).device)
        places = _new(graph, aten.view.default, places, [-1 if i == dim else 1 for i in range(len(shape))])
        found, start = parts[0], 0
        for part in parts:
            end = start + _value(part).shape[dim]
            around = [0, 0] * (len(shape) - 1 - dim) + [start, shape[dim] - end]
            moved = _new(graph, aten.constant_pad_nd.default, part, around, 0)
            before = _new(graph, aten.lt.Scalar, places, start)
            found = _new(graph, aten.where.self, before, found, moved) if start else moved
            start = end
    if _value(found).stride() == _value(node).stride() and _value(found).dtype == _value(node).dtype:
        node.replace_all_uses_with(found)
        graph.erase_node(node)


def _joined(graph: fx.Graph, parts: Sequence[fx.Node], dim: int) -> fx.Node:
    """`cat(parts, dim)`; of transposed matrices, as the transpose of theirs."""
    if all(node.target is aten.permute.default for node in parts):
        whole = _new(graph, aten.cat.default, [node.args[0] for node in parts], 1 - dim)
        return _new(graph, aten.permute.default, whole, [1, 0])
    return _new(graph, aten.cat.default, list(parts), dim)


def _new(graph: fx.Graph, target: Callable[..., Tensor], *args: Any, **options: Any) -> fx.Node:
    """A node, with the example of its value that all nodes have."""
    node = graph.call_function(target, args, options)
    with examples():
        node.meta["val"] = target(*fx.map_arg(args, _value), **options)
    return node


def _value(node: fx.Node) -> Tensor:
    return node.meta["val"]
