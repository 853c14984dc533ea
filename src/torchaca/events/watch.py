"""Does an event happen in a step? g is looked at inside of each accepted step, and a crossing is bracketed.

g is read at the quarters of a step and at its end. So a step that crosses twice is not missed if the crossings lie on
different sides of one of these times. States inside are those of a parabola or Hermite's cubic, which cost no
evaluation of f; only where they show a crossing is the method's interpolant asked.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from types import MappingProxyType
from typing import Protocol

import torch
from torch import Tensor

from ..core import End, Problem, Step
from ..numbers import combined, on_host, value
from .failures import stopped
from .guard import Guard
from .roots import leave_zero, root

PARTS = (0.0, 0.25, 0.5, 0.75, 1.0)
ROUNDING = 64
"""Roundings of the largest g in a step: a smaller one is zero."""
TOGETHER = 1e-9
"""Of a step: events that are no farther apart happen at once, in the order of the list; nor are those within rounding.
"""
TINY = 1e-300


@dataclass
class Crossing:
    """The first event of a stretch: at about `t` those of `guards` happen, in a step of this `size`.

    `scales` are the largest |g| that were seen in the step, by guard. The stretch ends at `t`, where dy/dt is about
    `slope`.
    """

    t: float
    guards: Sequence[Guard]
    size: float
    scales: Mapping[int, float]
    slope: Tensor

    def sizes(self, guard: Guard) -> tuple[float, float]:
        """The sizes of the step and of g in it."""
        return self.size, max(self.scales[guard.index], TINY)


class Reads(Protocol):
    """How g of each event is read in the steps from one event to the next."""

    def samples(self, step: Step) -> Sequence[Sequence[float]]:
        """g of each event at each of `PARTS`."""
        ...

    def inside(self, guard: Guard, step: Step, theta: float) -> float:
        """g of an event at a part of a step, on the method's interpolant."""
        ...


class Calls:
    """By calls, of which no two are the same."""

    def __init__(self, guards: Sequence[Guard]) -> None:
        self.guards = guards
        self.ends: list[float] = []

    def samples(self, step: Step) -> Sequence[Sequence[float]]:
        """See `Reads`; the steps follow one another."""
        t0, t1 = value(step.t0), value(step.t1)
        known = len(self.ends) > 0  # where the step starts
        points = [step.y0.detach(), *_sampled(step), step.y1.detach()][known:]
        times = [t0, *(t0 + part * (t1 - t0) for part in PARTS[1:-1]), t1]
        read = [
            guard(t, y).double() for guard in self.guards for t, y in zip(times[known:], points, strict=True)
        ]
        flat, n = [*on_host(*read)], len(points)
        values = [[*self.ends[i : i + 1], *flat[i * n : (i + 1) * n]] for i in range(len(self.guards))]
        self.ends = [seen[-1] for seen in values]
        return values

    def inside(self, guard: Guard, step: Step, theta: float) -> float:
        """See `Reads`."""
        if theta in (0.0, 1.0):
            t, y = (step.t1, step.y1) if theta else (step.t0, step.y0)
        else:
            t = value(step.t0) + theta * (value(step.t1) - value(step.t0))
            y = step.at([t])[0]
        return guard(value(t), y.detach()).item()


class Watch:
    """Watches the steps from one event to the next.

    Parameters
    ----------
    guards : sequence of Guard
    zeros : mapping
        By index of some events: how small a g is zero at the start, if that is not a matter of rounding.
    """

    def __init__(self, guards: Sequence[Guard], zeros: Mapping[int, float] = MappingProxyType({})) -> None:
        self.guards, self.zeros = guards, zeros
        self.sides: list[int] = []
        self.found: Crossing | None = None

    def over(self, p: Problem, moves: Generator[Step, None, End]) -> Generator[Step, None, End]:
        """Pass the steps of p on, up to the first event; the last one ends there."""
        self.found, self.sides = None, []
        start, reads = p.y0, Calls(self.guards)
        mark = p.effects.mark() if p.effects else None
        stateful = p.effects is not None and p.effects.stateful
        for step in moves:
            with torch.no_grad():
                crossing = self.first(p, step, reads)
            if crossing is None:
                yield step
                start, mark = p.handed(step), p.effects.mark() if p.effects else None
                continue
            if p.effects and mark:
                p.effects.restore(mark)
            self.found = crossing
            if crossing.t == value(step.t0):
                p.stats.accepted -= 1
            else:
                yield p.step(step.t0, crossing.t, start, None if stateful else step.f0)
            return End("event")
        return End("reached")

    def first(self, p: Problem, step: Step, reads: Reads) -> Crossing | None:
        """The first event in a step, if there is one.

        `sides` are those of zero on which each g was at the end of the step before; there are none before the first.

        Raises
        ------
        SolverError
            If a g is not finite.
        """
        values = reads.samples(step)
        self._check(p, step, values)
        scales = {guard.index: max(map(abs, seen)) for guard, seen in zip(self.guards, values, strict=True)}
        if not self.sides:
            self.sides = [
                self._start(p, step, guard, seen[0], scales[guard.index])
                for guard, seen in zip(self.guards, values, strict=True)
            ]
        t0, h = value(step.t0), value(step.t1) - value(step.t0)
        found: list[tuple[float, Guard]] = []
        for i, (guard, seen) in enumerate(zip(self.guards, values, strict=True)):
            for (low, _), (high, g) in pairwise(zip(PARTS, seen, strict=True)):
                side, now = self.sides[i], _sign(g)
                if side and now != side:
                    theta = None
                    if guard.event.direction in (0, -side):
                        theta = _crossing(partial(_phi, reads, guard, step, side), low, high)
                    if theta is not None:
                        found.append((theta, guard))
                        break
                self.sides[i] = now
        if not found:
            return None
        first, eps = min(theta for theta, _ in found), torch.finfo(p.y0.dtype.to_real()).eps
        guards = [guard for theta, guard in found if theta - first <= max(TOGETHER, ROUNDING * eps)]
        t = value(step.t1) if first == 1.0 else t0 + first * h
        return Crossing(t, guards, abs(h), scales, _slope(step, first))

    def _check(self, p: Problem, step: Step, values: Sequence[Sequence[float]]) -> None:
        t0, h = value(step.t0), value(step.t1) - value(step.t0)
        for guard, seen in zip(self.guards, values, strict=True):
            for part, g in zip(PARTS, seen, strict=True):
                if not math.isfinite(g):
                    seen = f"{guard.name}: g(t, y) is {g} there, so that nobody can say where it crosses zero"
                    advice = "a g that is finite for every y that the solve may pass through"
                    raise stopped(p, "event", t0 + part * h, h, seen, advice)

    def _start(self, p: Problem, step: Step, guard: Guard, g: float, scale: float) -> int:
        """On which side of zero an event starts; where it starts at zero, on the side to which it leaves."""
        eps = torch.finfo(p.y0.dtype.to_real()).eps
        zero = self.zeros.get(guard.index, ROUNDING * eps * scale)
        if abs(g) > zero:
            return _sign(g)
        slope = step.f0 if p.f0 is None else p.f0
        size = abs(value(step.t1) - value(step.t0))
        _, rate = guard.rate(step.t0, step.y0, slope.detach(), size)
        return _sign(rate * p.ts.sign) if math.isfinite(rate) else 0


def _sign(x: float) -> int:
    return (x > 0) - (x < 0)


def _crossing(phi: Callable[[float], float], low: float, high: float) -> float | None:
    """The part of a step at which g leaves its side, between two of `PARTS`; None if the interpolant knows better."""
    if not phi(high) <= 0:
        return None
    if not phi(low) > 0:
        low, high = leave_zero(phi, 0.0, high)
    return low if low == high else root(phi, low, high)


def _phi(reads: Reads, guard: Guard, step: Step, side: int, theta: float) -> float:
    """g in a step, greater than zero on the side on which it starts."""
    return side * reads.inside(guard, step, theta)


def _slope(step: Step, theta: float) -> Tensor:
    """dy/dt of the interpolant, by a difference: it costs no evaluation of f."""
    t0, h = value(step.t0), value(step.t1) - value(step.t0)
    near = torch.finfo(step.y1.dtype.to_real()).eps ** (1 / 3)
    low, high = max(0.0, theta - near), min(1.0, theta + near)
    before, after = step.at([t0 + low * h, t0 + high * h]).detach()
    return (after - before) / ((high - low) * h)


def weights_inside(n_slopes: int) -> Sequence[Sequence[float]]:
    """For each of the inner `PARTS` the weights of h f0, of h f1 if there are two slopes, and of y1 - y0.

    They are those of a parabola, or of Hermite's cubic.
    """
    inner = PARTS[1:-1]
    if n_slopes == 1:
        return [(x - x**2, x**2) for x in inner]
    return [(x * (1 - x) ** 2, (x - 1) * x**2, x**2 * (3 - 2 * x)) for x in inner]


def _sampled(step: Step) -> Sequence[Tensor]:
    """States at the inner `PARTS` of what is known without an evaluation of f: Hermite's cubic, or a parabola."""
    y0, y1, f0, f1 = (x if x is None else x.detach() for x in (step.y0, step.y1, step.f0, step.hint))
    assert y0 is not None and y1 is not None and f0 is not None  # noqa: PT018
    h = value(step.t1) - value(step.t0)
    slopes = [f0] if f1 is None else [f0, f1]
    weights = [[*(h * w for w in own), last] for *own, last in weights_inside(len(slopes))]
    rows = [*slopes, y1 - y0]
    return combined(torch.tensor(weights, dtype=torch.float64, device="cpu"), rows, y0).unbind()
