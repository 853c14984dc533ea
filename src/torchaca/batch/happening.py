"""What happens at the ends of a stretch: the events of each sample, in their order, and its state after them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..events.guard import Guard
from ..events.moment import Moment
from ..events.watch import ROUNDING, TINY
from ..loops.rows import Samples
from ..numbers import column
from .home import Home
from .moments import Landing
from .stretch import Stretch


@dataclass(frozen=True)
class Happened:
    """What has happened to samples.

    Attributes
    ----------
    first : Moment
        Of the first event of each, `(B,)` and `(B, ...)`.
    now : Moment
        After all of them.
    noted : sequence
        For each event: to which samples it has happened, when, and the states just before.
    ended, grazing : Tensor
        `(B,)`: for which samples a terminal one has happened, and for which one has no derivative.
    zeros : Tensor
        `(G, B)`, for the next `RowWatch`.
    sizes : Tensor
        `(B,)`, of the next first steps; nan where the state has jumped.
    """

    first: Moment
    now: Moment
    noted: Sequence[tuple[Tensor, Tensor, Tensor]]
    ended: Tensor
    grazing: Tensor
    zeros: Tensor
    sizes: Tensor


def happen(of: Stretch, guards: Sequence[Guard], samples: Samples) -> Happened:
    """See `Happened`; samples that have come to no event are at home meanwhile."""
    p, watch, found = of.p, of.watch, of.found
    assert watch is not None
    home, start = Home.of(p, samples, of.clock.wanted[0]), of.clock.wanted[0]
    t = torch.where(found, watch.at, home.t.flatten())
    y = torch.where(column(found, home.y, 1), of.ys[-1], home.y)
    landing = Landing(p, start, t, y, watch.size, watch.slope, of.clock.jumps)
    fired, scales = watch.fired & found, watch.scales.clamp(min=TINY)
    some = [guard for guard, so in zip(guards, fired.any(1).tolist(), strict=True) if so]
    alone = {guard: landing.moment(guard, scales[guard.index], fired[guard.index]) for guard in some}
    first = now = Moment(t, y)
    none = torch.zeros_like(found)
    behind, ended, jumped, grazing = none, none, none, none
    noted = [(none, t, y)] * len(guards)
    for guard, (own, grazes) in alone.items():
        here, scale = fired[guard.index] & ~ended, scales[guard.index]
        grazing, at = grazing | (here & grazes), own.t
        begins, joins = here & ~behind, here & behind
        if bool(joins.any()):
            now, at = landing.following(guard, own, now, scale, joins)
        first, now = _where(begins, own, first), _where(begins, own, now)
        noted[guard.index] = (here, at, now.y)
        behind = behind | here
        if guard.event.terminal:
            ended = ended | here
        else:
            now = Moment(now.t, guard.applied(now.t, now.y, here))
        jumped = jumped | here if guard.event.apply is not None else jumped
    zeros = _zeros(guards, fired, scales, first, now.y)
    sizes = torch.where(jumped, torch.nan, watch.size)
    return Happened(first, now, noted, ended, grazing, zeros, sizes)


def _where(mask: Tensor, one: Moment, other: Moment) -> Moment:
    return Moment(torch.where(mask, one.t, other.t), torch.where(column(mask, one.y, 1), one.y, other.y))


@torch.no_grad()
def _zeros(guards: Sequence[Guard], fired: Tensor, scales: Tensor, first: Moment, state: Tensor) -> Tensor:
    """How small g is still zero; see `events.course`."""
    eps, zeros = torch.finfo(state.dtype.to_real()).eps, []
    for guard in guards:
        before, after = (guard(first.t.detach(), y.detach()).double() for y in (first.y, state))
        own = 4 * before.abs() + ROUNDING * eps * scales[guard.index]
        other = torch.where(before == after, 0.0, torch.nan)
        zeros.append(torch.where(fired[guard.index], own, other))
    return torch.stack(zeros)
