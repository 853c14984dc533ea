"""When events of samples happen and what their states are then: `events.moment`, for each sample at its own time."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from ..core import Problem
from ..events.guard import Guard
from ..events.moment import GRAZING, JUMPS, TOUCHING, Moment, shifted
from ..loops.row_steps import sided
from ..numbers import column


@dataclass(frozen=True)
class Landing:
    """The ends of a stretch of samples, each near an event of its own.

    Attributes
    ----------
    start, t : Tensor
        `(B,)`, float64, constants: between which times the samples have gone.
    y : Tensor
        The states at t, packed.
    size : Tensor
        `(B,)`, of the steps in which the events happen.
    about : Tensor
        About dy/dt at t.
    jumps : Tensor or None
        Where f may jump.
    """

    p: Problem
    start: Tensor
    t: Tensor
    y: Tensor
    size: Tensor
    about: Tensor
    jumps: Tensor | None = None

    def slope_at(self, t: Tensor, y: Tensor) -> Tensor:
        """f there, on this side of its jumps."""
        return sided(self.p.f.call, self.start, t, self.jumps)(t, y)

    @cached_property
    def slope(self) -> Tensor:
        """f at t, with derivatives."""
        return self.slope_at(self.t, self.y)

    def moment(self, guard: Guard, scale: Tensor, rows: Tensor) -> tuple[Moment, Tensor]:
        """When an event of some rows happens, and those for which it only grazes zero though a derivative is wanted.

        `scale` `(B,)` is the largest |g| in the step. See `events.moment.moment_of`.
        """
        t, y, slope, none = self.t, self.y, self.about, torch.zeros_like(rows)
        g, rate = guard.along(t, y, slope, self.size)
        crossing = self._crosses(rate, scale)
        shift = torch.where(rows & crossing, -g / torch.where(crossing, rate, 1.0), 0.0)
        shift = torch.where(shift.abs() <= self.size, shift, 0.0)
        at, state = t + shift, y.detach() + self._column(shift) * slope
        if not torch.is_grad_enabled():
            return Moment(at, state), none
        seen = guard(t, y)
        if not (seen.requires_grad or y.requires_grad):
            return Moment(at, state), none
        moving = rows if seen.requires_grad else rows & ~self._deadlines(guard)
        rate = guard.along(t, y, self.slope.detach(), self.size)[1]
        crossing = self._crosses(rate, scale)
        rate = torch.where(moving & crossing, rate, torch.inf)  # of those that stay where they are
        delta, moved = shifted(self.p, guard, t, y, seen, self.slope, rate)
        delta = delta.double()
        return Moment(at + (delta - delta.detach()), state + (moved - moved.detach())), moving & ~crossing

    def following(
        self, guard: Guard, own: Moment, now: Moment, scale: Tensor, rows: Tensor
    ) -> tuple[Moment, Tensor]:
        """The moment of an event that happens at the same time as others before it; see `events.moment.following`."""
        t, y = now.t, now.y
        if not torch.is_grad_enabled():
            return now, own.t
        seen, before = guard(t, y), guard(own.t.detach(), own.y.detach())
        if not (seen.requires_grad or y.requires_grad):
            return now, own.t
        slope = self.slope_at(t, y)
        g, rate = guard.along(t.detach(), y, slope.detach(), self.size)
        near = g.abs() <= before.double().abs() + TOUCHING * scale
        joined = rows & near & self._crosses(rate, scale)
        rate = torch.where(joined, rate, torch.inf)
        delta, moved = shifted(self.p, guard, t, y, seen, slope, rate)
        delta = delta.double()
        later, state = t + (delta - delta.detach()), y.detach() + (moved - moved.detach())
        at = torch.where(joined, own.t.detach() + (later - later.detach()), own.t)
        here = joined.reshape(-1, *[1] * (y.ndim - 1))
        return Moment(torch.where(joined, later, t), torch.where(here, state, y)), at

    def _crosses(self, rate: Tensor, scale: Tensor) -> Tensor:
        """See `events.moment.crosses`."""
        return rate.isfinite() & (rate.abs() * self.size > GRAZING * scale)

    def _deadlines(self, guard: Guard) -> Tensor:
        """See `events.moment.is_deadline`."""
        off, slope = JUMPS * self.size, self.about
        with torch.no_grad():
            early, late = self.y - self._column(off) * slope, self.y + self._column(off) * slope
            values = [guard(at, x).sign() for at in (self.t - off, self.t + off) for x in (early, late)]
        before, before_late, after_early, after = values
        return (before == before_late) & (before_late != after_early) & (after_early == after)

    def _column(self, x: Tensor) -> Tensor:
        return column(x.to(self.y.dtype.to_real()), self.y, 1)
