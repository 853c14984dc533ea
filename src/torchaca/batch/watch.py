"""Does an event happen in the steps of samples? As in `events.watch`, for each sample in its own step."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import pairwise
from typing import Any, Protocol

import torch
from torch import Tensor

from ..core import Problem, Step
from ..events.guard import Guard
from ..events.row_roots import leave_zeros, roots
from ..events.watch import PARTS, ROUNDING, TOGETHER, weights_inside
from ..loops.rows import Spans
from .interpolants import interpolated


class Here(Protocol):
    """Where samples are, those of the `index` alone if there is one: `row_search.Search`, or a march."""

    p: Problem
    t: Tensor
    spans: Spans
    index: Tensor | None

    def fail(self, reason: str, mask: Tensor) -> None:
        """Stop the samples of the mask."""
        ...


@dataclass(eq=False)
class _Trial:
    """A step of samples from `t0` to `t1`, `(B,)`."""

    step: Step
    t0: Tensor
    t1: Tensor
    method: Any

    def at(self, theta: Tensor) -> tuple[Tensor, Tensor]:
        """Times and states of the interpolant, each sample's at its own part of the step."""
        t = torch.where(theta == 1, self.t1, self.t0 + theta * (self.t1 - self.t0))
        y = interpolated(self.method, self.step, self.step.y1, t[None], (self.t0, self.t1))[0]
        return t, torch.where(self.wide(theta == 0), self.step.y0, y)

    def wide(self, x: Tensor) -> Tensor:
        """What there is one of for each sample, as what broadcasts against states."""
        return x.reshape(-1, *[1] * (self.step.y0.ndim - 1))

    def slope(self, theta: Tensor) -> Tensor:
        """dy/dt of the interpolant, by a difference: it costs no evaluation of f."""
        near = torch.finfo(self.step.y1.dtype.to_real()).eps ** (1 / 3)
        low, high = (theta - near).clamp(min=0), (theta + near).clamp(max=1)
        size = ((high - low) * (self.t1 - self.t0)).to(self.step.y1.dtype.to_real())
        return (self.at(high)[1] - self.at(low)[1]) / self.wide(size)

    def sampled(self) -> Sequence[tuple[Tensor, Tensor]]:
        """The same at the inner `PARTS`, of what is known without an evaluation of f."""
        step, size = self.step, self.t1 - self.t0
        y0, y1, f0, f1 = step.y0, step.y1, step.f0, step.hint
        h = self.wide(size.to(y0.dtype.to_real()))
        slopes = [h * f for f in (f0, f1) if f is not None]
        rows = [*slopes, y1 - y0]
        parts = zip(PARTS[1:-1], weights_inside(len(slopes)), strict=True)
        return [
            (self.t0 + x * size, y0 + sum(w * row for w, row in zip(own, rows, strict=True)))
            for x, own in parts
        ]


class RowWatch:
    """Watches the steps of samples from one event of each to its next.

    Parameters
    ----------
    guards : sequence of Guard
    t, y : Tensor
        Where the samples start.
    zeros : Tensor
        `(G, B)`, how small a g is zero at the start; nan where that is a matter of rounding.

    Attributes
    ----------
    at : Tensor
        `(B,)`, about when the first events of samples happen; nan where there is none.
    fired, scales : Tensor
        `(G, B)`: which they are, and the largest |g| in the step in which they happen.
    size : Tensor
        `(B,)`, of that step.
    slope : Tensor
        About dy/dt there.
    """

    def __init__(self, guards: Sequence[Guard], t: Tensor, y: Tensor, zeros: Tensor) -> None:
        self.guards, self.zeros = guards, zeros
        self.ends = torch.stack([guard(t, y).double() for guard in guards])
        self.sides, self.started = torch.zeros_like(self.ends), torch.zeros_like(t, dtype=torch.bool)
        self.at, self.size = torch.full_like(t, torch.nan), torch.ones_like(t)
        self.slope = torch.zeros_like(y)
        self.fired, self.scales = torch.zeros_like(self.ends, dtype=torch.bool), torch.ones_like(self.ends)

    @torch.no_grad()
    def __call__(self, here: Here, step: Step, t1: Tensor, success: Tensor) -> tuple[Tensor, Tensor]:
        """See `row_search.Cut`."""
        none = torch.zeros_like(success)
        if not bool(success.any()):
            return t1, none
        call: Any = here.p.f.call
        guards = [replace(guard, field=call) for guard in self.guards]
        trial = _Trial(step, here.t, t1, here.p.method)
        points = [*trial.sampled(), (t1, step.y1)]
        seen = torch.stack([torch.stack([guard(t, y).double() for t, y in points]) for guard in guards])
        seen = torch.cat([self._of("ends", here)[:, None], seen], 1)  # (G, parts, B)
        scales = seen.abs().amax(1)
        bad = success & ~scales.isfinite().all(0)
        new = success & ~bad & ~self._of("started", here)
        wrong, begins = torch.stack([bad.any(), new.any()]).tolist()
        if wrong:
            here.fail("event", bad)
            success = success & ~bad
        if begins:
            sides = self._starting(here, guards, step, t1, seen[:, 0], scales, new)
            self._put("sides", here, torch.where(new, sides, self._of("sides", here)))
            self._put("started", here, new | self._of("started", here))
        theta, sides = self._crossings(guards, trial, seen.sign(), self._of("sides", here), success)
        self._put("sides", here, sides)
        self._put("ends", here, torch.where(success, seen[:, -1], seen[:, 0]))
        if theta is None:
            return t1, none
        first, eps = theta.amin(0), torch.finfo(step.y1.dtype.to_real()).eps
        found = first < torch.inf
        at = torch.where(first == 1, t1, here.t + first * (t1 - here.t))
        fired = found & (theta - first <= max(TOGETHER, ROUNDING * eps))
        known = {"at": at, "size": (t1 - here.t).abs(), "fired": fired, "scales": scales}
        for name, x in known.items():
            self._put(name, here, torch.where(found, x, self._of(name, here)))
        slope = torch.where(trial.wide(found), trial.slope(first.clamp(max=1)), self.slope_of(here))
        self.slope = slope if here.index is None else self.slope.index_copy(0, here.index, slope)
        return torch.where(found, at, t1), found

    def slope_of(self, here: Here) -> Tensor:
        """The slopes of the samples that are here."""
        return self.slope if here.index is None else self.slope[here.index]

    def _of(self, name: str, here: Here) -> Tensor:
        x = getattr(self, name)
        return x if here.index is None else x[..., here.index]

    def _put(self, name: str, here: Here, x: Tensor) -> None:
        full = getattr(self, name)
        setattr(self, name, x if here.index is None else full.index_copy(full.ndim - 1, here.index, x))

    def _starting(
        self,
        here: Here,
        guards: Sequence[Guard],
        step: Step,
        t1: Tensor,
        g: Tensor,
        scales: Tensor,
        new: Tensor,
    ) -> Tensor:
        """On which side of zero events start, `(G, B)`; see `events.watch.Watch`."""
        eps, size = torch.finfo(step.y0.dtype.to_real()).eps, (t1 - here.t).abs()
        zeros = self._of("zeros", here)
        zero = g.abs() <= torch.where(zeros.isnan(), ROUNDING * eps * scales, zeros)
        if not bool((zero & new).any()):
            return g.sign()
        rates = torch.stack([guard.along(here.t, step.y0, step.f0, size)[1] for guard in guards])
        leaving = torch.where(rates.isfinite(), rates, 0.0).sign() * here.spans.sign
        return torch.where(zero, leaving, g.sign())

    @staticmethod
    def _crossings(
        guards: Sequence[Guard], trial: _Trial, signs: Tensor, sides: Tensor, success: Tensor
    ) -> tuple[Tensor | None, Tensor]:
        """At which parts of the step events happen, inf where they do not, and the sides of zero at its end."""
        before = torch.cat([sides[:, None], signs[:, 1:-1]], 1)
        changed = success & (before != 0) & (signs[:, 1:] != before)
        if not bool(changed.any()):
            return None, torch.where(success, signs[:, -1], sides)
        theta = torch.full_like(sides, torch.inf)
        for i, guard in enumerate(guards):
            side = sides[i]
            for n, (low, high) in enumerate(pairwise(PARTS), 1):
                now = signs[i, n]
                crossed = success & (theta[i] == torch.inf) & (side != 0) & (now != side)
                if guard.event.direction:
                    crossed = crossed & (side == -guard.event.direction)
                if bool(crossed.any()):
                    theta[i] = torch.where(
                        crossed, _crossing(guard, trial, side, low, high, crossed), theta[i]
                    )
                side = torch.where(success & (theta[i] == torch.inf), now, side)
            sides = sides.index_copy(0, torch.tensor([i], device=sides.device), side[None])
        return (theta if bool((theta < torch.inf).any()) else None), sides


def _crossing(guard: Guard, trial: _Trial, side: Tensor, low: float, high: float, rows: Tensor) -> Tensor:
    """The part of a step at which g leaves its side, between two of `PARTS`; inf if the interpolant knows better."""
    phi = partial(_phi, guard, trial, side)
    first, last = torch.full_like(side, low), torch.full_like(side, high)
    rows = rows & (phi(last) <= 0)
    inside = rows & ~(phi(first) > 0)
    if bool(inside.any()):
        first, last = leave_zeros(phi, first, last, inside)
    found = torch.where(first == last, first, roots(phi, first, last, rows & (first != last)))
    return torch.where(rows, found, torch.inf)


def _phi(guard: Guard, trial: _Trial, side: Tensor, theta: Tensor) -> Tensor:
    """g in a step, greater than zero on the side on which it starts."""
    return side * guard(*trial.at(theta)).double()
