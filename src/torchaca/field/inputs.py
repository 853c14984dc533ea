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
from functools import partial
from typing import Any

import torch
from torch import Tensor

from ..core import Problem
from ..torch_internals import is_functorch_wrapped_tensor, pytree, sequence_number
from .dynamics import Dynamics
from .effects import Watch
from .histories import Edge, Keeping, Sign, name_of, used
from .lost import Handed, kept_of, kept_of_attached, warn_of_lost
from .places import Path, Reads, label
from .reach import Reach, reach
from .saved import SavedTensors

# What an f that leaves autograd says when it is given a state that requires a gradient.
LEAVES_AUTOGRAD = ("Can't call numpy()", "don't support automatic differentiation")


@dataclass(frozen=True)
class Inputs:
    """The tensors a solve depends on through f, beside y0 and the times.

    `args` are handed to f and can be exchanged for a replay's own leaves; `captured`, which f used at t0, cannot.
    `late` are leaves that f reaches and may use later. `strangers` are tensors with a history that f reaches but
    did not use at t0: a replay that uses one is refused. `blind`: f holds something that cannot be looked into.
    `graph_bytes` is what autograd saves for one evaluation of f, where somebody asked for it. `attached`: the first
    evaluation is a part of the caller's graph. `reads` are the places that f reads from. `kept` names what f keeps of
    its first evaluation's graph, an empty string if it keeps nothing.
    `used_at_start` are the captured tensors that the first evaluation used, without those that were only declared;
    `idle` are those that it might have used, if it used none at all.
    """

    args: tuple[Tensor, ...] = ()
    captured: tuple[Tensor, ...] = ()
    late: tuple[Tensor, ...] = ()
    strangers: dict[Edge, Path] = field(default_factory=dict)
    blind: bool = False
    graph_bytes: int = 0
    attached: bool = False
    reads: Reads = field(default_factory=Reads)
    kept: str = ""
    used_at_start: tuple[Tensor, ...] = ()
    idle: tuple[Tensor, ...] = ()

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
        return self.blind or self.shared or bool(self.strangers)

    @property
    def historic(self) -> bool:
        """Whether a captured tensor was computed from others: what lies behind it is ordinary autograd's."""
        return any(tensor.grad_fn is not None for tensor in self.captured)

    @property
    def shared(self) -> bool:
        """Whether the graphs of two steps may share a part: behind a captured tensor, or one that f keeps."""
        return self.historic or bool(self.kept)


def first_evaluation(
    p: Problem, f: Dynamics, *, measure: bool = False, attach: bool = False, declared: Sequence[Tensor] = ()
) -> tuple[Problem, Inputs]:
    """Evaluate f at the start and find the tensors that it depends on.

    This is the solve's first evaluation: none is extra, except for an f that draws random numbers or moves buffers
    (is it a function all the same?) and for one that seems to depend on nothing (does it?). Runs f once with grad mode
    on, on a detached state; `f.needs_grad` is set where f was seen to differentiate that state itself. `declared` are
    tensors that the user says f depends on.

    `attach`: the evaluation becomes a part of the caller's graph. If it is to be weighed as well (`measure`), an f that
    may hide a tensor is evaluated apart all the same: what it keeps shows only when its graph is gone.

    Raises
    ------
    ValueError
        If f uses a tensor that has a history and that cannot be found from the function object.
    """
    f.stats.nfe += 1
    if torch.is_inference_mode_enabled():
        return replace(p, f0=f.evaluate_copy(_start(p, f), p.y0)), Inputs()
    reached = reach(f.func, f.args)
    attach = attach and torch.is_grad_enabled() and not (measure and reached.hides)
    watch, reads = Watch(p.y0.device, reached), Reads(reached.places, reached.containers)
    since = sequence_number()
    value, inputs, handed = _evaluated(p, f, reached, measure, attach, declared)
    kept = ""
    if torch.is_grad_enabled():
        attached = isinstance(handed, Handed)
        kept = kept_of_attached(f, reads, since, handed) if attached else kept_of(f, reads, since, handed)

    again = partial(_slope_at_start, p)
    p = watch.observed(p, value, again)
    if torch.is_grad_enabled():
        warn_of_lost(p, inputs.late if f.detached else inputs.idle, reached, again)
    reads.renew()
    return p, replace(inputs, reads=reads, kept=kept)


def _start(p: Problem, f: Dynamics, attach: bool = False) -> Tensor:
    """The time of the first evaluation as f gets it; `attach`: with its derivative."""
    start, end = p.ts.values[0], p.ts.values[-1]
    return f.time(p.ts[0] if attach else start, nudge=end if p.side(start, end)[0] else None)


def _slope_at_start(p: Problem) -> Tensor:
    """One more evaluation of f where the solve starts."""
    return p.slope(p.ts.values[0], p.ts.values[-1], p.y0.detach())


def _evaluated(
    p: Problem, f: Dynamics, reached: Reach, measure: bool, attach: bool, declared: Sequence[Tensor]
) -> tuple[Tensor, Inputs, Keeping | Handed]:
    """The value of f, its inputs, and whether f keeps a part of the graph, which is gone but for that.

    With `attach` the graph stays: the last is what f was handed.
    """
    time = _start(p, f, attach)
    before = sequence_number()
    # A copy: f may write into it.
    state = p.y0.clone() if attach and p.y0.requires_grad else p.y0.detach().clone().requires_grad_()
    # With tensors of their own as arguments, what the graph finds of the same tensors is truly captured.
    args = {id(a): a for a in pytree.tree_leaves(f.args) if isinstance(a, Tensor) and a.requires_grad}
    own = {key: _alias(a) if attach else a.detach().requires_grad_() for key, a in args.items()}
    weigh = SavedTensors() if measure else nullcontext()
    try:
        with torch.enable_grad(), weigh, f.observing(state):
            k = f.with_tensors(own).evaluate(time, state)
    except RuntimeError as error:
        if not any(text in str(error) for text in LEAVES_AUTOGRAD):
            raise
        k = _without_autograd(f, time, p.y0, error)
    f.note_graph(k, before)
    f.gathered = gathered_inside(k, before, reached)
    sign = Sign() if torch.is_grad_enabled() else None
    found = _inputs(args, own, k, Handed(state, (time, *own.values())), before, reached, declared, sign)
    if isinstance(weigh, SavedTensors):
        found = replace(found, graph_bytes=weigh.held_besides((state, *found.tensors)))
    if attach:
        return k, replace(found, attached=True), Handed(state, (time, *own.values()))
    return k.detach(), found, Keeping(sign or Sign(), state)


def _alias(x: Tensor) -> Tensor:
    """Another tensor of the same values, in the graph of `x`."""
    return x.view_as(x) if x.layout == torch.strided else x.clone()


def evaluated_in_graph(p: Problem, f: Dynamics) -> Problem:
    """The problem with f at its start evaluated as a part of the caller's graph."""
    reached = reach(f.func, f.args)
    watch = Watch(p.y0.device, reached)
    before = sequence_number()
    state = p.y0.clone()  # f may write into it
    with f.observing(state):
        k = p.slope(p.ts[0], p.ts[len(p.ts) - 1], state)
    f.note_graph(k, before)
    f.gathered = gathered_inside(k, before, reached)

    again = partial(_slope_at_start, p)
    p = watch.observed(p, k, again)
    if torch.is_grad_enabled() and not is_functorch_wrapped_tensor(k):
        leaves, edges = used(k, before)
        others = [leaf for leaf in leaves if leaf is not p.y0]
        behind = [edge for edge in edges if edge != (p.y0.grad_fn, p.y0.output_nr)]
        if f.detached or not (others or behind):
            known = {id(leaf) for leaf in leaves}
            late = [t for _, t in reached.tensors if t.requires_grad and t.is_leaf and id(t) not in known]
            warn_of_lost(p, late, reached, again)
    return p


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
    args: dict[int, Tensor],
    own: dict[int, Tensor],
    k: Tensor,
    handed: Handed,
    before: int,
    reached: Reach,
    declared: Sequence[Tensor],
    sign: Sign | None,
) -> Inputs:
    """What a value of f was computed from.

    `own` stood in for the arguments, of which `handed` are a part.
    """
    mine = (handed.state, *handed.others)
    named = [(("declared",), tensor) for tensor in declared]
    reach = [(path, tensor) for path, tensor in (*reached.tensors, *named) if tensor.requires_grad]
    nodes = {tensor.grad_fn: tensor for _, tensor in reach if tensor.grad_fn is not None}
    handed_over = {(x.grad_fn, x.output_nr) for x in mine if x.grad_fn is not None}
    leaves, edges = used(k, before, {*nodes, *(node for node, _ in handed_over)}, sign)
    own_edges, edges = [e for e in edges if e in handed_over], [e for e in edges if e not in handed_over]
    historic = {
        (tensor.grad_fn, tensor.output_nr): tensor for _, tensor in reach if tensor.grad_fn is not None
    }
    found = {id(leaf): leaf for leaf in leaves if not any(leaf is x for x in mine)}
    for node, output in edges:
        if (node, output) in historic:
            tensor = historic[node, output]
            found[id(tensor)] = tensor
        elif torch.is_grad_enabled():
            raise ValueError(
                f"f uses a tensor with a history (made by {name_of(node)}) that cannot be found from the function "
                "object, so its gradient would be lost: hand it over with args=(tensor, ...), or use "
                "gradient='direct'"
            )
    known = {*args, *map(id, declared)}
    unused = [(path, tensor) for path, tensor in reach if id(tensor) not in found and id(tensor) not in known]
    strangers = {(t.grad_fn, t.output_nr): path for path, t in unused if t.grad_fn is not None}
    # Leaves behind a tensor with a history would be reached through it in every replay: there, replays are checked.
    late = () if edges else tuple(tensor for _, tensor in unused if tensor.is_leaf)
    captured, seen = tuple(found.values()), {id(leaf) for leaf in leaves}
    idle = tuple(
        a
        for key, a in args.items()
        if id(own[key]) not in seen and (own[key].grad_fn, own[key].output_nr) not in own_edges
    )
    lost = (*late, *idle) if len(idle) == len(args) and not captured else ()
    return Inputs(
        tuple(args.values()), captured, late, strangers, reached.blind, used_at_start=captured, idle=lost
    )


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


def check_replay(
    outs: Sequence[Tensor], inputs: Inputs, own: Sequence[Tensor | None], span: str, *, complete: bool = False
) -> None:
    """Refuse a replayed step that uses a tensor which the solve does not know as an input.

    `complete`: if f keeps values from its first evaluation, this step has to use all that the first evaluation used.

    Raises
    ------
    ValueError
        Naming the tensor: its gradient would be lost, or its history differentiated once per step.
    """
    history = {(t.grad_fn, t.output_nr) for t in inputs.captured if t.grad_fn is not None}
    known = {id(tensor) for tensor in (*inputs.tensors, *own) if tensor is not None}
    reached: set[Any] = set()
    for out in outs:
        leaves, edges = used(out, 0, {node for node, _ in (*history, *inputs.strangers)})
        names = [label(inputs.strangers[edge]) for edge in edges if edge in inputs.strangers]
        names += [f"a tensor of shape {tuple(leaf.shape)}" for leaf in leaves if id(leaf) not in known]
        reached |= {*map(id, leaves), *edges}
        if names and inputs.kept:
            raise ValueError(
                f"f keeps {inputs.kept} from its first call, computed from y or from an argument, and uses it in the "
                f"step {span}: its gradient would be lost. Compute it before the solve, or use gradient='direct'"
            )
        if names:
            raise ValueError(
                f"f first used {names[0]} in the step {span}, not at t0, so it is no input of the solve and "
                "its gradient would be lost: hand it over with args=(tensor, ...), or use gradient='direct'"
            )
    if complete and inputs.kept:
        _refuse_forgotten(inputs, reached, span)


def _refuse_forgotten(inputs: Inputs, reached: Set[Any], span: str) -> None:
    """Refuse an f that remembers values which it computed without a graph."""
    for t in inputs.used_at_start:
        if id(t) not in reached and (t.grad_fn, t.output_nr) not in reached:
            raise ValueError(
                f"f used a tensor of shape {tuple(t.shape)} at t0, and not in the step {span}, and it keeps "
                f"{inputs.kept}: a cache that was filled without a graph has no gradient. Compute what f keeps before "
                "the solve and hand it over with args=(tensor, ...), or use gradient='direct'"
            )
