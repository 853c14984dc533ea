"""The loop: from a problem to its accepted steps. It knows nothing of gradients, outputs or storage."""

from __future__ import annotations

import math
from collections.abc import Callable, Generator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import pairwise
from typing import TypeAlias

import torch
from torch import Tensor

from ..control import Adaptive, FixedSteps
from ..core import Problem, Stats, Step, Times
from ..numbers import Time, in_double, on_host, value
from .diagnosis import PATIENCE, RECENT, History, chatters, diagnose

TOO_SMALL = 10  # ulps of t: a smaller step is mostly rounding
FINER = 100  # how much tighter the tolerance is in a solve that tells an error that grows from a solution that does
BEYOND = 0.1  # of the time solved so far: how far such a solve goes on
HOPELESS = 1e-60  # rejections in a row that would shrink the step size by this factor are enough
LANDING = 1 + 1e-9  # a stop that is nearly reached is reached: no sliver of 1e-16 after it
BAD_RATIO = 1e10  # what a nan or inf error counts as: shrink as much as allowed


Explain: TypeAlias = Callable[..., Exception]
"""Makes the exception of a solve that cannot go on, as `diagnosis.diagnose` does."""


def steps(p: Problem, through_search: bool = False) -> Generator[Step, None, float | None]:
    """The accepted steps of a problem, in order; they always end on the last output time.

    Parameters
    ----------
    through_search : bool
        Keep times and step sizes as tensors in the graph, so that autograd goes through the step-size search.

    Returns
    -------
    float or None
        Of the generator: the size that a next step would have, where steps are adaptive.

    Raises
    ------
    SolverError
        When the solve cannot go on.
    """
    if isinstance(p.control, FixedSteps):
        return march(p, p.control.times(p.ts))
    return search(p, p.control, through_search)


def march(p: Problem, boundaries: Sequence[Time]) -> Generator[Step, None, None]:
    """Steps between given times, without looking at errors and without reading the device."""
    y, start, f0 = p.y0, p.y0, p.f0
    for t0, t1 in pairwise(boundaries):
        if p.watch:
            p.watch("trial", value(t0), y, value(t1 - t0))
        step = p.step(t0, t1, start, f0)
        p.stats.accepted += 1
        yield step
        y, start = step.y1, p.handed(step)
        # Where an output of the step needed f1, that is the next step's first stage.
        f0 = step.known_f1 if p.reuses(t1) else None


@dataclass
class Pace:
    """The step size of an adaptive solve: `dt` is what the controller wants next, before any clipping."""

    control: Adaptive
    order: int
    sign: float
    dt: Time
    through: bool
    ratios: list[Time] = field(default_factory=list)
    rejections: int = 0

    def propose(self, t: Time, stop: float, end: Time) -> tuple[Time, bool]:
        """Where the next trial ends, and whether the stop cut it short."""
        size = min(value(self.dt), self.control.dt_max)
        left = abs(stop - value(t))
        if left <= size * LANDING:
            return end, left < size
        if self.through and size == value(self.dt):
            return t + self.sign * self.dt, False
        start = t if self.through else value(t)  # else a constant, also after a t0 that is differentiated
        return start + self.sign * size, False

    def accept(self, size: Time, ratio: Time, clipped: bool) -> None:
        self.ratios = [ratio, *self.ratios[:2]]
        wanted = size * self.control.factor(self.ratios, self.order, after_rejection=self.rejections > 0)
        if not (clipped and value(wanted) < value(self.dt)):  # after a clipped step the old size is restored
            self._set(wanted)
        self.rejections = 0

    def reject(self, size: Time, ratio: Time) -> None:
        self._set(size * self.control.factor([ratio], self.order, after_rejection=True))
        self.rejections += 1

    def _set(self, dt: Time) -> None:
        self.dt = dt if value(dt) >= self.control.dt_min else self.control.dt_min


def search(
    p: Problem, control: Adaptive, through: bool = False, explain: Explain | None = None
) -> Generator[Step, None, float | None]:
    """Steps whose sizes follow the error estimate; see `steps`. `explain` makes the exception of a failure."""
    if p.ts.values[0] == p.ts.values[-1]:
        return None
    last = p.ts[len(p.ts) - 1]
    t, y, start, f0 = p.ts[0], p.y0, p.y0, p.f0
    with p.effects.undone() if p.effects and f0 is None else nullcontext():
        slope = p.slope(t, last, y) if f0 is None else f0
    f0 = slope if not (p.effects and p.effects.stateful) else None
    order = p.carrying.error_order if p.carrying else p.method.order
    pace = Pace(control, order, p.ts.sign, _first(p, control, slope, through), through)
    history = History()
    for stop in control.stops(p.ts):
        end = last if stop == p.ts.values[-1] else stop
        while value(t) != stop:
            t1, clipped = pace.propose(t, stop, end)
            size = abs(value(t1) - value(t))
            # However near a stop is, a first step onto it makes sense.
            if value(t1) != stop or history.rejections or size > smallest_step(p, value(t)):
                _refuse(p, control, history, value(t), size, y, explain)
            mark = p.effects.mark() if p.effects else None
            if p.watch:
                p.watch("trial", value(t), y, value(t1 - t))
            step, ratio, error = _trial(p, control, t, t1, start, f0, through)
            tried: Time = abs(t1 - t) if through else size
            forced = control.accept_at_dt_min and _at_dt_min(control, value(t), size) and math.isfinite(error)
            if error <= 1.0 or forced:
                p.stats.accepted += 1
                if p.watch:
                    p.watch("accepted", value(t), y, p.ts.sign * size)
                yield step
                pace.accept(tried, ratio, clipped)
                history.accept(size)
                t, y, start = t1, step.y1, p.handed(step)
                f0 = step.known_f1 if p.reuses(t1) else None
            else:
                p.stats.rejected += 1
                if p.watch:
                    p.watch("rejected", value(t), y, p.ts.sign * size)
                pace.reject(tried, ratio)
                history.reject(size)
                f0 = step.f0
                if p.effects and mark:
                    p.effects.restore(mark)
                    f0 = None if p.effects.stateful else f0
    return value(pace.dt)


def _at_dt_min(control: Adaptive, t: float, size: float) -> bool:
    """Whether a step is as small as it may be, up to the rounding of t + dt - t."""
    return size <= control.dt_min * LANDING + math.ulp(t)


def _first(p: Problem, control: Adaptive, f0: Tensor, through: bool) -> Time:
    """The first step size: the user's, or Hairer's."""
    if control.dt0 is not None:
        return max(control.dt0, control.dt_min)
    silent = p.effects.undone() if p.effects else nullcontext()
    with silent, torch.set_grad_enabled(through and torch.is_grad_enabled()):
        dt = control.initial_step(p, f0, in_double if through else on_host)
    size, least = value(dt), 2 * smallest_step(p, p.ts.values[0])
    if not math.isfinite(size) and not bool(torch.isfinite(f0).all()):
        raise diagnose(p, control, History(), "first-step", p.ts.values[0], 0.0, p.y0)
    if not (math.isfinite(size) and size >= control.dt_min and size > smallest(p)):
        return max(control.dt_min, 1e-6 * abs(p.ts.values[-1] - p.ts.values[0]))
    if size < least:  # a guess such as 1e-6 says nothing of a time such as 1.7e9
        return least
    return dt if through else size


def smallest_step(p: Problem, t: float) -> float:
    """The size that steps at t are larger than, but those onto a stop."""
    return max(TOO_SMALL * math.ulp(t), smallest(p))


def _trial(
    p: Problem, control: Adaptive, t: Time, t1: Time, start: Tensor, f0: Tensor | None, through: bool
) -> tuple[Step, Time, float]:
    """One step and its error ratio: as a host number, and as the controller gets it."""
    step = p.step(t, t1, start, f0)
    with torch.set_grad_enabled(through and torch.is_grad_enabled()):
        ratio = control.ratio(step)
    error = ratio.item()  # the loop's one host read a step
    if not math.isfinite(error):
        return step, BAD_RATIO, error
    return step, ratio.double() if through else error, error  # as times: float64 whatever the state is


def smallest(p: Problem) -> float:
    """The step size below which f cannot be told the times of the stages, as near to zero as t may be."""
    return torch.finfo(p.y0.dtype.to_real()).tiny


def most_rejections(control: Adaptive) -> float:
    """How many trials in a row may be rejected before a smaller step is hopeless."""
    return math.ceil(math.log(HOPELESS) / math.log(control.factor_min))


def _refuse(
    p: Problem,
    control: Adaptive,
    history: History,
    t: float,
    size: float,
    y: Tensor,
    explain: Explain | None = None,
) -> None:
    """Raise where another trial makes no sense."""
    reason = _why_not(p, control, history, t, size)
    if reason is None and history.slow >= PATIENCE and chatters(p, control, history, t, y):
        reason = "slow"
    if reason is not None:
        explain = explain or partial(diagnose, again=partial(_solve_again, p, control))
        raise explain(p, control, history, reason, t, size, y)


def _why_not(p: Problem, control: Adaptive, history: History, t: float, size: float) -> str | None:
    """The reason not to try a step of this size."""
    if not size > TOO_SMALL * math.ulp(t):
        return "step-size"
    if not size > smallest(p):
        return "underflow"
    if p.stats.accepted + p.stats.rejected >= control.max_steps:
        return "max-steps"
    if history.rejections:
        # If such steps are accepted, this one was nan or inf, and the next would be as well.
        if control.dt_min and _at_dt_min(control, t, history.rejected_size):
            return "dt-min"
        if history.rejections >= most_rejections(control):
            return "rejections"
    return None


class _GivenUp(Exception):
    """A solve for the sake of a diagnosis failed as well."""


def _step_afresh(p: Problem, t0: Time, t1: Time, start: Tensor, f0: Tensor | None) -> Step:
    """A step from y alone of a method that hands on more."""
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
    stepper = _step_afresh if p.carrying else None
    ts, stats = Times((start, until)), Stats()
    q = replace(p, ts=ts, control=finer, stats=stats, f0=None, watch=None, trace=None, stepper=stepper)
    y, history = p.y0, History()

    def give_up(*_: object) -> Exception:
        return _GivenUp()

    try:
        for step in search(q, finer, explain=give_up):
            y = step.y1
            history.accept(abs(value(step.t1) - value(step.t0)))
    except _GivenUp:
        return None
    return until, y, max(history.sizes, default=0.0)
