"""The search for the step sizes of rows: a trial is made for all of them, and each accepts or rejects its own.

Rows are lanes of `torch.func.vmap`, or the samples of a batch; see `rows`. Samples that are done are left out where
that pays.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import TYPE_CHECKING, TypeAlias, cast

import torch
from torch import Tensor

from ..core import CarryingStep, Log, Problem, Step, VectorField
from ..errors import SolverError
from ..torch_internals import forward_grad, plain
from .pace import BAD_RATIO, Limits, accepts, doubtful, first_dt, next_dt, reached, refusals
from .rest import ROOM, ROUNDING, STILL, Slope, least_between, longest, looks, resolution
from .row_steps import sided, trial_of
from .row_trials import Trial, Trials
from .rows import PRICE, Rows, Spans

if TYPE_CHECKING:
    from .adaptive import Adaptive
    from .rule import StepRule

Explain: TypeAlias = "Callable[[Search, str, Tensor], SolverError]"
"""Explains why the rows of a mask cannot go on, for a reason of `WORDS`."""

Watch: TypeAlias = "Callable[[Search, Step, Tensor, Tensor], None]"
"""Sees a trial of the rows that are searched: the step, when it ends, and which rows have accepted it."""

Cut: TypeAlias = "Callable[[Search, Step, Tensor, Tensor], tuple[Tensor, Tensor]]"
"""Sees the same. Says when the trial is to end for each row, and which rows are done there, before its end."""

Fewer: TypeAlias = "Callable[[Tensor], tuple[VectorField, StepRule, Rows, Tensor | float] | None]"
"""The f of some rows, by their numbers, and the rule, the rows and the absolute tolerance that go with it."""


@dataclass
class Search:
    """Where the rows are, and how they came there.

    `y`, `f0` and `carry`, what the method hands on, are states, all other tensors plain, `(*rows,)`: in lanes that
    makes their many small operations cheaper. `rejections` counts the trials that were rejected in a row, the last of
    `rejected_size`. With `alone`, rows that fail stop where they are and the others go on; `failure` is that of the
    first. `room` says whose last step had an error that says nothing (see `rest`), and `rests` whether any had; `slope`
    is None if nobody asks. `jumps` are times at which f may jump. With `fewer`, rows that are done are left out;
    `index` are the numbers of those that are not, None if all are searched; `idle` rows have been computed for nothing
    since then. No time is farther from zero than `farthest`, and no row has `made` more than `most_made` trials before.
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
    trials: Trials
    atol: Tensor | float
    made: Tensor
    carry: Tensor | None = None
    alone: bool = False
    watch: Watch | None = None
    jumps: Tensor | None = None
    fewer: Fewer | None = None
    cut: Cut | None = None
    index: Tensor | None = None
    farthest: float = 0.0
    most_made: float = 0.0
    rests: bool = False
    going: int = 0
    idle: int = 0
    before: Tensor | None = None
    failure: SolverError | None = None

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
        jumps: Tensor | None = None,
        fewer: Fewer | None = None,
        cut: Cut | None = None,
        made: Tensor | None = None,
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
            start = rows.spread(spans.start)
            carry = None if p.carrying is None else p.carrying.lift(p.f.call, start, y0, f0)
        with plain():
            limits, t = Limits.over(control, y0, abs(spans.end - spans.start), spans.sign), spans.start
            given = max(control.dt0 or 0.0, control.dt_min)
            dt = torch.full_like(t, given) if dt0 is None else first_dt(dt0, t, limits)
            none, never = torch.zeros_like(t), torch.full_like(t, torch.inf)
            ratios, no = [torch.ones_like(t)] * max(1, control.older), none.bool()
            made = none if made is None else made
            farthest = torch.stack([abs(spans.start), abs(spans.end)]).max().item()
        slope = Slope(Slope.unknown(y0, rows.batch).direction, rows.each(none)) if looks(p, control) else None
        states = (y0, f0, t, dt, ratios, none, never, no, no, slope, Trials(t), control.atol)
        last = (carry, alone, watch, jumps, fewer, cut, None, farthest, made.max().item())
        return Search(p, rule, control, limits, rows, spans, explain, *states, made, *last)

    def boundaries(self) -> Tensor:
        """The times between which each row steps, padded with its end: `(n, *rows)`."""
        stats = self.p.stats
        with torch.no_grad(), forward_grad(False):
            while proposed := self._propose():
                self._try(proposed)
        trials = self.trials
        with plain():
            if self.index is not None:
                self._note_left()
                self.t, self.y, self.failed = trials.t, trials.y, trials.failed
            if not trials.n:
                return trials.start[None]
            boundaries, rejected = trials.boundaries(self.t)
            stats.accepted += len(boundaries) - 1
            stats.rejected += rejected
        return boundaries

    def _propose(self) -> Trial | None:
        """The next trial of the rows that are on their way, None if none is."""
        with plain():
            t = self.t
            active, stop = t != self.spans.end, self.spans.next_stop(t)
            t1, lands, short = reached(t, self.dt, stop, self.limits)
            size = (t1 - t).abs()
            self.room = self.room & active if self.slope is not None else self.room
            going = self._going(active, size, (t1, stop))
            few = self.fewer is not None and self.idle >= PRICE * len(t) > 0 and self.going < len(t)
            if not self.rests and (going is None or not few or not self._leave(going)):
                goes_on = len(self.spans.stops) > 1 or self.cut is not None
                clipped = lands & short() if goes_on else None
                return None if going is None else Trial(going, t1, size, clipped)
        if self.rests:
            self._bound()
        return self._propose()

    def _leave(self, going: Tensor) -> bool:
        """Leave out the rows that are done, if f allows that."""
        left = going.nonzero()[:, 0]
        index = left if self.index is None else self.index[left]
        found = None if self.fewer is None else self.fewer(index)
        if found is None:
            self.fewer = None
            return False
        self._note_left()
        call, self.rule, self.rows, self.atol = found
        self.p, self.index = self.p.calling(call), index
        self.trials.leave(index)
        self.idle = 0
        self.spans, n = self.spans.of(left), self.y.ndim
        self.limits = replace(self.limits, sign=self.spans.sign)
        for name in ("t", "dt", "rejections", "rejected_size", "failed", "room", "made"):
            setattr(self, name, getattr(self, name)[left])
        for name in ("y", "f0", "carry", "before"):
            x = getattr(self, name)
            setattr(self, name, None if x is None else x.index_select(x.ndim - n, left))
        self.ratios = [ratio[left] for ratio in self.ratios]
        if self.slope is not None:
            self.slope = Slope(self.slope.direction[left], self.slope.steepness[left])
        return True

    def _note_left(self) -> None:
        """Note where the rows are, before some of them are left out."""
        self.trials.note_where(self.index, self.t, self.y, self.failed)

    def _bound(self) -> None:
        """Bound the next steps of rows at rest; see `rest`. All rows look, those with room take the answer."""
        p, rows, known, before = self.p, self.rows, self.slope, self.before
        assert known is not None
        assert before is not None
        motion = rows.gathered(self.rule.motion(before, self.y))
        t = rows.spread(self.t)
        with plain():
            here = self.room & ((motion <= STILL) | (self.ratios[0] <= ROUNDING))
        f = sided(p.f.call, t, rows.spread(self.spans.end), self.jumps)
        self.f0 = f(t, self.y) if self.f0 is None else self.f0
        point = (t, self.y, self.f0, self.atol, resolution(p))
        seen = known.looked(f, *point, batch=rows.batch)
        direction = torch.where(rows.spread(here), seen.direction, known.direction)
        self.slope = Slope(direction, torch.where(rows.each(here), seen.steepness, known.steepness))
        steepness = rows.gathered(self.slope.steepness)
        with plain():
            start, end = self.spans.start, self.spans.end
            least = least_between(start, end, self.control)
            bound = torch.maximum(longest(steepness, p.method, abs(end - start)), least)
            self.dt = torch.where(here, torch.minimum(self.dt, bound), self.dt)
            self.room = torch.zeros_like(here)

    def _try(self, trial: Trial) -> None:
        """One trial in every row; the rows that are not active stay where they are."""
        p, control, spread = self.p, self.control, self.rows.spread
        active, t1, size, clipped = trial
        self.idle += len(self.t) - self.going
        order = p.method.order if p.carrying is None else p.carrying.error_order
        times, start = (spread(self.t), spread(t1)), self.y if self.carry is None else self.carry
        lifts = self.carry is not None and self._jumps(self.t)
        step = trial_of(p, times, start, self.f0, self.jumps, lifts=lifts)
        ratio = self.rows.gathered(self.rule.ratio(step))
        with plain():
            ratio = ratio.double()
            forced = control.accept_at_dt_min
            success = active & accepts(ratio, self.t, size, self.limits, at_least_dt_min=forced)
            ratios = [ratio.nan_to_num(nan=BAD_RATIO, posinf=BAD_RATIO, neginf=BAD_RATIO), *self.ratios]
            tried, calm = (size, clipped, success), self.rejections > 0
            self.dt = next_dt(control, order, self.dt, ratios[: 1 + control.older], tried, calm, self.limits)
            self.ratios = [torch.where(success, *pair) for pair in pairwise(ratios)]
            self.rejections = (self.rejections + 1).masked_fill_(success, 0.0)
            self.rejected_size = size
        if self.watch is not None:
            self.watch(self, step, t1, success)
        moved = success
        if self.cut is not None:
            t1, found = self.cut(self, step, t1, success)
            self.spans = self.spans.ending(found, t1)
            moved, still = success & ~found & ~self.failed, found & (t1 == self.t)
            active, success = (x & ~self.failed & ~still for x in (active, success))
        with plain():
            self.t = torch.where(success, t1, self.t)
            if self.slope is not None:
                self.room = success & (ratio <= ROOM)
            self.trials.note(t1, active, success)
        here, f1, self.before = spread(moved), step.hint, self.y
        self.y = torch.where(here, step.y1, self.y)
        if self.carry is not None:
            self.carry = torch.where(here, cast("CarryingStep", step).carry, self.carry)
        if self.jumps is not None and self._jumps(torch.where(success, t1, torch.inf)):
            f1 = None  # on the other side of a jump f is another
        self.f0 = None if f1 is None else torch.where(here, f1, step.f0)

    def _jumps(self, t: Tensor) -> bool:
        """Whether f may jump for a row at its time."""
        with plain():
            return self.jumps is not None and bool(torch.isin(t, self.jumps).any())

    def _going(self, active: Tensor, size: Tensor, ends: tuple[Tensor, Tensor]) -> Tensor | None:
        """Which of the rows that are on their way can make a trial of that size, None if none is left.

        The `ends` are that of the trial, and the next stop.

        Reads the device once, also whether a row rests and how many go on, and more often where a row may fail; raises
        where one does, unless rows fail alone.
        """
        doubts = active & doubtful(size, self.rejections, self.limits, self.farthest)
        self.going, rest, doubt = torch.stack([active, self.room, doubts]).flatten(1).sum(1).tolist()
        self.rests = bool(rest)
        if doubt or self.trials.n + self.most_made >= self.limits.max_trials:
            tried = self.rejections, self.rejected_size, self.trials.n + self.made
            for reason, holds in refusals(self.t, size, torch.eq(*ends), *tried, self.limits).items():
                if bool((active & holds).any()):
                    self.fail(reason, active & holds)
            active = active & ~self.failed
            self.going = int(active.sum())
        return active if self.going else None

    def fail(self, reason: str, mask: Tensor) -> None:
        """The rows of the mask end where they are.

        Raises
        ------
        SolverError
            Unless rows fail alone.
        """
        failure = self.explain(self, reason, mask)
        if not self.alone:
            raise failure
        self.failure = self.failure or failure
        self.failed, self.spans = self.failed | mask, self.spans.ending(mask, self.t)
