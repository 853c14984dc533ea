"""Walks over autograd's graphs: what a value was computed from, and who keeps a part of its graph."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Set
from typing import Any

import torch
from torch import Tensor
from torch.autograd.graph import Node

from ..torch_internals import number_of, saved_tensors_are_hooked

# Names of classes; those of custom Functions' nodes end in "Backward".
LEAF = "AccumulateGrad"
CAST = "ToCopyBackward0"  # older than the call where autocast had cast the parameter before
Edge = tuple[Node, int]


def name_of(node: Node) -> str:
    """The name of a node. The class is asked: a custom Function's `ctx.name = ...` hides the method."""
    return type(node).name(node)


def is_leaf_node(node: Node) -> bool:
    """Whether a node stands for a leaf tensor, its `variable`."""
    return type(node).__name__ == LEAF


def used(
    out: Tensor, since: int, boundary: Set[Node] = frozenset(), sign: Sign | None = None
) -> tuple[list[Tensor], list[Edge]]:
    """The leaves and the older graph edges that `out` was computed from.

    A node belongs to out's own computation if its sequence number is at least `since` and it is not in `boundary`; the
    `sign` is put on it. Edges to other nodes are returned, not followed.
    """
    leaves: dict[int, Tensor] = {}
    edges: dict[Edge, None] = {}
    visited: set[Node] = set()
    pending: list[Node] = []

    def reach(node: Node | None, output: int) -> None:
        if node is None:
            return
        kind = type(node).__name__
        if kind == LEAF:
            leaf = node.variable  # pyright: ignore[reportAttributeAccessIssue]
            leaves[id(leaf)] = leaf
        elif node in boundary or (number_of(node) < since and kind != CAST):
            edges[node, output] = None
        elif node not in visited:
            visited.add(node)
            pending.append(node)
            if sign is not None and kind != CAST:  # autocast keeps the weights that it casts
                sign.put_on(node)

    if out.grad_fn is None and out.requires_grad:
        return [out], []
    reach(out.grad_fn, out.output_nr)
    while pending:
        for node, output in pending.pop().next_functions:
            reach(node, output)
    return list(leaves.values()), list(edges)


class Sign:
    """Lives as long as a graph node that it was put on, once everybody else has let go of it."""

    __slots__ = ("__weakref__",)

    def put_on(self, node: Node) -> None:
        metadata: Any = node.metadata  # a property, whatever its annotation says
        metadata["torchaca"] = self


class Keeping:
    """Whether somebody keeps a part of the graph of an evaluation, or its `state`, when everybody else has let go.

    The nodes of that graph have the sign.
    """

    def __init__(self, sign: Sign, state: Tensor) -> None:
        self._node, self._state = weakref.ref(sign), weakref.ref(state)
        device = state.device.type
        # Autocast keeps what it casts of a leaf, and saved-tensor hooks keep whatever they like.
        self.hooked = saved_tensors_are_hooked()
        self.cast = torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device)

    @property
    def state(self) -> Tensor | None:
        """The state, if somebody keeps it."""
        return self._state()

    def _alive(self) -> bool:
        return not self.hooked and (self._node() is not None or (self.state is not None and not self.cast))

    def __bool__(self) -> bool:
        if not self._alive():
            return False
        gc.collect(0)  # a custom Function's context may hold its own result
        return self._alive()


def with_history(value: object, since: int) -> bool:
    """Whether a value is a tensor that was computed, in a graph, since that sequence number."""
    return isinstance(value, Tensor) and value.grad_fn is not None and number_of(value.grad_fn) >= since
