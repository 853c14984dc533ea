"""Samples that solve through events of their own: one ordinary solve of the batch from event to event.

In the n-th stretch each sample goes from its own n-th event to its next one, or to its end; samples that are done stay
where they are. So the steps of a stretch, and all gradients, know nothing of events, and between two stretches lies the
same differentiable function of time and state as in a single solve (`moments`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any, TypeAlias

import torch
from torch import Tensor

from ..core import Problem, tolerant
from ..errors import SolverError
from ..events import Event, Occurrences, events_of
from ..events.course import INSTANT, MOST_INSTANTS
from ..events.guard import guards_of
from ..executors import Eager, check_problem, prepared
from ..log import Samples as Counts
from ..loops.pace import ulp
from ..loops.rows import Samples, Spans, beside
from ..numbers import column
from .check import check_independence
from .clock import Clock
from .door import refuse_problem
from .failures import Failures
from .gathering import Gathering
from .happening import Happened, happen
from .outputs import reached_by, signs
from .pieces import SamplePieces
from .run import Run, starting, unmoved
from .solved import Solved
from .stretch import Left, Stretch, stretch
from .watch import RowWatch

Noted: TypeAlias = tuple[Tensor, Tensor, Tensor, Tensor]


@dataclass
class Course:
    """Where samples are on their way through events, and what they have come by.

    Attributes
    ----------
    t, y : Tensor
        `(B,)` and `(B, ...)`, with derivatives: their last events, or where they have ended.
    done : Tensor
        `(B,)`, how many outputs each has made; those that are `ended` make no more.
    sizes, zeros : Tensor
        Of the next stretch; see `Happened`.
    instants : Tensor
        `(B,)`, how many events there were in a row with no time between them.
    outputs : list
        Which outputs were made, of which samples, and the states.
    noted : list
        For each event the samples to which it has happened, how often before, when, and the states.
    """

    p: Problem
    events: Sequence[Event]
    clock: Clock
    samples: Samples
    options: Any
    t: Tensor
    y: Tensor
    done: Tensor
    ended: Tensor
    terminal: Tensor
    sizes: Tensor
    zeros: Tensor
    instants: Tensor
    counts: Tensor
    grid: Tensor | None
    outputs: list[tuple[Tensor, Tensor, Tensor]]
    noted: list[list[Noted]]
    dense: list[Any] = field(default_factory=list)
    failures: Failures = field(default_factory=Failures)
    failure: SolverError | None = None
    gathers: bool | None = None
    begun: bool = False

    @staticmethod
    def of(p: Problem, clock: Clock, samples: Samples, options: Any) -> Course:
        """All samples at their starts, whose outputs are made."""
        control: Any = p.control
        events, first = events_of(options.events), clock.wanted[0]
        no, never = torch.zeros_like(first, dtype=torch.bool), torch.full_like(first, torch.nan)
        number = torch.arange(samples.size, device=first.device)
        grid = None if control.adaptive else control.rows(clock.wanted)
        if grid is not None and control.tensors:
            clock = replace(clock, moving_jumps=control.tensors[0][1:-1].unbind())
        p.stats.samples = Counts.none(samples.size)
        several = [x.expand(len(events), -1) for x in (never, torch.zeros_like(number))]
        made = [(torch.zeros_like(number), number, p.y0)]
        state = (clock.ends[0], p.y0, torch.ones_like(number), no, no, never)
        last = (several[0], torch.zeros_like(number), several[1], grid, made, [[] for _ in events])
        return Course(p, events, clock, samples, options, *state, *last)

    @property
    def left(self) -> Left:
        """The outputs that are left."""
        return Left(self.clock, torch.where(self.ended, len(self.clock.wanted), self.done))

    def go_on(self) -> bool:
        """Go on to the next event of each sample; False if none has any output left."""
        left, start = self.left, self.t.detach()
        going = left.mask.any(0)
        if not bool(going.any()):
            return False
        last = self.clock.ends[1]
        clock = left.between(self.t, torch.where(going, last, self.t), torch.zeros_like(self.done))
        p = replace(self.p, y0=self.y, f=replace(self.p.f, f0=None, effects=None, inputs=None))
        p = starting(p, clock, self.samples, len(self.options.rows))
        spans = Spans.between(clock.wanted[0], clock.wanted[1], clock.jumps)
        if bool((spans.start == spans.end).all()):
            counts = left.before(torch.full_like(start, torch.nan))
            clock = left.between(self.t, torch.where(going, last, self.t), counts)
            solved, none = unmoved(p, clock), torch.zeros_like(going)
            self._add(
                left, Stretch(p, clock, solved.ys, clock.wanted[-1], counts, none, none, dense=solved.dense)
            )
            return True
        begun = self._begun(p, spans)
        guards = guards_of(begun, tuple(self.events))
        wanted = not self.options.deterministic and begun.f.stepper is None
        gathering = Gathering(begun, self.samples, spans, wanted=wanted, guards=guards)
        gathering.known = self.gathers
        run = Run(begun, clock, self.samples, spans, gathering, self.failures)
        watch = RowWatch(guards, start, begun.y0.detach(), self.zeros)
        part = stretch(run, left, watch, torch.where(going, self.sizes, 1.0), self.grid)
        self.gathers = gathering.known
        self._add(left, part)
        return True

    def _begun(self, p: Problem, spans: Spans) -> Problem:
        """The problem with f at its starts; what is found out at the first one holds for all stretches."""
        gradient, options, first = p.gradient, self.options, not self.begun
        assert gradient is not None
        begun = prepared(Eager().begin(p, attaches=p.f.stepper is None), gradient)
        refuse_problem(begun, joint=False)
        if options.check_rows and first:
            t, y = beside(spans, begun.y0.detach())
            check_independence(begun, self.samples.spread(t), y)
        if begun.f.inputs is not None and not begun.f.inputs.wanted:
            check_problem(gradient, begun)  # what training will refuse, evaluation refuses as well
        own = tolerant(begun.control)
        control = begun.control if own is None else own.with_settings(dt0=None)
        self.p = replace(self.p, control=control, f=replace(self.p.f, call=begun.f.call))
        self.begun = True
        return begun

    def _add(self, left: Left, part: Stretch) -> None:
        """Note what a stretch has come to."""
        going, failed, found = left.mask.any(0), part.failed, part.found
        t, y = torch.where(failed, part.t, part.clock.ends[1]), part.ys[-1]
        if part.dense is not None:
            self.dense.append(part.dense)
        self.failure = self.failure or part.failure
        passed = part.t
        if bool(found.any()):
            happened = happen(part, guards_of(part.p, tuple(self.events)), self.samples)
            first, now = happened.first, happened.now
            stopped = self._stopped(part, happened)
            here, failed = _column(found, y), failed | stopped
            after = torch.where(_column(stopped, y), first.y, now.y)
            passed = torch.where(found, first.t.detach(), passed)
            t = torch.where(found, torch.where(stopped, first.t, now.t), t)
            y = torch.where(here, after, y)
            self._note(happened, stopped)
        self._write(left, part, passed)
        self.ended = self.ended | (going & failed)
        self.t, self.y = torch.where(going, t, self.t), torch.where(_column(going, y), y, self.y)

    def _stopped(self, part: Stretch, happened: Happened) -> Tensor:
        """Which samples cannot go on from their events, `(B,)`.

        Raises
        ------
        SolverError
            If failures are to be raised.
        """
        start, end, first = self.t.detach(), self.clock.wanted[-1], happened.first.t.detach()
        least = torch.maximum(INSTANT * (end - start).abs(), 10 * ulp(first))
        still = (first - start).abs() <= least
        self.instants = torch.where(part.found & still, self.instants + 1, 0)
        zeno = self.instants >= MOST_INSTANTS
        masks = {"grazing": happened.grazing, "zeno": zeno & ~happened.grazing}
        for kind, mask in masks.items():
            failed = mask.nonzero()[:, 0].tolist()
            if not failed:
                continue
            size = part.watch.size[failed[0]].item() if part.watch is not None else 0.0
            failure = self.failures.of_event(kind, failed, first[failed[0]].item(), size, self.p)
            if self.p.log.on_failure == "raise":
                raise failure
            self.failure = self.failure or failure
        return happened.grazing | zeno

    def _note(self, happened: Happened, stopped: Tensor) -> None:
        """Note events, but not those of samples that are stopped."""
        for i, (here, t, y) in enumerate(happened.noted):
            samples = (here & ~stopped).nonzero()[:, 0]
            if len(samples):
                self.noted[i].append((samples, self.counts[i, samples], t[samples], y[samples]))
                counts = self.counts.clone()
                counts[i, samples] += 1
                self.counts = counts
        ended = happened.ended & ~stopped
        self.terminal = torch.where(ended, happened.now.t, self.terminal)
        self.ended = self.ended | ended
        self.sizes, self.zeros = happened.sizes, happened.zeros

    def _write(self, left: Left, part: Stretch, passed: Tensor) -> None:
        """Write the outputs of a stretch: those up to where its samples have `passed`, before the time of an event.

        An event may lie a little off the end of the stretch, and outputs between the two along f.
        """
        wanted, sign = self.clock.wanted, signs(self.clock.wanted)
        off = sign * (wanted - passed)
        new = (left.mask & torch.where(part.found, off < 0, off <= 0)).sum(0)
        n, sample = int(new.max()), torch.arange(len(new), device=new.device)
        number = torch.arange(n, device=new.device)[:, None]
        here, behind = number < new, number >= part.counts
        row = torch.where(behind, len(part.ys) - 1, number + 1).clamp(max=len(part.ys) - 1)
        ys = part.ys[row, sample]
        if part.watch is not None and bool((here & behind & part.found).any()):
            slope = part.watch.slope
            times, moving = left.times(n)
            shift = (times if moving is None else moving) - part.clock.ends[1]
            shift = torch.where(here & behind & part.found, shift, 0.0).to(ys.dtype.to_real())
            ys = ys + shift.reshape(*shift.shape, *[1] * (ys.ndim - 2)) * slope
        if n:
            self.outputs.append(((self.done + number)[here], sample.expand_as(here)[here], ys[here]))
        self.done = self.done + new

    def solved(self) -> Solved:
        """What has come of all stretches."""
        p, clock, y = self.p, self.clock, self.y
        index, sample, values = (torch.cat(column) for column in zip(*self.outputs, strict=True))
        ys = y.expand(len(clock.wanted), *y.shape).index_put((index, sample), values)
        dense = SamplePieces.of(self.dense, clock) if p.dense else None
        accepted, rejected = vars(p.stats.samples).values()
        p.stats.accepted, p.stats.rejected = int(accepted.max()), int(rejected.max())
        reached = reached_by(clock.wanted, self.t.detach())
        several = zip(self.events, self.counts, self.noted, strict=True)
        happened = tuple(_occurrences(p, y, *one) for one in several)
        kinds = self.failures.kinds
        return Solved(p, ys, reached, self.failure, kinds, dense, happened, self.terminal)


def solve_through(p: Problem, clock: Clock, samples: Samples, options: Any) -> Solved:
    """Solve the samples of a batch through their events; see `solving.solve_samples`."""
    course = Course.of(p, clock, samples, options)
    if p.y0.numel():
        while course.go_on():
            pass
        return course.solved()
    solved = unmoved(p, clock)
    return replace(
        solved, events=tuple(_occurrences(p, p.y0, event, course.counts[0], ()) for event in course.events)
    )


def _occurrences(p: Problem, y: Tensor, event: Event, counts: Tensor, noted: Sequence[Noted]) -> Occurrences:
    """When an event has happened, `(k, B)`, and where; behind the last time of a sample nan, and its last state y."""
    call: Any = p.f.call
    k = int(counts.max()) if noted else 0
    t, ys = counts.new_full((k, len(counts)), torch.nan, dtype=torch.float64), y.expand(k, *y.shape)
    if noted:
        sample, number, times, states = (torch.cat(column) for column in zip(*noted, strict=True))
        t, ys = t.index_put((number, sample), times), ys.index_put((number, sample), states)
    return Occurrences(t, call.structure.unpack(ys), event.terminal, counts)


def _column(mask: Tensor, like: Tensor) -> Tensor:
    return column(mask, like, 1)
