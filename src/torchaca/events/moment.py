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
from .failures import stopped
from .guard import Guard, inner

GRAZING = 1e-8
"""Of the largest g in a step: if g changes by less in the time of the step, its zero has no derivative."""
THIRD = "third derivatives through events are not available"


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
    g, rate = guard.rate(t, y, slope)
    shift = -g / rate if g != 0.0 and crosses(rate, size, scale) else 0.0
    shift = shift if abs(shift) <= size else 0.0
    at = torch.tensor(t + shift, dtype=torch.float64, device="cpu")
    state = y.detach() + shift * slope if shift else y.detach()
    if not torch.is_grad_enabled():
        return Moment(at, state)
    seen = guard(t, y)
    if not (seen.requires_grad or y.requires_grad):
        return Moment(at, state)
    delta, moved = _shifted(p, guard, t, y, seen, (size, scale))
    delta = delta.double().cpu()
    return Moment(at + (delta - delta.detach()), state + (moved - moved.detach()))


def crosses(rate: float, size: float, scale: float) -> bool:
    """Whether g crosses zero with a slope: `rate` by time, in a step of this `size` in which |g| reaches `scale`."""
    return math.isfinite(rate) and abs(rate) * size > GRAZING * scale


def _shifted(
    p: Problem, guard: Guard, t: float, y: Tensor, seen: Tensor, sizes: tuple[float, float]
) -> tuple[Tensor, Tensor]:
    """Delta and the state there, for their derivatives alone: delta has the value zero."""
    f: Any = p.f.call
    time = f.time(t)
    slope = p.between(p.ts.values[0], t)(t, y)  # on this side of a jump of f
    _, rate = guard.rate(t, y, slope.detach())
    if not crosses(rate, *sizes):
        what = f"{guard.name} only grazes zero: g does not change along the solution, so its time has no derivative"
        advice = "a g that crosses zero with a slope, or torch.no_grad() if the values are all that is wanted"
        raise stopped(p, "grazing", t, sizes[0], what, advice)
    delta = -(seen - seen.detach()) / rate
    moved = _along(p, t, y, slope, delta)
    again = guard(time + delta.to(time.dtype), moved)
    delta = delta - (again - again.detach()) / rate
    return delta, _along(p, t, y, slope, delta)


def _along(p: Problem, t: float, y: Tensor, slope: Tensor, delta: Tensor) -> Tensor:
    """The state a time delta of value zero later."""
    own = delta.to(y.dtype.to_real())
    return y + own * slope + _Bend.apply(p, t, y.detach(), own)


class _Bend(torch.autograd.Function):
    """delta^2 / 2 df/dt along the solution, for a delta of value zero: the second derivative is all that it has."""

    @staticmethod
    def forward(ctx: Any, p: Problem, t: float, y: Tensor, delta: Tensor) -> Tensor:
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
        second = grads[0] * inner(cotangent, bend).to(delta.dtype)
        if torch.is_grad_enabled():
            (second,) = refuse_derivative([second.detach()], (delta, cotangent, *grads), THIRD)
        return None, second, None


def _change_along(p: Problem, t: float, y: Tensor) -> Tensor:
    """df/dt along the solution: how f by t, and f by y times f, add up. Two products with a transposed Jacobian."""
    f: Any = p.f.call
    with torch.enable_grad():
        state = y.detach().clone().requires_grad_()
        time = f.time(t).detach().clone().requires_grad_()
        slope = f(time, state)
        if not slope.requires_grad:
            return torch.zeros_like(y)
        dual = torch.zeros_like(slope, requires_grad=True)
        by_t, by_y = torch.autograd.grad(slope, [time, state], dual, create_graph=True, allow_unused=True)
        total = torch.zeros((), dtype=torch.float64, device=y.device)
        total = total if by_t is None else total + by_t.double()
        total = total if by_y is None else total + inner(by_y, slope.detach())
        if not total.requires_grad:
            return torch.zeros_like(y)
        (change,) = torch.autograd.grad(total, dual, allow_unused=True)
    return torch.zeros_like(y) if change is None else change.detach()
