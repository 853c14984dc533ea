"""Walks over autograd's graphs: what a value was computed from, and who keeps a part of its graph."""

from __future__ import annotations

import gc
import sys
import weakref
from collections.abc import Sequence, Set
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.autograd.graph import Node

from ..state import HALF
from ..torch_internals import number_of, results_of, saved_tensors_are_hooked
from .places import label

if TYPE_CHECKING:
    from .reach import Reach

# Names of classes; those of custom Functions' nodes end in "Backward".
LEAF = "AccumulateGrad"
CAST = "ToCopyBackward0"  # older than the call where autocast had cast the parameter before
Edge = tuple[Node, int]


def name_of(node: Node) -> str:
    """The name of a node. The class is asked: a custom Function's `ctx.name = ...` hides the method."""
    return type(node).name(node)


@dataclass
class Graph:
    """What a value was computed from.

    `leaves` are tensors, `edges` those to older parts of the graph, which are not followed; `half` is the coarsest half
    precision among the results inside, None if there is none.
    """

    leaves: list[Tensor] = field(default_factory=list)
    edges: list[Edge] = field(default_factory=list)
    half: torch.dtype | None = None

    def note(self, node: Node) -> None:
        """Note the precision of what a node takes cotangents of."""
        for made in results_of(node):
            if made.dtype in HALF:
                self.half = made.dtype if self.half is None else coarser(self.half, made.dtype)


def used(
    out: Tensor, since: int, boundary: Set[Node] = frozenset(), sign: Sign | None = None
) -> tuple[list[Tensor], list[Edge]]:
    """The leaves and the older graph edges that `out` was computed from; see `walked`."""
    graph = walked(out, since, boundary, sign)
    return graph.leaves, graph.edges


def walked(out: Tensor, since: int, boundary: Set[Node] = frozenset(), sign: Sign | None = None) -> Graph:
    """Walk over the graph that `out` was computed in.

    A node belongs to out's own computation if its sequence number is at least `since` and it is not in `boundary`; the
    `sign` is put on it. Edges to other nodes are returned, not followed.
    """
    if out.grad_fn is None:
        return Graph([out] if out.requires_grad else [])
    found = Graph()
    leaves: dict[int, Tensor] = {}
    edges: dict[Edge, None] = {}
    visited: set[Node] = set()
    pending: list[Sequence[tuple[Node | None, int]]] = [[(out.grad_fn, out.output_nr)]]
    while pending:
        for node, output in pending.pop():
            if node is None:
                continue
            kind = type(node).__name__
            if kind == LEAF:
                leaf = node.variable  # pyright: ignore[reportAttributeAccessIssue]
                leaves[id(leaf)] = leaf
                continue
            late = number_of(node) >= since
            if node in boundary or not (late or kind == CAST):
                edges[node, output] = None
            elif node not in visited:
                visited.add(node)
                pending.append(node.next_functions)
                if sign is not None and kind != CAST:  # autocast keeps the weights that it casts
                    sign.put_on(node)
                if late:
                    found.note(node)
    found.leaves, found.edges = list(leaves.values()), list(edges)
    return found


def coarser(one: torch.dtype, other: torch.dtype) -> torch.dtype:
    """The dtype with fewer digits."""
    return max(one, other, key=lambda dtype: torch.finfo(dtype).eps)


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


def gathered_inside(k: Tensor, since: int, reached: Reach) -> str:
    """The name of a sharded parameter (FSDP2) whose whole exists during f only, or an empty string."""
    distributed = sys.modules.get("torch.distributed.tensor")
    if distributed is None:
        return ""
    dtensor = distributed.DTensor
    sharded = [path for path, t in reached.tensors if isinstance(t, dtensor) and t.requires_grad]
    known = {id(tensor) for _, tensor in reached.tensors}
    # A DTensor that f uses as such (tensor parallelism) is a leaf of the graph itself.
    if not sharded or all(id(leaf) in known for leaf in walked(k, since).leaves):
        return ""
    return min(label(path) for path in sharded)
