"""A solve through its events: one ordinary solve from each event to the next.

So no gradient and no method knows of events. A stretch ends near the event at a constant time; when the event happens
from there, and what the state is then, is a differentiable function of its end (`moment`); the next stretch starts at
that time and from what `apply` makes of that state.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import TypeAlias

import torch
from torch import Tensor

from ..core import Outcome, Problem, Times, tolerant
from ..dense import DenseOutput
from ..errors import SolverError
from ..layout import joined
from ..loops.saving import Saving
from ..numbers import Time, on_host
from ..state import Structure
from ..transforms import is_differentiated
from .event import Event, Occurrences
from .failures import stopped
from .guard import Guard, guards_of
from .moment import Moment, following, moment_of
from .pieces import Pieces, pieces_of
from .watch import ROUNDING, Crossing, Watch

Solve: TypeAlias = Callable[[Problem], "tuple[Problem, Outcome, Course | None]"]
"""Solves a stretch: the problem as it was prepared, what came out, and the events on the way, of which none is left."""

Stretch: TypeAlias = "tuple[Sequence[Time], Sequence[Tensor], Tensor]"
"""What dense output is made of: the boundaries of the steps, their interpolants, and the first state."""

INSTANT = 1e-12
"""Of the span: a shorter interval between two events is no time at all."""
MOST_INSTANTS = 3
"""So many of them in a row, and they will not end."""


@dataclass
class Course:
    """What a solve through events has collected; times of events are differentiable, 0-dim, float64 on the CPU.

    `outcome` is that of a solve without events, of which `stretches` are the dense output. If a terminal event ended
    it, `end` is its time.
    """

    events: Sequence[Event]
    outcome: Outcome
    moments: list[list[Moment]]
    stretches: Sequence[Stretch] = ()
    end: Tensor | None = None

    def dense(self, p: Problem, structure: Structure) -> Pieces:
        """Dense output of all stretches."""
        parts = [DenseOutput(p.method, structure, *stretch) for stretch in self.stretches]
        return pieces_of(parts, self.outcome.times[-1])


@dataclass
class _Parts:
    """The parts of an outcome, from stretch to stretch; `save` has its turn when there are all of them."""

    save: Saving | None = None
    ys: list[Tensor] = field(default_factory=list)
    times: list[float] = field(default_factory=list)
    stretches: list[Stretch] = field(default_factory=list)
    done: int = 0

    def add(self, q: Problem, outcome: Outcome, n: int, ys: Sequence[Tensor]) -> None:
        """Add a stretch of which `n` outputs count; `ys` are their states."""
        if q.dense:
            boundaries = outcome.boundaries or q.control.boundaries(q.ts, outcome.times)
            self.stretches.append((boundaries, outcome.bases, q.y0))
        self.done += n
        self.ys += ys
        self.times += outcome.times if not self.times else outcome.times[1:]

    def outcome(self, p: Problem, failure: SolverError | None, ended: Moment | None) -> Outcome:
        """All of it as one outcome; `ended` adds an output."""
        ts = p.ts if self.done == len(p.ts) else p.ts.first(self.done)
        if ended is not None:
            ts = p.ts.ending(self.done, ended.t if is_differentiated(ended.t) else ended.value)
            self.ys.append(ended.y[None])
        outcome = Outcome(joined(self.ys, p.y0), ts, failure, self.times)
        return outcome if self.save is None else self.save.after(ts, outcome)


def solve_through(p: Problem, events: Sequence[Event], solve: Solve) -> Course:
    """Solve a problem through its events.

    Parameters
    ----------
    solve : callable
        Solves one stretch, up to the first event that `Problem.events` sees.
    """
    guards, parts, p = guards_of(p, tuple(events)), _Parts(p.save), replace(p, save=None)
    moments: list[list[Moment]] = [[] for _ in guards]
    watch, q, instants = Watch(guards), _stretch(p, p.ts, p.y0, None), 0
    while True:
        begun, outcome, _ = solve(replace(q, events=watch))
        p = replace(p, control=begun.control) if parts.done == 0 else p
        crossing, skip = watch.found, min(len(parts.times), 1)
        if crossing is None or outcome.failure is not None:
            parts.add(begun, outcome, len(outcome.ys) - skip, [outcome.ys[skip:]])
            return Course(events, parts.outcome(p, outcome.failure, None), moments, parts.stretches)
        y = outcome.ys[-1]
        fired = [
            moment_of(begun, guard, crossing.t, y, crossing.slope, *crossing.sizes(guard))
            for guard in crossing.guards
        ]
        first = fired[0]
        instants = instants + 1 if _instant(q.ts, first.value) else 0
        parts.add(begun, outcome, *_outputs(p, begun, crossing, outcome, first, parts.done, skip))
        parts.times[-1] = first.value
        if instants >= MOST_INSTANTS:
            failure = _zeno(p, crossing, first.value)
            return Course(events, parts.outcome(p, failure, None), moments, parts.stretches)
        now = first
        for guard, own in zip(crossing.guards, fired, strict=True):
            at = own.t
            if own is not first:
                now, at = following(begun, guard, own, now, *crossing.sizes(guard))
            moments[guard.index].append(Moment(at, now.y))
            if guard.event.terminal:
                return Course(events, parts.outcome(p, None, now), moments, parts.stretches, now.t)
            now = Moment(now.t, guard.applied(now.t, now.y))
        watch = Watch(guards, _zeros(begun, guards, crossing, first, now.y))
        jumps = any(guard.event.apply is not None for guard in crossing.guards)
        q = _stretch(p, _times(p, parts.done, now), now.y, None if jumps else crossing.size)
        if p.trace is not None:
            q = replace(q, log=replace(q.log, trace=p.trace.behind(len(parts.times) - 1)))


def watch_for(p: Problem, events: Sequence[Event]) -> Watch | None:
    """Return what watches the steps of the first stretch; None if there are no events."""
    return Watch(guards_of(p, tuple(events))) if events else None


def _stretch(p: Problem, ts: Times, y: Tensor, dt0: float | None) -> Problem:
    """The problem from one event on, of which nothing is known; `dt0` is a first step size."""
    control, own = p.control.within(ts.values[0], ts.values[-1]), tolerant(p.control)
    if own is not None and ts is not p.ts:
        control = own.with_settings(dt0=dt0)
    f = replace(p.f, f0=None, effects=None, inputs=None)
    return replace(p, f=f, y0=y, ts=ts, control=control, start=p.start if ts is p.ts else None)


def _times(p: Problem, done: int, start: Moment) -> Times:
    """The times of a stretch: the event, and the outputs that are left."""
    values = (start.value, *p.ts.values[done:])
    if p.ts.tensor is None and not is_differentiated(start.t):
        return Times(values)
    rest = p.ts.tensor
    left = torch.tensor(values[1:], dtype=torch.float64, device="cpu") if rest is None else rest[done:]
    return Times(values, torch.cat([start.t[None], left]))


def _outputs(
    p: Problem, q: Problem, crossing: Crossing, outcome: Outcome, event: Moment, done: int, skip: int
) -> tuple[int, list[Tensor]]:
    """The outputs of a stretch that lie before the event, which may be a little off the end of the stretch."""
    have, end = len(outcome.ys) - skip - 1, outcome.ys[-1]
    before = sum(p.ts.sign * t < p.ts.sign * event.value for t in p.ts.values[done:])
    before = max(before, 1 - skip)  # the first output is y0, whatever happens there
    ys = [outcome.ys[skip : skip + min(before, have)]]
    for i in range(done + have, done + before):
        f1 = q.between(q.ts.values[0], crossing.t)(crossing.t, end)
        t = p.ts[i]
        shift = (
            t.to(end.device, end.dtype.to_real()) - crossing.t if isinstance(t, Tensor) else t - crossing.t
        )
        ys.append((end + shift * f1)[None])
    return before, ys


def _zeros(
    p: Problem, guards: Sequence[Guard], crossing: Crossing, moment: Moment, state: Tensor
) -> dict[int, float]:
    """How small g is still zero: for the events that have just happened and are not to happen again at once.

    Nothing is zero for an event that is about to happen, if the jump of another has not changed its g.
    """
    eps, zeros = torch.finfo(p.y0.dtype.to_real()).eps, {}
    for guard in guards:
        with torch.no_grad():
            before, after = on_host(*(guard(moment.value, y.detach()).double() for y in (moment.y, state)))
        if guard in crossing.guards:
            zeros[guard.index] = 4 * abs(before) + ROUNDING * eps * crossing.scales[guard.index]
        elif before == after:
            zeros[guard.index] = 0.0
    return zeros


def _instant(ts: Times, t: float) -> bool:
    start, end = ts.values[0], ts.values[-1]
    return abs(t - start) <= max(INSTANT * abs(end - start), 10 * math.ulp(t))


def _zeno(p: Problem, crossing: Crossing, t: float) -> SolverError:
    names = ", ".join(guard.name for guard in crossing.guards)
    seen = f"{names}: {MOST_INSTANTS} events in a row with no time between them: they come in ever shorter intervals"
    advice = (
        "an event that ends the solve where motion is slow, or an apply that takes the state off the guard"
    )
    return stopped(p, "zeno", t, crossing.size, seen, advice)


def occurrences(course: Course, structure: Structure, y0: Tensor, ts: Tensor) -> tuple[Occurrences, ...]:
    """When each event happened, in the dtype and on the device of `ts`, and where."""
    found = []
    for event, moments in zip(course.events, course.moments, strict=True):
        t = torch.stack([m.t for m in moments]).to(ts) if moments else ts.new_empty(0)
        y = joined([m.y[None] for m in moments], y0) if moments else y0.new_empty((0, *y0.shape))
        found.append(Occurrences(t, structure.unpack(y), event.terminal))
    return tuple(found)
