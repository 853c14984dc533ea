"""From the steps of samples to the one problem that makes them all; see `numbered`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from ..control import FixedSteps
from ..core import Carrying, Method, Problem, Reversible, Times
from ..gradients import Facts
from .clock import Clock
from .gathering import Gathering, Parts
from .home import Home
from .numbered import Numbered, NumberedCarrying, NumberedReversible
from .outputs import Places


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
    q = replace(p, method=method, ts=Times(tuple(places.numbers)), control=FixedSteps(grid=grid))
    return q, places.chosen
