"""Gradients that would be lost without a word: of values that f keeps, and of tensors that its value forgets."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from ..core import Problem
from ..errors import warn
from ..torch_internals import pytree
from .dynamics import Dynamics
from .histories import Keeping, with_history
from .places import Reads, label
from .reach import PLAIN, Reach, opaque, reach


def kept_of(f: Dynamics, reads: Reads, since: int, keeping: Keeping) -> str:
    """The name of a tensor with a graph that f has kept of its first evaluation, an empty string if there is none."""
    changed = any(not isinstance(place.value, PLAIN) for place in reads.renew())
    if not (changed or reads.filled or keeping):
        return ""
    mine, found = _named(f, since, keeping.state)
    return mine or ("a tensor (in a cache, by a hook?)" if keeping and not found else "")


@dataclass(frozen=True)
class Handed:
    """The tensors that f was handed in an evaluation: the state, and the time and the arguments."""

    state: Tensor
    others: tuple[Tensor, ...]


def kept_of_attached(f: Dynamics, reads: Reads, since: int, handed: Handed) -> str:
    """The same of an evaluation whose graph stays, as far as f's reach shows it."""
    return _named(f, since, handed.state, handed.others)[0] if _changes(reads) else ""


def kept_since(f: object, reads: Reads, since: int) -> str:
    """The name of a tensor with a graph that f has computed since that sequence number and keeps."""
    return _named(f, since)[0] if isinstance(f, Dynamics) and _changes(reads) else ""


def _changes(reads: Reads) -> bool:
    """Whether f has changed something that it reads from."""
    changed = (now for place in reads.places if (now := place.now()) is not place.value)
    return bool(reads.filled) or any(not isinstance(now, PLAIN) for now in changed)


def _named(
    f: Dynamics, since: int, state: Tensor | None = None, others: Sequence[Tensor] = ()
) -> tuple[str, bool]:
    """The first name of a tensor with a graph, or of the state, that f holds; and whether it holds one at all.

    Tensors that belong to torch's own modules have no name; `others` are nobody's business.
    """
    now = reach(f.func, f.args)
    known = set(map(id, others))
    found = [
        (path, t) for path, t in now.tensors if id(t) not in known and (with_history(t, since) or t is state)
    ]
    theirs = {id(x) for m in now.modules if opaque(type(m)) for x in vars(m).values()}  # weight_norm's weight
    return min((label(path) for path, t in found if id(t) not in theirs), default=""), bool(found)


def warn_of_kept(kept: str, gradient: str) -> None:
    """Say that what f keeps of its evaluations has no gradient."""
    if kept:
        warn(
            f"f keeps {kept}, which it computed: gradient={gradient!r} evaluates f without a graph, so that the "
            "gradient of a loss that uses such values is lost. Make them a part of the state, use gradient='direct', "
            "or keep them detached, .detach(), if they are only looked at"
        )


class _Arguments(TorchFunctionMode):
    """Notes from which of some tensors, and of the state, torch's functions compute what should have a graph.

    That is what requires a gradient, and for an f whose value has no graph what would if f had not switched grad mode
    off.
    """

    def __init__(self, tensors: Iterable[Tensor], state: Tensor | None, *, has_graph: bool) -> None:
        super().__init__()
        self.has_graph = has_graph
        self.wanted = {id(t): t for t in tensors}
        self.state = None if state is None else _storage(state)
        self.seen: set[int] = set()
        self.state_seen = False

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        off = not (self.has_graph or torch.is_grad_enabled())
        if isinstance(out, Tensor) and (out.requires_grad or (off and out.is_floating_point())):
            given = [x for x in pytree.tree_leaves((args, kwargs)) if isinstance(x, Tensor)]
            self.seen |= {id(x) for x in given if id(x) in self.wanted}
            self.state_seen |= off and self.state is not None and self.state in map(_storage, given)
        return out


def _depends_on_state(p: Problem, value: Tensor) -> bool:
    """Whether f has another value than this one beside the start; its shape and device are no dependence."""
    with p.undone(), torch.no_grad():
        beside = p.slope(p.ts.values[0], p.ts.values[-1], p.y0.detach() * (1 + 1e-3) + 1e-3)
    return not torch.equal(beside, value.detach())


def _storage(x: Tensor) -> int:
    """Where a tensor's numbers lie, which its views have in common; zero if that is nowhere."""
    return x.untyped_storage().data_ptr() if x.layout == torch.strided else 0


def warn_of_lost(
    p: Problem, unused: Sequence[Tensor], reached: Reach, again: Callable[[], Tensor], *, has_graph: bool
) -> None:
    """Warn if f's value has no graph that leads to tensors which f reads and which require gradients, or to the state.

    f is evaluated `again` to find that out, where tensors are `unused` or its first value `has_graph` not; that leaves
    no effect and is not counted.
    """
    state = p.y0 if p.y0.requires_grad and not has_graph else None
    if not unused and state is None:
        return
    evaluations = p.stats.nfe
    with p.undone(), torch.enable_grad(), _Arguments(unused, state, has_graph=has_graph) as arguments:
        value = again()
    names = [label(path) for path, t in reached.tensors if id(t) in arguments.seen]
    without_graph = arguments.state_seen and _depends_on_state(p, value)
    p.stats.nfe = evaluations
    if without_graph:
        warn(
            "f computes its value from y under no_grad, so that it has no graph: gradients will lack all that f "
            "contributes. Take @torch.no_grad() off f (of a solve whose gradient nobody wants, put it around the solve)"
        )
        return
    if names:
        more = f" and {len(names) - 1} more" if len(names) > 1 else ""
        warn(
            f"f reads {names[0]}{more}, which require gradients, but the value that it returns has no graph that leads "
            "to them: their gradients will be None. A derivative that f takes itself needs "
            "torch.autograd.grad(..., create_graph=True), and a value made by torch.tensor(...), .item(), .data, "
            ".detach() or under no_grad has no graph"
        )
