"""f and its vector-Jacobian product as graphs of ATen's operations, for all sizes that f is a graph for.

Tracing with symbolic sizes may find that the result holds for some sizes only; what it found is a condition on the
graph, which is asked before the graph is used for others.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, fx
from torch.fx.experimental.proxy_tensor import make_fx

from ..compiled.field_graph import FieldGraph
from ..torch_internals import examples_of
from .cells import Cells


@dataclass(frozen=True)
class Traced:
    """A graph of ATen's operations, and the tensors that it has beside its inputs.

    It is right for sizes that fulfil its conditions, in symbols of which each is the size of an input in a dimension.
    `samples_last`: states, and what is laid like them, have lanes in their last dimension.
    """

    graph: fx.GraphModule
    constants: tuple[Tensor, ...]
    symbols: Mapping[Any, tuple[int, int]]
    conditions: Sequence[Any]
    samples_last: bool = False

    def holds(self, tensors: Sequence[Tensor]) -> bool:
        """Whether it is right for inputs of these shapes."""
        sizes = {symbol: tensors[i].shape[dim] for symbol, (i, dim) in self.symbols.items()}
        return all(bool(condition.subs(sizes)) for condition in self.conditions)


@dataclass(frozen=True)
class Wanted:
    """What a product is asked for beside the state's cotangent: the time's, and those of some inputs."""

    time: bool = False
    inputs: tuple[bool, ...] = field(default=())


@dataclass(frozen=True)
class Lanes:
    """How several samples lie side by side: in the last dimension of states, and of those inputs that are `laid`.

    Other inputs with `rows` have their samples first: what is large, as the values of a control, is not to be moved in
    each evaluation. With `copies`, f gets copies in which the samples are first.
    """

    rows: tuple[bool, ...]
    laid: tuple[bool, ...]
    copies: bool = False

    @staticmethod
    def of(rows: Sequence[bool], inputs: Sequence[Tensor]) -> Lanes:
        """Those of inputs such as these."""
        laid = (so and is_laid(x) for x, so in zip(inputs, rows, strict=True))
        return Lanes(tuple(rows), tuple(laid))

    def inputs(self, inputs: Sequence[Tensor]) -> list[Tensor]:
        """The inputs of f as its code takes them."""
        return [last(x) if so else x for x, so in zip(inputs, self.laid, strict=True)]

    def batch(self, x: Tensor) -> Tensor:
        """A tensor with its samples first, as f takes them."""
        # Of several dimensions f may make one, which their memory would not allow.
        x = x.movedim(-1, 0)
        return x.contiguous() if self.copies or x.ndim > 2 else x

    def dynamic(self, lead: int, sizes: Mapping[int, set[int]]) -> dict[int, set[int]]:
        """The dimensions whose sizes may change, where those of the samples does not."""
        rows, laid = ([False, *[True] * (lead - 1), *own] for own in (self.rows, self.laid))
        return {i: {d - int(laid[i]) for d in own if d or not rows[i]} for i, own in sizes.items()}


def is_laid(x: Tensor) -> bool:
    """Whether the samples of a tensor that f reads come last in memory: not those of tables."""
    return x.ndim < 3


def last(x: Tensor) -> Tensor:
    """A tensor with its samples last."""
    return x.movedim(0, -1).contiguous()


def _around(f: FieldGraph, lanes: Lanes | None) -> Callable[..., Tensor]:
    """f on states and inputs as its code takes them."""

    def on_lanes(t: Tensor, y: Tensor, inputs: Sequence[Tensor]) -> Tensor:
        assert lanes is not None
        own = [lanes.batch(x) if so else x for x, so in zip(inputs, lanes.laid, strict=True)]
        return last(f(t, lanes.batch(y), own))

    return f if lanes is None else on_lanes


def value_graph(f: FieldGraph, args: Sequence[Tensor], lanes: Lanes | None = None) -> Traced:
    """`(t, y, *inputs)` -> f."""
    own = _around(f, lanes)

    def value(t: Tensor, y: Tensor, *inputs: Tensor) -> tuple[Tensor, ...]:
        return (own(t, y, inputs),)

    return _traced(value, args, dynamic_of(f, 2, lanes), lanes is not None)


def pull_graph(f: FieldGraph, args: Sequence[Tensor], wanted: Wanted, lanes: Lanes | None = None) -> Traced:
    """`(t, y, g, *inputs)` -> the product of g with df/dy, with df/dt, and those with what else is wanted.

    All of them are in the dtype of the state, in which the loops add them up.
    """
    own = _around(f, lanes)

    def pull(t: Tensor, y: Tensor, g: Tensor, *inputs: Tensor) -> tuple[Tensor, ...]:
        # By autograd: a transform around those that f has inside would be at the level that its graph gives theirs.
        leaves = [x.detach().requires_grad_(want) for x, want in zip(inputs, wanted.inputs, strict=True)]
        y, t = y.detach().requires_grad_(), t.detach().requires_grad_(wanted.time)
        wrt = [y, *([t] if wanted.time else []), *(x for x in leaves if x.requires_grad)]
        with torch.enable_grad():
            k = own(t, y, leaves)
            grads = torch.autograd.grad(k, wrt, g, materialize_grads=True) if k.requires_grad else None
        return tuple(x.to(y.dtype) for x in grads or map(torch.zeros_like, wrt))

    return _traced(pull, args, dynamic_of(f, 3, lanes), lanes is not None)


def dynamic_of(f: FieldGraph, lead: int, lanes: Lanes | None = None) -> dict[int, set[int]]:
    """The dimensions whose sizes may change: of y and what is like it, and of the inputs from place `lead` on."""
    own = [at for at in range(f.n_inputs) if at not in (f.t_at, f.y_at)]
    places = [None, *[f.y_at] * (lead - 1), *own]
    found = {
        i: {dim for other, dim in f.dynamic if other == at} for i, at in enumerate(places) if at is not None
    }
    return found if lanes is None else lanes.dynamic(lead, found)


def _traced(
    function: Callable[..., tuple[Tensor, ...]],
    args: Sequence[Tensor],
    dynamic: Mapping[int, set[int]],
    samples_last: bool,
) -> Traced:
    """The graph of a function of tensors such as these."""
    mode, fakes = examples_of(args, dynamic)
    symbols: dict[Any, tuple[int, int]] = {}
    for i, x in enumerate(fakes):
        for dim, size in enumerate(x.shape):
            if isinstance(size, torch.SymInt) and size.node.expr.is_Symbol:
                symbols.setdefault(size.node.expr, (i, dim))
    with mode, Cells(), torch.enable_grad():  # as f was; what this finds out of a symbol takes its place
        graph = make_fx(function)(*fakes)
    graph.graph.eliminate_dead_code()
    constants = _constants_as_inputs(graph)
    graph.recompile()
    return Traced(graph, constants, symbols, [guard.expr for guard in mode.shape_env.guards], samples_last)


def _constants_as_inputs(graph: fx.GraphModule) -> tuple[Tensor, ...]:
    """Have tensors that belong to a graph handed over behind its inputs; returns them."""
    found: dict[str, tuple[fx.Node, Tensor]] = {}
    last = graph.graph.find_nodes(op="placeholder")[-1]
    for node in graph.graph.find_nodes(op="get_attr"):
        constant: Any = getattr(graph, str(node.target), None)
        if not isinstance(constant, Tensor):
            continue
        if hasattr(constant, "fake_mode"):
            raise RuntimeError("a tensor without numbers stands in the graph of f")
        if node.target not in found:
            with graph.graph.inserting_after(last):
                holder = graph.graph.placeholder(f"constant_{len(found)}")
            holder.meta.update(node.meta)
            holder.meta.setdefault("val", constant)
            found[str(node.target)], last = (holder, constant.detach().contiguous()), holder
        node.replace_all_uses_with(found[str(node.target)][0])
        graph.graph.erase_node(node)
    return tuple(constant for _, constant in found.values())
