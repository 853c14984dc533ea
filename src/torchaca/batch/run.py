"""A solve in which each sample has steps of its own.

Two passes, as in lanes of `torch.func.vmap`, if somebody wants a derivative or dense output. The first searches the
step sizes and builds no graph: a trial is made for all samples, and each accepts or rejects its own. The second takes
the accepted steps again, the n-th ones of all samples together (`numbered`), under the gradient that was asked for. So
a sample's solution and gradient are those of a solve of its own, and no derivative ever meets a rejected trial.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any, Protocol

import torch
from torch import Tensor

from ..core import Problem, VectorField, tolerant
from ..errors import SolverError
from ..executors import Eager
from ..layout import stacked
from ..log import Samples as Counts
from ..loops.clock import check_clock
from ..loops.row_search import Cut, Search
from ..loops.rows import Rows, Samples, Spans
from ..loops.rule import StepRule
from .assembly import numbered
from .clock import Clock
from .dense import SampleDense
from .failures import Failures
from .gathering import Gathering
from .outputs import reached_by
from .solved import Solved
from .written import Written


def starting(p: Problem, clock: Clock, samples: Samples, rows: int) -> Problem:
    """The problem at the times at which the samples start, where f jumps for none of them."""
    call: Any = p.f.call
    start = clock.start(call.time_dtype)
    f = call.starting(samples.spread(start), rows)
    return replace(p, f=replace(p.f, call=f, jumps=frozenset()), ts=clock.standing_in(start))


def unmoved(p: Problem, clock: Clock) -> Solved:
    """What comes of samples that all end where they start."""
    ys = clock.along(stacked([p.y0] * len(clock.wanted)), p)
    dense = SampleDense.of(p, clock, clock.ends[:1], ()) if p.dense else None
    return Solved(p, ys, torch.ones_like(clock.wanted, dtype=torch.bool), dense=dense)


class Found(Protocol):
    """What has found steps: which samples have `failed`, and the failure of the first."""

    failed: Tensor
    failure: SolverError | None


@dataclass
class Run:
    """One solve of a problem that has begun."""

    p: Problem
    clock: Clock
    samples: Samples
    spans: Spans
    gathering: Gathering
    failures: Failures = field(default_factory=Failures)

    def search(
        self,
        written: Written | None = None,
        cut: Cut | None = None,
        known: Tensor | None = None,
        made: Tensor | None = None,
    ) -> Search:
        """The search for the steps of all samples, who looks after the outputs if they are to be written.

        `known` `(B,)` are sizes of first steps, nan where they are to be guessed; for `cut` and `made` see `Search`.
        """
        p, spans = self.p, self.spans
        control = tolerant(p.control)
        rule = replace(control.step_rule, batch=1)
        reach = (0.5 * (spans.stops[0] - spans.start).abs()).clamp(max=control.dt_max)

        def guess(p: Problem, f0: Tensor) -> Tensor:
            if known is not None and not bool(known.isnan().any()):
                return known
            start = self.samples.spread(spans.start)
            found = rule.guessed_step(p.f, start, p.y0, f0, spans.sign, reach, p.method.order)
            return found if known is None else torch.where(known.isnan(), found, known)

        def fewer(index: Tensor) -> tuple[VectorField, StepRule, Rows, Tensor | float] | None:
            call = self.gathering.of(index)
            if call is None:
                return None
            rtol, atol = (_of_some(x, index, p.y0) for x in (rule.rtol, rule.atol))
            some = Samples(len(index), p.y0.ndim)
            return call, replace(rule, rtol=rtol, atol=atol), some, atol

        return Search.of(
            p,
            control,
            rule,
            self.samples,
            spans,
            guess=guess,
            explain=self.failures,
            alone=p.log.on_failure != "raise",
            watch=None if written is None else written.watch,
            jumps=self.clock.jumps,
            fewer=fewer,
            cut=cut,
            made=made,
        )

    def fixed(self) -> Tensor:
        """The boundaries of steps that do not look at the solution."""
        control: Any = self.p.control
        boundaries = control.rows(self.clock.wanted)
        n = (boundaries[1:] != boundaries[:-1]).sum(0)
        self.p.stats.samples = Counts(n, torch.zeros_like(n))
        return boundaries

    def replayed(self, boundaries: Tensor, moving: Tensor | None, search: Found | None = None) -> Solved:
        """Make these steps under the gradient, `moving` if they have derivatives; a search has found them, or none."""
        p, clock, failure = self.p, self.clock, None
        times = boundaries.cpu().numpy()
        if search is not None:
            failure, search.failure = search.failure, None  # handed over: its traceback would hold the search
            times = times[:, ~search.failed.cpu().numpy()]
        check_clock(p, times)
        reached = reached_by(clock.wanted, boundaries[-1])
        if len(boundaries) == 1:  # every sample has failed at once
            ys, bases = stacked([p.y0] * len(clock.wanted)), ()
        else:
            q, chosen = numbered(p, clock, boundaries, moving, self.gathering)
            outcome = Eager().finish(q)
            ys, bases = clock.along(chosen(outcome.ys), p), outcome.bases
        accepted, rejected = (int(x.max()) for x in vars(p.stats.samples).values())
        p.stats.accepted, p.stats.rejected = accepted, rejected
        ends = boundaries if moving is None else moving
        dense = SampleDense.of(p, clock, ends, bases) if p.dense else None
        return Solved(p, ys, reached, failure, self.failures.kinds, dense)

    def moving(self, boundaries: Tensor) -> Tensor | None:
        """The boundaries with derivatives, if somebody differentiates with respect to times."""
        control: Any = self.p.control
        if control.adaptive:
            return self.clock.boundaries(boundaries)
        return None if self.clock.moving is None else control.rows(self.clock.moving)


def _of_some(tolerance: float | Tensor, index: Tensor, y: Tensor) -> Any:
    """A tolerance, of some samples if it has one for each."""
    of_each = isinstance(tolerance, Tensor) and tolerance.ndim == y.ndim and len(tolerance) == len(y)
    return tolerance[index] if of_each and isinstance(tolerance, Tensor) else tolerance
