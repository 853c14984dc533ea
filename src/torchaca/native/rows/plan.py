"""What each row has of its own, as arrays that the loops in C read: times, directions, limits, and where it got to."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ...core import Problem, tolerant
from ...loops.pace import Limits
from ...loops.rest import FADING, ROUNDING, STILL, TOTAL, Slope, least_between, looks, resolution
from ...loops.rows import Spans
from ...methods.stability import GOOD, SHARE, stability
from .. import records
from ..programs import Called
from ..tables import Held, pace_of, table_of, tolerance_of
from .reads import Rowed

STATE = np.dtype(
    [(field[0], np.float64 if field[1] is records.REAL else np.int64) for field in records.State._fields_]
)

WIDTH, MOST_BYTES = 8, 2**19
"""Samples side by side, as long as what a step of theirs takes is not larger: a processor's own cache."""
FIRST_STAGE = 7
"""The first stage in what lanes keep; see driver/rows.c."""

ENDS = ("t", "dt", "shortest", "accepted", "rejected", "calls", "reason")


@dataclass(frozen=True)
class Ended:
    """Where rows have ended: states, times, next and shortest steps, and what it took; why those failed that did."""

    y: Tensor
    t: Tensor
    dt: Tensor
    shortest: Tensor
    accepted: Tensor
    rejected: Tensor
    calls: Tensor
    reasons: dict[int, str]


def stages_of(p: Problem) -> int:
    """How many stages the method has, those of its interpolant included."""
    method: Any = p.method
    return len(method.nodes)


def width_of(p: Problem) -> int:
    """How many rows are solved side by side: the same for any number of them."""
    nbytes = p.y0[:1].numel() * p.y0.element_size()
    return WIDTH if nbytes * stages_of(p) * WIDTH <= MOST_BYTES else 1


class Plan:
    """The rows of a problem between times `(n, B)`; with fixed steps, which end at the `boundaries`, `(N + 1, B)`.

    f may jump at the times `jumps`, `(m,)`.
    """

    def __init__(
        self, p: Problem, wanted: Tensor, boundaries: Tensor | None, jumps: Tensor | None = None
    ) -> None:
        self.jumps = wanted.new_empty(0) if jumps is None else jumps
        self.p, self.size, self.n_ts = p, len(p.y0), len(wanted)
        y0 = p.y0.detach()
        self.n, self.shape, self.like = y0[:1].numel(), y0.shape, y0.new_empty(0)
        self.control = tolerant(p.control) if boundaries is None else None
        start, end = wanted[0], wanted[-1]
        span = (end - start).abs()
        spans = Spans.between(start, end, jumps)
        self.sign = torch.where(end < start, -1.0, 1.0).double()
        self.ts = wanted.T.contiguous()
        stops = torch.stack(spans.stops) if boundaries is None else boundaries[1:]
        self.stops = stops.T.contiguous()
        self.n_stops = (
            torch.searchsorted((self.sign * stops).T.contiguous(), (self.sign * end)[:, None])[:, 0] + 1
        )
        self.states = np.zeros(self.size, STATE)
        self.states["dt"], self.states["ratio"], self.states["older"] = math.nan, 1.0, 1.0
        self.states["rejected_size"] = self.states["shortest"] = math.inf
        self.states["reason"] = -1
        self.states["next_look"] = np.iinfo(np.int64).max
        self.exact = (records.FLAG * self.n_ts)(*[1] * self.n_ts)
        self.span, self.start, self.end = span, start, end
        if self.control is not None:
            self._limits(self.control)

    def _limits(self, control: Any) -> None:
        p, none = self.p, torch.zeros_like(self.span)
        if control.dt0 is not None:
            self.states["dt"] = max(control.dt0, control.dt_min)
        self.reach = (0.5 * (self.stops[:, 0] - self.start).abs()).clamp(max=control.dt_max)
        self.fallback = none + Limits.over(control, p.y0, self.span, self.sign).fallback
        self.least = none + least_between(self.start, self.end, control)
        self.looks, self.steepness = looks(p, control), none
        self.directions = (
            Slope.unknown(p.y0.detach(), 1).direction.contiguous().clone() if self.looks else self.like
        )

    def held(self) -> tuple[Held | None, records.Pace | None]:
        """The tolerance and the pace, for one thread."""
        if self.control is None:
            return None, None
        return tolerance_of(self.control, self.p.y0.detach(), self.n), pace_of(self.p, self.control)

    @property
    def stages(self) -> int:
        """How many the method has, those of its interpolant included."""
        return stages_of(self.p)

    @cached_property
    def width(self) -> int:
        """How many rows are solved side by side."""
        return width_of(self.p)

    def solve(
        self, tolerance: Held | None, pace: records.Pace | None, value: Called | None, pull: Called | None
    ) -> records.Solve:
        """What all rows have in common as the loops in C see it; the rest is put there for each row."""
        method: Any = self.p.method
        graphs = (None if called is None else records.address(called.graph) for called in (value, pull))
        return records.Solve(
            *(table_of(method).address, tolerance and tolerance.address, pace and records.address(pace)),
            *graphs,
            *(self.n, self.n_ts, 0, len(self.jumps), 0, 1.0),
            *(None, None, self.jumps.data_ptr(), records.address(self.exact)),
        )

    def rows(
        self,
        ends: tuple[int, int],
        tolerance: Held | None,
        pace: records.Pace | None,
        rowed: Rowed,
        stages: int = 1,
    ) -> Held:
        """The rows between two as the loops in C see them, with memory for lanes: so many times that of all stages."""
        r, width = records.Rows(), self.width
        (r.row, r.last), r.most_stops = ends, self.stops.shape[1]
        r.alone = int(self.p.log.on_failure != "raise")
        r.ts, r.stops = self.ts.data_ptr(), self.stops.data_ptr()
        r.signs, r.n_stops, r.states = self.sign.data_ptr(), self.n_stops.data_ptr(), self.states.ctypes.data
        r.inputs = rowed.count
        lists = rowed.places, rowed.counts, rowed.sizes, rowed.laid, rowed.bases
        r.places, r.counts, r.sizes, r.laid, r.bases = map(records.address, lists)
        lanes = (records.Lane * width)(*[records.Lane(-1)] * width)
        # Lanes without a row are at the start of the first one.
        t = self.like.new_empty(width).copy_(self.ts[0, 0].expand(width))
        work = self.like.new_zeros((FIRST_STAGE + stages * self.stages, self.n, width))
        work[:2] = self.p.y0.detach()[0].reshape(-1, 1)
        r.lanes, r.t, r.work = records.address(lanes), t.data_ptr(), work.data_ptr()
        if tolerance is not None and pace is not None:
            self._put_limits(r, tolerance, pace)
        return Held(r, [tolerance, pace, rowed, lanes, t, work])

    def _put_limits(self, r: records.Rows, tolerance: Held, pace: records.Pace) -> None:
        r.tolerance, r.pace = tolerance.address, records.address(pace)
        r.rtol, r.atol = tolerance.record.rtol, tolerance.record.atol
        limits = self.reach, self.fallback, self.span, self.least, self.directions, self.steepness
        r.reach, r.fallback, r.spans, r.least, r.directions, r.steepness = (x.data_ptr() for x in limits)
        theta, eps = stability(self.p.method).theta, resolution(self.p)
        r.theta, r.good, r.fading, r.still, r.rounding = theta, theta / SHARE, FADING, STILL, ROUNDING
        r.total = TOTAL / GOOD * theta / SHARE
        r.near, r.nearest, r.looks = max(1e-4, eps**0.5), eps**0.75, int(self.looks)

    def ended(self, y: Tensor) -> Ended:
        """Where the rows are, with their states."""
        states = {name: torch.from_numpy(self.states[name].copy()) for name in ENDS}
        failed = (states["reason"] >= 0).nonzero()[:, 0].tolist()
        reasons = {i: records.REASONS[int(states["reason"][i])] for i in failed}
        return Ended(y, **{name: states[name] for name in ENDS[:-1]}, reasons=reasons)
