"""Which tensors f depends on: parameters, arguments and whatever it captures, declared or not.

Two sources are joined. The graph of f's first evaluation tells what f *used* there: leaves, and tensors with a
history of their own, which are inputs of the solve while what lies behind them is ordinary autograd. Walking the
function object (closure, bound object, module, the globals it names) tells what f *can reach*: it finds the
tensors behind those graph nodes, names them, and finds leaves that f uses only at a later time.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence, Set
from contextlib import nullcontext
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor
from torch.autograd.graph import Node
from torch.utils import _pytree as pytree

from .core import Problem
from .dynamics import Dynamics
from .effects import Watch
from .reach import Path, Reach, label, reach

CAST = "ToCopyBackward0"  # older than the call where autocast had cast the parameter before
# What an f that leaves autograd says when it is given a state that requires a gradient.
LEAVES_AUTOGRAD = ("Can't call numpy()", "don't support automatic differentiation")


@dataclass(frozen=True)
class Inputs:
    """The tensors a solve depends on through f, beside y0 and the times.

    `args` are handed to f and can be exchanged for a replay's own leaves; `captured`, which f used at t0, cannot.
    `late` are leaves that f reaches and may use later. `strangers` are tensors with a history that f reaches but
    did not use at t0: a replay that uses one is refused. `blind`: f holds something that cannot be looked into.
    `graph_bytes` is what autograd saves for one evaluation
    of f, where somebody asked for it.
    """

    args: tuple[Tensor, ...] = ()
    captured: tuple[Tensor, ...] = ()
    late: tuple[Tensor, ...] = ()
    strangers: dict[tuple[Node, int], Path] = field(default_factory=dict)
    blind: bool = False
    graph_bytes: int = 0

    def declaring(self, declared: Sequence[Tensor], *, alone: bool) -> Inputs:
        """With tensors that get a gradient whether f uses them or not; `alone`: captured ones do not."""
        kept = () if alone else self.captured
        known = {id(t) for t in (*self.args, *kept)}
        new = tuple({id(t): t for t in declared if t.requires_grad and id(t) not in known}.values())
        known |= {id(t) for t in declared}
        late = () if alone else tuple(t for t in self.late if id(t) not in known)
        return replace(self, captured=kept + new, late=late)

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        return self.args + self.captured + self.late

    def without_late(self, tensors: Sequence[Tensor | None]) -> Sequence[Tensor | None]:
        """Of the inputs in the order of an autograd function, those that a backward pass surely reads."""
        return tensors[: len(tensors) - len(self.late)]

    @property
    def watched(self) -> bool:
        """Whether replays have to be searched for tensors that are no inputs; that costs, and is rarely needed."""
        return self.blind or self.historic or bool(self.strangers)

    @property
    def historic(self) -> bool:
        """Whether a captured tensor was computed from others: what lies behind it is ordinary autograd's."""
        return any(tensor.grad_fn is not None for tensor in self.captured)


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
    reached = reach(f.func, f.args)
    watch = Watch(p.y0.device, reached.tensors)
    before = torch.autograd._get_sequence_nr()
    state = (p.y0.clone() if p.y0.is_inference() else p.y0.detach()).requires_grad_()
    # With leaves of their own as arguments, what the graph finds of the same tensors is truly captured.
    args = {id(a): a for a in pytree.tree_leaves(f.args) if isinstance(a, Tensor) and a.requires_grad}
    own = {key: a.detach().requires_grad_() for key, a in args.items()}

    def seen(_: Tensor) -> None:
        f.needs_grad = True

    hook = state.register_hook(seen)
    weigh = Scale() if measure else nullcontext()
    try:
        with torch.enable_grad(), weigh:
            k = f.with_tensors(own).evaluate(time, state)
    except RuntimeError as error:
        if not any(text in str(error) for text in LEAVES_AUTOGRAD):
            raise
        k = _without_autograd(f, time, p.y0, error)
    finally:
        hook.remove()
    f.note_graph(k, before)
    f.gathered = gathered_inside(k, before, reached)
    inputs = _inputs(tuple(args.values()), k, {id(state), *map(id, own.values())}, before, reached)
    if isinstance(weigh, Scale):
        inputs = replace(inputs, graph_bytes=weigh.bytes(besides=(state, *inputs.tensors)))
    return watch.observed(p, k.detach()), inputs


def evaluated_in_graph(p: Problem, f: Dynamics) -> Problem:
    """The problem with f at its start evaluated as a part of the caller's graph."""
    reached = reach(f.func, f.args)
    watch = Watch(p.y0.device, reached.tensors)
    before = torch.autograd._get_sequence_nr()
    k = p.slope(p.ts[0], p.ts[len(p.ts) - 1], p.y0)
    f.note_graph(k, before)
    f.gathered = gathered_inside(k, before, reached)
    return watch.observed(p, k)


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


def _inputs(args: tuple[Tensor, ...], k: Tensor, own: set[int], before: int, reached: Reach) -> Inputs:
    reach = [(path, tensor) for path, tensor in reached.tensors if tensor.requires_grad]
    nodes = {tensor.grad_fn: tensor for _, tensor in reach if tensor.grad_fn is not None}
    leaves, edges = used(k, before, set(nodes))
    historic = {
        (tensor.grad_fn, tensor.output_nr): tensor for _, tensor in reach if tensor.grad_fn is not None
    }
    found = {id(leaf): leaf for leaf in leaves if id(leaf) not in own}
    for node, output in edges:
        if (node, output) in historic:
            tensor = historic[node, output]
            found[id(tensor)] = tensor
        elif torch.is_grad_enabled():
            raise ValueError(
                f"f uses a tensor with a history (made by {node.name()}) that cannot be found from the function "
                "object, so its gradient would be lost: hand it over with args=(tensor, ...), or use "
                "gradient='direct'"
            )
    handed = {id(a) for a in args}
    unused = [
        (path, tensor) for path, tensor in reach if id(tensor) not in found and id(tensor) not in handed
    ]
    strangers = {(t.grad_fn, t.output_nr): path for path, t in unused if t.grad_fn is not None}
    # Leaves behind a tensor with a history would be reached through it in every replay: there, replays are checked.
    late = () if edges else tuple(tensor for _, tensor in unused if tensor.is_leaf)
    return Inputs(args, tuple(found.values()), late, strangers, reached.blind)


def used(out: Tensor, since: int, boundary: Set[Node]) -> tuple[list[Tensor], list[tuple[Node, int]]]:
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
        if node.name() == "torch::autograd::AccumulateGrad":
            if node not in visited:
                visited.add(node)
                leaves.append(node.variable)  # pyright: ignore[reportAttributeAccessIssue]
        elif node in boundary or (node._sequence_nr() < since and node.name() != CAST):
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


def gathered_inside(k: Tensor, since: int, reached: Reach) -> str:
    """The name of a sharded parameter (FSDP2) whose whole exists during f only, or an empty string."""
    distributed = sys.modules.get("torch.distributed.tensor")
    if distributed is None:
        return ""
    dtensor = distributed.DTensor
    sharded = [path for path, t in reached.tensors if isinstance(t, dtensor) and t.requires_grad]
    known = {id(tensor) for _, tensor in reached.tensors}
    # A DTensor that f uses as such (tensor parallelism) is a leaf of the graph itself.
    if not sharded or all(id(leaf) in known for leaf in used(k, since, set())[0]):
        return ""
    return min(label(path) for path in sharded)


def check_replay(outs: Sequence[Tensor], inputs: Inputs, own: Sequence[Tensor | None], span: str) -> None:
    """Refuse a replayed step that uses a tensor which the solve does not know as an input.

    Raises
    ------
    ValueError
        Naming the tensor: its gradient would be lost, or its history differentiated once per step.
    """
    history = {(t.grad_fn, t.output_nr) for t in inputs.captured if t.grad_fn is not None}
    known = {id(tensor) for tensor in (*inputs.tensors, *own) if tensor is not None}
    for out in outs:
        leaves, edges = used(out, 0, {node for node, _ in (*history, *inputs.strangers)})
        names = [label(inputs.strangers[edge]) for edge in edges if edge in inputs.strangers]
        names += [f"a tensor of shape {tuple(leaf.shape)}" for leaf in leaves if id(leaf) not in known]
        if names:
            raise ValueError(
                f"f first used {names[0]} in the step {span}, not at t0, so it is no input of the solve and "
                "its gradient would be lost: hand it over with args=(tensor, ...), or use gradient='direct'"
            )
