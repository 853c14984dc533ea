"""What backward passes share: the forward's ambience, leaves of their own, and vector-Jacobian products."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from ..core import Problem, Stats, Times
from ..field.inputs import Inputs
from ..numbers import without_autocast
from ..torch_internals import add_in_place, is_legacy_batchedtensor, number_of
from .hooks import hooks_off

MaybeTensors = list[Tensor | None]

KEPT = (
    "f keeps a tensor from one call to the next that it computed from an input of the solve (a cache of its weights?), "
    "so the graph of one step reaches into another's: compute it before the solve and hand it over with "
    "args=(tensor, ...), or use gradient='direct'"
)
REENTRANT = (
    "f uses torch.utils.checkpoint with use_reentrant=True, which cannot be differentiated one step at a time: write "
    "checkpoint(function, ..., use_reentrant=False), or use gradient='direct'"
)
FLAG_OFF = (
    "a tensor that the solve is differentiated with respect to requires no gradient any more: f switched the flag "
    "of its state y off (let it work on y.detach()), or a parameter was frozen before backward()"
)
TROUBLE = {
    "backward through the graph a second time": KEPT,
    "torch.utils.checkpoint is incompatible with .grad()": REENTRANT,
    "One of the differentiated Tensors does not require grad": FLAG_OFF,
}
"""Errors of autograd that f causes in a replay, by a part of their text, and what to do about them."""

CHANGED_IN_PLACE = "modified by an inplace operation"  # as autograd says it
IN_PLACE = (
    "a parameter, an argument, y0 or an output of the solve was changed in place (optimizer.step(), load_state_dict?) "
    "before its backward pass, which needs it as it was: call backward() first, or change a copy"
)


def saved_tensors(ctx: Any) -> tuple[Any, ...]:
    """`ctx.saved_tensors`.

    Raises
    ------
    RuntimeError
        Where one was changed in place since: autograd's error, with what to do about it.
    """
    try:
        return ctx.saved_tensors
    except RuntimeError as error:
        if CHANGED_IN_PLACE not in str(error):
            raise
        raise RuntimeError(f"{IN_PLACE}. ({error})") from None


@dataclass(frozen=True)
class Ambience:
    """The autocast state of the forward pass; backward runs outside of it, and a replay has to see it again."""

    device_type: str
    enabled: bool
    dtype: torch.dtype
    cache: bool

    @staticmethod
    def here(like: Tensor) -> Ambience:
        device = like.device.type
        known = torch.amp.is_autocast_available(device)
        return Ambience(
            device if known else "cpu",
            known and torch.is_autocast_enabled(device),
            torch.get_autocast_dtype(device if known else "cpu"),
            torch.is_autocast_cache_enabled(),
        )

    @contextmanager
    def restored(self) -> Iterator[None]:
        if not self.enabled and not torch.is_autocast_enabled(self.device_type):
            yield
            return
        with torch.autocast(self.device_type, self.dtype, self.enabled, self.cache):
            yield


@contextmanager
def backward_pass(p: Problem, inputs: Inputs, ambience: Ambience) -> Iterator[None]:
    """Around a backward pass: the forward's autocast, f as it was then, counts of its own; no hook runs.

    No side effect remains.
    """
    with (
        _counted_as_backward(p.stats),
        ambience.restored(),
        inputs.reads.put_back(),
        p.undone(),
        hooks_off(inputs.captured + inputs.late),
    ):
        yield


@contextmanager
def _counted_as_backward(stats: Stats) -> Iterator[None]:
    nfe, accepted, rejected = stats.nfe, stats.accepted, stats.rejected
    try:
        yield
    finally:
        stats.nfe_backward += stats.nfe - nfe
        stats.nfe, stats.accepted, stats.rejected = nfe, accepted, rejected


@dataclass(frozen=True)
class Parts:
    """The tensors a solve is a function of, in the order in which an autograd function takes them.

    `control` are those of `Problem.tensors`.
    """

    y0: Tensor
    ts: Tensor | None
    control: tuple[Tensor, ...]
    args: tuple[Tensor, ...]
    captured: tuple[Tensor, ...]

    @staticmethod
    def of(p: Problem, inputs: Inputs) -> Parts:
        captured = inputs.captured + inputs.late
        return Parts(p.y0, p.ts.tensor, p.tensors, inputs.args, captured)

    @staticmethod
    def leaves_for(p: Problem, inputs: Inputs, tensors: Sequence[Any]) -> Parts:
        """Leaves for a backward pass, from the tensors that it was handed.

        The captured ones are those that f holds, not what saved-tensor hooks made of them.
        """
        parts = Parts.join(tensors, len(p.tensors), len(inputs.args))
        return replace(parts, captured=inputs.captured + inputs.late).leaves()

    @staticmethod
    def join(tensors: Sequence[Any], n_control: int, n_args: int) -> Parts:
        y0, ts, *rest = tensors
        others = n_control + n_args
        return Parts(y0, ts, tuple(rest[:n_control]), tuple(rest[n_control:others]), tuple(rest[others:]))

    def flat(self) -> tuple[Tensor | None, ...]:
        return (self.y0, self.ts, *self.control, *self.args, *self.captured)

    def leaves(self) -> Parts:
        """Own leaves for everything but captured tensors, which f holds and which nobody can exchange."""
        y0, ts = (None if x is None else x.detach().requires_grad_() for x in (self.y0, self.ts))
        control, args = (
            tuple(x.detach().requires_grad_() for x in some) for some in (self.control, self.args)
        )
        return Parts.join([y0, ts, *control, *args, *self.captured], len(control), len(args))


def rebuilt(p: Problem, parts: Parts, inputs: Inputs) -> Problem:
    """The problem as a function of other tensors of the same values."""
    swap = {id(old): new for old, new in zip(inputs.args, parts.args, strict=True)}
    f, ts = replace(p.f.with_tensors(swap), f0=None), Times(p.ts.values, parts.ts)
    log = replace(p.log, watch=None)
    return replace(p.with_tensors(parts.control), f=f, y0=parts.y0, ts=ts, log=log)


def without_graph(p: Problem) -> Problem:
    """The problem on plain numbers: nothing in it asks for a derivative."""
    p = p if p.f0 is None else p.knowing(p.f0.detach())
    p = p.with_tensors([x.detach() for x in p.tensors])
    return replace(p, y0=p.y0.detach(), ts=p.ts.detached())


def vjp(
    outs: Sequence[Tensor], wrt: Sequence[Tensor | None], cotangents: Sequence[Tensor], *, keep: bool = False
) -> MaybeTensors:
    """`autograd.grad`, where `wrt` may hold None and tensors that do not matter get None."""
    present = [x for x in wrt if x is not None]
    try:
        with without_autocast(outs[0].device):
            grads = iter(
                torch.autograd.grad(outs, present, cotangents, allow_unused=True, retain_graph=keep or None)
            )
    except RuntimeError as error:
        for text, advice in TROUBLE.items():
            if text in str(error):
                raise RuntimeError(advice) from error
        raise
    return [None if x is None else next(grads) for x in wrt]


class Totals:
    """Sums of gradients over steps, one for each input, in buffers of their own."""

    def __init__(self, n: int) -> None:
        self.sums: MaybeTensors = [None] * n

    def add(self, grads: Sequence[Tensor | None]) -> None:
        old: list[Tensor] = []
        new: list[Tensor] = []
        for i, grad in enumerate(grads):
            if grad is None:
                continue
            total = self.sums[i]
            if total is None:
                self.sums[i] = grad.clone()
            elif grad.layout != torch.strided:
                merged = total + grad
                self.sums[i] = merged.coalesce() if merged.layout == torch.sparse_coo else merged
            else:
                old.append(total)
                new.append(grad)
        if old:
            add_in_place(old, new)


class BatchedTotals:
    """The same for several cotangents at once (`is_grads_batched`), which have no rule for sums of many in place."""

    def __init__(self, n: int) -> None:
        self.sums: MaybeTensors = [None] * n

    def add(self, grads: Sequence[Tensor | None]) -> None:
        for i, grad in enumerate(grads):
            total = self.sums[i]
            if grad is not None:
                self.sums[i] = grad if total is None else total + grad


def totals_for(n: int, cotangents: Sequence[Tensor | None]) -> Totals | BatchedTotals:
    """Empty totals of `n` gradients that are computed from these cotangents."""
    batched = any(g is not None and is_legacy_batchedtensor(g) for g in cotangents)
    return BatchedTotals(n) if batched else Totals(n)


def without_detours(
    captured: Sequence[Tensor], totals: MaybeTensors, *, create_graph: bool = False
) -> MaybeTensors:
    """Gradients of captured tensors without the share that reaches one captured tensor through another.

    A captured tensor with a history may have been computed from another captured one. What flows back through
    that history is ordinary autograd's, outside of the solve, and must not be counted here as well.
    """
    direct = list(totals)
    historic = [(i, node) for i, tensor in enumerate(captured) if (node := tensor.grad_fn) is not None]
    newest_first = sorted(((number_of(node), i) for i, node in historic), reverse=True)
    for _, i in newest_first:
        share, others = direct[i], [j for j in range(len(captured)) if j != i]
        if share is None or not others:
            continue
        through = torch.autograd.grad(
            captured[i], [captured[j] for j in others], share, True, create_graph, allow_unused=True
        )
        for j, detour in zip(others, through, strict=True):
            total = direct[j]
            if detour is not None and total is not None:
                direct[j] = total - detour
    return direct


class _Refuse(torch.autograd.Function):
    """Identity on a tensor whose derivative would be wrong or missing: differentiating it raises."""

    @staticmethod
    def forward(ctx: Any, message: str, tensor: Tensor, *anchors: Tensor) -> Tensor:
        ctx.message = message
        return tensor.clone()

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        raise NotImplementedError(ctx.message)


def refuse_derivative(
    tensors: Sequence[Tensor | None], anchors: Sequence[Tensor | None], message: str
) -> list[Any]:
    """The same tensors; a derivative with respect to any of the anchors raises `NotImplementedError(message)`."""
    present = [x for x in anchors if x is not None]
    with torch.enable_grad():
        return [None if x is None else _Refuse.apply(message, x, *present) for x in tensors]
