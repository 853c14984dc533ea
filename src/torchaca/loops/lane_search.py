"""The search for step sizes in lanes of `torch.func.vmap`: a trial is made for all lanes, each accepts its own."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from itertools import pairwise
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ..core import Log, Problem
from ..errors import SolverError
from ..torch_internals import (
    as_lane,
    forward_grad,
    from_lanes,
    get_unwrapped,
    is_batchedtensor,
    is_functorch_wrapped_tensor,
    maybe_get_bdim,
    maybe_get_level,
    plain,
)
from .pace import BAD_RATIO, Limits, accepts, first_dt, next_dt, propose, refusals
from .rest import ROOM, ROUNDING, STILL, Slope, least, longest, looks, resolution

if TYPE_CHECKING:
    from .adaptive import Adaptive

WORDS = {
    "step-size": "a step size fell below what time can resolve",
    "underflow": "a step size fell below the smallest number of the state's dtype",
    "dt-min": "the error is too large at dt_min = {dt_min:g}",
    "max-steps": "max_steps = {max_trials} trials are used up",
    "rejections": "{most_rejections} trials in a row were rejected",
}
KINDS = {"underflow": "step-size", "rejections": "step-size"}
"""Kinds of `SolverError` by the reason to give up, if they have other names."""


@dataclass(frozen=True)
class Lanes:
    """The maps around a solve: level and size of each, the outermost first."""

    maps: list[tuple[int, int]]

    @staticmethod
    def of(x: Tensor) -> Lanes:
        """Those of a tensor that has all lanes."""
        maps: list[tuple[int, int]] = []
        while is_functorch_wrapped_tensor(x):
            inside = get_unwrapped(x)
            if is_batchedtensor(x):
                maps.append((maybe_get_level(x), inside.shape[maybe_get_bdim(x)]))
            x = inside
        return Lanes(maps[::-1])

    @property
    def shape(self) -> list[int]:
        return [size for _, size in self.maps]

    def spread(self, x: Tensor) -> Tensor:
        """A plain tensor with the lanes in front, as each lane sees it."""
        for level, _ in self.maps:
            x = as_lane(x, level)
        return x

    def gathered(self, x: Tensor) -> Tensor:
        """The plain tensor of all lanes, which are in front."""
        for level, size in reversed(self.maps):
            x = from_lanes(_without_transforms(x), level, size)
        return _without_transforms(x)


def _without_transforms(x: Tensor) -> Tensor:
    """Without what other transforms than vmap have put around it."""
    while is_functorch_wrapped_tensor(x) and not is_batchedtensor(x):
        x = get_unwrapped(x)
    return x


@dataclass
class Search:
    """Where the lanes are, and how they came there.

    `y` and `f0` are as each lane sees them, all other tensors plain, `(*lanes,)`: that makes their many small
    operations cheaper. `rejections` counts the trials that were rejected in a row, the last of `rejected_size`. With
    `alone`, lanes that fail stop where they are and the others go on; `failure` is that of the first. `room` says whose
    last step had an error that says nothing (see `rest`), and `rests` whether any had; `slope` is None if nobody asks.
    """

    p: Problem
    control: Adaptive
    limits: Limits
    lanes: Lanes
    y: Tensor
    f0: Tensor | None
    t: Tensor
    dt: Tensor
    stops: list[Tensor]
    ratios: list[Tensor]
    rejections: Tensor
    rejected_size: Tensor
    failed: Tensor
    room: Tensor
    slope: Slope | None
    alone: bool = False
    rests: bool = False
    before: Tensor | None = None
    failure: SolverError | None = None
    history: list[tuple[Tensor, Tensor, Tensor]] = field(default_factory=list)

    @staticmethod
    def of(p: Problem, control: Adaptive, alone: bool = False) -> Search:
        """At the start, where every state and `p.f0` have all lanes."""
        f0, lanes = p.f0, Lanes.of(p.y0)
        assert f0 is not None
        with torch.no_grad(), forward_grad(False):
            y0, f0 = p.y0.detach(), f0.detach()
            p = replace(p.knowing(f0), y0=y0, log=Log(p.stats))
            dt0 = lanes.gathered(control.initial_step(p, f0)) if control.dt0 is None else None
        limits = Limits.of(p, control)
        with plain():
            t = torch.full(lanes.shape, p.ts.values[0], dtype=torch.float64, device=y0.device)
            given = max(control.dt0 or 0.0, control.dt_min)
            dt = torch.full_like(t, given) if dt0 is None else first_dt(dt0, t, limits)
            stops = [torch.full_like(t, stop) for stop in control.stops(p.ts)]
            none, never = torch.zeros_like(t), torch.full_like(t, torch.inf)
            ratios, no = [torch.ones_like(t)] * 2, none.bool()
        slope = Slope(Slope.unknown(y0).direction, lanes.spread(none)) if looks(p, control) else None
        return Search(
            p, control, limits, lanes, y0, f0, t, dt, stops, ratios, none, never, no, no, slope, alone
        )

    def boundaries(self) -> Tensor:
        """The times between which each lane steps, padded with its end: `(n, *lanes)`."""
        start, stats = self.t, self.p.stats
        with torch.no_grad(), forward_grad(False):
            while proposed := self._propose():
                self._try(*proposed)
        if not self.history:
            return start[None]
        with plain():
            times, active, accepted = map(torch.stack, zip(*self.history, strict=True))
            numbers = accepted.cumsum(0)
            stats.accepted += (most := int(numbers[-1].max()))
            stats.rejected += int((active.sum(0) - numbers[-1]).max())
            boundaries = self.t.expand(most + 1, *self.t.shape).clone()
            boundaries.scatter_(0, numbers * accepted, times)  # rejected trials: to row 0
            boundaries[0] = start
        return boundaries

    def _propose(self) -> tuple[Tensor, Tensor, Tensor] | None:
        """Which lanes are on their way, where their next trials end, and which of them a stop cuts short."""
        with plain():
            t = self.t
            active, stop = (t != self.stops[-1]) & ~self.failed, self._next_stop()
            t1, clipped = propose(t, self.dt, stop, self.limits)
            going = self._going(active, (t1 - t).abs(), t1 == stop)
            if not self.rests:
                return None if going is None else (going, torch.where(going, t1, t), clipped)
        self._bound()
        return self._propose()

    def _bound(self) -> None:
        """Bound the next steps of lanes at rest; see `rest`. All lanes look, those with room take the answer."""
        p, known, spread, before = self.p, self.slope, self.lanes.spread, self.before
        assert known is not None
        assert before is not None
        motion = self.lanes.gathered(self.control.motion(before, self.y))
        with plain():
            here = self.room & ((motion <= STILL) | (self.ratios[0] <= ROUNDING))
        t, mine = spread(self.t), spread(here)
        self.f0 = p.f.call(t, self.y) if self.f0 is None else self.f0
        seen = known.looked(p.f.call, t, self.y, self.f0, self.control.atol, resolution(p))
        direction = torch.where(mine, seen.direction, known.direction)
        self.slope = Slope(direction, torch.where(mine, seen.steepness, known.steepness))
        steepness = self.lanes.gathered(self.slope.steepness)
        with plain():
            span = abs(p.ts.values[-1] - p.ts.values[0])
            bound = longest(steepness, p.method, span).clamp(min=least(p, self.control))
            self.dt = torch.where(here, torch.minimum(self.dt, bound), self.dt)
            self.room = torch.zeros_like(here)

    def _try(self, active: Tensor, t1: Tensor, clipped: Tensor) -> None:
        """One trial in every lane; the lanes that are not active stay where they are."""
        control, spread = self.control, self.lanes.spread
        step = self.p.step(spread(self.t), spread(t1), self.y, self.f0)
        ratio = self.lanes.gathered(control.ratio(step))
        with plain():
            ratio, size = ratio.double(), (t1 - self.t).abs()
            forced = control.accept_at_dt_min
            success = active & accepts(ratio, self.t, size, self.limits, at_least_dt_min=forced)
            ratios = [ratio.nan_to_num(nan=BAD_RATIO, posinf=BAD_RATIO, neginf=BAD_RATIO), *self.ratios]
            trial, calm = (size, clipped, success), self.rejections > 0
            self.dt = next_dt(control, self.p.method.order, self.dt, ratios, trial, calm, self.limits)
            self.ratios = [torch.where(success, *pair) for pair in pairwise(ratios)]
            self.rejections = torch.where(success, 0.0, self.rejections + 1)
            self.rejected_size = size
            self.t = torch.where(success, t1, self.t)
            if self.slope is not None:
                self.room = success & (ratio <= ROOM) & (t1 != self.stops[-1])
            self.history.append((t1, active, success))
        here, f1, self.before = spread(success), step.hint, self.y
        self.y = torch.where(here, step.y1, self.y)
        self.f0 = None if f1 is None else torch.where(here, f1, step.f0)

    def _next_stop(self) -> Tensor:
        """The nearest time ahead of each lane where a step has to end."""
        *earlier, stop = self.stops
        for one in reversed(earlier):
            stop = torch.where(self.p.ts.sign * (one - self.t) > 0, one, stop)
        return stop

    def _going(self, active: Tensor, size: Tensor, lands: Tensor) -> Tensor | None:
        """Which of the lanes that are on their way can make a trial of that size, None if none is left.

        Reads the device once, also whether a lane rests, and once more where a lane has failed.

        Raises
        ------
        SolverError
            Where a lane cannot, unless lanes fail alone.
        """
        trials, limits = len(self.history), self.limits
        found = refusals(self.t, size, lands, self.rejections, self.rejected_size, trials, limits)
        masks = [active & holds for holds in found.values()]
        goes, self.rests, *fails = torch.stack([active, self.room, *masks]).flatten(1).any(1).tolist()
        for fails_so, reason, lanes in zip(fails, found, masks, strict=True):
            if not fails_so:
                continue
            failure = self._failure(reason, lanes)
            if not self.alone:
                raise failure
            self.failure = self.failure or failure
            self.failed = self.failed | lanes
        if any(fails):
            active = active & ~self.failed
            goes = bool(active.any())
        return active if goes else None

    def _failure(self, reason: str, lanes: Tensor) -> SolverError:
        t, dt = self.t[lanes].min().item(), self.dt.max().item()
        words = WORDS[reason].format(**vars(self.limits))
        message = f"a lane of vmap stopped at t = {t:.10g}: {words}. try: that lane alone, outside of vmap."
        return SolverError(KINDS.get(reason, reason), message, t=t, dt=dt, stats=self.p.stats)
