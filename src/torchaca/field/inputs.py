"""Which tensors f depends on: parameters, arguments and whatever it captures, declared or not.

Two sources are joined. The graph of f's first evaluation tells what f *used* there: leaves, and tensors with a
history of their own, which are inputs of the solve while what lies behind them is ordinary autograd. Walking the
function object (closure, bound object, module, the globals it names) tells what f *can reach*: it finds the
tensors behind those graph nodes, names them, and finds leaves that f uses only at a later time.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from operator import attrgetter, itemgetter
from typing import Any

import torch
from torch import Tensor

from ..core import Problem
from ..torch_internals import is_functorch_wrapped_tensor, pytree, sequence_number
from .dynamics import Dynamics
from .effects import Watch
from .histories import Edge, Graph, Keeping, Sign, gathered_inside, name_of, walked
from .lost import Handed, kept_of, kept_of_attached, warn_of_lost
from .places import Path, Reads
from .reach import Reach, reach
from .saved import graph_bytes

GRAD_FN, SECOND = attrgetter("grad_fn"), itemgetter(1)
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
    its first evaluation's graph, an empty string if it keeps nothing. `wanted`: somebody asks for a derivative of the
    solution.
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
    wanted: bool = False
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
    p: Problem, *, recorded: bool = False, measure: bool = False, attach: bool = False
) -> Problem:
    """Evaluate f at the start, and find out what it leaves behind and which tensors it depends on.

    This is the solve's first evaluation: none is extra, except for an f that draws random numbers or moves buffers
    (is it a function all the same?) and for one that seems to depend on nothing (does it?).

    Parameters
    ----------
    recorded : bool
        As a part of the caller's graph. Else f runs with grad mode on, on a detached state, and its graph is dropped.
    measure : bool
        Find `Inputs.graph_bytes`.
    attach : bool
        Keep the graph, as a part of the caller's, all the same. If the evaluation is to be weighed as well, that of an
        f that may hide a tensor is dropped: what it keeps shows only when its graph is gone.

    Returns
    -------
    Problem
        Its field has `f0`, `effects` and, unless autograd records them itself, `inputs`; the field's `Dynamics` has
        noted how f is to be called.

    Raises
    ------
    ValueError
        If f uses a tensor that has a history and that cannot be found from the function object.
    """
    if torch.is_inference_mode_enabled():
        with torch.inference_mode(False), torch.no_grad():
            y = p.y0.clone()  # counts its changes, as what is made in inference mode does not
        f0 = p.slope(p.ts.values[0], p.ts.values[-1], y)
        return replace(p, f=replace(p.f, f0=f0, inputs=None if recorded else Inputs()))
    return _recorded(p) if recorded else _searched(p, measure, attach and torch.is_grad_enabled())


def _searched(p: Problem, measure: bool, attach: bool) -> Problem:
    """The first evaluation, whose graph is searched; of it remains what f itself keeps, unless it is to `attach`."""
    f: Any = p.f.call
    reached = reach(f.func, f.args)
    attach = attach and not (measure and reached.hides)
    watch, reads = Watch(p.y0.device, reached), Reads(reached.places, reached.containers)
    state = p.y0.clone() if attach and p.y0.requires_grad else p.y0.detach().clone().requires_grad_()
    args, own = _stand_ins(f.args, attach) if f.args else ({}, {})
    sided = p.f.jumps or p.f.one_sided
    start, end = p.ts[0] if attach and p.ts.tensor is not None else p.ts.values[0], p.ts.values[-1]
    if isinstance(start, Tensor) and not sided:
        start = f.time(start)
    handed = Handed(state, (*([start] if isinstance(start, Tensor) else []), *own.values()))
    since = sequence_number()
    call = p.f.with_tensors(own).between(start, end) if own or sided else f
    try:
        with torch.enable_grad(), f.observing(state):
            k = call(start, state)
    except RuntimeError as error:
        k = _without_autograd(p, f, error)
    sign, with_grad = Sign(), torch.is_grad_enabled()
    known = (*map(SECOND, reached.tensors), *p.f.declared, state, *handed.others)
    graph = walked(k, since, {*map(GRAD_FN, known)}, sign if with_grad else None)
    f.gathered = gathered_inside(k, since, reached)
    inputs = _inputs(args, own, handed, graph, reached, p.f.declared)
    if graph.half is not None:
        f.note_precision(graph.half)
    wanted = _is_wanted(p, inputs)
    if measure and wanted:
        inputs = replace(inputs, graph_bytes=graph_bytes(k, since, (state, *inputs.tensors)))
    has_graph, again = k.requires_grad, partial(_slope_at_start, p)
    value = k if attach and wanted else k.detach()
    if wanted and attach:
        kept = kept_of_attached(f, reads, since, handed)
        inputs = replace(inputs, kept=kept, wanted=True, attached=True)
    elif wanted:
        keeping = Keeping(sign, state)
        del k, graph, state, sign, handed, known  # but for what f keeps of them
        inputs = replace(inputs, kept=kept_of(f, reads, since, keeping), wanted=True)
    f0, effects = watch.effects(value, again)
    if wanted:
        unused = inputs.late if f.detached else inputs.idle
        warn_of_lost(replace(p, f=replace(p.f, effects=effects)), unused, reached, again, has_graph=has_graph)
        reads.renew()
        inputs = replace(inputs, reads=reads).declaring(p.f.declared, alone=p.f.declared_alone)
    return replace(p, f=replace(p.f, f0=f0, effects=effects, inputs=inputs))


def _is_wanted(p: Problem, inputs: Inputs) -> bool:
    """Whether somebody asks for a derivative with respect to the start, the times, or a tensor that f depends on."""
    if not torch.is_grad_enabled():
        return False
    carry = None if p.start is None else p.start.carry
    sources = (p.y0, carry, p.ts.tensor, *p.control.tensors, *inputs.tensors, *p.f.declared)
    return any(x is not None and x.requires_grad for x in sources)


def _stand_ins(args: tuple[Any, ...], attach: bool) -> tuple[dict[int, Tensor], dict[int, Tensor]]:
    """The arguments that require a gradient, by id, and what is handed to f in their place: leaves, or aliases.

    With those, what the graph finds of the same tensors is truly captured.
    """
    found = {id(a): a for a in pytree.tree_leaves(args) if isinstance(a, Tensor) and a.requires_grad}
    return found, {key: _alias(a) if attach else a.detach().requires_grad_() for key, a in found.items()}


def _alias(x: Tensor) -> Tensor:
    """Another tensor of the same values, in the graph of `x`."""
    return x.view_as(x) if x.layout == torch.strided else x.clone()


def _slope_at_start(p: Problem) -> Tensor:
    """One more evaluation of f where the solve starts."""
    return p.slope(p.ts.values[0], p.ts.values[-1], p.y0.detach())


def _recorded(p: Problem) -> Problem:
    """The first evaluation, as a part of the caller's graph."""
    f: Any = p.f.call
    reached = reach(f.func, f.args)
    watch = Watch(p.y0.device, reached)
    since = sequence_number()
    state = p.y0.clone()  # f may write into it
    with f.observing(state):
        k = p.slope(p.ts[0], p.ts[len(p.ts) - 1], state)
    graph = walked(k, since)
    f.note_precision(graph.half)
    f.gathered = gathered_inside(k, since, reached)
    again = partial(_slope_at_start, p)
    f0, effects = watch.effects(k, again)
    p = replace(p, f=replace(p.f, f0=f0, effects=effects))
    if torch.is_grad_enabled() and not is_functorch_wrapped_tensor(k):
        others = [leaf for leaf in graph.leaves if leaf is not p.y0]
        behind = [edge for edge in graph.edges if edge != (p.y0.grad_fn, p.y0.output_nr)]
        if f.detached or not (others or behind):
            known = {id(leaf) for leaf in graph.leaves}
            late = [t for _, t in reached.tensors if t.requires_grad and t.is_leaf and id(t) not in known]
            warn_of_lost(p, late, reached, again, has_graph=k.requires_grad)
    return p


def _without_autograd(p: Problem, f: Dynamics, error: RuntimeError) -> Tensor:
    """For an f that leaves autograd (`y.numpy()`): fine as long as nobody asks for a derivative."""
    if not any(text in str(error) for text in LEAVES_AUTOGRAD):
        raise error
    given = [p.y0, *(a for a in pytree.tree_leaves(f.args) if isinstance(a, Tensor))]
    if torch.is_grad_enabled() and any(x.requires_grad for x in given):
        raise error
    f.stats.nfe -= 1  # f is evaluated now
    try:
        with torch.no_grad():
            return _slope_at_start(p)
    except Exception:
        raise error from None


def _inputs(
    args: dict[int, Tensor],
    own: dict[int, Tensor],
    handed: Handed,
    graph: Graph,
    reached: Reach,
    declared: Sequence[Tensor],
) -> Inputs:
    """What a value of f was computed from.

    `own` stood in for the arguments, of which `handed` are a part.
    """
    named = [(("declared",), tensor) for tensor in declared]
    reach = [(path, tensor) for path, tensor in (*reached.tensors, *named) if tensor.requires_grad]
    mine = (handed.state, *handed.others)
    handed_over = {(x.grad_fn, x.output_nr) for x in mine if x.grad_fn is not None}
    leaves = graph.leaves
    own_edges = [edge for edge in graph.edges if edge in handed_over]
    edges = [edge for edge in graph.edges if edge not in handed_over]
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
