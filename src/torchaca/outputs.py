"""From accepted steps to outputs at the requested times."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Protocol

import torch
from torch import Tensor

from .core import Outcome, Problem, Step, Time, Times, value
from .errors import SolverError


def gather(p: Problem, accepted: Iterable[Step]) -> Outcome:
    """The outputs of a run; a failure of the loop ends it with the outputs reached so far."""
    done = p.ts.at_start()
    parts = [torch.stack([p.y0] * done)]
    times, bases = [p.ts.values[0]], []
    failure = None
    try:
        for step in accepted:
            times.append(value(step.t1))
            reached = p.ts.up_to(times[-1])
            if reached > done:
                parts.append(emit(p.ts, step, done, reached))
                done = reached
            if p.dense:
                bases.append(step.basis())
    except SolverError as error:
        failure = error
    return Outcome(torch.cat(parts) if len(parts) > 1 else parts[0], failure, times, bases)


class Ended(Protocol):
    """Anything that knows where it ends."""

    @property
    def t1(self) -> Time: ...


def split(ts: Times, step: Ended, first: int, last: int) -> int:
    """The outputs `first:last` lie in the step; those from the returned index on are its end state.

    An output whose time carries a derivative is the end state only if the step ends there because of it;
    another one that happens to fall on the same value moves along the interpolant.
    """
    if ts.tensor is not None:
        inside = sum(ts[i] is not step.t1 for i in range(first, last))
    else:
        end = value(step.t1)
        inside = sum(ts.values[i] != end for i in range(first, last))
    return first + inside


def emit(ts: Times, step: Step, first: int, last: int) -> Tensor:
    """The outputs `first:last`, which lie in the step: `(last - first, *y.shape)`."""
    middle = split(ts, step, first, last)
    parts: list[Tensor] = []
    if middle > first:
        parts.append(step.at([ts[i] for i in range(first, middle)]))
    if last > middle:
        parts.append(step.y1.expand(last - middle, *step.y1.shape))
    return torch.cat(parts) if len(parts) > 1 else parts[0]
