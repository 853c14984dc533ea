"""torchdiffeq's event handling: a solve that goes on until `event_fn` changes its sign, however long that takes."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, TypeAlias

import torch
from torch import Tensor

from ..core import Control, Outcome, Problem, Times, tolerant
from ..events import Event
from ..executors import solved
from ..numbers import value

Assemble: TypeAlias = Callable[[Tensor, Times, Control], Problem]
"""Makes the problem that starts at a packed state, over these times, under this control."""

MOST = 20_000
"""Fixed steps until torchdiffeq gives up."""
STEPS = 64
"""Fixed steps of the first window."""
STEP_SIZE = "Event handling for fixed step solvers currently requires `step_size` to be provided in options."


def check_span(t: Any) -> None:
    """Refuse times that are not a start and a direction.

    Raises
    ------
    ValueError
    """
    if len(t) != 2:
        raise ValueError(
            f"We require len(t) == 2 when in event handling mode, but got len(t)={len(t)}: the start, and any time in "
            "the direction of the solve"
        )


def event_of(event_fn: Callable[..., Any], t0: Tensor, y0: Any) -> Event:
    """The event at which any entry of `event_fn(t, y)` changes its sign."""
    with torch.no_grad():
        start = torch.as_tensor(event_fn(t0, y0), device=t0.device)
    if start.numel() == 1:
        return Event(lambda t, y: event_fn(t, y).reshape(()), terminal=True)
    signs = torch.sign(start)
    signs = torch.where(signs == 0, torch.ones_like(signs), signs)
    return Event(lambda t, y: (event_fn(t, y) * signs).min(), terminal=True)


def until_event(
    assemble: Assemble, control: Control, event: Event, y0: Tensor, ts: Times, mode: bool | str
) -> tuple[Tensor, Tensor]:
    """Solve in windows, each twice as long as the one before, until the event happens.

    Returns
    -------
    tuple
        When, 0-dim, float64 on the CPU, and the packed state then; both with their graphs.

    Raises
    ------
    SolverError
        If the solve cannot go on.
    RuntimeError
        After as many fixed steps as torchdiffeq takes, or at the end of time.
    """
    sign, accepted, rejected = ts.sign, 0, 0
    length = STEPS * _size(control) if not control.adaptive else abs(ts.values[1] - ts.values[0])
    start, span, y = ts.values[0], ts, y0
    while True:
        end = start + sign * length
        if not math.isfinite(end):
            raise RuntimeError(f"no event happened up to t = {start:g}")
        span = Times((start, end), None if span.tensor is None else span.ending(1, end).tensor)
        p = assemble(y, span, control)
        p.stats.accepted, p.stats.rejected = accepted, rejected  # the limit is one of all windows
        _, outcome, course = solved(p, mode, (event,))
        if outcome.failure is not None:
            raise outcome.failure
        accepted, rejected = p.stats.accepted, p.stats.rejected
        if course is not None and course.end is not None:
            return course.end, outcome.ys[-1]
        if not control.adaptive and accepted >= MOST:
            raise RuntimeError(f"Reached maximum number of iterations {MOST}.")
        start, span, y, length = end, Times((end, end)), outcome.ys[-1], 2 * length
        control = _going_on(control, outcome)


def _size(control: Control) -> float:
    """The size of fixed steps.

    Raises
    ------
    AssertionError
        If they have none.
    """
    size: float | None = getattr(control, "dt", None)
    if size is None:
        raise AssertionError(STEP_SIZE)
    return size


def _going_on(control: Control, outcome: Outcome) -> Control:
    """The control of the next window, which starts with steps as long as the last ones."""
    own = tolerant(control)
    if own is None:
        return control
    sizes = [abs(value(b) - value(a)) for a, b in zip(outcome.times[-3:], outcome.times[-2:], strict=False)]
    return own.with_settings(dt0=max(sizes))
