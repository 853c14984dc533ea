"""Which tensors f depends on: parameters, arguments and whatever it captures, declared or not.

Two sources are joined. The graph of f's first evaluation tells what f *used* there: leaves, and tensors with a
history of their own, which are inputs of the solve while what lies behind them is ordinary autograd. Walking the
function object (closure, bound object, module, the globals it names) tells what f *can reach*: it finds the
tensors behind those graph nodes, names them, and finds leaves that f uses only at a later time.
"""

from __future__ import annotations

import sys
import types
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import islice
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import Node
from torch.utils import _pytree as pytree

from .core import Problem
from .dynamics import Dynamics
from .effects import Watch

OPAQUE_PACKAGES = frozenset(sys.stdlib_module_names) | {"torch", "numpy", "scipy", "torchaca"}
REACH_LIMIT = 50_000  # objects looked at before the search gives up; models have hundreds
CONTAINER_LIMIT = 1_000  # entries looked at in one container: beyond that it is data, not a model


@dataclass(frozen=True)
class Inputs:
    """The tensors a solve depends on through f, beside y0 and the times.

    `args` are handed to f and can be exchanged for a replay's own leaves; `captured` cannot. `names` is for
    messages, in the order args, captured. `strangers` are tensors with a history that f reaches but did not
    use at t0: a replay that uses one is refused. `graph_bytes` is what autograd saves for one evaluation of f,
    where somebody asked for it.
    """

    args: tuple[Tensor, ...] = ()
    captured: tuple[Tensor, ...] = ()
    names: tuple[str, ...] = ()
    strangers: dict[Node, str] = field(default_factory=dict)
    graph_bytes: int = 0

    def joined(self, declared: Sequence[Tensor]) -> Inputs:
        """With tensors that the caller declares, whether f uses them or not."""
        known = {id(t) for t in self.tensors}
        new = tuple(t for t in declared if t.requires_grad and id(t) not in known)
        names = tuple(f"declared[{i}]" for i in range(len(new)))
        return replace(self, captured=self.captured + new, names=self.names + names)

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        return self.args + self.captured


def first_evaluation(p: Problem, f: Dynamics, *, measure: bool = False) -> tuple[Problem, Inputs]:
    """The problem with f at its start evaluated, and the tensors that f depends on.

    This is the solve's first evaluation: none is extra, except where f draws random numbers (then each step draws
    its own). Runs f once with grad mode on, on a detached state; `f.needs_grad` is set where f was seen to
    differentiate that state itself.

    Raises
    ------
    ValueError
        If f uses a tensor that has a history and that cannot be found from the function object.
    """
    f.stats.nfe += 1
    start, end = p.ts.values[0], p.ts.values[-1]
    time = f.time(start, nudge=end if p.side(start, end)[0] else None)
    if torch.is_inference_mode_enabled():
        return replace(p, f0=f.evaluate(time, p.y0)), Inputs()
    reached = list(reachable(f.func))
    watch = Watch(p.y0.device, reached)
    before = torch.autograd._get_sequence_nr()
    state = p.y0.detach().requires_grad_()

    def seen(_: Tensor) -> None:
        f.needs_grad = True

    hook = state.register_hook(seen)
    weigh = Scale() if measure else nullcontext()
    try:
        with torch.enable_grad(), weigh:
            k = f.evaluate(time, state)
    except RuntimeError as error:
        k = _without_autograd(f, time, p.y0, error)
    finally:
        hook.remove()
    inputs = _inputs(f, k, state, before, reached)
    if isinstance(weigh, Scale):
        inputs = replace(inputs, graph_bytes=weigh.bytes(besides=(state, *inputs.tensors)))
    return watch.observed(p, k.detach()), inputs


def evaluated_in_graph(p: Problem, f: Dynamics) -> Problem:
    """The problem with f at its start evaluated as a part of the caller's graph."""
    watch = Watch(p.y0.device, list(reachable(f.func)))
    return watch.observed(p, p.slope(p.ts[0], p.ts[len(p.ts) - 1], p.y0))


class Scale(torch.autograd.graph.saved_tensors_hooks):
    """Weighs what autograd saves inside a `with` block."""

    def __init__(self) -> None:
        self._storages: dict[int, int] = {}
        super().__init__(self._put, lambda tensor: tensor)

    def _put(self, tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        self._storages[storage.data_ptr()] = storage.nbytes()
        return tensor

    def bytes(self, besides: Sequence[Tensor]) -> int:
        """Bytes of all saved storages, each once, without those of `besides`."""
        known = {tensor.untyped_storage().data_ptr() for tensor in besides}
        return sum(size for pointer, size in self._storages.items() if pointer not in known)


def _without_autograd(f: Dynamics, time: Tensor, y0: Tensor, error: RuntimeError) -> Tensor:
    """For an f that leaves autograd (`y.numpy()`): fine as long as nobody asks for a derivative."""
    given = [y0, *(a for a in pytree.tree_leaves(f.args) if isinstance(a, Tensor))]
    if torch.is_grad_enabled() and any(x.requires_grad for x in given):
        raise error
    try:
        with torch.no_grad():
            return f.evaluate(time, y0.detach())
    except Exception:
        raise error from None


def _inputs(
    f: Dynamics, k: Tensor, state: Tensor, before: int, reached: Sequence[tuple[str, Tensor]]
) -> Inputs:
    args = {id(a): a for a in pytree.tree_leaves(f.args) if isinstance(a, Tensor) and a.requires_grad}
    reach = {id(tensor): (name, tensor) for name, tensor in reached if tensor.requires_grad}
    historic = {
        (tensor.grad_fn, tensor.output_nr): (name, tensor)
        for name, tensor in [*reach.values(), *((f"args[{i}]", a) for i, a in enumerate(args.values()))]
        if tensor.grad_fn is not None
    }
    leaves, edges = used(k, before, {node for node, _ in historic})
    captured: dict[int, tuple[str, Tensor]] = {}
    for node, output in edges:
        if (node, output) not in historic:
            raise ValueError(
                f"f uses a tensor with a history (made by {node.name()}) that cannot be found from the function "
                "object, so its gradient would be lost: hand it over with args=(tensor, ...), or use "
                "gradient='direct'"
            )
        name, tensor = historic[node, output]
        captured[id(tensor)] = (name, tensor)
    for leaf in leaves:
        captured[id(leaf)] = reach.get(id(leaf), ("a tensor that f uses", leaf))
    strangers = {
        tensor.grad_fn: name
        for key, (name, tensor) in reach.items()
        if tensor.grad_fn is not None and key not in captured and key not in args
    }
    # Leaves that f reaches but did not use at t0 may be used later.
    captured = {key: item for key, item in reach.items() if item[1].is_leaf} | captured
    for key in (id(state), *args):
        captured.pop(key, None)
    names = [f"args[{i}]" for i in range(len(args))] + [name for name, _ in captured.values()]
    return Inputs(tuple(args.values()), tuple(t for _, t in captured.values()), tuple(names), strangers)


def used(out: Tensor, since: int, boundary: set[Node | None]) -> tuple[list[Tensor], list[tuple[Node, int]]]:
    """The leaves and the older graph edges that `out` was computed from.

    A node belongs to `out`'s own computation if its sequence number is at least `since` and it is not in
    `boundary`; edges to other nodes are returned, not followed.
    """
    leaves: list[Tensor] = []
    edges: dict[tuple[Node, int], None] = {}
    visited: set[Node] = set()
    pending: list[Node] = []

    def reach(node: Node | None, output: int) -> None:
        if node is None:
            return
        leaf = getattr(node, "variable", None)  # only an AccumulateGrad node has one
        if leaf is not None:
            if node not in visited:
                visited.add(node)
                leaves.append(leaf)
        elif node in boundary or node._sequence_nr() < since:
            edges[node, output] = None
        elif node not in visited:
            visited.add(node)
            pending.append(node)

    if out.grad_fn is None and out.requires_grad:
        return [out], []
    reach(out.grad_fn, out.output_nr)
    while pending:
        for node, output in pending.pop().next_functions:
            reach(node, output)
    return leaves, list(edges)


def reachable(root: Callable[..., Any]) -> Iterator[tuple[str, Tensor]]:
    """Every tensor that a Python walk from the function object finds, with a name for messages."""
    visited: set[int] = set()
    pending: list[tuple[str, Any]] = [("f", root)]
    while pending and len(visited) < REACH_LIMIT:
        name, thing = pending.pop()
        if id(thing) in visited or isinstance(thing, (str, bytes, int, float, complex, type(None))):
            continue
        visited.add(id(thing))
        if isinstance(thing, Tensor):
            yield name, thing
        else:
            pending.extend(_parts(name, thing))


def _parts(name: str, thing: Any) -> Iterator[tuple[str, Any]]:
    """What `thing` holds, one level down."""
    if isinstance(thing, types.MethodType):
        yield name, thing.__self__
        yield name, thing.__func__
    elif isinstance(thing, types.FunctionType):
        yield from _function_parts(name, thing)
    elif isinstance(thing, partial):
        yield from ((name, part) for part in (thing.func, thing.args, thing.keywords))
    elif isinstance(thing, dict):
        yield from ((f"{name}[{key!r}]", value) for key, value in islice(thing.items(), CONTAINER_LIMIT))
    elif isinstance(thing, (list, tuple, set, frozenset)):
        yield from ((f"{name}[{i}]", value) for i, value in enumerate(islice(thing, CONTAINER_LIMIT)))
    elif isinstance(thing, type):
        if thing.__module__.split(".")[0] not in OPAQUE_PACKAGES:
            yield from (
                (f"{name}.{key}", value) for key, value in vars(thing).items() if isinstance(value, Tensor)
            )
    elif isinstance(thing, nn.Module):
        yield from _module_parts(name, thing)
    elif type(thing).__module__.split(".")[0] not in OPAQUE_PACKAGES:
        yield from ((f"{name}.{key}", value) for key, value in getattr(thing, "__dict__", {}).items())
        for cls in type(thing).__mro__:
            yield from (
                (f"{name}.{slot}", getattr(thing, slot, None)) for slot in cls.__dict__.get("__slots__", ())
            )
        if callable(thing):
            yield name, type(thing).__call__


def _module_parts(name: str, module: nn.Module) -> Iterator[tuple[str, Any]]:
    for key, value in vars(module).items():
        if key in ("_parameters", "_buffers", "_modules"):
            yield from ((f"{name}.{inner}", part) for inner, part in value.items())
        elif not key.startswith("_"):
            yield f"{name}.{key}", value
    yield name, type(module).forward


def _function_parts(name: str, function: types.FunctionType) -> Iterator[tuple[str, Any]]:
    if (function.__module__ or "").split(".")[0] in OPAQUE_PACKAGES:
        return
    cells = function.__closure__ or ()
    for variable, cell in zip(function.__code__.co_freevars, cells, strict=True):
        try:
            yield f"{variable} (closure of {function.__name__})", cell.cell_contents
        except ValueError:  # an empty cell: not yet assigned
            continue
    for variable in _names(function.__code__):
        value = function.__globals__.get(variable)
        if isinstance(value, types.ModuleType):
            yield from (
                (f"{variable}.{inner}", vars(value)[inner])
                for inner in _names(function.__code__)
                if variable not in OPAQUE_PACKAGES and inner in vars(value)
            )
        elif value is not None:
            yield f"{variable} (global)", value
    yield name, function.__defaults__ or ()
    yield name, function.__kwdefaults__ or {}
    yield name, vars(function)


def _names(code: types.CodeType) -> set[str]:
    """The global and attribute names that a function mentions, in nested functions too."""
    names = set(code.co_names)
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            names |= _names(constant)
    return names


def check_replay(outs: Sequence[Tensor], strangers: dict[Node, str], span: str) -> None:
    """Refuse a replayed step that uses a tensor with a history which was not used at t0.

    Raises
    ------
    ValueError
        Naming the tensor: its history would be differentiated once per step, or not at all.
    """
    for out in outs:
        _, edges = used(out, 0, set(strangers))
        for node, _ in edges:
            raise ValueError(
                f"f first used {strangers[node]} in the step {span}, not at t0, so it is no input of the solve and "
                "its gradient would be lost: hand it over with args=(tensor, ...), or use gradient='direct'"
            )
