"""The loop: from a problem to its accepted steps. It knows nothing of gradients, outputs or storage."""

from __future__ import annotations

import math
from collections.abc import Callable, Generator, Iterable
from contextlib import nullcontext
from dataclasses import replace
from itertools import pairwise
from typing import TYPE_CHECKING, Any, TypeAlias

import torch
from torch import Tensor

from ..core import End, Log, Problem, Step, Times
from ..numbers import Time, at_most, value
from .diagnosis import RECENT, History, chatters, diagnose
from .pace import (
    BAD_RATIO,
    HOPELESS,
    HOST,
    TOO_SMALL,
    Arithmetic,
    Limits,
    accepts,
    first_dt,
    known_pace,
    next_dt,
    propose,
    refusals,
)
from .rest import ROOM, Rest

__all__ = [
    "BAD_RATIO",
    "HOPELESS",
    "TOO_SMALL",
    "Walk",
    "march",
    "search",
    "steps",
    "steps_on_tensors",
    "stopped",
]

if TYPE_CHECKING:
    from .adaptive import Adaptive

FINER = 100  # how much tighter the tolerance is in a solve that tells an error that grows from a solution that does
BEYOND = 0.1  # of the time solved so far: how far such a solve goes on

Explain: TypeAlias = Callable[..., Exception]
"""Makes the exception of a solve that cannot go on, as `stopped` does."""


def steps(p: Problem) -> Generator[Step, None, End]:
    """Yield the accepted steps of a problem, up to its first event; see `torchaca.core.Control.moves`."""
    moves = p.control.moves(p)
    return moves if p.events is None else p.events.over(p, moves)


def steps_on_tensors(p: Problem) -> Generator[Step, None, End]:
    """Yield them so that autograd follows the step sizes back to the states, if the control can do that."""
    moves = getattr(p.control, "moves_on_tensors", p.control.moves)(p)
    return moves if p.events is None else p.events.over(p, moves)


def march(p: Problem, boundaries: Iterable[Time]) -> Generator[Step, None, End]:
    """Yield steps between given times, without looking at errors and without reading the device."""
    step, y, start, f0 = None, p.y0, p.first, p.f0
    make, handed, continuous = p.step, p.handed, p.continuous
    for t0, t1 in pairwise(boundaries):
        if step is not None:
            y, start = step.y1, handed(step)
            # Where an output of the step needed f1, that is the next step's first stage.
            f0 = step.hint if continuous or p.reuses(t0) else None
        if p.watch:
            p.watch("trial", value(t0), y, value(t1 - t0))
        step = make(t0, t1, start, f0)
        p.stats.accepted += 1
        yield step
    return End("reached")


def stopped(
    p: Problem, control: Adaptive, history: History, reason: str, t: float, size: float, y: Tensor
) -> Exception:
    """Explain why a search cannot go on; to tell an error that grows from a solution that does, solve once more."""
    return diagnose(p, control, history, reason, t, size, y, again=lambda at: _solve_again(p, control, at))


class Walk:
    """Where a solve is, for loops that try steps and reject some: it knows f's side effects, and what a step hands on.

    `trial(t1)` makes the step from `t` to t1. Then either `accept(step)` goes on from its end, and the loop yields it,
    or `reject(step)` stays. `last` is the last output time.
    """

    def __init__(self, p: Problem) -> None:
        self.p, self.t, self.y, self.f0 = p, p.ts[0], p.y0, p.f0
        self.last = p.ts[len(p.ts) - 1]
        self._start, self._before, self._mark = p.first, None, None

    def trial(self, t1: Time) -> Step:
        """Make the step from `t` to t1."""
        p, before = self.p, self._before
        if before is not None:  # f at its end may have become known as its outputs were computed
            self.f0, self._before = before.hint if p.reuses(self.t) else None, None
        self._mark = p.effects.mark() if p.effects else None
        if p.watch:
            p.watch("trial", value(self.t), self.y, value(t1 - self.t))
        return p.step(self.t, t1, self._start, self.f0)

    def slope(self) -> Tensor:
        """Return f where the last accepted step ended; what had to be evaluated for it is handed on."""
        p, step = self.p, self._before
        assert step is not None
        f0 = step.hint if p.reuses(self.t) else None
        if f0 is not None:
            return f0
        if p.effects or p.carrying:  # evaluated anew in the next step, or of no use there
            with p.undone():
                return p.slope(self.t, self.last, self.y)
        self.f0 = p.slope(self.t, self.last, self.y)
        if p.reuses(self.t):
            step.hint = self.f0  # for outputs inside of the step
        self._before = None
        return self.f0

    def bound(self, rest: Rest, f0: Tensor | None = None) -> float:
        """Return how long the next step may be where the last one's error says nothing; see `rest`.

        `f0` is f there, if it is known.
        """
        f0 = self.slope() if f0 is None else f0
        return rest.bound(self.p.between(self.t, self.last), self.t, self.y, f0)

    def accept(self, step: Step) -> None:
        """Go on from the end of a step."""
        p = self.p
        p.stats.accepted += 1
        if p.watch:
            p.watch("accepted", value(self.t), self.y, value(step.t1 - step.t0))
        self.t, self.y, self._start, self._before = step.t1, step.y1, p.handed(step), step

    def reject(self, step: Step) -> None:
        """Stay where the step started, and undo what its evaluations of f left behind."""
        p = self.p
        p.stats.rejected += 1
        if p.watch:
            p.watch("rejected", value(self.t), self.y, value(step.t1 - step.t0))
        self.f0 = step.f0
        if p.effects and self._mark:
            p.effects.restore(self._mark)
            self.f0 = None if p.effects.stateful else self.f0


def search(
    p: Problem, control: Adaptive, numbers: Arithmetic = HOST, explain: Explain = stopped
) -> Generator[Step, None, End]:
    """Yield steps whose sizes follow the error estimate, computed in `numbers`; `explain` explains a failure."""
    if p.ts.values[0] == p.ts.values[-1]:
        return End("reached")
    walk, rest, last = Walk(p), Rest(p, control), p.ts[len(p.ts) - 1]
    with p.undone() if p.f0 is None else nullcontext():
        slope = p.slope(walk.t, last, walk.y) if p.f0 is None else p.f0
    walk.f0 = slope if not (p.effects and p.effects.stateful) else None
    order = p.carrying.error_order if p.carrying else p.method.order
    limits, history, pace = Limits.of(p, control), History(), p.log.pace
    dt, ratios = known_pace(p, control, numbers.time)
    dt = _first(p, control, limits, slope, numbers) if dt is None else dt
    if rest.pending():
        dt = at_most(dt, walk.bound(rest, slope))
    now = p.ts.values[0]
    t = numbers.time(walk.t)  # on the host a constant, also after a t0 that is differentiated
    stops = control.stops(p.ts)
    for stop, end in zip(stops, control.boundaries(p.ts, [now, *stops])[1:], strict=True):
        while now != stop:
            t1, clipped = propose(t, dt, stop, limits)
            lands = value(t1) == stop
            later = numbers.time(end) if lands else t1
            tried = abs(later - t)
            size = value(tried)
            if reason := _why_not(p, control, limits, history, (now, size, lands), walk.y):
                raise explain(p, control, history, reason, now, size, walk.y)
            step = walk.trial(end if lands else t1)
            with numbers.recording():
                (ratio,) = numbers.read(control.ratio(step))  # the loop's one host read a step
            error = value(ratio)
            ratio = ratio if math.isfinite(error) else BAD_RATIO
            ok = accepts(error, now, size, limits, at_least_dt_min=control.accept_at_dt_min)
            trial, calm = (tried, clipped, ok), history.rejections > 0
            dt = next_dt(control, order, dt, [ratio, *ratios], trial, calm, limits)
            if ok:
                walk.accept(step)
                if error <= ROOM and rest.note(now, error, value(later), step.y0, step.y1):
                    dt = at_most(dt, walk.bound(rest))
                t, now, ratios = later, value(later), (ratio, *ratios[:1])
                pace.dt, pace.ratios = dt, ratios
                yield step
                history.accept(size)
            else:
                walk.reject(step)
                history.reject(size)
    return End("reached", value(dt))


def _first(p: Problem, control: Adaptive, limits: Limits, f0: Tensor, numbers: Arithmetic) -> Time:
    """Choose the first step size by Hairer's rule."""
    with p.undone(), numbers.recording():
        guess = numbers.time(control.initial_step(p, f0, numbers.read))
    if not math.isfinite(value(guess)) and not bool(torch.isfinite(f0).all()):
        raise diagnose(p, control, History(), "first-step", p.ts.values[0], 0.0, p.y0)
    return first_dt(guess, p.ts.values[0], limits)


def _why_not(
    p: Problem,
    control: Adaptive,
    limits: Limits,
    history: History,
    trial: tuple[float, float, bool],
    y: Tensor,
) -> str | None:
    """Return the reason not to make a trial: its time, its size, and whether it ends on a stop."""
    made = p.stats.accepted + p.stats.rejected
    found = refusals(*trial, history.rejections, history.rejected_size, made, limits)
    if True in found.values():
        return next(reason for reason, holds in found.items() if holds)
    slow = history.slow >= history.next_look and chatters(p, control, history, trial[0], y)
    return "slow" if slow else None


class _GivenUp(Exception):
    """A solve for the sake of a diagnosis failed as well."""


def _give_up(*_: Any) -> Exception:
    return _GivenUp()


def _step_afresh(p: Problem, t0: Time, t1: Time, start: Tensor, f0: Tensor | None) -> Step:
    """Make a step from y alone with a method that hands on more."""
    return p.method.step(p.between(t0, t1), t0, t1, start if p.fresh(t0) else start[0], f0)


def _solve_again(p: Problem, control: Adaptive, t: float) -> tuple[float, Tensor, float] | None:
    """Solve once more with a hundredth of the tolerance, until beyond t; see `diagnosis.Again`.

    It may take as many trials as the first solve took.
    """
    start, end = p.ts.values[0], p.ts.values[-1]
    until = t + BEYOND * (t - start)
    until = min(until, end) if p.ts.sign > 0 else max(until, end)
    trials = p.stats.accepted + p.stats.rejected + RECENT
    finer = replace(control, rtol=control.rtol / FINER, atol=control.atol / FINER, dt0=None, max_steps=trials)
    f = replace(p.f, f0=None, stepper=_step_afresh if p.carrying else None)
    q = replace(p, f=f, ts=Times((start, until)), control=finer, log=Log())
    y, history = p.y0, History()
    try:
        for step in search(q, finer, explain=_give_up):
            y = step.y1
            history.accept(abs(value(step.t1) - value(step.t0)))
    except _GivenUp:
        return None
    return until, y, max(history.sizes, default=0.0)
