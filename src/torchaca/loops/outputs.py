"""From accepted steps to outputs at the requested times."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import nullcontext

from torch import Tensor

from ..core import Outcome, Problem, Step, Times
from ..errors import SolverError
from ..layout import joined
from ..numbers import Time, value


def gather(p: Problem, accepted: Iterable[Step]) -> Outcome:
    """The outputs of a run; a failure of the loop ends it with the outputs reached so far.

    A loop that ends before the last output time, at an event, ends there with one more output.
    """
    done, n, sign = p.ts.at_start(), len(p.ts.values), p.ts.sign
    parts = [p.y0[None]] * done if p.save is None else p.save.at_start(p, done)
    emitted = emit if p.save is None else p.save.emitted
    times, bases = [p.ts.values[0]], []
    boundaries = [p.ts[0]]
    failure = step = None
    try:
        for step in accepted:
            t1 = step.t1
            times.append(t1 if isinstance(t1, float) else value(t1))
            boundaries.append(t1)
            if done < n and sign * times[-1] >= sign * p.ts.values[done]:
                reached = n if times[-1] == p.ts.values[-1] else p.ts.up_to(times[-1])
                with p.aside() if p.effects else nullcontext():
                    parts.append(emitted(p.ts, step, done, reached))
                done = reached
            if p.dense:
                with p.aside():
                    bases.append(step.basis())
    except SolverError as error:
        failure = error.with_traceback(None)  # its frames hold all states
    ts, last = p.ts if done == n else p.ts.first(done), p.y0 if step is None else step.y1
    if done < n and failure is None:
        parts.append(last[None])
        ts = p.ts.ending(done, times[-1])
    ys, end = joined(parts, parts[0][0]), None if p.save is None else last
    carry = carried(p, step) if p.carrying and failure is None and done == n else None
    return Outcome(ys, ts, failure, times, bases, boundaries, carry, end)


def carried(p: Problem, step: Step | None) -> Tensor | None:
    """What the method hands on at the end of a step beside y, `(rows - 1, *y0.shape)`; None if that is y alone."""
    if step is None or p.carrying is None or p.fresh(step.t1):
        return None
    return p.handed(step)[1:]


def inside(ts: Times, t1: Time, first: int, last: int) -> list[int]:
    """Which of the outputs `first:last`, all in a step to `t1`, are on its interpolant; the others are its end state.

    Where one of the two times is differentiated, an output is the end state only if the step ends there because of it,
    at the very same object; another one that happens to fall on the same value moves along the interpolant.
    """
    if ts.moving or isinstance(t1, Tensor):
        return [i for i in range(first, last) if ts[i] is not t1]
    return [i for i in range(first, last) if ts.values[i] != t1]


def emit(ts: Times, step: Step, first: int, last: int, end: Time | None = None) -> Tensor:
    """The outputs `first:last`, which lie in the step: `(last - first, *y.shape)`.

    `end` is the time at which it ends, if it is a replay whose own stands for that.
    """
    within = inside(ts, step.t1 if end is None else end, first, last)
    parts = [step.at([ts[i] for i in within])] if within else []
    parts += [step.y1[None]] * (last - first - len(within))
    ys = joined(parts, step.y1) if len(parts) > 1 else parts[0]
    order = [*within, *(i for i in range(first, last) if i not in within)]
    return ys if order == sorted(order) else ys[[order.index(i) for i in range(first, last)]]
