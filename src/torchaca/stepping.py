"""The loop: from a problem to its accepted steps. It knows nothing of gradients, outputs or storage."""

from __future__ import annotations

import math
from collections.abc import Generator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from itertools import pairwise

import torch
from torch import Tensor

from .control import Adaptive, FixedSteps, in_double, on_host
from .core import Problem, Step, Time, value
from .diagnosis import History, diagnose

TOO_SMALL = 10  # ulps of t: a smaller step is mostly rounding
TINY = 1e-30  # of the span: where t is zero, its ulp is no limit
LANDING = 1 + 1e-9  # a stop that is nearly reached is reached: no sliver of 1e-16 after it
BAD_RATIO = 1e10  # what a nan or inf error counts as: shrink as much as allowed


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


def search(p: Problem, control: Adaptive, through: bool = False) -> Generator[Step, None, float | None]:
    """Steps whose sizes follow the error estimate; see `steps`."""
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
            _refuse(p, control, history, value(t), size, y)
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
    size = value(dt)
    if not math.isfinite(size) and not bool(torch.isfinite(f0).all()):
        raise diagnose(p, control, History(), "first-step", p.ts.values[0], 0.0, p.y0)
    if not math.isfinite(size) or size < control.dt_min:
        return max(control.dt_min, 1e-6 * abs(p.ts.values[-1] - p.ts.values[0]))
    return dt if through else size


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


def _refuse(p: Problem, control: Adaptive, history: History, t: float, size: float, y: Tensor) -> None:
    """Raise where another trial makes no sense."""
    span = abs(p.ts.values[-1] - p.ts.values[0])
    if not size > max(TOO_SMALL * math.ulp(t), TINY * span):
        raise diagnose(p, control, history, "step-size", t, size, y)
    if p.stats.accepted + p.stats.rejected >= control.max_steps:
        raise diagnose(p, control, history, "max-steps", t, size, y)
    stuck = history.rejections > 0 and _at_dt_min(control, t, history.rejected_size)
    if control.dt_min and not control.accept_at_dt_min and stuck:
        raise diagnose(p, control, history, "dt-min", t, size, y)
