"""The search for the step sizes of rows: a trial is made for all of them, and each accepts or rejects its own.

Rows are lanes of `torch.func.vmap`, or the samples of a batch; see `rows`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from itertools import pairwise
from typing import TYPE_CHECKING, TypeAlias

import torch
from torch import Tensor

from ..core import Log, Problem, Step
from ..errors import SolverError
from ..torch_internals import forward_grad, plain
from .pace import BAD_RATIO, Limits, accepts, first_dt, next_dt, propose, refusals
from .rest import ROOM, ROUNDING, STILL, Slope, least_between, longest, looks, resolution
from .rows import Rows, Spans

if TYPE_CHECKING:
    from .adaptive import Adaptive
    from .rule import StepRule

WORDS = {
    "step-size": "a step size fell below what time can resolve",
    "underflow": "a step size fell below the smallest number of the state's dtype",
    "dt-min": "the error is too large at dt_min = {dt_min:g}",
    "max-steps": "max_steps = {max_trials} trials are used up",
    "rejections": "{most_rejections} trials in a row were rejected",
}
KINDS = {"underflow": "step-size", "rejections": "step-size"}
"""Kinds of `SolverError` by the reason to give up, if they have other names."""

Explain: TypeAlias = "Callable[[Search, str, Tensor], SolverError]"
"""Explains why the rows of a mask cannot go on, for a reason of `WORDS`."""


Watch: TypeAlias = Callable[[Step, Tensor, Tensor, Tensor], None]
"""Sees a trial of all rows: the step, its times, and which rows have accepted it."""


@dataclass
class Search:
    """Where the rows are, and how they came there.

    `y` and `f0` are states, all other tensors plain, `(*rows,)`: in lanes that makes their many small operations
    cheaper. `rejections` counts the trials that were rejected in a row, the last of `rejected_size`. With `alone`, rows
    that fail stop where they are and the others go on; `failure` is that of the first. `room` says whose last step had
    an error that says nothing (see `rest`), and `rests` whether any had; `slope` is None if nobody asks.
    """

    p: Problem
    rule: StepRule | Adaptive
    control: Adaptive
    limits: Limits
    rows: Rows
    spans: Spans
    explain: Explain
    y: Tensor
    f0: Tensor | None
    t: Tensor
    dt: Tensor
    ratios: list[Tensor]
    rejections: Tensor
    rejected_size: Tensor
    failed: Tensor
    room: Tensor
    slope: Slope | None
    alone: bool = False
    watch: Watch | None = None
    rests: bool = False
    before: Tensor | None = None
    failure: SolverError | None = None
    history: list[tuple[Tensor, Tensor, Tensor]] = field(default_factory=list)

    @staticmethod
    def of(
        p: Problem,
        control: Adaptive,
        rule: StepRule | Adaptive,
        rows: Rows,
        spans: Spans,
        *,
        guess: Callable[[Problem, Tensor], Tensor],
        explain: Explain,
        alone: bool = False,
        watch: Watch | None = None,
    ) -> Search:
        """At the start, where every state and `p.f0` have all rows.

        `guess` makes the first step sizes, if the control has none; `watch` is told of each trial.
        """
        f0 = p.f0
        assert f0 is not None
        with torch.no_grad(), forward_grad(False):
            y0, f0 = p.y0.detach(), f0.detach()
            p = replace(p.knowing(f0), y0=y0, log=Log(p.stats))
            dt0 = guess(p, f0) if control.dt0 is None else None
        with plain():
            limits, t = Limits.over(control, y0, abs(spans.end - spans.start), spans.sign), spans.start
            given = max(control.dt0 or 0.0, control.dt_min)
            dt = torch.full_like(t, given) if dt0 is None else first_dt(dt0, t, limits)
            none, never = torch.zeros_like(t), torch.full_like(t, torch.inf)
            ratios, no = [torch.ones_like(t)] * 2, none.bool()
        slope = Slope(Slope.unknown(y0, rows.batch).direction, rows.each(none)) if looks(p, control) else None
        states = (y0, f0, t, dt, ratios, none, never, no, no, slope)
        return Search(p, rule, control, limits, rows, spans, explain, *states, alone, watch)

    def boundaries(self) -> Tensor:
        """The times between which each row steps, padded with its end: `(n, *rows)`."""
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

    def counts(self) -> tuple[Tensor, Tensor]:
        """How many trials each row has accepted, and how many rejected."""
        none = torch.zeros_like(self.t, dtype=torch.int64)
        accepted = sum((success for _, _, success in self.history), none)
        return accepted, sum((active for _, active, _ in self.history), none) - accepted

    def _propose(self) -> tuple[Tensor, Tensor, Tensor] | None:
        """Which rows are on their way, where their next trials end, and which of them a stop cuts short."""
        with plain():
            t = self.t
            active, stop = (t != self.spans.end) & ~self.failed, self._next_stop()
            t1, clipped = propose(t, self.dt, stop, self.limits)
            going = self._going(active, (t1 - t).abs(), t1 == stop)
            if not self.rests:
                return None if going is None else (going, torch.where(going, t1, t), clipped)
        self._bound()
        return self._propose()

    def _bound(self) -> None:
        """Bound the next steps of rows at rest; see `rest`. All rows look, those with room take the answer."""
        p, rows, known, before = self.p, self.rows, self.slope, self.before
        assert known is not None
        assert before is not None
        motion = rows.gathered(self.rule.motion(before, self.y))
        with plain():
            here = self.room & ((motion <= STILL) | (self.ratios[0] <= ROUNDING))
        t = rows.spread(self.t)
        self.f0 = p.f.call(t, self.y) if self.f0 is None else self.f0
        point = (t, self.y, self.f0, self.control.atol, resolution(p))
        seen = known.looked(p.f.call, *point, batch=rows.batch)
        direction = torch.where(rows.spread(here), seen.direction, known.direction)
        self.slope = Slope(direction, torch.where(rows.each(here), seen.steepness, known.steepness))
        steepness = rows.gathered(self.slope.steepness)
        with plain():
            start, end = self.spans.start, self.spans.end
            bound = longest(steepness, p.method, abs(end - start))
            bound = torch.maximum(bound, least_between(start, end, self.control))
            self.dt = torch.where(here, torch.minimum(self.dt, bound), self.dt)
            self.room = torch.zeros_like(here)

    def _try(self, active: Tensor, t1: Tensor, clipped: Tensor) -> None:
        """One trial in every row; the rows that are not active stay where they are."""
        control, spread = self.control, self.rows.spread
        step = self.p.step(spread(self.t), spread(t1), self.y, self.f0)
        ratio = self.rows.gathered(self.rule.ratio(step))
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
        if self.watch is not None:
            self.watch(step, self.t, t1, success)
        with plain():
            self.t = torch.where(success, t1, self.t)
            if self.slope is not None:
                self.room = success & (ratio <= ROOM) & (t1 != self.spans.end)
            self.history.append((t1, active, success))
        here, f1, self.before = spread(success), step.hint, self.y
        self.y = torch.where(here, step.y1, self.y)
        self.f0 = None if f1 is None else torch.where(here, f1, step.f0)

    def _next_stop(self) -> Tensor:
        """The nearest time ahead of each row where a step has to end."""
        *earlier, stop = self.spans.stops
        for one in reversed(earlier):
            stop = torch.where(self.spans.sign * (one - self.t) > 0, one, stop)
        return stop

    def _going(self, active: Tensor, size: Tensor, lands: Tensor) -> Tensor | None:
        """Which of the rows that are on their way can make a trial of that size, None if none is left.

        Reads the device once, also whether a row rests, and once more where a row has failed.

        Raises
        ------
        SolverError
            Where a row cannot, unless rows fail alone.
        """
        trials, limits = len(self.history), self.limits
        found = refusals(self.t, size, lands, self.rejections, self.rejected_size, trials, limits)
        masks = [active & holds for holds in found.values()]
        goes, self.rests, *fails = torch.stack([active, self.room, *masks]).flatten(1).any(1).tolist()
        for fails_so, reason, mask in zip(fails, found, masks, strict=True):
            if not fails_so:
                continue
            failure = self.explain(self, reason, mask)
            if not self.alone:
                raise failure
            self.failure = self.failure or failure
            self.failed = self.failed | mask
        if any(fails):
            active = active & ~self.failed
            goes = bool(active.any())
        return active if goes else None
