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
    return bool(reads.filled) or any(place.now() is not place.value for place in reads.places)


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
    """Notes from which of some tensors torch's functions compute something that requires a gradient."""

    def __init__(self, tensors: Iterable[Tensor]) -> None:
        super().__init__()
        self.wanted = {id(t): t for t in tensors}
        self.seen: set[int] = set()

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        if isinstance(out, Tensor) and out.requires_grad:
            self.seen |= {id(x) for x in pytree.tree_leaves((args, kwargs)) if id(x) in self.wanted}
        return out


def warn_of_lost(p: Problem, unused: Sequence[Tensor], reached: Reach, again: Callable[[], Tensor]) -> None:
    """Warn if f reads tensors that require gradients and its value has no graph that leads to them.

    f is evaluated `again` to find that out; that leaves no effect and is not counted.
    """
    evaluations = p.stats.nfe
    with p.undone(), torch.enable_grad(), _Arguments(unused) as arguments:
        again()
    p.stats.nfe = evaluations
    names = [label(path) for path, t in reached.tensors if id(t) in arguments.seen]
    if names:
        more = f" and {len(names) - 1} more" if len(names) > 1 else ""
        warn(
            f"f reads {names[0]}{more}, which require gradients, but the value that it returns has no graph that leads "
            "to them: their gradients will be None. A derivative that f takes itself needs "
            "torch.autograd.grad(..., create_graph=True), and a value made by torch.tensor(...), .item(), .data, "
            ".detach() or under no_grad has no graph"
        )
