"""A step of rows, each between times of its own: on the right side of jumps, and with what a method hands on."""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor

from ..core import Carrying, Method, Problem, Step, VectorField
from ..numbers import Time


def sided(f: VectorField, t0: Tensor, t1: Tensor, jumps: Tensor | None) -> VectorField:
    """`f` evaluated strictly inside of the steps from t0 to t1 at those of their ends that are jumps.

    As `field.field.inside`, but each row has ends of its own.
    """
    if jumps is None:
        return f
    call: Any = f
    start, end = (among(t, jumps) for t in (t0, t1))

    def shifted(t: Time, y: Tensor) -> Tensor:
        if t is t0:
            return call(t, y, nudge=torch.where(start, t1, t0))
        if t is t1:
            return call(t, y, nudge=torch.where(end, t0, t1))
        return f(t, y)

    return shifted


def among(t: Tensor, jumps: Tensor) -> Tensor:
    """Which times are those of jumps; `torch.isin` is not for lanes."""
    return (t.detach()[..., None] == jumps).any(-1)


def trial_of(
    p: Problem,
    times: tuple[Tensor, Tensor],
    start: Tensor,
    hint: Tensor | None,
    jumps: Tensor | None,
    *,
    lifts: bool = False,
) -> Step:
    """A step of a problem between `times`, or its graph: those are of methods that hand on nothing, without jumps.

    For the rest see `step_of`.
    """
    graphs: Any = p.f.stepper
    if graphs is not None:
        return graphs.made(p.f.call, times, start, hint, searches=p.control.adaptive)
    carried = p.carrying is not None
    return step_of(p.method, p.f.call, times, start, hint, jumps, carried=carried, lifts=lifts)


def step_of(
    method: Method,
    f: VectorField,
    times: tuple[Tensor, Tensor],
    start: Tensor,
    hint: Tensor | None,
    jumps: Tensor | None,
    *,
    carried: bool,
    lifts: bool = False,
) -> Step:
    """One step between `times`, from y, or from what was `carried`.

    If it `lifts`, some rows start at a jump, and do so from y alone.
    """
    t0, t1 = times
    f = sided(f, t0, t1, jumps)
    if not carried:
        return method.step(f, t0, t1, start, hint)
    own = cast("Carrying", method)
    if jumps is not None and lifts:
        start = torch.where(among(t0, jumps), own.lift(f, t0, start[0]), start)
    return own.resume(f, t0, t1, start)
