"""The pace of an adaptive solve: where the next trial ends, what follows from it, and when to give up.

The loops share it. Numbers are host numbers in the Python loop, 0-dim tensors under the naive gradient and in compiled
loops, and tensors with lanes under `torch.func.vmap`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ..core import Problem
from ..numbers import Numbers, at_least, at_most, in_double, negated, on_host, value, where

if TYPE_CHECKING:
    from .adaptive import Adaptive

TOO_SMALL = 10  # ulps of t: a smaller step is mostly rounding
HOPELESS = 1e-60  # rejections in a row that would shrink the step size by this factor are enough
LANDING = 1 + 1e-9  # a stop that is nearly reached is reached: no sliver of 1e-16 after it
BAD_RATIO = 1e10  # what a nan or inf error counts as: shrink as much as allowed
UNGUESSED = 1e-6  # of the span: the first step size if the guess cannot be used


WORDS = {
    "step-size": "a step size fell below what time can resolve",
    "underflow": "a step size fell below the smallest number of the state's dtype",
    "dt-min": "the error is too large at dt_min = {dt_min:g}",
    "max-steps": "max_steps = {max_trials} trials are used up",
    "rejections": "{most_rejections} trials in a row were rejected",
}
"""Why a row cannot go on, by the reasons of `refusals`; the numbers are those of its `Limits`."""
KINDS = {"underflow": "step-size", "rejections": "step-size"}
"""Kinds of `SolverError` by the reason to give up, if they have other names."""


@dataclass(frozen=True)
class Arithmetic:
    """What the Python loop computes step sizes with.

    `read` turns 0-dim tensors into numbers, `time` a time; `recording` surrounds what they are computed from.
    """

    read: Numbers
    time: Callable[[Any], Any]
    recording: Callable[[], AbstractContextManager[Any]]


HOST = Arithmetic(on_host, value, partial(torch.set_grad_enabled, False))  # quicker than no_grad
"""Host numbers: one read of the device a trial, and step sizes that are constants."""

TENSORS = Arithmetic(in_double, lambda t: t, nullcontext)
"""Tensors: step sizes are functions of the state, which autograd differentiates."""


@dataclass
class Limits:
    """What a search keeps to.

    Steps are larger than `smallest`, below which f cannot be told the times of the stages, as near to zero as t may be.
    `fallback` is the first step size if the guess cannot be used, `most_rejections` how many trials in a row may be
    rejected before a smaller step is hopeless.
    """

    sign: Any
    smallest: Any
    dt_min: Any
    dt_max: Any
    max_trials: Any
    most_rejections: Any
    fallback: Any

    @staticmethod
    def of(p: Problem, control: Adaptive) -> Limits:
        """Collect the limits of a problem on the host."""
        return Limits.over(control, p.y0, abs(p.ts.values[-1] - p.ts.values[0]), p.ts.sign)

    @staticmethod
    def over(control: Adaptive, y0: Tensor, span: Any, sign: Any) -> Limits:
        """Collect the limits of a solve over a span, a number or one for each row, in this direction."""
        return Limits(
            sign=sign,
            smallest=torch.finfo(y0.dtype.to_real()).tiny,
            dt_min=control.dt_min,
            dt_max=control.dt_max,
            max_trials=control.max_steps,
            most_rejections=math.ceil(math.log(HOPELESS) / math.log(control.factor_min)),
            fallback=at_least(UNGUESSED * where(span < math.inf, span, 1.0), control.dt_min),
        )


def known_pace(
    p: Problem, control: Adaptive, time: Callable[[Any], Any] = value
) -> tuple[Any, tuple[Any, ...]]:
    """Return the size of the first step, the user's or the one that was next, and the error ratios before it.

    None if it is to be guessed.
    """
    if control.dt0 is not None:
        return max(control.dt0, control.dt_min), ()
    if p.start is None or p.start.pace.dt is None:
        return None, ()
    dt, *ratios = map(time, (p.start.pace.dt, *p.start.pace.ratios))
    return at_least(dt, control.dt_min), tuple(ratios)


def first_dt(guess: Any, t: Any, limits: Limits) -> Any:
    """Choose the first step size from a guess, which may be useless."""
    usable = (abs(guess) < math.inf) & (guess >= limits.dt_min) & (guess > limits.smallest)
    # A guess such as 1e-6 says nothing of a time such as 1.7e9.
    least = 2 * at_least(TOO_SMALL * ulp(t), limits.smallest)
    return where(usable, at_least(guess, least), limits.fallback)


def propose(t: Any, dt: Any, stop: Any, limits: Limits) -> tuple[Any, Any]:
    """Say where the next trial ends, and whether the stop cuts it short."""
    t1, lands, short = reached(t, dt, stop, limits)
    return t1, lands & short()


def reached(t: Any, dt: Any, stop: Any, limits: Limits) -> tuple[Any, Any, Callable[[], Any]]:
    """Say where the next trial ends, whether on the stop, and, when asked, whether that is nearer than dt."""
    size = at_most(dt, limits.dt_max)
    left = abs(stop - t)
    lands = left <= size * LANDING
    return where(lands, stop, ahead(t, size, limits.sign)), lands, lambda: left < size


def ahead(t: Any, size: Any, sign: Any) -> Any:
    """`t + sign size`, in one operation if there is one sign for all of several times."""
    if isinstance(t, Tensor) and isinstance(size, Tensor) and not isinstance(sign, Tensor):
        return torch.add(t, size, alpha=sign)
    return t + sign * size


def refusals(
    t: Any, size: Any, lands: Any, rejections: Any, rejected_size: Any, trials: Any, limits: Limits
) -> dict[str, Any]:
    """For each reason not to make a trial of this size at t, say whether it holds; the first one counts.

    `lands`: it ends on a stop. `rejections` trials were rejected in a row before it, the last of `rejected_size`;
    `trials` were made in all.
    """
    ordinary = negated(lands) | (rejections > 0)  # a first step onto a stop makes sense however near it is
    found = {
        "step-size": ordinary & (size <= TOO_SMALL * ulp(t)),
        "underflow": ordinary & (size <= limits.smallest),
        "max-steps": trials >= limits.max_trials,
    }
    if isinstance(limits.dt_min, Tensor) or limits.dt_min:
        # If steps at dt_min are accepted, the last one was nan or inf, and the next would be as well.
        stuck = (rejections > 0) & at_dt_min(t, rejected_size, limits)
        found["dt-min"] = (limits.dt_min > 0) & stuck
    found["rejections"] = rejections >= limits.most_rejections
    return found


def doubtful(size: Tensor, rejections: Tensor, limits: Limits, farthest: float) -> Tensor:
    """Say for which trials one of the `refusals` may hold, too many of them aside: mostly for none, in two operations.

    No time is farther from zero than `farthest`.
    """
    near = max(TOO_SMALL * math.ulp(farthest), limits.smallest)
    stuck = isinstance(limits.dt_min, Tensor) or limits.dt_min
    return (size <= near) | (rejections >= (1 if stuck else limits.most_rejections))


def accepts(error: Any, t: Any, size: Any, limits: Limits, *, at_least_dt_min: bool) -> Any:
    """Say whether a trial is good enough; `at_least_dt_min`: any finite error is, if its size cannot be smaller."""
    passes = error <= 1.0
    if at_least_dt_min:
        passes = passes | (at_dt_min(t, size, limits) & (abs(error) < math.inf))
    return passes


def next_dt(
    control: Any,
    order: int,
    dt: Any,
    ratios: Sequence[Any],
    trial: tuple[Any, Any, Any],
    calm: Any,
    limits: Limits,
) -> Any:
    """Compute the step size that the controller wants after a trial.

    `ratios` are those of the trial and of the last accepted steps, at most two; `trial` is its size, whether a stop cut
    it short, None if nobody goes on from stops, and whether it was accepted; `calm` is true after a rejection.
    """
    size, clipped, ok = trial
    newest, *older = ratios
    # A rejection asks the newest alone.
    past = [where(ok, ratio, 1.0) for ratio in older] if isinstance(ok, Tensor) else older if ok else []
    wanted = size * control.factor([newest, *past], order, after_rejection=calm | negated(ok))
    least = isinstance(limits.dt_min, Tensor) or limits.dt_min
    bounded = at_least(wanted, limits.dt_min) if least else wanted
    if clipped is None:
        return bounded
    return where(ok & clipped & (wanted < dt), dt, bounded)  # after a clipped step the old size is restored


def ulp(t: Any) -> Any:
    """Return the distance from t to the next larger number."""
    if not isinstance(t, Tensor):
        return math.ulp(t)
    size = t.abs()
    return torch.nextafter(size, torch.full_like(t, torch.inf)) - size


def at_dt_min(t: Any, size: Any, limits: Limits) -> Any:
    """Say whether a step is as small as it may be, up to the rounding of t + dt - t."""
    return size <= limits.dt_min * LANDING + ulp(t)
