"""A stretch of samples: each goes from where it is to its next event, or to its end."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from ..control import FixedSteps
from ..core import Problem
from ..errors import SolverError
from ..log import Samples as Counts
from ..loops.rows import Spans
from .clock import Clock
from .march import March
from .outputs import signs
from .run import Run
from .watch import RowWatch


@dataclass(frozen=True)
class Left:
    """The outputs that samples have not made yet: those from number `done` of each on, `(B,)`, of a whole solve.

    Where none is left, the sample stays where it is.
    """

    clock: Clock
    done: Tensor

    @property
    def mask(self) -> Tensor:
        """Which ones they are, `(n, B)`."""
        number = torch.arange(len(self.clock.wanted), device=self.done.device)[:, None]
        return (number >= self.done) & (number <= self.clock.last)

    def times(self, n: int) -> tuple[Tensor, Tensor | None]:
        """The first n of each sample, `(n, B)`, and the same with derivatives, if they have some."""
        clock = self.clock
        number = torch.arange(n, device=self.done.device)[:, None] + self.done
        number = number.clamp(max=len(clock.wanted) - 1)
        moving = None if clock.moving is None else clock.moving.gather(0, number)
        return clock.wanted.gather(0, number), moving

    def before(self, t: Tensor) -> Tensor:
        """How many of them lie before the times t, `(B,)`; all where that is nan."""
        wanted = self.clock.wanted
        return (self.mask & ~(signs(wanted) * (wanted - t) >= 0)).sum(0)

    def between(self, start: Tensor, end: Tensor, counts: Tensor) -> Clock:
        """The times of samples that go from `start` to `end`, past so many of them, all `(B,)`, with derivatives."""
        clock, first, last = self.clock, start.detach(), end.detach()
        n, ends = int(counts.max()), torch.where(self.mask.any(0), counts + 1, 0)
        wanted, moving = self.times(n)
        here = torch.arange(n, device=counts.device)[:, None] < counts
        times = torch.cat([first[None], torch.where(here, wanted, last), last[None]])
        if moving is None and not (start.requires_grad or end.requires_grad):
            return replace(clock, wanted=times, last=ends)
        moving = torch.where(here, wanted if moving is None else moving, end)
        moved = torch.cat([start[None], moving, end[None]])
        return replace(clock, wanted=times, last=ends, moving=moved)


@dataclass(frozen=True)
class Stretch:
    """What came of a stretch.

    Attributes
    ----------
    p : Problem
        As it was prepared.
    clock : Clock
        The times: the start, `counts` `(B,)` outputs of each sample, and where it has ended.
    ys : Tensor
        The states there.
    t : Tensor
        `(B,)`, where the samples have ended.
    found, failed : Tensor
        `(B,)`: which samples have come to an event, which have failed.
    watch : RowWatch or None
        What is known of the events; None where nobody has moved.
    """

    p: Problem
    clock: Clock
    ys: Tensor
    t: Tensor
    counts: Tensor
    found: Tensor
    failed: Tensor
    watch: RowWatch | None = None
    failure: SolverError | None = None
    dense: Any = None


def stretch(run: Run, left: Left, watch: RowWatch, sizes: Tensor, grid: Tensor | None) -> Stretch:
    """Solve a stretch, with steps of the `grid` `(N + 1, B)` of the whole solve if there is one.

    `sizes` `(B,)` are those of the first steps otherwise, nan where they are to be guessed.
    """
    p, spans, made = run.p, run.spans, run.p.stats.samples
    assert made is not None
    if grid is None:
        before = (made.accepted + made.rejected).to(spans.start)
        search: Any = run.search(cut=watch, known=sizes, made=before)
        boundaries = search.boundaries()
        accepted, rejected = search.trials.counts()
    else:
        failed = torch.zeros_like(spans.start, dtype=torch.bool)
        search = March(p, run.samples, spans, run.failures, spans.start, failed)
        boundaries = search.boundaries(inside(grid, spans), watch)
        accepted = (boundaries[1:] != boundaries[:-1]).sum(0)
        rejected = torch.zeros_like(accepted)
        run.p = replace(p, control=FixedSteps(n_steps=max(len(boundaries) - 1, 1)))  # which are known by now
    p.stats.samples = Counts(
        made.accepted + accepted.to(made.accepted), made.rejected + rejected.to(made.rejected)
    )
    failed, found = search.failed, ~watch.at.isnan() & ~search.failed
    counts = left.before(watch.at)
    start, end = run.clock.ends
    run.clock = left.between(start, torch.where(found, watch.at, end), counts)
    solved = run.replayed(boundaries, run.clock.boundaries(boundaries), search)
    return Stretch(
        p, run.clock, solved.ys, search.t, counts, found, failed, watch, solved.failure, solved.dense
    )


def inside(grid: Tensor, spans: Spans) -> Tensor:
    """The times `(N + 1, B)` of a grid inside of spans, from the start of each to its end."""
    passed = (spans.sign * (grid - spans.start) <= 0).sum(0)
    n = len(grid) - int(passed.min())
    number = (torch.arange(n, device=grid.device)[:, None] + passed).clamp(max=len(grid) - 1)
    times = grid.gather(0, number)
    beyond = (spans.sign * (times - spans.end) >= 0) | (spans.start == spans.end)
    return torch.cat([spans.start[None], torch.where(beyond, spans.end, times)])
