"""From the steps of samples to the one problem that makes them all; see `numbered`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from ..control import FixedSteps
from ..core import Carrying, Method, Problem, Reversible, Step, Times
from ..gradients import Facts
from ..numbers import Time
from .clock import Clock
from .gathering import Gathering, Parts
from .home import Home
from .numbered import Numbered, NumberedCarrying, NumberedReversible
from .outputs import Places


@dataclass(frozen=True)
class ByGraphs:
    """Makes the steps of a numbered problem from the graphs of those of its samples; see `torchaca.field.Field`."""

    graphs: Any

    def __call__(self, p: Problem, t0: Time, t1: Time, start: Tensor, hint: Tensor | None = None) -> Step:
        """The method's step."""
        method: Any = p.method
        return method.made(p.f.call, t0, t1, start, hint, self.graphs)


def kind_of(method: Method) -> type[Numbered | NumberedCarrying]:
    """Which of the three a method is."""
    if isinstance(method, Reversible):
        return NumberedReversible
    return NumberedCarrying if isinstance(method, Carrying) else Numbered


def numbered(
    p: Problem, clock: Clock, boundaries: Tensor, moving: Tensor | None, gathering: Gathering
) -> tuple[Problem, Callable[[Tensor], Tensor]]:
    """The problem whose time is the number of the step, and what chooses the outputs that were asked for from its own.

    `boundaries` `(N + 1, B)` are the ends of the samples' steps, `moving` the same with derivatives.
    """
    assert p.gradient is not None
    lands = moving is None or moving is clock.moving
    outputs = None if lands else clock.wanted if clock.moving is None else clock.moving
    last = None if lands else clock.last
    if last is not None and getattr(p.control, "by_outputs", False):
        last = torch.full_like(
            last, len(clock.wanted)
        )  # where outputs share a time, the first one moves the step
    parts = Facts.of(p.gradient).substeps
    places = Places.of(clock.wanted, boundaries, parts=parts, moving=outputs, last=last)
    samples, shape = gathering.samples, (*boundaries.shape, *[1] * (p.y0.ndim - 1))
    times, home = boundaries.reshape(shape), Home.of(p, samples, clock.wanted[0])
    p = home.started(p, samples.spread(clock.ends[0]))
    moved = None if moving is None else moving.reshape(shape)
    method: Any = kind_of(p.method)(
        p.method, times, Parts(times, home, gathering), places, moved, lands, clock.jumps
    )
    grid = Times(tuple(map(float, range(len(boundaries)))))
    stepper = None if p.f.stepper is None else ByGraphs(p.f.stepper)
    f, ts, control = replace(p.f, stepper=stepper), Times(tuple(places.numbers)), FixedSteps(grid=grid)
    q = replace(p, method=method, f=f, ts=ts, control=control)
    return q, places.chosen
