"""When an event happens and what the state is then, as functions that can be differentiated twice.

A stretch of the solve ends at a constant time near the event. From there the event is a small way off, along f:

    0 = g(t + delta, y + delta f + delta^2 / 2 df/dt)

The value of delta is one step of Newton's method. Its derivatives are those of two chord iterations, each of which adds
an order: the first is the saltation matrix of hybrid systems (Aizerman & Gantmacher 1958), and the second needs how f
changes along the solution, which is computed when somebody differentiates twice.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..core import Problem
from ..gradients.replay import refuse_derivative
from ..numbers import Time, column, on_host, value
from ..torch_internals import transformed
from ..transforms import is_differentiated, orders
from .failures import stopped
from .guard import Guard, inner

GRAZING = 1e-8
"""Of the largest g in a step: if g changes by less in the time of the step, its zero has no derivative."""
TOUCHING = 1e-6
"""Of the largest g in a step: what another event's jump has moved by less is where it was."""
JUMPS = 1e-3
"""Of a step: how far beside an event g is looked at to see by what it jumps."""
MOST_ORDERS = 2
THIRD = "third derivatives through events are not available"
FREEZE = (
    "if one of them is that of parameters, which nobody wants, freeze them by module.requires_grad_(False)"
)


@dataclass(frozen=True)
class Moment:
    """An event: its time, 0-dim, float64 on the CPU, and the packed state just before. Both with their graphs."""

    t: Tensor
    y: Tensor

    @property
    def value(self) -> float:
        """The time as a host number."""
        return self.t.item()


def moment_of(
    p: Problem, guard: Guard, t: float, y: Tensor, slope: Tensor, size: float, scale: float
) -> Moment:
    """Return when an event happens that is near (t, y), the end of a stretch.

    Parameters
    ----------
    slope : Tensor
        About dy/dt there.
    size, scale : float
        Of the step in which it happens, and the largest |g| in it.

    Raises
    ------
    SolverError
        If a derivative is wanted and there is none: of kind "grazing".
    """
    g, rate = guard.rate(t, y, slope, size)
    shift = -g / rate if g != 0.0 and crosses(rate, size, scale) else 0.0
    shift = shift if abs(shift) <= size else 0.0
    at = torch.tensor(t + shift, dtype=torch.float64, device="cpu")
    state = y.detach() + shift * slope if shift else y.detach()
    if not (torch.is_grad_enabled() or transformed()):
        return Moment(at, state)
    seen = guard(t, y)
    if not (is_differentiated(seen) or is_differentiated(y)):
        return Moment(at, state)
    if not is_differentiated(seen) and is_deadline(guard, t, y, slope, size):
        return Moment(at, state + (y - y.detach()))
    slope = p.between(p.ts.values[0], t)(t, y)  # on this side of a jump of f
    _, rate = guard.rate(t, y, slope.detach(), size)
    if not crosses(rate, size, scale):
        what = f"{guard.name} only grazes zero: g does not change along the solution, so its time has no derivative"
        advice = "a g that crosses zero with a slope, or torch.no_grad() if the values are all that is wanted"
        raise stopped(p, "grazing", t, size, what, advice)
    delta, moved = shifted(p, guard, t, y, seen, slope, rate)
    delta = delta.double().cpu()
    return Moment(at + (delta - delta.detach()), state + (moved - moved.detach()))


def following(
    p: Problem, guard: Guard, own: Moment, now: Moment, size: float, scale: float
) -> tuple[Moment, Tensor]:
    """Return the moment of an event that happens at the same time as others before it, and its own time.

    Where those have left its g at zero, it happens a little behind them, along f as they have left the state: its
    derivatives know of this delta of value zero. Where they have moved it elsewhere, it happens with them.

    Parameters
    ----------
    own : Moment
        As if it had happened alone.
    now : Moment
        The time of the others, and the state behind them.
    """
    t, y = now.t, now.y
    if not (torch.is_grad_enabled() or transformed()):
        return now, own.t
    seen, before = guard(t, y), guard(own.value, own.y.detach())
    if not (is_differentiated(seen) or is_differentiated(y)):
        return now, own.t
    slope = p.between(p.ts.values[0], t)(t, y)
    g, rate = guard.rate(now.value, y, slope.detach(), size)
    if abs(g) > abs(value(before)) + TOUCHING * scale or not crosses(rate, size, scale):
        return now, own.t
    delta, moved = shifted(p, guard, t, y, seen, slope, rate)
    delta = delta.double().cpu()
    later = t + (delta - delta.detach())
    return Moment(later, y.detach() + (moved - moved.detach())), own.t.detach() + (later - later.detach())


def is_deadline(guard: Guard, t: float, y: Tensor, slope: Tensor, size: float) -> bool:
    """Whether g, which cannot be differentiated, jumps by t alone: so its time is a constant.

    It is asked at times on one side of the event with states of the other side, off by a part of the step's `size`.
    """
    off = JUMPS * size
    with torch.no_grad():
        early, late = y.detach() - off * slope, y.detach() + off * slope
        values = on_host(*(guard(at, x).double() for at in (t - off, t + off) for x in (early, late)))
    before, before_late, after_early, after = ((x > 0) - (x < 0) for x in values)
    return before == before_late != after_early == after


def crosses(rate: float, size: float, scale: float) -> bool:
    """Whether g crosses zero with a slope: `rate` by time, in a step of this `size` in which |g| reaches `scale`."""
    return math.isfinite(rate) and abs(rate) * size > GRAZING * scale


def shifted(
    p: Problem, guard: Guard, t: Time, y: Tensor, seen: Tensor, slope: Tensor, rate: float | Tensor
) -> tuple[Tensor, Tensor]:
    """Delta and the state there, for their derivatives alone: delta has the value zero.

    `seen` is g there, `slope` is f, and `rate` how fast g changes along it. Of a batch, each sample has its own.
    """
    f: Any = p.f.call
    time = f.time(t)
    delta = -(seen - seen.detach()) / rate
    moved = _along(p, t, y, slope, delta)
    again = guard(time + delta.to(time.dtype).reshape(time.shape), moved)
    delta = delta - (again - again.detach()) / rate
    return delta, _along(p, t, y, slope, delta)


def _along(p: Problem, t: Time, y: Tensor, slope: Tensor, delta: Tensor) -> Tensor:
    """The state a time delta of value zero later."""
    f: Any = p.f.call
    own = column(delta.to(y.dtype.to_real()), y, delta.ndim)
    bend = (
        _bend_in_transform(p, value(t), y, own)
        if transformed()
        else _Bend.apply(p, f.time(t).detach(), y.detach(), own)
    )
    return y + own * slope + bend


def _bend_in_transform(p: Problem, t: float, y: Tensor, delta: Tensor) -> Tensor:
    """delta^2 / 2 df/dt inside torch.func transforms, which look into every function; only where it matters.

    Raises
    ------
    NotImplementedError
        For a third derivative.
    """
    order = orders(y + delta)
    if order > MOST_ORDERS:
        raise NotImplementedError(f"{THIRD}: {FREEZE}")
    if order < MOST_ORDERS:
        return torch.zeros_like(y)
    f: Any = p.f.call
    time, state = f.time(t).detach(), y.detach()
    with p.undone(), torch.enable_grad():
        slope, pulled, *_ = torch.func.vjp(f, time, state)

        def along(dual: Tensor) -> Tensor:
            by_t, by_y = pulled(dual)
            return by_t.double() + inner(by_y, slope)

        bend = torch.func.grad(along)(torch.zeros_like(slope))
    return 0.5 * delta * delta * bend.detach()


class _Bend(torch.autograd.Function):
    """delta^2 / 2 df/dt along the solution, for a delta of value zero: the second derivative is all that it has."""

    @staticmethod
    def forward(ctx: Any, p: Problem, t: Tensor, y: Tensor, delta: Tensor) -> Tensor:
        ctx.p, ctx.t = p, t
        ctx.save_for_backward(y, delta)
        return torch.zeros_like(y)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        if not torch.is_grad_enabled():
            return None, None, None, None
        y, delta = ctx.saved_tensors
        p, nfe = ctx.p, ctx.p.stats.nfe
        with p.undone():
            bend = _change_along(p, ctx.t, y)
        p.stats.nfe_backward, p.stats.nfe = p.stats.nfe_backward + p.stats.nfe - nfe, nfe
        return None, None, None, _Bent.apply(bend, delta, *grads)


class _Bent(torch.autograd.Function):
    """The first derivative of `_Bend`, which has the value zero."""

    @staticmethod
    def forward(ctx: Any, bend: Tensor, delta: Tensor, cotangent: Tensor) -> Tensor:
        ctx.save_for_backward(bend, delta, cotangent)
        return torch.zeros_like(delta)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        bend, delta, cotangent = ctx.saved_tensors
        own = inner(cotangent, bend, min(delta.ndim, 1))
        second = grads[0] * own.to(delta.dtype).reshape(delta.shape)
        if torch.is_grad_enabled():
            (second,) = refuse_derivative([second.detach()], (delta, cotangent, *grads), THIRD)
        return None, second, None


def _change_along(p: Problem, t: Tensor, y: Tensor) -> Tensor:
    """df/dt along the solution: how f by t, and f by y times f, add up. Two products with a transposed Jacobian."""
    f: Any = p.f.call
    with torch.enable_grad():
        state = y.detach().clone().requires_grad_()
        time = t.clone().requires_grad_()
        slope = f(time, state)
        if not slope.requires_grad:
            return torch.zeros_like(y)
        dual = torch.zeros_like(slope, requires_grad=True)
        by_t, by_y = torch.autograd.grad(slope, [time, state], dual, create_graph=True, allow_unused=True)
        total = torch.zeros((), dtype=torch.float64, device=y.device)
        total = total if by_t is None else total + by_t.double().sum()  # each sample has a dual of its own
        total = total if by_y is None else total + inner(by_y, slope.detach())
        if not total.requires_grad:
            return torch.zeros_like(y)
        (change,) = torch.autograd.grad(total, dual, allow_unused=True)
    return torch.zeros_like(y) if change is None else change.detach()
